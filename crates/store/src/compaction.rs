//! Rewriting segments that hold much garbage, beside the writer.

use crate::{
    directory::{Name, remove},
    hint::{self, Builder, Entry},
    index::{Move, Slot},
    record::{self, DELETE, FIRST, Head, LAST, LZ4, REPLACES},
    scan::{Piece, scan},
    segment::{FIRST_RECORD, Kind, Location, SEGMENT_MAGIC, Segment},
    store::Shared,
    writer::Appender,
};
use std::{
    fs::{File, OpenOptions},
    io,
    path::PathBuf,
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

/// Moves applied to the index under one lock.
const MOVES_AT_A_TIME: usize = 256;
/// This many segments of less than a quarter of the usual size are joined.
const SMALL_SEGMENTS: usize = 8;
/// First and longest wait after a failure.
const BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(300));

/// A sealed segment, in bytes of records.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Candidate {
    pub(crate) id: u32,
    pub(crate) len: u64,
    pub(crate) live: u64,
    pub(crate) tombs: u64,
}

impl Candidate {
    /// Bytes that rewriting this segment alone gives back for certain.
    fn garbage(&self) -> u64 {
        self.len.saturating_sub(self.live + self.tombs)
    }
}

/// Which segments to rewrite together.
pub(crate) fn choose(candidates: &[Candidate], share: f32, segment_bytes: u64) -> Vec<u32> {
    let over = |part: u64, whole: u64| part > 0 && part as f64 > whole as f64 * f64::from(share);
    // Tombstones can go only with everything that is older than they.
    let tombs = candidates.iter().map(|c| c.tombs).sum();
    let all = candidates.iter().map(|c| c.len).sum();
    if over(tombs, all) {
        return candidates.iter().map(|c| c.id).collect();
    }
    let mut worst: Vec<_> = candidates
        .iter()
        .filter(|c| over(c.garbage(), c.len))
        .collect();
    worst.sort_by_key(|c| c.live);
    let mut moved = 0;
    let mut chosen: Vec<u32> = worst
        .iter()
        .take_while(|c| {
            moved += c.live;
            moved <= segment_bytes.saturating_mul(4)
        })
        .map(|c| c.id)
        .collect();
    if chosen.is_empty() {
        chosen.extend(worst.first().map(|c| c.id));
    }
    let small: Vec<u32> = candidates
        .iter()
        .filter(|c| c.len < segment_bytes / 4)
        .map(|c| c.id)
        .collect();
    if small.len() >= SMALL_SEGMENTS {
        chosen.extend(small);
        chosen.sort_unstable();
        chosen.dedup();
    }
    chosen
}

/// How the writer asks for maintenance, and how it is told to stop.
#[derive(Debug, Default)]
pub(crate) struct Maintenance {
    wanted: Mutex<bool>,
    changed: Condvar,
    stopped: AtomicBool,
}

impl Maintenance {
    /// There may be something to do.
    pub(crate) fn wake(&self) {
        *crate::queue::lock(&self.wanted) = true;
        self.changed.notify_all();
    }

    /// Ends the thread, soon.
    pub(crate) fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
        self.wake();
    }

    /// Whether the store is being closed, or was.
    pub(crate) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }

    /// Waits until there may be something to do; `false` when stopped.
    fn wait(&self) -> bool {
        let mut wanted = crate::queue::lock(&self.wanted);
        while !*wanted {
            wanted = self
                .changed
                .wait(wanted)
                .unwrap_or_else(PoisonError::into_inner);
        }
        *wanted = false;
        !self.is_stopped()
    }

    /// Waits after a failure; only a stop ends it early.
    fn pause(&self, time: Duration) {
        let wanted = crate::queue::lock(&self.wanted);
        drop(
            self.changed
                .wait_timeout_while(wanted, time, |_| !self.is_stopped()),
        );
    }
}

/// The second thread.
pub(crate) fn run(shared: &Shared) {
    let mut backoff = BACKOFF.0;
    while shared.maintenance.wait() {
        match crate::queue::lock(&shared.compactor).maintain(shared) {
            Ok(_) => backoff = BACKOFF.0,
            Err(_) if shared.maintenance.is_stopped() => return,
            Err(error) => {
                tracing::warn!(dir = shared.dir.display(), %error, "compaction failed; will be tried again");
                shared.maintenance.pause(backoff);
                backoff = (backoff * 2).min(BACKOFF.1);
                shared.maintenance.wake();
            }
        }
    }
}

