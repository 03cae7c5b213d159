//! Older ways to say what YurtAppSet v1beta1 says, in its terms: what its controller does is done for them.

use crate::apps::{
    yurtappdaemon::YurtAppDaemonSpec,
    yurtappoverrider::{Entry, YurtAppOverrider},
    yurtappset::{ContainerImage, Patch, Tweaks, Workload, WorkloadTweak, YurtAppSetSpec},
};
use serde_json::{Map, Value, json};
use yurt_wire::{Gvk, patch::strategic_merge_patch};

/// A YurtAppDaemon as a YurtAppSet. Two things the set does not say and the controller must add for a daemon: its pods tolerate the
/// taints of their pool, and its workloads carry the labels of the daemon's selector.
pub fn set_of(daemon: &YurtAppDaemonSpec) -> YurtAppSetSpec {
    YurtAppSetSpec {
        workload: Workload {
            workload_template: daemon.workload_template.clone(),
            workload_tweaks: Vec::new(),
        },
        nodepool_selector: Some(daemon.nodepool_selector.clone()),
        revision_history_limit: daemon.revision_history_limit,
        ..YurtAppSetSpec::default()
    }
}

/// A YurtAppOverrider as tweaks, to come after those of its subject, whose workloads are in these pools. They are named, because a
/// selector cannot leave out a pool by its name.
pub fn tweaks_of(overrider: &YurtAppOverrider, pools: &[&str]) -> Vec<WorkloadTweak> {
    let tweak = |entry: &Entry| {
        let pools = covered(&entry.pools, pools);
        (!pools.is_empty()).then(|| WorkloadTweak {
            nodepool_selector: None,
            pools,
            tweaks: tweaks(entry),
        })
    };
    overrider.entries.iter().filter_map(tweak).collect()
}

/// The pools of an entry: `*` is all, `-name` is none of this name wherever it stands, and all others where nothing but these is said.
fn covered(said: &[String], pools: &[&str]) -> Vec<String> {
    let excluded = |pool: &str| said.iter().any(|said| said.strip_prefix('-') == Some(pool));
    let only_exclusions = !said.is_empty() && said.iter().all(|said| said.starts_with('-'));
    let all = only_exclusions || said.iter().any(|said| said == "*");
    let included = |pool: &str| all || said.iter().any(|said| said == pool);
    pools
        .iter()
        .filter(|pool| included(pool) && !excluded(pool))
        .map(|pool| (*pool).to_owned())
        .collect()
}

fn tweaks(entry: &Entry) -> Tweaks {
    let images = entry.items.iter().filter_map(|item| item.image.as_ref());
    let patch = |patch: &Patch| Patch {
        value: renamed(patch.value.clone()),
        ..patch.clone()
    };
    Tweaks {
        // Later items win.
        replicas: entry.items.iter().rev().find_map(|item| item.replicas),
        container_images: images
            .map(|image| ContainerImage {
                name: image.container_name.clone(),
                target_image: image.image_claim.clone(),
            })
            .collect(),
        patches: entry.patches.iter().map(patch).collect(),
    }
}

/// The token for the name of the pool as YurtAppSet has it.
fn renamed(value: Value) -> Value {
    match value {
        Value::String(text) => text.replace("{{nodepool}}", "{{nodepool-name}}").into(),
        Value::Array(values) => values.into_iter().map(renamed).collect(),
        Value::Object(fields) => {
            let fields = fields
                .into_iter()
                .map(|(name, value)| (name, renamed(value)));
            Value::Object(fields.collect())
        }
        other => other,
    }
}

/// What a pool of a v1alpha1 YurtAppSet changes in the workload of the template. What is not of the right shape changes nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Changes<'c> {
    /// Pods; only for what the patch makes of them.
    pub replicas: Option<&'c Value>,
    /// Also required of the nodes.
    pub node_selector_term: Option<&'c Value>,
    /// Further tolerations.
    pub tolerations: Option<&'c Value>,
    /// A strategic merge patch; one that does not apply changes nothing.
    pub patch: Option<&'c Value>,
}

