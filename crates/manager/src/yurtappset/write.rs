//! Writes the workloads of a set: server-side apply under a name of its own, in batches that grow while the server keeps up.

use super::{
    child::{Child, Record, Size, fitted, inherited, scaled_by},
    plan::{Act, Place, Reason, scaling},
    render::{Owner, Rendered, name},
};
use crate::Context;
use jiff::Timestamp;
use serde_json::{Value, json};
use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, PoisonError},
};
use yurt_controller::{
    Collection, Failure, Key, batch,
    collections::{DEPLOYMENTS, STATEFUL_SETS},
    kube::KubeError,
};

/// The most writes at once.
const AT_ONCE: usize = 16;
/// Workloads that are remembered as settled; beyond this all are looked at again.
const REMEMBERED: usize = 20_000;

/// Why a write failed.
#[derive(Clone, Debug)]
pub(crate) enum Trouble {
    /// The set asks for something that cannot be; to try again is of no use.
    Invalid(String),
    /// Not allowed now: quota, rights, an admission webhook.
    Refused(String),
    /// Another wrote at the same time.
    Conflict(Arc<KubeError>),
    /// The API server has trouble.
    Server(Arc<KubeError>),
}

impl Trouble {
    fn of(error: KubeError) -> Self {
        // An unknown field in a configuration that is applied is a bad request by what it says only.
        let is_untyped = error
            .message()
            .contains("failed to create typed patch object");
        match error.code() {
            Some(_) if is_untyped => Self::Invalid(error.message()),
            Some(400 | 415 | 422) => Self::Invalid(error.message()),
            Some(409) => Self::Conflict(Arc::new(error)),
            Some(403..=405) => Self::Refused(error.message()),
            _ => Self::Server(Arc::new(error)),
        }
    }

    /// For people. It says the same of the same trouble.
    pub(crate) fn message(&self) -> String {
        match self {
            Self::Invalid(message) | Self::Refused(message) => message.clone(),
            Self::Conflict(error) | Self::Server(error) => error.message(),
        }
    }
}

impl From<Trouble> for Failure {
    fn from(trouble: Trouble) -> Self {
        match trouble {
            Trouble::Conflict(error) | Trouble::Server(error) => match Arc::try_unwrap(error) {
                Ok(error) => Self::Kube(error),
                Err(error) => Self::Object(error.to_string()),
            },
            Trouble::Invalid(message) | Trouble::Refused(message) => Self::Object(message),
        }
    }
}

/// What became of one write.
#[derive(Debug)]
pub(crate) enum Done {
    /// There was nothing to write, or it is gone.
    Nothing,
    /// The workload as it is now.
    Written(Arc<Value>),
    /// Not tried: the server has trouble.
    Postponed,
    /// It failed.
    Failed(Trouble),
}

/// Writes workloads.
#[derive(Debug)]
pub(crate) struct Writer {
    manager: &'static str,
    /// By UID: the generation of a workload at which the server found no difference of its spec to what is rendered, and what that
    /// was.
    settled: Mutex<HashMap<String, (i64, String)>>,
}

impl Writer {
    /// Writes under the name of a field manager.
    pub(crate) fn new(manager: &'static str) -> Self {
        Self {
            manager,
            settled: Mutex::default(),
        }
    }

    /// Whether the server found no difference of the spec, however it looks here (quantities, say, are written in many ways).
    pub(crate) fn is_settled(&self, child: &Child, rendered: &Rendered) -> bool {
        let settled = self.settled.lock().unwrap_or_else(PoisonError::into_inner);
        settled.get(child.uid()).is_some_and(|(generation, whole)| {
            *generation == child.generation() && *whole == rendered.whole
        })
    }

