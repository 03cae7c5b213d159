//! Watching a collection as client-go's reflector does since WatchList is the normal case: no list, but a watch that begins with the
//! objects there are and says with a bookmark when that was all. A server that refuses this is asked for a list, then for a watch from
//! there; whenever everything is asked for anew, it is given another chance.

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
use yurt_controller::feed::refuses_initial_events;
use yurt_wire::{
    Object, Status,
    object::Malformed,
    request::encode_query_value,
    watch::{Event, EventType, FrameDecoder, is_initial_events_end},
};

/// The largest object in a watch.
const MAX_FRAME: usize = 16 << 20;
/// client-go begins with 800 ms and ends with 30 s; at the edge the hub is near, so the pauses are shorter.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
/// Objects in a page of a list, where the server's cache does not answer at once.
const PAGE: &str = "500";

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
    /// What a stream of initial events, or the pages of a list, have told so far.
    told: Option<HashSet<Key>>,
    /// The server refuses to tell everything as the beginning of a watch.
    listing: bool,
}

/// How a stream ended by its own word.
#[derive(Debug, PartialEq, Eq)]
enum Ended {
    /// The revision is too old: begin with everything.
    Expired,
    /// The server does not begin watches with everything.
    NoInitialEvents,
    /// Something else.
    Failed(String),
}

impl From<Malformed> for Ended {
    fn from(error: Malformed) -> Self {
        Self::Failed(error.to_string())
    }
}

/// A path with parameters, those without a value left out. Go encodes them in the order of their names.
fn with_parameters(path: &str, parameters: &[(&str, &str)]) -> String {
    let mut request = path.to_owned();
    let given = parameters.iter().filter(|(_, value)| !value.is_empty());
    for (number, (name, value)) in given.enumerate() {
        let before = if number == 0 { '?' } else { '&' };
        // Writing to a String does not fail.
        let _ = write!(request, "{before}{name}={}", encode_query_value(value));
    }
    request
}

impl Cursor {
    /// The request for the next stream.
    fn request(&self, collection: &Collection, seconds: u64) -> String {
        let (revision, at_least, initial) = match &self.revision {
            Some(revision) => (revision.as_str(), "", ""),
            None => ("", "NotOlderThan", "true"),
        };
        let timeout = match collection.client_timeout {
            true => format!("{}m{}s", seconds / 60, seconds % 60),
            false => String::new(),
        };
        let parameters = [
            ("allowWatchBookmarks", "true"),
            ("fieldSelector", &collection.fields),
            ("resourceVersion", revision),
            ("resourceVersionMatch", at_least),
            ("sendInitialEvents", initial),
            ("timeout", &timeout),
            ("timeoutSeconds", &seconds.to_string()),
            ("watch", "true"),
        ];
        with_parameters(&collection.path, &parameters)
    }

    /// The request for a page of the list: the first is the server's cache's, the others go on from `next`.
    fn page_request(collection: &Collection, next: &str) -> String {
        let revision = if next.is_empty() { "0" } else { "" };
        let parameters = [
            ("continue", next),
            ("fieldSelector", &collection.fields),
            ("limit", PAGE),
            ("resourceVersion", revision),
        ];
        with_parameters(&collection.path, &parameters)
    }

    /// A stream was opened.
    fn opened(&mut self) {
        self.told = self.revision.is_none().then(HashSet::new);
    }

    /// What a refusal means for where the cursor stands.
    fn refused(&self, code: u16, message: &str) -> Ended {
        if code == 410 {
            Ended::Expired
        } else if self.revision.is_none() && !self.listing && refuses_initial_events(code, message)
        {
            Ended::NoInitialEvents
        } else {
            Ended::Failed(format!("{code}: {message}"))
        }
    }

    fn set(&mut self, key: Key, object: Object, tell: &mut impl FnMut(Change)) {
        if let Some(told) = &mut self.told {
            told.insert(key.clone());
        }
        self.known.insert(key.clone());
        tell(Change::Set(key, object));
    }

