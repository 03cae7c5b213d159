//! Requests that are answered by a kubelet or a pod: a stub of both, over TLS and over a dialer that knows the pod network.

use crate::client::{Answer, Cluster, PATIENCE, PODS, pod};
use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode, header};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use std::{
    net::Ipv4Addr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Notify,
};
use tokio_util::sync::CancellationToken;
use yurt_apiserver::{Config, Kubelets};
use yurt_pki::{Ca, Profile};
use yurt_transport::{
    Body, BoxStream, Destination, Dialer, Dialing, Peer, ServeOptions, channel, empty, full,
};

/// Every address is this machine: pods answer on the stub's plain port, kubelets on the one they name.
#[derive(Debug)]
struct Lab {
    pods: u16,
    nodes_dialed: AtomicUsize,
}

impl Dialer for Lab {
    fn dial<'a>(&'a self, to: &'a Destination) -> Dialing<'a> {
        Box::pin(async move {
            let port = match to.host.starts_with("10.") {
                true => self.pods,
                false => to.port,
            };
            if to.node.is_some() {
                self.nodes_dialed.fetch_add(1, Ordering::Relaxed);
            }
            let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
            Ok(Box::new(stream) as BoxStream)
        })
    }
}

/// What the stub was asked, as it answers it.
fn shown(request: &Request<Incoming>, certificate: bool) -> Value {
    let headers: Value = request
        .headers()
        .iter()
        .map(|(k, v)| (k.to_string(), v.to_str().unwrap_or_default().into()))
        .collect::<serde_json::Map<String, Value>>()
        .into();
    json!({"method": request.method().as_str(), "uri": request.uri().to_string(),
        "headers": headers, "certificate": certificate})
}

fn answer(code: u16, body: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(full(body));
    *response.status_mut() = StatusCode::from_u16(code).expect("a code");
    response
}

/// A stub that answers kubelets' and pods' requests.
async fn stub(request: Request<Incoming>, dropped: Arc<Notify>) -> Response<Body> {
    let peer = request.extensions().get::<Peer>().expect("a peer");
    let shown = shown(&request, peer.certificate.is_some());
    let path = request.uri().path().to_owned();
    if request.headers().contains_key(header::UPGRADE) {
        if path.ends_with("/refusing") {
            return answer(403, "not you");
        }
        if path.ends_with("/plain") {
            return answer(200, "no protocols here");
        }
        let upgrade = hyper::upgrade::on(request);
        tokio::spawn(async move {
            let mut stream = TokioIo::new(upgrade.await.expect("an upgrade"));
            let greeting = format!("{}\n", shown["uri"].as_str().unwrap_or_default());
            stream
                .write_all(greeting.as_bytes())
                .await
                .expect("a write");
            // Says what it got once that has ended: the other half is open until then.
            let mut got = Vec::new();
            stream.read_to_end(&mut got).await.expect("a read");
            got.make_ascii_uppercase();
            stream.write_all(&got).await.expect("a write");
            stream.shutdown().await.expect("an end");
        });
        let mut response = Response::new(empty());
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = response.headers_mut();
        headers.insert(header::CONNECTION, "Upgrade".parse().expect("a value"));
        headers.insert(header::UPGRADE, "SPDY/3.1".parse().expect("a value"));
        return response;
    }
    match path.as_str() {
        "/containerLogs/default/bad/c" => answer(400, "previous terminated container not found"),
        "/containerLogs/default/broken/c" => answer(500, "no runtime"),
        "/containerLogs/default/follow/c" => {
            let (sender, body) = channel(1);
            tokio::spawn(async move {
                sender.send(Ok("first\n".into())).await.expect("a reader");
                sender.closed().await;
                dropped.notify_one();
            });
            Response::new(body)
        }
        "/redirect" => {
            let mut response = answer(302, "");
            let to = "/login?x".parse().expect("a value");
            response.headers_mut().insert(header::LOCATION, to);
            response
        }
        "/echo" => {
            let bytes = request
                .into_body()
                .collect()
                .await
                .expect("a body")
                .to_bytes();
            answer(201, bytes)
        }
        _ => {
            let mut response = answer(200, shown.to_string());
            let headers = response.headers_mut();
            headers.insert(
                header::CONTENT_TYPE,
                "application/json".parse().expect("a value"),
            );
            headers.insert("x-pod", "yes".parse().expect("a value"));
            headers.insert(
                header::ACCESS_CONTROL_ALLOW_ORIGIN,
                "*".parse().expect("a value"),
            );
            response
        }
    }
}

