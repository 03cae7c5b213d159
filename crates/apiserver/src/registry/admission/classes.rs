//! What classes give to objects that name them, or that name none: storage classes to claims, runtime classes to pods.

use super::super::{Registry, Reply};
use crate::{meta, storage::Key};
use serde_json::{Value, json};
use std::sync::{Arc, LazyLock};
use yurt_wire::Status;

static STORAGE_CLASSES: LazyLock<Arc<str>> =
    LazyLock::new(|| "storage.k8s.io/storageclasses".into());
static RUNTIME_CLASSES: LazyLock<Arc<str>> = LazyLock::new(|| "node.k8s.io/runtimeclasses".into());

/// Says that a storage class is the default one; the second is its older name.
const DEFAULT_CLASS: [&str; 2] = [
    "storageclass.kubernetes.io/is-default-class",
    "storageclass.beta.kubernetes.io/is-default-class",
];
/// The older way to name a claim's class.
const CLASS_ANNOTATION: &str = "volume.beta.kubernetes.io/storage-class";

impl Registry {
    /// Gives a claim without a storage class the default one.
    pub(super) fn default_storage_class(&self, claim: &mut Value) {
        let named = !claim["spec"]["storageClassName"].is_null()
            || claim["metadata"]["annotations"]
                .get(CLASS_ANNOTATION)
                .is_some();
        if named {
            return;
        }
        let (classes, _) = self.storage.list(&STORAGE_CLASSES, "", None);
        let classes: Vec<Value> = classes.iter().map(|class| class.value()).collect();
        if let Some(name) = default_class(&classes) {
            claim["spec"]["storageClassName"] = name.into();
        }
    }

    /// Gives a pod what its runtime class adds.
    pub(super) fn runtime_class(&self, pod: &mut Value) -> Reply<()> {
        let rejected = |pod: &Value, why: &str| {
            let why = format!("pod rejected: {why}");
            Box::new(Status::forbidden("", "pods", meta::name(pod), &why))
        };
        let class = match pod["spec"]["runtimeClassName"].as_str() {
            None | Some("") => None,
            Some(name) => {
                let class = self.storage.get(&RUNTIME_CLASSES, &Key::new("", name));
                let missing = || rejected(pod, &format!("RuntimeClass {name:?} not found"));
                Some(class.ok_or_else(missing)?.value())
            }
        };
        run_with(pod, class.as_ref()).map_err(|why| rejected(pod, &why))
    }
}

/// The newest of the classes marked as default; by name among those of one moment.
fn default_class(classes: &[Value]) -> Option<&str> {
    let marked = |class: &&Value| {
        let annotations = &class["metadata"]["annotations"];
        DEFAULT_CLASS.iter().any(|key| annotations[*key] == "true")
    };
    let mut defaults: Vec<&Value> = classes.iter().filter(marked).collect();
    defaults.sort_by_key(|class| {
        let created = meta::text(class, "creationTimestamp");
        (std::cmp::Reverse(created), meta::name(class))
    });
    defaults.first().map(|class| meta::name(class))
}

/// Overhead, node selector and tolerations of the class go into the pod; a pod that says otherwise is wrong.
fn run_with(pod: &mut Value, class: Option<&Value>) -> Result<(), String> {
    let overhead = class.map_or(&Value::Null, |class| &class["overhead"]["podFixed"]);
    let own = &pod["spec"]["overhead"];
    let has_own = own.as_object().is_some_and(|own| !own.is_empty());
    if has_own && class.is_none() {
        return Err("Pod Overhead set without corresponding RuntimeClass defined Overhead".into());
    }
    let Some(class) = class else {
        return Ok(());
    };
    if has_own && own != overhead {
        return Err("Pod's Overhead doesn't match RuntimeClass's defined Overhead".into());
    }
    if overhead.is_object() {
        pod["spec"]["overhead"] = overhead.clone();
    }
    let scheduling = &class["scheduling"];
    for (key, value) in scheduling["nodeSelector"].as_object().into_iter().flatten() {
        let own = pod["spec"]["nodeSelector"].get(key);
        if own.is_some_and(|own| own != value) {
            return Err(format!(
                "conflict: runtimeClass.scheduling.nodeSelector[{key}] = {}; pod.spec.nodeSelector[{key}] = {}",
                value.as_str().unwrap_or_default(),
                own.and_then(Value::as_str).unwrap_or_default()
            ));
        }
        pod["spec"]["nodeSelector"][key] = value.clone();
    }
    for toleration in scheduling["tolerations"].as_array().into_iter().flatten() {
        match &mut pod["spec"]["tolerations"] {
            Value::Array(own) if own.contains(toleration) => {}
            Value::Array(own) => own.push(toleration.clone()),
            none => *none = json!([toleration]),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_default_class_wins() {
        let class = |name: &str, created: &str, default: &str| {
            json!({"metadata": {"name": name, "creationTimestamp": created,
                "annotations": {DEFAULT_CLASS[0]: default}}})
        };
        let (old, new) = ("2026-01-01T00:00:00Z", "2026-02-01T00:00:00Z");
        let classes = [
            class("c", new, "true"),
            class("b", new, "true"),
            class("a", old, "true"),
            class("d", new, "false"),
        ];
        assert_eq!(default_class(&classes), Some("b"));
        assert_eq!(default_class(&classes[3..]), None);
    }

    #[test]
    fn a_runtime_class_completes_the_pod() {
        let class = json!({"overhead": {"podFixed": {"memory": "10Mi"}}, "scheduling": {
            "nodeSelector": {"vm": "yes"}, "tolerations": [{"key": "vm", "operator": "Exists"}]}});
        let mut pod = json!({"spec": {"nodeSelector": {"a": "b"}}});
        assert_eq!(run_with(&mut pod, Some(&class)), Ok(()));
        assert_eq!(pod["spec"]["overhead"]["memory"], "10Mi");
        assert_eq!(pod["spec"]["nodeSelector"], json!({"a": "b", "vm": "yes"}));
        assert_eq!(pod["spec"]["tolerations"][0]["key"], "vm");
        let again = pod.clone();
        assert_eq!(run_with(&mut pod, Some(&class)), Ok(()));
        assert_eq!(pod, again);
        assert!(run_with(&mut pod, None).is_err(), "overhead of no class");
        let mut other = json!({"spec": {"nodeSelector": {"vm": "no"}}});
        assert!(run_with(&mut other, Some(&class)).is_err());
    }
}
