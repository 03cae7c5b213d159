//! The webhooks as API servers have them: asked over TLS, by the service that the configurations name.

use super::{Clock, Options, Webhooks, configuration::MANAGER, start_at};
use crate::Context;
use base64::{Engine, engine::general_purpose::STANDARD};
use jiff::Timestamp;
use serde_json::{Value, json};
use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
    time::Duration,
};
use tokio_util::sync::{CancellationToken, DropGuard};
use yurt_api::{
    crd,
    names::{
        annotations, labels,
        objects::{MUTATING_WEBHOOKS, VALIDATING_WEBHOOKS, WEBHOOK_CERTIFICATES},
        taints,
    },
};
use yurt_apiserver::{Config, ServiceResolver, authn::User};
use yurt_controller::{
    collections::CRDS,
    kube::{Kube, KubeError},
    policy::Rule,
};
use yurt_controlplane::{self as native, stage::Stage};

const POOLS: &str = "/apis/apps.openyurt.io/v1beta2/nodepools";
const SECRET: &str = "/api/v1/namespaces/kube-system/secrets";
const CONFIGURATIONS: &str = "/apis/admissionregistration.k8s.io/v1";
const DAY: i64 = 24 * 3600;

/// A manager that only serves webhooks.
struct Manager {
    webhooks: Webhooks,
    _shutdown: DropGuard,
}

