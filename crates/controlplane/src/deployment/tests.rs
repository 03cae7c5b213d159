use super::*;
use crate::{condition as conditions, stage::Stage};
use proptest::prelude::*;
use serde_json::json;

const T0: &str = "2026-01-01T00:00:00Z";

fn at(second: i64) -> Timestamp {
    let start: Timestamp = T0.parse().unwrap();
    Timestamp::from_second(start.as_second() + second).unwrap()
}

fn deployment(replicas: i64, surge: Value, unavailable: Value) -> Value {
    json!({"metadata": {"name": "web", "namespace": "default", "uid": "d", "generation": 1},
        "spec": {"replicas": replicas, "revisionHistoryLimit": 10, "progressDeadlineSeconds": 600,
            "selector": {"matchLabels": {"app": "web"}},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable}},
            "template": template("v1")},
        "status": {}})
}

fn template(image: &str) -> Value {
    json!({"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": image}]}})
}

/// A deployment and its replica sets, whose pods become available as the test says.
struct World {
    deployment: Value,
    sets: Vec<Value>,
    clock: i64,
    told: Vec<String>,
}

fn number(set: &Value, pointer: &str) -> i64 {
    set.pointer(pointer).and_then(Value::as_i64).unwrap_or(0)
}

impl World {
    fn new(deployment: Value) -> Self {
        Self {
            deployment,
            sets: Vec::new(),
            clock: 0,
            told: Vec::new(),
        }
    }

    /// One look of the controller; whether it did anything.
    fn look(&mut self) -> bool {
        self.clock += 1;
        let sets: Vec<_> = self.sets.iter().cloned().map(Arc::new).collect();
        let plan = plan(&self.deployment, &sets, &[], at(self.clock));
        let changed = !plan.steps.is_empty() || plan.deployment != self.deployment;
        self.deployment = plan.deployment;
        for step in plan.steps {
            match step {
                Step::Create(mut set, told) => {
                    set["metadata"]["uid"] = set["metadata"]["name"].clone();
                    set["metadata"]["creationTimestamp"] = at(self.clock).to_string().into();
                    self.sets.push(set);
                    self.told.extend(told);
                }
                Step::Update(set, told) => {
                    let name = &set["metadata"]["name"];
                    let there = self
                        .sets
                        .iter_mut()
                        .find(|s| s["metadata"]["name"] == *name);
                    *there.expect("an existing set") = set;
                    self.told.extend(told);
                }
                Step::Delete(set) => {
                    self.sets
                        .retain(|s| s["metadata"]["name"] != set["metadata"]["name"]);
                }
            }
        }
        changed
    }

    /// The replica set controller: pods are there, those on their way out are the unavailable ones.
    fn follow(&mut self) {
        for set in &mut self.sets {
            let size = number(set, "/spec/replicas");
            let available = number(set, "/status/availableReplicas").min(size);
            set["status"] = json!({"replicas": size, "readyReplicas": available,
                "availableReplicas": available, "terminatingReplicas": 0, "observedGeneration": 1});
        }
    }

    fn make_available(&mut self, at: usize, count: i64) {
        let set = &mut self.sets[at];
        let available = number(set, "/status/availableReplicas") + count;
        set["status"]["availableReplicas"] = available.min(number(set, "/spec/replicas")).into();
        set["status"]["readyReplicas"] = set["status"]["availableReplicas"].clone();
    }

    /// Until nothing changes any more, every pod becoming available at once.
    fn settle(&mut self) {
        for _ in 0..200 {
            let changed = self.look();
            self.follow();
            for at in 0..self.sets.len() {
                self.make_available(at, i64::MAX / 2);
            }
            if !changed && !self.look() {
                return;
            }
        }
        panic!("never settles: {:#?}", self.sets);
    }

    fn change_template(&mut self, image: &str) {
        self.deployment["spec"]["template"] = template(image);
        let generation = number(&self.deployment, "/metadata/generation") + 1;
        self.deployment["metadata"]["generation"] = generation.into();
    }

    fn scale_to(&mut self, replicas: i64) {
        self.deployment["spec"]["replicas"] = replicas.into();
        let generation = number(&self.deployment, "/metadata/generation") + 1;
        self.deployment["metadata"]["generation"] = generation.into();
    }

