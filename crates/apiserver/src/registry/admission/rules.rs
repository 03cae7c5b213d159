//! Which requests a webhook or policy is about: `rules` and selectors. Pure.

use serde_json::Value;
use yurt_wire::selector::{LabelSelector, SelectorError};

/// A request in the words of rules.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked<'a> {
    pub(crate) operation: &'a str,
    pub(crate) group: &'a str,
    pub(crate) version: &'a str,
    pub(crate) resource: &'a str,
    pub(crate) subresource: &'a str,
    /// `""` when the policy's rules do not name objects.
    pub(crate) name: &'a str,
    /// Whether the object lives in a namespace (namespaces themselves do not).
    pub(crate) namespaced: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scope {
    All,
    Cluster,
    Namespaced,
}

/// `admissionregistration.k8s.io/v1` `RuleWithOperations` (and `NamedRuleWithOperations`).
#[derive(Clone, Debug)]
pub(crate) struct Rule {
    operations: Vec<String>,
    groups: Vec<String>,
    versions: Vec<String>,
    /// Resource and subresource.
    resources: Vec<(String, String)>,
    /// None names every object.
    names: Vec<String>,
    scope: Scope,
}

fn strings(value: &Value) -> Vec<String> {
    let items = value.as_array().into_iter().flatten();
    items.filter_map(Value::as_str).map(str::to_owned).collect()
}

impl Rule {
    pub(crate) fn from_json(rule: &Value) -> Self {
        let split = |resource: String| match resource.split_once('/') {
            Some((resource, sub)) => (resource.to_owned(), sub.to_owned()),
            None => (resource, String::new()),
        };
        Self {
            operations: strings(&rule["operations"]),
            groups: strings(&rule["apiGroups"]),
            versions: strings(&rule["apiVersions"]),
            resources: strings(&rule["resources"]).into_iter().map(split).collect(),
            names: strings(&rule["resourceNames"]),
            scope: match rule["scope"].as_str() {
                Some("Cluster") => Scope::Cluster,
                Some("Namespaced") => Scope::Namespaced,
                _ => Scope::All,
            },
        }
    }

    pub(crate) fn list_from_json(rules: &Value) -> Vec<Self> {
        let rules = rules.as_array().into_iter().flatten();
        rules.map(Self::from_json).collect()
    }

    pub(crate) fn matches(&self, asked: &Asked<'_>) -> bool {
        let any = |items: &[String], one: &str| items.iter().any(|i| i == "*" || i == one);
        let scoped = match self.scope {
            Scope::All => true,
            Scope::Cluster => !asked.namespaced,
            Scope::Namespaced => asked.namespaced,
        };
        scoped
            && any(&self.operations, asked.operation)
            && any(&self.groups, asked.group)
            && any(&self.versions, asked.version)
            && (self.names.is_empty() || self.names.iter().any(|name| name == asked.name))
            && self.resources.iter().any(|(resource, sub)| {
                (resource == "*" || resource == asked.resource)
                    && (sub == "*" || sub == asked.subresource)
            })
    }
}

/// A selector of a configuration; absent selects everything.
pub(crate) fn selector(value: &Value) -> Result<LabelSelector, SelectorError> {
    if value.is_null() {
        return Ok(LabelSelector::default());
    }
    LabelSelector::from_json(value)
}

/// The labels of an object.
pub(crate) fn labels(object: &Value) -> Vec<(String, String)> {
    object["metadata"]["labels"]
        .as_object()
        .into_iter()
        .flatten()
        .map(|(k, v)| (k.clone(), v.as_str().unwrap_or_default().to_owned()))
        .collect()
}

/// Whether an object selector takes the new or the old object.
pub(crate) fn selects_object(
    selector: &LabelSelector,
    object: Option<&Value>,
    old: Option<&Value>,
) -> bool {
    selector.is_empty()
        || [object, old]
            .into_iter()
            .flatten()
            .any(|object| selector.matches(&labels(object)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn rule(resources: &[&str], scope: &str) -> Rule {
        Rule::from_json(&json!({"operations": ["CREATE"], "apiGroups": ["apps"],
            "apiVersions": ["*"], "resources": resources, "scope": scope}))
    }

    fn asked<'a>(resource: &'a str, subresource: &'a str) -> Asked<'a> {
        Asked {
            operation: "CREATE",
            group: "apps",
            version: "v1",
            resource,
            subresource,
            name: "x",
            namespaced: true,
        }
    }

    #[test]
    fn resources_and_subresources_are_named_apart() {
        for (resources, resource, sub, expected) in [
            (&["deployments"][..], "deployments", "", true),
            (&["deployments"], "deployments", "scale", false),
            (&["deployments/scale"], "deployments", "scale", true),
            (&["deployments/*"], "deployments", "scale", true),
            (&["*"], "deployments", "", true),
            (&["*"], "deployments", "scale", false),
            (&["*/*"], "deployments", "scale", true),
            (&["*/scale"], "replicasets", "scale", true),
            (&["*/scale"], "replicasets", "", false),
            (&[], "replicasets", "", false),
        ] {
            let rule = rule(resources, "*");
            assert_eq!(
                rule.matches(&asked(resource, sub)),
                expected,
                "{resources:?} {resource} {sub}"
            );
        }
    }

    #[test]
    fn every_part_of_a_rule_counts() {
        let all = rule(&["*"], "*");
        let one = asked("deployments", "");
        assert!(!all.matches(&Asked {
            operation: "UPDATE",
            ..one
        }));
        assert!(!all.matches(&Asked { group: "", ..one }));
        assert!(!rule(&["*"], "Cluster").matches(&one));
        assert!(rule(&["*"], "Namespaced").matches(&one));
        let cluster = Asked {
            namespaced: false,
            ..one
        };
        assert!(rule(&["*"], "Cluster").matches(&cluster));
        assert!(!rule(&["*"], "Namespaced").matches(&cluster));
        let named = Rule::from_json(&json!({"operations": ["*"], "apiGroups": ["*"],
            "apiVersions": ["*"], "resources": ["*"], "resourceNames": ["x"]}));
        assert!(named.matches(&one));
        assert!(!named.matches(&Asked { name: "y", ..one }));
    }

    #[test]
    fn an_object_is_selected_by_what_it_was_or_is() {
        let selector = selector(&json!({"matchLabels": {"a": "b"}})).expect("valid");
        let with = json!({"metadata": {"labels": {"a": "b"}}});
        let without = json!({"metadata": {}});
        assert!(selects_object(&selector, Some(&with), None));
        assert!(selects_object(&selector, Some(&without), Some(&with)));
        assert!(!selects_object(&selector, Some(&without), None));
        assert!(!selects_object(&selector, None, None));
        assert!(selects_object(&LabelSelector::default(), None, None));
    }
}
