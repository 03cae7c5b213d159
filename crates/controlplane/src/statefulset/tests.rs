use super::*;
use crate::stage::Stage;
use proptest::prelude::*;
use std::collections::BTreeMap;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn template(image: &str) -> Value {
    json!({"metadata": {"labels": {"app": "db"}}, "spec": {"containers": [{"name": "c", "image": image}]}})
}

fn set(replicas: i64, policy: &str) -> Value {
    json!({"metadata": {"name": "db", "namespace": "default", "uid": "u", "generation": 1},
        "spec": {"replicas": replicas, "podManagementPolicy": policy, "selector": {"matchLabels": {"app": "db"}},
            "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": 0}}, "template": template("v1")}})
}

/// A stateful set and its pods, which run, become ready and go as the test says.
struct World {
    set: Value,
    before: Value,
    current: String,
    update: String,
    pods: BTreeMap<i64, Value>,
}

impl World {
    fn new(set: Value) -> Self {
        Self {
            before: set.clone(),
            set,
            current: "db-v1".into(),
            update: "db-v1".into(),
            pods: BTreeMap::new(),
        }
    }

    fn with_view<T>(&self, see: impl FnOnce(&View<'_>) -> T) -> T {
        let pods: Vec<_> = self.pods.values().cloned().map(Arc::new).collect();
        see(&View {
            set: &self.set,
            current: &self.before,
            update: &self.set,
            current_revision: &self.current,
            update_revision: &self.update,
            pods: &pods,
            now: at(100),
        })
    }

    fn plan(&self) -> Vec<Action> {
        self.with_view(plan)
    }

    /// One look; whether it wrote anything.
    fn look(&mut self) -> bool {
        let mut wrote = false;
        for action in self.plan() {
            match action {
                Action::Create(mut p) => {
                    let ordinal = ordinal(&p).unwrap();
                    assert!(!self.pods.contains_key(&ordinal), "two of {ordinal}");
                    p["status"] = json!({"phase": "Pending"});
                    self.pods.insert(ordinal, p);
                }
                Action::Delete(p) => {
                    let there = self.pods.get_mut(&ordinal(&p).unwrap()).unwrap();
                    there["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
                }
                Action::Identify(p) => {
                    self.pods.insert(ordinal(&p).unwrap(), p);
                }
                Action::Furnish(_) => continue,
            }
            wrote = true;
        }
        let status = self.with_view(|view| view.status(None));
        self.current = status["currentRevision"].as_str().unwrap().into();
        if self.current == self.update {
            self.before = self.set.clone();
        }
        wrote
    }

    /// The kubelet: a pod gets on by one step.
    fn advance(&mut self, ordinal: i64) {
        let Some(p) = self.pods.get_mut(&ordinal) else {
            return;
        };
        if pod::is_deleting(p) {
            self.pods.remove(&ordinal);
        } else {
            p["status"] = json!({"phase": "Running", "conditions": [
                {"type": "Ready", "status": "True", "lastTransitionTime": "1970-01-01T00:00:00Z"}]});
        }
    }

    fn break_pod(&mut self, ordinal: i64) {
        if let Some(p) = self.pods.get_mut(&ordinal) {
            p["status"]["conditions"] = json!([]);
        }
    }

    fn settle(&mut self) {
        for _ in 0..500 {
            for ordinal in self.ordinals() {
                self.advance(ordinal);
            }
            if !self.look()
                && self
                    .pods
                    .values()
                    .all(|p| runs_ready(p) && !pod::is_deleting(p))
            {
                return;
            }
        }
        panic!("never settles: {:#?}", self.pods);
    }

    fn ordinals(&self) -> Vec<i64> {
        self.pods.keys().copied().collect()
    }

    fn update_to(&mut self, image: &str) {
        self.before = self.set.clone();
        self.set["spec"]["template"] = template(image);
        self.update = format!("db-{image}");
    }

    fn images(&self) -> Vec<&str> {
        self.pods
            .values()
            .filter_map(|p| p["spec"]["containers"][0]["image"].as_str())
            .collect()
    }
}

#[test]
fn one_after_the_other() {
    let mut world = World::new(set(3, "OrderedReady"));
    for expected in 1..=3 {
        assert!(world.look());
        assert_eq!(world.pods.len(), expected);
        assert!(!world.look(), "the last one is not ready");
        world.advance(i64::try_from(expected).unwrap() - 1);
    }
    assert!(!world.look());
    world.set["spec"]["replicas"] = 1.into();
    world.look();
    assert!(pod::is_deleting(&world.pods[&2]) && !pod::is_deleting(&world.pods[&1]));
    assert!(!world.look(), "the highest first, and it is not gone");
    world.advance(2);
    world.look();
    assert!(pod::is_deleting(&world.pods[&1]));
}

#[test]
fn all_at_once() {
    let mut world = World::new(set(3, "Parallel"));
    world.look();
    assert_eq!(world.ordinals(), [0, 1, 2]);
    world.set["spec"]["replicas"] = 1.into();
    world.look();
    assert!(pod::is_deleting(&world.pods[&1]) && pod::is_deleting(&world.pods[&2]));
}

#[test]
fn ordinals_begin_where_they_are_told() {
    let mut world = World::new(set(2, "OrderedReady"));
    world.set["spec"]["ordinals"] = json!({"start": 5});
    world.settle();
    assert_eq!(world.ordinals(), [5, 6]);
    world.set["spec"]["ordinals"] = json!({"start": 6});
    world.settle();
    assert_eq!(world.ordinals(), [6, 7]);
}

#[test]
fn a_partition_keeps_the_lower_ones_as_they_were() {
    let mut world = World::new(set(4, "OrderedReady"));
    world.settle();
    world.set["spec"]["updateStrategy"]["rollingUpdate"]["partition"] = 2.into();
    world.update_to("v2");
    world.settle();
    assert_eq!(world.images(), ["v1", "v1", "v2", "v2"]);
    let status = world.with_view(|view| view.status(None));
    assert_eq!(status["currentRevision"], "db-v1");
    assert_eq!(
        (&status["currentReplicas"], &status["updatedReplicas"]),
        (&2.into(), &2.into())
    );
    // A lower one that goes comes back as it was.
    world.pods.remove(&0);
    world.settle();
    assert_eq!(world.images(), ["v1", "v1", "v2", "v2"]);
    world.set["spec"]["updateStrategy"]["rollingUpdate"]["partition"] = 0.into();
    world.settle();
    assert_eq!(world.images(), ["v2"; 4]);
    let status = world.with_view(|view| view.status(None));
    assert_eq!(status["currentRevision"], "db-v2");
    assert_eq!(status["currentReplicas"], 4);
}

#[test]
fn on_delete_waits_for_the_user() {
    let mut world = World::new(set(2, "OrderedReady"));
    world.set["spec"]["updateStrategy"] = json!({"type": "OnDelete"});
    world.settle();
    world.update_to("v2");
    assert!(!world.look());
    world.pods.remove(&1);
    world.settle();
    assert_eq!(world.images(), ["v1", "v2"]);
}

#[test]
fn pods_that_ended_are_made_again() {
    let mut world = World::new(set(2, "OrderedReady"));
    world.settle();
    world.pods.get_mut(&0).unwrap()["status"]["phase"] = "Failed".into();
    let actions = world.plan();
    assert!(
        matches!(actions.as_slice(), [Action::Delete(_)]),
        "{actions:?}"
    );
    world.settle();
    assert_eq!(world.ordinals(), [0, 1]);
}

#[test]
fn more_may_be_missing_at_once() {
    let mut world = World::new(set(5, "Parallel"));
    world.settle();
    world.set["spec"]["updateStrategy"]["rollingUpdate"]["maxUnavailable"] = "40%".into();
    world.update_to("v2");
    world.look();
    let going: Vec<_> = world
        .pods
        .iter()
        .filter(|(_, p)| pod::is_deleting(p))
        .map(|(o, _)| *o)
        .collect();
    assert_eq!(going, [3, 4]);
    world.settle();
    assert_eq!(world.images(), ["v2"; 5]);
}

#[test]
fn a_set_that_is_being_deleted_does_nothing() {
    let mut world = World::new(set(3, "OrderedReady"));
    world.set["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
    assert!(world.plan().is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]
    #[test]
    fn order_is_kept_whatever_happens(
        replicas in 1i64..6,
        events in prop::collection::vec((0u8..10, 0i64..6), 0..80),
    ) {
        let mut world = World::new(set(replicas, "OrderedReady"));
        for (kind, which) in events {
            match kind {
                0 => world.break_pod(which),
                1 => { world.pods.remove(&which); }
                2 => world.set["spec"]["replicas"] = which.into(),
                3 if world.update == "db-v1" => world.update_to("v2"),
                _ => world.advance(which),
            }
            let wanted = super::replicas(&world.set);
            let ready = |world: &World, o: &i64| world.pods.get(o).is_some_and(|p| runs_ready(p) && !pod::is_deleting(p));
            let actions = world.plan();
            for action in &actions {
                match action {
                    // Nothing starts before everything below it is ready.
                    Action::Create(p) => {
                        let ordinal = ordinal(p).unwrap();
                        prop_assert!(ordinal < wanted);
                        prop_assert!((0..ordinal).all(|o| ready(&world, &o)));
                    }
                    Action::Delete(p) => {
                        let ordinal = ordinal(p).unwrap();
                        // Of those that are too many the highest goes; for an update nobody else may be missing.
                        if ordinal >= wanted {
                            prop_assert_eq!(world.pods.keys().max(), Some(&ordinal));
                        } else {
                            prop_assert!((0..wanted).all(|o| ready(&world, &o)));
                        }
                    }
                    _ => {}
                }
            }
            let writes = actions.iter().filter(|a| !matches!(a, Action::Furnish(_))).count();
            prop_assert!(writes <= 1, "{actions:?}");
            world.look();
        }
        world.settle();
        let wanted = super::replicas(&world.set);
        prop_assert_eq!(world.ordinals(), (0..wanted).collect::<Vec<_>>());
        let revision = world.update.clone();
        prop_assert!(world.pods.values().all(|p| revision_of(p) == revision));
    }
}

const SETS: &str = "/apis/apps/v1/namespaces/default/statefulsets";
const PODS_PATH: &str = "/api/v1/namespaces/default/pods";
const CLAIMS: &str = "/api/v1/namespaces/default/persistentvolumeclaims";

fn items(list: &Value) -> &[Value] {
    list["items"].as_array().map_or(&[], Vec::as_slice)
}

async fn run_until(stage: &Stage, wanted: impl Fn(&Value) -> bool) -> Value {
    loop {
        let set = stage.kube.get(&format!("{SETS}/db")).await.unwrap();
        if wanted(&set) {
            return set;
        }
        for p in items(&stage.kube.get(PODS_PATH).await.unwrap()) {
            if !pod::is_ready(p) {
                stage
                    .try_report("default", identity::name(p), "Running", true)
                    .await;
            }
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn rolled_out(generation: i64, count: i64) -> impl Fn(&Value) -> bool {
    move |set| {
        let status = &set["status"];
        status["observedGeneration"] == generation
            && status["updatedReplicas"] == count
            && status["availableReplicas"] == count
            && status["currentRevision"] == status["updateRevision"]
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn claims_revisions_and_a_restart_in_the_middle() {
    let stage = Stage::start("statefulset-controller").await;
    let manifest = json!({"metadata": {"name": "db"}, "spec": {"replicas": 3, "serviceName": "db",
        "selector": {"matchLabels": {"app": "db"}}, "template": template("v1"),
        "persistentVolumeClaimRetentionPolicy": {"whenDeleted": "Delete", "whenScaled": "Retain"},
        "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": {"accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": "1Gi"}}}}]}});
    stage.create(SETS, manifest).await;
    let path = format!("{SETS}/db");
    let patience = Duration::from_secs(60);
    let first = tokio::time::timeout(patience, run_until(&stage, rolled_out(1, 3)));
    let first = first.await.expect("the first rollout");
    assert_eq!(first["status"]["collisionCount"], 0);
    let claims = stage
        .until(CLAIMS, |list| {
            items(list).len() == 3
                && items(list)
                    .iter()
                    .all(|c| c["metadata"]["ownerReferences"][0]["kind"] == "StatefulSet")
        })
        .await;
    assert_eq!(identity::name(&items(&claims)[0]), "data-db-0");
    assert_eq!(items(&claims)[0]["metadata"]["labels"]["app"], "db");
    stage.quiet(&path).await;

    let patch = json!({"spec": {"template": template("v2")}});
    stage.kube.merge(&path, &patch).await.unwrap();
    stage
        .until(&path, |set| set["status"]["updatedReplicas"] == 1)
        .await;
    let stage = stage.restart("statefulset-controller").await;
    let second = tokio::time::timeout(patience, run_until(&stage, rolled_out(2, 3)));
    let second = second.await.expect("the second rollout");
    let revision = second["status"]["updateRevision"].as_str().unwrap();
    assert_ne!(first["status"]["updateRevision"], revision);
    for p in items(&stage.kube.get(PODS_PATH).await.unwrap()) {
        assert_eq!(revision_of(p), revision);
    }
    stage.quiet(&path).await;
    let events = stage
        .until("/api/v1/namespaces/default/events", |list| {
            items(list)
                .iter()
                .any(|e| e["message"] == "delete Pod db-2 in StatefulSet db successful")
        })
        .await;
    let told = |message: &str| items(&events).iter().any(|e| e["message"] == message);
    assert!(told("create Pod db-0 in StatefulSet db successful"));
    assert!(told(
        "create Claim data-db-0 Pod db-0 in StatefulSet db success"
    ));
}
