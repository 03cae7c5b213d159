//! The requests of a real kubelet and kube-proxy (recorded, Kubernetes 1.36), replayed against a node's hub online,
//! offline, and offline after `kill -9`: each answer has the shape, the objects and the order of the API server's own.

use crate::fixture::{Lab, eventually};
use bytes::Bytes;
use http::{Method, Request, Response, header};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use std::{sync::Arc, time::Duration};
use yurt_transport::{Client, ClientOptions, ResponseBody};
use yurt_wire::{
    Encoding, Object,
    watch::{EventType, FrameDecoder, is_initial_events_end},
};

const NODE: &str = "edge-1";
const POD: &str = "web-65b97464c6-hbq56";
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Clone, Debug)]
struct Recorded {
    method: Method,
    path: String,
    accept: String,
    content_type: Option<String>,
    agent: String,
}

impl Recorded {
    fn is_watch(&self) -> bool {
        self.path.contains("watch=true")
    }
}

fn recorded() -> Vec<Recorded> {
    include_str!("node-client-requests.jsonl")
        .lines()
        .map(|line| {
            let line: Value = serde_json::from_str(line).unwrap();
            let text = |key: &str| line[key].as_str().map(str::to_owned);
            Recorded {
                method: text("method").unwrap().parse().unwrap(),
                path: text("path").unwrap(),
                accept: text("accept").unwrap(),
                content_type: text("contentType"),
                agent: text("userAgent").unwrap(),
            }
        })
        .collect()
}

/// What an answer comes to, apart from revisions and times.
#[derive(Debug, PartialEq)]
struct Answer {
    code: u16,
    content_type: String,
    /// Kind and names of the object, or of each event up to the end of the initial ones.
    objects: Vec<String>,
}

async fn ask(client: &Client, request: &Recorded, body: Bytes) -> Answer {
    let mut builder = Request::builder()
        .method(request.method.clone())
        .uri(&request.path)
        .header(header::ACCEPT, &request.accept)
        .header(header::USER_AGENT, &request.agent);
    if let Some(kind) = &request.content_type {
        builder = builder.header(header::CONTENT_TYPE, kind);
    }
    let request_built = builder.body(yurt_transport::full(body)).unwrap();
    let response = client.send(request_built, PATIENCE).await.unwrap();
    let (head, body) = response.into_parts();
    let content_type = head.headers[header::CONTENT_TYPE]
        .to_str()
        .unwrap()
        .to_owned();
    let code = head.status.as_u16();
    let objects = if request.is_watch() && code == 200 {
        let read = initial_events(Response::from_parts(head, body), &content_type);
        tokio::time::timeout(PATIENCE, read)
            .await
            .unwrap_or_else(|_| panic!("no end of initial events: {}", request.path))
    } else {
        let bytes = yurt_transport::collect(body, 1 << 20).await.unwrap();
        let encoding = Encoding::from_content_type(&content_type).unwrap();
        vec![describe(&Object { encoding, bytes })]
    };
    Answer {
        code,
        content_type,
        objects,
    }
}

/// Reads a WatchList to the bookmark that ends its initial events; items come in no promised order, the bookmark last.
async fn initial_events(response: Response<ResponseBody>, content_type: &str) -> Vec<String> {
    let encoding = Encoding::from_content_type(content_type).unwrap();
    let mut decoder = FrameDecoder::new(encoding, 1 << 20);
    let mut body = response.into_body();
    let mut seen = Vec::new();
    loop {
        let chunk = body.frame().await.expect("the watch ended").unwrap();
        decoder.push(chunk.into_data().unwrap_or_default());
        while let Some(frame) = decoder.next_frame().unwrap() {
            let event = frame.event.unwrap();
            if event.kind == EventType::Bookmark && is_initial_events_end(&event.object) {
                let meta = event.object.meta().unwrap();
                assert!(
                    meta.revision().is_some_and(|r| r > 0),
                    "bookmark without a revision"
                );
                seen.sort();
                seen.push(format!("BOOKMARK {}", meta.gvk.kind));
                return seen;
            }
            assert_eq!(
                event.kind,
                EventType::Added,
                "before the end of the initial events"
            );
            seen.push(format!("ADDED {}", describe(&event.object)));
        }
    }
}

fn describe(object: &Object) -> String {
    let meta = object.meta().unwrap();
    format!(
        "{}/{} {}/{}",
        meta.gvk.api_version(),
        meta.gvk.kind,
        meta.namespace,
        meta.name
    )
}

fn options() -> ClientOptions {
    ClientOptions {
        connect_timeout: PATIENCE,
        keepalive_interval: PATIENCE,
        keepalive_timeout: PATIENCE,
        max_idle: 4,
    }
}

/// The API server itself, with the node's certificate; and the node's hub, as its kubelet reaches it.
fn clients(lab: &Lab) -> (Client, Client) {
    let pki = lab.dir().join("nodes").join(NODE).join("pki");
    let ca = std::fs::read_to_string(pki.join("ca.crt")).unwrap();
    let own = yurt_pki::KeyPairPem::read(&pki.join("client.crt"), &pki.join("client.key")).unwrap();
    let tls = yurt_pki::client_config(&ca, Some(&own), &["h2"]).unwrap();
    let manifest = std::fs::read_to_string(lab.dir().join("lab.json")).unwrap();
    let manifest: Value = serde_json::from_str(&manifest).unwrap();
    let cloud = Client::new(
        &format!("127.0.0.1:{}", manifest["port"]),
        Some(tls),
        options(),
    );
    let status = lab.lab(&["status", NODE]);
    let address = status[0]["address"].as_str().unwrap();
    (
        cloud,
        Client::new(&format!("{address}:10261"), None, options()),
    )
}

