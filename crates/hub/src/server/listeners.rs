//! The sockets that the hub is reached by.

use super::HubError;
use crate::{certificates, config::Config};
use socket2::SockRef;
use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::unix::fs::PermissionsExt,
};
use tokio::net::{TcpListener, TcpSocket, UnixListener};

/// Connections that may wait to be accepted.
const BACKLOG: u32 = 1024;

/// The Unix socket of the API proxy, in the root directory.
pub const LOCAL_SOCKET: &str = "hub.sock";

/// The listeners of a hub, bound and not yet served.
#[derive(Debug, Default)]
pub struct Listeners {
    /// Admin endpoints.
    pub admin: Option<TcpListener>,
    /// Plain API proxy.
    pub proxy: Option<TcpListener>,
    /// Plain API proxy on the dummy interface.
    pub dummy_proxy: Option<TcpListener>,
    /// TLS API proxy.
    pub secure_proxy: Option<TcpListener>,
    /// For the other nodes of the pool.
    pub pool: Option<TcpListener>,
    /// For root's processes on the node.
    pub local: Option<UnixListener>,
}

impl Listeners {
    /// Binds what the configuration asks for; within a runtime.
    pub fn bind(config: &Config) -> Result<Self, HubError> {
        let bind = |address: Option<SocketAddr>, purpose| {
            let dummy = config.dummy.as_ref().map(|dummy| dummy.address);
            address
                .map(|address| bind(address, purpose, Some(address.ip()) == dummy))
                .transpose()
        };
        let secure = config.secure_proxy.filter(|_| serves_tls(config));
        Ok(Self {
            admin: bind(config.admin, "admin endpoints")?,
            proxy: bind(config.proxy, "API proxy")?,
            dummy_proxy: bind(config.dummy_proxy, "API proxy on the dummy interface")?,
            secure_proxy: bind(secure, "TLS API proxy")?,
            pool: bind_pool(config)?,
            local: bind_local(config)?,
        })
    }

    /// The dummy interface cannot be had: what pods should be served over TLS is served on `--bind-proxy-address` instead. The
    /// plain listener stays, for an address that somebody else may bring yet.
    pub fn leave_dummy(&mut self, config: &mut Config) -> Result<(), HubError> {
        let dummy = config.dummy.as_ref().map(|dummy| dummy.address);
        let Some(address) = config
            .secure_proxy
            .as_mut()
            .filter(|address| Some(address.ip()) == dummy)
        else {
            return Ok(());
        };
        address.set_ip(config.bind_proxy);
        if self.secure_proxy.is_some() {
            tracing::warn!(%address, "the TLS API proxy is served here instead of on the dummy interface");
            self.secure_proxy = Some(bind(*address, "TLS API proxy", false)?);
        }
        Ok(())
    }
}

/// Whether there is, or will be, a certificate to serve with.
fn serves_tls(config: &Config) -> bool {
    config.serving_certificate.is_some() || config.bootstrap.is_some()
}

/// Binds the port for the other nodes of the pool on the node's address. Who is let in there does not depend on the address: where
/// the node has none yet (no `--node-ip`, no route, or not set up after a start), every address will do.
fn bind_pool(config: &Config) -> Result<Option<TcpListener>, HubError> {
    let purpose = "for the nodes of the pool";
    let (Some(port), true) = (config.pool_port, serves_tls(config)) else {
        return Ok(None);
    };
    let any = match config.node_ip {
        Some(IpAddr::V6(_)) => IpAddr::from(Ipv6Addr::UNSPECIFIED),
        _ => Ipv4Addr::UNSPECIFIED.into(),
    };
    let ip = config
        .node_ip
        .or_else(|| certificates::default_address(&config.servers))
        .unwrap_or(any);
    let bound = match bind(SocketAddr::new(ip, port), purpose, false) {
        Err(HubError::Bind { source, .. }) if source.kind() == io::ErrorKind::AddrNotAvailable => {
            tracing::warn!(%ip, "the node does not have this address now; its pool is served on every address");
            bind(SocketAddr::new(any, port), purpose, false)
        }
        bound => bound,
    };
    bound.map(Some)
}

/// Binds the Unix socket in the root directory, for root and the hub's own user. Another hub that still serves there is an error.
pub fn bind_local(config: &Config) -> Result<Option<UnixListener>, HubError> {
    let path = config.root_dir.join(LOCAL_SOCKET);
    let bind = || {
        if let Err(error) = std::fs::create_dir_all(&config.root_dir) {
            tracing::warn!(dir = %config.root_dir.display(), %error, "no Unix socket: there is no root directory");
            return Ok(None);
        }
        match std::os::unix::net::UnixStream::connect(&path) {
            Ok(_) => return Err(io::ErrorKind::AddrInUse.into()),
            // What an earlier hub left.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                std::fs::remove_file(&path)?;
            }
            Err(_) => {}
        }
        let listener = UnixListener::bind(&path)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
        Ok(Some(listener))
    };
    bind().map_err(|source| HubError::BindLocal {
        path: path.clone(),
        source,
    })
}

/// Listens. With `free`, also on an address that the node does not have yet, or not at the moment: a socket stays through the
/// loss and the return of its interface.
fn bind(address: SocketAddr, purpose: &'static str, free: bool) -> Result<TcpListener, HubError> {
    listen(address, free).map_err(|source| HubError::Bind {
        address,
        purpose,
        source,
    })
}

fn listen(address: SocketAddr, free: bool) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    socket.set_reuseaddr(true)?;
    if free {
        let socket = SockRef::from(&socket);
        match address {
            SocketAddr::V4(_) => socket.set_freebind_v4(true)?,
            SocketAddr::V6(_) => socket.set_freebind_v6(true)?,
        }
    }
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_address_that_is_not_there_yet_can_be_listened_on() {
        let nowhere = "169.254.77.77:0".parse().unwrap();
        assert!(bind(nowhere, "test", false).is_err());
        let listener = bind(nowhere, "test", true).unwrap();
        assert_eq!(listener.local_addr().unwrap().ip(), nowhere.ip());
        let taken = listener.local_addr().unwrap();
        let error = bind(taken, "API proxy", true).unwrap_err().to_string();
        assert!(error.contains("another hub on this node?"), "{error}");
    }
}
