//! Service account tokens: JWTs signed with ES256 by a key of the server.

use super::User;
use crate::authz::account_name;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use ring::{
    rand::SystemRandom,
    signature::{
        ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair,
        UnparsedPublicKey,
    },
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use sha2::{Digest, Sha256};
use std::fmt;

/// Why a token is not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum TokenError {
    #[error("not a JSON web token")]
    Malformed,
    #[error("the token's signature does not verify")]
    Signature,
    #[error("the token is from another issuer")]
    Issuer,
    #[error("the token has expired or is not valid yet")]
    Time,
}

/// Why a signing key cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("service account signing key: {0}")]
pub struct KeyError(String);

/// What a token says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    /// Audiences it is meant for.
    #[serde(rename = "aud", default)]
    pub audiences: Vec<String>,
    /// Expiry, seconds since the epoch.
    pub exp: i64,
    /// Issued at.
    pub iat: i64,
    /// Issuer.
    pub iss: String,
    /// Unique id.
    pub jti: String,
    /// What it is bound to.
    #[serde(rename = "kubernetes.io")]
    pub kubernetes: Bound,
    /// Not before.
    pub nbf: i64,
    /// `system:serviceaccount:NAMESPACE:NAME`.
    pub sub: String,
}

/// The objects a token is bound to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Bound {
    pub namespace: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<Reference>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<Reference>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<Reference>,
    pub serviceaccount: Reference,
}

/// Name and uid of an object.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Reference {
    pub name: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub uid: String,
}

/// The issuer of tokens that are kept in secrets.
const LEGACY_ISSUER: &str = "kubernetes/serviceaccount";

/// What a token says that is kept in a `kubernetes.io/service-account-token` secret. It does not expire: it is good for
/// as long as its secret and its service account are there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LegacyClaims {
    iss: String,
    #[serde(rename = "kubernetes.io/serviceaccount/namespace")]
    pub(super) namespace: String,
    #[serde(rename = "kubernetes.io/serviceaccount/secret.name")]
    pub(super) secret: String,
    #[serde(rename = "kubernetes.io/serviceaccount/service-account.name")]
    pub(super) account: String,
    #[serde(rename = "kubernetes.io/serviceaccount/service-account.uid")]
    pub(super) uid: String,
    sub: String,
}

impl LegacyClaims {
    /// For a service account (its namespace, name and uid), kept in the secret called `secret`.
    pub fn new(namespace: &str, account: &str, uid: &str, secret: &str) -> Self {
        Self {
            iss: LEGACY_ISSUER.into(),
            namespace: namespace.to_owned(),
            secret: secret.to_owned(),
            account: account.to_owned(),
            uid: uid.to_owned(),
            sub: account_name(namespace, account),
        }
    }
    /// The user a token speaks for.
    pub fn user(&self) -> User {
        account_user(&self.namespace, &self.account, &self.uid)
    }
}

/// The user a service account is.
fn account_user(namespace: &str, account: &str, uid: &str) -> User {
    User {
        name: account_name(namespace, account),
        uid: uid.to_owned(),
        groups: vec![
            "system:serviceaccounts".into(),
            format!("system:serviceaccounts:{namespace}"),
        ],
        ..User::default()
    }
}

impl Claims {
    /// The user a token speaks for.
    pub fn user(&self) -> User {
        let account = &self.kubernetes.serviceaccount;
        let mut user = account_user(&self.kubernetes.namespace, &account.name, &account.uid);
        let mut extra = |key: &str, value: &str| {
            user.extra.insert(
                format!("authentication.kubernetes.io/{key}"),
                vec![value.to_owned()],
            );
        };
        extra("credential-id", &format!("JTI={}", self.jti));
        for (what, reference) in [
            ("pod", &self.kubernetes.pod),
            ("node", &self.kubernetes.node),
        ] {
            if let Some(reference) = reference {
                extra(&format!("{what}-name"), &reference.name);
                extra(&format!("{what}-uid"), &reference.uid);
            }
        }
        user
    }
}

/// Issues and verifies tokens.
pub struct Issuer {
    key: EcdsaKeyPair,
    key_id: String,
    url: String,
}

impl fmt::Debug for Issuer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Issuer")
            .field("url", &self.url)
            .field("key_id", &self.key_id)
            .finish_non_exhaustive()
    }
}

