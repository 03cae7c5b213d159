//! The roles that OpenYurt and kubeadm install beside those of the API server: hubs read what a pool shares, new nodes
//! with a bootstrap token ask for their certificates. Facts: OpenYurt's `yurt-hub` chart, kubeadm's bootstrap phases.

use crate::kube::{Kube, KubeError};
use serde_json::{Value, json};
use yurt_api::names::objects::{
    LEASE_PROXY_SECRET, LEASE_PROXY_USER, MULTIPLEXER_GROUP, MULTIPLEXER_ROLE,
};

const GROUP: &str = "rbac.authorization.k8s.io";
/// The group of all nodes.
const NODES: &str = "system:nodes";
/// The group of kubeadm's bootstrap tokens.
const JOINING: &str = "system:bootstrappers:kubeadm:default-node-token";

fn rule(groups: &[&str], resources: &[&str], verbs: &[&str]) -> Value {
    json!({"apiGroups": groups, "resources": resources, "verbs": verbs})
}

fn role(namespace: Option<&str>, name: &str, rules: &[Value]) -> Value {
    let kind = namespace.map_or("ClusterRole", |_| "Role");
    json!({"apiVersion": format!("{GROUP}/v1"), "kind": kind,
        "metadata": {"namespace": namespace, "name": name}, "rules": rules})
}

/// Binds a role of the same namespace (or of the cluster) to a `User` or `Group`.
fn bind(namespace: Option<&str>, name: &str, role: &str, (kind, subject): (&str, &str)) -> Value {
    let role_kind = namespace.map_or("ClusterRole", |_| "Role");
    json!({"apiVersion": format!("{GROUP}/v1"), "kind": format!("{role_kind}Binding"),
        "metadata": {"namespace": namespace, "name": name},
        "roleRef": {"apiGroup": GROUP, "kind": role_kind, "name": role},
        "subjects": [{"apiGroup": GROUP, "kind": kind, "name": subject}]})
}

fn cluster_role(name: &str, rules: &[Value]) -> Value {
    role(None, name, rules)
}

fn bind_group(name: &str, role: &str, group: &str) -> Value {
    bind(None, name, role, ("Group", group))
}

/// The objects, roles before bindings.
fn objects() -> Vec<Value> {
    let follow = ["list", "watch"];
    let read = ["get", "list", "watch"];
    let certificates = "system:certificates.k8s.io:certificatesigningrequests";
    let mut objects = vec![
        cluster_role(
            "yurt-hub",
            &[
                rule(&[""], &["events"], &["get"]),
                rule(&["apps.openyurt.io"], &["nodepools", "nodebuckets"], &read),
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
        bind_group("yurt-hub", "yurt-hub", NODES),
        // Its rules are what pools share (`hubleaderrbac-controller`); a hub asks for it as its node.
        bind_group(MULTIPLEXER_ROLE, MULTIPLEXER_ROLE, MULTIPLEXER_GROUP),
        bind_group("yurt-hub-multiplexer:nodes", MULTIPLEXER_ROLE, NODES),
        bind_group(
            "yurt-hub-bootstrap",
            "yurt-hub-bootstrap",
            "system:bootstrappers",
        ),
        bind_group("kubeadm:get-nodes", "kubeadm:get-nodes", JOINING),
        bind_group(
            "kubeadm:kubelet-bootstrap",
            "system:node-bootstrapper",
            JOINING,
        ),
        bind_group(
            "kubeadm:node-autoapprove-bootstrap",
            &format!("{certificates}:nodeclient"),
            JOINING,
        ),
        bind_group(
            "kubeadm:node-autoapprove-certificate-rotation",
            &format!("{certificates}:selfnodeclient"),
            NODES,
        ),
    ];
    objects.extend(delegation());
    objects
}

/// Who leads a pool renews the leases of its nodes, with an identity that may do nothing else, and that every node may read.
fn delegation() -> [Value; 4] {
    let leases = rule(
        &["coordination.k8s.io"],
        &["leases"],
        &["get", "create", "update", "patch"],
    );
    let mut secret = rule(&[""], &["secrets"], &["get", "list", "watch"]);
    secret["resourceNames"] = json!([LEASE_PROXY_SECRET]);
    let (proxy, reader) = (
        "yurt-coordinator:node-lease-proxy-client",
        "yurt-coordinator:certificates",
    );
    let (leases_in, secrets_in) = (Some("kube-node-lease"), Some("kube-system"));
    [
        role(leases_in, proxy, &[leases]),
        bind(leases_in, proxy, proxy, ("User", LEASE_PROXY_USER)),
        role(secrets_in, reader, &[secret]),
        bind(secrets_in, reader, reader, ("Group", NODES)),
    ]
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
