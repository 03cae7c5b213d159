//! A node that joins a cluster with nothing but a token, and goes on without the cloud and without valid certificates.

use crate::fixture::{Kubectl, Lab, Scratch, eventually, free_port, yurt};
use serde_json::{Value, json};
use std::{
    fs::File,
    path::{Path, PathBuf},
    process::{Child, Stdio},
    time::{Duration, SystemTime},
};
use yurt_pki::{Ca, KeyPairPem, Profile, SigningRequest, Usages};

const NODE: &str = "edge-9";
const TOKEN: &str = "abcdef.0123456789abcdef";

/// A hub that no lab supervises.
struct Hub {
    child: Child,
    root: PathBuf,
    server: String,
    proxy: u16,
    admin: u16,
}

impl Hub {
    fn start(root: &Path, server: &str, extra: &[String]) -> Self {
        let [proxy, admin, secure] = [(); 3].map(|()| free_port());
        let log = File::options()
            .create(true)
            .append(true)
            .open(root.join("hub.log"))
            .unwrap();
        let child = yurt()
            .arg("hub")
            .arg(format!("--node-name={NODE}"))
            .arg(format!("--server-addr={server}"))
            .arg(format!("--root-dir={}", root.display()))
            .arg(format!(
                "--disk-cache-path={}",
                root.join("cache").display()
            ))
            .arg(format!("--proxy-port={proxy}"))
            .arg(format!("--serve-port={admin}"))
            .arg(format!("--proxy-secure-port={secure}"))
            .args([
                "--enable-dummy-if=false",
                "--node-ip=127.0.0.1",
                "--multiplexer-port=0",
            ])
            .args(extra)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        Self {
            child,
            root: root.to_owned(),
            server: server.to_owned(),
            proxy,
            admin,
        }
    }

    /// `kill -9`.
    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// `kill -9`, and another start without a word about tokens.
    fn again(mut self) -> Self {
        self.kill();
        Self::start(&self.root.clone(), &self.server.clone(), &[])
    }

    fn at(&self, lab: &Lab, port: u16) -> Kubectl {
        let file = self.root.join(format!("{port}.kubeconfig"));
        let server = format!("http://127.0.0.1:{port}");
        let config = json!({"apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{"name": "c", "cluster": {"server": server}}], "users": [],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": ""}}]});
        std::fs::write(&file, config.to_string()).unwrap();
        lab.at(file)
    }

    /// kubectl through its proxy, as a component of the node.
    fn kubectl(&self, lab: &Lab) -> Kubectl {
        self.at(lab, self.proxy)
    }

    fn status(&self, lab: &Lab) -> Value {
        let out = self
            .at(lab, self.admin)
            .output(&["get", "--raw", "/v1/status"]);
        serde_json::from_slice(&out.stdout).unwrap_or_default()
    }

    fn state_of(&self, lab: &Lab, certificate: &str) -> Value {
        let status = self.status(lab);
        let mut all = status["certificates"].as_array().into_iter().flatten();
        all.find(|c| c["certificate"] == certificate)
            .map(|c| c["state"].clone())
            .unwrap_or_default()
    }

    fn until_mode(&self, lab: &Lab, mode: &str) {
        eventually(mode, || self.status(lab)["mode"] == mode);
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Everything that a kubelet needs to start the pod.
fn reads(hub: &Hub, lab: &Lab) -> Vec<Value> {
    [
        "/api/v1/nodes/edge-9",
        "/api/v1/pods?fieldSelector=spec.nodeName%3Dedge-9",
        "/api/v1/namespaces/default/configmaps/settings",
        "/api/v1/namespaces/default/secrets/password",
    ]
    .map(|path| {
        let text = hub.kubectl(lab).ok(&["get", "--raw", path]);
        let mut value: Value = serde_json::from_str(&text).unwrap();
        // Of a list: the time of the answer. Of the node: its controllers write on.
        value["metadata"]["resourceVersion"] = Value::Null;
        value
    })
    .into()
}

fn expired(ca: &Ca, groups: &[&str], last: &str) -> KeyPairPem {
    let profile = Profile {
        common_name: format!("system:node:{NODE}"),
        organizations: groups.iter().map(|g| (*g).into()).collect(),
        dns: vec!["kubernetes".into()],
        ..Profile::default()
    };
    let made = yurt_pki::request(&profile).unwrap();
    let request = SigningRequest::from_pem(&made.request).unwrap();
    let usages = Usages::from_names(["digital signature", "key encipherment", last]).unwrap();
    let ago = |hours: u64| SystemTime::now() - Duration::from_secs(hours * 3600);
    KeyPairPem {
        cert: ca.sign_request(&request, &usages, ago(48), ago(1)).unwrap(),
        key: made.key,
    }
}

fn prepare(lab: &Lab) {
    let (id, secret) = TOKEN.split_once('.').unwrap();
    let objects = json!({"apiVersion": "v1", "kind": "List", "items": [
        {"apiVersion": "v1", "kind": "Secret", "type": "bootstrap.kubernetes.io/token",
            "metadata": {"name": format!("bootstrap-token-{id}"), "namespace": "kube-system"},
            "stringData": {"token-id": id, "token-secret": secret,
                "usage-bootstrap-authentication": "true", "usage-bootstrap-signing": "true",
                "auth-extra-groups": "system:bootstrappers:kubeadm:default-node-token"}},
        {"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE}},
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "settings", "namespace": "default"}, "data": {"a": "b"}},
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "password", "namespace": "default"}, "stringData": {"p": "q"}},
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web", "namespace": "default"},
            "spec": {"nodeName": NODE, "automountServiceAccountToken": false,
                "tolerations": [{"operator": "Exists"}],
                "containers": [{"name": "main", "image": "registry.lab/app:1", "envFrom": [
                    {"configMapRef": {"name": "settings"}}, {"secretRef": {"name": "password"}}]}]}}]});
    lab.cloud()
        .feed(&["create", "-f", "-"], &objects.to_string());
}

