//! What is asked for: a served resource, one object of it, or a part of it.

use serde_json::Value;
use std::{borrow::Cow, fmt};
use yurt_wire::selector::{FieldSelector, LabelSelector};

/// Namespace and name; the namespace is empty for cluster-scoped objects.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// Namespace, or empty.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl Key {
    /// A key.
    pub fn new(namespace: &str, name: &str) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
        }
    }

    /// The key of an object.
    pub fn of(object: &Value) -> Self {
        let meta = &object["metadata"];
        Self::new(
            meta["namespace"].as_str().unwrap_or_default(),
            meta["name"].as_str().unwrap_or_default(),
        )
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.namespace.is_empty() {
            write!(f, "{}/", self.namespace)?;
        }
        f.write_str(&self.name)
    }
}

/// A served resource.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Collection {
    /// `v1`, `apps/v1`.
    pub api_version: Cow<'static, str>,
    /// `pods`.
    pub plural: Cow<'static, str>,
    /// `Pod`.
    pub kind: Cow<'static, str>,
    /// Whether its objects live in namespaces.
    pub namespaced: bool,
}

impl Collection {
    /// A namespaced resource.
    pub const fn namespaced(
        api_version: &'static str,
        plural: &'static str,
        kind: &'static str,
    ) -> Self {
        Self::new(api_version, plural, kind, true)
    }

    /// A cluster-scoped resource.
    pub const fn cluster(
        api_version: &'static str,
        plural: &'static str,
        kind: &'static str,
    ) -> Self {
        Self::new(api_version, plural, kind, false)
    }

    const fn new(
        api_version: &'static str,
        plural: &'static str,
        kind: &'static str,
        namespaced: bool,
    ) -> Self {
        Self {
            api_version: Cow::Borrowed(api_version),
            plural: Cow::Borrowed(plural),
            kind: Cow::Borrowed(kind),
            namespaced,
        }
    }

    /// The path of the collection in a namespace (`""`: everywhere).
    pub fn path(&self, namespace: &str) -> String {
        let root = if self.api_version.contains('/') {
            "/apis"
        } else {
            "/api"
        };
        if self.namespaced && !namespace.is_empty() {
            format!(
                "{root}/{}/namespaces/{namespace}/{}",
                self.api_version, self.plural
            )
        } else {
            format!("{root}/{}/{}", self.api_version, self.plural)
        }
    }

    /// Says of an object that it is one of these: `apiVersion` and `kind`.
    pub(crate) fn name(&self, object: &mut Value) {
        object["apiVersion"] = self.api_version.as_ref().into();
        object["kind"] = self.kind.as_ref().into();
    }

    /// The path of an object.
    pub fn object_path(&self, key: &Key) -> String {
        format!("{}/{}", self.path(&key.namespace), key.name)
    }
}

/// What part of a collection is kept; the default is all of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Scope {
    /// Only metadata is asked for and kept (`PartialObjectMetadata`).
    pub metadata_only: bool,
    /// One namespace, or empty.
    pub namespace: String,
    /// A label selector as in a query (`a=b,c`), or empty.
    pub labels: String,
    /// A field selector as in a query (`metadata.name=a`), or empty.
    pub fields: String,
}

impl Scope {
    /// Everything's metadata.
    pub fn metadata() -> Self {
        Self {
            metadata_only: true,
            ..Self::default()
        }
    }

    /// One namespace of this.
    pub fn within(self, namespace: &str) -> Self {
        Self {
            namespace: namespace.into(),
            ..self
        }
    }

    /// What these labels select of this.
    pub fn labelled(self, labels: &str) -> Self {
        Self {
            labels: labels.into(),
            ..self
        }
    }

    /// Whether an object, as it is now, is of this part. A selector that cannot be read takes nothing.
    pub(crate) fn takes(&self, object: &Value) -> bool {
        let metadata = &object["metadata"];
        let labels = || {
            let labels = metadata["labels"].as_object().into_iter().flatten();
            labels
                .map(|(key, value)| (key.clone(), value.as_str().unwrap_or_default().to_owned()))
                .collect::<Vec<_>>()
        };
        let field = |path: &str| {
            let value = path.split('.').fold(object, |value, name| &value[name]);
            value.as_str().unwrap_or_default().to_owned()
        };
        (self.namespace.is_empty() || metadata["namespace"] == *self.namespace)
            && (self.labels.is_empty()
                || LabelSelector::parse(&self.labels).is_ok_and(|s| s.matches(&labels())))
            && (self.fields.is_empty()
                || FieldSelector::parse(&self.fields).is_ok_and(|s| s.matches(field)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_those_of_the_api() {
        let pods = Collection::namespaced("v1", "pods", "Pod");
        assert_eq!(pods.path(""), "/api/v1/pods");
        assert_eq!(
            pods.object_path(&Key::new("a", "b")),
            "/api/v1/namespaces/a/pods/b"
        );
        let roles = Collection::cluster(
            "rbac.authorization.k8s.io/v1",
            "clusterroles",
            "ClusterRole",
        );
        assert_eq!(
            roles.object_path(&Key::new("", "b")),
            "/apis/rbac.authorization.k8s.io/v1/clusterroles/b"
        );
    }
}
