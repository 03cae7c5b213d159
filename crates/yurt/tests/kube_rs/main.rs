//! Controllers written with kube-rs, as its users write them, against the embedded API server over TLS: what an independent client
//! library expects of an API server.

mod greeting;

use futures::{StreamExt, TryStreamExt};
use greeting::{Greeting, GreetingSpec, Replica};
use k8s_openapi::{
    api::{
        coordination::v1::Lease,
        core::v1::{ConfigMap, Event, Namespace},
    },
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{
    Api, Client, Config, CustomResourceExt, Discovery, ResourceExt,
    api::{DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
    core::Status,
    discovery::Scope,
    runtime::{
        WatchStreamExt,
        wait::{Condition, await_condition, conditions},
        watcher,
    },
};
use serde_json::json;
use std::time::Duration;
use tokio_util::sync::{CancellationToken, DropGuard};
use yurt_apiserver::{ApiServer, Running, Tls, authn::User};
use yurt_pki::{Ca, Profile};

/// How long a test waits for what must come.
const PATIENCE: Duration = Duration::from_secs(60);

struct Cluster {
    client: Client,
    _api: Running,
    _shutdown: DropGuard,
}

/// An API server with TLS, and a client made from a kubeconfig.
async fn cluster() -> Cluster {
    let ca = Ca::new("kube-rs test", 1).expect("CA");
    let serving = ca
        .issue(&Profile {
            common_name: "kube-apiserver".into(),
            dns: vec!["localhost".into()],
            ips: vec!["127.0.0.1".parse().expect("an address")],
            server: true,
            days: 1,
            ..Profile::default()
        })
        .expect("serving certificate");
    let shutdown = CancellationToken::new();
    let admin = User {
        name: "admin".into(),
        groups: vec!["system:masters".into(), "system:authenticated".into()],
        ..User::default()
    };
    let config = yurt_apiserver::Config {
        tls: Some(Tls {
            serving,
            client_ca: None,
        }),
        tokens: vec![("admin-token".into(), admin)],
        ..yurt_apiserver::Config::default()
    };
    let api = ApiServer::start(config, shutdown.clone())
        .await
        .expect("API server");
    let kubeconfig = yurt_controller::kubeconfig::render(
        "test",
        &format!("https://{}", api.addr()),
        &ca.cert_pem(),
        &yurt_controller::kubeconfig::Credentials::Token("admin-token"),
    );
    let kubeconfig = Kubeconfig::from_yaml(&kubeconfig).expect("kubeconfig");
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
        .await
        .expect("client configuration");
    Cluster {
        client: Client::try_from(config).expect("client"),
        _api: api,
        _shutdown: shutdown.drop_guard(),
    }
}

async fn install(client: &Client) {
    let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
    let apply = PatchParams::apply("installer");
    definitions
        .patch(Greeting::crd_name(), &apply, &Patch::Apply(Greeting::crd()))
        .await
        .expect("CRD");
    let established = await_condition(
        definitions,
        Greeting::crd_name(),
        conditions::is_crd_established(),
    );
    tokio::time::timeout(PATIENCE, established)
        .await
        .expect("in time")
        .expect("established");
}

/// Waits until an object is as wanted, by a watch.
async fn until<K>(api: &Api<K>, name: &str, wanted: impl Condition<K>) -> Option<K>
where
    K: Clone
        + std::fmt::Debug
        + Send
        + serde::de::DeserializeOwned
        + kube::Resource<DynamicType = ()>
        + 'static,
{
    tokio::time::timeout(PATIENCE, await_condition(api.clone(), name, wanted))
        .await
        .unwrap_or_else(|_| panic!("{name} did not become as wanted"))
        .expect("a watch")
}

fn api_error(error: kube::Error) -> Status {
    match error {
        kube::Error::Api(response) => *response,
        other => panic!("no Status: {other}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_controller_with_finalizer_apply_and_leader_election() {
    let cluster = cluster().await;
    let client = &cluster.client;
    install(client).await;

    let first = Replica::start(client, "first");
    let leases: Api<Lease> = Api::namespaced(client.clone(), "default");
    let led_by = |who: &'static str| {
        move |lease: Option<&Lease>| {
            lease.and_then(|l| l.spec.as_ref()?.holder_identity.as_deref()) == Some(who)
        }
    };
    until(&leases, greeting::LEASE, led_by("first")).await;
    let second = Replica::start(client, "second");

    // The leader makes the config map and reports.
    let greetings: Api<Greeting> = Api::namespaced(client.clone(), "default");
    let spec = GreetingSpec {
        who: "edge".into(),
        times: None,
    };
    let created = greetings
        .create(&PostParams::default(), &Greeting::new("hello", spec))
        .await
        .expect("created");
    assert_eq!(created.spec.times, Some(1), "the schema's default");
    let greeted = |by: &'static str| {
        move |greeting: Option<&Greeting>| {
            greeting
                .and_then(|g| g.status.as_ref())
                .map(|s| s.by.as_str())
                == Some(by)
        }
    };
    let greeting = until(&greetings, "hello", greeted("first"))
        .await
        .expect("it is there");
    assert_eq!(greeting.finalizers(), [greeting::FINALIZER]);
    let config_maps: Api<ConfigMap> = Api::namespaced(client.clone(), "default");
    let made = config_maps.get("hello").await.expect("config map");
    assert_eq!(made.owner_references().len(), 1);
    let data = |map: &ConfigMap| map.data.clone().unwrap_or_default()["text"].clone();
    assert_eq!(data(&made), "hello edge");

    // Another manager may not change what is applied, unless it insists; then the controller takes it back.
    let mine = json!({"apiVersion": "v1", "kind": "ConfigMap", "data": {"text": "mine"}});
    let refused = config_maps
        .patch(
            "hello",
            &PatchParams::apply("someone"),
            &Patch::Apply(&mine),
        )
        .await
        .expect_err("a conflict");
    let refused = api_error(refused);
    assert_eq!((refused.code, refused.reason.as_str()), (409, "Conflict"));
    assert!(
        refused
            .message
            .contains("conflict with \"greeter\": .data.text"),
        "{}",
        refused.message
    );
    config_maps
        .patch(
            "hello",
            &PatchParams::apply("someone").force(),
            &Patch::Apply(&mine),
        )
        .await
        .expect("forced");
    let again = until(&config_maps, "hello", |map: Option<&ConfigMap>| {
        map.is_some_and(|map| data(map) == "hello edge")
    });
    again.await;

    // The leader steps down; the other goes on where it was.
    first.stop().await;
    until(&leases, greeting::LEASE, led_by("second")).await;
    let twice = json!({"spec": {"times": 2}});
    greetings
        .patch("hello", &PatchParams::default(), &Patch::Merge(&twice))
        .await
        .expect("patched");
    until(&greetings, "hello", greeted("second")).await;

    // The finalizer holds the object until the clean-up is done.
    let uid = greeting.uid().expect("a UID");
    greetings
        .delete("hello", &DeleteParams::default())
        .await
        .expect("deleted");
    until(&greetings, "hello", conditions::is_deleted(&uid)).await;
    let farewell = config_maps
        .get("farewell")
        .await
        .expect("the clean-up's trace");
    assert_eq!(data(&farewell), "goodbye edge");
    second.stop().await;

    let events: Api<Event> = Api::namespaced(client.clone(), "default");
    let events = events.list(&ListParams::default()).await.expect("events");
    assert!(
        events
            .items
            .iter()
            .any(|event| event.reason.as_deref() == Some("Greeted")),
        "events.k8s.io and core events are the same objects"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_schema_forbids_is_refused_with_causes() {
    let cluster = cluster().await;
    install(&cluster.client).await;
    let greetings: Api<Greeting> = Api::namespaced(cluster.client.clone(), "default");
    let spec = GreetingSpec {
        who: String::new(),
        times: Some(100),
    };
    let refused = greetings
        .create(&PostParams::default(), &Greeting::new("bad", spec))
        .await
        .expect_err("refused");
    let refused = api_error(refused);
    assert_eq!((refused.code, refused.reason.as_str()), (422, "Invalid"));
    for part in ["spec.who", "spec.times"] {
        assert!(refused.message.contains(part), "{}", refused.message);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watchers_of_both_kinds_and_pages_see_the_same() {
    let cluster = cluster().await;
    let config_maps: Api<ConfigMap> = Api::namespaced(cluster.client.clone(), "default");
    for number in 0..25 {
        let map: ConfigMap = serde_json::from_value(json!({"metadata": {
            "name": format!("map-{number:02}"), "labels": {"test": "pages"}}}))
        .expect("a config map");
        config_maps
            .create(&PostParams::default(), &map)
            .await
            .expect("created");
    }
    let selection = watcher::Config::default().labels("test=pages");
    for config in [selection.clone().page_size(10), selection.streaming_lists()] {
        let told = watcher(config_maps.clone(), config)
            .applied_objects()
            .take(25)
            .map_ok(|map| map.name_any())
            .try_collect::<Vec<_>>();
        let mut told = tokio::time::timeout(PATIENCE, told)
            .await
            .expect("in time")
            .expect("a stream");
        told.sort();
        assert_eq!(told.first().map(String::as_str), Some("map-00"));
        assert_eq!(told.last().map(String::as_str), Some("map-24"));
    }
    let first = config_maps
        .list(&ListParams::default().labels("test=pages").limit(10))
        .await
        .expect("a page");
    assert_eq!(first.items.len(), 10);
    assert_eq!(
        first.metadata.remaining_item_count, None,
        "unknown with a selector"
    );
    let rest = ListParams::default()
        .labels("test=pages")
        .continue_token(&first.metadata.continue_.expect("a token"));
    assert_eq!(
        config_maps.list(&rest).await.expect("the rest").items.len(),
        15
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_discovered_can_be_listed() {
    let cluster = cluster().await;
    let discovery = Discovery::new(cluster.client.clone())
        .run_aggregated()
        .await
        .expect("discovery");
    let mut listed = 0;
    for group in discovery.groups() {
        for (resource, capabilities) in group.recommended_resources() {
            if !capabilities.supports_operation(kube::discovery::verbs::LIST) {
                continue;
            }
            let api: Api<DynamicObject> = match capabilities.scope {
                Scope::Cluster => Api::all_with(cluster.client.clone(), &resource),
                Scope::Namespaced => {
                    Api::namespaced_with(cluster.client.clone(), "default", &resource)
                }
            };
            api.list(&ListParams::default())
                .await
                .unwrap_or_else(|error| panic!("{}: {error}", resource.plural));
            listed += 1;
        }
    }
    assert!(listed > 40, "{listed} resources");
    let namespaces: Api<Namespace> = Api::all(cluster.client.clone());
    let metadata = namespaces
        .list_metadata(&ListParams::default())
        .await
        .expect("metadata only");
    assert!(metadata.items.iter().any(|n| n.name_any() == "kube-system"));
}
