//! Who may do what: the node authorizer and RBAC over the stored roles and bindings, as kube-apiserver with
//! `--authorization-mode=Node,RBAC`.
//!
//! Decisions are pure ([`Policy::decide`], [`node::decide`]); [`Authorizer`] keeps what they are made of up to date with
//! the storage.

pub mod aggregation;
pub mod bootstrap_policy;
pub mod escalation;
mod graph;
pub mod node;
mod policy;
mod rule;

pub(crate) use graph::{is_mirror, visit_configuration};
pub use policy::{Binding, NoSuchRole, Policy, Role, RoleRef, Subject, account_name};
pub use rule::Rule;

use crate::{
    authn::{MASTERS, User},
    storage::{Key, Storage},
};
use arc_swap::ArcSwap;
use graph::NodeGraph;
use std::{
    collections::HashMap,
    sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError},
};
use tokio::sync::watch;
use yurt_wire::{Reason, RequestInfo, Status, Verb, selector::FieldSelector};

/// How requests are authorized.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AuthorizationMode {
    /// Nodes by what runs on them, everybody by roles.
    #[default]
    NodeAndRbac,
    /// Everybody may do everything. For tests that are about something else.
    AlwaysAllow,
}

/// What somebody wants to do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    /// `get`, `list`, ...; for paths the HTTP method in lower case.
    pub verb: String,
    /// API group.
    pub group: String,
    /// Resource, `""` for a path.
    pub resource: String,
    /// Subresource.
    pub subresource: String,
    /// Namespace, `""` for all or none.
    pub namespace: String,
    /// Object name.
    pub name: String,
    /// Path of a request that is not about a resource.
    pub path: String,
    /// The field selector of a list, watch or deletion of a collection.
    pub fields: FieldSelector,
}

/// The verb as authorisation and Status messages name it.
pub fn verb_name(verb: Verb) -> &'static str {
    match verb {
        Verb::Other => "other",
        verb => verb.as_str(),
    }
}

impl Attributes {
    /// What a request wants.
    pub fn of(info: &RequestInfo, method: &http::Method) -> Self {
        if !info.is_resource {
            return Self {
                verb: method.as_str().to_ascii_lowercase(),
                path: info.path.clone(),
                ..Self::default()
            };
        }
        let selects = matches!(info.verb, Verb::List | Verb::Watch | Verb::DeleteCollection);
        let fields = selects
            .then(|| info.query_value("fieldSelector"))
            .flatten()
            .and_then(|text| FieldSelector::parse(&text).ok());
        Self {
            verb: verb_name(info.verb).into(),
            group: info.group.clone(),
            resource: info.resource.clone(),
            subresource: info.subresource.clone(),
            namespace: info.namespace.clone(),
            name: info.name.clone(),
            path: String::new(),
            fields: fields.unwrap_or_default(),
        }
    }
}

/// The answer, with the reason for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Whether it may be done.
    pub allowed: bool,
    /// Why, `""` when there is nothing to say.
    pub reason: String,
}

impl Decision {
    fn allowed(reason: impl Into<String>) -> Self {
        Self {
            allowed: true,
            reason: reason.into(),
        }
    }
    fn no_opinion(reason: impl Into<String>) -> Self {
        Self {
            allowed: false,
            reason: reason.into(),
        }
    }
}

/// What a user may do in a namespace, as `SelfSubjectRulesReview` lists it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rights {
    /// The rules.
    pub rules: Vec<Rule>,
    /// Why there may be more.
    pub incomplete: Option<String>,
}

/// The partition of cluster roles.
pub(crate) static CLUSTER_ROLES: LazyLock<Arc<str>> =
    LazyLock::new(|| "rbac.authorization.k8s.io/clusterroles".into());
static ROLES: LazyLock<Arc<str>> = LazyLock::new(|| "rbac.authorization.k8s.io/roles".into());
static CLUSTER_ROLE_BINDINGS: LazyLock<Arc<str>> =
    LazyLock::new(|| "rbac.authorization.k8s.io/clusterrolebindings".into());
static ROLE_BINDINGS: LazyLock<Arc<str>> =
    LazyLock::new(|| "rbac.authorization.k8s.io/rolebindings".into());

/// Decides over the objects of a storage.
///
/// A decision sees every role and binding that was readable before it began. Roles and bindings are compiled when the
/// first decision after a change needs them; only what changed is read anew.
#[derive(Debug)]
pub struct Authorizer {
    mode: AuthorizationMode,
    storage: Storage,
    /// The newest revision of each partition of [`parts`].
    changed: [watch::Receiver<u64>; 4],
    compiled: ArcSwap<Compiled>,
    parsed: Mutex<Parsed>,
    graph: NodeGraph,
}

