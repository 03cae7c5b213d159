//! The pipeline: what happens to one request, from its first byte to who answers it. Beside it: who may come in (`entry`), how
//! request bodies are taken (`upload`), how the cloud is asked (`forwarding`), what components are to see otherwise
//! (`filtering`), what is answered out of what the pool shares (`shared`), what answers say about callers (`rights`) and their
//! tokens (`vouching`), and how streams end with the hub (`ending`).

mod ending;
mod entry;
mod filtering;
mod forwarding;
mod rights;
mod shared;
mod upload;
mod vouching;

use crate::{
    autonomy::heartbeat::Heartbeat,
    backing::Backing,
    cache::{Asked, Cache, agents},
    caller::{Caller, Entrance},
    certificates::Certificates,
    config::{Bounds, Config},
    deadline,
    drill::Drill,
    filter::Filters,
    identity::{self, Gate, Identity},
    journal::Journal,
    metrics::{InFlight, Metrics},
    offline::Offline,
    ota::Ota,
    pool::{self, Coordination, Peers, Role, Share},
    query::Query,
    relay::{self, Watched},
    route::{self, Facts, Mode, Way},
    rules::Rules,
    settings::Settings,
    tee::{Counted, Teacher},
    tenant::Tenant,
    tokens::Tokens,
    upgrade,
    upstream::{GRACE, Upstreams},
};
use bytes::Bytes;
use ending::Ending;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header, request::Parts};
use http_body::Body as _;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
pub(crate) use upload::Upload;
use yurt_transport::{Body, Unhurried};
use yurt_wire::{
    Encoding, Reason, RequestInfo, Status, Verb,
    media::{Representation, negotiate},
    request::ListOptions,
};

/// How long a request waits for the first sign of the cloud after a start.
pub(crate) const SETTLE: Duration = Duration::from_millis(1500);

/// When the cloud last told what a token may do in a namespace; each locked while the cloud is asked.
type ToldRules = HashMap<(Box<str>, Box<str>), Arc<tokio::sync::Mutex<Option<Instant>>>>;

/// Everything that serving needs, shared by all requests.
#[derive(Debug)]
pub struct Hub {
    /// Name of the node.
    pub node_name: String,
    /// Tells callers apart.
    pub gate: Gate,
    /// Whose node this is, when it is a tenant's.
    pub tenant: Option<Tenant>,
    /// What the hub was told.
    pub config: Arc<Config>,
    /// The node's heartbeat, where the hub keeps it.
    pub heartbeat: Option<Arc<Heartbeat>>,
    /// What the cache was in trouble with when it was looked at last.
    pub trouble: watch::Sender<Option<String>>,
    /// Being cut off on purpose.
    pub drill: Drill,
    /// Whether the node keeps what passes and answers from it (edge mode); otherwise everything is the cloud's (cloud mode).
    pub autonomous: bool,
    /// The cloud.
    pub upstreams: Arc<Upstreams>,
    /// What the node and the hub prove themselves with.
    pub certificates: Certificates,
    /// What the node knows.
    pub cache: Cache,
    /// What the node wrote while the cloud was away.
    pub journal: Journal,
    /// Answers without the cloud.
    pub offline: Offline,
    /// Objects behind views.
    pub backing: Backing,
    /// Feeds the cache.
    pub teacher: Teacher,
    /// Counters.
    pub metrics: Metrics,
    /// Sizes and times.
    pub bounds: Bounds,
    /// Length of a local watch that names none.
    pub min_request_timeout: Duration,
    /// Whether the cloud is there.
    pub mode: watch::Receiver<Mode>,
    /// What config maps say.
    pub settings: watch::Receiver<Arc<Settings>>,
    /// What this node is to its pool.
    pub role: watch::Receiver<Role>,
    /// The other nodes of the pool.
    pub peers: Peers,
    /// What components are to see otherwise than the cloud has it.
    pub filters: Filters,
    /// What users add to that.
    pub rules: Rules,
    /// What is shared with them.
    pub share: Share,
    /// What is known of them.
    pub coordination: Coordination,
    /// Whether younger writes must wait for older ones to be replayed.
    pub in_order: Arc<AtomicBool>,
    /// When each bearer's rules were asked for.
    pub reviewed: Mutex<HashMap<Caller, Instant>>,
    /// When the cloud last told what a bearer may do.
    pub(crate) told_rules: Mutex<ToldRules>,
    /// Whose tokens are.
    pub tokens: Tokens,
    /// When the cloud refused to tell whose tokens are.
    pub unvouched: Mutex<Option<Instant>>,
    /// Upgrades that the node's owner decides about.
    pub ota: Arc<Ota>,
    /// Tasks to wait for at shutdown.
    pub tasks: TaskTracker,
    /// Ends everything.
    pub shutdown: CancellationToken,
}

