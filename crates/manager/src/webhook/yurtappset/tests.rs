use super::*;

/// A set over two pools.
fn set() -> Value {
    json!({"kind": "YurtAppSet", "metadata": {"name": "web"}, "spec": {"pools": ["hangzhou"], "nodepoolSelector": {"matchLabels": {"a": "b"}},
        "workload": {"workloadTemplate": {"deploymentTemplate": {"metadata": {"labels": {"app": "web"}}, "spec": {
            "replicas": 2, "selector": {"matchLabels": {"app": "web"}}, "template": {"metadata": {"labels": {"app": "web"}},
                "spec": {"containers": [{"name": "web", "image": "web:1"}]}}}}},
            "workloadTweaks": [{"pools": ["hangzhou"], "tweaks": {"replicas": 3,
                "containerImages": [{"name": "web", "targetImage": "web:2"}],
                "patches": [
                    {"path": "/metadata/annotations/pool", "operation": "add", "value": "{{nodepool-name}}"},
                    {"path": "/spec/template/spec/containers/0/args", "operation": "add", "value": ["--pool={{nodepool-name}}"]}]}}]}}})
}

fn with(pointer: &str, value: Value) -> Value {
    let mut set = set();
    let (parent, field) = pointer.rsplit_once('/').expect("a pointer");
    let parent = set.pointer_mut(parent).expect(parent);
    match parent {
        Value::Array(list) => list[field.parse::<usize>().expect("an index")] = value,
        other => other[field] = value,
    }
    set
}

const TEMPLATE: &str = "/spec/workload/workloadTemplate";
const TWEAK: &str = "/spec/workload/workloadTweaks/0";

#[test]
fn a_documented_set_is_good() {
    assert_eq!(judged(None, &set()), Ok(Answer::default()));
    assert_eq!(judged(Some(&set()), &set()), Ok(Answer::default()));
    assert_eq!(completed(set(), None)["spec"]["revisionHistoryLimit"], 10);
    let own = with("/spec/revisionHistoryLimit", json!(3));
    assert_eq!(completed(own.clone(), None), own);
}

#[test]
fn what_pools_would_get_is_checked() {
    let spec = format!("{TEMPLATE}/deploymentTemplate/spec");
    let patch = |operation: &str, path: &str, value: Value| json!([{"path": path, "operation": operation, "value": value}]);
    let patches = format!("{TWEAK}/tweaks/patches");
    let wrong = [
        (TEMPLATE.to_owned(), json!({}), "exactly one"),
        (
            format!("{TEMPLATE}/statefulSetTemplate"),
            json!({"spec": {}}),
            "exactly one",
        ),
        (
            format!("{spec}/template/spec/containers"),
            json!([]),
            "spec.workload.workloadTemplate.deploymentTemplate.spec.template.spec.containers",
        ),
        (
            format!("{spec}/selector"),
            json!({"matchLabels": {"app": "x"}}),
            "does not match",
        ),
        (
            format!("{spec}/selector"),
            Value::Null,
            "selector: is needed",
        ),
        (
            "/spec/nodepoolSelector".into(),
            json!({"matchExpressions": [{"key": "a", "operator": "In"}]}),
            "spec.nodepoolSelector",
        ),
        ("/spec/pools".into(), json!(["A b"]), "spec.pools[0]"),
        ("/spec/pools".into(), json!("a"), "spec: "),
        (
            "/spec/revisionHistoryLimit".into(),
            json!(-1),
            "spec.revisionHistoryLimit",
        ),
        (
            format!("{TWEAK}/pools"),
            json!(["-"]),
            "workloadTweaks[0].pools[0]",
        ),
        (
            format!("{TWEAK}/nodepoolSelector"),
            json!({"matchLabels": {"a b": "c"}}),
            "workloadTweaks[0].nodepoolSelector",
        ),
        (
            format!("{TWEAK}/tweaks/replicas"),
            json!(-1),
            "tweaks.replicas",
        ),
        (
            format!("{TWEAK}/tweaks/containerImages/0/targetImage"),
            json!(" "),
            "targetImage",
        ),
        (
            patches.clone(),
            patch(
                "replace",
                "/spec/template/spec/containers/7/image",
                json!("x"),
            ),
            "patch ",
        ),
        (
            patches.clone(),
            patch("remove", "/spec/nothing", Value::Null),
            "patch ",
        ),
        (
            patches.clone(),
            patch("add", "no pointer", json!(1)),
            "patch add no pointer",
        ),
        (
            patches.clone(),
            patch(
                "replace",
                "/spec/template/spec/containers/0/image",
                json!(7),
            ),
            "makes a workload whose",
        ),
        (
            patches.clone(),
            patch("remove", "/spec/template/spec/containers/0", Value::Null),
            "containers: at least one",
        ),
        (
            patches.clone(),
            patch(
                "replace",
                "/spec/template/metadata/labels",
                json!({"app": "other"}),
            ),
            "does not match",
        ),
        (
            patches.clone(),
            patch("replace", "/spec/selector/matchLabels", json!({})),
            "changes the selector",
        ),
        (
            patches.clone(),
            patch("replace", "/spec/replicas", json!("five")),
            "patches[0].value: \"five\" is no number of pods",
        ),
        (format!("{spec}/replicas"), json!(-2), "replicas: -2 is no"),
        (
            "/spec/rollout".into(),
            json!({"order": ["a", "B"]}),
            "spec.rollout.order[1]",
        ),
    ];
    for (pointer, value, why) in wrong {
        let set = with(&pointer, value.clone());
        let Err(Denial::Invalid(faults)) = judged(None, &set) else {
            panic!("{pointer} {value} is allowed");
        };
        let said: Vec<String> = faults.iter().map(ToString::to_string).collect();
        assert!(
            said.iter().any(|fault| fault.contains(why)),
            "{pointer} {value}: {said:?}"
        );
        // Stored by a release that did not see it: it can still be changed.
        let mut later = set.clone();
        later["metadata"]["labels"] = json!({"a": "b"});
        assert_eq!(judged(Some(&set), &later).map(drop), Ok(()), "{pointer}");
    }
}

