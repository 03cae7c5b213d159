//! What a certificate says: whose it is, for which names, from when until when.

use crate::{
    Identity, PkiError,
    identity::{identity_in, parse},
    request::ip,
};
use ring::digest::{SHA256, digest};
use std::net::IpAddr;
use x509_parser::extensions::GeneralName;

/// The contents of a certificate that decide whether it can be used, and when it is to be renewed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Leaf {
    /// CN and O.
    pub identity: Identity,
    /// Seconds since the epoch from which it is valid.
    pub not_before: i64,
    /// Seconds since the epoch until which it is valid.
    pub not_after: i64,
    /// DNS names it is for.
    pub dns: Vec<String>,
    /// Addresses it is for.
    pub ips: Vec<IpAddr>,
}

impl Leaf {
    /// Reads a DER certificate. The subject may be empty.
    pub fn of(der: &[u8]) -> Result<Self, PkiError> {
        let certificate = parse(der)?;
        let mut leaf = Self {
            identity: identity_in(certificate.subject())?,
            not_before: certificate.validity().not_before.timestamp(),
            not_after: certificate.validity().not_after.timestamp(),
            ..Self::default()
        };
        let names = certificate
            .subject_alternative_name()
            .map_err(|error| PkiError::invalid("certificate", error))?;
        for name in names.iter().flat_map(|names| &names.value.general_names) {
            match name {
                GeneralName::DNSName(name) => leaf.dns.push((*name).to_owned()),
                GeneralName::IPAddress(bytes) => leaf.ips.extend(ip(bytes)),
                _ => {}
            }
        }
        Ok(leaf)
    }
}

/// SHA-256 of a DER certificate's public key (SubjectPublicKeyInfo), by which kubeadm pins CAs (RFC 7469).
pub fn public_key_digest(der: &[u8]) -> Result<[u8; 32], PkiError> {
    let certificate = parse(der)?;
    let digest = digest(&SHA256, certificate.public_key().raw);
    digest
        .as_ref()
        .try_into()
        .map_err(|_| PkiError::invalid("certificate", "no SHA-256"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Ca, Profile, certs_from_pem};

    #[test]
    fn a_leaf_tells_what_was_issued() {
        let ca = Ca::new("test", 10).expect("a CA");
        let profile = Profile {
            common_name: "system:node:edge-1".into(),
            organizations: vec!["openyurt:yurthub".into(), "system:nodes".into()],
            dns: vec!["kubernetes".into()],
            ips: vec![[10, 0, 0, 7].into(), "fd00::1".parse().expect("an address")],
            server: true,
            days: 3,
            ..Profile::default()
        };
        let pair = ca.issue(&profile).expect("issued");
        let der = certs_from_pem(&pair.cert).expect("PEM").remove(0);
        let leaf = Leaf::of(&der).expect("read");
        assert_eq!(leaf.identity.user, profile.common_name);
        assert_eq!(leaf.identity.groups, profile.organizations);
        assert_eq!((&leaf.dns, &leaf.ips), (&profile.dns, &profile.ips));
        assert_eq!(leaf.not_after - leaf.not_before, 3 * 24 * 3600 + 300);
        assert!(Leaf::of(&der[..der.len() - 1]).is_err());
        assert!(Leaf::of(b"").is_err());
    }

    /// The hash was made with `openssl x509 -pubkey | openssl pkey -pubin -outform der | sha256sum`.
    #[test]
    fn the_pin_of_a_ca_is_openssls() {
        const CA: &str = include_str!("leaf/ca.pem");
        let der = certs_from_pem(CA).expect("PEM").remove(0);
        let digest = public_key_digest(&der).expect("a digest");
        let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, include_str!("leaf/ca.sha256").trim());
    }
}
