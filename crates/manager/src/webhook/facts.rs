//! What webhooks know besides the objects that they are shown: read from the caches of the manager, or asked for where it must be
//! exact; only by names that are names, as anybody may ask the webhooks. A question that is not answered in time leaves a node, pod or endpoint as it is.

use super::{Options, endpoints, fault::is_subdomain, hooks::Subject};
use jiff::Timestamp;
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{
    sync::Semaphore,
    task::JoinSet,
    time::{Instant, timeout, timeout_at},
};
use yurt_api::names::{labels::NODE_POOL, objects::MANAGER};
use yurt_controller::{
    Collection, Context, Key, Objects,
    collections::{NODE_POOLS, NODES, PODS, YURT_APP_DAEMONS, YURT_APP_OVERRIDERS, YURT_APP_SETS},
    condition,
    fields::{items, text},
    kube::{Kube, KubeError},
};

/// API servers wait for us no longer than 3 seconds where it matters.
const PATIENCE: Duration = Duration::from_secs(2);
/// How many nodes are named that keep a pool.
const NAMED: usize = 3;

/// Nodes whose pods are asked for at once.
const AT_ONCE: usize = 16;
/// How long is known which pods on a node were ready, and of how many nodes.
const KEPT: Duration = Duration::from_secs(15);
const NODES_KEPT: usize = 4096;

/// Pods that were ready.
type Ready = BTreeSet<Key>;

/// A question that was not answered.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unanswered {
    #[error(transparent)]
    Kube(#[from] KubeError),
    #[error("the API server did not answer in {PATIENCE:?}")]
    Late,
}

/// What is known.
#[derive(Debug)]
pub(super) struct Facts {
    kube: Kube,
    pools: Arc<Objects>,
    /// Where endpoints are looked at.
    nodes: Option<Arc<Objects>>,
    ready: Mutex<HashMap<String, (Instant, Arc<Ready>)>>,
    /// The users that convert nodes: the controller, or the manager where controllers have no accounts of their own.
    pub(super) converters: [String; 2],
}

impl Facts {
    pub(super) fn new(context: &Context, options: &Options) -> Self {
        Self {
            kube: context.kube().clone(),
            pools: context.objects(&NODE_POOLS),
            nodes: [Subject::Endpoints, Subject::EndpointSlice]
                .iter()
                .any(|subject| subject.is_enabled(options))
                .then(|| context.objects(&NODES)),
            ready: Mutex::default(),
            converters: [&options.conversion_account, MANAGER]
                .map(|account| format!("system:serviceaccount:{}:{account}", options.namespace)),
        }
    }

    async fn ask(&self, path: &str) -> Result<Value, Unanswered> {
        let answer = timeout(PATIENCE, self.kube.get(path)).await;
        Ok(answer.map_err(|_| Unanswered::Late)??)
    }

