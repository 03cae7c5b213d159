//! Controllers of pods, and what scales and protects them.

use super::{given, join, list, metadata, one_of, pod, text};
use crate::causes::{invalid, not_supported, required};
use serde_json::{Value, json};
use yurt_wire::status::Cause;

pub(super) fn workload(kind: &str, object: &Value, causes: &mut Vec<Cause>) {
    let spec = &object["spec"];
    match kind {
        "Deployment" | "ReplicaSet" | "DaemonSet" | "StatefulSet" => {
            selected_template(kind, spec, causes);
            for count in ["replicas", "minReadySeconds", "revisionHistoryLimit"] {
                not_negative(spec, count, "spec", causes);
            }
            restart_policy(&spec["template"], "spec.template", &["Always"], causes);
            match kind {
                "Deployment" => deployment(spec, causes),
                "DaemonSet" => update_strategy(spec, causes),
                "StatefulSet" => {
                    update_strategy(spec, causes);
                    one_of(
                        spec,
                        "podManagementPolicy",
                        "spec",
                        &["OrderedReady", "Parallel"],
                        true,
                        causes,
                    );
                }
                _ => {}
            }
        }
        "Job" => job(spec, "spec", causes),
        "CronJob" => cron_job(object, causes),
        "HorizontalPodAutoscaler" => autoscaler(spec, causes),
        "PodDisruptionBudget" => {
            if given(spec, "minAvailable").is_some() && given(spec, "maxUnavailable").is_some() {
                causes.push(invalid(
                    "spec",
                    spec,
                    "minAvailable and maxUnavailable cannot be both set",
                ));
            }
            metadata::selector("spec.selector", &spec["selector"], causes);
        }
        _ => {}
    }
}

fn not_negative(value: &Value, name: &str, at: &str, causes: &mut Vec<Cause>) {
    if let Some(number) = given(value, name)
        && number.as_i64().is_none_or(|n| n < 0)
    {
        causes.push(invalid(
            &join(at, name),
            number,
            "must be greater than or equal to 0",
        ));
    }
}

/// The pod template of an object, at its `template`.
pub(super) fn template(object: &Value, at: &str, causes: &mut Vec<Cause>) {
    let at = join(at, "template");
    let template = &object["template"];
    metadata::labels(
        &format!("{at}.metadata.labels"),
        template["metadata"].get("labels"),
        causes,
    );
    pod::pod_spec(&template["spec"], &join(&at, "spec"), causes);
}

fn selected_template(kind: &str, spec: &Value, causes: &mut Vec<Cause>) {
    let selector = &spec["selector"];
    let labels = &spec["template"]["metadata"]["labels"];
    let empty = selector.as_object().is_none_or(|selector| {
        selector.values().all(|part| match part {
            Value::Object(labels) => labels.is_empty(),
            Value::Array(expressions) => expressions.is_empty(),
            _ => true,
        })
    });
    if selector.is_null() {
        causes.push(required("spec.selector", ""));
    } else if empty {
        causes.push(invalid(
            "spec.selector",
            selector,
            &format!("empty selector is invalid for {}", kind.to_lowercase()),
        ));
    } else {
        metadata::selector("spec.selector", selector, causes);
        if !metadata::selects(selector, labels) {
            causes.push(invalid(
                "spec.template.metadata.labels",
                labels,
                "`selector` does not match template `labels`",
            ));
        }
    }
    if kind == "StatefulSet" {
        template(&with_claims(spec), "spec", causes);
    } else {
        template(spec, "spec", causes);
    }
}

/// The pods of a stateful set have a volume for each of its claims, which their template can mount.
fn with_claims(spec: &Value) -> Value {
    let mut spec = spec.clone();
    let claims: Vec<Value> = list(&spec, "volumeClaimTemplates")
        .iter()
        .map(|claim| json!({"name": claim["metadata"]["name"], "persistentVolumeClaim": {}}))
        .collect();
    if claims.is_empty() {
        return spec;
    }
    if let Some(Value::Object(pods)) = spec.pointer_mut("/template/spec") {
        let volumes = pods
            .entry("volumes")
            .or_insert_with(|| Value::Array(Vec::new()));
        if let Value::Array(volumes) = volumes {
            // A claim takes the place of a volume of its name.
            volumes.retain(|volume| claims.iter().all(|claim| claim["name"] != volume["name"]));
            volumes.extend(claims);
        }
    }
    spec
}

fn restart_policy(template: &Value, at: &str, allowed: &[&str], causes: &mut Vec<Cause>) {
    let policy = text(&template["spec"], "restartPolicy");
    // Unknown and empty ones are told by the pod's own rules.
    if matches!(policy, "Always" | "Never" | "OnFailure") && !allowed.contains(&policy) {
        causes.push(not_supported(
            &format!("{at}.spec.restartPolicy"),
            &Value::from(policy),
            allowed,
        ));
    }
}

/// `5` or `25%`.
fn count_or_percent(value: &Value, at: &str, causes: &mut Vec<Cause>) {
    let fits = match value {
        Value::Null => true,
        Value::String(text) => text
            .strip_suffix('%')
            .is_some_and(|digits| !digits.is_empty() && digits.bytes().all(|c| c.is_ascii_digit())),
        number => number.as_i64().is_some_and(|n| n >= 0),
    };
    if !fits {
        causes.push(invalid(
            at,
            value,
            "must be an integer or percentage (e.g '5%%')",
        ));
    }
}

