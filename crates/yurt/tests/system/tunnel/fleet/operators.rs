//! People with kubectl at two nodes of the fleet: an API server whose way to kubelets is the tunnel, by either of its servers.

use super::{
    super::operations::{copies, forwards, types},
    Fleet, address, node, scrapers,
};
use crate::fixture::{Follow, Kubectl, eventually, kubectl, text};
use http::{HeaderValue, Request, header};
use hyper::body::Incoming;
use serde_json::json;
use std::{
    cell::RefCell,
    io::{self, BufRead, BufReader, Write},
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    process::{Child, ChildStdin, ChildStdout, Stdio},
};
use tokio::net::TcpListener;
use tokio_util::sync::{CancellationToken, DropGuard};
use yurt_apiserver::{ApiServer, Config, Kubelets, Running, Tls, authn::User};
use yurt_lab::kubelet::{KubeletConfig, PortOptions, SimulatedKubelet};
use yurt_transport::{Destination, Dialer, Dialing, ServeOptions, serve};

/// The nodes that have a kubelet, and the pods on them. The first is reached by the server that is killed.
const FIRST: (u16, &str) = (1, "first");
const SECOND: (u16, &str) = (2, "web");

/// The API server's way: for every node one of the servers, and the other one where that is not there.
#[derive(Debug)]
struct Egress([PathBuf; 2]);

impl Dialer for Egress {
    fn dial<'a>(&'a self, to: &'a Destination) -> Dialing<'a> {
        Box::pin(async move {
            let invalid = |_| io::Error::from(io::ErrorKind::InvalidInput);
            let target = SocketAddr::new(to.host.parse().map_err(invalid)?, to.port);
            let [first, second] = &self.0;
            let ways = match target.ip() == address(FIRST.0) {
                true => [first, second],
                false => [second, first],
            };
            match scrapers::connect(ways[0], target).await {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    scrapers::connect(ways[1], target).await
                }
                opened => opened,
            }
        })
    }
}

/// What a node's hub is to its kubelet: a plain port behind which the node is known.
async fn hub(api: &Running, node: &str, shutdown: &CancellationToken) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let (api, token) = (
        api.in_process(),
        HeaderValue::from_str(&format!("Bearer {node}")),
    );
    let token = token.unwrap();
    let handler = move |mut request: Request<Incoming>| {
        let api = api.clone();
        request
            .headers_mut()
            .insert(header::AUTHORIZATION, token.clone());
        async move { api.call(request).await }
    };
    tokio::spawn(serve(
        listener,
        None,
        ServeOptions::default(),
        shutdown.clone(),
        handler,
    ));
    address
}

