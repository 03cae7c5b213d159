//! Sending a request to one server after the other, as far as that is safe.

use super::{Server, Upstreams};
use crate::{caller::Caller, config::LbMode, link::State};
use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri};
use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};
use yurt_transport::{Body, ClientError, ResponseBody};

/// A request on its way to the cloud.
#[derive(Debug)]
pub struct Outgoing {
    /// Method.
    pub method: Method,
    /// Path and query.
    pub uri: Uri,
    /// End-to-end headers.
    pub headers: HeaderMap,
    /// Body.
    pub body: OutgoingBody,
    /// How long to wait for the head of the answer, over all servers tried.
    pub wait: Duration,
    /// Whether the request changes nothing, so that it may be sent twice.
    pub safe: bool,
}

impl Outgoing {
    /// The request once more, with a body.
    fn attempt(&self, body: Body) -> Request<Body> {
        let mut attempt = Request::new(body);
        *attempt.method_mut() = self.method.clone();
        *attempt.uri_mut() = self.uri.clone();
        *attempt.headers_mut() = self.headers.clone();
        attempt
    }
}

/// A request body.
#[derive(Debug)]
pub enum OutgoingBody {
    /// Held, can be sent again.
    Held(Bytes),
    /// Streams from the client, can be sent once.
    Stream(Body),
}

impl OutgoingBody {
    fn take(&mut self) -> Option<Body> {
        match self {
            Self::Held(bytes) if bytes.is_empty() => Some(yurt_transport::empty()),
            Self::Held(bytes) => Some(yurt_transport::full(bytes.clone())),
            Self::Stream(_) => match std::mem::replace(self, Self::Held(Bytes::new())) {
                Self::Stream(body) => Some(body),
                Self::Held(_) => None,
            },
        }
    }
    fn repeatable(&self) -> bool {
        matches!(self, Self::Held(_))
    }
}

/// Why no server answered.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// No server is up: nothing was sent.
    #[error("no API server can be reached")]
    NoServer,
    /// The node has no certificate to go with.
    #[error("this node has no client certificate")]
    NoIdentity,
    /// The caller's token is the node's own, and the cloud gives none in exchange: nothing was sent.
    #[error("{0}")]
    Refused(String),
    /// The caller's token is the node's own, and could not be exchanged now: nothing was sent.
    #[error("the token of this node could not be exchanged for one of the cloud: {0}")]
    NotExchanged(String),
    /// The last server tried failed.
    #[error(transparent)]
    Failed(#[from] ClientError),
}

impl Server {
    /// What became of a request under way when the link went down.
    fn lost(&self) -> ClientError {
        ClientError::Broken {
            authority: self.authority.clone(),
            source: "the link went down".into(),
        }
    }
}

impl Upstreams {
    /// Servers to try, in order.
    pub(super) fn candidates(&self, state: impl Fn(&Server) -> State) -> Vec<Arc<Server>> {
        let states: Vec<State> = self.servers.iter().map(|server| state(server)).collect();
        let start = match self.mode {
            LbMode::Priority => 0,
            LbMode::RoundRobin => self.cursor.fetch_add(1, Ordering::Relaxed),
        };
        order(&states, start)
            .into_iter()
            .filter_map(|index| self.servers.get(index).cloned())
            .collect()
    }

    /// Sends a request to the servers that are up, one after the other while that is safe: what certainly was not sent
    /// always is, the rest when the request changes nothing.
    pub async fn send(
        &self,
        caller: &Caller,
        mut request: Outgoing,
    ) -> Result<(Response<ResponseBody>, Arc<Server>), SendError> {
        let exchanged = self.exchange(caller, &mut request.headers).await?;
        let servers = self.candidates(Server::state);
        let sent = self.send_as_is(servers, caller, request, false).await;
        if !caller.has_token()
            && let Ok((response, _)) = &sent
            && response.status() == StatusCode::UNAUTHORIZED
        {
            self.doubts.notify_one();
        }
        if let (Some(exchanged), Ok((response, _))) = (&exchanged, &sent)
            && response.status() == StatusCode::UNAUTHORIZED
        {
            self.exchanged_in_vain(exchanged);
        }
        sent
    }

