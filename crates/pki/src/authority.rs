//! The certificate authority.

use crate::{KeyPairPem, PkiError, Profile, key::SigningKey};
use der::{
    Any, DecodePem, Encode, EncodePem,
    asn1::{Ia5String, ObjectIdentifier, OctetString, Utf8StringRef},
    flagset::FlagSet,
    pem::LineEnding,
};
use ring::rand::{SecureRandom, SystemRandom};
use std::{
    fmt,
    net::IpAddr,
    time::{Duration, SystemTime},
};
use x509_cert::{
    Certificate, TbsCertificate,
    attr::AttributeTypeAndValue,
    builder::{Builder, CertificateBuilder, profile::BuilderProfile},
    ext::{
        Extension, ToExtension,
        pkix::{
            AuthorityKeyIdentifier, BasicConstraints, ExtendedKeyUsage, KeyUsage, KeyUsages,
            SubjectAltName, SubjectKeyIdentifier, name::GeneralName,
        },
    },
    name::{Name, RdnSequence, RelativeDistinguishedName},
    serial_number::SerialNumber,
    spki::SubjectPublicKeyInfoRef,
    time::{Time, Validity},
};

const COMMON_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.3");
const ORGANIZATION: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.10");
const SERVER_AUTH: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.3.1");
const CLIENT_AUTH: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.3.2");
/// Certificates are valid this long before they are made: clocks of edge nodes are behind. The value is Kubernetes' own.
pub const BACKDATE: Duration = Duration::from_secs(5 * 60);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// A certificate authority.
pub struct Ca {
    certificate: Certificate,
    key: SigningKey,
    /// What issued certificates name as their authority's key.
    key_identifier: OctetString,
}

impl fmt::Debug for Ca {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Ca")
            .field(
                "subject",
                &self.certificate.tbs_certificate().subject().to_string(),
            )
            .finish_non_exhaustive()
    }
}

impl Ca {
    /// A new self-signed CA (ECDSA P-256).
    pub fn new(common_name: &str, days: u32) -> Result<Self, PkiError> {
        let what = || format!("CA {common_name:?}");
        let key = SigningKey::generate()?;
        let shape = Shape {
            subject: subject(common_name, &[]).map_err(|e| PkiError::invalid(what(), e))?,
            issuer: None,
            key_identifier: None,
            usage: KeyUsages::KeyCertSign | KeyUsages::CRLSign | KeyUsages::DigitalSignature,
            extensions: Vec::new(),
        };
        let certificate = sign(shape, &key, &key, days).map_err(|e| e.about(what()))?;
        Self::with(certificate, key)
    }

    /// From PEM. The key must be the certificate's, and the certificate a CA's.
    pub fn from_pem(pem: &KeyPairPem) -> Result<Self, PkiError> {
        let invalid = |why: String| PkiError::invalid("CA certificate", why);
        let first = first_certificate(&pem.cert)
            .ok_or_else(|| invalid("no PEM block CERTIFICATE".to_owned()))?;
        let certificate = Certificate::from_pem(first).map_err(|e| invalid(e.to_string()))?;
        let key = SigningKey::from_pem(&pem.key)?;
        let tbs = certificate.tbs_certificate();
        if tbs.subject_public_key_info().subject_public_key != key.public().subject_public_key {
            return Err(invalid("the key belongs to another certificate".to_owned()));
        }
        match tbs.get_extension::<BasicConstraints>() {
            Ok(Some((_, constraints))) if constraints.ca => Self::with(certificate, key),
            Ok(_) => Err(invalid("it may not sign certificates".to_owned())),
            Err(error) => Err(invalid(error.to_string())),
        }
    }

    pub(crate) fn certificate(&self) -> &Certificate {
        &self.certificate
    }

    pub(crate) fn key(&self) -> &SigningKey {
        &self.key
    }

    pub(crate) fn key_identifier(&self) -> &OctetString {
        &self.key_identifier
    }

