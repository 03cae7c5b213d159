//! A node as it is in the field: the kubelet as Kubernetes ships it, containerd, pods that are processes with addresses of their own,
//! and a hub that joined by a bootstrap token. Then the link is cut, everything is killed, and the node must come up alone.
//!
//! The kubelet is not part of this repository: `KUBELET` names its binary. containerd, runc, CNI plugins and a static busybox come
//! with Debian. Without them, or without root, the test is skipped and says so.

mod runtime;

use crate::fixture::{Kubectl, Lab, Scratch, eventually, signal, text, yurt};
use runtime::Runtime;
use serde_json::{Value, json};
use std::{
    fs::File,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};
use yurt_lab::link::{Link, LinkState};

const NODE: &str = "real";
/// Where the hub listens: an address of its own, so that it is in nobody's way.
const HUB: &str = "127.77.0.1";
const TOKEN: (&str, &str) = ("real00", "0123456789abcdef");

/// A process that is started again and again, with one log.
pub(crate) struct Service {
    log: PathBuf,
    child: Option<Child>,
    command: Box<dyn Fn() -> Command + Send>,
}

impl Service {
    pub(crate) fn start(log: PathBuf, command: impl Fn() -> Command + Send + 'static) -> Self {
        let mut service = Self {
            log,
            child: None,
            command: Box::new(command),
        };
        service.again();
        service
    }

    pub(crate) fn again(&mut self) {
        let log = File::options()
            .create(true)
            .append(true)
            .open(&self.log)
            .unwrap();
        let child = (self.command)()
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn();
        self.child = Some(child.unwrap());
    }

    /// Process id; it must not have been killed.
    pub(crate) fn pid(&self) -> u32 {
        self.child.as_ref().unwrap().id()
    }

    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Whether it has not ended.
    pub(crate) fn runs(&mut self) -> bool {
        let child = self.child.as_mut();
        child.is_some_and(|child| child.try_wait().unwrap().is_none())
    }

    pub(crate) fn must_run(&mut self) {
        let ended = self.child.as_mut().and_then(|c| c.try_wait().unwrap());
        if let Some(status) = ended {
            let said = std::fs::read(&self.log).unwrap_or_default();
            let said = text(&said);
            let end: Vec<&str> = said.lines().rev().take(20).collect();
            panic!("{} ended with {status}: {end:#?}", self.log.display());
        }
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child
            && child.try_wait().is_ok_and(|ended| ended.is_none())
        {
            signal(child.id(), rustix::process::Signal::TERM);
            let _ = child.wait();
        }
    }
}

/// Lets a node join with a bootstrap token, as kubeadm's documentation has it.
fn bootstrap_token(cloud: &Kubectl) {
    let (id, secret) = TOKEN;
    let token = json!({
        "apiVersion": "v1", "kind": "Secret", "type": "bootstrap.kubernetes.io/token",
        "metadata": {"name": format!("bootstrap-token-{id}"), "namespace": "kube-system"},
        "stringData": {
            "token-id": id, "token-secret": secret,
            "usage-bootstrap-authentication": "true", "usage-bootstrap-signing": "true",
            "auth-extra-groups": "system:bootstrappers:kubeadm:default-node-token",
        },
    });
    cloud.feed(&["apply", "-f", "-"], &token.to_string());
}

