//! Anybody who reaches the port may send anything: nothing makes the pure parts panic, and what they make of an object they leave
//! as it is the next time.

use super::{
    endpoints, node, nodepool, pod,
    review::{Answer, Operation, Request, User},
    yurtappdaemon, yurtappoverrider, yurtappset, yurtstaticset,
};
use base64::{Engine, engine::general_purpose::STANDARD};
use proptest::prelude::*;
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;
use yurt_api::names::{annotations, labels};

/// Names that mean something somewhere.
const FIELDS: &[&str] = &[
    "metadata",
    "name",
    "namespace",
    "labels",
    "annotations",
    "spec",
    "status",
    "type",
    "selector",
    "matchLabels",
    "matchExpressions",
    "key",
    "operator",
    "values",
    "template",
    "containers",
    "initContainers",
    "image",
    "ports",
    "env",
    "volumes",
    "volumeMounts",
    "resources",
    "limits",
    "requests",
    "cpu",
    "workload",
    "workloadTemplate",
    "deploymentTemplate",
    "statefulSetTemplate",
    "workloadTweaks",
    "tweaks",
    "patches",
    "path",
    "operation",
    "value",
    "pools",
    "replicas",
    "nodepoolSelector",
    "containerImages",
    "targetImage",
    "poolScopeMetadata",
    "group",
    "version",
    "resource",
    "taints",
    "effect",
    "leaderReplicas",
    "leaderElectionStrategy",
    "hostNetwork",
    "upgradeStrategy",
    "maxUnavailable",
    "staticPodManifest",
    "subject",
    "kind",
    "entries",
    "items",
    "subsets",
    "notReadyAddresses",
    "addresses",
    "endpoints",
    "conditions",
    "ready",
    "serving",
    "targetRef",
    "nodeName",
    "affinity",
    "nodeAffinity",
    "requiredDuringSchedulingIgnoredDuringExecution",
    "nodeSelectorTerms",
    "phase",
    labels::NODE_POOL,
    labels::DESIRED_NODE_POOL,
    labels::HOST_NETWORK,
    labels::EDGE_WORKER,
    annotations::EXCLUDE_HOST_NETWORK_POOL,
    annotations::AUTONOMY_DURATION,
];
const TEXTS: &[&str] = &[
    "",
    "true",
    "false",
    "Edge",
    "Cloud",
    "mark",
    "web",
    "/spec/replicas",
    "/spec/-",
    "add",
    "remove",
    "Pod",
    "Running",
    "10%",
    "-1%",
    "a b",
];

fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        (-3i64..5).prop_map(Value::from),
        proptest::sample::select(TEXTS).prop_map(Value::from),
    ];
    leaf.prop_recursive(6, 48, 6, |inner| {
        let field = proptest::sample::select(FIELDS).prop_map(str::to_owned);
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((field, inner), 0..6)
                .prop_map(|fields| Value::Object(fields.into_iter().collect::<Map<_, _>>())),
        ]
    })
}

/// Objects of users, in which anything is replaced.
fn sample() -> impl Strategy<Value = Value> {
    let template = json!({"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "web", "image": "web:1",
        "ports": [{"containerPort": 80}], "resources": {"requests": {"cpu": "1"}}}]}});
    let workload = json!({"deploymentTemplate": {"spec": {"replicas": 1, "selector": {"matchLabels": {"app": "web"}}, "template": template}}});
    let samples = vec![
        json!({"spec": {"type": "Edge", "taints": [{"key": "a", "effect": "NoSchedule"}], "labels": {"a": "b"}, "poolScopeMetadata": [{"group": "", "version": "v1", "resource": "services"}]}}),
        json!({"spec": {"pools": ["a"], "workload": {"workloadTemplate": workload, "workloadTweaks": [{"pools": ["a"], "tweaks": {"replicas": 1,
            "containerImages": [{"name": "web", "targetImage": "x"}], "patches": [{"path": "/spec/replicas", "operation": "replace", "value": 2}]}}]}}}),
        json!({"spec": {"selector": {"matchLabels": {"app": "web"}}, "nodepoolSelector": {}, "workloadTemplate": workload}}),
        json!({"subject": {"kind": "YurtAppSet", "name": "a"}, "entries": [{"pools": ["*"], "items": [{"replicas": 1}], "patches": [{"path": "/a", "operation": "add"}]}]}),
        json!({"spec": {"staticPodManifest": "web", "upgradeStrategy": {"type": "OTA"}, "template": template}}),
        json!({"subsets": [{"notReadyAddresses": [{"nodeName": "n", "targetRef": {"kind": "Pod", "namespace": "d", "name": "p"}}]}]}),
    ];
    (
        proptest::sample::select(samples),
        any::<prop::sample::Index>(),
        value(),
        value(),
    )
        .prop_map(|(mut object, at, new, metadata)| {
            object["metadata"] = json!({"name": "a", "namespace": "d", "labels": metadata});
            let mut pointers = Vec::new();
            pointers_of(&object, "", &mut pointers);
            if let Some(place) = object.pointer_mut(at.get::<String>(&pointers)) {
                *place = new;
            }
            object
        })
}

