//! The cluster as the scheduler sees it: what there is, and what is used of it.

use super::pod::{HostPort, Pod};
use crate::{
    Key,
    fields::{Labels, labels, text},
    node_affinity::NodeTerm,
    taint::Taint,
};
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};
use yurt_controller::resources::Resources;
use yurt_wire::selector::LabelSelector;

/// A node and the pods on it.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Node {
    pub(super) name: String,
    pub(super) labels: Labels,
    pub(super) taints: Vec<Taint>,
    pub(super) unschedulable: bool,
    pub(super) allocatable: Resources,
    /// What its pods ask for, and what they are taken to ask for when nodes are compared.
    pub(super) requested: Resources,
    pub(super) assumed: Resources,
    pub(super) pods: BTreeMap<Key, Arc<Pod>>,
}

impl Node {
    fn parse(node: &Value) -> Self {
        Self {
            name: text(&node["metadata"]["name"]),
            labels: labels(&node["metadata"]["labels"]),
            taints: Taint::of(node),
            unschedulable: node["spec"]["unschedulable"] == true,
            allocatable: Resources::of(&node["status"]["allocatable"]),
            ..Self::default()
        }
    }

    pub(super) fn add(&mut self, pod: Arc<Pod>) {
        self.requested.add(&pod.requests);
        self.assumed.add(&pod.assumed);
        self.pods.insert(pod.key.clone(), pod);
    }

    pub(super) fn remove(&mut self, key: &Key) {
        if let Some(pod) = self.pods.remove(key) {
            self.requested.subtract(&pod.requests);
            self.assumed.subtract(&pod.assumed);
        }
    }

    pub(super) fn ports(&self) -> impl Iterator<Item = &HostPort> {
        self.pods.values().flat_map(|pod| &pod.ports)
    }
}

/// A PersistentVolumeClaim.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Claim {
    /// The volume it is bound to.
    pub(super) volume: Option<String>,
    pub(super) class: String,
    pub(super) deleting: bool,
    pub(super) lost: bool,
}

impl Claim {
    fn parse(claim: &Value) -> Self {
        Self {
            volume: claim["spec"]["volumeName"]
                .as_str()
                .filter(|name| !name.is_empty())
                .map(str::to_owned),
            class: text(&claim["spec"]["storageClassName"]),
            deleting: claim["metadata"]["deletionTimestamp"].is_string(),
            lost: claim["status"]["phase"] == "Lost",
        }
    }
}

/// A PersistentVolume: where it can be reached.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Volume {
    pub(super) nodes: Option<Vec<NodeTerm>>,
    pub(super) labels: Labels,
}

impl Volume {
    fn parse(volume: &Value) -> Self {
        let terms = volume["spec"]["nodeAffinity"]["required"]["nodeSelectorTerms"].as_array();
        Self {
            nodes: terms.map(|terms| terms.iter().map(NodeTerm::parse).collect()),
            labels: labels(&volume["metadata"]["labels"]),
        }
    }
}

/// A PodDisruptionBudget.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Budget {
    selector: Option<LabelSelector>,
    /// Disruptions that it allows now.
    pub(super) allowed: i64,
    /// Pods whose eviction was allowed already.
    disrupted: BTreeSet<String>,
}

impl Budget {
    fn parse(budget: &Value) -> Self {
        let disrupted = budget["status"]["disruptedPods"].as_object();
        Self {
            selector: LabelSelector::from_json(&budget["spec"]["selector"]).ok(),
            allowed: budget["status"]["disruptionsAllowed"].as_i64().unwrap_or(0),
            disrupted: disrupted
                .into_iter()
                .flatten()
                .map(|(name, _)| name.clone())
                .collect(),
        }
    }

    pub(super) fn guards(&self, pod: &Pod) -> bool {
        let selector = self.selector.as_ref().filter(|s| !s.is_empty());
        selector.is_some_and(|s| s.matches(&pod.labels)) && !self.disrupted.contains(&pod.key.name)
    }
}

