//! What is wanted of a node, how far it is, and what follows. Pure.

use super::conversion_job;
use crate::{condition, fields::text, pod};
use serde_json::{Value, json};
use std::fmt;
use yurt_api::names::{
    annotations::{NODE_CONVERSION, NODE_CONVERSION_STATE},
    conditions::NODE_CONVERSION_FAILED,
    labels::{EDGE_WORKER, NODE_POOL},
};

/// Which way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    /// To a node of the edge, with a hub.
    Convert,
    /// Back.
    Revert,
}

impl Direction {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Convert => "convert",
            Self::Revert => "revert",
        }
    }

    /// OpenYurt's reasons of the condition: while it runs, when it is done, when it failed.
    pub(super) fn reasons(self) -> [&'static str; 3] {
        match self {
            Self::Convert => ["Converting", "Converted", "ConvertFailed"],
            Self::Revert => ["Reverting", "Reverted", "RevertFailed"],
        }
    }

    /// Whether a node shows what comes of it.
    fn shows(self, node: &Value) -> bool {
        is_edge(node) == (self == Self::Convert)
    }
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What is wanted of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Wish {
    Nothing,
    /// Its labels ask for it, and nobody has allowed it; why.
    NotAllowed(String),
    /// `text` tells this wish from another one.
    Want {
        direction: Direction,
        pool: String,
        text: String,
    },
}

fn is_edge(node: &Value) -> bool {
    node["metadata"]["labels"][EDGE_WORKER] == "true"
}

/// The pool that a node is in, or `""`.
pub(super) fn pool_of(node: &Value) -> &str {
    node["metadata"]["labels"][NODE_POOL]
        .as_str()
        .unwrap_or_default()
}

/// What an object allows (`auto`, `convert`, `revert`, whatever the case), and all it says.
fn allowance(object: &Value) -> (String, &str) {
    let said = object["metadata"]["annotations"][NODE_CONVERSION]
        .as_str()
        .unwrap_or_default();
    let word = said.split(':').next().unwrap_or_default();
    (word.trim().to_ascii_lowercase(), said)
}

/// What is wanted of a node by its labels, as far as it is allowed: by its own annotation, or by that of its pool when it comes. A
/// node that has joined as one of the edge and is in no pool is as it should be until somebody says otherwise.
pub(super) fn wish(node: &Value, pool: Option<&Value>) -> Wish {
    let name = pool_of(node);
    let direction = match (name.is_empty(), is_edge(node)) {
        (false, false) => Direction::Convert,
        (true, true) => Direction::Revert,
        _ => return Wish::Nothing,
    };
    let (own, mut said) = allowance(node);
    let mut allowed = own == "auto" || own == direction.as_str();
    if direction == Direction::Convert {
        let Some(pool) =
            pool.filter(|pool| text(&pool["spec"]["type"]).eq_ignore_ascii_case("edge"))
        else {
            // Nothing is to be converted for a pool of the cloud; one that is not there yet may come.
            return Wish::Nothing;
        };
        if !allowed && own.is_empty() {
            let (of_pool, all) = allowance(pool);
            (allowed, said) = (of_pool == "auto", all);
        }
    } else if own.is_empty() {
        return Wish::Nothing;
    }
    if !allowed {
        return Wish::NotAllowed(format!(
            "its labels ask to {direction} it; annotate it with {NODE_CONVERSION}={direction} to allow that"
        ));
    }
    Wish::Want {
        direction,
        pool: name.to_owned(),
        text: format!("{direction}/{name}/{said}"),
    }
}

/// How far a conversion is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Running,
    Failed,
    Done,
}

/// What is known of a node's last conversion.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct State {
    pub(super) direction: Direction,
    pub(super) phase: Phase,
    /// Which wish it was for.
    pub(super) wish: String,
    /// Whether somebody had cordoned the node before.
    pub(super) cordoned: bool,
}

