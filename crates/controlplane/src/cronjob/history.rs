//! Which finished jobs of a cron job are kept.

use super::{
    super::{condition, pod},
    name,
};
use serde_json::Value;
use std::sync::Arc;

/// The jobs beyond the limits of those that succeeded and those that failed, the oldest.
pub(super) fn beyond(cron: &Value, jobs: &[Arc<Value>]) -> Vec<Arc<Value>> {
    let mut beyond = Vec::new();
    for (kind, limit) in [
        ("Complete", "successfulJobsHistoryLimit"),
        ("Failed", "failedJobsHistoryLimit"),
    ] {
        let Some(limit) = cron["spec"][limit].as_u64() else {
            continue;
        };
        let over =
            |job: &&Arc<Value>| condition::holds(&job["status"], kind) && !pod::is_deleting(job);
        let mut over: Vec<_> = jobs.iter().filter(over).cloned().collect();
        over.sort_by_cached_key(|job| {
            (
                pod::instant(&job["status"]["startTime"]),
                name(job).to_owned(),
            )
        });
        let keep = usize::try_from(limit).unwrap_or(usize::MAX);
        over.truncate(over.len().saturating_sub(keep));
        beyond.extend(over);
    }
    beyond
}
