//! A real kube-apiserver reaches a kubelet through the tunnel, by each transport of its EgressSelector. `KUBE_APISERVER` and `ETCD` name the
//! binaries; without them the test is skipped and says so.

use super::pair::{AGENT_NODE, Authority, Pair};
use crate::{
    fixture::{Kubectl, Scratch, eventually, kubectl, text, yurt},
    peers::binary,
    real_node::Service,
};
use serde_json::{Value, json};
use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};
use tokio_util::sync::CancellationToken;
use yurt_lab::kubelet::{KubeletConfig, KubeletHandle, PortOptions, SimulatedKubelet};

/// The node's address: nobody else's.
const NODE: Ipv4Addr = Ipv4Addr::new(127, 78, 0, 1);
const HUB_PORT: u16 = 10261;

fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    listener.local_addr().unwrap().port()
}

/// etcd and, before it, a kube-apiserver that is started anew for each transport.
struct Cloud {
    authority: Authority,
    dir: PathBuf,
    etcd: Service,
    program: PathBuf,
    etcd_port: u16,
    port: u16,
    kubectl: PathBuf,
}

impl Cloud {
    fn start(dir: &Path) -> Option<Self> {
        let (program, etcd) = (binary("KUBE_APISERVER"), binary("ETCD"));
        let (program, etcd) = (program?, etcd?);
        let kubectl = kubectl()?;
        let authority = Authority::new(dir);
        let localhost = [Ipv4Addr::LOCALHOST.into()];
        authority.server("apiserver", "kube-apiserver", &localhost);
        authority.client(
            "kubelet-client",
            "kube-apiserver-kubelet-client",
            &["system:masters"],
        );
        authority.client("admin", "kubernetes-admin", &["system:masters"]);
        authority.client(
            "node",
            &format!("system:node:{AGENT_NODE}"),
            &["system:nodes"],
        );
        authority.server(
            "kubelet",
            &format!("system:node:{AGENT_NODE}"),
            &[NODE.into()],
        );
        // It takes the public key of a PKCS #8 one from a certificate only.
        authority.client("sa", "service-accounts", &[]);
        let (etcd_port, peer_port) = (free_port(), free_port());
        let data = dir.join("etcd");
        let etcd = Service::start(dir.join("etcd.log"), move || {
            let (client, peer) = (
                format!("http://127.0.0.1:{etcd_port}"),
                format!("http://127.0.0.1:{peer_port}"),
            );
            let mut command = Command::new(&etcd);
            command
                .arg(format!("--data-dir={}", data.display()))
                .arg(format!("--listen-client-urls={client}"))
                .arg(format!("--advertise-client-urls={client}"))
                .arg(format!("--listen-peer-urls={peer}"))
                .arg(format!("--initial-advertise-peer-urls={peer}"))
                .arg(format!("--initial-cluster=default={peer}"))
                .arg("--unsafe-no-fsync");
            command
        });
        Some(Self {
            authority,
            dir: dir.to_owned(),
            etcd,
            program,
            etcd_port,
            port: free_port(),
            kubectl,
        })
    }

