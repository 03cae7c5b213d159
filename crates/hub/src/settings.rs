//! What is set while the hub runs: the config maps `yurt-hub-cfg` and `leader-hub-POOL` (section 4.1 and appendix C of OpenYurt's
//! hub), read as values. Reading is pure; `source` follows the maps.
//!
//! Nonsense is left out entry by entry, with a [`Complaint`]; what cannot be read never lets anybody do more than before.

mod source;

use crate::{
    config::{Config, pool_scope_resource},
    filter::is_built_in,
};
use serde::Deserialize;
pub(crate) use source::follow;
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
};
use yurt_wire::Gvr;

/// The map for all nodes.
pub const HUB_MAP: &str = "yurt-hub-cfg";
/// Before the pool's name: the map of one pool.
pub const LEADER_MAP: &str = "leader-hub-";

/// Entries of one list that are read.
const MOST_ENTRIES: usize = 256;
/// Longest entry that is taken.
const LONGEST_ENTRY: usize = 256;
/// Complaints that are kept of one map.
const MOST_COMPLAINTS: usize = 16;

/// The settings in force. The default is what holds without flags and config maps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Name of the node's pool, by flag or by the Node's label; empty while unknown and for nodes of none.
    pub pool: String,
    /// Agents (user agents up to the first slash, lower case) that are cached beside the usual ones; empty: everybody is.
    pub cache_agents: BTreeSet<String>,
    /// Components that a filter is applied for beside its usual ones, by the filter's name.
    pub filters: BTreeMap<String, BTreeSet<String>>,
    /// Users' rules, as they are written; read by [`crate::rules`]. `None`: there are none.
    pub rules: Option<Box<str>>,
    /// Resources shared within the pool, in order.
    pub pool_scope: Vec<Gvr>,
    /// The pool's leaders with their addresses, by rank.
    pub leaders: Vec<(String, IpAddr)>,
    /// Who leads when none of those can, by rank.
    pub candidates: Vec<(String, IpAddr)>,
    /// Whether leaders serve the pool.
    pub leader_election: bool,
    /// Whether the pool's nodes reach each other.
    pub inter_connectivity: bool,
}

/// The data of a config map.
pub type Data = BTreeMap<String, String>;

/// An entry of a config map that was left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Complaint {
    /// The map's name.
    pub map: String,
    /// The key of its data.
    pub key: String,
    /// The entry, shortened.
    pub entry: String,
    /// What is wrong with it.
    pub why: &'static str,
}

impl fmt::Display for Complaint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            map,
            key,
            entry,
            why,
        } = self;
        write!(f, "config map {map}, key {key}: {entry:?} {why}")
    }
}

impl Settings {
    /// What holds by flags alone.
    pub fn of_flags(config: &Config) -> Self {
        Self {
            pool: config.pool.clone(),
            pool_scope: config.pool_scope.clone(),
            ..Self::default()
        }
    }

    /// Reads both maps over what holds without them (`self`); `None` for a map that does not exist.
    pub fn read(&self, hub: Option<&Data>, leader: Option<&Data>) -> (Self, Vec<Complaint>) {
        let mut settings = self.clone();
        let mut complaints = Vec::new();
        if let Some(data) = leader {
            let map = format!("{LEADER_MAP}{}", self.pool);
            let mut reading = Reading::new(&map, &mut complaints);
            settings.read_leader(data, &mut reading);
        }
        if let Some(data) = hub {
            settings.read_hub(data, &mut Reading::new(HUB_MAP, &mut complaints));
        }
        (settings, complaints)
    }

    fn read_hub(&mut self, data: &Data, reading: &mut Reading<'_>) {
        for (key, value) in data {
            let old_name = key.strip_prefix("filter_");
            match key.as_str() {
                "cache_agents" => self.cache_agents = agents(value, reading),
                "rules" => self.rules = (!value.trim().is_empty()).then(|| value.as_str().into()),
                "pool_scope_resources" => {
                    for gvr in old_pool_scope(value, reading) {
                        if !self.pool_scope.contains(&gvr) {
                            self.pool_scope.push(gvr);
                        }
                    }
                }
                name if is_built_in(old_name.unwrap_or(name)) => {
                    let name = old_name.unwrap_or(name);
                    let components = components(key, value, reading);
                    if !components.is_empty() {
                        let known = self.filters.entry(name.to_owned()).or_default();
                        known.extend(components);
                    }
                }
                _ => reading.complain(key, key, "is no key that this hub knows"),
            }
        }
    }

    fn read_leader(&mut self, data: &Data, reading: &mut Reading<'_>) {
        for (key, value) in data {
            match key.as_str() {
                "leaders" => self.leaders = leaders(key, value, reading),
                // Yurt's own: OpenYurt's hubs do not look at it.
                "candidates" => self.candidates = leaders(key, value, reading),
                "pool-scoped-metadata" => {
                    // Also when it is empty: then nothing is shared.
                    self.pool_scope.clear();
                    for entry in reading.entries(key, value) {
                        match pool_scope_resource(entry) {
                            Some(gvr) if self.pool_scope.contains(&gvr) => {}
                            Some(gvr) => self.pool_scope.push(gvr),
                            None => reading.complain(key, entry, "is not GROUP/VERSION/RESOURCE"),
                        }
                    }
                }
                "enable-leader-election" => self.leader_election = reading.truth(key, value),
                "interconnectivity" => self.inter_connectivity = reading.truth(key, value),
                _ => reading.complain(key, key, "is no key that this hub knows"),
            }
        }
    }
}

