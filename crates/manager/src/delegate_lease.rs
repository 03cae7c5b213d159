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
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::time::Instant;
use yurt_api::names::annotations::DELEGATE_HEARTBEAT as DELEGATED;
pub(crate) use yurt_api::names::taints::UNSCHEDULABLE as CUT_OFF;
use yurt_controller::{Scope, policy::Rule};

pub(crate) const EFFECT: &str = "NoSchedule";
/// So many renewals in a row by another make a node cut off.
const ENOUGH: u8 = 4;
/// So long a renewal shows that a node lives: Kubernetes' own grace period.
const FRESH: Duration = Duration::from_secs(40);
pub(crate) const NAMESPACE: &str = "kube-node-lease";

pub(crate) const ENTRY: Entry = Entry::of::<DelegatedLeases>(
    "delegatelease",
    &[Rule::new("", &["nodes", "nodes/status"], &["patch"])],
);

/// The leases of nodes. Who renewed one stands in an annotation, that it was renewed in its version.
pub(crate) fn leases() -> Scope {
    Scope::metadata().within(NAMESPACE)
}

/// Renewals in a row by another, and when the last one was seen.
#[derive(Clone, Copy, Debug)]
struct Renewals {
    count: u8,
    last: Instant,
}

/// `delegate-lease-controller`.
#[derive(Debug, Default)]
pub(crate) struct DelegatedLeases {
    /// By node; as many as there are leases.
    renewals: Arc<Mutex<HashMap<String, Renewals>>>,
}

fn lock(renewals: &Mutex<HashMap<String, Renewals>>) -> MutexGuard<'_, HashMap<String, Renewals>> {
    renewals.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) fn is_delegated(lease: &Value) -> bool {
    lease["metadata"]["annotations"][DELEGATED] == "true"
}

/// Counts a renewal. Pure.
fn count(before: u8, lease: &Value) -> u8 {
    if is_delegated(lease) {
        before.saturating_add(1).min(ENOUGH)
    } else {
        0
    }
}

/// Whether the cloud has not heard of a node for so long that it is taken for lost.
fn is_silent(node: &Value) -> bool {
    condition::find(&node["status"], "Ready").is_some_and(|ready| ready["status"] == "Unknown")
}

/// The renewals that count for a node: what it was taken for before this process began shows in its taint, and goes on as long as
/// its lease is delegated. Pure.
fn effective(node: &Value, lease: Option<&Value>, counted: u8) -> u8 {
    match lease {
        Some(lease) if is_delegated(lease) && taint::has(node, CUT_OFF, EFFECT) => ENOUGH,
        Some(_) => counted,
        // Nobody speaks for it.
        None => 0,
    }
}

/// The taints that a node should have after so many renewals by another; `None` when they are right. Pure.
fn taints(node: &Value, renewals: u8, now: Timestamp) -> Option<Vec<Value>> {
    let has = taint::has(node, CUT_OFF, EFFECT);
    let mut taints = taint::taints(node);
    match renewals {
        0 if has => taints.retain(|taint| !taint::is(taint, CUT_OFF, EFFECT)),
        ENOUGH.. if !has => taints.push(json!({"key": CUT_OFF, "value": "true", "effect": EFFECT, "timeAdded": pod::stamp(now)})),
        _ => return None,
    }
    Some(taints)
}

impl Controller for DelegatedLeases {
    const NAME: &'static str = "delegate-lease-controller";

    fn watches(&self, context: &Arc<Context>) -> Vec<Watch> {
        let (renewals, nodes) = (self.renewals.clone(), context.objects(&NODES));
        let renewed = Watch::of(LEASES, move |change| {
            let key = Key::new("", &change.key().name);
            let mut renewals = lock(&renewals);
            let Some(lease) = &change.new else {
                renewals.remove(&key.name);
                return vec![key];
            };
            let before = renewals.get(&key.name).map(|renewals| renewals.count);
            let now = Renewals {
                count: count(before.unwrap_or(0), lease),
                last: Instant::now(),
            };
            renewals.insert(key.name.clone(), now);
            // At each renewal of a node that is cut off, it is looked after; most renewals are by nodes themselves.
            let needs_care = |node: &Value| {
                now.count == ENOUGH && (is_silent(node) || !taint::has(node, CUT_OFF, EFFECT))
            };
            if before == Some(now.count) && !nodes.get(&key).is_some_and(|node| needs_care(&node)) {
                return Vec::new();
            }
            vec![key]
        });
        // A taint may be of before this process, or may be all that is left of a lease.
        let nodes = Watch::of(NODES, |change| {
            let new = change.new.as_deref();
            let tainted = new.filter(|node| taint::has(node, CUT_OFF, EFFECT));
            tainted.map(Key::of).into_iter().collect()
        });
        vec![renewed.scoped(leases()), nodes]
    }

