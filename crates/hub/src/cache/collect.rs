//! Collecting what nobody will ask for again: resources that the cloud does not serve any more, callers and lists that were not
//! used for long, events that the cloud has forgotten, documents of groups that are gone. What is to go is decided by pure
//! functions; [`Cache::collect`] takes it out. Only while the cloud is there, so that a node that is cut off forgets nothing.

use super::{
    Cache, Shared,
    coverage::Coverage,
    eviction,
    record::{self, split_index_key},
    state::{State, Value},
    worth::Scope,
};
use crate::{caller::Caller, query::Query, route::Mode};
use std::{
    collections::{BTreeSet, HashMap},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use yurt_wire::{Gvr, Object};

/// How long a resource must be missing from discovery: a CRD may be made anew within an upgrade.
const GONE: Duration = Duration::from_secs(3600);
/// Days after which a bearer that nobody vouched for is forgotten: tokens live a day at most as a rule.
const BEARER_DAYS: u32 = 7;
/// Days after which a user, another node, or a complete list that nobody asked for is forgotten.
const UNUSED_DAYS: u32 = 30;
/// The cloud keeps events for an hour, unless told otherwise.
const EVENTS: Duration = Duration::from_secs(2 * 3600);
/// 2025-01-01: a clock before it was never set.
const FIRST_DAY: u32 = 20_089;

/// The days since the epoch.
pub(crate) fn today() -> u32 {
    day_of(SystemTime::now())
}

fn day_of(time: SystemTime) -> u32 {
    time.duration_since(UNIX_EPOCH)
        .map_or(0, |since| (since.as_secs() / 86_400) as u32)
}

/// What the cloud serves, as one complete look at discovery showed it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Served {
    /// Resources.
    pub resources: BTreeSet<Gvr>,
    /// Paths of group versions (`/apis/GROUP/VERSION`) whose resources could not be had: an aggregated API that is down. Whatever is
    /// known of them counts as served.
    pub unknown: BTreeSet<String>,
}

impl Served {
    /// Whether a resource may still be served.
    fn has(&self, gvr: &Gvr) -> bool {
        self.resources.contains(gvr)
            || (!self.unknown.is_empty()
                && self.unknown.contains(&match gvr.group.as_str() {
                    "" => format!("/api/{}", gvr.version),
                    group => format!("/apis/{group}/{}", gvr.version),
                }))
    }

    /// Whether a document may still be served: what is about no group always is.
    fn has_document(&self, path: &str) -> bool {
        let path = path.strip_prefix("/openapi/v3").unwrap_or(path);
        if self.unknown.iter().any(|unknown| unknown.starts_with(path)) {
            return true;
        }
        let mut parts = path.trim_start_matches('/').split('/');
        let (group, version) = match (parts.next(), parts.next(), parts.next()) {
            (Some("api"), Some(version), _) => ("", Some(version)),
            (Some("apis"), Some(group), version) => (group, version),
            _ => return true,
        };
        self.resources
            .iter()
            .any(|gvr| gvr.group == group && version.is_none_or(|version| gvr.version == version))
    }
}

/// What is missing from discovery, and since when.
#[derive(Debug, Default)]
pub(crate) struct Missing {
    resources: HashMap<Gvr, Instant>,
    documents: HashMap<String, Instant>,
}

/// Notes what is known and not served; what is served again is not missing.
fn note<K: Clone + Eq + std::hash::Hash>(
    missing: &mut HashMap<K, Instant>,
    unserved: Vec<K>,
    now: Instant,
) {
    let mut still: HashMap<K, Instant> = HashMap::new();
    for key in unserved {
        let since = missing.get(&key).copied().unwrap_or(now);
        still.insert(key, since);
    }
    *missing = still;
}

/// What is missing for long enough.
fn gone<K: Clone>(missing: &HashMap<K, Instant>, now: Instant) -> Vec<K> {
    missing
        .iter()
        .filter(|(_, since)| now.saturating_duration_since(**since) >= GONE)
        .map(|(key, _)| key.clone())
        .collect()
}

/// Whether something last used on a day is to be forgotten.
fn is_unused(day: u32, today: u32, after: u32) -> bool {
    today.saturating_sub(day) >= after
}

