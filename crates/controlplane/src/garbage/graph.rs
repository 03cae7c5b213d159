//! Who owns whom, and what has to be looked at when that changes. Pure.

use crate::{
    Collection, Key,
    fields::{items, text},
};
use serde_json::Value;
use std::{
    collections::{BTreeSet, HashMap, HashSet, VecDeque},
    sync::Arc,
};

/// Finalizers that stand for a propagation policy.
pub(super) const FOREGROUND: &str = "foregroundDeletion";
pub(super) const ORPHAN: &str = "orphan";

/// How many owners are remembered as gone, so that their dependents need not ask one by one.
const REMEMBERED: usize = 500;

/// An owner reference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Owner {
    pub(super) api_version: String,
    pub(super) kind: String,
    pub(super) name: String,
    pub(super) uid: String,
    /// `blockOwnerDeletion`.
    pub(super) blocks: bool,
}

/// What is known of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Node {
    pub(super) collection: Arc<Collection>,
    pub(super) key: Key,
    pub(super) uid: String,
    pub(super) owners: Vec<Owner>,
    deleting: bool,
    foreground: bool,
    orphan: bool,
}

impl Node {
    /// Reads the metadata of an object.
    pub(super) fn of(collection: Arc<Collection>, object: &Value) -> Self {
        let meta = &object["metadata"];
        let owners = items(&meta["ownerReferences"]);
        let finalizers = meta["finalizers"].as_array();
        let has =
            |finalizer: &str| finalizers.is_some_and(|all| all.iter().any(|f| f == finalizer));
        Self {
            collection,
            key: Key::of(object),
            uid: text(&meta["uid"]),
            owners: owners
                .map(|owner| Owner {
                    api_version: text(&owner["apiVersion"]),
                    kind: text(&owner["kind"]),
                    name: text(&owner["name"]),
                    uid: text(&owner["uid"]),
                    blocks: owner["blockOwnerDeletion"] == true,
                })
                .collect(),
            deleting: meta["deletionTimestamp"].is_string(),
            foreground: has(FOREGROUND),
            orphan: has(ORPHAN),
        }
    }

    /// It is being deleted, for whatever reason and in whatever way.
    pub(super) fn is_deleting(&self) -> bool {
        self.deleting
    }

    /// It is being deleted and waits for its dependents to go first.
    pub(super) fn waits_for_dependents(&self) -> bool {
        self.deleting && self.foreground
    }

    /// It is being deleted and waits for its dependents to be set free.
    pub(super) fn waits_for_orphans(&self) -> bool {
        self.deleting && self.orphan
    }

    /// How the deletion of this object as garbage treats its own dependents.
    pub(super) fn policy(&self) -> &'static str {
        match (self.orphan, self.foreground) {
            (true, _) => "Orphan",
            (_, true) => "Foreground",
            _ => "Background",
        }
    }

    /// What is wrong with `reference`, which this object has and which leads to `owner` by its UID.
    fn doubts(&self, reference: &Owner, owner: &Self) -> Vec<Work> {
        let group = |version: &str| version.split_once('/').map(|(group, _)| group.to_owned());
        let namespace = &owner.key.namespace;
        let mut work = Vec::new();
        if !namespace.is_empty() && *namespace != self.key.namespace {
            work.push(Work::Misplaced(self.uid.clone(), reference.uid.clone()));
            work.push(Work::Examine(self.uid.clone()));
        } else if reference.name != owner.key.name
            || reference.kind != owner.collection.kind
            || group(&reference.api_version) != group(&owner.collection.api_version)
        {
            work.push(Work::Examine(self.uid.clone()));
        }
        work
    }
}

/// What has to be done because of a change.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Work {
    /// Look whether the object of this UID is garbage, or can go on with its deletion.
    Examine(String),
    /// Set the dependents of the object of this UID free.
    Orphan(String),
    /// Tell the user that the object's owner reference with the second UID leads nowhere.
    Misplaced(String, String),
}

/// An owner as a reference names it, in the namespace where it is looked for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Absent {
    namespace: String,
    kind: String,
    name: String,
    uid: String,
}

