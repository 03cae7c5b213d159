//! Connections of this node and of its pods to networks of the cloud, which programs make as if they were there: rules of the kernel
//! lead them to a listener, which asks the kernel where they were going and the server for a connection to there.
//!
//! What is led away is a function of values ([`Redirect::plan`]); [`start`](Redirect::start) has it written, and taken away at the end.

use crate::{
    agent::AgentError,
    allow::{NodeScope, NotARule, Rule},
    network::Network,
    redirect::{Intended, Keeper, Leader, Plan, RETRY, Wanted, anywhere, listen},
    steering::{Backend, Family, Owner, Tools},
};
use std::{collections::BTreeSet, net::IpAddr};
use tokio::{net::TcpListener, sync::watch, task::JoinSet};
use tokio_util::sync::CancellationToken;

/// Most addresses of an API server's name.
const ADDRESSES: usize = 16;
/// Chains of iptables.
const CHAIN: &str = "TUNNEL-EDGE";
const PODS: &str = "TUNNEL-EDGE-PODS";

/// The agent's rules.
const AGENT: Leader = Leader {
    owner: Owner {
        table: "yurt_tunnel_edge",
        is_ours: |chain| chain == CHAIN || chain == PODS,
        entries: &[CHAIN, PODS],
        jumps: &[
            (
                "PREROUTING",
                "-p tcp -m comment --comment \"yurttunnel edge pods\" -j TUNNEL-EDGE-PODS",
            ),
            // The mark is MARK.
            (
                "OUTPUT",
                "-p tcp -m mark ! --mark 0x59 -m comment --comment \"yurttunnel edge\" -j TUNNEL-EDGE",
            ),
        ],
    },
    chain: CHAIN,
    pods: PODS,
    flag: "--reverse-redirect",
};

/// What is led to the tunnel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Redirect {
    networks: Vec<Rule>,
    except: BTreeSet<Network>,
    /// Of the listener; 0: any.
    port: u16,
    backend: Backend,
    tools: Tools,
}

/// What cannot be led to the tunnel.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotToBeRedirected {
    /// It is nothing that connections can be told by.
    #[error("--reverse-redirect: {0}")]
    Rule(#[from] NotARule),
    /// Names are told by DNS, long before the connection.
    #[error("--reverse-redirect {0}: a network or an address is needed, not a name")]
    Name(String),
    /// That would be the rest of the world, too.
    #[error("--reverse-redirect {0}: that is every address there is; say which are the cloud's")]
    Everything(String),
}

/// What is known elsewhere.
pub(super) struct Inputs {
    /// Where the node's pods are.
    pub(super) scope: watch::Receiver<NodeScope>,
    /// `host:port` of the API server that this agent asks.
    pub(super) apiserver: Option<String>,
}

/// The address that Kubernetes gives to the API server's Service: the first of the network that services have theirs from. Edges have
/// another way to it. `None` for a network of hardly more than one address, which somebody means.
fn apiservers(network: &Network) -> Option<Network> {
    let (first, bits) = match network.base() {
        IpAddr::V4(base) => (IpAddr::V4((base.to_bits().checked_add(1)?).into()), 32),
        IpAddr::V6(base) => (IpAddr::V6((base.to_bits().checked_add(1)?).into()), 128),
    };
    (network.prefix() + 2 <= bits).then(|| Network::host(first))
}

impl Redirect {
    /// Of `NETWORK[:PORTS]`, without those in `except`. `port`: the listener's; 0: any.
    pub fn new(
        networks: &[String],
        except: impl IntoIterator<Item = Network>,
        port: u16,
        backend: Backend,
    ) -> Result<Self, NotToBeRedirected> {
        let rule = |text: &String| {
            let rule: Rule = text.parse()?;
            match rule.network() {
                None => Err(NotToBeRedirected::Name(text.clone())),
                Some((network, _)) if network.prefix() == 0 => {
                    Err(NotToBeRedirected::Everything(text.clone()))
                }
                Some(_) => Ok(rule),
            }
        };
        Ok(Self {
            networks: networks.iter().map(rule).collect::<Result<_, _>>()?,
            except: except.into_iter().collect(),
            port,
            backend,
            tools: Tools::default(),
        })
    }

    /// Without the API server's Service unless it is named itself, and without the node's own pods.
    fn plan(&self, family: Family, port: u16, scope: &NodeScope, more: &[IpAddr]) -> Plan {
        let spared = more.iter().copied().map(Network::host);
        let named = || self.networks.iter().filter_map(Rule::network);
        let servers = named().filter_map(|(network, _)| apiservers(&network));
        let servers = servers.filter(|server| named().all(|(network, _)| network != *server));
        let except = self.except.iter().copied().chain(spared).chain(servers);
        let pods = scope.pod_networks.iter().copied();
        Plan::new(family, &self.networks, except, pods, port)
    }

    /// Listens, and has the rules written until `shutdown` by tasks in `tidying`, which then take them away. The kernel translates what is
    /// open only while they are there.
    pub(super) async fn start(
        &self,
        inputs: Inputs,
        shutdown: &CancellationToken,
        tidying: &mut JoinSet<()>,
    ) -> Result<Vec<(TcpListener, Intended)>, AgentError> {
        let (mut listening, mut keepers) = (Vec::new(), Vec::new());
        for family in [Family::V4, Family::V6] {
            let plan = |port| self.plan(family, port, &inputs.scope.borrow(), &[]);
            if plan(0).is_empty() {
                continue;
            }
            let address = anywhere(family, self.port);
            let failed = |source| AgentError::Listen { address, source };
            let listener = listen(address).await.map_err(failed)?;
            let port = listener.local_addr()?.port();
            let wanted = Cloudwards {
                redirect: self.clone(),
                scope: inputs.scope.clone(),
                apiserver: inputs.apiserver.clone(),
                spared: Vec::new(),
            };
            let ways = (self.backend, self.tools.clone());
            let keeper = Keeper::new(&AGENT, ways, plan(port), wanted);
            listening.push((listener, keeper.intended()));
            keepers.push(keeper);
        }
        for keeper in keepers {
            tidying.spawn(keeper.run(shutdown.clone()));
        }
        Ok(listening)
    }
}

/// What is to be led to the cloud.
struct Cloudwards {
    redirect: Redirect,
    scope: watch::Receiver<NodeScope>,
    apiserver: Option<String>,
    /// Addresses of the API server, as they were found last.
    spared: Vec<IpAddr>,
}

impl Wanted for Cloudwards {
    async fn plan(&mut self, family: Family, port: u16) -> Plan {
        if let Some(found) = self.addresses().await {
            self.spared = found;
        }
        let scope = self.scope.borrow_and_update();
        self.redirect.plan(family, port, &scope, &self.spared)
    }

    async fn changed(&mut self) {
        // Without a Node to follow nothing changes.
        if self.scope.changed().await.is_err() {
            std::future::pending().await
        }
    }
}

impl Cloudwards {
    /// The addresses of the API server, whose connections are not the tunnel's; `None` when they cannot be told now.
    async fn addresses(&self) -> Option<Vec<IpAddr>> {
        let Some(authority) = &self.apiserver else {
            return Some(Vec::new());
        };
        let found = tokio::time::timeout(RETRY, tokio::net::lookup_host(authority)).await;
        let found = found.ok()?.ok()?;
        Some(found.map(|found| found.ip()).take(ADDRESSES).collect())
    }
}

#[cfg(test)]
mod tests;
