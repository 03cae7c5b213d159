//! Answers out of what is shared within the pool (`pool::share`): to this node's callers and to its other nodes.

use super::{Call, Hub, text};
use crate::{
    caller::Caller,
    metrics::{Aggregated, InFlight},
    offline::LocalWatch,
    pool::{
        Role,
        share::{Feed, Stage},
    },
    query::Query,
    route::{self, Mode},
    tee::Counted,
};
use bytes::Bytes;
use futures_util::stream;
use http::{HeaderName, HeaderValue, Method, Response, header};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use std::{sync::Arc, time::Duration};
use yurt_transport::Body;
use yurt_wire::{Reason, RequestInfo, Status, Verb, request::ListOptions, status::Cause};

/// How long this node's own callers wait for a feed to begin before they go to the cloud, and other nodes before they are told to
/// come again.
const OWN_WAIT: Duration = Duration::from_secs(10);
const PEERS_WAIT: Duration = Duration::from_secs(1);
/// How long a read of one object waits for that.
const GET_WAIT: Duration = Duration::from_secs(2);
/// How long a revision that is not known yet is waited for, as kube-apiserver does.
const REVISION_WAIT: Duration = Duration::from_secs(3);
/// How often watches of other nodes get a bookmark at least.
const BOOKMARKS: HeaderName = HeaderName::from_static(crate::pool::share::BOOKMARKS);
const BOOKMARK_SECONDS: HeaderValue = HeaderValue::from_static("10");

/// As OpenYurt's multiplexer.
fn not_ready() -> Box<Status> {
    Box::new(Status::too_many_requests(
        "what the pool shares is not known on this node yet, please try again later",
        1,
    ))
}

fn too_large(wanted: u64, current: u64) -> Box<Status> {
    let message = format!("Too large resource version: {wanted}, current: {current}");
    let mut status = Status::timeout(&message, 1);
    status.causes.push(Cause {
        reason: "ResourceVersionTooLarge".into(),
        message: "Too large resource version".into(),
        field: String::new(),
    });
    Box::new(status)
}

impl Hub {
    /// Whether a request may be answered out of what is shared.
    pub(super) fn is_shared(
        &self,
        caller: &Caller,
        method: &Method,
        info: &RequestInfo,
        options: &ListOptions,
    ) -> bool {
        // Most requests are settled by this alone.
        matches!(info.verb, Verb::List | Verb::Watch)
            && *self.role.borrow() != Role::Alone
            && route::is_shareable(
                &self.settings.borrow().pool_scope,
                method,
                info,
                options,
                matches!(caller, Caller::Peer(_)),
            )
    }

    /// The answer out of what is shared; `None` when it is to be sought as if nothing were.
    pub(super) async fn out_of_share(
        self: &Arc<Self>,
        call: &Call,
    ) -> Option<Result<Response<Body>, Box<Status>>> {
        let caller = &call.identity.caller;
        let peer = match caller {
            Caller::Peer(name) => {
                if self
                    .role
                    .borrow()
                    .leader()
                    .is_some_and(|of| *of.node == **name)
                {
                    // Two nodes that feed each other would never hear of anything.
                    return Some(Err(not_ready()));
                }
                true
            }
            _ => false,
        };
        if !self.may_share(call).await {
            return None;
        }
        let feed = self.share.feed(self, &call.info.gvr())?;
        let wait = if peer { PEERS_WAIT } else { OWN_WAIT };
        match feed.ready(wait).await {
            Stage::Synced => {}
            Stage::Beginning | Stage::Failing if peer => return Some(Err(not_ready())),
            Stage::Beginning | Stage::Failing | Stage::Refused => return None,
        }
        match self.share_out(call, &feed).await {
            Ok(response) => Some(Ok(response)),
            // The cache lost something, or does not know yet who may read it.
            Err(status) if matches!(status.code(), 403 | 500 | 503) => {
                tracing::debug!(path = %call.info.path, %status, "not answered out of what is shared");
                peer.then(|| Err(not_ready()))
            }
            Err(status) => Some(Err(status)),
        }
    }

