//! Random histories against a map in memory, with clean stops, crashes, compaction, cut and rotten files.

use proptest::prelude::*;
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};
use yurt_store::{Batch, Options, Recovery, Store, StoreError};

type Model = BTreeMap<Vec<u8>, Vec<u8>>;

/// Changes of one batch: key number, and the value's length and filling (or a delete).
type Changes = Vec<(u8, Option<(u16, u8)>)>;

fn options(segment_bytes: u64) -> Options {
    Options {
        segment_bytes,
        sync: false,
        compress_from: 64,
        ..Options::default()
    }
}

fn key(number: u8) -> Vec<u8> {
    format!("/{}/{number:03}", number % 3).into_bytes()
}

fn value((len, fill): (u16, u8)) -> Vec<u8> {
    // Half of them compress badly.
    let mut random = fastrand::Rng::with_seed(u64::from(fill));
    (0..len)
        .map(|_| if fill % 2 == 0 { fill } else { random.u8(..) })
        .collect()
}

fn apply(model: &mut Model, changes: &Changes) {
    for (number, change) in changes {
        match change {
            Some(spec) => model.insert(key(*number), value(*spec)),
            None => model.remove(&key(*number)),
        };
    }
}

fn batch(changes: &Changes) -> Batch {
    let mut batch = Batch::default();
    for (number, change) in changes {
        match change {
            Some(spec) => batch.put(key(*number), value(*spec)),
            None => batch.delete(key(*number)),
        };
    }
    batch
}

fn contents(store: &Store) -> Model {
    let mut all = Model::new();
    store
        .scan(b"", &mut |key, value| {
            all.insert(key.to_vec(), value.to_vec());
            true
        })
        .expect("scan");
    all
}

/// Every way of reading agrees with the model.
fn check(store: &Store, model: &Model) {
    assert_eq!(contents(store), *model);
    assert_eq!(
        store.keys(b""),
        model.keys().cloned().collect::<Vec<_>>(),
        "keys in order"
    );
    let with_prefix: Vec<_> = model
        .keys()
        .filter(|k| k.starts_with(b"/1/"))
        .cloned()
        .collect();
    assert_eq!(store.keys(b"/1/"), with_prefix);
    for number in 0..=u8::MAX {
        let got = store.get(&key(number)).expect("get");
        assert_eq!(got.as_deref(), model.get(&key(number)).map(Vec::as_slice));
        assert_eq!(
            store.contains(&key(number)),
            model.contains_key(&key(number))
        );
    }
    let usage = store.usage();
    assert_eq!(usage.records, model.len() as u64);
    assert!(usage.live_bytes <= usage.disk_bytes, "{usage:?}");
}

/// The directory as a power cut now would leave it (everything written has reached the disk).
fn crash_copy(dir: &Path) -> tempfile::TempDir {
    let copy = tempfile::tempdir().expect("temporary directory");
    for entry in fs::read_dir(dir).expect("list") {
        let entry = entry.expect("entry");
        // Compaction may be unlinking or renaming.
        let _ = fs::copy(entry.path(), copy.path().join(entry.file_name()));
    }
    copy
}

fn the_log(dir: &Path) -> PathBuf {
    let mut logs: Vec<_> = fs::read_dir(dir)
        .expect("list")
        .map(|entry| entry.expect("entry").path())
        .filter(|path| path.extension().is_some_and(|e| e == "log"))
        .collect();
    logs.sort();
    logs.pop().expect("a log")
}

/// Where the last group of a log begins: the highest durable mark of its records (the layout is in the crate's
/// documentation).
fn durable_mark(log: &[u8]) -> usize {
    let number = |at: usize| {
        let four: [u8; 4] = log[at..at + 4].try_into().expect("four");
        u32::from_le_bytes(four) as usize
    };
    let (mut at, mut mark) = (8, 8);
    while at < log.len() {
        mark = mark.max(number(at + 20));
        at += 32 + number(at + 4) + number(at + 8);
    }
    mark
}

fn history(batches: usize) -> impl Strategy<Value = Vec<Changes>> {
    let change = (
        0..40_u8,
        prop::option::weighted(0.75, (0..600_u16, any::<u8>())),
    );
    prop::collection::vec(prop::collection::vec(change, 1..6), 1..batches)
}

