//! Discovery without the cloud: documents as they were served, and the legacy ones derived from the aggregated. The derivation
//! is pure.

use serde_json::{Value, json};

/// The legacy document at a path, from the aggregated one (`APIGroupDiscoveryList`) of `/api` or `/apis`; `None` when it does not
/// hold what the path is about.
pub(crate) fn legacy(path: &str, aggregated: &Value) -> Option<Value> {
    let groups = aggregated.get("items")?.as_array()?;
    let mut parts = path.trim_matches('/').split('/');
    match (parts.next()?, parts.next(), parts.next(), parts.next()) {
        ("api", None, ..) => {
            let versions: Vec<&Value> = groups
                .iter()
                .flat_map(versions)
                .filter_map(|version| version.get("version"))
                .collect();
            Some(
                json!({"kind": "APIVersions", "versions": versions, "serverAddressByClientCIDRs": []}),
            )
        }
        ("api", Some(version), None, _) => {
            let found = groups
                .iter()
                .flat_map(versions)
                .find(|v| is_version(v, version))?;
            Some(resource_list(version, found))
        }
        ("apis", None, ..) => {
            let groups: Vec<Value> = groups.iter().filter_map(group).collect();
            Some(json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}))
        }
        ("apis", Some(name), None, _) => {
            let mut found = group(groups.iter().find(|g| is_group(g, name))?)?;
            found["kind"] = "APIGroup".into();
            found["apiVersion"] = "v1".into();
            Some(found)
        }
        ("apis", Some(name), Some(version), None) => {
            let group = groups.iter().find(|g| is_group(g, name))?;
            let found = versions(group).find(|v| is_version(v, version))?;
            Some(resource_list(&format!("{name}/{version}"), found))
        }
        _ => None,
    }
}

/// Whether a path is one of discovery, and the path of the aggregated document that holds it.
pub(crate) fn aggregated_path(path: &str) -> Option<&'static str> {
    match path.trim_matches('/').split('/').next()? {
        "api" => Some("/api"),
        "apis" => Some("/apis"),
        _ => None,
    }
}

fn versions(group: &Value) -> impl Iterator<Item = &Value> {
    group
        .get("versions")
        .and_then(Value::as_array)
        .map(|versions| versions.iter())
        .unwrap_or_default()
}

fn is_group(group: &Value, name: &str) -> bool {
    group.pointer("/metadata/name").and_then(Value::as_str) == Some(name)
}

fn is_version(version: &Value, name: &str) -> bool {
    version.get("version").and_then(Value::as_str) == Some(name)
}

fn group(aggregated: &Value) -> Option<Value> {
    let name = aggregated.pointer("/metadata/name")?.as_str()?;
    let versions: Vec<Value> = versions(aggregated)
        .filter_map(|version| version.get("version")?.as_str())
        .map(|version| json!({"groupVersion": format!("{name}/{version}"), "version": version}))
        .collect();
    let preferred = versions.first()?.clone();
    Some(json!({"name": name, "versions": versions, "preferredVersion": preferred}))
}

fn resource_list(group_version: &str, version: &Value) -> Value {
    let mut resources: Vec<(String, Value)> = Vec::new();
    for resource in version
        .get("resources")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
    {
        let Some(name) = resource.get("resource").and_then(Value::as_str) else {
            continue;
        };
        let namespaced = resource.get("scope").and_then(Value::as_str) == Some("Namespaced");
        // A resource without an object of its own exists for its subresources only.
        if resource
            .get("responseKind")
            .is_some_and(|kind| !kind.is_null())
        {
            let singular = resource.get("singularResource").cloned();
            resources.push((
                name.to_owned(),
                api_resource(
                    name,
                    singular.unwrap_or_else(|| "".into()),
                    namespaced,
                    resource,
                ),
            ));
        }
        for sub in resource
            .get("subresources")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
        {
            if let Some(sub_name) = sub.get("subresource").and_then(Value::as_str) {
                let full = format!("{name}/{sub_name}");
                let value = api_resource(&full, "".into(), namespaced, sub);
                resources.push((full, value));
            }
        }
    }
    resources.sort_by(|(a, _), (b, _)| a.cmp(b));
    let resources: Vec<Value> = resources.into_iter().map(|(_, value)| value).collect();
    json!({
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": group_version,
        "resources": resources,
    })
}

fn api_resource(name: &str, singular: Value, namespaced: bool, of: &Value) -> Value {
    let text = |field: &str| {
        of.pointer(&format!("/responseKind/{field}"))
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned()
    };
    let mut out = json!({
        "name": name,
        "singularName": singular,
        "namespaced": namespaced,
        "kind": text("kind"),
        "verbs": of.get("verbs").cloned().unwrap_or_else(|| json!([])),
    });
    // Named only where the kind is of another group or version than the resource (`deployments/scale`).
    for field in ["group", "version"] {
        let value = text(field);
        if !value.is_empty() {
            out[field] = value.into();
        }
    }
    for field in ["shortNames", "categories"] {
        if let Some(value) = of.get(field).filter(|value| !value.is_null()) {
            out[field] = value.clone();
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fixture(text: &str) -> Value {
        serde_json::from_str(text).expect("a fixture")
    }

    #[test]
    fn derived_documents_are_those_recorded() {
        let aggregated = fixture(include_str!(
            "../../tests/fixtures/kube-apiserver/aggregated-discovery-apis.json"
        ));
        let mut recorded = fixture(include_str!(
            "../../tests/fixtures/kube-apiserver/discovery-apps-v1.json"
        ));
        for resource in recorded["resources"].as_array_mut().expect("resources") {
            if let Some(resource) = resource.as_object_mut() {
                resource.remove("storageVersionHash");
            }
        }
        assert_eq!(legacy("/apis/apps/v1", &aggregated), Some(recorded));
        let recorded = fixture(include_str!(
            "../../tests/fixtures/kube-apiserver/discovery-apis.json"
        ));
        assert_eq!(legacy("/apis", &aggregated), Some(recorded));
        assert_eq!(legacy("/apis/none/v1", &aggregated), None);
        assert_eq!(legacy("/apis/apps/v2", &aggregated), None);
        assert_eq!(
            legacy("/apis/apps", &aggregated)
                .map(|g| g["preferredVersion"]["groupVersion"].clone()),
            Some("apps/v1".into())
        );
    }
}
