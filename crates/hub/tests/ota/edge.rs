//! A hub between an embedded API server and whoever asks for upgrades, with a kubelet and a DaemonSet's controller that are played.

use crate::{
    cloud::Trust,
    link::{Link, State},
    node::{Answered, Directory, PATIENCE, config, eventually},
};
use http::{Method, Request};
use serde_json::{Value, json};
use std::{
    collections::BTreeSet,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::net::{TcpListener, UnixStream};
use tokio_util::sync::CancellationToken;
use yurt_apiserver::{ApiServer, Config as ApiConfig, Running, Tls, authn::User};
use yurt_hub::{
    Config, HubError,
    server::{LOCAL_SOCKET, Listeners, bind_local, run_on},
};
use yurt_transport::{Client, ClientOptions};

pub(crate) const PODS: &str = "/api/v1/namespaces/default/pods";
pub(crate) const UPGRADES: &str = "/openyurt.io/v1/upgrades";
/// A user who may change pods, one who may only see them, and a service account for rollbacks.
pub(crate) const TOKENS: [(&str, &str); 3] = [
    ("dev-token", "dev"),
    ("guest-token", "guest"),
    ("robot-token", "robot"),
];

/// What the DaemonSet's next pods are made of, and with which images pods become ready.
#[derive(Debug, Default)]
pub(crate) struct Workshop {
    pub(crate) image: String,
    pub(crate) hash: String,
    pub(crate) args: Vec<String>,
    pub(crate) good: BTreeSet<String>,
    /// Whether new pods are made at all.
    pub(crate) makes: bool,
    made: usize,
}

pub(crate) struct Edge {
    pub(crate) cloud: Arc<Running>,
    pub(crate) link: Link,
    pub(crate) directory: Directory,
    pub(crate) workshop: Arc<Mutex<Workshop>>,
    pub(crate) set_uid: String,
    pub(crate) node_uid: String,
    trust: Trust,
    hub: Option<Hub>,
    is_cut: bool,
    stop: CancellationToken,
}

struct Hub {
    admin: SocketAddr,
    plain: SocketAddr,
    root: PathBuf,
    shutdown: CancellationToken,
    running: tokio::task::JoinHandle<Result<(), HubError>>,
}

impl Hub {
    async fn start(config: Config) -> Self {
        let bind = async || TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let (admin, proxy) = (bind().await, bind().await);
        let addresses = (admin.local_addr().unwrap(), proxy.local_addr().unwrap());
        let listeners = Listeners {
            admin: Some(admin),
            proxy: Some(proxy),
            local: bind_local(&config).unwrap(),
            ..Listeners::default()
        };
        let shutdown = CancellationToken::new();
        Self {
            admin: addresses.0,
            plain: addresses.1,
            root: config.root_dir.clone(),
            running: tokio::spawn(run_on(config, listeners, shutdown.clone())),
            shutdown,
        }
    }

    async fn stop(self) {
        self.shutdown.cancel();
        let ended = tokio::time::timeout(PATIENCE, self.running).await;
        ended.unwrap().unwrap().unwrap();
    }
}

async fn send(address: SocketAddr, request: Request<yurt_transport::Body>) -> Answered {
    let options = ClientOptions {
        max_idle: 0,
        ..ClientOptions::default()
    };
    let client = Client::new(&address.to_string(), None, options);
    // An upgrade is answered when it began.
    Answered::of(client.send(request, 2 * PATIENCE).await.unwrap()).await
}

/// Asks the cloud itself, as its administrator.
pub(crate) async fn direct(
    cloud: &Running,
    method: Method,
    path: &str,
    body: Option<Value>,
) -> (u16, Value) {
    let content_type = match method {
        Method::PATCH => "application/strategic-merge-patch+json",
        _ => "application/json",
    };
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("authorization", "Bearer admin")
        .header("content-type", content_type)
        .body(yurt_transport::full(
            body.map(|body| body.to_string()).unwrap_or_default(),
        ))
        .unwrap();
    let response = cloud.call(request).await;
    let status = response.status().as_u16();
    let body = yurt_transport::collect(response.into_body(), 8 << 20)
        .await
        .unwrap();
    (status, serde_json::from_slice(&body).unwrap_or_default())
}

async fn create(cloud: &Running, path: &str, object: Value) -> Value {
    let (status, made) = direct(cloud, Method::POST, path, Some(object)).await;
    assert_eq!(status, 201, "{path}: {made}");
    made
}

fn uid(object: &Value) -> String {
    object["metadata"]["uid"].as_str().unwrap().to_owned()
}

async fn cloud(trust: &Trust, stop: &CancellationToken) -> Running {
    let admin = User::new("admin", &["system:masters"]);
    let mut tokens = vec![("admin".to_owned(), admin)];
    tokens.extend(
        TOKENS.map(|(token, name)| (token.to_owned(), User::new(name, &["system:authenticated"]))),
    );
    let config = ApiConfig {
        tls: Some(Tls {
            serving: trust.serving.clone(),
            client_ca: Some(trust.ca.cert_pem()),
        }),
        tokens,
        ..ApiConfig::default()
    };
    let cloud = ApiServer::start(config, stop.clone()).await.unwrap();
    let group = "rbac.authorization.k8s.io";
    for (role, verbs, resource, subjects) in [
        (
            "changes-pods",
            &["get", "list", "update", "patch"][..],
            "pods",
            &["dev", "robot"][..],
        ),
        ("sees-pods", &["get", "list"], "pods", &["guest"]),
    ] {
        let rules = json!([{"apiGroups": [""], "resources": [resource], "verbs": verbs}]);
        create(
            &cloud,
            &format!("/apis/{group}/v1/clusterroles"),
            json!({"metadata": {"name": role}, "rules": rules}),
        )
        .await;
        let subjects: Vec<Value> = subjects
            .iter()
            .map(|name| json!({"apiGroup": group, "kind": "User", "name": name}))
            .collect();
        let binding = json!({"metadata": {"name": role}, "subjects": subjects,
            "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": role}});
        create(
            &cloud,
            &format!("/apis/{group}/v1/clusterrolebindings"),
            binding,
        )
        .await;
    }
    // What hubs are given for static sets.
    let maps = json!({"metadata": {"name": "static-sets"}, "rules": [{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["get", "list", "watch"]}]});
    create(&cloud, &format!("/apis/{group}/v1/clusterroles"), maps).await;
    let binding = json!({"metadata": {"name": "static-sets"}, "subjects": [{"apiGroup": group, "kind": "Group", "name": "system:nodes"}],
        "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": "static-sets"}});
    create(
        &cloud,
        &format!("/apis/{group}/v1/clusterrolebindings"),
        binding,
    )
    .await;
    cloud
}

