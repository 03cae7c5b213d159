//! `yurt bench manager`: what the manager needs for a large cluster. 5,000 light nodes in 500 pools, 500 YurtAppSets of four pools each.
//!
//! The API server, the native controllers that bring Deployments to life, and the nodes are in this process; the manager is one of its
//! own, started when all of that is there: converging from nothing, then after single changes. Times of reconciliations and requests
//! are from its own metrics, memory is the process'. ([`super::exposition`] reads the metrics.)

use super::{
    BenchError, Report, Row, Unit,
    exposition::Exposition,
    load::{self, Target},
    megabytes,
    processes::{self, Ended, Scratch, Server},
    say,
};
use crate::{kube::Kube, light_nodes::LightNodes, plan::LightNode, pools};
use serde_json::{Value, json};
use std::{
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    time::{Duration, Instant},
};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use yurt_api::names::labels;
use yurt_apiserver::authn::User;
use yurt_controller::{
    Context,
    collections::{DEPLOYMENTS, NODE_POOLS, NODES},
};
use yurt_pki::{Ca, Profile};

/// Pools of one set.
const POOLS_OF_A_SET: usize = 4;
/// Single changes of each kind.
const CHANGES: usize = 10;
/// How long anything may take: 5,000 nodes join on a small machine.
const PATIENCE: Duration = Duration::from_secs(120);
/// Between two looks at whether it has converged.
const LOOK: Duration = Duration::from_millis(200);
/// What the native controllers have to do so that workloads become ready.
const NATIVE: &str =
    "deployment-controller,replicaset-controller,kube-scheduler,garbage-collector-controller";
const CERTIFICATE_DAYS: u32 = 7;
const SETS: &str = "/apis/apps.openyurt.io/v1beta1/namespaces/default/yurtappsets";
const MOST_RECONCILE: f64 = 1.0;
const MOST_MEMORY: f64 = 300.0;

/// Flags of `yurt bench manager`.
#[derive(Clone, Debug, clap::Args)]
pub struct BenchManagerArgs {
    /// Print the report as JSON.
    #[arg(long)]
    pub json: bool,
    /// A small cluster: whether it works, not how well.
    #[arg(long)]
    pub quick: bool,
    /// Nodes, spread evenly over the pools.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=20_000))]
    pub nodes: Option<u32>,
    /// Pools.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=2_000))]
    pub pools: Option<u32>,
    /// YurtAppSets, of four pools each.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=2_000))]
    pub sets: Option<u32>,
}

/// How much.
#[derive(Clone, Copy, Debug)]
struct Scale {
    nodes: usize,
    pools: usize,
    sets: usize,
    /// Until memory that a burst needed is given back.
    settle: Duration,
}

impl Scale {
    fn of(args: &BenchManagerArgs) -> Self {
        let (nodes, pools, sets, settle) = match args.quick {
            true => (100, 10, 10, 1),
            false => (5_000, 500, 500, 10),
        };
        let given = |given: Option<u32>, or: usize| given.map_or(or, |given| given as usize);
        Self {
            nodes: given(args.nodes, nodes),
            pools: given(args.pools, pools),
            sets: given(args.sets, sets),
            settle: Duration::from_secs(settle),
        }
    }

    /// The pools of a set: its own and the next ones.
    fn pools_of(&self, set: usize) -> Vec<String> {
        let count = POOLS_OF_A_SET.min(self.pools);
        (set..set + count)
            .map(|at| pool_name(at % self.pools))
            .collect()
    }
}

fn pool_name(at: usize) -> String {
    format!("pool-{at:03}")
}

fn set_name(at: usize) -> String {
    format!("app-{at:03}")
}

/// Measures, prints the report and returns it.
pub async fn run(args: BenchManagerArgs) -> Result<Report, BenchError> {
    let scale = Scale::of(&args);
    let mut report = Report::new("manager", ["", "MANAGER"], args.quick);
    let stop = CancellationToken::new();
    let measured = tokio::select! {
        measured = Box::pin(measure(scale, &mut report, &stop)) => measured,
        () = processes::interrupted() => Err(BenchError::Interrupted),
    };
    stop.cancel();
    measured?;
    report.print(args.json);
    Ok(report)
}