    fn with(certificate: Certificate, key: SigningKey) -> Result<Self, PkiError> {
        let invalid = |error: der::Error| PkiError::invalid("CA certificate", error.to_string());
        let own = certificate
            .tbs_certificate()
            .get_extension::<SubjectKeyIdentifier>()
            .map_err(invalid)?;
        let key_identifier = match own {
            Some((_, identifier)) => identifier.0,
            None => {
                let der = key.public().to_der().map_err(invalid)?;
                let public = SubjectPublicKeyInfoRef::try_from(der.as_slice())
                    .map_err(|error| PkiError::invalid("CA certificate", error))?;
                SubjectKeyIdentifier::try_from(public).map_err(invalid)?.0
            }
        };
        Ok(Self {
            certificate,
            key,
            key_identifier,
        })
    }

    /// As PEM.
    pub fn to_pem(&self) -> KeyPairPem {
        KeyPairPem {
            cert: self.cert_pem(),
            key: self.key.pem().to_owned(),
        }
    }

    /// The CA certificate as PEM.
    pub fn cert_pem(&self) -> String {
        // A certificate that was decoded or signed can be encoded.
        self.certificate.to_pem(LineEnding::LF).unwrap_or_default()
    }

    /// A fresh key and certificate. Repeated organizations are kept (they are Kubernetes groups); serial numbers are random.
    pub fn issue(&self, profile: &Profile) -> Result<KeyPairPem, PkiError> {
        let what = || format!("certificate for {:?}", profile.common_name);
        let invalid = |error: der::Error| PkiError::invalid(what(), error);
        let key = SigningKey::generate()?;
        let subject = subject(&profile.common_name, &profile.organizations).map_err(invalid)?;
        let shape = Shape {
            subject,
            issuer: Some(self.certificate.tbs_certificate().subject().clone()),
            key_identifier: Some(self.key_identifier.clone()),
            usage: KeyUsages::DigitalSignature.into(),
            extensions: leaf_extensions(profile).map_err(invalid)?,
        };
        let certificate =
            sign(shape, &key, &self.key, profile.days).map_err(|e| e.about(what()))?;
        Ok(KeyPairPem {
            cert: certificate.to_pem(LineEnding::LF).map_err(invalid)?,
            key: key.pem().to_owned(),
        })
    }
}

/// `Certificate::from_pem` reads exactly one block.
fn first_certificate(pem: &str) -> Option<&str> {
    const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
    const END: &str = "-----END CERTIFICATE-----";
    let begin = pem.find(BEGIN)?;
    let end = begin + pem[begin..].find(END)? + END.len();
    Some(&pem[begin..end])
}

pub(crate) enum SignError {
    Days,
    Randomness,
    Encoding(der::Error),
    Building(x509_cert::builder::Error),
}

impl SignError {
    pub(crate) fn about(self, what: String) -> PkiError {
        match self {
            Self::Days => PkiError::invalid(what, "days of validity must be 1 to 36500"),
            Self::Randomness => PkiError::invalid(what, "the system gave no randomness"),
            Self::Encoding(error) => PkiError::invalid(what, error),
            Self::Building(error) => PkiError::invalid(what, error),
        }
    }
}

fn sign(
    shape: Shape,
    subject_key: &SigningKey,
    issuer_key: &SigningKey,
    days: u32,
) -> Result<Certificate, SignError> {
    if !(1..=36_500).contains(&days) {
        return Err(SignError::Days);
    }
    let now = SystemTime::now();
    let validity = Validity::new(
        Time::try_from(now - BACKDATE).map_err(SignError::Encoding)?,
        Time::try_from(now + DAY * days).map_err(SignError::Encoding)?,
    );
    let serial = random_serial()?;
    CertificateBuilder::new(shape, serial, validity, subject_key.public().clone())
        .and_then(|builder| builder.build::<_, crate::key::Signed>(issuer_key))
        .map_err(SignError::Building)
}

/// 127 random bits: positive and never shorter than expected, so that a renewal with the same key is another certificate.
pub(crate) fn random_serial() -> Result<SerialNumber, SignError> {
    let mut bytes = [0u8; 16];
    SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| SignError::Randomness)?;
    bytes[0] = bytes[0] & 0x7f | 0x40;
    SerialNumber::new(&bytes).map_err(SignError::Encoding)
}

