use super::*;
use proptest::prelude::*;

fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    let target = target.as_object_mut().expect("an object");
    for (key, value) in patch {
        if value.is_null() {
            target.remove(key);
        } else {
            merge(target.entry(key.clone()).or_insert(Value::Null), value);
        }
    }
}

fn pool(labels: &[(&str, &str)], taints: &[(&str, &str)]) -> Attributes {
    let labels: BTreeMap<&str, &str> = labels.iter().copied().collect();
    let taints: Vec<Value> = taints
        .iter()
        .map(|(key, value)| json!({"key": key, "value": value, "effect": "NoSchedule"}))
        .collect();
    let (attributes, faults) = Attributes::of_pool(
        &json!({"spec": {"labels": labels, "annotations": labels, "taints": taints}}),
    );
    assert!(faults.is_empty(), "{faults:?}");
    attributes
}

/// Does what is planned until nothing is; the conflicts that are left.
fn settled(node: &mut Value, wanted: &Attributes, host_network: bool) -> Vec<String> {
    let first = plan(node, Some(wanted), host_network);
    if let Some(patch) = &first.patch {
        merge(node, patch);
    }
    let second = plan(node, Some(wanted), host_network);
    assert_eq!(second.patch, None, "one write is enough");
    assert_eq!(first.conflicts, second.conflicts);
    second.conflicts
}

/// A node without the empty maps that a patch leaves.
fn bare(node: &Value) -> Value {
    let mut node = node.clone();
    for (parent, field) in [
        ("metadata", "labels"),
        ("metadata", "annotations"),
        ("spec", "taints"),
    ] {
        let empty = match &node[parent][field] {
            Value::Object(map) => map.is_empty(),
            Value::Array(list) => list.is_empty(),
            other => other.is_null(),
        };
        if empty && let Some(parent) = node[parent].as_object_mut() {
            parent.remove(field);
        }
    }
    if node["spec"].as_object().is_none_or(Map::is_empty) {
        node.as_object_mut().expect("an object").remove("spec");
    }
    node
}

#[test]
fn what_is_given_is_taken_back() {
    let before = json!({"metadata": {"labels": {"mine": "1"}}, "spec": {"taints": [{"key": "mine", "effect": "NoExecute"}]}});
    let mut node = before.clone();
    assert!(
        settled(
            &mut node,
            &pool(&[("a", "1"), ("b", "2")], &[("t", "x")]),
            true
        )
        .is_empty()
    );
    assert_eq!(
        node["metadata"]["labels"],
        json!({"mine": "1", "a": "1", "b": "2", labels::HOST_NETWORK: "true"})
    );
    assert_eq!(
        node["spec"]["taints"][1],
        json!({"key": "t", "value": "x", "effect": "NoSchedule"})
    );
    // Another pool.
    settled(
        &mut node,
        &pool(&[("b", "3")], &[("t", "y"), ("u", "")]),
        false,
    );
    assert_eq!(node["metadata"]["labels"], json!({"mine": "1", "b": "3"}));
    assert_eq!(
        node["spec"]["taints"],
        json!([{"key": "mine", "effect": "NoExecute"}, {"key": "t", "value": "y", "effect": "NoSchedule"},
            {"key": "u", "effect": "NoSchedule"}])
    );
    settled(&mut node, &Attributes::default(), false);
    assert_eq!(bare(&node), before);
}

#[test]
fn drift_is_repaired_and_what_is_anothers_is_left_alone() {
    let wanted = pool(
        &[("a", "1"), ("same", "s"), ("other", "o")],
        &[("t", "x"), ("theirs", "p")],
    );
    let mut node = json!({"metadata": {"labels": {"same": "s", "other": "mine"}},
        "spec": {"taints": [{"key": "theirs", "value": "q", "effect": "NoSchedule"}]}});
    assert_eq!(
        settled(&mut node, &wanted, false),
        ["label other", "taint theirs:NoSchedule"]
    );
    for drifted in [json!("2"), Value::Null] {
        merge(
            &mut node,
            &json!({"metadata": {"labels": {"a": drifted}}, "spec": {"taints": null}}),
        );
        settled(&mut node, &wanted, false);
        assert_eq!(
            node["metadata"]["labels"],
            json!({"a": "1", "same": "s", "other": "mine"})
        );
        assert_eq!(node["spec"]["taints"][0]["key"], "t");
    }
    // Whoever changes a value in the moment in which it is to be taken back keeps it.
    node["metadata"]["labels"]["a"] = "2".into();
    settled(&mut node, &Attributes::default(), false);
    assert_eq!(
        node["metadata"]["labels"],
        json!({"a": "2", "same": "s", "other": "mine"})
    );
}

