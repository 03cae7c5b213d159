//! What `open` does: finds the newest record of each key, whatever a crash or the disk did.

use crate::{
    Recovery,
    directory::{Directory, Name, remove},
    hint::{self, Entry},
    index::{Index, Slot},
    record::{DELETE, FIRST, HEAD_BYTES, Head, LAST, Place, REPLACES},
    scan::{Piece, scan},
    segment::{FIRST_RECORD, Kind, Location, SEGMENT_MAGIC, Segment},
};
use std::{
    collections::{HashMap, HashSet},
    fs::{File, OpenOptions},
    io,
    os::unix::fs::FileExt as _,
    sync::Arc,
};

/// What was found.
#[derive(Debug)]
pub(crate) struct Recovered {
    pub(crate) index: Index,
    pub(crate) report: Recovery,
    /// The log to go on appending to.
    pub(crate) active: Option<u32>,
    pub(crate) next_segment: u32,
    pub(crate) next_seq: u64,
}

/// The newest record of each key so far; `None` for a tombstone.
#[derive(Debug, Default)]
struct Newest {
    keys: HashMap<Box<[u8]>, (u64, Option<Location>)>,
    max_seq: u64,
}

impl Newest {
    fn add(&mut self, slot: &mut Slot, entry: &Entry<'_>) {
        self.max_seq = self.max_seq.max(entry.seq);
        if entry.flags & REPLACES != 0 {
            return;
        }
        slot.min_seq = slot.min_seq.min(entry.seq);
        if entry.is_delete() {
            slot.tombs += u64::from(entry.record_len);
        }
        let location = (!entry.is_delete()).then_some(Location {
            segment: slot.segment.id,
            offset: entry.offset,
            len: entry.record_len,
        });
        match self.keys.get_mut(entry.key) {
            // Of two copies (an interrupted compaction) either will do.
            Some((seq, known)) if entry.seq >= *seq => (*seq, *known) = (entry.seq, location),
            Some(_) => {}
            None => {
                self.keys.insert(entry.key.into(), (entry.seq, location));
            }
        }
    }
}

/// Reads the directory and repairs what a crash left.
pub(crate) fn recover(dir: &Directory) -> io::Result<Recovered> {
    let mut report = Recovery::default();
    let (files, next_segment) = take_stock(dir, &mut report)?;
    let active = files
        .iter()
        .filter(|segment| segment.kind == Kind::Log)
        .map(|segment| segment.id)
        .max();

    let mut newest = Newest::default();
    let mut slots = Vec::with_capacity(files.len());
    for segment in files {
        let is_active = Some(segment.id) == active;
        let mut slot = Slot::empty(Arc::new(segment), !is_active);
        load(dir, &mut slot, &mut newest, &mut report)?;
        slots.push(slot);
    }
    let next_seq = newest.max_seq + 1;
    let live = newest
        .keys
        .into_iter()
        .filter_map(|(key, (_, location))| Some((key, location?)));
    let index = Index::new(live, slots.into_iter());
    report.records = index.records();
    Ok(Recovered {
        index,
        report,
        active,
        next_segment,
        next_seq,
    })
}

/// Opens the segments that count, in order; removes unfinished and replaced files.
fn take_stock(dir: &Directory, report: &mut Recovery) -> io::Result<(Vec<Segment>, u32)> {
    let mut segments = Vec::new();
    let mut hints = Vec::new();
    let mut next = 1_u32;
    let mut removed = false;
    for (name, path) in dir.list()? {
        match name {
            Name::Tmp => {
                remove(&path)?;
                removed = true;
            }
            Name::Hint(id) => {
                next = next.max(id.saturating_add(1));
                hints.push((id, path));
            }
            Name::Segment(id, kind) => {
                next = next.max(id.saturating_add(1));
                let file = OpenOptions::new().read(true).write(true).open(&path)?;
                if check_magic(&file, kind, report)? {
                    segments.push(Segment { id, kind, file });
                } else {
                    remove(&path)?;
                    removed = true;
                }
            }
        }
    }
    let mut replaced = HashSet::new();
    for packed in segments.iter().filter(|s| s.kind == Kind::Packed) {
        replaced.extend(replaced_by(packed)?);
    }
    let (dead, segments): (Vec<_>, Vec<_>) =
        segments.into_iter().partition(|s| replaced.contains(&s.id));
    for segment in dead {
        remove(&dir.path(Name::Segment(segment.id, segment.kind)))?;
        removed = true;
    }
    for (id, path) in hints {
        if !segments.iter().any(|segment| segment.id == id) {
            remove(&path)?;
        }
    }
    if removed {
        dir.sync()?;
    }
    Ok((segments, next))
}

