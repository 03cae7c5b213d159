//! The one thread that appends: takes what is queued, writes it, syncs once, publishes, wakes the callers.

use crate::{
    batch::{Change, Completion},
    directory::{Name, remove},
    hint,
    index::{Durable, Slot},
    queue::{Pending, cost},
    record::{self, DELETE, FIRST, HEAD_BYTES, Head, LAST, LZ4, Place},
    segment::{FIRST_RECORD, Kind, Location, SEGMENT_MAGIC, Segment},
    store::Shared,
};
use std::{
    borrow::Cow,
    collections::HashSet,
    fs::{File, OpenOptions},
    io,
    os::unix::fs::FileExt as _,
    sync::{Arc, atomic::Ordering},
};

/// Bytes that share one sync, unless one batch is larger.
const GROUP_BYTES: usize = 4 << 20;
/// Bytes gathered before they are handed to the system.
const BUFFER_BYTES: usize = 64 << 10;

/// The writer's state.
#[derive(Debug)]
pub(crate) struct Writer {
    shared: Arc<Shared>,
    active: Active,
    next_seq: u64,
}

/// The segment being appended to.
#[derive(Debug)]
struct Active {
    segment: Arc<Segment>,
    /// Bytes that are durable.
    len: u64,
    /// Whether a failed group may have left bytes after `len`.
    dirty: bool,
}

/// A group that is durable.
#[derive(Debug)]
struct Written {
    changes: Vec<Durable>,
    min_seq: u64,
    tombs: u64,
}

/// Bytes on their way to the end of a file.
#[derive(Debug)]
pub(crate) struct Appender {
    /// Where the buffer goes.
    at: u64,
    buffer: Vec<u8>,
}

impl Appender {
    pub(crate) fn new(at: u64) -> Self {
        Self {
            at,
            buffer: Vec::new(),
        }
    }

    /// Where the next byte goes.
    pub(crate) fn position(&self) -> u64 {
        self.at + self.buffer.len() as u64
    }

    /// Appends a record to a segment.
    pub(crate) fn record(
        &mut self,
        file: &File,
        segment: u32,
        head: &Head,
        key: &[u8],
        stored: &[u8],
    ) -> io::Result<Location> {
        let place = Place {
            segment,
            offset: self.position() as u32,
        };
        head.encode(place, key, &mut self.buffer);
        if stored.len() < BUFFER_BYTES {
            self.buffer.extend_from_slice(stored);
            if self.buffer.len() >= BUFFER_BYTES {
                self.flush(file)?;
            }
        } else {
            self.flush(file)?;
            file.write_all_at(stored, self.at)?;
            self.at += stored.len() as u64;
        }
        Ok(Location {
            segment,
            offset: place.offset,
            len: head.record_len(),
        })
    }

    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// Hands the rest to the system and says where the file ends.
    pub(crate) fn flush(&mut self, file: &File) -> io::Result<u64> {
        file.write_all_at(&self.buffer, self.at)?;
        self.at += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(self.at)
    }
}

impl Writer {
    /// Goes on with a log, or begins one.
    pub(crate) fn new(shared: Arc<Shared>, active: Option<u32>, next_seq: u64) -> io::Result<Self> {
        let known = active.and_then(|id| shared.index_read().extent(id));
        let active = match known {
            Some((segment, len)) => Active {
                segment,
                len,
                dirty: false,
            },
            None => begin(&shared)?,
        };
        Ok(Self {
            shared,
            active,
            next_seq,
        })
    }

    /// Until the queue is closed and empty.
    pub(crate) fn run(mut self) {
        // Also when this thread panics, nobody waits for ever.
        let shared = self.shared.clone();
        let _guard = Abandon(&shared);
        while let Some(group) = shared.queue.take(GROUP_BYTES) {
            let bytes = group.iter().map(|pending| cost(&pending.batch)).sum();
            self.commit(group);
            shared.queue.release(bytes);
        }
        self.seal();
    }

    fn commit(&mut self, group: Vec<Pending>) {
        let (changes, completions): (Vec<Vec<Change>>, Vec<Completion>) = group
            .into_iter()
            .map(|pending| (pending.batch.into_changes(), pending.completion))
            .unzip();
        let written = self.rotate_when_full().and_then(|()| self.write(changes));
        match written {
            Ok(written) => {
                let garbage = self.shared.index_write().publish(
                    self.active.segment.id,
                    self.active.len,
                    written.min_seq,
                    written.tombs,
                    written.changes,
                );
                if garbage {
                    self.shared.maintenance.wake();
                }
                for completion in completions {
                    completion.finish(Ok(()));
                }
            }
            Err(error) => {
                tracing::warn!(dir = self.shared.dir.display(), %error, batches = completions.len(), "write failed");
                for completion in completions {
                    completion.finish(Err(self.shared.dir.io(again(&error))));
                }
            }
        }
    }

