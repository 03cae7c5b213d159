//! `image-preheat-controller` of OpenYurt: pulls the images of a daemon's new template to its node, by a Job there, when the owner of
//! the node asked for it (`imagepull` sets the pod's condition `PodImageReady` to `False`), and says in that condition how it went.

use crate::{
    Context, Controller, Entry, Failure, Key, Next, Watch,
    collections::{DAEMON_SETS, JOBS, PODS},
    condition, controller_of,
    fields::items,
    pod,
};
use jiff::Timestamp;
use serde_json::{Value, json};
use std::sync::Arc;
use yurt_api::names::conditions::{
    POD_IMAGE_READY as IMAGE_READY, POD_NEED_UPGRADE as NEEDS_UPGRADE,
    REVISION_PREFIX as HASH_PREFIX,
};
use yurt_controller::policy::Rule;

const PULLED: &str = "PullImageSuccess";
const FAILED: &str = "PullImageFail";
/// Before the pod's name in that of the job.
const PREFIX: &str = "image-pre-pull-";
/// The longest name of a job: its pods carry it as a label.
const LONGEST_NAME: usize = 63;

pub(crate) const ENTRY: Entry = Entry::of::<ImagePreheat>(
    "imagepreheat",
    &[
        Rule::new("batch", &["jobs"], &["create"]),
        Rule::new("", &["pods/status"], &["patch"]),
    ],
);

/// `image-preheat-controller`.
#[derive(Debug, Default)]
pub(crate) struct ImagePreheat;

/// The hash of the template whose images the owner of the node asked for.
fn wanted(p: &Value) -> Option<&str> {
    let hash = |condition: &'_ Value| condition["message"].as_str().map(str::to_owned);
    let image = condition::find(&p["status"], IMAGE_READY)?;
    let upgrade = condition::find(&p["status"], NEEDS_UPGRADE)?;
    let asked =
        image["status"] == "False" && upgrade["status"] == "True" && hash(image) == hash(upgrade);
    image["message"]
        .as_str()?
        .strip_prefix(HASH_PREFIX)
        .filter(|_| asked)
}

/// The name of the job. A long name of a pod is cut in its middle part: the end tells pods apart.
fn job_name(p: &Value, hash: &str) -> String {
    let name = p["metadata"]["name"].as_str().unwrap_or_default();
    let room = LONGEST_NAME.saturating_sub(PREFIX.len() + hash.len() + 1);
    let from = name.len().saturating_sub(room);
    let tail = name
        .get(from..)
        .unwrap_or(name)
        .trim_start_matches(['-', '.']);
    format!("{PREFIX}{tail}-{hash}")
}

/// A job that runs every image of a template once on a pod's node, doing nothing. Pure.
fn job(p: &Value, template: &Value, hash: &str) -> Value {
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
    let mut spec = json!({"nodeName": p["spec"]["nodeName"], "restartPolicy": "OnFailure", "containers": all,
        // The node may be tainted as the daemon's is.
        "tolerations": [{"operator": "Exists"}]});
    if let Some(secrets) = template["spec"].get("imagePullSecrets") {
        spec["imagePullSecrets"] = secrets.clone();
    }
    json!({
        "metadata": {"name": job_name(p, hash), "namespace": p["metadata"]["namespace"], "ownerReferences": [
            {"apiVersion": PODS.api_version, "kind": PODS.kind, "name": p["metadata"]["name"], "uid": p["metadata"]["uid"],
                "controller": true, "blockOwnerDeletion": true}]},
        "spec": {"backoffLimit": 1, "activeDeadlineSeconds": 600, "ttlSecondsAfterFinished": 30, "template": {"spec": spec}},
    })
}

/// How a job ended: the condition's status and reason.
fn outcome(job: &Value) -> Option<(&'static str, &'static str)> {
    if condition::holds(&job["status"], "Complete") {
        Some(("True", PULLED))
    } else if condition::holds(&job["status"], "Failed") {
        Some(("False", FAILED))
    } else {
        None
    }
}

impl Controller for ImagePreheat {
    const NAME: &'static str = "image-preheat-controller";

    fn watches(&self, _: &Arc<Context>) -> Vec<Watch> {
        let pods = Watch::of(PODS, |change| {
            let asked = change.new.as_deref().filter(|p| wanted(p).is_some());
            asked.map(Key::of).into_iter().collect()
        });
        vec![
            pods,
            Watch::owned(JOBS, "Pod"),
            Watch::of(DAEMON_SETS, |_| Vec::new()),
        ]
    }

