//! Secrets at rest: encrypted with a key that only this node has; shelves that last.

mod node;

use bytes::Bytes;
use node::query;
use serde_json::json;
use std::path::Path;
use yurt_hub::{
    cache::{Binding, Cache, CacheConfig, Lookup, Shelf},
    caller::Caller,
};
use yurt_store::{Batch, Options, Store};
use yurt_wire::{Encoding, Gvk, Gvr, Object, list::SplitList};

const MARK: &str = "dGhlIHZhbHVlIG9mIGEgc2VjcmV0IHRoYXQgbXVzdCBub3QgYmUgcmVhZA";

fn object(kind: &str, name: &str, revision: u64) -> Object {
    Object {
        encoding: Encoding::Json,
        bytes: json!({
            "apiVersion": "v1",
            "kind": kind,
            "metadata": {"name": name, "namespace": "a", "resourceVersion": revision.to_string()},
            "data": {"password": MARK.repeat(40), "name": name},
        })
        .to_string()
        .into(),
    }
}

fn secrets() -> Gvr {
    Gvr::new("", "v1", "secrets")
}

fn config_maps() -> Gvr {
    Gvr::new("", "v1", "configmaps")
}

fn config(root: &Path) -> CacheConfig {
    CacheConfig {
        binding: Binding {
            key_file: Some(root.join("pki/cache.key")),
            machine_id: "m".into(),
            node_name: "edge-1".into(),
        },
        ..CacheConfig::default()
    }
}

fn learn(cache: &Cache, kind: &str, path: &str, names: &[&str]) {
    let mut learner = cache.list_learner(&Caller::Node, &query(path));
    learner.page(SplitList {
        gvk: Gvk::from_api_version("v1", &format!("{kind}List")),
        resource_version: "50".into(),
        continue_token: String::new(),
        remaining: None,
        items: names.iter().map(|name| object(kind, name, 40)).collect(),
    });
    learner.finish();
}

/// Whether the bytes are in any file of a directory.
fn holds(dir: &Path, bytes: &[u8]) -> bool {
    let files = std::fs::read_dir(dir).expect("a directory");
    files.flatten().any(|file| {
        let content = std::fs::read(file.path()).unwrap_or_default();
        content.windows(bytes.len()).any(|window| window == bytes)
    })
}

fn found(cache: &Cache, gvr: &Gvr, name: &str) -> bool {
    matches!(
        cache.get(&Caller::Node, gvr, "a", name),
        Lookup::Found(object) if object.bytes.windows(MARK.len()).any(|w| w == MARK.as_bytes())
    )
}

#[tokio::test]
async fn no_byte_of_a_secret_is_on_disk_and_it_is_there_after_a_restart() {
    let root = tempfile::tempdir().expect("a directory");
    let dir = root.path().join("cache");
    let (cache, _) = Cache::open(&dir, config(root.path())).expect("a cache");
    learn(
        &cache,
        "Secret",
        "/api/v1/namespaces/a/secrets",
        &["one", "two"],
    );
    learn(
        &cache,
        "ConfigMap",
        "/api/v1/namespaces/a/configmaps",
        &["plain"],
    );
    assert!(cache.keep(
        Shelf::Tokens,
        "a/default",
        Bytes::from_static(MARK.as_bytes())
    ));
    cache.flush().await.expect("durable");
    drop(cache);
    // The config map shows that a value in the clear would be found, compressed or not.
    assert!(holds(&dir, MARK.as_bytes()));
    let (cache, _) = Cache::open(&dir, config(root.path())).expect("a cache");
    let asked = cache.asked(&config_maps());
    cache.learn_absent(&Caller::Node, &config_maps(), "a", "plain", asked);
    cache.flush().await.expect("durable");
    assert!(found(&cache, &secrets(), "one"));
    assert_eq!(
        cache.kept(Shelf::Tokens, "a/default").as_deref(),
        Some(MARK.as_bytes())
    );
    drop(cache);

    let alone = root.path().join("secrets-alone");
    let (cache, _) = Cache::open(&alone, config(root.path())).expect("a cache");
    learn(
        &cache,
        "Secret",
        "/api/v1/namespaces/a/secrets",
        &["one", "two"],
    );
    cache.keep(Shelf::Node, "key", Bytes::from_static(MARK.as_bytes()));
    cache.flush().await.expect("durable");
    drop(cache);
    assert!(!holds(&alone, &MARK.as_bytes()[..16]));
    let key = root.path().join("pki/cache.key");
    let mode =
        std::os::unix::fs::PermissionsExt::mode(&key.metadata().expect("a key").permissions());
    assert_eq!(mode & 0o777, 0o600);
}

