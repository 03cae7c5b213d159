//! The admin endpoints: is it alive, is it ready, what does it see, what did it count. One line of [`ENDPOINTS`] and one arm of
//! `Admin::serve` for each; what they answer is in a file per noun beside.

mod autonomy;
mod debug;
mod filters;
mod health;
pub(crate) mod ota;
mod pool;
mod status;
mod token;

use crate::{processes::Stranger, proxy::Hub};
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use yurt_transport::{Body, Peer};

/// Largest body of a request.
const MOST_BODY: usize = 64 << 10;
/// Largest body with objects.
const MOST_OBJECTS: usize = 2 << 20;
/// How long a request's body may take to come.
const BODY_WAIT: Duration = Duration::from_secs(10);

/// What is served here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Endpoint {
    Healthz,
    Readyz,
    Status,
    Metrics,
    LogLevel,
    Token,
    Links,
    Cache,
    Settings,
    Filters,
    Doctor,
    Drill,
    Pool,
    Explain,
}

impl Endpoint {
    /// Tells or changes what is for the node's own processes only.
    fn is_private(self) -> bool {
        matches!(
            self,
            Self::LogLevel
                | Self::Links
                | Self::Cache
                | Self::Settings
                | Self::Filters
                | Self::Doctor
                | Self::Drill
                | Self::Pool
                | Self::Explain
        )
    }

    /// Largest body of a request.
    fn most_body(self) -> usize {
        match self {
            // Whole objects come here.
            Self::Explain => MOST_OBJECTS,
            _ => MOST_BODY,
        }
    }
}

/// Path, methods (GET stands for HEAD too), endpoint. What is not GET is for the node's own processes only.
const ENDPOINTS: [(&str, &[Method], Endpoint); 14] = [
    ("/v1/healthz", &[Method::GET], Endpoint::Healthz),
    ("/v1/readyz", &[Method::GET], Endpoint::Readyz),
    ("/v1/status", &[Method::GET], Endpoint::Status),
    ("/metrics", &[Method::GET], Endpoint::Metrics),
    ("/v1/token", &[Method::POST, Method::PUT], Endpoint::Token),
    (
        "/debug/loglevel",
        &[Method::GET, Method::PUT],
        Endpoint::LogLevel,
    ),
    ("/debug/link", &[Method::GET], Endpoint::Links),
    ("/debug/cache", &[Method::GET], Endpoint::Cache),
    ("/debug/settings", &[Method::GET], Endpoint::Settings),
    ("/debug/filters", &[Method::GET], Endpoint::Filters),
    ("/v1/doctor", &[Method::GET], Endpoint::Doctor),
    (
        "/v1/drill",
        &[Method::GET, Method::POST, Method::DELETE],
        Endpoint::Drill,
    ),
    ("/v1/pool", &[Method::GET], Endpoint::Pool),
    (
        "/v1/filters",
        &[Method::GET, Method::POST],
        Endpoint::Explain,
    ),
];

/// The paths of all endpoints.
pub fn paths() -> impl Iterator<Item = &'static str> {
    ENDPOINTS.iter().map(|(path, ..)| *path)
}

/// One request to an admin endpoint, its body read.
#[derive(Debug)]
pub(crate) struct Ask {
    /// Method; GET for HEAD as well.
    pub(crate) method: Method,
    /// Body; empty for GET.
    pub(crate) body: Bytes,
    /// Who is at the other end.
    pub(crate) peer: Option<Peer>,
}

/// Why a caller may not use an endpoint that changes something or shows what is not for everybody.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotAllowed {
    /// It comes from another machine.
    #[error("only processes of this node may do that")]
    Remote,
    /// It is none of the node's own processes.
    #[error("only the node's own processes may do that: {0}")]
    Stranger(#[from] Stranger),
    /// It could not be found out which process it is.
    #[error(
        "only the node's own processes may do that, and which one this is cannot be found out: {0}"
    )]
    Unproven(String),
}

