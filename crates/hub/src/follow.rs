//! The hub as a client of itself: objects that it needs for its own decisions (its Node, its pods, config maps), followed through its
//! own pipeline. So they are cached as what any component reads, known from the cache after a start without the cloud, and
//! followed over cuts.

use crate::{
    events::{Events, advance},
    proxy::Hub,
};
use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, header};
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use yurt_transport::Body;
use yurt_wire::{Encoding, Object, list, request::encode_query_value, watch::EventType};

/// What is kept of objects, by `NAMESPACE/NAME` (the namespace is empty for cluster scope).
pub type Known<T> = Arc<BTreeMap<Box<str>, T>>;
/// Whole objects.
pub type Objects = Known<Object>;

/// Largest list, or page of one, that the hub follows for itself.
const MOST_BYTES: usize = 8 << 20;
/// Objects of a page, where only a part of each is kept.
const PAGE: usize = 500;
/// Objects of which something is kept.
const MOST_KEPT: usize = 64 << 10;
const MOST_FRAME: usize = 2 << 20;
/// How long the head of an answer, or a whole list, may take.
const WAIT: Duration = Duration::from_secs(30);
/// Between attempts after a failure; doubled up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
const ACCEPT: &str = "application/vnd.kubernetes.protobuf,application/json";

/// Who is asked for a collection.
pub(crate) trait Asked: Send + Sync + 'static {
    /// The answer, if there is one.
    fn ask(&self, request: Request<Bytes>) -> impl Future<Output = Option<Response<Body>>> + Send;
    /// Resolves when another attempt may be worth it before its time.
    fn turned(&self) -> impl Future<Output = ()> + Send;
}

impl Asked for Arc<Hub> {
    async fn ask(&self, request: Request<Bytes>) -> Option<Response<Body>> {
        Some(self.own(request).await)
    }

    async fn turned(&self) {
        let mut modes = self.modes();
        modes.mark_unchanged();
        // The link came or went; without an end when the hub ends.
        if modes.changed().await.is_err() {
            std::future::pending().await
        }
    }
}

/// Why an attempt ended.
enum Ended {
    /// The watch ended as watches do.
    Cleanly,
    /// What is known cannot be gone on from.
    Anew,
}

/// Follows a collection (`/api/v1/namespaces/kube-system/configmaps`) restricted by `selector` (`fieldSelector=...`, encoded; may
/// be empty) until shutdown, or until nobody looks any more. `None` until it is known, from the cloud or the cache.
pub fn follow(hub: &Arc<Hub>, path: &str, selector: &str) -> watch::Receiver<Option<Objects>> {
    let (tasks, shutdown) = (hub.tasks.clone(), hub.shutdown.clone());
    follow_at(hub.clone(), path, selector, &tasks, shutdown)
}

/// As [`follow`], for collections of which only a part is of interest: what `project` gives of each object is kept, and no more of the
/// collection is in memory than a page.
pub fn follow_as<T: Clone + PartialEq + Send + Sync + 'static>(
    hub: &Arc<Hub>,
    path: &str,
    selector: &str,
    project: fn(Object) -> Option<T>,
) -> watch::Receiver<Option<Known<T>>> {
    let (known, receiver) = watch::channel(None);
    let follower = Follower {
        asked: hub.clone(),
        path: path.to_owned(),
        selector: selector.to_owned(),
        project,
        paged: true,
        known,
    };
    follower.start(&hub.tasks, hub.shutdown.clone());
    receiver
}

/// As [`follow`], asking somebody else.
pub(crate) fn follow_at(
    asked: impl Asked,
    path: &str,
    selector: &str,
    tasks: &TaskTracker,
    shutdown: CancellationToken,
) -> watch::Receiver<Option<Objects>> {
    let (known, receiver) = watch::channel(None);
    let follower = Follower {
        asked,
        path: path.to_owned(),
        selector: selector.to_owned(),
        project: Some,
        paged: false,
        known,
    };
    follower.start(tasks, shutdown);
    receiver
}

struct Follower<A, T> {
    asked: A,
    path: String,
    selector: String,
    project: fn(Object) -> Option<T>,
    paged: bool,
    known: watch::Sender<Option<Known<T>>>,
}

