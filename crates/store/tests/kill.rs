//! `kill -9` at any moment loses nothing that was acknowledged.
//!
//! The test runs itself again as a writing process, kills it, and compares what is on disk with what the batches up to
//! some number leave: that number is at least the last acknowledged one, and no batch is there in part.

use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader, Write as _},
    path::Path,
    process::{Command, Stdio},
};
use yurt_store::{Batch, Options, Store};

const CHILD_DIR: &str = "YURT_STORE_KILL_TEST_DIR";
const ROUNDS: usize = 30;
const KEYS: u64 = 60;
/// Batches that the child has under way at a time.
const IN_FLIGHT: usize = 8;

fn options() -> Options {
    Options {
        // Small, so that segments turn over and compaction is always at work.
        segment_bytes: 16 << 10,
        garbage_share: 0.3,
        ..Options::default()
    }
}

/// What batch `n` changes, a function of `n` alone.
fn changes(n: u64) -> Vec<(String, Option<String>)> {
    let mut random = fastrand::Rng::with_seed(n);
    let mut changes: Vec<_> = (0..random.u64(1..6))
        .map(|_| {
            let key = format!("key/{}", random.u64(..KEYS));
            let value = (random.u8(..4) > 0).then(|| format!("{n}:").repeat(random.usize(1..200)));
            (key, value)
        })
        .collect();
    changes.push(("count".into(), Some(n.to_string())));
    changes
}

fn count(store: &Store) -> u64 {
    store.get(b"count").expect("get").map_or(0, |n| {
        std::str::from_utf8(&n)
            .expect("text")
            .parse()
            .expect("number")
    })
}

fn write_until_killed(dir: &Path) {
    let (store, _) = Store::open(dir, options()).expect("open");
    let mut next = count(&store) + 1;
    let mut out = std::io::stdout();
    let mut under_way = std::collections::VecDeque::new();
    loop {
        while under_way.len() < IN_FLIGHT {
            let mut batch = Batch::default();
            for (key, value) in changes(next) {
                match value {
                    Some(value) => batch.put(key, value),
                    None => batch.delete(key),
                };
            }
            under_way.push_back((next, store.commit(batch)));
            next += 1;
        }
        if let Some((n, commit)) = under_way.pop_front() {
            commit.wait().expect("commit");
            writeln!(out, "acknowledged {n}").expect("stdout");
            out.flush().expect("stdout");
        }
    }
}

#[test]
fn nothing_acknowledged_is_lost() {
    if let Some(dir) = std::env::var_os(CHILD_DIR) {
        return write_until_killed(Path::new(&dir));
    }
    let dir = tempfile::tempdir().expect("temporary directory");
    let mut model = BTreeMap::new();
    let mut applied = 0;
    for round in 0..ROUNDS {
        let mut child = Command::new(std::env::current_exe().expect("own path"))
            .args(["nothing_acknowledged_is_lost", "--exact", "--nocapture"])
            .env(CHILD_DIR, dir.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("child");
        let mut lines = BufReader::new(child.stdout.take().expect("stdout")).lines();
        let mut acknowledged = applied;
        let mut take = |line: Option<std::io::Result<String>>| {
            let line = line?.ok()?;
            let number = line.strip_prefix("acknowledged ").map(str::parse);
            if let Some(Ok(number)) = number {
                acknowledged = number;
            }
            Some(())
        };
        // From just after the start to well into several compactions.
        let until = fastrand::usize(2..if round % 3 == 0 { 10 } else { 400 });
        for _ in 0..until {
            take(lines.next()).expect("the child lives");
        }
        // Not in step with the acknowledgements.
        (0..fastrand::u32(..100_000)).for_each(|n| {
            std::hint::black_box(n);
        });
        child.kill().expect("kill -9");
        while take(lines.next()).is_some() {}
        child.wait().expect("gone");

        let (store, recovery) = Store::open(dir.path(), options()).expect("open after kill -9");
        assert_eq!(recovery.corrupt_records, 0, "round {round}: {recovery:?}");
        let there = count(&store);
        assert!(
            there >= acknowledged,
            "round {round}: {acknowledged} was acknowledged, {there} is there"
        );
        for n in applied + 1..=there {
            for (key, value) in changes(n) {
                match value {
                    Some(value) => model.insert(key, value),
                    None => model.remove(&key),
                };
            }
        }
        applied = there;
        let mut found = BTreeMap::new();
        store
            .scan(b"", &mut |key, value| {
                let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("text");
                found.insert(text(key), text(&value));
                true
            })
            .expect("scan");
        assert!(
            found == model,
            "round {round}: not the state after batch {there}"
        );
    }
    assert!(applied > ROUNDS as u64, "the children wrote");
}