#[tokio::test]
async fn on_another_machine_or_without_the_key_secrets_are_unknown_and_the_rest_is_there() {
    let root = tempfile::tempdir().expect("a directory");
    let dir = root.path().join("cache");
    let elsewhere = |config: &mut CacheConfig| config.binding.machine_id = "n".into();
    let renamed = |config: &mut CacheConfig| config.binding.node_name = "edge-2".into();
    let lost = |_: &mut CacheConfig| {
        std::fs::remove_file(root.path().join("pki/cache.key")).expect("removed");
    };
    let torn = |_: &mut CacheConfig| {
        std::fs::write(root.path().join("pki/cache.key"), b"torn").expect("written");
    };
    let changes: [&dyn Fn(&mut CacheConfig); 4] = [&elsewhere, &renamed, &lost, &torn];
    for (i, change) in changes.into_iter().enumerate() {
        let (cache, _) = Cache::open(&dir, config(root.path())).expect("a cache");
        learn(&cache, "Secret", "/api/v1/namespaces/a/secrets", &["one"]);
        learn(
            &cache,
            "ConfigMap",
            "/api/v1/namespaces/a/configmaps",
            &["plain"],
        );
        cache.keep(Shelf::Reviews, "r", Bytes::from_static(b"allowed"));
        cache.flush().await.expect("durable");
        drop(cache);
        let mut other = config(root.path());
        change(&mut other);
        let (cache, _) = Cache::open(&dir, other).expect("a cache");
        let lookup = cache.get(&Caller::Node, &secrets(), "a", "one");
        assert!(matches!(lookup, Lookup::Unknown), "case {i}: {lookup:?}");
        let list = cache.list(&Caller::Node, &query("/api/v1/namespaces/a/secrets"));
        assert!(list.is_none(), "case {i}: an empty list would be a lie");
        assert_eq!(cache.kept(Shelf::Reviews, "r"), None, "case {i}");
        assert_eq!(cache.stats().unsealable.get(), 2, "case {i}");
        assert!(found(&cache, &config_maps(), "plain"), "case {i}");
        // What is learned now is sealed with the new key.
        learn(&cache, "Secret", "/api/v1/namespaces/a/secrets", &["one"]);
        assert!(found(&cache, &secrets(), "one"), "case {i}");
    }
}

fn raw(dir: &Path) -> Store {
    Store::open(dir, Options::default()).expect("a store").0
}

#[tokio::test]
async fn swapped_records_are_not_taken() {
    let root = tempfile::tempdir().expect("a directory");
    let dir = root.path().join("cache");
    let (cache, _) = Cache::open(&dir, config(root.path())).expect("a cache");
    learn(
        &cache,
        "Secret",
        "/api/v1/namespaces/a/secrets",
        &["one", "two"],
    );
    cache.keep(Shelf::Node, "mine", Bytes::from_static(b"x"));
    cache.flush().await.expect("durable");
    drop(cache);
    let store = raw(&dir);
    let value = store
        .get(b"o//v1/secrets/a/one")
        .expect("read")
        .expect("a record");
    let mut batch = Batch::default();
    batch.put("o//v1/secrets/a/two", value);
    batch.put("s/node/mine", "not sealed");
    store.commit(batch).wait().expect("written");
    drop(store);
    let (cache, _) = Cache::open(&dir, config(root.path())).expect("a cache");
    assert!(found(&cache, &secrets(), "one"));
    let lookup = cache.get(&Caller::Node, &secrets(), "a", "two");
    assert!(matches!(lookup, Lookup::Unknown), "{lookup:?}");
    assert_eq!(cache.kept(Shelf::Node, "mine"), None);
}