/// Lets the user `hooks` do what the webhooks say that they need, and no more.
async fn permit(stage: &Stage) {
    let rbac = "/apis/rbac.authorization.k8s.io/v1";
    let rules = |rules: &[Rule]| rules.iter().map(Rule::to_json).collect::<Value>();
    let subject =
        json!([{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "hooks"}]);
    for (prefix, path, namespace, rules) in [
        ("Cluster", rbac.to_owned(), Value::Null, rules(super::RULES)),
        (
            "",
            format!("{rbac}/namespaces/kube-system"),
            "kube-system".into(),
            rules(super::NAMESPACED_RULES),
        ),
    ] {
        let kind = format!("{prefix}Role");
        let plural = format!("{}s", kind.to_lowercase());
        let metadata = json!({"name": "hooks", "namespace": namespace});
        let role = json!({"metadata": metadata, "rules": rules});
        stage.create(&format!("{path}/{plural}"), role).await;
        let binding = json!({"metadata": metadata, "subjects": subject,
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": "hooks"}});
        let plural = plural.replace("roles", "rolebindings");
        stage.create(&format!("{path}/{plural}"), binding).await;
    }
}

/// An API server with OpenYurt's definitions as they are shipped.
struct Scene {
    stage: Stage,
    /// Where the service leads.
    service: Arc<Mutex<Option<SocketAddr>>>,
    /// How many seconds the clock of the managers is ahead.
    ahead: Arc<AtomicI64>,
}

impl Scene {
    async fn start() -> Self {
        let service = Arc::new(Mutex::new(None));
        let resolve = service.clone();
        let config = Config {
            // No service leads nowhere: what nobody serves is refused.
            service_resolver: Some(ServiceResolver::new(move |_, _, _| {
                let known = *resolve.lock().expect("no panic");
                Some(known.unwrap_or(SocketAddr::from((Ipv4Addr::LOCALHOST, 1))))
            })),
            tokens: vec![(
                "hooks".into(),
                User::new("hooks", &["system:authenticated"]),
            )],
            ..Config::default()
        };
        let stage = Stage::of_server(config, |_| {}).await;
        permit(&stage).await;
        for definition in crd::DEFINITIONS {
            let rendered = definition.render(&crd::Conversion::default());
            stage.create(&CRDS.path(""), rendered).await;
            let path = format!("{}/{}", CRDS.path(""), definition.name());
            stage
                .until(&path, |crd| {
                    let mut conditions =
                        yurt_controller::fields::items(&crd["status"]["conditions"]);
                    conditions.any(|c| c["type"] == "Established" && c["status"] == "True")
                })
                .await;
        }
        Self {
            stage,
            service,
            ahead: Arc::default(),
        }
    }

    /// Another manager, with caches of its own.
    async fn manager(&self, options: Options) -> Manager {
        let options = Options {
            address: Ipv4Addr::LOCALHOST.into(),
            port: 0,
            ..options
        };
        let shutdown = CancellationToken::new();
        // Caches are the manager's; what webhooks ask and write, they do as themselves.
        let call = self.stage.api().in_process().into_call();
        let own = Kube::in_process(call, "hooks", Duration::from_secs(30));
        let context = Context::new(self.stage.kube.clone(), shutdown.clone()).writing_as(own);
        let ahead = self.ahead.clone();
        let clock: Clock =
            Arc::new(move || Timestamp::now().as_second() + ahead.load(Ordering::Relaxed));
        let webhooks = start_at(options, &context, shutdown.clone(), clock)
            .await
            .expect("they start");
        assert!(webhooks.ready().await);
        Manager {
            webhooks,
            _shutdown: shutdown.drop_guard(),
        }
    }

    /// A manager to which the service leads, and of which the API server has been told.
    async fn served(&self, options: Options) -> Manager {
        let manager = self.manager(options).await;
        *self.service.lock().expect("no panic") = Some(manager.webhooks.address());
        self.told(&manager).await;
        manager
    }

    /// Waits until the API server trusts what a manager has.
    async fn told(&self, manager: &Manager) {
        let bundle = manager.webhooks.certificate.borrow().clone();
        let bundle = STANDARD.encode(&bundle.expect("ready").authorities);
        for (kind, name) in [
            ("mutatingwebhookconfigurations", MUTATING_WEBHOOKS),
            ("validatingwebhookconfigurations", VALIDATING_WEBHOOKS),
        ] {
            let path = format!("{CONFIGURATIONS}/{kind}/{name}");
            let trusts =
                |c: &Value| c["webhooks"][0]["clientConfig"]["caBundle"] == bundle.as_str();
            self.stage.until(&path, trusts).await;
        }
        for name in super::CONVERTED {
            let path = format!("{}/{name}", CRDS.path(""));
            let client = "/spec/conversion/webhook/clientConfig/caBundle";
            self.stage
                .until(&path, |crd| crd.pointer(client) == Some(&json!(bundle)))
                .await;
        }
    }

    async fn refused(&self, path: &str, object: &Value) -> String {
        refusal(self.stage.kube.create(path, object).await)
    }
}

fn refusal(outcome: Result<Value, KubeError>) -> String {
    match outcome {
        Ok(object) => panic!("allowed: {object:#}"),
        Err(error) => error.to_string(),
    }
}

fn web() -> Value {
    json!({"deploymentTemplate": {"metadata": {"labels": {"app": "web"}}, "spec": {"replicas": 2,
        "selector": {"matchLabels": {"app": "web"}}, "template": {"metadata": {"labels": {"app": "web"}},
            "spec": {"containers": [{"name": "web", "image": "web:1"}]}}}}})
}

#[tokio::test]
async fn pools_are_completed_judged_and_kept_while_they_have_nodes() {
    let scene = Scene::start().await;
    let _manager = scene.served(Options::default()).await;
    let stage = &scene.stage;
    let pool = stage
        .create(POOLS, json!({"apiVersion": "apps.openyurt.io/v1beta2", "kind": "NodePool", "metadata": {"name": "a"},
            "spec": {"interConnectivity": true, "enableLeaderElection": true, "leaderReplicas": 2}}))
        .await;
    assert_eq!(pool["metadata"]["labels"][labels::NODE_POOL_TYPE], "edge");
    assert_eq!(
        pool["spec"]["poolScopeMetadata"][1]["resource"],
        "endpointslices"
    );
    let wrong = json!({"apiVersion": "apps.openyurt.io/v1beta1", "kind": "NodePool", "metadata": {"name": "b"},
        "spec": {"type": "Cloud", "hostNetwork": true}});
    // Through an older version, where the annotation stands for the field.
    let old = POOLS.replace("v1beta2", "v1beta1");
    let why = scene.refused(&old, &wrong).await;
    assert!(why.contains("spec.hostNetwork: a Cloud pool"), "{why}");
    let path = format!("{POOLS}/a");
    let why = refusal(
        stage
            .kube
            .merge(&path, &json!({"spec": {"type": "Cloud"}}))
            .await,
    );
    assert!(
        why.contains("403") && why.contains("spec.type cannot be changed"),
        "{why}"
    );
    // A client of an older version that builds the object anew, as controllers do.
    let revision = &pool["metadata"]["resourceVersion"];
    let anew = json!({"apiVersion": "apps.openyurt.io/v1beta1", "kind": "NodePool",
        "metadata": {"name": "a", "resourceVersion": revision}, "spec": {"type": "Edge", "labels": {"x": "y"}}});
    stage
        .kube
        .replace(&format!("{old}/a"), &anew)
        .await
        .expect("replaced");
    let now = stage.kube.get(&path).await.expect("there");
    let mut wanted = pool["spec"].clone();
    wanted["labels"] = json!({"x": "y"});
    assert_eq!(now["spec"], wanted, "what v1beta1 cannot say is as it was");
    // It has a node.
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1", "labels": {labels::DESIRED_NODE_POOL: "a"}}});
    let node = stage.create("/api/v1/nodes", node).await;
    assert_eq!(node["metadata"]["labels"][labels::NODE_POOL], "a");
    let why = refusal(stage.kube.delete(&path).await);
    assert!(why.contains("pool a still has nodes (n1)"), "{why}");
    let leave =
        json!({"metadata": {"labels": {labels::DESIRED_NODE_POOL: null, labels::NODE_POOL: null}}});
    stage
        .kube
        .merge("/api/v1/nodes/n1", &leave)
        .await
        .expect("it leaves");
    stage.kube.delete(&path).await.expect("deleted");
}

#[tokio::test]
async fn nodes_and_pods_follow_their_pools() {
    let scene = Scene::start().await;
    let _manager = scene.served(Options::default()).await;
    let stage = &scene.stage;
    let host = json!({"apiVersion": "apps.openyurt.io/v1beta2", "kind": "NodePool", "metadata": {"name": "host"}, "spec": {"hostNetwork": true}});
    stage.create(POOLS, host).await;
    // A pool that there is not keeps no kubelet from its node.
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1", "labels": {labels::NODE_POOL: "gone"}}});
    stage.create("/api/v1/nodes", node).await;
    let path = "/api/v1/nodes/n1";
    let label = |pool: Value| json!({"metadata": {"labels": {labels::NODE_POOL: pool}}});
    let why = refusal(stage.kube.merge(path, &label("host".into())).await);
    assert!(why.contains("take the node out of its pool first"), "{why}");
    stage
        .kube
        .merge(path, &label(Value::Null))
        .await
        .expect("it leaves");
    let node = stage
        .kube
        .merge(path, &label("host".into()))
        .await
        .expect("it enters");
    assert_eq!(node["metadata"]["labels"][labels::HOST_NETWORK], "true");
    let node = stage
        .kube
        .merge(path, &label(Value::Null))
        .await
        .expect("it leaves");
    assert!(
        node["metadata"]["labels"]
            .get(labels::HOST_NETWORK)
            .is_none(),
        "{node}"
    );
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "annotations": {annotations::EXCLUDE_HOST_NETWORK_POOL: "true"}},
        "spec": {"containers": [{"name": "a", "image": "a"}]}});
    let pod = stage.create("/api/v1/namespaces/default/pods", pod).await;
    let required =
        &pod["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"];
    assert_eq!(
        required["nodeSelectorTerms"][0]["matchExpressions"][0]["key"],
        labels::HOST_NETWORK
    );
}