    /// As [`Self::send`], under the node's identity and during a drill too: for what the cluster must not notice of it.
    pub async fn send_despite_drill(
        &self,
        request: Outgoing,
    ) -> Result<(Response<ResponseBody>, Arc<Server>), SendError> {
        let servers = self.candidates(Server::link_state);
        self.send_as_is(servers, &Caller::Node, request, true).await
    }

    pub(super) async fn send_as_is(
        &self,
        servers: Vec<Arc<Server>>,
        caller: &Caller,
        mut request: Outgoing,
        despite_drill: bool,
    ) -> Result<(Response<ResponseBody>, Arc<Server>), SendError> {
        let deadline = Instant::now() + request.wait;
        let mut failure = SendError::NoServer;
        for server in servers {
            let Some(client) = server.client(caller) else {
                return Err(SendError::NoIdentity);
            };
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            if !matches!(failure, SendError::NoServer) {
                self.metrics.retried();
            }
            let Some(body) = request.body.take() else {
                break;
            };
            let attempt = request.attempt(body);
            let sent = tokio::select! {
                sent = client.send(attempt, left) => sent,
                () = server.went_down(), if !despite_drill => Err(server.lost()),
            };
            match sent {
                Ok(response) => {
                    server.heard();
                    return Ok((response, server));
                }
                Err(error) => {
                    tracing::debug!(server = %server.authority, %error, "request failed");
                    server.suspect();
                    let again = (request.safe || error.not_sent()) && request.body.repeatable();
                    failure = SendError::Failed(error);
                    if !again {
                        break;
                    }
                }
            }
        }
        Err(failure)
    }

    /// Sends an upgrade request to the first server that can be connected to.
    pub async fn send_upgrade(
        &self,
        caller: &Caller,
        mut request: Outgoing,
    ) -> Result<(Response<ResponseBody>, Arc<Server>), SendError> {
        self.exchange(caller, &mut request.headers).await?;
        let mut failure = SendError::NoServer;
        for server in self.candidates(Server::state) {
            let Some(client) = server.client(caller) else {
                return Err(SendError::NoIdentity);
            };
            let attempt = request.attempt(yurt_transport::empty());
            let sent = tokio::select! {
                sent = client.send_upgrade(attempt, request.wait) => sent,
                () = server.went_down() => Err(server.lost()),
            };
            match sent {
                Ok(response) => {
                    server.heard();
                    return Ok((response, server));
                }
                Err(error) => {
                    server.suspect();
                    let again = error.not_sent();
                    failure = SendError::Failed(error);
                    if !again {
                        break;
                    }
                }
            }
        }
        Err(failure)
    }
}

/// Indexes of the servers to try: those that are up from `start` on around, then those about which nothing is known yet.
fn order(states: &[State], start: usize) -> Vec<usize> {
    let count = states.len();
    let around = || (0..count).map(move |i| (start % count.max(1) + i) % count);
    around()
        .filter(|i| states[*i] == State::Up)
        .chain(around().filter(|i| states[*i] == State::Starting))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use State::{Down, Starting, Up};

    #[test]
    fn who_is_tried_first() {
        assert_eq!(order(&[], 3), [] as [usize; 0]);
        assert_eq!(order(&[Up, Up, Up], 0), [0, 1, 2]);
        assert_eq!(order(&[Up, Up, Up], 4), [1, 2, 0]);
        assert_eq!(order(&[Down, Up, Starting], 0), [1, 2]);
        assert_eq!(order(&[Starting, Down, Up], 2), [2, 0]);
        assert_eq!(order(&[Down, Down], usize::MAX), [] as [usize; 0]);
    }
}
