//! On which nodes a static pod is upgraded next, and how each node is. Pure.

use serde_json::{Value, json};
use std::{collections::BTreeMap, time::Duration};
use yurt_controller::share::{self, Round};

/// After the first failure on a node; then twice as long each time.
const FIRST_PAUSE: Duration = Duration::from_secs(30);
/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(600);
/// How long a pod may take to show what its node said was done: the cloud hears of it last.
const ECHO: Duration = Duration::from_secs(60);
/// Nodes that the status tells of: an object has a limit.
const MOST_NODES: usize = 500;
/// Longest message about a node.
const MOST_TEXT: usize = 300;

/// How nodes come to a new template.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Strategy {
    /// From the cloud, some at a time.
    Rolling,
    /// When the owner of the node asks for it.
    Ota,
}

impl Strategy {
    /// By its name in the set, whatever the case.
    pub(super) fn of(name: &str) -> Option<Self> {
        match name.to_ascii_lowercase().as_str() {
            "" | "advancedrollingupdate" => Some(Self::Rolling),
            "ota" => Some(Self::Ota),
            _ => None,
        }
    }
}

/// A pod that upgrades.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Worker {
    /// Its name.
    pub(super) name: String,
    /// Whether it is of the present template.
    pub(super) current: bool,
    /// Which try of its node it is, from 1.
    pub(super) attempt: u32,
    pub(super) state: WorkerState,
}

/// How far a worker is; `ago` since it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum WorkerState {
    Running(String),
    Succeeded { ago: Duration },
    Failed { ago: Duration, why: String },
}

/// A node that has the static pod, or a worker.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Node {
    /// Whether the node is ready.
    pub(super) ready: bool,
    /// Of the static pod, when it is there: whether it is of the present template, and whether it is ready.
    pub(super) pod: Option<(bool, bool)>,
    pub(super) workers: Vec<Worker>,
}

/// How a node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Phase {
    Failed,
    Upgrading,
    Pending,
    Waiting,
    Upgraded,
}

/// What to do.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    /// Nodes that get a worker, with the number of the try.
    pub(super) start: Vec<(String, u32)>,
    /// Workers that have done what they can.
    pub(super) delete: Vec<String>,
    /// By node.
    pub(super) phases: BTreeMap<String, (Phase, bool, String)>,
    /// When to look again, whatever happens.
    pub(super) next: Option<Duration>,
}

/// How long to wait after so many tries.
pub(super) fn pause(attempt: u32) -> Duration {
    let doubled = 2u32.saturating_pow(attempt.saturating_sub(1).min(16));
    FIRST_PAUSE.saturating_mul(doubled).min(LONGEST_PAUSE)
}

/// What becomes of a node's workers.
enum Stage {
    /// One is at work.
    Working(String),
    /// The last try failed; in how long there may be another (`None`: now), and its number.
    Failed(String, Option<Duration>, u32),
    /// One succeeded, and its pod does not show it yet; how long that may take.
    Echo(Duration),
    Idle,
}

fn stage(node: &Node, done: bool, delete: &mut Vec<String>) -> Stage {
    let mut stage = Stage::Idle;
    for worker in &node.workers {
        let failed = |why: &str, ago: Duration| {
            let left = pause(worker.attempt)
                .checked_sub(ago)
                .filter(|left| !left.is_zero());
            Stage::Failed(why.to_owned(), left, worker.attempt.saturating_add(1))
        };
        let next = match &worker.state {
            WorkerState::Running(what) if worker.current => Stage::Working(what.clone()),
            _ if !worker.current || done || node.pod.is_none() => {
                delete.push(worker.name.clone());
                continue;
            }
            WorkerState::Running(what) => Stage::Working(what.clone()),
            WorkerState::Succeeded { ago } => match ECHO.checked_sub(*ago) {
                Some(left) if !left.is_zero() => Stage::Echo(left),
                _ => failed(
                    "the node said that it is done, and its pod is still of before",
                    *ago,
                ),
            },
            WorkerState::Failed { ago, why } => failed(why, *ago),
        };
        // Where the next try may begin, the last one has been looked at.
        if matches!(&next, Stage::Failed(_, None, _)) {
            delete.push(worker.name.clone());
        }
        stage = match (stage, next) {
            (working @ Stage::Working(_), _) => working,
            (_, next) => next,
        };
    }
    stage
}