    async fn find(&self, collection: &Collection, key: &Key) -> Result<Option<Value>, Unanswered> {
        match self.ask(&collection.object_path(key)).await {
            Ok(object) => Ok(Some(object)),
            Err(Unanswered::Kube(error)) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// A pool as it was a moment ago; if it is not known, as it is, unless `surely` is not needed. `Ok(None)`: there is none.
    pub(super) async fn pool(
        &self,
        name: &str,
        surely: bool,
    ) -> Result<Option<Arc<Value>>, Unanswered> {
        let key = Key::new("", name);
        match self.pools.get(&key) {
            None if surely && is_subdomain(name) => {
                Ok(self.find(&NODE_POOLS, &key).await?.map(Arc::new))
            }
            known => Ok(known),
        }
    }

    /// The names of some nodes of a pool, and whether there are more.
    pub(super) async fn members(&self, pool: &str) -> Result<(Vec<String>, bool), Unanswered> {
        if !is_subdomain(pool) {
            return Ok((Vec::new(), false));
        }
        let path = format!(
            "{}?labelSelector={NODE_POOL}%3D{pool}&limit={}",
            NODES.path(""),
            NAMED + 1
        );
        let list = self.ask(&path).await?;
        let names: Vec<String> = items(&list["items"])
            .map(|node| text(&node["metadata"]["name"]))
            .collect();
        let more = names.len() > NAMED;
        Ok((names.into_iter().take(NAMED).collect(), more))
    }

    /// The YurtAppOverriders of a namespace.
    pub(super) async fn overriders(&self, namespace: &str) -> Result<Vec<Value>, Unanswered> {
        if !is_subdomain(namespace) {
            return Ok(Vec::new());
        }
        let list = self.ask(&YURT_APP_OVERRIDERS.path(namespace)).await?;
        Ok(items(&list["items"]).cloned().collect())
    }

    /// Whether the subject of an overrider is there, and stays.
    pub(super) async fn lives(
        &self,
        namespace: &str,
        kind: &str,
        name: &str,
    ) -> Result<bool, Unanswered> {
        let collection = match kind {
            "YurtAppSet" => &YURT_APP_SETS,
            "YurtAppDaemon" => &YURT_APP_DAEMONS,
            _ => return Ok(false),
        };
        if !is_subdomain(name) || !is_subdomain(namespace) {
            return Ok(false);
        }
        let found = self.find(collection, &Key::new(namespace, name)).await?;
        Ok(found.is_some_and(|object| object["metadata"]["deletionTimestamp"].is_null()))
    }

    /// Which of these pods, of which the cloud hears nothing, are to be taken for ready: their node lives, and they were ready when
    /// it was last heard of; if that cannot be found out in time, those that were ready by what is replaced (`before`).
    pub(super) async fn alive(
        self: &Arc<Self>,
        silent: BTreeMap<Key, String>,
        before: &BTreeSet<Key>,
    ) -> BTreeSet<Key> {
        let now = Timestamp::now();
        let mut pods: BTreeMap<String, Vec<Key>> = BTreeMap::new();
        for (pod, node) in silent {
            pods.entry(node).or_default().push(pod);
        }
        pods.retain(|node, _| self.lives_on(node, now));
        let turns = Arc::new(Semaphore::new(AT_ONCE));
        let mut asked: JoinSet<Option<(String, Arc<Ready>)>> = JoinSet::new();
        for node in pods.keys().cloned() {
            let (facts, turns) = (self.clone(), turns.clone());
            asked.spawn(async move {
                let _turn = turns.acquire().await.ok()?;
                let ready = facts.ready_on(&node).await.ok()?;
                Some((node, ready))
            });
        }
        let (mut alive, deadline) = (BTreeSet::new(), Instant::now() + PATIENCE);
        while let Ok(Some(answer)) = timeout_at(deadline, asked.join_next()).await {
            let Some((node, ready)) = answer.ok().flatten() else {
                continue;
            };
            let known = pods.remove(&node).unwrap_or_default();
            alive.extend(known.into_iter().filter(|pod| ready.contains(pod)));
        }
        let unknown = pods.into_values().flatten();
        alive.extend(unknown.filter(|pod| before.contains(pod)));
        alive
    }

    /// The pods on a node that were ready when it was last heard of. The answer is kept for a while: until the node is heard of
    /// again it stays the same, and every service asks.
    async fn ready_on(&self, node: &str) -> Result<Arc<Ready>, Unanswered> {
        let known = || self.ready.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, ready)) = known().get(node)
            && at.elapsed() < KEPT
        {
            return Ok(ready.clone());
        }
        let path = format!(
            "{}?fieldSelector=spec.nodeName%3D{node}&resourceVersion=0",
            PODS.path("")
        );
        let list = self.ask(&path).await?;
        let ready = items(&list["items"]).filter(|pod| endpoints::was_ready(pod));
        let ready: Arc<Ready> = Arc::new(ready.map(Key::of).collect());
        let mut known = known();
        if known.len() >= NODES_KEPT {
            known.retain(|_, (at, _)| at.elapsed() < KEPT);
        }
        if known.len() < NODES_KEPT {
            known.insert(node.to_owned(), (Instant::now(), ready.clone()));
        }
        Ok(ready)
    }

    fn lives_on(&self, name: &str, now: Timestamp) -> bool {
        let Some(nodes) = &self.nodes else {
            return false;
        };
        let get = |name: &str| nodes.get(&Key::new("", name));
        let Some(node) = get(name) else {
            return false;
        };
        let pool = node["metadata"]["labels"][NODE_POOL].as_str();
        let pool = pool.and_then(|pool| self.pools.get(&Key::new("", pool)));
        let is_ready =
            |name: &str| get(name).is_some_and(|node| condition::holds(&node["status"], "Ready"));
        let witness = pool.is_some_and(|pool| endpoints::has_witness(&pool, name, is_ready));
        endpoints::lives(&node, witness, now)
    }
}
