//! Who may read what while the cloud cannot be asked (design rule R4). Pure.
//!
//! Two sources: what the cloud answered to a caller before (observed), and for bearers the rules of a SelfSubjectRulesReview.
//! The node's own grants keep their selectors, because the node authorizer decides by them (`spec.nodeName=…`); RBAC, which
//! decides for bearers, knows only resource, namespace and name. Bearers are users as soon as somebody vouches for their name:
//! the grants of a token move over to its user and outlive it.

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
/// Tokens of users that requests under way may still be learned under.
const MAX_ALIASES: usize = 1024;
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
    /// `resource` may have a subresource (`pods/log`); RBAC's `*/log` is that of any resource.
    fn allows(&self, verb: &str, group: &str, resource: &str, name: Option<&str>) -> bool {
        let of_any = |item: &String| {
            item.strip_prefix('*')
                .is_some_and(|sub| sub.starts_with('/') && resource.ends_with(sub))
        };
        holds(&self.verbs, verb)
            && holds(&self.api_groups, group)
            && (holds(&self.resources, resource) || self.resources.iter().any(of_any))
            && (self.resource_names.is_empty()
                || name.is_some_and(|name| self.resource_names.iter().any(|n| n == name)))
    }
}

impl Rule {
    /// Whether it lets read anything of a resource.
    fn reads(&self, gvr: &Gvr) -> bool {
        ["get", "list", "watch"]
            .iter()
            .any(|verb| holds(&self.verbs, verb))
            && holds(&self.api_groups, &gvr.group)
            && holds(&self.resources, &gvr.resource)
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
    /// Grows with every acceptance; the smallest is forgotten first.
    #[serde(default)]
    pub(crate) seen: u64,
    /// The day on which it last read anything ([`super::collect::today`]).
    #[serde(default)]
    pub(crate) day: u32,
}

/// A bearer that had to make room, and its grants.
pub(crate) type Forgotten = (Caller, Vec<Query>);

/// All grants.
#[derive(Debug, Default)]
pub(crate) struct Grants {
    observed: HashMap<Caller, HashMap<Gvr, Vec<Query>>>,
    counts: HashMap<Caller, usize>,
    bearers: HashMap<Caller, Bearer>,
    /// Users by their tokens.
    aliases: HashMap<Caller, Caller>,
    clock: u64,
}

impl Grants {
    /// What of a query a caller's successful read proves.
    pub(crate) fn of_read(caller: &Caller, query: &Query) -> Query {
        match caller.rights() {
            Caller::Node | Caller::Peer(_) => query.clone(),
            Caller::User(_) | Caller::Bearer(_) => match query.name() {
                Some(name) => Query::named(query.gvr.clone(), &query.namespace, name),
                None => Query {
                    labels: LabelSelector::default(),
                    fields: FieldSelector::default(),
                    ..query.clone()
                },
            },
        }
    }

    /// Under whom the grants of a caller are kept.
    pub(crate) fn who<'a>(&'a self, caller: &'a Caller) -> &'a Caller {
        self.aliases.get(caller).unwrap_or(caller.rights())
    }

    /// The bearer turned out to be a user. Gives what was kept of it, which is the user's to have now.
    pub(crate) fn adopt(&mut self, bearer: &Caller, user: &Caller) -> Option<(Bearer, Vec<Query>)> {
        if bearer == user || self.aliases.get(bearer) == Some(user) {
            return None;
        }
        let known = self.bearers.get(bearer).cloned();
        let grants = self.forget(bearer);
        if self.aliases.len() >= MAX_ALIASES {
            self.aliases.clear();
        }
        self.aliases.insert(bearer.clone(), user.clone());
        known.map(|known| (known, grants))
    }