/// The cluster.
#[derive(Clone, Debug, Default)]
pub(super) struct Snapshot {
    nodes: Vec<Node>,
    by_name: HashMap<String, usize>,
    /// Where each pod is.
    placed: HashMap<Key, String>,
    /// Pods on nodes that are not known (yet).
    elsewhere: HashMap<String, BTreeMap<Key, Arc<Pod>>>,
    /// Placed pods that keep others away, and that draw others.
    averse: BTreeSet<Key>,
    fond: BTreeSet<Key>,
    /// Pods of a controller by node.
    siblings: HashMap<String, HashMap<String, i64>>,
    /// Pods that wait for a node to become free, by node.
    nominated: HashMap<String, BTreeMap<Key, Arc<Pod>>>,
    namespaces: HashMap<String, Labels>,
    claims: HashMap<Key, Claim>,
    volumes: HashMap<String, Volume>,
    /// Storage classes that bind when a pod is placed.
    late: BTreeSet<String>,
    budgets: BTreeMap<Key, Budget>,
}

impl Snapshot {
    pub(super) fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    pub(super) fn index(&self, name: &str) -> Option<usize> {
        self.by_name.get(name).copied()
    }

    pub(super) fn node(&self, name: &str) -> Option<&Node> {
        self.nodes.get(self.index(name)?)
    }

    /// Takes in a node. Whether it is new (`Some(true)`), or different in what matters for placing pods (`Some(false)`).
    pub(super) fn set_node(&mut self, node: &Value) -> Option<bool> {
        let mut node = Node::parse(node);
        if let Some(known) = self.index(&node.name).and_then(|at| self.nodes.get_mut(at)) {
            node.pods = std::mem::take(&mut known.pods);
            node.requested = std::mem::take(&mut known.requested);
            node.assumed = std::mem::take(&mut known.assumed);
            let changed = known.labels != node.labels
                || known.taints != node.taints
                || known.unschedulable != node.unschedulable
                || known.allocatable != node.allocatable;
            *known = node;
            return changed.then_some(false);
        }
        for pod in self.elsewhere.remove(&node.name).into_iter().flatten() {
            node.add(pod.1);
        }
        self.by_name.insert(node.name.clone(), self.nodes.len());
        self.nodes.push(node);
        Some(true)
    }

    pub(super) fn remove_node(&mut self, name: &str) {
        let Some(at) = self.by_name.remove(name) else {
            return;
        };
        let node = self.nodes.swap_remove(at);
        if let Some(moved) = self.nodes.get(at) {
            self.by_name.insert(moved.name.clone(), at);
        }
        if !node.pods.is_empty() {
            self.elsewhere.insert(node.name, node.pods);
        }
    }

    /// Puts a pod on its node.
    pub(super) fn place(&mut self, pod: Arc<Pod>) {
        let Some(node) = pod.node.clone() else {
            return;
        };
        self.unplace(&pod.key);
        self.placed.insert(pod.key.clone(), node.clone());
        if !pod.anti_affinity.is_empty() {
            self.averse.insert(pod.key.clone());
        }
        if !pod.affinity.is_empty() || !pod.preferred_pods.is_empty() {
            self.fond.insert(pod.key.clone());
        }
        if let Some(controller) = pod.controller.clone().filter(|_| !pod.deleting) {
            let nodes = self.siblings.entry(controller).or_default();
            *nodes.entry(node.clone()).or_default() += 1;
        }
        match self.index(&node).and_then(|at| self.nodes.get_mut(at)) {
            Some(node) => node.add(pod),
            None => {
                let pods = self.elsewhere.entry(node).or_default();
                pods.insert(pod.key.clone(), pod);
            }
        }
    }

    /// Takes a pod off its node; whether it was on one.
    pub(super) fn unplace(&mut self, key: &Key) -> bool {
        let Some(name) = self.placed.remove(key) else {
            return false;
        };
        self.averse.remove(key);
        self.fond.remove(key);
        let pod = match self.index(&name).and_then(|at| self.nodes.get_mut(at)) {
            Some(node) => {
                let pod = node.pods.get(key).cloned();
                node.remove(key);
                pod
            }
            None => {
                let pods = self.elsewhere.get_mut(&name);
                let pod = pods.and_then(|pods| pods.remove(key));
                self.elsewhere.retain(|_, pods| !pods.is_empty());
                pod
            }
        };
        if let Some(pod) = pod.filter(|pod| !pod.deleting)
            && let Some(controller) = &pod.controller
            && let Some(nodes) = self.siblings.get_mut(controller)
        {
            if let Some(count) = nodes.get_mut(&name) {
                *count -= 1;
            }
            nodes.retain(|_, count| *count > 0);
            if nodes.is_empty() {
                self.siblings.remove(controller);
            }
        }
        true
    }

