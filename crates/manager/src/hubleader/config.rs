//! The config map that tells a pool's hubs who leads.

use super::{elects, has_hub, matters};
use crate::{
    Context, Controller, Entry, Failure, Key, Next, Watch,
    collections::{CONFIG_MAPS, NODE_POOLS, NODES},
    condition,
    fields::items,
    nodepool::{members, watch_members},
    pod,
};
use serde_json::{Value, json};
use std::{collections::BTreeMap, sync::Arc};
use yurt_controller::policy::Rule;

/// Where hubs look for their config maps.
const NAMESPACE: &str = "kube-system";
/// Before the pool's name in that of the config map.
const PREFIX: &str = "leader-hub-";
/// The label by which OpenYurt's hubs find it.
const NAME_LABEL: &str = "openyurt.io/configmap-name";
/// Candidates that are named; hubs read no more entries.
const MOST_CANDIDATES: usize = 256;

pub(crate) const ENTRY: Entry = Entry::of::<HubLeaderConfig>(
    "hubleaderconfig",
    &[Rule::new("", &["configmaps"], &["create", "update"])],
);

/// `hubleaderconfig-controller`.
#[derive(Debug, Default)]
pub(crate) struct HubLeaderConfig;

/// `group/version/resource` of everything that a pool shares.
pub(super) fn shared(pool: &Value) -> Vec<String> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut shared: Vec<String> = items(&pool["spec"]["poolScopeMetadata"])
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
            let ready = condition::holds(&node["status"], "Ready");
            Some((name, (ready, format!("{name}/{}", super::address(node)?))))
        })
        .collect();
    let mut ranked: Vec<&str> = before
        .split(',')
        .filter_map(|entry| entry.split('/').next())
        .filter(|name| able.contains_key(name))
        .collect();
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
            before["data"]["candidates"].as_str().unwrap_or_default(),
            members,
        )
    } else {
        Vec::new()
    };
    json!({
        "leaders": leaders.join(","),
        "pool-scoped-metadata": shared(pool).join(","),
        "interconnectivity": (pool["spec"]["interConnectivity"] == true).to_string(),
        "enable-leader-election": elects(pool).to_string(),
        "candidates": ranked.join(","),
    })
}

impl Controller for HubLeaderConfig {
    const NAME: &'static str = "hubleaderconfig-controller";

    fn watches(&self, _: &Arc<Context>) -> Vec<Watch> {
        let maps = Watch::of(CONFIG_MAPS, |change| {
            let key = change.key();
            let pool = key
                .name
                .strip_prefix(PREFIX)
                .filter(|_| key.namespace == NAMESPACE);
            pool.map(|pool| Key::new("", pool)).into_iter().collect()
        });
        vec![Watch::own(NODE_POOLS), watch_members(matters), maps]
    }

    async fn reconcile(&self, key: &Key, context: &Context) -> Result<Next, Failure> {
        let pool = context.objects(&NODE_POOLS).get(key);
        let Some(pool) = pool.filter(|pool| !pod::is_deleting(pool)) else {
            // The map goes with its owner.
            return Ok(Next::Done);
        };
        let name = format!("{PREFIX}{}", key.name);
        let map = Key::new(NAMESPACE, &name);
        let before = context.objects(&CONFIG_MAPS).get(&map);
        let members = members(&context.objects(&NODES), &key.name);
        let data = data(&pool, &members, before.as_deref().unwrap_or(&Value::Null));
        match before {
            Some(before) if before["data"] == data => {}
            Some(_) => {
                context
                    .merge(&CONFIG_MAPS, &map, "", &json!({"data": data}))
                    .await?;
            }
            None => {
                let owner = json!({"apiVersion": NODE_POOLS.api_version, "kind": NODE_POOLS.kind,
                    "name": key.name, "uid": pool["metadata"]["uid"]});
                let object = json!({"metadata": {"name": name, "namespace": NAMESPACE, "labels": {NAME_LABEL: name},
                    "ownerReferences": [owner]}, "data": data});
                context.create(&CONFIG_MAPS, object).await?;
            }
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
