//! The data directory of a lab: who holds it, what is in it.
//!
//! ```text
//! DIR/lab.lock             held while a lab runs; the pid of the holder
//! DIR/lab.json             pools, ports, subnet: read again by a later `yurt up` on the same directory
//! DIR/control.sock         commands of `yurt lab`
//! DIR/pki/                 ca.crt ca.key: made once; sa.key sa.pub: of service account tokens
//! DIR/admin.kubeconfig     the cluster, directly
//! DIR/kube-controller-manager.kubeconfig, DIR/kube-scheduler.kubeconfig   for real ones beside the lab
//! DIR/apiserver/           the API server's store
//! DIR/nodes/NODE/kubeconfig    the cluster, through that node's hub
//! DIR/nodes/NODE/pool.kubeconfig   the hubs of its pool, as that node asks them: a context for each
//! DIR/nodes/NODE/hub.log   what the hub says
//! DIR/nodes/NODE/{pki,cache}
//! ```

use crate::plan::Pools;
use serde::{Deserialize, Serialize};
use std::{
    fs::{self, File, TryLockError},
    io::{Read, Seek, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

/// Why a data directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    /// Another lab runs on it.
    #[error(
        "{dir} is in use by another `yurt up` or `yurt apiserver` (pid {pid}): stop that one, or give another --data-dir"
    )]
    InUse {
        /// The directory.
        dir: PathBuf,
        /// The holder, as it wrote it.
        pid: String,
    },
    /// It holds another lab.
    #[error(
        "{dir} holds a lab with --pools {was}, not {wanted}: use the same pools, another --data-dir, or remove it"
    )]
    OtherPools {
        /// The directory.
        dir: PathBuf,
        /// Its pools.
        was: String,
        /// The pools asked for.
        wanted: String,
    },
    /// The system refuses.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file that an earlier lab wrote does not parse.
    #[error("{path}: {why}; remove the directory to begin anew")]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
}

/// What a lab remembers about itself.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct Manifest {
    /// `--pools`.
    pub pools: String,
    /// Second octet of the nodes' loopback addresses.
    pub subnet: u8,
    /// The API server's port.
    pub port: u16,
    /// Bearer token of the administrator, the identity in the nodes' kubeconfigs.
    pub admin_token: String,
}

/// A locked data directory.
#[derive(Debug)]
pub struct Directory {
    root: PathBuf,
    _lock: File,
}

impl Directory {
    /// Creates the directory when absent and locks it for this process.
    pub fn lock(root: &Path) -> Result<Self, DirectoryError> {
        let io = |path: &Path| {
            let path = path.to_owned();
            move |source| DirectoryError::Io { path, source }
        };
        fs::create_dir_all(root).map_err(io(root))?;
        // Everything below holds private keys.
        fs::set_permissions(root, fs::Permissions::from_mode(0o700)).map_err(io(root))?;
        let root = fs::canonicalize(root).map_err(io(root))?;
        let path = root.join("lab.lock");
        let mut file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(io(&path))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut pid = String::new();
                // The pid only helps the message; the lock is what counts.
                let _ = (&mut file).take(32).read_to_string(&mut pid);
                return Err(DirectoryError::InUse {
                    dir: root,
                    pid: pid.trim().to_owned(),
                });
            }
            Err(TryLockError::Error(source)) => return Err(DirectoryError::Io { path, source }),
        }
        file.set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| writeln!(file, "{}", std::process::id()))
            .map_err(io(&path))?;
        Ok(Self { root, _lock: file })
    }

    /// The directory itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// A path below it.
    pub fn join(&self, path: impl AsRef<Path>) -> PathBuf {
        self.root.join(path)
    }

    /// The directory of one node.
    pub fn node(&self, name: &str) -> PathBuf {
        self.root.join("nodes").join(name)
    }

    /// Creates a directory below.
    pub fn create(&self, path: impl AsRef<Path>) -> Result<PathBuf, DirectoryError> {
        let path = self.root.join(path);
        fs::create_dir_all(&path).map_err(|source| DirectoryError::Io {
            path: path.clone(),
            source,
        })?;
        Ok(path)
    }

    /// Writes a file only its owner may read, whole or not at all.
    pub fn write(&self, path: impl AsRef<Path>, content: &str) -> Result<PathBuf, DirectoryError> {
        let path = self.root.join(path);
        let beside = path.with_extension("new");
        let write = || -> std::io::Result<()> {
            let mut file = File::options()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(&beside)?;
            file.write_all(content.as_bytes())?;
            file.sync_all()?;
            fs::rename(&beside, &path)
        };
        write().map_err(|source| DirectoryError::Io {
            path: path.clone(),
            source,
        })?;
        Ok(path)
    }

    /// Reads a file; `None` when absent.
    pub fn read(&self, path: impl AsRef<Path>) -> Result<Option<String>, DirectoryError> {
        let path = self.root.join(path);
        match fs::read_to_string(&path) {
            Ok(text) => Ok(Some(text)),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(DirectoryError::Io { path, source }),
        }
    }

    /// The manifest of an earlier lab here, checked against the pools asked for.
    pub fn manifest(&self, wanted: &Pools) -> Result<Option<Manifest>, DirectoryError> {
        let Some(text) = self.read("lab.json")? else {
            return Ok(None);
        };
        let manifest: Manifest =
            serde_json::from_str(&text).map_err(|e| DirectoryError::Corrupt {
                path: self.join("lab.json"),
                why: e.to_string(),
            })?;
        if manifest.pools != wanted.to_string() {
            return Err(DirectoryError::OtherPools {
                dir: self.root.clone(),
                was: manifest.pools,
                wanted: wanted.to_string(),
            });
        }
        Ok(Some(manifest))
    }

    /// Remembers the manifest.
    pub fn remember(&self, manifest: &Manifest) -> Result<(), DirectoryError> {
        let text = serde_json::to_string_pretty(manifest).map_err(|e| DirectoryError::Corrupt {
            path: self.join("lab.json"),
            why: e.to_string(),
        })?;
        self.write("lab.json", &text).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("yurt-lab-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        dir
    }

    #[test]
    fn a_directory_in_use_is_refused_with_the_holder() {
        let dir = scratch("lock");
        let held = Directory::lock(&dir).unwrap();
        let refused = Directory::lock(&dir).unwrap_err().to_string();
        assert!(
            refused.contains(&format!("pid {}", std::process::id())),
            "{refused}"
        );
        drop(held);
        Directory::lock(&dir).unwrap();
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn other_pools_are_refused() {
        let dir = scratch("pools");
        let held = Directory::lock(&dir).unwrap();
        let manifest = Manifest {
            pools: "a=1".into(),
            subnet: 10,
            port: 1,
            admin_token: "t".into(),
        };
        held.remember(&manifest).unwrap();
        assert_eq!(
            held.manifest(&"a=1".parse().unwrap()).unwrap(),
            Some(manifest)
        );
        let refused = held.manifest(&"a=2".parse().unwrap()).unwrap_err();
        assert!(matches!(refused, DirectoryError::OtherPools { .. }));
        fs::write(dir.join("lab.json"), "{").unwrap();
        let refused = held.manifest(&"a=1".parse().unwrap()).unwrap_err();
        assert!(matches!(refused, DirectoryError::Corrupt { .. }));
        drop(held);
        fs::remove_dir_all(&dir).unwrap();
    }
}
