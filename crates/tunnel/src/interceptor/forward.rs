//! One request: admitted, directed, passed on; and its answer on the way back.

use super::{
    Config,
    callers::{Callers, Standing},
    kubelets::{Kubelets, Manner},
    metrics::{InFlight, Metrics},
    target::{Asked, PROXY_DEST, PROXY_HOST, Target, target},
};
use crate::{directory::Directory, link::Tunnels, steering::settings::Settings};
use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, header,
    request::Parts,
};
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::{body::Incoming, upgrade::OnUpgrade};
use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio_util::task::TaskTracker;
use yurt_transport::{
    Body, BoxError, Client, ClientError, Peer, ResponseBody, empty, full, is_upgrade,
    join_upgraded, strip_hop_by_hop,
};

/// How long a response head may take. Checkpoints and profiles take minutes.
const ANSWER: Duration = Duration::from_secs(600);
/// A kubelet that follows a log answers with its first line, which may be long in coming: as long as it keeps an idle stream.
const LOGS: Duration = Duration::from_secs(4 * 3600);

/// How this proxy calls itself in `Via` (RFC 9110 section 7.6.3).
const PSEUDONYM: &str = "yurt-tunnel";

/// What every request needs.
#[derive(Debug)]
pub(super) struct Interceptor {
    directory: Arc<dyn Directory>,
    settings: watch::Receiver<Arc<Settings>>,
    pub(super) kubelets: Kubelets,
    callers: Callers,
    pub(super) metrics: Metrics,
    places: Arc<Semaphore>,
    /// Upgraded connections.
    pub(super) tasks: TaskTracker,
}

/// What a request holds until its answer has been read.
#[derive(Debug)]
struct Held {
    _in_flight: InFlight,
    _place: OwnedSemaphorePermit,
}

/// A refusal, with its text for the caller.
type Refusal = (StatusCode, String);

fn refusal((status, mut text): Refusal) -> Response<Body> {
    text.push('\n');
    let mut response = Response::new(full(text));
    *response.status_mut() = status;
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, plain);
    response
}

/// What callers are told when a request could not be passed on, or was not answered.
fn failed(error: &ClientError) -> Refusal {
    match error {
        ClientError::Connect { .. } | ClientError::Tls { .. } => (
            StatusCode::SERVICE_UNAVAILABLE,
            format!("could not setup the tunnel: {error}"),
        ),
        ClientError::Broken { .. } => (StatusCode::BAD_GATEWAY, error.to_string()),
        ClientError::Timeout { .. } => (StatusCode::GATEWAY_TIMEOUT, error.to_string()),
    }
}

fn wants_trailers(headers: &HeaderMap) -> bool {
    let te = headers.get_all(header::TE).iter();
    te.filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|coding| coding.trim().eq_ignore_ascii_case("trailers"))
}

fn is_grpc(headers: &HeaderMap) -> bool {
    headers
        .get(header::CONTENT_TYPE)
        .is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"))
}

/// Whether a request has been here before: what the server dials directly may be brought back to it by the host's own rules.
fn goes_round(headers: &HeaderMap) -> bool {
    let via = headers.get_all(header::VIA).iter();
    via.filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|hop| hop.split_whitespace().nth(1) == Some(PSEUDONYM))
}

