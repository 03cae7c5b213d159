//! `taint-eviction-controller`: pods leave nodes whose NoExecute taints they do not tolerate, or not for longer.

use super::{
    Context, Controller, Failure, Key, Next, Watch,
    collections::{NODES, PODS},
    condition, pod,
    taint::{Taint, Toleration},
};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

const COMPONENT: &str = "taint-eviction-controller";

/// A pod that is to leave.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Leave {
    uid: String,
    /// Since when it has been tolerating.
    since: Timestamp,
    at: Timestamp,
}

/// The controller.
#[derive(Debug, Default)]
pub(super) struct TaintEviction {
    leaving: Mutex<HashMap<Key, Leave>>,
}

impl TaintEviction {
    fn leaving(&self) -> MutexGuard<'_, HashMap<Key, Leave>> {
        self.leaving.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes what is to become of a pod; what was noted before.
    fn note(&self, key: &Key, leave: Option<Leave>) -> Option<Leave> {
        match leave {
            Some(leave) => self.leaving().insert(key.clone(), leave),
            None => self.leaving().remove(key),
        }
    }
}

impl Controller for TaintEviction {
    const NAME: &'static str = "taint-eviction-controller";
    const WORKERS: usize = 8;

    fn watches(&self, context: &Arc<Context>) -> Vec<Watch> {
        let pods = context.objects(&PODS);
        let shown = |pod: &Value| {
            let (meta, spec) = (&pod["metadata"], &pod["spec"]);
            [
                meta["uid"].clone(),
                meta["deletionTimestamp"].clone(),
                spec["nodeName"].clone(),
                spec["tolerations"].clone(),
            ]
        };
        vec![
            Watch::of(PODS, move |change| match (&change.old, &change.new) {
                (Some(old), Some(new)) if shown(old) == shown(new) => Vec::new(),
                _ => vec![change.key()],
            }),
            Watch::of(NODES, move |change| {
                let taints =
                    |node: &Option<Arc<Value>>| node.as_deref().map(no_execute).unwrap_or_default();
                if taints(&change.old) == taints(&change.new) {
                    return Vec::new();
                }
                let pods = pods.on_node(&change.key().name);
                pods.iter().map(|pod| Key::of(pod)).collect()
            }),
        ]
    }

    async fn reconcile(&self, key: &Key, context: &Context) -> Result<Next, Failure> {
        let Some(pod) = context
            .objects(&PODS)
            .get(key)
            .filter(|pod| !pod::is_deleting(pod))
        else {
            self.note(key, None);
            return Ok(Next::Done);
        };
        let node = context.objects(&NODES).get(&Key::new("", pod::node(&pod)));
        let taints = node.as_deref().map(no_execute).unwrap_or_default();
        let tolerations = Toleration::of(&pod["spec"]);
        let now = Timestamp::now();
        let before = self.leaving().get(key).cloned();
        let uid = pod["metadata"]["uid"].as_str().unwrap_or_default();
        let since = before
            .as_ref()
            .filter(|leave| leave.uid == uid)
            .map_or(now, |leave| leave.since);
        match stay(&taints, &tolerations) {
            Stay::Forever => {
                if self.note(key, None).is_some() {
                    let message = format!("Cancelling deletion of Pod {key}");
                    context.event(COMPONENT, &pod, "Normal", "TaintManagerEviction", &message);
                }
                Ok(Next::Done)
            }
            Stay::Until(tolerated) => {
                let tolerated = SignedDuration::try_from(tolerated).unwrap_or(SignedDuration::MAX);
                let at = since.checked_add(tolerated).unwrap_or(Timestamp::MAX);
                let left = at.duration_since(now);
                if let Ok(left) = Duration::try_from(left)
                    && !left.is_zero()
                {
                    self.note(
                        key,
                        Some(Leave {
                            uid: uid.to_owned(),
                            since,
                            at,
                        }),
                    );
                    return Ok(Next::After(left));
                }
                evict(context, key, &pod, now).await?;
                self.note(key, None);
                Ok(Next::Done)
            }
        }
    }
}

/// Tells, marks and deletes.
async fn evict(context: &Context, key: &Key, pod: &Value, now: Timestamp) -> Result<(), Failure> {
    context.event(
        COMPONENT,
        pod,
        "Normal",
        "TaintManagerEviction",
        &format!("Marking for deletion Pod {key}"),
    );
    let target = condition::new(
        "DisruptionTarget",
        "True",
        "DeletionByTaintManager",
        "Taint manager: deleting due to NoExecute taint",
        now,
    );
    let patch =
        json!({"metadata": {"uid": pod["metadata"]["uid"]}, "status": {"conditions": [target]}});
    match context.patch(&PODS, key, "status", &patch).await {
        // It is gone, or another has its name.
        Err(error) if matches!(error.code(), Some(404 | 409)) => return Ok(()),
        other => other.map(drop)?,
    }
    Ok(context.delete(&PODS, pod).await?)
}

/// The NoExecute taints of a node.
fn no_execute(node: &Value) -> Vec<Taint> {
    let mut taints = Taint::of(node);
    taints.retain(|taint| taint.effect == "NoExecute");
    taints
}

