//! Agents that come by QUIC, beside the TCP port.

use super::gate::{Gate, HANDSHAKE, HANDSHAKES, Trouble};
use crate::{
    Options,
    quic::{self, NO_ERROR, endpoint},
    session::SessionError,
};
use arc_swap::ArcSwap;
use quinn::{Connection, Endpoint, Incoming};
use rustls::pki_types::CertificateDer;
use std::{net::SocketAddr, sync::Arc, time::Duration};
use tokio::{sync::OwnedSemaphorePermit, time::timeout};
use yurt_pki::{Leaf, PkiError};

/// Handshakes under way from which on whoever comes first proves that it is where it says (Retry), which costs it a round trip and us
/// nothing.
const MANY: usize = HANDSHAKES / 4;
/// How long the word that everything ends may take to leave.
const FAREWELL: Duration = Duration::from_secs(1);

/// Listens on a UDP port of the address of agents; 0: of the same number. Without it agents go on by TCP: it is not worth a server.
pub(super) fn bind(
    agents: SocketAddr,
    port: u16,
    tls: Arc<rustls::ServerConfig>,
    options: &Options,
) -> Option<Endpoint> {
    let address = SocketAddr::new(agents.ip(), if port == 0 { agents.port() } else { port });
    let bound =
        endpoint::serving(tls, options).and_then(|config| Ok(endpoint::listen(address, config)?));
    bound
        .inspect_err(|error| {
            tracing::error!(%address, %error, "cannot listen on UDP: agents are taken by TCP only (--agent-quic-port)");
        })
        .ok()
}

fn leaf(connection: &Connection) -> Result<Option<Leaf>, PkiError> {
    let shown = connection.peer_identity();
    let chain = shown.and_then(|shown| shown.downcast::<Vec<CertificateDer<'static>>>().ok());
    let first = chain.and_then(|chain| chain.into_iter().next());
    first.map(|der| Leaf::of(&der)).transpose()
}

impl Gate {
    /// Takes agents until the drain begins, and tells those that are left when everything ends.
    pub(super) async fn listen_quic(
        self: Arc<Self>,
        endpoint: Endpoint,
        tls: Arc<ArcSwap<rustls::ServerConfig>>,
    ) {
        let mut made: Option<(Arc<rustls::ServerConfig>, Arc<quinn::ServerConfig>)> = None;
        while let Some(Some(incoming)) = self.drain.run_until_cancelled(endpoint.accept()).await {
            let waiting = HANDSHAKES.saturating_sub(self.handshakes.available_permits());
            if waiting >= MANY && incoming.may_retry() {
                let _ = incoming.retry();
                continue;
            }
            let place = self.places.clone().try_acquire_owned();
            let turn = self.handshakes.clone().try_acquire_owned();
            let (Ok(place), Ok(turn)) = (place, turn) else {
                tracing::warn!(address = %incoming.remote_address(), "too many connections, turning one away");
                incoming.refuse();
                continue;
            };
            let now = tls.load_full();
            let config = match &made {
                Some((of, config)) if Arc::ptr_eq(of, &now) => config.clone(),
                _ => match endpoint::serving(now.clone(), &self.options) {
                    Ok(config) => made.insert((now, Arc::new(config))).1.clone(),
                    Err(error) => {
                        tracing::warn!(%error, "agents are not taken by QUIC with this certificate");
                        incoming.refuse();
                        continue;
                    }
                },
            };
            let gate = self.clone();
            self.tasks
                .spawn(gate.admit_quic(incoming, config, place, turn));
        }
        endpoint.set_server_config(None);
        self.stop.cancelled().await;
        endpoint.close(NO_ERROR, b"the server stops");
        let _ = timeout(FAREWELL, endpoint.wait_idle()).await;
    }

    async fn admit_quic(
        self: Arc<Self>,
        incoming: Incoming,
        config: Arc<quinn::ServerConfig>,
        place: OwnedSemaphorePermit,
        turn: OwnedSemaphorePermit,
    ) {
        let _place = place;
        let address = incoming.remote_address();
        let serving = Box::pin(self.serve_quic(incoming, config, turn, address));
        match self.stop.run_until_cancelled(serving).await {
            // An agent that looked and found TCP as good.
            Some(Err(Trouble::Session(error @ SessionError::Broken(_)))) => {
                tracing::debug!(%address, %error, "an agent does without QUIC");
            }
            Some(Err(error)) => {
                tracing::info!(%address, %error, "a QUIC connection is refused or broke");
            }
            Some(Ok(())) | None => {}
        }
    }

    async fn serve_quic(
        &self,
        incoming: Incoming,
        config: Arc<quinn::ServerConfig>,
        turn: OwnedSemaphorePermit,
        address: SocketAddr,
    ) -> Result<(), Trouble> {
        let handshaking = timeout(HANDSHAKE, async { incoming.accept_with(config)?.await });
        let shaken = match handshaking.await {
            Ok(shaken) => shaken.map_err(Trouble::from),
            Err(_) => Err(Trouble::Slow),
        };
        drop(turn);
        let connection = shaken.inspect_err(|_| self.metrics.refused("handshake"))?;
        let leaf = leaf(&connection)?;
        let link = quic::call(connection, self.hello(), self.options.clone()).await?;
        let refuse = link.clone();
        self.settle(link, leaf, address, |why| refuse.refuse(why))
            .await
    }
}