/// An interactive command: what is said comes back.
struct Session {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Session {
    fn start(kubectl: &Kubectl, pod: &str) -> Self {
        let mut child = kubectl
            .command(&["exec", "-i", pod, "--", "cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let (stdin, stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let mut session = Self {
            child,
            stdin,
            stdout: BufReader::new(stdout),
        };
        session.answers("one\n");
        session
    }

    fn answers(&mut self, line: &str) {
        self.stdin.write_all(line.as_bytes()).unwrap();
        let mut back = String::new();
        self.stdout.read_line(&mut back).unwrap();
        assert_eq!(back, line);
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Operators at work.
pub(super) struct Operators {
    kubectl: Kubectl,
    dir: PathBuf,
    sessions: RefCell<[Session; 2]>,
    logs: RefCell<[Follow; 2]>,
    _api: Running,
    _shutdown: DropGuard,
}

impl Operators {
    /// Opens a log and a session at both nodes; `None`, said loudly, where there is no kubectl.
    pub(super) fn start(fleet: &Fleet) -> Option<Self> {
        let program = kubectl()?;
        let (authority, dir) = (&fleet.authority, fleet.scratch.path());
        authority.server("apiserver", "kube-apiserver", &[Ipv4Addr::LOCALHOST.into()]);
        authority.client(
            "kubelet-client",
            "kube-apiserver-kubelet-client",
            &["system:masters"],
        );
        authority.client("admin", "kubernetes-admin", &["system:masters"]);
        let nodes = [FIRST, SECOND].map(|(number, _)| node(number));
        let tokens = nodes.iter().map(|node| {
            let user = User::new(&format!("system:node:{node}"), &["system:nodes"]);
            (node.clone(), user)
        });
        let shutdown = CancellationToken::new();
        let config = Config {
            tls: Some(Tls {
                serving: authority.pair("apiserver"),
                client_ca: Some(authority.ca()),
            }),
            tokens: tokens.collect(),
            kubelets: Kubelets {
                ca: Some(authority.ca()),
                client: Some(authority.pair("kubelet-client")),
                preferred_addresses: vec!["InternalIP".into()],
                dialer: std::sync::Arc::new(Egress(fleet.sockets())),
                ..Kubelets::default()
            },
            ..Config::default()
        };
        let api = fleet.runtime.block_on(async {
            let api = ApiServer::start(config, shutdown.clone()).await.unwrap();
            for (number, _) in [FIRST, SECOND] {
                let (name, at) = (node(number), address(number));
                authority.server(&name, &format!("system:node:{name}"), &[at.into()]);
                let hub = hub(&api, &name, &shutdown).await;
                let mut config = KubeletConfig::new(&name, &format!("http://{hub}"));
                config.address = at.into();
                let listener = TcpListener::bind((at, config.port)).await.unwrap();
                let (kubelet, running) = SimulatedKubelet::start(config, shutdown.clone());
                drop(running);
                let options = PortOptions {
                    serving: authority.pair(&name),
                    client_ca: authority.ca(),
                    websockets: true,
                };
                drop(kubelet.serve(listener, options, shutdown.clone()).unwrap());
            }
            api
        });
        let config = authority.kubeconfig("admin", &format!("https://{}", api.addr()));
        let kubectl = Kubectl::new(program, config, dir.join("kubectl-cache"));
        eventually("the namespace has its account", || {
            kubectl
                .output(&["get", "serviceaccount", "default"])
                .status
                .success()
        });
        for (number, pod) in [FIRST, SECOND] {
            let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": pod, "namespace": "default"},
                "spec": {"nodeName": node(number), "tolerations": [{"operator": "Exists"}],
                    "containers": [{"name": "web", "image": "nginx:1.27", "ports": [{"containerPort": 80}]}]}});
            kubectl.feed(&["apply", "-f", "-"], &pod.to_string());
        }
        kubectl.ok(&[
            "wait",
            "pod",
            "--all",
            "--for=condition=Ready",
            "--timeout=60s",
        ]);
        let pods = [FIRST.1, SECOND.1];
        let logs = pods.map(|pod| kubectl.follow(&["logs", "-f", pod]));
        for log in &logs {
            eventually("a line of the log", || !log.lines().is_empty());
        }
        Some(Self {
            sessions: RefCell::new(pods.map(|pod| Session::start(&kubectl, pod))),
            logs: RefCell::new(logs),
            kubectl,
            dir: dir.to_owned(),
            _api: api,
            _shutdown: shutdown.drop_guard(),
        })
    }

    /// The first server was killed: who works by the other does not notice, and all may begin anew.
    pub(super) fn go_on_without_the_first(&self) {
        let kubectl = &self.kubectl;
        let (mut sessions, mut logs) = (self.sessions.borrow_mut(), self.logs.borrow_mut());
        let [cut, goes_on] = &mut *sessions;
        goes_on.answers("two\n");
        eventually("who worked by the dead one is told", || {
            cut.child.try_wait().unwrap().is_some()
        });
        *cut = Session::start(kubectl, FIRST.1);
        types(kubectl, &self.dir);
        copies(kubectl, &self.dir, 1);
        let [_, followed] = &mut *logs;
        let before = followed.lines().len();
        forwards(kubectl);
        // The request is in the log, which is followed all the while.
        eventually("another line of the log", || {
            followed.lines().len() > before
        });
        assert!(followed.runs());
        goes_on.answers("three\n");
        let failed = kubectl.output(&["exec", FIRST.1, "--", "sh", "-c", "exit 7"]);
        assert_eq!(failed.status.code(), Some(7), "{}", text(&failed.stderr));
    }
}
