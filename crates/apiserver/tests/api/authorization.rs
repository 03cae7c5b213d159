//! Roles, bindings, nodes and tokens, seen by those they are about.

use crate::client::{Answer, CONFIG_MAPS, Cluster, PODS, config_map, pod};
use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::header;
use serde_json::{Value, json};
use yurt_apiserver::{Config, authn::User};

const RBAC: &str = "/apis/rbac.authorization.k8s.io/v1";
const GROUP: &str = "rbac.authorization.k8s.io";
const NODES: &str = "/api/v1/nodes";
const SECRETS: &str = "/api/v1/namespaces/default/secrets";

/// A server that knows, by tokens of their names: `jane`, `node-a` and `node-b`.
async fn cluster() -> Cluster {
    let node = |name: &str| User::new(&format!("system:node:{name}"), &["system:nodes"]);
    Cluster::with(Config {
        tokens: vec![
            ("jane".into(), User::new("jane", &["devs"])),
            ("node-a".into(), node("a")),
            ("node-b".into(), node("b")),
        ],
        root_ca: Some("pem".into()),
        ..Config::default()
    })
    .await
}

async fn send(cluster: &Cluster, token: &str, method: &str, path: &str, body: &Value) -> Answer {
    let media = match method {
        "PATCH" => "application/merge-patch+json",
        _ => "application/json",
    };
    let body = if body.is_null() {
        Bytes::new()
    } else {
        body.to_string().into()
    };
    let mut request = http::Request::builder()
        .method(method)
        .uri(path)
        .header(header::CONTENT_TYPE, media);
    if !token.is_empty() {
        request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
    }
    Answer::of(cluster.raw(request, body).await).await
}

async fn get(cluster: &Cluster, token: &str, path: &str) -> Answer {
    send(cluster, token, "GET", path, &Value::Null).await
}

async fn post(cluster: &Cluster, token: &str, path: &str, body: &Value) -> Answer {
    send(cluster, token, "POST", path, body).await
}

fn role(name: &str, resource: &str, verbs: &[&str]) -> Value {
    json!({"metadata": {"name": name}, "rules": [
        {"apiGroups": [""], "resources": [resource], "verbs": verbs}]})
}

fn binding(name: &str, kind: &str, role: &str, user: &str) -> Value {
    json!({"metadata": {"name": name}, "roleRef": {"apiGroup": GROUP, "kind": kind, "name": role},
        "subjects": [{"apiGroup": GROUP, "kind": "User", "name": user}]})
}

fn message(answer: Answer, code: u16) -> String {
    answer.expect(code)["message"]
        .as_str()
        .expect("a message")
        .to_owned()
}

#[tokio::test]
async fn a_binding_gives_and_its_deletion_takes() {
    let cluster = cluster().await;
    let local = format!("{RBAC}/namespaces/default/rolebindings");
    assert_eq!(
        message(get(&cluster, "jane", PODS).await, 403),
        "pods is forbidden: User \"jane\" cannot list resource \"pods\" in API group \"\" in the namespace \"default\""
    );
    let grant = binding("b", "Role", "reader", "jane");
    cluster.post(&local, &grant).await.expect(201);
    assert_eq!(
        message(get(&cluster, "jane", PODS).await, 403),
        "pods is forbidden: User \"jane\" cannot list resource \"pods\" in API group \"\" in the namespace \"default\": RBAC: role.rbac.authorization.k8s.io \"reader\" not found"
    );
    let roles = format!("{RBAC}/namespaces/default/roles");
    cluster
        .post(&roles, &role("reader", "pods", &["get", "list"]))
        .await
        .expect(201);
    get(&cluster, "jane", PODS).await.expect(200);
    get(&cluster, "jane", "/api/v1/pods").await.expect(403);
    get(&cluster, "jane", CONFIG_MAPS).await.expect(403);
    let review = json!({"spec": {"user": "jane", "resourceAttributes":
        {"verb": "list", "resource": "pods", "namespace": "default"}}});
    let reviews = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
    assert_eq!(
        cluster.post(reviews, &review).await.expect(201)["status"],
        json!({"allowed": true,
            "reason": "RBAC: allowed by RoleBinding \"b/default\" of Role \"reader\" to User \"jane\""})
    );
    cluster.delete(&format!("{local}/b")).await.expect(200);
    get(&cluster, "jane", PODS).await.expect(403);
}

