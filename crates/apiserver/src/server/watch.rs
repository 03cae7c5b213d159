//! Watches: a cursor over a partition's window of changes.
//!
//! A watcher owns no queue: it reads the shared window at its own pace and sleeps until something changes that may concern
//! it. One that does not read is let go after a while, or falls out of the window and gets `410 Expired`; nobody else
//! notices. Frames are made once and shared by all watchers that get the same.

use super::respond::{self, Wanted};
use crate::{
    meta,
    registry::{Registry, Reply, Selection},
    resources::Resource,
    storage::{Change, Follower, Stored, TooOld},
};
use bytes::Bytes;
use http::{Response, StatusCode};
use prometheus_client::metrics::histogram::Histogram;
use serde_json::{Value, json};
use std::{sync::Arc, time::Duration};
use tokio::{sync::mpsc, time::Instant};
use tokio_util::sync::CancellationToken;
use yurt_transport::{Body, BoxError, channel};
use yurt_wire::{
    Encoding, Gvk, Object, Status,
    media::{Representation, Shape},
    object::Malformed,
    request::ListOptions,
    table::{self, Printer},
    watch::{self, EventType},
};

/// Changes taken from the window at once.
const BATCH: usize = 256;
/// Frames are sent in chunks of about this size.
const CHUNK_BYTES: usize = 32 << 10;
/// Chunks waiting for the client.
const CHUNKS: usize = 8;
/// A client that takes nothing for this long while there is something for it is let go: it can begin anew where it was.
const STALLED: Duration = Duration::from_secs(30);
const BOOKMARK_INTERVAL: Duration = Duration::from_secs(60);
/// A last bookmark is sent this long before the watch ends.
const LAST_BOOKMARK: Duration = Duration::from_secs(2);
/// Without a timeout a watch lasts between this and twice this.
const MIN_SECONDS: u64 = 1800;

/// Where a watch begins.
struct Start {
    /// Objects sent as ADDED first.
    initial: Vec<Arc<Stored>>,
    /// Changes after this revision follow.
    revision: u64,
    /// A bookmark says that the initial objects are complete.
    marks_end: bool,
}

/// Answers a watch.
pub(super) async fn watch(
    registry: &Arc<Registry>,
    resource: &Arc<Resource>,
    namespace: &str,
    options: &ListOptions,
    wanted: &Wanted,
    sizes: Histogram,
    shutdown: CancellationToken,
) -> Reply<Response<Body>> {
    let representation = wanted.representation(resource)?;
    let selection = Selection::new(resource, options)?;
    let partition = registry.storage.partition(&resource.storage);
    // Followed before the revision is chosen: nothing after it is forgotten before this watch has read it.
    let changes = partition.follow(selection.topic(namespace));
    let start = start(registry, resource, namespace, &selection, options).await?;
    let seconds = match options.timeout_seconds {
        None | Some(0) => MIN_SECONDS + fastrand::u64(..MIN_SECONDS),
        Some(seconds) => seconds,
    };
    let deadline = Instant::now() + Duration::from_secs(seconds.min(24 * 3600));
    let (sender, body) = channel(CHUNKS);
    let content_type = representation.encoding.watch_content_type();
    let printer = match representation.shape {
        Shape::Table { .. } => Some(respond::printer(resource)),
        _ => None,
    };
    let watcher = Watcher {
        registry: registry.clone(),
        changes,
        namespace: namespace.to_owned(),
        selection,
        encoder: Encoder {
            resource: resource.clone(),
            representation,
            printer,
            include: wanted.include(),
            columns_sent: false,
        },
        bookmarks: options.allow_watch_bookmarks,
        deadline,
        out: Out {
            sender,
            frames: Vec::new(),
            bytes: 0,
            sizes,
            deadline,
        },
    };
    tokio::spawn(async move {
        tokio::select! {
            () = shutdown.cancelled() => {}
            _ = watcher.run(start) => {}
        }
    });
    Ok(respond::with_headers(body, content_type, StatusCode::OK))
}

