//! Follows the config maps, by their names (which is all that a node must be allowed), and the Node where its label says the pool.

use super::{Complaint, Data, HUB_MAP, LEADER_MAP, Settings};
use crate::{
    config::Config,
    follow::{self, Objects},
    proxy::Hub,
};
use std::sync::Arc;
use tokio::sync::watch;
use yurt_wire::Object;

/// Label of a Node that names its pool.
const POOL_LABEL: &str = "apps.openyurt.io/nodepool";

type Known = watch::Receiver<Option<Objects>>;

/// Keeps `settings` true until the hub shuts down. What was known stays in force while nothing can be asked, also over a restart:
/// the maps are read through the hub's own cache.
pub(crate) async fn follow(
    hub: Arc<Hub>,
    config: Arc<Config>,
    settings: watch::Sender<Arc<Settings>>,
) {
    let flags = Settings::of_flags(&config);
    let map = |name: &str| {
        let path = format!("/api/v1/namespaces/{}/configmaps", config.namespace);
        follow::follow(&hub, &path, &by_name(name))
    };
    let mut node: Option<Known> = config
        .pool
        .is_empty()
        .then(|| follow::follow(&hub, "/api/v1/nodes", &by_name(&config.node_name)));
    let mut hub_map = map(HUB_MAP);
    let mut leader: Option<(String, Known)> = None;
    let mut complained = Vec::new();
    loop {
        let pool = match &mut node {
            None => config.pool.clone(),
            Some(node) => match &*node.borrow_and_update() {
                Some(objects) => pool_of(objects),
                // What the node's pool was a moment ago.
                None => settings.borrow().pool.clone(),
            },
        };
        if leader.as_ref().map_or("", |(of, _)| of) != pool {
            leader =
                (!pool.is_empty()).then(|| (pool.clone(), map(&format!("{LEADER_MAP}{pool}"))));
        }
        let of_hub = hub_map.borrow_and_update().clone();
        let of_pool = match &mut leader {
            Some((_, known)) => known.borrow_and_update().clone(),
            None => Some(Objects::default()),
        };
        let known = of_hub.is_some() || of_pool.is_some();
        let base = Settings {
            pool: pool.clone(),
            ..flags.clone()
        };
        let data = |objects: &Option<Objects>, name: &str| {
            let key = format!("{}/{name}", config.namespace);
            data_of(objects.as_ref()?.get(key.as_str())?)
        };
        let (read, complaints) = base.read(
            data(&of_hub, HUB_MAP).as_ref(),
            data(&of_pool, &format!("{LEADER_MAP}{pool}")).as_ref(),
        );
        if known {
            complain(&complaints, &complained);
            hub.metrics.settings_ignored(complaints.len());
            complained = complaints;
        }
        settings.send_if_modified(|current| {
            let changed = **current != read;
            if changed {
                tracing::info!(
                    pool = read.pool,
                    cache_agents = ?read.cache_agents,
                    filters = ?read.filters,
                    pool_scope = read.pool_scope.len(),
                    leaders = ?read.leaders,
                    candidates = ?read.candidates,
                    "settings changed"
                );
                *current = Arc::new(read);
            }
            changed
        });
        let going_on = tokio::select! {
            changed = hub_map.changed() => changed,
            changed = changed(leader.as_mut().map(|(_, known)| known)) => changed,
            changed = changed(node.as_mut()) => changed,
            () = hub.shutdown.cancelled() => return,
        };
        if going_on.is_err() {
            // Followers end with the hub.
            return;
        }
    }
}

async fn changed(known: Option<&mut Known>) -> Result<(), watch::error::RecvError> {
    match known {
        Some(known) => known.changed().await,
        None => std::future::pending().await,
    }
}

fn by_name(name: &str) -> String {
    format!("fieldSelector=metadata.name%3D{name}")
}

/// Says what was not complained about before.
fn complain(complaints: &[Complaint], before: &[Complaint]) {
    for complaint in complaints {
        if !before.contains(complaint) {
            tracing::warn!("{complaint}; it is ignored");
        }
    }
}

fn pool_of(objects: &Objects) -> String {
    objects
        .values()
        .next()
        .and_then(|node| node.to_json_value().ok())
        .and_then(|node| Some(node["metadata"]["labels"][POOL_LABEL].as_str()?.to_owned()))
        .unwrap_or_default()
}

fn data_of(object: &Object) -> Option<Data> {
    let value = object.to_json_value().ok()?;
    let data = value["data"].as_object();
    let pairs = data.into_iter().flatten();
    let text = |(key, value): (&String, &serde_json::Value)| {
        Some((key.clone(), value.as_str()?.to_owned()))
    };
    Some(pairs.filter_map(text).collect())
}
