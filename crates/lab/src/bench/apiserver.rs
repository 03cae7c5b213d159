//! `yurt bench apiserver`: the embedded API server, measured beside another one in the same run.
//!
//! The embedded server is a process of its own (`yurt apiserver`, durable, TLS); the other is whatever `--compare` leads
//! to, and gets the same requests, phase by phase in turn. Every client has a connection of its own (HTTP/2 where the
//! server offers it), as programs have.
//!
//! [`run`] is the story; [`side`] is a server under measure, [`requests`] what is sent to it, [`drive`] sends it,
//! [`comparison`](super::comparison) is what comes out.

mod drive;
mod requests;
mod side;

use super::{
    BenchError,
    comparison::{Better, Comparison, Figure, Sides},
    load::{self, Target},
    processes::{Scratch, interrupted},
    report::Unit,
    watching::Fanout,
};
use drive::{Limit, Outcome};
use http::Method;
use requests::{Form, Kind, Requests};
use side::Side;
use std::{path::PathBuf, time::Duration};
use tokio::time::sleep;
use yurt_wire::Encoding;

/// How many times better than the other one writes and lists are to be.
const FASTER: f64 = 3.0;
/// How many times less memory is to be used.
const SMALLER: f64 = 8.0;
/// Where the objects of the memory and list measurements are.
const STOCK: &str = "yurt-bench-stock";
/// Where everything else happens.
const WORK: &str = "yurt-bench-work";
/// Objects in one chunk of a list, as kubectl asks for.
const CHUNK: usize = 500;
/// Rounds of deleting before a namespace is left to the server.
const MOST_PARTS: usize = 1_000;

/// Flags of `yurt bench apiserver`.
#[derive(Clone, Debug, clap::Args)]
pub struct BenchApiServerArgs {
    /// Measure this server too, and compare: a kubeconfig whose user may do everything. The bench works in two namespaces of
    /// its own and removes them.
    #[arg(long, value_name = "KUBECONFIG")]
    pub compare: Option<PathBuf>,
    /// The processes of that server, etcd included, when they run on this machine: for memory and CPU time.
    #[arg(
        long,
        value_name = "PID,...",
        value_delimiter = ',',
        requires = "compare"
    )]
    pub compare_pids: Vec<u32>,
    /// Pods in the server when memory and lists are measured.
    #[arg(long, default_value_t = 10_000, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub objects: u32,
    /// Clients at a time, beside one alone.
    #[arg(long, default_value_t = 32, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=512))]
    pub clients: u16,
    /// Print the report as JSON.
    #[arg(long)]
    pub json: bool,
    /// Short loads: whether it works, not how well.
    #[arg(long)]
    pub quick: bool,
}

/// How long and how much.
#[derive(Clone, Copy, Debug)]
struct Scale {
    objects: u64,
    clients: usize,
    load: Limit,
    lists: Limit,
    settle: Duration,
    watchers: usize,
    changes: usize,
}

impl Scale {
    fn of(args: &BenchApiServerArgs) -> Self {
        let limit = |calls, time| Limit { calls, time };
        let (load, lists, settle, watchers, changes) = if args.quick {
            (
                limit(200, Duration::from_millis(500)),
                limit(3, Duration::from_millis(500)),
                Duration::from_millis(500),
                10,
                20,
            )
        } else {
            (
                // Both are left with about the same number of objects, however fast they are.
                limit(5_000, Duration::from_secs(3)),
                limit(40, Duration::from_secs(3)),
                Duration::from_secs(3),
                100,
                100,
            )
        };
        Self {
            objects: args.objects.into(),
            clients: args.clients.into(),
            load,
            lists,
            settle,
            watchers,
            changes,
        }
    }
}