impl Edge {
    /// A node whose DaemonSet pod `agent-old` (image `a:1`, revision `r1`) is to become `a:2`, `r2`.
    pub(crate) async fn start(set: impl FnOnce(&mut Config)) -> Self {
        let (trust, directory, stop) = (Trust::new(), Directory::new(), CancellationToken::new());
        let cloud = Arc::new(Box::pin(cloud(&trust, &stop)).await);
        let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "edge-1"}});
        let node_uid = uid(&create(&cloud, "/api/v1/nodes", node).await);
        let other = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "edge-2"}});
        create(&cloud, "/api/v1/nodes", other).await;
        let labels = json!({"app": "agent"});
        let daemon_set = json!({
            "apiVersion": "apps/v1", "kind": "DaemonSet",
            "metadata": {"name": "agent", "annotations": {"apps.openyurt.io/update-strategy": "OTA"}},
            "spec": {"selector": {"matchLabels": labels}, "updateStrategy": {"type": "OnDelete"},
                "template": {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "c", "image": "a:2"}]}}},
        });
        let set_uid = uid(&create(
            &cloud,
            "/apis/apps/v1/namespaces/default/daemonsets",
            daemon_set,
        )
        .await);
        let link = Link::to(cloud.addr()).await;
        let mut edge = Self {
            cloud,
            link,
            directory,
            workshop: Arc::new(Mutex::new(Workshop {
                image: "a:2".into(),
                hash: "r2".into(),
                good: ["a:1", "a:2"].map(str::to_owned).into(),
                makes: true,
                ..Workshop::default()
            })),
            set_uid,
            node_uid,
            trust,
            hub: None,
            is_cut: false,
            stop,
        };
        edge.pod("agent-old", "a:1", "r1").await;
        edge.needs_upgrade("agent-old", "r2").await;
        edge.play();
        let config = edge.config(set);
        Box::pin(edge.run(config)).await;
        edge
    }

    pub(crate) fn config(&self, set: impl FnOnce(&mut Config)) -> Config {
        let mut config = config(&self.directory.0, &self.trust, &[self.link.addr]);
        config.ota.look = Duration::from_millis(100);
        config.ota.static_pods = self.directory.0.join("manifests");
        std::fs::create_dir_all(&config.ota.static_pods).unwrap();
        let policy = self.directory.0.join("ota-policy.yaml");
        if !policy.exists() {
            std::fs::write(policy, "minReady: 0s\n").unwrap();
        }
        set(&mut config);
        config
    }

    pub(crate) async fn run(&mut self, config: Config) {
        self.hub = Some(Box::pin(Hub::start(config)).await);
        self.until_mode(if self.is_cut { "offline" } else { "online" })
            .await;
        if !self.is_cut {
            // The hub knows what its kubelet listed.
            self.kubelet_lists().await;
        }
    }

    pub(crate) async fn kubelet_lists(&self) {
        let request = Request::builder()
            .uri("/api/v1/pods?fieldSelector=spec.nodeName%3Dedge-1")
            .header("user-agent", "kubelet/v1.36.0")
            .header("accept", "application/json")
            .body(yurt_transport::empty())
            .unwrap();
        let listed = send(self.hub().plain, request).await;
        assert_eq!(listed.status, 200, "{}", listed.text());
    }

    fn hub(&self) -> &Hub {
        self.hub.as_ref().expect("a hub that runs")
    }

    pub(crate) fn root(&self) -> &Path {
        &self.hub().root
    }

    /// A pod of the DaemonSet on this node.
    pub(crate) async fn pod(&self, name: &str, image: &str, hash: &str) -> Value {
        create(
            &self.cloud,
            PODS,
            pod(name, image, hash, &[], &self.set_uid),
        )
        .await
    }

    /// What OpenYurt's manager says of a pod.
    pub(crate) async fn needs_upgrade(&self, name: &str, hash: &str) {
        let message = format!("controllerrevision: {hash}");
        let condition = json!({"type": "PodNeedUpgrade", "status": "True", "message": message});
        self.condition(name, condition).await;
    }

    pub(crate) async fn condition(&self, name: &str, condition: Value) {
        let patch = json!({"status": {"conditions": [condition]}});
        let (status, said) = direct(
            &self.cloud,
            Method::PATCH,
            &format!("{PODS}/{name}/status"),
            Some(patch),
        )
        .await;
        assert_eq!(status, 200, "{said}");
    }

    /// The kubelet and the controller: pods end when they should, the DaemonSet has one, and those with a good image are ready.
    fn play(&self) {
        let (cloud, workshop, stop) =
            (self.cloud.clone(), self.workshop.clone(), self.stop.clone());
        let set = self.set_uid.clone();
        let turn = async move {
            loop {
                tokio::time::sleep(Duration::from_millis(30)).await;
                play_once(&cloud, &workshop, &set).await;
            }
        };
        tokio::spawn(async move {
            tokio::select! {
                () = turn => {}
                () = stop.cancelled() => {}
            }
        });
    }

    pub(crate) async fn ask(&self, method: Method, path: &str, token: Option<&str>) -> Answered {
        let mut request = Request::builder().method(method).uri(path);
        if let Some(token) = token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        send(
            self.hub().admin,
            request.body(yurt_transport::empty()).unwrap(),
        )
        .await
    }

    /// As the owner on the node.
    pub(crate) async fn on_socket(&self, method: Method, path: &str) -> Answered {
        let stream = UnixStream::connect(self.root().join(LOCAL_SOCKET))
            .await
            .unwrap();
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "hub")
            .body(yurt_transport::empty())
            .unwrap();
        let response = yurt_transport::exchange(Box::new(stream), None, request, 2 * PATIENCE)
            .await
            .unwrap();
        Answered::of(response).await
    }

    /// As a process of the node that is not the node's own; `None` where this test may not have one.
    pub(crate) async fn as_nobody(
        &self,
        method: &str,
        path: &str,
        headers: &str,
    ) -> Option<(u16, String)> {
        let address = self.hub().admin;
        let script = format!(
            "exec 3<>/dev/tcp/{}/{}; printf '{method} {path} HTTP/1.1\\r\\nHost: hub\\r\\n{headers}Connection: close\\r\\n\\r\\n' >&3; timeout 20 cat <&3",
            address.ip(),
            address.port()
        );
        let run = tokio::task::spawn_blocking(move || {
            use std::os::unix::process::CommandExt;
            std::process::Command::new("bash")
                .args(["-c", &script])
                .uid(65534)
                .gid(65534)
                .current_dir("/")
                .output()
        });
        let output = match run.await.unwrap() {
            Ok(output) => output,
            Err(error) => {
                eprintln!(
                    "SKIPPED: this test may not be somebody else ({error}); the decision has its own tests"
                );
                return None;
            }
        };
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let code = said.split(' ').nth(1).and_then(|code| code.parse().ok());
        Some((
            code.unwrap_or_else(|| panic!("no answer: {said:?} {:?}", output.stderr)),
            said,
        ))
    }

    pub(crate) fn owner_token(&self) -> String {
        let token = std::fs::read_to_string(self.root().join("ota.token")).unwrap();
        token.trim().to_owned()
    }

    pub(crate) async fn upgrade(&self, pod: &str) -> Answered {
        let token = self.owner_token();
        self.ask(Method::POST, &upgrade_path(pod), Some(&token))
            .await
    }

    pub(crate) async fn job(&self, id: &str) -> Value {
        let job = self
            .ask(Method::GET, &format!("{UPGRADES}/{id}"), None)
            .await;
        assert_eq!(job.status, 200, "{}", job.text());
        job.json()
    }

    /// The owner thinks better of it.
    pub(crate) fn policy(&self, text: &str) {
        static EDITION: AtomicUsize = AtomicUsize::new(1);
        let edition = EDITION.fetch_add(1, Ordering::Relaxed);
        // Of another length each time: clocks of file systems are coarse.
        let text = format!("{text}\n{}\n", "#".repeat(edition));
        let part = self.root().join("policy.part");
        std::fs::write(&part, text).unwrap();
        std::fs::rename(part, self.root().join("ota-policy.yaml")).unwrap();
    }

    /// The time of the pod that came of an upgrade is over; what comes then has its time.
    pub(crate) async fn late(&self, id: &str) {
        eventually("a new pod", async || {
            self.job(id).await["newPod"].is_string()
        })
        .await;
        self.policy("readyTimeout: 2s\nminReady: 0s");
        eventually("it is late", async || {
            self.job(id).await["state"] != "waiting-for-pod"
        })
        .await;
        self.policy("minReady: 0s");
    }

    pub(crate) async fn jobs(&self) -> Vec<Value> {
        let jobs = self.ask(Method::GET, UPGRADES, None).await.json();
        jobs["items"].as_array().unwrap().clone()
    }

    pub(crate) async fn until_job(&self, id: &str, state: &str) -> Value {
        let last = Mutex::new(Value::Null);
        let what = format!("upgrade {id} is {state}");
        let reached = eventually(&what, async || {
            let job = self.job(id).await;
            let there = job["state"] == state;
            *last.lock().unwrap() = job;
            there
        });
        // What it was at helps more than that it was not there.
        if tokio::time::timeout(PATIENCE - Duration::from_secs(1), reached)
            .await
            .is_err()
        {
            panic!("upgrade {id} is not {state}: {}", last.lock().unwrap());
        }
        last.into_inner().unwrap()
    }

    pub(crate) async fn get(&self, path: &str) -> (u16, Value) {
        direct(&self.cloud, Method::GET, path, None).await
    }

    /// The names of the node's pods in the cloud.
    pub(crate) async fn pods(&self) -> Vec<String> {
        let (_, list) = self.get(PODS).await;
        let items = list["items"].as_array().unwrap().iter();
        items
            .map(|pod| pod["metadata"]["name"].as_str().unwrap().to_owned())
            .collect()
    }

    /// Reasons of the events about upgrades.
    pub(crate) async fn events(&self) -> BTreeSet<String> {
        let (_, list) = self.get("/api/v1/namespaces/default/events").await;
        let items = list["items"].as_array().unwrap().iter();
        items
            .filter(|event| event["source"]["component"] == "yurthub")
            .map(|event| event["reason"].as_str().unwrap().to_owned())
            .collect()
    }

    pub(crate) async fn until_event(&self, reason: &str) {
        eventually(reason, async || self.events().await.contains(reason)).await;
    }

    pub(crate) async fn metric(&self, line: &str) -> f64 {
        let text = self.ask(Method::GET, "/metrics", None).await.text();
        text.lines()
            .find_map(|l| l.strip_prefix(line)?.trim().parse().ok())
            .unwrap_or(0.0)
    }

    pub(crate) async fn until_mode(&self, mode: &str) {
        eventually(mode, async || {
            self.ask(Method::GET, "/v1/status", None).await.json()["mode"] == mode
        })
        .await;
    }

    pub(crate) async fn cut(&mut self) {
        self.is_cut = true;
        self.link.set(State::Cut);
        self.until_mode("offline").await;
    }

    pub(crate) async fn heal(&mut self) {
        self.is_cut = false;
        self.link.set(State::Whole);
        self.until_mode("online").await;
    }

    /// What `kill -9` at this moment leaves, and a hub that starts from that.
    pub(crate) async fn kill(mut self, set: impl FnOnce(&mut Config)) -> Self {
        let killed = Directory::new();
        copy(&self.directory.0, &killed.0);
        if let Some(hub) = self.hub.take() {
            hub.stop().await;
        }
        self.directory = killed;
        let config = self.config(set);
        Box::pin(self.run(config)).await;
        self
    }

    pub(crate) async fn stop(mut self) {
        if let Some(hub) = self.hub.take() {
            hub.stop().await;
        }
        self.stop.cancel();
    }
}

