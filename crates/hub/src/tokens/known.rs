//! Tokens whose user is known, by hash; and those that the cloud refused. Pure; bounded: what was used longest ago goes first.

use super::{jwt::LEEWAY, user::User};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::{collections::HashMap, sync::Arc};

/// Tokens remembered.
pub const MAX_TOKENS: usize = 1024;

/// By what a token's user is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Via {
    /// The cloud reviewed it.
    Review,
    /// The cloud issued it through this node.
    Issue,
    /// A key of the cloud's issuer signed it.
    Keys,
    /// The node signed it.
    Node,
}

/// What is known of a token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Known {
    /// Whose it is.
    pub user: User,
    /// Under what name the rights of the user are kept ([`User::rights_key`]).
    #[serde(skip)]
    pub rights: String,
    /// Until when, seconds since the epoch (leeway not counted).
    pub until: i64,
    /// From when on; 0 when the cloud itself said that it is good. The clock that it was signed by may have been corrected since.
    #[serde(default)]
    pub since: i64,
    /// Audiences; none: the API server's, whichever they are.
    #[serde(default)]
    pub audiences: Vec<String>,
    /// How it is known.
    pub via: Via,
}

impl Known {
    /// A token of a user.
    pub fn new(user: User, until: i64, audiences: Vec<String>, via: Via) -> Self {
        Self {
            rights: user.rights_key(),
            user,
            until,
            since: 0,
            audiences,
            via,
        }
    }

    fn holds(&self, now: i64) -> bool {
        now < self.until.saturating_add(LEEWAY) && now >= self.since.saturating_sub(LEEWAY)
    }
}

/// What the table says of a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Word {
    /// It is this user's.
    Good(Arc<Known>),
    /// The cloud refused it.
    Denied {
        /// Until when that is remembered.
        until: i64,
    },
}

/// A word as it is kept.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Record {
    Good(Known),
    DeniedUntil(i64),
}

impl Word {
    fn until(&self) -> i64 {
        match self {
            Self::Good(known) => known.until.saturating_add(LEEWAY),
            Self::Denied { until } => *until,
        }
    }

    /// As it is kept.
    pub fn encode(&self) -> Bytes {
        let record = match self {
            Self::Good(known) => Record::Good(Known::clone(known)),
            Self::Denied { until } => Record::DeniedUntil(*until),
        };
        // Strings and numbers always have a JSON form.
        serde_json::to_vec(&record).unwrap_or_default().into()
    }

    /// The inverse of [`Self::encode`].
    pub fn decode(kept: &[u8]) -> Option<Self> {
        Some(match serde_json::from_slice(kept).ok()? {
            Record::Good(known) => Self::Good(Arc::new(Known::new(
                known.user,
                known.until,
                known.audiences,
                known.via,
            ))),
            Record::DeniedUntil(until) => Self::Denied { until },
        })
    }

    /// Whether it is kept over restarts: what can be proven again is not.
    pub fn is_durable(&self) -> bool {
        match self {
            Self::Good(known) => known.via == Via::Review,
            Self::Denied { .. } => true,
        }
    }
}

/// All of them.
#[derive(Debug, Default)]
pub struct Table {
    words: HashMap<Box<str>, (Word, u64)>,
    clock: u64,
}

impl Table {
    /// What is known of a token now.
    pub fn get(&mut self, hash: &str, now: i64) -> Option<Word> {
        self.clock += 1;
        let (word, used) = self.words.get_mut(hash)?;
        if word.until() <= now || matches!(word, Word::Good(known) if !known.holds(now)) {
            return None;
        }
        *used = self.clock;
        Some(word.clone())
    }

    /// Remembers; gives the hashes of those that had to go.
    pub fn put(&mut self, hash: &str, word: Word, now: i64) -> Vec<String> {
        self.clock += 1;
        self.words.insert(hash.into(), (word, self.clock));
        if self.words.len() <= MAX_TOKENS {
            return Vec::new();
        }
        let mut gone: Vec<String> = self
            .words
            .iter()
            .filter(|(_, (word, _))| word.until() <= now)
            .map(|(hash, _)| hash.to_string())
            .collect();
        if gone.is_empty() {
            let oldest = self.words.iter().min_by_key(|(_, (_, used))| *used);
            gone.extend(oldest.map(|(hash, _)| hash.to_string()));
        }
        for hash in &gone {
            self.words.remove(hash.as_str());
        }
        gone
    }

    /// Forgets what was proven by keys that may not be good any more.
    pub fn forget_proven(&mut self, via: Via) {
        self.words
            .retain(|_, (word, _)| !matches!(word, Word::Good(known) if known.via == via));
    }

    /// Forgets one.
    pub fn remove(&mut self, hash: &str) {
        self.words.remove(hash);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokens::user::account_user;

    fn good(until: i64, via: Via) -> Word {
        Word::Good(Arc::new(Known::new(
            account_user("a", "b", ""),
            until,
            Vec::new(),
            via,
        )))
    }

    #[test]
    fn words_end() {
        let mut table = Table::default();
        table.put("a", good(100, Via::Review), 0);
        table.put("b", Word::Denied { until: 50 }, 0);
        assert!(table.get("a", 100 + LEEWAY - 1).is_some());
        assert!(table.get("a", 100 + LEEWAY).is_none());
        assert!(table.get("b", 49).is_some());
        assert!(table.get("b", 50).is_none());
    }

    #[test]
    fn the_table_is_bounded() {
        let mut table = Table::default();
        for i in 0..MAX_TOKENS {
            assert!(
                table
                    .put(&i.to_string(), good(100, Via::Keys), 0)
                    .is_empty()
            );
        }
        assert!(table.get("0", 0).is_some());
        assert_eq!(table.put("x", good(900, Via::Review), 0), ["1"]);
        // What has ended goes before what is in use.
        assert_eq!(
            table.put("y", good(900, Via::Review), 500).len(),
            MAX_TOKENS - 1
        );
        assert_eq!(table.words.len(), 2);
        table.forget_proven(Via::Review);
        assert_eq!(table.words.len(), 0);
    }

    #[test]
    fn records_read_back() {
        for word in [good(7, Via::Review), Word::Denied { until: 9 }] {
            assert_eq!(Word::decode(&word.encode()), Some(word));
        }
        assert_eq!(Word::decode(b"{}"), None);
    }
}
