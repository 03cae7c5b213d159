//! Discovery by token, as kubeadm does it: anybody may read `kube-public/cluster-info`, which names the CA and is signed with every
//! bootstrap token. A node that holds a token can so believe the CA; a pin of the CA's public key makes it sure even when the
//! token is known to others. Facts: kubeadm's `discovery/token` and `token/api` packages, RFC 7515.

use super::{api, bundle::Bundle, kubeconfig::Given, token::Token};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use http::StatusCode;
use ring::hmac;
use rustls::ClientConfig;
use serde::Deserialize;
use std::{collections::BTreeMap, sync::Arc};
use yurt_pki::public_key_digest;

/// Where the cluster tells who it is.
pub(super) const PATH: &str = "/api/v1/namespaces/kube-public/configmaps/cluster-info";
const SIGNATURE: &str = "jws-kubeconfig-";

/// Why a cluster is not believed.
#[derive(Debug, thiserror::Error)]
pub enum DiscoveryError {
    /// No API server answered: worth another attempt.
    #[error("no API server tells who it is: {0}")]
    Unreachable(String),
    /// It has no `cluster-info`, or does not show it to everybody.
    #[error(
        "{server} does not show kube-public/cluster-info ({status}); was the cluster set up with kubeadm?"
    )]
    Unpublished {
        /// `host:port`.
        server: String,
        /// What it answered.
        status: StatusCode,
    },
    /// It is not what it should be.
    #[error("kube-public/cluster-info is malformed: {0}")]
    Malformed(String),
    /// Nobody who knows the token signed it.
    #[error(
        "the cluster does not know the bootstrap token {0}: it has expired or may not sign; `kubeadm token create` makes another"
    )]
    Unsigned(String),
    /// Somebody signed it who does not know the token.
    #[error(
        "the signature with the bootstrap token {0} is wrong: the secret is, or this is another cluster"
    )]
    Forged(String),
    /// No CA in it is one of the pinned.
    #[error(
        "none of the cluster's CAs has a public key with a hash of --discovery-token-ca-cert-hash: this is another cluster"
    )]
    Unpinned,
    /// The verified server tells something else.
    #[error(
        "a server verified by the pinned CA tells something else in cluster-info: somebody is in between"
    )]
    Different,
    /// Neither is there a pin nor may it be done without.
    #[error("nothing says which CA to believe: --discovery-token-ca-cert-hash does")]
    NoPins,
    /// A pin is none.
    #[error("--discovery-token-ca-cert-hash {0:?} is not sha256:HEX")]
    BadPin(String),
    /// TLS cannot be set up with the CA.
    #[error(transparent)]
    Pki(#[from] yurt_pki::PkiError),
}

/// The hash of a CA's public key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pin([u8; 32]);

impl Pin {
    /// Reads `sha256:HEX`.
    pub fn parse(text: &str) -> Option<Self> {
        let hex = text.trim().strip_prefix("sha256:")?.as_bytes();
        let mut hash = [0u8; 32];
        if hex.len() != 2 * hash.len() {
            return None;
        }
        for (byte, pair) in hash.iter_mut().zip(hex.chunks_exact(2)) {
            let [high, low] = pair else { return None };
            let digit = |digit: u8| char::from(digit).to_digit(16);
            *byte = u8::try_from(digit(*high)? * 16 + digit(*low)?).ok()?;
        }
        Some(Self(hash))
    }

    /// Reads several.
    pub fn parse_all(texts: &[String]) -> Result<Vec<Self>, DiscoveryError> {
        let pin =
            |text: &String| Self::parse(text).ok_or_else(|| DiscoveryError::BadPin(text.clone()));
        texts.iter().map(pin).collect()
    }
}

/// What makes a CA believable.
#[derive(Clone, Debug)]
pub enum Trust {
    /// It has one of these public keys.
    Pinned(Vec<Pin>),
    /// The server that tells it is verified by CAs that are believed already.
    Known(Bundle),
    /// Nothing but the token's signature.
    SignatureOnly,
}

/// `cluster-info`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct ClusterInfo {
    kubeconfig: String,
    signatures: BTreeMap<String, String>,
}

impl ClusterInfo {
    fn parse(body: &[u8]) -> Result<Self, DiscoveryError> {
        #[derive(Deserialize)]
        struct ConfigMap {
            data: Option<BTreeMap<String, String>>,
        }
        let map: ConfigMap = serde_json::from_slice(body)
            .map_err(|error| DiscoveryError::Malformed(error.to_string()))?;
        let mut data = map.data.unwrap_or_default();
        let kubeconfig = data
            .remove("kubeconfig")
            .ok_or_else(|| DiscoveryError::Malformed("no kubeconfig in it".into()))?;
        data.retain(|key, _| key.starts_with(SIGNATURE));
        Ok(Self {
            kubeconfig,
            signatures: data,
        })
    }

