//! The checked configuration of a manager, made of its flags.

use super::args::ManagerArgs;
use crate::{
    registry,
    settings::{NodeLifeCycle, Settings},
    webhook::{self, WebhookError},
};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
pub use yurt_controller::access::Server;
use yurt_controller::{
    election::Timing,
    kube::Kube,
    selection::{Names, Selection},
};

/// Names without a controller: those of the network across pools (Raven) and of PlatformAdmin come with them; what overriders did is
/// done by the controllers of sets. They are known, so that existing lists are understood.
pub const LATER: &[Names] = &[
    later("gateway-dns-controller", "gatewaydns"),
    later(
        "gateway-internal-service-controller",
        "gatewayinternalservice",
    ),
    later("gateway-pickup-controller", "gatewaypickup"),
    later("gateway-public-service-controller", "gatewaypublicservice"),
    later("platform-admin-controller", "platformadmin"),
    later("yurt-app-overrider-controller", "yurtappoverrider"),
];

const fn later(name: &'static str, alias: &'static str) -> Names {
    Names { name, alias }
}

/// Features that are known; they belong to what [`LATER`] names.
const FEATURES: &[&str] = &["RavenL7Proxy", "AllAlpha", "AllBeta"];

/// Why a configuration is refused.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("{setting}: {why}")]
pub struct ConfigError {
    /// The flag or environment variable at fault.
    pub setting: String,
    /// What is wrong with it.
    pub why: String,
}

fn refuse(flag: &str, why: impl Into<String>) -> ConfigError {
    ConfigError {
        setting: format!("--{flag}"),
        why: why.into(),
    }
}

/// Which lease is to be held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Election {
    /// Its name, in the working namespace.
    pub lease: String,
    /// Its times.
    pub timing: Timing,
}

/// What a manager is told.
#[derive(Clone, Debug)]
pub struct Config {
    /// The API server.
    pub server: Server,
    /// What its controllers are told.
    pub settings: Settings,
    /// Which controllers run.
    pub controllers: Selection,
    /// `None`: works without a lease.
    pub election: Option<Election>,
    /// A service account for each controller.
    pub independent_accounts: bool,
    /// Requests per second, and at once after a silence; `None`: as many as there are.
    pub limit: Option<(f64, u32)>,
    /// Where metrics are served.
    pub metrics: Option<SocketAddr>,
    /// Where health probes are served.
    pub health: Option<SocketAddr>,
    /// What the webhooks are told; `None`: there are none.
    pub webhooks: Option<webhook::Options>,
}

impl Config {
    /// All controllers in this process beside the server: no lease, no listeners, one identity.
    pub fn in_process(kube: Kube) -> Self {
        Self {
            server: Server::Given(kube),
            settings: Settings::default(),
            controllers: Selection::default(),
            election: None,
            independent_accounts: false,
            limit: None,
            metrics: None,
            health: None,
            webhooks: None,
        }
    }
}

/// `host:port`, `:port` for every address, `0` or nothing for none, as controller-runtime reads it.
fn address(flag: &str, text: &str) -> Result<Option<SocketAddr>, ConfigError> {
    if matches!(text, "" | "0") {
        return Ok(None);
    }
    let any = text.strip_prefix(':').map(|port| {
        port.parse()
            .map(|port| SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), port))
    });
    let parsed = match any {
        Some(parsed) => parsed.ok(),
        None => text.parse().ok(),
    };
    parsed
        .map(Some)
        .ok_or_else(|| refuse(flag, format!("{text:?} is not ADDRESS:PORT, :PORT or 0")))
}

fn selection(given: &[String]) -> Result<Selection, ConfigError> {
    let runs = |name: &str| registry::names().any(|names| names.name == name);
    let idle = LATER.iter().copied().filter(|names| !runs(names.name));
    let known = registry::names().chain(idle.clone());
    // A value of the chart that is left empty says nothing.
    let given = match given.join(",") {
        text if text.trim().is_empty() => "*".to_owned(),
        text => text,
    };
    let selection = Selection::parse(&given, known)
        .map_err(|unknown| refuse("controllers", unknown.to_string()))?;
    for names in idle {
        if selection.names(names.name) {
            tracing::warn!(controller = names.name, "there is no such controller yet");
        }
    }
    Ok(selection)
}

fn feature_gates(given: &[String]) -> Result<(), ConfigError> {
    for gate in given.iter().filter(|gate| !gate.is_empty()) {
        let (name, value) = gate.split_once('=').unwrap_or((gate, ""));
        if !FEATURES.contains(&name) {
            let known = FEATURES.join(", ");
            return Err(refuse(
                "feature-gates",
                format!("no feature {name:?}; there are {known}"),
            ));
        }
        match value {
            "true" => tracing::warn!(
                feature = name,
                "comes with a later release and has no effect"
            ),
            "false" => {}
            _ => {
                return Err(refuse(
                    "feature-gates",
                    format!("{gate:?} is not NAME=true or NAME=false"),
                ));
            }
        }
    }
    Ok(())
}

fn share(flag: &str, value: f64) -> Result<f64, ConfigError> {
    if (0.0..=1.0).contains(&value) {
        Ok(value)
    } else {
        Err(refuse(flag, format!("{value} is not between 0 and 1")))
    }
}

