//! What a YurtStaticSet wants a node to run, and whether a static pod is that already. Pure.
//!
//! OpenYurt's hash of a template depends on how Go prints its structs; nobody else can compute it. So a static pod with another hash
//! is compared field by field, apart from what servers and kubelets add: one that OpenYurt made is not restarted.

use serde_json::{Map, Value, json};
use yurt_api::names::annotations::STATIC_POD_HASH;
use yurt_controller::fields::items;
use yurt_wire::quantity::Quantity;

/// Annotations that the kubelet gives to mirror pods.
const KUBELET: &str = "kubernetes.io/config.";

/// The pod of a set, as it is written for the kubelet. Name and namespace are the set's.
pub(super) fn pod(set: &Value, hash: &str) -> Value {
    let (meta, template) = (&set["metadata"], &set["spec"]["template"]);
    let mut metadata = json!({"name": meta["name"], "namespace": meta["namespace"]});
    for field in ["labels", "annotations"] {
        if template["metadata"][field].is_object() {
            metadata[field] = template["metadata"][field].clone();
        }
    }
    metadata["annotations"][STATIC_POD_HASH] = hash.into();
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]})
}

/// YAML of a value that every parser reads alike, of YAML 1.1 (Go's) too: all text is quoted.
pub(super) fn yaml(value: &Value) -> String {
    let mut text = String::new();
    write(value, 0, &mut text);
    text
}

fn is_plain(key: &str) -> bool {
    const WORDS: [&str; 9] = ["y", "n", "yes", "no", "on", "off", "true", "false", "null"];
    key.starts_with(|c: char| c.is_ascii_alphabetic())
        && key.chars().all(|c| c.is_ascii_alphanumeric())
        && !WORDS.contains(&key.to_ascii_lowercase().as_str())
}

fn is_block(value: &Value) -> bool {
    match value {
        Value::Object(map) => !map.is_empty(),
        Value::Array(list) => !list.is_empty(),
        _ => false,
    }
}

fn write(value: &Value, depth: usize, text: &mut String) {
    let indent = |text: &mut String, depth: usize| text.push_str(&"  ".repeat(depth));
    match value {
        Value::Object(map) if !map.is_empty() => {
            for (at, (key, value)) in map.iter().enumerate() {
                if at > 0 || depth == 0 || !text.ends_with("- ") {
                    indent(text, depth);
                }
                if is_plain(key) {
                    text.push_str(key);
                } else {
                    text.push_str(&Value::from(key.as_str()).to_string());
                }
                text.push(':');
                text.push(if is_block(value) { '\n' } else { ' ' });
                write(value, depth + 1, text);
            }
        }
        Value::Array(list) if !list.is_empty() => {
            for item in list {
                indent(text, depth);
                text.push_str("- ");
                // A list of lists is none of a pod's; flow style is right for it.
                if item.is_array() {
                    text.push_str(&item.to_string());
                    text.push('\n');
                } else {
                    write(item, depth + 1, text);
                }
            }
        }
        // JSON's scalars and empty collections are YAML's.
        other => {
            text.push_str(&other.to_string());
            text.push('\n');
        }
    }
}

/// Whether a field says no more than if it were left out.
fn is_default(key: &str, value: &Value) -> bool {
    match (key, value) {
        (_, Value::Null | Value::Bool(false)) => true,
        (_, Value::String(text)) if text.is_empty() => true,
        (_, Value::Array(list)) if list.is_empty() => true,
        // An empty volume source says which it is.
        ("emptyDir", Value::Object(_)) => false,
        (_, Value::Object(map)) => map.iter().all(|(key, value)| is_default(key, value)),
        // Servers and kubelets decide on these.
        (
            "imagePullPolicy" | "priority" | "preemptionPolicy" | "nodeName" | "serviceAccount"
            | "serviceAccountName" | "hostPort",
            _,
        ) => true,
        ("protocol", value) => value == "TCP",
        ("restartPolicy", value) => value == "Always",
        ("dnsPolicy", value) => value == "ClusterFirst",
        ("schedulerName", value) => value == "default-scheduler",
        ("terminationMessagePath", value) => value == "/dev/termination-log",
        ("terminationMessagePolicy", value) => value == "File",
        ("scheme", value) => value == "HTTP",
        ("apiVersion", value) => value == "v1",
        ("divisor", value) => value == "0",
        ("procMount", value) => value == "Default",
        ("enableServiceLinks", value) => value == true,
        ("terminationGracePeriodSeconds", value) => value == 30,
        ("timeoutSeconds" | "successThreshold", value) => value == 1,
        ("periodSeconds", value) => value == 10,
        ("failureThreshold", value) => value == 3,
        ("defaultMode", value) => value == 420,
        ("expirationSeconds", value) => value == 3600,
        _ => false,
    }
}

