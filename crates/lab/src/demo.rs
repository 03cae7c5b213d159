//! `yurt demo`: the product's story in one command, each step checked, the figures measured on the way.

mod report;

use crate::{
    cluster::{Cluster, Config, LabError},
    control::{Answer, Command},
    controllers::{NodeMonitor, Selection},
    kube::{Kube, KubeError, Lines},
    plan::Pools,
};
use report::Report;
use serde_json::{Value, json};
use std::{
    path::PathBuf,
    time::{Duration, Instant},
};
use tokio_util::sync::CancellationToken;

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

const PODS: &str = "/api/v1/namespaces/shop/pods";
/// The node whose reader stays connected, and the one whose hub is killed.
const WATCHED: &str = "hangzhou-1";
const KILLED: &str = "hangzhou-2";
/// The node whose pod gets a change from the cloud meanwhile.
const ELSEWHERE: &str = "beijing-1";
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
    let mut report = Report::new(9);
    report.title("Yurt demo: an edge node that outlives its cloud link");
    let began = Instant::now();
    report.step("a cluster: API server, pools hangzhou (2 nodes) and beijing (1), a hub and a kubelet on each");
    let pools: Pools = "hangzhou=2,beijing=1"
        .parse()
        .map_err(|e: crate::plan::PlanError| DemoError::Refused(e.to_string()))?;
    let config = Config {
        data_dir: data_dir.clone(),
        pools,
        port: 0,
        program,
        controllers: Selection::default(),
        node_monitor: NodeMonitor::default(),
        light_nodes: Vec::new(),
        heartbeat_seconds: crate::up::HEARTBEAT_SECONDS,
    };
    let cluster = Cluster::start(&config, &mut |line| report.say(line)).await?;
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
    let cloud = cluster.kube();

    report.step("an app: a DaemonSet puts one pod on every node");
    deploy(cluster).await?;
    let online = within("every pod Running", async || {
        let list = cloud.get(PODS).await.ok()?;
        let running = items(&list)
            .iter()
            .filter(|p| p["status"]["phase"] == "Running")
            .count();
        (running == cluster.nodes().len()).then_some(list)
    })
    .await?;
    // The pod whose status changes while its node is cut off, and the one that changes in the cloud.
    let local_pod = pod_on(&online, WATCHED)?;
    let cloud_pod = pod_on(&online, ELSEWHERE)?;
    report.say(&format!(
        "{} pods Running: made by the controller, bound by the scheduler, started by their nodes' kubelets",
        items(&online).len()
    ));

    report.step(&format!("a reader at {WATCHED}'s hub: list, then watch"));
    let reader = through(cluster, WATCHED)?;
    let listed = reader.get(PODS).await?;
    through(cluster, KILLED)?.get(PODS).await?;
    report.check(
        "the hub lists what the API server lists",
        names(&listed) == names(&online),
    );
    let revision = listed["metadata"]["resourceVersion"]
        .as_str()
        .unwrap_or_default();
    let mut watch = reader
        .watch(&format!("{PODS}?watch=true&resourceVersion={revision}"))
        .await?;
    let one = format!("{PODS}/{local_pod}");
    report.measure(
        "GET through the hub, online (median of 50)",
        median(&reader, &one).await?,
        None,
    );

    report.step("the cloud link of pool hangzhou is cut: packets vanish, nothing is reset");
    let cut = Instant::now();
    command(
        cluster,
        Command::Cut {
            target: "hangzhou".into(),
            reset: false,
        },
    )
    .await?;
    let mut slowest = Duration::ZERO;
    within("the hub going local", async || {
        let asked = Instant::now();
        let answered = reader.get(&one).await.is_ok();
        slowest = slowest.max(asked.elapsed());
        (answered && hub_state(cluster, WATCHED).await? == "offline").then_some(())
    })
    .await?;
    report.measure(
        "from the cut to answers from the node itself",
        cut.elapsed(),
        Some(BUDGET),
    );
    report.measure("slowest read meanwhile", slowest, Some(BUDGET));
    let cached = reader.get(PODS).await?;
    report.check(
        "the node still lists every pod, of both pools",
        names(&cached) == names(&online),
    );
    report.measure(
        "GET from the cache, offline (median of 50)",
        median(&reader, &one).await?,
        None,
    );
    let refused = reader
        .create(
            "/api/v1/namespaces/shop/configmaps",
            &json!({"metadata": {"name": "later"}}),
        )
        .await;
    match refused {
        Err(KubeError::Refused { message, .. }) => {
            report.say(&format!("a create is refused: {message}"))
        }
        other => report.check(
            &format!("a create is refused with its reason, not {other:?}"),
            false,
        ),
    }

    report.step("life goes on at the node: a pod's status changes");
    let before = reader.get(&one).await?["status"].clone();
    command(
        cluster,
        Command::Touch {
            pod: format!("shop/{local_pod}"),
        },
    )
    .await?;
    let seen = next(&mut watch, "the new status in the open watch", |event| {
        event["object"]["metadata"]["name"] == local_pod && event["object"]["status"] != before
    })
    .await?;
    report.check(
        "the watch opened before the cut shows it",
        seen["type"] == "MODIFIED",
    );
    let local = reader.get(&one).await?["status"].clone();
    report.check(
        "the cloud knows nothing of it yet",
        cloud.get(&one).await?["status"] == before,
    );

    report.step("and in the cloud: a pod of the other pool gets a label");
    cloud
        .merge(
            &format!("{PODS}/{cloud_pod}"),
            &json!({"metadata": {"labels": {"tier": "gold"}}}),
        )
        .await?;

    report.step(&format!(
        "the hub of {KILLED} is killed with -9 while its link is cut"
    ));
    let killed = Instant::now();
    command(
        cluster,
        Command::Kill {
            target: KILLED.into(),
        },
    )
    .await?;
    let after = within("the restarted hub's first answer", async || {
        through(cluster, KILLED).ok()?.get(PODS).await.ok()
    })
    .await?;
    report.measure(
        "from the kill to the first answer of its successor",
        killed.elapsed(),
        None,
    );
    report.check(
        "it answers as before, from its disk",
        names(&after) == names(&online),
    );

    report.step("the link is healed");
    let healed = Instant::now();
    command(
        cluster,
        Command::Heal {
            target: "hangzhou".into(),
        },
    )
    .await?;
    within("the hub coming back", async || {
        (hub_state(cluster, WATCHED).await? == "online").then_some(())
    })
    .await?;
    report.measure(
        "from the heal to the hub online",
        healed.elapsed(),
        Some(BUDGET),
    );
    within("the pod's status in the cloud", async || {
        (cloud.get(&one).await.ok()?["status"]["conditions"] == local["conditions"]).then_some(())
    })
    .await?;
    report.measure(
        "from the heal to the node's status in the cloud",
        healed.elapsed(),
        None,
    );

    report.step("the reader at the hub, still on the same watch");
    let mut relisted = 0;
    next(
        &mut watch,
        "the cloud's change in the open watch",
        |event| {
            relisted += usize::from(event["type"] == "ADDED");
            event["object"]["metadata"]["labels"]["tier"] == "gold"
        },
    )
    .await?;
    report.measure(
        "from the heal to the cloud's change in the watch",
        healed.elapsed(),
        None,
    );
    report.check("it came as a change, without a relist", relisted == 0);
    let memory = hub_memory(cluster).await;
    report.figure(
        "largest hub, resident",
        format!("{:.1} MB", memory as f64 / 1e6),
    );
    Ok(())
}

