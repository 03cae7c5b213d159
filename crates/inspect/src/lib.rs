//! `kubectl yurt`: how pools, apps, nodes and pods are, and why.
//!
//! [`access`] finds the cluster as kubectl does, [`observe`] reads it; everything else is pure: [`status`], [`pools`], [`app`] and
//! [`why`] make a view of what was read, which is printed as text ([`table`]) or as JSON.

mod access;
mod app;
mod node;
mod observe;
mod pools;
mod status;
mod table;
mod why;

pub use access::{AccessError, Connection};
pub use observe::ObserveError;
pub use table::{plain, table};

use clap::{Args, Subcommand, ValueEnum};
use jiff::Timestamp;
use observe::Reader;
use serde::Serialize;
use std::process::ExitCode;
use why::Target;

/// Questions about a cluster. Install as a plugin of kubectl by a link: `ln -s $(command -v yurt) /usr/local/bin/kubectl-yurt`.
#[derive(Clone, Debug, Args)]
pub struct InspectArgs {
    #[command(flatten)]
    connection: Connection,
    /// How to print the answer.
    #[arg(short, long, value_enum, default_value_t, global = true)]
    output: Output,
    #[command(subcommand)]
    question: Question,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Output {
    #[default]
    Text,
    Json,
}

#[derive(Clone, Debug, Subcommand)]
enum Question {
    /// The whole: components, definitions, pools, nodes that are cut off, certificates that wait. Exits with 1 when there is a problem.
    Status {
        /// Where the manager is.
        #[arg(long, default_value = yurt_api::names::objects::MANAGER_NAMESPACE, value_name = "NAMESPACE")]
        manager_namespace: String,
    },
    /// The pools; with a name, its nodes and workloads.
    #[command(visible_aliases = ["pool", "np"])]
    Pools {
        /// A pool.
        name: Option<String>,
    },
    /// An app, pool by pool.
    App {
        /// The name of a YurtAppSet, YurtAppDaemon, YurtStaticSet or DaemonSet; or `kind/name`.
        #[arg(value_name = "[KIND/]NAME")]
        name: app::Name,
    },
    /// Why a pod or node is as it is: link, autonomy, binding, topology, upgrades; what follows, and what to do. Exits with 1 when
    /// there is a problem.
    Why {
        /// `pod/NAME`, `node/NAME`, or the name of a pod.
        #[arg(value_name = "POD|node/NODE")]
        target: Target,
    },
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    /// No way to the cluster.
    #[error(transparent)]
    Access(#[from] AccessError),
    /// The cluster does not tell.
    #[error(transparent)]
    Observe(#[from] ObserveError),
}

/// What a question is answered with.
trait View: Serialize {
    fn text(&self) -> String;

    /// Whether something is wrong that the exit code is to tell.
    fn is_alarming(&self) -> bool {
        false
    }
}

/// Answers on stdout. Fails with 1 when what was asked about has a problem.
pub async fn run(args: InspectArgs) -> Result<ExitCode, InspectError> {
    let cluster = args.connection.open()?;
    let reader = Reader::new(cluster.kube);
    let namespace = cluster.namespace.as_str();
    let now = Timestamp::now();
    let output = args.output;
    Ok(match args.question {
        Question::Status { manager_namespace } => {
            print(&reader.status(&manager_namespace).await?.judge(now), output)
        }
        Question::Pools { name: None } => print(&reader.pools().await?.judge(), output),
        Question::Pools { name: Some(name) } => {
            print(&reader.pool(&name).await?.judge(now), output)
        }
        Question::App { name } => print(&reader.app(namespace, &name).await?.judge(), output),
        Question::Why { target } => match target {
            Target::Node(name) => print(&reader.why_node(&name).await?.judge(now), output),
            Target::Pod(name) => print(&reader.why_pod(namespace, &name).await?.judge(now), output),
        },
    })
}

fn print(view: &impl View, output: Output) -> ExitCode {
    match output {
        Output::Text => print!("{}", view.text()),
        // Views hold nothing that JSON cannot.
        Output::Json => println!("{}", serde_json::to_string_pretty(view).unwrap_or_default()),
    }
    if view.is_alarming() {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}
