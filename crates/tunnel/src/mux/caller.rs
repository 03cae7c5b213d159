//! The end that asks for connections: the server towards its agents, an agent towards the cloud.

use super::{refusal, stream::MuxStream, stream::broken};
use crate::{
    link::DialError,
    session::{Live, Options, answer_about},
};
use bytes::Bytes;
use h2::{Reason, client::SendRequest};
use http::{HeaderValue, Method, Request, StatusCode, Uri};
use std::sync::Arc;
use tokio_util::sync::CancellationToken;
use yurt_transport::{BoxStream, Destination};

/// Opens CONNECT streams on a connection that somebody else drives.
#[derive(Debug)]
pub(super) struct Caller {
    pub(super) requests: SendRequest<Bytes>,
    pub(super) options: Options,
    pub(super) live: Arc<Live>,
    /// Cancelled when the connection has ended.
    pub(super) closed: CancellationToken,
}

impl Caller {
    pub(super) async fn open(&self, to: &Destination) -> Result<BoxStream, DialError> {
        let limit = self.options.await_dial();
        answer_about(to, self.ask(to), limit, &self.closed).await
    }

    async fn ask(&self, to: &Destination) -> Result<BoxStream, DialError> {
        // What the far end announced, without the control stream: beyond it the request would only wait here.
        let announced = self.requests.current_max_send_streams().saturating_sub(1);
        let most = self.options.max_connections.min(announced);
        let Some(held) = self.live.enter(most) else {
            return Err(DialError::full(most));
        };
        let uri = Uri::builder().authority(to.to_string()).build();
        let mut request = Request::new(());
        *request.method_mut() = Method::CONNECT;
        *request.uri_mut() = uri.map_err(|_| DialError::Invalid(format!("{to} is no address")))?;
        if let Some(node) = &to.node {
            let node = HeaderValue::from_str(node);
            let node = node.map_err(|_| DialError::Invalid("the node's name is none".into()))?;
            request.headers_mut().insert(super::NODE, node);
        }
        let mut requests = self.requests.clone().ready().await.map_err(failed)?;
        let (response, send) = requests.send_request(request, false).map_err(failed)?;
        let response = response.await.map_err(failed)?;
        let (head, recv) = response.into_parts();
        if head.status != StatusCode::OK {
            return Err(refusal::read(head.status, &head.headers, recv).await);
        }
        Ok(Box::new(MuxStream::new(send, recv, held)))
    }
}

/// A stream that ended before there was an answer.
fn failed(error: h2::Error) -> DialError {
    if error.reason() == Some(Reason::REFUSED_STREAM) {
        return DialError::Busy("the far end takes no more connections".into());
    }
    DialError::Lost(broken(error).to_string())
}
