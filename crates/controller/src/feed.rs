//! Follows a collection: everything there is, then every change, for as long as it takes.
//!
//! Servers since 1.32 tell the state as the beginning of a watch (`sendInitialEvents`); others refuse that, or ignore it. They are
//! asked for pages of a list, then for a watch from there.

use crate::{
    Collection, Key, Scope,
    kube::{Kube, KubeError, Lines},
    objects::revision,
};
use serde_json::Value;
use std::{collections::BTreeSet, time::Duration};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use yurt_wire::request::encode_query_value;

/// The first pause after a failed watch, and the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// A server that does not know of initial events tells what there is and then nothing; so long is waited for their end.
const SILENCE: Duration = Duration::from_secs(10);
/// The longest that the initial events may take.
const LONGEST_START: Duration = Duration::from_secs(120);
/// A stream that ends sooner is a failure: a server that closes every one at once must not be asked ten times a second.
const SHORT: Duration = Duration::from_secs(1);
/// Objects in a page of a list.
const PAGE: usize = 500;
/// Lists that expired page by page before one is asked for as a whole.
const EXPIRED: u32 = 2;

/// How much of each object is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accept {
    /// All of it.
    Whole,
    /// Its metadata (`PartialObjectMetadata`).
    Metadata,
}

impl Accept {
    /// The `Accept` header.
    pub fn header(self) -> &'static str {
        match self {
            Self::Whole => "application/json",
            Self::Metadata => {
                "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json"
            }
        }
    }

    /// The `Accept` header for a list.
    fn list_header(self) -> &'static str {
        match self {
            Self::Whole => self.header(),
            Self::Metadata => {
                "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json"
            }
        }
    }
}

/// What an event belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The state in the beginning, told in no order.
    Initial,
    /// What happened since, in order.
    Live,
}

/// Who takes in what is told.
pub trait Sink: Sync {
    /// An object is new or has changed.
    fn observe(&self, object: Value, phase: Phase);
    /// An object, shown as it was last, is gone.
    fn observe_gone(&self, object: &Value, phase: Phase);
    /// Everything there is at a revision has been told; what is not in `told` went while nobody watched.
    fn complete(&self, told: &BTreeSet<Key>, revision: u64);
    /// Nothing is told at the moment, because of this.
    fn troubled(&self, _: &KubeError) {}
}

/// How the state is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Start {
    /// As the beginning of a watch.
    Events,
    /// As a list, in pages.
    List,
}

/// How a stream ended.
enum End {
    /// As streams do.
    Closed,
    /// The server does not know of initial events.
    NoInitialEvents,
}

/// Whether a refusal says that the server does not know of initial events, or that the feature is off: an invalid request by its
/// words (1.22 to 1.26 refuse `resourceVersionMatch`, later ones `sendInitialEvents`), or a fault where the server's etcd cannot tell
/// its progress (1.36 before etcd 3.5.13). As client-go has it, any way on is better than none.
pub fn refuses_initial_events(code: u16, message: &str) -> bool {
    let named = ["sendInitialEvents", "resourceVersionMatch"];
    match code {
        400 | 422 | 500 => true,
        403 => named.iter().any(|name| message.contains(name)),
        _ => false,
    }
}

/// Watches what `scope` takes of `collection` until `shutdown`.
pub async fn follow(
    kube: &Kube,
    collection: &Collection,
    scope: &Scope,
    sink: &impl Sink,
    shutdown: CancellationToken,
) {
    let mut feed = Feed {
        kube,
        collection,
        scope,
        sink,
        start: Start::Events,
        from: None,
        expired: 0,
    };
    let mut pause = FIRST_PAUSE;
    let mut trouble = None;
    loop {
        let began = Instant::now();
        let ended = tokio::select! {
            // Where all is over already, nobody is asked.
            biased;
            () = shutdown.cancelled() => return,
            ended = feed.stream() => ended,
        };
        pause = match ended {
            Ok(End::Closed) => {
                trouble = None;
                if began.elapsed() < SHORT {
                    (pause * 2).min(LONGEST_PAUSE)
                } else {
                    FIRST_PAUSE
                }
            }
            Ok(End::NoInitialEvents) => {
                feed.start = Start::List;
                FIRST_PAUSE
            }
            Err(KubeError::Refused { code, message, .. })
                if feed.starts_by_events() && refuses_initial_events(code, &message) =>
            {
                feed.start = Start::List;
                FIRST_PAUSE
            }
            Err(error) => {
                if error.code() == Some(410) {
                    feed.from = None;
                } else {
                    sink.troubled(&error);
                    // Said once, however long it takes.
                    if trouble != Some(error.code()) {
                        trouble = Some(error.code());
                        report(collection, &error);
                    }
                }
                (pause * 2).min(LONGEST_PAUSE)
            }
        };
        // Not all collections at once.
        let jittered = pause.mul_f64(0.5 + fastrand::f64());
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(jittered) => {}
        }
    }
}

fn report(collection: &Collection, error: &KubeError) {
    let resource = &collection.plural;
    match error.code() {
        Some(404) => {
            tracing::info!(%resource, version = %collection.api_version, "not served; waiting until it is");
        }
        Some(401 | 403) => tracing::error!(%resource, %error, "may not be watched"),
        _ => tracing::warn!(%resource, %error, "watch failed; trying again"),
    }
}

