//! A stage for the manager's controllers, with native ones beside them.

use crate::{CONTROLLERS, Context, Settings, names, start_in};
use serde_json::{Value, json};
use std::{
    collections::HashMap,
    ops::{Deref, DerefMut},
    sync::Arc,
    time::Duration,
};
use yurt_api::crd;
use yurt_controller::{
    collections::{CRDS, NODE_POOLS},
    kube::{KubeError, Token},
    policy::Rule,
    selection,
};
use yurt_controlplane as native;

/// An API server with OpenYurt's definitions and some controllers.
pub(crate) struct Stage(native::stage::Stage);

impl Deref for Stage {
    type Target = native::stage::Stage;

    fn deref(&self) -> &native::stage::Stage {
        &self.0
    }
}

impl DerefMut for Stage {
    fn deref_mut(&mut self) -> &mut native::stage::Stage {
        &mut self.0
    }
}

/// The manager's controllers of a list, and the native ones.
fn selected(controllers: &str) -> (selection::Selection, native::Selection) {
    let ours = |item: &&str| CONTROLLERS.iter().any(|entry| entry.names.name == *item);
    let (ours, others): (Vec<&str>, Vec<&str>) = controllers.split(',').partition(ours);
    let ours = selection::Selection::parse(&ours.join(","), names()).expect("known controllers");
    let others: native::Selection = others.join(",").parse().expect("known controllers");
    (ours, others)
}

/// Starts the controllers of a list: the manager's, and native ones.
fn starting(controllers: &str, settings: Settings) -> impl FnOnce(&Arc<Context>) + use<> {
    let (ours, others) = selected(controllers);
    move |context| {
        native::start_in(&others, &native::Settings::default(), context);
        start_in(&ours, &settings, |_| context.clone());
    }
}

impl Stage {
    /// Starts the controllers of a list (names, no `*`).
    pub(crate) async fn start(controllers: &str) -> Self {
        Self::start_with(controllers, Settings::default()).await
    }

    /// [`Stage::start`] of controllers that are told something.
    pub(crate) async fn start_with(controllers: &str, settings: Settings) -> Self {
        let stage = native::stage::Stage::of(|_| {}).await;
        for definition in crd::DEFINITIONS {
            let definition = definition.render(&crd::Conversion::None);
            stage.create(&CRDS.path(""), definition.clone()).await;
            served(&stage, &definition).await;
        }
        let mut stage = Self(stage);
        stage.0.restart_with(starting(controllers, settings));
        stage
    }

    /// [`Stage::start_with`], with each of the manager's controllers under an account that may do what it declares and nothing else.
    pub(crate) async fn start_confined(controllers: &str, settings: Settings) -> Self {
        let mut stage = Box::pin(Self::start_with("", Settings::default())).await;
        let (selection, others) = selected(controllers);
        let mut tokens = HashMap::new();
        for entry in CONTROLLERS {
            let name = entry.names.name;
            if !selection.names(name) {
                continue;
            }
            let rules: Vec<Value> = entry.rules.iter().map(Rule::to_json).collect();
            let role = json!({"metadata": {"name": name}, "rules": rules});
            let binding = json!({"metadata": {"name": name},
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name},
                "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": "kube-system"}]});
            let rbac = "/apis/rbac.authorization.k8s.io/v1";
            stage.create(&format!("{rbac}/clusterroles"), role).await;
            stage
                .create(&format!("{rbac}/clusterrolebindings"), binding)
                .await;
            let accounts = "/api/v1/namespaces/kube-system/serviceaccounts";
            stage
                .create(accounts, json!({"metadata": {"name": name}}))
                .await;
            let request = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": 3600}});
            let granted = stage
                .create(&format!("{accounts}/{name}/token"), request)
                .await;
            let token = granted["status"]["token"].as_str().expect("a token");
            tokens.insert(name, Token::new(token));
        }
        stage.0.restart_with(|context| {
            native::start_in(&others, &native::Settings::default(), context);
            start_in(&selection, &settings, |entry| {
                let token = tokens[entry.names.name].clone();
                context.writing_as(context.kube().with_token(token))
            });
        });
        stage
    }

    /// Ends the controllers and starts others on the same API server, as after a crash: what they knew is gone.
    pub(crate) fn restart(&mut self, controllers: &str) {
        self.0
            .restart_with(starting(controllers, Settings::default()));
    }

    /// Creates pools of the edge that share what they read, with one leader.
    pub(crate) async fn define_pools(&self, names: &[&str]) {
        for name in names {
            self.create(&NODE_POOLS.path(""), pool(name)).await;
        }
    }
}

/// A pool of the edge that shares what it reads, with one leader, as the webhook completes it.
pub(crate) fn pool(name: &str) -> Value {
    json!({"metadata": {"name": name, "labels": {"nodepool.openyurt.io/type": "edge"}},
        "spec": {"type": "Edge", "interConnectivity": true, "enableLeaderElection": true,
            "leaderElectionStrategy": "random", "leaderReplicas": 1,
            "poolScopeMetadata": [{"group": "", "version": "v1", "resource": "services"},
                {"group": "discovery.k8s.io", "version": "v1", "resource": "endpointslices"}]}})
}

/// Waits until a definition is served.
async fn served(stage: &native::stage::Stage, definition: &Value) {
    let spec = &definition["spec"];
    let versions = spec["versions"].as_array().expect("versions");
    let served = versions.iter().filter(|version| version["served"] == true);
    for version in served {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let path = format!(
            "/apis/{}/{}/{}",
            text(&spec["group"]),
            text(&version["name"]),
            text(&spec["names"]["plural"])
        );
        while stage
            .kube
            .get(&path)
            .await
            .as_ref()
            .is_err_and(KubeError::is_not_found)
        {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}
