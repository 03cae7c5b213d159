//! From an HTTP request to a response: routing, authentication, bounds.

mod body;
mod dispatch;
mod openapi;
mod respond;
mod watch;

use crate::{
    InFlight,
    authn::{self, Authenticator, User},
    authz::{self, Attributes},
    discovery, meta,
    metrics::ServerMetrics,
    registry::{Registry, Reply},
    subresources::connect::{self, Connect, Connector},
};
use bytes::Bytes;
use http::{Request, Response, StatusCode, request::Parts};
use http_body::Body as _;
use openapi::{Document, Documents};
use respond::Wanted;
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio_util::sync::CancellationToken;
use yurt_transport::{Body, BoxError, Peer};
use yurt_wire::{Reason, RequestInfo, Status, Verb, media};

/// How long a request waits for its turn before it is sent away with 429.
const TURN: Duration = Duration::from_secs(1);

/// How long a request's body may take to arrive.
const BODY_PATIENCE: Duration = Duration::from_secs(30);

/// Everything a request needs.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) registry: Arc<Registry>,
    pub(crate) authenticator: Authenticator,
    /// Where clients are told to find the server.
    pub(crate) address: String,
    pub(crate) metrics: ServerMetrics,
    pub(crate) shutdown: CancellationToken,
    connector: Connector,
    openapi: Documents,
    mutating: Semaphore,
    reading: Semaphore,
}

impl Server {
    pub(crate) fn new(
        registry: Arc<Registry>,
        authenticator: Authenticator,
        address: String,
        metrics: ServerMetrics,
        in_flight: InFlight,
        connector: Connector,
        shutdown: CancellationToken,
    ) -> Self {
        Self {
            registry,
            authenticator,
            address,
            metrics,
            shutdown,
            connector,
            openapi: Documents::default(),
            mutating: Semaphore::new(in_flight.mutating.min(Semaphore::MAX_PERMITS)),
            reading: Semaphore::new(in_flight.reading.min(Semaphore::MAX_PERMITS)),
        }
    }

