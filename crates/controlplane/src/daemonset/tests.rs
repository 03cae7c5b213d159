use super::*;
use crate::{controller_of, stage::Stage};
use proptest::prelude::*;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn set(strategy: Value) -> Value {
    json!({"metadata": {"name": "d", "namespace": "default", "uid": "d", "generation": 2},
        "spec": {"selector": {"matchLabels": {"app": "d"}}, "updateStrategy": strategy,
            "template": {"metadata": {"labels": {"app": "d"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}}})
}

fn rolling(unavailable: Value, surge: Value) -> Value {
    json!({"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": unavailable, "maxSurge": surge}})
}

fn nodes(count: usize) -> Vec<Arc<Value>> {
    let node = |n| Arc::new(json!({"metadata": {"name": format!("n{n}")}, "spec": {}}));
    (0..count).map(node).collect()
}

fn daemon(name: &str, node: &str, hash: &str, ready: bool) -> Value {
    let ready = if ready { "True" } else { "False" };
    json!({"metadata": {"name": name, "namespace": "default", "labels": {"controller-revision-hash": hash}},
        "spec": {"nodeName": node},
        "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": ready, "lastTransitionTime": "1970-01-01T00:00:00Z"}]}})
}

/// A daemon set, its nodes, and pods whose readiness the test decides.
struct World {
    set: Value,
    nodes: Vec<Arc<Value>>,
    pods: Vec<Value>,
    hash: String,
    made: usize,
}

impl World {
    fn new(strategy: Value, count: usize) -> Self {
        Self {
            set: set(strategy),
            nodes: nodes(count),
            pods: Vec::new(),
            hash: "v1".into(),
            made: 0,
        }
    }

    fn with_view<T>(&self, see: impl FnOnce(&View<'_>) -> T) -> T {
        let pods = by_node(self.pods.iter().cloned().map(Arc::new).collect());
        see(&View {
            set: &self.set,
            hash: &self.hash,
            nodes: &self.nodes,
            pods: &pods,
            now: at(100),
        })
    }

    fn plan(&self) -> Plan {
        self.with_view(|view| plan(view, |_| false))
    }

    /// One look; whether it did anything.
    fn look(&mut self) -> bool {
        let plan = self.plan();
        for node in &plan.create {
            self.made += 1;
            let name = format!("d-{:04}", self.made);
            let mut p = daemon(&name, node, &self.hash, false);
            p["metadata"]["creationTimestamp"] = at(self.made as i64).to_string().into();
            self.pods.push(p);
        }
        let gone: Vec<_> = plan.delete.iter().map(|p| name(p).to_owned()).collect();
        self.pods.retain(|p| !gone.contains(&name(p).to_owned()));
        !plan.create.is_empty() || !gone.is_empty()
    }

    fn make_ready(&mut self, at: usize) {
        let len = self.pods.len();
        if len > 0 {
            self.pods[at % len]["status"]["conditions"][0]["status"] = "True".into();
        }
    }

    fn settle(&mut self) {
        for _ in 0..500 {
            for at in 0..self.pods.len() {
                self.make_ready(at);
            }
            if !self.look() {
                return;
            }
        }
        panic!("never settles: {:#?}", self.pods);
    }

    /// On how many nodes an available daemon runs.
    fn served(&self) -> usize {
        let on = |node: &str| {
            self.pods
                .iter()
                .any(|p| pod::node(p) == node && pod::is_ready(p))
        };
        self.nodes.iter().filter(|node| on(name(node))).count()
    }
}

#[test]
fn each_node_gets_one_and_only_one() {
    let mut world = World::new(rolling(1.into(), 0.into()), 3);
    world.settle();
    assert_eq!(world.pods.len(), 3);
    // A second one on a node, and one on a node that is gone.
    let mut second = daemon("second", "n1", "v1", true);
    second["metadata"]["creationTimestamp"] = "2026-01-01T00:00:00Z".into();
    world.pods.push(second);
    let waiting = json!({"metadata": {"name": "waiting"}, "spec": {"affinity": {"nodeAffinity":
        {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [{"matchFields":
            [{"key": "metadata.name", "operator": "In", "values": ["gone"]}]}]}}}}});
    world.pods.push(waiting);
    let plan = world.plan();
    let mut gone: Vec<_> = plan.delete.iter().map(|p| name(p)).collect();
    gone.sort_unstable();
    assert_eq!(gone, ["second", "waiting"]);
    assert!(plan.create.is_empty());
}

