//! Public keys that prove tokens: those of the cloud's issuer, from its key set (RFC 7517), and the node's own. Pure.

use super::{
    Refusal,
    jwt::{Algorithm, Claims, Unproven},
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use ring::signature::{self, RsaPublicKeyComponents, UnparsedPublicKey};
use serde_json::Value;

/// Keys of one issuer that are looked at.
const MAX_KEYS: usize = 32;
/// Longest number of an RSA key: 8192 bits.
const MAX_NUMBER: usize = 1024;

#[derive(Clone, Debug, PartialEq, Eq)]
enum Material {
    Rsa {
        n: Vec<u8>,
        e: Vec<u8>,
    },
    /// An uncompressed point.
    P256(Vec<u8>),
    P384(Vec<u8>),
    Ed25519(Vec<u8>),
}

/// One public key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicKey {
    kid: Option<String>,
    /// Only for this algorithm, when the set says so.
    algorithm: Option<Algorithm>,
    material: Material,
}

/// The keys of one issuer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeySet {
    keys: Vec<PublicKey>,
}

fn bytes(key: &Value, name: &str) -> Option<Vec<u8>> {
    let text = key.get(name)?.as_str()?;
    if text.len() > 2 * MAX_NUMBER {
        return None;
    }
    URL_SAFE_NO_PAD.decode(text.trim_end_matches('=')).ok()
}

fn point(key: &Value, size: usize) -> Option<Vec<u8>> {
    let (x, y) = (bytes(key, "x")?, bytes(key, "y")?);
    (x.len() == size && y.len() == size).then(|| [&[4], x.as_slice(), &y].concat())
}

/// Without zeros in front, as `ring` wants numbers.
fn number(key: &Value, name: &str) -> Option<Vec<u8>> {
    let bytes = bytes(key, name)?;
    let start = bytes.iter().position(|byte| *byte != 0)?;
    Some(bytes[start..].to_vec())
}

impl PublicKey {
    /// A P-256 key by its uncompressed point.
    pub fn p256(kid: &str, point: &[u8]) -> Self {
        Self {
            kid: Some(kid.to_owned()),
            algorithm: Some(Algorithm::Es256),
            material: Material::P256(point.to_vec()),
        }
    }

    /// `None` when it is not for signatures, or of a kind that is not understood.
    fn parse(key: &Value) -> Option<Self> {
        let text = |name: &str| key.get(name).and_then(Value::as_str);
        if text("use").is_some_and(|purpose| purpose != "sig") {
            return None;
        }
        let algorithm = match text("alg") {
            Some(name) => Some(Algorithm::parse(name)?),
            None => None,
        };
        let material = match (text("kty")?, text("crv")) {
            ("RSA", _) => Material::Rsa {
                n: number(key, "n")?,
                e: number(key, "e")?,
            },
            ("EC", Some("P-256")) => Material::P256(point(key, 32)?),
            ("EC", Some("P-384")) => Material::P384(point(key, 48)?),
            ("OKP", Some("Ed25519")) => {
                Material::Ed25519(bytes(key, "x").filter(|x| x.len() == 32)?)
            }
            _ => return None,
        };
        Some(Self {
            kid: text("kid").map(str::to_owned),
            algorithm,
            material,
        })
    }

    /// Whether the key may prove what is signed with an algorithm: a key never serves another kind than its own.
    fn serves(&self, algorithm: Algorithm) -> bool {
        use Algorithm::{EdDsa, Es256, Es384, Rs256, Rs384, Rs512};
        self.algorithm.is_none_or(|only| only == algorithm)
            && matches!(
                (&self.material, algorithm),
                (Material::Rsa { .. }, Rs256 | Rs384 | Rs512)
                    | (Material::P256(_), Es256)
                    | (Material::P384(_), Es384)
                    | (Material::Ed25519(_), EdDsa)
            )
    }

    fn is_named_by(&self, token: &Unproven<'_>) -> bool {
        match (&token.kid, &self.kid) {
            (Some(wanted), Some(kid)) => wanted == kid,
            (Some(_), None) | (None, _) => true,
        }
    }

    /// Whether the key signed a token.
    pub fn proves(&self, token: &Unproven<'_>) -> bool {
        if !self.serves(token.algorithm) {
            return false;
        }
        let by = |algorithm: &'static dyn signature::VerificationAlgorithm, key: &[u8]| {
            UnparsedPublicKey::new(algorithm, key).verify(token.signed, &token.signature)
        };
        match &self.material {
            Material::Rsa { n, e } => {
                let parameters = match token.algorithm {
                    Algorithm::Rs384 => &signature::RSA_PKCS1_2048_8192_SHA384,
                    Algorithm::Rs512 => &signature::RSA_PKCS1_2048_8192_SHA512,
                    _ => &signature::RSA_PKCS1_2048_8192_SHA256,
                };
                RsaPublicKeyComponents { n, e }.verify(parameters, token.signed, &token.signature)
            }
            Material::P256(key) => by(&signature::ECDSA_P256_SHA256_FIXED, key),
            Material::P384(key) => by(&signature::ECDSA_P384_SHA384_FIXED, key),
            Material::Ed25519(key) => by(&signature::ED25519, key),
        }
        .is_ok()
    }
}

impl KeySet {
    /// Reads a key set; keys that are not understood are left out. `None` when it is no key set.
    pub fn parse(set: &Value) -> Option<Self> {
        let keys = set.get("keys")?.as_array()?;
        Some(Self {
            keys: keys
                .iter()
                .take(MAX_KEYS)
                .filter_map(PublicKey::parse)
                .collect(),
        })
    }

    /// A set of one key.
    pub fn of(key: PublicKey) -> Self {
        Self { keys: vec![key] }
    }

    /// Whether there is no key.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// What a token says, when one of the keys signed it. A token that names its key is held to that key.
    pub fn prove<'t>(&self, token: &'t Unproven<'_>) -> Result<&'t Claims, Refusal> {
        if !self.has_key_of(token) {
            return Err(Refusal::Key);
        }
        if self
            .keys
            .iter()
            .any(|key| key.is_named_by(token) && key.proves(token))
        {
            Ok(token.claims())
        } else {
            Err(Refusal::Signature)
        }
    }

    /// Whether a key may be the one that signed a token.
    pub fn has_key_of(&self, token: &Unproven<'_>) -> bool {
        self.keys.iter().any(|key| key.is_named_by(token))
    }
}
