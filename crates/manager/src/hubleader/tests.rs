use super::*;
use crate::stage::Stage;

pub(super) fn node(name: &str, ready: bool, last: u8) -> Value {
    let ready = if ready { "True" } else { "False" };
    json!({"metadata": {"name": name, "labels": {"apps.openyurt.io/nodepool": "p"}},
        "status": {"conditions": [{"type": "Ready", "status": ready}],
            "addresses": [{"type": "Hostname", "address": name}, {"type": "InternalIP", "address": format!("10.0.0.{last}")}]}})
}

pub(super) fn pool(replicas: u64) -> Value {
    json!({"metadata": {"name": "p"}, "spec": {"enableLeaderElection": true, "interConnectivity": true,
        "leaderReplicas": replicas, "poolScopeMetadata": [
            {"group": "discovery.k8s.io", "version": "v1", "resource": "endpointslices"},
            {"group": "", "version": "v1", "resource": "services"}]}})
}

fn names(leaders: &[Value]) -> Vec<&str> {
    leaders
        .iter()
        .filter_map(|leader| leader["nodeName"].as_str())
        .collect()
}

#[test]
fn leading_is_sticky() {
    let nodes = |ready: [bool; 3]| -> Vec<Arc<Value>> {
        let named = ["a", "b", "c"].into_iter().zip(ready).zip(1..);
        named
            .map(|((name, ready), last)| Arc::new(node(name, ready, last)))
            .collect()
    };
    let mut one = pool(1);
    let first = leaders(&one, &nodes([false, true, true]));
    assert_eq!(names(&first), ["b"]);
    one["status"]["leaderEndpoints"] = first.into();
    assert_eq!(
        names(&leaders(&one, &nodes([true, true, true]))),
        ["b"],
        "a came back and waits"
    );
    assert_eq!(names(&leaders(&one, &nodes([true, false, true]))), ["a"]);
    one["spec"]["leaderReplicas"] = 2.into();
    assert_eq!(
        names(&leaders(&one, &nodes([true, true, true]))),
        ["b", "a"]
    );
    one["spec"]["leaderReplicas"] = (-1).into();
    assert_eq!(names(&leaders(&one, &nodes([true, true, true]))), ["b"]);
    one["spec"]["enableLeaderElection"] = false.into();
    assert!(leaders(&one, &nodes([true, true, true])).is_empty());
}

#[test]
fn only_marked_nodes_and_those_with_hubs_lead() {
    let mut marked = node("c", true, 3);
    marked["metadata"]["labels"]["role"] = "leader".into();
    let mut light = node("a", true, 1);
    light["metadata"]["labels"][LIGHT] = "true".into();
    let members = [light, node("b", true, 2), marked].map(Arc::new);
    let mut of = pool(3);
    assert_eq!(names(&leaders(&of, &members)), ["b", "c"]);
    of["spec"]["leaderElectionStrategy"] = "mark".into();
    of["spec"]["leaderNodeLabelSelector"] = json!({"role": "leader"});
    assert_eq!(names(&leaders(&of, &members)), ["c"]);
}

#[tokio::test]
async fn hubs_are_told_who_leads() {
    let controllers = "nodepool-controller,hubleader-controller,hubleaderconfig-controller,hubleaderrbac-controller";
    let stage = Stage::start(controllers).await;
    stage.define_pools(&["p"]).await;
    for (name, last) in [("a", 1), ("b", 2)] {
        let node = node(name, true, last);
        stage.create("/api/v1/nodes", node.clone()).await;
        let status = json!({"status": node["status"]});
        stage
            .kube
            .merge(&format!("/api/v1/nodes/{name}/status"), &status)
            .await
            .expect("status");
    }
    let map = "/api/v1/namespaces/kube-system/configmaps/leader-hub-p";
    let told = stage
        .until(map, |map| {
            let data = &map["data"];
            let named = |key: &str| {
                data[key]
                    .as_str()
                    .unwrap_or_default()
                    .split(',')
                    .filter(|e| !e.is_empty())
                    .count()
            };
            named("leaders") == 1 && named("candidates") == 2
        })
        .await;
    assert_eq!(
        told["metadata"]["labels"]["openyurt.io/configmap-name"],
        "leader-hub-p"
    );
    assert_eq!(told["metadata"]["ownerReferences"][0]["kind"], "NodePool");
    let leader = told["data"]["leaders"]
        .as_str()
        .and_then(|l| l.split('/').next())
        .expect("a leader")
        .to_owned();
    let silent = json!({"status": {"conditions": [{"type": "Ready", "status": "Unknown"}]}});
    stage
        .kube
        .merge(&format!("/api/v1/nodes/{leader}/status"), &silent)
        .await
        .expect("silent");
    stage
        .until(map, |map| {
            !map["data"]["leaders"]
                .as_str()
                .unwrap_or_default()
                .starts_with(&leader)
        })
        .await;
    stage.kube.delete(map).await.expect("deleted");
    stage
        .until(map, |map| map["data"]["leaders"].is_string())
        .await;
    let role = "/apis/rbac.authorization.k8s.io/v1/clusterroles/yurt-hub-multiplexer";
    stage
        .until(role, |role| {
            role["rules"]
                .as_array()
                .is_some_and(|rules| rules.len() == 2)
        })
        .await;
    stage
        .quiet("/apis/apps.openyurt.io/v1beta2/nodepools/p")
        .await;
}
