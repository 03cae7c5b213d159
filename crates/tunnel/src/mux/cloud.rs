//! The same the other way: an agent asks its server for addresses in the cloud. The agent is an ordinary HTTP/2 client, every
//! connection a CONNECT; what may be reached is for the server's [`Tunnels`] to say.

use super::{
    Options,
    answerer::{self, Answerer},
    caller::Caller,
    drive,
};
use crate::{
    link::{Opening, Tunnels},
    session::{Heard, Live, SessionError},
};
use std::sync::Arc;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use yurt_transport::{BoxStream, Destination};

/// An agent's connection to the cloud. Dropping it does not cut what is open; cancelling [`Cloud::closed`] does.
#[derive(Debug)]
pub struct Cloud(Caller);

impl Cloud {
    /// Cancelled when the connection has ended; cancelling it ends it.
    pub fn closed(&self) -> &CancellationToken {
        &self.0.closed
    }

    /// Connections that are open.
    pub fn connections(&self) -> usize {
        self.0.live.count()
    }
}

impl Tunnels for Cloud {
    fn open<'a>(&'a self, to: &'a Destination) -> Opening<'a> {
        Box::pin(self.0.open(to))
    }
}

/// The agent's end.
pub async fn ask(io: BoxStream, options: Options) -> Result<Arc<Cloud>, SessionError> {
    let limit = options.hello;
    let (driven, requests) = timeout(limit, drive(io, &options))
        .await
        .unwrap_or(Err(SessionError::Silent(limit)))?;
    Ok(Arc::new(Cloud(Caller {
        requests,
        options,
        live: driven.live,
        closed: driven.closed,
    })))
}

/// The server's end: opens connections for the agent until one of them ends the connection. `shutdown` takes no more and waits for what
/// is open.
pub async fn serve(
    io: BoxStream,
    tunnels: Arc<dyn Tunnels>,
    options: Options,
    shutdown: CancellationToken,
) -> SessionError {
    let (heard, pulse) = Heard::new(io);
    let limit = options.hello;
    let connection = match timeout(limit, answerer::builder(&options).handshake(heard)).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => return error.into(),
        Err(_) => return SessionError::Silent(limit),
    };
    let answerer = Answerer {
        connection,
        pulse,
        tunnels,
        options,
        live: Arc::new(Live::default()),
    };
    answerer
        .run(Box::pin(std::future::pending()), shutdown, || {})
        .await
}
