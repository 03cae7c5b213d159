//! The same app in several pools, different in each; a pool that joins; an update that passes a node that is away.

use super::{
    DemoError, ELSEWHERE, JOINS, POOL,
    scene::{Scene, items, pod_on},
};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};
use yurt_api::names::{annotations, labels};
use yurt_controller::{
    collections::{NODE_POOLS, NODES},
    condition, pod,
};

const SETS: &str = "/apis/apps.openyurt.io/v1beta1/namespaces/apps/yurtappsets";
const DAEMONS: &str = "/apis/apps/v1/namespaces/apps/daemonsets";
const PODS: &str = "/api/v1/namespaces/apps/pods";
const OTHER_POOL: &str = "beijing";
const NEW_POOL: &str = "shanghai";

/// The pods of an app that are ready: uid to pool and image.
async fn ready(scene: &Scene<'_>, app: &str) -> Option<BTreeMap<String, (String, String)>> {
    let pods = scene
        .cloud()
        .get(&format!("{PODS}?labelSelector=app%3D{app}"))
        .await
        .ok()?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let ready = items(&pods)
        .iter()
        .filter(|pod| pod::is_ready(pod) && !pod::is_deleting(pod));
    Some(
        ready
            .map(|pod| {
                let pool = text(&pod["metadata"]["labels"][labels::WORKLOAD_POOL]);
                let image = text(&pod["spec"]["containers"][0]["image"]);
                (text(&pod["metadata"]["uid"]), (pool, image))
            })
            .collect(),
    )
}

fn of_pool<'p>(pods: &'p BTreeMap<String, (String, String)>, pool: &str) -> Vec<&'p str> {
    let of = pods.values().filter(|(of, _)| of == pool);
    of.map(|(_, image)| image.as_str()).collect()
}

/// An app in two pools, then in a third one.
pub(super) async fn tell(scene: &mut Scene<'_>) -> Result<(), DemoError> {
    let cloud = scene.cloud();
    scene.step(&format!(
        "the same app in two pools, different in each: a YurtAppSet with 3 pods in {POOL}, 1 of another image in {OTHER_POOL}"
    ));
    cloud
        .ensure("/api/v1/namespaces", &json!({"metadata": {"name": "apps"}}))
        .await?;
    let app = json!({"app": "menu"});
    let set = json!({"metadata": {"name": "menu"}, "spec": {
    "pools": [POOL, OTHER_POOL],
    "workload": {
        "workloadTemplate": {"deploymentTemplate": {"metadata": {"labels": app}, "spec": {
            "replicas": 3, "selector": {"matchLabels": app},
            "template": {"metadata": {"labels": app}, "spec": {"containers": [{"name": "main", "image": "registry.lab/menu:1"}]}}}}},
        "workloadTweaks": [{"pools": [OTHER_POOL, NEW_POOL], "tweaks": {"replicas": 1,
            "containerImages": [{"name": "main", "targetImage": "registry.lab/menu:1-small"}]}}],
    }}});
    let asked = Instant::now();
    cloud.create(SETS, &set).await?;
    let pods = scene
        .within("the pods of both pools", async || {
            let pods = ready(scene, "menu").await?;
            (of_pool(&pods, POOL).len() == 3 && of_pool(&pods, OTHER_POOL).len() == 1)
                .then_some(pods)
        })
        .await?;
    scene.measure(
        "from the set to its pods ready in both pools",
        asked.elapsed(),
        None,
    );
    let large = of_pool(&pods, POOL)
        .iter()
        .all(|image| *image == "registry.lab/menu:1");
    let small = of_pool(&pods, OTHER_POOL) == ["registry.lab/menu:1-small"];
    scene.check("each pool has its own image", large && small);

    scene.step(&format!(
        "a third pool, {NEW_POOL}: a node joins it, and the set is told of it"
    ));
    let pool = json!({"metadata": {"name": NEW_POOL}, "spec": {"type": "Edge", "labels": {"region": "east"}}});
    cloud.create(&NODE_POOLS.path(""), &pool).await?;
    let joined = json!({"metadata": {"labels": {labels::NODE_POOL: NEW_POOL}}});
    let asked = Instant::now();
    cloud
        .merge(&format!("{}/{JOINS}", NODES.path("")), &joined)
        .await?;
    let pools = json!({"spec": {"pools": [POOL, OTHER_POOL, NEW_POOL]}});
    cloud.merge(&format!("{SETS}/menu"), &pools).await?;
    let more = scene
        .within("a pod in the third pool", async || {
            let pods = ready(scene, "menu").await?;
            (of_pool(&pods, NEW_POOL).len() == 1).then_some(pods)
        })
        .await?;
    scene.measure("from joining to its pod ready there", asked.elapsed(), None);
    scene.check(
        "nobody elsewhere was restarted",
        pods.keys().all(|uid| more.contains_key(uid)),
    );
    let given = scene
        .within("what the pool gives to its nodes", async || {
            let node = cloud
                .get(&format!("{}/{JOINS}", NODES.path("")))
                .await
                .ok()?;
            (node["metadata"]["labels"]["region"] == "east").then_some(())
        })
        .await;
    scene.check("the node has the labels of its pool", given.is_ok());
    Ok(())
}