#[derive(Clone, Debug)]
enum Step {
    Commit(Changes),
    Reopen,
    Compact,
    Crash,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let commits = history(2).prop_map(|mut history| Step::Commit(history.remove(0)));
    let step = prop_oneof![
        20 => commits,
        1 => Just(Step::Reopen),
        1 => Just(Step::Compact),
        1 => Just(Step::Crash),
    ];
    prop::collection::vec(step, 1..150)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_store_is_a_map(steps in steps()) {
        let mut dir = tempfile::tempdir().expect("temporary directory");
        let (mut store, _) = Store::open(dir.path(), options(4096)).expect("open");
        let mut model = Model::new();
        for step in &steps {
            match step {
                Step::Commit(changes) => {
                    store.commit(batch(changes)).wait().expect("commit");
                    apply(&mut model, changes);
                }
                Step::Compact => {
                    store.compact().expect("compact");
                }
                Step::Reopen => {
                    store.close().expect("close");
                    let (again, recovery) = Store::open(dir.path(), options(4096)).expect("reopen");
                    prop_assert_eq!(recovery, Recovery { records: model.len() as u64, ..Recovery::default() });
                    store = again;
                }
                Step::Crash => {
                    // The copy must not race with the background thread.
                    store.compact().expect("compact");
                    let copy = crash_copy(dir.path());
                    drop(store);
                    dir = copy;
                    let (again, recovery) = Store::open(dir.path(), options(4096)).expect("open after crash");
                    prop_assert_eq!(recovery, Recovery { records: model.len() as u64, ..Recovery::default() });
                    store = again;
                }
            }
        }
        check(&store, &model);
        store.close().expect("close");
        let (store, _) = Store::open(dir.path(), options(4096)).expect("reopen");
        check(&store, &model);
    }

    /// A cut at any byte leaves exactly the batches that were whole before it.
    #[test]
    fn a_cut_tail_loses_only_what_it_cut(history in history(30), cut: prop::sample::Index) {
        let dir = tempfile::tempdir().expect("temporary directory");
        let (store, _) = Store::open(dir.path(), options(1 << 30)).expect("open");
        let mut ends = vec![store.usage().disk_bytes];
        for changes in &history {
            store.commit(batch(changes)).wait().expect("commit");
            ends.push(store.usage().disk_bytes);
        }
        let copy = crash_copy(dir.path());
        let len = *ends.last().expect("ends");
        let cut = cut.index(len as usize + 1) as u64;
        let log = the_log(copy.path());
        fs::OpenOptions::new().write(true).open(&log).expect("log").set_len(cut).expect("cut");

        let (store, recovery) = Store::open(copy.path(), options(1 << 30)).expect("open");
        let whole = ends.iter().skip(1).filter(|end| **end <= cut).count();
        let mut model = Model::new();
        history[..whole].iter().for_each(|changes| apply(&mut model, changes));
        check(&store, &model);
        let kept = ends.iter().filter(|end| **end <= cut).max().copied().unwrap_or(0);
        prop_assert_eq!(recovery, Recovery { records: model.len() as u64, truncated_bytes: cut - kept, corrupt_records: 0 });

        // It goes on from there.
        store.commit(batch(&vec![(200, Some((10, 2)))])).wait().expect("commit");
        apply(&mut model, &vec![(200, Some((10, 2)))]);
        drop(store);
        let (store, recovery) = Store::open(copy.path(), options(1 << 30)).expect("reopen");
        prop_assert_eq!(recovery.truncated_bytes, 0);
        check(&store, &model);
    }

    /// A rotten byte anywhere costs the batch that it is in, and is reported.
    #[test]
    fn rot_costs_only_its_batch(history in history(30), at: prop::sample::Index, flip in 1..=u8::MAX) {
        let dir = tempfile::tempdir().expect("temporary directory");
        let (store, _) = Store::open(dir.path(), options(1 << 30)).expect("open");
        let mut ends = vec![store.usage().disk_bytes];
        for changes in &history {
            store.commit(batch(changes)).wait().expect("commit");
            ends.push(store.usage().disk_bytes);
        }
        let copy = crash_copy(dir.path());
        let (first, last) = (ends[0] as usize, ends[ends.len() - 1] as usize);
        prop_assume!(first < last);
        let at = first + at.index(last - first);
        let log = the_log(copy.path());
        let mut bytes = fs::read(&log).expect("read");
        bytes[at] ^= flip;
        fs::write(&log, bytes).expect("write");

        let (store, recovery) = Store::open(copy.path(), options(1 << 30)).expect("open");
        let hit = ends.iter().skip(1).position(|end| *end > at as u64).expect("a batch");
        let mut model = Model::new();
        let mut ever: BTreeMap<Vec<u8>, Vec<Option<Vec<u8>>>> = BTreeMap::new();
        let mut newest_in: BTreeMap<Vec<u8>, usize> = BTreeMap::new();
        for (number, changes) in history.iter().enumerate() {
            let before = model.clone();
            apply(&mut model, changes);
            for (k, _) in changes {
                // A delete of what is not there is not written: the older one stays in charge.
                if !before.contains_key(&key(*k)) && !model.contains_key(&key(*k)) {
                    continue;
                }
                ever.entry(key(*k)).or_default().push(model.get(&key(*k)).cloned());
                newest_in.insert(key(*k), number);
            }
        }
        prop_assert!(recovery.corrupt_records == 1 || recovery.truncated_bytes > 0, "{recovery:?}");
        for (k, number) in newest_in {
            let got = store.get(&k).expect("get").map(|v| v.to_vec());
            if number == hit {
                prop_assert!(got.is_none() || ever[&k].contains(&got), "a value that was never written");
            } else {
                prop_assert_eq!(&got, &model.get(&k).cloned(), "key {}", k.escape_ascii());
            }
        }
    }

