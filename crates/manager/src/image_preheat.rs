//! `image-preheat-controller` of OpenYurt: pulls the images of a daemon's new template to its node, by a Job there, when the owner of
//! the node asked for it (`imagepull` sets the pod's condition `PodImageReady` to `False`), and says in that condition how it went.
//!
//! A few nodes at a time per DaemonSet; what fails is tried again, ever later, and a few times only.

mod pulls;

use crate::{
    Context, Controller, Entry, Failure, Key, Next, Watch,
    collections::{DAEMON_SETS, JOBS, PODS},
    condition, controller_of,
    fields::{items, text},
    pod,
};
use jiff::Timestamp;
use pulls::{Pull, Step};
use serde_json::{Value, json};
use std::{collections::BTreeMap, sync::Arc};
use yurt_api::names::{
    annotations::ATTEMPT,
    conditions::{POD_IMAGE_READY, POD_NEED_UPGRADE, REVISION_PREFIX},
    labels::IMAGE_PULL,
    objects::IMAGE_PULL_JOB_PREFIX,
};
use yurt_controller::{Objects, Scope, policy::Rule, template_hash};

const PULLED: &str = "PullImageSuccess";
const FAILED: &str = "PullImageFail";
/// The longest name of a job: its pods carry it as a label.
const LONGEST_NAME: usize = 63;
/// How long a job's pulls may take, in seconds.
const LONGEST_PULL: u32 = 600;
/// How long a job is kept after its end, in seconds: longer than the pause before another try, which is counted by it.
const KEPT: u32 = 300;

pub(crate) const ENTRY: Entry = Entry::of::<ImagePreheat>(
    "imagepreheat",
    &[
        Rule::new("batch", &["jobs"], &["create", "delete"]),
        // To name the pod as owner that keeps it from being deleted first.
        Rule::new("", &["pods/finalizers"], &["update"]),
        Rule::new("", &["pods/status"], &["patch"]),
        Rule::new("", &["events"], &["create"]),
    ],
);

/// `image-preheat-controller`. Its keys are daemon sets.
#[derive(Debug, Default)]
pub(crate) struct ImagePreheat;

/// The jobs of this controller.
fn jobs() -> Scope {
    Scope::default().labelled(&format!("{IMAGE_PULL}=true"))
}

/// The hash of the template whose images the owner of the node asked for. What failed is tried again when the owner asks again, which
/// takes the reason away.
fn wanted(p: &Value) -> Option<&str> {
    let image = condition::find(&p["status"], POD_IMAGE_READY)?;
    let upgrade = condition::find(&p["status"], POD_NEED_UPGRADE)?;
    let asked = image["status"] == "False"
        && image["reason"] != FAILED
        && upgrade["status"] == "True"
        && image["message"] == upgrade["message"];
    let message = image["message"]
        .as_str()
        .filter(|_| asked && pod::is_active(p))?;
    message
        .strip_prefix(REVISION_PREFIX)
        .filter(|hash| !hash.is_empty())
}

/// The name of a job. A long name of a pod is cut: a hash of it all and its end, which tells pods apart, are left.
fn job_name(p: &Value, hash: &str, attempt: u32) -> String {
    let name = p["metadata"]["name"].as_str().unwrap_or_default();
    let again = match attempt {
        1 => String::new(),
        attempt => format!("-{attempt}"),
    };
    let room =
        LONGEST_NAME.saturating_sub(IMAGE_PULL_JOB_PREFIX.len() + hash.len() + again.len() + 1);
    if name.len() <= room {
        return format!("{IMAGE_PULL_JOB_PREFIX}{name}-{hash}{again}");
    }
    let whole = template_hash::of(&name.into(), None);
    let from = name
        .len()
        .saturating_sub(room.saturating_sub(whole.len() + 1));
    let tail = name.get(from..).unwrap_or_default();
    let tail = tail.trim_start_matches(['-', '.']);
    format!("{IMAGE_PULL_JOB_PREFIX}{whole}-{tail}-{hash}{again}")
}