/// Measures, prints the report and returns it.
pub async fn run(args: BenchApiServerArgs) -> Result<Comparison, BenchError> {
    let scratch = Scratch::new()?;
    let mut sides = vec![Side::embedded(&scratch.0).await?];
    if let Some(kubeconfig) = &args.compare {
        sides.push(Side::other(kubeconfig, args.compare_pids.clone()).await?);
    }
    let scale = Scale::of(&args);
    let mut report = Comparison::new(
        Sides {
            bench: "apiserver",
            direct: None,
            other: (sides.len() > 1).then_some("OTHER"),
        },
        args.quick,
    );
    let measured = tokio::select! {
        measured = Box::pin(measure(&sides, scale, &mut report)) => measured,
        () = interrupted() => Err(BenchError::Interrupted),
    };
    for side in sides {
        if let Err(error) = side.end(&[STOCK, WORK]).await {
            super::say(&format!("not everything was removed: {error}"));
        }
    }
    measured?;
    report.print(args.json);
    Ok(report)
}

/// One load of every side, and what each made of it.
struct Phase<'a> {
    sides: &'a [Side],
    report: &'a mut Comparison,
}

impl Phase<'_> {
    /// Sends the same to all sides. `each` says what a side's clients send.
    async fn drive(
        &mut self,
        clients: usize,
        limit: Limit,
        each: impl AsyncFn(&Side, usize) -> Result<Requests, BenchError>,
    ) -> Result<Vec<Outcome>, BenchError> {
        let mut outcomes = Vec::new();
        for side in self.sides {
            let mut sources = Vec::new();
            for n in 0..clients {
                sources.push((side.target(), each(side, n).await?));
            }
            let before = side.usage().await?;
            let mut outcome = drive::run(sources, limit).await;
            outcome.cpu_seconds = side.usage().await?.cpu_seconds - before.cpu_seconds;
            outcomes.push(outcome);
        }
        Ok(outcomes)
    }

    fn push(&mut self, what: String, unit: Unit, better: Better, target: Option<f64>, of: &[f64]) {
        let ours = of.first().copied().unwrap_or(f64::NAN);
        self.report.push(Figure {
            other: of.get(1).copied(),
            target,
            ..Figure::new(&what, unit, better, ours)
        });
    }

    /// Rate, latency and CPU time of a load.
    fn rates(&mut self, what: &str, outcomes: &[Outcome], target: Option<f64>) {
        let of = |figure: &dyn Fn(&Outcome) -> f64| outcomes.iter().map(figure).collect::<Vec<_>>();
        self.push(
            format!("{what}: rate"),
            Unit::PerSecond,
            Better::Higher,
            target,
            &of(&Outcome::rate),
        );
        for (name, quantile) in [("p50", 0.5), ("p99", 0.99)] {
            self.push(
                format!("{what}: {name}"),
                Unit::Milliseconds,
                Better::Lower,
                None,
                &of(&|outcome| outcome.latencies.at(quantile)),
            );
        }
        self.push(
            format!("{what}: CPU time of the server each"),
            Unit::Milliseconds,
            Better::Lower,
            None,
            &of(&Outcome::cpu_milliseconds_each),
        );
        self.failures(outcomes);
    }

    fn failures(&mut self, outcomes: &[Outcome]) {
        for (side, outcome) in self.sides.iter().zip(outcomes) {
            if let Some(why) = &outcome.failure {
                super::say(&format!(
                    "{}: {} requests failed, the first: {why}",
                    side.name(),
                    outcome.failed
                ));
            }
            self.report.failed += outcome.failed;
        }
    }

    async fn memory(&mut self, what: &str, target: Option<f64>) -> Result<(), BenchError> {
        let mut of = Vec::new();
        for side in self.sides {
            of.push(side.usage().await?.resident_bytes / 1e6);
        }
        self.push(what.to_owned(), Unit::Megabytes, Better::Lower, target, &of);
        Ok(())
    }
}

async fn measure(sides: &[Side], scale: Scale, report: &mut Comparison) -> Result<(), BenchError> {
    let mut phase = Phase { sides, report };
    sleep(scale.settle).await;
    phase.memory("memory, empty", Some(SMALLER)).await?;
    for side in sides {
        for namespace in [STOCK, WORK] {
            requests::prepare_namespace(&side.target(), namespace).await?;
        }
    }
    stock(&mut phase, scale).await?;
    for clients in [1, scale.clients] {
        writes(&mut phase, scale, clients).await?;
    }
    reads(&mut phase, scale).await?;
    lists(&mut phase, scale).await?;
    for watchers in [1, scale.watchers] {
        watch_latency(&mut phase, scale, watchers).await?;
    }
    phase.memory("memory, at the end", None).await?;
    let mut of = Vec::new();
    for side in sides {
        of.push(side.usage().await?.cpu_seconds - side.cpu_at_start());
    }
    let what = "CPU time of the server, in all".to_owned();
    phase.push(what, Unit::Seconds, Better::Lower, None, &of);
    Ok(())
}

