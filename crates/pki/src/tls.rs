//! TLS configurations.

use crate::{KeyPairPem, PkiError, TlsPolicy, identity_of};
use rustls::{
    ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme,
    client::{
        Resumption, WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::CryptoProvider,
    server::{ClientHello, NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier},
    sign::CertifiedKey,
    version::{TLS12, TLS13},
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject};
use std::{sync::Arc, time::Duration};

/// Named everywhere: with two providers in one binary the implicit default panics.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// Reads `CERTIFICATE` blocks of a PEM text to DER; at least one must be there.
pub fn certs_from_pem(pem: &str) -> Result<Vec<CertificateDer<'static>>, PkiError> {
    let certificates = CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| PkiError::invalid("certificate PEM", error))?;
    if certificates.is_empty() {
        return Err(PkiError::invalid(
            "certificate PEM",
            "no block CERTIFICATE in it",
        ));
    }
    Ok(certificates)
}

fn key_from_pem(pem: &str) -> Result<PrivateKeyDer<'static>, PkiError> {
    PrivateKeyDer::from_pem_slice(pem.as_bytes())
        .map_err(|error| PkiError::invalid("private key PEM", error))
}

fn roots(ca: &str) -> Result<Arc<RootCertStore>, PkiError> {
    let mut roots = RootCertStore::empty();
    for certificate in certs_from_pem(ca)? {
        roots
            .add(certificate)
            .map_err(|error| PkiError::invalid("CA certificate", error))?;
    }
    Ok(Arc::new(roots))
}

/// What a TLS server wants of its clients.
#[derive(Clone, Copy, Debug)]
pub enum Callers<'a> {
    /// No certificate is asked for.
    Unasked,
    /// A certificate is asked for and, when given, must verify against this CA bundle (PEM); a client without one is let in
    /// (bearer token or anonymous).
    Invited(&'a str),
    /// Nobody gets in without a certificate of this CA bundle (PEM).
    Certified(&'a str),
}

/// [`server_config_for`] of [`Callers::Invited`], or [`Callers::Unasked`] without a CA.
pub fn server_config(
    own: &KeyPairPem,
    client_ca: Option<&str>,
    alpn_h2: bool,
) -> Result<Arc<ServerConfig>, PkiError> {
    let callers = client_ca.map_or(Callers::Unasked, Callers::Invited);
    server_config_for(own, callers, alpn_h2)
}

/// [`server_config_under`] the usual policy.
pub fn server_config_for(
    own: &KeyPairPem,
    callers: Callers<'_>,
    alpn_h2: bool,
) -> Result<Arc<ServerConfig>, PkiError> {
    server_config_under(&TlsPolicy::default(), own, callers, alpn_h2)
}

/// A TLS server configuration (ALPN h2 when wanted, http/1.1). No session tickets: identity must never outlive a rotation.
pub fn server_config_under(
    policy: &TlsPolicy,
    own: &KeyPairPem,
    callers: Callers<'_>,
    alpn_h2: bool,
) -> Result<Arc<ServerConfig>, PkiError> {
    let invalid = |error: rustls::Error| PkiError::invalid("server certificate", error);
    let verifier = |ca| {
        Ok::<_, PkiError>(WebPkiClientVerifier::builder_with_provider(
            roots(ca)?,
            provider(),
        ))
    };
    let unusable = |error| PkiError::invalid("client CA", error);
    let builder = server_builder(policy)?;
    let builder = match callers {
        Callers::Unasked => builder.with_no_client_auth(),
        Callers::Invited(ca) => builder.with_client_cert_verifier(
            verifier(ca)?
                .allow_unauthenticated()
                .build()
                .map_err(unusable)?,
        ),
        Callers::Certified(ca) => {
            builder.with_client_cert_verifier(verifier(ca)?.build().map_err(unusable)?)
        }
    };
    let mut config = builder
        .with_single_cert(certs_from_pem(&own.cert)?, key_from_pem(&own.key)?)
        .map_err(invalid)?;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    if alpn_h2 {
        config.alpn_protocols.push(b"h2".to_vec());
    }
    config.alpn_protocols.push(b"http/1.1".to_vec());
    Ok(Arc::new(config))
}

fn server_builder(
    policy: &TlsPolicy,
) -> Result<rustls::ConfigBuilder<ServerConfig, rustls::WantsVerifier>, PkiError> {
    ServerConfig::builder_with_provider(policy.provider())
        .with_protocol_versions(&policy.versions())
        .map_err(|error| PkiError::invalid("server certificate", error))
}

/// A TLS server that has no certificate yet: every handshake fails.
pub fn server_config_without_certificate() -> Result<Arc<ServerConfig>, PkiError> {
    #[derive(Debug)]
    struct Nothing;
    impl ResolvesServerCert for Nothing {
        fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
            None
        }
    }
    let config = server_builder(&TlsPolicy::default())?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(Nothing));
    Ok(Arc::new(config))
}