/// What the controller adds to every workload, if only a key; whole maps would take that away again.
const RENDERED_MAPS: &[&[&str]] = &[
    &["metadata", "labels"],
    &["metadata", "annotations"],
    &["spec", "selector", "matchLabels"],
    &["spec", "template", "metadata", "labels"],
    &["spec", "template", "spec", "nodeSelector"],
];

impl Changes<'_> {
    /// The changes as patches of a tweak (`operation`, `path`, `value`) of the template (`metadata`, `spec`) of a `Deployment` or
    /// `StatefulSet`.
    pub fn as_patches(&self, kind: &str, template: &Value) -> Vec<Value> {
        let part = |field: &str| template.get(field).filter(|part| part.is_object()).cloned();
        let mut before = json!({
            "apiVersion": "apps/v1", "kind": kind,
            "metadata": part("metadata").unwrap_or_else(|| json!({})),
            "spec": part("spec").unwrap_or_else(|| json!({})),
        });
        for path in RENDERED_MAPS {
            below(&mut before, path);
        }
        if let Some(replicas) = self.replicas {
            before["spec"]["replicas"] = replicas.clone();
        }
        let mut after = before.clone();
        if let Some(pods) = below(&mut after, &["spec", "template", "spec"]) {
            self.require(pods);
            self.tolerate(pods);
        }
        if let Some(patch) = self.patch.filter(|patch| patch.is_object()) {
            // What a patch leaves when it does not apply is as it was.
            let _ =
                strategic_merge_patch(&Gvk::from_api_version("apps/v1", kind), &mut after, patch);
        }
        let mut patches = Vec::new();
        difference(&before, &after, "", &mut patches);
        patches
    }

    /// Adds the node selector term to every required one, as all of the pool's requirements hold beside any of the template's.
    fn require(&self, pods: &mut Map<String, Value>) {
        let required = |field: &str| {
            let list = self.node_selector_term?.get(field)?.as_array()?;
            (!list.is_empty()).then(|| (field.to_owned(), list.clone()))
        };
        let required: Vec<_> = ["matchExpressions", "matchFields"]
            .into_iter()
            .filter_map(required)
            .collect();
        if required.is_empty() {
            return;
        }
        let path = [
            "nodeAffinity",
            "requiredDuringSchedulingIgnoredDuringExecution",
        ];
        let affinity = pods.entry("affinity").or_insert_with(|| json!({}));
        let Some(selector) = below(affinity, &path) else {
            return;
        };
        let terms = selector
            .entry("nodeSelectorTerms")
            .or_insert_with(|| json!([]));
        let Some(terms) = terms.as_array_mut() else {
            return;
        };
        if terms.is_empty() {
            terms.push(json!({}));
        }
        for term in terms.iter_mut().filter_map(Value::as_object_mut) {
            for (field, list) in &required {
                append(term, field, list);
            }
        }
    }

    fn tolerate(&self, pods: &mut Map<String, Value>) {
        if let Some(list) = self.tolerations.and_then(Value::as_array)
            && !list.is_empty()
        {
            append(pods, "tolerations", list);
        }
    }
}

fn append(object: &mut Map<String, Value>, field: &str, list: &[Value]) {
    let known = object.entry(field).or_insert_with(|| json!([]));
    match known {
        Value::Array(known) => known.extend_from_slice(list),
        other => *other = list.to_vec().into(),
    }
}

/// The object at a path, made where missing; `None` where something else is in its place.
fn below<'v>(value: &'v mut Value, path: &[&str]) -> Option<&'v mut Map<String, Value>> {
    let mut object = value.as_object_mut()?;
    for field in path {
        let next = object.entry(*field).or_insert_with(|| json!({}));
        if next.is_null() {
            *next = json!({});
        }
        object = next.as_object_mut()?;
    }
    Some(object)
}