impl State {
    /// Of a node: what this controller wrote, or what OpenYurt's left in the condition.
    pub(super) fn of(node: &Value) -> Option<Self> {
        let written = node["metadata"]["annotations"][NODE_CONVERSION_STATE].as_str();
        let read = |text: &str| {
            let state: Value = serde_json::from_str(text).ok()?;
            Some(Self {
                direction: match state["direction"].as_str()? {
                    "convert" => Direction::Convert,
                    "revert" => Direction::Revert,
                    _ => return None,
                },
                phase: match state["phase"].as_str()? {
                    "running" => Phase::Running,
                    "failed" => Phase::Failed,
                    "done" => Phase::Done,
                    _ => return None,
                },
                wish: text_of(&state["wish"]),
                cordoned: state["cordoned"] == true,
            })
        };
        if let Some(state) = written.and_then(read) {
            return Some(state);
        }
        let condition = condition::find(&node["status"], NODE_CONVERSION_FAILED)?;
        let directions = [Direction::Convert, Direction::Revert];
        let direction = directions
            .into_iter()
            .find(|direction| condition["reason"] == direction.reasons()[0])?;
        Some(Self {
            direction,
            phase: Phase::Running,
            wish: String::new(),
            cordoned: false,
        })
    }

    /// As it is written.
    pub(super) fn to_text(&self) -> String {
        let phase = match self.phase {
            Phase::Running => "running",
            Phase::Failed => "failed",
            Phase::Done => "done",
        };
        json!({"direction": self.direction.as_str(), "phase": phase, "wish": self.wish, "cordoned": self.cordoned}).to_string()
    }
}