#[tokio::test]
async fn secrets_of_an_older_hub_are_sealed_at_the_next_start() {
    let root = tempfile::tempdir().expect("a directory");
    let dir = root.path().join("cache");
    // As the first layout had it: version, JSON, revision, no exclusions, the object.
    let mut stored = vec![1, 0];
    stored.extend_from_slice(&40u64.to_le_bytes());
    stored.extend_from_slice(&[0, 0]);
    stored.extend_from_slice(&object("Secret", "one", 40).bytes);
    let store = raw(&dir);
    let mut batch = Batch::default();
    batch.put("m/format", "1");
    batch.put("o//v1/secrets/a/one", stored);
    batch.put("c//v1/secrets/a?&", r#"{"revision":50,"kind":"Secret"}"#);
    batch.put("g/node//v1/secrets/a?&", "");
    store.commit(batch).wait().expect("written");
    drop(store);
    assert!(holds(&dir, MARK.as_bytes()));
    for _ in 0..2 {
        let (cache, _) = Cache::open(&dir, config(root.path())).expect("a cache");
        let listed = cache
            .list(&Caller::Node, &query("/api/v1/namespaces/a/secrets"))
            .expect("still complete");
        assert_eq!(listed.items.len(), 1);
        assert!(found(&cache, &secrets(), "one"));
        assert_eq!(cache.stats().unsealable.get(), 0);
        drop(cache);
        let record = raw(&dir)
            .get(b"o//v1/secrets/a/one")
            .expect("read")
            .expect("a record");
        assert!(record.starts_with(&[0xc5, 1]));
        assert!(!holds(&dir, &MARK.as_bytes()[..16]));
    }
}

#[tokio::test]
async fn shelves_last_are_bounded_and_can_be_cleared() {
    let root = tempfile::tempdir().expect("a directory");
    let dir = root.path().join("cache");
    let bounds = Shelf::Issuers.bounds();
    let (cache, _) = Cache::open(&dir, config(root.path())).expect("a cache");
    for i in 0..bounds.records + 2 {
        assert!(cache.keep(Shelf::Issuers, &format!("k{i:04}"), i.to_string().into()));
    }
    assert_eq!(cache.shelf(Shelf::Issuers).len(), bounds.records);
    assert_eq!(cache.kept(Shelf::Issuers, "k0000"), None);
    let too_large = Bytes::from(vec![0; bounds.bytes + 1]);
    assert!(!cache.keep(Shelf::Issuers, "large", too_large));
    assert!(!cache.keep(Shelf::Issuers, &"k".repeat(4096), Bytes::new()));
    cache.discard(Shelf::Issuers, "k0003");
    cache.keep(Shelf::Issuers, "k0005", Bytes::from_static(b"again"));
    cache.keep(
        Shelf::Node,
        "k0005",
        Bytes::from_static(b"of another shelf"),
    );
    cache.flush().await.expect("durable");
    drop(cache);
    let (cache, _) = Cache::open(&dir, config(root.path())).expect("a cache");
    assert_eq!(cache.shelf(Shelf::Issuers).len(), bounds.records - 1);
    assert_eq!(cache.kept(Shelf::Issuers, "k0003"), None);
    assert_eq!(
        cache.kept(Shelf::Issuers, "k0005").as_deref(),
        Some(&b"again"[..])
    );
    assert_eq!(
        cache.kept(Shelf::Issuers, "k0007").as_deref(),
        Some(&b"7"[..])
    );
    assert_eq!(cache.shelf(Shelf::Node).len(), 1);
    assert_eq!(cache.shelf(Shelf::Tokens), Vec::new());
}