/// The hash by which a node knows the CA, as `kubeadm token create --print-join-command` prints it.
fn pin(ca: &Path) -> String {
    let certificates = yurt_pki::certs_from_pem(&std::fs::read_to_string(ca).unwrap()).unwrap();
    let digest = yurt_pki::public_key_digest(&certificates[0]).unwrap();
    let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

fn hub_command(link: SocketAddr, ca_hash: &str, dir: &Path) -> Command {
    let mut command = yurt();
    let (id, secret) = TOKEN;
    command
        .arg("hub")
        .arg(format!("--node-name={NODE}"))
        .arg(format!("--server-addr=https://{link}"))
        .arg(format!("--join-token={id}.{secret}"))
        .arg(format!("--discovery-token-ca-cert-hash={ca_hash}"))
        .arg(format!("--bind-address={HUB}"))
        .arg(format!("--bind-proxy-address={HUB}"))
        .arg(format!("--root-dir={}", dir.display()))
        .arg(format!("--disk-cache-path={}", dir.join("cache").display()))
        .args(["--enable-dummy-if=false", "--multiplexer-port=0"]);
    command
}

/// Writes what the kubelet is told, and gives its command.
fn kubelet(
    program: PathBuf,
    dir: &Path,
    runtime: &Runtime,
    ca: &Path,
) -> impl Fn() -> Command + use<> {
    let config = json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
        "address": HUB, "port": 10250, "healthzPort": 0,
        "failCgroupV1": false, "cgroupDriver": "cgroupfs", "enforceNodeAllocatable": [], "failSwapOn": false,
        "containerRuntimeEndpoint": format!("unix://{}", runtime.socket().display()),
        "authentication": {
            "anonymous": {"enabled": false}, "webhook": {"enabled": true},
            "x509": {"clientCAFile": ca},
        },
        "authorization": {"mode": "Webhook"},
        "staticPodPath": dir.join("manifests"), "fileCheckFrequency": "1s",
        "clusterDNS": ["10.96.0.10"], "clusterDomain": "cluster.local", "evictionHard": {},
    });
    let kubeconfig = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "hub",
        "clusters": [{"name": "hub", "cluster": {"server": format!("http://{HUB}:10261")}}],
        "contexts": [{"name": "hub", "context": {"cluster": "hub", "user": ""}}],
    });
    std::fs::write(dir.join("config"), config.to_string()).unwrap();
    std::fs::write(dir.join("kubeconfig"), kubeconfig.to_string()).unwrap();
    let dir = dir.to_owned();
    move || {
        let mut command = Command::new(&program);
        command
            .arg(format!("--config={}", dir.join("config").display()))
            .arg(format!("--kubeconfig={}", dir.join("kubeconfig").display()))
            .arg(format!("--root-dir={}", dir.join("root").display()))
            .arg(format!("--cert-dir={}", dir.join("pki").display()))
            .arg(format!("--hostname-override={NODE}"))
            .args(["--v=2"]);
        command
    }
}

/// Two pods that serve a config map's text, with a secret and their own service account beside it.
fn application() -> String {
    let container = json!({
        "name": "web", "image": runtime::IMAGE, "imagePullPolicy": "IfNotPresent",
        "command": ["sh", "-c", "mkdir -p /tmp/w; cat /conf/greeting > /tmp/w/index.html; exec busybox httpd -f -p 8080 -h /tmp/w"],
        "volumeMounts": [{"name": "conf", "mountPath": "/conf"}, {"name": "sec", "mountPath": "/sec"}],
        "readinessProbe": {"tcpSocket": {"port": 8080}, "periodSeconds": 1},
    });
    let list = json!({"apiVersion": "v1", "kind": "List", "items": [
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "conf"}, "data": {"greeting": "hello"}},
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "sec"}, "stringData": {"password": "hunter2"}},
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"}, "spec": {
            "selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]}},
        {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}, "spec": {
            "replicas": 2, "selector": {"matchLabels": {"app": "web"}},
            "template": {"metadata": {"labels": {"app": "web"}}, "spec": {
                "nodeName": NODE, "containers": [container],
                "volumes": [
                    {"name": "conf", "configMap": {"name": "conf"}},
                    {"name": "sec", "secret": {"secretName": "sec"}},
                ]}}}},
    ]});
    list.to_string()
}

/// The addresses of the pods that are Ready, sorted.
fn ready(kubectl: &Kubectl) -> Vec<String> {
    let out = kubectl.output(&[
        "get",
        "pods",
        "-A",
        &format!("--field-selector=spec.nodeName={NODE}"),
        "-o",
        "json",
    ]);
    let Ok(pods) = serde_json::from_slice::<Value>(&out.stdout) else {
        return Vec::new();
    };
    let mut addresses: Vec<String> = pods["items"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|pod| pod["metadata"]["deletionTimestamp"].is_null())
        .filter(|pod| {
            let conditions = pod["status"]["conditions"].as_array();
            conditions
                .into_iter()
                .flatten()
                .any(|c| c["type"] == "Ready" && c["status"] == "True")
        })
        .filter_map(|pod| pod["status"]["podIP"].as_str().map(str::to_owned))
        .collect();
    addresses.sort();
    addresses
}

/// The endpoints of the service that are ready, sorted.
fn endpoints(slices: &Value) -> Vec<String> {
    let mut addresses: Vec<String> = slices["items"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|slice| slice["metadata"]["labels"]["kubernetes.io/service-name"] == "web")
        .flat_map(|slice| slice["endpoints"].as_array().into_iter().flatten())
        .filter(|endpoint| endpoint["conditions"]["ready"] == true)
        .filter_map(|endpoint| endpoint["addresses"][0].as_str().map(str::to_owned))
        .collect();
    addresses.sort();
    addresses
}

