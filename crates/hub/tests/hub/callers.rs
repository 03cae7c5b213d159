//! Who is who at which door: processes of the node and of pods, certificates, an open proxy, and who only says so.

use crate::{
    cloud::{Cloud, JSON, Trust},
    node::{Answered, Directory, Node, PATIENCE, config, eventually},
    pod,
};
use http::{Method, Request};
use serde_json::json;
use std::{net::SocketAddr, os::unix::fs::PermissionsExt, path::PathBuf, process::Command};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UnixStream},
};
use yurt_pki::{Ca, KeyPairPem, Profile};
use yurt_transport::{Client, ClientError, ClientOptions};

const POD: &str = "/api/v1/namespaces/default/pods/a";
const SECRET: &str = "/api/v1/namespaces/default/secrets/s";
const REVIEWS: &str = "/apis/authentication.k8s.io/v1/tokenreviews";
/// What every component of a node may be told of, and a pod may claim to be.
const AGENT: &str = "User-Agent: kubelet/v1.36.0 (linux/amd64)";

/// A cgroup as kubelets give to containers; its processes share the node's network, as pods with `hostNetwork` do.
struct Container(PathBuf);

impl Container {
    /// `None` where this test may not make cgroups.
    fn new() -> Option<Self> {
        static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let name = format!("kubepods-yurt-{}-{number}.slice", std::process::id());
        let made = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"]
            .into_iter()
            .map(PathBuf::from)
            .filter(|root| root.join("cgroup.procs").exists())
            .map(|root| root.join(&name))
            .find(|path| std::fs::create_dir(path).is_ok())
            .map(Self)
            .filter(|container| container.run("true").is_some());
        if made.is_none() {
            eprintln!(
                "SKIPPED: this test may not make cgroups, so no process is in a pod's; the decision has its own tests"
            );
        }
        made
    }

