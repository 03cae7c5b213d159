//! YurtAppSets: the workload that each pool would get must be one.

use super::{
    fault::{Findings, is_subdomain},
    review::{Answer, Denial},
    workload,
};
use serde_json::{Value, json};
use yurt_api::{
    apps::{
        workload::{Template, WorkloadTemplate},
        yurtappset::{Patch, Tweaks, WorkloadTweak, YurtAppSetSpec},
    },
    names::labels,
};
use yurt_controller::fields::{items, text};
use yurt_wire::patch::json_patch;

/// A set is named in a label of its workloads, and its revisions (`NAME-HASH`) in another.
const LONGEST_NAME: usize = 52;
/// What stands for a pool where its name is needed.
const POOL: &str = "pool";
const TOKEN: &str = "{{nodepool-name}}";

/// What is made of a set that somebody writes.
pub(super) fn completed(mut set: Value) -> Value {
    if set["spec"].is_object() && set["spec"]["revisionHistoryLimit"].is_null() {
        set["spec"]["revisionHistoryLimit"] = 10.into();
    }
    set
}

/// Judges a set that is created, or takes the place of `old`.
pub(super) fn judged(old: Option<&Value>, new: &Value) -> Result<Answer, Denial> {
    let mut found = findings(new);
    let template = |set: &Value| set["spec"]["workload"]["workloadTemplate"].clone();
    match old {
        None => name(&text(&new["metadata"]["name"]), &mut found),
        Some(old) => unchanged(
            &template(old),
            &template(new),
            "spec.workload.workloadTemplate",
            &mut found,
        ),
    }
    found.verdict(old.map(findings))
}

/// The name of a set that renders workloads per pool.
pub(super) fn name(name: &str, found: &mut Findings) {
    if name.len() > LONGEST_NAME {
        found.fault(
            "metadata.name",
            format!(
                "must be no more than {LONGEST_NAME} characters: with the hash of a revision it is a label of the workloads, which has 63 at most"
            ),
        );
    }
}

/// Kind and selector of a template stay: workloads cannot change them.
pub(super) fn unchanged(old: &Value, new: &Value, at: &str, found: &mut Findings) {
    let kind = |template: &Value| {
        let template: WorkloadTemplate = serde_json::from_value(template.clone()).ok()?;
        let (kind, only) = template.only()?;
        Some((kind, only.spec["selector"].clone()))
    };
    let (Some((kind, selector)), Some((new_kind, new_selector))) = (kind(old), kind(new)) else {
        return;
    };
    if kind != new_kind {
        found.fault(
            at,
            format!(
                "cannot change from {kind} to {new_kind}: create another set, and delete this one when that is ready"
            ),
        );
    } else if selector != new_selector {
        found.fault(
            format!("{at}.{}.spec.selector", field_of(kind)),
            "cannot be changed, as the selector of a workload cannot: create another set, and delete this one when that is ready",
        );
    }
}

fn field_of(kind: &str) -> &'static str {
    if kind == "Deployment" {
        "deploymentTemplate"
    } else {
        "statefulSetTemplate"
    }
}

/// The one template, or what is wrong with it.
pub(super) fn only<'t>(
    template: &'t WorkloadTemplate,
    at: &str,
    found: &mut Findings,
) -> Option<(&'static str, &'t Template)> {
    let only = template.only();
    if only.is_none() {
        found.fault(
            at,
            "exactly one of deploymentTemplate and statefulSetTemplate is needed",
        );
    }
    only
}