    fn sizes(&self) -> Vec<i64> {
        self.sets
            .iter()
            .map(|s| number(s, "/spec/replicas"))
            .collect()
    }

    fn progressing(&self) -> (&str, &str) {
        let condition = conditions::find(&self.deployment["status"], "Progressing").unwrap();
        (
            condition["status"].as_str().unwrap(),
            condition["reason"].as_str().unwrap(),
        )
    }

    fn revisions(&self) -> Vec<&str> {
        self.sets
            .iter()
            .filter_map(|s| {
                s["metadata"]["annotations"]["deployment.kubernetes.io/revision"].as_str()
            })
            .collect()
    }
}

#[test]
fn a_first_rollout() {
    let mut world = World::new(deployment(3, "25%".into(), "25%".into()));
    assert!(world.look());
    let set = &world.sets[0];
    let hash = set["metadata"]["labels"]["pod-template-hash"]
        .as_str()
        .unwrap();
    assert_eq!(set["metadata"]["name"], format!("web-{hash}"));
    assert_eq!(
        set["spec"]["selector"]["matchLabels"],
        json!({"app": "web", "pod-template-hash": hash})
    );
    assert_eq!(
        set["spec"]["template"]["metadata"]["labels"]["pod-template-hash"],
        hash
    );
    assert_eq!(
        set["metadata"]["annotations"],
        json!({"deployment.kubernetes.io/revision": "1", "deployment.kubernetes.io/desired-replicas": "3",
            "deployment.kubernetes.io/max-replicas": "4"})
    );
    assert_eq!(set["metadata"]["ownerReferences"][0]["kind"], "Deployment");
    assert_eq!(
        world.deployment["metadata"]["annotations"]["deployment.kubernetes.io/revision"],
        "1"
    );
    assert_eq!(
        world.told,
        [format!("Scaled up replica set web-{hash} from 0 to 3")]
    );
    assert_eq!(world.progressing(), ("True", "NewReplicaSetCreated"));
    let status = world.deployment["status"].clone();
    assert_eq!(status["unavailableReplicas"], 3);
    assert_eq!(
        conditions::find(&status, "Available").unwrap()["reason"],
        "MinimumReplicasUnavailable"
    );
    world.follow();
    assert!(world.look());
    assert_eq!(world.progressing(), ("True", "ReplicaSetUpdated"));
    world.settle();
    assert_eq!(world.progressing(), ("True", "NewReplicaSetAvailable"));
    let message = &conditions::find(&world.deployment["status"], "Progressing").unwrap()["message"];
    assert_eq!(
        *message,
        format!(
            "ReplicaSet \"{}\" has successfully progressed.",
            world.sets[0]["metadata"]["name"].as_str().unwrap()
        )
    );
    let mut status = world.deployment["status"].clone();
    status.as_object_mut().unwrap().remove("conditions");
    assert_eq!(
        status,
        json!({"observedGeneration": 1, "replicas": 3, "updatedReplicas": 3, "readyReplicas": 3,
            "availableReplicas": 3, "terminatingReplicas": 0})
    );
}

#[test]
fn the_same_template_has_the_same_name_in_another_process() {
    let name = |image: &str| {
        let mut world = World::new(deployment(1, 1.into(), 0.into()));
        world.change_template(image);
        world.look();
        world.sets[0]["metadata"]["name"].clone()
    };
    assert_eq!(name("v1"), name("v1"));
    assert_ne!(name("v1"), name("v2"));
}

#[test]
fn a_rollback_reuses_the_old_replica_set_with_a_new_revision() {
    let mut world = World::new(deployment(2, 1.into(), 0.into()));
    world.settle();
    world.change_template("v2");
    world.settle();
    assert_eq!(world.sizes(), [0, 2]);
    assert_eq!(world.revisions(), ["1", "2"]);
    world.change_template("v1");
    world.settle();
    assert_eq!(world.sizes(), [2, 0]);
    assert_eq!(world.revisions(), ["3", "2"]);
    assert_eq!(
        world.sets[0]["metadata"]["annotations"]["deployment.kubernetes.io/revision-history"],
        "1"
    );
    assert_eq!(
        world.deployment["metadata"]["annotations"]["deployment.kubernetes.io/revision"],
        "3"
    );
}

