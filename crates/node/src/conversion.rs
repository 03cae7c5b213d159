//! `yurt node convert` and `yurt node revert`: sends the kubelet of a kubeadm-style node through a hub, and back. What Jobs of the
//! manager's node conversion run on the node, with the flags of OpenYurt's `node-servant`.
//!
//! `plan` says what is to be done (pure), `journal` keeps what was before, `carry_out` does and undoes it on a [`machine::Machine`],
//! `host` is the real one. Containers are not restarted: pods of before go on calling the API server directly until they are made anew.

mod carry_out;
mod fault;
mod host;
mod journal;
mod kubelet;
mod machine;
mod plan;

use crate::{Outcome, say};
use carry_out::Done;
use clap::Args;
use fault::Fault;
use host::Host;
use plan::{Form, Wish};
use std::{
    path::{Path, PathBuf},
    time::Duration,
};
use tokio_util::sync::CancellationToken;
use yurt_hub::deadline::parse_go_duration;

#[derive(Debug, Args)]
struct On {
    /// The Node's name; without it what the kubelet is told, or the machine's.
    #[arg(long, env = "NODE_NAME", default_value = "")]
    node_name: String,
    /// The host's root, where it is not this process': a Job has it at /openyurt.
    #[arg(long, value_name = "DIR", default_value = "/")]
    root: PathBuf,
    /// Where the kubelet's kubeconfig for the hub goes, and the journal of the conversion.
    #[arg(
        long,
        env = "OPENYURT_DIR",
        value_name = "DIR",
        default_value = "/var/lib/openyurt"
    )]
    openyurt_dir: String,
}

/// `yurt node convert`.
#[derive(Debug, Args)]
pub(crate) struct ConvertArgs {
    #[command(flatten)]
    on: On,
    /// The pool of the node. The hub follows the Node's label apps.openyurt.io/nodepool, also when that changes.
    #[arg(long, default_value = "")]
    nodepool_name: String,
    /// Where kubeadm's drop-in of the kubelet's unit may be; the first that is there counts.
    #[arg(
        short = 'k',
        long,
        env = "KUBELET_SVC",
        value_name = "FILE",
        value_delimiter = ',',
        default_value = "/usr/lib/systemd/system/kubelet.service.d/10-kubeadm.conf,/etc/systemd/system/kubelet.service.d/10-kubeadm.conf"
    )]
    kubeadm_conf_path: Vec<String>,
    /// How the hub runs.
    #[arg(long = "as", value_enum, default_value_t = Form::Systemd)]
    form: Form,
    /// The hub's image, for --as static-pod.
    #[arg(long, value_name = "IMAGE", default_value = "")]
    hub_image: String,
    /// API servers for the hub, separated by commas; without it what the kubelet's kubeconfig names.
    #[arg(long, value_name = "URL")]
    server_addr: Option<String>,
    /// How long the hub may take to be ready, and the kubelet to talk through it.
    #[arg(long, alias = "yurthub-healthcheck-timeout", default_value = "5m", value_parser = timeout)]
    timeout: Duration,
    /// Only tell what would be done.
    #[arg(long)]
    dry_run: bool,
}

/// `yurt node revert`.
#[derive(Debug, Args)]
pub(crate) struct RevertArgs {
    #[command(flatten)]
    on: On,
}

/// The hub's admin address.
const HUB: &str = "http://127.0.0.1:10267";

fn timeout(text: &str) -> Result<Duration, String> {
    let time = parse_go_duration(text).filter(|time| !time.is_zero());
    time.ok_or_else(|| "a time like 5m or 90s is expected".into())
}

fn tell(text: &str) {
    say(&format!("{text}\n"));
}

impl On {
    /// The host, with this process in it.
    fn enter(&self) -> Result<Host, Fault> {
        let host = Host::at(Path::new("/"), Path::new("systemctl"), HUB)?;
        if self.root != Path::new("/") {
            Host::enter(&self.root)?;
        }
        Ok(host)
    }
}

async fn converted(args: &ConvertArgs) -> Result<Done, Fault> {
    let mut host = args.on.enter()?;
    let drop_ins = &args.kubeadm_conf_path;
    let node = match args.on.node_name.as_str() {
        "" => carry_out::node_name(&host, drop_ins)?,
        name => name.to_owned(),
    };
    let wish = Wish {
        node,
        pool: args.nodepool_name.clone(),
        form: args.form,
        image: args.hub_image.clone(),
        server: args.server_addr.clone(),
        dir: args.on.openyurt_dir.trim_end_matches('/').to_owned(),
    };
    if args.dry_run {
        let steps = carry_out::preview(&mut host, &wish, drop_ins).await?;
        steps.iter().for_each(|step| tell(&step.to_string()));
        return Ok(Done::Nothing);
    }
    let _lock = host.lock()?;
    carry_out::convert(&mut host, wish, drop_ins, args.timeout, &tell).await
}

async fn reverted(args: &RevertArgs) -> Result<Done, Fault> {
    let mut host = args.on.enter()?;
    let wish = Wish {
        node: args.on.node_name.clone(),
        pool: String::new(),
        form: Form::Systemd,
        image: String::new(),
        server: None,
        dir: args.on.openyurt_dir.trim_end_matches('/').to_owned(),
    };
    let _lock = host.lock()?;
    carry_out::revert(&mut host, wish, &tell).await
}

/// What is told at the end.
fn words(done: &Done) -> &'static str {
    match done {
        Done::Converted => {
            "the node works through its hub. Pods that ran before call the API server directly until they are made anew"
        }
        Done::Already => "the node is converted already",
        Done::ByOpenYurt => {
            "the kubelet is sent to a hub already, by OpenYurt; nothing was changed"
        }
        Done::Reverted => "the node is as it was before its conversion",
        Done::Nothing => "nothing was changed",
    }
}

async fn ended(
    doing: impl Future<Output = Result<Done, Fault>>,
    shutdown: &CancellationToken,
) -> Outcome {
    let done = tokio::select! {
        done = doing => done,
        () = shutdown.cancelled() => Err(Fault::Ended),
    };
    match done {
        Ok(done) => {
            tell(words(&done));
            Outcome::Healthy
        }
        Err(fault) => {
            eprintln!("{fault}");
            fault.outcome()
        }
    }
}

/// Exits with 0 when the node works through its hub, 1 when all is as before, 2 when somebody has to look.
pub(crate) async fn convert(args: &ConvertArgs, shutdown: &CancellationToken) -> Outcome {
    Box::pin(ended(converted(args), shutdown)).await
}

/// Exits with 0 when the node is as before its conversion, 1 when nothing was changed, 2 when somebody has to look.
pub(crate) async fn revert(args: &RevertArgs, shutdown: &CancellationToken) -> Outcome {
    Box::pin(ended(reverted(args), shutdown)).await
}

#[cfg(test)]
mod tests;
