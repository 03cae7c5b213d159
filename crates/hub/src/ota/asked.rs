//! What is asked of upgrades, from whoever may ask: to begin one, to have images pulled, to see, confirm and cancel.

use super::{
    access::Asker,
    cloud::{self, As, Asking, CloudError, STRATEGIC},
    job::{Job, NotTaken, State},
    manifest,
    pod::{self, Due, IMAGE, Kind, NotDue, REVISION},
    policy::{Decision, Standing, Wanted, decide, not_allowed},
    seconds,
    worker::{self, Stop},
};
use crate::{autonomy::resync::own_pods, caller::Caller, proxy::Hub, route::Mode};
use http::{Method, StatusCode};
use serde_json::{Value, json};
use std::{sync::Arc, time::Duration};
use yurt_wire::Gvr;

/// How long a request waits for its upgrade to begin, where nothing is in its way.
const BEGIN: Duration = Duration::from_secs(30);
/// What OpenYurt's hub says while the node is cut off.
const AWAY: &str = "OTA upgrade is not allowed when node is disconnected to cloud";

/// Why nothing is done, and who is at fault.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    /// The cloud is away, and the caller does not want to wait.
    #[error("{AWAY}")]
    Away,
    /// The pod cannot be had; the cloud's word, or the node's.
    #[error("{0}")]
    Pod(String),
    /// It is not due.
    #[error("{0}")]
    NotDue(#[from] NotDue),
    /// There is no manifest to upgrade to.
    #[error("{0}")]
    Manifest(String),
    /// The owner says no.
    #[error("{0}")]
    Policy(String),
    /// There are too many upgrades already.
    #[error("{} upgrades are waiting or under way already", super::job::MOST_OPEN)]
    Full,
    /// It began, and came to an end at once.
    #[error("{0}")]
    Failed(String),
    /// There is no such upgrade.
    #[error("there is no upgrade {0:?}")]
    NoJob(String),
    /// It is too late, or too early, for this.
    #[error("upgrade {0} is {1}")]
    State(String, &'static str),
    /// The node does not know its pods.
    #[error("Get pod list failed")]
    NoPods,
    /// The cloud refuses.
    #[error("{0}")]
    Cloud(String),
}

impl Refusal {
    /// As OpenYurt's hub codes them.
    pub(crate) fn status(&self) -> StatusCode {
        match self {
            Self::Away => StatusCode::SERVICE_UNAVAILABLE,
            Self::NotDue(why) if why.is_bad_request() => StatusCode::BAD_REQUEST,
            Self::NotDue(_) | Self::Manifest(_) | Self::Policy(_) => StatusCode::FORBIDDEN,
            Self::Full => StatusCode::TOO_MANY_REQUESTS,
            Self::NoJob(_) => StatusCode::NOT_FOUND,
            Self::State(..) => StatusCode::CONFLICT,
            Self::Pod(_) | Self::Failed(_) | Self::NoPods | Self::Cloud(_) => {
                StatusCode::INTERNAL_SERVER_ERROR
            }
        }
    }

    /// For metrics.
    pub(crate) fn label(&self) -> &'static str {
        match self {
            Self::Away => "away",
            Self::Pod(_) => "no_pod",
            Self::NotDue(_) | Self::Manifest(_) => "not_due",
            Self::Policy(_) => "policy",
            Self::Full => "full",
            Self::Failed(_) => "failed",
            Self::NoJob(_) => "no_job",
            Self::State(..) => "state",
            Self::NoPods => "no_pods",
            Self::Cloud(_) => "cloud",
        }
    }
}

impl From<CloudError> for Refusal {
    fn from(error: CloudError) -> Self {
        match error {
            CloudError::Away => Self::Away,
            CloudError::Failed(why) => Self::Cloud(why),
        }
    }
}

/// What came of asking for an upgrade.
#[derive(Debug)]
pub(crate) enum Asked {
    /// The old pod is being replaced.
    Begun,
    /// It is kept, and waits; or there was one already.
    Kept(Box<Job>),
}

/// The node's pods as a PodList.
pub(crate) async fn pods(hub: &Arc<Hub>) -> Result<Value, Refusal> {
    let listed = |items: Vec<Value>, revision: Value| json!({"kind": "PodList", "apiVersion": "v1", "metadata": {"resourceVersion": revision}, "items": items});
    if hub.autonomous
        && let Some(query) = own_pods(&hub.node_name)
        && let Some(known) = hub.cache.list(&Caller::Node, &query)
    {
        let items = known
            .items
            .iter()
            .filter_map(|pod| pod.to_json_value().ok());
        let revision = known.resource_version.to_string();
        return Ok(listed(items.collect(), revision.into()));
    }
    let uri = format!(
        "/api/v1/pods?fieldSelector=spec.nodeName%3D{}",
        hub.node_name
    );
    match cloud::get(hub, &uri).await {
        Ok(mut answer) if answer.status == StatusCode::OK => {
            let items = answer.body.get_mut("items").map(Value::take);
            let items = items.and_then(|items| match items {
                Value::Array(items) => Some(items),
                _ => None,
            });
            let revision = answer.body.pointer("/metadata/resourceVersion").cloned();
            Ok(listed(
                items.unwrap_or_default(),
                revision.unwrap_or_default(),
            ))
        }
        _ => Err(Refusal::NoPods),
    }
}

