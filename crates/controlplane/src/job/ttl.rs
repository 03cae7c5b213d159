//! ttl-after-finished-controller: finished jobs go `ttlSecondsAfterFinished` after their end.

use super::{
    super::{Context, Controller, Failure, Key, Next, Watch, collections::JOBS, condition, pod},
    is_finished,
};
use jiff::Timestamp;
use serde_json::{Value, json};
use std::{sync::Arc, time::Duration};

/// `ttl-after-finished-controller`.
#[derive(Default)]
pub(in super::super) struct TtlAfterFinished;

/// In how long a job is to go: zero when it is now, `None` when it stays.
fn left(job: &Value, now: Timestamp) -> Option<Duration> {
    let ttl = job["spec"]["ttlSecondsAfterFinished"].as_i64()?;
    if !is_finished(job) || pod::is_deleting(job) {
        return None;
    }
    let ended = ["Complete", "Failed"]
        .iter()
        .filter_map(|kind| condition::find(&job["status"], kind))
        .filter_map(|condition| pod::instant(&condition["lastTransitionTime"]))
        .min()?;
    let left = ended.as_second().saturating_add(ttl) - now.as_second();
    Some(Duration::from_secs(left.max(0).unsigned_abs()))
}

impl Controller for TtlAfterFinished {
    const NAME: &'static str = "ttl-after-finished-controller";

    fn watches(&self, _: &Arc<Context>) -> Vec<Watch> {
        vec![Watch::own(JOBS)]
    }

    async fn reconcile(&self, key: &Key, context: &Context) -> Result<Next, Failure> {
        let job = context.objects(&JOBS).get(key);
        let Some((left, job)) = job.and_then(|job| Some((left(&job, Timestamp::now())?, job)))
        else {
            return Ok(Next::Done);
        };
        if !left.is_zero() {
            return Ok(Next::After(left));
        }
        let options = json!({"propagationPolicy": "Foreground"});
        context.delete_with(&JOBS, &job, &options).await?;
        Ok(Next::Done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_goes_some_time_after_its_end() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let mut job = json!({"spec": {"ttlSecondsAfterFinished": 60}, "status": {}});
        assert_eq!(left(&job, at(0)), None, "it runs");
        job["status"]["conditions"] = json!([{"type": "Failed", "status": "True", "lastTransitionTime": "1970-01-01T00:01:40Z"}]);
        assert_eq!(left(&job, at(110)), Some(Duration::from_secs(50)));
        assert_eq!(left(&job, at(500)), Some(Duration::ZERO));
        job["spec"] = json!({});
        assert_eq!(left(&job, at(500)), None, "it stays");
    }
}