/// The cluster without its manager.
struct Site {
    kube: Kube,
    scale: Scale,
    scratch: Scratch,
}

async fn measure(
    scale: Scale,
    report: &mut Report,
    stop: &CancellationToken,
) -> Result<(), BenchError> {
    let Scale {
        nodes, pools, sets, ..
    } = scale;
    let begun = Instant::now();
    let site = Site::start(scale, stop).await?;
    say(&format!(
        "{nodes} light nodes, {pools} pools, {sets} YurtAppSets made in {:.1} s",
        begun.elapsed().as_secs_f64()
    ));
    let metrics = processes::free_address()?;
    let started = Instant::now();
    let mut manager = site.manager(metrics)?;
    let told = processes::plain(metrics);
    manager.ready(&told, "/metrics").await?;
    site.converge(report, started, &mut manager).await?;
    let converged = Exposition::read(&told).await?;
    report.push(Row::new(
        "requests until then",
        Unit::Count,
        converged.requests(),
    ));
    report.push(Row::new(
        "memory, just converged",
        Unit::Megabytes,
        megabytes(manager.pid()),
    ));
    site.changes(report, &told).await?;
    sleep(scale.settle).await;
    let after = Exposition::read(&told).await?;
    for (percent, row) in [(0.5, "reconcile p50"), (0.99, "reconcile p99")] {
        let row = Row::new(row, Unit::Seconds, after.reconcile(percent));
        report.push(match percent > 0.9 {
            true => row.budget(MOST_RECONCILE, None),
            false => row,
        });
    }
    for (controller, seconds, count) in after.slowest(3) {
        say(&format!(
            "{controller}: {count} reconciliations, {:.1} ms each",
            seconds / count.max(1.0) * 1e3
        ));
    }
    report.push(Row::new(
        "reconciliations that failed",
        Unit::Count,
        after.failures(),
    ));
    report.push(
        Row::new("memory, at rest", Unit::Megabytes, megabytes(manager.pid()))
            .budget(MOST_MEMORY, None),
    );
    manager.end(Ended::Drained).await;
    Ok(())
}

/// An address that is free now.
fn failed(what: &str) -> impl Fn(crate::kube::KubeError) -> BenchError + use<'_> {
    move |error| load::call(what, error)
}

impl Site {
    async fn start(scale: Scale, stop: &CancellationToken) -> Result<Self, BenchError> {
        let scratch = Scratch::new()?;
        let ca = Ca::new("kubernetes", CERTIFICATE_DAYS)?;
        let serving = ca.issue(&Profile {
            common_name: "kube-apiserver".into(),
            ips: vec![Ipv4Addr::LOCALHOST.into()],
            server: true,
            days: CERTIFICATE_DAYS,
            ..Profile::default()
        })?;
        let config = yurt_apiserver::Config {
            listen: (Ipv4Addr::LOCALHOST, 0).into(),
            tls: Some(yurt_apiserver::Tls {
                serving,
                client_ca: Some(ca.cert_pem()),
            }),
            tokens: vec![(
                processes::TOKEN.into(),
                User::new("kubernetes-admin", &["system:masters"]),
            )],
            ..yurt_apiserver::Config::default()
        };
        let api = yurt_apiserver::ApiServer::start(config, stop.clone()).await?;
        let kube = Kube::in_process(api.in_process().into_call(), processes::TOKEN, PATIENCE);
        let kubeconfig = crate::kubeconfig::render(
            "bench",
            &format!("https://{}", api.addr()),
            &ca.cert_pem(),
            &crate::kubeconfig::Credentials::Token(processes::TOKEN),
        );
        let file = scratch.0.join("kubeconfig");
        std::fs::write(&file, kubeconfig).map_err(processes::io_error(file.display()))?;
        pools::define(&kube).await.map_err(failed("definitions"))?;
        let context = Context::new(kube.clone(), stop.clone());
        let native = NATIVE
            .parse()
            .map_err(|error| load::call("controllers", error))?;
        yurt_controlplane::start_in(&native, &yurt_controlplane::Settings::default(), &context);
        let site = Self {
            kube,
            scale,
            scratch,
        };
        say(&format!("{} light nodes are joining", scale.nodes));
        let joined = LightNodes::start(site.plans(), &context)
            .registered(PATIENCE)
            .await;
        joined.map_err(|count| BenchError::Patience {
            what: format!("{} nodes joined; {count} did", scale.nodes),
        })?;
        site.create().await?;
        Ok(site)
    }

