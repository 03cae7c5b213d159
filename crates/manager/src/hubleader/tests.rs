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
fn a_leader_with_a_new_address_leads_on() {
    let mut pool = pool(1);
    pool["status"]["leaderEndpoints"] = json!([{"nodeName": "b", "address": "10.0.0.2"}]);
    let members = [node("a", true, 1), node("b", true, 9)].map(Arc::new);
    let leaders = leaders(&pool, &members);
    assert_eq!(leaders, [json!({"nodeName": "b", "address": "10.0.0.9"})]);
}

#[test]
fn the_condition_says_whether_there_are_leaders_and_why_not() {
    let now = Timestamp::UNIX_EPOCH;
    let mut pool = pool(2);
    let nodes = |ready: bool| [node("a", true, 1), node("b", ready, 2)].map(Arc::new);
    let mut after = |members: &[Arc<Value>], change: Value| -> Option<Value> {
        for (field, value) in change.as_object().into_iter().flatten() {
            pool["spec"][field] = value.clone();
        }
        let patch = plan(&pool, members, now)?;
        for (field, value) in patch["status"].as_object().into_iter().flatten() {
            pool["status"][field] = value.clone();
        }
        assert_eq!(plan(&pool, members, now), None, "written once");
        Some(patch["status"].clone())
    };
    let reason = |status: Option<Value>| {
        let status = status.expect("written");
        let condition = condition::find(&status, LEADER_READY).expect("there");
        (condition["status"].clone(), condition["reason"].clone())
    };
    let is = |status: &str, reason: &str| (json!(status), json!(reason));
    assert_eq!(
        reason(after(&nodes(false), json!({}))),
        is("False", "NotEnoughCandidates")
    );
    assert_eq!(
        reason(after(&nodes(true), json!({}))),
        is("True", "LeadersElected")
    );
    assert_eq!(reason(after(&[], json!({}))), is("False", "NoCandidates"));
    let none = after(&nodes(true), json!({"leaderElectionStrategy": "mark"}));
    assert_eq!(reason(none), is("False", "NoLeaderSelector"));
    let marked = json!({"leaderNodeLabelSelector": {"apps.openyurt.io/nodepool": "p"}});
    assert_eq!(
        reason(after(&nodes(true), marked)),
        is("True", "LeadersElected")
    );
    let off = after(&nodes(true), json!({"enableLeaderElection": false})).expect("written");
    assert_eq!(off["conditions"], Value::Null, "taken away");
    assert_eq!(
        (&off["leaderNum"], &off["leaderEndpoints"]),
        (&json!(0), &json!([]))
    );
    assert_eq!(off["leaderLastElectedTime"], "1970-01-01T00:00:00Z");
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
    assert!(leaders(&of, &members).is_empty(), "nobody is marked");
    of["spec"]["leaderNodeLabelSelector"] = json!({"role": "leader"});
    assert_eq!(names(&leaders(&of, &members)), ["c"]);
}

#[tokio::test]
async fn hubs_are_told_who_leads() {
    let controllers = "nodepool-controller,hubleader-controller,hubleaderconfig-controller,hubleaderrbac-controller";
    let stage = Stage::start_confined(controllers, crate::Settings::default()).await;
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
    // Somebody else's change of it is undone, a change of the pool told.
    let wrong = json!({"data": {"leaders": "x/1.2.3.4"}, "metadata": {"labels": {"openyurt.io/configmap-name": null}}});
    stage.kube.merge(map, &wrong).await.expect("changed");
    stage
        .until(map, |map| {
            map["data"]["leaders"] != "x/1.2.3.4"
                && map["metadata"]["labels"]["openyurt.io/configmap-name"] == "leader-hub-p"
        })
        .await;
    let pool = "/apis/apps.openyurt.io/v1beta2/nodepools/p";
    let off = json!({"spec": {"enableLeaderElection": false}});
    stage.kube.merge(pool, &off).await.expect("off");
    stage
        .until(map, |map| {
            map["data"]["enable-leader-election"] == "false" && map["data"]["leaders"] == ""
        })
        .await;
    stage
        .until(pool, |pool| pool["status"]["leaderNum"] == 0)
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
    stage.quiet(pool).await;
    stage.quiet(map).await;
    // What no pool shares any more nobody needs to read.
    stage.define_pools(&["q"]).await;
    let less = json!({"spec": {"poolScopeMetadata": [{"group": "", "version": "v1", "resource": "configmaps"}]}});
    stage.kube.merge(pool, &less).await.expect("changed");
    let shares = |role: &Value, resource: &str| role["rules"].to_string().contains(resource);
    stage
        .until(role, |role| {
            shares(role, "configmaps") && shares(role, "services")
        })
        .await;
    stage
        .kube
        .delete("/apis/apps.openyurt.io/v1beta2/nodepools/q")
        .await
        .expect("deleted");
    stage.until(role, |role| !shares(role, "services")).await;
}
