//! Which of a daemon set's pods are replaced next. Pure.

use crate::{fields::text, pod};
use jiff::Timestamp;
use serde_json::Value;
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use yurt_api::names::annotations::MAX_UNAVAILABLE;
use yurt_controller::{
    condition,
    share::{self, Round},
};

/// How many nodes may be without an available pod, unless an annotation says otherwise.
const DEFAULT: &str = "10%";

/// A daemon set and what there is of it.
pub(super) struct View<'v> {
    pub(super) set: &'v Value,
    /// All its pods, also those that end.
    pub(super) pods: &'v [Arc<Value>],
    /// Whether a pod is of the present template.
    pub(super) is_current: &'v (dyn Fn(&Value) -> bool + Sync),
    /// Whether a node is ready.
    pub(super) is_ready: &'v (dyn Fn(&str) -> bool + Sync),
    pub(super) now: Timestamp,
}

/// What to do.
#[derive(Debug, Default)]
pub(super) struct Plan<'v> {
    /// Pods to replace, the most urgent first.
    pub(super) delete: Vec<&'v Value>,
    /// When the next new pod becomes available.
    pub(super) next: Option<Duration>,
    /// What is wrong with the annotation.
    pub(super) complaint: Option<String>,
}

/// What a ready node has.
#[derive(Clone, Copy, Debug, PartialEq)]
enum State<'v> {
    /// A new pod that is available.
    Updated,
    /// An old one that runs.
    Old(&'v Value),
    /// An old one that does not run: replacing it takes nothing away.
    Broken(&'v Value),
    /// Nothing that serves; others are at work there.
    Unavailable,
}

/// Whether an old pod serves, whatever the cloud makes of a node that was away: only a kubelet says that containers are ready.
fn runs(p: &Value) -> bool {
    pod::is_ready(p) || condition::holds(&p["status"], "ContainersReady")
}

/// How many of `total` nodes may be without an available pod; a value that is none is complained of. Nothing is the default.
fn allowed(set: &Value, total: usize) -> (usize, Option<String>) {
    let total = i64::try_from(total).unwrap_or(i64::MAX);
    let of = |text: &str| {
        let number = |text: &str| text.parse::<u32>().ok().map(i64::from);
        let value = match text.strip_suffix('%') {
            Some(percent) => number(percent).map(|_| Value::from(text))?,
            None => number(text)?.into(),
        };
        usize::try_from(share::of(&value, total, Round::Up)).ok()
    };
    let said = text(&set["metadata"]["annotations"][MAX_UNAVAILABLE]);
    let usual = of(DEFAULT).unwrap_or(1);
    match of(said.trim()) {
        Some(0) => (usual, None),
        Some(count) => (count, None),
        None if said.is_empty() => (usual, None),
        None => {
            let shown: String = said.chars().take(64).collect();
            let complaint = format!(
                "annotation {MAX_UNAVAILABLE} is {shown:?}: a number or a percentage is expected; {DEFAULT} is used"
            );
            (usual, Some(complaint))
        }
    }
}

impl<'v> View<'v> {
    fn state(&self, pods: &[&'v Value]) -> State<'v> {
        let min_ready = self.set["spec"]["minReadySeconds"].as_i64().unwrap_or(0);
        let mut active = pods.iter().copied().filter(|p| pod::is_active(p));
        match (active.next(), active.next()) {
            (Some(p), None) if (self.is_current)(p) => {
                if pod::is_available(p, min_ready, self.now) {
                    State::Updated
                } else {
                    State::Unavailable
                }
            }
            (Some(p), None) if runs(p) => State::Old(p),
            (Some(p), None) => State::Broken(p),
            // The daemon set controller is to create one, or to delete all but one.
            _ => State::Unavailable,
        }
    }

    /// What to do now.
    pub(super) fn plan(&self) -> Plan<'v> {
        let mut nodes: BTreeMap<&str, Vec<&'v Value>> = BTreeMap::new();
        for p in self.pods {
            let node = pod::node(p);
            if !node.is_empty() {
                nodes.entry(node).or_default().push(p);
            }
        }
        // Nodes that should have a pod and have none at all, nor one that ends: it was deleted, or waits to be scheduled.
        let desired = self.set["status"]["desiredNumberScheduled"].as_u64();
        let desired = usize::try_from(desired.unwrap_or(0)).unwrap_or(usize::MAX);
        let mut unavailable = desired.saturating_sub(nodes.len());
        let (most, complaint) = allowed(self.set, desired.max(nodes.len()));
        let (mut broken, mut old, mut fresh) = (Vec::new(), Vec::new(), Vec::new());
        for (node, pods) in &nodes {
            if !(self.is_ready)(node) {
                continue;
            }
            match self.state(pods) {
                State::Updated => {}
                State::Old(p) => old.push(p),
                State::Broken(p) => {
                    unavailable += 1;
                    broken.push(p);
                }
                State::Unavailable => {
                    unavailable += 1;
                    fresh.extend(pods.iter().copied().filter(|p| (self.is_current)(p)));
                }
            }
        }
        old.truncate(most.saturating_sub(unavailable));
        broken.extend(old);
        let min_ready = self.set["spec"]["minReadySeconds"].as_i64().unwrap_or(0);
        Plan {
            delete: broken,
            next: pod::next_available(fresh, min_ready, self.now),
            complaint,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;
    use std::collections::BTreeSet;

    fn p(node: usize, new: bool, status: Value) -> Arc<Value> {
        Arc::new(
            json!({"metadata": {"name": format!("p{node}"), "labels": {"new": new}},
            "spec": {"nodeName": format!("n{node}")}, "status": status}),
        )
    }

    fn ready() -> Value {
        json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "1970-01-01T00:00:00Z"}]})
    }

    fn planned(set: &Value, pods: &[Arc<Value>], away: &[&str]) -> Vec<String> {
        let view = View {
            set,
            pods,
            is_current: &|p| p["metadata"]["labels"]["new"] == true,
            is_ready: &|node| !away.contains(&node),
            now: Timestamp::from_second(100).unwrap(),
        };
        let plan = view.plan();
        plan.delete
            .iter()
            .map(|p| text(&p["metadata"]["name"]))
            .collect()
    }

    fn set(most: &str, desired: usize) -> Value {
        json!({"metadata": {"annotations": {MAX_UNAVAILABLE: most}}, "status": {"desiredNumberScheduled": desired}})
    }

    #[test]
    fn nodes_that_are_away_are_neither_touched_nor_counted() {
        let pods: Vec<_> = (0..4).map(|n| p(n, false, ready())).collect();
        assert_eq!(planned(&set("2", 4), &pods, &["n0"]), ["p1", "p2"]);
        let mut gone = pods.clone();
        gone[0] = p(0, false, json!({"phase": "Pending"}));
        assert_eq!(planned(&set("2", 4), &gone, &["n0"]), ["p1", "p2"]);
        assert_eq!(
            planned(&set("2", 4), &gone, &[]),
            ["p0", "p1"],
            "broken goes first"
        );
    }

    #[test]
    fn what_is_unavailable_counts() {
        let old: Vec<_> = (0..4).map(|n| p(n, false, ready())).collect();
        let with = |status: Value| {
            let mut pods = old.clone();
            pods[0] = p(0, true, status);
            pods
        };
        let unready = json!({"phase": "Running"});
        assert!(planned(&set("1", 4), &with(unready), &[]).is_empty());
        assert_eq!(planned(&set("1", 4), &with(ready()), &[]), ["p1"]);
        // Ready, but not for long enough.
        let mut slow = set("1", 4);
        slow["spec"]["minReadySeconds"] = 101.into();
        assert!(planned(&slow, &with(ready()), &[]).is_empty());
        // One that was deleted and is not there again; one that ends; two at once.
        assert!(planned(&set("1", 4), &old[1..], &[]).is_empty());
        let mut ending = Value::clone(&old[0]);
        ending["metadata"]["deletionTimestamp"] = "1970-01-01T00:00:00Z".into();
        let mut pods = old.clone();
        pods[0] = Arc::new(ending);
        assert!(planned(&set("1", 4), &pods, &[]).is_empty());
        assert_eq!(
            planned(&set("1", 4), &pods, &["n0"]),
            ["p1"],
            "a dead node's end blocks nobody"
        );
        let mut twice = old.clone();
        twice.push(p(0, true, ready()));
        assert!(planned(&set("1", 4), &twice, &[]).is_empty());
        // A node that was away: its pod runs, although the cloud said that it is not ready.
        let back = json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "False"}, {"type": "ContainersReady", "status": "True"}]});
        let pods: Vec<_> = (0..4).map(|n| p(n, false, back.clone())).collect();
        assert_eq!(planned(&set("1", 4), &pods, &[]), ["p0"]);
    }

    #[test]
    fn how_many_may_be_unavailable() {
        for (said, total, most) in [
            ("", 10, 1),
            ("", 11, 2),
            ("0", 30, 3),
            ("0%", 30, 3),
            ("5", 10, 5),
            ("25%", 10, 3),
            ("100%", 10, 10),
            (" 2 ", 10, 2),
        ] {
            assert_eq!(allowed(&set(said, 0), total), (most, None), "{said}");
        }
        for bad in ["x", "-1", "-5%", "1.5", "%", "10%%", "99999999999"] {
            let (most, complaint) = allowed(&set(bad, 0), 20);
            assert!(most == 2 && complaint.unwrap().contains(bad), "{bad}");
        }
    }

    proptest! {
        /// Whatever there is: with what was unavailable on ready nodes before, never more than allowed; nothing new, nothing of
        /// nodes that are away is deleted; and as long as old pods are there and none is unavailable, it goes on.
        #[test]
        fn never_more_unavailable_than_allowed(
            kinds in prop::collection::vec((0u8..6, any::<bool>()), 1..40),
            most in 1usize..10,
        ) {
            let mut pods = Vec::new();
            let mut away = Vec::new();
            let (mut down, mut old, mut broken) = (0, 0, 0);
            for (n, (kind, is_away)) in kinds.iter().enumerate() {
                if *is_away {
                    away.push(format!("n{n}"));
                }
                let count = usize::from(!is_away);
                match kind {
                    0 => { old += count; pods.push(p(n, false, ready())); }
                    1 => { down += count; broken += count; pods.push(p(n, false, json!({"phase": "Pending"}))); }
                    2 => pods.push(p(n, true, ready())),
                    3 => { down += count; pods.push(p(n, true, json!({"phase": "Pending"}))); }
                    4 => {
                        down += count;
                        let mut ending = Value::clone(&p(n, false, ready()));
                        ending["metadata"]["deletionTimestamp"] = "1970-01-01T00:00:00Z".into();
                        pods.push(Arc::new(ending));
                    }
                    // None at all: it counts wherever it is, as nobody says where.
                    _ => down += 1,
                }
            }
            let away: Vec<&str> = away.iter().map(String::as_str).collect();
            let deleted = planned(&set(&most.to_string(), kinds.len()), &pods, &away);
            let unique: BTreeSet<_> = deleted.iter().collect();
            prop_assert_eq!(unique.len(), deleted.len());
            for name in &deleted {
                let n: usize = name[1..].parse().unwrap();
                prop_assert!(!kinds[n].1 && kinds[n].0 < 2, "{}", name);
            }
            let taken = deleted.len() - broken;
            prop_assert!(taken == 0 || down + taken <= most);
            prop_assert_eq!(taken, old.min(most.saturating_sub(down)));
        }
    }
}
