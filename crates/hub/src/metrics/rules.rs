//! What is counted of users' rules; how often they decide what is counted of them as of all filters.

use super::labels::bounded;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};
use std::{collections::HashSet, sync::Mutex};

/// Names of rules that are told apart; those of rules that are gone among them.
const MAX_RULES: usize = 256;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FailureLabels {
    rule: String,
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SourceLabel {
    source: &'static str,
}

/// Metrics of rules.
#[derive(Debug, Default)]
pub struct RuleMetrics {
    names: Mutex<HashSet<String>>,
    failures: Family<FailureLabels, Counter>,
    in_force: Family<SourceLabel, Gauge>,
    complaints: Family<SourceLabel, Gauge>,
}

impl RuleMetrics {
    pub(super) fn register(&self, hub: &mut Registry) {
        hub.register(
            "rule_failures",
            "Objects that a user's rule failed on and that passed it unchanged, by rule and reason (budget, condition, value, patch)",
            self.failures.clone(),
        );
        hub.register(
            "rules",
            "Users' rules in force, by where they come from (configmap, file)",
            self.in_force.clone(),
        );
        hub.register(
            "rule_complaints",
            "What is wrong with users' rules as they are written now, by where they come from; 0 when all is well",
            self.complaints.clone(),
        );
    }

    /// A rule failed on an object.
    pub fn failed(&self, rule: &str, reason: &'static str) {
        let rule = bounded(&self.names, rule.to_owned(), MAX_RULES);
        let labels = FailureLabels { rule, reason };
        self.failures.get_or_create(&labels).inc();
    }

    /// What a source gives now.
    pub fn source(&self, source: &'static str, rules: usize, complaints: usize) {
        let number = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        let label = SourceLabel { source };
        self.in_force.get_or_create(&label).set(number(rules));
        self.complaints
            .get_or_create(&label)
            .set(number(complaints));
    }
}