struct Lines {
    cluster: Cluster,
    lab: Arc<Lab>,
    shutdown: CancellationToken,
    dropped: Arc<Notify>,
    kubelet: u16,
}

impl Lines {
    async fn start() -> Self {
        let shutdown = CancellationToken::new();
        let dropped = Arc::new(Notify::new());
        let ca = Ca::new("test", 1).expect("a CA");
        let issue = |name: &str, server| {
            ca.issue(&Profile {
                common_name: name.into(),
                ips: vec![Ipv4Addr::LOCALHOST.into()],
                server,
                client: !server,
                days: 1,
                ..Profile::default()
            })
            .expect("a certificate")
        };
        let tls = yurt_pki::server_config(&issue("node", true), Some(&ca.cert_pem()), true)
            .expect("a TLS configuration");
        let mut ports = Vec::new();
        for tls in [Some(Arc::new(arc_swap::ArcSwap::from(tls))), None] {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
                .await
                .expect("a port");
            ports.push(listener.local_addr().expect("an address").port());
            let dropped = dropped.clone();
            tokio::spawn(yurt_transport::serve(
                listener,
                tls,
                ServeOptions::default(),
                shutdown.clone(),
                move |request| stub(request, dropped.clone()),
            ));
        }
        let lab = Arc::new(Lab {
            pods: ports[1],
            nodes_dialed: AtomicUsize::new(0),
        });
        let cluster = Cluster::with(Config {
            kubelets: Kubelets {
                ca: Some(ca.cert_pem()),
                client: Some(issue("kube-apiserver", false)),
                preferred_addresses: vec!["InternalIP".into()],
                answer_timeout: Duration::from_millis(300),
                dialer: lab.clone(),
                ..Kubelets::default()
            },
            ..Config::default()
        })
        .await;
        let lines = Self {
            cluster,
            lab,
            shutdown,
            dropped,
            kubelet: ports[0],
        };
        lines.node("n", "127.0.0.1", lines.kubelet).await;
        lines
    }

    async fn node(&self, name: &str, address: &str, port: u16) {
        let mut node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name},
            "status": {"daemonEndpoints": {"kubeletEndpoint": {"Port": port}}}});
        if !address.is_empty() {
            node["status"]["addresses"] = json!([{"type": "InternalIP", "address": address}]);
        }
        self.cluster.post("/api/v1/nodes", &node).await.expect(201);
    }

    async fn pod(&self, name: &str, node: &str) {
        self.cluster.post(PODS, &pod(name, node)).await.expect(201);
    }

    async fn get(&self, path: &str) -> (Answer, HeaderMap, String) {
        let request = Cluster::request("GET", path);
        self.send(request, Bytes::new()).await
    }

    async fn send(
        &self,
        request: http::request::Builder,
        body: Bytes,
    ) -> (Answer, HeaderMap, String) {
        let (head, body) = self.cluster.raw(request, body).await.into_parts();
        let bytes = body.collect().await.expect("a whole body").to_bytes();
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let headers = head.headers.clone();
        let answer = Answer {
            code: head.status.as_u16(),
            headers: head.headers,
            body: serde_json::from_slice(&bytes).unwrap_or_default(),
        };
        (answer, headers, text)
    }

    /// An upgrade request on a connection of its own: the head of the answer, and the connection.
    async fn upgrade(&self, path: &str) -> (String, TcpStream) {
        let address = self.cluster.running.addr();
        let mut stream = TcpStream::connect(address).await.expect("a connection");
        let request = format!(
            "POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer admin\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await.expect("a write");
        let mut head = Vec::new();
        let read = async {
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.expect("a head"));
            }
        };
        tokio::time::timeout(PATIENCE, read)
            .await
            .expect("an answer");
        (String::from_utf8(head).expect("text"), stream)
    }

    async fn stop(self) {
        self.shutdown.cancel();
        self.cluster.stop().await;
    }
}

