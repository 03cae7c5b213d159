//! `yurt hub` as a process of a node: started, told apart, stopped.

use crate::fixture::{PATIENCE, Scratch, eventually, signal, text, yurt};
use arc_swap::ArcSwap;
use bytes::Bytes;
use http::{Method, Request, Response, header};
use http_body_util::BodyExt;
use rustix::process::Signal;
use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    os::unix::net::UnixDatagram,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::Arc,
};
use tokio_util::sync::CancellationToken;
use yurt_pki::{Ca, Profile};
use yurt_transport::{Body, ServeOptions};

/// A node's directory with certificates.
struct Site {
    scratch: Scratch,
    ca: Ca,
}

impl Site {
    fn new() -> Self {
        let (scratch, ca) = (Scratch::new(), Ca::new("test", 1).unwrap());
        let node = ca
            .issue(&Profile {
                common_name: "system:node:edge-1".into(),
                organizations: vec!["system:nodes".into()],
                client: true,
                days: 1,
                ..Profile::default()
            })
            .unwrap();
        let files = [
            ("ca.crt", ca.cert_pem()),
            ("node.crt", node.cert),
            ("node.key", node.key),
        ];
        for (name, content) in files {
            std::fs::write(scratch.path().join(name), content).unwrap();
        }
        Self { scratch, ca }
    }

    fn dir(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    /// Arguments of a hub; its listeners get free ports.
    fn arguments(&self, root: &str, cache: &str, cloud: SocketAddr) -> (Vec<String>, Ports) {
        let ports = Ports::free();
        let path = |name: &str| self.dir(name).display().to_string();
        let arguments = [
            ("node-name", "edge-1".to_owned()),
            ("server-addr", cloud.to_string()),
            ("root-dir", path(root)),
            ("disk-cache-path", path(cache)),
            ("ca-file", path("ca.crt")),
            ("client-cert", path("node.crt")),
            ("client-key", path("node.key")),
            ("enable-dummy-if", "false".to_owned()),
            ("serve-port", ports.admin.to_string()),
            ("proxy-port", ports.proxy.to_string()),
            ("proxy-secure-port", "0".to_owned()),
            ("multiplexer-port", "0".to_owned()),
        ];
        let arguments = arguments.map(|(name, value)| format!("--{name}={value}"));
        (arguments.into(), ports)
    }

    fn start(&self, cloud: SocketAddr, prepare: impl FnOnce(&mut Command)) -> (Process, Ports) {
        let (arguments, ports) = self.arguments("root", "cache", cloud);
        let mut command = yurt();
        command.arg("hub").args(arguments).stdin(Stdio::null());
        prepare(&mut command);
        let hub = Process(command.spawn().unwrap());
        eventually("the hub is alive", || {
            ports.get("/v1/healthz").ends_with("OK")
        });
        (hub, ports)
    }
}

#[derive(Clone, Copy)]
struct Ports {
    admin: u16,
    proxy: u16,
}

impl Ports {
    fn free() -> Self {
        let sockets = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let [admin, proxy] = sockets.map(|socket| socket.local_addr().unwrap().port());
        Self { admin, proxy }
    }

    /// The whole answer of an admin endpoint; empty when nobody answers.
    fn get(&self, path: &str) -> String {
        let mut answer = String::new();
        if let Ok(mut stream) = TcpStream::connect(("127.0.0.1", self.admin)) {
            let _ = write!(
                stream,
                "GET {path} HTTP/1.1\r\nhost: hub\r\nconnection: close\r\n\r\n"
            );
            let _ = stream.read_to_string(&mut answer);
        }
        answer
    }

