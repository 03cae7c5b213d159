//! What the server serves: one table of built-in resources ([`table`](self)) and, at run time, those of CRDs.

mod table;

use crate::crd;
use std::{collections::HashMap, sync::Arc};
use yurt_wire::Gvk;

/// One served resource in one version.
#[derive(Clone, Debug)]
pub struct Resource {
    /// API group, `""` for core.
    pub group: String,
    /// Served version.
    pub version: String,
    /// Kind of an object.
    pub kind: String,
    /// Kind of a list.
    pub list_kind: String,
    /// Plural resource name.
    pub plural: String,
    /// Singular resource name.
    pub singular: String,
    /// Short names for command lines.
    pub short_names: Vec<String>,
    /// Categories (`all`).
    pub categories: Vec<String>,
    /// Whether objects live in namespaces.
    pub namespaced: bool,
    /// Verbs, sorted.
    pub verbs: Vec<String>,
    /// Subresources, sorted by name.
    pub subresources: Vec<Subresource>,
    /// Paths a field selector may name beside `metadata.name` and `metadata.namespace`.
    pub selectable_fields: Vec<String>,
    /// Whether `metadata.generation` counts changes of the desired state.
    pub counts_generation: bool,
    /// Whether an update of an absent object creates it.
    pub create_on_update: bool,
    /// Whether an update may leave out the resourceVersion it is based on.
    pub unconditional_update: bool,
    /// Whether a deletion answers with the object instead of a Status.
    pub returns_deleted: bool,
    /// The storage partition, `group/plural`; two served versions share it.
    pub storage: Arc<str>,
    /// The version in which objects are stored.
    pub storage_version: String,
    /// For custom resources: the definition and which of its versions this is.
    pub custom: Option<Custom>,
}

/// The definition behind a custom resource.
#[derive(Clone, Debug)]
pub struct Custom {
    /// The parsed definition.
    pub crd: Arc<crd::Crd>,
    /// Index into `crd.versions`.
    pub version: usize,
}

/// A subresource of a resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subresource {
    /// `status`, `scale`, ...
    pub name: String,
    /// Group of the body's kind.
    pub group: String,
    /// Version of the body's kind.
    pub version: String,
    /// The body's kind.
    pub kind: String,
    /// Verbs, sorted.
    pub verbs: Vec<String>,
}

impl Subresource {
    /// Whether it is a connection to something behind the server instead of an object.
    pub fn is_connection(&self) -> bool {
        self.name == "log" || self.kind.ends_with("Options")
    }
}

impl Resource {
    /// Group, version and kind of an object.
    pub fn gvk(&self) -> Gvk {
        Gvk {
            group: self.group.clone(),
            version: self.version.clone(),
            kind: self.kind.clone(),
        }
    }
    /// Group, version and kind of a list.
    pub fn list_gvk(&self) -> Gvk {
        Gvk {
            kind: self.list_kind.clone(),
            ..self.gvk()
        }
    }
    /// `v1` or `group/version`.
    pub fn api_version(&self) -> String {
        yurt_wire::gvk::join_api_version(&self.group, &self.version)
    }
    /// Whether the verb is served.
    pub fn serves(&self, verb: &str) -> bool {
        self.verbs.iter().any(|v| v == verb)
    }
    /// A subresource by name.
    pub fn subresource(&self, name: &str) -> Option<&Subresource> {
        self.subresources.iter().find(|s| s.name == name)
    }
    /// Whether status is written apart from the rest.
    pub fn has_status(&self) -> bool {
        self.subresource("status").is_some()
    }
    /// The CRD's version behind a custom resource.
    pub fn crd_version(&self) -> Option<&crd::CrdVersion> {
        self.custom
            .as_ref()
            .and_then(|c| c.crd.versions.get(c.version))
    }
    /// What users of a deprecated version of a custom resource are told.
    pub fn deprecation(&self) -> Option<String> {
        let version = self.crd_version().filter(|version| version.deprecated)?;
        let standard = || format!("{} {} is deprecated", self.api_version(), self.kind);
        Some(version.deprecation_warning.clone().unwrap_or_else(standard))
    }
    /// Whether objects are stored in the version served here.
    pub fn is_storage_version(&self) -> bool {
        self.version == self.storage_version
            && self
                .storage
                .split_once('/')
                .is_some_and(|(group, _)| group == self.group)
    }
    /// The kind objects are stored as.
    pub fn storage_gvk(&self) -> Gvk {
        let group = self.storage.split_once('/').map_or("", |(group, _)| group);
        Gvk {
            group: group.to_owned(),
            version: self.storage_version.clone(),
            kind: self.kind.clone(),
        }
    }
}

