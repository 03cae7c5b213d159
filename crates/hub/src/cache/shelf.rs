//! Shelves: small sealed records that other parts of the hub keep over restarts. Bounded; the oldest go first.

use super::{
    Cache,
    record::SHELVES,
    state::{State, Value},
};
use bytes::{BufMut, Bytes, BytesMut};
use std::{collections::BTreeMap, time::Duration};
use yurt_store::StoreError;

/// Longest key of a record, in bytes.
const MAX_KEY: usize = 1024;

/// What a record is kept for; each has bounds of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Shelf {
    /// Tokens of service accounts that the cloud issued to this node's pods.
    Tokens,
    /// Tokens that this node issued itself.
    IssuedTokens,
    /// What the cloud answered to reviews of tokens and of access.
    Reviews,
    /// Keys of token issuers.
    Issuers,
    /// Upgrades that the node's owner asked for.
    Upgrades,
    /// The node's own: keys, marks, what must outlive a restart.
    Node,
}

/// Bounds of a shelf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Records.
    pub records: usize,
    /// Bytes of all keys and values.
    pub bytes: usize,
}

impl Shelf {
    /// All shelves.
    pub const ALL: [Self; 6] = [
        Self::Tokens,
        Self::IssuedTokens,
        Self::Reviews,
        Self::Issuers,
        Self::Upgrades,
        Self::Node,
    ];

    /// The name in record keys.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Tokens => "tokens",
            Self::IssuedTokens => "issued-tokens",
            Self::Reviews => "reviews",
            Self::Issuers => "issuers",
            Self::Upgrades => "upgrades",
            Self::Node => "node",
        }
    }

    /// How much it holds.
    pub const fn bounds(self) -> Bounds {
        let (records, bytes) = match self {
            // A node has at most some 250 pods, each with a few tokens of about 1.5 KB.
            Self::Tokens => (2048, 8 << 20),
            Self::IssuedTokens => (2048, 4 << 20),
            Self::Reviews => (2048, 4 << 20),
            Self::Issuers => (32, 1 << 20),
            Self::Upgrades => (96, 1 << 20),
            Self::Node => (256, 2 << 20),
        };
        Bounds { records, bytes }
    }

    fn record(self, key: &str) -> Vec<u8> {
        [SHELVES, self.name().as_bytes(), b"/", key.as_bytes()].concat()
    }

    fn parse(record: &[u8]) -> Option<(Self, &str)> {
        let (name, key) = std::str::from_utf8(record.strip_prefix(SHELVES)?)
            .ok()?
            .split_once('/')?;
        let shelf = Self::ALL.into_iter().find(|shelf| shelf.name() == name)?;
        Some((shelf, key))
    }
}

/// What lies on one shelf, without the values.
#[derive(Debug, Default)]
struct Contents {
    /// Size and age (grows with every keep) by key.
    records: BTreeMap<String, (usize, u64)>,
    bytes: usize,
}

impl Contents {
    /// Notes a record; gives those that must go.
    fn note(&mut self, key: &str, bytes: usize, age: u64, bounds: Bounds) -> Vec<String> {
        self.remove(key);
        self.records.insert(key.to_owned(), (bytes, age));
        self.bytes += bytes;
        let mut gone = Vec::new();
        while self.records.len() > bounds.records || self.bytes > bounds.bytes {
            let oldest = self
                .records
                .iter()
                .filter(|(other, _)| *other != key)
                .min_by_key(|(_, (_, age))| *age)
                .map(|(key, _)| key.clone());
            let Some(oldest) = oldest else { break };
            self.remove(&oldest);
            gone.push(oldest);
        }
        gone
    }

    fn remove(&mut self, key: &str) -> bool {
        let removed = self.records.remove(key);
        if let Some((bytes, _)) = removed {
            self.bytes -= bytes;
        }
        removed.is_some()
    }
}

/// The contents of all shelves.
#[derive(Debug, Default)]
pub(crate) struct Shelves {
    contents: BTreeMap<Shelf, Contents>,
    age: u64,
}

impl Shelves {
    /// Records on a shelf.
    pub(super) fn count(&self, shelf: Shelf) -> usize {
        self.contents
            .get(&shelf)
            .map_or(0, |contents| contents.records.len())
    }
}

/// A stored value: its age (8 bytes, little endian), then the value as given.
fn encode(age: u64, value: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(8 + value.len());
    out.put_u64_le(age);
    out.put_slice(value);
    out.freeze()
}

fn decode(stored: &Bytes) -> Option<(u64, Bytes)> {
    let age = stored.first_chunk::<8>()?;
    Some((u64::from_le_bytes(*age), stored.slice(8..)))
}