    /// Writes and syncs a group; after an error the file is as before (or `dirty` says that this is still to be done).
    fn write(&mut self, group: Vec<Vec<Change>>) -> io::Result<Written> {
        self.repair()?;
        match self.append(group) {
            Ok((end, written)) => {
                self.active.len = end;
                Ok(written)
            }
            Err(error) => {
                self.active.dirty = true;
                if let Err(repair) = self.repair() {
                    tracing::warn!(dir = self.shared.dir.display(), error = %repair, "cannot cut a failed write yet");
                }
                Err(error)
            }
        }
    }

    fn append(&mut self, group: Vec<Vec<Change>>) -> io::Result<(u64, Written)> {
        let segment = self.active.segment.clone();
        let synced = self.active.len as u32;
        let mut out = Appender::new(self.active.len);
        let mut locations = Vec::new();
        let mut written = Written {
            changes: Vec::new(),
            min_seq: self.next_seq,
            tombs: 0,
        };
        // Keys of this group that are not in the index yet.
        let mut put = HashSet::new();
        for changes in &group {
            let seq = self.next_seq;
            self.next_seq += 1;
            let needed = |change: &&Change| {
                change.value.is_some()
                    || put.contains(change.key.as_slice())
                    || self.shared.index_read().location(&change.key).is_some()
            };
            let last = changes.iter().rposition(|change| needed(&change));
            let mut flags = FIRST;
            let mut puts = Vec::new();
            for (at, change) in changes.iter().enumerate() {
                if !needed(&change) {
                    locations.push(None);
                    continue;
                }
                if Some(at) == last {
                    flags |= LAST;
                }
                let location = match &change.value {
                    Some(value) => {
                        let (stored, lz4) =
                            match record::pack(value, self.shared.options.compress_from) {
                                Some(packed) => (Cow::Owned(packed), LZ4),
                                None => (Cow::Borrowed(&value[..]), 0),
                            };
                        let head = Head::new(flags | lz4, seq, synced, &change.key, &stored);
                        puts.push(change.key.as_slice());
                        Some(out.record(&segment.file, segment.id, &head, &change.key, &stored)?)
                    }
                    None => {
                        let head = Head::new(flags | DELETE, seq, synced, &change.key, &[]);
                        out.record(&segment.file, segment.id, &head, &change.key, &[])?;
                        written.tombs += (HEAD_BYTES + change.key.len()) as u64;
                        None
                    }
                };
                locations.push(location);
                flags = 0;
            }
            put.extend(puts);
        }
        let end = out.flush(&segment.file)?;
        drop(put);
        if end > self.active.len {
            self.shared.dir.sync_file(&segment.file)?;
        }
        written.changes = group
            .into_iter()
            .flatten()
            .zip(locations)
            .map(|(change, location)| Durable {
                key: change.key,
                location,
            })
            .collect();
        Ok((end, written))
    }

    /// Cuts off what a failed group left.
    fn repair(&mut self) -> io::Result<()> {
        if self.active.dirty {
            self.active.segment.file.set_len(self.active.len)?;
            self.shared.dir.sync_file(&self.active.segment.file)?;
            self.active.dirty = false;
        }
        Ok(())
    }

    fn rotate_when_full(&mut self) -> io::Result<()> {
        if self.active.len < self.shared.options.segment_bytes {
            return Ok(());
        }
        self.repair()?;
        let full = self.active.segment.id;
        self.active = begin(&self.shared)?;
        self.shared.index_write().seal(full);
        self.shared.maintenance.wake();
        Ok(())
    }

    /// Leaves the log so that the next `open` is fast.
    fn seal(&mut self) {
        let done = self.repair().and_then(|()| {
            hint::write_for(&self.shared.dir, &self.active.segment, self.active.len)
        });
        if let Err(error) = done {
            tracing::debug!(dir = self.shared.dir.display(), %error, "no hint written at close");
        }
    }
}

/// A new, empty log whose name is durable. Its first bytes are so with its first group.
fn begin(shared: &Shared) -> io::Result<Active> {
    let id = shared.next_segment.fetch_add(1, Ordering::Relaxed);
    let path = shared.dir.path(Name::Segment(id, Kind::Log));
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&path)?;
    let made = file
        .write_all_at(&SEGMENT_MAGIC, 0)
        .and_then(|()| shared.dir.sync());
    if let Err(error) = made {
        let _ = remove(&path);
        return Err(error);
    }
    let segment = Arc::new(Segment {
        id,
        kind: Kind::Log,
        file,
    });
    shared
        .index_write()
        .add_segment(Slot::empty(segment.clone(), false));
    Ok(Active {
        segment,
        len: u64::from(FIRST_RECORD),
        dirty: false,
    })
}

/// An I/O error for one more caller.
fn again(error: &io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(code) => io::Error::from_raw_os_error(code),
        None => io::Error::new(error.kind(), error.to_string()),
    }
}

/// Lets go of whoever waits when the writer ends.
struct Abandon<'a>(&'a Shared);

impl Drop for Abandon<'_> {
    fn drop(&mut self) {
        self.0.queue.abandon();
    }
}
