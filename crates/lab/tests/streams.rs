//! Logs, commands, copies and forwarded ports of simulated pods, by a real kubectl: whichever is on the PATH, or the one `KUBECTL`
//! names. The protocols kubectl knows: WebSockets, SPDY, and SPDY after a kubelet has refused WebSockets.

use http::{HeaderValue, Request, header};
use hyper::body::Incoming;
use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    path::PathBuf,
    process::{Child, Command, Output, Stdio},
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use yurt_apiserver::{ApiServer, Config, Kubelets, Running, Tls, authn::User};
use yurt_lab::kubelet::{KubeletConfig, KubeletHandle, PortOptions, SimulatedKubelet};
use yurt_pki::{Ca, KeyPairPem, Profile};
use yurt_transport::{Destination, Dialer, Dialing, ServeOptions};

const PATIENCE: Duration = Duration::from_secs(60);
const KUBELET_TOKEN: &str = "kubelet";
/// One container prints and waits, the other has a port.
const POD: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: p, labels: {app: p}}
spec:
  nodeName: "n"
  containers:
  - name: talk
    image: i
    command: [sh, -c, "echo one; echo two >&2; for i in 1 2 3; do echo line $i; done; sleep 100000"]
    env: [{name: COLOR, value: red}, {name: LEVEL, valueFrom: {configMapKeyRef: {name: settings, key: level}}}]
    volumeMounts: [{name: settings, mountPath: /etc/settings}]
  - name: web
    image: i
    ports: [{containerPort: 18973, name: http}]
  volumes:
  - name: settings
    configMap: {name: settings}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: settings}
data: {level: high}
---
apiVersion: v1
kind: Service
metadata: {name: s}
spec:
  selector: {app: p}
  ports: [{port: 80, targetPort: 18973}]
"#;

/// An API server, a node and kubectl.
struct Stage {
    kubectl: PathBuf,
    dir: TempDir,
    shutdown: CancellationToken,
    running: Option<Running>,
    runtime: tokio::runtime::Runtime,
    spdy: bool,
}

/// `None`, said aloud, when there is no kubectl.
fn find_kubectl() -> Option<PathBuf> {
    let named = std::env::var_os("KUBECTL").map(PathBuf::from);
    let found = named.or_else(|| {
        let path = std::env::var_os("PATH")?;
        std::env::split_paths(&path)
            .map(|dir| dir.join("kubectl"))
            .find(|file| file.is_file())
    });
    if found.is_none() {
        eprintln!("SKIPPED: there is no kubectl on the PATH (set KUBECTL to name one)");
    }
    found
}

fn issue(ca: &Ca, name: &str, group: &str, server: bool) -> KeyPairPem {
    ca.issue(&Profile {
        common_name: name.into(),
        organizations: vec![group.into()],
        ips: vec![Ipv4Addr::LOCALHOST.into()],
        server,
        client: !server,
        days: 1,
        ..Profile::default()
    })
    .unwrap()
}

/// What a node's hub is to its kubelet: a plain port behind which the node is known.
async fn node_proxy(running: &Running, shutdown: CancellationToken) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = running.in_process();
    let handler = move |mut request: Request<Incoming>| {
        let server = server.clone();
        let token = HeaderValue::from_static("Bearer kubelet");
        request.headers_mut().insert(header::AUTHORIZATION, token);
        async move { server.call(request).await }
    };
    tokio::spawn(yurt_transport::serve(
        listener,
        None,
        ServeOptions::default(),
        shutdown,
        handler,
    ));
    address
}

/// The only node, once it is there: dials as one of its processes.
#[derive(Debug, Default)]
struct Node(OnceLock<KubeletHandle>);

impl Dialer for Node {
    fn dial<'a>(&'a self, to: &'a Destination) -> Dialing<'a> {
        match self.0.get() {
            Some(kubelet) => kubelet.dial(to),
            None => Box::pin(std::future::ready(Err(io::ErrorKind::NotConnected.into()))),
        }
    }
}

