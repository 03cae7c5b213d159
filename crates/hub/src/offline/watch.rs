//! Watches served by the node: initial events from the cache, then what changes on the node (design rule R3), and what the pool's
//! feed of the resource tells, if there is one (`following`).

mod following;

use super::{
    Offline,
    represent::{Wanted, malformed},
};
use crate::{
    cache::{Cache, LocalChange, Selection, Sight},
    caller::Caller,
    pool::share::Feed,
    query::Query,
};
use bytes::Bytes;
use following::Following;
use serde_json::json;
use std::{collections::VecDeque, sync::Arc, time::Duration};
use tokio::{
    sync::broadcast::{Receiver, error::RecvError},
    time::Instant,
};
use yurt_wire::{
    Encoding, Gvk, Object, RequestInfo, Status,
    media::Shape,
    object::Malformed,
    request::ListOptions,
    watch::{EventType, bookmark, encode},
};

/// How often a bookmark is sent, as kube-apiserver does.
const BOOKMARK_EVERY: Duration = Duration::from_secs(60);
/// The same for other nodes, which tell by it how far they are and that this node lives.
const BOOKMARK_PEERS_EVERY: Duration = Duration::from_secs(10);
/// The first one for other nodes.
const FIRST_BOOKMARK: Duration = Duration::from_millis(500);
/// A watch that names no length ends after once to twice this, as from kube-apiserver (`--min-request-timeout`).
const MIN_LENGTH: Duration = Duration::from_secs(1800);

/// One frame of a local watch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalFrame {
    /// The frame as it goes to the client.
    pub bytes: Bytes,
    /// The revision the client knows after it; `None` when it moves nothing on (a local change, an error).
    pub resource_version: Option<String>,
}

/// What is to be told before the changes.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Initial {
    /// An object, if it belongs to the query when its turn comes.
    Object(EventType, Box<str>),
    /// Something that went since the client's revision.
    Deleted(Box<str>, u64),
    /// The annotated bookmark.
    End,
}

/// A client's watch, served from the node.
pub struct LocalWatch {
    cache: Cache,
    query: Query,
    sight: Sight,
    wanted: Wanted,
    gvk: Gvk,
    encoding: Encoding,
    /// `None` for who is shown nothing but the cloud's state.
    changes: Option<Receiver<LocalChange>>,
    /// `None` when nothing is told of what happens in the cloud.
    following: Option<Following>,
    initial: VecDeque<Initial>,
    revision: u64,
    bookmarks: bool,
    bookmark_every: Duration,
    next_bookmark: Instant,
    deadline: Instant,
    columns_sent: bool,
    ended: bool,
    /// What the cache had lost before the initial events were chosen.
    damage: u64,
}

impl std::fmt::Debug for LocalWatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LocalWatch")
            .field("query", &self.query)
            .field("revision", &self.revision)
            .finish_non_exhaustive()
    }
}

/// How a change shows in a watch with selectors.
pub(crate) fn transition(was: bool, is: bool) -> Option<EventType> {
    match (was, is) {
        (false, true) => Some(EventType::Added),
        (true, true) => Some(EventType::Modified),
        (true, false) => Some(EventType::Deleted),
        (false, false) => None,
    }
}

/// Where a watch begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Start {
    /// With the state as ADDED events; the end is marked when `marked`.
    State { marked: bool },
    /// With what changed after a revision.
    After(u64),
    /// With what changes from now on.
    Now,
}

/// Reads the options as kube-apiserver does.
fn start(options: &ListOptions) -> Result<Start, Box<Status>> {
    let revision = match options.resource_version.as_str() {
        "" | "0" => None,
        text => Some(text.parse::<u64>().map_err(|_| {
            Box::new(Status::bad_request(format!(
                "Invalid value: {text:?}: resourceVersion is not a number"
            )))
        })?),
    };
    Ok(match (options.send_initial_events, revision) {
        (Some(true), _) => Start::State { marked: true },
        (_, Some(revision)) => Start::After(revision),
        (Some(false), None) => Start::Now,
        (None, None) => Start::State { marked: false },
    })
}