#[tokio::test]
async fn logs_come_from_the_kubelet() {
    let lines = Lines::start().await;
    lines.pod("a", "n").await;
    let path = format!("{PODS}/a/log?follow=true&tailLines=3&container=c");
    let (answer, headers, _) = lines.get(&path).await;
    assert_eq!(answer.code, 200);
    assert_eq!(headers[header::CONTENT_TYPE], "text/plain");
    assert_eq!(
        answer.body["uri"],
        "/containerLogs/default/a/c?follow=true&tailLines=3"
    );
    assert_eq!(answer.body["certificate"], true);
    assert!(answer.body["headers"].get("authorization").is_none());
    assert_eq!(lines.lab.nodes_dialed.load(Ordering::Relaxed), 1);

    lines.pod("bad", "n").await;
    let (answer, ..) = lines.get(&format!("{PODS}/bad/log")).await;
    let refused = answer.expect(400);
    assert_eq!(
        refused["message"],
        "previous terminated container not found"
    );
    lines.pod("broken", "n").await;
    let (answer, ..) = lines.get(&format!("{PODS}/broken/log")).await;
    assert_eq!(
        answer.expect(500)["message"],
        "Internal error occurred: no runtime"
    );
    lines.stop().await;
}

#[tokio::test]
async fn logs_stream_and_end_with_their_reader() {
    let lines = Lines::start().await;
    lines.pod("follow", "n").await;
    let request = Cluster::request("GET", &format!("{PODS}/follow/log?follow=true"));
    let response = lines.cluster.raw(request, Bytes::new()).await;
    let mut body = response.into_body();
    let first = tokio::time::timeout(PATIENCE, body.frame()).await;
    let first = first.expect("in time").expect("a frame").expect("data");
    assert_eq!(first.into_data().expect("data"), "first\n");
    drop(body);
    tokio::time::timeout(PATIENCE, lines.dropped.notified())
        .await
        .expect("the kubelet notices that nobody reads any more");
    lines.stop().await;
}

#[tokio::test]
async fn what_cannot_be_located_is_said() {
    let lines = Lines::start().await;
    lines.pod("lost", "").await;
    let (answer, _, text) = lines.get(&format!("{PODS}/lost/log")).await;
    assert_eq!((answer.code, text.as_str()), (204, ""));
    let exec = format!("{PODS}/lost/exec?command=date");
    let refused = lines.get(&exec).await.0.expect(400);
    assert_eq!(refused["message"], "pod lost does not have a host assigned");

    let mut two = pod("two", "n");
    two["spec"]["containers"] = json!([{"name": "a", "image": "i"}, {"name": "b", "image": "i"}]);
    lines.cluster.post(PODS, &two).await.expect(201);
    let refused = lines.get(&format!("{PODS}/two/log")).await.0.expect(400);
    assert_eq!(
        refused["message"],
        "a container name must be specified for pod two, choose one of: [a b]"
    );
    let wrong = format!("{PODS}/two/log?container=x");
    let refused = lines.get(&wrong).await.0.expect(400);
    assert_eq!(refused["message"], "container x is not valid for pod two");
    let wrong = format!("{PODS}/two/log?container=a&limitBytes=0");
    lines.get(&wrong).await.0.expect(422);
    lines.get(&format!("{PODS}/none/log")).await.0.expect(404);
    lines
        .get(&format!("{PODS}/two/log/more"))
        .await
        .0
        .expect(404);
    let post = Cluster::request("POST", &format!("{PODS}/two/log"));
    lines.send(post, Bytes::new()).await.0.expect(405);

    lines.node("bare", "", 1).await;
    lines.pod("b", "bare").await;
    let refused = lines.get(&format!("{PODS}/b/log")).await.0.expect(500);
    assert_eq!(
        refused["message"],
        "no preferred addresses found; known addresses: []"
    );
    lines.pod("g", "gone").await;
    let refused = lines.get(&format!("{PODS}/g/log")).await.0.expect(404);
    assert_eq!(refused["message"], "nodes \"gone\" not found");
    lines.stop().await;
}

