//! The map in memory: where each key's newest record is, and what each segment still holds.

use crate::{
    compaction::Candidate,
    segment::{FIRST_RECORD, Location, Segment},
};
use std::{collections::BTreeMap, ops::Bound, sync::Arc};

/// A segment and what is in it.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) segment: Arc<Segment>,
    /// Bytes of the file that are durable.
    pub(crate) len: u64,
    /// Bytes of records that are the newest of their key.
    pub(crate) live: u64,
    /// Bytes of tombstones.
    pub(crate) tombs: u64,
    /// The oldest sequence number in it; `u64::MAX` when it is empty.
    pub(crate) min_seq: u64,
    /// Whether nothing more is appended.
    pub(crate) sealed: bool,
    /// Whether a valid hint file covers all of it.
    pub(crate) hinted: bool,
}

impl Slot {
    /// A segment without records.
    pub(crate) fn empty(segment: Arc<Segment>, sealed: bool) -> Self {
        Self {
            segment,
            len: u64::from(FIRST_RECORD),
            live: 0,
            tombs: 0,
            min_seq: u64::MAX,
            sealed,
            hinted: false,
        }
    }

    fn candidate(&self) -> Candidate {
        Candidate {
            id: self.segment.id,
            len: self.len.saturating_sub(u64::from(FIRST_RECORD)),
            live: self.live,
            tombs: self.tombs,
        }
    }
}

/// A change that has become durable.
#[derive(Debug)]
pub(crate) struct Durable {
    pub(crate) key: Vec<u8>,
    /// `None` when the key is gone.
    pub(crate) location: Option<Location>,
}

/// A record that compaction has copied.
#[derive(Debug)]
pub(crate) struct Move {
    pub(crate) key: Box<[u8]>,
    pub(crate) from: Location,
    /// `None` when it was rotten.
    pub(crate) to: Option<Location>,
}

/// The map.
#[derive(Debug, Default)]
pub(crate) struct Index {
    map: BTreeMap<Box<[u8]>, Location>,
    segments: BTreeMap<u32, Slot>,
    live_bytes: u64,
}

impl Index {
    /// From what recovery found; every location's segment is among the slots.
    pub(crate) fn new(
        records: impl Iterator<Item = (Box<[u8]>, Location)>,
        slots: impl Iterator<Item = Slot>,
    ) -> Self {
        let mut index = Self {
            map: records.collect(),
            segments: slots.map(|slot| (slot.segment.id, slot)).collect(),
            live_bytes: 0,
        };
        for location in index.map.values() {
            index.live_bytes += u64::from(location.len);
            if let Some(slot) = index.segments.get_mut(&location.segment) {
                slot.live += u64::from(location.len);
            }
        }
        index
    }

    pub(crate) fn location(&self, key: &[u8]) -> Option<Location> {
        self.map.get(key).copied()
    }

    /// Where a key's value is, with the file to read it from.
    pub(crate) fn find(&self, key: &[u8]) -> Option<(Location, Arc<Segment>)> {
        let location = self.location(key)?;
        Some((location, self.segment(location.segment)?))
    }

    pub(crate) fn segment(&self, id: u32) -> Option<Arc<Segment>> {
        Some(self.segments.get(&id)?.segment.clone())
    }

