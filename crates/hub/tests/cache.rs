//! Bounds of the cache: size, queue, memory, damage.

mod node;

use bytes::Bytes;
use node::{Node, fixture, query};
use serde_json::json;
use std::time::Instant;
use yurt_hub::{
    cache::{Asked, Cache, CacheConfig, Lookup},
    caller::Caller,
};
use yurt_store::StoreError;
use yurt_wire::{
    Encoding, Gvk, Gvr, Object,
    list::{self, SplitList},
};

fn service(name: &str, revision: u64, padding: usize) -> Object {
    Object {
        encoding: Encoding::Json,
        bytes: json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": name, "namespace": "default", "resourceVersion": revision.to_string(),
                "annotations": {"padding": random(padding)}},
        })
        .to_string()
        .into(),
    }
}

/// Text that does not compress.
fn random(bytes: usize) -> String {
    let mut seed = 0x2545_f491_4f6c_dd1d_u64 ^ bytes as u64;
    (0..bytes)
        .map(|_| {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            char::from(b'!' + (seed % 90) as u8).to_ascii_lowercase()
        })
        .filter(|c| *c != '"' && *c != '\\')
        .collect()
}

fn services(count: usize, revision: u64, padding: usize) -> SplitList {
    SplitList {
        gvk: Gvk::from_api_version("v1", "ServiceList"),
        resource_version: revision.to_string(),
        continue_token: String::new(),
        remaining: None,
        items: (0..count)
            .map(|i| service(&format!("s{i:05}"), revision, padding))
            .collect(),
    }
}

fn learn(cache: &Cache, caller: &Caller, path: &str, split: SplitList) {
    let mut learner = cache.list_learner(caller, &query(path));
    learner.page(split);
    learner.finish();
}

#[tokio::test]
async fn five_thousand_objects_open_at_once() {
    let node = Node::new();
    for batch in 0..10u64 {
        let namespace = format!("n{batch}");
        let mut split = services(500, 100 + batch, 600);
        for (i, item) in split.items.iter_mut().enumerate() {
            let mut value = item.to_json_value().expect("JSON");
            value["metadata"]["namespace"] = namespace.as_str().into();
            value["metadata"]["name"] = format!("s{i}").into();
            *item = Object::from_json_value(&value, Encoding::Json).expect("JSON");
        }
        learn(
            &node.cache,
            &Caller::Node,
            &format!("/api/v1/namespaces/{namespace}/services"),
            split,
        );
        node.cache.flush().await.expect("flush");
    }
    let begun = Instant::now();
    let node = node.killed();
    let opened = begun.elapsed();
    let got = node
        .cache
        .get(&Caller::Node, &Gvr::new("", "v1", "services"), "n7", "s77");
    assert!(matches!(got, Lookup::Found(_)));
    assert_eq!(node.cache.object_count(), 5000);
    let listed = node
        .cache
        .list(&Caller::Node, &query("/api/v1/namespaces/n3/services"))
        .expect("complete");
    assert_eq!(
        (listed.items.len(), listed.resource_version.as_str()),
        (500, "103")
    );
    // Not a measurement (the bench does that): only far from right would be noticed.
    assert!(opened.as_secs() < 10, "{opened:?}");
}

#[tokio::test]
async fn an_overflowing_queue_costs_completeness_and_nothing_else() {
    let dir = tempfile::tempdir().expect("a directory");
    let config = CacheConfig {
        queue_bytes: 64 << 10,
        ..CacheConfig::default()
    };
    let (cache, _) = Cache::open(dir.path(), config).expect("a cache");
    let path = "/api/v1/services";
    learn(&cache, &Caller::Node, path, services(3, 10, 100));
    cache.flush().await.expect("flush");
    assert!(cache.list(&Caller::Node, &query(path)).is_some());
    // too much at once: what found no room is unknown, so the list is
    learn(&cache, &Caller::Node, path, services(200, 20, 1000));
    assert!(cache.stats().overflowed.get() > 0);
    assert!(cache.list(&Caller::Node, &query(path)).is_none());
    cache.flush().await.expect("flush");
    let services_gvr = Gvr::new("", "v1", "services");
    assert!(matches!(
        cache.get(&Caller::Node, &services_gvr, "default", "s00001"),
        Lookup::Found(_)
    ));
    // no answer pretends to know
    assert!(matches!(
        cache.get(&Caller::Node, &services_gvr, "default", "s00199"),
        Lookup::Unknown
    ));
    drop(cache);
    let (cache, _) = Cache::open(dir.path(), CacheConfig::default()).expect("a cache");
    assert!(cache.list(&Caller::Node, &query(path)).is_none());
    learn(&cache, &Caller::Node, path, services(200, 30, 1000));
    assert_eq!(
        cache
            .list(&Caller::Node, &query(path))
            .map(|l| l.items.len()),
        Some(200)
    );
}

