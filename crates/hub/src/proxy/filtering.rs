//! Filters at the one place that every answer passes on its way out: whoever made it, the cloud, the cache, a relayed stream or what the
//! pool shares, it was made and learned from unfiltered.

use super::{Hub, Upload, text};
use crate::{
    caller::Caller,
    filter::{
        Chain, Outcome,
        watching::{Awakening, FilteredWatch, Watcher},
    },
    identity::Identity,
};
use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header, request::Parts};
use http_body_util::BodyExt;
use std::{
    io::Read,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
};
use yurt_transport::{Body, BoxError, CollectError};
use yurt_wire::{
    Encoding, Object, Reason, RequestInfo, Status, Verb,
    list::{self, ListHead},
    media::{Shape, negotiate},
};

/// Answers above this size are filtered where they hold up nothing else.
const HEAVY: usize = 128 << 10;

/// What a whole answer is.
#[derive(Clone, Debug)]
enum Whole {
    List,
    Object { drops: bool },
}

impl Hub {
    /// The chain that answers to a request pass.
    pub(super) fn chain_of(
        &self,
        caller: &Caller,
        parts: &Parts,
        info: &RequestInfo,
    ) -> Option<Chain> {
        // What other nodes of the pool read is shared, and so as it is.
        if matches!(caller, Caller::Peer(_)) {
            return None;
        }
        self.filters
            .chain(text(&parts.headers, header::USER_AGENT), info)
    }

    /// Lets a watch that nothing filters now end when something is to: its client comes back and goes on where it was.
    pub(super) fn awaken(
        self: &Arc<Self>,
        identity: &Identity,
        parts: &Parts,
        info: &RequestInfo,
    ) -> Option<Awakening> {
        let agent = text(&parts.headers, header::USER_AGENT);
        let own = matches!(identity.caller, Caller::Peer(_)) || agent == crate::USER_AGENT;
        (info.verb == Verb::Watch && info.is_resource && !own && self.config.filters)
            .then(|| Awakening::new(Box::new(Watcher::new(self, identity, parts, info))))
    }

    /// Answers a request whose answer passes a chain.
    pub(super) async fn answer_filtered(
        self: &Arc<Self>,
        chain: Chain,
        identity: Identity,
        info: RequestInfo,
        mut parts: Parts,
        body: Upload,
    ) -> Result<Response<Body>, Box<Status>> {
        let agent = text(&parts.headers, header::USER_AGENT).to_owned();
        let Some(chain) = self
            .filters
            .ready(chain, &agent, &info, &self.metrics)
            .await
        else {
            return Box::pin(self.answer_as_is(identity, info, parts, body)).await;
        };
        let accept = parts.headers.get(header::ACCEPT);
        let accept = accept.and_then(|value| value.to_str().ok());
        // Tables and mere metadata are for people and for those who only count: shown as they are.
        let full = negotiate(accept, true).is_some_and(|wanted| wanted.shape == Shape::Full);
        if !full || parts.method == http::Method::HEAD {
            return Box::pin(self.answer_as_is(identity, info, parts, body)).await;
        }
        let mut watcher = None;
        let whole = match info.verb {
            Verb::Watch | Verb::List => {
                let asks = Watcher::new(self, &identity, &parts, &info);
                if info.verb == Verb::List {
                    self.filters.told(asks.audience(), chain.force());
                }
                watcher = (info.verb == Verb::Watch).then(|| Box::new(asks));
                Whole::List
            }
            Verb::Get => Whole::Object { drops: true },
            // It was written: the answer says what.
            _ => Whole::Object { drops: false },
        };
        // A watch may have something to filter later.
        if watcher.is_none() && chain.is_idle() {
            return Box::pin(self.answer_as_is(identity, info, parts, body)).await;
        }
        parts.headers.insert(
            header::ACCEPT_ENCODING,
            HeaderValue::from_static("identity"),
        );
        let named = (info.group.clone(), info.resource.clone(), info.name.clone());
        let response = Box::pin(self.answer_as_is(identity, info, parts, body)).await?;
        let Some(encoding) = filterable(&response) else {
            return Ok(response);
        };
        if let Some(watcher) = watcher {
            return Ok(response
                .map(|body| FilteredWatch::new(watcher, chain, encoding, body).boxed_unsync()));
        }
        self.whole(&chain, whole, encoding, response)
            .await?
            .ok_or_else(|| {
                let (group, resource, name) = &named;
                Box::new(Status::not_found(group, resource, name))
            })
    }

