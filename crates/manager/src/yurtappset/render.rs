//! What the workload of a pool is to be: a function of the set, the pool and the tweaks that hold in it.
//!
//! The shape is OpenYurt's, so that what it made is what is rendered: the label of the pool in labels, selector and pods, the
//! pods bound to the pool by a node selector. What names the revision is put in when it is written ([`Rendered::finish`]).

use super::{
    child::Record,
    pools::{Pool, Tweak},
};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use yurt_api::{
    apps::{workload::Template, yurtappset::Patch},
    names::{annotations, labels},
};
use yurt_controller::{Collection, claim, fields::Labels, template_hash};
use yurt_wire::patch::json_patch;

/// Stands for the name of the pool in values of patches.
const TOKEN: &str = "{{nodepool-name}}";
/// The longest value of a label.
pub(crate) const LONGEST_LABEL: usize = 63;
/// The longest name whose pods' names and labels still say it whole.
const LONGEST_NAME: usize = 52;

/// Why the workload of a pool cannot be rendered. The author of the set must change it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Fault {
    /// A patch does not apply.
    #[error("pool {pool}: patch {operation} {path}: {reason}")]
    Patch {
        pool: String,
        operation: String,
        path: String,
        reason: String,
    },
    /// A part of the workload is not an object.
    #[error("pool {pool}: {path} must be an object")]
    Shape { pool: String, path: String },
    /// No label can hold the pool's name, so it has no nodes.
    #[error("pool {0}: its name is longer than the 63 characters of a label: no node can be in it")]
    PoolName(String),
}

/// Whose workloads are rendered.
#[derive(Debug)]
pub(crate) struct Owner {
    /// Its name.
    pub(crate) name: String,
    /// Its namespace, and the workloads'.
    pub(crate) namespace: String,
    /// Its UID.
    pub(crate) uid: String,
    /// The owner reference of the workloads.
    pub(crate) reference: Value,
    /// A label that refers to it, for those that have one.
    pub(crate) label: Option<(&'static str, String)>,
    /// The labels of a daemon's selector: then its pods also tolerate the taints of their pool, and go nowhere else.
    pub(crate) daemon: Option<Labels>,
}

impl Owner {
    /// Of a set, or of a daemon with the labels of its selector.
    pub(crate) fn of(collection: &Collection, object: &Value, daemon: Option<Labels>) -> Self {
        let text = |field: &str| {
            object["metadata"][field]
                .as_str()
                .unwrap_or_default()
                .to_owned()
        };
        let name = text("name");
        let label = daemon
            .is_none()
            .then(|| (labels::REF_YURT_APP_SET, as_label(&name)));
        Self {
            namespace: text("namespace"),
            uid: text("uid"),
            reference: claim::reference(collection, object),
            name,
            label,
            daemon,
        }
    }
}

/// A name as the value of a label: one that is too long is cut and told from others by its hash.
pub(crate) fn as_label(name: &str) -> String {
    cut(name, LONGEST_LABEL)
}

fn cut(name: &str, longest: usize) -> String {
    if name.len() <= longest {
        return name.to_owned();
    }
    let hash = template_hash::of(&name.into(), None);
    let head: String = name.chars().take(longest - 1 - hash.len()).collect();
    format!("{}-{hash}", head.trim_end_matches(['-', '.']))
}

/// What workloads are rendered of.
#[derive(Debug)]
pub(crate) struct Blueprint<'b> {
    /// Whose they are.
    pub(crate) owner: &'b Owner,
    /// `Deployment` or `StatefulSet`.
    pub(crate) kind: &'static str,
    /// The same for all pools.
    pub(crate) template: &'b Template,
    /// What is different in some, the later the stronger.
    pub(crate) tweaks: Vec<Tweak<'b>>,
}

/// A workload without its name and revision.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Rendered {
    /// The workload.
    pub(crate) object: Value,
    /// Changes when its pods must be replaced.
    pub(crate) template: String,
    /// Changes when anything but the replicas does.
    pub(crate) workload: String,
    /// How many pods are wanted; none: it is not the set's business.
    pub(crate) replicas: Option<i64>,
    /// Changes with anything of `object`.
    pub(crate) whole: String,
    /// Of a daemon: the tolerations besides those of the taints of the pool.
    pub(crate) tolerations: Option<Vec<Value>>,
}

