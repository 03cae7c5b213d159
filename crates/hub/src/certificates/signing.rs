//! Having a certificate signed: a CertificateSigningRequest is created, and followed until somebody approved and signed it, or said
//! no. Its name is made of the request, so that a hub that is started again finds it.

use super::{
    api::{self, CallError, Credential},
    plan::Kind,
};
use crate::upstream::{SendError, Upstreams};
use base64::{Engine, engine::general_purpose::STANDARD};
use http::{Method, StatusCode};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::{fmt::Write, time::Duration};
use tokio::time::Instant;

const PATH: &str = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
/// How long one attempt follows a request (client-go's bound). The next one goes on with the same.
const PATIENCE: Duration = Duration::from_secs(15 * 60);
/// Pauses between looks at a request.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// Looks in a row that failed after which an attempt ends.
const FAILURES: u32 = 5;

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub(super) enum SigningError {
    /// No server could be asked.
    #[error("the cloud cannot be asked: {0}")]
    Unanswered(String),
    /// Who asks is nobody to the cloud.
    #[error("{who} is not accepted by the cloud (401){hint}")]
    Unauthorized {
        /// With what was asked.
        who: &'static str,
        /// What to do.
        hint: &'static str,
    },
    /// Who asks may not.
    #[error(
        "CertificateSigningRequests may not be created: {0}; ClusterRole system:node-bootstrapper allows it"
    )]
    Forbidden(String),
    /// The server does not like the request.
    #[error("the CertificateSigningRequest is refused: {0}")]
    Refused(String),
    /// Somebody said no.
    #[error(
        "CertificateSigningRequest {name} was denied: {why}; `kubectl describe csr {name}` tells who did"
    )]
    Denied {
        /// Its name.
        name: String,
        /// What was said.
        why: String,
    },
    /// The signer could not.
    #[error("CertificateSigningRequest {name} failed at its signer: {why}")]
    Failed {
        /// Its name.
        name: String,
        /// What was said.
        why: String,
    },
    /// Somebody else's request has the name.
    #[error("CertificateSigningRequest {0} is another's")]
    Taken(String),
    /// Nobody decided in time.
    #[error("CertificateSigningRequest {0} still waits")]
    Waits(String),
}

impl SigningError {
    /// Whether the same request would only get the same answer.
    pub(super) fn is_final(&self) -> bool {
        matches!(
            self,
            Self::Denied { .. } | Self::Failed { .. } | Self::Taken(_) | Self::Refused(_)
        )
    }
}

/// The name of a request's object.
pub(super) fn name_of(request: &str) -> String {
    let digest = Sha256::digest(request.as_bytes());
    let mut name = String::from("yurthub-csr-");
    for byte in digest.iter().take(12) {
        // Writing to a String does not fail.
        let _ = write!(name, "{byte:02x}");
    }
    name
}

fn object(kind: Kind, name: &str, request: &str) -> Value {
    json!({
        "apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest",
        "metadata": {"name": name},
        "spec": {"request": STANDARD.encode(request), "signerName": kind.signer(), "usages": kind.usages()},
    })
}

/// What became of a request.
#[derive(Debug, PartialEq, Eq)]
enum Fate {
    Issued(String),
    Denied(String),
    Failed(String),
    /// Approved, not signed.
    Approved,
    Undecided,
    Anothers,
}

fn fate(csr: &Value, kind: Kind, request: &str) -> Fate {
    let spec = &csr["spec"];
    if spec["request"] != STANDARD.encode(request) || spec["signerName"] != kind.signer() {
        return Fate::Anothers;
    }
    let status = &csr["status"];
    let condition = |kind: &str| {
        let mut conditions = status["conditions"].as_array()?.iter();
        let found = conditions.find(|c| c["type"] == kind && c["status"] != "False")?;
        let text = |key: &str| found[key].as_str().unwrap_or_default();
        Some(
            format!("{} {}", text("reason"), text("message"))
                .trim()
                .to_owned(),
        )
    };
    if let Some(why) = condition("Denied") {
        return Fate::Denied(why);
    }
    if let Some(why) = condition("Failed") {
        return Fate::Failed(why);
    }
    let pem = status["certificate"]
        .as_str()
        .and_then(|text| STANDARD.decode(text).ok())
        .and_then(|bytes| String::from_utf8(bytes).ok())
        .filter(|pem| !pem.is_empty());
    match pem {
        Some(pem) => Fate::Issued(pem),
        None if condition("Approved").is_some() => Fate::Approved,
        None => Fate::Undecided,
    }
}

fn error_of(error: CallError, credential: &Credential) -> SigningError {
    match error.code() {
        Some(StatusCode::UNAUTHORIZED) => match credential {
            Credential::Node => SigningError::Unauthorized {
                who: "the node's certificate",
                hint: "; its CA is no client CA of the cloud any more, or the clocks differ",
            },
            _ => SigningError::Unauthorized {
                who: "the bootstrap token",
                hint: "; `kubeadm token create` makes another, POST /v1/token takes it",
            },
        },
        Some(StatusCode::FORBIDDEN) => SigningError::Forbidden(error.to_string()),
        Some(code) if code.is_client_error() && code != StatusCode::TOO_MANY_REQUESTS => {
            SigningError::Refused(error.to_string())
        }
        _ => SigningError::Unanswered(match error {
            CallError::Send(SendError::NoServer) => "no API server can be reached".into(),
            error => error.to_string(),
        }),
    }
}