impl Absent {
    /// The owner that `reference` means when it is in `namespace`.
    pub(super) fn new(namespace: &str, reference: &Owner) -> Self {
        Self {
            namespace: namespace.into(),
            kind: reference.kind.clone(),
            name: reference.name.clone(),
            uid: reference.uid.clone(),
        }
    }
}

/// All objects with their owners and dependents.
#[derive(Debug, Default)]
pub(super) struct Graph {
    nodes: HashMap<String, Node>,
    names: HashMap<Arc<Collection>, HashMap<Key, String>>,
    /// By the UID of an owner, known or not, who refers to it.
    dependents: HashMap<String, BTreeSet<String>>,
    absent: HashSet<Absent>,
    absent_since: VecDeque<Absent>,
    /// Whether everything there is has been told: only then is an unknown owner suspicious.
    complete: bool,
}

impl Graph {
    /// An object.
    pub(super) fn get(&self, uid: &str) -> Option<&Node> {
        self.nodes.get(uid)
    }

    /// The objects that name `uid` as an owner.
    pub(super) fn dependents(&self, uid: &str) -> impl Iterator<Item = &Node> {
        let uids = self.dependents.get(uid).into_iter().flatten();
        uids.filter_map(|uid| self.nodes.get(uid))
    }

    /// Everything there is has been told: what refers to unknown owners is to be looked at.
    pub(super) fn set_complete(&mut self) -> Vec<Work> {
        self.complete = true;
        let unknown = self
            .dependents
            .iter()
            .filter(|(owner, _)| !self.nodes.contains_key(*owner));
        let uids: BTreeSet<&String> = unknown.flat_map(|(_, dependents)| dependents).collect();
        uids.into_iter().cloned().map(Work::Examine).collect()
    }

    /// Takes in an object as it is now.
    pub(super) fn observe(&mut self, node: Node) -> Vec<Work> {
        let mut work = Vec::new();
        let names = self.names.entry(node.collection.clone()).or_default();
        let before = names.insert(node.key.clone(), node.uid.clone());
        if let Some(before) = before.filter(|uid| *uid != node.uid) {
            work.extend(self.remove(&before));
        }
        let old = self.nodes.get(&node.uid).cloned();
        let had = old.as_ref().map_or(&[][..], |old| &old.owners);
        for reference in &node.owners {
            if had.iter().any(|o| o.uid == reference.uid) {
                continue;
            }
            let dependents = self.dependents.entry(reference.uid.clone()).or_default();
            dependents.insert(node.uid.clone());
            match self.nodes.get(&reference.uid) {
                None if self.complete => work.push(Work::Examine(node.uid.clone())),
                None => {}
                Some(owner) if owner.waits_for_dependents() => {
                    work.push(Work::Examine(node.uid.clone()));
                }
                Some(owner) => work.extend(node.doubts(reference, owner)),
            }
        }
        for reference in had {
            let now = node.owners.iter().find(|o| o.uid == reference.uid);
            if now.is_none() {
                self.drop_dependent(&reference.uid, &node.uid);
            }
            // An owner that waited for this object may go on.
            if now.is_none_or(|now| reference.blocks && !now.blocks) {
                work.extend(self.waiting(&reference.uid));
            }
        }
        // Of dependents told before their owner it shows only now.
        if old.is_none() {
            for dependent in self.dependents(&node.uid) {
                let mut references = dependent.owners.iter();
                if let Some(reference) = references.find(|o| o.uid == node.uid) {
                    work.extend(dependent.doubts(reference, &node));
                }
            }
        }
        let was = |state: fn(&Node) -> bool| old.as_ref().is_some_and(state);
        if node.waits_for_orphans() && !was(Node::waits_for_orphans) {
            work.push(Work::Orphan(node.uid.clone()));
        }
        if node.waits_for_dependents() && !was(Node::waits_for_dependents) {
            let dependents = self.dependents(&node.uid);
            work.extend(dependents.map(|d| Work::Examine(d.uid.clone())));
            work.push(Work::Examine(node.uid.clone()));
        }
        self.nodes.insert(node.uid.clone(), node);
        work
    }