fn hash(value: &Value) -> String {
    let hash = Sha256::digest(value.to_string().as_bytes());
    hash.iter()
        .take(10)
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// What an absent field of an object and `null` have in common is meant: nothing.
fn without_nulls(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|_, value| !value.is_null());
            fields.values_mut().for_each(without_nulls);
        }
        Value::Array(values) => values.iter_mut().for_each(without_nulls),
        _ => {}
    }
}

/// The object at a path of a workload, made where missing.
fn part<'v>(
    workload: &'v mut Value,
    path: &[&str],
    pool: &str,
) -> Result<&'v mut Map<String, Value>, Fault> {
    let fault = || Fault::Shape {
        pool: pool.into(),
        path: path.join("."),
    };
    let mut at = workload;
    for field in path {
        let fields = at.as_object_mut().ok_or_else(fault)?;
        at = fields.entry(*field).or_insert(Value::Null);
        if at.is_null() {
            *at = json!({});
        }
    }
    at.as_object_mut().ok_or_else(fault)
}

const POD_SPEC: [&str; 3] = ["spec", "template", "spec"];
const POD_LABELS: [&str; 4] = ["spec", "template", "metadata", "labels"];

impl Blueprint<'_> {
    /// The workload of a pool. `identity` is the value of the label that says the pool: of a new workload its name.
    pub(crate) fn render(
        &self,
        pool: &Pool,
        identity: &str,
        replicas: Option<i64>,
    ) -> Result<Rendered, Fault> {
        if pool.name.len() > LONGEST_LABEL {
            return Err(Fault::PoolName(pool.name.clone()));
        }
        let mut bare = self.workload(pool, identity, replicas, &[])?;
        let mut object = match &self.owner.daemon {
            Some(_) if !pool.taints.is_empty() => {
                self.workload(pool, identity, replicas, &pool.taints)?
            }
            _ => bare.clone(),
        };
        let replicas = part(&mut object, &["spec"], &pool.name)?
            .remove("replicas")
            .and_then(|replicas| replicas.as_i64());
        part(&mut bare, &["spec"], &pool.name)?.remove("replicas");
        Ok(Rendered {
            template: hash(&bare["spec"]["template"]),
            workload: hash(&bare),
            whole: hash(&object),
            tolerations: self.owner.daemon.as_ref().map(|_| {
                let tolerations = &bare["spec"]["template"]["spec"]["tolerations"];
                tolerations.as_array().cloned().unwrap_or_default()
            }),
            object,
            replicas,
        })
    }

    fn workload(
        &self,
        pool: &Pool,
        identity: &str,
        replicas: Option<i64>,
        taints: &[(String, String)],
    ) -> Result<Value, Fault> {
        let name = &*pool.name;
        let mut workload = json!({
            "apiVersion": "apps/v1", "kind": self.kind,
            "metadata": {"namespace": self.owner.namespace}, "spec": self.template.spec,
        });
        for field in ["labels", "annotations"] {
            if let Some(map) = self.template.metadata.get(field).filter(|v| !v.is_null()) {
                workload["metadata"][field] = map.clone();
            }
        }
        self.identify(&mut workload, name, identity)?;
        if let Some(replicas) = replicas {
            part(&mut workload, &["spec"], name)?.insert("replicas".into(), replicas.into());
        }
        let pods = part(&mut workload, &POD_SPEC, name)?;
        if self.owner.daemon.is_some() {
            pods.insert("nodeSelector".into(), json!({labels::NODE_POOL: name}));
            if let Some(affinity) = pods
                .get_mut("affinity")
                .and_then(|a| a.get_mut("nodeAffinity"))
                && let Some(affinity) = affinity.as_object_mut()
            {
                affinity.remove("requiredDuringSchedulingIgnoredDuringExecution");
            }
            if !taints.is_empty() {
                let tolerations = pods.entry("tolerations").or_insert(Value::Null);
                let mut list = tolerations.as_array().cloned().unwrap_or_default();
                list.extend(taints.iter().map(
                    |(key, effect)| json!({"key": key, "operator": "Exists", "effect": effect}),
                ));
                *tolerations = list.into();
            }
        } else {
            part(
                &mut workload,
                &[&POD_SPEC[..], &["nodeSelector"]].concat(),
                name,
            )?
            .insert(labels::NODE_POOL.into(), name.into());
        }
        self.tweak(&mut workload, pool)?;
        // Patches may replace whole maps; whose it is stays.
        self.identify(&mut workload, name, identity)?;
        without_nulls(&mut workload);
        Ok(workload)
    }

    /// What says whose and which pool's it is.
    fn identify(&self, workload: &mut Value, pool: &str, identity: &str) -> Result<(), Fault> {
        let owner = self.owner;
        let labels = part(workload, &["metadata", "labels"], pool)?;
        for (key, value) in owner.daemon.iter().flatten() {
            labels.insert(key.clone(), value.clone().into());
        }
        if let Some((key, value)) = &owner.label {
            labels.insert((*key).into(), value.clone().into());
        }
        labels.insert(labels::WORKLOAD_POOL.into(), identity.into());
        part(workload, &["metadata", "annotations"], pool)?
            .insert(annotations::REF_NODE_POOL.into(), pool.into());
        part(workload, &["metadata"], pool)?
            .insert("ownerReferences".into(), json!([owner.reference]));
        for path in [&["spec", "selector", "matchLabels"][..], &POD_LABELS] {
            part(workload, path, pool)?.insert(labels::WORKLOAD_POOL.into(), identity.into());
        }
        Ok(())
    }

    /// Replicas and images of all tweaks, then their patches.
    fn tweak(&self, workload: &mut Value, pool: &Pool) -> Result<(), Fault> {
        let holding = || self.tweaks.iter().filter(|tweak| tweak.holds(pool));
        for tweak in holding() {
            if let Some(replicas) = tweak.tweaks.replicas {
                part(workload, &["spec"], &pool.name)?.insert("replicas".into(), replicas.into());
            }
            let pods = part(workload, &POD_SPEC, &pool.name)?;
            for image in &tweak.tweaks.container_images {
                for list in ["containers", "initContainers"] {
                    let containers = pods.get_mut(list).and_then(Value::as_array_mut);
                    for container in containers.into_iter().flatten() {
                        if let Some(container) = container.as_object_mut()
                            && container
                                .get("name")
                                .is_some_and(|name| *name == image.name)
                        {
                            container.insert("image".into(), image.target_image.clone().into());
                        }
                    }
                }
            }
        }
        for patch in holding().flat_map(|tweak| &tweak.tweaks.patches) {
            apply(workload, patch, &pool.name)?;
        }
        Ok(())
    }
}