impl LocalWatch {
    /// A watch that begins as the request asks, and tells what changes on the node.
    pub(crate) fn open(
        offline: &Offline,
        caller: &Caller,
        info: &RequestInfo,
        headers: &http::HeaderMap,
    ) -> Result<Self, Box<Status>> {
        Self::begin(offline, caller, info, headers, None)
    }

    /// As [`LocalWatch::open`]; tells what the pool's feed of the resource tells, too.
    pub(crate) fn open_shared(
        offline: &Offline,
        caller: &Caller,
        info: &RequestInfo,
        headers: &http::HeaderMap,
        feed: &Arc<Feed>,
    ) -> Result<Self, Box<Status>> {
        Self::begin(offline, caller, info, headers, Some(feed))
    }

    fn begin(
        offline: &Offline,
        caller: &Caller,
        info: &RequestInfo,
        headers: &http::HeaderMap,
        feed: Option<&Arc<Feed>>,
    ) -> Result<Self, Box<Status>> {
        offline.check_caller(caller, headers)?;
        let options = info.list_options()?;
        let wanted = Wanted::of(headers, info)?;
        let query = Query::of_request(info, &options);
        // Before the state is looked at: a change in between is told twice rather than never.
        let changes = offline.cache.changes();
        let damage = offline.cache.damage();
        let selection = offline
            .cache
            .select(caller, &query)
            .map_err(|uncovered| offline.list_miss(&query, uncovered))?;
        let start = start(&options)?;
        let (revision, following) = match (feed, start) {
            (Some(feed), Start::After(revision)) => {
                (revision, Some(Following::new(feed, revision)?))
            }
            (Some(feed), Start::State { .. } | Start::Now) => {
                let revision = selection.revision;
                (revision, Some(Following::new(feed, revision)?))
            }
            (None, _) => (selection.revision, None),
        };
        let initial = match (&following, start) {
            (Some(_), Start::After(_)) => VecDeque::new(),
            _ => initial_events(&offline.cache, &query, &selection, start)?,
        };
        let mut watch = Self::new(
            offline,
            query,
            wanted,
            &options,
            selection.gvk,
            revision,
            changes,
            initial,
        );
        watch.damage = damage;
        watch.following = following;
        watch.sight = selection.sight;
        if watch.sight == Sight::Cloud {
            watch.changes = None;
            watch.bookmark_every = BOOKMARK_PEERS_EVERY;
            watch.next_bookmark = Instant::now() + FIRST_BOOKMARK;
        }
        Ok(watch)
    }

    /// Only local changes from now on, for a stream whose state the client has already.
    pub fn follow(
        offline: &Offline,
        caller: &Caller,
        info: &RequestInfo,
        parts: &http::request::Parts,
    ) -> Result<Self, Box<Status>> {
        offline.check_caller(caller, &parts.headers)?;
        let options = info.list_options()?;
        let wanted = Wanted::of(&parts.headers, info)?;
        let query = Query::of_request(info, &options);
        let changes = offline.cache.changes();
        // The stream was opened by the cloud: the caller may see it. The revision only matters for bookmarks.
        let selection = offline.cache.select(caller, &query).ok();
        let (gvk, revision) = match selection {
            Some(selection) => (selection.gvk, selection.revision),
            None => (offline.cache.gvk_of(&query.gvr), 0),
        };
        let mut watch = Self::new(
            offline,
            query,
            wanted,
            &options,
            gvk,
            revision,
            changes,
            VecDeque::new(),
        );
        // The client saw the first frame, with its columns, long ago.
        watch.columns_sent = true;
        Ok(watch)
    }

