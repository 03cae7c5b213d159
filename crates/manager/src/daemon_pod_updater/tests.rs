use super::*;
use crate::stage::Stage;
use std::collections::BTreeMap;
use yurt_api::names::annotations::DELEGATE_HEARTBEAT;

const SETS: &str = "/apis/apps/v1/namespaces/default/daemonsets";
const PODS_PATH: &str = "/api/v1/namespaces/default/pods";
const CONTROLLERS: &str = "daemonset-controller,kube-scheduler,daemon-pod-updater-controller";

fn daemons(strategy: &str, image: &str) -> Value {
    json!({"metadata": {"name": "d", "annotations": {UPDATE_STRATEGY: strategy}}, "spec": {
        "selector": {"matchLabels": {"app": "d"}}, "updateStrategy": {"type": "OnDelete"},
        "template": {"metadata": {"labels": {"app": "d"}}, "spec": {"containers": [{"name": "c", "image": image}]}}}})
}

#[test]
fn only_what_changes_is_written() {
    let now = Timestamp::UNIX_EPOCH;
    let mut p = json!({"metadata": {"labels": {revision::HASH: "a"}}, "status": {}});
    let old = verdict(&p, false, "b", now).expect("old");
    assert_eq!(
        (&old["status"], &old["message"]),
        (&"True".into(), &"controllerrevision: b".into())
    );
    p["status"]["conditions"] = json!([old]);
    assert_eq!(verdict(&p, false, "b", now), None);
    assert_eq!(
        verdict(&p, true, "a", now).expect("again")["status"],
        "False"
    );
}

#[test]
fn strategies_by_any_case() {
    for (name, wanted) in [
        ("OTA", Some(Strategy::Ota)),
        ("ota", Some(Strategy::Ota)),
        ("Auto", Some(Strategy::Rolling)),
        ("auto", Some(Strategy::Rolling)),
        ("AdvancedRollingUpdate", Some(Strategy::Rolling)),
        ("advancedrollingupdate", Some(Strategy::Rolling)),
        ("", None),
        ("Other", None),
    ] {
        let mut set = daemons(name, "i");
        assert_eq!(strategy(&set), wanted, "{name}");
        set["spec"]["updateStrategy"]["type"] = "RollingUpdate".into();
        assert_eq!(strategy(&set), None);
    }
}

#[test]
fn the_newest_revision_decides_once_it_is_of_this_template() {
    let mut set = daemons("OTA", "i:2");
    set["metadata"]["uid"] = "u".into();
    set["metadata"]["generation"] = 2.into();
    set["status"]["observedGeneration"] = 1.into();
    let of = |image: &str, number: i64, hash: &str, owner: &str| {
        // As Go writes it down.
        let mut data = revision::data(&daemons("OTA", image));
        data["spec"]["template"]["metadata"]["creationTimestamp"] = Value::Null;
        Arc::new(
            json!({"metadata": {"labels": {revision::HASH: hash}, "ownerReferences": [{"uid": owner, "controller": true}]},
            "data": data, "revision": number}),
        )
    };
    let old = of("i:1", 1, "a", "u");
    assert_eq!(
        present_hash(&set, std::slice::from_ref(&old)),
        None,
        "the new one is to come"
    );
    let both = [
        of("i:2", 2, "b", "u"),
        old.clone(),
        of("i:9", 9, "z", "other"),
    ];
    assert_eq!(present_hash(&set, &both).as_deref(), Some("b"));
    // Rolled back: the old one is the newest again.
    set["spec"]["template"] = daemons("OTA", "i:1")["spec"]["template"].clone();
    let back = [of("i:2", 2, "b", "u"), of("i:1", 3, "a", "u")];
    assert_eq!(present_hash(&set, &back).as_deref(), Some("a"));
    // Defaults that were unknown when it was written down.
    set["spec"]["template"]["spec"]["newField"] = 1.into();
    assert_eq!(present_hash(&set, &back), None);
    set["status"]["observedGeneration"] = 2.into();
    assert_eq!(present_hash(&set, &back).as_deref(), Some("a"));
    set["metadata"]["annotations"][TEMPLATE_GENERATION] = "7".into();
    let p = json!({"metadata": {"labels": {GENERATION_LABEL: "7", revision::HASH: "x"}}});
    assert!(is_current(&set, "a", &p) && !is_current(&set, "a", &json!({})));
}

/// Sets whether a node is ready.
async fn set_ready(stage: &Stage, node: &str, ready: bool) {
    let status = if ready { "True" } else { "Unknown" };
    let status = json!({"status": {"allocatable": {"pods": "10", "cpu": "4", "memory": "4Gi"},
        "conditions": [{"type": "Ready", "status": status, "lastTransitionTime": "2026-01-01T00:00:00Z"}]}});
    let path = format!("/api/v1/nodes/{node}/status");
    stage.kube.merge(&path, &status).await.expect("a status");
}

/// Cuts a node off, or brings it back. The pool of `n9` vouches for it: it was renewed by another once, and stays Ready.
async fn set_here(stage: &Stage, node: &str, here: bool) {
    if node != "n9" {
        return set_ready(stage, node, here).await;
    }
    let leases = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";
    if here {
        let own = json!({"metadata": {"annotations": {DELEGATE_HEARTBEAT: null}}});
        let renewed = stage.kube.merge(&format!("{leases}/{node}"), &own).await;
        renewed.expect("renewed by itself");
    } else {
        let lease =
            json!({"metadata": {"name": node, "annotations": {DELEGATE_HEARTBEAT: "true"}}});
        stage.create(leases, lease).await;
    }
}