/// A policy and what it was made of.
#[derive(Debug, Default)]
struct Compiled {
    /// Revisions of the partitions; `None` before the first compilation.
    of: Option<[u64; 4]>,
    policy: Policy,
}

/// Objects as values, with the revision they were read at.
#[derive(Debug, Default)]
struct Parsed {
    roles: [HashMap<Key, (u64, Role)>; 2],
    bindings: [HashMap<Key, (u64, Arc<Binding>)>; 2],
}

/// The partitions a policy is made of: roles, then bindings.
fn parts() -> [&'static Arc<str>; 4] {
    [
        &CLUSTER_ROLES,
        &ROLES,
        &CLUSTER_ROLE_BINDINGS,
        &ROLE_BINDINGS,
    ]
}

impl Authorizer {
    /// An authorizer over the objects of a storage.
    pub fn new(mode: AuthorizationMode, storage: Storage) -> Self {
        Self {
            mode,
            changed: parts().map(|part| storage.partition(part).subscribe()),
            graph: NodeGraph::new(&storage),
            storage,
            compiled: ArcSwap::default(),
            parsed: Mutex::default(),
        }
    }

    /// Whether `user` may do it.
    pub fn decide(&self, user: &User, what: &Attributes) -> Decision {
        if self.mode == AuthorizationMode::AlwaysAllow || user.in_group(MASTERS) {
            return Decision::allowed("");
        }
        let mut reasons = Vec::new();
        if user.is_node() {
            let decision = match user.node() {
                Some(node) => node::decide(node, what, &self.graph.of(&self.storage)),
                None => Decision::no_opinion(format!("unknown node for user {:?}", user.name)),
            };
            if decision.allowed {
                return decision;
            }
            reasons.push(decision.reason);
        }
        let decision = self.policy().policy.decide(user, what);
        if decision.allowed {
            return decision;
        }
        reasons.push(decision.reason);
        reasons.retain(|reason| !reason.is_empty());
        Decision::no_opinion(reasons.join("\n"))
    }

    /// What `user` may do in a namespace (`""`: everywhere).
    pub fn rights(&self, user: &User, namespace: &str) -> Rights {
        if self.mode == AuthorizationMode::AlwaysAllow || user.in_group(MASTERS) {
            return Rights {
                rules: Rule::everything().into(),
                incomplete: None,
            };
        }
        let compiled = self.policy();
        let (rules, errors) = compiled.policy.rules_of(user, namespace);
        let mut errors: Vec<String> = errors.iter().map(ToString::to_string).collect();
        if user.is_node() {
            errors.push("node authorizer does not support user rule resolution".into());
        }
        Rights {
            rules: rules.into_iter().cloned().collect(),
            incomplete: (!errors.is_empty()).then(|| errors.join(", ")),
        }
    }

    /// The rules of a role that a binding in `namespace` refers to.
    pub fn role(&self, namespace: &str, role: &RoleRef) -> Result<Arc<[Rule]>, NoSuchRole> {
        self.policy().policy.role(namespace, role)
    }

    /// The policy as of now.
    fn policy(&self) -> Arc<Compiled> {
        let now = || self.changed.each_ref().map(|changed| *changed.borrow());
        let compiled = self.compiled.load();
        if compiled.of == Some(now()) {
            return arc_swap::Guard::into_inner(compiled);
        }
        drop(compiled);
        let mut parsed = self.lock_parsed();
        // Read before the objects: a change in between is seen again the next time.
        let of = now();
        let compiled = self.compiled.load_full();
        if compiled.of == Some(of) {
            return compiled;
        }
        let [cluster_roles, roles, cluster_bindings, bindings] = parts();
        for (known, part) in parsed.roles.iter_mut().zip([cluster_roles, roles]) {
            refresh(&self.storage, part, known, Role::of);
        }
        for (known, part) in parsed.bindings.iter_mut().zip([cluster_bindings, bindings]) {
            refresh(&self.storage, part, known, |namespace, name, object| {
                Arc::new(Binding::of(namespace, name, object))
            });
        }
        let policy = Policy::new(
            parsed
                .roles
                .iter()
                .flat_map(HashMap::values)
                .map(|(_, r)| r),
            parsed
                .bindings
                .iter()
                .flat_map(HashMap::values)
                .map(|(_, b)| b),
        );
        let compiled = Arc::new(Compiled {
            of: Some(of),
            policy,
        });
        self.compiled.store(compiled.clone());
        compiled
    }

