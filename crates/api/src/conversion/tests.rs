//! Round trips, and what users of older versions change.

use super::*;
use crate::names::{annotations::STASH_PREFIX, labels::NODE_POOL};
use proptest::prelude::*;
use serde_json::json;

fn gv(version: &str) -> String {
    format!("apps.openyurt.io/{version}")
}

fn to(object: &Value, version: &str) -> Value {
    to_version(object.clone(), &gv(version)).expect("converts")
}

fn stashed(object: &Value, version: &str) -> bool {
    object["metadata"]["annotations"][format!("{STASH_PREFIX}{version}")].is_string()
}

fn pool() -> Value {
    json!({"apiVersion": gv("v1beta2"), "kind": "NodePool", "metadata": {"name": "hangzhou"},
        "spec": {"type": "Edge", "hostNetwork": true, "interConnectivity": true, "enableLeaderElection": true,
            "leaderReplicas": 3, "leaderElectionStrategy": "mark", "leaderNodeLabelSelector": {"a": "b"},
            "poolScopeMetadata": [{"group": "", "version": "v1", "resource": "services"}]},
        "status": {"readyNodeNum": 2, "nodes": ["a", "b"], "leaderNum": 1}})
}

#[test]
fn a_change_through_an_old_version_keeps_the_leader_fields_of_a_pool() {
    for version in ["v1beta1", "v1alpha1"] {
        let mut old = to(&pool(), version);
        assert!(old["spec"]["leaderReplicas"].is_null());
        assert_eq!(old["status"]["nodes"], json!(["a", "b"]));
        old["spec"]["labels"] = json!({"new": "label"});
        let mut wanted = pool();
        wanted["spec"]["labels"] = json!({"new": "label"});
        assert_eq!(to(&old, "v1beta2"), wanted, "{version}");
    }
}

#[test]
fn a_client_that_does_not_send_the_stash_back_resets_nothing() {
    for version in ["v1beta1", "v1alpha1"] {
        let mut anew = to(&pool(), version);
        let kept = anew["metadata"].as_object_mut().unwrap();
        kept.remove("annotations");
        // In v1alpha1 the annotation is how the user says it.
        if version == "v1alpha1" {
            kept.insert(
                "annotations".into(),
                json!({"nodepool.openyurt.io/hostnetwork": "true"}),
            );
        }
        anew["spec"]["labels"] = json!({"new": "label"});
        let received = to(&anew, "v1beta2");
        assert_ne!(received["spec"]["leaderReplicas"], 3, "it is lost");
        let mut wanted = pool();
        wanted["spec"]["labels"] = json!({"new": "label"});
        let meant = restored(&pool(), received, &gv(version)).expect("converts");
        assert_eq!(meant, wanted, "{version}");
        // One that sends it back means the same.
        let mut whole = to(&pool(), version);
        whole["spec"]["labels"] = json!({"new": "label"});
        let received = to(&whole, "v1beta2");
        assert_eq!(
            restored(&pool(), received, &gv(version)).expect("converts"),
            wanted
        );
    }
}

#[test]
fn a_host_network_is_said_by_field_or_annotation() {
    assert_eq!(to(&pool(), "v1beta1")["spec"]["hostNetwork"], true);
    let mut old = to(&pool(), "v1alpha1");
    let annotation = "nodepool.openyurt.io/hostnetwork";
    assert_eq!(old["metadata"]["annotations"][annotation], "true");
    // Taken away by the user, it is not restored.
    old["metadata"]["annotations"]
        .as_object_mut()
        .unwrap()
        .remove(annotation);
    assert!(to(&old, "v1beta2")["spec"]["hostNetwork"].is_null());
    for version in ["v1beta1", "v1alpha1"] {
        let old = json!({"apiVersion": gv(version), "kind": "NodePool",
            "metadata": {"name": "a", "annotations": {annotation: "True"}}, "spec": {"type": "Edge"}});
        let new = to(&old, "v1beta2");
        assert_eq!(new["spec"]["hostNetwork"], true, "{version}");
        assert_eq!(new["spec"]["leaderReplicas"], 1, "{version}");
        assert_eq!(to(&new, version), old, "{version}");
    }
    let field = json!({"apiVersion": gv("v1beta1"), "kind": "NodePool", "metadata": {"name": "a"}, "spec": {"hostNetwork": true}});
    assert_eq!(to(&field, "v1beta2")["spec"]["hostNetwork"], true);
}

