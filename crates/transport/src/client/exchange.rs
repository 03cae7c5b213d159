//! One request on a stream that was opened for it.

use super::{Hold, ResponseBody, connect::MAX_HEADER_BYTES, head::path_of};
use crate::{Body, BoxError, BoxStream};
use bytes::Bytes;
use http::{Request, Response, Uri, Version};
use http_body_util::BodyExt;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::time::timeout;

/// Why a request on a stream of its own got no response.
#[derive(Debug, thiserror::Error)]
pub enum ExchangeError {
    /// The peer is not who it should be, or does not accept who we are.
    #[error("{0}")]
    Tls(io::Error),
    /// The peer does not speak HTTP, or broke off.
    #[error("{0}")]
    Broken(BoxError),
    /// The peer said nothing in time.
    #[error("no answer within {0:?}")]
    Silent(Duration),
}

impl ExchangeError {
    /// The TLS error behind it, if there is one.
    pub fn tls(&self) -> Option<&rustls::Error> {
        match self {
            Self::Tls(error) => error.get_ref()?.downcast_ref(),
            _ => None,
        }
    }
}

/// Sends a request by HTTP/1.1 over `stream`, which ends with the response's body. `tls`: the configuration and the name (or address)
/// that the peer must prove. The URI is sent in origin form; the caller sets `Host`. Waits for the TLS handshake and for the
/// response's head at most `patience` each, for the head anew with every piece of the request's body that the peer takes. A
/// response that switches protocols keeps its `OnUpgrade`.
pub async fn exchange(
    stream: BoxStream,
    tls: Option<(Arc<rustls::ClientConfig>, &str)>,
    request: Request<Body>,
    patience: Duration,
) -> Result<Response<ResponseBody>, ExchangeError> {
    let stream = match tls {
        None => stream,
        Some((config, host)) => {
            let name = ServerName::try_from(host.to_owned())
                .map_err(|error| ExchangeError::Tls(io::Error::other(error)))?;
            let handshake = tokio_rustls::TlsConnector::from(config).connect(name, stream);
            match timeout(patience, handshake).await {
                Err(_) => return Err(ExchangeError::Silent(patience)),
                Ok(Err(error)) if error.get_ref().is_some_and(|e| e.is::<rustls::Error>()) => {
                    return Err(ExchangeError::Tls(error));
                }
                Ok(Err(error)) => return Err(ExchangeError::Broken(error.into())),
                Ok(Ok(stream)) => Box::new(stream) as BoxStream,
            }
        }
    };
    let (mut sender, connection) = http1::Builder::new()
        .max_buf_size(MAX_HEADER_BYTES)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|error| ExchangeError::Broken(error.into()))?;
    tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "a connection for one request ended");
        }
    });
    let taken = Arc::new(AtomicU64::new(0));
    let (mut head, body) = request.into_parts();
    head.version = Version::HTTP_11;
    head.uri = Uri::from(path_of(&head.uri));
    let counter = Arc::clone(&taken);
    let body = match http_body::Body::is_end_stream(&body) {
        true => body,
        false => counted(body, counter),
    };
    let sending = sender.send_request(Request::from_parts(head, body));
    tokio::pin!(sending);
    let mut seen = 0;
    let response = loop {
        match timeout(patience, &mut sending).await {
            Ok(answered) => {
                break answered.map_err(|error| ExchangeError::Broken(super::with_cause(error)))?;
            }
            Err(_) => {
                let now = taken.load(Ordering::Relaxed);
                if now == seen {
                    return Err(ExchangeError::Silent(patience));
                }
                seen = now;
            }
        }
    };
    Ok(response.map(|body| ResponseBody::new(body, Hold::Connection(sender))))
}

/// Counts the pieces that are taken of a body (its length stays known by the header that announces it).
fn counted(body: Body, counter: Arc<AtomicU64>) -> Body {
    body.map_frame(move |frame: http_body::Frame<Bytes>| {
        counter.fetch_add(1, Ordering::Relaxed);
        frame
    })
    .boxed_unsync()
}