async fn start(
    registry: &Arc<Registry>,
    resource: &Arc<Resource>,
    namespace: &str,
    selection: &Selection,
    options: &ListOptions,
) -> Reply<Start> {
    let given = options.resource_version.as_str();
    let unset = matches!(given, "" | "0");
    let revision = match given {
        "" => 0,
        text => text.parse::<u64>().map_err(|_| {
            Box::new(Status::bad_request(format!(
                "resourceVersion: Invalid value: \"{text}\": strconv.ParseUint: parsing \"{text}\": invalid syntax"
            )))
        })?,
    };
    let wants_initial = options.send_initial_events.unwrap_or(unset);
    if !wants_initial {
        let revision = if unset {
            registry.storage.revision()
        } else {
            revision
        };
        return Ok(Start {
            initial: Vec::new(),
            revision,
            marks_end: false,
        });
    }
    // A revision from the future is waited for; when it does not come, it is refused.
    registry.wait_for(options).await;
    registry.reached(revision)?;
    let (mut initial, revision) = registry.storage.list(&resource.storage, namespace, None);
    initial.retain(|object| selection.matches(object));
    Ok(Start {
        initial,
        revision,
        marks_end: options.send_initial_events == Some(true) && options.allow_watch_bookmarks,
    })
}

/// Why a watch ended.
enum End {
    /// The client is gone, or does not read and its time is up.
    Gone,
}

struct Watcher {
    registry: Arc<Registry>,
    changes: Follower,
    namespace: String,
    selection: Selection,
    encoder: Encoder,
    bookmarks: bool,
    deadline: Instant,
    out: Out,
}

impl Watcher {
    async fn run(mut self, start: Start) -> Result<(), End> {
        for object in &start.initial {
            self.send(EventType::Added, object).await?;
        }
        let mut cursor = start.revision;
        if start.marks_end {
            self.bookmark(cursor, true).await?;
        }
        drop(start);
        self.out.flush().await?;
        let mut bookmark_at = Instant::now() + BOOKMARK_INTERVAL;
        let last_bookmark = self.deadline.checked_sub(LAST_BOOKMARK);
        let mut last_sent = false;
        loop {
            self.changes.mark_seen();
            // Read before the window: whatever it counts is in the window already.
            let published = self.registry.storage.revision();
            loop {
                let some = match self.changes.changes_after(cursor, BATCH) {
                    Ok(some) => some,
                    Err(error) => return self.expire(&error).await,
                };
                let Some(last) = some.last() else { break };
                cursor = last.revision;
                for change in &some {
                    self.relay(change).await?;
                }
            }
            self.out.flush().await?;
            cursor = cursor.max(published);
            let now = Instant::now();
            if now >= self.deadline {
                return Ok(());
            }
            if self.bookmarks {
                let ending = !last_sent && last_bookmark.is_some_and(|at| now >= at);
                if now >= bookmark_at || ending {
                    last_sent |= ending;
                    bookmark_at = now + BOOKMARK_INTERVAL;
                    self.bookmark(cursor, false).await?;
                    self.out.flush().await?;
                }
            }
            let mut wake = self.deadline;
            if self.bookmarks {
                wake = wake.min(bookmark_at);
                if let Some(at) = last_bookmark.filter(|_| !last_sent) {
                    wake = wake.min(at);
                }
            }
            tokio::select! {
                () = self.out.sender.closed() => return Err(End::Gone),
                () = self.changes.changed() => {}
                () = tokio::time::sleep_until(wake) => {}
            }
        }
    }

    /// Sends what a change means to this watcher.
    async fn relay(&mut self, change: &Change) -> Result<(), End> {
        let object = &change.object;
        if !self.namespace.is_empty() && *object.key.namespace != *self.namespace {
            return Ok(());
        }
        let before = change
            .previous
            .as_ref()
            .is_some_and(|previous| self.selection.matches(previous));
        let after = change.kind != EventType::Deleted && self.selection.matches(object);
        match (before, after) {
            (false, false) => Ok(()),
            (false, true) => self.send(EventType::Added, object).await,
            (true, true) => self.send(EventType::Modified, object).await,
            (true, false) if change.kind == EventType::Deleted => {
                self.send(EventType::Deleted, object).await
            }
            (true, false) => {
                // It left the selection: gone for this watcher, as it last saw it.
                let Some(previous) = &change.previous else {
                    return Ok(());
                };
                match previous.at_revision(change.revision) {
                    Ok(left) => self.send(EventType::Deleted, &Arc::new(left)).await,
                    Err(error) => {
                        unsendable(previous, &error);
                        Ok(())
                    }
                }
            }
        }
    }

    async fn send(&mut self, kind: EventType, object: &Arc<Stored>) -> Result<(), End> {
        let shown = self
            .registry
            .shown_one(&self.encoder.resource, object.clone());
        let object = match shown.await {
            Ok(object) => object,
            Err(status) => {
                self.fail(&status).await?;
                return Err(End::Gone);
            }
        };
        match self.encoder.event(kind, &object) {
            Ok(frame) => self.out.push(frame).await,
            Err(error) => {
                unsendable(&object, &error);
                Ok(())
            }
        }
    }

