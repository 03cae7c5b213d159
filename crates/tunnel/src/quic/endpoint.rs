//! The UDP sockets, and how QUIC is set up on them.

use super::TransportError;
use crate::{mux::windows, session::Options};
use quinn::{
    ClientConfig, Connection, Endpoint, EndpointConfig, IdleTimeout, ServerConfig, TokioRuntime,
    TransportConfig, VarInt,
    congestion::BbrConfig,
    crypto::rustls::{QuicClientConfig, QuicServerConfig},
};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    sync::Arc,
    time::Duration,
};

/// Streams beyond the bound that are told so; more wait.
const SPARE: usize = 64;
/// What the kernel may hold of datagrams each way, as far as it allows: a burst that finds no room is lost.
const SOCKET: usize = 4 << 20;
/// Handshakes whose first datagram waits to be looked at, and the bytes that may wait with it.
const WAITING: usize = 1024;
const WAITING_BYTES: u64 = 64 << 10;
/// How much shorter than it takes to notice a dead peer the question may come.
const ANSWER: Duration = Duration::from_secs(1);

/// QUIC's own bounds. `accepts`: whether the far end opens streams: the agent's end.
pub(super) fn transport(options: &Options, accepts: bool) -> Arc<TransportConfig> {
    let count = |count: usize| VarInt::try_from(count as u64).unwrap_or(VarInt::MAX);
    let streams = if accepts {
        options.max_connections.saturating_add(1 + SPARE)
    } else {
        0
    };
    // All streams' windows together, however many there are, while their writers shrink them as they agreed; and that much again for
    // what was granted before.
    let least = options
        .max_connections
        .saturating_mul(windows::LEAST as usize);
    let together = options.memory.max(least).saturating_mul(2);
    let mut config = TransportConfig::default();
    let idle = IdleTimeout::try_from(options.quiet + ANSWER.max(options.patience / 4));
    config
        .max_concurrent_bidi_streams(count(streams))
        .max_concurrent_uni_streams(count(1))
        .stream_receive_window(windows::MOST.into())
        .receive_window(count(together))
        .send_window(together as u64)
        .keep_alive_interval(Some(options.quiet))
        .max_idle_timeout(idle.ok())
        .congestion_controller_factory(Arc::new(BbrConfig::default()))
        .datagram_receive_buffer_size(None);
    Arc::new(config)
}

fn socket(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::DGRAM,
        Some(Protocol::UDP),
    )?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    let socket: UdpSocket = socket.into();
    let wide = SockRef::from(&socket);
    // As much as the system allows.
    let _ = wide.set_recv_buffer_size(SOCKET);
    let _ = wide.set_send_buffer_size(SOCKET);
    Ok(socket)
}

/// How handshakes are taken with this certificate.
pub fn serving(
    tls: Arc<rustls::ServerConfig>,
    options: &Options,
) -> Result<ServerConfig, TransportError> {
    let crypto = QuicServerConfig::try_from(tls)?;
    let mut config = ServerConfig::with_crypto(Arc::new(crypto));
    config
        .transport_config(transport(options, false))
        .max_incoming(WAITING)
        .incoming_buffer_size(WAITING_BYTES)
        .incoming_buffer_size_total(WAITING as u64 * WAITING_BYTES / 4);
    Ok(config)
}

/// Listens for agents.
pub fn listen(address: SocketAddr, config: ServerConfig) -> io::Result<Endpoint> {
    let runtime = Arc::new(TokioRuntime);
    Endpoint::new(
        EndpointConfig::default(),
        Some(config),
        socket(address)?,
        runtime,
    )
}

/// How servers are called with this certificate.
pub fn calling(
    tls: Arc<rustls::ClientConfig>,
    options: &Options,
) -> Result<ClientConfig, TransportError> {
    let crypto = QuicClientConfig::try_from(tls)?;
    let mut config = ClientConfig::new(Arc::new(crypto));
    config.transport_config(transport(options, true));
    Ok(config)
}

/// Connects to a server that must be `name`. Its socket is not bound to an address of this host: when that changes, the connection
/// goes on from the new one. Unbounded in time.
pub async fn connect(
    address: SocketAddr,
    name: &str,
    config: ClientConfig,
) -> Result<Connection, TransportError> {
    let any = match address {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let runtime = Arc::new(TokioRuntime);
    let endpoint = Endpoint::new(EndpointConfig::default(), None, socket(any)?, runtime)?;
    Ok(endpoint.connect_with(config, address, name)?.await?)
}
