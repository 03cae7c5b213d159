//! The other end of a frontend: asks a server for a connection or a page.

use super::Replayed;
use crate::{
    DialError,
    allow::Mark,
    session::{self, congestion},
};
use http::{Request, StatusCode, header};
use std::{path::PathBuf, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UnixStream},
    time::{Instant, timeout},
};
use yurt_transport::{BoxStream, Destination, collect, empty, exchange};

/// How long connecting and the TLS handshake may take.
const CONNECT: Duration = Duration::from_secs(10);
/// How long an answer may take; servers bound it themselves, to less.
const ANSWER: Duration = Duration::from_secs(60);
/// The longest head of an answer that is read, and the longest reason.
const LONGEST: usize = 64 << 10;
/// The longest page that is read.
const LONGEST_PAGE: usize = 16 << 20;

/// How a server is reached as a frontend.
#[derive(Clone, Debug)]
pub enum Way {
    /// A Unix socket.
    Unix(PathBuf),
    /// TLS at `host:port`, whose certificate is for `name`.
    Tls {
        /// Where.
        at: Destination,
        /// Who must be there.
        name: String,
        /// What is shown and believed.
        config: Arc<rustls::ClientConfig>,
    },
    /// Plain HTTP at `host:port`: the port for people, which has pages only.
    Plain(Destination),
}

/// Why a server cannot be asked.
#[derive(Debug, thiserror::Error)]
#[error("the tunnel server at {at}: {why}")]
pub struct Unreachable {
    at: String,
    why: String,
}

impl Way {
    /// Where it leads, for people.
    pub fn at(&self) -> String {
        match self {
            Self::Unix(path) => path.display().to_string(),
            Self::Tls { at, .. } | Self::Plain(at) => at.to_string(),
        }
    }

    fn failed(&self, why: impl ToString) -> Unreachable {
        Unreachable {
            at: self.at(),
            why: why.to_string(),
        }
    }

    /// Connects to the server.
    pub async fn open(&self) -> Result<BoxStream, Unreachable> {
        match timeout(CONNECT, Box::pin(self.dial())).await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(error)) => Err(self.failed(error)),
            Err(_) => Err(self.failed(format!("no connection in {CONNECT:?}"))),
        }
    }

    async fn dial(&self) -> std::io::Result<BoxStream> {
        match self {
            Self::Unix(path) => Ok(Box::new(UnixStream::connect(path).await?)),
            Self::Plain(at) => Ok(Box::new(
                TcpStream::connect((at.host.as_str(), at.port)).await?,
            )),
            Self::Tls { at, name, config } => {
                let began = Instant::now();
                let stream = Mark::default().connect_to(&at.host, at.port).await?;
                session::tune(&stream)?;
                congestion::pace_unless_near(&stream, Some(began.elapsed()));
                let name = rustls::pki_types::ServerName::try_from(name.clone())
                    .map_err(std::io::Error::other)?;
                let connector = tokio_rustls::TlsConnector::from(config.clone());
                Ok(Box::new(connector.connect(name, stream).await?))
            }
        }
    }

    /// GET of a page: its status and text.
    pub async fn get(&self, path: &str) -> Result<(StatusCode, String), Unreachable> {
        let request = Request::builder()
            .uri(path)
            .header(header::HOST, "tunnel")
            .header(header::CONNECTION, "close")
            .body(empty())
            .map_err(|error| self.failed(error))?;
        let stream = self.open().await?;
        let answer = exchange(stream, None, request, ANSWER).await;
        let answer = answer.map_err(|error| self.failed(error))?;
        let status = answer.status();
        let body = answer.into_body();
        let text = timeout(ANSWER, collect(body, LONGEST_PAGE)).await;
        let text = text
            .map_err(|error| self.failed(error))?
            .map_err(|error| self.failed(error))?;
        Ok((status, String::from_utf8_lossy(&text).into_owned()))
    }
}

/// Asks for a connection on a stream to a server, by CONNECT.
pub async fn connect(mut io: BoxStream, to: &Destination) -> Result<BoxStream, DialError> {
    let lost = |error: std::io::Error| DialError::Lost(format!("the tunnel server: {error}"));
    let node = match &to.node {
        Some(node) => format!("X-Tunnel-Proxy-Host: {node}\r\n"),
        None => String::new(),
    };
    let request = format!("CONNECT {to} HTTP/1.1\r\nHost: {to}\r\n{node}\r\n");
    let asking = async {
        io.write_all(request.as_bytes()).await?;
        io.flush().await?;
        let mut bytes = Vec::new();
        let head = loop {
            if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
                break end + 4;
            }
            if bytes.len() > LONGEST || io.read_buf(&mut bytes).await? == 0 {
                let what = "it is no frontend's: the answer has no head";
                return Err(std::io::Error::new(std::io::ErrorKind::InvalidData, what));
            }
        };
        let status = status(&bytes);
        if status != Some(StatusCode::OK) {
            let rest = (&mut io).take(LONGEST as u64);
            tokio::io::AsyncReadExt::read_to_end(&mut { rest }, &mut bytes).await?;
        }
        let rest = bytes.split_off(head);
        Ok((status, rest))
    };
    let asked = timeout(ANSWER, asking).await;
    let (status, rest) = match asked {
        Ok(asked) => asked.map_err(lost)?,
        Err(_) => {
            return Err(DialError::TimedOut(format!(
                "the tunnel server did not answer in {ANSWER:?}"
            )));
        }
    };
    let text = || String::from_utf8_lossy(&rest).trim().to_owned();
    match status {
        Some(StatusCode::OK) => Ok(Box::new(Replayed::new(rest, io))),
        Some(status) => Err(DialError::of_status(status, text())),
        None => Err(DialError::Lost("its answer is no HTTP".into())),
    }
}

fn status(head: &[u8]) -> Option<StatusCode> {
    let line = head.split(|byte| *byte == b'\r').next()?;
    let line = std::str::from_utf8(line).ok()?;
    let code = line
        .strip_prefix("HTTP/1.1 ")
        .or(line.strip_prefix("HTTP/1.0 "))?;
    code.split(' ').next()?.parse().ok()
}
