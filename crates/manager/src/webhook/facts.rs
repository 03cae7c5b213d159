//! What webhooks know besides the objects that they are shown: read from the caches of the manager, or asked for where it must be
//! exact. A question that is not answered in time leaves a node, pod or endpoint as it is.

use super::{Options, endpoints, hooks::Subject};
use jiff::Timestamp;
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};
use tokio::{
    sync::Semaphore,
    task::JoinSet,
    time::{Instant, timeout, timeout_at},
};
use yurt_api::names::labels::NODE_POOL;
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

/// Pods of one Endpoints or EndpointSlice that are asked for, and how many at once.
const PODS_ASKED: usize = 1000;
const AT_ONCE: usize = 32;

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
    /// The user that converts nodes.
    pub(super) converter: String,
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
            converter: format!(
                "system:serviceaccount:{}:{}",
                options.namespace, options.conversion_account
            ),
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
            None if surely => Ok(self.find(&NODE_POOLS, &key).await?.map(Arc::new)),
            known => Ok(known),
        }
    }

    /// The names of some nodes of a pool, and whether there are more.
    pub(super) async fn members(&self, pool: &str) -> Result<(Vec<String>, bool), Unanswered> {
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
        if name.is_empty() {
            return Ok(false);
        }
        let found = self.find(collection, &Key::new(namespace, name)).await?;
        Ok(found.is_some_and(|object| object["metadata"]["deletionTimestamp"].is_null()))
    }

    /// Which of these pods, of which the cloud hears nothing, are to be taken for ready: their node lives, and they were ready.
    pub(super) async fn alive(&self, silent: BTreeMap<Key, String>) -> BTreeSet<Key> {
        let now = Timestamp::now();
        let mut nodes: BTreeMap<String, bool> = BTreeMap::new();
        let mut asked: JoinSet<Option<Key>> = JoinSet::new();
        let turns = Arc::new(Semaphore::new(AT_ONCE));
        for (pod, node) in silent {
            let lives = match nodes.get(&node) {
                Some(lives) => *lives,
                None => {
                    let lives = self.lives_on(&node, now);
                    nodes.insert(node, lives);
                    lives
                }
            };
            if !lives || asked.len() >= PODS_ASKED {
                continue;
            }
            let (kube, turns) = (self.kube.clone(), turns.clone());
            asked.spawn(async move {
                let _turn = turns.acquire().await.ok()?;
                let path = format!("{}?resourceVersion=0", PODS.object_path(&pod));
                let known = kube.get(&path).await.ok()?;
                endpoints::was_ready(&known).then_some(pod)
            });
        }
        let (mut alive, deadline) = (BTreeSet::new(), Instant::now() + PATIENCE);
        // Those of which nothing is known in time stay as they are.
        while let Ok(Some(answer)) = timeout_at(deadline, asked.join_next()).await {
            alive.extend(answer.ok().flatten());
        }
        alive
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
        let witness = pool.is_some_and(|pool| {
            let mut leaders = items(&pool["status"]["leaderEndpoints"]);
            pool["spec"]["enableLeaderElection"] == true
                && leaders.any(|leader| {
                    let leader = leader["nodeName"].as_str().unwrap_or_default();
                    leader != name
                        && get(leader)
                            .is_some_and(|leader| condition::holds(&leader["status"], "Ready"))
                })
        });
        endpoints::lives(&node, witness, now)
    }
}
