//! The layout of OpenYurt's cache directory: what its names mean, and what may be concluded from them. Pure.
//!
//! `COMPONENT/RESOURCE.VERSION.GROUP/[NAMESPACE/]NAME`, with `core` for the core group; older hubs wrote just `RESOURCE` as the
//! second part. Beside the components: `version`, `_apis_GROUP_VERSION` (documents, slashes written as underscores) and
//! `_internal`. `tmp_` before a name marks what an interrupted replacement left: it is the last good state.

use crate::query::Query;
use std::collections::BTreeMap;
use yurt_wire::{
    Gvr,
    schema::kinds,
    selector::{FieldRequirement, FieldSelector, LabelSelector},
};

/// Marks the state before an interrupted replacement; wins over its twin without the mark.
const TMP: &str = "tmp_";
/// Where the hub keeps what is of no component.
pub(super) const INTERNAL: &str = "_internal";
/// Its file of custom resources' kinds.
pub(super) const KINDS: &str = "restmapper/cache-crd-restmapper.conf";
/// Second part of partial metadata's directories.
const PARTIAL: &str = "partialobjectmetadatas";
/// What kube-proxy lists services and slices with.
const PROXY_LABELS: &str =
    "!service.kubernetes.io/headless,!service.kubernetes.io/service-proxy-name";

/// The entries of one directory by the names they stand for: `tmp_x` in place of `x`.
pub(super) fn effective<T>(entries: impl IntoIterator<Item = (String, T)>) -> BTreeMap<String, T> {
    let mut plain = BTreeMap::new();
    let mut saved = BTreeMap::new();
    for (name, entry) in entries {
        match name.strip_prefix(TMP) {
            Some(of) if !of.is_empty() => saved.insert(of.to_owned(), entry),
            _ => plain.insert(name, entry),
        };
    }
    plain.extend(saved);
    plain
}

/// What the second part of a path is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Second {
    /// A resource with group and version.
    Resource(Gvr),
    /// Just a resource, as older hubs wrote it.
    Bare(String),
    /// Partial metadata: without the objects it is of no use.
    Partial,
}

/// Reads the second part of a path.
pub(super) fn second(name: &str) -> Option<Second> {
    let mut parts = name.splitn(3, '.');
    match (parts.next()?, parts.next(), parts.next()) {
        (PARTIAL, ..) => Some(Second::Partial),
        ("", ..) => None,
        (resource, None, _) => Some(Second::Bare(resource.to_owned())),
        (_, Some(_), None) => None,
        (resource, Some(version), Some(group)) => {
            if version.is_empty() || group.is_empty() {
                return None;
            }
            let group = if group == "core" { "" } else { group };
            Some(Second::Resource(Gvr::new(group, version, resource)))
        }
    }
}

/// The path of a document's file; `None` for other files.
pub(super) fn document(name: &str) -> Option<String> {
    if name == "version" {
        return Some("/version".into());
    }
    let path = name.replace('_', "/");
    (path.starts_with("/api") && !path.contains("//")).then_some(path)
}

/// The plural of a kind, as API servers name resources.
fn plural(kind: &str) -> String {
    let lower = kind.to_ascii_lowercase();
    // Endpoints are plural already.
    if lower == "endpoints" {
        return lower;
    }
    let vowel = |letter: Option<char>| letter.is_some_and(|l| "aeiou".contains(l));
    if lower.ends_with('s') || lower.ends_with('x') || lower.ends_with("ch") {
        return format!("{lower}es");
    }
    match lower.strip_suffix('y') {
        Some(stem) if !vowel(stem.chars().last()) => format!("{stem}ies"),
        _ => format!("{lower}s"),
    }
}

/// The kind of a built-in resource.
pub(super) fn kind_of(gvr: &Gvr) -> Option<&'static str> {
    kinds()
        .filter(|kind| kind.group == gvr.group && kind.version == gvr.version)
        .map(|kind| kind.kind)
        .find(|kind| plural(kind) == gvr.resource)
}

/// Group and version of a resource of which a directory tells only the name, when one stable built-in resource has it.
pub(super) fn built_in(resource: &str) -> Option<Gvr> {
    let mut found: Vec<Gvr> = kinds()
        .filter(|kind| kind.version == "v1" && plural(kind.kind) == resource)
        .map(|kind| Gvr::new(kind.group, kind.version, resource))
        .collect();
    // `events` are of two groups; components of old hubs knew those of the core group.
    found.sort_by(|a, b| a.group.cmp(&b.group));
    found.into_iter().next()
}

/// The resource of an object (JSON) in a directory that tells only its name.
pub(super) fn gvr_of(resource: &str, api_version: &str) -> Option<Gvr> {
    if api_version.is_empty() {
        return None;
    }
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    Some(Gvr::new(group, version, resource))
}

/// The kinds of custom resources from the hub's file: `GROUP/VERSION/RESOURCE` to kind.
pub(super) fn custom_kinds(file: &[u8]) -> BTreeMap<String, String> {
    serde_json::from_slice(file).unwrap_or_default()
}

/// What the directory of a resource is complete for.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Claim {
    /// It holds all objects of a query.
    Complete(Query),
    /// Objects came one by one.
    Named,
    /// Not worth keeping.
    Nothing,
}

