//! The definitions on the embedded API server, with the conversions behind a webhook as the manager has it.

use arc_swap::ArcSwap;
use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::{Request, Response, header};
use http_body_util::{BodyExt, Full};
use serde_json::{Value, json};
use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};
use tokio::net::TcpListener;
use tokio_util::sync::{CancellationToken, DropGuard};
use yurt_api::{
    Metadata, Object,
    apps::{nodepool::NodePool, yurtappset::YurtAppSet},
    conversion,
    crd::{Conversion, DEFINITIONS, WebhookClient},
    names::{labels, objects},
};
use yurt_apiserver::{ApiServer, Config, Running, ServiceResolver, authn::User};
use yurt_pki::{Ca, Profile};
use yurt_transport::{Body, ServeOptions, collect, full};

const CRDS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
const APPS: &str = "/apis/apps.openyurt.io";
const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io";
/// Long enough for a loaded machine; nothing waits this long when all is well.
const PATIENCE: Duration = Duration::from_secs(20);

/// An API server with all definitions and their webhook.
struct Cluster {
    running: Running,
    _shutdown: DropGuard,
}

async fn converted(request: Request<hyper::body::Incoming>) -> Response<Body> {
    assert_eq!(request.uri().path(), conversion::PATH);
    let body = collect(request.into_body(), 8 << 20).await.expect("a body");
    let review = serde_json::from_slice(&body).expect("JSON");
    let answer = conversion::convert(review).expect("a review");
    Response::new(full(answer.to_string()))
}

/// Serves the webhook as the service that the definitions name: its address and CA.
async fn webhook(shutdown: &CancellationToken) -> (SocketAddr, String) {
    let ca = Ca::new("webhooks", 1).expect("a CA");
    let profile = Profile {
        common_name: "webhook".into(),
        dns: vec![format!(
            "{}.{}.svc",
            objects::WEBHOOK_SERVICE,
            objects::MANAGER_NAMESPACE
        )],
        server: true,
        days: 1,
        ..Profile::default()
    };
    let own = ca.issue(&profile).expect("a certificate");
    let tls = yurt_pki::server_config(&own, None, true).expect("a TLS configuration");
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .await
        .expect("a port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(yurt_transport::serve(
        listener,
        Some(Arc::new(ArcSwap::from(tls))),
        ServeOptions::default(),
        shutdown.clone(),
        converted,
    ));
    (address, STANDARD.encode(ca.cert_pem()))
}

impl Cluster {
    async fn start() -> Self {
        let shutdown = CancellationToken::new();
        let (address, ca_bundle) = webhook(&shutdown).await;
        let config = Config {
            tokens: vec![("admin".into(), User::new("admin", &["system:masters"]))],
            service_resolver: Some(ServiceResolver::new(move |_, _, _| Some(address))),
            ..Config::default()
        };
        let running = ApiServer::start(config, shutdown.clone())
            .await
            .expect("the server starts");
        let cluster = Self {
            running,
            _shutdown: shutdown.drop_guard(),
        };
        let conversion = Conversion::Webhook(WebhookClient {
            namespace: objects::MANAGER_NAMESPACE.into(),
            service: objects::WEBHOOK_SERVICE.into(),
            ca_bundle: Some(ca_bundle),
        });
        for definition in DEFINITIONS {
            let crd = cluster.post(CRDS, &definition.render(&conversion)).await;
            assert_eq!(crd["metadata"]["name"], definition.name());
            let path = format!("{CRDS}/{}", definition.name());
            cluster.until(&path, established).await;
        }
        cluster
    }