/// Whether two values mean the same; `key` is the field they are of.
fn alike(key: &str, one: &Value, other: &Value) -> bool {
    match (one, other) {
        (Value::Object(a), Value::Object(b)) => {
            let quantities = matches!(key, "requests" | "limits");
            let only = |a: &Map<String, Value>, b: &Map<String, Value>| {
                let mut only = a.iter().filter(|(key, _)| !b.contains_key(*key));
                only.all(|(key, value)| is_default(key, value))
            };
            let both = a.iter().all(|(key, one)| {
                b.get(key).is_none_or(|other| {
                    if quantities {
                        is_same_quantity(one, other)
                    } else {
                        alike(key, one, other)
                    }
                })
            });
            both && only(a, b) && only(b, a)
        }
        (Value::Array(a), Value::Array(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| alike("", a, b))
        }
        _ => {
            one == other
                || is_default(key, one)
                    && is_default(key, other)
                    && one.is_null() != other.is_null()
        }
    }
}

fn is_same_quantity(one: &Value, other: &Value) -> bool {
    let read = |value: &Value| match value {
        Value::String(text) => Quantity::parse(text),
        other => Quantity::parse(&other.to_string()),
    };
    one == other || read(one).is_some_and(|quantity| read(other) == Some(quantity))
}

/// The spec without the toleration that the kubelet gives to every static pod.
fn spec(pod: &Value) -> Value {
    let mut spec = pod["spec"].clone();
    let tolerations = items(&pod["spec"]["tolerations"])
        .filter(|toleration| **toleration != json!({"effect": "NoExecute", "operator": "Exists"}));
    spec["tolerations"] = tolerations.cloned().collect();
    spec
}

/// The hash that a static pod or config map says it is of.
pub(super) fn hash_of(object: &Value) -> &str {
    object["metadata"]["annotations"][STATIC_POD_HASH]
        .as_str()
        .unwrap_or_default()
}