fn slices(kubectl: &Kubectl) -> Vec<String> {
    let out = kubectl.output(&["get", "endpointslices", "-A", "-o", "json"]);
    serde_json::from_slice(&out.stdout).map_or_else(|_| Vec::new(), |list| endpoints(&list))
}

/// What a pod says to `GET /`.
fn greeting(address: &str) -> Option<String> {
    let address: SocketAddr = format!("{address}:8080").parse().ok()?;
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(2)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(2))).ok()?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").ok()?;
    let mut said = String::new();
    stream.read_to_string(&mut said).ok()?;
    said.rsplit("\r\n\r\n").next().map(str::to_owned)
}

/// A node with a hub and a kubelet, in a lab behind a link.
struct RealNode {
    kubelet: Service,
    hub: Service,
    link: Link,
    // Ends after what uses it.
    _tokio: tokio::runtime::Runtime,
    lab: Lab,
    runtime: Runtime,
    scratch: Scratch,
    /// One at a time on a machine: they have addresses and a bridge in common.
    _turn: File,
}

impl RealNode {
    /// Starts one and waits until it is Ready; `None`, said loudly, where it cannot run.
    fn start() -> Option<Self> {
        let program = crate::peers::binary("KUBELET")?;
        let turn = File::create(std::env::temp_dir().join("yurt-real-node.lock")).unwrap();
        turn.lock().unwrap();
        let scratch = Scratch::new();
        let runtime = Runtime::start(&scratch.path().join("runtime"))?;
        let lab = Lab::start("a=1")?;
        let cloud = lab.cloud();
        bootstrap_token(&cloud);

        let api = cloud.ok(&[
            "config",
            "view",
            "-o",
            "jsonpath={.clusters[0].cluster.server}",
        ]);
        let api: SocketAddr = api.trim_start_matches("https://").parse().unwrap();
        let tokio = tokio::runtime::Runtime::new().unwrap();
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let link = tokio.block_on(Link::start(any, api)).unwrap();
        let ca = lab.dir().join("pki/ca.crt");
        let hash = pin(&ca);

        let dir = |name: &str| {
            let dir = scratch.path().join(name);
            std::fs::create_dir_all(&dir).unwrap();
            dir
        };
        let (address, hub_dir) = (link.address(), dir("hub"));
        let hub_log = scratch.path().join("hub.log");
        let hub = Service::start(hub_log, move || hub_command(address, &hash, &hub_dir));
        dir("kubelet/manifests");
        let command = kubelet(program, &dir("kubelet"), &runtime, &ca);
        let kubelet = Service::start(scratch.path().join("kubelet.log"), command);
        let mut node = Self {
            kubelet,
            hub,
            link,
            _tokio: tokio,
            lab,
            runtime,
            scratch,
            _turn: turn,
        };
        let condition = "jsonpath={.status.conditions[?(@.type==\"Ready\")].status}";
        eventually("the node is Ready", || {
            node.must_run();
            cloud.output(&["get", "node", NODE, "-o", condition]).stdout == b"True"
        });
        Some(node)
    }

    fn must_run(&mut self) {
        self.hub.must_run();
        self.kubelet.must_run();
    }
}

#[test]
fn a_real_kubelet_brings_its_pods_up_again_while_the_cloud_is_away() {
    let Some(mut real) = RealNode::start() else {
        return;
    };
    let cloud = real.lab.cloud();
    cloud.feed(&["apply", "-f", "-"], &application());
    eventually("both pods are Ready", || {
        real.kubelet.must_run();
        ready(&cloud).len() == 2
    });
    let before = ready(&cloud);
    for address in &before {
        assert_eq!(greeting(address).as_deref(), Some("hello"), "{address}");
    }
    // As kube-proxy and CoreDNS do: what a component of the node follows is there when the cloud is not.
    let node = real.lab.through(&format!("http://{HUB}:10261"));
    eventually("the service leads to both", || slices(&node) == before);
    assert_eq!(ready(&node), before);

    real.link.set(LinkState::Cut);
    real.hub.kill();
    real.kubelet.kill();
    real.runtime.kill_containers();
    real.hub.again();
    real.kubelet.again();

    eventually("both pods are up again, with new addresses", || {
        real.must_run();
        let now = ready(&node);
        now.len() == 2 && now.iter().all(|address| !before.contains(address))
    });
    let after = ready(&node);
    for address in &after {
        assert_eq!(greeting(address).as_deref(), Some("hello"), "{address}");
    }
    eventually("the service leads to the new addresses", || {
        slices(&node) == after
    });
    assert_eq!(ready(&cloud), before, "the cloud knows nothing of it yet");

    real.link.set(LinkState::Up);
    eventually("the cloud knows", || {
        ready(&cloud) == after && slices(&cloud) == after
    });
    assert_eq!(slices(&node), after);
    cloud.ok(&["delete", "deployment", "web", "--timeout=60s"]);
    eventually("the pods are gone", || {
        let pods = cloud.ok(&["get", "pods", "-l", "app=web", "-o", "name"]);
        pods.is_empty()
    });
}