    /// The nodes, spread evenly over the pools.
    fn plans(&self) -> Vec<LightNode> {
        let mut plans =
            crate::plan::light_nodes(u32::try_from(self.scale.nodes).unwrap_or(u32::MAX), &[]);
        for (at, plan) in plans.iter_mut().enumerate() {
            plan.pool = Some(pool_name(at % self.scale.pools));
            plan.passes_for_ordinary = true;
        }
        plans
    }

    async fn create(&self) -> Result<(), BenchError> {
        for at in 0..self.scale.pools {
            let name = pool_name(at);
            let pool = json!({"metadata": {"name": name, "labels": {"bench": "yes"}},
                "spec": {"type": "Edge", "enableLeaderElection": true, "interConnectivity": true, "labels": {"bench/pool": name}}});
            self.kube
                .ensure(&NODE_POOLS.path(""), &pool)
                .await
                .map_err(failed("NodePool"))?;
        }
        for at in 0..self.scale.sets {
            let name = set_name(at);
            let pools = self.scale.pools_of(at);
            let app = json!({"app": name});
            let set = json!({"metadata": {"name": name, "namespace": "default"}, "spec": {
            "pools": pools,
            "workload": {
                "workloadTemplate": {"deploymentTemplate": {"metadata": {"labels": app}, "spec": {
                    "replicas": 1, "selector": {"matchLabels": app},
                    "template": {"metadata": {"labels": app}, "spec": {"containers": [{"name": "main", "image": "registry.lab/app:1"}]}}}}},
                "workloadTweaks": [{"pools": [pools[0]], "tweaks": {"containerImages": [{"name": "main", "targetImage": "registry.lab/app:tweaked"}]}}],
            }}});
            self.kube
                .ensure(SETS, &set)
                .await
                .map_err(failed("YurtAppSet"))?;
        }
        Ok(())
    }

    /// The manager, a process of its own.
    fn manager(&self, metrics: SocketAddr) -> Result<Server, BenchError> {
        let dir: &Path = &self.scratch.0;
        let arguments = [
            "manager".into(),
            "--kubeconfig".into(),
            dir.join("kubeconfig").into(),
            format!("--metrics-addr={metrics}").into(),
            "--health-probe-addr=0".into(),
            "--webhook-port=0".into(),
            "--disable-independent-service-accounts".into(),
            // What the budget is of is one manager's work, not how fast an API server lets it.
            "--rest-config-qps=1000".into(),
            "--rest-config-burst=2000".into(),
        ];
        Server::start("manager", &arguments, dir)
    }

    async fn list(&self, path: &str) -> Result<Vec<Value>, BenchError> {
        let mut list = self.kube.get(path).await.map_err(failed(path))?;
        match list.get_mut("items").map(Value::take) {
            Some(Value::Array(items)) => Ok(items),
            _ => Ok(Vec::new()),
        }
    }

