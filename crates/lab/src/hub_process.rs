//! One hub as a process of its own: started, watched, started again when it dies, stopped with the lab.

use std::{
    ffi::OsString,
    fs::File,
    path::PathBuf,
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::process::{Child, Command};
use tokio_util::sync::CancellationToken;

/// Between the death of a hub and its next start; as a service manager would, doubled for each quick death.
const FIRST_PAUSE: Duration = Duration::from_millis(300);
/// The longest such pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// A hub that lived this long was healthy: the pause begins small again.
const HEALTHY: Duration = Duration::from_secs(10);
/// How long a hub may take to drain after SIGTERM before it is killed.
const DRAIN: Duration = Duration::from_secs(8);
/// A log larger than this is put aside (`hub.log.old`) at the next start.
const MOST_LOG: u64 = 8 << 20;

/// How a hub is started.
#[derive(Clone, Debug)]
pub struct HubCommand {
    /// The `yurt` binary.
    pub program: PathBuf,
    /// `hub --node-name=... ...`
    pub arguments: Vec<OsString>,
    /// Where stdout and stderr go (appended).
    pub log: PathBuf,
}

#[derive(Debug, Default)]
struct Shared {
    pid: AtomicU32,
    restarts: AtomicU64,
    /// Its next end is what somebody asked for.
    killed: AtomicBool,
}

/// A supervised hub.
#[derive(Debug)]
pub struct HubProcess {
    shared: Arc<Shared>,
    task: tokio::task::JoinHandle<()>,
}

impl HubProcess {
    /// Starts the hub and keeps it running until `shutdown`.
    pub fn start(command: HubCommand, shutdown: CancellationToken) -> Self {
        let shared = Arc::new(Shared::default());
        let task = tokio::spawn(supervise(command, shared.clone(), shutdown));
        Self { shared, task }
    }

    /// The process id, when it runs.
    pub fn pid(&self) -> Option<u32> {
        Some(self.shared.pid.load(Ordering::Acquire)).filter(|pid| *pid != 0)
    }

    /// How often it was started again.
    pub fn restarts(&self) -> u64 {
        self.shared.restarts.load(Ordering::Acquire)
    }

    /// `kill -9`; the supervisor starts it again. False when it does not run.
    pub fn kill(&self) -> bool {
        self.shared.killed.store(true, Ordering::Release);
        self.pid()
            .is_some_and(|pid| signal(pid, rustix::process::Signal::KILL))
    }

    /// Waits until the hub has stopped after shutdown.
    pub async fn stopped(self) {
        // The task does not panic; a cancelled runtime ends it all the same.
        let _ = self.task.await;
    }
}

fn signal(pid: u32, signal: rustix::process::Signal) -> bool {
    i32::try_from(pid)
        .ok()
        .and_then(rustix::process::Pid::from_raw)
        .is_some_and(|pid| rustix::process::kill_process(pid, signal).is_ok())
}

async fn supervise(command: HubCommand, shared: Arc<Shared>, shutdown: CancellationToken) {
    let mut pause = FIRST_PAUSE;
    loop {
        let began = tokio::time::Instant::now();
        match spawn(&command) {
            Ok(mut child) => {
                // Held open: `wait` would close it, and the hub would take that for the end of the lab.
                let _stdin = child.stdin.take();
                shared.pid.store(child.id().unwrap_or(0), Ordering::Release);
                let ended = tokio::select! {
                    ended = child.wait() => Some(ended),
                    () = shutdown.cancelled() => None,
                };
                let Some(ended) = ended else {
                    stop(&mut child).await;
                    shared.pid.store(0, Ordering::Release);
                    return;
                };
                shared.pid.store(0, Ordering::Release);
                if shared.killed.swap(false, Ordering::AcqRel) {
                    tracing::info!("hub killed as asked; starting it again");
                } else {
                    tracing::warn!(log = %command.log.display(), ?ended, "hub ended; starting it again");
                }
            }
            Err(error) => {
                tracing::error!(program = %command.program.display(), %error, "hub does not start");
            }
        }
        pause = if began.elapsed() >= HEALTHY {
            FIRST_PAUSE
        } else {
            pause
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = shutdown.cancelled() => return,
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
        shared.restarts.fetch_add(1, Ordering::AcqRel);
    }
}

async fn stop(child: &mut Child) {
    if let Some(pid) = child.id() {
        signal(pid, rustix::process::Signal::TERM);
    }
    if tokio::time::timeout(DRAIN, child.wait()).await.is_err() {
        // Already gone is as good.
        let _ = child.kill().await;
    }
}

fn spawn(command: &HubCommand) -> std::io::Result<Child> {
    if std::fs::metadata(&command.log).is_ok_and(|m| m.len() > MOST_LOG) {
        std::fs::rename(&command.log, command.log.with_extension("log.old"))?;
    }
    let log = File::options()
        .create(true)
        .append(true)
        .open(&command.log)?;
    Command::new(&command.program)
        .args(&command.arguments)
        // The hub watches this pipe: should the lab be killed, its hubs end too.
        .stdin(Stdio::piped())
        .env("YURT_EXIT_WITH_PARENT", "1")
        .stdout(log.try_clone()?)
        .stderr(log)
        // Ctrl-C in the terminal is for the lab, which then stops its hubs in order.
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
}
