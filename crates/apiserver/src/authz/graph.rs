//! What the pods of each node refer to, kept up to date with the storage.

use super::node::{Kind, Relations};
use crate::{
    resources::Catalog,
    storage::{Change, Key, Storage, Stored},
};
use serde_json::Value;
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{Arc, LazyLock, Mutex, OnceLock, PoisonError},
};
use yurt_wire::watch::EventType;

static PODS: LazyLock<Arc<str>> = LazyLock::new(|| "/pods".into());
static CLAIMS: LazyLock<Arc<str>> = LazyLock::new(|| "/persistentvolumeclaims".into());
static VOLUMES: LazyLock<Arc<str>> = LazyLock::new(|| "/persistentvolumes".into());
static ATTACHMENTS: LazyLock<Arc<str>> =
    LazyLock::new(|| "storage.k8s.io/volumeattachments".into());
static SLICES: LazyLock<Arc<str>> = LazyLock::new(|| "resource.k8s.io/resourceslices".into());

/// Changes taken over at once.
const BATCH: usize = 1024;

/// The pods of every node.
#[derive(Debug)]
pub(super) struct NodeGraph {
    /// What the storage reads of every pod for field selectors.
    selectable: Vec<String>,
    pods: Mutex<Pods>,
}

#[derive(Debug, Default)]
struct Pods {
    /// The revision of the pods that is shown; 0 before the first look.
    revision: u64,
    nodes: HashMap<String, BTreeMap<Key, Arc<Pod>>>,
}

/// A pod, and what it refers to once somebody asked.
#[derive(Debug)]
struct Pod {
    stored: Arc<Stored>,
    references: OnceLock<HashSet<(Kind, String)>>,
}

impl Pod {
    fn refers_to(&self, kind: Kind, name: &str) -> bool {
        self.references().contains(&(kind, name.to_owned()))
    }
    fn references(&self) -> &HashSet<(Kind, String)> {
        self.references
            .get_or_init(|| references(&self.stored.value()))
    }
}

impl NodeGraph {
    /// Of the pods of a storage; nothing is read yet.
    pub(super) fn new(storage: &Storage) -> Self {
        // Named once, so that the partition exists.
        let _ = storage.partition(&PODS);
        let selectable = Catalog::new(&[])
            .find("", "v1", "pods")
            .map(|pods| pods.selectable_fields.clone())
            .unwrap_or_default();
        Self {
            selectable,
            pods: Mutex::default(),
        }
    }

    /// The graph over what can be read from the storage now.
    pub(super) fn of<'a>(&'a self, storage: &'a Storage) -> impl Relations + 'a {
        Graph {
            graph: self,
            storage,
        }
    }

    fn node(&self, pod: &Stored) -> String {
        pod.field("spec.nodeName", &self.selectable)
    }

    /// The pods of a node in a namespace (`""`: in all).
    fn pods_of(&self, storage: &Storage, node: &str, namespace: &str) -> Vec<Arc<Pod>> {
        let mut pods = self.pods.lock().unwrap_or_else(PoisonError::into_inner);
        self.catch_up(storage, &mut pods);
        let Some(of_node) = pods.nodes.get(node) else {
            return Vec::new();
        };
        of_node
            .range(Key::new(namespace, "")..)
            .take_while(|(key, _)| namespace.is_empty() || *key.namespace == *namespace)
            .map(|(_, pod)| pod.clone())
            .collect()
    }

    fn catch_up(&self, storage: &Storage, pods: &mut Pods) {
        let partition = storage.partition(&PODS);
        while pods.revision > 0 {
            let Ok(changes) = partition.changes_after(pods.revision, BATCH) else {
                // Too far behind.
                pods.revision = 0;
                break;
            };
            let Some(last) = changes.last() else { return };
            pods.revision = last.revision;
            for change in &changes {
                self.apply(&mut pods.nodes, change);
            }
        }
        let (objects, revision) = storage.list(&PODS, "", None);
        pods.revision = revision;
        pods.nodes.clear();
        for object in objects {
            self.insert(&mut pods.nodes, &object);
        }
    }

    fn apply(&self, nodes: &mut HashMap<String, BTreeMap<Key, Arc<Pod>>>, change: &Change) {
        if let Some(previous) = &change.previous {
            let node = self.node(previous);
            if let Some(of_node) = nodes.get_mut(&node) {
                of_node.remove(&previous.key);
                if of_node.is_empty() {
                    nodes.remove(&node);
                }
            }
        }
        if change.kind != EventType::Deleted {
            self.insert(nodes, &change.object);
        }
    }

