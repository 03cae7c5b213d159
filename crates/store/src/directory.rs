//! The store's directory: names, the lock, and the syncs that make a name durable.

use crate::{StoreError, segment::Kind};
use std::{
    fs::{File, OpenOptions, TryLockError},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::Mutex,
};

/// Suffix of what is not finished.
pub(crate) const TMP: &str = "tmp";

/// The directory, held.
#[derive(Debug)]
pub(crate) struct Directory {
    path: PathBuf,
    sync: bool,
    lock: Mutex<Option<File>>,
}

/// What a file in the directory is, by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Name {
    Segment(u32, Kind),
    Hint(u32),
    Tmp,
}

impl Name {
    fn parse(name: &str) -> Option<Self> {
        if name.ends_with(".tmp") {
            return Some(Self::Tmp);
        }
        let (number, kind) = name.split_once('.')?;
        if number.len() != 8 {
            return None;
        }
        let number = u32::from_str_radix(number, 16).ok()?;
        match kind {
            "log" => Some(Self::Segment(number, Kind::Log)),
            "packed" => Some(Self::Segment(number, Kind::Packed)),
            "hint" => Some(Self::Hint(number)),
            _ => None,
        }
    }

    fn file_name(self) -> String {
        match self {
            Self::Segment(id, Kind::Log) => format!("{id:08x}.log"),
            Self::Segment(id, Kind::Packed) => format!("{id:08x}.packed"),
            Self::Hint(id) => format!("{id:08x}.hint"),
            Self::Tmp => format!("any.{TMP}"),
        }
    }
}

impl Directory {
    /// Creates the directory when it is absent, and takes its lock.
    pub(crate) fn open(path: &Path, sync: bool) -> Result<Self, StoreError> {
        let display = || path.display().to_string();
        let io = |source| StoreError::Io {
            dir: display(),
            source,
        };
        if !path.is_dir() {
            std::fs::create_dir_all(path).map_err(io)?;
            if sync && let Some(parent) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
                sync_directory(parent).map_err(io)?;
            }
        }
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(path.join("lock"))
            .map_err(io)?;
        match lock.try_lock() {
            Ok(()) => {
                // For the message to a second one; a full disk must not stop a store.
                let _ = lock
                    .set_len(0)
                    .and_then(|()| writeln!(&lock, "{}", std::process::id()));
                Ok(Self {
                    path: path.to_owned(),
                    sync,
                    lock: Mutex::new(Some(lock)),
                })
            }
            Err(TryLockError::WouldBlock) => Err(StoreError::InUse { dir: display() }),
            Err(TryLockError::Error(source)) => Err(io(source)),
        }
    }

    /// An error of this store.
    pub(crate) fn io(&self, source: io::Error) -> StoreError {
        StoreError::Io {
            dir: self.display(),
            source,
        }
    }

    /// A rotten record of this store.
    pub(crate) fn corrupt(&self, key: &[u8]) -> StoreError {
        StoreError::Corrupt {
            dir: self.display(),
            key: key.escape_ascii().to_string(),
        }
    }

    /// For messages.
    pub(crate) fn display(&self) -> String {
        self.path.display().to_string()
    }

    /// Lets others open it.
    pub(crate) fn unlock(&self) {
        crate::queue::lock(&self.lock).take();
    }

    /// The path of a file.
    pub(crate) fn path(&self, name: Name) -> PathBuf {
        self.path.join(name.file_name())
    }

    /// The path of a file while it is being made.
    pub(crate) fn tmp_path(&self, name: Name) -> PathBuf {
        self.path.join(format!("{}.{TMP}", name.file_name()))
    }

    /// The store's files, by name; others are not ours.
    pub(crate) fn list(&self) -> io::Result<Vec<(Name, PathBuf)>> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir(&self.path)? {
            let entry = entry?;
            if let Some(name) = entry.file_name().to_str().and_then(Name::parse) {
                found.push((name, entry.path()));
            }
        }
        found.sort();
        Ok(found)
    }

    /// Makes names (created, renamed, removed) durable.
    pub(crate) fn sync(&self) -> io::Result<()> {
        if self.sync {
            sync_directory(&self.path)?;
        }
        Ok(())
    }

    /// Makes a file's content durable.
    pub(crate) fn sync_file(&self, file: &File) -> io::Result<()> {
        if self.sync {
            file.sync_data()?;
        }
        Ok(())
    }
}

fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Removes a file; one that is not there is fine.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_their_own_inverse() {
        for name in [
            Name::Segment(1, Kind::Log),
            Name::Segment(0xdead_beef, Kind::Packed),
            Name::Hint(7),
            Name::Tmp,
        ] {
            assert_eq!(Name::parse(&name.file_name()), Some(name));
        }
        for other in ["lock", "1.log", "0000000g.log", "00000001.bak", "x"] {
            assert_eq!(Name::parse(other), None, "{other}");
        }
    }
}
