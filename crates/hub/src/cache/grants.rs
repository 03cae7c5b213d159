//! Who may read what while the cloud cannot be asked (design rule R4). Pure.
//!
//! Two sources: what the cloud answered to a caller before (observed), and for bearers the rules of a SelfSubjectRulesReview.
//! The node's own grants keep their selectors, because the node authorizer decides by them (`spec.nodeName=…`); RBAC, which
//! decides for bearers, knows only resource, namespace and name.

use crate::{caller::Caller, query::Query};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::{BTreeMap, HashMap};
use yurt_wire::{
    Gvr, Object,
    selector::{FieldSelector, LabelSelector},
};

/// Grants kept for one caller; beyond it new ones are not remembered (reading offline then needs a rule).
pub(crate) const MAX_GRANTS: usize = 4096;
/// Bearers kept; beyond it the one that was seen longest ago is forgotten.
pub(crate) const MAX_BEARERS: usize = 256;
const MAX_RULES: usize = 1024;

/// One rule of a SelfSubjectRulesReview.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Rule {
    verbs: Vec<String>,
    api_groups: Vec<String>,
    resources: Vec<String>,
    resource_names: Vec<String>,
}

fn holds(list: &[String], wanted: &str) -> bool {
    list.iter().any(|item| item == "*" || item == wanted)
}

impl Rule {
    fn allows(&self, verb: &str, gvr: &Gvr, name: Option<&str>) -> bool {
        holds(&self.verbs, verb)
            && holds(&self.api_groups, &gvr.group)
            && holds(&self.resources, &gvr.resource)
            && (self.resource_names.is_empty()
                || name.is_some_and(|name| self.resource_names.iter().any(|n| n == name)))
    }
}

/// The rules of a SelfSubjectRulesReview's status; `None` when it is incomplete in a way that leaves nothing to go by.
pub(crate) fn parse_rules(status: &Value) -> Vec<Rule> {
    status
        .get("resourceRules")
        .and_then(Value::as_array)
        .map(|rules| {
            rules
                .iter()
                .take(MAX_RULES)
                .filter_map(|rule| serde_json::from_value(rule.clone()).ok())
                .collect()
        })
        .unwrap_or_default()
}

/// What is known of a bearer, as stored.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Bearer {
    /// Rules by namespace; those that hold everywhere under `""`.
    #[serde(default)]
    pub(crate) rules: BTreeMap<String, Vec<Rule>>,
    /// Grows with every bearer accepted; the smallest is forgotten first.
    #[serde(default)]
    pub(crate) seen: u64,
}

/// A bearer that had to make room, and its grants.
pub(crate) type Forgotten = (Caller, Vec<Query>);

/// All grants.
#[derive(Debug, Default)]
pub(crate) struct Grants {
    observed: HashMap<Caller, HashMap<Gvr, Vec<Query>>>,
    counts: HashMap<Caller, usize>,
    bearers: HashMap<Caller, Bearer>,
    clock: u64,
}

impl Grants {
    /// What of a query a caller's successful read proves.
    pub(crate) fn of_read(caller: &Caller, query: &Query) -> Query {
        match caller {
            Caller::Node => query.clone(),
            Caller::Peer(_) | Caller::User(_) | Caller::Bearer(_) => match query.name() {
                Some(name) => Query::named(query.gvr.clone(), &query.namespace, name),
                None => Query {
                    labels: LabelSelector::default(),
                    fields: FieldSelector::default(),
                    ..query.clone()
                },
            },
        }
    }

    /// Remembers a grant ([`Grants::of_read`]); `false` when it adds nothing or there is no room.
    pub(crate) fn observe(&mut self, caller: &Caller, grant: &Query) -> bool {
        let count = self.counts.entry(caller.clone()).or_default();
        let known = self
            .observed
            .entry(caller.clone())
            .or_default()
            .entry(grant.gvr.clone())
            .or_default();
        if known.iter().any(|have| have.covers(grant)) || *count >= MAX_GRANTS {
            return false;
        }
        known.push(grant.clone());
        *count += 1;
        true
    }

    /// The cloud refused a read: what was granted within it is granted no more. Gives the grants taken back.
    pub(crate) fn revoke(&mut self, caller: &Caller, query: &Query) -> Vec<Query> {
        let Some(known) = self
            .observed
            .get_mut(caller)
            .and_then(|of| of.get_mut(&query.gvr))
        else {
            return Vec::new();
        };
        let grant = Self::of_read(caller, query);
        let (gone, kept) = std::mem::take(known)
            .into_iter()
            .partition(|have: &Query| have.covers(&grant));
        *known = kept;
        if let Some(count) = self.counts.get_mut(caller) {
            *count = count.saturating_sub(Vec::len(&gone));
        }
        gone
    }

    /// A bearer that the cloud accepted. Gives its record and the bearer that had to make room.
    pub(crate) fn accept(&mut self, caller: &Caller) -> Option<(Bearer, Option<Forgotten>)> {
        if matches!(caller, Caller::Node) || self.bearers.contains_key(caller) {
            return None;
        }
        self.clock += 1;
        let bearer = Bearer {
            seen: self.clock,
            ..Bearer::default()
        };
        self.bearers.insert(caller.clone(), bearer.clone());
        let forgotten = if self.bearers.len() > MAX_BEARERS {
            self.bearers
                .iter()
                .min_by_key(|(_, bearer)| bearer.seen)
                .map(|(caller, _)| caller.clone())
        } else {
            None
        };
        let forgotten = forgotten.map(|old| {
            let grants = self.forget(&old);
            (old, grants)
        });
        Some((bearer, forgotten))
    }