    fn insert(&self, nodes: &mut HashMap<String, BTreeMap<Key, Arc<Pod>>>, pod: &Arc<Stored>) {
        let node = self.node(pod);
        if !node.is_empty() {
            let entry = Arc::new(Pod {
                stored: pod.clone(),
                references: OnceLock::new(),
            });
            nodes
                .entry(node)
                .or_default()
                .insert(pod.key.clone(), entry);
        }
    }
}

struct Graph<'a> {
    graph: &'a NodeGraph,
    storage: &'a Storage,
}

impl Graph<'_> {
    fn value(&self, partition: &Arc<str>, namespace: &str, name: &str) -> Option<Value> {
        let stored = self.storage.get(partition, &Key::new(namespace, name))?;
        Some(stored.value())
    }

    fn referred(&self, node: &str, kind: Kind, namespace: &str, name: &str) -> bool {
        let pods = self.graph.pods_of(self.storage, node, namespace);
        pods.iter().any(|pod| pod.refers_to(kind, name))
    }

    /// Whether a volume that a pod of the node claims takes its credentials from the secret.
    fn secret_of_volume(&self, node: &str, namespace: &str, name: &str) -> bool {
        let pods = self.graph.pods_of(self.storage, node, "");
        pods.iter().any(|pod| {
            let of = &pod.stored.key.namespace;
            let claims = pod.references().iter();
            claims
                .filter(|(kind, _)| *kind == Kind::PersistentVolumeClaim)
                .filter_map(|(_, claim)| self.value(&CLAIMS, of, claim))
                .filter_map(|claim| self.value(&VOLUMES, "", claim["spec"]["volumeName"].as_str()?))
                .any(|volume| {
                    volume_secrets(&volume, of).contains(&(namespace.into(), name.into()))
                })
        })
    }
}

impl Relations for Graph<'_> {
    fn related(&self, node: &str, kind: Kind, namespace: &str, name: &str) -> bool {
        let on_node = |object: Option<Value>| {
            object.is_some_and(|object| object["spec"]["nodeName"].as_str() == Some(node))
        };
        match kind {
            Kind::Pod => self
                .storage
                .get(&PODS, &Key::new(namespace, name))
                .is_some_and(|pod| self.graph.node(&pod) == node),
            Kind::VolumeAttachment => on_node(self.value(&ATTACHMENTS, "", name)),
            Kind::ResourceSlice => on_node(self.value(&SLICES, "", name)),
            Kind::PersistentVolume => {
                let volume = self.value(&VOLUMES, "", name).unwrap_or_default();
                let claim = &volume["spec"]["claimRef"];
                match (claim["namespace"].as_str(), claim["name"].as_str()) {
                    (Some(namespace), Some(claim)) => {
                        self.referred(node, Kind::PersistentVolumeClaim, namespace, claim)
                    }
                    _ => false,
                }
            }
            Kind::Secret => {
                self.referred(node, kind, namespace, name)
                    || self.secret_of_volume(node, namespace, name)
            }
            Kind::ConfigMap
            | Kind::PersistentVolumeClaim
            | Kind::ResourceClaim
            | Kind::ServiceAccount => self.referred(node, kind, namespace, name),
        }
    }
}

/// What a pod's containers and volumes refer to in its namespace. A pod that only mirrors one of the kubelet's own
/// gives it nothing.
fn references(pod: &Value) -> HashSet<(Kind, String)> {
    let mut found = HashSet::new();
    if is_mirror(pod) {
        return found;
    }
    let spec = &pod["spec"];
    let name = &spec["serviceAccountName"];
    if let Some(account) = name.as_str().filter(|account| !account.is_empty()) {
        found.insert((Kind::ServiceAccount, account.to_owned()));
    }
    visit_configuration(pod, &mut |kind, name| {
        found.insert((kind, name.to_owned()));
    });
    for volume in items(&spec["volumes"]) {
        if let Some(claim) = volume["persistentVolumeClaim"]["claimName"].as_str() {
            found.insert((Kind::PersistentVolumeClaim, claim.to_owned()));
        }
        if volume.get("ephemeral").is_some()
            && let (Some(pod), Some(volume)) =
                (pod["metadata"]["name"].as_str(), volume["name"].as_str())
        {
            found.insert((Kind::PersistentVolumeClaim, format!("{pod}-{volume}")));
        }
    }
    let claims =
        items(&spec["resourceClaims"]).chain(items(&pod["status"]["resourceClaimStatuses"]));
    for claim in claims {
        if let Some(claim) = claim["resourceClaimName"].as_str() {
            found.insert((Kind::ResourceClaim, claim.to_owned()));
        }
    }
    found
}

