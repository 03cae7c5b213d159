//! The plugins one by one, on values; at the end the scheduler at work.

use super::*;
use crate::stage::Stage;
use std::collections::BTreeMap;

/// A node with four CPUs, 8 GiB and room for ten pods, in zone `a` when its name begins with it.
fn node(name: &str) -> Value {
    json!({
        "metadata": {"name": name, "labels": {
            "kubernetes.io/hostname": name, "topology.kubernetes.io/zone": &name[..1]}},
        "status": {"allocatable": {"cpu": "4", "memory": "8Gi", "pods": "10", "ephemeral-storage": "10Gi"}},
    })
}

fn cluster(nodes: &[Value]) -> Snapshot {
    let mut snapshot = Snapshot::default();
    for node in nodes {
        snapshot.set_node(node);
    }
    snapshot
}

fn pod(name: &str, spec: Value) -> Value {
    json!({"metadata": {"namespace": "default", "name": name, "uid": name, "labels": {"app": "web"}},
        "spec": spec})
}

fn asking(cpu: &str) -> Value {
    json!({"containers": [{"resources": {"requests": {"cpu": cpu}}}]})
}

fn placed(snapshot: &mut Snapshot, mut pod: Value, node: &str) {
    pod["spec"]["nodeName"] = node.into();
    snapshot.place(Arc::new(Pod::parse(&pod)));
}

fn chosen(pod: &Value, snapshot: &Snapshot) -> String {
    match schedule(&Pod::parse(pod), snapshot, 0) {
        Ok(placement) => placement.node,
        Err(failure) => panic!("{failure}"),
    }
}

fn refused(pod: &Value, snapshot: &Snapshot) -> String {
    let failure = schedule(&Pod::parse(pod), snapshot, 0).expect_err("no node fits");
    failure.to_string()
}

#[test]
fn an_empty_cluster_has_no_nodes() {
    assert_eq!(
        refused(&pod("a", asking("1")), &cluster(&[])),
        "no nodes available to schedule pods"
    );
}

#[test]
fn resources_are_what_others_left() {
    let mut snapshot = cluster(&[node("a1"), node("a2"), node("b1")]);
    placed(&mut snapshot, pod("x", asking("3")), "a1");
    placed(&mut snapshot, pod("y", asking("3500m")), "b1");
    assert_eq!(chosen(&pod("p", asking("2")), &snapshot), "a2");
    placed(&mut snapshot, pod("z", asking("4")), "a2");
    let mut greedy = pod("p", asking("2"));
    greedy["spec"]["containers"][0]["resources"]["requests"]["memory"] = "9Gi".into();
    assert_eq!(
        refused(&greedy, &snapshot),
        "0/3 nodes are available: 3 Insufficient cpu, 3 Insufficient memory."
    );
    snapshot.unplace(&Key::new("default", "z"));
    assert_eq!(chosen(&pod("p", asking("2")), &snapshot), "a2");
    let mut small = node("c1");
    small["status"]["allocatable"]["pods"] = "1".into();
    let mut snapshot = cluster(&[small]);
    placed(&mut snapshot, pod("x", asking("0")), "c1");
    assert_eq!(
        refused(&pod("p", json!({})), &snapshot),
        "0/1 nodes are available: 1 Too many pods."
    );
    let exotic = json!({"containers": [{"resources": {"requests": {"example.com/gpu": "1"}}}]});
    let exotic = pod("p", exotic);
    snapshot.unplace(&Key::new("default", "x"));
    assert!(refused(&exotic, &snapshot).contains("1 Insufficient example.com/gpu"));
}

