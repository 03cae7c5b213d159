use super::{
    super::{
        child::Child,
        plan::{Difference, Place},
    },
    *,
};
use proptest::prelude::*;
use std::sync::Arc;
use yurt_api::apps::yurtappset::YurtAppSetSpec;
use yurt_controller::collections::YURT_APP_SETS;

fn owner(name: &str) -> Owner {
    let set = json!({"metadata": {"name": name, "namespace": "default", "uid": "u"}});
    Owner::of(&YURT_APP_SETS, &set, None)
}

fn pool(name: &str) -> Pool {
    Pool::of(
        &json!({"metadata": {"name": name, "labels": {"name": name}},
        "spec": {"taints": [{"key": "edge", "effect": "NoExecute"}]}}),
    )
}

fn spec(tweaks: &Value) -> YurtAppSetSpec {
    let template = json!({"metadata": {"name": "ignored", "labels": {"app": "web"}}, "spec": {"replicas": 2,
        "selector": {"matchLabels": {"app": "web"}}, "template": {"metadata": {"creationTimestamp": null, "labels": {"app": "web"}},
        "spec": {"initContainers": [{"name": "init", "image": "i:1"}], "containers": [{"name": "web", "image": "w:1"}]}}}});
    let workload = json!({"workload": {"workloadTemplate": {"deploymentTemplate": template}, "workloadTweaks": tweaks}});
    serde_json::from_value(workload).expect("a spec")
}

fn render(spec: &YurtAppSetSpec, pool: &Pool) -> Result<Rendered, Fault> {
    let owner = owner("web");
    let (kind, template) = spec.workload.workload_template.only().expect("one");
    let blueprint = Blueprint {
        owner: &owner,
        kind,
        template,
        tweaks: Tweak::all(&spec.workload.workload_tweaks).expect("readable"),
    };
    blueprint.render(pool, &pool.name, None)
}

fn fault(patch: &Value) -> String {
    let spec = spec(&json!([{"nodepoolSelector": {}, "tweaks": {"patches": [patch]}}]));
    render(&spec, &pool("a")).expect_err("refused").to_string()
}

#[test]
fn tweaks_apply_in_order_and_patches_last() {
    let tweaks = json!([
        {"pools": ["a"], "tweaks": {"replicas": 5, "containerImages": [{"name": "web", "targetImage": "w:2"}, {"name": "init", "targetImage": "i:2"}],
            "patches": [{"operation": "replace", "path": "/spec/template/spec/containers/0/image", "value": "w:{{nodepool-name}}"},
                {"operation": "add", "path": "/spec/strategy", "value": {"type": "Recreate", "{{nodepool-name}}": [1, "{{nodepool-name}}"]}}]}},
        {"nodepoolSelector": {"matchLabels": {"name": "a"}}, "tweaks": {"replicas": 3, "containerImages": [{"name": "web", "targetImage": "w:3"}]}},
        {"pools": ["b"], "tweaks": {"replicas": 9}}]);
    let rendered = render(&spec(&tweaks), &pool("a")).expect("rendered");
    assert_eq!(rendered.replicas, Some(3), "the last wins");
    let spec = &rendered.object["spec"];
    let pods = &spec["template"]["spec"];
    assert_eq!(pods["containers"][0]["image"], "w:a");
    assert_eq!(pods["initContainers"][0]["image"], "i:2");
    assert_eq!(spec["strategy"], json!({"type": "Recreate", "a": [1, "a"]}));
    assert!(
        pods["tolerations"].is_null(),
        "only daemons tolerate the taints of their pool"
    );
    assert!(rendered.object["metadata"]["name"].is_null());
    assert!(
        spec["template"]["metadata"]
            .get("creationTimestamp")
            .is_none()
    );
}

#[test]
fn what_does_not_apply_is_named() {
    let missing = fault(&json!({"operation": "remove", "path": "/spec/nope"}));
    assert!(
        missing.starts_with("pool a: patch remove /spec/nope: "),
        "{missing}"
    );
    let shape =
        fault(&json!({"operation": "replace", "path": "/spec/template/metadata", "value": 7}));
    assert_eq!(
        shape,
        "pool a: spec.template.metadata.labels must be an object"
    );
    for path in [
        "",
        "/metadata",
        "/spec",
        "/spec/selector",
        "/spec/template/metadata/labels",
    ] {
        for value in [json!(7), json!([]), json!("x")] {
            fault(&json!({"operation": "replace", "path": path, "value": value}));
        }
    }
    let long = render(&spec(&json!([])), &pool(&"p".repeat(64))).expect_err("refused");
    assert!(matches!(long, Fault::PoolName(_)));
}

