//! The certificate of the webhooks and its CA: kept where all replicas find them, renewed well before they end.
//!
//! What is to be done is [`renewed`], a function of what is kept and the time, so that replicas which decide at once decide the
//! same; the first who writes wins, the others take what it wrote. A new CA is first only told to the API servers, beside the old
//! one; only when they had time to hear of it, it signs; and the old one stays until nobody can hold a certificate of it any more.

mod store;

pub(crate) use store::Store;

use super::{Options, Terms};
use arc_swap::ArcSwap;
use std::{fmt, net::IpAddr, sync::Arc, time::Duration};
use store::StoreError;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use yurt_pki::{BACKDATE, Ca, KeyPairPem, Leaf, PkiError, Profile, certs_from_pem};

/// How often the store is looked at.
const LOOK: Duration = Duration::from_secs(60);
/// Pauses after a failure: from, to.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// How often a write is tried that others are faster with.
const TRIES: usize = 5;
/// The CN of a CA, as OpenYurt's.
const CA_NAME: &str = "webhook-cert-ca";
/// However long a certificate is valid, this long before its end is early enough for another (180 days).
const MOST_AHEAD: i64 = 180 * 24 * 3600;

/// What is kept.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Bundle {
    /// PEM of the CA that signs, then of those that signed before: what API servers trust.
    pub(crate) authorities: String,
    /// PEM of the key of the first of them.
    pub(crate) authority_key: String,
    /// What is served.
    pub(crate) own: KeyPairPem,
}

impl fmt::Debug for Bundle {
    /// Leaves the private keys out.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bundle")
            .field("own", &self.own)
            .finish_non_exhaustive()
    }
}

/// What a certificate is for.
#[derive(Clone, Debug)]
pub(crate) struct Names {
    /// By which API servers reach the webhooks.
    primary: String,
}

impl Names {
    pub(crate) fn of(options: &Options) -> Self {
        let Options {
            host,
            service,
            namespace,
            ..
        } = options;
        let service = || format!("{service}.{namespace}.svc");
        Self {
            primary: host.clone().unwrap_or_else(service),
        }
    }

    fn profile(&self, days: u32) -> Profile {
        let mut profile = Profile {
            common_name: self.primary.clone(),
            dns: vec!["localhost".into()],
            server: true,
            days,
            ..Profile::default()
        };
        match self.primary.parse::<IpAddr>() {
            Ok(ip) => profile.ips.push(ip),
            Err(_) => profile.dns.insert(0, self.primary.clone()),
        }
        profile
    }
}

/// From and until when something is valid, in seconds since the epoch.
#[derive(Clone, Copy)]
struct Span {
    from: i64,
    until: i64,
}

impl Span {
    fn of(pem: &str) -> Result<Self, PkiError> {
        let certificates = certs_from_pem(pem)?;
        let leaf = Leaf::of(certificates.first().map_or(&[], |der| der.as_ref()))?;
        Ok(Self {
            from: leaf.not_before,
            until: leaf.not_after,
        })
    }

    /// When it is time for another.
    fn ends(self) -> i64 {
        let ahead = self.until.saturating_sub(self.from) / 3;
        self.until.saturating_sub(ahead.min(MOST_AHEAD))
    }

    /// How long ago it was made, if it was made here.
    fn age(self, now: i64) -> i64 {
        let backdate = i64::try_from(BACKDATE.as_secs()).unwrap_or_default();
        now.saturating_sub(self.from).saturating_sub(backdate)
    }
}

/// The first certificate of a PEM text.
fn first(pem: &str) -> &str {
    const END: &str = "-----END CERTIFICATE-----";
    match pem.find(END) {
        Some(at) => &pem[..at + END.len()],
        None => pem,
    }
}

