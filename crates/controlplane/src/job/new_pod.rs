//! The pods of a job.

use super::{
    super::{claim, collections::JOBS, pod},
    FINALIZER,
    indexes::INDEX,
    name,
};
use serde_json::{Value, json};

/// How often the index failed before this pod, in what counts and in what does not.
const FAILURES: &str = "batch.kubernetes.io/job-index-failure-count";
const IGNORED_FAILURES: &str = "batch.kubernetes.io/job-index-ignored-failure-count";

fn number(pod: &Value, annotation: &str) -> i64 {
    let text = pod["metadata"]["annotations"][annotation].as_str();
    text.and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// The failures that count of a pod's index before it.
pub(super) fn failures(pod: &Value) -> i64 {
    number(pod, FAILURES)
}

/// All failures of a pod's index before it.
pub(super) fn all_failures(pod: &Value) -> i64 {
    failures(pod) + number(pod, IGNORED_FAILURES)
}

/// A pod of a job without indexes.
pub(super) fn plain(job: &Value) -> Value {
    let namespace = job["metadata"]["namespace"].as_str().unwrap_or_default();
    let owner = claim::reference(&JOBS, job);
    let mut new = pod::from_template(&job["spec"]["template"], &owner, namespace);
    match new["metadata"]["finalizers"].as_array_mut() {
        Some(finalizers) if finalizers.iter().any(|f| f == FINALIZER) => {}
        Some(finalizers) => finalizers.push(FINALIZER.into()),
        None => new["metadata"]["finalizers"] = json!([FINALIZER]),
    }
    new
}

/// A pod for an index. `before`: the last one that failed, where failures count by index, and whether that one counts.
pub(super) fn indexed(job: &Value, index: i64, before: Option<(Option<&Value>, bool)>) -> Value {
    let mut new = plain(job);
    let text = index.to_string();
    new["metadata"]["annotations"][INDEX] = text.clone().into();
    new["metadata"]["labels"][INDEX] = text.into();
    if let Some((failed, counts)) = before {
        let (mut failures, mut ignored) = failed.map_or((0, 0), |failed| {
            (self::failures(failed), number(failed, IGNORED_FAILURES))
        });
        if failed.is_some() {
            if counts {
                failures += 1;
            } else {
                ignored += 1;
            }
        }
        new["metadata"]["annotations"][FAILURES] = failures.to_string().into();
        if ignored > 0 {
            new["metadata"]["annotations"][IGNORED_FAILURES] = ignored.to_string().into();
        }
    }
    let job_name = name(job);
    new["spec"]["hostname"] = format!("{job_name}-{index}").into();
    // The generated part keeps its place, whatever the length of the job's name.
    let suffix = format!("-{index}-");
    let kept: String = job_name
        .chars()
        .take(58_usize.saturating_sub(suffix.len()))
        .collect();
    new["metadata"]["generateName"] = format!("{kept}{suffix}").into();
    for kind in ["initContainers", "containers"] {
        let containers = new["spec"][kind].as_array_mut();
        for container in containers.into_iter().flatten() {
            tell_index(container);
        }
    }
    new
}

/// Puts the index into a container's environment.
fn tell_index(container: &mut Value) {
    let variable = "JOB_COMPLETION_INDEX";
    let path = format!("metadata.labels['{INDEX}']");
    let told = json!({"name": variable, "valueFrom": {"fieldRef": {"fieldPath": path}}});
    match container["env"].as_array_mut() {
        Some(env) if env.iter().any(|known| known["name"] == variable) => {}
        Some(env) => env.push(told),
        None => container["env"] = json!([told]),
    }
}
