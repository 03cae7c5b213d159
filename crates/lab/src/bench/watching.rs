//! Watches: as a kube-proxy keeps them, many of one object, and in a storm.

use super::{
    BenchError, PATIENCE,
    dataset::{self, NAMESPACE},
    load::{self, Latencies, Target, call},
};
use http::{Method, StatusCode};
use http_body_util::BodyExt as _;
use serde_json::json;
use std::{
    collections::HashMap,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::{
    sync::{Semaphore, mpsc, watch},
    task::{JoinHandle, JoinSet},
    time::{sleep, timeout},
};
use yurt_transport::ResponseBody;
use yurt_wire::{
    Encoding,
    watch::{EventType, Frame, FrameDecoder},
};

const MAX_FRAME: usize = 16 << 20;
/// Between two changes of the fan-out.
const CHANGE_INTERVAL: Duration = Duration::from_millis(25);
/// An EndpointSlice of 50 endpoints, about; until the first is seen.
const EVENT_BYTES: f64 = 10_000.0;
/// Changes of a storm under way at a time.
const STORM_WRITERS: usize = 8;
pub(super) const MERGE_PATCH: &str = "application/merge-patch+json";
/// The object of the fan-out.
const FANOUT: &str = "fanout";

/// Reads frames until the stream ends or `each` says `false`.
pub(super) async fn frames(
    mut body: ResponseBody,
    encoding: Encoding,
    mut each: impl FnMut(&Frame) -> bool,
) -> Result<(), String> {
    let mut decoder = FrameDecoder::new(encoding, MAX_FRAME);
    while let Some(chunk) = body.frame().await {
        let Ok(data) = chunk.map_err(|error| error.to_string())?.into_data() else {
            continue;
        };
        decoder.push(data);
        while let Some(frame) = decoder.next_frame().map_err(|error| error.to_string())? {
            if !each(&frame) {
                return Ok(());
            }
        }
    }
    Err("the watch ended".into())
}

/// Opens a watch.
pub(super) async fn open(
    target: &Target,
    path: &str,
    accept: &'static str,
) -> Result<ResponseBody, BenchError> {
    let response = target.send(Method::GET, path, accept, None).await?;
    match response.status() {
        StatusCode::OK => Ok(response.into_body()),
        status => Err(call(path, status)),
    }
}

/// What a watch has brought so far.
#[derive(Debug, Default)]
struct Received {
    bytes: AtomicU64,
    frames: AtomicU64,
    /// Of the frames, those that tell of objects.
    changes: AtomicU64,
}

/// A watch with initial events, in protobuf, that is read until it is dropped.
#[derive(Debug)]
pub(super) struct WatchList {
    received: Arc<Received>,
    reader: JoinHandle<()>,
}

impl WatchList {
    /// Opens it and waits for the end of the initial events.
    pub(super) async fn open(target: &Target, collection: &str) -> Result<Self, BenchError> {
        let path = format!(
            "{collection}?watch=true&allowWatchBookmarks=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan"
        );
        let accept =
            "application/vnd.kubernetes.protobuf;stream=watch,application/vnd.kubernetes.protobuf";
        let body = open(target, &path, accept).await?;
        let received = Arc::new(Received::default());
        let (complete, mut completed) = watch::channel(false);
        let counter = received.clone();
        let reader = tokio::spawn(async move {
            let read = frames(body, Encoding::Protobuf, |frame| {
                counter
                    .bytes
                    .fetch_add(frame.raw.len() as u64, Ordering::Relaxed);
                counter.frames.fetch_add(1, Ordering::Relaxed);
                let of_object = |kind: EventType| kind != EventType::Bookmark;
                if frame
                    .event
                    .as_ref()
                    .is_ok_and(|event| of_object(event.kind))
                {
                    counter.changes.fetch_add(1, Ordering::Relaxed);
                }
                if ends_initial_events(frame) {
                    complete.send_replace(true);
                }
                true
            });
            if let Err(why) = read.await {
                tracing::debug!(why, "watch ended");
            }
        });
        let list = Self { received, reader };
        match timeout(PATIENCE, completed.wait_for(|complete| *complete)).await {
            Ok(Ok(_)) => Ok(list),
            Ok(Err(_)) => Err(call(&path, "ended before the initial events did")),
            Err(_) => Err(BenchError::Patience {
                what: format!("the initial events of {path} were complete"),
            }),
        }
    }

    /// Bytes of all frames so far.
    pub(super) fn bytes(&self) -> u64 {
        self.received.bytes.load(Ordering::Relaxed)
    }

    fn frames(&self) -> u64 {
        self.received.frames.load(Ordering::Relaxed)
    }

    /// Objects told of so far, those of the beginning too.
    pub(super) fn changes(&self) -> u64 {
        self.received.changes.load(Ordering::Relaxed)
    }

    /// Whether the watch is still open.
    pub(super) fn is_open(&self) -> bool {
        !self.reader.is_finished()
    }
}

impl Drop for WatchList {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

fn ends_initial_events(frame: &Frame) -> bool {
    let Ok(event) = &frame.event else {
        return false;
    };
    event.kind == EventType::Bookmark
        && event.object.meta().is_ok_and(|meta| {
            meta.annotations
                .iter()
                .any(|(name, value)| name == "k8s.io/initial-events-end" && value == "true")
        })
}

/// Changes EndpointSlices so that a watch of them carries so many bytes per second.
pub(super) async fn storm(
    target: &Target,
    watched: &WatchList,
    services: usize,
    time: Duration,
    bytes_per_second: f64,
) -> Result<(), BenchError> {
    let places = Arc::new(Semaphore::new(STORM_WRITERS));
    let mut writers = JoinSet::new();
    let begun = Instant::now();
    let (bytes, frames) = (watched.bytes(), watched.frames());
    let mut sent = 0_usize;
    while begun.elapsed() < time {
        let received = (watched.bytes() - bytes) as f64;
        let events = (watched.frames() - frames) as f64;
        let event = if events > 0.0 {
            received / events
        } else {
            EVENT_BYTES
        };
        let under_way = (sent as f64 - events).max(0.0) * event;
        if received + under_way > begun.elapsed().as_secs_f64() * bytes_per_second {
            sleep(Duration::from_millis(2)).await;
            continue;
        }
        let Ok(place) = places.clone().acquire_owned().await else {
            break;
        };
        let (target, n) = (target.clone(), sent);
        writers.spawn(async move {
            let name = dataset::slice_name(n % services);
            let path =
                format!("/apis/discovery.k8s.io/v1/namespaces/{NAMESPACE}/endpointslices/{name}");
            let patch = json!({ "metadata": { "annotations": { "storm": n.to_string() } } });
            let patched = target
                .call(
                    Method::PATCH,
                    &path,
                    Some((MERGE_PATCH, load::json(&patch))),
                )
                .await;
            drop(place);
            patched.map(drop)
        });
        sent += 1;
        while let Some(done) = writers.try_join_next() {
            done.map_err(|error| call("storm", error))??;
        }
    }
    while let Some(done) = writers.join_next().await {
        done.map_err(|error| call("storm", error))??;
    }
    Ok(())
}

/// Many watchers of one object that changes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fanout {
    pub(super) namespace: &'static str,
    pub(super) watchers: usize,
    pub(super) changes: usize,
}

/// From a change to its event at a watcher.
#[derive(Debug)]
pub(super) struct FanoutResult {
    /// From sending the change.
    pub(super) sent: Latencies,
    /// From its acknowledgement; nothing where the event was there first.
    pub(super) acknowledged: Latencies,
    /// Events that did not come.
    pub(super) missed: usize,
}

/// Nanoseconds on this process' clock.
fn clock() -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    // Never 0, which marks the object before its first change.
    u64::try_from(START.get_or_init(Instant::now).elapsed().as_nanos()).unwrap_or(u64::MAX) + 1
}

