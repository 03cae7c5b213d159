//! Local mode: the hub on a node of a host cluster that carries tenants' control planes. It is no proxy; it keeps the packets to a
//! tenant's API server service (`--server-addr`) going to that service's endpoints, which it follows in the host cluster
//! (`--host-control-plane-address`): `tenant-control-plane/tenant-apiserver`.
//!
//! `rules` says what the packet filter should hold (pure), `firewall` puts it there.

mod firewall;
mod rules;

use crate::{
    config::{Config, ConfigError},
    follow::{self, Asked, Objects},
};
use bytes::Bytes;
pub use firewall::{Firewall, FirewallError, Tool};
use http::{Request, Response};
use http_body_util::BodyExt;
pub use rules::Rules;
use std::{net::SocketAddr, path::Path, sync::Arc, time::Duration};
use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use yurt_pki::{KeyPairPem, PkiError};
use yurt_transport::{Body, Client, ClientOptions};

/// Where the endpoints of the tenant's API server are.
const NAMESPACE: &str = "tenant-control-plane";
const NAME: &str = "tenant-apiserver";
/// Between renewals of the rules: somebody else may have flushed them.
const RENEW: Duration = Duration::from_secs(60);
/// After a failure.
const RETRY: Duration = Duration::from_secs(5);
/// For the head of an answer of the host cluster.
const WAIT: Duration = Duration::from_secs(30);
/// Protocols offered to it.
const ALPN: [&str; 2] = ["h2", "http/1.1"];
/// For tasks at the end.
const STOP: Duration = Duration::from_secs(3);

/// Why local mode cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum LocalModeError {
    /// A flag is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A certificate, key or CA cannot be used.
    #[error("certificate: {0}")]
    Certificate(#[from] PkiError),
    /// The node has no packet filter that can be changed.
    #[error(transparent)]
    Firewall(#[from] FirewallError),
}

/// Runs until `shutdown`.
pub async fn run(
    config: Config,
    mut firewall: impl Firewall,
    shutdown: CancellationToken,
) -> Result<(), LocalModeError> {
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    let service = service(&config)?;
    let host = Arc::new(Host::of(&config)?);
    let tasks = TaskTracker::new();
    let path = format!("/api/v1/namespaces/{NAMESPACE}/endpoints");
    let selector = format!("fieldSelector=metadata.name%3D{NAME}");
    let known = follow::follow_at(host, &path, &selector, &tasks, shutdown.clone());
    tracing::info!(%service, host = ?config.host_control_plane, "local mode: packets to the tenant's API server go to its endpoints");
    keep(service, known, &mut firewall, &shutdown).await;
    if let Err(error) = firewall.clear(service.ip()).await {
        tracing::warn!(%error, "rules are left behind");
    }
    tasks.close();
    // They hold nothing that would be lost.
    let _ = tokio::time::timeout(STOP, tasks.wait()).await;
    tracing::info!("hub stopped");
    Ok(())
}

/// Keeps the packet filter true. While nothing is known yet, the rules of a hub of before stay.
async fn keep(
    service: SocketAddr,
    mut known: watch::Receiver<Option<Objects>>,
    firewall: &mut impl Firewall,
    shutdown: &CancellationToken,
) {
    let mut in_force: Option<Rules> = None;
    let mut said = String::new();
    loop {
        let wanted = known
            .borrow_and_update()
            .as_ref()
            .map(|objects| Rules::of(service, objects.values().next()));
        let mut pause = RENEW;
        if let Some(rules) = wanted {
            match firewall.apply(&rules).await {
                Ok(()) => {
                    said.clear();
                    if in_force.as_ref() != Some(&rules) {
                        tracing::info!(endpoints = ?rules.endpoints(), "endpoints of the tenant's API server");
                        in_force = Some(rules);
                    }
                }
                Err(error) => {
                    pause = RETRY;
                    let text = error.to_string();
                    if said != text {
                        tracing::warn!(error = text, "the packet filter is not as it should be");
                        said = text;
                    }
                }
            }
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            changed = known.changed() => if changed.is_err() {
                // The follower ends at shutdown only.
                shutdown.cancelled().await;
                return;
            },
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// The address and port of the tenant's service.
fn service(config: &Config) -> Result<SocketAddr, ConfigError> {
    let refuse = |why: &str| ConfigError {
        flag: "server-addr",
        why: why.to_owned(),
    };
    match &config.servers[..] {
        [one] => one.parse().map_err(|_| {
            refuse("must be the IP address and port of the tenant's service in local mode")
        }),
        _ => Err(refuse("is one address in local mode")),
    }
}

/// The host cluster's API server.
struct Host {
    client: Client,
}

impl Host {
    /// Verified by the CA, where there is one; as the client whose certificate is given.
    fn of(config: &Config) -> Result<Self, LocalModeError> {
        let own = match &config.node_certificate {
            Some(files) => Some(KeyPairPem {
                cert: read(&files.cert)?,
                key: read(&files.key)?,
            }),
            None => None,
        };
        let by_default = config.root_dir.join("pki/ca.crt");
        let named = config.ca_file != by_default;
        let tls = if named || config.ca_file.exists() {
            let ca = read(&config.ca_file)?;
            yurt_pki::client_config(&ca, own.as_ref(), &ALPN)?
        } else {
            tracing::warn!(
                "there is no --ca-file: whoever answers at the host control plane's address says where packets for the tenant's API \
                 server go"
            );
            yurt_pki::unverified_client_config(own.as_ref())?
        };
        let authority = config.host_control_plane.clone().unwrap_or_default();
        let client = Client::new(&authority, Some(tls), ClientOptions::default());
        Ok(Self { client })
    }
}

fn read(path: &Path) -> Result<String, PkiError> {
    std::fs::read_to_string(path).map_err(|source| PkiError::Io {
        path: path.display().to_string(),
        source,
    })
}

impl Asked for Arc<Host> {
    async fn ask(&self, request: Request<Bytes>) -> Option<Response<Body>> {
        let request = request.map(yurt_transport::full);
        match self.client.send(request, WAIT).await {
            Ok(response) => Some(response.map(|body| body.map_err(Into::into).boxed_unsync())),
            Err(error) => {
                tracing::debug!(%error, "the host control plane does not answer");
                None
            }
        }
    }

    async fn turned(&self) {
        std::future::pending().await
    }
}

#[cfg(test)]
mod tests;
