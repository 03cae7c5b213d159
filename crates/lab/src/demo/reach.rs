//! The cloud reaches into nodes that only dial out: what it asks of a kubelet goes over the connection that the node's agent holds.

use super::{
    DemoError, ELSEWHERE,
    scene::{PODS, Scene, median, name, pod_on},
};
use std::time::Instant;

/// The log of the app's pod on a node.
async fn log(scene: &Scene<'_>, node: &str) -> Result<String, DemoError> {
    let pods = scene.cloud().get(PODS).await?;
    Ok(format!("{PODS}/{}/log", name(&pod_on(&pods, node)?)))
}

/// Tells the chapter.
pub(super) async fn tell(scene: &mut Scene<'_>) -> Result<(), DemoError> {
    scene.step("the cloud reaches into nodes that only dial out: logs, commands, port-forwards go through the tunnel");
    let log = log(scene, ELSEWHERE).await?;
    let tunnelled =
        || async { Ok::<u64, DemoError>(scene.status(ELSEWHERE).await?.bytes_to_tunnel) };
    let before = tunnelled().await?;
    let median = median(scene.cloud(), &log).await?;
    let went = tunnelled().await?.saturating_sub(before);
    scene.measure(
        "a pod's log, asked of the API server (median of 50)",
        median,
        None,
    );
    scene.check(
        &format!(
            "they came over the connection that {ELSEWHERE}'s agent dialled ({} KB)",
            went / 1000
        ),
        went > 0,
    );
    Ok(())
}

/// A node that is cut is out of reach, and its caller told why.
pub(super) async fn is_refused(scene: &mut Scene<'_>, node: &str) -> Result<(), DemoError> {
    let log = log(scene, node).await?;
    match scene.cloud().get(&log).await {
        Err(error) => scene.say(&format!("its logs are out of reach for the cloud: {error}")),
        Ok(_) => scene.check("a cut node's logs are out of reach", false),
    }
    Ok(())
}

/// It is reached again after the heal.
pub(super) async fn is_back(
    scene: &mut Scene<'_>,
    node: &str,
    healed: Instant,
) -> Result<(), DemoError> {
    let log = log(scene, node).await?;
    let cloud = scene.cloud();
    scene
        .within("the node's logs, through the tunnel", async || {
            cloud.get(&log).await.ok().map(drop)
        })
        .await?;
    scene.measure(
        "from the heal to the node's logs, through the tunnel",
        healed.elapsed(),
        None,
    );
    Ok(())
}
