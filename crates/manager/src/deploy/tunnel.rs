//! The tunnel: its server beside the control plane, its agent on every edge node. Names, ports and objects are those of OpenYurt's
//! chart `yurt-tunnel`, so that one takes the other's place.

use super::{
    Values,
    access::{Subject, bind, role},
};
use serde_json::{Value, json};

/// The server: its Deployment, account and role.
const SERVER: &str = "yurt-tunnel-server";
/// The agent: its DaemonSet.
const AGENT: &str = "yurt-tunnel-agent";
/// Where agents come from outside.
const SERVICE: &str = "x-tunnel-server-svc";
/// Where names of edge nodes lead to within the cluster. Hubs hide it from edge nodes.
const INTERNAL_SERVICE: &str = "x-tunnel-server-internal-svc";
/// What users tell the server: which ports besides the kubelets'.
const CONFIG: &str = "yurt-tunnel-server-cfg";
/// As whom the server comes to kubelets.
const PROXY_CLIENT: &str = "tunnel-proxy-client";
/// The label by which all of it is found.
const APP: &str = "k8s-app";
/// The group of all nodes: an agent comes as its own.
const NODES: &str = "system:nodes";
/// Where a kube-apiserver on the same machine finds the server's socket.
const RUN_DIR: &str = "/run/yurt-tunnel";
const SERVER_DIR: &str = "/var/lib/yurttunnel-server";
const AGENT_DIR: &str = "/var/lib/yurttunnel-agent";
const AGENT_PORT: u16 = 10262;
const SECURE_PORT: u16 = 10263;
const INSECURE_PORT: u16 = 10264;
const SERVER_META_PORT: u16 = 10265;
const AGENT_META_PORT: u16 = 10266;

/// What the tunnel's manifests are made of: values, or for the chart expressions that stand for them.
#[derive(Clone, Debug)]
pub struct Tunnel {
    /// The image of the server.
    pub server_image: String,
    /// The image of the agent.
    pub agent_image: String,
    /// How many servers; each needs a node of its own, for its ports are the node's.
    pub replicas: Value,
    /// The port of every node where agents find a server.
    pub node_port: Value,
    /// The kind of the Service for agents.
    pub service_type: String,
    /// Annotations of that Service.
    pub service_annotations: Value,
    /// klog's verbosity.
    pub verbosity: Value,
    /// The configuration of users, as OpenYurt's keys have it: HTTP, HTTPS and localhost ports.
    pub ports: [String; 3],
    /// What else the server is told; an expression that stands for a list in the chart.
    pub server_args: Vec<String>,
    /// What else agents are told.
    pub agent_args: Vec<String>,
    /// Of the server's container.
    pub server_resources: Value,
    /// Of the agent's container.
    pub agent_resources: Value,
    /// Where servers run.
    pub node_selector: Value,
}

impl Default for Tunnel {
    fn default() -> Self {
        let image = |name: &str| format!("openyurt/{name}:v{}", env!("CARGO_PKG_VERSION"));
        Self {
            server_image: image(SERVER),
            agent_image: image(AGENT),
            replicas: 1.into(),
            node_port: 31008.into(),
            service_type: "NodePort".into(),
            service_annotations: json!({}),
            verbosity: 2.into(),
            ports: [String::new(), String::new(), "10266, 10267".into()],
            server_args: Vec::new(),
            agent_args: Vec::new(),
            server_resources: json!({"requests": {"cpu": "50m", "memory": "32Mi"}, "limits": {"memory": "512Mi"}}),
            agent_resources: json!({"requests": {"cpu": "10m", "memory": "16Mi"}, "limits": {"memory": "256Mi"}}),
            node_selector: json!({"openyurt.io/is-edge-worker": "false"}),
        }
    }
}

fn rule(group: &str, resources: &[&str], verbs: &[&str]) -> Value {
    json!({"apiGroups": [group], "resources": resources, "verbs": verbs})
}

fn metadata(values: &Values, name: &str) -> Value {
    json!({"name": name, "namespace": values.namespace, "labels": {APP: name}})
}

/// What the server may do: know nodes, pods and services, ask for its certificates; in its namespace keep its leases and what steers
/// callers to it.
fn of_server(values: &Values) -> Vec<Value> {
    let read = ["get", "list", "watch"];
    let everywhere = vec![
        rule("", &["nodes", "pods", "services", "endpoints"], &read),
        rule("discovery.k8s.io", &["endpointslices"], &read),
        rule(
            "certificates.k8s.io",
            &["certificatesigningrequests"],
            &["create", "get", "list", "watch"],
        ),
        // Konnectivity's agents may come with tokens instead of certificates.
        rule("authentication.k8s.io", &["tokenreviews"], &["create"]),
    ];
    let namespace = values.namespace.as_str();
    let local = vec![
        rule(
            "",
            &["configmaps"],
            &["get", "list", "watch", "create", "update"],
        ),
        rule("", &["services"], &["update"]),
        rule("", &["events"], &["create", "patch"]),
        rule(
            "coordination.k8s.io",
            &["leases"],
            &[
                "get", "list", "watch", "create", "update", "patch", "delete",
            ],
        ),
    ];
    let subject = Subject::Account(namespace, SERVER);
    vec![
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata(values, SERVER)}),
        role(None, SERVER, everywhere),
        bind(None, SERVER, &subject),
        role(Some(namespace), SERVER, local),
        bind(Some(namespace), SERVER, &subject),
    ]
}

