//! Where controllers are tested: an API server in memory, some controllers, and a test that plays everybody else.

use super::{Context, Selection, Settings};
use crate::kube::Kube;
use serde_json::{Value, json};
use std::{sync::Arc, time::Duration};
use tokio_util::sync::{CancellationToken, DropGuard};
use yurt_apiserver::{ApiServer, Config, Running, authn::User};

/// How long a test waits for what must come. Generous: it only shows when it does not come.
const PATIENCE: Duration = Duration::from_secs(30);

/// An API server with some controllers.
pub(crate) struct Stage {
    pub(crate) kube: Kube,
    pub(crate) context: Arc<Context>,
    settings: Settings,
    /// Ends the controllers.
    controllers: DropGuard,
    _api: Running,
    _shutdown: DropGuard,
}

fn controllers_of(names: &str, settings: &Settings, kube: &Kube) -> (Arc<Context>, DropGuard) {
    let selection: Selection = names.parse().expect("known controllers");
    let shutdown = CancellationToken::new();
    let context = super::start(&selection, settings.clone(), kube.clone(), shutdown.clone());
    (context, shutdown.drop_guard())
}

impl Stage {
    /// Starts the controllers named as in `--controllers`.
    pub(crate) async fn start(controllers: &str) -> Self {
        Self::start_with(controllers, Settings::default()).await
    }

    /// Starts controllers that are told something.
    pub(crate) async fn start_with(controllers: &str, settings: Settings) -> Self {
        let shutdown = CancellationToken::new();
        let admin = User {
            name: "admin".into(),
            groups: vec!["system:masters".into(), "system:authenticated".into()],
            ..User::default()
        };
        let config = Config {
            tokens: vec![("admin".into(), admin)],
            ..Config::default()
        };
        let api = ApiServer::start(config, shutdown.clone())
            .await
            .expect("API server");
        let kube = Kube::in_process(api.in_process(), "admin", Duration::from_secs(30));
        let (context, controllers) = controllers_of(controllers, &settings, &kube);
        Self {
            kube,
            context,
            settings,
            controllers,
            _api: api,
            _shutdown: shutdown.drop_guard(),
        }
    }

    /// Ends the controllers and starts others on the same API server, as after a crash: what they knew is gone.
    pub(crate) async fn restart(mut self, controllers: &str) -> Self {
        let (context, guard) = controllers_of(controllers, &self.settings, &self.kube);
        self.context = context;
        drop(std::mem::replace(&mut self.controllers, guard));
        self
    }

    /// Serves NodePools, and creates these.
    pub(crate) async fn define_pools(&self, names: &[&str]) {
        let ca = yurt_pki::Ca::new("kubernetes", 1).expect("a CA");
        let names = names.iter().copied().collect();
        let installed = crate::pools::install(&self.kube, &ca, &names).await;
        installed.expect("pools");
    }

    /// Creates an object and panics with the server's message when it is refused.
    pub(crate) async fn create(&self, path: &str, object: Value) -> Value {
        self.kube.create(path, &object).await.expect("created")
    }

    /// Polls an object or a list until it is as wanted; panics with the last one when it never is.
    pub(crate) async fn until(&self, path: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let last = match self.kube.get(path).await {
                Ok(value) => value,
                Err(error) => json!({"error": error.to_string(), "code": error.code()}),
            };
            if wanted(&last) {
                return last;
            }
            assert!(
                tokio::time::Instant::now() < deadline,
                "{path} stays {last:#}"
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// An object stays as it is when its controllers look at it again: once it is at rest, touches it and panics when anything
    /// but the touch is written.
    pub(crate) async fn quiet(&self, path: &str) {
        let revision = |object: &Value| object["metadata"]["resourceVersion"].clone();
        let (mut before, mut rest) = (Value::Null, 0);
        while rest < 5 {
            let now = revision(&self.kube.get(path).await.expect("still there"));
            rest = if now == before { rest + 1 } else { 0 };
            before = now;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let value = format!("at {before}");
        let touch = json!({"metadata": {"annotations": {"lab.test/touched": value}}});
        let touched = self.kube.merge(path, &touch).await.expect("touched");
        // What a controller writes because of this would be there by then; when it is not, the test passes wrongly, but never
        // fails wrongly.
        tokio::time::sleep(Duration::from_millis(250)).await;
        let later = self.kube.get(path).await.expect("still there");
        assert_eq!(
            revision(&later),
            revision(&touched),
            "written again without a reason: {later:#}"
        );
    }

    /// Reports a pod as a kubelet would: phase and readiness.
    pub(crate) async fn report(&self, namespace: &str, pod: &str, phase: &str, ready: bool) {
        let there = self.try_report(namespace, pod, phase, ready).await;
        assert!(there, "no pod {pod}");
    }

    /// [`Stage::report`] of a pod that may be gone by now; whether it was there.
    pub(crate) async fn try_report(
        &self,
        namespace: &str,
        pod: &str,
        phase: &str,
        ready: bool,
    ) -> bool {
        let condition = if ready { "True" } else { "False" };
        let status = json!({"status": {"phase": phase, "podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}],
            "conditions": [{"type": "Ready", "status": condition, "lastTransitionTime": "2026-01-01T00:00:00Z"}]}});
        let path = format!("/api/v1/namespaces/{namespace}/pods/{pod}/status");
        match self.kube.merge(&path, &status).await {
            Ok(_) => true,
            Err(error) if error.code() == Some(404) => false,
            Err(error) => panic!("status of {pod}: {error}"),
        }
    }
}
