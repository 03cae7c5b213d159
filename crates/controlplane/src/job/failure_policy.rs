//! `podFailurePolicy`: what a failed pod means for its job.

use super::name;
use crate::fields::items;
use serde_json::Value;

/// What a rule says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It counts, as without a policy.
    Count,
    /// It does not count.
    Ignore,
    /// Its index has failed for good.
    FailIndex,
    /// The job has failed, for this reason.
    FailJob(String),
}

/// The first rule that fits decides.
pub(super) fn judge(job: &Value, pod: &Value) -> Verdict {
    let rules = &job["spec"]["podFailurePolicy"]["rules"];
    for (at, rule) in items(rules).enumerate() {
        let Some(what) = matching(rule, pod) else {
            continue;
        };
        let action = rule["action"].as_str().unwrap_or_default();
        return match action {
            "Ignore" => Verdict::Ignore,
            "FailIndex" => Verdict::FailIndex,
            "FailJob" => Verdict::FailJob(format!("{what} matching FailJob rule at index {at}")),
            _ => Verdict::Count,
        };
    }
    Verdict::Count
}

/// What fits a rule, in words.
fn matching(rule: &Value, pod: &Value) -> Option<String> {
    let namespace = pod["metadata"]["namespace"].as_str().unwrap_or_default();
    let name = name(pod);
    let codes = &rule["onExitCodes"];
    if codes.is_object() {
        let (container, code) = exited(codes, &pod["status"])?;
        return Some(format!(
            "Container {container} for pod {namespace}/{name} failed with exit code {code}"
        ));
    }
    let conditions = items(&pod["status"]["conditions"]);
    let mut fitting = conditions.filter(|condition| {
        items(&rule["onPodConditions"]).any(|wanted| {
            wanted["type"] == condition["type"] && wanted["status"] == condition["status"]
        })
    });
    let kind = fitting.next()?["type"].as_str()?;
    Some(format!("Pod {namespace}/{name} has condition {kind}"))
}

fn exited<'p>(codes: &Value, status: &'p Value) -> Option<(&'p str, i64)> {
    let wanted = codes["containerName"].as_str();
    let among = codes["operator"] == "In";
    let containers =
        items(&status["containerStatuses"]).chain(items(&status["initContainerStatuses"]));
    for container in containers {
        let Some(code) = container["state"]["terminated"]["exitCode"].as_i64() else {
            continue;
        };
        let name = container["name"].as_str().unwrap_or_default();
        let listed = items(&codes["values"]).any(|value| *value == code);
        if code != 0 && wanted.is_none_or(|wanted| wanted == name) && listed == among {
            return Some((name, code));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_first_rule_that_fits_decides() {
        let job = json!({"spec": {"podFailurePolicy": {"rules": [
            {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
            {"action": "FailJob", "onExitCodes": {"containerName": "main", "operator": "In", "values": [42]}},
            {"action": "FailIndex", "onExitCodes": {"operator": "NotIn", "values": [1, 2]}},
        ]}}});
        let pod = |container: &str, code: i64| {
            json!({"metadata": {"name": "p", "namespace": "d"}, "status": {"containerStatuses":
                [{"name": container, "state": {"terminated": {"exitCode": code}}}]}})
        };
        let message =
            "Container main for pod d/p failed with exit code 42 matching FailJob rule at index 1";
        assert_eq!(
            judge(&job, &pod("main", 42)),
            Verdict::FailJob(message.into())
        );
        assert_eq!(judge(&job, &pod("other", 42)), Verdict::FailIndex);
        assert_eq!(judge(&job, &pod("main", 1)), Verdict::Count);
        assert_eq!(judge(&job, &pod("main", 0)), Verdict::Count);
        let mut evicted = pod("main", 42);
        evicted["status"]["conditions"] = json!([{"type": "DisruptionTarget", "status": "True"}]);
        assert_eq!(judge(&job, &evicted), Verdict::Ignore);
        assert_eq!(
            judge(&json!({"spec": {}}), &pod("main", 42)),
            Verdict::Count
        );
    }
}
