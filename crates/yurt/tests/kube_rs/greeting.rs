//! A small operator: for each `Greeting` a config map, by server-side apply, with a finalizer, by one leader of several replicas.

use futures::StreamExt;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api, Client, CustomResource, Resource, ResourceExt,
    api::{Patch, PatchParams},
    runtime::{
        Controller,
        controller::Action,
        events::{Event, EventType, Recorder, Reporter},
        finalizer, watcher,
    },
};
use kube_leader_election::{LeaseLock, LeaseLockParams, LeaseLockResult};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::{sync::Arc, time::Duration};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// The lock of the replicas.
pub(crate) const LEASE: &str = "greeter";
/// What holds greetings until they are cleaned up.
pub(crate) const FINALIZER: &str = "test.yurt.dev/farewell";

/// Whom to greet.
#[derive(CustomResource, Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "test.yurt.dev",
    version = "v1",
    kind = "Greeting",
    namespaced,
    status = "GreetingStatus",
    shortname = "gr",
    printcolumn = r#"{"name": "By", "type": "string", "jsonPath": ".status.by"}"#
)]
pub(crate) struct GreetingSpec {
    /// Whom.
    #[schemars(length(min = 1))]
    pub(crate) who: String,
    /// How often.
    #[schemars(range(max = 10))]
    #[serde(default = "once", skip_serializing_if = "Option::is_none")]
    pub(crate) times: Option<u32>,
}

fn once() -> Option<u32> {
    Some(1)
}

/// What was done.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub(crate) struct GreetingStatus {
    /// The replica that greeted.
    pub(crate) by: String,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error(transparent)]
    Kube(#[from] kube::Error),
    #[error("finalizer: {0}")]
    Finalizer(#[from] Box<finalizer::Error<kube::Error>>),
}

struct Context {
    client: Client,
    name: &'static str,
}

fn text(name: &str, words: &str, who: &str) -> serde_json::Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name},
        "data": {"text": format!("{words} {who}")}})
}

async fn greet(greeting: Arc<Greeting>, context: Arc<Context>) -> Result<Action, kube::Error> {
    let namespace = greeting.namespace().unwrap_or_default();
    let config_maps: Api<ConfigMap> = Api::namespaced(context.client.clone(), &namespace);
    let mut map = text(&greeting.name_any(), "hello", &greeting.spec.who);
    map["metadata"]["ownerReferences"] = json!([greeting.controller_owner_ref(&())]);
    let apply = PatchParams::apply("greeter").force();
    config_maps
        .patch(&greeting.name_any(), &apply, &Patch::Apply(map))
        .await?;
    let status = json!({"apiVersion": "test.yurt.dev/v1", "kind": "Greeting",
        "status": {"by": context.name}});
    let greetings: Api<Greeting> = Api::namespaced(context.client.clone(), &namespace);
    greetings
        .patch_status(&greeting.name_any(), &apply, &Patch::Apply(status))
        .await?;
    let reporter = Reporter {
        controller: "greeter".into(),
        instance: Some(context.name.into()),
    };
    let event = Event {
        type_: EventType::Normal,
        reason: "Greeted".into(),
        note: Some(format!("by {}", context.name)),
        action: "Greet".into(),
        secondary: None,
    };
    Recorder::new(context.client.clone(), reporter)
        .publish(&event, &greeting.object_ref(&()))
        .await?;
    Ok(Action::await_change())
}

async fn farewell(greeting: Arc<Greeting>, context: Arc<Context>) -> Result<Action, kube::Error> {
    let namespace = greeting.namespace().unwrap_or_default();
    let config_maps: Api<ConfigMap> = Api::namespaced(context.client.clone(), &namespace);
    let apply = PatchParams::apply("greeter").force();
    let map = text("farewell", "goodbye", &greeting.spec.who);
    config_maps
        .patch("farewell", &apply, &Patch::Apply(map))
        .await?;
    Ok(Action::await_change())
}

async fn reconcile(greeting: Arc<Greeting>, context: Arc<Context>) -> Result<Action, Failure> {
    let namespace = greeting.namespace().unwrap_or_default();
    let greetings: Api<Greeting> = Api::namespaced(context.client.clone(), &namespace);
    finalizer::finalizer(&greetings, FINALIZER, greeting, |event| async {
        match event {
            finalizer::Event::Apply(greeting) => greet(greeting, context).await,
            finalizer::Event::Cleanup(greeting) => farewell(greeting, context).await,
        }
    })
    .await
    .map_err(|error| Failure::Finalizer(Box::new(error)))
}

async fn control(client: Client, name: &'static str) {
    let greetings: Api<Greeting> = Api::all(client.clone());
    let config_maps: Api<ConfigMap> = Api::all(client.clone());
    Controller::new(greetings, watcher::Config::default())
        .owns(config_maps, watcher::Config::default())
        .run(
            reconcile,
            |_, _, _| Action::requeue(Duration::from_millis(200)),
            Arc::new(Context { client, name }),
        )
        .for_each(|_| std::future::ready(()))
        .await;
}

/// One of several operators; it works while it leads.
pub(crate) struct Replica {
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Replica {
    pub(crate) fn start(client: &Client, name: &'static str) -> Self {
        let stop = CancellationToken::new();
        let (client, stopped) = (client.clone(), stop.clone());
        let task = tokio::spawn(async move {
            let lock = LeaseLock::new(
                client.clone(),
                "default",
                LeaseLockParams {
                    holder_id: name.into(),
                    lease_name: LEASE.into(),
                    lease_ttl: Duration::from_secs(15),
                },
            );
            let mut work: Option<JoinHandle<()>> = None;
            while !stopped.is_cancelled() {
                let leads = matches!(
                    lock.try_acquire_or_renew().await,
                    Ok(LeaseLockResult::Acquired(_))
                );
                match (leads, &work) {
                    (true, None) => work = Some(tokio::spawn(control(client.clone(), name))),
                    (false, Some(working)) => {
                        working.abort();
                        work = None;
                    }
                    _ => {}
                }
                tokio::select! {
                    () = stopped.cancelled() => {}
                    () = tokio::time::sleep(Duration::from_millis(200)) => {}
                }
            }
            if let Some(working) = work {
                working.abort();
                // Aborted: that is its end.
                let _ = working.await;
                lock.step_down().await.expect("stepped down");
            }
        });
        Self { stop, task }
    }

    /// Ends its work, then gives up the lock.
    pub(crate) async fn stop(self) {
        self.stop.cancel();
        self.task.await.expect("a replica ends by itself");
    }
}
