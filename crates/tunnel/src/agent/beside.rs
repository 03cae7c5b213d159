//! QUIC beside TCP. Each server is connected by TCP first, and stays connected so. Where it takes QUIC too, and UDP passes and loses what TCP
//! would stumble over, a second connection is made beside the first, and the server dials by it from then on. When it breaks, the
//! server goes on by the first in the same moment; the agent waits, longer each time, before it looks again.
//!
//! [`judge`] and [`Memory`] decide, and are pure; [`keep`] does it.

use super::{connector::Connections, fleet::Door, metrics::AgentMetrics, reach::Reach};
use crate::{
    quic::{self, NO_ERROR, Path},
    session::{Live, Session},
};
use quinn::Connection;
use std::{
    fmt,
    str::FromStr,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use yurt_pki::Leaf;

/// Loss from which on TCP suffers: below it, it is as good, and costs less CPU (docs/tunnel-protocol.md has the figures).
const LOSS: f64 = 0.005;
/// One lost datagram says nothing yet.
const LOST: u64 = 2;
/// How long the path is looked at before it is used; less than a server waits for a hello.
const LOOK: Duration = Duration::from_secs(6);
/// A round trip may take so much more than TCP's.
const SLACK: Duration = Duration::from_millis(10);
/// A connection that lasted so long ends a row of failures.
const LASTED: Duration = Duration::from_secs(600);
/// Within how long after the connection by TCP the path is looked at first: ten thousand agents after an outage are some thirty a second.
pub(super) const WITHIN: Duration = Duration::from_secs(300);
/// Bounds of the first pause where QUIC is asked for, of what comes after each outcome, and of all pauses.
const FORCED: Duration = Duration::from_millis(500);
const SOON: Duration = Duration::from_secs(5);
const AGAIN: Duration = Duration::from_secs(60);
const SELDOM: Duration = Duration::from_secs(600);
const LONGEST: Duration = Duration::from_secs(3600);
/// How long a server may be away before nobody waits for it with QUIC.
const FORGOTTEN: Duration = Duration::from_secs(120);

/// What carries the tunnel: `--transport`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Transport {
    /// TCP, and QUIC where it is better.
    #[default]
    Auto,
    /// Only TCP.
    Tcp,
    /// QUIC wherever UDP passes, else TCP.
    Quic,
}

impl FromStr for Transport {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" => Ok(Self::Auto),
            "tcp" => Ok(Self::Tcp),
            "quic" => Ok(Self::Quic),
            _ => Err(format!("--transport is auto, tcp or quic, not {text:?}")),
        }
    }
}

impl fmt::Display for Path {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (rtt, loss) = (self.round_trip, self.loss() * 100.0);
        write!(formatter, "round trip {rtt:.1?}, loss {loss:.1} %")
    }
}

/// Whether QUIC is used on this path; the error is why not. `tcp`: a round trip as TCP took it.
pub fn judge(choice: Transport, tcp: Option<Duration>, path: Path) -> Result<(), String> {
    match choice {
        Transport::Tcp => return Err("--transport=tcp".to_owned()),
        Transport::Quic => return Ok(()),
        Transport::Auto => {}
    }
    if let Some(tcp) = tcp.filter(|tcp| path.round_trip > *tcp + *tcp / 2 + SLACK) {
        return Err(format!("{path}: a round trip of TCP takes {tcp:.1?}"));
    }
    if path.lost < LOST || path.loss() < LOSS {
        return Err(format!("{path}: TCP is as good"));
    }
    Ok(())
}

/// What came of QUIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// No connection: UDP does not pass, or the server does not answer there.
    Blocked,
    /// It would not be better.
    NotBetter,
    /// It was used for so long, and broke.
    Broke(Duration),
    /// We left it, or the server stopped: nothing is wrong with it.
    Left,
}

/// What was learnt, so that the same failure is not had again and again.
#[derive(Clone, Copy, Debug, Default)]
pub struct Memory {
    failures: u32,
}

impl Memory {
    /// How long to wait before the first look, `within` some time: agents that were connected together do not look together.
    pub fn first(choice: Transport, within: Duration, luck: f64) -> Duration {
        match choice {
            Transport::Quic => spread(FORCED, luck),
            _ => within.mul_f64(luck.clamp(0.0, 1.0)),
        }
    }

