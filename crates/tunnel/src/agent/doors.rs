//! The doors of the moment: from addresses that people gave, or from what the cluster publishes, resolved again and again.

use super::{
    address::{Resolved, ServerAddress, resolve},
    connector::Connections,
    fleet::Door,
    known::KnownServers,
};
use crate::published::Published;
use std::{collections::BTreeMap, time::Duration};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// How often names are resolved: while servers are connected, and while none is.
const SELDOM: Duration = Duration::from_secs(60);
const OFTEN: Duration = Duration::from_secs(5);

/// Where addresses of servers come from.
#[derive(Debug)]
pub(super) enum Source {
    /// They were given.
    Given(Vec<ServerAddress>),
    /// The cluster publishes them.
    Published(watch::Receiver<Option<Published>>),
}

impl Source {
    fn addresses(&mut self) -> Vec<ServerAddress> {
        match self {
            Self::Given(addresses) => addresses.clone(),
            Self::Published(published) => {
                let published = published.borrow_and_update();
                published
                    .as_ref()
                    .map(|p| p.addresses.clone())
                    .unwrap_or_default()
            }
        }
    }

    async fn changed(&mut self) {
        let ended = match self {
            Self::Given(_) => true,
            Self::Published(published) => published.changed().await.is_err(),
        };
        if ended {
            std::future::pending::<()>().await;
        }
    }
}

/// Tells doors until `shutdown`: at once those that were good last, then what the source says. `by_name`: a proxy resolves names.
pub(super) fn follow(
    mut source: Source,
    by_name: bool,
    known: KnownServers,
    connections: Connections,
    shutdown: CancellationToken,
) -> watch::Receiver<Vec<Door>> {
    let (tell, told) = watch::channel(known.read());
    tokio::spawn(shutdown.run_until_cancelled_owned(async move {
        let mut connected = connections.watch();
        let mut trouble = false;
        let mut unresolved = BTreeMap::new();
        loop {
            let addresses = source.addresses();
            let Resolved { doors, failed } = resolve(&addresses, by_name).await;
            for (server, why) in &failed {
                if unresolved.get(server) != Some(why) {
                    tracing::warn!(server, why, "not resolved");
                }
            }
            unresolved = failed;
            if !doors.is_empty() {
                tell.send_if_modified(|before| {
                    let is_new = *before != doors;
                    before.clone_from(&doors);
                    is_new
                });
            }
            // Addresses are good when one of them is connected.
            let good = connections.doors().iter().any(|door| doors.contains(door));
            if good {
                let (known, doors) = (known.clone(), doors.clone());
                let written = tokio::task::spawn_blocking(move || known.write(&doors)).await;
                match written {
                    Ok(Err(error)) if !trouble => {
                        trouble = true;
                        tracing::warn!(%error, "the servers' addresses are not kept: a start without the cloud will not know them");
                    }
                    Ok(Ok(())) => trouble = false,
                    _ => {}
                }
            }
            let pause = if *connected.borrow_and_update() > 0 { SELDOM } else { OFTEN };
            tokio::select! {
                () = tokio::time::sleep(pause.mul_f64(0.75 + 0.5 * fastrand::f64())) => {}
                () = source.changed() => {}
                Ok(()) = connected.changed() => {}
            }
        }
    }));
    told
}
