//! Certificates with their keys in files, named as client-go's certificate manager names them. Written whole or not at all: a new
//! file replaces the old one when it is on the disk. What cannot be read counts as absent.

use crate::{Callers, KeyPairPem, Leaf, PkiError, Request, certs_from_pem, server_config_for};
use std::{
    fs::{self, File},
    io::{self, Read, Write},
    os::unix::fs::{OpenOptionsExt, symlink},
    path::{Path, PathBuf},
};

/// Largest file that is read.
const MOST: u64 = 1 << 20;
/// Certificates of the past that are kept.
const KEPT: usize = 2;
/// The mode of files with private keys and tokens.
pub const SECRET: u32 = 0o600;
/// The mode of files that anybody may read.
pub const PUBLIC: u32 = 0o644;
const BEGIN_REQUEST: &str = "-----BEGIN CERTIFICATE REQUEST-----";

/// A certificate with its key, and what it says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    /// Certificate and key.
    pub pem: KeyPairPem,
    /// What the certificate says.
    pub leaf: Leaf,
}

impl Pair {
    /// Checks that they belong together.
    pub fn of(pem: KeyPairPem) -> Result<Self, PkiError> {
        let first = certs_from_pem(&pem.cert)?;
        let leaf = Leaf::of(first.first().map_or(&[][..], |der| der))?;
        // Finds a key that is another certificate's.
        server_config_for(&pem, Callers::Unasked, false)?;
        Ok(Self { pem, leaf })
    }

    /// Reads both from files, which may be the same.
    pub fn read(cert: &Path, key: &Path) -> Result<Self, PkiError> {
        let read = |path: &Path| {
            read_text(path).map_err(|source| PkiError::Io {
                path: path.display().to_string(),
                source,
            })
        };
        Self::of(KeyPairPem {
            cert: read(cert)?,
            key: read(key)?,
        })
    }
}

/// The files of one certificate: `PREFIX-DATE.pem` with certificate and key, a link `PREFIX-current.pem` to the newest,
/// `PREFIX-pending.pem` with the key and request that wait for a certificate.
#[derive(Clone, Debug)]
pub struct PairStore {
    directory: PathBuf,
    prefix: String,
}

impl PairStore {
    /// Files with a prefix in a directory, which is made when something is written.
    pub fn new(directory: &Path, prefix: &str) -> Self {
        Self {
            directory: directory.to_owned(),
            prefix: prefix.to_owned(),
        }
    }

    /// Certificate and key in one file: a link to the newest.
    pub fn current(&self) -> PathBuf {
        self.directory.join(format!("{}-current.pem", self.prefix))
    }

    fn pending(&self) -> PathBuf {
        self.directory.join(format!("{}-pending.pem", self.prefix))
    }

    /// Keeps a certificate and its key under the time's name (seconds since the epoch) and links to it.
    pub fn save(&self, pair: &KeyPairPem, now: i64) -> io::Result<()> {
        let time = jiff::Timestamp::from_second(now).unwrap_or_default();
        let name = format!("{}-{}.pem", self.prefix, time.strftime("%Y-%m-%d-%H-%M-%S"));
        let path = self.directory.join(&name);
        let text = format!("{}\n{}", pair.cert.trim_end(), pair.key);
        write_whole(&path, text.as_bytes(), SECRET)?;
        let link = self.current();
        let fresh = link.with_extension("new");
        let _ = fs::remove_file(&fresh);
        symlink(&name, &fresh)?;
        fs::rename(&fresh, &link)?;
        sync_directory(&path)?;
        self.forget_old(&name);
        Ok(())
    }

    /// Removes certificates of the past but the last few.
    fn forget_old(&self, newest: &str) {
        let Ok(entries) = fs::read_dir(&self.directory) else {
            return;
        };
        let is_dated = |name: &str| {
            let date = name
                .strip_prefix(self.prefix.as_str())
                .and_then(|rest| rest.strip_prefix('-'))
                .and_then(|rest| rest.strip_suffix(".pem"));
            date.is_some_and(|date| {
                !date.is_empty() && date.bytes().all(|b| b.is_ascii_digit() || b == b'-')
            })
        };
        let mut names: Vec<String> = entries
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter(|name| is_dated(name) && name != newest)
            .collect();
        names.sort_unstable();
        names.truncate(names.len().saturating_sub(KEPT - 1));
        for name in names {
            // One that stays does no harm.
            let _ = fs::remove_file(self.directory.join(name));
        }
    }