/// A job that makes a container of every image of a template on a pod's node. Pure.
fn job(p: &Value, template: &Value, hash: &str, attempt: u32) -> Value {
    let containers = |of: &str, name: &str| -> Vec<Value> {
        let images = items(&template["spec"][of]).map(|c| &c["image"]);
        images
            .enumerate()
            .map(|(at, image)| {
                json!({"name": format!("{name}{at}"), "image": image, "imagePullPolicy": "Always", "command": ["true"]})
            })
            .collect()
    };
    let mut all = containers("containers", "prepull-");
    all.extend(containers("initContainers", "prepull-init-"));
    // A container whose image has no `true` ends at once; it is not started again, and its pod stays to be looked at.
    let mut spec = json!({"nodeName": p["spec"]["nodeName"], "restartPolicy": "Never", "containers": all,
        "automountServiceAccountToken": false, "enableServiceLinks": false, "terminationGracePeriodSeconds": 0,
        // The node may be tainted as the daemon's is.
        "tolerations": [{"operator": "Exists"}]});
    // The account has secrets for registries, too.
    for field in ["imagePullSecrets", "serviceAccountName"] {
        if let Some(value) = template["spec"].get(field) {
            spec[field] = value.clone();
        }
    }
    let mark = json!({"labels": {IMAGE_PULL: "true"}});
    json!({
        "metadata": {"name": job_name(p, hash, attempt), "namespace": p["metadata"]["namespace"], "labels": mark["labels"],
            "annotations": {ATTEMPT: attempt.to_string()}, "ownerReferences": [
            {"apiVersion": PODS.api_version, "kind": PODS.kind, "name": p["metadata"]["name"], "uid": p["metadata"]["uid"],
                "controller": true, "blockOwnerDeletion": true}]},
        "spec": {"backoffLimit": 0, "activeDeadlineSeconds": LONGEST_PULL, "ttlSecondsAfterFinished": KEPT,
            "template": {"metadata": mark, "spec": spec}},
    })
}

/// The last job of a pod for a hash, and how it goes.
fn last_job(
    p: &Value,
    hash: &str,
    jobs: &Objects,
    pods: &Objects,
) -> Option<(Arc<Value>, u32, Pull)> {
    let uid = p["metadata"]["uid"].as_str().unwrap_or_default();
    let namespace = text(&p["metadata"]["namespace"]);
    let tries = (1..=pulls::MOST_TRIES).rev();
    let named =
        tries.filter_map(|attempt| jobs.get(&Key::new(&namespace, &job_name(p, hash, attempt))));
    let job = named.into_iter().find(|job| {
        controller_of(job).is_some_and(|owner| owner["uid"] == uid) && !pod::is_deleting(job)
    })?;
    let made = pods.owned_by(job["metadata"]["uid"].as_str().unwrap_or_default());
    let pull = pulls::outcome(&job, &made);
    Some((job.clone(), pulls::attempt(&job), pull))
}

/// Says how it went. What is gone, or of another uid, needs no word.
async fn tell(
    context: &Context,
    p: &Value,
    hash: &str,
    status: &str,
    reason: &str,
) -> Result<(), Failure> {
    let message = format!("{REVISION_PREFIX}{hash}");
    let condition = condition::new(POD_IMAGE_READY, status, reason, &message, Timestamp::now());
    let patch =
        json!({"metadata": {"uid": p["metadata"]["uid"]}, "status": {"conditions": [condition]}});
    match context.patch(&PODS, &Key::of(p), "status", &patch).await {
        Err(error) if !matches!(error.code(), Some(404 | 409 | 422)) => Err(error.into()),
        _ => Ok(()),
    }
}

impl Controller for ImagePreheat {
    const NAME: &'static str = "image-preheat-controller";
    const WORKERS: usize = 1;