#[tokio::test]
async fn a_kubelet_that_is_dead_mute_or_mad_is_not_waited_for() {
    let lines = Lines::start().await;
    let closed = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let dead = closed.local_addr().expect("an address").port();
    drop(closed);
    let mute = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let mad = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = |listener: &TcpListener| listener.local_addr().expect("an address").port();
    lines.node("dead", "127.0.0.1", dead).await;
    lines.node("mute", "127.0.0.1", port(&mute)).await;
    lines.node("mad", "127.0.0.1", port(&mad)).await;
    // Right protocol, wrong certificate: it names 127.0.0.1 only.
    lines.node("false", "127.0.0.2", lines.kubelet).await;
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = mad.accept().await {
            // It may have been given up before.
            let _ = stream.write_all(b"I am a teapot, not TLS\r\n\r\n").await;
        }
    });
    for (node, why) in [
        (
            "dead",
            format!("dial tcp 127.0.0.1:{dead}: connect: connection refused"),
        ),
        ("mute", "no answer within 300ms".to_owned()),
        ("mad", "tls: ".to_owned()),
        (
            "false",
            "x509: certificate is not valid for 127.0.0.2".to_owned(),
        ),
    ] {
        lines.pod(node, node).await;
        let refused = lines.get(&format!("{PODS}/{node}/log")).await.0.expect(500);
        let message = refused["message"].as_str().expect("a message");
        assert!(message.starts_with("Get \"https://127.0.0."), "{message}");
        assert!(message.contains(&why), "{message}");
        assert!(refused.get("reason").is_none(), "{refused}");
        let (head, _) = lines
            .upgrade(&format!("{PODS}/{node}/exec?command=date"))
            .await;
        assert!(head.starts_with("HTTP/1.1 500 "), "{head}");
    }
    let insecure = format!("{PODS}/false/log?insecureSkipTLSVerifyBackend=true");
    lines.get(&insecure).await.0.expect(200);
    lines.stop().await;
}

#[tokio::test]
async fn upgrades_are_passed_both_ways() {
    let lines = Lines::start().await;
    lines.pod("a", "n").await;
    let exec = format!("{PODS}/a/exec?command=cat&command=-&stdin=true");
    let refused = lines.get(&exec).await.0.expect(400);
    assert_eq!(refused["message"], "Upgrade request required");
    for (path, kubelet) in [
        (
            exec,
            "/exec/default/a/c?command=cat&command=-&error=1&input=1&output=1",
        ),
        (
            format!("{PODS}/a/attach?tty=true&stderr=false"),
            "/attach/default/a/c?output=1&tty=1",
        ),
        (
            format!("{PODS}/a/portforward?ports=80"),
            "/portForward/default/a?port=80",
        ),
        ("/api/v1/nodes/n/proxy/run/x?y=z".to_owned(), "/run/x?y=z"),
    ] {
        let (head, mut stream) = lines.upgrade(&path).await;
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        assert!(head.to_ascii_lowercase().contains("upgrade: spdy/3.1"));
        stream.write_all(b"all of it").await.expect("a write");
        stream.shutdown().await.expect("half a close");
        let mut got = String::new();
        let read = stream.read_to_string(&mut got);
        tokio::time::timeout(PATIENCE, read)
            .await
            .expect("in time")
            .expect("a read");
        assert_eq!(got, format!("{kubelet}\nALL OF IT"));
    }
    // Refusals are passed on; an answer that is none is an error.
    let (head, _) = lines.upgrade("/api/v1/nodes/n/proxy/refusing").await;
    assert!(head.starts_with("HTTP/1.1 403 "), "{head}");
    let (head, _) = lines.upgrade("/api/v1/nodes/n/proxy/plain").await;
    assert!(head.starts_with("HTTP/1.1 500 "), "{head}");
    lines.stop().await;
}