    /// A power cut while a group was written may leave any part of it: what remains is what was durable before, and
    /// of the group whole batches in their order, up to the first that suffered.
    #[test]
    fn a_torn_group_leaves_a_prefix(
        before in history(8), group in history(12), at: prop::sample::Index, len in 1..1500_usize,
    ) {
        let dir = tempfile::tempdir().expect("temporary directory");
        let (store, _) = Store::open(dir.path(), options(1 << 30)).expect("open");
        for changes in &before {
            store.commit(batch(changes)).wait().expect("commit");
        }
        // Many under way, so that some share a group.
        let commits: Vec<_> = group.iter().map(|changes| store.commit(batch(changes))).collect();
        for commit in commits {
            commit.wait().expect("commit");
        }
        let copy = crash_copy(dir.path());
        let log = the_log(copy.path());
        let mut bytes = fs::read(&log).expect("read");
        let durable = durable_mark(&bytes);
        prop_assume!(durable < bytes.len());
        let from = durable + at.index(bytes.len() - durable);
        let to = bytes.len().min(from + len);
        // Zeros over zeros hurt nothing.
        let hurt = bytes[from..to].iter().position(|byte| *byte != 0).map(|at| from + at);
        let damaged = hurt.is_some();
        bytes[from..to].fill(0);
        fs::write(&log, &bytes).expect("write");

        let (store, recovery) = Store::open(copy.path(), options(1 << 30)).expect("open");
        prop_assert_eq!(recovery.corrupt_records, 0, "torn, not rotten");
        prop_assert_eq!(recovery.truncated_bytes > 0, damaged);
        prop_assert!(store.usage().disk_bytes as usize >= durable, "what was durable stays");
        prop_assert!(hurt.is_none_or(|hurt| store.usage().disk_bytes as usize <= hurt));
        let mut model = Model::new();
        let found = contents(&store);
        let mut is_prefix = found == model;
        for changes in before.iter().chain(&group) {
            apply(&mut model, changes);
            is_prefix |= found == model;
        }
        prop_assert!(is_prefix, "not the state after any batch");
        prop_assert_eq!(damaged || found == model, true);
    }

    /// Garbage instead of files neither panics nor blocks, and what is in other segments stays.
    #[test]
    fn garbage_files_are_survived(garbage: Vec<u8>, hint: Vec<u8>) {
        let dir = tempfile::tempdir().expect("temporary directory");
        fs::write(dir.path().join("00000007.log"), &garbage).expect("write");
        fs::write(dir.path().join("00000008.packed"), &hint).expect("write");
        fs::write(dir.path().join("00000007.hint"), &hint).expect("write");
        fs::write(dir.path().join("00000009.hint"), &garbage).expect("write");
        let (store, _) = Store::open(dir.path(), options(4096)).expect("open");
        store.commit(batch(&vec![(1, Some((10, 2)))])).wait().expect("commit");
        store.close().expect("close");
        let (store, _) = Store::open(dir.path(), options(4096)).expect("reopen");
        prop_assert!(store.contains(&key(1)));
    }
}

