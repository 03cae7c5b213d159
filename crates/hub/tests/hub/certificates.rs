//! How a node joins, renews and loses its certificates, between an embedded API server and plain clients.

mod cluster;

use crate::{
    cloud::{Cloud, JSON, Trust},
    link::{Link, State},
    node::{Directory, Node, eventually},
    pod,
};
use cluster::{Cluster, TOKEN};
use http::{Method, Request};
use serde_json::{Value, json};
use std::{net::SocketAddr, os::unix::fs::PermissionsExt, path::Path, time::Duration};
use yurt_hub::{Config, config::KeyPairFiles};
use yurt_pki::{Ca, KeyPairPem, Profile};
use yurt_transport::{Client, ClientOptions};

const CLIENT: &str = "kubernetes.io/kube-apiserver-client";
const SERVING: &str = "kubernetes.io/kubelet-serving";
const MAPS: &str = "/api/v1/namespaces/kube-system/configmaps";
const MAP: &str = "/api/v1/namespaces/kube-system/configmaps/kube-root-ca.crt";

fn config(root: &Path, server: SocketAddr, flags: &[&str]) -> Config {
    let given = [
        "--node-name=edge-1",
        "--enable-dummy-if=false",
        "--node-ip=10.0.0.7",
        &format!("--server-addr=https://{server}"),
        &format!("--root-dir={}", root.display()),
        &format!("--disk-cache-path={}", root.join("cache").display()),
    ]
    .map(str::to_owned);
    let flags = flags.iter().map(|flag| (*flag).to_owned());
    let all: Vec<String> = given.into_iter().chain(flags).collect();
    Config::parse(all.iter().map(String::as_str)).unwrap()
}

async fn certificate(node: &Node, name: &str) -> Value {
    let status = node.status().await;
    let mut all = status["certificates"].as_array().unwrap().iter();
    all.find(|c| c["certificate"] == name).unwrap().clone()
}

async fn until_state(node: &Node, name: &str, state: &str) {
    eventually(&format!("{name} is {state}"), async || {
        certificate(node, name).await["state"] == state
    })
    .await;
}

