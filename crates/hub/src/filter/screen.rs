//! What the client of a filtered watch is told: a pure function of the events and of what it was told before.

use super::{Chain, Outcome};
use crate::metrics::Metrics;
use bytes::Bytes;
use std::collections::HashSet;
use yurt_wire::{
    Encoding, Object,
    watch::{EventType, Frame, encode},
};

/// Objects that are known not to be shown; of others that are not, the client is told once too often that they are gone.
const MOST_HIDDEN: usize = 16 << 10;

/// What an object looked like to the client before.
#[derive(Clone, Debug)]
pub enum Before {
    /// Nobody remembers.
    Unknown,
    /// As a chain had it; `None`: as it is.
    Chain(Option<Chain>),
}

/// Stands between a stream of events and its client.
#[derive(Debug)]
pub struct Screen {
    chain: Option<Chain>,
    encoding: Encoding,
    metrics: Metrics,
    /// `NAMESPACE/NAME` of objects that the client does not see.
    hidden: HashSet<Box<str>>,
    /// The revision up to which the client was told everything.
    position: u64,
}

impl Screen {
    /// For a client that knows everything up to a revision (0: nothing).
    pub fn new(chain: Chain, encoding: Encoding, position: u64, metrics: Metrics) -> Self {
        Self {
            chain: Some(chain),
            encoding,
            metrics,
            hidden: HashSet::new(),
            position,
        }
    }

    /// The chain; `None` when nothing is filtered any more.
    pub fn chain(&self) -> Option<&Chain> {
        self.chain.as_ref()
    }

    /// Puts another chain in place; gives the one before.
    pub fn set_chain(&mut self, chain: Option<Chain>) -> Option<Chain> {
        std::mem::replace(&mut self.chain, chain)
    }

    /// The revision up to which the client was told everything.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// What the client is told of an event; `None` when nothing.
    pub fn event(&mut self, frame: Frame) -> Option<Bytes> {
        // What is not understood here is not filtered: the client does not understand it either.
        let Ok(event) = frame.event else {
            return Some(frame.raw);
        };
        let Ok(key) = event.object.key() else {
            return Some(frame.raw);
        };
        if let Ok(revision) = key.resource_version.parse::<u64>() {
            self.position = self.position.max(revision);
        }
        if matches!(event.kind, EventType::Bookmark | EventType::Error) {
            return Some(frame.raw);
        }
        let key = named(&key.namespace, &key.name);
        let outcome = match &self.chain {
            Some(chain) => chain.filter(&event.object, &self.metrics),
            None => Outcome::Kept,
        };
        let was_hidden = self.hidden.contains(&key);
        if event.kind == EventType::Deleted {
            self.hidden.remove(&key);
            return match outcome {
                _ if was_hidden => None,
                Outcome::Changed(object) => Some(encode(event.kind, &object, self.encoding)),
                Outcome::Kept | Outcome::Dropped => Some(frame.raw),
            };
        }
        let kind = match event.kind {
            EventType::Modified if was_hidden => EventType::Added,
            kind => kind,
        };
        match outcome {
            Outcome::Dropped => {
                let seen = event.kind == EventType::Modified && !was_hidden;
                self.hide(key);
                seen.then(|| encode(EventType::Deleted, &event.object, self.encoding))
            }
            Outcome::Changed(object) => {
                self.hidden.remove(&key);
                Some(encode(kind, &object, self.encoding))
            }
            Outcome::Kept => {
                self.hidden.remove(&key);
                Some(match kind == event.kind {
                    true => frame.raw,
                    false => encode(kind, &event.object, self.encoding),
                })
            }
        }
    }

    /// What the client is told of an object that it knows (or that was hidden from it) as `before` had it; `None` when nothing changes,
    /// and when the stream is still to tell of the object.
    pub fn retell(&mut self, before: &Before, object: &Object) -> Option<Bytes> {
        let object = object.to_encoding(self.encoding).ok()?;
        let (key, revision) = {
            let key = object.key().ok()?;
            let revision: u64 = key.resource_version.parse().ok()?;
            (named(&key.namespace, &key.name), revision)
        };
        if revision > self.position {
            return None;
        }
        let show = |chain: &Option<Chain>| match chain {
            Some(chain) => match chain.filter(&object, &self.metrics) {
                Outcome::Kept => Some(object.clone()),
                Outcome::Changed(changed) => Some(changed),
                Outcome::Dropped => None,
            },
            None => Some(object.clone()),
        };
        let is = show(&self.chain);
        let was_hidden = self.hidden.contains(&key);
        let kind = match (before, &is) {
            (Before::Unknown, Some(_)) => EventType::Modified,
            (Before::Unknown, None) if was_hidden => return None,
            (Before::Unknown, None) => EventType::Deleted,
            (Before::Chain(chain), is) => match (show(chain), is) {
                (was, is) if was == *is => return None,
                (None, _) => EventType::Added,
                (Some(_), Some(_)) => EventType::Modified,
                (Some(_), None) => EventType::Deleted,
            },
        };
        self.metrics.filters().retold();
        Some(match is {
            Some(shown) => {
                self.hidden.remove(&key);
                encode(kind, &shown, self.encoding)
            }
            None => {
                self.hide(key);
                encode(kind, &object, self.encoding)
            }
        })
    }

    fn hide(&mut self, key: Box<str>) {
        if self.hidden.len() < MOST_HIDDEN {
            self.hidden.insert(key);
        }
    }
}

fn named(namespace: &str, name: &str) -> Box<str> {
    format!("{namespace}/{name}").into()
}

#[cfg(test)]
mod tests;