/// Whether a file is a segment; `false` for a log that a crash left without its first bytes (nothing in it was
/// acknowledged: its first group syncs them).
fn check_magic(file: &File, kind: Kind, report: &mut Recovery) -> io::Result<bool> {
    let len = file.metadata()?.len();
    if len < u64::from(FIRST_RECORD) {
        match kind {
            Kind::Log => report.truncated_bytes += len,
            Kind::Packed => report.corrupt_records += 1,
        }
        return Ok(false);
    }
    let mut magic = SEGMENT_MAGIC;
    file.read_exact_at(&mut magic, 0)?;
    if magic != SEGMENT_MAGIC {
        if magic[..7] == SEGMENT_MAGIC[..7] {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                format!(
                    "format version {} is not known to this version of Yurt",
                    magic[7]
                ),
            ));
        }
        report.corrupt_records += 1;
        // What the records lost is told by their own checksums; the same rotten magic need not be met at every open. A disk
        // that refuses only means that it is.
        let _repaired = file.write_all_at(&SEGMENT_MAGIC, 0);
    }
    Ok(true)
}

/// The segments that a packed one replaces: its first record.
fn replaced_by(packed: &Segment) -> io::Result<Vec<u32>> {
    let mut head = [0; HEAD_BYTES];
    match packed
        .file
        .read_exact_at(&mut head, u64::from(FIRST_RECORD))
    {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(Vec::new()),
        other => other?,
    }
    let place = Place {
        segment: packed.id,
        offset: FIRST_RECORD,
    };
    let list = Head::decode(&head)
        .filter(|head| head.flags & REPLACES != 0)
        .map(|head| Location {
            segment: place.segment,
            offset: place.offset,
            len: head.record_len(),
        });
    let Some(list) = list else {
        return Ok(Vec::new());
    };
    let record = match packed.read(list) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(Vec::new()),
        other => other?,
    };
    Ok(
        crate::record::parse(place, &record).map_or_else(Vec::new, |(_, _, ids)| {
            ids.chunks_exact(4)
                .map(|id| u32::from_le_bytes([id[0], id[1], id[2], id[3]]))
                .collect()
        }),
    )
}

/// Takes in one segment: from its hint as far as that goes, then by reading.
fn load(
    dir: &Directory,
    slot: &mut Slot,
    newest: &mut Newest,
    report: &mut Recovery,
) -> io::Result<()> {
    let segment = slot.segment.clone();
    slot.len = segment.file.metadata()?.len();
    if slot.len > u64::from(u32::MAX) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("segment {:08x} is too long", segment.id),
        ));
    }
    let mut covered = FIRST_RECORD;
    if let Ok(bytes) = std::fs::read(dir.path(Name::Hint(segment.id)))
        && let Some(hint) = hint::Hint::decode(&bytes, segment.id)
        && u64::from(hint.covered) <= slot.len
    {
        covered = hint.covered.max(covered);
        for entry in hint {
            newest.add(slot, &entry);
        }
    }
    slot.hinted = u64::from(covered) == slot.len;
    if slot.hinted {
        return Ok(());
    }

    let mut pieces = Vec::new();
    let mut keys = Vec::new();
    scan(
        &segment.file,
        segment.id,
        u64::from(covered),
        slot.len,
        &mut |piece| {
            pieces.push(Found::from(piece));
            if let Piece::Record { key, .. } = piece {
                keys.push(Box::<[u8]>::from(key));
            }
            Ok(())
        },
    )?;
    let end = slot.len as u32;
    let durable = if slot.sealed { end } else { covered };
    let Settled { cut, corrupt } = settle(&pieces, durable, end);
    report.corrupt_records += corrupt;
    if cut < end {
        report.truncated_bytes += u64::from(end - cut);
        slot.len = u64::from(cut);
        segment.file.set_len(slot.len)?;
    }
    if !slot.sealed {
        // The last group may be whole and yet not synced; what is appended next will call it durable.
        dir.sync_file(&segment.file)?;
    }
    let mut keys = keys.iter();
    for piece in &pieces {
        let Found::Record {
            offset,
            mut head,
            value_ok,
        } = *piece
        else {
            continue;
        };
        let Some(key) = keys.next().filter(|_| offset < cut) else {
            break;
        };
        if !value_ok {
            // An older value of the key must not come back.
            head.flags |= DELETE;
        }
        newest.add(slot, &Entry::of(&head, offset, key));
    }
    Ok(())
}

/// A piece without its key.
#[derive(Clone, Copy, Debug)]
enum Found {
    Record {
        offset: u32,
        head: Head,
        value_ok: bool,
    },
    Gap {
        from: u32,
        to: u32,
    },
}

impl From<Piece<'_>> for Found {
    fn from(piece: Piece<'_>) -> Self {
        match piece {
            Piece::Record {
                offset,
                head,
                value_ok,
                ..
            } => Self::Record {
                offset,
                head,
                value_ok,
            },
            Piece::Gap { from, to } => Self::Gap { from, to },
        }
    }
}

/// What is to be done with a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Settled {
    /// Where to cut it.
    cut: u32,
    /// Damaged places before that.
    corrupt: u64,
}

