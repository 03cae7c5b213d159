//! The hub's files below `--root-dir`, with OpenYurt's names. Written whole or not at all: a new file replaces the old one when it
//! is on the disk. What cannot be read counts as absent.

use super::plan::Kind;
use std::{
    fs::{self, File},
    io::{self, Read, Write},
    os::unix::fs::{OpenOptionsExt, symlink},
    path::{Path, PathBuf},
};
use yurt_pki::{KeyPairPem, Request};

/// Largest file that is read.
const MOST: u64 = 1 << 20;
/// Certificates of the past that are kept.
const KEPT: usize = 2;
/// Private keys are for the hub alone.
const SECRET: u32 = 0o600;
const PUBLIC: u32 = 0o644;
const BEGIN_REQUEST: &str = "-----BEGIN CERTIFICATE REQUEST-----";

/// Where the files are.
#[derive(Clone, Debug)]
pub(super) struct Files {
    root: PathBuf,
}

impl Files {
    pub(super) fn at(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
        }
    }

    fn pki(&self) -> PathBuf {
        self.root.join("pki")
    }

    /// Certificate and key in one file: a link to the newest.
    pub(super) fn current(&self, kind: Kind) -> PathBuf {
        self.pki()
            .join(format!("{}-current.pem", kind.file_prefix()))
    }

    /// The hub's kubeconfig.
    pub(super) fn kubeconfig(&self) -> PathBuf {
        self.root.join("yurthub.conf")
    }

    fn pending(&self, kind: Kind) -> PathBuf {
        self.pki()
            .join(format!("{}-pending.pem", kind.file_prefix()))
    }

    /// Keeps a certificate and its key under the time's name and links to it.
    pub(super) fn save(&self, kind: Kind, pair: &KeyPairPem, now: i64) -> io::Result<()> {
        let time = jiff::Timestamp::from_second(now).unwrap_or_default();
        let prefix = kind.file_prefix();
        let name = format!("{prefix}-{}.pem", time.strftime("%Y-%m-%d-%H-%M-%S"));
        let path = self.pki().join(&name);
        let text = format!("{}\n{}", pair.cert.trim_end(), pair.key);
        write(&path, text.as_bytes(), SECRET)?;
        let link = self.current(kind);
        let fresh = link.with_extension("new");
        let _ = fs::remove_file(&fresh);
        symlink(&name, &fresh)?;
        fs::rename(&fresh, &link)?;
        sync_directory(&path)?;
        self.forget_old(prefix, &name);
        Ok(())
    }

    /// Removes certificates of the past but the last few.
    fn forget_old(&self, prefix: &str, newest: &str) {
        let Ok(entries) = fs::read_dir(self.pki()) else {
            return;
        };
        let is_dated = |name: &str| {
            let date = name
                .strip_prefix(prefix)
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
            let _ = fs::remove_file(self.pki().join(name));
        }
    }

    /// The key and request that are waiting for a certificate.
    pub(super) fn read_pending(&self, kind: Kind) -> Option<Request> {
        let text = read(&self.pending(kind)).ok()?;
        let (key, request) = text.split_at(text.find(BEGIN_REQUEST)?);
        Some(Request {
            request: request.to_owned(),
            key: key.to_owned(),
        })
    }

    /// Keeps a key and its request, so that a restart goes on with them.
    pub(super) fn save_pending(&self, kind: Kind, made: &Request) -> io::Result<()> {
        let text = format!("{}\n{}", made.key.trim_end(), made.request);
        write(&self.pending(kind), text.as_bytes(), SECRET)
    }

    /// Nothing is waiting any more.
    pub(super) fn drop_pending(&self, kind: Kind) {
        // An old one is compared with what is wanted before it is used.
        let _ = fs::remove_file(self.pending(kind));
    }

    /// Writes a file that anybody may read, unless it says so already.
    pub(super) fn save_public(&self, path: &Path, text: &str) -> io::Result<()> {
        if read(path).is_ok_and(|there| there == text) {
            return Ok(());
        }
        write(path, text.as_bytes(), PUBLIC)
    }

    /// Writes a file with a secret.
    pub(super) fn save_secret(&self, path: &Path, text: &str) -> io::Result<()> {
        write(path, text.as_bytes(), SECRET)
    }
}

/// Reads a text file of bounded size.
pub(super) fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(MOST + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MOST {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "too large"));
    }
    Ok(text)
}

fn write(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
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
    use std::os::unix::fs::PermissionsExt;

    fn pair(cert: &str) -> KeyPairPem {
        KeyPairPem {
            cert: cert.into(),
            key: "KEY\n".into(),
        }
    }

    #[test]
    fn the_newest_certificate_is_current_and_few_are_kept() {
        let root = tempfile::tempdir().unwrap();
        let files = Files::at(root.path());
        for second in 0..5 {
            files
                .save(
                    Kind::Client,
                    &pair(&format!("C{second}")),
                    1_000_000 + second,
                )
                .unwrap();
        }
        files.save(Kind::Serving, &pair("S"), 1_000_000).unwrap();
        let current = files.current(Kind::Client);
        assert_eq!(read(&current).unwrap(), "C4\nKEY\n");
        assert_eq!(
            fs::read_link(&current).unwrap().to_str().unwrap(),
            "yurthub-1970-01-12-13-46-44.pem"
        );
        let mode = fs::metadata(&current).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(read(&files.current(Kind::Serving)).unwrap(), "S\nKEY\n");
        let left = fs::read_dir(root.path().join("pki")).unwrap().count();
        assert_eq!(
            left,
            2 + 1 + 1 + 1,
            "two of the client, one of the server, two links"
        );
        // A clock that went back does not bring an old one back.
        files.save(Kind::Client, &pair("C5"), 0).unwrap();
        assert_eq!(read(&current).unwrap(), "C5\nKEY\n");
        files.save(Kind::Client, &pair("C6"), i64::MAX).unwrap();
        assert_eq!(read(&current).unwrap(), "C6\nKEY\n");
    }

    #[test]
    fn a_pending_request_survives() {
        let root = tempfile::tempdir().unwrap();
        let files = Files::at(root.path());
        assert!(files.read_pending(Kind::Client).is_none());
        let made = yurt_pki::request(&super::super::plan::client_profile("n", &[])).unwrap();
        files.save_pending(Kind::Client, &made).unwrap();
        let read = files.read_pending(Kind::Client).unwrap();
        assert_eq!(read.request, made.request);
        assert_eq!(read.key.trim(), made.key.trim());
        files.drop_pending(Kind::Client);
        assert!(files.read_pending(Kind::Client).is_none());
        files
            .save_secret(&files.pending(Kind::Client), "nonsense")
            .unwrap();
        assert!(files.read_pending(Kind::Client).is_none());
    }

    #[test]
    fn huge_files_are_not_read() {
        assert!(read(Path::new("/dev/zero")).is_err());
    }
}