    fn remember(&self, object: &Value, rendered: &Rendered) {
        let metadata = &object["metadata"];
        let (Some(uid), Some(generation)) =
            (metadata["uid"].as_str(), metadata["generation"].as_i64())
        else {
            return;
        };
        let mut settled = self.settled.lock().unwrap_or_else(PoisonError::into_inner);
        if settled.len() >= REMEMBERED {
            settled.clear();
        }
        settled.insert(uid.to_owned(), (generation, rendered.whole.clone()));
    }

    /// Deletes workloads with what they made.
    pub(crate) async fn delete(&self, context: &Context, going: &[(Child, Reason)]) -> Vec<Done> {
        batched(going.len(), |i| async move {
            let (child, _) = going.get(i)?;
            let options = json!({"propagationPolicy": "Background"});
            let deleted = context
                .delete_with(&collection(child.kind), &child.object, &options)
                .await;
            Some(deleted.map(|()| Done::Nothing))
        })
        .await
    }

    /// Does what is to be done in each place, last in the pools that `failed` before.
    #[allow(clippy::too_many_arguments)]
    pub(crate) async fn write(
        &self,
        context: &Context,
        kind: &str,
        owner: &Owner,
        places: &[Place],
        acts: &[Act],
        failed: &BTreeSet<&str>,
        revision: &str,
        now: Timestamp,
    ) -> Vec<Done> {
        let of = &collection(kind);
        let mut done: Vec<Done> = places.iter().map(|_| Done::Nothing).collect();
        let mut to_do: Vec<(usize, &Place, Act)> = places
            .iter()
            .zip(acts)
            .enumerate()
            .filter(|(_, (_, act))| matches!(act, Act::Create | Act::Update | Act::Scale(_)))
            .map(|(i, (place, act))| (i, place, *act))
            .collect();
        // What failed before does not keep others from being tried.
        to_do.sort_by_key(|(_, place, _)| failed.contains(&*place.pool.name));
        let results = batched(to_do.len(), |i| {
            let item = to_do.get(i).copied();
            async move {
                let (_, place, act) = item?;
                let rendered = place.rendered.as_ref().ok()?;
                let written = match (act, &place.child) {
                    (Act::Create, _) => {
                        self.create(context, of, owner, &place.pool.name, rendered, revision)
                            .await
                    }
                    (Act::Update, Some(child)) => {
                        self.update(context, of, child, rendered, revision, now)
                            .await
                    }
                    (Act::Scale(replicas), Some(child)) => {
                        let patch = scaling(child.record.as_ref()?, replicas);
                        context.merge(of, &Key::of(&child.object), "", &patch).await
                    }
                    _ => return None,
                };
                Some(written.map(Done::Written))
            }
        })
        .await;
        for ((i, ..), result) in to_do.iter().zip(results) {
            if let Some(done) = done.get_mut(*i) {
                *done = result;
            }
        }
        done
    }

    /// Makes a workload. Its name is a function of set and pool, so that nothing is made twice; what somebody else has under that
    /// name is not taken over by force.
    async fn create(
        &self,
        context: &Context,
        of: &Collection,
        owner: &Owner,
        pool: &str,
        rendered: &Rendered,
        revision: &str,
    ) -> Result<Arc<Value>, KubeError> {
        let record = Record {
            workload: rendered.workload.clone(),
            template: rendered.template.clone(),
            revision: revision.to_owned(),
            replicas: rendered.replicas,
            ..Record::default()
        };
        let mut object = rendered.object.clone();
        if let Some(replicas) = rendered.replicas {
            object["spec"]["replicas"] = replicas.into();
        }
        let name = name(owner, pool, &of.kind);
        let object = Rendered::finish(object, &name, &record);
        let created = context.apply(of, object, self.manager, false).await?;
        self.remember(&created, rendered);
        Ok(created)
    }

