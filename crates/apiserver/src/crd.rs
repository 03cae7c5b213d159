//! Custom resource definitions: reading and checking them, and the schemas by which their objects are pruned,
//! defaulted and validated.
//!
//! Start with [`Crd::parse`]. A served version's [`Structural`] does the rest: [`Structural::prune`],
//! [`Structural::apply_defaults`], [`Structural::validate`], in this order, as kube-apiserver does.

mod defaults;
mod format;
pub(crate) mod naming;
mod prune;
pub(crate) mod rules;
pub mod structural;
#[cfg(test)]
mod tests;
mod typing;
mod validate;

pub(crate) use prune::OBJECT_META;
pub use structural::{Additional, JsonType, Structural};

use crate::causes::{duplicate, forbidden, invalid, not_supported, required};
use crate::validation::names::{is_dns1035_label, is_dns1123_subdomain};
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;
use yurt_wire::status::Cause;

/// The names of a custom resource.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Names {
    pub plural: String,
    pub singular: String,
    pub kind: String,
    pub list_kind: String,
    pub short_names: Vec<String>,
    pub categories: Vec<String>,
}

/// Where the scale subresource finds its numbers: dotted paths with a leading dot (`.spec.replicas`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ScalePaths {
    /// In the spec.
    pub spec_replicas: String,
    /// In the status.
    pub status_replicas: String,
    /// A serialised label selector; optional.
    pub label_selector: Option<String>,
}

/// One version of a custom resource.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct CrdVersion {
    pub name: String,
    pub served: bool,
    pub storage: bool,
    pub deprecated: bool,
    /// What to tell users of a deprecated version, instead of the standard sentence.
    pub deprecation_warning: Option<String>,
    pub schema: Option<Structural>,
    pub status_subresource: bool,
    pub scale: Option<ScalePaths>,
    /// `additionalPrinterColumns`, as written.
    pub columns: Option<Value>,
    /// JSON paths with the leading dot, `.spec.host`.
    pub selectable_fields: Vec<String>,
}

/// A custom resource definition that may be served.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct Crd {
    pub group: String,
    pub names: Names,
    pub namespaced: bool,
    pub versions: Vec<CrdVersion>,
    /// `spec.conversion` when its strategy is `Webhook`.
    pub conversion_webhook: Option<Value>,
}

fn text<'v>(value: &'v Value, pointer: &str) -> &'v str {
    value
        .pointer(pointer)
        .and_then(Value::as_str)
        .unwrap_or_default()
}

fn strings(value: &Value, pointer: &str) -> Vec<String> {
    value
        .pointer(pointer)
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .map(str::to_owned)
        .collect()
}

fn flag(value: &Value, pointer: &str) -> bool {
    value.pointer(pointer) == Some(&Value::Bool(true))
}

impl Crd {
    /// Reads an `apiextensions.k8s.io/v1` definition that went through [`default_crd`]; all that is wrong with it
    /// otherwise.
    pub fn parse(crd: &Value) -> Result<Crd, Vec<Cause>> {
        let mut causes = Vec::new();
        let group = text(crd, "/spec/group").to_owned();
        check_group(crd, &group, &mut causes);
        let names = Names {
            plural: text(crd, "/spec/names/plural").into(),
            singular: text(crd, "/spec/names/singular").into(),
            kind: text(crd, "/spec/names/kind").into(),
            list_kind: text(crd, "/spec/names/listKind").into(),
            short_names: strings(crd, "/spec/names/shortNames"),
            categories: strings(crd, "/spec/names/categories"),
        };
        check_names(&names, &mut causes);
        let full_name = format!("{}.{group}", names.plural);
        if text(crd, "/metadata/name") != full_name {
            causes.push(invalid(
                "metadata.name",
                &Value::from(text(crd, "/metadata/name")),
                "must be spec.names.plural+\".\"+spec.group",
            ));
        }
        let scope = text(crd, "/spec/scope");
        match scope {
            "Namespaced" | "Cluster" => {}
            "" => causes.push(required("spec.scope", "")),
            other => causes.push(not_supported(
                "spec.scope",
                &Value::from(other),
                &["Cluster", "Namespaced"],
            )),
        }
        if flag(crd, "/spec/preserveUnknownFields") {
            causes.push(invalid(
                "spec.preserveUnknownFields",
                &Value::Bool(true),
                "cannot set to true, set x-kubernetes-preserve-unknown-fields to true in spec.versions[*].schema instead",
            ));
        }
        let conversion_webhook = check_conversion(crd, &mut causes);
        let versions = parse_versions(crd, &mut causes);
        if causes.is_empty() {
            Ok(Crd {
                group,
                names,
                namespaced: scope == "Namespaced",
                versions,
                conversion_webhook,
            })
        } else {
            Err(causes)
        }
    }