#[test]
fn a_patch_may_build_on_the_one_before() {
    let mut set = with(
        &format!("{TWEAK}/tweaks/patches"),
        json!([
            {"path": "/spec/strategy", "operation": "add", "value": {}},
        ]),
    );
    let more = json!({"pools": ["hangzhou"], "tweaks": {"patches": [
        {"path": "/spec/strategy/type", "operation": "add", "value": "Recreate"}]}});
    set["spec"]["workload"]["workloadTweaks"]
        .as_array_mut()
        .expect("a list")
        .push(more);
    assert_eq!(judged(None, &set), Ok(Answer::default()));
}

#[test]
fn names_and_kinds_and_selectors() {
    let long = with("/metadata/name", json!("a".repeat(64)));
    let warned = judged(None, &long).expect("allowed").warnings;
    assert!(warned[0].contains("shortened"), "{warned:?}");
    let template = set().pointer(TEMPLATE).expect("there").clone();
    let other = with(
        TEMPLATE,
        json!({"statefulSetTemplate": template["deploymentTemplate"]}),
    );
    let denied = judged(Some(&set()), &other).expect_err("another kind");
    assert!(
        format!("{denied:?}").contains("from Deployment to StatefulSet"),
        "{denied:?}"
    );
    let mut selects = set();
    for field in ["selector/matchLabels", "template/metadata/labels"] {
        let at = format!("{TEMPLATE}/deploymentTemplate/spec/{field}");
        *selects.pointer_mut(&at).expect("there") = json!({"app": "other"});
    }
    assert!(judged(None, &selects).is_ok());
    let denied = judged(Some(&set()), &selects).expect_err("another selector");
    assert!(
        format!("{denied:?}").contains("spec.selector"),
        "{denied:?}"
    );
}

#[test]
fn what_has_no_effect_is_told() {
    let warned = |set: &Value| judged(None, set).expect("allowed").warnings.join("\n");
    assert!(
        warned(&with(
            &format!("{TWEAK}/tweaks/containerImages/0/name"),
            json!("other")
        ))
        .contains("no container \"other\"")
    );
    assert!(warned(&with(&format!("{TWEAK}/pools"), json!([]))).contains("has no effect"));
    let mut nowhere = with("/spec/pools", json!([]));
    nowhere["spec"]["nodepoolSelector"] = Value::Null;
    assert!(warned(&nowhere).contains("no pool gets the workload"));
}

#[test]
fn an_older_set_selects_beside_its_template() {
    let mut bare = set();
    let spec = format!("{TEMPLATE}/deploymentTemplate/spec");
    bare.pointer_mut(&spec)
        .and_then(Value::as_object_mut)
        .expect("a spec")
        .remove("selector");
    assert!(judged(None, &completed(bare.clone(), None)).is_err());
    let written = json!({"spec": {"selector": {"matchLabels": {"app": "web"}}}});
    let made = completed(bare, Some(&written));
    assert_eq!(
        made.pointer(&spec).expect("a spec")["selector"],
        written["spec"]["selector"]
    );
    assert_eq!(judged(None, &made), Ok(Answer::default()));
    let other = json!({"spec": {"selector": {"matchLabels": {"app": "other"}}}});
    assert_eq!(completed(made.clone(), Some(&other)), made, "its own stays");
}
