//! Programs of the host: `nft`, `iptables-restore`, `conntrack`.

use std::{ffi::OsString, io, process::Stdio, time::Duration};
use tokio::{io::AsyncWriteExt, process::Command, time::timeout};

/// How long a program may take; iptables waits 5 s for its lock.
const PATIENCE: Duration = Duration::from_secs(30);

/// Why a program did not do what it was to.
#[derive(Debug, thiserror::Error)]
pub enum ToolError {
    /// There is no such program.
    #[error("{0} is not installed")]
    Missing(String),
    /// It said no.
    #[error("{program}: {text}")]
    Failed {
        /// The program.
        program: String,
        /// What it said, or its exit status.
        text: String,
    },
    /// It could not be run.
    #[error("{program}: {error}")]
    Io {
        /// The program.
        program: String,
        /// Why.
        error: io::Error,
    },
    /// It did not end.
    #[error("{0} did not end within {PATIENCE:?}")]
    TimedOut(String),
}

/// Runs programs, behind a command that leads elsewhere if one is given (another network namespace).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tools {
    prefix: Vec<OsString>,
}

impl Tools {
    /// Programs behind a command: `nsenter --net=... --`.
    pub fn behind(prefix: Vec<OsString>) -> Self {
        Self { prefix }
    }

    /// Runs a program to its end and returns what it wrote.
    pub async fn run(
        &self,
        program: &str,
        arguments: &[&str],
        input: &str,
    ) -> Result<String, ToolError> {
        let mut words = self.prefix.iter().cloned().chain([program.into()]);
        let mut command = Command::new(words.next().unwrap_or_default());
        command
            .args(words)
            .args(arguments)
            .env("LC_ALL", "C")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let failed = |error: io::Error| match error.kind() {
            io::ErrorKind::NotFound => ToolError::Missing(program.to_owned()),
            _ => ToolError::Io {
                program: program.to_owned(),
                error,
            },
        };
        let mut child = command.spawn().map_err(failed)?;
        let stdin = child.stdin.take();
        let feeding = async {
            if let Some(mut stdin) = stdin {
                // One that ends early says why itself.
                let _ = stdin.write_all(input.as_bytes()).await;
            }
        };
        let running = async { tokio::join!(feeding, child.wait_with_output()).1 };
        let ended = timeout(PATIENCE, running).await;
        let output = ended
            .map_err(|_| ToolError::TimedOut(program.to_owned()))?
            .map_err(failed)?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        let text = match said.trim() {
            "" => output.status.to_string(),
            said => said.chars().take(1000).collect(),
        };
        Err(ToolError::Failed {
            program: program.to_owned(),
            text,
        })
    }
}