#[tokio::test]
async fn the_first_roles_are_there_and_mended() {
    let dir = std::env::temp_dir().join(format!("yurt-roles-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&dir);
    let cluster = Cluster::open(&dir).await;
    let roles = format!("{RBAC}/clusterroles");
    let view = cluster.get(&format!("{roles}/view")).await.expect(200);
    let admin = cluster.get(&format!("{roles}/admin")).await.expect(200);
    let count = |role: &Value| role["rules"].as_array().map_or(0, Vec::len);
    assert!(
        count(&view) >= 10 && count(&admin) > count(&view),
        "aggregated"
    );
    assert_eq!(
        view["metadata"]["labels"]["kubernetes.io/bootstrapping"],
        "rbac-defaults"
    );
    let all = cluster.get(&roles).await.expect(200);
    assert!(all["items"].as_array().map_or(0, Vec::len) >= 65);

    let scheduler = format!("{roles}/system:kube-scheduler");
    let none = json!({"rules": [{"apiGroups": [""], "resources": ["nodes"], "verbs": ["*"]}]});
    cluster.merge(&scheduler, &none).await.expect(200);
    let mine = json!({"rules": [], "metadata": {"annotations":
        {"rbac.authorization.kubernetes.io/autoupdate": "false"}}});
    cluster
        .merge(&format!("{roles}/system:kube-dns"), &mine)
        .await
        .expect(200);
    cluster.stop().await;

    let cluster = Cluster::open(&dir).await;
    let mended = cluster.get(&scheduler).await.expect(200);
    assert!(count(&mended) > 10, "{mended}");
    assert_eq!(
        mended["rules"][0]["verbs"],
        json!(["*"]),
        "what was added stays"
    );
    let kept = cluster.get(&format!("{roles}/system:kube-dns")).await;
    assert_eq!(count(&kept.expect(200)), 0);
    cluster.stop().await;
    let _ = std::fs::remove_dir_all(&dir);
}

#[tokio::test]
async fn a_labelled_role_reaches_the_aggregated_ones() {
    let cluster = cluster().await;
    let roles = format!("{RBAC}/clusterroles");
    let mut own = role("crons", "crontabs", &["get"]);
    own["metadata"]["labels"] = json!({"rbac.authorization.k8s.io/aggregate-to-view": "true"});
    cluster.post(&roles, &own).await.expect(201);
    let mut watch = cluster
        .watch(&format!(
            "{roles}?watch=true&fieldSelector=metadata.name%3Dadmin&resourceVersion=0"
        ))
        .await;
    let aggregated = async {
        loop {
            let (_, admin) = watch.next().await.expect("an event");
            if admin["rules"].to_string().contains("crontabs") {
                return;
            }
        }
    };
    tokio::time::timeout(crate::client::PATIENCE, aggregated)
        .await
        .expect("view, then edit, then admin");
}

#[tokio::test]
async fn nobody_grants_more_than_he_holds() {
    let cluster = cluster().await;
    let roles = format!("{RBAC}/namespaces/default/roles");
    let bindings = format!("{RBAC}/namespaces/default/rolebindings");
    cluster
        .post(&bindings, &binding("jane", "ClusterRole", "admin", "jane"))
        .await
        .expect(201);
    let jane = async |method: &'static str, path: String, body: Value| {
        send(&cluster, "jane", method, &path, &body).await
    };
    // What she holds she gives.
    let pods = role("pods", "pods", &["get"]);
    jane("POST", roles.clone(), pods.clone()).await.expect(201);
    let nodes = role("nodes", "nodes", &["get", "list"]);
    assert_eq!(
        message(jane("POST", roles.clone(), nodes.clone()).await, 403),
        "roles.rbac.authorization.k8s.io \"nodes\" is forbidden: user \"jane\" (groups=[\"devs\" \"system:authenticated\"]) is attempting to grant RBAC permissions not currently held:\n{APIGroups:[\"\"], Resources:[\"nodes\"], Verbs:[\"get\" \"list\"]}"
    );
    let wider = json!({"rules": nodes["rules"]});
    jane("PATCH", format!("{roles}/pods"), wider)
        .await
        .expect(403);
    jane(
        "POST",
        bindings.clone(),
        binding("a", "Role", "pods", "joe"),
    )
    .await
    .expect(201);
    let all = binding("b", "ClusterRole", "cluster-admin", "jane");
    assert!(
        message(jane("POST", bindings.clone(), all.clone()).await, 403).starts_with(
            "rolebindings.rbac.authorization.k8s.io \"b\" is forbidden: user \"jane\""
        )
    );
    let lost = binding("c", "ClusterRole", "lost", "joe");
    assert_eq!(
        message(jane("POST", bindings.clone(), lost).await, 404),
        "clusterrole.rbac.authorization.k8s.io \"lost\" not found"
    );
    // With the verbs `escalate` and `bind` she may.
    let rights = json!({"metadata": {"name": "rights"}, "rules": [
        {"apiGroups": [GROUP], "resources": ["roles"], "verbs": ["escalate"]},
        {"apiGroups": [GROUP], "resources": ["clusterroles"], "verbs": ["bind"], "resourceNames": ["cluster-admin"]}]});
    cluster.post(&roles, &rights).await.expect(201);
    cluster
        .post(&bindings, &binding("rights", "Role", "rights", "jane"))
        .await
        .expect(201);
    jane("POST", roles.clone(), nodes).await.expect(201);
    jane("POST", bindings.clone(), all).await.expect(201);
    // And what a binding refers to stays.
    let other = json!({"roleRef": {"name": "view"}});
    let refused = jane("PATCH", format!("{bindings}/b"), other).await;
    assert!(message(refused, 422).contains("cannot change roleRef"));
}

#[tokio::test]
async fn aggregation_is_for_those_who_hold_everything() {
    let cluster = cluster().await;
    // `*` would be `escalate` too.
    let writes = json!({"metadata": {"name": "rights"}, "rules": [
        {"apiGroups": [GROUP], "resources": ["clusterroles"], "verbs": ["create", "update", "patch"]}]});
    cluster
        .post(&format!("{RBAC}/clusterroles"), &writes)
        .await
        .expect(201);
    cluster
        .post(
            &format!("{RBAC}/clusterrolebindings"),
            &binding("r", "ClusterRole", "rights", "jane"),
        )
        .await
        .expect(201);
    let sum = json!({"metadata": {"name": "sum"}, "aggregationRule": {
        "clusterRoleSelectors": [{"matchLabels": {"a": "b"}}]}});
    assert_eq!(
        message(
            post(&cluster, "jane", &format!("{RBAC}/clusterroles"), &sum).await,
            403
        ),
        "clusterroles.rbac.authorization.k8s.io \"sum\" is forbidden: must have cluster-admin privileges to use the aggregationRule"
    );
}

fn on_node(name: &str, node: &str, secret: &str) -> Value {
    let mut pod = pod(name, node);
    pod["spec"]["volumes"] = json!([{"name": "v", "secret": {"secretName": secret}}]);
    pod
}

#[tokio::test]
async fn a_node_reads_what_its_pods_refer_to() {
    let cluster = cluster().await;
    for secret in ["mine", "other"] {
        cluster
            .post(SECRETS, &json!({"metadata": {"name": secret}}))
            .await
            .expect(201);
    }
    cluster
        .post(PODS, &on_node("p", "a", "mine"))
        .await
        .expect(201);
    cluster
        .post(PODS, &on_node("q", "b", "other"))
        .await
        .expect(201);
    let mine = format!("{SECRETS}/mine");
    get(&cluster, "node-a", &mine).await.expect(200);
    assert_eq!(
        message(get(&cluster, "node-b", &mine).await, 403),
        "secrets \"mine\" is forbidden: User \"system:node:b\" cannot get resource \"secrets\" in API group \"\" in the namespace \"default\": no relationship found between node 'b' and this object"
    );
    get(&cluster, "node-a", SECRETS).await.expect(403);
    let one = format!("{SECRETS}?fieldSelector=metadata.name%3Dmine");
    get(&cluster, "node-a", &one).await.expect(200);

    let own = |node: &str| format!("/api/v1/pods?fieldSelector=spec.nodeName%3D{node}");
    get(&cluster, "node-a", &own("a")).await.expect(200);
    assert!(
        message(get(&cluster, "node-a", &own("b")).await, 403)
            .ends_with("can only list/watch pods with spec.nodeName field selector")
    );
    get(&cluster, "node-a", &format!("{PODS}/p"))
        .await
        .expect(200);
    get(&cluster, "node-a", &format!("{PODS}/q"))
        .await
        .expect(403);
    get(&cluster, "node-a", "/api/v1/services")
        .await
        .expect(200);

    // Gone with the pod.
    cluster
        .delete_with(&format!("{PODS}/p"), &json!({"gracePeriodSeconds": 0}))
        .await
        .expect(200);
    get(&cluster, "node-a", &mine).await.expect(403);
}

#[tokio::test]
async fn a_node_writes_what_is_its_own() {
    let cluster = cluster().await;
    let node = |name: &str, labels: Value| json!({"metadata": {"name": name, "labels": labels}});
    let a = async |method: &'static str, path: &str, body: Value| {
        send(&cluster, "node-a", method, path, &body).await
    };
    assert_eq!(
        message(a("POST", NODES, node("b", json!({}))).await, 403),
        "nodes \"b\" is forbidden: node \"a\" is not allowed to modify node \"b\""
    );
    assert_eq!(
        message(
            a(
                "POST",
                NODES,
                node("a", json!({"node-role.kubernetes.io/master": ""}))
            )
            .await,
            403
        ),
        "nodes \"a\" is forbidden: node \"a\" is not allowed to set the following labels: node-role.kubernetes.io/master"
    );
    let labels = json!({"kubernetes.io/hostname": "a", "apps.openyurt.io/nodepool": "p"});
    let created = a("POST", NODES, node("a", labels)).await.expect(201);
    let own = format!("{NODES}/a");
    let taints = json!({"spec": {"taints": [{"key": "k", "effect": "NoSchedule"}]}});
    assert_eq!(
        message(a("PATCH", &own, taints).await, 403),
        "nodes \"a\" is forbidden: node \"a\" is not allowed to modify taints"
    );
    let status = json!({"status": {"phase": "Running"}});
    a("PATCH", &format!("{own}/status"), status)
        .await
        .expect(200);
    send(
        &cluster,
        "node-b",
        "PATCH",
        &own,
        &json!({"metadata": {"labels": {"x": "y"}}}),
    )
    .await
    .expect(403);

    let leases = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";
    a("POST", leases, json!({"metadata": {"name": "a"}}))
        .await
        .expect(201);
    assert_eq!(
        message(
            a("POST", leases, json!({"metadata": {"name": "b"}})).await,
            403
        ),
        "leases.coordination.k8s.io \"b\" is forbidden: can only access node lease with the same name as the requesting node"
    );

    assert_eq!(
        message(a("POST", PODS, pod("p", "a")).await, 403),
        "pods \"p\" is forbidden: pod does not have \"kubernetes.io/config.mirror\" annotation, node \"a\" can only create mirror pods"
    );
    let mut mirror = pod("p", "a");
    mirror["metadata"]["annotations"] = json!({"kubernetes.io/config.mirror": "x",
        "kubernetes.io/config.source": "file", "kubernetes.io/config.hash": "x"});
    mirror["metadata"]["ownerReferences"] = json!([{"apiVersion": "v1", "kind": "Node",
        "name": "a", "uid": created["metadata"]["uid"], "controller": true}]);
    a("POST", PODS, mirror).await.expect(201);
    a(
        "PATCH",
        &format!("{PODS}/p/status"),
        json!({"status": {"phase": "Running"}}),
    )
    .await
    .expect(200);
    let refused = send(
        &cluster,
        "node-b",
        "DELETE",
        &format!("{PODS}/p"),
        &Value::Null,
    )
    .await;
    assert_eq!(
        message(refused, 403),
        "pods \"p\" is forbidden: node \"b\" can only delete pods with spec.nodeName set to itself"
    );
    a(
        "DELETE",
        &format!("{PODS}/p"),
        json!({"gracePeriodSeconds": 0}),
    )
    .await
    .expect(200);
}

