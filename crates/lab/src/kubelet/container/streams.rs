//! The standard streams of commands in a container.

use super::files::FileError;
use bytes::Bytes;
use std::{io, pin::Pin, sync::Arc};
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader},
    sync::{Mutex, watch},
};

/// What a command may hold in memory.
const MAX_HELD: usize = 8 << 20;

/// Columns and rows of a terminal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Size {
    pub(crate) width: u16,
    pub(crate) height: u16,
}

pub(super) type Reader = BufReader<Box<dyn AsyncRead + Send + Unpin>>;
pub(super) type Writer = Box<dyn AsyncWrite + Send + Unpin>;

/// The standard streams of a command. Clones share them.
#[derive(Clone)]
pub(crate) struct Streams {
    pub(super) stdin: Arc<Mutex<Reader>>,
    pub(super) stdout: Arc<Mutex<Writer>>,
    pub(super) stderr: Arc<Mutex<Writer>>,
    /// The terminal's size, when there is one.
    pub(super) terminal: Option<watch::Receiver<Size>>,
}

impl Streams {
    pub(crate) fn new(
        stdin: impl AsyncRead + Send + Unpin + 'static,
        stdout: impl AsyncWrite + Send + Unpin + 'static,
        stderr: Option<Writer>,
        terminal: Option<watch::Receiver<Size>>,
    ) -> Self {
        let stdout: Arc<Mutex<Writer>> = Arc::new(Mutex::new(Box::new(stdout)));
        Self {
            stdin: Arc::new(Mutex::new(BufReader::new(Box::new(stdin)))),
            stderr: match stderr {
                Some(stderr) => Arc::new(Mutex::new(stderr)),
                None => stdout.clone(),
            },
            stdout,
            terminal,
        }
    }

    pub(super) async fn out(&self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        let mut stdout = self.stdout.lock().await;
        stdout.write_all(bytes.as_ref()).await?;
        stdout.flush().await
    }

    pub(super) async fn complain(&self, text: impl AsRef<str>) -> io::Result<()> {
        let mut stderr = self.stderr.lock().await;
        stderr.write_all(text.as_ref().as_bytes()).await?;
        stderr.write_all(b"\n").await?;
        stderr.flush().await
    }

    /// The next line of the input with its newline; empty at the end.
    pub(super) async fn line(&self) -> io::Result<Vec<u8>> {
        let mut line = Vec::new();
        let mut stdin = self.stdin.lock().await;
        (&mut *stdin)
            .take(MAX_HELD as u64)
            .read_until(b'\n', &mut line)
            .await?;
        Ok(line)
    }

    /// Some of the input, at most `most` bytes; nothing at the end.
    pub(super) async fn piece(&self, most: usize) -> io::Result<Bytes> {
        let mut piece = vec![0; most];
        let count = self.stdin.lock().await.read(&mut piece).await?;
        piece.truncate(count);
        Ok(piece.into())
    }

    pub(super) async fn whole_input(&self) -> io::Result<Vec<u8>> {
        let mut all = Vec::new();
        let mut stdin = self.stdin.lock().await;
        (&mut *stdin)
            .take(MAX_HELD as u64 + 1)
            .read_to_end(&mut all)
            .await?;
        match all.len() > MAX_HELD {
            true => Err(FileError::TooLarge.into()),
            false => Ok(all),
        }
    }
}

/// What a command prints, for whoever wants it when it has ended.
#[derive(Clone, Debug, Default)]
pub(super) struct Held(Arc<std::sync::Mutex<Vec<u8>>>);

impl Held {
    pub(super) fn take(&self) -> Vec<u8> {
        std::mem::take(&mut crate::kubelet::lock(&self.0))
    }
}

impl AsyncWrite for Held {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
        bytes: &[u8],
    ) -> std::task::Poll<io::Result<usize>> {
        let mut held = crate::kubelet::lock(&self.0);
        std::task::Poll::Ready(if held.len() + bytes.len() > MAX_HELD {
            Err(FileError::TooLarge.into())
        } else {
            held.extend_from_slice(bytes);
            Ok(bytes.len())
        })
    }

    fn poll_flush(
        self: Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<io::Result<()>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn poll_shutdown(
        self: Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<io::Result<()>> {
        std::task::Poll::Ready(Ok(()))
    }
}
