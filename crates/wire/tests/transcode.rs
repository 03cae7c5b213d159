//! JSON <-> protobuf against everything that was recorded in both encodings.

mod recordings;

use bytes::Bytes;
use proptest::prelude::*;
use serde_json::{Value, json};
use yurt_wire::{
    Encoding, Gvk, Object, list,
    protobuf::{self, Envelope},
    schema, transcode,
    watch::{EventType, FrameDecoder},
};

fn json(name: &str) -> Value {
    serde_json::from_slice(&recordings::bytes(&format!("{name}.json"))).unwrap()
}

/// The first difference between two values, for a message one can read.
fn difference(path: &str, ours: &Value, theirs: &Value) -> Option<String> {
    match (ours, theirs) {
        (Value::Object(a), Value::Object(b)) => a.keys().chain(b.keys()).find_map(|key| {
            let path = format!("{path}.{key}");
            match (a.get(key), b.get(key)) {
                (Some(a), Some(b)) => difference(&path, a, b),
                (a, b) => Some(format!("{path}: ours {a:?}, theirs {b:?}")),
            }
        }),
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => a
            .iter()
            .zip(b)
            .enumerate()
            .find_map(|(i, (a, b))| difference(&format!("{path}[{i}]"), a, b)),
        (a, b) if a == b => None,
        (a, b) => Some(format!("{path}: ours {a}, theirs {b}")),
    }
}

#[track_caller]
fn assert_same(what: &str, ours: &Value, theirs: &Value) {
    if let Some(difference) = difference("", ours, theirs) {
        panic!("{what}{difference}");
    }
}

#[test]
fn every_recorded_protobuf_is_the_recorded_json() {
    for name in recordings::pairs() {
        let object = recordings::object(&format!("{name}.pb"));
        assert_same(&name, &object.to_json_value().unwrap(), &json(&name));
        let text = object.to_encoding(Encoding::Json).unwrap();
        assert_same(&name, &text.to_json_value().unwrap(), &json(&name));
    }
}

#[test]
fn every_recorded_json_is_the_recorded_protobuf_byte_for_byte() {
    for name in recordings::pairs() {
        let object = recordings::object(&format!("{name}.json"));
        let ours = object.to_encoding(Encoding::Protobuf).unwrap();
        let theirs = recordings::object(&format!("{name}.pb"));
        assert_same(&name, &ours.to_json_value().unwrap(), &json(&name));
        assert_eq!(ours.bytes, theirs.bytes, "{name}");
    }
}

#[test]
fn items_are_transcoded_alone_as_in_their_list() {
    for name in recordings::lists() {
        let protobuf = recordings::bytes(&format!("{name}.pb"));
        let json = recordings::bytes(&format!("{name}.json"));
        let protobuf = list::split(&protobuf, Encoding::Protobuf).unwrap().items;
        let json = list::split(&json, Encoding::Json).unwrap().items;
        for (protobuf, json) in protobuf.iter().zip(&json) {
            assert_same(
                &name,
                &protobuf.to_json_value().unwrap(),
                &json.to_json_value().unwrap(),
            );
            assert_eq!(&json.to_encoding(Encoding::Protobuf).unwrap(), protobuf);
        }
    }
}

fn watch(encoding: Encoding, file: &str) -> Vec<(EventType, Object)> {
    let mut decoder = FrameDecoder::new(encoding, 1 << 20);
    decoder.push(recordings::bytes(file));
    let mut events = Vec::new();
    while let Some(frame) = decoder.next_frame().unwrap() {
        let event = frame.event.unwrap();
        events.push((event.kind, event.object));
    }
    events
}

