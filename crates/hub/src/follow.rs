//! The hub as a client of itself: objects that it needs for its own decisions (its Node, its pods, config maps), followed through its
//! own pipeline. So they are cached as what any component reads, known from the cache after a start without the cloud, and
//! followed over cuts.

use crate::proxy::Hub;
use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body_util::BodyExt;
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use yurt_transport::Body;
use yurt_wire::{
    Encoding, Object, list,
    watch::{EventType, FrameDecoder},
};

/// Objects by `NAMESPACE/NAME` (the namespace is empty for cluster scope).
pub type Objects = Arc<BTreeMap<Box<str>, Object>>;

/// Largest list that the hub follows for itself.
const MOST_BYTES: usize = 8 << 20;
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
        known: known.clone(),
    };
    tasks.spawn(async move {
        tokio::select! {
            () = follower.run() => {}
            () = known.closed() => {}
            () = shutdown.cancelled() => {}
        }
    });
    receiver
}

struct Follower<A> {
    asked: A,
    path: String,
    selector: String,
    known: watch::Sender<Option<Objects>>,
}

impl<A: Asked> Follower<A> {
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
        let response = self.ask("").await?;
        let encoding = encoding_of(&response)?;
        let body = yurt_transport::collect(response.into_body(), MOST_BYTES);
        let body = tokio::time::timeout(WAIT, body).await.ok()?.ok()?;
        let list = list::split(&body, encoding).ok()?;
        let mut objects = BTreeMap::new();
        for item in list.items {
            objects.insert(key_of(&item)?, item);
        }
        self.known.send_if_modified(|known| {
            let changed = known.as_deref() != Some(&objects);
            if changed {
                *known = Some(Arc::new(objects));
            }
            changed
        });
        Some(list.resource_version)
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
        let mut frames = FrameDecoder::new(encoding, MOST_FRAME);
        let mut body = response.into_body();
        while let Some(frame) = body.frame().await {
            let Ok(frame) = frame else {
                return Ended::Anew;
            };
            let Ok(data) = frame.into_data() else {
                continue;
            };
            frames.push(data);
            loop {
                let event = match frames.next_frame() {
                    Ok(None) => break,
                    Ok(Some(frame)) => frame.event,
                    Err(error) => Err(error),
                };
                let Ok(event) = event else {
                    return Ended::Anew;
                };
                if event.kind == EventType::Error {
                    return Ended::Anew;
                }
                if let Ok(key) = event.object.key()
                    && !key.resource_version.is_empty()
                {
                    *revision = key.resource_version.into_owned();
                }
                self.tell(event.kind, event.object);
            }
        }
        Ended::Cleanly
    }

    fn tell(&self, kind: EventType, object: Object) {
        let Some(key) = key_of(&object) else {
            return;
        };
        self.known.send_if_modified(|known| {
            let objects = Arc::make_mut(known.get_or_insert_default());
            match kind {
                EventType::Added | EventType::Modified => {
                    objects.insert(key, object);
                    true
                }
                EventType::Deleted => objects.remove(&key).is_some(),
                EventType::Bookmark | EventType::Error => false,
            }
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