pub(crate) fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let (kind, name) = (entry.file_type().unwrap(), entry.file_name());
        if kind.is_dir() {
            copy(&entry.path(), &to.join(name));
        } else if kind.is_file() && name != "lock" {
            std::fs::copy(entry.path(), to.join(name)).unwrap();
        }
    }
}

pub(crate) fn upgrade_path(pod: &str) -> String {
    format!("/openyurt.io/v1/namespaces/default/pods/{pod}/upgrade")
}

fn pod(name: &str, image: &str, hash: &str, args: &[String], set: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": "agent", "controller-revision-hash": hash, "pod-template-generation": hash.trim_start_matches('r')},
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "DaemonSet", "name": "agent", "uid": set, "controller": true}]},
        "spec": {"nodeName": "edge-1", "containers": [{"name": "c", "image": image, "args": args}]},
    })
}

async fn play_once(cloud: &Running, workshop: &Mutex<Workshop>, set: &str) {
    let (_, list) = direct(cloud, Method::GET, PODS, None).await;
    let mut lives = false;
    for pod in list["items"].as_array().into_iter().flatten() {
        let path = format!("{PODS}/{}", pod["metadata"]["name"].as_str().unwrap());
        if pod["metadata"]["deletionTimestamp"].is_string() {
            let now = json!({"apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": 0});
            direct(cloud, Method::DELETE, &path, Some(now)).await;
            continue;
        }
        lives |= pod["metadata"]["ownerReferences"][0]["kind"] == "DaemonSet";
        let image = pod["spec"]["containers"][0]["image"].as_str().unwrap();
        let good = workshop.lock().unwrap().good.contains(image);
        let wanted = if good { "True" } else { "False" };
        let conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
        let ready = conditions
            .filter(|c| c["type"] == "Ready")
            .map(|c| c["status"].as_str().unwrap())
            .next();
        if ready != Some(wanted) {
            let status = json!({"status": {"phase": "Running", "conditions": [{"type": "Ready", "status": wanted}]}});
            direct(
                cloud,
                Method::PATCH,
                &format!("{path}/status"),
                Some(status),
            )
            .await;
        }
    }
    let new = {
        let mut workshop = workshop.lock().unwrap();
        (!lives && workshop.makes).then(|| {
            workshop.made += 1;
            pod(
                &format!("agent-new-{}", workshop.made),
                &workshop.image,
                &workshop.hash,
                &workshop.args,
                set,
            )
        })
    };
    if let Some(new) = new {
        direct(cloud, Method::POST, PODS, Some(new)).await;
    }
}
