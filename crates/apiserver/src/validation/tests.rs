//! Recorded objects are valid; broken ones are refused where they are broken.

use super::*;
use crate::defaults::apply_defaults;
use crate::recorded;
use proptest::prelude::*;
use serde_json::json;

fn gvk_of(object: &Value) -> Gvk {
    Gvk::from_api_version(text(object, "apiVersion"), text(object, "kind"))
}

#[test]
fn recorded_objects_are_valid() {
    for object in recorded::objects() {
        let gvk = gvk_of(&object);
        let name = format!("{} {}", gvk.kind, object["metadata"]["name"]);
        assert_eq!(type_errors(&gvk, &object), Ok(()), "{name}");
        let raw = serde_json::to_vec(&object).unwrap();
        assert_eq!(unknown_fields(&gvk, &object, Some(&raw)), [""; 0], "{name}");
        assert_eq!(validate_create(&gvk, &object), [], "{name}");
        assert_eq!(validate_update(&gvk, &object, &object), [], "{name}");
    }
}

fn pod() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "default"},
        "spec": {"containers": [
            {"name": "a", "image": "i:1", "ports": [{"name": "http", "containerPort": 80}],
                "volumeMounts": [{"name": "v", "mountPath": "/v"}]},
        ], "volumes": [{"name": "v", "emptyDir": {}}]},
    })
}

fn deployment() -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d", "namespace": "default"},
        "spec": {"selector": {"matchLabels": {"a": "b"}}, "template": {
            "metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "a", "image": "i:1"}]}}},
    })
}

fn service() -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s", "namespace": "default"},
        "spec": {"clusterIP": "10.96.0.9", "ports": [{"port": 80}]}})
}

fn other(api_version: &str, kind: &str, body: Value) -> Value {
    let mut object = body;
    object["apiVersion"] = json!(api_version);
    object["kind"] = json!(kind);
    object["metadata"] = json!({"name": "x"});
    object
}

fn defaulted(object: &Value) -> Value {
    let mut object = object.clone();
    let gvk = gvk_of(&object);
    apply_defaults(&gvk, &mut object);
    object
}

fn edited(object: &Value, pointer: &str, value: Value) -> Value {
    let mut object = object.clone();
    let (parent, name) = pointer.rsplit_once('/').unwrap();
    match object.pointer_mut(parent).unwrap() {
        Value::Object(fields) => {
            fields.insert(name.into(), value);
        }
        Value::Array(items) => items.push(value),
        _ => panic!("{pointer}"),
    }
    object
}

fn said(causes: Vec<Cause>) -> Vec<String> {
    causes
        .into_iter()
        .map(|cause| format!("{}: {}", cause.field, cause.message))
        .collect()
}