/// Tells rot (before the highest durable mark) from a torn last group (after it).
fn settle(pieces: &[Found], durable: u32, end: u32) -> Settled {
    let durable = pieces.iter().fold(durable, |durable, piece| match piece {
        Found::Record { head, .. } => durable.max(head.synced),
        Found::Gap { .. } => durable,
    });
    let mut corrupt = 0;
    // Where the batch under way began, and its number.
    let mut open: Option<(u32, u64)> = None;
    for piece in pieces {
        match *piece {
            Found::Gap { from, to } if from < durable => {
                corrupt += 1;
                if to > durable {
                    return Settled {
                        cut: durable,
                        corrupt,
                    };
                }
            }
            Found::Gap { from, .. } => {
                let cut = open.map_or(from, |(start, _)| start);
                return Settled { cut, corrupt };
            }
            Found::Record {
                offset, value_ok, ..
            } if offset < durable => corrupt += u64::from(!value_ok),
            Found::Record {
                offset,
                head,
                value_ok,
            } => {
                let first = head.flags & FIRST != 0;
                let fits = match open {
                    None => first,
                    Some((_, seq)) => !first && seq == head.seq,
                };
                let start = open.map_or(offset, |(start, _)| start);
                if !fits || !value_ok {
                    return Settled {
                        cut: start,
                        corrupt,
                    };
                }
                open = (head.flags & LAST == 0).then_some((start, head.seq));
            }
        }
    }
    Settled {
        cut: open.map_or(end, |(start, _)| start),
        corrupt,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEN: u32 = HEAD_BYTES as u32 + 10;

    fn record(offset: u32, flags: u8, seq: u64, synced: u32) -> Found {
        Found::Record {
            offset,
            head: Head {
                flags,
                key_len: 5,
                value_len: 5,
                seq,
                synced,
                value_crc: 0,
            },
            value_ok: true,
        }
    }

    fn rotten(piece: Found) -> Found {
        match piece {
            Found::Record { offset, head, .. } => Found::Record {
                offset,
                head,
                value_ok: false,
            },
            gap @ Found::Gap { .. } => gap,
        }
    }

    fn at(n: u32) -> u32 {
        FIRST_RECORD + n * LEN
    }

    #[test]
    fn a_whole_segment_is_kept() {
        let pieces = [
            record(at(0), FIRST | LAST, 1, at(0)),
            record(at(1), FIRST, 2, at(1)),
            record(at(2), LAST, 2, at(1)),
        ];
        assert_eq!(
            settle(&pieces, FIRST_RECORD, at(3)),
            Settled {
                cut: at(3),
                corrupt: 0
            }
        );
    }

    #[test]
    fn a_batch_without_its_end_is_cut_as_a_whole() {
        let pieces = [
            record(at(0), FIRST | LAST, 1, at(0)),
            record(at(1), FIRST, 2, at(1)),
            record(at(2), 0, 2, at(1)),
        ];
        let cut_at_one = Settled {
            cut: at(1),
            corrupt: 0,
        };
        assert_eq!(settle(&pieces, FIRST_RECORD, at(3)), cut_at_one);
        let torn = [
            pieces[0],
            pieces[1],
            Found::Gap {
                from: at(2),
                to: at(2) + 7,
            },
        ];
        assert_eq!(settle(&torn, FIRST_RECORD, at(2) + 7), cut_at_one);
    }

    #[test]
    fn a_hole_in_the_last_group_cuts_what_follows_it() {
        // One group of three batches (all say that only at(0) was durable); the middle one never reached the disk.
        let pieces = [
            record(at(0), FIRST | LAST, 1, at(0)),
            rotten(record(at(1), FIRST | LAST, 2, at(0))),
            record(at(2), FIRST | LAST, 3, at(0)),
        ];
        assert_eq!(
            settle(&pieces, FIRST_RECORD, at(3)),
            Settled {
                cut: at(1),
                corrupt: 0
            }
        );
    }

    #[test]
    fn rot_before_a_durable_mark_costs_one_record() {
        let pieces = [
            record(at(0), FIRST | LAST, 1, at(0)),
            rotten(record(at(1), FIRST | LAST, 2, at(1))),
            record(at(2), FIRST | LAST, 3, at(2)),
        ];
        assert_eq!(
            settle(&pieces, FIRST_RECORD, at(3)),
            Settled {
                cut: at(3),
                corrupt: 1
            }
        );
        let gap = [
            pieces[0],
            Found::Gap {
                from: at(1),
                to: at(2),
            },
            pieces[2],
        ];
        assert_eq!(
            settle(&gap, FIRST_RECORD, at(3)),
            Settled {
                cut: at(3),
                corrupt: 1
            }
        );
    }

    #[test]
    fn a_sealed_segment_is_never_cut() {
        let pieces = [
            record(at(0), FIRST | LAST, 1, at(0)),
            Found::Gap {
                from: at(1),
                to: at(2),
            },
        ];
        assert_eq!(
            settle(&pieces, at(2), at(2)),
            Settled {
                cut: at(2),
                corrupt: 1
            }
        );
    }
}
