//! The manager of a lab: `yurt manager` in this process, under an identity of its own, on an address of the lab's.

use crate::{controllers::Controllers, kube::Kube};
use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};
use tokio_util::sync::CancellationToken;
use yurt_api::{
    crd::DEFINITIONS,
    names::objects::{MUTATING_WEBHOOKS, VALIDATING_WEBHOOKS},
};
use yurt_controller::{collections::CRDS, election::Timing, kube::KubeError};
use yurt_manager::{
    process::{Config, Election},
    webhook::Options,
};

/// Who it is.
pub(crate) const USER: &str = "system:serviceaccount:kube-system:yurt-manager";
/// Its Lease, as the binary's default has it.
const LEASE: &str = "yurt-manager";
/// Nobody else runs for it but the manager of an earlier `up` on the same directory, and that one is gone.
const TIMING: Timing = Timing {
    lease: Duration::from_secs(3),
    renew: Duration::from_secs(2),
    retry: Duration::from_millis(500),
};
/// Until it is started again after an error.
const PAUSE: Duration = Duration::from_secs(1);
const METRICS_PORT: u16 = 10271;
const HEALTH_PORT: u16 = 10272;
const WEBHOOK_PORT: u16 = 10273;

/// Where the manager of a lab is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Address(pub(crate) IpAddr);

impl Address {
    /// Runs the manager until `shutdown`, started again as a service manager would.
    pub(crate) async fn keep(
        self,
        kube: Kube,
        controllers: Controllers,
        shutdown: CancellationToken,
    ) {
        let Self(address) = self;
        let config = Config {
            controllers: controllers.manager.clone(),
            election: Some(Election {
                lease: LEASE.to_owned(),
                timing: TIMING,
            }),
            metrics: Some(SocketAddr::new(address, METRICS_PORT)),
            health: Some(SocketAddr::new(address, HEALTH_PORT)),
            webhooks: Some(Options {
                address,
                port: WEBHOOK_PORT,
                host: Some(address.to_string()),
                controllers: controllers.manager,
                ..Options::default()
            }),
            ..Config::in_process(kube)
        };
        while !shutdown.is_cancelled() {
            if let Err(error) = yurt_manager::run(config.clone(), shutdown.clone()).await {
                tracing::warn!(%error, "the manager ended");
            }
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = tokio::time::sleep(PAUSE) => {}
            }
        }
    }

    /// Whether it is ready, and API servers know its webhooks.
    pub(crate) async fn is_ready(self, kube: &Kube) -> Result<bool, KubeError> {
        let health = SocketAddr::new(self.0, HEALTH_PORT).to_string();
        let health = Kube::new(&health, None, None, Duration::from_secs(2));
        if health.get("/readyz").await.is_err() {
            return Ok(false);
        }
        let of = "/apis/admissionregistration.k8s.io/v1";
        let mut told = vec![
            format!("{of}/mutatingwebhookconfigurations/{MUTATING_WEBHOOKS}"),
            format!("{of}/validatingwebhookconfigurations/{VALIDATING_WEBHOOKS}"),
        ];
        let converted = DEFINITIONS
            .iter()
            .filter(|definition| definition.versions.len() > 1);
        told.extend(converted.map(|d| format!("{}/{}.{}", CRDS.path(""), d.plural, d.group)));
        for path in told {
            match kube.get(&path).await {
                Err(error) if error.is_not_found() => return Ok(false),
                object => {
                    let conversion = &object?["spec"]["conversion"];
                    if conversion.is_object() && conversion["strategy"] != "Webhook" {
                        return Ok(false);
                    }
                }
            }
        }
        Ok(true)
    }
}