async fn deploy(cluster: &Cluster) -> Result<(), DemoError> {
    let cloud = cluster.kube();
    cloud
        .ensure("/api/v1/namespaces", &json!({"metadata": {"name": "shop"}}))
        .await?;
    let service = json!({
        "metadata": {"name": "web"},
        "spec": {"selector": {"app": "web"}, "ports": [{"port": 80}]},
    });
    cloud
        .ensure("/api/v1/namespaces/shop/services", &service)
        .await?;
    let labels = json!({"app": "web"});
    let app = json!({
        "metadata": {"name": "web", "labels": labels},
        "spec": {
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels},
                "spec": {"containers": [{"name": "main", "image": "registry.lab/app:1"}]},
            },
        },
    });
    cloud
        .ensure("/apis/apps/v1/namespaces/shop/daemonsets", &app)
        .await?;
    Ok(())
}

/// The name of the app's pod on a node.
fn pod_on(pods: &Value, node: &str) -> Result<String, DemoError> {
    let pod = items(pods)
        .iter()
        .find(|pod| pod["spec"]["nodeName"] == node);
    let name = pod.and_then(|pod| pod["metadata"]["name"].as_str());
    let missing = || DemoError::Refused(format!("no pod on {node}"));
    name.map(str::to_owned).ok_or_else(missing)
}

fn through(cluster: &Cluster, node: &str) -> Result<Kube, DemoError> {
    cluster
        .through(node, Duration::from_secs(5))
        .ok_or_else(|| DemoError::Refused(format!("no node {node}")))
}

async fn command(cluster: &Cluster, command: Command) -> Result<(), DemoError> {
    match cluster.command(command).await {
        Answer::Nodes(_) => Ok(()),
        Answer::Refused(why) => Err(DemoError::Refused(why)),
    }
}

async fn hub_state(cluster: &Cluster, node: &str) -> Option<String> {
    let node = cluster.nodes().iter().find(|n| n.plan.name == node)?;
    Some(node.status().await.hub)
}

async fn hub_memory(cluster: &Cluster) -> u64 {
    let mut largest = 0;
    for node in cluster.nodes() {
        largest = largest.max(node.status().await.hub_memory);
    }
    largest
}

/// Asks again and again until there is an answer, at most [`PATIENCE`].
async fn within<T>(
    what: &'static str,
    mut ask: impl AsyncFnMut() -> Option<T>,
) -> Result<T, DemoError> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = ask().await {
            return Ok(answer);
        }
        if Instant::now() >= deadline {
            return Err(DemoError::InVain {
                what,
                patience: PATIENCE,
            });
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Reads a watch until an event fits.
async fn next(
    watch: &mut Lines,
    what: &'static str,
    mut fits: impl FnMut(&Value) -> bool,
) -> Result<Value, DemoError> {
    let read = async {
        while let Some(event) = watch.next().await {
            if fits(&event) {
                return Some(event);
            }
        }
        None
    };
    match tokio::time::timeout(PATIENCE, read).await {
        Ok(Some(event)) => Ok(event),
        Ok(None) => Err(DemoError::Refused(format!("the watch ended before {what}"))),
        Err(_) => Err(DemoError::InVain {
            what,
            patience: PATIENCE,
        }),
    }
}

async fn median(kube: &Kube, path: &str) -> Result<Duration, KubeError> {
    let mut times = Vec::with_capacity(50);
    for _ in 0..50 {
        let asked = Instant::now();
        kube.get(path).await?;
        times.push(asked.elapsed());
    }
    times.sort();
    Ok(times[times.len() / 2])
}

fn items(list: &Value) -> &[Value] {
    list["items"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default()
}

fn names(list: &Value) -> Vec<&str> {
    items(list)
        .iter()
        .filter_map(|item| item["metadata"]["name"].as_str())
        .collect()
}