    /// A version by its name.
    pub fn version(&self, name: &str) -> Option<&CrdVersion> {
        self.versions.iter().find(|version| version.name == name)
    }

    /// The version that objects are stored in.
    pub fn storage_version(&self) -> Option<&CrdVersion> {
        self.versions.iter().find(|version| version.storage)
    }
}

fn check_group(crd: &Value, group: &str, causes: &mut Vec<Cause>) {
    let value = Value::from(group);
    if group.is_empty() {
        causes.push(required("spec.group", ""));
        return;
    }
    if !is_dns1123_subdomain(group) {
        causes.push(invalid(
            "spec.group",
            &value,
            crate::validation::names::DNS1123_SUBDOMAIN,
        ));
    } else if !group.contains('.') {
        causes.push(invalid(
            "spec.group",
            &value,
            "should be a domain with at least one dot",
        ));
    }
    let protected = group.ends_with(".k8s.io") || group.ends_with(".kubernetes.io");
    let approval = crd
        .pointer("/metadata/annotations")
        .and_then(|annotations| annotations.get("api-approved.kubernetes.io"));
    if protected && approval.is_none() {
        causes.push(required(
            "metadata.annotations[api-approved.kubernetes.io]",
            "protected groups must have approval annotation \"api-approved.kubernetes.io\", see https://github.com/kubernetes/enhancements/pull/1111",
        ));
    }
}

fn check_names(names: &Names, causes: &mut Vec<Cause>) {
    let mut label = |field: &str, value: &str, needed: bool| {
        if value.is_empty() {
            if needed {
                causes.push(required(field, ""));
            }
        } else if !is_dns1035_label(&value.to_lowercase()) {
            causes.push(invalid(
                field,
                &Value::from(value),
                crate::validation::names::DNS1035_LABEL,
            ));
        }
    };
    label("spec.names.plural", &names.plural, true);
    label("spec.names.singular", &names.singular, false);
    label("spec.names.kind", &names.kind, true);
    label("spec.names.listKind", &names.list_kind, false);
    for (i, short) in names.short_names.iter().enumerate() {
        label(&format!("spec.names.shortNames[{i}]"), short, true);
    }
    for (i, category) in names.categories.iter().enumerate() {
        label(&format!("spec.names.categories[{i}]"), category, true);
    }
    for (field, value) in [
        ("spec.names.plural", &names.plural),
        ("spec.names.singular", &names.singular),
    ] {
        if value.chars().any(char::is_uppercase) {
            causes.push(invalid(
                field,
                &Value::from(value.as_str()),
                crate::validation::names::DNS1035_LABEL,
            ));
        }
    }
    if !names.kind.is_empty() && names.kind == names.list_kind {
        causes.push(invalid(
            "spec.names.listKind",
            &Value::from(names.list_kind.as_str()),
            "kind and listKind may not be the same",
        ));
    }
}

fn check_conversion(crd: &Value, causes: &mut Vec<Cause>) -> Option<Value> {
    let conversion = crd.pointer("/spec/conversion")?;
    let webhook = conversion.get("webhook").filter(|w| !w.is_null());
    match text(conversion, "/strategy") {
        "" => causes.push(required("spec.conversion.strategy", "")),
        "None" => {
            if webhook.is_some() {
                causes.push(forbidden(
                    "spec.conversion.webhook",
                    "should not be set when strategy is not set to Webhook",
                ));
            }
        }
        "Webhook" => {
            let config = webhook.and_then(|w| w.get("clientConfig"));
            match config {
                None => causes.push(required(
                    "spec.conversion.webhook.clientConfig",
                    "required when strategy is set to Webhook",
                )),
                Some(config) => crate::validation::webhook_client(
                    "spec.conversion.webhook.clientConfig",
                    config,
                    causes,
                ),
            }
            if strings(conversion, "/webhook/conversionReviewVersions").is_empty() {
                causes.push(required(
                    "spec.conversion.webhook.conversionReviewVersions",
                    "",
                ));
            }
            return Some(conversion.clone());
        }
        other => causes.push(not_supported(
            "spec.conversion.strategy",
            &Value::from(other),
            &["None", "Webhook"],
        )),
    }
    None
}

