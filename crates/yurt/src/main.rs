//! The `yurt` binary: flags, wiring, nothing else.

mod cli;
mod crds;
mod manifests;

use std::process::ExitCode;

// musl's and glibc's allocators keep what a burst of lists freed; on a node that memory is missed.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    match cli::run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("yurt: {error}");
            ExitCode::FAILURE
        }
    }
}
