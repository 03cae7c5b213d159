//! An upgrade that the owner of a node decides about: offered by the cloud, begun by a call on the node.

use super::{
    DemoError, ELSEWHERE,
    scene::{PODS, Scene, name, pod_on},
};
use crate::{cluster::ADMIN_PORT, kube::Kube};
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use yurt_api::names::conditions::POD_NEED_UPGRADE;
use yurt_controller::condition;

/// Creates the app, or offers it in another version.
pub(super) async fn deploy(scene: &Scene<'_>, image: &str) -> Result<(), DemoError> {
    let cloud = scene.cloud();
    cloud
        .ensure("/api/v1/namespaces", &json!({"metadata": {"name": "shop"}}))
        .await?;
    let service = json!({
        "metadata": {"name": "web"},
        "spec": {"selector": {"app": "web"}, "ports": [{"port": 80}]},
    });
    cloud
        .ensure("/api/v1/namespaces/shop/services", &service)
        .await?;
    let labels = json!({"app": "web"});
    let app = json!({
        "metadata": {"name": "web", "labels": labels, "annotations": {"apps.openyurt.io/update-strategy": "OTA"}},
        "spec": {
            "selector": {"matchLabels": labels},
            "updateStrategy": {"type": "OnDelete"},
            "template": {
                "metadata": {"labels": labels},
                "spec": {"containers": [{"name": "main", "image": image}]},
            },
        },
    });
    let sets = "/apis/apps/v1/namespaces/shop/daemonsets";
    cloud.ensure(sets, &app).await?;
    cloud
        .merge(&format!("{sets}/web"), &json!({"spec": app["spec"]}))
        .await?;
    Ok(())
}

fn is_due(pod: &Value) -> bool {
    condition::holds(&pod["status"], POD_NEED_UPGRADE)
}

/// Tells the chapter.
pub(super) async fn tell(scene: &mut Scene<'_>) -> Result<(), DemoError> {
    scene.step("a new version of the app: it is offered, and nothing happens");
    let cloud = scene.cloud();
    let before = pod_on(&cloud.get(PODS).await?, ELSEWHERE)?;
    deploy(scene, "registry.lab/app:2").await?;
    let token = scene.cluster.directory().node(ELSEWHERE).join("ota.token");
    let token = std::fs::read_to_string(&token)
        .map_err(|error| DemoError::Refused(format!("{}: {error}", token.display())))?;
    let address = scene.node(ELSEWHERE)?.plan.address;
    let admin = format!("{address}:{ADMIN_PORT}");
    let of = |token: &str| Kube::new(&admin, None, Some(token), Duration::from_secs(40));
    let (owner, stranger) = (of(token.trim()), of("yurt-ota-guessed"));
    let offered = scene
        .within("the offer at the node", async || {
            // Everything on the node.
            let mut pods = owner.get("/pods").await.ok()?;
            let pods = pods["items"].as_array_mut()?;
            let of_app = pods.iter().find(|pod| name(pod) == name(&before));
            of_app.filter(|pod| is_due(pod)).cloned()
        })
        .await?;
    scene.check(
        "the old pod runs on",
        offered["metadata"]["uid"] == before["metadata"]["uid"],
    );

    scene.step(&format!(
        "the owner of {ELSEWHERE} takes it, by a call on the node"
    ));
    let path = format!(
        "/openyurt.io/v1/namespaces/shop/pods/{}/upgrade",
        name(&before)
    );
    let refused = stranger.create(&path, &json!({})).await;
    scene.check(
        "who has no right to is refused",
        refused.is_err_and(|error| error.code() == Some(401)),
    );
    let asked = Instant::now();
    owner.create(&path, &json!({})).await?;
    scene
        .within("the new version", async || {
            let pod = pod_on(&cloud.get(PODS).await.ok()?, ELSEWHERE).ok()?;
            let new = pod["spec"]["containers"][0]["image"] == "registry.lab/app:2";
            (new && condition::holds(&pod["status"], "Ready")).then_some(())
        })
        .await?;
    scene.measure(
        "from the call to the new version ready",
        asked.elapsed(),
        None,
    );
    let others = cloud.get(PODS).await?;
    let old = |node: &str| -> Result<bool, DemoError> {
        let pod = pod_on(&others, node)?;
        Ok(pod["spec"]["containers"][0]["image"] == "registry.lab/app:1")
    };
    let unasked = old("hangzhou-1")? && old("hangzhou-2")?;
    scene.check("nodes whose owners did not ask run the old one", unasked);
    Ok(())
}
