//! A workload of a set, as it is: which pool it is for, what it was rendered of, how it does, what others changed in it.

use super::render::Rendered;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::sync::Arc;
use yurt_api::names::{annotations, labels};
use yurt_controller::{
    fields::{items, text},
    pod,
};

/// What a workload was last rendered of, in an annotation of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// [`Rendered::workload`].
    pub(crate) workload: String,
    /// [`Rendered::template`].
    pub(crate) template: String,
    /// The revision that its pods carry as a label: the one by which its template last changed.
    pub(crate) revision: String,
    /// How many pods the set wanted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) replicas: Option<i64>,
    /// Who scales it since: then the replicas are theirs, until the set wants another number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) scaled: Option<String>,
    /// When its pods were last replaced by an update, in Unix seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) since: Option<i64>,
}

impl Record {
    /// As it stands in the annotation.
    pub(crate) fn to_text(&self) -> String {
        json!(self).to_string()
    }
}

/// A workload of a set.
#[derive(Clone, Debug)]
pub(crate) struct Child {
    /// It.
    pub(crate) object: Arc<Value>,
    /// `Deployment` or `StatefulSet`.
    pub(crate) kind: &'static str,
    /// The pool that it is for.
    pub(crate) pool: String,
    /// What it was rendered of; `None` for what OpenYurt made.
    pub(crate) record: Option<Record>,
}

const AFFINITY: &str = "requiredDuringSchedulingIgnoredDuringExecution";

impl Child {
    /// Reads a workload.
    pub(crate) fn of(object: Arc<Value>, kind: &'static str) -> Self {
        let record = object["metadata"]["annotations"][annotations::RENDERED]
            .as_str()
            .and_then(|text| serde_json::from_str(text).ok());
        Self {
            pool: pool_of(&object),
            record,
            kind,
            object,
        }
    }

    /// Its name.
    pub(crate) fn name(&self) -> &str {
        self.object["metadata"]["name"].as_str().unwrap_or_default()
    }

    /// Its UID.
    pub(crate) fn uid(&self) -> &str {
        self.object["metadata"]["uid"].as_str().unwrap_or_default()
    }

    /// Its generation.
    pub(crate) fn generation(&self) -> i64 {
        self.object["metadata"]["generation"].as_i64().unwrap_or(0)
    }

    /// Whether it is going.
    pub(crate) fn is_deleting(&self) -> bool {
        pod::is_deleting(&self.object)
    }

    /// The value of the label that says its pool, in its selector where that cannot be changed any more.
    pub(crate) fn identity(&self) -> Option<&str> {
        let selector = &self.object["spec"]["selector"]["matchLabels"][labels::WORKLOAD_POOL];
        let label = &self.object["metadata"]["labels"][labels::WORKLOAD_POOL];
        selector.as_str().or(label.as_str())
    }

    /// The revision that its pods carry.
    pub(crate) fn revision(&self) -> Option<&str> {
        let pods = &self.object["spec"]["template"]["metadata"]["labels"];
        pods[labels::CONTROLLER_REVISION_HASH]
            .as_str()
            .filter(|revision| !revision.is_empty())
    }

    /// How many pods it is to have.
    pub(crate) fn replicas(&self) -> i64 {
        self.object["spec"]["replicas"].as_i64().unwrap_or(1)
    }

    /// A number of its status.
    pub(crate) fn count(&self, field: &str) -> i64 {
        self.object["status"][field].as_i64().unwrap_or(0)
    }

    /// Whether its controller has seen the newest spec and all pods are of it.
    pub(crate) fn is_updated(&self) -> bool {
        self.count("observedGeneration") >= self.generation()
            && self.count("updatedReplicas") >= self.replicas()
    }

    /// Whether all pods are updated and ready.
    pub(crate) fn is_healthy(&self) -> bool {
        self.is_updated() && self.count("readyReplicas") >= self.replicas()
    }

