//! Whether an upgrade came to a good end, and how the old version is had back when it did not.

use super::{Stop, Worker};
use crate::ota::{
    access,
    asked::path_of,
    cloud::{self, As, STRATEGIC},
    job::{Job, State},
    manifest::Place,
    pod::{self, Kind, Manifests},
    policy::Policy,
};
use http::{Method, StatusCode};
use serde_json::Value;
use std::time::{Duration, Instant};

/// What becomes of an upgrade whose old pod is gone.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Verdict {
    /// Its time is not over.
    Wait,
    /// The new pod is what it should be.
    Done(String),
    /// It is not, and nothing can be done about it.
    Failed(String),
    /// It is not, and the old version can be had back.
    RollBack(String),
}

/// Decides about an upgrade: by the pod that came of it, if one did, after it had `waited` for it to become ready.
fn judge(
    job: &Job,
    came: Option<&Value>,
    readiness: Readiness,
    waited: Duration,
    policy: &Policy,
) -> Verdict {
    match (readiness, came) {
        (Readiness::Steady, Some(pod)) => {
            return Verdict::Done(format!("pod {} is ready", pod::name_of(pod)));
        }
        (Readiness::Fresh, Some(_)) => return Verdict::Wait,
        _ if waited < policy.ready => return Verdict::Wait,
        _ => {}
    }
    let within = policy.ready;
    let late = format!("not ready within {within:?}");
    if !policy.rollback {
        return Verdict::Failed(format!("{late}, and the owner's policy does not go back"));
    }
    match (job.kind, came, &job.before) {
        // Its manifest is the node's own.
        (Kind::StaticPod, ..) => Verdict::RollBack(late),
        (_, None, _) => Verdict::Failed(format!("no new pod came within {within:?}")),
        (_, _, None) => Verdict::Failed(format!("{late}; what was before is not known")),
        (_, Some(new), Some(before)) => match before.rollback(new) {
            Ok(_) => Verdict::RollBack(late),
            Err(why) => Verdict::Failed(format!("{late}; {why}")),
        },
    }
}

/// Whether a pod is ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Readiness {
    /// It is not.
    None,
    /// Not for long enough yet.
    Fresh,
    /// It is.
    Steady,
}

impl Worker {
    /// Whether the pod of a job is ready, and stays so, as far as this process saw it.
    fn readiness(&mut self, job: &Job, pod: &Value) -> Readiness {
        if !pod::is_ready(pod) {
            self.ready.remove(&job.id);
            return Readiness::None;
        }
        let uid = pod::uid(pod);
        let since = match self.ready.get(&job.id) {
            Some((known, since)) if known == uid => *since,
            _ => {
                let now = Instant::now();
                self.ready.insert(job.id.clone(), (uid.to_owned(), now));
                now
            }
        };
        if since.elapsed() >= self.policy().steady {
            Readiness::Steady
        } else {
            Readiness::Fresh
        }
    }

    /// How long a job waits for its pod while the cloud was there: what it may do about it takes a link.
    fn waited(&self, job: &Job) -> Duration {
        let since = self.since.get(&job.id).map(|(_, since)| *since);
        match (since, self.online_since) {
            (Some(since), Some(online)) => since.max(online).elapsed(),
            _ => Duration::ZERO,
        }
    }

    /// Pods of the job's namespace but the old one; `None` while it is not known which pods the node has.
    fn others(&self, job: &Job) -> Option<Vec<Value>> {
        let pods = self.pods.as_ref()?.borrow().clone()?;
        let prefix = format!("{}/", job.namespace);
        let others = pods
            .iter()
            .filter(|(key, _)| key.starts_with(&prefix))
            .filter_map(|(_, pod)| pod.to_json_value().ok())
            .filter(|pod| job.kind == Kind::StaticPod || pod::uid(pod) != job.uid);
        Some(others.collect())
    }

    fn manifests(job: &Job) -> Option<&Manifests> {
        job.before.as_ref()?.manifest.as_ref()
    }

    /// The pod that came of it: a ready one before one that is not.
    fn successor(job: &Job, pods: Vec<Value>) -> Option<Value> {
        let name = format!("{}/{}", job.namespace, job.pod);
        let new_hash = Self::manifests(job).map(|manifests| manifests.new_hash.as_str());
        let mut came: Vec<Value> = pods
            .into_iter()
            .filter(|pod| match job.kind {
                Kind::DaemonSet => {
                    let beside = job.before.as_ref().map(|before| &before.beside);
                    pod::succeeds(pod, &job.uid, &job.owner)
                        && beside.is_none_or(|uids| !uids.iter().any(|uid| uid == pod::uid(pod)))
                }
                Kind::StaticPod => {
                    pod::name_of(pod) == name
                        && new_hash.is_some_and(|hash| pod::is_of_manifest(pod, hash))
                }
            })
            .collect();
        let ready = came.iter().position(pod::is_ready);
        match ready {
            Some(ready) => Some(came.swap_remove(ready)),
            None => came.pop(),
        }
    }

