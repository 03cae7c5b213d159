//! The tunnel's certificates: had by CSR, or from files, kept current in both cases and put to use without a restart.
//!
//! There are three identities ([`Identity`]), each with files of its own. What a certificate must say is in [`shape`]; [`keep`] has
//! it signed and renews it, [`follow_files`] reads it where somebody else keeps it. Both give a [`Kept`]: what to show and whom to
//! believe at the moment.

mod files;
mod keeper;
mod metrics;
pub mod shape;

pub use files::{GivenFiles, follow_files};
pub use keeper::{Keeping, keep};
pub use metrics::CertificateMetrics;
pub use shape::Identity;

use arc_swap::ArcSwap;
use std::sync::Arc;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use yurt_pki::{Callers, PkiError, store::Pair};

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
        let pair = self.shown()?;
        let mut config =
            rustls::ClientConfig::clone(&*yurt_pki::client_config(&self.ca, Some(&pair.pem), &[])?);
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        Ok(Arc::new(config))
    }

    /// A TLS server that lets nobody in without a certificate of the CA.
    pub fn server_config(&self, alpn: &[&[u8]]) -> Result<Arc<rustls::ServerConfig>, PkiError> {
        let pair = self.shown()?;
        let callers = Callers::Certified(&self.ca);
        let mut config =
            rustls::ServerConfig::clone(&*yurt_pki::server_config_for(&pair.pem, callers, false)?);
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        Ok(Arc::new(config))
    }

    fn shown(&self) -> Result<&Pair, PkiError> {
        let missing = |what: &str| PkiError::Invalid {
            what: what.to_owned(),
            why: "there is none yet".to_owned(),
        };
        if self.ca.is_empty() {
            return Err(missing("CA"));
        }
        self.pair.as_ref().ok_or_else(|| missing("certificate"))
    }
}

/// A certificate that somebody keeps current.
#[derive(Clone, Debug)]
pub struct Kept {
    shown: watch::Receiver<Arc<Credentials>>,
}

impl Kept {
    /// One that stays as it is.
    pub fn fixed(credentials: Credentials) -> Self {
        Self {
            shown: watch::channel(Arc::new(credentials)).1,
        }
    }

    /// One as its keeper shows it.
    pub(crate) fn following(shown: watch::Receiver<Arc<Credentials>>) -> Self {
        Self { shown }
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
        let now = self.current().server_config(alpn);
        let serving = Arc::new(ArcSwap::new(match now {
            Ok(config) => config,
            Err(_) => yurt_pki::server_config_without_certificate()?,
        }));
        let (mut kept, used) = (self.clone(), serving.clone());
        kept.shown.mark_changed();
        tokio::spawn(shutdown.run_until_cancelled_owned(async move {
            loop {
                kept.changed().await;
                match kept.current().server_config(alpn) {
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

#[cfg(test)]
mod tests;
