use super::*;
use proptest::prelude::*;
use serde_json::json;

fn patched(target: &Value, patch: &Value) -> Result<Value, PatchError> {
    let mut out = target.clone();
    json_patch(&mut out, patch)?;
    Ok(out)
}

#[test]
fn json_patch_applies_in_order() {
    let target = json!({"a": [1, 2], "b": {"c/d": 1}});
    let patch = json!([
        {"op": "test", "path": "/b/c~1d", "value": 1},
        {"op": "test", "path": "/missing", "value": null},
        {"op": "add", "path": "/a/-", "value": 3},
        {"op": "move", "from": "/b/c~1d", "path": "/e"},
        {"op": "copy", "from": "/e", "path": "/a/0"},
        {"op": "remove", "path": "/b"},
        {"op": "replace", "path": "/e", "value": "x"},
    ]);
    assert_eq!(
        patched(&target, &patch),
        Ok(json!({"a": [1, 1, 2, 3], "e": "x"}))
    );
}

#[test]
fn a_failing_json_patch_changes_nothing() {
    let mut target = json!({"a": 1});
    let before = target.clone();
    for (patch, malformed) in [
        (
            json!([{"op": "add", "path": "/b", "value": 2}, {"op": "test", "path": "/a", "value": 2}]),
            false,
        ),
        (json!([{"op": "remove", "path": "/x"}]), false),
        (json!([{"op": "replace", "path": "/x", "value": 1}]), false),
        (json!([{"op": "add", "path": "/x/y", "value": 1}]), false),
        (json!([{"op": "frobnicate", "path": "/x"}]), true),
        (json!([{"op": "add", "path": "no-slash", "value": 1}]), true),
        (json!({"op": "add"}), true),
    ] {
        let error = json_patch(&mut target, &patch).expect_err("refused");
        assert_eq!(
            matches!(error, PatchError::Malformed(_)),
            malformed,
            "{patch} {error}"
        );
        assert_eq!(target, before);
        assert_eq!(error.to_status().code(), if malformed { 400 } else { 422 });
    }
}

#[test]
fn json_patches_are_bounded() {
    let operation = json!({"op": "test", "path": "/a", "value": 1});
    let many = Value::Array(vec![operation; MAX_JSON_PATCH_OPERATIONS + 1]);
    assert!(matches!(
        patched(&json!({"a": 1}), &many),
        Err(PatchError::Malformed(_))
    ));

    // Each operation doubles the list.
    let doubling: Vec<Value> = (0..64)
        .map(|_| json!({"op": "copy", "from": "/a", "path": "/a/-"}))
        .collect();
    let error = patched(&json!({"a": ["x"]}), &Value::Array(doubling)).expect_err("refused");
    assert!(matches!(error, PatchError::DoesNotApply(_)), "{error}");

    // Each operation adds a level.
    let deepening: Vec<Value> = (0..4 * MAX_DEPTH)
        .map(|n| json!({"op": "add", "path": "/a".repeat(n + 1), "value": {}}))
        .collect();
    let error = patched(&json!({}), &Value::Array(deepening)).expect_err("refused");
    assert!(error.to_string().contains("deeper"), "{error}");
}

#[test]
fn merge_patch_follows_rfc_7386() {
    for (target, patch, expected) in [
        (json!({"a": "b"}), json!({"a": "c"}), json!({"a": "c"})),
        (
            json!({"a": "b", "b": 1}),
            json!({"a": null}),
            json!({"b": 1}),
        ),
        (
            json!({"a": ["b"]}),
            json!({"a": ["c"]}),
            json!({"a": ["c"]}),
        ),
        (
            json!({"a": {"b": "c"}}),
            json!({"a": {"b": "d", "c": null}}),
            json!({"a": {"b": "d"}}),
        ),
        (
            json!({"e": null}),
            json!({"a": 1}),
            json!({"e": null, "a": 1}),
        ),
        (json!([1]), json!({"a": {"b": null}}), json!({"a": {}})),
    ] {
        let mut out = target;
        merge_patch(&mut out, &patch);
        assert_eq!(out, expected);
    }
}

