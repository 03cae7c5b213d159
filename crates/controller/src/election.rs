//! Which of several processes works: the holder of a Lease, elected as client-go's `leaderelection` does it, so that ours and
//! OpenYurt's manager never work at once.
//!
//! What to do about the lease is a pure function ([`claim`]) of the lease as it was read and of how long it has stayed so by our own
//! clock: other machines' clocks are never compared with ours.

use crate::{
    Collection, Key,
    collections::LEASES,
    kube::{Kube, KubeError},
};
use jiff::Timestamp;
use serde_json::{Value, json};
use std::time::Duration;
use tokio::time::{Instant, sleep_until, timeout_at};
use tokio_util::sync::CancellationToken;

/// How much longer than the retry period a candidate waits at most, in retry periods, as in client-go.
const JITTER: f64 = 1.2;

/// The times of an election.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// How long others wait for a holder that says nothing.
    pub lease: Duration,
    /// After so long without a renewal the holder stops working.
    pub renew: Duration,
    /// How long is waited between tries.
    pub retry: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            lease: Duration::from_secs(15),
            renew: Duration::from_secs(10),
            retry: Duration::from_secs(2),
        }
    }
}

/// Times that do not fit together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TimingError {
    /// The Lease holds whole seconds.
    #[error("the lease duration must be at least one second")]
    Lease,
    /// Else two would work at once.
    #[error("the lease duration must be greater than the renew deadline")]
    Renew,
    /// Else nobody could renew in time.
    #[error("the renew deadline must be greater than {JITTER} retry periods")]
    Retry,
    /// Else the API server would be flooded.
    #[error("the retry period must not be zero")]
    Zero,
}

impl Timing {
    /// These times, when they fit together.
    pub fn checked(self) -> Result<Self, TimingError> {
        if self.retry.is_zero() {
            Err(TimingError::Zero)
        } else if self.lease < Duration::from_secs(1) {
            Err(TimingError::Lease)
        } else if self.lease <= self.renew {
            Err(TimingError::Renew)
        } else if self.renew <= self.retry.mul_f64(JITTER) {
            Err(TimingError::Retry)
        } else {
            Ok(self)
        }
    }
}

/// `metav1.MicroTime`.
pub fn micro_time(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string()
}

/// The spec that `identity` writes to hold the lease; `None`: another holds it. `unchanged` is how long the lease has been as it is.
pub fn claim(
    identity: &str,
    lease: Option<&Value>,
    unchanged: Duration,
    now: Timestamp,
    timing: &Timing,
) -> Option<Value> {
    let now = micro_time(now);
    let spec = lease.map_or(&Value::Null, |lease| &lease["spec"]);
    let holder = spec["holderIdentity"].as_str().unwrap_or_default();
    let seconds = spec["leaseDurationSeconds"].as_u64().filter(|s| *s > 0);
    let valid_for = seconds.map_or(timing.lease, Duration::from_secs);
    if !holder.is_empty() && holder != identity && unchanged < valid_for {
        return None;
    }
    let transitions = spec["leaseTransitions"].as_i64().unwrap_or_default();
    let (acquired, transitions) = if lease.is_none() {
        (now.clone().into(), 0)
    } else if holder == identity {
        (spec["acquireTime"].clone(), transitions)
    } else {
        (now.clone().into(), transitions.saturating_add(1))
    };
    // What else is in it (a strategy, a preferred holder) is not ours.
    let mut claimed = if spec.is_object() {
        spec.clone()
    } else {
        json!({})
    };
    claimed["holderIdentity"] = identity.into();
    claimed["leaseDurationSeconds"] = timing.lease.as_secs().into();
    claimed["acquireTime"] = acquired;
    claimed["renewTime"] = now.into();
    claimed["leaseTransitions"] = transitions.into();
    Some(claimed)
}