    /// An object is gone; one with another UID (unless that is empty) under its name is not meant.
    pub(super) fn gone(&mut self, collection: &Collection, key: &Key, uid: &str) -> Vec<Work> {
        let known = self.names.get(collection).and_then(|names| names.get(key));
        match known.cloned() {
            Some(known) if uid.is_empty() || known == uid => {
                if let Some(names) = self.names.get_mut(collection) {
                    names.remove(key);
                }
                self.remove(&known)
            }
            _ => Vec::new(),
        }
    }

    /// Of this collection there is nothing but what was `told`.
    pub(super) fn only(&mut self, collection: &Collection, told: &BTreeSet<Key>) -> Vec<Work> {
        let names = self.names.get(collection).into_iter().flatten();
        let gone: Vec<Key> = names
            .filter(|(key, _)| !told.contains(key))
            .map(|(key, _)| key.clone())
            .collect();
        gone.iter()
            .flat_map(|key| self.gone(collection, key, ""))
            .collect()
    }

    /// The collection is not served any more. Whether its objects are gone is not known.
    pub(super) fn forget(&mut self, collection: &Collection) {
        for uid in self
            .names
            .remove(collection)
            .unwrap_or_default()
            .into_values()
        {
            if let Some(node) = self.nodes.remove(&uid) {
                for owner in &node.owners {
                    self.drop_dependent(&owner.uid, &uid);
                }
            }
        }
    }

    fn remove(&mut self, uid: &str) -> Vec<Work> {
        let Some(node) = self.nodes.remove(uid) else {
            return Vec::new();
        };
        let mut work = Vec::new();
        for owner in &node.owners {
            self.drop_dependent(&owner.uid, uid);
            work.extend(self.waiting(&owner.uid));
        }
        if let Some(dependents) = self.dependents.get(uid) {
            work.extend(dependents.iter().cloned().map(Work::Examine));
            self.remember_absent(Absent {
                namespace: node.key.namespace.clone(),
                kind: node.collection.kind.to_string(),
                name: node.key.name.clone(),
                uid: uid.into(),
            });
        }
        work
    }

    fn drop_dependent(&mut self, owner: &str, dependent: &str) {
        if let Some(dependents) = self.dependents.get_mut(owner) {
            dependents.remove(dependent);
            if dependents.is_empty() {
                self.dependents.remove(owner);
            }
        }
    }

    fn waiting(&self, uid: &str) -> Option<Work> {
        let owner = self.nodes.get(uid)?;
        owner
            .waits_for_dependents()
            .then(|| Work::Examine(uid.into()))
    }

    /// The owner is known to be gone. UIDs do not come back.
    pub(super) fn remember_absent(&mut self, owner: Absent) {
        if !self.absent.insert(owner.clone()) {
            return;
        }
        self.absent_since.push_back(owner);
        if self.absent_since.len() > REMEMBERED
            && let Some(oldest) = self.absent_since.pop_front()
        {
            self.absent.remove(&oldest);
        }
    }

    /// Whether the owner is known to be gone.
    pub(super) fn is_absent(&self, owner: &Absent) -> bool {
        self.absent.contains(owner)
    }
}

/// What became of an owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OwnerState {
    /// It is there.
    Solid,
    /// It is gone.
    Gone,
    /// It is being deleted and waits for its dependents.
    Waiting,
}

/// What is to be done with an object whose owners have been looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Plan {
    /// It stays as it is.
    Keep,
    /// It stays, without the references to these owners.
    Disown(Vec<String>),
    /// It goes, with this propagation policy.
    Delete(&'static str),
    /// It goes in the foreground, but must not block its owners meanwhile: its own dependents wait for somebody too, and a circle
    /// would never end.
    UnblockAndDelete,
}

