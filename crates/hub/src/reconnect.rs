//! What happens when the link comes and goes: the mode of the whole hub, and the replay of what was written meanwhile.

use crate::{
    caller::Caller,
    journal::{Cloud, Journal},
    metrics::Metrics,
    offline::Offline,
    route::Mode,
    upstream::{GRACE, Outgoing, OutgoingBody, SendError, Server, Upstreams},
};
use bytes::Bytes;
use http::{Request, Response};
use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use yurt_transport::{ClientError, CollectError, ResponseBody};

/// How long the return to the cloud may wait for the replay, so that clients do not see their own writes undone for a moment.
/// After it, the replay goes on beside.
const REPLAY_FIRST: Duration = Duration::from_secs(1);
/// Between looks whether something waits for the cloud: after a cut, or because the answer to a single write was lost.
const REPLAY_PAUSE: Duration = Duration::from_secs(2);
/// The longest pause between attempts that achieve nothing.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// Attempts in a row that achieve nothing, with the cloud there, after which younger writes no longer queue up behind.
const STUCK: u32 = 3;
/// Largest answer to a replayed write.
const REPLAY_ANSWER: usize = 4 << 20;

/// The cloud as the journal needs it: the node's own identity, any API server.
#[derive(Clone, Debug)]
pub struct NodeCloud(pub Arc<Upstreams>);

/// The same during a drill, of which the cluster is to notice nothing.
#[derive(Clone, Debug)]
pub struct Drilled(pub Arc<Upstreams>);

type Answering<'a> =
    Pin<Box<dyn Future<Output = Result<Response<Bytes>, ClientError>> + Send + 'a>>;

impl Cloud for NodeCloud {
    fn call(&self, request: Request<Bytes>, timeout: Duration) -> Answering<'_> {
        Box::pin(async move {
            let sent = self.0.send(&Caller::Node, outgoing(request, timeout)).await;
            whole(sent, timeout).await
        })
    }
}

impl Cloud for Drilled {
    fn call(&self, request: Request<Bytes>, timeout: Duration) -> Answering<'_> {
        Box::pin(async move {
            let request = outgoing(request, timeout);
            let sent = self.0.send_despite_drill(request).await;
            whole(sent, timeout).await
        })
    }
}

fn outgoing(request: Request<Bytes>, wait: Duration) -> Outgoing {
    let (parts, body) = request.into_parts();
    Outgoing {
        safe: parts.method.is_safe(),
        method: parts.method,
        uri: parts.uri,
        headers: parts.headers,
        body: OutgoingBody::Held(body),
        wait,
    }
}

/// The whole answer, within bounds.
async fn whole(
    sent: Result<(Response<ResponseBody>, Arc<Server>), SendError>,
    timeout: Duration,
) -> Result<Response<Bytes>, ClientError> {
    let (response, server) = match sent {
        Ok(answer) => answer,
        Err(SendError::Failed(error)) => return Err(error),
        Err(error) => {
            return Err(ClientError::Connect {
                authority: "the cloud".into(),
                source: error.to_string().into(),
            });
        }
    };
    let (parts, body) = response.into_parts();
    let authority = || server.authority().to_owned();
    match tokio::time::timeout(timeout, yurt_transport::collect(body, REPLAY_ANSWER)).await {
        Ok(Ok(body)) => {
            server.heard();
            Ok(Response::from_parts(parts, body))
        }
        Ok(Err(error @ CollectError::TooLarge(_))) => Err(ClientError::Broken {
            authority: authority(),
            source: error.into(),
        }),
        Ok(Err(error)) => {
            server.suspect();
            Err(ClientError::Broken {
                authority: authority(),
                source: error.into(),
            })
        }
        Err(_) => Err(ClientError::Timeout {
            authority: authority(),
            after: timeout,
        }),
    }
}

