//! The addresses that were good last, on the disk: an agent that starts without API server or name server finds its servers by them.

use super::fleet::Door;
use serde::{Deserialize, Serialize};
use std::{
    io,
    path::{Path, PathBuf},
};
use yurt_pki::store::{PUBLIC, read_text, write_whole};

const VERSION: u32 = 1;
/// Most doors that are kept.
const MOST: usize = 128;

#[derive(Deserialize, Serialize)]
struct File {
    version: u32,
    servers: Vec<Kept>,
}

#[derive(Deserialize, Serialize)]
struct Kept {
    host: String,
    port: u16,
    name: String,
    priority: u16,
}

/// The file.
#[derive(Clone, Debug)]
pub(super) struct KnownServers {
    path: PathBuf,
}

impl KnownServers {
    /// In a directory.
    pub(super) fn at(directory: &Path) -> Self {
        Self {
            path: directory.join("known-servers.json"),
        }
    }

    /// What was kept; nothing when there is no file that can be read.
    pub(super) fn read(&self) -> Vec<Door> {
        let Ok(text) = read_text(&self.path) else {
            return Vec::new();
        };
        match serde_json::from_str::<File>(&text) {
            Ok(file) if file.version == VERSION => {
                let door = |kept: Kept| Door {
                    priority: kept.priority,
                    host: kept.host,
                    port: kept.port,
                    name: kept.name,
                };
                file.servers.into_iter().take(MOST).map(door).collect()
            }
            Ok(_) => Vec::new(),
            Err(error) => {
                tracing::warn!(path = %self.path.display(), %error, "not read; it is written anew");
                Vec::new()
            }
        }
    }

    /// Keeps doors, unless they are kept already.
    pub(super) fn write(&self, doors: &[Door]) -> io::Result<()> {
        let kept = |door: &Door| Kept {
            host: door.host.clone(),
            port: door.port,
            name: door.name.clone(),
            priority: door.priority,
        };
        let file = File {
            version: VERSION,
            servers: doors.iter().take(MOST).map(kept).collect(),
        };
        let text = serde_json::to_string_pretty(&file)?;
        if read_text(&self.path).is_ok_and(|there| there == text) {
            return Ok(());
        }
        write_whole(&self.path, text.as_bytes(), PUBLIC)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_read_and_rubbish_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let known = KnownServers::at(directory.path());
        assert!(known.read().is_empty());
        let door = Door {
            priority: 3,
            host: "fd00::1".into(),
            port: 1,
            name: "a".into(),
        };
        known.write(std::slice::from_ref(&door)).unwrap();
        assert_eq!(known.read(), std::slice::from_ref(&door));
        for rubbish in ["", "{", "[]", r#"{"version":2,"servers":[]}"#, "\0"] {
            std::fs::write(&known.path, rubbish).unwrap();
            assert!(known.read().is_empty());
        }
        known.write(std::slice::from_ref(&door)).unwrap();
        assert_eq!(known.read(), [door]);
    }

    /// `/dev/full` stands for a full disk: nothing can be made in a directory that is none.
    #[test]
    fn a_disk_that_takes_nothing_is_an_error_and_keeps_what_was() {
        let known = KnownServers::at(Path::new("/dev/full"));
        assert!(known.write(&[]).is_err());
        assert!(known.read().is_empty());
    }
}
