//! `delegate-lease-controller` of OpenYurt (up to 1.6): a node whose lease the leader of its pool renews is alive but cut off from the
//! cloud. It stays Ready, and nothing new is scheduled there.

use crate::{
    Context, Controller, Entry, Failure, Key, Next, Watch,
    collections::{LEASES, NODES},
    condition, pod, taint,
};
use jiff::Timestamp;
use serde_json::{Value, json};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};
use yurt_controller::policy::Rule;

/// The annotation of a lease that is renewed for a node.
pub(crate) const DELEGATED: &str = "openyurt.io/delegate-heartbeat";
/// The taint of a node that is cut off.
pub(crate) const CUT_OFF: &str = "node.openyurt.io/unschedulable";
/// So many renewals in a row by another make a node cut off.
const ENOUGH: u8 = 4;
const NAMESPACE: &str = "kube-node-lease";

pub(crate) const ENTRY: Entry = Entry::of::<DelegatedLeases>(
    "delegatelease",
    &[Rule::new("", &["nodes", "nodes/status"], &["patch"])],
);

/// `delegate-lease-controller`.
#[derive(Debug, Default)]
pub(crate) struct DelegatedLeases {
    /// Renewals in a row by another, by node. Nodes of which none is known are left as they are.
    renewals: Arc<Mutex<HashMap<String, u8>>>,
}

/// Counts a renewal. Pure.
fn count(before: u8, lease: &Value) -> u8 {
    if lease["metadata"]["annotations"][DELEGATED] == "true" {
        before.saturating_add(1).min(ENOUGH)
    } else {
        0
    }
}

/// Whether a change of a lease is a renewal, or shows for the first time who renews it.
fn is_renewal(old: Option<&Value>, new: &Value) -> bool {
    let told = |lease: &Value| {
        let by_another = lease["metadata"]["annotations"][DELEGATED].clone();
        (lease["spec"]["renewTime"].clone(), by_another)
    };
    old.is_none_or(|old| told(old) != told(new))
}

/// The taints that a node should have after so many renewals by another; `None` when they are right. Pure.
fn taints(node: &Value, renewals: u8, now: Timestamp) -> Option<Vec<Value>> {
    let (has, effect) = (taint::has(node, CUT_OFF, "NoSchedule"), "NoSchedule");
    let mut taints = taint::taints(node);
    match renewals {
        0 if has => taints.retain(|taint| !taint::is(taint, CUT_OFF, effect)),
        ENOUGH.. if !has => taints.push(json!({"key": CUT_OFF, "value": "true", "effect": effect, "timeAdded": pod::stamp(now)})),
        _ => return None,
    }
    Some(taints)
}

impl Controller for DelegatedLeases {
    const NAME: &'static str = "delegate-lease-controller";

    fn watches(&self, _: &Arc<Context>) -> Vec<Watch> {
        let renewals = self.renewals.clone();
        let leases = Watch::of(LEASES, move |change| {
            let key = change.key();
            if key.namespace != NAMESPACE {
                return Vec::new();
            }
            let mut renewals = renewals.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(lease) = &change.new else {
                renewals.remove(&key.name);
                return Vec::new();
            };
            if !is_renewal(change.old.as_deref(), lease) {
                return Vec::new();
            }
            let before = renewals.get(&key.name).copied();
            let now = count(before.unwrap_or(0), lease);
            renewals.insert(key.name.clone(), now);
            if before == Some(now) {
                return Vec::new();
            }
            vec![Key::new("", &key.name)]
        });
        vec![leases, Watch::of(NODES, |_| Vec::new())]
    }

