//! Names of nodes for the DNS: nodes of the edge lead to the tunnel's internal service, others to themselves. A DNS server reads the
//! config map as a hosts file.

use super::{
    metrics::Metrics,
    settings::{NAMESPACE, Scheme, Settings},
};
use crate::directory::{Directory, NodeFacts};
use serde_json::{Value, json};
use std::{net::IpAddr, sync::Arc, time::Duration};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use yurt_controller::{
    Collection, Context, Failure, Key, Objects, Scope,
    collections::{CONFIG_MAPS, SERVICES},
    election::{self, Candidate, Timing},
};

/// The config map of the names, and the key in it.
const CONFIG_MAP: &str = "yurt-tunnel-nodes";
const KEY: &str = "tunnel-nodes";
/// The service that names of edge nodes lead to.
const SERVICE: &str = "x-tunnel-server-internal-svc";
/// Ports of the service that are ours: `dnat-<port>`.
const PORT_PREFIX: &str = "dnat-";
const LEASE: &str = "tunnel-dns-controller";
const COMPONENT: &str = "yurt-tunnel-server";
/// The most that a config map holds.
const MOST: usize = 1 << 20;
/// Changes that come together are written together.
const TOGETHER: Duration = Duration::from_millis(200);
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// What the names are made of.
#[derive(Debug)]
pub struct NamesConfig {
    /// What the config map of the server says.
    pub settings: watch::Receiver<Arc<Settings>>,
    /// Where the interceptor listens for TLS.
    pub secure_port: u16,
    /// Where it listens for plain text.
    pub insecure_port: u16,
    /// Time between looks.
    pub period: Duration,
    /// Times of the election.
    pub timing: Timing,
    /// What is counted.
    pub metrics: Metrics,
}

/// The lines of the hosts file, sorted. Nodes of the edge are left out as long as there is no service to lead to.
fn records(nodes: &[Arc<NodeFacts>], service: Option<IpAddr>) -> Vec<String> {
    let record = |node: &Arc<NodeFacts>| {
        let address = if node.edge { service } else { node.address() };
        Some(format!("{}\t{}", address?, node.name))
    };
    let mut records: Vec<String> = nodes.iter().filter_map(record).collect();
    records.sort_unstable();
    records
}

/// What the ports of the internal service become, and those that cannot be had because others have the number; `None` when they are
/// right. Ports of others are left as they are.
fn service_ports(
    current: &[Value],
    config: &NamesConfig,
    settings: &Settings,
) -> (Option<Vec<Value>>, Vec<u16>) {
    let ours = |port: &Value| -> Option<u16> {
        port["name"]
            .as_str()?
            .strip_prefix(PORT_PREFIX)?
            .parse()
            .ok()
    };
    let is_tcp = |port: &Value| matches!(port["protocol"].as_str(), None | Some("TCP"));
    let mut ports: Vec<Value> = Vec::new();
    for port in current {
        match ours(port) {
            Some(number) if !settings.ports.contains_key(&number) || port["port"] != number => {}
            _ => ports.push(port.clone()),
        }
    }
    let mut taken = Vec::new();
    for (number, scheme) in &settings.ports {
        let target = match scheme {
            Scheme::Https => config.secure_port,
            Scheme::Http => config.insecure_port,
        };
        if let Some(own) = ports.iter_mut().find(|port| ours(port) == Some(*number)) {
            if own["targetPort"] != target {
                own["targetPort"] = target.into();
            }
        } else if ports
            .iter()
            .any(|port| is_tcp(port) && port["port"] == *number)
        {
            taken.push(*number);
        } else {
            ports.push(json!({"name": format!("{PORT_PREFIX}{number}"), "protocol": "TCP", "port": number, "targetPort": target}));
        }
    }
    ((ports != current).then_some(ports), taken)
}

/// What the names are made of, and where they are kept.
struct Names<'a> {
    context: &'a Context,
    config: &'a NamesConfig,
    directory: &'a dyn Directory,
    maps: Arc<Objects>,
    services: Arc<Objects>,
}

fn one(context: &Context, collection: &Collection, name: &str) -> Arc<Objects> {
    let scope = Scope {
        fields: format!("metadata.name={name}"),
        ..Scope::default().within(NAMESPACE)
    };
    context.scoped(collection, &scope)
}