#[tokio::test]
async fn a_node_gets_tokens_for_its_pods_only() {
    let cluster = cluster().await;
    let mine = cluster.post(PODS, &pod("p", "a")).await.expect(201);
    let other = cluster.post(PODS, &pod("q", "b")).await.expect(201);
    let path = "/api/v1/namespaces/default/serviceaccounts/default/token";
    let request = |pod: &Value, audiences: Value| {
        let metadata = &pod["metadata"];
        json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {
            "audiences": audiences, "expirationSeconds": 3607, "boundObjectRef": {"apiVersion": "v1",
            "kind": "Pod", "name": metadata["name"], "uid": metadata["uid"]}}})
    };
    let ask = async |body: Value| post(&cluster, "node-a", path, &body).await;
    ask(request(&mine, json!([]))).await.expect(201);
    assert_eq!(
        message(ask(request(&other, json!([]))).await, 403),
        "serviceaccounts \"default\" is forbidden: node requested token bound to a pod scheduled on a different node"
    );
    assert!(
        message(ask(request(&mine, json!(["elsewhere"]))).await, 403)
            .contains("audience \"elsewhere\" not found in pod spec volume")
    );
    let mut unbound = request(&mine, json!([]));
    unbound["spec"]["boundObjectRef"] = Value::Null;
    assert!(message(ask(unbound).await, 403).ends_with("not bound to a pod"));
}

