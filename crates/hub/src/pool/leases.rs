//! The leases of the pool's nodes, as they tell them to this one: who of them is alive, also while the cloud knows nothing of it. In
//! memory only: a leader that starts anew is told again within seconds. `served` is their API.

mod served;

pub(crate) use served::MOST_BYTES;
pub(super) use served::{Refused, answer};

use crate::autonomy::heartbeat::{DELEGATE, NODE_LEASES, micros};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};
use tokio::sync::watch;

/// Leases that are kept.
const MOST_LEASES: usize = 4096;
/// Longest that a lease may last.
const LONGEST: Duration = Duration::from_secs(3600);
/// Longest uid that is taken.
const LONGEST_UID: usize = 128;
/// Writes of one node: so many at once, and then one in this time.
const BURST: f64 = 10.0;
const REFILL: Duration = Duration::from_secs(1);

/// What a node says in its lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// When its kubelet was alive.
    pub renew: Timestamp,
    /// How long that holds.
    pub duration: Duration,
    /// Whether the leader is to renew the lease in the cloud.
    pub delegate: bool,
    /// The uid of its Node.
    pub owner: Option<Box<str>>,
}

/// Why a lease is not taken; the node is at fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LeaseRefusal {
    /// It says it too often.
    #[error("the lease is renewed too often")]
    Flood,
    /// There are too many.
    #[error("this node keeps {MOST_LEASES} leases already")]
    Full,
    /// It is no lease.
    #[error("spec.renewTime is no time")]
    Time,
    /// It is no lease.
    #[error("spec.leaseDurationSeconds is not between 1 and 3600")]
    Duration,
    /// It is no lease of a node's, or another's.
    #[error("spec.holderIdentity is another's")]
    Holder,
}

impl LeaseRefusal {
    /// Its name in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Flood => "flood",
            Self::Full => "full",
            Self::Time | Self::Duration => "malformed",
            Self::Holder => "holder",
        }
    }
}

impl Written {
    /// Reads the lease of a node.
    pub fn of(lease: &Value, node: &str) -> Result<Self, LeaseRefusal> {
        let spec = |field: &str| lease.pointer(&format!("/spec/{field}"));
        let renew = spec("renewTime").and_then(Value::as_str);
        let renew = renew.and_then(|text| text.parse().ok());
        let seconds = spec("leaseDurationSeconds").and_then(Value::as_u64);
        let duration = seconds.map(Duration::from_secs);
        let duration = duration.filter(|length| !length.is_zero() && *length <= LONGEST);
        let holder = spec("holderIdentity").and_then(Value::as_str);
        if holder.is_some_and(|holder| holder != node) {
            return Err(LeaseRefusal::Holder);
        }
        let annotations = lease.pointer("/metadata/annotations");
        let owners = lease.pointer("/metadata/ownerReferences");
        let owners = owners.and_then(Value::as_array).into_iter().flatten();
        let owner = owners
            .filter(|owner| {
                let is = |field: &str, wanted: &str| {
                    owner.get(field).and_then(Value::as_str) == Some(wanted)
                };
                is("kind", "Node") && is("name", node)
            })
            .find_map(|owner| owner.get("uid")?.as_str())
            .filter(|uid| uid.len() <= LONGEST_UID);
        Ok(Self {
            renew: renew.ok_or(LeaseRefusal::Time)?,
            duration: duration.ok_or(LeaseRefusal::Duration)?,
            delegate: annotations
                .and_then(|all| all.get(DELEGATE)?.as_str())
                .is_some_and(|value| value == "true"),
            owner: owner.map(Into::into),
        })
    }
}

impl Written {
    /// As a node writes it.
    pub fn lease(&self, node: &str) -> Value {
        let mut metadata = json!({"name": node, "namespace": NODE_LEASES});
        if self.delegate {
            metadata["annotations"] = json!({DELEGATE: "true"});
        }
        if let Some(uid) = &self.owner {
            metadata["ownerReferences"] =
                json!([{"apiVersion": "v1", "kind": "Node", "name": node, "uid": uid}]);
        }
        json!({
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": metadata,
            "spec": {
                "holderIdentity": node,
                "leaseDurationSeconds": self.duration.as_secs(),
                "renewTime": micros(self.renew),
            },
        })
    }
}

/// A lease that is kept.
#[derive(Clone, Debug, PartialEq)]
pub struct Kept {
    /// What it says; its time never goes back.
    pub written: Written,
    /// Its revision: of this node's making.
    pub revision: u64,
    created: Timestamp,
    /// The time as the node said it last: less than what the lease says when its clock was far ahead before.
    said: Timestamp,
    /// When its time moved on last, by this node's clock.
    pub moved: Instant,
    /// Writes that are left, and as of when.
    allowance: (f64, Instant),
}

impl Kept {
    /// Whether its node is alive.
    pub fn is_alive(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.moved) < self.written.duration
    }

    /// As an object.
    pub(super) fn object(&self, node: &str) -> Value {
        let mut lease = self.written.lease(node);
        lease["metadata"]["resourceVersion"] = self.revision.to_string().into();
        lease["metadata"]["creationTimestamp"] = format!("{:.0}", self.created).into();
        lease
    }
}

