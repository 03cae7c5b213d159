//! One hub under test, with its clients.

use super::cloud::Trust;
use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, header};
use http_body_util::BodyExt;
use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use yurt_hub::{
    Config, HubError,
    config::KeyPairFiles,
    server::{Listeners, bind_local, run_on},
};
use yurt_pki::KeyPairPem;
use yurt_transport::{Client, ClientOptions, ResponseBody};

/// How long anything may take before a test gives up on it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) struct Directory(pub(crate) PathBuf);

impl Directory {
    pub(crate) fn new() -> Self {
        static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("yurt-hub-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

pub(crate) struct Node {
    pub(crate) plain: SocketAddr,
    pub(crate) dummy: SocketAddr,
    pub(crate) secure: SocketAddr,
    pub(crate) pool: SocketAddr,
    pub(crate) client: Client,
    admin: Client,
    shutdown: CancellationToken,
    running: tokio::task::JoinHandle<Result<(), HubError>>,
}

pub(crate) fn config(directory: &Path, trust: &Trust, servers: &[SocketAddr]) -> Config {
    let write = |name: &str, text: &str| {
        let path = directory.join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let servers: Vec<String> = servers.iter().map(SocketAddr::to_string).collect();
    let pair = |name: &str, pair: &KeyPairPem| KeyPairFiles {
        cert: write(&format!("{name}.crt"), &pair.cert),
        key: write(&format!("{name}.key"), &pair.key),
    };
    let flags = [
        "--node-name=edge-1",
        "--lb-mode=priority",
        "--enable-dummy-if=false",
        &format!("--server-addr={}", servers.join(",")),
    ];
    Config {
        cache_dir: directory.join("cache"),
        root_dir: directory.to_owned(),
        cache_budget: 64 << 20,
        ca_file: write("ca.crt", &trust.ca.cert_pem()),
        node_certificate: Some(pair("node", &trust.node)),
        serving_certificate: Some(pair("serving", &trust.serving)),
        bootstrap: None,
        ..Config::parse(flags).unwrap()
    }
}

fn client(addr: SocketAddr) -> Client {
    Client::new(
        &addr.to_string(),
        None,
        ClientOptions {
            max_idle: 0,
            ..ClientOptions::default()
        },
    )
}

impl Node {
    pub(crate) async fn start(config: Config) -> Self {
        let pool = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self::start_on(config, pool).await
    }

    /// With this one for the other nodes of the pool.
    pub(crate) async fn start_on(config: Config, pool: TcpListener) -> Self {
        let bind = |ip: &'static str| async move { TcpListener::bind((ip, 0)).await.unwrap() };
        let node = "127.0.0.1";
        let (admin, proxy, secure) = (bind(node).await, bind(node).await, bind(node).await);
        // An address of the node that is not the one of its components.
        let dummy = bind("127.0.0.2").await;
        let local = bind_local(&config).unwrap();
        let address = |listener: &TcpListener| listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let (plain, admin_address) = (address(&proxy), address(&admin));
        let addresses = (address(&dummy), address(&secure), address(&pool));
        let listeners = Listeners {
            admin: Some(admin),
            proxy: Some(proxy),
            dummy_proxy: Some(dummy),
            secure_proxy: Some(secure),
            pool: Some(pool),
            local,
        };
        let running = tokio::spawn(run_on(config, listeners, shutdown.clone()));
        Self {
            plain,
            dummy: addresses.0,
            secure: addresses.1,
            pool: addresses.2,
            client: client(plain),
            admin: client(admin_address),
            shutdown,
            running,
        }
    }

    pub(crate) async fn stop(self) {
        self.shutdown.cancel();
        tokio::time::timeout(PATIENCE, self.running)
            .await
            .unwrap()
            .unwrap()
            .unwrap();
    }

    pub(crate) async fn ask(&self, request: Request<Bytes>) -> Response<ResponseBody> {
        let request = request.map(yurt_transport::full);
        self.client.send(request, PATIENCE).await.unwrap()
    }

    pub(crate) async fn get(&self, target: &str) -> Answered {
        self.get_as(target, &[("accept", "application/json")]).await
    }

    pub(crate) async fn get_as(&self, target: &str, headers: &[(&str, &str)]) -> Answered {
        self.call(Method::GET, target, headers, "").await
    }

    pub(crate) async fn call(
        &self,
        method: Method,
        target: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> Answered {
        let mut request = Request::builder().method(method).uri(target);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request
            .body(Bytes::copy_from_slice(body.as_bytes()))
            .unwrap();
        Answered::of(self.ask(request).await).await
    }

    pub(crate) async fn watch(&self, target: &str, headers: &[(&str, &str)]) -> Watching {
        let mut request = Request::builder().uri(target);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = self.ask(request.body(Bytes::new()).unwrap()).await;
        assert_eq!(response.status(), 200, "{target}");
        Watching::of(response)
    }

    pub(crate) async fn admin(&self, path: &str) -> Answered {
        let request = Request::builder()
            .uri(path)
            .body(yurt_transport::empty())
            .unwrap();
        Answered::of(self.admin.send(request, PATIENCE).await.unwrap()).await
    }

    pub(crate) async fn admin_call(&self, method: Method, path: &str, body: &str) -> Answered {
        let request = Request::builder().method(method).uri(path);
        let body = yurt_transport::full(body.to_owned());
        let request = request.body(body).unwrap();
        Answered::of(self.admin.send(request, PATIENCE).await.unwrap()).await
    }

    pub(crate) async fn status(&self) -> serde_json::Value {
        serde_json::from_slice(&self.admin("/v1/status").await.body).unwrap()
    }

    pub(crate) async fn metric(&self, line: &str) -> f64 {
        let text = self.admin("/metrics").await.text();
        text.lines()
            .find_map(|l| l.strip_prefix(line)?.trim().parse().ok())
            .unwrap_or(0.0)
    }

    pub(crate) async fn until_mode(&self, mode: &str) -> Duration {
        let began = Instant::now();
        eventually(mode, async || self.status().await["mode"] == mode).await;
        began.elapsed()
    }

    pub(crate) async fn until_up(&self) {
        eventually("a server is up", async || {
            let status = self.status().await;
            status["servers"]
                .as_array()
                .unwrap()
                .iter()
                .any(|s| s["state"] == "up")
        })
        .await;
    }
}

/// Waits until a condition holds; fails when it does not within the patience.
pub(crate) async fn eventually(what: &str, condition: impl AsyncFn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition().await {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

pub(crate) struct Answered {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Answered {
    pub(crate) async fn of(response: Response<ResponseBody>) -> Self {
        let (head, body) = response.into_parts();
        let body = tokio::time::timeout(PATIENCE, yurt_transport::collect(body, 64 << 20));
        Self {
            status: head.status.as_u16(),
            headers: head.headers,
            body: body.await.expect("a body that ends").expect("a whole body"),
        }
    }
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }
    pub(crate) fn content_type(&self) -> &str {
        self.headers
            .get(header::CONTENT_TYPE)
            .map_or("", |v| v.to_str().unwrap())
    }
}

/// An open watch in JSON.
pub(crate) struct Watching {
    pub(crate) headers: HeaderMap,
    pub(crate) body: ResponseBody,
    rest: Vec<u8>,
}

/// What came next in a watch.
#[derive(Debug, PartialEq)]
pub(crate) enum Came {
    Event(serde_json::Value),
    End,
    Broken,
}

impl Watching {
    pub(crate) fn of(response: Response<ResponseBody>) -> Self {
        Self {
            headers: response.headers().clone(),
            body: response.into_body(),
            rest: Vec::new(),
        }
    }

    /// The next event; one a line.
    pub(crate) async fn next(&mut self) -> Came {
        loop {
            if let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.rest.drain(..=end).collect();
                return Came::Event(serde_json::from_slice(&line).expect("an event in JSON"));
            }
            let frame = tokio::time::timeout(PATIENCE, self.body.frame())
                .await
                .expect("an event, or an end");
            match frame {
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.rest.extend_from_slice(&data);
                    }
                }
                Some(Err(_)) => return Came::Broken,
                None => return Came::End,
            }
        }
    }

    pub(crate) async fn event(&mut self) -> serde_json::Value {
        match self.next().await {
            Came::Event(event) => event,
            other => panic!("no event but {other:?}"),
        }
    }

    /// Whether nothing comes for a while.
    pub(crate) async fn silent_for(&mut self, time: Duration) -> bool {
        tokio::time::timeout(time, self.body.frame()).await.is_err()
    }
}