#[test]
fn old_replica_sets_go_beyond_the_limit() {
    let mut world = World::new(deployment(1, 1.into(), 0.into()));
    world.deployment["spec"]["revisionHistoryLimit"] = 2.into();
    for image in ["v1", "v2", "v3", "v4", "v5"] {
        world.change_template(image);
        world.settle();
    }
    assert_eq!(world.revisions(), ["3", "4", "5"]);
}

#[test]
fn recreate_waits_for_the_last_old_pod() {
    let mut world = World::new(deployment(2, 0.into(), 0.into()));
    world.deployment["spec"]["strategy"] = json!({"type": "Recreate"});
    world.settle();
    world.change_template("v2");
    world.look();
    assert_eq!(world.sizes(), [0], "no new one yet");
    let pod = json!({"metadata": {"ownerReferences": [{"uid": world.sets[0]["metadata"]["uid"], "controller": true}]},
        "status": {"phase": "Running"}});
    world.follow();
    let sets: Vec<_> = world.sets.iter().cloned().map(Arc::new).collect();
    let waiting = plan(&world.deployment, &sets, &[Arc::new(pod)], at(100));
    assert!(waiting.steps.is_empty(), "{:?}", waiting.steps);
    world.settle();
    assert_eq!(world.sizes(), [0, 2]);
}

#[test]
fn a_paused_deployment_scales_and_does_not_roll() {
    let mut world = World::new(deployment(2, 1.into(), 0.into()));
    world.settle();
    world.deployment["spec"]["paused"] = true.into();
    world.change_template("v2");
    world.scale_to(4);
    world.settle();
    assert_eq!(world.sizes(), [4]);
    assert_eq!(world.progressing(), ("Unknown", "DeploymentPaused"));
    assert_eq!(world.deployment["status"]["observedGeneration"], 3);
    world.deployment["spec"]["paused"] = false.into();
    world.look();
    world.settle();
    assert_eq!(world.sizes(), [0, 4]);
    assert_eq!(world.progressing(), ("True", "NewReplicaSetAvailable"));
}

#[test]
fn a_rollout_that_does_not_get_on_is_told_once() {
    let mut world = World::new(deployment(2, 1.into(), 0.into()));
    world.look();
    world.follow();
    world.look();
    assert!(!world.look());
    let sets: Vec<_> = world.sets.iter().cloned().map(Arc::new).collect();
    let waiting = plan(&world.deployment, &sets, &[], at(10));
    let left = waiting.next.unwrap().as_secs();
    assert!((590..=602).contains(&left), "{left}");
    world.clock = 700;
    assert!(world.look());
    assert_eq!(world.progressing(), ("False", "ProgressDeadlineExceeded"));
    assert!(!world.look());
    world.settle();
    assert_eq!(world.progressing(), ("True", "NewReplicaSetAvailable"));
}

#[test]
fn scaling_in_the_middle_of_a_rollout_keeps_the_proportions() {
    // The example of the documentation: 10 replicas, surge 3, unavailable 2; 8 old and 5 new; scaled to 15.
    let mut deployment = deployment(15, 3.into(), 2.into());
    let set = |name: &str, replicas: i64| {
        json!({"metadata": {"name": name, "creationTimestamp": T0,
            "annotations": {"deployment.kubernetes.io/desired-replicas": "10", "deployment.kubernetes.io/max-replicas": "13"}},
            "spec": {"replicas": replicas}})
    };
    let (old, new) = (set("old", 8), set("new", 5));
    assert_eq!(
        size::proportional(&deployment, &[&old, &new]),
        [(0, 11), (1, 7)]
    );
    deployment["spec"]["replicas"] = 0.into();
    assert_eq!(
        size::proportional(&deployment, &[&old, &new]),
        [(0, 0), (1, 0)]
    );
    deployment["spec"]["replicas"] = 5.into();
    let shrunk: i64 = size::proportional(&deployment, &[&old, &new])
        .iter()
        .map(|(_, s)| s)
        .sum();
    assert_eq!(shrunk, 8);
}

