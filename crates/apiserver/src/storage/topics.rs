//! Whose watchers a change concerns.
//!
//! Most watchers of a large cluster look at one object or at the pods of one node. They would otherwise all wake for every
//! change, to find that it is not theirs.

use super::{
    log::{Change, Log},
    stored::Key,
};
use std::collections::HashMap;
use tokio::sync::watch;

/// What a watcher is confined to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Topic {
    /// One object.
    Object(Key),
    /// The pods of a node.
    Node(Box<str>),
}

impl Topic {
    fn concerns(&self, change: &Change) -> bool {
        match self {
            Self::Object(key) => change.object.key == *key,
            Self::Node(node) => nodes_of(change).any(|of| *of == **node),
        }
    }
}

/// The nodes that a change is about: where the pod is, and where it was.
fn nodes_of(change: &Change) -> impl Iterator<Item = &str> {
    let now = change.object.node();
    let before = change.previous.as_ref().and_then(|p| p.node());
    now.into_iter().chain(before.filter(|b| now != Some(*b)))
}

/// A topic that somebody follows.
#[derive(Debug)]
struct Followed {
    log: Log,
    changed: watch::Sender<u64>,
}

/// The topics of a partition that are followed.
#[derive(Debug, Default)]
pub(super) struct Topics {
    objects: HashMap<Key, Followed>,
    nodes: HashMap<Box<str>, Followed>,
}

impl Topics {
    /// Begins to follow; `all` is every change that is still known.
    pub(super) fn follow(&mut self, topic: &Topic, all: &Log) -> watch::Receiver<u64> {
        let fresh = || {
            let mut log = Log::new(all.floor());
            all.iter()
                .filter(|change| topic.concerns(change))
                .for_each(|change| log.push(change.clone()));
            Followed {
                log,
                changed: watch::Sender::new(0),
            }
        };
        let followed = match topic {
            Topic::Object(key) => self.objects.entry(key.clone()).or_insert_with(fresh),
            Topic::Node(node) => self.nodes.entry(node.clone()).or_insert_with(fresh),
        };
        followed.changed.subscribe()
    }

    /// Forgets a topic that nobody follows any more. The caller has dropped its receiver.
    pub(super) fn leave(&mut self, topic: &Topic) {
        let followed = self.find(topic);
        if followed.is_none_or(|followed| followed.changed.receiver_count() > 0) {
            return;
        }
        match topic {
            Topic::Object(key) => drop(self.objects.remove(key)),
            Topic::Node(node) => drop(self.nodes.remove(node)),
        }
    }

    fn find(&self, topic: &Topic) -> Option<&Followed> {
        match topic {
            Topic::Object(key) => self.objects.get(key),
            Topic::Node(node) => self.nodes.get(node),
        }
    }

    pub(super) fn log(&self, topic: &Topic) -> Option<&Log> {
        self.find(topic).map(|followed| &followed.log)
    }

    fn concerned(&mut self, change: &Change, mut each: impl FnMut(&mut Followed)) {
        if let Some(followed) = self.objects.get_mut(&change.object.key) {
            each(followed);
        }
        for node in nodes_of(change) {
            if let Some(followed) = self.nodes.get_mut(node) {
                each(followed);
            }
        }
    }

    /// Takes a change into the topics it is about; who is to be woken for it.
    pub(super) fn push(&mut self, change: &Change) -> Vec<watch::Sender<u64>> {
        let mut woken = Vec::new();
        self.concerned(change, |followed| {
            followed.log.push(change.clone());
            woken.push(followed.changed.clone());
        });
        woken
    }

    /// Forgets what the partition forgets.
    pub(super) fn forget(&mut self, change: &Change) {
        let revision = change.revision;
        self.concerned(change, |followed| followed.log.forget_through(revision));
    }
}
