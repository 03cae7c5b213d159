//! The HTTPS server of the webhooks.

use super::{
    admission,
    facts::Facts,
    hooks::{self, Hook},
    metrics::Counts,
    review::Request as Review,
};
use arc_swap::ArcSwap;
use http::{Method, Request, Response, StatusCode, header};
use hyper::body::{Body as _, Incoming};
use serde_json::Value;
use std::{
    io,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{net::TcpListener, sync::Semaphore, time::timeout};
use tokio_util::sync::CancellationToken;
use yurt_api::conversion;
use yurt_transport::{Body, CollectError, ServeOptions, collect, full};

/// The longest list of objects that is converted at once, in bytes of JSON.
const MAX_CONVERSION: usize = 32 << 20;
/// The longest admission review: the object as it was and as it is to be, of which API servers take 3 MiB at most.
const MAX_ADMISSION: usize = 8 << 20;
/// Bytes of reviews that are worked on at once, of each sort.
const MAX_AT_ONCE: usize = 32 << 20;
/// Of what room for reviews is counted.
const UNIT: usize = 1 << 10;
/// How long the body of a review may take to come.
const TRANSFER: Duration = Duration::from_secs(5);
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
    #[error("the review did not come in {TRANSFER:?}")]
    Late,
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
            Self::Late => StatusCode::REQUEST_TIMEOUT,
            Self::Busy => StatusCode::SERVICE_UNAVAILABLE,
        }
    }
}

/// Answers reviews.
#[derive(Clone, Debug)]
pub(super) struct Server {
    facts: Arc<Facts>,
    counts: Counts,
    admissions: Arc<Semaphore>,
    conversions: Arc<Semaphore>,
}

/// What is served at a path.
#[derive(Clone, Copy)]
enum Served {
    Admission(&'static Hook),
    Conversion,
}

impl Served {
    fn at(path: &str) -> Option<Self> {
        if path == conversion::PATH {
            return Some(Self::Conversion);
        }
        hooks::at(path).map(Self::Admission)
    }
}

impl Server {
    pub(super) fn new(facts: Facts, counts: Counts) -> Self {
        Self {
            facts: Arc::new(facts),
            counts,
            admissions: Arc::new(Semaphore::new(MAX_AT_ONCE / UNIT)),
            conversions: Arc::new(Semaphore::new(MAX_AT_ONCE / UNIT)),
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
        let Some(served) = Served::at(&path) else {
            return response(Err(Refusal::NoSuchPath(path)));
        };
        let began = Instant::now();
        self.counts.in_flight.inc();
        let answer = timeout(PATIENCE, self.review(served, request))
            .await
            .unwrap_or(Err(Refusal::Busy));
        self.counts.in_flight.dec();
        let code = match &answer {
            Ok((_, code)) => *code,
            Err(refusal) => {
                tracing::debug!(path, %refusal, "no review");
                refusal.code().as_u16()
            }
        };
        self.counts.answered(&path, code, began.elapsed());
        response(answer.map(|(review, _)| review))
    }

    /// The answer to a review, and the code that its user is told.
    async fn review(
        &self,
        served: Served,
        request: Request<Incoming>,
    ) -> Result<(Value, u16), Refusal> {
        if request.method() != Method::POST {
            return Err(Refusal::NotPosted);
        }
        let (turns, most) = match served {
            Served::Admission(_) => (&self.admissions, MAX_ADMISSION),
            Served::Conversion => (&self.conversions, MAX_CONVERSION),
        };
        let room = request.body().size_hint().upper();
        let room = room
            .and_then(|bytes| usize::try_from(bytes).ok())
            .unwrap_or(most);
        if room > most {
            return Err(CollectError::TooLarge(most).into());
        }
        let units = u32::try_from(room.div_ceil(UNIT)).unwrap_or(u32::MAX);
        let turn = turns.acquire_many(units).await;
        let _turn = turn.map_err(|_| Refusal::Busy)?;
        let body = timeout(TRANSFER, collect(request.into_body(), most));
        let body = body.await.map_err(|_| Refusal::Late)??;
        let review: Value = serde_json::from_slice(&body)
            .map_err(|error| Refusal::NotAReview(error.to_string()))?;
        drop(body);
        match served {
            Served::Conversion => {
                let answer = conversion::convert(review)
                    .map_err(|error| Refusal::NotAReview(error.to_string()))?;
                let code = answer["response"]["result"]["code"].as_u64();
                let code = code.and_then(|code| u16::try_from(code).ok());
                Ok((answer, code.unwrap_or(200)))
            }
            Served::Admission(hook) => {
                let review = Review::parse(review)
                    .map_err(|error| Refusal::NotAReview(error.to_string()))?;
                let outcome = admission::decide(hook, &review, &self.facts).await;
                let code = outcome
                    .as_ref()
                    .map_or_else(|denial| denial.code(), |_| 200);
                Ok((review.answered(&outcome), code))
            }
        }
    }
}

fn response(answer: Result<Value, Refusal>) -> Response<Body> {
    let (code, kind, text) = match answer {
        Ok(review) => (StatusCode::OK, "application/json", review.to_string()),
        Err(refusal) => (refusal.code(), "text/plain", refusal.to_string()),
    };
    let mut response = Response::new(full(text));
    *response.status_mut() = code;
    let kind = header::HeaderValue::from_static(kind);
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}