/// Everything served at one moment.
#[derive(Debug)]
pub struct Catalog {
    resources: Vec<Arc<Resource>>,
    index: HashMap<(String, String, String), usize>,
}

impl Catalog {
    /// The built-in resources and those of established CRDs.
    pub fn new(crds: &[Arc<crd::Crd>]) -> Self {
        let mut resources: Vec<Arc<Resource>> =
            table::built_in().into_iter().map(Arc::new).collect();
        for definition in crds {
            resources.extend(custom_resources(definition).into_iter().map(Arc::new));
        }
        let index = resources
            .iter()
            .enumerate()
            .map(|(i, r)| {
                let key = (r.group.clone(), r.version.clone(), r.plural.clone());
                (key, i)
            })
            .collect();
        Self { resources, index }
    }

    /// All resources in discovery order.
    pub fn resources(&self) -> &[Arc<Resource>] {
        &self.resources
    }

    /// A resource by its coordinates.
    pub fn find(&self, group: &str, version: &str, plural: &str) -> Option<&Arc<Resource>> {
        let key = (group.to_owned(), version.to_owned(), plural.to_owned());
        self.index.get(&key).and_then(|i| self.resources.get(*i))
    }

    /// Groups (without core) with their versions, preferred first, in discovery order.
    pub fn groups(&self) -> Vec<(&str, Vec<&str>)> {
        let mut groups: Vec<(&str, Vec<&str>)> = Vec::new();
        for r in self.resources.iter().filter(|r| !r.group.is_empty()) {
            let at = groups
                .iter()
                .position(|(g, _)| *g == r.group)
                .unwrap_or_else(|| {
                    groups.push((&r.group, Vec::new()));
                    groups.len() - 1
                });
            if !groups[at].1.contains(&r.version.as_str()) {
                groups[at].1.push(&r.version);
            }
        }
        // The CRDs of a group need not serve the same versions: the newest any of them serves is preferred.
        for (_, versions) in &mut groups {
            versions.sort_by_key(|version| std::cmp::Reverse(version_priority(version)));
        }
        groups
    }

    /// The resources of a group and version.
    pub fn of<'a>(
        &'a self,
        group: &'a str,
        version: &'a str,
    ) -> impl Iterator<Item = &'a Arc<Resource>> + 'a {
        self.resources
            .iter()
            .filter(move |r| r.group == group && r.version == version)
    }

    /// One resource per storage partition, in the version stored: what cleaning up a namespace walks over.
    pub fn stored(&self) -> impl Iterator<Item = &Arc<Resource>> {
        self.resources
            .iter()
            .filter(|r| r.serves("list") && r.is_storage_version())
    }
}

