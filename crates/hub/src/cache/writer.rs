//! The thread between memory and disk: gathers what waits (a storm of updates of one key costs one write per pass), looks at
//! objects that a complete list did not hold, keeps the byte budget.

use super::{
    Shared, eviction,
    record::{self, split_index_key},
    state::{Left, State, Value},
};
use crate::query::Query;
use std::{
    collections::HashSet,
    sync::{Arc, MutexGuard},
    time::{Duration, Instant},
};
use tokio::sync::oneshot;
use yurt_store::{Batch, StoreError};

/// At most one write per key in this time.
const PASS: Duration = Duration::from_millis(150);
/// Bytes of one batch.
const BATCH_BYTES: usize = 1 << 20;
/// Pause after the disk refused.
const BACKOFF: Duration = Duration::from_secs(2);
/// How often the budget is looked at.
const BUDGET_CHECK: Duration = Duration::from_secs(5);
const IDLE: Duration = Duration::from_secs(60);

/// Orders for the thread.
#[derive(Debug, Default)]
pub(crate) struct Orders {
    /// To be answered when everything learned so far is on disk.
    pub(crate) flush: Vec<oneshot::Sender<Result<(), StoreError>>>,
    /// Write what waits and stop.
    pub(crate) close: bool,
}

/// Runs until told to close.
pub(crate) fn run(shared: &Arc<Shared>) {
    shared.read_index();
    let mut last_pass = Instant::now() - PASS;
    let mut last_check = Instant::now();
    let mut not_before = Instant::now();
    let mut fits = true;
    loop {
        let (flush, close) = wait(shared, last_pass, not_before);
        last_pass = Instant::now();
        if !resolve_suspects(shared) {
            not_before = Instant::now() + BACKOFF;
        }
        let urgent = close || !flush.is_empty();
        let result = write(shared, urgent);
        if let Err(error) = &result {
            shared.stats.write_errors.add(1);
            tracing::warn!(%error, "the cache cannot be written; what was learned stays in memory for now");
            not_before = Instant::now() + BACKOFF;
            let on_disk = |record: &[u8]| shared.store.record_bytes(record).is_some();
            shared.lock().spare_deletions(on_disk);
        }
        answer(flush, &result);
        if close {
            if let Err(error) = shared.store.close() {
                tracing::warn!(%error, "the cache did not close cleanly");
            }
            return;
        }
        if last_check.elapsed() >= BUDGET_CHECK {
            last_check = Instant::now();
            let fitted = std::mem::replace(&mut fits, eviction::keep_budget(shared));
            if fitted && !fits {
                tracing::warn!(
                    budget_bytes = shared.config.budget_bytes,
                    "what this node's pods need is more than the cache's budget; it is kept all the same"
                );
            }
        }
    }
}

fn answer(flush: Vec<oneshot::Sender<Result<(), StoreError>>>, result: &Result<(), StoreError>) {
    for waiting in flush {
        let _gone = waiting.send(match result {
            Ok(()) => Ok(()),
            Err(error) => Err(again(error)),
        });
    }
}

/// The same error once more, for another waiter.
fn again(error: &StoreError) -> StoreError {
    match error {
        StoreError::InUse { dir } => StoreError::InUse { dir: dir.clone() },
        StoreError::Io { dir, source } => StoreError::Io {
            dir: dir.clone(),
            source: std::io::Error::new(source.kind(), source.to_string()),
        },
        StoreError::Corrupt { dir, key } => StoreError::Corrupt {
            dir: dir.clone(),
            key: key.clone(),
        },
        StoreError::TooLarge(bytes) => StoreError::TooLarge(*bytes),
        StoreError::Closed => StoreError::Closed,
    }
}

type Flush = Vec<oneshot::Sender<Result<(), StoreError>>>;

/// Sleeps until something is due, somebody waits for a flush, or the cache closes.
fn wait(shared: &Shared, last_pass: Instant, not_before: Instant) -> (Flush, bool) {
    let mut state = shared.lock();
    loop {
        {
            let mut orders = shared.orders();
            if orders.close || !orders.flush.is_empty() {
                return (std::mem::take(&mut orders.flush), orders.close);
            }
        }
        let now = Instant::now();
        let pass = if state.overflows() {
            not_before
        } else {
            not_before.max(last_pass + PASS)
        };
        let due = next_due(&state).map(|due| due.max(pass));
        let sleep = match due {
            Some(due) if due <= now => return (Vec::new(), false),
            Some(due) => (due - now).min(IDLE),
            None => IDLE,
        };
        state.alarm.sleeps(now + sleep, pass);
        state = sleep_on(shared, state, sleep);
        state.alarm.awake();
    }
}

fn sleep_on<'a>(
    shared: &'a Shared,
    state: MutexGuard<'a, State>,
    sleep: Duration,
) -> MutexGuard<'a, State> {
    match shared.wake.wait_timeout(state, sleep) {
        Ok((state, _)) => state,
        Err(poisoned) => poisoned.into_inner().0,
    }
}

