//! Definitions and schemas: what is refused, and in which words.

use super::*;
use proptest::prelude::*;

fn definition(schema: Value) -> Value {
    let mut crd = json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "widgets.example.com"},
        "spec": {
            "group": "example.com", "scope": "Namespaced",
            "names": {"plural": "widgets", "kind": "Widget", "shortNames": ["wd"]},
            "versions": [{"name": "v1", "served": true, "storage": true,
                "schema": {"openAPIV3Schema": schema},
                "subresources": {"status": {}, "scale": {
                    "specReplicasPath": ".spec.replicas", "statusReplicasPath": ".status.replicas",
                    "labelSelectorPath": ".status.selector"}},
                "selectableFields": [{"jsonPath": ".spec.host"}],
                "additionalPrinterColumns": [
                    {"name": "Host", "type": "string", "jsonPath": ".spec.host"}]}],
        },
    });
    default_crd(&mut crd);
    crd
}

fn simple() -> Value {
    json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {
        "host": {"type": "string"}, "replicas": {"type": "integer", "format": "int32"}}}}})
}

fn schema(spec: Value) -> Structural {
    Structural::parse(
        &json!({"type": "object", "properties": {"spec": spec}}),
        "schema",
    )
    .unwrap()
}

fn object(spec: Value) -> Value {
    json!({"apiVersion": "example.com/v1", "kind": "Widget", "metadata": {"name": "w"}, "spec": spec})
}

fn causes(schema: &Structural, spec: Value) -> Vec<(String, String)> {
    schema
        .validate(&object(spec), None)
        .into_iter()
        .map(|cause| (cause.field, cause.message))
        .collect()
}

fn cause(field: &str, message: &str) -> Vec<(String, String)> {
    vec![(field.into(), message.into())]
}

#[test]
fn a_definition_is_read() {
    let crd = Crd::parse(&definition(simple())).unwrap();
    assert_eq!(crd.names.singular, "widget");
    assert_eq!(crd.names.list_kind, "WidgetList");
    assert!(crd.namespaced);
    let version = crd.storage_version().unwrap();
    assert!(version.status_subresource);
    assert_eq!(
        version.scale.as_ref().unwrap().spec_replicas,
        ".spec.replicas"
    );
    assert_eq!(version.selectable_fields, [".spec.host"]);
    assert!(crd.version("v2").is_none());
}

#[test]
fn a_bad_definition_is_refused_where_it_is_bad() {
    let refused = |change: fn(&mut Value)| -> Vec<String> {
        let mut crd = definition(simple());
        change(&mut crd);
        Crd::parse(&crd)
            .unwrap_err()
            .into_iter()
            .map(|cause| format!("{}: {}", cause.field, cause.message))
            .collect()
    };
    assert_eq!(
        refused(|crd| crd["metadata"]["name"] = json!("gadgets.example.com")),
        [
            "metadata.name: Invalid value: \"gadgets.example.com\": must be spec.names.plural+\".\"+spec.group"
        ]
    );
    assert_eq!(
        refused(|crd| crd["spec"]["versions"][0]["storage"] = json!(false)),
        [
            "spec.versions: Invalid value: [\"v1\"]: must have exactly one version marked as storage version"
        ]
    );
    assert_eq!(
        refused(|crd| crd["spec"]["scope"] = json!("Galaxy")),
        [
            "spec.scope: Unsupported value: \"Galaxy\": supported values: \"Cluster\", \"Namespaced\""
        ]
    );
    assert_eq!(
        refused(|crd| crd["spec"]["versions"][0]["schema"] = json!(null)),
        ["spec.versions[0].schema.openAPIV3Schema: Required value: schemas are required"]
    );
    assert_eq!(
        refused(|crd| crd["spec"]["names"]["listKind"] = json!("Widget")),
        ["spec.names.listKind: Invalid value: \"Widget\": kind and listKind may not be the same"]
    );
    assert!(refused(|crd| crd["spec"]["group"] = json!("example"))[0].starts_with("spec.group"));
    assert_eq!(
        refused(
            |crd| crd["spec"]["versions"][0]["subresources"]["scale"]["specReplicasPath"] =
                json!(".status.x")
        ),
        [
            "spec.versions[0].subresources.scale.specReplicasPath: Invalid value: \".status.x\": should be a json path under .spec"
        ]
    );
}