/// The served versions of a CRD as resources, in order of version priority (GA, beta, alpha; newest first).
fn custom_resources(definition: &Arc<crd::Crd>) -> Vec<Resource> {
    let storage_version = definition
        .versions
        .iter()
        .find(|v| v.storage)
        .map(|v| v.name.clone())
        .unwrap_or_default();
    let mut served: Vec<(usize, &crd::CrdVersion)> = definition
        .versions
        .iter()
        .enumerate()
        .filter(|(_, v)| v.served || v.storage)
        .collect();
    served.sort_by_key(|(_, v)| std::cmp::Reverse(version_priority(&v.name)));
    served
        .into_iter()
        .filter(|(_, v)| v.served)
        .map(|(version, v)| {
            let write: Vec<String> = ["get", "patch", "update"].map(str::to_owned).into();
            let mut subresources = Vec::new();
            if v.scale.is_some() {
                subresources.push(Subresource {
                    name: "scale".into(),
                    group: "autoscaling".into(),
                    version: "v1".into(),
                    kind: "Scale".into(),
                    verbs: write.clone(),
                });
            }
            if v.status_subresource {
                subresources.push(Subresource {
                    name: "status".into(),
                    group: definition.group.clone(),
                    version: v.name.clone(),
                    kind: definition.names.kind.clone(),
                    verbs: write,
                });
            }
            Resource {
                group: definition.group.clone(),
                version: v.name.clone(),
                kind: definition.names.kind.clone(),
                list_kind: definition.names.list_kind.clone(),
                plural: definition.names.plural.clone(),
                singular: definition.names.singular.clone(),
                short_names: definition.names.short_names.clone(),
                categories: definition.names.categories.clone(),
                namespaced: definition.namespaced,
                verbs: [
                    "delete",
                    "deletecollection",
                    "get",
                    "list",
                    "patch",
                    "create",
                    "update",
                    "watch",
                ]
                .map(str::to_owned)
                .into(),
                subresources,
                selectable_fields: v.selectable_fields.clone(),
                counts_generation: true,
                create_on_update: false,
                unconditional_update: false,
                returns_deleted: false,
                storage: format!("{}/{}", definition.group, definition.names.plural).into(),
                storage_version: storage_version.clone(),
                custom: Some(Custom {
                    crd: definition.clone(),
                    version,
                }),
            }
        })
        .collect()
}

/// Orders versions as Kubernetes does: `v2` > `v1` > `v1beta2` > `v1beta1` > `v1alpha1` > anything else.
pub fn version_priority(version: &str) -> (u8, u32, u32) {
    let parse = || {
        let rest = version.strip_prefix('v')?;
        let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let major = rest.get(..digits)?.parse().ok()?;
        let stage = rest.get(digits..)?;
        if stage.is_empty() {
            Some((3, major, 0))
        } else if let Some(minor) = stage.strip_prefix("beta") {
            Some((2, major, minor.parse().ok()?))
        } else if let Some(minor) = stage.strip_prefix("alpha") {
            Some((1, major, minor.parse().ok()?))
        } else {
            None
        }
    };
    parse().unwrap_or((0, 0, 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_partitions_are_unique() {
        let catalog = Catalog::new(&[]);
        assert_eq!(catalog.index.len(), catalog.resources.len());
        let mut partitions: Vec<_> = catalog.stored().map(|r| r.storage.clone()).collect();
        let before = partitions.len();
        partitions.sort();
        partitions.dedup();
        assert_eq!(before, partitions.len());
    }

    #[test]
    fn every_row_belongs_to_a_listed_group() {
        let catalog = Catalog::new(&[]);
        assert_eq!(catalog.groups().len(), table::GROUP_ORDER.len() - 1);
        assert_eq!(
            catalog
                .find("events.k8s.io", "v1", "events")
                .map(|r| &*r.storage),
            Some("/events")
        );
    }

    #[test]
    fn versions_are_ordered_by_stability_then_number() {
        let mut versions = ["v1alpha1", "v1", "v2beta1", "foo", "v10", "v1beta2", "v2"];
        versions.sort_by_key(|v| std::cmp::Reverse(version_priority(v)));
        assert_eq!(
            versions,
            ["v10", "v2", "v1", "v2beta1", "v1beta2", "v1alpha1", "foo"]
        );
    }
}
