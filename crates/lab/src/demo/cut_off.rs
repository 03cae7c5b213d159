//! A site that loses its link altogether: reads go on, pods report, even a power cut is survived, and nothing of it is lost.

use super::{
    BUDGET, DemoError, ELSEWHERE, POOL, reach,
    scene::{PODS, Scene, items, median, name, names, next, pod_on},
};
use crate::{
    control::Command,
    kube::{Kube, KubeError, Lines},
};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

/// The node whose reader stays connected, and the one that loses its power.
const WATCHED: &str = "hangzhou-1";
const REBOOTED: &str = "hangzhou-2";
const OF_WEB: &str = "/apis/discovery.k8s.io/v1/namespaces/shop/endpointslices?labelSelector=kubernetes.io%2Fservice-name%3Dweb";

/// Tells the chapter.
pub(super) async fn tell(scene: &mut Scene<'_>) -> Result<(), DemoError> {
    let online = scene.cloud().get(PODS).await?;
    let (reader, mut watch) = a_reader(scene, &online).await?;
    let one = format!("{PODS}/{}", name(&pod_on(&online, WATCHED)?));
    is_cut(scene, &online, &reader, &one).await?;
    let local = goes_on(scene, &online, &reader, &one, &mut watch).await?;
    loses_power(scene, &online).await?;
    reach::is_refused(scene, WATCHED).await?;
    is_healed(scene, &one, &local, &mut watch).await
}

async fn a_reader(scene: &mut Scene<'_>, online: &Value) -> Result<(Kube, Lines), DemoError> {
    scene.step(&format!("a reader at {WATCHED}'s hub: list, then watch"));
    let reader = scene.through(WATCHED)?;
    let listed = reader.get(PODS).await?;
    for path in [PODS, OF_WEB] {
        scene.through(REBOOTED)?.get(path).await?;
    }
    scene.check(
        "the hub lists what the API server lists",
        names(&listed) == names(online),
    );
    let revision = listed["metadata"]["resourceVersion"]
        .as_str()
        .unwrap_or_default();
    let watch = reader
        .watch(&format!("{PODS}?watch=true&resourceVersion={revision}"))
        .await?;
    let one = format!("{PODS}/{}", name(&pod_on(online, WATCHED)?));
    let median = median(&reader, &one).await?;
    scene.measure("GET through the hub, online (median of 50)", median, None);
    Ok((reader, watch))
}

async fn is_cut(
    scene: &mut Scene<'_>,
    online: &Value,
    reader: &Kube,
    one: &str,
) -> Result<(), DemoError> {
    scene.step("the cloud links of all of pool hangzhou are cut: packets vanish, nothing is reset");
    let cut = scene.cut(POOL).await?;
    let mut slowest = Duration::ZERO;
    scene
        .within("the hub going local", async || {
            let asked = Instant::now();
            let answered = reader.get(one).await.is_ok();
            slowest = slowest.max(asked.elapsed());
            (answered && scene.hub_state(WATCHED).await? == "offline").then_some(())
        })
        .await?;
    scene.measure(
        "from the cut to answers from the node itself",
        cut.elapsed(),
        Some(BUDGET),
    );
    scene.measure("slowest read meanwhile", slowest, Some(BUDGET));
    let cached = reader.get(PODS).await?;
    scene.check(
        "the node still lists every pod, of both pools",
        names(&cached) == names(online),
    );
    let median = median(reader, one).await?;
    scene.measure("GET from the cache, offline (median of 50)", median, None);
    let refused = reader
        .create(
            "/api/v1/namespaces/shop/configmaps",
            &json!({"metadata": {"name": "later"}}),
        )
        .await;
    match refused {
        Err(KubeError::Refused { message, .. }) => {
            scene.say(&format!("a create is refused: {message}"));
        }
        other => scene.check(
            &format!("a create is refused with its reason, not {other:?}"),
            false,
        ),
    }
    Ok(())
}

