use super::*;
use crate::{condition, pod, stage::Stage};
use proptest::prelude::*;
use std::{collections::BTreeMap, time::Duration};

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn job(spec: Value) -> Value {
    let mut job = json!({"metadata": {"name": "j", "namespace": "default", "uid": "job"}, "status": {}, "spec": {
        "parallelism": 1, "backoffLimit": 6, "completionMode": "NonIndexed", "podReplacementPolicy": "TerminatingOrFailed",
        "selector": {"matchLabels": {"job": "j"}},
        "template": {"metadata": {"labels": {"job": "j"}}, "spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]}}}});
    for (field, value) in spec.as_object().unwrap() {
        job["spec"][field] = value.clone();
    }
    job
}

/// A job and its pods, which end as the test says.
struct World {
    job: Value,
    pods: BTreeMap<usize, Value>,
    made: usize,
    clock: i64,
    told: Vec<String>,
}

impl World {
    fn new(spec: Value) -> Self {
        Self {
            job: job(spec),
            pods: BTreeMap::new(),
            made: 0,
            clock: 0,
            told: Vec::new(),
        }
    }

    fn plan(&self) -> Plan {
        let pods: Vec<_> = self.pods.values().cloned().map(Arc::new).collect();
        plan::plan(&self.job, &pods, at(self.clock))
    }

    fn untrack(&mut self, p: &Value) {
        let Some((key, there)) = self.pods.iter_mut().find(|(_, known)| uid(known) == uid(p))
        else {
            return;
        };
        there["metadata"]["finalizers"] = json!([]);
        if pod::is_deleting(there) {
            let key = *key;
            self.pods.remove(&key);
        }
    }

    fn delete(&mut self, p: &Value) {
        let Some((key, there)) = self.pods.iter_mut().find(|(_, known)| uid(known) == uid(p))
        else {
            return;
        };
        if is_tracked(there) {
            there["metadata"]["deletionTimestamp"] = at(self.clock).to_string().into();
        } else {
            let key = *key;
            self.pods.remove(&key);
        }
    }

    /// One look, which may end after any of its writes; whether there was something to do.
    fn look_until(&mut self, writes: usize) -> bool {
        if is_finished(&self.job) {
            return false;
        }
        self.clock += 1;
        let plan = self.plan();
        let busy = plan.status != self.job["status"] || !plan.release.is_empty();
        for p in &plan.discard {
            self.untrack(p);
            self.delete(p);
        }
        for p in &plan.stop {
            self.delete(p);
        }
        for mut p in plan.create {
            self.made += 1;
            p["metadata"]["name"] = format!("p{:04}", self.made).into();
            p["metadata"]["uid"] = p["metadata"]["name"].clone();
            p["metadata"]["creationTimestamp"] = at(self.clock).to_string().into();
            p["status"] = json!({"phase": "Pending"});
            self.pods.insert(self.made, p);
        }
        if writes == 0 {
            return busy;
        }
        self.job["status"] = plan.status;
        self.told
            .extend(plan.events.into_iter().map(|(_, reason, _)| reason));
        for p in plan.release.iter().take(writes - 1) {
            self.untrack(p);
        }
        busy
    }

    fn look(&mut self) -> bool {
        self.look_until(usize::MAX)
    }

    /// All pods that run end like this.
    fn end_all(&mut self, phase: &str) {
        for p in self.pods.values_mut().filter(|p| pod::is_active(p)) {
            p["status"]["phase"] = phase.into();
        }
    }

    fn rest(&mut self) {
        for _ in 0..100 {
            if !self.look() {
                return;
            }
            // Whatever pause there is passes.
            self.clock += 1000;
        }
        panic!("never rests: {:#}", self.job["status"]);
    }

    fn conditions(&self) -> Vec<(&str, &str)> {
        let conditions = self.job["status"]["conditions"].as_array();
        conditions
            .into_iter()
            .flatten()
            .filter(|c| c["status"] == "True")
            .map(|c| (c["type"].as_str().unwrap(), c["reason"].as_str().unwrap()))
            .collect()
    }

    fn number(&self, field: &str) -> i64 {
        self.job["status"][field].as_i64().unwrap_or(0)
    }

    fn running(&self) -> usize {
        self.pods.values().filter(|p| pod::is_active(p)).count()
    }
}

const DONE: [(&str, &str); 2] = [
    ("SuccessCriteriaMet", "CompletionsReached"),
    ("Complete", "CompletionsReached"),
];

fn failed(reason: &'static str) -> [(&'static str, &'static str); 2] {
    [("FailureTarget", reason), ("Failed", reason)]
}

#[test]
fn as_many_as_are_left_run_at_once() {
    let mut world = World::new(json!({"completions": 5, "parallelism": 2}));
    world.look();
    assert_eq!(world.running(), 2);
    assert!(world.pods.values().all(is_tracked));
    assert_eq!(world.job["status"]["startTime"], "1970-01-01T00:00:01Z");
    assert_eq!(world.job["status"]["uncountedTerminatedPods"], json!({}));
    assert_eq!((world.number("active"), world.number("ready")), (2, 0));
    for left in [3, 1] {
        world.end_all("Succeeded");
        world.rest();
        assert_eq!(world.running(), left.min(2));
    }
    world.end_all("Succeeded");
    world.rest();
    assert_eq!(world.number("succeeded"), 5);
    assert_eq!(world.number("active"), 0);
    assert_eq!(world.conditions(), DONE);
    assert!(world.job["status"]["completionTime"].is_string());
    assert_eq!(world.told, ["Completed"]);
    assert!(!world.pods.values().any(is_tracked));
}

#[test]
fn without_completions_the_first_success_decides() {
    let mut world = World::new(json!({"parallelism": 3}));
    world.look();
    let first = world.pods.values_mut().next().unwrap();
    first["status"]["phase"] = "Succeeded".into();
    world.rest();
    assert_eq!(world.running(), 2, "the others finish");
    assert!(world.conditions().is_empty());
    world.end_all("Succeeded");
    world.rest();
    assert_eq!(world.conditions(), DONE);
}

#[test]
fn too_many_failures_end_it() {
    let mut world = World::new(json!({"completions": 3, "parallelism": 3, "backoffLimit": 1}));
    world.look();
    world.pods.values_mut().next().unwrap()["status"]["phase"] = "Failed".into();
    world.rest();
    assert_eq!(world.running(), 3, "one was replaced");
    for p in world
        .pods
        .values_mut()
        .filter(|p| pod::is_active(p))
        .take(1)
    {
        p["status"]["phase"] = "Failed".into();
    }
    world.rest();
    assert_eq!(world.conditions(), failed("BackoffLimitExceeded"));
    assert_eq!(world.number("failed"), 4, "the running ones were stopped");
    assert!(world.job["status"].get("completionTime").is_none());
    assert_eq!(world.told, ["BackoffLimitExceeded"]);
}

#[test]
fn a_failed_pod_is_replaced_after_a_pause() {
    let mut world = World::new(json!({"completions": 1}));
    world.look();
    world.end_all("Failed");
    world.look();
    assert_eq!(world.running(), 0);
    let waits = world.plan().next.unwrap().as_secs();
    assert!((5..=10).contains(&waits), "{waits}");
    world.clock += 60;
    world.look();
    assert_eq!(world.running(), 1);
}

#[test]
fn a_deadline_ends_it() {
    let mut world = World::new(json!({"completions": 1, "activeDeadlineSeconds": 100}));
    world.look();
    assert_eq!(world.plan().next, Some(Duration::from_secs(100)));
    world.clock = 200;
    world.rest();
    assert_eq!(world.conditions(), failed("DeadlineExceeded"));
}

#[test]
fn a_suspended_job_has_no_pods_and_starts_anew() {
    let mut world = World::new(json!({"completions": 2, "parallelism": 2}));
    world.look();
    world.job["spec"]["suspend"] = true.into();
    world.rest();
    assert_eq!(world.pods.len(), 0);
    assert_eq!(world.conditions(), [("Suspended", "JobSuspended")]);
    assert_eq!(world.number("failed"), 0, "nobody failed");
    let before = world.job["status"]["startTime"].clone();
    world.job["spec"]["suspend"] = false.into();
    world.look();
    assert_eq!(world.running(), 2);
    assert_ne!(world.job["status"]["startTime"], before);
    assert_eq!(world.told, ["Suspended", "Resumed"]);
    assert!(condition::find(&world.job["status"], "Suspended").is_some());
}

#[test]
fn fewer_are_wanted() {
    let mut world = World::new(json!({"completions": 9, "parallelism": 4}));
    world.look();
    world.job["spec"]["parallelism"] = 1.into();
    world.rest();
    assert_eq!(world.running(), 1);
    assert_eq!(world.number("failed"), 0);
}

#[test]
fn each_index_succeeds_once() {
    let mut world =
        World::new(json!({"completions": 4, "parallelism": 3, "completionMode": "Indexed"}));
    world.look();
    let indexes: Vec<_> = world.pods.values().filter_map(indexes::of).collect();
    assert_eq!(indexes, [0, 1, 2]);
    let first = &world.pods[&1];
    assert_eq!(first["spec"]["hostname"], "j-0");
    assert_eq!(first["metadata"]["generateName"], "j-0-");
    assert_eq!(first["metadata"]["labels"][indexes::INDEX], "0");
    assert_eq!(
        first["spec"]["containers"][0]["env"][0]["name"],
        "JOB_COMPLETION_INDEX"
    );
    world.pods.get_mut(&1).unwrap()["status"]["phase"] = "Succeeded".into();
    world.pods.get_mut(&3).unwrap()["status"]["phase"] = "Failed".into();
    world.rest();
    assert_eq!(world.job["status"]["completedIndexes"], "0");
    let mut running: Vec<_> = world
        .pods
        .values()
        .filter(|p| pod::is_active(p))
        .filter_map(indexes::of)
        .collect();
    running.sort_unstable();
    assert_eq!(running, [1, 2, 3]);
    world.end_all("Succeeded");
    world.rest();
    assert_eq!(world.job["status"]["completedIndexes"], "0-3");
    assert_eq!((world.number("succeeded"), world.number("failed")), (4, 1));
    assert_eq!(world.conditions(), DONE);
}

#[test]
fn failures_may_count_by_index() {
    let mut world = World::new(
        json!({"completions": 2, "parallelism": 2, "completionMode": "Indexed",
        "backoffLimitPerIndex": 1, "backoffLimit": i32::MAX}),
    );
    world.look();
    let fail = |world: &mut World, index: i64| {
        let mut pods = world.pods.values_mut().filter(|p| pod::is_active(p));
        let p = pods
            .find(|p| indexes::of(p) == Some(index))
            .expect("a pod of the index");
        p["status"]["phase"] = "Failed".into();
    };
    fail(&mut world, 0);
    world.rest();
    let again: Vec<_> = world
        .pods
        .values()
        .filter(|p| pod::is_active(p) && indexes::of(p) == Some(0))
        .collect();
    assert_eq!(
        again[0]["metadata"]["annotations"]["batch.kubernetes.io/job-index-failure-count"],
        "1"
    );
    assert_eq!(world.job["status"]["failedIndexes"], "");
    fail(&mut world, 0);
    world.rest();
    assert_eq!(world.job["status"]["failedIndexes"], "0");
    assert_eq!(world.running(), 1, "the other index goes on");
    world.end_all("Succeeded");
    world.rest();
    assert_eq!(world.conditions(), failed("FailedIndexes"));
    assert_eq!(world.job["status"]["completedIndexes"], "1");
    assert_eq!(world.number("failed"), 2);
}

#[test]
fn a_success_policy_ends_it_early() {
    let mut world = World::new(
        json!({"completions": 3, "parallelism": 3, "completionMode": "Indexed",
        "successPolicy": {"rules": [{"succeededIndexes": "0,2", "succeededCount": 1}]}}),
    );
    world.look();
    world.pods.get_mut(&3).unwrap()["status"]["phase"] = "Succeeded".into();
    world.rest();
    assert_eq!(
        world.conditions(),
        [
            ("SuccessCriteriaMet", "SuccessPolicy"),
            ("Complete", "SuccessPolicy")
        ]
    );
    assert_eq!(world.running(), 0);
    assert_eq!(world.number("failed"), 0, "nobody failed");
}

#[test]
fn a_failure_policy_decides() {
    let mut world = World::new(
        json!({"completions": 2, "parallelism": 2, "backoffLimit": 0, "podFailurePolicy": {"rules": [
        {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
        {"action": "FailJob", "onExitCodes": {"operator": "In", "values": [42]}}]}}),
    );
    world.look();
    let p = world.pods.get_mut(&1).unwrap();
    p["status"] =
        json!({"phase": "Failed", "conditions": [{"type": "DisruptionTarget", "status": "True"}]});
    world.rest();
    assert_eq!(world.number("failed"), 0, "it does not count");
    assert_eq!(world.running(), 2);
    let p = world.pods.values_mut().find(|p| pod::is_active(p)).unwrap();
    p["status"] = json!({"phase": "Failed", "containerStatuses": [{"name": "c", "state": {"terminated": {"exitCode": 42}}}]});
    world.rest();
    assert_eq!(world.conditions(), failed("PodFailurePolicy"));
}

#[test]
fn a_job_that_needs_nobody_is_complete() {
    let mut world = World::new(json!({"completions": 0}));
    world.rest();
    assert_eq!(world.conditions(), DONE);
    assert_eq!(world.made, 0);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]
    #[test]
    fn every_pod_is_counted_once_wherever_the_process_is_killed(
        completions in 1i64..8,
        parallelism in 1i64..4,
        indexed in any::<bool>(),
        events in prop::collection::vec((0u8..4, 0usize..12, 0usize..4), 0..60),
    ) {
        let mode = if indexed { "Indexed" } else { "NonIndexed" };
        let mut world = World::new(json!({"completions": completions, "parallelism": parallelism,
            "completionMode": mode, "backoffLimit": 1000}));
        let mut ended = [0, 0];
        for (kind, which, writes) in events {
            world.look_until(writes);
            world.clock += 1000;
            prop_assert!(world.running() <= usize::try_from(parallelism).unwrap());
            let len = world.pods.len().max(1);
            if let Some(p) = world.pods.values_mut().nth(which % len).filter(|p| pod::is_active(p)) {
                match kind {
                    0 => { p["status"]["phase"] = "Succeeded".into(); ended[0] += 1; }
                    1 => { p["status"]["phase"] = "Failed".into(); ended[1] += 1; }
                    _ => p["status"]["phase"] = "Running".into(),
                }
            }
        }
        for _ in 0..50 {
            world.rest();
            if is_finished(&world.job) {
                break;
            }
            ended[0] += i64::try_from(world.running()).unwrap();
            world.end_all("Succeeded");
        }
        prop_assert!(world.conditions() == DONE, "{:?}", world.conditions());
        prop_assert_eq!(world.number("succeeded"), completions);
        prop_assert_eq!(ended[0], completions);
        prop_assert_eq!(world.number("failed"), ended[1]);
        prop_assert_eq!(&world.job["status"]["uncountedTerminatedPods"], &json!({}));
        prop_assert!(!world.pods.values().any(is_tracked));
    }
}

const JOBS_PATH: &str = "/apis/batch/v1/namespaces/default/jobs";
const PODS_PATH: &str = "/api/v1/namespaces/default/pods";

fn items(list: &Value) -> &[Value] {
    list["items"].as_array().map_or(&[], Vec::as_slice)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_is_finished_by_another_process() {
    let stage = Stage::start("job-controller").await;
    let manifest = json!({"metadata": {"name": "j"}, "spec": {"completions": 3, "parallelism": 2,
        "template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]}}}});
    stage.create(JOBS_PATH, manifest).await;
    let path = format!("{JOBS_PATH}/j");
    let pods = stage.until(PODS_PATH, |list| items(list).len() == 2).await;
    stage.until(&path, |job| job["status"]["active"] == 2).await;
    stage.quiet(&path).await;
    stage
        .report("default", name(&items(&pods)[0]), "Succeeded", false)
        .await;
    let counted = stage
        .until(&path, |job| job["status"]["succeeded"] == 1)
        .await;
    assert_eq!(counted["status"]["uncountedTerminatedPods"], json!({}));
    let stage = stage.restart("job-controller").await;
    let pods = stage.until(PODS_PATH, |list| items(list).len() == 3).await;
    for p in items(&pods).iter().filter(|p| pod::is_active(p)) {
        stage.report("default", name(p), "Succeeded", false).await;
    }
    let done = stage.until(&path, is_finished).await;
    assert_eq!(done["status"]["succeeded"], 3);
    assert!(done["status"].get("active").is_none());
    let pods = stage.kube.get(PODS_PATH).await.unwrap();
    assert!(!items(&pods).iter().any(is_tracked));
    stage.quiet(&path).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_of_a_job_that_is_gone_are_let_go() {
    let stage = Stage::start("job-controller").await;
    let manifest = json!({"metadata": {"name": "j"}, "spec": {
        "template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]}}}});
    stage.create(JOBS_PATH, manifest).await;
    let pods = stage.until(PODS_PATH, |list| items(list).len() == 1).await;
    let options =
        json!({"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background"});
    stage
        .kube
        .delete_with(&format!("{JOBS_PATH}/j"), &options)
        .await
        .unwrap();
    let pod = format!("{PODS_PATH}/{}", name(&items(&pods)[0]));
    stage
        .until(&pod, |p| p["kind"] == "Pod" && !is_tracked(p))
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn finished_jobs_go_after_their_time() {
    let stage = Stage::start("job-controller,ttl-after-finished-controller").await;
    let manifest = json!({"metadata": {"name": "j"}, "spec": {"completions": 0, "parallelism": 1, "ttlSecondsAfterFinished": 0,
        "template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]}}}});
    stage.create(JOBS_PATH, manifest).await;
    // Nobody collects garbage here: it waits for its dependents.
    stage
        .until(&format!("{JOBS_PATH}/j"), |job| {
            job["metadata"]["deletionTimestamp"].is_string() || job["code"] == 404
        })
        .await;
}
