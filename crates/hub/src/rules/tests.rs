//! Rules as they are written, and what they do to objects.

use super::*;
use crate::pool::Membership;
use proptest::prelude::*;
use serde_json::json;
use yurt_wire::Encoding;

fn rules(text: &str) -> Vec<Rule> {
    let reading = read(text).unwrap();
    assert_eq!(reading.complaints, [], "{text}");
    let entries = reading.entries.into_iter();
    entries
        .map(|entry| match entry {
            Entry::Rule(rule) => *rule,
            Entry::Broken(name) => panic!("{name}"),
        })
        .collect()
}

fn rule(text: &str) -> Rule {
    rules(text).remove(0)
}

fn complaints(text: &str) -> Vec<String> {
    match read(text) {
        Ok(reading) => reading.complaints.iter().map(ToString::to_string).collect(),
        Err(complaint) => vec![complaint.to_string()],
    }
}

fn context() -> Context {
    let mut context = Context::of_node("edge-1");
    context.pool = "hangzhou".into();
    context.membership = Membership {
        pool: Some("hangzhou".into()),
        nodes: Some(["edge-1".into(), "edge-2".into()].into()),
        ..Membership::default()
    };
    context.node_labels = Arc::new([("zone".to_owned(), "z1".to_owned())].into());
    context
}

fn service() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": { "name": "web", "namespace": "shop", "uid": "u", "resourceVersion": "7", "labels": { "tier": "canary" } },
        "spec": { "type": "LoadBalancer", "clusterIP": "10.0.0.9", "ports": [{ "port": 80 }] },
    })
}

/// What becomes of an object: `None` when it is not shown.
fn shown_as(rule: &Rule, object: &Value) -> Result<Option<Value>, Failure> {
    let encoded = Object::from_json_value(object, Encoding::Json).unwrap();
    let meta = encoded.meta().unwrap();
    if !rule.concerns(&encoded, &meta) {
        return Ok(Some(object.clone()));
    }
    let mut now = object.clone();
    Ok(match rule.apply(&mut now, &context())? {
        Verdict::Dropped => None,
        Verdict::Kept => {
            assert_eq!(now, *object);
            Some(now)
        }
        Verdict::Changed => Some(now),
    })
}

#[test]
fn objects_are_matched_by_all_that_is_said() {
    for (more, is_meant) in [
        ("", true),
        ("namespaces: [shop, mall]", true),
        ("namespaces: [mall]", false),
        ("names: [web]", true),
        ("names: [db]", false),
        ("labelSelector: tier in (canary), !gone", true),
        ("labelSelector: tier!=canary", false),
        ("fieldSelector: spec.type=LoadBalancer", true),
        ("fieldSelector: spec.type!=LoadBalancer", false),
        ("fieldSelector: spec.nothing.known!=x", true),
        ("fieldSelector: spec.ports!=x", false),
        ("expression: object.spec.type == 'LoadBalancer'", true),
        ("expression: object.metadata.namespace == 'mall'", false),
        (
            "expression: node.name == 'edge-1' && node.labels['zone'] == 'z1'",
            true,
        ),
        (
            "expression: pool.name == 'hangzhou' && 'edge-2' in pool.nodes",
            true,
        ),
        ("expression: \"'edge-9' in pool.nodes\"", false),
    ] {
        let text = format!(
            "- name: r\n  match:\n    apiVersion: v1\n    kind: Service\n    {more}\n  drop: true"
        );
        let now = shown_as(&rule(&text), &service()).unwrap();
        assert_eq!(now.is_none(), is_meant, "{more}");
    }
    for (kind, is_meant) in [
        ("apiVersion: v1, kind: Service", true),
        ("kind: Service", true),
        ("apiVersion: v2, kind: Service", false),
        ("apiVersion: core/v1, kind: Service", false),
        ("apiVersion: serving.knative.dev/*, kind: Service", false),
        ("kind: ConfigMap", false),
        ("resources: [services]", true),
    ] {
        let text = format!("- name: r\n  match: {{{kind}}}\n  drop: true");
        let now = shown_as(&rule(&text), &service()).unwrap();
        assert_eq!(now.is_none(), is_meant, "{kind}");
    }
}

