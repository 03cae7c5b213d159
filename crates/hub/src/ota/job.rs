//! Upgrades as durable jobs: what is known of one, and all of them. Pure but for the shelf.

use super::pod::{Before, Kind};
use crate::cache::{Cache, Shelf};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// Jobs that are not over, at one time.
pub const MOST_OPEN: usize = 32;
/// Jobs remembered, all together; those that are over the longest go first.
const MOST_KEPT: usize = 64;
/// Longest reason that is kept.
const MOST_REASON: usize = 512;

/// What a job is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// About to begin.
    Queued,
    /// The owner is to confirm it.
    WaitingForConfirmation,
    /// The owner's policy has no window now.
    WaitingForWindow,
    /// The cloud is away.
    WaitingForLink,
    /// Others go first.
    WaitingForTurn,
    /// The old pod is being ended.
    Replacing,
    /// The new pod is to become ready.
    WaitingForPod,
    /// The new pod did not become ready; the old version is to.
    RollingBack,
    /// The new pod is ready.
    Done,
    /// The old version runs again.
    RolledBack,
    /// Given up, for a reason.
    Failed,
    /// Taken back before it began.
    Cancelled,
}

impl State {
    /// All states.
    pub const ALL: [Self; 12] = [
        Self::Queued,
        Self::WaitingForConfirmation,
        Self::WaitingForWindow,
        Self::WaitingForLink,
        Self::WaitingForTurn,
        Self::Replacing,
        Self::WaitingForPod,
        Self::RollingBack,
        Self::Done,
        Self::RolledBack,
        Self::Failed,
        Self::Cancelled,
    ];

    /// Its name, as in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::WaitingForConfirmation => "waiting-for-confirmation",
            Self::WaitingForWindow => "waiting-for-window",
            Self::WaitingForLink => "waiting-for-link",
            Self::WaitingForTurn => "waiting-for-turn",
            Self::Replacing => "replacing",
            Self::WaitingForPod => "waiting-for-pod",
            Self::RollingBack => "rolling-back",
            Self::Done => "done",
            Self::RolledBack => "rolled-back",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    /// Whether nothing happens any more.
    pub fn is_over(self) -> bool {
        matches!(
            self,
            Self::Done | Self::RolledBack | Self::Failed | Self::Cancelled
        )
    }

    /// Whether something was done to the node's pods that is not seen through yet.
    pub fn is_under_way(self) -> bool {
        matches!(
            self,
            Self::Replacing | Self::WaitingForPod | Self::RollingBack
        )
    }
}

/// One upgrade.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Job {
    /// Its name.
    pub id: String,
    /// Grows with every job.
    pub number: u64,
    /// Grows with every change.
    pub version: u64,
    /// Namespace of the pod.
    pub namespace: String,
    /// The pod that was asked for.
    pub pod: String,
    /// Its uid.
    pub uid: String,
    /// Who makes the new pod.
    pub kind: Kind,
    /// The uid of the pod's owner.
    pub owner: String,
    /// The revision to upgrade to, as the condition names it; empty when it names none.
    pub revision: String,
    /// Who asked, in words.
    pub asked_by: String,
    /// The user who asked while the cloud could not say whether they may (`UserInfo`): it is asked before anything happens.
    pub unverified: Option<Value>,
    /// When it was asked for.
    pub asked_at: String,
    /// Whether the owner confirmed it.
    pub confirmed: bool,
    /// What it is at.
    pub state: State,
    /// Why it waits, or failed.
    pub reason: String,
    /// Until then at least it waits, where that is known.
    pub until: Option<String>,
    /// When its state changed last.
    pub changed_at: String,
    /// The pod that came.
    pub new_pod: String,
    /// What there is to go back to.
    pub before: Option<Before>,
}

