//! Frontends: who wants a connection through the tunnel. kube-apiserver by its egress selector (CONNECT or gRPC), the interceptor,
//! `yurt tunnel forward`. One socket serves both kinds; the first bytes tell which it is.

pub mod client;
mod head;
mod unread;

pub use unread::Unread;

use crate::{Tunnels, pump::pump, wrapping::writes_go_to};
use futures_util::future::BoxFuture;
use head::{Bad, Head};
use http::StatusCode;
use prometheus_client::metrics::gauge::Gauge;
use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt, ReadBuf},
    time::{Instant, sleep, timeout},
};
use yurt_transport::{BoxStream, Destination};

/// What HTTP/2 begins with (RFC 9113 section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// How long a request head may take.
const HEAD: Duration = Duration::from_secs(10);
/// What a caller may say before it has an answer (a TLS ClientHello, mostly).
const EARLY: usize = 64 << 10;
/// kube-apiserver takes any byte that it reads together with the 200 for an error. Where nothing keeps two writes apart on their way, the
/// first words of a target that speaks first wait until the caller has read its answer: so long at most,
const READ: Duration = Duration::from_secs(10);
/// looked at so often,
const LOOK: Duration = Duration::from_millis(1);
/// and so long where the kernel does not tell.
const APART: Duration = Duration::from_millis(20);
/// The longest first words.
const FIRST: usize = 16 << 10;
/// How long a refused caller may take to read why.
const FAREWELL: Duration = Duration::from_secs(1);
/// What of its own words is still read meanwhile, so that the kernel does not reset the connection over them.
const FAREWELL_BYTES: u64 = 1 << 20;

/// What is said after a dial that worked.
const ESTABLISHED: &[u8] = b"HTTP/1.1 200 Connection Established\r\n\r\n";

/// A page for people and programs: status, type and text of a path with its query. `None`: there is no such page.
pub type Page = Box<dyn Fn(&str) -> BoxFuture<'static, Option<(StatusCode, String)>> + Send + Sync>;
/// Serves gRPC on a connection until it ends.
pub type Grpc = Box<dyn Fn(BoxStream) -> BoxFuture<'static, ()> + Send + Sync>;

/// What a frontend's connection is given.
pub struct Service {
    /// What opens connections for this caller; the error says why it may not have any.
    pub tunnels: Box<dyn FnOnce() -> Result<Arc<dyn Tunnels>, String> + Send>,
    /// Answers GET.
    pub page: Arc<Page>,
    /// Serves HTTP/2.
    pub grpc: Grpc,
    /// Callers by CONNECT.
    pub http: Gauge,
    /// What tells whether a write was read, where two may arrive as one (TLS records do not).
    pub unread: Option<Unread>,
}

/// Serves one connection of a frontend until it ends.
pub async fn serve(mut io: BoxStream, service: Service) {
    let mut early = Vec::new();
    let head = match timeout(HEAD, read_head(&mut io, &mut early)).await {
        Ok(Ok(Asked::Http2)) => return (service.grpc)(Box::new(Replayed::new(early, io))).await,
        Ok(Ok(Asked::Http1(head))) => head,
        Ok(Ok(Asked::Nothing)) => return,
        Ok(Err(Bad { status, why })) => return refuse(io, status, &why).await,
        Err(_) => {
            let why = format!("no request within {HEAD:?}");
            return refuse(io, StatusCode::REQUEST_TIMEOUT, &why).await;
        }
    };
    let tunnels = match (service.tunnels)() {
        Ok(tunnels) => tunnels,
        Err(why) => return refuse(io, StatusCode::FORBIDDEN, &why).await,
    };
    match head.method.as_str() {
        "CONNECT" => {}
        "GET" => {
            let page = (service.page)(&head.target).await;
            let (status, text) = page.unwrap_or((StatusCode::NOT_FOUND, "no such page\n".into()));
            let kind = match text.starts_with('{') {
                true => "application/json",
                false => "text/plain; charset=utf-8",
            };
            return say(io, &head::answer(status, kind, &text)).await;
        }
        _ => {
            let why = "only CONNECT is served here";
            return refuse(io, StatusCode::METHOD_NOT_ALLOWED, why).await;
        }
    }
    let _counted = Present::new(service.http.clone());
    early.drain(..head.length);
    let to = match head.destination() {
        Ok(to) => to,
        Err(Bad { status, why }) => return refuse(io, status, &why).await,
    };
    Box::pin(connect(io, early, &to, &*tunnels, service.unread)).await;
}

/// What came first.
enum Asked {
    Http1(Head),
    Http2,
    /// The caller went away without a word.
    Nothing,
}

