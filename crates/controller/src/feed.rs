//! Follows a collection: everything there is, then every change, for as long as it takes.

use crate::{
    Collection, Key, Scope,
    kube::{Kube, KubeError},
    objects::revision,
};
use serde_json::Value;
use std::{collections::BTreeSet, time::Duration};
use tokio_util::sync::CancellationToken;
use yurt_wire::request::encode_query_value;

/// The first pause after a failed watch, and the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

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
}

/// Watches what `scope` takes of `collection` until `shutdown`.
pub async fn follow(
    kube: &Kube,
    collection: &Collection,
    scope: &Scope,
    sink: &impl Sink,
    shutdown: CancellationToken,
) {
    let mut pause = FIRST_PAUSE;
    let mut from: Option<String> = None;
    loop {
        let ended = tokio::select! {
            () = shutdown.cancelled() => return,
            ended = stream(kube, collection, scope, sink, &mut from) => ended,
        };
        pause = match ended {
            Ok(()) => FIRST_PAUSE,
            Err(error) => {
                if error.code() == Some(410) {
                    from = None;
                } else {
                    tracing::debug!(collection = %collection.plural, %error, ?pause, "watch failed");
                }
                (pause * 2).min(LONGEST_PAUSE)
            }
        };
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// One watch stream, from `from` or with everything first.
async fn stream(
    kube: &Kube,
    collection: &Collection,
    scope: &Scope,
    sink: &impl Sink,
    from: &mut Option<String>,
) -> Result<(), KubeError> {
    let path = collection.path(&scope.namespace);
    let start = match from {
        Some(revision) => format!("resourceVersion={revision}"),
        None => "resourceVersionMatch=NotOlderThan&sendInitialEvents=true".into(),
    };
    let mut request = format!("{path}?watch=true&allowWatchBookmarks=true&{start}");
    for (parameter, selector) in [
        ("labelSelector", &scope.labels),
        ("fieldSelector", &scope.fields),
    ] {
        if !selector.is_empty() {
            request.push_str(&format!("&{parameter}={}", encode_query_value(selector)));
        }
    }
    let accept = if scope.metadata_only {
        Accept::Metadata
    } else {
        Accept::Whole
    };
    let mut lines = kube.watch_as(&request, accept.header()).await?;
    let mut told: Option<BTreeSet<Key>> = from.is_none().then(BTreeSet::new);
    while let Some(mut event) = lines.next().await {
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
                sink.observe(object, phase);
            }
            Some("DELETED") => {
                if let Some(told) = &mut told {
                    told.remove(&Key::of(&object));
                }
                sink.observe_gone(&object, phase);
            }
            Some("BOOKMARK") => {
                let annotations = &object["metadata"]["annotations"];
                if annotations["k8s.io/initial-events-end"] == "true"
                    && let Some(told) = told.take()
                {
                    sink.complete(&told, revision(&object));
                }
            }
            _ => {
                let code = object["code"]
                    .as_u64()
                    .and_then(|code| code.try_into().ok());
                return Err(KubeError::Refused {
                    path,
                    code: code.unwrap_or(500),
                    reason: object["reason"].as_str().unwrap_or_default().into(),
                    message: object["message"].as_str().unwrap_or_default().into(),
                });
            }
        }
        // Before the end of the initial events there is nothing to go on from.
        if told.is_none() && text.is_some() {
            *from = text;
        }
    }
    Ok(())
}