#[tokio::test]
async fn sets_are_completed_and_judged() {
    let scene = Scene::start().await;
    let _manager = scene.served(Options::default()).await;
    let stage = &scene.stage;
    let apps = |version: &str, plural: &str| {
        format!("/apis/apps.openyurt.io/{version}/namespaces/default/{plural}")
    };
    let object = |version: &str, kind: &str, name: &str, body: Value| {
        let mut object = body;
        object["apiVersion"] = format!("apps.openyurt.io/{version}").into();
        object["kind"] = kind.into();
        object["metadata"] = json!({"name": name});
        object
    };
    let sets = apps("v1beta1", "yurtappsets");
    let spec = json!({"spec": {"pools": ["a"], "workload": {"workloadTemplate": web(), "workloadTweaks": [
        {"pools": ["a"], "tweaks": {"patches": [{"path": "/spec/replicas", "operation": "replace", "value": 5}]}}]}}});
    stage
        .create(&sets, object("v1beta1", "YurtAppSet", "web", spec.clone()))
        .await;
    let mut wrong = spec;
    wrong["spec"]["workload"]["workloadTweaks"][0]["tweaks"]["patches"][0]["value"] = "five".into();
    let why = scene
        .refused(&sets, &object("v1beta1", "YurtAppSet", "bad", wrong))
        .await;
    assert!(
        why.contains("422") && why.contains("workloadTweaks[0]"),
        "{why}"
    );
    // The older version is judged alike.
    let mut template = web();
    template["deploymentTemplate"]["spec"]["template"]["spec"]["containers"] = json!([]);
    let older = |template: Value| json!({"spec": {"selector": {"matchLabels": {"app": "web"}}, "workloadTemplate": template, "topology": {"pools": []}}});
    let old_sets = apps("v1alpha1", "yurtappsets");
    let why = scene
        .refused(
            &old_sets,
            &object("v1alpha1", "YurtAppSet", "old", older(template)),
        )
        .await;
    assert!(why.contains("containers: at least one"), "{why}");
    let old = stage
        .create(
            &old_sets,
            object("v1alpha1", "YurtAppSet", "old", older(web())),
        )
        .await;
    assert_eq!(old["apiVersion"], "apps.openyurt.io/v1alpha1");
    // Daemons.
    let daemons = apps("v1alpha1", "yurtappdaemons");
    let daemon = json!({"spec": {"selector": {"matchLabels": {"app": "web"}}, "nodepoolSelector": {}, "workloadTemplate": web()}});
    stage
        .create(
            &daemons,
            object("v1alpha1", "YurtAppDaemon", "web", daemon.clone()),
        )
        .await;
    let mut wrong = daemon;
    wrong["spec"]["selector"] = json!({"matchLabels": {"app": "other"}});
    let why = scene
        .refused(&daemons, &object("v1alpha1", "YurtAppDaemon", "bad", wrong))
        .await;
    assert!(why.contains("spec.selector: does not match"), "{why}");
    // Overriders.
    let overriders = apps("v1alpha1", "yurtappoverriders");
    let overrider = json!({"subject": {"kind": "YurtAppSet", "name": "web"}, "entries": []});
    stage
        .create(
            &overriders,
            object("v1alpha1", "YurtAppOverrider", "one", overrider.clone()),
        )
        .await;
    let why = scene
        .refused(
            &overriders,
            &object("v1alpha1", "YurtAppOverrider", "two", overrider),
        )
        .await;
    assert!(why.contains("has the overrider one already"), "{why}");
    let why = refusal(stage.kube.delete(&format!("{overriders}/one")).await);
    assert!(why.contains("YurtAppSet web is still there"), "{why}");
    stage
        .kube
        .delete(&format!("{sets}/web"))
        .await
        .expect("deleted");
    stage
        .kube
        .delete(&format!("{overriders}/one"))
        .await
        .expect("deleted");
    // Static sets.
    let statics = apps("v1alpha1", "yurtstaticsets");
    let pods = json!({"spec": {"containers": [{"name": "web", "image": "web:1"}]}});
    let set = stage
        .create(
            &statics,
            object(
                "v1alpha1",
                "YurtStaticSet",
                "web",
                json!({"spec": {"staticPodManifest": "web", "template": pods}}),
            ),
        )
        .await;
    assert_eq!(set["spec"]["upgradeStrategy"]["maxUnavailable"], "10%");
    assert_eq!(set["spec"]["template"]["metadata"]["namespace"], "default");
    let why = scene
        .refused(
            &statics,
            &object(
                "v1alpha1",
                "YurtStaticSet",
                "bad",
                json!({"spec": {"staticPodManifest": "../x", "template": pods}}),
            ),
        )
        .await;
    assert!(why.contains("spec.staticPodManifest"), "{why}");
}