impl From<NotAllowed> for Response<Body> {
    fn from(refused: NotAllowed) -> Self {
        refuse(StatusCode::FORBIDDEN, format!("{refused}\n"))
    }
}

/// Serves the admin endpoints.
#[derive(Debug)]
pub struct Admin {
    hub: Arc<Hub>,
    telemetry: yurt_telemetry::Metrics,
    profiling: bool,
    started: Instant,
}

impl Admin {
    /// Of a hub; with `profiling`, debugging endpoints are served too.
    pub fn new(hub: Arc<Hub>, telemetry: yurt_telemetry::Metrics, profiling: bool) -> Self {
        Self {
            hub,
            telemetry,
            profiling,
            started: Instant::now(),
        }
    }

    /// Answers one request.
    pub async fn handle<B>(&self, request: Request<B>) -> Response<Body>
    where
        B: http_body::Body<Data = Bytes> + Send,
        B::Error: std::fmt::Display,
    {
        let (parts, body) = request.into_parts();
        let method = match parts.method {
            Method::HEAD => Method::GET,
            method => method,
        };
        if ota::is_path(parts.uri.path()) {
            let peer = parts.extensions.get::<Peer>();
            return self.ota(&method, &parts.uri, &parts.headers, peer).await;
        }
        let endpoint = match find(&method, parts.uri.path()) {
            Ok(endpoint) => endpoint,
            Err(refusal) => return *refusal,
        };
        let peer = parts.extensions.get::<Peer>().cloned();
        if (method != Method::GET || endpoint.is_private())
            && let Err(refused) = self.admit(peer.as_ref()).await
        {
            return refused.into();
        }
        let body = if method == Method::GET {
            Bytes::new()
        } else {
            match read(body, endpoint.most_body()).await {
                Ok(body) => body,
                Err(refusal) => return *refusal,
            }
        };
        let ask = Ask { method, body, peer };
        self.serve(endpoint, ask).await
    }

    async fn serve(&self, endpoint: Endpoint, ask: Ask) -> Response<Body> {
        match endpoint {
            Endpoint::Healthz => health::alive(),
            Endpoint::Readyz => health::ready(&self.hub),
            Endpoint::Status => status::status(self),
            Endpoint::Metrics => status::metrics(self),
            Endpoint::Token => token::take(self, &ask).await,
            Endpoint::Doctor => autonomy::doctor(self).await,
            Endpoint::Drill => autonomy::drill(self, &ask),
            Endpoint::Pool => pool::status(self).await,
            Endpoint::Explain => filters::filters(&self.hub, &ask).await,
            _ if !self.profiling => refuse(StatusCode::NOT_FOUND, "--profiling=false\n"),
            Endpoint::LogLevel => debug::log_level(&ask),
            Endpoint::Links => debug::links(&self.hub),
            Endpoint::Cache => debug::cache(&self.hub),
            Endpoint::Settings => debug::settings(&self.hub),
            Endpoint::Filters => debug::filters(&self.hub),
        }
    }

    /// What the hub is at, all of it, for [`super::dump`].
    pub(super) fn state(&self) -> serde_json::Value {
        status::state(self)
    }

    /// Lets one of the node's own processes, of root or the hub's own user, change something, or see what is not for everybody: no
    /// pod, also none that shares the node's network (W1). Asked before any handler that is not for everybody.
    async fn admit(&self, peer: Option<&Peer>) -> Result<(), NotAllowed> {
        let local = peer.filter(|peer| peer.addr.ip().to_canonical().is_loopback());
        let peer = local.ok_or(NotAllowed::Remote)?;
        let proof = self.hub.gate.prove(peer).await;
        Ok(proof.map_err(|error| NotAllowed::Unproven(error.to_string()))??)
    }
}

/// The endpoint of a method and path, or the 404 or 405 that says what there is.
fn find(method: &Method, path: &str) -> Result<Endpoint, Box<Response<Body>>> {
    let Some((_, methods, endpoint)) = ENDPOINTS.iter().find(|(known, ..)| *known == path) else {
        return Err(Box::new(unknown()));
    };
    if methods.contains(method) {
        return Ok(*endpoint);
    }
    Err(Box::new(only(methods)))
}

