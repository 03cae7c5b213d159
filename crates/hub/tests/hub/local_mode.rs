//! Local mode on a real packet filter, with a scripted host cluster.

use crate::{
    cloud::{Cloud, JSON, Trust},
    netns::{can_run, inside, must, tool},
    node::{Directory, eventually},
};
use http::Method;
use serde_json::{Value, json};
use std::{net::SocketAddr, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_util::sync::CancellationToken;
use yurt_hub::{
    Config,
    local_mode::{self, Firewall, Rules, Tool},
};

const ENDPOINTS: &str = "/api/v1/namespaces/tenant-control-plane/endpoints";
const SERVICE: &str = "10.96.0.1:443";

/// An API server of the tenant: says its name.
async fn backend(name: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("10.1.1.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.write_all(name.as_bytes()).await;
        }
    });
    address
}

/// Who answers at the service's address; empty when nobody does.
async fn who() -> String {
    let mut name = String::new();
    let asked = async {
        let mut stream = TcpStream::connect(SERVICE).await.ok()?;
        stream.read_to_string(&mut name).await.ok()
    };
    let _ = tokio::time::timeout(Duration::from_secs(1), asked).await;
    name
}

/// A node on which the service's address leads nowhere.
fn prepare() {
    must("ip", &["link", "set", "lo", "up"]);
    must("ip", &["address", "add", "10.1.1.1/32", "dev", "lo"]);
    must(
        "ip",
        &[
            "route",
            "add",
            "10.96.0.0/16",
            "dev",
            "lo",
            "src",
            "10.1.1.1",
        ],
    );
}

async fn packets_follow_the_rules(mut tool: Tool) {
    prepare();
    let service: SocketAddr = SERVICE.parse().unwrap();
    let (a, b) = (backend("a").await, backend("b").await);
    let both = Rules::new(service, [a, b]);
    // Twice: the same again.
    for _ in 0..2 {
        tool.apply(&both).await.unwrap();
    }
    let mut seen = (0, 0);
    for _ in 0..64 {
        match who().await.as_str() {
            "a" => seen.0 += 1,
            "b" => seen.1 += 1,
            other => panic!("{other:?}"),
        }
    }
    // By chance one in 10^18 times it is the same one always.
    assert!(seen.0 > 0 && seen.1 > 0, "{seen:?}");
    tool.apply(&Rules::new(service, [b])).await.unwrap();
    for _ in 0..8 {
        assert_eq!(who().await, "b");
    }
    tool.apply(&Rules::new(service, [])).await.unwrap();
    assert_eq!(who().await, "");
    tool.apply(&both).await.unwrap();
    assert_ne!(who().await, "");
    for _ in 0..2 {
        tool.clear(service.ip()).await.unwrap();
        assert_eq!(who().await, "");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn packets_follow_the_rules_of_nft() {
    const TEST: &str = "local_mode::packets_follow_the_rules_of_nft";
    if !can_run(TEST, &[("ip", &["address"]), ("nft", &["list", "tables"])]) || !inside(TEST) {
        return;
    }
    packets_follow_the_rules(Tool::Nft).await;
    assert_eq!(must("nft", &["list", "tables"]), "");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn packets_follow_the_rules_of_iptables() {
    const TEST: &str = "local_mode::packets_follow_the_rules_of_iptables";
    let tools: [(&str, &[&str]); 2] = [("ip", &["address"]), ("iptables-save", &["-t", "nat"])];
    if !can_run(TEST, &tools) || !inside(TEST) {
        return;
    }
    // As on a node: somebody else's rules are there, and stay.
    must(
        "iptables",
        &[
            "-t",
            "nat",
            "-A",
            "OUTPUT",
            "-d",
            "10.2.0.0/16",
            "-j",
            "ACCEPT",
        ],
    );
    packets_follow_the_rules(Tool::Iptables).await;
    let left = must("iptables-save", &["-t", "nat"]);
    assert!(
        left.contains("10.2.0.0/16") && !left.contains("YURT"),
        "{left}"
    );
}

fn endpoints(revision: u64, addresses: &[SocketAddr]) -> Value {
    let subset = |address: &SocketAddr| {
        json!({
            "addresses": [{ "ip": address.ip() }],
            "ports": [{ "name": "https", "port": address.port(), "protocol": "TCP" }],
        })
    };
    json!({
        "kind": "Endpoints", "apiVersion": "v1",
        "metadata": { "name": "tenant-apiserver", "namespace": "tenant-control-plane", "uid": "e",
            "resourceVersion": revision.to_string() },
        "subsets": addresses.iter().map(subset).collect::<Vec<_>>(),
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_tenants_service_leads_to_its_endpoints_while_the_hub_runs() {
    const TEST: &str = "local_mode::the_tenants_service_leads_to_its_endpoints_while_the_hub_runs";
    if !can_run(TEST, &[("ip", &["address"]), ("nft", &["list", "tables"])]) || !inside(TEST) {
        return;
    }
    prepare();
    let (trust, directory) = (Trust::new(), Directory::new());
    let host = Cloud::start(&trust).await;
    let (a, b) = (backend("a").await, backend("b").await);
    let list = json!({
        "kind": "EndpointsList", "apiVersion": "v1",
        "metadata": { "resourceVersion": "5" }, "items": [endpoints(4, &[a])],
    });
    host.answer(Method::GET, ENDPOINTS, 200, JSON, list.to_string());
    let ca = directory.0.join("ca.crt");
    std::fs::write(&ca, trust.ca.cert_pem()).unwrap();
    let flags = [
        "--node-name=n".to_owned(),
        "--working-mode=local".to_owned(),
        format!("--root-dir={}", directory.0.display()),
        format!("--server-addr={SERVICE}"),
        format!("--host-control-plane-address={}", host.addr),
        format!("--ca-file={}", ca.display()),
    ];
    let config = Config::parse(flags.iter().map(String::as_str)).unwrap();
    let shutdown = CancellationToken::new();
    let tool_of_hub = Tool::find().await.unwrap();
    assert_eq!(tool_of_hub, Tool::Nft);
    let hub = tokio::spawn(local_mode::run(config, tool_of_hub, shutdown.clone()));
    eventually("the first endpoint", async || who().await == "a").await;
    let watched = format!("{ENDPOINTS}?fieldSelector=metadata.name%3Dtenant-apiserver");
    let tell = async |kind: &str, object: Value| {
        let event = format!("{}\n", json!({ "type": kind, "object": object }));
        eventually("the watch is open", async || host.watching(&watched) > 0).await;
        host.emit(&watched, event).await;
    };
    tell("MODIFIED", endpoints(6, &[b])).await;
    eventually("another endpoint", async || who().await == "b").await;
    // Somebody's health is not the hub's care: an endpoint stays as long as it is written so. One that is deleted goes.
    tell("DELETED", endpoints(7, &[b])).await;
    eventually("no endpoint", async || who().await.is_empty()).await;
    tell("ADDED", endpoints(8, &[a])).await;
    eventually("an endpoint again", async || who().await == "a").await;
    shutdown.cancel();
    hub.await.unwrap().unwrap();
    assert_eq!(tool("nft", &["list", "tables"]).unwrap(), "");
    assert_eq!(who().await, "");
}
