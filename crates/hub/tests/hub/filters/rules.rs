//! Users' rules, by config map and by file, in a hub that runs.

use super::*;
use crate::link::State;
use http::StatusCode;

const MAPS: &str = "/api/v1/namespaces/kube-system/configmaps";
const RULES: &str = r#"
- name: hide-canary
  components: [kube-proxy]
  match: {apiVersion: v1, kind: Service, labelSelector: tier in (canary)}
  drop: true
- name: local-address
  components: [kube-proxy]
  match: {apiVersion: v1, kind: Service, names: [web]}
  patch:
  - {op: add, path: /metadata/annotations/by, createParents: true, expression: "node.name + ' of ' + pool.name"}
  - {op: replace, path: /spec/type, value: NodePort}
- name: fails
  components: [kube-proxy]
  match: {apiVersion: v1, kind: Service, names: [near], expression: object.spec.nope == 1}
  drop: true
"#;

impl Edge {
    async fn set_rules(&self, rules: &str) {
        let patch = json!({ "data": { "rules": rules } });
        self.patch(&format!("{MAPS}/yurt-hub-cfg"), patch).await;
    }

    /// The names of rules in force, and how many complaints there are.
    async fn rules(&self) -> (Vec<String>, usize) {
        let told = self.node.admin("/v1/filters").await.json();
        let rules = told["filters"].as_array().unwrap().iter();
        let rules = rules.filter(|filter| filter["origin"] != "hub");
        let names = rules.map(|filter| filter["name"].as_str().unwrap().to_owned());
        (
            names.collect(),
            told["complaints"].as_array().unwrap().len(),
        )
    }

    async fn until_rules(&self, names: &[&str], complaints: usize) {
        let what = format!("{names:?} are in force, with {complaints} complaints");
        eventually(&what, async || {
            let (known, wrong) = self.rules().await;
            known == names && wrong == complaints
        })
        .await;
    }
}

