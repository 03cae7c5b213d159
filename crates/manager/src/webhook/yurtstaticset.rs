//! YurtStaticSets: a static pod that kubelets would run, and a way to upgrade it.

use super::{
    fault::{Findings, is_subdomain},
    review::{Answer, Denial},
    workload,
};
use serde_json::{Value, json};
use yurt_controller::fields::{items, text};

/// How many nodes are upgraded at once when nothing is said.
const MAX_UNAVAILABLE: &str = "10%";
const ROLLING: &str = "AdvancedRollingUpdate";

/// Whether a strategy is this one, whatever the case.
fn is(strategy: &str, name: &str) -> bool {
    strategy.eq_ignore_ascii_case(name)
}

/// What is made of a set that somebody writes.
pub(super) fn completed(mut set: Value) -> Value {
    let meta = ["name", "namespace"].map(|field| (field, set["metadata"][field].clone()));
    let spec = &mut set["spec"];
    if !spec.is_object() {
        return set;
    }
    if spec["revisionHistoryLimit"].is_null() {
        spec["revisionHistoryLimit"] = 10.into();
    }
    let strategy = &mut spec["upgradeStrategy"];
    if strategy.is_null() {
        *strategy = json!({});
    }
    if strategy.is_object() {
        if text(&strategy["type"]).is_empty() {
            strategy["type"] = ROLLING.into();
        }
        if is(&text(&strategy["type"]), ROLLING) && strategy["maxUnavailable"].is_null() {
            strategy["maxUnavailable"] = MAX_UNAVAILABLE.into();
        }
        if let Some(strategy) = strategy.as_object_mut() {
            strategy.retain(|_, value| !value.is_null());
        }
    }
    let template = &mut spec["template"];
    if template.is_object() {
        if template["metadata"].is_null() {
            template["metadata"] = json!({});
        }
        if let Some(metadata) = template["metadata"].as_object_mut() {
            for (field, value) in meta.into_iter().filter(|(_, value)| value.is_string()) {
                metadata.insert(field.into(), value);
            }
        }
        for kind in ["initContainers", "containers"] {
            let containers = template.pointer_mut(&format!("/spec/{kind}"));
            let containers = containers.and_then(Value::as_array_mut);
            for container in containers.into_iter().flatten() {
                if let Some(container) = container.as_object_mut() {
                    let policy = container.entry("imagePullPolicy").or_insert(Value::Null);
                    if text(policy).is_empty() {
                        *policy = "Always".into();
                    }
                }
            }
        }
    }
    set
}

/// Judges a set that is created, or takes the place of `old`.
pub(super) fn judged(old: Option<&Value>, new: &Value) -> Result<Answer, Denial> {
    findings(new).verdict(old.map(findings))
}