#[test]
fn requests_are_picked_by_resource_and_component() {
    let scope = |text: &str| rule(&format!("- {{name: r, {text}, drop: true}}")).scope();
    let of_kind = scope(
        "components: [Kube-Proxy], match: {apiVersion: discovery.k8s.io/v1, kind: EndpointSlice}",
    );
    assert_eq!(
        of_kind.resources,
        [yurt_wire::Gvr::new(
            "discovery.k8s.io",
            "v1",
            "endpointslices"
        )]
    );
    assert_eq!(of_kind.components, Some(["kube-proxy".to_owned()].into()));
    assert_eq!(of_kind.object, None);
    let one = scope(
        "components: [x], match: {resources: ['deployments.apps'], namespaces: [a], names: [b]}",
    );
    assert_eq!(
        one.resources,
        [yurt_wire::Gvr::new("apps", "*", "deployments")]
    );
    assert_eq!(one.object, Some(("a".into(), "b".into())));
    assert_eq!(scope("match: {kind: Service}").components, None);
}

#[test]
fn patches_have_values_and_expressions() {
    let text = r#"
- name: r
  match: {apiVersion: v1, kind: Service}
  patch:
  - {op: replace, path: /spec/clusterIP, value: "10.0.0.1"}
  - {op: add, path: /metadata/annotations/seen.by, createParents: true, expression: "node.name + '-' + pool.name"}
  - {op: add, path: /metadata/annotations/was, createParents: true, expression: object.spec.clusterIP}
  - {op: add, path: /spec/externalName, expression: "has(object.spec.x) ? optional.of('y') : optional.none()"}
  - {op: copy, from: /metadata/name, path: /metadata/labels/name}
  - {op: move, from: /spec/type, path: /metadata/labels/type~1of}
  - {op: add, path: /spec/ports/-, expression: "{'port': object.spec.ports[0].port + 1}"}
  - {op: remove, path: /metadata/labels/tier}
"#;
    let now = shown_as(&rule(text), &service()).unwrap().unwrap();
    assert_eq!(
        now,
        json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": { "name": "web", "namespace": "shop", "uid": "u", "resourceVersion": "7",
                "labels": { "name": "web", "type/of": "LoadBalancer" },
                "annotations": { "seen.by": "edge-1-hangzhou", "was": "10.0.0.9" } },
            "spec": { "clusterIP": "10.0.0.1", "ports": [{ "port": 80 }, { "port": 81 }] },
        })
    );
}

#[test]
fn parents_are_made_once_and_only_where_they_are_missing() {
    let patch = |operations: &str| {
        let text = format!("- {{name: r, match: {{kind: Service}}, patch: [{operations}]}}");
        shown_as(&rule(&text), &service()).map(|now| now.unwrap())
    };
    let add = |path: &str, value: u8| {
        format!("{{op: add, path: {path}, value: {value}, createParents: true}}")
    };
    let both = patch(&format!("{}, {}", add("/a/b/c", 1), add("/a/b/d", 2))).unwrap();
    assert_eq!(both["a"], json!({"b": {"c": 1, "d": 2}}));
    let after = patch(&format!(
        "{{op: add, path: /a, value: {{x: 0}}}}, {}",
        add("/a/y", 1)
    ))
    .unwrap();
    assert_eq!(after["a"], json!({"x": 0, "y": 1}));
    let kept = patch(&add("/metadata/labels/new", 1)).unwrap();
    assert_eq!(
        kept["metadata"]["labels"],
        json!({"tier": "canary", "new": 1})
    );
    assert!(matches!(
        patch("{op: add, path: /a/b, value: 1}"),
        Err(Failure::DoesNotApply(_))
    ));
}