#[test]
fn recorded_watches_are_the_same_frame_by_frame_and_byte_for_byte() {
    let json = watch(Encoding::Json, "watch-pods.json");
    let protobuf = watch(Encoding::Protobuf, "watch-pods.pb");
    assert_eq!(json.len(), protobuf.len());
    let mut compared = 0;
    for ((json_kind, json), (kind, protobuf)) in json.iter().zip(&protobuf) {
        assert_eq!(json_kind, kind);
        assert_eq!(json.meta().unwrap(), protobuf.meta().unwrap());
        let text = protobuf.to_encoding(Encoding::Json).unwrap();
        assert_eq!(
            String::from_utf8_lossy(&text.bytes),
            String::from_utf8_lossy(&json.bytes)
        );
        assert_eq!(&json.to_encoding(Encoding::Protobuf).unwrap(), protobuf);
        compared += 1;
    }
    assert_eq!(compared, 13);
}

#[test]
fn partial_metadata_is_what_the_server_makes_of_the_object() {
    for encoding in [Encoding::Json, Encoding::Protobuf] {
        let extension = if encoding == Encoding::Json {
            "json"
        } else {
            "pb"
        };
        for name in ["get-node", "list-pods", "list-secrets"] {
            let object = recordings::object(&format!("{name}.{extension}"));
            let Ok(split) = list::split(&object.bytes, encoding) else {
                check_partial(&object);
                continue;
            };
            split.items.iter().for_each(check_partial);
        }
    }
    let status = recordings::object("notfound.pb");
    status.to_partial_metadata("v1").unwrap_err();
}

fn check_partial(object: &Object) {
    let partial = object.to_partial_metadata("v1").unwrap();
    let value = partial.to_json_value().unwrap();
    assert_eq!(value["kind"], "PartialObjectMetadata");
    assert_eq!(value["apiVersion"], "meta.k8s.io/v1");
    assert_eq!(
        value["metadata"],
        object.to_json_value().unwrap()["metadata"]
    );
    assert_eq!(value.as_object().unwrap().len(), 3);
}

#[test]
fn fields_are_read_alike_in_both_encodings() {
    let paths = [
        "metadata.name",
        "metadata.namespace",
        "metadata.uid",
        "spec.nodeName",
        "spec.restartPolicy",
        "spec.hostNetwork",
        "spec.unschedulable",
        "spec.clusterIP",
        "status.phase",
        "status.podIP",
        "involvedObject.uid",
        "reason",
        "source",
        "type",
        "metadata.creationTimestamp",
        "status.replicas",
        "kind",
        "apiVersion",
    ];
    let mut known = 0;
    for name in recordings::lists() {
        let protobuf = recordings::bytes(&format!("{name}.pb"));
        let json = recordings::bytes(&format!("{name}.json"));
        let protobuf = list::split(&protobuf, Encoding::Protobuf).unwrap().items;
        let json = list::split(&json, Encoding::Json).unwrap().items;
        for (protobuf, json) in protobuf.iter().zip(&json) {
            for path in paths {
                if let Some(value) = protobuf.field(path) {
                    assert_eq!(Some(&value), json.field(path).as_ref(), "{name} {path}");
                    known += usize::from(!value.is_empty());
                }
            }
            assert_eq!(protobuf.field("spec.nonsense"), None);
        }
    }
    assert!(known > 200, "{known}");
    let node = recordings::object("get-node.pb");
    assert_eq!(node.field("spec.unschedulable").as_deref(), Some("false"));
    assert_eq!(node.field("metadata.name").as_deref(), Some("edge-1"));
    assert_eq!(node.field("metadata.labels"), None);
    assert_eq!(
        node.field("status.daemonEndpoints.kubeletEndpoint.Port")
            .as_deref(),
        Some("10250")
    );
}

/// JSON -> protobuf -> JSON.
#[track_caller]
fn round_trip(value: &Value) -> Value {
    let object = Object::from_json_value(value, Encoding::Protobuf).unwrap();
    object.to_json_value().unwrap()
}

/// A JSON object of a message with every field set, as deep as `depth` messages.
fn filled(message: &schema::Message, depth: usize) -> Value {
    let members = message.fields.iter().filter_map(|field| {
        let value = filled_value(field, depth)?;
        let value = match (field.repeated, field.map) {
            (true, _) => json!([value, value]),
            (_, true) => json!({"": value, "k<e>y": value}),
            _ => value,
        };
        Some((field.json_name.to_owned(), value))
    });
    Value::Object(members.collect())
}

