//! `yurt demo`: the product's story in one command, each step checked, the figures measured on the way.
//!
//! Chapters after the beginning: the cloud's [`reach`] into nodes, [`apps`] that are different from pool to pool, a [`pool`] that coordinates itself, an update past a node
//! that is away, a site that is [`cut_off`] altogether, an [`upgrade`] decided by a node's owner. [`scene`] is what they are told with.

mod apps;
mod cut_off;
mod pool;
mod reach;
mod report;
mod scene;
mod upgrade;

use crate::{
    cluster::{Cluster, Config, LabError},
    controllers::Controllers,
    kube::KubeError,
    plan::{Pools, light_nodes},
};
use report::Report;
use scene::{PODS, Scene, items};
use std::{
    path::PathBuf,
    time::{Duration, Instant},
};
use tokio_util::sync::CancellationToken;
use yurt_controlplane::NodeMonitor;

/// Flags of `yurt demo`.
#[derive(Clone, Debug, clap::Args)]
pub struct DemoArgs {
    /// Keep the cluster's files here (default: a temporary directory, removed at the end).
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Print the measured figures as JSON too.
    #[arg(long)]
    pub json: bool,
}

/// Why the demo could not be told to its end.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// The lab.
    #[error(transparent)]
    Lab(#[from] LabError),
    /// A call that had to work did not.
    #[error(transparent)]
    Kube(#[from] KubeError),
    /// Something that had to happen did not in time.
    #[error("waited {patience:?} in vain for {what}")]
    InVain {
        /// What.
        what: &'static str,
        /// How long.
        patience: Duration,
    },
    /// The lab refused a command.
    #[error("{0}")]
    Refused(String),
    /// Ctrl-C.
    #[error("stopped before the end")]
    Stopped,
}

/// Where the story is, and the other pool.
const POOL: &str = "hangzhou";
const ELSEWHERE: &str = "beijing-1";
/// A node in no pool, without a hub, that joins one.
const JOINS: &str = "light-1";
/// How often hubs renew their nodes' leases, seconds; and after which silence a node counts as lost. Shorter than usual: nobody wants
/// to wait for a minute to see that nothing happens.
const HEARTBEAT_SECONDS: u32 = 1;
const GRACE: Duration = Duration::from_secs(10);
/// How long any one step may take before the demo gives up.
const PATIENCE: Duration = Duration::from_secs(30);
/// Budgets of the design: going local, coming back.
const BUDGET: Duration = Duration::from_secs(3);

/// Tells the story; true when every step held.
pub async fn run(
    args: DemoArgs,
    program: PathBuf,
    shutdown: CancellationToken,
) -> Result<bool, DemoError> {
    let temporary = args.data_dir.is_none();
    let data_dir = args
        .data_dir
        .unwrap_or_else(|| std::env::temp_dir().join(format!("yurt-demo-{}", std::process::id())));
    let mut report = Report::new(19);
    report.title("Yurt demo: edge nodes that outlive their cloud link");
    let began = Instant::now();
    report.step("a cluster: API server, manager, pools hangzhou (3 nodes) and beijing (1), a hub and a kubelet on each");
    let pools: Pools = "hangzhou=3,beijing=1"
        .parse()
        .map_err(|e: crate::plan::PlanError| DemoError::Refused(e.to_string()))?;
    let config = Config {
        data_dir: data_dir.clone(),
        pools,
        port: 0,
        program,
        controllers: Controllers::default(),
        node_monitor: NodeMonitor {
            period: Duration::from_secs(1),
            grace: GRACE,
            ..NodeMonitor::default()
        },
        light_nodes: light_nodes(1, &[]),
        heartbeat_seconds: HEARTBEAT_SECONDS,
    };
    let cluster = Box::pin(Cluster::start(&config, &mut |line| report.say(line))).await?;
    let told = tokio::select! {
        told = tell(&cluster, &mut report, began) => told,
        () = shutdown.cancelled() => Err(DemoError::Stopped),
    };
    let failed_logs = told.is_err() || !report.held();
    cluster.stop().await;
    if temporary && !failed_logs {
        // Only scratch; what is left over goes with the temporary directory.
        let _ = std::fs::remove_dir_all(&data_dir);
    }
    told?;
    report.summary(args.json);
    if failed_logs {
        eprintln!("hub logs: {}", data_dir.join("nodes").display());
    }
    Ok(report.held())
}

async fn tell(cluster: &Cluster, report: &mut Report, began: Instant) -> Result<(), DemoError> {
    cluster.ready(PATIENCE).await?;
    report.measure(
        "cluster from nothing to all nodes Ready",
        began.elapsed(),
        None,
    );
    let mut scene = Scene { cluster, report };
    scene.step("an app: a DaemonSet puts one pod on every node, a Service leads to them");
    upgrade::deploy(&scene, "registry.lab/app:1").await?;
    let cloud = cluster.kube();
    let online = scene
        .within("every pod Running", async || {
            let list = cloud.get(PODS).await.ok()?;
            let running = items(&list)
                .iter()
                .filter(|p| p["status"]["phase"] == "Running")
                .count();
            (running == cluster.nodes().len() + 1).then_some(list)
        })
        .await?;
    scene.say(&format!(
        "{} pods Running: made by the controller, bound by the scheduler, started by their nodes' kubelets",
        items(&online).len()
    ));
    reach::tell(&mut scene).await?;
    apps::tell(&mut scene).await?;
    apps::loses_a_node(&mut scene).await?;
    pool::tell(&mut scene).await?;
    apps::rolls_past_it(&mut scene).await?;
    cut_off::tell(&mut scene).await?;
    upgrade::tell(&mut scene).await?;
    let memory = scene.hub_memory().await;
    report.figure(
        "largest hub, resident",
        format!("{:.1} MB", memory as f64 / 1e6),
    );
    Ok(())
}
