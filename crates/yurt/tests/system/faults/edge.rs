//! One `yurt hub` process between a scripted cloud, a link that breaks on demand, and plain clients.

use super::cloud::{Cloud, JSON, Link, PATIENCE, Trust};
use crate::fixture::{Scratch, signal, yurt};
use bytes::Bytes;
use http::{Method, Request, Response};
use rustix::process::Signal;
use serde_json::Value;
use std::{
    fs::OpenOptions,
    net::SocketAddr,
    path::PathBuf,
    process::{Child, Stdio},
    sync::atomic::{AtomicU8, Ordering},
    time::{Duration, Instant},
};
use yurt_transport::{Client, ClientOptions, ResponseBody};

/// The node and what surrounds it.
pub(crate) struct Edge {
    pub(crate) cloud: Cloud,
    pub(crate) link: Link,
    scratch: Scratch,
    address: String,
    hub: Option<Child>,
    client: Client,
    admin: Client,
}

impl Edge {
    /// Everything but the hub, which [`Edge::run`] starts.
    pub(crate) async fn new() -> Self {
        // Loopback addresses of its own, so that the hub has its ordinary ports whatever else runs here.
        static NEXT: AtomicU8 = AtomicU8::new(1);
        let [.., high, low] = std::process::id().to_be_bytes();
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let address = format!("127.{}.{low}.{number}", 128 | high >> 1);
        let client = |port: u16| {
            let options = ClientOptions {
                max_idle: 0,
                ..ClientOptions::default()
            };
            Client::new(&format!("{address}:{port}"), None, options)
        };
        let trust = Trust::new("cloud");
        let cloud = Cloud::start(&trust).await;
        let scratch = Scratch::new();
        let write = |name: &str, text: &str| std::fs::write(scratch.path().join(name), text);
        write("ca.crt", &trust.ca.cert_pem()).unwrap();
        write("node.crt", &trust.node.cert).unwrap();
        write("node.key", &trust.node.key).unwrap();
        Self {
            link: Link::to(cloud.addr).await,
            cloud,
            client: client(10261),
            admin: client(10267),
            scratch,
            address,
            hub: None,
        }
    }

    /// The directory of the cache; its parent can be something of its own.
    pub(crate) fn cache(&self) -> PathBuf {
        self.scratch.path().join("disk").join("cache")
    }