/// The leases, a value.
#[derive(Clone, Debug, Default)]
pub struct Table {
    kept: BTreeMap<Box<str>, Kept>,
    revision: u64,
    /// The revision of the last removal.
    removed: u64,
}

impl Table {
    /// Takes a node's lease; whether it is new.
    pub fn put(
        &mut self,
        node: &str,
        written: Written,
        now: Instant,
    ) -> Result<bool, LeaseRefusal> {
        if let Some(kept) = self.kept.get_mut(node) {
            let (left, as_of) = kept.allowance;
            let since = now.saturating_duration_since(as_of).as_secs_f64();
            let left = (left + since / REFILL.as_secs_f64()).min(BURST);
            if left < 1.0 {
                return Err(LeaseRefusal::Flood);
            }
            kept.allowance = (left - 1.0, now);
            self.revision += 1;
            kept.revision = self.revision;
            let before = kept.written.renew;
            let moved = written.renew > std::mem::replace(&mut kept.said, written.renew);
            // A clock that was set right must not make a node that goes on look dead until its time comes again.
            let least = match before.checked_add(SignedDuration::from_micros(1)) {
                Ok(next) if moved => next,
                _ => before,
            };
            if moved {
                kept.moved = now;
            }
            kept.written = Written {
                renew: written.renew.max(least),
                owner: written.owner.or(kept.written.owner.take()),
                ..written
            };
            return Ok(false);
        }
        if self.kept.len() >= MOST_LEASES {
            return Err(LeaseRefusal::Full);
        }
        self.revision += 1;
        let kept = Kept {
            said: written.renew,
            written,
            revision: self.revision,
            created: Timestamp::now(),
            moved: now,
            allowance: (BURST - 1.0, now),
        };
        self.kept.insert(node.into(), kept);
        Ok(true)
    }

    /// Forgets the nodes that are not among these; whether there were any.
    pub fn keep(&mut self, nodes: &BTreeSet<Box<str>>) -> bool {
        let before = self.kept.len();
        self.kept.retain(|node, _| nodes.contains(node));
        let removed = self.kept.len() < before;
        if removed {
            self.revision += 1;
            self.removed = self.revision;
        }
        removed
    }
}

/// The leases, shared. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Leases {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    table: Mutex<Table>,
    /// The revision that was reached.
    changed: watch::Sender<u64>,
}

impl Default for Leases {
    fn default() -> Self {
        // Revisions of two lives of a hub, or of two leaders, are not taken for each other's.
        let begin = u64::try_from(Timestamp::now().as_millisecond()).unwrap_or_default();
        let table = Table {
            revision: begin,
            removed: begin,
            ..Table::default()
        };
        Self {
            inner: Arc::new(Inner {
                table: Mutex::new(table),
                changed: watch::Sender::new(begin),
            }),
        }
    }
}

impl Leases {
    fn table(&self) -> MutexGuard<'_, Table> {
        // Valid after every statement that can fail.
        self.inner
            .table
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a node's lease; whether it is new.
    pub fn put(&self, node: &str, written: Written) -> Result<bool, LeaseRefusal> {
        let (created, revision) = {
            let mut table = self.table();
            (table.put(node, written, Instant::now())?, table.revision)
        };
        self.inner.changed.send_replace(revision);
        Ok(created)
    }

    /// Forgets the nodes that are not among these.
    pub fn keep(&self, nodes: &BTreeSet<Box<str>>) {
        let removed = {
            let mut table = self.table();
            table.keep(nodes).then_some(table.revision)
        };
        if let Some(revision) = removed {
            self.inner.changed.send_replace(revision);
        }
    }

    /// How many nodes are alive.
    pub fn alive(&self, now: Instant) -> u32 {
        let table = self.table();
        let alive = table.kept.values().filter(|kept| kept.is_alive(now));
        u32::try_from(alive.count()).unwrap_or(u32::MAX)
    }

    /// One node's.
    pub fn get(&self, node: &str) -> Option<Kept> {
        self.table().kept.get(node).cloned()
    }

    /// All that `wanted` picks, with the revision of the whole.
    pub fn pick(
        &self,
        mut wanted: impl FnMut(&str, &Kept) -> bool,
    ) -> (Vec<(Box<str>, Kept)>, u64) {
        let table = self.table();
        let picked = table.kept.iter().filter(|(node, kept)| wanted(node, kept));
        let picked = picked.map(|(node, kept)| (node.clone(), kept.clone()));
        (picked.collect(), table.revision)
    }

    /// The revision of the last removal, which watches cannot go on from before, and the newest.
    pub fn revisions(&self) -> (u64, u64) {
        let table = self.table();
        (table.removed, table.revision)
    }