impl Issuer {
    /// A new PKCS#8 key.
    pub fn generate_key() -> Result<Vec<u8>, KeyError> {
        EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new())
            .map(|key| key.as_ref().to_vec())
            .map_err(|e| KeyError(e.to_string()))
    }

    /// An issuer named `url`, with a PKCS#8 key.
    pub fn new(url: &str, pkcs8: &[u8]) -> Result<Self, KeyError> {
        let key = EcdsaKeyPair::from_pkcs8(
            &ECDSA_P256_SHA256_FIXED_SIGNING,
            pkcs8,
            &SystemRandom::new(),
        )
        .map_err(|e| KeyError(e.to_string()))?;
        let key_id = URL_SAFE_NO_PAD.encode(Sha256::digest(key.public_key().as_ref()));
        Ok(Self {
            key,
            key_id,
            url: url.to_owned(),
        })
    }

    /// The issuer's name, which is also the audience tokens have when none is asked for.
    pub fn audience(&self) -> &str {
        &self.url
    }

    /// Signs claims (their issuer is set here).
    pub fn sign(&self, mut claims: Claims) -> Result<String, KeyError> {
        claims.iss.clone_from(&self.url);
        self.jwt(&claims)
    }

    /// Signs what a token in a secret says.
    pub fn sign_legacy(&self, claims: &LegacyClaims) -> Result<String, KeyError> {
        self.jwt(claims)
    }

    fn jwt(&self, claims: &impl Serialize) -> Result<String, KeyError> {
        let header = serde_json::json!({"alg": "ES256", "kid": self.key_id});
        let claims = serde_json::to_vec(claims).map_err(|e| KeyError(e.to_string()))?;
        let mut token = URL_SAFE_NO_PAD.encode(header.to_string());
        token.push('.');
        URL_SAFE_NO_PAD.encode_string(claims, &mut token);
        let signature = self
            .key
            .sign(&SystemRandom::new(), token.as_bytes())
            .map_err(|e| KeyError(e.to_string()))?;
        token.push('.');
        URL_SAFE_NO_PAD.encode_string(signature.as_ref(), &mut token);
        Ok(token)
    }

    /// Verifies signature, issuer and time.
    pub fn verify(&self, token: &str, now: i64) -> Result<Claims, TokenError> {
        let claims: Claims = self.claims(token)?;
        if claims.iss != self.url {
            return Err(TokenError::Issuer);
        }
        if now >= claims.exp || now < claims.nbf {
            return Err(TokenError::Time);
        }
        Ok(claims)
    }

    /// Verifies signature and issuer of a token that is kept in a secret.
    pub fn verify_legacy(&self, token: &str) -> Result<LegacyClaims, TokenError> {
        let claims: LegacyClaims = self.claims(token)?;
        if claims.iss != LEGACY_ISSUER
            || claims.sub != account_name(&claims.namespace, &claims.account)
        {
            return Err(TokenError::Issuer);
        }
        Ok(claims)
    }

    /// What a token says that this issuer has signed.
    fn claims<T: DeserializeOwned>(&self, token: &str) -> Result<T, TokenError> {
        let (signed, signature) = token.rsplit_once('.').ok_or(TokenError::Malformed)?;
        let (_, claims) = signed.split_once('.').ok_or(TokenError::Malformed)?;
        let decode = |part: &str| {
            URL_SAFE_NO_PAD
                .decode(part)
                .map_err(|_| TokenError::Malformed)
        };
        let signature = decode(signature)?;
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, self.key.public_key().as_ref())
            .verify(signed.as_bytes(), &signature)
            .map_err(|_| TokenError::Signature)?;
        serde_json::from_slice(&decode(claims)?).map_err(|_| TokenError::Malformed)
    }

    /// The public key as a JSON web key set.
    pub fn keys(&self) -> serde_json::Value {
        // An uncompressed point: 0x04, x, y.
        let point = self.key.public_key().as_ref();
        let (x, y) = point[1..].split_at(32);
        serde_json::json!({"keys": [{
            "use": "sig", "kty": "EC", "kid": self.key_id, "crv": "P-256", "alg": "ES256",
            "x": URL_SAFE_NO_PAD.encode(x), "y": URL_SAFE_NO_PAD.encode(y),
        }]})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claims() -> Claims {
        Claims {
            audiences: vec!["a".into()],
            exp: 2000,
            iat: 1000,
            iss: String::new(),
            jti: "j".into(),
            kubernetes: Bound {
                namespace: "ns".into(),
                serviceaccount: Reference {
                    name: "sa".into(),
                    uid: "u".into(),
                },
                ..Bound::default()
            },
            nbf: 1000,
            sub: "system:serviceaccount:ns:sa".into(),
        }
    }

    #[test]
    fn what_is_signed_verifies_until_it_expires() -> Result<(), Box<dyn std::error::Error>> {
        let issuer = Issuer::new("https://a", &Issuer::generate_key()?)?;
        let token = issuer.sign(claims())?;
        assert_eq!(
            issuer.verify(&token, 1500)?.sub,
            "system:serviceaccount:ns:sa"
        );
        assert_eq!(issuer.verify(&token, 2000), Err(TokenError::Time));
        assert_eq!(issuer.verify(&token, 999), Err(TokenError::Time));
        Ok(())
    }

    #[test]
    fn other_keys_and_changed_tokens_are_refused() -> Result<(), Box<dyn std::error::Error>> {
        let issuer = Issuer::new("https://a", &Issuer::generate_key()?)?;
        let other = Issuer::new("https://a", &Issuer::generate_key()?)?;
        let token = issuer.sign(claims())?;
        assert_eq!(other.verify(&token, 1500), Err(TokenError::Signature));
        let changed = token.replacen('.', ".A", 1);
        assert_eq!(issuer.verify(&changed, 1500), Err(TokenError::Signature));
        for text in ["", ".", "..", "a.b.c", "é"] {
            assert!(issuer.verify(text, 1500).is_err());
        }
        Ok(())
    }
}
