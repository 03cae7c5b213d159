use super::{
    run::{Problem, State},
    status::adopted,
    *,
};
use jiff::SignedDuration;
use yurt_wire::{Encoding, Gvk, Object};

const HOST: &str = "127.10.1.1";

fn host() -> IpAddr {
    HOST.parse().unwrap()
}

fn now() -> Timestamp {
    Timestamp::new(1_795_287_982, 0).unwrap()
}

fn pending() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": "default", "name": "web", "uid": "u-1", "generation": 1,
            "resourceVersion": "10"},
        "spec": {
            "nodeName": "edge-1", "serviceAccountName": "default",
            "initContainers": [{"name": "prepare", "image": "busybox:1"}],
            "containers": [{"name": "busybox", "image": "busybox:1",
                "envFrom": [{"configMapRef": {"name": "settings"}}],
                "env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "password", "key": "a"}}}]}],
            "volumes": [{"name": "kube-api-access", "projected": {"sources": [
                {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
                {"configMap": {"name": "kube-root-ca.crt"}},
            ]}}],
        },
        "status": {"phase": "Pending", "qosClass": "BestEffort", "conditions": [
            {"type": "PodScheduled", "status": "True", "lastProbeTime": null,
                "lastTransitionTime": "2026-11-21T19:06:21Z"},
        ]},
    })
}

fn after(seconds: i64) -> Timestamp {
    now() + SignedDuration::from_secs(seconds)
}

/// A pod that was started now.
fn started(pod: &Value) -> Run {
    let mut run = Run::new(
        pod,
        "10.1.1.2".parse().unwrap(),
        now(),
        SignedDuration::ZERO,
    );
    run.advance(pod, now(), &(), &mut Vec::new());
    run
}

fn run() -> Run {
    started(&pending())
}

/// The pod after the server took a patch and showed it in protobuf.
fn patched(pod: &Value, patch: &Value) -> Value {
    let mut pod = pod.clone();
    let kind = Gvk::from_api_version("v1", "Pod");
    yurt_wire::patch::strategic_merge_patch(&kind, &mut pod, patch).unwrap();
    Object::from_json_value(&pod, Encoding::Protobuf)
        .unwrap()
        .to_json_value()
        .unwrap()
}

fn step(pod: &Value, run: Option<&Run>, touches: u64) -> Step {
    next_step(pod, run, host(), touches, now())
}

fn reported(pod: &Value, run: &Run, touches: u64) -> Value {
    match step(pod, Some(run), touches) {
        Step::Report(patch) => patched(pod, &patch),
        other => panic!("{other:?}"),
    }
}

fn condition<'a>(pod: &'a Value, kind: &str) -> &'a Value {
    let conditions = pod["status"]["conditions"].as_array().unwrap();
    conditions.iter().find(|c| c["type"] == kind).unwrap()
}

#[test]
fn a_new_pod_is_started_reported_and_left_alone() {
    let pod = pending();
    assert_eq!(step(&pod, None, 0), Step::Start);
    let Step::Report(patch) = step(&pod, Some(&run()), 0) else {
        panic!()
    };
    assert_eq!(patch["metadata"], json!({"uid": "u-1"}));
    let pod = patched(&pod, &patch);
    let status = &pod["status"];
    assert_eq!(status["phase"], "Running");
    assert_eq!(status["podIPs"], json!([{"ip": "10.1.1.2"}]));
    assert_eq!(status["hostIP"], HOST);
    assert_eq!(status["qosClass"], "BestEffort");
    assert_eq!(status["containerStatuses"][0]["ready"], true);
    assert_eq!(
        status["initContainerStatuses"][0]["state"]["terminated"]["exitCode"],
        0
    );
    assert_eq!(condition(&pod, "Ready")["status"], "True");
    let scheduled = condition(&pod, "PodScheduled");
    assert_eq!(
        scheduled["lastTransitionTime"], "2026-11-21T19:06:21Z",
        "not its news"
    );
    assert_eq!(scheduled["observedGeneration"], 1);
    assert_eq!(step(&pod, Some(&run()), 0), Step::Rest);
    assert!(is_running(&pod));
}

#[test]
fn a_restarted_kubelet_finds_its_pods_running() {
    assert_eq!(adopted(&pending(), now()), None);
    let pod = reported(&pending(), &run(), 0);
    assert_eq!(adopted(&pod, now()), Some(run()));
    assert_eq!(step(&pod, adopted(&pod, now()).as_ref(), 0), Step::Rest);
}