#[tokio::test]
async fn endpoints_of_a_node_that_is_spoken_for_stay_ready() {
    let scene = Scene::start().await;
    let _manager = scene.served(Options::default()).await;
    let stage = &scene.stage;
    for (name, autonomous) in [("kept", "true"), ("lost", "false")] {
        let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "annotations": {annotations::AUTONOMY: autonomous}},
            "spec": {"taints": [{"key": taints::UNSCHEDULABLE, "value": "true", "effect": "NoSchedule"}]}});
        stage.create("/api/v1/nodes", node).await;
        let pods = "/api/v1/namespaces/default/pods";
        stage
            .create(pods, json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {"nodeName": name, "containers": [{"name": "a", "image": "a"}]}}))
            .await;
        let status = json!({"status": {"phase": "Running", "conditions": [
            {"type": "Ready", "status": "False"}, {"type": "ContainersReady", "status": "True"}]}});
        stage
            .kube
            .merge(&format!("{pods}/{name}/status"), &status)
            .await
            .expect("reported");
    }
    let endpoint = |name: &str, ip: &str| {
        json!({"addresses": [ip], "nodeName": name, "conditions": {"ready": false, "serving": false},
        "targetRef": {"kind": "Pod", "namespace": "default", "name": name}})
    };
    let slices = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices";
    let slice = json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "endpoints": [endpoint("kept", "10.0.0.1"), endpoint("lost", "10.0.0.2")]});
    let ready =
        |slice: &Value| [0, 1].map(|i| slice["endpoints"][i]["conditions"]["ready"] == true);
    // The cache of the nodes may not have come to them yet: then the slice is as it was, never refused.
    let mut seen = [false, false];
    for attempt in 0..200 {
        let mut named = slice.clone();
        named["metadata"] = json!({"name": format!("s{attempt}")});
        let made = stage.create(slices, named).await;
        seen = ready(&made);
        if seen[0] {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(seen, [true, false], "new slices too");
    let address = |name: &str, ip: &str| json!({"ip": ip, "nodeName": name, "targetRef": {"kind": "Pod", "namespace": "default", "name": name}});
    let endpoints = json!({"apiVersion": "v1", "kind": "Endpoints", "metadata": {"name": "web"}, "subsets": [
        {"notReadyAddresses": [address("kept", "10.0.0.1"), address("lost", "10.0.0.2")], "ports": [{"port": 80}]}]});
    let made = stage
        .create("/api/v1/namespaces/default/endpoints", endpoints)
        .await;
    let subset = &made["subsets"][0];
    assert_eq!(subset["addresses"][0]["ip"], "10.0.0.1", "{made}");
    assert_eq!(subset["notReadyAddresses"][0]["ip"], "10.0.0.2", "{made}");
}

#[tokio::test]
async fn a_service_keeps_the_pods_of_an_autonomous_node_that_falls_silent() {
    let mut scene = Scene::start().await;
    let _manager = scene.served(Options::default()).await;
    let settings = native::Settings {
        nodes: native::NodeMonitor {
            period: Duration::from_millis(100),
            grace: Duration::from_secs(3),
            startup_grace: Duration::from_secs(3),
        },
        ..native::Settings::default()
    };
    let controllers = "node-lifecycle-controller,endpointslice-controller,endpoints-controller";
    let controllers: native::Selection = controllers.parse().expect("known controllers");
    scene
        .stage
        .restart_with(|context| native::start_in(&controllers, &settings, context));
    let stage = &scene.stage;
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"}, "spec": {"selector": {"app": "web"}, "ports": [{"port": 80}]}});
    stage
        .create("/api/v1/namespaces/default/services", service)
        .await;
    let pods = "/api/v1/namespaces/default/pods";
    for (name, ip, autonomy) in [("kept", "10.0.0.1", "1h"), ("lost", "10.0.0.2", "")] {
        let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "annotations": {annotations::AUTONOMY_DURATION: autonomy}}});
        stage.create("/api/v1/nodes", node).await;
        let now = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        let ready = json!({"status": {"conditions": [{"type": "Ready", "status": "True", "lastHeartbeatTime": now, "lastTransitionTime": now}]}});
        stage
            .kube
            .merge(&format!("/api/v1/nodes/{name}/status"), &ready)
            .await
            .expect("reported");
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": "web"}},
            "spec": {"nodeName": name, "containers": [{"name": "a", "image": "a"}]}});
        stage.create(pods, pod).await;
        let status = json!({"status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}], "conditions": [
            {"type": "Ready", "status": "True", "lastTransitionTime": now}, {"type": "ContainersReady", "status": "True", "lastTransitionTime": now}]}});
        stage
            .kube
            .merge(&format!("{pods}/{name}/status"), &status)
            .await
            .expect("reported");
    }
    // The nodes fall silent: nobody reports any more, and their pods are taken for not ready.
    for name in ["kept", "lost"] {
        stage
            .until(&format!("{pods}/{name}"), |pod| {
                let ready = yurt_controller::condition::find(&pod["status"], "Ready");
                ready.is_some_and(|ready| ready["status"] == "False")
            })
            .await;
    }
    let slices = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices";
    let ready_of = |list: &Value, wanted: &str| {
        let slices = yurt_controller::fields::items(&list["items"]);
        let mut endpoints =
            slices.flat_map(|slice| yurt_controller::fields::items(&slice["endpoints"]));
        endpoints
            .find(|endpoint| endpoint["targetRef"]["name"] == wanted)
            .map(|endpoint| endpoint["conditions"]["ready"] == true)
    };
    stage
        .until(slices, |list| {
            ready_of(list, "kept") == Some(true) && ready_of(list, "lost") == Some(false)
        })
        .await;
    let endpoints = "/api/v1/namespaces/default/endpoints/web";
    stage
        .until(endpoints, |endpoints| {
            let of = |field: &str| endpoints["subsets"][0][field][0]["ip"].clone();
            of("addresses") == "10.0.0.1" && of("notReadyAddresses") == "10.0.0.2"
        })
        .await;
}

