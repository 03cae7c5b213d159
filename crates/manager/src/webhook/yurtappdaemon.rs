//! YurtAppDaemons: as YurtAppSets, with a selector of their own.

use super::{
    fault::Findings,
    review::{Answer, Denial},
    workload, yurtappset,
};
use crate::yurtappset::render::Owner;
use serde_json::{Value, json};
use yurt_api::apps::yurtappdaemon::YurtAppDaemonSpec;
use yurt_controller::{
    collections::YURT_APP_DAEMONS,
    fields::{labels, text},
};

/// What is made of a daemon that somebody writes: its template selects what the daemon selects.
pub(super) fn completed(mut daemon: Value, created: bool) -> Value {
    if created && let Some(daemon) = daemon.as_object_mut() {
        daemon.remove("status");
    }
    let spec = &mut daemon["spec"];
    if !spec.is_object() {
        return daemon;
    }
    if spec["revisionHistoryLimit"].is_null() {
        spec["revisionHistoryLimit"] = 10.into();
    }
    let selector = spec["selector"].clone();
    for field in ["deploymentTemplate", "statefulSetTemplate"] {
        let template = spec.pointer_mut(&format!("/workloadTemplate/{field}/spec"));
        if let Some(Value::Object(template)) = template
            && selector.is_object()
        {
            template.insert("selector".into(), selector.clone());
        }
    }
    daemon
}

/// Judges a daemon that is created, or takes the place of `old`.
pub(super) fn judged(old: Option<&Value>, new: &Value) -> Result<Answer, Denial> {
    let mut found = findings(new);
    match old {
        None => yurtappset::name(&text(&new["metadata"]["name"]), &mut found),
        Some(old) => {
            let part = |object: &Value, field: &str| object["spec"][field].clone();
            if part(old, "selector") != part(new, "selector") {
                found.fault(
                    "spec.selector",
                    "cannot be changed: create another daemon, and delete this one when that is ready",
                );
            } else {
                yurtappset::unchanged(
                    &part(old, "workloadTemplate"),
                    &part(new, "workloadTemplate"),
                    "spec.workloadTemplate",
                    &mut found,
                );
            }
        }
    }
    found.verdict(old.map(findings))
}

fn findings(daemon: &Value) -> Findings {
    let mut found = Findings::default();
    let spec: YurtAppDaemonSpec = match serde_json::from_value(daemon["spec"].clone()) {
        Ok(spec) => spec,
        Err(error) => {
            found.fault("spec", error.to_string());
            return found;
        }
    };
    found.selector("spec.nodepoolSelector", &daemon["spec"]["nodepoolSelector"]);
    let at = "spec.workloadTemplate";
    let Some((kind, template)) = yurtappset::only(&spec.workload_template, at, &mut found) else {
        return found;
    };
    let template_labels = labels(&template.spec["template"]["metadata"]["labels"]);
    match found.selector("spec.selector", &daemon["spec"]["selector"]) {
        Some(selector) if selector.is_empty() => {
            found.fault(
                "spec.selector",
                "is needed, and must match the labels of the template",
            );
        }
        Some(selector) if !selector.matches(&template_labels) => found.fault(
            "spec.selector",
            "does not match the labels of the template (spec.template.metadata.labels)",
        ),
        Some(_) => {
            let mut template = template.clone();
            if !template.spec.is_object() {
                template.spec = json!({});
            }
            template.spec["selector"] = daemon["spec"]["selector"].clone();
            let labels = labels(&daemon["spec"]["selector"]["matchLabels"]);
            let owner = Owner::of(&YURT_APP_DAEMONS, daemon, Some(labels));
            match yurtappset::rendered(&owner, kind, &template, &[]) {
                Ok(base) => workload::workload(kind, &base, at, &mut found),
                Err(why) => found.fault(at, why),
            }
        }
        None => {}
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn daemon() -> Value {
        json!({"kind": "YurtAppDaemon", "metadata": {"name": "web"}, "spec": {
            "selector": {"matchLabels": {"app": "web"}}, "nodepoolSelector": {"matchLabels": {"yurtappdaemon.openyurt.io/type": "nginx"}},
            "workloadTemplate": {"deploymentTemplate": {"metadata": {"labels": {"app": "web"}}, "spec": {
                "replicas": 1, "template": {"metadata": {"labels": {"app": "web"}}, "spec": {
                    "containers": [{"name": "web", "image": "web:1"}]}}}}}}})
    }

    #[test]
    fn the_template_selects_what_the_daemon_selects() {
        let mut bare = daemon();
        bare["status"] = json!({"nodepools": ["a"]});
        let made = completed(bare, true);
        assert_eq!(
            made["spec"]["workloadTemplate"]["deploymentTemplate"]["spec"]["selector"],
            made["spec"]["selector"]
        );
        assert!(made.get("status").is_none());
        assert_eq!(made["spec"]["revisionHistoryLimit"], 10);
        assert_eq!(judged(None, &made), Ok(Answer::default()));
        assert_eq!(judged(None, &daemon()), Ok(Answer::default()));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (pointer, value, why) in [
            ("/spec/selector", json!({}), "spec.selector: is needed"),
            (
                "/spec/selector",
                json!({"matchLabels": {"app": "x"}}),
                "spec.selector: does not match",
            ),
            (
                "/spec/nodepoolSelector",
                json!({"matchExpressions": [{"key": "a", "operator": "In"}]}),
                "spec.nodepoolSelector",
            ),
            ("/spec/workloadTemplate", json!({}), "exactly one"),
            (
                "/spec/workloadTemplate/deploymentTemplate/spec/template/spec/containers",
                json!([]),
                "containers",
            ),
        ] {
            let mut wrong = daemon();
            *wrong.pointer_mut(pointer).expect(pointer) = value;
            let denied = judged(None, &wrong).expect_err(pointer);
            let Denial::Invalid(faults) = denied else {
                panic!("{denied:?}")
            };
            assert!(
                faults.iter().any(|fault| fault.to_string().contains(why)),
                "{pointer}: {faults:?}"
            );
            assert_eq!(judged(Some(&wrong), &wrong).map(drop), Ok(()));
        }
        let mut other = daemon();
        other["spec"]["selector"]["matchLabels"]["b"] = "c".into();
        other["spec"]["workloadTemplate"]["deploymentTemplate"]["spec"]["template"]["metadata"]["labels"]
            ["b"] = "c".into();
        assert!(judged(None, &other).is_ok());
        assert!(judged(Some(&daemon()), &other).is_err());
    }
}