#[test]
fn patch_types_by_content_type() {
    for kind in PatchType::ALL {
        assert_eq!(
            PatchType::from_content_type(kind.content_type()),
            Some(kind)
        );
    }
    assert_eq!(
        PatchType::from_content_type("Application/Merge-Patch+JSON; charset=utf-8"),
        Some(PatchType::Merge)
    );
    assert_eq!(PatchType::from_content_type("application/json"), None);
}

fn strategic(gvk: (&str, &str), target: Value, patch: Value) -> Result<Value, PatchError> {
    let mut out = target;
    strategic_merge_patch(&Gvk::from_api_version(gvk.0, gvk.1), &mut out, &patch)?;
    Ok(out)
}

fn pod(target: Value, patch: Value) -> Result<Value, PatchError> {
    strategic(("v1", "Pod"), target, patch)
}

#[test]
fn lists_merge_by_key() {
    let target = json!({"spec": {"containers": [
        {"name": "a", "image": "a:1", "args": ["x"]},
        {"name": "b", "image": "b:1"},
    ]}});
    assert_eq!(
        pod(
            target.clone(),
            json!({"spec": {"containers": [{"name": "b", "image": "b:2", "env": [{"name": "E", "value": null}]}]}})
        ),
        Ok(json!({"spec": {"containers": [
            {"name": "a", "image": "a:1", "args": ["x"]},
            {"name": "b", "image": "b:2", "env": [{"name": "E"}]},
        ]}}))
    );
    // A new element goes before the ones that only the server has.
    assert_eq!(
        pod(
            target.clone(),
            json!({"spec": {"containers": [{"name": "c", "image": "c:1"}]}})
        ),
        Ok(json!({"spec": {"containers": [
            {"name": "c", "image": "c:1"},
            {"name": "a", "image": "a:1", "args": ["x"]},
            {"name": "b", "image": "b:1"},
        ]}}))
    );
    assert_eq!(
        pod(
            target.clone(),
            json!({"spec": {"containers": [{"name": "a", "$patch": "delete"}]}})
        ),
        Ok(json!({"spec": {"containers": [{"name": "b", "image": "b:1"}]}}))
    );
    assert_eq!(
        pod(
            target.clone(),
            json!({"spec": {"containers": [{"$patch": "replace"}, {"name": "z"}]}})
        ),
        Ok(json!({"spec": {"containers": [{"name": "z"}]}}))
    );
    // A list without a strategy is replaced.
    assert_eq!(
        pod(
            target,
            json!({"spec": {"containers": [{"name": "a", "args": ["y", "z"]}]}})
        ),
        Ok(json!({"spec": {"containers": [
            {"name": "a", "image": "a:1", "args": ["y", "z"]},
            {"name": "b", "image": "b:1"},
        ]}}))
    );
}

#[test]
fn element_order_follows_the_directive() {
    let target =
        json!({"spec": {"containers": [{"name": "server"}, {"name": "a"}, {"name": "b"}]}});
    assert_eq!(
        pod(
            target.clone(),
            json!({"spec": {
                "$setElementOrder/containers": [{"name": "b"}, {"name": "a"}],
            }})
        ),
        Ok(json!({"spec": {"containers": [{"name": "server"}, {"name": "b"}, {"name": "a"}]}}))
    );
    assert_eq!(
        pod(
            target.clone(),
            json!({"spec": {
                "$setElementOrder/containers": [{"name": "b"}, {"name": "new"}, {"name": "a"}],
                "containers": [{"name": "new", "image": "n"}, {"name": "a", "image": "i"}],
            }})
        ),
        Ok(json!({"spec": {"containers": [
            {"name": "server"}, {"name": "b"}, {"name": "new", "image": "n"}, {"name": "a", "image": "i"},
        ]}}))
    );
    // A new element takes the place that a deleted one leaves, as far as the server's own elements are concerned.
    assert_eq!(
        pod(
            target.clone(),
            json!({"spec": {
                "$setElementOrder/containers": [{"name": "new"}, {"name": "last"}],
                "containers": [
                    {"name": "new"}, {"name": "last"}, {"name": "a", "$patch": "delete"}, {"name": "b", "$patch": "delete"},
                ],
            }})
        ),
        Ok(
            json!({"spec": {"containers": [{"name": "server"}, {"name": "new"}, {"name": "last"}]}})
        )
    );
    let wrong_order = json!({"spec": {
        "$setElementOrder/containers": [{"name": "a"}, {"name": "b"}],
        "containers": [{"name": "b"}, {"name": "a"}],
    }});
    assert!(matches!(
        pod(target, wrong_order),
        Err(PatchError::Malformed(_))
    ));
}

