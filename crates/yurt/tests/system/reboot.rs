//! A node loses power while it is cut off (W4): hub and kubelet begin anew without a cloud, every pod comes up with another address,
//! and services follow, for watchers in protobuf and JSON and for kubectl. Afterwards the cloud knows, and nothing is lost.

use crate::fixture::{Lab, eventually};
use http::{Request, header};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};
use yurt_transport::{Client, ClientOptions, ResponseBody};
use yurt_wire::{
    Encoding,
    watch::{EventType, FrameDecoder, is_initial_events_end},
};

const NODE: &str = "edge-1";
const PATIENCE: Duration = Duration::from_secs(60);
const SLICES: &str = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices";
const OF_WEB: &str = "labelSelector=kubernetes.io%2Fservice-name%3Dweb";

const WEB: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 3
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers: [{name: main, image: "registry.lab/app:1", ports: [{containerPort: 80, name: http}]}]
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  selector: {app: web}
  ports: [{port: 80, targetPort: http}]
"#;

/// The addresses that get connections.
fn ready(slice: &Value) -> BTreeSet<String> {
    let endpoints = slice["endpoints"].as_array().cloned().unwrap_or_default();
    endpoints
        .iter()
        .filter(|endpoint| endpoint["conditions"]["ready"] == true)
        .filter_map(|endpoint| endpoint["addresses"][0].as_str().map(str::to_owned))
        .collect()
}

/// A client of the slices as kube-proxy is one: it watches, and goes on from the last revision when its watch breaks.
struct Watcher {
    client: Client,
    encoding: Encoding,
    stream: Option<(ResponseBody, FrameDecoder)>,
    revision: String,
    /// The slice as last told.
    slice: Value,
    lists: usize,
}

impl Watcher {
    fn new(address: &str, encoding: Encoding) -> Self {
        let options = ClientOptions {
            connect_timeout: PATIENCE,
            keepalive_interval: PATIENCE,
            keepalive_timeout: PATIENCE,
            max_idle: 1,
        };
        Self {
            client: Client::new(&format!("{address}:10261"), None, options),
            encoding,
            stream: None,
            revision: String::new(),
            slice: Value::Null,
            lists: 0,
        }
    }

    async fn open(&mut self) {
        let from = if self.revision.is_empty() {
            self.lists += 1;
            "sendInitialEvents=true&resourceVersionMatch=NotOlderThan".to_owned()
        } else {
            format!("resourceVersion={}", self.revision)
        };
        let request = Request::builder()
            .uri(format!(
                "{SLICES}?watch=true&allowWatchBookmarks=true&timeoutSeconds=600&{OF_WEB}&{from}"
            ))
            .header(header::ACCEPT, self.encoding.content_type())
            .header(header::USER_AGENT, "kube-proxy/v1.36.0 (linux/amd64)")
            .body(yurt_transport::empty());
        let Ok(response) = self.client.send(request.unwrap(), PATIENCE).await else {
            // The hub is not back yet.
            tokio::time::sleep(Duration::from_millis(100)).await;
            return;
        };
        assert_eq!(response.status(), 200);
        let content_type = response.headers()[header::CONTENT_TYPE].to_str().unwrap();
        assert_eq!(
            Encoding::from_content_type(content_type),
            Some(self.encoding)
        );
        let frames = FrameDecoder::new(self.encoding, 1 << 20);
        self.stream = Some((response.into_body(), frames));
    }

    /// Takes what comes next, as an informer does.
    async fn step(&mut self) {
        let Some((body, frames)) = &mut self.stream else {
            return self.open().await;
        };
        match body.frame().await {
            Some(Ok(frame)) => frames.push(frame.into_data().unwrap_or_default()),
            Some(Err(_)) | None => {
                self.stream = None;
                return;
            }
        }
        while let Some(frame) = frames.next_frame().unwrap() {
            let event = frame.event.unwrap();
            assert_ne!(event.kind, EventType::Error, "{:?}", event.object);
            self.revision = event.object.meta().unwrap().resource_version;
            match event.kind {
                EventType::Bookmark => {
                    let _ = is_initial_events_end(&event.object);
                }
                _ => self.slice = event.object.to_json_value().unwrap(),
            }
        }
    }

    async fn until(&mut self, what: &str, holds: impl Fn(&Value) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !holds(&self.slice) {
            let left = deadline.saturating_duration_since(Instant::now());
            let step = tokio::time::timeout(left, self.step()).await;
            assert!(
                step.is_ok(),
                "{:?}: not {what}: {}",
                self.encoding,
                self.slice
            );
        }
    }
}

