//! The leader renews in the cloud the leases of nodes that cannot themselves, so that the cloud knows that they live and are only cut
//! off (annotation `openyurt.io/delegate-heartbeat`). The decision is [`revise`], pure; `proxy` is the identity that it is done under:
//! nodes may not write each other's leases.

mod proxy;

use super::{leases::Kept, role::Role};
use crate::{
    autonomy::heartbeat::{self, DELEGATE, Heartbeat, NODE_LEASES, Next, Round, Step, micros},
    proxy::Hub,
};
use http::Method;
use jiff::{SignedDuration, Timestamp};
use proxy::Proxy;
pub(super) use proxy::Readiness;
use serde_json::{Map, Value, json};
use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::task::JoinSet;
use yurt_transport::Client;

/// Leases that are renewed at one time.
const AT_ONCE: usize = 8;
/// Between attempts that fail.
const PAUSE: Duration = Duration::from_secs(1);
/// What comes within this time is renewed together.
const GATHER: Duration = Duration::from_millis(100);
/// Largest answer that is read.
const MOST_ANSWER: usize = 256 << 10;

/// What is to be done with the lease in the cloud.
#[derive(Clone, Debug, PartialEq)]
enum Revision {
    /// It is to be this.
    Write(Value),
    /// The node renewed it itself since: nothing.
    Own,
}

fn time_of(lease: &Value) -> Option<Timestamp> {
    lease.pointer("/spec/renewTime")?.as_str()?.parse().ok()
}

/// The lease as it is to be in the cloud, on top of what it is there (`base`): never back in time.
fn revise(base: Option<&Value>, node: &str, kept: &Kept) -> Revision {
    let part = |pointer: &str| -> Map<String, Value> {
        let found = base.and_then(|base| base.pointer(pointer)?.as_object().cloned());
        found.unwrap_or_default()
    };
    let told = kept.written.renew;
    let before = base.and_then(time_of);
    let mut metadata = part("/metadata");
    let mut annotations = part("/metadata/annotations");
    let delegated = annotations.get(DELEGATE).and_then(Value::as_str) == Some("true");
    if !delegated && before.is_some_and(|before| before >= told) {
        return Revision::Own;
    }
    for field in ["managedFields", "selfLink"] {
        metadata.remove(field);
    }
    metadata.insert("name".into(), node.into());
    metadata.insert("namespace".into(), NODE_LEASES.into());
    annotations.insert(DELEGATE.into(), "true".into());
    metadata.insert("annotations".into(), annotations.into());
    let owners = metadata.get("ownerReferences").and_then(Value::as_array);
    let owned = owners.is_some_and(|owners| !owners.is_empty());
    if let (false, Some(uid)) = (owned, &kept.written.owner) {
        let owner = json!([{"apiVersion": "v1", "kind": "Node", "name": node, "uid": uid}]);
        metadata.insert("ownerReferences".into(), owner);
    }
    let mut spec = part("/spec");
    spec.insert("holderIdentity".into(), node.into());
    let seconds = kept.written.duration.as_secs();
    spec.insert("leaseDurationSeconds".into(), seconds.into());
    let least = before.and_then(|at| at.checked_add(SignedDuration::from_micros(1)).ok());
    let time = least.map_or(told, |least| told.max(least));
    spec.insert("renewTime".into(), micros(time).into());
    Revision::Write(json!({
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": metadata,
        "spec": spec,
    }))
}

/// What came of renewing a lease. A closed set: it labels a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Renewed,
    /// The node's own update is newer.
    Own,
    /// The cloud says no.
    Refused,
    /// No answer; worth another attempt.
    Failed,
    /// There is nobody to do it as.
    NoIdentity,
}

impl Outcome {
    fn as_str(self) -> &'static str {
        match self {
            Self::Renewed => "renewed",
            Self::Own => "own",
            Self::Refused => "refused",
            Self::Failed => "failed",
            Self::NoIdentity => "no_identity",
        }
    }
}

/// What is remembered of a node whose lease is renewed.
#[derive(Clone, Debug, Default)]
struct Delegated {
    /// The lease as the cloud has it.
    base: Option<Value>,
    /// Up to which time the cloud was told, or need not be.
    told: Option<Timestamp>,
    /// Not before.
    next: Option<Instant>,
}

impl Delegated {
    fn is_due(&self, kept: &Kept, now: Instant) -> bool {
        self.told.is_none_or(|told| told < kept.written.renew)
            && self.next.is_none_or(|next| next <= now)
    }

    fn take(&mut self, outcome: Outcome, renew: Timestamp, base: Option<Value>, now: Instant) {
        self.base = base;
        if outcome == Outcome::Failed {
            self.next = Some(now + PAUSE);
        } else {
            // Each life sign once, whatever comes of it.
            self.told = Some(renew);
            self.next = None;
        }
    }
}