#[test]
fn whose_it_is_no_patch_changes() {
    let patches = json!([{"operation": "replace", "path": "/metadata", "value": {}},
        {"operation": "replace", "path": "/spec/template/metadata/labels", "value": {"app": "web"}}]);
    let rendered = render(
        &spec(&json!([{"pools": ["a"], "tweaks": {"patches": patches}}])),
        &pool("a"),
    )
    .expect("rendered");
    let metadata = &rendered.object["metadata"];
    assert_eq!(metadata["labels"][labels::REF_YURT_APP_SET], "web");
    assert_eq!(metadata["ownerReferences"][0]["uid"], "u");
    assert_eq!(
        rendered.object["spec"]["template"]["metadata"]["labels"][labels::WORKLOAD_POOL],
        "a"
    );
}

#[test]
fn names_are_valid_whatever_the_length() {
    let long = "n".repeat(253);
    for (set, pool) in [
        ("web", "a"),
        (&*long, "a"),
        ("web", &*"p".repeat(63)),
        (&*long, &*"p".repeat(63)),
        ("a.b", "c.d"),
    ] {
        for (kind, longest) in [("Deployment", 253), ("StatefulSet", 52)] {
            let name = name(&owner(set), pool, kind);
            assert!(name.len() <= longest, "{name}");
            assert!(
                name.starts_with(|c: char| c.is_ascii_alphanumeric())
                    && name.ends_with(|c: char| c.is_ascii_alphanumeric())
            );
        }
        assert!(as_label(set).len() <= LONGEST_LABEL);
    }
    assert_eq!(as_label("web"), "web", "what fits stays");
    assert_ne!(as_label(&long), as_label(&format!("{long}2")));
    assert_ne!(
        name(&owner("web"), "a", "Deployment"),
        name(&owner("web"), "b", "Deployment")
    );
}

/// A workload as the server has it after it was applied, with defaults.
fn written(rendered: &Rendered) -> Child {
    let record = Record {
        workload: rendered.workload.clone(),
        template: rendered.template.clone(),
        revision: "web-1".into(),
        replicas: rendered.replicas,
        ..Record::default()
    };
    let mut object = Rendered::finish(rendered.object.clone(), "web-a", &record);
    object["metadata"]["uid"] = "c".into();
    object["spec"]["replicas"] = rendered.replicas.unwrap_or(1).into();
    object["spec"]["progressDeadlineSeconds"] = 600.into();
    object["spec"]["template"]["spec"]["containers"][0]["imagePullPolicy"] = "Always".into();
    Child::of(Arc::new(object), "Deployment")
}

fn tweak() -> impl Strategy<Value = Value> {
    let pools = proptest::collection::vec(prop_oneof!["a", "b", "c"], 0..3);
    (pools, proptest::option::of(0..5), 0..4, 0..4, any::<bool>()).prop_map(|(pools, replicas, image, patch, selects)| {
        let images = json!([{"name": if image == 3 { "none" } else { "web" }, "targetImage": format!("w:{image}")}]);
        let patches = json!([{"operation": "add", "path": "/spec/template/metadata/annotations", "value": {"p": format!("{patch}-{{{{nodepool-name}}}}")}}]);
        let mut tweak = json!({"pools": pools, "tweaks": {"replicas": replicas}});
        if image > 0 { tweak["tweaks"]["containerImages"] = images; }
        if patch > 1 { tweak["tweaks"]["patches"] = patches; }
        if selects { tweak["nodepoolSelector"] = json!({"matchLabels": {"name": "b"}}); }
        tweak
    })
}

proptest! {
    #[test]
    fn rendering_is_a_function_and_what_was_written_is_not_written_again(tweaks in proptest::collection::vec(tweak(), 0..5)) {
        let spec = spec(&Value::from(tweaks));
        for name in ["a", "b", "c"] {
            let pool = pool(name);
            let rendered = render(&spec, &pool).expect("rendered");
            prop_assert_eq!(&rendered, &render(&spec, &pool).expect("rendered"));
            let place = Place { child: Some(written(&rendered)), rendered: Ok(rendered), pool };
            prop_assert_eq!(place.difference(|_, _| false), Difference::None);
        }
    }

    #[test]
    fn a_tweak_of_other_pools_changes_nothing_here(tweaks in proptest::collection::vec(tweak(), 0..5), more in tweak(), at in 0usize..5) {
        let before = spec(&Value::from(tweaks.clone()));
        let mut tweaks = tweaks;
        let mut more = more;
        more["pools"] = json!(["a", "c"]);
        tweaks.insert(at.min(tweaks.len()), more.clone());
        let after = spec(&Value::from(tweaks));
        if more["nodepoolSelector"].is_null() {
            prop_assert_eq!(render(&before, &pool("b")), render(&after, &pool("b")));
        }
    }

    #[test]
    fn replicas_never_replace_pods(one in 0..9, other in 0..9) {
        let of = |replicas: i32| render(&spec(&json!([{"pools": ["a"], "tweaks": {"replicas": replicas}}])), &pool("a")).expect("rendered");
        prop_assert_eq!(of(one).template, of(other).template);
        prop_assert_eq!(of(one).workload, of(other).workload);
    }
}