impl Names<'_> {
    /// Writes what is not as it should be.
    async fn sync(&self) -> Result<(), Failure> {
        let service = self.services.get(&Key::new(NAMESPACE, SERVICE));
        self.sync_records(service.as_deref()).await?;
        match service {
            Some(service) => self.sync_ports(&service).await,
            None => Ok(()),
        }
    }

    async fn sync_records(&self, service: Option<&Value>) -> Result<(), Failure> {
        let address = service.and_then(|service| service["spec"]["clusterIP"].as_str());
        let address = address.and_then(|address| address.parse().ok());
        let records = records(&self.directory.nodes(), address);
        let text = records.join("\n");
        if text.len() > MOST {
            return Err(Failure::Object(format!(
                "the names of {} nodes are more than a config map holds",
                records.len()
            )));
        }
        let count = i64::try_from(records.len()).unwrap_or(i64::MAX);
        self.config.metrics.names.set(count);
        let map = self.maps.get(&Key::new(NAMESPACE, CONFIG_MAP));
        match map.as_deref() {
            Some(map) if map["data"][KEY] == *text => return Ok(()),
            Some(map) => {
                let mut map = map.clone();
                map["data"][KEY] = text.into();
                self.context.update(&CONFIG_MAPS, &map).await?;
            }
            None => {
                let map = json!({"metadata": {"name": CONFIG_MAP, "namespace": NAMESPACE}, "data": {KEY: text}});
                self.context.create(&CONFIG_MAPS, map).await?;
            }
        }
        self.config.metrics.name_writes.inc();
        Ok(())
    }

    async fn sync_ports(&self, service: &Value) -> Result<(), Failure> {
        let settings = self.config.settings.borrow().clone();
        let current = service["spec"]["ports"].as_array();
        let current = current.map_or(&[][..], Vec::as_slice);
        let (wanted, taken) = service_ports(current, self.config, &settings);
        let Some(wanted) = wanted else {
            return Ok(());
        };
        for port in taken {
            let message = format!("port {port} of the config map is another's already");
            self.context
                .event(COMPONENT, service, "Warning", "PortTaken", &message);
        }
        let mut service = service.clone();
        service["spec"]["ports"] = wanted.into();
        self.context.update(&SERVICES, &service).await?;
        self.config.metrics.name_writes.inc();
        Ok(())
    }
}

/// Keeps names and ports until `shutdown`, as long as this process holds the lease; when it loses it, it stands by again.
pub async fn keep_names(
    config: NamesConfig,
    context: Arc<Context>,
    directory: Arc<dyn Directory>,
    shutdown: CancellationToken,
) {
    let lease = Key::new(NAMESPACE, LEASE);
    while !shutdown.is_cancelled() {
        let kube = context
            .kube()
            .with_user_agent("yurt-tunnel-server/leader-election");
        let identity = election::identity(COMPONENT);
        let mut candidate = Candidate::new(kube, lease.clone(), identity, config.timing);
        context.metrics().leads(LEASE, false);
        if !candidate.acquire(&shutdown).await {
            return;
        }
        context.metrics().leads(LEASE, true);
        if let Some(held) = candidate.lease() {
            let message = format!("{} became leader", candidate.holder());
            context.event(COMPONENT, held, "Normal", "LeaderElection", &message);
        }
        let working = work(&config, &context, &*directory);
        let kept = tokio::select! {
            kept = candidate.keep(&shutdown) => kept,
            never = working => never,
        };
        context.metrics().leads(LEASE, false);
        config.metrics.names.set(0);
        match kept {
            Ok(()) => candidate.release().await,
            Err(lost) => tracing::warn!(%lost, "another keeps the names of nodes"),
        }
    }
}

/// Writes after every change, and looks from time to time.
async fn work(config: &NamesConfig, context: &Context, directory: &dyn Directory) -> ! {
    let names = Names {
        context,
        config,
        directory,
        maps: one(context, &CONFIG_MAPS, CONFIG_MAP),
        services: one(context, &SERVICES, SERVICE),
    };
    let changed = Arc::new(Notify::new());
    for objects in [&names.maps, &names.services] {
        let changed = changed.clone();
        objects.subscribe(move |_| changed.notify_one());
        objects.synced().await;
    }
    let (mut nodes, mut settings) = (directory.changes(), config.settings.clone());
    // Names that are merely not known yet must not be taken away.
    while !directory.is_complete() {
        tokio::time::sleep(FIRST_PAUSE).await;
    }
    let mut failures = 0u32;
    loop {
        nodes.borrow_and_update();
        settings.borrow_and_update();
        let pause = match names.sync().await {
            Ok(()) => {
                failures = 0;
                config.period
            }
            Err(error) => {
                config.metrics.name_failures.inc();
                tracing::warn!(%error, "names of nodes are not written");
                failures = (failures + 1).min(8);
                (FIRST_PAUSE * (1 << failures)).min(LONGEST_PAUSE)
            }
        };
        if failures > 0 {
            tokio::time::sleep(pause).await;
            continue;
        }
        let something = async {
            tokio::select! {
                Ok(()) = nodes.changed() => {}
                Ok(()) = settings.changed() => {}
                () = changed.notified() => {}
            }
            tokio::time::sleep(TOGETHER).await;
        };
        let _ = tokio::time::timeout(pause, something).await;
    }
}

#[cfg(test)]
mod tests;
