//! What is told of objects.

use super::*;
use crate::{
    metrics::Metrics,
    rules::{Rules, read},
};
use serde_json::json;

const RULES: &str = r#"
- name: local-address
  components: [kube-proxy]
  match: {apiVersion: v1, kind: Service, labelSelector: app=web}
  patch:
  - {op: add, path: /metadata/annotations/by, createParents: true, expression: "node.name + ' of ' + pool.name"}
  - {op: replace, path: /spec/clusterIP, value: 10.0.0.1}
- name: fails
  match: {apiVersion: v1, kind: Service, expression: object.spec.nope == 1}
  drop: true
- name: hide-canary
  components: [kube-proxy, coredns]
  match: {apiVersion: v1, kind: Service, expression: "object.metadata.name == 'canary'"}
  drop: true
- name: last
  match: {resources: [services]}
  patch: [{op: add, path: /spec/odd, value: 1}]
"#;

fn told(question: &Question) -> Vec<Explanation> {
    let rules = Rules::new(None, Metrics::default());
    rules.take(Origin::File, read(RULES));
    let in_force: Vec<Arc<InForce>> = rules.in_force().into_iter().map(|(_, rule)| rule).collect();
    let supposed = Supposed {
        node: "edge-1".into(),
        node_labels: BTreeMap::new(),
        pool: "hangzhou".into(),
        pool_nodes: Some(["edge-1".into()].into()),
        hub_host: None,
        disabled: vec!["hostnetworkpropagation".into()],
    };
    let force = supposed.force(&in_force, &question.objects);
    explain(&force, &rules.origins(), question).unwrap()
}

fn service(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": { "name": name, "namespace": "shop", "labels": { "app": "web" } },
        "spec": { "type": "ClusterIP", "clusterIP": "10.0.0.9" },
    })
}

fn question(component: &str, verb: &str, objects: Vec<Value>) -> Question {
    Question {
        component: component.into(),
        verb: verb.into(),
        resource: None,
        objects,
    }
}

fn did(explanation: &Explanation, filter: &str) -> Did {
    let step = explanation.steps.iter().find(|step| step.filter == filter);
    step.unwrap_or_else(|| panic!("{filter}")).did
}

#[test]
fn each_step_is_told() {
    let told = told(&question(
        "kube-proxy",
        "list",
        vec![service("web"), service("canary")],
    ));
    let [web, canary] = told.as_slice() else {
        panic!("two objects")
    };
    assert_eq!(web.object, "Service shop/web (v1)");
    assert_eq!(
        (web.verdict.as_str(), web.resource.as_str()),
        ("changed", "services")
    );
    let of = |name: &str| web.steps.iter().find(|step| step.filter == name).unwrap();
    assert_eq!(
        of("local-address").changes,
        [
            Change {
                path: "/metadata/annotations".into(),
                before: None,
                after: Some(json!({ "by": "edge-1 of hangzhou" })),
            },
            Change {
                path: "/spec/clusterIP".into(),
                before: Some("10.0.0.9".into()),
                after: Some("10.0.0.1".into()),
            },
        ]
    );
    assert_eq!(of("local-address").origin, "file");
    assert_eq!(of("masterservice").did, Did::NotAsked);
    assert_eq!(of("masterservice").why, "it is for kubelet");
    assert_eq!(of("masterservice").origin, "hub");
    assert_eq!(of("fails").did, Did::Failed);
    assert_eq!(of("fails").why, "match.expression: no such key: nope");
    assert_eq!(did(web, "discardcloudservice"), Did::NotConcerned);
    assert_eq!(did(web, "hide-canary"), Did::Kept);
    assert_eq!(did(web, "last"), Did::Changed);
    assert_eq!(web.shown.as_ref().unwrap()["spec"]["clusterIP"], "10.0.0.1");
    assert_eq!(
        web.remarks,
        ["who asks for protobuf does not see /spec/odd: the kind has no such field"]
    );
    assert!(
        !web.steps
            .iter()
            .any(|step| step.filter == "hostnetworkpropagation")
    );

    assert_eq!(canary.verdict, "dropped");
    assert_eq!(did(canary, "hide-canary"), Did::Dropped);
    assert_eq!(did(canary, "last"), Did::NotReached);
    assert_eq!(canary.shown, None);
}

#[test]
fn requests_decide_who_is_asked() {
    let get = told(&question("coredns", "get", vec![service("canary")])).remove(0);
    assert_eq!(did(&get, "local-address"), Did::NotAsked);
    assert_eq!(
        get.remarks,
        ["who gets it by its name is told that there is none"]
    );
    let own = told(&question("yurthub", "list", vec![service("canary")])).remove(0);
    assert_eq!(own.verdict, "kept");
    assert!(own.steps.iter().all(|step| step.did == Did::NotAsked));
    let other = Question {
        resource: Some("configmaps".into()),
        ..question("kube-proxy", "list", vec![service("canary")])
    };
    assert_eq!(told(&other).remove(0).verdict, "kept");
}

#[test]
fn services_among_the_objects_say_their_topology() {
    let topologies = |text: &str| {
        let objects = objects(text).unwrap();
        let supposed = Supposed {
            node: "n".into(),
            node_labels: BTreeMap::new(),
            pool: String::new(),
            pool_nodes: None,
            hub_host: None,
            disabled: Vec::new(),
        };
        supposed
            .force(&[], &objects)
            .context
            .topologies
            .clone()
            .unwrap()
    };
    let text = "apiVersion: v1\nkind: Service\nmetadata: {name: s, namespace: a, annotations: {openyurt.io/topologyKeys: kubernetes.io/hostname}}\n---\nkind: List\napiVersion: v1\nitems:\n- {apiVersion: v1, kind: ConfigMap, metadata: {name: c}}\n";
    assert_eq!(objects(text).unwrap().len(), 2);
    let known = topologies(text);
    assert_eq!(
        known.get("a/s").map(|keys| &**keys),
        Some("kubernetes.io/hostname")
    );
}

#[test]
fn questions_that_make_no_sense_are_refused() {
    assert_eq!(objects("---\n---\n"), Err(QuestionError::Nothing));
    assert!(matches!(objects("a: ["), Err(QuestionError::Unreadable(_))));
    let many = "{a: 1}\n---\n".repeat(MOST_OBJECTS + 1);
    assert_eq!(
        objects(&many),
        Err(QuestionError::TooMany(MOST_OBJECTS + 1))
    );
    let force = Arc::new(Force::none(Context::of_node("n")));
    let ask = |question: &Question| explain(&force, &BTreeMap::new(), question);
    let refused = ask(&question("a", "create", Vec::new()));
    assert_eq!(refused, Err(QuestionError::Verb("create".into())));
    for (object, error) in [
        (json!(5), QuestionError::Nameless("apiVersion")),
        (json!({"apiVersion": "v1"}), QuestionError::Nameless("kind")),
    ] {
        assert_eq!(ask(&question("a", "get", vec![object])), Err(error));
    }
}
