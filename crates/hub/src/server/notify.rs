//! Telling the service manager, by systemd's protocol (sd_notify(3)): datagrams of `NAME=VALUE` lines to `$NOTIFY_SOCKET`.

use crate::{cache::Cache, proxy::Hub, route::Mode};
use std::{
    ffi::OsStr,
    io,
    os::{
        linux::net::SocketAddrExt,
        unix::{
            ffi::OsStrExt,
            net::{SocketAddr, UnixDatagram},
        },
    },
    sync::Arc,
    time::Duration,
};
use tokio_util::sync::CancellationToken;

/// Longest status line.
const LONGEST: usize = 200;

/// The way to the service manager; none when nobody asked to be told.
#[derive(Debug, Default)]
pub(super) struct Notifier {
    socket: Option<UnixDatagram>,
    /// Between signs of life that are asked for.
    pub(super) watchdog: Option<Duration>,
}

impl Notifier {
    /// As the environment says.
    pub(super) fn from_env() -> Self {
        let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        let Some(path) = variable("NOTIFY_SOCKET") else {
            return Self::default();
        };
        let socket = match connect(&path) {
            Ok(socket) => Some(socket),
            Err(error) => {
                tracing::warn!(?path, %error, "the service manager cannot be told anything");
                None
            }
        };
        let number = |name: &str| variable(name)?.to_str()?.parse::<u64>().ok();
        let for_us = number("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(std::process::id()));
        let watchdog = number("WATCHDOG_USEC")
            .filter(|usec| for_us && *usec > 0)
            .map(|usec| Duration::from_micros(usec) / 2);
        Self { socket, watchdog }
    }

    pub(super) fn ready(&self) {
        self.send("READY=1");
    }

    pub(super) fn stopping(&self) {
        self.send("STOPPING=1\nSTATUS=stopping: open requests may end");
    }

    fn alive(&self) {
        self.send("WATCHDOG=1");
    }

    pub(super) fn status(&self, text: &str) {
        let line: String = text
            .chars()
            .filter(|c| !c.is_control())
            .take(LONGEST)
            .collect();
        self.send(&format!("STATUS={line}"));
    }

    fn send(&self, lines: &str) {
        if let Some(socket) = &self.socket
            && let Err(error) = socket.send(lines.as_bytes())
        {
            tracing::debug!(%error, lines, "the service manager was not told");
        }
    }
}

fn connect(path: &OsStr) -> io::Result<UnixDatagram> {
    let bytes = path.as_bytes();
    let address = match bytes.strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(path)?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.connect_addr(&address)?;
    // A manager that does not read must not hold the hub up.
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// Keeps the status line true until shutdown.
pub(super) async fn tell_status(notifier: Arc<Notifier>, hub: Arc<Hub>) {
    let mut modes = hub.modes();
    loop {
        let mode = *modes.borrow_and_update();
        notifier.status(&line(&hub, mode));
        tokio::select! {
            changed = modes.changed() => if changed.is_err() { return },
            () = hub.shutdown.cancelled() => return,
        }
    }
}

fn line(hub: &Hub, mode: Mode) -> String {
    let servers = hub.upstreams.status();
    let up = servers.iter().filter(|server| server.state == "up").count();
    format!(
        "{}: {up} of {} API servers up, {} objects cached, {} writes waiting",
        mode.as_str(),
        servers.len(),
        hub.cache.object_count(),
        hub.journal.pending(),
    )
}

/// Signs of life, as long as tasks run and the thread of the cache, if there is one, answers.
pub(super) async fn keep_alive(
    notifier: Arc<Notifier>,
    every: Duration,
    cache: Option<Cache>,
    stop: CancellationToken,
) {
    let mut ticks = tokio::time::interval(every);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = stop.cancelled() => return,
        }
        // A disk that refuses is no reason to be killed; a thread that hangs is.
        let answer = async {
            if let Some(cache) = &cache {
                let _ = cache.flush().await;
            }
        };
        match tokio::time::timeout(every, answer).await {
            Ok(()) => notifier.alive(),
            Err(_) => tracing::error!("the cache's thread does not answer"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hear(socket: &UnixDatagram) -> String {
        let mut buffer = [0; 4096];
        let count = socket.recv(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..count]).into_owned()
    }

    #[test]
    fn lines_reach_sockets_by_path_and_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let by_path = UnixDatagram::bind(&path).unwrap();
        let name = format!("yurt-notify-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let by_name = UnixDatagram::bind_addr(&address).unwrap();
        for (to, socket) in [
            (path.into_os_string(), by_path),
            (format!("@{name}").into(), by_name),
        ] {
            let notifier = Notifier {
                socket: Some(connect(&to).unwrap()),
                watchdog: None,
            };
            notifier.ready();
            assert_eq!(hear(&socket), "READY=1");
            notifier.status(&format!("a\nREADY=1{}", "x".repeat(500)));
            let status = hear(&socket);
            assert!(status.starts_with("STATUS=aREADY=1x") && !status.contains('\n'));
            assert_eq!(status.len(), "STATUS=".len() + LONGEST);
            notifier.stopping();
            assert!(hear(&socket).starts_with("STOPPING=1\n"));
            drop(socket);
            // Nobody there any more: no matter.
            notifier.alive();
        }
    }
}
