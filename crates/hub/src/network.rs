//! The address that pods reach the hub on: a dummy interface of the node with one address (`--dummy-if-name`, `--dummy-if-ip`), kept
//! while the hub runs and taken away when it ends, as far as the hub made it.
//!
//! `plan` decides (pure), `netlink` looks and acts. Changes are heard of at once; a slow look beside finds what was missed. Where the
//! kernel has no dummy interfaces, the address is put on the loopback interface.

mod netlink;
mod plan;

use crate::config::DummyInterface;
use netlink::Netlink;
use plan::{Seen, Step};
use std::time::Duration;
use tokio::{sync::watch, task::JoinHandle};
use tokio_util::sync::CancellationToken;

/// Between looks when nothing is heard of.
const LOOK: Duration = Duration::from_secs(60);
/// Between attempts while the address cannot be had.
const RETRY: Duration = Duration::from_secs(10);
/// Changes come in bursts.
const SETTLE: Duration = Duration::from_millis(50);
/// Looks until the world must be as it should.
const ROUNDS: usize = 5;
/// For the first look, and for taking everything away.
const PATIENCE: Duration = Duration::from_secs(3);

/// Whether pods can reach the address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Presence {
    /// It is on this interface.
    On(String),
    /// It is on none.
    Absent {
        /// Why, in words.
        why: String,
        /// Whether the hub is not allowed to change that.
        denied: bool,
    },
}

/// Why an interface was not looked at or changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum LinksError {
    /// The kernel has no dummy interfaces.
    #[error("this kernel has no dummy interfaces")]
    NoDummies,
    /// The process may not.
    #[error("{0}: the hub needs CAP_NET_ADMIN for that")]
    Denied(String),
    /// The kernel said something else; to be tried again.
    #[error("{0}")]
    Failed(String),
}

/// The interfaces of the node.
pub(crate) trait Links: Send + 'static {
    /// What is there now.
    fn look(&mut self) -> impl Future<Output = Result<Seen, LinksError>> + Send;
    /// Does one thing; what is done already is no error.
    fn act(&mut self, step: &Step) -> impl Future<Output = Result<(), LinksError>> + Send;
    /// Resolves when something changed that may matter.
    fn changed(&mut self) -> impl Future<Output = ()> + Send;
}

/// The dummy interface of a running hub.
#[derive(Debug)]
pub struct Network {
    presence: watch::Receiver<Presence>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Network {
    /// Makes the interface, and keeps it until [`Network::end`]. Returns when it is known whether that can be done.
    pub async fn start(wanted: DummyInterface) -> Self {
        match Netlink::open(wanted.clone()) {
            Ok(links) => Self::start_on(links, wanted).await,
            Err(error) => {
                let why = error.to_string();
                tracing::warn!(%error, "the interfaces of the node cannot be looked at");
                let (_, presence) = watch::channel(Presence::Absent { why, denied: true });
                Self {
                    presence,
                    stop: CancellationToken::new(),
                    task: tokio::spawn(async {}),
                }
            }
        }
    }

    async fn start_on(links: impl Links, wanted: DummyInterface) -> Self {
        let why = "the interfaces of the node do not answer".to_owned();
        let (presence, mut receiver) = watch::channel(Presence::Absent { why, denied: false });
        receiver.mark_unchanged();
        let stop = CancellationToken::new();
        let keeper = Keeper {
            links,
            wanted,
            presence,
            dummies: true,
            added: false,
            said: String::new(),
        };
        let task = tokio::spawn(keeper.run(stop.clone()));
        // Without an answer in time the listeners wait for the address.
        let _ = tokio::time::timeout(PATIENCE, receiver.changed()).await;
        Self {
            presence: receiver,
            stop,
            task,
        }
    }

    /// Where the address is.
    pub fn presence(&self) -> watch::Receiver<Presence> {
        self.presence.clone()
    }

    /// Takes away what the hub made.
    pub async fn end(self) {
        self.stop.cancel();
        if tokio::time::timeout(PATIENCE, self.task).await.is_err() {
            tracing::warn!("the dummy interface could not be taken away in time");
        }
    }
}

struct Keeper<L> {
    links: L,
    wanted: DummyInterface,
    presence: watch::Sender<Presence>,
    /// Whether the kernel has dummy interfaces, as far as is known.
    dummies: bool,
    /// Whether this process put the address where it is.
    added: bool,
    /// The last warning.
    said: String,
}

impl<L: Links> Keeper<L> {
    async fn run(mut self, stop: CancellationToken) {
        loop {
            let presence = self.ensure().await;
            let pause = match &presence {
                Presence::On(_) => LOOK,
                Presence::Absent { .. } => RETRY,
            };
            self.tell(presence);
            tokio::select! {
                () = stop.cancelled() => break,
                () = tokio::time::sleep(pause) => {}
                () = self.links.changed() => {
                    tokio::select! {
                        () = stop.cancelled() => break,
                        () = tokio::time::sleep(SETTLE) => {}
                    }
                }
            }
        }
        self.take_away().await;
    }

    /// Makes the world as it should be, as far as that goes.
    async fn ensure(&mut self) -> Presence {
        let absent = |error: &LinksError| Presence::Absent {
            why: error.to_string(),
            denied: matches!(error, LinksError::Denied(_)),
        };
        for _ in 0..ROUNDS {
            let seen = match self.links.look().await {
                Ok(seen) => seen,
                Err(error) => return absent(&error),
            };
            let steps = plan::plan(&self.wanted, &seen, self.dummies);
            if steps.is_empty() {
                return match plan::place(&self.wanted, &seen) {
                    Some(on) => Presence::On(on.to_owned()),
                    None => absent(&LinksError::Failed("its interface is gone".into())),
                };
            }
            for step in &steps {
                match self.links.act(step).await {
                    Ok(()) => self.added |= matches!(step, Step::Create | Step::Add { .. }),
                    Err(LinksError::NoDummies) if self.dummies => {
                        self.dummies = false;
                        tracing::warn!(
                            address = %self.wanted.address,
                            "this kernel has no dummy interfaces: the address is put on lo instead"
                        );
                        break;
                    }
                    // An address that works is enough, also where the hub may not tidy up.
                    Err(error) => match plan::place(&self.wanted, &seen) {
                        Some(on) => {
                            self.warn(&format!("interface {on} is not as it should be: {error}"));
                            return Presence::On(on.to_owned());
                        }
                        None => return absent(&error),
                    },
                }
            }
        }
        absent(&LinksError::Failed(
            "somebody else changes it all the time".into(),
        ))
    }

    fn tell(&mut self, presence: Presence) {
        match &presence {
            Presence::Absent { why, .. } => {
                let text = format!(
                    "pods cannot reach the hub on {}: {why}",
                    self.wanted.address
                );
                self.warn(&text);
            }
            Presence::On(on) if *self.presence.borrow() != presence => {
                self.said.clear();
                tracing::info!(interface = on, address = %self.wanted.address, "pods can reach the hub");
            }
            Presence::On(_) => {}
        }
        self.presence.send_replace(presence);
    }

    /// Once for every kind of trouble.
    fn warn(&mut self, text: &str) {
        if self.said != text {
            text.clone_into(&mut self.said);
            tracing::warn!("{text}");
        }
    }

    async fn take_away(&mut self) {
        let Ok(seen) = self.links.look().await else {
            return;
        };
        for step in plan::removal(&self.wanted, &seen, self.added) {
            if let Err(error) = self.links.act(&step).await {
                tracing::warn!(%error, ?step, "left behind");
            }
        }
    }
}

#[cfg(test)]
mod tests;
