//! Roles and bindings, compiled: who holds which rules. Pure; [`super::Authorizer`] keeps one up to date.

use super::{Attributes, Decision, Rule};
use crate::authn::User;
use serde_json::Value;
use std::{collections::HashMap, fmt, sync::Arc};

/// A `Role` or `ClusterRole`.
#[derive(Clone, Debug)]
pub struct Role {
    /// `""` for a `ClusterRole`.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its rules.
    pub rules: Arc<[Rule]>,
}

/// Who a binding is for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Subject {
    /// A user name.
    User(String),
    /// A group.
    Group(String),
    /// Namespace and name of a service account.
    ServiceAccount(String, String),
}

/// A reference to a role.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RoleRef {
    /// `Role` or `ClusterRole`.
    pub kind: String,
    /// Its name.
    pub name: String,
}

/// A `RoleBinding` or `ClusterRoleBinding`.
#[derive(Clone, Debug)]
pub struct Binding {
    /// `""` for a `ClusterRoleBinding`.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// What it grants.
    pub role: RoleRef,
    /// To whom.
    pub subjects: Vec<Subject>,
}

impl Role {
    /// From a stored object.
    pub fn of(namespace: &str, name: &str, object: &Value) -> Self {
        Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            rules: Rule::list(&object["rules"]).into(),
        }
    }
}

impl RoleRef {
    /// The `roleRef` of a binding.
    pub fn of(binding: &Value) -> Self {
        let text = |field: &str| {
            let text = binding["roleRef"][field].as_str();
            text.unwrap_or_default().to_owned()
        };
        Self {
            kind: text("kind"),
            name: text("name"),
        }
    }
}

impl Binding {
    /// From a stored object. A service account without namespace is one of the binding's.
    pub fn of(namespace: &str, name: &str, object: &Value) -> Self {
        let subject = |subject: &Value| {
            let text = |field: &str| subject[field].as_str().unwrap_or_default().to_owned();
            match text("kind").as_str() {
                "User" => Some(Subject::User(text("name"))),
                "Group" => Some(Subject::Group(text("name"))),
                "ServiceAccount" => {
                    let mut of = text("namespace");
                    if of.is_empty() {
                        namespace.clone_into(&mut of);
                    }
                    (!of.is_empty()).then(|| Subject::ServiceAccount(of, text("name")))
                }
                _ => None,
            }
        };
        let subjects = object["subjects"].as_array().into_iter().flatten();
        Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            role: RoleRef::of(object),
            subjects: subjects.filter_map(subject).collect(),
        }
    }
}

/// A role that a binding or a question names does not exist; says so as kube-apiserver does.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}.rbac.authorization.k8s.io {name:?} not found", kind.to_ascii_lowercase())]
pub struct NoSuchRole {
    /// `Role` or `ClusterRole`.
    pub kind: String,
    /// The name.
    pub name: String,
}

/// What a binding gives to one of its subjects.
#[derive(Clone, Debug)]
struct Grant {
    binding: Arc<Binding>,
    subject: usize,
    rules: Result<Arc<[Rule]>, NoSuchRole>,
}

/// The grants of one namespace (or of the cluster) by subject. Service accounts are listed by their user name.
#[derive(Clone, Debug, Default)]
struct Grants {
    users: HashMap<String, Vec<Grant>>,
    groups: HashMap<String, Vec<Grant>>,
}

impl Grants {
    fn of<'a>(&'a self, user: &User) -> impl Iterator<Item = &'a Grant> {
        let by_name = self.users.get(&user.name);
        let by_group = user.groups.iter().filter_map(|g| self.groups.get(g));
        by_name.into_iter().chain(by_group).flatten()
    }
}

/// All roles and bindings of a cluster at one moment.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    cluster: Grants,
    namespaces: HashMap<String, Grants>,
    roles: HashMap<(String, String), Arc<[Rule]>>,
}

/// The user name of a service account.
pub fn account_name(namespace: &str, name: &str) -> String {
    format!("system:serviceaccount:{namespace}:{name}")
}

