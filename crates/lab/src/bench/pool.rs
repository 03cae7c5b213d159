//! `yurt bench pool`: what a pool takes from the cloud, beside what its nodes take that share nothing; how long it is without news
//! when its leader goes; what coordination costs in memory.
//!
//! One API server and the hubs of one pool, each a process of its own. The API server counts what it sends of each resource: what is
//! the pool's data needs no guess of what else hubs say to the cloud (leases, health), which links count as well. ([`site`] starts and
//! ends it all, [`takeover`] measures take-overs.)

mod site;
mod takeover;

use super::{
    BenchError, PATIENCE, Report, Row, Unit,
    dataset::{self, NAMESPACE, Shape},
    load::{self, Target},
    processes, say,
    watching::{MERGE_PATCH, WatchList},
};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use http::Method;
use serde_json::json;
use site::Site;
use std::time::{Duration, Instant};
use takeover::Watchers;
use tokio::time::{sleep, sleep_until};

const SLICES: &str = "/apis/discovery.k8s.io/v1/endpointslices";
const SERVICES: &str = "/api/v1/services";
/// Memory that a burst needed has been given back after this time (jemalloc keeps it for ten seconds, and gives it back bit by bit).
const GIVEN_BACK: Duration = Duration::from_secs(25);
/// Watches opened at one time.
const OPENED: usize = 8;
/// What pools may take of one node's bytes.
const MOST_SHARE: f64 = 105.0;
/// What leading may cost beside a hub that shares nothing.
const MOST_MEMORY: f64 = 10.0;
/// What a take-over may take.
const MOST_SILENCE: f64 = 3.0;

/// Flags of `yurt bench pool`.
#[derive(Clone, Debug, clap::Args)]
pub struct BenchPoolArgs {
    /// Print the report as JSON.
    #[arg(long)]
    pub json: bool,
    /// Small pools, little data: whether it works, not how well.
    #[arg(long)]
    pub quick: bool,
    /// Sizes of the pools that share.
    #[arg(long, value_name = "N,...", value_delimiter = ',', default_values_t = [1, 10, 100],
          value_parser = clap::value_parser!(u32).range(1..=200))]
    pub sizes: Vec<u32>,
}

/// How much.
#[derive(Clone, Copy, Debug)]
struct Scale {
    shape: Shape,
    changes: u32,
    /// Between two changes.
    interval: Duration,
}

impl Scale {
    fn of(args: &BenchPoolArgs) -> Self {
        let shape = |services, endpoints| Shape {
            pods: 0,
            services,
            endpoints,
            config_maps: 0,
        };
        let interval = Duration::from_millis(50);
        if args.quick {
            Self {
                shape: shape(20, 10),
                changes: 40,
                interval,
            }
        } else {
            Self {
                shape: shape(500, 50),
                changes: 160,
                interval,
            }
        }
    }
}

/// What one pool took and needed.
#[derive(Clone, Copy, Debug)]
struct Measured {
    /// Bytes that the API server sent of what is shared, to whoever: until all hubs knew it, and then under churn.
    first: f64,
    churn: f64,
    /// Bytes from the cloud under churn, whatever they were.
    all: f64,
    /// Changes that some watcher did not get.
    missed: u64,
    /// Resident memory of the largest hub: the leader, where one leads.
    memory: f64,
}

/// Measures, prints the report and returns it.
pub async fn run(args: BenchPoolArgs) -> Result<Report, BenchError> {
    let mut report = Report::new("pool", ["NOT SHARED", "SHARED"], args.quick);
    tokio::select! {
        measured = Box::pin(measure(&args, &mut report)) => measured?,
        () = processes::interrupted() => return Err(BenchError::Interrupted),
    }
    report.print(args.json);
    Ok(report)
}

async fn measure(args: &BenchPoolArgs, report: &mut Report) -> Result<(), BenchError> {
    let scale = Scale::of(args);
    let begun = Instant::now();
    say("one node that shares nothing");
    let site = Site::start(1, false).await?;
    let one = churn(&site, scale, false).await?;
    site.stop().await;
    let mut missed = one.missed;
    let mut leader_memory = f64::NAN;
    for size in &args.sizes {
        say(&format!(
            "a pool of {size} that shares, after {} s",
            begun.elapsed().as_secs()
        ));
        let site = Site::start(*size, true).await?;
        let pool = churn(&site, scale, true).await?;
        missed += pool.missed;
        leader_memory = pool.memory;
        for (what, bytes, of_one) in [
            ("until all is known", pool.first, one.first),
            ("under churn", pool.churn, one.churn),
        ] {
            let name = format!("sent by the cloud {what}, pool of {size}");
            let alone = of_one * f64::from(*size);
            report.push(Row::new(&name, Unit::Kilobytes, bytes / 1e3).direct(alone / 1e3));
            report.push(
                Row::new(
                    &format!("{name}, of one node's"),
                    Unit::Percent,
                    bytes / of_one * 100.0,
                )
                .direct(100.0 * f64::from(*size))
                .budget(MOST_SHARE, Some("N x")),
            );
        }
        report.push(
            Row::new(
                &format!("all bytes from the cloud meanwhile, pool of {size}"),
                Unit::Kilobytes,
                pool.all / 1e3,
            )
            .direct(one.all * f64::from(*size) / 1e3),
        );
        let site = if *size > 1 {
            take_over(site, *size, report).await?
        } else {
            site
        };
        site.stop().await;
    }
    report.push(
        Row::new(
            "changes that a watcher did not see",
            Unit::Count,
            missed as f64,
        )
        .budget(0.0, None),
    );
    say(&format!("measured in {} s", begun.elapsed().as_secs()));
    let largest = args.sizes.iter().max().copied().unwrap_or_default();
    report.push(
        Row::new(
            &format!("memory of the leader of {largest}"),
            Unit::Megabytes,
            leader_memory / 1e6,
        )
        .direct(one.memory / 1e6),
    );
    report.push(
        Row::new(
            "memory of coordination",
            Unit::Megabytes,
            (leader_memory - one.memory) / 1e6,
        )
        .budget(MOST_MEMORY, Some("370-590 MB")),
    );
    Ok(())
}

