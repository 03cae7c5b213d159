//! Opening the store: recover, read the small records, list the objects (their contents are read later).

use super::{
    Cache, CacheConfig, Handle, Shared,
    collect::today,
    grants::Bearer,
    import,
    record::{self, FORMAT, FORMAT_KEY, Stored},
    sealed::SealedStore,
    shelf,
    state::{State, UNREAD},
    stats::Stats,
    writer,
};
use crate::{caller::Caller, query::Query};
use serde::Deserialize;
use std::{
    collections::HashSet,
    io::ErrorKind,
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex},
    time::{SystemTime, UNIX_EPOCH},
};
use tokio::sync::{broadcast, watch};
use yurt_store::{Batch, Options, Recovery, Store, StoreError};

fn options() -> Options {
    Options {
        segment_bytes: 8 << 20,
        garbage_share: 0.5,
        sync: true,
        compress_from: 512,
        ..Options::default()
    }
}

pub(super) fn open(dir: &Path, config: CacheConfig) -> Result<(Cache, Recovery), StoreError> {
    let (mut store, recovery) = match Store::open(dir, options()) {
        Ok(opened) if has_format(&opened.0)? => opened,
        Ok((store, _)) => {
            store.close()?;
            tracing::warn!(dir = %dir.display(), "the cache is of another layout");
            begin_anew(dir)?
        }
        Err(error) if is_unreadable(&error) => {
            tracing::error!(dir = %dir.display(), %error, "the cache cannot be opened");
            begin_anew(dir).map_err(|again| match again {
                StoreError::Io { .. } => error,
                other => other,
            })?
        }
        Err(error) => return Err(error),
    };
    let stats = Arc::new(Stats::default());
    stats.corrupt.add(recovery.corrupt_records);
    let binding = config.binding.clone();
    let mut state = State::new(config.queue_bytes, stats.clone());
    if recovery.corrupt_records > 0 {
        tracing::warn!(
            records = recovery.corrupt_records,
            "cached records failed their checksum and were left out; no list is known complete any more"
        );
        store = forget_lists(store, dir)?;
    }
    let store = SealedStore::new(store, dir, options(), &binding, &stats)?;
    let imported = import::take_over(&store, dir, &binding.node_name)?;
    load(&store, &mut state)?;
    if recovery.corrupt_records > 0 {
        // Nobody knows which objects they were. A list that lacks a pod would make the kubelet kill it; no list does not.
        let resources: Vec<_> = state.resources.keys().cloned().collect();
        for gvr in resources {
            state.drop_coverages(&gvr, |_| true);
        }
    }
    let shared = Arc::new(Shared {
        store,
        config,
        state: Mutex::new(state),
        orders: Mutex::default(),
        wake: Condvar::new(),
        changes: broadcast::channel(super::CHANGES).0,
        corrected: watch::Sender::new(0),
        stats,
        imported,
    });
    let of_thread = shared.clone();
    let thread = std::thread::Builder::new()
        .name("hub-cache".into())
        .spawn(move || writer::run(&of_thread))
        .map_err(|source| StoreError::Io {
            dir: dir.display().to_string(),
            source,
        })?;
    let handle = Arc::new(Handle {
        shared,
        thread: Mutex::new(Some(thread)),
    });
    Ok((Cache { handle }, recovery))
}

/// Takes back on disk what is said to be complete, and then opens the store anew: closing settles the damage, so that it does not
/// count again, against what is learned from now on, when the node loses power later.
fn forget_lists(store: Store, dir: &Path) -> Result<Store, StoreError> {
    let mut batch = Batch::default();
    for key in store.keys(record::COVERAGES) {
        batch.delete(key);
    }
    if let Err(error) = store.commit(batch).wait() {
        tracing::warn!(%error, "the damage cannot be settled now and will be met again");
        return Ok(store);
    }
    store.close()?;
    drop(store);
    Ok(Store::open(dir, options())?.0)
}

/// Whether a fresh directory in its place would help.
fn is_unreadable(error: &StoreError) -> bool {
    match error {
        StoreError::Corrupt { .. } | StoreError::TooLarge(_) => true,
        StoreError::Io { source, .. } => !matches!(
            source.kind(),
            ErrorKind::PermissionDenied
                | ErrorKind::StorageFull
                | ErrorKind::QuotaExceeded
                | ErrorKind::ReadOnlyFilesystem
                | ErrorKind::OutOfMemory
        ),
        StoreError::InUse { .. } | StoreError::Closed => false,
    }
}

fn begin_anew(dir: &Path) -> Result<(Store, Recovery), StoreError> {
    let seconds = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |elapsed| elapsed.as_secs());
    let mut name = dir.as_os_str().to_owned();
    name.push(format!(".unreadable-{seconds}"));
    let aside = PathBuf::from(name);
    std::fs::rename(dir, &aside).map_err(|source| StoreError::Io {
        dir: dir.display().to_string(),
        source,
    })?;
    tracing::error!(kept = %aside.display(), "moved aside; the node begins with an empty cache");
    let (store, recovery) = Store::open(dir, options())?;
    has_format(&store)?;
    Ok((store, recovery))
}

