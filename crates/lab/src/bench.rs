//! `yurt bench hub`: what the hub costs, measured beside doing without it. ([`apiserver`], [`manager`], [`pool`] and [`tunnel`] are
//! benches of their own.)
//!
//! One run, one machine: an API server and a hub, each a process of its own, and this process as their clients. Every load
//! runs directly against the API server (HTTP/1.1 over TLS) and then through the hub (HTTP/1.1 on its loopback port, as a
//! kubelet does), with the same requests and the same client. Then the API server is killed, and the hub answers alone.
//!
//! [`run`] is the story; [`load`] makes requests, [`watching`] watches, [`dataset`] is what is watched, [`processes`]
//! starts and ends the two servers, [`report`] is what comes out.

pub mod apiserver;
mod comparison;
mod dataset;
mod exposition;
mod load;
pub mod manager;
pub mod pool;
mod processes;
mod report;
pub mod tunnel;
mod watching;

pub use comparison::{Better, Comparison, Figure};
pub use report::{Report, Row, Unit};

use dataset::{NAMESPACE, Shape};
use load::{Alone, Load, Target};
use processes::{Awake, Bench, Ended};
use std::{
    net::SocketAddr,
    path::PathBuf,
    time::{Duration, Instant},
};
use tokio::time::sleep;
use watching::{Fanout, WatchList};
use yurt_telemetry::process_usage;

/// Requests under way at a time.
const CONCURRENCIES: [usize; 3] = [1, 16, 64];
/// Parts of a load of one request at a time, in turn directly and through the hub: a machine is not the same from one second to
/// the next, and a moment in which it does something else falls into one part instead of into every quantile.
const BLOCKS: u32 = 12;
/// What a storm of endpoint changes brings to each node, bytes per second.
const STORM_BYTES_PER_SECOND: f64 = 500_000.0;
/// Longest wait for anything that takes a moment: a start, going offline, a cache that catches up.
const PATIENCE: Duration = Duration::from_secs(60);

