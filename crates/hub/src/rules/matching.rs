//! Which objects a rule is for.

use super::{document::Fields, environment};
use crate::filter::Scope;
use std::collections::BTreeSet;
use yurt_cel::{Expression, Type};
use yurt_wire::{
    Gvk, Gvr, Object, ObjectMeta, Verb,
    selector::{FieldSelector, LabelSelector},
};

/// Entries of one list.
const MOST_ENTRIES: usize = 64;
/// Longest expression.
pub(super) const LONGEST_EXPRESSION: usize = 4 << 10;

/// What an object must be. What is not said does not matter.
#[derive(Clone, Debug, Default)]
pub(super) struct Match {
    group: Option<String>,
    version: Option<String>,
    kind: Option<String>,
    /// Groups and resources of requests, [`Scope::ANY`] for any.
    resources: Vec<(String, String)>,
    namespaces: BTreeSet<String>,
    names: BTreeSet<String>,
    labels: LabelSelector,
    fields: FieldSelector,
    /// Must hold too; it takes the whole object to tell.
    pub(super) condition: Option<Expression>,
}

impl Match {
    /// Reads `match`; what makes no sense is complained of.
    pub(super) fn read(fields: &mut Fields<'_>) -> Self {
        let mut read = Self::default();
        if let Some(text) = fields.text("apiVersion") {
            match api_version(text) {
                Some((group, version)) => {
                    read.group = Some(group.to_owned());
                    read.version = (version != Scope::ANY).then(|| version.to_owned());
                }
                None => fields.complain("apiVersion", "is not VERSION, GROUP/VERSION or GROUP/*"),
            }
        }
        if let Some(kind) = fields.text("kind") {
            if kind.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
                read.kind = Some(kind.to_owned());
            } else {
                fields.complain(
                    "kind",
                    "is no kind (Service); for several, name their resources",
                );
            }
        }
        for text in fields.texts("resources", MOST_ENTRIES).unwrap_or_default() {
            match resource(text) {
                Some((group, resource)) => read.resources.push((group.to_owned(), resource.to_owned())),
                None => fields.complain(
                    "resources",
                    format!("{text:?} is not RESOURCE or RESOURCE.GROUP in lower case, without a subresource; * stands for any of either"),
                ),
            }
        }
        if read.kind.is_none() && read.resources.is_empty() {
            fields.complain_of_all(
                "names neither a kind nor resources; resources: [\"*\"] is everything",
            );
        }
        let owned = |texts: Option<Vec<&str>>| -> BTreeSet<String> {
            let texts = texts.unwrap_or_default();
            texts.into_iter().map(str::to_owned).collect()
        };
        read.namespaces = owned(fields.texts("namespaces", MOST_ENTRIES));
        read.names = owned(fields.texts("names", MOST_ENTRIES));
        if let Some(text) = fields.text("labelSelector") {
            match LabelSelector::parse(text) {
                Ok(selector) => read.labels = selector,
                Err(error) => fields.complain("labelSelector", error.0),
            }
        }
        if let Some(text) = fields.text("fieldSelector") {
            match FieldSelector::parse(text) {
                Ok(selector) => read.fields = selector,
                Err(error) => fields.complain("fieldSelector", error.0),
            }
        }
        if let Some(source) = fields.text("expression") {
            match expression(source) {
                Ok((compiled, Type::Any | Type::Plain("bool"))) => read.condition = Some(compiled),
                Ok(_) => fields.complain("expression", "must be true or false"),
                Err(why) => fields.complain("expression", why),
            }
        }
        read
    }

    /// Which requests to look at.
    pub(super) fn scope(&self, components: Option<BTreeSet<String>>) -> Scope {
        let any = || Scope::ANY.to_owned();
        let version = self.version.clone().unwrap_or_else(any);
        let resources = if let (true, Some(kind)) = (self.resources.is_empty(), &self.kind) {
            let group = self.group.clone().unwrap_or_else(any);
            vec![Gvr {
                group,
                version,
                resource: plural(kind),
            }]
        } else {
            let gvr = |(group, resource): &(String, String)| Gvr::new(group, Scope::ANY, resource);
            self.resources.iter().map(gvr).collect()
        };
        let one = |set: &BTreeSet<String>| match set.len() {
            1 => set.first().cloned(),
            _ => None,
        };
        Scope {
            components,
            resources,
            verbs: vec![Verb::Get, Verb::List, Verb::Watch],
            object: one(&self.namespaces).zip(one(&self.names)),
            in_cloud: true,
        }
    }

    /// Whether every object of a resource is meant.
    pub(super) fn is_sweeping(&self) -> bool {
        self.namespaces.is_empty()
            && self.names.is_empty()
            && self.labels.is_empty()
            && self.fields.is_empty()
            && self.condition.is_none()
    }

    /// Whether objects of a kind can be meant.
    pub(super) fn reaches(&self, group: &str, kind: &str, resource: &str) -> bool {
        let named = |wanted: &Option<String>, is: &str| wanted.as_ref().is_none_or(|w| w == is);
        let any = |wanted: &str, is: &str| wanted == Scope::ANY || wanted == is;
        named(&self.group, group)
            && named(&self.kind, kind)
            && (self.resources.is_empty()
                || self
                    .resources
                    .iter()
                    .any(|(of, name)| any(of, group) && any(name, resource)))
    }

    /// Whether an object is meant, but for the condition.
    pub(super) fn takes(&self, object: &Object, meta: &ObjectMeta) -> bool {
        let named = |set: &BTreeSet<String>, is: &str| set.is_empty() || set.contains(is);
        self.is_kind(&meta.gvk)
            && named(&self.namespaces, &meta.namespace)
            && named(&self.names, &meta.name)
            && self.labels.matches(&meta.labels)
            && self.fields.requirements.iter().all(|wanted| {
                // What cannot be told is not meant.
                let is = object.field(&wanted.path);
                is.is_some_and(|is| (is == wanted.value) == wanted.equals)
            })
    }

    fn is_kind(&self, gvk: &Gvk) -> bool {
        let named = |wanted: &Option<String>, is: &str| wanted.as_ref().is_none_or(|w| w == is);
        named(&self.group, &gvk.group)
            && named(&self.version, &gvk.version)
            && named(&self.kind, &gvk.kind)
    }
}

