//! What clients look for in the documents is there.

use super::*;
use crate::crd::{Crd, default_crd};
use crate::resources::Catalog;
use std::collections::BTreeSet;
use yurt_wire::protobuf::{Reader, WireValue};

fn catalog() -> Catalog {
    let mut crd = json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "widgets.stable.example.com"},
        "spec": {
            "group": "stable.example.com", "scope": "Namespaced",
            "names": {"plural": "widgets", "kind": "Widget"},
            "versions": [{"name": "v1", "served": true, "storage": true,
                "subresources": {"status": {}, "scale": {
                    "specReplicasPath": ".spec.replicas", "statusReplicasPath": ".status.replicas"}},
                "schema": {"openAPIV3Schema": {
                    "type": "object", "description": "A widget.", "properties": {"spec": {
                        "type": "object", "required": ["maybe", "size"], "properties": {
                            "size": {"type": "integer", "description": "How large.", "minimum": 1, "default": 3},
                            "port": {"x-kubernetes-int-or-string": true, "anyOf": [{"type": "integer"}, {"type": "string"}]},
                            "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
                            "maybe": {"type": "string", "nullable": true},
                            "template": {"type": "object", "x-kubernetes-embedded-resource": true, "properties": {"spec": {"type": "object"}}},
                        }}}}}}],
        },
    });
    default_crd(&mut crd);
    Catalog::new(&[Arc::new(Crd::parse(&crd).unwrap())])
}

/// Every reference leads to a schema of the document.
fn check_references(value: &Value, prefix: &str, names: &BTreeSet<&String>) {
    match value {
        Value::Object(fields) => {
            if let Some(Value::String(reference)) = fields.get("$ref") {
                let name = reference.strip_prefix(prefix).unwrap();
                assert!(names.contains(&name.to_owned()), "{reference}");
            }
            fields
                .values()
                .for_each(|inner| check_references(inner, prefix, names));
        }
        Value::Array(items) => items
            .iter()
            .for_each(|inner| check_references(inner, prefix, names)),
        _ => {}
    }
}

fn operations(document: &Value) -> Vec<&Value> {
    document["paths"]
        .as_object()
        .unwrap()
        .values()
        .flat_map(|item| item.as_object().unwrap())
        .filter(|(verb, _)| *verb != "parameters")
        .map(|(_, operation)| operation)
        .collect()
}

#[test]
fn documents_are_whole() {
    let catalog = catalog();
    let index = v3_index(catalog.resources());
    let mut checked = 0;
    for path in index["paths"].as_object().unwrap().keys() {
        let parts: Vec<&str> = path.split('/').collect();
        let (group, version) = match parts.as_slice() {
            ["api", version] => ("", *version),
            ["apis", group, version] => (*group, *version),
            _ => panic!("{path}"),
        };
        let document = v3_document(group, version, catalog.resources()).unwrap();
        let schemas = document["components"]["schemas"].as_object().unwrap();
        assert!(schemas.values().all(Value::is_object));
        check_references(
            &document,
            "#/components/schemas/",
            &schemas.keys().collect(),
        );
        checked += 1;
    }
    assert!(checked > 15, "{checked}");
    assert!(v3_document("nothing.io", "v1", catalog.resources()).is_none());

    let document = v2_document(catalog.resources());
    let definitions = document["definitions"].as_object().unwrap();
    check_references(&document, "#/definitions/", &definitions.keys().collect());
    let mut ids = BTreeSet::new();
    for operation in operations(&document) {
        let id = operation["operationId"].as_str().unwrap();
        assert!(ids.insert(id), "{id} twice");
    }
}

