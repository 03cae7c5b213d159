//! A simulated kubelet: speaks to its node's hub as a recorded kubelet 1.36 does, and runs nothing.
//!
//! It registers its node, renews the lease, reports the node's status, watches what a kubelet watches (WatchList, protobuf), and
//! takes every pod bound to the node through the life a kubelet gives it: started, reported Running, stopped when deleted, removed.
//! Whatever fails is tried again with growing pauses for as long as it runs; a cut link, a killed hub or a refusal never end it.

pub(crate) mod address;
mod admission;
mod api;
mod backoff;
pub(crate) mod clock;
mod container;
mod containers;
mod events;
mod heartbeat;
mod logs;
pub(crate) mod node;
pub(crate) mod pod;
mod pod_network;
mod pod_worker;
mod port;
mod reflector;

use address::Addresses;
use api::Api;
use backoff::Backoff;
use containers::Containers;
use events::Recorder;
use pod::{Facts, Reference};
use pod_worker::Worker;
pub use port::{PORT, PortOptions};
use reflector::{Change, Collection, Key, reflect};
use serde_json::Value;
use std::{
    collections::HashMap,
    fmt,
    net::{IpAddr, Ipv4Addr},
    ops::RangeInclusive,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::watch,
    task::{JoinHandle, JoinSet},
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use yurt_controller::resources::Resources;
use yurt_wire::{Encoding, Object};

/// What a simulated node has by default.
const RESOURCES: [(&str, &str); 6] = [
    ("cpu", "4"),
    ("ephemeral-storage", "32Gi"),
    ("hugepages-1Gi", "0"),
    ("hugepages-2Mi", "0"),
    ("memory", "8Gi"),
    ("pods", "110"),
];
const FIRST_PAUSE: Duration = Duration::from_millis(200);

/// How a simulated kubelet behaves.
#[derive(Clone, Debug)]
pub struct KubeletConfig {
    /// Name of the node.
    pub node_name: String,
    /// The hub: `http://host:port`.
    pub server: String,
    /// Labels of the node besides the usual ones.
    pub labels: Vec<(String, String)>,
    /// The node's address.
    pub address: IpAddr,
    /// The kubelet's port, as it tells the API server.
    pub port: u16,
    /// First three octets of the pods' addresses; by default made of the node's address.
    pub pod_network: Option<[u8; 3]>,
    /// What it asks for and sends. A kubelet's default is protobuf.
    pub encoding: Encoding,
    /// Between renewals of the lease.
    pub lease_interval: Duration,
    /// Between looks at the node's status.
    pub status_interval: Duration,
    /// Between reports of a status that did not change.
    pub report_interval: Duration,
    /// Length of its watches in seconds, drawn anew for each.
    pub watch_seconds: RangeInclusive<u64>,
    /// What the node has, by resource name.
    pub resources: Vec<(String, String)>,
    /// How long a pod's network and volumes take.
    pub start_time: Duration,
    /// How long a pod takes to stop.
    pub stop_time: Duration,
    /// The longest pause between attempts.
    pub max_pause: Duration,
}

impl KubeletConfig {
    /// A kubelet with a kubelet's default intervals.
    pub fn new(node_name: &str, server: &str) -> Self {
        Self {
            node_name: node_name.to_owned(),
            server: server.to_owned(),
            labels: Vec::new(),
            address: Ipv4Addr::LOCALHOST.into(),
            port: PORT,
            pod_network: None,
            encoding: Encoding::Protobuf,
            lease_interval: Duration::from_secs(10),
            status_interval: Duration::from_secs(10),
            report_interval: Duration::from_secs(300),
            watch_seconds: 300..=600,
            resources: RESOURCES
                .map(|(name, amount)| (name.into(), amount.into()))
                .into(),
            start_time: Duration::from_millis(50),
            stop_time: Duration::from_millis(200),
            max_pause: Duration::from_secs(2),
        }
    }

    fn authority(&self) -> &str {
        self.server
            .strip_prefix("http://")
            .unwrap_or(&self.server)
            .trim_end_matches('/')
    }

    /// The node's `capacity`.
    fn capacity(&self) -> Value {
        let resources = self.resources.iter();
        resources
            .map(|(name, amount)| (name.clone(), Value::from(amount.as_str())))
            .collect::<serde_json::Map<_, _>>()
            .into()
    }

    /// `10.` and the end of the node's address: each node of a lab has a network of its own.
    fn pod_network(&self) -> [u8; 3] {
        self.pod_network.unwrap_or(match self.address {
            IpAddr::V4(address) => [10, address.octets()[2], address.octets()[3]],
            IpAddr::V6(_) => [10, 0, 0],
        })
    }
}

/// What a simulated kubelet is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KubeletState {
    /// The node is known to the API server.
    pub registered: bool,
    /// The API server (or the hub for it) took a status that says Ready.
    pub ready: bool,
    /// Pods bound to the node.
    pub pods: usize,
    /// Of them, shown as Running.
    pub running: usize,
    /// Open watches.
    pub watches: usize,
    /// Renewals of the lease that were taken.
    pub renewals: u64,
}

