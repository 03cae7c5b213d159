//! `yurt bench tunnel`: the tunnel beside no tunnel, and beside a pair of konnectivity's where one is given.
//!
//! `yurt tunnel server` and `yurt tunnel agent` are processes of their own with TLS between them; so is the origin behind the agent; this
//! process is the client before the server's Unix socket, as kube-apiserver is, by CONNECT. The same loads go directly to the origin,
//! through our pair, and through the other one. ([`origin`] answers, [`way`] leads to it, [`loads`] are the loads, [`pair`]
//! the processes, [`datagrams`] the long way for QUIC.)

mod datagrams;
mod loads;
mod origin;
mod pair;
mod way;

use super::{
    BenchError,
    comparison::{Better, Comparison, Figure, Sides},
    load::{Load, median},
    megabytes,
    processes::{self, Awake, io_error},
    report::Unit,
    say,
};
use crate::{
    egress::Egress,
    link::{Link, LinkState},
};
use loads::{Bulk, Ends, Manner, Pings, Stuck, Toward};
use pair::Pair;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::{
    net::SocketAddr,
    path::PathBuf,
    str::FromStr,
    time::{Duration, Instant},
};
use tokio::time::{sleep, timeout};
use way::Way;

const MEBIBYTE: u64 = 1 << 20;
/// How many times the other's throughput ours is to be, and the other's CPU time ours.
const TIMES_THROUGHPUT: f64 = 5.0;
const TIMES_CPU: f64 = 4.0;
/// What konnectivity needed on the reference machine (2 CPUs), for runs without it: MiB/s of one bulk stream, and CPU ms per MiB of its
/// server and agent.
const RECORDED_RATE: f64 = 80.0;
const RECORDED_CPU: [f64; 2] = [6.5, 5.8];
/// Pings beside a stuck connection may take so many times what they take alone, or so many milliseconds more: below that the
/// machine's own noise decides.
const TIMES_PING: f64 = 2.0;
const MORE_PING: f64 = 2.0;
/// How long the other program may take for one of the transfers that ours has done.
const PEER_PATIENCE: Duration = Duration::from_secs(300);
/// Descriptors that a process needs beside one for each connection.
const SPARE_DESCRIPTORS: u64 = 200;

/// Flags of `yurt bench tunnel`.
#[derive(Clone, Debug, clap::Args)]
pub struct BenchTunnelArgs {
    /// Print the report as JSON.
    #[arg(long)]
    pub json: bool,
    /// Little data, short loads: whether it works, not how well.
    #[arg(long)]
    pub quick: bool,
    /// Only the bulk transfers to a near agent, by which throughput and CPU are judged.
    #[arg(long)]
    pub bulk_only: bool,
    /// What carries our tunnel between agent and server; quic: beside TCP, and loads begin when it is in use.
    #[arg(long, value_name = "TRANSPORT", value_parser = ["tcp", "quic"], default_value = "tcp")]
    pub transport: String,
    /// The Unix socket of another tunnel's CONNECT frontend, whose agent is on this machine: it gets the same loads.
    #[arg(long, value_name = "PATH")]
    pub peer_connect_uds: Option<PathBuf>,
    /// Process ids of that tunnel's server and agent, for CPU and memory.
    #[arg(
        long,
        value_names = ["SERVER", "AGENT"],
        num_args = 2,
        requires = "peer_connect_uds"
    )]
    pub peer_pids: Vec<u32>,
    /// Delay what its agent sends: listen on the first address, which the agent has for its server's, and pass on to the second, where
    /// the server is.
    #[arg(long, value_name = "LISTEN=SERVER", requires = "peer_connect_uds")]
    pub peer_relay: Option<Relay>,
    /// Be the origin of a bench under way: write the address to this file.
    #[arg(long, hide = true)]
    pub serve_origin: Option<PathBuf>,
}

/// The value of `--peer-relay`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Relay {
    listen: SocketAddr,
    server: SocketAddr,
}

impl FromStr for Relay {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let both = text.split_once('=');
        let parsed = both.and_then(|(listen, server)| {
            Some(Self {
                listen: listen.parse().ok()?,
                server: server.parse().ok()?,
            })
        });
        parsed.ok_or_else(|| format!("`{text}` is not ADDRESS:PORT=ADDRESS:PORT"))
    }
}