/// What makes `after` of `before`, field by field. Lists whose elements stay where they are go by element, so that what is done to
/// other elements elsewhere holds; all others are replaced.
fn difference(before: &Value, after: &Value, path: &str, patches: &mut Vec<Value>) {
    match (before, after) {
        (Value::Object(old), Value::Object(new)) => {
            for (field, value) in old {
                let path = format!("{path}/{}", escaped(field));
                match new.get(field) {
                    Some(new) => difference(value, new, &path, patches),
                    None => patches.push(json!({"operation": "remove", "path": path})),
                }
            }
            for (field, value) in new.iter().filter(|(field, _)| !old.contains_key(*field)) {
                let path = format!("{path}/{}", escaped(field));
                patches.push(json!({"operation": "add", "path": path, "value": value}));
            }
        }
        (Value::Array(old), Value::Array(new)) if aligned(old, new) => {
            for (i, (old, new)) in old.iter().zip(new).enumerate() {
                difference(old, new, &format!("{path}/{i}"), patches);
            }
            for value in new.iter().skip(old.len()) {
                let path = format!("{path}/-");
                patches.push(json!({"operation": "add", "path": path, "value": value}));
            }
        }
        (old, new) if old != new => {
            patches.push(json!({"operation": "replace", "path": path, "value": new}));
        }
        _ => {}
    }
}

/// Whether each element is still in its place, by name where it has one; new ones may follow.
fn aligned(old: &[Value], new: &[Value]) -> bool {
    old.len() <= new.len()
        && old
            .iter()
            .zip(new)
            .all(|(old, new)| old["name"] == new["name"])
}

fn escaped(field: &str) -> String {
    field.replace('~', "~0").replace('/', "~1")
}

#[cfg(test)]
mod tests {
    use super::*;
    use yurt_wire::patch::json_patch;

    fn template() -> Value {
        json!({"metadata": {"labels": {"app": "a"}}, "spec": {"replicas": 2, "selector": {"matchLabels": {"app": "a"}},
            "template": {"metadata": {"labels": {"app": "a"}}, "spec": {
                "containers": [{"name": "a", "image": "a:1"}, {"name": "b", "image": "b:1"}]}}}})
    }

    /// A workload as a controller renders it, with patches applied.
    fn rendered(patches: &[Value]) -> Value {
        let mut workload = template();
        workload["spec"]["template"]["spec"]["nodeSelector"] =
            json!({"apps.openyurt.io/nodepool": "p"});
        workload["metadata"]["annotations"] = json!({"apps.openyurt.io/ref-nodepool": "p"});
        let patches: Vec<Value> = patches
            .iter()
            .map(|patch| {
                let mut patch = patch.clone();
                patch["op"] = patch["operation"].take();
                patch
            })
            .collect();
        json_patch(&mut workload, &patches.into()).expect("patches apply");
        workload
    }

    #[test]
    fn a_strategic_merge_patch_becomes_patches_that_leave_the_rest_alone() {
        let patch = json!({"metadata": {"annotations": {"x": "y"}}, "spec": {"replicas": 5, "template": {"spec": {
            "nodeSelector": {"disk": "ssd"}, "containers": [{"name": "b", "image": "b:2"}]}}}});
        let changes = Changes {
            patch: Some(&patch),
            ..Changes::default()
        };
        let workload = rendered(&changes.as_patches("Deployment", &template()));
        let pods = &workload["spec"]["template"]["spec"];
        assert_eq!(workload["spec"]["replicas"], 5);
        assert_eq!(pods["containers"][0]["image"], "a:1");
        assert_eq!(pods["containers"][1]["image"], "b:2");
        assert_eq!(
            pods["nodeSelector"],
            json!({"disk": "ssd", "apps.openyurt.io/nodepool": "p"})
        );
        assert_eq!(
            workload["metadata"]["annotations"]["apps.openyurt.io/ref-nodepool"],
            "p"
        );
    }