#[test]
fn schemas_must_be_structural() {
    let refused = |schema: Value| -> Vec<String> {
        Structural::parse(&schema, "s")
            .unwrap_err()
            .into_iter()
            .map(|cause| format!("{}: {}", cause.field, cause.message))
            .collect()
    };
    assert_eq!(
        refused(json!({})),
        ["s.type: Required value: must not be empty at the root"]
    );
    assert_eq!(
        refused(json!({"type": "object", "properties": {"a": {}}})),
        ["s.properties[a].type: Required value: must not be empty for specified object fields"]
    );
    assert_eq!(
        refused(json!({"type": "object", "properties": {"a": {"type": "array"}}})),
        ["s.properties[a].items: Required value: must be specified"]
    );
    assert_eq!(
        refused(json!({"type": "object", "properties": {"a": {"type": "array", "items": {}}}})),
        ["s.properties[a].items.type: Required value: must not be empty for specified array items"]
    );
    assert_eq!(
        refused(json!({"type": "object", "anyOf": [{"properties": {"b": {"minimum": 1}}}]})),
        ["s.properties[b]: Required value: because it is defined in s.anyOf[0].properties[b]"]
    );
    assert_eq!(
        refused(
            json!({"type": "object", "properties": {"a": {"type": "string", "not": {"type": "integer", "minimum": 1}}}})
        ),
        ["s.properties[a].not.type: Forbidden: must be empty to be structural"]
    );
    assert_eq!(
        refused(
            json!({"type": "object", "properties": {"a": {"type": "integer", "default": "x"}}})
        ),
        [
            "s.properties[a].default: Invalid value: \"string\": s.properties[a].default in body must be of type integer: \"string\""
        ]
    );
    assert!(
        refused(json!({"type": "object", "properties": {"a": {"type": "string", "pattern": "["}}}))
            [0]
        .starts_with(
            "s.properties[a].pattern: Invalid value: \"[\": must be a valid regular expression"
        )
    );
    assert_eq!(
        refused(
            json!({"type": "object", "properties": {"a": {"type": "array", "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": ["k"], "items": {"type": "object", "properties": {"k": {"type": "string"}}}}}})
        ),
        [
            "s.properties[a].items.properties[k].default: Required value: this property is in x-kubernetes-list-map-keys, so it must have a default or be a required property"
        ]
    );
    assert_eq!(
        refused(
            json!({"type": "object", "properties": {"a": {"type": "object", "additionalProperties": {"type": "string"}, "properties": {"b": {"type": "string"}}}}})
        ),
        [
            "s.properties[a].additionalProperties: Forbidden: additionalProperties and properties are mutual exclusive"
        ]
    );
    // The customary int-or-string is fine.
    schema(json!({"type": "object", "properties": {"port": {
        "anyOf": [{"type": "integer"}, {"type": "string"}], "x-kubernetes-int-or-string": true}}}));
    let mut deep = json!({"type": "string"});
    for _ in 0..100 {
        deep = json!({"type": "object", "properties": {"a": deep}});
    }
    assert!(Structural::parse(&deep, "s").is_err());
}

