//! A pool of hubs, each with a link of its own to one API server, all with one port on addresses of their own.

use crate::{
    cloud::Trust,
    link::Link,
    node::{Directory, Node, config, eventually},
    recorded::{direct, merge, write},
};
use http::Method;
use serde_json::{Value, json};
use std::{
    sync::atomic::{AtomicU8, Ordering},
    time::Duration,
};
use tokio::net::TcpListener;
use tokio_util::sync::{CancellationToken, DropGuard};
use yurt_apiserver::{ApiServer, Config, Running, Tls, authn::User};
use yurt_hub::config::{Bounds, Config as HubConfig, KeyPairFiles};
use yurt_pki::{KeyPairPem, Profile};

pub(crate) const SERVICES: &str = "/api/v1/services";
const OWN: &str = "/api/v1/namespaces/default/services";
const MAPS: &str = "/api/v1/namespaces/kube-system/configmaps";
const MAP: &str = "leader-hub-here";
const RBAC: &str = "/apis/rbac.authorization.k8s.io/v1";

struct Member {
    node: Option<Node>,
    directory: Directory,
    link: Link,
}

pub(crate) struct Pool {
    pub(crate) cloud: Running,
    pub(crate) trust: Trust,
    network: u8,
    port: u16,
    /// How long sources may be silent.
    silence: Duration,
    members: Vec<Member>,
    _shutdown: DropGuard,
}

pub(crate) fn name(number: usize) -> String {
    format!("edge-{number}")
}

fn issue(trust: &Trust, number: usize, ip: String) -> (KeyPairPem, KeyPairPem) {
    let profile = Profile {
        common_name: format!("system:node:{}", name(number)),
        organizations: vec!["openyurt:yurthub".into(), "system:nodes".into()],
        days: 1,
        ..Profile::default()
    };
    let client = Profile {
        client: true,
        ..profile.clone()
    };
    let server = Profile {
        server: true,
        ips: vec!["127.0.0.1".parse().unwrap(), ip.parse().unwrap()],
        dns: vec!["localhost".into()],
        ..profile
    };
    (
        trust.ca.issue(&client).unwrap(),
        trust.ca.issue(&server).unwrap(),
    )
}

impl Pool {
    /// So many hubs; nobody leads yet.
    pub(crate) async fn start(count: usize) -> Self {
        Self::start_with(count, Bounds::default().pool_silence).await
    }

    /// The same, with sources that may be silent for so long.
    pub(crate) async fn start_with(count: usize, silence: Duration) -> Self {
        static NETWORK: AtomicU8 = AtomicU8::new(100);
        let network = NETWORK.fetch_add(1, Ordering::Relaxed);
        let trust = Trust::new();
        let shutdown = CancellationToken::new();
        let user = |name: &str, groups: &[&str]| User::new(name, groups);
        let cloud = Config {
            tls: Some(Tls {
                serving: trust.serving.clone(),
                client_ca: Some(trust.ca.cert_pem()),
            }),
            tokens: vec![
                ("admin".into(), user("admin", &["system:masters"])),
                ("reader".into(), user("reader", &["system:authenticated"])),
                ("local".into(), user("local", &["system:authenticated"])),
                ("nobody".into(), user("nobody", &["system:authenticated"])),
            ],
            ..Config::default()
        };
        let cloud = ApiServer::start(cloud, shutdown.clone()).await.unwrap();
        let first = TcpListener::bind((format!("127.0.{network}.1"), 0))
            .await
            .unwrap();
        let port = first.local_addr().unwrap().port();
        let mut pool = Self {
            cloud,
            trust,
            network,
            port,
            silence,
            members: Vec::new(),
            _shutdown: shutdown.drop_guard(),
        };
        pool.prepare(count).await;
        drop(first);
        for number in 1..=count {
            let (directory, link) = (Directory::new(), Link::to(pool.cloud.addr()).await);
            pool.members.push(Member {
                node: None,
                directory,
                link,
            });
            pool.begin(number).await;
        }
        pool
    }