#[tokio::test]
async fn what_api_servers_are_told_is_put_right() {
    let scene = Scene::start().await;
    let stage = &scene.stage;
    // What OpenYurt left there: a webhook that nobody serves any more, an old list.
    let hook = |name: &str| {
        json!({"name": name, "failurePolicy": "Fail", "sideEffects": "None", "admissionReviewVersions": ["v1"],
        "clientConfig": {"service": {"namespace": "kube-system", "name": "yurt-manager-webhook-service", "path": "/gone"}},
        "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["configmaps"]}]})
    };
    let path = format!("{CONFIGURATIONS}/mutatingwebhookconfigurations");
    stage
        .create(&path, json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingWebhookConfiguration",
            "metadata": {"name": MUTATING_WEBHOOKS, "annotations": {"yurt-manager-template": "[]", "mine": "x"}},
            "webhooks": [hook("gone.openyurt.io"), hook("m.v1beta2.nodepool.kb.io")]}))
        .await;
    // Another's definition with a webhook of its own.
    let versions: Value = ["v1", "v2"]
        .map(|name| {
            json!({"name": name, "served": true, "storage": name == "v1", "schema": {"openAPIV3Schema": {"type": "object"}}})
        })
        .into_iter()
        .collect();
    let foreign = json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": "others.example.com"},
        "spec": {"group": "example.com", "scope": "Cluster", "names": {"plural": "others", "singular": "other", "kind": "Other", "listKind": "OtherList"},
            "versions": versions, "conversion": {"strategy": "Webhook", "webhook": {"conversionReviewVersions": ["v1"],
                "clientConfig": {"service": {"namespace": "default", "name": "other", "path": "/convert"}}}}}});
    stage.create(&CRDS.path(""), foreign).await;
    let mut options = Options::default();
    options.disable("pod").expect("known");
    let _manager = scene.served(options).await;
    let one = format!("{path}/{MUTATING_WEBHOOKS}");
    let names = |c: &Value| -> Vec<String> {
        let hooks = yurt_controller::fields::items(&c["webhooks"]);
        hooks
            .map(|hook| yurt_controller::fields::text(&hook["name"]))
            .collect()
    };
    let right = |c: &Value| {
        let names = names(c);
        names.len() == 7
            && !names
                .iter()
                .any(|name| name.contains("gone") || name.contains(".pod."))
            && c["metadata"]["annotations"]["yurt-manager-template"].is_null()
            && c["webhooks"][4]["failurePolicy"] == "Fail"
            && c["webhooks"][4]["namespaceSelector"] == json!({})
    };
    let taken = stage.until(&one, right).await;
    assert_eq!(
        taken["metadata"]["annotations"]["mine"], "x",
        "what is others' stays"
    );
    let manager = yurt_controller::fields::items(&taken["metadata"]["managedFields"])
        .any(|entry| entry["manager"] == MANAGER);
    assert!(manager, "{taken}");
    // Others meddle.
    let meddle = json!([{"op": "replace", "path": "/webhooks/4/failurePolicy", "value": "Ignore"},
        {"op": "add", "path": "/webhooks/4/namespaceSelector/matchLabels", "value": {"a": "b"}},
        {"op": "add", "path": "/webhooks/-", "value": hook("more.openyurt.io")}]);
    stage.kube.json_patch(&one, &meddle).await.expect("patched");
    stage.until(&one, right).await;
    stage.kube.delete(&one).await.expect("deleted");
    stage.until(&one, right).await;
    let definition = format!("{}/nodepools.apps.openyurt.io", CRDS.path(""));
    stage
        .kube
        .merge(
            &definition,
            &json!({"spec": {"conversion": {"strategy": "None", "webhook": null}}}),
        )
        .await
        .expect("patched");
    stage
        .until(&definition, |crd| {
            crd["spec"]["conversion"]["strategy"] == "Webhook"
        })
        .await;
    let foreign = stage
        .kube
        .get(&format!("{}/others.example.com", CRDS.path("")))
        .await
        .expect("there");
    let client = &foreign["spec"]["conversion"]["webhook"]["clientConfig"];
    assert!(client["caBundle"].is_null(), "{client}");
    assert_eq!(client["service"]["name"], "other");
}

