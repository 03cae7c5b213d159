//! The roles that are installed beside those of the API server: what hubs may do, as it is shipped, and kubeadm's for new nodes, which
//! ask for their certificates with a bootstrap token. Facts: kubeadm's bootstrap phases.

use crate::kube::{Kube, KubeError};
use serde_json::{Value, json};
use yurt_manager::deploy::{Component, Values};

const GROUP: &str = "rbac.authorization.k8s.io";
/// The group of all nodes.
const NODES: &str = "system:nodes";
/// The group of kubeadm's bootstrap tokens.
const JOINING: &str = "system:bootstrappers:kubeadm:default-node-token";

/// Binds a role of the cluster to a group.
fn bind(name: &str, role: &str, group: &str) -> Value {
    json!({"apiVersion": format!("{GROUP}/v1"), "kind": "ClusterRoleBinding", "metadata": {"name": name},
        "roleRef": {"apiGroup": GROUP, "kind": "ClusterRole", "name": role},
        "subjects": [{"apiGroup": GROUP, "kind": "Group", "name": group}]})
}

/// What kubeadm lets new nodes do.
fn of_kubeadm() -> [Value; 5] {
    let certificates = "system:certificates.k8s.io:certificatesigningrequests";
    let get_nodes = json!({"apiVersion": format!("{GROUP}/v1"), "kind": "ClusterRole",
        "metadata": {"name": "kubeadm:get-nodes"},
        "rules": [{"apiGroups": [""], "resources": ["nodes"], "verbs": ["get"]}]});
    [
        get_nodes,
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
            NODES,
        ),
    ]
}

/// The objects, roles before bindings.
fn objects() -> Vec<Value> {
    let mut objects = Component::Hub.objects(&Values::default());
    objects.retain(|object| object["apiVersion"] == format!("{GROUP}/v1"));
    objects.extend(of_kubeadm());
    objects
}

/// Creates what is missing.
pub(crate) async fn install(kube: &Kube) -> Result<(), KubeError> {
    for object in objects() {
        let kind = object["kind"]
            .as_str()
            .unwrap_or_default()
            .to_ascii_lowercase();
        let path = match object["metadata"]["namespace"].as_str() {
            Some(namespace) => format!("/apis/{GROUP}/v1/namespaces/{namespace}/{kind}s"),
            None => format!("/apis/{GROUP}/v1/{kind}s"),
        };
        kube.ensure(&path, &object).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hubs_may_do_what_is_shipped_and_new_nodes_what_kubeadm_lets_them() {
        let objects = objects();
        let has = |kind: &str, name: &str| {
            let mut objects = objects.iter();
            objects.any(|object| object["kind"] == kind && object["metadata"]["name"] == name)
        };
        assert!(has("ClusterRole", "yurt-hub") && has("Role", "yurt-hub"));
        assert!(has("ClusterRoleBinding", "yurt-hub-multiplexer:nodes"));
        assert!(has("Role", "yurt-coordinator:node-lease-proxy-client"));
        assert!(has("ClusterRoleBinding", "kubeadm:kubelet-bootstrap"));
        assert!(objects.iter().all(|object| object["kind"] != "ConfigMap"));
    }
}