    fn lock_parsed(&self) -> MutexGuard<'_, Parsed> {
        self.parsed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Brings parsed objects up to date with a partition.
fn refresh<T>(
    storage: &Storage,
    partition: &Arc<str>,
    known: &mut HashMap<Key, (u64, T)>,
    parse: impl Fn(&str, &str, &serde_json::Value) -> T,
) {
    let (objects, _) = storage.list(partition, "", None);
    let mut before = std::mem::take(known);
    for object in objects {
        let parsed = match before.remove(&object.key) {
            Some((revision, parsed)) if revision == object.revision => parsed,
            _ => parse(&object.key.namespace, &object.key.name, &object.value()),
        };
        known.insert(object.key.clone(), (object.revision, parsed));
    }
}

/// What acting as `other` asks for: each part of the identity is lent separately.
pub fn impersonation(other: &User) -> Vec<Attributes> {
    const AUTHENTICATION: &str = "authentication.k8s.io";
    let ask = |group: &str, resource: &str, name: &str| Attributes {
        verb: "impersonate".into(),
        group: group.into(),
        resource: resource.into(),
        name: name.into(),
        ..Attributes::default()
    };
    let account = other.name.strip_prefix("system:serviceaccount:");
    let mut asked = vec![match account.and_then(|account| account.split_once(':')) {
        Some((namespace, name)) => Attributes {
            namespace: namespace.into(),
            ..ask("", "serviceaccounts", name)
        },
        None => ask("", "users", &other.name),
    }];
    asked.extend(other.groups.iter().map(|group| ask("", "groups", group)));
    for (key, values) in &other.extra {
        asked.extend(values.iter().map(|value| Attributes {
            subresource: key.clone(),
            ..ask(AUTHENTICATION, "userextras", value)
        }));
    }
    if !other.uid.is_empty() {
        asked.push(ask(AUTHENTICATION, "uids", &other.uid));
    }
    asked
}

/// The 403 that kube-apiserver sends.
pub fn forbidden(user: &User, what: &Attributes, reason: &str) -> Box<Status> {
    let because = if reason.is_empty() {
        String::new()
    } else {
        format!(": {reason}")
    };
    if what.resource.is_empty() {
        let message = format!(
            "forbidden: User \"{user}\" cannot {} path \"{}\"{because}",
            what.verb, what.path
        );
        return Box::new(Status::new(Reason::Forbidden, message));
    }
    let resource = if what.subresource.is_empty() {
        what.resource.clone()
    } else {
        format!("{}/{}", what.resource, what.subresource)
    };
    let scope = if what.namespace.is_empty() {
        "at the cluster scope".to_owned()
    } else {
        format!("in the namespace \"{}\"", what.namespace)
    };
    let why = format!(
        "User \"{user}\" cannot {} resource \"{resource}\" in API group \"{}\" {scope}{because}",
        what.verb, what.group
    );
    Box::new(Status::forbidden(
        &what.group,
        &what.resource,
        &what.name,
        &why,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list_pods() -> Attributes {
        Attributes {
            verb: "list".into(),
            resource: "pods".into(),
            namespace: "default".into(),
            ..Attributes::default()
        }
    }

    #[test]
    fn the_refusal_reads_as_that_of_kubernetes() {
        assert_eq!(
            forbidden(&User::anonymous(), &list_pods(), "").message,
            "pods is forbidden: User \"system:anonymous\" cannot list resource \"pods\" in API group \"\" in the namespace \"default\""
        );
        let scale = Attributes {
            verb: "patch".into(),
            group: "apps".into(),
            resource: "deployments".into(),
            subresource: "scale".into(),
            name: "d".into(),
            ..Attributes::default()
        };
        assert_eq!(
            forbidden(&User::new("a", &[]), &scale, "RBAC: x").message,
            "deployments.apps \"d\" is forbidden: User \"a\" cannot patch resource \"deployments/scale\" in API group \"apps\" at the cluster scope: RBAC: x"
        );
    }

    #[test]
    fn each_part_of_an_identity_is_lent_separately() {
        let mut other = User::new("system:serviceaccount:ns:robot", &["g"]);
        other.groups.retain(|group| group == "g");
        other.uid = "u".into();
        other.extra.insert("scopes".into(), vec!["a".into()]);
        let asked: Vec<String> = impersonation(&other)
            .iter()
            .map(|a| {
                format!(
                    "{}/{} {}/{} {}",
                    a.group, a.resource, a.subresource, a.namespace, a.name
                )
            })
            .collect();
        assert_eq!(
            asked,
            [
                "/serviceaccounts /ns robot",
                "/groups / g",
                "authentication.k8s.io/userextras scopes/ a",
                "authentication.k8s.io/uids / u"
            ]
        );
    }
}
