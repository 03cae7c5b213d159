//! Who may ask for what.

use crate::edge::{Edge, PODS, UPGRADES, direct, upgrade_path};
use http::Method;
use serde_json::{Value, json};

const PULL: &str = "/openyurt.io/v1/namespaces/default/pods/agent-old/imagepull";

/// W1: whoever reaches the admin port could have pods deleted and manifests overwritten.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn w1_nobody_asks_for_upgrades_without_a_right() {
    let edge = Edge::start(|_| {}).await;
    let upgrade = upgrade_path("agent-old");
    for (method, path) in [
        ("GET", "/pods"),
        ("GET", UPGRADES),
        ("POST", &upgrade),
        ("POST", PULL),
    ] {
        let Some((code, said)) = edge.as_nobody(method, path, "").await else {
            break;
        };
        assert_eq!(code, 401, "{path}: {said}");
        assert!(
            said.contains("bring a bearer token") && said.contains("Bearer realm"),
            "{said}"
        );
    }
    let ask = async |method: &Method, path: &str, token: &str| {
        let answer = edge.ask(method.clone(), path, Some(token)).await;
        (answer.status, answer.text())
    };
    let (get, post) = (Method::GET, Method::POST);
    for token in ["yurt-ota-00", "nonsense"] {
        for (method, path) in [(&get, "/pods"), (&post, upgrade.as_str()), (&post, PULL)] {
            let (code, said) = ask(method, path, token).await;
            assert_eq!(code, 401, "{path} {token}: {said}");
        }
    }
    // Seeing is not changing.
    assert_eq!(ask(&get, "/pods", "guest-token").await.0, 200);
    for path in [upgrade.as_str(), PULL] {
        let (code, said) = ask(&post, path, "guest-token").await;
        assert_eq!(code, 403, "{said}");
        assert!(
            said.contains("update or patch pod default/agent-old"),
            "{said}"
        );
    }
    assert!(
        edge.pods().await.contains(&"agent-old".to_owned()),
        "nothing happened"
    );
    assert!(
        edge.metric("node_yurthub_ota_refused_total{reason=\"no_right\"}")
            .await
            >= 2.0
    );
    assert!(
        edge.metric("node_yurthub_ota_refused_total{reason=\"bad_token\"}")
            .await
            >= 6.0
    );

    let owner = edge.owner_token();
    assert_eq!(ask(&get, "/pods", &owner).await.0, 200);
    // Only the owner at the node confirms.
    let (code, said) = ask(&post, &format!("{UPGRADES}/x/confirm"), &owner).await;
    assert_eq!(code, 403, "{said}");
    assert_eq!(
        edge.on_socket(Method::POST, &format!("{UPGRADES}/x/confirm"))
            .await
            .status,
        404
    );
    for (method, path, code) in [
        (Method::GET, upgrade.as_str(), 405),
        (Method::DELETE, "/pods", 405),
        (Method::GET, "/openyurt.io/v1/nonsense", 404),
        (
            Method::POST,
            "/openyurt.io/v1/namespaces/default/pods/..%2f..%2fx/upgrade",
            400,
        ),
        (
            Method::POST,
            "/openyurt.io/v1/namespaces/de_fault/pods/x/upgrade",
            400,
        ),
    ] {
        let answer = edge.ask(method, path, Some(&owner)).await;
        assert_eq!(answer.status, code, "{path}: {}", answer.text());
    }
    let (code, said) = ask(&post, &upgrade, "dev-token").await;
    assert_eq!(
        (code, said.as_str()),
        (200, "Start updating pod default/agent-old")
    );
    let job = edge.jobs().await.pop().unwrap();
    assert!(
        job["askedBy"].as_str().unwrap().starts_with("user "),
        "{job}"
    );
    // What a user brought is nowhere on the node.
    edge.until_job(job["id"].as_str().unwrap(), "done").await;
    assert!(!holds(edge.root(), b"dev-token"));
    edge.stop().await;
}

