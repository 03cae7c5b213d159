//! Secrets at rest: which records are encrypted, and the key, which only this node has.
//!
//! Sealed are the objects of `secrets`, offline writes of them, and every shelf ([`super::shelf`]). A sealed value is
//!
//! | bytes | what |
//! |---|---|
//! | 0..2 | magic `c5 01` |
//! | 2..14 | nonce, random for every write |
//! | 14.. | ChaCha20-Poly1305 of the value; the record's key is authenticated with it, so that no record passes for another |
//!
//! The key is derived (HKDF-SHA256) from a random file of the node and from what the node is: its machine id and its name. A
//! directory that comes to another node, or whose key file is gone, opens without its sealed records.

use super::{record, stats::Stats};
use bytes::Bytes;
use ring::{
    aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    hkdf,
    rand::{SecureRandom, SystemRandom},
};
use std::{
    fs,
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};
use yurt_store::{Batch, Commit, Options, Store, StoreError, Usage};

const MAGIC: [u8; 2] = [0xc5, 1];
const KEY_BYTES: usize = 32;
/// Where systems keep an id of the installation.
const MACHINE_ID: &str = "/etc/machine-id";
/// The key file of a cache that was told no other.
const DEFAULT_KEY: &str = "cache.key";

/// What a cache's secrets are bound to.
#[derive(Clone, Debug, Default)]
pub struct Binding {
    /// The file of the random key, made at the first start; `None` for `cache.key` in the directory of the cache (which then
    /// must not be copied).
    pub key_file: Option<PathBuf>,
    /// The id of the machine, `""` when it has none.
    pub machine_id: String,
    /// The name of the node.
    pub node_name: String,
}

impl Binding {
    /// To this machine.
    pub fn of_node(key_file: PathBuf, node_name: &str) -> Self {
        Self {
            key_file: Some(key_file),
            machine_id: fs::read_to_string(MACHINE_ID)
                .map(|id| id.trim().to_owned())
                .unwrap_or_default(),
            node_name: node_name.to_owned(),
        }
    }

    /// The key of a cache, made when there is none or what the file holds is none. A file that cannot be read now is an error,
    /// because the key in it may be needed.
    fn key(&self, dir: &Path) -> Result<Seal, StoreError> {
        let file = match &self.key_file {
            Some(file) => file.clone(),
            None => dir.join(DEFAULT_KEY),
        };
        let at = |source| StoreError::Io {
            dir: file.display().to_string(),
            source,
        };
        let random = match fs::read(&file) {
            Ok(bytes) => <[u8; KEY_BYTES]>::try_from(bytes).ok(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(at(error)),
        };
        let random = match random {
            Some(random) => random,
            None => {
                let mut random = [0; KEY_BYTES];
                fill(&mut random).map_err(at)?;
                if let Err(error) = keep_key(&file, &random) {
                    tracing::warn!(file = %file.display(), %error, "the key of cached secrets cannot be kept: they last until the hub stops");
                }
                random
            }
        };
        Seal::new(&random, &self.machine_id, &self.node_name).map_err(at)
    }
}

fn fill(bytes: &mut [u8]) -> io::Result<()> {
    SystemRandom::new()
        .fill(bytes)
        .map_err(|_| io::Error::other("the system gives no random numbers"))
}

/// Durable, and never half written: a torn key would cost every secret.
fn keep_key(file: &Path, key: &[u8]) -> io::Result<()> {
    let parent = file.parent().unwrap_or(Path::new("."));
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(parent)?;
    let mut name = file.as_os_str().to_owned();
    name.push(".tmp");
    let new = PathBuf::from(name);
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut out = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&new)?;
    out.write_all(key)?;
    out.sync_all()?;
    fs::rename(&new, file)?;
    fs::File::open(parent)?.sync_all()
}

struct Seal {
    key: LessSafeKey,
    /// Tells which key sealed a store, and nothing about it.
    fingerprint: [u8; 16],
}

/// The length of derived bytes.
struct Len(usize);

impl hkdf::KeyType for Len {
    fn len(&self) -> usize {
        self.0
    }
}

impl Seal {
    fn new(random: &[u8; KEY_BYTES], machine_id: &str, node_name: &str) -> io::Result<Self> {
        let prk = hkdf::Salt::new(hkdf::HKDF_SHA256, b"yurt hub cache 1").extract(random);
        let derive = |purpose: &[u8], out: &mut [u8]| {
            let info = [purpose, machine_id.as_bytes(), b"\0", node_name.as_bytes()];
            prk.expand(&info, Len(out.len()))
                .and_then(|okm| okm.fill(out))
                .map_err(|_| io::Error::other("no key can be derived"))
        };
        let mut key = [0; KEY_BYTES];
        derive(b"seal\0", &mut key)?;
        let mut fingerprint = [0; 16];
        derive(b"fingerprint\0", &mut fingerprint)?;
        let key = UnboundKey::new(&CHACHA20_POLY1305, &key)
            .map_err(|_| io::Error::other("the derived key is not one"))?;
        Ok(Self {
            key: LessSafeKey::new(key),
            fingerprint,
        })
    }

