//! CA, CSRs, certificates, and TLS configurations that follow certificates on disk.

use std::net::IpAddr;

/// What can go wrong.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum PkiError {
    #[error("{path}: {source}")]
    Io {
        path: String,
        source: std::io::Error,
    },
    #[error("{what}: {why}")]
    Invalid { what: String, why: String },
}

/// PEM of a certificate (with chain) and its private key (PKCS#8).
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct KeyPairPem {
    pub cert: String,
    pub key: String,
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
    /// Days of validity.
    pub days: u32,
}

/// A certificate authority.
#[derive(Debug)]
pub struct Ca {/* private */}

impl Ca {
    /// A new self-signed CA (ECDSA P-256).
    pub fn new(_common_name: &str, _days: u32) -> Result<Self, PkiError> {
        unimplemented!()
    }
    /// From PEM.
    pub fn from_pem(_pem: &KeyPairPem) -> Result<Self, PkiError> {
        unimplemented!()
    }
    /// As PEM.
    pub fn to_pem(&self) -> KeyPairPem {
        unimplemented!()
    }
    /// The CA certificate as PEM.
    pub fn cert_pem(&self) -> String {
        unimplemented!()
    }
    /// A fresh key and certificate. Repeated organizations are kept (they are Kubernetes groups).
    pub fn issue(&self, _profile: &Profile) -> Result<KeyPairPem, PkiError> {
        unimplemented!()
    }
}

/// Who a verified certificate says its bearer is: CN and O, as Kubernetes reads them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Identity {
    pub user: String,
    pub groups: Vec<String>,
}

/// Reads the identity of a DER certificate.
pub fn identity_of(_der: &[u8]) -> Result<Identity, PkiError> {
    unimplemented!()
}
/// Seconds since the epoch when a DER certificate ends.
pub fn not_after(_der: &[u8]) -> Result<i64, PkiError> {
    unimplemented!()
}
/// Reads `CERTIFICATE` blocks of a PEM text to DER.
pub fn certs_from_pem(
    _pem: &str,
) -> Result<Vec<rustls_pki_types::CertificateDer<'static>>, PkiError> {
    unimplemented!()
}

/// A TLS server configuration (ALPN h2, http/1.1). `client_ca`: client certificates are asked for and, when given,
/// must verify against it; a client without one is let in (bearer token or anonymous). No session tickets: identity must never
/// outlive a rotation.
pub fn server_config(
    _own: &KeyPairPem,
    _client_ca: Option<&str>,
    _alpn_h2: bool,
) -> Result<std::sync::Arc<rustls::ServerConfig>, PkiError> {
    unimplemented!()
}
/// A TLS client configuration that trusts `ca` only, with an optional client certificate, no resumption.
pub fn client_config(
    _ca: &str,
    _own: Option<&KeyPairPem>,
    _alpn: &[&str],
) -> Result<std::sync::Arc<rustls::ClientConfig>, PkiError> {
    unimplemented!()
}
