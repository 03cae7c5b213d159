//! Which filters are in force, and the ones that a request's objects pass.

use super::{Context, Filter, Inputs, Scope, Verdict, built_in};
use crate::{
    config::WorkingMode,
    metrics::{FilterMetrics, Metrics},
};
use serde_json::{Value, json};
use std::{collections::BTreeMap, collections::BTreeSet, sync::Arc, time::Instant};
use yurt_wire::{Object, RequestInfo, object::Malformed};

/// The hub's own agents, which see everything as it is.
const OWN: &str = "yurthub";
const MULTIPLEXER: &str = "multiplexer-proxy-";

/// A filter and the requests it is for.
#[derive(Clone, Debug)]
pub struct Placed {
    /// The filter.
    pub filter: Arc<dyn Filter>,
    /// Its scope, with what config maps add.
    pub scope: Scope,
}

impl PartialEq for Placed {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.filter, &other.filter) && self.scope == other.scope
    }
}

/// The filters in force, in order, and what they know.
#[derive(Clone, Debug, PartialEq)]
pub struct Force {
    /// The filters.
    pub filters: Vec<Placed>,
    /// What they know.
    pub context: Context,
}

/// Which filters are asked for: by flags and config maps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// Whether any is (`--enable-resource-filter`).
    pub enabled: bool,
    /// Names of those that are not (`--disabled-resource-filters`); `*` for all.
    pub disabled: Vec<String>,
    /// Components beside the usual ones, by the name of the filter.
    pub added: BTreeMap<String, BTreeSet<String>>,
}

impl Selection {
    fn takes(&self, filter: &dyn Filter) -> bool {
        let off = |name: &String| name == "*" || name == filter.name();
        self.enabled && !self.disabled.iter().any(off)
    }
}

/// The filters that come with the hub, made once: a filter that stays in force stays the same one.
#[derive(Debug)]
pub struct BuiltIn(Vec<Arc<dyn Filter>>);

impl Default for BuiltIn {
    fn default() -> Self {
        Self(built_in())
    }
}

impl Force {
    /// Nothing is filtered.
    pub fn none(context: Context) -> Self {
        Self {
            filters: Vec::new(),
            context,
        }
    }

    /// What flags and config maps select of the filters that come with the hub, then users' own.
    pub fn of(
        built_in: &BuiltIn,
        users: &[Arc<dyn Filter>],
        selection: &Selection,
        context: Context,
    ) -> Self {
        let placed = |filter: &Arc<dyn Filter>| {
            let mut scope = filter.scope();
            if let (Some(usual), Some(added)) =
                (&mut scope.components, selection.added.get(filter.name()))
            {
                usual.extend(added.iter().cloned());
            }
            Placed {
                filter: filter.clone(),
                scope,
            }
        };
        let filters = built_in
            .0
            .iter()
            .chain(users)
            .filter(|filter| selection.takes(filter.as_ref()))
            .map(placed)
            .filter(|placed| placed.scope.in_cloud || context.mode != WorkingMode::Cloud)
            .collect();
        Self { filters, context }
    }

    /// The chain for a request, by its `User-Agent`; `None` when nothing is to be filtered.
    pub fn chain(self: &Arc<Self>, user_agent: &str, info: &RequestInfo) -> Option<Chain> {
        // The common case costs a few comparisons and no memory.
        if self.filters.is_empty() || !info.is_resource {
            return None;
        }
        let agent = user_agent.split('/').next().unwrap_or_default().trim();
        let covers = |placed: &Placed| placed.scope.covers(agent, info);
        let first = self.filters.iter().position(covers)?;
        let is = |prefix: &str| {
            let head = agent.as_bytes().get(..prefix.len());
            head.is_some_and(|head| head.eq_ignore_ascii_case(prefix.as_bytes()))
        };
        if agent.len() == OWN.len() && is(OWN) || is(MULTIPLEXER) {
            return None;
        }
        let rest = self.filters.iter().enumerate().skip(first);
        Some(Chain {
            picked: rest
                .filter(|(_, placed)| covers(placed))
                .map(|(index, _)| index)
                .collect(),
            force: self.clone(),
        })
    }
}