    /// Answers a request.
    pub(crate) async fn handle<B>(self: Arc<Self>, request: Request<B>) -> Response<Body>
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let began = Instant::now();
        let (parts, body) = request.into_parts();
        let info = RequestInfo::parse(&parts.method, parts.uri.path(), parts.uri.query());
        let wanted = Wanted::of(&parts.headers, &info.query);
        let response = match Box::pin(self.answer(&parts, body, &info, &wanted)).await {
            Ok(response) => response,
            Err(status) => respond::status(&wanted, &status),
        };
        let bytes = response.body().size_hint().exact();
        self.metrics
            .observe(&info, response.status().as_u16(), bytes, began.elapsed());
        response
    }

    async fn answer<B>(
        &self,
        parts: &Parts,
        body: B,
        info: &RequestInfo,
        wanted: &Wanted,
    ) -> Reply<Response<Body>>
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let peer = parts.extensions.get::<Peer>();
        let user = self.authenticator.request(
            peer,
            &parts.headers,
            meta::now_seconds(),
            &self.registry.storage,
        )?;
        let user = match authn::impersonated(&parts.headers)? {
            None => user,
            Some(other) => {
                for lending in authz::impersonation(&other.asked) {
                    self.authorize(&user, &lending)?;
                }
                other.user
            }
        };
        self.authorize(&user, &Attributes::of(info, &parts.method))?;
        if let Some(connect) = Connect::of(info) {
            // Long-running: it neither waits for a turn nor takes one.
            if connect != Connect::Log {
                self.registry.admit_connection(info, &user).await?;
            }
            let body = connect::streamed(body);
            let answer = self
                .connector
                .serve(&self.registry, connect, info, parts, body);
            return answer.await;
        }
        if info.is_resource {
            // The body first: a client that sends slowly must not take a turn from others.
            let bytes = tokio::time::timeout(BODY_PATIENCE, body::read(body))
                .await
                .map_err(|_| {
                    Box::new(Status::timeout("the body of the request did not arrive", 1))
                })??;
            let _turn = self.turn(info, &parts.method).await?;
            self.resource(parts, bytes, info, wanted, user).await
        } else {
            self.path(parts, info, wanted, &user).await
        }
    }

    /// 403 unless `user` may do it.
    fn authorize(&self, user: &User, what: &Attributes) -> Reply<()> {
        let decision = self.registry.authorizer.decide(user, what);
        if decision.allowed {
            return Ok(());
        }
        Err(authz::forbidden(user, what, &decision.reason))
    }

    /// Waits, for a bounded time, until the server has room for one more.
    async fn turn(
        &self,
        info: &RequestInfo,
        method: &http::Method,
    ) -> Reply<Option<SemaphorePermit<'_>>> {
        let lanes = match info.verb {
            Verb::Watch => return Ok(None),
            _ if method == http::Method::GET || method == http::Method::HEAD => &self.reading,
            _ => &self.mutating,
        };
        match tokio::time::timeout(TURN, lanes.acquire()).await {
            Ok(Ok(permit)) => Ok(Some(permit)),
            _ => Err(Box::new(Status::too_many_requests(
                "Too many requests, please try again later.",
                1,
            ))),
        }
    }

    /// What is not a resource.
    async fn path(
        &self,
        parts: &Parts,
        info: &RequestInfo,
        wanted: &Wanted,
        _user: &User,
    ) -> Reply<Response<Body>> {
        if parts.method != http::Method::GET && parts.method != http::Method::HEAD {
            return Err(Box::new(Status::new(
                Reason::MethodNotAllowed,
                format!(
                    "the server does not allow {} on {}",
                    parts.method, info.path
                ),
            )));
        }
        let path = info.path.trim_matches('/');
        let segments: Vec<&str> = path.split('/').collect();
        let catalog = self.registry.catalog();
        let json = "application/json";
        let discovered = match segments.as_slice() {
            [""] => Some(discovery::paths(&catalog)),
            ["healthz" | "livez" | "readyz", ..] => {
                return Ok(respond::text("ok", "text/plain; charset=utf-8"));
            }
            ["metrics"] => {
                self.metrics.storage(&self.registry);
                let (text, content_type) = self.metrics.render();
                return Ok(respond::text(text, content_type));
            }
            ["version"] => Some(discovery::version()),
            ["openapi", rest @ ..] => {
                let document = Document::of(rest, wanted.accept()).ok_or_else(no_such_path)?;
                let answer = self.openapi.answer(document, &catalog, parts, wanted);
                return answer.await.ok_or_else(no_such_path);
            }
            ["api"] | ["apis"] => {
                let core = path == "api";
                match media::aggregated_discovery(wanted.accept()) {
                    Some(version) => {
                        let list = discovery::aggregated(&catalog, core, version);
                        let content_type = format!(
                            "application/json;g=apidiscovery.k8s.io;v={version};as=APIGroupDiscoveryList"
                        );
                        return Ok(respond::json(wanted, &list, &content_type).await);
                    }
                    None if core => Some(discovery::core_versions(&self.address)),
                    None => Some(discovery::groups(&catalog)),
                }
            }
            ["api", version] => discovery::resources(&catalog, "", version),
            ["apis", group] => discovery::group(&catalog, group),
            ["apis", group, version] => discovery::resources(&catalog, group, version),
            [".well-known", "openid-configuration"] => {
                let issuer = self.authenticator.issuer().audience();
                Some(serde_json::json!({
                    "issuer": issuer,
                    "jwks_uri": format!("https://{}/openid/v1/jwks", self.address),
                    "response_types_supported": ["id_token"],
                    "subject_types_supported": ["public"],
                    "id_token_signing_alg_values_supported": ["ES256"],
                }))
            }
            ["openid", "v1", "jwks"] => Some(self.authenticator.issuer().keys()),
            _ => None,
        };
        match discovered {
            Some(value) => Ok(respond::json(wanted, &value, json).await),
            None => Err(no_such_path()),
        }
    }
}

/// What kube-apiserver says about paths it does not know.
fn no_such_path() -> Box<Status> {
    Box::new(Status::new(
        Reason::NotFound,
        "the server could not find the requested resource",
    ))
}

/// 201 for new objects, 200 for others.
fn code(created: bool) -> StatusCode {
    if created {
        StatusCode::CREATED
    } else {
        StatusCode::OK
    }
}