#[test]
fn primitive_lists_merge_and_delete() {
    let target = json!({"metadata": {"finalizers": ["a", "b", "c"]}});
    assert_eq!(
        pod(
            target.clone(),
            json!({"metadata": {"finalizers": ["d", "b"]}})
        ),
        Ok(json!({"metadata": {"finalizers": ["d", "a", "b", "c"]}})),
    );
    assert_eq!(
        pod(
            target.clone(),
            json!({"metadata": {
                "$deleteFromPrimitiveList/finalizers": ["b"],
                "$setElementOrder/finalizers": ["c", "a"],
            }})
        ),
        Ok(json!({"metadata": {"finalizers": ["c", "a"]}})),
    );
    assert_eq!(
        pod(target, json!({"metadata": {"finalizers": null}})),
        Ok(json!({"metadata": {}})),
    );
}

#[test]
fn retain_keys_clears_the_rest() {
    let target =
        json!({"spec": {"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}}});
    let deployment = |patch| strategic(("apps/v1", "Deployment"), target.clone(), patch);
    assert_eq!(
        deployment(json!({"spec": {"strategy": {"$retainKeys": ["type"], "type": "Recreate"}}})),
        Ok(json!({"spec": {"strategy": {"type": "Recreate"}}}))
    );
    assert_eq!(
        deployment(json!({"spec": {"strategy": {"$retainKeys": ["x"], "type": "Recreate"}}})),
        Err(PatchError::Malformed(
            "invalid patch format of retainKeys".into()
        ))
    );
}

#[test]
fn maps_merge_and_directives_replace_them() {
    let target = json!({"metadata": {"labels": {"a": "1", "b": "2"}}, "spec": {"nodeName": "n"}});
    assert_eq!(
        pod(
            target.clone(),
            json!({"metadata": {"labels": {"a": null, "c": "3"}, "annotations": {"x": "y", "z": null}}})
        ),
        Ok(
            json!({"metadata": {"labels": {"b": "2", "c": "3"}, "annotations": {"x": "y"}}, "spec": {"nodeName": "n"}})
        )
    );
    assert_eq!(
        pod(
            target.clone(),
            json!({"metadata": {"labels": {"$patch": "replace", "c": "3"}}})
        ),
        Ok(json!({"metadata": {"labels": {"c": "3"}}, "spec": {"nodeName": "n"}}))
    );
    assert_eq!(
        pod(
            target.clone(),
            json!({"metadata": {"labels": {"$patch": "delete"}}})
        ),
        Ok(json!({"metadata": {"labels": {}}, "spec": {"nodeName": "n"}}))
    );
    assert!(pod(target, json!({"metadata": {"labels": {"$patch": "merge"}}})).is_err());
}

#[test]
fn fields_unknown_to_the_type_merge_as_json() {
    assert_eq!(
        pod(
            json!({"x": {"l": [1, 2], "m": {"a": 1}}}),
            json!({"x": {"l": [3], "m": {"b": 2, "a": null}}})
        ),
        Ok(json!({"x": {"l": [3], "m": {"b": 2}}}))
    );
}

#[test]
fn refused_strategic_patches() {
    let target = json!({"spec": {"containers": [{"name": "a"}]}});
    for patch in [
        json!([]),
        json!({"spec": {"containers": [{"image": "no key"}]}}),
        json!({"spec": {"containers": [{"name": "a", "$patch": "merge"}]}}),
        json!({"spec": {"containers": [{"$patch": "delete"}]}}),
        json!({"spec": {"containers": [1]}}),
        json!({"spec": {"containers": [[]]}}),
        json!({"spec": {"$setElementOrder/containers": {}}}),
        json!({"spec": {"$retainKeys": 1}}),
    ] {
        assert!(pod(target.clone(), patch.clone()).is_err(), "{patch}");
    }
    assert_eq!(
        strategic(("example.com/v1", "Widget"), json!({}), json!({})),
        Err(PatchError::Malformed(
            "strategic merge patch format is not supported".into()
        ))
    );
}

#[test]
fn a_kubelet_status_patch_applies() {
    let target = json!({"status": {
        "conditions": [
            {"type": "Ready", "status": "False"},
            {"type": "PodScheduled", "status": "True"},
        ],
        "podIPs": [{"ip": "10.0.0.1"}],
    }});
    let patch = json!({"status": {
        "$setElementOrder/conditions": [{"type": "PodScheduled"}, {"type": "Ready"}],
        "conditions": [{"type": "Ready", "status": "True", "reason": null}],
        "phase": "Running",
    }});
    assert_eq!(
        pod(target, patch),
        Ok(json!({"status": {
            "conditions": [
                {"type": "PodScheduled", "status": "True"},
                {"type": "Ready", "status": "True"},
            ],
            "podIPs": [{"ip": "10.0.0.1"}],
            "phase": "Running",
        }}))
    );
}

fn any_json() -> impl Strategy<Value = Value> {
    let keys = prop::sample::select(vec![
        "metadata",
        "spec",
        "containers",
        "name",
        "finalizers",
        "labels",
        "$patch",
        "$retainKeys",
        "$setElementOrder/containers",
        "$setElementOrder/finalizers",
        "$deleteFromPrimitiveList/finalizers",
        "env",
    ]);
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        (0..3i64).prop_map(Value::from),
        prop::sample::select(vec!["a", "b", "delete", "replace", "merge", "name"])
            .prop_map(Value::from),
    ];
    leaf.prop_recursive(6, 48, 4, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::Array),
            prop::collection::vec((keys.clone(), inner), 0..4)
                .prop_map(|fields| fields.into_iter().map(|(k, v)| (k.to_owned(), v)).collect()),
        ]
    })
}