#[test]
fn kubectl_finds_what_it_looks_for() {
    let catalog = catalog();
    // --validate and --dry-run: a PATCH of the kind with the parameter.
    for resource in catalog.resources().iter().filter(|r| r.serves("patch")) {
        let document =
            v3_document(&resource.group, &resource.version, catalog.resources()).unwrap();
        let gvk =
            json!({"group": resource.group, "version": resource.version, "kind": resource.kind});
        let patch = operations(&document)
            .into_iter()
            .find(|op| {
                op["x-kubernetes-action"] == "patch" && op["x-kubernetes-group-version-kind"] == gvk
            })
            .unwrap_or_else(|| panic!("{gvk}"));
        for name in ["fieldValidation", "dryRun"] {
            let found = patch["parameters"]
                .as_array()
                .unwrap()
                .iter()
                .any(|parameter| parameter["name"] == name && parameter["in"] == "query");
            assert!(found, "{gvk} {name}");
        }
        // explain: the kind of a path, and the schema of the kind.
        let schema = document["components"]["schemas"]
            .as_object()
            .unwrap()
            .values()
            .find(|schema| {
                schema["x-kubernetes-group-version-kind"]
                    .as_array()
                    .is_some_and(|kinds| kinds.contains(&gvk))
            })
            .unwrap_or_else(|| panic!("{gvk}"));
        assert!(schema["properties"]["metadata"].is_object(), "{gvk}");
    }
}

#[test]
fn lists_say_how_they_merge() {
    let catalog = catalog();
    let document = v3_document("", "v1", catalog.resources()).unwrap();
    let schemas = &document["components"]["schemas"];
    let containers = &schemas["io.k8s.api.core.v1.PodSpec"]["properties"]["containers"];
    assert_eq!(
        *containers,
        json!({
            "type": "array",
            "items": {"allOf": [{"$ref": "#/components/schemas/io.k8s.api.core.v1.Container"}]},
            "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": ["name"],
            "x-kubernetes-patch-merge-key": "name",
            "x-kubernetes-patch-strategy": "merge",
        })
    );
    let ports = &schemas["io.k8s.api.core.v1.Container"]["properties"]["ports"];
    assert_eq!(
        ports["x-kubernetes-list-map-keys"],
        json!(["containerPort", "protocol"])
    );
    let v2 = v2_document(catalog.resources());
    let containers = &v2["definitions"]["io.k8s.api.core.v1.PodSpec"]["properties"]["containers"];
    assert_eq!(
        containers["items"],
        json!({"$ref": "#/definitions/io.k8s.api.core.v1.Container"})
    );
}

#[test]
fn custom_resources_are_described_by_their_definition() {
    let catalog = catalog();
    let v3 = v3_document("stable.example.com", "v1", catalog.resources()).unwrap();
    let widget = &v3["components"]["schemas"]["com.example.stable.v1.Widget"];
    assert_eq!(widget["description"], "A widget.");
    assert!(widget["properties"]["metadata"]["allOf"][0]["$ref"].is_string());
    let spec = &widget["properties"]["spec"]["properties"];
    assert_eq!(
        spec["size"],
        json!({"type": "integer", "description": "How large.", "minimum": 1, "default": 3})
    );
    assert_eq!(
        spec["port"]["anyOf"],
        json!([{"type": "integer"}, {"type": "string"}])
    );
    assert!(spec["template"]["properties"]["metadata"].is_object());
    assert!(
        v3["paths"]["/apis/stable.example.com/v1/namespaces/{namespace}/widgets/{name}/scale"]
            .is_object()
    );
    let list = &v3["components"]["schemas"]["com.example.stable.v1.WidgetList"];
    assert_eq!(list["required"], json!(["items"]));

    // Old clients would refuse what they cannot express.
    let v2 = v2_document(catalog.resources());
    let spec =
        &v2["definitions"]["com.example.stable.v1.Widget"]["properties"]["spec"]["properties"];
    assert_eq!(spec["port"], json!({"x-kubernetes-int-or-string": true}));
    assert_eq!(
        spec["free"],
        json!({"x-kubernetes-preserve-unknown-fields": true})
    );
    assert_eq!(spec["maybe"], json!({}));
    let widget = &v2["definitions"]["com.example.stable.v1.Widget"];
    assert_eq!(widget["properties"]["spec"]["required"], json!(["size"]));
    let widget = &v3["components"]["schemas"]["com.example.stable.v1.Widget"];
    assert_eq!(
        widget["properties"]["spec"]["required"],
        json!(["maybe", "size"])
    );
}

