//! What a client holds of the offline time and the cloud does not tell it to be otherwise: the cloud never had that state, and its
//! own is older than where the client's stream goes on.

use super::{
    Next, Relay,
    cursor::{Cursor, Resume},
};
use crate::offline::LocalWatch;
use std::collections::HashSet;
use yurt_wire::{Encoding, Gvr};

/// Which corrections a stream of the cloud needs.
#[derive(Debug)]
pub(super) struct Corrector {
    resource: Gvr,
    /// Where the stream began; the cloud tells what is newer. `None` for one that begins with the whole state.
    start: Option<u64>,
    /// The number of the last correction that was looked at.
    pub(super) after: u64,
    /// What the cloud told on this stream, of what may need a correction.
    told: HashSet<(String, String)>,
}

impl Corrector {
    pub(super) fn new(resource: Gvr) -> Self {
        Self {
            resource,
            start: None,
            after: 0,
            told: HashSet::new(),
        }
    }

    pub(super) fn resource(&self) -> &Gvr {
        &self.resource
    }

    /// A stream of the cloud begins.
    pub(super) fn begin(&mut self, cursor: &Cursor) {
        self.start = match cursor.resume() {
            Resume::At(revision) => revision.parse().ok(),
            Resume::Same | Resume::Impossible => None,
        };
        self.after = 0;
        self.told.clear();
    }

    pub(super) fn told(&mut self, namespace: &str, name: &str) {
        if self.start.is_some() {
            self.told.insert((namespace.to_owned(), name.to_owned()));
        }
    }

    /// Whether the client keeps a wrong state of an object whose state in the cloud is of `revision`.
    pub(super) fn concerns(&self, key: &str, revision: u64) -> bool {
        let (namespace, name) = key.split_once('/').unwrap_or(("", key));
        self.start.is_some_and(|start| revision <= start)
            && !self.told.contains(&(namespace.to_owned(), name.to_owned()))
    }
}

impl Relay {
    /// Tells the client the cloud's state of what it may hold otherwise.
    pub(super) async fn correct(&mut self) -> Result<(), Next> {
        let (due, last) = {
            let corrector = &self.corrector;
            let cache = &self.hub.cache;
            cache.corrections(&corrector.resource, corrector.after)
        };
        self.corrector.after = last;
        for correction in due {
            if !self
                .corrector
                .concerns(&correction.key, correction.revision)
            {
                continue;
            }
            let (offline, watched) = (&self.hub.offline, &self.watched);
            let teller =
                LocalWatch::follow(offline, &watched.caller, &watched.info, &watched.parts);
            let frame = match teller {
                Ok(mut teller)
                    if Encoding::from_content_type(teller.content_type())
                        == Some(self.encoding) =>
                {
                    teller.tell(&correction.change)
                }
                // It cannot be told in this stream: it has to begin anew.
                Ok(_) | Err(_) => {
                    return Err(Next::Break("what the client holds cannot be put right"));
                }
            };
            if let Some(frame) = frame {
                tracing::debug!(path = %self.watched.info.path, object = %correction.key, "the cloud's state told again");
                self.deliver(frame).await?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use yurt_wire::watch::EventType;

    #[test]
    fn the_cloud_tells_what_is_newer_itself() {
        let mut corrector = Corrector::new(Gvr::new("", "v1", "pods"));
        assert!(!corrector.concerns("d/a", 5), "no stream yet");
        corrector.begin(&Cursor::at("10"));
        assert!(corrector.concerns("d/a", 10));
        assert!(corrector.concerns("d/a", 0), "it exists nowhere");
        assert!(!corrector.concerns("d/a", 11));
        corrector.told("d", "a");
        assert!(!corrector.concerns("d/a", 10));
        assert!(corrector.concerns("d/b", 10));
        // the whole state comes first
        let options = yurt_wire::request::ListOptions {
            send_initial_events: Some(true),
            ..Default::default()
        };
        let mut cursor = Cursor::new(&options);
        corrector.begin(&cursor);
        assert!(!corrector.concerns("d/b", 10));
        cursor.saw(EventType::Bookmark, "20", true);
        corrector.begin(&cursor);
        assert!(corrector.concerns("d/b", 10));
    }
}