/// The workload of a pool before any tweak, with what controllers add to it.
pub(super) fn rendered(kind: &str, template: &Template, set: &str) -> Value {
    let mut workload = json!({"apiVersion": "apps/v1", "kind": kind,
        "metadata": template.metadata, "spec": template.spec});
    if !workload["metadata"].is_object() {
        workload["metadata"] = json!({});
    }
    workload["metadata"]["name"] = format!("{set}-{POOL}").into();
    for path in [
        &["metadata", "annotations"][..],
        &["metadata", "labels"],
        &["spec", "selector", "matchLabels"],
        &["spec", "template", "metadata", "labels"],
        &["spec", "template", "spec", "nodeSelector"],
    ] {
        let mut at = Some(&mut workload);
        for field in path {
            at = at.and_then(Value::as_object_mut).map(|object| {
                let value = object.entry(*field).or_insert(Value::Null);
                if value.is_null() {
                    *value = json!({});
                }
                value
            });
        }
        let Some(Value::Object(map)) = at else {
            continue;
        };
        match path {
            [.., "nodeSelector"] => map.insert(labels::NODE_POOL.into(), POOL.into()),
            [.., "annotations"] => None,
            _ => map.insert(labels::WORKLOAD_POOL.into(), POOL.into()),
        };
    }
    workload
}

/// A value with the name of the pool in it.
fn filled(value: &Value) -> Value {
    match value {
        Value::String(text) => text.replace(TOKEN, POOL).into(),
        Value::Array(values) => values.iter().map(filled).collect(),
        Value::Object(fields) => {
            let fields = fields
                .iter()
                .map(|(name, value)| (name.clone(), filled(value)));
            Value::Object(fields.collect())
        }
        other => other.clone(),
    }
}

/// Replicas and images.
fn tweak(workload: &mut Value, tweaks: &Tweaks) {
    if let (Some(replicas), Some(spec)) = (tweaks.replicas, workload["spec"].as_object_mut()) {
        spec.insert("replicas".into(), replicas.into());
    }
    let Some(pods) = workload.pointer_mut("/spec/template/spec") else {
        return;
    };
    for kind in ["containers", "initContainers"] {
        let containers = pods.get_mut(kind).and_then(Value::as_array_mut);
        for container in containers.into_iter().flatten() {
            let image = tweaks
                .container_images
                .iter()
                .rev()
                .find(|image| container["name"] == image.name.as_str());
            if let (Some(image), Some(container)) = (image, container.as_object_mut()) {
                container.insert("image".into(), image.target_image.as_str().into());
            }
        }
    }
}

/// Applies a patch; otherwise what is wrong with it.
fn patch(workload: &mut Value, patch: &Patch) -> Result<(), String> {
    let mut operation = json!({"op": patch.operation, "path": patch.path});
    if patch.operation != "remove" {
        operation["value"] = filled(&patch.value);
    }
    json_patch(workload, &json!([operation])).map_err(|error| error.to_string())
}

fn findings(set: &Value) -> Findings {
    let mut found = Findings::default();
    let spec: YurtAppSetSpec = match serde_json::from_value(set["spec"].clone()) {
        Ok(spec) => spec,
        Err(error) => {
            found.fault("spec", error.to_string());
            return found;
        }
    };
    if spec.revision_history_limit.is_some_and(|limit| limit < 0) {
        found.fault("spec.revisionHistoryLimit", "must not be negative");
    }
    if !set["spec"]["nodepoolSelector"].is_null() {
        found.selector("spec.nodepoolSelector", &set["spec"]["nodepoolSelector"]);
    } else if spec.pools.is_empty() {
        found.warning("spec.nodepoolSelector and spec.pools are empty: no pool gets the workload");
    }
    pool_names(&spec.pools, "spec.pools", &mut found);
    let at = "spec.workload.workloadTemplate";
    let Some((kind, template)) = only(&spec.workload.workload_template, at, &mut found) else {
        return found;
    };
    let base = rendered(kind, template, &text(&set["metadata"]["name"]));
    let before = found.faults.len();
    let selector = &template.spec["selector"];
    let selects = |field: &str| match &selector[field] {
        Value::Object(labels) => !labels.is_empty(),
        Value::Array(expressions) => !expressions.is_empty(),
        _ => false,
    };
    if !selects("matchLabels") && !selects("matchExpressions") {
        found.fault(
            format!("{at}.{}.spec.selector", field_of(kind)),
            "is needed: without one the workloads of all sets in a pool would take each other's pods",
        );
    }
    workload::workload(kind, &base, &format!("{at}.{}", field_of(kind)), &mut found);
    let template_is_good = found.faults.len() == before;
    let raw = &set["spec"]["workload"]["workloadTweaks"];
    for (i, said) in spec.workload.workload_tweaks.iter().enumerate() {
        let at = format!("spec.workload.workloadTweaks[{i}]");
        let selector = &raw[i]["nodepoolSelector"];
        if !selector.is_null() {
            found.selector(&format!("{at}.nodepoolSelector"), selector);
        } else if said.pools.is_empty() {
            found.warning(format!(
                "{at} names no pool and selects none: it has no effect"
            ));
        }
        pool_names(&said.pools, &format!("{at}.pools"), &mut found);
        images(&base, said, &at, &mut found);
    }
    if template_is_good {
        tweaked(kind, &base, &spec.workload.workload_tweaks, &mut found);
    }
    found
}