/// As OpenYurt's own code wrote it (`src/recorded/README.md`).
#[test]
fn a_node_that_openyurt_wrote_is_taken_over_without_a_write() {
    let recorded = include_str!("../../recorded/openyurt/node-v1.7.json");
    let recorded: Value = serde_json::from_str(recorded).expect("JSON");
    let mut node = recorded["node"].clone();
    let (wanted, faults) = Attributes::of_pool(&recorded["pool"]);
    assert!(faults.is_empty(), "{faults:?}");
    assert_eq!(plan(&node, Some(&wanted), false), Plan::default());
    // And everything is had back when it leaves.
    settled(&mut node, &Attributes::default(), false);
    let labels = json!({"apps.openyurt.io/nodepool": "hangzhou", "kubernetes.io/os": "linux"});
    assert_eq!(node["metadata"]["labels"], labels);
    assert_eq!(
        node["metadata"]["annotations"],
        json!({"node.alpha.kubernetes.io/ttl": "0"})
    );
    assert_eq!(
        node["spec"]["taints"],
        json!([{"key": "own", "effect": "NoExecute"}])
    );
}

/// As OpenYurt 1.7 writes a node of a pool.
#[test]
fn openyurts_nodes_are_taken_over_without_a_write() {
    let given = r#"{"labels":{"a":"1"},"annotations":{"a":"1"},"taints":[{"key":"t","value":"x","effect":"NoSchedule"}]}"#;
    let mut node = json!({"metadata": {"labels": {"a": "1"}, "annotations": {"a": "1", PREVIOUS_ATTRIBUTES: given}},
        "spec": {"taints": [{"key": "t", "value": "x", "effect": "NoSchedule", "timeAdded": "2026-01-01T00:00:00Z"}]}});
    let wanted = pool(&[("a", "1")], &[("t", "x")]);
    assert_eq!(plan(&node, Some(&wanted), false), Plan::default());
    assert_eq!(plan(&node, None, false), Plan::default(), "switched off");
    settled(&mut node, &Attributes::default(), false);
    assert_eq!(bare(&node), json!({"metadata": {}}));
    let mut unreadable =
        json!({"metadata": {"labels": {"a": "1"}, "annotations": {PREVIOUS_ATTRIBUTES: "{"}}});
    settled(&mut unreadable, &Attributes::default(), false);
    assert_eq!(
        unreadable["metadata"],
        json!({"labels": {"a": "1"}, "annotations": {}})
    );
}

#[test]
fn what_no_node_can_have_is_named_and_the_rest_is_given() {
    let pool = json!({"spec": {"labels": {"a": "1", "b c": "1", "d": "x y", labels::NODE_POOL: "q"},
        "annotations": {PREVIOUS_ATTRIBUTES: "x", "Example.com/UPPER": "any text, really"},
        "taints": [{"key": "t", "effect": "Never"}, {"key": "t", "effect": "NoExecute"}]}});
    let (wanted, faults) = Attributes::of_pool(&pool);
    assert_eq!(wanted.labels.keys().collect::<Vec<_>>(), ["a"]);
    assert_eq!(
        wanted.annotations.keys().collect::<Vec<_>>(),
        ["Example.com/UPPER"]
    );
    assert_eq!(wanted.taints.len(), 1);
    for of in [
        "label b c",
        "label d",
        "label apps.openyurt.io/nodepool",
        "annotation nodepool",
        "taint t:Never",
    ] {
        assert!(
            faults.iter().any(|fault| fault.starts_with(of)),
            "{of} in {faults:?}"
        );
    }
}

