//! The API server's way to nodes and pods: CONNECT at the tunnel server's Unix socket, as kube-apiserver's EgressSelector asks.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
    time::timeout,
};
use yurt_transport::{BoxStream, Destination, Dialer, Dialing};

/// Longest head of an answer, as kube-apiserver has it.
const MOST_HEAD: usize = 1 << 20;
/// Of the text of a refusal, what is read, and within which time.
const MOST_TEXT: u64 = 4 << 10;
const TEXT: Duration = Duration::from_secs(1);
/// Tries of a socket whose backlog is full, which a Unix socket refuses at once.
const TRIES: u32 = 200;
const PAUSE: Duration = Duration::from_millis(5);

/// Dials through the frontend on a socket, and nowhere else.
#[derive(Clone, Debug)]
pub(crate) struct Egress {
    socket: PathBuf,
}

impl Egress {
    pub(crate) fn new(socket: PathBuf) -> Self {
        Self { socket }
    }

    /// Asks for `host:port`.
    pub(crate) async fn connect(&self, to: &str) -> io::Result<UnixStream> {
        let mut stream = connect_local(&self.socket).await?;
        let request = format!("CONNECT {to} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let (head, early) = head(&mut stream).await?;
        match (status(&head), early.is_empty()) {
            (Some(200), true) => Ok(stream),
            // Nothing was asked yet; kube-apiserver takes that for an error, too.
            (Some(200), false) => Err(io::Error::other("the tunnel answers more than its head")),
            _ => {
                let (mut text, mut rest) = (early, stream.take(MOST_TEXT));
                // What came is told.
                let _ = timeout(TEXT, rest.read_to_end(&mut text)).await;
                let line = head.lines().next().unwrap_or_default();
                let text = String::from_utf8_lossy(&text);
                Err(io::Error::other(format!("tunnel: {line}: {}", text.trim())))
            }
        }
    }
}

impl Dialer for Egress {
    fn dial<'a>(&'a self, to: &'a Destination) -> Dialing<'a> {
        Box::pin(async move {
            let stream = self.connect(&to.to_string()).await?;
            Ok(Box::new(stream) as BoxStream)
        })
    }
}

async fn connect_local(socket: &Path) -> io::Result<UnixStream> {
    for _ in 0..TRIES {
        match UnixStream::connect(socket).await {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                tokio::time::sleep(PAUSE).await;
            }
            connected => return connected,
        }
    }
    UnixStream::connect(socket).await
}

/// Reads the head of an answer, and what comes in the same piece.
pub(crate) async fn head(
    stream: &mut (impl tokio::io::AsyncRead + Unpin),
) -> io::Result<(String, Vec<u8>)> {
    let mut read = Vec::with_capacity(512);
    loop {
        if let Some(at) = read.windows(4).position(|four| four == b"\r\n\r\n") {
            let early = read.split_off(at + 4);
            return Ok((String::from_utf8_lossy(&read).into_owned(), early));
        }
        if read.len() > MOST_HEAD {
            return Err(io::ErrorKind::InvalidData.into());
        }
        if stream.read_buf(&mut read).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

/// The status in a head.
pub(crate) fn status(head: &str) -> Option<u16> {
    let rest = head.strip_prefix("HTTP/1.1 ")?;
    rest.split(' ').next()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn answered(answer: &'static [u8]) -> io::Result<UnixStream> {
        let dir = tempfile::tempdir().expect("a directory");
        let socket = dir.path().join("s");
        let listener = tokio::net::UnixListener::bind(&socket).expect("a socket");
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.expect("a caller");
            let (asked, early) = head(&mut stream).await.expect("a request");
            assert!(asked.starts_with("CONNECT 10.0.0.1:10250 HTTP/1.1\r\n"));
            assert!(early.is_empty());
            stream.write_all(answer).await.expect("written");
        });
        let connected = Egress::new(socket).connect("10.0.0.1:10250").await;
        server.await.expect("no panic");
        connected
    }

    #[tokio::test]
    async fn a_connection_is_had_or_the_reason_told() {
        answered(b"HTTP/1.1 200 Connection Established\r\n\r\n")
            .await
            .expect("connected");
        for (answer, why) in [
            (
                &b"HTTP/1.1 503 Service Unavailable\r\n\r\nNo agent available: a-1\n"[..],
                "503 Service Unavailable: No agent available: a-1",
            ),
            (b"HTTP/1.1 200 OK\r\n\r\nHello", "more than its head"),
            (b"HTTP/1.1", "end"),
        ] {
            let error = answered(answer).await.expect_err("refused").to_string();
            assert!(error.contains(why) || why == "end", "{error}");
        }
    }
}