    /// Whether the new pod is ready, or had its time.
    pub(super) async fn look(&mut self, mut job: Job) {
        let Some(pods) = self.others(&job) else {
            return;
        };
        let came = Self::successor(&job, pods);
        if let Some(pod) = &came {
            let full = pod::name_of(pod);
            let name = full.split_once('/').map_or("", |(_, name)| name);
            if job.new_pod != name {
                name.clone_into(&mut job.new_pod);
                let why = format!("pod {full} is to become ready");
                if !self.turn(&mut job, State::WaitingForPod, why) {
                    return;
                }
            }
        }
        let readiness = came
            .as_ref()
            .map_or(Readiness::None, |pod| self.readiness(&job, pod));
        match judge(
            &job,
            came.as_ref(),
            readiness,
            self.waited(&job),
            &self.policy(),
        ) {
            Verdict::Wait => {}
            Verdict::Done(why) => self.end(job, State::Done, why, came.as_ref()),
            Verdict::Failed(why) => self.end(job, State::Failed, why, came.as_ref()),
            Verdict::RollBack(why) => {
                if self.turn(&mut job, State::RollingBack, why) {
                    self.since
                        .insert(job.id.clone(), (job.state, Instant::now()));
                    self.roll_back(job).await;
                }
            }
        }
    }

    /// Has the old version back, and sees that it becomes ready.
    pub(super) async fn roll_back(&mut self, job: Job) {
        let Some(pods) = self.others(&job) else {
            return;
        };
        match job.kind {
            Kind::DaemonSet => self.roll_back_images(job, pods).await,
            Kind::StaticPod => self.roll_back_manifest(job, pods).await,
        }
    }

    async fn roll_back_images(&mut self, job: Job, pods: Vec<Value>) {
        let name = format!("{}/{}", job.namespace, job.new_pod);
        let new = pods.into_iter().find(|pod| pod::name_of(pod) == name);
        let (Some(new), Some(before)) = (new, &job.before) else {
            return self.end(job, State::Failed, "the new pod is gone as well", None);
        };
        if before.is_back(&new) {
            return self.settle(job, &new, "its images are the old ones again");
        }
        if self.online_since.is_none() || self.in_state(&job) < self.pause(&job) {
            return;
        }
        let patch = match before.rollback(&new) {
            Ok(patch) => patch,
            Err(why) => return self.end(job, State::Failed, why, Some(&new)),
        };
        match self.patch(&job, &patch).await {
            Ok(()) => tracing::info!(job = job.id, pod = name, "the old images are set again"),
            Err(Stop::Never(why)) => {
                let why = format!("{}; the old images cannot be set again: {why}", job.reason);
                self.end(job, State::Failed, why, Some(&new));
            }
            Err(stop) => self.stop(job, State::RollingBack, stop),
        }
    }

    /// Changes the spec of the new pod: as who asked for the upgrade, as the owner's service account, as the node.
    async fn patch(&self, job: &Job, patch: &Value) -> Result<(), Stop> {
        let ota = &self.hub.ota;
        let asker = ota.bearers().get(&job.id).cloned();
        let account = ota
            .config
            .rollback_token_file
            .as_deref()
            .and_then(access::read_token);
        let names = asker.into_iter().chain(account).map(As::Bearer);
        let uri = format!(
            "{}?fieldManager=yurthub-ota",
            path_of(&job.namespace, &job.new_pod)
        );
        let mut refused = String::new();
        for who in names.chain([As::Node]) {
            let answer =
                cloud::call(&self.hub, &who, Method::PATCH, &uri, STRATEGIC, Some(patch)).await?;
            match answer.status {
                status if status.is_success() => return Ok(()),
                StatusCode::FORBIDDEN | StatusCode::UNAUTHORIZED => {
                    // The first one had the best reason to be allowed.
                    if refused.is_empty() {
                        refused = answer.message();
                    }
                }
                StatusCode::CONFLICT => return Err(Stop::Later(answer.message())),
                _ if answer.is_passing() => return Err(Stop::Later(answer.message())),
                _ => return Err(Stop::Never(answer.message())),
            }
        }
        Err(Stop::Never(refused))
    }

