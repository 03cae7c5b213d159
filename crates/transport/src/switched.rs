//! Upgraded connections: bytes both ways until both sides have ended, or one has and the other goes quiet.

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use std::{
    io,
    pin::Pin,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// How long either side may take to switch protocols after the 101.
const SWITCH: Duration = Duration::from_secs(10);
/// How long one direction may be silent after the other has ended.
const LINGER: Duration = Duration::from_secs(30);
/// Bytes read at a time, and held for a side that does not take them.
const CHUNK: usize = 16 << 10;

/// Joins a client's connection and a backend's once both have switched, until both directions have ended, or one has and the other
/// is silent for half a minute. Bytes that either side sent early are part of what is passed on. Dropping it breaks both.
pub async fn join_upgraded(client: OnUpgrade, backend: OnUpgrade) {
    let both = async { tokio::try_join!(client, backend) };
    let (client, backend) = match tokio::time::timeout(SWITCH, both).await {
        Ok(Ok(both)) => both,
        Ok(Err(error)) => {
            tracing::debug!(%error, "upgrade failed");
            return;
        }
        Err(_) => return,
    };
    if let Err(error) = copy_both(TokioIo::new(client), TokioIo::new(backend)).await {
        tracing::debug!(%error, "upgraded connection ended");
    }
}

/// Copies both ways. The end of one direction is passed on as such (half-close).
async fn copy_both<A, B>(one: A, other: B) -> io::Result<()>
where
    A: AsyncRead + AsyncWrite + Send,
    B: AsyncRead + AsyncWrite + Send,
{
    let (one_reads, one_writes) = tokio::io::split(one);
    let (other_reads, other_writes) = tokio::io::split(other);
    let passed = AtomicU64::new(0);
    type Copying<'a> = Pin<Box<dyn Future<Output = io::Result<()>> + Send + 'a>>;
    let mut up: Copying<'_> = Box::pin(copy(one_reads, other_writes, &passed));
    let mut down: Copying<'_> = Box::pin(copy(other_reads, one_writes, &passed));
    let mut rest = tokio::select! {
        ended = &mut up => { ended?; down }
        ended = &mut down => { ended?; up }
    };
    let mut seen = passed.load(Ordering::Relaxed);
    loop {
        match tokio::time::timeout(LINGER, &mut rest).await {
            Ok(ended) => return ended,
            Err(_) => {
                let now = passed.load(Ordering::Relaxed);
                if now == seen {
                    return Ok(());
                }
                seen = now;
            }
        }
    }
}

async fn copy(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    passed: &AtomicU64,
) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    loop {
        let count = from.read(&mut buffer).await?;
        if count == 0 {
            return to.shutdown().await;
        }
        to.write_all(&buffer[..count]).await?;
        to.flush().await?;
        passed.fetch_add(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_half_that_ended_leaves_the_other_open() {
        let (mut client, client_side) = tokio::io::duplex(64);
        let (mut backend, backend_side) = tokio::io::duplex(64);
        let joined = tokio::spawn(copy_both(client_side, backend_side));
        client.write_all(b"ask").await.unwrap();
        client.shutdown().await.unwrap();
        let mut asked = Vec::new();
        backend.read_to_end(&mut asked).await.unwrap();
        assert_eq!(asked, b"ask");
        backend.write_all(b"answer").await.unwrap();
        backend.shutdown().await.unwrap();
        let mut answered = Vec::new();
        client.read_to_end(&mut answered).await.unwrap();
        assert_eq!(answered, b"answer");
        joined.await.unwrap().unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_side_that_never_ends_is_not_waited_for() {
        let (mut client, client_side) = tokio::io::duplex(64);
        let (_backend, backend_side) = tokio::io::duplex(64);
        client.shutdown().await.unwrap();
        copy_both(client_side, backend_side).await.unwrap();
    }
}