    /// A kube-apiserver that has an EgressSelector, when it answers.
    fn with_egress(&mut self, name: &str, connection: &Value) -> (Service, Kubectl) {
        let selection = json!({"apiVersion": "apiserver.k8s.io/v1beta1", "kind": "EgressSelectorConfiguration",
            "egressSelections": [{"name": "cluster", "connection": connection}]});
        let file = self.dir.join(format!("egress-{name}.json"));
        std::fs::write(&file, selection.to_string()).unwrap();
        let at = |name: &str| self.dir.join(name).display().to_string();
        let arguments = [
            format!("--etcd-servers=http://127.0.0.1:{}", self.etcd_port),
            "--bind-address=127.0.0.1".into(),
            "--advertise-address=127.0.0.1".into(),
            format!("--secure-port={}", self.port),
            format!("--tls-cert-file={}", at("apiserver.crt")),
            format!("--tls-private-key-file={}", at("apiserver.key")),
            format!("--client-ca-file={}", at("ca.crt")),
            format!("--service-account-key-file={}", at("sa.crt")),
            format!("--service-account-signing-key-file={}", at("sa.key")),
            "--service-account-issuer=https://kubernetes.default.svc".into(),
            "--service-cluster-ip-range=10.96.0.0/16".into(),
            "--endpoint-reconciler-type=none".into(),
            "--authorization-mode=Node,RBAC".into(),
            "--disable-admission-plugins=ServiceAccount".into(),
            "--kubelet-preferred-address-types=InternalIP".into(),
            format!("--kubelet-client-certificate={}", at("kubelet-client.crt")),
            format!("--kubelet-client-key={}", at("kubelet-client.key")),
            format!("--kubelet-certificate-authority={}", at("ca.crt")),
            format!("--egress-selector-config-file={}", file.display()),
        ];
        let program = self.program.clone();
        let mut api = Service::start(self.dir.join(format!("apiserver-{name}.log")), move || {
            let mut command = Command::new(&program);
            command.args(&arguments);
            command
        });
        let server = format!("https://127.0.0.1:{}", self.port);
        let config = self.authority.kubeconfig("admin", &server);
        let kubectl = Kubectl::new(self.kubectl.clone(), config, self.dir.join("cache"));
        eventually("kube-apiserver is ready", || {
            self.etcd.must_run();
            api.must_run();
            kubectl
                .output(&["get", "--raw", "/readyz"])
                .status
                .success()
        });
        (api, kubectl)
    }
}

/// The node: a hub, and a simulated kubelet with its port.
struct Node {
    _hub: Service,
    _runtime: tokio::runtime::Runtime,
    _kubelet: KubeletHandle,
    shutdown: CancellationToken,
}

