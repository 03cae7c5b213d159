//! `yurt up`: a lab left running. `yurt lab`: commands to it.

use crate::{
    cluster::{Cluster, Config, LabError},
    control::{self, Answer, Command, ControlError, NodeStatus},
    controllers::{self, Controllers},
    plan::{LightPool, Pools, light_count, light_nodes},
};
use std::{path::PathBuf, sync::Arc, time::Duration};
use tokio_util::sync::CancellationToken;
use yurt_controlplane::NodeMonitor;

/// How often hubs renew their nodes' leases by default.
pub(crate) const HEARTBEAT_SECONDS: u32 = 10;
/// How long nodes may take to become Ready.
const PATIENCE: Duration = Duration::from_secs(60);

/// Flags of `yurt up`.
#[derive(Clone, Debug, clap::Args)]
pub struct UpArgs {
    /// Where the cluster keeps everything; used again by the next `up`.
    #[arg(long, default_value = ".yurt", value_name = "DIR")]
    pub data_dir: PathBuf,
    /// Edge pools and the number of nodes in each.
    #[arg(
        long,
        default_value = "hangzhou=2,beijing=1",
        value_name = "NAME=COUNT,..."
    )]
    pub pools: Pools,
    /// Port of the API server on 127.0.0.1 (0: the one used before, or any free one).
    #[arg(long, default_value_t = 0, value_name = "PORT")]
    pub port: u16,
    /// Which controllers run: native ones, and the manager's.
    #[arg(long, default_value = "*", value_name = "NAME,-NAME,...", long_help = controllers::HELP.as_str(), allow_hyphen_values = true)]
    pub controllers: Controllers,
    /// Light nodes besides: no hub, no link, nothing to connect to; pods run there all the same. For clusters of thousands.
    #[arg(long, default_value = "0", value_name = "N", value_parser = light_count)]
    pub light_nodes: u32,
    /// Light nodes in a pool; may be repeated.
    #[arg(long, value_name = "NAME=N")]
    pub light_pool: Vec<LightPool>,
    /// Times of the node controllers.
    #[command(flatten)]
    pub node_monitor: NodeMonitor,
    /// How often the hubs renew their nodes' leases (the hubs' own flag).
    #[arg(long, default_value_t = HEARTBEAT_SECONDS, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..=60))]
    pub heartbeat_interval_seconds: u32,
}

/// Starts a lab, says `ready` on stdout when every node is Ready, and keeps it running until `shutdown`.
pub async fn run(
    args: UpArgs,
    program: PathBuf,
    shutdown: CancellationToken,
) -> Result<(), LabError> {
    let config = Config {
        data_dir: args.data_dir,
        pools: args.pools,
        port: args.port,
        program,
        controllers: args.controllers,
        node_monitor: args.node_monitor,
        light_nodes: light_nodes(args.light_nodes, &args.light_pool),
        heartbeat_seconds: args.heartbeat_interval_seconds,
    };
    let mut say = |line: &str| eprintln!("{line}");
    let cluster = Arc::new(Box::pin(Cluster::start(&config, &mut say)).await?);
    let served = serve(cluster.clone(), &shutdown).await;
    eprintln!("stopping");
    if let Ok(cluster) = Arc::try_unwrap(cluster) {
        cluster.stop().await;
    }
    served
}

async fn serve(cluster: Arc<Cluster>, shutdown: &CancellationToken) -> Result<(), LabError> {
    let control_shutdown = shutdown.child_token();
    let control = {
        let (cluster, shutdown) = (cluster.clone(), control_shutdown.clone());
        let dir = cluster.directory().root().to_owned();
        tokio::spawn(async move {
            control::serve(&dir, shutdown, move |command| {
                let cluster = cluster.clone();
                async move { cluster.command(command).await }
            })
            .await
        })
    };
    let ready = tokio::select! {
        ready = cluster.ready(PATIENCE) => ready,
        () = shutdown.cancelled() => Ok(()),
    };
    if ready.is_ok() && !shutdown.is_cancelled() {
        describe(&cluster);
        println!("ready");
        shutdown.cancelled().await;
    }
    control_shutdown.cancel();
    match control.await {
        Ok(Err(error)) => ready.and(Err(LabError::Control(error))),
        _ => ready,
    }
}

fn describe(cluster: &Cluster) {
    let dir = cluster.directory();
    eprintln!(
        "  kubectl --kubeconfig {} get nodes",
        dir.join("admin.kubeconfig").display()
    );
    if let Some(node) = cluster.nodes().first() {
        let name = &node.plan.name;
        let kubeconfig = dir.node(name).join("kubeconfig");
        let root = dir.root().display();
        eprintln!(
            "  kubectl --kubeconfig {} get pods -A -w",
            kubeconfig.display()
        );
        eprintln!("  yurt lab --data-dir {root} cut {name}     # and `heal {name}`, `status`");
    }
}

