//! The manager of a lab: `yurt manager` in this process, under an identity of its own.

use crate::{controllers::Controllers, kube::Kube};
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use yurt_controller::election::Timing;
use yurt_manager::process::{Config, Election};

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

/// Runs until `shutdown`, started again as a service manager would.
pub(crate) async fn keep(kube: Kube, controllers: &Controllers, shutdown: CancellationToken) {
    let config = Config {
        controllers: controllers.manager.clone(),
        election: Some(Election {
            lease: LEASE.to_owned(),
            timing: TIMING,
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