#[test]
fn a_custom_resource_that_may_hold_anything_is_open_in_version_2() {
    let mut crd = json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "blobs.stable.example.com"},
        "spec": {
            "group": "stable.example.com", "scope": "Namespaced",
            "names": {"plural": "blobs", "kind": "Blob"},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {
                "type": "object", "x-kubernetes-preserve-unknown-fields": true,
                "properties": {"spec": {"type": "object"}}}}}],
        },
    });
    default_crd(&mut crd);
    let catalog = Catalog::new(&[Arc::new(Crd::parse(&crd).unwrap())]);
    let name = "com.example.stable.v1.Blob";
    let gvk = json!([{"group": "stable.example.com", "version": "v1", "kind": "Blob"}]);
    let v2 = v2_document(catalog.resources());
    assert_eq!(
        v2["definitions"][name],
        json!({"type": "object", "x-kubernetes-group-version-kind": gvk})
    );
    let v3 = v3_document("stable.example.com", "v1", catalog.resources()).unwrap();
    let blob = &v3["components"]["schemas"][name];
    assert_eq!(blob["x-kubernetes-preserve-unknown-fields"], true);
    assert!(blob["properties"]["metadata"].is_object());
}

#[test]
fn the_index_follows_its_documents() {
    let with = catalog();
    let without = Catalog::new(&[]);
    let (with, without) = (v3_index(with.resources()), v3_index(without.resources()));
    assert_eq!(with["paths"]["api/v1"], without["paths"]["api/v1"]);
    let url = with["paths"]["apis/stable.example.com/v1"]["serverRelativeURL"]
        .as_str()
        .unwrap();
    assert!(
        url.starts_with("/openapi/v3/apis/stable.example.com/v1?hash="),
        "{url}"
    );
    assert!(without["paths"].get("apis/stable.example.com/v1").is_none());
}

/// The fields of a message with this number.
fn fields(message: &[u8], number: u32) -> Vec<&[u8]> {
    let mut reader = Reader::new(message);
    let mut out = Vec::new();
    while let Some(field) = reader.next_field().unwrap() {
        if field.number == number
            && let WireValue::Bytes(bytes) = field.value
        {
            out.push(bytes);
        }
    }
    out
}

fn find<'m>(named: Vec<&'m [u8]>, name: &str) -> &'m [u8] {
    let found = named
        .into_iter()
        .find(|entry| fields(entry, 1) == [name.as_bytes()]);
    fields(found.unwrap_or_else(|| panic!("{name}")), 2)[0]
}

#[test]
fn protobuf_holds_the_same() {
    let catalog = catalog();
    let bytes = v2_protobuf(catalog.resources());
    assert_eq!(fields(&bytes, 1), [b"2.0"]);
    let paths = fields(&bytes, 8)[0];
    let json = v2_document(catalog.resources());
    assert_eq!(
        fields(paths, 2).len(),
        json["paths"].as_object().unwrap().len()
    );
    let pod = find(
        fields(paths, 2),
        "/api/v1/namespaces/{namespace}/pods/{name}",
    );
    let patch = fields(pod, 8)[0];
    assert_eq!(fields(patch, 5), [b"patchCoreV1NamespacedPod"]);
    let gvk = find(fields(patch, 13), "x-kubernetes-group-version-kind");
    let gvk: Value = serde_json::from_slice(fields(gvk, 2)[0]).unwrap();
    assert_eq!(gvk, json!({"group": "", "version": "v1", "kind": "Pod"}));
    // parameter -> non_body_parameter -> query_parameter_sub_schema -> name
    let names: Vec<&[u8]> = fields(patch, 8)
        .into_iter()
        .flat_map(|item| fields(fields(item, 1)[0], 2))
        .flat_map(|other| fields(other, 3))
        .flat_map(|query| fields(query, 4))
        .collect();
    assert!(names.contains(&&b"fieldValidation"[..]));

    let definitions = fields(&bytes, 9)[0];
    let spec = find(fields(definitions, 1), "io.k8s.api.core.v1.PodSpec");
    let containers = find(fields(fields(spec, 25)[0], 1), "containers");
    assert_eq!(fields(fields(containers, 22)[0], 1), [b"array"]);
    let items = fields(fields(containers, 23)[0], 1)[0];
    assert_eq!(
        fields(items, 1),
        [b"#/definitions/io.k8s.api.core.v1.Container"]
    );
    let key = find(fields(containers, 31), "x-kubernetes-patch-merge-key");
    assert_eq!(fields(key, 2), [b"\"name\""]);
}
