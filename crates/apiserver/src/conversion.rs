//! Objects served in another version than the one stored.
//!
//! Of custom resources see `custom`. Two built-in kinds have two served
//! versions: events (core/v1 is stored) and horizontal pod autoscalers (v2 is stored).

mod custom;

use crate::resources::Resource;
use serde_json::{Map, Value, json};

/// Fields of an event that have another name in `events.k8s.io/v1`: (core/v1, events.k8s.io/v1).
const EVENT_FIELDS: &[(&str, &str)] = &[
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("reportingComponent", "reportingController"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
];

/// Metrics that `autoscaling/v1` cannot express travel in these annotations.
const HPA_METRICS: &str = "autoscaling.alpha.kubernetes.io/metrics";
const HPA_CURRENT_METRICS: &str = "autoscaling.alpha.kubernetes.io/current-metrics";
const HPA_CONDITIONS: &str = "autoscaling.alpha.kubernetes.io/conditions";
const HPA_BEHAVIOR: &str = "autoscaling.alpha.kubernetes.io/behavior";

/// From the stored version to the one `resource` serves.
pub(crate) fn to_served(resource: &Resource, mut object: Value) -> Value {
    if resource.is_storage_version() {
        return object;
    }
    match (&*resource.group, &*resource.kind) {
        ("events.k8s.io", "Event") => rename(&mut object, EVENT_FIELDS, false),
        ("autoscaling", "HorizontalPodAutoscaler") => hpa_to_v1(&mut object),
        _ => {}
    }
    object["apiVersion"] = resource.api_version().into();
    object
}

/// From the version `resource` serves to the stored one.
pub(crate) fn to_stored(resource: &Resource, mut object: Value) -> Value {
    if resource.is_storage_version() {
        return object;
    }
    match (&*resource.group, &*resource.kind) {
        ("events.k8s.io", "Event") => rename(&mut object, EVENT_FIELDS, true),
        ("autoscaling", "HorizontalPodAutoscaler") => hpa_to_v2(&mut object),
        _ => {}
    }
    object["apiVersion"] = resource.storage_gvk().api_version().into();
    object
}

fn rename(object: &mut Value, names: &[(&str, &str)], back: bool) {
    let Some(object) = object.as_object_mut() else {
        return;
    };
    for (stored, served) in names {
        let (from, to) = if back {
            (served, stored)
        } else {
            (stored, served)
        };
        if let Some(value) = object.remove(*from) {
            object.insert((*to).to_owned(), value);
        }
    }
}

fn is_cpu_utilization(metric: &Value) -> bool {
    metric["type"] == "Resource"
        && metric["resource"]["name"] == "cpu"
        && (metric["resource"]["target"]["type"] == "Utilization"
            || metric["resource"]["current"]["averageUtilization"].is_number())
}

fn take(parent: &mut Value, field: &str) -> Option<Value> {
    parent.as_object_mut()?.remove(field)
}

fn annotate(object: &mut Value, key: &str, value: &Value) {
    if !object["metadata"]["annotations"].is_object() {
        object["metadata"]["annotations"] = Value::Object(Map::new());
    }
    object["metadata"]["annotations"][key] = value.to_string().into();
}

fn annotation(object: &mut Value, key: &str) -> Option<Value> {
    let annotations = object
        .pointer_mut("/metadata/annotations")?
        .as_object_mut()?;
    let text = annotations.remove(key)?;
    let empty = annotations.is_empty();
    if empty {
        crate::meta::remove(object, "annotations");
    }
    serde_json::from_str(text.as_str()?).ok()
}

fn hpa_to_v1(object: &mut Value) {
    if let Some(Value::Array(metrics)) = take(&mut object["spec"], "metrics") {
        let (cpu, rest): (Vec<_>, Vec<_>) = metrics.into_iter().partition(is_cpu_utilization);
        if let Some(cpu) = cpu.first() {
            object["spec"]["targetCPUUtilizationPercentage"] =
                cpu["resource"]["target"]["averageUtilization"].clone();
        }
        if !rest.is_empty() {
            annotate(object, HPA_METRICS, &Value::Array(rest));
        }
    }
    if let Some(behavior) = take(&mut object["spec"], "behavior") {
        annotate(object, HPA_BEHAVIOR, &behavior);
    }
    if !object["status"].is_object() {
        return;
    }
    if let Some(Value::Array(metrics)) = take(&mut object["status"], "currentMetrics") {
        let (cpu, rest): (Vec<_>, Vec<_>) = metrics.into_iter().partition(is_cpu_utilization);
        if let Some(cpu) = cpu.first() {
            object["status"]["currentCPUUtilizationPercentage"] =
                cpu["resource"]["current"]["averageUtilization"].clone();
        }
        if !rest.is_empty() {
            annotate(object, HPA_CURRENT_METRICS, &Value::Array(rest));
        }
    }
    if let Some(conditions) = take(&mut object["status"], "conditions") {
        annotate(object, HPA_CONDITIONS, &conditions);
    }
}

fn hpa_to_v2(object: &mut Value) {
    let mut metrics = Vec::new();
    if let Some(percent) = take(&mut object["spec"], "targetCPUUtilizationPercentage") {
        metrics.push(json!({"type": "Resource", "resource": {"name": "cpu",
            "target": {"type": "Utilization", "averageUtilization": percent}}}));
    }
    if let Some(Value::Array(rest)) = annotation(object, HPA_METRICS) {
        metrics.extend(rest);
    }
    if !metrics.is_empty() {
        object["spec"]["metrics"] = metrics.into();
    }
    if let Some(behavior) = annotation(object, HPA_BEHAVIOR) {
        object["spec"]["behavior"] = behavior;
    }
    let conditions = annotation(object, HPA_CONDITIONS);
    let current = annotation(object, HPA_CURRENT_METRICS);
    if !object["status"].is_object() {
        return;
    }
    let mut metrics = Vec::new();
    if let Some(percent) = take(&mut object["status"], "currentCPUUtilizationPercentage") {
        metrics.push(json!({"type": "Resource", "resource": {"name": "cpu",
            "current": {"averageUtilization": percent}}}));
    }
    if let Some(Value::Array(rest)) = current {
        metrics.extend(rest);
    }
    if !metrics.is_empty() {
        object["status"]["currentMetrics"] = metrics.into();
    }
    if let Some(conditions) = conditions {
        object["status"]["conditions"] = conditions;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resources::Catalog;

    #[test]
    fn both_versions_of_events_show_the_same() {
        let catalog = Catalog::new(&[]);
        let resource = catalog
            .find("events.k8s.io", "v1", "events")
            .expect("served");
        let stored = json!({"apiVersion": "v1", "kind": "Event", "metadata": {"name": "e"},
            "involvedObject": {"kind": "Pod"}, "message": "m", "count": 3, "source": {"component": "c"}});
        let served = to_served(resource, stored.clone());
        assert_eq!(served["note"], "m");
        assert_eq!(served["apiVersion"], "events.k8s.io/v1");
        assert_eq!(to_stored(resource, served), stored);
    }

    #[test]
    fn an_autoscaler_survives_a_trip_through_v1() {
        let catalog = Catalog::new(&[]);
        let resource = catalog
            .find("autoscaling", "v1", "horizontalpodautoscalers")
            .expect("served");
        let stored = json!({"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler",
            "metadata": {"name": "h"},
            "spec": {"maxReplicas": 3, "behavior": {"scaleUp": {}}, "metrics": [
                {"type": "Resource", "resource": {"name": "cpu",
                    "target": {"type": "Utilization", "averageUtilization": 80}}},
                {"type": "Pods", "pods": {"metric": {"name": "qps"}}}]},
            "status": {"conditions": [{"type": "AbleToScale"}]}});
        let served = to_served(resource, stored.clone());
        assert_eq!(served["spec"]["targetCPUUtilizationPercentage"], 80);
        assert!(served["spec"].get("metrics").is_none());
        assert_eq!(to_stored(resource, served), stored);
    }
}