    /// Filters an answer that is held as a whole; `None` when nothing of it is to be seen.
    async fn whole(
        &self,
        chain: &Chain,
        whole: Whole,
        encoding: Encoding,
        response: Response<Body>,
    ) -> Result<Option<Response<Body>>, Box<Status>> {
        let (mut head, body) = response.into_parts();
        let most = self.bounds.filtered_body;
        let mut reserved = Reserved::new(self.filters.held());
        let gzip = text(&head.headers, header::CONTENT_ENCODING).eq_ignore_ascii_case("gzip");
        let body = Reserving {
            body,
            reserved: &mut reserved,
            most: self.bounds.filtering,
        };
        let body = yurt_transport::collect(body, most);
        let body = body.await.map_err(|error| self.unfilterable(&error))?;
        let body = match gzip {
            false => body,
            // Not what was asked for; some proxies do it all the same.
            true => inflate(&body, most)
                .ok_or_else(|| self.unfilterable(&CollectError::TooLarge(most)))?,
        };
        head.headers.remove(header::CONTENT_ENCODING);
        head.headers.remove(header::CONTENT_LENGTH);
        let (chain, metrics) = (chain.clone(), self.metrics.clone());
        let heavy = body.len() > HEAVY;
        let filter = move || match whole {
            Whole::List => Some(filter_list(&chain, encoding, body, &metrics)),
            Whole::Object { drops } => {
                let object = Object {
                    encoding,
                    bytes: body,
                };
                match chain.filter(&object, &metrics) {
                    Outcome::Dropped if drops => None,
                    Outcome::Changed(changed) => Some(vec![changed.bytes]),
                    Outcome::Dropped | Outcome::Kept => Some(vec![object.bytes]),
                }
            }
        };
        let chunks = if heavy {
            tokio::task::spawn_blocking(filter)
                .await
                .map_err(|_| Box::new(Status::service_unavailable("the hub shuts down")))?
        } else {
            filter()
        };
        Ok(chunks.map(|chunks| {
            let body = Held {
                body: yurt_transport::chunks(chunks),
                _reserved: reserved,
            };
            Response::from_parts(head, body.boxed_unsync())
        }))
    }

    fn unfilterable(&self, error: &CollectError) -> Box<Status> {
        let (reason, status) = match error {
            CollectError::TooLarge(most) => (
                "too_large",
                Status::new(
                    Reason::InternalError,
                    format!(
                        "the answer is larger than the {most} bytes that filters of this node take; list in pages (limit), or restrict it"
                    ),
                ),
            ),
            CollectError::Broken(error) if error.is::<Busy>() => {
                ("busy", Status::too_many_requests(Busy.to_string(), 1))
            }
            CollectError::Broken(error) => (
                "broken",
                Status::service_unavailable(format!("the answer broke off: {error}")),
            ),
        };
        self.metrics.filters().refused(reason);
        Box::new(status)
    }
}

/// The encoding of an answer with objects that can be filtered.
fn filterable(response: &Response<Body>) -> Option<Encoding> {
    if !matches!(response.status(), StatusCode::OK | StatusCode::CREATED)
        || !matches!(
            text(response.headers(), header::CONTENT_ENCODING),
            "" | "identity" | "gzip"
        )
    {
        return None;
    }
    Encoding::from_content_type(text(response.headers(), header::CONTENT_TYPE))
}

/// A list without what is dropped and with what is changed; as it came when that is nothing.
fn filter_list(
    chain: &Chain,
    encoding: Encoding,
    body: Bytes,
    metrics: &crate::metrics::Metrics,
) -> Vec<Bytes> {
    let split = match list::split(&body, encoding) {
        Ok(split) => split,
        Err(error) => {
            metrics.filters().unreadable();
            tracing::debug!(%error, "a list cannot be filtered; it is shown as it is");
            return vec![body];
        }
    };
    let mut changed = false;
    let mut items = Vec::with_capacity(split.items.len());
    for item in split.items {
        match chain.filter(&item, metrics) {
            Outcome::Kept => items.push(item),
            Outcome::Changed(item) => {
                changed = true;
                items.push(item);
            }
            Outcome::Dropped => changed = true,
        }
    }
    if !changed {
        return vec![body];
    }
    let head = ListHead {
        gvk: split.gvk,
        resource_version: split.resource_version,
        continue_token: split.continue_token,
        remaining: split.remaining,
    };
    list::join(&head, encoding, &items).unwrap_or_else(|error| {
        metrics.filters().unreadable();
        tracing::warn!(%error, "a filtered list cannot be put together; it is shown as it was");
        vec![body]
    })
}

fn inflate(body: &Bytes, most: usize) -> Option<Bytes> {
    let mut inflated = Vec::new();
    flate2::read::MultiGzDecoder::new(&body[..])
        .take(most as u64 + 1)
        .read_to_end(&mut inflated)
        .ok()?;
    (inflated.len() <= most).then(|| inflated.into())
}

/// The bytes of answers held for filters, all together, are at their bound.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("too many answers are filtered on this node at one time")]
struct Busy;

/// Bytes reserved from the bound on all answers that are held; given back on drop.
#[derive(Debug)]
struct Reserved {
    held: Arc<AtomicUsize>,
    bytes: usize,
}

impl Reserved {
    fn new(held: Arc<AtomicUsize>) -> Self {
        Self { held, bytes: 0 }
    }

    fn grow(&mut self, bytes: usize, most: usize) -> Result<(), Busy> {
        self.held
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |held| {
                held.checked_add(bytes).filter(|sum| *sum <= most)
            })
            .map_err(|_| Busy)?;
        self.bytes += bytes;
        Ok(())
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.held.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// A body whose bytes are reserved as they come.
struct Reserving<'a> {
    body: Body,
    reserved: &'a mut Reserved,
    most: usize,
}

impl http_body::Body for Reserving<'_> {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, BoxError>>> {
        let polled = std::task::ready!(Pin::new(&mut self.body).poll_frame(context));
        let most = self.most;
        Poll::Ready(match polled {
            Some(Ok(frame)) => {
                let len = frame.data_ref().map_or(0, Bytes::len);
                Some(match self.reserved.grow(len, most) {
                    Ok(()) => Ok(frame),
                    Err(busy) => Err(busy.into()),
                })
            }
            ended => ended,
        })
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }
}

/// A filtered answer, reserved until the client has it.
struct Held {
    body: Body,
    _reserved: Reserved,
}

impl http_body::Body for Held {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, BoxError>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }
}