#[test]
fn unknown_fields_are_pruned() {
    let schema = schema(json!({"type": "object", "properties": {
        "known": {"type": "string"},
        "open": {"type": "object", "x-kubernetes-preserve-unknown-fields": true,
            "properties": {"closed": {"type": "object", "properties": {"x": {"type": "string"}}}}},
        "map": {"type": "object", "additionalProperties": {"type": "object", "properties": {"x": {"type": "string"}}}},
        "list": {"type": "array", "items": {"type": "object", "properties": {"x": {"type": "string"}}}},
        "template": {"type": "object", "x-kubernetes-embedded-resource": true,
            "properties": {"spec": {"type": "object", "properties": {"x": {"type": "string"}}}}},
    }}));
    let full = object(json!({
        "known": "a", "unknown": 1,
        "open": {"any": {"thing": 1}, "closed": {"x": "y", "z": 1}},
        "map": {"k": {"x": "y", "z": 1}},
        "list": [{"x": "y"}, {"z": 1}],
        "template": {"apiVersion": "v1", "kind": "Pod", "metadata": {"labels": {"a": "b"}}, "status": {}, "spec": {"x": "y"}},
    }));
    let mut pruned = full.clone();
    let mut dropped = schema.prune(&mut pruned);
    dropped.sort();
    assert_eq!(
        dropped,
        [
            "spec.list[1].z",
            "spec.map.k.z",
            "spec.open.closed.z",
            "spec.template.status",
            "spec.unknown"
        ]
    );
    assert_eq!(pruned["metadata"], full["metadata"]);
    assert_eq!(
        pruned["spec"]["template"]["metadata"],
        full["spec"]["template"]["metadata"]
    );
    assert_eq!(pruned["spec"]["open"]["any"], json!({"thing": 1}));
    assert!(schema.prune(&mut pruned).is_empty());
    pruned["metadata"] = json!({"name": "w", "creationTimestamp": null, "lables": {}});
    assert_eq!(schema.prune(&mut pruned), ["metadata.lables"]);
    assert_eq!(pruned["metadata"], json!({"name": "w"}));
    assert!(
        schema
            .unknown_fields(&full)
            .contains(&"unknown field \"spec.unknown\"".to_owned())
    );
}

#[test]
fn defaults_fill_what_is_absent() {
    let schema = schema(json!({"type": "object", "default": {}, "properties": {
        "size": {"type": "integer", "default": 3},
        "maybe": {"type": "string", "nullable": true, "default": "x"},
        "inner": {"type": "object", "properties": {"a": {"type": "string", "default": "b"}}},
        "list": {"type": "array", "items": {"type": "object", "properties": {"p": {"type": "string", "default": "TCP"}}}},
    }}));
    let mut value =
        object(json!({"size": null, "maybe": null, "inner": {}, "list": [{}, {"p": "UDP"}]}));
    schema.apply_defaults(&mut value);
    assert_eq!(
        value["spec"],
        json!({"size": 3, "maybe": null, "inner": {"a": "b"}, "list": [{"p": "TCP"}, {"p": "UDP"}]})
    );
    let mut empty = json!({"apiVersion": "example.com/v1", "kind": "Widget", "metadata": {}});
    schema.apply_defaults(&mut empty);
    assert_eq!(empty["spec"], json!({"size": 3, "maybe": "x"}));
    let once = empty.clone();
    schema.apply_defaults(&mut empty);
    assert_eq!(empty, once);
}