/// Who this process is among candidates, as client-go's managers call themselves: the host's name (`unnamed` where it has none) and
/// a UUID.
pub fn identity(unnamed: &str) -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = match host.trim() {
        "" => unnamed,
        host => host,
    };
    format!("{host}_{}", uuid())
}

/// A random UUID (version 4).
pub fn uuid() -> String {
    let random = fastrand::u128(..);
    let uuid = (random & !(0xf << 76) & !(0b11 << 62)) | (0x4 << 76) | (0b10 << 62);
    let hex = format!("{uuid:032x}");
    let parts = [(0, 8), (8, 12), (12, 16), (16, 20), (20, 32)].map(|(from, to)| hex.get(from..to));
    let parts: Vec<&str> = parts.into_iter().flatten().collect();
    parts.join("-")
}

/// Why a holder is none any more.
#[derive(Debug, thiserror::Error)]
pub enum Lost {
    /// Another has the lease.
    #[error("the lease {lease} is held by {holder}")]
    Taken {
        /// The lease.
        lease: String,
        /// Who has it.
        holder: String,
    },
    /// It could not be renewed in time.
    #[error("the lease {lease} could not be renewed for {after:?}: {why}")]
    Silence {
        /// The lease.
        lease: String,
        /// For how long.
        after: Duration,
        /// What the last try said.
        why: String,
    },
}

/// A candidate for a lease, and its holder once [`Candidate::acquire`] says so.
#[derive(Debug)]
pub struct Candidate {
    kube: Kube,
    key: Key,
    identity: String,
    timing: Timing,
    /// As it was read or written last, and since when it is so.
    lease: Option<Value>,
    since: Instant,
    /// When the last claim that was taken was sent.
    renewed: Instant,
}

const COLLECTION: Collection = LEASES;

impl Candidate {
    /// A candidate; `identity` must be no other's (`<host>_<uuid>`).
    pub fn new(kube: Kube, lease: Key, identity: String, timing: Timing) -> Self {
        Self {
            kube,
            key: lease,
            identity,
            timing,
            lease: None,
            since: Instant::now(),
            renewed: Instant::now(),
        }
    }

    /// Who holds the lease, as far as is known.
    pub fn holder(&self) -> &str {
        let lease = self.lease.as_ref();
        let holder = lease.and_then(|lease| lease["spec"]["holderIdentity"].as_str());
        holder.unwrap_or_default()
    }

    /// The lease as it is known.
    pub fn lease(&self) -> Option<&Value> {
        self.lease.as_ref()
    }

    fn learn(&mut self, lease: Option<Value>) {
        let said = |lease: &Option<Value>| lease.as_ref().map(|lease| lease["spec"].clone());
        if said(&self.lease) != said(&lease) {
            self.since = Instant::now();
        }
        self.lease = lease;
    }