#[tokio::test]
async fn services_and_pods_are_proxied_to() {
    let lines = Lines::start().await;
    lines.pod("a", "n").await;
    let running = json!({"status": {"phase": "Running", "podIP": "10.1.1.1", "podIPs": [{"ip": "10.1.1.1"}]}});
    let status = format!("{PODS}/a/status");
    lines.cluster.merge(&status, &running).await.expect(200);
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s"},
        "spec": {"selector": {"app": "a"}, "ports": [{"name": "web", "port": 80, "targetPort": 8080}]}});
    let services = "/api/v1/namespaces/default/services";
    lines.cluster.post(services, &service).await.expect(201);
    let proxy = format!("{services}/s:web/proxy");
    let refused = lines.get(&format!("{proxy}/")).await.0.expect(503);
    assert_eq!(
        refused["message"],
        "no endpoints available for service \"s\""
    );
    let slice = json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": "s-1", "labels": {"kubernetes.io/service-name": "s"}},
        "ports": [{"name": "web", "port": 8080, "protocol": "TCP"}],
        "endpoints": [{"addresses": ["10.1.1.1"], "conditions": {"ready": true}, "nodeName": "n",
            "targetRef": {"kind": "Pod", "name": "a", "namespace": "default"}}]});
    let slices = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices";
    lines.cluster.post(slices, &slice).await.expect(201);

    let (answer, headers, _) = lines.get(&proxy).await;
    assert_eq!(answer.code, 301);
    assert_eq!(headers[header::LOCATION], format!("{proxy}/"));
    for base in [
        proxy.clone(),
        format!("{services}/s:80/proxy"),
        format!("{services}/http:s:web/proxy"),
        format!("{PODS}/a/proxy"),
        format!("{PODS}/a:8080/proxy"),
    ] {
        let request = Cluster::request("DELETE", &format!("{base}/x%20y/?q=1&q=2"))
            .header("connection", "x-hop")
            .header("x-hop", "1")
            .header("x-end", "2");
        let (answer, headers, _) = lines.send(request, Bytes::new()).await;
        let asked = answer.expect(200);
        assert_eq!(asked["method"], "DELETE");
        assert_eq!(asked["uri"], "/x%20y/?q=1&q=2");
        assert_eq!(asked["headers"]["x-end"], "2");
        assert!(asked["headers"].get("x-hop").is_none());
        assert!(asked["headers"].get("authorization").is_none());
        assert_eq!(
            asked["headers"]["x-forwarded-uri"],
            format!("{base}/x%20y/")
        );
        assert_eq!(headers["x-pod"], "yes");
        assert!(!headers.contains_key(header::ACCESS_CONTROL_ALLOW_ORIGIN));
    }
    let (answer, headers, _) = lines.get(&format!("{proxy}/redirect")).await;
    assert_eq!(answer.code, 302);
    assert_eq!(headers[header::LOCATION], format!("{proxy}/login?x"));
    let request = Cluster::request("POST", &format!("{proxy}/echo"));
    let (answer, _, text) = lines.send(request, vec![b'x'; 1 << 20].into()).await;
    assert_eq!((answer.code, text.len()), (201, 1 << 20));
    let refused = lines.get(&format!("{services}/s:81/proxy/")).await.0;
    assert_eq!(
        refused.expect(503)["message"],
        "no service port 81 found for service \"s\""
    );
    lines
        .get(&format!("{services}/ftp:s:80/proxy/"))
        .await
        .0
        .expect(400);
    lines
        .get("/api/v1/nodes/n/proxy/healthz")
        .await
        .0
        .expect(200);
    lines.get("/api/v1/nodes/n:22/proxy/").await.0.expect(400);
    lines
        .get(&format!("{PODS}/a/proxy/?dryRun=All"))
        .await
        .0
        .expect(400);
    // A pod that says it is on this machine is none.
    let local = json!({"status": {"podIP": "127.0.0.1", "podIPs": [{"ip": "127.0.0.1"}]}});
    lines.cluster.merge(&status, &local).await.expect(200);
    let refused = lines.get(&format!("{PODS}/a/proxy/")).await.0.expect(400);
    assert_eq!(refused["message"], "address not allowed");
    lines.stop().await;
}

#[tokio::test]
async fn connections_are_discovered() {
    let cluster = Cluster::start().await;
    let listed = cluster.get("/api/v1").await.expect(200);
    for (name, kind, verbs) in [
        ("pods/log", "Pod", json!(["get"])),
        ("pods/exec", "PodExecOptions", json!(["create", "get"])),
        ("pods/attach", "PodAttachOptions", json!(["create", "get"])),
        (
            "pods/portforward",
            "PodPortForwardOptions",
            json!(["create", "get"]),
        ),
        (
            "nodes/proxy",
            "NodeProxyOptions",
            json!(["create", "delete", "get", "patch", "update"]),
        ),
    ] {
        let found = listed["resources"].as_array().expect("a list").iter();
        let found = found.clone().find(|r| r["name"] == name).expect(name);
        assert_eq!(
            (&found["kind"], &found["verbs"]),
            (&kind.into(), &verbs),
            "{name}"
        );
    }
    cluster.stop().await;
}