fn daemon(image: &str) -> Value {
    let app = json!({"app": "agent"});
    json!({"metadata": {"name": "agent", "annotations": {annotations::UPDATE_STRATEGY: "AdvancedRollingUpdate", annotations::MAX_UNAVAILABLE: "50%"}},
        "spec": {"selector": {"matchLabels": app}, "updateStrategy": {"type": "OnDelete"},
            "template": {"metadata": {"labels": app}, "spec": {"containers": [{"name": "main", "image": image}]}}}})
}

/// A daemon everywhere; the only node of a pool goes away, with nobody to vouch for it.
pub(super) async fn loses_a_node(scene: &mut Scene<'_>) -> Result<(), DemoError> {
    scene.step(&format!(
        "an agent on every node; then {ELSEWHERE} is cut off, and there is nobody in its pool to vouch for it"
    ));
    let all = scene.cluster.nodes().len() + 1;
    scene
        .cloud()
        .create(DAEMONS, &daemon("registry.lab/agent:1"))
        .await?;
    scene
        .within("an agent on every node", async || {
            (ready(scene, "agent").await?.len() == all).then_some(())
        })
        .await?;
    scene.cut(ELSEWHERE).await?;
    scene.say("it will count as lost while the story goes on in the other pool");
    Ok(())
}

/// The nodes whose agent has an image, and is ready.
async fn updated(scene: &Scene<'_>, image: &str) -> Option<BTreeSet<String>> {
    let pods = scene
        .cloud()
        .get(&format!("{PODS}?labelSelector=app%3Dagent"))
        .await
        .ok()?;
    let new = items(&pods).iter().filter(|pod| {
        pod::is_ready(pod)
            && !pod::is_deleting(pod)
            && pod["spec"]["containers"][0]["image"] == image
    });
    Some(new.map(|pod| pod::node(pod).to_owned()).collect())
}

/// An update passes the node that is away, and reaches it when it is back.
pub(super) async fn rolls_past_it(scene: &mut Scene<'_>) -> Result<(), DemoError> {
    let cloud = scene.cloud();
    scene.step(&format!(
        "a new agent for all: the update passes {ELSEWHERE}, which is NotReady"
    ));
    scene
        .within("the node given up by the cloud", async || {
            let node = cloud
                .get(&format!("{}/{ELSEWHERE}", NODES.path("")))
                .await
                .ok()?;
            (!condition::holds(&node["status"], "Ready")).then_some(())
        })
        .await?;
    let of_agent = format!("{PODS}?labelSelector=app%3Dagent");
    let before = pod_on(&cloud.get(&of_agent).await?, ELSEWHERE)?;
    let asked = Instant::now();
    let spec = json!({"spec": {"template": daemon("registry.lab/agent:2")["spec"]["template"]}});
    cloud.merge(&format!("{DAEMONS}/agent"), &spec).await?;
    let others = scene.cluster.nodes().len();
    scene
        .within("the update of all others", async || {
            (updated(scene, "registry.lab/agent:2").await?.len() == others).then_some(())
        })
        .await?;
    scene.measure(
        &format!("from the new version to {others} nodes updated"),
        asked.elapsed(),
        None,
    );
    let after = pod_on(&cloud.get(&of_agent).await?, ELSEWHERE)?;
    scene.check(
        "the one that is away is left alone",
        after["metadata"]["uid"] == before["metadata"]["uid"],
    );
    let healed = scene.heal(ELSEWHERE).await?;
    scene
        .within("the update of who is back", async || {
            updated(scene, "registry.lab/agent:2")
                .await?
                .contains(ELSEWHERE)
                .then_some(())
        })
        .await?;
    scene.measure(
        "from its link healed to its update done",
        healed.elapsed(),
        None,
    );
    scene
        .within("its hub online", async || {
            (scene.hub_state(ELSEWHERE).await? == "online").then_some(())
        })
        .await
}