#[test]
fn a_daemon_is_replaced_when_the_old_one_is_really_gone() {
    let mut world = World::new(rolling(1.into(), 0.into()), 1);
    world.settle();
    world.pods[0]["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
    assert_eq!(world.plan(), Plan::default());
    world.pods[0]["status"]["phase"] = "Succeeded".into();
    assert_eq!(world.plan().create, ["n0"]);
}

#[test]
fn daemons_that_ended_are_replaced_unless_they_are_held_off() {
    let mut world = World::new(rolling(1.into(), 0.into()), 2);
    world.settle();
    world.pods[0]["status"]["phase"] = "Failed".into();
    let held = world.with_view(|view| plan(view, |_| true));
    assert!(held.ended.is_empty());
    let plan = world.plan();
    assert_eq!(plan.ended.len(), 1);
    assert_eq!(plan.delete, plan.ended);
}

#[test]
fn taints_decide_who_stays() {
    let mut world = World::new(rolling(1.into(), 0.into()), 2);
    world.settle();
    let tainted = |effect: &str| {
        Arc::new(
            json!({"metadata": {"name": "n0"}, "spec": {"taints": [{"key": "k", "effect": effect}]}}),
        )
    };
    world.nodes[0] = tainted("NoSchedule");
    assert_eq!(world.plan(), Plan::default());
    let status = world.with_view(|view| view.status(None));
    assert_eq!(status["desiredNumberScheduled"], 1);
    assert_eq!(status["numberMisscheduled"], 1);
    world.nodes[0] = tainted("NoExecute");
    assert_eq!(world.plan().delete.len(), 1);
}

#[test]
fn on_delete_waits_for_the_user() {
    let mut world = World::new(json!({"type": "OnDelete"}), 2);
    world.settle();
    world.hash = "v2".into();
    assert_eq!(world.plan(), Plan::default());
    let status = world.with_view(|view| view.status(None));
    assert!(status.get("updatedNumberScheduled").is_none());
    world.pods.remove(0);
    world.settle();
    let status = world.with_view(|view| view.status(None));
    assert_eq!(status["updatedNumberScheduled"], 1);
}

#[test]
fn the_status_counts_nodes() {
    let mut world = World::new(rolling(1.into(), 0.into()), 3);
    world.look();
    world.pods.pop();
    world.make_ready(0);
    assert_eq!(
        world.with_view(|view| view.status(Some(1))),
        json!({"desiredNumberScheduled": 3, "currentNumberScheduled": 2, "numberMisscheduled": 0, "numberReady": 1,
            "numberAvailable": 1, "numberUnavailable": 2, "updatedNumberScheduled": 2, "observedGeneration": 2,
            "collisionCount": 1})
    );
}

#[test]
fn a_pod_knows_its_template_and_its_node() {
    let mut set = set(json!({}));
    set["metadata"]["annotations"] = json!({GENERATION: "7"});
    let p = pod_for(&set, "abc", "n1");
    assert_eq!(p["metadata"]["generateName"], "d-");
    assert_eq!(
        p["metadata"]["labels"],
        json!({"app": "d", "controller-revision-hash": "abc", "pod-template-generation": "7"})
    );
    assert_eq!(placement::node_of(&p), Some("n1"));
    assert_eq!(controller_of(&p).unwrap()["kind"], "DaemonSet");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
    #[test]
    fn a_rolling_update_keeps_its_promises(
        count in 1usize..10,
        surge in 0usize..4,
        unavailable in 0usize..4,
        luck in prop::collection::vec(0usize..20, 0..60),
    ) {
        // One of the two is 0 by validation; both 0 means one at a time.
        let unavailable = if surge > 0 { 0 } else { unavailable };
        let mut world = World::new(rolling(unavailable.into(), surge.into()), count);
        world.settle();
        prop_assert_eq!(world.served(), count);
        world.hash = "v2".into();
        let most = count + surge;
        let least = count.saturating_sub(if surge > 0 { 0 } else { unavailable.max(1) });
        for lucky in luck {
            world.look();
            prop_assert!(world.pods.len() <= most, "{} pods", world.pods.len());
            prop_assert!(world.served() >= least, "{} served", world.served());
            world.make_ready(lucky);
        }
        world.settle();
        prop_assert_eq!(world.pods.len(), count);
        prop_assert!(world.pods.iter().all(|p| p["metadata"]["labels"][revision::HASH] == "v2"));
    }
}

const SETS: &str = "/apis/apps/v1/namespaces/default/daemonsets";
const PODS_PATH: &str = "/api/v1/namespaces/default/pods";
const REVISIONS: &str = "/apis/apps/v1/namespaces/default/controllerrevisions";

fn items(list: &Value) -> &[Value] {
    list["items"].as_array().map_or(&[], Vec::as_slice)
}

async fn run_until(stage: &Stage, wanted: impl Fn(&Value) -> bool) -> Value {
    loop {
        let set = stage.kube.get(&format!("{SETS}/d")).await.unwrap();
        if wanted(&set) {
            return set;
        }
        for p in items(&stage.kube.get(PODS_PATH).await.unwrap()) {
            if !pod::is_ready(p) {
                stage.try_report("default", name(p), "Running", true).await;
            }
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn rolled_out(generation: i64, count: i64) -> impl Fn(&Value) -> bool {
    move |set| {
        let status = &set["status"];
        status["observedGeneration"] == generation
            && status["updatedNumberScheduled"] == count
            && status["numberAvailable"] == count
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rollout_its_history_and_a_restart_in_the_middle() {
    let stage = Stage::start("daemonset-controller").await;
    for node in ["n1", "n2", "n3"] {
        stage
            .create("/api/v1/nodes", json!({"metadata": {"name": node}}))
            .await;
    }
    let template = |image: &str| json!({"metadata": {"labels": {"app": "d"}}, "spec": {"containers": [{"name": "c", "image": image}]}});
    let manifest = json!({"metadata": {"name": "d"}, "spec": {"selector": {"matchLabels": {"app": "d"}}, "template": template("v1")}});
    stage.create(SETS, manifest).await;
    let path = format!("{SETS}/d");
    let patience = Duration::from_secs(60);
    let first = tokio::time::timeout(patience, run_until(&stage, rolled_out(1, 3)));
    first.await.expect("the first rollout");
    stage.quiet(&path).await;
    let pods = stage.kube.get(PODS_PATH).await.unwrap();
    let mut on: Vec<_> = items(&pods).iter().filter_map(placement::node_of).collect();
    on.sort_unstable();
    assert_eq!(on, ["n1", "n2", "n3"]);

    stage
        .kube
        .merge(&path, &json!({"spec": {"template": template("v2")}}))
        .await
        .unwrap();
    stage
        .until(&path, |set| set["status"]["updatedNumberScheduled"] == 1)
        .await;
    let stage = stage.restart("daemonset-controller").await;
    let second = tokio::time::timeout(patience, run_until(&stage, rolled_out(2, 3)));
    second.await.expect("the second rollout");
    // As `kubectl rollout undo` does it: the data of the revision is a strategic merge patch.
    let revisions = stage.until(REVISIONS, |list| items(list).len() == 2).await;
    let oldest = items(&revisions)
        .iter()
        .min_by_key(|r| revision::number(r))
        .unwrap();
    assert_eq!(revision::number(oldest), 1);
    stage.kube.strategic(&path, &oldest["data"]).await.unwrap();
    let third = tokio::time::timeout(patience, run_until(&stage, rolled_out(3, 3)));
    third.await.expect("the rollback");
    let revisions = stage.kube.get(REVISIONS).await.unwrap();
    let mut numbers: Vec<_> = items(&revisions).iter().map(revision::number).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, [2, 3]);

    stage.kube.delete("/api/v1/nodes/n3").await.unwrap();
    stage
        .until(&path, |set| set["status"]["desiredNumberScheduled"] == 2)
        .await;
    stage.quiet(&path).await;
}