    /// A connection to the proxy on which this was sent.
    fn send(&self, head: &str) -> TcpStream {
        let mut stream = TcpStream::connect(("127.0.0.1", self.proxy)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(head.as_bytes()).unwrap();
        stream
    }
}

/// A child that does not outlive its test.
struct Process(Child);

impl Process {
    fn terminate(&mut self) -> Option<i32> {
        signal(self.0.id(), Signal::TERM);
        self.0.wait().unwrap().code()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Nobody listens there.
fn nowhere() -> SocketAddr {
    "127.0.0.1:1".parse().unwrap()
}

#[test]
fn the_service_manager_is_told() {
    let site = Site::new();
    let path = site.dir("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let hear = |wanted: &str| {
        let mut buffer = [0; 4096];
        loop {
            let count = socket
                .recv(&mut buffer)
                .unwrap_or_else(|_| panic!("no {wanted}"));
            let heard = String::from_utf8_lossy(&buffer[..count]).into_owned();
            if heard.starts_with(wanted) {
                return heard;
            }
        }
    };
    let (mut hub, _) = site.start(nowhere(), |command| {
        command
            .env("NOTIFY_SOCKET", &path)
            .env("WATCHDOG_USEC", "300000");
    });
    // There is no cloud: nobody waits for it.
    hear("READY=1");
    assert!(hear("STATUS=offline").contains("0 of 1 API servers up"));
    for _ in 0..3 {
        hear("WATCHDOG=1");
    }
    signal(hub.0.id(), Signal::TERM);
    hear("STOPPING=1");
    assert_eq!(hub.0.wait().unwrap().code(), Some(0));
}

#[test]
fn two_hubs_do_not_share_a_directory_and_a_killed_one_leaves_no_lock() {
    let site = Site::new();
    let (mut hub, _) = site.start(nowhere(), |_| {});
    let holder = format!("in use by another hub (process {})", hub.0.id());
    for (root, cache) in [("root", "cache-2"), ("root-2", "cache")] {
        let (arguments, _) = site.arguments(root, cache, nowhere());
        let second = yurt()
            .arg("hub")
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert_eq!(second.status.code(), Some(1));
        let said = text(&second.stderr);
        let dir = site.dir(if root == "root" { "root" } else { "cache" });
        assert!(
            said.contains(&format!("{} is {holder}", dir.display())),
            "{said}"
        );
    }
    hub.0.kill().unwrap();
    hub.0.wait().unwrap();
    let (mut hub, _) = site.start(nowhere(), |_| {});
    assert_eq!(hub.terminate(), Some(0));
}

#[test]
fn sigusr1_writes_the_state_down() {
    let site = Site::new();
    let (mut hub, ports) = site.start(nowhere(), |_| {});
    signal(hub.0.id(), Signal::USR1);
    let file = site
        .dir("root")
        .join(format!("yurthub.{}.state.json", hub.0.id()));
    eventually("the file", || file.exists());
    let state: serde_json::Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    assert_eq!(state["pid"], hub.0.id());
    assert_eq!(state["status"]["node"], "edge-1");
    assert_eq!(state["links"]["servers"][0]["server"], "127.0.0.1:1");
    assert!(state["tasks"]["runtime"].as_u64().unwrap() > 0);
    assert!(ports.get("/v1/healthz").ends_with("OK"), "it goes on");
    assert_eq!(hub.terminate(), Some(0));
}

/// As in a container: signals reach it although it is the first process there.
#[test]
fn the_first_process_of_a_container_stops_when_told() {
    let namespace = ["--pid", "--fork", "--kill-child"];
    let possible = Command::new("unshare").args(namespace).arg("true").output();
    if !possible.is_ok_and(|out| out.status.success()) {
        eprintln!("SKIPPED: no process namespace can be made here");
        return;
    }
    let site = Site::new();
    let (arguments, ports) = site.arguments("root", "cache", nowhere());
    let mut command = Command::new("unshare");
    let mut outside = Process(
        command
            .args(namespace)
            .arg(env!("CARGO_BIN_EXE_yurt"))
            .arg("hub")
            .args(arguments)
            .stdin(Stdio::null())
            .spawn()
            .unwrap(),
    );
    eventually("the hub is alive", || {
        ports.get("/v1/healthz").ends_with("OK")
    });
    let pid = outside.0.id();
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    let hub: u32 = children.trim().parse().unwrap();
    signal(hub, Signal::USR1);
    // It calls itself 1.
    let file = site.dir("root").join("yurthub.1.state.json");
    eventually("the state of process 1", || file.exists());
    signal(hub, Signal::TERM);
    assert_eq!(outside.0.wait().unwrap().code(), Some(0));
}

/// A cloud that takes a config map, slowly or not, and has one endless watch.
async fn answer(request: Request<hyper::body::Incoming>) -> Response<Body> {
    const EVENT: &[u8] = br#"{"type":"BOOKMARK","object":{"kind":"Pod","apiVersion":"v1","metadata":{"resourceVersion":"9"}}}
"#;
    let (head, body) = request.into_parts();
    let mut response = match (&head.method, head.uri.path()) {
        (&Method::POST, _) => {
            let body = body
                .collect()
                .await
                .map(|body| body.to_bytes())
                .unwrap_or_default();
            let mut response = Response::new(yurt_transport::full(body));
            *response.status_mut() = http::StatusCode::CREATED;
            response
        }
        (_, "/api/v1/pods") => {
            let (frames, body) = yurt_transport::channel(1);
            tokio::spawn(async move {
                let _ = frames.send(Ok(Bytes::from_static(EVENT))).await;
                frames.closed().await;
            });
            Response::new(body)
        }
        (_, "/livez") => Response::new(yurt_transport::full("ok")),
        _ => {
            let mut response = Response::new(yurt_transport::full("{}"));
            *response.status_mut() = http::StatusCode::NOT_FOUND;
            response
        }
    };
    let json = http::HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    response
}

#[test]
fn what_is_under_way_ends_well_when_the_hub_is_stopped() {
    let site = Site::new();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let stop = CancellationToken::new();
    let cloud = runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let serving = site
            .ca
            .issue(&Profile {
                common_name: "server".into(),
                ips: vec![address.ip()],
                server: true,
                days: 1,
                ..Profile::default()
            })
            .unwrap();
        let tls = yurt_pki::server_config(&serving, None, true).unwrap();
        let tls = Some(Arc::new(ArcSwap::new(tls)));
        let options = ServeOptions::default();
        tokio::spawn(yurt_transport::serve(
            listener,
            tls,
            options,
            stop.clone(),
            answer,
        ));
        address
    });
    let (mut hub, ports) = site.start(cloud, |_| {});
    eventually("the hub is online", || {
        ports.get("/v1/status").contains("\"state\": \"up\"")
    });

