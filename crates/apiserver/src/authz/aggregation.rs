//! Cluster roles whose rules are those of other roles, chosen by labels (`aggregationRule`). Pure.

use super::Rule;
use crate::meta;
use serde_json::Value;
use yurt_wire::selector::LabelSelector;

/// The rules an aggregated role should have: those of the roles its selectors choose, by name, each rule once. `None`
/// for a role that is not aggregated, and where a selector is not one.
pub(crate) fn rules(role: &Value, all: &[Value]) -> Option<Vec<Rule>> {
    let selectors = role["aggregationRule"]["clusterRoleSelectors"].as_array()?;
    let mut rules: Vec<Rule> = Vec::new();
    for selector in selectors {
        let selector = LabelSelector::from_json(selector).ok()?;
        let mut chosen: Vec<&Value> = all
            .iter()
            .filter(|other| meta::name(other) != meta::name(role))
            .filter(|other| selector.matches(&labels(other)))
            .collect();
        chosen.sort_by_key(|other| meta::name(other));
        for rule in chosen.iter().flat_map(|other| Rule::list(&other["rules"])) {
            if !rules.contains(&rule) {
                rules.push(rule);
            }
        }
    }
    Some(rules)
}

/// The rules a role should have, when they are not those it has.
pub(crate) fn outdated(role: &Value, all: &[Value]) -> Option<Value> {
    let wanted = rules(role, all)?;
    (wanted != Rule::list(&role["rules"])).then(|| wanted.iter().map(Rule::to_json).collect())
}

fn labels(object: &Value) -> Vec<(String, String)> {
    let labels = object["metadata"]["labels"].as_object();
    labels
        .into_iter()
        .flatten()
        .map(|(key, value)| (key.clone(), value.as_str().unwrap_or_default().to_owned()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn role(name: &str, label: &str, resource: &str) -> Value {
        json!({"metadata": {"name": name, "labels": {label: "true"}},
            "rules": [{"apiGroups": [""], "resources": [resource], "verbs": ["get"]}]})
    }

    #[test]
    fn rules_come_from_the_labelled_roles_in_order_and_once() {
        let sum = json!({"metadata": {"name": "sum"}, "rules": null, "aggregationRule": {
            "clusterRoleSelectors": [{"matchLabels": {"x": "true"}}]}});
        let all = [
            role("c", "x", "pods"),
            role("a", "x", "nodes"),
            role("b", "x", "pods"),
            role("d", "y", "secrets"),
            sum.clone(),
        ];
        let resources: Vec<String> = rules(&sum, &all)
            .expect("an aggregated role")
            .iter()
            .map(|rule| rule.resources.join(" "))
            .collect();
        assert_eq!(resources, ["nodes", "pods"]);
        let mut current = sum.clone();
        current["rules"] = outdated(&sum, &all).expect("new rules");
        assert_eq!(outdated(&current, &all), None);
        assert_eq!(outdated(&all[0], &all), None);
    }
}