/// What to do with the nodes of a set; `most` is `maxUnavailable`.
pub(super) fn plan(strategy: Strategy, most: &Value, nodes: &BTreeMap<String, Node>) -> Plan {
    let mut plan = Plan::default();
    let total = nodes.values().filter(|node| node.pod.is_some()).count();
    let most = if most.is_null() { &json!("10%") } else { most };
    let most = share::of(most, i64::try_from(total).unwrap_or(i64::MAX), Round::Up).max(1);
    let most = usize::try_from(most).unwrap_or(usize::MAX);
    let (mut working, mut unavailable) = (0, 0);
    // Those whose pod is not ready come first: nothing is lost there.
    let (mut broken, mut sound) = (Vec::new(), Vec::new());
    for (name, node) in nodes {
        let (current, ready) = node.pod.unwrap_or((false, false));
        let mut stage = stage(node, current, &mut plan.delete);
        if strategy == Strategy::Ota && !matches!(stage, Stage::Working(_)) {
            plan.delete
                .extend(node.workers.iter().map(|worker| worker.name.clone()));
            stage = Stage::Idle;
        }
        let at_work = matches!(stage, Stage::Working(_) | Stage::Echo(_));
        working += usize::from(at_work);
        unavailable += usize::from(at_work || node.ready && node.pod.is_some() && !ready);
        let mut later = |pause: Duration| {
            plan.next = plan.next.map_or(Some(pause), |next| Some(next.min(pause)))
        };
        let mut candidate = |attempt: u32| {
            let list = if ready { &mut sound } else { &mut broken };
            list.push((name.clone(), attempt));
        };
        let (phase, message) = match stage {
            Stage::Working(what) => (Phase::Upgrading, what),
            Stage::Echo(left) => {
                later(left);
                (
                    Phase::Upgrading,
                    "the pod is to show that it was upgraded".into(),
                )
            }
            _ if current => (Phase::Upgraded, String::new()),
            _ if node.pod.is_none() => continue,
            _ if strategy == Strategy::Ota => (Phase::Waiting, "its owner is to ask for it".into()),
            Stage::Failed(why, left, attempt) => {
                match left {
                    Some(left) => later(left),
                    None if node.ready => candidate(attempt),
                    None => {}
                }
                (
                    Phase::Failed,
                    format!("{}; try {attempt} follows", why.trim_end()),
                )
            }
            Stage::Idle if node.ready => {
                candidate(1);
                (Phase::Pending, String::new())
            }
            Stage::Idle => (Phase::Waiting, "the node is not ready".into()),
        };
        let message: String = message.chars().take(MOST_TEXT).collect();
        plan.phases.insert(name.clone(), (phase, ready, message));
    }
    plan.delete.sort_unstable();
    plan.delete.dedup();
    for (name, attempt) in broken {
        if working < most {
            working += 1;
            plan.start.push((name, attempt));
        }
    }
    for (name, attempt) in sound {
        if working < most && unavailable < most {
            (working, unavailable) = (working + 1, unavailable + 1);
            plan.start.push((name, attempt));
        }
    }
    for (name, _) in &plan.start {
        if let Some((phase, ..)) = plan.phases.get_mut(name) {
            *phase = Phase::Upgrading;
        }
    }
    plan
}

impl Plan {
    fn count(&self, phase: Phase) -> usize {
        self.phases
            .values()
            .filter(|(known, ..)| *known == phase)
            .count()
    }

    /// The numbers and nodes of the status.
    pub(super) fn status(&self, nodes: &BTreeMap<String, Node>) -> Value {
        let pods = || nodes.values().filter_map(|node| node.pod);
        let mut told: Vec<_> = self.phases.iter().collect();
        told.sort_by_key(|(name, (phase, ready, _))| (*phase == Phase::Upgraded && *ready, *name));
        let told = told
            .into_iter()
            .take(MOST_NODES)
            .map(|(name, (phase, ready, message))| {
                let mut node = json!({"name": name, "phase": format!("{phase:?}"), "ready": ready});
                if !message.is_empty() {
                    node["message"] = message.as_str().into();
                }
                node
            });
        let told: Vec<Value> = told.collect();
        json!({
            "totalNumber": pods().count(),
            "readyNumber": pods().filter(|(_, ready)| *ready).count(),
            "upgradedNumber": pods().filter(|(current, _)| *current).count(),
            "nodes": told,
        })
    }