pub(super) fn path_of(namespace: &str, pod: &str) -> String {
    format!("/api/v1/namespaces/{namespace}/pods/{pod}")
}

fn is_online(hub: &Hub) -> bool {
    hub.mode_of(&Caller::Node) == Mode::Online
}

/// The pod as the cloud has it.
async fn from_cloud(hub: &Hub, namespace: &str, pod: &str) -> Result<Value, Refusal> {
    match cloud::pod(hub, namespace, pod).await {
        Ok(Some(pod)) => Ok(pod),
        Ok(None) => Err(not_here(hub, pod)),
        Err(Asking::Refused(answer)) => Err(Refusal::Pod(answer.message())),
        Err(Asking::Failed(error)) => Err(error.into()),
    }
}

fn not_here(hub: &Hub, pod: &str) -> Refusal {
    Refusal::Pod(format!(
        "pods \"{pod}\" not found on node {}",
        hub.node_name
    ))
}

/// The pod as the node knows it.
fn from_cache(hub: &Hub, namespace: &str, pod: &str) -> Result<Value, Refusal> {
    let known = hub.cache.view(&Gvr::new("", "v1", "pods"), namespace, pod);
    known
        .and_then(|known| known.to_json_value().ok())
        .ok_or_else(|| not_here(hub, pod))
}

/// Asks for an upgrade of a pod. With `queue`, one that cannot begin while the cloud is away waits for it.
pub(crate) async fn upgrade(
    hub: &Arc<Hub>,
    asker: &Asker,
    (namespace, name): (&str, &str),
    queue: bool,
) -> Result<Asked, Refusal> {
    let ota = &hub.ota;
    if let Some(job) = ota.lock().of_pod(namespace, name) {
        return Ok(Asked::Kept(Box::new(job.clone())));
    }
    let found = if is_online(hub) {
        from_cloud(hub, namespace, name).await
    } else {
        Err(Refusal::Away)
    };
    let (pod, online) = match found {
        Err(Refusal::Away) if queue => (from_cache(hub, namespace, name)?, false),
        found => (found?, true),
    };
    let due = pod::examine(&pod, &hub.node_name)?;
    if online && due.kind == Kind::StaticPod {
        if manifest::set_of(name, &hub.node_name).is_none() {
            let why = format!(
                "static pod {name} is not named after node {}",
                hub.node_name
            );
            return Err(Refusal::Pod(why));
        }
        worker::wanted_manifest(hub, namespace, name)
            .await
            .map_err(|stop| match stop {
                Stop::Later(why) => Refusal::Cloud(why),
                Stop::Never(why) => Refusal::Manifest(why),
            })?;
    }
    let policy = ota.policy.current().map_err(Refusal::Policy)?;
    let confirmed = *asker == Asker::Socket;
    let wanted = Wanted {
        namespace,
        pod: name,
        confirmed,
    };
    let standing = Standing {
        online,
        under_way: ota.lock().count(State::is_under_way),
    };
    if let Decision::Refused { why } = decide(&policy, ota.now(), &wanted, &standing) {
        return Err(Refusal::Policy(why));
    }
    let job = new_job(hub, asker, (namespace, name), due);
    let mut changes = ota.changed.subscribe();
    let added = ota.lock().add(job);
    let job = match added {
        Ok(job) => job,
        // Somebody was quicker.
        Err(NotTaken::Has(job)) => return Ok(Asked::Kept(job)),
        Err(NotTaken::Full) => return Err(Refusal::Full),
    };
    if let Asker::User(user) = asker {
        ota.bearers()
            .insert(job.id.clone(), user.token().to_owned());
    }
    // Whoever is told that it is kept must be able to rely on it.
    if let Err(error) = ota.cache.flush().await {
        tracing::error!(%error, "an upgrade is not on the disk yet");
    }
    tracing::info!(job = job.id, pod = %format_args!("{namespace}/{name}"), by = job.asked_by, "an upgrade is asked for");
    ota.count();
    ota.changed.send_replace(());
    let settled = async {
        loop {
            match ota.get(&job.id) {
                Some(job) if matches!(job.state, State::Queued | State::Replacing) => {}
                settled => return settled,
            }
            if changes.changed().await.is_err() {
                return None;
            }
        }
    };
    let settled = tokio::time::timeout(BEGIN, settled).await.ok().flatten();
    match settled.or_else(|| ota.get(&job.id)) {
        Some(job) => match job.state {
            State::WaitingForPod | State::RollingBack | State::Done | State::RolledBack => {
                Ok(Asked::Begun)
            }
            State::Failed => Err(Refusal::Failed(job.reason)),
            _ => Ok(Asked::Kept(Box::new(job))),
        },
        None => Err(Refusal::NoJob(job.id)),
    }
}

