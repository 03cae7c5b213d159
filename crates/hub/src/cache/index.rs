//! What is kept in memory of each object: revision and size, never its content. Pure.

use std::collections::{BTreeMap, HashMap, VecDeque};
use yurt_wire::Encoding;

/// `NAMESPACE/NAME`.
pub(crate) type Key = Box<str>;

/// One object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// 0 when the record was not read since start (it is on disk).
    pub(crate) revision: u64,
    /// Encoding of the record; meaningless while `revision` is 0.
    pub(crate) encoding: Encoding,
    /// Whether `Stored::absent_from` is not empty.
    pub(crate) excluded: bool,
}

/// What to do with an object that was learned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Upsert {
    /// It is new, newer, or the same in a better encoding.
    Store,
    /// The very same is there already.
    Same,
    /// What is there (or known to be gone) is newer.
    Older,
    /// It left the selector through which it was seen at a later revision: what it is now nobody here knows.
    Left,
}

/// Decides whether a learned object replaces what is known.
/// `gone` is its deletion, when one was seen; `absent_at` the revision at which it is known not to exist.
/// `observed_at` is the revision at which the sender saw the object alive (of the list, or of the event).
pub(crate) fn upsert(
    existing: Option<Entry>,
    gone: Option<Gone>,
    absent_at: Option<u64>,
    revision: u64,
    encoding: Encoding,
    observed_at: u64,
) -> Upsert {
    match existing {
        Some(entry) if revision > entry.revision => Upsert::Store,
        Some(entry) if revision < entry.revision => Upsert::Older,
        Some(entry) => {
            // An excluded object changed at a later revision: this is old news, in whatever encoding.
            let better = entry.encoding == Encoding::Json && encoding == Encoding::Protobuf;
            if better && !entry.excluded {
                Upsert::Store
            } else {
                Upsert::Same
            }
        }
        None => {
            // A DELETED event carries a revision of its own, above every live one; leaving a selector carries the revision of
            // the change itself, which another watch reports as live.
            let late = gone.filter(|gone| revision < gone.revision);
            let absent = absent_at.is_some_and(|absent| absent >= observed_at);
            match late {
                Some(gone) if !gone.certain && !absent => Upsert::Left,
                None if !absent => Upsert::Store,
                _ => Upsert::Older,
            }
        }
    }
}

/// The latest deletions of one resource: refuses late news of the dead, and tells a resuming watch what went.
#[derive(Debug, Default)]
pub(crate) struct Deletions {
    at: HashMap<Key, Gone>,
    order: VecDeque<(Key, u64)>,
    /// Deletions up to this revision may have been forgotten.
    floor: u64,
    forgotten: u64,
}

/// One deletion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Gone {
    /// What was alive before this revision is dead.
    pub(crate) revision: u64,
    /// Who knows the object as of this revision or an earlier one has to be told. Above `revision` where it is not known when
    /// exactly it went.
    pub(crate) told: u64,
    /// Whether the object is known not to exist, rather than to have left the only selector through which it was seen.
    pub(crate) certain: bool,
}

impl Gone {
    /// It went at this very revision.
    pub(crate) fn at(revision: u64, certain: bool) -> Self {
        Self {
            revision,
            told: revision,
            certain,
        }
    }
}

/// Deletions remembered for one resource.
pub(crate) const MAX_DELETIONS: usize = 1024;

impl Deletions {
    /// Remembers one.
    pub(crate) fn record(&mut self, key: &str, gone: Gone) {
        if let Some(known) = self.at.get_mut(key)
            && known.revision >= gone.revision
        {
            known.certain |= gone.certain && known.revision == gone.revision;
            return;
        }
        self.at.insert(key.into(), gone);
        self.order.push_back((key.into(), gone.told));
        while self.order.len() > MAX_DELETIONS {
            if let Some((key, told)) = self.order.pop_front()
                && self.is_told(&key, told)
            {
                self.at.remove(&key);
                self.floor = self.floor.max(told);
                self.forgotten += 1;
            }
        }
    }

    /// Forgets one: the object was seen alive at a later revision.
    pub(crate) fn revive(&mut self, key: &str) {
        self.at.remove(key);
    }

