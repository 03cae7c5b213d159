//! Which images of a daemon set are pulled next, and how it went. Pure.
//!
//! Whether an image came is seen by what the kubelet says of its container: one that could be made had its image, whether or not there
//! is a program `true` in it.

use crate::{
    condition,
    fields::{items, text},
    pod,
};
use jiff::Timestamp;
use serde_json::Value;
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use yurt_api::names::{annotations::ATTEMPT, annotations::MAX_IMAGE_PULLS};

/// On how many nodes at once, unless an annotation says otherwise.
const AT_ONCE: usize = 10;
/// Tries per pod; then its owner may ask again.
pub(super) const MOST_TRIES: u32 = 3;
/// After the first failure; then twice as long.
const PAUSE: Duration = Duration::from_secs(30);

/// Reasons of a waiting container that has no image yet.
const NOT_PULLED: [&str; 8] = [
    "ErrImagePull",
    "ImagePullBackOff",
    "InvalidImageName",
    "ErrImageNeverPull",
    "ImageInspectError",
    "RegistryUnavailable",
    "SignatureValidationFailed",
    "ErrInvalidImageName",
];
/// Reasons of a container whose turn has not come.
const BEGINNING: [&str; 2] = ["ContainerCreating", "PodInitializing"];

/// What became of the images of one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Pull {
    /// The kubelet is at it, or nobody says.
    Running,
    /// All are there.
    Done,
    /// They did not come in time.
    Failed { why: String, at: Option<Timestamp> },
}

/// Why an image is not there; nothing when it is.
fn missing(status: &Value) -> Option<String> {
    let state = &status["state"];
    if state["terminated"].is_object() || state["running"].is_object() {
        return None;
    }
    let reason = text(&state["waiting"]["reason"]);
    if reason.is_empty() || BEGINNING.contains(&reason.as_str()) {
        return Some(String::new());
    }
    NOT_PULLED.contains(&reason.as_str()).then(|| {
        let (image, message) = (text(&status["image"]), text(&state["waiting"]["message"]));
        format!("{image}: {reason} {message}").trim_end().to_owned()
    })
}

/// What became of a job, by itself and its pods.
pub(super) fn outcome(job: &Value, pods: &[Arc<Value>]) -> Pull {
    let containers = items(&job["spec"]["template"]["spec"]["containers"]).count();
    let mut why = String::new();
    for p in pods {
        let statuses = || items(&p["status"]["containerStatuses"]);
        let lacking: Vec<String> = statuses().filter_map(missing).collect();
        if containers > 0 && statuses().count() >= containers && lacking.is_empty() {
            return Pull::Done;
        }
        if let Some(said) = lacking.into_iter().find(|said| !said.is_empty()) {
            why = said;
        }
    }
    if condition::holds(&job["status"], "Complete") {
        return Pull::Done;
    }
    let failed = condition::find(&job["status"], "Failed").filter(|c| c["status"] == "True");
    match failed {
        None => Pull::Running,
        Some(failed) => Pull::Failed {
            why: if why.is_empty() {
                format!("{} {}", text(&failed["reason"]), text(&failed["message"]))
            } else {
                why
            },
            at: pod::instant(&failed["lastTransitionTime"]),
        },
    }
}

/// Which try a job is.
pub(super) fn attempt(job: &Value) -> u32 {
    text(&job["metadata"]["annotations"][ATTEMPT])
        .parse()
        .unwrap_or(1)
}

/// How many nodes may pull at once.
pub(super) fn at_once(set: &Value) -> usize {
    let said = set["metadata"]["annotations"][MAX_IMAGE_PULLS].as_str();
    let said = said.and_then(|said| said.trim().parse().ok());
    said.filter(|count| *count > 0).unwrap_or(AT_ONCE)
}

/// What is to be done for one pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// A job of this try is made.
    Start(u32),
    /// Its images are there.
    Succeed,
    /// They did not come at the last try.
    GiveUp(String),
}