/// Looks at a running kubelet and commands it. Cheap to clone.
#[derive(Clone)]
pub struct KubeletHandle {
    kubelet: Arc<Kubelet>,
}

impl fmt::Debug for KubeletHandle {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("KubeletHandle")
            .field("node", &self.kubelet.config.node_name)
            .field("state", &self.state())
            .finish()
    }
}

impl KubeletHandle {
    /// Where the addresses of its pods are from: base and prefix length.
    pub fn pod_network(&self) -> (IpAddr, u8) {
        let [a, b, c] = self.kubelet.config.pod_network();
        (Ipv4Addr::new(a, b, c, 0).into(), 24)
    }

    /// What it is doing.
    pub fn state(&self) -> KubeletState {
        let kubelet = &self.kubelet;
        let workers = kubelet.workers();
        KubeletState {
            registered: kubelet.registered.load(Ordering::Relaxed),
            ready: kubelet.ready.load(Ordering::Relaxed),
            pods: workers.len(),
            running: workers
                .values()
                .filter(|worker| worker.is_running())
                .count(),
            watches: kubelet.watches.load(Ordering::Relaxed),
            renewals: kubelet.renewals.load(Ordering::Relaxed),
        }
    }

    /// Lets a pod have a new status: the condition `lab.yurt.io/Touched` counts the touches. False when the node has no such pod.
    pub fn touch_pod(&self, namespace: &str, name: &str) -> bool {
        let key = (namespace.to_owned(), name.to_owned());
        let workers = self.kubelet.workers();
        workers.get(&key).map(Worker::touch).is_some()
    }

    /// The node loses power and comes back: nothing runs any more, the kubelet begins anew, and every pod is started again with
    /// another address.
    pub fn reboot(&self) {
        self.kubelet.boots.send_modify(|boots| *boots += 1);
    }
}

/// A kubelet that runs nothing.
#[derive(Debug)]
pub struct SimulatedKubelet;

impl SimulatedKubelet {
    /// Starts one; it ends when `shutdown` is cancelled, at once and without saying good-bye, as a kubelet does.
    pub fn start(
        config: KubeletConfig,
        shutdown: CancellationToken,
    ) -> (KubeletHandle, JoinHandle<()>) {
        let (kubelet, events) = Kubelet::new(config);
        let handle = KubeletHandle {
            kubelet: Arc::clone(&kubelet),
        };
        (handle, tokio::spawn(kubelet.run(events, shutdown)))
    }

    /// Runs one until `shutdown` is cancelled.
    pub async fn run(config: KubeletConfig, shutdown: CancellationToken) {
        let (kubelet, events) = Kubelet::new(config);
        kubelet.run(events, shutdown).await;
    }
}