#[derive(Clone, Debug)]
enum Step {
    /// Joins a pool, moves to it, or sees it change: what it wants from now on. Nothing: leaves.
    Pool(Vec<(u8, u8)>, Vec<(u8, u8)>, bool),
    /// The pool's attribute is changed or removed by somebody (if the node has one of this key that is not his own).
    Drift(u8, Option<u8>),
    /// Pools are switched off and on again.
    Restart,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let entries = || prop::collection::vec((0..4u8, 0..3u8), 0..4);
    let step = prop_oneof![
        4 => (entries(), entries(), any::<bool>()).prop_map(|(labels, taints, net)| Step::Pool(labels, taints, net)),
        1 => Just(Step::Pool(Vec::new(), Vec::new(), false)),
        2 => (0..4u8, prop::option::of(0..3u8)).prop_map(|(key, value)| Step::Drift(key, value)),
        1 => Just(Step::Restart),
    ];
    prop::collection::vec(step, 1..20)
}

proptest! {
    #[test]
    fn a_node_ends_with_what_is_its_own_and_what_its_pool_wants(
        own in prop::collection::btree_map(0..4u8, 0..3u8, 0..3),
        steps in steps(),
    ) {
        let name = |key: &u8| format!("k{key}");
        let own_labels: BTreeMap<String, String> = own.iter().map(|(k, v)| (name(k), v.to_string())).collect();
        let own_taints: Vec<Value> = own_labels.iter().map(|(k, v)| taint(k, "NoSchedule", v)).collect();
        let original = json!({"metadata": {"labels": own_labels, "annotations": own_labels}, "spec": {"taints": own_taints}});
        let mut node = original.clone();
        let mut wanted = (Attributes::default(), false);
        for step in steps {
            match step {
                Step::Pool(labels, taints, host_network) => {
                    let text = |(key, value): &(u8, u8)| (name(key), value.to_string());
                    let labels: BTreeMap<String, String> = labels.iter().map(text).collect();
                    let taints = taints.iter().map(text).map(|(key, value)| ((key, "NoSchedule".to_owned()), value));
                    wanted = (Attributes { annotations: labels.clone(), labels, taints: taints.collect() }, host_network);
                }
                Step::Drift(key, value) => {
                    let key = name(&key);
                    if !own_labels.contains_key(&key) && wanted.0.labels.contains_key(&key) {
                        let value = value.map_or(Value::Null, |value| value.to_string().into());
                        merge(&mut node, &json!({"metadata": {"labels": {key: value}}}));
                    }
                }
                Step::Restart => prop_assert_eq!(plan(&node, None, wanted.1).patch, None),
            }
            let conflicts = settled(&mut node, &wanted.0, wanted.1);
            // Everything of its own, everything that the pool wants besides, nothing else.
            let mut labels = wanted.0.labels.clone();
            labels.extend(own_labels.clone());
            if wanted.1 {
                labels.insert(labels::HOST_NETWORK.into(), "true".into());
            }
            prop_assert_eq!(&node["metadata"]["labels"], &json!(labels));
            let mut taints: BTreeMap<String, String> = wanted.0.taints.iter().map(|((k, _), v)| (k.clone(), v.clone())).collect();
            taints.extend(own_labels.clone());
            let has: BTreeMap<String, String> = taint::taints(&node).iter().map(|t| (text(&t["key"]), text(&t["value"]))).collect();
            prop_assert_eq!(has, taints);
            let contradicted = |wanted: &BTreeMap<String, String>| {
                wanted.iter().filter(|(k, v)| own_labels.get(*k).is_some_and(|own| own != *v)).count()
            };
            let taints = wanted.0.taints.iter().map(|((k, _), v)| (k.clone(), v.clone())).collect();
            prop_assert_eq!(conflicts.len(), 2 * contradicted(&wanted.0.labels) + contradicted(&taints));
        }
        settled(&mut node, &Attributes::default(), false);
        prop_assert_eq!(bare(&node), bare(&original));
    }
}