#[test]
fn rot_in_a_hinted_segment_is_noticed_when_read_and_compacted_away() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (store, _) = Store::open(dir.path(), options(4096)).expect("open");
    let old = batch(&vec![(1, Some((300, 1)))]);
    store.commit(old).wait().expect("commit");
    store
        .commit(batch(&vec![(1, Some((400, 3))), (2, Some((500, 5)))]))
        .wait()
        .expect("commit");
    drop(store);
    let log = the_log(dir.path());
    let mut bytes = fs::read(&log).expect("read");
    // The last byte of the newer value of key 1.
    let at = bytes.len() - (32 + key(2).len() + 500) - 1;
    bytes[at] ^= 1;
    fs::write(&log, bytes).expect("write");

    let (store, recovery) = Store::open(dir.path(), options(4096)).expect("reopen");
    assert_eq!(
        recovery.corrupt_records, 0,
        "the hint spares reading the values"
    );
    assert!(matches!(
        store.get(&key(1)),
        Err(StoreError::Corrupt { .. })
    ));
    let mut seen = 0;
    let scanned = store.scan(b"", &mut |_, _| {
        seen += 1;
        true
    });
    assert!(matches!(scanned, Err(StoreError::Corrupt { .. })));
    assert_eq!(seen, 1, "the others are read all the same");
    assert!(store.usage().corrupt_records > 0);

    // Fill the segment with garbage until it is rewritten: the rotten record goes, its older value stays gone.
    for _ in 0..30 {
        store
            .commit(batch(&vec![(3, Some((500, 7)))]))
            .wait()
            .expect("commit");
    }
    store.compact().expect("compact");
    assert!(!log.exists(), "rewritten");
    assert_eq!(store.get(&key(1)).expect("get"), None);
    assert_eq!(
        store.get(&key(2)).expect("get").as_deref(),
        Some(&value((500, 5))[..])
    );
    drop(store);
    let (store, _) = Store::open(dir.path(), options(4096)).expect("reopen");
    assert_eq!(store.get(&key(1)).expect("get"), None);
}

#[test]
fn what_was_left_out_once_stays_left_out() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (store, _) = Store::open(dir.path(), options(1 << 30)).expect("open");
    for length in [300, 400] {
        let changes = vec![(1, Some((length, 1)))];
        store.commit(batch(&changes)).wait().expect("commit");
    }
    let rotten = store.usage().disk_bytes as usize - 1;
    let after = vec![(2, Some((10, 1)))];
    store.commit(batch(&after)).wait().expect("commit");
    let copy = crash_copy(dir.path());
    let log = the_log(copy.path());
    let mut bytes = fs::read(&log).expect("read");
    bytes[rotten] ^= 1;
    fs::write(&log, bytes).expect("write");

    // First read from the segment, then from the hint written at close: the older value comes back neither time.
    for corrupt_records in [1, 0] {
        let (store, recovery) = Store::open(copy.path(), options(1 << 30)).expect("open");
        let expected = Recovery {
            records: 1,
            truncated_bytes: 0,
            corrupt_records,
        };
        assert_eq!(recovery, expected);
        assert_eq!(store.get(&key(1)).expect("get"), None);
        assert!(store.contains(&key(2)));
    }
}

#[test]
fn a_rotten_magic_costs_no_record_and_counts_once() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (store, _) = Store::open(dir.path(), options(1 << 30)).expect("open");
    let changes = vec![(1, Some((300, 1)))];
    store.commit(batch(&changes)).wait().expect("commit");
    let copy = crash_copy(dir.path());
    let log = the_log(copy.path());
    let mut bytes = fs::read(&log).expect("read");
    bytes[0] ^= 1;
    fs::write(&log, bytes).expect("write");
    for corrupt_records in [1, 0] {
        let (store, recovery) = Store::open(copy.path(), options(1 << 30)).expect("open");
        let expected = Recovery {
            records: 1,
            truncated_bytes: 0,
            corrupt_records,
        };
        assert_eq!(recovery, expected);
        assert_eq!(
            store.get(&key(1)).expect("get").as_deref(),
            Some(&value((300, 1))[..])
        );
    }
}

#[test]
fn every_sealed_segment_gets_a_whole_hint() {
    let dir = tempfile::tempdir().expect("temporary directory");
    // Reopened in between: the hint of the stop must not be taken for that of the full segment.
    for round in 0..3_u8 {
        let (store, _) = Store::open(dir.path(), options(4096)).expect("open");
        for number in 0..17 {
            let changes = vec![(round * 20 + number, Some((400, 1 + 2 * number)))];
            store.commit(batch(&changes)).wait().expect("commit");
        }
        store.compact().expect("compact");
        let active = the_log(dir.path());
        for entry in fs::read_dir(dir.path()).expect("list") {
            let segment = entry.expect("entry").path();
            let kind = segment.extension().and_then(|e| e.to_str());
            if segment == active || !matches!(kind, Some("log" | "packed")) {
                continue;
            }
            let hint = fs::read(segment.with_extension("hint")).expect("a hint");
            let covered = u32::from_le_bytes(hint[12..16].try_into().expect("four"));
            let len = segment.metadata().expect("size").len();
            assert_eq!(u64::from(covered), len, "{}", segment.display());
        }
    }
}

