//! Lays the functions that a hub runs next to each other in release builds.
//!
//! A node's kernel maps 16 pages of the binary around every one that is touched. What a hub runs is a sixth of the code, scattered
//! over all of it, so that without this nearly all of it is resident (measured: 4 MB more per node). `hub.order` names these
//! functions (docs/bench.md says how it is made); the linker puts what it knows of them first. A name that is not there any more
//! costs nothing but its place: after an update of the toolchain or of dependencies the file is to be made anew.

use std::{env, path::Path};

fn main() {
    println!("cargo:rerun-if-changed=hub.order");
    println!("cargo:rerun-if-env-changed=YURT_NO_LAYOUT");
    let is = |variable: &str, value: &str| env::var(variable).is_ok_and(|is| is == value);
    // Where rustc links with lld by itself, which knows the flag; the names are of that target, too.
    let applies = is("PROFILE", "release")
        && is("TARGET", "x86_64-unknown-linux-gnu")
        && env::var_os("YURT_NO_LAYOUT").is_none();
    if let (true, Ok(here)) = (applies, env::var("CARGO_MANIFEST_DIR")) {
        let order = Path::new(&here).join("hub.order");
        println!(
            "cargo:rustc-link-arg-bins=-Wl,--symbol-ordering-file={}",
            order.display()
        );
        println!("cargo:rustc-link-arg-bins=-Wl,--no-warn-symbol-ordering");
    }
}
