//! What a list shows to have changed since a revision up to which everything was told. Pure.
//!
//! When something was deleted a list does not say. So deletions come first, and under the old revision: whoever breaks off among
//! them and goes on there - here or at any other server - is told them again, and nobody ever misses one.

use std::collections::HashMap;
use yurt_wire::watch::EventType;

/// `NAMESPACE/NAME`.
type Key = Box<str>;

/// How a listed object differs from what was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Changed {
    /// `Added` or `Modified`.
    pub(crate) kind: EventType,
    /// See [`super::window::Told`].
    pub(crate) due: u64,
}

/// Compares, page by page, a list with what was known.
#[derive(Debug)]
pub(crate) struct Comparison {
    /// What was not listed yet: the revision known, `None` for what is known to be gone since.
    unseen: HashMap<Key, Option<u64>>,
    since: u64,
    /// The list's.
    at: u64,
}

impl Comparison {
    /// `known` are the objects known and their revisions, `gone` what was removed by whatever way since `since`, up to which
    /// everything was told. The list is of revision `at`.
    pub(crate) fn new(
        known: impl IntoIterator<Item = (Key, u64)>,
        gone: impl IntoIterator<Item = Key>,
        since: u64,
        at: u64,
    ) -> Self {
        let mut unseen: HashMap<Key, Option<u64>> =
            gone.into_iter().map(|key| (key, None)).collect();
        unseen.extend(known.into_iter().map(|(key, at)| (key, Some(at))));
        Self {
            unseen,
            since,
            at: at.max(since + 1),
        }
    }

    /// A listed object; `None` when it was told as it is.
    pub(crate) fn listed(&mut self, key: &str, revision: u64) -> Option<Changed> {
        let known = self.unseen.remove(key);
        let late = revision <= self.since;
        // What is known may have come by another way than what was told.
        let told = late && known == Some(Some(revision));
        (!told).then_some(Changed {
            kind: match known {
                Some(_) => EventType::Modified,
                None => EventType::Added,
            },
            due: if late { self.at } else { revision },
        })
    }

    /// What the whole list did not hold, to be told before all else, as last there at the old revision; due until that of the list.
    pub(crate) fn deleted(&self) -> (Vec<Key>, u64) {
        let mut deleted: Vec<Key> = self.unseen.keys().cloned().collect();
        deleted.sort();
        (deleted, self.at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    proptest! {
        /// Applied to the old state in order, the differences give the new one; and from wherever a client breaks off, what comes
        /// after its revision completes it.
        #[test]
        fn they_lead_from_the_old_state_to_the_new(
            before in 0usize..30,
            history in prop::collection::vec((0u8..8, any::<bool>()), 0..60),
            cut in 0usize..60,
        ) {
            let before = before.min(history.len());
            let mut state: BTreeMap<Key, u64> = BTreeMap::new();
            let mut old = BTreeMap::new();
            for (index, (name, alive)) in history.iter().enumerate() {
                if index == before {
                    old = state.clone();
                }
                let key: Key = format!("d/{name}").into();
                if *alive {
                    state.insert(key, index as u64 + 1);
                } else {
                    state.remove(&key);
                }
            }
            if before == history.len() {
                old = state.clone();
            }
            let since = before as u64;
            let mut comparison = Comparison::new(old.clone(), [], since, history.len() as u64);
            let mut changed: Vec<(u64, u64, Option<Key>, Key)> = Vec::new();
            for (key, revision) in &state {
                if let Some(change) = comparison.listed(key, *revision) {
                    let expected = if old.contains_key(key) { EventType::Modified } else { EventType::Added };
                    prop_assert_eq!(change.kind, expected);
                    changed.push((*revision, change.due, Some(key.clone()), key.clone()));
                } else {
                    prop_assert_eq!(old.get(key), Some(revision));
                }
            }
            changed.sort();
            let (deleted, due) = comparison.deleted();
            let deletions = deleted.into_iter().map(|key| (since, due, None, key));
            let events: Vec<_> = deletions.chain(changed).collect();
            let apply = |to: &mut BTreeMap<Key, u64>, events: &[(u64, u64, Option<Key>, Key)]| {
                for (revision, _, alive, key) in events {
                    match alive {
                        Some(_) => { to.insert(key.clone(), *revision); }
                        None => { to.remove(key); }
                    }
                }
            };
            let mut whole = old.clone();
            apply(&mut whole, &events);
            prop_assert_eq!(&whole, &state);
            // A client that breaks off after some of them, and resumes at the revision that it saw last.
            let cut = cut.min(events.len());
            let mut client = old.clone();
            apply(&mut client, &events[..cut]);
            let at = events[..cut].iter().map(|(revision, ..)| *revision).max().unwrap_or(since);
            let rest: Vec<_> = events.iter().filter(|(_, due, ..)| *due > at).cloned().collect();
            apply(&mut client, &rest);
            prop_assert_eq!(&client, &state);
            // The same at a server that tells all that happened after it.
            let mut elsewhere = old;
            apply(&mut elsewhere, &events[..cut]);
            for (index, (name, alive)) in history.iter().enumerate().skip(usize::try_from(at).unwrap()) {
                let key: Key = format!("d/{name}").into();
                if *alive { elsewhere.insert(key, index as u64 + 1); } else { elsewhere.remove(&key); }
            }
            prop_assert_eq!(&elsewhere, &state);
        }
    }

    #[test]
    fn what_was_learned_by_another_way_is_told() {
        let known = [("d/a".into(), 12), ("d/b".into(), 7), ("d/c".into(), 8)];
        let mut comparison = Comparison::new(known, ["d/gone".into()], 10, 15);
        let (added, modified) = (EventType::Added, EventType::Modified);
        // Read by somebody at 12: nobody was told.
        let changed = |kind, due| Some(Changed { kind, due });
        assert_eq!(comparison.listed("d/a", 12), changed(modified, 12));
        assert_eq!(comparison.listed("d/b", 7), None);
        // Missed, whyever: late is better than never, for everybody.
        assert_eq!(comparison.listed("d/missed", 9), changed(added, 15));
        let gone: Vec<Key> = vec!["d/c".into(), "d/gone".into()];
        assert_eq!(comparison.deleted(), (gone, 15));
    }
}