fn protobuf(value: &Value) -> Bytes {
    Object::from_json_value(value, Encoding::Protobuf)
        .unwrap()
        .bytes
}

/// The body of a recorded write, as the kubelet builds it from what it has read.
async fn body(hub: &Client, request: &Recorded) -> Bytes {
    let path = request.path.split('?').next().unwrap();
    match (request.method.as_str(), path.rsplit('/').next().unwrap()) {
        ("POST", "events") => protobuf(&json!({
            "apiVersion": "v1", "kind": "Event",
            "metadata": {"generateName": "recorded-", "namespace": "default"},
            "involvedObject": {"kind": "Node", "name": NODE, "uid": NODE},
            "reason": "Starting", "message": "Starting kubelet.", "type": "Normal", "count": 1,
            "source": {"component": "kubelet", "host": NODE},
        })),
        ("PUT", _) => {
            let read = Recorded {
                method: Method::GET,
                content_type: None,
                ..request.clone()
            };
            let request = Request::builder()
                .uri(&read.path)
                .header(header::ACCEPT, &read.accept)
                .header(header::USER_AGENT, &read.agent)
                .body(yurt_transport::empty())
                .unwrap();
            let response = hub.send(request, PATIENCE).await.unwrap();
            yurt_transport::collect(response.into_body(), 1 << 20)
                .await
                .unwrap()
        }
        ("PATCH", _) => json!({"status": {"conditions": [
            {"type": "Recorded", "status": "True", "reason": "Replayed"}]}})
        .to_string()
        .into(),
        other => panic!("no body for {other:?}"),
    }
}

/// What the node's components read, and the writes that are accepted offline as well.
fn reads_and_writes() -> (Vec<Recorded>, Vec<Recorded>) {
    let accepted = |r: &Recorded| {
        r.path.contains("/events") || r.path.contains("/leases/") || r.path.contains("/status")
    };
    let all = recorded();
    let reads = all
        .iter()
        .filter(|r| r.method == Method::GET)
        .cloned()
        .collect();
    let writes = all
        .into_iter()
        .filter(|r| r.method != Method::GET && accepted(r))
        .collect();
    (reads, writes)
}

#[test]
fn the_recorded_node_is_answered_as_by_the_api_server() {
    let Some(lab) = Lab::start("edge=1") else {
        return;
    };
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": POD, "namespace": "default"},
        // A node may read what its pods name, and the recorded one named this.
        "spec": {"nodeName": NODE, "containers": [{"name": "busybox", "image": "registry.lab/busybox:1"}],
            "volumes": [{"name": "ca", "configMap": {"name": "openshift-service-ca.crt", "optional": true}}]},
    });
    lab.cloud().feed(&["create", "-f", "-"], &pod.to_string());
    lab.cloud()
        .ok(&["wait", "pod", POD, "--for=condition=Ready", "--timeout=60s"]);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (cloud, hub) = clients(&lab);
    let (reads, writes) = reads_and_writes();
    assert!(reads.len() >= 10 && writes.len() >= 4);
    let hub = Arc::new(hub);

    let mut want = Vec::new();
    runtime.block_on(async {
        for read in &reads {
            let expected = ask(&cloud, read, Bytes::new()).await;
            assert_eq!(
                ask(&hub, read, Bytes::new()).await,
                expected,
                "online: {}",
                read.path
            );
            want.push(expected);
        }
        for write in &writes {
            let answer = ask(&hub, write, body(&hub, write).await).await;
            assert!(
                (200..300).contains(&answer.code),
                "online: {} {answer:?}",
                write.path
            );
        }
    });

    let offline = |when: &str| {
        runtime.block_on(async {
            for (read, want) in reads.iter().zip(&want) {
                assert_eq!(
                    &ask(&hub, read, Bytes::new()).await,
                    want,
                    "{when}: {}",
                    read.path
                );
            }
            for write in &writes {
                let answer = ask(&hub, write, body(&hub, write).await).await;
                assert!(
                    (200..300).contains(&answer.code),
                    "{when}: {} {answer:?}",
                    write.path
                );
            }
        });
    };
    lab.lab(&["cut", NODE]);
    lab.wait_hub(NODE, "offline");
    offline("offline");
    let pid = lab.lab(&["status", NODE])[0]["hub_pid"].clone();
    lab.lab(&["kill", NODE]);
    eventually("the hub is back", || {
        let status = lab.lab(&["status", NODE]);
        status[0]["hub"] == "offline" && status[0]["hub_pid"] != pid
    });
    offline("offline, after a kill");
    lab.lab(&["heal", NODE]);
    eventually("everything written is handed in", || {
        let status = lab.lab(&["status", NODE]);
        status[0]["hub"] == "online" && status[0]["journal"] == 0
    });
    let condition = "jsonpath={.status.conditions[?(@.type==\"Recorded\")].status}";
    eventually("the pod's status is in the cloud", || {
        lab.cloud().ok(&["get", "pod", POD, "-o", condition]) == "True"
    });
}