#[tokio::test]
async fn the_budget_takes_the_least_valuable_and_spares_the_node() {
    let dir = tempfile::tempdir().expect("a directory");
    let config = CacheConfig {
        budget_bytes: 300 << 10,
        ..CacheConfig::default()
    };
    let (cache, _) = Cache::open(dir.path(), config).expect("a cache");
    let admin = Caller::Bearer("aa".into());
    let pods = "/api/v1/pods?fieldSelector=spec.nodeName%3Dedge-1";
    let mut learner = cache.list_learner(&Caller::Node, &query(pods));
    learner.page(list::split(&fixture("list-pods.pb"), Encoding::Protobuf).expect("a list"));
    learner.finish();
    let node_object = Object {
        encoding: Encoding::Protobuf,
        bytes: fixture("get-node.pb"),
    };
    cache.learn_object(
        &Caller::Node,
        &Gvr::new("", "v1", "nodes"),
        &node_object,
        Asked::default(),
    );
    learn(&cache, &admin, "/api/v1/services", services(500, 400, 1000));
    cache.flush().await.expect("flush");
    assert!(cache.usage().live_bytes > 300 << 10);
    cache.keep_budget();
    cache.flush().await.expect("flush");
    assert!(cache.usage().live_bytes <= 300 << 10, "{:?}", cache.usage());
    assert!(cache.stats().evicted.get() > 0);
    // what an administrator looked at went, and is not taken for complete; the node's own stayed
    assert!(cache.list(&admin, &query("/api/v1/services")).is_none());
    assert_eq!(
        cache
            .list(&Caller::Node, &query(pods))
            .map(|l| l.items.len()),
        Some(3)
    );
    let got = cache.get(&Caller::Node, &Gvr::new("", "v1", "nodes"), "", "edge-1");
    assert!(matches!(got, Lookup::Found(_)));
}

#[tokio::test]
async fn a_store_that_cannot_be_read_is_moved_aside_but_not_a_locked_one() {
    let dir = tempfile::tempdir().expect("a directory");
    let at = dir.path().join("cache");
    let (cache, _) = Cache::open(&at, CacheConfig::default()).expect("a cache");
    let locked = Cache::open(&at, CacheConfig::default());
    assert!(
        matches!(locked, Err(StoreError::InUse { .. })),
        "{locked:?}"
    );
    drop(cache);
    // a file where the directory should be
    std::fs::remove_dir_all(&at).expect("removed");
    std::fs::write(&at, b"not a directory").expect("written");
    let (cache, _) = Cache::open(&at, CacheConfig::default()).expect("a fresh cache");
    learn(
        &cache,
        &Caller::Node,
        "/api/v1/services",
        services(2, 5, 10),
    );
    cache.flush().await.expect("flush");
    let aside: Vec<_> = std::fs::read_dir(dir.path())
        .expect("files")
        .filter_map(|f| f.ok()?.file_name().into_string().ok())
        .filter(|name| name.contains(".unreadable-"))
        .collect();
    assert_eq!(aside.len(), 1);
}

#[tokio::test]
async fn what_is_no_object_is_not_learned() {
    let node = Node::new();
    let pods = Gvr::new("", "v1", "pods");
    for text in [
        r#"{"kind":"Status","apiVersion":"v1","metadata":{"resourceVersion":"5","name":"x"}}"#,
        r#"{"kind":"PartialObjectMetadata","apiVersion":"meta.k8s.io/v1","metadata":{"name":"x","resourceVersion":"5"}}"#,
        r#"{"kind":"Pod","apiVersion":"v1","metadata":{"name":"x"}}"#,
        r#"{"kind":"Pod","apiVersion":"v1","metadata":{"name":"x","resourceVersion":"opaque"}}"#,
        "{",
        "",
    ] {
        let object = Object {
            encoding: Encoding::Json,
            bytes: Bytes::from_static(text.as_bytes()),
        };
        node.cache
            .learn_object(&Caller::Node, &pods, &object, Asked::default());
    }
    assert_eq!(node.cache.object_count(), 0);
    assert_eq!(node.cache.stats().malformed.get(), 6);
}