/// An event as its type, and what the rules change.
async fn told(watch: &mut Watching, name: &str) -> (EventType, Value, Value) {
    loop {
        let event = watch.next().await.expect("an event");
        let object = event.object.to_json_value().unwrap();
        if object["metadata"]["name"] == name {
            let by = object["metadata"]["annotations"]["by"].clone();
            return (event.kind, object["spec"]["type"].clone(), by);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rules_of_the_config_map_come_into_force_in_running_watches() {
    let edge = Edge::start().await;
    let map = json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "yurt-hub-cfg" }, "data": {} });
    write(&edge.cloud, Method::POST, MAPS, map).await;
    let label = json!({ "metadata": { "labels": { "tier": "canary" } } });
    edge.patch(
        &format!("{SERVICES}/discarded"),
        json!({ "metadata": { "annotations": { "svc.openyurt.io/discard": null } } }),
    )
    .await;
    edge.patch(&format!("{SERVICES}/discarded"), label).await;
    let mut watches = Vec::new();
    for encoding in ENCODINGS {
        let (_, revision) = listed(&edge.node, SERVICES, "kube-proxy", encoding).await;
        let target = format!("{SERVICES}?watch=true&resourceVersion={revision}");
        watches.push(Watching::open(&edge.node, &target, "kube-proxy", encoding).await);
    }

    edge.set_rules(RULES).await;
    edge.until_rules(&["hide-canary", "local-address", "fails"], 0)
        .await;
    for watch in &mut watches {
        let first = watch.next().await.expect("an event");
        let second = watch.next().await.expect("an event");
        let mut events: Vec<(EventType, Value)> = Vec::new();
        for event in [first, second] {
            events.push((event.kind, event.object.to_json_value().unwrap()));
        }
        let of = |name: &str| {
            let event = events
                .iter()
                .find(|(_, object)| object["metadata"]["name"] == name);
            event.unwrap_or_else(|| panic!("{name} in {events:?}"))
        };
        assert_eq!(of("discarded").0, EventType::Deleted);
        let (kind, web) = of("web");
        assert_eq!(*kind, EventType::Modified);
        assert_eq!(web["metadata"]["annotations"]["by"], "edge-1 of here");
        assert_eq!(web["spec"]["type"], "NodePort");
    }
    for encoding in ENCODINGS {
        let (shown, _) = listed(&edge.node, SERVICES, "kube-proxy", encoding).await;
        assert!(!shown.contains_key("discarded"), "{encoding:?}");
        assert_eq!(
            shown["web"]["metadata"]["annotations"]["by"],
            "edge-1 of here"
        );
        assert!(shown.contains_key("near"), "what a rule fails on is shown");
        let (others, _) = listed(&edge.node, SERVICES, "somebody", encoding).await;
        assert!(others.contains_key("discarded"), "{encoding:?}");
        assert_eq!(others["web"]["spec"]["type"], "ClusterIP");
        let hidden = get(
            &edge.node,
            &format!("{SERVICES}/discarded"),
            "kube-proxy",
            encoding,
        )
        .await;
        assert_eq!(hidden.status, 404, "{encoding:?}");
    }
    let failures = r#"node_yurthub_rule_failures_total{rule="fails",reason="condition"}"#;
    assert!(edge.node.metric(failures).await > 0.0);

    // A change of the object passes the rules like any other.
    edge.patch(
        &format!("{SERVICES}/web"),
        json!({ "metadata": { "labels": { "x": "y" } } }),
    )
    .await;
    for watch in &mut watches {
        let expected = (
            EventType::Modified,
            json!("NodePort"),
            json!("edge-1 of here"),
        );
        assert_eq!(told(watch, "web").await, expected);
    }

    // What makes no sense is complained of and changes nothing; what is right beside it counts.
    let wrong = RULES.replace("tier in (canary)", "tier in (")
        + "- {name: new, match: {kind: Service, names: [none]}, drop: true}\n";
    edge.set_rules(&wrong).await;
    edge.until_rules(&["hide-canary", "local-address", "fails", "new"], 1)
        .await;
    assert_eq!(
        edge.node
            .metric(r#"node_yurthub_rule_complaints{source="configmap"}"#)
            .await,
        1.0
    );
    edge.set_rules("- [").await;
    edge.until_rules(&["hide-canary", "local-address", "fails", "new"], 1)
        .await;
    let (shown, _) = listed(&edge.node, SERVICES, "kube-proxy", Encoding::Json).await;
    assert!(!shown.contains_key("discarded"));

    // They are known again after a start without the cloud.
    drop(watches);
    edge.set_rules(RULES).await;
    edge.until_rules(&["hide-canary", "local-address", "fails"], 0)
        .await;
    edge.link.set(State::Cut);
    let edge = edge.restarted().await;
    edge.until_rules(&["hide-canary", "local-address", "fails"], 0)
        .await;
    eventually("an offline list passes them", async || {
        let answered = get(&edge.node, SERVICES, "kube-proxy", Encoding::Json).await;
        answered.status == 200 && !answered.text().contains("\"discarded\"")
    })
    .await;
    edge.link.set(State::Whole);

    // Without them everything is told again as it is.
    edge.node.until_up().await;
    let (_, revision) = listed(&edge.node, SERVICES, "kube-proxy", Encoding::Json).await;
    let target = format!("{SERVICES}?watch=true&resourceVersion={revision}");
    let mut watch = Watching::open(&edge.node, &target, "kube-proxy", Encoding::Json).await;
    edge.set_rules("").await;
    edge.until_rules(&[], 0).await;
    eventually("everything is shown again", async || {
        let (shown, _) = listed(&edge.node, SERVICES, "kube-proxy", Encoding::Json).await;
        shown.contains_key("discarded") && shown["web"]["spec"]["type"] == "ClusterIP"
    })
    .await;
    let expected = (EventType::Modified, json!("ClusterIP"), Value::Null);
    assert_eq!(told(&mut watch, "web").await, expected);
    edge.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_nodes_file_has_the_last_word_and_the_hub_explains() {
    let (mut trust, directory, stop) = (Trust::new(), Directory::new(), CancellationToken::new());
    let profile = Profile {
        common_name: "system:node:edge-1".into(),
        organizations: vec!["system:nodes".into(), "system:masters".into()],
        client: true,
        days: 1,
        ..Profile::default()
    };
    trust.node = trust.ca.issue(&profile).unwrap();
    let cloud = cloud(&trust, &stop).await;
    let map = json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "yurt-hub-cfg" }, "data": { "rules": RULES } });
    write(&cloud, Method::POST, MAPS, map).await;
    let file = directory.0.join("rules.yaml");
    let own = "- name: local-address\n  match: {apiVersion: v1, kind: Service, names: [web]}\n  patch: [{op: add, path: /metadata/labels, value: {own: rule}}]\n";
    std::fs::write(&file, own).unwrap();
    let link = Link::to(cloud.addr()).await;
    let mut config = config(&directory.0, &trust, &[link.addr]);
    config.pool = "here".into();
    config.rules_file = Some(file.clone());
    let node = Node::start(config).await;
    node.until_up().await;
    let edge = Edge {
        cloud,
        link,
        node,
        directory,
        trust,
        stop,
    };
    edge.until_rules(&["hide-canary", "local-address", "fails"], 0)
        .await;
    let (shown, _) = listed(&edge.node, SERVICES, "kube-proxy", Encoding::Protobuf).await;
    assert_eq!(shown["web"]["metadata"]["labels"], json!({ "own": "rule" }));
    assert_eq!(shown["web"]["spec"]["type"], "ClusterIP");

    // Asked why.
    let question = json!({ "component": "kube-proxy", "verb": "list", "objects": [{
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": "web", "namespace": "default", "labels": { "tier": "canary" } } }] });
    let answered = edge
        .node
        .admin_call(Method::POST, "/v1/filters", &question.to_string())
        .await;
    assert_eq!(answered.status, StatusCode::OK, "{}", answered.text());
    let told = &answered.json()[0];
    assert_eq!(told["verdict"], "dropped");
    let step = |name: &str| {
        let steps = told["steps"].as_array().unwrap().iter();
        let mut step = steps.clone().filter(|step| step["filter"] == name);
        step.next()
            .unwrap_or_else(|| panic!("{name} in {told}"))
            .clone()
    };
    assert_eq!(
        (
            step("hide-canary")["did"].clone(),
            step("hide-canary")["origin"].clone()
        ),
        (json!("dropped"), json!("configmap"))
    );
    assert_eq!(
        (
            step("local-address")["did"].clone(),
            step("local-address")["origin"].clone()
        ),
        (json!("notReached"), json!("file"))
    );
    for wrong in [
        "{}",
        "[",
        r#"{"component":"a","verb":"create","objects":[]}"#,
        r#"{"component":"a","verb":"get","objects":[{}]}"#,
    ] {
        let refused = edge
            .node
            .admin_call(Method::POST, "/v1/filters", wrong)
            .await;
        assert_eq!(refused.status, StatusCode::BAD_REQUEST, "{wrong}");
    }

    // The file is read again when it changes; what cannot be read leaves what was, and so does a file that is gone.
    std::fs::write(
        &file,
        own.replace("own: rule", "own: other")
            + "- {name: z, match: {kind: Service, names: [z]}, drop: true}\n",
    )
    .unwrap();
    edge.until_rules(&["hide-canary", "local-address", "fails", "z"], 0)
        .await;
    std::fs::write(&file, "}").unwrap();
    edge.until_rules(&["hide-canary", "local-address", "fails", "z"], 1)
        .await;
    std::fs::remove_file(&file).unwrap();
    eventually("the file is missed", async || {
        edge.node
            .admin("/v1/filters")
            .await
            .text()
            .contains("cannot be read")
    })
    .await;
    let (shown, _) = listed(&edge.node, SERVICES, "kube-proxy", Encoding::Json).await;
    assert_eq!(
        shown["web"]["metadata"]["labels"],
        json!({ "own": "other" })
    );
    edge.end().await;
}
