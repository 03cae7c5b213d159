//! NodePool: v1beta2 is the hub.

use super::{Facet, Pair, fields::Fields};
use serde_json::{Value, json};

const FIELD: &str = "/spec/hostNetwork";
/// [`crate::names::labels::HOST_NETWORK`], which stands for the field in versions that did not have it, and in v1beta1.
const ANNOTATION: &str = "/metadata/annotations/nodepool.openyurt.io~1hostnetwork";

const SHARED: &[(&str, &str)] = &[
    ("/spec/type", "/spec/type"),
    ("/spec/labels", "/spec/labels"),
    ("/spec/annotations", "/spec/annotations"),
    ("/spec/taints", "/spec/taints"),
    ("/status/readyNodeNum", "/status/readyNodeNum"),
    ("/status/unreadyNodeNum", "/status/unreadyNodeNum"),
    ("/status/nodes", "/status/nodes"),
];

pub(super) const PAIRS: &[Pair] = &[
    Pair {
        older: "v1alpha1",
        shared: SHARED,
        facets: &[Facet {
            name: "hostNetwork",
            older: &[ANNOTATION],
            hub: &[FIELD, ANNOTATION],
            up: field_of,
            down: annotation_of,
            merge: |_, shown, older| field_of(shown, older),
        }],
        hub_defaults,
    },
    Pair {
        older: "v1beta1",
        shared: SHARED,
        facets: &[Facet {
            name: "hostNetwork",
            older: &[FIELD, ANNOTATION],
            hub: &[FIELD, ANNOTATION],
            up: field_of,
            down: |fields, _| fields.clone(),
            merge: |_, shown, older| field_of(shown, older),
        }],
        hub_defaults,
    },
];

/// What OpenYurt gives a pool that comes from an older version.
fn hub_defaults() -> Value {
    json!({"spec": {"interConnectivity": false, "leaderElectionStrategy": "random", "leaderReplicas": 1}})
}

/// An annotation that says so becomes the field.
fn field_of(fields: &Fields, _: &Value) -> Fields {
    let says = fields.get(ANNOTATION).and_then(Value::as_str);
    let mut fields = fields.clone();
    if says.is_some_and(|says| says.eq_ignore_ascii_case("true")) {
        fields.remove(ANNOTATION);
        fields.insert(FIELD.into(), true.into());
    }
    fields
}

/// The field becomes an annotation.
fn annotation_of(fields: &Fields, _: &Value) -> Fields {
    let mut fields = fields.clone();
    if fields.remove(FIELD) == Some(Value::Bool(true)) {
        fields.insert(ANNOTATION.into(), "true".into());
    }
    fields
}