#[test]
fn what_would_change_nothing_is_no_change() {
    for operations in [
        "{op: replace, path: /spec/type, value: LoadBalancer}",
        "{op: add, path: /spec/type, expression: object.spec.type}",
        "{op: add, path: /spec/x, expression: optional.none()}",
    ] {
        let text = format!("- {{name: r, match: {{kind: Service}}, patch: [{operations}]}}");
        let mut object = service();
        let verdict = rule(&text).apply(&mut object, &context());
        assert_eq!(verdict, Ok(Verdict::Kept), "{operations}");
    }
}

#[test]
fn failures_leave_the_object_and_say_why() {
    let costly = "object.spec.ports.all(a, [1,2,3,4,5,6,7,8,9].all(b, 'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa'.split('').all(c, 'bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb'.split('').all(d, 'cccccccccccccccccc'.split('').all(e, d != e)))))";
    for (rest, reason, said) in [
        (
            "match: {kind: Service, expression: object.spec.nope == 1}, drop: true",
            "condition",
            "match.expression: no such key: nope",
        ),
        (
            "match: {kind: Service, expression: object.spec.type}, drop: true",
            "condition",
            "match.expression: is of type string, neither true nor false",
        ),
        (
            &format!("match: {{kind: Service, expression: \"{costly}\"}}, drop: true"),
            "budget",
            "match.expression takes more steps",
        ),
        (
            "match: {kind: Service}, patch: [{op: add, path: /spec/x, expression: object.nope}]",
            "value",
            "patch[0].expression: no such key: nope",
        ),
        (
            "match: {kind: Service}, patch: [{op: add, path: /spec/x, expression: type(1)}]",
            "value",
            "has no JSON",
        ),
        (
            "match: {kind: Service}, patch: [{op: remove, path: /spec/x}]",
            "patch",
            "patch: ",
        ),
        (
            "match: {kind: Service}, patch: [{op: replace, path: /spec/type, value: x}, {op: add, path: /spec/ports/9, value: 1}]",
            "patch",
            "patch: ",
        ),
    ] {
        let rule = rule(&format!("- {{name: r, {rest}}}"));
        let mut object = service();
        let failure = rule.apply(&mut object, &context()).unwrap_err();
        assert_eq!(failure.reason(), reason, "{rest}");
        assert!(failure.to_string().contains(said), "{failure}");
        assert_eq!(object, service(), "{rest}");
    }
}

#[test]
fn a_rule_that_is_too_much_work_too_often_is_put_aside_until_it_is_another() {
    let all = Rules::new(None, Metrics::default());
    let costly = |number: u8| {
        let range: Vec<String> = (0..100).map(|n| n.to_string()).collect();
        let list = format!("[{}]", range.join(","));
        format!(
            "- name: r\n  match: {{kind: Service, expression: \"{list}.all(a, {list}.all(b, {list}.all(c, a + b + c >= 0))) && {number} > 0\"}}\n  drop: true\n"
        )
    };
    all.take(Origin::File, read(&costly(1)));
    let (_, rule) = all.in_force().remove(0);
    let mut object = service();
    let encoded = Object::from_json_value(&object, Encoding::Json).unwrap();
    let meta = encoded.meta().unwrap();
    for _ in 0..MOST_EXHAUSTED {
        assert!(rule.concerns(&encoded, &meta, &context()));
        assert_eq!(all.complaints(), []);
        // The work itself is bounded elsewhere; here it would only take time.
        rule.failed(&Failure::Budget("match.expression".into()), &object);
    }
    assert!(!rule.concerns(&encoded, &meta, &context()));
    assert!(all.complaints()[0].1.to_string().contains("is put aside"));
    // The same again is the same; another one has another chance.
    all.take(Origin::File, read(&costly(1)));
    assert!(all.in_force()[0].1.is_aside());
    all.take(Origin::File, read(&costly(2)));
    assert!(!all.in_force()[0].1.is_aside());
    assert_eq!(all.complaints(), []);
    let (_, rule) = all.in_force().remove(0);
    assert_eq!(
        Filter::apply(&*rule, &mut object, &context()),
        Verdict::Kept
    );
    assert_eq!(rule.exhausted.load(Ordering::Relaxed), 1);
}