fn new_job(hub: &Hub, asker: &Asker, (namespace, name): (&str, &str), due: Due) -> Job {
    let now = seconds(hub.ota.now());
    let unverified = match asker {
        // Without a name nobody can be asked about later: such a user was verified, or is not let in.
        Asker::User(user) if !user.verified => user.info().cloned(),
        _ => None,
    };
    Job {
        id: format!("{:012x}", fastrand::u64(..) >> 16),
        number: 0,
        version: 0,
        namespace: namespace.to_owned(),
        pod: name.to_owned(),
        uid: due.uid,
        kind: due.kind,
        owner: due.owner,
        revision: due.revision,
        asked_by: asker.told(),
        unverified,
        asked_at: now.clone(),
        confirmed: *asker == Asker::Socket,
        state: State::Queued,
        reason: String::new(),
        until: None,
        changed_at: now,
        new_pod: String::new(),
        before: None,
    }
}

/// Asks for the images of a pod's next revision: somebody in the cloud sees the condition and pulls them.
pub(crate) async fn pull(hub: &Arc<Hub>, namespace: &str, name: &str) -> Result<(), Refusal> {
    if !is_online(hub) {
        return Err(Refusal::Away);
    }
    let pod = from_cloud(hub, namespace, name).await?;
    let revision = pod::wants_images(&pod, &hub.node_name)?;
    let policy = hub.ota.policy.current().map_err(Refusal::Policy)?;
    if !policy.allows(namespace, name) {
        return Err(Refusal::Policy(not_allowed(namespace, name)));
    }
    let patch = pod::condition_patch(
        pod::uid(&pod),
        IMAGE,
        "False",
        "",
        &format!("{REVISION}{revision}"),
        &seconds(hub.ota.now()),
    );
    let uri = format!(
        "{}/status?fieldManager=yurthub-ota",
        path_of(namespace, name)
    );
    let answer = cloud::call(hub, &As::Node, Method::PATCH, &uri, STRATEGIC, Some(&patch)).await?;
    if !answer.status.is_success() {
        return Err(Refusal::Cloud(answer.message()));
    }
    hub.metrics.ota().pulled();
    tracing::info!(pod = %format_args!("{namespace}/{name}"), revision, "images are to be pulled");
    Ok(())
}

/// The owner says yes.
pub(crate) fn confirm(hub: &Hub, id: &str) -> Result<Job, Refusal> {
    let mut job = known(hub, id)?;
    if job.state != State::WaitingForConfirmation {
        return Err(Refusal::State(job.id, job.state.as_str()));
    }
    job.confirmed = true;
    job.turn(State::Queued, "", hub.ota.now());
    settle(hub, job)
}

/// Takes an upgrade back that did not begin.
pub(crate) fn cancel(hub: &Hub, id: &str, asker: &Asker) -> Result<Job, Refusal> {
    let mut job = known(hub, id)?;
    if job.state.is_over() || job.state.is_under_way() {
        return Err(Refusal::State(job.id, job.state.as_str()));
    }
    job.turn(
        State::Cancelled,
        format!("by {}", asker.told()),
        hub.ota.now(),
    );
    let job = settle(hub, job)?;
    hub.metrics.ota().ended(State::Cancelled.as_str());
    Ok(job)
}

/// One upgrade.
pub(crate) fn known(hub: &Hub, id: &str) -> Result<Job, Refusal> {
    let job = hub.ota.get(id);
    job.ok_or_else(|| Refusal::NoJob(id.chars().take(64).collect()))
}

fn settle(hub: &Hub, mut job: Job) -> Result<Job, Refusal> {
    if hub.ota.put(&mut job) {
        Ok(job)
    } else {
        known(hub, &job.id).and_then(|job| Err(Refusal::State(job.id, job.state.as_str())))
    }
}

/// All upgrades, and what the policy's file is at.
pub(crate) fn list(hub: &Hub) -> Value {
    let items: Vec<Value> = hub.ota.all().iter().map(Job::shown).collect();
    // Looks at the file, too.
    let error = match hub.ota.policy.current() {
        Ok(_) => hub.ota.policy.trouble(),
        Err(error) => Some(error),
    };
    json!({"items": items, "policy": {"usable": error.is_none(), "error": error}})
}