fn filled_value(field: &schema::Field, depth: usize) -> Option<Value> {
    use schema::FieldKind as K;
    let inner = |depth: usize| Some(filled(field.message()?, depth.checked_sub(1)?));
    Some(match field.kind {
        K::String => json!("text \u{2028}\u{7f}\u{1}\"\\"),
        K::Bool => json!(true),
        K::Int32 => json!(i32::MIN),
        K::Int64 => json!(i64::MIN),
        K::Double => json!(-1.25),
        K::Bytes => json!("AP+/"),
        K::Quantity => json!("1500m"),
        K::IntOrString => json!("25%"),
        K::Time => json!("2026-11-21T19:06:21Z"),
        K::MicroTime => json!("2026-11-21T19:06:21.000007Z"),
        K::Duration => json!("1h0m0.5s"),
        K::FieldsV1 => json!({"f:metadata": {".": {}}}),
        K::RawExtension | K::Json => json!({"any": [1, -2.5, null, "\u{e9}"]}),
        K::StringList => json!(["a", ""]),
        K::Message(_) => inner(depth)?,
        K::JsonSchemaPropsOrArray => json!([inner(depth)?, inner(depth)?]),
        K::JsonSchemaPropsOrBool => inner(depth)?,
        K::JsonSchemaPropsOrStringArray => json!(["a"]),
    })
}

#[test]
fn every_field_of_every_kind_survives() {
    let mut fields = 0;
    for kind in schema::kinds() {
        let gvk = Gvk {
            group: kind.group.into(),
            version: kind.version.into(),
            kind: kind.kind.into(),
        };
        let depth = if kind.message.name.contains("CustomResourceDefinition") {
            6
        } else {
            20
        };
        let value = filled(kind.message, depth);
        let raw = transcode::from_json(&gvk, &value).unwrap();
        let back = transcode::to_json(&gvk, &raw).unwrap();
        // What is beyond the depth is printed as zero, and types are filled in.
        covers(kind.kind, &value, &back, &mut fields);
        assert_eq!(transcode::from_json(&gvk, &back).unwrap(), raw, "{gvk:?}");
    }
    assert!(fields > 10_000, "{fields}");
}

/// Everything in `given` is in `back`.
fn covers(path: &str, given: &Value, back: &Value, count: &mut usize) {
    match (given, back) {
        (Value::Object(given), Value::Object(back)) => {
            for (name, value) in given {
                let path = format!("{path}.{name}");
                covers(&path, value, back.get(name).expect(&path), count);
            }
        }
        (Value::Array(given), Value::Array(back)) => {
            assert_eq!(given.len(), back.len(), "{path}");
            for (given, back) in given.iter().zip(back) {
                covers(path, given, back, count);
            }
        }
        _ => {
            assert_eq!(given, back, "{path}");
            *count += 1;
        }
    }
}