    /// The key and request that are waiting for a certificate.
    pub fn read_pending(&self) -> Option<Request> {
        let text = read_text(&self.pending()).ok()?;
        let (key, request) = text.split_at(text.find(BEGIN_REQUEST)?);
        Some(Request {
            request: request.to_owned(),
            key: key.to_owned(),
        })
    }

    /// Keeps a key and its request, so that a restart goes on with them.
    pub fn save_pending(&self, made: &Request) -> io::Result<()> {
        let text = format!("{}\n{}", made.key.trim_end(), made.request);
        write_whole(&self.pending(), text.as_bytes(), SECRET)
    }

    /// Nothing is waiting any more.
    pub fn drop_pending(&self) {
        // An old one is compared with what is wanted before it is used.
        let _ = fs::remove_file(self.pending());
    }
}

/// Reads a text file of bounded size.
pub fn read_text(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(MOST + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MOST {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "too large"));
    }
    Ok(text)
}

/// Replaces a file, or makes it and its directory: whole and on the disk, or as it was.
pub fn write_whole(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(directory)?;
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".tmp");
    let fresh = directory.join(name);
    // One of a crash may have other permissions.
    let _ = fs::remove_file(&fresh);
    let mut file = File::options()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&fresh)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&fresh, path)?;
    sync_directory(path)
}

fn sync_directory(of: &Path) -> io::Result<()> {
    File::open(of.parent().unwrap_or(Path::new(".")))?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Profile;
    use std::os::unix::fs::PermissionsExt;

    fn pair(cert: &str) -> KeyPairPem {
        KeyPairPem {
            cert: cert.into(),
            key: "KEY\n".into(),
        }
    }

    #[test]
    fn the_newest_certificate_is_current_and_few_are_kept() {
        let root = tempfile::tempdir().expect("a directory");
        let pki = root.path().join("pki");
        let (client, serving) = (
            PairStore::new(&pki, "hub"),
            PairStore::new(&pki, "hub-server"),
        );
        for second in 0..5 {
            let text = format!("C{second}");
            client
                .save(&pair(&text), 1_000_000 + second)
                .expect("saved");
        }
        serving.save(&pair("S"), 1_000_000).expect("saved");
        let read = |store: &PairStore| read_text(&store.current()).expect("read");
        assert_eq!(read(&client), "C4\nKEY\n");
        let target = fs::read_link(client.current()).expect("a link");
        assert_eq!(target.to_str(), Some("hub-1970-01-12-13-46-44.pem"));
        let mode = fs::metadata(client.current())
            .expect("there")
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, SECRET);
        assert_eq!(read(&serving), "S\nKEY\n");
        let left = fs::read_dir(&pki).expect("listed").count();
        assert_eq!(
            left,
            2 + 1 + 1 + 1,
            "two of the client, one of the server, two links"
        );
        // A clock that went back does not bring an old one back.
        client.save(&pair("C5"), 0).expect("saved");
        assert_eq!(read(&client), "C5\nKEY\n");
        client.save(&pair("C6"), i64::MAX).expect("saved");
        assert_eq!(read(&client), "C6\nKEY\n");
    }

    #[test]
    fn a_pending_request_survives() {
        let root = tempfile::tempdir().expect("a directory");
        let store = PairStore::new(root.path(), "hub");
        assert!(store.read_pending().is_none());
        let made = crate::request(&Profile {
            common_name: "n".into(),
            ..Profile::default()
        })
        .expect("made");
        store.save_pending(&made).expect("saved");
        let read = store.read_pending().expect("read");
        assert_eq!(read.request, made.request);
        assert_eq!(read.key.trim(), made.key.trim());
        store.drop_pending();
        assert!(store.read_pending().is_none());
        write_whole(&store.pending(), b"nonsense", SECRET).expect("written");
        assert!(store.read_pending().is_none());
    }

    #[test]
    fn huge_files_are_not_read() {
        assert!(read_text(Path::new("/dev/zero")).is_err());
    }
}