/// How long and how much.
#[derive(Clone, Debug)]
struct Scale {
    /// Of one stream, and of each of eight.
    bulk: [u64; 2],
    /// Of one stream over a long way.
    far_bulk: u64,
    load: Duration,
    clients: &'static [usize],
    held: &'static [usize],
    pings: Duration,
    rtts: &'static [u64],
    /// Times a bulk transfer is repeated; the median counts.
    repeats: usize,
}

impl Scale {
    fn of(quick: bool) -> Self {
        if quick {
            Self {
                bulk: [16 * MEBIBYTE, 4 * MEBIBYTE],
                far_bulk: 4 * MEBIBYTE,
                load: Duration::from_millis(300),
                clients: &[1, 8],
                held: &[100],
                pings: Duration::from_millis(500),
                rtts: &[20],
                repeats: 1,
            }
        } else {
            Self {
                bulk: [512 * MEBIBYTE, 64 * MEBIBYTE],
                far_bulk: 256 * MEBIBYTE,
                load: Duration::from_secs(5),
                clients: &[1, 32, 256],
                held: &[1_000, 10_000],
                pings: Duration::from_secs(5),
                rtts: &[20, 100],
                repeats: 3,
            }
        }
    }
}

/// One way to the origin, and the processes on it.
#[derive(Clone, Debug)]
struct Side {
    way: Way,
    ends: Ends,
}

/// Measures, prints the report and returns it.
pub async fn run(args: BenchTunnelArgs) -> Result<Comparison, BenchError> {
    if let Some(file) = &args.serve_origin {
        origin::serve_process(file).await?;
        return Ok(Comparison::default());
    }
    let sides = Sides {
        bench: "tunnel",
        direct: Some("DIRECT"),
        other: Some(match args.peer_connect_uds {
            Some(_) => "KONNECTIVITY",
            None => "KONNECTIVITY, RECORDED",
        }),
    };
    let mut report = Comparison::new(sides, args.quick);
    tokio::select! {
        measured = Box::pin(measure(&args, &mut report)) => measured?,
        () = processes::interrupted() => return Err(BenchError::Interrupted),
    }
    if args.json {
        println!("{}", report.to_json());
    } else {
        print!("{}", report.to_text());
    }
    Ok(report)
}

async fn measure(args: &BenchTunnelArgs, report: &mut Comparison) -> Result<(), BenchError> {
    let scale = Scale::of(args.quick);
    let descriptors = raise_descriptors();
    let origin = pair::Origin::start().await?;
    let pair = Pair::start(origin.address, &args.transport, false).await?;
    let relay = match args.peer_relay {
        Some(Relay { listen, server }) => {
            let link = Link::start(listen, server).await;
            Some(link.map_err(io_error(listen))?)
        }
        None => None,
    };
    let peer = args.peer_connect_uds.as_ref().map(|socket| Side {
        way: Way::Connect(Egress::new(socket.clone()), origin.address),
        ends: Ends {
            server: args.peer_pids.first().copied(),
            agent: args.peer_pids.get(1).copied(),
        },
    });
    let direct = Side {
        way: Way::Direct(origin.address),
        ends: Ends::default(),
    };
    let mut bench = Bench {
        direct,
        ours: pair.side(),
        peer,
        report,
    };
    if let Some(peer) = &bench.peer {
        pair::reachable(&peer.way).await?;
    }
    bench.memory("idle");
    bench.bulk(&scale).await?;
    if args.bulk_only {
        pair.end().await;
        origin.end().await;
        return Ok(());
    }
    bench.small_requests(&scale).await;
    for count in scale.held {
        let places = descriptors.saturating_sub(SPARE_DESCRIPTORS);
        if places < *count as u64 {
            say(&format!(
                "{count} connections need more than the {descriptors} descriptors allowed here"
            ));
            continue;
        }
        bench.held(*count).await?;
    }
    let far = Pair::start(origin.address, &args.transport, true).await?;
    bench.ours = far.side();
    // Where its agent is near, there is nothing to compare with.
    let near = bench.peer.take_if(|_| relay.is_none());
    for rtt in scale.rtts {
        let slow = LinkState::Slow {
            delay: Duration::from_millis(*rtt),
            bytes_per_second: None,
        };
        for link in far.link.iter().chain(&relay) {
            link.set(slow);
        }
        if let Some(datagrams) = &far.datagrams {
            datagrams.delay(Duration::from_millis(*rtt) / 2);
        }
        bench.far(&scale, *rtt).await?;
    }
    far.end().await;
    if let Some(relay) = &relay {
        relay.set(LinkState::Up);
    }
    bench.ours = pair.side();
    bench.peer = bench.peer.take().or(near);
    // Last: what stalls the other program may go on doing so.
    bench.stuck(&scale).await?;
    pair.end().await;
    origin.end().await;
    Ok(())
}