/// A burst larger than the queue gets through as long as the disk keeps up with the stream: the first WatchList of a large
/// resource comes at the speed of the network.
#[tokio::test]
async fn a_burst_larger_than_the_queue_is_complete_when_it_takes_its_time() {
    let dir = tempfile::tempdir().expect("a directory");
    let config = CacheConfig {
        queue_bytes: 256 << 10,
        ..CacheConfig::default()
    };
    let (cache, _) = Cache::open(dir.path(), config).expect("a cache");
    let path = "/api/v1/services";
    let mut watch = cache.watch_learner(&Caller::Node, &query(path), "", true);
    for (i, object) in services(1000, 50, 1000).items.into_iter().enumerate() {
        watch.event(&yurt_wire::watch::Event {
            kind: yurt_wire::watch::EventType::Added,
            object,
        });
        if i % 50 == 49 {
            cache.flush().await.expect("flush");
        }
    }
    let gvk = Gvk::from_api_version("v1", "Service");
    watch.event(&yurt_wire::watch::Event {
        kind: yurt_wire::watch::EventType::Bookmark,
        object: yurt_wire::watch::bookmark(&gvk, "60", true, Encoding::Json),
    });
    assert_eq!(cache.stats().overflowed.get(), 0);
    assert_eq!(
        cache
            .list(&Caller::Node, &query(path))
            .map(|l| l.items.len()),
        Some(1000)
    );
}

fn in_namespace(mut split: SplitList, namespace: &str) -> SplitList {
    for item in &mut split.items {
        let mut value = item.to_json_value().expect("JSON");
        value["metadata"]["namespace"] = namespace.into();
        *item = Object::from_json_value(&value, Encoding::Json).expect("JSON");
    }
    split
}

fn listed(cache: &Cache, caller: &Caller, path: &str) -> Option<usize> {
    cache.list(caller, &query(path)).map(|l| l.items.len())
}

/// Fairness: who reads a lot loses what only it reads, before who reads little loses anything.
#[tokio::test]
async fn a_greedy_reader_loses_before_modest_ones() {
    let dir = tempfile::tempdir().expect("a directory");
    let config = CacheConfig {
        budget_bytes: 200 << 10,
        ..CacheConfig::default()
    };
    let (cache, _) = Cache::open(dir.path(), config).expect("a cache");
    let [modest, greedy] = ["modest", "greedy"].map(|name| Caller::User(name.into()));
    let (few, many) = (
        "/api/v1/namespaces/few/services",
        "/api/v1/namespaces/many/services",
    );
    // The modest one read first, and its objects are the older ones.
    learn(
        &cache,
        &modest,
        few,
        in_namespace(services(30, 400, 1000), "few"),
    );
    learn(
        &cache,
        &greedy,
        many,
        in_namespace(services(300, 500, 1000), "many"),
    );
    // What both read is kept as what the modest one reads.
    learn(
        &cache,
        &greedy,
        few,
        in_namespace(services(30, 510, 1000), "few"),
    );
    cache.flush().await.expect("flush");
    cache.keep_budget();
    cache.flush().await.expect("flush");
    assert!(cache.usage().live_bytes <= 200 << 10, "{:?}", cache.usage());
    assert_eq!(listed(&cache, &modest, few), Some(30));
    assert_eq!(listed(&cache, &greedy, many), None);
}

fn pod_with_config(name: &str, node: &str, config: &str) -> Object {
    Object {
        encoding: Encoding::Json,
        bytes: json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "namespace": "default", "resourceVersion": "300"},
            "spec": {"nodeName": node, "volumes": [{"name": "c", "configMap": {"name": config}}]},
        })
        .to_string()
        .into(),
    }
}

fn config_map(name: &str, revision: u64) -> Object {
    Object {
        encoding: Encoding::Json,
        bytes: json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": name, "namespace": "default", "resourceVersion": revision.to_string()},
            "data": {"padding": random(1000)},
        })
        .to_string()
        .into(),
    }
}