    /// Remembers a grant ([`Grants::of_read`]); `false` when it adds nothing or there is no room.
    pub(crate) fn observe(&mut self, caller: &Caller, grant: &Query) -> bool {
        let caller = caller.rights();
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
        let caller = caller.rights();
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

    /// A bearer that the cloud accepted. Gives its record, when it is new, and the bearer that had to make room.
    pub(crate) fn accept(&mut self, caller: &Caller) -> Option<(Bearer, Option<Forgotten>)> {
        if !caller.has_token() {
            return None;
        }
        self.clock += 1;
        if let Some(known) = self.bearers.get_mut(caller) {
            known.seen = self.clock;
            return None;
        }
        let bearer = Bearer {
            seen: self.clock,
            day: super::collect::today(),
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

    /// The cloud refused what the rules of a caller allow: they are not true any more. Gives its record without them.
    pub(crate) fn contradict(&mut self, caller: &Caller, query: &Query) -> Option<Bearer> {
        if !self.rules_allow(caller, &["get", "list", "watch"], query, query.name()) {
            return None;
        }
        let bearer = self.bearers.get_mut(caller)?;
        bearer.rules.clear();
        Some(bearer.clone())
    }

    /// Notes that a caller reads on a day; gives its record when that is news.
    pub(crate) fn touch(&mut self, caller: &Caller, day: u32) -> Option<Bearer> {
        let bearer = self.bearers.get_mut(caller)?;
        if bearer.day == day {
            return None;
        }
        bearer.day = day;
        Some(bearer.clone())
    }

    /// The callers with a record, and the day on which each last read anything.
    pub(crate) fn days(&self) -> impl Iterator<Item = (&Caller, u32)> {
        self.bearers
            .iter()
            .map(|(caller, bearer)| (caller, bearer.day))
    }

    /// Forgets everybody's grants on a resource; gives them.
    pub(crate) fn forget_resource(&mut self, gvr: &Gvr) -> Vec<(Caller, Vec<Query>)> {
        let mut gone = Vec::new();
        for (caller, of) in &mut self.observed {
            if let Some(grants) = of.remove(gvr) {
                if let Some(count) = self.counts.get_mut(caller) {
                    *count = count.saturating_sub(grants.len());
                }
                gone.push((caller.clone(), grants));
            }
        }
        gone
    }

    /// The resources that anybody was seen to read.
    pub(crate) fn resources(&self) -> impl Iterator<Item = &Gvr> {
        self.observed.values().flat_map(HashMap::keys)
    }

    /// Whether rules let anybody read of a resource.
    pub(crate) fn is_under_rules(&self, gvr: &Gvr) -> bool {
        self.bearers
            .values()
            .flat_map(|bearer| bearer.rules.values().flatten())
            .any(|rule| rule.reads(gvr))
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
        !caller.has_token() || self.bearers.contains_key(self.who(caller))
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
            .get(self.who(caller))
            .and_then(|of| of.get(gvr))
            .map_or(&[], Vec::as_slice)
    }

    /// Whether a caller may do something by its rules. `resource` may have a subresource (`pods/log`).
    pub(crate) fn permits(
        &self,
        caller: &Caller,
        verb: &str,
        (group, resource): (&str, &str),
        namespace: &str,
        name: Option<&str>,
    ) -> bool {
        self.rules(caller, namespace)
            .any(|rule| rule.allows(verb, group, resource, name))
    }

    /// The rules of a caller that hold in a namespace (`""`: in all).
    fn rules<'a>(&'a self, caller: &Caller, namespace: &'a str) -> impl Iterator<Item = &'a Rule> {
        let bearer = self.bearers.get(self.who(caller));
        let count = if namespace.is_empty() { 1 } else { 2 };
        bearer.into_iter().flat_map(move |bearer| {
            ["", namespace]
                .into_iter()
                .take(count)
                .filter_map(|namespace| bearer.rules.get(namespace))
                .flatten()
        })
    }

    fn rules_allow(
        &self,
        caller: &Caller,
        verbs: &[&str],
        query: &Query,
        name: Option<&str>,
    ) -> bool {
        self.rules(caller, &query.namespace).any(|rule| {
            verbs
                .iter()
                .any(|verb| rule.allows(verb, &query.gvr.group, &query.gvr.resource, name))
        })
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

    #[test]
    fn what_a_token_was_allowed_its_user_is() {
        let mut grants = Grants::default();
        let (token, user) = (Caller::Bearer("ab".into()), Caller::User("u".into()));
        let list = Query::all(pods(), "a");
        grants.accept(&token);
        grants.observe(&token, &list);
        let (_, moved) = grants.adopt(&token, &user).unwrap();
        assert_eq!(moved, std::slice::from_ref(&list));
        assert!(!grants.allows(&user, &list), "the one who stores moves");
        grants.accept(&user);
        grants.observe(&user, &list);
        // A request that began under the token is the user's.
        assert_eq!(grants.who(&token), &user);
        assert!(grants.allows(&token, &list) && grants.allows(&user, &list));
        assert!(grants.knows(&token));
        assert!(grants.adopt(&token, &user).is_none());
        assert!(!grants.allows(&Caller::Bearer("cd".into()), &list));
    }

    #[test]
    fn rules_that_the_cloud_contradicts_are_forgotten() {
        let mut grants = Grants::default();
        let user = Caller::User("u".into());
        grants.accept(&user);
        let rules = parse_rules(&json!({"resourceRules": [
            {"verbs": ["get"], "apiGroups": [""], "resources": ["pods", "*/log"]},
        ]}));
        grants.set_rules(&user, "", rules);
        let permits = |grants: &Grants, verb, resource| {
            grants.permits(&user, verb, ("", resource), "a", Some("p"))
        };
        assert!(permits(&grants, "get", "pods") && permits(&grants, "get", "pods/log"));
        assert!(!permits(&grants, "get", "pods/exec") && !permits(&grants, "list", "pods"));
        let secrets = Query::named(Gvr::new("", "v1", "secrets"), "a", "s");
        assert!(grants.contradict(&user, &secrets).is_none());
        let pod = Query::named(pods(), "a", "p");
        assert!(grants.contradict(&user, &pod).is_some());
        assert!(!grants.allows_object(&user, &pod, || None));
    }
}
