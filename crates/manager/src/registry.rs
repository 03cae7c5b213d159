//! Every controller there is.

use crate::{Context, Controller, Settings};
use std::{fmt, sync::Arc};
use yurt_controller::{
    policy::Rule,
    run_with,
    selection::{Names, Selection},
};

/// A controller: its names, what it may do besides reading what is cached, how it is started.
#[derive(Clone, Copy)]
pub struct Entry {
    /// Its name and its alias in `--controllers`.
    pub names: Names,
    /// What its service account may do. What all of them read, the base account reads.
    pub rules: &'static [Rule],
    /// Whether only its name selects it, and `*` does not.
    pub is_off_by_default: bool,
    /// Starts it; it ends with the context.
    pub start: fn(&Arc<Context>, &Settings),
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Entry").field(&self.names.name).finish()
    }
}

impl Entry {
    /// A controller that is told something, or has more than one part.
    pub(crate) const fn new(
        name: &'static str,
        alias: &'static str,
        rules: &'static [Rule],
        start: fn(&Arc<Context>, &Settings),
    ) -> Self {
        Self {
            names: Names { name, alias },
            rules,
            is_off_by_default: false,
            start,
        }
    }

    /// The same, only where it is named.
    pub(crate) const fn off_by_default(self) -> Self {
        Self {
            is_off_by_default: true,
            ..self
        }
    }

    /// Whether it is to run.
    fn is_selected(&self, selection: &Selection) -> bool {
        let name = self.names.name;
        match self.is_off_by_default {
            true => selection.includes(name) && selection.names(name),
            false => selection.includes(name),
        }
    }

    /// A controller that needs nothing but the context.
    pub(crate) const fn of<C: Controller + Default>(
        alias: &'static str,
        rules: &'static [Rule],
    ) -> Self {
        Self::new(C::NAME, alias, rules, |context, settings| {
            run_with(context, C::default(), settings.workers(C::NAME, C::WORKERS));
        })
    }
}

/// Every controller there is, in the order in which they start.
pub const CONTROLLERS: &[Entry] = &[
    crate::nodepool::ENTRY,
    crate::node_bucket::ENTRY,
    crate::load_balancer_set::ENTRY,
    crate::csr_approver::ENTRY,
    crate::node_life_cycle::ENTRY,
    crate::service_topology::ENDPOINTS,
    crate::service_topology::SLICES,
    crate::hubleader::ENTRY,
    crate::hubleader::config::ENTRY,
    crate::hubleader::rbac::ENTRY,
    crate::delegate_lease::ENTRY,
    crate::daemon_pod_updater::ENTRY,
    crate::image_preheat::ENTRY,
    crate::yurtappset::ENTRY,
    crate::yurtappdaemon::ENTRY,
    crate::node_conversion::ENTRY,
    crate::pod_binding::ENTRY,
    crate::yurt_static_set::ENTRY,
];

/// The names of all.
pub fn names() -> impl Iterator<Item = Names> {
    CONTROLLERS.iter().map(|entry| entry.names)
}

/// The selected controllers, in the order in which they start.
pub(crate) fn selected(selection: &Selection) -> impl Iterator<Item = &'static Entry> {
    let selects = |entry: &&Entry| entry.is_selected(selection);
    CONTROLLERS.iter().filter(selects)
}

/// Starts the selected controllers; they work until the context ends. `identity` gives each the context that it writes with.
pub fn start_in(
    selection: &Selection,
    settings: &Settings,
    identity: impl Fn(&Entry) -> Arc<Context>,
) {
    for entry in selected(selection) {
        tracing::debug!(controller = entry.names.name, "started");
        (entry.start)(&identity(entry), settings);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_name_is_one_controllers() {
        let all: Vec<&str> = names()
            .flat_map(|names| [names.name, names.alias])
            .filter(|name| !name.is_empty())
            .collect();
        let different: BTreeSet<&str> = all.iter().copied().collect();
        assert_eq!(all.len(), different.len());
        for names in names() {
            assert!(names.name.ends_with("-controller"), "{}", names.name);
        }
    }
}
