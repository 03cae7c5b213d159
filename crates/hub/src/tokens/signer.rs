//! The node's own key for service-account tokens: made at first need, kept in a file of its own, never the cloud's. What it
//! signs is good on this node only, and only while the cloud cannot be asked.

use super::{
    Refusal,
    jwt::{Claims, Unproven},
    keys::{KeySet, PublicKey},
    user::hex,
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use ring::{
    rand::{SecureRandom, SystemRandom},
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair},
};
use rustls::pki_types::{PrivatePkcs8KeyDer, pem::PemObject};
use sha2::{Digest, Sha256};
use std::{
    fmt, fs,
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

/// Why the node cannot sign.
#[derive(Debug, thiserror::Error)]
pub enum SignerError {
    /// The key's file cannot be read or written.
    #[error("the node's token key {path}: {source}")]
    Io {
        /// The file.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// The key's file holds no usable key, or the system gave no randomness.
    #[error("the node's token key: {0}")]
    Key(String),
}

/// Signs and proves the node's own tokens.
pub struct Signer {
    pair: EcdsaKeyPair,
    keys: KeySet,
    issuer: String,
    /// The first part of every token it signs.
    header: String,
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Signer")
            .field("issuer", &self.issuer)
            .finish_non_exhaustive()
    }
}

/// How the issuer of a node's own tokens is called. `.local` resolves nowhere: nobody else can be asked about them.
pub fn issuer_of(node: &str) -> String {
    format!("https://node.yurt.local/{node}")
}

/// Where the key lies below the hub's root directory.
pub fn key_path(root: &Path) -> PathBuf {
    root.join("pki").join("node-token.key")
}

impl Signer {
    /// Reads the key; `None` when none was ever made.
    pub fn read(path: &Path, node: &str) -> Result<Option<Self>, SignerError> {
        let pem = match fs::read(path) {
            Ok(pem) => pem,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(io_error(path, source)),
        };
        let key = PrivatePkcs8KeyDer::from_pem_slice(&pem)
            .map_err(|error| SignerError::Key(format!("{}: {error:?}", path.display())))?;
        Self::new(key.secret_pkcs8_der(), node).map(Some)
    }

    /// Makes a key and keeps it; one that another process made meanwhile is read instead.
    pub fn make(path: &Path, node: &str) -> Result<Self, SignerError> {
        let document =
            EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new())
                .map_err(|_| SignerError::Key("the system gave no randomness".into()))?;
        let pem = yurt_pki::key_pem(document.as_ref())
            .map_err(|error| SignerError::Key(error.to_string()))?;
        match store(path, pem.private.as_bytes()) {
            Ok(()) => Self::new(document.as_ref(), node),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                Self::read(path, node)?.ok_or_else(|| io_error(path, error))
            }
            Err(source) => Err(io_error(path, source)),
        }
    }

    fn new(pkcs8: &[u8], node: &str) -> Result<Self, SignerError> {
        let pair = EcdsaKeyPair::from_pkcs8(
            &ECDSA_P256_SHA256_FIXED_SIGNING,
            pkcs8,
            &SystemRandom::new(),
        )
        .map_err(|error| SignerError::Key(error.to_string()))?;
        let point = pair.public_key().as_ref();
        let kid = URL_SAFE_NO_PAD.encode(Sha256::digest(point));
        let header = serde_json::json!({"alg": "ES256", "kid": kid});
        Ok(Self {
            keys: KeySet::of(PublicKey::p256(&kid, point)),
            issuer: issuer_of(node),
            header: URL_SAFE_NO_PAD.encode(header.to_string()),
            pair,
        })
    }

    /// Signs what a token says; issuer and id are set here.
    pub fn sign(&self, mut claims: Claims) -> Result<String, SignerError> {
        let random = SystemRandom::new();
        let mut id = [0; 16];
        let no_randomness = |_| SignerError::Key("the system gave no randomness".into());
        random.fill(&mut id).map_err(no_randomness)?;
        claims.jti = hex(&id);
        claims.iss.clone_from(&self.issuer);
        let claims =
            serde_json::to_vec(&claims).map_err(|error| SignerError::Key(error.to_string()))?;
        let mut token = format!("{}.", self.header);
        URL_SAFE_NO_PAD.encode_string(claims, &mut token);
        let signature = self
            .pair
            .sign(&random, token.as_bytes())
            .map_err(no_randomness)?;
        token.push('.');
        URL_SAFE_NO_PAD.encode_string(signature.as_ref(), &mut token);
        Ok(token)
    }

    /// Whether a token says that this key signed it.
    pub fn is_named_by(&self, token: &str) -> bool {
        token
            .strip_prefix(&self.header)
            .is_some_and(|rest| rest.starts_with('.'))
    }

    /// What a token of this node says, when it is one.
    pub fn prove<'t>(&self, token: &'t Unproven<'_>) -> Result<&'t Claims, Refusal> {
        let claims = self.keys.prove(token)?;
        if claims.iss == self.issuer {
            Ok(claims)
        } else {
            Err(Refusal::Issuer)
        }
    }
}

