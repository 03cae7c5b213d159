//! Changes in order of revision, the oldest of them forgotten.

use super::stored::Stored;
use std::{collections::VecDeque, sync::Arc};
use yurt_wire::watch::EventType;

/// One change of one object.
#[derive(Clone, Debug)]
pub struct Change {
    /// The revision it made.
    pub revision: u64,
    /// `Added`, `Modified` or `Deleted`.
    pub kind: EventType,
    /// The object after the change; for a deletion its last state, at the revision of the deletion.
    pub object: Arc<Stored>,
    /// The object before the change.
    pub previous: Option<Arc<Stored>>,
}

/// The revision asked for has left the window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too old resource version: {asked} ({floor})")]
pub struct TooOld {
    /// What was asked for.
    pub asked: u64,
    /// The oldest revision from which changes are still known.
    pub floor: u64,
}

/// Changes after a floor.
#[derive(Debug, Default)]
pub(super) struct Log {
    changes: VecDeque<Change>,
    /// Changes at or before this revision are forgotten.
    floor: u64,
}

impl Log {
    pub(super) fn new(floor: u64) -> Self {
        Self {
            changes: VecDeque::new(),
            floor,
        }
    }

    pub(super) fn floor(&self) -> u64 {
        self.floor
    }

    pub(super) fn len(&self) -> usize {
        self.changes.len()
    }

    pub(super) fn push(&mut self, change: Change) {
        self.changes.push_back(change);
    }

    /// Forgets what was before this revision without having been pushed.
    pub(super) fn raise_floor(&mut self, revision: u64) {
        self.floor = self.floor.max(revision);
    }

    /// Forgets the oldest change.
    pub(super) fn forget_oldest(&mut self) -> Option<Change> {
        let oldest = self.changes.pop_front()?;
        self.floor = oldest.revision;
        if self.changes.capacity() > 64 && self.changes.len() < self.changes.capacity() / 4 {
            self.changes.shrink_to(self.changes.len() * 2);
        }
        Some(oldest)
    }

    /// Forgets everything up to a revision.
    pub(super) fn forget_through(&mut self, revision: u64) {
        while self.changes.front().is_some_and(|c| c.revision <= revision) {
            self.forget_oldest();
        }
        self.raise_floor(revision);
    }

    /// The changes after a revision, oldest first.
    pub(super) fn after(
        &self,
        revision: u64,
    ) -> Result<impl DoubleEndedIterator<Item = &Change>, TooOld> {
        if revision < self.floor {
            return Err(TooOld {
                asked: revision,
                floor: self.floor,
            });
        }
        let from = self.changes.partition_point(|c| c.revision <= revision);
        Ok(self.changes.range(from..))
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Change> {
        self.changes.iter()
    }
}