    /// What its replicas are to be when the set wants `wanted`.
    pub(crate) fn size(&self, wanted: Option<i64>) -> Size {
        let live = self.object["spec"]["replicas"].as_i64();
        match (wanted, live, &self.record) {
            (None, None, _) => Size::Unsaid,
            (None, Some(live), _) => Size::Theirs(live),
            (Some(wanted), None, _) => Size::Ours(wanted),
            (Some(wanted), Some(live), _) if wanted == live => Size::Ours(wanted),
            (Some(wanted), Some(live), Some(record)) if record.replicas == Some(wanted) => {
                match record.scaled {
                    Some(_) => Size::Theirs(live),
                    None => Size::Contested,
                }
            }
            (Some(wanted), Some(_), Some(_)) => Size::Ours(wanted),
            (Some(_), Some(_), None) => Size::Contested,
        }
    }
}

/// Who says how many pods there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Size {
    /// The set.
    Ours(i64),
    /// Who scaled the workload; it stays at this.
    Theirs(i64),
    /// Nobody: Kubernetes' default.
    Unsaid,
    /// Another number than the set's is there: who wrote it decides.
    Contested,
}

/// The pool that a workload is for: what it says, or where its pods may go.
fn pool_of(workload: &Value) -> String {
    let metadata = &workload["metadata"];
    let said = &metadata["annotations"][annotations::REF_NODE_POOL];
    let pods = &workload["spec"]["template"]["spec"];
    let selected = &pods["nodeSelector"][labels::NODE_POOL];
    let label = &metadata["labels"][labels::WORKLOAD_POOL];
    said.as_str()
        .or(selected.as_str())
        .or_else(|| pinned_to(pods))
        .or(label.as_str())
        .unwrap_or_default()
        .to_owned()
}

fn names_pool(expression: &Value) -> Option<&str> {
    let named = expression["key"] == labels::NODE_POOL && expression["operator"] == "In";
    match expression["values"].as_array().map(Vec::as_slice) {
        Some([only]) if named => only.as_str(),
        _ => None,
    }
}

/// The one pool that the required node affinity of pods allows, as v1alpha1 sets had it.
fn pinned_to(pods: &Value) -> Option<&str> {
    let terms = &pods["affinity"]["nodeAffinity"][AFFINITY]["nodeSelectorTerms"];
    let mut pools = items(terms).map(|term| items(&term["matchExpressions"]).find_map(names_pool));
    let first = pools.next()??;
    pools.all(|pool| pool == Some(first)).then_some(first)
}

/// Node affinity without what binds it to one pool, and without what says nothing.
fn beside_pool(pods: &Value) -> Value {
    let mut affinity = pods["affinity"].clone();
    let terms = affinity
        .pointer_mut(&format!("/nodeAffinity/{AFFINITY}/nodeSelectorTerms"))
        .and_then(Value::as_array_mut);
    if let Some(terms) = terms {
        for term in terms.iter_mut() {
            if let Some(expressions) = term["matchExpressions"].as_array_mut() {
                expressions.retain(|expression| names_pool(expression).is_none());
            }
        }
        terms.iter_mut().for_each(prune);
        terms.retain(|term| !term.is_null());
    }
    prune(&mut affinity);
    affinity
}

/// Takes away what is empty.
fn prune(value: &mut Value) {
    if let Value::Object(fields) = value {
        fields.values_mut().for_each(prune);
        fields.retain(|_, value| !value.is_null());
    }
    let is_empty = match value {
        Value::Object(fields) => fields.is_empty(),
        Value::Array(values) => values.is_empty(),
        _ => false,
    };
    if is_empty {
        *value = Value::Null;
    }
}

