//! Watches. A client's watch is a stream of the hub: while the link is up its frames are the cloud's own bytes (`cloud`); when
//! the link goes the same stream stays open and carries local changes (`node`); when it is back the upstream watch is resumed at
//! the last revision seen (`resume`, `cursor`). The client sees no end of stream and no relist, unless the cloud itself says so.

mod cloud;
mod correction;
pub mod cursor;
mod frames;
#[cfg(test)]
mod model_test;
mod node;
mod resume;

use crate::{
    cache::{Asked, WatchLearner},
    caller::Caller,
    deadline,
    metrics::{Held, InFlight},
    offline::LocalWatch,
    proxy::{Hub, SETTLE},
    query::Query,
    route::Mode,
    upstream::{Outgoing, OutgoingBody, Server},
};
use bytes::Bytes;
use correction::Corrector;
use cursor::{Cursor, Resume};
use http::{HeaderMap, Method, Response, StatusCode, Uri, header, request::Parts};
use std::{sync::Arc, time::Duration};
use tokio::{sync::mpsc, time::Instant};
use yurt_transport::{Body, BoxError, ResponseBody};
use yurt_wire::{Encoding, Reason, RequestInfo, Status, request::ListOptions};

/// Frames that may wait for the client.
const QUEUE: usize = 32;

/// A watch as a client asked for it.
#[derive(Debug)]
pub struct Watched {
    /// Who.
    pub caller: Caller,
    /// What.
    pub info: RequestInfo,
    /// The request as it came.
    pub parts: Parts,
    /// Headers for the cloud.
    pub headers: HeaderMap,
    /// Its options.
    pub options: ListOptions,
    /// What the cache learns from it; `None` when its events are no objects of the resource.
    pub query: Option<Query>,
    /// Before the cloud was asked.
    pub asked: Asked,
    /// Whether its events are views (Table, partial metadata) whose objects are to be kept fresh beside it.
    pub view: bool,
    /// Its place among the requests under way.
    pub in_flight: InFlight,
}

/// Where the events come from.
enum Source {
    Cloud(ResponseBody, Arc<Server>),
    Node(Box<LocalWatch>),
    /// The node cannot tell of local changes; the stream just stays open.
    Nothing,
}

/// Why a source gave no more events.
enum Next {
    /// The client's stream ends here, cleanly.
    End,
    /// The client's stream cannot go on: it must see it broken, to start anew.
    Break(&'static str),
    /// The cloud was lost.
    Lost,
    /// The cloud is back.
    Back,
}

/// Serves a watch.
pub async fn serve(hub: &Arc<Hub>, watched: Watched) -> Result<Response<Body>, Box<Status>> {
    if hub.mode_of(&watched.caller) == Mode::Online
        && let Some((response, server)) = ask(hub, &watched).await
    {
        return Ok(open_in_cloud(hub, watched, response, server));
    }
    let status = match hub
        .offline
        .watch(&watched.caller, &watched.info, &watched.parts)
    {
        Ok(local) => return open_locally(hub, watched, local),
        Err(status) => status,
    };
    // The hub just started, and the node does not know enough: the cloud may be there in a moment.
    if hub.upstreams.starting() {
        hub.upstreams.settled(SETTLE).await;
    }
    if hub.upstreams.first_contact()
        && let Some((response, server)) = ask(hub, &watched).await
    {
        return Ok(open_in_cloud(hub, watched, response, server));
    }
    Err(status)
}

async fn ask(hub: &Hub, watched: &Watched) -> Option<(Response<ResponseBody>, Arc<Server>)> {
    let outgoing = watched.outgoing(&watched.info.query);
    match hub.upstreams.send(&watched.caller, outgoing).await {
        Ok(answer) => Some(answer),
        Err(error) => {
            tracing::debug!(path = %watched.info.path, %error, "watch not opened in the cloud");
            None
        }
    }
}

fn open_in_cloud(
    hub: &Arc<Hub>,
    watched: Watched,
    response: Response<ResponseBody>,
    server: Arc<Server>,
) -> Response<Body> {
    hub.learn_acceptance(
        &watched.caller,
        response.status(),
        &watched.info,
        &watched.headers,
    );
    let Some(encoding) = watch_encoding(&response) else {
        return hub.pass(response, server, None, watched.in_flight, None);
    };
    let (mut head, body) = response.into_parts();
    yurt_transport::strip_hop_by_hop(&mut head.headers, false);
    head.headers.remove(header::CONTENT_LENGTH);
    head.version = http::Version::HTTP_11;
    let cursor = Cursor::new(&watched.options);
    let stream = Relay::start(hub, watched, encoding, cursor, Source::Cloud(body, server));
    Response::from_parts(head, stream)
}

fn open_locally(
    hub: &Arc<Hub>,
    watched: Watched,
    local: LocalWatch,
) -> Result<Response<Body>, Box<Status>> {
    hub.metrics.local("watch");
    let content_type = local.content_type().to_owned();
    let Some(encoding) = Encoding::from_content_type(&content_type) else {
        return Err(Box::new(Status::new(
            Reason::InternalError,
            format!("a local watch in {content_type} cannot be relayed"),
        )));
    };
    // Overwritten by the local watch's own revision when the cloud is back.
    let cursor = Cursor::new(&watched.options);
    let source = Source::Node(Box::new(local));
    let mut response = Response::new(Relay::start(hub, watched, encoding, cursor, source));
    if let Ok(value) = content_type.parse() {
        response.headers_mut().insert(header::CONTENT_TYPE, value);
    }
    response.headers_mut().insert(
        header::CACHE_CONTROL,
        http::HeaderValue::from_static("no-cache, private"),
    );
    Ok(response)
}

/// The encoding of a watch whose frames can be followed; `None` for refusals and for what only can be passed on.
fn watch_encoding<B>(response: &Response<B>) -> Option<Encoding> {
    if response.status() != StatusCode::OK
        || response.headers().contains_key(header::CONTENT_ENCODING)
    {
        return None;
    }
    let content_type = response
        .headers()
        .get(header::CONTENT_TYPE)?
        .to_str()
        .ok()?;
    Encoding::from_content_type(content_type)
}

impl Watched {
    fn outgoing(&self, query: &str) -> Outgoing {
        let target = format!("{}?{query}", self.info.path);
        Outgoing {
            method: Method::GET,
            uri: target.parse().unwrap_or_else(|_| Uri::from_static("/")),
            headers: self.headers.clone(),
            body: OutgoingBody::Held(Bytes::new()),
            wait: deadline::head_wait(&self.info),
            safe: true,
        }
    }
}

struct Relay {
    hub: Arc<Hub>,
    watched: Watched,
    encoding: Encoding,
    client: mpsc::Sender<Result<Bytes, BoxError>>,
    cursor: Cursor,
    /// When the client wants the stream to end.
    deadline: Option<Instant>,
    learner: Option<WatchLearner>,
    /// The stream told an ERROR: it is over whatever happens to the link.
    over: bool,
    /// Whether the source is the one that the client's first events came from, opened while offline.
    opened_locally: bool,
    corrector: Corrector,
}

impl Relay {
    fn start(
        hub: &Arc<Hub>,
        watched: Watched,
        encoding: Encoding,
        cursor: Cursor,
        source: Source,
    ) -> Body {
        let (client, body) = yurt_transport::channel(QUEUE);
        let deadline = watched
            .options
            .timeout_seconds
            .filter(|seconds| *seconds > 0)
            .map(|seconds| Instant::now() + Duration::from_secs(seconds.min(7 * 24 * 3600)));
        let mut relay = Self {
            hub: hub.clone(),
            encoding,
            client,
            cursor,
            deadline,
            learner: None,
            over: false,
            opened_locally: matches!(source, Source::Node(_)),
            corrector: Corrector::new(watched.info.gvr()),
            watched,
        };
        if matches!(source, Source::Cloud(..)) {
            let options = &relay.watched.options;
            let (since, initial) = (
                options.resource_version.clone(),
                options.send_initial_events == Some(true),
            );
            relay.learn_from(&since, initial);
        }
        hub.tasks.spawn(relay.run(source));
        body
    }

