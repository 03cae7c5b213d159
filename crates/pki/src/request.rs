//! Requests for certificates (PKCS#10) and what is signed on them.

use crate::{
    Ca, PkiError, Profile,
    authority::{self, Shape, random_serial},
    identity::{Identity, identity_in},
    key::{Signed, SigningKey},
};
use der::{
    Decode, Encode, EncodePem,
    asn1::{Ia5String, ObjectIdentifier},
    flagset::FlagSet,
    oid::AssociatedOid,
    pem::{self, LineEnding},
};
use std::{fmt, net::IpAddr, time::SystemTime};
use x509_cert::{
    builder::{Builder, CertificateBuilder, RequestBuilder},
    ext::{
        Extension, ToExtension,
        pkix::{ExtendedKeyUsage, KeyUsages, SubjectAltName, name::GeneralName},
    },
    name::Name,
    request::{CertReq, ExtensionReq},
    time::{Time, Validity},
};
use x509_parser::{certification_request::X509CertificationRequest, prelude::FromDer};

/// The longest request that is read, in bytes of PEM.
const MOST: usize = 256 << 10;

/// A request whose signature is its key's.
#[derive(Clone, Debug)]
pub struct SigningRequest {
    request: CertReq,
    /// The subject: CN and all O.
    pub subject: Identity,
    /// DNS names wanted.
    pub dns: Vec<String>,
    /// IP addresses wanted.
    pub ips: Vec<IpAddr>,
    /// Mail addresses wanted.
    pub emails: Vec<String>,
    /// URIs wanted.
    pub uris: Vec<String>,
}

fn invalid(error: impl std::fmt::Display) -> PkiError {
    PkiError::invalid("certificate request", error.to_string())
}

impl SigningRequest {
    /// Reads a PEM block `CERTIFICATE REQUEST` and checks its signature.
    pub fn from_pem(text: &str) -> Result<Self, PkiError> {
        if text.len() > MOST {
            return Err(invalid("longer than 256 KiB"));
        }
        let (label, der) = pem::decode_vec(text.trim().as_bytes()).map_err(invalid)?;
        if !matches!(label, "CERTIFICATE REQUEST" | "NEW CERTIFICATE REQUEST") {
            return Err(invalid("PEM block type must be CERTIFICATE REQUEST"));
        }
        let (_, parsed) = X509CertificationRequest::from_der(&der).map_err(invalid)?;
        parsed.verify_signature().map_err(invalid)?;
        let subject = identity_in(&parsed.certification_request_info.subject)?;
        let request = CertReq::from_der(&der).map_err(invalid)?;
        let mut this = Self {
            request,
            subject,
            dns: Vec::new(),
            ips: Vec::new(),
            emails: Vec::new(),
            uris: Vec::new(),
        };
        for name in alternative_names(&this.request).map_err(invalid)? {
            match name {
                GeneralName::DnsName(name) => this.dns.push(name.to_string()),
                GeneralName::Rfc822Name(name) => this.emails.push(name.to_string()),
                GeneralName::UniformResourceIdentifier(uri) => this.uris.push(uri.to_string()),
                GeneralName::IpAddress(bytes) => this.ips.push(
                    ip(bytes.as_bytes())
                        .ok_or_else(|| invalid("an IP address of a wrong length"))?,
                ),
                _ => {}
            }
        }
        Ok(this)
    }

    fn names(&self) -> Result<Vec<GeneralName>, der::Error> {
        let text = |names: &[String]| -> Result<Vec<Ia5String>, der::Error> {
            names.iter().map(Ia5String::new).collect()
        };
        let mut names: Vec<GeneralName> = text(&self.dns)?
            .into_iter()
            .map(GeneralName::DnsName)
            .collect();
        names.extend(text(&self.emails)?.into_iter().map(GeneralName::Rfc822Name));
        names.extend(self.ips.iter().map(|ip| GeneralName::from(*ip)));
        let uris = text(&self.uris)?;
        names.extend(uris.into_iter().map(GeneralName::UniformResourceIdentifier));
        Ok(names)
    }
}

pub(crate) fn ip(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(four) = <[u8; 4]>::try_from(bytes) {
        return Some(four.into());
    }
    <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from)
}

fn alternative_names(request: &CertReq) -> Result<Vec<GeneralName>, der::Error> {
    let mut names = Vec::new();
    let attributes = request.info.attributes.iter();
    for attribute in attributes.filter(|attribute| attribute.oid == ExtensionReq::OID) {
        for value in attribute.values.iter() {
            let extensions = ExtensionReq::from_der(&value.to_der()?)?;
            for extension in extensions.0 {
                if extension.extn_id == SubjectAltName::OID {
                    names.extend(SubjectAltName::from_der(extension.extn_value.as_bytes())?.0);
                }
            }
        }
    }
    Ok(names)
}

/// A fresh key and a request for its certificate.
#[derive(Clone)]
pub struct Request {
    /// `CERTIFICATE REQUEST`, PEM.
    pub request: String,
    /// `PRIVATE KEY`, PEM.
    pub key: String,
}

impl fmt::Debug for Request {
    /// Leaves the private key out.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Request")
            .field("request", &self.request)
            .finish_non_exhaustive()
    }
}

impl Request {
    /// Whether it asks for exactly the subject and names of a profile.
    pub fn asks_for(&self, wanted: &Profile) -> bool {
        SigningRequest::from_pem(&self.request).is_ok_and(|request| {
            request.subject.user == wanted.common_name
                && request.subject.groups == wanted.organizations
                && request.dns == wanted.dns
                && request.ips == wanted.ips
        })
    }
}