    /// How long to wait after this: twice as long after each failure, between half of the bound and the bound.
    pub fn after(&mut self, outcome: Outcome, choice: Transport, luck: f64) -> Duration {
        let bound = match outcome {
            Outcome::Left => {
                self.failures = 0;
                return spread(SOON, luck);
            }
            Outcome::Broke(lasted) if lasted >= LASTED => {
                self.failures = 0;
                SOON
            }
            Outcome::Broke(_) | Outcome::Blocked => AGAIN,
            Outcome::NotBetter => SELDOM,
        };
        let longest = match choice {
            // Whoever asks for it wants it soon.
            Transport::Quic => AGAIN,
            _ => LONGEST,
        };
        let bound = bound.saturating_mul(2u32.saturating_pow(self.failures.min(16)));
        self.failures = self.failures.saturating_add(1);
        spread(bound.min(longest), luck)
    }
}

fn spread(bound: Duration, luck: f64) -> Duration {
    bound.mul_f64(0.5 + 0.5 * luck.clamp(0.0, 1.0))
}

/// QUIC towards one server, as others see it.
#[derive(Clone, Debug)]
pub(super) struct Beside {
    /// Where it leads, or is to lead.
    pub(super) door: Door,
    /// For people.
    pub(super) state: String,
    /// While it is used.
    pub(super) used: Option<(Arc<Live>, Connection, Instant)>,
    /// What the server was shown.
    pub(super) shown: Option<Leaf>,
    /// Lets it end when it is idle.
    pub(super) drain: CancellationToken,
}

/// A server by TCP, for whom QUIC may be tried.
#[derive(Clone, Debug)]
pub(super) struct Target {
    pub(super) door: Door,
    /// Its UDP port.
    pub(super) port: u16,
    /// A round trip, as TCP took it.
    pub(super) round_trip: Option<Duration>,
}

/// Keeps QUIC towards a server where it is better, until `shutdown` or until the server is gone for good.
pub(super) async fn keep(
    connections: Connections,
    reach: Arc<Reach>,
    server: String,
    metrics: AgentMetrics,
    shutdown: CancellationToken,
) {
    let mut memory = Memory::default();
    let mut pause = Memory::first(reach.transport, reach.within, fastrand::f64());
    let mut seen = Instant::now();
    loop {
        if shutdown.run_until_cancelled(sleep(pause)).await.is_none() {
            break;
        }
        let Some(target) = connections.target(&server) else {
            if seen.elapsed() > FORGOTTEN {
                break;
            }
            pause = SOON;
            continue;
        };
        let pair = reach.kept.current().pair.clone();
        let looked = shutdown.run_until_cancelled(look(&reach, &server, &target));
        let outcome = match looked.await {
            None => break,
            Some(Err((outcome, why))) => {
                tracing::debug!(server, why, "no QUIC");
                connections.quic_state(&server, &target.door, why);
                outcome
            }
            Some(Ok((greeted, path))) => {
                let drain = shutdown.child_token();
                let connection = greeted.connection().clone();
                let (hello, dialer) = (reach.hello.clone(), reach.dialer.clone());
                match greeted.answer(hello, dialer, drain.clone()).await {
                    Ok(session) => {
                        tracing::info!(server, address = %target.door, %path, "QUIC is used");
                        metrics.quic("used");
                        let beside = Beside {
                            door: target.door.clone(),
                            state: format!("used: {path}"),
                            shown: pair.map(|pair| pair.leaf),
                            used: Some((session.live.clone(), connection, Instant::now())),
                            drain,
                        };
                        let (outcome, why) = used(&connections, &server, session, beside).await;
                        tracing::info!(server, why, "QUIC is not used any more");
                        connections.quic_state(&server, &target.door, why);
                        outcome
                    }
                    Err(error) => {
                        connections.quic_state(&server, &target.door, error.to_string());
                        Outcome::Blocked
                    }
                }
            }
        };
        metrics.quic(match outcome {
            Outcome::Blocked => "failed",
            Outcome::NotBetter => "not_better",
            Outcome::Broke(_) => "broke",
            Outcome::Left => "left",
        });
        pause = memory.after(outcome, reach.transport, fastrand::f64());
        seen = Instant::now();
    }
    connections.quic_over(&server);
}