    /// Waits until all of a list is as wanted; how long that took since `since`.
    async fn until(
        &self,
        what: &str,
        path: &str,
        since: Instant,
        manager: &mut Server,
        wanted: impl Fn(&Value) -> bool,
    ) -> Result<f64, BenchError> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let items = self.list(path).await?;
            let left = items.iter().filter(|item| !wanted(item)).count();
            if left == 0 {
                return Ok(since.elapsed().as_secs_f64());
            }
            if manager.pid().is_none() || Instant::now() >= deadline {
                return Err(
                    manager.failed(format!("left {left} of {} undone: {what}", items.len()))
                );
            }
            sleep(LOOK).await;
        }
    }

    /// From the start of the manager until everything is as it should be.
    async fn converge(
        &self,
        report: &mut Report,
        since: Instant,
        manager: &mut Server,
    ) -> Result<(), BenchError> {
        let of_pool = i64::try_from(self.scale.nodes / self.scale.pools).unwrap_or(0);
        let counted = |pool: &Value| {
            let status = &pool["status"];
            status["readyNodeNum"].as_i64().unwrap_or(0) >= of_pool && status["leaderNum"] == 1
        };
        let pools = self
            .until(
                "pools counted and led",
                &NODE_POOLS.path(""),
                since,
                manager,
                counted,
            )
            .await?;
        report.push(Row::new(
            "from nothing: pools counted, leaders elected",
            Unit::Seconds,
            pools,
        ));
        say(&format!("pools after {pools:.1} s"));
        let given = |node: &Value| {
            let labels = &node["metadata"]["labels"];
            labels["bench/pool"] == labels[labels::NODE_POOL]
        };
        let nodes = self
            .until(
                "nodes with what their pools give",
                &NODES.path(""),
                since,
                manager,
                given,
            )
            .await?;
        report.push(Row::new(
            "from nothing: nodes have what their pools give",
            Unit::Seconds,
            nodes,
        ));
        say(&format!("nodes after {nodes:.1} s"));
        let wanted = POOLS_OF_A_SET.min(self.scale.pools);
        let dispatched = |set: &Value| set["status"]["totalWorkloads"] == wanted;
        let sets = self
            .until("workloads of all sets", SETS, since, manager, dispatched)
            .await?;
        report.push(Row::new(
            "from nothing: workloads of all sets",
            Unit::Seconds,
            sets,
        ));
        say(&format!("workloads after {sets:.1} s"));
        let ready = |set: &Value| set["status"]["readyWorkloads"] == wanted;
        let ready = self
            .until("sets ready", SETS, since, manager, ready)
            .await?;
        report.push(Row::new(
            "from nothing: all of them ready, with native controllers",
            Unit::Seconds,
            ready,
        ));
        Ok(())
    }

    /// Single changes, one after the other, in a quiet cluster.
    async fn changes(&self, report: &mut Report, told: &Target) -> Result<(), BenchError> {
        self.quiet(told).await?;
        let rows = [
            "a node's readiness to its pool's status and back, median",
            "requests of the manager for it",
        ];
        say("a node of a pool becomes unready, and ready again");
        self.change(report, rows, told, async |at| self.unready(at).await)
            .await?;
        let rows = [
            "a set's new image to all its workloads, median",
            "requests of the manager for it, until the pods are ready",
        ];
        say("a set gets a new image");
        self.change(report, rows, told, async |at| self.new_image(at).await)
            .await?;
        let rows = [
            "a tweak of one pool to its workload, median",
            "requests of the manager for it, until the pods are ready",
        ];
        say("a set gets another number of pods in one pool");
        self.change(report, rows, told, async |at| self.one_pool(at).await)
            .await
    }

    /// Makes some changes; two rows, of the median time of one and of its requests.
    async fn change(
        &self,
        report: &mut Report,
        [took, asked]: [&str; 2],
        told: &Target,
        one: impl AsyncFn(usize) -> Result<(), BenchError>,
    ) -> Result<(), BenchError> {
        let before = Exposition::read(told).await?.requests();
        let mut times = Vec::with_capacity(CHANGES);
        for at in 0..CHANGES {
            let begun = Instant::now();
            one(at % self.scale.sets.min(self.scale.pools)).await?;
            times.push(begun.elapsed().as_secs_f64());
        }
        times.sort_by(f64::total_cmp);
        let requests = self.quiet(told).await? - before;
        report.push(Row::new(took, Unit::Seconds, times[times.len() / 2]));
        let each = requests / CHANGES as f64;
        report.push(Row::new(asked, Unit::Count, each));
        Ok(())
    }

    /// Waits until the manager asks for next to nothing; its requests so far.
    async fn quiet(&self, told: &Target) -> Result<f64, BenchError> {
        let deadline = Instant::now() + PATIENCE;
        let mut known = Exposition::read(told).await?.requests();
        loop {
            sleep(Duration::from_secs(2)).await;
            let now = Exposition::read(told).await?.requests();
            // It renews its lease.
            if now - known <= 3.0 || Instant::now() >= deadline {
                return Ok(now);
            }
            known = now;
        }
    }

    async fn wait(&self, path: &str, wanted: impl Fn(&Value) -> bool) -> Result<(), BenchError> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let object = self.kube.get(path).await.map_err(failed(path))?;
            if wanted(&object) {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(BenchError::Patience {
                    what: format!("{path} is as wanted: {}", object["status"]),
                });
            }
            sleep(Duration::from_millis(5)).await;
        }
    }

    /// A node says that it is not ready; its pool counts that. (It says that it is ready by itself later.)
    async fn unready(&self, at: usize) -> Result<(), BenchError> {
        let nodes = format!(
            "{}?labelSelector={}%3D{}",
            NODES.path(""),
            labels::NODE_POOL,
            pool_name(at)
        );
        let nodes = self.list(&nodes).await?;
        let Some(node) = nodes
            .last()
            .and_then(|node| node["metadata"]["name"].as_str())
        else {
            return Err(load::call(&pool_name(at), "has no nodes"));
        };
        let status = json!({"status": {"conditions": [{"type": "Ready", "status": "False", "reason": "Bench"}]}});
        let path = format!("{}/{node}/status", NODES.path(""));
        self.kube
            .strategic(&path, &status)
            .await
            .map_err(failed(&path))?;
        let pool = format!("{}/{}", NODE_POOLS.path(""), pool_name(at));
        self.wait(&pool, |pool| pool["status"]["unreadyNodeNum"] == 1)
            .await?;
        let status = json!({"status": {"conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady"}]}});
        self.kube
            .strategic(&path, &status)
            .await
            .map_err(failed(&path))?;
        self.wait(&pool, |pool| pool["status"]["unreadyNodeNum"] == 0)
            .await
    }

    async fn new_image(&self, at: usize) -> Result<(), BenchError> {
        let path = format!("{SETS}/{}", set_name(at));
        let patch = json!([{"op": "replace", "value": "registry.lab/app:2",
            "path": "/spec/workload/workloadTemplate/deploymentTemplate/spec/template/spec/containers/0/image"}]);
        self.kube
            .json_patch(&path, &patch)
            .await
            .map_err(failed(&path))?;
        let untweaked = POOLS_OF_A_SET.min(self.scale.pools) - 1;
        self.workloads(at, |workloads| {
            let new = workloads.iter().filter(|w| {
                w["spec"]["template"]["spec"]["containers"][0]["image"] == "registry.lab/app:2"
            });
            new.count() == untweaked
        })
        .await
    }

    async fn one_pool(&self, at: usize) -> Result<(), BenchError> {
        let path = format!("{SETS}/{}", set_name(at));
        let pools = self.scale.pools_of(at);
        let last = pools.last().map(String::as_str).unwrap_or_default();
        let patch = json!([{"op": "add", "path": "/spec/workload/workloadTweaks/-", "value": {"pools": [last], "tweaks": {"replicas": 2}}}]);
        self.kube
            .json_patch(&path, &patch)
            .await
            .map_err(failed(&path))?;
        self.workloads(at, |workloads| {
            workloads.iter().any(|w| {
                w["metadata"]["labels"][labels::WORKLOAD_POOL] == last && w["spec"]["replicas"] == 2
            })
        })
        .await
    }

    /// Waits until the workloads of a set are as wanted.
    async fn workloads(
        &self,
        set: usize,
        wanted: impl Fn(&[Value]) -> bool,
    ) -> Result<(), BenchError> {
        let path = format!(
            "{}?labelSelector={}%3D{}",
            DEPLOYMENTS.path("default"),
            labels::REF_YURT_APP_SET,
            set_name(set)
        );
        let deadline = Instant::now() + PATIENCE;
        while !wanted(&self.list(&path).await?) {
            if Instant::now() >= deadline {
                return Err(BenchError::Patience {
                    what: format!("the workloads of {} follow", set_name(set)),
                });
            }
            sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }
}
