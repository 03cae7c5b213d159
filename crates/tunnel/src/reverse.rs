//! Edge to cloud: programs of the node reach services of the cloud, as far as the server allows it. They ask by HTTP CONNECT or
//! SOCKS5, told apart by the first byte on one port, or connect to a port that stands for one service ([`Route`]).

mod ask;
mod cloud;

pub use cloud::Cloud;

use crate::{DialError, Tunnels, pump::pump};
use ask::Asked;
use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    str::FromStr,
    sync::Arc,
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    net::TcpListener,
    sync::Semaphore,
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

/// Where connections of a listener go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// They say so themselves.
    Asked,
    /// Always there.
    Fixed(Destination),
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
                tracing::warn!(%error, "cannot accept a connection to the cloud");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (kind, tunnels) = (kind.clone(), tunnels.clone());
        tokio::spawn(shutdown.clone().run_until_cancelled_owned(async move {
            let _permit = permit;
            // Latency matters more than full packets; without it the connection works as well.
            let _ = stream.set_nodelay(true);
            if let Err(error) = carry(stream, kind, &*tunnels).await {
                tracing::debug!(%error, "a connection to the cloud ended");
            }
        }));
    }
}

async fn carry<S>(mut stream: S, kind: Kind, tunnels: &dyn Tunnels) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let asked = match kind {
        Kind::Fixed(to) => Asked::fixed(to),
        Kind::Asked => timeout(PATIENCE, ask::read(&mut stream)).await??,
    };
    let Some(asked) = asked.into_request(&mut stream).await? else {
        return Ok(());
    };
    let mut far = match tunnels.open(&asked.to).await {
        Ok(far) => far,
        Err(error) => {
            tracing::debug!(target = %asked.to, %error, "the cloud is not reached");
            return asked.refuse(&mut stream, &error).await;
        }
    };
    asked.accept(&mut stream).await?;
    far.write_all(&asked.early).await?;
    pump(Box::new(stream), far).await.1
}

#[cfg(test)]
mod tests;
