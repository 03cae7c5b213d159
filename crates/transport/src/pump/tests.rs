use super::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

fn pair() -> (DuplexStream, BoxStream) {
    let (ours, theirs) = duplex(1 << 10);
    (ours, Box::new(theirs))
}

/// Reads what was said to the end, then fails as told.
struct Script {
    said: io::Cursor<Vec<u8>>,
    then: Option<io::ErrorKind>,
    takes: bool,
}

impl AsyncRead for Script {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let at = usize::try_from(self.said.position()).unwrap();
        let rest = &self.said.get_ref()[at..];
        let count = rest.len().min(buffer.remaining());
        buffer.put_slice(&rest[..count]);
        self.said.set_position((at + count) as u64);
        Poll::Ready(match self.then {
            Some(kind) if count == 0 => Err(kind.into()),
            _ => Ok(()),
        })
    }
}

impl AsyncWrite for Script {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        Poll::Ready(if self.takes {
            Ok(data.len())
        } else {
            Err(io::ErrorKind::BrokenPipe.into())
        })
    }
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[tokio::test]
async fn each_direction_ends_for_itself() {
    let (mut client, a) = pair();
    let (mut target, b) = pair();
    let pumping = tokio::spawn(pump(a, b));
    client.write_all(b"question").await.unwrap();
    client.shutdown().await.unwrap();
    let mut question = String::new();
    target.read_to_string(&mut question).await.unwrap();
    assert_eq!(question, "question");
    target.write_all(&[7; 100_000][..10]).await.unwrap();
    drop(target);
    let mut answer = Vec::new();
    client.read_to_end(&mut answer).await.unwrap();
    assert_eq!(answer, [7; 10]);
    let (carried, ended) = pumping.await.unwrap();
    ended.unwrap();
    assert_eq!(carried, Carried { forth: 8, back: 10 });
}

#[tokio::test]
async fn a_reader_that_lags_gets_everything_in_order() {
    let (mut client, a) = pair();
    let (mut target, b) = pair();
    tokio::spawn(pump(a, b));
    let data: Vec<u8> = (0..1 << 20).map(|index: u32| (index % 251) as u8).collect();
    let sent = data.clone();
    tokio::spawn(async move {
        client.write_all(&sent).await.unwrap();
        client.shutdown().await.unwrap();
        client.read_to_end(&mut Vec::new()).await.unwrap();
    });
    let mut read = Vec::new();
    let mut piece = [0; 777];
    while let count @ 1.. = target.read(&mut piece).await.unwrap() {
        read.extend_from_slice(&piece[..count]);
        tokio::task::yield_now().await;
    }
    assert!(read == data);
}

#[tokio::test]
async fn a_torn_stream_is_not_told_as_an_end() {
    let (mut client, a) = pair();
    let broken = Script {
        said: io::Cursor::new(b"half a mess".to_vec()),
        then: Some(io::ErrorKind::ConnectionReset),
        takes: true,
    };
    /// Notes whether it was shut down.
    struct Shut(DuplexStream, std::sync::Arc<std::sync::atomic::AtomicBool>);
    impl AsyncRead for Shut {
        fn poll_read(
            mut self: Pin<&mut Self>,
            context: &mut Context<'_>,
            buffer: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_read(context, buffer)
        }
    }
    impl AsyncWrite for Shut {
        fn poll_write(
            mut self: Pin<&mut Self>,
            context: &mut Context<'_>,
            data: &[u8],
        ) -> Poll<io::Result<usize>> {
            Pin::new(&mut self.0).poll_write(context, data)
        }
        fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_flush(context)
        }
        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            self.1.store(true, std::sync::atomic::Ordering::SeqCst);
            Poll::Ready(Ok(()))
        }
    }
    let shut = std::sync::Arc::default();
    let (theirs, b) = duplex(1 << 10);
    drop(a);
    let watched = Shut(b, std::sync::Arc::clone(&shut));
    let (carried, ended) = pump(Box::new(broken), Box::new(watched)).await;
    assert_eq!(ended.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    assert_eq!(carried.forth, 11);
    assert!(!shut.load(std::sync::atomic::Ordering::SeqCst));
    drop(theirs);
    assert!(client.read(&mut [0]).await.unwrap() == 0);
}

#[tokio::test(start_paused = true)]
async fn who_reads_no_more_is_still_heard_to_the_end() {
    let said = vec![b'x'; 300_000];
    let client = Script {
        said: io::Cursor::new(said.clone()),
        then: None,
        takes: false,
    };
    let (mut target, b) = pair();
    let pumping = tokio::spawn(pump(Box::new(client), b));
    target.write_all(b"not wanted").await.unwrap();
    let mut read = Vec::new();
    let mut piece = [0; 4096];
    while let count @ 1.. = target.read(&mut piece).await.unwrap() {
        read.extend_from_slice(&piece[..count]);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(read, said);
    let (_, ended) = pumping.await.unwrap();
    assert_eq!(ended.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
}

#[tokio::test(start_paused = true)]
async fn who_reads_no_more_and_says_nothing_is_given_up() {
    let (client, a) = pair();
    let (mut target, b) = pair();
    let pumping = tokio::spawn(pump(a, b));
    // A pipe whose reader is gone takes nothing; its other direction never ends by itself.
    let (keep, drop_reader) = tokio::io::split(client);
    drop((keep, drop_reader));
    let _ = target.write_all(b"x").await;
    let (_, ended) = tokio::time::timeout(Duration::from_secs(60), pumping)
        .await
        .unwrap()
        .unwrap();
    drop(ended);
}

#[tokio::test(start_paused = true)]
async fn who_never_ends_after_the_other_did_is_given_up_when_it_is_silent() {
    let (mut client, a) = pair();
    let (mut target, b) = pair();
    let began = Instant::now();
    let pumping = tokio::spawn(pump(a, b));
    client.shutdown().await.unwrap();
    assert_eq!(target.read(&mut [0]).await.unwrap(), 0);
    // As long as it says something it is waited for.
    let most = HALF_CLOSED - Duration::from_secs(1);
    for _ in 0..3 {
        tokio::time::sleep(most).await;
        target.write_all(b"x").await.unwrap();
        assert_eq!(client.read(&mut [0]).await.unwrap(), 1);
    }
    let (carried, ended) = pumping.await.unwrap();
    assert_eq!(ended.unwrap_err().kind(), io::ErrorKind::TimedOut);
    assert_eq!(carried.back, 3);
    assert_eq!(
        (began.elapsed() - 3 * most).as_secs(),
        HALF_CLOSED.as_secs()
    );
}

#[tokio::test(start_paused = true)]
async fn while_neither_has_ended_silence_has_no_bound() {
    let (mut client, a) = pair();
    let (mut target, b) = pair();
    let _pumping = tokio::spawn(pump(a, b));
    tokio::time::sleep(100 * HALF_CLOSED).await;
    client.write_all(b"still").await.unwrap();
    let mut said = [0; 5];
    target.read_exact(&mut said).await.unwrap();
    assert_eq!(&said, b"still");
}
