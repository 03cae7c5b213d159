//! An embedded API server with a CA of its own, and a test that plays who approves and signs.

use crate::node::{PATIENCE, eventually};
use base64::{Engine, engine::general_purpose::STANDARD};
use http::{Method, Request, header};
use serde_json::{Value, json};
use std::{
    net::SocketAddr,
    time::{Duration, SystemTime},
};
use tokio_util::sync::{CancellationToken, DropGuard};
use yurt_apiserver::{ApiServer, BuiltinControllers, Config, Running, Tls, authn::User};
use yurt_pki::{Ca, KeyPairPem, Profile, SigningRequest, Usages};

pub(crate) const TOKEN: &str = "abcdef.0123456789abcdef";
pub(crate) const CSRS: &str = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
const HOUR: Duration = Duration::from_secs(3600);

pub(crate) struct Cluster {
    pub(crate) ca: Ca,
    pub(crate) addr: SocketAddr,
    api: Running,
    _shutdown: DropGuard,
}

/// What comes back of a call: code and object.
pub(crate) type Reply = (u16, Value);

impl Cluster {
    pub(crate) async fn start() -> Self {
        let ca = Ca::new("kubernetes", 30).unwrap();
        let serving = ca
            .issue(&Profile {
                common_name: "kube-apiserver".into(),
                ips: vec!["127.0.0.1".parse().unwrap()],
                server: true,
                days: 30,
                ..Profile::default()
            })
            .unwrap();
        let shutdown = CancellationToken::new();
        let admin = User {
            name: "admin".into(),
            groups: vec!["system:masters".into(), "system:authenticated".into()],
            ..User::default()
        };
        let config = Config {
            tls: Some(Tls {
                serving,
                client_ca: Some(ca.cert_pem()),
            }),
            tokens: vec![("admin".into(), admin)],
            root_ca: Some(ca.cert_pem()),
            controllers: BuiltinControllers {
                root_ca_publisher: false,
                ..BuiltinControllers::default()
            },
            ..Config::default()
        };
        let api = ApiServer::start(config, shutdown.clone()).await.unwrap();
        let cluster = Self {
            ca,
            addr: api.addr(),
            api,
            _shutdown: shutdown.drop_guard(),
        };
        let group = "rbac.authorization.k8s.io";
        let bindings = format!("/apis/{group}/v1/clusterrolebindings");
        let bind = |role: &str, to: &str| {
            json!({"metadata": {"name": role}, "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": role},
                "subjects": [{"apiGroup": group, "kind": "Group", "name": to}]})
        };
        let bootstrapper = bind("system:node-bootstrapper", "system:bootstrappers");
        cluster.create(&bindings, bootstrapper).await;
        let role = json!({"metadata": {"name": "yurt-hub"}, "rules": [
            {"apiGroups": [""], "resources": ["configmaps"], "verbs": ["get", "list", "watch"]}]});
        cluster
            .create(&format!("/apis/{group}/v1/clusterroles"), role)
            .await;
        cluster
            .create(&bindings, bind("yurt-hub", "system:nodes"))
            .await;
        cluster.publish_ca(&cluster.ca.cert_pem()).await;
        cluster
    }

    /// The pin of its CA, as a flag.
    pub(crate) fn pin(&self) -> String {
        let der = yurt_pki::certs_from_pem(&self.ca.cert_pem()).unwrap();
        let digest = yurt_pki::public_key_digest(&der[0]).unwrap();
        let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("sha256:{hex}")
    }

    pub(crate) async fn call(&self, method: Method, path: &str, body: &Value) -> Reply {
        let kind = match method {
            Method::PATCH => "application/merge-patch+json",
            _ => "application/json",
        };
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::AUTHORIZATION, "Bearer admin")
            .header(header::CONTENT_TYPE, kind)
            .body(yurt_transport::full(match body {
                Value::Null => String::new(),
                body => body.to_string(),
            }))
            .unwrap();
        let response = self.api.in_process().call(request).await;
        let code = response.status().as_u16();
        let body = yurt_transport::collect(response.into_body(), 8 << 20)
            .await
            .unwrap();
        (code, serde_json::from_slice(&body).unwrap_or_default())
    }

    pub(crate) async fn get(&self, path: &str) -> Value {
        self.call(Method::GET, path, &Value::Null).await.1
    }

    pub(crate) async fn create(&self, path: &str, object: Value) {
        let (code, answer) = self.call(Method::POST, path, &object).await;
        assert_eq!(code, 201, "{answer}");
    }

    pub(crate) async fn merge(&self, path: &str, patch: Value) {
        let (code, answer) = self.call(Method::PATCH, path, &patch).await;
        assert_eq!(code, 200, "{answer}");
    }

    /// Lets a token introduce nodes, and sign `cluster-info` with it.
    pub(crate) async fn add_token(&self, token: &str) {
        let (id, secret) = token.split_once('.').unwrap();
        let data = |text: &str| STANDARD.encode(text);
        let object = json!({"metadata": {"name": format!("bootstrap-token-{id}")}, "type": "bootstrap.kubernetes.io/token",
            "data": {"token-id": data(id), "token-secret": data(secret),
                "usage-bootstrap-authentication": data("true"), "usage-bootstrap-signing": data("true")}});
        self.create("/api/v1/namespaces/kube-system/secrets", object)
            .await;
        let info = "/api/v1/namespaces/kube-public/configmaps/cluster-info";
        eventually("cluster-info is signed", async || {
            self.get(info).await["data"][format!("jws-kubeconfig-{id}")].is_string()
        })
        .await;
    }

    /// `kube-root-ca.crt` of the hub's namespace.
    pub(crate) async fn publish_ca(&self, pem: &str) {
        let maps = "/api/v1/namespaces/kube-system/configmaps";
        let map = json!({"metadata": {"name": "kube-root-ca.crt"}, "data": {"ca.crt": pem}});
        if self.call(Method::POST, maps, &map).await.0 == 409 {
            self.merge(&format!("{maps}/kube-root-ca.crt"), map).await;
        }
    }

    pub(crate) async fn requests(&self) -> Vec<Value> {
        let list = self.get(CSRS).await;
        list["items"].as_array().cloned().unwrap_or_default()
    }

    /// The only request of a signer that nobody decided on; waits for it.
    pub(crate) async fn undecided(&self, signer: &str) -> Value {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let mut open: Vec<Value> = self.requests().await;
            open.retain(|csr| {
                csr["spec"]["signerName"] == signer && csr["status"]["conditions"].is_null()
            });
            assert!(open.len() < 2, "{open:#?}");
            if let Some(csr) = open.pop() {
                return csr;
            }
            assert!(
                tokio::time::Instant::now() < deadline,
                "no request for {signer}"
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub(crate) async fn decide(&self, csr: &Value, kind: &str) {
        let name = csr["metadata"]["name"].as_str().unwrap();
        let condition =
            json!({"type": kind, "status": "True", "reason": "Test", "message": "by the test"});
        self.merge(
            &format!("{CSRS}/{name}/approval"),
            json!({"status": {"conditions": [condition]}}),
        )
        .await;
    }

    /// Approves and signs.
    pub(crate) async fn issue(&self, csr: &Value) {
        self.decide(csr, "Approved").await;
        let text = STANDARD
            .decode(csr["spec"]["request"].as_str().unwrap())
            .unwrap();
        let request = SigningRequest::from_pem(&String::from_utf8(text).unwrap()).unwrap();
        let usages = csr["spec"]["usages"].as_array().unwrap();
        let usages = Usages::from_names(usages.iter().map(|u| u.as_str().unwrap())).unwrap();
        let now = SystemTime::now();
        let pem = self
            .ca
            .sign_request(&request, &usages, now - HOUR, now + 100 * HOUR)
            .unwrap();
        let name = csr["metadata"]["name"].as_str().unwrap();
        self.merge(
            &format!("{CSRS}/{name}/status"),
            json!({"status": {"certificate": STANDARD.encode(pem)}}),
        )
        .await;
    }

    /// A client certificate of the node with a past and an end (seconds from now).
    pub(crate) fn client(&self, begun: u64, left: i64) -> KeyPairPem {
        let profile = Profile {
            common_name: "system:node:edge-1".into(),
            organizations: vec!["openyurt:yurthub".into(), "system:nodes".into()],
            ..Profile::default()
        };
        let made = yurt_pki::request(&profile).unwrap();
        let request = SigningRequest::from_pem(&made.request).unwrap();
        let usages = Usages::from_names(["digital signature", "key encipherment", "client auth"]);
        let now = SystemTime::now();
        let end = match u64::try_from(left) {
            Ok(left) => now + Duration::from_secs(left),
            Err(_) => now - Duration::from_secs(left.unsigned_abs()),
        };
        let begin = now - Duration::from_secs(begun);
        let cert = self
            .ca
            .sign_request(&request, &usages.unwrap(), begin, end)
            .unwrap();
        KeyPairPem {
            cert,
            key: made.key,
        }
    }
}