    async fn reconcile(&self, key: &Key, context: &Context) -> Result<Next, Failure> {
        let Some(node) = context.objects(&NODES).get(key) else {
            return Ok(Next::Done);
        };
        let lease = context.scoped(&LEASES, &leases());
        let lease = lease.get(&Key::new(NAMESPACE, &key.name));
        let known = lock(&self.renewals).get(&key.name).copied();
        let counted = known.map_or(0, |known| known.count);
        let renewals = effective(&node, lease.as_deref(), counted);
        taint::write(context, &node, |node| {
            taints(node, renewals, Timestamp::now())
        })
        .await?;
        let lives = known.is_some_and(|known| known.last.elapsed() < FRESH);
        let node = context.objects(&NODES).get(key).unwrap_or(node);
        if renewals == ENOUGH && lives && is_silent(&node) {
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
    }

    #[test]
    fn what_a_node_was_taken_for_before_shows_in_its_taint() {
        let free = json!({});
        let tainted = json!({"spec": {"taints": [{"key": CUT_OFF, "effect": EFFECT}]}});
        for (node, lease, counted, counts) in [
            (&tainted, Some(lease(1, true)), 1, ENOUGH),
            (&tainted, Some(lease(1, false)), 0, 0),
            (&tainted, None, 3, 0),
            (&free, Some(lease(1, true)), 1, 1),
            (&free, None, 0, 0),
        ] {
            assert_eq!(
                effective(node, lease.as_ref(), counted),
                counts,
                "{node} {lease:?}"
            );
        }
    }

    #[tokio::test]
    async fn a_taint_of_before_a_restart_goes_when_the_node_is_back() {
        let mut stage = Stage::start("").await;
        let taint = json!([{"key": CUT_OFF, "value": "true", "effect": EFFECT}]);
        for (name, delegated) in [("back", Some(false)), ("away", Some(true)), ("lost", None)] {
            let node = json!({"metadata": {"name": name}, "spec": {"taints": taint}});
            stage.create("/api/v1/nodes", node).await;
            if let Some(delegated) = delegated {
                let mut lease = lease(0, delegated);
                lease["metadata"]["name"] = name.into();
                stage.create(&LEASES.path(NAMESPACE), lease).await;
            }
        }
        stage.restart("delegate-lease-controller");
        for gone in ["back", "lost"] {
            stage
                .until(&format!("/api/v1/nodes/{gone}"), |node| {
                    !taint::has(node, CUT_OFF, EFFECT)
                })
                .await;
        }
        let away = stage.kube.get("/api/v1/nodes/away").await.expect("a node");
        assert!(taint::has(&away, CUT_OFF, EFFECT));
        // Silent by now: one renewal is enough to see that it lives.
        let silent = json!({"status": {"conditions": [{"type": "Ready", "status": "Unknown"}]}});
        stage
            .kube
            .merge("/api/v1/nodes/away/status", &silent)
            .await
            .expect("silent");
        let one = format!("{}/away", LEASES.path(NAMESPACE));
        let renewed = json!({"spec": {"renewTime": "2026-01-01T00:02:00.000000Z"}});
        stage.kube.merge(&one, &renewed).await.expect("renewed");
        stage
            .until("/api/v1/nodes/away", |node| {
                condition::holds(&node["status"], "Ready")
            })
            .await;
    }

    #[tokio::test]
    async fn a_node_that_is_cut_off_stays_ready_and_gets_nothing_new() {
        let stage =
            Stage::start_confined("delegate-lease-controller", crate::Settings::default()).await;
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