#[tokio::test]
async fn replicas_agree_on_one_ca() {
    let scene = Scene::start().await;
    // As OpenYurt's chart makes it.
    let empty = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": WEBHOOK_CERTIFICATES, "labels": {"chart": "x"}}});
    scene.stage.create(SECRET, empty).await;
    let (a, b, c) = tokio::join!(
        scene.manager(Options::default()),
        scene.manager(Options::default()),
        scene.manager(Options::default()),
    );
    let secret = scene
        .stage
        .kube
        .get(&format!("{SECRET}/{WEBHOOK_CERTIFICATES}"))
        .await
        .expect("there");
    for key in [
        "ca-cert.pem",
        "ca-key.pem",
        "cert.pem",
        "key.pem",
        "tls.crt",
        "tls.key",
    ] {
        assert!(secret["data"][key].is_string(), "{key}");
    }
    for manager in [&a, &b, &c] {
        let bundle = manager
            .webhooks
            .certificate
            .borrow()
            .clone()
            .expect("ready");
        assert_eq!(
            secret["data"]["ca-cert.pem"],
            STANDARD.encode(&bundle.authorities)
        );
        assert_eq!(secret["data"]["tls.crt"], STANDARD.encode(&bundle.own.cert));
    }
    assert_eq!(secret["metadata"]["labels"]["chart"], "x");
    // Whoever is asked is believed.
    scene.told(&a).await;
    for (i, manager) in [&a, &b, &c].into_iter().enumerate() {
        *scene.service.lock().expect("no panic") = Some(manager.webhooks.address());
        let pool = json!({"apiVersion": "apps.openyurt.io/v1beta2", "kind": "NodePool", "metadata": {"name": format!("p{i}")}});
        let pool = scene.stage.create(POOLS, pool).await;
        assert_eq!(pool["spec"]["type"], "Edge");
    }
}