#[test]
fn while_the_pools_nodes_are_unknown_nobody_is_taken_for_a_stranger() {
    let text = "- {name: r, match: {kind: Service, expression: \"!('edge-2' in pool.nodes)\"}, drop: true}";
    let mut context = context();
    context.membership = Membership::default();
    let failed = rule(text).apply(&mut service(), &context);
    assert!(matches!(failed, Err(Failure::Condition(_))), "{failed:?}");
    // A node of no pool has no neighbours.
    context.pool = String::new();
    assert_eq!(
        rule(text).apply(&mut service(), &context),
        Ok(Verdict::Dropped)
    );
}

#[test]
fn what_a_rule_depends_on_is_known() {
    let inputs = |rest: &str| rule(&format!("- {{name: r, {rest}}}")).inputs();
    assert_eq!(inputs("match: {kind: Service}, drop: true"), Inputs::NONE);
    assert_eq!(
        inputs("match: {kind: Service, expression: pool.name == 'a'}, drop: true"),
        Inputs::POOL
    );
    let both = inputs(
        "match: {kind: Service, expression: pool.name == 'a'}, patch: [{op: add, path: /x, expression: \"object.l.map(x, x + node.name)\"}]",
    );
    assert_eq!(both, Inputs::POOL | Inputs::NODE);
}