impl Job {
    /// Notes what it is at now; `false` when that is nothing new.
    pub fn turn(&mut self, state: State, reason: impl Into<String>, now: Timestamp) -> bool {
        let mut reason = reason.into();
        if let Some((end, _)) = reason.char_indices().nth(MOST_REASON) {
            reason.truncate(end);
        }
        if self.state == state && self.reason == reason {
            return false;
        }
        if self.state != state {
            self.changed_at = super::seconds(now);
            self.until = None;
        }
        (self.state, self.reason) = (state, reason);
        true
    }

    /// As it is told.
    pub fn shown(&self) -> Value {
        let mut shown = json!({
            "id": self.id, "namespace": self.namespace, "pod": self.pod, "kind": self.kind,
            "state": self.state.as_str(), "askedBy": self.asked_by, "askedAt": self.asked_at, "changedAt": self.changed_at,
        });
        let parts = [
            ("revision", &self.revision),
            ("reason", &self.reason),
            ("newPod", &self.new_pod),
        ];
        for (name, value) in parts {
            if !value.is_empty() {
                shown[name] = value.as_str().into();
            }
        }
        if let Some(until) = &self.until {
            shown["until"] = until.as_str().into();
        }
        shown
    }
}

/// Why a job is not taken.
#[derive(Clone, Debug, PartialEq)]
pub enum NotTaken {
    /// There is one of this pod.
    Has(Box<Job>),
    /// There are too many.
    Full,
}

/// All jobs.
#[derive(Debug)]
pub struct Jobs {
    cache: Cache,
    jobs: Vec<Job>,
}

impl Jobs {
    /// Those of before a restart.
    pub fn open(cache: Cache) -> Self {
        let mut jobs = Vec::new();
        for (key, value) in cache.shelf(Shelf::Upgrades) {
            match serde_json::from_slice::<Job>(&value) {
                Ok(job) => jobs.push(job),
                Err(error) => {
                    tracing::warn!(key, %error, "a kept upgrade cannot be read");
                    cache.discard(Shelf::Upgrades, &key);
                }
            }
        }
        jobs.sort_by_key(|job| job.number);
        Self { cache, jobs }
    }

    /// All, the oldest first.
    pub fn all(&self) -> &[Job] {
        &self.jobs
    }

    /// One.
    pub fn get(&self, id: &str) -> Option<&Job> {
        self.jobs.iter().find(|job| job.id == id)
    }

    /// The one of a pod that is not over.
    pub fn of_pod(&self, namespace: &str, pod: &str) -> Option<&Job> {
        self.jobs
            .iter()
            .find(|job| !job.state.is_over() && job.namespace == namespace && job.pod == pod)
    }

    /// Jobs in states.
    pub fn count(&self, states: impl Fn(State) -> bool) -> usize {
        self.jobs.iter().filter(|job| states(job.state)).count()
    }

    /// Takes a job, and gives it its number.
    pub fn add(&mut self, mut job: Job) -> Result<Job, NotTaken> {
        if let Some(known) = self.of_pod(&job.namespace, &job.pod) {
            return Err(NotTaken::Has(Box::new(known.clone())));
        }
        if self.count(|state| !state.is_over()) >= MOST_OPEN {
            return Err(NotTaken::Full);
        }
        job.number = self.jobs.last().map_or(0, |last| last.number) + 1;
        while self.jobs.len() >= MOST_KEPT
            && let Some(oldest) = self.jobs.iter().position(|job| job.state.is_over())
        {
            let gone = self.jobs.remove(oldest);
            self.cache.discard(Shelf::Upgrades, &gone.id);
        }
        self.keep(&job);
        self.jobs.push(job.clone());
        Ok(job)
    }

    /// Notes what became of a job; `false` when somebody else changed it meanwhile, or it is not known.
    pub fn put(&mut self, job: &mut Job) -> bool {
        let Some(known) = self.jobs.iter_mut().find(|known| known.id == job.id) else {
            return false;
        };
        if known.state.is_over() || known.version != job.version {
            return false;
        }
        job.version += 1;
        *known = job.clone();
        self.keep(job);
        true
    }

