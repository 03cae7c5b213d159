//! The tunnel's certificates: had by CSR, or from files, kept current in both cases and put to use without a restart.
//!
//! There are three identities ([`Identity`]), each with files of its own. What a certificate must say is in [`shape`]; [`keep`] has
//! it signed and renews it, [`follow_files`] reads it where somebody else keeps it. Both give a [`Kept`]: what to show and whom to
//! believe at the moment.

mod events;
mod files;
mod keeper;
mod metrics;
pub mod shape;

pub use events::Events;
pub use files::{GivenFiles, SomeFiles, follow_files};
pub use keeper::{Keeping, keep};
pub use metrics::CertificateMetrics;
pub use shape::Identity;

use arc_swap::ArcSwap;
use std::sync::Arc;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use yurt_pki::{Callers, Leaf, PkiError, TlsPolicy, renewal, store::Pair};

/// What to show and whom to believe.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Credentials {
    /// Certificate and key, when there are some. One that has ended goes on being shown: who minds says so himself.
    pub pair: Option<Pair>,
    /// The CAs believed, PEM; empty: nobody is.
    pub ca: String,
}

impl Credentials {
    /// A TLS client that shows the certificate. An error without one, or without a CA.
    pub fn client_config(&self, alpn: &[&[u8]]) -> Result<Arc<rustls::ClientConfig>, PkiError> {
        self.shown()?;
        self.bearer_config(alpn)
    }

    /// The same for who has a token: without a certificate, none is shown. An error without a CA.
    fn bearer_config(&self, alpn: &[&[u8]]) -> Result<Arc<rustls::ClientConfig>, PkiError> {
        self.believed()?;
        let pem = self.pair.as_ref().map(|pair| &pair.pem);
        let mut config =
            rustls::ClientConfig::clone(&*yurt_pki::client_config(&self.ca, pem, &[])?);
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        Ok(Arc::new(config))
    }

    /// A TLS server that lets nobody in without a certificate of the CA.
    pub fn server_config(
        &self,
        policy: &TlsPolicy,
        alpn: &[&[u8]],
    ) -> Result<Arc<rustls::ServerConfig>, PkiError> {
        let pair = self.shown()?;
        let callers = Callers::Certified(&self.ca);
        let config = yurt_pki::server_config_under(policy, &pair.pem, callers, false)?;
        let mut config = rustls::ServerConfig::clone(&config);
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        Ok(Arc::new(config))
    }

    fn shown(&self) -> Result<&Pair, PkiError> {
        self.believed()?;
        self.pair.as_ref().ok_or_else(|| missing("certificate"))
    }

    fn believed(&self) -> Result<(), PkiError> {
        (!self.ca.is_empty())
            .then_some(())
            .ok_or_else(|| missing("CA"))
    }
}

fn missing(what: &str) -> PkiError {
    PkiError::Invalid {
        what: what.to_owned(),
        why: "there is none yet".to_owned(),
    }
}

/// A certificate that somebody keeps current.
#[derive(Clone, Debug)]
pub struct Kept {
    shown: watch::Receiver<Arc<Credentials>>,
    policy: Arc<TlsPolicy>,
    /// There will be no certificate: a token stands in for it.
    bare: bool,
}

impl Kept {
    /// One that stays as it is.
    pub fn fixed(credentials: Credentials) -> Self {
        Self::following(watch::channel(Arc::new(credentials)).1)
    }

    /// One as its keeper shows it.
    pub(crate) fn following(shown: watch::Receiver<Arc<Credentials>>) -> Self {
        Self {
            shown,
            policy: Arc::default(),
            bare: false,
        }
    }

    /// The same, for clients who have no certificate and need none: a token says who they are.
    pub fn bare(self) -> Self {
        Self { bare: true, ..self }
    }

    /// Whether there will be a certificate that is not there yet.
    pub(crate) fn awaits_certificate(&self) -> bool {
        !self.bare && self.current().pair.is_none()
    }

    /// A TLS client that shows the certificate. An error without a CA, or without a certificate where there is to be one.
    pub fn client_config(&self, alpn: &[&[u8]]) -> Result<Arc<rustls::ClientConfig>, PkiError> {
        match self.bare {
            true => self.current().bearer_config(alpn),
            false => self.current().client_config(alpn),
        }
    }

    /// The same, for listeners that speak only what a policy allows.
    pub fn under(self, policy: TlsPolicy) -> Self {
        Self {
            policy: Arc::new(policy),
            ..self
        }
    }

    /// What listeners with it speak.
    pub fn policy(&self) -> &TlsPolicy {
        &self.policy
    }

    /// As it is now.
    pub fn current(&self) -> Arc<Credentials> {
        self.shown.borrow().clone()
    }

    /// Waits until it is another than at the last call of this or of [`Kept::ready`].
    pub async fn changed(&mut self) {
        if self.shown.changed().await.is_err() {
            // Its keeper is gone: it stays.
            std::future::pending::<()>().await;
        }
        self.shown.mark_unchanged();
    }

    /// Waits until there is something to show and somebody to believe.
    pub async fn ready(&mut self) -> Arc<Credentials> {
        loop {
            let now = self.shown.borrow_and_update().clone();
            if now.shown().is_ok() {
                return now;
            }
            self.changed().await;
        }
    }

    /// The TLS configuration of a listener, always made of what is current, until `shutdown`. Nobody gets in before there is a
    /// certificate, nor without one of his own.
    pub fn serving(
        &self,
        alpn: &'static [&'static [u8]],
        shutdown: CancellationToken,
    ) -> Result<Arc<ArcSwap<rustls::ServerConfig>>, PkiError> {
        let now = self.current().server_config(&self.policy, alpn);
        let serving = Arc::new(ArcSwap::new(match now {
            Ok(config) => config,
            Err(_) => yurt_pki::server_config_without_certificate()?,
        }));
        let (mut kept, used) = (self.clone(), serving.clone());
        kept.shown.mark_changed();
        tokio::spawn(shutdown.run_until_cancelled_owned(async move {
            loop {
                kept.changed().await;
                match kept.current().server_config(&kept.policy, alpn) {
                    Ok(config) => used.store(config),
                    Err(error) => {
                        tracing::warn!(%error, "the certificate before goes on being served")
                    }
                }
            }
        }));
        Ok(serving)
    }
}

/// Whether a connection for which one certificate was shown is to be made anew with the current one, so that it need not break when the
/// former ends. Not at once: what is open on it goes on for as long as it can.
pub(crate) fn is_aged(shown: Option<&Leaf>, current: Option<&Leaf>, now: i64) -> bool {
    let (Some(shown), Some(current)) = (shown, current) else {
        return false;
    };
    current.not_after > shown.not_after && now >= renewal::renew_at(shown, 1.0)
}

#[cfg(test)]
mod tests;