#[tokio::test]
async fn parts_of_an_identity_are_lent_separately() {
    let cluster = cluster().await;
    let rules = json!({"metadata": {"name": "lender"}, "rules": [
        {"apiGroups": [""], "resources": ["users"], "verbs": ["impersonate"], "resourceNames": ["joe"]},
        {"apiGroups": [""], "resources": ["groups"], "verbs": ["impersonate"], "resourceNames": ["ops"]},
        {"apiGroups": ["authentication.k8s.io"], "resources": ["userextras/scopes"], "verbs": ["impersonate"], "resourceNames": ["view"]},
        {"apiGroups": [""], "resources": ["serviceaccounts"], "verbs": ["impersonate"]}]});
    cluster
        .post(&format!("{RBAC}/clusterroles"), &rules)
        .await
        .expect(201);
    cluster
        .post(
            &format!("{RBAC}/clusterrolebindings"),
            &binding("l", "ClusterRole", "lender", "jane"),
        )
        .await
        .expect(201);
    let ask = async |headers: &[(&str, &str)]| {
        let mut request = http::Request::builder()
            .method("POST")
            .uri("/apis/authentication.k8s.io/v1/selfsubjectreviews")
            .header(header::AUTHORIZATION, "Bearer jane");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        Answer::of(cluster.raw(request, Bytes::from("{}")).await).await
    };
    let joe = ask(&[
        ("Impersonate-User", "joe"),
        ("Impersonate-Group", "ops"),
        ("Impersonate-Extra-scopes", "view"),
    ])
    .await
    .expect(201);
    assert_eq!(
        joe["status"]["userInfo"],
        json!({"username": "joe", "groups": ["ops", "system:authenticated"], "extra": {"scopes": ["view"]}})
    );
    for (headers, refused) in [
        (
            vec![("Impersonate-User", "jim")],
            "users \"jim\" is forbidden: User \"jane\" cannot impersonate resource \"users\" in API group \"\" at the cluster scope",
        ),
        (
            vec![
                ("Impersonate-User", "joe"),
                ("Impersonate-Group", "system:masters"),
            ],
            "groups \"system:masters\" is forbidden: User \"jane\" cannot impersonate resource \"groups\" in API group \"\" at the cluster scope",
        ),
        (
            vec![("Impersonate-User", "joe"), ("Impersonate-Uid", "u")],
            "uids.authentication.k8s.io \"u\" is forbidden: User \"jane\" cannot impersonate resource \"uids\" in API group \"authentication.k8s.io\" at the cluster scope",
        ),
        (
            vec![
                ("Impersonate-User", "joe"),
                ("Impersonate-Extra-scopes", "edit"),
            ],
            "userextras.authentication.k8s.io \"edit\" is forbidden: User \"jane\" cannot impersonate resource \"userextras/scopes\" in API group \"authentication.k8s.io\" at the cluster scope",
        ),
    ] {
        assert_eq!(message(ask(&headers).await, 403), refused);
    }
    let robot = ask(&[("Impersonate-User", "system:serviceaccount:default:robot")])
        .await
        .expect(201);
    assert_eq!(
        robot["status"]["userInfo"]["groups"],
        json!([
            "system:serviceaccounts",
            "system:serviceaccounts:default",
            "system:authenticated"
        ])
    );
}