    #[test]
    fn a_patch_wins_over_replicas_even_with_those_of_the_template() {
        let patch = json!({"spec": {"replicas": 2}});
        let seven = Value::from(7);
        let changes = Changes {
            replicas: Some(&seven),
            patch: Some(&patch),
            ..Changes::default()
        };
        let patches = changes.as_patches("Deployment", &template());
        assert_eq!(
            patches,
            [json!({"operation": "replace", "path": "/spec/replicas", "value": 2})]
        );
    }

    #[test]
    fn tolerations_and_requirements_on_nodes_are_added() {
        let term =
            json!({"matchExpressions": [{"key": "gpu", "operator": "Exists"}], "matchFields": []});
        let tolerations = json!([{"key": "t", "operator": "Exists"}]);
        let changes = Changes {
            node_selector_term: Some(&term),
            tolerations: Some(&tolerations),
            ..Changes::default()
        };
        let workload = rendered(&changes.as_patches("StatefulSet", &template()));
        let pods = &workload["spec"]["template"]["spec"];
        assert_eq!(pods["tolerations"], tolerations);
        let required =
            &pods["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"];
        assert_eq!(
            required["nodeSelectorTerms"][0]["matchExpressions"],
            term["matchExpressions"]
        );
    }

    #[test]
    fn what_does_not_apply_changes_nothing() {
        let patch =
            json!({"spec": {"template": {"spec": {"containers": [{"image": "without a name"}]}}}});
        let text = Value::from("no list");
        let changes = Changes {
            patch: Some(&patch),
            tolerations: Some(&text),
            node_selector_term: Some(&text),
            ..Changes::default()
        };
        assert!(changes.as_patches("Deployment", &template()).is_empty());
        assert!(
            Changes::default()
                .as_patches("Deployment", &Value::Null)
                .is_empty()
        );
    }

    #[test]
    fn an_overrider_becomes_tweaks_of_named_pools() {
        let overrider: YurtAppOverrider = serde_json::from_value(json!({
            "subject": {"kind": "YurtAppSet", "name": "web"},
            "entries": [
                {"pools": ["*", "-b"], "items": [{"replicas": 3}, {"image": {"containerName": "a", "imageClaim": "a:2"}}],
                    "patches": [{"operation": "add", "path": "/metadata/labels/pool", "value": "in-{{nodepool}}"}]},
                {"pools": ["-a"], "items": [{"replicas": 1}]},
                {"pools": ["elsewhere"], "items": [{"replicas": 9}]}]})).expect("an overrider");
        let tweaks = tweaks_of(&overrider, &["a", "b", "c"]);
        assert_eq!(tweaks.len(), 2);
        assert_eq!(tweaks[0].pools, ["a", "c"]);
        assert_eq!(tweaks[0].tweaks.replicas, Some(3));
        assert_eq!(tweaks[0].tweaks.container_images[0].target_image, "a:2");
        assert_eq!(tweaks[0].tweaks.patches[0].value, "in-{{nodepool-name}}");
        assert_eq!(tweaks[1].pools, ["b", "c"]);
    }

    #[test]
    fn a_daemon_becomes_a_set_of_the_pools_it_selects() {
        let daemon: YurtAppDaemonSpec = serde_json::from_value(json!({
            "selector": {"matchLabels": {"app": "a"}}, "nodepoolSelector": {"matchLabels": {"kind": "edge"}},
            "workloadTemplate": {"deploymentTemplate": template()}, "revisionHistoryLimit": 4})).expect("a daemon");
        let set = serde_json::to_value(set_of(&daemon)).expect("JSON");
        assert_eq!(
            set,
            json!({"nodepoolSelector": {"matchLabels": {"kind": "edge"}}, "revisionHistoryLimit": 4,
            "workload": {"workloadTemplate": {"deploymentTemplate": template()}}})
        );
    }
}
