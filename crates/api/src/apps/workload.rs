//! The workload that a set renders for each of its pools.

use crate::schema::types;
use serde_json::Value;

types! {
    /// What is rendered for each pool: exactly one of the two.
    pub struct WorkloadTemplate {
        /// A Deployment.
        deployment_template: Option<Template>,
        /// A StatefulSet.
        stateful_set_template: Option<Template>,
    }

    /// A workload without its name.
    pub struct Template {
        /// Its labels and annotations.
        metadata: Value,
        /// Its spec, as in apps/v1.
        [required] spec: Value,
    }
}

impl WorkloadTemplate {
    /// The template, and the kind that is rendered of it; `None` unless there is exactly one.
    pub fn only(&self) -> Option<(&'static str, &Template)> {
        match (&self.deployment_template, &self.stateful_set_template) {
            (Some(template), None) => Some(("Deployment", template)),
            (None, Some(template)) => Some(("StatefulSet", template)),
            _ => None,
        }
    }
}
