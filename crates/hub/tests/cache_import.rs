//! A cache directory of OpenYurt's hub, in both of its layouts, taken over at the first start.

mod node;

use node::{JSON, query};
use serde_json::{Value, json};
use std::{fs, path::Path};
use yurt_hub::{
    cache::{Binding, Cache, CacheConfig, Imported, Lookup},
    caller::Caller,
    journal::{Journal, JournalConfig},
    offline::Offline,
};
use yurt_wire::{Encoding, Gvk, Gvr, Object, list::SplitList};

fn config(root: &Path) -> CacheConfig {
    CacheConfig {
        binding: Binding {
            key_file: Some(root.join("cache.key")),
            machine_id: "m".into(),
            node_name: "edge-1".into(),
        },
        ..CacheConfig::default()
    }
}

fn object(api_version: &str, kind: &str, namespace: &str, name: &str, revision: u64) -> Value {
    let mut object = json!({
        "apiVersion": api_version,
        "kind": kind,
        "metadata": {"name": name, "resourceVersion": revision.to_string()},
    });
    if !namespace.is_empty() {
        object["metadata"]["namespace"] = namespace.into();
    }
    object
}

fn pod(name: &str, node: &str) -> Value {
    let mut pod = object("v1", "Pod", "default", name, 70);
    pod["spec"] = json!({"nodeName": node});
    pod
}

fn write(dir: &Path, path: &str, content: impl AsRef<[u8]>) {
    let file = dir.join(path);
    fs::create_dir_all(file.parent().expect("a parent")).expect("made");
    fs::write(file, content).expect("written");
}

fn put(dir: &Path, path: &str, object: &Value) {
    write(dir, path, object.to_string());
}

/// The tree of a hub of OpenYurt 1.7.
fn enhanced(dir: &Path) {
    put(
        dir,
        "kubelet/pods.v1.core/default/web",
        &pod("web", "edge-1"),
    );
    put(
        dir,
        "kubelet/nodes.v1.core/edge-1",
        &object("v1", "Node", "", "edge-1", 80),
    );
    put(
        dir,
        "kubelet/leases.v1.coordination.k8s.io/kube-node-lease/edge-1",
        &object(
            "coordination.k8s.io/v1",
            "Lease",
            "kube-node-lease",
            "edge-1",
            81,
        ),
    );
    put(
        dir,
        "kubelet/secrets.v1.core/default/registry",
        &object("v1", "Secret", "default", "registry", 60),
    );
    put(
        dir,
        "kubelet/configmaps.v1.core/default/kube-root-ca.crt",
        &object("v1", "ConfigMap", "default", "kube-root-ca.crt", 61),
    );
    put(
        dir,
        "kubelet/events.v1.core/default/web.1",
        &object("v1", "Event", "default", "web.1", 90),
    );
    let mut service = object("v1", "Service", "default", "kubernetes", 10);
    service["spec"] = json!({"clusterIP": "169.254.2.1"});
    put(dir, "kubelet/services.v1.core/default/kubernetes", &service);
    // As it is, not as the original changed it for the kubelet.
    service["spec"] = json!({"clusterIP": "10.96.0.1"});
    put(dir, "coredns/services.v1.core/default/kubernetes", &service);
    put(
        dir,
        "coredns/services.v1.core/kube-system/kube-dns",
        &object("v1", "Service", "kube-system", "kube-dns", 12),
    );
    fs::create_dir_all(dir.join("kubelet/runtimeclasses.v1.node.k8s.io")).expect("made");
    fs::create_dir_all(dir.join("raven-agent-ds/gateways.v1beta1.raven.openyurt.io"))
        .expect("made");
    put(
        dir,
        "yurthub/nodepools.v1beta2.apps.openyurt.io/shop",
        &object("apps.openyurt.io/v1beta2", "NodePool", "", "shop", 33),
    );
    put(
        dir,
        "some-agent/things.v1.x.example/default/one",
        &object("x.example/v1", "Thing", "default", "one", 44),
    );
    write(
        dir,
        "version",
        r#"{"major":"1","minor":"30","gitVersion":"v1.30.1"}"#,
    );
    write(
        dir,
        "_apis_discovery.k8s.io_v1",
        r#"{"kind":"APIResourceList","groupVersion":"discovery.k8s.io/v1","resources":[]}"#,
    );
    write(
        dir,
        "_internal/restmapper/cache-crd-restmapper.conf",
        r#"{"raven.openyurt.io/v1beta1/gateways":"Gateway","raven.openyurt.io/v1beta1/gateway":"Gateway"}"#,
    );
}

