//! One edge node in one process: the API server, the breakable link, the node's hub and its simulated kubelet.

use http::{Method, Request, StatusCode, header};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use std::{
    net::SocketAddr,
    path::Path,
    time::{Duration, Instant},
};
use tempfile::TempDir;
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::sync::CancellationToken;
use yurt_apiserver::{ApiServer, authn::User};
use yurt_hub::{
    HubError,
    config::KeyPairFiles,
    server::{Listeners, run_on},
};
use yurt_lab::{
    kubelet::{KubeletConfig, KubeletHandle, SimulatedKubelet},
    link::{Link, LinkState},
};
use yurt_pki::{Ca, KeyPairPem, Profile};
use yurt_transport::{Client, ClientOptions, ResponseBody, collect, empty, full};
use yurt_wire::{
    Encoding,
    watch::{EventType, FrameDecoder},
};

const LONG: Duration = Duration::from_secs(30);
const TOKEN: &str = "administrator";

/// A JSON client.
struct Kube(Client);

impl Kube {
    fn new(address: SocketAddr, tls: Option<std::sync::Arc<rustls::ClientConfig>>) -> Self {
        Self(Client::new(
            &address.to_string(),
            tls,
            ClientOptions::default(),
        ))
    }

    async fn call(&self, method: Method, path: &str, body: Option<&Value>) -> (StatusCode, Value) {
        let mut request = Request::new(body.map_or_else(empty, |body| full(body.to_string())));
        *request.method_mut() = method;
        *request.uri_mut() = path.parse().unwrap();
        let headers = request.headers_mut();
        let mut header = |name, value: &str| headers.insert(name, value.parse().unwrap());
        header(header::ACCEPT, "application/json");
        header(header::AUTHORIZATION, &format!("Bearer {TOKEN}"));
        if body.is_some() {
            header(header::CONTENT_TYPE, "application/json");
        }
        let response = match self.0.send(request, LONG).await {
            Ok(response) => response,
            // A hub that is being restarted.
            Err(error) => return (StatusCode::BAD_GATEWAY, json!(error.to_string())),
        };
        let status = response.status();
        let bytes = collect(response.into_body(), 16 << 20).await.unwrap();
        (status, serde_json::from_slice(&bytes).unwrap_or_default())
    }

    async fn get(&self, path: &str) -> Value {
        self.call(Method::GET, path, None).await.1
    }

    /// Opens a watch; its events one a line.
    async fn watch(&self, path: &str) -> Events {
        let request = Request::get(format!("{path}?watch=true&allowWatchBookmarks=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&timeoutSeconds=300"))
            .header(header::ACCEPT, "application/json")
            .header(header::AUTHORIZATION, format!("Bearer {TOKEN}"))
            .body(empty())
            .unwrap();
        let response = self.0.send(request, LONG).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        Events {
            body: response.into_body(),
            decoder: FrameDecoder::new(Encoding::Json, 1 << 20),
        }
    }

    async fn create(&self, path: &str, object: Value) -> Value {
        let (status, created) = self.call(Method::POST, path, Some(&object)).await;
        assert_eq!(status, StatusCode::CREATED, "{created}");
        created
    }

