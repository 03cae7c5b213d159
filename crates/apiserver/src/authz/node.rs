//! What a kubelet may do: its own Node, Lease and CSINode, the pods bound to it, and what those refer to. Pure.

use super::{Attributes, Decision, Rule, bootstrap_policy};
use std::sync::LazyLock;

/// What a node's pods can refer to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum Kind {
    ConfigMap,
    PersistentVolume,
    PersistentVolumeClaim,
    Pod,
    ResourceClaim,
    ResourceSlice,
    Secret,
    ServiceAccount,
    VolumeAttachment,
}

/// What is known of the objects around a node.
pub trait Relations {
    /// Whether the node has to do with this object: `node <- pod <- secret`, `node <- pod <- claim <- volume`, ...
    fn related(&self, node: &str, kind: Kind, namespace: &str, name: &str) -> bool;
}

/// Nodes keep their leases here.
pub(crate) const LEASES: &str = "kube-node-lease";

static RULES: LazyLock<Vec<Rule>> = LazyLock::new(bootstrap_policy::node_rules);

/// Whether the node called `node` may do it.
pub fn decide(node: &str, what: &Attributes, relations: &dyn Relations) -> Decision {
    let Attributes {
        verb,
        namespace,
        name,
        subresource,
        ..
    } = what;
    let (verb, plain) = (verb.as_str(), subresource.is_empty());
    let no = |why: &str| Decision::no_opinion(why);
    let yes = || Decision::allowed("");
    let related = |kind| {
        if name.is_empty() {
            no("No Object name found")
        } else if relations.related(node, kind, namespace, name) {
            yes()
        } else {
            Decision::no_opinion(format!(
                "no relationship found between node '{node}' and this object"
            ))
        }
    };
    let get = |kind| match verb {
        "get" if plain => related(kind),
        "get" => no("cannot get subresource"),
        _ => no("can only get individual resources of this type"),
    };
    let read = |kind| match verb {
        "get" | "list" | "watch" if !plain => no("cannot read subresource"),
        "get" | "list" | "watch" if namespace.is_empty() => {
            no("can only read namespaced object of this type")
        }
        "get" | "list" | "watch" => related(kind),
        _ => no("can only read resources of this type"),
    };
    let own = |of_kind: &str| match verb {
        "create" => yes(),
        "get" | "update" | "patch" | "delete" if name == node => yes(),
        "get" | "update" | "patch" | "delete" => Decision::no_opinion(format!(
            "can only access {of_kind} with the same name as the requesting node"
        )),
        _ => Decision::no_opinion(format!(
            "can only get, create, update, patch, or delete a {of_kind}"
        )),
    };
    let selects = |field: &str| what.fields.exact(field) == Some(node);
    match (what.group.as_str(), what.resource.as_str()) {
        ("", "secrets") => read(Kind::Secret),
        ("", "configmaps") => read(Kind::ConfigMap),
        ("", "persistentvolumeclaims") if subresource == "status" => match verb {
            "update" | "patch" => related(Kind::PersistentVolumeClaim),
            _ => no("can only get/update/patch this type"),
        },
        ("", "persistentvolumeclaims") => get(Kind::PersistentVolumeClaim),
        ("", "persistentvolumes") => get(Kind::PersistentVolume),
        ("resource.k8s.io", "resourceclaims") => get(Kind::ResourceClaim),
        ("storage.k8s.io", "volumeattachments") => get(Kind::VolumeAttachment),
        ("", "serviceaccounts") if verb == "get" && plain => related(Kind::ServiceAccount),
        ("", "serviceaccounts") if verb != "create" || name.is_empty() => {
            no("can only create tokens for individual service accounts")
        }
        ("", "serviceaccounts") if subresource != "token" => {
            no("can only create token subresource of serviceaccount")
        }
        ("", "serviceaccounts") => related(Kind::ServiceAccount),
        ("coordination.k8s.io", "leases") if namespace != LEASES => Decision::no_opinion(format!(
            "can only access leases in the {LEASES:?} system namespace"
        )),
        ("coordination.k8s.io", "leases") => own("node lease"),
        ("storage.k8s.io", "csinodes") if !plain => no("cannot authorize CSINode subresources"),
        ("storage.k8s.io", "csinodes") => own("CSINode"),
        ("resource.k8s.io", "resourceslices") if !plain => {
            no("cannot authorize ResourceSlice subresources")
        }
        // Whose it is stands in the object: NodeRestriction looks at it.
        ("resource.k8s.io", "resourceslices") => match verb {
            "create" => yes(),
            "get" | "update" | "patch" | "delete" => related(Kind::ResourceSlice),
            "watch" | "list" | "deletecollection" if selects("spec.nodeName") => yes(),
            "watch" | "list" | "deletecollection" => no(
                "can only list/watch/deletecollection resourceslices with nodeName field selector",
            ),
            _ => no(
                "only the following verbs are allowed for a ResourceSlice: get, watch, list, create, update, patch, delete, deletecollection",
            ),
        },
        ("", "nodes") => match (subresource.as_str(), verb) {
            ("", "create" | "update" | "patch") | ("status", "update" | "patch") => yes(),
            ("", "get" | "list" | "watch") if name == node => yes(),
            ("", "get" | "list" | "watch") if name.is_empty() => Decision::no_opinion(format!(
                "node '{node}' cannot read all nodes, only its own Node object"
            )),
            ("", "get" | "list" | "watch") => Decision::no_opinion(format!(
                "node '{node}' cannot read '{name}', only its own Node object"
            )),
            _ => no(""),
        },
        ("", "pods") => match (subresource.as_str(), verb) {
            ("", "get") => related(Kind::Pod),
            ("", "list" | "watch") if selects("spec.nodeName") => yes(),
            ("", "list" | "watch") if !name.is_empty() => related(Kind::Pod),
            ("", "list" | "watch") => {
                no("can only list/watch pods with spec.nodeName field selector")
            }
            // Only mirror pods, and only its own: NodeRestriction looks at the objects.
            ("", "create" | "delete") | ("status", "update" | "patch") | ("eviction", "create") => {
                yes()
            }
            _ => no(""),
        },
        _ if RULES.iter().any(|rule| rule.allows(what)) => yes(),
        _ => no(""),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use yurt_wire::selector::FieldSelector;

    struct One(Kind, &'static str, &'static str);

    impl Relations for One {
        fn related(&self, node: &str, kind: Kind, namespace: &str, name: &str) -> bool {
            node == "n" && kind == self.0 && namespace == self.1 && name == self.2
        }
    }

    fn ask(verb: &str, resource: &str, namespace: &str, name: &str) -> Attributes {
        let (group, resource) = resource.rsplit_once(':').unwrap_or(("", resource));
        let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
        Attributes {
            verb: verb.into(),
            group: group.into(),
            resource: resource.into(),
            subresource: subresource.into(),
            namespace: namespace.into(),
            name: name.into(),
            ..Attributes::default()
        }
    }

    #[test]
    fn only_what_its_pods_refer_to() {
        let secret = One(Kind::Secret, "a", "s");
        let may = |verb: &str, namespace: &str, name: &str| {
            decide("n", &ask(verb, "secrets", namespace, name), &secret)
        };
        assert!(may("get", "a", "s").allowed && may("watch", "a", "s").allowed);
        assert_eq!(
            may("get", "a", "t").reason,
            "no relationship found between node 'n' and this object"
        );
        assert_eq!(may("list", "a", "").reason, "No Object name found");
        assert_eq!(
            may("list", "", "s").reason,
            "can only read namespaced object of this type"
        );
        assert_eq!(
            may("update", "a", "s").reason,
            "can only read resources of this type"
        );
    }

    #[test]
    fn its_own_node_lease_and_csi_node() {
        let nothing = One(Kind::Pod, "", "");
        let may = |what: &Attributes| decide("n", what, &nothing).allowed;
        for (verb, resource, namespace) in [
            ("get", "nodes", ""),
            ("watch", "nodes", ""),
            ("patch", "nodes/status", ""),
            ("create", "nodes", ""),
            ("update", "coordination.k8s.io:leases", LEASES),
            ("delete", "storage.k8s.io:csinodes", ""),
        ] {
            assert!(
                may(&ask(verb, resource, namespace, "n")),
                "{verb} {resource}"
            );
        }
        for (verb, resource, namespace, name) in [
            ("get", "nodes", "", "m"),
            ("list", "nodes", "", ""),
            ("delete", "nodes", "", "n"),
            ("update", "coordination.k8s.io:leases", LEASES, "m"),
            ("update", "coordination.k8s.io:leases", "kube-system", "n"),
            ("list", "coordination.k8s.io:leases", LEASES, ""),
            ("get", "storage.k8s.io:csinodes", "", "m"),
            ("get", "apps:deployments", "a", "d"),
        ] {
            assert!(
                !may(&ask(verb, resource, namespace, name)),
                "{verb} {resource} {name}"
            );
        }
    }

    #[test]
    fn its_own_pods() {
        let pod = One(Kind::Pod, "a", "p");
        let may = |what: &Attributes| decide("n", what, &pod);
        assert!(may(&ask("get", "pods", "a", "p")).allowed);
        assert!(!may(&ask("get", "pods", "a", "q")).allowed);
        assert!(may(&ask("patch", "pods/status", "a", "p")).allowed);
        assert!(!may(&ask("update", "pods", "a", "p")).allowed);
        assert!(!may(&ask("create", "pods/exec", "a", "p")).allowed);
        let mut list = ask("list", "pods", "", "");
        assert_eq!(
            may(&list).reason,
            "can only list/watch pods with spec.nodeName field selector"
        );
        list.fields = FieldSelector::parse("spec.nodeName=n").expect("a selector");
        assert!(may(&list).allowed);
        list.fields = FieldSelector::parse("spec.nodeName!=n").expect("a selector");
        assert!(!may(&list).allowed);
    }

    #[test]
    fn tokens_of_the_accounts_of_its_pods() {
        let account = One(Kind::ServiceAccount, "a", "robot");
        let may = |verb: &str, resource: &str, name: &str| {
            decide("n", &ask(verb, resource, "a", name), &account).allowed
        };
        assert!(may("create", "serviceaccounts/token", "robot"));
        assert!(may("get", "serviceaccounts", "robot"));
        assert!(!may("create", "serviceaccounts/token", "other"));
        assert!(!may("list", "serviceaccounts", "robot"));
        assert!(!may("create", "serviceaccounts", "robot"));
    }

    #[test]
    fn what_all_nodes_may() {
        let nothing = One(Kind::Pod, "", "");
        assert!(decide("n", &ask("list", "services", "", ""), &nothing).allowed);
        assert!(decide("n", &ask("create", "events", "a", ""), &nothing).allowed);
        assert!(
            decide(
                "n",
                &ask("watch", "node.k8s.io:runtimeclasses", "", ""),
                &nothing
            )
            .allowed
        );
    }
}