#[test]
fn a_node_joins_with_a_token_and_outlives_cut_kill_and_expiry() {
    let Some(lab) = Lab::start("site=1") else {
        return;
    };
    prepare(&lab);
    let pki = |name: &str| std::fs::read_to_string(lab.dir().join("pki").join(name)).unwrap();
    let ca = Ca::from_pem(&KeyPairPem {
        cert: pki("ca.crt"),
        key: pki("ca.key"),
    })
    .unwrap();
    let der = yurt_pki::certs_from_pem(&pki("ca.crt")).unwrap();
    let pin = yurt_pki::public_key_digest(&der[0]).unwrap();
    let pin: String = pin.iter().map(|byte| format!("{byte:02x}")).collect();
    // The node's link to the cloud is that of a node of the lab, so that it can be cut.
    let admin = std::fs::read(lab.dir().join("admin.kubeconfig")).unwrap();
    let admin: Value = serde_json::from_slice(&admin).unwrap();
    let direct = admin["clusters"][0]["cluster"]["server"].as_str().unwrap();
    let port = direct.rsplit_once(':').unwrap().1;
    let status = lab.lab(&["status", "site-1"]);
    let server = format!("https://{}:{port}", status[0]["address"].as_str().unwrap());

    let scratch = Scratch::new();
    let join = [
        format!("--join-token={TOKEN}"),
        format!("--discovery-token-ca-cert-hash=sha256:{pin}"),
    ];
    let hub = Hub::start(scratch.path(), &server, &join);
    hub.until_mode(&lab, "online");
    eventually("a serving certificate", || {
        hub.state_of(&lab, "server") == "valid"
    });
    let approved = lab.cloud().ok(&["get", "csr"]);
    assert!(approved.contains("system:bootstrap:abcdef"), "{approved}");
    assert!(!approved.contains("Denied"), "{approved}");
    // A component of the node acts as the node.
    let online = reads(&hub, &lab);
    hub.kubectl(&lab).ok(&["api-resources"]);
    hub.kubectl(&lab).ok(&["get", "pod", "web"]);
    eventually("the cache has learned", || {
        hub.status(&lab)["cache"]["objects"].as_u64() >= Some(4)
    });

    // Cut, killed, started while cut.
    lab.lab(&["cut", "site-1"]);
    hub.until_mode(&lab, "offline");
    let hub = hub.again();
    hub.until_mode(&lab, "offline");
    assert_eq!(reads(&hub, &lab)[1..], online[1..]);
    hub.kubectl(&lab).ok(&[
        "patch",
        "pod",
        "web",
        "--subresource=status",
        "--type=merge",
        r#"-p={"status":{"message":"written while cut"}}"#,
    ]);

    // The certificates end meanwhile.
    let mut hub = hub;
    hub.kill();
    for (file, groups, last) in [
        (
            "yurthub-current.pem",
            &["openyurt:yurthub", "system:nodes"][..],
            "client auth",
        ),
        (
            "yurthub-server-current.pem",
            &["system:nodes"],
            "server auth",
        ),
    ] {
        let path = scratch.path().join("pki").join(file);
        let pair = expired(&ca, groups, last);
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, format!("{}{}", pair.cert, pair.key)).unwrap();
    }
    let hub = Hub::start(scratch.path(), &server, &[]);
    hub.until_mode(&lab, "offline");
    assert_eq!(hub.state_of(&lab, "client"), "expired");
    assert_eq!(hub.state_of(&lab, "server"), "expired");
    let offline = reads(&hub, &lab);
    assert_eq!(offline[2..], online[2..]);
    let pod = &offline[1]["items"][0];
    assert_eq!(pod["status"]["message"], "written while cut");

    // The link is back: the bootstrap token of before is enough, and nothing that was written is lost.
    lab.lab(&["heal", "site-1"]);
    hub.until_mode(&lab, "online");
    assert_eq!(hub.state_of(&lab, "client"), "valid");
    eventually("the status is in the cloud", || {
        let path = "-o=jsonpath={.status.message}";
        lab.cloud().ok(&["get", "pod", "web", path]) == "written while cut"
    });
    eventually("a new serving certificate", || {
        hub.state_of(&lab, "server") == "valid"
    });
    let now = reads(&hub, &lab);
    assert_eq!(now[2..], online[2..]);
}