/// A pod's status changes at the node, another's labels in the cloud; gives the status.
async fn goes_on(
    scene: &mut Scene<'_>,
    online: &Value,
    reader: &Kube,
    one: &str,
    watch: &mut Lines,
) -> Result<Value, DemoError> {
    scene.step("life goes on at the node: a pod's status changes");
    let cloud = scene.cloud();
    let local_pod = pod_on(online, WATCHED)?;
    let before = reader.get(one).await?["status"].clone();
    scene
        .command(Command::Touch {
            pod: format!("shop/{}", name(&local_pod)),
        })
        .await?;
    let seen = next(watch, "the new status in the open watch", |event| {
        name(&event["object"]) == name(&local_pod) && event["object"]["status"] != before
    })
    .await?;
    scene.check(
        "the watch opened before the cut shows it",
        seen["type"] == "MODIFIED",
    );
    let local = reader.get(one).await?["status"].clone();
    scene.check(
        "the cloud knows nothing of it yet",
        cloud.get(one).await?["status"] == before,
    );

    scene.step("and in the cloud: a pod of the other pool gets a label");
    let labelled = format!("{PODS}/{}", name(&pod_on(online, ELSEWHERE)?));
    cloud
        .merge(
            &labelled,
            &json!({"metadata": {"labels": {"tier": "gold"}}}),
        )
        .await?;
    Ok(local)
}

/// The conditions of a status: who adds one puts it where he likes.
fn by_type(status: &Value) -> BTreeMap<&str, &Value> {
    let conditions = status["conditions"].as_array().into_iter().flatten();
    let typed = conditions.filter_map(|condition| Some((condition["type"].as_str()?, condition)));
    typed.collect()
}

/// The endpoints of the app that take connections.
fn ready(slices: &Value) -> Vec<&str> {
    let endpoints = items(slices)
        .iter()
        .filter_map(|slice| slice["endpoints"].as_array())
        .flatten();
    endpoints
        .filter(|endpoint| endpoint["conditions"]["ready"] == true)
        .filter_map(|endpoint| endpoint["addresses"][0].as_str())
        .collect()
}

async fn loses_power(scene: &mut Scene<'_>, online: &Value) -> Result<(), DemoError> {
    scene.step(&format!(
        "{REBOOTED} loses its power and comes back, without a cloud: hub killed with -9, every pod started again"
    ));
    let pod = pod_on(online, REBOOTED)?;
    let address = pod["status"]["podIP"].clone();
    let down = Instant::now();
    scene
        .command(Command::Reboot {
            target: REBOOTED.into(),
        })
        .await?;
    let after = scene
        .within("the hub's first answer", async || {
            scene.through(REBOOTED).ok()?.get(PODS).await.ok()
        })
        .await?;
    scene.measure(
        "from the power cut to the hub's first answer",
        down.elapsed(),
        None,
    );
    scene.check(
        "it answers as before, from its disk",
        names(&after) == names(online),
    );
    let reader = scene.through(REBOOTED)?;
    let path = format!("{PODS}/{}", name(&pod));
    scene
        .within(
            "the pod with its new address behind its service",
            async || {
                let new = reader.get(&path).await.ok()?["status"]["podIP"].clone();
                let slices = reader.get(OF_WEB).await.ok()?;
                let served = ready(&slices);
                (new != address && new.as_str().is_some_and(|new| served.contains(&new)))
                    .then_some(())
            },
        )
        .await?;
    scene.measure(
        "from the power cut to its pod running again, behind its service",
        down.elapsed(),
        None,
    );
    Ok(())
}

async fn is_healed(
    scene: &mut Scene<'_>,
    one: &str,
    local: &Value,
    watch: &mut Lines,
) -> Result<(), DemoError> {
    scene.step("the links are healed");
    let cloud = scene.cloud();
    let healed = scene.heal(POOL).await?;
    scene
        .within("the hub coming back", async || {
            (scene.hub_state(WATCHED).await? == "online").then_some(())
        })
        .await?;
    scene.measure(
        "from the heal to the hub online",
        healed.elapsed(),
        Some(BUDGET),
    );
    scene
        .within("the pod's status in the cloud", async || {
            let known = cloud.get(one).await.ok()?;
            (by_type(&known["status"]) == by_type(local)).then_some(())
        })
        .await?;
    scene.measure(
        "from the heal to the node's status in the cloud",
        healed.elapsed(),
        None,
    );
    reach::is_back(scene, WATCHED, healed).await?;

    scene.step("the reader at the hub, still on the same watch");
    let mut relisted = 0;
    next(watch, "the cloud's change in the open watch", |event| {
        relisted += usize::from(event["type"] == "ADDED");
        event["object"]["metadata"]["labels"]["tier"] == "gold"
    })
    .await?;
    scene.measure(
        "from the heal to the cloud's change in the watch",
        healed.elapsed(),
        None,
    );
    scene.check("it came as a change, without a relist", relisted == 0);
    Ok(())
}
