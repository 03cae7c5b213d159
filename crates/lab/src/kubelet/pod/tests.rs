use super::*;
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

fn run() -> Run {
    Run {
        ip: "10.1.1.2".parse().unwrap(),
        started: "2026-11-21T19:06:22Z".into(),
        stopped: None,
    }
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
    assert_eq!(adopted(&pending()), None);
    let pod = reported(&pending(), &run(), 0);
    assert_eq!(adopted(&pod), Some(run()));
    assert_eq!(step(&pod, adopted(&pod).as_ref(), 0), Step::Rest);
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
    let stopped = Run {
        stopped: Some("2026-11-21T20:00:01Z".into()),
        ..run()
    };
    let pod = reported(&pod, &stopped, 0);
    assert_eq!(pod["status"]["phase"], "Succeeded");
    assert_eq!(condition(&pod, "Ready")["reason"], "PodCompleted");
    let state = &pod["status"]["containerStatuses"][0]["state"];
    assert_eq!(state["terminated"]["finishedAt"], "2026-11-21T20:00:01Z");
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
        adopted(&pod);
        step(&pod, Some(&run()), 1);
    }
}