fn is_zero(value: &Value) -> bool {
    *value == 0 || *value == "0%"
}

fn deployment(spec: &Value, causes: &mut Vec<Cause>) {
    let strategy = &spec["strategy"];
    let at = "spec.strategy";
    one_of(
        strategy,
        "type",
        at,
        &["Recreate", "RollingUpdate"],
        true,
        causes,
    );
    let rolling = given(strategy, "rollingUpdate");
    match (text(strategy, "type"), rolling) {
        ("Recreate", Some(_)) => causes.push(crate::causes::forbidden(
            "spec.strategy.rollingUpdate",
            "may not be specified when strategy `type` is 'Recreate'",
        )),
        ("RollingUpdate", Some(rolling)) => {
            let at = "spec.strategy.rollingUpdate";
            for name in ["maxUnavailable", "maxSurge"] {
                count_or_percent(&rolling[name], &join(at, name), causes);
            }
            if is_zero(&rolling["maxUnavailable"]) && is_zero(&rolling["maxSurge"]) {
                causes.push(invalid(
                    &join(at, "maxUnavailable"),
                    &rolling["maxUnavailable"],
                    "may not be 0 when `maxSurge` is 0",
                ));
            }
        }
        _ => {}
    }
    if let Some(deadline) = given(spec, "progressDeadlineSeconds") {
        not_negative(spec, "progressDeadlineSeconds", "spec", causes);
        let ready = spec["minReadySeconds"].as_i64().unwrap_or(0);
        if deadline.as_i64().is_some_and(|deadline| deadline <= ready) {
            causes.push(invalid(
                "spec.progressDeadlineSeconds",
                deadline,
                "must be greater than minReadySeconds",
            ));
        }
    }
}

fn update_strategy(spec: &Value, causes: &mut Vec<Cause>) {
    let strategy = &spec["updateStrategy"];
    one_of(
        strategy,
        "type",
        "spec.updateStrategy",
        &["OnDelete", "RollingUpdate"],
        true,
        causes,
    );
    let rolling = &strategy["rollingUpdate"];
    for name in ["maxUnavailable", "maxSurge"] {
        count_or_percent(
            &rolling[name],
            &join("spec.updateStrategy.rollingUpdate", name),
            causes,
        );
    }
}

fn job(spec: &Value, at: &str, causes: &mut Vec<Cause>) {
    for count in [
        "parallelism",
        "completions",
        "activeDeadlineSeconds",
        "backoffLimit",
        "ttlSecondsAfterFinished",
    ] {
        not_negative(spec, count, at, causes);
    }
    one_of(
        spec,
        "completionMode",
        at,
        &["Indexed", "NonIndexed"],
        false,
        causes,
    );
    template(spec, at, causes);
    restart_policy(
        &spec["template"],
        &join(at, "template"),
        &["OnFailure", "Never"],
        causes,
    );
}

fn cron_job(object: &Value, causes: &mut Vec<Cause>) {
    let spec = &object["spec"];
    if text(&object["metadata"], "name").len() > 52 {
        causes.push(invalid(
            "metadata.name",
            &object["metadata"]["name"],
            "must be no more than 52 characters",
        ));
    }
    one_of(
        spec,
        "concurrencyPolicy",
        "spec",
        &["Allow", "Forbid", "Replace"],
        true,
        causes,
    );
    let schedule = text(spec, "schedule");
    let fields = schedule.split_whitespace().count();
    if !(schedule.is_empty() || schedule.starts_with('@') || fields == 5) {
        causes.push(invalid(
            "spec.schedule",
            &Value::from(schedule),
            &format!("expected exactly 5 fields, found {fields}: [{schedule}]"),
        ));
    }
    for count in [
        "startingDeadlineSeconds",
        "successfulJobsHistoryLimit",
        "failedJobsHistoryLimit",
    ] {
        not_negative(spec, count, "spec", causes);
    }
    job(
        &spec["jobTemplate"]["spec"],
        "spec.jobTemplate.spec",
        causes,
    );
}

fn autoscaler(spec: &Value, causes: &mut Vec<Cause>) {
    let max = spec["maxReplicas"].as_i64().unwrap_or(0);
    let min = spec["minReplicas"].as_i64().unwrap_or(1);
    if min < 1 {
        causes.push(invalid(
            "spec.minReplicas",
            &spec["minReplicas"],
            "must be greater than or equal to 1",
        ));
    }
    if max < 1 {
        causes.push(invalid(
            "spec.maxReplicas",
            &spec["maxReplicas"],
            "must be greater than 0",
        ));
    }
    if max < min {
        causes.push(invalid(
            "spec.maxReplicas",
            &spec["maxReplicas"],
            "must be greater than or equal to `minReplicas`",
        ));
    }
    for (i, metric) in list(spec, "metrics").iter().enumerate() {
        one_of(
            metric,
            "type",
            &format!("spec.metrics[{i}]"),
            &[
                "ContainerResource",
                "External",
                "Object",
                "Pods",
                "Resource",
            ],
            true,
            causes,
        );
    }
}