fn text_of(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// What follows for a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Nothing,
    /// Somebody is to be told why nothing happens.
    Tell(String),
    /// The node is cordoned and marked, and its job is made, when there is room.
    Begin(State, String),
    /// The job is missing of what has begun.
    MakeJob(Direction, String),
    /// The job has succeeded.
    Settle(State),
    /// The job has failed; why.
    Fail(State, String),
    /// The job of another wish is over, and in the way.
    DropJob,
    /// What has begun is not wanted any more, and no job is at it; the reason of the condition.
    Release(State, &'static str),
}

/// What follows. `job` is the node's, if there is one.
pub(super) fn step(node: &Value, wish: &Wish, job: Option<&Value>) -> Step {
    let state = State::of(node);
    let text = match wish {
        Wish::Want { text, .. } => text.as_str(),
        _ => "",
    };
    let Some(job) = job else {
        return without_job(node, wish, state);
    };
    let direction = conversion_job::direction(job);
    // What OpenYurt began has no state of ours.
    let known = state.clone().filter(|state| state.direction == direction);
    let known = known.unwrap_or_else(|| State {
        direction,
        phase: Phase::Running,
        wish: text.to_owned(),
        cordoned: state.as_ref().is_some_and(|state| state.cordoned),
    });
    let told = conversion_job::is_told(job);
    match conversion_job::outcome(job) {
        conversion_job::Outcome::Succeeded if !told => Step::Settle(known),
        conversion_job::Outcome::Failed(why) if !told => Step::Fail(known, why),
        conversion_job::Outcome::Running if pod::is_deleting(job) && !told => {
            Step::Fail(known, "its job was deleted".into())
        }
        conversion_job::Outcome::Running => Step::Nothing,
        // It is over and done with.
        _ => match without_job(node, wish, state) {
            Step::Begin(..) | Step::MakeJob(..) if pod::is_deleting(job) => Step::Nothing,
            Step::Begin(..) | Step::MakeJob(..) => Step::DropJob,
            other => other,
        },
    }
}

fn without_job(node: &Value, wish: &Wish, state: Option<State>) -> Step {
    let begin = |cordoned: bool| match wish {
        Wish::Nothing => Step::Nothing,
        Wish::NotAllowed(why) => Step::Tell(why.clone()),
        Wish::Want {
            direction,
            pool,
            text,
        } => {
            let state = State {
                direction: *direction,
                phase: Phase::Running,
                wish: text.clone(),
                cordoned,
            };
            Step::Begin(state, pool.clone())
        }
    };
    let is_cordoned = node["spec"]["unschedulable"] == true;
    let Some(state) = state else {
        return begin(is_cordoned);
    };
    let same = matches!(wish, Wish::Want { text, .. } if *text == state.wish);
    let wanted = matches!(wish, Wish::Want { .. });
    match state.phase {
        Phase::Running => match wish {
            Wish::Want {
                direction, pool, ..
            } if same => Step::MakeJob(*direction, pool.clone()),
            // It was done; only the last word is missing.
            _ if state.direction.shows(node) => {
                let reason = state.direction.reasons()[1];
                Step::Release(state, reason)
            }
            Wish::Want { .. } => begin(state.cordoned),
            _ => Step::Release(state, "Cancelled"),
        },
        Phase::Failed if same => Step::Nothing,
        Phase::Failed if wanted => begin(state.cordoned),
        Phase::Failed => Step::Release(state, "Cancelled"),
        Phase::Done if same => Step::Tell(format!(
            "it was done before for the same wish; set annotation {NODE_CONVERSION} to another text after a colon to ask for it again"
        )),
        Phase::Done => begin(is_cordoned),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn node(pool: &str, edge: &str, annotation: &str) -> Value {
        let mut node = json!({"metadata": {"name": "n", "labels": {}, "annotations": {}}});
        for (key, value) in [(NODE_POOL, pool), (EDGE_WORKER, edge)] {
            if !value.is_empty() {
                node["metadata"]["labels"][key] = value.into();
            }
        }
        if !annotation.is_empty() {
            node["metadata"]["annotations"][NODE_CONVERSION] = annotation.into();
        }
        node
    }

    fn edge_pool(annotation: &str) -> Value {
        json!({"metadata": {"annotations": {NODE_CONVERSION: annotation}}, "spec": {"type": "Edge"}})
    }

    fn want(direction: Direction, pool: &str, text: &str) -> Wish {
        Wish::Want {
            direction,
            pool: pool.into(),
            text: text.into(),
        }
    }

    #[test]
    fn only_what_somebody_allowed_is_wanted() {
        let (plain, auto) = (edge_pool(""), edge_pool("auto"));
        let cloud = json!({"spec": {"type": "Cloud"}});
        use Direction::{Convert, Revert};
        for (node, pool, wanted) in [
            (
                node("p", "", "auto"),
                Some(&plain),
                Some(want(Convert, "p", "convert/p/auto")),
            ),
            (
                node("p", "false", "Convert:2"),
                Some(&plain),
                Some(want(Convert, "p", "convert/p/Convert:2")),
            ),
            (
                node("p", "", ""),
                Some(&auto),
                Some(want(Convert, "p", "convert/p/auto")),
            ),
            (node("p", "", "auto"), Some(&cloud), Some(Wish::Nothing)),
            (node("p", "", "auto"), None, Some(Wish::Nothing)),
            (node("p", "true", "auto"), Some(&auto), Some(Wish::Nothing)),
            (node("", "", "auto"), None, Some(Wish::Nothing)),
            (
                node("", "true", "revert"),
                None,
                Some(want(Revert, "", "revert//revert")),
            ),
            // Joined as a node of the edge, in no pool.
            (node("", "true", ""), None, Some(Wish::Nothing)),
            (node("p", "", ""), Some(&plain), None),
            (node("p", "", "revert"), Some(&auto), None),
            (node("", "true", "convert"), None, None),
        ] {
            let said = wish(&node, pool);
            match wanted {
                Some(wanted) => assert_eq!(said, wanted, "{node}"),
                None => assert!(
                    matches!(&said, Wish::NotAllowed(why) if why.contains(NODE_CONVERSION)),
                    "{node}: {said:?}"
                ),
            }
        }
    }

    fn with(
        mut node: Value,
        direction: Direction,
        phase: Phase,
        wish: &str,
        cordoned: bool,
    ) -> Value {
        let state = State {
            direction,
            phase,
            wish: wish.into(),
            cordoned,
        };
        node["metadata"]["annotations"][NODE_CONVERSION_STATE] = state.to_text().into();
        assert_eq!(State::of(&node), Some(state));
        node
    }

    #[test]
    fn what_was_interrupted_goes_on_and_what_was_done_is_not_done_again() {
        use Direction::{Convert, Revert};
        let pool = edge_pool("auto");
        let of = |node: &Value| {
            let pool = (!pool_of(node).is_empty()).then_some(&pool);
            step(node, &wish(node, pool), None)
        };
        let text = "convert/p/auto";
        let plain = node("p", "", "");
        assert!(
            matches!(of(&plain), Step::Begin(State { cordoned: false, .. }, pool) if pool == "p")
        );
        let mut cordoned = plain.clone();
        cordoned["spec"]["unschedulable"] = true.into();
        assert!(matches!(
            of(&cordoned),
            Step::Begin(State { cordoned: true, .. }, _)
        ));
        assert_eq!(
            of(&with(plain.clone(), Convert, Phase::Running, text, false)),
            Step::MakeJob(Convert, "p".into())
        );
        assert_eq!(
            of(&with(plain.clone(), Convert, Phase::Failed, text, false)),
            Step::Nothing
        );
        assert!(matches!(
            of(&with(
                plain.clone(),
                Convert,
                Phase::Failed,
                "convert/p/auto:1",
                true
            )),
            Step::Begin(State { cordoned: true, .. }, _)
        ));
        assert!(
            matches!(
                of(&with(plain.clone(), Convert, Phase::Done, text, false)),
                Step::Tell(_)
            ),
            "no loop"
        );
        assert!(matches!(
            of(&with(plain, Revert, Phase::Done, "revert//auto", false)),
            Step::Begin(..)
        ));
        let withdrawn = node("", "", "");
        for phase in [Phase::Running, Phase::Failed] {
            assert!(matches!(
                of(&with(withdrawn.clone(), Convert, phase, text, true)),
                Step::Release(State { cordoned: true, .. }, "Cancelled")
            ));
        }
        let done = node("p", "true", "");
        assert!(matches!(
            of(&with(done.clone(), Convert, Phase::Running, text, false)),
            Step::Release(_, "Converted")
        ));
        // OpenYurt's, of which only the condition is left.
        let mut theirs = done;
        theirs["status"]["conditions"] =
            json!([{"type": NODE_CONVERSION_FAILED, "status": "False", "reason": "Converting"}]);
        assert!(matches!(of(&theirs), Step::Release(_, "Converted")));
    }

    #[test]
    fn a_job_is_waited_for_told_of_once_and_taken_out_of_the_way() {
        use Direction::{Convert, Revert};
        let pool = edge_pool("auto");
        let n = with(
            node("p", "", ""),
            Convert,
            Phase::Running,
            "convert/p/auto",
            true,
        );
        let wanted = wish(&n, Some(&pool));
        let job = |direction, kind: &str| {
            let mut job = conversion_job::job("n", "p", direction, "i", "ns");
            if !kind.is_empty() {
                job["status"]["conditions"] =
                    json!([{"type": kind, "status": "True", "message": "why"}]);
            }
            job
        };
        assert_eq!(step(&n, &wanted, Some(&job(Convert, ""))), Step::Nothing);
        assert!(matches!(
            step(&n, &wanted, Some(&job(Convert, "Complete"))),
            Step::Settle(State { cordoned: true, .. })
        ));
        assert!(
            matches!(step(&n, &wanted, Some(&job(Convert, "Failed"))), Step::Fail(_, why) if why.contains("why"))
        );
        let mut deleted = job(Convert, "");
        deleted["metadata"]["deletionTimestamp"] = "x".into();
        assert!(matches!(step(&n, &wanted, Some(&deleted)), Step::Fail(..)));
        // Another way is wanted: the job ends first, then it is out of the way.
        let back = with(
            node("", "true", "auto"),
            Convert,
            Phase::Done,
            "convert/p/auto",
            false,
        );
        let wanted = wish(&back, None);
        let mut over = job(Convert, "Complete");
        assert!(matches!(step(&back, &wanted, Some(&over)), Step::Settle(_)));
        over["metadata"]["finalizers"] = json!([]);
        assert_eq!(step(&back, &wanted, Some(&over)), Step::DropJob);
        assert!(matches!(
            step(&back, &wanted, None),
            Step::Begin(
                State {
                    direction: Revert,
                    ..
                },
                _
            )
        ));
        let idle = with(
            node("p", "true", ""),
            Convert,
            Phase::Done,
            "convert/p/auto",
            false,
        );
        assert_eq!(
            step(&idle, &wish(&idle, Some(&pool)), Some(&over)),
            Step::Nothing
        );
    }

    proptest! {
        /// Whatever a node says and its job became: carried out, it comes to rest, and no conversion is begun twice for one wish.
        #[test]
        fn any_node_comes_to_rest(
            pool in prop::sample::select(vec!["", "p"]), edge in prop::sample::select(vec!["", "true", "false"]),
            annotation in prop::sample::select(vec!["", "auto", "convert", "revert", "x"]),
            state in "\\PC{0,10}", fails: bool, sticks: bool,
        ) {
            let of_pool = edge_pool("auto");
            let mut n = node(pool, edge, annotation);
            n["metadata"]["annotations"][NODE_CONVERSION_STATE] = state.into();
            let mut job: Option<Value> = None;
            let mut begun = 0;
            for _ in 0..20 {
                let wanted = wish(&n, (!pool_of(&n).is_empty()).then_some(&of_pool));
                let write = |n: &mut Value, state: &State, phase| {
                    let state = State { phase, ..state.clone() };
                    n["metadata"]["annotations"][NODE_CONVERSION_STATE] = state.to_text().into();
                };
                match step(&n, &wanted, job.as_ref()) {
                    Step::Nothing | Step::Tell(_) => match &mut job {
                        Some(job) if conversion_job::outcome(job) == conversion_job::Outcome::Running => {
                            let kind = if fails { "Failed" } else { "Complete" };
                            job["status"]["conditions"] = json!([{"type": kind, "status": "True"}]);
                        }
                        _ => {
                            prop_assert!(begun <= 1, "{}", begun);
                            return Ok(());
                        }
                    },
                    Step::Begin(state, pool) => {
                        begun += 1;
                        write(&mut n, &state, Phase::Running);
                        job = Some(conversion_job::job("n", &pool, state.direction, "i", "ns"));
                    }
                    Step::MakeJob(direction, pool) => job = Some(conversion_job::job("n", &pool, direction, "i", "ns")),
                    Step::Settle(state) => {
                        write(&mut n, &state, Phase::Done);
                        if sticks {
                            n["metadata"]["labels"][EDGE_WORKER] = (state.direction == Direction::Convert).to_string().into();
                        }
                        job.as_mut().unwrap()["metadata"]["finalizers"] = json!([]);
                    }
                    Step::Fail(state, _) => {
                        write(&mut n, &state, Phase::Failed);
                        job.as_mut().unwrap()["metadata"]["finalizers"] = json!([]);
                    }
                    Step::DropJob => job = None,
                    Step::Release(state, _) => write(&mut n, &state, Phase::Done),
                }
            }
            prop_assert!(false, "never at rest");
        }
    }
}