/// Has a request signed. `told` hears what is being waited for.
pub(super) async fn sign(
    upstreams: &Upstreams,
    credential: &Credential,
    kind: Kind,
    request: &str,
    told: impl Fn(&str),
) -> Result<String, SigningError> {
    let name = name_of(request);
    let path = format!("{PATH}/{name}");
    let body = object(kind, &name, request);
    let failed = |error| error_of(error, credential);
    let deadline = Instant::now() + PATIENCE;
    let (mut pause, mut failures) = (FIRST_PAUSE, 0);
    let mut created = false;
    while Instant::now() < deadline {
        let seen = if created {
            api::call(upstreams, credential, Method::GET, &path, None).await
        } else {
            api::call(upstreams, credential, Method::POST, PATH, Some(&body)).await
        };
        let csr = match seen {
            Ok(csr) => csr,
            // The hub was started again, or an answer was lost.
            Err(error) if !created && error.code() == Some(StatusCode::CONFLICT) => {
                created = true;
                continue;
            }
            // Undecided requests are cleaned away after a day.
            Err(error) if created && error.code() == Some(StatusCode::NOT_FOUND) => {
                created = false;
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
                continue;
            }
            Err(error) => match failed(error) {
                error @ SigningError::Unanswered(_) => {
                    failures += 1;
                    if failures >= FAILURES {
                        return Err(error);
                    }
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                    continue;
                }
                error => return Err(error),
            },
        };
        if !created {
            tracing::info!(
                certificate = kind.as_str(),
                csr = name,
                "CertificateSigningRequest created"
            );
        }
        (created, failures) = (true, 0);
        match fate(&csr, kind, request) {
            Fate::Issued(pem) => return Ok(pem),
            Fate::Denied(why) => return Err(SigningError::Denied { name, why }),
            Fate::Failed(why) => return Err(SigningError::Failed { name, why }),
            Fate::Anothers => return Err(SigningError::Taken(name)),
            Fate::Approved => told(&format!(
                "CertificateSigningRequest {name} is approved and waits for its signer"
            )),
            Fate::Undecided => told(&format!(
                "CertificateSigningRequest {name} waits for approval (`kubectl certificate approve {name}` gives it)"
            )),
        }
        tokio::time::sleep(pause.mul_f64(0.75 + 0.5 * fastrand::f64())).await;
        pause = pause.mul_f64(1.5).min(LONGEST_PAUSE);
    }
    Err(SigningError::Waits(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_object_is_what_approvers_compare() {
        let client = object(Kind::Client, "a", "PEM");
        assert_eq!(
            client["spec"]["signerName"],
            "kubernetes.io/kube-apiserver-client"
        );
        assert_eq!(
            client["spec"]["usages"],
            json!(["digital signature", "key encipherment", "client auth"])
        );
        let serving = object(Kind::Serving, "a", "PEM");
        assert_eq!(
            serving["spec"]["signerName"],
            "kubernetes.io/kubelet-serving"
        );
        assert_eq!(serving["spec"]["usages"][2], "server auth");
        assert_eq!(serving["spec"]["request"], "UEVN");
        assert_eq!(name_of("PEM"), name_of("PEM"));
        assert_ne!(name_of("PEM"), name_of("PEN"));
        assert_eq!(name_of("PEM").len(), "yurthub-csr-".len() + 24);
    }

    #[test]
    fn fates() {
        let mut csr = object(Kind::Client, "a", "PEM");
        let of = |csr: &Value| fate(csr, Kind::Client, "PEM");
        assert_eq!(of(&csr), Fate::Undecided);
        assert_eq!(fate(&csr, Kind::Serving, "PEM"), Fate::Anothers);
        assert_eq!(fate(&csr, Kind::Client, "PEN"), Fate::Anothers);
        assert_eq!(of(&Value::Null), Fate::Anothers);
        csr["status"] = json!({"conditions": [{"type": "Approved", "status": "True"}]});
        assert_eq!(of(&csr), Fate::Approved);
        csr["status"]["certificate"] = "!".into();
        assert_eq!(of(&csr), Fate::Approved);
        csr["status"]["certificate"] = STANDARD.encode("CERT").into();
        assert_eq!(of(&csr), Fate::Issued("CERT".into()));
        csr["status"] = json!({"conditions": [{"type": "Denied", "status": "True", "reason": "No", "message": "way"}]});
        assert_eq!(of(&csr), Fate::Denied("No way".into()));
        csr["status"] =
            json!({"conditions": [{"type": "Denied", "status": "False"}, {"type": "Failed"}]});
        assert_eq!(of(&csr), Fate::Failed(String::new()));
    }
}
