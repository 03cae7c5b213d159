//! Commands for one node, asked of its hub: would it survive a cut and a reboot now (`doctor`), and does it (`drill`); upgrades of
//! its pods, as its owner (`upgrade`); what do its components see (`filter`), and who is its pool (`pool`). And what Jobs of the manager
//! do to a node: `conversion`, `static_pod`.
//!
//! [`run`] and [`ask`] ask and wait, `hub` is the HTTP side, `render` the words (pure).

mod conversion;
mod filter;
mod hub;
mod pool;
mod render;
mod static_pod;
mod upgrade;

use clap::{Args, Subcommand, ValueEnum};
pub use filter::FilterArgs;
use hub::Hub;
pub use hub::HubError;
pub use pool::PoolArgs;
use render::{Drill, Report};
use std::{
    io::{BufRead, IsTerminal, Write},
    time::Duration,
};
use tokio_util::sync::CancellationToken;

/// Commands for the node this runs on.
#[derive(Debug, Args)]
pub struct NodeArgs {
    #[command(subcommand)]
    command: NodeCommand,
}

#[derive(Debug, Subcommand)]
enum NodeCommand {
    /// Would this node survive a cut and a reboot now? Exits with 0 when it would, 1 when not, 2 when the hub cannot be asked.
    Doctor(DoctorArgs),
    /// Cut the node off for a while, as far as everything on it can tell, and see what is missed. Exits as doctor does.
    Drill(DrillArgs),
    /// Upgrade a pod, or see to upgrades that wait, as the owner of the node. Exits with 0 when what was asked for is done or kept, 1
    /// when it is refused or failed, 2 when the hub cannot be asked.
    Upgrade(upgrade::UpgradeArgs),
    /// Replace the manifest of a static pod and go back when its new pod does not become ready: what workers of a YurtStaticSet run.
    /// Exits with 0 when it is upgraded, 1 when all is as before, 2 when somebody has to look.
    StaticPodUpgrade(static_pod::StaticPodUpgradeArgs),
    /// Install a hub on this node of kubeadm and send the kubelet through it, whole or not at all. Exits with 0 when it is so, 1 when all
    /// is as before, 2 when somebody has to look.
    Convert(conversion::ConvertArgs),
    /// Undo a conversion, also one that was ended in the middle. Exits as convert does.
    Revert(conversion::RevertArgs),
}

/// What can be asked of the hub, beside running it.
#[derive(Debug, Subcommand)]
pub enum HubCommand {
    /// What components of the node see otherwise than the cloud has it, and users' rules for that.
    Filter(FilterArgs),
    /// The node's pool: who leads it, who of it lives.
    Pool(PoolArgs),
}

#[derive(Debug, Args)]
struct Where {
    /// The admin address of the node's hub.
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:10267")]
    hub: String,
    /// How to tell.
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

/// How to tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people.
    Text,
    /// As the hub tells it.
    Json,
}

#[derive(Debug, Args)]
struct DoctorArgs {
    #[command(flatten)]
    at: Where,
}

#[derive(Debug, Args)]
struct DrillArgs {
    #[command(flatten)]
    at: Where,
    /// How long, 5s to 10m.
    #[arg(long = "for", value_name = "TIME", default_value = "30s", value_parser = seconds)]
    seconds: u64,
    /// Do not ask whether this is meant.
    #[arg(long)]
    yes: bool,
}

/// `90`, `90s` or `2m`, in seconds.
fn seconds(text: &str) -> Result<u64, String> {
    let (number, unit) = match text.strip_suffix('m') {
        Some(number) => (number, 60),
        None => (text.strip_suffix('s').unwrap_or(text), 1),
    };
    let seconds = number
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(unit));
    match seconds {
        Some(seconds) if (5..=600).contains(&seconds) => Ok(seconds),
        Some(_) => Err("a drill takes 5s to 10m".into()),
        None => Err("a time like 30s or 2m is expected".into()),
    }
}

/// What came of a command; its number is the process' exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The node would go on.
    Healthy,
    /// It would not.
    Unhealthy,
    /// Nobody said.
    Unknown,
}

impl Outcome {
    /// The exit code.
    pub fn code(self) -> u8 {
        match self {
            Self::Healthy => 0,
            Self::Unhealthy => 1,
            Self::Unknown => 2,
        }
    }

    fn of(healthy: bool) -> Self {
        if healthy {
            Self::Healthy
        } else {
            Self::Unhealthy
        }
    }
}

