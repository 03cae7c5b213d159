//! What a list or watch asks for, apart from its representation.

use yurt_wire::{
    Gvr, Object, RequestInfo,
    request::ListOptions,
    selector::{FieldRequirement, FieldSelector, LabelSelector},
};

/// A set of objects: a resource, optionally one namespace, restricted by selectors. A single name is the field
/// selector `metadata.name=x`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Query {
    /// The resource.
    pub gvr: Gvr,
    /// `""` for all namespaces (or cluster scope).
    pub namespace: String,
    /// Label selector.
    pub labels: LabelSelector,
    /// Field selector.
    pub fields: FieldSelector,
}

/// The field selector path of an object's name.
pub(crate) const NAME: &str = "metadata.name";
const NAMESPACE: &str = "metadata.namespace";

impl Query {
    /// Every object of a resource, in one namespace or (`""`) everywhere.
    pub fn all(gvr: Gvr, namespace: &str) -> Self {
        Self {
            namespace: object_namespace(&gvr, namespace).to_owned(),
            gvr,
            labels: LabelSelector::default(),
            fields: FieldSelector::default(),
        }
    }

    /// One object.
    pub fn named(gvr: Gvr, namespace: &str, name: &str) -> Self {
        let mut query = Self::all(gvr, namespace);
        query.fields.requirements.push(FieldRequirement {
            path: NAME.into(),
            equals: true,
            value: name.into(),
        });
        query
    }

    /// What a list or watch request asks for.
    pub fn of_request(info: &RequestInfo, options: &ListOptions) -> Self {
        let gvr = info.gvr();
        Self {
            namespace: object_namespace(&gvr, &info.namespace).to_owned(),
            gvr,
            labels: options.labels.clone(),
            fields: options.fields.clone(),
        }
    }

    /// Whether a complete answer to `self` surely holds every object of `other` (sound, not complete).
    pub fn covers(&self, other: &Self) -> bool {
        self.gvr == other.gvr
            && (self.namespace.is_empty() || self.namespace == other.namespace)
            && self.labels.covers(&other.labels)
            && self.fields.covers(&other.fields)
    }

    /// The one name asked for, when there is one.
    pub fn name(&self) -> Option<&str> {
        self.fields.exact(NAME)
    }

    /// Whether the object of a namespace and name may belong to the query as far as these two tell.
    pub fn in_scope(&self, namespace: &str, name: &str) -> bool {
        (self.namespace.is_empty() || self.namespace == namespace)
            && self.name().is_none_or(|wanted| wanted == name)
    }

    /// Whether an object belongs to the query.
    pub fn matches(&self, namespace: &str, name: &str, object: &Object) -> bool {
        if !self.in_scope(namespace, name) {
            return false;
        }
        if !self.labels.is_empty() {
            match object.meta() {
                Ok(meta) if self.labels.matches(&meta.labels) => {}
                _ => return false,
            }
        }
        self.fields.is_empty()
            || self.fields.matches(|path| match path {
                NAME => name.to_owned(),
                NAMESPACE => namespace.to_owned(),
                _ => object.field(path).unwrap_or_default(),
            })
    }

    /// Whether the query only says where objects are (namespace, name), nothing about their content.
    pub fn is_identity(&self) -> bool {
        self.labels.is_empty()
            && self
                .fields
                .requirements
                .iter()
                .all(|r| r.path == NAME || r.path == NAMESPACE)
    }

    /// Whether an object that belongs to the query once belongs to it as long as it exists, so that a DELETED event means that
    /// the object is gone, not that it left the selector. These fields never change after they are set.
    pub fn is_stable(&self) -> bool {
        self.labels.is_empty()
            && self
                .fields
                .requirements
                .iter()
                .all(|r| match r.path.as_str() {
                    NAME | NAMESPACE => true,
                    "spec.nodeName" => r.equals && !r.value.is_empty(),
                    "type" => self.gvr.resource == "secrets",
                    path => path.starts_with("involvedObject."),
                })
    }

    /// One line that [`Query::from_text`] reads back; used in record keys.
    pub fn to_text(&self) -> String {
        format!(
            "{}/{}/{}/{}?{}&{}",
            self.gvr.group,
            self.gvr.version,
            self.gvr.resource,
            self.namespace,
            self.labels,
            self.fields
        )
    }

    /// The inverse of [`Query::to_text`].
    pub fn from_text(text: &str) -> Option<Self> {
        let (scope, selectors) = text.split_once('?')?;
        // Labels cannot hold an ampersand; field values can.
        let (labels, fields) = selectors.split_once('&')?;
        let mut scope = scope.split('/');
        let gvr = Gvr::new(scope.next()?, scope.next()?, scope.next()?);
        let namespace = scope.next()?.to_owned();
        Some(Self {
            gvr,
            namespace,
            labels: LabelSelector::parse(labels).ok()?,
            fields: FieldSelector::parse(fields).ok()?,
        })
    }
}

/// The namespace objects of a resource carry: kube-apiserver's request info gives `namespaces/x` the namespace `x`, but
/// Namespace objects have none.
pub(crate) fn object_namespace<'a>(gvr: &Gvr, namespace: &'a str) -> &'a str {
    if gvr.group.is_empty() && gvr.resource == "namespaces" {
        ""
    } else {
        namespace
    }
}
