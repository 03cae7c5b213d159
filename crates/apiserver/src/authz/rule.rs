//! One rule of a role: what it allows.

use super::Attributes;
use serde_json::{Map, Value, json};
use std::fmt;

/// `rbac.authorization.k8s.io/v1` `PolicyRule`.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rule {
    /// API groups, `*` for all.
    pub groups: Vec<String>,
    /// Resources and `resource/subresource`; `*` for all, `*/subresource` for one of all.
    pub resources: Vec<String>,
    /// Paths that are not resources; a `*` at the end stands for any rest.
    pub urls: Vec<String>,
    /// Names of objects; none means any.
    pub names: Vec<String>,
    /// Verbs, `*` for all.
    pub verbs: Vec<String>,
}

/// The fields of a rule in JSON, in the order in which messages name them.
const FIELDS: [(&str, &str); 5] = [
    ("apiGroups", "APIGroups"),
    ("resources", "Resources"),
    ("nonResourceURLs", "NonResourceURLs"),
    ("resourceNames", "ResourceNames"),
    ("verbs", "Verbs"),
];

impl Rule {
    /// From JSON; what is not there or has another type is empty.
    pub fn from_json(rule: &Value) -> Self {
        let list = |field: &str| -> Vec<String> {
            let values = rule[field].as_array().into_iter().flatten();
            values
                .filter_map(|v| v.as_str().map(str::to_owned))
                .collect()
        };
        Self {
            groups: list("apiGroups"),
            resources: list("resources"),
            urls: list("nonResourceURLs"),
            names: list("resourceNames"),
            verbs: list("verbs"),
        }
    }

    /// The `rules` of a role.
    pub fn list(rules: &Value) -> Vec<Self> {
        let rules = rules.as_array().into_iter().flatten();
        rules.map(Self::from_json).collect()
    }

    /// As JSON, without empty fields.
    pub fn to_json(&self) -> Value {
        let mut rule = Map::new();
        for ((field, _), values) in FIELDS.iter().zip(self.parts()) {
            if !values.is_empty() {
                rule.insert((*field).to_owned(), json!(values));
            }
        }
        rule.into()
    }

    /// Everything there is: what somebody needs to hold to grant anything.
    pub fn everything() -> [Self; 2] {
        let all = || vec!["*".to_owned()];
        [
            Self {
                groups: all(),
                resources: all(),
                verbs: all(),
                ..Self::default()
            },
            Self {
                urls: all(),
                verbs: all(),
                ..Self::default()
            },
        ]
    }

    fn parts(&self) -> [&Vec<String>; 5] {
        [
            &self.groups,
            &self.resources,
            &self.urls,
            &self.names,
            &self.verbs,
        ]
    }

    /// Whether the rule allows this.
    pub fn allows(&self, what: &Attributes) -> bool {
        if !contains(&self.verbs, &what.verb) {
            return false;
        }
        if what.resource.is_empty() {
            return self.urls.iter().any(|url| url_covers(url, &what.path));
        }
        contains(&self.groups, &what.group)
            && self
                .resources
                .iter()
                .any(|rule| resource_matches(rule, &what.resource, &what.subresource))
            && (self.names.is_empty() || self.names.contains(&what.name))
    }

    /// Whether this rule alone grants all that `other` does. `other` names one verb, and one resource or URL.
    pub fn covers(&self, other: &Self) -> bool {
        let all = |held: &[String], wanted: &[String]| wanted.iter().all(|w| contains(held, w));
        let names = if other.names.is_empty() {
            self.names.is_empty()
        } else {
            self.names.is_empty() || other.names.iter().all(|n| self.names.contains(n))
        };
        all(&self.verbs, &other.verbs)
            && all(&self.groups, &other.groups)
            && other.resources.iter().all(|wanted| {
                let (resource, subresource) = wanted.split_once('/').unwrap_or((wanted, ""));
                self.resources
                    .iter()
                    .any(|held| held == wanted || resource_matches(held, resource, subresource))
            })
            && other
                .urls
                .iter()
                .all(|wanted| self.urls.iter().any(|held| url_covers(held, wanted)))
            && names
    }
}