    fn watches(&self, context: &Arc<Context>) -> Vec<Watch> {
        let set_of = |p: &Value| {
            let owner =
                controller_of(p).filter(|owner| owner["kind"] == DAEMON_SETS.kind.as_ref())?;
            Some(Key::new(
                p["metadata"]["namespace"].as_str()?,
                owner["name"].as_str()?,
            ))
        };
        let (pods, all_jobs) = (context.objects(&PODS), context.scoped(&JOBS, &jobs()));
        let of_job = move |job: &Value| {
            let owner = controller_of(job)?;
            let key = Key::new(
                job["metadata"]["namespace"].as_str()?,
                owner["name"].as_str()?,
            );
            set_of(&*pods.get(&key)?)
        };
        let owner_of_job = of_job.clone();
        let asked = Watch::of(PODS, move |change| {
            let any = change.new.as_deref().or(change.old.as_deref());
            let Some(p) = any else {
                return Vec::new();
            };
            if p["metadata"]["labels"][IMAGE_PULL] == "true" {
                let job = controller_of(p).and_then(|owner| {
                    all_jobs.get(&Key::new(&change.key().namespace, owner["name"].as_str()?))
                });
                return job.and_then(|job| of_job(&job)).into_iter().collect();
            }
            let wants = wanted(p).is_some()
                || change
                    .old
                    .as_deref()
                    .is_some_and(|old| wanted(old).is_some());
            wants.then(|| set_of(p)).flatten().into_iter().collect()
        });
        let jobs_of = Watch::of(JOBS, move |change| {
            let any = change.new.as_deref().or(change.old.as_deref());
            any.and_then(&owner_of_job).into_iter().collect()
        });
        vec![
            asked,
            jobs_of.scoped(jobs()),
            Watch::of(DAEMON_SETS, |_| Vec::new()),
        ]
    }

    async fn reconcile(&self, key: &Key, context: &Context) -> Result<Next, Failure> {
        let Some(set) = context.objects(&DAEMON_SETS).get(key) else {
            return Ok(Next::Done);
        };
        let uid = set["metadata"]["uid"].as_str().unwrap_or_default();
        let (pods, jobs) = (context.objects(&PODS), context.scoped(&JOBS, &jobs()));
        let mut of_set = pods.owned_by(uid);
        of_set.retain(|p| {
            controller_of(p).is_some_and(|owner| owner["uid"] == uid) && wanted(p).is_some()
        });
        let mut last: BTreeMap<&str, Arc<Value>> = BTreeMap::new();
        let mut wanting = BTreeMap::new();
        let mut by_name = BTreeMap::new();
        for p in &of_set {
            let (Some(hash), Some(name)) = (wanted(p), p["metadata"]["name"].as_str()) else {
                continue;
            };
            let known = last_job(p, hash, &jobs, &pods).map(|(job, attempt, pull)| {
                last.insert(name, job);
                (attempt, pull)
            });
            wanting.insert(name, known);
            by_name.insert(name, (p, hash));
        }
        let (steps, next) = pulls::plan(&wanting, pulls::at_once(&set), Timestamp::now());
        let mut failed = None;
        for (name, step) in steps {
            let Some((p, hash)) = by_name.get(name) else {
                continue;
            };
            let done = match step {
                Step::Start(attempt) => {
                    let job = job(p, &set["spec"]["template"], hash, attempt);
                    match context.create(&JOBS, job).await {
                        // It is there already.
                        Err(error) if error.code() != Some(409) => Err(error.into()),
                        _ => Ok(()),
                    }
                }
                Step::Succeed => tell(context, p, hash, "True", PULLED).await,
                Step::GiveUp(why) => {
                    context.event(Self::NAME, p, "Warning", FAILED, &why);
                    tell(context, p, hash, "False", FAILED).await
                }
            };
            // A container that cannot run is not to be seen by people any longer than it takes.
            let settled = !matches!(wanting.get(name), Some(Some((_, Pull::Running)) | None));
            if let Some(job) = last.get(name).filter(|_| settled && done.is_ok()) {
                let options = json!({"propagationPolicy": "Background"});
                if let Err(error) = context.delete_with(&JOBS, job, &options).await {
                    failed = Some(error.into());
                }
            }
            failed = done.err().or(failed);
        }
        match failed {
            Some(error) => Err(error),
            None => Ok(next.map_or(Next::Done, Next::After)),
        }
    }
}

#[cfg(test)]
mod tests;