    /// Status, reason and message of the condition `Upgraded`.
    pub(super) fn summary(&self) -> (&'static str, &'static str, String) {
        let [failed, upgrading, pending, waiting, upgraded] = [
            Phase::Failed,
            Phase::Upgrading,
            Phase::Pending,
            Phase::Waiting,
            Phase::Upgraded,
        ]
        .map(|phase| self.count(phase));
        let message = format!(
            "{upgraded} upgraded, {upgrading} upgrading, {pending} pending, {waiting} waiting, {failed} failed"
        );
        match (failed, upgrading + pending, waiting) {
            (0, 0, 0) => ("True", "AllUpgraded", message),
            (0, 0, _) => ("False", "WaitingForNodes", message),
            (0, ..) => ("False", "Upgrading", message),
            _ => ("False", "UpgradeFailed", message),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Strategy, *};
    use proptest::prelude::{any, prop, prop_assert, proptest};

    fn node(current: bool, ready: bool) -> Node {
        Node {
            ready: true,
            pod: Some((current, ready)),
            workers: Vec::new(),
        }
    }

    fn worker(state: WorkerState) -> Worker {
        Worker {
            name: "w".into(),
            current: true,
            attempt: 2,
            state,
        }
    }

    fn with(state: WorkerState) -> Node {
        Node {
            workers: vec![worker(state)],
            ..node(false, true)
        }
    }

    fn planned(most: Value, nodes: &[Node]) -> Plan {
        let nodes = nodes
            .iter()
            .enumerate()
            .map(|(n, node)| (format!("n{n}"), node.clone()));
        plan(Strategy::Rolling, &most, &nodes.collect())
    }

    fn started(plan: &Plan) -> Vec<(&str, u32)> {
        plan.start
            .iter()
            .map(|(name, attempt)| (name.as_str(), *attempt))
            .collect()
    }

    #[test]
    fn some_at_a_time_and_none_that_is_away() {
        let mut nodes = vec![
            node(true, true),
            node(false, true),
            node(false, true),
            node(false, true),
        ];
        nodes[1].ready = false;
        let plan = planned(1.into(), &nodes);
        assert_eq!(started(&plan), [("n2", 1)]);
        assert_eq!(plan.phases["n1"].0, Phase::Waiting);
        assert_eq!(plan.summary().1, "Upgrading");
        assert_eq!(
            started(&planned("50%".into(), &nodes)),
            [("n2", 1), ("n3", 1)]
        );
        nodes[0] = node(true, false);
        assert!(
            planned(1.into(), &nodes).start.is_empty(),
            "an upgraded one is not ready"
        );
        nodes[3] = node(false, false);
        assert_eq!(
            started(&planned(1.into(), &nodes)),
            [("n3", 1)],
            "a broken one loses nothing"
        );
    }

    #[test]
    fn a_failed_worker_waits_for_its_time_and_stops_nobody() {
        let failed = |secs| {
            with(WorkerState::Failed {
                ago: Duration::from_secs(secs),
                why: "no".into(),
            })
        };
        let plan = planned(1.into(), &[failed(10), node(false, true)]);
        assert_eq!(started(&plan), [("n1", 1)]);
        assert_eq!(
            (plan.next, plan.delete.len()),
            (Some(Duration::from_secs(50)), 0)
        );
        assert_eq!(
            plan.phases["n0"],
            (Phase::Failed, true, "no; try 3 follows".into())
        );
        let plan = planned(1.into(), &[failed(60), node(false, true)]);
        assert_eq!(
            (started(&plan), plan.delete.clone()),
            (vec![("n0", 3)], vec!["w".to_owned()])
        );
        assert_eq!(
            [1, 2, 3, 6, 40].map(|n| pause(n).as_secs()),
            [30, 60, 120, 600, 600]
        );
    }

    #[test]
    fn workers_go_when_they_are_done_or_of_before() {
        let ended = |secs| WorkerState::Succeeded {
            ago: Duration::from_secs(secs),
        };
        let mut done = with(ended(1));
        done.pod = Some((true, true));
        assert_eq!(planned(1.into(), &[done]).delete, ["w"]);
        let waiting = planned(1.into(), &[with(ended(1)), node(false, true)]);
        assert!(
            waiting.delete.is_empty() && waiting.start.is_empty(),
            "its pod is to show it"
        );
        assert_eq!(
            started(&planned(1.into(), &[with(ended(600)), node(false, false)])),
            [("n1", 1)]
        );
        let mut old = with(WorkerState::Running(String::new()));
        old.workers[0].current = false;
        let plan = planned(1.into(), &[old]);
        assert_eq!((plan.delete, plan.start.len()), (vec!["w".to_owned()], 1));
    }

    #[test]
    fn with_ota_only_the_owner_begins() {
        let nodes = BTreeMap::from([
            ("a".to_owned(), node(false, true)),
            ("b".to_owned(), node(true, true)),
        ]);
        let plan = plan(Strategy::Ota, &Value::Null, &nodes);
        assert!(plan.start.is_empty());
        assert_eq!(plan.phases["a"].0, Phase::Waiting);
        let status = plan.status(&nodes);
        assert_eq!(
            (&status["totalNumber"], &status["upgradedNumber"]),
            (&2.into(), &1.into())
        );
        assert_eq!(status["nodes"][0]["name"], "a");
        assert_eq!(plan.summary().1, "WaitingForNodes");
        for (name, wanted) in [
            ("ota", Some(Strategy::Ota)),
            ("OTA", Some(Strategy::Ota)),
            ("", Some(Strategy::Rolling)),
            ("advancedRollingupdate", Some(Strategy::Rolling)),
            ("Auto", None),
        ] {
            assert_eq!(Strategy::of(name), wanted);
        }
    }

    proptest! {
        /// Never more than allowed are at work or unavailable because of it, and as long as nothing is at work, failed or unavailable,
        /// it goes on.
        #[test]
        fn never_more_than_allowed(kinds in prop::collection::vec((0u8..8, any::<bool>()), 1..40), most in 1usize..8) {
            let nodes: Vec<Node> = kinds.iter().map(|(kind, ready)| {
                let ago = Duration::from_secs(1);
                let mut node = match kind {
                    0 => node(true, true),
                    1 => node(true, false),
                    2 => node(false, false),
                    3 => with(WorkerState::Running(String::new())),
                    4 => with(WorkerState::Failed { ago, why: String::new() }),
                    5 => with(WorkerState::Failed { ago: Duration::from_secs(9999), why: String::new() }),
                    6 => Node { pod: None, ..with(WorkerState::Running(String::new())) },
                    _ => node(false, true),
                };
                node.ready = *ready;
                node
            }).collect();
            let plan = planned(most.into(), &nodes);
            let running = kinds.iter().filter(|(kind, _)| matches!(kind, 3 | 6)).count();
            prop_assert!(plan.start.is_empty() || running + plan.start.len() <= most);
            let down = |n: usize| nodes[n].ready && nodes[n].pod.is_some_and(|(_, ready)| !ready);
            let before = (0..nodes.len()).filter(|n| down(*n) || matches!(kinds[*n].0, 3 | 6)).count();
            let of = |name: &str| name[1..].parse::<usize>().unwrap();
            let taken = plan.start.iter().filter(|(name, _)| !down(of(name))).count();
            prop_assert!(taken == 0 || before + taken <= most);
            for (name, _) in &plan.start {
                let n = of(name);
                prop_assert!(nodes[n].ready && matches!(kinds[n].0, 2 | 5 | 7), "{}", name);
            }
            let due = (0..nodes.len()).any(|n| nodes[n].ready && matches!(kinds[n].0, 2 | 5 | 7));
            prop_assert!(before > 0 || !due || !plan.start.is_empty());
        }
    }
}