    fn close(&self, record: &[u8], value: &[u8]) -> io::Result<Bytes> {
        let mut nonce = [0; NONCE_LEN];
        fill(&mut nonce)?;
        let mut text = value.to_vec();
        let tag = self
            .key
            .seal_in_place_separate_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(record),
                &mut text,
            )
            .map_err(|_| io::Error::other("the value cannot be encrypted"))?;
        Ok([&MAGIC, &nonce[..], &text, tag.as_ref()].concat().into())
    }

    /// `None`: of another key, another record, or damaged.
    fn open(&self, record: &[u8], sealed: &[u8]) -> Option<Bytes> {
        let (nonce, text) = sealed.strip_prefix(&MAGIC)?.split_at_checked(NONCE_LEN)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let mut text = text.to_vec();
        let len = self
            .key
            .open_in_place(nonce, Aad::from(record), &mut text)
            .ok()?
            .len();
        text.truncate(len);
        Some(text.into())
    }
}

/// Whether the record of a key is encrypted.
fn is_sealed(key: &[u8]) -> bool {
    key.starts_with(record::SHELVES) || is_secret(key)
}

/// Whether a record key is of an object of `secrets` (the core group's, in whatever version) or of an offline write of one.
fn is_secret(key: &[u8]) -> bool {
    [record::OBJECTS, record::JOURNAL].iter().any(|prefix| {
        let mut parts = key
            .strip_prefix(*prefix)
            .unwrap_or_default()
            .split(|byte| *byte == b'/');
        parts.next() == Some(b"") && parts.next().is_some() && parts.next() == Some(b"secrets")
    })
}

/// The store, whose secrets only this node can read.
#[derive(Clone)]
pub(crate) struct SealedStore {
    store: Store,
    seal: Arc<Seal>,
}

impl SealedStore {
    /// Puts the seal on a store. What another key sealed is taken out; secrets that an older hub left in the clear are sealed.
    pub(super) fn new(
        store: Store,
        dir: &Path,
        options: Options,
        binding: &Binding,
        stats: &Stats,
    ) -> Result<Self, StoreError> {
        let sealed = Self {
            store,
            seal: Arc::new(binding.key(dir)?),
        };
        let known = sealed.store.get(record::SEAL_KEY).ok().flatten();
        if known.as_deref() == Some(&sealed.seal.fingerprint) || !sealed.adopt(stats)? {
            return Ok(sealed);
        }
        // What was in the clear must not stay in the files.
        sealed.store.close()?;
        let seal = sealed.seal.clone();
        drop(sealed);
        let (store, _) = Store::open(
            dir,
            Options {
                new_segment: true,
                ..options
            },
        )?;
        if let Err(error) = store.purge() {
            tracing::warn!(%error, "secrets that were kept in the clear are still in the files of the cache for a while");
        }
        Ok(Self { store, seal })
    }

    /// Brings the sealed records under the key. `true` when some were in the clear.
    fn adopt(&self, stats: &Stats) -> Result<bool, StoreError> {
        let (mut lost, mut clear) = (0u64, 0u64);
        let mut batch = Batch::default();
        let keys: Vec<Vec<u8>> = [record::OBJECTS, record::JOURNAL, record::SHELVES]
            .iter()
            .flat_map(|prefix| self.store.keys(prefix))
            .filter(|key| is_sealed(key))
            .collect();
        for key in keys {
            match self.store.get(&key) {
                Ok(Some(value)) if value.starts_with(&MAGIC) => {
                    if self.seal.open(&key, &value).is_none() {
                        lost += 1;
                        batch.delete(key);
                    }
                }
                // Shelves never were in the clear.
                Ok(Some(value)) if is_secret(&key) => {
                    clear += 1;
                    self.put(&mut batch, key, value)?;
                }
                Ok(None) => {}
                Ok(Some(_)) | Err(StoreError::Corrupt { .. }) => {
                    lost += 1;
                    batch.delete(key);
                }
                Err(error) => return Err(error),
            }
            if batch.bytes() > 1 << 20 {
                self.store.commit(std::mem::take(&mut batch)).wait()?;
            }
        }
        if lost > 0 {
            // What is not there any more must not count as known to be absent.
            for key in self.store.keys(record::COVERAGES) {
                let object = [record::OBJECTS, &key[record::COVERAGES.len()..]].concat();
                if is_secret(&object) {
                    batch.delete(key);
                }
            }
            stats.unsealable.add(lost);
            tracing::warn!(
                records = lost,
                "cached secrets and tokens were sealed with a key that this node does not have; they are forgotten"
            );
        }
        if clear > 0 {
            tracing::info!(records = clear, "cached secrets are encrypted from now on");
        }
        batch.put(record::SEAL_KEY, self.seal.fingerprint.to_vec());
        self.store.commit(batch).wait()?;
        Ok(clear > 0)
    }

