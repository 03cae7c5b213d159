//! The node's heartbeat. The kubelet renews its lease at the hub, whether the cloud is there or not; the hub renews the lease in the
//! cloud as long as the kubelet lives. So the kubelet never waits for a slow link, the cloud learns of the node by one small write
//! in an interval, and a kubelet that died is known to be dead while everybody else goes on.
//!
//! [`Round`] decides (pure), [`run`] asks.

mod round;

use crate::{
    cache::record::index_key, caller::Caller, config, journal::Cloud, proxy::Hub,
    reconnect::Drilled,
};
use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use jiff::Timestamp;
pub(crate) use round::{Next, Round, Step};
use serde_json::{Map, Value, json};
use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};
use tokio::sync::Notify;
use yurt_wire::{Encoding, Gvr, Object};

/// Namespace of the leases by which nodes are known to live.
pub const NODE_LEASES: &str = "kube-node-lease";
/// Asks the pool's leader to renew the lease for a node that cannot. Whoever renews it itself takes that back.
pub(crate) const DELEGATE: &str = "openyurt.io/delegate-heartbeat";

/// The resource of leases.
pub(crate) fn leases() -> Gvr {
    Gvr::new("coordination.k8s.io", "v1", "leases")
}

/// When the kubelet was heard last, and how renewing went.
#[derive(Debug)]
pub struct Heartbeat {
    config: config::Heartbeat,
    started: Instant,
    told: Mutex<Told>,
    wake: Notify,
}

#[derive(Debug, Default)]
struct Told {
    heard: Option<Instant>,
    renewed: Option<Instant>,
    /// Why the last round failed.
    trouble: Option<String>,
}

/// What `/v1/doctor` tells of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pulse {
    /// Since when the kubelet wrote nothing; `None` when it never did.
    pub kubelet_silent: Option<Duration>,
    /// Whether it counts as alive.
    pub alive: bool,
    /// Since the lease was renewed in the cloud.
    pub renewed: Option<Duration>,
    /// Why the last round failed.
    pub trouble: Option<String>,
}

impl Heartbeat {
    /// Begins now: a kubelet that was there before the hub has one grace period to be heard.
    pub fn new(config: config::Heartbeat) -> Self {
        Self {
            config,
            started: Instant::now(),
            told: Mutex::default(),
            wake: Notify::new(),
        }
    }

    fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The kubelet wrote its lease.
    pub fn heard(&self) {
        let before = self.told().heard.replace(Instant::now());
        if before.is_none_or(|at| at.elapsed() >= self.config.kubelet_grace) {
            self.wake.notify_one();
        }
    }

    /// How long a silent kubelet is alive.
    pub fn grace(&self) -> Duration {
        self.config.kubelet_grace
    }

    /// How long one request about a lease may take, and how often it is tried.
    pub(crate) fn patience(&self) -> (Duration, u32) {
        (self.config.timeout, self.config.tries.max(1))
    }

    /// Between looks at what is kept alive.
    pub fn interval(&self) -> Duration {
        self.config.interval
    }

    /// How it is.
    pub fn pulse(&self) -> Pulse {
        let told = self.told();
        let since = told.heard.unwrap_or(self.started);
        Pulse {
            kubelet_silent: told.heard.map(|at| at.elapsed()),
            alive: since.elapsed() < self.config.kubelet_grace,
            renewed: told.renewed.map(|at| at.elapsed()),
            trouble: told.trouble.clone(),
        }
    }
}

