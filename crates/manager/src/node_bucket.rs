//! `node-bucket-controller` of OpenYurt: the nodes of a pool in pieces of bounded size, so that hubs learn of one that comes or goes
//! by a small event.

mod plan;

use crate::{
    Context, Controller, Entry, Failure, Key, Next, Watch,
    collections::{NODE_BUCKETS, NODE_POOLS, NODES},
    controller_of,
    fields::{items, text},
    nodepool::{members, watch_members},
    pod,
};
use plan::{Bucket, Plan, Write, plan};
use serde_json::{Value, json};
use std::{collections::BTreeSet, sync::Arc};
use yurt_api::names::labels::POOL_NAME;
use yurt_controller::{claim, kube::KubeError, policy::Rule, run_with};

pub(crate) const ENTRY: Entry = Entry::new(
    NodeBuckets::NAME,
    "nodebucket",
    &[
        Rule::new(
            "apps.openyurt.io",
            &["nodebuckets"],
            &["create", "patch", "delete"],
        ),
        // An owner that is not to go before what it owns.
        Rule::new("apps.openyurt.io", &["nodepools/finalizers"], &["update"]),
    ],
    |context, settings| {
        let most = settings.max_nodes_per_bucket.max(1);
        let workers = settings.workers(NodeBuckets::NAME, NodeBuckets::WORKERS);
        run_with(context, NodeBuckets { most }, workers);
    },
);

/// What names are made of after the pool's, as Kubernetes generates them: no vowels, no words.
const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
const SUFFIX: usize = 6;
/// How many names are tried for a new bucket.
const TRIES: usize = 5;

/// `node-bucket-controller`.
#[derive(Debug)]
struct NodeBuckets {
    /// The most nodes in a bucket.
    most: usize,
}

/// The pool that a bucket is of, by its label or its owner.
fn pools_of(bucket: &Value) -> BTreeSet<String> {
    let label = bucket["metadata"]["labels"][POOL_NAME].as_str();
    let owner = controller_of(bucket).filter(|owner| owner["kind"] == *NODE_POOLS.kind);
    let owner = owner.and_then(|owner| owner["name"].as_str());
    label.into_iter().chain(owner).map(str::to_owned).collect()
}

/// A bucket as the plan sees it.
fn bucket(object: &Value, pool: &Value) -> Bucket {
    let nodes: Vec<String> = items(&object["nodes"])
        .map(|node| text(&node["name"]))
        .collect();
    let sound = object["numNodes"] == nodes.len()
        && object["metadata"]["labels"][POOL_NAME] == pool["metadata"]["name"]
        && controller_of(object).is_some_and(|owner| owner["uid"] == pool["metadata"]["uid"]);
    Bucket {
        name: Key::of(object).name,
        nodes,
        sound,
    }
}

/// What a bucket of these nodes says.
fn content(pool: &Value, nodes: &[String]) -> Value {
    let list: Vec<Value> = nodes.iter().map(|name| json!({"name": name})).collect();
    json!({"metadata": {"labels": {POOL_NAME: pool["metadata"]["name"]}, "ownerReferences": [claim::reference(&NODE_POOLS, pool)]},
        "numNodes": nodes.len(), "nodes": list})
}

fn generated(pool: &str) -> String {
    let letter = |_| char::from(*fastrand::choice(LETTERS).unwrap_or(&b'x'));
    format!("{pool}-{}", (0..SUFFIX).map(letter).collect::<String>())
}

async fn create(context: &Context, pool: &Value, nodes: &[String]) -> Result<(), KubeError> {
    let mut tries = 0;
    loop {
        let mut object = content(pool, nodes);
        object["metadata"]["name"] = generated(&Key::of(pool).name).into();
        tries += 1;
        match context.create(&NODE_BUCKETS, object).await {
            Err(error) if error.is_conflict() && tries < TRIES => {}
            other => return other.map(drop),
        }
    }
}

impl Controller for NodeBuckets {
    const NAME: &'static str = "node-bucket-controller";
    const WORKERS: usize = 3;

    fn watches(&self, _: &Arc<Context>) -> Vec<Watch> {
        let buckets = Watch::of(NODE_BUCKETS, |change| {
            let both = [&change.old, &change.new].into_iter().flatten();
            let pools: BTreeSet<String> = both.flat_map(|bucket| pools_of(bucket)).collect();
            pools.iter().map(|pool| Key::new("", pool)).collect()
        });
        let pools = Watch::of(NODE_POOLS, |change| match (&change.old, &change.new) {
            (Some(old), Some(new)) if old["metadata"]["uid"] == new["metadata"]["uid"] => {
                Vec::new()
            }
            _ => vec![change.key()],
        });
        vec![buckets, pools, watch_members(|_| Value::Null)]
    }