#[test]
fn a_touch_is_a_small_patch() {
    let pod = reported(&pending(), &run(), 0);
    let Step::Report(patch) = step(&pod, Some(&run()), 2) else {
        panic!()
    };
    let conditions = patch["status"]["conditions"].as_array().unwrap();
    assert_eq!(conditions.len(), 1);
    assert_eq!(conditions[0]["message"], "touched 2 times");
    assert_eq!(patch["status"].as_object().unwrap().len(), 2, "{patch}");
    let pod = patched(&pod, &patch);
    assert_eq!(condition(&pod, TOUCHED)["status"], "True");
    assert_eq!(condition(&pod, "Ready")["status"], "True");
    assert_eq!(step(&pod, Some(&run()), 2), Step::Rest);
    // A later kubelet does not know of the touches and leaves the condition.
    assert_eq!(step(&pod, Some(&run()), 0), Step::Rest);
}

#[test]
fn a_deleted_pod_is_stopped_reported_and_removed() {
    let mut pod = reported(&pending(), &run(), 0);
    pod["metadata"]["deletionTimestamp"] = "2026-11-21T20:00:00Z".into();
    assert!(!is_running(&pod));
    assert_eq!(step(&pod, Some(&run()), 0), Step::Stop);
    let mut stopped = run();
    stopped.stop(after(1), 0, None);
    let pod = reported(&pod, &stopped, 0);
    assert_eq!(pod["status"]["phase"], "Succeeded");
    assert_eq!(condition(&pod, "Ready")["reason"], "PodCompleted");
    let state = &pod["status"]["containerStatuses"][0]["state"];
    assert_eq!(state["terminated"]["finishedAt"], "2026-11-21T19:06:23Z");
    assert!(state.get("running").is_none());
    assert_eq!(step(&pod, Some(&stopped), 0), Step::Delete);
    assert_eq!(step(&pod, None, 0), Step::Delete);
}

#[test]
fn a_finished_pod_is_not_started() {
    let mut pod = pending();
    pod["status"]["phase"] = "Failed".into();
    assert_eq!(step(&pod, None, 0), Step::Rest);
}

#[test]
fn readiness_gates_hold_ready_back() {
    let mut pod = pending();
    pod["spec"]["readinessGates"] = json!([{"conditionType": "example.com/ok"}]);
    let mut pod = reported(&pod, &run(), 0);
    assert_eq!(condition(&pod, "Ready")["status"], "False");
    assert_eq!(condition(&pod, "ContainersReady")["status"], "True");
    assert_eq!(step(&pod, Some(&run()), 0), Step::Rest);
    let gate = json!({"type": "example.com/ok", "status": "True"});
    pod["status"]["conditions"]
        .as_array_mut()
        .unwrap()
        .push(gate);
    let pod = reported(&pod, &run(), 0);
    assert_eq!(condition(&pod, "Ready")["status"], "True");
    assert!(
        condition(&pod, "Ready")
            .get("reason")
            .is_none_or(|r| r.is_null() || r == "")
    );
    assert_eq!(condition(&pod, "example.com/ok")["status"], "True");
    assert_eq!(step(&pod, Some(&run()), 0), Step::Rest);
}

#[test]
fn finds_what_a_pod_reads() {
    let found: Vec<_> = references(&pending())
        .into_iter()
        .map(|r| format!("{}/{}/{}", r.namespace, r.resource, r.name))
        .collect();
    assert_eq!(
        found,
        [
            "default/configmaps/kube-root-ca.crt",
            "default/configmaps/settings",
            "default/secrets/password"
        ]
    );
}

#[test]
fn asks_for_a_token_bound_to_the_pod() {
    let (path, request) = token_request(&pending()).unwrap();
    assert_eq!(
        path,
        "/api/v1/namespaces/default/serviceaccounts/default/token"
    );
    assert_eq!(request["spec"]["boundObjectRef"]["uid"], "u-1");
    let request = Object::from_json_value(&request, Encoding::Protobuf).unwrap();
    assert_eq!(
        request.to_json_value().unwrap()["spec"]["expirationSeconds"],
        3607
    );
    let mut pod = pending();
    pod["spec"]["volumes"] = json!([]);
    assert_eq!(token_request(&pod), None);
}

#[test]
fn strange_pods_do_no_harm() {
    for pod in [
        json!({}),
        json!({"spec": 7, "status": []}),
        json!({"metadata": {"uid": 5}}),
    ] {
        references(&pod);
        token_request(&pod);
        adopted(&pod, now());
        started(&pod);
        step(&pod, Some(&run()), 1);
    }
}