impl<A: Asked, T: Clone + PartialEq + Send + Sync + 'static> Follower<A, T> {
    fn start(self, tasks: &TaskTracker, shutdown: CancellationToken) {
        let known = self.known.clone();
        tasks.spawn(async move {
            tokio::select! {
                () = self.run() => {}
                () = known.closed() => {}
                () = shutdown.cancelled() => {}
            }
        });
    }

    async fn run(self) {
        let mut pause = FIRST_PAUSE;
        loop {
            let begun = tokio::time::Instant::now();
            if let Some(mut revision) = self.list().await {
                while let Ended::Cleanly = self.watch(&mut revision).await {
                    if begun.elapsed() < FIRST_PAUSE {
                        break;
                    }
                }
                if begun.elapsed() > LONGEST_PAUSE {
                    pause = FIRST_PAUSE;
                }
            }
            tokio::select! {
                () = tokio::time::sleep(pause.mul_f64(0.5 + fastrand::f64())) => {}
                () = self.asked.turned() => {}
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    async fn ask(&self, query: &str) -> Option<Response<Body>> {
        let joint = if self.selector.is_empty() || query.is_empty() {
            ""
        } else {
            "&"
        };
        let uri = format!("{}?{}{joint}{query}", self.path, self.selector);
        let mut request = Request::new(Bytes::new());
        *request.uri_mut() = uri.parse().ok()?;
        let headers = request.headers_mut();
        headers.insert(header::ACCEPT, HeaderValue::from_static(ACCEPT));
        headers.insert(
            header::USER_AGENT,
            HeaderValue::from_static(crate::USER_AGENT),
        );
        let response = tokio::time::timeout(WAIT, self.asked.ask(request))
            .await
            .ok()??;
        let status = response.status();
        if status != StatusCode::OK {
            tracing::debug!(path = self.path, %status, "cannot be followed for now");
            return None;
        }
        Some(response)
    }

    /// The state, and the revision to go on from.
    async fn list(&self) -> Option<String> {
        let mut objects = BTreeMap::new();
        let mut continued = String::new();
        let revision = loop {
            let query = match (self.paged, continued.as_str()) {
                (false, _) => String::new(),
                (true, "") => format!("limit={PAGE}"),
                (true, token) => format!("limit={PAGE}&continue={}", encode_query_value(token)),
            };
            let response = self.ask(&query).await?;
            let encoding = encoding_of(&response)?;
            let body = yurt_transport::collect(response.into_body(), MOST_BYTES);
            let body = tokio::time::timeout(WAIT, body).await.ok()?.ok()?;
            let list = list::split(&body, encoding).ok()?;
            for item in list.items {
                let key = key_of(&item)?;
                if let Some(kept) = (self.project)(item)
                    && objects.len() < MOST_KEPT
                {
                    objects.insert(key, kept);
                }
            }
            if list.continue_token.is_empty() {
                break list.resource_version;
            }
            continued = list.continue_token;
        };
        self.known.send_if_modified(|known| {
            let changed = known.as_deref() != Some(&objects);
            if changed {
                *known = Some(Arc::new(objects));
            }
            changed
        });
        Some(revision)
    }

    /// Follows the changes after a revision.
    async fn watch(&self, revision: &mut String) -> Ended {
        let query = format!("watch=true&allowWatchBookmarks=true&resourceVersion={revision}");
        let Some(response) = self.ask(&query).await else {
            return Ended::Anew;
        };
        let Some(encoding) = encoding_of(&response) else {
            return Ended::Anew;
        };
        let mut events = Events::new(response.into_body(), encoding, MOST_FRAME);
        loop {
            match events.next().await {
                Ok(Some(event)) => {
                    advance(revision, &event);
                    self.tell(event.kind, event.object);
                }
                Ok(None) => return Ended::Cleanly,
                Err(_) => return Ended::Anew,
            }
        }
    }

    fn tell(&self, kind: EventType, object: Object) {
        let Some(key) = key_of(&object) else {
            return;
        };
        let kept = match kind {
            EventType::Added | EventType::Modified => (self.project)(object),
            EventType::Deleted => None,
            EventType::Bookmark | EventType::Error => return,
        };
        self.known.send_if_modified(|known| {
            let known = known.get_or_insert_default();
            if known.get(&key) == kept.as_ref() {
                return false;
            }
            let objects = Arc::make_mut(known);
            match kept {
                Some(kept) if objects.len() < MOST_KEPT || objects.contains_key(&key) => {
                    objects.insert(key, kept);
                }
                Some(_) => return false,
                None => {
                    objects.remove(&key);
                }
            }
            true
        });
    }
}

fn key_of(object: &Object) -> Option<Box<str>> {
    let key = object.key().ok()?;
    Some(format!("{}/{}", key.namespace, key.name).into())
}

fn encoding_of(response: &Response<Body>) -> Option<Encoding> {
    let content_type = response.headers().get(header::CONTENT_TYPE)?;
    Encoding::from_content_type(content_type.to_str().ok()?)
}