    /// Asks until the answer is as wanted.
    async fn until(&self, path: &str, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let begin = Instant::now();
        loop {
            let answer = self.get(path).await;
            if wanted(&answer) {
                return answer;
            }
            assert!(begin.elapsed() < LONG, "never: {what}: {answer:#}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

struct Events {
    body: ResponseBody,
    decoder: FrameDecoder,
}

impl Events {
    /// The next event that is as wanted. A watch that ends fails the test: it has to outlive what is done to the link.
    async fn until(&mut self, what: &str, wanted: impl Fn(EventType, &Value) -> bool) {
        let search = async {
            loop {
                while let Some(frame) = self.decoder.next_frame().unwrap() {
                    let event = frame.event.unwrap();
                    if wanted(event.kind, &event.object.to_json_value().unwrap()) {
                        return;
                    }
                }
                let frame = self.body.frame().await.expect("the watch ended").unwrap();
                self.decoder.push(frame.into_data().unwrap());
            }
        };
        let found = tokio::time::timeout(LONG, search).await;
        found.unwrap_or_else(|_| panic!("never: {what}"));
    }
}

struct Lab {
    cloud: Kube,
    /// Through the hub.
    node: Kube,
    link: Link,
    kubelet: KubeletHandle,
    stop: CancellationToken,
    stop_hub: CancellationToken,
    hub: JoinHandle<Result<(), HubError>>,
    proxy: SocketAddr,
    config: yurt_hub::Config,
    _directory: TempDir,
}

fn pair(directory: &Path, name: &str, pem: &KeyPairPem) -> KeyPairFiles {
    let file = |end: &str, text: &str| {
        let path = directory.join(format!("{name}.{end}"));
        std::fs::write(&path, text).unwrap();
        path
    };
    KeyPairFiles {
        cert: file("crt", &pem.cert),
        key: file("key", &pem.key),
    }
}

fn hub_on(
    config: yurt_hub::Config,
    proxy: TcpListener,
) -> (CancellationToken, JoinHandle<Result<(), HubError>>) {
    let stop = CancellationToken::new();
    let listeners = Listeners {
        proxy: Some(proxy),
        ..Listeners::default()
    };
    let hub = tokio::spawn(run_on(config, listeners, stop.clone()));
    (stop, hub)
}

impl Lab {
    async fn start() -> Self {
        let directory = TempDir::new().unwrap();
        let stop = CancellationToken::new();
        let ca = Ca::new("kubernetes", 1).unwrap();
        let serving = Profile {
            common_name: "kube-apiserver".into(),
            ips: vec!["127.0.0.1".parse().unwrap()],
            server: true,
            days: 1,
            ..Profile::default()
        };
        let node = Profile {
            common_name: "system:node:edge-1".into(),
            organizations: vec!["openyurt:yurthub".into(), "system:nodes".into()],
            client: true,
            days: 1,
            ..Profile::default()
        };
        let api = yurt_apiserver::Config {
            tls: Some(yurt_apiserver::Tls {
                serving: ca.issue(&serving).unwrap(),
                client_ca: Some(ca.cert_pem()),
            }),
            tokens: vec![(TOKEN.into(), User::new("admin", &["system:masters"]))],
            root_ca: Some(ca.cert_pem()),
            ..Default::default()
        };
        let api = ApiServer::start(api, stop.clone()).await.unwrap();
        let any = "127.0.0.1:0".parse().unwrap();
        let link = Link::start(any, api.addr()).await.unwrap();
        let ca_file = directory.path().join("ca.crt");
        std::fs::write(&ca_file, ca.cert_pem()).unwrap();
        let config = yurt_hub::Config {
            cache_dir: directory.path().join("cache"),
            root_dir: directory.path().to_owned(),
            cache_budget: 64 << 20,
            ca_file,
            node_certificate: Some(pair(directory.path(), "node", &ca.issue(&node).unwrap())),
            bootstrap: None,
            ..yurt_hub::Config::parse([
                "--node-name=edge-1",
                "--enable-dummy-if=false",
                "--heartbeat-interval-seconds=1",
                &format!("--server-addr={}", link.address()),
            ])
            .unwrap()
        };
        let listener = TcpListener::bind(any).await.unwrap();
        let proxy = listener.local_addr().unwrap();
        let (stop_hub, hub) = hub_on(config.clone(), listener);
        let mut kubelet = KubeletConfig::new("edge-1", &format!("http://{proxy}"));
        kubelet.lease_interval = Duration::from_millis(500);
        kubelet.status_interval = Duration::from_millis(500);
        let (kubelet, _) = SimulatedKubelet::start(kubelet, stop.clone());
        let tls = yurt_pki::client_config(&ca.cert_pem(), None, &["h2"]).unwrap();
        Self {
            cloud: Kube::new(api.addr(), Some(tls)),
            node: Kube::new(proxy, None),
            link,
            kubelet,
            stop,
            stop_hub,
            hub,
            proxy,
            config,
            _directory: directory,
        }
    }

    /// Stops the hub and starts another one on its address and its cache.
    async fn restart_hub(&mut self) {
        self.stop_hub.cancel();
        let ended = tokio::time::timeout(LONG, &mut self.hub).await;
        ended.expect("the hub stops").unwrap().unwrap();
        let listener = TcpListener::bind(self.proxy).await.unwrap();
        (self.stop_hub, self.hub) = hub_on(self.config.clone(), listener);
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.stop.cancel();
        self.stop_hub.cancel();
    }
}

fn pod(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {
            "nodeName": "edge-1",
            "containers": [{"name": "main", "image": "busybox:1", "command": ["sleep", "1000"]}],
        },
    })
}

fn is_true(object: &Value, kind: &str) -> bool {
    let conditions = object["status"]["conditions"].as_array();
    conditions.is_some_and(|all| {
        all.iter()
            .any(|c| c["type"] == kind && c["status"] == "True")
    })
}

const NODE: &str = "/api/v1/nodes/edge-1";
const LEASE: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/edge-1";
const PODS: &str = "/api/v1/namespaces/default/pods";
const WEB: &str = "/api/v1/namespaces/default/pods/web";
const LATER: &str = "/api/v1/namespaces/default/pods/later";
const TOUCHED: &str = "lab.yurt.io/Touched";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_outlives_its_link() {
    let mut lab = Lab::start().await;
    lab.cloud
        .until(NODE, "a ready node", |node| is_true(node, "Ready"))
        .await;
    lab.cloud.create(PODS, pod("web")).await;
    let running = lab
        .cloud
        .until(WEB, "a running pod", |pod| is_true(pod, "Ready"))
        .await;
    assert_eq!(running["status"]["phase"], "Running");
    lab.node
        .until(WEB, "the pod through the hub", |pod| is_true(pod, "Ready"))
        .await;
    let renewed = lab.cloud.get(LEASE).await["spec"]["renewTime"].clone();
    let is_renewed = |lease: &Value| lease["spec"]["renewTime"] != renewed;
    lab.cloud.until(LEASE, "renewals", is_renewed).await;

    lab.link.set(LinkState::Cut);
    let begin = Instant::now();
    let cached = lab
        .node
        .until(WEB, "the cached pod", |pod| is_true(pod, "Ready"))
        .await;
    println!("first answer {:?} after the cut", begin.elapsed());
    assert_eq!(cached["metadata"]["uid"], running["metadata"]["uid"]);
    assert!(lab.kubelet.touch_pod("default", "web"));
    lab.node
        .until(WEB, "a status written while cut", |pod| {
            is_true(pod, TOUCHED)
        })
        .await;
    println!(
        "a status through the hub {:?} after the cut",
        begin.elapsed()
    );
    assert!(
        !is_true(&lab.cloud.get(WEB).await, TOUCHED),
        "the link is cut"
    );
    // Meanwhile in the cloud.
    lab.cloud.create(PODS, pod("later")).await;

    lab.restart_hub().await;
    let again = lab.node.until(WEB, "the status after a restart", |pod| {
        is_true(pod, TOUCHED)
    });
    assert_eq!(again.await["metadata"]["uid"], running["metadata"]["uid"]);
    assert!(
        !is_true(&lab.cloud.get(WEB).await, TOUCHED),
        "the link is still cut"
    );

    lab.link.set(LinkState::Up);
    let begin = Instant::now();
    lab.cloud
        .until(WEB, "the status in the cloud", |pod| is_true(pod, TOUCHED))
        .await;
    println!("in the cloud {:?} after the heal", begin.elapsed());
    lab.cloud
        .until(LATER, "the later pod", |pod| is_true(pod, "Ready"))
        .await;
    println!("the later pod runs {:?} after the heal", begin.elapsed());
    assert_eq!(lab.kubelet.state().pods, 2);

    // A deleted pod is stopped by its kubelet, and then it is gone.
    let (status, _) = lab.cloud.call(Method::DELETE, LATER, None).await;
    assert!(status.is_success());
    lab.cloud
        .until(LATER, "the pod's end", |pod| pod["reason"] == "NotFound")
        .await;
    lab.node
        .until(LATER, "its end through the hub", |pod| {
            pod["reason"] == "NotFound"
        })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_outlives_every_kind_of_break() {
    let lab = Lab::start().await;
    lab.cloud
        .until(NODE, "a ready node", |node| is_true(node, "Ready"))
        .await;
    lab.cloud.create(PODS, pod("web")).await;
    lab.cloud
        .until(WEB, "a running pod", |pod| is_true(pod, "Ready"))
        .await;
    let mut events = lab.node.watch(PODS).await;
    events
        .until("the running pod", |_, pod| is_true(pod, "Ready"))
        .await;
    let breaks = [LinkState::Reset, LinkState::Cut, LinkState::Reset];
    for (round, broken) in (1..).zip(breaks) {
        lab.link.set(broken);
        assert!(lab.kubelet.touch_pod("default", "web"));
        let touched = format!("touched {round} times");
        let is_touched = |pod: &Value| {
            let conditions = pod["status"]["conditions"].as_array();
            conditions.is_some_and(|all| all.iter().any(|c| c["message"] == *touched))
        };
        events
            .until("the status written while broken", |_, pod| is_touched(pod))
            .await;
        let name = format!("meanwhile-{round}");
        lab.cloud.create(PODS, pod(&name)).await;
        lab.link.set(LinkState::Up);
        events
            .until("what came meanwhile in the cloud", |kind, pod| {
                kind == EventType::Added && pod["metadata"]["name"] == *name
            })
            .await;
        lab.cloud
            .until(WEB, "the status in the cloud", is_touched)
            .await;
    }
    // The kubelet's watch is another one than ours: it may be a moment behind.
    let all = async {
        while lab.kubelet.state().pods != 4 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(LONG, all)
        .await
        .expect("the kubelet knows all four pods");
}
