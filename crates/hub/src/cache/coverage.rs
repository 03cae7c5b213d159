//! Which queries are known complete, and at which revision. Pure.
//!
//! A coverage says: every object that belonged to the query at `revision` is in the cache, at that state or a newer one, and no
//! other. Lists and the end of a watch's initial events begin one; the watch that follows moves it on.

use super::index::Key;
use crate::query::Query;
use std::collections::HashSet;

/// One complete query.
#[derive(Clone, Debug)]
pub(crate) struct Coverage {
    /// What is complete.
    pub(crate) query: Query,
    /// At which revision; 0 when the cloud told none (a 404).
    pub(crate) revision: u64,
    /// Every deletion after this revision was seen by this process.
    pub(crate) since: u64,
    /// Told apart from an earlier coverage of the same query that was dropped meanwhile.
    pub(crate) epoch: u64,
    /// Objects that the snapshot did not hold, not yet taken out of the cache: they do not belong to the query unless newer
    /// than the snapshot.
    pub(crate) suspects: HashSet<Key>,
    /// Revision of the snapshot that named the suspects.
    pub(crate) snapshot: u64,
    /// When it was last completed (a counter, not a time).
    pub(crate) used: u64,
    /// The day on which it was last asked for or moved on ([`super::collect::today`]).
    pub(crate) day: u32,
}

/// The coverages of one resource.
#[derive(Debug, Default)]
pub(crate) struct Coverages {
    list: Vec<Coverage>,
}

/// Coverages kept for one resource. A kubelet watches every ConfigMap and Secret of its pods by name; this is far above.
pub(crate) const MAX_COVERAGES: usize = 2048;

impl Coverages {
    /// All of them.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Coverage> {
        self.list.iter()
    }

    /// The newest coverage that surely holds every object of `query`.
    pub(crate) fn best(&self, query: &Query) -> Option<&Coverage> {
        self.list
            .iter()
            .filter(|coverage| coverage.query.covers(query))
            .max_by_key(|coverage| coverage.revision)
    }

    /// Notes that coverages were asked for on a day; gives those for which that is news.
    pub(crate) fn touch(&mut self, day: u32, asked: impl Fn(&Coverage) -> bool) -> Vec<Query> {
        self.list
            .iter_mut()
            .filter(|coverage| coverage.day != day && asked(coverage))
            .map(|coverage| {
                coverage.day = day;
                coverage.query.clone()
            })
            .collect()
    }

    /// The coverage of exactly this query.
    pub(crate) fn exact(&self, query: &Query) -> Option<&Coverage> {
        self.list.iter().find(|c| c.query == *query)
    }

    /// The coverage of exactly this query.
    pub(crate) fn exact_mut(&mut self, query: &Query) -> Option<&mut Coverage> {
        self.list.iter_mut().find(|c| c.query == *query)
    }

    /// A snapshot of `query` at `revision` is complete. Gives the epoch, and the query that had to make room.
    pub(crate) fn complete(
        &mut self,
        query: &Query,
        revision: u64,
        suspects: HashSet<Key>,
        clock: u64,
        day: u32,
    ) -> (u64, Option<Query>) {
        if let Some(coverage) = self.exact_mut(query) {
            coverage.used = clock;
            coverage.day = day;
            if revision >= coverage.revision {
                coverage.revision = revision;
                coverage.snapshot = revision;
                if !suspects.is_empty() {
                    // When these left was not seen.
                    coverage.since = revision;
                }
                coverage.suspects = suspects;
            }
            return (coverage.epoch, None);
        }
        let evicted = if self.list.len() >= MAX_COVERAGES {
            let oldest = self
                .list
                .iter()
                .enumerate()
                .min_by_key(|(_, c)| c.used)
                .map(|(i, _)| i);
            oldest.map(|i| self.list.swap_remove(i).query)
        } else {
            None
        };
        self.list.push(Coverage {
            query: query.clone(),
            revision,
            since: revision,
            epoch: clock,
            suspects,
            snapshot: revision,
            used: clock,
            day,
        });
        (clock, evicted)
    }

    /// The watch that follows a coverage has seen everything up to `revision`.
    pub(crate) fn advance(&mut self, query: &Query, epoch: u64, revision: u64, day: u32) -> bool {
        match self.exact_mut(query) {
            Some(coverage) if coverage.epoch == epoch => {
                let moved = revision > coverage.revision;
                coverage.day = day;
                coverage.revision = coverage.revision.max(revision);
                moved
            }
            _ => false,
        }
    }

    /// Drops the coverages that `lost` picks; gives their queries.
    pub(crate) fn drop_where(&mut self, mut lost: impl FnMut(&Coverage) -> bool) -> Vec<Query> {
        let mut gone = Vec::new();
        self.list.retain(|coverage| {
            let drop = lost(coverage);
            if drop {
                gone.push(coverage.query.clone());
            }
            !drop
        });
        gone
    }

    /// The newest revision at which the object of this namespace and name is known to be absent when it is not in the cache.
    pub(crate) fn absent_at(&self, namespace: &str, name: &str) -> Option<u64> {
        self.list
            .iter()
            .filter(|c| c.query.is_identity() && c.query.in_scope(namespace, name))
            .map(|c| c.revision)
            .max()
    }
}

/// How an object that `query` no longer holds at some revision leaves the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Leave {
    /// It does not exist any more, as far as anybody can tell.
    Remove,
    /// It may only have left the selector, and another coverage relies on it: it stays, but not for this query.
    Exclude,
}

/// Decides how an object leaves when `query` tells that it is no longer there.
pub(crate) fn leave(coverages: &Coverages, query: &Query, namespace: &str, name: &str) -> Leave {
    let relied_on = !query.is_stable()
        && coverages.iter().any(|other| {
            other.query.in_scope(namespace, name)
                && other.query != *query
                && !query.covers(&other.query)
        });
    if relied_on {
        Leave::Exclude
    } else {
        Leave::Remove
    }
}