#[test]
fn trouble_of_the_replica_set_is_the_deployments() {
    let mut world = World::new(deployment(1, 1.into(), 0.into()));
    world.look();
    world.follow();
    world.sets[0]["status"]["conditions"] = json!([{"type": "ReplicaFailure", "status": "True",
        "reason": "FailedCreate", "message": "quota", "lastTransitionTime": T0}]);
    world.look();
    let told = conditions::find(&world.deployment["status"], "ReplicaFailure")
        .unwrap()
        .clone();
    assert_eq!(told["message"], "quota");
    assert_eq!(told["lastUpdateTime"], T0);
    world.sets[0]["status"]
        .as_object_mut()
        .unwrap()
        .remove("conditions");
    world.look();
    assert!(conditions::find(&world.deployment["status"], "ReplicaFailure").is_none());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
    #[test]
    fn never_too_many_and_never_too_few(
        replicas in 1i64..12,
        surge in prop_oneof![(0i64..4).prop_map(Value::from), (0u8..101).prop_map(|p| format!("{p}%").into())],
        unavailable in prop_oneof![(0i64..4).prop_map(Value::from), (0u8..101).prop_map(|p| format!("{p}%").into())],
        // Which set gets how many pods available after each look.
        luck in prop::collection::vec((0usize..3, 0i64..3), 0..40),
        second in 0usize..20,
    ) {
        let mut world = World::new(deployment(replicas, surge, unavailable));
        world.settle();
        let most = replicas + size::max_surge(&world.deployment);
        let least = replicas - size::max_unavailable(&world.deployment);
        world.change_template("v2");
        for (step, (which, count)) in luck.into_iter().enumerate() {
            if step == second {
                // Another template in the middle of it.
                world.change_template("v3");
            }
            world.look();
            world.follow();
            let sizes: i64 = world.sizes().iter().sum();
            let available: i64 = world.sets.iter().map(|s| number(s, "/status/availableReplicas")).sum();
            prop_assert!(sizes <= most, "{sizes} > {most}");
            prop_assert!(available >= least, "{available} < {least}");
            if which < world.sets.len() {
                world.make_available(which, count);
            }
        }
        world.settle();
        let sizes = world.sizes();
        prop_assert_eq!(sizes.last(), Some(&replicas));
        prop_assert_eq!(sizes.iter().sum::<i64>(), replicas);
        prop_assert_eq!(world.progressing(), ("True", "NewReplicaSetAvailable"));
    }

    #[test]
    fn scaling_fills_the_allowed_size_exactly(
        before in 1i64..20, after in 0i64..40, first in 0i64..20, surge in 0i64..5,
    ) {
        let deployment = deployment(after, surge.into(), 1.into());
        let first = first.min(before);
        let set = |name: &str, replicas: i64| {
            json!({"metadata": {"name": name, "annotations": {"deployment.kubernetes.io/max-replicas": (before + surge).to_string()}},
                "spec": {"replicas": replicas}})
        };
        let (old, new) = (set("a", first), set("b", before + surge - first));
        let sizes = size::proportional(&deployment, &[&old, &new]);
        prop_assert!(sizes.iter().all(|(_, size)| *size >= 0));
        let expected = if after == 0 { 0 } else { after + surge };
        prop_assert_eq!(sizes.iter().map(|(_, s)| s).sum::<i64>(), expected);
    }
}

const DEPLOYMENTS_PATH: &str = "/apis/apps/v1/namespaces/default/deployments";
const SETS_PATH: &str = "/apis/apps/v1/namespaces/default/replicasets";
const PODS_PATH: &str = "/api/v1/namespaces/default/pods";
const BOTH: &str = "deployment-controller,replicaset-controller";

fn items(list: &Value) -> &[Value] {
    list["items"].as_array().map_or(&[], Vec::as_slice)
}