/// Notes what is left out of one map.
struct Reading<'a> {
    map: &'a str,
    complaints: &'a mut Vec<Complaint>,
    room: usize,
}

impl<'a> Reading<'a> {
    fn new(map: &'a str, complaints: &'a mut Vec<Complaint>) -> Self {
        Self {
            map,
            complaints,
            room: MOST_COMPLAINTS,
        }
    }

    fn complain(&mut self, key: &str, entry: &str, why: &'static str) {
        if self.room == 0 {
            return;
        }
        self.room -= 1;
        let shortened = |text: &str| text.chars().take(64).collect();
        self.complaints.push(Complaint {
            map: self.map.to_owned(),
            key: shortened(key),
            entry: shortened(entry),
            why,
        });
    }

    /// The entries of a list separated by commas.
    fn entries<'v>(&mut self, key: &str, value: &'v str) -> Vec<&'v str> {
        let mut entries = Vec::new();
        for entry in value.split(',').map(str::trim) {
            if entry.is_empty() {
                continue;
            }
            if entries.len() == MOST_ENTRIES {
                self.complain(key, entry, "and what follows it is too much");
                break;
            }
            if entry.len() > LONGEST_ENTRY {
                self.complain(key, entry, "is too long");
            } else {
                entries.push(entry);
            }
        }
        entries
    }

    fn truth(&mut self, key: &str, value: &str) -> bool {
        if !matches!(value, "true" | "false" | "") {
            self.complain(key, value, "is neither true nor false, and so false");
        }
        value == "true"
    }
}

/// A restriction to nobody's name is still one: what no agent can be called stays in the set, where it matches nothing.
fn agents(value: &str, reading: &mut Reading<'_>) -> BTreeSet<String> {
    const KEY: &str = "cache_agents";
    let mut agents = BTreeSet::new();
    let given = value.split(',').any(|entry| !entry.trim().is_empty());
    for entry in reading.entries(KEY, value) {
        if entry != "*" && !is_component(entry) {
            reading.complain(KEY, entry, "is no agent's name");
        }
        agents.insert(entry.to_ascii_lowercase());
    }
    if given && agents.is_empty() {
        // Beside the usual agents nobody: an agent that is cached anyway.
        agents.insert("yurthub".to_owned());
    }
    agents
}

/// `COMPONENT`, or `COMPONENT/RESOURCE#VERB;VERB` of old (what follows the component never restricted anything since v1.1).
fn components(key: &str, value: &str, reading: &mut Reading<'_>) -> BTreeSet<String> {
    let mut components = BTreeSet::new();
    for entry in reading.entries(key, value) {
        let name = entry.split('/').next().unwrap_or_default().trim();
        if is_component(name) {
            components.insert(name.to_ascii_lowercase());
        } else {
            reading.complain(key, entry, "names no component");
        }
    }
    components
}

/// What a user agent can begin with, as far as anybody names its program so.
pub(crate) fn is_component(name: &str) -> bool {
    !name.is_empty()
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
}

/// The nodes of a list, each once.
fn leaders(key: &str, value: &str, reading: &mut Reading<'_>) -> Vec<(String, IpAddr)> {
    let mut named: Vec<(String, IpAddr)> = Vec::new();
    for entry in reading.entries(key, value) {
        match leader(entry) {
            Some((node, _)) if named.iter().any(|(known, _)| known == node) => {}
            Some((node, address)) => named.push((node.to_owned(), address)),
            None => reading.complain(key, entry, "is not NODE/ADDRESS"),
        }
    }
    named
}

fn leader(entry: &str) -> Option<(&str, IpAddr)> {
    let (node, address) = entry.split_once('/')?;
    let address = address.parse().ok()?;
    (!node.is_empty()).then_some((node, address))
}

/// The JSON list that hubs up to v1.6 read.
fn old_pool_scope(value: &str, reading: &mut Reading<'_>) -> Vec<Gvr> {
    const KEY: &str = "pool_scope_resources";
    #[derive(Deserialize)]
    struct Resource {
        #[serde(default)]
        group: String,
        #[serde(default)]
        version: String,
        #[serde(default)]
        resource: String,
    }
    if value.trim().is_empty() {
        return Vec::new();
    }
    let Ok(entries) = serde_json::from_str::<Vec<serde_json::Value>>(value) else {
        reading.complain(KEY, value, "is not a JSON list of resources");
        return Vec::new();
    };
    let mut resources = Vec::new();
    for entry in entries.into_iter().take(MOST_ENTRIES) {
        let text = entry.to_string();
        let path = serde_json::from_value::<Resource>(entry)
            .map(|r| format!("{}/{}/{}", r.group, r.version, r.resource));
        match path.ok().as_deref().and_then(pool_scope_resource) {
            Some(gvr) => resources.push(gvr),
            None => reading.complain(KEY, &text, "is no group, version and resource"),
        }
    }
    resources
}

#[cfg(test)]
mod tests;
