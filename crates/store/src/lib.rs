//! Durable, checksummed, group-committed records: a log-structured key-value store.
//!
//! One directory, one writer. Records go to append-only segments; an index in memory maps each key to its newest
//! record; values are read with `pread` when asked for. `commit` returns when the batch is on disk
//! (many callers share one `fdatasync`). A torn tail is truncated at open and reported; segments with much garbage are
//! rewritten in the background; the caller is told how many bytes are live so that it can keep a budget.
//!
//! # Where to start
//!
//! [`Store`] is the handle. `batch` holds what callers pass in and wait on, `queue` the bounded hand-over to the one
//! `writer` thread, `record` and `segment` the bytes on disk, `scan` the reading of a damaged file, `recovery` what
//! `open` does, `index` the map in memory, `compaction` the second thread, `hint` the files that make `open` fast.
//!
//! # Files
//!
//! | file | what |
//! |---|---|
//! | `lock` | held with `flock` while a process has the store open; the process's id, for people |
//! | `XXXXXXXX.log` | a segment as the writer appended it; the highest number is the one being appended to |
//! | `XXXXXXXX.packed` | a segment written by compaction; complete and synced before it got this name |
//! | `XXXXXXXX.hint` | the keys and offsets of the segment of that number; only an aid, checked by CRC |
//! | `*.tmp` | not finished when the process ended; removed at open |
//!
//! Numbers are hexadecimal, only grow, and are shared by both kinds of segment.
//!
//! A segment is 8 bytes (`yurtseg` and the format version, 1), then records without gaps. A record (integers
//! little-endian):
//!
//! | bytes | what |
//! |---|---|
//! | 0..3 | magic `79 72 01` |
//! | 3 | flags: 1 delete, 2 value is LZ4, 4 first of its batch, 8 last of its batch, 16 list of replaced segments |
//! | 4..8 | key length |
//! | 8..12 | value length as stored |
//! | 12..20 | sequence number of the batch |
//! | 20..24 | bytes of this segment that were known to be durable when the record was written |
//! | 24..28 | CRC-32 of the value as stored |
//! | 28..32 | CRC-32 of bytes 0..28, the key, and the place (segment number, offset) |
//! | 32.. | key, value (LZ4 values begin with their plain length, 4 bytes) |
//!
//! The head has its own checksum so that a rotten value costs one record and not its borders; when a head is rotten the
//! next border is found by looking for a head that verifies. The place is part of the checksum so that a copy of a
//! record inside somebody's value is never taken for a record.
//!
//! # Guarantees
//!
//! - **Order is by sequence number**, not by place: compaction may move records between files, and a crash that leaves
//!   both copies is harmless.
//! - **A batch is all or nothing.** Its records are contiguous in one segment and marked first and last.
//! - **A torn tail is told from rot.** Every record says how much of its segment was durable before it. What is broken
//!   before the highest such mark was acknowledged once: it is left out, counted, and everything after it is kept.
//!   What is broken after it belongs to the last group commit, which the crash interrupted: the file is cut there.
//! - **A failed write changes nothing**: the file is cut back to the last durable byte before the next group is
//!   written, and the callers of the failed group get the error.
//! - **Compaction is atomic**: its first output names the segments that it replaces and is renamed into place last.
//!   Segments named by an output are dead, whether or not they were unlinked before a crash.
//! - **A delete keeps its tombstone** until no segment outside the compaction holds anything older.

mod batch;
mod compaction;
mod directory;
mod error;
mod hint;
mod index;
mod queue;
mod record;
mod recovery;
mod scan;
mod segment;
mod store;
mod writer;

pub use batch::{Batch, Commit};
pub use error::StoreError;
pub use store::{Options, Recovery, Store, Usage};