    /// An object's deletion.
    pub(crate) fn of(&self, key: &str) -> Option<Gone> {
        self.at.get(key).copied()
    }

    fn is_told(&self, key: &str, at: u64) -> bool {
        self.of(key).is_some_and(|gone| gone.told == at)
    }

    /// Whether an object is known not to exist.
    pub(crate) fn is_certain(&self, key: &str) -> bool {
        self.at.get(key).is_some_and(|gone| gone.certain)
    }

    /// How many were forgotten so far: a list during which this grows may bring the dead back.
    pub(crate) fn forgotten(&self) -> u64 {
        self.forgotten
    }

    /// The revision up to which deletions may have been forgotten.
    pub(crate) fn floor(&self) -> u64 {
        self.floor
    }

    /// Deletions after a revision, oldest first.
    pub(crate) fn since(&self, revision: u64) -> Vec<(Key, u64)> {
        let mut out: Vec<_> = self
            .order
            .iter()
            .filter(|(key, at)| *at > revision && self.is_told(key, *at))
            .cloned()
            .collect();
        out.sort_by_key(|(_, at)| *at);
        out
    }
}

/// The keys of one namespace, or of all (`""`).
pub(crate) fn namespace_range<'a, V>(
    map: &'a BTreeMap<Key, V>,
    namespace: &str,
) -> impl Iterator<Item = (&'a Key, &'a V)> {
    let prefix = if namespace.is_empty() {
        String::new()
    } else {
        format!("{namespace}/")
    };
    let start: Key = prefix.clone().into();
    map.range(start..)
        .take_while(move |(key, _)| key.starts_with(prefix.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(revision: u64, encoding: Encoding) -> Option<Entry> {
        Some(Entry {
            revision,
            encoding,
            excluded: false,
        })
    }

    #[test]
    fn older_never_replaces_newer() {
        use Encoding::{Json, Protobuf};
        let gone = |revision, certain| Some(Gone::at(revision, certain));
        let (dead, left) = (gone(7, true), gone(7, false));
        const NOW: u64 = u64::MAX;
        let cases = [
            (None, None, None, 5, Json, NOW, Upsert::Store),
            (entry(5, Json), None, None, 6, Json, NOW, Upsert::Store),
            (entry(5, Json), None, None, 4, Protobuf, NOW, Upsert::Older),
            (entry(5, Json), None, None, 5, Protobuf, NOW, Upsert::Store),
            (entry(5, Protobuf), None, None, 5, Json, NOW, Upsert::Same),
            // dead at 7: what was alive at 6 comes too late, what is alive at 7 or later is news
            (None, dead, None, 6, Json, NOW, Upsert::Older),
            (None, dead, None, 7, Json, NOW, Upsert::Store),
            // left a selector at 7: it may live on, unless a complete list tells that it did not
            (None, left, None, 6, Json, NOW, Upsert::Left),
            (None, left, Some(5), 6, Json, 6, Upsert::Left),
            (None, left, Some(9), 6, Json, 6, Upsert::Older),
            (None, left, None, 7, Json, NOW, Upsert::Store),
            // a complete list at 9 did not hold it: an older list cannot bring it back, a get can
            (None, None, Some(9), 3, Json, 9, Upsert::Older),
            (None, None, Some(9), 3, Json, 10, Upsert::Store),
            (None, None, Some(9), 3, Json, NOW, Upsert::Store),
        ];
        for (i, (have, gone, absent, revision, encoding, observed, want)) in
            cases.into_iter().enumerate()
        {
            assert_eq!(
                upsert(have, gone, absent, revision, encoding, observed),
                want,
                "case {i}"
            );
        }
    }

    #[test]
    fn deletions_are_bounded_and_say_so() {
        let mut deletions = Deletions::default();
        for revision in 1..=(MAX_DELETIONS as u64 + 10) {
            deletions.record(&format!("a/{revision}"), Gone::at(revision, true));
        }
        assert_eq!(deletions.floor(), 10);
        assert_eq!(deletions.forgotten(), 10);
        assert_eq!(deletions.of("a/3"), None);
        assert_eq!(deletions.since(MAX_DELETIONS as u64 + 8).len(), 2);
        deletions.revive("a/1030");
        assert_eq!(deletions.of("a/1030"), None);
    }
}