/// One request, understood.
struct Call {
    identity: Identity,
    info: RequestInfo,
    options: ListOptions,
    representation: Option<Representation>,
    parts: Parts,
    in_flight: InFlight,
}

impl Hub {
    /// Whether the cloud is there now. Just after the start it may turn out not to be, a moment before [`Self::modes`]
    /// tells.
    pub fn mode(&self) -> Mode {
        if self.upstreams.reachable() {
            *self.mode.borrow()
        } else {
            Mode::Offline
        }
    }

    /// Whether the cloud is there for a caller. For those who go to it as the node it is not while the node has no certificate.
    pub fn mode_of(&self, caller: &Caller) -> Mode {
        if self.lacks_identity(caller) {
            Mode::Offline
        } else {
            self.mode()
        }
    }

    fn lacks_identity(&self, caller: &Caller) -> bool {
        !caller.has_token() && !self.upstreams.identified() && self.certificates.identity_wanted()
    }

    /// Waits until the cloud is there for a caller, or is not any more.
    pub async fn until_mode_of(&self, caller: &Caller, wanted: Mode) {
        let (mut modes, mut changes) = (self.modes(), self.upstreams.changes());
        loop {
            modes.borrow_and_update();
            changes.borrow_and_update();
            // The same question as those ask who act on the answer: another one would let them go round and round.
            if self.mode_of(caller) == wanted {
                return;
            }
            let ended = tokio::select! {
                changed = modes.changed() => changed.is_err(),
                changed = changes.changed() => changed.is_err(),
            };
            if ended {
                return;
            }
        }
    }

    /// To wait for the cloud.
    pub fn modes(&self) -> watch::Receiver<Mode> {
        self.mode.clone()
    }

    /// Answers one request that came in by a listener.
    pub async fn handle(
        self: Arc<Self>,
        entrance: Entrance,
        request: Request<Incoming>,
    ) -> Response<Body> {
        let (mut parts, body) = request.into_parts();
        let accept = parts.headers.get(header::ACCEPT).cloned();
        let asked = self.drill.ask(&parts);
        let mut lent = false;
        let mut peer = None;
        let answer = match self.enter(entrance, &mut parts, body).await {
            Ok((identity, body)) => {
                lent = identity.lent;
                if let Caller::Peer(node) = &identity.caller {
                    peer = Some(node.clone());
                }
                self.answer(identity, parts, body).await
            }
            Err(status) => Err(status),
        };
        let mut response = self.answered(answer, accept.as_ref());
        if lent {
            response.headers_mut().append(header::WARNING, entry::LENT);
        }
        // What goes on ends with the place in the pool that it was begun with.
        if let Some(node) = peer
            && response.body().size_hint().exact().is_none()
        {
            let left = self.gate.left(&node);
            response = response.map(|body| Ending::new(body, left).boxed_unsync());
        }
        if entrance == Entrance::Pool {
            let name = HeaderValue::from_static(crate::USER_AGENT);
            response.headers_mut().insert(header::SERVER, name);
        }
        if let Some(asked) = asked {
            self.drill.answered(asked, response.status());
        }
        response
    }

    /// Answers a request of the hub's own, as the node's other components are answered.
    pub async fn own(self: &Arc<Self>, request: Request<Bytes>) -> Response<Body> {
        let (parts, body) = request.into_parts();
        let accept = parts.headers.get(header::ACCEPT).cloned();
        let answer = Box::pin(self.answer(Identity::node(), parts, Upload::Held(body))).await;
        self.answered(answer, accept.as_ref())
    }

    fn answered(
        &self,
        answer: Result<Response<Body>, Box<Status>>,
        accept: Option<&HeaderValue>,
    ) -> Response<Body> {
        match answer {
            Ok(response) => response,
            Err(status) => {
                self.metrics.refused(status.reason.as_str());
                tracing::debug!(code = status.code(), message = %status, "refused");
                refusal(&status, accept)
            }
        }
    }

    async fn answer(
        self: &Arc<Self>,
        identity: Identity,
        parts: Parts,
        body: Upload,
    ) -> Result<Response<Body>, Box<Status>> {
        let info = RequestInfo::parse(&parts.method, parts.uri.path(), parts.uri.query());
        if let Some(chain) = self.chain_of(&identity.caller, &parts, &info) {
            return Box::pin(self.answer_filtered(chain, identity, info, parts, body)).await;
        }
        let awakening = self.awaken(&identity, &parts, &info).map(Box::new);
        let response = Box::pin(self.answer_as_is(identity, info, parts, body)).await?;
        Ok(match awakening {
            Some(awakening) => response.map(|body| awakening.guard(body).boxed_unsync()),
            None => response,
        })
    }