struct Feed<'a, S> {
    kube: &'a Kube,
    collection: &'a Collection,
    scope: &'a Scope,
    sink: &'a S,
    start: Start,
    /// The revision to go on from.
    from: Option<String>,
    /// Lists that the server forgot before they were read.
    expired: u32,
}

impl<S: Sink> Feed<'_, S> {
    fn starts_by_events(&self) -> bool {
        self.from.is_none() && self.start == Start::Events
    }

    fn accept(&self) -> Accept {
        if self.scope.metadata_only {
            Accept::Metadata
        } else {
            Accept::Whole
        }
    }

    /// The path of a request with these parameters, for what the scope takes.
    fn request(&self, parameters: &str) -> String {
        let mut request = self.collection.path(&self.scope.namespace);
        request.push('?');
        request.push_str(parameters);
        for (parameter, selector) in [
            ("labelSelector", &self.scope.labels),
            ("fieldSelector", &self.scope.fields),
        ] {
            if !selector.is_empty() {
                request.push_str(&format!("&{parameter}={}", encode_query_value(selector)));
            }
        }
        request
    }

    /// One watch stream, from `from` or with everything first.
    async fn stream(&mut self) -> Result<End, KubeError> {
        if self.from.is_none() && self.start == Start::List {
            match self.list().await {
                Ok(revision) => self.from = Some(revision),
                Err(error) => {
                    if error.code() == Some(410) {
                        self.expired += 1;
                    }
                    return Err(error);
                }
            }
            self.expired = 0;
        }
        let start = match &self.from {
            Some(revision) => format!("resourceVersion={revision}"),
            None => "resourceVersionMatch=NotOlderThan&sendInitialEvents=true".into(),
        };
        let request = self.request(&format!("watch=true&allowWatchBookmarks=true&{start}"));
        let lines = self.kube.watch_as(&request, self.accept().header()).await?;
        self.read(lines).await
    }

    /// Reads a stream to its end.
    async fn read(&mut self, mut lines: Lines) -> Result<End, KubeError> {
        let mut told: Option<BTreeSet<Key>> = self.from.is_none().then(BTreeSet::new);
        let latest = Instant::now() + LONGEST_START;
        loop {
            let event = match &told {
                None => lines.next().await,
                Some(_) => {
                    match timeout_at(latest.min(Instant::now() + SILENCE), lines.next()).await {
                        Ok(event) => event,
                        Err(_) => return Ok(End::NoInitialEvents),
                    }
                }
            };
            let Some(mut event) = event else {
                return Ok(End::Closed);
            };
            let object = event["object"].take();
            let text = object["metadata"]["resourceVersion"]
                .as_str()
                .map(str::to_owned);
            let phase = if told.is_some() {
                Phase::Initial
            } else {
                Phase::Live
            };
            match event["type"].as_str() {
                Some("ADDED" | "MODIFIED") => {
                    if let Some(told) = &mut told {
                        told.insert(Key::of(&object));
                    }
                    self.sink.observe(object, phase);
                }
                Some("DELETED") => {
                    if let Some(told) = &mut told {
                        told.remove(&Key::of(&object));
                    }
                    self.sink.observe_gone(&object, phase);
                }
                Some("BOOKMARK") => {
                    let annotations = &object["metadata"]["annotations"];
                    if annotations["k8s.io/initial-events-end"] == "true"
                        && let Some(told) = told.take()
                    {
                        self.sink.complete(&told, revision(&object));
                    } else if told.is_some() {
                        return Ok(End::NoInitialEvents);
                    }
                }
                _ => return Err(self.told_error(&object)),
            }
            // Before the end of the initial events there is nothing to go on from.
            if told.is_none() && text.is_some() {
                self.from = text;
            }
        }
    }

    /// The error that a stream ends with.
    fn told_error(&self, status: &Value) -> KubeError {
        let code = status["code"]
            .as_u64()
            .and_then(|code| code.try_into().ok());
        KubeError::Refused {
            path: self.collection.path(&self.scope.namespace),
            code: code.unwrap_or(500),
            reason: status["reason"].as_str().unwrap_or_default().into(),
            message: status["message"].as_str().unwrap_or_default().into(),
        }
    }

    /// Everything there is, page by page; at which revision.
    async fn list(&self) -> Result<String, KubeError> {
        let limit = if self.expired < EXPIRED {
            format!("limit={PAGE}")
        } else {
            // The server forgets pages faster than they are read; from its cache it answers at once.
            "resourceVersion=0".into()
        };
        let (mut told, mut next) = (BTreeSet::new(), String::new());
        loop {
            let parameters = if next.is_empty() {
                limit.clone()
            } else {
                format!("{limit}&continue={}", encode_query_value(&next))
            };
            let request = self.request(&parameters);
            let mut page = self
                .kube
                .get_as(&request, self.accept().list_header())
                .await?;
            if let Value::Array(items) = page["items"].take() {
                for item in items {
                    told.insert(Key::of(&item));
                    self.sink.observe(item, Phase::Initial);
                }
            }
            let text = |field: &str| page["metadata"][field].as_str().unwrap_or_default();
            next = text("continue").to_owned();
            if next.is_empty() {
                self.sink.complete(&told, revision(&page));
                return Ok(text("resourceVersion").to_owned());
            }
        }
    }
}

#[cfg(test)]
mod tests;