#[test]
fn a_plain_pool_needs_no_stash() {
    let old = json!({"apiVersion": gv("v1beta1"), "kind": "NodePool", "metadata": {"name": "a"}, "spec": {"type": "Edge"}});
    let new = to(&old, "v1beta2");
    assert!(new["metadata"]["annotations"].is_null());
    assert_eq!(to(&new, "v1beta1"), old);
}

#[test]
fn old_versions_convert_through_the_hub() {
    let old = json!({"apiVersion": gv("v1alpha1"), "kind": "NodePool", "metadata": {"name": "a"},
        "spec": {"type": "Edge", "selector": {"matchLabels": {"a": "b"}}}});
    let other = to(&old, "v1beta1");
    assert_eq!(other["spec"], json!({"type": "Edge"}));
    assert_eq!(to(&other, "v1alpha1"), old);
}

fn template() -> Value {
    json!({"deploymentTemplate": {"metadata": {"labels": {"app": "web"}}, "spec": {"replicas": 2,
        "selector": {"matchLabels": {"app": "web"}}, "template": {"metadata": {"labels": {"app": "web"}},
            "spec": {"containers": [{"name": "web", "image": "web:1"}]}}}}})
}

/// As users wrote them for OpenYurt 1.4.
fn old_set() -> Value {
    let of = |name: &str| json!({"matchExpressions": [{"key": NODE_POOL, "operator": "In", "values": [name]}]});
    json!({"apiVersion": gv("v1alpha1"), "kind": "YurtAppSet", "metadata": {"name": "web", "namespace": "default"},
        "spec": {"selector": {"matchLabels": {"app": "web"}}, "workloadTemplate": template(), "revisionHistoryLimit": 5,
            "topology": {"pools": [
                {"name": "beijing", "nodeSelectorTerm": of("beijing"), "replicas": 1,
                    "tolerations": [{"key": "apps.openyurt.io/example", "operator": "Exists"}]},
                {"name": "hangzhou", "nodeSelectorTerm": of("hangzhou"), "replicas": 2, "patch": {"spec": {"template": {"spec": {
                    "containers": [{"name": "web", "image": "web:2"}]}}}}}]}},
        "status": {"currentRevision": "web-1", "replicas": 3, "readyReplicas": 2, "templateType": "Deployment",
            "overriderRef": "o", "poolReplicas": {"beijing": 1, "hangzhou": 2}, "workloadSummary": [
                {"availableCondition": "True", "replicas": 1, "readyReplicas": 1, "workloadName": "web-beijing-x"},
                {"availableCondition": "False", "replicas": 2, "readyReplicas": 1, "workloadName": "web-hangzhou-x"}]}})
}

fn new_set() -> Value {
    json!({"apiVersion": gv("v1beta1"), "kind": "YurtAppSet", "metadata": {"name": "web", "namespace": "default"},
        "spec": {"nodepoolSelector": {"matchLabels": {"kind": "edge"}}, "pools": ["a", "b"], "replicas": 8,
            "workload": {"workloadTemplate": template(), "workloadTweaks": [
                {"pools": ["a"], "tweaks": {"replicas": 3, "containerImages": [{"name": "web", "targetImage": "web:3"}]}},
                {"nodepoolSelector": {}, "tweaks": {"patches": [{"operation": "add", "path": "/metadata/labels/x", "value": "y"}]}}]}},
        "status": {"currentRevision": "web-2", "totalWorkloads": 4, "readyWorkloads": 3, "updatedWorkloads": 2}})
}