/// The lease to send: the identity of the cloud's, what the kubelet wrote of it, renewed now.
fn renewed(
    base: Option<&Value>,
    view: Option<&Value>,
    node: &str,
    node_uid: Option<&str>,
    duration: Duration,
    now: Timestamp,
) -> Value {
    let part = |object: Option<&Value>, pointer: &str| -> Map<String, Value> {
        object
            .and_then(|object| object.pointer(pointer)?.as_object().cloned())
            .unwrap_or_default()
    };
    let mut metadata = part(base, "/metadata");
    for field in ["managedFields", "selfLink"] {
        metadata.remove(field);
    }
    metadata.insert("name".into(), node.into());
    metadata.insert("namespace".into(), NODE_LEASES.into());
    let written = part(view, "/metadata");
    for field in ["labels", "annotations", "ownerReferences"] {
        if let Some(value) = written.get(field) {
            metadata.insert(field.into(), value.clone());
        }
    }
    if let Some(annotations) = metadata
        .get_mut("annotations")
        .and_then(Value::as_object_mut)
    {
        annotations.remove(DELEGATE);
        if annotations.is_empty() {
            metadata.remove("annotations");
        }
    }
    let owned = metadata
        .get("ownerReferences")
        .and_then(Value::as_array)
        .is_some_and(|owners| !owners.is_empty());
    if let (false, Some(uid)) = (owned, node_uid) {
        let owner = json!([{"apiVersion": "v1", "kind": "Node", "name": node, "uid": uid}]);
        metadata.insert("ownerReferences".into(), owner);
    }
    let mut spec = part(base, "/spec");
    spec.extend(part(view, "/spec"));
    spec.insert("holderIdentity".into(), node.into());
    spec.insert("leaseDurationSeconds".into(), duration.as_secs().into());
    let latest = [base, view]
        .into_iter()
        .flatten()
        .filter_map(|lease| lease.pointer("/spec/renewTime")?.as_str())
        .filter_map(|text| text.parse::<Timestamp>().ok())
        .max();
    // The clock was set back: the time of a lease never is. The node lifecycle controller takes no renewal for one that is not later
    // than the last that it saw, however far ahead that was; how much time has passed it takes from its own clock.
    let next = latest.and_then(|at| at.checked_add(jiff::SignedDuration::from_micros(1)).ok());
    let stamp = next.map_or(now, |next| now.max(next));
    spec.insert("renewTime".into(), micros(stamp).into());
    json!({
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": metadata,
        "spec": spec,
    })
}

/// A MicroTime as Kubernetes writes it.
pub(crate) fn micros(at: Timestamp) -> String {
    format!("{at:.6}")
}

/// Renews until shutdown.
pub(super) async fn run(hub: Arc<Hub>, heartbeat: Arc<Heartbeat>) {
    let cloud = Drilled(hub.upstreams.clone());
    let mut base: Option<Value> = None;
    let mut links = hub.upstreams.changes();
    let mut linked = false;
    let mut due = tokio::time::Instant::now();
    loop {
        links.borrow_and_update();
        let was_linked = std::mem::replace(&mut linked, hub.upstreams.linked());
        // A link that is back must not wait for the next turn: the node may be about to be given up.
        if linked && (!was_linked || tokio::time::Instant::now() >= due) {
            due = tokio::time::Instant::now() + heartbeat.config.interval;
            if heartbeat.pulse().alive {
                round(&hub, &heartbeat, &cloud, &mut base).await;
            }
        }
        tokio::select! {
            () = tokio::time::sleep_until(due), if linked => {}
            () = heartbeat.wake.notified() => due = tokio::time::Instant::now(),
            _ = links.changed() => {}
            () = hub.shutdown.cancelled() => return,
        }
    }
}

async fn round(hub: &Hub, heartbeat: &Heartbeat, cloud: &Drilled, base: &mut Option<Value>) {
    let gvr = leases();
    let node = &hub.node_name;
    let asked = hub.cache.asked(&gvr);
    let shown = hub.cache.view(&gvr, NODE_LEASES, node);
    let view = shown.as_ref().and_then(|lease| lease.to_json_value().ok());
    let uid = super::own_node(hub).and_then(|node| {
        node.pointer("/metadata/uid")
            .and_then(Value::as_str)
            .map(str::to_owned)
    });
    let mut round = Round {
        left: heartbeat.config.tries.max(1),
        may_create: heartbeat.told().heard.is_some(),
    };
    let mut step = Round::first(base.as_ref());
    let end = loop {
        let (method, body) = match step {
            Step::Get => (Method::GET, None),
            Step::Put | Step::Create => {
                let base = base.as_ref().filter(|_| step == Step::Put);
                let lease = renewed(
                    base,
                    view.as_ref(),
                    node,
                    uid.as_deref(),
                    heartbeat.config.kubelet_grace,
                    Timestamp::now(),
                );
                let method = if step == Step::Put {
                    Method::PUT
                } else {
                    Method::POST
                };
                (method, Some(lease))
            }
        };
        let answer = ask(hub, cloud, heartbeat.config.timeout, method, body).await;
        match round.after(step, answer, base) {
            Next::Ask(next) => step = next,
            end => break end,
        }
    };
    let trouble = match end {
        Next::Renewed(lease) => {
            heartbeat.told().renewed = Some(Instant::now());
            hub.metrics.heartbeat("renewed");
            let object = Object {
                encoding: Encoding::Json,
                bytes: lease.to_string().into(),
            };
            // What the kubelet wrote up to now is in the cloud; what it wrote meanwhile stays on top.
            let taken = hub.cache.view(&gvr, NODE_LEASES, node) == shown;
            hub.cache.learn_object(&Caller::Node, &gvr, &object, asked);
            if taken {
                hub.cache
                    .end_overlay(&gvr, &index_key(NODE_LEASES, node), None);
            }
            None
        }
        Next::Absent | Next::Ask(_) => None,
        Next::Refused(code) => {
            hub.metrics.heartbeat("refused");
            Some(format!("the cloud refuses it ({code})"))
        }
        Next::Failed(why) => {
            hub.metrics.heartbeat("failed");
            Some(why)
        }
    };
    let mut told = heartbeat.told();
    if told.trouble != trouble {
        match &trouble {
            Some(why) => tracing::warn!(why, "the node's lease cannot be renewed"),
            None => tracing::info!("the node's lease is renewed again"),
        }
        told.trouble = trouble;
    }
}