    async fn run(mut self, mut source: Source) {
        let _watch = Held::new(self.hub.metrics.watches());
        // Kept fresh as long as somebody looks at them.
        let _objects = self.watched.view.then(|| {
            self.hub.backing.watch(
                &self.watched.caller,
                &self.watched.info,
                &self.watched.headers,
            )
        });
        loop {
            let next = match source {
                Source::Cloud(body, server) => self.relay_cloud(body, server).await,
                Source::Node(local) => self.relay_node(local).await,
                Source::Nothing => self.stay_open().await,
            };
            let next = match next {
                Next::Lost if self.over => Next::End,
                Next::Lost if self.cursor.resume() == Resume::Impossible => {
                    Next::Break("the link went down within the initial events")
                }
                next => next,
            };
            source = match next {
                Next::End => return,
                Next::Break(why) => return self.break_off(why).await,
                Next::Lost | Next::Back => match self.go_on().await {
                    Ok(source) => source,
                    Err(Next::Break(why)) => return self.break_off(why).await,
                    Err(_) => return,
                },
            };
        }
    }

    /// Lets the client see a broken stream. Dropping the channel alone would look like a regular end.
    async fn break_off(self, why: &'static str) {
        tracing::debug!(path = %self.watched.info.path, why, "watch broken off");
        let stalled = self.hub.bounds.stalled_client;
        // A client that takes nothing sees its stream end when it does.
        let _ = tokio::time::timeout(stalled, self.client.send(Err(why.into()))).await;
    }

    fn learn_from(&mut self, since: &str, initial_events: bool) {
        let Watched {
            query,
            caller,
            asked,
            ..
        } = &self.watched;
        self.learner = query.as_ref().map(|query| {
            let cache = &self.hub.cache;
            let learner = cache.watch_learner(caller, query, since, initial_events);
            learner.since_asked(*asked)
        });
    }

    /// Gives a chunk to the client; one that takes nothing for too long is cut.
    async fn deliver(&mut self, bytes: Bytes) -> Result<(), Next> {
        let size = bytes.len();
        match tokio::time::timeout(self.hub.bounds.stalled_client, self.client.send(Ok(bytes)))
            .await
        {
            Ok(Ok(())) => {
                self.watched.in_flight.sent(size);
                Ok(())
            }
            Ok(Err(_)) => Err(Next::End),
            Err(_) => {
                self.hub.metrics.watches_cut().inc();
                tracing::warn!(path = %self.watched.info.path, "watch cut: its client takes nothing any more");
                Err(Next::End)
            }
        }
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