/// There is nothing at this path; there is at others.
fn unknown() -> Response<Body> {
    let paths: Vec<&str> = paths().chain(ota::PATHS).collect();
    let text = format!("there are {}\n", paths.join(", "));
    refuse(StatusCode::NOT_FOUND, text)
}

/// Other methods than these make no sense at a path.
fn only(methods: &[Method]) -> Response<Body> {
    let allowed: Vec<&str> = methods.iter().map(Method::as_str).collect();
    let allowed = allowed.join(", ");
    let text = format!("only {allowed} is served here\n");
    let mut response = refuse(StatusCode::METHOD_NOT_ALLOWED, text);
    if let Ok(value) = allowed.parse() {
        response.headers_mut().insert(header::ALLOW, value);
    }
    response
}

async fn read<B>(body: B, most: usize) -> Result<Bytes, Box<Response<Body>>>
where
    B: http_body::Body<Data = Bytes>,
    B::Error: std::fmt::Display,
{
    use http_body_util::BodyExt;
    let mut body = std::pin::pin!(body);
    let mut read = Vec::new();
    let all = async {
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| (StatusCode::BAD_REQUEST, error.to_string()))?;
            read.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data));
            if read.len() > most {
                let text = format!("more than {most} bytes");
                return Err((StatusCode::PAYLOAD_TOO_LARGE, text));
            }
        }
        Ok(())
    };
    match tokio::time::timeout(BODY_WAIT, all).await {
        Ok(Ok(())) => Ok(read.into()),
        Ok(Err((status, text))) => Err(Box::new(refuse(status, text + "\n"))),
        Err(_) => Err(Box::new(refuse(
            StatusCode::REQUEST_TIMEOUT,
            "the body did not come\n",
        ))),
    }
}

/// A refusal in plain text, as OpenYurt's hub words them.
pub(crate) fn refuse(status: StatusCode, text: impl Into<Bytes>) -> Response<Body> {
    answer(status, "text/plain", text)
}

/// JSON for people and programs.
pub(crate) fn json(value: &impl serde::Serialize) -> Response<Body> {
    match serde_json::to_vec_pretty(value) {
        Ok(mut body) => {
            body.push(b'\n');
            answer(StatusCode::OK, "application/json", body)
        }
        Err(error) => refuse(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
}

/// An answer.
pub(crate) fn answer(
    status: StatusCode,
    content_type: &str,
    body: impl Into<Bytes>,
) -> Response<Body> {
    let mut response = Response::new(yurt_transport::full(body));
    *response.status_mut() = status;
    if let Ok(value) = content_type.parse() {
        response.headers_mut().insert(header::CONTENT_TYPE, value);
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_path_takes_its_methods_only() {
        assert_eq!(find(&Method::GET, "/metrics").unwrap(), Endpoint::Metrics);
        for (path, methods, endpoint) in ENDPOINTS {
            for method in methods {
                assert_eq!(find(method, path).unwrap(), endpoint);
            }
            let refused = find(&Method::PATCH, path).unwrap_err();
            assert_eq!(refused.status(), StatusCode::METHOD_NOT_ALLOWED, "{path}");
            assert!(refused.headers().contains_key(header::ALLOW));
        }
        for path in ["/", "/v1/healthz/", "/v1//healthz", "/metricsx"] {
            let refused = find(&Method::GET, path).unwrap_err();
            assert_eq!(refused.status(), StatusCode::NOT_FOUND, "{path}");
        }
    }

    #[tokio::test]
    async fn a_body_has_a_bound() {
        let large = yurt_transport::full(vec![b'x'; MOST_BODY + 1]);
        let refused = read(large, MOST_BODY).await.unwrap_err();
        assert_eq!(refused.status(), StatusCode::PAYLOAD_TOO_LARGE);
        let fits = yurt_transport::full(vec![b'x'; MOST_BODY]);
        assert_eq!(read(fits, MOST_BODY).await.unwrap().len(), MOST_BODY);
    }
}
