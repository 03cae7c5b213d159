//! Hint files: a segment's keys without its values, so that `open` need not read the segments.
//!
//! `yurthnt` and the version 1; segment number (4 bytes); bytes of the segment that it covers (4); number of entries (4);
//! the entries: flags (1), key length (4), record length (4), offset (4), sequence number (8), key; CRC-32 of all of that.
//! A hint is never needed: without a valid one the segment is read.

use crate::{
    directory::{Directory, Name, remove},
    record::{DELETE, HEAD_BYTES, Head, MAX_KEY_BYTES},
    scan::{Piece, scan},
    segment::{FIRST_RECORD, Segment},
};
use std::{fs::File, io, io::Write as _};

const MAGIC: [u8; 8] = *b"yurthnt\x01";
const FIXED_BYTES: usize = 8 + 4 + 4 + 4;
const ENTRY_BYTES: usize = 1 + 4 + 4 + 4 + 8;

/// One record of the segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry<'a> {
    pub(crate) flags: u8,
    pub(crate) offset: u32,
    pub(crate) record_len: u32,
    pub(crate) seq: u64,
    pub(crate) key: &'a [u8],
}

impl<'a> Entry<'a> {
    /// What a record's head says.
    pub(crate) fn of(head: &Head, offset: u32, key: &'a [u8]) -> Self {
        Self {
            flags: head.flags,
            offset,
            record_len: head.record_len(),
            seq: head.seq,
            key,
        }
    }

    /// Whether the key is gone.
    pub(crate) fn is_delete(&self) -> bool {
        self.flags & DELETE != 0
    }
}

/// Builds the bytes of a hint.
#[derive(Debug)]
pub(crate) struct Builder {
    bytes: Vec<u8>,
    entries: u32,
}

impl Builder {
    pub(crate) fn new(segment: u32) -> Self {
        let mut bytes = Vec::with_capacity(4096);
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&segment.to_le_bytes());
        bytes.extend_from_slice(&[0; 8]);
        Self { bytes, entries: 0 }
    }

    pub(crate) fn push(&mut self, entry: &Entry<'_>) {
        self.bytes.push(entry.flags);
        self.bytes
            .extend_from_slice(&(entry.key.len() as u32).to_le_bytes());
        self.bytes
            .extend_from_slice(&entry.record_len.to_le_bytes());
        self.bytes.extend_from_slice(&entry.offset.to_le_bytes());
        self.bytes.extend_from_slice(&entry.seq.to_le_bytes());
        self.bytes.extend_from_slice(entry.key);
        self.entries += 1;
    }

    /// The finished bytes, for a segment whose first `covered` bytes the entries describe.
    pub(crate) fn finish(mut self, covered: u32) -> Vec<u8> {
        self.bytes[12..16].copy_from_slice(&covered.to_le_bytes());
        self.bytes[16..20].copy_from_slice(&self.entries.to_le_bytes());
        let crc = crc32fast::hash(&self.bytes);
        self.bytes.extend_from_slice(&crc.to_le_bytes());
        self.bytes
    }
}

/// Entries of a hint that verifies.
#[derive(Debug)]
pub(crate) struct Hint<'a> {
    /// Bytes of the segment that it describes.
    pub(crate) covered: u32,
    rest: &'a [u8],
    left: u32,
}

impl<'a> Hint<'a> {
    /// `None` unless it is whole and of this segment.
    pub(crate) fn decode(bytes: &'a [u8], segment: u32) -> Option<Self> {
        let (body, crc) = bytes.split_last_chunk::<4>()?;
        if crc32fast::hash(body) != u32::from_le_bytes(*crc) || body.len() < FIXED_BYTES {
            return None;
        }
        let (fixed, rest) = body.split_at(FIXED_BYTES);
        let u32_at = |at: usize| {
            u32::from_le_bytes([fixed[at], fixed[at + 1], fixed[at + 2], fixed[at + 3]])
        };
        (fixed[..8] == MAGIC && u32_at(8) == segment).then(|| Self {
            covered: u32_at(12),
            rest,
            left: u32_at(16),
        })
    }
}

