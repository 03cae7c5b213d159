//! Private keys that sign certificates.

use crate::PkiError;
use der::{
    Any, Document, Encode,
    asn1::{BitString, Null, ObjectIdentifier, OctetStringRef},
    pem::{self, LineEnding},
};
use ring::{
    rand::SystemRandom,
    signature::{
        ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _, RSA_PKCS1_SHA256, RsaKeyPair,
    },
};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject};
use signature::{Keypair, Signer};
use x509_cert::spki::{
    self, AlgorithmIdentifierOwned, DynSignatureAlgorithmIdentifier, EncodePublicKey,
    SignatureBitStringEncoding, SubjectPublicKeyInfoOwned,
};

const EC_PUBLIC_KEY: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");
const PRIME256V1: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.3.1.7");
const ECDSA_WITH_SHA256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.4.3.2");
const RSA_ENCRYPTION: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");
const SHA256_WITH_RSA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.11");

/// PEM of a private key and of its public key, as tools that sign or verify tokens take them.
#[derive(Clone)]
pub struct KeyPem {
    /// `PRIVATE KEY` (PKCS#8).
    pub private: String,
    /// `PUBLIC KEY`.
    pub public: String,
}

/// PEM of a PKCS#8 key.
pub fn key_pem(pkcs8: &[u8]) -> Result<KeyPem, PkiError> {
    let pem = |label, der: &[u8]| {
        pem::encode_string(label, LineEnding::LF, der)
            .map_err(|error| PkiError::invalid("key", error))
    };
    let private = pem("PRIVATE KEY", pkcs8)?;
    let public = SigningKey::from_pem(&private)?
        .public()
        .to_der()
        .map_err(der_error)?;
    Ok(KeyPem {
        public: pem("PUBLIC KEY", &public)?,
        private,
    })
}

/// A private key that can sign certificates: ECDSA P-256, or RSA (a kubeadm CA).
pub(crate) struct SigningKey {
    pair: Pair,
    public: SubjectPublicKeyInfoOwned,
    pem: String,
    random: SystemRandom,
}

enum Pair {
    Ecdsa(EcdsaKeyPair),
    Rsa(RsaKeyPair),
}

fn der_error(error: der::Error) -> PkiError {
    PkiError::invalid("private key", error)
}

impl SigningKey {
    /// A fresh ECDSA P-256 key.
    pub(crate) fn generate() -> Result<Self, PkiError> {
        let random = SystemRandom::new();
        let document = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &random)
            .map_err(|_| PkiError::invalid("private key", "the system gave no randomness"))?;
        let pem = pem::encode_string("PRIVATE KEY", LineEnding::LF, document.as_ref())
            .map_err(|error| PkiError::invalid("private key", error))?;
        Self::from_pem(&pem)
    }

    /// Reads PKCS#8, PKCS#1 or SEC 1.
    pub(crate) fn from_pem(pem: &str) -> Result<Self, PkiError> {
        let random = SystemRandom::new();
        let key = PrivateKeyDer::from_pem_slice(pem.as_bytes())
            .map_err(|error| PkiError::invalid("private key", error))?;
        let rejected =
            |error: ring::error::KeyRejected| PkiError::invalid("private key", error.to_string());
        let pair = match &key {
            PrivateKeyDer::Pkcs1(der) => {
                Pair::Rsa(RsaKeyPair::from_der(der.secret_pkcs1_der()).map_err(rejected)?)
            }
            PrivateKeyDer::Sec1(der) => {
                let wrapped = pkcs8_of_sec1(der.secret_sec1_der()).map_err(der_error)?;
                Pair::Ecdsa(ecdsa(wrapped.secret_pkcs8_der(), &random).map_err(rejected)?)
            }
            PrivateKeyDer::Pkcs8(der) => {
                let der = der.secret_pkcs8_der();
                match ecdsa(der, &random) {
                    Ok(pair) => Pair::Ecdsa(pair),
                    Err(_) => Pair::Rsa(RsaKeyPair::from_pkcs8(der).map_err(rejected)?),
                }
            }
            _ => {
                return Err(PkiError::invalid(
                    "private key",
                    "neither PKCS#8, PKCS#1 nor SEC 1",
                ));
            }
        };
        let public = pair.public().map_err(der_error)?;
        Ok(Self {
            pair,
            public,
            pem: pem.to_owned(),
            random,
        })
    }

    pub(crate) fn pem(&self) -> &str {
        &self.pem
    }

    pub(crate) fn public(&self) -> &SubjectPublicKeyInfoOwned {
        &self.public
    }
}

