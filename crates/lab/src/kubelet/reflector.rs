//! Watching a collection as client-go's reflector does since WatchList is the normal case: no list, but a watch that begins with the
//! objects there are and says with a bookmark when that was all.

use super::{
    api::{Api, CallError},
    backoff::Backoff,
};
use http_body_util::BodyExt;
use std::{
    collections::HashSet,
    fmt::Write,
    ops::RangeInclusive,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};
use yurt_wire::{
    Object, Status,
    request::encode_query_value,
    watch::{Event, EventType, FrameDecoder, is_initial_events_end},
};

/// The largest object in a watch.
const MAX_FRAME: usize = 16 << 20;
/// client-go begins with 800 ms and ends with 30 s; at the edge the hub is near, so the pauses are shorter.
const FIRST_PAUSE: Duration = Duration::from_millis(200);

/// What to watch.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Collection {
    /// `/api/v1/pods`.
    pub(super) path: String,
    /// `spec.nodeName=edge-1`, or empty.
    pub(super) fields: String,
    /// `timeoutSeconds` is drawn from it.
    pub(super) seconds: RangeInclusive<u64>,
    /// Whether the client has a time-out of its own, which it writes as `timeout=7m5s`.
    pub(super) client_timeout: bool,
}

/// Namespace and name.
pub(super) type Key = (String, String);

/// A change of a collection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// The object is there, or is different now.
    Set(Key, Object),
    /// It is gone.
    Gone(Key),
    /// All that there was has been told.
    Synced,
}

/// Where a reflector stands; survives its streams.
#[derive(Debug, Default)]
struct Cursor {
    /// Where to go on; `None`: with everything.
    revision: Option<String>,
    known: HashSet<Key>,
    /// What a stream of initial events has told so far.
    told: Option<HashSet<Key>>,
}

/// How a stream ended by its own word.
#[derive(Debug, PartialEq, Eq)]
enum Ended {
    /// The revision is too old: begin with everything.
    Expired,
    /// Something else.
    Failed(String),
}

impl Cursor {
    /// The request for the next stream. Parameters are in the order in which Go encodes them.
    fn request(&self, collection: &Collection, seconds: u64) -> String {
        let mut request = format!("{}?allowWatchBookmarks=true", collection.path);
        // Writing to a String does not fail.
        let mut parameter = |name: &str, value: &str| {
            let _ = write!(request, "&{name}={}", encode_query_value(value));
        };
        if !collection.fields.is_empty() {
            parameter("fieldSelector", &collection.fields);
        }
        match &self.revision {
            Some(revision) => parameter("resourceVersion", revision),
            None => {
                parameter("resourceVersionMatch", "NotOlderThan");
                parameter("sendInitialEvents", "true");
            }
        }
        if collection.client_timeout {
            parameter("timeout", &format!("{}m{}s", seconds / 60, seconds % 60));
        }
        parameter("timeoutSeconds", &seconds.to_string());
        parameter("watch", "true");
        request
    }

    /// A stream was opened.
    fn opened(&mut self) {
        self.told = self.revision.is_none().then(HashSet::new);
    }

    fn event(&mut self, event: Event, tell: &mut impl FnMut(Change)) -> Result<(), Ended> {
        if event.kind == EventType::Error {
            let status = Status::from_bytes(&event.object.bytes, event.object.encoding);
            return Err(match status {
                Some(status) if status.code() == 410 => Ended::Expired,
                Some(status) => Ended::Failed(status.message),
                None => Ended::Failed("an error that is no Status".into()),
            });
        }
        let meta = event
            .object
            .meta()
            .map_err(|error| Ended::Failed(error.to_string()))?;
        let key = (meta.namespace, meta.name);
        match event.kind {
            EventType::Added | EventType::Modified => {
                if let Some(told) = &mut self.told {
                    told.insert(key.clone());
                }
                self.known.insert(key.clone());
                tell(Change::Set(key, event.object));
            }
            EventType::Deleted => {
                if let Some(told) = &mut self.told {
                    told.remove(&key);
                }
                if self.known.remove(&key) {
                    tell(Change::Gone(key));
                }
            }
            EventType::Bookmark => {
                if is_initial_events_end(&event.object)
                    && let Some(told) = self.told.take()
                {
                    // What was there before and was not told again went while nobody watched.
                    for gone in self.known.extract_if(|key| !told.contains(key)) {
                        tell(Change::Gone(gone));
                    }
                    self.revision = Some(meta.resource_version);
                    tell(Change::Synced);
                    return Ok(());
                }
            }
            EventType::Error => {}
        }
        // Before the end of the initial events there is nothing to go on from.
        if self.told.is_none() && !meta.resource_version.is_empty() {
            self.revision = Some(meta.resource_version);
        }
        Ok(())
    }

