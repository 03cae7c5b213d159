//! One hub per data directory. The lock is the kernel's (`flock`): it ends with its process, however that ended.

use std::{
    fs::{File, OpenOptions, TryLockError},
    io::{self, Write},
    path::{Path, PathBuf},
};

/// The file that is locked; it holds the process id of the holder, for people.
const FILE: &str = "yurthub.lock";

/// Holds a directory until dropped.
#[derive(Debug)]
pub(super) struct Lock {
    _file: File,
}

/// Why a directory is not held.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another process has it.
    #[error("{} is in use by another hub{}", .dir.display(), .holder.map(|pid| format!(" (process {pid})")).unwrap_or_default())]
    InUse {
        /// The directory.
        dir: PathBuf,
        /// The other process, when it said so.
        holder: Option<u32>,
    },
    /// It cannot be made or written.
    #[error("the directory {} cannot be used: {source}", .dir.display())]
    Io {
        /// The directory.
        dir: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl Lock {
    /// Makes the directory when it is absent, and takes it.
    pub(super) fn take(dir: &Path) -> Result<Self, LockError> {
        let failed = |source| LockError::Io {
            dir: dir.to_owned(),
            source,
        };
        std::fs::create_dir_all(dir).map_err(failed)?;
        let path = dir.join(FILE);
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {
                // Only for people: a full disk must not stop a hub.
                let _ = file
                    .set_len(0)
                    .and_then(|()| writeln!(file, "{}", std::process::id()));
                Ok(Self { _file: file })
            }
            Err(TryLockError::WouldBlock) => Err(LockError::InUse {
                dir: dir.to_owned(),
                holder: holder(&path),
            }),
            Err(TryLockError::Error(source)) => Err(failed(source)),
        }
    }
}

/// The process id that a lock file holds. The store of the cache writes its own likewise.
pub(super) fn holder(file: &Path) -> Option<u32> {
    std::fs::read_to_string(file).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn held_by_one_and_free_when_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("a/b");
        let lock = Lock::take(&dir).unwrap();
        let refused = Lock::take(&dir).unwrap_err();
        let pid = std::process::id();
        assert!(matches!(refused, LockError::InUse { holder: Some(by), .. } if by == pid));
        assert_eq!(
            refused.to_string(),
            format!("{} is in use by another hub (process {pid})", dir.display())
        );
        drop(lock);
        // What a killed hub left in the file does not matter.
        std::fs::write(dir.join(FILE), "4194303\nnonsense").unwrap();
        drop(Lock::take(&dir).unwrap());
        let file = dir.join("file");
        std::fs::write(&file, "").unwrap();
        assert!(matches!(Lock::take(&file), Err(LockError::Io { .. })));
    }
}