/// Whether a kubelet shows one of its static pods.
pub(crate) fn is_mirror(pod: &Value) -> bool {
    pod["metadata"]["annotations"]
        .get("kubernetes.io/config.mirror")
        .is_some()
}

/// Sources of volumes with a `secretRef`.
const PLUGINS_WITH_SECRETS: [&str; 7] = [
    "cephfs",
    "cinder",
    "flexVolume",
    "iscsi",
    "rbd",
    "scaleIO",
    "storageos",
];

/// Names every secret and config map that a pod's spec refers to.
pub(crate) fn visit_configuration(pod: &Value, visit: &mut dyn FnMut(Kind, &str)) {
    let spec = &pod["spec"];
    let mut see = |kind, name: &Value| {
        if let Some(name) = name.as_str().filter(|name| !name.is_empty()) {
            visit(kind, name);
        }
    };
    for secret in items(&spec["imagePullSecrets"]) {
        see(Kind::Secret, &secret["name"]);
    }
    let containers = ["initContainers", "containers", "ephemeralContainers"];
    for container in containers.iter().flat_map(|field| items(&spec[*field])) {
        for source in items(&container["envFrom"]) {
            see(Kind::Secret, &source["secretRef"]["name"]);
            see(Kind::ConfigMap, &source["configMapRef"]["name"]);
        }
        for variable in items(&container["env"]) {
            let from = &variable["valueFrom"];
            see(Kind::Secret, &from["secretKeyRef"]["name"]);
            see(Kind::ConfigMap, &from["configMapKeyRef"]["name"]);
        }
    }
    for volume in items(&spec["volumes"]) {
        see(Kind::Secret, &volume["secret"]["secretName"]);
        see(Kind::ConfigMap, &volume["configMap"]["name"]);
        see(Kind::Secret, &volume["azureFile"]["secretName"]);
        see(Kind::Secret, &volume["csi"]["nodePublishSecretRef"]["name"]);
        for plugin in PLUGINS_WITH_SECRETS {
            see(Kind::Secret, &volume[plugin]["secretRef"]["name"]);
        }
        for source in items(&volume["projected"]["sources"]) {
            see(Kind::Secret, &source["secret"]["name"]);
            see(Kind::ConfigMap, &source["configMap"]["name"]);
        }
    }
}

/// Namespace and name of the secrets that a volume's plugin needs on the node; `claim` is the namespace of its claim.
fn volume_secrets(volume: &Value, claim: &str) -> Vec<(String, String)> {
    let spec = &volume["spec"];
    let reference = |reference: &Value, namespace: &str, name: &str| {
        let namespace = reference[namespace].as_str().filter(|n| !n.is_empty());
        let name = reference[name].as_str().filter(|n| !n.is_empty())?;
        Some((namespace.unwrap_or(claim).to_owned(), name.to_owned()))
    };
    let csi = [
        "nodePublishSecretRef",
        "nodeStageSecretRef",
        "nodeExpandSecretRef",
    ];
    let csi = csi.iter().map(|field| &spec["csi"][*field]);
    let others = PLUGINS_WITH_SECRETS
        .iter()
        .map(|plugin| &spec[*plugin]["secretRef"]);
    csi.chain(others)
        .filter_map(|secret| reference(secret, "namespace", "name"))
        .chain(reference(
            &spec["azureFile"],
            "secretNamespace",
            "secretName",
        ))
        .collect()
}

