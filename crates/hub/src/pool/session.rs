//! A session with one candidate: its presence, listened to for as long as it is of interest. A leader of OpenYurt tells none; that
//! it answers is then all that is known of it.

use super::{
    peers::{Distrust, PeerError, Peers},
    presence::{self, Beat, Beats, Unbelievable},
    role::PeerNode,
};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use http_body_util::BodyExt;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};
use yurt_transport::ResponseBody;

/// How long the head of an answer may take.
const HEAD: Duration = Duration::from_secs(2);
/// Between attempts to reach a candidate; doubled up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(3);
/// A leader of OpenYurt may have become one of ours.
const LOOK_AGAIN: Duration = Duration::from_secs(60);
/// Largest answer of such a leader that is read.
const MOST_ANSWER: usize = 64 << 10;
/// What a leader of OpenYurt answers out of its memory, whatever its link.
const CHEAP: &str = "/api/v1/namespaces/default/services?fieldSelector=metadata.name%3Dkubernetes&resourceVersion=0";

/// What is new of a candidate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Report {
    /// It told of itself.
    Beat(Beat),
    /// It answers, and is OpenYurt's.
    OpenYurt,
    /// It does not answer, and why.
    Gone(String),
}

/// Which session a report is of.
pub(super) type Reports = mpsc::Sender<(u64, Report)>;

/// An open session; it ends when this is dropped.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) id: u64,
    _guard: DropGuard,
}

/// Begins a session.
pub(super) fn open(
    tasks: &TaskTracker,
    shutdown: &CancellationToken,
    peers: &Peers,
    peer: &PeerNode,
    id: u64,
    reports: &Reports,
) -> Session {
    let ended = shutdown.child_token();
    let listener = Listener {
        peers: peers.clone(),
        peer: peer.clone(),
        id,
        reports: reports.clone(),
    };
    let token = ended.clone();
    tasks.spawn(async move {
        tokio::select! {
            () = listener.run() => {}
            () = token.cancelled() => {}
        }
    });
    Session {
        id,
        _guard: ended.drop_guard(),
    }
}

struct Listener {
    peers: Peers,
    peer: PeerNode,
    id: u64,
    reports: Reports,
}

/// Why nothing is heard any more.
enum Ended {
    /// It does not answer.
    Gone(String),
    /// It is not to be believed.
    Unbelievable(Unbelievable),
}

impl Listener {
    async fn run(self) {
        let mut pause = FIRST_PAUSE;
        loop {
            let begun = Instant::now();
            let ended = self.once().await;
            let why = match ended {
                Ended::Gone(why) => why,
                Ended::Unbelievable(what) => {
                    let reason = match what {
                        Unbelievable::Garbage => Distrust::Garbage,
                        Unbelievable::Another => Distrust::Lies,
                        Unbelievable::Flood => Distrust::Flood,
                    };
                    self.peers.distrust(&self.peer.node, reason);
                    what.to_string()
                }
            };
            // What else was under way there would hang until somebody notices.
            self.peers.reset(&self.peer);
            if self.report(Report::Gone(why)).await.is_err() {
                return;
            }
            if begun.elapsed() > LONGEST_PAUSE {
                pause = FIRST_PAUSE;
            }
            tokio::time::sleep(pause.mul_f64(0.5 + fastrand::f64())).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    async fn report(&self, report: Report) -> Result<(), ()> {
        let sent = self.reports.send((self.id, report)).await;
        sent.map_err(|_| ())
    }

    async fn ask(&self, path: &'static str) -> Result<Response<ResponseBody>, PeerError> {
        let mut request = Request::new(Bytes::new());
        *request.uri_mut() = http::Uri::from_static(path);
        let headers = request.headers_mut();
        let json = HeaderValue::from_static("application/json");
        headers.insert(header::ACCEPT, json);
        let agent = HeaderValue::from_static(crate::USER_AGENT);
        headers.insert(header::USER_AGENT, agent);
        self.peers.send_within(&self.peer, request, HEAD).await
    }

    async fn once(&self) -> Ended {
        loop {
            let response = match self.ask(presence::PATH).await {
                Ok(response) => response,
                Err(error) => return Ended::Gone(error.to_string()),
            };
            let status = response.status();
            let kind = response.headers().get(header::CONTENT_TYPE);
            if status == StatusCode::OK && kind.is_some_and(|kind| kind == presence::LINES) {
                return self.listen(response.into_body()).await;
            }
            if is_ours(response.headers()) {
                return Ended::Gone(format!("it answers {status}"));
            }
            if status == StatusCode::OK {
                return Ended::Unbelievable(Unbelievable::Garbage);
            }
            drop(response);
            if let Err(ended) = self.visit().await {
                return ended;
            }
        }
    }

    /// Listens to beats.
    async fn listen(&self, mut body: ResponseBody) -> Ended {
        let begun = Instant::now();
        let mut beats = Beats::of(&self.peer.node);
        let mut heard = tokio::time::Instant::now();
        loop {
            let next = tokio::time::timeout_at(heard + presence::SILENCE, body.frame());
            let data = match next.await {
                Err(_) => return Ended::Gone(format!("silent for {:?}", presence::SILENCE)),
                Ok(None) => return Ended::Gone("it stopped".into()),
                Ok(Some(Err(error))) => return Ended::Gone(error.to_string()),
                Ok(Some(Ok(frame))) => frame.into_data().unwrap_or_default(),
            };
            match beats.take(begun.elapsed(), &data) {
                Ok(Some(beat)) => {
                    heard = tokio::time::Instant::now();
                    if self.report(Report::Beat(beat)).await.is_err() {
                        return Ended::Gone(String::new());
                    }
                }
                Ok(None) => {}
                Err(what) => return Ended::Unbelievable(what),
            }
        }
    }

    /// Asks a leader of OpenYurt whether it still answers, until it is time to look whether it has become one of ours.
    async fn visit(&self) -> Result<(), Ended> {
        let begun = Instant::now();
        while begun.elapsed() < LOOK_AGAIN {
            let answer = self.ask(CHEAP).await;
            let body = answer.map_err(|error| Ended::Gone(error.to_string()))?;
            // One that is not read to its end would cost a connection each time.
            let body = yurt_transport::collect(body.into_body(), MOST_ANSWER);
            if !matches!(tokio::time::timeout(HEAD, body).await, Ok(Ok(_))) {
                return Err(Ended::Gone("its answer broke off".into()));
            }
            if self.report(Report::OpenYurt).await.is_err() {
                return Err(Ended::Gone(String::new()));
            }
            tokio::time::sleep(presence::BEAT).await;
        }
        Ok(())
    }
}

/// Whether an answer is of a hub of ours.
fn is_ours(headers: &HeaderMap) -> bool {
    headers
        .get(header::SERVER)
        .and_then(|server| server.to_str().ok())
        .is_some_and(|server| server.starts_with("yurthub/"))
}