fn parse_versions(crd: &Value, causes: &mut Vec<Cause>) -> Vec<CrdVersion> {
    let list = crd
        .pointer("/spec/versions")
        .and_then(Value::as_array)
        .map(Vec::as_slice)
        .unwrap_or_default();
    let mut seen = BTreeSet::new();
    let mut out = Vec::new();
    for (i, version) in list.iter().enumerate() {
        let path = format!("spec.versions[{i}]");
        let name = text(version, "/name");
        if !is_dns1035_label(name) {
            causes.push(invalid(
                &format!("{path}.name"),
                &Value::from(name),
                crate::validation::names::DNS1035_LABEL,
            ));
        }
        if !seen.insert(name) {
            causes.push(duplicate(&format!("{path}.name"), &Value::from(name)));
        }
        out.push(parse_version(version, &path, causes));
    }
    if out.iter().filter(|version| version.storage).count() != 1 {
        causes.push(invalid(
            "spec.versions",
            &Value::Array(list.iter().map(|v| v["name"].clone()).collect()),
            "must have exactly one version marked as storage version",
        ));
    }
    out
}

fn parse_version(version: &Value, path: &str, causes: &mut Vec<Cause>) -> CrdVersion {
    let schema_path = format!("{path}.schema.openAPIV3Schema");
    let schema = match version.pointer("/schema/openAPIV3Schema") {
        None | Some(Value::Null) => {
            causes.push(required(&schema_path, "schemas are required"));
            None
        }
        Some(schema) => match Structural::parse(schema, &schema_path) {
            Ok(schema) => Some(schema),
            Err(more) => {
                causes.extend(more);
                None
            }
        },
    };
    let scale = version
        .pointer("/subresources/scale")
        .filter(|scale| !scale.is_null())
        .map(|scale| parse_scale(scale, &format!("{path}.subresources.scale"), causes));
    let columns = version
        .get("additionalPrinterColumns")
        .filter(|columns| !columns.is_null());
    check_columns(columns, path, causes);
    let mut selectable_fields = Vec::new();
    for (i, field) in version
        .get("selectableFields")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .enumerate()
    {
        let json_path = text(field, "/jsonPath");
        if simple_path(json_path).is_none() {
            causes.push(invalid(
                &format!("{path}.selectableFields[{i}].jsonPath"),
                &Value::from(json_path),
                "is an invalid path: must be a simple json path to a field",
            ));
        }
        selectable_fields.push(json_path.to_owned());
    }
    CrdVersion {
        name: text(version, "/name").into(),
        served: flag(version, "/served"),
        storage: flag(version, "/storage"),
        deprecated: flag(version, "/deprecated"),
        deprecation_warning: version
            .get("deprecationWarning")
            .and_then(Value::as_str)
            .map(str::to_owned),
        schema,
        status_subresource: version
            .pointer("/subresources/status")
            .is_some_and(|status| !status.is_null()),
        scale,
        columns: columns.cloned(),
        selectable_fields,
    }
}

fn check_columns(columns: Option<&Value>, path: &str, causes: &mut Vec<Cause>) {
    for (i, column) in columns
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .enumerate()
    {
        let at = format!("{path}.additionalPrinterColumns[{i}]");
        if text(column, "/name").is_empty() {
            causes.push(required(&format!("{at}.name"), ""));
        }
        if text(column, "/jsonPath").is_empty() {
            causes.push(required(&format!("{at}.jsonPath"), ""));
        }
        let types = ["boolean", "date", "integer", "number", "string"];
        match text(column, "/type") {
            "" => causes.push(required(&format!("{at}.type"), "")),
            name if types.contains(&name) => {}
            other => causes.push(not_supported(
                &format!("{at}.type"),
                &Value::from(other),
                &types,
            )),
        }
    }
}

/// `.spec.replicas` -> `[spec, replicas]`.
fn simple_path(path: &str) -> Option<Vec<String>> {
    let rest = path.strip_prefix('.')?;
    let valid = |name: &str| {
        !name.is_empty()
            && name
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-'))
    };
    let names: Vec<&str> = rest.split('.').collect();
    names
        .iter()
        .all(|name| valid(name))
        .then(|| names.into_iter().map(str::to_owned).collect())
}