/// As many descriptors as this process and its children may have; how many.
fn raise_descriptors() -> u64 {
    const WANTED: u64 = 1 << 16;
    let now = getrlimit(Resource::Nofile);
    // Root may have more than the limit.
    let hard = now.maximum.unwrap_or(WANTED);
    for limit in [hard.max(WANTED), hard] {
        let wanted = Rlimit {
            current: Some(limit),
            maximum: Some(limit),
        };
        if setrlimit(Resource::Nofile, wanted).is_ok() {
            return limit;
        }
    }
    now.current.unwrap_or(WANTED)
}

/// The sides, and what came out so far.
struct Bench<'a> {
    direct: Side,
    ours: Side,
    peer: Option<Side>,
    report: &'a mut Comparison,
}

/// What the sides of a phase did.
struct Of<T> {
    direct: Option<T>,
    ours: T,
    peer: Option<T>,
}

impl<T> Of<T> {
    fn figure(&self, what: &str, unit: Unit, better: Better, value: impl Fn(&T) -> f64) -> Figure {
        Figure {
            direct: self.direct.as_ref().map(&value),
            // One that nobody could measure is none.
            other: self
                .peer
                .as_ref()
                .map(&value)
                .filter(|value| !value.is_nan()),
            ..Figure::new(what, unit, better, value(&self.ours))
        }
    }
}

