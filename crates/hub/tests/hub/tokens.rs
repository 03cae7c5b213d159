//! Pods with their own tokens, and a kubelet that asks for them: with the cloud, without it, after a restart without it, and
//! when it is back.

use crate::{
    cloud::Trust,
    link::{Link, State},
    node::{Answered, Directory, Node, config, eventually},
    recorded::{direct, write},
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use http::Method;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use yurt_apiserver::{ApiServer, Config, Running, Tls};
use yurt_wire::{Encoding, Object};

const JSON: &str = "application/json";
const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";
const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const MAP: &str = "/api/v1/namespaces/default/configmaps/settings";
const SECRET: &str = "/api/v1/namespaces/default/secrets/password";
const PODS: &str = "/api/v1/pods?fieldSelector=spec.nodeName%3Dedge-1";
const REVIEWS: &str = "/apis/authentication.k8s.io/v1/tokenreviews";
const ACCESS: &str = "/apis/authorization.k8s.io/v1/subjectaccessreviews";

struct Edge {
    cloud: Running,
    link: Link,
    node: Node,
    directory: Directory,
    trust: Trust,
    shutdown: CancellationToken,
}

async fn create(cloud: &Running, path: &str, object: Value) {
    write(cloud, Method::POST, path, object).await;
}

/// A cloud with a service account that may read config maps, pods that run as it here and elsewhere, and a node whose kubelet
/// has read its pods.
async fn edge() -> Edge {
    let (trust, directory) = (Trust::new(), Directory::new());
    let shutdown = CancellationToken::new();
    let admin = yurt_apiserver::authn::User::new("admin", &["system:masters"]);
    let cloud = Config {
        tls: Some(Tls {
            serving: trust.serving.clone(),
            client_ca: Some(trust.ca.cert_pem()),
        }),
        tokens: vec![("admin".into(), admin)],
        ..Config::default()
    };
    let cloud = ApiServer::start(cloud, shutdown.clone()).await.unwrap();
    let of = |kind: &str, version: &str, name: &str| json!({"apiVersion": version, "kind": kind, "metadata": {"name": name}});
    for name in ["edge-1", "edge-2"] {
        create(&cloud, "/api/v1/nodes", of("Node", "v1", name)).await;
    }
    for name in ["web", "other"] {
        let account = of("ServiceAccount", "v1", name);
        create(
            &cloud,
            "/api/v1/namespaces/default/serviceaccounts",
            account,
        )
        .await;
    }
    let rbac = "/apis/rbac.authorization.k8s.io/v1/namespaces/default";
    let mut role = of("Role", "rbac.authorization.k8s.io/v1", "reader");
    role["rules"] = json!([{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["get", "list", "watch"]}]);
    create(&cloud, &format!("{rbac}/roles"), role).await;
    let mut binding = of("RoleBinding", "rbac.authorization.k8s.io/v1", "readers");
    binding["roleRef"] =
        json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "reader"});
    binding["subjects"] =
        json!([{"kind": "ServiceAccount", "name": "web", "namespace": "default"}]);
    create(&cloud, &format!("{rbac}/rolebindings"), binding).await;
    let mut map = of("ConfigMap", "v1", "settings");
    map["data"] = json!({"color": "blue"});
    create(&cloud, MAPS, map).await;
    let secret = of("Secret", "v1", "password");
    create(&cloud, "/api/v1/namespaces/default/secrets", secret).await;
    for (name, on) in [("web-1", "edge-1"), ("web-2", "edge-1"), ("far", "edge-2")] {
        let mut pod = of("Pod", "v1", name);
        // The secret is mounted, so that the kubelet may read it, and the cache has it.
        pod["spec"] = json!({"nodeName": on, "serviceAccountName": "web",
            "containers": [{"name": "c", "image": "i"}],
            "volumes": [{"name": "s", "secret": {"secretName": "password"}}]});
        create(&cloud, "/api/v1/namespaces/default/pods", pod).await;
    }
    let link = Link::to(cloud.addr()).await;
    let node = Node::start(config(&directory.0, &trust, &[link.addr])).await;
    node.until_up().await;
    for path in [PODS, SECRET] {
        assert_eq!(node.get(path).await.status, 200, "{path}");
    }
    Edge {
        cloud,
        link,
        node,
        directory,
        trust,
        shutdown,
    }
}

