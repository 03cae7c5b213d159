//! Instances find each other by Leases, in konnectivity's form (`konnectivity-proxy-server-<id>`), so that its agents count ours and
//! ours count its servers; an annotation says where an instance of ours takes other instances.

use super::Peers;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use yurt_controller::{
    Key,
    collections::LEASES,
    election::micro_time,
    kube::{Kube, KubeError},
};

/// Where an instance takes others: `host:port`.
pub const PEER_ADDRESS: &str = "tunnel.openyurt.io/peer-address";
/// Before the id in a lease's name.
const NAME: &str = "konnectivity-proxy-server-";
/// How long an instance counts that says nothing.
const DURATION: Duration = Duration::from_secs(30);
/// How often a lease is renewed; konnectivity's.
pub const RENEW: Duration = Duration::from_secs(15);
/// How much more often the others are looked for.
const LOOKS: u32 = 5;
/// How long a lease that ended is left, for clocks that differ, before somebody clears it away.
const CLEARED: SignedDuration = SignedDuration::from_secs(60);
/// Waiting for the API server to forget us must not hold up the end.
const FAREWELL: Duration = Duration::from_secs(2);

/// How instances find each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Where the leases are: `--lease-namespace`.
    pub namespace: String,
    /// The label of the leases, `KEY=VALUE`: `--lease-label`.
    pub label: (String, String),
    /// Our id.
    pub id: String,
    /// Where we take other instances.
    pub address: String,
    /// How often our lease is renewed: [`RENEW`].
    pub renew: Duration,
}

impl Settings {
    fn key(&self) -> Key {
        Key::new(&self.namespace, &format!("{NAME}{}", self.id))
    }

    /// Our lease.
    fn lease(&self, acquired: Timestamp, now: Timestamp) -> Value {
        let (label, value) = &self.label;
        json!({
            "apiVersion": LEASES.api_version,
            "kind": LEASES.kind,
            "metadata": {
                "name": self.key().name,
                "namespace": self.namespace,
                "labels": {label: value},
                "annotations": {PEER_ADDRESS: self.address},
            },
            "spec": {
                "holderIdentity": self.id,
                "leaseDurationSeconds": DURATION.as_secs(),
                "acquireTime": micro_time(acquired),
                "renewTime": micro_time(now),
            },
        })
    }
}

/// When a lease ends by the clock of whoever wrote it; konnectivity falls back to when it was acquired.
fn end(lease: &Value) -> Option<Timestamp> {
    let spec = &lease["spec"];
    let time = spec["renewTime"]
        .as_str()
        .or(spec["acquireTime"].as_str())?;
    let renewed: Timestamp = time.parse().ok()?;
    let seconds = spec["leaseDurationSeconds"].as_i64()?.clamp(0, 3600);
    renewed.checked_add(SignedDuration::from_secs(seconds)).ok()
}

/// What the leases say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Found {
    /// Living instances, we too.
    count: u32,
    /// Where the others are: address, id.
    peers: BTreeMap<String, String>,
    /// Names of leases that ended long ago.
    dead: Vec<String>,
}

/// Leases as they were seen changing: other machines' clocks may be wrong, but who renews, lives.
#[derive(Debug, Default)]
struct Watched(HashMap<String, (Value, Instant)>);

impl Watched {
    /// What these leases say now. One lives if it has not ended by the clock, or was renewed within its time by ours.
    fn look(&mut self, leases: &[Value], us: &str, now: Timestamp, at: Instant) -> Found {
        let mut found = Found::default();
        let mut seen = HashMap::new();
        for lease in leases {
            let name = lease["metadata"]["name"].as_str().unwrap_or_default();
            let Some(id) = name.strip_prefix(NAME) else {
                continue;
            };
            let renewed = lease["spec"]["renewTime"].clone();
            let before = self.0.remove(name);
            let changed = match before {
                Some((known, since)) if known == renewed => Some(since),
                // Renewed since it was looked at last.
                Some(_) => Some(at),
                None => None,
            };
            let renewing = changed.is_some_and(|since| {
                at.saturating_duration_since(since) < DURATION && since != never(at)
            });
            let ended = end(lease);
            let lives = id == us || renewing || ended.is_some_and(|end| end > now);
            // What is seen for the first time has not been seen changing.
            let since = changed.unwrap_or_else(|| never(at));
            seen.insert(name.to_owned(), (renewed, since));
            if !lives {
                let long_ago = ended.is_none_or(|end| now.duration_since(end) > CLEARED);
                if long_ago {
                    found.dead.push(name.to_owned());
                }
                continue;
            }
            found.count = found.count.saturating_add(1);
            let address = lease["metadata"]["annotations"][PEER_ADDRESS].as_str();
            if let Some(address) = address.filter(|_| id != us) {
                found.peers.insert(address.to_owned(), id.to_owned());
            }
        }
        self.0 = seen;
        found
    }
}

/// A time so long ago that nothing counts that happened then.
fn never(at: Instant) -> Instant {
    at.checked_sub(DURATION * 2).unwrap_or(at)
}

