//! Why a node is not converted or reverted, and how it was left.

use crate::{HubError, Outcome};
use std::io;

/// Why a command for the node's conversion failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    /// The node, or what was asked for, does not fit. Nothing was changed; again is of no use before that is put right.
    #[error("{0}; nothing was changed")]
    Unfit(String),
    /// Somebody else is at it.
    #[error("another conversion of this node is under way; nothing was changed")]
    Busy,
    #[error("{path}: {source}")]
    File { path: String, source: io::Error },
    #[error("{command}: {said}")]
    Command { command: String, said: String },
    #[error("after {seconds} s, {why}")]
    Late { seconds: u64, why: String },
    #[error(transparent)]
    Hub(#[from] HubError),
    /// It is as before.
    #[error("{step}: {why}; the node is as before")]
    RolledBack { step: String, why: Box<Fault> },
    /// It is neither this nor that: the next `convert` or `revert` goes on with undoing.
    #[error(
        "{why}; and going back failed: {undoing}. Put that right, then `yurt node revert` goes on"
    )]
    Stuck { why: String, undoing: Box<Fault> },
    /// The process was ended within: what it did stays recorded.
    #[error("ended in the middle; the next convert goes on, and revert undoes")]
    Ended,
}

impl Fault {
    pub(super) fn file(path: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        |source| Self::File { path, source }
    }

    /// 1: all is as before. 2: somebody has to look.
    pub(super) fn outcome(&self) -> Outcome {
        match self {
            Self::Unfit(_) | Self::Busy | Self::RolledBack { .. } => Outcome::Unhealthy,
            _ => Outcome::Unknown,
        }
    }
}
