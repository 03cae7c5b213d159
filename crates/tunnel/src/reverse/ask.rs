//! What a program asks for: HTTP CONNECT or SOCKS5 (RFC 1928, without authentication).

use super::{Destination, DialError};
use http::StatusCode;
use std::{
    io::{self, ErrorKind},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Longest request head.
const MOST: usize = 16 << 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Dialect {
    Http,
    Socks5,
    /// Nothing is said.
    Silent,
}

/// What was asked.
#[derive(Debug)]
pub(super) struct Asked {
    dialect: Dialect,
    to: Result<Destination, Refusal>,
    early: Vec<u8>,
}

/// What cannot be asked so.
#[derive(Debug)]
struct Refusal {
    status: StatusCode,
    socks: u8,
    why: &'static str,
}

/// A request for a connection.
#[derive(Debug)]
pub(super) struct Request {
    dialect: Dialect,
    pub(super) to: Destination,
    /// What the program said already to the other end.
    pub(super) early: Vec<u8>,
}

fn malformed(why: &str) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, why.to_owned())
}

/// Reads what a program asks, in either dialect.
pub(super) async fn read(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> io::Result<Asked> {
    match stream.read_u8().await? {
        5 => socks5(stream).await,
        first if first.is_ascii_uppercase() => http(stream, first).await,
        _ => Err(malformed("neither HTTP CONNECT nor SOCKS5")),
    }
}

async fn socks5(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> io::Result<Asked> {
    let count = stream.read_u8().await?;
    let mut methods = vec![0; usize::from(count)];
    stream.read_exact(&mut methods).await?;
    if !methods.contains(&0) {
        stream.write_all(&[5, 255]).await?;
        return Err(malformed(
            "SOCKS5 with authentication, of which there is none",
        ));
    }
    stream.write_all(&[5, 0]).await?;
    let mut head = [0; 4];
    stream.read_exact(&mut head).await?;
    let [5, command, _, kind] = head else {
        return Err(malformed("no SOCKS5 request"));
    };
    let host = match kind {
        1 => Some(IpAddr::V4(Ipv4Addr::from_bits(stream.read_u32().await?)).to_string()),
        4 => Some(IpAddr::V6(Ipv6Addr::from_bits(stream.read_u128().await?)).to_string()),
        3 => {
            let mut name = vec![0; usize::from(stream.read_u8().await?)];
            stream.read_exact(&mut name).await?;
            String::from_utf8(name).ok()
        }
        _ => return Err(malformed("an address of an unknown kind")),
    };
    let port = stream.read_u16().await?;
    let refused = |socks, why| Refusal {
        status: StatusCode::BAD_REQUEST,
        socks,
        why,
    };
    let to = host.and_then(|host| {
        let to = Destination {
            node: None,
            host,
            port,
        };
        // Goes by the same narrow form that other dialects have.
        to.to_string().parse().ok()
    });
    Ok(Asked {
        dialect: Dialect::Socks5,
        to: match (command, to) {
            (1, Some(to)) => Ok(to),
            (1, None) => Err(refused(8, "no such address")),
            _ => Err(refused(7, "only connections")),
        },
        early: Vec::new(),
    })
}

async fn http(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), first: u8) -> io::Result<Asked> {
    let mut head = vec![first];
    let end = loop {
        if let Some(end) = head.windows(4).position(|four| four == b"\r\n\r\n") {
            break end + 4;
        }
        if head.len() > MOST {
            return Err(malformed("a request head without end"));
        }
        if stream.read_buf(&mut head).await? == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
    };
    let early = head.split_off(end);
    let line = head.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let line = String::from_utf8_lossy(line);
    let words: Vec<&str> = line.split(' ').collect();
    let refused = |status, why| Refusal {
        status,
        socks: 1,
        why,
    };
    let to = match words.as_slice() {
        ["CONNECT", target, version] if version.starts_with("HTTP/1.") => target
            .parse()
            .map_err(|_| refused(StatusCode::BAD_REQUEST, "CONNECT wants host:port")),
        [_, _, version] if version.starts_with("HTTP/") => {
            Err(refused(StatusCode::METHOD_NOT_ALLOWED, "only CONNECT"))
        }
        _ => return Err(malformed("neither HTTP CONNECT nor SOCKS5")),
    };
    Ok(Asked {
        dialect: Dialect::Http,
        to,
        early,
    })
}

impl Asked {
    /// A connection that always goes there.
    pub(super) fn fixed(to: Destination) -> Self {
        Self {
            dialect: Dialect::Silent,
            to: Ok(to),
            early: Vec::new(),
        }
    }

    /// The request; `None` when it was refused, which the program is told.
    pub(super) async fn into_request(
        self,
        stream: &mut (impl AsyncWrite + Unpin),
    ) -> io::Result<Option<Request>> {
        match self.to {
            Ok(to) => Ok(Some(Request {
                dialect: self.dialect,
                to,
                early: self.early,
            })),
            Err(refusal) => {
                say(
                    stream,
                    self.dialect,
                    refusal.status,
                    refusal.socks,
                    refusal.why,
                )
                .await?;
                Ok(None)
            }
        }
    }
}

async fn say(
    stream: &mut (impl AsyncWrite + Unpin),
    dialect: Dialect,
    status: StatusCode,
    socks: u8,
    why: &str,
) -> io::Result<()> {
    match dialect {
        Dialect::Http => {
            let answer = format!(
                "HTTP/1.1 {status}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{why}\n",
                why.len() + 1
            );
            stream.write_all(answer.as_bytes()).await?;
        }
        Dialect::Socks5 => {
            stream
                .write_all(&[5, socks, 0, 1, 0, 0, 0, 0, 0, 0])
                .await?
        }
        // Closed by the reset that says at least that.
        Dialect::Silent => return Ok(()),
    }
    stream.shutdown().await
}

impl Request {
    /// Whether the program knows of no tunnel, so that it cannot be told anything.
    pub(super) fn is_silent(&self) -> bool {
        self.dialect == Dialect::Silent
    }

    /// Tells the program that it is connected.
    pub(super) async fn accept(&self, stream: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
        match self.dialect {
            Dialect::Http => {
                stream
                    .write_all(b"HTTP/1.1 200 Connection Established\r\n\r\n")
                    .await
            }
            Dialect::Socks5 => stream.write_all(&[5, 0, 0, 1, 0, 0, 0, 0, 0, 0]).await,
            Dialect::Silent => Ok(()),
        }
    }

    /// Tells the program why it is not.
    pub(super) async fn refuse(
        &self,
        stream: &mut (impl AsyncWrite + Unpin),
        error: &DialError,
    ) -> io::Result<()> {
        let socks = match error {
            DialError::Forbidden(_) => 2,
            DialError::NoAgent(_) => 3,
            DialError::Failed(_) => 5,
            DialError::TimedOut(_) => 6,
            DialError::Invalid(_) => 8,
            DialError::Lost(_) | DialError::Busy(_) => 1,
        };
        say(
            stream,
            self.dialect,
            error.status(),
            socks,
            &error.to_string(),
        )
        .await
    }
}
