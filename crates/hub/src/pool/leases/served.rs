//! The API of the leases on the port for the pool's nodes, as a Kubernetes API server has it: a node writes its own; all of them can
//! be read, as lists, watches and tables.

use super::{Kept, LeaseRefusal, Leases, NODE_LEASES, Written};
use crate::{
    offline::{
        now,
        represent::{Wanted, malformed},
    },
    query::Query,
};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header, request::Parts};
use serde_json::json;
use std::{collections::BTreeSet, time::Duration};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use yurt_transport::{Body, BoxError};
use yurt_wire::{
    Encoding, Gvk, Object, Reason, RequestInfo, Status, Verb,
    media::Shape,
    object::Malformed,
    request::ListOptions,
    watch::{EventType, bookmark, encode},
};

/// Largest lease that is read.
pub(crate) const MOST_BYTES: usize = 64 << 10;
/// The longest that a watch goes on.
const LENGTH: Duration = Duration::from_secs(1800);
/// A watch tells together what changed within this time.
const GATHER: Duration = Duration::from_millis(200);
const GROUP: &str = "coordination.k8s.io";

fn gvk() -> Gvk {
    Gvk {
        group: GROUP.into(),
        version: "v1".into(),
        kind: "Lease".into(),
    }
}

/// Why a request is refused.
#[derive(Debug)]
pub(in crate::pool) enum Refused {
    /// The lease is none, or one too many.
    Lease(LeaseRefusal),
    /// Anything else.
    Status(Box<Status>),
}

impl From<Box<Status>> for Refused {
    fn from(status: Box<Status>) -> Self {
        Self::Status(status)
    }
}

impl Refused {
    /// What the caller is told.
    pub(in crate::pool) fn status(self) -> Box<Status> {
        let refusal = match self {
            Self::Lease(refusal) => refusal,
            Self::Status(status) => return status,
        };
        Box::new(match refusal {
            LeaseRefusal::Flood | LeaseRefusal::Full => {
                Status::too_many_requests(refusal.to_string(), 1)
            }
            _ => Status::new(Reason::Invalid, refusal.to_string()),
        })
    }
}

/// Answers a request of the node `peer` about leases. Whether it may ask was decided before.
pub(in crate::pool) fn answer(
    leases: &Leases,
    peer: &str,
    info: &RequestInfo,
    parts: &Parts,
    body: &Bytes,
    (tasks, shutdown): (&TaskTracker, &CancellationToken),
) -> Result<Response<Body>, Refused> {
    match info.verb {
        Verb::Get => Ok(get(leases, info, &parts.headers)?),
        Verb::List => Ok(list(leases, info, &parts.headers)?),
        Verb::Watch => {
            let watching = Watching::open(leases, info, &parts.headers)?;
            Ok(watching.respond(tasks, shutdown.clone()))
        }
        Verb::Create | Verb::Update => write(leases, peer, info, &parts.headers, body),
        _ => {
            let method = parts.method.as_str();
            let status = Status::method_not_allowed(GROUP, "leases", method);
            Err(Refused::Status(Box::new(status)))
        }
    }
}

fn object(node: &str, kept: &Kept) -> Result<Object, Box<Status>> {
    Object::from_json_value(&kept.object(node), Encoding::Json).map_err(|error| malformed(&error))
}

fn get(
    leases: &Leases,
    info: &RequestInfo,
    headers: &HeaderMap,
) -> Result<Response<Body>, Box<Status>> {
    let wanted = Wanted::of(headers, info)?;
    let kept = leases
        .get(&info.name)
        .ok_or_else(|| Box::new(Status::not_found(GROUP, "leases", &info.name)))?;
    wanted
        .single(StatusCode::OK, &object(&info.name, &kept)?, &gvk(), now())
        .map_err(|error| malformed(&error))
}

