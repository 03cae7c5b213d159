//! Certificate requests: who may approve or sign for a signer (CertificateApproval, CertificateSigning), and what
//! nobody may ask for (CertificateSubjectRestriction).

use super::super::{Registry, Reply, Target};
use crate::{authn::MASTERS, authz::Attributes, meta};
use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::Value;
use yurt_pki::SigningRequest;
use yurt_wire::Status;

const GROUP: &str = "certificates.k8s.io";
const PLURAL: &str = "certificatesigningrequests";
const CLIENT_SIGNER: &str = "kubernetes.io/kube-apiserver-client";

fn is_request(target: &Target) -> bool {
    target.resource.group == GROUP && target.resource.plural == PLURAL
}

fn refused(request: &Value, why: &str) -> Box<Status> {
    Box::new(Status::forbidden(GROUP, PLURAL, meta::name(request), why))
}

/// Nobody becomes a master by a certificate request.
pub(super) fn check_subject(target: &Target, request: &Value) -> Reply<()> {
    if !is_request(target) || request["spec"]["signerName"] != CLIENT_SIGNER {
        return Ok(());
    }
    let text = request["spec"]["request"].as_str().unwrap_or_default();
    let pem = STANDARD.decode(text).unwrap_or_default();
    // What cannot be read is for validation to refuse.
    let wanted = SigningRequest::from_pem(&String::from_utf8_lossy(&pem));
    if wanted.is_ok_and(|wanted| wanted.subject.groups.iter().any(|group| group == MASTERS)) {
        return Err(refused(
            request,
            &format!("use of {CLIENT_SIGNER} signer with {MASTERS} group is not allowed"),
        ));
    }
    Ok(())
}

impl Registry {
    /// Approving and signing take a right on the signer.
    pub(in crate::registry) fn check_signer(
        &self,
        target: &Target,
        live: Option<&Value>,
        new: Option<&Value>,
    ) -> Reply<()> {
        let (Some(live), Some(new)) = (live, new) else {
            return Ok(());
        };
        if !is_request(target) {
            return Ok(());
        }
        let verb = match target.subresource.as_str() {
            "approval" => "approve",
            "status" if signs(live, new) => "sign",
            _ => return Ok(()),
        };
        let signer = live["spec"]["signerName"].as_str().unwrap_or_default();
        let domain = signer.split_once('/').map_or(signer, |(domain, _)| domain);
        let may = |name: &str| {
            let what = Attributes {
                verb: verb.into(),
                group: GROUP.into(),
                resource: "signers".into(),
                name: name.into(),
                ..Attributes::default()
            };
            self.authorizer.decide(&target.user, &what).allowed
        };
        if may(signer) || may(&format!("{domain}/*")) {
            return Ok(());
        }
        let why = format!("user not permitted to {verb} requests with signerName {signer:?}");
        Err(refused(live, &why))
    }
}

/// Whether a status says what only a signer says.
fn signs(live: &Value, new: &Value) -> bool {
    ["certificate", "conditions"]
        .iter()
        .any(|field| live["status"][*field] != new["status"][*field])
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_certificates_and_conditions_are_the_signers() {
        let live = json!({"metadata": {"labels": {}}, "status": {}});
        let mut new = live.clone();
        new["metadata"]["labels"]["a"] = "b".into();
        assert!(!signs(&live, &new));
        new["status"]["certificate"] = "x".into();
        assert!(signs(&live, &new));
    }
}