fn pod_addresses(lab: &Lab) -> BTreeSet<String> {
    let path = "jsonpath={.items[*].status.podIP}";
    let said = lab
        .cloud()
        .ok(&["get", "pods", "-l", "app=web", "-o", path]);
    said.split_whitespace().map(str::to_owned).collect()
}

#[test]
fn w4_services_follow_pods_over_a_reboot_without_a_link() {
    let Some(lab) = Lab::start("edge=1") else {
        return;
    };
    lab.cloud().feed(&["apply", "-f", "-"], WEB);
    lab.cloud()
        .ok(&["rollout", "status", "deployment/web", "--timeout=60s"]);
    let before = pod_addresses(&lab);
    assert_eq!(before.len(), 3);
    let address = lab.lab(&["status", NODE])[0]["address"]
        .as_str()
        .unwrap()
        .to_owned();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let mut watchers = [Encoding::Protobuf, Encoding::Json].map(|e| Watcher::new(&address, e));
    runtime.block_on(async {
        for watcher in &mut watchers {
            watcher
                .until("as in the cloud", |slice| ready(slice) == before)
                .await;
        }
    });
    // What kubectl needs to ask offline.
    lab.node(NODE).ok(&["get", "endpointslices,pods,services"]);
    let pid = lab.lab(&["status", NODE])[0]["hub_pid"].clone();

    lab.lab(&["cut", NODE]);
    lab.wait_hub(NODE, "offline");
    lab.lab(&["reboot", NODE]);
    eventually("the hub is back", || {
        let status = lab.lab(&["status", NODE]);
        status[0]["hub"] == "offline" && status[0]["hub_pid"] != pid
    });
    let is_new = |slice: &Value| {
        let addresses = ready(slice);
        addresses.len() == 3 && addresses.is_disjoint(&before)
    };
    runtime.block_on(async {
        for watcher in &mut watchers {
            watcher.until("of other addresses", is_new).await;
        }
    });
    let after = ready(&watchers[0].slice);
    assert_eq!(ready(&watchers[1].slice), after);
    let told = |lab: &Lab| {
        let args = [
            "get",
            "endpointslices",
            "-l",
            "kubernetes.io/service-name=web",
            "-o",
            "json",
        ];
        let list: Value = serde_json::from_str(&lab.node(NODE).ok(&args)).unwrap();
        ready(&list["items"][0])
    };
    assert_eq!(told(&lab), after);
    let path = "jsonpath={.items[*].status.containerStatuses[*].restartCount}";
    let restarts = lab
        .node(NODE)
        .ok(&["get", "pods", "-l", "app=web", "-o", path]);
    assert_eq!(restarts, "1 1 1");
    assert_eq!(pod_addresses(&lab), before, "the cloud does not know yet");
    let mut follow = lab.node(NODE).follow(&[
        "get",
        "endpointslices",
        "-l",
        "kubernetes.io/service-name=web",
        "-w",
    ]);
    eventually("kubectl's watch shows the new addresses", || {
        follow
            .lines()
            .iter()
            .any(|line| after.iter().all(|address| line.contains(address)))
    });

    lab.lab(&["heal", NODE]);
    eventually("everything reported is in the cloud", || {
        let status = lab.lab(&["status", NODE]);
        status[0]["hub"] == "online" && status[0]["journal"] == 0
    });
    assert_eq!(pod_addresses(&lab), after);
    let cloud = || {
        let args = [
            "get",
            "endpointslices",
            "-l",
            "kubernetes.io/service-name=web",
            "-o",
            "json",
        ];
        let list: Value = serde_json::from_str(&lab.cloud().ok(&args)).unwrap();
        list["items"][0].clone()
    };
    eventually("the cloud's slice converges", || ready(&cloud()) == after);
    // Everybody ends with the cloud's slice, in the streams that they had.
    let want = cloud();
    let revision = want["metadata"]["resourceVersion"].clone();
    runtime.block_on(async {
        for watcher in &mut watchers {
            let is_clouds = |slice: &Value| {
                slice["metadata"]["resourceVersion"] == revision && ready(slice) == after
            };
            watcher.until("the cloud's", is_clouds).await;
            assert_eq!(watcher.lists, 1, "{:?} had to list again", watcher.encoding);
        }
    });
    assert!(follow.runs(), "kubectl's watch ended");
    let restarts = lab
        .cloud()
        .ok(&["get", "pods", "-l", "app=web", "-o", path]);
    assert_eq!(restarts, "1 1 1");
    assert_eq!(json!(told(&lab)), json!(after));
}
