//! The HTTPS server of the webhooks.

use super::Options;
use arc_swap::ArcSwap;
use http::{Method, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use serde_json::Value;
use std::{io, sync::Arc, time::Duration};
use tokio::{net::TcpListener, sync::Semaphore, time::timeout};
use tokio_util::sync::CancellationToken;
use yurt_api::conversion;
use yurt_transport::{Body, CollectError, ServeOptions, collect, full};

/// The longest list of objects that is converted at once, in bytes of JSON.
const MAX_CONVERSION: usize = 64 << 20;
/// Conversions at once: they are what may be large.
const CONVERSIONS: usize = 4;
/// API servers wait no longer for an answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// Why there is no answer but a code.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("there is no webhook at {0}")]
    NoSuchPath(String),
    #[error("reviews are posted")]
    NotPosted,
    #[error("a review was awaited: {0}")]
    NotAReview(String),
    #[error(transparent)]
    Body(#[from] CollectError),
    #[error("too much to do at once; try again")]
    Busy,
}

impl Refusal {
    fn code(&self) -> StatusCode {
        match self {
            Self::NoSuchPath(_) => StatusCode::NOT_FOUND,
            Self::NotPosted => StatusCode::METHOD_NOT_ALLOWED,
            Self::NotAReview(_) | Self::Body(CollectError::Broken(_)) => StatusCode::BAD_REQUEST,
            Self::Body(CollectError::TooLarge(_)) => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Busy => StatusCode::SERVICE_UNAVAILABLE,
        }
    }
}

/// Answers reviews.
#[derive(Clone)]
pub(super) struct Server {
    conversions: Arc<Semaphore>,
}

impl Server {
    pub(super) fn new(_options: &Options) -> Self {
        Self {
            conversions: Arc::new(Semaphore::new(CONVERSIONS)),
        }
    }

    /// Serves until `shutdown`, then answers what was asked.
    pub(super) async fn serve(
        self,
        listener: TcpListener,
        tls: Arc<ArcSwap<rustls::ServerConfig>>,
        shutdown: CancellationToken,
    ) -> io::Result<()> {
        let options = ServeOptions {
            max_connections: 1024,
            stalled_client: Some(PATIENCE),
            ..ServeOptions::default()
        };
        let handler = move |request| {
            let server = self.clone();
            async move { server.answer(request).await }
        };
        yurt_transport::serve(listener, Some(tls), options, shutdown, handler).await
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        let path = request.uri().path().to_owned();
        let answer = timeout(PATIENCE, self.review(&path, request))
            .await
            .unwrap_or(Err(Refusal::Busy));
        let (code, kind, text) = match answer {
            Ok(review) => (StatusCode::OK, "application/json", review.to_string()),
            Err(refusal) => (refusal.code(), "text/plain", refusal.to_string()),
        };
        let mut response = Response::new(full(text));
        *response.status_mut() = code;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
        response
    }

    async fn review(&self, path: &str, request: Request<Incoming>) -> Result<Value, Refusal> {
        if path != conversion::PATH {
            return Err(Refusal::NoSuchPath(path.to_owned()));
        }
        if request.method() != Method::POST {
            return Err(Refusal::NotPosted);
        }
        let _permit = self
            .conversions
            .acquire()
            .await
            .map_err(|_| Refusal::Busy)?;
        let body = collect(request.into_body(), MAX_CONVERSION).await?;
        let review = serde_json::from_slice(&body)
            .map_err(|error| Refusal::NotAReview(error.to_string()))?;
        drop(body);
        conversion::convert(review).map_err(|error| Refusal::NotAReview(error.to_string()))
    }
}
