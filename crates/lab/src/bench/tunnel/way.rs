//! How the bench's client comes to the origin: directly, or by CONNECT at a frontend's Unix socket.

use super::origin::{Ask, SMALL, send, take};
use crate::{
    bench::{BenchError, load::call},
    egress::{self, Egress},
};
use std::{fmt, io, net::SocketAddr, time::Duration};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};
use yurt_transport::BoxStream;

/// Longest wait for one connection or small answer.
const PATIENCE: Duration = Duration::from_secs(20);

/// A way to the origin.
#[derive(Clone, Debug)]
pub(super) enum Way {
    /// By TCP.
    Direct(SocketAddr),
    /// Through the frontend on this socket.
    Connect(Egress, SocketAddr),
}

impl fmt::Display for Way {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Direct(origin) => write!(formatter, "{origin}"),
            Self::Connect(_, origin) => write!(formatter, "{origin} by the tunnel"),
        }
    }
}

/// A connection to the origin.
pub(super) struct Connection(BoxStream);

impl fmt::Debug for Connection {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("Connection").finish()
    }
}

impl Way {
    /// Connects to the origin.
    pub(super) async fn connect(&self) -> io::Result<Connection> {
        timeout(PATIENCE, self.dial()).await?
    }

    async fn dial(&self) -> io::Result<Connection> {
        match self {
            Self::Direct(origin) => {
                let stream = TcpStream::connect(origin).await?;
                stream.set_nodelay(true)?;
                Ok(Connection(Box::new(stream)))
            }
            Self::Connect(egress, origin) => {
                let stream = egress.connect(&origin.to_string()).await?;
                Ok(Connection(Box::new(stream)))
            }
        }
    }

    /// As [`Way::connect`], where the bench cannot go on without.
    pub(super) async fn must_connect(&self) -> Result<Connection, BenchError> {
        let connected = self.connect().await;
        connected.map_err(|error| call(&self.to_string(), error))
    }
}

impl Connection {
    /// Reads the head of an answer; returns how much came behind it.
    async fn head(&mut self) -> io::Result<u64> {
        let (head, early) = egress::head(&mut self.0).await?;
        match egress::status(&head) {
            Some(200) => Ok(early.len() as u64),
            _ => Err(io::Error::other(head)),
        }
    }

    /// One small request and its answer.
    pub(super) async fn small(&mut self) -> io::Result<()> {
        timeout(PATIENCE, async {
            self.0.write_all(Ask::Small.head().as_bytes()).await?;
            self.small_answer().await
        })
        .await?
    }

    async fn small_answer(&mut self) -> io::Result<()> {
        // The head has the same length whenever the body has: it comes with the body in one piece.
        let expected = "HTTP/1.1 200 OK\r\nContent-Length: 256\r\n\r\n".len() + SMALL;
        let mut answer = [0; 512];
        let mut read = 0;
        while read < expected {
            match self.0.read(&mut answer[read..]).await? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                more => read += more,
            }
        }
        if read == expected && answer.starts_with(b"HTTP/1.1 200 ") {
            return Ok(());
        }
        Err(io::ErrorKind::InvalidData.into())
    }

    /// Fetches so many bytes.
    pub(super) async fn download(mut self, bytes: u64) -> io::Result<()> {
        self.begin(Ask::Bulk(bytes)).await?;
        let early = self.head().await?;
        take(&mut self.0, bytes.saturating_sub(early)).await
    }

    /// Sends so many bytes and waits until they have arrived.
    pub(super) async fn upload(mut self, bytes: u64) -> io::Result<()> {
        self.begin(Ask::Sink(bytes)).await?;
        send(&mut self.0, bytes).await?;
        self.small_answer().await
    }

    /// Sends a request head and reads nothing.
    pub(super) async fn begin(&mut self, ask: Ask) -> io::Result<()> {
        self.0.write_all(ask.head().as_bytes()).await
    }

    /// Writes until somebody takes no more, for ever.
    pub(super) async fn flood(&mut self) -> io::Result<()> {
        send(&mut self.0, u64::MAX).await
    }
}

#[cfg(test)]
mod tests {
    use super::{super::origin::Origin, *};

    #[tokio::test]
    async fn the_origin_answers_as_asked() {
        let origin = Origin::start().expect("an origin");
        let way = Way::Direct(origin.address);
        let mut kept = way.connect().await.expect("connected");
        for _ in 0..3 {
            kept.small().await.expect("a small answer");
        }
        kept.download(3_000_001).await.expect("much");
        let upload = way.connect().await.expect("connected").upload(3_000_001);
        upload.await.expect("taken");
        let mut stuck = way.connect().await.expect("connected");
        stuck.begin(Ask::Stuck).await.expect("sent");
        let flood = timeout(Duration::from_millis(300), stuck.flood()).await;
        flood.expect_err("nobody takes it");
    }
}