fn items(list: &Value) -> impl Iterator<Item = &Value> {
    list.as_array().into_iter().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::{Expect, WindowLimits};
    use serde_json::json;

    fn pod(node: &str) -> Value {
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "a"}, "spec": {
            "nodeName": node, "serviceAccountName": "robot",
            "imagePullSecrets": [{"name": "pull"}],
            "containers": [{"name": "c", "envFrom": [{"configMapRef": {"name": "env"}}],
                "env": [{"name": "E", "valueFrom": {"secretKeyRef": {"name": "key", "key": "k"}}}]}],
            "volumes": [
                {"name": "v", "persistentVolumeClaim": {"claimName": "claim"}},
                {"name": "scratch", "ephemeral": {}},
                {"name": "w", "projected": {"sources": [{"configMap": {"name": "roots"}}]}}]}})
    }

    async fn put(storage: &Storage, partition: &Arc<str>, namespace: &str, object: Value) {
        let name = object["metadata"]["name"]
            .as_str()
            .expect("a name")
            .to_owned();
        let key = Key::new(namespace, &name);
        let expect = match storage.current(partition, &key) {
            Some(object) => Expect::At(object.revision),
            None => Expect::Absent,
        };
        storage
            .put(partition, key, expect, object)
            .await
            .expect("a write");
    }

    #[tokio::test]
    async fn what_a_pod_needs_is_related_to_its_node_while_it_is_there() {
        let storage = Storage::memory(WindowLimits::default());
        let graph = NodeGraph::new(&storage);
        put(&storage, &PODS, "a", pod("n")).await;
        put(
            &storage,
            &CLAIMS,
            "a",
            json!({"metadata": {"name": "claim"}, "spec": {"volumeName": "disk"}}),
        )
        .await;
        let disk = json!({"metadata": {"name": "disk"}, "spec": {
            "claimRef": {"namespace": "a", "name": "claim"},
            "csi": {"nodeStageSecretRef": {"namespace": "storage", "name": "login"}}}});
        put(&storage, &VOLUMES, "", disk).await;
        let expected = [
            (Kind::Pod, "a", "p"),
            (Kind::ServiceAccount, "a", "robot"),
            (Kind::Secret, "a", "pull"),
            (Kind::Secret, "a", "key"),
            (Kind::Secret, "storage", "login"),
            (Kind::ConfigMap, "a", "env"),
            (Kind::ConfigMap, "a", "roots"),
            (Kind::PersistentVolumeClaim, "a", "claim"),
            (Kind::PersistentVolumeClaim, "a", "p-scratch"),
            (Kind::PersistentVolume, "", "disk"),
        ];
        for (kind, namespace, name) in expected {
            assert!(
                graph.of(&storage).related("n", kind, namespace, name),
                "{kind:?} {name}"
            );
            assert!(
                !graph.of(&storage).related("m", kind, namespace, name),
                "{kind:?} {name}"
            );
        }
        assert!(!graph.of(&storage).related("n", Kind::Secret, "b", "key"));

        put(&storage, &PODS, "a", pod("m")).await;
        assert!(graph.of(&storage).related("m", Kind::Secret, "a", "key"));
        assert!(!graph.of(&storage).related("n", Kind::Secret, "a", "key"));

        let key = Key::new("a", "p");
        let at = Expect::At(storage.current(&PODS, &key).expect("a pod").revision);
        storage
            .delete(&PODS, key, at, pod("m"))
            .await
            .expect("a deletion");
        assert!(!graph.of(&storage).related("m", Kind::Secret, "a", "key"));
    }

    #[tokio::test]
    async fn falling_behind_the_window_is_no_loss() {
        let storage = Storage::memory(WindowLimits {
            changes: 2,
            bytes: 1 << 20,
        });
        let graph = NodeGraph::new(&storage);
        put(&storage, &PODS, "a", pod("n")).await;
        assert!(graph.of(&storage).related("n", Kind::Secret, "a", "key"));
        for i in 0..5 {
            let mut other = pod("n");
            other["metadata"]["name"] = format!("p{i}").into();
            other["spec"]["containers"] = json!([]);
            put(&storage, &PODS, "a", other).await;
        }
        put(&storage, &PODS, "a", pod("m")).await;
        assert!(graph.of(&storage).related("m", Kind::Secret, "a", "key"));
        assert!(!graph.of(&storage).related("n", Kind::Secret, "a", "key"));
    }

    #[test]
    fn a_mirror_pod_refers_to_nothing() {
        let mut mirror = pod("n");
        mirror["metadata"]["annotations"] = json!({"kubernetes.io/config.mirror": "x"});
        assert!(references(&mirror).is_empty());
    }
}
