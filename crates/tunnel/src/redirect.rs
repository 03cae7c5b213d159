//! Connections that rules of the kernel lead to a listener, which asks the kernel where they were going: an agent's to networks of the
//! cloud ([`crate::reverse::Redirect`]), a server's to pods of the edge ([`crate::steering::Pods`]).
//!
//! What is led away is a function of values ([`Plan`]); a [`Keeper`] has it written, and taken away at the end.

mod plan;
#[cfg(test)]
pub(crate) mod stage;

pub(crate) use plan::{Leader, Plan};

use crate::steering::{Backend, Family, Rules, Tools};
use arc_swap::ArcSwap;
use socket2::SockRef;
use std::{
    io::{self, ErrorKind},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use yurt_transport::Destination;

/// The mark of connections that are made by the tunnel itself, which are never led to it: of bits that neither kube-proxy (0x4000,
/// 0x8000) nor the usual networks of pods (Calico 0xffff0000, Cilium 0xf00) use.
pub const MARK: u32 = 0x59;
/// Between looks at the rules.
const PERIOD: Duration = Duration::from_secs(60);
/// After a failure.
pub(crate) const RETRY: Duration = Duration::from_secs(5);

/// Where connections were going that the kernel led to a listener.
#[derive(Clone, Debug)]
pub struct Intended(Arc<ArcSwap<Plan>>);

impl Intended {
    /// Where one was going. An error when it was not led here: whoever connects to the listener itself gets nothing by it.
    pub(crate) fn of(&self, stream: &TcpStream) -> io::Result<Destination> {
        let plan = self.0.load();
        let socket = SockRef::from(stream);
        let intended = match plan.family {
            Family::V4 => socket.original_dst_v4(),
            Family::V6 => socket.original_dst_v6(),
        };
        let to = intended?.as_socket();
        match to.filter(|to| plan.leads(*to)) {
            Some(to) => Ok(Destination {
                node: None,
                host: to.ip().to_string(),
                port: to.port(),
            }),
            None => Err(io::Error::new(
                ErrorKind::PermissionDenied,
                "it was not led here by the rules",
            )),
        }
    }
}

/// Every address of a family: where the kernel leads connections depends on where they come from.
pub(crate) fn anywhere(family: Family, port: u16) -> SocketAddr {
    let any = match family {
        Family::V4 => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        Family::V6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    (any, port).into()
}

/// Listens, on IPv6 beside a listener for IPv4 on the same port.
pub(crate) async fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    if address.is_ipv4() {
        return TcpListener::bind(address).await;
    }
    let socket = tokio::net::TcpSocket::new_v6()?;
    SockRef::from(&socket).set_only_v6(true)?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(1024)
}

/// Says what is to be led away.
pub(crate) trait Wanted: Send {
    /// What of a family is to be led to a port now.
    fn plan(&mut self, family: Family, port: u16) -> impl Future<Output = Plan> + Send;
    /// Until that may be something else.
    fn changed(&mut self) -> impl Future<Output = ()> + Send;
}

/// Keeps the rules of one family.
#[derive(Debug)]
pub(crate) struct Keeper<W> {
    leader: &'static Leader,
    backend: Backend,
    tools: Tools,
    plan: Arc<ArcSwap<Plan>>,
    wanted: W,
}

impl<W: Wanted> Keeper<W> {
    /// Of the rules that have this plan first.
    pub(crate) fn new(
        leader: &'static Leader,
        (backend, tools): (Backend, Tools),
        plan: Plan,
        wanted: W,
    ) -> Self {
        Self {
            leader,
            backend,
            tools,
            plan: Arc::new(ArcSwap::from_pointee(plan)),
            wanted,
        }
    }

    /// For the listener.
    pub(crate) fn intended(&self) -> Intended {
        Intended(self.plan.clone())
    }

    /// Has the rules written until `shutdown`, then takes them away. Where they cannot be had that is said, and all else works.
    pub(crate) async fn run(mut self, shutdown: CancellationToken) {
        let (family, port) = {
            let plan = self.plan.load();
            (plan.family, plan.port)
        };
        let (mut rules, mut trouble) = (None, String::new());
        while let Some(plan) = shutdown
            .run_until_cancelled(self.wanted.plan(family, port))
            .await
        {
            let plan = Arc::new(plan);
            // Known to the listener before the first connection comes.
            self.plan.store(plan.clone());
            let pause = match self.write(&mut rules, &plan).await {
                Ok(written) => {
                    if written {
                        tracing::info!(%plan, "connections are led to the tunnel");
                    }
                    trouble.clear();
                    PERIOD
                }
                Err(why) => {
                    let flag = self.leader.flag;
                    // Said once, and not where nothing is missed by it.
                    if trouble != why && !plan.is_empty() {
                        tracing::error!(
                            why,
                            "connections are not led to the tunnel as {flag} says: NET_ADMIN is needed, and nft or iptables"
                        );
                        trouble = why;
                    }
                    match rules {
                        Some(_) => RETRY,
                        None => PERIOD,
                    }
                }
            };
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = tokio::time::sleep(pause) => {}
                () = self.wanted.changed() => {}
            }
        }
        if let Some(mut rules) = rules
            && let Err(error) = rules.clean().await
        {
            tracing::error!(%error, "rules are left behind: connections are led to a tunnel that is not there");
        }
    }

    /// Whether anything had to be written, or why it cannot be.
    async fn write(&self, rules: &mut Option<Rules>, plan: &Plan) -> Result<bool, String> {
        let rules = match rules {
            Some(rules) => rules,
            None => {
                let owner = self.leader.owner;
                let found = Rules::find(self.backend, &self.tools, plan.family, owner).await?;
                rules.insert(found)
            }
        };
        let written = match plan.is_empty() {
            true => rules.clean().await,
            false => rules.apply(&plan.ruleset(self.leader)).await,
        };
        written.map_err(|error| error.to_string())
    }
}