    async fn send(
        &self,
        method: &str,
        path: &str,
        accept: &str,
        body: Option<&Value>,
    ) -> (u16, http::HeaderMap, Value) {
        let media = if method == "PATCH" {
            "application/merge-patch+json"
        } else {
            "application/json"
        };
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::AUTHORIZATION, "Bearer admin")
            .header(header::ACCEPT, accept)
            .header(header::CONTENT_TYPE, media)
            .body(Full::new(
                body.map_or_else(Bytes::new, |body| body.to_string().into()),
            ))
            .expect("a request");
        let (parts, body) = self.running.call(request).await.into_parts();
        let bytes = body.collect().await.expect("a body").to_bytes();
        let value = serde_json::from_slice(&bytes).unwrap_or_default();
        (parts.status.as_u16(), parts.headers, value)
    }

    async fn get(&self, path: &str) -> Value {
        let (code, _, value) = self.send("GET", path, "application/json", None).await;
        assert_eq!(code, 200, "{path}: {value}");
        value
    }

    async fn post(&self, path: &str, body: &Value) -> Value {
        let (code, _, value) = self
            .send("POST", path, "application/json", Some(body))
            .await;
        assert_eq!(code, 201, "{path}: {value}");
        value
    }

    async fn merge(&self, path: &str, body: &Value) -> Value {
        let (code, _, value) = self
            .send("PATCH", path, "application/json", Some(body))
            .await;
        assert_eq!(code, 200, "{path}: {value}");
        value
    }

    async fn until(&self, path: &str, wished: fn(&Value) -> bool) {
        let poll = async {
            while !wished(&self.get(path).await) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, poll)
            .await
            .unwrap_or_else(|_| panic!("{path} is never as wished"));
    }
}

fn established(crd: &Value) -> bool {
    let conditions = crd["status"]["conditions"].as_array();
    conditions
        .into_iter()
        .flatten()
        .any(|condition| condition["type"] == "Established" && condition["status"] == "True")
}

fn pod_template() -> Value {
    json!({"metadata": {"labels": {"app": "web"}, "creationTimestamp": null},
        "spec": {"containers": [{"name": "web", "image": "web:1", "ofTomorrow": {"x": 1}}]}})
}

fn deployment() -> Value {
    json!({"deploymentTemplate": {"metadata": {"labels": {"app": "web"}},
        "spec": {"replicas": 2, "selector": {"matchLabels": {"app": "web"}}, "template": pod_template()}}})
}

/// Of each kind and version, what is beside the metadata: as in OpenYurt's documentation.
fn samples(kind: &str, version: &str) -> Value {
    let selector = json!({"matchLabels": {"app": "web"}});
    match (kind, version) {
        ("NodePool", "v1alpha1") => {
            json!({"spec": {"type": "Cloud", "selector": {"matchExpressions": [{"key": "a", "operator": "Exists"}]},
            "labels": {"a": "b"}, "annotations": {"c": "d"}, "taints": [{"key": "t", "value": "v", "effect": "NoSchedule"}]}})
        }
        ("NodePool", "v1beta1") => {
            json!({"spec": {"type": "Edge", "hostNetwork": true, "labels": {"a": "b"}}})
        }
        ("NodePool", _) => {
            json!({"spec": {"type": "Edge", "interConnectivity": true, "enableLeaderElection": true,
            "leaderElectionStrategy": "mark", "leaderReplicas": 2, "leaderNodeLabelSelector": {"a": "b"},
            "poolScopeMetadata": [{"group": "", "version": "v1", "resource": "services"}]}})
        }
        ("NodeBucket", _) => json!({"numNodes": 1, "nodes": [{"name": "a"}]}),
        ("YurtAppSet", "v1alpha1") => {
            json!({"spec": {"selector": selector, "workloadTemplate": deployment(), "revisionHistoryLimit": 3,
            "topology": {"pools": [{"name": "a", "replicas": 1, "tolerations": [{"operator": "Exists"}], "nodeSelectorTerm": {
                "matchExpressions": [{"key": labels::NODE_POOL, "operator": "In", "values": ["a"]}]},
                "patch": {"spec": {"template": {"spec": {"containers": [{"name": "web", "image": "web:2"}]}}}}}]}}})
        }
        ("YurtAppSet", _) => {
            json!({"spec": {"nodepoolSelector": {"matchLabels": {"b": "c"}}, "pools": ["a"], "revisionHistoryLimit": 3,
            "workload": {"workloadTemplate": deployment(), "workloadTweaks": [{"pools": ["a"], "tweaks": {"replicas": 3,
                "containerImages": [{"name": "web", "targetImage": "web:3"}],
                "patches": [{"path": "/metadata/labels/x", "operation": "add", "value": ["any", 1]}]}}]}}})
        }
        ("YurtAppDaemon", _) => {
            json!({"spec": {"selector": selector, "nodepoolSelector": {}, "workloadTemplate": deployment(),
            "revisionHistoryLimit": 3}})
        }
        ("YurtAppOverrider", _) => {
            json!({"subject": {"apiVersion": "apps.openyurt.io/v1alpha1", "kind": "YurtAppSet", "name": "web"},
            "entries": [{"pools": ["*", "-a"], "items": [{"image": {"containerName": "web", "imageClaim": "web:2"}}, {"replicas": 3}],
                "patches": [{"operation": "replace", "path": "/spec/x", "value": {"any": "thing"}}]}]})
        }
        ("YurtStaticSet", _) => {
            json!({"spec": {"staticPodManifest": "web", "upgradeStrategy": {"type": "OTA", "maxUnavailable": "10%"},
            "revisionHistoryLimit": 3, "template": pod_template()}})
        }
        ("PoolService", _) => json!({"spec": {"loadBalancerClass": "example.com/lb"}}),
        _ => panic!("no sample of {kind} {version}"),
    }
}

