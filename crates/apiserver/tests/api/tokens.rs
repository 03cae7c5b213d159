use crate::client::{Answer, Cluster, PODS, pod};
use bytes::Bytes;
use http::header;
use serde_json::{Value, json};

async fn as_bearer(cluster: &Cluster, token: &str, path: &str) -> Answer {
    let request = http::Request::builder()
        .uri(path)
        .header(header::AUTHORIZATION, format!("Bearer {token}"));
    Answer::of(cluster.raw(request, Bytes::new()).await).await
}

#[tokio::test]
async fn a_service_account_token_works_while_its_pod_lives() {
    let cluster = Cluster::start().await;
    let accounts = "/api/v1/namespaces/default/serviceaccounts";
    cluster.until(&format!("{accounts}/default"), 200).await;
    let mut object = pod("p", "");
    object["spec"]["serviceAccountName"] = "default".into();
    let created = cluster.post(PODS, &object).await.expect(201);
    let request = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
        "spec": {"audiences": [], "expirationSeconds": 3600, "boundObjectRef":
            {"kind": "Pod", "apiVersion": "v1", "name": "p", "uid": created["metadata"]["uid"]}}});
    let path = format!("{accounts}/default/token");
    let answer = cluster.post(&path, &request).await.expect(201);
    let token = answer["status"]["token"]
        .as_str()
        .expect("a token")
        .to_owned();
    as_bearer(&cluster, &token, PODS).await.expect(403);
    let grant = json!({"metadata": {"name": "view"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view"},
        "subjects": [{"kind": "ServiceAccount", "name": "default", "namespace": "default"}]});
    let bindings = "/apis/rbac.authorization.k8s.io/v1/namespaces/default/rolebindings";
    cluster.post(bindings, &grant).await.expect(201);
    as_bearer(&cluster, &token, PODS).await.expect(200);

    let review = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": token}});
    let reviews = "/apis/authentication.k8s.io/v1/tokenreviews";
    let reviewed = cluster.post(reviews, &review).await.expect(201);
    assert_eq!(reviewed["status"]["authenticated"], true);
    assert_eq!(
        reviewed["status"]["user"]["username"],
        "system:serviceaccount:default:default"
    );
    let other = json!({"spec": {"token": token, "audiences": ["elsewhere"]}});
    let reviewed = cluster.post(reviews, &other).await.expect(201);
    assert!(
        reviewed["status"]
            .get("authenticated")
            .is_none_or(|a| a == &Value::Bool(false))
    );

    cluster.delete(&format!("{PODS}/p")).await.expect(200);
    as_bearer(&cluster, &token, PODS).await.expect(401);
    let reviewed = cluster.post(reviews, &review).await.expect(201);
    assert!(reviewed["status"]["error"].is_string());

    let mut short = request;
    short["spec"] = json!({"expirationSeconds": 10});
    cluster.post(&path, &short).await.expect(422);
}

#[tokio::test]
async fn reviews_say_who_may_do_what() {
    let cluster = Cluster::start().await;
    let whoami = cluster
        .post(
            "/apis/authentication.k8s.io/v1/selfsubjectreviews",
            &json!({}),
        )
        .await
        .expect(201);
    assert_eq!(whoami["status"]["userInfo"]["username"], "admin");
    let group = "/apis/authorization.k8s.io/v1";
    let spec = json!({"spec": {"resourceAttributes": {"verb": "get", "resource": "pods"}}});
    let own = cluster
        .post(&format!("{group}/selfsubjectaccessreviews"), &spec)
        .await
        .expect(201);
    assert_eq!(own["status"]["allowed"], true);
    let nobody = json!({"spec": {"user": "system:anonymous", "groups": ["system:unauthenticated"],
        "resourceAttributes": {"verb": "get", "resource": "pods"}}});
    let other = cluster
        .post(&format!("{group}/subjectaccessreviews"), &nobody)
        .await
        .expect(201);
    assert_eq!(other["status"]["allowed"], false);
    let rules = cluster
        .post(
            &format!("{group}/selfsubjectrulesreviews"),
            &json!({"spec": {"namespace": "default"}}),
        )
        .await
        .expect(201);
    assert_eq!(rules["status"]["resourceRules"][0]["verbs"][0], "*");
}

#[tokio::test]
async fn only_those_who_may_act_as_others() {
    let mut config = yurt_apiserver::Config::default();
    config.tokens.push((
        "plain".into(),
        yurt_apiserver::authn::User::new("plain", &[]),
    ));
    let cluster = Cluster::with(config).await;
    let ask = |token: &'static str, user: &'static str| {
        let request = http::Request::builder()
            .method("POST")
            .uri("/apis/authentication.k8s.io/v1/selfsubjectreviews")
            .header(header::AUTHORIZATION, format!("Bearer {token}"))
            .header("Impersonate-User", user)
            .header("Impersonate-Group", "devs");
        let cluster = &cluster;
        async move { Answer::of(cluster.raw(request, Bytes::from("{}")).await).await }
    };
    let other = ask("admin", "jane").await.expect(201);
    assert_eq!(other["status"]["userInfo"]["username"], "jane");
    assert_eq!(
        other["status"]["userInfo"]["groups"],
        json!(["devs", "system:authenticated"])
    );
    let refused = ask("plain", "jane").await.expect(403);
    assert_eq!(
        refused["message"],
        "users \"jane\" is forbidden: User \"plain\" cannot impersonate resource \"users\" in API group \"\" at the cluster scope"
    );
}
