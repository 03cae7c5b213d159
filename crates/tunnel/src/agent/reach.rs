//! Reaching a server: TCP, directly or by a proxy; TLS, with this agent's certificate; and the protocol that both know.

use super::{fleet::Door, proxy::Proxy};
use crate::{
    AgentHello, Options, Session, SessionError,
    allow::connect_any,
    anp,
    certificates::Kept,
    hello::{ALPN_CLOUD, ALPN_GRPC, ALPN_MUX},
    mux, session,
};
use std::{
    io,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_util::sync::CancellationToken;
use yurt_pki::{PkiError, store::read_text};
use yurt_transport::{Destination, Dialer};

/// For TCP and TLS together, a proxy's part included.
const PATIENCE: Duration = Duration::from_secs(10);

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
    /// The protocol failed.
    #[error(transparent)]
    Session(#[from] SessionError),
}

/// How servers are reached.
#[derive(Debug)]
pub struct Reach {
    /// What is shown to them, and whom to believe.
    pub kept: Kept,
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
}

impl Reach {
    async fn tls(&self, door: &Door, alpn: &[&[u8]]) -> Result<TlsStream<TcpStream>, ReachError> {
        let config = self.kept.current().client_config(alpn)?;
        let name = rustls::pki_types::ServerName::try_from(door.name.clone())
            .map_err(|_| ReachError::Name(door.name.clone()))?;
        let connected = timeout(PATIENCE, async {
            let stream = match &self.proxy {
                Some(proxy) => {
                    let to = Destination {
                        node: None,
                        host: door.host.clone(),
                        port: door.port,
                    };
                    proxy.connect(&to).await?
                }
                None => match door.host.parse::<IpAddr>() {
                    Ok(address) => connect_any(vec![SocketAddr::new(address, door.port)]).await?,
                    Err(_) => TcpStream::connect((door.host.as_str(), door.port)).await?,
                },
            };
            session::tune(&stream)?;
            TlsConnector::from(config).connect(name, stream).await
        });
        Ok(connected.await.map_err(|_| ReachError::Slow(PATIENCE))??)
    }

    /// Connects to a server and serves it until `shutdown`, which drains.
    pub async fn session(
        &self,
        door: &Door,
        shutdown: CancellationToken,
    ) -> Result<Session, ReachError> {
        let stream = self.tls(door, &[ALPN_MUX, ALPN_GRPC]).await?;
        let chosen = stream.get_ref().1.alpn_protocol().map(<[u8]>::to_vec);
        let (hello, dialer) = (self.hello.clone(), self.dialer.clone());
        let (io, options) = (Box::new(stream), self.options.clone());
        let session = match chosen.as_deref() {
            Some(ALPN_MUX) => mux::answer(io, hello, dialer, options, shutdown).await?,
            // Konnectivity's, whose TLS may not name a protocol.
            _ => {
                let token = self.token.as_deref().and_then(|path| read_text(path).ok());
                let token = token.map(|text| text.trim().to_owned());
                anp::agent::connect(io, hello, dialer, token, options, shutdown).await?
            }
        };
        Ok(session)
    }

    /// A connection on which the cloud is asked for connections.
    pub async fn cloud(&self, door: &Door) -> Result<Arc<mux::cloud::Cloud>, ReachError> {
        let stream = self.tls(door, &[ALPN_CLOUD]).await?;
        if stream.get_ref().1.alpn_protocol() != Some(ALPN_CLOUD) {
            let text = "it does not let the edge ask for the cloud (ALPN yurt-cloud/1)";
            return Err(SessionError::Refused(text.to_owned()).into());
        }
        Ok(mux::cloud::ask(Box::new(stream), self.options.clone()).await?)
    }
}