/// What is rendered for a workload that exists, with what must not or need not change in it: its selector, the way in which
/// OpenYurt 1.4 bound pods to the pool, tolerations of taints that the pool no longer has.
pub(crate) fn fitted(rendered: &Rendered, live: &Value, keep_pods: bool) -> Value {
    let mut object = rendered.object.clone();
    let selector = &live["spec"]["selector"];
    let pod_labels = &rendered.object["spec"]["template"]["metadata"]["labels"];
    let still_fits = selector["matchExpressions"].is_null()
        && selector["matchLabels"].as_object().is_some_and(|map| {
            map.iter()
                .all(|(key, value)| pod_labels.get(key) == Some(value))
        });
    if still_fits {
        object["spec"]["selector"] = selector.clone();
    }
    object["metadata"]["uid"] = live["metadata"]["uid"].clone();
    if !keep_pods {
        return object;
    }
    let (pods, kept) = (
        &mut object["spec"]["template"]["spec"],
        &live["spec"]["template"]["spec"],
    );
    let by_affinity = kept["nodeSelector"][labels::NODE_POOL].is_null()
        && pinned_to(kept).is_some_and(|pool| pods["nodeSelector"][labels::NODE_POOL] == pool)
        && beside_pool(kept) == beside_pool(pods);
    if by_affinity {
        pods["affinity"] = kept["affinity"].clone();
        if let Some(selector) = pods["nodeSelector"].as_object_mut() {
            selector.remove(labels::NODE_POOL);
            if selector.is_empty()
                && let Some(pods) = pods.as_object_mut()
            {
                pods.remove("nodeSelector");
            }
        }
    }
    if let Some(own) = &rendered.tolerations {
        let list = |value: &Value| items(&value["tolerations"]).cloned().collect::<Vec<_>>();
        let (wanted, there) = (list(pods), list(kept));
        let of_taint = |t: &&Value| !own.contains(t);
        if wanted.iter().all(|t| there.contains(t))
            && there
                .iter()
                .filter(of_taint)
                .all(|t| t["operator"] == "Exists")
            && !there.is_empty()
        {
            pods["tolerations"] = there.into();
        }
    }
    object
}

/// Whether everything wanted is there as wanted; what is there besides is another's, or a default.
pub(crate) fn covers(live: &Value, wanted: &Value) -> bool {
    match (live, wanted) {
        (Value::Object(live), Value::Object(wanted)) => {
            let there = |(field, wanted): (&String, &Value)| match live.get(field) {
                Some(live) => covers(live, wanted),
                None => is_nothing(wanted),
            };
            wanted.iter().all(there)
        }
        (Value::Array(live), Value::Array(wanted)) => {
            live.len() == wanted.len() && live.iter().zip(wanted).all(|(l, w)| covers(l, w))
        }
        (live, wanted) => live == wanted,
    }
}

/// What an API server leaves out when it is empty.
fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(values) => values.is_empty(),
        Value::Object(fields) => fields.values().all(is_nothing),
        _ => false,
    }
}

/// Who last scaled a workload through its subresource `scale`, by `metadata.managedFields`.
pub(crate) fn scaled_by(live: &Value) -> Option<String> {
    let entry = items(&live["metadata"]["managedFields"]).find(|entry| {
        entry["subresource"] == "scale" && entry["fieldsV1"]["f:spec"]["f:replicas"].is_object()
    })?;
    Some(text(&entry["manager"]))
}

/// Under which names OpenYurt's manager wrote whole objects.
const FORMER: &[&str] = &["yurt-manager", "manager", "yurt-app-manager"];

/// `metadata.managedFields` in which what OpenYurt's manager owned by updates is owned by the apply of `manager`, so that fields
/// which are not rendered any more go away; `None` when there is nothing of that kind.
pub(crate) fn inherited(live: &Value, manager: &str) -> Option<Vec<Value>> {
    let is_former = |entry: &Value| {
        let whole = entry["subresource"].as_str().unwrap_or_default().is_empty();
        let former = FORMER.iter().any(|name| entry["manager"] == *name);
        entry["operation"] == "Update" && whole && former
    };
    let is_ours = |entry: &Value| entry["operation"] == "Apply" && entry["manager"] == manager;
    let entries = || items(&live["metadata"]["managedFields"]);
    let first = entries().find(|entry| is_former(entry))?;
    let mut ours = first.clone();
    ours["manager"] = manager.into();
    ours["operation"] = "Apply".into();
    for entry in entries().filter(|entry| is_former(entry) || is_ours(entry)) {
        unite(&mut ours["fieldsV1"], &entry["fieldsV1"]);
    }
    let others = entries().filter(|entry| !is_former(entry) && !is_ours(entry));
    Some(others.cloned().chain([ours]).collect())
}

fn unite(fields: &mut Value, more: &Value) {
    if !fields.is_object() {
        *fields = Value::Object(Map::new());
    }
    if let (Some(fields), Some(more)) = (fields.as_object_mut(), more.as_object()) {
        for (field, more) in more {
            match fields.get_mut(field) {
                Some(fields) => unite(fields, more),
                None => {
                    fields.insert(field.clone(), more.clone());
                }
            }
        }
    }
}