/// The headers that go on to a target.
fn passed_headers(mut headers: HeaderMap, target: &Target, upgrade: bool) -> HeaderMap {
    let trailers = wants_trailers(&headers);
    strip_hop_by_hop(&mut headers, upgrade);
    if trailers {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
    if let Ok(via) = HeaderValue::from_str(&format!("1.1 {PSEUDONYM}")) {
        headers.append(header::VIA, via);
    }
    headers.remove(PROXY_DEST);
    let hint = target.proxy_host.as_deref();
    match hint.map(HeaderValue::from_str) {
        Some(Ok(hint)) => {
            headers.insert(PROXY_HOST, hint);
        }
        _ => {
            headers.remove(PROXY_HOST);
        }
    }
    headers
}

/// The headers of an answer, on their way to the caller; trailers that were announced stay announced.
fn answered_headers(headers: &mut HeaderMap, upgrade: bool) {
    const TRAILER: HeaderName = header::TRAILER;
    let announced: Vec<HeaderValue> = headers.get_all(TRAILER).iter().cloned().collect();
    strip_hop_by_hop(headers, upgrade);
    for names in announced {
        headers.append(TRAILER, names);
    }
}

impl Interceptor {
    pub(super) fn new(
        config: &Config,
        tunnels: Arc<dyn Tunnels>,
        directory: Arc<dyn Directory>,
    ) -> Self {
        Self {
            directory,
            settings: config.settings.clone(),
            kubelets: Kubelets::new(tunnels, config.kubelets.clone()),
            callers: config.callers.clone(),
            metrics: config.metrics.clone(),
            places: Arc::new(Semaphore::new(
                config.max_requests.min(Semaphore::MAX_PERMITS),
            )),
            tasks: TaskTracker::new(),
        }
    }

    /// Answers a request.
    pub(super) async fn handle(self: Arc<Self>, request: Request<Incoming>) -> Response<Body> {
        let in_flight = self.metrics.asked(request.method(), request.uri().path());
        let answered = self.answer(request, in_flight).await;
        let response = answered.unwrap_or_else(refusal);
        self.metrics.answered(response.status());
        response
    }

    async fn answer(
        &self,
        request: Request<Incoming>,
        in_flight: InFlight,
    ) -> Result<Response<Body>, Refusal> {
        let (parts, body) = request.into_parts();
        let place = self.places.clone().try_acquire_owned().map_err(|_| {
            let text = "too many requests are under way".to_owned();
            (StatusCode::SERVICE_UNAVAILABLE, text)
        })?;
        let held = Held {
            _in_flight: in_flight,
            _place: place,
        };
        let (target, manner) = self.direct(&parts)?;
        let client = self.kubelets.client(&target, manner);
        if is_upgrade(&parts.headers) {
            self.upgrade(parts, &target, &client, held).await
        } else {
            self.pass(parts, body, &target, &client, held).await
        }
    }

    /// Who asks, where it goes, and how.
    fn direct(&self, parts: &Parts) -> Result<(Target, Manner), Refusal> {
        if parts.method == Method::CONNECT {
            let text = "this port passes requests on; it opens no tunnels".to_owned();
            return Err((StatusCode::METHOD_NOT_ALLOWED, text));
        }
        if goes_round(&parts.headers) {
            let text = "this request has been here before: no agent reaches its target, and it was led back by rules of this host".to_owned();
            return Err((StatusCode::LOOP_DETECTED, text));
        }
        // A listener of `serve` always says.
        let Some(peer) = parts.extensions.get::<Peer>() else {
            return Err((StatusCode::UNAUTHORIZED, "who asks?".to_owned()));
        };
        let standing = match peer.tls {
            true => match self.callers.admit(peer, &parts.headers) {
                Ok(standing) => Some(standing),
                Err(refused) => {
                    tracing::info!(from = %peer.addr, why = %refused.why, "refused");
                    return Err((refused.status, refused.why));
                }
            },
            false => None,
        };
        let asked = Asked::of(&parts.uri, &parts.headers, peer.tls);
        let settings = self.settings.borrow().clone();
        let target = asked
            .and_then(|asked| target(&asked, &*self.directory, &settings.localhost))
            .map_err(|unclear| (StatusCode::BAD_REQUEST, unclear.to_string()))?;
        if standing == Some(Standing::Bearer) && !target.is_kubelet {
            let text = format!(
                "with a bearer token only kubelets can be reached, and {} is none: a client certificate is needed",
                target.to
            );
            return Err((StatusCode::FORBIDDEN, text));
        }
        let manner = match standing {
            Some(standing) => Manner::Tls(standing),
            None if is_grpc(&parts.headers) => Manner::PlainHttp2,
            None => Manner::Plain,
        };
        Ok((target, manner))
    }

    /// A request that ends with its answer.
    async fn pass(
        &self,
        parts: Parts,
        body: Incoming,
        target: &Target,
        client: &Client,
        held: Held,
    ) -> Result<Response<Body>, Refusal> {
        let patience = match parts.uri.path().starts_with("/containerLogs/") {
            true => LOGS,
            false => ANSWER,
        };
        let body = match body.is_end_stream() {
            true => empty(),
            false => body.map_err(Into::into).boxed_unsync(),
        };
        let mut request = Request::new(body);
        *request.method_mut() = parts.method;
        *request.uri_mut() = parts.uri;
        *request.headers_mut() = passed_headers(parts.headers, target, false);
        let response = client.send(request, patience).await;
        let mut response = response.map_err(|error| failed(&error))?;
        answered_headers(response.headers_mut(), false);
        Ok(passed_back(response, held))
    }

    /// A request that asks for another protocol (SPDY, WebSocket).
    async fn upgrade(
        &self,
        mut parts: Parts,
        target: &Target,
        client: &Client,
        held: Held,
    ) -> Result<Response<Body>, Refusal> {
        let Some(caller) = parts.extensions.remove::<OnUpgrade>() else {
            let text = "this connection cannot be upgraded".to_owned();
            return Err((StatusCode::BAD_REQUEST, text));
        };
        let mut request = Request::new(empty());
        *request.method_mut() = parts.method;
        *request.uri_mut() = parts.uri;
        *request.headers_mut() = passed_headers(parts.headers, target, true);
        let response = client.send_upgrade(request, ANSWER).await;
        let mut response = response.map_err(|error| failed(&error))?;
        let switched = match response.status() {
            StatusCode::SWITCHING_PROTOCOLS => response.extensions_mut().remove::<OnUpgrade>(),
            _ => None,
        };
        answered_headers(response.headers_mut(), switched.is_some());
        let Some(switched) = switched else {
            return Ok(passed_back(response, held));
        };
        let (head, body) = response.into_parts();
        self.tasks.spawn(async move {
            join_upgraded(caller, switched).await;
            drop((body, held));
        });
        let mut answer = Response::new(empty());
        *answer.status_mut() = head.status;
        *answer.headers_mut() = head.headers;
        Ok(answer)
    }
}

fn passed_back(response: Response<ResponseBody>, held: Held) -> Response<Body> {
    let (head, body) = response.into_parts();
    let mut answer = Response::new(Passing { body, _held: held }.boxed_unsync());
    *answer.status_mut() = head.status;
    *answer.headers_mut() = head.headers;
    answer
}

/// A body on its way to the caller: read only as fast as the caller reads; dropped with the caller's stream, which ends the far one.
struct Passing {
    body: ResponseBody,
    _held: Held,
}

impl http_body::Body for Passing {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        Poll::Ready(frame.map(|frame| frame.map_err(Into::into)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