#[tokio::test]
async fn a_new_ca_comes_without_a_failed_request() {
    let scene = Scene::start().await;
    let terms = super::Terms {
        ca_days: 30,
        certificate_days: 30,
        overlap: Duration::from_secs(1),
    };
    let options = Options {
        terms,
        ..Options::default()
    };
    let manager = scene.served(options).await;
    let first = manager
        .webhooks
        .certificate
        .borrow()
        .clone()
        .expect("ready");
    let stage = &scene.stage;
    let pool = |i: usize| json!({"apiVersion": "apps.openyurt.io/v1beta2", "kind": "NodePool", "metadata": {"name": format!("p{i}")}});
    let done = Arc::new(AtomicBool::new(false));
    let asking = tokio::spawn({
        let (kube, done) = (stage.kube.clone(), done.clone());
        async move {
            let mut asked = 0;
            while !done.load(Ordering::Relaxed) {
                asked += 1;
                kube.create(POOLS, &pool(asked))
                    .await
                    .expect("served all the time");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            asked
        }
    });
    let secret = format!("{SECRET}/{WEBHOOK_CERTIFICATES}");
    let authorities = |secret: &Value| {
        let text = secret["data"]["ca-cert.pem"].as_str().unwrap_or_default();
        String::from_utf8(STANDARD.decode(text).expect("base64")).expect("text")
    };
    let count = |secret: &Value| authorities(secret).matches("BEGIN CERTIFICATE").count();
    scene.ahead.store(21 * DAY, Ordering::Relaxed);
    stage.until(&secret, |secret| count(secret) == 2).await;
    scene.ahead.store(0, Ordering::Relaxed);
    let last = stage.until(&secret, |secret| count(secret) == 1).await;
    assert_ne!(authorities(&last), first.authorities);
    scene.told(&manager).await;
    done.store(true, Ordering::Relaxed);
    assert!(asking.await.expect("no failure") > 10);
}

#[tokio::test]
async fn without_a_manager_nodes_pods_and_endpoints_are_written() {
    let scene = Scene::start().await;
    let manager = scene.served(Options::default()).await;
    let stage = &scene.stage;
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"}});
    stage.create("/api/v1/nodes", node).await;
    *scene.service.lock().expect("no panic") = None;
    drop(manager);
    let label = json!({"metadata": {"labels": {labels::NODE_POOL: "a"}}});
    stage
        .kube
        .merge("/api/v1/nodes/n1", &label)
        .await
        .expect("written");
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {"containers": [{"name": "a", "image": "a"}]}});
    stage.create("/api/v1/namespaces/default/pods", pod).await;
    let endpoints = json!({"apiVersion": "v1", "kind": "Endpoints", "metadata": {"name": "e"}, "subsets": [
        {"notReadyAddresses": [{"ip": "10.0.0.1"}], "ports": [{"port": 80}]}]});
    stage
        .create("/api/v1/namespaces/default/endpoints", endpoints)
        .await;
    let why = scene
        .refused(POOLS, &json!({"apiVersion": "apps.openyurt.io/v1beta2", "kind": "NodePool", "metadata": {"name": "a"}}))
        .await;
    assert!(why.contains("failed calling webhook"), "{why}");
}

