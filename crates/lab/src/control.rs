//! The control socket of a running lab: one JSON line asks, one JSON line answers.

use serde::{Deserialize, Serialize};
use std::{
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{UnixListener, UnixStream},
};
use tokio_util::sync::CancellationToken;

/// The longest line of the protocol, bytes.
const MOST: u64 = 1 << 20;
/// How long one command may take.
const PATIENCE: Duration = Duration::from_secs(15);

/// What `yurt lab` asks for. `target` is a node or a pool.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
#[serde(tag = "command", rename_all = "kebab-case")]
pub enum Command {
    /// Packets vanish; with `reset` connections are reset instead.
    Cut {
        /// Node or pool.
        target: String,
        /// Reset instead of silence.
        reset: bool,
    },
    /// The link works again.
    Heal {
        /// Node or pool.
        target: String,
    },
    /// The link is slow.
    Slow {
        /// Node or pool.
        target: String,
        /// Added round-trip time.
        delay_ms: u64,
        /// Bytes per second, 0 for no limit.
        bytes_per_second: u64,
        /// Lost packets of a hundred; with it the rate is not limited.
        loss_percent: u8,
    },
    /// `kill -9` of the hub, which the lab starts again.
    Kill {
        /// Node or pool.
        target: String,
    },
    /// The node loses power and comes back: `kill -9` of the hub, and its kubelet starts every pod again with another address.
    Reboot {
        /// Node or pool.
        target: String,
    },
    /// A new status on a pod of a simulated kubelet (its readiness message changes).
    Touch {
        /// `namespace/name`.
        pod: String,
    },
    /// What is running.
    Status {
        /// Node or pool; empty for all.
        target: String,
    },
}

/// One node in an answer.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct NodeStatus {
    /// Name.
    pub name: String,
    /// Pool.
    pub pool: String,
    /// Loopback address.
    pub address: String,
    /// `up`, `cut`, `reset`, `slow`.
    pub link: String,
    /// Process id of the hub, when it runs.
    pub hub_pid: Option<u32>,
    /// How often the hub was started again.
    pub hub_restarts: u64,
    /// `online`, `offline`, `down` (no answer).
    pub hub: String,
    /// What the hub is to its pool by its own word: `leader`, `follower`, `alone`; empty when it does not say.
    pub pool_role: String,
    /// Writes that wait for the cloud.
    pub journal: u64,
    /// Resident memory of the hub, bytes.
    pub hub_memory: u64,
    /// Bytes from the cloud and to it over the link.
    pub bytes_from_cloud: u64,
    /// See `bytes_from_cloud`.
    pub bytes_to_cloud: u64,
    /// Whether the node's tunnel agent is connected.
    pub tunnel: bool,
    /// Bytes that the agent sent to the tunnel's server.
    pub bytes_to_tunnel: u64,
}

/// The answer to a command.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// The nodes concerned, after the command.
    Nodes(Vec<NodeStatus>),
    /// Why not.
    Refused(String),
}

/// Why a command did not reach a lab.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// No lab runs on the directory.
    #[error(
        "no lab runs on {dir} ({source}); start one with `yurt up --data-dir {dir}` or name its directory with --data-dir"
    )]
    NoLab {
        /// The data directory.
        dir: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The lab did not answer.
    #[error("the lab on {dir} did not answer: {why}")]
    NoAnswer {
        /// The data directory.
        dir: PathBuf,
        /// Why.
        why: String,
    },
}

/// A socket path of at most 107 bytes is all the kernel takes: the directory is opened and named by descriptor, so
/// that data directories may lie as deep as they like.
fn in_directory<T>(
    dir: &Path,
    action: impl FnOnce(&Path) -> std::io::Result<T>,
) -> std::io::Result<T> {
    let handle = std::fs::File::open(dir)?;
    action(&PathBuf::from(format!(
        "/proc/self/fd/{}/control.sock",
        handle.as_raw_fd()
    )))
}