    /// Whether somebody who knows the token signed it: a JWS without its payload, HS256 with the secret.
    fn verify(&self, token: &Token) -> Result<(), DiscoveryError> {
        let forged = || DiscoveryError::Forged(token.id().to_owned());
        let signature = self
            .signatures
            .get(&format!("{SIGNATURE}{}", token.id()))
            .ok_or_else(|| DiscoveryError::Unsigned(token.id().to_owned()))?;
        let mut parts = signature.split('.');
        let (Some(header), Some(""), Some(mac), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(forged());
        };
        #[derive(Deserialize)]
        struct Header {
            alg: String,
            kid: String,
        }
        let decoded = URL_SAFE_NO_PAD.decode(header).map_err(|_| forged())?;
        let meaning: Header = serde_json::from_slice(&decoded).map_err(|_| forged())?;
        if meaning.alg != "HS256" || meaning.kid != token.id() {
            return Err(forged());
        }
        let mac = URL_SAFE_NO_PAD.decode(mac).map_err(|_| forged())?;
        let payload = URL_SAFE_NO_PAD.encode(&self.kubeconfig);
        let key = hmac::Key::new(hmac::HMAC_SHA256, token.secret().as_bytes());
        hmac::verify(&key, format!("{header}.{payload}").as_bytes(), &mac).map_err(|_| forged())
    }

    /// The CAs in it.
    fn authorities(&self) -> Result<Bundle, DiscoveryError> {
        let given = Given::parse(&self.kubeconfig).map_err(DiscoveryError::Malformed)?;
        let ca = given
            .ca
            .ok_or_else(|| DiscoveryError::Malformed("no certificate-authority-data".into()))?;
        Bundle::parse(&ca).map_err(|error| DiscoveryError::Malformed(error.to_string()))
    }
}

/// The CAs that `cluster-info` names, without any proof. For what came over a verified connection.
pub(super) fn authorities(body: &[u8]) -> Result<Bundle, DiscoveryError> {
    ClusterInfo::parse(body)?.authorities()
}

/// The CAs among `shown` that are pinned. Not all of them: whoever knows the token could add one of its own.
fn pinned(shown: &Bundle, pins: &[Pin]) -> Result<Bundle, DiscoveryError> {
    let kept =
        shown.only(|der| public_key_digest(der).is_ok_and(|digest| pins.contains(&Pin(digest))));
    if kept.is_empty() {
        return Err(DiscoveryError::Unpinned);
    }
    Ok(kept)
}

/// Finds out which CAs to believe, from the first server that answers.
pub async fn discover(
    servers: &[String],
    token: &Token,
    trust: &Trust,
) -> Result<Bundle, DiscoveryError> {
    let first = match trust {
        Trust::Known(bundle) => verified_by(bundle)?,
        Trust::Pinned(pins) if pins.is_empty() => return Err(DiscoveryError::NoPins),
        Trust::Pinned(_) | Trust::SignatureOnly => yurt_pki::unverified_client_config(None)?,
    };
    let mut failure = DiscoveryError::Unreachable("no server is named".into());
    for server in servers {
        let info = match read(server, first.clone()).await {
            Ok(info) => info,
            Err(error) => {
                failure = error;
                continue;
            }
        };
        info.verify(token)?;
        let shown = info.authorities()?;
        let Trust::Pinned(pins) = trust else {
            return Ok(shown);
        };
        let kept = pinned(&shown, pins)?;
        // Who was asked first was anybody.
        if read(server, verified_by(&kept)?).await?.kubeconfig != info.kubeconfig {
            return Err(DiscoveryError::Different);
        }
        return Ok(kept);
    }
    Err(failure)
}

fn verified_by(bundle: &Bundle) -> Result<Arc<ClientConfig>, DiscoveryError> {
    Ok(yurt_pki::client_config(&bundle.pem(), None, &["http/1.1"])?)
}