    /// Applies what is rendered to a workload that exists. Its pods keep the revision that they carry unless something else of
    /// their template changes, which the server is asked where the record does not say it.
    async fn update(
        &self,
        context: &Context,
        of: &Collection,
        child: &Child,
        rendered: &Rendered,
        revision: &str,
        now: Timestamp,
    ) -> Result<Arc<Value>, KubeError> {
        let path = of.object_path(&Key::of(&child.object));
        let size = child.size(rendered.replicas);
        let mut live = child.object.clone();
        if child.record.is_none() || size == Size::Contested {
            // Who owns which field is not in the cache.
            let mut fresh = context.kube().get(&path).await?;
            if child.record.is_none()
                && let Some(fields) = inherited(&fresh, self.manager)
            {
                let patch = json!([
                    {"op": "replace", "path": "/metadata/managedFields", "value": fields},
                    {"op": "replace", "path": "/metadata/resourceVersion", "value": fresh["metadata"]["resourceVersion"]},
                ]);
                fresh = context.kube().json_patch(&path, &patch).await?;
            }
            live = Arc::new(fresh);
        }
        let known = child.record.clone().unwrap_or_default();
        let scaled = match size {
            Size::Contested => scaled_by(&live),
            Size::Theirs(_) => known.scaled.clone(),
            Size::Ours(_) | Size::Unsaid => None,
        };
        let replicas = match (size, &scaled) {
            (Size::Contested, None) => rendered.replicas,
            (Size::Contested, Some(_)) => live["spec"]["replicas"].as_i64(),
            (Size::Ours(replicas) | Size::Theirs(replicas), _) => Some(replicas),
            (Size::Unsaid, _) => None,
        };
        let record = |revision: &str, since| Record {
            workload: rendered.workload.clone(),
            template: rendered.template.clone(),
            revision: revision.to_owned(),
            replicas: rendered.replicas,
            scaled: scaled.clone(),
            since,
        };
        let config = |keep_pods: bool, record: &Record| {
            let mut object = fitted(rendered, &live, keep_pods);
            if let Some(replicas) = replicas {
                object["spec"]["replicas"] = replicas.into();
            }
            if Some(replicas) != Some(rendered.replicas) {
                // Not to set back what was scaled meanwhile.
                object["metadata"]["resourceVersion"] = live["metadata"]["resourceVersion"].clone();
            }
            Rendered::finish(object, child.name(), record)
        };
        let mut object = None;
        if child.record.is_some() && known.template == rendered.template {
            object = Some(config(true, &record(&known.revision, known.since)));
        } else if let Some(carried) = child.revision() {
            let kept = config(true, &record(carried, known.since));
            let tried = context.kube().try_apply(&path, &kept, self.manager).await?;
            if tried["spec"]["template"] == live["spec"]["template"] {
                object = Some(kept);
            }
        }
        let object =
            object.unwrap_or_else(|| config(false, &record(revision, Some(now.as_second()))));
        let written = context.apply(of, object, self.manager, true).await?;
        self.remember(&written, rendered);
        Ok(written)
    }
}

fn collection(kind: &str) -> Collection {
    match kind {
        "StatefulSet" => STATEFUL_SETS,
        _ => DEPLOYMENTS,
    }
}

/// Does things in batches that double while the server keeps up. What is wrong with one does not keep the others; when the server
/// has trouble, the rest is not tried.
async fn batched<F>(count: usize, mut start: impl FnMut(usize) -> F) -> Vec<Done>
where
    F: Future<Output = Option<Result<Done, KubeError>>>,
{
    let mut done: Vec<Done> = Vec::with_capacity(count);
    let (mut size, mut stopped) = (1, false);
    while done.len() < count {
        if stopped {
            done.push(Done::Postponed);
            continue;
        }
        let batch = done.len()..count.min(done.len() + size);
        for result in batch::all(batch.map(&mut start).collect()).await {
            done.push(match result {
                None => Done::Nothing,
                Some(Ok(done)) => done,
                Some(Err(error)) => {
                    let trouble = Trouble::of(error);
                    stopped |= matches!(trouble, Trouble::Server(_));
                    Done::Failed(trouble)
                }
            });
        }
        size = (size * 2).min(AT_ONCE);
    }
    done
}
