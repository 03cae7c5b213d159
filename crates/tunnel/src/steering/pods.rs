//! Connections of the cloud to pods on nodes that run an agent, made as if those pods were in the cluster's network: rules of the kernel
//! lead them to a listener of the server, which has the pod's agent connect.

use crate::{
    Tunnels,
    allow::{Rule, parse_ports},
    directory::{Directory, NodeFacts},
    network::Network,
    redirect::{self, Keeper, Leader, Plan, Wanted},
    reverse::{Kind, serve},
    steering::{Backend, Family, Owner, Tools},
};
use std::{
    collections::BTreeSet, io, net::IpAddr, ops::RangeInclusive, str::FromStr, sync::Arc,
    time::Duration,
};
use tokio::{sync::watch, task::JoinSet};
use tokio_util::sync::CancellationToken;

/// Changes of nodes that come together are written together.
const TOGETHER: Duration = Duration::from_millis(300);
/// How often it is asked whether the nodes are known yet.
const UNKNOWN: Duration = Duration::from_millis(100);
/// Chains of iptables.
const CHAIN: &str = "TUNNEL-PODS";
const CLOUD: &str = "TUNNEL-PODS-CLOUD";

/// The server's rules for pods.
const SERVER: Leader = Leader {
    owner: Owner {
        table: "yurt_tunnel_pods",
        is_ours: |chain| chain == CHAIN || chain == CLOUD,
        entries: &[CHAIN, CLOUD],
        jumps: &[
            (
                "PREROUTING",
                "-p tcp -m comment --comment \"yurttunnel pods of the cloud\" -j TUNNEL-PODS-CLOUD",
            ),
            // The mark is MARK.
            (
                "OUTPUT",
                "-p tcp -m mark ! --mark 0x59 -m comment --comment \"yurttunnel pods\" -j TUNNEL-PODS",
            ),
        ],
    },
    chain: CHAIN,
    pods: CLOUD,
    flag: "--steer-pods",
};

/// Ports: `80,8000-8100`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ports(Vec<RangeInclusive<u16>>);

impl FromStr for Ports {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse_ports(text).map(Self)
    }
}

/// How pods of the edge are led to the tunnel.
#[derive(Clone, Debug)]
pub struct Pods {
    /// Their ports.
    pub ports: Ports,
    /// The listener's; 0: any.
    pub port: u16,
    /// Addresses of this host, whose own pods are never led away.
    pub own: Vec<IpAddr>,
    /// Networks of the cloud beside those that its nodes name.
    pub cloud: Vec<Network>,
    /// How connections are translated.
    pub backend: Backend,
    /// How the host's programs are run.
    pub tools: Tools,
}

/// Networks by where they are.
#[derive(Debug, Default, PartialEq, Eq)]
struct Sides {
    /// Of pods on nodes that run an agent.
    edge: BTreeSet<Network>,
    /// Of all else that is known: nodes, and their pods. Never led away, whatever the edge has.
    cloud: BTreeSet<Network>,
}

/// Where the networks of nodes are. This host is of the cloud, whatever its labels say.
fn sides(nodes: &[Arc<NodeFacts>], own: &[IpAddr]) -> Sides {
    let mut sides = Sides::default();
    let own: BTreeSet<IpAddr> = own.iter().map(IpAddr::to_canonical).collect();
    sides.cloud.extend(own.iter().copied().map(Network::host));
    for node in nodes {
        let addresses = || node.internal.iter().chain(&node.external);
        if node.runs_agent() && !addresses().any(|address| own.contains(&address.to_canonical())) {
            // All there is is nobody's.
            let blocks = node.networks.iter().filter(|block| block.prefix() > 0);
            sides.edge.extend(blocks);
        } else {
            sides.cloud.extend(&node.networks);
            sides.cloud.extend(addresses().copied().map(Network::host));
        }
    }
    sides.edge.retain(|block| !sides.cloud.contains(block));
    sides
}

impl Pods {
    fn plan(&self, family: Family, port: u16, nodes: &[Arc<NodeFacts>]) -> Plan {
        let Sides { edge, cloud } = sides(nodes, &self.own);
        let rule = |block: &Network| Rule::on(*block, self.ports.0.clone());
        let edge: Vec<Rule> = edge.iter().map(rule).collect();
        let cloud = cloud.into_iter().chain(self.cloud.iter().copied());
        Plan::new(family, &edge, [], cloud, port)
    }

    /// Listens, and has the rules written until `shutdown`, then takes them away; what is open is served until `stop`. Ends when all of
    /// that has ended.
    pub async fn run(
        self,
        directory: Arc<dyn Directory>,
        tunnels: Arc<dyn Tunnels>,
        shutdown: CancellationToken,
        stop: CancellationToken,
    ) {
        let mut tasks = JoinSet::new();
        for family in [Family::V4, Family::V6] {
            let listening = async {
                let listener = redirect::listen(redirect::anywhere(family, self.port)).await?;
                let port = listener.local_addr()?.port();
                io::Result::Ok((listener, port))
            };
            let (listener, port) = match listening.await {
                Ok(listening) => listening,
                // Hosts without IPv6 have no connections by it.
                Err(error) if family == Family::V6 => {
                    tracing::debug!(%error, "pods are not led to the tunnel by IPv6");
                    continue;
                }
                Err(error) => {
                    tracing::error!(%error, "pods are not led to the tunnel as --steer-pods says");
                    continue;
                }
            };
            let wanted = Edgewards {
                changes: directory.changes(),
                directory: directory.clone(),
                pods: self.clone(),
            };
            let ways = (self.backend, self.tools.clone());
            let keeper = Keeper::new(&SERVER, ways, self.plan(family, port, &[]), wanted);
            let kind = Kind::Intended(keeper.intended());
            tasks.spawn(serve(listener, kind, tunnels.clone(), stop.clone()));
            tasks.spawn(keeper.run(shutdown.clone()));
        }
        while tasks.join_next().await.is_some() {}
    }
}

/// What is to be led to the edge.
struct Edgewards {
    pods: Pods,
    directory: Arc<dyn Directory>,
    changes: watch::Receiver<u64>,
}

impl Wanted for Edgewards {
    async fn plan(&mut self, family: Family, port: u16) -> Plan {
        // Before all nodes are known, a network of the cloud could be taken for the edge's.
        while !self.directory.is_complete() {
            tokio::time::sleep(UNKNOWN).await;
        }
        self.changes.borrow_and_update();
        self.pods.plan(family, port, &self.directory.nodes())
    }

    async fn changed(&mut self) {
        if self.changes.changed().await.is_err() {
            std::future::pending().await
        }
        tokio::time::sleep(TOGETHER).await;
    }
}

#[cfg(test)]
mod tests;