    async fn reconcile(&self, key: &Key, context: &Context) -> Result<Next, Failure> {
        let renewals = {
            let renewals = self.renewals.lock().unwrap_or_else(PoisonError::into_inner);
            renewals.get(&key.name).copied()
        };
        let (Some(renewals), Some(node)) = (renewals, context.objects(&NODES).get(key)) else {
            return Ok(Next::Done);
        };
        taint::write(context, &node, |node| {
            taints(node, renewals, Timestamp::now())
        })
        .await?;
        let ready = condition::find(&node["status"], "Ready");
        if renewals == ENOUGH && ready.is_some_and(|ready| ready["status"] == "Unknown") {
            let condition = condition::new(
                "Ready",
                "True",
                "NodeDelegateLease",
                "Node lease is renewed by the leader of its pool.",
                Timestamp::now(),
            );
            // At this very version: a heartbeat of the node itself wins.
            let patch = json!({"metadata": {"resourceVersion": node["metadata"]["resourceVersion"]}, "status": {"conditions": [condition]}});
            context.patch(&NODES, key, "status", &patch).await?;
        }
        Ok(Next::Done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stage::Stage;

    fn lease(second: u8, delegated: bool) -> Value {
        let mut lease = json!({"metadata": {"name": "n", "namespace": NAMESPACE, "annotations": {}},
            "spec": {"holderIdentity": "n", "renewTime": format!("2026-01-01T00:00:{second:02}.000000Z")}});
        if delegated {
            lease["metadata"]["annotations"][DELEGATED] = "true".into();
        }
        lease
    }

    #[test]
    fn four_renewals_in_a_row_make_a_node_cut_off() {
        let mut renewals = 0;
        let now = Timestamp::UNIX_EPOCH;
        let node = json!({"spec": {"taints": [{"key": "mine", "effect": "NoSchedule"}]}});
        for second in 1..=3 {
            renewals = count(renewals, &lease(second, true));
            assert_eq!(taints(&node, renewals, now), None);
        }
        renewals = count(renewals, &lease(4, true));
        let tainted = taints(&node, renewals, now).expect("a taint");
        assert_eq!(tainted[1]["key"], CUT_OFF);
        let node = json!({"spec": {"taints": tainted}});
        assert_eq!(taints(&node, count(renewals, &lease(5, true)), now), None);
        renewals = count(renewals, &lease(6, false));
        let freed = taints(&node, renewals, now).expect("freed");
        assert_eq!(freed, [json!({"key": "mine", "effect": "NoSchedule"})]);
        assert!(!is_renewal(Some(&lease(1, true)), &lease(1, true)));
        assert!(is_renewal(Some(&lease(1, true)), &lease(2, true)));
    }

    #[tokio::test]
    async fn a_node_that_is_cut_off_stays_ready_and_gets_nothing_new() {
        let stage = Stage::start("delegate-lease-controller").await;
        let silent = json!({"conditions": [{"type": "Ready", "status": "Unknown"}]});
        stage
            .create(
                "/api/v1/nodes",
                json!({"metadata": {"name": "n"}, "status": silent}),
            )
            .await;
        stage
            .kube
            .merge("/api/v1/nodes/n/status", &json!({"status": silent}))
            .await
            .expect("silent");
        let leases = format!("/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases");
        stage.create(&leases, lease(0, false)).await;
        let one = format!("{leases}/n");
        for second in 1..=4 {
            stage
                .kube
                .merge(&one, &lease(second, true))
                .await
                .expect("renewed");
        }
        let node = stage.until("/api/v1/nodes/n", |node| {
            taint::has(node, CUT_OFF, "NoSchedule") && condition::holds(&node["status"], "Ready")
        });
        assert_eq!(
            condition::find(&node.await["status"], "Ready").expect("ready")["reason"],
            "NodeDelegateLease"
        );
        let own = json!({"metadata": {"annotations": {DELEGATED: null}}, "spec": {"renewTime": "2026-01-01T00:01:00.000000Z"}});
        stage
            .kube
            .merge(&one, &own)
            .await
            .expect("renewed by itself");
        stage
            .until("/api/v1/nodes/n", |node| {
                !taint::has(node, CUT_OFF, "NoSchedule")
            })
            .await;
    }
}