/// Keeps our lease, and tells who else is there, until `shutdown`; then takes the lease back. `count` is how many instances there are,
/// at least 1. Others that are given (`known`) stay.
pub async fn keep(
    kube: Kube,
    settings: Settings,
    known: BTreeMap<String, String>,
    peers: Arc<Peers>,
    count: Arc<AtomicU32>,
    shutdown: CancellationToken,
) {
    let acquired = Timestamp::now();
    let mut watched = Watched::default();
    let mut renewed: Option<Instant> = None;
    let mut trouble: Option<String> = None;
    while !shutdown.is_cancelled() {
        let mut said = Ok(());
        if renewed.is_none_or(|at| at.elapsed() >= settings.renew) {
            said = shutdown
                .run_until_cancelled(Box::pin(renew(&kube, &settings, acquired)))
                .await
                .unwrap_or(Ok(()));
            if said.is_ok() {
                renewed = Some(Instant::now());
            }
        }
        let looked = shutdown
            .run_until_cancelled(Box::pin(look(&kube, &settings)))
            .await;
        match looked {
            Some(Ok(leases)) => {
                let found = watched.look(&leases, &settings.id, Timestamp::now(), Instant::now());
                count.store(found.count.max(1), Ordering::Relaxed);
                let mut all = known.clone();
                all.extend(found.peers);
                peers.set(&all);
                for name in found.dead {
                    let path = LEASES.object_path(&Key::new(&settings.namespace, &name));
                    // Another instance may have been first.
                    let _ = shutdown
                        .run_until_cancelled(Box::pin(kube.delete(&path)))
                        .await;
                }
            }
            Some(Err(error)) => said = said.and(Err(error)),
            None => break,
        }
        // What is known stays, as long as nobody says otherwise.
        let now = said.err().map(|error| error.to_string());
        if now != trouble {
            match &now {
                Some(error) => tracing::warn!(%error, "leases of instances"),
                None => tracing::info!("leases of instances are kept again"),
            }
            trouble = now;
        }
        let pause = (settings.renew / LOOKS).mul_f64(0.9 + fastrand::f64() / 5.0);
        tokio::select! {
            () = shutdown.cancelled() => break,
            () = tokio::time::sleep(pause) => {}
        }
    }
    let path = LEASES.object_path(&settings.key());
    let _ = tokio::time::timeout(FAREWELL, kube.delete(&path)).await;
}

async fn look(kube: &Kube, settings: &Settings) -> Result<Vec<Value>, KubeError> {
    let (label, value) = &settings.label;
    let selector = yurt_wire::request::encode_query_value(&format!("{label}={value}"));
    let path = LEASES.path(&settings.namespace);
    let list = kube
        .get(&format!("{path}?labelSelector={selector}"))
        .await?;
    let items = list["items"].as_array();
    Ok(items.cloned().unwrap_or_default())
}

async fn renew(kube: &Kube, settings: &Settings, acquired: Timestamp) -> Result<(), KubeError> {
    let lease = settings.lease(acquired, Timestamp::now());
    let path = LEASES.object_path(&settings.key());
    match kube.merge(&path, &lease).await {
        Err(error) if error.is_not_found() => {
            let path = LEASES.path(&settings.namespace);
            kube.create(&path, &lease).await.map(drop)
        }
        other => other.map(drop),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: &str = "2026-11-22T12:00:00Z";

    fn at(seconds: i64) -> Timestamp {
        let now: Timestamp = NOW.parse().expect("a time");
        now.checked_add(SignedDuration::from_secs(seconds))
            .expect("a time")
    }

    fn settings(id: &str) -> Settings {
        Settings {
            namespace: "kube-system".into(),
            label: ("k8s-app".into(), "konnectivity-server".into()),
            id: id.into(),
            address: format!("{id}:10262"),
            renew: RENEW,
        }
    }

    #[test]
    fn a_lease_is_konnectivitys() {
        let lease = settings("a").lease(at(0), at(0));
        assert_eq!(lease["metadata"]["name"], "konnectivity-proxy-server-a");
        assert_eq!(
            lease["metadata"]["labels"]["k8s-app"],
            "konnectivity-server"
        );
        assert_eq!(lease["spec"]["leaseDurationSeconds"], 30);
        assert_eq!(lease["spec"]["renewTime"], "2026-11-22T12:00:00.000000Z");
        assert_eq!(end(&lease), Some(at(30)));
    }

    #[tokio::test(start_paused = true)]
    async fn who_renews_lives_whatever_its_clock_says() {
        let mut watched = Watched::default();
        let us = settings("us").lease(at(-100), at(-100));
        let good = settings("good").lease(at(-100), at(-5));
        // Its clock is an hour behind; it renews all the same.
        let behind = |seconds: i64| settings("behind").lease(at(-4000), at(-3600 + seconds));
        let dead = settings("dead").lease(at(-500), at(-400));
        let mut konnectivitys = settings("theirs").lease(at(0), at(0));
        konnectivitys["metadata"]["annotations"] = Value::Null;
        let leases = |seconds: i64| {
            vec![
                us.clone(),
                good.clone(),
                behind(seconds),
                dead.clone(),
                konnectivitys.clone(),
                json!({"metadata": {"name": "something-else"}}),
            ]
        };
        let found = watched.look(&leases(0), "us", at(0), Instant::now());
        assert_eq!(found.count, 3);
        assert_eq!(found.peers, [("good:10262".into(), "good".into())].into());
        tokio::time::advance(Duration::from_secs(15)).await;
        let found = watched.look(&leases(15), "us", at(15), Instant::now());
        assert_eq!(found.count, 4);
        assert!(found.peers.contains_key("behind:10262"), "{found:?}");
        assert_eq!(found.dead, ["konnectivity-proxy-server-dead"]);
        // It stops renewing.
        tokio::time::advance(Duration::from_secs(31)).await;
        let found = watched.look(&leases(15), "us", at(20), Instant::now());
        assert!(!found.peers.contains_key("behind:10262"), "{found:?}");
    }
}