/// When an event (JSON) last happened, in seconds since the epoch.
fn happened(event: &serde_json::Value) -> Option<i64> {
    [
        "/series/lastObservedTime",
        "/lastTimestamp",
        "/deprecatedLastTimestamp",
        "/eventTime",
        "/metadata/creationTimestamp",
    ]
    .iter()
    .filter_map(|pointer| event.pointer(pointer)?.as_str()?.parse().ok())
    .map(|time: jiff::Timestamp| time.as_second())
    .max()
}

fn is_old_event(object: &Object, now: SystemTime) -> bool {
    let now = now
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs() as i64);
    object
        .to_json_value()
        .ok()
        .as_ref()
        .and_then(happened)
        .is_some_and(|at| now.saturating_sub(at) > EVENTS.as_secs() as i64)
}

/// What was collected, by kind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// Resources that are not served any more.
    pub resources: usize,
    /// Callers that read nothing for long.
    pub callers: usize,
    /// Complete lists that nobody asked for.
    pub coverages: usize,
    /// Events.
    pub events: usize,
    /// Documents of groups and versions that are gone.
    pub documents: usize,
    /// Objects that nobody may read any more and no list holds.
    pub orphans: usize,
    /// Notes at objects about lists that are not there any more.
    pub notes: usize,
}

impl Cache {
    /// Compares what is known with what the cloud serves.
    pub fn note_served(&self, served: &Served, now: Instant) {
        let mut state = self.shared().lock();
        let resources: BTreeSet<Gvr> = state
            .resources
            .keys()
            .chain(state.grants.resources())
            .filter(|gvr| !served.has(gvr))
            .cloned()
            .collect();
        let documents: Vec<String> = state
            .documents
            .names()
            .filter(|name| {
                let path = name.split_once('#').map_or(*name, |(path, _)| path);
                !served.has_document(path)
            })
            .map(str::to_owned)
            .collect();
        note(
            &mut state.missing.resources,
            resources.into_iter().collect(),
            now,
        );
        note(&mut state.missing.documents, documents, now);
    }

    /// Takes out what nobody will ask for again. Reads events and marked objects from the disk; call it off the runtime.
    pub fn collect(&self, now: Instant, time: SystemTime) -> Collected {
        let shared = self.shared();
        let mut collected = Collected::default();
        {
            let mut state = shared.lock();
            collected.resources = state.collect_resources(now);
            collected.documents = state.collect_documents(now);
            let today = day_of(time);
            // Without a clock nobody knows what was not used for long.
            if today >= FIRST_DAY {
                collected.callers = state.collect_callers(today);
                collected.coverages = state.collect_coverages(today);
            }
        }
        collected.events = shared.collect_events(time);
        collected.notes = shared.collect_notes();
        collected.orphans = shared.collect_orphans();
        shared.stir();
        collected
    }
}

impl State {
    fn collect_resources(&mut self, now: Instant) -> usize {
        let gone = gone(&self.missing.resources, now);
        for gvr in &gone {
            tracing::info!(resource = %gvr, "the cloud does not serve it any more; forgotten");
            self.drop_coverages(gvr, |_| true);
            for (caller, grants) in self.grants.forget_resource(gvr) {
                for grant in &grants {
                    self.enqueue(
                        record::grant_record(&caller, grant),
                        Value::Delete,
                        Duration::ZERO,
                    );
                }
            }
            let Some(resource) = self.resources.get(gvr) else {
                continue;
            };
            // What the node wrote itself waits for the cloud's word.
            let keys: Vec<_> = resource
                .objects
                .keys()
                .filter(|key| !resource.overlays.contains_key(*key))
                .cloned()
                .collect();
            for key in keys {
                self.forget_object(gvr, &key);
            }
            let empty = self.resources.get(gvr).is_some_and(|resource| {
                resource.objects.is_empty() && resource.overlays.is_empty()
            });
            if empty {
                self.resources.remove(gvr);
            }
            self.missing.resources.remove(gvr);
        }
        gone.len()
    }

    fn collect_documents(&mut self, now: Instant) -> usize {
        let gone = gone(&self.missing.documents, now);
        for name in &gone {
            self.documents.remove(name);
            let record = [record::DOCUMENTS, name.as_bytes()].concat();
            self.enqueue(record, Value::Delete, Duration::ZERO);
            self.missing.documents.remove(name);
        }
        gone.len()
    }

