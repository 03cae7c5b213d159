//! Nodes: into which pool they go, and who may say what they are.
//!
//! Nothing here may keep a kubelet from writing its node: what is denied is only a change of one of three labels.

use super::review::{Answer, Denial, User};
use serde_json::Value;
use yurt_api::names::labels::{DESIRED_NODE_POOL, EDGE_WORKER, HOST_NETWORK, NODE_POOL};

/// Groups of cluster administrators: Kubernetes', and kubeadm's since 1.29.
const ADMINISTRATORS: [&str; 2] = ["system:masters", "kubeadm:cluster-admins"];

/// A label that is not empty.
fn label<'n>(node: &'n Value, key: &str) -> Option<&'n str> {
    let value = node["metadata"]["labels"].get(key)?.as_str()?;
    (!value.is_empty()).then_some(value)
}

/// The pool that a node is to be in.
pub(super) fn pool_of(node: &Value) -> Option<&str> {
    label(node, NODE_POOL).or_else(|| label(node, DESIRED_NODE_POOL))
}

/// Whether a node comes into another pool, or into none.
pub(super) fn moves(old: Option<&Value>, new: &Value) -> bool {
    old.and_then(pool_of) != pool_of(new)
}

/// What is made of a node that somebody writes. `pool` is [`pool_of`] it, if there is one.
pub(super) fn completed(old: Option<&Value>, mut node: Value, pool: Option<&Value>) -> Value {
    let moves = moves(old, &node);
    let name = pool_of(&node).map(str::to_owned);
    let host_network = pool.map(|pool| pool["spec"]["hostNetwork"] == true);
    let Some(Value::Object(labels)) = node.pointer_mut("/metadata/labels") else {
        return node;
    };
    if let Some(name) = &name {
        labels.insert(NODE_POOL.into(), name.as_str().into());
    }
    if host_network == Some(true) {
        labels.insert(HOST_NETWORK.into(), "true".into());
    } else if host_network == Some(false) || moves && name.is_none() {
        // What somebody, or the pool before, said of the node's network is not true.
        labels.remove(HOST_NETWORK);
    }
    node
}

/// Judges a node that takes the place of another. `pool` is [`pool_of`] it, as far as it is known; `converters` are the users that
/// convert nodes.
pub(super) fn judged(
    old: &Value,
    new: &Value,
    pool: Option<&Value>,
    user: &User,
    converters: &[String],
) -> Result<Answer, Denial> {
    let name = new["metadata"]["name"].as_str().unwrap_or_default();
    let both = |key| (label(old, key), label(new, key));
    let deny = |why: String| Err(Denial::Forbidden(why));
    let pools = both(NODE_POOL);
    if let (Some(before), Some(after)) = pools
        && before != after
    {
        return deny(format!(
            "label {NODE_POOL} cannot change from {before} to {after} at once: take the node out of its pool first with \
             `kubectl label node {name} {NODE_POOL}-`, then put it into the other"
        ));
    }
    if let (Some(before), after) = both(HOST_NETWORK)
        && after != Some(before)
        && pools.1.is_some()
        // Where the pool says otherwise, or nobody knows, whoever writes the node is not held up.
        && pool.is_some_and(|pool| pool["spec"]["hostNetwork"] == true)
    {
        return deny(format!(
            "label {HOST_NETWORK} follows the pool of the node; take the node out of its pool to change it"
        ));
    }
    let mut answer = Answer::default();
    let is_administrator = || {
        let groups = &user.groups;
        groups
            .iter()
            .any(|group| ADMINISTRATORS.contains(&group.as_str()))
    };
    match both(EDGE_WORKER) {
        (before, after) if before == after => {}
        _ if user.name == format!("system:node:{name}") || converters.contains(&user.name) => {}
        (None, Some(_)) => answer.warnings.push(format!(
            "label {EDGE_WORKER} is set by hand: it must say whether a hub runs on the node"
        )),
        _ if is_administrator() => answer.warnings.push(format!(
            "label {EDGE_WORKER} is changed by hand: nothing is installed on the node or removed from it by that"
        )),
        _ => {
            return deny(format!(
                "label {EDGE_WORKER} says whether a hub runs on the node: it changes when the node is converted or reverted; \
                 besides, only members of {} may change it",
                ADMINISTRATORS.join(" and ")
            ));
        }
    }
    Ok(answer)
}