#[test]
fn node_affinity_and_selector_hold() {
    let mut labelled = node("a1");
    labelled["metadata"]["labels"]["disk"] = "ssd".into();
    labelled["metadata"]["labels"]["generation"] = "7".into();
    let snapshot = cluster(&[labelled, node("a2"), node("b1")]);
    let by_selector = pod("p", json!({"nodeSelector": {"disk": "ssd"}}));
    assert_eq!(chosen(&by_selector, &snapshot), "a1");
    let required = |term: Value| {
        pod(
            "p",
            json!({"affinity": {"nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}}}}),
        )
    };
    let expression = |key: &str, operator: &str, values: Value| {
        required(
            json!({"matchExpressions": [{"key": key, "operator": operator, "values": values}]}),
        )
    };
    assert_eq!(
        chosen(&expression("generation", "Gt", json!(["6"])), &snapshot),
        "a1"
    );
    let zone = "topology.kubernetes.io/zone";
    assert_eq!(
        chosen(&expression(zone, "NotIn", json!(["a"])), &snapshot),
        "b1"
    );
    assert_eq!(
        refused(&expression("disk", "In", json!(["tape"])), &snapshot),
        "0/3 nodes are available: 3 node(s) didn't match Pod's node affinity/selector."
    );
    assert!(refused(&required(json!({})), &snapshot).contains("3 node(s) didn't match"));
    // As a DaemonSet's pods name theirs.
    let fields =
        json!({"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["a2"]}]});
    let mut named = required(fields);
    assert_eq!(chosen(&named, &snapshot), "a2");
    named["spec"]["containers"] = asking("5")["containers"].clone();
    assert_eq!(
        refused(&named, &snapshot),
        "0/3 nodes are available: 1 Insufficient cpu, 2 node(s) didn't satisfy plugin(s) [NodeAffinity]."
    );
}

#[test]
fn preferred_nodes_win_when_they_can() {
    let mut snapshot = cluster(&[node("a1"), node("b1")]);
    let mut wishful = pod("p", asking("1"));
    wishful["spec"]["affinity"]["nodeAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"] = json!([{"weight": 50, "preference": {"matchExpressions": [
            {"key": "topology.kubernetes.io/zone", "operator": "In", "values": ["b"]}]}}]);
    placed(&mut snapshot, pod("x", asking("2")), "b1");
    assert_eq!(chosen(&wishful, &snapshot), "b1");
    placed(&mut snapshot, pod("y", asking("2")), "b1");
    assert_eq!(chosen(&wishful, &snapshot), "a1");
}

#[test]
fn taints_keep_away_those_who_do_not_tolerate_them() {
    let mut tainted = node("a1");
    tainted["spec"]["taints"] = json!([{"key": "edge", "value": "yes", "effect": "NoExecute"}]);
    let mut disliked = node("a2");
    disliked["spec"]["taints"] = json!([{"key": "slow", "effect": "PreferNoSchedule"}]);
    let mut snapshot = cluster(&[tainted, disliked, node("b1")]);
    assert_eq!(chosen(&pod("p", asking("1")), &snapshot), "b1");
    snapshot.remove_node("b1");
    assert_eq!(chosen(&pod("p", asking("1")), &snapshot), "a2");
    snapshot.remove_node("a2");
    assert_eq!(
        refused(&pod("p", asking("1")), &snapshot),
        "0/1 nodes are available: 1 node(s) had untolerated taint {edge: yes}."
    );
    let tolerating = |toleration: Value| pod("p", json!({"tolerations": [toleration]}));
    for good in [
        json!({"operator": "Exists"}),
        json!({"key": "edge", "operator": "Exists"}),
        json!({"key": "edge", "value": "yes", "effect": "NoExecute"}),
    ] {
        assert_eq!(chosen(&tolerating(good), &snapshot), "a1");
    }
    for bad in [
        json!({"key": "edge", "value": "no"}),
        json!({"key": "other", "operator": "Exists"}),
        json!({"key": "edge", "operator": "Exists", "effect": "NoSchedule"}),
    ] {
        refused(&tolerating(bad), &snapshot);
    }
}

#[test]
fn cordoned_nodes_take_nobody() {
    let mut cordoned = node("a1");
    cordoned["spec"]["unschedulable"] = true.into();
    let mut snapshot = cluster(&[cordoned]);
    assert_eq!(
        refused(&pod("p", asking("1")), &snapshot),
        "0/1 nodes are available: 1 node(s) were unschedulable."
    );
    assert_eq!(snapshot.set_node(&node("a1")), Some(false), "uncordoned");
    assert_eq!(snapshot.set_node(&node("a1")), None, "a heartbeat");
    assert_eq!(chosen(&pod("p", asking("1")), &snapshot), "a1");
}

#[test]
fn host_ports_are_taken_once() {
    let port = |ip: &str| json!({"containers": [{"ports": [{"hostPort": 80, "protocol": "TCP", "hostIP": ip}]}]});
    let mut snapshot = cluster(&[node("a1")]);
    placed(&mut snapshot, pod("x", port("127.0.0.1")), "a1");
    chosen(&pod("p", port("127.0.0.2")), &snapshot);
    let expected =
        "0/1 nodes are available: 1 node(s) didn't have free ports for the requested pod ports.";
    assert_eq!(refused(&pod("p", port("127.0.0.1")), &snapshot), expected);
    assert_eq!(refused(&pod("p", port("")), &snapshot), expected);
}

fn beside(kind: &str, topology: &str, selector: Value) -> Value {
    json!({"affinity": {kind: {"requiredDuringSchedulingIgnoredDuringExecution": [
        {"topologyKey": topology, "labelSelector": selector}]}}})
}

const HOST: &str = "kubernetes.io/hostname";
const ZONE: &str = "topology.kubernetes.io/zone";

#[test]
fn affinity_draws_pods_together() {
    let mut snapshot = cluster(&[node("a1"), node("a2"), node("b1")]);
    let db = json!({"matchLabels": {"app": "db"}});
    let drawn = pod("p", beside("podAffinity", ZONE, db.clone()));
    assert_eq!(
        refused(&drawn, &snapshot),
        "0/3 nodes are available: 3 node(s) didn't match pod affinity rules."
    );
    let mut database = pod("db", asking("4"));
    database["metadata"]["labels"]["app"] = "db".into();
    placed(&mut snapshot, database.clone(), "b1");
    assert_eq!(chosen(&drawn, &snapshot), "b1");
    // Elsewhere is another namespace.
    let mut foreign = drawn.clone();
    foreign["metadata"]["namespace"] = "other".into();
    refused(&foreign, &snapshot);
    let term = "/spec/affinity/podAffinity/requiredDuringSchedulingIgnoredDuringExecution/0";
    foreign.pointer_mut(term).unwrap()["namespaceSelector"] = json!({});
    assert_eq!(chosen(&foreign, &snapshot), "b1");
    // The first of a group begins.
    chosen(
        &pod(
            "p",
            beside("podAffinity", HOST, json!({"matchLabels": {"app": "web"}})),
        ),
        &snapshot,
    );
}

#[test]
fn anti_affinity_works_both_ways() {
    let mut snapshot = cluster(&[node("a1"), node("b1")]);
    let alone = beside(
        "podAntiAffinity",
        ZONE,
        json!({"matchLabels": {"app": "web"}}),
    );
    placed(&mut snapshot, pod("x", alone.clone()), "a1");
    assert_eq!(chosen(&pod("p", alone.clone()), &snapshot), "b1");
    assert_eq!(
        chosen(&pod("p", asking("1")), &snapshot),
        "b1",
        "x wants none beside it"
    );
    placed(&mut snapshot, pod("y", asking("1")), "b1");
    assert_eq!(
        refused(&pod("p", alone), &snapshot),
        "0/2 nodes are available: 2 node(s) didn't match pod anti-affinity rules."
    );
    snapshot.remove_node("b1");
    assert_eq!(
        refused(&pod("p", asking("1")), &snapshot),
        "0/1 nodes are available: 1 node(s) didn't satisfy existing pods anti-affinity rules."
    );
}

#[test]
fn preferred_neighbours_are_sought_and_shunned() {
    let mut snapshot = cluster(&[node("a1"), node("b1")]);
    placed(&mut snapshot, pod("x", asking("1")), "a1");
    let preferred = |kind: &str| {
        let mut pod = pod("p", asking("1"));
        pod["spec"]["affinity"][kind]["preferredDuringSchedulingIgnoredDuringExecution"] = json!([
            {"weight": 100, "podAffinityTerm": {"topologyKey": ZONE, "labelSelector": {"matchLabels": {"app": "web"}}}}]);
        pod
    };
    assert_eq!(chosen(&preferred("podAffinity"), &snapshot), "a1");
    assert_eq!(chosen(&preferred("podAntiAffinity"), &snapshot), "b1");
    placed(&mut snapshot, preferred("podAffinity"), "a1");
    assert_eq!(
        chosen(&pod("q", asking("1")), &snapshot),
        "a1",
        "it is sought"
    );
}

fn spread_over(topology: &str, when: &str) -> Value {
    json!({"containers": asking("1")["containers"], "topologySpreadConstraints": [{
        "topologyKey": topology, "maxSkew": 1, "whenUnsatisfiable": when,
        "labelSelector": {"matchLabels": {"app": "web"}}}]})
}

#[test]
fn spread_constraints_keep_zones_even() {
    let mut snapshot = cluster(&[node("a1"), node("a2"), node("b1")]);
    placed(&mut snapshot, pod("x", asking("0")), "a1");
    let evenly = pod("p", spread_over(ZONE, "DoNotSchedule"));
    assert_eq!(chosen(&evenly, &snapshot), "b1");
    placed(&mut snapshot, pod("full", asking("4")), "b1");
    let mut cannot = evenly.clone();
    cannot["metadata"]["labels"]["app"] = "web".into();
    snapshot.unplace(&Key::new("default", "full"));
    let mut full = pod("full", asking("4"));
    full["metadata"]["labels"]["app"] = "other".into();
    placed(&mut snapshot, full, "b1");
    assert_eq!(
        refused(&cannot, &snapshot),
        "0/3 nodes are available: 1 Insufficient cpu, 2 node(s) didn't match pod topology spread constraints."
    );
    let softly = pod("p", spread_over(ZONE, "ScheduleAnyway"));
    assert_eq!(chosen(&softly, &snapshot), "a2");
    let rack = pod("p", spread_over("rack", "DoNotSchedule"));
    assert_eq!(
        refused(&rack, &snapshot),
        "0/3 nodes are available: 1 Insufficient cpu, 2 node(s) didn't match pod topology spread constraints (missing required label)."
    );
}

#[test]
fn few_domains_count_as_empty_ones() {
    let mut snapshot = cluster(&[node("a1"), node("b1")]);
    let mut evenly = pod("p", spread_over(ZONE, "DoNotSchedule"));
    evenly["spec"]["topologySpreadConstraints"][0]["minDomains"] = 3.into();
    placed(&mut snapshot, pod("x", asking("0")), "a1");
    assert_eq!(chosen(&evenly, &snapshot), "b1");
    placed(&mut snapshot, pod("y", asking("0")), "b1");
    assert!(refused(&evenly, &snapshot).contains("2 node(s) didn't match pod topology spread"));
}

#[test]
fn pods_of_one_controller_spread_by_themselves() {
    let mut snapshot = cluster(&[node("a1"), node("a2"), node("a3")]);
    let of_controller = |name: &str| {
        let mut pod = pod(name, json!({}));
        pod["metadata"]["ownerReferences"] =
            json!([{"uid": "rs", "kind": "ReplicaSet", "controller": true}]);
        pod
    };
    let mut hosts: BTreeMap<String, usize> = BTreeMap::new();
    for number in 0..6 {
        let next = of_controller(&format!("p{number}"));
        let host = chosen(&next, &snapshot);
        *hosts.entry(host.clone()).or_default() += 1;
        placed(&mut snapshot, next, &host);
    }
    assert!(hosts.values().all(|count| *count == 2), "{hosts:?}");
}

#[test]
fn volumes_bind_pods_to_where_they_are() {
    let mut snapshot = cluster(&[node("a1"), node("b1")]);
    let with = |claim: &str| {
        pod(
            "p",
            json!({"volumes": [{"persistentVolumeClaim": {"claimName": claim}}]}),
        )
    };
    let key = Key::new("default", "data");
    assert_eq!(
        refused(&with("data"), &snapshot),
        "0/2 nodes are available: persistentvolumeclaim \"data\" not found."
    );
    let mut claim = json!({"spec": {}});
    assert!(snapshot.set_other("PersistentVolumeClaim", &key, Some(&claim)));
    assert!(!snapshot.set_other("PersistentVolumeClaim", &key, Some(&claim)));
    assert_eq!(
        refused(&with("data"), &snapshot),
        "0/2 nodes are available: pod has unbound immediate PersistentVolumeClaims."
    );
    claim["spec"]["volumeName"] = "disk".into();
    snapshot.set_other("PersistentVolumeClaim", &key, Some(&claim));
    assert!(refused(&with("data"), &snapshot).contains("non-existent persistentvolume \"disk\""));
    let local = json!({"spec": {"nodeAffinity": {"required": {"nodeSelectorTerms": [
        {"matchExpressions": [{"key": HOST, "operator": "In", "values": ["b1"]}]}]}}}});
    snapshot.set_other("PersistentVolume", &Key::new("", "disk"), Some(&local));
    assert_eq!(chosen(&with("data"), &snapshot), "b1");
    snapshot.remove_node("b1");
    assert_eq!(
        refused(&with("data"), &snapshot),
        "0/1 nodes are available: 1 node(s) didn't match PersistentVolume's node affinity."
    );
    let zonal = json!({"metadata": {"labels": {ZONE: "c__d"}}});
    snapshot.set_other("PersistentVolume", &Key::new("", "disk"), Some(&zonal));
    assert!(refused(&with("data"), &snapshot).contains("1 node(s) had no available volume zone"));
}

#[test]
fn pods_of_unknown_nodes_wait_for_their_node() {
    let mut snapshot = Snapshot::default();
    placed(&mut snapshot, pod("x", asking("3")), "a1");
    snapshot.set_node(&node("a1"));
    refused(&pod("p", asking("2")), &snapshot);
    snapshot.remove_node("a1");
    snapshot.set_node(&node("a1"));
    refused(&pod("p", asking("2")), &snapshot);
    assert!(snapshot.unplace(&Key::new("default", "x")));
    chosen(&pod("p", asking("2")), &snapshot);
    assert!(!snapshot.unplace(&Key::new("default", "x")));
}

fn important(name: &str, cpu: &str, priority: i64) -> Value {
    let mut pod = pod(name, asking(cpu));
    pod["spec"]["priority"] = priority.into();
    pod
}

fn preempted(pod: &Value, snapshot: &Snapshot) -> Result<(String, Vec<String>), String> {
    let pod = Pod::parse(pod);
    let failure = schedule(&pod, snapshot, 0).expect_err("no node fits");
    let preemption = preempt(&pod, snapshot, &failure)?;
    let victims = preemption.victims.iter().map(|v| v.key.name.clone());
    Ok((preemption.node, victims.collect()))
}

#[test]
fn the_least_important_make_room() {
    let mut snapshot = cluster(&[node("a1"), node("a2"), node("b1")]);
    placed(&mut snapshot, important("a", "2", 10), "a1");
    placed(&mut snapshot, important("b", "2", 5), "a1");
    placed(&mut snapshot, important("c", "4", 7), "a2");
    placed(&mut snapshot, important("d", "4", 100), "b1");
    let wanted = preempted(&important("p", "2", 50), &snapshot);
    assert_eq!(
        wanted,
        Ok(("a1".into(), vec!["b".into()])),
        "the others are spared"
    );
    let wanted = preempted(&important("p", "4", 50), &snapshot);
    assert_eq!(
        wanted,
        Ok(("a2".into(), vec!["c".into()])),
        "the highest victim is lower there"
    );
    assert_eq!(
        preempted(&important("p", "2", 5), &snapshot),
        Err("0/3 nodes are available: 3 No preemption victims found for incoming pod.".into())
    );
    assert_eq!(
        preempted(&important("p", "5", 1000), &snapshot),
        Err("0/3 nodes are available: 3 Preemption is not helpful for scheduling.".into())
    );
    let mut peaceful = important("p", "2", 50);
    peaceful["spec"]["preemptionPolicy"] = "Never".into();
    assert_eq!(
        preempted(&peaceful, &snapshot),
        Err("not eligible due to preemptionPolicy=Never.".into())
    );
}

#[test]
fn budgets_are_respected_where_possible() {
    let mut snapshot = cluster(&[node("a1"), node("b1")]);
    let mut guarded = important("guarded", "4", 1);
    guarded["metadata"]["labels"]["app"] = "guarded".into();
    placed(&mut snapshot, guarded, "a1");
    placed(&mut snapshot, important("free", "4", 2), "b1");
    let budget = json!({"metadata": {"namespace": "default", "name": "b"},
        "spec": {"selector": {"matchLabels": {"app": "guarded"}}}, "status": {"disruptionsAllowed": 0}});
    snapshot.set_other(
        "PodDisruptionBudget",
        &Key::new("default", "b"),
        Some(&budget),
    );
    let wanted = preempted(&important("p", "1", 50), &snapshot);
    assert_eq!(wanted, Ok(("b1".into(), vec!["free".into()])));
    snapshot.unplace(&Key::new("default", "free"));
    placed(&mut snapshot, important("free", "4", 60), "b1");
    let wanted = preempted(&important("p", "1", 50), &snapshot);
    assert_eq!(
        wanted,
        Ok(("a1".into(), vec!["guarded".into()])),
        "there is no other way"
    );
}

#[test]
fn room_that_was_made_is_not_taken_by_others() {
    let mut snapshot = cluster(&[node("a1")]);
    let mut waiting = important("waiting", "3", 50);
    waiting["status"]["nominatedNodeName"] = "a1".into();
    let waiting = Arc::new(Pod::parse(&waiting));
    snapshot.nominate(&waiting);
    refused(&important("p", "2", 10), &snapshot);
    assert_eq!(
        chosen(&important("p", "2", 60), &snapshot),
        "a1",
        "the more important may"
    );
    assert_eq!(schedule(&waiting, &snapshot, 0).unwrap().node, "a1");
    snapshot.forget_nomination(&waiting.key);
    chosen(&important("p", "2", 10), &snapshot);
}

#[test]
fn strange_objects_do_no_harm() {
    let mut snapshot = cluster(&[
        json!({}),
        json!({"metadata": [], "spec": 3, "status": {"allocatable": 7}}),
    ]);
    for strange in [
        json!({}),
        json!({"spec": {"containers": 5, "affinity": [], "tolerations": {}}}),
    ] {
        assert!(refused(&strange, &snapshot).starts_with("0/1 nodes"));
        snapshot.place(Arc::new(Pod::parse(&strange)));
    }
}

#[test]
fn large_clusters_are_sampled_in_turn() {
    let nodes: Vec<Value> = (0..1000).map(|n| node(&format!("a{n}"))).collect();
    let snapshot = cluster(&nodes);
    let first = schedule(&Pod::parse(&pod("p", asking("1"))), &snapshot, 0).unwrap();
    assert_eq!(first.next_start, 420);
    let second = schedule(
        &Pod::parse(&pod("q", asking("1"))),
        &snapshot,
        first.next_start,
    )
    .unwrap();
    assert_eq!(second.next_start, 840);
    assert_ne!(first.node, second.node);
}

async fn stage_with(nodes: &[Value]) -> Stage {
    let stage = Stage::start("kube-scheduler").await;
    for node in nodes {
        stage.create("/api/v1/nodes", node.clone()).await;
        let name = node["metadata"]["name"].as_str().unwrap();
        let status = json!({"status": node["status"]});
        let path = format!("/api/v1/nodes/{name}/status");
        stage.kube.merge(&path, &status).await.expect("status");
    }
    stage
}

const PODS: &str = "/api/v1/namespaces/default/pods";

fn created(name: &str, spec: Value) -> Value {
    let mut spec = spec;
    spec["containers"][0]["name"] = "main".into();
    spec["containers"][0]["image"] = "registry.lab/app:1".into();
    json!({"metadata": {"name": name}, "spec": spec})
}

#[tokio::test]
async fn a_pod_is_bound_and_one_that_fits_nowhere_says_why_until_it_does() {
    let stage = stage_with(&[node("a1")]).await;
    stage.create(PODS, created("first", asking("3"))).await;
    let first = stage
        .until(&format!("{PODS}/first"), |pod| {
            pod["spec"]["nodeName"] == "a1"
        })
        .await;
    assert_eq!(first["status"]["conditions"][0]["status"], "True");
    stage.create(PODS, created("second", asking("2"))).await;
    let message = "0/1 nodes are available: 1 Insufficient cpu. preemption: 0/1 nodes are available: 1 No preemption victims found for incoming pod.";
    let second = stage
        .until(&format!("{PODS}/second"), |pod| {
            pod["status"]["conditions"][0]["message"] == message
        })
        .await;
    assert_eq!(second["status"]["conditions"][0]["reason"], "Unschedulable");
    let events = "/api/v1/namespaces/default/events";
    let has = |events: &Value, pod: &str, reason: &str, message: &str| {
        let events = events["items"].as_array().unwrap();
        events.iter().any(|event| {
            event["involvedObject"]["name"] == pod
                && event["reason"] == reason
                && event["message"] == message
        })
    };
    stage
        .until(events, |events| {
            has(events, "second", "FailedScheduling", message)
                && has(
                    events,
                    "first",
                    "Scheduled",
                    "Successfully assigned default/first to a1",
                )
        })
        .await;
    stage
        .kube
        .delete(&format!("{PODS}/first?gracePeriodSeconds=0"))
        .await
        .expect("deleted");
    stage
        .until(&format!("{PODS}/second"), |pod| {
            pod["spec"]["nodeName"] == "a1"
        })
        .await;
}

#[tokio::test]
async fn gates_and_other_schedulers_are_respected() {
    let stage = stage_with(&[node("a1")]).await;
    let mut gated = asking("1");
    gated["schedulingGates"] = json!([{"name": "example.com/later"}]);
    stage.create(PODS, created("gated", gated)).await;
    let mut foreign = asking("1");
    foreign["schedulerName"] = "another".into();
    stage.create(PODS, created("foreign", foreign)).await;
    stage.create(PODS, created("plain", asking("1"))).await;
    stage
        .until(&format!("{PODS}/plain"), |pod| {
            pod["spec"]["nodeName"] == "a1"
        })
        .await;
    stage
        .until(&format!("{PODS}/gated"), |pod| {
            pod["status"]["conditions"][0]["reason"] == "SchedulingGated"
        })
        .await;
    let foreign = stage.kube.get(&format!("{PODS}/foreign")).await.unwrap();
    assert!(foreign["spec"]["nodeName"].is_null());
    let open = json!({"spec": {"schedulingGates": null}});
    stage
        .kube
        .merge(&format!("{PODS}/gated"), &open)
        .await
        .expect("gate removed");
    stage
        .until(&format!("{PODS}/gated"), |pod| {
            pod["spec"]["nodeName"] == "a1"
        })
        .await;
}

#[tokio::test]
async fn a_more_important_pod_takes_the_place_of_others() {
    let stage = stage_with(&[node("a1")]).await;
    let class = json!({"metadata": {"name": "high"}, "value": 1000});
    stage
        .create("/apis/scheduling.k8s.io/v1/priorityclasses", class)
        .await;
    stage.create(PODS, created("low", asking("3"))).await;
    stage
        .until(&format!("{PODS}/low"), |pod| {
            pod["spec"]["nodeName"] == "a1"
        })
        .await;
    let mut high = asking("3");
    high["priorityClassName"] = "high".into();
    stage.create(PODS, created("high", high)).await;
    let low = stage
        .until(&format!("{PODS}/low"), |pod| {
            pod["metadata"]["deletionTimestamp"].is_string()
        })
        .await;
    let conditions = low["status"]["conditions"].as_array().unwrap();
    assert!(
        conditions
            .iter()
            .any(|c| c["reason"] == "PreemptionByScheduler")
    );
    stage
        .until(&format!("{PODS}/high"), |pod| {
            pod["status"]["nominatedNodeName"] == "a1"
        })
        .await;
    // Its kubelet says that it is gone.
    stage
        .kube
        .delete(&format!("{PODS}/low?gracePeriodSeconds=0"))
        .await
        .expect("deleted");
    stage
        .until(&format!("{PODS}/high"), |pod| {
            pod["spec"]["nodeName"] == "a1"
        })
        .await;
}