/// What the server may do at kubelets, which ask the API server about it by the name in its certificate.
fn of_proxy_client() -> [Value; 2] {
    let all = rule(
        "",
        &[
            "nodes/stats",
            "nodes/metrics",
            "nodes/log",
            "nodes/spec",
            "nodes/proxy",
        ],
        &[
            "create", "get", "list", "watch", "delete", "update", "patch",
        ],
    );
    [
        role(None, PROXY_CLIENT, vec![all]),
        bind(None, PROXY_CLIENT, &Subject::User(PROXY_CLIENT)),
    ]
}

/// Where servers are, for agents, which come as their nodes: nodes of the cloud, where the Service is of type NodePort. (A node may ask for
/// certificates as it is.)
fn of_agents(namespace: &str) -> [Value; 4] {
    let nodes = vec![rule("", &["nodes"], &["get", "list", "watch"])];
    let local = vec![
        rule("", &["services"], &["get", "list", "watch"]),
        rule("coordination.k8s.io", &["leases"], &["get", "list"]),
    ];
    let subject = Subject::Group(NODES);
    [
        role(None, AGENT, nodes),
        bind(None, AGENT, &subject),
        role(Some(namespace), AGENT, local),
        bind(Some(namespace), AGENT, &subject),
    ]
}

fn config(values: &Values) -> Value {
    let [http, https, localhost] = &values.tunnel.ports;
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata(values, CONFIG), "data": {
        "http-proxy-ports": http, "https-proxy-ports": https, "localhost-proxy-ports": localhost,
        "dnat-ports-pair": ""}})
}

fn services(values: &Values) -> [Value; 2] {
    let tunnel = &values.tunnel;
    let mut of_agents = metadata(values, SERVICE);
    // By this the server finds where it is reached.
    of_agents["labels"] = json!({"name": SERVER});
    of_agents["annotations"] = tunnel.service_annotations.clone();
    let port = |name: &str, port: u16, target: u16| json!({"name": name, "port": port, "protocol": "TCP", "targetPort": target});
    let mut external = port("tcp", AGENT_PORT, AGENT_PORT);
    external["nodePort"] = tunnel.node_port.clone();
    // QUIC: agents take it to be of the same number.
    let mut quic = external.clone();
    (quic["name"], quic["protocol"]) = ("quic".into(), "UDP".into());
    let selector = json!({APP: SERVER});
    [
        json!({"apiVersion": "v1", "kind": "Service", "metadata": of_agents,
            // A server is ready when an agent is connected: the first one has to get to it before.
            "spec": {"type": tunnel.service_type, "ports": [external, quic], "selector": selector,
                "publishNotReadyAddresses": true}}),
        json!({"apiVersion": "v1", "kind": "Service", "metadata": metadata(values, INTERNAL_SERVICE),
            "spec": {"ports": [port("http", 10255, INSECURE_PORT), port("https", 10250, SECURE_PORT)],
                "selector": selector}}),
    ]
}

fn field(name: &str, path: &str) -> Value {
    json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}})
}

fn directory(name: &str, path: &str, kind: &str) -> Value {
    json!({"name": name, "hostPath": {"path": path, "type": kind}})
}

fn probe(path: &str, port: u16, host: &str, failures: u32) -> Value {
    json!({"httpGet": {"path": path, "port": port, "host": host}, "periodSeconds": 10, "failureThreshold": failures})
}

/// What a program is told: its own, what both are, and then what the user says.
fn arguments(own: &[String], directory: &str, tunnel: &Tunnel, given: &[String]) -> Vec<String> {
    let both = [
        format!("--cert-dir={directory}/pki"),
        format!("--v={}", super::plain(&tunnel.verbosity)),
    ];
    [own, &both, given].concat()
}

