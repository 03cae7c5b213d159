//! What the hub is at, written down on SIGUSR1, where OpenYurt's hub writes the stacks of its goroutines.

use super::admin::Admin;
use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};
use tokio::signal::unix::Signal;
use tokio_util::sync::CancellationToken;

/// Writes `DIR/yurthub.PID.state.json` and a line into the log whenever the signal comes, until shutdown.
pub(super) async fn on_signal(
    mut signal: Signal,
    admin: Arc<Admin>,
    dir: PathBuf,
    shutdown: CancellationToken,
) {
    loop {
        tokio::select! {
            came = signal.recv() => if came.is_none() { return },
            () = shutdown.cancelled() => return,
        }
        let state = admin.state();
        let file = dir.join(format!("yurthub.{}.state.json", std::process::id()));
        match write(&file, &state.to_string()) {
            Ok(()) => tracing::info!(file = %file.display(), %state, "state"),
            Err(error) => {
                tracing::warn!(file = %file.display(), %error, %state, "the state cannot be written")
            }
        }
    }
}

/// Whole or not at all.
fn write(file: &Path, text: &str) -> io::Result<()> {
    use std::{io::Write, os::unix::fs::OpenOptionsExt};
    let part = file.with_extension("part");
    let mut options = std::fs::OpenOptions::new();
    let mut opened = options
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(&part)?;
    opened.write_all(text.as_bytes())?;
    std::fs::rename(&part, file)
}