/// Flags of `yurt lab`.
#[derive(Clone, Debug, clap::Args)]
pub struct LabArgs {
    /// The data directory of the running `yurt up`.
    #[arg(long, default_value = ".yurt", value_name = "DIR", global = true)]
    pub data_dir: PathBuf,
    /// Print the answer as JSON.
    #[arg(long, global = true)]
    pub json: bool,
    /// What to do.
    #[command(subcommand)]
    pub action: LabAction,
}

/// What `yurt lab` does. TARGET is a node or a pool.
#[derive(Clone, Debug, clap::Subcommand)]
pub enum LabAction {
    /// Cut the link to the cloud: packets vanish, on established connections too.
    Cut {
        /// Node or pool.
        target: String,
        /// Reset connections instead of losing their packets.
        #[arg(long)]
        reset: bool,
    },
    /// Let the link work again.
    Heal {
        /// Node or pool.
        target: String,
    },
    /// Make the link slow.
    Slow {
        /// Node or pool.
        target: String,
        /// Milliseconds added to each round trip.
        #[arg(long, default_value_t = 200, value_name = "MS")]
        delay: u64,
        /// Kilobytes per second each way; 0 for no limit.
        #[arg(long, default_value_t = 0, value_name = "KB/S")]
        rate: u64,
        /// Lost packets of a hundred, instead of a rate.
        #[arg(long, default_value_t = 0, value_name = "PERCENT", conflicts_with = "rate",
              value_parser = clap::value_parser!(u8).range(0..=95))]
        loss: u8,
    },
    /// Kill the hub with -9; the lab starts it again, as a service manager would.
    Kill {
        /// Node or pool.
        target: String,
    },
    /// Let the node lose power and come back: its hub is killed with -9, its kubelet starts every pod again with another address.
    Reboot {
        /// Node or pool.
        target: String,
    },
    /// Let a node's kubelet report a new status of a pod.
    Touch {
        /// The pod.
        #[arg(value_name = "NAMESPACE/NAME")]
        pod: String,
    },
    /// Show links, hubs and what waits for the cloud.
    Status {
        /// Node or pool; all when left out.
        #[arg(default_value = "")]
        target: String,
    },
}

impl From<LabAction> for Command {
    fn from(action: LabAction) -> Self {
        match action {
            LabAction::Cut { target, reset } => Self::Cut { target, reset },
            LabAction::Heal { target } => Self::Heal { target },
            LabAction::Slow {
                target,
                delay,
                rate,
                loss,
            } => Self::Slow {
                target,
                delay_ms: delay,
                bytes_per_second: rate.saturating_mul(1000),
                loss_percent: loss,
            },
            LabAction::Kill { target } => Self::Kill { target },
            LabAction::Reboot { target } => Self::Reboot { target },
            LabAction::Touch { pod } => Self::Touch { pod },
            LabAction::Status { target } => Self::Status { target },
        }
    }
}

/// Why `yurt lab` failed.
#[derive(Debug, thiserror::Error)]
pub enum LabCommandError {
    /// No lab, or no answer.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The lab refused.
    #[error("{0}")]
    Refused(String),
}

/// Sends one command and prints the nodes concerned.
pub async fn command(args: LabArgs) -> Result<(), LabCommandError> {
    match control::send(&args.data_dir, &args.action.into()).await? {
        Answer::Refused(why) => Err(LabCommandError::Refused(why)),
        Answer::Nodes(nodes) if args.json => {
            println!("{}", serde_json::json!(nodes));
            Ok(())
        }
        Answer::Nodes(nodes) => {
            print!("{}", table(&nodes));
            Ok(())
        }
    }
}

fn table(nodes: &[NodeStatus]) -> String {
    let head = [
        "NODE",
        "POOL",
        "ADDRESS",
        "LINK",
        "HUB",
        "IN POOL",
        "PID",
        "STARTS",
        "WAITING",
        "MEMORY",
        "FROM CLOUD",
        "TUNNEL",
    ];
    let rows = nodes.iter().map(|n| {
        [
            n.name.clone(),
            n.pool.clone(),
            n.address.clone(),
            n.link.clone(),
            n.hub.clone(),
            match n.pool_role.as_str() {
                "" => "-".into(),
                role => role.to_owned(),
            },
            n.hub_pid.map_or_else(|| "-".into(), |pid| pid.to_string()),
            (n.hub_restarts + 1).to_string(),
            n.journal.to_string(),
            format!("{:.1} MB", n.hub_memory as f64 / 1e6),
            format!("{:.1} KB", n.bytes_from_cloud as f64 / 1e3),
            if n.tunnel { "connected" } else { "-" }.into(),
        ]
    });
    crate::columns::render(std::iter::once(head.map(str::to_owned)).chain(rows))
}
