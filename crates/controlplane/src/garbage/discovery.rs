//! Which kinds are served, and which of them are watched for garbage. Pure.

use crate::Collection;
use serde_json::Value;
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

/// What a discovery document says.
#[derive(Debug, Default)]
pub(super) struct Served {
    /// By `apiVersion` and kind.
    kinds: HashMap<(String, String), Arc<Collection>>,
    /// What can be listed, watched and deleted, once each, in the version that the server prefers.
    pub(super) watched: HashSet<Arc<Collection>>,
}

/// Nothing owns events, and there are many.
fn is_ignored(group: &str, plural: &str) -> bool {
    plural == "events" && matches!(group, "" | "events.k8s.io")
}

impl Served {
    /// Takes in an `APIGroupDiscoveryList`.
    pub(super) fn add(&mut self, list: &Value) {
        for group in list["items"].as_array().into_iter().flatten() {
            let name = group["metadata"]["name"].as_str().unwrap_or_default();
            let mut preferred: BTreeMap<String, Arc<Collection>> = BTreeMap::new();
            for version in group["versions"].as_array().into_iter().flatten() {
                // What a stale aggregated server once had is not known to be there.
                if version["freshness"] == "Stale" {
                    continue;
                }
                let version_name = version["version"].as_str().unwrap_or_default();
                let api_version = if name.is_empty() {
                    version_name.to_owned()
                } else {
                    format!("{name}/{version_name}")
                };
                for resource in version["resources"].as_array().into_iter().flatten() {
                    let (Some(plural), Some(kind)) = (
                        resource["resource"].as_str(),
                        resource["responseKind"]["kind"].as_str(),
                    ) else {
                        continue;
                    };
                    let collection = Arc::new(Collection {
                        api_version: api_version.clone().into(),
                        plural: plural.to_owned().into(),
                        kind: kind.to_owned().into(),
                        namespaced: resource["scope"] == "Namespaced",
                    });
                    let verbs = resource["verbs"].as_array();
                    let serves =
                        |verb: &str| verbs.is_some_and(|all| all.iter().any(|v| v == verb));
                    if ["list", "watch", "delete"].into_iter().all(serves)
                        && !is_ignored(name, plural)
                    {
                        preferred
                            .entry(plural.into())
                            .or_insert_with(|| collection.clone());
                    }
                    self.kinds
                        .insert((api_version.clone(), kind.into()), collection);
                }
            }
            self.watched.extend(preferred.into_values());
        }
    }

    /// The collection of a kind.
    pub(super) fn find(&self, api_version: &str, kind: &str) -> Option<Arc<Collection>> {
        let key = (api_version.to_owned(), kind.to_owned());
        self.kinds.get(&key).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_preferred_version_is_watched_and_every_version_is_known() {
        let resource = |plural: &str, kind: &str, verbs: &[&str]| {
            json!({"resource": plural, "responseKind": {"group": "", "version": "", "kind": kind},
                "scope": "Namespaced", "verbs": verbs})
        };
        let all = ["create", "delete", "get", "list", "watch"];
        let mut served = Served::default();
        served.add(&json!({"items": [{"metadata": {}, "versions": [{"version": "v1", "resources": [
            resource("pods", "Pod", &all), resource("events", "Event", &all), resource("bindings", "Binding", &["create"])]}]}]}));
        served.add(&json!({"items": [{"metadata": {"name": "example.com"}, "versions": [
            {"version": "v2", "resources": [resource("things", "Thing", &all)]},
            {"version": "v1", "resources": [resource("things", "Thing", &all), resource("olds", "Old", &all)]},
            {"version": "v0", "freshness": "Stale", "resources": [resource("lost", "Lost", &all)]}]}]}));
        let mut watched: Vec<String> = served
            .watched
            .iter()
            .map(|c| format!("{}/{}", c.api_version, c.plural))
            .collect();
        watched.sort();
        assert_eq!(
            watched,
            ["example.com/v1/olds", "example.com/v2/things", "v1/pods"]
        );
        let found = |version: &str, kind: &str| served.find(version, kind).map(|c| c.path("a"));
        assert_eq!(
            found("example.com/v1", "Thing").as_deref(),
            Some("/apis/example.com/v1/namespaces/a/things")
        );
        assert_eq!(
            found("v1", "Event").as_deref(),
            Some("/api/v1/namespaces/a/events")
        );
        assert_eq!(found("v1", "Thing"), None);
    }
}
