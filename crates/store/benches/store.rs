//! `cargo bench -p yurt-store`: what a node's cache of 10,000 objects costs.

use std::time::{Duration, Instant};
use yurt_store::{Batch, Options, Store};

const RECORDS: usize = 10_000;
const VALUE_BYTES: usize = 2048;

fn report(what: &str, took: Duration, each: usize) {
    println!(
        "{what:<44}{took:>12.3?}{:>12.3?} each",
        took / each.max(1) as u32
    );
}

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok())
        .unwrap_or(0)
}

fn key(number: usize) -> String {
    format!(
        "/registry/services/endpointslices/namespace-{}/service-{number:05}",
        number % 20
    )
}

/// As compressible as an object.
fn value(number: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(number as u64);
    std::iter::repeat_with(|| if random.bool() { b'a' } else { random.u8(..) })
        .take(VALUE_BYTES)
        .collect()
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dir = tempfile::tempdir()?;
    let (store, _) = Store::open(dir.path(), Options::default())?;

    let begun = Instant::now();
    let commits: Vec<_> = (0..RECORDS)
        .map(|number| {
            let mut batch = Batch::default();
            batch.put(key(number), value(number));
            store.commit(batch)
        })
        .collect();
    for commit in commits {
        commit.wait()?;
    }
    report("put, many under way", begun.elapsed(), RECORDS);

    let begun = Instant::now();
    for number in 0..1000 {
        let mut batch = Batch::default();
        batch.put(key(number), value(number));
        store.commit(batch).wait()?;
    }
    report("put, one at a time (durable)", begun.elapsed(), 1000);

    let begun = Instant::now();
    for number in 0..RECORDS {
        store.get(key(number).as_bytes())?.ok_or("lost")?;
    }
    report("get", begun.elapsed(), RECORDS);

    let begun = Instant::now();
    let mut seen = 0;
    store.scan(b"", &mut |_, _| {
        seen += 1;
        true
    })?;
    report("scan", begun.elapsed(), seen);
    println!("{:?}", store.usage());
    store.close()?;
    drop(store);

    let before = resident_kib();
    let begun = Instant::now();
    let (store, recovery) = Store::open(dir.path(), Options::default())?;
    report("open after a clean stop", begun.elapsed(), RECORDS);
    println!(
        "resident: {before} KiB before, {} KiB open; {recovery:?}",
        resident_kib()
    );
    drop(store);

    for entry in std::fs::read_dir(dir.path())? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "hint") {
            std::fs::remove_file(path)?;
        }
    }
    let begun = Instant::now();
    let (store, _) = Store::open(dir.path(), Options::default())?;
    report("open without any hint", begun.elapsed(), RECORDS);
    store.close()?;
    Ok(())
}
