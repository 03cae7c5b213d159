//! Nobody grants more than he holds: roles and bindings are checked against the rules of who writes them.

use super::{Registry, Reply, Target};
use crate::{
    authn::MASTERS,
    authz::{Attributes, RoleRef, Rule, escalation},
    meta,
};
use serde_json::Value;
use yurt_wire::Status;

const GROUP: &str = "rbac.authorization.k8s.io";

impl Registry {
    /// Refuses roles and bindings that give away what their writer does not hold himself. `live` is the object before
    /// the write, if there is one; other kinds pass.
    pub(super) fn check_grant(
        &self,
        target: &Target,
        live: Option<&Value>,
        object: &Value,
    ) -> Reply<()> {
        if target.resource.group != GROUP || target.user.in_group(MASTERS) {
            return Ok(());
        }
        if live.is_some_and(|live| only_owners_differ(live, object)) {
            return Ok(());
        }
        if target.resource.plural.ends_with("bindings") {
            self.check_binding(target, object)
        } else {
            self.check_role(target, live, object)
        }
    }

    fn may(&self, target: &Target, verb: &str, resource: &str, name: &str) -> bool {
        let what = Attributes {
            verb: verb.into(),
            group: GROUP.into(),
            resource: resource.into(),
            namespace: target.namespace.clone(),
            name: name.into(),
            ..Attributes::default()
        };
        self.authorizer.decide(&target.user, &what).allowed
    }

    fn check_role(&self, target: &Target, live: Option<&Value>, role: &Value) -> Reply<()> {
        if self.may(target, "escalate", &target.resource.plural, &target.name) {
            return Ok(());
        }
        let forbidden = |why: &str| {
            let plural = &target.resource.plural;
            Box::new(Status::forbidden(GROUP, plural, meta::name(role), why))
        };
        self.confirm(target, &Rule::list(&role["rules"]))
            .map_err(|why| forbidden(&why))?;
        // Who chooses roles by labels decides over rules that are not written yet.
        let aggregates = |role: &Value| role["aggregationRule"]["clusterRoleSelectors"].is_array();
        if aggregates(role) || live.is_some_and(aggregates) {
            self.confirm(target, &Rule::everything()).map_err(|_| {
                forbidden("must have cluster-admin privileges to use the aggregationRule")
            })?;
        }
        Ok(())
    }

    fn check_binding(&self, target: &Target, binding: &Value) -> Reply<()> {
        let role = RoleRef::of(binding);
        let resource = match role.kind.as_str() {
            "Role" => "roles",
            "ClusterRole" => "clusterroles",
            // For validation to refuse.
            _ => return Ok(()),
        };
        if self.may(target, "bind", resource, &role.name) {
            return Ok(());
        }
        let rules = self
            .authorizer
            .role(&target.namespace, &role)
            .map_err(|_| {
                let kind = role.kind.to_ascii_lowercase();
                Box::new(Status::not_found(GROUP, &kind, &role.name))
            })?;
        self.confirm(target, &rules).map_err(|why| {
            let plural = &target.resource.plural;
            Box::new(Status::forbidden(GROUP, plural, meta::name(binding), &why))
        })
    }

    /// Whether the writer holds all of these rules; otherwise which he lacks.
    fn confirm(&self, target: &Target, rules: &[Rule]) -> Result<(), String> {
        let held = self.authorizer.rights(&target.user, &target.namespace);
        let held_rules: Vec<&Rule> = held.rules.iter().collect();
        let missing = escalation::missing(&held_rules, rules);
        if missing.is_empty() {
            return Ok(());
        }
        let mut why = escalation::refusal(&target.user, missing);
        if let Some(incomplete) = held.incomplete {
            why.push_str(&format!("; resolution errors: [{incomplete}]"));
        }
        Err(why)
    }
}

/// Whether nothing but what the garbage collector writes differs.
fn only_owners_differ(live: &Value, new: &Value) -> bool {
    let rest = |object: &Value| {
        let mut object = object.clone();
        for field in [
            "finalizers",
            "ownerReferences",
            "managedFields",
            "resourceVersion",
        ] {
            meta::remove(&mut object, field);
        }
        object
    };
    rest(live) == rest(new)
}