/// The status after so many seconds, and when the run wants to be looked at again.
fn at(seconds: i64, pod: &Value, run: &mut Run) -> (Value, Option<i64>) {
    let next = run.advance(pod, after(seconds), &(), &mut Vec::new());
    let status = match next_step(pod, Some(run), host(), 0, after(seconds)) {
        Step::Report(patch) => patched(pod, &patch)["status"].clone(),
        _ => pod["status"].clone(),
    };
    (
        status,
        next.map(|next| next.duration_since(now()).as_secs()),
    )
}

fn plain(policy: &str) -> Value {
    let mut pod = pending();
    pod["spec"]["initContainers"] = json!([]);
    pod["spec"]["restartPolicy"] = policy.into();
    pod
}

fn annotated(policy: &str, annotations: Value) -> Value {
    let mut pod = plain(policy);
    pod["metadata"]["annotations"] = annotations;
    pod
}

#[test]
fn a_pod_is_created_before_it_runs() {
    let pod = plain("Always");
    let mut run = Run::new(
        &pod,
        "10.1.1.2".parse().unwrap(),
        now(),
        SignedDuration::from_secs(2),
    );
    let (status, next) = at(0, &pod, &mut run);
    assert_eq!(status["phase"], "Pending");
    assert_eq!(
        status["containerStatuses"][0]["state"]["waiting"]["reason"],
        "ContainerCreating"
    );
    assert!(status.get("podIP").is_none());
    assert_eq!(status["startTime"], "2026-11-21T19:06:22Z");
    let creating = json!({"metadata": pod["metadata"], "status": status});
    assert_eq!(
        condition(&creating, "PodReadyToStartContainers")["status"],
        "False"
    );
    assert_eq!(
        condition(&creating, "Ready")["message"],
        "containers with unready status: [busybox]"
    );
    assert_eq!(next, Some(2));
    let (status, next) = at(2, &pod, &mut run);
    assert_eq!(status["phase"], "Running");
    assert_eq!(status["podIP"], "10.1.1.2");
    assert_eq!(next, None);
}

#[test]
fn init_containers_run_one_after_the_other_and_sidecars_go_on() {
    let mut pod = pending();
    pod["spec"]["restartPolicy"] = "Never".into();
    pod["spec"]["initContainers"] = json!([
        {"name": "first", "image": "i", "command": ["sleep", "5"]},
        {"name": "side", "image": "i", "restartPolicy": "Always",
            "startupProbe": {"initialDelaySeconds": 3}},
        {"name": "last", "image": "i"},
    ]);
    pod["spec"]["containers"][0]["command"] = json!(["sleep", "20"]);
    let mut run = started(&pod);
    let (status, next) = at(0, &pod, &mut run);
    assert_eq!((status["phase"].as_str(), next), (Some("Pending"), Some(5)));
    let inits = &status["initContainerStatuses"];
    assert!(inits[0]["state"]["running"].is_object());
    assert_eq!(inits[1]["state"]["waiting"]["reason"], "PodInitializing");
    let shown = json!({"status": status});
    assert_eq!(
        condition(&shown, "Initialized")["message"],
        "containers with incomplete status: [first side last]"
    );
    let (status, next) = at(5, &pod, &mut run);
    assert_eq!((status["phase"].as_str(), next), (Some("Pending"), Some(8)));
    let (status, next) = at(8, &pod, &mut run);
    assert_eq!(
        (status["phase"].as_str(), next),
        (Some("Running"), Some(28))
    );
    assert_eq!(status["initContainerStatuses"][1]["started"], true);
    assert!(!run.is_over(&pod));
    let (status, next) = at(28, &pod, &mut run);
    assert_eq!((status["phase"].as_str(), next), (Some("Succeeded"), None));
    assert!(status["initContainerStatuses"][1]["state"]["terminated"].is_object());
    assert!(run.is_over(&pod));
}

#[test]
fn an_init_container_that_fails_fails_a_pod_that_is_not_to_be_restarted() {
    let mut pod = pending();
    pod["spec"]["restartPolicy"] = "Never".into();
    pod["spec"]["initContainers"][0]["command"] = json!(["false"]);
    let mut run = started(&pod);
    let (status, _) = at(0, &pod, &mut run);
    assert_eq!(status["phase"], "Failed");
    assert!(status["containerStatuses"][0]["state"]["waiting"].is_object());
    pod["spec"]["restartPolicy"] = "OnFailure".into();
    let mut run = started(&pod);
    let (status, next) = at(0, &pod, &mut run);
    assert_eq!(
        (status["phase"].as_str(), next),
        (Some("Pending"), Some(10))
    );
    assert_eq!(
        status["initContainerStatuses"][0]["state"]["waiting"]["reason"],
        "CrashLoopBackOff"
    );
}

