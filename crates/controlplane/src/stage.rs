//! Where controllers are tested: an API server in memory, some controllers, and a test that plays everybody else.

use crate::{Selection, Settings, start_in};
use serde_json::{Value, json};
use std::{fmt, sync::Arc, time::Duration};
use tokio_util::sync::{CancellationToken, DropGuard};
use yurt_apiserver::{ApiServer, Config, Running, authn::User};
use yurt_controller::{Context, kube::Kube};

/// How long a test waits for what must come. Generous: it only shows when it does not come.
const PATIENCE: Duration = Duration::from_secs(30);

/// A node, and the token by which it is known to the API server.
pub const NODE: &str = "n";

/// An API server with some controllers.
pub struct Stage {
    /// The administrator.
    pub kube: Kube,
    /// The controllers'.
    pub context: Arc<Context>,
    /// Ends the controllers.
    controllers: DropGuard,
    api: Running,
    _shutdown: DropGuard,
}

impl fmt::Debug for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stage").finish_non_exhaustive()
    }
}

fn begin(kube: &Kube, start: impl FnOnce(&Arc<Context>)) -> (Arc<Context>, DropGuard) {
    let shutdown = CancellationToken::new();
    let context = Context::new(kube.clone(), shutdown.clone());
    start(&context);
    (context, shutdown.drop_guard())
}

impl Stage {
    /// Starts native controllers named as in `--controllers`.
    pub async fn start(controllers: &str) -> Self {
        Self::start_with(controllers, Settings::default()).await
    }

    /// [`Stage::start`] of controllers that are told something.
    pub async fn start_with(controllers: &str, settings: Settings) -> Self {
        let selection: Selection = controllers.parse().expect("known controllers");
        Self::of(|context| start_in(&selection, &settings, context)).await
    }

    /// An API server and what `start` starts.
    pub async fn of(start: impl FnOnce(&Arc<Context>)) -> Self {
        Self::of_server(Config::default(), start).await
    }

    /// [`Stage::of`] an API server that is told something.
    pub async fn of_server(mut config: Config, start: impl FnOnce(&Arc<Context>)) -> Self {
        let shutdown = CancellationToken::new();
        let admin = User {
            name: "admin".into(),
            groups: vec!["system:masters".into(), "system:authenticated".into()],
            ..User::default()
        };
        let node = User {
            name: format!("system:node:{NODE}"),
            groups: vec!["system:nodes".into(), "system:authenticated".into()],
            ..User::default()
        };
        config
            .tokens
            .extend([("admin".into(), admin), (NODE.into(), node)]);
        let api = ApiServer::start(config, shutdown.clone())
            .await
            .expect("API server");
        let kube = Kube::in_process(
            api.in_process().into_call(),
            "admin",
            Duration::from_secs(30),
        );
        let (context, controllers) = begin(&kube, start);
        Self {
            kube,
            context,
            controllers,
            api,
            _shutdown: shutdown.drop_guard(),
        }
    }

    /// Ends the controllers and starts others on the same API server, as after a crash: what they knew is gone.
    pub fn restart_with(&mut self, start: impl FnOnce(&Arc<Context>)) {
        let (context, guard) = begin(&self.kube, start);
        self.context = context;
        drop(std::mem::replace(&mut self.controllers, guard));
    }

    /// [`Stage::restart_with`] native controllers that are told nothing.
    pub async fn restart(mut self, controllers: &str) -> Self {
        let selection: Selection = controllers.parse().expect("known controllers");
        self.restart_with(|context| start_in(&selection, &Settings::default(), context));
        self
    }

    /// The API server.
    pub fn api(&self) -> &Running {
        &self.api
    }

    /// Creates an object and panics with the server's message when it is refused.
    pub async fn create(&self, path: &str, object: Value) -> Value {
        self.kube.create(path, &object).await.expect("created")
    }

    /// Polls an object or a list until it is as wanted; panics with the last one when it never is.
    pub async fn until(&self, path: &str, wanted: impl Fn(&Value) -> bool) -> Value {
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
    pub async fn quiet(&self, path: &str) {
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
    pub async fn report(&self, namespace: &str, pod: &str, phase: &str, ready: bool) {
        let there = self.try_report(namespace, pod, phase, ready).await;
        assert!(there, "no pod {pod}");
    }

    /// [`Stage::report`] of a pod that may be gone by now; whether it was there.
    pub async fn try_report(&self, namespace: &str, pod: &str, phase: &str, ready: bool) -> bool {
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