fn apply(workload: &mut Value, patch: &Patch, pool: &str) -> Result<(), Fault> {
    let fault = |reason: String| Fault::Patch {
        pool: pool.into(),
        operation: patch.operation.clone(),
        path: patch.path.clone(),
        reason,
    };
    let mut operation = json!({"op": patch.operation, "path": patch.path});
    if patch.operation != "remove" {
        // The name of a pool has nothing that JSON escapes.
        let text = patch.value.to_string().replace(TOKEN, pool);
        operation["value"] =
            serde_json::from_str(&text).map_err(|error| fault(error.to_string()))?;
    }
    json_patch(workload, &json!([operation])).map_err(|error| fault(error.to_string()))
}

impl Rendered {
    /// The workload as it is applied: under a name, of a revision, with the record of what it was rendered of.
    pub(crate) fn finish(mut object: Value, name: &str, record: &Record) -> Value {
        let revision = &*record.revision;
        object["metadata"]["name"] = name.into();
        object["metadata"]["labels"][labels::CONTROLLER_REVISION_HASH] = revision.into();
        object["metadata"]["annotations"][annotations::RENDERED] = record.to_text().into();
        object["spec"]["template"]["metadata"]["labels"][labels::CONTROLLER_REVISION_HASH] =
            revision.into();
        object
    }
}

/// The name of a new workload: `SET-POOL-` and a hash, so that the same set never makes two for a pool, whatever it forgot.
pub(crate) fn name(owner: &Owner, pool: &str, kind: &str) -> String {
    let hash = template_hash::of(&json!([owner.uid, pool]), None);
    let longest = if kind == "StatefulSet" {
        LONGEST_NAME
    } else {
        200
    };
    let prefix = format!("{}-{pool}", owner.name);
    let room = longest - 1 - hash.len();
    let prefix: String = prefix.chars().take(room).collect();
    format!("{}-{hash}", prefix.trim_end_matches(['-', '.']))
}

#[cfg(test)]
mod tests;