    fn keep(&self, job: &Job) {
        let stored = serde_json::to_vec(job).unwrap_or_default();
        if stored.is_empty() || !self.cache.keep(Shelf::Upgrades, &job.id, stored.into()) {
            tracing::error!(job = job.id, "an upgrade cannot be kept over a restart");
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::cache::CacheConfig;

    pub(in crate::ota) fn job(id: &str, pod: &str) -> Job {
        Job {
            id: id.into(),
            number: 0,
            version: 0,
            namespace: "d".into(),
            pod: pod.into(),
            uid: format!("uid-{pod}"),
            kind: Kind::DaemonSet,
            owner: "set".into(),
            revision: "r2".into(),
            asked_by: "a test".into(),
            unverified: None,
            asked_at: String::new(),
            confirmed: false,
            state: State::Queued,
            reason: String::new(),
            until: None,
            changed_at: String::new(),
            new_pod: String::new(),
            before: None,
        }
    }

    fn now() -> Timestamp {
        "2026-11-22T10:00:00.5Z".parse().unwrap()
    }

    #[tokio::test]
    async fn jobs_outlive_the_process_and_a_pod_has_one() {
        let dir = tempfile::tempdir().unwrap();
        let open = || Cache::open(dir.path(), CacheConfig::default()).unwrap().0;
        let cache = open();
        let mut jobs = Jobs::open(cache.clone());
        let mut first = jobs.add(job("a", "p")).unwrap();
        assert!(matches!(jobs.add(job("b", "p")), Err(NotTaken::Has(known)) if known.id == "a"));
        assert!(first.turn(State::WaitingForLink, "cut", now()));
        assert!(!first.turn(State::WaitingForLink, "cut", now()));
        assert!(jobs.put(&mut first));
        cache.flush().await.unwrap();
        drop((jobs, cache));
        let cache = open();
        let mut jobs = Jobs::open(cache.clone());
        assert_eq!(jobs.get("a"), Some(&first));
        assert_eq!(first.shown()["changedAt"], "2026-11-22T10:00:00Z");
        // What was changed by somebody else meanwhile is not changed on.
        let mut stale = first.clone();
        first.turn(State::Cancelled, "", now());
        assert!(jobs.put(&mut first) && !jobs.put(&mut stale));
        // What is over stays so, whatever somebody still has in hand.
        first.turn(State::Replacing, "", now());
        assert!(!jobs.put(&mut first));
        assert_eq!(jobs.add(job("c", "p")).unwrap().number, 2);
    }

    #[tokio::test]
    async fn jobs_are_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let (cache, _) = Cache::open(dir.path(), CacheConfig::default()).unwrap();
        let mut jobs = Jobs::open(cache.clone());
        for number in 0..MOST_OPEN {
            jobs.add(job(&format!("j{number}"), &format!("p{number}")))
                .unwrap();
        }
        assert_eq!(jobs.add(job("x", "x")), Err(NotTaken::Full));
        for number in 0..200 {
            let mut over = jobs
                .all()
                .iter()
                .find(|job| !job.state.is_over())
                .unwrap()
                .clone();
            over.turn(State::Done, "", now());
            assert!(jobs.put(&mut over));
            jobs.add(job(&format!("k{number}"), &format!("q{number}")))
                .unwrap();
        }
        assert!(jobs.all().len() <= MOST_KEPT);
        assert_eq!(cache.shelf(Shelf::Upgrades).len(), jobs.all().len());
        let mut long = job("l", "l");
        long.turn(State::Failed, "ü".repeat(5000), now());
        assert_eq!(long.reason.chars().count(), MOST_REASON);
    }

    #[test]
    fn names_of_states_are_those_in_json() {
        for state in State::ALL {
            assert_eq!(json!(state), state.as_str());
        }
    }
}