impl Stage {
    fn start(websockets: bool) -> Option<Self> {
        let kubectl = find_kubectl()?;
        let dir = tempfile::tempdir().unwrap();
        let ca = Ca::new("test", 1).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let shutdown = CancellationToken::new();
        let node = Arc::new(Node::default());
        let config = Config {
            tls: Some(Tls {
                serving: issue(&ca, "kube-apiserver", "", true),
                client_ca: Some(ca.cert_pem()),
            }),
            tokens: vec![(
                KUBELET_TOKEN.into(),
                User::new("system:node:n", &["system:nodes"]),
            )],
            kubelets: Kubelets {
                ca: Some(ca.cert_pem()),
                client: Some(issue(&ca, "kubelet-client", "system:masters", false)),
                preferred_addresses: vec!["InternalIP".into()],
                dialer: node.clone(),
                ..Kubelets::default()
            },
            ..Config::default()
        };
        let running = runtime.block_on(async {
            let running = ApiServer::start(config, shutdown.clone()).await.unwrap();
            let proxy = node_proxy(&running, shutdown.clone()).await;
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
            let mut kubelet = KubeletConfig::new("n", &format!("http://{proxy}"));
            kubelet.port = listener.local_addr().unwrap().port();
            let (handle, _) = SimulatedKubelet::start(kubelet, shutdown.clone());
            let options = PortOptions {
                serving: issue(&ca, "system:node:n", "system:nodes", true),
                client_ca: ca.cert_pem(),
                websockets,
            };
            drop(handle.serve(listener, options, shutdown.clone()).unwrap());
            node.0.set(handle).unwrap();
            running
        });
        let admin = issue(&ca, "admin", "system:masters", false);
        let credentials = yurt_controller::kubeconfig::Credentials::Certificate {
            cert: &admin.cert,
            key: &admin.key,
        };
        let server = format!("https://{}", running.addr());
        let kubeconfig =
            yurt_controller::kubeconfig::render("a", &server, &ca.cert_pem(), &credentials);
        std::fs::write(dir.path().join("kubeconfig"), kubeconfig).unwrap();
        let stage = Self {
            kubectl,
            dir,
            shutdown,
            running: Some(running),
            runtime,
            spdy: false,
        };
        stage.until(&["get", "serviceaccount", "default"]);
        let created = stage.run(&["apply", "-f", "-"], POD);
        assert!(created.status.success(), "{created:?}");
        stage.ok(&["wait", "--for=condition=Ready", "pod/p", "--timeout=60s"]);
        Some(stage)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.kubectl);
        command
            .arg("--kubeconfig")
            .arg(self.dir.path().join("kubeconfig"))
            .arg("--cache-dir")
            .arg(self.dir.path().join("cache"))
            .args(arguments)
            .current_dir(self.dir.path())
            .env("HOME", self.dir.path())
            .stdin(Stdio::null());
        if self.spdy {
            command
                .env("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", "false")
                .env("KUBECTL_PORT_FORWARD_WEBSOCKETS", "false");
        }
        command
    }

    fn run(&self, arguments: &[&str], stdin: &str) -> Output {
        let mut command = self.command(arguments);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command.stdin(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut pipe = child.stdin.take().unwrap();
        // A command that does not read its input may have ended before.
        let _ = pipe.write_all(stdin.as_bytes());
        drop(pipe);
        child.wait_with_output().unwrap()
    }

    fn ok(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments, "");
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn until(&self, arguments: &[&str]) {
        let begin = Instant::now();
        while !self.run(arguments, "").status.success() {
            assert!(begin.elapsed() < PATIENCE, "never: {arguments:?}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Every way by which commands reach a container.
    fn each(check: impl Fn(&Self)) {
        let Some(mut stage) = Self::start(true) else {
            return;
        };
        check(&stage);
        stage.spdy = true;
        check(&stage);
        drop(stage);
        let Some(old) = Self::start(false) else {
            return;
        };
        check(&old);
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.shutdown.cancel();
        if let Some(running) = self.running.take() {
            self.runtime.block_on(running.stopped()).unwrap();
        }
    }
}

/// A kubectl that is ended with the test.
struct Background(Child);

impl Drop for Background {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn logs() {
    let Some(stage) = Stage::start(true) else {
        return;
    };
    let logs = |arguments: &[&str]| stage.ok(&[&["logs", "p"], arguments].concat());
    assert_eq!(logs(&["-c", "talk"]), "one\ntwo\nline 1\nline 2\nline 3\n");
    assert_eq!(logs(&["-c", "talk", "--tail=1"]), "line 3\n");
    assert_eq!(logs(&["-c", "talk", "--limit-bytes=5"]), "one\nt");
    assert_eq!(logs(&["-c", "web"]), "simulated container web (i)\n");
    let stamped = logs(&["-c", "talk", "--timestamps", "--tail=1"]);
    assert!(
        stamped.starts_with("20") && stamped.ends_with("Z line 3\n"),
        "{stamped}"
    );
    let all = logs(&["--all-containers", "--prefix"]);
    assert!(
        all.contains("[pod/p/talk] one\n") && all.contains("[pod/p/web] sim"),
        "{all}"
    );
    let selected = stage.ok(&["logs", "-l", "app=p", "-c", "talk", "--tail=2"]);
    assert_eq!(selected, "line 2\nline 3\n");

    let refused = |arguments: &[&str], why: &str| {
        let output = stage.run(arguments, "");
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && text.contains(why), "{text}");
    };
    refused(
        &["logs", "p", "-c", "none"],
        "container none is not valid for pod p",
    );
    refused(
        &["logs", "p", "-c", "talk", "--previous"],
        "previous terminated container \"talk\" in pod \"p\" not found",
    );

    // Followed: what another request makes the container print, until the pod goes.
    let mut command = stage.command(&["logs", "p", "-c", "web", "-f"]);
    let mut follow = Background(command.stdout(Stdio::piped()).spawn().unwrap());
    let mut lines = BufReader::new(follow.0.stdout.take().unwrap()).lines();
    assert_eq!(
        lines.next().unwrap().unwrap(),
        "simulated container web (i)"
    );
    stage.ok(&[
        "get",
        "--raw",
        "/api/v1/namespaces/default/pods/p:18973/proxy/hello?a=b",
    ]);
    assert_eq!(
        lines.next().unwrap().unwrap(),
        "GET /hello?a=b on port 18973"
    );
    stage.ok(&["delete", "pod", "p"]);
    assert!(lines.next().is_none());
}

#[test]
fn commands() {
    Stage::each(|stage| {
        let exec = |arguments: &[&str], stdin: &str| {
            let arguments = [&["exec", "p", "-c", "talk"], arguments].concat();
            let output = stage.run(&arguments, stdin);
            let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
            (
                output.status.code().unwrap(),
                text(output.stdout),
                text(output.stderr),
            )
        };
        assert_eq!(
            exec(&["--", "hostname"], ""),
            (0, "p\n".into(), String::new())
        );
        let (code, out, error) = exec(&["--", "sh", "-c", "echo out; echo err >&2; exit 7"], "");
        assert_eq!((code, out.as_str()), (7, "out\n"));
        assert!(error.starts_with("err\n"), "{error}");
        assert!(
            error.contains("command terminated with exit code 7"),
            "{error}"
        );
        assert_eq!(exec(&["-i", "--", "cat"], "typed").1, "typed");
        let large = "0123456789abcdef".repeat(1 << 16);
        assert_eq!(exec(&["-i", "--", "cat"], &large).1, large);
        assert_eq!(
            exec(&["-i", "--", "sh"], "echo $COLOR $LEVEL\nexit 3\n"),
            (
                3,
                "red high\n".into(),
                exec(&["--", "sh", "-c", "exit 3"], "").2
            )
        );
        assert_eq!(exec(&["--", "cat", "/etc/settings/level"], "").1, "high");
        // kubectl asks for no terminal when it has none itself.
        let (_, out, _) = exec(&["-i", "-t", "--", "sh", "-c", "echo a; tty"], "");
        assert_eq!(out, "a\nnot a tty\n");
        let (code, _, error) = exec(&["--", "nonsense"], "");
        assert_eq!(code, 127);
        assert!(
            error.contains("executable file not found in $PATH"),
            "{error}"
        );
        let output = stage.run(&["exec", "p", "-c", "none", "--", "true"], "");
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            error.contains("container none is not valid for pod p"),
            "{error}"
        );
    });
}

#[test]
fn attached_and_copied() {
    Stage::each(|stage| {
        let output = stage.run(&["attach", "p", "-c", "web", "-i"], "said\n");
        assert!(output.status.success(), "{output:?}");
        assert!(
            String::from_utf8_lossy(&output.stdout).contains("said\n"),
            "{output:?}"
        );
        let file = stage.dir.path().join("up");
        let content = "content\n".repeat(5000);
        std::fs::create_dir_all(file.join("sub")).unwrap();
        std::fs::write(file.join("sub/file"), &content).unwrap();
        stage.ok(&["cp", "up", "p:/tmp/up", "-c", "web"]);
        let found = stage.ok(&["exec", "p", "-c", "web", "--", "cat", "/tmp/up/sub/file"]);
        assert_eq!(found, content);
        stage.ok(&["cp", "p:/tmp/up", "down", "-c", "web"]);
        let copied = std::fs::read_to_string(stage.dir.path().join("down/sub/file")).unwrap();
        assert_eq!(copied, content);
        std::fs::remove_dir_all(stage.dir.path().join("down")).unwrap();
        stage.ok(&["exec", "p", "-c", "web", "--", "rm", "-rf", "/tmp/up"]);
    });
}

#[test]
fn forwarded_ports() {
    Stage::each(|stage| {
        for target in ["pod/p", "svc/s"] {
            let port = if target == "svc/s" { ":80" } else { ":18973" };
            let mut command = stage.command(&["port-forward", target, port]);
            let mut forward = Background(command.stdout(Stdio::piped()).spawn().unwrap());
            let mut lines = BufReader::new(forward.0.stdout.take().unwrap()).lines();
            let line = lines.next().unwrap().unwrap();
            let local = line.strip_prefix("Forwarding from ").unwrap();
            let (local, _) = local.split_once(" -> ").unwrap();
            // Several at once, on one forward.
            let ask = |path: &str| {
                let mut stream = TcpStream::connect(local).unwrap();
                stream.set_read_timeout(Some(PATIENCE)).unwrap();
                let request =
                    format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
                stream.write_all(request.as_bytes()).unwrap();
                let mut answer = String::new();
                stream.read_to_string(&mut answer).unwrap();
                assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
                assert!(answer.contains("\"pod\":\"p\""), "{answer}");
                assert!(answer.contains(&format!("\"path\":\"{path}\"")), "{answer}");
            };
            std::thread::scope(|scope| {
                for path in ["/a", "/b", "/c"] {
                    scope.spawn(move || ask(path));
                }
            });
        }
    });
}

#[test]
fn the_node_itself() {
    let Some(stage) = Stage::start(true) else {
        return;
    };
    let raw = |path: &str| stage.ok(&["get", "--raw", path]);
    assert_eq!(raw("/api/v1/nodes/n/proxy/healthz"), "ok");
    assert!(raw("/api/v1/nodes/n/proxy/pods").contains("\"name\":\"p\""));
    assert!(raw("/api/v1/nodes/n/proxy/stats/summary").contains("\"nodeName\":\"n\""));
    let figures = raw("/api/v1/nodes/n/proxy/metrics/resource");
    assert!(figures.contains("pod=\"p\""), "{figures}");
    assert!(raw("/api/v1/nodes/n/proxy/metrics").contains("kubelet_running_pods 1"));
    let missing = stage.run(&["get", "--raw", "/api/v1/nodes/n/proxy/none"], "");
    assert!(!missing.status.success());
}