fn holds(dir: &std::path::Path, secret: &[u8]) -> bool {
    std::fs::read_dir(dir).unwrap().any(|entry| {
        let entry = entry.unwrap();
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            return holds(&entry.path(), secret);
        }
        kind.is_file()
            && std::fs::read(entry.path())
                .unwrap()
                .windows(secret.len())
                .any(|part| part == secret)
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_switch_for_old_callers_lets_them_in_on_loopback_alone() {
    let edge = Edge::start(|config| config.ota.anonymous_loopback = true).await;
    if let Some((code, said)) = edge.as_nobody("GET", "/pods", "").await {
        assert_eq!(code, 200, "{said}");
        // Who shows credentials is held to them.
        let (code, said) = edge
            .as_nobody("GET", "/pods", "Authorization: Bearer nonsense\\r\\n")
            .await
            .unwrap();
        assert_eq!(code, 401, "{said}");
        let (code, said) = edge
            .as_nobody("POST", &format!("{UPGRADES}/x/confirm"), "")
            .await
            .unwrap();
        assert_eq!(code, 403, "{said}");
    }
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_and_image_pulls_by_rest() {
    let mut edge = Edge::start(|_| {}).await;
    let listed = edge.ask(Method::GET, "/pods", None).await;
    assert_eq!(listed.content_type(), "application/json");
    let find = |list: &Value| {
        let items = list["items"].as_array().unwrap();
        items
            .iter()
            .find(|pod| pod["metadata"]["name"] == "agent-old")
            .cloned()
            .unwrap()
    };
    assert_eq!(
        (&listed.json()["kind"], &listed.json()["apiVersion"]),
        (&"PodList".into(), &"v1".into())
    );
    assert_eq!(find(&listed.json())["spec"]["nodeName"], "edge-1");

    let asked = edge.ask(Method::POST, PULL, None).await;
    assert_eq!(
        (asked.status, asked.text().as_str()),
        (200, "Image pre-pull requested for pod default/agent-old")
    );
    let (_, pod) = edge.get(&format!("{PODS}/agent-old")).await;
    let condition = |kind: &str| {
        let conditions = pod["status"]["conditions"].as_array().unwrap();
        conditions
            .iter()
            .find(|c| c["type"] == kind)
            .cloned()
            .unwrap_or_default()
    };
    assert_eq!(condition("PodImageReady")["status"], "False");
    assert_eq!(
        condition("PodImageReady")["message"],
        "controllerrevision: r2"
    );
    assert_eq!(
        condition("PodNeedUpgrade")["status"],
        "True",
        "the others stay"
    );
    assert_eq!(condition("Ready")["status"], "True");
    // Not before the images are there, and those of this revision.
    let refused = edge.upgrade("agent-old").await;
    assert_eq!(refused.status, 403, "{}", refused.text());
    for (status, revision, code) in [("True", "r1", 403), ("True", "r2", 200)] {
        let message = format!("controllerrevision: {revision}");
        edge.condition(
            "agent-old",
            json!({"type": "PodImageReady", "status": status, "message": message}),
        )
        .await;
        let answer = edge.upgrade("agent-old").await;
        assert_eq!(answer.status, code, "{}", answer.text());
    }
    edge.cut().await;
    assert_eq!(edge.ask(Method::GET, "/pods", None).await.status, 200);
    let away = edge.ask(Method::POST, PULL, None).await;
    assert_eq!(
        (away.status, away.text().as_str()),
        (
            503,
            "OTA upgrade is not allowed when node is disconnected to cloud"
        )
    );
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_that_cannot_be_upgraded_are_refused_with_a_reason() {
    let edge = Edge::start(|_| {}).await;
    let container = json!([{"name": "c", "image": "a:1"}]);
    for (name, node, owner) in [
        (
            "far",
            "edge-2",
            json!([{"apiVersion": "apps/v1", "kind": "DaemonSet", "name": "agent", "uid": edge.set_uid}]),
        ),
        ("alone", "edge-1", json!([])),
        (
            "owned",
            "edge-1",
            json!([{"apiVersion": "v1", "kind": "Node", "name": "edge-1", "uid": edge.node_uid}]),
        ),
        (
            "foreign",
            "edge-1",
            json!([{"apiVersion": "v1", "kind": "ConfigMap", "name": "x", "uid": edge.set_uid}]),
        ),
    ] {
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "ownerReferences": owner},
            "spec": {"nodeName": node, "containers": container}});
        let (status, made) = direct(&edge.cloud, Method::POST, PODS, Some(pod)).await;
        assert_eq!(status, 201, "{made}");
        edge.needs_upgrade(name, "r2").await;
    }
    edge.pod("current", "a:2", "r2").await;
    for (pod, code, why) in [
        ("nobody", 500, "not found"),
        ("far", 500, "not found on node edge-1"),
        ("alone", 400, "Pod has no owner references"),
        ("foreign", 400, "owned by a ConfigMap"),
        ("owned", 500, "not named after node edge-1"),
        ("current", 403, "PodNeedUpgrade"),
    ] {
        let answer = edge.upgrade(pod).await;
        assert_eq!(answer.status, code, "{pod}: {}", answer.text());
        assert!(answer.text().contains(why), "{pod}: {}", answer.text());
        let (status, pod) = edge.get(&format!("{PODS}/{pod}")).await;
        assert!(status == 404 || pod["metadata"]["deletionTimestamp"].is_null());
    }
    assert!(edge.jobs().await.is_empty());
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn users_keep_their_rights_while_cut_and_are_held_to_them_afterwards() {
    let mut edge = Edge::start(|_| {}).await;
    let ask = async |edge: &Edge, pod: &str, token: &str| {
        let answer = edge
            .ask(Method::POST, &upgrade_path(pod), Some(token))
            .await;
        (answer.status, answer.text())
    };
    // The node hears what they may, by another pod.
    for (token, code) in [("dev-token", 500), ("guest-token", 403)] {
        assert_eq!(ask(&edge, "nobody", token).await.0, code, "{token}");
    }
    edge.cut().await;
    let (code, said) = ask(&edge, "agent-old", "guest-token").await;
    assert_eq!(code, 401, "nobody knows them: {said}");
    assert_eq!(ask(&edge, "agent-old", "unheard-of").await.0, 401);
    let (code, kept) = ask(&edge, "agent-old", "dev-token").await;
    assert_eq!(code, 202, "{kept}");
    let job: Value = serde_json::from_str(&kept).unwrap();
    assert_eq!(job["askedBy"], "user dev");
    // Meanwhile they lose their right.
    let binding = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings/changes-pods";
    let (status, bound) = direct(&edge.cloud, Method::GET, binding, None).await;
    assert_eq!(status, 200);
    assert_eq!(
        direct(&edge.cloud, Method::DELETE, binding, None).await.0,
        200
    );
    edge.heal().await;
    let failed = edge.until_job(job["id"].as_str().unwrap(), "failed").await;
    assert_eq!(
        failed["reason"], "user dev may not change this pod",
        "{failed}"
    );
    assert!(edge.pods().await.contains(&"agent-old".to_owned()));
    assert_eq!(ask(&edge, "agent-old", "dev-token").await.0, 403);
    edge.cut().await;
    assert_eq!(
        ask(&edge, "agent-old", "dev-token").await.0,
        403,
        "a refusal counts while cut as well"
    );
    edge.heal().await;

    let mut again = bound.clone();
    again["metadata"] = json!({"name": "changes-pods"});
    let bindings = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings";
    assert_eq!(
        direct(&edge.cloud, Method::POST, bindings, Some(again))
            .await
            .0,
        201
    );
    assert_eq!(ask(&edge, "nobody", "dev-token").await.0, 500);
    edge.cut().await;
    let (code, kept) = ask(&edge, "agent-old", "dev-token").await;
    assert_eq!(code, 202, "{kept}");
    let job: Value = serde_json::from_str(&kept).unwrap();
    edge.heal().await;
    edge.until_job(job["id"].as_str().unwrap(), "done").await;
    edge.stop().await;
}
