//! Pods that wait for a node.
//!
//! As in kube-scheduler: the most important first, then the oldest; one that found no node is parked until something happens that
//! may help it, and then waits out a pause that doubles with each attempt. Its length is bounded by the number of pods.

use super::{filter::Plugin, pod::Pod};
use crate::Key;
use std::{
    cmp::Reverse,
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};
use tokio::time::Instant;

const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// Parked pods are tried again after this time even if nothing seems to have happened.
const LONGEST_PARKED: Duration = Duration::from_secs(300);

/// What happened in the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event {
    NodeAdded,
    /// Its labels, taints or resources changed.
    NodeChanged,
    /// A pod came to a node, or changed there.
    PodPlaced,
    PodGone,
    /// A volume, a claim, a class or a namespace.
    Other,
}

impl Event {
    /// Whether a pod that the plugin rejected may fit now.
    fn helps(self, plugin: Plugin) -> bool {
        match plugin {
            Plugin::NodeUnschedulable | Plugin::TaintToleration | Plugin::NodeAffinity => {
                matches!(self, Self::NodeAdded | Self::NodeChanged)
            }
            Plugin::NodePorts => matches!(self, Self::NodeAdded | Self::PodGone),
            Plugin::NodeResourcesFit => {
                matches!(self, Self::NodeAdded | Self::NodeChanged | Self::PodGone)
            }
            Plugin::Volumes => matches!(self, Self::NodeAdded | Self::NodeChanged | Self::Other),
            Plugin::PodTopologySpread | Plugin::InterPodAffinity => true,
        }
    }
}

/// The important first, then the old.
type Rank = (Reverse<i64>, Instant, Key);

#[derive(Clone, Debug)]
enum Place {
    Ready(Rank),
    Later(Instant),
    Parked {
        plugins: BTreeSet<Plugin>,
        since: Instant,
    },
    /// A node is being looked for, or was found and is being told.
    Out,
}

#[derive(Debug)]
struct Entry {
    pod: Arc<Pod>,
    added: Instant,
    attempts: u32,
    last_attempt: Instant,
    place: Place,
}

/// The queue.
#[derive(Debug, Default)]
pub(super) struct Queue {
    entries: HashMap<Key, Entry>,
    ready: BTreeSet<Rank>,
    later: BTreeSet<(Instant, Key)>,
}

impl Queue {
    /// Takes in a pod that has no node. One that is known only moves when its wishes changed.
    pub(super) fn put(&mut self, pod: Arc<Pod>, now: Instant) {
        let key = pod.key.clone();
        match self.entries.get_mut(&key) {
            Some(entry) if entry.pod.uid == pod.uid => {
                let changed = !entry.pod.same_wishes(&pod);
                entry.pod = pod;
                if changed && !matches!(entry.place, Place::Out) {
                    self.make_ready(&key);
                }
            }
            _ => {
                self.remove(&key);
                let entry = Entry {
                    pod,
                    added: now,
                    attempts: 0,
                    last_attempt: now,
                    place: Place::Out,
                };
                self.entries.insert(key.clone(), entry);
                self.make_ready(&key);
            }
        }
    }

    pub(super) fn remove(&mut self, key: &Key) {
        self.leave_place(key);
        self.entries.remove(key);
    }

    /// The next pod; it stays known until it is removed.
    pub(super) fn pop(&mut self, now: Instant) -> Option<Arc<Pod>> {
        while let Some((due, key)) = self.later.first().cloned() {
            if due > now {
                break;
            }
            self.make_ready(&key);
        }
        let (_, _, key) = self.ready.pop_first()?;
        let entry = self.entries.get_mut(&key)?;
        entry.place = Place::Out;
        entry.attempts = entry.attempts.saturating_add(1);
        entry.last_attempt = now;
        Some(entry.pod.clone())
    }

    /// When to call [`Queue::pop`] again if nothing happens.
    pub(super) fn next_due(&self) -> Option<Instant> {
        let parked = self.entries.values().filter_map(|entry| match entry.place {
            Place::Parked { since, .. } => Some(since + LONGEST_PARKED),
            _ => None,
        });
        parked.chain(self.later.first().map(|(due, _)| *due)).min()
    }

    /// No node was found.
    pub(super) fn park(&mut self, key: &Key, plugins: BTreeSet<Plugin>, now: Instant) {
        self.leave_place(key);
        if let Some(entry) = self.entries.get_mut(key) {
            entry.place = Place::Parked {
                plugins,
                since: now,
            };
        }
    }

    /// Something failed that has nothing to do with the pod.
    pub(super) fn retry(&mut self, key: &Key) {
        self.leave_place(key);
        self.wait_out_pause(key);
    }

    /// Something happened: pods that it may help leave the parking lot.
    pub(super) fn wake(&mut self, event: Event) {
        let helped = |plugins: &BTreeSet<Plugin>| {
            plugins.is_empty() || plugins.iter().any(|plugin| event.helps(*plugin))
        };
        self.wake_where(
            |entry| matches!(&entry.place, Place::Parked { plugins, .. } if helped(plugins)),
        );
    }