impl Bench<'_> {
    fn push(&mut self, figure: Figure) {
        self.report.push(figure);
    }

    fn memory(&mut self, when: &str) {
        let of = Of {
            direct: None,
            ours: self.ours.ends,
            peer: self.peer.as_ref().map(|peer| peer.ends),
        };
        let mut push = |end: &str, pid: &dyn Fn(&Ends) -> Option<u32>| {
            let what = format!("{end} memory, {when}");
            let memory = |ends: &Ends| megabytes(pid(ends));
            self.push(of.figure(&what, Unit::Megabytes, Better::Lower, memory));
        };
        push("server", &|ends| ends.server);
        push("agent", &|ends| ends.agent);
    }

    /// The same bulk over every way, several times; medians. Trouble of the other program costs only its own figures, here and after.
    async fn moved(
        &mut self,
        scale: &Scale,
        toward: Toward,
        streams: usize,
        bytes: u64,
    ) -> Result<Of<Bulk>, BenchError> {
        let repeats = scale.repeats;
        let measured = async |side: &Side| {
            let mut all = Vec::with_capacity(repeats);
            for _ in 0..repeats {
                all.push(loads::bulk(&side.way, side.ends, toward, streams, bytes).await?);
            }
            let of = |value: &dyn Fn(&Bulk) -> f64| median(all.iter().map(value).collect());
            Ok::<_, BenchError>(Bulk {
                rate: of(&|bulk| bulk.rate),
                cpu: [of(&|bulk| bulk.cpu[0]), of(&|bulk| bulk.cpu[1])],
            })
        };
        let (direct, ours) = (measured(&self.direct).await?, measured(&self.ours).await?);
        let peer = match &self.peer {
            Some(peer) => match timeout(PEER_PATIENCE, measured(peer)).await {
                Ok(Ok(moved)) => Some(moved),
                Ok(Err(error)) => self.without_peer(&error.to_string()),
                Err(_) => self.without_peer(&format!("no end of it within {PEER_PATIENCE:?}")),
            },
            None => None,
        };
        Ok(Of {
            direct: Some(direct),
            ours,
            peer,
        })
    }

    /// Goes on without the other program.
    fn without_peer<T>(&mut self, why: &str) -> Option<T> {
        say(&format!(
            "the other program is left out from here on: {why}"
        ));
        self.peer = None;
        None
    }

    async fn bulk(&mut self, scale: &Scale) -> Result<(), BenchError> {
        say("bulk");
        let recorded = self.peer.is_none();
        for (toward, way) in [(Toward::Down, "down"), (Toward::Up, "up")] {
            for (streams, bytes) in [(1, scale.bulk[0]), (8, scale.bulk[1])] {
                let of = self.moved(scale, toward, streams, bytes).await?;
                let judged = toward == Toward::Down && streams == 1;
                let name = match streams {
                    1 => format!("1 stream {way}"),
                    _ => format!("{streams} streams {way}"),
                };
                let mut rate = of.figure(&name, Unit::MebibytesPerSecond, Better::Higher, |bulk| {
                    bulk.rate
                });
                if judged {
                    rate.target = Some(TIMES_THROUGHPUT);
                    rate.other = rate.other.or(recorded.then_some(RECORDED_RATE));
                }
                self.push(rate);
                for (end, who) in ["server", "agent"].into_iter().enumerate() {
                    let what = format!("{name}: CPU of the {who}");
                    let mut cpu = of.figure(
                        &what,
                        Unit::MillisecondsPerMebibyte,
                        Better::Lower,
                        |bulk| bulk.cpu[end],
                    );
                    cpu.direct = None;
                    if judged {
                        cpu.target = Some(TIMES_CPU);
                        cpu.other = cpu.other.or(recorded.then_some(RECORDED_CPU[end]));
                    }
                    self.push(cpu);
                }
            }
        }
        Ok(())
    }

    /// The same small requests over every way.
    async fn asked(&mut self, manner: Manner, clients: usize, time: Duration) -> Of<Load> {
        let of = Of {
            direct: Some(loads::requests(&self.direct.way, manner, clients, time).await),
            ours: loads::requests(&self.ours.way, manner, clients, time).await,
            peer: match &self.peer {
                Some(peer) => Some(loads::requests(&peer.way, manner, clients, time).await),
                None => None,
            },
        };
        self.report.failed += of.ours.failed;
        of
    }

    async fn small_requests(&mut self, scale: &Scale) {
        for (manner, name) in [
            (Manner::Kept, "kept connections"),
            (Manner::Fresh, "a connection each"),
        ] {
            say(&format!("small requests, {name}"));
            for clients in scale.clients {
                let of = self.asked(manner, *clients, scale.load).await;
                let what = format!("requests, {name}, {clients} at a time");
                self.push(of.figure(&what, Unit::PerSecond, Better::Higher, Load::rate));
                for (figure, value) in [("p50", Load::p50 as fn(&Load) -> f64), ("p99", Load::p99)]
                {
                    let what = format!("{what}: {figure}");
                    self.push(of.figure(&what, Unit::Milliseconds, Better::Lower, value));
                }
            }
        }
        // Between two requests a virtual CPU would go to sleep, and waking takes longer than the tunnel.
        let awake = Awake::begin().ok();
        let of = self.asked(Manner::Kept, 1, scale.load).await;
        drop(awake);
        for (figure, value) in [("p50", Load::p50 as fn(&Load) -> f64), ("p99", Load::p99)] {
            let direct = of.direct.as_ref().map_or(f64::NAN, value);
            let what = format!("added latency, CPUs awake: {figure}");
            let mut added = of.figure(&what, Unit::Milliseconds, Better::Lower, |load| {
                value(load) - direct
            });
            added.direct = None;
            self.push(added);
        }
    }

    /// What a live connection sees of stuck ones. Where the other program stalls, it has no figure.
    async fn stuck(&mut self, scale: &Scale) -> Result<(), BenchError> {
        let mut alone = f64::NAN;
        for (stuck, beside) in [
            (Stuck::Nobody, "alone"),
            (Stuck::Reader, "beside a client that does not read"),
            (Stuck::Target, "beside a target that does not read"),
        ] {
            say(&format!("pings {beside}"));
            let ours = loads::pings(&self.ours.way, stuck, scale.pings).await?;
            let peer = match &self.peer {
                Some(peer) => loads::pings(&peer.way, stuck, scale.pings).await.ok(),
                None => None,
            };
            self.report.failed += ours.lost;
            let of = Of {
                direct: None,
                ours,
                peer,
            };
            let p99 = |pings: &Pings| pings.latencies.at(0.99);
            let what = format!("ping p99 {beside}");
            let mut figure = of.figure(&what, Unit::Milliseconds, Better::Lower, p99);
            match stuck {
                Stuck::Nobody => alone = figure.ours,
                _ => figure.most = Some((alone * TIMES_PING).max(alone + MORE_PING)),
            }
            self.push(figure);
            for (what, unit, value) in [
                (
                    "pings lost",
                    Unit::Count,
                    (|pings: &Pings| pings.lost as f64) as fn(&Pings) -> f64,
                ),
                ("new connection", Unit::Milliseconds, |pings| pings.dial),
            ] {
                let what = format!("{what} {beside}");
                self.push(of.figure(&what, unit, Better::Lower, value));
            }
        }
        Ok(())
    }

    async fn held(&mut self, count: usize) -> Result<(), BenchError> {
        say(&format!("{count} open connections"));
        let (mut memory, mut took) = (Vec::new(), Vec::new());
        for side in std::iter::once(&self.ours).chain(&self.peer) {
            let begun = Instant::now();
            let seen = loads::held(&side.way, count, async {
                let took = begun.elapsed().as_secs_f64();
                sleep(Duration::from_millis(500)).await;
                ([side.ends.server, side.ends.agent].map(megabytes), took)
            });
            let seen = match seen.await {
                Err(error) if !memory.is_empty() => {
                    say(&format!("the other program: {error}"));
                    break;
                }
                seen => seen?,
            };
            memory.push(seen.0);
            took.push(seen.1);
        }
        let mut of = |what: String, unit, value: &dyn Fn(usize) -> Option<f64>| {
            let ours = value(0).unwrap_or(f64::NAN);
            self.report.push(Figure {
                other: value(1).filter(|value| !value.is_nan()),
                ..Figure::new(&what, unit, Better::Lower, ours)
            });
        };
        of(
            format!("opening {count} connections"),
            Unit::Seconds,
            &|side| took.get(side).copied(),
        );
        for (end, who) in ["server", "agent"].into_iter().enumerate() {
            of(
                format!("{who} memory, {count} open connections"),
                Unit::Megabytes,
                &|side| memory.get(side).map(|of| of[end]),
            );
        }
        Ok(())
    }

    /// Over a long way between agent and server.
    async fn far(&mut self, scale: &Scale, rtt: u64) -> Result<(), BenchError> {
        say(&format!("{rtt} ms between agent and server"));
        let far = Scale {
            repeats: 1,
            ..scale.clone()
        };
        for (name, toward, streams) in [
            ("1 stream down", Toward::Down, 1),
            ("1 stream up", Toward::Up, 1),
            ("8 streams down", Toward::Down, 8),
        ] {
            let bytes = scale.far_bulk / streams as u64;
            let of = self.moved(&far, toward, streams, bytes).await?;
            let what = format!("{rtt} ms: {name}");
            let mut rate = of.figure(&what, Unit::MebibytesPerSecond, Better::Higher, |bulk| {
                bulk.rate
            });
            rate.direct = None;
            self.push(rate);
        }
        for (manner, name) in [(Manner::Kept, "kept"), (Manner::Fresh, "a connection each")] {
            let of = self.asked(manner, 1, scale.load).await;
            let what = format!("{rtt} ms: requests, {name}, 1 at a time: p50");
            let mut p50 = of.figure(&what, Unit::Milliseconds, Better::Lower, Load::p50);
            p50.direct = None;
            self.push(p50);
        }
        self.memory(&format!("{rtt} ms away, after bulk"));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relays_parse() {
        let relay: Relay = "127.0.0.1:1=[::1]:2".parse().expect("a relay");
        assert_eq!((relay.listen.port(), relay.server.port()), (1, 2));
        for wrong in ["", "127.0.0.1:1", "127.0.0.1:1=", "a:1=b:2"] {
            assert!(wrong.parse::<Relay>().is_err(), "{wrong}");
        }
    }
}
