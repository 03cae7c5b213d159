//! How long a pool is without news when its leader goes.

use super::site::Site;
use crate::{
    bench::{
        BenchError, PATIENCE,
        load::{self, Target, call},
        watching::{self, MERGE_PATCH},
    },
    cluster::LabError,
};
use http::Method;
use serde_json::{Value, json};
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::{task::JoinSet, time::sleep};
use yurt_wire::Encoding;

const SLICES: &str = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices";
const NAME: &str = "takeover";
/// The annotation that counts changes.
const NUMBER: &str = "bench.yurt.dev/number";
/// Between two changes.
const INTERVAL: Duration = Duration::from_millis(25);

/// Watchers of one slice that changes all the time, one at each hub.
pub(super) struct Watchers {
    seen: Vec<Arc<AtomicU64>>,
    written: Arc<AtomicU64>,
    _tasks: JoinSet<()>,
}

impl Watchers {
    /// Starts changing and watching, and waits until every watcher has seen something.
    pub(super) async fn start(site: &Site) -> Result<Self, BenchError> {
        let slice = json!({"metadata": {"name": NAME, "annotations": {NUMBER: "0"}}, "addressType": "IPv4",
            "endpoints": [{"addresses": ["10.0.0.1"]}]});
        site.kube()
            .ensure(SLICES, &slice)
            .await
            .map_err(LabError::from)?;
        let mut tasks = JoinSet::new();
        let seen: Vec<_> = site
            .hubs
            .iter()
            .map(|hub| {
                let number = Arc::new(AtomicU64::new(0));
                tasks.spawn(follow(hub.target(), number.clone()));
                number
            })
            .collect();
        let written = Arc::new(AtomicU64::new(0));
        tasks.spawn(write(site.direct()?, written.clone()));
        let watchers = Self {
            seen,
            written,
            _tasks: tasks,
        };
        watchers.reach(1, &[]).await?;
        Ok(watchers)
    }

    /// From now until every watcher but those of `without` has seen a change that was made after now.
    pub(super) async fn reached(&self, without: &[usize]) -> Result<Duration, BenchError> {
        let began = Instant::now();
        // The one under way may have been made before.
        self.reach(self.written.load(Ordering::Acquire) + 2, without)
            .await?;
        Ok(began.elapsed())
    }

    async fn reach(&self, number: u64, without: &[usize]) -> Result<(), BenchError> {
        let deadline = Instant::now() + PATIENCE;
        let behind = || {
            let all = self
                .seen
                .iter()
                .enumerate()
                .filter(|(at, _)| !without.contains(at));
            all.filter(|(_, seen)| seen.load(Ordering::Acquire) < number)
                .count()
        };
        while behind() > 0 {
            if Instant::now() > deadline {
                return Err(BenchError::Patience {
                    what: format!("every watcher of a pool saw a change: {} did not", behind()),
                });
            }
            sleep(Duration::from_millis(2)).await;
        }
        Ok(())
    }
}

async fn write(target: Target, written: Arc<AtomicU64>) {
    for number in 1_u64.. {
        let patch = json!({"metadata": {"annotations": {NUMBER: number.to_string()}}});
        let path = format!("{SLICES}/{NAME}");
        let patched = target
            .call(
                Method::PATCH,
                &path,
                Some((MERGE_PATCH, load::json(&patch))),
            )
            .await;
        if let Err(error) = patched {
            tracing::warn!(%error, "a change of the bench");
        }
        written.store(number, Ordering::Release);
        sleep(INTERVAL).await;
    }
}

/// Watches for ever, and begins again when a watch ends, as any client does.
async fn follow(target: Target, seen: Arc<AtomicU64>) {
    let path =
        format!("{SLICES}?watch=true&resourceVersion=0&fieldSelector=metadata.name%3D{NAME}");
    loop {
        let watched = async {
            let body = watching::open(&target, &path, "application/json").await?;
            let read = watching::frames(body, Encoding::Json, |frame| {
                if let Some(number) = number(&frame.raw) {
                    seen.fetch_max(number, Ordering::AcqRel);
                }
                true
            });
            read.await.map_err(|why| call(&path, why))
        };
        if let Err(error) = watched.await {
            tracing::debug!(%error, "watch of the bench");
        }
        sleep(Duration::from_millis(20)).await;
    }
}

fn number(frame: &[u8]) -> Option<u64> {
    let event: Value = serde_json::from_slice(frame).ok()?;
    event["object"]["metadata"]["annotations"][NUMBER]
        .as_str()?
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_is_found_in_a_frame() {
        let frame = br#"{"type":"MODIFIED","object":{"metadata":{"annotations":{"bench.yurt.dev/number":"17"}}}}"#;
        assert_eq!(number(frame), Some(17));
        assert_eq!(
            number(br#"{"type":"BOOKMARK","object":{"metadata":{}}}"#),
            None
        );
    }
}