/// Reads until it is known what is asked; `bytes` holds everything that was read.
async fn read_head(io: &mut BoxStream, bytes: &mut Vec<u8>) -> Result<Asked, Bad> {
    loop {
        let read = io.read_buf(bytes).await;
        if !matches!(read, Ok(1..)) {
            return Ok(Asked::Nothing);
        }
        if bytes.starts_with(PREFACE) {
            return Ok(Asked::Http2);
        }
        if PREFACE.starts_with(bytes) {
            continue;
        }
        if let Some(head) = Head::read(bytes)? {
            return Ok(Asked::Http1(head));
        }
    }
}

/// Dials, answers, and carries bytes.
async fn connect(
    mut io: BoxStream,
    mut early: Vec<u8>,
    to: &Destination,
    tunnels: &dyn Tunnels,
    unread: Option<Unread>,
) {
    let opened = {
        let mut opening = tunnels.open(to);
        loop {
            tokio::select! {
                biased;
                opened = &mut opening => break opened,
                read = io.read_buf(&mut early), if early.len() < EARLY => {
                    if !matches!(read, Ok(1..)) {
                        // Whoever asked is gone: dropping the dial ends it at the far end.
                        return;
                    }
                }
            }
        }
    };
    let mut stream = match opened {
        Ok(stream) => stream,
        Err(error) => {
            tracing::debug!(%to, %error, "a dial failed");
            return refuse(io, error.status(), &error.to_string()).await;
        }
    };
    let answered = async {
        io.write_all(ESTABLISHED).await?;
        io.flush().await?;
        if let Some(unread) = unread
            && early.is_empty()
        {
            let mut first = Vec::with_capacity(FIRST);
            tokio::select! {
                read = io.read_buf(&mut early) => { read?; }
                read = stream.read_buf(&mut first) => { read?; }
            }
            if !first.is_empty() {
                until_read(unread, &mut io, &mut early).await?;
                stream = Box::new(Replayed::new(first, stream));
            }
        }
        io::Result::Ok(stream)
    };
    let stream = match answered.await {
        Ok(stream) => stream,
        Err(error) => {
            return tracing::debug!(%to, %error, "a connection ended before it began");
        }
    };
    let (carried, ended) = pump(Box::new(Replayed::new(early, io)), stream).await;
    let error = ended.err().map(|error| error.to_string());
    tracing::debug!(%to, ?carried, error, "a connection ended");
}

/// Waits until the caller has read its answer, or says something itself, which it does after.
async fn until_read(unread: Unread, io: &mut BoxStream, said: &mut Vec<u8>) -> io::Result<()> {
    let begun = Instant::now();
    loop {
        match unread.is_read() {
            Ok(true) => return Ok(()),
            Ok(false) if begun.elapsed() > READ => {
                let why = "the caller does not read its answer";
                return Err(io::Error::new(io::ErrorKind::TimedOut, why));
            }
            Ok(false) => {}
            Err(_) => {
                sleep(APART).await;
                return Ok(());
            }
        }
        tokio::select! {
            read = io.read_buf(said) => return read.map(drop),
            () = sleep(LOOK) => {}
        }
    }
}

async fn refuse(io: BoxStream, status: StatusCode, why: &str) {
    say(
        io,
        &head::answer(status, "text/plain; charset=utf-8", &format!("{why}\n")),
    )
    .await;
}

/// Says something as the last thing, and waits a little for it to be read.
async fn say(mut io: BoxStream, text: &str) {
    let saying = async {
        io.write_all(text.as_bytes()).await?;
        io.shutdown().await?;
        let mut rest = (&mut io).take(FAREWELL_BYTES);
        tokio::io::copy(&mut rest, &mut tokio::io::sink()).await
    };
    let _ = timeout(FAREWELL, saying).await;
}

/// Counts something for as long as it is there.
pub(crate) struct Present(Gauge);

impl Present {
    pub(crate) fn new(gauge: Gauge) -> Self {
        gauge.inc();
        Self(gauge)
    }
}

impl Drop for Present {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// A stream of which some bytes were read already.
struct Replayed {
    early: Vec<u8>,
    at: usize,
    io: BoxStream,
}

impl Replayed {
    fn new(early: Vec<u8>, io: BoxStream) -> Self {
        Self { early, at: 0, io }
    }
}

impl AsyncRead for Replayed {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let left = self.early.get(self.at..).unwrap_or_default();
        if left.is_empty() {
            return Pin::new(&mut self.io).poll_read(context, buffer);
        }
        let count = left.len().min(buffer.remaining());
        buffer.put_slice(left.get(..count).unwrap_or_default());
        self.at += count;
        if self.at == self.early.len() {
            (self.early, self.at) = (Vec::new(), 0);
        }
        Poll::Ready(Ok(()))
    }
}

writes_go_to!(Replayed, io);

#[cfg(test)]
mod tests;