#[tokio::test]
async fn reviews_that_make_no_sense_are_refused() {
    let cluster = cluster().await;
    let group = "/apis/authorization.k8s.io/v1";
    let resource = json!({"verb": "get", "resource": "pods", "namespace": "other"});
    for (path, spec, why) in [
        (
            "subjectaccessreviews",
            json!({"user": "a"}),
            "exactly one of nonResourceAttributes or resourceAttributes must be specified",
        ),
        (
            "subjectaccessreviews",
            json!({"resourceAttributes": resource}),
            "at least one of user or group must be specified",
        ),
        (
            "selfsubjectaccessreviews",
            json!({"resourceAttributes": resource, "nonResourceAttributes": {"verb": "get"}}),
            "cannot be specified in combination with resourceAttributes",
        ),
        (
            "namespaces/default/localsubjectaccessreviews",
            json!({"user": "a", "resourceAttributes": resource}),
            "must match metadata.namespace",
        ),
    ] {
        let answer = cluster
            .post(&format!("{group}/{path}"), &json!({"spec": spec}))
            .await;
        assert!(message(answer, 422).contains(why), "{why}");
    }
    let rules = format!("{group}/selfsubjectrulesreviews");
    assert_eq!(
        message(cluster.post(&rules, &json!({"spec": {}})).await, 400),
        "no namespace on request"
    );
    let node = post(
        &cluster,
        "node-a",
        &rules,
        &json!({"spec": {"namespace": "default"}}),
    )
    .await
    .expect(201);
    assert_eq!(node["status"]["incomplete"], true);
}

