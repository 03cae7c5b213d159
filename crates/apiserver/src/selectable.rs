//! What field selectors see of an object.

use serde_json::Value;

/// The value at a selectable path: strings as they are, booleans and numbers printed, absent as `""`. Where
/// kube-apiserver's registries show something else than the field of that name, so does this.
pub(crate) fn field(object: &Value, path: &str) -> String {
    let kind = object["kind"].as_str().unwrap_or_default();
    match (kind, path) {
        ("Pod", "spec.hostNetwork") | ("Node", "spec.unschedulable") => {
            let set = at(object, path).and_then(Value::as_bool);
            set.unwrap_or_default().to_string()
        }
        ("Pod", "status.podIPs") => {
            let ips = object["status"]["podIPs"].as_array();
            let ips = ips.into_iter().flatten();
            let ips: Vec<&str> = ips.filter_map(|ip| ip["ip"].as_str()).collect();
            ips.join(",")
        }
        ("Job", "status.successful") => {
            let succeeded = object["status"]["succeeded"].as_i64();
            succeeded.unwrap_or_default().to_string()
        }
        ("ReplicaSet" | "ReplicationController", "status.replicas") => {
            let replicas = object["status"]["replicas"].as_i64();
            replicas.unwrap_or_default().to_string()
        }
        ("Event", "source") => match print(at(object, "source.component")) {
            component if component.is_empty() => print(at(object, "reportingComponent")),
            component => component,
        },
        _ => print(at(object, path)),
    }
}

/// Walks a dotted path (a leading dot, as CRDs write it, is ignored).
pub(crate) fn at<'a>(object: &'a Value, path: &str) -> Option<&'a Value> {
    path.trim_start_matches('.')
        .split('.')
        .try_fold(object, |value, part| value.get(part))
}

fn print(value: Option<&Value>) -> String {
    match value {
        Some(Value::String(text)) => text.clone(),
        Some(value @ (Value::Bool(_) | Value::Number(_))) => value.to_string(),
        _ => String::new(),
    }
}

/// The name under which the stored object has what a field selector of `events.k8s.io` calls by another name
/// (both groups show the same stored events).
pub(crate) fn stored_path(group: &str, path: &str) -> String {
    if group != "events.k8s.io" {
        return path.to_owned();
    }
    match path.strip_prefix("regarding.") {
        Some(rest) => format!("involvedObject.{rest}"),
        None if path == "reportingController" => "reportingComponent".to_owned(),
        None => path.to_owned(),
    }
}