    let mut watch = ports.send(
        "GET /api/v1/pods?watch=true HTTP/1.1\r\nhost: hub\r\naccept: application/json\r\n\r\n",
    );
    let mut seen = Vec::new();
    while !seen.windows(8).any(|bytes| bytes == b"BOOKMARK") {
        let mut buffer = [0; 1024];
        let count = watch.read(&mut buffer).unwrap();
        assert!(count > 0, "{}", text(&seen));
        seen.extend_from_slice(&buffer[..count]);
    }
    let map =
        r#"{"kind":"ConfigMap","apiVersion":"v1","metadata":{"name":"a","namespace":"default"}}"#;
    let (first, second) = map.split_at(20);
    let mut upload = ports.send(&format!(
        "POST /api/v1/namespaces/default/configmaps HTTP/1.1\r\nhost: hub\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{first}",
        map.len()
    ));
    eventually("the upload is under way", || {
        ports.get("/metrics").lines().any(|line| {
            line.contains("in_flight_requests_collector")
                && line.contains("verb=\"create\"")
                && line.ends_with(" 1")
        })
    });

    signal(hub.0.id(), Signal::TERM);
    // The watch ends as an API server ends one.
    let mut rest = Vec::new();
    watch.read_to_end(&mut rest).unwrap();
    assert!(rest.ends_with(b"0\r\n\r\n"), "{}", text(&rest));
    // What had begun may end.
    upload.write_all(second.as_bytes()).unwrap();
    let mut answer = String::new();
    upload.read_to_string(&mut answer).unwrap();
    assert!(
        answer.starts_with("HTTP/1.1 201 ") && answer.ends_with(map),
        "{answer}"
    );
    assert_eq!(hub.0.wait().unwrap().code(), Some(0));
    stop.cancel();
}