/// Renews until shutdown, whenever this node leads.
pub(super) async fn run(hub: Arc<Hub>, heartbeat: Arc<Heartbeat>) {
    let mut roles = hub.role.clone();
    let mut changes = hub.coordination.leases.changes();
    let mut links = hub.upstreams.changes();
    let mut proxy: Option<Proxy> = None;
    let mut known: HashMap<Box<str>, Delegated> = HashMap::new();
    loop {
        changes.borrow_and_update();
        links.borrow_and_update();
        let leads = *roles.borrow_and_update() == Role::Leader;
        if leads && proxy.is_none() {
            proxy = Some(Proxy::follow(&hub));
        } else if !leads {
            (proxy, known) = (None, HashMap::new());
            hub.coordination.set_readiness(Readiness::default());
        }
        let mut failed = false;
        if let Some(proxy) = proxy.as_mut().filter(|_| hub.upstreams.up()) {
            let readiness = proxy.look(&hub);
            hub.coordination.set_readiness(readiness);
            failed = renew_all(&hub, &heartbeat, proxy, &mut known).await;
        }
        tokio::time::sleep(GATHER).await;
        tokio::select! {
            changed = roles.changed() => if changed.is_err() { return },
            _ = changes.changed() => {}
            _ = links.changed() => {}
            () = Proxy::changed(&mut proxy) => {}
            () = tokio::time::sleep(PAUSE), if failed => {}
            () = hub.shutdown.cancelled() => return,
        }
    }
}

/// Renews all that is due; whether some of it failed.
async fn renew_all(
    hub: &Arc<Hub>,
    heartbeat: &Heartbeat,
    proxy: &mut Proxy,
    known: &mut HashMap<Box<str>, Delegated>,
) -> bool {
    let now = Instant::now();
    let (marked, _) = hub
        .coordination
        .leases
        .pick(|node, kept| *node != *hub.node_name && kept.written.delegate && kept.is_alive(now));
    known.retain(|node, _| marked.iter().any(|(marked, _)| marked == node));
    let mut due: Vec<(Box<str>, Kept)> = marked
        .into_iter()
        .filter(|(node, kept)| known.get(node).is_none_or(|known| known.is_due(kept, now)))
        .collect();
    // Whoever waits the longest for it is in the greatest danger.
    due.sort_by_key(|(_, kept)| kept.moved);
    let mut under_way = JoinSet::new();
    let mut failed = false;
    let mut due = due.into_iter();
    loop {
        let next = (under_way.len() < AT_ONCE && is_responsible(hub))
            .then(|| due.next())
            .flatten();
        if let Some((node, kept)) = next {
            let base = known.get(&node).and_then(|known| known.base.clone());
            let client = proxy.client(hub);
            let patience = heartbeat.patience();
            under_way.spawn(async move {
                let renew = kept.written.renew;
                let (outcome, base) = match client {
                    Some(client) => renew_one(&client, &node, &kept, base, patience).await,
                    None => (Outcome::NoIdentity, base),
                };
                (node, renew, outcome, base)
            });
            continue;
        }
        let Some(done) = under_way.join_next().await else {
            return failed;
        };
        if let Ok((node, renew, outcome, base)) = done {
            hub.metrics.pool().delegated(outcome.as_str());
            if !matches!(outcome, Outcome::Renewed | Outcome::Own) {
                tracing::debug!(
                    node,
                    outcome = outcome.as_str(),
                    "a lease was not renewed for its node"
                );
            }
            failed |= outcome == Outcome::Failed;
            let entry = known.entry(node).or_default();
            entry.take(outcome, renew, base, Instant::now());
        }
    }
}

fn is_responsible(hub: &Hub) -> bool {
    *hub.role.borrow() == Role::Leader && hub.upstreams.up()
}

/// One round for one node; what the cloud has then, as far as it is known.
async fn renew_one(
    client: &Client,
    node: &str,
    kept: &Kept,
    mut base: Option<Value>,
    (timeout, tries): (Duration, u32),
) -> (Outcome, Option<Value>) {
    let mut round = Round {
        left: tries,
        may_create: true,
    };
    let mut step = Round::first(base.as_ref());
    loop {
        let (method, body) = match step {
            Step::Get => (Method::GET, None),
            Step::Put | Step::Create => {
                let base = base.as_ref().filter(|_| step == Step::Put);
                match revise(base, node, kept) {
                    Revision::Own => return (Outcome::Own, None),
                    Revision::Write(lease) if step == Step::Put => (Method::PUT, Some(lease)),
                    Revision::Write(lease) => (Method::POST, Some(lease)),
                }
            }
        };
        let answer = tokio::time::timeout(timeout, ask(client, node, timeout, method, body)).await;
        let answer = answer.unwrap_or_else(|_| Err(format!("no answer within {timeout:?}")));
        match round.after(step, answer, &mut base) {
            Next::Ask(next) => step = next,
            Next::Renewed(_) => return (Outcome::Renewed, base),
            Next::Refused(_) | Next::Absent => return (Outcome::Refused, None),
            Next::Failed(_) => return (Outcome::Failed, None),
        }
    }
}

