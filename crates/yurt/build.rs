//! Lays the functions that a hub runs next to each other in release builds.
//!
//! A node's kernel maps 16 pages of the binary around every one that is touched. What a hub runs is a sixth of the code, scattered
//! over all of it, so that without this nearly all of it is resident (measured: 4 MB more per node). `hub.order` names these
//! functions (docs/bench.md says how it is made); the linker puts what it knows of them first. A name that is not there any more
//! costs nothing but its place: after an update of the toolchain or of dependencies the file is to be made anew.

use std::{env, path::Path, process::Command};

fn main() {
    println!("cargo:rerun-if-changed=hub.order");
    println!("cargo:rerun-if-env-changed=YURT_NO_LAYOUT");
    let is = |variable: &str, value: &str| env::var(variable).is_ok_and(|is| is == value);
    // Where rustc links with lld by itself, which knows the flags; the names are of that target, too.
    if !is("PROFILE", "release") || !is("TARGET", "x86_64-unknown-linux-gnu") {
        return;
    }
    if let (None, Ok(here)) = (
        env::var_os("YURT_NO_LAYOUT"),
        env::var("CARGO_MANIFEST_DIR"),
    ) {
        let order = Path::new(&here).join("hub.order");
        link(&format!("--symbol-ordering-file={}", order.display()));
        link("--no-warn-symbol-ordering");
    }
    // A megabyte of relocations in 20 KB: without it the loader touches all of it in every process. glibc reads them since 2.36.
    if glibc().is_some_and(|version| version >= (2, 36)) {
        link("-z,pack-relative-relocs");
    }
}

fn link(argument: &str) {
    println!("cargo:rustc-link-arg-bins=-Wl,{argument}");
}

/// The version of the C library of the machine that builds.
fn glibc() -> Option<(u32, u32)> {
    let output = Command::new("getconf").arg("GNU_LIBC_VERSION").output();
    let text = String::from_utf8(output.ok()?.stdout).ok()?;
    let (major, minor) = text.trim().strip_prefix("glibc ")?.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}