/// What may be concluded from the directory of a component. The original hub wrote whatever a component listed into it; where
/// components are known to ask narrowly, completeness is claimed for just that.
pub(super) fn claim(component: &str, gvr: &Gvr, node: &str) -> Claim {
    if gvr.resource == "events" {
        return Claim::Nothing;
    }
    let all = Query::all(gvr.clone(), "");
    let resource = (gvr.group.as_str(), gvr.resource.as_str());
    match (component, resource) {
        ("kubelet", ("", "pods")) if !node.is_empty() => Claim::Complete(Query {
            fields: FieldSelector::of(vec![FieldRequirement {
                path: "spec.nodeName".into(),
                equals: true,
                value: node.into(),
            }]),
            ..all
        }),
        (
            "kubelet",
            ("", "services")
            | ("node.k8s.io", "runtimeclasses")
            | ("storage.k8s.io", "csidrivers")
            | ("certificates.k8s.io", "clustertrustbundles"),
        )
        | ("yurthub", ("", "services")) => Claim::Complete(all),
        // Other reads of theirs are by name or by label.
        ("kubelet" | "yurthub", _) | ("kube-proxy", ("", "nodes")) => Claim::Named,
        ("kube-proxy", ("", "services" | "endpoints") | ("discovery.k8s.io", "endpointslices")) => {
            match LabelSelector::parse(PROXY_LABELS) {
                Ok(labels) => Claim::Complete(Query { labels, ..all }),
                Err(_) => Claim::Named,
            }
        }
        _ => Claim::Complete(all),
    }
}

/// Whether a component ran with the node's identity, so that the node may read what it read. Secrets only as a kubelet reads
/// them.
pub(super) fn is_of_node(component: &str, gvr: &Gvr) -> bool {
    super::super::agents::is_usual(component)
        && (component == "kubelet"
            || (gvr.group.as_str(), gvr.resource.as_str()) != ("", "secrets"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_directories() {
        let resource = |g, v, r| Some(Second::Resource(Gvr::new(g, v, r)));
        for (name, expected) in [
            ("pods.v1.core", resource("", "v1", "pods")),
            (
                "nodepools.v1beta2.apps.openyurt.io",
                resource("apps.openyurt.io", "v1beta2", "nodepools"),
            ),
            ("pods", Some(Second::Bare("pods".into()))),
            (
                "partialobjectmetadatas.v1.meta.k8s.io",
                Some(Second::Partial),
            ),
            ("pods.v1", None),
            ("pods..core", None),
            (".v1.core", None),
            ("", None),
        ] {
            assert_eq!(second(name), expected, "{name}");
        }
    }

    #[test]
    fn what_an_interrupted_replacement_left_wins() {
        let entries = ["a", "tmp_a", "b", "tmp_c", "tmp_"].map(|name| (name.to_owned(), name));
        let found: Vec<_> = effective(entries).into_iter().collect();
        let expected = [("a", "tmp_a"), ("b", "b"), ("c", "tmp_c"), ("tmp_", "tmp_")];
        assert_eq!(
            found,
            expected.map(|(name, entry)| (name.to_owned(), entry))
        );
    }

    #[test]
    fn documents() {
        for (name, path) in [
            ("version", Some("/version")),
            (
                "_apis_discovery.k8s.io_v1",
                Some("/apis/discovery.k8s.io/v1"),
            ),
            ("_api_v1", Some("/api/v1")),
            ("_internal", None),
            ("__apis", None),
            ("kubelet", None),
        ] {
            assert_eq!(document(name).as_deref(), path, "{name}");
        }
    }

    #[test]
    fn kinds_of_resources() {
        for (gvr, kind) in [
            (Gvr::new("", "v1", "pods"), Some("Pod")),
            (Gvr::new("", "v1", "endpoints"), Some("Endpoints")),
            (
                Gvr::new("storage.k8s.io", "v1", "csidrivers"),
                Some("CSIDriver"),
            ),
            (
                Gvr::new("node.k8s.io", "v1", "runtimeclasses"),
                Some("RuntimeClass"),
            ),
            (
                Gvr::new("networking.k8s.io", "v1", "networkpolicies"),
                Some("NetworkPolicy"),
            ),
            (Gvr::new("x.example", "v1", "things"), None),
        ] {
            assert_eq!(kind_of(&gvr), kind, "{gvr}");
        }
        assert_eq!(built_in("services"), Some(Gvr::new("", "v1", "services")));
        assert_eq!(built_in("events").map(|gvr| gvr.group), Some(String::new()));
        assert_eq!(built_in("things"), None);
        assert_eq!(
            gvr_of("leases", "coordination.k8s.io/v1"),
            Some(Gvr::new("coordination.k8s.io", "v1", "leases"))
        );
    }

    #[test]
    fn narrow_readers_are_not_taken_for_wide_ones() {
        let claimed = |component, group, resource| match claim(
            component,
            &Gvr::new(group, "v1", resource),
            "edge-1",
        ) {
            Claim::Complete(query) => query.to_text(),
            Claim::Named => "named".into(),
            Claim::Nothing => "nothing".into(),
        };
        for (component, group, resource, expected) in [
            ("kubelet", "", "pods", "/v1/pods/?&spec.nodeName=edge-1"),
            ("kubelet", "", "nodes", "named"),
            ("kubelet", "", "secrets", "named"),
            ("kubelet", "", "services", "/v1/services/?&"),
            ("kubelet", "", "events", "nothing"),
            ("kube-proxy", "", "nodes", "named"),
            ("yurthub", "", "configmaps", "named"),
            ("flanneld", "", "nodes", "/v1/nodes/?&"),
            ("coredns", "", "services", "/v1/services/?&"),
        ] {
            assert_eq!(
                claimed(component, group, resource),
                expected,
                "{component} {resource}"
            );
        }
        let proxy = claimed("kube-proxy", "discovery.k8s.io", "endpointslices");
        assert!(proxy.contains("!service.kubernetes.io/headless"), "{proxy}");
        let secrets = Gvr::new("", "v1", "secrets");
        assert!(is_of_node("kubelet", &secrets));
        assert!(!is_of_node("coredns", &secrets));
        assert!(!is_of_node("some-agent", &Gvr::new("", "v1", "pods")));
    }
}