impl<'a> Iterator for Hint<'a> {
    type Item = Entry<'a>;

    fn next(&mut self) -> Option<Entry<'a>> {
        if self.left == 0 {
            return None;
        }
        let (fixed, rest) = self.rest.split_first_chunk::<ENTRY_BYTES>()?;
        let u32_at = |at: usize| {
            u32::from_le_bytes([fixed[at], fixed[at + 1], fixed[at + 2], fixed[at + 3]])
        };
        let key_len = u32_at(1) as usize;
        if key_len > MAX_KEY_BYTES || (u32_at(5) as usize) < HEAD_BYTES + key_len {
            return None;
        }
        let (key, rest) = rest.split_at_checked(key_len)?;
        self.rest = rest;
        self.left -= 1;
        Some(Entry {
            flags: fixed[0],
            record_len: u32_at(5),
            offset: u32_at(9),
            seq: u64::from(u32_at(13)) | u64::from(u32_at(17)) << 32,
            key,
        })
    }
}

/// Writes a hint. Not synced: a torn one fails its checksum.
pub(crate) fn save(dir: &Directory, segment: u32, bytes: &[u8]) -> io::Result<()> {
    let tmp = dir.tmp_path(Name::Hint(segment));
    let written = File::create(&tmp)
        .and_then(|mut file| file.write_all(bytes))
        .and_then(|()| std::fs::rename(&tmp, dir.path(Name::Hint(segment))));
    if written.is_err() {
        let _ = remove(&tmp);
    }
    written
}

/// Reads a segment's first `len` bytes and writes their hint; a record whose value is rotten is noted as a delete, so that
/// an older value of its key does not come back.
pub(crate) fn write_for(dir: &Directory, segment: &Segment, len: u64) -> io::Result<()> {
    let mut builder = Builder::new(segment.id);
    scan(
        &segment.file,
        segment.id,
        u64::from(FIRST_RECORD),
        len,
        &mut |piece| {
            if let Piece::Record {
                offset,
                head,
                key,
                value_ok,
            } = piece
            {
                let mut entry = Entry::of(&head, offset, key);
                if !value_ok {
                    entry.flags |= DELETE;
                }
                builder.push(&entry);
            }
            Ok(())
        },
    )?;
    save(dir, segment.id, &builder.finish(len as u32))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_was_written_is_read(segment: u32, covered: u32, raw in prop::collection::vec(
            (any::<u8>(), any::<u32>(), 0_u32..1000, any::<u64>(), prop::collection::vec(any::<u8>(), 0..50)), 0..20)) {
            let entries: Vec<Entry<'_>> = raw.iter().map(|(flags, offset, extra, seq, key)| Entry {
                flags: *flags, offset: *offset, record_len: (HEAD_BYTES + key.len()) as u32 + extra, seq: *seq, key,
            }).collect();
            let mut builder = Builder::new(segment);
            for entry in &entries {
                builder.push(entry);
            }
            let bytes = builder.finish(covered);
            let hint = Hint::decode(&bytes, segment).expect("decodes");
            prop_assert_eq!(hint.covered, covered);
            prop_assert_eq!(hint.collect::<Vec<_>>(), entries);
            prop_assert!(Hint::decode(&bytes, segment.wrapping_add(1)).is_none());
            prop_assert!(Hint::decode(&bytes[..bytes.len() - 1], segment).is_none());
        }

        #[test]
        fn no_input_panics(mut bytes: Vec<u8>) {
            let _ = Hint::decode(&bytes, 1);
            // With a valid checksum around it.
            bytes.splice(0..0, MAGIC.iter().copied().chain([1, 0, 0, 0]));
            let crc = crc32fast::hash(&bytes);
            bytes.extend_from_slice(&crc.to_le_bytes());
            if let Some(hint) = Hint::decode(&bytes, 1) {
                let _ = hint.count();
            }
        }
    }
}
