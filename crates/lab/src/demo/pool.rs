//! A pool that coordinates itself: one node asks the cloud for all, vouches for those that cannot, and is replaced when it cannot
//! itself.

use super::{
    BUDGET, DemoError, GRACE, POOL,
    scene::{Scene, name, names, next},
};
use crate::{
    control::NodeStatus,
    kube::{Kube, Lines},
};
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use yurt_api::names::annotations::DELEGATE_HEARTBEAT;

const SLICES: &str = "/apis/discovery.k8s.io/v1/namespaces/shop/endpointslices";
const SERVICES: &str = "/api/v1/namespaces/shop/services";
/// The slice that changes.
const STORM: &str = "storm";
/// How often it does.
const CHANGES: u32 = 200;
/// What nodes that share take of the leader's bytes, beside what they need for themselves: less than this part.
const FOLLOWERS: u64 = 4;

/// A watch of the slices at each node of the pool.
type Watches = Vec<(String, Lines)>;

/// Tells the chapter.
pub(super) async fn tell(scene: &mut Scene<'_>) -> Result<(), DemoError> {
    let leader = shares(scene).await?;
    vouches(scene, &leader).await
}

/// Who leads; `None` while the pool is not in order.
async fn leader(scene: &Scene<'_>, wanted: impl Fn(&str) -> bool) -> Option<String> {
    let statuses = scene.statuses(POOL).await;
    let mut leaders = statuses.iter().filter(|node| node.pool_role == "leader");
    let leader = leaders.next().filter(|node| wanted(&node.name))?;
    leaders.next().is_none().then(|| leader.name.clone())
}

fn change(number: u32) -> Value {
    json!({"metadata": {"annotations": {"demo.yurt.dev/number": number.to_string()}}})
}

fn number(event: &Value) -> u32 {
    let object = &event["object"];
    let number = object["metadata"]["annotations"]["demo.yurt.dev/number"].as_str();
    let of_storm = number.filter(|_| name(object) == STORM);
    of_storm.and_then(|number| number.parse().ok()).unwrap_or(0)
}

/// Waits until every watch has told a change.
async fn told(watches: &mut Watches, wanted: u32) -> Result<(), DemoError> {
    for (_, watch) in watches {
        next(watch, "the last change at every node", |event| {
            number(event) >= wanted
        })
        .await?;
    }
    Ok(())
}

