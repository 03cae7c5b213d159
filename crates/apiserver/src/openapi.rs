//! The OpenAPI documents that describe what is served: `/openapi/v3` (an index and one document per group version)
//! and `/openapi/v2` (one document, as JSON and as gnostic protobuf).
//!
//! Clients read three things from them: which fields a kind has (`kubectl explain`), how its lists merge
//! (`x-kubernetes-*` extensions), and whether a write takes a parameter such as `fieldValidation` (the PATCH operation
//! of the kind, by its `x-kubernetes-group-version-kind`). Documents are large: build them once per catalog and
//! keep the bytes.

mod custom;
mod gnostic;
mod paths;
mod schemas;
#[cfg(test)]
mod tests;

use crate::resources::Resource;
use schemas::Definitions;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Content type of [`v2_protobuf`].
pub const V2_PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";

/// Which version of OpenAPI a document is written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Dialect {
    V2,
    V3,
}

impl Dialect {
    fn reference(self, name: &str) -> Value {
        match self {
            Self::V2 => json!({"$ref": format!("#/definitions/{name}")}),
            Self::V3 => json!({"$ref": format!("#/components/schemas/{name}")}),
        }
    }
}

/// `api/v1`, `apis/apps/v1`: how the index names a group version, and the path below `/openapi/v3/` and `/`.
pub fn group_version_path(group: &str, version: &str) -> String {
    if group.is_empty() {
        format!("api/{version}")
    } else {
        format!("apis/{group}/{version}")
    }
}

/// The answer to `/openapi/v3`: where the document of each group version is. The hash in each address changes when
/// its document does.
pub fn v3_index(resources: &[Arc<Resource>]) -> Value {
    let mut hashes: BTreeMap<String, Sha256> = BTreeMap::new();
    for resource in resources {
        let hash = hashes
            .entry(group_version_path(&resource.group, &resource.version))
            .or_insert_with(|| Sha256::new_with_prefix(env!("CARGO_PKG_VERSION")));
        hash.update(&resource.plural);
        if let Some(custom) = &resource.custom {
            hash.update(format!("{:?}", custom.crd.names));
            hash.update(format!("{:?}", resource.crd_version()));
        }
    }
    let paths: Map<String, Value> = hashes
        .into_iter()
        .map(|(path, hash)| {
            let hash: String = hash.finalize().iter().map(|b| format!("{b:02X}")).collect();
            let url = format!("/openapi/v3/{path}?hash={hash}");
            (path, json!({"serverRelativeURL": url}))
        })
        .collect();
    json!({"paths": paths})
}

/// The document of one group version; `None` when nothing in it is served.
pub fn v3_document(group: &str, version: &str, resources: &[Arc<Resource>]) -> Option<Value> {
    let mut definitions = Definitions::new(Dialect::V3);
    let mut paths = Map::new();
    for resource in resources
        .iter()
        .filter(|resource| resource.group == group && resource.version == version)
    {
        paths::add(resource, &mut definitions, &mut paths);
    }
    if paths.is_empty() {
        return None;
    }
    Some(json!({
        "openapi": "3.0.0",
        "info": info(),
        "paths": paths,
        "components": {"schemas": definitions.into_map()},
    }))
}

/// The one document of `/openapi/v2`.
pub fn v2_document(resources: &[Arc<Resource>]) -> Value {
    let mut definitions = Definitions::new(Dialect::V2);
    let mut paths = Map::new();
    for resource in resources {
        paths::add(resource, &mut definitions, &mut paths);
    }
    json!({
        "swagger": "2.0",
        "info": info(),
        "paths": paths,
        "definitions": definitions.into_map(),
    })
}

/// [`v2_document`] as a gnostic `openapi.v2.Document` message.
pub fn v2_protobuf(resources: &[Arc<Resource>]) -> Vec<u8> {
    gnostic::document(&v2_document(resources))
}

fn info() -> Value {
    json!({"title": "Kubernetes", "version": format!("v{}", env!("CARGO_PKG_VERSION"))})
}