/// Makes a key and a request for the names of a profile. What the certificate is for, and for how long, is the signer's business.
pub fn request(profile: &Profile) -> Result<Request, PkiError> {
    let key = SigningKey::generate()?;
    let subject =
        authority::subject(&profile.common_name, &profile.organizations).map_err(invalid)?;
    let mut builder = RequestBuilder::new(subject).map_err(invalid)?;
    let names = authority::alternative_names(profile).map_err(invalid)?;
    if !names.is_empty() {
        builder
            .add_extension(&SubjectAltName(names))
            .map_err(invalid)?;
    }
    let request: CertReq = builder.build::<_, Signed>(&key).map_err(invalid)?;
    Ok(Request {
        request: request.to_pem(LineEnding::LF).map_err(invalid)?,
        key: key.pem().to_owned(),
    })
}

/// What a key is for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usages {
    key: FlagSet<KeyUsages>,
    extended: Vec<ObjectIdentifier>,
}

/// A usage that does not exist.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unrecognized usage values: {0:?}")]
pub struct UnknownUsages(pub Vec<String>);

const KEY_USAGES: [(&str, KeyUsages); 10] = [
    ("signing", KeyUsages::DigitalSignature),
    ("digital signature", KeyUsages::DigitalSignature),
    ("content commitment", KeyUsages::NonRepudiation),
    ("key encipherment", KeyUsages::KeyEncipherment),
    ("key agreement", KeyUsages::KeyAgreement),
    ("data encipherment", KeyUsages::DataEncipherment),
    ("cert sign", KeyUsages::KeyCertSign),
    ("crl sign", KeyUsages::CRLSign),
    ("encipher only", KeyUsages::EncipherOnly),
    ("decipher only", KeyUsages::DecipherOnly),
];

const fn oid(text: &str) -> ObjectIdentifier {
    ObjectIdentifier::new_unwrap(text)
}

const EXTENDED_USAGES: [(&str, ObjectIdentifier); 13] = [
    ("any", oid("2.5.29.37.0")),
    ("server auth", oid("1.3.6.1.5.5.7.3.1")),
    ("client auth", oid("1.3.6.1.5.5.7.3.2")),
    ("code signing", oid("1.3.6.1.5.5.7.3.3")),
    ("email protection", oid("1.3.6.1.5.5.7.3.4")),
    ("s/mime", oid("1.3.6.1.5.5.7.3.4")),
    ("ipsec end system", oid("1.3.6.1.5.5.7.3.5")),
    ("ipsec tunnel", oid("1.3.6.1.5.5.7.3.6")),
    ("ipsec user", oid("1.3.6.1.5.5.7.3.7")),
    ("timestamping", oid("1.3.6.1.5.5.7.3.8")),
    ("ocsp signing", oid("1.3.6.1.5.5.7.3.9")),
    ("microsoft sgc", oid("1.3.6.1.4.1.311.10.3.3")),
    ("netscape sgc", oid("2.16.840.1.113730.4.1")),
];

impl Usages {
    /// From the names of the Kubernetes API (`digital signature`, `client auth`).
    pub fn from_names<'a>(names: impl IntoIterator<Item = &'a str>) -> Result<Self, UnknownUsages> {
        let mut usages = Self::default();
        let mut unknown = Vec::new();
        for name in names {
            if let Some((_, bit)) = KEY_USAGES.iter().find(|(known, _)| *known == name) {
                usages.key |= *bit;
            } else if let Some((_, oid)) = EXTENDED_USAGES.iter().find(|(known, _)| *known == name)
            {
                if !usages.extended.contains(oid) {
                    usages.extended.push(*oid);
                }
            } else {
                unknown.push(name.to_owned());
            }
        }
        if unknown.is_empty() {
            Ok(usages)
        } else {
            Err(UnknownUsages(unknown))
        }
    }
}

impl Ca {
    /// Until when this authority's own certificate is valid.
    pub fn not_after(&self) -> SystemTime {
        self.certificate()
            .tbs_certificate()
            .validity()
            .not_after
            .to_system_time()
    }

    /// Signs a request: its subject, key and names, for these usages and this time (never longer than the CA's own). PEM.
    pub fn sign_request(
        &self,
        request: &SigningRequest,
        usages: &Usages,
        not_before: SystemTime,
        not_after: SystemTime,
    ) -> Result<String, PkiError> {
        let nobody = Name::default();
        let mut extensions: Vec<Extension> = Vec::new();
        if !usages.extended.is_empty() {
            let extended = ExtendedKeyUsage(usages.extended.clone());
            extensions.push((&extended).to_extension(&nobody, &[]).map_err(invalid)?);
        }
        let names = request.names().map_err(invalid)?;
        if !names.is_empty() {
            let names = SubjectAltName(names);
            extensions.push((&names).to_extension(&nobody, &[]).map_err(invalid)?);
        }
        let time = |time: SystemTime| Time::try_from(time).map_err(invalid);
        let validity = Validity::new(time(not_before)?, time(not_after.min(self.not_after()))?);
        let shape = Shape {
            subject: request.request.info.subject.clone(),
            issuer: Some(self.certificate().tbs_certificate().subject().clone()),
            key_identifier: Some(self.key_identifier().clone()),
            usage: usages.key,
            extensions,
        };
        let serial = random_serial().map_err(|error| error.about("certificate".to_owned()))?;
        let key = request.request.info.public_key.clone();
        let certificate = CertificateBuilder::new(shape, serial, validity, key)
            .and_then(|builder| builder.build::<_, Signed>(self.key()))
            .map_err(invalid)?;
        certificate.to_pem(LineEnding::LF).map_err(invalid)
    }
}

#[cfg(test)]
mod tests;
