//! Reaching a server: TCP, directly or by a proxy; TLS, with this agent's certificate; and the protocol that both know.

use super::{beside::Transport, fleet::Door, proxy::Proxy};
use crate::{
    AgentHello, Options, ServerHello, Session, SessionError,
    allow::{Mark, connect_any},
    anp,
    certificates::Kept,
    hello::{ALPN_CLOUD, ALPN_GRPC, ALPN_MUX, ALPN_QUIC},
    mux,
    quic::{TransportError, endpoint},
    session::{self, congestion},
};
use std::{
    io,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_util::sync::CancellationToken;
use yurt_pki::{PkiError, store::read_text};
use yurt_transport::{Destination, Dialer};

/// For TCP and TLS together, a proxy's part included.
const PATIENCE: Duration = Duration::from_secs(10);

/// For a QUIC handshake: UDP that does not pass makes no noise.
const UDP_PATIENCE: Duration = Duration::from_secs(5);

/// Why a server is not reached.
#[derive(Debug, thiserror::Error)]
pub enum ReachError {
    /// No connection, or no TLS on it: the server's or the network's fault, or a certificate's.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// Nobody answered.
    #[error("no connection within {0:?}")]
    Slow(Duration),
    /// There is no certificate yet, or it cannot be used.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// The address's name is none that a certificate can be for.
    #[error("{0:?} is no name of a server")]
    Name(String),
    /// By QUIC.
    #[error(transparent)]
    Quic(#[from] TransportError),
    /// The protocol failed.
    #[error(transparent)]
    Session(#[from] SessionError),
}

/// How servers are reached.
#[derive(Debug)]
pub struct Reach {
    /// What is shown to them, and whom to believe.
    pub kept: Kept,
    /// What carries the tunnel.
    pub transport: Transport,
    /// Within how long QUIC is looked at first.
    pub within: Duration,
    /// On the way.
    pub proxy: Option<Proxy>,
    /// What the agent says of itself.
    pub hello: AgentHello,
    /// What dials for servers.
    pub dialer: Arc<dyn Dialer>,
    /// Bounds of connections.
    pub options: Options,
    /// A service account's token that konnectivity's servers may want, read anew for every connection.
    pub token: Option<PathBuf>,
    /// On everything that is connected.
    pub(crate) mark: Mark,
    /// The clock by which certificates end: seconds since the epoch.
    pub(crate) now: fn() -> i64,
    /// TLS protocols to offer beside `h2`, in place of our own.
    pub protocols: Vec<String>,
}

impl Reach {
    /// TLS to a server; and how long a round trip took, where there is no proxy on the way.
    async fn tls(
        &self,
        door: &Door,
        alpn: &[&[u8]],
    ) -> Result<(TlsStream<TcpStream>, Option<Duration>), ReachError> {
        let config = self.kept.client_config(alpn)?;
        let name = rustls::pki_types::ServerName::try_from(door.name.clone())
            .map_err(|_| ReachError::Name(door.name.clone()))?;
        let began = Instant::now();
        let connected = timeout(PATIENCE, async {
            let stream = match &self.proxy {
                Some(proxy) => {
                    let to = Destination {
                        node: None,
                        host: door.host.clone(),
                        port: door.port,
                    };
                    proxy.connect(&to, self.mark).await?
                }
                None => match door.host.parse::<IpAddr>() {
                    Ok(address) => {
                        let address = SocketAddr::new(address, door.port);
                        connect_any(vec![address], self.mark).await?
                    }
                    Err(_) => self.mark.connect_to(&door.host, door.port).await?,
                },
            };
            let round_trip = self.proxy.is_none().then(|| began.elapsed());
            session::tune(&stream)?;
            congestion::pace_unless_near(&stream, round_trip);
            let stream = TlsConnector::from(config).connect(name, stream).await?;
            Ok::<_, io::Error>((stream, round_trip))
        });
        Ok(connected.await.map_err(|_| ReachError::Slow(PATIENCE))??)
    }

    /// Connects to a server and serves it until `shutdown`, which drains. One of ours that is not wanted (by its id) never hears of this
    /// agent.
    pub async fn session(
        &self,
        door: &Door,
        shutdown: CancellationToken,
        is_wanted: &(dyn Fn(&str) -> bool + Sync),
    ) -> Result<Session, ReachError> {
        // Ours knows agents by certificates only.
        let is_certified = self.kept.current().pair.is_some();
        let other = self.protocols.iter().map(String::as_bytes);
        let mut offered: Vec<&[u8]> = match self.protocols.is_empty() {
            true => Vec::from_iter(is_certified.then_some(ALPN_MUX)),
            false => other.filter(|name| *name != ALPN_GRPC).collect(),
        };
        offered.push(ALPN_GRPC);
        let (stream, round_trip) = self.tls(door, &offered).await?;
        let chosen = stream.get_ref().1.alpn_protocol().map(<[u8]>::to_vec);
        let (hello, dialer) = (self.hello.clone(), self.dialer.clone());
        let (io, options) = (Box::new(stream), self.options.clone());
        let mut session = match chosen.as_deref() {
            Some(ALPN_MUX) => {
                let is_wanted = |server: &ServerHello| is_wanted(&server.id);
                mux::answer_if(io, hello, dialer, options, shutdown, &is_wanted).await?
            }
            // Konnectivity's, whose TLS may not name a protocol.
            _ => {
                let token = self.token.as_deref().and_then(|path| read_text(path).ok());
                let token = token.map(|text| text.trim().to_owned());
                anp::agent::connect(io, hello, dialer, token, options, shutdown).await?
            }
        };
        session.round_trip = round_trip;
        Ok(session)
    }

    /// Connects to a server's UDP port.
    pub async fn quic(&self, door: &Door, port: u16) -> Result<quinn::Connection, ReachError> {
        let config = self.kept.current().client_config(&[ALPN_QUIC])?;
        let config = endpoint::calling(config, &self.options)?;
        let address: IpAddr = door
            .host
            .parse()
            .map_err(|_| ReachError::Name(door.host.clone()))?;
        let address = SocketAddr::new(address, port);
        let connected = timeout(UDP_PATIENCE, endpoint::connect(address, &door.name, config));
        Ok(connected
            .await
            .map_err(|_| ReachError::Slow(UDP_PATIENCE))??)
    }

    /// A connection on which the cloud is asked for connections.
    pub async fn cloud(&self, door: &Door) -> Result<Arc<mux::cloud::Cloud>, ReachError> {
        let (stream, _) = self.tls(door, &[ALPN_CLOUD]).await?;
        if stream.get_ref().1.alpn_protocol() != Some(ALPN_CLOUD) {
            let text = "it does not let the edge ask for the cloud (ALPN yurt-cloud/1)";
            return Err(SessionError::Refused(text.to_owned()).into());
        }
        Ok(mux::cloud::ask(Box::new(stream), self.options.clone()).await?)
    }
}
