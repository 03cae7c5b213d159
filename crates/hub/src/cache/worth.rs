//! What an object is worth when there is no room for all, and whose fair share is used up. Pure.

use super::{
    index::Key,
    needs::Needs,
    record::{index_key, split_index_key},
};
use crate::{caller::Caller, query::Query};
use std::collections::{HashMap, HashSet};
use yurt_wire::Gvr;

/// How much an object is worth, least first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Worth {
    /// Events: short-lived everywhere.
    Events,
    /// Read by nobody, or by nobody who is within the fair share.
    Greedy,
    /// Read by callers with rights of their own.
    Others,
    /// The node's components read it among many.
    Wide,
    /// The node's components asked for it narrowly: by name, or by a field such as `spec.nodeName`.
    Named,
    /// What every node lives on: services and where they lead, drivers, classes.
    Common,
    /// This node's pods, what they refer to, the node itself: not evicted.
    Needed,
}

impl Worth {
    /// What may be evicted, in this order.
    pub(crate) const EVICTABLE: [Self; 6] = [
        Self::Events,
        Self::Greedy,
        Self::Others,
        Self::Wide,
        Self::Named,
        Self::Common,
    ];
}

/// Resources of [`Worth::Common`], when the node reads them.
fn is_common(gvr: &Gvr) -> bool {
    matches!(
        (gvr.group.as_str(), gvr.resource.as_str()),
        ("", "services" | "endpoints" | "namespaces")
            | ("discovery.k8s.io", "endpointslices")
            | ("node.k8s.io", "runtimeclasses")
            | ("coordination.k8s.io", "leases")
            | (
                "storage.k8s.io",
                "csidrivers" | "csinodes" | "storageclasses" | "volumeattachments"
            )
            | ("apps.openyurt.io", "nodepools" | "nodebuckets")
    )
}

/// Bytes of one resource's objects.
#[derive(Debug, Default)]
pub(crate) struct Sizes<'a> {
    objects: HashMap<&'a str, u64>,
    namespaces: HashMap<&'a str, u64>,
    total: u64,
}

impl<'a> Sizes<'a> {
    /// From each object's.
    pub(crate) fn of(objects: impl Iterator<Item = (&'a str, u64)>) -> Self {
        let mut sizes = Self::default();
        for (key, bytes) in objects {
            sizes.objects.insert(key, bytes);
            *sizes.namespaces.entry(split_index_key(key).0).or_default() += bytes;
            sizes.total += bytes;
        }
        sizes
    }
}

/// What a caller was seen to read of one resource, by place.
#[derive(Debug, Default)]
pub(crate) struct Scope<'a> {
    everywhere: bool,
    namespaces: HashSet<&'a str>,
    names: HashSet<Key>,
}

impl<'a> Scope<'a> {
    /// The scope of grants on one resource.
    pub(crate) fn of(grants: impl IntoIterator<Item = &'a Query>) -> Self {
        let mut scope = Self::default();
        for grant in grants {
            match grant.name() {
                Some(name) => {
                    scope.names.insert(index_key(&grant.namespace, name));
                }
                None if grant.namespace.is_empty() => scope.everywhere = true,
                None => {
                    scope.namespaces.insert(grant.namespace.as_str());
                }
            }
        }
        scope
    }

    /// The sum of the sizes that are in it; of each object, each namespace and all.
    pub(crate) fn sum(&self, sizes: &Sizes<'_>) -> u64 {
        if self.everywhere {
            return sizes.total;
        }
        let of = |namespace: &str| sizes.namespaces.get(namespace).copied().unwrap_or(0);
        let whole: u64 = self.namespaces.iter().map(|namespace| of(namespace)).sum();
        let single = |key: &&Key| !self.namespaces.contains(split_index_key(key).0);
        let names = self.names.iter().filter(single);
        whole
            + names
                .filter_map(|key| sizes.objects.get(&**key))
                .sum::<u64>()
    }

    /// Whether an object is in it.
    pub(crate) fn holds(&self, key: &str) -> bool {
        self.everywhere
            || self.names.contains(key)
            || self.namespaces.contains(split_index_key(key).0)
    }
}

/// Who is over the fair share: the budget, divided by the callers that hold anything of it. The node never is.
pub(crate) fn over_share(budget: u64, held: &HashMap<Caller, u64>) -> HashSet<Caller> {
    let active = held.values().filter(|bytes| **bytes > 0).count().max(1) as u64;
    held.iter()
        .filter(|(caller, bytes)| **caller != Caller::Node && **bytes > budget / active)
        .map(|(caller, _)| caller.clone())
        .collect()
}

/// Everything that the worth of one resource's objects depends on.
#[derive(Debug)]
pub(crate) struct Scale<'a> {
    gvr: &'a Gvr,
    needs: &'a Needs,
    node: Scope<'a>,
    node_names: Vec<&'a Query>,
    /// Of callers within their share.
    modest: Vec<Scope<'a>>,
}