/// The `sent` entry of the object in a JSON frame.
fn sent_at(frame: &[u8]) -> Option<u64> {
    const KEY: &[u8] = b"\"sent\":\"";
    let at = frame.windows(KEY.len()).position(|part| part == KEY)? + KEY.len();
    let digits = frame[at..].iter().take_while(|byte| byte.is_ascii_digit());
    let text: Vec<u8> = digits.copied().collect();
    std::str::from_utf8(&text).ok()?.parse().ok()
}

impl Fanout {
    /// Changes the object at `writer` while watchers, each with a target of its own, look at it.
    pub(super) async fn run(
        &self,
        writer: &Target,
        watched: impl Fn() -> Target,
    ) -> Result<FanoutResult, BenchError> {
        let collection = format!("/api/v1/namespaces/{}/configmaps", self.namespace);
        let object = format!("{collection}/{FANOUT}");
        // An earlier run may have left it.
        let _ = writer.call(Method::DELETE, &object, None).await;
        let new = load::json(&dataset::config_map(self.namespace, FANOUT));
        writer
            .call(Method::POST, &collection, Some(("application/json", new)))
            .await?;

        let path = format!("{collection}?watch=true&fieldSelector=metadata.name%3D{FANOUT}");
        let (ready, mut readies) = mpsc::channel(self.watchers);
        let mut watchers = JoinSet::new();
        for _ in 0..self.watchers {
            let target = watched();
            let body = open(&target, &path, "application/json").await?;
            let (ready, changes) = (ready.clone(), self.changes);
            watchers.spawn(async move {
                // Sent, received.
                let mut seen: Vec<(u64, u64)> = Vec::with_capacity(changes);
                let read = frames(body, Encoding::Json, |frame| {
                    match (sent_at(&frame.raw), clock()) {
                        // Room for one word from each watcher: never full.
                        (Some(0), _) => drop(ready.try_send(())),
                        (Some(sent), now) => seen.push((sent, now)),
                        (None, _) => {}
                    }
                    seen.len() < changes
                });
                // Bounded by the caller: what came until then counts.
                let _ = timeout(PATIENCE, read).await;
                drop(target);
                seen
            });
        }
        drop(ready);
        for _ in 0..self.watchers {
            match timeout(PATIENCE, readies.recv()).await {
                Ok(Some(())) => {}
                Ok(None) => return Err(call(&path, "the watches ended")),
                Err(_) => {
                    return Err(BenchError::Patience {
                        what: format!("every watcher of {path} saw the object"),
                    });
                }
            }
        }
        let mut acknowledged = HashMap::with_capacity(self.changes);
        for _ in 0..self.changes {
            sleep(CHANGE_INTERVAL).await;
            let sent = clock();
            let change = load::json(&json!({ "data": { "sent": sent.to_string() } }));
            writer
                .call(Method::PATCH, &object, Some((MERGE_PATCH, change)))
                .await?;
            acknowledged.insert(sent, clock());
        }
        let mut result = FanoutResult {
            sent: Latencies::new(),
            acknowledged: Latencies::new(),
            missed: self.watchers * self.changes,
        };
        while let Some(watcher) = watchers.join_next().await {
            for (sent, received) in watcher.unwrap_or_default() {
                let since = |begun: u64| Duration::from_nanos(received.saturating_sub(begun));
                result.missed = result.missed.saturating_sub(1);
                result.sent.record(since(sent));
                if let Some(acknowledged) = acknowledged.get(&sent) {
                    result.acknowledged.record(since(*acknowledged));
                }
            }
        }
        Ok(result)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stamp_is_found_in_a_frame() {
        let frame = br#"{"type":"MODIFIED","object":{"data":{"config.yaml":"x","sent":"12345"},"kind":"ConfigMap"}}"#;
        assert_eq!(sent_at(frame), Some(12345));
        assert_eq!(sent_at(br#"{"type":"BOOKMARK","object":{}}"#), None);
        assert_eq!(sent_at(br#"{"data":{"sent":"}}"#), None);
    }
}
