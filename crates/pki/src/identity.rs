//! What a certificate says about its bearer.

use crate::PkiError;
use x509_parser::{certificate::X509Certificate, prelude::FromDer, x509::X509Name};

/// Who a verified certificate says its bearer is: CN and O, as Kubernetes reads them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// The common name.
    pub user: String,
    /// Every organization, in the certificate's order.
    pub groups: Vec<String>,
}

/// Reads the identity of a DER certificate. One without a common name names nobody, which is an error.
pub fn identity_of(der: &[u8]) -> Result<Identity, PkiError> {
    let identity = identity_in(parse(der)?.subject())?;
    if identity.user.is_empty() {
        return Err(PkiError::invalid(
            "certificate subject",
            "it has no common name",
        ));
    }
    Ok(identity)
}

/// The identity that a name stands for; without a common name the user is empty.
pub(crate) fn identity_in(name: &X509Name<'_>) -> Result<Identity, PkiError> {
    let text = |attribute: &x509_parser::x509::AttributeTypeAndValue<'_>| {
        attribute
            .as_str()
            .map(str::to_owned)
            .map_err(|error| PkiError::invalid("certificate subject", error))
    };
    // Go keeps the last of several common names.
    let user = name.iter_common_name().last().map(text).transpose()?;
    let groups = name.iter_organization().map(text);
    Ok(Identity {
        user: user.unwrap_or_default(),
        groups: groups.collect::<Result<_, _>>()?,
    })
}

/// Seconds since the epoch when a DER certificate ends.
pub fn not_after(der: &[u8]) -> Result<i64, PkiError> {
    Ok(parse(der)?.validity().not_after.timestamp())
}

pub(crate) fn parse(der: &[u8]) -> Result<X509Certificate<'_>, PkiError> {
    let (rest, certificate) =
        X509Certificate::from_der(der).map_err(|error| PkiError::invalid("certificate", error))?;
    if !rest.is_empty() {
        return Err(PkiError::invalid("certificate", "bytes after its end"));
    }
    Ok(certificate)
}