fn list(
    leases: &Leases,
    info: &RequestInfo,
    headers: &HeaderMap,
) -> Result<Response<Body>, Box<Status>> {
    let wanted = Wanted::of(headers, info)?;
    let query = Query::of_request(info, &info.list_options()?);
    let (kept, revision) = leases.pick(|_, _| true);
    let mut objects = Vec::new();
    for (node, kept) in kept {
        let object = object(&node, &kept)?;
        if query.matches(NODE_LEASES, &node, &object) {
            objects.push(object);
        }
    }
    let list = wanted.list(&gvk(), &revision.to_string(), "", None, &objects, now());
    Ok(list
        .map_err(|error| malformed(&error))?
        .map(yurt_transport::chunks))
}

fn write(
    leases: &Leases,
    peer: &str,
    info: &RequestInfo,
    headers: &HeaderMap,
    body: &Bytes,
) -> Result<Response<Body>, Refused> {
    let wanted = Wanted::of(headers, info)?;
    let kind = headers.get(header::CONTENT_TYPE);
    let kind = kind.and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let sent = Object {
        encoding: Encoding::from_content_type(kind).unwrap_or(Encoding::Json),
        bytes: body.clone(),
    };
    let own = sent.key().is_ok_and(|key| {
        key.name == peer && (key.namespace.is_empty() || key.namespace == NODE_LEASES)
    });
    if !own {
        return Err(Refused::Status(crate::pool::refusal(peer, info)));
    }
    let value = sent
        .to_json_value()
        .map_err(|_| Box::new(Status::bad_request("the body is no lease")))?;
    let written = Written::of(&value, peer).map_err(Refused::Lease)?;
    if info.verb == Verb::Create && leases.get(peer).is_some() {
        let status = Status::already_exists(GROUP, "leases", peer);
        return Err(Refused::Status(Box::new(status)));
    }
    let code = match leases.put(peer, written).map_err(Refused::Lease)? {
        true => StatusCode::CREATED,
        false => StatusCode::OK,
    };
    let kept = leases
        .get(peer)
        .ok_or_else(|| Box::new(Status::not_found(GROUP, "leases", peer)))?;
    let single = wanted.single(code, &object(peer, &kept)?, &gvk(), now());
    single.map_err(|error| Refused::Status(malformed(&error)))
}

/// A watch, and what it told so far.
struct Watching {
    leases: Leases,
    query: Query,
    wanted: Wanted,
    encoding: Encoding,
    length: Duration,
    bookmarks: bool,
    mark_initial: bool,
    /// Up to which revision.
    revision: u64,
    /// Which of them its client knows.
    known: BTreeSet<Box<str>>,
    columns_sent: bool,
}

impl Watching {
    fn open(leases: &Leases, info: &RequestInfo, headers: &HeaderMap) -> Result<Self, Box<Status>> {
        let options = info.list_options()?;
        let wanted = Wanted::of(headers, info)?;
        let revision = Self::begin(leases, &options)?;
        let length = options.timeout_seconds.filter(|seconds| *seconds > 0);
        // Whoever goes on from a revision knows what there was then.
        let known = leases.pick(|_, _| revision > 0).0;
        Ok(Self {
            leases: leases.clone(),
            encoding: wanted.encoding_for(Some(&gvk())),
            wanted,
            query: Query::of_request(info, &options),
            length: length.map_or(LENGTH, |seconds| Duration::from_secs(seconds).min(LENGTH)),
            bookmarks: options.allow_watch_bookmarks,
            mark_initial: options.send_initial_events == Some(true),
            revision,
            known: known.into_iter().map(|(node, _)| node).collect(),
            columns_sent: false,
        })
    }

    /// The revision that the client knows; 0 for nothing.
    fn begin(leases: &Leases, options: &ListOptions) -> Result<u64, Box<Status>> {
        let asked = options.resource_version.as_str();
        if matches!(asked, "" | "0") || options.send_initial_events == Some(true) {
            return Ok(0);
        }
        let revision = asked.parse::<u64>().map_err(|_| {
            Box::new(Status::bad_request(format!(
                "Invalid value: {asked:?}: resourceVersion is not a number"
            )))
        })?;
        let (removed, newest) = leases.revisions();
        if revision < removed || revision > newest {
            // Of another leader, of this one's life before, or from before a node left.
            return Err(Box::new(Status::expired(format!(
                "too old resource version: {revision} ({newest})"
            ))));
        }
        Ok(revision)
    }