    /// Begins with what the node shows otherwise than the cloud, for a client that has the cloud's state and may not have been
    /// told.
    #[must_use]
    pub(crate) fn with_what_shows(mut self) -> Self {
        self.initial = changes(&self.cache, &self.query, u64::MAX);
        self
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "the one place where a watch is put together"
    )]
    fn new(
        offline: &Offline,
        query: Query,
        wanted: Wanted,
        options: &ListOptions,
        gvk: Gvk,
        revision: u64,
        changes: Receiver<LocalChange>,
        initial: VecDeque<Initial>,
    ) -> Self {
        let known = (!gvk.kind.is_empty()).then_some(&gvk);
        let encoding = wanted.encoding_for(known);
        let length = match options.timeout_seconds {
            Some(seconds) if seconds > 0 => Duration::from_secs(seconds.min(24 * 3600)),
            _ => MIN_LENGTH.mul_f64(1.0 + fastrand::f64()),
        };
        let now = Instant::now();
        Self {
            cache: offline.cache.clone(),
            query,
            sight: Sight::Node,
            wanted,
            gvk,
            encoding,
            changes: Some(changes),
            following: None,
            initial,
            revision,
            bookmarks: options.allow_watch_bookmarks,
            bookmark_every: BOOKMARK_EVERY,
            next_bookmark: now + BOOKMARK_EVERY,
            deadline: now + length,
            columns_sent: false,
            ended: false,
            damage: offline.cache.damage(),
        }
    }

    /// The content type of the stream.
    pub fn content_type(&self) -> &str {
        self.encoding.watch_content_type()
    }

    /// Where an upstream watch goes on: the revision up to which this one told everything.
    pub fn last_revision(&self) -> String {
        self.revision.to_string()
    }

    /// The next frame; `None` when the watch ends (its time is over, or the client fell too far behind and was told so).
    pub async fn next(&mut self) -> Option<LocalFrame> {
        loop {
            if self.ended {
                return None;
            }
            if let Some(initial) = self.initial.pop_front() {
                // The mark says that everything was told. When something could not be read, it was not.
                if matches!(initial, Initial::End) && self.cache.damage() != self.damage {
                    let status = Status::service_unavailable(
                        "some of the cached objects cannot be read back from the node's disk",
                    );
                    return Some(self.end_with(&status));
                }
                match self.tell_initial(&initial) {
                    Ok(Some(frame)) => return Some(frame),
                    Ok(None) => continue,
                    Err(error) => return Some(self.end_with(&malformed(&error))),
                }
            }
            let change = tokio::select! {
                biased;
                change = heard(&mut self.changes) => change,
                told = following::told(&mut self.following) => {
                    let Some(told) = told else {
                        let status = Status::expired(
                            "too old resource version: more happened than is held; list again",
                        );
                        return Some(self.end_with(&status));
                    };
                    match self.tell_told(&told) {
                        Ok(Some(frame)) => return Some(frame),
                        Ok(None) => continue,
                        Err(error) => return Some(self.end_with(&malformed(&error))),
                    }
                }
                () = tokio::time::sleep_until(self.deadline) => return None,
                () = tokio::time::sleep_until(self.next_bookmark), if self.bookmarks => {
                    self.next_bookmark = Instant::now() + self.bookmark_every;
                    // Everything there was to tell has been told: `biased` asked for it first. A client that came with a
                    // revision of the future keeps it; another node is to hear how far this one is.
                    match self.following.as_ref().and_then(Following::settled) {
                        Some(at) if at >= self.revision || self.sight == Sight::Cloud => {
                            self.revision = at;
                        }
                        Some(_) => continue,
                        None => {}
                    }
                    if self.revision == 0 {
                        continue;
                    }
                    return self.bookmark(false).ok();
                }
            };
            match change {
                Ok(change) => match self.tell_change(&change) {
                    Ok(Some(frame)) => return Some(frame),
                    Ok(None) => {}
                    Err(error) => return Some(self.end_with(&malformed(&error))),
                },
                Err(RecvError::Lagged(missed)) => {
                    let status = Status::expired(format!(
                        "{missed} changes on the node were missed; list again"
                    ));
                    return Some(self.end_with(&status));
                }
                Err(RecvError::Closed) => return None,
            }
        }
    }

    fn tell_initial(&mut self, initial: &Initial) -> Result<Option<LocalFrame>, Malformed> {
        match initial {
            Initial::Object(kind, key) => {
                let mut object = self.cache.read_selected(&self.query, key, self.sight);
                if let Some(following) = &mut self.following {
                    let revision = match &object {
                        Some(object) => object.key()?.revision(),
                        None => self.cache.revision_of(&self.query.gvr, key),
                    };
                    let instead = following.showed(key, object.is_some(), revision);
                    if let (Some(shown), Some(instead)) = (&mut object, instead) {
                        *shown = shown.with_resource_version(&instead.to_string())?;
                    }
                }
                let Some(object) = object else {
                    return Ok(None);
                };
                self.frame(*kind, &object).map(Some)
            }
            Initial::Deleted(key, revision) => {
                let (namespace, name) = key.split_once('/').unwrap_or(("", key));
                let mut object = json!({
                    "apiVersion": self.gvk.api_version(),
                    "kind": self.gvk.kind,
                    "metadata": {"name": name, "resourceVersion": revision.to_string()},
                });
                if !namespace.is_empty() {
                    object["metadata"]["namespace"] = namespace.into();
                }
                let object = Object::from_json_value(&object, Encoding::Json)?;
                self.frame(EventType::Deleted, &object).map(Some)
            }
            Initial::End => {
                if !self.bookmarks {
                    return Ok(None);
                }
                self.bookmark(true).map(Some)
            }
        }
    }

    fn tell_change(&mut self, change: &LocalChange) -> Result<Option<LocalFrame>, Malformed> {
        if change.gvr != self.query.gvr {
            return Ok(None);
        }
        let id = change.object.key()?;
        let belongs = |object: &Object| self.query.matches(&id.namespace, &id.name, object);
        let was = change.previous.as_ref().is_some_and(belongs);
        let is = change.kind != EventType::Deleted && belongs(&change.object);
        if self.gvk.kind.is_empty() {
            self.gvk = Gvk::from_api_version(&id.api_version, &id.kind);
        }
        let object = match (&change.previous, is) {
            (Some(previous), false) => previous,
            _ => &change.object,
        };
        match transition(was, is) {
            Some(kind) => {
                let mut frame = self.frame(kind, object)?;
                frame.resource_version = None;
                Ok(Some(frame))
            }
            None => Ok(None),
        }
    }

    /// The frame that tells a change to this watch's client; `None` when it does not see the object.
    pub(crate) fn tell(&mut self, change: &LocalChange) -> Option<Bytes> {
        match self.tell_change(change) {
            Ok(frame) => frame.map(|frame| frame.bytes),
            Err(error) => Some(self.end_with(&malformed(&error)).bytes),
        }
    }

    fn frame(&mut self, kind: EventType, object: &Object) -> Result<LocalFrame, Malformed> {
        let shown = match self.wanted.representation.shape {
            Shape::Table { .. } => {
                let head = json!({"resourceVersion": object.key()?.resource_version});
                let with_columns = !std::mem::replace(&mut self.columns_sent, true);
                let table = self.wanted.table(
                    &self.gvk,
                    &head,
                    std::slice::from_ref(object),
                    with_columns,
                    super::now(),
                )?;
                Object {
                    encoding: Encoding::Json,
                    bytes: table.to_string().into(),
                }
            }
            Shape::Full | Shape::PartialMetadata { .. } => {
                let shown = self.wanted.object(object, &self.gvk)?;
                shown.to_encoding(self.encoding)?
            }
        };
        Ok(LocalFrame {
            bytes: encode(kind, &shown, self.encoding),
            resource_version: None,
        })
    }

    fn bookmark(&self, initial_events_end: bool) -> Result<LocalFrame, Malformed> {
        let revision = self.revision.to_string();
        let object = match &self.wanted.representation.shape {
            Shape::Full => bookmark(&self.gvk, &revision, initial_events_end, self.encoding),
            Shape::PartialMetadata { version, .. } => {
                let gvk = Gvk {
                    group: "meta.k8s.io".into(),
                    version: version.clone(),
                    kind: "PartialObjectMetadata".into(),
                };
                bookmark(&gvk, &revision, initial_events_end, self.encoding)
            }
            Shape::Table { version } => {
                let mut table = json!({
                    "kind": "Table",
                    "apiVersion": format!("meta.k8s.io/{version}"),
                    "metadata": {"resourceVersion": revision},
                    "columnDefinitions": [],
                    "rows": [],
                });
                if initial_events_end {
                    // A Table has no place for it but a row's object; kube-apiserver puts the bookmark there.
                    let inner = bookmark(&self.gvk, &revision, true, Encoding::Json);
                    table["rows"] = json!([{"cells": [], "object": inner.to_json_value()?}]);
                }
                Object {
                    encoding: Encoding::Json,
                    bytes: table.to_string().into(),
                }
            }
        };
        Ok(LocalFrame {
            bytes: encode(EventType::Bookmark, &object, self.encoding),
            resource_version: Some(revision),
        })
    }

    /// An ERROR frame, after which the stream ends.
    fn end_with(&mut self, status: &Status) -> LocalFrame {
        self.ended = true;
        let object = Object {
            encoding: self.encoding,
            bytes: status.to_bytes(self.encoding),
        };
        LocalFrame {
            bytes: encode(EventType::Error, &object, self.encoding),
            resource_version: None,
        }
    }
}

