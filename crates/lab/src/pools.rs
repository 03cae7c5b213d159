//! OpenYurt's definitions, a NodePool per pool of the plan, and the identity with which a pool's leader renews the leases of nodes that
//! are cut off. In a real cluster these are of charts and administrators.

use crate::{
    cluster::LabError,
    credentials,
    kube::{Kube, KubeError},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Value, json};
use std::{collections::BTreeSet, time::Duration};
use yurt_api::{
    crd::{Conversion, DEFINITIONS},
    names::{
        labels::NODE_POOL_TYPE,
        objects::{LEASE_PROXY_SECRET, LEASE_PROXY_USER},
    },
};
use yurt_controller::collections::{CRDS, NODE_POOLS};
use yurt_pki::Ca;

/// How long a new definition may take to be served.
const PATIENCE: Duration = Duration::from_secs(10);
/// Who writes the definitions.
const OWNER: &str = "yurt-lab";

/// A pool whose nodes share what they read, with one leader.
fn node_pool(name: &str) -> Value {
    json!({
        "apiVersion": NODE_POOLS.api_version, "kind": NODE_POOLS.kind,
        "metadata": {"name": name, "labels": {NODE_POOL_TYPE: "edge"}},
        "spec": {
            "type": "Edge",
            "interConnectivity": true,
            "enableLeaderElection": true,
            "leaderElectionStrategy": "random",
            "leaderReplicas": 1,
            "poolScopeMetadata": [
                {"group": "", "version": "v1", "resource": "services"},
                {"group": "discovery.k8s.io", "version": "v1", "resource": "endpointslices"},
            ],
        },
    })
}

/// Writes the definitions of OpenYurt's kinds. How versions are converted is left to the manager, where there is one.
pub(crate) async fn define(kube: &Kube) -> Result<(), KubeError> {
    for definition in DEFINITIONS {
        let mut definition = definition.render(&Conversion::None);
        if let Some(spec) = definition["spec"].as_object_mut() {
            spec.remove("conversion");
        }
        let name = definition["metadata"]["name"].as_str().unwrap_or_default();
        let path = format!("{}/{name}", CRDS.path(""));
        kube.apply(&path, &definition, OWNER, true).await?;
    }
    Ok(())
}

/// Creates what is missing: the NodePools of these names, the secret.
pub(crate) async fn install(kube: &Kube, ca: &Ca, pools: &BTreeSet<&str>) -> Result<(), LabError> {
    for pool in pools {
        served(async || kube.ensure(&NODE_POOLS.path(""), &node_pool(pool)).await).await?;
    }
    let client = credentials::client(ca, LEASE_PROXY_USER, &["openyurt:yurt-coordinator"])?;
    let secret = json!({
        "metadata": {"name": LEASE_PROXY_SECRET, "namespace": "kube-system"},
        "type": "Opaque",
        "data": {
            "ca.crt": STANDARD.encode(ca.cert_pem()),
            "node-lease-proxy-client.crt": STANDARD.encode(&client.cert),
            "node-lease-proxy-client.key": STANDARD.encode(&client.key),
        },
    });
    kube.ensure("/api/v1/namespaces/kube-system/secrets", &secret)
        .await?;
    Ok(())
}

/// Tries again as long as a resource that was only just defined is not there.
async fn served(create: impl AsyncFn() -> Result<(), KubeError>) -> Result<(), KubeError> {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        match create().await {
            Err(error) if error.code() == Some(404) && tokio::time::Instant::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            other => return other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use yurt_controlplane::stage::Stage;

    #[tokio::test]
    async fn pools_are_served_in_every_version_and_keep_every_field() {
        let stage = Stage::start("-*").await;
        let ca = Ca::new("kubernetes", 1).unwrap();
        let pools = BTreeSet::from(["a", "b"]);
        define(&stage.kube).await.unwrap();
        install(&stage.kube, &ca, &pools).await.unwrap();
        // Again, as a later `yurt up` does.
        define(&stage.kube).await.unwrap();
        install(&stage.kube, &ca, &pools).await.unwrap();
        let path = "/apis/apps.openyurt.io/v1beta2/nodepools/a";
        let pool = stage.kube.get(path).await.unwrap();
        assert_eq!(pool["spec"], node_pool("a")["spec"]);
        let status = json!({"status": {"readyNodeNum": 1, "unreadyNodeNum": 0, "nodes": ["a-1"], "leaderNum": 1,
            "leaderEndpoints": [{"nodeName": "a-1", "address": "127.0.0.1"}], "leaderLastElectedTime": "2026-01-01T00:00:00Z"}});
        let written = stage
            .kube
            .merge(&format!("{path}/status"), &status)
            .await
            .unwrap();
        assert_eq!(written["status"], status["status"]);
        for older in ["v1beta1", "v1alpha1"] {
            let old = stage
                .kube
                .get(&format!("/apis/apps.openyurt.io/{older}/nodepools/a"))
                .await
                .unwrap();
            assert_eq!(old["apiVersion"], format!("apps.openyurt.io/{older}"));
            assert_eq!(old["spec"]["type"], "Edge", "{older}");
            assert_eq!(old["status"]["nodes"], json!(["a-1"]), "{older}");
        }
        let bucket = json!({"metadata": {"name": "a-x", "labels": {yurt_api::names::labels::POOL_NAME: "a"}}, "numNodes": 1, "nodes": [{"name": "a-1"}]});
        let bucket = stage
            .create("/apis/apps.openyurt.io/v1alpha1/nodebuckets", bucket)
            .await;
        assert_eq!(bucket["nodes"][0]["name"], "a-1");
        let secret = format!("/api/v1/namespaces/kube-system/secrets/{LEASE_PROXY_SECRET}");
        let secret = stage.kube.get(&secret).await.unwrap();
        assert!(secret["data"]["node-lease-proxy-client.key"].is_string());
    }
}
