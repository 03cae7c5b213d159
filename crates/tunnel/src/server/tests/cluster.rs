//! Server and agent of a cluster, as they are shipped: under exactly the rules of `deploy/tunnel`, against an API server that minds them.

use crate::{
    agent::{self, AgentArgs},
    frontend::client::Way,
    server::{self, ServerArgs},
};
use clap::Parser;
use http::StatusCode;
use jiff::Timestamp;
use serde_json::{Value, json};
use std::{
    collections::BTreeSet,
    fs,
    net::SocketAddr,
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use yurt_controller::{
    kubeconfig::{self, Credentials},
    signing_request::{is_open, with_condition},
};
use yurt_controlplane::{
    Settings,
    stage::{NODE, Stage},
};
use yurt_pki::Ca;
use yurt_transport::{ServeOptions, serve};

const SYSTEM: &str = "/api/v1/namespaces/kube-system";
const CSRS: &str = "/apis/certificates.k8s.io/v1/certificatesigningrequests";

#[derive(Parser)]
struct ServerLine {
    #[command(flatten)]
    args: ServerArgs,
}

#[derive(Parser)]
struct AgentLine {
    #[command(flatten)]
    args: AgentArgs,
}

/// Requests that the API server refused: whose, and what for.
type Refused = Arc<Mutex<BTreeSet<String>>>;

/// The API server at a port, where somebody looks on.
async fn watched(stage: &Stage, refused: Refused) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let address = listener.local_addr().expect("an address");
    let api = Arc::new(stage.api().in_process());
    tokio::spawn(serve(
        listener,
        None,
        ServeOptions::default(),
        CancellationToken::new(),
        move |request| {
            let (api, refused) = (api.clone(), refused.clone());
            async move {
                let asked = format!("{} {}", request.method(), request.uri());
                let answer = api.call(request).await;
                if matches!(
                    answer.status(),
                    StatusCode::FORBIDDEN | StatusCode::UNAUTHORIZED
                ) {
                    refused.lock().expect("held shortly").insert(asked);
                }
                answer
            }
        },
    ));
    address
}

/// Where an object is created.
fn collection(object: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let version = text(&object["apiVersion"]);
    let root = if version.contains('/') { "apis" } else { "api" };
    let plural = text(&object["kind"]).to_lowercase() + "s";
    match object["metadata"]["namespace"].as_str() {
        Some(namespace) => format!("/{root}/{version}/namespaces/{namespace}/{plural}"),
        None => format!("/{root}/{version}/{plural}"),
    }
}

/// Applies what is shipped; agents find the server at `external`.
async fn apply(stage: &Stage, external: SocketAddr) {
    let file = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../deploy/tunnel/tunnel.yaml"
    );
    let text = fs::read_to_string(file).expect("it is shipped");
    for document in text.split("---\n").filter(|text| text.contains("kind:")) {
        let mut object: Value = serde_saphyr::from_str(document).expect("YAML");
        if object["metadata"]["name"] == "x-tunnel-server-svc" {
            object["metadata"]["annotations"] =
                json!({"x-tunnel-server-external-addr": external.to_string()});
        }
        stage.create(&collection(&object), object).await;
    }
}