fn contains(list: &[String], wanted: &str) -> bool {
    list.iter().any(|held| held == "*" || held == wanted)
}

fn resource_matches(rule: &str, resource: &str, subresource: &str) -> bool {
    if rule == "*" {
        return true;
    }
    match rule.split_once('/') {
        None => subresource.is_empty() && rule == resource,
        Some((parent, sub)) => sub == subresource && (parent == "*" || parent == resource),
    }
}

fn url_covers(rule: &str, path: &str) -> bool {
    rule == path
        || rule
            .strip_suffix('*')
            .is_some_and(|prefix| path.starts_with(prefix.trim_end_matches('*')))
}

/// As messages about missing permissions print a rule: `{APIGroups:["apps"], Resources:["deployments"], Verbs:["get"]}`.
impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "{";
        for ((_, label), values) in FIELDS.iter().zip(self.parts()) {
            if !values.is_empty() {
                let quoted: Vec<String> = values.iter().map(|v| format!("{v:?}")).collect();
                write!(f, "{separator}{label}:[{}]", quoted.join(" "))?;
                separator = ", ";
            }
        }
        f.write_str(if separator == "{" { "{}" } else { "}" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(groups: &str, resources: &str, names: &str, verbs: &str) -> Rule {
        let words =
            |text: &str| -> Vec<String> { text.split_whitespace().map(str::to_owned).collect() };
        Rule {
            groups: groups.split(',').map(str::to_owned).collect(),
            resources: words(resources),
            names: words(names),
            verbs: words(verbs),
            ..Rule::default()
        }
    }

    fn ask(verb: &str, group: &str, resource: &str, name: &str) -> Attributes {
        let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
        Attributes {
            verb: verb.into(),
            group: group.into(),
            resource: resource.into(),
            subresource: subresource.into(),
            name: name.into(),
            ..Attributes::default()
        }
    }

    #[test]
    fn resources_and_subresources_are_apart() {
        let pods = rule("", "pods", "", "get list");
        assert!(pods.allows(&ask("get", "", "pods", "a")));
        assert!(!pods.allows(&ask("get", "", "pods/log", "a")));
        assert!(!pods.allows(&ask("delete", "", "pods", "a")));
        assert!(!pods.allows(&ask("get", "apps", "pods", "a")));
        assert!(rule("", "pods/log", "", "get").allows(&ask("get", "", "pods/log", "a")));
        let scale = rule("*", "*/scale", "", "*");
        assert!(scale.allows(&ask("update", "apps", "deployments/scale", "a")));
        assert!(!scale.allows(&ask("update", "apps", "deployments", "a")));
        let all = rule("*", "*", "", "*");
        assert!(all.allows(&ask("update", "apps", "deployments/scale", "a")));
        assert!(!all.allows(&Attributes {
            verb: "get".into(),
            path: "/metrics".into(),
            ..Attributes::default()
        }));
    }

    #[test]
    fn names_restrict_what_has_a_name() {
        let one = rule("", "configmaps", "a b", "get create");
        assert!(one.allows(&ask("get", "", "configmaps", "b")));
        assert!(!one.allows(&ask("get", "", "configmaps", "c")));
        assert!(!one.allows(&ask("create", "", "configmaps", "")));
    }

    #[test]
    fn a_star_ends_a_url() {
        let rule = Rule {
            urls: vec!["/healthz".into(), "/apis/*".into()],
            verbs: vec!["get".into()],
            ..Rule::default()
        };
        let get = |path: &str| Attributes {
            verb: "get".into(),
            path: path.into(),
            ..Attributes::default()
        };
        assert!(rule.allows(&get("/healthz")) && rule.allows(&get("/apis/apps/v1")));
        assert!(!rule.allows(&get("/healthz/ping")) && !rule.allows(&get("/apis")));
    }

    #[test]
    fn json_and_message() {
        let rule = rule(",apps", "pods deployments", "", "get");
        assert_eq!(Rule::from_json(&rule.to_json()), rule);
        assert_eq!(
            rule.to_string(),
            r#"{APIGroups:["" "apps"], Resources:["pods" "deployments"], Verbs:["get"]}"#
        );
    }
}