/// Plays the kubelet for all pods until the deployment is as wanted.
async fn run_until(stage: &Stage, path: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    loop {
        let deployment = stage.kube.get(path).await.unwrap();
        if wanted(&deployment) {
            return deployment;
        }
        for pod in items(&stage.kube.get(PODS_PATH).await.unwrap()) {
            if !pod::is_ready(pod) {
                let name = pod["metadata"]["name"].as_str().unwrap();
                stage.try_report("default", name, "Running", true).await;
            }
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn rolled_out(generation: i64) -> impl Fn(&Value) -> bool {
    move |d| {
        let status = &d["status"];
        status["observedGeneration"].as_i64() >= Some(generation)
            && progress::is_complete(d, status)
            && conditions::find(status, "Progressing")
                .is_some_and(|c| c["reason"] == "NewReplicaSetAvailable")
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rollout_goes_on_where_another_process_left_it() {
    let stage = Stage::start(BOTH).await;
    let manifest = json!({"metadata": {"name": "web", "labels": {"app": "web"}}, "spec": {"replicas": 4,
        "selector": {"matchLabels": {"app": "web"}}, "template": template("v1")}});
    stage.create(DEPLOYMENTS_PATH, manifest).await;
    let web = format!("{DEPLOYMENTS_PATH}/web");
    let first = tokio::time::timeout(
        Duration::from_secs(60),
        run_until(&stage, &web, rolled_out(1)),
    );
    let first = first.await.expect("the first rollout");
    assert_eq!(
        first["metadata"]["annotations"]["deployment.kubernetes.io/revision"],
        "1"
    );
    assert_eq!(first["metadata"]["labels"]["app"], "web");
    stage.quiet(&web).await;

    let patch = json!({"spec": {"template": template("v2")}});
    stage.kube.merge(&web, &patch).await.unwrap();
    stage.until(SETS_PATH, |list| items(list).len() == 2).await;
    // In the middle of it: the new pods are there and not ready.
    stage
        .until(&web, |d| d["status"]["updatedReplicas"].as_i64() > Some(0))
        .await;
    let stage = stage.restart(BOTH).await;
    let done = tokio::time::timeout(
        Duration::from_secs(60),
        run_until(&stage, &web, rolled_out(2)),
    );
    let done = done.await.expect("the second rollout");
    assert_eq!(
        done["metadata"]["annotations"]["deployment.kubernetes.io/revision"],
        "2"
    );
    let sets = stage.kube.get(SETS_PATH).await.unwrap();
    let sizes: Vec<_> = items(&sets)
        .iter()
        .map(|s| number(s, "/spec/replicas"))
        .collect();
    assert_eq!(sizes.iter().sum::<i64>(), 4);
    assert_eq!(items(&sets).len(), 2);
    stage.quiet(&web).await;
    let events = stage
        .until("/api/v1/namespaces/default/events", |list| {
            items(list).iter().any(|e| {
                e["message"]
                    .as_str()
                    .is_some_and(|m| m.starts_with("Scaled down replica set"))
            })
        })
        .await;
    let scaled = items(&events)
        .iter()
        .find(|e| e["reason"] == "ScalingReplicaSet")
        .unwrap();
    assert_eq!(scaled["involvedObject"]["kind"], "Deployment");
    assert_eq!(scaled["source"]["component"], "deployment-controller");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_that_is_taken_is_not_used() {
    let stage = Stage::start("-*").await;
    let manifest = json!({"metadata": {"name": "web"}, "spec": {"replicas": 1,
        "selector": {"matchLabels": {"app": "web"}}, "template": template("v1")}});
    let created = stage.create(DEPLOYMENTS_PATH, manifest).await;
    let plan = plan(&created, &[], &[], Timestamp::now());
    let Step::Create(mut set, _) = plan.steps[0].clone() else {
        panic!("{:?}", plan.steps);
    };
    // Somebody else's replica set has the name.
    set["apiVersion"] = "apps/v1".into();
    set["kind"] = "ReplicaSet".into();
    set["metadata"]["ownerReferences"] = json!([]);
    set["metadata"]["labels"] = json!({"app": "other"});
    set["spec"]["selector"]["matchLabels"] = json!({"app": "other"});
    set["spec"]["template"]["metadata"]["labels"] = json!({"app": "other"});
    let taken = stage.create(SETS_PATH, set).await;
    let stage = stage.restart("deployment-controller").await;
    let sets = stage.until(SETS_PATH, |list| items(list).len() == 2).await;
    assert!(
        items(&sets)
            .iter()
            .any(|s| s["metadata"]["name"] == taken["metadata"]["name"])
    );
    let web = format!("{DEPLOYMENTS_PATH}/web");
    stage
        .until(&web, |d| d["status"]["collisionCount"] == 1)
        .await;
}