impl Edge {
    async fn cut(&self) {
        self.link.set(State::Cut);
        self.node.until_mode("offline").await;
    }

    async fn heal(&self) {
        self.link.set(State::Whole);
        self.node.until_mode("online").await;
    }

    /// Stops the hub and starts it again, without the cloud.
    async fn restart(self) -> Self {
        self.node.stop().await;
        let node = Node::start(config(&self.directory.0, &self.trust, &[self.link.addr])).await;
        Self { node, ..self }
    }

    async fn stop(self) {
        self.node.stop().await;
        self.shutdown.cancel();
    }

    async fn get(&self, token: &str, path: &str) -> Answered {
        let authorization = format!("Bearer {token}");
        let headers = [("authorization", authorization.as_str()), ("accept", JSON)];
        self.node.get_as(path, &headers).await
    }

    async fn code(&self, token: &str, path: &str) -> u16 {
        self.get(token, path).await.status
    }

    async fn post(&self, path: &str, body: &Value) -> Answered {
        let headers = [("content-type", JSON), ("accept", JSON)];
        self.node
            .call(Method::POST, path, &headers, &body.to_string())
            .await
    }

    async fn uid(&self, pod: &str) -> String {
        let path = format!("/api/v1/namespaces/default/pods/{pod}");
        let pod = direct(&self.cloud, Method::GET, &path, None).await;
        pod["metadata"]["uid"].as_str().unwrap().to_owned()
    }

    /// What a kubelet asks for a pod.
    async fn request(&self, account: &str, pod: &str, uid: &str) -> Answered {
        self.post(&token_path(account), &token_request(pod, uid, &[]))
            .await
    }

    async fn token(&self, pod: &str, uid: &str) -> String {
        let answer = self.request("web", pod, uid).await;
        assert_eq!(answer.status, 201, "{}", answer.text());
        token_of(&answer.json())
    }

    /// A token that the node hears of for the first time when it is used.
    async fn token_from_elsewhere(&self, pod: &str) -> String {
        let body = token_request(pod, &self.uid(pod).await, &[]);
        let answer = direct(&self.cloud, Method::POST, &token_path("web"), Some(body)).await;
        token_of(&answer)
    }

    /// Until the node can verify what the cloud issues without it.
    async fn until_keys(&self) {
        eventually("keys of the issuer", async || {
            self.node.metric("node_yurthub_token_issuer_keys").await == 1.0
        })
        .await;
    }

    async fn given(&self, whose: &str) -> f64 {
        let line = format!("node_yurthub_tokens_given_total{{reason=\"{whose}\"}}");
        self.node.metric(&line).await
    }
}

fn token_path(account: &str) -> String {
    format!("/api/v1/namespaces/default/serviceaccounts/{account}/token")
}

fn token_request(pod: &str, uid: &str, audiences: &[&str]) -> Value {
    json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {
        "audiences": audiences, "expirationSeconds": 3607,
        "boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": pod, "uid": uid},
    }})
}

fn token_of(answer: &Value) -> String {
    answer["status"]["token"].as_str().unwrap().to_owned()
}

