//! etcd, kube-apiserver and a node, as processes and as what this process simulates.

use super::super::pair::{AGENT_NODE, Authority};
use crate::{
    fixture::{Kubectl, eventually, free_port, kubectl, yurt},
    peers::binary,
    real_node::Service,
};
use serde_json::{Value, json};
use std::{
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::Command,
};
use tokio_util::sync::CancellationToken;
use yurt_lab::kubelet::{KubeletConfig, KubeletHandle, PortOptions, SimulatedKubelet};

/// The node's address, and what its pods' addresses begin with.
pub(super) const NODE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const PODS: [u8; 3] = [198, 51, 100];
const HUB_PORT: u16 = 10261;

/// etcd and, before it, a kube-apiserver that is started anew for each transport.
pub(super) struct Cloud {
    pub(super) authority: Authority,
    pub(super) dir: PathBuf,
    etcd: Service,
    program: PathBuf,
    etcd_port: u16,
    port: u16,
    kubectl: PathBuf,
}

impl Cloud {
    pub(super) fn start(dir: &Path) -> Option<Self> {
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

    fn server(&self) -> String {
        format!("https://127.0.0.1:{}", self.port)
    }

    /// A kubeconfig for somebody who has a certificate.
    pub(super) fn kubeconfig(&self, user: &str) -> PathBuf {
        self.authority.kubeconfig(user, &self.server())
    }

    /// A kube-apiserver that has an EgressSelector, when it answers.
    pub(super) fn with_egress(&mut self, name: &str, connection: &Value) -> (Service, Kubectl) {
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
        let config = self.kubeconfig("admin");
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
pub(super) struct Node {
    _hub: Service,
    _runtime: tokio::runtime::Runtime,
    _kubelet: KubeletHandle,
    shutdown: CancellationToken,
}

impl Node {
    pub(super) fn start(cloud: &Cloud) -> Self {
        let (dir, server) = (cloud.dir.clone(), cloud.server());
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
        config.pod_network = Some(PODS);
        // Else the server would take it for one of the cloud and dial it itself.
        config.labels = vec![("openyurt.io/is-edge-worker".into(), "true".into())];
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

/// A pod with one container, on the node.
pub(super) fn pod(name: &str, port: u16) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "default"},
        "spec": {"nodeName": AGENT_NODE, "tolerations": [{"operator": "Exists"}],
            "containers": [{"name": name, "image": "nginx:1.27", "ports": [{"containerPort": port}]}]}})
}

/// Brings objects to the API server. The OpenAPI of the binary under test is none that kubectl can validate by.
pub(super) fn apply(kubectl: &Kubectl, objects: &[Value]) {
    let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
    kubectl.feed(&["apply", "--validate=false", "-f", "-"], &list.to_string());
}

impl Drop for Node {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}
