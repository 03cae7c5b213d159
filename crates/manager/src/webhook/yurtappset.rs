//! YurtAppSets: the workload that each pool would get must be one.

use super::{
    fault::{Findings, is_subdomain},
    review::{Answer, Denial},
    workload,
};
use crate::yurtappset::{
    pools::{Pool, Tweak},
    render::{Blueprint, LONGEST_LABEL, Owner},
};
use serde_json::{Value, json};
use yurt_api::apps::{
    workload::{Template, WorkloadTemplate},
    yurtappset::{Patch, WorkloadTweak, YurtAppSetSpec},
};
use yurt_controller::{collections::YURT_APP_SETS, fields::items};

/// The pool for which workloads are rendered to look at them.
const POOL: &str = "pool";
const KINDS: [(&str, &str); 2] = [
    ("Deployment", "deploymentTemplate"),
    ("StatefulSet", "statefulSetTemplate"),
];

/// What is made of a set that somebody writes. `written` is the set in the older version that it was written in, if it was: there
/// the selector is beside the template.
pub(super) fn completed(mut set: Value, written: Option<&Value>) -> Value {
    if set["spec"].is_object() && set["spec"]["revisionHistoryLimit"].is_null() {
        set["spec"]["revisionHistoryLimit"] = 10.into();
    }
    let selector = written.map(|written| &written["spec"]["selector"]);
    if let Some(selector) = selector.filter(|selector| selector.is_object()) {
        for (_, field) in KINDS {
            let spec = format!("/spec/workload/workloadTemplate/{field}/spec");
            if let Some(Value::Object(spec)) = set.pointer_mut(&spec) {
                let own = spec.entry("selector").or_insert(Value::Null);
                if own.is_null() {
                    *own = selector.clone();
                }
            }
        }
    }
    set
}

/// Judges a set that is created, or takes the place of `old`.
pub(super) fn judged(old: Option<&Value>, new: &Value) -> Result<Answer, Denial> {
    let mut found = findings(new);
    let template = |set: &Value| set["spec"]["workload"]["workloadTemplate"].clone();
    if let Some(old) = old {
        unchanged(
            &template(old),
            &template(new),
            "spec.workload.workloadTemplate",
            &mut found,
        );
    }
    found.verdict(old.map(findings))
}

/// What is told of the name of a set that renders workloads per pool.
pub(super) fn name(name: &str, found: &mut Findings) {
    if name.len() > LONGEST_LABEL {
        found.warning(format!(
            "metadata.name has more than the {LONGEST_LABEL} characters of a label: workloads refer to it by a shortened one"
        ));
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
    let known = KINDS.iter().find(|(known, _)| *known == kind);
    known.map_or("", |(_, field)| *field)
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

/// The workload of a pool with these tweaks, as the controller renders it.
pub(super) fn rendered(
    owner: &Owner,
    kind: &'static str,
    template: &Template,
    tweaks: &[WorkloadTweak],
) -> Result<Value, String> {
    let aimed = |tweak: &WorkloadTweak| WorkloadTweak {
        nodepool_selector: None,
        pools: vec![POOL.into()],
        tweaks: tweak.tweaks.clone(),
    };
    let aimed: Vec<WorkloadTweak> = tweaks.iter().map(aimed).collect();
    let blueprint = Blueprint {
        owner,
        kind,
        template,
        tweaks: Tweak::all(&aimed).map_err(|error| error.to_string())?,
    };
    let pool = Pool {
        name: POOL.into(),
        ..Pool::default()
    };
    let rendered = blueprint
        .render(&pool, POOL, None)
        .map_err(|error| error.to_string())?;
    let mut workload = rendered.object;
    workload["metadata"]["name"] = format!("{}-{POOL}", owner.name).into();
    if let Some(replicas) = rendered.replicas {
        workload["spec"]["replicas"] = replicas.into();
    }
    Ok(workload)
}

/// A number of pods.
fn replicas(said: &Value, at: &str, found: &mut Findings) {
    let good = |n: i64| (0..=i64::from(i32::MAX)).contains(&n);
    if !said.is_null() && !said.as_i64().is_some_and(good) {
        found.fault(at, format!("{said} is no number of pods"));
    }
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
    let before = found.faults.len();
    let at = format!("{at}.{}", field_of(kind));
    let owner = Owner::of(&YURT_APP_SETS, set, None);
    name(&owner.name, &mut found);
    selects(&template.spec["selector"], &at, &mut found);
    replicas(
        &template.spec["replicas"],
        &format!("{at}.spec.replicas"),
        &mut found,
    );
    match rendered(&owner, kind, template, &[]) {
        Ok(base) => workload::workload(kind, &base, &at, &mut found),
        Err(why) => found.fault(&at, why),
    }
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
        images(&template.spec, said, &at, &mut found);
        if template_is_good {
            let upto = &spec.workload.workload_tweaks[..=i];
            tweaked(
                &owner,
                kind,
                template,
                upto,
                &format!("{at}.tweaks"),
                &mut found,
            );
        }
    }
    if let Some(rollout) = &spec.rollout {
        pool_names(&rollout.order, "spec.rollout.order", &mut found);
    }
    found
}

/// A selector that selects by something.
fn selects(selector: &Value, at: &str, found: &mut Findings) {
    let some = |field: &str| match &selector[field] {
        Value::Object(labels) => !labels.is_empty(),
        Value::Array(expressions) => !expressions.is_empty(),
        _ => false,
    };
    if !some("matchLabels") && !some("matchExpressions") {
        found.fault(
            format!("{at}.spec.selector"),
            "is needed: without one the workloads of all sets in a pool would take each other's pods",
        );
    }
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

fn images(spec: &Value, tweak: &WorkloadTweak, at: &str, found: &mut Findings) {
    let pods = &spec["template"]["spec"];
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

/// Looks at what the last of these tweaks makes of the workload, alone and after those before it: whether two of them meet in a
/// pool depends on the pools, so one is only wrong if it does not apply in either case.
fn tweaked(
    owner: &Owner,
    kind: &'static str,
    template: &Template,
    tweaks: &[WorkloadTweak],
    at: &str,
    found: &mut Findings,
) {
    let [.., last] = tweaks else {
        return;
    };
    replicas(
        &json!(last.tweaks.replicas),
        &format!("{at}.replicas"),
        found,
    );
    for (i, Patch { path, value, .. }) in last.tweaks.patches.iter().enumerate() {
        if path == "/spec/replicas" {
            replicas(value, &format!("{at}.patches[{i}].value"), found);
        }
    }
    let alone = rendered(owner, kind, template, std::slice::from_ref(last));
    match alone.or_else(|why| rendered(owner, kind, template, tweaks).map_err(|_| why)) {
        Ok(workload) => {
            let base = rendered(owner, kind, template, &[]);
            if base.is_ok_and(|base| base["spec"]["selector"] != workload["spec"]["selector"]) {
                found.fault(
                    at,
                    "changes the selector, which tells the pods of this set from others",
                );
            }
            let at = format!("{at} makes a workload whose");
            workload::workload(kind, &workload, &at, found);
        }
        Err(why) => found.fault(at, why),
    }
}

#[cfg(test)]
mod tests;