#[test]
fn churn_does_not_grow_the_disk() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (store, _) = Store::open(dir.path(), options(8192)).expect("open");
    store
        .commit(batch(&vec![(250, Some((300, 1)))]))
        .wait()
        .expect("commit");
    // Keys that come and go: only compaction that drops tombstones keeps this small.
    for round in 0..4000_u32 {
        let mut batch = Batch::default();
        batch.put(format!("event/{round}"), vec![1; 100]);
        if round >= 10 {
            batch.delete(format!("event/{}", round - 10));
        }
        store.commit(batch).wait().expect("commit");
    }
    store.compact().expect("compact");
    let usage = store.usage();
    assert_eq!(usage.records, 11);
    assert!(usage.disk_bytes < 40_000, "{usage:?}");
    let segments = fs::read_dir(dir.path()).expect("list").count();
    assert!(segments < 20, "{segments} files");
    drop(store);
    let (store, recovery) = Store::open(dir.path(), options(8192)).expect("reopen");
    assert_eq!(recovery.records, 11);
    assert_eq!(
        store.get(&key(250)).expect("get").as_deref(),
        Some(&value((300, 1))[..])
    );
}

#[test]
fn one_process_at_a_time() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (store, _) = Store::open(dir.path(), options(4096)).expect("open");
    let second = Store::open(dir.path(), options(4096));
    assert!(matches!(second, Err(StoreError::InUse { .. })));
    store.close().expect("close");
    Store::open(dir.path(), options(4096)).expect("free again");
    assert!(matches!(
        store.commit(Batch::default()).wait(),
        Err(StoreError::Closed)
    ));
    assert!(matches!(store.compact(), Err(StoreError::Closed)));
}

#[test]
fn a_newer_format_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let path = dir.path().join("00000001.log");
    fs::write(&path, b"yurtseg\x02and what it may hold").expect("write");
    let refused = Store::open(dir.path(), options(4096));
    assert!(
        matches!(refused, Err(StoreError::Io { source, .. }) if source.kind() == std::io::ErrorKind::Unsupported)
    );
    assert_eq!(
        fs::read(&path).expect("read"),
        b"yurtseg\x02and what it may hold"
    );
}

#[test]
fn an_empty_batch_is_a_barrier_and_large_values_pass() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (store, _) = Store::open(dir.path(), options(4096)).expect("open");
    let mut large = Batch::default();
    let value: Vec<u8> = std::iter::repeat_with(|| fastrand::u8(..))
        .take(10 << 20)
        .collect();
    large.put("large", value.clone());
    let first = store.commit(large);
    store.commit(Batch::default()).wait().expect("barrier");
    assert_eq!(
        store.get(b"large").expect("get").as_deref(),
        Some(&value[..])
    );
    first.wait().expect("commit");
    let mut over = Batch::default();
    over.put("over", vec![0; (64 << 20) + 1]);
    assert!(matches!(
        store.commit(over).wait(),
        Err(StoreError::TooLarge(_))
    ));
    drop(store);
    let (store, _) = Store::open(dir.path(), options(4096)).expect("reopen");
    assert_eq!(
        store.get(b"large").expect("get").as_deref(),
        Some(&value[..])
    );
}

#[test]
fn nothing_is_left_of_what_was_replaced_after_a_purge() {
    let dir = tempfile::tempdir().expect("a directory");
    let filled = |bytes: &[u8]| {
        fs::read_dir(dir.path())
            .expect("a directory")
            .flatten()
            .any(|file| {
                let content = fs::read(file.path()).unwrap_or_default();
                content.windows(bytes.len()).any(|window| window == bytes)
            })
    };
    let (store, _) = Store::open(dir.path(), options(1 << 20)).expect("a store");
    let mut batch = Batch::default();
    batch.put("a", "in the clear").put("b", "kept".repeat(200));
    store.commit(batch).wait().expect("written");
    let mut batch = Batch::default();
    batch.put("a", "sealed");
    store.commit(batch).wait().expect("written");
    store.close().expect("closed");
    drop(store);
    let fresh = Options {
        new_segment: true,
        ..options(1 << 20)
    };
    let (store, _) = Store::open(dir.path(), fresh).expect("a store");
    assert!(filled(b"in the clear"));
    assert_eq!(store.purge().expect("purged"), 1);
    assert!(!filled(b"in the clear"));
    assert_eq!(
        store.get(b"a").expect("read").as_deref(),
        Some(&b"sealed"[..])
    );
    drop(store);
    let (store, recovery) = Store::open(dir.path(), options(1 << 20)).expect("a store");
    assert_eq!(recovery.records, 2);
    assert_eq!(store.get(b"b").expect("read").map(|b| b.len()), Some(800));
}