fn names(cache: &Cache, path: &str) -> Option<Vec<String>> {
    let listed = cache.list(&Caller::Node, &query(path))?;
    Some(
        listed
            .items
            .iter()
            .map(|item| item.key().expect("a key").name.into_owned())
            .collect(),
    )
}

fn found(cache: &Cache, gvr: (&str, &str, &str), namespace: &str, name: &str) -> bool {
    let gvr = Gvr::new(gvr.0, gvr.1, gvr.2);
    matches!(
        cache.get(&Caller::Node, &gvr, namespace, name),
        Lookup::Found(_)
    )
}

const PODS: &str = "/api/v1/pods?fieldSelector=spec.nodeName%3Dedge-1";

/// What the node needs is there, and no more than the directory proves.
fn check(cache: &Cache) {
    assert_eq!(names(cache, PODS), Some(vec!["web".into()]));
    assert_eq!(
        names(cache, "/api/v1/pods"),
        None,
        "pods of other nodes were never seen"
    );
    assert_eq!(
        names(cache, "/api/v1/services"),
        Some(vec!["kubernetes".into(), "kube-dns".into()])
    );
    assert_eq!(
        names(cache, "/apis/node.k8s.io/v1/runtimeclasses"),
        Some(Vec::new())
    );
    assert_eq!(
        names(cache, "/apis/raven.openyurt.io/v1beta1/gateways"),
        Some(Vec::new())
    );
    assert_eq!(
        names(cache, "/api/v1/nodes?fieldSelector=metadata.name%3Dedge-1"),
        Some(vec!["edge-1".into()])
    );
    assert_eq!(names(cache, "/api/v1/nodes"), None);
    assert!(found(cache, ("", "v1", "secrets"), "default", "registry"));
    assert!(found(
        cache,
        ("", "v1", "configmaps"),
        "default",
        "kube-root-ca.crt"
    ));
    assert!(found(
        cache,
        ("coordination.k8s.io", "v1", "leases"),
        "kube-node-lease",
        "edge-1"
    ));
    assert!(found(
        cache,
        ("apps.openyurt.io", "v1beta2", "nodepools"),
        "",
        "shop"
    ));
    // An agent that may have used a token of its own gives the node no rights.
    let things = Gvr::new("x.example", "v1", "things");
    let lookup = cache.get(&Caller::Node, &things, "default", "one");
    assert!(matches!(lookup, Lookup::Forbidden), "{lookup:?}");
    assert!(cache.document("/apis/discovery.k8s.io/v1").is_some());
    let Lookup::Found(service) = cache.get(
        &Caller::Node,
        &Gvr::new("", "v1", "services"),
        "default",
        "kubernetes",
    ) else {
        panic!("a service");
    };
    let service = service.to_json_value().expect("JSON");
    assert_eq!(service["spec"]["clusterIP"], "10.96.0.1");
}

#[tokio::test]
async fn a_directory_of_openyurt_serves_the_node_offline_from_the_first_start() {
    let root = tempfile::tempdir().expect("a directory");
    let dir = root.path().join("cache");
    enhanced(&dir);
    let (cache, _) = Cache::open(&dir, config(root.path())).expect("a cache");
    let imported = cache.imported().expect("an import").clone();
    assert_eq!(
        Imported {
            aside: None,
            ..imported.clone()
        },
        Imported {
            objects: 9,
            lists: 6,
            documents: 2,
            broken: 0,
            ignored: 1,
            aside: None,
        }
    );
    check(&cache);
    drop(cache);
    let (cache, _) = Cache::open(&dir, config(root.path())).expect("a cache");
    assert_eq!(cache.imported(), None);
    check(&cache);
    // Nothing of the old tree was deleted, and no secret of it is in the clear in the store.
    let aside = imported.aside.expect("moved aside");
    assert!(aside.join("kubelet/pods.v1.core/default/web").is_file());
    assert!(aside.join("version").is_file());
    assert!(!dir.join("kubelet").exists());
}

#[tokio::test]
async fn an_imported_list_gives_way_to_the_clouds() {
    let root = tempfile::tempdir().expect("a directory");
    let dir = root.path().join("cache");
    enhanced(&dir);
    let (cache, _) = Cache::open(&dir, config(root.path())).expect("a cache");
    // The same revision from the cloud: what the original's filters changed is put right.
    let mut service = object("v1", "Service", "default", "kubernetes", 10);
    service["spec"] = json!({"clusterIP": "10.0.0.1"});
    let mut learner = cache.list_learner(&Caller::Node, &query("/api/v1/services"));
    learner.page(SplitList {
        gvk: Gvk::from_api_version("v1", "ServiceList"),
        resource_version: "100".into(),
        continue_token: String::new(),
        remaining: None,
        items: vec![Object::from_json_value(&service, Encoding::Json).expect("JSON")],
    });
    learner.finish();
    let listed = cache
        .list(&Caller::Node, &query("/api/v1/services"))
        .expect("complete");
    assert_eq!(listed.resource_version, "100");
    assert_eq!(listed.items.len(), 1);
    let shown = listed.items[0].to_json_value().expect("JSON");
    assert_eq!(shown["spec"]["clusterIP"], "10.0.0.1");
}

