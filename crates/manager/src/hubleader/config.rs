//! The config map that tells a pool's hubs who leads.

use super::{address, elects, has_hub};
use crate::{
    Context, Controller, Entry, Failure, Key, Next, Watch,
    collections::{CONFIG_MAPS, NODE_POOLS, NODES},
    fields::{has_all, items},
    fitting::fitting,
    nodepool::{is_ready, members, watch_members},
    pod,
};
use serde_json::{Value, json};
use std::{collections::BTreeMap, sync::Arc};
use yurt_api::names::{labels::CONFIG_MAP_NAME, leader_config, objects::LEADER_CONFIG_PREFIX};
use yurt_controller::{Scope, policy::Rule, run_with};

/// Candidates that are named; hubs read no more entries.
const MOST_CANDIDATES: usize = 256;
/// The owner of the fields of the maps.
const MANAGER: &str = "yurt-manager/hubleaderconfig-controller";

pub(crate) const ENTRY: Entry = Entry::new(
    HubLeaderConfig::NAME,
    "hubleaderconfig",
    &[Rule::new("", &["configmaps"], &["create", "patch"]).local()],
    |context, settings| {
        let controller = HubLeaderConfig {
            namespace: settings.namespace.clone(),
        };
        let workers = settings.workers(HubLeaderConfig::NAME, HubLeaderConfig::WORKERS);
        run_with(context, controller, workers);
    },
);

/// `hubleaderconfig-controller`.
#[derive(Debug)]
struct HubLeaderConfig {
    /// Where hubs look for their config maps.
    namespace: String,
}

impl HubLeaderConfig {
    /// The config maps for hubs.
    fn scope(&self) -> Scope {
        Scope::default()
            .within(&self.namespace)
            .labelled(CONFIG_MAP_NAME)
    }
}

/// `group/version/resource` of everything that a pool shares.
pub(super) fn shared(pool: &Value) -> Vec<String> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut shared: Vec<String> = items(&pool["spec"]["poolScopeMetadata"])
        .filter(|gvr| {
            gvr["resource"]
                .as_str()
                .is_some_and(|resource| !resource.is_empty())
        })
        .map(|gvr| {
            ["group", "version", "resource"]
                .map(|part| text(&gvr[part]))
                .join("/")
        })
        .collect();
    shared.sort_unstable();
    shared.dedup();
    shared
}

/// All who could lead, ranked: as they were (`before`), then who is new, the ready first. Pure.
fn candidates(before: &str, members: &[Arc<Value>]) -> Vec<String> {
    let able: BTreeMap<&str, (bool, String)> = members
        .iter()
        .filter(|node| has_hub(node))
        .filter_map(|node| {
            let name = node["metadata"]["name"].as_str()?;
            Some((name, (is_ready(node), format!("{name}/{}", address(node)?))))
        })
        .collect();
    let mut ranked: Vec<&str> = before
        .split(',')
        .filter_map(|entry| entry.split('/').next())
        .filter(|name| able.contains_key(name))
        .collect();
    let mut seen = std::collections::BTreeSet::new();
    ranked.retain(|name| seen.insert(*name));
    let mut new: Vec<&str> = able
        .keys()
        .copied()
        .filter(|name| !ranked.contains(name))
        .collect();
    new.sort_by_key(|name| !able[name].0);
    ranked.extend(new);
    ranked.truncate(MOST_CANDIDATES);
    ranked
        .into_iter()
        .map(|name| able[name].1.clone())
        .collect()
}

/// The data of the map. `candidates` is ours: who takes over when no leader is reached. OpenYurt's hubs ignore it.
fn data(pool: &Value, members: &[Arc<Value>], before: &Value) -> Value {
    let mut leaders: Vec<String> = items(&pool["status"]["leaderEndpoints"])
        .filter_map(|leader| {
            Some(format!(
                "{}/{}",
                leader["nodeName"].as_str()?,
                leader["address"].as_str()?
            ))
        })
        .collect();
    leaders.sort_unstable();
    let ranked = if elects(pool) {
        candidates(
            before["data"][leader_config::CANDIDATES]
                .as_str()
                .unwrap_or_default(),
            members,
        )
    } else {
        Vec::new()
    };
    json!({
        leader_config::LEADERS: leaders.join(","),
        leader_config::POOL_SCOPED_METADATA: shared(pool).join(","),
        leader_config::INTER_CONNECTIVITY: (pool["spec"]["interConnectivity"] == true).to_string(),
        leader_config::ENABLE_LEADER_ELECTION: elects(pool).to_string(),
        leader_config::CANDIDATES: ranked.join(","),
    })
}

