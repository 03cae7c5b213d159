//! What is set while the hub runs: the config maps `yurt-hub-cfg` and `leader-hub-POOL`, read as values.

use std::collections::{BTreeMap, BTreeSet};

/// The settings in force. The default is what holds without config maps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Agents (user agents up to the first slash, lower case) that are cached beside the usual ones; empty: everybody is.
    pub cache_agents: BTreeSet<String>,
    /// Components that a filter is applied for beside its usual ones, by the filter's name.
    pub filters: BTreeMap<String, BTreeSet<String>>,
}
