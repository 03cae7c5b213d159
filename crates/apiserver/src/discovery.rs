//! Discovery: what is served, in the legacy and the aggregated form.

use crate::resources::{Catalog, Resource};
use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

/// `/api`.
pub(crate) fn core_versions(address: &str) -> Value {
    json!({
        "kind": "APIVersions",
        "versions": ["v1"],
        "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": address}],
    })
}

fn group_version(group: &str, version: &str) -> Value {
    json!({"groupVersion": yurt_wire::gvk::join_api_version(group, version), "version": version})
}

fn group_body(name: &str, versions: &[&str]) -> Map<String, Value> {
    let mut group = Map::new();
    group.insert("name".into(), name.into());
    let listed: Vec<Value> = versions.iter().map(|v| group_version(name, v)).collect();
    group.insert(
        "preferredVersion".into(),
        listed.first().cloned().unwrap_or_default(),
    );
    group.insert("versions".into(), listed.into());
    group
}

/// `/apis`.
pub(crate) fn groups(catalog: &Catalog) -> Value {
    let groups: Vec<Value> = catalog
        .groups()
        .into_iter()
        .map(|(name, versions)| Value::Object(group_body(name, &versions)))
        .collect();
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
}

/// `/apis/GROUP`; `None` when the group is not served.
pub(crate) fn group(catalog: &Catalog, name: &str) -> Option<Value> {
    let groups = catalog.groups();
    let (name, versions) = groups.iter().find(|(group, _)| *group == name)?;
    let mut body = group_body(name, versions);
    body.insert("kind".into(), "APIGroup".into());
    body.insert("apiVersion".into(), "v1".into());
    Some(body.into())
}

/// A value that changes when the stored form of a resource does.
fn storage_version_hash(resource: &Resource) -> String {
    let gvk = resource.storage_gvk();
    let text = format!("{}/{}/{}", gvk.group, gvk.version, gvk.kind);
    STANDARD.encode(&Sha256::digest(text)[..8])
}

/// `/api/v1` or `/apis/GROUP/VERSION`; `None` when it is not served.
pub(crate) fn resources(catalog: &Catalog, group: &str, version: &str) -> Option<Value> {
    let mut list = Vec::new();
    for resource in catalog.of(group, version) {
        let mut entry = json!({
            "name": resource.plural,
            "singularName": resource.singular,
            "namespaced": resource.namespaced,
            "kind": resource.kind,
            "verbs": resource.verbs,
        });
        if !resource.short_names.is_empty() {
            entry["shortNames"] = json!(resource.short_names);
        }
        if !resource.categories.is_empty() {
            entry["categories"] = json!(resource.categories);
        }
        if resource.serves("list") {
            entry["storageVersionHash"] = storage_version_hash(resource).into();
        }
        list.push(entry);
        for sub in &resource.subresources {
            let mut entry = json!({
                "name": format!("{}/{}", resource.plural, sub.name),
                "singularName": "",
                "namespaced": resource.namespaced,
                "kind": sub.kind,
                "verbs": sub.verbs,
            });
            if (&sub.group, &sub.version) != (&resource.group, &resource.version) {
                // Kinds of core/v1 carry neither.
                if !sub.group.is_empty() {
                    entry["group"] = sub.group.clone().into();
                    entry["version"] = sub.version.clone().into();
                }
            }
            list.push(entry);
        }
    }
    if list.is_empty() {
        return None;
    }
    list.sort_by(|a, b| a["name"].as_str().cmp(&b["name"].as_str()));
    let group_version = yurt_wire::gvk::join_api_version(group, version);
    let mut body =
        json!({"kind": "APIResourceList", "groupVersion": group_version, "resources": list});
    if !group.is_empty() {
        body["apiVersion"] = "v1".into();
    }
    Some(body)
}

/// The aggregated form (`APIGroupDiscoveryList`): of core for `/api`, of all other groups for `/apis`.
pub(crate) fn aggregated(catalog: &Catalog, core: bool, version: &str) -> Value {
    let groups = if core {
        vec![("", vec!["v1"])]
    } else {
        catalog.groups()
    };
    let items: Vec<Value> = groups
        .into_iter()
        .map(|(group, versions)| {
            let versions: Vec<Value> = versions
                .into_iter()
                .map(|version| {
                    json!({
                        "version": version,
                        "freshness": "Current",
                        "resources": aggregated_resources(catalog, group, version),
                    })
                })
                .collect();
            let metadata = if group.is_empty() {
                json!({})
            } else {
                json!({"name": group})
            };
            json!({"metadata": metadata, "versions": versions})
        })
        .collect();
    json!({
        "kind": "APIGroupDiscoveryList",
        "apiVersion": format!("apidiscovery.k8s.io/{version}"),
        "metadata": {},
        "items": items,
    })
}

fn aggregated_resources(catalog: &Catalog, group: &str, version: &str) -> Vec<Value> {
    let mut resources: Vec<_> = catalog.of(group, version).collect();
    resources.sort_by(|a, b| a.plural.cmp(&b.plural));
    resources
        .into_iter()
        .map(|resource| {
            let own = |kind: &str| {
                // Built-in kinds leave group and version to their place in the list.
                if resource.custom.is_some() {
                    json!({"group": group, "version": version, "kind": kind})
                } else {
                    json!({"group": "", "version": "", "kind": kind})
                }
            };
            let mut entry = json!({
                "resource": resource.plural,
                "responseKind": own(&resource.kind),
                "scope": if resource.namespaced { "Namespaced" } else { "Cluster" },
                "singularResource": resource.singular,
                "verbs": resource.verbs,
            });
            if !resource.short_names.is_empty() {
                entry["shortNames"] = json!(resource.short_names);
            }
            if !resource.categories.is_empty() {
                entry["categories"] = json!(resource.categories);
            }
            let subresources: Vec<Value> = resource
                .subresources
                .iter()
                .map(|sub| {
                    let kind = if sub.group == resource.group && sub.version == resource.version {
                        own(&sub.kind)
                    } else {
                        json!({"group": sub.group, "version": sub.version, "kind": sub.kind})
                    };
                    json!({"subresource": sub.name, "responseKind": kind, "verbs": sub.verbs})
                })
                .collect();
            if !subresources.is_empty() {
                entry["subresources"] = subresources.into();
            }
            entry
        })
        .collect()
}

/// `/version`.
pub(crate) fn version() -> Value {
    json!({
        "major": "1",
        "minor": "36",
        "emulationMajor": "1",
        "emulationMinor": "36",
        "minCompatibilityMajor": "1",
        "minCompatibilityMinor": "35",
        "gitVersion": concat!("v1.36.0+yurt.", env!("CARGO_PKG_VERSION")),
        "gitCommit": "",
        "gitTreeState": "",
        "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "none",
        "compiler": "rustc",
        "platform": format!("{}/{}", std::env::consts::OS, arch()),
    })
}

/// The architecture by its Go name.
fn arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// `/`: the paths there are.
pub(crate) fn paths(catalog: &Catalog) -> Value {
    let mut paths: Vec<String> = [
        "/.well-known/openid-configuration",
        "/api",
        "/api/v1",
        "/apis",
        "/healthz",
        "/livez",
        "/metrics",
        "/openapi/v2",
        "/openapi/v3",
        "/openid/v1/jwks",
        "/readyz",
        "/version",
    ]
    .map(str::to_owned)
    .into();
    for (group, versions) in catalog.groups() {
        paths.push(format!("/apis/{group}"));
        paths.extend(versions.iter().map(|v| format!("/apis/{group}/{v}")));
    }
    paths.sort();
    json!({"paths": paths})
}