    async fn prepare(&self, count: usize) {
        let nodes = json!({"kind": "Group", "name": "system:nodes"});
        let reader = json!({"kind": "User", "name": "reader"});
        let custom = ["nodepools", "widgets", "endpointslices"];
        for (name, group, resources, to) in [
            (
                "yurt-hub",
                "",
                &["configmaps", "services"][..],
                nodes.clone(),
            ),
            ("custom", "*", &custom, nodes),
            ("reader", "", &["services"], reader.clone()),
        ] {
            self.allow(name, group, resources, to).await;
        }
        let role = json!({"metadata": {"name": "impersonator"}, "rules": [{"apiGroups": [""], "resources": ["users"], "verbs": ["impersonate"]}]});
        write(
            &self.cloud,
            Method::POST,
            &format!("{RBAC}/clusterroles"),
            role,
        )
        .await;
        let local = json!({"kind": "User", "name": "local"});
        for (bindings, name, role, to) in [
            (
                "clusterrolebindings",
                "impersonator",
                "impersonator",
                reader,
            ),
            ("namespaces/default/rolebindings", "local", "reader", local),
        ] {
            self.bind(bindings, name, role, to).await;
        }
        self.define_in(
            "apps.openyurt.io",
            "v1beta2",
            "nodepools",
            "NodePool",
            "Cluster",
        )
        .await;
        let nodes: Vec<String> = (1..=count).chain([9]).map(name).collect();
        let pool = json!({"apiVersion": "apps.openyurt.io/v1beta2", "kind": "NodePool", "metadata": {"name": "here"},
            "spec": {"type": "Edge"}, "status": {"nodes": nodes}});
        write(
            &self.cloud,
            Method::POST,
            "/apis/apps.openyurt.io/v1beta2/nodepools",
            pool,
        )
        .await;
        let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": MAP}, "data": {
            "leaders": "", "enable-leader-election": "true", "interconnectivity": "true",
            "pool-scoped-metadata": "/v1/services,discovery.k8s.io/v1/endpointslices,example.io/v1/widgets"}});
        write(&self.cloud, Method::POST, MAPS, map).await;
    }

    async fn allow(&self, name: &str, group: &str, resources: &[&str], to: Value) {
        let role = json!({"metadata": {"name": name}, "rules": [
            {"apiGroups": [group], "resources": resources, "verbs": ["get", "list", "watch"]}]});
        write(
            &self.cloud,
            Method::POST,
            &format!("{RBAC}/clusterroles"),
            role,
        )
        .await;
        self.bind("clusterrolebindings", name, name, to).await;
    }

    async fn bind(&self, kind: &str, name: &str, role: &str, mut to: Value) {
        let group = "rbac.authorization.k8s.io";
        to["apiGroup"] = group.into();
        let binding = json!({"metadata": {"name": name},
            "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": role}, "subjects": [to]});
        write(
            &self.cloud,
            Method::POST,
            &format!("{RBAC}/{kind}"),
            binding,
        )
        .await;
    }

    pub(crate) async fn define(&self, plural: &str, kind: &str) {
        self.define_in("example.io", "v1", plural, kind, "Namespaced")
            .await;
    }

    async fn define_in(&self, group: &str, version: &str, plural: &str, kind: &str, scope: &str) {
        let crd = json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
            "metadata": {"name": format!("{plural}.{group}")},
            "spec": {"group": group, "scope": scope,
                "names": {"plural": plural, "singular": kind.to_lowercase(), "kind": kind, "listKind": format!("{kind}List")},
                "versions": [{"name": version, "served": true, "storage": true, "schema": {"openAPIV3Schema":
                    {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}}]}});
        let crds = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
        write(&self.cloud, Method::POST, crds, crd).await;
        eventually("the kind is served", async || {
            let request = http::Request::builder()
                .uri(format!("/apis/{group}/{version}/{plural}"))
                .header("authorization", "Bearer admin")
                .body(yurt_transport::empty())
                .unwrap();
            self.cloud.call(request).await.status() == 200
        })
        .await;
    }

    pub(crate) fn address(&self, number: usize) -> String {
        format!("127.0.{}.{number}", self.network)
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// The configuration of a hub of the pool.
    fn config_of(&self, number: usize) -> HubConfig {
        let member = &self.members[number - 1];
        let directory = &member.directory.0;
        let (client, server) = issue(&self.trust, number, self.address(number));
        let pair = |file: &str, pair: &KeyPairPem| {
            let (cert, key) = (
                directory.join(format!("{file}.crt")),
                directory.join(format!("{file}.key")),
            );
            std::fs::write(&cert, &pair.cert).unwrap();
            std::fs::write(&key, &pair.key).unwrap();
            KeyPairFiles { cert, key }
        };
        HubConfig {
            node_name: name(number),
            pool: "here".into(),
            pool_port: Some(self.port),
            bounds: Bounds {
                pool_silence: self.silence,
                pool_behind: Duration::from_secs(1),
                stalled_client: Duration::from_secs(3),
                ..Bounds::default()
            },
            node_certificate: Some(pair("own", &client)),
            serving_certificate: Some(pair("own-serving", &server)),
            ..config(directory, &self.trust, &[member.link.addr])
        }
    }

    async fn begin(&mut self, number: usize) {
        let config = self.config_of(number);
        let listener = TcpListener::bind((self.address(number), self.port))
            .await
            .unwrap();
        let node = Node::start_on(config, listener).await;
        node.until_up().await;
        self.members[number - 1].node = Some(node);
    }

    pub(crate) async fn end(&mut self, number: usize) {
        if let Some(node) = self.members[number - 1].node.take() {
            node.stop().await;
        }
    }

    pub(crate) async fn restart(&mut self, number: usize) {
        self.end(number).await;
        self.begin(number).await;
    }

    pub(crate) fn node(&self, number: usize) -> &Node {
        self.members[number - 1]
            .node
            .as_ref()
            .expect("a node that runs")
    }

    pub(crate) fn link(&self, number: usize) -> &Link {
        &self.members[number - 1].link
    }

    /// The cloud names the leaders.
    pub(crate) async fn led_by(&self, numbers: &[usize]) {
        let leaders: Vec<String> = numbers
            .iter()
            .map(|number| format!("{}/{}", name(*number), self.address(*number)))
            .collect();
        let data = json!({"data": {"leaders": leaders.join(",")}});
        self.merge(&format!("{MAPS}/{MAP}"), data).await;
    }

    /// Waits until a node knows who leads. One that is cut before never will.
    pub(crate) async fn until_led(&self, number: usize) {
        eventually("somebody leads", async || {
            self.node(number).status().await["pool"]["role"] != "alone"
        })
        .await;
    }

    /// Waits until a node answers out of what is shared.
    pub(crate) async fn until_shared(&self, number: usize) {
        // Before anything is read of the cloud by itself.
        self.until_led(number).await;
        let node = self.node(number);
        eventually("services are shared", async || {
            node.get(SERVICES).await.status == 200
                && node.feed("services").await["stage"] == "synced"
        })
        .await;
    }

    pub(crate) async fn merge(&self, path: &str, patch: Value) -> Value {
        merge(&self.cloud, path, patch).await
    }

    pub(crate) async fn create(&self, name: &str, labels: Value) {
        let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "labels": labels},
            "spec": {"selector": {"app": name}, "ports": [{"port": 80}]}});
        write(&self.cloud, Method::POST, OWN, service).await;
    }

    /// Changes annotations of a service; its new revision.
    pub(crate) async fn change(&self, name: &str, annotations: Value) -> u64 {
        let patch = json!({"metadata": {"annotations": annotations}});
        let changed = self.merge(&format!("{OWN}/{name}"), patch).await;
        let revision = changed["metadata"]["resourceVersion"].as_str().unwrap();
        revision.parse().unwrap()
    }

    pub(crate) async fn label(&self, name: &str, color: &str) {
        let patch = json!({"metadata": {"labels": {"color": color}}});
        self.merge(&format!("{OWN}/{name}"), patch).await;
    }

    pub(crate) async fn remove(&self, name: &str) {
        direct(&self.cloud, Method::DELETE, &format!("{OWN}/{name}"), None).await;
    }

    pub(crate) async fn stop(mut self) {
        for number in 1..=self.members.len() {
            self.end(number).await;
        }
    }

    /// A certificate of a node.
    pub(crate) fn certificate(&self, number: usize) -> (KeyPairPem, KeyPairPem) {
        issue(&self.trust, number, self.address(number))
    }
}

impl Node {
    /// The feed of a resource as the node tells of it.
    pub(crate) async fn feed(&self, resource: &str) -> Value {
        let status = self.status().await;
        let feeds = status["shared"].as_array().cloned().unwrap_or_default();
        let of = |feed: &&Value| {
            let name = feed["resource"].as_str().unwrap_or_default();
            name.split(['.', '/']).next() == Some(resource)
        };
        feeds.iter().find(of).cloned().unwrap_or_default()
    }
}