/// Flags of `yurt bench hub`.
#[derive(Clone, Debug, clap::Args)]
pub struct BenchHubArgs {
    /// Print the report as JSON.
    #[arg(long)]
    pub json: bool,
    /// Small data, short loads: whether it works, not how well.
    #[arg(long)]
    pub quick: bool,
    /// Be the API server of a bench under way: the directory with its certificates.
    #[arg(long, hide = true, requires = "listen")]
    pub serve_api: Option<PathBuf>,
    /// Where that API server listens.
    #[arg(long, hide = true)]
    pub listen: Option<SocketAddr>,
}

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// The machine refuses something.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// Certificates.
    #[error(transparent)]
    Pki(#[from] yurt_pki::PkiError),
    /// The server to compare with.
    #[error(transparent)]
    Kubeconfig(#[from] crate::kubeconfig::KubeconfigError),
    /// The hubs of a pool.
    #[error(transparent)]
    Lab(#[from] crate::cluster::LabError),
    /// The API server of the bench.
    #[error(transparent)]
    ApiServer(#[from] yurt_apiserver::StartError),
    /// A server did not start, or ended.
    #[error("the {name} {what}; the last of its log:\n{log}")]
    Process {
        /// Which.
        name: &'static str,
        /// What happened.
        what: String,
        /// The end of its log.
        log: String,
    },
    /// A request that the bench depends on failed.
    #[error("{path}: {why}")]
    Call {
        /// What was asked.
        path: String,
        /// What was answered.
        why: String,
    },
    /// SIGINT or SIGTERM.
    #[error("interrupted")]
    Interrupted,
    /// Something did not come about.
    #[error("waited {PATIENCE:?} in vain until {what}")]
    Patience {
        /// What was waited for.
        what: String,
    },
}

/// How long and how much.
#[derive(Clone, Copy, Debug)]
struct Scale {
    shape: Shape,
    load: Duration,
    /// Until memory that a burst needed is given back.
    settle: Duration,
    storm: Duration,
    watchers: usize,
    changes: usize,
    restarts: usize,
}

impl Scale {
    fn of(args: &BenchHubArgs) -> Self {
        if args.quick {
            Self {
                shape: Shape {
                    pods: 20,
                    services: 50,
                    endpoints: 50,
                    config_maps: 200,
                },
                load: Duration::from_millis(400),
                settle: Duration::from_secs(1),
                storm: Duration::from_secs(2),
                watchers: 10,
                changes: 20,
                restarts: 1,
            }
        } else {
            Self {
                // 5,000 objects in all.
                shape: Shape {
                    pods: 20,
                    services: 1000,
                    endpoints: 50,
                    config_maps: 2980,
                },
                load: Duration::from_secs(3),
                settle: Duration::from_secs(12),
                storm: Duration::from_secs(10),
                watchers: 50,
                changes: 200,
                restarts: 5,
            }
        }
    }
}

/// Measures, prints the report and returns it.
pub async fn run(args: BenchHubArgs) -> Result<Report, BenchError> {
    if let (Some(dir), Some(listen)) = (&args.serve_api, args.listen) {
        processes::serve_api(dir, listen).await?;
        return Ok(new_report(args.quick));
    }
    let scale = Scale::of(&args);
    let mut report = new_report(args.quick);
    let mut bench = Bench::start().await?;
    let measured = tokio::select! {
        measured = Box::pin(measure(&mut bench, scale, &mut report)) => measured,
        () = processes::interrupted() => Err(BenchError::Interrupted),
    };
    bench.stop().await;
    measured?;
    report.print(args.json);
    Ok(report)
}

fn new_report(quick: bool) -> Report {
    Report::new("hub", ["DIRECT", "HUB"], quick)
}

/// Progress goes to stderr: stdout is the report.
fn say(text: &str) {
    eprintln!("  {text}");
}

async fn measure(bench: &mut Bench, scale: Scale, report: &mut Report) -> Result<(), BenchError> {
    sleep(Duration::from_secs(1)).await;
    report.push(Row::new(
        "hub memory, idle",
        Unit::Megabytes,
        megabytes(bench.hub_pid()),
    ));

    let direct = bench.direct()?;
    let hub = bench.through_hub();
    say(&format!("creating {} objects", scale.shape.objects()));
    dataset::create(&direct, scale.shape).await?;

    memory_and_storm(bench, scale, report, &direct, &hub).await?;
    fanout(scale, report, &direct, &hub).await?;

    say("loading the API server directly and through the hub");
    let get = format!("/api/v1/namespaces/{NAMESPACE}/pods/pod-0");
    let list = format!("/api/v1/namespaces/{NAMESPACE}/pods");
    // Everything that the hub will be asked for without the API server.
    for path in [&get, &list] {
        hub.get(path).await?;
    }
    let online = Loads::run(
        &[("GET pod", &get), ("LIST 20 pods", &list)],
        scale,
        &[
            (&direct, bench.direct_alone()?),
            (&hub, bench.through_hub_alone()),
        ],
    )
    .await?;
    online.report("", report);
    if let Some((direct, hub)) = online.pair("GET pod") {
        report.push(
            Row::new(
                "added latency p99, proxied GET",
                Unit::Milliseconds,
                hub.added_p99(direct),
            )
            .budget(0.3, None),
        );
    }
    report.push(Row::new(
        "hub memory, after the load",
        Unit::Megabytes,
        megabytes(bench.hub_pid()),
    ));

    bench.wait_until_cached(scale.shape.objects()).await?;
    say("the API server is killed: the hub answers alone");
    let cut = Instant::now();
    bench.kill_api();
    bench.wait_offline().await?;
    hub.wait_ok(&get, PATIENCE).await?;
    report.push(
        Row::new("going local", Unit::Seconds, cut.elapsed().as_secs_f64())
            .budget(3.0, Some("<= 16 s")),
    );
    let offline = Loads::run(
        &[("GET pod", &get), ("LIST 20 pods", &list)],
        scale,
        &[(&hub, bench.through_hub_alone())],
    )
    .await?;
    offline.report("cached ", report);
    if let Some(load) = offline.last("GET pod") {
        report.push(
            Row::new(
                "latency p99, cached GET",
                Unit::Milliseconds,
                load.p99_of_blocks(),
            )
            .budget(0.2, None),
        );
    }
    restarts(bench, scale, report, &get).await
}

/// The memory of the data set of the budget table, and what a storm of changes to it costs.
async fn memory_and_storm(
    bench: &mut Bench,
    scale: Scale,
    report: &mut Report,
    direct: &Target,
    hub: &Target,
) -> Result<(), BenchError> {
    say("a kubelet and a kube-proxy watch through the hub");
    // As a kube-proxy and a kubelet do: protobuf, WatchList.
    let slices = WatchList::open(hub, "/apis/discovery.k8s.io/v1/endpointslices").await?;
    let _services = WatchList::open(hub, "/api/v1/services").await?;
    let _pods = WatchList::open(hub, "/api/v1/pods").await?;
    sleep(Duration::from_secs(2)).await;
    let name = format!(
        "hub memory, {} pods + {} services x {} endpoints",
        scale.shape.pods, scale.shape.services, scale.shape.endpoints
    );
    let learning = format!("{name}, just learned");
    report.push(Row::new(
        &learning,
        Unit::Megabytes,
        megabytes(bench.hub_pid()),
    ));
    let settled = Instant::now() + scale.settle;
    while Instant::now() < settled {
        // A node is never quite still.
        hub.get("/version").await?;
        sleep(Duration::from_millis(200)).await;
    }
    report.push(
        Row::new(&name, Unit::Megabytes, megabytes(bench.hub_pid())).budget(15.0, Some("35-45 MB")),
    );

    say("a storm of endpoint changes");
    let pid = bench.hub_pid();
    let (cpu, bytes, begun) = (cpu_seconds(pid), slices.bytes(), Instant::now());
    watching::storm(
        direct,
        &slices,
        scale.shape.services,
        scale.storm,
        STORM_BYTES_PER_SECOND,
    )
    .await?;
    let took = begun.elapsed().as_secs_f64();
    let rate = (slices.bytes() - bytes) as f64 / took;
    report.push(Row::new(
        "endpoint storm, reached",
        Unit::KilobytesPerSecond,
        rate / 1000.0,
    ));
    report.push(
        Row::new(
            "hub CPU in that storm, of a core",
            Unit::Percent,
            (cpu_seconds(pid) - cpu) / took * 100.0,
        )
        .budget(3.0, Some("22-25 %")),
    );
    // The rest of the 5,000 objects, for the restart below.
    drop(WatchList::open(hub, &format!("/api/v1/namespaces/{NAMESPACE}/configmaps")).await?);
    Ok(())
}

async fn fanout(
    scale: Scale,
    report: &mut Report,
    direct: &Target,
    hub: &Target,
) -> Result<(), BenchError> {
    say(&format!("{} watchers of one object", scale.watchers));
    let fanout = Fanout {
        namespace: NAMESPACE,
        watchers: scale.watchers,
        changes: scale.changes,
    };
    let alone = fanout.run(direct, || direct.clone()).await?;
    let through = fanout.run(direct, || hub.clone()).await?;
    for (name, quantile) in [("p50", 0.5), ("p99", 0.99)] {
        let what = format!("change to {} watchers, {name}", scale.watchers);
        report.push(
            Row::new(&what, Unit::Milliseconds, through.sent.at(quantile))
                .direct(alone.sent.at(quantile)),
        );
    }
    let missed = through.missed + alone.missed;
    report.push(
        Row::new(
            "changes that a watcher did not see",
            Unit::Count,
            missed as f64,
        )
        .budget(0.0, None),
    );
    Ok(())
}

/// From the start of the process to the first answer from its cache, the cloud being away.
async fn restarts(
    bench: &mut Bench,
    scale: Scale,
    report: &mut Report,
    path: &str,
) -> Result<(), BenchError> {
    say("the hub is started again, without the API server");
    for (how, name) in [(Ended::Killed, "kill -9"), (Ended::Drained, "a clean stop")] {
        let mut times = Vec::new();
        for _ in 0..scale.restarts {
            let target = bench.restart_hub(how).await?;
            let begun = bench.hub_started();
            target.wait_ok(path, PATIENCE).await?;
            times.push(begun.elapsed());
        }
        times.sort();
        let median = times.get(times.len() / 2).copied().unwrap_or_default();
        let what = format!(
            "start to first cached answer, {} objects, after {name}",
            scale.shape.objects()
        );
        report.push(
            Row::new(&what, Unit::Seconds, median.as_secs_f64())
                .budget(0.15, Some("1.5 s + 9.6 s")),
        );
    }
    report.push(Row::new(
        "hub memory, restarted without the cloud",
        Unit::Megabytes,
        megabytes(bench.hub_pid()),
    ));
    Ok(())
}

/// Loads of several targets, by what was asked and how many at a time.
struct Loads {
    loads: Vec<(&'static str, Manner, Vec<Load>)>,
}

/// One request at a time, the targets in turn.
async fn in_turn(
    targets: &[(&Target, Alone)],
    path: &str,
    time: Duration,
) -> Result<Vec<Load>, BenchError> {
    let mut loads: Vec<Load> = targets.iter().map(|_| Load::default()).collect();
    for _ in 0..BLOCKS {
        for (load, (_, alone)) in loads.iter_mut().zip(targets) {
            load.add(alone.load(path, time / BLOCKS).await?);
        }
    }
    Ok(loads)
}

/// How requests are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manner {
    /// So many at a time.
    AtATime(usize),
    /// One after the other, on CPUs that do not go to sleep in between.
    Awake,
}

impl std::fmt::Display for Manner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::AtATime(count) => write!(f, "{count} at a time"),
            Self::Awake => f.write_str("1 at a time, CPUs awake"),
        }
    }
}