async fn ask(
    hub: &Hub,
    cloud: &Drilled,
    timeout: Duration,
    method: Method,
    body: Option<Value>,
) -> Result<(u16, Value), String> {
    let request = request(method, &hub.node_name, body)?;
    let answer = cloud
        .call(request, timeout)
        .await
        .map_err(|error| error.to_string())?;
    answered(answer.status(), answer.body())
}

/// A request about a node's lease, to whoever keeps it.
pub(crate) fn request(
    method: Method,
    node: &str,
    lease: Option<Value>,
) -> Result<Request<Bytes>, String> {
    let collection = format!("/apis/coordination.k8s.io/v1/namespaces/{NODE_LEASES}/leases");
    let path = match method {
        Method::POST => collection,
        _ => format!("{collection}/{node}"),
    };
    Request::builder()
        .method(method)
        .uri(path)
        .header(header::ACCEPT, "application/json")
        .header(header::CONTENT_TYPE, "application/json")
        .header(header::USER_AGENT, crate::USER_AGENT)
        .body(lease.map_or_else(Bytes::new, |lease| lease.to_string().into()))
        .map_err(|error| error.to_string())
}

/// The answer: its code, and the lease.
pub(crate) fn answered(status: StatusCode, body: &[u8]) -> Result<(u16, Value), String> {
    match serde_json::from_slice(body) {
        Ok(body) => Ok((status.as_u16(), body)),
        // A proxy's error page; its code decides.
        Err(_) if !status.is_success() => Ok((status.as_u16(), Value::Null)),
        Err(error) => Err(format!("the answer is no lease: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn lease(uid: &str, revision: &str, time: &str) -> Value {
        json!({
            "metadata": {"name": "n", "namespace": NODE_LEASES, "uid": uid, "resourceVersion": revision,
                "annotations": {DELEGATE: "true"}, "managedFields": []},
            "spec": {"holderIdentity": "n", "renewTime": time, "leaseTransitions": 3},
        })
    }

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    const NOW: &str = "2026-11-22T10:00:00.000000Z";

    #[test]
    fn what_is_sent() {
        let base = lease("u", "7", "2026-11-22T09:00:00.000000Z");
        let grace = Duration::from_secs(40);
        let sent = renewed(Some(&base), None, "n", Some("node-uid"), grace, at(NOW));
        assert_eq!(
            sent,
            json!({
                "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
                "metadata": {"name": "n", "namespace": NODE_LEASES, "uid": "u", "resourceVersion": "7",
                    "ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": "n", "uid": "node-uid"}]},
                "spec": {"holderIdentity": "n", "renewTime": NOW, "leaseDurationSeconds": 40, "leaseTransitions": 3},
            })
        );
        // Created: nothing of a local identity; what the kubelet says of the owner.
        let mut view = lease("local", "3", "2026-11-22T09:59:59.000000Z");
        view["metadata"]["ownerReferences"] = json!([{"kind": "Node", "uid": "x"}]);
        let sent = renewed(None, Some(&view), "n", Some("node-uid"), grace, at(NOW));
        assert_eq!(
            sent["metadata"],
            json!({"name": "n", "namespace": NODE_LEASES, "ownerReferences": [{"kind": "Node", "uid": "x"}]})
        );
    }

    #[test]
    fn the_time_of_a_lease_does_not_go_back() {
        let send = |known: &str| {
            let base = lease("u", "7", known);
            let sent = renewed(
                Some(&base),
                None,
                "n",
                None,
                Duration::from_secs(40),
                at(NOW),
            );
            sent["spec"]["renewTime"].as_str().unwrap().to_owned()
        };
        assert_eq!(
            send("2026-11-22T10:00:30.000000Z"),
            "2026-11-22T10:00:30.000001Z"
        );
        // The clock was far ahead once: the controller waits for a later time.
        assert_eq!(
            send("2099-01-01T00:00:00.000000Z"),
            "2099-01-01T00:00:00.000001Z"
        );
        for none in ["nonsense", "9999-12-31T23:59:59.999999Z"] {
            assert_eq!(send(none), NOW, "{none}");
        }
    }

    fn round(left: u32, may_create: bool) -> Round {
        Round { left, may_create }
    }

    #[test]
    fn a_round_goes_on_from_what_the_cloud_has() {
        let mut base = Some(json!({"old": 1}));
        let mut r = round(3, true);
        let conflict = Ok((409, Value::Null));
        assert_eq!(
            r.after(Step::Put, conflict, &mut base),
            Next::Ask(Step::Get)
        );
        assert_eq!(base, None);
        let fresh = json!({"fresh": 1});
        assert_eq!(
            r.after(Step::Get, Ok((200, fresh.clone())), &mut base),
            Next::Ask(Step::Put)
        );
        assert_eq!(base, Some(fresh));
        let newer = json!({"newer": 1});
        assert_eq!(
            r.after(Step::Put, Ok((200, newer.clone())), &mut base),
            Next::Renewed(newer.clone())
        );
        assert_eq!(base, Some(newer));
    }

    #[test]
    fn a_lease_is_made_for_a_kubelet_only() {
        let gone = || Ok((404, Value::Null));
        let mut base = None;
        assert_eq!(
            round(1, true).after(Step::Get, gone(), &mut base),
            Next::Ask(Step::Create)
        );
        assert_eq!(
            round(1, true).after(Step::Put, gone(), &mut base),
            Next::Ask(Step::Create)
        );
        assert_eq!(
            round(1, false).after(Step::Get, gone(), &mut base),
            Next::Absent
        );
    }

    #[test]
    fn a_no_is_a_no_and_silence_is_tried_again() {
        let mut base = Some(Value::Null);
        for code in [400, 401, 403, 422] {
            assert_eq!(
                round(3, true).after(Step::Put, Ok((code, Value::Null)), &mut base),
                Next::Refused(code)
            );
        }
        let mut r = round(3, true);
        for _ in 0..2 {
            assert_eq!(
                r.after(Step::Put, Err("silence".into()), &mut base),
                Next::Ask(Step::Put)
            );
        }
        assert!(matches!(
            r.after(Step::Put, Ok((503, Value::Null)), &mut base),
            Next::Failed(why) if why.contains("503")
        ));
    }

    proptest! {
        /// Whatever a cloud answers, a round ends soon.
        #[test]
        fn rounds_end(codes in proptest::collection::vec(prop_oneof![Just(200u16), Just(404), Just(409), Just(429), Just(500), Just(0)], 64), known: bool, tries in 1u32..5) {
            let mut base = known.then_some(Value::Null);
            let mut r = round(tries, true);
            let mut step = Round::first(base.as_ref());
            let mut asked = 0;
            for code in codes {
                asked += 1;
                let answer = if code == 0 { Err("silence".into()) } else { Ok((code, json!({}))) };
                match r.after(step, answer, &mut base) {
                    Next::Ask(next) => step = next,
                    _ => break,
                }
            }
            prop_assert!(asked <= 3 * tries + 3, "{asked}");
        }
    }

    #[test]
    fn a_kubelet_lives_for_its_grace() {
        let heartbeat = Heartbeat::new(config::Heartbeat {
            interval: Duration::from_secs(1),
            timeout: Duration::from_secs(1),
            tries: 1,
            kubelet_grace: Duration::from_secs(3600),
        });
        let pulse = heartbeat.pulse();
        assert!(pulse.alive && pulse.kubelet_silent.is_none());
        heartbeat.heard();
        assert!(heartbeat.pulse().kubelet_silent.is_some());
        let dead = Heartbeat::new(config::Heartbeat {
            kubelet_grace: Duration::ZERO,
            ..heartbeat.config.clone()
        });
        dead.heard();
        assert!(!dead.pulse().alive);
    }
}