fn pointers_of(value: &Value, at: &str, pointers: &mut Vec<String>) {
    pointers.push(at.to_owned());
    let mut below = |field: &str, value| pointers_of(value, &format!("{at}/{field}"), pointers);
    match value {
        Value::Object(fields) => {
            for (field, value) in fields {
                below(&field.replace('~', "~0").replace('/', "~1"), value);
            }
        }
        Value::Array(values) => {
            for (i, value) in values.iter().enumerate() {
                below(&i.to_string(), value);
            }
        }
        _ => {}
    }
}

/// As it comes through a review: an object with metadata.
fn reviewed(object: &Value) -> Option<Request> {
    let review = json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": {"uid": "u", "operation": "UPDATE",
        "object": object, "oldObject": object}});
    Request::parse(review).ok()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn nothing_panics_and_twice_is_as_once(object in prop_oneof![value(), sample()]) {
        let Some(request) = reviewed(&object) else { return Ok(()) };
        prop_assert_eq!(request.operation, Operation::Update);
        let user = User::default();
        let pool = json!({"spec": {"hostNetwork": true}});
        let alive = BTreeSet::from([yurt_controller::Key::new("d", "p")]);
        let completed: [&dyn Fn(Value) -> Value; 8] = [
            &|object| nodepool::completed(object, true),
            &|object| nodepool::completed(object, false),
            &|object| node::completed(None, object, Some(&pool)),
            &pod::completed,
            &|object| yurtappset::completed(object, None),
            &|object| yurtappdaemon::completed(object, true),
            &yurtstaticset::completed,
            &|object| endpoints::completed(object, &alive),
        ];
        for (i, complete) in completed.iter().enumerate() {
            let once = complete(object.clone());
            prop_assert_eq!(&complete(once.clone()), &once, "{}", i);
            // What the API server makes of the answer is what was meant.
            let answer = request.answered(&Ok(Answer::of(once.clone())));
            let mut patched = object.clone();
            if let Some(patch) = answer["response"]["patch"].as_str() {
                let patch = STANDARD.decode(patch).expect("base64");
                let patch: Value = serde_json::from_slice(&patch).expect("JSON");
                yurt_wire::patch::json_patch(&mut patched, &patch).expect("it applies");
            }
            prop_assert_eq!(patched, once, "{}", i);
        }
        let _ = endpoints::silent(&object);
        let _ = endpoints::ready(&object);
        let _ = endpoints::has_witness(&object, "n", |_| true);
        let _ = endpoints::was_ready(&object);
        let _ = endpoints::lives(&object, true, jiff::Timestamp::UNIX_EPOCH);
        for old in [None, Some(&object)] {
            let verdicts = [
                nodepool::judged(old, &object),
                yurtappset::judged(old, &object),
                yurtappdaemon::judged(old, &object),
                yurtstaticset::judged(old, &object),
                yurtappoverrider::judged(old, &object, std::slice::from_ref(&object)),
            ];
            for verdict in verdicts {
                // What is as it was is never in the way.
                prop_assert!(old.is_none() || verdict.is_ok(), "{verdict:?}");
                let answer = request.answered(&verdict);
                prop_assert_eq!(&answer["response"]["uid"], "u");
            }
        }
        prop_assert!(node::judged(&object, &object, None, &user, &[]).is_ok());
    }
}