/// What the user is told who puts a node into a pool that there is not.
pub(super) fn missing(pool: &str) -> String {
    format!("there is no NodePool {pool:?} yet: the node has its place in it when it is created")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn node(labels: Value) -> Value {
        json!({"kind": "Node", "metadata": {"name": "n1", "labels": labels}})
    }

    #[test]
    fn the_older_label_is_taken_over() {
        let desired = node(json!({DESIRED_NODE_POOL: "a"}));
        let made = completed(None, desired.clone(), None);
        assert_eq!(made["metadata"]["labels"][NODE_POOL], "a");
        let both = node(json!({DESIRED_NODE_POOL: "a", NODE_POOL: "b"}));
        assert_eq!(completed(None, both.clone(), None), both);
        let empty = node(json!({DESIRED_NODE_POOL: "a", NODE_POOL: ""}));
        assert_eq!(
            completed(None, empty, None)["metadata"]["labels"][NODE_POOL],
            "a"
        );
        let bare = json!({"metadata": {"name": "n1"}});
        assert_eq!(completed(None, bare.clone(), None), bare);
    }

    #[test]
    fn the_network_label_follows_the_pool() {
        let host = json!({"spec": {"hostNetwork": true}});
        let other = json!({"spec": {}});
        let out = node(json!({}));
        let into = node(json!({NODE_POOL: "a"}));
        let inside = node(json!({NODE_POOL: "a", HOST_NETWORK: "true"}));
        let network = |old: &Value, new: &Value, pool: Option<&Value>| {
            let node = completed(Some(old), new.clone(), pool);
            node["metadata"]["labels"].get(HOST_NETWORK).cloned()
        };
        let set = Some(json!("true"));
        assert_eq!(network(&out, &into, Some(&host)), set);
        assert_eq!(network(&inside, &into, Some(&host)), set, "not taken away");
        let left = node(json!({HOST_NETWORK: "true"}));
        assert_eq!(network(&inside, &left, None), None, "out of the pool");
        assert_eq!(
            network(&left, &left, None),
            set,
            "nobody says anything about it"
        );
        assert_eq!(network(&left, &inside, Some(&other)), None);
        assert_eq!(network(&left, &inside, None), set, "the pool is not known");
        assert_eq!(network(&inside, &inside, Some(&other)), None, "set by hand");
        let made = completed(None, into.clone(), Some(&host));
        assert_eq!(made["metadata"]["labels"][HOST_NETWORK], "true");
    }

    fn user(name: &str, group: &str) -> User {
        User {
            name: name.into(),
            groups: vec![group.into()],
        }
    }

    fn judged(old: &Value, new: &Value, user: &User, converter: &str) -> Result<Answer, Denial> {
        let pool = json!({"spec": {"hostNetwork": true}});
        super::judged(old, new, Some(&pool), user, &[converter.to_owned()])
    }

    const CONVERTER: &str =
        "system:serviceaccount:kube-system:yurt-manager-yurt-node-conversion-controller";

    #[test]
    fn a_pool_is_left_before_another_is_entered() {
        let judge = |old: Value, new: Value| {
            judged(
                &node(old),
                &node(new),
                &user("me", "system:masters"),
                CONVERTER,
            )
        };
        let (a, b) = (json!({NODE_POOL: "a"}), json!({NODE_POOL: "b"}));
        assert!(judge(json!({}), a.clone()).is_ok());
        assert!(judge(a.clone(), json!({})).is_ok());
        assert!(judge(a.clone(), json!({NODE_POOL: ""})).is_ok());
        assert!(judge(a.clone(), a.clone()).is_ok());
        let denied = judge(a.clone(), b);
        assert!(
            matches!(&denied, Err(Denial::Forbidden(why)) if why.contains("kubectl label node n1"))
        );
        let host = json!({NODE_POOL: "a", HOST_NETWORK: "true"});
        assert!(judge(host.clone(), a.clone()).is_err());
        assert!(
            judge(host.clone(), json!({})).is_ok(),
            "with the pool it goes"
        );
        assert!(judge(a, host).is_ok());
    }

    #[test]
    fn a_network_label_that_the_pool_does_not_know_of_may_go() {
        let by_hand = node(json!({NODE_POOL: "a", HOST_NETWORK: "true"}));
        let without = node(json!({NODE_POOL: "a"}));
        let pools = [
            None,
            Some(json!({})),
            Some(json!({"spec": {"hostNetwork": false}})),
        ];
        for name in [
            "system:serviceaccount:kube-system:yurt-manager-nodepool-controller",
            "system:node:n1",
        ] {
            for pool in &pools {
                let user = user(name, "system:authenticated");
                let judged = super::judged(&by_hand, &without, pool.as_ref(), &user, &[]);
                assert_eq!(judged, Ok(Answer::default()), "{pool:?}");
            }
        }
    }

    #[test]
    fn who_may_say_that_a_node_is_of_the_edge() {
        let states = [
            json!({}),
            json!({EDGE_WORKER: "true"}),
            json!({EDGE_WORKER: "false"}),
        ];
        let users = [
            (user("system:node:n1", "system:nodes"), true),
            (user(CONVERTER, "system:serviceaccounts"), true),
            (user("kubernetes-admin", "system:masters"), true),
            (user("kubernetes-admin", "kubeadm:cluster-admins"), true),
            (user("system:node:n2", "system:nodes"), false),
            (
                user("system:serviceaccount:other:x", "system:serviceaccounts"),
                false,
            ),
            (user("jane", "system:authenticated"), false),
        ];
        for (user, may_change) in users {
            for (i, old) in states.iter().enumerate() {
                for (j, new) in states.iter().enumerate() {
                    let outcome = judged(&node(old.clone()), &node(new.clone()), &user, CONVERTER);
                    // As the documentation tells everybody: it may be set where it is not.
                    let allowed = i == j || i == 0 || may_change;
                    assert_eq!(
                        outcome.is_ok(),
                        allowed,
                        "{}: {old} to {new}: {outcome:?}",
                        user.name
                    );
                }
            }
        }
    }

    #[test]
    fn what_a_kubelet_writes_is_never_denied() {
        // It changes none of the labels; whatever they say, and whether or not there is the pool.
        for labels in [
            json!({}),
            json!({NODE_POOL: "gone", HOST_NETWORK: "true", EDGE_WORKER: "true"}),
        ] {
            let (old, mut new) = (node(labels.clone()), node(labels));
            new["metadata"]["annotations"] = json!({"volumes.kubernetes.io/x": "true"});
            let kubelet = user("system:node:n1", "system:nodes");
            assert_eq!(
                judged(&old, &new, &kubelet, CONVERTER),
                Ok(Answer::default())
            );
            assert_eq!(completed(Some(&old), new.clone(), None), new);
        }
    }
}