    /// Everything there is at a revision has been told.
    fn complete(&mut self, revision: String, tell: &mut impl FnMut(Change)) {
        let told = self.told.take().unwrap_or_default();
        // What was there before and was not told again went while nobody watched.
        for gone in self.known.extract_if(|key| !told.contains(key)) {
            tell(Change::Gone(gone));
        }
        self.revision = Some(revision);
        tell(Change::Synced);
    }

    fn event(&mut self, event: Event, tell: &mut impl FnMut(Change)) -> Result<(), Ended> {
        if event.kind == EventType::Error {
            let status = Status::from_bytes(&event.object.bytes, event.object.encoding);
            return Err(match status {
                Some(status) => self.refused(status.code(), &status.message),
                None => Ended::Failed("an error that is no Status".into()),
            });
        }
        let meta = event.object.meta()?;
        let key = (meta.namespace, meta.name);
        match event.kind {
            EventType::Added | EventType::Modified => self.set(key, event.object, tell),
            EventType::Deleted => {
                if let Some(told) = &mut self.told {
                    told.remove(&key);
                }
                if self.known.remove(&key) {
                    tell(Change::Gone(key));
                }
            }
            EventType::Bookmark => {
                if self.told.is_some() && is_initial_events_end(&event.object) {
                    self.complete(meta.resource_version, tell);
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
        self.listing = false;
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
            Err(Ended::NoInitialEvents) => {
                cursor.listing = true;
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

/// Asks for everything there is, page by page.
async fn list(
    api: &Api,
    collection: &Collection,
    cursor: &mut Cursor,
    tell: &mut impl FnMut(Change),
) -> Result<(), Ended> {
    cursor.told = Some(HashSet::new());
    let mut next = String::new();
    loop {
        let page = api.list(&Cursor::page_request(collection, &next)).await;
        let page = page.map_err(|error| ended(cursor, error))?;
        for object in page.items {
            let meta = object.meta()?;
            cursor.set((meta.namespace, meta.name), object, tell);
        }
        if page.continue_token.is_empty() {
            cursor.complete(page.resource_version, tell);
            return Ok(());
        }
        next = page.continue_token;
    }
}

fn ended(cursor: &Cursor, error: CallError) -> Ended {
    match error {
        CallError::Refused { code, message } => cursor.refused(code, &message),
        error => Ended::Failed(error.to_string()),
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
    if cursor.revision.is_none() && cursor.listing {
        list(api, collection, cursor, tell).await?;
    }
    let path = cursor.request(collection, fastrand::u64(collection.seconds.clone()));
    let opened = api.watch(&path).await;
    let (encoding, mut body) = opened.map_err(|error| ended(cursor, error))?;
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
        while let Some(frame) = decoder.next_frame()? {
            cursor.event(frame.event?, tell)?;
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
    fn lists_as_client_go_where_watches_do_not_begin_with_everything() {
        assert_eq!(
            Cursor::page_request(&pods(), ""),
            "/api/v1/pods?fieldSelector=spec.nodeName%3Dedge-1&limit=500&resourceVersion=0"
        );
        assert_eq!(
            Cursor::page_request(&pods(), "x"),
            "/api/v1/pods?continue=x&fieldSelector=spec.nodeName%3Dedge-1&limit=500"
        );
        let mut cursor = Cursor::default();
        let message = "etcdserver: unsupported";
        assert_eq!(cursor.refused(500, message), Ended::NoInitialEvents);
        cursor.listing = true;
        let failed = Ended::Failed("500: etcdserver: unsupported".into());
        assert_eq!(cursor.refused(500, message), failed);
        cursor.expired();
        assert_eq!(cursor.refused(422, ""), Ended::NoInitialEvents);
        cursor.revision = Some("7".into());
        assert!(matches!(cursor.refused(500, ""), Ended::Failed(_)));
        assert_eq!(cursor.refused(410, ""), Ended::Expired);
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
        let oops = || error(Status::internal_error("oops"));
        let refused = cursor.event(oops(), &mut |_| {});
        assert_eq!(refused, Err(Ended::NoInitialEvents));
        cursor.revision = Some("7".into());
        let failed = cursor.event(oops(), &mut |_| {});
        assert!(matches!(failed, Err(Ended::Failed(_))));
    }
}