/// Whether the store is of this layout; marks a fresh one.
fn has_format(store: &Store) -> Result<bool, StoreError> {
    match store.get(FORMAT_KEY)? {
        Some(format) => Ok(format == FORMAT),
        None if store.usage().records == 0 => {
            let mut batch = Batch::default();
            batch.put(FORMAT_KEY, FORMAT);
            store.commit(batch).wait()?;
            Ok(true)
        }
        None => Ok(false),
    }
}

#[derive(Deserialize)]
struct CoverageRecord {
    revision: u64,
    #[serde(default)]
    kind: String,
    /// Missing in records of older hubs: as if used today.
    #[serde(default = "today")]
    day: u32,
}

/// A scan leaves out corrupt records and says so at the end; what is left is good.
pub(crate) fn tolerate(scanned: Result<(), StoreError>) -> Result<(), StoreError> {
    match scanned {
        Err(error @ StoreError::Corrupt { .. }) => {
            tracing::warn!(%error, "left out");
            Ok(())
        }
        other => other,
    }
}

fn load(store: &SealedStore, state: &mut State) -> Result<(), StoreError> {
    for key in store.keys(record::OBJECTS) {
        if let Some((gvr, object)) = record::parse_object_record(record::OBJECTS, &key) {
            state.resource(&gvr).objects.insert(object.into(), UNREAD);
        }
    }
    let mut unreadable = Vec::new();
    tolerate(store.scan(record::COVERAGES, &mut |key, value| {
        let query = std::str::from_utf8(&key[record::COVERAGES.len()..])
            .ok()
            .and_then(Query::from_text);
        match (query, serde_json::from_slice::<CoverageRecord>(&value)) {
            (Some(query), Ok(record)) => {
                let clock = state.tick();
                state.high = state.high.max(record.revision);
                let resource = state.resource(&query.gvr);
                resource.high = resource.high.max(record.revision);
                if resource.kind.is_empty() {
                    resource.kind = record.kind;
                }
                resource.coverages.complete(
                    &query,
                    record.revision,
                    HashSet::new(),
                    clock,
                    record.day,
                );
            }
            _ => unreadable.push(key.to_vec()),
        }
        true
    }))?;
    tolerate(store.scan(record::BEARERS, &mut |key, value| {
        let caller = std::str::from_utf8(&key[record::BEARERS.len()..])
            .ok()
            .and_then(Caller::from_key);
        match (caller, serde_json::from_slice::<Bearer>(&value)) {
            (Some(caller), Ok(bearer)) => state.grants.restore(caller, bearer),
            _ => unreadable.push(key.to_vec()),
        }
        true
    }))?;
    for key in store.keys(record::GRANTS) {
        match record::parse_grant_record(&key) {
            Some((caller, query)) if state.grants.knows(&caller) => {
                state.grants.observe(&caller, &query);
            }
            // Unreadable, or of a bearer that was forgotten.
            _ => unreadable.push(key),
        }
    }
    for key in store.keys(record::DOCUMENTS) {
        if let Ok(name) = std::str::from_utf8(&key[record::DOCUMENTS.len()..]) {
            let clock = state.tick();
            let bytes = store.record_bytes(&key).unwrap_or(0) as usize;
            state.documents.note(name.to_owned(), bytes, clock);
        }
    }
    unreadable.extend(shelf::load(store, state)?);
    if !unreadable.is_empty() {
        state.stats.corrupt.add(unreadable.len() as u64);
        let mut batch = Batch::default();
        for key in unreadable {
            batch.delete(key);
        }
        store.commit(batch).wait()?;
    }
    Ok(())
}

impl Shared {
    /// Fills the index with the revisions of what lies on disk, one record at a time, so that nobody waits for it.
    pub(super) fn read_index(&self) {
        let unread = self.lock().objects_where(|entry| entry.revision == 0);
        for (gvr, key) in unread {
            if self.orders().close {
                return;
            }
            if let Some(stored) = self.read_stored(&gvr, &key) {
                self.note_read(&gvr, &key, &stored);
            }
        }
    }

    /// Notes what was read in the index.
    pub(super) fn note_read(&self, gvr: &yurt_wire::Gvr, key: &str, stored: &Stored) {
        let mut state = self.lock();
        state.saw(gvr, stored.revision);
        let entry = state
            .resources
            .get_mut(gvr)
            .and_then(|resource| resource.objects.get_mut(key));
        if let Some(entry) = entry
            && entry.revision == 0
        {
            entry.revision = stored.revision;
            entry.encoding = stored.object.encoding;
            entry.excluded = !stored.absent_from.is_empty();
        }
    }
}