/// What compaction keeps between rounds.
#[derive(Debug, Default)]
pub(crate) struct Compactor {
    /// Files to be unlinked, in this order. While there are any, nothing is compacted: a tombstone dropped now could
    /// bring back what they hold.
    doomed: Vec<PathBuf>,
}

/// A segment in the making.
struct Output {
    id: u32,
    file: File,
    out: Appender,
    tombs: u64,
    min_seq: u64,
    entries: u64,
    hint: Builder,
}

/// Everything that one compaction makes.
struct Rewrite<'a> {
    shared: &'a Shared,
    victims: &'a [u32],
    outputs: Vec<Output>,
    moves: Vec<Move>,
    corrupt: u64,
}

impl Compactor {
    /// Writes missing hints and rewrites until nothing is worth it. Says how many segments were rewritten.
    pub(crate) fn maintain(&mut self, shared: &Shared) -> io::Result<usize> {
        self.bury(shared)?;
        let mut rewritten = 0;
        loop {
            let victims = choose(
                &shared.index_read().candidates(),
                shared.options.garbage_share,
                shared.options.segment_bytes,
            );
            if victims.is_empty() || shared.maintenance.is_stopped() {
                break;
            }
            let before = extent(shared);
            self.rewrite(shared, &victims)?;
            rewritten += victims.len();
            if extent(shared) >= before {
                // The writer is faster than this; it will wake us again.
                break;
            }
        }
        let unhinted = shared.index_read().unhinted();
        for (segment, len) in unhinted {
            if shared.maintenance.is_stopped() {
                break;
            }
            hint::write_for(&shared.dir, &segment, len)?;
            shared.index_write().hinted(segment.id);
        }
        Ok(rewritten)
    }

    /// Rewrites every sealed segment that holds any garbage now. Says how many.
    pub(crate) fn purge(&mut self, shared: &Shared) -> io::Result<usize> {
        self.bury(shared)?;
        let unclean: Vec<u32> = shared
            .index_read()
            .candidates()
            .iter()
            .filter(|candidate| candidate.garbage() > 0)
            .map(|candidate| candidate.id)
            .collect();
        for segment in &unclean {
            self.rewrite(shared, &[*segment])?;
        }
        Ok(unclean.len())
    }

    /// Unlinks what is dead.
    fn bury(&mut self, shared: &Shared) -> io::Result<()> {
        while let Some(path) = self.doomed.first() {
            remove(path)?;
            shared.dir.sync()?;
            self.doomed.remove(0);
        }
        Ok(())
    }

    fn rewrite(&mut self, shared: &Shared, victims: &[u32]) -> io::Result<()> {
        let mut rewrite = Rewrite {
            shared,
            victims,
            outputs: Vec::new(),
            moves: Vec::new(),
            corrupt: 0,
        };
        let made = rewrite.copy().and_then(|()| rewrite.name());
        if let Err(error) = made {
            // The first output makes the victims dead: it goes first, and durably.
            for output in &rewrite.outputs {
                self.doomed
                    .push(shared.dir.path(Name::Segment(output.id, Kind::Packed)));
                let _ = remove(&shared.dir.tmp_path(Name::Segment(output.id, Kind::Packed)));
            }
            let _ = self.bury(shared);
            return Err(error);
        }
        let Rewrite {
            outputs,
            moves,
            corrupt,
            ..
        } = rewrite;
        shared.corrupt.fetch_add(corrupt, Ordering::Relaxed);
        let empty = outputs
            .first()
            .filter(|output| output.entries == 0 && outputs.len() == 1)
            .map(|output| output.id);
        publish(shared, outputs, &moves);

        let mut dead = Vec::new();
        {
            let mut index = shared.index_write();
            for id in victims {
                if let Some(segment) = index.segment(*id) {
                    dead.push(segment);
                }
            }
            index.remove_segments(victims);
            if let Some(empty) = empty {
                dead.extend(index.segment(empty));
                index.remove_segments(&[empty]);
            }
        }
        // An empty output comes last: until then it says that the others are dead.
        for segment in &dead {
            let _ = remove(&shared.dir.path(Name::Hint(segment.id)));
            self.doomed
                .push(shared.dir.path(Name::Segment(segment.id, segment.kind)));
        }
        tracing::debug!(
            dir = shared.dir.display(),
            segments = victims.len(),
            records = moves.len(),
            "compacted"
        );
        self.bury(shared)
    }
}