fn ecdsa(pkcs8: &[u8], random: &SystemRandom) -> Result<EcdsaKeyPair, ring::error::KeyRejected> {
    EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, pkcs8, random)
}

/// RFC 5958: `SEQUENCE { version 0, algorithm, OCTET STRING }` around an RFC 5915 key of the curve P-256.
fn pkcs8_of_sec1(sec1: &[u8]) -> Result<PrivatePkcs8KeyDer<'static>, der::Error> {
    #[derive(der::Sequence)]
    struct OneAsymmetricKey<'a> {
        version: u8,
        algorithm: AlgorithmIdentifierOwned,
        key: &'a OctetStringRef,
    }
    let der = OneAsymmetricKey {
        version: 0,
        algorithm: p256_algorithm()?,
        key: OctetStringRef::new(sec1)?,
    }
    .to_der()?;
    Ok(PrivatePkcs8KeyDer::from(der))
}

fn p256_algorithm() -> Result<AlgorithmIdentifierOwned, der::Error> {
    Ok(AlgorithmIdentifierOwned {
        oid: EC_PUBLIC_KEY,
        parameters: Some(Any::encode_from(&PRIME256V1)?),
    })
}

impl Pair {
    fn public(&self) -> Result<SubjectPublicKeyInfoOwned, der::Error> {
        let (algorithm, bits) = match self {
            Self::Ecdsa(pair) => (p256_algorithm()?, pair.public_key().as_ref()),
            Self::Rsa(pair) => (
                AlgorithmIdentifierOwned {
                    oid: RSA_ENCRYPTION,
                    parameters: Some(Any::encode_from(&Null)?),
                },
                pair.public_key().as_ref(),
            ),
        };
        Ok(SubjectPublicKeyInfoOwned {
            algorithm,
            subject_public_key: BitString::from_bytes(bits)?,
        })
    }
}

/// An ASN.1 encoded signature.
pub(crate) struct Signed(Vec<u8>);

impl SignatureBitStringEncoding for Signed {
    fn to_bitstring(&self) -> der::Result<BitString> {
        BitString::from_bytes(&self.0)
    }
}

impl Signer<Signed> for SigningKey {
    fn try_sign(&self, message: &[u8]) -> Result<Signed, signature::Error> {
        match &self.pair {
            Pair::Ecdsa(pair) => pair
                .sign(&self.random, message)
                .map(|signed| Signed(signed.as_ref().to_vec()))
                .map_err(|_| signature::Error::new()),
            Pair::Rsa(pair) => {
                let mut signed = vec![0; pair.public().modulus_len()];
                pair.sign(&RSA_PKCS1_SHA256, &self.random, message, &mut signed)
                    .map(|()| Signed(signed))
                    .map_err(|_| signature::Error::new())
            }
        }
    }
}

impl DynSignatureAlgorithmIdentifier for SigningKey {
    fn signature_algorithm_identifier(&self) -> spki::Result<AlgorithmIdentifierOwned> {
        Ok(match self.pair {
            Pair::Ecdsa(_) => AlgorithmIdentifierOwned {
                oid: ECDSA_WITH_SHA256,
                parameters: None,
            },
            Pair::Rsa(_) => AlgorithmIdentifierOwned {
                oid: SHA256_WITH_RSA,
                parameters: Some(Any::encode_from(&Null)?),
            },
        })
    }
}

#[derive(Clone)]
pub(crate) struct VerifyingKey(SubjectPublicKeyInfoOwned);

impl EncodePublicKey for VerifyingKey {
    fn to_public_key_der(&self) -> spki::Result<Document> {
        Ok(Document::encode_msg(&self.0)?)
    }
}

impl Keypair for SigningKey {
    type VerifyingKey = VerifyingKey;

    fn verifying_key(&self) -> VerifyingKey {
        VerifyingKey(self.public.clone())
    }
}
