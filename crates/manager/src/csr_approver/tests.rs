use super::*;
use crate::stage::Stage;
use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::json;
use yurt_controller::{kube::Token, signing_request::condition};
use yurt_pki::Profile;

const ALL: &str = "/apis/certificates.k8s.io/v1/certificatesigningrequests";

fn csr(name: &str, signer: &str, profile: &Profile, usages: &[&str]) -> Value {
    let request = yurt_pki::request(profile).expect("made").request;
    json!({"apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest", "metadata": {"name": name},
        "spec": {"signerName": signer, "usages": usages, "request": STANDARD.encode(request)}})
}

fn profile(groups: &[&str], ips: &[&str]) -> Profile {
    Profile {
        common_name: "system:node:n".into(),
        organizations: groups.iter().map(|group| (*group).into()).collect(),
        ips: ips
            .iter()
            .map(|ip| ip.parse().expect("an address"))
            .collect(),
        ..Profile::default()
    }
}

/// The conditions of a request, when it has some.
async fn decided(stage: &Stage, name: &str) -> Value {
    let has = |csr: &Value| csr["status"]["conditions"].is_array();
    let csr = stage.until(&format!("{ALL}/{name}"), has).await;
    csr["status"]["conditions"][0].clone()
}

#[tokio::test]
async fn hubs_get_what_is_theirs_and_nothing_else() {
    let stage = Stage::start_confined(CsrApprover::NAME, crate::Settings::default()).await;
    let node = stage
        .kube
        .with_token(Token::new(yurt_controlplane::stage::NODE));
    let hub = profile(&["openyurt:yurthub", "system:nodes"], &[]);
    let client = ["digital signature", "client auth"];
    let own = csr("own", CLIENT, &hub, &client);
    node.create(ALL, &own).await.expect("asked");
    let approved = decided(&stage, "own").await;
    assert_eq!(
        (&approved["type"], &approved["reason"]),
        (&json!("Approved"), &json!("AutoApproved"))
    );
    assert_eq!(
        approved["message"],
        "Auto approving yurthub node client certificate"
    );
    // Another's.
    let other = Profile {
        common_name: "system:node:m".into(),
        ..hub.clone()
    };
    node.create(ALL, &csr("other", CLIENT, &other, &client))
        .await
        .expect("asked");
    let denied = decided(&stage, "other").await;
    assert_eq!(
        (&denied["type"], &denied["reason"]),
        (&json!("Denied"), &json!("NotEntitled"))
    );
    // An administrator may have reasons: nothing is decided for him.
    stage
        .create(ALL, csr("byhand", CLIENT, &hub, &client))
        .await;
    let told = |events: &Value| {
        let mut events = crate::fields::items(&events["items"]);
        events.any(|e| e["reason"] == "CSRNotApproved" && e["involvedObject"]["name"] == "byhand")
    };
    stage.until("/api/v1/namespaces/default/events", told).await;
    let left = stage
        .kube
        .get(&format!("{ALL}/byhand"))
        .await
        .expect("there");
    assert!(condition(&left, "Approved").is_none() && condition(&left, "Denied").is_none());
}

#[tokio::test]
async fn a_server_waits_until_the_addresses_are_its_nodes() {
    let stage = Stage::start_confined(CsrApprover::NAME, crate::Settings::default()).await;
    let node = stage
        .kube
        .with_token(Token::new(yurt_controlplane::stage::NODE));
    let server = profile(&["system:nodes"], &["10.0.0.7", "169.254.2.1"]);
    let usages = ["digital signature", "key encipherment", "server auth"];
    node.create(ALL, &csr("serving", KUBELET_SERVING, &server, &usages))
        .await
        .expect("asked");
    let told = |events: &Value| {
        crate::fields::items(&events["items"]).any(|e| {
            e["message"]
                .as_str()
                .is_some_and(|m| m.contains("10.0.0.7"))
        })
    };
    stage.until("/api/v1/namespaces/default/events", told).await;
    let registered = |address: &str| json!({"metadata": {"name": "n"}, "status": {"addresses": [{"type": "InternalIP", "address": address}]}});
    stage.create("/api/v1/nodes", registered("10.0.0.8")).await;
    stage
        .kube
        .merge("/api/v1/nodes/n/status", &registered("10.0.0.7"))
        .await
        .expect("registered");
    let approved = decided(&stage, "serving").await;
    assert_eq!(approved["type"], "Approved");
}
