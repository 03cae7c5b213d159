//! A disk that refuses: the batch fails, nothing else does, and it goes on when there is room again.
//!
//! The "disk" is the limit on file sizes of a child process (with its signal ignored, so that writes fail, after as many
//! bytes as fit): no privileges needed, and partial writes as on a full disk.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::{path::Path, process::Command};
use yurt_store::{Batch, Options, Store, StoreError};

const CHILD_DIR: &str = "YURT_STORE_DISK_FULL_TEST_DIR";
const SMALL: u64 = 64 << 10;

fn options() -> Options {
    Options {
        segment_bytes: 1 << 20,
        compress_from: usize::MAX,
        ..Options::default()
    }
}

fn limit_files(bytes: Option<u64>) {
    let Rlimit { maximum, .. } = getrlimit(Resource::Fsize);
    setrlimit(
        Resource::Fsize,
        Rlimit {
            current: bytes.or(maximum),
            maximum,
        },
    )
    .expect("setrlimit");
}

fn put(store: &Store, key: String, len: usize) -> Result<(), StoreError> {
    let mut batch = Batch::default();
    batch.put(key, vec![7; len]);
    store.commit(batch).wait()
}

fn in_the_child(dir: &Path) {
    let (store, _) = Store::open(dir, options()).expect("open");
    limit_files(Some(SMALL));
    let mut written = 0;
    let refused = loop {
        match put(&store, format!("before/{written:04}"), 1000) {
            Ok(()) => written += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(refused, StoreError::Io { .. }), "{refused}");
    assert!((50..70).contains(&written), "{written} fit");
    assert_eq!(
        store.keys(b"before/").len(),
        written,
        "what was refused is not there"
    );
    // What fits still goes through; what was there is still read.
    put(&store, "small".into(), 10).expect("a small one fits");
    put(&store, "huge".into(), 1 << 20).expect_err("a huge one does not");
    for n in 0..written {
        let value = store.get(format!("before/{n:04}").as_bytes()).expect("get");
        assert_eq!(value.map(|v| v.len()), Some(1000));
    }
    // What was refused takes no room.
    let on_disk: u64 = std::fs::read_dir(dir)
        .expect("list")
        .map(|entry| entry.expect("entry"))
        // Who holds the directory stands there.
        .filter(|entry| entry.file_name() != "lock")
        .map(|entry| entry.metadata().expect("size").len())
        .sum();
    assert_eq!(on_disk, store.usage().disk_bytes);
    // Room again.
    limit_files(None);
    put(&store, "after".into(), 1 << 20).expect("room again");
    println!("written {written}");
    // No clean stop: what is on disk has to do.
    std::process::abort();
}

#[test]
fn a_full_disk_fails_the_batch_and_nothing_else() {
    if let Some(dir) = std::env::var_os(CHILD_DIR) {
        return in_the_child(Path::new(&dir));
    }
    let dir = tempfile::tempdir().expect("temporary directory");
    let output = Command::new("sh")
        .args(["-c", "trap '' XFSZ; ulimit -c 0; exec \"$0\" \"$@\""])
        .arg(std::env::current_exe().expect("own path"))
        .args([
            "a_full_disk_fails_the_batch_and_nothing_else",
            "--exact",
            "--nocapture",
        ])
        .env(CHILD_DIR, dir.path())
        .output()
        .expect("child");
    let said = String::from_utf8_lossy(&output.stdout);
    let written: usize = said
        .lines()
        .find_map(|line| line.split_once("written ")?.1.parse().ok())
        .unwrap_or_else(|| panic!("{said}\n{}", String::from_utf8_lossy(&output.stderr)));

    let (store, recovery) = Store::open(dir.path(), options()).expect("open");
    assert_eq!((recovery.corrupt_records, recovery.truncated_bytes), (0, 0));
    assert_eq!(store.keys(b"before/").len(), written);
    assert!(store.contains(b"small") && store.contains(b"after") && !store.contains(b"huge"));
}