#[test]
fn what_ends_again_and_again_is_restarted_after_growing_pauses() {
    let pod = annotated("Always", json!({"lab.yurt.dev/exit-code": "3"}));
    let mut run = started(&pod);
    let (status, next) = at(1, &pod, &mut run);
    let first = &status["containerStatuses"][0];
    assert!(
        first["state"]["running"].is_object(),
        "at once the first time"
    );
    assert_eq!(first["restartCount"], 1);
    assert_eq!(first["lastState"]["terminated"]["exitCode"], 3);
    assert_eq!(first["lastState"]["terminated"]["reason"], "Error");
    assert_eq!(next, Some(2));
    let (status, next) = at(2, &pod, &mut run);
    let second = &status["containerStatuses"][0];
    assert_eq!(second["state"]["waiting"]["reason"], "CrashLoopBackOff");
    assert_eq!(
        second["state"]["waiting"]["message"],
        "back-off 10s restarting failed container=busybox pod=web_default(u-1)"
    );
    assert_eq!(second["ready"], false);
    assert_eq!(status["phase"], "Running");
    assert_eq!(next, Some(12));
    let (mut ends, mut pauses) = (12, Vec::new());
    for _ in 0..7 {
        at(ends, &pod, &mut run);
        let (_, next) = at(ends + 1, &pod, &mut run);
        pauses.push(next.unwrap() - ends - 1);
        ends = next.unwrap();
    }
    assert_eq!(pauses, [20, 40, 80, 160, 300, 300, 300]);
    // A kubelet that begins anew goes on with it.
    let (status, _) = at(ends, &pod, &mut run);
    let mut shown = pod.clone();
    shown["status"] = status;
    assert_eq!(
        adopted(&shown, after(ends)).unwrap().containers[0].restarts,
        run.containers[0].restarts
    );
}

#[test]
fn jobs_finish() {
    for (annotations, phase) in [
        (json!({}), "Succeeded"),
        (json!({"lab.yurt.dev/exit-code": "1"}), "Failed"),
    ] {
        let pod = annotated("Never", annotations);
        let mut run = started(&pod);
        let (status, next) = at(0, &pod, &mut run);
        assert_eq!((status["phase"].as_str(), next), (Some("Running"), Some(1)));
        let (status, next) = at(1, &pod, &mut run);
        assert_eq!((status["phase"].as_str(), next), (Some(phase), None));
        let shown = json!({"status": status});
        let reason = if phase == "Failed" {
            "PodFailed"
        } else {
            "PodCompleted"
        };
        assert_eq!(condition(&shown, "Ready")["reason"], reason);
        assert_eq!(
            condition(&shown, "PodReadyToStartContainers")["status"],
            "False"
        );
    }
}

#[test]
fn probes_succeed_after_their_delay_unless_told_not_to() {
    let mut pod = plain("Always");
    pod["spec"]["containers"][0]["startupProbe"] = json!({"initialDelaySeconds": 2});
    pod["spec"]["containers"][0]["readinessProbe"] =
        json!({"initialDelaySeconds": 3, "periodSeconds": 5, "successThreshold": 2});
    let mut run = started(&pod);
    let ready = |status: &Value| {
        let shown = json!({"status": status});
        let status = &status["containerStatuses"][0];
        let text = |value: &Value| value.as_bool().unwrap_or(false);
        (
            text(&status["started"]),
            text(&status["ready"]),
            condition(&shown, "Ready")["status"] == "True",
        )
    };
    let (status, next) = at(0, &pod, &mut run);
    assert_eq!((ready(&status), next), ((false, false, false), Some(2)));
    let (status, next) = at(2, &pod, &mut run);
    assert_eq!((ready(&status), next), ((true, false, false), Some(8)));
    let (status, next) = at(8, &pod, &mut run);
    assert_eq!((ready(&status), next), ((true, true, true), None));
    pod["metadata"]["annotations"] = json!({"lab.yurt.dev/ready": "false"});
    let (status, _) = at(9, &pod, &mut run);
    assert_eq!(ready(&status), (true, false, false));
}

#[test]
fn images_that_cannot_be_pulled_are_tried_again() {
    let mut pod = annotated("Always", json!({"lab.yurt.dev/image-pull": "fail"}));
    let mut run = started(&pod);
    let reason =
        |status: &Value| status["containerStatuses"][0]["state"]["waiting"]["reason"].clone();
    let (status, next) = at(0, &pod, &mut run);
    assert_eq!((reason(&status), next), ("ErrImagePull".into(), Some(2)));
    assert_eq!(status["phase"], "Pending");
    let (status, next) = at(2, &pod, &mut run);
    assert_eq!(
        (reason(&status), next),
        ("ImagePullBackOff".into(), Some(10))
    );
    let (status, _) = at(10, &pod, &mut run);
    assert_eq!(reason(&status), "ErrImagePull");
    pod["metadata"]["annotations"] = json!({});
    let (status, next) = at(11, &pod, &mut run);
    assert_eq!((status["phase"].as_str(), next), (Some("Running"), None));
}