#[test]
fn causes_have_the_words_of_kube_apiserver() {
    let schema = schema(
        json!({"type": "object", "required": ["name"], "properties": {
            "name": {"type": "string", "minLength": 2, "maxLength": 5, "pattern": "^[a-z]*$"},
            "replicas": {"type": "integer", "minimum": 1, "maximum": 9, "exclusiveMaximum": true, "multipleOf": 2, "format": "int32"},
            "mode": {"type": "string", "enum": ["A", "B"]},
            "port": {"x-kubernetes-int-or-string": true},
            "items": {"type": "array", "minItems": 1, "maxItems": 2, "x-kubernetes-list-type": "set", "items": {"type": "string"}},
            "rules": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"],
                "items": {"type": "object", "required": ["k"], "properties": {"k": {"type": "string"}, "v": {"type": "integer", "maximum": 3}}}},
            "one": {"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "string"}},
                "oneOf": [{"required": ["a"]}, {"required": ["b"]}]},
            "when": {"type": "string", "format": "date-time"},
            "address": {"type": "string", "format": "ipv4"},
            "embedded": {"type": "object", "x-kubernetes-embedded-resource": true, "x-kubernetes-preserve-unknown-fields": true},
        }}),
    );
    let ok = json!({"name": "abc", "replicas": 4, "mode": "A", "port": "http", "items": ["a", "b"],
        "one": {"a": "x"}, "when": "2026-11-21T20:00:00Z", "address": "10.0.0.1"});
    assert_eq!(causes(&schema, ok.clone()), []);
    assert_eq!(
        causes(&schema, json!({})),
        cause("spec.name", "Required value")
    );
    for (field, bad, message) in [
        (
            "replicas",
            json!("x"),
            "Invalid value: \"string\": spec.replicas in body must be of type integer: \"string\"",
        ),
        (
            "replicas",
            json!(2.5),
            "Invalid value: \"number\": spec.replicas in body must be of type integer: \"number\"",
        ),
        (
            "replicas",
            json!(0),
            "Invalid value: 0: spec.replicas in body should be greater than or equal to 1",
        ),
        (
            "replicas",
            json!(10),
            "Invalid value: 10: spec.replicas in body should be less than 9",
        ),
        (
            "replicas",
            json!(3),
            "Invalid value: 3: spec.replicas in body should be a multiple of 2",
        ),
        (
            "name",
            json!("a"),
            "Invalid value: \"a\": spec.name in body should be at least 2 chars long",
        ),
        (
            "name",
            json!("abcdef"),
            "Too long: may not be more than 5 bytes",
        ),
        (
            "name",
            json!("ABC"),
            "Invalid value: \"ABC\": spec.name in body should match '^[a-z]*$'",
        ),
        (
            "name",
            json!(null),
            "Invalid value: \"null\": spec.name in body must be of type string: \"null\"",
        ),
        (
            "mode",
            json!("C"),
            "Unsupported value: \"C\": supported values: \"A\", \"B\"",
        ),
        (
            "port",
            json!(true),
            "Invalid value: \"boolean\": spec.port in body must be of type integer,string: \"boolean\"",
        ),
        (
            "items",
            json!([]),
            "Invalid value: 0: spec.items in body should have at least 1 items",
        ),
        (
            "items",
            json!(["a", "b", "c"]),
            "Too many: 3: must have at most 2 items",
        ),
        (
            "one",
            json!({}),
            "Invalid value: {}: \"spec.one\" must validate one and only one schema (oneOf). Found none valid",
        ),
        (
            "when",
            json!("noon"),
            "Invalid value: \"noon\": spec.when in body must be of type date-time: \"noon\"",
        ),
        (
            "address",
            json!("10.0.0.256"),
            "Invalid value: \"10.0.0.256\": spec.address in body must be of type ipv4: \"10.0.0.256\"",
        ),
    ] {
        let mut value = ok.clone();
        value[field] = bad;
        assert_eq!(
            causes(&schema, value),
            cause(&format!("spec.{field}"), message)
        );
    }
    let with = |field: &str, bad: Value| {
        let mut value = ok.clone();
        value[field] = bad;
        causes(&schema, value)
    };
    assert_eq!(
        with("items", json!(["a", "a"])),
        cause("spec.items[1]", "Duplicate value: \"a\"")
    );
    assert_eq!(
        with("rules", json!([{"k": "a"}, {"k": "a"}])),
        cause("spec.rules[1]", "Duplicate value: {\"k\":\"a\"}")
    );
    assert_eq!(
        with("embedded", json!({"kind": "Pod"})),
        cause(
            "spec.embedded.apiVersion",
            "Required value: must not be empty"
        )
    );
}

#[test]
fn what_was_already_wrong_is_not_held_against_an_update() {
    let schema = schema(json!({"type": "object", "properties": {
        "a": {"type": "string", "maxLength": 2}, "b": {"type": "string", "maxLength": 2},
        "rules": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"],
            "items": {"type": "object", "required": ["k"], "properties": {"k": {"type": "string"}, "v": {"type": "integer", "maximum": 3}}}},
    }}));
    let old = object(json!({"a": "long", "rules": [{"k": "x", "v": 9}]}));
    let new =
        object(json!({"a": "long", "b": "ok", "rules": [{"k": "y", "v": 1}, {"k": "x", "v": 9}]}));
    assert_eq!(schema.validate(&new, Some(&old)), []);
    let worse = object(json!({"a": "longer", "rules": [{"k": "x", "v": 10}]}));
    assert_eq!(schema.validate(&worse, Some(&old)).len(), 2);
}

#[test]
fn status_is_established_once() {
    let mut crd = definition(simple());
    crd["status"] = establish_status(&crd, &[], "2026-11-21T20:00:00Z");
    assert_eq!(crd["status"]["storedVersions"], json!(["v1"]));
    assert_eq!(crd["status"]["acceptedNames"]["listKind"], "WidgetList");
    assert_eq!(crd["status"]["conditions"][1]["type"], "Established");
    let again = establish_status(&crd, &[], "2026-11-22T20:00:00Z");
    assert_eq!(again, crd["status"]);
    crd["spec"]["versions"][0]["name"] = json!("v2");
    let moved = establish_status(&crd, &[], "2026-11-22T20:00:00Z");
    assert_eq!(moved["storedVersions"], json!(["v1", "v2"]));
}

