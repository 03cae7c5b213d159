//! The webhooks as API servers have them: asked over TLS, by the service that the configurations name.

mod admission;
mod configuration;
mod endpoints;
mod requests;

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