    async fn bookmark(&mut self, revision: u64, initial_events_end: bool) -> Result<(), End> {
        let frame = self.encoder.bookmark(revision, initial_events_end);
        self.out.push(frame).await
    }

    async fn expire(&mut self, error: &TooOld) -> Result<(), End> {
        self.fail(&Status::expired(error.to_string())).await
    }

    /// Tells why the watch ends.
    async fn fail(&mut self, status: &Status) -> Result<(), End> {
        let encoding = self.encoder.representation.encoding;
        let object = Object {
            encoding,
            bytes: status.to_bytes(encoding),
        };
        let frame = watch::encode(EventType::Error, &object, encoding);
        self.out.push(frame).await?;
        self.out.flush().await
    }
}

fn unsendable(object: &Stored, error: &Malformed) {
    tracing::error!(%error, key = ?object.key, "an object cannot be encoded for a watch");
}

/// Turns objects into frames.
struct Encoder {
    resource: Arc<Resource>,
    representation: Representation,
    printer: Option<Printer>,
    include: table::IncludeObject,
    columns_sent: bool,
}

impl Encoder {
    fn event(&mut self, kind: EventType, stored: &Stored) -> Result<Bytes, Malformed> {
        let encoding = self.representation.encoding;
        let object = match &self.representation.shape {
            Shape::Full if self.resource.is_storage_version() => {
                return stored.event(kind, encoding);
            }
            Shape::Full => respond::served(&self.resource, stored, encoding)?,
            Shape::PartialMetadata { version, .. } => {
                respond::partial(&self.resource, stored, version, encoding)?
            }
            Shape::Table { version } => {
                let version = version.clone();
                let value = crate::conversion::to_served(&self.resource, stored.value());
                let head = json!({"resourceVersion": stored.revision.to_string()});
                self.table(&version, &head, &[value])
            }
        };
        Ok(watch::encode(kind, &object, encoding))
    }

    fn table(&mut self, version: &str, head: &Value, objects: &[Value]) -> Object {
        let printer = self
            .printer
            .get_or_insert_with(|| respond::printer(&self.resource));
        let table = table::table(
            printer,
            head,
            objects,
            self.include,
            version,
            !self.columns_sent,
            meta::now_seconds(),
        );
        self.columns_sent = true;
        Object {
            encoding: Encoding::Json,
            bytes: table.to_string().into(),
        }
    }

    fn bookmark(&mut self, revision: u64, initial_events_end: bool) -> Bytes {
        let encoding = self.representation.encoding;
        let revision = revision.to_string();
        let object = match &self.representation.shape {
            Shape::Full => watch::bookmark(
                &self.resource.gvk(),
                &revision,
                initial_events_end,
                encoding,
            ),
            Shape::PartialMetadata { version, .. } => watch::bookmark(
                &Gvk::from_api_version(&format!("meta.k8s.io/{version}"), "PartialObjectMetadata"),
                &revision,
                initial_events_end,
                encoding,
            ),
            Shape::Table { version } => {
                let version = version.clone();
                self.table(&version, &json!({"resourceVersion": revision}), &[])
            }
        };
        watch::encode(EventType::Bookmark, &object, encoding)
    }
}

/// Frames on their way to the client.
struct Out {
    sender: mpsc::Sender<Result<Bytes, BoxError>>,
    /// What goes next; one frame alone is not copied.
    frames: Vec<Bytes>,
    bytes: usize,
    /// What each frame is long.
    sizes: Histogram,
    deadline: Instant,
}

impl Out {
    async fn push(&mut self, frame: Bytes) -> Result<(), End> {
        self.sizes.observe(frame.len() as f64);
        self.bytes += frame.len();
        self.frames.push(frame);
        if self.bytes >= CHUNK_BYTES {
            self.flush().await?;
        }
        Ok(())
    }

    async fn flush(&mut self) -> Result<(), End> {
        let chunk = match self.frames.len() {
            0 => return Ok(()),
            1 => self.frames.remove(0),
            _ => self.frames.concat().into(),
        };
        self.frames.clear();
        self.bytes = 0;
        let patience = self.deadline.min(Instant::now() + STALLED);
        match tokio::time::timeout_at(patience, self.sender.send(Ok(chunk))).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(End::Gone),
        }
    }
}
