//! A certificate that is had by CSR: asked for when there is none or it is due, the old one in use until the new one is there.

use super::{
    CertificateMetrics, Credentials, Events, Identity, Kept,
    events::{self, change},
    files::read_ca,
};
use crate::cluster::Cluster;
use std::{path::PathBuf, sync::Arc, time::Duration};
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;
use yurt_controller::signing_request::{SigningError, Wanted, obtain};
use yurt_pki::{
    KeyPairPem, Profile, Request,
    renewal::{self, Reason},
    store::{Pair, PairStore},
};

/// The longest that a certificate which is good is not looked at; clocks jump.
const DOZE: Duration = Duration::from_secs(30);
/// How long what is wanted must stay the same before a certificate is asked for: addresses change in groups.
const SETTLE: Duration = Duration::from_secs(1);

/// How a certificate is kept.
#[derive(Clone, Debug)]
pub struct Keeping {
    /// Which.
    pub identity: Identity,
    /// Where its files are.
    pub directory: PathBuf,
    /// Who is asked for it.
    pub cluster: Cluster,
    /// What it must say; `None`: not known yet, nothing is asked for.
    pub wanted: watch::Receiver<Option<Profile>>,
    /// The CAs believed; `None`: those that the API server is verified with.
    pub ca: Option<PathBuf>,
    /// How long a certificate may be for more names than wanted before it is asked for anew.
    pub grace: Duration,
    /// Where it is told.
    pub metrics: CertificateMetrics,
    /// Where people are told, beside the log.
    pub events: Option<Events>,
}