#[test]
fn the_traps() {
    let crd = json!({
        "kind": "CustomResourceDefinition", "apiVersion": "apiextensions.k8s.io/v1",
        "metadata": {"name": "foos.example.org"},
        "spec": {
            "group": "example.org", "scope": "Namespaced",
            "names": {"plural": "foos", "kind": "Foo"},
            "versions": [{"name": "v1", "served": true, "storage": true,
                "subresources": {"status": {}},
                "schema": {"openAPIV3Schema": {
                    "$ref": "#/x", "$schema": "http://json-schema.org/<&>", "type": "object",
                    "x-kubernetes-preserve-unknown-fields": false, "x-kubernetes-int-or-string": true,
                    "x-kubernetes-validations": [{"rule": "self.a > 1", "message": "m"}],
                    "maximum": 1.5, "minimum": -3, "multipleOf": 1e21,
                    "default": {"a": [1, null, "x"]}, "enum": [1, "a", {"b": true}],
                    "items": {"type": "string"},
                    "allOf": [{"items": [{"type": "string"}, {"type": "integer"}]}],
                    "additionalProperties": true, "additionalItems": {"type": "number"},
                    "dependencies": {"a": ["b", "c"], "d": {"type": "object"}},
                    "properties": {"spec": {"additionalProperties": {"nullable": true}, "not": {}}}
                }}}]},
        "status": {"conditions": null, "acceptedNames": {"plural": "", "kind": ""}, "storedVersions": null}
    });
    assert_same("CRD", &round_trip(&crd), &crd);

    let webhook = json!({
        "kind": "ValidatingWebhookConfiguration", "apiVersion": "admissionregistration.k8s.io/v1",
        "metadata": {"name": "w"},
        "webhooks": [{"name": "a.b.c", "clientConfig": {"caBundle": "AAEC/w==", "url": "https://x"},
            "rules": [{"operations": ["*"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"], "scope": "*"}],
            "sideEffects": "None", "admissionReviewVersions": ["v1"], "timeoutSeconds": 0}]
    });
    assert_same("webhook", &round_trip(&webhook), &webhook);

    let policy = json!({
        "kind": "ValidatingAdmissionPolicy", "apiVersion": "admissionregistration.k8s.io/v1",
        "metadata": {"name": "p"},
        "spec": {"matchConstraints": {"resourceRules": [{"resourceNames": ["x"], "operations": ["CREATE"],
            "apiGroups": ["apps"], "apiVersions": ["v1"], "resources": ["deployments"]}]}},
        "status": {}
    });
    assert_same("twice inlined", &round_trip(&policy), &policy);

    let review = json!({
        "kind": "SubjectAccessReview", "apiVersion": "authorization.k8s.io/v1", "metadata": {},
        "spec": {"user": "u", "extra": {"k": ["a", ""], "l": []}},
        "status": {"allowed": false}
    });
    assert_same("ExtraValue", &round_trip(&review), &review);

    let revision = json!({
        "kind": "ControllerRevision", "apiVersion": "apps/v1", "metadata": {"name": "r"},
        "data": {"spec": {"x": [1.5, "<&>"]}}, "revision": i64::MAX
    });
    assert_same("RawExtension and int64", &round_trip(&revision), &revision);

    let secret = json!({
        "kind": "Secret", "apiVersion": "v1", "metadata": {"name": "s"},
        "data": {"empty": "", "bytes": "AP8="}, "type": "Opaque", "immutable": false
    });
    assert_same("bytes", &round_trip(&secret), &secret);

    let resources = json!({
        "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": "v1",
        "resources": [{"name": "pods", "singularName": "pod", "namespaced": true, "kind": "Pod",
            "verbs": ["get", "list"]}, {"name": "x", "singularName": "", "namespaced": false, "kind": "X", "verbs": null}]
    });
    assert_same("Verbs", &round_trip(&resources), &resources);

    let lease = json!({
        "kind": "Lease", "apiVersion": "coordination.k8s.io/v1", "metadata": {"name": "l", "deletionGracePeriodSeconds": 0},
        "spec": {"renewTime": "2026-11-21T19:06:21.120456Z", "acquireTime": "1969-12-31T23:59:59.000001Z", "leaseTransitions": 0}
    });
    assert_same("MicroTime", &round_trip(&lease), &lease);
}

#[test]
fn input_in_other_forms_becomes_what_the_server_prints() {
    let given = json!({
        "kind": "Service", "apiVersion": "v1", "unknown": {"a": 1},
        "metadata": {"name": "s", "creationTimestamp": null, "labels": null,
            "deletionTimestamp": "2026-11-21T20:06:21.9+01:00"},
        "spec": {"ports": [{"port": 80, "targetPort": "http"}, null], "externalIPs": []},
        "status": null
    });
    let printed = json!({
        "kind": "Service", "apiVersion": "v1",
        "metadata": {"name": "s", "deletionTimestamp": "2026-11-21T19:06:21Z"},
        "spec": {"ports": [{"port": 80, "targetPort": "http"}, {"port": 0, "targetPort": 0}]},
        "status": {"loadBalancer": {}}
    });
    assert_same("Service", &round_trip(&given), &printed);

    let claims = json!({
        "kind": "StatefulSet", "apiVersion": "apps/v1", "metadata": {},
        "spec": {"volumeClaimTemplates": [{"kind": "PersistentVolumeClaim", "apiVersion": "v1", "metadata": {"name": "d"}}]}
    });
    let claim = &round_trip(&claims)["spec"]["volumeClaimTemplates"][0];
    assert_eq!(
        (&claim["kind"], &claim["apiVersion"]),
        (&json!("PersistentVolumeClaim"), &json!("v1"))
    );

    let limits = json!({
        "kind": "LimitRange", "apiVersion": "v1", "metadata": {},
        "spec": {"limits": [{"type": "Container", "max": {"cpu": 2, "memory": " 1Gi "}}]}
    });
    assert_eq!(
        round_trip(&limits)["spec"]["limits"][0]["max"],
        json!({"cpu": "2", "memory": "1Gi"})
    );
}

#[test]
fn wrong_types_are_named_with_their_path() {
    for (spec, want) in [
        (
            json!({"containers": {}}),
            "spec.containers: expected a list, found an object",
        ),
        (
            json!({"containers": [{"image": 5}]}),
            "spec.containers[0].image: expected a string, found a number",
        ),
        (
            json!({"containers": [{"ports": [{"containerPort": 99999999999i64}]}]}),
            "spec.containers[0].ports[0].containerPort: 99999999999 is not a 32-bit integer",
        ),
        (
            json!({"nodeSelector": {"a": true}}),
            "spec.nodeSelector[a]: expected a string, found a boolean",
        ),
        (json!([]), "spec: expected an object, found a list"),
    ] {
        let pod = json!({"kind": "Pod", "apiVersion": "v1", "spec": spec});
        let error = Object::from_json_value(&pod, Encoding::Protobuf).unwrap_err();
        assert_eq!(error.what, want);
    }
}

#[test]
fn custom_resources_have_no_protobuf_form() {
    let gvk = Gvk::from_api_version("apps.openyurt.io/v1beta2", "NodePool");
    assert!(!transcode::has_protobuf(&gvk));
    let pool = json!({"kind": "NodePool", "apiVersion": "apps.openyurt.io/v1beta2"});
    Object::from_json_value(&pool, Encoding::Protobuf).unwrap_err();
    let unknown = Object {
        encoding: Encoding::Protobuf,
        bytes: protobuf::seal("apps.openyurt.io/v1beta2", "NodePool", b""),
    };
    unknown.to_json_value().unwrap_err();
}

#[test]
fn objects_within_events_are_transcoded_too() {
    let pod = protobuf::seal("v1", "Pod", b"\x0a\x03\x0a\x01x");
    let mut event = protobuf::Writer::new();
    event.str(1, "ADDED");
    event
        .message(2, |out| {
            out.bytes(1, &pod);
            Ok::<_, ()>(())
        })
        .unwrap();
    let gvk = Gvk::from_api_version("v1", "WatchEvent");
    let value = transcode::to_json(&gvk, &event.into_vec()).unwrap();
    assert_eq!(value["type"], "ADDED");
    assert_eq!(value["object"]["kind"], "Pod");
    assert_eq!(value["object"]["metadata"]["name"], "x");
}

#[test]
fn recursion_is_bounded() {
    let gvk = Gvk::from_api_version("apiextensions.k8s.io/v1", "CustomResourceDefinition");
    let mut schema = Vec::new();
    for _ in 0..20_000 {
        let mut outer = protobuf::Writer::new();
        outer.bytes(28, &schema);
        schema = outer.into_vec();
    }
    // spec 2, versions 7, schema 4, openAPIV3Schema 1
    let mut raw = schema;
    for number in [1, 4, 7, 2] {
        let mut outer = protobuf::Writer::new();
        outer.bytes(number, &raw);
        raw = outer.into_vec();
    }
    let error = transcode::to_json(&gvk, &raw).unwrap_err();
    assert!(error.what.contains("nested too deeply"), "{error}");

    // Watch events within watch events.
    let gvk = Gvk::from_api_version("v1", "WatchEvent");
    let mut raw = Vec::new();
    for _ in 0..2_000 {
        let inner = protobuf::seal("v1", "WatchEvent", &raw);
        let mut event = protobuf::Writer::new();
        event
            .message(2, |out| {
                out.bytes(1, &inner);
                Ok::<_, ()>(())
            })
            .unwrap();
        raw = event.into_vec();
    }
    transcode::to_json(&gvk, &raw).unwrap_err();
}

/// How much longer JSON may be than protobuf: an empty item of a list prints what Go always prints.
const MOST: usize = 400;

fn decode_anything(gvk: &Gvk, raw: &[u8]) {
    let mut text = Vec::new();
    if transcode::to_json_text(gvk, raw, &mut text).is_ok() {
        assert!(text.len() <= 1000 + raw.len() * MOST);
        let value: Value = match serde_json::from_slice(&text) {
            Ok(value) => value,
            Err(error) if error.to_string().contains("recursion limit") => return,
            Err(error) => panic!("{error}: {}", String::from_utf8_lossy(&text)),
        };
        // What was decoded can be encoded, and then it is stable. (The first time may lose what JSON cannot
        // tell apart: an empty message behind a pointer prints null, which reads as absent.)
        let encoded =
            transcode::from_json(gvk, &value).unwrap_or_else(|error| panic!("{error}: {value}"));
        let again = transcode::to_json(gvk, &encoded).unwrap();
        let stable = transcode::from_json(gvk, &again).unwrap() == encoded;
        assert!(stable, "{:?}", difference("", &again, &value));
    }
}

/// A recording with some bytes changed.
fn mutated() -> impl Strategy<Value = Bytes> {
    let files: Vec<Bytes> = recordings::pairs()
        .iter()
        .map(|name| recordings::bytes(&format!("{name}.pb")))
        .filter(|bytes| bytes.len() < 3000)
        .collect();
    let edits = proptest::collection::vec((any::<prop::sample::Index>(), 0u8..8), 0..4);
    (prop::sample::select(files), edits).prop_map(|(bytes, edits)| {
        let mut bytes = bytes.to_vec();
        for (at, bit) in edits {
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
        }
        bytes.into()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..Default::default() })]

    #[test]
    fn anything_is_decoded_without_panic(raw: Vec<u8>, kind: prop::sample::Index) {
        let kinds: Vec<_> = schema::kinds().collect();
        let kind = kinds[kind.index(kinds.len())];
        let gvk = Gvk { group: kind.group.into(), version: kind.version.into(), kind: kind.kind.into() };
        decode_anything(&gvk, &raw);
    }

    #[test]
    fn damaged_recordings_are_decoded_without_panic(bytes in mutated()) {
        if let Ok(envelope) = Envelope::open(&bytes) {
            decode_anything(&envelope.gvk(), envelope.raw);
        }
        let object = Object { encoding: Encoding::Protobuf, bytes };
        for path in ["metadata.name", "spec.nodeName", "status.phase", "source"] {
            let _ = object.field(path);
        }
        let _ = object.to_partial_metadata("v1");
    }

    #[test]
    fn every_kind_has_a_stable_zero(kind: prop::sample::Index) {
        let kinds: Vec<_> = schema::kinds().collect();
        let kind = kinds[kind.index(kinds.len())];
        let gvk = Gvk { group: kind.group.into(), version: kind.version.into(), kind: kind.kind.into() };
        decode_anything(&gvk, &[]);
    }
}
