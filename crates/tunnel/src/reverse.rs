//! Edge to cloud: programs of the node reach services of the cloud, as far as the server allows it. They ask by HTTP CONNECT or
//! SOCKS5, told apart by the first byte on one port; or connect to a port that stands for one service ([`Route`]); or to the cloud's own
//! addresses, which the kernel leads here ([`Redirect`]), and whose names are asked for here, too ([`NameServer`]).

mod ask;
mod cloud;
mod dns;
mod redirect;

pub use crate::redirect::{Intended, MARK};
pub use cloud::Cloud;
pub use dns::{NameServer, NotAZone, Zone};
pub use redirect::{NotToBeRedirected, Redirect};

use crate::{
    DialError, Tunnels,
    agent::{AgentError, listen},
    allow::NodeScope,
    pump::pump,
};
use ask::Asked;
use socket2::SockRef;
use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    str::FromStr,
    sync::Arc,
    time::Duration,
};
use tokio::{
    io::AsyncWriteExt,
    net::{TcpListener, TcpStream},
    sync::{Semaphore, watch},
    task::JoinSet,
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use yurt_transport::Destination;

/// Connections of a listener at a time.
const MOST: usize = 1024;
/// How long a program may take to say what it wants.
const PATIENCE: Duration = Duration::from_secs(10);

/// A port of the node that leads to one service of the cloud: `[IP:]PORT=HOST:PORT`, on loopback unless an address is given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// On the node.
    pub listen: SocketAddr,
    /// In the cloud.
    pub target: Destination,
}

/// What is no route.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not LISTEN=TARGET: [IP:]PORT=HOST:PORT")]
pub struct NotARoute(String);

impl FromStr for Route {
    type Err = NotARoute;

    fn from_str(text: &str) -> Result<Self, NotARoute> {
        let wrong = || NotARoute(text.to_owned());
        let (listen, target) = text.split_once('=').ok_or_else(wrong)?;
        let loopback = |port: u16| SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port);
        let listen = match listen.trim().parse::<u16>() {
            Ok(port) => loopback(port),
            Err(_) => listen.trim().parse().map_err(|_| wrong())?,
        };
        Ok(Self {
            listen,
            target: target.trim().parse().map_err(|_| wrong())?,
        })
    }
}

/// What of the cloud is reached from the edge, and how it is asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reverse {
    /// Where programs ask by HTTP CONNECT or SOCKS5.
    pub asked: Vec<SocketAddr>,
    /// Ports of the node that lead to the cloud.
    pub routes: Vec<Route>,
    /// Networks that the kernel leads to the tunnel.
    pub redirect: Option<Redirect>,
    /// Names of the cloud.
    pub names: Option<NameServer>,
}

impl Reverse {
    /// Listens. `scope` says where the node's pods are, `apiserver` (`host:port`) what is never led away. All of it ends with `stop`, which breaks
    /// what is open. What is returned are tasks that then take rules away: to be awaited.
    pub(crate) async fn start(
        &self,
        ways: Arc<dyn Tunnels>,
        scope: watch::Receiver<NodeScope>,
        apiserver: Option<String>,
        stop: &CancellationToken,
    ) -> Result<JoinSet<()>, AgentError> {
        let asked = self.asked.iter().map(|address| (*address, Kind::Asked));
        let routes = self.routes.iter();
        let routes = routes.map(|route| (route.listen, Kind::Fixed(route.target.clone())));
        for (address, kind) in asked.chain(routes) {
            let listener = listen(address).await?;
            tokio::spawn(serve(listener, kind, ways.clone(), stop.clone()));
        }
        if let Some(names) = &self.names {
            names.start(ways.clone(), stop).await?;
        }
        let mut tidying = JoinSet::new();
        // At last, since rules are written by it: what fails after them would leave them behind.
        if let Some(redirect) = &self.redirect {
            let inputs = redirect::Inputs { scope, apiserver };
            let listening = redirect.start(inputs, stop, &mut tidying).await?;
            for (listener, intended) in listening {
                let kind = Kind::Intended(intended);
                tokio::spawn(serve(listener, kind, ways.clone(), stop.clone()));
            }
        }
        Ok(tidying)
    }
}

/// Where connections of a listener go.
#[derive(Clone, Debug)]
pub enum Kind {
    /// They say so themselves.
    Asked,
    /// Always there.
    Fixed(Destination),
    /// Where they were going when the kernel led them here.
    Intended(Intended),
}

/// Serves a listener until `shutdown`, which breaks what is open.
pub async fn serve(
    listener: TcpListener,
    kind: Kind,
    tunnels: Arc<dyn Tunnels>,
    shutdown: CancellationToken,
) {
    let permits = Arc::new(Semaphore::new(MOST));
    loop {
        let Ok(permit) = permits.clone().acquire_owned().await else {
            return;
        };
        let accepted = tokio::select! {
            () = shutdown.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection to the tunnel");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (kind, tunnels) = (kind.clone(), tunnels.clone());
        tokio::spawn(shutdown.clone().run_until_cancelled_owned(async move {
            let _permit = permit;
            // Latency matters more than full packets; without it the connection works as well.
            let _ = stream.set_nodelay(true);
            if let Err(error) = Box::pin(carry(stream, kind, &*tunnels)).await {
                tracing::debug!(%error, "a connection by the tunnel ended");
            }
        }));
    }
}

async fn carry(mut stream: TcpStream, kind: Kind, tunnels: &dyn Tunnels) -> io::Result<()> {
    let asked = match kind {
        Kind::Fixed(to) => Asked::fixed(to),
        Kind::Intended(intended) => match intended.of(&stream) {
            Ok(to) => Asked::fixed(to),
            Err(error) => {
                reset(&stream);
                return Err(error);
            }
        },
        Kind::Asked => timeout(PATIENCE, ask::read(&mut stream)).await??,
    };
    let Some(asked) = asked.into_request(&mut stream).await? else {
        return Ok(());
    };
    let mut far = match tunnels.open(&asked.to).await {
        Ok(far) => far,
        Err(error) => {
            tracing::debug!(target = %asked.to, %error, "not reached by the tunnel");
            if asked.is_silent() {
                reset(&stream);
            }
            return asked.refuse(&mut stream, &error).await;
        }
    };
    asked.accept(&mut stream).await?;
    far.write_all(&asked.early).await?;
    pump(Box::new(stream), far).await.1
}

/// A program that cannot be told why is not to take the end for one that the cloud sent.
fn reset(stream: &TcpStream) {
    // Closing then resets. Where that cannot be had, closing ends.
    let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
}

#[cfg(test)]
mod tests;