    /// Answers as the cloud has it.
    async fn answer_as_is(
        self: &Arc<Self>,
        identity: Identity,
        info: RequestInfo,
        mut parts: Parts,
        body: Upload,
    ) -> Result<Response<Body>, Box<Status>> {
        let agent = text(&parts.headers, header::USER_AGENT);
        let in_flight = self.metrics.begin(&info, agent);
        if self.metrics.in_flight() > self.bounds.in_flight as i64 {
            let mut status = Status::new(
                Reason::TooManyRequests,
                "too many requests under way on this node",
            );
            status.retry_after_seconds = Some(1);
            return Err(Box::new(status));
        }
        if let Caller::Peer(peer) = &identity.caller
            && let Some(answer) = pool::answer(self, peer, &info, &parts, &body)
        {
            return answer;
        }
        let upgrade = upgrade::is_upgrade(&parts.headers);
        let options = match info.verb {
            Verb::List | Verb::Watch if info.is_resource => info.list_options()?,
            _ => ListOptions::default(),
        };
        // What the node cannot answer for the cloud is worth a moment of waiting, when nothing is known of the cloud yet.
        if self.upstreams.starting() {
            let node_may_know = self.autonomous && parts.method.is_safe() && !upgrade;
            let wait = if node_may_know { GRACE } else { SETTLE };
            self.upstreams.settled(wait).await;
        }
        let accept = parts
            .headers
            .get(header::ACCEPT)
            .and_then(|value| value.to_str().ok());
        let representation = negotiate(accept, true);
        let mode = self.mode_of(&identity.caller);
        let (way, unshared) = if self.autonomous {
            let facts = Facts {
                info: &info,
                mode,
                upgrade,
                impersonates: identity.impersonates,
                kept: self.offline.keeps(&identity.caller, &info),
                journal_pending: self.in_order.load(Ordering::Relaxed)
                    && self.journal.pending() > 0,
                heartbeat: self.heartbeat.is_some()
                    && self.offline.is_heartbeat(&identity.caller, &info),
                shared: self.is_shared(&identity.caller, &parts.method, &info, &options),
            };
            let shared = false;
            (
                route::decide(facts),
                route::decide(Facts { shared, ..facts }),
            )
        } else {
            let way = route::pass(mode, upgrade);
            (way, way)
        };
        if way == Way::Upgrade {
            let wait = deadline::head_wait(&info);
            return upgrade::serve(self, &identity.caller, parts, wait, in_flight).await;
        }
        // Nothing below switches protocols.
        parts.extensions.remove::<hyper::upgrade::OnUpgrade>();
        let call = Call {
            identity,
            info,
            options,
            representation,
            parts,
            in_flight,
        };
        let way = match way {
            Way::Shared => match Box::pin(self.out_of_share(&call)).await {
                Some(answer) => return answer,
                None => unshared,
            },
            way => way,
        };
        match way {
            Way::Upgrade | Way::Unavailable | Way::Shared => {
                Err(self.unavailable(&call.identity.caller, "only the cloud can answer this"))
            }
            Way::Relay => {
                let mut response = self.watch(call).await?;
                response.extensions_mut().insert(Unhurried);
                Ok(response)
            }
            Way::Local => {
                self.know_shared(&call).await;
                let body = self.held(&call, body).await?;
                self.locally_first(call, body).await
            }
            Way::Heartbeat => {
                let body = self.held(&call, body).await?;
                Box::pin(self.beat(call, body)).await
            }
            Way::Cloud { fallback } => self.forward(call, body, fallback).await,
        }
    }

    async fn held(&self, call: &Call, body: Upload) -> Result<Bytes, Box<Status>> {
        match body {
            Upload::Stream(body) => self.hold(&call.parts.headers, body).await,
            Upload::Held(bytes) => Ok(bytes),
        }
    }

    /// The kubelet reads and renews the node's lease at the hub, which brings it on. What the node does not know of it (a lease from
    /// before the hub, another's), the cloud may.
    async fn beat(
        self: &Arc<Self>,
        call: Call,
        body: Bytes,
    ) -> Result<Response<Body>, Box<Status>> {
        let response = self.locally(&call, body.clone()).await?;
        let unknown = matches!(
            response.status(),
            StatusCode::NOT_FOUND | StatusCode::SERVICE_UNAVAILABLE
        );
        let write = !call.parts.method.is_safe();
        // A creation that the node does not take is about another node's.
        let ours = !call.info.name.is_empty();
        let (response, ours) = if unknown && self.mode() == Mode::Online {
            (self.forward(call, Upload::Held(body), true).await?, ours)
        } else {
            (response, true)
        };
        if write
            && ours
            && response.status().is_success()
            && let Some(heartbeat) = &self.heartbeat
        {
            heartbeat.heard();
        }
        Ok(response)
    }

