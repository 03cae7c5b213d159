//! Keeps the rules of this host what they are to be.

use super::{
    iptables,
    kernel::{Backend, Rules, Ruleset, SERVER},
    metrics::Metrics,
    nftables,
    plan::{Family, Forget, Plan, Targets},
    settings::Settings,
    tool::{ToolError, Tools},
};
use crate::directory::Directory;
use std::{sync::Arc, time::Duration};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Changes that come together are written together.
const TOGETHER: Duration = Duration::from_millis(300);
/// After a failure.
const RETRY: Duration = Duration::from_secs(5);
/// How often it is asked whether the nodes are known yet.
const UNKNOWN: Duration = Duration::from_millis(100);
/// Runs of `conntrack` for one change; beyond it whole ports are forgotten.
const MOST_FORGETS: usize = 128;

/// What the rules are made of.
#[derive(Debug)]
pub struct Config {
    /// Where the interceptor is.
    pub targets: Targets,
    /// What the config map says.
    pub settings: watch::Receiver<Arc<Settings>>,
    /// How connections are translated.
    pub backend: Backend,
    /// Time between looks at the rules.
    pub period: Duration,
    /// How the host's programs are run.
    pub tools: Tools,
    /// What is counted.
    pub metrics: Metrics,
}

/// Why connections cannot be translated here.
#[derive(Debug, thiserror::Error)]
pub enum SteeringError {
    /// Neither way works.
    #[error(
        "connections of this host cannot be brought to the tunnel: {0}. NET_ADMIN is needed, and nft or iptables; or switch it off: --enable-iptables=false"
    )]
    NoBackend(String),
}

/// The runs of `conntrack` that make the kernel forget.
fn forgetting(forget: &Forget, family: Family) -> Vec<Vec<String>> {
    let family = match family {
        Family::V4 => "ipv4",
        Family::V6 => "ipv6",
    };
    let run = |address: Option<String>, port: &u16| {
        let mut run = vec!["-D".to_owned(), "-f".into(), family.into()];
        run.extend(address.into_iter().flat_map(|a| ["--orig-dst".into(), a]));
        run.extend([
            "-p".into(),
            "tcp".into(),
            "--dport".into(),
            port.to_string(),
        ]);
        run
    };
    let mut runs: Vec<_> = forget.ports.iter().map(|port| run(None, port)).collect();
    if forget.addresses.is_empty() {
        return runs;
    }
    if forget.addresses.len().saturating_mul(forget.kept.len()) > MOST_FORGETS {
        runs.extend(forget.kept.iter().map(|port| run(None, port)));
        return runs;
    }
    for address in &forget.addresses {
        runs.extend(
            forget
                .kept
                .iter()
                .map(|port| run(Some(address.to_string()), port)),
        );
    }
    runs
}

struct Keeper {
    config: Config,
    rules: Rules,
    /// What was written last.
    plan: Option<Plan>,
    /// Whether it was said that there is no `conntrack`.
    told: bool,
}

impl Keeper {
    async fn sync(&mut self, directory: &dyn Directory) -> Result<(), ToolError> {
        let settings = self.config.settings.borrow_and_update().clone();
        let nodes = directory.nodes();
        let direct = nodes.iter().filter(|node| !node.runs_agent()).count();
        let direct = i64::try_from(direct).unwrap_or(i64::MAX);
        self.config.metrics.cloud_nodes.set(direct);
        let plan = Plan::new(&settings, &nodes, &self.config.targets);
        let wanted = Ruleset {
            nftables: nftables::contents(&plan),
            iptables: iptables::rules(&plan),
        };
        if self.rules.apply(&wanted).await? {
            self.config.metrics.writes.inc();
            tracing::info!(
                ports = plan.ports.len(),
                direct = plan.direct.len(),
                "rules written"
            );
        }
        if let Some(old) = &self.plan {
            let forget = plan.forget(old);
            self.forget(&forget, plan.family).await;
        }
        self.plan = Some(plan);
        Ok(())
    }

    /// Has the kernel forget connections that were translated otherwise. Without it they go on as they are until they end.
    async fn forget(&mut self, forget: &Forget, family: Family) {
        for run in forgetting(forget, family) {
            let arguments: Vec<&str> = run.iter().map(String::as_str).collect();
            match self.config.tools.run("conntrack", &arguments, "").await {
                Err(ToolError::Missing(_)) => {
                    if !std::mem::replace(&mut self.told, true) {
                        tracing::warn!(
                            "conntrack is not installed: connections that were open before a change of nodes or ports go on as they were"
                        );
                    }
                    return;
                }
                // It fails when there is nothing to forget.
                Ok(_) | Err(ToolError::Failed { .. }) => {}
                Err(error) => tracing::warn!(%error, "tracked connections"),
            }
        }
    }
}

/// Keeps the rules until `shutdown`, then takes them away. Rules of others are not touched.
pub async fn run(
    config: Config,
    directory: Arc<dyn Directory>,
    shutdown: CancellationToken,
) -> Result<(), SteeringError> {
    let family = Plan::new(&Settings::default(), &[], &config.targets).family;
    let rules = Rules::find(config.backend, &config.tools, family, SERVER)
        .await
        .map_err(SteeringError::NoBackend)?;
    let mut keeper = Keeper {
        config,
        rules,
        plan: None,
        told: false,
    };
    let mut nodes = directory.changes();
    // Before the nodes are known, those of the cloud would be brought to the tunnel as well.
    while !directory.is_complete() && !shutdown.is_cancelled() {
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = tokio::time::sleep(UNKNOWN) => {}
        }
    }
    let mut trouble: Option<String> = None;
    while !shutdown.is_cancelled() {
        nodes.borrow_and_update();
        let pause = match keeper.sync(&*directory).await {
            Ok(()) => {
                trouble = None;
                keeper.config.period
            }
            Err(error) => {
                keeper.config.metrics.failures.inc();
                let error = error.to_string();
                // Said once.
                if trouble.as_ref() != Some(&error) {
                    tracing::error!(%error, "callers on this host may not come to the tunnel");
                    trouble = Some(error);
                }
                RETRY.min(keeper.config.period)
            }
        };
        let settings = &mut keeper.config.settings;
        let changed = async {
            tokio::select! {
                Ok(()) = nodes.changed() => {}
                Ok(()) = settings.changed() => {}
                else => std::future::pending().await,
            }
            tokio::time::sleep(TOGETHER).await;
        };
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = changed => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
    if let Err(error) = keeper.rules.clean().await {
        tracing::error!(%error, "rules are left behind: callers on this host come to a tunnel that is not there");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_changes_are_forgotten_one_by_one_many_by_port() {
        let address = |n: usize| std::net::IpAddr::from([10, 0, (n >> 8) as u8, n as u8]);
        let forget = |count| Forget {
            ports: vec![9443],
            kept: vec![10250, 10255],
            addresses: (0..count).map(address).collect(),
        };
        let shown = |runs: Vec<Vec<String>>| -> Vec<String> {
            runs.iter().map(|run| run.join(" ")).collect()
        };
        assert_eq!(
            shown(forgetting(&forget(1), Family::V4)),
            [
                "-D -f ipv4 -p tcp --dport 9443",
                "-D -f ipv4 --orig-dst 10.0.0.0 -p tcp --dport 10250",
                "-D -f ipv4 --orig-dst 10.0.0.0 -p tcp --dport 10255",
            ]
        );
        assert_eq!(forgetting(&forget(1000), Family::V6).len(), 3);
        assert_eq!(forgetting(&forget(0), Family::V4).len(), 1);
    }
}