    /// A placed pod.
    pub(super) fn pod(&self, key: &Key) -> Option<&Arc<Pod>> {
        let node = self.placed.get(key)?;
        match self.node(node) {
            Some(node) => node.pods.get(key),
            None => self.elsewhere.get(node)?.get(key),
        }
    }

    fn on_nodes<'a>(
        &'a self,
        keys: &'a BTreeSet<Key>,
    ) -> impl Iterator<Item = (&'a Node, &'a Arc<Pod>)> {
        keys.iter().filter_map(|key| {
            let node = self.node(self.placed.get(key)?)?;
            Some((node, node.pods.get(key)?))
        })
    }

    /// Placed pods with required anti-affinity.
    pub(super) fn averse(&self) -> impl Iterator<Item = (&Node, &Arc<Pod>)> {
        self.on_nodes(&self.averse)
    }

    /// Placed pods with any other wish about pods beside them.
    pub(super) fn fond(&self) -> impl Iterator<Item = (&Node, &Arc<Pod>)> {
        self.on_nodes(&self.fond)
    }

    /// How many pods of a controller are on each node.
    pub(super) fn siblings(&self, controller: &str) -> impl Iterator<Item = (&Node, i64)> {
        let nodes = self.siblings.get(controller).into_iter().flatten();
        nodes.filter_map(|(name, count)| Some((self.node(name)?, *count)))
    }

    /// Remembers, or forgets, where a pod waits for room.
    pub(super) fn nominate(&mut self, pod: &Arc<Pod>) {
        self.forget_nomination(&pod.key);
        if let Some(node) = &pod.nominated {
            let pods = self.nominated.entry(node.clone()).or_default();
            pods.insert(pod.key.clone(), pod.clone());
        }
    }

    pub(super) fn forget_nomination(&mut self, key: &Key) {
        self.nominated.retain(|_, pods| {
            pods.remove(key);
            !pods.is_empty()
        });
    }

    /// Pods that wait for room on a node.
    pub(super) fn nominated(&self, node: &str) -> impl Iterator<Item = &Arc<Pod>> {
        self.nominated
            .get(node)
            .into_iter()
            .flat_map(BTreeMap::values)
    }

    /// Labels of a namespace.
    pub(super) fn namespace(&self, name: &str) -> &Labels {
        static NONE: Labels = Vec::new();
        self.namespaces.get(name).unwrap_or(&NONE)
    }

    pub(super) fn claim(&self, namespace: &str, name: &str) -> Option<&Claim> {
        self.claims.get(&Key::new(namespace, name))
    }

    pub(super) fn volume(&self, name: &str) -> Option<&Volume> {
        self.volumes.get(name)
    }

    pub(super) fn binds_late(&self, class: &str) -> bool {
        self.late.contains(class)
    }

    /// The budgets of a namespace.
    pub(super) fn budgets(&self, namespace: &str) -> impl Iterator<Item = (&Key, &Budget)> {
        self.budgets
            .iter()
            .filter(move |(key, _)| key.namespace == namespace)
    }

    /// Takes in an object that pods and nodes refer to; `None`: it is gone. Whether anything changed.
    pub(super) fn set_other(&mut self, kind: &str, key: &Key, object: Option<&Value>) -> bool {
        fn put<K: std::hash::Hash + Eq + Clone, V: PartialEq>(
            map: &mut HashMap<K, V>,
            key: &K,
            value: Option<V>,
        ) -> bool {
            match value {
                None => map.remove(key).is_some(),
                Some(value) if map.get(key) == Some(&value) => false,
                Some(value) => {
                    map.insert(key.clone(), value);
                    true
                }
            }
        }
        match kind {
            "Namespace" => put(
                &mut self.namespaces,
                &key.name,
                object.map(|o| labels(&o["metadata"]["labels"])),
            ),
            "PersistentVolumeClaim" => put(&mut self.claims, key, object.map(Claim::parse)),
            "PersistentVolume" => put(&mut self.volumes, &key.name, object.map(Volume::parse)),
            "StorageClass" => {
                if object.is_some_and(|o| o["volumeBindingMode"] == "WaitForFirstConsumer") {
                    self.late.insert(key.name.clone())
                } else {
                    self.late.remove(&key.name)
                }
            }
            "PodDisruptionBudget" => {
                match object {
                    Some(object) => drop(self.budgets.insert(key.clone(), Budget::parse(object))),
                    None => drop(self.budgets.remove(key)),
                }
                // Budgets only choose between victims.
                false
            }
            _ => false,
        }
    }
}