fn next_due(state: &State) -> Option<Instant> {
    if !state.suspected.is_empty() {
        return Some(Instant::now());
    }
    let writes = state.pending.values().map(|p| p.due).min();
    match (writes, state.dirty_due) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

/// Objects that a complete list of a selector did not hold: those that match the selector as last known are gone. `false` when
/// some could not be read, and stay suspect.
fn resolve_suspects(shared: &Shared) -> bool {
    let mut all = true;
    let suspected = std::mem::take(&mut shared.lock().suspected);
    for query in suspected {
        let (keys, snapshot) = {
            let state = shared.lock();
            let Some(coverage) = state
                .resources
                .get(&query.gvr)
                .and_then(|r| r.coverages.exact(&query))
            else {
                continue;
            };
            (
                coverage.suspects.iter().cloned().collect::<Vec<_>>(),
                coverage.snapshot,
            )
        };
        let mut unread = HashSet::new();
        for key in keys {
            let Some(stored) = shared.read_stored(&query.gvr, &key) else {
                unread.insert(key);
                continue;
            };
            let (namespace, name) = split_index_key(&key);
            if stored.revision <= snapshot && query.matches(namespace, name, &stored.object) {
                let mut state = shared.lock();
                state.leave(
                    &shared.store,
                    &query,
                    &key,
                    snapshot,
                    Left::InSnapshot,
                    || Some(stored),
                );
            }
        }
        all &= shared.lock().cleared(&query, snapshot, unread);
    }
    all
}

struct Item {
    key: Vec<u8>,
    value: Value,
    generation: u64,
}

/// Writes what is due (`all`: everything). Order keeps what is on disk true at every moment: coverages are taken back first,
/// and given last, after the objects they speak of.
fn write(shared: &Shared, all: bool) -> Result<(), StoreError> {
    let (mut items, coverages) = gather(&mut shared.lock(), all);
    items.sort_by_key(|item| {
        let coverage = item.key.starts_with(record::COVERAGES);
        (
            u8::from(!coverage),
            u8::from(!matches!(item.value, Value::Delete)),
        )
    });
    let mut batch = Batch::default();
    let mut bytes = 0;
    let mut inside: Vec<(Vec<u8>, u64)> = Vec::new();
    for item in items {
        let value = match item.value {
            Value::Object(stored) => Some(stored.encode()),
            Value::Raw(raw) | Value::Shelved(raw) => Some(raw),
            Value::Delete => None,
        };
        bytes += item.key.len() + value.as_ref().map_or(0, |v| v.len());
        match value {
            Some(value) => shared.store.put(&mut batch, item.key.clone(), value)?,
            None => {
                batch.delete(item.key.clone());
            }
        }
        inside.push((item.key, item.generation));
        if bytes >= BATCH_BYTES {
            commit(shared, std::mem::take(&mut batch), &mut inside)?;
            bytes = 0;
        }
    }
    commit(shared, batch, &mut inside)?;
    let mut batch = Batch::default();
    for (query, value) in &coverages {
        let key = record::coverage_record(query);
        if key.len() < 16 * 1024 {
            batch.put(key, value.clone());
        }
    }
    let result = commit(shared, batch, &mut Vec::new());
    if result.is_err() {
        let mut state = shared.lock();
        for (query, _) in &coverages {
            state.mark_dirty(query, BACKOFF);
        }
    }
    result
}

fn gather(state: &mut State, all: bool) -> (Vec<Item>, Vec<(Query, Vec<u8>)>) {
    let now = Instant::now();
    let items = state
        .pending
        .iter()
        .filter(|(_, pending)| all || pending.due <= now)
        .map(|(key, pending)| Item {
            key: key.clone(),
            value: pending.value.clone(),
            generation: pending.generation,
        })
        .collect();
    let mut coverages = Vec::new();
    if all || state.dirty_due.is_some_and(|due| due <= now) {
        state.dirty_due = None;
        for query in std::mem::take(&mut state.dirty) {
            let Some(resource) = state.resources.get(&query.gvr) else {
                continue;
            };
            if let Some(coverage) = resource.coverages.exact(&query) {
                if !coverage.suspects.is_empty() {
                    // Written when its suspects are dealt with.
                    state.dirty.insert(query);
                    continue;
                }
                let value = serde_json::json!({
                    "revision": coverage.revision,
                    "kind": resource.kind,
                    "day": coverage.day,
                });
                coverages.push((query, value.to_string().into_bytes()));
            }
        }
        if !state.dirty.is_empty() {
            state.dirty_due = Some(now + PASS);
        }
    }
    (items, coverages)
}

fn commit(
    shared: &Shared,
    batch: Batch,
    inside: &mut Vec<(Vec<u8>, u64)>,
) -> Result<(), StoreError> {
    if batch.is_empty() {
        return Ok(());
    }
    let result = shared.store.commit(batch).wait();
    let refused = match &result {
        Ok(()) => false,
        // It will never fit: keep it from blocking everything behind it.
        Err(StoreError::TooLarge(_)) => true,
        Err(_) => return result,
    };
    let mut state = shared.lock();
    for (key, generation) in inside.drain(..) {
        if refused {
            if let Some((gvr, object)) = record::parse_object_record(record::OBJECTS, &key) {
                state.lose(&gvr, object);
                if let Some(resource) = state.resources.get_mut(&gvr) {
                    resource.objects.remove(object);
                }
            }
        } else {
            shared.stats.written.add(1);
        }
        state.written(&key, generation);
    }
    Ok(())
}
