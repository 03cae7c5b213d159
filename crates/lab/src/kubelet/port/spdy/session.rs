//! The streams of one SPDY connection.

use super::{Decoder, Encoder, Frame, headers::Headers};
use bytes::{Bytes, BytesMut};
use std::{collections::HashMap, io, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf},
    sync::mpsc,
    task::JoinSet,
    time::timeout,
};

/// Streams at once: each forwarded connection takes two.
const MAX_STREAMS: usize = 512;
/// What is held of a stream that one side does not read.
const HELD: usize = 64 << 10;
/// Bytes of a frame.
const CHUNK: usize = 16 << 10;
/// Frames waiting to be written.
const QUEUE: usize = 16;
/// How long a peer may take nothing of what it is sent.
const STALLED: Duration = Duration::from_secs(60);
/// How long a client may take to close what we have closed.
const FAREWELL: Duration = Duration::from_secs(2);
const REFUSED_STREAM: u32 = 3;

/// A stream that the peer opened.
#[derive(Debug)]
pub(crate) struct Opened {
    /// What it is for.
    pub(crate) headers: Headers,
    /// Its bytes both ways; the shutdown of its writing half is a FIN.
    pub(crate) stream: DuplexStream,
}

/// Serves the streams of `io`: those the peer opens come out of the receiver. Ends when the peer does, or when the receiver was
/// dropped and every stream has ended.
pub(crate) fn start<S>(
    io: S,
) -> (
    mpsc::Receiver<Opened>,
    impl Future<Output = io::Result<()>> + Send,
)
where
    S: AsyncRead + AsyncWrite + Send + 'static,
{
    let (opened, receiver) = mpsc::channel(QUEUE);
    (receiver, run(io, opened))
}

async fn run<S>(io: S, opened: mpsc::Sender<Opened>) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Send + 'static,
{
    let (mut reader, writer) = tokio::io::split(io);
    let (frames, queue) = mpsc::channel(QUEUE);
    let mut writing = tokio::spawn(write(writer, queue));
    let mut session = Session {
        frames,
        opened: Some(opened),
        incoming: HashMap::new(),
        outgoing: JoinSet::new(),
    };
    let read = session.read(&mut reader).await;
    let Session {
        frames,
        opened,
        incoming,
        mut outgoing,
    } = session;
    drop((opened, incoming));
    if read.is_ok() {
        // What was written into the streams goes out, as far as the peer takes it.
        while outgoing.join_next().await.is_some() {}
    }
    drop((outgoing, frames));
    if timeout(STALLED, &mut writing).await.is_err() {
        writing.abort();
    } else if read.is_ok() {
        // A connection that is closed with bytes unread is reset, and what was sent may be lost.
        let mut rest = [0; 1024];
        let discard = async { while reader.read(&mut rest).await.is_ok_and(|count| count > 0) {} };
        let _ = timeout(FAREWELL, discard).await;
    }
    read
}

struct Session {
    frames: mpsc::Sender<Frame>,
    opened: Option<mpsc::Sender<Opened>>,
    incoming: HashMap<u32, WriteHalf<DuplexStream>>,
    outgoing: JoinSet<()>,
}

fn gone() -> io::Error {
    io::ErrorKind::BrokenPipe.into()
}

impl Session {
    async fn read(&mut self, mut reader: impl AsyncRead + Unpin) -> io::Result<()> {
        let mut decoder = Decoder::default();
        let mut buffer = vec![0; CHUNK];
        loop {
            // Whoever served the streams is done, and what it wrote is on its way.
            let unwanted = self.opened.as_ref().is_none_or(mpsc::Sender::is_closed);
            if unwanted && self.outgoing.is_empty() {
                return Ok(());
            }
            let closed = async {
                match &self.opened {
                    Some(opened) if !unwanted => opened.closed().await,
                    _ => std::future::pending().await,
                }
            };
            let count = tokio::select! {
                count = reader.read(&mut buffer) => count?,
                Some(_) = self.outgoing.join_next(), if !self.outgoing.is_empty() => continue,
                () = closed => continue,
            };
            if count == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            decoder.push(&buffer[..count]);
            while let Some(frame) = decoder.next_frame().map_err(io::Error::other)? {
                self.take(frame).await?;
            }
        }
    }

    async fn take(&mut self, frame: Frame) -> io::Result<()> {
        match frame {
            Frame::SynStream {
                stream,
                headers,
                fin,
            } => self.open(stream, headers, fin).await,
            Frame::Data { stream, bytes, fin } => {
                // What comes for a stream that nobody reads any more is dropped.
                if let Some(into) = self.incoming.get_mut(&stream) {
                    let taken = into.write_all(&bytes).await.is_ok();
                    if (fin || !taken)
                        && let Some(mut ended) = self.incoming.remove(&stream)
                    {
                        let _ = ended.shutdown().await;
                    }
                }
                Ok(())
            }
            Frame::Reset { stream, .. } => {
                self.incoming.remove(&stream);
                Ok(())
            }
            Frame::Ping(id) => self.send(Frame::Ping(id)).await,
            Frame::GoAway { .. } | Frame::SynReply { .. } | Frame::Other(_) => Ok(()),
        }
    }