impl<'a> Scale<'a> {
    /// For a resource, from who reads what of it.
    pub(crate) fn of(
        gvr: &'a Gvr,
        needs: &'a Needs,
        over: &HashSet<Caller>,
        readers: impl Iterator<Item = (&'a Caller, &'a [Query])>,
    ) -> Self {
        let mut scale = Self {
            gvr,
            needs,
            node: Scope::default(),
            node_names: Vec::new(),
            modest: Vec::new(),
        };
        for (caller, grants) in readers {
            if *caller == Caller::Node {
                scale.node = Scope::of(grants);
                scale.node_names = grants.iter().filter(|g| is_narrow(g)).collect();
            } else if !over.contains(caller) {
                scale.modest.push(Scope::of(grants));
            }
        }
        scale
    }

    /// The worth of an object, as far as its key tells; `Wide` may turn out to be `Named` when it is read ([`Scale::is_named`]).
    pub(crate) fn worth(&self, key: &str) -> Worth {
        if self.gvr.resource == "events" {
            Worth::Events
        } else if self.needs.hold(self.gvr, key) {
            Worth::Needed
        } else if self.node.holds(key) {
            match () {
                () if is_common(self.gvr) => Worth::Common,
                () if self.node.names.contains(key) => Worth::Named,
                () => Worth::Wide,
            }
        } else if self.modest.iter().any(|scope| scope.holds(key)) {
            Worth::Others
        } else {
            Worth::Greedy
        }
    }

    /// Whether the node asked for the object narrowly.
    pub(crate) fn is_named(&self, key: &str, object: &yurt_wire::Object) -> bool {
        let (namespace, name) = split_index_key(key);
        self.node_names
            .iter()
            .any(|grant| grant.matches(namespace, name, object))
    }
}

/// Whether a grant is restricted by the value of a field.
fn is_narrow(grant: &Query) -> bool {
    grant.fields.requirements.iter().any(|r| r.equals)
}

#[cfg(test)]
mod tests {
    use super::*;
    use yurt_wire::selector::FieldSelector;

    fn pods() -> Gvr {
        Gvr::new("", "v1", "pods")
    }

    #[test]
    fn shares_are_of_those_who_hold_something() {
        let callers = ["a", "b", "c"].map(|name| Caller::User(name.into()));
        let mut held: HashMap<Caller, u64> = HashMap::new();
        held.insert(Caller::Node, 900);
        held.insert(callers[0].clone(), 400);
        held.insert(callers[1].clone(), 10);
        held.insert(callers[2].clone(), 0);
        // A third of 1000 each.
        assert_eq!(over_share(1000, &held), HashSet::from([callers[0].clone()]));
        assert!(over_share(2000, &held).is_empty());
        assert!(over_share(0, &HashMap::new()).is_empty());
    }

    #[test]
    fn sizes_are_summed_once() {
        let sizes = Sizes::of([("a/x", 1), ("a/y", 2), ("b/x", 4), ("c/x", 8)].into_iter());
        let sum = |grants: &[Query]| Scope::of(grants).sum(&sizes);
        let (a, ax) = (Query::all(pods(), "a"), Query::named(pods(), "a", "x"));
        assert_eq!(sum(std::slice::from_ref(&a)), 3);
        assert_eq!(
            sum(&[a.clone(), ax.clone(), Query::named(pods(), "b", "x")]),
            7
        );
        assert_eq!(sum(&[ax, Query::named(pods(), "b", "none")]), 1);
        assert_eq!(sum(&[a, Query::all(pods(), "")]), 15);
        assert_eq!(sum(&[]), 0);
    }

    #[test]
    fn worth_by_who_reads_it() {
        let gvr = pods();
        let mut needs = Needs::default();
        needs.add_core("pods", "a/mine");
        let mut of_node = Query::all(gvr.clone(), "sys");
        of_node.fields = FieldSelector::parse("spec.nodeName=edge-1").expect("a selector");
        let node = [of_node, Query::named(gvr.clone(), "a", "asked")];
        let greedy = [Query::all(gvr.clone(), "")];
        let modest = [
            Query::all(gvr.clone(), "b"),
            Query::named(gvr.clone(), "c", "x"),
        ];
        let callers = [
            Caller::Node,
            Caller::User("greedy".into()),
            Caller::User("modest".into()),
        ];
        let over = HashSet::from([callers[1].clone()]);
        let readers = callers.iter().zip([&node[..], &greedy, &modest]);
        let scale = Scale::of(&gvr, &needs, &over, readers.clone());
        for (key, worth) in [
            ("a/mine", Worth::Needed),
            ("a/asked", Worth::Named),
            ("sys/any", Worth::Wide),
            ("b/any", Worth::Others),
            ("c/x", Worth::Others),
            ("c/y", Worth::Greedy),
        ] {
            assert_eq!(scale.worth(key), worth, "{key}");
        }
        let events = Gvr::new("", "v1", "events");
        let scale = Scale::of(&events, &needs, &over, readers.clone());
        assert_eq!(scale.worth("a/asked"), Worth::Events);
        let services = Gvr::new("", "v1", "services");
        let scale = Scale::of(&services, &needs, &over, readers);
        assert_eq!(scale.worth("sys/any"), Worth::Common);
        assert_eq!(scale.worth("b/any"), Worth::Others);
        assert!(Worth::EVICTABLE.is_sorted());
    }
}
