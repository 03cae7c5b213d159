//! The hub's files below `--root-dir`, with OpenYurt's names.

use super::plan::Kind;
use std::{
    io,
    path::{Path, PathBuf},
};
pub(super) use yurt_pki::store::read_text as read;
use yurt_pki::store::{PUBLIC, PairStore, SECRET, write_whole};

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

    /// The files of one certificate.
    pub(super) fn pairs(&self, kind: Kind) -> PairStore {
        PairStore::new(&self.root.join("pki"), kind.file_prefix())
    }

    /// Certificate and key in one file: a link to the newest.
    pub(super) fn current(&self, kind: Kind) -> PathBuf {
        self.pairs(kind).current()
    }

    /// The hub's kubeconfig.
    pub(super) fn kubeconfig(&self) -> PathBuf {
        self.root.join("yurthub.conf")
    }

    /// Writes a file that anybody may read, unless it says so already.
    pub(super) fn save_public(&self, path: &Path, text: &str) -> io::Result<()> {
        if read(path).is_ok_and(|there| there == text) {
            return Ok(());
        }
        write_whole(path, text.as_bytes(), PUBLIC)
    }

    /// Writes a file with a secret.
    pub(super) fn save_secret(&self, path: &Path, text: &str) -> io::Result<()> {
        write_whole(path, text.as_bytes(), SECRET)
    }
}