    /// Forgets a bearer and all its grants (the cloud answered 401); gives the grants.
    pub(crate) fn forget(&mut self, caller: &Caller) -> Vec<Query> {
        self.bearers.remove(caller);
        self.counts.remove(caller);
        self.observed
            .remove(caller)
            .map(|grants| grants.into_values().flatten().collect())
            .unwrap_or_default()
    }

    /// Puts back what was stored.
    pub(crate) fn restore(&mut self, caller: Caller, bearer: Bearer) {
        self.clock = self.clock.max(bearer.seen);
        self.bearers.insert(caller, bearer);
    }

    /// Sets the rules of a bearer in a namespace (`""`: those that hold everywhere).
    pub(crate) fn set_rules(
        &mut self,
        caller: &Caller,
        namespace: &str,
        rules: Vec<Rule>,
    ) -> Option<Bearer> {
        let bearer = self.bearers.get_mut(caller)?;
        if bearer.rules.len() >= 256 && !bearer.rules.contains_key(namespace) {
            return None;
        }
        bearer.rules.insert(namespace.to_owned(), rules);
        Some(bearer.clone())
    }

    /// Whether the caller was ever accepted.
    pub(crate) fn knows(&self, caller: &Caller) -> bool {
        !caller.has_token() || self.bearers.contains_key(caller)
    }

    /// Whether the caller may list or watch a query.
    pub(crate) fn allows(&self, caller: &Caller, query: &Query) -> bool {
        let wanted = Self::of_read(caller, query);
        self.observed(caller, &query.gvr)
            .iter()
            .any(|grant| grant.covers(&wanted))
            || self.rules_allow(caller, &["list", "watch"], query, query.name())
    }

    /// Whether the caller may get one object. `object` is asked for only where a grant depends on its content.
    pub(crate) fn allows_object(
        &self,
        caller: &Caller,
        query: &Query,
        object: impl FnOnce() -> Option<Object>,
    ) -> bool {
        let Some(name) = query.name() else {
            return false;
        };
        let grants = self.observed(caller, &query.gvr);
        if grants.iter().any(|grant| grant.covers(query))
            || self.rules_allow(caller, &["get"], query, Some(name))
        {
            return true;
        }
        let by_content: Vec<&Query> = grants
            .iter()
            .filter(|g| !g.is_identity() && g.in_scope(&query.namespace, name))
            .collect();
        !by_content.is_empty()
            && object().is_some_and(|object| {
                by_content
                    .iter()
                    .any(|grant| grant.matches(&query.namespace, name, &object))
            })
    }

    /// Who was seen to read a resource, and what of it.
    pub(crate) fn readers<'a>(
        &'a self,
        gvr: &'a Gvr,
    ) -> impl Iterator<Item = (&'a Caller, &'a [Query])> {
        self.observed
            .iter()
            .filter_map(move |(caller, of)| Some((caller, of.get(gvr)?.as_slice())))
    }

    /// What a caller was seen to read of a resource.
    pub(crate) fn observed(&self, caller: &Caller, gvr: &Gvr) -> &[Query] {
        self.observed
            .get(caller)
            .and_then(|of| of.get(gvr))
            .map_or(&[], Vec::as_slice)
    }

    fn rules_allow(
        &self,
        caller: &Caller,
        verbs: &[&str],
        query: &Query,
        name: Option<&str>,
    ) -> bool {
        let Some(bearer) = self.bearers.get(caller) else {
            return false;
        };
        ["", query.namespace.as_str()]
            .iter()
            .take(if query.namespace.is_empty() { 1 } else { 2 })
            .filter_map(|namespace| bearer.rules.get(*namespace))
            .flatten()
            .any(|rule| verbs.iter().any(|verb| rule.allows(verb, &query.gvr, name)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pods() -> Gvr {
        Gvr::new("", "v1", "pods")
    }

    #[test]
    fn rules_decide_for_bearers() {
        let mut grants = Grants::default();
        let caller = Caller::Bearer("ab".into());
        assert!(!grants.knows(&caller));
        assert!(grants.accept(&caller).is_some());
        assert!(grants.accept(&caller).is_none());
        let rules = parse_rules(&json!({"resourceRules": [
            {"verbs": ["list", "get"], "apiGroups": [""], "resources": ["pods"]},
            {"verbs": ["*"], "apiGroups": ["*"], "resources": ["secrets"], "resourceNames": ["one"]},
        ]}));
        assert!(grants.set_rules(&caller, "a", rules).is_some());
        assert!(grants.allows(&caller, &Query::all(pods(), "a")));
        assert!(!grants.allows(&caller, &Query::all(pods(), "b")));
        assert!(!grants.allows(&caller, &Query::all(pods(), "")));
        let secrets = Gvr::new("", "v1", "secrets");
        assert!(!grants.allows(&caller, &Query::all(secrets.clone(), "a")));
        assert!(grants.allows(&caller, &Query::named(secrets.clone(), "a", "one")));
        assert!(!grants.allows_object(&caller, &Query::named(secrets, "a", "two"), || None));
        grants.forget(&caller);
        assert!(!grants.allows(&caller, &Query::all(pods(), "a")));
    }

    #[test]
    fn bearers_are_bounded() {
        let mut grants = Grants::default();
        let mut forgotten = 0;
        for i in 0..MAX_BEARERS + 3 {
            let caller = Caller::Bearer(i.to_string());
            if let Some((_, Some(_))) = grants.accept(&caller) {
                forgotten += 1;
            }
        }
        assert_eq!(forgotten, 3);
        assert!(!grants.knows(&Caller::Bearer("0".into())));
    }
}
