//! Probing one API server: asks for a sign of life when the link plans so, and reports what came.

use super::Server;
use crate::link::{Input, Plan, State};
use http::{Request, header};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use yurt_transport::{Client, ClientError};

/// Answered by every kube-apiserver to everybody, cheaply, and not subject to its flow control.
const PROBE_PATH: &str = "/livez";
/// How long a probe may still be answered after it counted as missed: a retransmission that comes late is life all the same.
const LATE: Duration = Duration::from_secs(4);
/// Probes under way at one time.
const MOST_PROBES: usize = 6;
/// Probes missed in a row on the shared connection, while others are answered, after which it is given up.
const STUCK: u32 = 3;
/// How often the second connection is kept warm.
const WARM: Duration = Duration::from_secs(20);

/// Which connection a probe went over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Path {
    Shared,
    Second,
}

type Probes = JoinSet<(Path, Result<Duration, ClientError>)>;

/// Probes `server` until `shutdown`.
pub(super) async fn run(server: Arc<Server>, shutdown: CancellationToken) {
    let mut probes = Probes::new();
    let mut absorbed = Duration::ZERO;
    let mut stuck = 0;
    let mut warmed = Instant::now();
    loop {
        absorb(&server, &mut absorbed);
        let plan = server.link().plan();
        let wait = plan.at.saturating_duration_since(Instant::now());
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = server.nudge.notified(), if !wait.is_zero() => continue,
            () = tokio::time::sleep(wait) => {}
        }
        // Traffic in the meantime makes the probe needless.
        if absorb(&server, &mut absorbed) && server.link().plan().at > Instant::now() {
            continue;
        }
        let state = server.link_state();
        let before = absorbed;
        if probes.len() < MOST_PROBES {
            // After a reset the shared connection is left to requests: probes must not wait for its slower dials.
            let path = if state == State::Down {
                Path::Second
            } else {
                Path::Shared
            };
            ask(&server, &mut probes, path, plan);
            if plan.second_opinion || (state == State::Up && warmed.elapsed() >= WARM) {
                warmed = Instant::now();
                ask(&server, &mut probes, Path::Second, plan);
            }
        }
        let outcome = tokio::select! {
            () = shutdown.cancelled() => return,
            outcome = first_sign(&mut probes, plan.wait) => outcome,
        };
        absorb(&server, &mut absorbed);
        let heard_meanwhile = absorbed > before;
        match outcome {
            Outcome::Answered(path, rtt) => {
                // Under suspicion both are asked: the second answering alone says that the first is stuck.
                stuck = if path == Path::Second && state == State::Up {
                    stuck + 1
                } else {
                    0
                };
                if stuck >= STUCK {
                    stuck = 0;
                    tracing::warn!(server = %server.authority, "the connection is stuck while the server answers on another; dropping it");
                    server.node.reset();
                    server.bearer.reset();
                }
                probes.abort_all();
                while probes.join_next().await.is_some() {}
                *server.trouble() = None;
                server.input(Instant::now(), Input::Answered { rtt });
                if let Some(rtt) = server.link().rtt() {
                    server
                        .metrics
                        .server_rtt(&server.authority, rtt.as_secs_f64());
                }
                if state != State::Up && server.link_state() == State::Up {
                    warmed = Instant::now();
                }
            }
            Outcome::Refused(error) => {
                server.refused(&error);
                server.input(Instant::now(), Input::Refused);
            }
            Outcome::Missed if heard_meanwhile && state == State::Up => {}
            Outcome::Missed => server.input(Instant::now(), Input::Missed),
        }
        if server.link_state() == State::Down && state != State::Down {
            probes.abort_all();
            while probes.join_next().await.is_some() {}
        }
    }
}

/// Takes in what traffic showed since the last time; true when there was something.
fn absorb(server: &Server, absorbed: &mut Duration) -> bool {
    let heard = server.heard.get();
    if heard <= *absorbed {
        return false;
    }
    *absorbed = heard;
    server.input(server.origin + heard, Input::Heard);
    true
}

enum Outcome {
    Answered(Path, Duration),
    Refused(ClientError),
    Missed,
}

/// The first answer within `wait`; a refusal only when nothing else is under way that could still answer.
async fn first_sign(probes: &mut Probes, wait: Duration) -> Outcome {
    let deadline = tokio::time::Instant::now() + wait;
    loop {
        match tokio::time::timeout_at(deadline, probes.join_next()).await {
            Err(_) => return Outcome::Missed,
            Ok(Some(Ok((path, Ok(rtt))))) => return Outcome::Answered(path, rtt),
            // Long given up on.
            Ok(Some(Ok((_, Err(ClientError::Timeout { .. }))))) => {}
            Ok(Some(Ok((_, Err(error))))) if probes.is_empty() => return Outcome::Refused(error),
            Ok(Some(_)) => {}
            Ok(None) => {
                tokio::time::sleep_until(deadline).await;
                return Outcome::Missed;
            }
        }
    }
}

fn ask(server: &Server, probes: &mut Probes, path: Path, plan: Plan) {
    let client = match path {
        Path::Second => server.second.clone(),
        Path::Shared => server.shared().clone(),
    };
    probes.spawn(async move { (path, probe(&client, plan.wait + LATE).await) });
}

async fn probe(client: &Client, wait: Duration) -> Result<Duration, ClientError> {
    let mut request = Request::new(yurt_transport::empty());
    *request.uri_mut() = http::Uri::from_static(PROBE_PATH);
    request.headers_mut().insert(
        header::USER_AGENT,
        http::HeaderValue::from_static(crate::USER_AGENT),
    );
    let began = Instant::now();
    let response = client.send(request, wait).await?;
    let rtt = began.elapsed();
    let status = response.status();
    // Read to its end, so that an HTTP/1.1 connection can be used again.
    let _ = tokio::time::timeout(
        wait,
        yurt_transport::collect(response.into_body(), 64 << 10),
    )
    .await;
    // A balancer whose API server is gone, or an API server whose storage is: no use sending requests there.
    if status.is_server_error() {
        return Err(ClientError::Broken {
            authority: client.authority().to_owned(),
            source: format!("{PROBE_PATH} answered {status}").into(),
        });
    }
    Ok(rtt)
}