#[test]
fn formats() {
    use super::format::check_format;
    for (format, good, bad) in [
        ("ipv6", "fe80::1", "10.0.0.1"),
        ("cidr", "10.0.0.0/8", "10.0.0.0/33"),
        ("mac", "01:23:45:67:89:ab", "01:23:45:67:89"),
        ("uuid", "6e99fd8f-30b7-4aab-926c-108640419897", "6e99fd8f"),
        ("hostname", "a.example.com", "-a"),
        ("uri", "https://example.com/x", "nothing here"),
        ("email", "a@b.c", "a.b.c"),
        ("byte", "aGk=", "a*"),
        ("date", "2026-11-21", "2026-11-31"),
        ("duration", "1h30m", "soon"),
    ] {
        assert!(check_format(format, good), "{format} {good}");
        assert!(!check_format(format, bad), "{format} {bad}");
    }
    assert!(check_format("password", "anything"));
}

fn any_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i32>().prop_map(Value::from),
        any::<i32>().prop_map(|n| Value::from(f64::from(n) / 4.0)),
        "[a-z]{0,3}".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map("[a-d]", inner, 0..4)
                .prop_map(|fields| Value::Object(fields.into_iter().collect())),
        ]
    })
}

/// Structural schemas over the fields `a` to `d`, with defaults that may or may not fit.
fn any_schema() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        (0..5u8, prop::option::of(any::<i8>())).prop_map(|(min, default)| {
            let mut schema = json!({"type": "integer", "minimum": min});
            if let Some(default) = default {
                schema["default"] = json!(default);
            }
            schema
        }),
        prop::option::of("[a-z]{0,3}").prop_map(|default| {
            let mut schema =
                json!({"type": "string", "maxLength": 2, "nullable": default.is_some()});
            if let Some(default) = default {
                schema["default"] = json!(default);
            }
            schema
        }),
        Just(json!({"x-kubernetes-int-or-string": true})),
        Just(json!({"x-kubernetes-preserve-unknown-fields": true})),
        Just(json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true})),
    ];
    leaf.prop_recursive(4, 24, 4, |inner| {
        prop_oneof![
            inner
                .clone()
                .prop_map(|items| json!({"type": "array", "items": items})),
            inner
                .clone()
                .prop_map(|values| json!({"type": "object", "additionalProperties": values})),
            prop::collection::btree_map("[a-d]", inner, 1..4)
                .prop_map(|properties| json!({"type": "object", "properties": properties})),
        ]
    })
}

proptest! {
    #[test]
    fn any_schema_is_read_or_refused(schema in any_value(), logic in any_value()) {
        let _ = Structural::parse(&schema, "s");
        let wrapped = json!({"type": "object", "properties": {"a": schema}, "required": ["a"],
            "anyOf": logic, "not": {"properties": {"a": {"enum": [1]}}}});
        let _ = Structural::parse(&wrapped, "s");
        let _ = Crd::parse(&json!({"metadata": {"name": "x"}, "spec": schema}));
        let mut crd = json!({"spec": logic});
        default_crd(&mut crd);
        let _ = establish_status(&crd, &[], "2026-11-21T20:00:00Z");
    }

    /// Pruned and defaulted once is pruned and defaulted for good, and only what the schema knows is left.
    #[test]
    fn pruning_and_defaulting_settle(schema in any_schema(), value in any_value()) {
        let schema = json!({"type": "object", "properties": {"spec": schema}});
        let Ok(schema) = Structural::parse(&schema, "s") else {
            return Ok(());
        };
        let mut object = object(value);
        let unknown = schema.unknown_fields(&object).len();
        prop_assert_eq!(schema.prune(&mut object).len(), unknown);
        schema.apply_defaults(&mut object);
        let mut again = object.clone();
        prop_assert!(schema.prune(&mut again).is_empty());
        schema.apply_defaults(&mut again);
        prop_assert_eq!(&again, &object);
        // What did not change is never held against the writer.
        prop_assert_eq!(schema.validate(&object, Some(&object)), vec![]);
        let _ = schema.validate(&object, None);
    }
}