#[test]
fn nonsense_is_refused_with_its_place() {
    for (text, expected) in [
        (
            "rules: []",
            "line 1, column 1: is not a list of rules (- name: ...)",
        ),
        ("- 5", "line 1, column 3: is a number, not an object"),
        ("- {}", "line 1, column 3: name: is missing"),
        (
            "- {name: A, match: {kind: X}, drop: true}",
            "name: is no DNS label",
        ),
        (
            "- {name: masterservice, match: {kind: X}, drop: true}",
            "name: is the name of a filter that comes with the hub",
        ),
        ("- {name: r, drop: true}", "rule r: match: is missing"),
        (
            "- {name: r, match: {}, drop: true}",
            "match: names neither a kind nor resources",
        ),
        (
            "- name: r\n  match:\n    kind: X\n    knid: Y\n  drop: true",
            "line 4, column 11: rule r: match.knid: is not known here; there are apiVersion, kind, resources",
        ),
        (
            "- {name: r, match: {kind: X}}",
            "does nothing: drop: true or a patch is missing",
        ),
        (
            "- {name: r, match: {kind: X}, drop: true, patch: [{op: remove, path: /a}]}",
            "patch: excludes drop: true",
        ),
        (
            "- {name: r, match: {kind: X}, drop: yes please}",
            "drop: is a text, not true or false",
        ),
        (
            "- {name: r, match: {kind: x/y}, drop: true}",
            "match.kind: is no kind",
        ),
        (
            "- {name: r, match: {apiVersion: a/b/c, kind: X}, drop: true}",
            "match.apiVersion: is not VERSION",
        ),
        (
            "- {name: r, match: {resources: [pods/log]}, drop: true}",
            "match.resources: \"pods/log\" is not RESOURCE",
        ),
        (
            "- {name: r, match: {kind: X, labelSelector: 'a in ('}, drop: true}",
            "match.labelSelector: ",
        ),
        (
            "- {name: r, match: {kind: X, fieldSelector: 'a>1'}, drop: true}",
            "match.fieldSelector: ",
        ),
        (
            "- {name: r, match: {kind: X, expression: 'object.a +'}, drop: true}",
            "match.expression: ERROR",
        ),
        (
            "- {name: r, match: {kind: X, expression: 'node.nmae == 1'}, drop: true}",
            "undefined field 'nmae'",
        ),
        (
            "- {name: r, match: {kind: X, expression: 'request.verb'}, drop: true}",
            "undeclared reference to 'request'",
        ),
        (
            "- {name: r, match: {kind: X, expression: '1'}, drop: true}",
            "match.expression: must be true or false",
        ),
        (
            "- {name: r, match: {kind: X}, components: [yurthub], drop: true}",
            "components: \"yurthub\" is the hub itself",
        ),
        (
            "- {name: r, match: {kind: X}, components: [], drop: true}",
            "components: is empty",
        ),
        (
            "- {name: r, match: {kind: X}, components: ['a/b'], drop: true}",
            "components: \"a/b\" is no component",
        ),
        (
            "- {name: r, match: {kind: X}, patch: [{op: test, path: /a, value: 1}]}",
            "patch[0].op: is said by match.expression",
        ),
        (
            "- {name: r, match: {kind: X}, patch: [{op: put, path: /a, value: 1}]}",
            "patch[0].op: is not add",
        ),
        (
            "- {name: r, match: {kind: X}, patch: [{op: add, path: /a}]}",
            "patch[0]: has neither value nor expression",
        ),
        (
            "- {name: r, match: {kind: X}, patch: [{op: add, path: /a, value: 1, expression: '1'}]}",
            "patch[0].expression: excludes value",
        ),
        (
            "- {name: r, match: {kind: X}, patch: [{op: remove, path: /a, value: 1}]}",
            "patch[0].value: is only for add and replace",
        ),
        (
            "- {name: r, match: {kind: X}, patch: [{op: move, path: /a}]}",
            "patch[0].from: is missing",
        ),
        (
            "- {name: r, match: {kind: X}, patch: [{op: add, path: a, value: 1}]}",
            "patch[0].path: is no path below the object",
        ),
        (
            "- {name: r, match: {kind: X}, patch: [{op: add, path: /a~2, value: 1}]}",
            "patch[0].path: is no path below the object",
        ),
        (
            "- {name: r, match: {kind: X}, patch: [{op: remove, path: /a, createParents: true}]}",
            "patch[0].createParents: is only for add",
        ),
        (
            "- {name: r, match: {kind: X}, patch: [{op: remove, path: /a, frm: /b}]}",
            "patch[0].frm: is not known here",
        ),
        (
            "- {name: r, match: {kind: X}, patch: []}",
            "patch: is empty",
        ),
        (
            "- {name: r, match: {kind: X}, drop: true}\n- {name: r, match: {kind: X}, drop: true}",
            "line 2, column 10: rule r: name: is the name of a rule before it",
        ),
    ] {
        let said = complaints(text);
        assert!(
            said.iter().any(|said| said.contains(expected)),
            "{text}\n{said:#?}"
        );
    }
    // A rule that makes no sense is no reason to leave out the others.
    let reading = read("- {name: a, match: {kind: X}, drop: true}\n- {name: b, drop: 1}\n- {name: c, match: {kind: X}, drop: true}").unwrap();
    let names: Vec<String> = reading
        .entries
        .iter()
        .map(|entry| match entry {
            Entry::Rule(rule) => rule.name().to_owned(),
            Entry::Broken(name) => format!("!{name}"),
        })
        .collect();
    assert_eq!(names, ["a", "!b", "c"]);
    for nothing in ["", "  \n# nothing\n", "[]", "~"] {
        assert!(rules(nothing).is_empty(), "{nothing:?}");
    }
    let many = "- {name: r, match: {kind: X}, drop: true}\n".repeat(65);
    assert!(complaints(&many)[0].contains("65 rules are more than 64"));
}