/// What is to be done with `node`, whose owners are in these states.
pub(super) fn plan(node: &Node, states: &[OwnerState], dependents: &[&Node]) -> Plan {
    let solid = states.contains(&OwnerState::Solid);
    let waiting = states.contains(&OwnerState::Waiting);
    if node.owners.is_empty() || states.iter().all(|state| *state == OwnerState::Solid) {
        return Plan::Keep;
    }
    if solid {
        let lost = node.owners.iter().zip(states);
        let lost = lost.filter(|(_, state)| **state != OwnerState::Solid);
        return Plan::Disown(lost.map(|(owner, _)| owner.uid.clone()).collect());
    }
    if waiting && !dependents.is_empty() {
        return if dependents.iter().any(|d| d.waits_for_dependents()) {
            Plan::UnblockAndDelete
        } else {
            Plan::Delete("Foreground")
        };
    }
    Plan::Delete(node.policy())
}

/// The dependents that an owner being deleted in the foreground has to wait for.
pub(super) fn blocking<'a>(owner: &str, dependents: &[&'a Node]) -> Vec<&'a Node> {
    let blocks = |node: &&&Node| node.owners.iter().any(|o| o.uid == owner && o.blocks);
    dependents.iter().filter(blocks).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn collection(kind: &'static str) -> Arc<Collection> {
        Arc::new(Collection::namespaced("v1", "things", kind))
    }

    fn node(name: &str, owners: &[&str], more: Value) -> Node {
        let owners: Vec<Value> = owners
            .iter()
            .map(|owner| json!({"apiVersion": "v1", "kind": "Thing", "name": owner, "uid": format!("uid-{owner}"),
                "blockOwnerDeletion": true}))
            .collect();
        let mut object = json!({"metadata": {"namespace": "ns", "name": name, "uid": format!("uid-{name}"), "ownerReferences": owners}});
        for (key, value) in more.as_object().into_iter().flatten() {
            object["metadata"][key] = value.clone();
        }
        Node::of(collection("Thing"), &object)
    }

    fn plain(name: &str, owners: &[&str]) -> Node {
        node(name, owners, json!({}))
    }

    fn foreground(name: &str, owners: &[&str]) -> Node {
        node(
            name,
            owners,
            json!({"deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": [FOREGROUND]}),
        )
    }

    fn examine(names: &[&str]) -> Vec<Work> {
        names
            .iter()
            .map(|name| Work::Examine(format!("uid-{name}")))
            .collect()
    }

    fn gone(graph: &mut Graph, name: &str) -> Vec<Work> {
        graph.gone(&collection("Thing"), &Key::new("ns", name), "")
    }

    #[test]
    fn unknown_owners_are_suspicious_only_when_everything_was_told() {
        let mut graph = Graph::default();
        assert_eq!(graph.observe(plain("child", &["owner"])), []);
        assert_eq!(graph.observe(plain("lost", &["nobody"])), []);
        assert_eq!(graph.observe(plain("owner", &[])), []);
        assert_eq!(graph.set_complete(), examine(&["lost"]));
        assert_eq!(graph.observe(plain("new", &["nobody"])), examine(&["new"]));
    }

    #[test]
    fn dependents_are_looked_at_when_their_owner_goes() {
        let mut graph = Graph::default();
        graph.set_complete();
        graph.observe(plain("owner", &[]));
        graph.observe(plain("a", &["owner"]));
        graph.observe(plain("b", &["owner"]));
        assert_eq!(gone(&mut graph, "owner"), examine(&["a", "b"]));
        let reference = &graph.get("uid-a").expect("still there").owners[0];
        assert!(graph.is_absent(&Absent::new("ns", reference)));
        assert!(!graph.is_absent(&Absent::new("other", reference)));
        assert_eq!(gone(&mut graph, "owner"), [], "once");
    }

    #[test]
    fn another_object_of_the_same_name_means_the_first_is_gone() {
        let mut graph = Graph::default();
        graph.set_complete();
        graph.observe(plain("owner", &[]));
        graph.observe(plain("a", &["owner"]));
        let again = node("owner", &[], json!({"uid": "second"}));
        assert_eq!(graph.observe(again), examine(&["a"]));
    }

    #[test]
    fn foreground_deletion_presses_dependents_and_goes_on_when_one_goes_or_lets_go() {
        let mut graph = Graph::default();
        graph.set_complete();
        graph.observe(plain("owner", &[]));
        graph.observe(plain("a", &["owner"]));
        graph.observe(plain("b", &["owner"]));
        assert_eq!(
            graph.observe(foreground("owner", &[])),
            examine(&["a", "b", "owner"])
        );
        assert_eq!(graph.observe(foreground("owner", &[])), [], "no news");
        assert_eq!(gone(&mut graph, "a"), examine(&["owner"]));
        let mut free = plain("b", &["owner"]);
        free.owners[0].blocks = false;
        assert_eq!(graph.observe(free), examine(&["owner"]));
        let dependents: Vec<&Node> = graph.dependents("uid-owner").collect();
        assert_eq!(dependents.len(), 1);
        assert!(blocking("uid-owner", &dependents).is_empty());
    }

    #[test]
    fn orphaning_begins_once() {
        let mut graph = Graph::default();
        graph.observe(plain("owner", &[]));
        let orphaning = || {
            node(
                "owner",
                &[],
                json!({"deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": [ORPHAN]}),
            )
        };
        assert_eq!(
            graph.observe(orphaning()),
            [Work::Orphan("uid-owner".into())]
        );
        assert_eq!(graph.observe(orphaning()), []);
    }

    #[test]
    fn an_owner_in_another_namespace_is_told_and_looked_for() {
        let misplaced = [
            Work::Misplaced("uid-a".into(), "uid-owner".into()),
            Work::Examine("uid-a".into()),
        ];
        let elsewhere = || node("owner", &[], json!({"namespace": "other"}));
        let mut graph = Graph::default();
        graph.observe(elsewhere());
        assert_eq!(graph.observe(plain("a", &["owner"])), misplaced);
        let mut graph = Graph::default();
        graph.observe(plain("a", &["owner"]));
        assert_eq!(graph.observe(elsewhere()), misplaced, "in any order");
    }

    #[test]
    fn what_is_not_told_again_is_gone_and_what_is_not_served_is_forgotten() {
        let mut graph = Graph::default();
        graph.set_complete();
        graph.observe(plain("owner", &[]));
        graph.observe(plain("a", &["owner"]));
        let told = BTreeSet::from([Key::new("ns", "a")]);
        assert_eq!(graph.only(&collection("Thing"), &told), examine(&["a"]));
        graph.forget(&collection("Thing"));
        assert!(graph.get("uid-a").is_none());
        assert!(graph.dependents.is_empty());
    }

    #[test]
    fn plans() {
        use OwnerState::{Gone, Solid, Waiting};
        let two = plain("a", &["x", "y"]);
        assert_eq!(plan(&two, &[Solid, Solid], &[]), Plan::Keep);
        assert_eq!(
            plan(&two, &[Gone, Solid], &[]),
            Plan::Disown(vec!["uid-x".into()])
        );
        assert_eq!(
            plan(&two, &[Solid, Waiting], &[]),
            Plan::Disown(vec!["uid-y".into()])
        );
        assert_eq!(plan(&two, &[Gone, Gone], &[]), Plan::Delete("Background"));
        assert_eq!(
            plan(&two, &[Waiting, Gone], &[]),
            Plan::Delete("Background"),
            "nothing of its own to wait for"
        );
        let child = plain("c", &["a"]);
        assert_eq!(
            plan(&two, &[Waiting, Gone], &[&child]),
            Plan::Delete("Foreground")
        );
        let circle = foreground("c", &["a"]);
        assert_eq!(
            plan(&two, &[Waiting, Gone], &[&circle]),
            Plan::UnblockAndDelete
        );
        let orphaning = node("a", &["x"], json!({"finalizers": [ORPHAN]}));
        assert_eq!(plan(&orphaning, &[Gone], &[]), Plan::Delete("Orphan"));
        assert_eq!(plan(&plain("a", &[]), &[], &[]), Plan::Keep);
    }
}