    fn respond(mut self, tasks: &TaskTracker, shutdown: CancellationToken) -> Response<Body> {
        let (sender, body) = yurt_transport::channel(4);
        let kind = HeaderValue::from_static(self.encoding.watch_content_type());
        let length = self.length;
        tasks.spawn(async move {
            let mut changes = self.leases.changes();
            let telling = async {
                loop {
                    changes.borrow_and_update();
                    match self.next() {
                        Ok(frames) => {
                            for frame in frames {
                                if sender.send(Ok(frame)).await.is_err() {
                                    return;
                                }
                            }
                        }
                        Err(error) => {
                            let error: BoxError = error.to_string().into();
                            let _ = sender.send(Err(error)).await;
                            return;
                        }
                    }
                    tokio::time::sleep(GATHER).await;
                    if changes.changed().await.is_err() {
                        return;
                    }
                }
            };
            tokio::select! {
                () = telling => {}
                () = tokio::time::sleep(length) => {}
                () = sender.closed() => {}
                () = shutdown.cancelled() => {}
            }
        });
        let mut response = Response::new(body);
        response.headers_mut().insert(header::CONTENT_TYPE, kind);
        response
    }

    /// What changed since.
    fn next(&mut self) -> Result<Vec<Bytes>, Malformed> {
        let mut frames = Vec::new();
        let (kept, revision) = self.leases.pick(|_, _| true);
        let present: BTreeSet<&str> = kept.iter().map(|(node, _)| &**node).collect();
        let known = std::mem::take(&mut self.known);
        for node in known {
            if present.contains(&*node) {
                self.known.insert(node);
                continue;
            }
            let object = json!({
                "apiVersion": "coordination.k8s.io/v1",
                "kind": "Lease",
                "metadata": {"name": node, "namespace": NODE_LEASES, "resourceVersion": revision.to_string()},
            });
            let object = Object::from_json_value(&object, Encoding::Json)?;
            frames.extend(self.frame(EventType::Deleted, &node, &object)?);
        }
        for (node, kept) in &kept {
            if kept.revision > self.revision {
                let object = Object::from_json_value(&kept.object(node), Encoding::Json)?;
                let kind = match self.known.insert(node.clone()) {
                    true => EventType::Added,
                    false => EventType::Modified,
                };
                frames.extend(self.frame(kind, node, &object)?);
            }
        }
        self.revision = revision;
        if self.bookmarks && std::mem::take(&mut self.mark_initial) {
            let object = bookmark(&gvk(), &revision.to_string(), true, self.encoding);
            frames.push(encode(EventType::Bookmark, &object, self.encoding));
        }
        Ok(frames)
    }

    /// A frame, where the lease is one of those asked for.
    fn frame(
        &mut self,
        kind: EventType,
        node: &str,
        object: &Object,
    ) -> Result<Option<Bytes>, Malformed> {
        if !self.query.matches(NODE_LEASES, node, object) {
            return Ok(None);
        }
        let shown = if let Shape::Table { .. } = self.wanted.representation.shape {
            let head = json!({"resourceVersion": object.key()?.resource_version});
            let columns = !std::mem::replace(&mut self.columns_sent, true);
            let objects = std::slice::from_ref(object);
            let table = self.wanted.table(&gvk(), &head, objects, columns, now())?;
            Object {
                encoding: Encoding::Json,
                bytes: table.to_string().into(),
            }
        } else {
            let shown = self.wanted.object(object, &gvk())?;
            shown.to_encoding(self.encoding)?
        };
        Ok(Some(encode(kind, &shown, self.encoding)))
    }
}