async fn heard(changes: &mut Option<Receiver<LocalChange>>) -> Result<LocalChange, RecvError> {
    match changes {
        Some(changes) => changes.recv().await,
        None => std::future::pending().await,
    }
}

fn initial_events(
    cache: &Cache,
    query: &Query,
    selection: &Selection,
    start: Start,
) -> Result<VecDeque<Initial>, Box<Status>> {
    let mut initial = VecDeque::new();
    match start {
        Start::State { marked } => {
            initial.extend(
                selection
                    .keys
                    .iter()
                    .map(|key| Initial::Object(EventType::Added, key.clone())),
            );
            if marked {
                initial.push_back(Initial::End);
            }
        }
        Start::After(revision) => {
            if revision < selection.since {
                return Err(Box::new(Status::expired(format!(
                    "too old resource version: {revision} ({})",
                    selection.since
                ))));
            }
            initial = changes(cache, query, revision);
        }
        Start::Now => {}
    }
    Ok(initial)
}

/// What changed after a revision, in the cloud or here.
fn changes(cache: &Cache, query: &Query, revision: u64) -> VecDeque<Initial> {
    let (newer, deleted) = cache.changes_since(query, revision);
    let deleted = deleted
        .into_iter()
        .map(|gone| Initial::Deleted(gone.key, gone.revision));
    let newer = newer
        .into_iter()
        .map(|key| Initial::Object(EventType::Modified, key));
    deleted.chain(newer).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_decide_where_a_watch_begins() {
        let options = |rv: &str, initial: Option<bool>| ListOptions {
            resource_version: rv.into(),
            send_initial_events: initial,
            ..ListOptions::default()
        };
        let begin = |rv: &str, initial| start(&options(rv, initial)).map_err(|s| s.code());
        assert_eq!(begin("", Some(true)), Ok(Start::State { marked: true }));
        assert_eq!(begin("5", Some(true)), Ok(Start::State { marked: true }));
        assert_eq!(begin("", None), Ok(Start::State { marked: false }));
        assert_eq!(begin("0", None), Ok(Start::State { marked: false }));
        assert_eq!(begin("7", None), Ok(Start::After(7)));
        assert_eq!(begin("0", Some(false)), Ok(Start::Now));
        assert_eq!(begin("x", None), Err(400));
    }
}
