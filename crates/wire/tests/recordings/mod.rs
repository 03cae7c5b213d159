//! The recordings of a real kube-apiserver (1.36), which the tests measure against.
#![allow(dead_code, unreachable_pub)]

use bytes::Bytes;
use std::path::PathBuf;
use yurt_wire::{Encoding, Object};

pub fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures/kube-apiserver")
        .join(name)
}

pub fn bytes(name: &str) -> Bytes {
    std::fs::read(path(name))
        .unwrap_or_else(|error| panic!("{name}: {error}"))
        .into()
}

pub fn object(name: &str) -> Object {
    Object {
        encoding: if name.ends_with(".pb") {
            Encoding::Protobuf
        } else {
            Encoding::Json
        },
        bytes: bytes(name),
    }
}

/// Names (without extension) of everything recorded in both encodings, apart from watches.
pub fn pairs() -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(path(""))
        .expect("the recordings")
        .filter_map(|entry| {
            let name = entry.ok()?.file_name().into_string().ok()?;
            let stem = name.strip_suffix(".pb")?;
            (!stem.starts_with("watch-")).then(|| stem.to_owned())
        })
        .collect();
    names.sort();
    assert!(names.len() >= 16, "recordings are missing: {names:?}");
    names
}

/// The recorded lists.
pub fn lists() -> Vec<String> {
    pairs()
        .into_iter()
        .filter(|name| name.starts_with("list-") || name.starts_with("partial-"))
        .collect()
}