/// Knows of config maps by name.
struct Known(std::collections::HashMap<&'static str, bool>);

impl Facts for Known {
    fn exists(&self, _: &'static str, _: &str, name: &str) -> Option<bool> {
        self.0.get(name).copied()
    }
}

#[test]
fn what_a_container_reads_must_be_there() {
    let pod = plain("Always");
    let mut facts = Known([("password", false)].into());
    let mut run = Run::new(
        &pod,
        "10.1.1.2".parse().unwrap(),
        now(),
        SignedDuration::ZERO,
    );
    let mut told = Vec::new();
    let error = |run: &Run| match &run.containers[0].state {
        State::Waiting(Some(Problem::Config(text))) => text.clone(),
        other => panic!("{other:?}"),
    };
    run.advance(&pod, now(), &facts, &mut told);
    assert_eq!(error(&run), "secret \"password\" not found");
    run.advance(&pod, after(1), &facts, &mut told);
    assert_eq!(told.len(), 1, "told once: {told:?}");
    facts.0.insert("password", true);
    facts.0.insert("settings", false);
    run.advance(&pod, after(1), &facts, &mut told);
    assert_eq!(error(&run), "configmap \"settings\" not found");
    let Step::Report(patch) = step(&pod, Some(&run), 0) else {
        panic!()
    };
    let waiting = &patch["status"]["containerStatuses"][0]["state"]["waiting"];
    assert_eq!(waiting["reason"], "CreateContainerConfigError");
    facts.0.insert("settings", true);
    run.advance(&pod, after(2), &facts, &mut told);
    assert!(matches!(run.containers[0].state, State::Running { .. }));
}

#[test]
fn what_nobody_knows_about_is_waited_for_and_then_taken_to_be_there() {
    let mut pod = plain("Always");
    pod["spec"]["volumes"] = json!([{"name": "v", "configMap": {"name": "settings"}}]);
    let mut facts = Known([("password", true)].into());
    let fresh = || {
        Run::new(
            &pod,
            "10.1.1.2".parse().unwrap(),
            now(),
            SignedDuration::ZERO,
        )
    };
    let mut run = fresh();
    let mut told = Vec::new();
    assert_eq!(run.advance(&pod, now(), &facts, &mut told), Some(after(1)));
    run.advance(&pod, after(1), &facts, &mut told);
    assert!(matches!(run.containers[0].state, State::Running { .. }));
    facts.0.insert("settings", false);
    let mut run = fresh();
    told.clear();
    assert_eq!(run.advance(&pod, now(), &facts, &mut told), None);
    run.advance(&pod, after(5), &facts, &mut told);
    assert_eq!(told.len(), 1);
    assert_eq!(told[0].reason, "FailedMount");
    assert_eq!(run.containers[0].state, State::Waiting(None));
}

#[test]
fn a_pod_may_run_out_of_time() {
    let mut pod = plain("Always");
    pod["spec"]["activeDeadlineSeconds"] = 5.into();
    let mut run = started(&pod);
    let (status, next) = at(0, &pod, &mut run);
    assert_eq!((status["phase"].as_str(), next), (Some("Running"), Some(5)));
    let (status, next) = at(5, &pod, &mut run);
    assert_eq!((status["phase"].as_str(), next), (Some("Failed"), None));
    assert_eq!(status["reason"], "DeadlineExceeded");
}

#[test]
fn a_rejected_pod_has_failed() {
    let pod = plain("Always");
    let mut run = Run::rejected(
        now(),
        "OutOfcpu".into(),
        "Pod was rejected: too much".into(),
    );
    let (status, _) = at(0, &pod, &mut run);
    assert_eq!(status["phase"], "Failed");
    assert_eq!(status["reason"], "OutOfcpu");
    assert!(status.get("containerStatuses").is_none() && status.get("podIP").is_none());
    assert!(run.is_over(&pod));
}

#[test]
fn the_longest_hook_counts() {
    let pod = json!({"spec": {"containers": [
        {"lifecycle": {"preStop": {"sleep": {"seconds": 2}}}},
        {"lifecycle": {"preStop": {"exec": {}}}},
        {"lifecycle": {"preStop": {"sleep": {"seconds": 5}}}}]}});
    assert_eq!(pre_stop(&pod), Duration::from_secs(5));
}