fn claims(token: &str) -> Value {
    let claims = token.split('.').nth(1).unwrap();
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims).unwrap()).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_has_its_own_rights_with_and_without_the_cloud() {
    let edge = edge().await;
    let uid = edge.uid("web-1").await;
    let token = edge.token("web-1", &uid).await;
    assert_eq!(edge.code(&token, MAP).await, 200);
    assert_eq!(edge.code(&token, SECRET).await, 403);
    assert_eq!(edge.code("nonsense", MAP).await, 401);
    edge.until_keys().await;

    edge.cut().await;
    // What was read is learned beside the client's answer, perhaps a moment after it.
    eventually("rights are known", async || {
        edge.code(&token, MAP).await == 200
    })
    .await;
    assert_eq!(
        edge.code(&token, SECRET).await,
        403,
        "the node has it, the pod may not"
    );
    assert_eq!(edge.node.get(SECRET).await.status, 200, "the kubelet may");
    let unknown = edge.get("nonsense", MAP).await;
    assert_eq!(unknown.status, 401);
    assert!(unknown.text().contains("offline"), "{}", unknown.text());

    // The kubelet asks again: the same token, while it is good.
    let again = edge.request("web", "web-1", &uid).await;
    assert_eq!(token_of(&again.json()), token);
    assert_eq!(edge.given("cloud").await, 1.0);

    // So it is after a restart; a token that the cloud gave meanwhile is the same user's.
    let rotated = edge.token_from_elsewhere("web-1").await;
    let edge = edge.restart().await;
    edge.node.until_mode("offline").await;
    for token in [&token, &rotated] {
        assert_eq!(edge.code(token, MAP).await, 200);
        assert_eq!(edge.code(token, SECRET).await, 403);
    }
    assert_eq!(edge.code("nonsense", MAP).await, 401);
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_of_the_node_is_good_here_and_exchanged_on_its_way_to_the_cloud() {
    let edge = edge().await;
    let first = edge.uid("web-1").await;
    let token = edge.token("web-1", &first).await;
    assert_eq!(edge.code(&token, MAP).await, 200);
    let second = edge.uid("web-2").await;

    edge.cut().await;
    eventually("rights are known", async || {
        edge.code(&token, MAP).await == 200
    })
    .await;
    let answer = edge.request("web", "web-2", &second).await;
    assert_eq!(answer.status, 201, "{}", answer.text());
    let own = token_of(&answer.json());
    let said = claims(&own);
    assert_eq!(said["iss"], "https://node.yurt.local/edge-1");
    assert_eq!(said["sub"], "system:serviceaccount:default:web");
    assert_eq!(said["aud"], claims(&token)["aud"]);
    assert_eq!(said["kubernetes.io"]["pod"]["uid"], second);
    assert_eq!(
        said["exp"].as_i64().unwrap() - said["iat"].as_i64().unwrap(),
        3600
    );
    assert_eq!(edge.given("node_key").await, 1.0);
    // The rights of the same user, on this node.
    assert_eq!(edge.code(&own, MAP).await, 200);
    assert_eq!(edge.code(&own, SECRET).await, 403);
    let edge = edge.restart().await;
    edge.node.until_mode("offline").await;
    assert_eq!(edge.code(&own, MAP).await, 200);

    // As a kubelet writes it.
    let body = Object::from_json_value(
        &token_request("web-2", &second, &["vault"]),
        Encoding::Protobuf,
    )
    .unwrap();
    let request = http::Request::builder()
        .method(Method::POST)
        .uri(token_path("web"))
        .header("content-type", PROTOBUF)
        .header("accept", PROTOBUF)
        .body(body.bytes)
        .unwrap();
    let answer = Answered::of(edge.node.ask(request).await).await;
    assert_eq!((answer.status, answer.content_type()), (201, PROTOBUF));
    let answer = Object {
        encoding: Encoding::Protobuf,
        bytes: answer.body,
    }
    .to_json_value()
    .unwrap();
    assert_eq!(claims(&token_of(&answer))["aud"], json!(["vault"]));
    let vault = token_of(&answer);
    assert_eq!(
        edge.code(&vault, MAP).await,
        401,
        "a token for others is none for the API"
    );

    // A watch that began without the cloud goes on with it.
    let authorization = format!("Bearer {own}");
    let headers = [("authorization", authorization.as_str()), ("accept", JSON)];
    let watch = format!("{MAPS}?watch=true&fieldSelector=metadata.name%3Dsettings");
    let mut watch = edge.node.watch(&watch, &headers).await;
    assert_eq!(watch.event().await["object"]["data"]["color"], "blue");

    // What the cloud says now is what the pod gets.
    let mut map = direct(&edge.cloud, Method::GET, MAP, None).await;
    map["data"]["color"] = "green".into();
    write(&edge.cloud, Method::PUT, MAP, map).await;
    edge.heal().await;
    let fresh = edge.get(&own, MAP).await;
    assert_eq!(fresh.status, 200, "{}", fresh.text());
    assert_eq!(fresh.json()["data"]["color"], "green");
    let event = watch.event().await;
    assert_eq!(event["object"]["data"]["color"], "green", "{event}");
    assert_eq!(edge.code(&own, SECRET).await, 403);
    let refused = edge.get(&vault, MAP).await;
    assert_eq!(refused.status, 401, "nor is it exchanged for one");
    assert!(refused.text().contains("audiences"), "{}", refused.text());
    let exchanged = "node_yurthub_tokens_exchanged_total{reason=\"done\"}";
    assert_eq!(
        edge.node.metric(exchanged).await,
        1.0,
        "once for all requests"
    );
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_of_the_node_ends_when_its_pod_is_gone_from_the_cloud() {
    let edge = edge().await;
    let uid = edge.uid("web-2").await;
    edge.cut().await;
    let own = edge.token("web-2", &uid).await;
    let path = "/api/v1/namespaces/default/pods/web-2?gracePeriodSeconds=0";
    direct(&edge.cloud, Method::DELETE, path, None).await;
    edge.heal().await;
    let refused = edge.get(&own, MAP).await;
    assert_eq!(refused.status, 401, "{}", refused.text());
    assert!(refused.text().contains("default/web"), "{}", refused.text());
    // Nor is it good any more without the cloud.
    edge.cut().await;
    assert_eq!(edge.code(&own, MAP).await, 401);
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_are_given_for_pods_of_this_node_only() {
    let edge = edge().await;
    let (here, there) = (edge.uid("web-1").await, edge.uid("far").await);
    edge.cut().await;
    for (account, pod, uid, code) in [
        ("other", "web-1", here.as_str(), 403),
        ("web", "web-1", there.as_str(), 403),
        ("web", "web-1", "", 403),
        ("web", "far", there.as_str(), 503),
        ("web", "nobody", here.as_str(), 503),
    ] {
        let refused = edge.request(account, pod, uid).await;
        assert_eq!(refused.status, code, "{account} {pod}: {}", refused.text());
        assert!(refused.text().contains("edge-1"), "{}", refused.text());
    }
    let mut unbound = token_request("web-1", &here, &[]);
    unbound["spec"]
        .as_object_mut()
        .unwrap()
        .remove("boundObjectRef");
    assert_eq!(edge.post(&token_path("web"), &unbound).await.status, 403);
    let mut brief = token_request("web-1", &here, &[]);
    brief["spec"]["expirationSeconds"] = 60.into();
    assert_eq!(edge.post(&token_path("web"), &brief).await.status, 422);

    // A pod cannot ask for tokens, though it has one.
    let own = edge.token("web-1", &here).await;
    let authorization = format!("Bearer {own}");
    let headers = [
        ("authorization", authorization.as_str()),
        ("content-type", JSON),
        ("accept", JSON),
    ];
    let body = token_request("web-2", &edge.uid("web-2").await, &[]).to_string();
    let refused = edge
        .node
        .call(Method::POST, &token_path("web"), &headers, &body)
        .await;
    assert_eq!(refused.status, 503, "{}", refused.text());
    assert_eq!(edge.given("node_key").await, 1.0);
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reviews_of_the_kubelet_are_answered_as_before() {
    let edge = edge().await;
    let token = edge.token("web-1", &edge.uid("web-1").await).await;
    let review = |token: &str| json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": token}});
    let access = |user: &str, verb: &str| {
        json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": {
            "user": user, "groups": ["system:masters", "system:authenticated"],
            "resourceAttributes": {"verb": verb, "version": "v1", "resource": "nodes", "subresource": "proxy", "name": "edge-1"},
        }})
    };
    // An administrator whom only the cloud knows.
    let online = edge.post(REVIEWS, &review("admin")).await.json();
    assert_eq!(online["status"]["authenticated"], true);
    let allowed = edge.post(ACCESS, &access("admin", "get")).await.json();
    assert_eq!(allowed["status"]["allowed"], true);

    edge.cut().await;
    let authenticated = async |edge: &Edge, token: &str| {
        let answer = edge.post(REVIEWS, &review(token)).await;
        assert_eq!(answer.status, 201, "{}", answer.text());
        answer.json()["status"].clone()
    };
    eventually("learned", async || {
        authenticated(&edge, "admin").await["authenticated"] == true
    })
    .await;
    let edge = edge.restart().await;
    edge.node.until_mode("offline").await;
    let user = authenticated(&edge, "admin").await;
    assert_eq!(user["user"], online["status"]["user"]);
    let user = authenticated(&edge, &token).await;
    assert_eq!(
        user["user"]["username"],
        "system:serviceaccount:default:web"
    );
    let unknown = authenticated(&edge, "nonsense").await;
    assert_eq!(unknown["authenticated"], false);
    assert!(unknown["error"].as_str().unwrap().contains("offline"));
    assert_eq!(edge.post(REVIEWS, &review("")).await.status, 400);

    for (user, verb, allowed) in [
        ("admin", "get", true),
        ("admin", "create", false),
        ("eve", "get", false),
    ] {
        let answer = edge.post(ACCESS, &access(user, verb)).await;
        assert_eq!(answer.status, 201, "{}", answer.text());
        let status = &answer.json()["status"];
        assert_eq!(status["allowed"], allowed, "{user} {verb}: {status}");
        let reason = status["reason"].as_str().unwrap_or_default();
        assert_eq!(reason.contains("offline"), !allowed, "{reason}");
    }
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_that_the_cloud_refused_is_refused_without_it() {
    let edge = edge().await;
    // Issued elsewhere: the cloud is asked whose they are.
    let (gone, stays) = (
        edge.token_from_elsewhere("web-1").await,
        edge.token_from_elsewhere("web-2").await,
    );
    for token in [&gone, &stays] {
        assert_eq!(edge.code(token, MAP).await, 200);
    }
    edge.until_keys().await;
    let reviewed = "node_yurthub_bearer_tokens_total{reason=\"reviewed\"}";
    eventually("reviewed", async || {
        edge.code(&stays, MAP).await == 200 && edge.node.metric(reviewed).await > 0.0
    })
    .await;
    let path = "/api/v1/namespaces/default/pods/web-1?gracePeriodSeconds=0";
    direct(&edge.cloud, Method::DELETE, path, None).await;
    assert_eq!(edge.code(&gone, MAP).await, 401);

    edge.cut().await;
    let refused = edge.get(&gone, MAP).await;
    assert_eq!(refused.status, 401);
    assert!(refused.text().contains("refused"), "{}", refused.text());
    // The user's rights are not the token's.
    assert_eq!(edge.code(&stays, MAP).await, 200);
    let edge = edge.restart().await;
    edge.node.until_mode("offline").await;
    assert_eq!(edge.code(&gone, MAP).await, 401);
    assert_eq!(edge.code(&stays, MAP).await, 200);

    // Who asks is told who it is, and what it may.
    let authorization = format!("Bearer {stays}");
    let headers = [
        ("authorization", authorization.as_str()),
        ("content-type", JSON),
        ("accept", JSON),
    ];
    let own = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"});
    let path = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
    let who = edge
        .node
        .call(Method::POST, path, &headers, &own.to_string())
        .await;
    assert_eq!(
        who.json()["status"]["userInfo"]["username"],
        "system:serviceaccount:default:web",
        "{}",
        who.text()
    );
    let path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
    for (resource, verb, allowed) in [
        ("configmaps", "get", true),
        ("configmaps", "delete", false),
        ("secrets", "get", false),
    ] {
        let ask = json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": {"namespace": "default", "verb": verb, "resource": resource, "name": "settings"}}});
        let answer = edge
            .node
            .call(Method::POST, path, &headers, &ask.to_string())
            .await;
        assert_eq!(answer.status, 201, "{}", answer.text());
        assert_eq!(
            answer.json()["status"]["allowed"],
            allowed,
            "{verb} {resource}"
        );
    }
    // It may not ask about others.
    let review = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": gone}});
    let refused = edge
        .node
        .call(Method::POST, REVIEWS, &headers, &review.to_string())
        .await;
    assert_eq!(refused.status, 403, "{}", refused.text());
    edge.stop().await;
}