struct Kubelet {
    config: KubeletConfig,
    api: Api,
    recorder: Recorder,
    addresses: Arc<Addresses>,
    containers: Containers,
    /// The node as last seen.
    node: watch::Sender<Option<Value>>,
    registered: AtomicBool,
    ready: AtomicBool,
    watches: AtomicUsize,
    renewals: AtomicU64,
    workers: Mutex<HashMap<Key, Worker>>,
    /// A watch for each ConfigMap and Secret that pods read.
    references: Mutex<HashMap<Reference, AbortOnDropHandle<()>>>,
    /// Which of them are there, as far as they were told.
    known: Mutex<HashMap<Reference, bool>>,
    /// Changes with `known`.
    told: watch::Sender<()>,
    allocatable: Resources,
    /// How often the node was booted since.
    boots: watch::Sender<u64>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Maps of handles are valid after every statement.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Kubelet {
    fn new(config: KubeletConfig) -> (Arc<Self>, tokio::sync::mpsc::Receiver<Value>) {
        let (recorder, events) = Recorder::new(&config.node_name);
        let kubelet = Arc::new(Self {
            api: Api::new(config.authority(), config.encoding),
            recorder,
            addresses: Arc::new(Addresses::new(config.pod_network())),
            containers: Containers::default(),
            node: watch::Sender::new(None),
            registered: AtomicBool::new(false),
            ready: AtomicBool::new(false),
            watches: AtomicUsize::new(0),
            renewals: AtomicU64::new(0),
            workers: Mutex::default(),
            references: Mutex::default(),
            known: Mutex::default(),
            told: watch::Sender::new(()),
            allocatable: Resources::of(&config.capacity()),
            boots: watch::Sender::new(0),
            config,
        });
        (kubelet, events)
    }

    fn workers(&self) -> MutexGuard<'_, HashMap<Key, Worker>> {
        lock(&self.workers)
    }

    fn backoff(&self) -> Backoff {
        Backoff::new(FIRST_PAUSE, self.config.max_pause)
    }

    async fn run(
        self: Arc<Self>,
        events: tokio::sync::mpsc::Receiver<Value>,
        shutdown: CancellationToken,
    ) {
        let kubelet = Arc::clone(&self);
        // What happened is told whatever happens to the node.
        let _telling = AbortOnDropHandle::new(tokio::spawn(async move {
            events::send(&kubelet.api, events).await
        }));
        let mut boots = self.boots.subscribe();
        loop {
            let mut tasks = self.begin();
            let again = tokio::select! {
                () = shutdown.cancelled() => false,
                // The sender lives as long as the kubelet.
                _ = boots.changed() => true,
            };
            tasks.shutdown().await;
            let ended = std::mem::take(&mut *self.workers());
            lock(&self.references).clear();
            if !again {
                return;
            }
            for worker in ended.values() {
                self.containers.forget(worker.uid());
            }
            drop(ended);
            lock(&self.known).clear();
            self.addresses.renew();
            self.registered.store(false, Ordering::Relaxed);
            self.ready.store(false, Ordering::Relaxed);
        }
    }

    /// Starts what a kubelet does as long as its node runs.
    fn begin(self: &Arc<Self>) -> JoinSet<()> {
        self.recorder.node("Starting", "Starting kubelet.");
        let mut tasks = JoinSet::new();
        let of = |kubelet: &Arc<Self>| Arc::clone(kubelet);
        let kubelet = of(self);
        tasks.spawn(async move { kubelet.introduce().await });
        let kubelet = of(self);
        tasks.spawn(async move { kubelet.keep_status().await });
        let kubelet = of(self);
        tasks.spawn(async move { kubelet.keep_lease().await });
        for collection in self.collections() {
            let kubelet = of(self);
            tasks.spawn(async move {
                let tell = |change| kubelet.take(&collection, change);
                let most = kubelet.config.max_pause;
                reflect(&kubelet.api, &collection, most, &kubelet.watches, tell).await;
            });
        }
        tasks
    }

    /// Tells this boot of the node from others; `None` for the first, whose id is registered.
    fn boot_id(&self) -> Option<String> {
        let boots = *self.boots.borrow();
        let words = [&self.config.node_name, "boot", &boots.to_string()];
        (boots > 0).then(|| format!("{:032x}", fingerprint(&words)))
    }

    /// What a kubelet watches whatever its pods are.
    fn collections(&self) -> Vec<Collection> {
        let name = &self.config.node_name;
        let collection = |path: &str, fields: String, client_timeout| Collection {
            path: path.to_owned(),
            fields,
            seconds: self.config.watch_seconds.clone(),
            client_timeout,
        };
        vec![
            collection(NODES, format!("metadata.name={name}"), true),
            collection(PODS, format!("spec.nodeName={name}"), false),
            collection("/api/v1/services", "spec.clusterIP!=None".into(), true),
            collection("/apis/storage.k8s.io/v1/csidrivers", String::new(), true),
            collection("/apis/node.k8s.io/v1/runtimeclasses", String::new(), true),
        ]
    }