    async fn open(&mut self, stream: u32, headers: Headers, fin: bool) -> io::Result<()> {
        let refusal = Frame::Reset {
            stream,
            status: REFUSED_STREAM,
        };
        let full = self.outgoing.len() >= MAX_STREAMS || self.incoming.len() >= MAX_STREAMS;
        if full || self.incoming.contains_key(&stream) {
            return self.send(refusal).await;
        }
        let (ours, theirs) = tokio::io::duplex(HELD);
        let opened = Opened {
            headers,
            stream: theirs,
        };
        let accepted = match &self.opened {
            Some(receiver) => receiver.send(opened).await.is_ok(),
            None => false,
        };
        if !accepted {
            return self.send(refusal).await;
        }
        let headers = Headers::new();
        self.send(Frame::SynReply { stream, headers }).await?;
        let (from_us, mut to_us) = tokio::io::split(ours);
        self.outgoing
            .spawn(pump(stream, from_us, self.frames.clone()));
        if fin {
            let _ = to_us.shutdown().await;
        } else {
            self.incoming.insert(stream, to_us);
        }
        Ok(())
    }

    async fn send(&self, frame: Frame) -> io::Result<()> {
        self.frames.send(frame).await.map_err(|_| gone())
    }
}

/// Makes frames of what is written into a stream, the last one a FIN.
async fn pump(stream: u32, mut from: ReadHalf<DuplexStream>, frames: mpsc::Sender<Frame>) {
    let mut buffer = vec![0; CHUNK];
    loop {
        let count = from.read(&mut buffer).await.unwrap_or(0);
        let frame = Frame::Data {
            stream,
            bytes: Bytes::copy_from_slice(&buffer[..count]),
            fin: count == 0,
        };
        if frames.send(frame).await.is_err() || count == 0 {
            return;
        }
    }
}

async fn write(
    mut writer: impl AsyncWrite + Unpin,
    mut queue: mpsc::Receiver<Frame>,
) -> io::Result<()> {
    let mut encoder = Encoder::default();
    let mut out = BytesMut::new();
    while let Some(frame) = queue.recv().await {
        encoder.encode(&frame, &mut out);
        timeout(STALLED, writer.write_all(&out))
            .await
            .map_err(|_| gone())??;
        timeout(STALLED, writer.flush())
            .await
            .map_err(|_| gone())??;
        out.clear();
    }
    writer.shutdown().await
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn frame(decoder: &mut Decoder, client: &mut DuplexStream) -> Frame {
        loop {
            if let Some(frame) = decoder.next_frame().unwrap() {
                return frame;
            }
            let mut buffer = [0; 256];
            let count = client.read(&mut buffer).await.unwrap();
            assert!(count > 0, "the session ended");
            decoder.push(&buffer[..count]);
        }
    }

    #[tokio::test]
    async fn a_stream_carries_bytes_both_ways_and_ends() {
        let (mut client, server) = tokio::io::duplex(1 << 16);
        let (mut opened, serving) = start(server);
        let serving = tokio::spawn(serving);
        let (mut encoder, mut bytes) = (Encoder::default(), BytesMut::new());
        let headers = vec![("streamtype".to_owned(), "stdin".to_owned())];
        for frame in [
            Frame::SynStream {
                stream: 1,
                headers: headers.clone(),
                fin: false,
            },
            Frame::Ping(7),
            Frame::Data {
                stream: 1,
                bytes: "ask".into(),
                fin: true,
            },
        ] {
            encoder.encode(&frame, &mut bytes);
        }
        client.write_all(&bytes).await.unwrap();
        let mut stream = opened.recv().await.unwrap();
        assert_eq!(stream.headers, headers);
        let mut asked = String::new();
        stream.stream.read_to_string(&mut asked).await.unwrap();
        assert_eq!(asked, "ask");
        stream.stream.write_all(b"answer").await.unwrap();
        drop(stream);
        drop(opened);
        let mut decoder = Decoder::default();
        let mut got = Vec::new();
        for _ in 0..4 {
            got.push(frame(&mut decoder, &mut client).await);
        }
        let reply = Frame::SynReply {
            stream: 1,
            headers: Vec::new(),
        };
        assert_eq!(got[..2], [reply, Frame::Ping(7)]);
        let data = |bytes: &'static str, fin| Frame::Data {
            stream: 1,
            bytes: bytes.into(),
            fin,
        };
        assert_eq!(got[2..], [data("answer", false), data("", true)]);
        assert_eq!(client.read(&mut [0; 8]).await.unwrap(), 0);
        drop(client);
        serving.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn rubbish_ends_the_session() {
        let (mut client, server) = tokio::io::duplex(1 << 16);
        let (_opened, serving) = start(server);
        client.write_all(&[0xff; 64]).await.unwrap();
        assert!(serving.await.is_err());
    }
}
