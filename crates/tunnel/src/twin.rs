//! Twins in memory of what the tunnel talks to, for the tests of all its parts.

use crate::{
    hello::{AgentHello, ServerHello},
    link::{Link, Opening, Tunnels},
    mux::{self, MuxLink, Options},
    session::Session,
};
use std::{fmt, io, sync::Arc};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio_util::sync::CancellationToken;
use yurt_transport::{BoxStream, Destination, Dialer, Dialing};

/// Dials what a closure makes of a destination.
pub(crate) struct Answers<F>(pub(crate) F);

impl<F> fmt::Debug for Answers<F> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Answers")
    }
}

impl<F, R> Dialer for Answers<F>
where
    F: Fn(Destination) -> R + Send + Sync,
    R: Future<Output = io::Result<BoxStream>> + Send + 'static,
{
    fn dial<'a>(&'a self, to: &'a Destination) -> Dialing<'a> {
        Box::pin(self.0(to.clone()))
    }
}

impl<F, R> Tunnels for Answers<F>
where
    F: Fn(Destination) -> R + Send + Sync,
    R: Future<Output = io::Result<BoxStream>> + Send + 'static,
{
    fn open<'a>(&'a self, to: &'a Destination) -> Opening<'a> {
        Box::pin(async move { Ok(self.0(to.clone()).await?) })
    }
}

/// Answers every dial with the same program on a pipe.
pub(crate) fn served<F, R>(
    program: F,
) -> Arc<
    Answers<
        impl Fn(Destination) -> std::future::Ready<io::Result<BoxStream>> + Send + Sync + 'static,
    >,
>
where
    F: Fn(DuplexStream) -> R + Send + Sync + 'static,
    R: Future<Output = ()> + Send + 'static,
{
    Arc::new(Answers(move |_| {
        let (ours, theirs) = duplex(64 << 10);
        tokio::spawn(program(theirs));
        std::future::ready(Ok(Box::new(ours) as BoxStream))
    }))
}

/// Sends back what it reads, and closes when that ends.
pub(crate) async fn echo(mut stream: DuplexStream) {
    let mut buffer = vec![0; 16 << 10];
    while let Ok(count @ 1..) = stream.read(&mut buffer).await {
        if stream.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
    let _ = stream.shutdown().await;
}

/// Reads to the end, then answers with how many bytes there were.
pub(crate) async fn count(mut stream: DuplexStream) {
    let mut buffer = vec![0; 16 << 10];
    let mut total = 0;
    loop {
        match stream.read(&mut buffer).await {
            Ok(0) => break,
            Ok(count) => total += count,
            Err(_) => return,
        }
    }
    let _ = stream.write_all(total.to_string().as_bytes()).await;
    let _ = stream.shutdown().await;
}

/// A destination, from its text.
pub(crate) fn to(text: &str) -> Destination {
    text.parse().expect("a destination")
}

pub(crate) fn server_hello(id: &str) -> ServerHello {
    ServerHello {
        id: id.into(),
        count: 1,
        quic: None,
    }
}

pub(crate) fn agent_hello(id: &str) -> AgentHello {
    AgentHello {
        id: id.into(),
        identifiers: format!("host={id}").parse().expect("never fails"),
        version: "twin".into(),
    }
}

/// Both ends of a `mux` connection: an agent `id` that dials by `dialer`.
pub(crate) async fn mux(
    id: &str,
    dialer: Arc<dyn Dialer>,
    options: Options,
) -> (Arc<MuxLink>, Session) {
    let (ours, theirs) = duplex(256 << 10);
    let agent = mux::answer(
        Box::new(theirs),
        agent_hello(id),
        dialer,
        options.clone(),
        CancellationToken::new(),
    );
    let server = mux::call(Box::new(ours), server_hello("server-1"), options);
    let (server, agent) = tokio::join!(server, agent);
    (server.expect("a link"), agent.expect("a session"))
}

/// An agent in memory, as the server's parts see one.
#[allow(dead_code)]
pub(crate) async fn link(id: &str, dialer: Arc<dyn Dialer>) -> (Arc<dyn Link>, Session) {
    let (link, session) = mux(id, dialer, Options::default()).await;
    (link, session)
}

/// Says everything, half-closes, and returns everything that is answered.
pub(crate) async fn exchange(mut stream: BoxStream, data: &[u8]) -> io::Result<Vec<u8>> {
    let mut answer = Vec::new();
    let (mut reading, mut writing) = tokio::io::split(&mut stream);
    let say = async {
        writing.write_all(data).await?;
        writing.shutdown().await
    };
    let (said, read) = tokio::join!(say, reading.read_to_end(&mut answer));
    said.and(read)?;
    Ok(answer)
}