/// What to do for the pods that want their images: by pod, with its last job as far as there is one. At most `most` are at it at
/// once; those that wait are looked at again after the time that is given.
pub(super) fn plan<'p>(
    wanting: &BTreeMap<&'p str, Option<(u32, Pull)>>,
    most: usize,
    now: Timestamp,
) -> (Vec<(&'p str, Step)>, Option<Duration>) {
    let running = wanting
        .values()
        .flatten()
        .filter(|(_, pull)| *pull == Pull::Running);
    let mut room = most.saturating_sub(running.count());
    let (mut steps, mut next) = (Vec::new(), None);
    for (name, last) in wanting {
        let attempt = match last {
            None => 1,
            Some((_, Pull::Running)) => continue,
            Some((_, Pull::Done)) => {
                steps.push((*name, Step::Succeed));
                continue;
            }
            Some((attempt, Pull::Failed { why, .. })) if *attempt >= MOST_TRIES => {
                steps.push((*name, Step::GiveUp(why.clone())));
                continue;
            }
            Some((attempt, Pull::Failed { at, .. })) => {
                let pause = PAUSE.saturating_mul(1 << attempt.saturating_sub(1).min(8));
                let ago = at.map_or(i64::MAX, |at| {
                    now.as_second().saturating_sub(at.as_second())
                });
                let left =
                    pause.saturating_sub(Duration::from_secs(u64::try_from(ago).unwrap_or(0)));
                if !left.is_zero() {
                    next = Some(next.map_or(left, |next: Duration| next.min(left)));
                    continue;
                }
                attempt.saturating_add(1)
            }
        };
        // Who finds no room is looked at when a job ends.
        if room > 0 {
            room -= 1;
            steps.push((*name, Step::Start(attempt)));
        }
    }
    (steps, next)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn p(states: &[Value]) -> Vec<Arc<Value>> {
        let statuses: Vec<Value> = states
            .iter()
            .map(|state| json!({"image": "i", "state": state}))
            .collect();
        vec![Arc::new(json!({"status": {"containerStatuses": statuses}}))]
    }

    fn waiting(reason: &str) -> Value {
        json!({"waiting": {"reason": reason}})
    }

    #[test]
    fn an_image_is_there_when_its_container_could_be_made() {
        let job = json!({"spec": {"template": {"spec": {"containers": [{}, {}]}}}});
        let done = json!({"terminated": {"exitCode": 0}});
        let no_true = json!({"terminated": {"exitCode": 128, "reason": "StartError", "message": "\"true\": executable file not found"}});
        assert_eq!(
            outcome(&job, &p(&[done.clone(), no_true.clone()])),
            Pull::Done
        );
        assert_eq!(
            outcome(
                &job,
                &p(&[
                    waiting("RunContainerError"),
                    waiting("CreateContainerError")
                ])
            ),
            Pull::Done
        );
        for reason in ["ErrImagePull", "ImagePullBackOff", "ContainerCreating", ""] {
            assert_eq!(
                outcome(&job, &p(&[done.clone(), waiting(reason)])),
                Pull::Running,
                "{reason}"
            );
        }
        assert_eq!(
            outcome(&job, &p(std::slice::from_ref(&done))),
            Pull::Running,
            "one of them says nothing yet"
        );
        let mut failed = job.clone();
        failed["status"]["conditions"] = json!([{"type": "Failed", "status": "True", "reason": "DeadlineExceeded", "lastTransitionTime": "1970-01-01T00:00:09Z"}]);
        let at = Some(Timestamp::from_second(9).unwrap());
        let pulled = outcome(&failed, &p(&[done.clone(), no_true]));
        assert_eq!(pulled, Pull::Done, "the job failed, the images are there");
        let pull = outcome(&failed, &p(&[done, waiting("ErrImagePull")]));
        assert_eq!(
            pull,
            Pull::Failed {
                why: "i: ErrImagePull".into(),
                at
            }
        );
        assert_eq!(
            outcome(&failed, &[]),
            Pull::Failed {
                why: "DeadlineExceeded ".into(),
                at
            }
        );
        failed["status"]["conditions"][0]["type"] = "Complete".into();
        assert_eq!(outcome(&failed, &[]), Pull::Done);
    }

    #[test]
    fn tries_are_counted_and_wait_longer() {
        let now = Timestamp::from_second(100).unwrap();
        let failed = |attempt, ago: i64| {
            Some((
                attempt,
                Pull::Failed {
                    why: "no".into(),
                    at: Timestamp::from_second(100 - ago).ok(),
                },
            ))
        };
        let wanting = BTreeMap::from([
            ("a", failed(1, 29)),
            ("b", failed(1, 30)),
            ("c", failed(2, 59)),
            ("d", failed(3, 1)),
            ("e", Some((1, Pull::Done))),
            ("f", None),
        ]);
        let (steps, next) = plan(&wanting, 10, now);
        assert_eq!(
            steps,
            [
                ("b", Step::Start(2)),
                ("d", Step::GiveUp("no".into())),
                ("e", Step::Succeed),
                ("f", Step::Start(1))
            ]
        );
        assert_eq!(next, Some(Duration::from_secs(1)));
        let at =
            |said: &str| at_once(&json!({"metadata": {"annotations": {MAX_IMAGE_PULLS: said}}}));
        assert_eq!(
            [at("3"), at("0"), at("x"), at("-1"), at_once(&json!({}))],
            [3, 10, 10, 10, 10]
        );
    }

    proptest! {
        #[test]
        fn never_more_than_allowed_at_once(kinds in prop::collection::vec(0u8..4, 0..60), most in 1usize..20) {
            let names: Vec<String> = (0..kinds.len()).map(|n| format!("p{n:02}")).collect();
            let of = |kind: &u8| match kind {
                0 => None,
                1 => Some((1, Pull::Running)),
                2 => Some((1, Pull::Done)),
                _ => Some((1, Pull::Failed { why: String::new(), at: None })),
            };
            let wanting: BTreeMap<&str, _> = names.iter().map(String::as_str).zip(kinds.iter().map(of)).collect();
            let (steps, _) = plan(&wanting, most, Timestamp::UNIX_EPOCH);
            let running = kinds.iter().filter(|kind| **kind == 1).count();
            let starts = steps.iter().filter(|(_, step)| matches!(step, Step::Start(_))).count();
            prop_assert!(starts == 0 || running + starts <= most);
            let due = kinds.iter().filter(|kind| matches!(kind, 0 | 3)).count();
            prop_assert_eq!(starts, due.min(most.saturating_sub(running)));
        }
    }
}