    async fn roll_back_manifest(&mut self, job: Job, pods: Vec<Value>) {
        let Some(Manifests {
            stem,
            new_digest,
            old_hash,
            ..
        }) = Self::manifests(&job).cloned()
        else {
            return self.end(job, State::Failed, "what was before is not known", None);
        };
        let directory = self.hub.ota.config.static_pods.clone();
        let restoring =
            tokio::task::spawn_blocking(move || Place::of(&directory, &stem)?.restore(&new_digest));
        match restoring.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                let why = format!(
                    "{}; the old manifest cannot be put back: {error}",
                    job.reason
                );
                return self.end(job, State::Failed, why, None);
            }
            Err(error) => {
                return self.stop(job, State::RollingBack, Stop::Later(error.to_string()));
            }
        }
        let name = format!("{}/{}", job.namespace, job.pod);
        let back = pods
            .into_iter()
            .find(|pod| pod::name_of(pod) == name && pod::is_of_manifest(pod, &old_hash));
        match back {
            Some(pod) => self.settle(job, &pod, "its manifest is the old one again"),
            None if self.waited(&job) >= self.policy().ready => {
                let why = format!(
                    "{}; the old manifest is back, and no pod came of it",
                    job.reason
                );
                self.end(job, State::Failed, why, None);
            }
            None => {}
        }
    }

    /// The old version is in place: it is ready, or has its time to become so.
    fn settle(&mut self, job: Job, pod: &Value, what: &str) {
        let why = format!("{}; {what}", job.reason);
        match self.readiness(&job, pod) {
            Readiness::Steady => self.end(job, State::RolledBack, why, Some(pod)),
            Readiness::None if self.waited(&job) >= self.policy().ready => {
                self.end(
                    job,
                    State::Failed,
                    format!("{why}, and it is not ready"),
                    Some(pod),
                );
            }
            Readiness::Fresh | Readiness::None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ota::{
        job::tests::job,
        pod::{Before, tests::pod},
    };
    use proptest::prelude::*;

    fn upgrade(kind: Kind, old: Option<&Value>) -> Job {
        Job {
            kind,
            before: old.map(Before::of),
            ..job("a", "p")
        }
    }

    const LATE: Duration = Duration::from_secs(300);

    #[test]
    fn what_becomes_of_an_upgrade() {
        let (old, new) = (pod("a:1", "r1"), pod("a:2", "r2"));
        let mut more = new.clone();
        more["spec"]["containers"][0]["args"] = "--new".into();
        let of_set = |before| upgrade(Kind::DaemonSet, before);
        let policy = Policy::default();
        let judge = |job: &Job, came| judge(job, came, Readiness::None, LATE, &policy);
        let back = Verdict::RollBack("not ready within 300s".into());
        assert_eq!(judge(&of_set(Some(&old)), Some(&new)), back);
        assert_eq!(judge(&upgrade(Kind::StaticPod, None), None), back);
        for (job, came, why) in [
            (of_set(Some(&old)), None, "no new pod came"),
            (of_set(None), Some(&new), "what was before is not known"),
            (of_set(Some(&old)), Some(&more), "more than images"),
            (of_set(Some(&new)), Some(&new), "nothing to take back"),
        ] {
            match judge(&job, came) {
                Verdict::Failed(said) => assert!(said.contains(why), "{said}"),
                other => panic!("{why}: {other:?}"),
            }
        }
    }

    #[test]
    fn a_pod_that_was_there_before_comes_in_nobodys_place() {
        let old = pod("a:1", "r1");
        let (beside, new) = (pod("a:1", "beside"), pod("a:2", "r2"));
        let mut job = upgrade(Kind::DaemonSet, Some(&old));
        if let Some(before) = &mut job.before {
            before.beside = vec!["uid-beside".into()];
        }
        let came = |pods: Vec<Value>| Worker::successor(&job, pods);
        assert_eq!(came(vec![beside.clone()]), None);
        assert_eq!(came(vec![new.clone(), beside]), Some(new));
    }

    proptest! {
        /// Nobody is given up before their time, nobody who is ready, and nobody is done who is not.
        #[test]
        fn only_what_is_ready_is_done_and_only_what_is_late_is_not(
            statically: bool, known: bool, came: bool, ready in 0u8..3, waited in 0u64..600, rollback: bool,
        ) {
            let (old, new) = (pod("a:1", "r1"), pod("a:2", "r2"));
            let kind = if statically { Kind::StaticPod } else { Kind::DaemonSet };
            let job = upgrade(kind, known.then_some(&old));
            let readiness = [Readiness::None, Readiness::Fresh, Readiness::Steady][usize::from(ready)];
            let mut policy = Policy::default();
            policy.rollback = rollback;
            let came = came.then_some(&new);
            let verdict = judge(&job, came, readiness, Duration::from_secs(waited), &policy);
            let is_ready = came.is_some() && readiness != Readiness::None;
            match verdict {
                Verdict::Done(_) => prop_assert!(came.is_some() && readiness == Readiness::Steady),
                Verdict::Wait => prop_assert!(waited < 300 || is_ready),
                Verdict::Failed(_) => prop_assert!(waited >= 300 && !is_ready),
                Verdict::RollBack(_) => prop_assert!(waited >= 300 && !is_ready && rollback),
            }
        }
    }
}