    fn io(&self, source: io::Error) -> StoreError {
        StoreError::Io {
            dir: "cache".into(),
            source,
        }
    }

    /// Adds a value to a batch, sealed when it is one to be sealed.
    pub(crate) fn put(
        &self,
        batch: &mut Batch,
        key: Vec<u8>,
        value: Bytes,
    ) -> Result<(), StoreError> {
        let value = if is_sealed(&key) {
            self.seal
                .close(&key, &value)
                .map_err(|error| self.io(error))?
        } else {
            value
        };
        batch.put(key, value);
        Ok(())
    }

    fn opened(&self, key: &[u8], value: Bytes) -> Result<Bytes, StoreError> {
        if !is_sealed(key) {
            return Ok(value);
        }
        self.seal
            .open(key, &value)
            .ok_or_else(|| StoreError::Corrupt {
                dir: "cache".into(),
                key: String::from_utf8_lossy(key).into_owned(),
            })
    }

    /// A value; `Corrupt` also when it was not sealed by this node for this key.
    pub(crate) fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        self.store
            .get(key)?
            .map(|value| self.opened(key, value))
            .transpose()
    }

    /// As [`Store::scan`].
    pub(crate) fn scan(
        &self,
        prefix: &[u8],
        each: &mut dyn FnMut(&[u8], Bytes) -> bool,
    ) -> Result<(), StoreError> {
        let mut unopened = Ok(());
        let scanned = self
            .store
            .scan(prefix, &mut |key, value| match self.opened(key, value) {
                Ok(value) => each(key, value),
                Err(error) => {
                    if unopened.is_ok() {
                        unopened = Err(error);
                    }
                    true
                }
            });
        scanned.and(unopened)
    }

    /// As [`Store::record_bytes`].
    pub(crate) fn record_bytes(&self, key: &[u8]) -> Option<u32> {
        self.store.record_bytes(key)
    }

    /// As [`Store::keys`].
    pub(crate) fn keys(&self, prefix: &[u8]) -> Vec<Vec<u8>> {
        self.store.keys(prefix)
    }

    /// As [`Store::commit`]; values go through [`SealedStore::put`].
    pub(crate) fn commit(&self, batch: Batch) -> Commit {
        self.store.commit(batch)
    }

    /// As [`Store::try_commit`].
    pub(crate) fn try_commit(&self, batch: Batch) -> Result<Commit, Batch> {
        self.store.try_commit(batch)
    }

    /// As [`Store::usage`].
    pub(crate) fn usage(&self) -> Usage {
        self.store.usage()
    }

    /// As [`Store::close`].
    pub(crate) fn close(&self) -> Result<(), StoreError> {
        self.store.close()
    }
}

impl std::fmt::Debug for SealedStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SealedStore")
            .field("store", &self.store)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seal(random: u8, machine: &str, node: &str) -> Seal {
        Seal::new(&[random; KEY_BYTES], machine, node).expect("a key")
    }

    #[test]
    fn a_sealed_value_opens_here_and_under_its_own_key_only() {
        let here = seal(1, "m", "edge-1");
        let sealed = here
            .close(b"o//v1/secrets/a/b", b"hunter2")
            .expect("sealed");
        assert!(!sealed.windows(7).any(|w| w == b"hunter2"));
        assert_eq!(
            here.open(b"o//v1/secrets/a/b", &sealed).as_deref(),
            Some(&b"hunter2"[..])
        );
        assert_eq!(here.open(b"o//v1/secrets/a/c", &sealed), None);
        for other in [
            seal(2, "m", "edge-1"),
            seal(1, "n", "edge-1"),
            seal(1, "m", "edge-2"),
            seal(1, "", "edge-1"),
        ] {
            assert_eq!(other.open(b"o//v1/secrets/a/b", &sealed), None);
            assert_ne!(other.fingerprint, here.fingerprint);
        }
        for cut in 0..sealed.len() {
            assert_eq!(here.open(b"o//v1/secrets/a/b", &sealed[..cut]), None);
        }
        let again = here
            .close(b"o//v1/secrets/a/b", b"hunter2")
            .expect("sealed");
        assert_ne!(again, sealed, "a nonce of its own");
    }

    #[test]
    fn secrets_and_shelves_are_sealed() {
        for (key, sealed) in [
            ("o//v1/secrets/a/b", true),
            ("j//v1/secrets/a/b", true),
            ("s/tokens/x", true),
            ("o//v1/configmaps/secrets/b", false),
            ("o/secrets.example/v1/secrets/a/b", false),
            ("c//v1/secrets/?&", false),
            ("g/node//v1/secrets/a?&", false),
            ("o//secrets/pods/a/b", false),
            ("", false),
        ] {
            assert_eq!(is_sealed(key.as_bytes()), sealed, "{key}");
        }
    }
}