#[tokio::test]
async fn the_older_layout_tells_group_and_version_by_its_objects() {
    let root = tempfile::tempdir().expect("a directory");
    let dir = root.path().join("cache");
    put(&dir, "kubelet/pods/default/web", &pod("web", "edge-1"));
    put(
        &dir,
        "kubelet/nodes/edge-1",
        &object("v1", "Node", "", "edge-1", 80),
    );
    put(
        &dir,
        "kubelet/leases/kube-node-lease/edge-1",
        &object(
            "coordination.k8s.io/v1",
            "Lease",
            "kube-node-lease",
            "edge-1",
            81,
        ),
    );
    put(
        &dir,
        "kubelet/events/default/e",
        &object("v1", "Event", "default", "e", 81),
    );
    put(
        &dir,
        "flanneld/nodes/edge-1",
        &object("v1", "Node", "", "edge-1", 80),
    );
    fs::create_dir_all(dir.join("kubelet/services")).expect("made");
    let (cache, _) = Cache::open(&dir, config(root.path())).expect("a cache");
    assert_eq!(names(&cache, PODS), Some(vec!["web".into()]));
    assert_eq!(names(&cache, "/api/v1/nodes"), Some(vec!["edge-1".into()]));
    assert_eq!(names(&cache, "/api/v1/services"), Some(Vec::new()));
    assert!(found(
        &cache,
        ("coordination.k8s.io", "v1", "leases"),
        "kube-node-lease",
        "edge-1"
    ));
    assert_eq!(names(&cache, "/api/v1/events"), None);
    // And the hub answers the kubelet.
    let journal = Journal::open(&cache, JournalConfig::default()).expect("a journal");
    let offline = Offline::new(cache.clone(), journal, "edge-1");
    let info = node::info(&http::Method::GET, PODS);
    let (parts, ()) = http::Request::get(PODS)
        .header("accept", JSON)
        .body(())
        .expect("a request")
        .into_parts();
    let answer = offline
        .answer(&Caller::Node, &info, &parts, bytes::Bytes::new())
        .await;
    assert_eq!(answer.status(), 200);
}

#[tokio::test]
async fn interrupted_replacements_are_undone_as_the_original_would_have() {
    let root = tempfile::tempdir().expect("a directory");
    let dir = root.path().join("cache");
    let services = "coredns/services.v1.core";
    let service = |name: &str, revision| object("v1", "Service", "default", name, revision);
    // A file: the new one was not finished.
    write(
        &dir,
        &format!("{services}/default/one"),
        "{\"apiVersion\":\"v1\",\"ki",
    );
    put(
        &dir,
        &format!("{services}/default/tmp_one"),
        &service("one", 20),
    );
    // A directory: the new one holds half of the list.
    put(
        &dir,
        "flanneld/tmp_nodes.v1.core/a",
        &object("v1", "Node", "", "a", 5),
    );
    put(
        &dir,
        "flanneld/tmp_nodes.v1.core/b",
        &object("v1", "Node", "", "b", 6),
    );
    put(
        &dir,
        "flanneld/nodes.v1.core/a",
        &object("v1", "Node", "", "a", 7),
    );
    let (cache, _) = Cache::open(&dir, config(root.path())).expect("a cache");
    assert_eq!(names(&cache, "/api/v1/services"), Some(vec!["one".into()]));
    assert_eq!(
        names(&cache, "/api/v1/nodes"),
        Some(vec!["a".into(), "b".into()])
    );
    assert_eq!(cache.imported().map(|i| i.broken), Some(0));
}

