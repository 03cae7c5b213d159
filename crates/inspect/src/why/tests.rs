use super::{node::NodeObserved, pod::PodObserved, *};
use crate::pools::tests::{lease, node, now, pool};
use serde_json::{Value, json};
use yurt_api::names::{annotations, labels};

fn add(object: &mut Value, condition: Value) {
    yurt_controller::condition::put(&mut object["status"], condition);
}

fn pod(node: &str) -> Value {
    json!({"metadata": {"namespace": "shop", "name": "web-1", "labels": {"app": "web"}, "annotations": {}},
        "spec": {"nodeName": node, "tolerations": [
            {"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300},
            {"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}]},
        "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}})
}

fn of_pod(pod: Value) -> PodObserved {
    let (_, lease) = lease("a-1", "2026-11-22T09:59:58Z", false);
    PodObserved {
        pod,
        node: Some(node("a-1", "a", "True")),
        lease: Some(lease),
        owners: Vec::new(),
        revisions: Vec::new(),
        services: Vec::new(),
        nodes: Vec::new(),
        unseen: Vec::new(),
    }
}

fn of_node(node: Value) -> NodeObserved {
    let (_, lease) = lease("a-1", "2026-11-22T09:59:58Z", false);
    NodeObserved {
        node,
        pool: Some(pool("a")),
        lease: Some(lease),
        pods: vec![pod("a-1")],
        requests: Vec::new(),
        unseen: Vec::new(),
    }
}

#[test]
fn a_pod_of_a_healthy_node() {
    let mut observed = of_pod(pod("a-1"));
    let service = |name: &str, topology: &str| json!({"metadata": {"name": name, "annotations": {annotations::TOPOLOGY_KEYS: topology}}, "spec": {"selector": {"app": "web"}}});
    observed.services = vec![
        service("web", "openyurt.io/nodepool"),
        service("near", "kubernetes.io/hostname"),
        json!({"metadata": {"name": "other"}, "spec": {"selector": {"app": "other"}}}),
        json!({"metadata": {"name": "headless"}, "spec": {}}),
    ];
    let told = observed.judge(now());
    assert_eq!(
        told.text(),
        "\
Pod shop/web-1, on node a-1, pool a

note      autonomy   its pods are evicted like those of any node when it is away for longer than they tolerate: neither annotation node.beta.openyurt.io/autonomy nor node.openyurt.io/autonomy-duration asks for it
                     -> kubectl annotate node a-1 node.openyurt.io/autonomy-duration=30m    # 0 for ever
ok        life       runs and is ready
ok        link       a-1 is ready; last heartbeat 2s ago
ok        binding    it is evicted 5m after its node is lost
ok        topology   service web: reached from the nodes of pool a only
ok        topology   service near: reached from node a-1 only
"
    );
    assert!(!told.is_alarming());
}

#[test]
fn a_pod_of_an_autonomous_node_that_is_cut_off() {
    let mut bound = pod("a-1");
    for toleration in bound["spec"]["tolerations"].as_array_mut().expect("a list") {
        toleration["tolerationSeconds"] = json!(1800);
    }
    bound["metadata"]["annotations"] = json!({annotations::ORIGINAL_UNREACHABLE: "300"});
    let mut observed = of_pod(bound);
    let (_, delegated) = lease("a-1", "2026-11-22T09:59:50Z", true);
    observed.lease = Some(delegated);
    if let Some(node) = &mut observed.node {
        node["metadata"]["annotations"] = json!({annotations::AUTONOMY_DURATION: "30m"});
    }
    assert_eq!(
        observed.judge(now()).text(),
        "\
Pod shop/web-1, on node a-1, pool a

note      life       was ready when the cloud last heard of it
note      link       a-1 is cut off from the cloud; its pool vouches for it (last heartbeat 10s ago): what runs there goes on, the cloud sees statuses from before the cut
ok        autonomy   its pods stay for 30m while it is away (node.openyurt.io/autonomy-duration)
ok        binding    it is evicted 30m after its node is lost (it was 300 s of its own)
"
    );
}

#[test]
fn a_pod_of_a_lost_node_is_told_when_it_goes() {
    let lost = |added: &str| {
        let mut observed = of_pod(pod("a-1"));
        observed.lease = None;
        let mut node = node("a-1", "a", "Unknown");
        node["spec"]["taints"] = json!([{"key": "node.kubernetes.io/unreachable", "effect": "NoExecute", "timeAdded": added}]);
        observed.node = Some(node);
        observed.judge(now()).text()
    };
    let text = lost("2026-11-22T09:58:00Z");
    assert!(
        text.contains("note      binding    its node is lost: it is evicted in 3m\n"),
        "{text}"
    );
    assert!(
        text.contains("PROBLEM   link       nobody has heard of a-1"),
        "{text}"
    );
    let text = lost("2026-11-22T09:50:00Z");
    assert!(
        text.contains("PROBLEM   binding    its node is lost, and its time is over"),
        "{text}"
    );
}

#[test]
fn a_binding_that_is_not_there_is_a_problem() {
    let mut observed = of_pod(pod("a-1"));
    if let Some(node) = &mut observed.node {
        node["metadata"]["annotations"] = json!({annotations::BINDING: "true"});
    }
    let text = observed.judge(now()).text();
    assert!(text.contains("PROBLEM   binding    it is evicted 5m after its node is lost, although its node is autonomous"), "{text}");
    assert!(
        text.contains("-> does pod-binding-controller run?"),
        "{text}"
    );
}

#[test]
fn a_pod_that_no_node_of_its_pool_takes() {
    let mut waiting = pod("");
    waiting["spec"] = json!({"nodeSelector": {labels::NODE_POOL: "a"}});
    waiting["status"] = json!({"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False", "message": "0/2 nodes are available"}]});
    let mut observed = of_pod(waiting);
    observed.node = None;
    let mut tainted = node("a-1", "a", "True");
    tainted["spec"]["taints"] = json!([{"key": "edge", "effect": "NoSchedule"}]);
    observed.nodes = vec![tainted, node("b-1", "b", "True")];
    assert_eq!(
        observed.judge(now()).text(),
        "\
Pod shop/web-1, on no node

PROBLEM   placement   it is for pool a: 0 of its 1 node take it (taints that it does not tolerate: edge:NoSchedule); the scheduler says: 0/2 nodes are available
"
    );
}

#[test]
fn a_daemons_pod_is_told_how_it_is_upgraded() {
    let of = |strategy: Option<&str>, native: &str, due: Option<&str>, hash: &str| {
        let mut one = pod("a-1");
        one["metadata"]["labels"]["controller-revision-hash"] = json!(hash);
        if let Some(due) = due {
            add(&mut one, json!({"type": "PodNeedUpgrade", "status": due}));
        }
        let mut observed = of_pod(one);
        observed.owners = vec![
            json!({"kind": "DaemonSet", "metadata": {"uid": "d", "name": "agent",
            "annotations": {annotations::UPDATE_STRATEGY: strategy}}, "spec": {"updateStrategy": {"type": native}}}),
        ];
        let revision = |number: u32, hash: &str| json!({"revision": number, "metadata": {"labels": {"controller-revision-hash": hash}, "ownerReferences": [{"uid": "d"}]}});
        observed.revisions = vec![revision(2, "new"), revision(1, "old")];
        observed.judge(now()).text()
    };
    for (text, part) in [
        (
            of(Some("OTA"), "OnDelete", Some("True"), "old"),
            "-> on the node: yurt node upgrade web-1 -n shop",
        ),
        (
            of(Some("OTA"), "OnDelete", Some("False"), "new"),
            "ok        upgrade    it is of the newest template",
        ),
        (
            of(Some("OTA"), "OnDelete", None, "old"),
            "does daemon-pod-updater-controller run?",
        ),
        (
            of(Some("Auto"), "RollingUpdate", None, "old"),
            "PROBLEM   upgrade    annotation apps.openyurt.io/update-strategy=Auto of its DaemonSet has no effect",
        ),
        (
            of(Some("AdvancedRollingUpdate"), "OnDelete", None, "old"),
            "it is replaced in its turn",
        ),
        (
            of(None, "OnDelete", None, "old"),
            "stays so until it is deleted",
        ),
        (
            of(None, "RollingUpdate", None, "new"),
            "ok        upgrade    it is of the newest template",
        ),
        (
            of(None, "RollingUpdate", None, "new"),
            "of a DaemonSet: it stays on its node",
        ),
    ] {
        assert!(text.contains(part), "{part} in\n{text}");
    }
}

#[test]
fn a_node_of_the_edge() {
    let mut edge = node("a-1", "a", "True");
    edge["metadata"]["annotations"] = json!({annotations::AUTONOMY_DURATION: "0"});
    add(
        &mut edge,
        json!({"type": "Autonomy", "status": "False", "message": "not cached: secret d/a"}),
    );
    edge["spec"]["unschedulable"] = json!(true);
    let mut observed = of_node(edge);
    if let Some(pool) = &mut observed.pool {
        pool["spec"]["labels"] = json!({"region": "east"});
    }
    observed.requests = vec![
        json!({"metadata": {"name": "csr-1"}, "spec": {"username": "system:node:a-1", "signerName": "kubernetes.io/kubelet-serving"}}),
    ];
    let told = observed.judge(now());
    assert!(told.is_alarming());
    assert_eq!(
        told.text(),
        "\
Node a-1, pool a

PROBLEM   pool           it lacks what the pool gives to its nodes: label region
                         -> does nodepool-controller run, with --enable-sync-nodepool-configurations?
PROBLEM   survival       its hub says that it would not go on without the cloud: not cached: secret d/a
                         -> on the node: yurt node doctor
PROBLEM   certificates   csr-1 for kubernetes.io/kubelet-serving waits for approval
                         -> does csr-approver-controller run? its log says why it does not approve
note      taints         cordoned: no new pods come here
                         -> kubectl uncordon a-1
ok        link           a-1 is ready; last heartbeat 2s ago
ok        pool           in pool a, which it leads: it fetches for the others and vouches for those that are cut off
ok        autonomy       its pods stay however long it is away (node.openyurt.io/autonomy-duration)
"
    );
}

#[test]
fn a_node_that_is_lost_and_one_without_a_pool() {
    let mut lost = node("a-1", "a", "Unknown");
    lost["spec"]["taints"] = json!([{"key": "node.kubernetes.io/unreachable", "effect": "NoExecute"}, {"key": "node.openyurt.io/unschedulable", "effect": "NoSchedule"}]);
    let mut observed = of_node(lost);
    observed.lease = None;
    observed.pool = None;
    let text = observed.judge(now()).text();
    for part in [
        "no heartbeat is known",
        "which does not exist",
        "1 of 1 pod sooner or later",
        "no new pods come here",
    ] {
        assert!(text.contains(part), "{part} in\n{text}");
    }
    let mut alone = node("a-1", "", "True");
    alone["metadata"]["labels"][labels::NODE_POOL] = Value::Null;
    let text = of_node(alone).judge(now()).text();
    assert!(
        text.contains("PROBLEM   pool       a node of the edge in no pool"),
        "{text}"
    );
}

#[test]
fn targets_are_pods_unless_they_say_otherwise() {
    assert_eq!("web".parse(), Ok(Target::Pod("web".into())));
    assert_eq!("po/web".parse(), Ok(Target::Pod("web".into())));
    assert_eq!("nodes/a-1".parse(), Ok(Target::Node("a-1".into())));
    for wrong in ["", "node/", "svc/web", "pod/a/b"] {
        assert!(wrong.parse::<Target>().is_err(), "{wrong}");
    }
}

mod any {
    use super::*;
    use proptest::prelude::*;

    /// Any JSON, now and then with the names that are looked for.
    fn value() -> impl Strategy<Value = Value> {
        let text = prop_oneof![
            Just("True".to_owned()),
            Just("Ready".to_owned()),
            Just("NoExecute".to_owned()),
            Just("node.kubernetes.io/unreachable".to_owned()),
            Just("2026-11-22T09:00:00Z".to_owned()),
            Just("-1h".to_owned()),
            ".{0,8}"
        ];
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            text.prop_map(Value::from)
        ];
        let key = prop_oneof![
            Just("metadata"),
            Just("spec"),
            Just("status"),
            Just("labels"),
            Just("annotations"),
            Just("taints"),
            Just("conditions"),
            Just("tolerations"),
            Just("type"),
            Just("key"),
            Just("effect"),
            Just("nodeName"),
            Just("ownerReferences"),
            Just(labels::NODE_POOL),
            Just(annotations::AUTONOMY_DURATION)
        ];
        leaf.prop_recursive(5, 64, 6, move |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::hash_map(key.clone().prop_map(str::to_owned), inner, 0..6)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn nothing_that_a_cluster_says_makes_it_panic(one in value(), two in value(), three in value()) {
            let mut pod = of_pod(one.clone());
            pod.node = Some(two.clone());
            pod.lease = Some(three.clone());
            pod.owners = vec![three.clone()];
            pod.services = vec![two.clone()];
            let _ = pod.judge(now()).text();
            let mut node = of_node(two);
            node.pool = Some(one.clone());
            node.pods = vec![one];
            node.requests = vec![three];
            let _ = node.judge(now()).text();
        }
    }
}