fn deployment(values: &Values) -> Value {
    let tunnel = &values.tunnel;
    let own = [
        "--bind-address=$(NODE_IP)".to_owned(),
        "--insecure-bind-address=127.0.0.1".to_owned(),
        format!("--uds-name={RUN_DIR}/frontend.sock"),
    ];
    let args = arguments(&own, SERVER_DIR, tunnel, &tunnel.server_args);
    let ports = [
        ("agents", AGENT_PORT, "TCP"),
        ("agents-quic", AGENT_PORT, "UDP"),
        ("https", SECURE_PORT, "TCP"),
        ("http", INSECURE_PORT, "TCP"),
        ("metrics", SERVER_META_PORT, "TCP"),
    ];
    let ports = ports.map(
        |(name, port, protocol)| json!({"name": name, "containerPort": port, "protocol": protocol}),
    );
    let container = json!({
        "name": SERVER,
        "image": tunnel.server_image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["/usr/local/bin/yurt", "tunnel", "server"],
        "args": args,
        "env": [field("NODE_IP", "status.hostIP"), field("POD_NAME", "metadata.name")],
        "ports": ports,
        "livenessProbe": probe("/healthz", SERVER_META_PORT, "127.0.0.1", 6),
        "readinessProbe": probe("/readyz", SERVER_META_PORT, "127.0.0.1", 1),
        "resources": tunnel.server_resources,
        // nftables and conntrack; nothing else of root's.
        "securityContext": {"allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
            "capabilities": {"drop": ["ALL"], "add": ["NET_ADMIN", "NET_RAW"]}},
        "volumeMounts": [{"name": "state", "mountPath": SERVER_DIR}, {"name": "run", "mountPath": RUN_DIR}],
    });
    let volumes = [
        directory("state", SERVER_DIR, "DirectoryOrCreate"),
        directory("run", RUN_DIR, "DirectoryOrCreate"),
    ];
    let tolerations = [
        "node-role.kubernetes.io/control-plane",
        "node-role.kubernetes.io/master",
    ]
    .map(|key| json!({"key": key, "operator": "Exists", "effect": "NoSchedule"}));
    let labels = json!({APP: SERVER});
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata(values, SERVER),
        "spec": {
            "replicas": tunnel.replicas,
            "selector": {"matchLabels": labels},
            // Two on one node would want the same ports.
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}},
            "template": {
                "metadata": {"labels": labels},
                "spec": {
                    "serviceAccountName": SERVER,
                    "priorityClassName": "system-cluster-critical",
                    "hostNetwork": true,
                    "dnsPolicy": "ClusterFirstWithHostNet",
                    "imagePullSecrets": values.pull_secrets,
                    "nodeSelector": tunnel.node_selector,
                    "tolerations": tolerations,
                    // Longer than it takes to drain.
                    "terminationGracePeriodSeconds": 60,
                    "securityContext": {"seccompProfile": {"type": "RuntimeDefault"}},
                    "containers": [container],
                    "volumes": volumes,
                },
            },
        },
    })
}

fn daemon_set(values: &Values) -> Value {
    let tunnel = &values.tunnel;
    let own = ["--node-name=$(NODE_NAME)", "--node-ip=$(NODE_IP)"].map(str::to_owned);
    let args = arguments(&own, AGENT_DIR, tunnel, &tunnel.agent_args);
    let container = json!({
        "name": AGENT,
        "image": tunnel.agent_image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["/usr/local/bin/yurt", "tunnel", "agent"],
        "args": args,
        "env": [
            field("NODE_NAME", "spec.nodeName"),
            field("POD_IP", "status.podIP"),
            field("NODE_IP", "status.hostIP"),
        ],
        // Not readiness: an agent that is cut off is as it should be.
        "livenessProbe": probe("/healthz", AGENT_META_PORT, "127.0.0.1", 6),
        "resources": tunnel.agent_resources,
        "securityContext": {"allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
            "capabilities": {"drop": ["ALL"]}},
        "volumeMounts": [
            {"name": "kubernetes", "mountPath": "/etc/kubernetes", "readOnly": true},
            {"name": "kubelet", "mountPath": "/var/lib/kubelet/pki", "readOnly": true},
            {"name": "state", "mountPath": AGENT_DIR},
        ],
    });
    let volumes = [
        directory("kubernetes", "/etc/kubernetes", "Directory"),
        directory("kubelet", "/var/lib/kubelet/pki", "Directory"),
        directory("state", AGENT_DIR, "DirectoryOrCreate"),
    ];
    let labels = json!({APP: AGENT});
    json!({
        "apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": metadata(values, AGENT),
        "spec": {
            "selector": {"matchLabels": labels},
            // An edge node is upgraded when its pod is deleted, or by the manager's workers: never all at once.
            "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "10%"}},
            "template": {
                "metadata": {"labels": labels},
                "spec": {
                    "priorityClassName": "system-node-critical",
                    "hostNetwork": true,
                    // The node's own: the cluster's may be beyond the tunnel.
                    "dnsPolicy": "Default",
                    "automountServiceAccountToken": false,
                    "imagePullSecrets": values.pull_secrets,
                    "nodeSelector": {"openyurt.io/is-edge-worker": "true"},
                    "tolerations": [{"operator": "Exists"}],
                    "securityContext": {"seccompProfile": {"type": "RuntimeDefault"}},
                    "containers": [container],
                    "volumes": volumes,
                },
            },
        },
    })
}

/// All of it.
pub(super) fn objects(values: &Values) -> Vec<Value> {
    let mut objects = of_server(values);
    objects.extend(of_proxy_client());
    objects.extend(of_agents(&values.namespace));
    objects.push(config(values));
    objects.extend(services(values));
    objects.extend([deployment(values), daemon_set(values)]);
    objects
}