#[test]
fn pools_of_an_old_set_become_pools_and_tweaks() {
    let new = to(&old_set(), "v1beta1");
    let spec = &new["spec"];
    assert_eq!(spec["pools"], json!(["beijing", "hangzhou"]));
    assert_eq!(spec["revisionHistoryLimit"], 5);
    assert_eq!(spec["workload"]["workloadTemplate"], template());
    assert_eq!(
        spec["workload"]["workloadTweaks"],
        json!([
        {"pools": ["beijing"], "tweaks": {"replicas": 1, "patches": [{"operation": "add", "path": "/spec/template/spec/tolerations",
            "value": [{"key": "apps.openyurt.io/example", "operator": "Exists"}]}]}},
        {"pools": ["hangzhou"], "tweaks": {"replicas": 2, "patches": [{"operation": "replace",
            "path": "/spec/template/spec/containers/0/image", "value": "web:2"}]}}])
    );
    let status = &new["status"];
    assert_eq!(
        (&status["totalWorkloads"], &status["readyWorkloads"]),
        (&json!(2), &json!(1))
    );
    assert_eq!(to(&new, "v1alpha1"), old_set());
}

#[test]
fn a_new_set_shows_its_named_pools_in_the_old_version() {
    let old = to(&new_set(), "v1alpha1");
    assert_eq!(
        old["spec"]["selector"],
        json!({"matchLabels": {"app": "web"}})
    );
    let pools = old["spec"]["topology"]["pools"].as_array().unwrap();
    let shown: Vec<_> = pools
        .iter()
        .map(|pool| (&pool["name"], &pool["replicas"]))
        .collect();
    assert_eq!(shown, [(&json!("a"), &json!(3)), (&json!("b"), &json!(2))]);
    assert_eq!(old["status"]["templateType"], "Deployment");
    assert_eq!(old["status"]["poolReplicas"], json!({"a": 3, "b": 2}));
    assert_eq!(to(&old, "v1beta1"), new_set());
}

#[test]
fn what_is_changed_in_an_old_topology_is_changed_in_the_new_set_and_nothing_else() {
    let mut old = to(&new_set(), "v1alpha1");
    let pools = old["spec"]["topology"]["pools"].as_array_mut().unwrap();
    pools[0]["replicas"] = 7.into();
    pools[1] = json!({"name": "c", "replicas": 1});
    let mut wanted = new_set();
    wanted["spec"]["pools"] = json!(["a", "c"]);
    let tweaks = wanted["spec"]["workload"]["workloadTweaks"]
        .as_array_mut()
        .unwrap();
    tweaks.push(json!({"pools": ["a"], "tweaks": {"replicas": 7}}));
    tweaks.push(json!({"pools": ["c"], "tweaks": {"replicas": 1}}));
    let mut new = to(&old, "v1beta1");
    assert_eq!(new["spec"], wanted["spec"]);
    // Both versions say the same from here on.
    let again = to(&new, "v1alpha1");
    assert_eq!(again["spec"]["topology"], old["spec"]["topology"]);
    assert_eq!(to(&again, "v1beta1"), new);
    // A further change replaces the tweak of the last one.
    let mut old = again;
    old["spec"]["topology"]["pools"][0]["replicas"] = 8.into();
    new = to(&old, "v1beta1");
    let tweaks = new["spec"]["workload"]["workloadTweaks"]
        .as_array()
        .unwrap();
    let of_a: Vec<_> = tweaks
        .iter()
        .filter(|tweak| tweak["tweaks"]["replicas"].is_number())
        .collect();
    assert_eq!(of_a.len(), 3);
    assert_eq!(
        tweaks.last().unwrap(),
        &json!({"pools": ["a"], "tweaks": {"replicas": 8}})
    );
}

#[test]
fn what_is_changed_in_the_new_version_is_not_undone_by_the_stash_of_the_old_one() {
    let mut new = to(&old_set(), "v1beta1");
    assert!(stashed(&new, "v1alpha1"));
    new["spec"]["pools"] = json!(["beijing"]);
    new["status"]["readyWorkloads"] = 2.into();
    let old = to(&new, "v1alpha1");
    let pools = old["spec"]["topology"]["pools"].as_array().unwrap();
    assert_eq!(pools.len(), 1);
    assert_eq!(pools[0]["name"], "beijing");
    assert_eq!(old["status"]["readyReplicas"], 3);
    let back = to(&old, "v1beta1");
    assert_eq!(back["spec"], new["spec"]);
    assert_eq!(back["status"], new["status"]);
}