fn rate(flag: &str, value: f64) -> Result<f64, ConfigError> {
    if value.is_finite() && value >= 0.0 {
        Ok(value)
    } else {
        Err(refuse(flag, format!("{value} is not a rate")))
    }
}

/// A name of a namespace or lease.
fn dns_name(flag: &str, text: &str) -> Result<String, ConfigError> {
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-.".contains(c);
    let edges = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let valid = (1..=253).contains(&text.len())
        && text.chars().all(fits)
        && text.starts_with(edges)
        && text.ends_with(edges);
    valid
        .then(|| text.to_owned())
        .ok_or_else(|| refuse(flag, format!("{text:?} is not a name")))
}

fn election(args: &ManagerArgs) -> Result<Option<Election>, ConfigError> {
    if args.leader_elect_resource_lock != "leases" {
        let why = format!(
            "{:?} is not supported; leases are",
            args.leader_elect_resource_lock
        );
        return Err(refuse("leader-elect-resource-lock", why));
    }
    if let Some(other) = &args.leader_elect_resource_namespace
        && *other != args.working_namespace
    {
        tracing::warn!(
            "--leader-elect-resource-namespace has no effect: the lease is in the working namespace"
        );
    }
    if !args.leader_elect {
        return Ok(None);
    }
    let timing = Timing {
        lease: args.leader_elect_lease_duration,
        renew: args.leader_elect_renew_deadline,
        retry: args.leader_elect_retry_period,
    };
    Ok(Some(Election {
        lease: dns_name(
            "leader-elect-resource-name",
            &args.leader_elect_resource_name,
        )?,
        timing: timing
            .checked()
            .map_err(|error| refuse("leader-elect-lease-duration", error.to_string()))?,
    }))
}

fn node_life_cycle(args: &ManagerArgs) -> Result<NodeLifeCycle, ConfigError> {
    Ok(NodeLifeCycle {
        startup_grace: args.node_startup_grace_period,
        monitor_grace: args.node_monitor_grace_period,
        eviction_rate: rate("node-eviction-rate", args.node_eviction_rate)?,
        secondary_eviction_rate: rate(
            "secondary-node-eviction-rate",
            args.secondary_node_eviction_rate,
        )?,
        large_cluster: args.large_cluster_size_threshold,
        unhealthy_zone: share("unhealthy-zone-threshold", args.unhealthy_zone_threshold)?,
    })
}

fn webhooks(
    args: &ManagerArgs,
    controllers: &Selection,
) -> Result<Option<webhook::Options>, ConfigError> {
    if args.webhook_port == 0 {
        return Ok(None);
    }
    let setting = |error: WebhookError| match error {
        WebhookError::Setting {
            variable,
            value,
            wanted,
        } => ConfigError {
            setting: variable.into(),
            why: format!("{value:?} is not {wanted}"),
        },
        other => refuse("webhook-port", other.to_string()),
    };
    let mut options = webhook::Options::default()
        .from_environment(|name| std::env::var(name).ok())
        .map_err(setting)?;
    options
        .disable(&args.disable_independent_webhooks.join(","))
        .map_err(setting)?;
    Ok(Some(webhook::Options {
        namespace: args.working_namespace.clone(),
        port: args.webhook_port,
        controllers: controllers.clone(),
        ..options
    }))
}

impl TryFrom<ManagerArgs> for Config {
    type Error = ConfigError;

    fn try_from(args: ManagerArgs) -> Result<Self, ConfigError> {
        if args.max_nodes_per_bucket == 0 {
            return Err(refuse("max-nodes-per-bucket", "must be at least 1"));
        }
        if args.rest_config_qps.is_nan() || args.rest_config_burst == 0 {
            return Err(refuse("rest-config-burst", "must be at least 1"));
        }
        feature_gates(&args.feature_gates)?;
        if !args.logging.in_vain.is_empty() {
            tracing::info!(flags = %args.logging.in_vain.join(", "), "have no effect: --log says what is logged");
        }
        let controllers = selection(&args.controllers)?;
        Ok(Self {
            election: election(&args)?,
            settings: Settings {
                namespace: dns_name("working-namespace", &args.working_namespace)?,
                workers: args.workers.0.clone(),
                sync_nodepool_configurations: args.enable_sync_nodepool_configurations,
                max_nodes_per_bucket: args.max_nodes_per_bucket,
                node_life_cycle: node_life_cycle(&args)?,
                node_servant_image: args.node_servant_image.clone(),
            },
            independent_accounts: !args.disable_independent_service_accounts,
            // As client-go: a negative rate is none.
            limit: (args.rest_config_qps > 0.0)
                .then_some((args.rest_config_qps, args.rest_config_burst)),
            metrics: address("metrics-addr", &args.metrics_addr)?,
            health: address("health-probe-addr", &args.health_probe_addr)?,
            webhooks: webhooks(&args, &controllers)?,
            controllers,
            server: match args.kubeconfig {
                Some(path) if !path.as_os_str().is_empty() => Server::Kubeconfig(path),
                _ => Server::InCluster,
            },
        })
    }
}

#[cfg(test)]
mod tests;