/// Whether a static pod is what its set wants (`wanted`, from [`pod`]): of its hash, or with the same fields.
pub(super) fn is_current(wanted: &Value, static_pod: &Value) -> bool {
    let all = |field: &str, key: &str| {
        wanted["metadata"][field][key] == static_pod["metadata"][field][key]
    };
    let said = |object: &Value, field: &str| -> Vec<String> {
        let keys = object["metadata"][field].as_object().into_iter().flatten();
        let keys = keys.map(|(key, _)| key.clone());
        keys.filter(|key| key != STATIC_POD_HASH && !key.starts_with(KUBELET))
            .collect()
    };
    let same = |field: &str| {
        let (mut one, mut other) = (said(wanted, field), said(static_pod, field));
        one.sort_unstable();
        other.sort_unstable();
        one == other && one.iter().all(|key| all(field, key))
    };
    hash_of(static_pod) == hash_of(wanted)
        || same("labels") && same("annotations") && alike("spec", &spec(wanted), &spec(static_pod))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn set() -> Value {
        json!({"metadata": {"name": "hub", "namespace": "kube-system"}, "spec": {"template": {
            "metadata": {"name": "x", "labels": {"app": "hub"}, "annotations": {"a": "on"}},
            "spec": {"hostNetwork": true, "containers": [{"name": "c", "image": "i:1", "args": ["--a=b: c", "yes"],
                "resources": {"requests": {"cpu": "0.5", "memory": "1Gi"}}, "ports": [{"containerPort": 80}],
                "livenessProbe": {"httpGet": {"path": "/", "port": 80}}}],
                "volumes": [{"name": "v", "hostPath": {"path": "/x"}}, {"name": "e", "emptyDir": {}}]}}}})
    }

    /// The mirror pod as an API server shows it.
    fn mirror() -> Value {
        json!({"metadata": {"name": "hub-n1", "namespace": "kube-system", "labels": {"app": "hub"},
            "annotations": {"a": "on", STATIC_POD_HASH: "go-hash", "kubernetes.io/config.source": "file", "kubernetes.io/config.hash": "x"}},
            "spec": {"nodeName": "n1", "hostNetwork": true, "dnsPolicy": "ClusterFirst", "enableServiceLinks": true, "priority": 2_000_001_000,
                "preemptionPolicy": "PreemptLowerPriority", "restartPolicy": "Always", "schedulerName": "default-scheduler", "securityContext": {},
                "terminationGracePeriodSeconds": 30, "tolerations": [{"effect": "NoExecute", "operator": "Exists"}],
                "containers": [{"name": "c", "image": "i:1", "args": ["--a=b: c", "yes"], "imagePullPolicy": "IfNotPresent",
                    "resources": {"requests": {"cpu": "500m", "memory": "1Gi"}}, "ports": [{"containerPort": 80, "hostPort": 80, "protocol": "TCP"}],
                    "livenessProbe": {"httpGet": {"path": "/", "port": 80, "scheme": "HTTP"}, "failureThreshold": 3, "periodSeconds": 10,
                        "successThreshold": 1, "timeoutSeconds": 1},
                    "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File"}],
                "volumes": [{"name": "v", "hostPath": {"path": "/x", "type": ""}}, {"name": "e", "emptyDir": {}}]},
            "status": {"phase": "Running"}})
    }

    #[test]
    fn a_static_pod_of_openyurt_with_the_same_fields_is_current() {
        let wanted = pod(&set(), "ours");
        assert!(is_current(&wanted, &mirror()));
        let mut without = mirror();
        without["metadata"]["annotations"]
            .as_object_mut()
            .unwrap()
            .remove(STATIC_POD_HASH);
        assert!(
            is_current(&wanted, &without),
            "none at all, the same fields"
        );
        for (pointer, value) in [
            ("/spec/containers/0/image", json!("i:2")),
            ("/spec/containers/0/args", json!(["--a=b: c"])),
            ("/spec/containers/0/livenessProbe/periodSeconds", json!(5)),
            ("/spec/containers/0/resources/requests/cpu", json!("600m")),
            ("/spec/hostNetwork", json!(false)),
            ("/spec/volumes/0/hostPath/path", json!("/y")),
            ("/spec/volumes/1", json!({"name": "e"})),
            ("/spec/tolerations", json!([{"key": "a"}])),
            ("/metadata/labels", json!({"app": "hub", "more": "x"})),
            ("/metadata/annotations/a", json!("off")),
        ] {
            let mut other = mirror();
            *other.pointer_mut(pointer).expect("a field") = value;
            assert!(!is_current(&wanted, &other), "{pointer}");
            other["metadata"]["annotations"][STATIC_POD_HASH] = "ours".into();
            assert!(is_current(&wanted, &other), "its hash is the set's");
        }
        // What the template no longer says.
        let mut more = mirror();
        more["spec"]["hostPID"] = true.into();
        assert!(!is_current(&wanted, &more));
    }

    /// As OpenYurt's own code rendered it (`src/recorded/README.md`), and a kubelet shows it.
    #[test]
    fn a_static_pod_that_openyurt_rendered_is_not_replaced() {
        let recorded = include_str!("../recorded/openyurt/static-set-v1.7.json");
        let recorded: Value = serde_json::from_str(recorded).expect("JSON");
        let manifest = recorded["configMap"]["data"]["yurthub"]
            .as_str()
            .expect("a manifest");
        let mut mirror: Value = serde_saphyr::from_str(manifest).expect("YAML");
        assert_eq!(hash_of(&mirror), hash_of(&recorded["configMap"]));
        mirror["metadata"]["name"] = "yurt-hub-n1".into();
        mirror["spec"]["nodeName"] = "n1".into();
        mirror["spec"]["tolerations"] = json!([{"operator": "Exists", "effect": "NoExecute"}]);
        for (key, value) in [
            ("kubernetes.io/config.source", "file"),
            ("kubernetes.io/config.hash", "x"),
            ("kubernetes.io/config.mirror", "x"),
        ] {
            mirror["metadata"]["annotations"][key] = value.into();
        }
        let wanted = pod(&recorded["set"], "ours");
        assert!(is_current(&wanted, &mirror), "{wanted:#} {mirror:#}");
        mirror["spec"]["containers"][0]["image"] = "openyurt/yurthub:v1.6.0".into();
        assert!(!is_current(&wanted, &mirror));
    }

    #[test]
    fn the_manifest_is_the_pod_of_the_set() {
        let manifest = pod(&set(), "h");
        assert_eq!(
            manifest["metadata"],
            json!({"name": "hub", "namespace": "kube-system", "labels": {"app": "hub"},
            "annotations": {"a": "on", STATIC_POD_HASH: "h"}})
        );
        let text = yaml(&manifest);
        assert!(
            text.starts_with("apiVersion: \"v1\"\nkind: \"Pod\"\n"),
            "{text}"
        );
        let read: Value = serde_saphyr::from_str(&text).expect("YAML");
        assert_eq!(read, manifest, "{text}");
    }

    fn any_value() -> impl Strategy<Value = Value> {
        let scalar = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i32>().prop_map(Value::from),
            "\\PC{0,12}".prop_map(Value::from),
            prop_oneof![
                Just("yes"),
                Just("~"),
                Just("0x1"),
                Just("1e3"),
                Just("a: b"),
                Just("- x"),
                Just("\n  x\n"),
                Just("#")
            ]
            .prop_map(Value::from),
        ];
        scalar.prop_recursive(4, 30, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::hash_map("[a-zA-Z./-]{1,6}", inner, 0..4)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn yaml_reads_as_it_was(value in any_value()) {
            let value = json!({"root": value});
            let text = yaml(&value);
            let read: Value = serde_saphyr::from_str(&text).map_err(|e| TestCaseError::fail(format!("{e}: {text}")))?;
            prop_assert_eq!(&read, &value, "{}", text);
        }

        #[test]
        fn any_pod_can_be_compared(one in any_value(), other in any_value()) {
            prop_assert!(alike("", &one, &one));
            prop_assert_eq!(alike("", &one, &other), alike("", &other, &one));
        }
    }
}