/// An agent without a token on this node, which reads everything there is, pushes nothing out that pods of the node need.
#[tokio::test]
async fn one_huge_reader_pushes_out_nothing_that_pods_need() {
    let dir = tempfile::tempdir().expect("a directory");
    let config = CacheConfig {
        budget_bytes: 150 << 10,
        binding: yurt_hub::cache::Binding {
            node_name: "edge-1".into(),
            ..Default::default()
        },
        ..CacheConfig::default()
    };
    let (cache, _) = Cache::open(dir.path(), config).expect("a cache");
    let split = |kind: &str, items: Vec<Object>| SplitList {
        gvk: Gvk::from_api_version("v1", kind),
        resource_version: "600".into(),
        continue_token: String::new(),
        remaining: None,
        items,
    };
    let pods = "/api/v1/pods?fieldSelector=spec.nodeName%3Dedge-1";
    let mine = vec![pod_with_config("mine", "edge-1", "needed")];
    learn(&cache, &Caller::Node, pods, split("PodList", mine));
    let maps = Gvr::new("", "v1", "configmaps");
    cache.learn_object(
        &Caller::Node,
        &maps,
        &config_map("needed", 10),
        Asked::default(),
    );
    cache.learn_object(
        &Caller::Node,
        &maps,
        &config_map("asked-once", 11),
        Asked::default(),
    );
    learn(
        &cache,
        &Caller::Node,
        "/api/v1/services",
        services(20, 500, 100),
    );
    // All pods and all config maps of the cluster, as the node.
    let all: Vec<_> = (0..100)
        .map(|i| pod_with_config(&format!("p{i}"), "edge-2", "none"))
        .chain([pod_with_config("mine", "edge-1", "needed")])
        .collect();
    learn(&cache, &Caller::Node, "/api/v1/pods", split("PodList", all));
    let all: Vec<_> = (0..200)
        .map(|i| config_map(&format!("m{i}"), 100 + i))
        .chain([config_map("needed", 10), config_map("asked-once", 11)])
        .collect();
    learn(
        &cache,
        &Caller::Node,
        "/api/v1/configmaps",
        split("ConfigMapList", all),
    );
    cache.flush().await.expect("flush");
    assert!(cache.usage().live_bytes > 150 << 10);
    cache.keep_budget();
    cache.flush().await.expect("flush");
    assert!(cache.usage().live_bytes <= 150 << 10, "{:?}", cache.usage());
    assert_eq!(listed(&cache, &Caller::Node, pods), Some(1));
    for name in ["needed", "asked-once"] {
        let got = cache.get(&Caller::Node, &maps, "default", name);
        assert!(matches!(got, Lookup::Found(_)), "{name}: {got:?}");
    }
    assert_eq!(listed(&cache, &Caller::Node, "/api/v1/services"), Some(20));
    assert_eq!(listed(&cache, &Caller::Node, "/api/v1/configmaps"), None);
    let gone = cache.get(&Caller::Node, &maps, "default", "m0");
    assert!(matches!(gone, Lookup::Unknown), "{gone:?}");
}

#[tokio::test]
async fn an_overview_tells_what_is_there_and_how_it_serves() {
    let dir = tempfile::tempdir().expect("a directory");
    let (cache, _) = Cache::open(dir.path(), CacheConfig::default()).expect("a cache");
    let path = "/api/v1/namespaces/default/services";
    let user = Caller::User("u".into());
    learn(&cache, &Caller::Node, path, services(3, 10, 100));
    learn(&cache, &user, path, services(3, 10, 100));
    cache.flush().await.expect("flush");
    let gvr = Gvr::new("", "v1", "services");
    assert_eq!(listed(&cache, &user, path), Some(3));
    assert!(matches!(
        cache.get(&user, &gvr, "default", "s00000"),
        Lookup::Found(_)
    ));
    assert!(matches!(
        cache.get(&user, &gvr, "elsewhere", "x"),
        Lookup::Unknown
    ));
    let pods = Gvr::new("", "v1", "pods");
    assert!(matches!(
        cache.get(&user, &pods, "default", "x"),
        Lookup::Unknown
    ));
    let overview = cache.overview();
    let [services, other] = overview.resources.as_slice() else {
        panic!("two rows: {overview:?}");
    };
    assert_eq!(services.resource, "v1/services");
    assert_eq!((services.objects, services.readers), (3, 2));
    assert_eq!((services.hits, services.misses), (2, 1));
    assert!(services.bytes > 300 && services.bytes <= overview.live_bytes);
    assert_eq!(services.age_seconds.map(|age| age < 3600), Some(true));
    assert_eq!(services.lists_total, 1);
    assert_eq!(
        (
            services.lists[0].namespace.as_str(),
            services.lists[0].revision
        ),
        ("default", 10)
    );
    assert_eq!((other.resource.as_str(), other.misses), ("other", 1));
    let callers: Vec<_> = overview.callers.iter().map(|c| c.caller.as_str()).collect();
    assert_eq!(callers, ["node", "u:u"]);
    assert!(serde_json::to_value(&overview).is_ok());
    let mut registry = prometheus_client::registry::Registry::default();
    registry.register_collector(cache.collector());
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).expect("text");
    for line in [
        r#"node_yurthub_cache_objects{resource="v1/services"} 3"#,
        r#"node_yurthub_cache_hits_total{resource="v1/services"} 2"#,
        r#"node_yurthub_cache_misses_total{resource="other"} 1"#,
    ] {
        assert!(text.contains(line), "{line} in {text}");
    }
    // The metrics do not keep the directory locked.
    drop(cache);
    assert!(Cache::open(dir.path(), CacheConfig::default()).is_ok());
    text.clear();
    prometheus_client::encoding::text::encode(&mut text, &registry).expect("text");
    assert!(!text.contains("v1/services"), "{text}");
}
