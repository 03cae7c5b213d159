//! Where certificates are kept.

use super::Bundle;
use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Value, json};
use std::{
    io,
    path::{Path, PathBuf},
};
use yurt_controller::{
    Collection, Key,
    kube::{Kube, KubeError},
};
use yurt_pki::{KeyPairPem, PkiError};

const SECRETS: Collection = Collection::namespaced("v1", "secrets", "Secret");

/// The names of what is kept: OpenYurt's, which has certificate and key under two names each.
const CA_CERTIFICATE: &str = "ca-cert.pem";
const CA_KEY: &str = "ca-key.pem";
const CERTIFICATE: [&str; 2] = ["tls.crt", "cert.pem"];
const PRIVATE_KEY: [&str; 2] = ["tls.key", "key.pem"];

/// Why certificates could not be kept. Another try may help.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    #[error(transparent)]
    Kube(#[from] KubeError),
    #[error(transparent)]
    Pki(#[from] PkiError),
    #[error("{path}: {source}", path = path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("other replicas write all the time")]
    Contended,
}

impl StoreError {
    /// Whether another replica was there first.
    pub(crate) fn is_conflict(&self) -> bool {
        matches!(self, Self::Kube(error) if error.is_conflict())
    }
}

/// Where certificates are kept.
pub(crate) enum Store {
    Secret { kube: Box<Kube>, key: Key },
    Directory(PathBuf),
}

/// What was read.
pub(crate) struct Kept {
    /// `None`: nothing, or not all of it.
    pub(crate) bundle: Option<Bundle>,
    /// The Secret, if there is one.
    secret: Option<Value>,
}

impl Bundle {
    fn read(read: impl Fn(&str) -> Option<String>) -> Option<Self> {
        let either = |names: [&str; 2]| names.into_iter().find_map(&read);
        Some(Self {
            authorities: read(CA_CERTIFICATE)?,
            authority_key: read(CA_KEY)?,
            own: KeyPairPem {
                cert: either(CERTIFICATE)?,
                key: either(PRIVATE_KEY)?,
            },
        })
    }

    /// What is kept under which name, keys before their certificates.
    fn parts(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let both = |names: [&'static str; 2], text| names.into_iter().map(move |name| (name, text));
        [
            (CA_KEY, self.authority_key.as_str()),
            (CA_CERTIFICATE, &self.authorities),
        ]
        .into_iter()
        .chain(both(PRIVATE_KEY, self.own.key.as_str()))
        .chain(both(CERTIFICATE, self.own.cert.as_str()))
    }
}

impl Store {
    pub(crate) fn secret(kube: &Kube, namespace: &str, name: &str) -> Self {
        Self::Secret {
            kube: Box::new(kube.clone()),
            key: Key::new(namespace, name),
        }
    }

    pub(crate) async fn read(&self) -> Result<Kept, StoreError> {
        match self {
            Self::Secret { kube, key } => {
                let secret = match kube.get(&SECRETS.object_path(key)).await {
                    Ok(secret) => Some(secret),
                    Err(error) if error.is_not_found() => None,
                    Err(error) => return Err(error.into()),
                };
                let part = |name: &str| {
                    let text = secret.as_ref()?["data"][name].as_str()?;
                    String::from_utf8(STANDARD.decode(text).ok()?).ok()
                };
                let bundle = Bundle::read(part);
                Ok(Kept { bundle, secret })
            }
            Self::Directory(directory) => {
                // One whose parts are not of each other is no more use than none; that is found out by who uses it.
                let part = |name: &str| std::fs::read_to_string(directory.join(name)).ok();
                Ok(Kept {
                    bundle: Bundle::read(part),
                    secret: None,
                })
            }
        }
    }

    /// Keeps a bundle, unless somebody wrote since `kept` was read.
    pub(crate) async fn write(&self, kept: Kept, bundle: &Bundle) -> Result<(), StoreError> {
        match self {
            Self::Secret { kube, key } => {
                let data: serde_json::Map<String, Value> = bundle
                    .parts()
                    .map(|(name, text)| (name.into(), STANDARD.encode(text).into()))
                    .collect();
                match kept.secret {
                    Some(mut secret) => {
                        match secret["data"].as_object_mut() {
                            Some(known) => known.extend(data),
                            None => secret["data"] = data.into(),
                        }
                        kube.replace(&SECRETS.object_path(key), &secret).await?;
                    }
                    None => {
                        let secret = json!({"apiVersion": "v1", "kind": "Secret", "type": "Opaque",
                            "metadata": {"name": key.name, "namespace": key.namespace}, "data": data});
                        kube.create(&SECRETS.path(&key.namespace), &secret).await?;
                    }
                }
                Ok(())
            }
            Self::Directory(directory) => {
                for (name, text) in bundle.parts() {
                    let path = directory.join(name);
                    put(directory, &path, text)
                        .map_err(|source| StoreError::File { path, source })?;
                }
                Ok(())
            }
        }
    }
}

/// Writes a file that only we may read, whole or not at all.
fn put(directory: &Path, path: &Path, text: &str) -> io::Result<()> {
    use std::{io::Write, os::unix::fs::OpenOptionsExt};
    std::fs::create_dir_all(directory)?;
    let mut next = path.as_os_str().to_owned();
    next.push(".next");
    // Who left one of another owner or mode there does not get the key.
    match std::fs::remove_file(&next) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&next)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&next, path)
}
