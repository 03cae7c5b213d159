//! Nobody grants more than he holds: what of the wanted rules the held ones do not cover.

use super::Rule;
use crate::authn::User;
use std::collections::BTreeMap;

/// The parts of `wanted` that `held` does not cover, each with one verb and one resource (and name) or URL.
pub fn missing(held: &[&Rule], wanted: &[Rule]) -> Vec<Rule> {
    wanted
        .iter()
        .flat_map(single)
        .filter(|part| !held.iter().any(|rule| rule.covers(part)))
        .collect()
}

/// A rule as the rules for each single permission in it.
fn single(rule: &Rule) -> Vec<Rule> {
    let mut parts = Vec::new();
    let one = |value: &String| vec![value.clone()];
    for verb in &rule.verbs {
        for group in &rule.groups {
            for resource in &rule.resources {
                let part = Rule {
                    verbs: one(verb),
                    groups: one(group),
                    resources: one(resource),
                    ..Rule::default()
                };
                if rule.names.is_empty() {
                    parts.push(part);
                } else {
                    parts.extend(rule.names.iter().map(|name| Rule {
                        names: one(name),
                        ..part.clone()
                    }));
                }
            }
        }
        parts.extend(rule.urls.iter().map(|url| Rule {
            verbs: one(verb),
            urls: one(url),
            ..Rule::default()
        }));
    }
    parts
}

/// Puts permissions on the same resource (and name) together, as the message of a refusal lists them.
fn compact(parts: Vec<Rule>) -> Vec<Rule> {
    let mut compacted = Vec::new();
    let mut verbs: BTreeMap<Rule, Vec<String>> = BTreeMap::new();
    for mut part in parts {
        if part.urls.is_empty() {
            let verb = std::mem::take(&mut part.verbs);
            verbs.entry(part).or_default().extend(verb);
        } else {
            compacted.push(part);
        }
    }
    compacted.extend(
        verbs
            .into_iter()
            .map(|(rule, verbs)| Rule { verbs, ..rule }),
    );
    compacted
}

/// Why a grant is refused, as kube-apiserver says it.
pub fn refusal(user: &User, missing: Vec<Rule>) -> String {
    let mut lines: Vec<String> = compact(missing).iter().map(Rule::to_string).collect();
    lines.sort();
    lines.dedup();
    let groups: Vec<String> = user.groups.iter().map(|g| format!("{g:?}")).collect();
    format!(
        "user {:?} (groups=[{}]) is attempting to grant RBAC permissions not currently held:\n{}",
        user.name,
        groups.join(" "),
        lines.join("\n")
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn rules(rules: serde_json::Value) -> Vec<Rule> {
        Rule::list(&rules)
    }

    fn lacks(held: &[Rule], wanted: &[Rule]) -> bool {
        !missing(&held.iter().collect::<Vec<_>>(), wanted).is_empty()
    }

    #[test]
    fn what_is_held_in_parts_covers_the_whole() {
        let held = rules(json!([
            {"apiGroups": ["", "apps"], "resources": ["pods", "deployments"], "verbs": ["get"]},
            {"apiGroups": [""], "resources": ["pods"], "verbs": ["list", "watch"]},
            {"nonResourceURLs": ["/healthz*"], "verbs": ["get"]}]));
        let wanted = rules(json!([
            {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list"]},
            {"apiGroups": ["apps"], "resources": ["deployments"], "verbs": ["get"], "resourceNames": ["a"]},
            {"nonResourceURLs": ["/healthz/ping"], "verbs": ["get"]}]));
        assert!(!lacks(&held, &wanted));
        assert!(!lacks(&Rule::everything(), &held));
        assert!(lacks(&held, &Rule::everything()));
    }

    #[test]
    fn a_name_does_not_cover_all_names() {
        let held = rules(json!([
            {"apiGroups": [""], "resources": ["pods"], "verbs": ["get"], "resourceNames": ["a"]}]));
        let wanted = rules(json!([{"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]}]));
        assert!(lacks(&held, &wanted));
        assert!(!lacks(&wanted, &held));
    }

    #[test]
    fn stars_cover_and_are_covered_by_stars_only() {
        let scale = rules(json!([{"apiGroups": ["*"], "resources": ["*/scale"], "verbs": ["*"]}]));
        let one = rules(
            json!([{"apiGroups": ["apps"], "resources": ["deployments/scale"], "verbs": ["get"]}]),
        );
        assert!(!lacks(&scale, &one));
        assert!(!lacks(&scale, &scale));
        assert!(lacks(&one, &scale));
    }

    #[test]
    fn the_refusal_lists_what_is_missing() {
        let wanted = rules(json!([
            {"apiGroups": [""], "resources": ["secrets", "pods"], "verbs": ["get", "list"]}]));
        let user = User::new("jane", &["devs"]);
        assert_eq!(
            refusal(&user, missing(&[], &wanted)),
            "user \"jane\" (groups=[\"devs\" \"system:authenticated\"]) is attempting to grant RBAC permissions not currently held:\n{APIGroups:[\"\"], Resources:[\"pods\"], Verbs:[\"get\" \"list\"]}\n{APIGroups:[\"\"], Resources:[\"secrets\"], Verbs:[\"get\" \"list\"]}"
        );
    }
}