async fn read(server: &str, tls: Arc<ClientConfig>) -> Result<ClusterInfo, DiscoveryError> {
    let unreachable = |why: String| DiscoveryError::Unreachable(why);
    let (status, body) = api::ask(server, tls, PATH)
        .await
        .map_err(|error| unreachable(error.to_string()))?;
    if status.is_server_error() {
        return Err(unreachable(format!("{server} answered {status}")));
    }
    if status != StatusCode::OK {
        let server = server.to_owned();
        return Err(DiscoveryError::Unpublished { server, status });
    }
    ClusterInfo::parse(&body)
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64::engine::general_purpose::STANDARD;
    use yurt_pki::Ca;

    const TOKEN: &str = "abcdef.0123456789abcdef";
    /// `hello`, signed with it by another implementation (Python's hmac).
    const SIGNED: &str =
        "eyJhbGciOiJIUzI1NiIsImtpZCI6ImFiY2RlZiJ9..MxsnbCjBaYzcbNIFa06F-wuF9LX26rhMlrL4zA1511s";

    fn info(kubeconfig: &str, id: &str, signature: &str) -> ClusterInfo {
        let body = serde_json::json!({"data": {"kubeconfig": kubeconfig,
            format!("jws-kubeconfig-{id}"): signature, "other": "x"}});
        ClusterInfo::parse(body.to_string().as_bytes()).unwrap()
    }

    fn token(text: &str) -> Token {
        Token::parse(text).unwrap()
    }

    #[test]
    fn who_knows_the_token_is_believed() {
        assert!(
            info("hello", "abcdef", SIGNED)
                .verify(&token(TOKEN))
                .is_ok()
        );
    }

    #[test]
    fn who_does_not_is_not() {
        let header = |json: &str| URL_SAFE_NO_PAD.encode(json);
        let mac = SIGNED.rsplit_once('.').unwrap().1;
        let none = format!("{}..", header(r#"{"alg":"none","kid":"abcdef"}"#));
        let other_kid = format!("{}..{mac}", header(r#"{"alg":"HS256","kid":"ghijkl"}"#));
        let with_payload = SIGNED.replace("..", ".aGVsbG8.");
        let cut = &SIGNED[..SIGNED.len() - 1];
        let padded = format!("{SIGNED}=");
        for (kubeconfig, signature) in [
            ("hullo", SIGNED),
            ("hello", ""),
            ("hello", ".."),
            ("hello", "..."),
            ("hello", &none),
            ("hello", &other_kid),
            ("hello", &with_payload),
            ("hello", cut),
            ("hello", &padded),
            ("hello", "!!..!!"),
        ] {
            let verified = info(kubeconfig, "abcdef", signature).verify(&token(TOKEN));
            assert!(
                matches!(verified, Err(DiscoveryError::Forged(_))),
                "{kubeconfig} {signature}: {verified:?}"
            );
        }
        let wrong_secret =
            info("hello", "abcdef", SIGNED).verify(&token("abcdef.0123456789abcdeg"));
        assert!(matches!(wrong_secret, Err(DiscoveryError::Forged(_))));
        let unsigned = info("hello", "ghijkl", SIGNED).verify(&token(TOKEN));
        assert!(matches!(unsigned, Err(DiscoveryError::Unsigned(_))));
    }

    #[test]
    fn nonsense_is_malformed() {
        for bad in [
            &b""[..],
            b"{}",
            b"[]",
            br#"{"data":{}}"#,
            br#"{"data":{"kubeconfig":1}}"#,
            b"\xff",
        ] {
            assert!(matches!(
                ClusterInfo::parse(bad),
                Err(DiscoveryError::Malformed(_))
            ));
        }
        for bad in [
            "",
            "clusters: []",
            "clusters: [{name: '', cluster: {certificate-authority-data: Q0E=}}]",
        ] {
            assert!(matches!(
                info(bad, "abcdef", "").authorities(),
                Err(DiscoveryError::Malformed(_))
            ));
        }
    }

    #[test]
    fn pins_have_one_form() {
        let hex = "4ff6357c75ef5d838e8f0b3ce5095475431b5f9e813a37ce882f09885361827d";
        let pin = Pin::parse(&format!("sha256:{hex}")).unwrap();
        assert_eq!(pin.0[..2], [0x4f, 0xf6]);
        assert_eq!(
            Pin::parse(&format!("sha256:{}", hex.to_uppercase())),
            Some(pin)
        );
        for bad in [
            "",
            hex,
            "sha256:",
            &format!("sha1:{hex}"),
            &format!("sha256:{}", &hex[1..]),
            &format!("sha256:{}zz", &hex[2..]),
            &format!("sha256:é{}", &hex[2..]),
        ] {
            assert_eq!(Pin::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_ca_beside_the_pinned_one_is_not_believed() {
        let (good, evil) = (
            Ca::new("kubernetes", 1).unwrap(),
            Ca::new("kubernetes", 1).unwrap(),
        );
        let bundle = |pem: String| Bundle::parse(&pem).unwrap();
        let der = yurt_pki::certs_from_pem(&good.cert_pem()).unwrap();
        let pin = Pin(public_key_digest(&der[0]).unwrap());
        let shown = bundle(format!("{}{}", evil.cert_pem(), good.cert_pem()));
        assert_eq!(pinned(&shown, &[pin]).unwrap(), bundle(good.cert_pem()));
        let only_evil = pinned(&bundle(evil.cert_pem()), &[pin]);
        assert!(matches!(only_evil, Err(DiscoveryError::Unpinned)));
        let config = format!(
            "clusters: [{{name: '', cluster: {{certificate-authority-data: {}}}}}]",
            STANDARD.encode(good.cert_pem())
        );
        assert_eq!(
            info(&config, "abcdef", "").authorities().unwrap(),
            bundle(good.cert_pem())
        );
    }
}