/// A TLS client that has no CA yet: it believes no server.
pub fn distrustful_client_config() -> Result<Arc<ClientConfig>, PkiError> {
    let config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13, &TLS12])
        .map_err(|error| PkiError::invalid("client certificate", error))?
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    Ok(Arc::new(config))
}

/// A TLS client configuration that takes whatever certificate the server shows: the peer is not verified. For callers who said so.
pub fn unverified_client_config(own: Option<&KeyPairPem>) -> Result<Arc<ClientConfig>, PkiError> {
    let invalid = |error: rustls::Error| PkiError::invalid("client certificate", error);
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13, &TLS12])
        .map_err(invalid)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Unverified(provider())));
    let mut config = match own {
        None => builder.with_no_client_auth(),
        Some(own) => builder
            .with_client_auth_cert(certs_from_pem(&own.cert)?, key_from_pem(&own.key)?)
            .map_err(invalid)?,
    };
    config.resumption = Resumption::disabled();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// As [`client_config`], for a server that must moreover be `user`: the common name of its certificate.
pub fn client_config_for(
    ca: &str,
    own: &KeyPairPem,
    user: &str,
    alpn: &[&str],
) -> Result<Arc<ClientConfig>, PkiError> {
    let mut config = ClientConfig::clone(&*client_config(ca, Some(own), alpn)?);
    let usual = WebPkiServerVerifier::builder_with_provider(roots(ca)?, provider())
        .build()
        .map_err(|error| PkiError::invalid("CA certificate", error))?;
    config.dangerous().set_certificate_verifier(Arc::new(Named {
        usual,
        user: user.to_owned(),
    }));
    Ok(Arc::new(config))
}

/// Whether clients that trust `ca` (PEM) would believe a server with this certificate (PEM, with chain) under a name, at a time in
/// seconds since the epoch.
pub fn verify_server(ca: &str, certificate: &str, name: &str, at: i64) -> Result<(), PkiError> {
    let invalid = |error: &dyn std::fmt::Display| PkiError::invalid("server certificate", error);
    let verifier = WebPkiServerVerifier::builder_with_provider(roots(ca)?, provider())
        .build()
        .map_err(|error| PkiError::invalid("CA certificate", error))?;
    let chain = certs_from_pem(certificate)?;
    let (own, intermediates) = chain
        .split_first()
        .ok_or_else(|| invalid(&"no block CERTIFICATE in it"))?;
    let name = ServerName::try_from(name.to_owned()).map_err(|error| invalid(&error))?;
    let at = UnixTime::since_unix_epoch(Duration::from_secs(at.max(0).unsigned_abs()));
    verifier
        .verify_server_cert(own, intermediates, &name, &[], at)
        .map_err(|error| invalid(&error))?;
    Ok(())
}

/// Checks what is always checked, and then whose the certificate is.
#[derive(Debug)]
struct Named {
    usual: Arc<WebPkiServerVerifier>,
    user: String,
}

impl ServerCertVerifier for Named {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let verified =
            self.usual
                .verify_server_cert(certificate, intermediates, name, ocsp, now)?;
        match identity_of(certificate) {
            Ok(identity) if identity.user == self.user => Ok(verified),
            _ => Err(rustls::CertificateError::ApplicationVerificationFailure.into()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.usual.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.usual.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.usual.supported_verify_schemes()
    }
}

/// Checks that the peer holds the key of its certificate, and nothing about the certificate.
#[derive(Debug)]
struct Unverified(Arc<CryptoProvider>);

impl ServerCertVerifier for Unverified {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// A TLS client configuration that trusts `ca` only, with an optional client certificate, no resumption. `alpn` is the protocols to
/// offer, best first (`h2`, `http/1.1`).
pub fn client_config(
    ca: &str,
    own: Option<&KeyPairPem>,
    alpn: &[&str],
) -> Result<Arc<ClientConfig>, PkiError> {
    let invalid = |error: rustls::Error| PkiError::invalid("client certificate", error);
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13, &TLS12])
        .map_err(invalid)?
        .with_root_certificates(roots(ca)?);
    let mut config = match own {
        None => builder.with_no_client_auth(),
        Some(own) => builder
            .with_client_auth_cert(certs_from_pem(&own.cert)?, key_from_pem(&own.key)?)
            .map_err(invalid)?,
    };
    config.resumption = Resumption::disabled();
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    Ok(Arc::new(config))
}