/// Keeps `mode` true until `shutdown`: offline as soon as no server can be reached; online again when one can and what was
/// written meanwhile had its chance to be replayed.
pub async fn supervise(
    upstreams: Arc<Upstreams>,
    journal: Journal,
    offline: Offline,
    mode: watch::Sender<Mode>,
    in_order: Arc<AtomicBool>,
    metrics: Metrics,
    shutdown: CancellationToken,
) {
    let mut changes = upstreams.changes();
    let mut offline_since: Option<Instant> = None;
    let mut stuck = 0;
    let mut pause = REPLAY_PAUSE;
    let mut replay_at = Instant::now();
    let cloud = NodeCloud(upstreams.clone());
    loop {
        changes.borrow_and_update();
        if !upstreams.reachable() {
            if offline_since.is_none() {
                offline_since = Some(Instant::now());
                in_order.store(true, Ordering::Relaxed);
                (stuck, pause, replay_at) = (0, REPLAY_PAUSE, Instant::now());
                metrics.offline(true, 0.0);
                offline.set_away_since(Some(SystemTime::now()));
                mode.send_replace(Mode::Offline);
                tracing::warn!(
                    "no API server answers{}: the node answers from what it knows",
                    if upstreams.starting() { " yet" } else { "" }
                );
            }
            tokio::select! {
                _ = changes.changed() => {}
                () = shutdown.cancelled() => return,
            }
            continue;
        }
        let may_replay = upstreams.up() && upstreams.identified();
        if journal.pending() > 0 && may_replay && Instant::now() >= replay_at {
            let replay = replay(&journal, &cloud, &metrics);
            tokio::pin!(replay);
            // The replay is not given up half-way: a write whose answer nobody reads would be sent again.
            let in_time = tokio::select! {
                progress = &mut replay => Some(progress),
                () = tokio::time::sleep(REPLAY_FIRST), if offline_since.is_some() => None,
                () = shutdown.cancelled() => return,
            };
            let progress = match in_time {
                Some(progress) => progress,
                None => {
                    come_back(&mode, &metrics, &offline, &mut offline_since);
                    tokio::select! {
                        progress = &mut replay => progress,
                        () = shutdown.cancelled() => return,
                    }
                }
            };
            if progress {
                (stuck, pause) = (0, REPLAY_PAUSE);
                in_order.store(true, Ordering::Relaxed);
            } else if upstreams.up() {
                stuck += 1;
                pause = (pause * 2).min(LONGEST_PAUSE);
                if stuck == STUCK {
                    // Better an old status that returns for a moment than a node whose leases do not get through.
                    tracing::warn!(
                        waiting = journal.pending(),
                        "writes of the offline time cannot be replayed; younger ones go ahead of them"
                    );
                    in_order.store(false, Ordering::Relaxed);
                }
            }
            replay_at = Instant::now() + pause;
        }
        if upstreams.reachable() {
            come_back(&mode, &metrics, &offline, &mut offline_since);
        }
        tokio::select! {
            _ = changes.changed() => {}
            // Nothing came since the start: then it is not there.
            () = tokio::time::sleep(GRACE), if upstreams.starting() => {}
            () = tokio::time::sleep(REPLAY_PAUSE) => {}
            () = shutdown.cancelled() => return,
        }
    }
}

fn come_back(
    mode: &watch::Sender<Mode>,
    metrics: &Metrics,
    offline: &Offline,
    offline_since: &mut Option<Instant>,
) {
    if let Some(since) = offline_since.take() {
        let lasted = since.elapsed();
        metrics.offline(false, lasted.as_secs_f64());
        offline.set_away_since(None);
        tracing::info!(offline_for = ?lasted, "the cloud is back");
        mode.send_replace(Mode::Online);
    }
}

/// One attempt; whether it achieved anything.
async fn replay(journal: &Journal, cloud: &NodeCloud, metrics: &Metrics) -> bool {
    let before = journal.pending();
    let began = Instant::now();
    let report = journal.replay(cloud).await;
    metrics.replayed(report.applied as u64, report.dropped.len() as u64);
    tracing::info!(
        before,
        applied = report.applied,
        dropped = report.dropped.len(),
        kept = report.kept,
        stopped = report.stopped,
        took = ?began.elapsed(),
        "writes of the offline time replayed"
    );
    report.applied > 0 || !report.dropped.is_empty()
}