async fn ask(
    client: &Client,
    node: &str,
    timeout: Duration,
    method: Method,
    body: Option<Value>,
) -> Result<(u16, Value), String> {
    let request = heartbeat::request(method, node, body)?.map(yurt_transport::full);
    let response = client.send(request, timeout).await;
    let response = response.map_err(|error| error.to_string())?;
    let status = response.status();
    let body = yurt_transport::collect(response.into_body(), MOST_ANSWER).await;
    heartbeat::answered(status, &body.map_err(|error| error.to_string())?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pool::leases::{Leases, Written};
    use proptest::prelude::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    fn kept(second: i64) -> Kept {
        let leases = Leases::default();
        let written = Written {
            renew: at(second),
            duration: Duration::from_secs(40),
            delegate: true,
            owner: Some("u".into()),
        };
        leases.put("n", written).unwrap();
        leases.get("n").unwrap()
    }

    fn cloud(second: i64, delegated: bool) -> Value {
        let mut lease = json!({
            "metadata": {"name": "n", "namespace": NODE_LEASES, "uid": "l", "resourceVersion": "7", "managedFields": [],
                "ownerReferences": [{"kind": "Node", "uid": "x"}]},
            "spec": {"holderIdentity": "n", "renewTime": micros(at(second)), "leaseTransitions": 3},
        });
        if delegated {
            lease["metadata"]["annotations"] = json!({DELEGATE: "true", "a": "b"});
        }
        lease
    }

    #[test]
    fn what_the_cloud_is_told() {
        let Revision::Write(lease) = revise(Some(&cloud(5, false)), "n", &kept(9)) else {
            panic!("nothing is told");
        };
        assert_eq!(
            lease,
            json!({
                "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
                "metadata": {"name": "n", "namespace": NODE_LEASES, "uid": "l", "resourceVersion": "7",
                    "annotations": {DELEGATE: "true"}, "ownerReferences": [{"kind": "Node", "uid": "x"}]},
                "spec": {"holderIdentity": "n", "renewTime": micros(at(9)), "leaseDurationSeconds": 40, "leaseTransitions": 3},
            })
        );
        let Revision::Write(made) = revise(None, "n", &kept(9)) else {
            panic!("nothing is made");
        };
        assert_eq!(made["metadata"]["ownerReferences"][0]["uid"], "u");
        assert_eq!(made["metadata"]["annotations"], json!({DELEGATE: "true"}));
        // Others' annotations stay.
        let Revision::Write(lease) = revise(Some(&cloud(5, true)), "n", &kept(9)) else {
            panic!("nothing is told");
        };
        assert_eq!(lease["metadata"]["annotations"]["a"], "b");
    }

    #[test]
    fn a_node_that_is_back_speaks_for_itself() {
        assert_eq!(revise(Some(&cloud(9, false)), "n", &kept(9)), Revision::Own);
        assert_eq!(
            revise(Some(&cloud(10, false)), "n", &kept(9)),
            Revision::Own
        );
    }

    #[test]
    fn each_sign_of_life_is_told_once() {
        let now = Instant::now();
        let mut node = Delegated::default();
        let (first, second) = (kept(1), kept(2));
        assert!(node.is_due(&first, now));
        node.take(Outcome::Failed, first.written.renew, None, now);
        assert!(!node.is_due(&first, now) && node.is_due(&first, now + PAUSE));
        for outcome in [
            Outcome::Renewed,
            Outcome::Own,
            Outcome::Refused,
            Outcome::NoIdentity,
        ] {
            let mut node = node.clone();
            node.take(outcome, first.written.renew, None, now);
            assert!(!node.is_due(&first, now + PAUSE), "{outcome:?}");
            assert!(node.is_due(&second, now), "{outcome:?}");
        }
    }

    proptest! {
        /// The time in the cloud never goes back, and moves on with each sign of life.
        #[test]
        fn the_cloud_never_goes_back_in_time(before in -100i64..100, told in -100i64..100, delegated: bool) {
            let base = cloud(before, delegated);
            match revise(Some(&base), "n", &kept(told)) {
                Revision::Own => prop_assert!(!delegated && before >= told),
                Revision::Write(lease) => prop_assert!(time_of(&lease) > time_of(&base)),
            }
        }
    }
}