fn pool_names(pools: &[String], at: &str, found: &mut Findings) {
    for (i, pool) in pools.iter().enumerate() {
        if !is_subdomain(pool) {
            found.fault(
                format!("{at}[{i}]"),
                format!("{pool:?} cannot be the name of a pool"),
            );
        }
    }
}

fn images(base: &Value, tweak: &WorkloadTweak, at: &str, found: &mut Findings) {
    let pods = &base["spec"]["template"]["spec"];
    let named = |name: &str| {
        ["containers", "initContainers"]
            .iter()
            .any(|kind| items(&pods[*kind]).any(|container| container["name"] == name))
    };
    for (i, image) in tweak.tweaks.container_images.iter().enumerate() {
        let at = format!("{at}.tweaks.containerImages[{i}]");
        if image.target_image.trim().is_empty() {
            found.fault(format!("{at}.targetImage"), "is needed");
        }
        if !named(&image.name) {
            found.warning(format!(
                "{at}: the template has no container {:?}",
                image.name
            ));
        }
    }
}

/// Looks at what each tweak makes of the workload, alone and after those before it: whether both of two meet in a pool depends on
/// the pools, so a patch is only wrong if it applies in neither case.
fn tweaked(kind: &str, base: &Value, tweaks: &[WorkloadTweak], found: &mut Findings) {
    let mut together = base.clone();
    for said in tweaks {
        tweak(&mut together, &said.tweaks);
    }
    for (i, said) in tweaks.iter().enumerate() {
        let at = format!("spec.workload.workloadTweaks[{i}].tweaks");
        if said.tweaks.replicas.is_some_and(|replicas| replicas < 0) {
            found.fault(format!("{at}.replicas"), "must not be negative");
            continue;
        }
        let mut alone = base.clone();
        tweak(&mut alone, &said.tweaks);
        let mut applied = [true, true];
        for (j, operation) in said.tweaks.patches.iter().enumerate() {
            let outcomes = [
                patch(&mut alone, operation),
                patch(&mut together, operation),
            ];
            if let [Err(why), Err(_)] = &outcomes {
                found.fault(
                    format!("{at}.patches[{j}]"),
                    format!(
                        "{} {} does not apply: {why}",
                        operation.operation, operation.path
                    ),
                );
            }
            for (applied, outcome) in applied.iter_mut().zip(&outcomes) {
                *applied &= outcome.is_ok();
            }
        }
        let result = match applied {
            [true, _] => &alone,
            [false, true] => &together,
            [false, false] => continue,
        };
        let mut after = Findings::default();
        workload::workload(
            kind,
            result,
            &format!("{at} makes a workload whose"),
            &mut after,
        );
        found.faults.extend(after.faults);
        let labels = &result["spec"]["template"]["metadata"]["labels"];
        if labels[labels::WORKLOAD_POOL] != POOL
            || result["spec"]["selector"] != base["spec"]["selector"]
        {
            found.fault(
                at,
                "changes the selector, or the label of the template that tells the pods of one pool from another's",
            );
        }
    }
}

#[cfg(test)]
mod tests;