fn io_error(path: &Path, source: io::Error) -> SignerError {
    SignerError::Io {
        path: path.display().to_string(),
        source,
    }
}

/// Whole or not at all, for its owner only, and never over another key.
fn store(path: &Path, pem: &[u8]) -> io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("."));
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)?;
    let temporary = path.with_extension(format!("key.{}", std::process::id()));
    let written = (|| {
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)?;
        file.write_all(pem)?;
        file.sync_all()?;
        fs::hard_link(&temporary, path)?;
        fs::File::open(directory)?.sync_all()
    })();
    let _ = fs::remove_file(&temporary);
    written
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn claims() -> Claims {
        Claims {
            iss: String::new(),
            sub: "system:serviceaccount:a:b".into(),
            aud: vec!["x".into()],
            exp: 2000,
            nbf: Some(1000),
            iat: Some(1000),
            jti: String::new(),
            kubernetes: None,
        }
    }

    fn proven(signer: &Signer, token: &str) -> Result<Claims, Refusal> {
        let parsed = Unproven::parse(token).unwrap()?;
        signer.prove(&parsed).cloned()
    }

    #[test]
    fn a_key_is_made_once_and_for_its_owner_only() {
        let directory = tempfile::tempdir().unwrap();
        let path = key_path(directory.path());
        assert!(Signer::read(&path, "n").unwrap().is_none());
        let made = Signer::make(&path, "n").unwrap();
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        // Whoever comes second takes the first one's.
        let token = Signer::make(&path, "n").unwrap().sign(claims()).unwrap();
        assert_eq!(proven(&made, &token).unwrap().iss, issuer_of("n"));
        let read = Signer::read(&path, "n").unwrap().unwrap();
        assert!(read.is_named_by(&token));
        assert!(proven(&read, &token).is_ok());
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
        fs::write(&path, "nonsense").unwrap();
        assert!(Signer::read(&path, "n").is_err());
    }

    #[test]
    fn tokens_of_other_nodes_are_not_this_ones() {
        let directory = tempfile::tempdir().unwrap();
        let path = key_path(directory.path());
        let here = Signer::make(&path, "here").unwrap();
        let there = Signer::make(&directory.path().join("other.key"), "there").unwrap();
        let token = there.sign(claims()).unwrap();
        assert!(!here.is_named_by(&token));
        assert_eq!(proven(&here, &token), Err(Refusal::Key));
        // The same key under another name: a disk that was cloned.
        let clone = Signer::read(&path, "clone").unwrap().unwrap();
        assert_eq!(
            proven(&clone, &here.sign(claims()).unwrap()),
            Err(Refusal::Issuer)
        );
    }
}