/// Bytes and number of the sealed segments: what compaction is to bring down.
fn extent(shared: &Shared) -> (u64, usize) {
    let candidates = shared.index_read().candidates();
    (candidates.iter().map(|c| c.len).sum(), candidates.len())
}

/// Makes the outputs known and moves the index over to them.
fn publish(shared: &Shared, outputs: Vec<Output>, moves: &[Move]) {
    for output in outputs {
        let covered = output.out.position() as u32;
        let hint = output.hint.finish(covered);
        let hinted = hint::save(&shared.dir, output.id, &hint);
        let slot = Slot {
            segment: Arc::new(Segment {
                id: output.id,
                kind: Kind::Packed,
                file: output.file,
            }),
            len: output.out.position(),
            live: 0,
            tombs: output.tombs,
            min_seq: output.min_seq,
            sealed: true,
            hinted: hinted.is_ok(),
        };
        shared.index_write().add_segment(slot);
    }
    for some in moves.chunks(MOVES_AT_A_TIME) {
        shared.index_write().follow(some);
    }
}

impl Rewrite<'_> {
    /// Copies what is still needed into unnamed outputs.
    fn copy(&mut self) -> io::Result<()> {
        let oldest_outside = self.shared.index_read().oldest_outside(self.victims);
        self.begin()?;
        for id in self.victims {
            let Some((segment, len)) = self.shared.index_read().extent(*id) else {
                continue;
            };
            scan(
                &segment.file,
                segment.id,
                u64::from(FIRST_RECORD),
                len,
                &mut |piece| match piece {
                    Piece::Record {
                        offset,
                        head,
                        key,
                        value_ok,
                    } => self.record(&segment, offset, &head, key, value_ok, oldest_outside),
                    Piece::Gap { .. } => Ok(()),
                },
            )?;
        }
        for output in &mut self.outputs {
            output.out.flush(&output.file)?;
            self.shared.dir.sync_file(&output.file)?;
        }
        Ok(())
    }

    fn record(
        &mut self,
        segment: &Segment,
        offset: u32,
        head: &Head,
        key: &[u8],
        value_ok: bool,
        oldest_outside: u64,
    ) -> io::Result<()> {
        if self.shared.maintenance.is_stopped() {
            return Err(io::ErrorKind::Interrupted.into());
        }
        if head.flags & REPLACES != 0 {
            return Ok(());
        }
        let from = Location {
            segment: segment.id,
            offset,
            len: head.record_len(),
        };
        let newest = self.shared.index_read().location(key);
        let is_newest = newest == Some(from);
        if !head.is_delete() && value_ok {
            if is_newest {
                let record = segment.read(from)?;
                let (_, _, stored) = record::parse(from.place(), &record).ok_or_else(|| {
                    io::Error::new(io::ErrorKind::InvalidData, "record changed while read")
                })?;
                let to = self.push(head.flags & LZ4, head.seq, key, stored)?;
                self.moves.push(Move {
                    key: key.into(),
                    from,
                    to: Some(to),
                });
            }
            return Ok(());
        }
        // A tombstone; or a rotten value, of which only the fact stays that older ones of its key are void.
        if is_newest {
            self.corrupt += 1;
            self.moves.push(Move {
                key: key.into(),
                from,
                to: None,
            });
        }
        if (is_newest || newest.is_none()) && oldest_outside < head.seq {
            let to = self.push(DELETE, head.seq, key, &[])?;
            if let Some(output) = self.outputs.last_mut() {
                output.tombs += u64::from(to.len);
            }
        }
        Ok(())
    }

    /// Begins an output; the first one lists what is replaced.
    fn begin(&mut self) -> io::Result<()> {
        let id = self.shared.next_segment.fetch_add(1, Ordering::Relaxed);
        let path = self.shared.dir.tmp_path(Name::Segment(id, Kind::Packed));
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(path)?;
        self.outputs.push(Output {
            id,
            file,
            out: Appender::new(0),
            tombs: 0,
            min_seq: u64::MAX,
            entries: 0,
            hint: Builder::new(id),
        });
        let first = self.outputs.len() == 1;
        let Some(output) = self.outputs.last_mut() else {
            return Ok(());
        };
        output.out.bytes(&SEGMENT_MAGIC);
        if first {
            let list: Vec<u8> = self
                .victims
                .iter()
                .flat_map(|id| id.to_le_bytes())
                .collect();
            let head = Head::new(REPLACES | FIRST | LAST, 0, 0, &[], &list);
            output.out.record(&output.file, id, &head, &[], &list)?;
        }
        Ok(())
    }

    /// Appends a record, which is a batch of its own now.
    fn push(&mut self, flags: u8, seq: u64, key: &[u8], stored: &[u8]) -> io::Result<Location> {
        let full = self
            .outputs
            .last()
            .is_none_or(|output| output.out.position() >= self.shared.options.segment_bytes);
        if full {
            self.begin()?;
        }
        let Some(output) = self.outputs.last_mut() else {
            return Err(io::ErrorKind::NotFound.into());
        };
        let head = Head::new(flags | FIRST | LAST, seq, 0, key, stored);
        let location = output
            .out
            .record(&output.file, output.id, &head, key, stored)?;
        output.min_seq = output.min_seq.min(seq);
        output.entries += 1;
        output.hint.push(&Entry::of(&head, location.offset, key));
        Ok(location)
    }

    /// Gives the outputs their names, the one that makes the victims dead last.
    fn name(&self) -> io::Result<()> {
        for output in self.outputs.iter().rev() {
            let name = Name::Segment(output.id, Kind::Packed);
            if Some(output.id) == self.outputs.first().map(|first| first.id) {
                // The others' names must be durable before.
                self.shared.dir.sync()?;
            }
            std::fs::rename(self.shared.dir.tmp_path(name), self.shared.dir.path(name))?;
        }
        self.shared.dir.sync()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEGMENT: u64 = 1000;

    fn candidate(id: u32, len: u64, live: u64, tombs: u64) -> Candidate {
        Candidate {
            id,
            len,
            live,
            tombs,
        }
    }

    #[test]
    fn much_garbage_is_chosen_little_is_not() {
        let candidates = [
            candidate(1, 1000, 600, 0),
            candidate(2, 1000, 300, 0),
            candidate(3, 1000, 0, 0),
        ];
        assert_eq!(choose(&candidates, 0.5, SEGMENT), [3, 2]);
        assert!(choose(&candidates[..1], 0.5, SEGMENT).is_empty());
    }

    #[test]
    fn an_empty_store_has_nothing_to_do() {
        assert!(choose(&[], 0.5, SEGMENT).is_empty());
        assert!(choose(&[candidate(1, 0, 0, 0)], 0.5, SEGMENT).is_empty());
    }

    #[test]
    fn tombstones_alone_are_not_rewritten_over_and_over() {
        // Too few among all to be worth everything.
        let candidates = [candidate(1, 10_000, 10_000, 0), candidate(2, 1000, 0, 1000)];
        assert!(choose(&candidates, 0.5, SEGMENT).is_empty());
        // Many: everything goes together, so that they can be dropped.
        let candidates = [candidate(1, 1000, 1000, 0), candidate(2, 5000, 0, 5000)];
        assert_eq!(choose(&candidates, 0.5, SEGMENT), [1, 2]);
    }

    #[test]
    fn one_round_is_bounded_but_never_empty() {
        let candidates: Vec<_> = (0..20).map(|id| candidate(id, 1000, 400, 0)).collect();
        assert_eq!(choose(&candidates, 0.5, SEGMENT).len(), 10);
        assert_eq!(
            choose(&[candidate(1, 100_000, 40_000, 0)], 0.5, SEGMENT),
            [1]
        );
    }

    #[test]
    fn small_segments_are_joined() {
        let mut candidates: Vec<_> = (0..7).map(|id| candidate(id, 100, 100, 0)).collect();
        assert!(choose(&candidates, 0.5, SEGMENT).is_empty());
        candidates.push(candidate(7, 100, 100, 0));
        assert_eq!(choose(&candidates, 0.5, SEGMENT).len(), 8);
    }
}