/// Reads an expression over what rules know.
pub(super) fn expression(source: &str) -> Result<(Expression, Type<'static>), String> {
    if source.len() > LONGEST_EXPRESSION {
        return Err(format!(
            "is of {} bytes, more than {LONGEST_EXPRESSION}",
            source.len()
        ));
    }
    Expression::compile(source, &environment::types())
}

/// `VERSION`, `GROUP/VERSION` or `GROUP/*`.
fn api_version(text: &str) -> Option<(&str, &str)> {
    let (group, version) = text.rsplit_once('/').unwrap_or(("", text));
    let known =
        version == Scope::ANY && !group.is_empty() || !version.is_empty() && is_lower(version, "");
    (known && (group.is_empty() != text.contains('/')) && is_lower(group, "-."))
        .then_some((group, version))
}

/// `RESOURCE` or `RESOURCE.GROUP`, as `(group, resource)`; a lone `*` is any resource of any group.
fn resource(text: &str) -> Option<(&str, &str)> {
    if text == Scope::ANY {
        return Some((Scope::ANY, Scope::ANY));
    }
    let (resource, group) = text.split_once('.').unwrap_or((text, ""));
    let is_known = |name: &str, more: &str| name == Scope::ANY || is_lower(name, more);
    let whole = !resource.is_empty() && (group.is_empty() != text.contains('.'));
    (whole && is_known(resource, "-") && is_known(group, "-.")).then_some((group, resource))
}

fn is_lower(text: &str, more: &str) -> bool {
    text.bytes().all(|byte| {
        byte.is_ascii_lowercase() || byte.is_ascii_digit() || more.as_bytes().contains(&byte)
    })
}

/// The resource of a kind, as Kubernetes' clients guess it where they cannot ask; it holds for all built-in kinds.
pub(crate) fn plural(kind: &str) -> String {
    let lower = kind.to_ascii_lowercase();
    match lower.strip_suffix('y') {
        _ if lower == "endpoints" => lower,
        _ if lower.ends_with('s') => lower + "es",
        Some(stem) if !lower.ends_with("ay") && !lower.ends_with("ey") => format!("{stem}ies"),
        _ => lower + "s",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_have_their_resources() {
        for (kind, resource) in [
            ("Service", "services"),
            ("Endpoints", "endpoints"),
            ("EndpointSlice", "endpointslices"),
            ("NetworkPolicy", "networkpolicies"),
            ("Ingress", "ingresses"),
            ("IngressClass", "ingressclasses"),
            ("Gateway", "gateways"),
        ] {
            assert_eq!(plural(kind), resource);
        }
    }

    #[test]
    fn versions_and_resources_are_read_whole() {
        assert_eq!(api_version("v1"), Some(("", "v1")));
        assert_eq!(api_version("apps/v1"), Some(("apps", "v1")));
        assert_eq!(api_version("apps/*"), Some(("apps", "*")));
        for bad in ["*", "/v1", "a/b/v1", "V1", "apps/", "", "apps/ v1"] {
            assert_eq!(api_version(bad), None, "{bad}");
        }
        assert_eq!(resource("*"), Some(("*", "*")));
        assert_eq!(resource("services"), Some(("", "services")));
        assert_eq!(
            resource("endpointslices.discovery.k8s.io"),
            Some(("discovery.k8s.io", "endpointslices"))
        );
        assert_eq!(resource("*.apps"), Some(("apps", "*")));
        assert_eq!(resource("leases.*"), Some(("*", "leases")));
        for bad in ["", ".", "services.", ".apps", "pods/status", "Pods", "**"] {
            assert_eq!(resource(bad), None, "{bad}");
        }
    }
}
