//! Having a certificate signed: a CertificateSigningRequest is created, and followed until somebody approved and signed it, or said
//! no. Its name is made of the request, so that a program that is started again finds it.

use super::{condition, is_issued};
use crate::kube::{Kube, KubeError};
use base64::{Engine, engine::general_purpose::STANDARD};
use http::Method;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::{fmt::Write, future::Future, time::Duration};
use tokio::time::Instant;

const PATH: &str = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
/// How long one attempt follows a request (client-go's bound). The next one goes on with the same.
const PATIENCE: Duration = Duration::from_secs(15 * 60);
/// Pauses between looks at a request.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// Looks in a row that failed after which an attempt ends.
const FAILURES: u32 = 5;

/// What is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// What the certificate is called in logs.
    pub certificate: &'static str,
    /// How names of requests begin (`yurthub`).
    pub prefix: &'static str,
    /// Who signs it.
    pub signer: &'static str,
    /// What it is for. Approvers compare the whole set.
    pub usages: [&'static str; 3],
    /// The request, PEM.
    pub request: &'a str,
}

/// Why a question has no answer that helps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The HTTP code, when the server answered.
    pub code: Option<u16>,
    /// What went wrong, in the server's words when it answered.
    pub message: String,
}

/// Asks an API server under one identity.
pub trait Asks: Sync {
    /// Asks; the answer as JSON.
    fn ask(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> impl Future<Output = Result<Value, Refusal>> + Send;

    /// Who asks, and what to do when the server does not know him.
    fn who(&self) -> (&'static str, &'static str);
}

impl Asks for Kube {
    async fn ask(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Value, Refusal> {
        let answer = match (method, body) {
            (Method::POST, Some(body)) => self.create(path, body).await,
            _ => self.get(path).await,
        };
        answer.map_err(|error: KubeError| Refusal {
            code: error.code(),
            message: error.message(),
        })
    }

    fn who(&self) -> (&'static str, &'static str) {
        ("who asks", "; is its kubeconfig or token still good?")
    }
}

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum SigningError {
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
    #[error("CertificateSigningRequests may not be created: {0}")]
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
    pub fn is_final(&self) -> bool {
        matches!(
            self,
            Self::Denied { .. } | Self::Failed { .. } | Self::Taken(_) | Self::Refused(_)
        )
    }

    /// Whether trying again may help without anybody's doing.
    pub fn is_passing(&self) -> bool {
        matches!(self, Self::Unanswered(_) | Self::Waits(_))
    }

    fn of(refusal: Refusal, who: (&'static str, &'static str)) -> Self {
        match refusal.code {
            Some(401) => Self::Unauthorized {
                who: who.0,
                hint: who.1,
            },
            Some(403) => Self::Forbidden(refusal.message),
            Some(code @ 400..500) if code != 429 => {
                Self::Refused(format!("{} ({code})", refusal.message))
            }
            _ => Self::Unanswered(refusal.message),
        }
    }
}

/// The name of a request's object.
fn name_of(prefix: &str, request: &str) -> String {
    let digest = Sha256::digest(request.as_bytes());
    let mut name = format!("{prefix}-csr-");
    for byte in digest.iter().take(12) {
        // Writing to a String does not fail.
        let _ = write!(name, "{byte:02x}");
    }
    name
}

fn object(wanted: &Wanted<'_>, name: &str) -> Value {
    json!({
        "apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest",
        "metadata": {"name": name},
        "spec": {"request": STANDARD.encode(wanted.request), "signerName": wanted.signer, "usages": wanted.usages},
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

fn fate(csr: &Value, wanted: &Wanted<'_>) -> Fate {
    let spec = &csr["spec"];
    if spec["request"] != STANDARD.encode(wanted.request) || spec["signerName"] != wanted.signer {
        return Fate::Anothers;
    }
    let said = |kind: &str| {
        let found = condition(csr, kind)?;
        let text = |key: &str| found[key].as_str().unwrap_or_default();
        Some(
            format!("{} {}", text("reason"), text("message"))
                .trim()
                .to_owned(),
        )
    };
    if let Some(why) = said("Denied") {
        return Fate::Denied(why);
    }
    if let Some(why) = said("Failed") {
        return Fate::Failed(why);
    }
    let pem = csr["status"]["certificate"]
        .as_str()
        .filter(|_| is_issued(csr))
        .and_then(|text| STANDARD.decode(text).ok())
        .and_then(|bytes| String::from_utf8(bytes).ok());
    match pem {
        Some(pem) => Fate::Issued(pem),
        None if said("Approved").is_some() => Fate::Approved,
        None => Fate::Undecided,
    }
}

/// Has a request signed; the certificate as PEM. `told` hears what is being waited for.
pub async fn obtain(
    api: &impl Asks,
    wanted: &Wanted<'_>,
    told: impl Fn(&str),
) -> Result<String, SigningError> {
    let name = name_of(wanted.prefix, wanted.request);
    let path = format!("{PATH}/{name}");
    let body = object(wanted, &name);
    let deadline = Instant::now() + PATIENCE;
    let (mut pause, mut failures) = (FIRST_PAUSE, 0);
    let mut created = false;
    while Instant::now() < deadline {
        let seen = if created {
            api.ask(Method::GET, &path, None).await
        } else {
            api.ask(Method::POST, PATH, Some(&body)).await
        };
        let csr = match seen {
            Ok(csr) => csr,
            // The program was started again, or an answer was lost.
            Err(refusal) if !created && refusal.code == Some(409) => {
                created = true;
                continue;
            }
            // Undecided requests are cleaned away after a day.
            Err(refusal) if created && refusal.code == Some(404) => {
                created = false;
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
                continue;
            }
            Err(refusal) => match SigningError::of(refusal, api.who()) {
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
                certificate = wanted.certificate,
                csr = name,
                "CertificateSigningRequest created"
            );
        }
        (created, failures) = (true, 0);
        match fate(&csr, wanted) {
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
    use crate::signing_request::{CLIENT, KUBELET_SERVING};

    const CLIENT_PEM: Wanted<'static> = Wanted {
        certificate: "client",
        prefix: "yurthub",
        signer: CLIENT,
        usages: ["digital signature", "key encipherment", "client auth"],
        request: "PEM",
    };

    #[test]
    fn the_object_is_what_approvers_compare() {
        let client = object(&CLIENT_PEM, "a");
        assert_eq!(client["spec"]["signerName"], CLIENT);
        assert_eq!(
            client["spec"]["usages"],
            json!(["digital signature", "key encipherment", "client auth"])
        );
        assert_eq!(client["spec"]["request"], "UEVN");
        assert_eq!(name_of("a", "PEM"), name_of("a", "PEM"));
        assert_ne!(name_of("a", "PEM"), name_of("a", "PEN"));
        assert_eq!(name_of("yurthub", "PEM").len(), "yurthub-csr-".len() + 24);
    }

    #[test]
    fn fates() {
        let mut csr = object(&CLIENT_PEM, "a");
        let of = |csr: &Value| fate(csr, &CLIENT_PEM);
        assert_eq!(of(&csr), Fate::Undecided);
        let serving = Wanted {
            signer: KUBELET_SERVING,
            ..CLIENT_PEM
        };
        assert_eq!(fate(&csr, &serving), Fate::Anothers);
        let other = Wanted {
            request: "PEN",
            ..CLIENT_PEM
        };
        assert_eq!(fate(&csr, &other), Fate::Anothers);
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