impl Node {
    fn start(cloud: &Cloud) -> Self {
        let (dir, server) = (
            cloud.dir.clone(),
            format!("https://127.0.0.1:{}", cloud.port),
        );
        let hub = Service::start(dir.join("hub.log"), move || {
            let at = |name: &str| dir.join(name).display().to_string();
            let mut command = yurt();
            command
                .arg("hub")
                .arg(format!("--node-name={AGENT_NODE}"))
                .arg(format!("--server-addr={server}"))
                .arg(format!("--bind-address={NODE}"))
                .arg(format!("--bind-proxy-address={NODE}"))
                .arg(format!("--root-dir={}", at("hub")))
                .arg(format!("--disk-cache-path={}", at("hub/cache")))
                .arg(format!("--ca-file={}", at("ca.crt")))
                .arg(format!("--client-cert={}", at("node.crt")))
                .arg(format!("--client-key={}", at("node.key")))
                .args([
                    "--enable-dummy-if=false",
                    "--multiplexer-port=0",
                    "--proxy-secure-port=0",
                ]);
            command
        });
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let shutdown = CancellationToken::new();
        let mut config = KubeletConfig::new(AGENT_NODE, &format!("http://{NODE}:{HUB_PORT}"));
        config.address = NODE.into();
        let serving = cloud.authority.pair("kubelet");
        let client_ca = cloud.authority.ca();
        let kubelet = runtime.block_on(async {
            let address = SocketAddr::from((NODE, config.port));
            let listener = tokio::net::TcpListener::bind(address).await.unwrap();
            let (kubelet, run) = SimulatedKubelet::start(config, shutdown.clone());
            drop(run);
            let options = PortOptions {
                serving,
                client_ca,
                websockets: true,
            };
            drop(kubelet.serve(listener, options, shutdown.clone()).unwrap());
            kubelet
        });
        Self {
            _hub: hub,
            _runtime: runtime,
            _kubelet: kubelet,
            shutdown,
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

/// What an operator does, all of it through the tunnel.
fn operate(kubectl: &Kubectl, dir: &Path, megabytes: usize) {
    let logs = kubectl.follow(&["logs", "-f", "web"]);
    eventually("a line of the log", || !logs.lines().is_empty());
    drop(logs);
    assert_eq!(
        kubectl.ok(&["exec", "web", "--", "echo", "a b", "c"]),
        "a b c\n"
    );
    let failed = kubectl.output(&["exec", "web", "--", "sh", "-c", "exit 7"]);
    assert_eq!(failed.status.code(), Some(7), "{}", text(&failed.stderr));
    assert_eq!(
        kubectl.feed(&["exec", "-i", "web", "--", "cat"], "through\n"),
        "through\n"
    );
    copies(kubectl, dir, megabytes);
    forwards(kubectl);
    let path = format!("/api/v1/nodes/{AGENT_NODE}/proxy/metrics/resource");
    let figures = kubectl.ok(&["get", "--raw", &path]);
    assert!(
        figures.contains("node_cpu_usage_seconds_total"),
        "{figures}"
    );
}

/// There and back, unharmed.
pub(super) fn copies(kubectl: &Kubectl, dir: &Path, megabytes: usize) {
    let (sent, back) = (dir.join("sent"), dir.join("back"));
    let content: Vec<u8> = (0..megabytes << 20).map(|_| fastrand::u8(..)).collect();
    std::fs::write(&sent, &content).unwrap();
    let _ = std::fs::remove_file(&back);
    let path = |path: &Path| path.to_str().unwrap().to_owned();
    kubectl.ok(&["cp", &path(&sent), "web:/tmp/file"]);
    kubectl.ok(&["cp", "web:/tmp/file", &path(&back)]);
    assert!(std::fs::read(&back).unwrap() == content, "a byte differs");
}

/// A request through `port-forward`.
pub(super) fn forwards(kubectl: &Kubectl) {
    let mut forward = kubectl
        .command(&["port-forward", "pod/web", ":80"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    // Held open: a kubectl that cannot write there dies.
    let mut stdout = BufReader::new(forward.stdout.take().unwrap());
    let mut said = String::new();
    stdout.read_line(&mut said).unwrap();
    let port: u16 = said
        .split_once("127.0.0.1:")
        .and_then(|(_, rest)| rest.split(' ').next()?.parse().ok())
        .unwrap_or_else(|| panic!("port-forward said {said:?}"));
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(30)))
        .unwrap();
    stream
        .write_all(b"GET / HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n")
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    forward.kill().unwrap();
    forward.wait().unwrap();
}

#[test]
fn kube_apiserver_reaches_a_kubelet_by_each_transport() {
    let scratch = Scratch::new();
    let dir = scratch.path();
    let Some(mut cloud) = Cloud::start(dir) else {
        return;
    };
    let pair = Pair::start(dir, &cloud.authority, NODE.into());
    let mut node = None;
    for (name, connection) in pair.transports(&cloud.authority) {
        let (_api, kubectl) = cloud.with_egress(name, &connection);
        if node.is_none() {
            node = Some(Node::start(&cloud));
            eventually("the node joins", || {
                kubectl
                    .ok(&["get", "nodes", "-o", "name"])
                    .contains(AGENT_NODE)
            });
            kubectl.feed(
                &["apply", "--validate=false", "-f", "-"],
                &json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web", "namespace": "default"},
                    "spec": {"nodeName": AGENT_NODE, "tolerations": [{"operator": "Exists"}],
                        "containers": [{"name": "web", "image": "nginx:1.27", "ports": [{"containerPort": 80}]}]}})
                .to_string(),
            );
        }
        kubectl.ok(&["wait", "pod/web", "--for=condition=Ready", "--timeout=60s"]);
        operate(&kubectl, dir, 4);
        // Nothing else leads there: a server without its agent answers, and says why.
        let refused = pair.without_agent(|| kubectl.refused(&["exec", "web", "--", "echo"]));
        assert!(
            refused.to_lowercase().contains("agent") || refused.contains("503"),
            "{name}: {refused}"
        );
    }
}
