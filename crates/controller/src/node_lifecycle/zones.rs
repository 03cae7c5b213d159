//! How fast nodes are tainted for eviction, by how bad it looks in their zone. Pure.
//!
//! When most of a zone seems to be down it is likelier that the zone cannot be reached than that its nodes are gone; when every zone
//! seems to be down, it is this controller that is cut off, and nothing is evicted.

use super::health::Status;
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};
use tokio::time::Instant;

/// How fast nodes are tainted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rates {
    /// Nodes per second in a zone that is well, and in one that is down as a whole (`--node-eviction-rate`).
    pub eviction: f64,
    /// The same in a large zone that is partly down (`--secondary-node-eviction-rate`).
    pub secondary: f64,
    /// Up to how many nodes a zone is small, and is left alone while partly down (`--large-cluster-size-threshold`).
    pub small: usize,
    /// The share of nodes not ready from which a zone is partly down (`--unhealthy-zone-threshold`).
    pub unhealthy: f64,
}

impl Default for Rates {
    fn default() -> Self {
        Self {
            eviction: 0.1,
            secondary: 0.01,
            small: 50,
            unhealthy: 0.55,
        }
    }
}

impl Rates {
    /// How a zone is whose nodes are in these states.
    fn judge(&self, nodes: &[Status]) -> State {
        let ready = nodes
            .iter()
            .filter(|status| **status == Status::True)
            .count();
        let down = nodes.len() - ready;
        #[expect(clippy::cast_precision_loss, reason = "a share of some thousands")]
        let share = down as f64 / nodes.len().max(1) as f64;
        match (ready, down) {
            (0, 1..) => State::Full,
            (_, 3..) if share >= self.unhealthy => State::Partial,
            _ => State::Normal,
        }
    }

    /// Nodes per second in a zone of this state and size.
    fn of(&self, state: State, size: usize) -> f64 {
        match state {
            State::Initial | State::Normal | State::Full => self.eviction,
            State::Partial if size > self.small => self.secondary,
            State::Partial => 0.0,
        }
    }
}

/// How a zone is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Known, not judged yet.
    Initial,
    Normal,
    /// Partly down.
    Partial,
    /// No node is ready.
    Full,
}

/// What a change of the zones' states asks for, beside new rates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Consequence {
    /// Nothing.
    Nothing,
    /// Every zone is down: no node is to stay tainted.
    Spare,
    /// It was this controller that was cut off: all silences begin anew.
    Pardon,
}

#[derive(Debug)]
struct Zone {
    state: State,
    /// Nodes per second.
    rate: f64,
    /// When the next node may be tainted.
    next: Option<Instant>,
    waiting: VecDeque<String>,
    /// What waits or has been tainted, so that it does not wait again.
    marked: BTreeSet<String>,
}

/// All zones with the nodes that wait to be tainted.
#[derive(Debug, Default)]
pub(super) struct Zones {
    rates: Rates,
    zones: BTreeMap<String, Zone>,
}

impl Zones {
    pub(super) fn new(rates: Rates) -> Self {
        Self {
            rates,
            zones: BTreeMap::new(),
        }
    }

    /// A zone is known from when a node of it is.
    pub(super) fn add(&mut self, zone: &str) {
        if !self.zones.contains_key(zone) {
            let zone_state = Zone {
                state: State::Initial,
                rate: self.rates.eviction,
                next: None,
                waiting: VecDeque::new(),
                marked: BTreeSet::new(),
            };
            self.zones.insert(zone.to_owned(), zone_state);
        }
    }

    /// A node is to be tainted when its turn comes.
    pub(super) fn mark(&mut self, zone: &str, node: &str) {
        if let Some(zone) = self.zones.get_mut(zone)
            && zone.marked.insert(node.to_owned())
        {
            zone.waiting.push_back(node.to_owned());
        }
    }

    /// A node is not to be tainted (any more).
    pub(super) fn unmark(&mut self, node: &str) {
        for zone in self.zones.values_mut() {
            if zone.marked.remove(node) {
                zone.waiting.retain(|waiting| waiting != node);
            }
        }
    }

    /// The nodes whose turn it is.
    pub(super) fn due(&mut self, now: Instant) -> Vec<String> {
        let mut due = Vec::new();
        for zone in self.zones.values_mut() {
            // One at a time, without saving up: a burst of one.
            if zone.rate <= 0.0 || zone.next.is_some_and(|next| next > now) {
                continue;
            }
            if let Some(node) = zone.waiting.pop_front() {
                zone.next = Some(now + Duration::from_secs_f64(1.0 / zone.rate));
                due.push(node);
            }
        }
        due
    }

    /// A node whose turn it was could not be tainted.
    pub(super) fn again(&mut self, node: &str) {
        let zone = self
            .zones
            .values_mut()
            .find(|zone| zone.marked.contains(node));
        if let Some(zone) = zone {
            zone.waiting.push_back(node.to_owned());
        }
    }

