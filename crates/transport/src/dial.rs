//! How a peer is reached: directly, or by whoever knows the way (a tunnel to nodes behind a cut-off network).

use std::{fmt, future::Future, io, pin::Pin, str::FromStr, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};

/// Silence after which a connection is asked whether it still lives; four times that without an answer end it.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// A byte stream to a peer: TCP, a tunnel, a pipe.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// Any byte stream.
pub type BoxStream = Box<dyn Stream>;

/// A stream that is being opened.
pub type Dialing<'a> = Pin<Box<dyn Future<Output = io::Result<BoxStream>> + Send + 'a>>;

/// Where a stream is wanted to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Destination {
    /// The node behind whose network the address is, when that is known.
    pub node: Option<String>,
    /// Address or name, without brackets.
    pub host: String,
    /// Port.
    pub port: u16,
}

impl fmt::Display for Destination {
    /// `host:port`, IPv6 addresses in brackets.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(formatter, "[{}]:{}", self.host, self.port)
        } else {
            write!(formatter, "{}:{}", self.host, self.port)
        }
    }
}

/// A text that is no `host:port`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no host:port")]
pub struct InvalidDestination(String);

impl FromStr for Destination {
    type Err = InvalidDestination;

    /// Reads what [`Display`](fmt::Display) writes. The host is not looked at closely: whoever dials it does.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidDestination(text.chars().take(300).collect());
        let (host, port) = text.rsplit_once(':').ok_or_else(invalid)?;
        let host = match host.strip_prefix('[') {
            Some(inner) => inner.strip_suffix(']').ok_or_else(invalid)?,
            None if host.contains(':') => return Err(invalid()),
            None => host,
        };
        let port = port.parse().ok().filter(|&port| port > 0);
        let plain = |byte: u8| byte.is_ascii_graphic() && !b"[]/@".contains(&byte);
        if host.is_empty() || host.len() > 255 || !host.bytes().all(plain) {
            return Err(invalid());
        }
        Ok(Self {
            node: None,
            host: host.to_owned(),
            port: port.ok_or_else(invalid)?,
        })
    }
}

/// Opens streams to nodes and pods. Whoever calls bounds the wait.
pub trait Dialer: fmt::Debug + Send + Sync {
    /// Opens a stream; dropping the future gives up.
    fn dial<'a>(&'a self, to: &'a Destination) -> Dialing<'a>;
}

/// Connects by TCP.
#[derive(Clone, Copy, Debug, Default)]
pub struct TcpDialer;

impl Dialer for TcpDialer {
    fn dial<'a>(&'a self, to: &'a Destination) -> Dialing<'a> {
        Box::pin(async move {
            let stream = TcpStream::connect((to.host.as_str(), to.port)).await?;
            stream.set_nodelay(true)?;
            let socket = socket2::SockRef::from(&stream);
            socket.set_tcp_keepalive(
                &socket2::TcpKeepalive::new()
                    .with_time(KEEPALIVE)
                    .with_interval(KEEPALIVE)
                    .with_retries(3),
            )?;
            socket.set_tcp_user_timeout(Some(KEEPALIVE * 4))?;
            Ok(Box::new(stream) as BoxStream)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn destinations_are_read_as_they_are_written() {
        for text in ["node-1:10250", "10.0.0.1:80", "[fd00::1]:443", "a.b.svc:1"] {
            assert_eq!(text.parse::<Destination>().unwrap().to_string(), text);
        }
        for text in [
            "",
            "node-1",
            "node-1:",
            ":80",
            "a:0",
            "a:65536",
            "fd00::1:80",
            "[fd00::1:80",
            "a b:1",
            "u@h:1",
            "a/b:1",
        ] {
            assert!(text.parse::<Destination>().is_err(), "{text}");
        }
    }
}