    fn collect_callers(&mut self, today: u32) -> usize {
        let mut unused = Vec::new();
        let mut wrong = Vec::new();
        for (caller, day) in self.grants.days() {
            let after = match caller {
                Caller::Bearer(_) => BEARER_DAYS,
                Caller::Node | Caller::Peer(_) | Caller::User(_) => UNUSED_DAYS,
            };
            // Of before days were noted, or of a clock that was wrong: counts from now.
            if day == 0 || day > today {
                wrong.push(caller.clone());
            } else if is_unused(day, today, after) {
                unused.push(caller.clone());
            }
        }
        for caller in wrong {
            if let Some(bearer) = self.grants.touch(&caller, today) {
                self.store_bearer(&caller, &bearer);
            }
        }
        for caller in &unused {
            let grants = self.grants.forget(caller);
            self.strike_out(caller, &grants);
        }
        unused.len()
    }

    fn collect_coverages(&mut self, today: u32) -> usize {
        let resources: Vec<Gvr> = self.resources.keys().cloned().collect();
        let mut dropped = 0;
        for gvr in resources {
            self.drop_coverages(&gvr, |coverage: &Coverage| {
                let unused = is_unused(coverage.day, today, UNUSED_DAYS);
                dropped += usize::from(unused);
                unused
            });
        }
        dropped
    }

    /// The objects of a resource that nobody may read, no list holds, and the node did not write.
    fn orphans(&self, gvr: &Gvr) -> Vec<super::index::Key> {
        let Some(resource) = self.resources.get(gvr) else {
            return Vec::new();
        };
        if self.grants.is_under_rules(gvr) {
            return Vec::new();
        }
        let reachable = Scope::of(
            self.grants
                .readers(gvr)
                .flat_map(|(_, grants)| grants)
                .chain(resource.coverages.iter().map(|coverage| &coverage.query)),
        );
        resource
            .objects
            .keys()
            .filter(|key| !reachable.holds(key) && !resource.overlays.contains_key(*key))
            .cloned()
            .collect()
    }
}

impl Shared {
    fn collect_events(&self, time: SystemTime) -> usize {
        let events: Vec<(Gvr, super::index::Key)> = {
            let state = self.lock();
            state
                .resources
                .iter()
                .filter(|(gvr, _)| gvr.resource == "events")
                .flat_map(|(gvr, resource)| {
                    let waiting = &resource.overlays;
                    resource
                        .objects
                        .keys()
                        .filter(|key| !waiting.contains_key(*key))
                        .map(|key| (gvr.clone(), key.clone()))
                })
                .collect()
        };
        let mut collected = 0;
        for (gvr, key) in events {
            let Some(stored) = self.read_stored(&gvr, &key) else {
                continue;
            };
            if is_old_event(&stored.object, time) {
                // Lists of events may lack the oldest.
                self.lock().forget_object(&gvr, &key);
                collected += 1;
            }
        }
        collected
    }

    /// Takes back exclusions from lists that are not complete any more, and so are not answered from them.
    fn collect_notes(&self) -> usize {
        let marked = self.lock().objects_where(|entry| entry.excluded);
        let mut collected = 0;
        for (gvr, key) in marked {
            let Some(mut stored) = self.read_stored(&gvr, &key) else {
                continue;
            };
            let mut state = self.lock();
            let Some(resource) = state.resources.get_mut(&gvr) else {
                continue;
            };
            let before = stored.absent_from.len();
            stored.absent_from.retain(|text| {
                Query::from_text(text).is_some_and(|query| {
                    resource
                        .coverages
                        .iter()
                        .any(|coverage| query.covers(&coverage.query))
                })
            });
            let taken = before - stored.absent_from.len();
            let Some(entry) = resource.objects.get_mut(&key) else {
                continue;
            };
            if taken == 0 || entry.revision != stored.revision {
                continue;
            }
            entry.excluded = !stored.absent_from.is_empty();
            let record = record::object_record(record::OBJECTS, &gvr, &key);
            if state.enqueue(record, Value::Object(stored), Duration::ZERO) {
                collected += taken;
            } else if let Some(entry) = state
                .resources
                .get_mut(&gvr)
                .and_then(|resource| resource.objects.get_mut(&key))
            {
                entry.excluded = true;
            }
        }
        collected
    }

