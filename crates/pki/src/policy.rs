//! Which versions and cipher suites of TLS a listener speaks, under the names that Kubernetes' flags have for them.

use rustls::{
    CipherSuite, SupportedProtocolVersion,
    crypto::CryptoProvider,
    version::{TLS12, TLS13},
};
use std::{str::FromStr, sync::Arc};

/// Suites of TLS 1.2 that are spoken, by Go's names. Those of TLS 1.3 cannot be chosen: as in Go, they are all spoken.
const SUITES: [(&str, CipherSuite); 8] = [
    (
        "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256",
        CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
    ),
    (
        "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384",
        CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
    ),
    (
        "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256",
        CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
    ),
    (
        "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305",
        CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
    ),
    (
        "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",
        CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
    ),
    (
        "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384",
        CipherSuite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
    ),
    (
        "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256",
        CipherSuite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
    ),
    (
        "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305",
        CipherSuite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
    ),
];

/// Suites of TLS 1.3, by Go's names.
const ALWAYS: [&str; 3] = [
    "TLS_AES_128_GCM_SHA256",
    "TLS_AES_256_GCM_SHA384",
    "TLS_CHACHA20_POLY1305_SHA256",
];

/// The oldest version of TLS that is spoken. Older ones than 1.2 never are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TlsVersion {
    /// TLS 1.2.
    #[default]
    Tls12,
    /// TLS 1.3.
    Tls13,
}

/// A name of Kubernetes' flags that means nothing that can be spoken. Whoever wrote the flag is at fault.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnknownTls {
    /// Of `--tls-min-version`.
    #[error("{0:?} is no version of TLS that is spoken here: VersionTLS12 or VersionTLS13")]
    Version(String),
    /// Of `--cipher-suites`.
    #[error(
        "{0:?} is no cipher suite that is spoken here: TLS_ECDHE_{{ECDSA,RSA}}_WITH_{{AES_128_GCM_SHA256,AES_256_GCM_SHA384,CHACHA20_POLY1305_SHA256}}; those of TLS 1.3 are always"
    )]
    Suite(String),
}

impl FromStr for TlsVersion {
    type Err = UnknownTls;

    fn from_str(text: &str) -> Result<Self, UnknownTls> {
        match text {
            "VersionTLS12" => Ok(Self::Tls12),
            "VersionTLS13" => Ok(Self::Tls13),
            other => Err(UnknownTls::Version(other.to_owned())),
        }
    }
}

/// A cipher suite, by Go's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TlsSuite(Option<CipherSuite>);

impl FromStr for TlsSuite {
    type Err = UnknownTls;

    fn from_str(text: &str) -> Result<Self, UnknownTls> {
        if ALWAYS.contains(&text) {
            return Ok(Self(None));
        }
        let known = SUITES.iter().find(|(name, _)| *name == text);
        let (_, suite) = known.ok_or_else(|| UnknownTls::Suite(text.to_owned()))?;
        Ok(Self(Some(*suite)))
    }
}

/// What a listener speaks; by default TLS 1.2 and 1.3 with all suites that are not known to be weak.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsPolicy {
    /// Nothing older.
    pub minimum: TlsVersion,
    /// With TLS 1.2 only these; empty: all. When none of them is of TLS 1.2, that is not spoken.
    pub suites: Vec<TlsSuite>,
}