/// Why there is no new certificate.
#[derive(Debug, thiserror::Error)]
enum Trouble {
    #[error(transparent)]
    Access(#[from] yurt_controller::access::AccessError),
    #[error(transparent)]
    Signing(#[from] SigningError),
    #[error("what was signed cannot be used: {0}")]
    Useless(String),
    #[error(transparent)]
    Pki(#[from] yurt_pki::PkiError),
}

impl Trouble {
    fn is_passing(&self) -> bool {
        match self {
            Self::Access(_) => true,
            Self::Signing(error) => error.is_passing(),
            Self::Useless(_) | Self::Pki(_) => false,
        }
    }
}

/// Keeps a certificate until `shutdown`. What files hold is used at once; a pair that is corrupted counts as none.
pub fn keep(keeping: Keeping, shutdown: CancellationToken) -> Kept {
    let store = PairStore::new(&keeping.directory, keeping.identity.file_prefix());
    let current = store.current();
    let pair = Pair::read(&current, &current)
        .inspect_err(|error| {
            if current.exists() {
                tracing::warn!(certificate = keeping.identity.as_str(), %error, "it is asked for anew");
            }
        })
        .ok();
    let credentials = Credentials {
        pair,
        ca: keeping.authorities().unwrap_or_default(),
    };
    keeping.metrics.shown(keeping.identity, &credentials, false);
    let (show, shown) = watch::channel(Arc::new(credentials));
    let keeper = Keeper {
        surplus_since: None,
        keeping,
        store,
        show,
    };
    tokio::spawn(shutdown.run_until_cancelled_owned(keeper.run()));
    Kept::following(shown)
}

impl Keeping {
    fn tell(&self, kind: &'static str, reason: &'static str, message: String) {
        if let Some(events) = &self.events {
            events.tell(kind, reason, message);
        }
    }

    fn authorities(&self) -> Option<String> {
        match &self.ca {
            Some(path) => read_ca(path)
                .inspect_err(|error| tracing::warn!(%error, "the CA cannot be used"))
                .ok(),
            None => self.cluster.authorities(),
        }
    }
}

struct Keeper {
    keeping: Keeping,
    store: PairStore,
    show: watch::Sender<Arc<Credentials>>,
    /// When the certificate was first seen to be for more than it should.
    surplus_since: Option<Instant>,
}

impl Keeper {
    async fn run(mut self) {
        let mut luck = fastrand::f64();
        let mut failures = 0u32;
        let mut told = String::new();
        loop {
            self.look_at_authorities();
            let wanted = self.keeping.wanted.borrow_and_update().clone();
            let reason = wanted.as_ref().and_then(|wanted| self.reason(wanted, luck));
            let (Some(wanted), Some(reason)) = (wanted, reason) else {
                failures = 0;
                self.rest(DOZE.min(self.until_due(luck))).await;
                continue;
            };
            // One that is good for something is not hurried.
            let is_good = self.show.borrow().pair.is_some();
            if is_good && self.settles_not().await {
                continue;
            }
            match self.obtain(&wanted, &reason).await {
                Ok(()) => {
                    (failures, luck) = (0, fastrand::f64());
                    told.clear();
                    self.surplus_since = None;
                }
                Err(trouble) => {
                    failures = failures.saturating_add(1);
                    self.keeping.metrics.failed(self.keeping.identity);
                    let text = trouble.to_string();
                    if told != text {
                        let certificate = self.keeping.identity.as_str();
                        tracing::warn!(certificate, error = text, "no certificate for now");
                        let message =
                            format!("{certificate}: {reason}, and it is not issued: {text}");
                        self.keeping.tell("Warning", events::FAILED, message);
                        told = text;
                    }
                    let pause = renewal::pause(failures, !trouble.is_passing(), fastrand::f64());
                    self.rest(pause).await;
                }
            }
        }
    }

    /// Whether something else is wanted at once.
    async fn settles_not(&mut self) -> bool {
        let wanted = &mut self.keeping.wanted;
        let changed = tokio::time::timeout(SETTLE, wanted.changed()).await;
        matches!(changed, Ok(Ok(())))
    }

    /// Waits, at most until something else is wanted.
    async fn rest(&mut self, pause: Duration) {
        let sleep = tokio::time::sleep(pause);
        tokio::pin!(sleep);
        tokio::select! {
            () = &mut sleep => {}
            changed = self.keeping.wanted.changed() => {
                if changed.is_err() {
                    // Nobody will want anything else.
                    sleep.await;
                }
            }
        }
    }

    fn until_due(&self, luck: f64) -> Duration {
        let now = renewal::now();
        let due = self
            .show
            .borrow()
            .pair
            .as_ref()
            .map(|pair| renewal::renew_at(&pair.leaf, luck));
        let left = due.map_or(0, |due| due.saturating_sub(now));
        let grace = self
            .surplus_since
            .map(|since| self.keeping.grace.saturating_sub(since.elapsed()));
        Duration::from_secs(u64::try_from(left).unwrap_or(0).max(1)).min(
            grace
                .unwrap_or(Duration::MAX)
                .max(Duration::from_millis(50)),
        )
    }

    fn reason(&mut self, wanted: &Profile, luck: f64) -> Option<Reason> {
        let shown = self.show.borrow().clone();
        let leaf = shown.pair.as_ref().map(|pair| &pair.leaf);
        let surplus = leaf.and_then(|leaf| renewal::surplus(leaf, wanted));
        match &surplus {
            Some(_) => {
                self.surplus_since.get_or_insert_with(Instant::now);
            }
            None => self.surplus_since = None,
        }
        let over = self
            .surplus_since
            .is_some_and(|since| since.elapsed() >= self.keeping.grace);
        renewal::reason(leaf, wanted, renewal::now(), luck)
            .or_else(|| surplus.filter(|_| over).map(Reason::Surplus))
    }

    fn look_at_authorities(&self) {
        let Some(ca) = self.keeping.authorities() else {
            return;
        };
        self.show.send_if_modified(|shown| {
            if shown.ca == ca {
                return false;
            }
            *shown = Arc::new(Credentials {
                pair: shown.pair.clone(),
                ca,
            });
            true
        });
    }

    async fn obtain(&self, wanted: &Profile, reason: &Reason) -> Result<(), Trouble> {
        let identity = self.keeping.identity;
        let certificate = identity.as_str();
        tracing::info!(certificate, %reason, "a certificate is asked for");
        let kube = self.keeping.cluster.client()?;
        let made = self.request(wanted)?;
        let csr = Wanted {
            certificate,
            prefix: identity.file_prefix(),
            signer: identity.signer(),
            usages: identity.usages(),
            request: &made.request,
        };
        let told = |waiting: &str| tracing::info!(certificate, "{waiting}");
        let pem = obtain(&kube, &csr, told).await.inspect_err(|error| {
            if error.is_final() {
                self.store.drop_pending();
            }
        })?;
        let pair = Pair::of(KeyPairPem {
            cert: pem,
            key: made.key,
        });
        let now = renewal::now();
        let useless = match &pair {
            Err(error) => Some(error.to_string()),
            Ok(pair) => {
                renewal::reason(Some(&pair.leaf), wanted, now, 1.0).map(|reason| reason.to_string())
            }
        };
        if let Some(why) = useless {
            self.store.drop_pending();
            return Err(Trouble::Useless(why));
        }
        let pair = pair?;
        self.save(&pair.pem, now);
        tracing::info!(
            certificate,
            until = renewal::moment(pair.leaf.not_after),
            "new certificate"
        );
        let before = self.show.borrow().clone();
        let old = before.pair.as_ref().map(|pair| &pair.leaf);
        if let Some(what) = change(old, &pair.leaf) {
            let message = format!("the certificate ({certificate}) is {what}");
            self.keeping.tell("Normal", events::CHANGED, message);
        }
        let shown = Arc::new(Credentials {
            pair: Some(pair),
            ca: before.ca.clone(),
        });
        self.keeping.metrics.shown(identity, &shown, true);
        self.show.send_replace(shown);
        Ok(())
    }

    /// A certificate that cannot be written is used all the same.
    fn save(&self, pem: &KeyPairPem, now: i64) {
        match self.store.save(pem, now) {
            Ok(()) => self.store.drop_pending(),
            Err(error) => {
                let certificate = self.keeping.identity.as_str();
                tracing::error!(certificate, %error, "the certificate is in use but cannot be written");
            }
        }
    }

    /// The key and request of before, when they are still what is wanted; new ones otherwise.
    fn request(&self, wanted: &Profile) -> Result<Request, Trouble> {
        if let Some(made) = self.store.read_pending()
            && made.asks_for(wanted)
        {
            return Ok(made);
        }
        let made = yurt_pki::request(wanted)?;
        if let Err(error) = self.store.save_pending(&made) {
            tracing::warn!(%error, "the key cannot be kept: a restart begins anew");
        }
        Ok(made)
    }
}