/// Connects, and looks at the path.
async fn look(
    reach: &Reach,
    server: &str,
    target: &Target,
) -> Result<(quic::Greeted, Path), (Outcome, String)> {
    let blocked = |why: String| (Outcome::Blocked, format!("UDP does not pass: {why}"));
    let connection = reach.quic(&target.door, target.port).await;
    let connection = connection.map_err(|error| blocked(error.to_string()))?;
    let leave = |outcome, why: String| {
        connection.close(NO_ERROR, why.as_bytes());
        (outcome, why)
    };
    let greeted = quic::greet(connection.clone(), reach.options.clone()).await;
    let mut greeted = greeted.map_err(|error| blocked(error.to_string()))?;
    if greeted.server.id != server {
        let other = &greeted.server.id;
        let why = format!(
            "UDP leads to another instance ({other}): a balancer must send both ports alike"
        );
        return Err(leave(Outcome::Blocked, why));
    }
    let time = match reach.transport {
        Transport::Auto => LOOK,
        _ => Duration::ZERO,
    };
    let path = greeted.look(time).await;
    let path = path.map_err(|error| blocked(error.to_string()))?;
    match judge(reach.transport, target.round_trip, path) {
        Ok(()) => Ok((greeted, path)),
        Err(why) => Err(leave(Outcome::NotBetter, why)),
    }
}

/// While it is used: until it ends.
async fn used(
    connections: &Connections,
    server: &str,
    mut session: Session,
    beside: Beside,
) -> (Outcome, String) {
    let (began, drain) = (Instant::now(), beside.drain.clone());
    connections.quic_used(server, beside);
    let why = session.ended().await;
    let meant = session.server_drains().is_cancelled() || drain.is_cancelled();
    let outcome = match meant {
        true => Outcome::Left,
        false => Outcome::Broke(began.elapsed()),
    };
    (outcome, why.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn path(round_trip: u64, sent: u64, lost: u64) -> Path {
        Path {
            round_trip: Duration::from_millis(round_trip),
            sent,
            lost,
        }
    }

    #[test]
    fn quic_is_used_where_the_path_loses_and_is_no_longer() {
        let tcp = Some(Duration::from_millis(40));
        let auto = |path| judge(Transport::Auto, tcp, path);
        assert!(auto(path(41, 300, 3)).is_ok());
        assert!(
            auto(path(41, 300, 0))
                .unwrap_err()
                .contains("TCP is as good")
        );
        assert!(auto(path(41, 300, 1)).is_err());
        assert!(auto(path(41, 3000, 5)).is_err());
        assert!(auto(path(90, 300, 30)).unwrap_err().contains("round trip"));
        assert!(judge(Transport::Auto, None, path(90, 300, 30)).is_ok());
        assert!(judge(Transport::Quic, tcp, path(500, 1, 0)).is_ok());
        assert!(judge(Transport::Tcp, tcp, path(1, 300, 30)).is_err());
    }

    proptest! {
        #[test]
        fn pauses_grow_and_are_bounded(luck in 0.0f64..=1.0, failures in 1usize..40, forced: bool) {
            let choice = if forced { Transport::Quic } else { Transport::Auto };
            prop_assert!(Memory::first(choice, WITHIN, luck) <= WITHIN);
            let mut memory = Memory::default();
            let mut before = Duration::ZERO;
            for _ in 0..failures {
                let pause = memory.after(Outcome::Blocked, choice, luck);
                prop_assert!(pause >= before && pause >= AGAIN / 2);
                let longest = if forced { AGAIN } else { LONGEST };
                prop_assert!(pause <= longest);
                before = pause;
            }
            // What lasted is forgiven, and tried again soon.
            prop_assert!(memory.after(Outcome::Broke(LASTED), choice, luck) <= SOON);
            prop_assert!(memory.after(Outcome::Broke(Duration::ZERO), choice, luck) >= AGAIN / 2);
            prop_assert!(memory.after(Outcome::Left, choice, luck) <= SOON);
        }
    }

    #[test]
    fn choices_are_named() {
        assert_eq!("auto".parse(), Ok(Transport::Auto));
        assert_eq!("quic".parse(), Ok(Transport::Quic));
        assert!("udp".parse::<Transport>().unwrap_err().contains("udp"));
    }
}