/// Lets a kube-proxy watch at every hub while endpoints change.
async fn churn(site: &Site, scale: Scale, shared: bool) -> Result<Measured, BenchError> {
    let direct = site.direct()?;
    say(&format!("creating {} objects", scale.shape.objects()));
    dataset::create(&direct, scale.shape).await?;
    site.settled(shared).await?;
    say(&format!("{} kube-proxies watch", site.hubs.len()));
    let watches = open(site, SLICES).await?;
    let services = open(site, SERVICES).await?;

    say(&format!("{} changes of endpoints", scale.changes));
    let before: Vec<u64> = watches.iter().map(WatchList::changes).collect();
    let (shared_before, all_before) = (site.shared_bytes().await?, site.cloud_bytes());
    let begun = Instant::now();
    for n in 0..scale.changes {
        sleep_until((begun + scale.interval * n).into()).await;
        let slice = dataset::slice_name(n as usize % scale.shape.services);
        let path =
            format!("/apis/discovery.k8s.io/v1/namespaces/{NAMESPACE}/endpointslices/{slice}");
        let patch = json!({"metadata": {"annotations": {"churn": n.to_string()}}});
        direct
            .call(
                Method::PATCH,
                &path,
                Some((MERGE_PATCH, load::json(&patch))),
            )
            .await?;
    }
    let missing = || -> u64 {
        let seen = watches
            .iter()
            .zip(&before)
            .map(|(watch, before)| watch.changes() - before);
        seen.map(|seen| u64::from(scale.changes).saturating_sub(seen))
            .sum()
    };
    let deadline = Instant::now() + PATIENCE;
    while missing() > 0 && watches.iter().all(WatchList::is_open) && Instant::now() < deadline {
        sleep(Duration::from_millis(20)).await;
    }
    let shared_bytes = site.shared_bytes().await?;
    let all = site.cloud_bytes() - all_before;
    let memory = memory(site).await;
    drop(services);
    Ok(Measured {
        first: shared_before,
        churn: shared_bytes - shared_before,
        all: all as f64,
        missed: missing(),
        memory: memory as f64,
    })
}

/// A watch of a path at every hub, in their order.
async fn open(site: &Site, path: &str) -> Result<Vec<WatchList>, BenchError> {
    let opening = site.hubs.iter().map(site::Hub::target);
    let opening = opening.map(|target| async move { open_at(&target, path).await });
    stream::iter(opening).buffered(OPENED).try_collect().await
}

/// Opens a watch as any client does: again when it is told to come later.
async fn open_at(target: &Target, path: &str) -> Result<WatchList, BenchError> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match WatchList::open(target, path).await {
            Err(error) if Instant::now() < deadline => {
                tracing::debug!(%error, "a watch is opened again");
                sleep(Duration::from_millis(200)).await;
            }
            opened => return opened,
        }
    }
}

/// Of the largest hub, when what the churn needed has been given back.
async fn memory(site: &Site) -> u64 {
    sleep(GIVEN_BACK).await;
    let largest = site.hubs.iter().map(site::Hub::memory).max();
    largest.unwrap_or_default()
}

/// Cuts the leader from the cloud, heals it, then kills who leads.
async fn take_over(mut site: Site, size: u32, report: &mut Report) -> Result<Site, BenchError> {
    let watchers = Watchers::start(&site).await?;
    let mut row = |what: &str, silence: Duration| {
        let name = format!("news again after the leader of {size} {what}");
        report.push(
            Row::new(&name, Unit::Seconds, silence.as_secs_f64())
                .budget(MOST_SILENCE, Some("> 40 s")),
        );
    };
    let leader = site.leader().await?;
    say("its leader is cut off");
    site.cut(leader, true);
    row("was cut off, at every node", watchers.reached(&[]).await?);
    site.cut(leader, false);
    site.settled(true).await?;
    let leader = site.leader().await?;
    say("its leader is killed");
    site.hubs[leader].kill().await;
    row(
        "was killed, at the others",
        watchers.reached(&[leader]).await?,
    );
    site.hubs[leader].start().await?;
    row("came back, at every node", watchers.reached(&[]).await?);
    Ok(site)
}