    /// Runs a script in it; `None` when it cannot enter it.
    fn run(&self, script: &str) -> Option<String> {
        let enter = format!(
            "echo $$ > {}/cgroup.procs || exit 77\n{script}",
            self.0.display()
        );
        let output = Command::new("bash").args(["-c", &enter]).output().ok()?;
        (output.status.code() != Some(77))
            .then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Asks the hub from within; gives the whole answer.
    async fn get(&self, hub: SocketAddr, target: &str, headers: &[&str]) -> String {
        let mut lines = vec![format!("GET {target} HTTP/1.1"), "Host: hub".into()];
        lines.extend(headers.iter().map(|header| (*header).to_owned()));
        lines.extend(["Accept: application/json", "Connection: close", "", ""].map(str::to_owned));
        let script = format!(
            "exec 3<>/dev/tcp/{}/{}; printf '%s' '{}' >&3; timeout 20 cat <&3",
            hub.ip(),
            hub.port(),
            lines.join("\r\n")
        );
        let container = Self(self.0.clone());
        let asking = tokio::task::spawn_blocking(move || {
            let said = container.run(&script).unwrap();
            std::mem::forget(container);
            said
        });
        asking.await.unwrap()
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        for _ in 0..100 {
            if std::fs::remove_dir(&self.0).is_ok() {
                return;
            }
            // Its last process is on its way out.
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    }
}

fn code(answer: &str) -> u16 {
    let code = answer.split(' ').nth(1).unwrap_or_default();
    code.parse()
        .unwrap_or_else(|_| panic!("no answer: {answer:?}"))
}

/// Answers that know whose the token `own` is, and what it may read.
fn script(cloud: &Cloud) {
    cloud.answer(Method::GET, POD, 200, JSON, pod("a", 7));
    let secret = r#"{"kind":"Secret","apiVersion":"v1","metadata":{"name":"s","namespace":"default","uid":"u","resourceVersion":"8"}}"#;
    cloud.answer(Method::GET, SECRET, 200, JSON, secret);
    let review = json!({
        "kind": "TokenReview",
        "apiVersion": "authentication.k8s.io/v1",
        "metadata": {},
        "spec": {"token": "own"},
        "status": {"authenticated": true, "user": {"username": "system:serviceaccount:default:web", "uid": "1", "groups": ["system:authenticated"]}},
    });
    cloud.answer(Method::POST, REVIEWS, 201, JSON, review.to_string());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_has_its_tokens_rights_and_the_kubelet_the_nodes() {
    let Some(container) = Container::new() else {
        return;
    };
    let (trust, directory) = (Trust::new(), Directory::new());
    let cloud = Cloud::start(&trust).await;
    script(&cloud);
    let node = Node::start(config(&directory.0, &trust, &[cloud.addr])).await;
    node.until_up().await;
    // The kubelet of this node is a process like this one.
    assert_eq!(node.get(POD).await.status, 200);
    assert_eq!(node.get(SECRET).await.status, 200);
    assert!(cloud.seen(Method::GET, POD).pop().unwrap().certificate);
    let nodes_reads = cloud.seen(Method::GET, SECRET).len();

    let own = "Authorization: Bearer own";
    for hub in [node.dummy, node.plain] {
        for headers in [&[][..], &[AGENT], &["X-Remote-User: system:admin", AGENT]] {
            let refused = container.get(hub, SECRET, headers).await;
            assert_eq!(code(&refused), 401, "{refused}");
            assert!(
                refused.contains("a process in a container is not the node"),
                "{refused}"
            );
        }
        let got = container.get(hub, POD, &[own]).await;
        assert_eq!(code(&got), 200, "{got}");
        let seen = cloud.seen(Method::GET, POD).pop().unwrap();
        assert!(!seen.certificate);
        assert_eq!(seen.headers["authorization"], "Bearer own");
    }
    assert_eq!(
        cloud.seen(Method::GET, SECRET).len(),
        nodes_reads,
        "what was refused never went to the cloud"
    );
    assert_eq!(
        node.metric("node_yurthub_callers_refused_total{entrance=\"dummy\",reason=\"container\"}")
            .await,
        3.0
    );
    assert!(
        node.metric("node_yurthub_requests_total{entrance=\"plain\",caller=\"node\"}")
            .await
            >= 2.0
    );
    eventually("it is known whose the token is", async || {
        !cloud.seen(Method::POST, REVIEWS).is_empty()
    })
    .await;

    cloud.stop();
    node.until_mode("offline").await;
    assert_eq!(node.get(SECRET).await.status, 200);
    for hub in [node.dummy, node.plain] {
        let refused = container.get(hub, POD, &[AGENT]).await;
        assert_eq!(code(&refused), 401, "{refused}");
        eventually("its own rights", async || {
            code(&container.get(hub, POD, &[own]).await) == 200
        })
        .await;
        // Cached for the kubelet, never read by the pod.
        let refused = container.get(hub, SECRET, &[own, AGENT]).await;
        assert_eq!(code(&refused), 403, "{refused}");
        let stranger = container
            .get(hub, POD, &["Authorization: Bearer other"])
            .await;
        assert_eq!(code(&stranger), 401, "{stranger}");
    }
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_open_proxy_says_so() {
    let Some(container) = Container::new() else {
        return;
    };
    let (trust, directory) = (Trust::new(), Directory::new());
    let cloud = Cloud::start(&trust).await;
    script(&cloud);
    let mut config = config(&directory.0, &trust, &[cloud.addr]);
    config.unsafe_open_proxy = true;
    let node = Node::start(config).await;
    node.until_up().await;
    let lent = container.get(node.dummy, SECRET, &[]).await;
    assert_eq!(code(&lent), 200, "{lent}");
    assert!(
        lent.to_lowercase()
            .contains("warning: 299 - \"this caller has no credentials"),
        "{lent}"
    );
    assert!(cloud.seen(Method::GET, SECRET).pop().unwrap().certificate);
    let impersonating = ["Impersonate-User: admin"];
    let refused = container.get(node.dummy, SECRET, &impersonating).await;
    assert_eq!(code(&refused), 403, "{refused}");
    let line = "node_yurthub_requests_total{entrance=\"dummy\",caller=\"lent\"}";
    assert_eq!(node.metric(line).await, 1.0);
    // Who is the node is told nothing.
    let own = node.get(SECRET).await;
    assert_eq!((own.status, own.headers.get("warning")), (200, None));
    node.stop().await;
}

async fn raw(mut stream: impl AsyncReadExt + AsyncWriteExt + Unpin, request: &str) -> String {
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut said = Vec::new();
    let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut said)).await;
    String::from_utf8_lossy(&said).into_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_unix_socket_is_for_the_nodes_own_processes() {
    let (trust, directory) = (Trust::new(), Directory::new());
    let cloud = Cloud::start(&trust).await;
    script(&cloud);
    let node = Node::start(config(&directory.0, &trust, &[cloud.addr])).await;
    node.until_up().await;
    let path = directory.0.join("hub.sock");
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let request = format!("GET {POD} HTTP/1.1\r\nHost: hub\r\nConnection: close\r\n\r\n");
    let got = raw(UnixStream::connect(&path).await.unwrap(), &request).await;
    assert_eq!(code(&got), 200, "{got}");
    assert!(cloud.seen(Method::GET, POD).pop().unwrap().certificate);
    node.stop().await;
}

fn certificate(ca: &Ca, user: &str, groups: &[&str]) -> KeyPairPem {
    ca.issue(&Profile {
        common_name: user.into(),
        organizations: groups.iter().map(|group| (*group).to_owned()).collect(),
        client: true,
        days: 1,
        ..Profile::default()
    })
    .unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_secure_port_knows_this_nodes_certificate_only() {
    let (trust, directory) = (Trust::new(), Directory::new());
    let cloud = Cloud::start(&trust).await;
    script(&cloud);
    let node = Node::start(config(&directory.0, &trust, &[cloud.addr])).await;
    node.until_up().await;
    let ask = async |pair: Option<&KeyPairPem>, headers: &[(&str, &str)]| {
        let tls = yurt_pki::client_config(&trust.ca.cert_pem(), pair, &["h2", "http/1.1"]).unwrap();
        let client = Client::new(
            &node.secure.to_string(),
            Some(tls),
            ClientOptions::default(),
        );
        let mut request = Request::builder().uri(POD).header("accept", JSON);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(yurt_transport::empty()).unwrap();
        match client.send(request, PATIENCE).await {
            Ok(response) => Ok(Answered::of(response).await),
            Err(error) => Err(error),
        }
    };
    let got = ask(Some(&trust.node), &[]).await.unwrap();
    assert_eq!(got.status, 200, "{}", got.text());
    assert!(cloud.seen(Method::GET, POD).pop().unwrap().certificate);
    let got = ask(Some(&trust.node), &[("impersonate-user", "admin")]).await;
    assert_eq!(got.unwrap().status, 403);
    for (user, groups) in [
        ("system:node:edge-2", &["system:nodes"][..]),
        ("admin", &["system:masters"]),
        ("system:node:edge-1", &["system:masters"]),
    ] {
        let pair = certificate(&trust.ca, user, groups);
        let refused = ask(Some(&pair), &[]).await.unwrap();
        assert_eq!(refused.status, 401, "{user}");
        assert!(
            refused.text().contains("cannot be passed on"),
            "{}",
            refused.text()
        );
        // A token counts for itself.
        let got = ask(Some(&pair), &[("authorization", "Bearer own")]).await;
        assert_eq!(got.unwrap().status, 200);
        assert!(!cloud.seen(Method::GET, POD).pop().unwrap().certificate);
    }
    assert_eq!(ask(None, &[]).await.unwrap().status, 401);
    let other = Ca::new("other", 1).unwrap();
    let forged = certificate(&other, "system:node:edge-1", &["system:nodes"]);
    let refused = ask(Some(&forged), &[]).await;
    assert!(
        matches!(
            refused,
            Err(ClientError::Tls { .. } | ClientError::Broken { .. } | ClientError::Connect { .. })
        ),
        "no handshake with a certificate of another CA"
    );
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strange_paths_and_long_heads_are_refused() {
    let (trust, directory) = (Trust::new(), Directory::new());
    let cloud = Cloud::start(&trust).await;
    script(&cloud);
    let node = Node::start(config(&directory.0, &trust, &[cloud.addr])).await;
    node.until_up().await;
    let ask = async |target: &str, header: &str| {
        let request =
            format!("GET {target} HTTP/1.1\r\nHost: hub\r\n{header}Connection: close\r\n\r\n");
        raw(TcpStream::connect(node.plain).await.unwrap(), &request).await
    };
    for target in [
        "/api/v1/namespaces/default/pods/..",
        "/api/v1/namespaces/..%2fkube-system/pods",
        "/api/v1/namespaces/default/pods/a%2Fb",
        "/api/v1/namespaces/%2e%2e/secrets/s",
        "/../../etc/shadow",
    ] {
        let refused = ask(target, "User-Agent: ../../x\r\n").await;
        assert_eq!(code(&refused), 400, "{target}: {refused}");
    }
    assert!(
        cloud
            .seen(Method::GET, "/api/v1/namespaces/default")
            .is_empty()
    );
    let long = format!("X-Long: {}\r\n", "x".repeat(100_000));
    assert_eq!(code(&ask(POD, &long).await), 431);
    let token = format!("Authorization: Bearer {}\r\n", "x".repeat(40_000));
    assert_eq!(code(&ask(POD, &token).await), 401);
    // A user agent is no path.
    let got = ask(POD, "User-Agent: ../../x\r\n").await;
    assert_eq!(code(&got), 200, "{got}");
    assert_eq!(
        node.metric("node_yurthub_callers_refused_total{entrance=\"plain\",reason=\"path\"}")
            .await,
        5.0
    );
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn system_accounts_act_as_the_tenants_on_its_node() {
    let (trust, directory) = (Trust::new(), Directory::new());
    let cloud = Cloud::start(&trust).await;
    script(&cloud);
    let mut config = config(&directory.0, &trust, &[cloud.addr]);
    config.organizations = vec!["openyurt:tenant:acme".into()];
    let node = Node::start(config).await;
    node.until_up().await;
    let token = |name: &str| {
        use base64::Engine;
        let claims = json!({"iss": "kubernetes/serviceaccount", "sub": "system:serviceaccount:kube-system:dns", "jti": name});
        let part = |text: String| base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(text);
        format!(
            "Bearer {}.{}.c2ln",
            part(json!({"alg": "RS256"}).to_string()),
            part(claims.to_string())
        )
    };
    let review = |status: serde_json::Value| {
        let review = json!({"kind": "TokenReview", "apiVersion": "authentication.k8s.io/v1", "status": status});
        cloud.answer(Method::POST, REVIEWS, 201, JSON, review.to_string());
    };
    let ask = async |token: &str| {
        node.get_as(POD, &[("authorization", token), ("accept", JSON)])
            .await
    };
    // Who only says so gets nothing for it.
    review(json!({"authenticated": false}));
    let forged = ask(&token("forged")).await;
    assert_eq!(forged.status, 403, "{}", forged.text());
    assert!(cloud.seen(Method::GET, POD).is_empty());
    // Nor does a real one leave the node as what it is, when the tenant has no token.
    let dns = json!({"username": "system:serviceaccount:kube-system:dns", "uid": "1", "groups": ["system:serviceaccounts"]});
    review(json!({"authenticated": true, "user": dns}));
    let real = token("real");
    let refused = ask(&real).await;
    assert_eq!(refused.status, 403, "{}", refused.text());
    assert!(
        refused.text().contains("there is no token of it"),
        "{}",
        refused.text()
    );
    assert!(cloud.seen(Method::GET, POD).is_empty());
    assert!(!refused.text().contains(&real));
    // With a secret of the tenant's default account.
    let secrets = json!({"kind": "SecretList", "apiVersion": "v1", "metadata": {"resourceVersion": "20"}, "items": [{
        "metadata": {"name": "default-token", "namespace": "acme", "uid": "t", "resourceVersion": "19", "annotations": {"kubernetes.io/service-account.name": "default"}},
        "type": "kubernetes.io/service-account-token",
        "data": {"token": "dGVuYW50"},
    }]});
    cloud.answer(
        Method::GET,
        "/api/v1/namespaces/acme/secrets",
        200,
        JSON,
        secrets.to_string(),
    );
    eventually("the tenant's token is used", async || {
        ask(&real).await.status == 200
    })
    .await;
    let seen = cloud.seen(Method::GET, POD);
    assert!(
        seen.iter()
            .all(|seen| !seen.certificate && seen.headers["authorization"] == "Bearer tenant")
    );
    // Everybody else is who they are.
    assert_eq!(ask("Bearer own").await.status, 200);
    let seen = cloud.seen(Method::GET, POD).pop().unwrap();
    assert_eq!(seen.headers["authorization"], "Bearer own");
    node.stop().await;
}