fn bootstrap_token(id: &str, expiration: &str) -> Value {
    let data = |text: &str| STANDARD.encode(text);
    json!({"metadata": {"name": format!("bootstrap-token-{id}")}, "type": "bootstrap.kubernetes.io/token",
        "data": {"token-id": data(id), "token-secret": data("0123456789abcdef"), "expiration": data(expiration),
            "usage-bootstrap-authentication": data("true"), "usage-bootstrap-signing": data("true"),
            "auth-extra-groups": data("system:bootstrappers:kubeadm:default-node-token")}})
}

#[tokio::test]
async fn a_bootstrap_token_introduces_a_node_and_signs_cluster_info() {
    let cluster = cluster().await;
    let secrets = "/api/v1/namespaces/kube-system/secrets";
    let info = "/api/v1/namespaces/kube-public/configmaps/cluster-info";
    let kubeconfig = get(&cluster, "", info).await.expect(200)["data"]["kubeconfig"].clone();
    assert!(
        kubeconfig
            .as_str()
            .is_some_and(|k| k.contains("certificate-authority-data"))
    );
    get(&cluster, "", "/api/v1/namespaces/kube-public/configmaps")
        .await
        .expect(403);

    cluster
        .post(secrets, &bootstrap_token("abcdef", "2999-01-01T00:00:00Z"))
        .await
        .expect(201);
    let who = post(
        &cluster,
        "abcdef.0123456789abcdef",
        "/apis/authentication.k8s.io/v1/selfsubjectreviews",
        &json!({}),
    )
    .await
    .expect(201);
    assert_eq!(
        who["status"]["userInfo"],
        json!({"username": "system:bootstrap:abcdef", "groups": ["system:bootstrappers",
            "system:bootstrappers:kubeadm:default-node-token", "system:authenticated"]})
    );
    for wrong in ["abcdef.0123456789abcdee", "abcdeg.0123456789abcdef"] {
        get(&cluster, wrong, "/version").await.expect(401);
    }
    let signature = async {
        loop {
            let data = get(&cluster, "", info).await.expect(200)["data"].clone();
            if let Some(signature) = data["jws-kubeconfig-abcdef"].as_str() {
                return signature.to_owned();
            }
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    let signature = tokio::time::timeout(crate::client::PATIENCE, signature)
        .await
        .expect("a signature");
    assert!(signature.contains(".."));

    // What has expired is nobody, and is cleaned away.
    cluster
        .post(secrets, &bootstrap_token("ghijkl", "2020-01-01T00:00:00Z"))
        .await
        .expect(201);
    get(&cluster, "ghijkl.0123456789abcdef", "/version")
        .await
        .expect(401);
    cluster
        .until(&format!("{secrets}/bootstrap-token-ghijkl"), 404)
        .await;
}

#[tokio::test]
async fn a_token_secret_is_filled_in_and_goes_with_its_account() {
    let cluster = cluster().await;
    let accounts = "/api/v1/namespaces/default/serviceaccounts";
    cluster
        .post(accounts, &json!({"metadata": {"name": "robot"}}))
        .await
        .expect(201);
    let secret = json!({"metadata": {"name": "robot", "annotations": {
        "kubernetes.io/service-account.name": "robot"}}, "type": "kubernetes.io/service-account-token"});
    cluster.post(SECRETS, &secret).await.expect(201);
    let path = format!("{SECRETS}/robot");
    let filled = async {
        loop {
            let secret = cluster.get(&path).await.expect(200);
            if let Some(token) = secret["data"]["token"].as_str() {
                return (token.to_owned(), secret);
            }
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    let (token, secret) = tokio::time::timeout(crate::client::PATIENCE, filled)
        .await
        .expect("a token");
    assert_eq!(secret["data"]["namespace"], STANDARD.encode("default"));
    assert_eq!(secret["data"]["ca.crt"], STANDARD.encode("pem"));
    let token = String::from_utf8(STANDARD.decode(token).expect("base64")).expect("text");
    let who = post(
        &cluster,
        &token,
        "/apis/authentication.k8s.io/v1/selfsubjectreviews",
        &json!({}),
    )
    .await
    .expect(201);
    assert_eq!(
        who["status"]["userInfo"]["username"],
        "system:serviceaccount:default:robot"
    );
    cluster
        .delete(&format!("{accounts}/robot"))
        .await
        .expect(200);
    get(&cluster, &token, "/version").await.expect(401);
    cluster.until(&path, 404).await;
}

/// A request for a client certificate of `system:masters` (CN `x`), made with openssl.
const MASTERS_REQUEST: &str = "LS0tLS1CRUdJTiBDRVJUSUZJQ0FURSBSRVFVRVNULS0tLS0KTUlIZ01JR0hBZ0VBTUNVeEZ6QVZCZ05WQkFvTURuTjVjM1JsYlRwdFlYTjBaWEp6TVFvd0NBWURWUVFEREFGNApNRmt3RXdZSEtvWkl6ajBDQVFZSUtvWkl6ajBEQVFjRFFnQUVReWQ2RU1Od1BlOVgzaW1SM2pEVW9hcis2Rm1RCkRIZHZaQld6ZUpycGhqVHBiVVVVeThkK2UwT1dXZ3N5dWsrS250c1VnTU9SUDdNeFQvYzB5MTFIZ3FBQU1Bb0cKQ0NxR1NNNDlCQU1DQTBnQU1FVUNJUUQ3WUxLUDViejBzU2ppMWdzRFl6ZEZGOXlNZ3cwc2tub1QrdDU4S3pEbgpKQUlnQ1lTVHRKT2R4T2VSOFJuZW5PUEdwZThSeW5MbnZkUC9UMUkyalhxWG05Yz0KLS0tLS1FTkQgQ0VSVElGSUNBVEUgUkVRVUVTVC0tLS0tCg==";

#[tokio::test]
async fn certificates_take_rights_on_their_signer() {
    let cluster = cluster().await;
    let requests = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
    let request = |name: &str, signer: &str| {
        json!({"metadata": {"name": name}, "spec": {"signerName": signer,
            "request": MASTERS_REQUEST, "usages": ["client auth"]}})
    };
    assert_eq!(
        message(
            cluster
                .post(
                    requests,
                    &request("a", "kubernetes.io/kube-apiserver-client")
                )
                .await,
            403
        ),
        "certificatesigningrequests.certificates.k8s.io \"a\" is forbidden: use of kubernetes.io/kube-apiserver-client signer with system:masters group is not allowed"
    );
    cluster
        .post(requests, &request("b", "example.com/own"))
        .await
        .expect(201);
    let rules = json!({"metadata": {"name": "approver"}, "rules": [
        {"apiGroups": ["certificates.k8s.io"], "resources": ["certificatesigningrequests/approval"], "verbs": ["update", "patch"]}]});
    cluster
        .post(&format!("{RBAC}/clusterroles"), &rules)
        .await
        .expect(201);
    cluster
        .post(
            &format!("{RBAC}/clusterrolebindings"),
            &binding("a", "ClusterRole", "approver", "jane"),
        )
        .await
        .expect(201);
    let approval = json!({"status": {"conditions": [
        {"type": "Approved", "status": "True", "reason": "r", "message": "m"}]}});
    let path = format!("{requests}/b/approval");
    assert_eq!(
        message(send(&cluster, "jane", "PATCH", &path, &approval).await, 403),
        "certificatesigningrequests.certificates.k8s.io \"b\" is forbidden: user not permitted to approve requests with signerName \"example.com/own\""
    );
    let signers = json!([{"op": "add", "path": "/rules/-", "value": {"apiGroups": ["certificates.k8s.io"],
        "resources": ["signers"], "resourceNames": ["example.com/*"], "verbs": ["approve"]}}]);
    cluster
        .patch(
            &format!("{RBAC}/clusterroles/approver"),
            "application/json-patch+json",
            &signers,
        )
        .await
        .expect(200);
    send(&cluster, "jane", "PATCH", &path, &approval)
        .await
        .expect(200);
}

#[tokio::test]
async fn everybody_may_everything_where_nothing_is_authorized() {
    let cluster = Cluster::with(Config {
        authorization: yurt_apiserver::AuthorizationMode::AlwaysAllow,
        ..Config::default()
    })
    .await;
    post(&cluster, "", CONFIG_MAPS, &config_map("a"))
        .await
        .expect(201);
}

#[tokio::test]
async fn claims_and_pods_get_what_their_classes_say() {
    let cluster = cluster().await;
    let class = json!({"metadata": {"name": "fast", "annotations":
        {"storageclass.kubernetes.io/is-default-class": "true"}}, "provisioner": "p"});
    cluster
        .post("/apis/storage.k8s.io/v1/storageclasses", &class)
        .await
        .expect(201);
    let claim = json!({"metadata": {"name": "c"}, "spec": {"accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": "1Gi"}}}});
    let claims = "/api/v1/namespaces/default/persistentvolumeclaims";
    assert_eq!(
        cluster.post(claims, &claim).await.expect(201)["spec"]["storageClassName"],
        "fast"
    );
    let mut confined = pod("p", "");
    confined["spec"]["runtimeClassName"] = "vm".into();
    assert_eq!(
        message(cluster.post(PODS, &confined).await, 403),
        "pods \"p\" is forbidden: pod rejected: RuntimeClass \"vm\" not found"
    );
    let class = json!({"metadata": {"name": "vm"}, "handler": "vm", "overhead": {"podFixed": {"memory": "10Mi"}}});
    cluster
        .post("/apis/node.k8s.io/v1/runtimeclasses", &class)
        .await
        .expect(201);
    assert_eq!(
        cluster.post(PODS, &confined).await.expect(201)["spec"]["overhead"]["memory"],
        "10Mi"
    );
}
