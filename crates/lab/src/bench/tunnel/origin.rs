//! What is behind the agent: an HTTP/1.1 server that answers little, sends much, takes much, or takes nothing.

use crate::bench::{
    BenchError,
    processes::{interrupted, io_error},
};
use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    path::Path,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

/// Bytes moved at once.
pub(super) const CHUNK: usize = 256 << 10;
/// What a small answer holds.
pub(super) const SMALL: usize = 256;
/// Longest request head.
const MOST_HEAD: usize = 4 << 10;
/// Connections that wait to be accepted.
const BACKLOG: u32 = 4096;

/// What a request asks of the origin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ask {
    /// `/small`: [`SMALL`] bytes.
    Small,
    /// `/bulk/N`: so many bytes.
    Bulk(u64),
    /// `/sink/N`: takes so many bytes, then answers as to [`Ask::Small`].
    Sink(u64),
    /// `/stuck`: never reads on.
    Stuck,
}

impl Ask {
    /// The head that asks for it.
    pub(super) fn head(self) -> String {
        let (method, path) = match self {
            Self::Small => ("GET", "small".to_owned()),
            Self::Bulk(bytes) => ("GET", format!("bulk/{bytes}")),
            Self::Sink(bytes) => ("POST", format!("sink/{bytes}")),
            Self::Stuck => ("POST", "stuck".to_owned()),
        };
        format!("{method} /{path} HTTP/1.1\r\nHost: origin\r\n\r\n")
    }

    fn parse(head: &str) -> Option<Self> {
        let path = head.split(' ').nth(1)?.strip_prefix('/')?;
        match path.split_once('/') {
            None if path == "small" => Some(Self::Small),
            None if path == "stuck" => Some(Self::Stuck),
            Some(("bulk", bytes)) => Some(Self::Bulk(bytes.parse().ok()?)),
            Some(("sink", bytes)) => Some(Self::Sink(bytes.parse().ok()?)),
            _ => None,
        }
    }
}

/// A listening origin; ends with its handle.
#[derive(Debug)]
pub(super) struct Origin {
    pub(super) address: SocketAddr,
    task: JoinHandle<()>,
}

impl Origin {
    /// Listens on a free port of the loopback.
    pub(super) fn start() -> Result<Self, BenchError> {
        let listen = || {
            let socket = tokio::net::TcpSocket::new_v4()?;
            // Where the machine's default is BBR, a timer of its kernel for nearly every packet would be charged to whoever reads.
            let _ = socket2::SockRef::from(&socket).set_tcp_congestion(b"cubic");
            socket.bind((Ipv4Addr::LOCALHOST, 0).into())?;
            let listener = socket.listen(BACKLOG)?;
            Ok((listener.local_addr()?, listener))
        };
        let (address, listener) = listen().map_err(io_error("origin"))?;
        let task = tokio::spawn(accept(listener));
        Ok(Self { address, task })
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Is the origin of a bench, until the bench is gone.
pub(super) async fn serve_process(file: &Path) -> Result<(), BenchError> {
    let origin = Origin::start()?;
    // Whole when it is there.
    let begun = file.with_extension("new");
    let written = std::fs::write(&begun, origin.address.to_string())
        .and_then(|()| std::fs::rename(&begun, file));
    written.map_err(io_error(file.display()))?;
    let gone = tokio::task::spawn_blocking(|| io::copy(&mut io::stdin().lock(), &mut io::sink()));
    tokio::select! {
        () = interrupted() => {}
        // The end of stdin, or an error of it, means that the bench is gone.
        _ = gone => {}
    }
    Ok(())
}

async fn accept(listener: TcpListener) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => drop(tokio::spawn(async move {
                // The client says what went wrong.
                let _ = serve(stream).await;
            })),
            Err(error) => {
                tracing::warn!(%error, "the origin cannot accept a connection");
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
        }
    }
}

async fn serve(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut read = Vec::with_capacity(MOST_HEAD);
    loop {
        let end = loop {
            if let Some(at) = read.windows(4).position(|four| four == b"\r\n\r\n") {
                break at + 4;
            }
            if read.len() > MOST_HEAD || stream.read_buf(&mut read).await? == 0 {
                return Ok(());
            }
        };
        let head = String::from_utf8_lossy(&read[..end]).into_owned();
        read.drain(..end);
        match Ask::parse(&head) {
            Some(Ask::Small) => small(&mut stream).await?,
            Some(Ask::Bulk(bytes)) => {
                let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {bytes}\r\n\r\n");
                stream.write_all(head.as_bytes()).await?;
                send(&mut stream, bytes).await?;
            }
            Some(Ask::Sink(bytes)) => {
                let early = read.len() as u64;
                read.clear();
                take(&mut stream, bytes.saturating_sub(early)).await?;
                small(&mut stream).await?;
            }
            // As long as the bench lives.
            Some(Ask::Stuck) => std::future::pending().await,
            None => return Ok(()),
        }
    }
}

async fn small(stream: &mut TcpStream) -> io::Result<()> {
    let mut answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {SMALL}\r\n\r\n").into_bytes();
    answer.resize(answer.len() + SMALL, b'y');
    stream.write_all(&answer).await
}

/// Sends so many bytes.
pub(super) async fn send(
    stream: &mut (impl tokio::io::AsyncWrite + Unpin),
    bytes: u64,
) -> io::Result<()> {
    let chunk = vec![b'y'; CHUNK];
    let mut left = bytes;
    while left > 0 {
        let now = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK);
        stream.write_all(&chunk[..now]).await?;
        left -= now as u64;
    }
    Ok(())
}

/// Takes so many bytes; an early end is an error.
pub(super) async fn take(
    stream: &mut (impl tokio::io::AsyncRead + Unpin),
    bytes: u64,
) -> io::Result<()> {
    let mut chunk = vec![0; CHUNK];
    let mut left = bytes;
    while left > 0 {
        let now = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK);
        match stream.read(&mut chunk[..now]).await? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            read => left -= read as u64,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_is_understood() {
        for ask in [Ask::Small, Ask::Bulk(7), Ask::Sink(1 << 40), Ask::Stuck] {
            assert_eq!(Ask::parse(&ask.head()), Some(ask));
        }
        for wrong in [
            "",
            "GET",
            "GET /",
            "GET /bulk HTTP/1.1",
            "GET /bulk/x HTTP/1.1",
        ] {
            assert_eq!(Ask::parse(wrong), None, "{wrong}");
        }
    }
}