    async fn reconcile(&self, key: &Key, context: &Context) -> Result<Next, Failure> {
        let Some(p) = context
            .objects(&PODS)
            .get(key)
            .filter(|p| pod::is_active(p))
        else {
            return Ok(Next::Done);
        };
        let (Some(hash), Some(owner)) = (wanted(&p), controller_of(&p)) else {
            return Ok(Next::Done);
        };
        // What failed is tried again when the owner asks again, which takes the reason away.
        if condition::find(&p["status"], IMAGE_READY).is_some_and(|c| c["reason"] == FAILED) {
            return Ok(Next::Done);
        }
        let set = Key::new(&key.namespace, owner["name"].as_str().unwrap_or_default());
        let set = context.objects(&DAEMON_SETS).get(&set);
        let Some(set) = set.filter(|set| set["metadata"]["uid"] == owner["uid"]) else {
            return Ok(Next::Done);
        };
        let job_key = Key::new(&key.namespace, &job_name(&p, hash));
        let Some(running) = context.objects(&JOBS).get(&job_key) else {
            let job = job(&p, &set["spec"]["template"], hash);
            match context.create(&JOBS, job).await {
                Err(error) if error.code() != Some(409) => return Err(error.into()),
                _ => return Ok(Next::Done),
            }
        };
        if let Some((status, reason)) = outcome(&running) {
            let message = format!("{HASH_PREFIX}{hash}");
            let condition = condition::new(IMAGE_READY, status, reason, &message, Timestamp::now());
            let patch = json!({"metadata": {"uid": p["metadata"]["uid"]}, "status": {"conditions": [condition]}});
            context.patch(&PODS, key, "status", &patch).await?;
        }
        Ok(Next::Done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stage::Stage;

    fn asking(name: &str) -> Value {
        json!({"metadata": {"name": name, "namespace": "default", "uid": "u"}, "spec": {"nodeName": "n"}, "status": {"conditions": [
            {"type": IMAGE_READY, "status": "False", "message": "controllerrevision: h"},
            {"type": NEEDS_UPGRADE, "status": "True", "message": "controllerrevision: h"}]}})
    }

    #[test]
    fn images_are_wanted_for_the_present_template_only() {
        let mut p = asking("d-x");
        assert_eq!(wanted(&p), Some("h"));
        p["status"]["conditions"][1]["message"] = "controllerrevision: newer".into();
        assert_eq!(wanted(&p), None);
        p = asking("d-x");
        p["status"]["conditions"][0]["status"] = "True".into();
        assert_eq!(wanted(&p), None);
    }

    #[test]
    fn a_job_pulls_every_image_on_the_node() {
        let template = json!({"spec": {"containers": [{"image": "a"}, {"image": "b"}], "initContainers": [{"image": "c"}]}});
        let job = job(&asking("d-x"), &template, "h");
        assert_eq!(job["metadata"]["name"], "image-pre-pull-d-x-h");
        let containers = &job["spec"]["template"]["spec"]["containers"];
        let images: Vec<_> = items(containers)
            .map(|c| (&c["name"], &c["image"]))
            .collect();
        assert_eq!(
            json!(images),
            json!([
                ["prepull-0", "a"],
                ["prepull-1", "b"],
                ["prepull-init-0", "c"]
            ])
        );
        let long = job_name(&asking(&format!("{}-abcde", "d".repeat(80))), "h");
        assert!(
            long.len() <= LONGEST_NAME && long.ends_with("-abcde-h"),
            "{long}"
        );
    }

    #[tokio::test]
    async fn the_condition_tells_how_the_pull_went() {
        let stage = Stage::start(
            "daemonset-controller,daemon-pod-updater-controller,image-preheat-controller",
        )
        .await;
        stage
            .create("/api/v1/nodes", json!({"metadata": {"name": "n"}}))
            .await;
        let sets = "/apis/apps/v1/namespaces/default/daemonsets";
        let template = |image: &str| json!({"metadata": {"labels": {"app": "d"}}, "spec": {"containers": [{"name": "c", "image": image}]}});
        stage.create(sets, json!({"metadata": {"name": "d", "annotations": {"apps.openyurt.io/update-strategy": "OTA"}}, "spec": {
            "selector": {"matchLabels": {"app": "d"}}, "updateStrategy": {"type": "OnDelete"}, "template": template("i:1")}})).await;
        let pods = "/api/v1/namespaces/default/pods";
        let condition_of = |p: &Value, kind: &str| {
            condition::find(&p["status"], kind)
                .cloned()
                .unwrap_or_default()
        };
        stage
            .until(pods, |list| {
                condition_of(&list["items"][0], NEEDS_UPGRADE)["status"] == "False"
            })
            .await;
        stage
            .kube
            .merge(
                &format!("{sets}/d"),
                &json!({"spec": {"template": template("i:2")}}),
            )
            .await
            .expect("changed");
        let list = stage
            .until(pods, |list| {
                condition_of(&list["items"][0], NEEDS_UPGRADE)["status"] == "True"
            })
            .await;
        let p = format!(
            "{pods}/{}",
            list["items"][0]["metadata"]["name"]
                .as_str()
                .expect("a name")
        );
        let message = condition_of(&list["items"][0], NEEDS_UPGRADE)["message"].clone();
        let asked = json!({"status": {"conditions": [{"type": IMAGE_READY, "status": "False", "message": message}]}});
        stage
            .kube
            .strategic(&format!("{p}/status"), &asked)
            .await
            .expect("asked");
        let jobs = "/apis/batch/v1/namespaces/default/jobs";
        let list = stage
            .until(jobs, |list| {
                list["items"].as_array().is_some_and(|jobs| jobs.len() == 1)
            })
            .await;
        let job = &list["items"][0];
        assert_eq!(
            job["spec"]["template"]["spec"]["containers"][0]["image"],
            "i:2"
        );
        let name = job["metadata"]["name"].as_str().expect("a name");
        let done = json!({"status": {"startTime": "2026-01-01T00:00:00Z", "completionTime": "2026-01-01T00:00:01Z", "succeeded": 1, "conditions": [
            {"type": "SuccessCriteriaMet", "status": "True", "lastTransitionTime": "2026-01-01T00:00:01Z"},
            {"type": "Complete", "status": "True", "lastTransitionTime": "2026-01-01T00:00:01Z"}]}});
        stage
            .kube
            .merge(&format!("{jobs}/{name}/status"), &done)
            .await
            .expect("done");
        let p = stage
            .until(&p, |p| condition_of(p, IMAGE_READY)["status"] == "True")
            .await;
        assert_eq!(condition_of(&p, IMAGE_READY)["reason"], PULLED);
        assert_eq!(condition_of(&p, IMAGE_READY)["message"], message);
    }
}