fn findings(set: &Value) -> Findings {
    let mut found = Findings::default();
    let spec = &set["spec"];
    let manifest = text(&spec["staticPodManifest"]);
    if manifest.is_empty() {
        found.fault(
            "spec.staticPodManifest",
            "is needed: the name of the manifest on the nodes, without .yaml",
        );
    } else if !is_subdomain(&manifest) {
        found.fault(
            "spec.staticPodManifest",
            format!(
                "{manifest:?} is no name of a manifest: lower-case letters, digits, hyphens and dots"
            ),
        );
    }
    let strategy = &spec["upgradeStrategy"];
    let kind = text(&strategy["type"]);
    let available = &strategy["maxUnavailable"];
    if is(&kind, ROLLING) {
        if available.is_null() {
            found.fault(
                "spec.upgradeStrategy.maxUnavailable",
                "is needed with AdvancedRollingUpdate, as 10% or 1",
            );
        }
    } else if !is(&kind, "OTA") {
        found.fault(
            "spec.upgradeStrategy.type",
            format!("{kind:?} is neither {ROLLING} nor OTA"),
        );
    }
    let share = match available {
        Value::Null => true,
        Value::String(text) => text
            .strip_suffix('%')
            .and_then(|text| text.parse::<u32>().ok())
            .is_some_and(|percent| percent <= 100),
        number => number.as_i64().is_some_and(|n| n >= 0),
    };
    if !share {
        found.fault(
            "spec.upgradeStrategy.maxUnavailable",
            format!("{available} is neither a number of nodes nor a percentage up to 100%"),
        );
    }
    if spec["revisionHistoryLimit"].as_i64().is_some_and(|n| n < 0) {
        found.fault("spec.revisionHistoryLimit", "must not be negative");
    }
    workload::pod_template(&spec["template"], "spec.template", &mut found);
    let pods = &spec["template"]["spec"];
    let objects = items(&pods["volumes"]).any(|volume| {
        ["configMap", "secret", "persistentVolumeClaim", "projected"]
            .iter()
            .any(|kind| volume[*kind].is_object())
    });
    if objects || !text(&pods["serviceAccountName"]).is_empty() {
        found.warning(
            "spec.template refers to objects of the API (volumes or a service account): kubelets do not run such a static pod",
        );
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(spec: Value) -> Value {
        let mut set = json!({"kind": "YurtStaticSet", "metadata": {"name": "web", "namespace": "default"}, "spec": {
            "staticPodManifest": "web", "template": {"spec": {"containers": [{"name": "web", "image": "web:1"}]}}}});
        for (field, value) in spec.as_object().into_iter().flatten() {
            set["spec"][field] = value.clone();
        }
        completed(set)
    }

    #[test]
    fn a_set_is_completed() {
        let made = set(json!({}));
        assert_eq!(
            made["spec"],
            json!({"staticPodManifest": "web", "revisionHistoryLimit": 10,
                "upgradeStrategy": {"type": "AdvancedRollingUpdate", "maxUnavailable": "10%"},
                "template": {"metadata": {"name": "web", "namespace": "default"}, "spec": {
                    "containers": [{"name": "web", "image": "web:1", "imagePullPolicy": "Always"}]}}})
        );
        assert_eq!(completed(made.clone()), made, "once is enough");
        assert_eq!(judged(None, &made), Ok(Answer::default()));
        let ota = set(json!({"upgradeStrategy": {"type": "ota"}}));
        assert_eq!(ota["spec"]["upgradeStrategy"], json!({"type": "ota"}));
        assert_eq!(judged(None, &ota), Ok(Answer::default()));
        for odd in [
            json!({"metadata": {}}),
            json!({"metadata": {}, "spec": {"template": 1, "upgradeStrategy": []}}),
        ] {
            let _ = completed(odd);
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (spec, field) in [
            (json!({"staticPodManifest": ""}), "spec.staticPodManifest"),
            (
                json!({"staticPodManifest": "../kube-apiserver"}),
                "spec.staticPodManifest",
            ),
            (
                json!({"upgradeStrategy": {"type": "Auto"}}),
                "spec.upgradeStrategy.type",
            ),
            (
                json!({"upgradeStrategy": {"type": "OTA", "maxUnavailable": "many"}}),
                "spec.upgradeStrategy.maxUnavailable",
            ),
            (
                json!({"upgradeStrategy": {"maxUnavailable": "101%"}}),
                "spec.upgradeStrategy.maxUnavailable",
            ),
            (
                json!({"upgradeStrategy": {"maxUnavailable": -1}}),
                "spec.upgradeStrategy.maxUnavailable",
            ),
            (
                json!({"revisionHistoryLimit": -1}),
                "spec.revisionHistoryLimit",
            ),
            (
                json!({"template": {"spec": {"containers": []}}}),
                "spec.template.spec.containers",
            ),
            (
                json!({"template": {"spec": {"containers": [{"name": "a", "image": 1}]}}}),
                "spec.template",
            ),
        ] {
            let wrong = set(spec.clone());
            let Err(Denial::Invalid(faults)) = judged(None, &wrong) else {
                panic!("{spec} is allowed");
            };
            assert!(
                faults
                    .iter()
                    .any(|fault| fault.to_string().starts_with(field)),
                "{spec}: {faults:?}"
            );
            assert_eq!(judged(Some(&wrong), &wrong).map(drop), Ok(()));
        }
        // A client that took the default away.
        let mut bare = set(json!({}));
        bare["spec"]["upgradeStrategy"]["maxUnavailable"] = Value::Null;
        assert!(judged(None, &bare).is_err());
        let template = json!({"spec": {"containers": [{"name": "a", "image": "b"}], "volumes": [{"name": "c", "configMap": {"name": "d"}}]}});
        let warned = judged(None, &set(json!({"template": template}))).expect("allowed");
        assert!(warned.warnings[0].contains("static pod"), "{warned:?}");
    }
}