fn parse_scale(scale: &Value, path: &str, causes: &mut Vec<Cause>) -> ScalePaths {
    let mut read = |name: &str, under: &[&str], needed: bool| {
        let written = text(scale, &format!("/{name}"));
        let at = format!("{path}.{name}");
        if written.is_empty() {
            if needed {
                causes.push(required(&at, ""));
            }
            return None;
        }
        match simple_path(written).filter(|p| p.len() > 1 && under.contains(&p[0].as_str())) {
            Some(_) => Some(written.to_owned()),
            None => {
                let under: Vec<String> = under.iter().map(|name| format!(".{name}")).collect();
                causes.push(invalid(
                    &at,
                    &Value::from(written),
                    &format!("should be a json path under {}", under.join(" or ")),
                ));
                None
            }
        }
    };
    ScalePaths {
        spec_replicas: read("specReplicasPath", &["spec"], true).unwrap_or_default(),
        status_replicas: read("statusReplicasPath", &["status"], true).unwrap_or_default(),
        label_selector: read("labelSelectorPath", &["spec", "status"], false),
    }
}

/// Fills what a definition may leave out.
pub fn default_crd(crd: &mut Value) {
    let Some(Value::Object(spec)) = crd.get_mut("spec") else {
        return;
    };
    if let Some(Value::Object(names)) = spec.get_mut("names") {
        let kind = names
            .get("kind")
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned();
        let mut fill = |name: &str, value: String| {
            let slot = names.entry(name).or_insert(Value::Null);
            if (slot.is_null() || slot == "") && !kind.is_empty() {
                *slot = Value::from(value);
            }
        };
        fill("singular", kind.to_lowercase());
        fill("listKind", format!("{kind}List"));
    }
    let conversion = spec
        .entry("conversion")
        .or_insert_with(|| json!({"strategy": "None"}));
    if let Some(Value::Object(service)) = conversion.pointer_mut("/webhook/clientConfig/service") {
        service.entry("port").or_insert(Value::from(443));
    }
}

/// The status of a definition, by the names that other definitions of its group have: kept times where nothing changes. What
/// is served stays served, also when a change of its names is not accepted.
pub(crate) fn establish_status(crd: &Value, others: &[Value], now: &str) -> Value {
    let verdict = naming::judge(crd, others);
    let mut status = match crd.get("status") {
        Some(Value::Object(status)) => status.clone(),
        _ => Map::new(),
    };
    status.insert("acceptedNames".into(), verdict.accepted);
    let mut conditions: Vec<Value> = status
        .get("conditions")
        .and_then(Value::as_array)
        .cloned()
        .unwrap_or_default();
    let names = match &verdict.conflict {
        None => ("True", "NoConflicts", "no conflicts found"),
        Some((reason, message)) => ("False", *reason, message.as_str()),
    };
    let established = match (&verdict.conflict, naming::has_condition(crd, "Established")) {
        (Some(_), false) => ("False", "NotAccepted", "not all names are accepted"),
        _ => (
            "True",
            "InitialNamesAccepted",
            "the initial names have been accepted",
        ),
    };
    for (name, (outcome, reason, message)) in
        [("NamesAccepted", names), ("Established", established)]
    {
        let known = conditions.iter_mut().find(|c| text(c, "/type") == name);
        let mut fresh = json!({
            "type": name, "status": outcome, "reason": reason, "message": message,
            "lastTransitionTime": now,
        });
        match known {
            Some(known) if text(known, "/status") == outcome => {
                fresh["lastTransitionTime"] = known["lastTransitionTime"].clone();
                if outcome == "False" {
                    *known = fresh;
                }
            }
            Some(known) => *known = fresh,
            None => conditions.push(fresh),
        }
    }
    status.insert("conditions".into(), Value::Array(conditions));
    let mut stored = strings(crd, "/status/storedVersions");
    let storage = crd
        .pointer("/spec/versions")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .find(|version| flag(version, "/storage"))
        .map(|version| text(version, "/name"));
    if let Some(name) = storage
        && !stored.iter().any(|known| known == name)
    {
        stored.push(name.to_owned());
    }
    status.insert("storedVersions".into(), json!(stored));
    Value::Object(status)
}
