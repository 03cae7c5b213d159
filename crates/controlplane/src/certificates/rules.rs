//! What the built-in signers sign. Pure.

use super::signing_request::are;
pub(super) use super::signing_request::{CLIENT, KUBELET_CLIENT, KUBELET_SERVING};
use yurt_pki::SigningRequest;

pub(super) const LEGACY: &str = "kubernetes.io/legacy-unknown";

fn did_not_match(what: &str) -> String {
    let mut all = [what, "digital signature", "key encipherment"];
    all.sort_unstable();
    format!("usages did not match [{}]", all.join(" "))
}

/// Whether a signer that is built in signs this; `None` when the signer is another's.
pub(super) fn judge(
    signer: &str,
    request: &SigningRequest,
    usages: &[&str],
) -> Option<Result<(), String>> {
    match signer {
        CLIENT => Some(client(usages)),
        KUBELET_CLIENT => Some(kubelet_client(request, usages)),
        KUBELET_SERVING => Some(kubelet_serving(request, usages)),
        LEGACY => Some(Ok(())),
        _ => None,
    }
}

fn client(usages: &[&str]) -> Result<(), String> {
    let allowed = ["digital signature", "key encipherment", "client auth"];
    if let Some(other) = usages.iter().find(|usage| !allowed.contains(usage)) {
        return Err(format!("invalid usage for client certificate: {other}"));
    }
    if !usages.contains(&"client auth") {
        return Err("missing required usage for client certificate: client auth".into());
    }
    Ok(())
}

fn is_of_nodes(request: &SigningRequest) -> Result<(), String> {
    if request.subject.groups == ["system:nodes"] {
        Ok(())
    } else {
        Err("subject organization is not system:nodes".into())
    }
}

fn is_a_node(request: &SigningRequest) -> Result<(), String> {
    if request.subject.user.starts_with("system:node:") {
        Ok(())
    } else {
        Err("subject common name does not begin with system:node:".into())
    }
}

fn without(names: &[impl Sized], what: &str) -> Result<(), String> {
    if names.is_empty() {
        Ok(())
    } else {
        Err(format!("{what} subjectAltNames are not allowed"))
    }
}

/// Whether this is the client certificate of a kubelet.
pub(super) fn kubelet_client(request: &SigningRequest, usages: &[&str]) -> Result<(), String> {
    is_of_nodes(request)?;
    without(&request.dns, "DNS")?;
    without(&request.emails, "Email")?;
    without(&request.ips, "IP")?;
    without(&request.uris, "URI")?;
    is_a_node(request)?;
    if are(usages, "client auth") {
        Ok(())
    } else {
        Err(did_not_match("client auth"))
    }
}

fn kubelet_serving(request: &SigningRequest, usages: &[&str]) -> Result<(), String> {
    is_of_nodes(request)?;
    if request.dns.is_empty() && request.ips.is_empty() {
        return Err("DNS or IP subjectAltName is required".into());
    }
    without(&request.emails, "Email")?;
    without(&request.uris, "URI")?;
    if !are(usages, "server auth") {
        return Err(did_not_match("server auth"));
    }
    is_a_node(request)
}

#[cfg(test)]
mod tests {
    use super::*;
    use yurt_pki::{Profile, request};

    fn asked(common_name: &str, organizations: &[&str], dns: &[&str]) -> SigningRequest {
        let profile = Profile {
            common_name: common_name.into(),
            organizations: organizations.iter().map(|o| (*o).into()).collect(),
            dns: dns.iter().map(|d| (*d).into()).collect(),
            ..Profile::default()
        };
        SigningRequest::from_pem(&request(&profile).expect("made").request).expect("read")
    }

    #[test]
    fn kubelets_get_what_kubelets_need_and_nothing_else() {
        let usages = ["digital signature", "client auth"];
        let node = asked("system:node:a", &["system:nodes"], &[]);
        assert_eq!(kubelet_client(&node, &usages), Ok(()));
        let with_rsa = ["key encipherment", "digital signature", "client auth"];
        assert_eq!(kubelet_client(&node, &with_rsa), Ok(()));
        let refused = |request: &SigningRequest, usages: &[&str]| {
            kubelet_client(request, usages).expect_err("refused")
        };
        assert_eq!(
            refused(&asked("system:node:a", &["system:masters"], &[]), &usages),
            "subject organization is not system:nodes"
        );
        assert_eq!(
            refused(
                &asked("system:node:a", &["system:nodes", "x"], &[]),
                &usages
            ),
            "subject organization is not system:nodes"
        );
        assert_eq!(
            refused(&asked("system:node:a", &["system:nodes"], &["a"]), &usages),
            "DNS subjectAltNames are not allowed"
        );
        assert_eq!(
            refused(&asked("admin", &["system:nodes"], &[]), &usages),
            "subject common name does not begin with system:node:"
        );
        let expected = "usages did not match [client auth digital signature key encipherment]";
        assert_eq!(
            refused(&node, &["digital signature", "server auth"]),
            expected
        );
    }

    #[test]
    fn kubelets_serve_under_names() {
        let usages = ["digital signature", "server auth"];
        assert_eq!(
            kubelet_serving(&asked("system:node:a", &["system:nodes"], &["a"]), &usages),
            Ok(())
        );
        let refused = kubelet_serving(&asked("system:node:a", &["system:nodes"], &[]), &usages);
        assert_eq!(refused, Err("DNS or IP subjectAltName is required".into()));
    }

    #[test]
    fn other_clients_are_clients_and_other_signers_are_others() {
        let anybody = asked("jane", &["dev"], &[]);
        let judged = |signer: &str, usages: &[&str]| judge(signer, &anybody, usages);
        assert_eq!(judged(CLIENT, &["client auth"]), Some(Ok(())));
        assert_eq!(
            judged(CLIENT, &["digital signature"]),
            Some(Err(
                "missing required usage for client certificate: client auth".into()
            ))
        );
        assert_eq!(
            judged(CLIENT, &["client auth", "server auth"]),
            Some(Err(
                "invalid usage for client certificate: server auth".into()
            ))
        );
        assert_eq!(judged(LEGACY, &["cert sign"]), Some(Ok(())));
        assert_eq!(judged("example.com/mine", &["client auth"]), None);
    }
}
