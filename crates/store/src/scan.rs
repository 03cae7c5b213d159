//! Reading a segment from a border on, also when parts of it are rotten.

use crate::record::{HEAD_BYTES, Head, MAGIC, Place};
use std::{fs::File, io, os::unix::fs::FileExt as _};

/// Bytes read at a time.
const WINDOW_BYTES: usize = 64 << 10;

/// What is found, in the order of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Piece<'a> {
    /// A record whose head and key verify.
    Record {
        offset: u32,
        head: Head,
        key: &'a [u8],
        /// Whether the value verifies too.
        value_ok: bool,
    },
    /// Bytes that are no record.
    Gap { from: u32, to: u32 },
}

/// A part of the file in memory.
#[derive(Debug)]
struct Window<'a> {
    file: &'a File,
    end: u64,
    start: u64,
    bytes: Vec<u8>,
}

impl Window<'_> {
    /// `len` bytes at `pos`, fewer only at the end.
    fn at(&mut self, pos: u64, len: usize) -> io::Result<&[u8]> {
        let len = len.min(usize::try_from(self.end.saturating_sub(pos)).unwrap_or(usize::MAX));
        let have = self.start + self.bytes.len() as u64;
        if pos < self.start || pos + len as u64 > have {
            let want = len.max(WINDOW_BYTES);
            let want = want.min(usize::try_from(self.end - pos).unwrap_or(usize::MAX));
            self.bytes.resize(want, 0);
            self.start = pos;
            self.file.read_exact_at(&mut self.bytes, pos)?;
        }
        let from = (pos - self.start) as usize;
        Ok(&self.bytes[from..from + len])
    }

    /// The head at `pos`, when there is one whose record fits; `key` receives the key.
    fn head(&mut self, segment: u32, pos: u64, key: &mut Vec<u8>) -> io::Result<Option<Head>> {
        let Some(bytes) = self
            .at(pos, HEAD_BYTES)?
            .first_chunk::<HEAD_BYTES>()
            .copied()
        else {
            return Ok(None);
        };
        let Some(head) = Head::decode(&bytes) else {
            return Ok(None);
        };
        if pos + u64::from(head.record_len()) > self.end {
            return Ok(None);
        }
        key.clear();
        key.extend_from_slice(self.at(pos + HEAD_BYTES as u64, head.key_len as usize)?);
        let offset = pos as u32;
        Ok(Head::verify(&bytes, Place { segment, offset }, key).then_some(head))
    }

    /// Whether the value at `pos` verifies.
    fn value_ok(&mut self, mut pos: u64, head: &Head) -> io::Result<bool> {
        let mut left = head.value_len as usize;
        let mut crc = crc32fast::Hasher::new();
        while left > 0 {
            let part = self.at(pos, left.min(WINDOW_BYTES))?;
            crc.update(part);
            pos += part.len() as u64;
            left -= part.len();
        }
        Ok(crc.finalize() == head.value_crc)
    }

    /// The next place from `pos` on where the magic is, or the end.
    fn next_magic(&mut self, mut pos: u64) -> io::Result<u64> {
        let end = self.end;
        loop {
            let part = self.at(pos, 4096)?;
            if let Some(at) = part.windows(MAGIC.len()).position(|three| three == MAGIC) {
                return Ok(pos + at as u64);
            }
            if part.len() < MAGIC.len() || pos + part.len() as u64 >= end {
                return Ok(end);
            }
            pos += (part.len() - (MAGIC.len() - 1)) as u64;
        }
    }
}

/// Reports every piece of the segment between `from` (a border) and `end`.
pub(crate) fn scan(
    file: &File,
    segment: u32,
    from: u64,
    end: u64,
    each: &mut dyn FnMut(Piece<'_>) -> io::Result<()>,
) -> io::Result<()> {
    let mut window = Window {
        file,
        end,
        start: from,
        bytes: Vec::new(),
    };
    let mut key = Vec::new();
    let mut pos = from;
    while pos < end {
        if let Some(head) = window.head(segment, pos, &mut key)? {
            let value_at = pos + (HEAD_BYTES + key.len()) as u64;
            let value_ok = window.value_ok(value_at, &head)?;
            each(Piece::Record {
                offset: pos as u32,
                head,
                key: &key,
                value_ok,
            })?;
            pos += u64::from(head.record_len());
            continue;
        }
        let gap = pos;
        pos = window.next_magic(pos + 1)?;
        while pos < end && window.head(segment, pos, &mut key)?.is_none() {
            pos = window.next_magic(pos + 1)?;
        }
        each(Piece::Gap {
            from: gap as u32,
            to: pos as u32,
        })?;
    }
    Ok(())
}