/// Fills the shelves from the store; gives the records that cannot be read.
pub(super) fn load(
    store: &super::sealed::SealedStore,
    state: &mut State,
) -> Result<Vec<Vec<u8>>, StoreError> {
    let mut unreadable = Vec::new();
    super::tolerate(store.scan(SHELVES, &mut |record, stored| {
        match (Shelf::parse(record), decode(&stored)) {
            (Some((shelf, key)), Some((age, value))) => {
                let shelves = &mut state.shelves;
                shelves.age = shelves.age.max(age);
                let gone = shelves.contents.entry(shelf).or_default().note(
                    key,
                    key.len() + value.len(),
                    age,
                    shelf.bounds(),
                );
                unreadable.extend(gone.iter().map(|key| shelf.record(key)));
            }
            _ => unreadable.push(record.to_vec()),
        }
        true
    }))?;
    Ok(unreadable)
}

impl Cache {
    /// Keeps a record, in place of an older one of the same key. It is durable within the next second, or when
    /// [`Cache::flush`] returned. `false` when key or value are larger than the shelf.
    pub fn keep(&self, shelf: Shelf, key: &str, value: Bytes) -> bool {
        let bytes = key.len() + value.len();
        if key.len() > MAX_KEY || bytes > shelf.bounds().bytes {
            return false;
        }
        let shared = self.shared();
        let same = self.kept(shelf, key).as_ref() == Some(&value);
        let mut state = shared.lock();
        state.shelves.age += 1;
        let age = state.shelves.age;
        let contents = state.shelves.contents.entry(shelf).or_default();
        let gone = contents.note(key, bytes, age, shelf.bounds());
        for key in gone {
            state.enqueue(shelf.record(&key), Value::Delete, Duration::ZERO);
        }
        // The same again wears no flash; its age on disk is of no weight.
        if !same {
            state.enqueue(
                shelf.record(key),
                Value::Shelved(encode(age, &value)),
                Duration::ZERO,
            );
        }
        drop(state);
        shared.stir();
        true
    }

    /// A record that was kept.
    pub fn kept(&self, shelf: Shelf, key: &str) -> Option<Bytes> {
        let shared = self.shared();
        let record = shelf.record(key);
        {
            let state = shared.lock();
            state.shelves.contents.get(&shelf)?.records.get(key)?;
            if let Some(waiting) = state.pending.get(&record) {
                return match &waiting.value {
                    Value::Shelved(stored) => decode(stored).map(|(_, value)| value),
                    Value::Object(_) | Value::Raw(_) | Value::Delete => None,
                };
            }
        }
        match shared.store.get(&record) {
            Ok(stored) => decode(&stored?).map(|(_, value)| value),
            Err(error) => {
                tracing::warn!(?shelf, %error, "a kept record cannot be read");
                shared.stats.read_errors.add(1);
                None
            }
        }
    }

    /// All records of a shelf, by key.
    pub fn shelf(&self, shelf: Shelf) -> Vec<(String, Bytes)> {
        let keys: Vec<String> = self
            .shared()
            .lock()
            .shelves
            .contents
            .get(&shelf)
            .map(|contents| contents.records.keys().cloned().collect())
            .unwrap_or_default();
        keys.into_iter()
            .filter_map(|key| {
                let value = self.kept(shelf, &key)?;
                Some((key, value))
            })
            .collect()
    }

    /// Takes a record off its shelf.
    pub fn discard(&self, shelf: Shelf, key: &str) {
        let shared = self.shared();
        let mut state = shared.lock();
        let known = state
            .shelves
            .contents
            .get_mut(&shelf)
            .is_some_and(|contents| contents.remove(key));
        if known {
            state.enqueue(shelf.record(key), Value::Delete, Duration::ZERO);
        }
        drop(state);
        shared.stir();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_go_first() {
        let bounds = Bounds {
            records: 3,
            bytes: 100,
        };
        let mut contents = Contents::default();
        for (age, key) in ["a", "b", "c"].iter().enumerate() {
            assert!(contents.note(key, 10, age as u64, bounds).is_empty());
        }
        // Kept again: young again.
        assert!(contents.note("a", 10, 3, bounds).is_empty());
        assert_eq!(contents.note("d", 10, 4, bounds), ["b"]);
        assert_eq!(contents.note("e", 90, 5, bounds), ["c", "a"]);
        assert_eq!(contents.bytes, 100);
        assert_eq!(contents.note("f", 95, 6, bounds), ["d", "e"]);
        assert!(contents.remove("f"));
        assert_eq!(contents.bytes, 0);
    }

    #[test]
    fn records_read_back() {
        for shelf in Shelf::ALL {
            let record = shelf.record("a/b c");
            assert_eq!(Shelf::parse(&record), Some((shelf, "a/b c")));
        }
        assert_eq!(Shelf::parse(b"s/none/a"), None);
        assert_eq!(
            decode(&encode(7, b"x")),
            Some((7, Bytes::from_static(b"x")))
        );
        assert_eq!(decode(&Bytes::from_static(b"1234567")), None);
    }
}
