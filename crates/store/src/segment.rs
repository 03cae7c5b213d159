//! One segment file.

use crate::record::{self, HEAD_BYTES, Place};
use bytes::Bytes;
use std::{fs::File, io, os::unix::fs::FileExt as _};

/// What a segment begins with: the format and its version.
pub(crate) const SEGMENT_MAGIC: [u8; 8] = *b"yurtseg\x01";
/// Where the first record is.
pub(crate) const FIRST_RECORD: u32 = SEGMENT_MAGIC.len() as u32;

/// Who wrote a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// The writer, group by group.
    Log,
    /// Compaction, in one go.
    Packed,
}

/// An open segment; the file may be unlinked already when a reader still uses it.
#[derive(Debug)]
pub(crate) struct Segment {
    pub(crate) id: u32,
    pub(crate) kind: Kind,
    pub(crate) file: File,
}

/// Where the newest record of a key is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Location {
    pub(crate) segment: u32,
    pub(crate) offset: u32,
    /// Bytes of the whole record.
    pub(crate) len: u32,
}

impl Location {
    pub(crate) fn place(&self) -> Place {
        Place {
            segment: self.segment,
            offset: self.offset,
        }
    }
}

impl Segment {
    /// The bytes of a record.
    pub(crate) fn read(&self, location: Location) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; location.len as usize];
        self.file
            .read_exact_at(&mut bytes, u64::from(location.offset))?;
        Ok(bytes)
    }

    /// The plain value of a key's record; `None` when it does not verify.
    pub(crate) fn value(&self, location: Location, key: &[u8]) -> io::Result<Option<Bytes>> {
        let bytes = match self.read(location) {
            // Somebody cut the file.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            other => other?,
        };
        let Some((head, stored_key, _)) = record::parse(location.place(), &bytes) else {
            return Ok(None);
        };
        if stored_key != key || head.is_delete() {
            return Ok(None);
        }
        let value = Bytes::from(bytes).slice(HEAD_BYTES + key.len()..);
        Ok(record::unpack(head.flags, value))
    }
}