    fn collect_orphans(&self) -> usize {
        let resources: Vec<Gvr> = self.lock().resources.keys().cloned().collect();
        let mut orphans: Vec<(Gvr, super::index::Key)> = Vec::new();
        for gvr in resources {
            let of = self.lock().orphans(&gvr);
            orphans.extend(of.into_iter().map(|key| (gvr.clone(), key)));
        }
        if orphans.is_empty() {
            return 0;
        }
        let needs = eviction::needed(self);
        orphans.retain(|(gvr, key)| !needs.hold(gvr, key));
        let mut state = self.lock();
        for (gvr, key) in &orphans {
            let (namespace, name) = split_index_key(key);
            // Learned by somebody since the look.
            let wanted = state
                .grants
                .readers(gvr)
                .any(|(_, grants)| grants.iter().any(|grant| grant.in_scope(namespace, name)));
            if !wanted {
                state.forget_object(gvr, key);
            }
        }
        orphans.len()
    }
}

/// Collects now and then while the cloud is there, until shutdown.
pub async fn run(
    cache: Cache,
    mut modes: watch::Receiver<Mode>,
    every: Duration,
    shutdown: CancellationToken,
) {
    loop {
        let turn = async {
            tokio::time::sleep(every.mul_f64(0.9 + 0.2 * fastrand::f64())).await;
            modes.wait_for(|mode| *mode == Mode::Online).await.is_ok()
        };
        tokio::select! {
            () = shutdown.cancelled() => return,
            online = turn => if !online { return },
        }
        let cache = cache.clone();
        let collect = move || cache.collect(Instant::now(), SystemTime::now());
        match tokio::task::spawn_blocking(collect).await {
            Ok(collected) if collected != Collected::default() => {
                tracing::info!(
                    resources = collected.resources,
                    callers = collected.callers,
                    lists = collected.coverages,
                    events = collected.events,
                    documents = collected.documents,
                    orphans = collected.orphans,
                    notes = collected.notes,
                    "garbage taken out of the cache"
                );
            }
            Ok(_) => {}
            Err(error) => tracing::error!(%error, "garbage collection failed"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_served_again_was_not_gone() {
        let start = Instant::now();
        let mut missing = HashMap::new();
        note(&mut missing, vec!["a", "b"], start);
        assert!(gone(&missing, start + GONE / 2).is_empty());
        note(&mut missing, vec!["a"], start + GONE / 2);
        note(&mut missing, vec!["a", "b"], start + GONE / 2);
        assert_eq!(gone(&missing, start + GONE), ["a"]);
        assert_eq!(gone(&missing, start + GONE * 2).len(), 2);
    }

    #[test]
    fn days_are_counted() {
        for (day, expected) in [
            (100, false),
            (71, false),
            (70, true),
            (0, true),
            (90_000, false),
        ] {
            assert_eq!(is_unused(day, 100, 30), expected, "{day}");
        }
    }

    #[test]
    fn events_are_as_old_as_their_last_sign() {
        let event = json!({
            "metadata": {"creationTimestamp": "2026-01-01T00:00:00Z"},
            "eventTime": null,
            "lastTimestamp": "2026-01-01T01:00:00Z",
            "series": {"lastObservedTime": "2026-01-01T02:00:00.000000Z"},
        });
        assert_eq!(happened(&event), Some(1_767_232_800));
        assert_eq!(happened(&json!({"metadata": {}})), None);
    }

    #[test]
    fn documents_of_what_is_served() {
        let served = Served {
            resources: BTreeSet::from([
                Gvr::new("", "v1", "pods"),
                Gvr::new("apps", "v1", "deployments"),
            ]),
            unknown: BTreeSet::from(["/apis/down.example/v1".to_owned()]),
        };
        assert!(served.has(&Gvr::new("down.example", "v1", "things")));
        assert!(!served.has(&Gvr::new("down.example", "v2", "things")));
        for (path, expected) in [
            ("/apis/down.example/v1", true),
            ("/apis/down.example", true),
            ("/apis/down.example/v2", false),
            ("/version", true),
            ("/api", true),
            ("/apis", true),
            ("/openapi/v2", true),
            ("/openapi/v3", true),
            ("/api/v1", true),
            ("/apis/apps", true),
            ("/apis/apps/v1", true),
            ("/apis/apps/v1beta1", false),
            ("/apis/gone.example", false),
            ("/openapi/v3/apis/apps/v1", true),
            ("/openapi/v3/apis/gone.example/v1", false),
        ] {
            assert_eq!(served.has_document(path), expected, "{path}");
        }
    }
}