#[tokio::test]
async fn every_version_of_every_kind_is_served_as_written() {
    let cluster = Cluster::start().await;
    for definition in DEFINITIONS {
        for version in definition.versions {
            let scope = if definition.namespaced {
                "namespaces/default/"
            } else {
                ""
            };
            let path = format!(
                "/apis/{}/{}/{scope}{}",
                definition.group, version.name, definition.plural
            );
            let mut object = samples(definition.kind, version.name);
            object["apiVersion"] = format!("{}/{}", definition.group, version.name).into();
            object["kind"] = definition.kind.into();
            object["metadata"] = json!({"name": version.name, "annotations": {"mine": "x"}});
            let (code, headers, _) = cluster
                .send("POST", &path, "application/json", Some(&object))
                .await;
            assert_eq!(code, 201, "{path}");
            let warning = headers
                .get(header::WARNING)
                .and_then(|text| text.to_str().ok());
            let wanted = version.deprecation.map(|text| format!("299 - \"{text}\""));
            assert_eq!(warning, wanted.as_deref(), "{path}");
            let mut read = cluster.get(&format!("{path}/{}", version.name)).await;
            read["metadata"] = json!({"name": read["metadata"]["name"], "annotations": read["metadata"]["annotations"]});
            assert_eq!(read, object, "{path}");
        }
        // All objects are shown in all versions.
        for version in definition.versions {
            let path = format!(
                "/apis/{}/{}/{}",
                definition.group, version.name, definition.plural
            );
            let (code, _, table) = cluster.send("GET", &path, TABLE, None).await;
            assert_eq!(code, 200);
            assert_eq!(
                table["rows"].as_array().expect("rows").len(),
                definition.versions.len(),
                "{path}"
            );
        }
    }
}