    /// Pods that have been parked for very long are tried again.
    pub(super) fn flush(&mut self, now: Instant) {
        self.wake_where(
            |entry| matches!(entry.place, Place::Parked { since, .. } if now >= since + LONGEST_PARKED),
        );
    }

    fn wake_where(&mut self, which: impl Fn(&Entry) -> bool) {
        let woken: Vec<Key> = self
            .entries
            .iter()
            .filter(|(_, entry)| which(entry))
            .map(|(key, _)| key.clone())
            .collect();
        for key in woken {
            self.wait_out_pause(&key);
        }
    }

    fn wait_out_pause(&mut self, key: &Key) {
        let Some(entry) = self.entries.get_mut(key) else {
            return;
        };
        let doubled = 2u32.saturating_pow(entry.attempts.saturating_sub(1).min(10));
        let pause = FIRST_PAUSE.saturating_mul(doubled).min(LONGEST_PAUSE);
        let due = entry.last_attempt + pause;
        entry.place = Place::Later(due);
        self.later.insert((due, key.clone()));
    }

    fn make_ready(&mut self, key: &Key) {
        self.leave_place(key);
        if let Some(entry) = self.entries.get_mut(key) {
            let rank = (Reverse(entry.pod.priority), entry.added, key.clone());
            entry.place = Place::Ready(rank.clone());
            self.ready.insert(rank);
        }
    }

    fn leave_place(&mut self, key: &Key) {
        let Some(entry) = self.entries.get_mut(key) else {
            return;
        };
        match std::mem::replace(&mut entry.place, Place::Out) {
            Place::Ready(rank) => drop(self.ready.remove(&rank)),
            Place::Later(due) => drop(self.later.remove(&(due, key.clone()))),
            Place::Parked { .. } | Place::Out => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(name: &str, priority: i64) -> Arc<Pod> {
        Arc::new(Pod::parse(
            &json!({"metadata": {"namespace": "default", "name": name, "uid": name},
            "spec": {"priority": priority}}),
        ))
    }

    fn popped(queue: &mut Queue, now: Instant) -> Option<String> {
        queue.pop(now).map(|pod| pod.key.name.clone())
    }

    #[tokio::test(start_paused = true)]
    async fn the_important_come_first_then_the_old() {
        let mut queue = Queue::default();
        for (name, priority) in [("a", 0), ("b", 10), ("c", 0), ("d", 10)] {
            queue.put(pod(name, priority), Instant::now());
            tokio::time::advance(Duration::from_millis(1)).await;
        }
        queue.remove(&Key::new("default", "c"));
        let now = Instant::now();
        let order: Vec<_> = std::iter::from_fn(|| popped(&mut queue, now)).collect();
        assert_eq!(order, ["b", "d", "a"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_parked_pod_waits_for_what_may_help_it_and_then_its_pause() {
        let mut queue = Queue::default();
        let key = Key::new("default", "a");
        queue.put(pod("a", 0), Instant::now());
        queue.pop(Instant::now()).unwrap();
        queue.park(&key, [Plugin::NodeResourcesFit].into(), Instant::now());
        queue.wake(Event::PodPlaced);
        assert_eq!(
            queue.next_due(),
            Some(Instant::now() + LONGEST_PARKED),
            "another pod somewhere is no help"
        );
        queue.wake(Event::PodGone);
        assert_eq!(popped(&mut queue, Instant::now()), None);
        assert_eq!(queue.next_due(), Some(Instant::now() + FIRST_PAUSE));
        tokio::time::advance(FIRST_PAUSE).await;
        assert_eq!(popped(&mut queue, Instant::now()).as_deref(), Some("a"));
        queue.park(&key, BTreeSet::new(), Instant::now());
        queue.wake(Event::Other);
        assert_eq!(queue.next_due(), Some(Instant::now() + 2 * FIRST_PAUSE));
    }

    #[tokio::test(start_paused = true)]
    async fn new_wishes_are_tried_at_once_and_news_that_change_none_are_not() {
        let mut queue = Queue::default();
        let key = Key::new("default", "a");
        queue.put(pod("a", 0), Instant::now());
        queue.pop(Instant::now()).unwrap();
        queue.park(&key, [Plugin::NodeAffinity].into(), Instant::now());
        queue.put(pod("a", 0), Instant::now());
        assert_eq!(popped(&mut queue, Instant::now()), None);
        let mut other = (*pod("a", 0)).clone();
        other.labels.push(("a".into(), "b".into()));
        queue.put(Arc::new(other), Instant::now());
        assert_eq!(popped(&mut queue, Instant::now()).as_deref(), Some("a"));
        queue.retry(&key);
        assert!(queue.next_due().is_some());
        queue.remove(&key);
        assert_eq!(queue.next_due(), None);
        queue.put(pod("b", 0), Instant::now());
        queue.pop(Instant::now()).unwrap();
        queue.park(
            &Key::new("default", "b"),
            [Plugin::Volumes].into(),
            Instant::now(),
        );
        tokio::time::advance(LONGEST_PARKED).await;
        queue.flush(Instant::now());
        assert_eq!(popped(&mut queue, Instant::now()).as_deref(), Some("b"));
    }
}