/// One node fetches for all.
async fn shares(scene: &mut Scene<'_>) -> Result<String, DemoError> {
    scene.step(&format!(
        "pool {POOL} shares what its nodes ask for: one of them fetches it for all"
    ));
    let leader = scene.within("a leader", async || {
        let all = scene.statuses(POOL).await;
        let following = all
            .iter()
            .filter(|node| node.pool_role == "follower")
            .count();
        leader(scene, |_| following + 1 == all.len()).await
    });
    let leader = leader.await?;
    scene.say(&format!("{leader} leads, the others follow it"));
    let endpoints: Vec<Value> = (1..=100)
        .map(|last| json!({"addresses": [format!("10.9.0.{last}")], "conditions": {"ready": true}}))
        .collect();
    let slice = json!({"metadata": {"name": STORM, "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4", "endpoints": endpoints, "ports": [{"port": 80}]});
    let cloud = scene.cloud();
    cloud.create(SLICES, &slice).await?;
    let mut watches = Watches::new();
    for node in scene.statuses(POOL).await {
        let watch = scene
            .through(&node.name)?
            .watch(&format!("{SLICES}?watch=true"))
            .await?;
        scene.through(&node.name)?.get(SERVICES).await?;
        watches.push((node.name, watch));
    }
    let path = format!("{SLICES}/{STORM}");
    // The first one shows that every watch is open.
    cloud.merge(&path, &change(1)).await?;
    told(&mut watches, 1).await?;

    let before = scene.statuses(POOL).await;
    for number in 2..=CHANGES {
        cloud.merge(&path, &change(number)).await?;
    }
    told(&mut watches, CHANGES).await?;
    let after = scene.statuses(POOL).await;
    let took = |of_leader: bool| -> u64 {
        let pairs = before
            .iter()
            .zip(&after)
            .filter(|(node, _)| (node.name == leader) == of_leader);
        pairs
            .map(|(before, after)| after.bytes_from_cloud - before.bytes_from_cloud)
            .sum()
    };
    let (fetched, others) = (took(true), took(false));
    let alone = fetched * after.len() as u64;
    let kilobytes = |bytes: u64| format!("{:.0} KB", bytes as f64 / 1e3);
    scene.figure(
        &format!(
            "{CHANGES} changes of endpoints at {} nodes, from the cloud",
            after.len()
        ),
        format!(
            "{} (each for itself: {})",
            kilobytes(fetched + others),
            kilobytes(alone)
        ),
    );
    scene.figure(
        "saved",
        format!(
            "{:.0} %",
            100.0 * (1.0 - (fetched + others) as f64 / alone.max(1) as f64)
        ),
    );
    scene.check(
        "the others took next to nothing over their own links",
        others < fetched / FOLLOWERS,
    );
    Ok(leader)
}

/// Whether a node is Ready in the cloud.
async fn is_ready(cloud: &Kube, node: &str) -> Option<bool> {
    let node = cloud.get(&format!("/api/v1/nodes/{node}")).await.ok()?;
    let conditions = node["status"]["conditions"].as_array()?;
    let ready = conditions
        .iter()
        .find(|condition| condition["type"] == "Ready")?;
    Some(ready["status"] == "True")
}

/// A lease that is renewed by another, and when that was.
async fn vouched(cloud: &Kube, node: &str) -> Option<String> {
    let path = format!("/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/{node}");
    let lease = cloud.get(&path).await.ok()?;
    let by_another = lease["metadata"]["annotations"][DELEGATE_HEARTBEAT] == "true";
    lease["spec"]["renewTime"]
        .as_str()
        .filter(|_| by_another)
        .map(str::to_owned)
}

/// A node is cut off, then the leader: both stay Ready, and hear the news.
async fn vouches(scene: &mut Scene<'_>, first: &str) -> Result<(), DemoError> {
    let cloud = scene.cloud();
    let others: Vec<NodeStatus> = scene
        .statuses(POOL)
        .await
        .into_iter()
        .filter(|node| node.name != first)
        .collect();
    let cut = others
        .first()
        .map(|node| node.name.clone())
        .unwrap_or_default();
    scene.step(&format!("{cut} is cut off the cloud, but not off its pool"));
    let since = scene.cut(&cut).await?;
    scene
        .within("its lease renewed by the leader", async || {
            vouched(cloud, &cut).await
        })
        .await?;
    scene.measure(
        "from the cut to its first heartbeat through the leader",
        since.elapsed(),
        None,
    );
    news(scene, &cut, "while-cut").await?;

    scene.step(&format!("{first}, which leads, is cut off as well"));
    let began = scene.cut(first).await?;
    let second = scene
        .within("another leader", async || {
            leader(scene, |node| node != first).await
        })
        .await?;
    scene.measure(
        &format!("from the cut to {second} leading"),
        began.elapsed(),
        Some(BUDGET),
    );
    news(scene, first, "after-that").await?;
    let (mut renewals, mut ready) = (Vec::new(), true);
    scene
        .within("heartbeats for longer than the grace period", async || {
            ready &= is_ready(cloud, &cut).await? && is_ready(cloud, first).await?;
            let renewal = vouched(cloud, first).await?;
            if !renewals.contains(&renewal) {
                renewals.push(renewal);
            }
            let long = began.elapsed() > GRACE + Duration::from_secs(1);
            (!ready || long && renewals.len() > 2).then_some(())
        })
        .await?;
    scene.check(
        &format!(
            "both stay Ready beyond the {} s after which silent nodes are lost",
            GRACE.as_secs()
        ),
        ready,
    );
    scene.heal(POOL).await?;
    scene
        .within("the pool in order", async || {
            let all = scene.statuses(POOL).await;
            let online = all.iter().all(|node| node.hub == "online");
            let following = all
                .iter()
                .filter(|node| node.pool_role == "follower")
                .count();
            (online && following + 1 == all.len()).then_some(())
        })
        .await?;
    for node in [cut.as_str(), first] {
        scene
            .within("own heartbeats again", async || {
                vouched(cloud, node).await.is_none().then_some(())
            })
            .await?;
    }
    scene.say("healed: every node renews its own lease again");
    Ok(())
}

/// Something new in the cloud is read at a node.
async fn news(scene: &mut Scene<'_>, node: &str, service: &str) -> Result<(), DemoError> {
    let object = json!({"metadata": {"name": service}, "spec": {"ports": [{"port": 80}]}});
    scene.cloud().create(SERVICES, &object).await?;
    let (reader, asked) = (scene.through(node)?, Instant::now());
    scene
        .within("the news", async || {
            let list = reader.get(SERVICES).await.ok()?;
            names(&list).contains(&service).then_some(())
        })
        .await?;
    scene.measure(
        &format!("a new Service is known at {node}, which is cut off, after"),
        asked.elapsed(),
        None,
    );
    Ok(())
}