impl TlsPolicy {
    pub(crate) fn versions(&self) -> Vec<&'static SupportedProtocolVersion> {
        let no_older = !self.suites.is_empty() && self.suites.iter().all(|suite| suite.0.is_none());
        match self.minimum {
            TlsVersion::Tls12 if !no_older => vec![&TLS13, &TLS12],
            _ => vec![&TLS13],
        }
    }

    pub(crate) fn provider(&self) -> Arc<CryptoProvider> {
        let mut provider = rustls::crypto::ring::default_provider();
        if !self.suites.is_empty() {
            provider.cipher_suites.retain(|suite| {
                suite.tls13().is_some() || self.suites.contains(&TlsSuite(Some(suite.suite())))
            });
        }
        Arc::new(provider)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Ca, Callers, Profile, server_config_under};

    #[test]
    fn names_are_kubernetes() {
        assert_eq!("VersionTLS12".parse(), Ok(TlsVersion::Tls12));
        assert_eq!("VersionTLS13".parse(), Ok(TlsVersion::Tls13));
        for wrong in [
            "",
            "VersionTLS10",
            "VersionTLS11",
            "1.3",
            "versiontls13",
            "true",
        ] {
            assert!(wrong.parse::<TlsVersion>().is_err(), "{wrong}");
        }
        for wrong in [
            "",
            "TLS_RSA_WITH_AES_128_CBC_SHA",
            "ECDHE-RSA-AES128-GCM-SHA256",
        ] {
            assert!(wrong.parse::<TlsSuite>().is_err(), "{wrong}");
        }
    }

    /// The suite and version that a client who knows everything ends up with.
    fn spoken(
        policy: &TlsPolicy,
        versions: &[&'static SupportedProtocolVersion],
    ) -> Option<(CipherSuite, bool)> {
        let ca = Ca::new("test", 1).unwrap();
        let own = ca
            .issue(&Profile {
                common_name: "a".into(),
                dns: vec!["a".into()],
                server: true,
                days: 1,
                ..Profile::default()
            })
            .unwrap();
        let server = server_config_under(policy, &own, Callers::Unasked, false).unwrap();
        let mut roots = rustls::RootCertStore::empty();
        roots
            .add(crate::certs_from_pem(&ca.cert_pem()).unwrap().remove(0))
            .unwrap();
        let client = rustls::ClientConfig::builder_with_provider(TlsPolicy::default().provider())
            .with_protocol_versions(versions)
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let mut client =
            rustls::ClientConnection::new(Arc::new(client), "a".try_into().unwrap()).unwrap();
        let mut server = rustls::ServerConnection::new(server).unwrap();
        while client.is_handshaking() || server.is_handshaking() {
            let mut wire = Vec::new();
            client.write_tls(&mut wire).unwrap();
            server.read_tls(&mut wire.as_slice()).unwrap();
            server.process_new_packets().ok()?;
            let mut wire = Vec::new();
            server.write_tls(&mut wire).unwrap();
            client.read_tls(&mut wire.as_slice()).unwrap();
            client.process_new_packets().ok()?;
        }
        let suite = server.negotiated_cipher_suite()?;
        Some((suite.suite(), suite.tls13().is_some()))
    }

    #[test]
    fn what_is_not_wanted_is_not_spoken() {
        let only = |minimum: &str, suites: &[&str]| TlsPolicy {
            minimum: minimum.parse().unwrap(),
            suites: suites.iter().map(|name| name.parse().unwrap()).collect(),
        };
        let usual = TlsPolicy::default();
        assert!(spoken(&usual, &[&TLS12]).is_some() && spoken(&usual, &[&TLS13]).is_some());
        let strict = only("VersionTLS13", &[]);
        assert_eq!(spoken(&strict, &[&TLS12]), None);
        assert!(spoken(&strict, &[&TLS12, &TLS13]).unwrap().1);
        let one = only("VersionTLS12", &["TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305"]);
        let chosen = CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256;
        assert_eq!(spoken(&one, &[&TLS12]), Some((chosen, false)));
        assert!(spoken(&one, &[&TLS13]).is_some());
        let none = only("VersionTLS12", &["TLS_AES_128_GCM_SHA256"]);
        assert_eq!(spoken(&none, &[&TLS12]), None);
        assert!(spoken(&none, &[&TLS13]).is_some());
        // For keys that the certificate here does not have.
        assert_eq!(
            spoken(
                &only("VersionTLS12", &["TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256"]),
                &[&TLS12]
            ),
            None
        );
    }
}
