//! Watches. A client's watch is a stream of the hub: while the link is up its frames are the cloud's own bytes; when the link goes
//! the same stream stays open and carries local changes; when it is back the upstream watch is resumed at the last revision seen.
//! The client sees no end of stream and no relist, unless the cloud itself says so.

pub mod cursor;

use crate::{
    cache::WatchLearner,
    caller::Caller,
    deadline,
    metrics::{Held, InFlight, Unlearned},
    offline::LocalWatch,
    proxy::{Hub, SETTLE},
    query::Query,
    route::Mode,
    upstream::{Outgoing, OutgoingBody, Server},
};
use bytes::Bytes;
use cursor::{Cursor, Resume, resumed_query};
use http::{HeaderMap, Method, Response, StatusCode, Uri, header, request::Parts};
use http_body_util::BodyExt;
use std::{collections::VecDeque, sync::Arc, time::Duration};
use tokio::{sync::mpsc, time::Instant};
use yurt_transport::{Body, BoxError, ResponseBody};
use yurt_wire::{
    Encoding, Object, Reason, RequestInfo, Status,
    request::ListOptions,
    watch::{self, Event, EventType, FrameDecoder},
};

/// Frames that may wait for the client.
const QUEUE: usize = 32;
/// How long the cloud may be late in ending a watch whose time is over.
const OVERTIME: Duration = Duration::from_secs(10);
/// Pauses between attempts to resume while the link is up.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(3);
/// Silence on a stream, with other signs of life from its server, after which initial events count as complete.
const QUIET: Duration = Duration::from_secs(1);

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
    if hub.mode() == Mode::Online
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
        return hub.pass(response, server, None, watched.in_flight);
    };
    let (mut head, body) = response.into_parts();
    crate::identity::strip_hop_by_hop(&mut head.headers, false);
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
        self.learner = self.watched.query.as_ref().map(|query| {
            self.hub
                .cache
                .watch_learner(&self.watched.caller, query, since, initial_events)
        });
    }

    async fn relay_cloud(&mut self, mut body: ResponseBody, server: Arc<Server>) -> Next {
        let mut frames = Frames::new(self.encoding, self.hub.bounds.watch_frame);
        let overtime = self.deadline.map(|deadline| deadline + OVERTIME);
        let mut last = std::time::Instant::now();
        loop {
            let data = tokio::select! {
                frame = body.frame() => match frame {
                    Some(Ok(frame)) => match frame.into_data() {
                        Ok(data) => data,
                        Err(_) => continue,
                    },
                    Some(Err(error)) => {
                        tracing::debug!(path = %self.watched.info.path, %error, "upstream watch broke");
                        server.suspect();
                        return Next::Lost;
                    }
                    None => {
                        if let Some(raw) = frames.finish()
                            && let Err(next) = self.deliver(raw).await
                        {
                            return next;
                        }
                        return Next::End;
                    }
                },
                () = self.client.closed() => return Next::End,
                () = self.hub.shutdown.cancelled() => return Next::End,
                () = server.went_down() => return Next::Lost,
                () = until(overtime) => return Next::End,
                () = tokio::time::sleep(QUIET), if self.cursor.unsettled() => {
                    if server.heard_since(last + QUIET / 4) {
                        self.cursor.settle();
                    }
                    continue;
                }
            };
            server.heard();
            last = std::time::Instant::now();
            frames.push(data);
            loop {
                match frames.next() {
                    Ok(Some(frame)) => {
                        match &frame.event {
                            Ok(event) => self.saw(event),
                            Err(error) => self.not_understood(&error.to_string()),
                        }
                        if let Err(next) = self.deliver(frame.raw).await {
                            return next;
                        }
                    }
                    Ok(None) => break,
                    Err(Unfollowable { rest, error }) => {
                        self.not_understood(&error);
                        return self.pass_blindly(rest, body, &server).await;
                    }
                }
            }
        }
    }

    /// Frames cannot be told apart any more: what comes is passed on as it is, until the stream ends or breaks.
    async fn pass_blindly(
        &mut self,
        rest: VecDeque<Bytes>,
        mut body: ResponseBody,
        server: &Server,
    ) -> Next {
        self.over = true;
        for chunk in rest {
            if let Err(next) = self.deliver(chunk).await {
                return next;
            }
        }
        loop {
            let chunk = tokio::select! {
                frame = body.frame() => frame,
                () = self.client.closed() => return Next::End,
                () = self.hub.shutdown.cancelled() => return Next::End,
            };
            match chunk {
                Some(Ok(frame)) => {
                    server.heard();
                    if let Ok(data) = frame.into_data()
                        && let Err(next) = self.deliver(data).await
                    {
                        return next;
                    }
                }
                Some(Err(_)) => return Next::Break("the upstream watch broke"),
                None => return Next::End,
            }
        }
    }

    fn not_understood(&mut self, error: &str) {
        // What follows would build on a gap.
        self.learner = None;
        self.hub.metrics.unlearned(Unlearned::Undecodable);
        tracing::warn!(path = %self.watched.info.path, error, "an event of the cloud is malformed; passed on, not cached");
    }

    fn saw(&mut self, event: &Event) {
        if event.kind == EventType::Error {
            self.over = true;
        }
        let (revision, end) = match event.object.meta() {
            Ok(meta) if !meta.resource_version.is_empty() => {
                let end = meta
                    .annotations
                    .iter()
                    .any(|(name, value)| name == watch::INITIAL_EVENTS_END && value == "true");
                (meta.resource_version, end)
            }
            Ok(_) | Err(_) => (row_revision(&event.object), false),
        };
        let end = end
            || (event.kind == EventType::Bookmark && self.watched.view && marks_end(&event.object));
        self.cursor.saw(event.kind, &revision, end);
        if let Some(learner) = &mut self.learner {
            learner.event(event);
        }
    }

    async fn relay_node(&mut self, mut local: Box<LocalWatch>) -> Next {
        let _local = Held::new(self.hub.metrics.watches_local());
        let mut mode = self.hub.modes();
        let deadline = self.local_deadline();
        loop {
            let frame = tokio::select! {
                biased;
                frame = local.next() => frame,
                () = self.client.closed() => return Next::End,
                () = self.hub.shutdown.cancelled() => return Next::End,
                () = until(deadline) => return Next::End,
                _ = mode.wait_for(|mode| *mode == Mode::Online) => {
                    // What was to be told before the link came back has been told: `biased` asked the node first.
                    if self.opened_locally {
                        self.opened_locally = false;
                        self.cursor = Cursor::at(&local.last_revision());
                    }
                    return Next::Back;
                }
            };
            let Some(frame) = frame else {
                return Next::End;
            };
            // A bookmark of the node may be ahead of what this stream was told by the cloud, or behind it; the client must
            // hold the one revision whose events it has.
            if !self.opened_locally
                && let Some(revision) = &frame.resource_version
                && !self.cursor.is_at(revision)
            {
                continue;
            }
            if let Err(next) = self.deliver(frame.bytes).await {
                return next;
            }
        }
    }

    async fn stay_open(&mut self) -> Next {
        let _local = Held::new(self.hub.metrics.watches_local());
        let mut mode = self.hub.modes();
        let deadline = self.local_deadline();
        tokio::select! {
            _ = mode.wait_for(|mode| *mode == Mode::Online) => Next::Back,
            () = self.client.closed() => Next::End,
            () = self.hub.shutdown.cancelled() => Next::End,
            () = until(deadline) => Next::End,
        }
    }

    /// A watch that names no length gets one when the node serves it, as from an API server.
    fn local_deadline(&mut self) -> Option<Instant> {
        let least = self.hub.min_request_timeout;
        let deadline = *self
            .deadline
            .get_or_insert_with(|| Instant::now() + least.mul_f64(1.0 + fastrand::f64()));
        Some(deadline)
    }

    /// Finds the next source: the cloud when it is there, the node otherwise.
    async fn go_on(&mut self) -> Result<Source, Next> {
        let mut pause = FIRST_PAUSE;
        loop {
            if self.hub.mode() == Mode::Offline {
                self.hub.metrics.local("watch");
                let local = self.local_changes();
                return Ok(match local {
                    Ok(local)
                        if Encoding::from_content_type(local.content_type())
                            == Some(self.encoding) =>
                    {
                        Source::Node(Box::new(local))
                    }
                    Ok(_) => Source::Nothing,
                    Err(status) => {
                        tracing::debug!(path = %self.watched.info.path, %status, "no local changes for this watch");
                        Source::Nothing
                    }
                });
            }
            let client = self.client.clone();
            let shutdown = self.hub.shutdown.clone();
            let deadline = self.deadline;
            let again = tokio::select! {
                again = self.ask_again() => again,
                () = client.closed() => return Err(Next::End),
                () = shutdown.cancelled() => return Err(Next::End),
                () = until(deadline) => return Err(Next::End),
            };
            match again {
                Again::Source(source) => return Ok(source),
                Again::End(next) => return Err(next),
                Again::Later => {}
            }
            let mut mode = self.hub.modes();
            tokio::select! {
                () = tokio::time::sleep(pause.mul_f64(0.5 + fastrand::f64())) => {}
                _ = mode.wait_for(|mode| *mode == Mode::Offline) => {}
                () = client.closed() => return Err(Next::End),
                () = shutdown.cancelled() => return Err(Next::End),
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// What the node can tell on top of what the client has. With what it wrote since, because a write may have come between
    /// the loss of the link and now; where the cache cannot tell that, from now on.
    fn local_changes(&self) -> Result<LocalWatch, Box<Status>> {
        let (offline, watched) = (&self.hub.offline, &self.watched);
        let resume = self.cursor.resume();
        if let (Resume::At(_), false) = (&resume, watched.view) {
            let mut info = watched.info.clone();
            info.query = resumed_query(&info.query, &resume, None);
            let since = offline.watch(&watched.caller, &info, &watched.parts);
            if since.is_ok() {
                return since;
            }
        }
        LocalWatch::follow(offline, &watched.caller, &watched.info, &watched.parts)
    }

    /// Asks the cloud to go on where the client is.
    async fn ask_again(&mut self) -> Again {
        let resume = self.cursor.resume();
        if resume == Resume::Impossible {
            return Again::End(Next::Break("the watch cannot be resumed"));
        }
        let left = self
            .deadline
            .map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let query = resumed_query(&self.watched.info.query, &resume, left);
        let sent = self
            .hub
            .upstreams
            .send(&self.watched.caller, self.watched.outgoing(&query))
            .await;
        let (response, server) = match sent {
            Ok(answer) => answer,
            Err(error) => {
                tracing::debug!(path = %self.watched.info.path, %error, "watch not resumed yet");
                return Again::Later;
            }
        };
        let status = response.status();
        if status == StatusCode::TOO_MANY_REQUESTS || status.is_server_error() {
            return Again::Later;
        }
        if status != StatusCode::OK {
            return Again::End(self.refused(response).await);
        }
        if watch_encoding(&response) != Some(self.encoding) {
            return Again::End(Next::Break(
                "the cloud answers in another encoding than before",
            ));
        }
        self.hub.metrics.watches_resumed().inc();
        tracing::debug!(path = %self.watched.info.path, ?resume, server = server.authority(), "watch resumed");
        match &resume {
            Resume::At(revision) => self.learn_from(&revision.clone(), false),
            _ => {
                let options = &self.watched.options;
                let (since, initial) = (
                    options.resource_version.clone(),
                    options.send_initial_events == Some(true),
                );
                self.learn_from(&since, initial);
            }
        }
        Again::Source(Source::Cloud(response.into_body(), server))
    }

    /// The cloud will not go on (410, 403, ...): the client hears it in the stream, as it would from an API server.
    async fn refused(&mut self, response: Response<ResponseBody>) -> Next {
        const MOST: usize = 64 << 10;
        let code = response.status();
        let same_encoding = response
            .headers()
            .get(header::CONTENT_TYPE)
            .and_then(|value| value.to_str().ok())
            .and_then(Encoding::from_content_type)
            == Some(self.encoding);
        let body = yurt_transport::collect(response.into_body(), MOST)
            .await
            .unwrap_or_default();
        let told = Object {
            encoding: self.encoding,
            bytes: body,
        };
        let object = if same_encoding && told.meta().is_ok_and(|meta| meta.gvk.kind == "Status") {
            told
        } else {
            let reason = match code {
                StatusCode::GONE => Reason::Expired,
                StatusCode::FORBIDDEN => Reason::Forbidden,
                StatusCode::UNAUTHORIZED => Reason::Unauthorized,
                StatusCode::NOT_FOUND => Reason::NotFound,
                _ => Reason::BadRequest,
            };
            let status = Status::new(reason, format!("the watch could not be resumed: {code}"));
            Object {
                encoding: self.encoding,
                bytes: status.to_bytes(self.encoding),
            }
        };
        let frame = watch::encode(EventType::Error, &object, self.encoding);
        match self.deliver(frame).await {
            Ok(()) => Next::End,
            Err(next) => next,
        }
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

enum Again {
    Source(Source),
    End(Next),
    Later,
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// A frame decoder that can give back what it swallowed when it fails, so that the client still gets every byte.
struct Frames {
    decoder: FrameDecoder,
    /// What came and is not yet part of a delivered frame.
    held: VecDeque<Bytes>,
}

/// The stream cannot be cut into frames any more.
struct Unfollowable {
    /// What came and was not delivered.
    rest: VecDeque<Bytes>,
    error: String,
}

impl Frames {
    fn new(encoding: Encoding, most: usize) -> Self {
        Self {
            decoder: FrameDecoder::new(encoding, most),
            held: VecDeque::new(),
        }
    }

    fn push(&mut self, chunk: Bytes) {
        self.held.push_back(chunk.clone());
        self.decoder.push(chunk);
    }

    fn next(&mut self) -> Result<Option<watch::Frame>, Unfollowable> {
        match self.decoder.next_frame() {
            Ok(Some(frame)) => {
                self.release(frame.raw.len());
                Ok(Some(frame))
            }
            Ok(None) => {
                if self.decoder.pending() == 0 {
                    self.held.clear();
                }
                Ok(None)
            }
            Err(error) => Err(Unfollowable {
                rest: std::mem::take(&mut self.held),
                error: error.to_string(),
            }),
        }
    }

    fn release(&mut self, mut bytes: usize) {
        while let Some(first) = self.held.front_mut() {
            if first.len() > bytes {
                bytes::Buf::advance(first, bytes);
                return;
            }
            bytes -= first.len();
            self.held.pop_front();
        }
    }

    /// At the end of the stream: what is left, an unfinished frame included.
    fn finish(&mut self) -> Option<Bytes> {
        if let Some(frame) = self.decoder.finish() {
            return Some(frame.raw);
        }
        let mut rest = Vec::new();
        for chunk in std::mem::take(&mut self.held) {
            rest.extend_from_slice(&chunk);
        }
        (!rest.is_empty()).then(|| rest.into())
    }
}

/// The revision of a Table without one in its own metadata: that of its first row.
fn row_revision(object: &Object) -> String {
    #[derive(serde::Deserialize)]
    struct Table {
        rows: Option<Vec<Row>>,
    }
    #[derive(serde::Deserialize)]
    struct Row {
        object: Option<RowObject>,
    }
    #[derive(serde::Deserialize)]
    struct RowObject {
        metadata: Option<RowMeta>,
    }
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct RowMeta {
        resource_version: Option<String>,
    }
    if object.encoding != Encoding::Json {
        return String::new();
    }
    serde_json::from_slice::<Table>(&object.bytes)
        .ok()
        .and_then(|table| {
            table
                .rows?
                .into_iter()
                .next()?
                .object?
                .metadata?
                .resource_version
        })
        .unwrap_or_default()
}

/// Whether a bookmark in the form of a Table carries the end of the initial events in its row.
fn marks_end(object: &Object) -> bool {
    let marker = watch::INITIAL_EVENTS_END.as_bytes();
    object
        .bytes
        .windows(marker.len())
        .any(|window| window == marker)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tables_revision() {
        let table = |text: &'static str| Object {
            encoding: Encoding::Json,
            bytes: Bytes::from_static(text.as_bytes()),
        };
        let rows = table(
            r#"{"kind":"Table","apiVersion":"meta.k8s.io/v1","metadata":{},"rows":[{"cells":["a"],"object":{"kind":"PartialObjectMetadata","metadata":{"name":"a","resourceVersion":"77"}}}]}"#,
        );
        assert_eq!(row_revision(&rows), "77");
        assert_eq!(row_revision(&table(r#"{"rows":[]}"#)), "");
        assert_eq!(row_revision(&table("nonsense")), "");
        assert!(marks_end(&table(
            r#"{"annotations":{"k8s.io/initial-events-end":"true"}}"#
        )));
        assert!(!marks_end(&rows));
    }

    #[test]
    fn nothing_is_swallowed_when_frames_cannot_be_followed() {
        let mut frames = Frames::new(Encoding::Json, 1 << 20);
        frames.push(Bytes::from_static(
            b"{\"type\":\"BOOKMARK\",\"object\":{}}\n{\"ty",
        ));
        assert!(matches!(frames.next(), Ok(Some(_))));
        assert!(matches!(frames.next(), Ok(None)));
        frames.push(Bytes::from_static(
            b"pe\":\"BOOKMARK\",\"object\":{}}\n]]]garbage",
        ));
        assert!(matches!(frames.next(), Ok(Some(_))));
        let Err(Unfollowable { rest, .. }) = frames.next() else {
            panic!("garbage was followed")
        };
        let rest: Vec<u8> = rest.iter().flat_map(|chunk| chunk.to_vec()).collect();
        assert_eq!(rest, b"]]]garbage");
    }
}