/// What is to be kept instead of what is; `None` where that is as it should be.
pub(crate) fn renewed(
    known: Option<&Bundle>,
    names: &Names,
    terms: &Terms,
    now: i64,
) -> Result<Option<Bundle>, PkiError> {
    let afresh = || {
        let ca = Ca::new(CA_NAME, terms.ca_days)?;
        issued(&ca, ca.cert_pem(), names, terms).map(Some)
    };
    let Some(known) = known else {
        return afresh();
    };
    let signing = KeyPairPem {
        cert: first(&known.authorities).to_owned(),
        key: known.authority_key.clone(),
    };
    let (Ok(ca), Ok(ca_span)) = (Ca::from_pem(&signing), Span::of(&signing.cert)) else {
        return afresh();
    };
    if now >= ca_span.until {
        return afresh();
    }
    let by = |authorities: &str, at: i64| {
        let own = &known.own;
        yurt_pki::verify_server(authorities, &own.cert, &names.primary, at).is_ok()
            && yurt_pki::server_config(own, None, true).is_ok()
    };
    let overlap = i64::try_from(terms.overlap.as_secs()).unwrap_or(i64::MAX);
    let usable = by(&known.authorities, now);
    if now >= ca_span.ends() {
        let next = Ca::new(CA_NAME, terms.ca_days)?;
        let authorities = format!("{}{}\n", next.cert_pem(), signing.cert.trim_start());
        // Until API servers had time to hear of it, what is served stays; unless that is of no use anyway.
        if usable && by(&known.authorities, now.saturating_add(overlap)) {
            return Ok(Some(Bundle {
                authorities,
                authority_key: next.to_pem().key,
                own: known.own.clone(),
            }));
        }
        return issued(&next, authorities, names, terms).map(Some);
    }
    let another = || issued(&ca, known.authorities.clone(), names, terms).map(Some);
    if !usable {
        return another();
    }
    if !by(&signing.cert, now) {
        // Signed by the CA before.
        return if ca_span.age(now) >= overlap {
            another()
        } else {
            Ok(None)
        };
    }
    let own = Span::of(&known.own.cert)?;
    if now >= own.ends() {
        return another();
    }
    if signing.cert.trim().len() < known.authorities.trim().len() && own.age(now) >= overlap {
        return Ok(Some(Bundle {
            authorities: format!("{}\n", signing.cert.trim_start()),
            ..known.clone()
        }));
    }
    Ok(None)
}

fn issued(ca: &Ca, authorities: String, names: &Names, terms: &Terms) -> Result<Bundle, PkiError> {
    Ok(Bundle {
        authorities,
        authority_key: ca.to_pem().key,
        own: ca.issue(&names.profile(terms.certificate_days))?,
    })
}

/// Seconds since the epoch.
pub(crate) type Clock = Arc<dyn Fn() -> i64 + Send + Sync>;

/// Keeps certificates.
pub(crate) struct Keeper {
    store: Store,
    names: Names,
    terms: Terms,
    clock: Clock,
    tls: Arc<ArcSwap<rustls::ServerConfig>>,
    bundle: watch::Sender<Option<Arc<Bundle>>>,
}

impl Keeper {
    pub(crate) fn new(
        store: Store,
        names: Names,
        terms: Terms,
        clock: Clock,
    ) -> Result<Self, PkiError> {
        Ok(Self {
            store,
            names,
            terms,
            clock,
            tls: Arc::new(ArcSwap::from(yurt_pki::server_config_without_certificate()?)),
            bundle: watch::Sender::new(None),
        })
    }

    /// What to serve with: no handshake succeeds before there is a certificate.
    pub(crate) fn tls(&self) -> Arc<ArcSwap<rustls::ServerConfig>> {
        self.tls.clone()
    }

    /// What is served and trusted.
    pub(crate) fn bundle(&self) -> watch::Receiver<Option<Arc<Bundle>>> {
        self.bundle.subscribe()
    }

    /// Keeps them until `shutdown`. What is served stays served while the store cannot be reached.
    pub(crate) async fn keep(self, shutdown: CancellationToken) {
        let mut failures = 0u32;
        loop {
            let pause = match self.tend().await {
                Ok(()) => {
                    failures = 0;
                    LOOK.min(self.terms.overlap)
                }
                Err(error) => {
                    let pause = RETRY.1.min(RETRY.0 * 2u32.pow(failures.min(5)));
                    failures = failures.saturating_add(1);
                    tracing::warn!(%error, ?pause, "certificates of the webhooks, again");
                    pause
                }
            };
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    async fn tend(&self) -> Result<(), StoreError> {
        for _ in 0..TRIES {
            let kept = self.store.read().await?;
            let now = (self.clock)();
            let Some(next) = renewed(kept.bundle.as_ref(), &self.names, &self.terms, now)? else {
                if let Some(bundle) = kept.bundle {
                    self.serve(bundle)?;
                }
                return Ok(());
            };
            match self.store.write(kept, &next).await {
                Ok(()) => {
                    tracing::info!("new certificates for the webhooks");
                    return Ok(self.serve(next)?);
                }
                Err(error) if error.is_conflict() => {}
                Err(error) => return Err(error),
            }
        }
        Err(StoreError::Contended)
    }

    fn serve(&self, bundle: Bundle) -> Result<(), PkiError> {
        let known = self.bundle.borrow().clone();
        if known.is_none_or(|known| *known != bundle) {
            self.tls
                .store(yurt_pki::server_config(&bundle.own, None, true)?);
            self.bundle.send_replace(Some(Arc::new(bundle)));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