#[test]
fn no_rule_changes_which_object_it_is() {
    for path in [
        "/metadata",
        "/metadata/name",
        "/metadata/name/x",
        "/metadata/namespace",
        "/metadata/uid",
        "/metadata/resourceVersion",
        "/metadata/deletionTimestamp",
        "/kind",
        "/apiVersion",
    ] {
        for operation in [
            format!("{{op: add, path: {path}, value: x}}"),
            format!("{{op: remove, path: {path}}}"),
            format!("{{op: move, from: {path}, path: /spec/x}}"),
            format!("{{op: copy, from: /spec/x, path: {path}}}"),
        ] {
            let text = format!("- {{name: r, match: {{kind: Service}}, patch: [{operation}]}}");
            let said = complaints(&text);
            assert!(
                said.iter()
                    .any(|said| said.contains("which no rule changes")
                        || said.contains("is what no rule changes")),
                "{operation} {said:?}"
            );
        }
    }
    // To be copied they are free.
    rule(
        "- {name: r, match: {kind: Service}, patch: [{op: copy, from: /metadata/uid, path: /spec/x}]}",
    );
}

#[test]
fn what_the_kubelet_cannot_live_without_takes_force() {
    let needs_force = |rest: &str| {
        let text = format!("- {{name: r, {rest}}}");
        let said = complaints(&text);
        let forced = complaints(&format!("- {{name: r, force: true, {rest}}}"));
        assert_eq!(forced, [""; 0], "{rest}");
        said.iter().any(|said| said.contains("or say force: true"))
    };
    for rest in [
        "match: {resources: ['*']}, drop: true",
        "match: {resources: ['*'], namespaces: [demo]}, drop: true",
        "match: {kind: Pod}, drop: true",
        "match: {kind: Node}, components: [kubelet, x], drop: true",
        "match: {resources: ['leases.*'], expression: 'false'}, drop: true",
        "match: {kind: Node}, patch: [{op: remove, path: /spec}]",
        "match: {kind: Lease}, patch: [{op: remove, path: /spec}]",
    ] {
        assert!(needs_force(rest), "{rest}");
    }
    for rest in [
        "match: {resources: ['*']}, components: [kube-proxy], drop: true",
        "match: {kind: Service}, drop: true",
        "match: {apiVersion: example.com/v1, kind: Pod}, drop: true",
        "match: {kind: Pod}, components: [coredns], drop: true",
        "match: {kind: Pod}, patch: [{op: remove, path: /spec/x}]",
    ] {
        assert!(!needs_force(rest), "{rest}");
    }
}

#[test]
fn sweeping_rules_are_warned_of() {
    let warnings = |rest: &str| rule(&format!("- {{name: r, {rest}}}")).warnings().len();
    assert_eq!(warnings("match: {kind: Service}, drop: true"), 1);
    assert_eq!(
        warnings("match: {kind: Service, names: [a]}, drop: true"),
        0
    );
    assert_eq!(
        warnings("match: {kind: Service}, patch: [{op: remove, path: /spec}]"),
        0
    );
}

#[test]
fn what_was_right_stays_while_what_came_after_is_wrong() {
    let all = Rules::new(None, Metrics::default());
    let good = |port: u16| {
        format!(
            "- {{name: a, match: {{kind: Service}}, patch: [{{op: add, path: /spec/p, value: {port}}}]}}\n- {{name: b, match: {{kind: Service, names: [x]}}, drop: true}}\n"
        )
    };
    let names = || -> Vec<String> {
        let rules = all.in_force().into_iter();
        rules
            .map(|(origin, rule)| format!("{}/{}", origin.as_str(), rule.name()))
            .collect()
    };
    assert!(all.take(Origin::ConfigMap, read(&good(1))));
    let before = all.in_force();
    // The same again is nothing new, and the same rules.
    assert!(!all.take(Origin::ConfigMap, read(&good(1))));
    assert!(Arc::ptr_eq(&before[1].1, &all.in_force()[1].1));
    // One of them is written otherwise: the other is the very same.
    assert!(all.take(Origin::ConfigMap, read(&good(2))));
    assert!(!Arc::ptr_eq(&before[0].1, &all.in_force()[0].1));
    assert!(Arc::ptr_eq(&before[1].1, &all.in_force()[1].1));
    // One makes no sense any more, a new one never did.
    let broken = good(2).replace("drop: true", "drop: 7") + "- {name: c, drop: 1}";
    assert!(!all.take(Origin::ConfigMap, read(&broken)));
    assert_eq!(names(), ["configmap/a", "configmap/b"]);
    assert!(!all.complaints().is_empty());
    // Nor does the document.
    assert!(!all.take(Origin::ConfigMap, read("a: [")));
    assert_eq!(all.complaints().len(), 1);
    assert_eq!(names(), ["configmap/a", "configmap/b"]);
    // The node's owner has it otherwise.
    assert!(all.take(Origin::File, read("- {name: b, match: {kind: Service, names: [y]}, drop: true}\n- {name: z, match: {kind: Service, names: [z]}, drop: true}")));
    assert_eq!(names(), ["configmap/a", "file/b", "file/z"]);
    assert!(all.take(Origin::ConfigMap, read("")));
    assert_eq!(names(), ["file/b", "file/z"]);
    assert_eq!(all.complaints(), []);
}

