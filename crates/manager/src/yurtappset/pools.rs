//! Which pools a set is for, and how many pods it wants in each.

use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use yurt_api::{
    apps::yurtappset::{Tweaks, WorkloadTweak, YurtAppSetSpec},
    meta,
};
use yurt_controller::fields::{self, Labels, items, text};
use yurt_wire::selector::LabelSelector;

/// What a set has to know of a NodePool.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Pool {
    /// Its name.
    pub(crate) name: String,
    /// Its labels.
    pub(crate) labels: Labels,
    /// Key and effect of the taints that it gives to its nodes.
    pub(crate) taints: Vec<(String, String)>,
}

impl Pool {
    /// Reads a NodePool.
    pub(crate) fn of(pool: &Value) -> Self {
        let taint = |taint: &Value| (text(&taint["key"]), text(&taint["effect"]));
        Self {
            name: text(&pool["metadata"]["name"]),
            labels: fields::labels(&pool["metadata"]["labels"]),
            taints: items(&pool["spec"]["taints"]).map(taint).collect(),
        }
    }
}

/// A selector that cannot be read. The author of the set must change it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {reason}")]
pub(crate) struct BadSelector {
    place: String,
    reason: String,
}

/// Pools by their labels, by their names, or both.
#[derive(Debug)]
pub(crate) struct Choice<'c> {
    selector: Option<LabelSelector>,
    names: &'c [String],
}

impl<'c> Choice<'c> {
    fn new(
        selector: Option<&meta::LabelSelector>,
        names: &'c [String],
        place: impl Fn() -> String,
    ) -> Result<Self, BadSelector> {
        let parse = |selector: &meta::LabelSelector| {
            let bad = |reason: String| BadSelector {
                place: place(),
                reason,
            };
            let value = serde_json::to_value(selector).map_err(|error| bad(error.to_string()))?;
            LabelSelector::from_json(&value).map_err(|error| bad(error.to_string()))
        };
        Ok(Self {
            selector: selector.map(parse).transpose()?,
            names,
        })
    }

    /// The pools of a set.
    pub(crate) fn of(spec: &'c YurtAppSetSpec) -> Result<Self, BadSelector> {
        let place = || "spec.nodepoolSelector".to_owned();
        Self::new(spec.nodepool_selector.as_ref(), &spec.pools, place)
    }

    /// Whether a pool is meant.
    pub(crate) fn has(&self, pool: &Pool) -> bool {
        let by_label = |selector: &LabelSelector| selector.matches(&pool.labels);
        self.names.contains(&pool.name) || self.selector.as_ref().is_some_and(by_label)
    }
}

/// A tweak and where it holds.
#[derive(Debug)]
pub(crate) struct Tweak<'t> {
    choice: Choice<'t>,
    /// What is different.
    pub(crate) tweaks: &'t Tweaks,
}

impl<'t> Tweak<'t> {
    /// Those of a list.
    pub(crate) fn all(
        list: impl IntoIterator<Item = &'t WorkloadTweak>,
    ) -> Result<Vec<Self>, BadSelector> {
        let tweak = |(i, tweak): (usize, &'t WorkloadTweak)| {
            let place = || format!("spec.workload.workloadTweaks[{i}].nodepoolSelector");
            let choice = Choice::new(tweak.nodepool_selector.as_ref(), &tweak.pools, place)?;
            Ok(Self {
                choice,
                tweaks: &tweak.tweaks,
            })
        };
        list.into_iter().enumerate().map(tweak).collect()
    }

    /// Whether it holds in a pool.
    pub(crate) fn holds(&self, pool: &Pool) -> bool {
        self.choice.has(pool)
    }

    /// Whether it says how many pods there are.
    fn sizes(&self) -> bool {
        let of_replicas = |path: &str| path == "/spec/replicas";
        let mut patches = self.tweaks.patches.iter();
        self.tweaks.replicas.is_some() || patches.any(|patch| of_replicas(&patch.path))
    }
}

/// How many pods each pool without a tweak of its replicas has of `total`: evenly, the first by name one more; and the pools whose
/// tweaks say it.
pub(crate) fn shares<'p>(
    total: Option<i32>,
    pools: &'p [Pool],
    tweaks: &[Tweak<'_>],
) -> (BTreeMap<&'p str, i64>, BTreeSet<&'p str>) {
    let sized = |pool: &&Pool| {
        tweaks
            .iter()
            .any(|tweak| tweak.sizes() && tweak.holds(pool))
    };
    let tweaked: BTreeSet<&str> = pools.iter().filter(sized).map(|pool| &*pool.name).collect();
    let free: BTreeSet<&str> = pools
        .iter()
        .map(|pool| &*pool.name)
        .filter(|name| !tweaked.contains(name))
        .collect();
    let shares = match (total, i64::try_from(free.len())) {
        (Some(total), Ok(count)) if count > 0 => {
            let (each, more) = (i64::from(total) / count, i64::from(total) % count);
            let share = |i: i64| each + i64::from(i < more);
            (0..).zip(free).map(|(i, name)| (name, share(i))).collect()
        }
        _ => BTreeMap::new(),
    };
    (shares, tweaked)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    pub(crate) fn spec(value: Value) -> YurtAppSetSpec {
        serde_json::from_value(value).expect("a spec")
    }

    fn named(name: &str) -> Pool {
        Pool::of(&json!({"metadata": {"name": name, "labels": {"zone": name}}}))
    }

    #[test]
    fn no_selector_selects_none_and_an_empty_one_all() {
        for (value, expected) in [
            (json!({}), [false, false]),
            (json!({"nodepoolSelector": {}}), [true, true]),
            (json!({"pools": ["a"]}), [true, false]),
            (
                json!({"pools": ["a", "gone"], "nodepoolSelector": {"matchLabels": {"zone": "b"}}}),
                [true, true],
            ),
        ] {
            let spec = spec(value);
            let choice = Choice::of(&spec).expect("readable");
            assert_eq!([choice.has(&named("a")), choice.has(&named("b"))], expected);
        }
    }

    #[test]
    fn what_cannot_be_selected_by_is_named() {
        let spec = spec(
            json!({"nodepoolSelector": {"matchExpressions": [{"key": "a", "operator": "Near"}]}}),
        );
        let bad = Choice::of(&spec).expect_err("no such operator");
        assert!(
            bad.to_string().starts_with("spec.nodepoolSelector: "),
            "{bad}"
        );
    }

    proptest! {
        #[test]
        fn a_total_is_spread_evenly_over_pools_without_a_tweak(total in 0..1000, count in 1usize..20, tweaked in 0usize..20) {
            let pools: Vec<Pool> = (0..count).map(|i| named(&format!("p{i:02}"))).collect();
            let names: Vec<String> = pools.iter().take(tweaked).map(|pool| pool.name.clone()).collect();
            let spec = spec(json!({"workload": {"workloadTweaks": [{"pools": names, "tweaks": {"replicas": 7}}]}}));
            let tweaks = Tweak::all(&spec.workload.workload_tweaks).expect("readable");
            let (shares, sized) = shares(Some(total), &pools, &tweaks);
            prop_assert_eq!(sized.len(), tweaked.min(count));
            prop_assert_eq!(shares.len(), count - sized.len());
            if let (Some(least), Some(most)) = (shares.values().min(), shares.values().max()) {
                prop_assert!(most - least <= 1);
                prop_assert_eq!(shares.values().sum::<i64>(), i64::from(total));
            }
        }
    }
}
