//! `certificatesigningrequest-signing-controller`: signs what has been approved, for the built-in signers.

use super::{
    rules,
    signing_request::{condition, is_issued, parse, usages, with_condition},
};
use crate::{Context, Controller, Failure, Key, Next, Watch, collections::CSRS};
use base64::{Engine, engine::general_purpose::STANDARD};
use jiff::Timestamp;
use serde_json::{Value, json};
use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};
use yurt_pki::{Ca, KeyPairPem, Usages};

/// How long a certificate is valid at most (`--cluster-signing-duration`), and at least.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 3600);
const SHORTEST: Duration = Duration::from_secs(600);
/// Certificates begin this long before they are made: clocks of nodes are behind.
const BACKDATE: Duration = Duration::from_secs(5 * 60);
/// Shorter ones do not end earlier for that.
const SHORT: Duration = Duration::from_secs(8 * 3600);

/// The controller.
#[derive(Debug)]
pub(crate) struct Signing {
    ca: Ca,
}

impl Signing {
    /// With a CA; without one there is nothing to do.
    pub(crate) fn new(signing: Option<&KeyPairPem>) -> Option<Self> {
        match Ca::from_pem(signing?) {
            Ok(ca) => Some(Self { ca }),
            Err(error) => {
                tracing::error!(controller = Self::NAME, %error, "nothing is signed");
                None
            }
        }
    }
}

impl Controller for Signing {
    const NAME: &'static str = "certificatesigningrequest-signing-controller";

    fn watches(&self, _: &Arc<Context>) -> Vec<Watch> {
        vec![Watch::own(CSRS)]
    }

    async fn reconcile(&self, key: &Key, context: &Context) -> Result<Next, Failure> {
        let Some(csr) = context.objects(&CSRS).get(key) else {
            return Ok(Next::Done);
        };
        if is_issued(&csr)
            || condition(&csr, "Approved").is_none()
            || condition(&csr, "Failed").is_some()
        {
            return Ok(Next::Done);
        }
        let signer = csr["spec"]["signerName"].as_str().unwrap_or_default();
        if !signer.starts_with("kubernetes.io/") {
            return Ok(Next::Done);
        }
        let Some(request) = parse(&csr) else {
            return Ok(Next::Done);
        };
        let names = usages(&csr);
        let Some(judged) = rules::judge(signer, &request, &names) else {
            return Ok(Next::Done);
        };
        if let Err(why) = judged {
            let patch = with_condition(
                &csr,
                "Failed",
                "SignerValidationFailure",
                &why,
                Timestamp::now(),
            );
            context.merge(&CSRS, key, "status", &patch).await?;
            return Ok(Next::Done);
        }
        let object = |error: String| Failure::Object(format!("error auto signing csr: {error}"));
        let usages = Usages::from_names(names).map_err(|error| object(error.to_string()))?;
        let (from, until) = validity(&csr, SystemTime::now());
        let pem = self
            .ca
            .sign_request(&request, &usages, from, until)
            .map_err(|error| object(error.to_string()))?;
        let patch = json!({"metadata": {"resourceVersion": csr["metadata"]["resourceVersion"]},
            "status": {"certificate": STANDARD.encode(pem)}});
        context.merge(&CSRS, key, "status", &patch).await?;
        Ok(Next::Done)
    }
}

/// From when and until when a certificate is valid that is made now. Pure.
fn validity(csr: &Value, now: SystemTime) -> (SystemTime, SystemTime) {
    let wanted = csr["spec"]["expirationSeconds"]
        .as_u64()
        .map(Duration::from_secs);
    let length = wanted.map_or(LONGEST, |wanted| wanted.clamp(SHORTEST, LONGEST));
    let begin = now - BACKDATE;
    (
        begin,
        if length > SHORT {
            begin + length
        } else {
            now + length
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificates_last_as_long_as_is_wished_within_bounds() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let until = |seconds: Option<u64>| {
            let csr = seconds.map_or(
                json!({"spec": {}}),
                |s| json!({"spec": {"expirationSeconds": s}}),
            );
            let (from, until) = validity(&csr, now);
            assert_eq!(now.duration_since(from).expect("before"), BACKDATE);
            until.duration_since(now).expect("after")
        };
        assert_eq!(until(None), LONGEST - BACKDATE);
        assert_eq!(until(Some(1)), SHORTEST);
        assert_eq!(until(Some(3600)), Duration::from_secs(3600));
        assert_eq!(
            until(Some(24 * 3600)),
            Duration::from_secs(24 * 3600) - BACKDATE
        );
        assert_eq!(until(Some(u64::MAX)), LONGEST - BACKDATE);
    }
}