#[tokio::test]
async fn broken_files_cost_completeness_and_links_are_not_followed() {
    let root = tempfile::tempdir().expect("a directory");
    let dir = root.path().join("cache");
    let of = "coredns/services.v1.core/default";
    put(
        &dir,
        &format!("{of}/good"),
        &object("v1", "Service", "default", "good", 20),
    );
    write(&dir, &format!("{of}/empty"), "");
    write(
        &dir,
        &format!("{of}/torn"),
        "{\"apiVersion\":\"v1\",\"kind\":\"Serv",
    );
    put(
        &dir,
        &format!("{of}/other"),
        &object("v1", "Service", "kube-system", "other", 20),
    );
    put(
        &dir,
        &format!("{of}/renamed"),
        &object("v1", "Service", "default", "x", 20),
    );
    let mut unversioned = object("v1", "Service", "default", "unversioned", 1);
    unversioned["metadata"]["resourceVersion"] = Value::Null;
    put(&dir, &format!("{of}/unversioned"), &unversioned);
    put(
        root.path(),
        "outside/secret",
        &object("v1", "Node", "", "secret", 20),
    );
    fs::create_dir_all(dir.join("flanneld")).expect("made");
    std::os::unix::fs::symlink(
        root.path().join("outside"),
        dir.join("flanneld/nodes.v1.core"),
    )
    .expect("linked");
    fs::create_dir_all(dir.join("raven-agent-ds/nodes.v1.core")).expect("made");
    std::os::unix::fs::symlink(
        root.path().join("outside/secret"),
        dir.join("raven-agent-ds/nodes.v1.core/secret"),
    )
    .expect("linked");
    std::os::unix::fs::symlink(root.path(), dir.join("linked")).expect("linked");
    write(
        &dir,
        "kubelet/partialobjectmetadatas.v1.meta.k8s.io/pods.v1.core/default/web",
        "{}",
    );
    let (cache, _) = Cache::open(&dir, config(root.path())).expect("a cache");
    let imported = cache.imported().expect("an import").clone();
    assert_eq!((imported.objects, imported.broken), (1, 5));
    assert!(found(&cache, ("", "v1", "services"), "default", "good"));
    assert_eq!(
        names(&cache, "/api/v1/services"),
        None,
        "not known to be all"
    );
    assert!(!found(&cache, ("", "v1", "nodes"), "", "secret"));
    assert_eq!(
        names(&cache, "/api/v1/nodes"),
        None,
        "a link may stand for one"
    );
    assert!(root.path().join("outside/secret").is_file());
}

#[tokio::test]
async fn an_interrupted_import_begins_again() {
    let root = tempfile::tempdir().expect("a directory");
    let dir = root.path().join("cache");
    enhanced(&dir);
    let (cache, _) = Cache::open(&dir, config(root.path())).expect("a cache");
    let aside = cache
        .imported()
        .and_then(|i| i.aside.clone())
        .expect("moved aside");
    drop(cache);
    let raw = || {
        yurt_store::Store::open(&dir, Default::default())
            .expect("a store")
            .0
    };
    let back = |name: &str| fs::rename(aside.join(name), dir.join(name)).expect("moved");
    // Killed in the middle: marked as begun, half of the records there.
    let store = raw();
    let mut batch = yurt_store::Batch::default();
    batch.put("m/import", "begun");
    for key in store
        .keys(b"c/")
        .into_iter()
        .chain(store.keys(b"o//v1/secrets"))
    {
        batch.delete(key);
    }
    store.commit(batch).wait().expect("written");
    drop(store);
    for entry in fs::read_dir(&aside).expect("files") {
        back(
            entry
                .expect("an entry")
                .file_name()
                .to_str()
                .expect("a name"),
        );
    }
    let (cache, _) = Cache::open(&dir, config(root.path())).expect("a cache");
    assert_eq!(cache.imported().map(|i| (i.objects, i.lists)), Some((9, 6)));
    assert_eq!(names(&cache, PODS), Some(vec!["web".into()]));
    assert!(found(&cache, ("", "v1", "secrets"), "default", "registry"));
    let aside = cache
        .imported()
        .and_then(|i| i.aside.clone())
        .expect("moved aside");
    drop(cache);
    // Killed while the files were moved: nothing is read again.
    fs::rename(aside.join("kubelet"), dir.join("kubelet")).expect("moved");
    let (cache, _) = Cache::open(&dir, config(root.path())).expect("a cache");
    assert_eq!(cache.imported().map(|i| i.objects), Some(0));
    assert!(!dir.join("kubelet").exists());
    drop(cache);
    // A cache that is in use is not mixed with old files.
    let store = raw();
    let mut batch = yurt_store::Batch::default();
    batch.delete("m/import");
    store.commit(batch).wait().expect("written");
    drop(store);
    put(
        &dir,
        "kubelet/pods.v1.core/default/old",
        &pod("old", "edge-1"),
    );
    let (cache, _) = Cache::open(&dir, config(root.path())).expect("a cache");
    assert_eq!(cache.imported(), None);
    assert_eq!(names(&cache, PODS), Some(vec!["web".into()]));
    assert!(dir.join("kubelet/pods.v1.core/default/old").is_file());
}
