//! What a conversion does to a machine, so that tests can be one.

use super::fault::Fault;

/// What is at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Nothing,
    /// A file or a link.
    File,
    Directory,
}

/// How far the hub is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Hub {
    /// Nobody answers, or not well.
    Silent(String),
    Ready,
    /// And the kubelet talks through it.
    Used,
}

/// A machine with files, systemd and maybe a hub. Paths are absolute. What is written is on the disk when it returns, and a file is
/// the old or the new one at any time.
pub(super) trait Machine {
    fn kind(&self, path: &str) -> Result<Kind, Fault>;
    /// Text of a file; `None` where there is none.
    fn read(&self, path: &str) -> Result<Option<String>, Fault>;
    /// Without a mode, that and the owner of the file that is there are kept.
    fn write(&mut self, path: &str, text: &str, mode: Option<u32>) -> Result<(), Fault>;
    fn link(&mut self, path: &str, target: &str) -> Result<(), Fault>;
    /// Puts this program there.
    fn install(&mut self, path: &str) -> Result<(), Fault>;
    /// Makes `to` what `from` is: a file with its owner and mode, or a link.
    fn copy(&mut self, from: &str, to: &str) -> Result<(), Fault>;
    /// Removes a file or link, if there is one.
    fn remove(&mut self, path: &str) -> Result<(), Fault>;
    /// Removes a directory with all in it, if there is one.
    fn remove_all(&mut self, path: &str) -> Result<(), Fault>;
    fn make_directory(&mut self, path: &str) -> Result<(), Fault>;
    /// Removes a directory unless somebody has put something in it.
    fn remove_empty(&mut self, path: &str) -> Result<(), Fault>;

    async fn systemctl(&mut self, words: &[&str]) -> Result<(), Fault>;
    async fn is_active(&mut self, unit: &str) -> bool;
    async fn hub(&mut self) -> Hub;
}
