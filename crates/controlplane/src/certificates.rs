//! CertificateSigningRequests: approval of kubelets', the built-in signers, cleaning up.

pub(super) mod approving;
pub(super) mod cleaning;
mod rules;
pub(super) mod signing;

use yurt_controller::signing_request;

#[cfg(test)]
mod tests;