/// The pods that memory and lists are measured with.
async fn stock(phase: &mut Phase<'_>, scale: Scale) -> Result<(), BenchError> {
    super::say(&format!("creating {} pods", scale.objects));
    let limit = Limit {
        calls: scale.objects,
        time: Duration::from_secs(3600),
    };
    let form = Form::new(Kind::Pod, Encoding::Json);
    let outcomes = phase
        .drive(scale.clients, limit, async |_, _| {
            Requests::creates(form, STOCK, "stock")
        })
        .await?;
    let what = format!("create {} pods, {} clients", scale.objects, scale.clients);
    phase.rates(&what, &outcomes, Some(FASTER));
    sleep(scale.settle).await;
    let what = format!("memory, {} pods", scale.objects);
    phase.memory(&what, Some(SMALLER)).await
}

async fn writes(phase: &mut Phase<'_>, scale: Scale, clients: usize) -> Result<(), BenchError> {
    for (kind, encoding) in [
        (Kind::ConfigMap, Encoding::Json),
        (Kind::ConfigMap, Encoding::Protobuf),
        (Kind::Pod, Encoding::Json),
        (Kind::Pod, Encoding::Protobuf),
    ] {
        let form = Form::new(kind, encoding);
        let what = format!("{form}, {}", people(clients));
        super::say(&format!("creating and updating {what}"));
        let prefix = format!("c{clients}-{}", form.slug());
        let outcomes = phase
            .drive(clients, scale.load, async |_, _| {
                Requests::creates(form, WORK, &prefix)
            })
            .await?;
        phase.rates(&format!("create {what}"), &outcomes, Some(FASTER));
        let prefix = format!("u{clients}-{}", form.slug());
        let outcomes = phase
            .drive(clients, scale.load, async |side, n| {
                Requests::updates(&side.target(), form, WORK, &format!("{prefix}-{n}")).await
            })
            .await?;
        phase.rates(&format!("update {what}"), &outcomes, Some(FASTER));
    }
    super::say("patching the status of pods");
    let outcomes = phase
        .drive(clients, scale.load, async |side, n| {
            Requests::status_patches(&side.target(), WORK, &format!("s{clients}-{n}")).await
        })
        .await?;
    let what = format!("patch the status of a pod, {}", people(clients));
    phase.rates(&what, &outcomes, Some(FASTER));
    Ok(())
}

async fn reads(phase: &mut Phase<'_>, scale: Scale) -> Result<(), BenchError> {
    super::say("getting pods");
    for clients in [1, scale.clients] {
        for encoding in [Encoding::Json, Encoding::Protobuf] {
            let outcomes = phase
                .drive(clients, scale.load, async |_, _| {
                    Ok(Requests::gets(STOCK, "stock", encoding, scale.objects))
                })
                .await?;
            let what = format!("get pod, {}, {}", requests::name(encoding), people(clients));
            phase.rates(&what, &outcomes, None);
        }
    }
    Ok(())
}

async fn lists(phase: &mut Phase<'_>, scale: Scale) -> Result<(), BenchError> {
    for (name, accept) in requests::LISTS {
        super::say(&format!("listing {} pods as {name}", scale.objects));
        let outcomes = phase
            .drive(1, scale.lists, async |_, _| {
                Ok(Requests::lists(STOCK, accept))
            })
            .await?;
        list_figures(
            phase,
            &format!("list {} pods, {name}", scale.objects),
            &outcomes,
        );
    }
    let accept = "application/json";
    super::say("listing in chunks");
    let mut outcomes = Vec::new();
    for side in phase.sides {
        let before = side.usage().await?;
        let mut outcome = drive::chunked(&side.target(), STOCK, accept, CHUNK, scale.lists).await;
        outcome.cpu_seconds = side.usage().await?.cpu_seconds - before.cpu_seconds;
        outcomes.push(outcome);
    }
    let what = format!("list {} pods, JSON in chunks of {CHUNK}", scale.objects);
    list_figures(phase, &what, &outcomes);
    Ok(())
}

