//! The roles and bindings every Kubernetes cluster begins with, as data, and how stored ones are brought up to date.
//!
//! Names, rules and subjects are those of kube-apiserver 1.36 (`system:*`, the roles for users, the roles of
//! kube-controller-manager's controllers). Rules on resources that are not served here are kept: components ask for
//! them with `SelfSubjectAccessReview`, and CRDs or aggregated servers may bring them.

mod controllers;
mod namespaced;
mod roles;

use super::Rule;
use serde_json::{Value, json};

const GROUP: &str = "rbac.authorization.k8s.io";
/// `"false"` in this annotation keeps the server's hands off an object.
const AUTO_UPDATE: &str = "rbac.authorization.kubernetes.io/autoupdate";

const READ: &str = "get list watch";
const WRITE: &str = "create delete deletecollection patch update";
const READ_WRITE: &str = "create delete deletecollection get list patch update watch";
const READ_UPDATE: &str = "get list patch update watch";

/// One line of a role. Words are separated by spaces; the core group is written `core`.
#[derive(Clone, Copy)]
enum Row {
    /// Verbs, groups, resources.
    On(&'static str, &'static str, &'static str),
    /// Verbs, groups, resources, names.
    Named(&'static str, &'static str, &'static str, &'static str),
    /// Verbs, paths.
    Urls(&'static str, &'static str),
}
use Row::{Named, On, Urls};

/// Every component reports events.
const EVENTS: Row = On("create patch update", "core events.k8s.io", "events");

impl Row {
    fn rule(self) -> Rule {
        let words = |text: &str| {
            let mut words: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
            words.sort();
            words
        };
        let groups = |text: &str| {
            let group = |group: &str| if group == "core" { "" } else { group }.to_owned();
            let mut groups: Vec<String> = text.split_whitespace().map(group).collect();
            groups.sort();
            groups
        };
        match self {
            On(verbs, of, resources) => Rule {
                verbs: words(verbs),
                groups: groups(of),
                resources: words(resources),
                ..Rule::default()
            },
            Named(verbs, groups, resources, names) => Rule {
                names: words(names),
                ..On(verbs, groups, resources).rule()
            },
            Urls(verbs, urls) => Rule {
                verbs: words(verbs),
                urls: words(urls),
                ..Rule::default()
            },
        }
    }
}

/// A `ClusterRole`: name, the role it is aggregated into (`""` for none), rules.
struct ClusterRole(&'static str, &'static str, &'static [Row]);

/// Who a binding is for.
#[derive(Clone, Copy)]
enum To {
    User(&'static str),
    Group(&'static str),
    /// A service account of `kube-system`.
    Account(&'static str),
}

impl To {
    fn json(self) -> Value {
        match self {
            Self::User(name) => json!({"apiGroup": GROUP, "kind": "User", "name": name}),
            Self::Group(name) => json!({"apiGroup": GROUP, "kind": "Group", "name": name}),
            Self::Account(name) => {
                json!({"kind": "ServiceAccount", "name": name, "namespace": "kube-system"})
            }
        }
    }
}

/// The rules that hold for every node.
pub(super) fn node_rules() -> Vec<Rule> {
    roles::NODE.iter().map(|row| row.rule()).collect()
}

fn object(kind: &str, namespace: &str, name: &str, label: &str) -> Value {
    let mut object = json!({"apiVersion": format!("{GROUP}/v1"), "kind": kind, "metadata": {
        "name": name,
        "labels": {"kubernetes.io/bootstrapping": "rbac-defaults"},
        "annotations": {AUTO_UPDATE: "true"}}});
    if !namespace.is_empty() {
        object["metadata"]["namespace"] = namespace.into();
    }
    if !label.is_empty() {
        object["metadata"]["labels"][label] = "true".into();
    }
    object
}

fn rules(rows: &[Row]) -> Value {
    rows.iter().map(|row| row.rule().to_json()).collect()
}

fn cluster_role(ClusterRole(name, aggregated, rows): &ClusterRole) -> Value {
    let label = match *aggregated {
        "" => String::new(),
        role => format!("{GROUP_LABEL}{role}"),
    };
    let mut role = object("ClusterRole", "", name, &label);
    if roles::AGGREGATED.contains(name) {
        let label = format!("{GROUP_LABEL}{name}");
        role["aggregationRule"] =
            json!({"clusterRoleSelectors": [{"matchLabels": {label: "true"}}]});
    } else {
        role["rules"] = rules(rows);
    }
    role
}

/// Labels say which role a role is aggregated into.
const GROUP_LABEL: &str = "rbac.authorization.k8s.io/aggregate-to-";

fn binding(kind: &str, namespace: &str, name: &str, of: (&str, &str), to: &[To]) -> Value {
    let mut binding = object(kind, namespace, name, "");
    binding["roleRef"] = json!({"apiGroup": GROUP, "kind": of.0, "name": of.1});
    if !to.is_empty() {
        binding["subjects"] = to.iter().map(|to| to.json()).collect();
    }
    binding
}

/// All objects, roles before bindings, with the plural of their resource.
pub(crate) fn objects() -> Vec<(&'static str, Value)> {
    let mut objects = Vec::new();
    let roles = roles::ROLES.iter().chain(controllers::ROLES);
    objects.extend(roles.map(|role| ("clusterroles", cluster_role(role))));
    for (namespace, name, rows) in namespaced::ROLES {
        let mut role = object("Role", namespace, name, "");
        role["rules"] = rules(rows);
        objects.push(("roles", role));
    }
    for (name, to) in roles::BINDINGS {
        let of = ("ClusterRole", *name);
        objects.push((
            "clusterrolebindings",
            binding("ClusterRoleBinding", "", name, of, to),
        ));
    }
    for ClusterRole(name, ..) in controllers::ROLES {
        let account = name.strip_prefix(controllers::PREFIX).unwrap_or(name);
        let of = ("ClusterRole", *name);
        objects.push((
            "clusterrolebindings",
            binding("ClusterRoleBinding", "", name, of, &[To::Account(account)]),
        ));
    }
    for (namespace, name, role, to) in namespaced::BINDINGS {
        objects.push((
            "rolebindings",
            binding("RoleBinding", namespace, name, ("Role", role), to),
        ));
    }
    objects
}

/// What is to be done about a stored object.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Reconciled {
    /// Nothing.
    Keep,
    /// It gets what it lacks.
    Update(Value),
    /// It refers to another role, which cannot be changed: it is made anew.
    Recreate(Value),
}

/// Brings a stored object up to date: what the wanted one has and it lacks is added; what somebody added stays.
pub(crate) fn reconcile(stored: &Value, wanted: &Value) -> Reconciled {
    if stored["metadata"]["annotations"][AUTO_UPDATE] == "false" {
        return Reconciled::Keep;
    }
    if wanted.get("roleRef").is_some() && stored["roleRef"] != wanted["roleRef"] {
        return Reconciled::Recreate(wanted.clone());
    }
    let mut object = stored.clone();
    for field in ["labels", "annotations"] {
        for (key, value) in wanted["metadata"][field].as_object().into_iter().flatten() {
            if object["metadata"][field].get(key).is_none() {
                object["metadata"][field][key] = value.clone();
            }
        }
    }
    for field in ["rules", "subjects"] {
        let wanted = wanted[field]
            .as_array()
            .map(Vec::as_slice)
            .unwrap_or_default();
        let held = Rule::list(&stored[field]);
        let held: Vec<&Rule> = held.iter().collect();
        for item in wanted {
            let present = if field == "rules" {
                super::escalation::missing(&held, &[Rule::from_json(item)]).is_empty()
            } else {
                let subjects = stored[field].as_array();
                subjects.is_some_and(|subjects| subjects.iter().any(|s| same_subject(s, item)))
            };
            if present {
                continue;
            }
            match &mut object[field] {
                Value::Array(list) => list.push(item.clone()),
                list => *list = json!([item]),
            }
        }
    }
    if let Some(rule) = wanted.get("aggregationRule")
        && stored.get("aggregationRule").is_none_or(Value::is_null)
    {
        object["aggregationRule"] = rule.clone();
    }
    if object == *stored {
        Reconciled::Keep
    } else {
        Reconciled::Update(object)
    }
}

fn same_subject(a: &Value, b: &Value) -> bool {
    ["kind", "name", "namespace"].iter().all(|field| {
        a[*field].as_str().unwrap_or_default() == b[*field].as_str().unwrap_or_default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn every_object_has_a_name_of_its_own_and_every_binding_a_role() {
        let objects = objects();
        let key = |plural: &str, object: &Value| {
            let metadata = &object["metadata"];
            format!("{plural} {} {}", metadata["namespace"], metadata["name"])
        };
        let names: HashSet<String> = objects.iter().map(|(p, o)| key(p, o)).collect();
        assert_eq!(names.len(), objects.len());
        for (plural, binding) in &objects {
            let role = &binding["roleRef"]["name"];
            let found = match *plural {
                "clusterrolebindings" => names.contains(&format!("clusterroles null {role}")),
                "rolebindings" => {
                    let namespace = &binding["metadata"]["namespace"];
                    names.contains(&format!("roles {namespace} {role}"))
                }
                _ => true,
            };
            assert!(found, "{role}");
        }
    }

    #[test]
    fn a_row_is_a_rule_in_kubernetes_order() {
        assert_eq!(
            On("watch get", "events.k8s.io core", "pods/log pods")
                .rule()
                .to_json(),
            json!({"apiGroups": ["", "events.k8s.io"], "resources": ["pods", "pods/log"], "verbs": ["get", "watch"]})
        );
    }

    #[test]
    fn reconciling_adds_and_never_takes() {
        let wanted = cluster_role(&ClusterRole(
            "r",
            "",
            &[On(READ, "core", "pods"), On("get", "core", "nodes")],
        ));
        assert_eq!(reconcile(&wanted, &wanted), Reconciled::Keep);
        let mut stored = wanted.clone();
        stored["metadata"]["labels"] = json!({"own": "label"});
        stored["rules"] =
            json!([{"apiGroups": ["", "apps"], "resources": ["pods"], "verbs": ["*"]}]);
        let Reconciled::Update(updated) = reconcile(&stored, &wanted) else {
            panic!("it lacks something");
        };
        assert_eq!(updated["rules"].as_array().map(Vec::len), Some(2));
        assert_eq!(updated["rules"][0], stored["rules"][0]);
        assert_eq!(updated["rules"][1]["resources"], json!(["nodes"]));
        assert_eq!(updated["metadata"]["labels"]["own"], "label");
        assert_eq!(reconcile(&updated, &wanted), Reconciled::Keep);
        stored["metadata"]["annotations"][AUTO_UPDATE] = "false".into();
        assert_eq!(reconcile(&stored, &wanted), Reconciled::Keep);
    }

    #[test]
    fn a_binding_to_another_role_is_made_anew_and_lost_subjects_come_back() {
        let wanted = binding(
            "ClusterRoleBinding",
            "",
            "b",
            ("ClusterRole", "r"),
            &[To::Group("g")],
        );
        let mut stored = wanted.clone();
        stored["subjects"] = json!([{"kind": "User", "name": "own"}]);
        let Reconciled::Update(updated) = reconcile(&stored, &wanted) else {
            panic!("it lacks something");
        };
        assert_eq!(updated["subjects"].as_array().map(Vec::len), Some(2));
        stored["roleRef"]["name"] = "other".into();
        assert_eq!(reconcile(&stored, &wanted), Reconciled::Recreate(wanted));
    }
}
