//! What every object has, and the types of Kubernetes that the custom resources use in their fields.

use crate::schema::{Field, Timestamp, types};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::{
    collections::BTreeMap,
    ops::{Deref, DerefMut},
};

/// A body of an object (spec and status, mostly) that is served as a resource.
pub trait Resource: Field + Default {
    /// The API group.
    const GROUP: &'static str;
    /// The version this type is of.
    const VERSION: &'static str;
    /// The kind.
    const KIND: &'static str;
    /// The name in paths.
    const PLURAL: &'static str;
    /// Whether its objects are in namespaces.
    const NAMESPACED: bool;
}

macro_rules! resource {
    ($($ty:ty: $group:expr, $version:literal, $kind:literal, $plural:literal, $namespaced:literal;)*) => { $(
        impl crate::meta::Resource for $ty {
            const GROUP: &'static str = $group;
            const VERSION: &'static str = $version;
            const KIND: &'static str = $kind;
            const PLURAL: &'static str = $plural;
            const NAMESPACED: bool = $namespaced;
        }
    )* };
}

pub(crate) use resource;

/// A whole object: `Object<NodePool>` is what the API server serves as one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)]
pub struct Object<T> {
    #[serde(default)]
    pub api_version: String,
    #[serde(default)]
    pub kind: String,
    #[serde(default)]
    pub metadata: Metadata,
    /// Its fields are beside `metadata`.
    #[serde(flatten)]
    pub body: T,
}

impl<T: Resource> Object<T> {
    /// An object with its version and kind set.
    pub fn new(metadata: Metadata, body: T) -> Self {
        Self {
            api_version: format!("{}/{}", T::GROUP, T::VERSION),
            kind: T::KIND.into(),
            metadata,
            body,
        }
    }

    /// Its path on an API server.
    pub fn path(&self) -> String {
        let Metadata {
            name, namespace, ..
        } = &self.metadata;
        let namespace = if T::NAMESPACED {
            format!("namespaces/{namespace}/")
        } else {
            String::new()
        };
        format!(
            "/apis/{}/{}/{namespace}{}/{name}",
            T::GROUP,
            T::VERSION,
            T::PLURAL
        )
    }
}

impl<T> Deref for Object<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.body
    }
}

impl<T> DerefMut for Object<T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.body
    }
}

/// The metadata that controllers look at; all else is in `rest`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs)]
pub struct Metadata {
    pub name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub uid: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub resource_version: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub generation: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub creation_timestamp: Option<Timestamp>,
    /// Set: the object is being deleted and waits for its finalizers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deletion_timestamp: Option<Timestamp>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub finalizers: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub owner_references: Vec<OwnerReference>,
    #[serde(flatten)]
    pub rest: Map<String, Value>,
}

/// Who owns an object.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs)]
pub struct OwnerReference {
    pub api_version: String,
    pub kind: String,
    pub name: String,
    pub uid: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub controller: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub block_owner_deletion: Option<bool>,
}

types! {
    /// A query over labels; what is in it must all hold. Empty selects everything.
    pub struct LabelSelector {
        /// Labels with these values.
        match_labels: BTreeMap<String, String>,
        /// Requirements on labels.
        match_expressions: Vec<LabelSelectorRequirement> => {"x-kubernetes-list-type": "atomic"},
    }

    /// A requirement on a label.
    pub struct LabelSelectorRequirement {
        /// The label.
        key: String,
        /// In, NotIn, Exists or DoesNotExist.
        operator: String,
        /// At least one for In and NotIn, none otherwise.
        values: Vec<String> => {"x-kubernetes-list-type": "atomic"},
    }

    /// Requirements on nodes that must all hold.
    pub struct NodeSelectorTerm {
        /// On their labels.
        match_expressions: Vec<NodeSelectorRequirement> => {"x-kubernetes-list-type": "atomic"},
        /// On their fields.
        match_fields: Vec<NodeSelectorRequirement> => {"x-kubernetes-list-type": "atomic"},
    }

    /// A requirement on a node.
    pub struct NodeSelectorRequirement {
        /// The label or field.
        key: String,
        /// In, NotIn, Exists, DoesNotExist, Gt or Lt.
        operator: String,
        /// At least one for In and NotIn, one whole number for Gt and Lt, none otherwise.
        values: Vec<String> => {"x-kubernetes-list-type": "atomic"},
    }

    /// Keeps pods off a node that do not tolerate it.
    pub struct Taint {
        /// What it is called.
        key: String,
        /// NoSchedule, PreferNoSchedule or NoExecute.
        effect: String,
        /// Its value.
        value: Option<String>,
        /// When it was added.
        time_added: Option<Timestamp>,
    }

    /// What taints a pod tolerates.
    pub struct Toleration {
        /// The taint; absent with the operator Exists for all.
        key: Option<String>,
        /// Exists or Equal, which is the default.
        operator: Option<String>,
        /// The value to equal.
        value: Option<String>,
        /// The effect; absent for all.
        effect: Option<String>,
        /// How long a NoExecute taint is tolerated; absent for ever.
        toleration_seconds: Option<i64>,
    }

    /// An aspect of what is observed of an object.
    pub struct Condition {
        /// Which.
        [optional] condition_type as "type": String,
        /// True, False or Unknown.
        [optional] status: String,
        /// When status last changed.
        last_transition_time: Option<Timestamp>,
        /// Why, in one CamelCase word.
        [optional] reason: String,
        /// Why, for people.
        [optional] message: String,
    }
}