/// Joins with a token, the test approving.
async fn join(cluster: &Cluster, node: &Node) {
    let client = cluster.undecided(CLIENT).await;
    cluster.issue(&client).await;
    let serving = cluster.undecided(SERVING).await;
    cluster.issue(&serving).await;
    until_state(node, "client", "valid").await;
    until_state(node, "server", "valid").await;
    node.until_mode("online").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_joins_with_a_token_as_soon_as_the_cloud_is_there() {
    let (cluster, directory) = (Cluster::start().await, Directory::new());
    cluster.add_token(TOKEN).await;
    let link = Link::to(cluster.addr).await;
    link.set(State::Cut);
    let root = &directory.0;
    let flags = [
        &*format!("--join-token={TOKEN}"),
        &format!("--discovery-token-ca-cert-hash={}", cluster.pin()),
        "--hub-cert-organizations=openyurt:tenant:a",
    ];
    let node = Node::start(config(root, link.addr, &flags)).await;
    // Without anything, and without the cloud: it runs, and says what it cannot.
    eventually("healthy", async || {
        node.admin("/v1/healthz").await.status == 200
    })
    .await;
    let refused = node.get(MAP).await;
    assert_eq!(refused.status, 503, "{}", refused.text());
    assert_eq!(certificate(&node, "ca").await["state"], "missing");

    link.set(State::Whole);
    let csr = cluster.undecided(CLIENT).await;
    let name = csr["metadata"]["name"].as_str().unwrap().to_owned();
    let spec = &csr["spec"];
    assert_eq!(spec["username"], "system:bootstrap:abcdef");
    let usages = ["digital signature", "key encipherment", "client auth"];
    assert_eq!(spec["usages"], json!(usages));
    eventually("it says what it waits for", async || {
        let waiting = certificate(&node, "client").await["waiting"].clone();
        waiting.as_str().is_some_and(|text| text.contains(&name))
    })
    .await;
    // The cloud is there and the node is nobody to it yet.
    let refused = node.get(MAP).await;
    assert_eq!(refused.status, 503, "{}", refused.text());
    let said = refused.json()["message"].as_str().unwrap().to_owned();
    assert!(
        said.contains("no client certificate yet") && said.contains(&name),
        "{said}"
    );
    assert_eq!(node.status().await["mode"], "offline");
    join(&cluster, &node).await;

    let client = certificate(&node, "client").await;
    assert_eq!(client["subject"], "system:node:edge-1");
    let groups = ["openyurt:yurthub", "system:nodes", "openyurt:tenant:a"];
    assert_eq!(client["organizations"], json!(groups));
    assert_eq!(node.get(MAP).await.status, 200);
    // Serving: for the addresses of the node and the names of the service.
    let tls = |own: Option<&KeyPairPem>| {
        let config = yurt_pki::client_config(&cluster.ca.cert_pem(), own, &["http/1.1"]).unwrap();
        Client::new(
            &node.secure.to_string(),
            Some(config),
            ClientOptions::default(),
        )
    };
    let ask = async |client: Client| {
        let request = Request::builder().uri(MAP).body(yurt_transport::empty());
        let answer = client.send(request.unwrap(), Duration::from_secs(10)).await;
        answer.map(|response| response.status().as_u16())
    };
    assert_eq!(ask(tls(None)).await.unwrap(), 401);
    let stranger = Ca::new("kubernetes", 1).unwrap();
    let forged = stranger
        .issue(&Profile {
            common_name: "system:node:edge-2".into(),
            organizations: vec!["system:nodes".into()],
            client: true,
            days: 1,
            ..Profile::default()
        })
        .unwrap();
    assert!(
        ask(tls(Some(&forged))).await.is_err(),
        "refused in the handshake"
    );

    // The files that OpenYurt's tools know.
    let current = root.join("pki/yurthub-current.pem");
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert!(std::fs::read_link(&current).is_ok());
    assert_eq!(mode(&current), 0o600);
    assert_eq!(mode(&root.join("bootstrap-hub.conf")), 0o600);
    let bootstrap = std::fs::read_to_string(root.join("bootstrap-hub.conf")).unwrap();
    assert!(bootstrap.contains("token-bootstrap-client") && bootstrap.contains(TOKEN));
    let kubeconfig = std::fs::read_to_string(root.join("yurthub.conf")).unwrap();
    assert!(kubeconfig.contains(&format!("https://{}", link.addr)));
    let expiry = "node_yurthub_certificate_expiry_seconds{certificate=\"client\"}";
    assert!(node.metric(expiry).await > 300_000.0);
    node.stop().await;

    // Another address of the server changes one line of the kubeconfig, and the token is not needed any more.
    let before = std::fs::read_to_string(&current).unwrap();
    let node = Node::start(config(root, cluster.addr, &[])).await;
    node.until_mode("online").await;
    assert_eq!(node.get(MAP).await.status, 200);
    let kubeconfig = std::fs::read_to_string(root.join("yurthub.conf")).unwrap();
    assert!(kubeconfig.contains(&format!("https://{}", cluster.addr)));
    assert_eq!(std::fs::read_to_string(&current).unwrap(), before);
    assert!(root.join("bootstrap-hub.conf").exists());
    node.stop().await;
    // Without the organization by flag the certificate has it in excess, which is no reason for another.
    assert_eq!(cluster.requests().await.len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_goes_on_with_the_request_that_waits() {
    let (cluster, directory) = (Cluster::start().await, Directory::new());
    cluster.add_token(TOKEN).await;
    // A bootstrap file may be gone after the first start.
    let file = directory.0.join("bootstrap.yaml");
    let pem = base64::Engine::encode(
        &base64::engine::general_purpose::STANDARD,
        cluster.ca.cert_pem(),
    );
    std::fs::write(&file, format!(
        "apiVersion: v1\nkind: Config\nclusters:\n- name: c\n  cluster: {{server: 'https://x', certificate-authority-data: {pem}}}\nusers:\n- name: u\n  user: {{token: {TOKEN}}}\ncontexts:\n- name: x\n  context: {{cluster: c, user: u}}\ncurrent-context: x\n"
    )).unwrap();
    let flags = [&*format!("--bootstrap-file={}", file.display())];
    let node = Node::start(config(&directory.0, cluster.addr, &flags)).await;
    let csr = cluster.undecided(CLIENT).await;
    node.stop().await;
    let node = Node::start(config(&directory.0, cluster.addr, &flags)).await;
    eventually("it waits for the same", async || {
        let waiting = certificate(&node, "client").await["waiting"].clone();
        let name = csr["metadata"]["name"].as_str().unwrap();
        waiting.as_str().is_some_and(|text| text.contains(name))
    })
    .await;
    join(&cluster, &node).await;
    assert_eq!(cluster.requests().await.len(), 2);
    node.stop().await;
    std::fs::remove_file(&file).unwrap();
    let node = Node::start(config(&directory.0, cluster.addr, &flags)).await;
    node.until_mode("online").await;
    assert_eq!(node.get(MAP).await.status, 200);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_token_helps_when_the_request_was_denied_and_the_old_token_is_unknown() {
    let (cluster, directory) = (Cluster::start().await, Directory::new());
    cluster.add_token(TOKEN).await;
    let flags = [
        &*format!("--join-token={TOKEN}"),
        &format!("--discovery-token-ca-cert-hash={}", cluster.pin()),
    ];
    let node = Node::start(config(&directory.0, cluster.addr, &flags)).await;
    let csr = cluster.undecided(CLIENT).await;
    cluster.decide(&csr, "Denied").await;
    let name = csr["metadata"]["name"].as_str().unwrap();
    eventually("it says who said no", async || {
        let error = certificate(&node, "client").await["error"].clone();
        let error = error.as_str().unwrap_or_default().to_owned();
        error.contains(name) && error.contains("denied") && error.contains("by the test")
    })
    .await;

    let post = async |body: &str| node.admin_call(Method::POST, "/v1/token", body).await;
    for bad in [
        "",
        "{}",
        r#"{"jointoken":""}"#,
        r#"{"jointoken":"nonsense"}"#,
    ] {
        assert_eq!(post(bad).await.status, 400, "{bad}");
    }
    let unknown = post(r#"{"jointoken":"zzzzzz.0123456789abcdef"}"#).await;
    assert_eq!(unknown.status, 500);
    assert!(unknown.text().contains("zzzzzz"), "{}", unknown.text());
    cluster.add_token("ghijkl.0123456789abcdef").await;
    let taken = post(r#"{"jointoken":"ghijkl.0123456789abcdef"}"#).await;
    assert_eq!(taken.status, 200, "{}", taken.text());
    let again = cluster.undecided(CLIENT).await;
    assert_eq!(again["spec"]["username"], "system:bootstrap:ghijkl");
    assert_ne!(
        again["spec"]["request"], csr["spec"]["request"],
        "another key"
    );
    join(&cluster, &node).await;
    let kept = std::fs::read_to_string(directory.0.join("bootstrap-hub.conf")).unwrap();
    assert!(kept.contains("ghijkl.0123456789abcdef"));
    assert!(certificate(&node, "client").await["error"].is_null());
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_that_cannot_prove_itself_is_not_joined() {
    let (cluster, directory) = (Cluster::start().await, Directory::new());
    cluster.add_token(TOKEN).await;
    let other = format!("sha256:{}", "ab".repeat(32));
    for (token, pin, why) in [
        (TOKEN, &other, "another cluster"),
        ("abcdef.0123456789abcdeg", &cluster.pin(), "signature"),
        ("zzzzzz.0123456789abcdef", &cluster.pin(), "does not know"),
    ] {
        let flags = [
            &*format!("--join-token={token}"),
            &format!("--discovery-token-ca-cert-hash={pin}"),
        ];
        let node = Node::start(config(&directory.0, cluster.addr, &flags)).await;
        eventually(why, async || {
            let error = certificate(&node, "client").await["error"].clone();
            error.as_str().is_some_and(|error| error.contains(why))
        })
        .await;
        assert!(!directory.0.join("pki/ca.crt").exists());
        assert!(!directory.0.join("bootstrap-hub.conf").exists());
        assert_eq!(
            node.metric("node_yurthub_certificate_failures_total{certificate=\"client\"}")
                .await,
            1.0
        );
        node.stop().await;
    }
    assert!(cluster.requests().await.is_empty());
}

/// Puts certificates in their place, as an earlier hub left them.
fn leave(root: &Path, cluster: &Cluster, client: &KeyPairPem) {
    std::fs::create_dir_all(root.join("pki")).unwrap();
    std::fs::write(root.join("pki/ca.crt"), cluster.ca.cert_pem()).unwrap();
    std::fs::write(
        root.join("pki/yurthub-current.pem"),
        format!("{}{}", client.cert, client.key),
    )
    .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_ending_certificate_is_renewed_with_itself_and_watches_move_over() {
    let (cluster, directory) = (Cluster::start().await, Directory::new());
    leave(&directory.0, &cluster, &cluster.client(10_000, 70));
    let node = Node::start(config(&directory.0, cluster.addr, &[])).await;
    node.until_mode("online").await;
    let mut watch = node
        .watch(
            &format!("{MAPS}?watch=true&fieldSelector=metadata.name%3Dm&resourceVersion=0"),
            &[("accept", "application/json")],
        )
        .await;
    cluster
        .create(MAPS, json!({"metadata": {"name": "m"}}))
        .await;
    assert_eq!(watch.event().await["type"], "ADDED");
    let csr = cluster.undecided(CLIENT).await;
    assert_eq!(csr["spec"]["username"], "system:node:edge-1");
    cluster.issue(&csr).await;
    let rotations = "node_yurthub_certificate_rotations_total{certificate=\"client\"}";
    eventually("a new certificate", async || {
        node.metric(rotations).await == 1.0
    })
    .await;
    // Within ten seconds the connections of the old one end, and the watch is resumed over a new one.
    eventually("the watch moved", async || {
        node.metric("node_yurthub_watches_resumed_total").await >= 1.0
    })
    .await;
    cluster
        .merge(&format!("{MAPS}/m"), json!({"data": {"a": "b"}}))
        .await;
    let event = watch.event().await;
    assert_eq!(
        (&event["type"], &event["object"]["data"]["a"]),
        (&json!("MODIFIED"), &json!("b"))
    );
    assert_eq!(node.get(MAP).await.status, 200);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn expired_files_are_no_dead_link_and_new_ones_are_taken_over() {
    let (cluster, directory) = (Cluster::start().await, Directory::new());
    let root = &directory.0;
    let write = |pair: &KeyPairPem| {
        std::fs::write(root.join("node.crt"), &pair.cert).unwrap();
        std::fs::write(root.join("node.key"), &pair.key).unwrap();
    };
    let config = || Config {
        ca_file: root.join("ca.crt"),
        node_certificate: Some(KeyPairFiles {
            cert: root.join("node.crt"),
            key: root.join("node.key"),
        }),
        bootstrap: None,
        ..config(root, cluster.addr, &[])
    };
    std::fs::write(root.join("ca.crt"), cluster.ca.cert_pem()).unwrap();
    write(&cluster.client(100, 1_000));
    let node = Node::start(config()).await;
    node.until_mode("online").await;
    assert_eq!(node.get(MAP).await.status, 200);
    eventually("learned", async || {
        node.status().await["cache"]["objects"].as_u64() >= Some(1)
    })
    .await;
    node.stop().await;

    write(&cluster.client(100_000, -1_000));
    let node = Node::start(config()).await;
    node.until_up().await;
    until_state(&node, "client", "expired").await;
    assert_eq!(node.status().await["mode"], "offline");
    assert_eq!(node.get(MAP).await.status, 200, "from the cache");
    let refused = node
        .get("/api/v1/namespaces/kube-system/configmaps/never")
        .await;
    assert_eq!(refused.status, 503);
    let said = refused.json()["message"].as_str().unwrap().to_owned();
    assert!(said.contains("expired"), "{said}");
    // Who has a token of its own still goes to the cloud.
    let token = [
        ("authorization", "Bearer admin"),
        ("accept", "application/json"),
    ];
    let online = node
        .get_as("/api/v1/namespaces/kube-system/configmaps/never", &token)
        .await;
    assert_eq!(online.status, 404, "{}", online.text());

    // Half written: the key is another's. Nothing changes.
    std::fs::write(root.join("node.key"), cluster.client(1, 1_000).key).unwrap();
    eventually("it says so", async || {
        certificate(&node, "client").await["error"].is_string()
    })
    .await;
    write(&cluster.client(100, 1_000));
    until_state(&node, "client", "valid").await;
    node.until_mode("online").await;
    let online = node
        .get("/api/v1/namespaces/kube-system/configmaps/never")
        .await;
    assert_eq!(online.status, 404, "{}", online.text());
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_ca_is_learned_and_a_corrupt_certificate_is_asked_for_again() {
    let (cluster, directory) = (Cluster::start().await, Directory::new());
    let root = &directory.0;
    cluster.add_token(TOKEN).await;
    leave(root, &cluster, &cluster.client(100, 1_000));
    let current = root.join("pki/yurthub-current.pem");
    let text = std::fs::read_to_string(&current).unwrap();
    std::fs::write(&current, &text[..text.len() / 2]).unwrap();
    let next = Ca::new("kubernetes-next", 60).unwrap();
    let both = format!("{}{}", cluster.ca.cert_pem(), next.cert_pem());
    cluster.publish_ca(&both).await;
    let flags = [
        &*format!("--join-token={TOKEN}"),
        "--discovery-token-unsafe-skip-ca-verification",
    ];
    let node = Node::start(config(root, cluster.addr, &flags)).await;
    join(&cluster, &node).await;
    eventually("the new CA is believed", async || {
        let ca = certificate(&node, "ca").await;
        ca["subject"]
            .as_str()
            .is_some_and(|s| s.contains("kubernetes-next"))
    })
    .await;
    eventually("it is kept", async || {
        let kept = std::fs::read_to_string(root.join("pki/ca.crt")).unwrap();
        yurt_pki::certs_from_pem(&kept).is_ok_and(|all| all.len() == 2)
    })
    .await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_that_the_cloud_refuses_is_no_dead_link() {
    let (cluster, directory) = (Cluster::start().await, Directory::new());
    cluster.add_token(TOKEN).await;
    // Of a CA that the cloud does not know any more: it breaks the handshake off.
    let stranger = Ca::new("kubernetes", 1).unwrap();
    let foreign = stranger
        .issue(&Profile {
            common_name: "system:node:edge-1".into(),
            organizations: vec!["openyurt:yurthub".into(), "system:nodes".into()],
            client: true,
            days: 1,
            ..Profile::default()
        })
        .unwrap();
    leave(&directory.0, &cluster, &foreign);
    let flags = [
        &*format!("--join-token={TOKEN}"),
        &format!("--discovery-token-ca-cert-hash={}", cluster.pin()),
    ];
    let node = Node::start(config(&directory.0, cluster.addr, &flags)).await;
    let csr = cluster.undecided(CLIENT).await;
    assert_eq!(csr["spec"]["username"], "system:bootstrap:abcdef");
    assert_eq!(certificate(&node, "client").await["state"], "refused");
    node.until_up().await;
    join(&cluster, &node).await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_401_to_the_node_is_answered_from_what_it_knows() {
    let (trust, directory) = (Trust::new(), Directory::new());
    let cloud = Cloud::start(&trust).await;
    let path = "/api/v1/namespaces/default/pods/a";
    cloud.answer(Method::GET, path, 200, JSON, pod("a", 7));
    let node = Node::start(crate::node::config(&directory.0, &trust, &[cloud.addr])).await;
    node.until_mode("online").await;
    assert_eq!(node.get(path).await.status, 200);
    eventually("learned", async || {
        node.status().await["cache"]["objects"].as_u64() >= Some(1)
    })
    .await;
    let unauthorized = r#"{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"Unauthorized","reason":"Unauthorized","code":401}"#;
    for refused in [path, "/api/v1/nodes/edge-1"] {
        cloud.answer(Method::GET, refused, 401, JSON, unauthorized);
    }
    let known = node.get(path).await;
    assert_eq!(known.status, 200, "{}", known.text());
    until_state(&node, "client", "refused").await;
    assert_eq!(node.status().await["mode"], "offline");
    let said = node
        .get("/api/v1/namespaces/default/pods/never")
        .await
        .text();
    assert!(said.contains("does not accept"), "{said}");
    node.stop().await;
}
