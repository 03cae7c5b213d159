//! What the pool's feed of a resource tells, in a watch that the node serves: exactly what its client does not have yet.

use super::{LocalFrame, LocalWatch, transition};
use crate::{
    cache::Sight,
    pool::share::{Before, Feed, Subscription, Told},
};
use std::{collections::HashMap, sync::Arc};
use yurt_wire::{Encoding, Gvk, Object, Status, media::Shape, object::Malformed, watch::EventType};

/// What the client has of an object, apart from what was told before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Held {
    /// Nothing that differs from what was told.
    AsTold,
    /// A newer state.
    Already,
    /// This state or an earlier one, which belongs to its query: it was shown at the beginning, further than was told at that time.
    Shown,
    /// Nothing.
    Nothing,
}

/// A watch's place in a feed.
#[derive(Debug)]
pub(super) struct Following {
    subscription: Subscription,
    /// Where it began.
    after: u64,
    /// The objects whose state at `after` was gone by the time that they were shown: the revision shown instead, `None` when
    /// nothing was.
    ahead: HashMap<Box<str>, Option<u64>>,
}

impl Following {
    pub(super) fn new(feed: &Arc<Feed>, after: u64) -> Result<Self, Box<Status>> {
        let subscription = feed.subscribe(after).map_err(|floor| {
            Box::new(Status::expired(format!(
                "too old resource version: {after} ({floor})"
            )))
        })?;
        Ok(Self {
            subscription,
            after,
            ahead: HashMap::new(),
        })
    }

    /// Up to which revision everything was told, when nothing is left to tell.
    pub(super) fn settled(&self) -> Option<u64> {
        self.subscription.settled()
    }

    /// An initial event is due: whether the client sees the object, and its revision (`None`: there is none any more). The revision to
    /// show instead of one that is further than what was told: where it says so, the client may go on one day, and would miss what is
    /// told of other objects up to there.
    pub(super) fn showed(&mut self, key: &str, seen: bool, revision: Option<u64>) -> Option<u64> {
        if revision.is_some_and(|revision| revision <= self.after) {
            return None;
        }
        self.ahead.insert(key.into(), revision.filter(|_| seen));
        Some(self.after)
    }

    fn held(&mut self, told: &Told) -> Held {
        match self.ahead.get(&told.key) {
            None => Held::AsTold,
            // Of what a list showed only `due` is certain: it happened by then.
            Some(Some(shown)) if told.due < *shown => Held::Already,
            Some(Some(_)) => {
                self.ahead.remove(&told.key);
                Held::Shown
            }
            Some(None) => {
                self.ahead.remove(&told.key);
                Held::Nothing
            }
        }
    }
}

/// The next event of the feed; `None` when the watch fell behind.
pub(super) async fn told(following: &mut Option<Following>) -> Option<Arc<Told>> {
    match following {
        Some(following) => following.subscription.next().await,
        None => std::future::pending().await,
    }
}

impl LocalWatch {
    pub(super) fn tell_told(&mut self, told: &Told) -> Result<Option<LocalFrame>, Malformed> {
        let held = match &mut self.following {
            Some(following) => following.held(told),
            None => Held::AsTold,
        };
        self.revision = self.revision.max(told.revision);
        let (namespace, name) = told.place();
        if held == Held::Already || !self.query.in_scope(namespace, name) {
            return Ok(None);
        }
        if self.gvk.kind.is_empty() {
            let id = told.object.key()?;
            self.gvk = Gvk::from_api_version(&id.api_version, &id.kind);
        }
        let deleted = told.kind == EventType::Deleted;
        let belongs = |object: &Object| self.query.matches(namespace, name, object);
        let was = match (held, &told.before) {
            (Held::Nothing, _) => Some(false),
            (Held::Shown, _) => Some(true),
            (_, Before::Object(before)) => Some(belongs(before)),
            (_, Before::Nothing) => Some(false),
            (_, Before::Unknown) => None,
        };
        // On this node something else may show; it told so itself, and does so again when it changes.
        let instead = if self.sight == Sight::Node && !deleted {
            self.cache.shown_instead(&self.query.gvr, &told.key)
        } else {
            None
        };
        let object = match &instead {
            None => &told.object,
            Some(Some(shown)) => shown,
            Some(None) => return Ok(None),
        };
        let is = !deleted && belongs(object);
        let kind = match was {
            Some(was) => transition(was, is),
            // Clients know how to do without having had it.
            None if is => Some(EventType::Modified),
            None => Some(EventType::Deleted),
        };
        let Some(kind) = kind else {
            return Ok(None);
        };
        if kind == told.kind && instead.is_none() && self.passes(told.object.encoding) {
            return Ok(Some(LocalFrame {
                bytes: told.frame.clone(),
                resource_version: None,
            }));
        }
        if kind == EventType::Deleted && !deleted {
            // It left the selector: its last state within, at the revision of the change.
            let last = match &told.before {
                Before::Object(before) => before,
                Before::Nothing | Before::Unknown => object,
            };
            let last = last.with_resource_version(&told.revision.to_string())?;
            return self.frame(kind, &last).map(Some);
        }
        self.frame(kind, object).map(Some)
    }

    /// Whether frames of the feed can be passed on as they are.
    fn passes(&self, encoding: Encoding) -> bool {
        self.wanted.representation.shape == Shape::Full && self.encoding == encoding
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use yurt_wire::Gvr;

    #[test]
    fn what_initial_events_showed_is_not_told_again() {
        let feed = Feed::detached(Gvr::new("", "v1", "services"), 10);
        let mut following = Following::new(&feed, 10).unwrap();
        assert_eq!(following.showed("d/a", true, Some(13)), Some(10));
        assert_eq!(following.showed("d/old", true, Some(9)), None);
        assert_eq!(following.held(&Told::sample(12)), Held::Already);
        // At the revision that it has at last.
        assert_eq!(following.held(&Told::sample(13)), Held::Shown);
        assert_eq!(following.held(&Told::sample(14)), Held::AsTold);
        assert!(following.ahead.is_empty());
        following.showed("d/a", false, None);
        assert_eq!(following.held(&Told::sample(12)), Held::Nothing);
        assert_eq!(following.held(&Told::sample(13)), Held::AsTold);
        assert!(Following::new(&feed, 9).is_err(), "before the window");
    }
}