#[test]
fn a_topology_without_requirements_names_its_pool() {
    let mut old = old_set();
    old["spec"]["topology"] = json!({"pools": [{"name": "a", "nodeSelectorTerm": {"matchExpressions": []}, "replicas": 1},
        {"name": "b", "replicas": 1, "nodeSelectorTerm": {"matchExpressions": [{"key": "zone", "operator": "In", "values": ["z"]}]}}]});
    let new = to(&old, "v1beta1");
    assert_eq!(new["spec"]["pools"], json!(["a", "b"]));
    let patch = &new["spec"]["workload"]["workloadTweaks"][1]["tweaks"]["patches"][0];
    assert_eq!(patch["path"], "/spec/template/spec/affinity");
    assert_eq!(to(&new, "v1alpha1"), old);
}

#[test]
fn a_stash_that_nobody_can_read_is_as_good_as_none() {
    for text in [
        "",
        "[]",
        "{\"placement\": 3, \"alone\": []}",
        "{\"placement\": {\"for\": 1, \"fields\": {\"/kind\": 1}}}",
    ] {
        let mut old = to(&new_set(), "v1alpha1");
        old["metadata"]["annotations"][format!("{STASH_PREFIX}v1beta1")] = text.into();
        let new = to(&old, "v1beta1");
        assert_eq!(new["kind"], "YurtAppSet");
        assert_eq!(new["spec"]["pools"], json!(["a", "b"]), "{text}");
    }
}

#[test]
fn objects_that_cannot_be_converted_are_named_with_the_field() {
    let fail =
        |object: Value, version: &str| to_version(object, &gv(version)).unwrap_err().to_string();
    let with = |field: &str, value: Value| {
        let mut pool = pool();
        pool[field] = value;
        pool
    };
    assert_eq!(
        fail(with("spec", 3.into()), "v1beta1"),
        "NodePool hangzhou: spec: must be an object, is a number"
    );
    let annotated = with("metadata", json!({"name": "x", "annotations": []}));
    assert_eq!(
        fail(annotated, "v1beta1"),
        "NodePool x: metadata.annotations: must be an object, is an array"
    );
    assert_eq!(
        fail(json!([]), "v1beta1"),
        "object without a name: object: must be an object, is an array"
    );
    assert_eq!(
        fail(with("kind", "Node".into()), "v1beta1"),
        "Node hangzhou: kind: \"Node\" is not a kind of apps.openyurt.io"
    );
    assert_eq!(
        fail(pool(), "v9"),
        "NodePool hangzhou: apiVersion: \"apps.openyurt.io/v1beta2\" has no conversion to \"apps.openyurt.io/v9\""
    );
    let elsewhere = to_version(pool(), "iot.openyurt.io/v1beta1").unwrap_err();
    assert!(matches!(elsewhere.fault, Fault::NoConversion(..)));
}

#[test]
fn reviews_are_answered_in_their_version() {
    for version in ["v1", "v1beta1"] {
        let review = |objects: Value| {
            json!({"apiVersion": format!("apiextensions.k8s.io/{version}"), "kind": "ConversionReview",
            "request": {"uid": "u", "desiredAPIVersion": gv("v1beta1"), "objects": objects}})
        };
        let answer = convert(review(json!([pool(), pool()]))).unwrap();
        assert_eq!(
            answer["apiVersion"],
            format!("apiextensions.k8s.io/{version}")
        );
        assert_eq!(answer["response"]["uid"], "u");
        assert_eq!(answer["response"]["result"], json!({"status": "Success"}));
        assert_eq!(
            answer["response"]["convertedObjects"],
            json!([to(&pool(), "v1beta1"), to(&pool(), "v1beta1")])
        );
        let answer = convert(review(json!([pool(), {"kind": "NodePool"}]))).unwrap();
        let result = &answer["response"]["result"];
        assert_eq!(result["status"], "Failure");
        assert_eq!(
            result["message"],
            "NodePool without a name: apiVersion: must be a string, is absent"
        );
        let many = vec![Value::Null; MAX_OBJECTS + 1];
        assert_eq!(
            convert(review(many.into())).unwrap()["response"]["result"]["status"],
            "Failure"
        );
        assert_eq!(
            convert(review(Value::Null)),
            Err(ReviewError::Field("objects", "an array"))
        );
    }
    assert!(matches!(
        convert(json!({"kind": "ConversionReview"})),
        Err(ReviewError::NotAReview(..))
    ));
    assert!(matches!(
        convert(Value::Null),
        Err(ReviewError::NotAReview(..))
    ));
}