    fn expired(&mut self) {
        self.revision = None;
    }
}

/// Watches for ever. `open` counts the streams that are open.
pub(super) async fn reflect(
    api: &Api,
    collection: &Collection,
    most: Duration,
    open: &AtomicUsize,
    mut tell: impl FnMut(Change) + Send,
) {
    let mut cursor = Cursor::default();
    let mut backoff = Backoff::new(FIRST_PAUSE, most);
    loop {
        let failure = match stream(api, collection, &mut cursor, open, &mut tell).await {
            Ok(events) => {
                if events > 0 {
                    backoff.reset();
                }
                None
            }
            Err(Ended::Expired) => {
                cursor.expired();
                None
            }
            Err(Ended::Failed(why)) => Some(why),
        };
        // A server that ends streams at once must not be asked in a tight loop either.
        let pause = backoff.pause();
        if let Some(why) = failure {
            tracing::debug!(path = %collection.path, %why, ?pause, "watch failed");
        }
        tokio::time::sleep(pause).await;
    }
}

/// Counts while it lives.
struct Counted<'a>(&'a AtomicUsize);

impl<'a> Counted<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Follows one stream to its end: how many events it brought.
async fn stream(
    api: &Api,
    collection: &Collection,
    cursor: &mut Cursor,
    open: &AtomicUsize,
    tell: &mut impl FnMut(Change),
) -> Result<usize, Ended> {
    let path = cursor.request(collection, fastrand::u64(collection.seconds.clone()));
    let (encoding, mut body) = api.watch(&path).await.map_err(|error| match error {
        CallError::Refused { code: 410, .. } => Ended::Expired,
        error => Ended::Failed(error.to_string()),
    })?;
    let _open = Counted::new(open);
    cursor.opened();
    let mut decoder = FrameDecoder::new(encoding, MAX_FRAME);
    let mut events = 0;
    // No time-out here: a watch may be silent for as long as it was asked for.
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| Ended::Failed(error.to_string()))?;
        let Ok(chunk) = frame.into_data() else {
            continue;
        };
        decoder.push(chunk);
        let malformed = |error: yurt_wire::object::Malformed| Ended::Failed(error.to_string());
        while let Some(frame) = decoder.next_frame().map_err(malformed)? {
            cursor.event(frame.event.map_err(malformed)?, tell)?;
            events += 1;
        }
    }
    Ok(events)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use yurt_wire::{Encoding, Gvk, watch::bookmark};

    fn pods() -> Collection {
        Collection {
            path: "/api/v1/pods".into(),
            fields: "spec.nodeName=edge-1".into(),
            seconds: 300..=600,
            client_timeout: false,
        }
    }

    fn pod(name: &str, revision: &str) -> Object {
        let pod = json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"namespace": "default", "name": name, "resourceVersion": revision}});
        Object::from_json_value(&pod, Encoding::Protobuf).unwrap()
    }

    fn key(name: &str) -> Key {
        ("default".into(), name.into())
    }

    fn end(revision: &str) -> Event {
        let gvk = Gvk::from_api_version("v1", "Pod");
        let object = bookmark(&gvk, revision, true, Encoding::Protobuf);
        Event {
            kind: EventType::Bookmark,
            object,
        }
    }

    fn feed(cursor: &mut Cursor, events: Vec<Event>) -> Vec<String> {
        let mut told = Vec::new();
        for event in events {
            let mut tell = |change: Change| {
                told.push(match change {
                    Change::Set((_, name), _) => format!("+{name}"),
                    Change::Gone((_, name)) => format!("-{name}"),
                    Change::Synced => "synced".into(),
                });
            };
            cursor.event(event, &mut tell).unwrap();
        }
        told
    }

    fn added(name: &str, revision: &str) -> Event {
        Event {
            kind: EventType::Added,
            object: pod(name, revision),
        }
    }

    #[test]
    fn asks_as_the_recorded_kubelet() {
        let cursor = Cursor::default();
        assert_eq!(
            cursor.request(&pods(), 496),
            "/api/v1/pods?allowWatchBookmarks=true&fieldSelector=spec.nodeName%3Dedge-1&resourceVersionMatch=NotOlderThan&sendInitialEvents=true&timeoutSeconds=496&watch=true"
        );
        let services = Collection {
            path: "/api/v1/services".into(),
            fields: "spec.clusterIP!=None".into(),
            client_timeout: true,
            ..pods()
        };
        assert_eq!(
            cursor.request(&services, 500),
            "/api/v1/services?allowWatchBookmarks=true&fieldSelector=spec.clusterIP%21%3DNone&resourceVersionMatch=NotOlderThan&sendInitialEvents=true&timeout=8m20s&timeoutSeconds=500&watch=true"
        );
        let resumed = Cursor {
            revision: Some("17".into()),
            ..Cursor::default()
        };
        assert_eq!(
            resumed.request(&pods(), 300),
            "/api/v1/pods?allowWatchBookmarks=true&fieldSelector=spec.nodeName%3Dedge-1&resourceVersion=17&timeoutSeconds=300&watch=true"
        );
    }

    #[test]
    fn goes_on_where_a_stream_ended_and_only_once_all_was_told() {
        let mut cursor = Cursor::default();
        cursor.opened();
        assert_eq!(feed(&mut cursor, vec![added("a", "5")]), ["+a"]);
        assert_eq!(
            cursor.revision, None,
            "an unfinished beginning is begun again"
        );
        cursor.opened();
        let told = feed(
            &mut cursor,
            vec![added("a", "5"), added("b", "7"), end("9")],
        );
        assert_eq!(told, ["+a", "+b", "synced"]);
        assert_eq!(cursor.revision.as_deref(), Some("9"));
        cursor.opened();
        let deleted = Event {
            kind: EventType::Deleted,
            object: pod("a", "12"),
        };
        assert_eq!(feed(&mut cursor, vec![deleted]), ["-a"]);
        assert_eq!(cursor.revision.as_deref(), Some("12"));
    }

    #[test]
    fn a_new_beginning_tells_what_went_meanwhile() {
        let mut cursor = Cursor::default();
        cursor.opened();
        feed(
            &mut cursor,
            vec![added("a", "5"), added("b", "7"), end("9")],
        );
        cursor.expired();
        cursor.opened();
        let told = feed(
            &mut cursor,
            vec![added("b", "7"), added("c", "20"), end("21")],
        );
        assert_eq!(told, ["+b", "+c", "-a", "synced"]);
        assert!(cursor.known.contains(&key("c")) && !cursor.known.contains(&key("a")));
    }

    #[test]
    fn errors_say_whether_to_begin_anew() {
        let error = |status: Status| Event {
            kind: EventType::Error,
            object: Object {
                encoding: Encoding::Protobuf,
                bytes: status.to_bytes(Encoding::Protobuf),
            },
        };
        let mut cursor = Cursor::default();
        let expired = cursor.event(error(Status::expired("too old")), &mut |_| {});
        assert_eq!(expired, Err(Ended::Expired));
        let failed = cursor.event(error(Status::internal_error("oops")), &mut |_| {});
        assert!(matches!(failed, Err(Ended::Failed(_))));
    }
}