/// The manifest of a static pod `st` that becomes ready at once, or never.
fn static_pod(hash: &str, becomes_ready: bool) -> String {
    let probe = if becomes_ready { "true" } else { "false" };
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "st", "namespace": "default", "annotations": {"openyurt.io/static-pod-hash": hash}},
        "spec": {"hostNetwork": true, "terminationGracePeriodSeconds": 1, "containers": [{
            "name": "st", "image": runtime::IMAGE, "imagePullPolicy": "IfNotPresent", "command": ["sleep", "1000000"],
            "readinessProbe": {"exec": {"command": ["busybox", probe]}, "periodSeconds": 1}}]},
    });
    pod.to_string()
}

/// What the worker of a YurtStaticSet runs on the node, against a kubelet that really runs the pod.
#[test]
fn a_static_pod_of_a_real_kubelet_is_upgraded_and_taken_back() {
    let Some(mut real) = RealNode::start() else {
        return;
    };
    let cloud = real.lab.cloud();
    let at = |path: &str| real.scratch.path().join(path);
    let (file, source) = (at("kubelet/manifests/st.yaml"), at("data"));
    let (manifests, token) = (at("kubelet/manifests"), at("hub/ota.token"));
    std::fs::create_dir_all(&source).unwrap();
    // Whose container runs, and whether it is ready, as the cluster is told.
    let seen = || {
        let out = cloud.output(&["get", "pod", "st-real", "-o", "json"]);
        let pod: Value = serde_json::from_slice(&out.stdout).ok()?;
        let hash = pod["metadata"]["annotations"]["openyurt.io/static-pod-hash"].as_str()?;
        let status = &pod["status"]["containerStatuses"][0];
        let id = status["containerID"].as_str()?;
        (status["ready"] == true).then(|| (hash.to_owned(), id.to_owned()))
    };
    let is = |hash: &str| seen().is_some_and(|(seen, _)| seen == hash);
    let mut upgrade = |hash: &str, becomes_ready: bool| {
        std::fs::write(source.join("st"), static_pod(hash, becomes_ready)).unwrap();
        let out = yurt()
            .args([
                "node",
                "static-pod-upgrade",
                "--name=st-real",
                "--namespace=default",
                "--manifest=st",
            ])
            .arg(format!("--hash={hash}"))
            .arg(format!("--source={}", source.display()))
            .arg(format!("--manifests={}", manifests.display()))
            .arg(format!("--pods=http://{HUB}:10267"))
            .arg(format!("--token-file={}", token.display()))
            .arg("--timeout=40s")
            .output()
            .unwrap();
        real.must_run();
        (out.status.code(), text(&out.stderr))
    };
    std::fs::write(&file, static_pod("h1", true)).unwrap();
    eventually("the static pod is ready", || is("h1"));
    let (_, first) = seen().unwrap();

    assert_eq!(upgrade("h2", true).0, Some(0));
    eventually("the new pod is ready", || is("h2"));
    let (_, second) = seen().unwrap();
    assert_ne!(first, second, "another container");

    let (code, said) = upgrade("h3", false);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("is back"), "{said}");
    assert_eq!(
        std::fs::read_to_string(&file).unwrap(),
        static_pod("h2", true)
    );
    eventually("the pod of before is ready again", || is("h2"));
    std::fs::remove_file(&file).unwrap();
    eventually("the pod is gone", || {
        cloud.output(&["get", "pod", "st-real"]).status.code() == Some(1)
    });
}