    /// A change in one of the collections.
    fn take(self: &Arc<Self>, collection: &Collection, change: Change) {
        match collection.path.as_str() {
            PODS => match change {
                Change::Set(key, object) => match object.to_json_value() {
                    Ok(pod) => self.pod_set(key, pod),
                    Err(error) => tracing::warn!(%error, "a pod that cannot be read"),
                },
                Change::Gone(key) => self.pod_gone(&key),
                Change::Synced => {}
            },
            NODES => {
                if let Change::Set(_, object) = change {
                    self.node_seen(&object);
                }
            }
            _ => {}
        }
    }

    fn node_seen(&self, object: &Object) {
        match object.to_json_value() {
            Ok(node) => drop(self.node.send_replace(Some(node))),
            Err(error) => tracing::warn!(%error, "a node that cannot be read"),
        }
    }

    fn pod_set(self: &Arc<Self>, key: Key, pod: Value) {
        let mut workers = self.workers();
        match workers.get(&key) {
            Some(worker) if worker.uid() == pod::uid(&pod) => worker.tell(pod),
            // New, or another pod of the same name.
            _ => {
                workers.remove(&key);
                let others = workers.values().filter_map(Worker::requests);
                let rejection = admission::rejection(&pod, &self.allocatable, others);
                workers.insert(key, Worker::start(self, pod, rejection));
                drop(workers);
                self.watch_references();
            }
        }
    }

    fn pod_gone(self: &Arc<Self>, key: &Key) {
        let gone = self.workers().remove(key);
        if let Some(gone) = gone {
            self.containers.forget(gone.uid());
            self.watch_references();
        }
    }

    /// Opens and closes watches so that there is one for each object that pods read.
    fn watch_references(self: &Arc<Self>) {
        let wanted: std::collections::HashSet<Reference> = self
            .workers()
            .values()
            .flat_map(|worker| worker.references().iter().cloned())
            .collect();
        let mut watched = lock(&self.references);
        watched.retain(|reference, _| wanted.contains(reference));
        lock(&self.known).retain(|reference, _| wanted.contains(reference));
        for reference in wanted {
            watched.entry(reference).or_insert_with_key(|reference| {
                let collection = Collection {
                    path: format!(
                        "/api/v1/namespaces/{}/{}",
                        reference.namespace, reference.resource
                    ),
                    fields: format!("metadata.name={}", reference.name),
                    // These live longer in a kubelet: its cache's own bounds.
                    seconds: 1800..=3600,
                    client_timeout: true,
                };
                let (kubelet, reference) = (Arc::clone(self), reference.clone());
                AbortOnDropHandle::new(tokio::spawn(async move {
                    let most = kubelet.config.max_pause;
                    let tell = |change| kubelet.learn(&reference, &change);
                    reflect(&kubelet.api, &collection, most, &kubelet.watches, tell).await;
                }))
            });
        }
    }

    /// A watch told of an object that pods read.
    fn learn(&self, reference: &Reference, change: &Change) {
        let mut known = lock(&self.known);
        match change {
            Change::Set(..) => drop(known.insert(reference.clone(), true)),
            Change::Gone(_) => drop(known.insert(reference.clone(), false)),
            Change::Synced => drop(known.entry(reference.clone()).or_insert(false)),
        }
        drop(known);
        self.told.send_replace(());
    }
}

impl Facts for Kubelet {
    fn exists(&self, resource: &'static str, namespace: &str, name: &str) -> Option<bool> {
        let reference = Reference {
            resource,
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        };
        lock(&self.known).get(&reference).copied()
    }
}

const NODES: &str = "/api/v1/nodes";
const PODS: &str = "/api/v1/pods";

/// A number that stands for some words: the same in every run (FNV-1a).
fn fingerprint(words: &[&str]) -> u128 {
    const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;
    let bytes = words.iter().flat_map(|word| word.bytes().chain([0]));
    bytes.fold(0x6c62_272e_07bb_0142_62b8_2175_6295_c58d, |hash, byte| {
        (hash ^ u128::from(byte)).wrapping_mul(PRIME)
    })
}

#[cfg(test)]
mod tests;