    /// To wait for changes.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.inner.changed.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn written(second: i64, delegate: bool) -> Written {
        Written {
            renew: Timestamp::from_second(1_800_000_000 + second).unwrap(),
            duration: Duration::from_secs(40),
            delegate,
            owner: None,
        }
    }

    #[test]
    fn a_lease_is_read_and_shown() {
        let lease = json!({
            "metadata": {"annotations": {DELEGATE: "true"}, "ownerReferences": [
                {"kind": "Pod", "name": "n", "uid": "p"}, {"kind": "Node", "name": "n", "uid": "u"}]},
            "spec": {"holderIdentity": "n", "leaseDurationSeconds": 40, "renewTime": "2026-11-22T10:00:00.000000Z"},
        });
        let read = Written::of(&lease, "n").unwrap();
        assert_eq!(read.owner.as_deref(), Some("u"));
        assert!(read.delegate);
        let mut table = Table::default();
        assert_eq!(table.put("n", read.clone(), Instant::now()), Ok(true));
        let shown = table.kept["n"].object("n");
        assert_eq!(Written::of(&shown, "n").unwrap(), read);
        assert_eq!(shown["spec"]["renewTime"], "2026-11-22T10:00:00.000000Z");
        let with = |pointer: &str, value: Value| {
            let mut other = lease.clone();
            *other.pointer_mut(pointer).unwrap() = value;
            Written::of(&other, "n")
        };
        assert_eq!(
            with("/spec/holderIdentity", json!("m")),
            Err(LeaseRefusal::Holder)
        );
        assert_eq!(
            with("/spec/renewTime", json!("soon")),
            Err(LeaseRefusal::Time)
        );
        for duration in [json!(0), json!(-1), json!(4000), json!("40")] {
            let read = with("/spec/leaseDurationSeconds", duration);
            assert_eq!(read, Err(LeaseRefusal::Duration));
        }
        let unmarked = with("/metadata/annotations", json!({DELEGATE: "false"})).unwrap();
        assert!(!unmarked.delegate);
        assert_eq!(Written::of(&json!({}), "n"), Err(LeaseRefusal::Time));
    }

    #[test]
    fn a_time_that_does_not_move_on_is_no_life() {
        let (mut table, begin) = (Table::default(), Instant::now());
        let at = |seconds| begin + Duration::from_secs(seconds);
        table.put("n", written(100, true), at(0)).unwrap();
        assert!(table.kept["n"].is_alive(at(39)));
        // Said again, and said for a time that is over: neither is life.
        table.put("n", written(100, true), at(30)).unwrap();
        table.put("n", written(7, false), at(30)).unwrap();
        let kept = table.kept["n"].clone();
        assert!(!kept.is_alive(at(40)));
        assert_eq!(kept.written, written(100, false));
        table.put("n", written(101, false), at(41)).unwrap();
        assert!(table.kept["n"].is_alive(at(80)));
        // Its clock was a year ahead, and is set right: it lives as soon as its time moves on again.
        table.put("n", written(31_536_000, false), at(82)).unwrap();
        table.put("n", written(140, false), at(121)).unwrap();
        assert!(!table.kept["n"].is_alive(at(122)));
        table.put("n", written(150, false), at(131)).unwrap();
        assert!(table.kept["n"].is_alive(at(170)));
        assert!(table.kept["n"].written.renew > written(31_536_000, false).renew);
        assert!(!table.keep(&["n".into()].into()));
        assert!(table.keep(&["m".into()].into()) && table.kept.is_empty());
        assert_eq!(table.removed, table.revision);
    }

    #[test]
    fn writes_and_nodes_have_bounds() {
        let (mut table, begin) = (Table::default(), Instant::now());
        let flood = (0..100).map(|second| table.put("n", written(second, false), begin));
        let taken = flood.filter(Result::is_ok).count();
        assert_eq!(taken, BURST as usize);
        let later = begin + REFILL;
        assert_eq!(table.put("n", written(500, false), later), Ok(false));
        assert_eq!(
            table.put("n", written(501, false), later),
            Err(LeaseRefusal::Flood)
        );
        for index in 1..MOST_LEASES {
            let node = format!("m{index}");
            table.put(&node, written(1, false), begin).unwrap();
        }
        assert_eq!(
            table.put("x", written(1, false), begin),
            Err(LeaseRefusal::Full)
        );
    }

    proptest! {
        /// Whatever nodes say, the time of a lease never goes back, and its revision goes on.
        #[test]
        fn times_never_go_back(writes in proptest::collection::vec((0usize..3, -50i64..50, any::<bool>(), 0u64..5), 0..60)) {
            let (mut table, mut now) = (Table::default(), Instant::now());
            for (node, second, delegate, pause) in writes {
                now += Duration::from_secs(pause);
                let node = format!("n{node}");
                let before = table.kept.get(&*node).cloned();
                if table.put(&node, written(second, delegate), now).is_ok() {
                    let kept = &table.kept[&*node];
                    prop_assert!(before.is_none_or(|b| b.written.renew <= kept.written.renew && b.revision < kept.revision));
                    prop_assert_eq!(kept.revision, table.revision);
                    prop_assert_eq!(kept.written.delegate, delegate);
                }
            }
        }
    }
}
