//! What the cache holds, for people and for metrics: bounded, whatever it holds.

use super::{Cache, Shared, eviction::held, record, shelf::Shelf, state::State};
use crate::caller::Caller;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
};
use serde::Serialize;
use std::{sync::Weak, time::Instant};
use yurt_wire::Gvr;

/// Resources told one by one; the rest is summed up under [`OTHER`].
const MOST_RESOURCES: usize = 64;
/// Complete lists told of one resource.
const MOST_LISTS: usize = 16;
/// Callers told one by one.
const MOST_CALLERS: usize = 64;
const OTHER: &str = "other";

/// See the module. What is told of callers is how they are known to the cache, never a token.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Overview {
    /// Records of all kinds.
    pub records: u64,
    /// Their live bytes on disk.
    pub live_bytes: u64,
    /// Bytes of the files, garbage included.
    pub disk_bytes: u64,
    /// The budget of live bytes.
    pub budget_bytes: u64,
    /// Bytes that wait for the disk.
    pub waiting_bytes: usize,
    /// Objects.
    pub objects: usize,
    /// Documents: `/version`, discovery, OpenAPI.
    pub documents: usize,
    /// Records that could not be read back since start.
    pub corrupt_records: u64,
    /// Sealed records that this node has no key for, taken out at start.
    pub unsealable_records: u64,
    /// Reads that the disk refused since start.
    pub read_errors: u64,
    /// Batches that the disk refused since start.
    pub write_errors: u64,
    /// Objects not learned since start because too much waited for the disk.
    pub overflowed_objects: u64,
    /// Objects evicted since start.
    pub evicted_objects: u64,
    /// By resource, those with most bytes first.
    pub resources: Vec<ResourceOverview>,
    /// By caller, those who hold most first.
    pub callers: Vec<CallerOverview>,
    /// Callers in all.
    pub callers_total: usize,
    /// Records by shelf.
    pub shelves: Vec<(&'static str, usize)>,
}

/// One resource.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ResourceOverview {
    /// `GROUP/VERSION/RESOURCE` (the group is left out for the core group), or `other`.
    pub resource: String,
    /// Objects.
    pub objects: usize,
    /// Their bytes on disk.
    pub bytes: u64,
    /// Objects that show a local state.
    pub local: usize,
    /// Reads answered since start.
    pub hits: u64,
    /// Reads that found nothing known since start.
    pub misses: u64,
    /// Seconds since the cloud last told anything about it; `None` when it did not since start.
    pub age_seconds: Option<u64>,
    /// Callers that read it.
    pub readers: usize,
    /// Complete lists, some of them.
    pub lists: Vec<ListOverview>,
    /// Complete lists in all.
    pub lists_total: usize,
}

/// A complete list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ListOverview {
    /// Namespace, `""` for all.
    pub namespace: String,
    /// Label selector.
    pub labels: String,
    /// Field selector.
    pub fields: String,
    /// The revision at which it is complete; 0 when the cloud told none.
    pub revision: u64,
    /// Days since it was last asked for or moved on.
    pub unused_days: u32,
}

/// One caller.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CallerOverview {
    /// Its key: `node`, `u:USER`, `p:NODE`, `b:HASH`.
    pub caller: String,
    /// Bytes of what lies where it reads.
    pub bytes: u64,
}

/// The name of a resource in metrics.
fn name(gvr: &Gvr) -> String {
    format!("{}/{}", gvr.api_version(), gvr.resource)
}

fn resource(state: &State, shared: &Shared, gvr: &Gvr, lists: usize) -> Option<ResourceOverview> {
    let known = state.resources.get(gvr)?;
    let today = super::collect::today();
    let bytes_of = |key: &str| {
        let record = record::object_record(record::OBJECTS, gvr, key);
        u64::from(shared.store.record_bytes(&record).unwrap_or(0))
    };
    Some(ResourceOverview {
        resource: name(gvr),
        objects: known.objects.len(),
        bytes: known.objects.keys().map(|key| bytes_of(key)).sum(),
        local: known.overlays.len(),
        hits: known.hits,
        misses: known.misses,
        age_seconds: known.heard.map(|at| at.elapsed().as_secs()),
        readers: state.grants.readers(gvr).count(),
        lists: known
            .coverages
            .iter()
            .take(lists)
            .map(|coverage| ListOverview {
                namespace: coverage.query.namespace.clone(),
                labels: coverage.query.labels.to_string(),
                fields: coverage.query.fields.to_string(),
                revision: coverage.revision,
                unused_days: today.saturating_sub(coverage.day),
            })
            .collect(),
        lists_total: known.coverages.iter().count(),
    })
}

/// All resources, at most [`MOST_RESOURCES`] and `other`.
fn resources(shared: &Shared, lists: usize) -> Vec<ResourceOverview> {
    let mut names: Vec<Gvr> = shared.lock().resources.keys().cloned().collect();
    names.sort_by(|a, b| {
        (&a.group, &a.resource, &a.version).cmp(&(&b.group, &b.resource, &b.version))
    });
    // One look under the lock for each.
    let mut rows: Vec<ResourceOverview> = names
        .iter()
        .filter_map(|gvr| resource(&shared.lock(), shared, gvr, lists))
        .collect();
    rows.sort_by_key(|row| std::cmp::Reverse(row.bytes));
    bound(&mut rows, shared.stats.misses_elsewhere.get());
    rows
}