    /// Answers from what the node knows. Where that is not enough, the cloud is asked if it turns out to be there: the hub
    /// just started, or only writes that must keep their order were kept from it.
    async fn locally_first(
        self: &Arc<Self>,
        call: Call,
        body: Bytes,
    ) -> Result<Response<Body>, Box<Status>> {
        let response = self.locally(&call, body.clone()).await?;
        if response.status().is_success() {
            return Ok(response);
        }
        if self.upstreams.starting() {
            self.upstreams.settled(SETTLE).await;
        }
        let caller = &call.identity.caller;
        if self.mode_of(caller) == Mode::Online
            || self.upstreams.first_contact() && !self.lacks_identity(caller)
        {
            return self.forward(call, Upload::Held(body), false).await;
        }
        // The link is not what is missing.
        if response.status() == StatusCode::SERVICE_UNAVAILABLE
            && self.upstreams.up()
            && self.lacks_identity(caller)
        {
            return Err(self.unavailable(caller, "only the cloud can answer this"));
        }
        Ok(response)
    }

    /// Without `Retry-After`: clients would wait for the link instead of saying what is the matter.
    fn unavailable(&self, caller: &Caller, why: &str) -> Box<Status> {
        let node = &self.node_name;
        let message = if self.upstreams.up() && self.lacks_identity(caller) {
            let absence = self.certificates.absence();
            format!("node {node:?} cannot go to the cloud: {absence}; {why}")
        } else {
            format!("node {node:?} is offline: {why}")
        };
        Box::new(Status::new(Reason::ServiceUnavailable, message))
    }

    async fn watch(self: &Arc<Self>, call: Call) -> Result<Response<Body>, Box<Status>> {
        let mut headers = call.parts.headers.clone();
        identity::clean_request(&mut headers, false);
        headers.insert(
            header::ACCEPT_ENCODING,
            HeaderValue::from_static("identity"),
        );
        let representation = call.representation.as_ref();
        let taught = self.learns_from(&call.parts.headers);
        let learnable = taught
            && route::is_cacheable(&call.info, call.identity.impersonates)
            && representation.is_some_and(|r| r.shape == yurt_wire::media::Shape::Full);
        let query = learnable.then(|| Query::of_request(&call.info, &call.options));
        let watched = Watched {
            asked: query
                .as_ref()
                .map_or_else(Asked::default, |query| self.cache.asked(&query.gvr)),
            query,
            view: taught && route::is_view(&call.info, representation, call.identity.impersonates),
            caller: call.identity.caller,
            info: call.info,
            parts: call.parts,
            headers,
            options: call.options,
            in_flight: call.in_flight,
        };
        relay::serve(self, watched).await
    }

    async fn locally(&self, call: &Call, body: Bytes) -> Result<Response<Body>, Box<Status>> {
        self.metrics.local(if call.parts.method.is_safe() {
            "read"
        } else {
            "write"
        });
        let response = self
            .offline
            .answer(&call.identity.caller, &call.info, &call.parts, body)
            .await;
        // Under way until the client has it.
        let in_flight = call.in_flight.clone();
        Ok(response.map(|body| Counted::new(body, in_flight).boxed_unsync()))
    }

    /// Whether the cache learns from what the sender of these headers reads.
    fn learns_from(&self, headers: &HeaderMap) -> bool {
        self.autonomous
            && agents::is_cached(
                &self.settings.borrow().cache_agents,
                text(headers, header::USER_AGENT),
            )
    }
}

/// The key of a document: its path without a slash at the end.
pub(crate) fn document_key(path: &str) -> String {
    path.trim_end_matches('/').to_owned()
}

fn text(headers: &HeaderMap, name: header::HeaderName) -> &str {
    headers
        .get(name)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default()
}

/// A Status as a response, in an encoding that the client accepts.
pub fn refusal(status: &Status, accept: Option<&HeaderValue>) -> Response<Body> {
    let accept = accept.and_then(|value| value.to_str().ok());
    let encoding = negotiate(accept, true).map_or(Encoding::Json, |r| r.encoding);
    let mut response = Response::new(yurt_transport::full(status.to_bytes(encoding)));
    *response.status_mut() =
        StatusCode::from_u16(status.code()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static(encoding.content_type()),
    );
    headers.insert(
        header::CACHE_CONTROL,
        HeaderValue::from_static("no-cache, private"),
    );
    if let Some(seconds) = status.retry_after_seconds {
        headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}