/// Sends a command to the lab on a data directory.
pub async fn send(dir: &Path, command: &Command) -> Result<Answer, ControlError> {
    let no_lab = |source| ControlError::NoLab {
        dir: dir.to_owned(),
        source,
    };
    let no_answer = |why: String| ControlError::NoAnswer {
        dir: dir.to_owned(),
        why,
    };
    let stream =
        in_directory(dir, |path| std::os::unix::net::UnixStream::connect(path)).map_err(no_lab)?;
    let talk = async {
        stream.set_nonblocking(true)?;
        let mut stream = UnixStream::from_std(stream)?;
        let mut line = serde_json::to_vec(command)?;
        line.push(b'\n');
        stream.write_all(&line).await?;
        let mut answer = String::new();
        BufReader::new(stream)
            .take(MOST)
            .read_line(&mut answer)
            .await?;
        serde_json::from_str(&answer).map_err(std::io::Error::from)
    };
    match tokio::time::timeout(PATIENCE, talk).await {
        Ok(answer) => answer.map_err(|e: std::io::Error| no_answer(e.to_string())),
        Err(_) => Err(no_answer(format!("nothing within {PATIENCE:?}"))),
    }
}

/// Serves commands until shutdown.
pub async fn serve<F>(
    dir: &Path,
    shutdown: CancellationToken,
    handle: impl Fn(Command) -> F + Clone + Send + 'static,
) -> std::io::Result<()>
where
    F: Future<Output = Answer> + Send + 'static,
{
    // A socket file left by a killed lab; the directory's lock says that nobody serves it.
    match std::fs::remove_file(dir.join("control.sock")) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let listener = in_directory(dir, |path| std::os::unix::net::UnixListener::bind(path))?;
    listener.set_nonblocking(true)?;
    let listener = UnixListener::from_std(listener)?;
    loop {
        let stream = tokio::select! {
            () = shutdown.cancelled() => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "control socket");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            },
        };
        let handle = handle.clone();
        tokio::spawn(async move {
            let answered = tokio::time::timeout(PATIENCE, answer(stream, handle)).await;
            if let Ok(Err(error)) = answered {
                tracing::debug!(%error, "control connection");
            }
        });
    }
    let _ = std::fs::remove_file(dir.join("control.sock"));
    Ok(())
}

async fn answer<F>(stream: UnixStream, handle: impl Fn(Command) -> F) -> std::io::Result<()>
where
    F: Future<Output = Answer>,
{
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    (&mut stream).take(MOST).read_line(&mut line).await?;
    let answer = match serde_json::from_str(&line) {
        Ok(command) => handle(command).await,
        Err(e) => Answer::Refused(format!("not a command: {e}")),
    };
    let mut line = serde_json::to_vec(&answer)?;
    line.push(b'\n');
    stream.get_mut().write_all(&line).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn commands_travel_and_garbage_is_refused() {
        // Deeper than a socket address can name.
        let dir = std::env::temp_dir()
            .join(format!("yurt-control-{}", std::process::id()))
            .join("d".repeat(120));
        std::fs::create_dir_all(&dir).unwrap();
        let shutdown = CancellationToken::new();
        let server = tokio::spawn({
            let (dir, shutdown) = (dir.clone(), shutdown.clone());
            async move {
                serve(&dir, shutdown, |command| async move {
                    Answer::Refused(format!("{command:?}"))
                })
                .await
            }
        });
        while !dir.join("control.sock").exists() {
            tokio::task::yield_now().await;
        }
        let command = Command::Heal {
            target: "a-1".into(),
        };
        let Answer::Refused(said) = send(&dir, &command).await.unwrap() else {
            panic!()
        };
        assert!(said.contains("a-1"));
        let mut raw =
            in_directory(&dir, |path| std::os::unix::net::UnixStream::connect(path)).unwrap();
        std::io::Write::write_all(&mut raw, b"nonsense\n").unwrap();
        raw.set_nonblocking(true).unwrap();
        let mut line = String::new();
        BufReader::new(UnixStream::from_std(raw).unwrap())
            .read_line(&mut line)
            .await
            .unwrap();
        assert!(line.contains("not a command"), "{line}");
        shutdown.cancel();
        server.await.unwrap().unwrap();
        assert!(
            send(&dir, &command)
                .await
                .unwrap_err()
                .to_string()
                .contains("yurt up")
        );
        std::fs::remove_dir_all(dir.parent().unwrap()).unwrap();
    }
}