fn json_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        "[a-z/~]{0,6}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map("(name|labels|a|b|spec|-|0)", inner, 0..4)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

fn operation() -> impl Strategy<Value = Value> {
    let path = "(/(metadata|spec|status|name|namespace|uid|kind|labels|a|b|-|0|1|~1|~0name)){1,4}";
    let expression = prop::sample::select(vec![
        "object",
        "object.metadata",
        "object.spec.a",
        "[object, object]",
        "{'name': node.name}",
        "object.spec.map(k, object.spec[k])",
        "optional.none()",
        "1 / 0",
        "pool.nodes",
        "object.metadata.name + 'x'",
    ]);
    let op = prop::sample::select(vec!["add", "replace", "remove", "move", "copy"]);
    (op, path, path, json_value(), expression, any::<[bool; 2]>()).prop_map(
        |(op, path, from, value, expression, [computed, parents])| {
            let mut made = json!({ "op": op, "path": path });
            match op {
                "add" | "replace" if computed => made["expression"] = expression.into(),
                "add" | "replace" => made["value"] = value,
                "move" | "copy" => made["from"] = from.into(),
                _ => {}
            }
            if op == "add" && parents {
                made["createParents"] = true.into();
            }
            made
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    /// Whatever a patch does, the object stays the same one, and a failure leaves it whole.
    #[test]
    fn objects_stay_who_they_are(
        operations in prop::collection::vec(operation(), 1..4),
        spec in json_value(),
        labels in json_value(),
    ) {
        let text = json!([{ "name": "r", "match": { "kind": "Service" }, "patch": operations }]).to_string();
        let object = json!({
            "apiVersion": "v1", "kind": "Service", "spec": spec,
            "metadata": { "name": "n", "namespace": "ns", "uid": "u", "resourceVersion": "1", "labels": labels },
        });
        let reading = read(&text).unwrap();
        for entry in reading.entries {
            let Entry::Rule(rule) = entry else { continue };
            let mut now = object.clone();
            let verdict = rule.apply(&mut now, &context());
            match verdict {
                Ok(Verdict::Changed) => {}
                _ => prop_assert_eq!(&now, &object),
            }
            for kept in ["/apiVersion", "/kind", "/metadata/name", "/metadata/namespace", "/metadata/uid", "/metadata/resourceVersion"] {
                prop_assert_eq!(now.pointer(kept), object.pointer(kept));
            }
        }
    }

    /// No document is too odd to be read or refused.
    #[test]
    fn any_document_is_read_or_refused(value in json_value(), name in "[a-z-]{0,4}") {
        let _ = read(&value.to_string());
        let _ = read(&json!([{ "name": name, "match": value, "drop": true }]).to_string());
        let _ = read(&json!([{ "name": "r", "match": { "kind": "X" }, "patch": value }]).to_string());
    }
}
