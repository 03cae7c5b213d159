//! The controllers on an API server, with Kubernetes' own beside them and a kubelet that starts what can start.

mod daemon;
mod lifecycle;
mod rollouts;
mod takeover;
mod trouble;

use crate::stage::Stage;
use serde_json::{Value, json};
use std::time::Duration;
use tokio_util::sync::{CancellationToken, DropGuard};
use yurt_api::names::labels;
use yurt_controller::{
    collections::{DEPLOYMENTS, NODE_POOLS, STATEFUL_SETS, YURT_APP_SETS},
    condition,
    kube::Kube,
};

const CONTROLLERS: &str = "yurt-app-set-controller,yurt-app-daemon-controller,deployment-controller,replicaset-controller,statefulset-controller,garbage-collector-controller";

fn path(collection: &yurt_controller::Collection, name: &str) -> String {
    let path = collection.path("default");
    if name.is_empty() {
        path
    } else {
        format!("{path}/{name}")
    }
}

fn sets(name: &str) -> String {
    path(&YURT_APP_SETS, name)
}

/// A template whose pods have one container.
fn template(image: &str) -> Value {
    json!({"metadata": {"labels": {"app": "web"}}, "spec": {"replicas": 2, "selector": {"matchLabels": {"app": "web"}},
        "template": {"metadata": {"labels": {"app": "web"}}, "spec": {
            "containers": [{"name": "web", "image": image, "resources": {"requests": {"cpu": "1000m"}}}]}}}})
}

/// A set `web` with a template of deployments and more.
fn set(more: &Value, tweaks: &Value) -> Value {
    let mut spec = json!({"nodepoolSelector": {}, "workload": {
        "workloadTemplate": {"deploymentTemplate": template("web:1")}, "workloadTweaks": tweaks}});
    for (field, value) in more.as_object().into_iter().flatten() {
        spec[field] = value.clone();
    }
    json!({"metadata": {"name": "web"}, "spec": spec})
}

/// The workload of a pool.
fn of_pool<'l>(list: &'l Value, pool: &str) -> Option<&'l Value> {
    let items = list["items"].as_array()?;
    items
        .iter()
        .find(|item| item["metadata"]["annotations"]["apps.openyurt.io/ref-nodepool"] == pool)
}

fn count(list: &Value) -> usize {
    list["items"].as_array().map_or(0, Vec::len)
}

fn image(workload: &Value) -> &str {
    workload["spec"]["template"]["spec"]["containers"][0]["image"]
        .as_str()
        .unwrap_or_default()
}

fn revision(workload: &Value) -> &Value {
    &workload["spec"]["template"]["metadata"]["labels"][labels::CONTROLLER_REVISION_HASH]
}

fn name(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap_or_default()
}

fn phase<'s>(set: &'s Value, pool: &str) -> &'s str {
    let pools = set["status"]["pools"].as_array().into_iter().flatten();
    let mut of_pool = pools.filter(|p| p["pool"] == pool);
    of_pool
        .next()
        .and_then(|p| p["phase"].as_str())
        .unwrap_or_default()
}

/// Reason of a condition.
fn reason<'s>(set: &'s Value, kind: &str) -> &'s str {
    condition::find(&set["status"], kind)
        .and_then(|c| c["reason"].as_str())
        .unwrap_or_default()
}

/// Waits until every pool of the set is ready at the set's generation.
async fn ready(stage: &Stage, pools: usize) -> Value {
    stage
        .until(&sets("web"), |set| {
            set["status"]["observedGeneration"] == set["metadata"]["generation"]
                && set["status"]["readyWorkloads"] == pools
                && set["status"]["updatedWorkloads"] == pools
                && condition::holds(&set["status"], "AppUpdated")
        })
        .await
}

/// Pods become ready, except of images that cannot start (`bad`).
fn kubelet(stage: &Stage) -> DropGuard {
    let shutdown = CancellationToken::new();
    let (kube, ended): (Kube, _) = (stage.kube.clone(), shutdown.clone());
    tokio::spawn(async move {
        while !ended.is_cancelled() {
            let pods = kube.get("/api/v1/namespaces/default/pods").await;
            let pods = pods.unwrap_or_default();
            for pod in pods["items"].as_array().into_iter().flatten() {
                let image = &pod["spec"]["containers"][0]["image"];
                let starts = !image.as_str().unwrap_or_default().contains("bad");
                let going = pod["metadata"]["deletionTimestamp"].is_string();
                let path = format!("/api/v1/namespaces/default/pods/{}", name(pod));
                if going {
                    let _ = kube
                        .delete_with(&path, &json!({"gracePeriodSeconds": 0}))
                        .await;
                } else if starts && !condition::holds(&pod["status"], "Ready") {
                    let status = json!({"status": {"phase": "Running", "conditions": [
                        {"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}]}});
                    let _ = kube.merge(&format!("{path}/status"), &status).await;
                }
            }
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
    });
    shutdown.drop_guard()
}

async fn change(stage: &Stage, path: &str, patch: &Value) -> Value {
    stage.kube.merge(path, patch).await.expect("changed")
}

/// The reasons of the events about an object, once `reason` is among them: events are written beside everything else.
async fn events(stage: &Stage, about: &str, reason: &str) -> Vec<String> {
    let reasons = |list: &Value| -> Vec<String> {
        let items = list["items"].as_array().into_iter().flatten();
        items
            .filter(|event| event["involvedObject"]["name"] == about)
            .map(|event| event["reason"].as_str().unwrap_or_default().to_owned())
            .collect()
    };
    let path = "/api/v1/namespaces/default/events";
    let told = |list: &Value| reasons(list).iter().any(|told| told == reason);
    reasons(&stage.until(path, told).await)
}