    /// Before a single object is read from the cache of a node without a link: its peers may know of it what this node does not,
    /// and what they share is followed from now on.
    pub(super) async fn know_shared(self: &Arc<Self>, call: &Call) {
        let info = &call.info;
        let followed = info.verb == Verb::Get
            && info.is_resource
            && matches!(*self.role.borrow(), Role::Follower(_))
            && self.settings.borrow().pool_scope.contains(&info.gvr());
        if followed && let Some(feed) = self.share.feed(self, &info.gvr()) {
            // Known or not: the cache answers.
            let _ = feed.ready(GET_WAIT).await;
        }
    }

    /// Whether a caller may read what it asks for, as far as is known (design rule R4). The node's own components and its peers may
    /// read what the feed, under the node's identity, was given.
    async fn may_share(&self, call: &Call) -> bool {
        let caller = &call.identity.caller;
        if !caller.has_token() {
            return true;
        }
        if self.mode_of(caller) == Mode::Offline {
            let query = Query::of_request(&call.info, &call.options);
            return self.cache.may_read(caller, &query);
        }
        self.permits_freshly(caller, &call.info, &call.parts.headers)
            .await
    }

    async fn share_out(
        self: &Arc<Self>,
        call: &Call,
        feed: &Arc<Feed>,
    ) -> Result<Response<Body>, Box<Status>> {
        let (caller, info, options) = (&call.identity.caller, &call.info, &call.options);
        let agent = text(&call.parts.headers, header::USER_AGENT);
        let aggregated = self.metrics.aggregated(info, agent);
        let state = info.verb == Verb::List || options.send_initial_events == Some(true);
        if state
            && let Ok(wanted) = options.resource_version.parse()
            && let Err(current) = feed.reached(wanted, REVISION_WAIT).await
        {
            return Err(too_large(wanted, current));
        }
        let headers = &call.parts.headers;
        if info.verb == Verb::Watch {
            let watch = LocalWatch::open_shared(&self.offline, caller, info, headers, feed)?;
            return self.stream(call, watch, aggregated);
        }
        let response = self.offline.shared_list(caller, info, headers).await?;
        let (metrics, in_flight) = (self.metrics.clone(), call.in_flight.clone());
        Ok(response.map(|body| {
            let body = Counted::new(body, in_flight).map_frame(move |frame| {
                let _until_taken = &aggregated;
                metrics.pool().given(frame.data_ref().map_or(0, Bytes::len));
                frame
            });
            body.boxed_unsync()
        }))
    }

    /// The frames of a watch, made when the connection asks for them: who takes nothing is the connection's to mind, and what it has
    /// not taken when it falls behind is not held for it.
    fn stream(
        self: &Arc<Self>,
        call: &Call,
        watch: LocalWatch,
        aggregated: Aggregated,
    ) -> Result<Response<Body>, Box<Status>> {
        let content_type = HeaderValue::from_str(watch.content_type())
            .map_err(|error| Box::new(Status::new(Reason::InternalError, error.to_string())))?;
        let told = Box::new(Watched {
            hub: self.clone(),
            watch,
            in_flight: call.in_flight.clone(),
            _aggregated: aggregated,
        });
        let frames = stream::unfold(told, |mut told| async move {
            let bytes = told.next().await?;
            Some((Ok(Frame::data(bytes)), told))
        });
        let mut response = Response::new(StreamBody::new(frames).boxed_unsync());
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, content_type);
        let no_cache = HeaderValue::from_static("no-cache, private");
        headers.insert(header::CACHE_CONTROL, no_cache);
        if matches!(call.identity.caller, Caller::Peer(_)) && call.options.allow_watch_bookmarks {
            headers.insert(BOOKMARKS, BOOKMARK_SECONDS);
        }
        Ok(response)
    }
}

/// A watch under way.
struct Watched {
    hub: Arc<Hub>,
    watch: LocalWatch,
    in_flight: InFlight,
    _aggregated: Aggregated,
}

impl Watched {
    /// The next frame; `None` when the watch or the hub ends.
    async fn next(&mut self) -> Option<Bytes> {
        let frame = tokio::select! {
            frame = self.watch.next() => frame?,
            () = self.hub.shutdown.cancelled() => return None,
        };
        let bytes = frame.bytes.len();
        self.in_flight.sent(bytes);
        self.hub.metrics.pool().given(bytes);
        Some(frame.bytes)
    }
}