impl Force {
    /// For people who ask what is in force.
    pub fn shown(&self) -> Value {
        let filters = self.filters.iter().map(|placed| {
            let Scope {
                components,
                resources,
                verbs,
                object,
                in_cloud: _,
            } = &placed.scope;
            json!({
                "name": placed.filter.name(),
                "components": components,
                "resources": resources.iter().map(ToString::to_string).collect::<Vec<_>>(),
                "verbs": verbs.iter().map(|verb| verb.as_str()).collect::<Vec<_>>(),
                "object": object.as_ref().map(|(namespace, name)| format!("{namespace}/{name}")),
            })
        });
        let context = &self.context;
        json!({
            "filters": filters.collect::<Vec<_>>(),
            "inputs": {
                "node": context.node,
                "nodeLabels": *context.node_labels,
                "pool": context.pool,
                "poolNodes": context.membership.nodes,
                "poolHostNetwork": context.membership.host_network,
                "hub": format!("{}:{}", context.hub_host, context.hub_port),
                "topologies": context.topologies.as_deref(),
            },
        })
    }
}

/// What a chain made of an object.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// It is shown as it is.
    Kept,
    /// This is shown, in the same encoding.
    Changed(Object),
    /// It is not shown.
    Dropped,
}

/// The filters that the objects of a request pass, in order.
#[derive(Clone, Debug)]
pub struct Chain {
    force: Arc<Force>,
    /// Indexes of filters of `force`.
    picked: Box<[usize]>,
}

impl Chain {
    /// Its filters.
    pub fn filters(&self) -> impl Iterator<Item = &dyn Filter> {
        let placed = |index: &usize| self.force.filters.get(*index);
        self.picked
            .iter()
            .filter_map(placed)
            .map(|placed| placed.filter.as_ref())
    }

    /// Where it comes from.
    pub fn force(&self) -> &Arc<Force> {
        &self.force
    }

    /// What its filters know.
    pub fn context(&self) -> &Context {
        &self.force.context
    }

    /// What its verdicts depend on.
    pub fn inputs(&self) -> Inputs {
        self.filters()
            .fold(Inputs::NONE, |all, filter| all | filter.inputs())
    }

    /// Whether nothing would be filtered as things are.
    pub fn is_idle(&self) -> bool {
        self.filters().all(|filter| filter.is_idle(self.context()))
    }

    /// Whether every object gets the same verdict from `other`.
    pub fn is_like(&self, other: &Self) -> bool {
        let filters = |chain: &Self| -> Vec<*const ()> {
            let address = |filter: &dyn Filter| std::ptr::from_ref(filter).cast::<()>();
            chain.filters().map(address).collect()
        };
        Arc::ptr_eq(&self.force, &other.force)
            || filters(self) == filters(other)
                && !self.context().differs(other.context(), self.inputs())
    }

    /// Filters an object. What cannot be decoded or encoded is shown as it is, and counted.
    pub fn filter(&self, object: &Object, metrics: &Metrics) -> Outcome {
        let metrics = metrics.filters();
        self.try_filter(object, metrics).unwrap_or_else(|error| {
            metrics.unreadable();
            tracing::debug!(%error, "an object cannot be filtered; it is shown as it is");
            Outcome::Kept
        })
    }

    fn try_filter(&self, object: &Object, metrics: &FilterMetrics) -> Result<Outcome, Malformed> {
        let context = self.context();
        if self.is_idle() {
            return Ok(Outcome::Kept);
        }
        let meta = object.meta()?;
        let mut decoded = None;
        let mut changed = false;
        for filter in self.filters() {
            if !filter.concerns(object, &meta, context) {
                continue;
            }
            let value = match &mut decoded {
                Some(value) => value,
                None => decoded.insert(object.to_json_value()?),
            };
            let began = Instant::now();
            let verdict = filter.apply(value, context);
            metrics.applied(filter.name(), verdict, began.elapsed());
            match verdict {
                Verdict::Kept => {}
                Verdict::Changed => changed = true,
                Verdict::Dropped => return Ok(Outcome::Dropped),
            }
        }
        Ok(match decoded {
            Some(value) if changed => {
                Outcome::Changed(Object::from_json_value(&value, object.encoding)?)
            }
            _ => Outcome::Kept,
        })
    }
}

#[cfg(test)]
mod tests;