/// O before CN as Go writes names, each organization in a set of its own, which keeps their order.
pub(crate) fn subject(common_name: &str, organizations: &[String]) -> Result<Name, der::Error> {
    let mut sequence = RdnSequence::default();
    let names = organizations
        .iter()
        .map(|organization| (ORGANIZATION, organization.as_str()))
        .chain([(COMMON_NAME, common_name)]);
    for (oid, value) in names {
        if value.is_empty() {
            continue;
        }
        let mut set = RelativeDistinguishedName::default();
        set.insert(AttributeTypeAndValue {
            oid,
            value: Any::encode_from(&Utf8StringRef::new(value)?)?,
        })?;
        sequence.push(set);
    }
    // "Hazardous" because a public CA must not repeat attributes; Kubernetes groups do.
    Ok(Name::hazmat_from_rdn_sequence(sequence))
}

/// The names that a certificate is for.
pub(crate) fn alternative_names(profile: &Profile) -> Result<Vec<GeneralName>, der::Error> {
    let dns = profile
        .dns
        .iter()
        .map(|name| Ia5String::new(name).map(GeneralName::DnsName));
    let ips = profile
        .ips
        .iter()
        .map(|ip: &IpAddr| Ok(GeneralName::from(*ip)));
    dns.chain(ips).collect()
}

fn leaf_extensions(profile: &Profile) -> Result<Vec<Extension>, der::Error> {
    let mut extensions = Vec::new();
    let mut add = |extension: Result<Extension, der::Error>| {
        extension.map(|extension| extensions.push(extension))
    };
    let nobody = Name::default();
    let usages = [(profile.server, SERVER_AUTH), (profile.client, CLIENT_AUTH)];
    let usages: Vec<ObjectIdentifier> = usages
        .into_iter()
        .filter_map(|(wanted, usage)| wanted.then_some(usage))
        .collect();
    if !usages.is_empty() {
        add((&ExtendedKeyUsage(usages)).to_extension(&nobody, &[]))?;
    }
    let names = alternative_names(profile)?;
    if !names.is_empty() {
        add((&SubjectAltName(names)).to_extension(&nobody, &[]))?;
    }
    Ok(extensions)
}

/// Names and extensions of a certificate to be signed.
pub(crate) struct Shape {
    pub(crate) subject: Name,
    /// `None`: a self-signed CA.
    pub(crate) issuer: Option<Name>,
    pub(crate) key_identifier: Option<OctetString>,
    pub(crate) usage: FlagSet<KeyUsages>,
    pub(crate) extensions: Vec<Extension>,
}

impl BuilderProfile for Shape {
    fn get_issuer(&self, subject: &Name) -> Name {
        self.issuer.clone().unwrap_or_else(|| subject.clone())
    }

    fn get_subject(&self) -> Name {
        self.subject.clone()
    }

    fn build_extensions(
        &self,
        own_key: SubjectPublicKeyInfoRef<'_>,
        _: SubjectPublicKeyInfoRef<'_>,
        _: &TbsCertificate,
    ) -> x509_cert::builder::Result<Vec<Extension>> {
        let ca = self.issuer.is_none();
        let nobody = Name::default();
        let constraints = BasicConstraints {
            ca,
            path_len_constraint: None,
        };
        let mut extensions = vec![
            (&constraints).to_extension(&nobody, &[])?,
            (&KeyUsage(self.usage)).to_extension(&nobody, &[])?,
            (&SubjectKeyIdentifier::try_from(own_key)?).to_extension(&nobody, &[])?,
        ];
        if let Some(identifier) = &self.key_identifier {
            let authority = AuthorityKeyIdentifier {
                key_identifier: Some(identifier.clone()),
                ..Default::default()
            };
            extensions.push((&authority).to_extension(&nobody, &[])?);
        }
        extensions.extend(self.extensions.iter().cloned());
        Ok(extensions)
    }
}
