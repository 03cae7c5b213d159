//! The roles that OpenYurt and kubeadm install beside those of the API server: hubs read what a pool shares, new nodes
//! with a bootstrap token ask for their certificates. Facts: OpenYurt's `yurt-hub` chart, kubeadm's bootstrap phases.

use crate::kube::{Kube, KubeError};
use serde_json::{Value, json};

const GROUP: &str = "rbac.authorization.k8s.io";
/// The group of kubeadm's bootstrap tokens.
const JOINING: &str = "system:bootstrappers:kubeadm:default-node-token";

fn rule(groups: &[&str], resources: &[&str], verbs: &[&str]) -> Value {
    json!({"apiGroups": groups, "resources": resources, "verbs": verbs})
}

fn cluster_role(name: &str, rules: &[Value]) -> Value {
    json!({"apiVersion": format!("{GROUP}/v1"), "kind": "ClusterRole",
        "metadata": {"name": name}, "rules": rules})
}

fn bind(name: &str, role: &str, group: &str) -> Value {
    json!({"apiVersion": format!("{GROUP}/v1"), "kind": "ClusterRoleBinding",
        "metadata": {"name": name},
        "roleRef": {"apiGroup": GROUP, "kind": "ClusterRole", "name": role},
        "subjects": [{"apiGroup": GROUP, "kind": "Group", "name": group}]})
}

/// The objects, roles before bindings.
fn objects() -> Vec<Value> {
    let follow = ["list", "watch"];
    let read = ["get", "list", "watch"];
    let certificates = "system:certificates.k8s.io:certificatesigningrequests";
    vec![
        cluster_role(
            "yurt-hub",
            &[
                rule(&[""], &["events"], &["get"]),
                rule(
                    &["apps.openyurt.io"],
                    &["nodepools", "nodebuckets"],
                    &follow,
                ),
                rule(&[""], &["configmaps"], &read),
                rule(&[""], &["endpoints"], &follow),
                rule(&["discovery.k8s.io"], &["endpointslices"], &follow),
                rule(&["coordination.k8s.io"], &["leases"], &["get", "update"]),
            ],
        ),
        cluster_role(
            "yurt-hub-bootstrap",
            &[rule(&["apps.openyurt.io"], &["nodepools"], &["get"])],
        ),
        cluster_role("kubeadm:get-nodes", &[rule(&[""], &["nodes"], &["get"])]),
        bind("yurt-hub", "yurt-hub", "system:nodes"),
        bind(
            "yurt-hub-bootstrap",
            "yurt-hub-bootstrap",
            "system:bootstrappers",
        ),
        bind("kubeadm:get-nodes", "kubeadm:get-nodes", JOINING),
        bind(
            "kubeadm:kubelet-bootstrap",
            "system:node-bootstrapper",
            JOINING,
        ),
        bind(
            "kubeadm:node-autoapprove-bootstrap",
            &format!("{certificates}:nodeclient"),
            JOINING,
        ),
        bind(
            "kubeadm:node-autoapprove-certificate-rotation",
            &format!("{certificates}:selfnodeclient"),
            "system:nodes",
        ),
    ]
}

/// Creates what is missing.
pub(crate) async fn install(kube: &Kube) -> Result<(), KubeError> {
    for object in objects() {
        let plural = match object["kind"].as_str() {
            Some("ClusterRole") => "clusterroles",
            _ => "clusterrolebindings",
        };
        kube.ensure(&format!("/apis/{GROUP}/v1/{plural}"), &object)
            .await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hubs_follow_what_a_pool_shares() {
        let objects = objects();
        let hub = &objects[0]["rules"];
        for shared in ["nodepools", "endpoints", "endpointslices"] {
            let mut rules = hub.as_array().into_iter().flatten();
            let followed = rules.any(|rule| {
                rule["resources"]
                    .as_array()
                    .is_some_and(|r| r.contains(&shared.into()))
                    && rule["verbs"]
                        .as_array()
                        .is_some_and(|v| v.contains(&"watch".into()))
            });
            assert!(followed, "{shared}");
        }
    }
}