/// Sums up what is beyond the bound, and the misses of resources that nothing is known of.
fn bound(rows: &mut Vec<ResourceOverview>, misses_elsewhere: u64) {
    let rest = rows.split_off(rows.len().min(MOST_RESOURCES));
    if rest.is_empty() && misses_elsewhere == 0 {
        return;
    }
    let mut other = ResourceOverview {
        resource: OTHER.into(),
        misses: misses_elsewhere,
        ..ResourceOverview::default()
    };
    for row in rest {
        other.objects += row.objects;
        other.bytes += row.bytes;
        other.local += row.local;
        other.hits += row.hits;
        other.misses += row.misses;
        other.lists_total += row.lists_total;
        // Of the one that was heard of longest ago.
        other.age_seconds = other.age_seconds.max(row.age_seconds);
    }
    rows.push(other);
}

impl Cache {
    /// What it holds. Takes some milliseconds for ten thousand objects.
    pub fn overview(&self) -> Overview {
        let shared = self.shared();
        let (usage, stats) = (shared.store.usage(), &shared.stats);
        let resources = resources(shared, MOST_LISTS);
        let state = shared.lock();
        let mut callers: Vec<CallerOverview> = held(&state, shared)
            .into_iter()
            .map(|(caller, bytes): (Caller, u64)| CallerOverview {
                caller: caller.key(),
                bytes,
            })
            .collect();
        callers.sort_by(|a, b| (b.bytes, &a.caller).cmp(&(a.bytes, &b.caller)));
        let callers_total = callers.len();
        callers.truncate(MOST_CALLERS);
        Overview {
            records: usage.records,
            live_bytes: usage.live_bytes,
            disk_bytes: usage.disk_bytes,
            budget_bytes: shared.config.budget_bytes,
            waiting_bytes: state.pending_bytes,
            objects: state.object_count(),
            documents: state.documents.names().count(),
            corrupt_records: stats.corrupt.get(),
            unsealable_records: stats.unsealable.get(),
            read_errors: stats.read_errors.get(),
            write_errors: stats.write_errors.get(),
            overflowed_objects: stats.overflowed.get(),
            evicted_objects: stats.evicted.get(),
            resources,
            callers,
            callers_total,
            shelves: Shelf::ALL
                .into_iter()
                .map(|shelf| (shelf.name(), state.shelves.count(shelf)))
                .collect(),
        }
    }

    /// Metrics by resource (at most 64, the rest as `other`): `node_yurthub_cache_objects`, `..._bytes`, `..._hits_total`,
    /// `..._misses_total`, `..._age_seconds`. Does not keep the cache open.
    pub fn collector(&self) -> Box<dyn Collector> {
        Box::new(ByResource {
            cache: std::sync::Arc::downgrade(&self.handle),
        })
    }
}

impl State {
    /// Counts a read of a resource: whether anything was known of what it asks for.
    pub(crate) fn count_read(&mut self, gvr: &Gvr, hit: bool) {
        match self.resources.get_mut(gvr) {
            Some(resource) if hit => resource.hits += 1,
            Some(resource) => resource.misses += 1,
            // Nothing is kept for what somebody merely asks for.
            None => self.stats.misses_elsewhere.add(1),
        }
    }

    /// The cloud told something about a resource.
    pub(crate) fn heard_of(&mut self, gvr: &Gvr) {
        if let Some(resource) = self.resources.get_mut(gvr) {
            resource.heard = Some(Instant::now());
        }
    }
}

#[derive(Debug)]
struct ByResource {
    cache: Weak<super::Handle>,
}

impl Collector for ByResource {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let Some(handle) = self.cache.upgrade() else {
            return Ok(());
        };
        let rows = resources(&handle.shared, 0);
        type Gauge = (
            &'static str,
            &'static str,
            fn(&ResourceOverview) -> Option<u64>,
        );
        let gauges: [Gauge; 3] = [
            (
                "node_yurthub_cache_objects",
                "Objects in the cache",
                |row| Some(row.objects as u64),
            ),
            (
                "node_yurthub_cache_bytes",
                "Bytes of cached objects on disk",
                |row| Some(row.bytes),
            ),
            (
                "node_yurthub_cache_age_seconds",
                "Seconds since the cloud last told anything about the resource",
                |row| row.age_seconds,
            ),
        ];
        for (name, help, value) in gauges {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for row in &rows {
                if let Some(value) = value(row) {
                    let label = [("resource", row.resource.as_str())];
                    let metric = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
                    metric.encode(family.encode_family(&label)?)?;
                }
            }
        }
        type Counter = (&'static str, &'static str, fn(&ResourceOverview) -> u64);
        let counters: [Counter; 2] = [
            (
                "node_yurthub_cache_hits",
                "Reads that the cache answered",
                |row| row.hits,
            ),
            (
                "node_yurthub_cache_misses",
                "Reads of what the cache does not know",
                |row| row.misses,
            ),
        ];
        for (name, help, value) in counters {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for row in &rows {
                let label = [("resource", row.resource.as_str())];
                ConstCounter::new(value(row)).encode(family.encode_family(&label)?)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_resources_is_bounded_and_nothing_is_lost() {
        let row = |i: u64| ResourceOverview {
            resource: format!("r{i}"),
            objects: 1,
            bytes: 10,
            misses: 2,
            age_seconds: Some(i),
            ..ResourceOverview::default()
        };
        let mut rows: Vec<_> = (0..MOST_RESOURCES as u64 + 3).map(row).collect();
        bound(&mut rows, 5);
        assert_eq!(rows.len(), MOST_RESOURCES + 1);
        let other = rows.last().expect("the rest");
        assert_eq!(
            (
                other.resource.as_str(),
                other.objects,
                other.bytes,
                other.misses
            ),
            (OTHER, 3, 30, 11)
        );
        assert_eq!(other.age_seconds, Some(MOST_RESOURCES as u64 + 2));
        let mut few: Vec<_> = (0..2).map(row).collect();
        bound(&mut few, 0);
        assert_eq!(few.len(), 2);
    }
}