/// Between looks at a drill.
const LOOK: Duration = Duration::from_secs(1);
/// How much longer than planned a drill may take to end.
const OVERTIME: Duration = Duration::from_secs(60);

/// Runs a command. What goes wrong with asking is told on stderr.
pub async fn run(args: NodeArgs, shutdown: CancellationToken) -> Outcome {
    let ended = match args.command {
        NodeCommand::Doctor(args) => doctor(&args).await,
        NodeCommand::Drill(args) => drill(&args, &shutdown).await,
        NodeCommand::Upgrade(args) => upgrade::run(&args).await,
        NodeCommand::StaticPodUpgrade(args) => Ok(static_pod::run(&args).await),
        NodeCommand::Convert(args) => Ok(conversion::convert(&args, &shutdown).await),
        NodeCommand::Revert(args) => Ok(conversion::revert(&args, &shutdown).await),
    };
    ended.unwrap_or_else(|error| {
        eprintln!("yurt node: {error}");
        Outcome::Unknown
    })
}

/// Runs a command of `yurt hub`.
pub async fn ask(command: HubCommand) -> Outcome {
    match command {
        HubCommand::Filter(args) => filter::run(args).await,
        HubCommand::Pool(args) => pool::run(args).await,
    }
}

fn say(text: &str) {
    // A closed pipe is no fault of the node's.
    let _ = std::io::stdout().lock().write_all(text.as_bytes());
}

async fn doctor(args: &DoctorArgs) -> Result<Outcome, HubError> {
    let hub = Hub::at(&args.at.hub)?;
    let (report, body) = hub.get::<Report>("/v1/doctor").await?;
    match args.at.output {
        Output::Json => say(&body),
        Output::Text => say(&render::report(&report)),
    }
    Ok(Outcome::of(report.is_healthy()))
}

async fn drill(args: &DrillArgs, shutdown: &CancellationToken) -> Result<Outcome, HubError> {
    let hub = Hub::at(&args.at.hub)?;
    if !args.yes && !agreed(args.seconds)? {
        eprintln!("nothing was done");
        return Ok(Outcome::Unknown);
    }
    hub.post("/v1/drill", format!("{{\"seconds\":{}}}", args.seconds))
        .await?;
    let text = args.at.output == Output::Text;
    let lively = text && std::io::stderr().is_terminal();
    let longest = Duration::from_secs(args.seconds) + OVERTIME;
    let waiting = async {
        loop {
            let (drill, body) = hub.get::<Drill>("/v1/drill").await?;
            if drill.is_over() {
                return Ok::<_, HubError>((drill, body));
            }
            if lively {
                eprint!("\r{}", render::progress(&drill));
            }
            tokio::time::sleep(LOOK).await;
        }
    };
    let told = tokio::select! {
        told = tokio::time::timeout(longest, waiting) => told.map_err(|_| HubError::Endless)?,
        () = shutdown.cancelled() => {
            hub.delete("/v1/drill").await?;
            eprintln!("\nthe drill is ended: the link is back");
            return Ok(Outcome::Unknown);
        }
    };
    if lively {
        eprintln!();
    }
    let (drill, body) = told?;
    match args.at.output {
        Output::Json => say(&body),
        Output::Text => say(&render::drill(&drill)),
    }
    Ok(match drill.survived {
        Some(survived) if drill.complete => Outcome::of(survived),
        _ => Outcome::Unknown,
    })
}

/// Whether somebody at a terminal agrees.
fn agreed(seconds: u64) -> Result<bool, HubError> {
    let stdin = std::io::stdin();
    if !stdin.is_terminal() {
        return Err(HubError::NotAgreed);
    }
    eprint!(
        "For {seconds} s nothing on this node will reach the cloud through its hub; pods go on, and the cluster notices nothing. \
         Begin? [y/N] "
    );
    let mut answer = String::new();
    // No answer is a no.
    let _ = stdin.lock().read_line(&mut answer);
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        assert_eq!(seconds("30s"), Ok(30));
        assert_eq!(seconds("30"), Ok(30));
        assert_eq!(seconds("10m"), Ok(600));
        for bad in [
            "",
            "s",
            "4s",
            "601",
            "11m",
            "1h",
            "-5s",
            "99999999999999999999m",
        ] {
            assert!(seconds(bad).is_err(), "{bad}");
        }
    }
}
