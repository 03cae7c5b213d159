//! Certificate authority, certificates, and the TLS configurations made of them.
//!
//! Identities follow Kubernetes: the common name of a client certificate is the user, each organization a group. Keys are ECDSA P-256;
//! keys made elsewhere (PKCS#8, PKCS#1, SEC 1; RSA too) are read. Nothing here resumes TLS sessions: a resumed session keeps the
//! identity of the old certificate after a rotation.

mod authority;
mod identity;
mod key;
mod leaf;
mod policy;
pub mod renewal;
mod request;
pub mod store;
mod tls;

pub use authority::{BACKDATE, Ca};
pub use identity::{Identity, identity_of, not_after};
pub use key::{KeyPem, key_pem};
pub use leaf::{Leaf, public_key_digest};
pub use policy::{TlsPolicy, TlsSuite, TlsVersion, UnknownTls};
pub use request::{Request, SigningRequest, UnknownUsages, Usages, request};
pub use tls::{
    Callers, certs_from_pem, client_config, client_config_for, distrustful_client_config,
    server_config, server_config_for, server_config_under, server_config_without_certificate,
    unverified_client_config, verify_server,
};

use std::{net::IpAddr, path::Path};

/// What can go wrong.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A file could not be read.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// Something given does not fit: a broken PEM, a key of another certificate, a name that cannot be encoded.
    #[error("{what}: {why}")]
    Invalid {
        /// What was given.
        what: String,
        /// What is wrong with it.
        why: String,
    },
}

impl PkiError {
    pub(crate) fn invalid(what: impl Into<String>, why: impl ToString) -> Self {
        Self::Invalid {
            what: what.into(),
            why: why.to_string(),
        }
    }
}

/// PEM of a certificate (with chain) and its private key. What [`Ca::issue`] makes is PKCS#8; PKCS#1 and SEC 1 are accepted too.
#[derive(Clone, PartialEq, Eq)]
pub struct KeyPairPem {
    /// The certificate, then its intermediates.
    pub cert: String,
    /// The private key.
    pub key: String,
}

impl KeyPairPem {
    /// Reads a certificate file and a key file; they may be the same file.
    pub fn read(cert: &Path, key: &Path) -> Result<Self, PkiError> {
        let text = |path: &Path| {
            std::fs::read_to_string(path).map_err(|source| PkiError::Io {
                path: path.display().to_string(),
                source,
            })
        };
        Ok(Self {
            cert: text(cert)?,
            key: text(key)?,
        })
    }
}

impl std::fmt::Debug for KeyPairPem {
    /// Leaves the private key out.
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("KeyPairPem")
            .field("cert", &self.cert)
            .finish_non_exhaustive()
    }
}

/// What a certificate is for.
#[derive(Clone, Debug, Default)]
pub struct Profile {
    /// CN.
    pub common_name: String,
    /// O, repeated.
    pub organizations: Vec<String>,
    /// DNS names.
    pub dns: Vec<String>,
    /// IP addresses.
    pub ips: Vec<IpAddr>,
    /// clientAuth.
    pub client: bool,
    /// serverAuth.
    pub server: bool,
    /// Days of validity, at least 1.
    pub days: u32,
}
