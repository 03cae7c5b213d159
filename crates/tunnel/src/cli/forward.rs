//! `yurt tunnel forward NODE 8080:80`: ports of this host that lead to ports of a node.

use super::{WayArgs, WayError};
use crate::{
    frontend::client::{Way, connect},
    pump::pump,
};
use clap::Args;
use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    str::FromStr,
    sync::Arc,
    time::Duration,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use yurt_transport::Destination;

/// Connections that are carried at a time.
const MOST: usize = 1024;
/// When no connection can be accepted, how long until the next try.
const PAUSE: Duration = Duration::from_millis(200);
/// How long connections may go on at the end.
const DRAIN: Duration = Duration::from_secs(2);

/// Flags of `yurt tunnel forward`.
#[derive(Args, Clone, Debug)]
pub struct ForwardArgs {
    /// The node.
    node: String,
    /// `LOCAL:PORT`, `PORT` (the same here and there), `:PORT` (any port here), or `LOCAL:HOST:PORT` for what the node reaches.
    #[arg(required = true, value_name = "LOCAL:PORT")]
    ports: Vec<Ports>,
    /// Where to listen.
    #[arg(long, value_name = "ADDRESS", default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    address: IpAddr,
    #[command(flatten)]
    way: WayArgs,
}

/// A port here, and what it leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Ports {
    local: u16,
    host: String,
    remote: u16,
}

impl FromStr for Ports {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not LOCAL:PORT, PORT, :PORT or LOCAL:HOST:PORT");
        let port = |text: &str| match text.parse::<u16>() {
            Ok(port) if port > 0 => Ok(port),
            _ => Err(wrong()),
        };
        let local = |text: &str| match text {
            "" => Ok(0),
            text => port(text),
        };
        // The node's own loopback address: what listens on all of its addresses listens there, too.
        let loopback = || Ipv4Addr::LOCALHOST.to_string();
        match text.split_once(':') {
            None => Ok(Self {
                local: port(text)?,
                host: loopback(),
                remote: port(text)?,
            }),
            Some((here, there)) if there.contains(':') => {
                let there: Destination = there.parse().map_err(|_| wrong())?;
                Ok(Self {
                    local: local(here)?,
                    host: there.host,
                    remote: there.port,
                })
            }
            Some((here, there)) => Ok(Self {
                local: local(here)?,
                host: loopback(),
                remote: port(there)?,
            }),
        }
    }
}

/// Why nothing is forwarded.
#[derive(Debug, thiserror::Error)]
pub enum ForwardError {
    /// There is no way to a server.
    #[error(transparent)]
    Way(#[from] WayError),
    /// A port cannot be listened on.
    #[error("cannot listen on {address}: {source}")]
    Bind {
        /// Which.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
}

/// Ports that are listened on.
#[derive(Debug)]
pub struct Forward {
    way: Arc<Way>,
    listeners: Vec<(TcpListener, SocketAddr, Destination)>,
}

impl Forward {
    /// Listens; nothing is asked of the server yet.
    pub async fn listen(args: ForwardArgs) -> Result<Self, ForwardError> {
        let way = Arc::new(args.way.for_connections()?);
        let mut listeners = Vec::new();
        for ports in args.ports {
            let address = SocketAddr::new(args.address, ports.local);
            let bound = async {
                let listener = TcpListener::bind(address).await?;
                let local = listener.local_addr()?;
                Ok((listener, local))
            };
            let (listener, local) = bound
                .await
                .map_err(|source| ForwardError::Bind { address, source })?;
            let to = Destination {
                node: Some(args.node.clone()),
                host: ports.host,
                port: ports.remote,
            };
            listeners.push((listener, local, to));
        }
        Ok(Self { way, listeners })
    }

    /// What leads where, for people.
    pub fn lines(&self) -> impl Iterator<Item = String> {
        self.listeners.iter().map(|(_, local, to)| {
            let node = to.node.as_deref().unwrap_or_default();
            format!(
                "Forwarding from {local} -> {to} on {}",
                yurt_inspect::plain(node)
            )
        })
    }

    /// Where is listened, in the order of the flags.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.listeners.iter().map(|(_, local, _)| *local).collect()
    }

    /// Carries connections until `shutdown`.
    pub async fn serve(self, shutdown: CancellationToken) {
        let (tasks, places) = (TaskTracker::new(), Arc::new(Semaphore::new(MOST)));
        let stop = CancellationToken::new();
        for (listener, _, to) in self.listeners {
            let (way, places, to) = (self.way.clone(), places.clone(), Arc::new(to));
            let (connections, stop) = (tasks.clone(), stop.clone());
            let accepting = async move {
                loop {
                    let Ok(place) = places.clone().acquire_owned().await else {
                        return;
                    };
                    let Ok((stream, _)) = listener.accept().await else {
                        tokio::time::sleep(PAUSE).await;
                        continue;
                    };
                    let carrying = carry(stream, way.clone(), to.clone());
                    let stop = stop.clone();
                    connections.spawn(async move {
                        let _place = place;
                        stop.run_until_cancelled(carrying).await;
                    });
                }
            };
            tasks.spawn(shutdown.clone().run_until_cancelled_owned(accepting));
        }
        shutdown.cancelled().await;
        tasks.close();
        let _ = tokio::time::timeout(DRAIN, tasks.wait()).await;
        stop.cancel();
        tasks.wait().await;
    }
}

/// One connection. A failure is told to whoever started the command, and to the caller by the end of its connection.
async fn carry(stream: TcpStream, way: Arc<Way>, to: Arc<Destination>) {
    let opened = async {
        let io = way.open().await.map_err(|error| error.to_string())?;
        connect(io, &to).await.map_err(|error| error.to_string())
    };
    match Box::pin(opened).await {
        Ok(there) => {
            let _ = stream.set_nodelay(true);
            let (_, ended) = pump(Box::new(stream), there).await;
            if let Err(error) = ended {
                tracing::debug!(%to, %error, "a connection broke");
            }
        }
        Err(error) => tracing::warn!("{to}: {}", yurt_inspect::plain(&error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_written_as_for_kubectl() {
        let ports = |local, host: &str, remote| Ports {
            local,
            host: host.into(),
            remote,
        };
        for (text, meant) in [
            ("8080:80", ports(8080, "127.0.0.1", 80)),
            ("22", ports(22, "127.0.0.1", 22)),
            (":80", ports(0, "127.0.0.1", 80)),
            ("8080:10.0.0.7:80", ports(8080, "10.0.0.7", 80)),
            (":[fd00::7]:80", ports(0, "fd00::7", 80)),
        ] {
            assert_eq!(text.parse(), Ok(meant), "{text}");
        }
        for wrong in ["", "a", "80:", "0", "1:0", "70000", "1:a:b", "a:1"] {
            assert!(wrong.parse::<Ports>().is_err(), "{wrong}");
        }
    }
}