#[tokio::test]
async fn columns_are_as_openyurts() {
    let cluster = Cluster::start().await;
    let columns = |(_, _, table): (u16, http::HeaderMap, Value)| -> Vec<String> {
        let columns = table["columnDefinitions"]
            .as_array()
            .expect("columns")
            .iter();
        columns
            .map(|column| column["name"].as_str().expect("a name").to_owned())
            .collect()
    };
    let wanted: &[(&str, &[&str])] = &[
        (
            "apps.openyurt.io/v1alpha1/nodepools",
            &["Name", "Type", "ReadyNodes", "NotReadyNodes", "Age"],
        ),
        (
            "apps.openyurt.io/v1beta1/nodepools",
            &["Name", "Type", "ReadyNodes", "NotReadyNodes", "Age"],
        ),
        (
            "apps.openyurt.io/v1beta2/nodepools",
            &[
                "Name",
                "Type",
                "ReadyNodes",
                "NotReadyNodes",
                "LeaderNodes",
                "LeaderElectionAge",
                "Age",
            ],
        ),
        (
            "apps.openyurt.io/v1alpha1/nodebuckets",
            &["Name", "NUM-NODES", "AGE"],
        ),
        (
            "apps.openyurt.io/v1alpha1/yurtappsets",
            &["Name", "READY", "WorkloadTemplate", "AGE", "OverriderRef"],
        ),
        (
            "apps.openyurt.io/v1beta1/yurtappsets",
            &["Name", "TOTAL", "READY", "UPDATED", "AGE"],
        ),
        (
            "apps.openyurt.io/v1alpha1/yurtappdaemons",
            &["Name", "WorkloadTemplate", "AGE", "OverriderRef"],
        ),
        (
            "apps.openyurt.io/v1alpha1/yurtappoverriders",
            &["Name", "Subject", "Name", "AGE"],
        ),
        (
            "apps.openyurt.io/v1alpha1/yurtstaticsets",
            &["Name", "AGE", "Total", "Ready", "Upgraded"],
        ),
        (
            "network.openyurt.io/v1alpha1/poolservices",
            &["Name", "AGE"],
        ),
    ];
    for (path, wanted) in wanted {
        let table = cluster
            .send("GET", &format!("/apis/{path}"), TABLE, None)
            .await;
        assert_eq!(columns(table), *wanted, "{path}");
    }
    let pool = json!({"metadata": {"name": "a"}, "spec": {"type": "Edge"}});
    cluster
        .post(&format!("{APPS}/v1beta2/nodepools"), &pool)
        .await;
    let status = json!({"status": {"readyNodeNum": 3, "unreadyNodeNum": 1, "leaderNum": 2}});
    cluster
        .merge(&format!("{APPS}/v1beta2/nodepools/a/status"), &status)
        .await;
    let (_, _, table) = cluster
        .send("GET", &format!("{APPS}/v1beta2/nodepools/a"), TABLE, None)
        .await;
    let cells = table["rows"][0]["cells"].as_array().expect("cells");
    assert_eq!(
        cells[..5],
        [json!("a"), json!("Edge"), json!(3), json!(1), json!(2)]
    );
}

#[tokio::test]
async fn defaults_are_set_and_what_is_wrong_is_refused() {
    let cluster = Cluster::start().await;
    let pools = format!("{APPS}/v1beta2/nodepools");
    let pool = cluster
        .post(&pools, &json!({"metadata": {"name": "a"}, "spec": {}}))
        .await;
    assert_eq!(
        pool["spec"],
        json!({"type": "Edge", "leaderElectionStrategy": "random", "leaderReplicas": 1})
    );
    let sets = format!("{APPS}/v1alpha1/namespaces/default/yurtstaticsets");
    let set = cluster
        .post(
            &sets,
            &json!({"metadata": {"name": "a"}, "spec": {"template": {}}}),
        )
        .await;
    assert_eq!(
        set["spec"],
        json!({"template": {}, "revisionHistoryLimit": 10, "upgradeStrategy": {"type": "AdvancedRollingUpdate"}})
    );
    let sets = format!("{APPS}/v1beta1/namespaces/default/yurtappsets");
    let wrong = [
        (
            &pools,
            json!({"spec": {"taints": [{"key": "a"}]}}),
            "spec.taints[0].effect: Required value",
        ),
        (
            &pools,
            json!({"spec": {"leaderReplicas": "1"}}),
            "spec.leaderReplicas",
        ),
        (&sets, json!({"spec": {}}), "spec.workload: Required value"),
        (
            &sets,
            json!({"spec": {"workload": {"workloadTemplate": {"deploymentTemplate": {}}}}}),
            "deploymentTemplate.spec: Required value",
        ),
        (
            &sets,
            json!({"spec": {"workload": {"workloadTemplate": {}, "workloadTweaks": [
            {"tweaks": {"patches": [{"path": "/a", "operation": "move"}]}}]}}}),
            "operation: Unsupported value: \"move\"",
        ),
    ];
    for (path, mut object, why) in wrong {
        object["metadata"] = json!({"name": "wrong"});
        let (code, _, status) = cluster
            .send("POST", path, "application/json", Some(&object))
            .await;
        assert_eq!(code, 422, "{status}");
        assert!(
            status["message"].as_str().expect("a message").contains(why),
            "{status}"
        );
    }
}