/// Pods whose lists have the elements of their types.
fn any_pod() -> impl Strategy<Value = Value> {
    let name = prop::sample::select(vec!["a", "b", "c", "d"]);
    (
        prop::collection::btree_set(name.clone(), 0..4),
        prop::collection::btree_set(name, 0..4),
        any::<bool>(),
    )
        .prop_map(|(containers, finalizers, reverse)| {
            let mut containers: Vec<Value> = containers
                .into_iter()
                .map(|name| json!({"name": name, "image": "i"}))
                .collect();
            if reverse {
                containers.reverse();
            }
            json!({"metadata": {"finalizers": finalizers}, "spec": {"containers": containers}})
        })
}

proptest! {
    #[test]
    fn strategic_patches_do_not_panic(target in any_json(), patch in any_json()) {
        let _ = pod(target, patch);
    }

    #[test]
    fn json_patches_do_not_panic(
        target in any_json(), patch in any_json(),
        ops in prop::collection::vec((
            prop::sample::select(vec!["add", "remove", "replace", "move", "copy", "test"]),
            prop::sample::select(vec!["", "/", "/a", "/spec", "/spec/0", "/spec/-", "/spec/name"]),
            prop::sample::select(vec!["", "/spec", "/spec/0"]),
        ), 0..6)
    ) {
        let _ = patched(&target, &patch);
        let ops: Value = ops.into_iter()
            .map(|(op, path, from)| json!({"op": op, "path": path, "from": from, "value": patch})).collect();
        let _ = patched(&target, &ops);
    }

    #[test]
    fn a_full_strategic_patch_gives_its_elements(target in any_pod(), patch in any_pod()) {
        let out = pod(target.clone(), patch.clone()).expect("applies");
        let names = |value: &Value| -> std::collections::BTreeSet<String> {
            value["spec"]["containers"].as_array().into_iter().flatten()
                .map(|c| c["name"].to_string()).collect()
        };
        let union = &names(&target) | &names(&patch);
        prop_assert_eq!(names(&out), union);
        // Applying it once more changes nothing.
        prop_assert_eq!(pod(out.clone(), patch).expect("applies"), out);
    }
}