async fn nodes(stage: &Stage, count: usize) {
    for n in 0..count {
        stage
            .create(
                "/api/v1/nodes",
                json!({"metadata": {"name": format!("n{n}")}}),
            )
            .await;
        set_ready(stage, &format!("n{n}"), true).await;
    }
}

/// Images by node, of pods that do not end.
fn images(list: &Value) -> BTreeMap<String, String> {
    let pods = crate::fields::items(&list["items"]).filter(|p| pod::is_active(p));
    pods.filter(|p| !pod::node(p).is_empty())
        .map(|p| {
            let image = crate::fields::text(&p["spec"]["containers"][0]["image"]);
            (pod::node(p).to_owned(), image)
        })
        .collect()
}

/// Plays the kubelets of nodes that are not in `away`: pods that end are gone, the others run.
async fn kubelets(stage: &Stage, away: &[&str]) {
    let list = stage.kube.get(PODS_PATH).await.expect("pods");
    for p in crate::fields::items(&list["items"]) {
        let (name, node) = (crate::fields::text(&p["metadata"]["name"]), pod::node(p));
        if node.is_empty() || away.contains(&node) {
            continue;
        }
        if pod::is_deleting(p) {
            let options =
                json!({"kind": "DeleteOptions", "apiVersion": "v1", "gracePeriodSeconds": 0});
            let _ = stage
                .kube
                .delete_with(&format!("{PODS_PATH}/{name}"), &options)
                .await;
        } else if !pod::is_ready(p) {
            stage.try_report("default", &name, "Running", true).await;
        }
    }
}

/// Lets kubelets work until the pods are as wanted, and checks each time how many of the nodes that are there have no ready pod.
async fn play(stage: &Stage, away: &[&str], most: usize, wanted: impl Fn(&Value) -> bool) -> Value {
    for _ in 0..1500 {
        let list = stage.kube.get(PODS_PATH).await.expect("pods");
        let ready = crate::fields::items(&list["items"])
            .filter(|p| pod::is_active(p) && pod::is_ready(p) && !away.contains(&pod::node(p)))
            .count();
        assert!(
            ready + most + away.len() >= 10,
            "too few are ready: {list:#}"
        );
        if wanted(&list) {
            return list;
        }
        kubelets(stage, away).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("never as wanted");
}

/// A daemon on ten nodes, all ready, changed to `i:2` while three of them are away.
async fn changed(strategy: &str) -> Stage {
    let stage = Stage::start_confined(CONTROLLERS, crate::Settings::default()).await;
    nodes(&stage, 10).await;
    let mut set = daemons(strategy, "i:1");
    set["metadata"]["annotations"]["apps.openyurt.io/max-unavailable"] = "2".into();
    stage.create(SETS, set).await;
    play(&stage, &[], 10, |list| {
        let all = crate::fields::items(&list["items"]);
        all.filter(|p| pod::is_ready(p)).count() == 10
    })
    .await;
    for node in ["n7", "n8", "n9"] {
        set_here(&stage, node, false).await;
    }
    let newer = json!({"spec": {"template": daemons("", "i:2")["spec"]["template"]}});
    let path = format!("{SETS}/d");
    stage
        .until(&path, |set| set["status"]["desiredNumberScheduled"] == 10)
        .await;
    stage.kube.merge(&path, &newer).await.expect("changed");
    stage
}

fn count(list: &Value, image: &str) -> usize {
    images(list)
        .values()
        .filter(|found| *found == image)
        .count()
}

#[tokio::test]
async fn auto_goes_past_nodes_that_are_away_and_takes_each_when_it_is_back() {
    let mut stage = changed("Auto").await;
    let mut away = vec!["n7", "n8", "n9"];
    play(&stage, &away, 2, |list| count(list, "i:2") == 7).await;
    // What the controller knew is gone meanwhile.
    stage.restart(CONTROLLERS);
    while let Some(back) = away.pop() {
        set_here(&stage, back, true).await;
        let done = 10 - away.len();
        let list = play(&stage, &away, 2, |list| count(list, "i:2") == done).await;
        assert_eq!(count(&list, "i:1"), away.len());
    }
    let told = |list: &Value| {
        crate::fields::items(&list["items"]).any(|e| e["reason"] == "SuccessfulDelete")
    };
    stage.until("/api/v1/namespaces/default/events", told).await;
}

#[tokio::test]
async fn ota_replaces_none_until_it_is_asked_for() {
    let stage = changed("ota").await;
    let says = |list: &Value, status: &str| {
        let pods = crate::fields::items(&list["items"]).filter(|p| {
            condition::find(&p["status"], POD_NEED_UPGRADE).is_some_and(|c| c["status"] == status)
        });
        pods.count()
    };
    let list = stage
        .until(PODS_PATH, |list| says(list, "True") == 10)
        .await;
    assert_eq!(count(&list, "i:1"), 10, "nobody replaces them");
    let name = crate::fields::text(&list["items"][0]["metadata"]["name"]);
    stage.quiet(&format!("{PODS_PATH}/{name}")).await;
    // As a hub does it for the owner of the node.
    let path = format!("{PODS_PATH}/{name}");
    let options = json!({"kind": "DeleteOptions", "apiVersion": "v1", "gracePeriodSeconds": 0});
    stage
        .kube
        .delete_with(&path, &options)
        .await
        .expect("upgraded");
    let list = stage
        .until(PODS_PATH, |list| {
            says(list, "False") == 1 && says(list, "True") == 9 && count(list, "i:2") == 1
        })
        .await;
    assert_eq!(count(&list, "i:1"), 9);
}
