use super::{approving::Approving, rules, signing::Signing, signing_request::condition};
use crate::{Controller, Settings, stage::Stage};
use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Value, json};
use yurt_pki::{Ca, Profile};

const CSRS: &str = "/apis/certificates.k8s.io/v1/certificatesigningrequests";

fn csr(name: &str, signer: &str, profile: &Profile, usages: &[&str]) -> Value {
    let request = yurt_pki::request(profile).expect("made").request;
    json!({"metadata": {"name": name}, "spec": {"signerName": signer, "usages": usages, "request": STANDARD.encode(request)}})
}

fn node() -> Profile {
    Profile {
        common_name: "system:node:n".into(),
        organizations: vec!["system:nodes".into()],
        ..Profile::default()
    }
}

#[tokio::test]
async fn a_kubelets_request_is_approved_and_signed() {
    let ca = Ca::new("test", 10).expect("a CA");
    let settings = Settings {
        signing: Some(ca.to_pem()),
        ..Settings::default()
    };
    let stage =
        Stage::start_with(&format!("{},{}", Approving::NAME, Signing::NAME), settings).await;
    let request = csr(
        "kubelet",
        rules::KUBELET_CLIENT,
        &node(),
        &["digital signature", "client auth"],
    );
    stage.create(CSRS, request).await;
    let path = format!("{CSRS}/kubelet");
    let issued = stage
        .until(&path, |csr| csr["status"]["certificate"].is_string())
        .await;
    let approved = &issued["status"]["conditions"][0];
    assert_eq!(
        (&approved["type"], &approved["reason"]),
        (&json!("Approved"), &json!("AutoApproved"))
    );
    let pem = STANDARD
        .decode(issued["status"]["certificate"].as_str().expect("text"))
        .expect("base64");
    let certificates =
        yurt_pki::certs_from_pem(&String::from_utf8(pem).expect("text")).expect("PEM");
    let identity = yurt_pki::identity_of(&certificates[0]).expect("an identity");
    assert_eq!(
        (identity.user.as_str(), identity.groups),
        ("system:node:n", vec!["system:nodes".to_owned()])
    );
}

#[tokio::test]
async fn what_a_signer_does_not_sign_fails_with_a_reason() {
    let ca = Ca::new("test", 10).expect("a CA");
    let settings = Settings {
        signing: Some(ca.to_pem()),
        ..Settings::default()
    };
    let stage = Stage::start_with(Signing::NAME, settings).await;
    stage
        .create(
            CSRS,
            csr(
                "serving",
                rules::KUBELET_SERVING,
                &node(),
                &["digital signature", "server auth"],
            ),
        )
        .await;
    let path = format!("{CSRS}/serving");
    let approval = json!({"status": {"conditions": [{"type": "Approved", "status": "True", "reason": "Test", "message": "m"}]}});
    stage
        .kube
        .merge(&format!("{path}/approval"), &approval)
        .await
        .expect("approved");
    let failed = stage
        .until(&path, |csr| condition(csr, "Failed").is_some())
        .await;
    let condition = condition(&failed, "Failed").expect("there");
    assert_eq!(condition["reason"], "SignerValidationFailure");
    assert_eq!(condition["message"], "DNS or IP subjectAltName is required");
    assert!(failed["status"]["certificate"].is_null());
}