/// The map of a pool.
fn map(pool: &Value, members: &[Arc<Value>], before: &Value, key: &Key) -> Value {
    let owner = json!({"apiVersion": NODE_POOLS.api_version, "kind": NODE_POOLS.kind,
        "name": pool["metadata"]["name"], "uid": pool["metadata"]["uid"]});
    // OpenYurt's hubs find the map by this; a pool's name may be too long for it, then only those who ask by name do. This controller
    // finds it all the same.
    let of = key
        .name
        .strip_prefix(LEADER_CONFIG_PREFIX)
        .unwrap_or(&key.name);
    let label = fitting(LEADER_CONFIG_PREFIX, of);
    let metadata = json!({"name": key.name, "namespace": key.namespace, "ownerReferences": [owner],
        "labels": {CONFIG_MAP_NAME: label}});
    json!({"metadata": metadata, "data": data(pool, members, before)})
}

impl Controller for HubLeaderConfig {
    const NAME: &'static str = "hubleaderconfig-controller";
    const WORKERS: usize = 3;

    fn watches(&self, _: &Arc<Context>) -> Vec<Watch> {
        let maps = Watch::of(CONFIG_MAPS, |change| {
            let key = change.key();
            let pool = key.name.strip_prefix(LEADER_CONFIG_PREFIX);
            pool.map(|pool| Key::new("", pool)).into_iter().collect()
        });
        let matters = |node: &Value| json!([is_ready(node), address(node), has_hub(node)]);
        vec![
            Watch::own(NODE_POOLS),
            watch_members(matters),
            maps.scoped(self.scope()),
        ]
    }

    async fn reconcile(&self, key: &Key, context: &Context) -> Result<Next, Failure> {
        let pool = context.objects(&NODE_POOLS).get(key);
        let Some(pool) = pool.filter(|pool| !pod::is_deleting(pool)) else {
            // The map goes with its owner.
            return Ok(Next::Done);
        };
        let name = format!("{LEADER_CONFIG_PREFIX}{}", key.name);
        let at = Key::new(&self.namespace, &name);
        let before = context.scoped(&CONFIG_MAPS, &self.scope()).get(&at);
        let before = before.as_deref().unwrap_or(&Value::Null);
        let members = members(&context.objects(&NODES), &key.name);
        let map = map(&pool, &members, before, &at);
        if !has_all(before, &map) {
            // Whoever wrote these fields before: they are this controller's.
            context.apply(&CONFIG_MAPS, map, MANAGER, true).await?;
        }
        Ok(Next::Done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hubleader::tests::{node, pool};

    #[test]
    fn candidates_keep_their_rank() {
        let nodes = |ready: [bool; 3]| -> Vec<Arc<Value>> {
            let named = ["a", "b", "c"].into_iter().zip(ready).zip(1..);
            named
                .map(|((name, ready), last)| Arc::new(node(name, ready, last)))
                .collect()
        };
        let first = candidates("", &nodes([false, true, true]));
        assert_eq!(first, ["b/10.0.0.2", "c/10.0.0.3", "a/10.0.0.1"]);
        let later = candidates(&first.join(","), &nodes([true, false, true]));
        assert_eq!(later, first, "who is silent for a while keeps his place");
        let gone = candidates("x/1.1.1.1,c/10.0.0.9,,b", &nodes([true, true, true]));
        assert_eq!(gone, ["c/10.0.0.3", "b/10.0.0.2", "a/10.0.0.1"]);
    }

    #[test]
    fn a_map_of_a_pool_with_a_long_name_is_found_again() {
        for length in [52, 53, 63] {
            let key = Key::new(
                "ns",
                &format!("{LEADER_CONFIG_PREFIX}{}", "p".repeat(length)),
            );
            let map = map(&pool(1), &[], &Value::Null, &key);
            let label = map["metadata"]["labels"][CONFIG_MAP_NAME].as_str().unwrap();
            assert!(
                label.len() <= 63 && label.starts_with(LEADER_CONFIG_PREFIX),
                "{label}"
            );
            assert_eq!(label == key.name, length == 52, "{label}");
        }
    }

    #[test]
    fn the_map_is_as_openyurts_hubs_read_it() {
        let mut pool = pool(2);
        pool["status"]["leaderEndpoints"] = json!([{"nodeName": "b", "address": "10.0.0.2"}, {"nodeName": "a", "address": "10.0.0.1"}]);
        let members = [Arc::new(node("a", true, 1))];
        assert_eq!(
            data(&pool, &members, &Value::Null),
            json!({"leaders": "a/10.0.0.1,b/10.0.0.2", "pool-scoped-metadata": "/v1/services,discovery.k8s.io/v1/endpointslices",
                "interconnectivity": "true", "enable-leader-election": "true", "candidates": "a/10.0.0.1"})
        );
        pool["spec"]["enableLeaderElection"] = false.into();
        let off = data(&pool, &members, &Value::Null);
        assert_eq!(
            (
                off["candidates"].as_str(),
                off["enable-leader-election"].as_str()
            ),
            (Some(""), Some("false"))
        );
    }
}