#[tokio::test]
async fn a_pool_changed_through_an_old_version_keeps_what_that_does_not_know() {
    let cluster = Cluster::start().await;
    let path = |version: &str| format!("{APPS}/{version}/nodepools/a");
    let mut pool = samples("NodePool", "v1beta2");
    pool["metadata"] = json!({"name": "a"});
    let created = cluster
        .post(&format!("{APPS}/v1beta2/nodepools"), &pool)
        .await;
    for version in ["v1beta1", "v1alpha1"] {
        // As a client does that reads, changes and writes the whole object.
        let mut old = cluster.get(&path(version)).await;
        old["spec"]["labels"] = json!({"written": version});
        let (code, _, written) = cluster
            .send("PUT", &path(version), "application/json", Some(&old))
            .await;
        assert_eq!(code, 200, "{written}");
        let now = cluster.get(&path("v1beta2")).await;
        let mut wanted = created["spec"].clone();
        wanted["labels"] = json!({"written": version});
        assert_eq!(now["spec"], wanted);
        assert!(now["metadata"]["annotations"].is_null(), "{now}");
    }
}

#[tokio::test]
async fn a_set_is_scaled_and_read_as_a_typed_object() {
    let cluster = Cluster::start().await;
    let mut set = samples("YurtAppSet", "v1beta1");
    set["metadata"] = json!({"name": "web"});
    let sets = format!("{APPS}/v1beta1/namespaces/default/yurtappsets");
    cluster.post(&sets, &set).await;
    let scale = cluster
        .merge(
            &format!("{sets}/web/scale"),
            &json!({"spec": {"replicas": 6}}),
        )
        .await;
    assert_eq!(scale["spec"]["replicas"], 6);
    let read = cluster.get(&format!("{sets}/web")).await;
    let typed: Object<YurtAppSet> = serde_json::from_value(read.clone()).expect("a set");
    assert_eq!(typed.path(), format!("{sets}/web"));
    assert_eq!(typed.spec.replicas, Some(6));
    assert_eq!(
        typed
            .spec
            .workload
            .workload_template
            .only()
            .expect("one template")
            .0,
        "Deployment"
    );
    assert_eq!(
        typed.spec.workload.workload_tweaks[0].tweaks.patches[0].value,
        json!(["any", 1])
    );
    // Nothing is lost in the types.
    let mut written = serde_json::to_value(&typed).expect("JSON");
    assert_eq!(
        written["status"].take(),
        json!({"currentRevision": "", "readyWorkloads": 0, "totalWorkloads": 0})
    );
    written.as_object_mut().expect("an object").remove("status");
    assert_eq!(written, read);
    let metadata = Metadata {
        name: "p".into(),
        ..Metadata::default()
    };
    let pool = Object::new(metadata, NodePool::default());
    let created = cluster
        .post(
            &format!("{APPS}/v1beta2/nodepools"),
            &serde_json::to_value(&pool).expect("JSON"),
        )
        .await;
    assert_eq!(created["apiVersion"], "apps.openyurt.io/v1beta2");
}