/// Approves every request, as the manager does.
async fn approve(kube: yurt_controller::kube::Kube) {
    loop {
        let list = kube.get(CSRS).await.unwrap_or_default();
        for csr in list["items"].as_array().into_iter().flatten() {
            if is_open(csr) {
                let name = csr["metadata"]["name"].as_str().unwrap_or_default();
                let patch = with_condition(csr, "Approved", "Test", "", Timestamp::now());
                // Whatever changed meanwhile is seen the next time.
                let _ = kube.merge(&format!("{CSRS}/{name}/approval"), &patch).await;
            }
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn written(directory: &Path, name: &str, api: SocketAddr, token: &str) -> String {
    let path = directory.join(name);
    let text = kubeconfig::render(
        "c",
        &format!("http://{api}"),
        "",
        &Credentials::Token(token),
    );
    fs::write(&path, text).expect("written");
    path.display().to_string()
}

#[tokio::test]
async fn the_rules_are_enough_for_server_and_agents() {
    let ca = Ca::new("cluster", 10).expect("a CA");
    let settings = Settings {
        signing: Some(ca.to_pem()),
        ..Settings::default()
    };
    let signer = "certificatesigningrequest-signing-controller";
    let stage = Stage::start_with(signer, settings).await;
    let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let external = free.local_addr().expect("an address");
    drop(free);
    apply(&stage, external).await;
    let node =
        json!({"metadata": {"name": NODE, "labels": {"openyurt.io/is-edge-worker": "true"}}});
    stage.create("/api/v1/nodes", node).await;
    let status = json!({"status": {"addresses": [{"type": "InternalIP", "address": "127.0.0.1"}]}});
    let merged = stage
        .kube
        .merge(&format!("/api/v1/nodes/{NODE}/status"), &status)
        .await;
    merged.expect("a status");
    let request =
        json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}});
    let account = format!("{SYSTEM}/serviceaccounts/yurt-tunnel-server/token");
    let granted = stage.create(&account, request).await;
    let token = granted["status"]["token"].as_str().expect("a token");
    let approving = tokio::spawn(approve(stage.kube.clone()));
    let refused = Refused::default();
    let api = watched(&stage, refused.clone()).await;

    let directory = tempfile::tempdir().expect("a directory");
    let at = |name: &str| directory.path().join(name).display().to_string();
    fs::write(at("ca.crt"), ca.cert_pem()).expect("written");
    let line = ServerLine::parse_from([
        "server".to_owned(),
        format!(
            "--kubeconfig={}",
            written(directory.path(), "server.conf", api, token)
        ),
        format!("--cluster-ca-cert={}", at("ca.crt")),
        format!("--kubelet-certificate-authority={}", at("ca.crt")),
        format!("--cert-dir={}", at("server")),
        format!("--uds-name={}", at("frontend.sock")),
        format!("--agent-port={}", external.port()),
        format!("--peer-address={external}"),
        "--server-id=one".to_owned(),
        "--bind-address=127.0.0.1".to_owned(),
        "--meta-port=0".to_owned(),
        "--secure-port=0".to_owned(),
        "--insecure-port=0".to_owned(),
        // The rules of this host are none of a test's business.
        "--enable-iptables=false".to_owned(),
    ]);
    let end = CancellationToken::new();
    let server = tokio::spawn(server::run(line.args, end.clone()));
    let line = AgentLine::parse_from([
        "agent".to_owned(),
        format!(
            "--kube-config={}",
            written(directory.path(), "agent.conf", api, NODE)
        ),
        format!("--ca-cert={}", at("ca.crt")),
        format!("--cert-dir={}", at("agent")),
        format!("--node-name={NODE}"),
        "--node-ip=127.0.0.1".to_owned(),
        "--meta-port=0".to_owned(),
        "--count-server-leases".to_owned(),
    ]);
    let config = line.args.config().expect("a configuration");
    let agent = tokio::spawn(agent::run(config, end.clone()));

    let socket = Way::Unix(directory.path().join("frontend.sock"));
    let connected = async {
        loop {
            if let Ok((StatusCode::OK, _)) = socket.get("/readyz").await {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let connected = tokio::time::timeout(Duration::from_secs(40), connected).await;
    let seen = || refused.lock().expect("held shortly").clone();
    assert!(connected.is_ok(), "no agent comes; refused: {:?}", seen());
    let lease =
        "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases/konnectivity-proxy-server-one";
    stage
        .until(lease, |lease| lease["spec"]["holderIdentity"] == "one")
        .await;
    // Names of nodes, and ports that somebody asks for.
    let names = format!("{SYSTEM}/configmaps/yurt-tunnel-nodes");
    stage.until(&names, |map| map["data"].is_object()).await;
    let ports = json!({"data": {"https-proxy-ports": "9445"}});
    let config_map = format!("{SYSTEM}/configmaps/yurt-tunnel-server-cfg");
    stage
        .kube
        .merge(&config_map, &ports)
        .await
        .expect("changed");
    let service = format!("{SYSTEM}/services/x-tunnel-server-internal-svc");
    stage
        .until(&service, |service| {
            let ports = service["spec"]["ports"].as_array().into_iter().flatten();
            ports.into_iter().any(|port| port["port"] == 9445)
        })
        .await;
    end.cancel();
    server.await.expect("no panic").expect("an orderly end");
    agent.await.expect("no panic").expect("an orderly end");
    // Who goes says so.
    stage.until(lease, |lease| lease["code"] == 404).await;
    approving.abort();
    assert!(seen().is_empty(), "the rules do not suffice: {:?}", seen());
}