    async fn reconcile(&self, key: &Key, context: &Context) -> Result<Next, Failure> {
        let pool = context.objects(&NODE_POOLS).get(key);
        let Some(pool) = pool.filter(|pool| !pod::is_deleting(pool)) else {
            // Buckets go with their owner.
            return Ok(Next::Done);
        };
        let all = context.objects(&NODE_BUCKETS);
        let mut objects = all.labelled(POOL_NAME, &key.name);
        let owned = all.owned_by(pool["metadata"]["uid"].as_str().unwrap_or_default());
        // One that somebody has labelled otherwise.
        objects.extend(
            owned
                .into_iter()
                .filter(|b| b["metadata"]["labels"][POOL_NAME] != key.name),
        );
        objects.retain(|bucket| !pod::is_deleting(bucket));
        let members = members(&context.objects(&NODES), &key.name);
        let members: BTreeSet<String> = members.iter().map(|node| Key::of(node).name).collect();
        let buckets: Vec<Bucket> = objects.iter().map(|object| bucket(object, &pool)).collect();
        let Plan { writes, delete } = plan(buckets, &members, self.most);
        let found = |name: &str| {
            objects
                .iter()
                .find(|object| object["metadata"]["name"] == name)
        };
        for Write { name, nodes } in &writes {
            match name.as_deref().map(found) {
                None => create(context, &pool, nodes).await?,
                Some(Some(known)) => {
                    let mut patch = content(&pool, nodes);
                    patch["metadata"]["resourceVersion"] =
                        known["metadata"]["resourceVersion"].clone();
                    context
                        .merge(&NODE_BUCKETS, &Key::of(known), "", &patch)
                        .await?;
                }
                Some(None) => {}
            }
        }
        for object in delete.iter().filter_map(|name| found(name)) {
            context.delete(&NODE_BUCKETS, object).await?;
        }
        Ok(Next::Done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Settings, stage::Stage};
    use yurt_api::names::labels::NODE_POOL;

    const BUCKETS: &str =
        "/apis/apps.openyurt.io/v1alpha1/nodebuckets?labelSelector=openyurt.io/pool-name=p";

    /// The sizes of all buckets and the nodes in them, both sorted.
    fn filled(list: &Value) -> (Vec<u64>, Vec<String>) {
        let buckets = || items(&list["items"]);
        let mut sizes: Vec<u64> = buckets().filter_map(|b| b["numNodes"].as_u64()).collect();
        let mut nodes: Vec<String> = buckets()
            .flat_map(|b| items(&b["nodes"]))
            .map(|node| text(&node["name"]))
            .collect();
        sizes.sort_unstable();
        nodes.sort_unstable();
        (sizes, nodes)
    }

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[tokio::test]
    async fn buckets_follow_the_pool() {
        let settings = Settings {
            max_nodes_per_bucket: 2,
            ..Settings::default()
        };
        let stage = Stage::start_confined(NodeBuckets::NAME, settings).await;
        stage.define_pools(&["p"]).await;
        for name in ["a", "b", "c", "d", "e"] {
            let node = json!({"metadata": {"name": name, "labels": {NODE_POOL: "p"}}});
            stage.create("/api/v1/nodes", node).await;
        }
        let all = names(&["a", "b", "c", "d", "e"]);
        let list = stage
            .until(BUCKETS, |list| filled(list) == (vec![1, 2, 2], all.clone()))
            .await;
        let first = &list["items"][0];
        assert_eq!(controller_of(first).expect("an owner")["kind"], "NodePool");
        let name = text(&first["metadata"]["name"]);
        assert!(name.starts_with("p-") && name.len() == 8, "{name}");
        stage.kube.delete("/api/v1/nodes/c").await.expect("deleted");
        let leave = json!({"metadata": {"labels": {NODE_POOL: null}}});
        stage
            .kube
            .merge("/api/v1/nodes/e", &leave)
            .await
            .expect("left");
        let left = names(&["a", "b", "d"]);
        let list = stage.until(BUCKETS, |list| filled(list).1 == left).await;
        // What somebody does to a bucket is undone.
        let path = format!(
            "/apis/apps.openyurt.io/v1alpha1/nodebuckets/{}",
            text(&list["items"][0]["metadata"]["name"])
        );
        let wrong = json!({"metadata": {"labels": {POOL_NAME: "q"}}, "nodes": [{"name": "x"}]});
        stage.kube.merge(&path, &wrong).await.expect("changed");
        stage.until(BUCKETS, |list| filled(list).1 == left).await;
        let list = stage.kube.get(BUCKETS).await.expect("buckets");
        for bucket in items(&list["items"]) {
            stage
                .quiet(&format!(
                    "/apis/apps.openyurt.io/v1alpha1/nodebuckets/{}",
                    text(&bucket["metadata"]["name"])
                ))
                .await;
        }
    }
}
