//! What the agent's own Node object says of it: its addresses and its pods' networks, which the allow-list is made of.

use crate::{allow::NodeScope, cluster::Cluster, network::Network};
use serde_json::Value;
use std::{collections::BTreeSet, net::IpAddr, sync::Arc, time::Duration};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use yurt_controller::{Key, Objects, Scope, collections::NODES};

/// How often credentials are looked at that may have been rotated.
const LOOK: Duration = Duration::from_secs(60);

/// A node's own view with what its Node object adds. Addresses that were given stay: the object may be old, or another's work.
pub(super) fn scope_of(given: &NodeScope, node: &Value) -> NodeScope {
    let items = |value: &'_ Value| value.as_array().cloned().unwrap_or_default();
    let mut addresses: BTreeSet<IpAddr> = given.addresses.iter().copied().collect();
    for address in items(&node["status"]["addresses"]) {
        addresses.extend(
            address["address"]
                .as_str()
                .and_then(|text| text.parse::<IpAddr>().ok()),
        );
    }
    let mut networks: BTreeSet<Network> = given.pod_networks.iter().copied().collect();
    let cidrs = items(&node["spec"]["podCIDRs"]);
    for cidr in cidrs.iter().chain([&node["spec"]["podCIDR"]]) {
        networks.extend(cidr.as_str().and_then(|text| text.parse::<Network>().ok()));
    }
    NodeScope {
        addresses: addresses.into_iter().collect(),
        pod_networks: networks.into_iter().collect(),
        localhost_ports: given.localhost_ports.clone(),
    }
}

/// Tells what the Node says of itself until `shutdown`.
pub(super) async fn follow(
    cluster: Cluster,
    name: String,
    given: NodeScope,
    tell: watch::Sender<NodeScope>,
    shutdown: CancellationToken,
) {
    let scope = Scope {
        fields: format!("metadata.name={name}"),
        ..Scope::default()
    };
    let nodes = Arc::new(Objects::new(NODES, scope));
    let changed = Arc::new(Notify::new());
    let notify = changed.clone();
    nodes.subscribe(move |_| notify.notify_one());
    let key = Key::new("", &name);
    let applied = async {
        loop {
            changed.notified().await;
            // A Node that is gone says nothing new.
            if let Some(node) = nodes.get(&key) {
                let new = scope_of(&given, &node);
                tell.send_if_modified(|before| {
                    let is_new = *before != new;
                    *before = new;
                    is_new
                });
            }
        }
    };
    let watched = async {
        // What is followed ends at once when all is over: going round would never give way to whoever would end this.
        while !shutdown.is_cancelled() {
            let epoch = cluster.epoch();
            let until = shutdown.child_token();
            match cluster.client() {
                Ok(kube) => {
                    let renewed = async {
                        while cluster.epoch() == epoch {
                            tokio::time::sleep(LOOK).await;
                        }
                    };
                    tokio::select! {
                        () = nodes.follow(&kube, until.clone()) => {}
                        () = renewed => until.cancel(),
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "the Node of this agent cannot be read");
                    tokio::time::sleep(LOOK.mul_f64(0.1 + 0.1 * fastrand::f64())).await;
                }
            }
        }
    };
    let both = Box::pin(async { tokio::join!(applied, watched) });
    shutdown.run_until_cancelled(both).await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_node_says_where_it_and_its_pods_are() {
        let given = NodeScope {
            addresses: vec!["10.0.0.7".parse().unwrap()],
            pod_networks: Vec::new(),
            localhost_ports: vec![10266],
        };
        let node = json!({"spec": {"podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24", "fd01::/64", "x"]},
            "status": {"addresses": [{"type": "InternalIP", "address": "fd00::7"}, {"type": "Hostname", "address": "edge-1"}]}});
        let scope = scope_of(&given, &node);
        assert_eq!(scope.addresses.len(), 2);
        assert_eq!(scope.pod_networks.len(), 2);
        assert_eq!(scope.localhost_ports, [10266]);
        assert_eq!(scope_of(&given, &Value::Null), given);
    }
}