    /// Keys with a prefix, in order, from `after` (exclusive) on.
    pub(crate) fn range<'a>(
        &'a self,
        prefix: &'a [u8],
        after: Option<&'a [u8]>,
    ) -> impl Iterator<Item = (&'a [u8], Location)> {
        let from = after.map_or(Bound::Included(prefix), Bound::Excluded);
        self.map
            .range::<[u8], _>((from, Bound::Unbounded))
            .take_while(move |(key, _)| key.starts_with(prefix))
            .map(|(key, location)| (&**key, *location))
    }

    pub(crate) fn records(&self) -> u64 {
        self.map.len() as u64
    }

    pub(crate) fn live_bytes(&self) -> u64 {
        self.live_bytes
    }

    pub(crate) fn disk_bytes(&self) -> u64 {
        self.segments.values().map(|slot| slot.len).sum()
    }

    /// A new segment.
    pub(crate) fn add_segment(&mut self, slot: Slot) {
        self.segments.insert(slot.segment.id, slot);
    }

    /// Nothing more is appended to a segment.
    pub(crate) fn seal(&mut self, id: u32) {
        if let Some(slot) = self.segments.get_mut(&id) {
            slot.sealed = true;
        }
    }

    /// A segment has its hint.
    pub(crate) fn hinted(&mut self, id: u32) {
        if let Some(slot) = self.segments.get_mut(&id) {
            slot.hinted = true;
        }
    }

    /// Sealed segments without a hint, with their lengths.
    pub(crate) fn unhinted(&self) -> Vec<(Arc<Segment>, u64)> {
        self.segments
            .values()
            .filter(|slot| slot.sealed && !slot.hinted)
            .map(|slot| (slot.segment.clone(), slot.len))
            .collect()
    }

    /// Sealed segments, for compaction to choose from.
    pub(crate) fn candidates(&self) -> Vec<Candidate> {
        self.segments
            .values()
            .filter(|slot| slot.sealed)
            .map(Slot::candidate)
            .collect()
    }

    /// A segment with its durable length.
    pub(crate) fn extent(&self, id: u32) -> Option<(Arc<Segment>, u64)> {
        let slot = self.segments.get(&id)?;
        Some((slot.segment.clone(), slot.len))
    }

    /// The oldest sequence number outside these segments.
    pub(crate) fn oldest_outside(&self, ids: &[u32]) -> u64 {
        self.segments
            .values()
            .filter(|slot| !ids.contains(&slot.segment.id))
            .map(|slot| slot.min_seq)
            .min()
            .unwrap_or(u64::MAX)
    }

    /// Takes in a group that the writer has made durable. Says whether a sealed segment lost a record by it.
    pub(crate) fn publish(
        &mut self,
        active: u32,
        len: u64,
        min_seq: u64,
        tombs: u64,
        changes: Vec<Durable>,
    ) -> bool {
        let mut sealed_lost = false;
        for Durable { key, location } in changes {
            let before = match location {
                Some(location) => {
                    self.add_live(location);
                    self.map.insert(key.into_boxed_slice(), location)
                }
                None => self.map.remove(key.as_slice()),
            };
            if let Some(before) = before {
                sealed_lost |= self.remove_live(before);
            }
        }
        if let Some(slot) = self.segments.get_mut(&active) {
            slot.hinted &= slot.len == len;
            slot.len = len;
            slot.tombs += tombs;
            slot.min_seq = slot.min_seq.min(min_seq);
        }
        sealed_lost
    }

    /// Follows records that compaction has copied, unless they were overwritten meanwhile.
    pub(crate) fn follow(&mut self, moves: &[Move]) {
        for Move { key, from, to } in moves {
            let Some(location) = self.map.get_mut(key).filter(|now| *now == from) else {
                continue;
            };
            match to {
                Some(to) => {
                    *location = *to;
                    self.add_live(*to);
                }
                None => {
                    self.map.remove(key);
                }
            }
            self.remove_live(*from);
        }
    }

    /// Forgets segments that compaction has replaced.
    pub(crate) fn remove_segments(&mut self, ids: &[u32]) {
        self.segments.retain(|id, _| !ids.contains(id));
    }

    fn add_live(&mut self, location: Location) {
        self.live_bytes += u64::from(location.len);
        if let Some(slot) = self.segments.get_mut(&location.segment) {
            slot.live += u64::from(location.len);
        }
    }

    fn remove_live(&mut self, location: Location) -> bool {
        let len = u64::from(location.len);
        self.live_bytes = self.live_bytes.saturating_sub(len);
        let Some(slot) = self.segments.get_mut(&location.segment) else {
            return false;
        };
        slot.live = slot.live.saturating_sub(len);
        slot.sealed
    }
}