    /// Judges all zones by the states of their nodes.
    pub(super) fn judge(&mut self, nodes: &BTreeMap<String, Vec<Status>>) -> Consequence {
        for zone in nodes.keys() {
            self.add(zone);
        }
        self.zones.retain(|name, _| nodes.contains_key(name));
        let judged: BTreeMap<&String, State> = nodes
            .iter()
            .map(|(name, nodes)| (name, self.rates.judge(nodes)))
            .collect();
        let all_down = judged.values().all(|state| *state == State::Full) && !judged.is_empty();
        let all_were_down =
            self.zones.values().all(|zone| zone.state == State::Full) && !self.zones.is_empty();
        if all_down && all_were_down {
            return Consequence::Nothing;
        }
        for (name, zone) in &mut self.zones {
            let new = judged.get(name).copied().unwrap_or(State::Normal);
            if all_down {
                zone.rate = 0.0;
            } else if zone.state != new || all_were_down {
                zone.rate = self.rates.of(new, nodes.get(name).map_or(0, Vec::len));
            }
            zone.state = new;
        }
        if all_down {
            Consequence::Spare
        } else if all_were_down {
            Consequence::Pardon
        } else {
            Consequence::Nothing
        }
    }
}

/// The zone of a node by its labels.
pub(super) fn of(node: &serde_json::Value) -> String {
    let label = |key: &str| {
        node["metadata"]["labels"][key]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    };
    let region = label("topology.kubernetes.io/region");
    let zone = label("topology.kubernetes.io/zone");
    if region.is_empty() && zone.is_empty() {
        return String::new();
    }
    format!("{region}:\0:{zone}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn states(up: usize, down: usize) -> Vec<Status> {
        let up = std::iter::repeat_n(Status::True, up);
        up.chain(std::iter::repeat_n(Status::Unknown, down))
            .collect()
    }

    fn zones(list: &[(&str, usize, usize)]) -> BTreeMap<String, Vec<Status>> {
        list.iter()
            .map(|(name, up, down)| ((*name).to_owned(), states(*up, *down)))
            .collect()
    }

    #[test]
    fn zones_are_judged_by_the_share_of_their_nodes() {
        assert_eq!(Rates::default().judge(&states(3, 0)), State::Normal);
        assert_eq!(
            Rates::default().judge(&states(1, 2)),
            State::Normal,
            "two nodes are no zone outage"
        );
        assert_eq!(Rates::default().judge(&states(2, 3)), State::Partial);
        assert_eq!(
            Rates::default().judge(&states(3, 3)),
            State::Normal,
            "half is below the threshold"
        );
        assert_eq!(Rates::default().judge(&states(0, 1)), State::Full);
        assert_eq!(Rates::default().judge(&[]), State::Normal);
    }

    #[test]
    fn nodes_take_turns_at_the_rate_of_their_zone() {
        let mut all = Zones::default();
        assert_eq!(
            all.judge(&zones(&[("a", 9, 2), ("b", 1, 0)])),
            Consequence::Nothing
        );
        for node in ["n1", "n2", "n1"] {
            all.mark("a", node);
        }
        let start = Instant::now();
        let after = |seconds: u64| start + Duration::from_secs(seconds);
        assert_eq!(all.due(start), ["n1"]);
        assert_eq!(all.due(after(9)), [""; 0]);
        assert_eq!(all.due(after(10)), ["n2"]);
        all.mark("a", "n1");
        assert_eq!(all.due(after(60)), [""; 0], "tainted once");
        all.again("n1");
        assert_eq!(all.due(after(60)), ["n1"]);
        all.unmark("n1");
        all.mark("a", "n1");
        assert_eq!(all.due(after(90)), ["n1"], "it came back and went again");
    }

    #[test]
    fn small_zones_that_are_partly_down_are_left_alone() {
        let mut all = Zones::default();
        all.judge(&zones(&[("small", 2, 3), ("large", 20, 40)]));
        all.mark("small", "s");
        all.mark("large", "l1");
        all.mark("large", "l2");
        let start = Instant::now();
        assert_eq!(all.due(start), ["l1"]);
        assert_eq!(all.due(start + Duration::from_secs(99)), [""; 0]);
        assert_eq!(all.due(start + Duration::from_secs(101)), ["l2"]);
    }

    #[test]
    fn when_everything_seems_down_nothing_is_evicted() {
        let mut all = Zones::default();
        all.judge(&zones(&[("a", 2, 0), ("b", 2, 0)]));
        assert_eq!(
            all.judge(&zones(&[("a", 0, 2), ("b", 2, 0)])),
            Consequence::Nothing
        );
        all.mark("a", "n");
        assert_eq!(
            all.judge(&zones(&[("a", 0, 2), ("b", 0, 2)])),
            Consequence::Spare
        );
        assert_eq!(all.due(Instant::now()), [""; 0]);
        assert_eq!(
            all.judge(&zones(&[("a", 0, 2), ("b", 0, 2)])),
            Consequence::Nothing
        );
        assert_eq!(
            all.judge(&zones(&[("a", 1, 1), ("b", 0, 2)])),
            Consequence::Pardon
        );
        assert_eq!(all.due(Instant::now()), ["n"]);
    }
}