/// How long a pod may stay.
#[derive(Debug, PartialEq, Eq)]
enum Stay {
    Forever,
    Until(Duration),
}

/// How long a pod with these tolerations may stay where these taints are. Pure.
fn stay(taints: &[Taint], tolerations: &[Toleration]) -> Stay {
    let mut shortest: Option<Duration> = None;
    for taint in taints {
        let Some(toleration) = tolerations.iter().find(|t| t.tolerates(taint)) else {
            return Stay::Until(Duration::ZERO);
        };
        if let Some(period) = toleration.period {
            shortest = Some(shortest.map_or(period, |known| known.min(period)));
        }
    }
    shortest.map_or(Stay::Forever, Stay::Until)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stage::Stage;
    use proptest::prelude::*;

    fn taint(key: &str) -> Value {
        json!({"key": key, "effect": "NoExecute"})
    }

    fn tolerate(key: &str, seconds: Option<i64>) -> Value {
        let mut toleration = json!({"key": key, "operator": "Exists", "effect": "NoExecute"});
        if let Some(seconds) = seconds {
            toleration["tolerationSeconds"] = seconds.into();
        }
        toleration
    }

    fn stay(taints: &[Value], tolerations: &[Value]) -> Stay {
        let node = json!({"spec": {"taints": taints}});
        let pod = json!({"tolerations": tolerations});
        super::stay(&no_execute(&node), &Toleration::of(&pod))
    }

    fn until(seconds: u64) -> Stay {
        Stay::Until(Duration::from_secs(seconds))
    }

    #[test]
    fn the_shortest_toleration_counts_and_what_is_not_tolerated_counts_at_once() {
        let both = [taint("a"), taint("b")];
        assert_eq!(stay(&[], &[]), Stay::Forever);
        assert_eq!(stay(&both, &[tolerate("a", None)]), until(0));
        assert_eq!(
            stay(&both, &[tolerate("a", None), tolerate("b", None)]),
            Stay::Forever
        );
        assert_eq!(
            stay(&both, &[tolerate("a", Some(300)), tolerate("b", Some(60))]),
            until(60)
        );
        assert_eq!(stay(&both[..1], &[tolerate("a", Some(-1))]), until(0));
        assert_eq!(
            stay(&both, &[json!({"operator": "Exists"})]),
            Stay::Forever,
            "everything is tolerated"
        );
    }

    proptest! {
        #[test]
        fn tolerating_more_never_shortens_a_stay_of_something_intolerable(seconds in proptest::option::of(0_i64..1000)) {
            let taints = [taint("a"), taint("b")];
            prop_assert_eq!(stay(&taints, &[tolerate("a", seconds)]), until(0));
            let both = stay(&taints, &[tolerate("a", seconds), tolerate("b", None)]);
            prop_assert_eq!(both, seconds.map_or(Stay::Forever, |s| until(s.unsigned_abs())));
        }
    }

    #[tokio::test]
    async fn pods_leave_a_tainted_node_when_their_time_is_up() {
        let stage = Stage::start(TaintEviction::NAME).await;
        stage
            .create("/api/v1/nodes", json!({"metadata": {"name": "n"}}))
            .await;
        let pods = "/api/v1/namespaces/default/pods";
        for (name, tolerations) in [
            ("leaves", json!([])),
            ("leaves-later", json!([tolerate("gone", Some(1))])),
            ("stays", json!([tolerate("gone", None)])),
            ("waits", json!([tolerate("gone", Some(3600))])),
        ] {
            let pod = json!({"metadata": {"name": name, "finalizers": ["lab.test/look"]},
                "spec": {"nodeName": "n", "tolerations": tolerations, "containers": [{"name": "c", "image": "i"}]}});
            stage.create(pods, pod).await;
        }
        let gone = json!({"spec": {"taints": [taint("gone")]}});
        stage
            .kube
            .merge("/api/v1/nodes/n", &gone)
            .await
            .expect("tainted");
        let leaving = stage
            .until(&format!("{pods}/leaves"), pod::is_deleting)
            .await;
        let target = condition::find(&leaving["status"], "DisruptionTarget").expect("a condition");
        assert_eq!(
            (&target["status"], &target["reason"]),
            (&json!("True"), &json!("DeletionByTaintManager"))
        );
        stage
            .until(&format!("{pods}/leaves-later"), pod::is_deleting)
            .await;
        for name in ["stays", "waits"] {
            let pod = stage
                .kube
                .get(&format!("{pods}/{name}"))
                .await
                .expect("there");
            assert!(!pod::is_deleting(&pod), "{name}");
        }
        stage
            .kube
            .merge("/api/v1/nodes/n", &json!({"spec": {"taints": null}}))
            .await
            .expect("freed");
        let events = "/api/v1/namespaces/default/events";
        let told = |list: &Value, message: &str| {
            list["items"]
                .as_array()
                .is_some_and(|items| items.iter().any(|event| event["message"] == message))
        };
        stage
            .until(events, |list| {
                told(list, "Cancelling deletion of Pod default/waits")
            })
            .await;
        stage
            .until(events, |list| {
                told(list, "Marking for deletion Pod default/leaves")
            })
            .await;
    }
}
