//! Upgrades decided by the node's owner (OTA): asked for by REST on the admin port and on the node's socket, allowed by the owner's
//! policy, kept until they can be carried out, seen through, and taken back when the new pod does not become ready.
//!
//! [`policy`] says when something may happen, [`pod`] what pods say of it, [`manifest`] how static pods are replaced, [`job`] what is
//! kept of an upgrade; all of them pure or nearly so. [`access`] finds out who may ask, [`asked`] takes their requests, [`worker`] carries
//! them out. The HTTP side is `server/admin/ota.rs`.
//!
//! What a node can do: delete its pods and write their status. What it cannot: change a DaemonSet, or the spec of a pod (NodeRestriction).
//! So a version is had back by setting the images of the new pod to those of the old one, under the name of who asked for the upgrade,
//! or of a service account that the owner gave the hub for this; where neither may, or where more than images changed, the upgrade
//! fails, and a condition of the pod and an event say so.

pub(crate) mod access;
pub(crate) mod asked;
mod cloud;
pub mod job;
pub mod manifest;
pub mod pod;
pub mod policy;
pub(crate) mod worker;

use crate::{autonomy::seconds, cache::Cache, config::Config, metrics::Metrics};
use access::OwnerToken;
use jiff::Timestamp;
use job::{Job, Jobs, State};
use policy::PolicyFile;
use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::sync::watch;

/// What the hub was told about upgrades.
#[derive(Clone, Debug)]
pub struct OtaConfig {
    /// The owner's token; `None`: `ota.token` in the root directory.
    pub token_file: Option<PathBuf>,
    /// The owner's policy; `None`: `ota-policy.yaml` in the root directory.
    pub policy_file: Option<PathBuf>,
    /// A service account's token that may patch pods, to have images back.
    pub rollback_token_file: Option<PathBuf>,
    /// Whether callers on the node need prove nothing.
    pub anonymous_loopback: bool,
    /// Where the kubelet's manifests are.
    pub static_pods: PathBuf,
    /// The clock that policies go by.
    pub clock: fn() -> Timestamp,
    /// Between looks at what waits.
    pub look: Duration,
}

impl Default for OtaConfig {
    fn default() -> Self {
        Self {
            token_file: None,
            policy_file: None,
            rollback_token_file: None,
            anonymous_loopback: false,
            static_pods: "/etc/kubernetes/manifests".into(),
            clock: Timestamp::now,
            look: Duration::from_secs(10),
        }
    }
}

/// Everything about upgrades that outlives a request.
#[derive(Debug)]
pub struct Ota {
    config: OtaConfig,
    owner: OwnerToken,
    policy: PolicyFile,
    jobs: Mutex<Jobs>,
    /// Tokens of users who asked, while their upgrade is not over. Never written down.
    bearers: Mutex<HashMap<String, String>>,
    changed: watch::Sender<()>,
    cache: Cache,
    metrics: Metrics,
}

impl Ota {
    /// What was asked for before a restart, under the owner's policy.
    pub(crate) fn open(config: &Config, cache: &Cache, metrics: Metrics) -> Arc<Self> {
        let at = |file: &Option<PathBuf>, usual: &str| {
            file.clone().unwrap_or_else(|| config.root_dir.join(usual))
        };
        let ota = &config.ota;
        let this = Self {
            owner: OwnerToken::open(at(&ota.token_file, "ota.token")),
            policy: PolicyFile::new(at(&ota.policy_file, "ota-policy.yaml")),
            config: ota.clone(),
            jobs: Mutex::new(Jobs::open(cache.clone())),
            bearers: Mutex::default(),
            changed: watch::Sender::new(()),
            cache: cache.clone(),
            metrics,
        };
        this.count();
        Arc::new(this)
    }

    fn lock(&self) -> MutexGuard<'_, Jobs> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn bearers(&self) -> MutexGuard<'_, HashMap<String, String>> {
        self.bearers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Timestamp {
        (self.config.clock)()
    }

    /// All jobs, the oldest first.
    pub(crate) fn all(&self) -> Vec<Job> {
        self.lock().all().to_vec()
    }

    /// One job.
    pub(crate) fn get(&self, id: &str) -> Option<Job> {
        self.lock().get(id).cloned()
    }

    /// Keeps what became of a job and tells who waits for it; `false` when somebody else changed it meanwhile.
    fn put(&self, job: &mut Job) -> bool {
        if !self.lock().put(job) {
            return false;
        }
        if job.state.is_over() {
            self.bearers().remove(&job.id);
        }
        self.count();
        self.changed.send_replace(());
        true
    }

    fn count(&self) {
        let jobs = self.lock();
        for state in State::ALL {
            self.metrics
                .ota()
                .jobs(state.as_str(), jobs.count(|known| known == state));
        }
    }
}