/// JSON of any shape, with names that mean something here.
fn any_json() -> impl Strategy<Value = Value> {
    let name = prop::sample::select(vec![
        "name", "replicas", "pools", "patch", "spec", "template", "tweaks", "key", "x",
    ]);
    let leaf = prop_oneof![
        any::<bool>().prop_map(Value::from),
        (-1..4i64).prop_map(Value::from),
        prop::sample::select(vec!["a", "b", "true", "In", NODE_POOL, "*"]).prop_map(Value::from),
        Just(Value::Null),
    ];
    leaf.prop_recursive(4, 24, 4, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(Value::Array),
            prop::collection::btree_map(name.clone(), inner, 0..4)
                .prop_map(|fields| fields.into_iter().map(|(k, v)| (k.to_owned(), v)).collect()),
        ]
    })
}

/// An object whose spec and status have some of these fields, with mostly well-formed values.
fn with_fields(fields: Vec<(&'static str, BoxedStrategy<Value>)>) -> BoxedStrategy<Value> {
    let maybe = |(name, value): (&'static str, BoxedStrategy<Value>)| {
        prop_oneof![2 => Just(None), 3 => value.prop_map(Some), 1 => any_json().prop_map(Some)]
            .prop_map(move |value| (name, value))
    };
    fields
        .into_iter()
        .map(maybe)
        .collect::<Vec<_>>()
        .prop_map(|fields| {
            fields
                .into_iter()
                .filter_map(|(name, value)| Some((name.to_owned(), value?)))
                .collect()
        })
        .boxed()
}

fn choice(values: &[Value]) -> BoxedStrategy<Value> {
    prop::sample::select(values.to_vec()).boxed()
}

fn metadata() -> impl Strategy<Value = Value> {
    let annotation = prop::sample::select(vec!["nodepool.openyurt.io/hostnetwork", "other/x", "y"]);
    let value = prop::sample::select(vec!["true", "True", "false", ""]);
    prop::collection::btree_map(annotation, value, 0..3).prop_map(|annotations| {
        let mut metadata = json!({"name": "n", "uid": "u", "labels": {"a": "b"}});
        if !annotations.is_empty() {
            metadata["annotations"] = json!(annotations);
        }
        metadata
    })
}

fn object(
    kind: &'static str,
    version: &'static str,
    spec: BoxedStrategy<Value>,
    status: BoxedStrategy<Value>,
) -> BoxedStrategy<Value> {
    (
        metadata(),
        prop::option::weighted(0.9, spec),
        prop::option::weighted(0.6, status),
        prop::option::weighted(0.1, any_json()),
    )
        .prop_map(move |(metadata, spec, status, unknown)| {
            let mut object = json!({"apiVersion": gv(version), "kind": kind, "metadata": metadata});
            for (field, value) in [("spec", spec), ("status", status), ("unknown", unknown)] {
                if let Some(value) = value {
                    object[field] = value;
                }
            }
            object
        })
        .boxed()
}

fn node_pool(version: &'static str) -> BoxedStrategy<Value> {
    let flag = || choice(&[true.into(), false.into()]);
    let map = || choice(&[json!({"a": "b"}), json!({})]);
    let number = || choice(&[0.into(), 1.into(), 3.into()]);
    let mut spec = vec![
        ("type", choice(&["Edge".into(), "Cloud".into()])),
        ("labels", map()),
        ("annotations", map()),
        (
            "taints",
            choice(&[json!([{"key": "a", "effect": "NoSchedule"}])]),
        ),
        ("unknown", any_json().boxed()),
    ];
    let mut status = vec![
        ("readyNodeNum", number()),
        ("nodes", choice(&[json!(["a"])])),
        ("unknown", any_json().boxed()),
    ];
    match version {
        "v1alpha1" => spec.push(("selector", choice(&[json!({"matchLabels": {}})]))),
        "v1beta1" => spec.push(("hostNetwork", flag())),
        _ => {
            spec.extend([
                ("hostNetwork", flag()),
                ("interConnectivity", flag()),
                ("leaderReplicas", number()),
                (
                    "leaderElectionStrategy",
                    choice(&["random".into(), "mark".into()]),
                ),
                ("leaderNodeLabelSelector", map()),
            ]);
            status.push(("leaderNum", number()));
        }
    }
    object("NodePool", version, with_fields(spec), with_fields(status))
}

fn templates() -> BoxedStrategy<Value> {
    let mut stateful = template();
    let deployment = stateful["deploymentTemplate"].take();
    choice(&[
        template(),
        json!({"statefulSetTemplate": deployment}),
        json!({}),
        json!({"deploymentTemplate": {"spec": {}}}),
    ])
}

fn topology() -> BoxedStrategy<Value> {
    let of = |names: &[&str]| json!({"matchExpressions": [{"key": NODE_POOL, "operator": "In", "values": names}]});
    let pool = with_fields(vec![
        ("name", choice(&["a".into(), "b".into()])),
        (
            "nodeSelectorTerm",
            choice(&[
                of(&["a"]),
                of(&["a", "c"]),
                json!({"matchFields": [{"key": "metadata.name"}]}),
                json!({"matchExpressions": [{"key": "k", "operator": "Exists"}]}),
            ]),
        ),
        ("replicas", choice(&[0.into(), 2.into()])),
        (
            "tolerations",
            choice(&[json!([]), json!([{"operator": "Exists"}])]),
        ),
        (
            "patch",
            choice(&[
                json!({"spec": {"replicas": 9}}),
                json!({"spec": {"template": {"spec": {"containers": [
            {"name": "web", "image": "i"}, {"name": "new"}], "nodeSelector": {"a": "b"}}}}}),
                json!({"spec": null}),
            ]),
        ),
    ]);
    prop::collection::vec(pool, 0..3)
        .prop_map(|pools| json!({"pools": pools}))
        .boxed()
}

fn tweaks() -> BoxedStrategy<Value> {
    let tweak = with_fields(vec![
        ("pools", choice(&[json!(["a"]), json!(["a", "b"])])),
        ("nodepoolSelector", choice(&[json!({})])),
        (
            "tweaks",
            choice(&[
                json!({"replicas": 4}),
                json!({"containerImages": [{"name": "web", "targetImage": "x"}]}),
                json!({"replicas": 0, "patches": [{"path": "/metadata/labels/a", "operation": "remove"}]}),
            ]),
        ),
    ]);
    prop::collection::vec(tweak, 0..3)
        .prop_map(Value::Array)
        .boxed()
}

fn yurt_app_set(version: &'static str) -> BoxedStrategy<Value> {
    let number = || choice(&[0.into(), 1.into(), 3.into()]);
    let (mut spec, mut status) = (
        vec![
            ("revisionHistoryLimit", number()),
            ("unknown", any_json().boxed()),
        ],
        vec![
            ("observedGeneration", number()),
            ("currentRevision", choice(&["r".into()])),
            ("replicas", number()),
            ("conditions", choice(&[json!([{"type": "AppReady"}])])),
            ("unknown", any_json().boxed()),
        ],
    );
    if version == "v1alpha1" {
        spec.extend([
            (
                "selector",
                choice(&[json!({"matchLabels": {"app": "web"}}), json!({})]),
            ),
            ("workloadTemplate", templates()),
            ("topology", topology()),
        ]);
        status.extend([
            ("readyReplicas", number()),
            ("poolReplicas", choice(&[json!({"a": 1})])),
            ("overriderRef", choice(&["o".into()])),
            ("templateType", choice(&["Deployment".into()])),
            (
                "workloadSummary",
                choice(&[json!([{"replicas": 1, "readyReplicas": 1}])]),
            ),
        ]);
    } else {
        let workload = with_fields(vec![
            ("workloadTemplate", templates()),
            ("workloadTweaks", tweaks()),
            ("x", any_json().boxed()),
        ]);
        spec.extend([
            ("workload", workload),
            (
                "pools",
                choice(&[json!(["a", "b"]), json!([]), json!(["c", "c"])]),
            ),
            ("nodepoolSelector", choice(&[json!({})])),
            ("replicas", number()),
        ]);
        status.extend([
            ("totalWorkloads", number()),
            ("readyWorkloads", number()),
            ("updatedWorkloads", number()),
            ("selector", choice(&["a=b".into()])),
        ]);
    }
    object(
        "YurtAppSet",
        version,
        with_fields(spec),
        with_fields(status),
    )
}

fn any_object() -> impl Strategy<Value = (Value, Vec<&'static str>)> {
    const POOLS: &[&str] = &["v1alpha1", "v1beta1", "v1beta2"];
    const SETS: &[&str] = &["v1alpha1", "v1beta1"];
    prop_oneof![
        prop::sample::select(POOLS)
            .prop_flat_map(node_pool)
            .prop_map(|object| (object, POOLS.to_vec())),
        prop::sample::select(SETS)
            .prop_flat_map(yurt_app_set)
            .prop_map(|object| (object, SETS.to_vec())),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    /// To another version and back, by way of any third, nothing is lost; from the second time on, nothing changes at all.
    #[test]
    fn nothing_is_lost((object, versions) in any_object(), way in prop::collection::vec(any::<prop::sample::Index>(), 1..4)) {
        let own = object["apiVersion"].as_str().unwrap().rsplit_once('/').unwrap().1.to_owned();
        let mut travelled = object.clone();
        for stop in &way {
            travelled = to(&travelled, stop.get::<&str>(&versions));
        }
        let back = to(&travelled, &own);
        prop_assert_eq!(&back, &object);
    }

    /// What a client of another version changes in a field that both have changes in the object, and nothing else does.
    #[test]
    fn only_what_is_changed_changes((object, versions) in any_object(), at in any::<prop::sample::Index>()) {
        let own = object["apiVersion"].as_str().unwrap().rsplit_once('/').unwrap().1.to_owned();
        let mut other = to(&object, at.get::<&str>(&versions));
        let mut wanted = object.clone();
        other["metadata"]["labels"]["changed"] = "by a client".into();
        wanted["metadata"]["labels"]["changed"] = "by a client".into();
        let field = if object["kind"] == "NodePool" { "type" } else { "revisionHistoryLimit" };
        // A spec that was not there is made by the change.
        if object["spec"].is_object() && other["spec"].is_object() {
            other["spec"][field] = 77.into();
            wanted["spec"][field] = 77.into();
        }
        prop_assert_eq!(to(&other, &own), wanted);
    }

    /// Whatever an object and its stash are, conversion ends without a panic, and the answer is of the version asked for.
    #[test]
    fn anything_is_answered(kind in prop::sample::select(vec!["NodePool", "YurtAppSet", "NodeBucket"]), spec in any_json(), status in any_json(),
        stash in any_json(), from in prop::sample::select(vec!["v1alpha1", "v1beta1", "v1beta2"]), other in prop::sample::select(vec!["v1alpha1", "v1beta1", "v1beta2"])) {
        let object = json!({"apiVersion": gv(from), "kind": kind, "metadata": {"name": "n", "annotations": {
            format!("{STASH_PREFIX}{other}"): stash.to_string()}}, "spec": spec, "status": status});
        match to_version(object, &gv(other)) {
            Ok(converted) => prop_assert_eq!(&converted["apiVersion"], &gv(other)),
            Err(error) => prop_assert!(error.to_string().contains(" n: ")),
        }
    }
}
