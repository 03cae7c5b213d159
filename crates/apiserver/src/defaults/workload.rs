//! Controllers of pods: apps, batch, autoscaling.

use super::{child, empty, items, pod, set, set_if_absent, text};
use serde_json::{Value, json};

pub(super) fn workload(kind: &str, object: &mut Value) {
    if kind == "Job" {
        labels_from_template(object);
    }
    let Some(spec) = child(object, "spec") else {
        return;
    };
    match kind {
        "Deployment" => deployment(spec),
        "ReplicaSet" => {
            set_if_absent(spec, "replicas", 1);
            pod::template(spec);
        }
        "DaemonSet" => daemon_set(spec),
        "StatefulSet" => stateful_set(spec),
        "Job" => job(spec),
        "CronJob" => cron_job(spec),
        "HorizontalPodAutoscaler" => autoscaler(spec),
        _ => {}
    }
}

pub(super) fn replication_controller(object: &mut Value) {
    let template_labels = object.pointer("/spec/template/metadata/labels").cloned();
    let Some(spec) = child(object, "spec") else {
        return;
    };
    set_if_absent(spec, "replicas", 1);
    if let Some(labels) = template_labels {
        set_if_absent(spec, "selector", labels.clone());
        pod::template(spec);
        if let Some(metadata) = child(object, "metadata") {
            set_if_absent(metadata, "labels", labels);
        }
    }
}

fn deployment(spec: &mut Value) {
    set_if_absent(spec, "replicas", 1);
    set_if_absent(spec, "revisionHistoryLimit", 10);
    set_if_absent(spec, "progressDeadlineSeconds", 600);
    set_if_absent(spec, "strategy", empty());
    if let Some(strategy) = child(spec, "strategy") {
        set(strategy, "type", "RollingUpdate");
        if text(strategy, "type") == "RollingUpdate" {
            set_if_absent(strategy, "rollingUpdate", empty());
            if let Some(rolling) = child(strategy, "rollingUpdate") {
                set_if_absent(rolling, "maxUnavailable", "25%");
                set_if_absent(rolling, "maxSurge", "25%");
            }
        }
    }
    pod::template(spec);
}

fn daemon_set(spec: &mut Value) {
    set_if_absent(spec, "revisionHistoryLimit", 10);
    set_if_absent(spec, "updateStrategy", empty());
    if let Some(strategy) = child(spec, "updateStrategy") {
        set(strategy, "type", "RollingUpdate");
        if text(strategy, "type") == "RollingUpdate" {
            set_if_absent(strategy, "rollingUpdate", empty());
            if let Some(rolling) = child(strategy, "rollingUpdate") {
                set_if_absent(rolling, "maxUnavailable", 1);
                set_if_absent(rolling, "maxSurge", 0);
            }
        }
    }
    pod::template(spec);
}

fn stateful_set(spec: &mut Value) {
    set_if_absent(spec, "replicas", 1);
    set_if_absent(spec, "revisionHistoryLimit", 10);
    set(spec, "podManagementPolicy", "OrderedReady");
    set_if_absent(spec, "updateStrategy", empty());
    if let Some(strategy) = child(spec, "updateStrategy") {
        set(strategy, "type", "RollingUpdate");
        if text(strategy, "type") == "RollingUpdate" {
            set_if_absent(strategy, "rollingUpdate", empty());
            if let Some(rolling) = child(strategy, "rollingUpdate") {
                set_if_absent(rolling, "partition", 0);
            }
        }
    }
    set_if_absent(spec, "persistentVolumeClaimRetentionPolicy", empty());
    if let Some(policy) = child(spec, "persistentVolumeClaimRetentionPolicy") {
        set(policy, "whenDeleted", "Retain");
        set(policy, "whenScaled", "Retain");
    }
    for claim in items(spec, "volumeClaimTemplates") {
        set(claim, "apiVersion", "v1");
        set(claim, "kind", "PersistentVolumeClaim");
        super::cluster::volume_claim(claim);
    }
    pod::template(spec);
}

fn labels_from_template(job: &mut Value) {
    let labels = job.pointer("/spec/template/metadata/labels").cloned();
    if let (Some(labels), Some(metadata)) = (labels, child(job, "metadata")) {
        set_if_absent(metadata, "labels", labels);
    }
}

fn job(spec: &mut Value) {
    let unset = |spec: &Value, name: &str| spec.get(name).is_none_or(Value::is_null);
    if unset(spec, "completions") && unset(spec, "parallelism") {
        set_if_absent(spec, "completions", 1);
    }
    set_if_absent(spec, "parallelism", 1);
    let limit = if unset(spec, "backoffLimitPerIndex") {
        6
    } else {
        i32::MAX
    };
    set_if_absent(spec, "backoffLimit", limit);
    set(spec, "completionMode", "NonIndexed");
    set_if_absent(spec, "suspend", false);
    let replacement = if unset(spec, "podFailurePolicy") {
        "TerminatingOrFailed"
    } else {
        "Failed"
    };
    set(spec, "podReplacementPolicy", replacement);
    if let Some(policy) = child(spec, "podFailurePolicy") {
        for rule in items(policy, "rules") {
            for condition in items(rule, "onPodConditions") {
                set(condition, "status", "True");
            }
        }
    }
    pod::template(spec);
}

fn cron_job(spec: &mut Value) {
    set(spec, "concurrencyPolicy", "Allow");
    set_if_absent(spec, "suspend", false);
    set_if_absent(spec, "successfulJobsHistoryLimit", 3);
    set_if_absent(spec, "failedJobsHistoryLimit", 1);
    if let Some(job) = child(spec, "jobTemplate").and_then(|template| child(template, "spec")) {
        pod::template(job);
    }
}

fn autoscaler(spec: &mut Value) {
    set_if_absent(spec, "minReplicas", 1);
    let v1 = spec.get("targetCPUUtilizationPercentage").is_some();
    if !v1 && spec.get("metrics").is_none_or(Value::is_null) {
        set(
            spec,
            "metrics",
            json!([{"type": "Resource", "resource": {
                "name": "cpu", "target": {"type": "Utilization", "averageUtilization": 80}}}]),
        );
    }
    if let Some(behavior) = child(spec, "behavior") {
        let policy =
            |kind: &str, value: u32| json!({"type": kind, "value": value, "periodSeconds": 15});
        for (direction, policies) in [
            ("scaleUp", vec![policy("Pods", 4), policy("Percent", 100)]),
            ("scaleDown", vec![policy("Percent", 100)]),
        ] {
            set_if_absent(behavior, direction, empty());
            if let Some(rules) = child(behavior, direction) {
                set(rules, "selectPolicy", "Max");
                if direction == "scaleUp" {
                    set_if_absent(rules, "stabilizationWindowSeconds", 0);
                }
                set_if_absent(rules, "policies", policies);
            }
        }
    }
}