impl Loads {
    async fn run(
        requests: &[(&'static str, &String)],
        scale: Scale,
        targets: &[(&Target, Alone)],
    ) -> Result<Self, BenchError> {
        let mut loads = Vec::new();
        for (name, path) in requests {
            for concurrency in CONCURRENCIES {
                let of_targets = match concurrency {
                    1 => in_turn(targets, path, scale.load).await?,
                    _ => {
                        let mut of_targets = Vec::new();
                        for (target, _) in targets {
                            of_targets.push(Load::run(target, path, concurrency, scale.load).await);
                        }
                        of_targets
                    }
                };
                loads.push((*name, Manner::AtATime(concurrency), of_targets));
            }
            match Awake::begin() {
                Ok(_awake) => {
                    let of_targets = in_turn(targets, path, scale.load).await?;
                    loads.push((*name, Manner::Awake, of_targets));
                }
                Err(error) => say(&format!(
                    "/dev/cpu_dma_latency: {error}: CPUs are not kept awake, latencies are those of a machine that sleeps in between"
                )),
            }
        }
        Ok(Self { loads })
    }

    /// The loads that tell how long one request takes.
    fn single(&self, name: &str) -> Option<&[Load]> {
        let manner = |wanted| {
            let found = self
                .loads
                .iter()
                .find(|(n, manner, _)| *n == name && *manner == wanted);
            found.map(|(_, _, loads)| loads.as_slice())
        };
        manner(Manner::Awake).or_else(|| manner(Manner::AtATime(1)))
    }

    /// Directly and through the hub, one at a time.
    fn pair(&self, name: &str) -> Option<(&Load, &Load)> {
        match self.single(name)? {
            [direct, hub] => Some((direct, hub)),
            _ => None,
        }
    }

    /// Through the hub, one at a time.
    fn last(&self, name: &str) -> Option<&Load> {
        self.single(name)?.last()
    }

    fn report(&self, prefix: &str, report: &mut Report) {
        let mut failed = 0;
        for (name, manner, loads) in &self.loads {
            let (Some(hub), direct) = (loads.last(), loads.first().filter(|_| loads.len() > 1))
            else {
                continue;
            };
            failed += loads.iter().map(|load| load.failed).sum::<u64>();
            let what = format!("{prefix}{name}, {manner}");
            let mut row = |figure: &str, unit, of: &dyn Fn(&Load) -> f64| {
                let row = Row::new(&format!("{what}: {figure}"), unit, of(hub));
                report.push(match direct {
                    Some(direct) => row.direct(of(direct)),
                    None => row,
                });
            };
            row("rate", Unit::PerSecond, &Load::rate);
            row("p50", Unit::Milliseconds, &Load::p50);
            row("p99", Unit::Milliseconds, &Load::p99);
        }
        let what = format!("{prefix}requests that failed");
        report.push(Row::new(&what, Unit::Count, failed as f64).budget(0.0, None));
    }
}

fn megabytes(pid: Option<u32>) -> f64 {
    pid.and_then(|pid| process_usage(Some(pid)))
        .map_or(f64::NAN, |usage| usage.resident_bytes as f64 / 1e6)
}

fn cpu_seconds(pid: Option<u32>) -> f64 {
    pid.and_then(|pid| process_usage(Some(pid)))
        .map_or(f64::NAN, |usage| usage.cpu_seconds)
}