#[test]
fn broken_objects_are_refused() {
    let role = other(
        "rbac.authorization.k8s.io/v1",
        "Role",
        json!({"rules": [{"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]}]}),
    );
    let slice = other(
        "discovery.k8s.io/v1",
        "EndpointSlice",
        json!({"addressType": "IPv4", "endpoints": [{"addresses": ["10.0.0.1"]}], "ports": []}),
    );
    let map = other("v1", "ConfigMap", json!({"data": {"k": "v"}}));
    let claim = other(
        "v1",
        "PersistentVolumeClaim",
        json!({"spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}}),
    );
    let job = other(
        "batch/v1",
        "Job",
        json!({"spec": {"template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "a", "image": "i:1"}]}}}}),
    );
    for (base, pointer, value, expected) in [
        (
            pod(),
            "/metadata/name",
            json!("P"),
            "metadata.name: Invalid value: \"P\": a lowercase RFC 1123 subdomain",
        ),
        (
            pod(),
            "/metadata/name",
            json!(null),
            "metadata.name: Required value: name or generateName is required",
        ),
        (
            pod(),
            "/metadata/labels",
            json!({"a b": "c"}),
            "metadata.labels: Invalid value: \"a b\": name part must consist of",
        ),
        (
            pod(),
            "/metadata/labels",
            json!({"a": "-"}),
            "metadata.labels: Invalid value: \"-\": a valid label must be",
        ),
        (
            pod(),
            "/metadata/annotations",
            json!({"a": "x".repeat(300_000)}),
            "metadata.annotations: Too long: may not be more than 262144 bytes",
        ),
        (
            pod(),
            "/spec/containers",
            json!([]),
            "spec.containers: Required value",
        ),
        (
            pod(),
            "/spec/containers/-",
            json!({"name": "a", "image": "x:1"}),
            "spec.containers[1].name: Duplicate value: \"a\"",
        ),
        (
            pod(),
            "/spec/containers/-",
            json!({"name": "B", "image": "x:1"}),
            "spec.containers[1].name: Invalid value: \"B\": a lowercase RFC 1123 label",
        ),
        (
            pod(),
            "/spec/containers/-",
            json!({"name": "b"}),
            "spec.containers[1].image: Required value",
        ),
        (
            pod(),
            "/spec/containers/0/ports",
            json!([{"containerPort": 70000}]),
            "spec.containers[0].ports[0].containerPort: Invalid value: 70000: must be between 1 and 65535, inclusive",
        ),
        (
            pod(),
            "/spec/volumes",
            json!([]),
            "spec.containers[0].volumeMounts[0].name: Not found: \"v\"",
        ),
        (
            pod(),
            "/spec/volumes/-",
            json!({"name": "v", "emptyDir": {}}),
            "spec.volumes[1].name: Duplicate value: \"v\"",
        ),
        (
            pod(),
            "/spec/volumes/-",
            json!({"name": "w", "emptyDir": {}, "hostPath": {"path": "/"}}),
            "spec.volumes[1].hostPath: Forbidden: may not specify more than 1 volume type",
        ),
        (
            pod(),
            "/spec/restartPolicy",
            json!("Sometimes"),
            "spec.restartPolicy: Unsupported value: \"Sometimes\": supported values: \"Always\", \"Never\", \"OnFailure\"",
        ),
        (
            pod(),
            "/spec/containers/0/resources",
            json!({"requests": {"cpu": "2"}, "limits": {"cpu": "1"}}),
            "spec.containers[0].resources.requests: Invalid value: \"2\": must be less than or equal to cpu limit of 1",
        ),
        (
            pod(),
            "/spec/containers/0/resources",
            json!({"requests": {"cpu": "-1"}}),
            "spec.containers[0].resources.requests[cpu]: Invalid value: \"-1\": must be greater than or equal to 0",
        ),
        (
            pod(),
            "/spec/containers/0/livenessProbe",
            json!({"periodSeconds": 1}),
            "spec.containers[0].livenessProbe: Required value: must specify a handler type",
        ),
        (
            pod(),
            "/spec/containers/0/env",
            json!([{"name": "a=b"}]),
            "spec.containers[0].env[0].name: Invalid value: \"a=b\": a valid environment variable name",
        ),
        (
            pod(),
            "/spec/tolerations",
            json!([{"operator": "Equal"}]),
            "spec.tolerations[0].operator: Invalid value: \"Equal\": operator must be Exists",
        ),
        (
            deployment(),
            "/spec/template/metadata/labels",
            json!({"a": "c"}),
            "spec.template.metadata.labels: Invalid value: {\"a\":\"c\"}: `selector` does not match template `labels`",
        ),
        (
            deployment(),
            "/spec/replicas",
            json!(-1),
            "spec.replicas: Invalid value: -1: must be greater than or equal to 0",
        ),
        (
            deployment(),
            "/spec/selector",
            json!(null),
            "spec.selector: Required value",
        ),
        (
            deployment(),
            "/spec/strategy",
            json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 0}}),
            "spec.strategy.rollingUpdate.maxUnavailable: Invalid value: 0: may not be 0 when `maxSurge` is 0",
        ),
        (
            deployment(),
            "/spec/template/spec/restartPolicy",
            json!("Never"),
            "spec.template.spec.restartPolicy: Unsupported value: \"Never\": supported values: \"Always\"",
        ),
        (
            job,
            "/spec/template/spec/restartPolicy",
            json!("Always"),
            "spec.template.spec.restartPolicy: Unsupported value: \"Always\": supported values: \"OnFailure\", \"Never\"",
        ),
        (
            service(),
            "/spec/ports",
            json!([]),
            "spec.ports: Required value",
        ),
        (
            service(),
            "/spec/ports",
            json!([{"port": 0}]),
            "spec.ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive",
        ),
        (
            service(),
            "/spec/ports",
            json!([{"port": 80}, {"name": "b", "port": 81}]),
            "spec.ports[0].name: Required value",
        ),
        (
            service(),
            "/spec/type",
            json!("Magic"),
            "spec.type: Unsupported value: \"Magic\"",
        ),
        (
            role,
            "/rules",
            json!([{"apiGroups": [""], "resources": ["pods"]}]),
            "rules[0].verbs: Required value: verbs must contain at least one value",
        ),
        (
            slice,
            "/endpoints",
            json!([{"addresses": ["::1"]}]),
            "endpoints[0].addresses[0]: Invalid value: \"::1\": must be a valid IP address",
        ),
        (
            map,
            "/data",
            json!({"a b": "c"}),
            "data[a b]: Invalid value: \"a b\": a valid config key",
        ),
        (
            claim,
            "/spec/accessModes",
            json!([]),
            "spec.accessModes: Required value: at least 1 access mode is required",
        ),
        (
            other("v1", "Secret", json!({})),
            "/type",
            json!("kubernetes.io/tls"),
            "data[tls.crt]: Required value",
        ),
    ] {
        let gvk = gvk_of(&base);
        assert_eq!(
            said(validate_create(&gvk, &defaulted(&base))),
            [""; 0],
            "base of {pointer}"
        );
        let broken = defaulted(&edited(&base, pointer, value));
        let causes = said(validate_create(&gvk, &broken));
        assert!(
            causes.iter().any(|cause| cause.starts_with(expected)),
            "expected {expected}\nsaid {causes:#?}"
        );
    }
}

#[test]
fn what_is_immutable_stays() {
    let secret = other(
        "v1",
        "Secret",
        json!({"type": "Opaque", "data": {"k": "dg=="}, "immutable": true}),
    );
    let binding = other(
        "rbac.authorization.k8s.io/v1",
        "RoleBinding",
        json!({"roleRef": {"kind": "Role", "name": "r", "apiGroup": "rbac.authorization.k8s.io"}}),
    );
    let claim = other(
        "v1",
        "PersistentVolumeClaim",
        json!({"spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}}),
    );
    for (base, pointer, value, expected) in [
        (
            pod(),
            "/spec/nodeName",
            json!("n"),
            Some("spec: Forbidden: pod updates may not change fields other than"),
        ),
        (pod(), "/spec/containers/0/image", json!("i:2"), None),
        (
            pod(),
            "/spec/tolerations",
            json!([{"operator": "Exists"}]),
            None,
        ),
        (pod(), "/metadata/labels", json!({"a": "b"}), None),
        (
            pod(),
            "/metadata/namespace",
            json!("other"),
            Some("metadata.namespace: Invalid value: \"other\": field is immutable"),
        ),
        (
            deployment(),
            "/spec/selector",
            json!({"matchLabels": {"a": "b", "c": "d"}}),
            Some(
                "spec.selector: Invalid value: {\"matchLabels\":{\"a\":\"b\",\"c\":\"d\"}}: field is immutable",
            ),
        ),
        (deployment(), "/spec/replicas", json!(4), None),
        (
            service(),
            "/spec/clusterIP",
            json!("10.96.0.10"),
            Some("spec.clusterIPs[0]: Invalid value: \"10.96.0.10\": may not change once set"),
        ),
        (service(), "/spec/ports", json!([{"port": 81}]), None),
        (
            secret.clone(),
            "/data",
            json!({}),
            Some("data: Forbidden: field is immutable when `immutable` is set"),
        ),
        (
            secret,
            "/type",
            json!("x/y"),
            Some("type: Invalid value: \"x/y\": field is immutable"),
        ),
        (
            binding,
            "/roleRef",
            json!({"kind": "Role", "name": "q"}),
            Some(
                "roleRef: Invalid value: {\"apiGroup\":\"rbac.authorization.k8s.io\",\"kind\":\"Role\",\"name\":\"q\"}: cannot change roleRef",
            ),
        ),
        (
            claim,
            "/spec/accessModes",
            json!(["ReadWriteMany"]),
            Some("spec: Forbidden: spec is immutable after creation except"),
        ),
    ] {
        let gvk = gvk_of(&base);
        let old = defaulted(&base);
        let new = defaulted(&edited(&base, pointer, value));
        let causes = said(validate_update(&gvk, &old, &new));
        match expected {
            None => assert_eq!(causes, [""; 0], "{pointer}"),
            Some(expected) => assert!(
                causes.iter().any(|cause| cause.starts_with(expected)),
                "expected {expected}\nsaid {causes:#?}"
            ),
        }
    }
    let mut deleting = pod();
    deleting["metadata"]["deletionTimestamp"] = json!("2026-11-21T20:00:00Z");
    let late = edited(&deleting, "/metadata/finalizers", json!(["example.com/x"]));
    assert_eq!(
        said(validate_update(
            &gvk_of(&late),
            &defaulted(&deleting),
            &defaulted(&late)
        )),
        [
            "metadata.finalizers: Forbidden: no new finalizers can be added if the object is being deleted, found new finalizers []string{\"example.com/x\"}"
        ]
    );
}

#[test]
fn subresources_of_pods_change_their_part() {
    let gvk = gvk_of(&pod());
    let debugged = |image: &str| {
        let debug = json!([{"name": "debug", "image": image}]);
        defaulted(&edited(&pod(), "/spec/ephemeralContainers", debug))
    };
    let through = |subresource: &str, old: &Value, new: &Value| {
        said(validate_subresource(&gvk, subresource, old, new))
    };
    let plain = defaulted(&pod());
    let debug = "ephemeralcontainers";
    assert_eq!(through(debug, &plain, &debugged("sh:1")), [""; 0]);
    assert_eq!(
        through(debug, &debugged("sh:1"), &plain),
        [
            "spec.ephemeralContainers: Forbidden: existing ephemeral containers \"debug\" may not be removed"
        ]
    );
    assert_eq!(
        through(debug, &debugged("sh:1"), &debugged("sh:2")).len(),
        1
    );
    let twin = edited(
        &pod(),
        "/spec/ephemeralContainers",
        json!([{"name": "a", "image": "sh:1"}]),
    );
    assert_eq!(
        through(debug, &plain, &defaulted(&twin)),
        ["spec.ephemeralContainers[0].name: Duplicate value: \"a\""]
    );

    let larger = json!({"requests": {"cpu": "2"}});
    let larger = defaulted(&edited(&pod(), "/spec/containers/0/resources", larger));
    assert_eq!(through("resize", &plain, &larger), [""; 0]);
    assert_eq!(through("resize", &plain, &debugged("sh:1")).len(), 1);
}

#[test]
fn a_version_that_stores_objects_stays() {
    let version = |name: &str| {
        json!({"name": name, "served": true, "storage": true,
            "schema": {"openAPIV3Schema": {"type": "object"}}})
    };
    let mut old = other(
        "apiextensions.k8s.io/v1",
        "CustomResourceDefinition",
        json!({"spec": {"group": "example.com", "scope": "Cluster",
            "names": {"plural": "xs", "kind": "X"}, "versions": [version("v1")]},
            "status": {"storedVersions": ["v1"]}}),
    );
    old["metadata"]["name"] = json!("xs.example.com");
    let old = defaulted(&old);
    assert_eq!(said(validate_create(&gvk_of(&old), &old)), [""; 0]);
    let new = edited(&old, "/spec/versions", json!([version("v2")]));
    let causes = said(validate_update(&gvk_of(&old), &old, &new));
    assert_eq!(causes.len(), 1, "{causes:?}");
    assert!(causes[0].starts_with("status.storedVersions[0]: Invalid value: \"v1\": missing"));
}

#[test]
fn wrong_types_are_told_as_the_decoder_does() {
    for (base, pointer, value, expected) in [
        (
            deployment(),
            "/spec/replicas",
            json!("three"),
            "Deployment in version \"v1\" cannot be handled as a Deployment: json: cannot unmarshal string into Go struct field DeploymentSpec.spec.replicas of type int32",
        ),
        (
            deployment(),
            "/spec/replicas",
            json!(1.5),
            "Deployment in version \"v1\" cannot be handled as a Deployment: json: cannot unmarshal number 1.5 into Go struct field DeploymentSpec.spec.replicas of type int32",
        ),
        (
            pod(),
            "/spec/containers",
            json!({}),
            "Pod in version \"v1\" cannot be handled as a Pod: json: cannot unmarshal object into Go struct field PodSpec.spec.containers of type []v1.Container",
        ),
        (
            pod(),
            "/metadata/labels",
            json!({"a": 1}),
            "Pod in version \"v1\" cannot be handled as a Pod: json: cannot unmarshal number into Go struct field ObjectMeta.metadata.labels of type string",
        ),
        (
            pod(),
            "/spec",
            json!([]),
            "Pod in version \"v1\" cannot be handled as a Pod: json: cannot unmarshal array into Go struct field Pod.spec of type v1.PodSpec",
        ),
        (
            pod(),
            "/spec/containers/0/resources",
            json!({"limits": {"cpu": "much"}}),
            "Pod in version \"v1\" cannot be handled as a Pod: quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'",
        ),
    ] {
        let broken = edited(&base, pointer, value);
        assert_eq!(
            type_errors(&gvk_of(&base), &broken),
            Err(expected.to_owned())
        );
    }
}

#[test]
fn strict_decoding_finds_strangers_and_twins() {
    let raw = br#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"p","name":"q","lables":{}},
        "spec":{"containers":[{"name":"a","image":"i","imagePulPolicy":"x","image":"j"}]}}"#;
    let value: Value = serde_json::from_slice(raw).unwrap();
    assert_eq!(
        unknown_fields(&gvk_of(&value), &value, Some(raw)),
        [
            "duplicate field \"metadata.name\"",
            "unknown field \"metadata.lables\"",
            "unknown field \"spec.containers[0].imagePulPolicy\"",
            "duplicate field \"spec.containers[0].image\"",
        ],
        "in the order of the body"
    );
    assert_eq!(
        duplicate_fields(b"a: 1\nb:\n  c: 1\n  c: 2\n"),
        ["yaml: unmarshal errors:\n  line 4: key \"c\" already set in map"]
    );
    assert!(duplicate_fields(b"not json").is_empty());
}

#[test]
fn custom_resources_have_their_metadata_checked() {
    let object = other("x.io/v1", "X", json!({"spec": {"anything": 1}}));
    assert_eq!(validate_create(&gvk_of(&object), &object), []);
    let broken = edited(&object, "/metadata/name", json!("A"));
    assert_eq!(validate_create(&gvk_of(&object), &broken).len(), 1);
}

#[test]
fn the_pods_of_a_stateful_set_can_mount_its_claims() {
    let mut set = deployment();
    set["kind"] = json!("StatefulSet");
    set["spec"]["template"]["spec"]["containers"][0]["volumeMounts"] =
        json!([{"name": "data", "mountPath": "/data"}]);
    let gvk = gvk_of(&set);
    assert_eq!(said(validate_create(&gvk, &defaulted(&set))).len(), 1);
    set["spec"]["volumeClaimTemplates"] = json!([{"metadata": {"name": "data"}, "spec": {
        "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}}]);
    assert_eq!(said(validate_create(&gvk, &defaulted(&set))), [""; 0]);
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<i32>().prop_map(|n| Value::from(f64::from(n) / 8.0)),
        "\\PC{0,12}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 12, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec(("[a-z]{1,8}", inner), 0..4)
                .prop_map(|fields| Value::Object(fields.into_iter().collect())),
        ]
    })
}

/// Puts `value` somewhere into `object`, chosen by `at`.
fn spoil(object: &mut Value, mut at: usize, value: Value) {
    let mut slot = object;
    loop {
        let width = match &*slot {
            Value::Object(fields) => fields.len(),
            Value::Array(items) => items.len(),
            _ => 0,
        };
        if width == 0 || at % 7 == 6 {
            *slot = value;
            return;
        }
        let next = at % width;
        at = at / width + 1;
        slot = match slot {
            Value::Object(fields) => fields.values_mut().nth(next).unwrap(),
            Value::Array(items) => &mut items[next],
            _ => unreachable!(),
        };
    }
}

proptest! {
    /// Whatever a client sends, every step gives an answer.
    #[test]
    fn no_object_is_too_strange(
        which in any::<prop::sample::Index>(),
        spoils in prop::collection::vec((any::<u32>(), any_json()), 1..4),
    ) {
        let mut objects = recorded::objects();
        objects.extend([pod(), deployment(), service()]);
        let good = which.get(&objects).clone();
        let gvk = gvk_of(&good);
        let mut bad = good.clone();
        for (at, value) in spoils {
            spoil(&mut bad, at as usize, value);
        }
        let _ = type_errors(&gvk, &bad);
        let _ = unknown_fields(&gvk, &bad, None);
        let _ = validate_create(&gvk, &bad);
        let _ = validate_update(&gvk, &good, &bad);
        let _ = validate_update(&gvk, &bad, &good);
        if let Value::Object(fields) = &mut bad {
            fields.insert("apiVersion".into(), gvk.api_version().into());
            fields.insert("kind".into(), gvk.kind.as_str().into());
        }
        let mut defaulted = bad.clone();
        apply_defaults(&gvk, &mut defaulted);
        let _ = validate_create(&gvk, &defaulted);
        if bad.is_object() && type_errors(&gvk, &bad).is_ok() {
            // What is stored has the one form that both encodings give back.
            let mut again = defaulted.clone();
            apply_defaults(&gvk, &mut again);
            prop_assert_eq!(&again, &defaulted);
            let raw = yurt_wire::transcode::from_json(&gvk, &defaulted).unwrap();
            let back = yurt_wire::transcode::to_json(&gvk, &raw).unwrap();
            prop_assert_eq!(&back, &defaulted);
        }
        let typing = crate::managed::Typing::Builtin(yurt_wire::schema::message_of(&gvk).unwrap());
        let writer = crate::managed::Writer {
            manager: "m", api_version: "v1", subresource: "", now: "2026-11-21T20:00:00Z",
        };
        let _ = crate::managed::apply(typing, Some(&good), &bad, &writer, true);
        let _ = crate::managed::apply(typing, Some(&bad), &good, &writer, true);
        crate::managed::track_update(typing, Some(&good), &mut bad, &writer);
    }
}