impl Policy {
    /// Compiles roles and bindings.
    pub fn new<'a>(
        roles: impl IntoIterator<Item = &'a Role>,
        bindings: impl IntoIterator<Item = &'a Arc<Binding>>,
    ) -> Self {
        let roles = roles
            .into_iter()
            .map(|role| {
                let key = (role.namespace.clone(), role.name.clone());
                (key, role.rules.clone())
            })
            .collect();
        let mut policy = Self {
            roles,
            ..Self::default()
        };
        for binding in bindings {
            let rules = policy.role(&binding.namespace, &binding.role);
            let grants = if binding.namespace.is_empty() {
                &mut policy.cluster
            } else {
                policy
                    .namespaces
                    .entry(binding.namespace.clone())
                    .or_default()
            };
            for (subject, who) in binding.subjects.iter().enumerate() {
                let list = match who {
                    Subject::User(name) => grants.users.entry(name.clone()),
                    Subject::Group(name) => grants.groups.entry(name.clone()),
                    Subject::ServiceAccount(namespace, name) => {
                        grants.users.entry(account_name(namespace, name))
                    }
                };
                list.or_default().push(Grant {
                    binding: binding.clone(),
                    subject,
                    rules: rules.clone(),
                });
            }
        }
        policy
    }

    /// The rules of a role that a binding in `namespace` refers to.
    pub fn role(&self, namespace: &str, role: &RoleRef) -> Result<Arc<[Rule]>, NoSuchRole> {
        let namespace = if role.kind == "Role" { namespace } else { "" };
        let key = (namespace.to_owned(), role.name.clone());
        let found = (role.kind == "ClusterRole" || !namespace.is_empty())
            .then(|| self.roles.get(&key))
            .flatten();
        found.cloned().ok_or_else(|| NoSuchRole {
            kind: role.kind.clone(),
            name: role.name.clone(),
        })
    }

    fn grants<'a>(&'a self, user: &User, namespace: &str) -> impl Iterator<Item = &'a Grant> {
        let local = (!namespace.is_empty())
            .then(|| self.namespaces.get(namespace))
            .flatten();
        let local = local.into_iter().flat_map(|grants| grants.of(user));
        self.cluster.of(user).chain(local)
    }

    /// Whether a role that is bound to the user allows it.
    pub fn decide(&self, user: &User, what: &Attributes) -> Decision {
        let mut errors: Vec<String> = Vec::new();
        for grant in self.grants(user, &what.namespace) {
            match &grant.rules {
                Ok(rules) if rules.iter().any(|rule| rule.allows(what)) => {
                    return Decision::allowed(format!("RBAC: allowed by {grant}"));
                }
                Ok(_) => {}
                Err(error) => {
                    let error = error.to_string();
                    if !errors.contains(&error) {
                        errors.push(error);
                    }
                }
            }
        }
        Decision::no_opinion(match errors.as_slice() {
            [] => String::new(),
            [error] => format!("RBAC: {error}"),
            errors => format!("RBAC: [{}]", errors.join(", ")),
        })
    }

    /// The rules a user holds in a namespace (`""`: everywhere), and what stood in the way of finding more.
    pub fn rules_of(&self, user: &User, namespace: &str) -> (Vec<&Rule>, Vec<&NoSuchRole>) {
        let (mut rules, mut errors) = (Vec::new(), Vec::new());
        for grant in self.grants(user, namespace) {
            match &grant.rules {
                Ok(held) => rules.extend(held.iter()),
                Err(error) if !errors.contains(&error) => errors.push(error),
                Err(_) => {}
            }
        }
        (rules, errors)
    }
}

/// `ClusterRoleBinding "a" of ClusterRole "b" to Group "c"`.
impl fmt::Display for Grant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Binding {
            namespace,
            name,
            role,
            subjects,
        } = &*self.binding;
        if namespace.is_empty() {
            write!(f, "ClusterRoleBinding {name:?}")?;
        } else {
            write!(f, "RoleBinding \"{name}/{namespace}\"")?;
        }
        write!(f, " of {} {:?} to ", role.kind, role.name)?;
        match subjects.get(self.subject) {
            Some(Subject::User(name)) => write!(f, "User {name:?}"),
            Some(Subject::Group(name)) => write!(f, "Group {name:?}"),
            Some(Subject::ServiceAccount(namespace, name)) => {
                write!(f, "ServiceAccount \"{name}/{namespace}\"")
            }
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn policy() -> Policy {
        let read = json!({"rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list"]}]});
        let roles = [
            Role::of("", "reader", &read),
            Role::of("a", "reader", &read),
        ];
        let bind = |namespace: &str, name: &str, kind: &str, role: &str, subjects: Value| {
            let object = json!({"roleRef": {"kind": kind, "name": role}, "subjects": subjects});
            Arc::new(Binding::of(namespace, name, &object))
        };
        let bindings = [
            bind(
                "",
                "all",
                "ClusterRole",
                "reader",
                json!([{"kind": "Group", "name": "ops"}]),
            ),
            bind(
                "a",
                "own",
                "Role",
                "reader",
                json!([
                {"kind": "User", "name": "jane"}, {"kind": "ServiceAccount", "name": "robot"}]),
            ),
            bind(
                "b",
                "lent",
                "ClusterRole",
                "reader",
                json!([
                {"kind": "ServiceAccount", "name": "robot", "namespace": "a"}]),
            ),
            bind(
                "b",
                "lost",
                "Role",
                "reader",
                json!([{"kind": "User", "name": "jane"}]),
            ),
        ];
        Policy::new(&roles, &bindings)
    }

    fn list_pods(namespace: &str) -> Attributes {
        Attributes {
            verb: "list".into(),
            resource: "pods".into(),
            namespace: namespace.into(),
            ..Attributes::default()
        }
    }

    #[test]
    fn a_binding_counts_in_its_namespace() {
        let policy = policy();
        let allowed = |user: &User, namespace: &str| policy.decide(user, &list_pods(namespace));
        let ops = User::new("o", &["ops"]);
        assert_eq!(
            allowed(&ops, "").reason,
            "RBAC: allowed by ClusterRoleBinding \"all\" of ClusterRole \"reader\" to Group \"ops\""
        );
        assert!(allowed(&ops, "b").allowed);
        let jane = User::new("jane", &[]);
        assert_eq!(
            allowed(&jane, "a").reason,
            "RBAC: allowed by RoleBinding \"own/a\" of Role \"reader\" to User \"jane\""
        );
        assert!(!allowed(&jane, "").allowed && !allowed(&jane, "c").allowed);
        let robot = User::new("system:serviceaccount:a:robot", &[]);
        assert!(allowed(&robot, "a").allowed && allowed(&robot, "b").allowed);
        assert!(!allowed(&robot, "c").allowed);
    }

    #[test]
    fn a_role_that_is_missing_is_named() {
        let refused = policy().decide(&User::new("jane", &[]), &list_pods("b"));
        assert!(!refused.allowed);
        assert_eq!(
            refused.reason,
            "RBAC: role.rbac.authorization.k8s.io \"reader\" not found"
        );
    }

    #[test]
    fn subjects_of_unknown_kind_get_nothing() {
        let object = json!({"roleRef": {"kind": "ClusterRole", "name": "reader"},
            "subjects": [{"kind": "Robot", "name": "x"}, {"kind": "ServiceAccount", "name": "y"}]});
        assert!(Binding::of("", "b", &object).subjects.is_empty());
    }
}