fn list_figures(phase: &mut Phase<'_>, what: &str, outcomes: &[Outcome]) {
    let of = |figure: &dyn Fn(&Outcome) -> f64| outcomes.iter().map(figure).collect::<Vec<_>>();
    phase.push(
        format!("{what}: p50"),
        Unit::Milliseconds,
        Better::Lower,
        Some(FASTER),
        &of(&|outcome| outcome.latencies.at(0.5)),
    );
    phase.push(
        format!("{what}: throughput"),
        Unit::MegabytesPerSecond,
        Better::Higher,
        None,
        &of(&Outcome::megabytes_per_second),
    );
    phase.push(
        format!("{what}: CPU time of the server each"),
        Unit::Milliseconds,
        Better::Lower,
        None,
        &of(&Outcome::cpu_milliseconds_each),
    );
    phase.failures(outcomes);
}

async fn watch_latency(
    phase: &mut Phase<'_>,
    scale: Scale,
    watchers: usize,
) -> Result<(), BenchError> {
    super::say(&format!("an object that changes, watched by {watchers}"));
    let fanout = Fanout {
        namespace: WORK,
        watchers,
        changes: scale.changes,
    };
    let mut results = Vec::new();
    let mut cpu = Vec::new();
    for side in phase.sides {
        let before = side.usage().await?;
        results.push(fanout.run(&side.target(), || side.target()).await?);
        let used = side.usage().await?.cpu_seconds - before.cpu_seconds;
        cpu.push(used * 1000.0 / scale.changes as f64);
    }
    let what = if watchers == 1 {
        "1 watcher".to_owned()
    } else {
        format!("{watchers} watchers")
    };
    for (name, quantile) in [("p50", 0.5), ("p99", 0.99)] {
        let mut push = |from: &str, of: Vec<f64>| {
            let what = format!("{what}, {from} to event: {name}");
            phase.push(what, Unit::Milliseconds, Better::Lower, None, &of);
        };
        push(
            "write sent",
            results.iter().map(|r| r.sent.at(quantile)).collect(),
        );
        push(
            "write acknowledged",
            results
                .iter()
                .map(|r| r.acknowledged.at(quantile))
                .collect(),
        );
    }
    phase.push(
        format!("{what}: CPU time of the server for each change"),
        Unit::Milliseconds,
        Better::Lower,
        None,
        &cpu,
    );
    phase.report.failed += results.iter().map(|r| r.missed as u64).sum::<u64>();
    Ok(())
}

fn people(clients: usize) -> String {
    match clients {
        1 => "1 client".into(),
        more => format!("{more} clients"),
    }
}

/// Deletes everything that the bench put into a namespace, then the namespace, and waits until it is gone.
async fn remove_namespace(target: &Target, namespace: &str) -> Result<(), BenchError> {
    const PATIENCE: Duration = Duration::from_secs(5);
    let path = format!("/api/v1/namespaces/{namespace}");
    for plural in ["pods", "configmaps"] {
        let collection = format!("{path}/{plural}");
        // In parts, so that each answer comes in time.
        let part = format!("{collection}?limit={}", 4 * CHUNK);
        for _ in 0..MOST_PARTS {
            let names = requests::names_in(&target.call(Method::GET, &part, None).await?);
            // What a controller makes again goes with the namespace.
            if names.iter().all(|name| name == "kube-root-ca.crt") {
                break;
            }
            drive::delete(target, &collection, names).await;
        }
    }
    // Gone already is as good; the wait says when it is not.
    let _ = target.call(Method::DELETE, &path, None).await;
    if target.wait_gone(&path, PATIENCE).await.is_ok() {
        return Ok(());
    }
    // Nobody finishes it: a server without its controllers. It is the bench's own, and empty.
    let finalize = serde_json::json!({"apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": namespace}, "spec": {"finalizers": []}});
    let body = Some(("application/json", load::json(&finalize)));
    target
        .call(Method::PUT, &format!("{path}/finalize"), body)
        .await?;
    target.wait_gone(&path, PATIENCE).await
}
