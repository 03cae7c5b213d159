//! The packet filter of the node, by the tools that every distribution has.

use super::rules::{Rules, iptables_gone, nft_gone};
use std::{io, net::IpAddr, process::Stdio, time::Duration};
use tokio::{io::AsyncWriteExt, process::Command};

/// For one run of a tool.
const PATIENCE: Duration = Duration::from_secs(10);
/// What a tool says is kept up to here.
const SAID: usize = 300;

/// Why the packet filter is not as it should be.
#[derive(Debug, thiserror::Error)]
pub enum FirewallError {
    /// There is no tool, or the process may not use it.
    #[error("neither nft nor iptables-restore can be used here: {0}")]
    NoTool(String),
    /// A tool cannot be run.
    #[error("{tool}: {source}")]
    Run {
        /// The tool.
        tool: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// A tool does not end.
    #[error("{0} does not end")]
    Slow(&'static str),
    /// A tool refused; nothing was changed.
    #[error("{tool} refused: {said}")]
    Refused {
        /// The tool.
        tool: &'static str,
        /// Its words.
        said: String,
    },
}

/// Where rules are put.
pub trait Firewall: Send {
    /// Puts these rules in place of those of before, at once or not at all.
    fn apply(&mut self, rules: &Rules) -> impl Future<Output = Result<(), FirewallError>> + Send;
    /// Takes away all rules for a service of this family.
    fn clear(&mut self, service: IpAddr) -> impl Future<Output = Result<(), FirewallError>> + Send;
}

/// The tool that rules are put in force by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tool {
    /// `nft`, with a table of the hub's own.
    Nft,
    /// `iptables-restore` and `ip6tables-restore`, with a chain of the hub's own.
    Iptables,
}

impl Tool {
    /// The first that works.
    pub async fn find() -> Result<Self, FirewallError> {
        let nft = run("nft", &["list", "tables"], "").await;
        let Err(of_nft) = nft else {
            return Ok(Self::Nft);
        };
        match run("iptables-save", &["-t", "nat"], "").await {
            Ok(_) => {
                tracing::info!(error = %of_nft, "nft cannot be used: iptables it is");
                Ok(Self::Iptables)
            }
            Err(error) => Err(FirewallError::NoTool(format!("{of_nft}; {error}"))),
        }
    }
}

impl Firewall for Tool {
    async fn apply(&mut self, rules: &Rules) -> Result<(), FirewallError> {
        match self {
            Self::Nft => run("nft", &["-f", "-"], &rules.nft()).await.map(drop),
            Self::Iptables => {
                let (save, restore) = tools(rules.service());
                let present = run(save, &["-t", "nat"], "").await?;
                let text = rules.iptables(&present);
                run(restore, &["--noflush"], &text).await.map(drop)
            }
        }
    }

    async fn clear(&mut self, service: IpAddr) -> Result<(), FirewallError> {
        match self {
            Self::Nft => run("nft", &["-f", "-"], &nft_gone(service)).await.map(drop),
            Self::Iptables => {
                let (save, restore) = tools(service);
                let present = run(save, &["-t", "nat"], "").await?;
                match iptables_gone(&present) {
                    Some(text) => run(restore, &["--noflush"], &text).await.map(drop),
                    None => Ok(()),
                }
            }
        }
    }
}

fn tools(service: IpAddr) -> (&'static str, &'static str) {
    if service.is_ipv4() {
        ("iptables-save", "iptables-restore")
    } else {
        ("ip6tables-save", "ip6tables-restore")
    }
}

/// Runs a tool to its end and gives what it printed.
async fn run(tool: &'static str, arguments: &[&str], input: &str) -> Result<String, FirewallError> {
    let failed = |source| FirewallError::Run { tool, source };
    let mut child = Command::new(tool)
        .args(arguments)
        // It is none of the service manager's business.
        .env_remove("NOTIFY_SOCKET")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(failed)?;
    let stdin = child.stdin.take();
    let work = async {
        if let Some(mut stdin) = stdin {
            // A tool that refuses early need not read on; its exit says so.
            let _ = stdin.write_all(input.as_bytes()).await;
        }
        child.wait_with_output().await
    };
    let output = match tokio::time::timeout(PATIENCE, work).await {
        Ok(output) => output.map_err(failed)?,
        Err(_) => return Err(FirewallError::Slow(tool)),
    };
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said = said.split_whitespace().collect::<Vec<_>>().join(" ");
    Err(FirewallError::Refused {
        tool,
        said: said.chars().take(SAID).collect(),
    })
}