/// Sends something to a manager, as an API server would; the code and the text of the answer.
async fn send(manager: &Manager, method: &str, path: &str, body: String) -> (u16, String) {
    let bundle = manager
        .webhooks
        .certificate
        .borrow()
        .clone()
        .expect("ready");
    let tls = yurt_pki::client_config(&bundle.authorities, None, &["http/1.1"]).expect("TLS");
    let name = "yurt-manager-webhook-service.kube-system.svc:443";
    let options = yurt_transport::ClientOptions::default();
    let client = yurt_transport::Client::at(name, manager.webhooks.address(), Some(tls), options);
    let request = http::Request::builder()
        .method(method)
        .uri(path)
        .body(yurt_transport::full(body))
        .expect("a request");
    let patience = Duration::from_secs(20);
    let response = client.send(request, patience).await.expect("an answer");
    let code = response.status().as_u16();
    let body = yurt_transport::collect(response.into_body(), 1 << 20)
        .await
        .expect("a body");
    (code, String::from_utf8(body.to_vec()).expect("text"))
}

#[tokio::test]
async fn what_is_no_review_gets_a_code_and_reviews_are_counted() {
    let scene = Scene::start().await;
    let metrics = yurt_telemetry::Metrics::new("yurt-manager");
    let options = Options {
        metrics: Some(metrics.clone()),
        ..Options::default()
    };
    let manager = scene.served(options).await;
    let pods = "/mutate-core-openyurt-io-v1-pod";
    let review = |version: &str| {
        json!({"apiVersion": format!("admission.k8s.io/{version}"), "kind": "AdmissionReview",
        "request": {"uid": "u", "operation": "CREATE", "object": {"metadata": {}}}})
    };
    for (method, path, body, code) in [
        ("POST", "/", String::new(), 404),
        (
            "POST",
            "/mutate-core-openyurt-io-v1-secret",
            String::new(),
            404,
        ),
        ("GET", pods, String::new(), 405),
        ("POST", pods, String::new(), 400),
        ("POST", pods, "{}".into(), 400),
        ("POST", pods, "[".repeat(100_000), 400),
        ("POST", pods, review("v2").to_string(), 400),
        ("POST", "/convert", "{}".into(), 400),
        ("POST", pods, " ".repeat((8 << 20) + 1), 413),
        ("POST", pods, review("v1").to_string(), 200),
        ("POST", pods, review("v1beta1").to_string(), 200),
    ] {
        let (answered, text) = send(&manager, method, path, body).await;
        assert_eq!(answered, code, "{method} {path}: {text}");
        if code == 200 {
            let answer: Value = serde_json::from_str(&text).expect("JSON");
            assert_eq!(answer["response"], json!({"uid": "u", "allowed": true}));
        }
    }
    let (shown, _) = metrics.render();
    for line in [
        format!("controller_runtime_webhook_requests_total{{webhook=\"{pods}\",code=\"200\"}} 2"),
        format!("controller_runtime_webhook_requests_total{{webhook=\"{pods}\",code=\"413\"}} 1"),
        format!("controller_runtime_webhook_latency_seconds_count{{webhook=\"{pods}\"}} "),
        "controller_runtime_webhook_requests_in_flight 0".into(),
        "webhook_certificate_expiration_timestamp_seconds ".into(),
    ] {
        assert!(shown.contains(&line), "{line} is missing in\n{shown}");
    }
    assert!(
        !shown.contains("webhook=\"/\""),
        "a label for what anybody asks"
    );
}

#[tokio::test]
async fn a_host_stands_for_the_service() {
    let scene = Scene::start().await;
    let host = Options {
        host: Some("127.0.0.1".into()),
        ..Options::default()
    };
    // The service leads nowhere.
    let manager = scene.manager(host).await;
    scene.told(&manager).await;
    let old = POOLS.replace("v1beta2", "v1alpha1");
    let pool = json!({"apiVersion": "apps.openyurt.io/v1alpha1", "kind": "NodePool", "metadata": {"name": "a"}, "spec": {}});
    let pool = scene.stage.create(&old, pool).await;
    assert_eq!(pool["metadata"]["labels"][labels::NODE_POOL_TYPE], "edge");
    let path = format!("{}/nodepools.apps.openyurt.io", CRDS.path(""));
    let crd = scene.stage.kube.get(&path).await.expect("there");
    let client = &crd["spec"]["conversion"]["webhook"]["clientConfig"];
    assert!(client["service"].is_null(), "{client}");
    // Back to the service.
    drop(manager);
    let _manager = scene.served(Options::default()).await;
    let service = "/spec/conversion/webhook/clientConfig/service/name";
    let path = format!("{}/nodepools.apps.openyurt.io", CRDS.path(""));
    scene
        .stage
        .until(&path, |crd| crd.pointer(service).is_some())
        .await;
    let read = scene
        .stage
        .kube
        .get(&format!("{old}/a"))
        .await
        .expect("converted");
    assert_eq!(read["spec"]["type"], "Edge");
}