    /// Starts the hub and waits until it is there.
    pub(crate) async fn run(&mut self) {
        assert!(self.hub.is_none());
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.scratch.path().join("hub.log"))
            .unwrap();
        let file = |name: &str| self.scratch.path().join(name);
        let hub = yurt()
            .args(["hub", "--node-name=edge-1", "--enable-dummy-if=false"])
            .arg("--multiplexer-port=0")
            .arg(format!("--bind-address={}", self.address))
            .arg(format!("--bind-proxy-address={}", self.address))
            .arg(format!("--server-addr=https://{}", self.link.addr))
            .args(["--disk-cache-path".into(), self.cache()])
            .args(["--root-dir".into(), file("root")])
            .args(["--ca-file".into(), file("ca.crt")])
            .args(["--client-cert".into(), file("node.crt")])
            .args(["--client-key".into(), file("node.key")])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.hub = Some(hub);
        let deadline = Instant::now() + PATIENCE;
        while self.try_admin("/v1/healthz").await.is_none() {
            self.check_alive();
            assert!(Instant::now() < deadline, "no hub:\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The hub has not ended by itself.
    pub(crate) fn check_alive(&mut self) {
        let ended = self.hub.as_mut().unwrap().try_wait().unwrap();
        assert!(ended.is_none(), "the hub ended: {ended:?}\n{}", self.log());
    }

    /// `kill -9`.
    pub(crate) fn kill(&mut self) {
        let mut hub = self.hub.take().unwrap();
        hub.kill().unwrap();
        hub.wait().unwrap();
    }

    /// SIGTERM, upon which the hub writes what it knows and ends well.
    pub(crate) fn stop(&mut self) {
        let mut hub = self.hub.take().unwrap();
        signal(hub.id(), Signal::TERM);
        let ended = hub.wait().unwrap();
        assert!(ended.success(), "{ended}\n{}", self.log());
    }

    /// What the hub has logged, all its lives together.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.scratch.path().join("hub.log")).unwrap()
    }

    /// Resident memory of the hub, MiB.
    pub(crate) fn memory(&self) -> u64 {
        let pid = self.hub.as_ref().unwrap().id();
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"));
        let kib = line.unwrap().trim().trim_end_matches(" kB");
        kib.parse::<u64>().unwrap() >> 10
    }

    /// Where the API proxy listens.
    pub(crate) fn proxy(&self) -> SocketAddr {
        format!("{}:10261", self.address).parse().unwrap()
    }

    pub(crate) async fn send(
        &self,
        method: Method,
        target: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Response<ResponseBody> {
        let mut request = Request::builder().method(method).uri(target);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(yurt_transport::full(body)).unwrap();
        self.client.send(request, PATIENCE).await.unwrap()
    }

    pub(crate) async fn get(&self, target: &str) -> Answered {
        let response = self.send(Method::GET, target, &[("accept", JSON)], "");
        Answered::of(response.await).await
    }

    pub(crate) async fn put(&self, target: &str, body: &Value) -> Answered {
        let headers = [("accept", JSON), ("content-type", JSON)];
        let response = self.send(Method::PUT, target, &headers, body.to_string());
        Answered::of(response.await).await
    }

    async fn try_admin(&self, path: &str) -> Option<Answered> {
        let request = Request::builder()
            .uri(path)
            .body(yurt_transport::empty())
            .unwrap();
        let response = self.admin.send(request, PATIENCE).await.ok()?;
        Some(Answered::of(response).await)
    }

    /// `/v1/status`.
    pub(crate) async fn status(&self) -> Value {
        self.try_admin("/v1/status").await.unwrap().json()
    }

    /// One sample of `/metrics`, by its name and labels.
    pub(crate) async fn metric(&self, line: &str) -> f64 {
        let text = self.try_admin("/metrics").await.unwrap().text();
        text.lines()
            .find_map(|l| l.strip_prefix(line)?.trim().parse().ok())
            .unwrap_or_else(|| panic!("no metric {line}"))
    }

    /// Waits until `/v1/status` is so.
    pub(crate) async fn until(&self, what: &str, holds: impl Fn(&Value) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let status = self.status().await;
            if holds(&status) {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "in vain: {what}\n{status:#}\n{}",
                self.log()
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Starts the hub without a link. One that starts with it is offline as well, until it has heard of the cloud.
    pub(crate) async fn run_offline(&mut self) {
        self.link.cut();
        self.run().await;
        self.until("offline", |s| s["mode"] == "offline").await;
    }

    /// Cuts the link of a hub that is online, and waits until it has noticed.
    pub(crate) async fn go_offline(&self) {
        self.link.cut();
        self.until("offline", |s| s["mode"] == "offline").await;
    }

    /// Heals the link and waits until the hub has noticed.
    pub(crate) async fn go_online(&self) {
        self.link.heal();
        self.until("online", is_online).await;
    }
}

/// Whether the hub has heard of the cloud and relies on it.
pub(crate) fn is_online(status: &Value) -> bool {
    status["mode"] == "online" && status["servers"][0]["state"] == "up"
}

impl Drop for Edge {
    fn drop(&mut self) {
        if let Some(mut hub) = self.hub.take() {
            let _ = hub.kill();
            let _ = hub.wait();
        }
    }
}

/// A whole answer.
#[derive(Debug)]
pub(crate) struct Answered {
    pub(crate) status: u16,
    pub(crate) body: Bytes,
}

impl Answered {
    async fn of(response: Response<ResponseBody>) -> Self {
        let status = response.status().as_u16();
        let body = tokio::time::timeout(PATIENCE, collect(response));
        Self {
            status,
            body: body.await.expect("an end").expect("a whole body"),
        }
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.text()))
    }

    /// Names of the items of a list, in its order.
    pub(crate) fn names(&self) -> Vec<String> {
        assert_eq!(self.status, 200, "{}", self.text());
        let list = self.json();
        let items = list["items"].as_array().unwrap().iter();
        items
            .map(|item| item["metadata"]["name"].as_str().unwrap().to_owned())
            .collect()
    }

    /// The message of a Status that refuses with this code.
    pub(crate) fn refused(&self, code: u16) -> String {
        assert_eq!(self.status, code, "{}", self.text());
        let status = self.json();
        assert_eq!(
            (&status["kind"], &status["code"]),
            (&"Status".into(), &code.into())
        );
        status["message"].as_str().unwrap().to_owned()
    }
}

/// The body, or why there is no whole one.
pub(crate) async fn collect(
    response: Response<ResponseBody>,
) -> Result<Bytes, yurt_transport::CollectError> {
    yurt_transport::collect(response.into_body(), 64 << 20).await
}