    /// Waits until the lease is ours; `false` on `shutdown`.
    pub async fn acquire(&mut self, shutdown: &CancellationToken) -> bool {
        let mut waiting_for = None;
        loop {
            let deadline = Instant::now() + self.timing.renew;
            let tried = tokio::select! {
                () = shutdown.cancelled() => return false,
                tried = timeout_at(deadline, self.claim_once()) => tried,
            };
            let obstacle = match tried {
                Ok(Ok(true)) => return true,
                Ok(Ok(false)) => format!("held by {}", self.holder()),
                // Two candidates met; who won is read next.
                Ok(Err(error)) if error.is_conflict() => continue,
                Ok(Err(error)) => error.to_string(),
                Err(_) => "no answer in time".into(),
            };
            if waiting_for.as_ref() != Some(&obstacle) {
                tracing::info!(lease = %self.key, %obstacle, "standing by");
                waiting_for = Some(obstacle);
            }
            let pause = self.timing.retry.mul_f64(1.0 + JITTER * fastrand::f64());
            tokio::select! {
                () = shutdown.cancelled() => return false,
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// Renews the lease until `shutdown`, or until it is lost; then at least the difference between lease duration and renew
    /// deadline is left in which nobody else works.
    pub async fn keep(&mut self, shutdown: &CancellationToken) -> Result<(), Lost> {
        let mut last = "no answer in time".to_owned();
        let mut tried = self.renewed;
        loop {
            let deadline = self.renewed + self.timing.renew;
            let next = (tried + self.timing.retry).min(deadline);
            tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                () = sleep_until(next) => {}
            }
            tried = Instant::now();
            let answer = tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                answer = timeout_at(deadline, self.claim_once()) => answer,
            };
            match answer {
                Ok(Ok(true)) => continue,
                Ok(Ok(false)) => {
                    return Err(Lost::Taken {
                        lease: self.key.to_string(),
                        holder: self.holder().into(),
                    });
                }
                Ok(Err(error)) => {
                    tracing::warn!(lease = %self.key, %error, "not renewed");
                    last = error.to_string();
                    // As it is now, not as it was before whatever happened.
                    if error.code().is_some() {
                        self.reread(deadline).await;
                    }
                }
                Err(_) => {}
            }
            if Instant::now() >= deadline {
                return Err(Lost::Silence {
                    lease: self.key.to_string(),
                    after: self.timing.renew,
                    why: last,
                });
            }
        }
    }

    async fn reread(&mut self, deadline: Instant) {
        if let Ok(Ok(lease)) = timeout_at(deadline, self.read()).await {
            self.learn(lease);
        }
    }

    async fn read(&self) -> Result<Option<Value>, KubeError> {
        match self.kube.get(&COLLECTION.object_path(&self.key)).await {
            Ok(lease) => Ok(Some(lease)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Claims the lease once, or renews it; whether it is ours.
    async fn claim_once(&mut self) -> Result<bool, KubeError> {
        // Who holds it writes without reading: the revision tells whether anybody else wrote.
        if self.holder() != self.identity {
            let lease = self.read().await?;
            self.learn(lease);
        }
        let sent = Instant::now();
        let claimed = claim(
            &self.identity,
            self.lease.as_ref(),
            sent - self.since,
            Timestamp::now(),
            &self.timing,
        );
        let Some(spec) = claimed else {
            return Ok(false);
        };
        let written = self.write(spec).await?;
        self.learn(Some(written));
        self.renewed = sent;
        Ok(true)
    }

    async fn write(&self, spec: Value) -> Result<Value, KubeError> {
        match &self.lease {
            Some(lease) => {
                let mut lease = lease.clone();
                lease["spec"] = spec;
                let path = COLLECTION.object_path(&self.key);
                self.kube.replace(&path, &lease).await
            }
            None => {
                let lease = json!({
                    "apiVersion": COLLECTION.api_version, "kind": COLLECTION.kind,
                    "metadata": {"name": self.key.name, "namespace": self.key.namespace},
                    "spec": spec,
                });
                let path = COLLECTION.path(&self.key.namespace);
                self.kube.create(&path, &lease).await
            }
        }
    }

    /// Gives the lease up, so that another takes over at once. Nothing of ours may be working any more.
    pub async fn release(mut self) {
        if self.holder() != self.identity {
            return;
        }
        let Some(mut spec) = self.lease.as_mut().map(|lease| lease["spec"].take()) else {
            return;
        };
        let now = micro_time(Timestamp::now());
        spec["holderIdentity"] = "".into();
        spec["leaseDurationSeconds"] = 1.into();
        spec["acquireTime"] = now.clone().into();
        spec["renewTime"] = now.into();
        let deadline = Instant::now() + self.timing.retry;
        match timeout_at(deadline, self.write(spec)).await {
            Ok(Ok(_)) => tracing::info!(lease = %self.key, "given up"),
            Ok(Err(error)) => tracing::warn!(lease = %self.key, %error, "not given up"),
            Err(_) => tracing::warn!(lease = %self.key, "not given up: no answer in time"),
        }
    }
}

#[cfg(test)]
mod tests;
