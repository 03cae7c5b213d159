//! WebSockets as kubectl uses them: channels of a remote command in messages, or a tunnel for SPDY.

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::{BufMut, Bytes, BytesMut};
use futures_util::{SinkExt, StreamExt, stream::SplitStream};
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use std::time::Duration;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf},
    sync::mpsc,
    task::JoinSet,
    time::timeout,
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Message,
        handshake::derive_accept_key,
        protocol::{CloseFrame, Role, WebSocketConfig, frame::coding::CloseCode},
    },
};
use yurt_transport::Body;

/// The largest message that is taken.
const MAX_MESSAGE: usize = 1 << 20;
/// What is held of a channel that one side does not read.
const HELD: usize = 64 << 10;
/// Bytes of a message.
const CHUNK: usize = 16 << 10;
/// Messages waiting to be written.
const QUEUE: usize = 16;
/// How long a peer may take nothing of what it is sent.
const STALLED: Duration = Duration::from_secs(60);

/// How long a client may take to close what we have closed.
const FAREWELL: Duration = Duration::from_secs(2);

/// Channels of a remote command: input, output, errors, status, terminal size.
pub(super) const CHANNELS: usize = 5;
/// The first byte of the message that ends a channel (`v5.channel.k8s.io`).
const CLOSE: u8 = 255;

/// A negotiated subprotocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Channeled {
    /// As it is called.
    pub(super) name: &'static str,
    /// A client can end its input.
    closes: bool,
    base64: bool,
}

/// The protocols of remote commands, best first.
const COMMANDS: [Channeled; 4] = [
    Channeled {
        name: "v5.channel.k8s.io",
        closes: true,
        base64: false,
    },
    Channeled {
        name: "v4.channel.k8s.io",
        closes: false,
        base64: false,
    },
    Channeled {
        name: "v4.base64.channel.k8s.io",
        closes: false,
        base64: true,
    },
    Channeled {
        name: "base64.channel.k8s.io",
        closes: false,
        base64: true,
    },
];

/// Whether a request opens a WebSocket.
pub(super) fn is_websocket(headers: &HeaderMap) -> bool {
    let upgrade = headers.get(header::UPGRADE);
    upgrade.is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"websocket"))
}

fn offered(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    headers
        .get_all(header::SEC_WEBSOCKET_PROTOCOL)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|text| text.split(','))
        .map(str::trim)
}

/// The best protocol for a remote command that the client offers.
pub(super) fn command_protocol(headers: &HeaderMap) -> Option<Channeled> {
    let spoken = |known: &Channeled| offered(headers).any(|name| name == known.name);
    COMMANDS.into_iter().find(spoken)
}

/// Whether the client offers `protocol`.
pub(super) fn offers(headers: &HeaderMap, protocol: &str) -> bool {
    offered(headers).any(|name| name == protocol)
}

/// The 101; `None` when the request has no key.
pub(super) fn accepted(headers: &HeaderMap, protocol: &'static str) -> Option<Response<Body>> {
    let key = headers.get(header::SEC_WEBSOCKET_KEY)?;
    let accept = derive_accept_key(key.as_bytes());
    let mut response = Response::new(yurt_transport::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let head = response.headers_mut();
    head.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    head.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    head.insert(
        header::SEC_WEBSOCKET_ACCEPT,
        HeaderValue::from_str(&accept).ok()?,
    );
    head.insert(
        header::SEC_WEBSOCKET_PROTOCOL,
        HeaderValue::from_static(protocol),
    );
    Some(response)
}

async fn socket<S: AsyncRead + AsyncWrite + Unpin>(io: S) -> WebSocketStream<S> {
    let config = WebSocketConfig::default()
        .max_message_size(Some(MAX_MESSAGE))
        .max_frame_size(Some(MAX_MESSAGE));
    WebSocketStream::from_raw_socket(io, Role::Server, Some(config)).await
}

/// A piece of a channel on its way out.
fn message(protocol: Channeled, channel: u8, bytes: &[u8]) -> Message {
    if protocol.base64 {
        let text = format!("{channel}{}", STANDARD.encode(bytes));
        return Message::text(text);
    }
    let mut framed = BytesMut::with_capacity(bytes.len() + 1);
    framed.put_u8(channel);
    framed.put_slice(bytes);
    Message::binary(framed.freeze())
}

/// What a message from the client says.
#[derive(Debug, PartialEq, Eq)]
enum Said {
    Bytes(u8, Bytes),
    Close(u8),
    Nothing,
}

fn read_message(protocol: Channeled, message: Message) -> Said {
    let (channel, payload) = match message {
        Message::Text(text) if protocol.base64 => {
            let bytes = text.as_bytes();
            match (
                bytes.first(),
                STANDARD.decode(bytes.get(1..).unwrap_or_default()),
            ) {
                (Some(digit), Ok(payload)) => (digit.wrapping_sub(b'0'), Bytes::from(payload)),
                _ => return Said::Nothing,
            }
        }
        Message::Binary(bytes) if !bytes.is_empty() => (bytes[0], bytes.slice(1..)),
        Message::Text(text) if !text.is_empty() => {
            let bytes = Bytes::from(text);
            (bytes[0], bytes.slice(1..))
        }
        _ => return Said::Nothing,
    };
    match (channel, payload.first()) {
        (CLOSE, Some(which)) if protocol.closes => Said::Close(*which),
        _ => Said::Bytes(channel, payload),
    }
}

/// Serves the channels of a remote command; those not wanted are `None`. The future ends when every output has ended, or with the
/// client.
pub(super) fn channels<S>(
    io: S,
    protocol: Channeled,
    wanted: [bool; CHANNELS],
) -> (
    [Option<DuplexStream>; CHANNELS],
    impl Future<Output = ()> + Send,
)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let mut streams: [Option<DuplexStream>; CHANNELS] = Default::default();
    let mut ours: [Option<DuplexStream>; CHANNELS] = Default::default();
    for (channel, wanted) in wanted.into_iter().enumerate() {
        if wanted {
            let (here, there) = tokio::io::duplex(HELD);
            (ours[channel], streams[channel]) = (Some(here), Some(there));
        }
    }
    (streams, serve(io, protocol, ours))
}

async fn serve<S>(io: S, protocol: Channeled, ours: [Option<DuplexStream>; CHANNELS])
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (mut sink, source) = socket(io).await.split();
    let (messages, mut queue) = mpsc::channel::<Message>(QUEUE);
    let writing = tokio::spawn(async move {
        while let Some(message) = queue.recv().await {
            if !matches!(timeout(STALLED, sink.send(message)).await, Ok(Ok(()))) {
                return;
            }
        }
        // The client may have gone already.
        let _ = timeout(STALLED, sink.send(normal_close())).await;
    });
    let mut inputs: [Option<WriteHalf<DuplexStream>>; CHANNELS] = Default::default();
    let mut outputs = JoinSet::new();
    let mut greeted = false;
    for (channel, stream) in ours.into_iter().enumerate() {
        let Some(stream) = stream else { continue };
        let (reader, writer) = tokio::io::split(stream);
        if matches!(channel, 0 | 4) {
            inputs[channel] = Some(writer);
            continue;
        }
        let number = channel as u8;
        if !std::mem::replace(&mut greeted, true) {
            // Tells the client that the command is being run.
            let _ = messages.send(message(protocol, number, b"")).await;
        }
        outputs.spawn(pump(reader, messages.clone(), move |bytes| {
            message(protocol, number, bytes)
        }));
    }
    let taking = take(source, protocol, inputs);
    tokio::pin!(taking);
    let gone = tokio::select! {
        () = &mut taking => true,
        () = async { while outputs.join_next().await.is_some() {} } => false,
    };
    outputs.shutdown().await;
    drop(messages);
    // Ends with the queue.
    let _ = writing.await;
    if !gone {
        // A connection that is closed with bytes unread is reset, and what was sent may be lost.
        let _ = timeout(FAREWELL, taking).await;
    }
}

fn normal_close() -> Message {
    Message::Close(Some(CloseFrame {
        code: CloseCode::Normal,
        reason: Default::default(),
    }))
}

async fn take<S>(
    mut source: SplitStream<WebSocketStream<S>>,
    protocol: Channeled,
    mut inputs: [Option<WriteHalf<DuplexStream>>; CHANNELS],
) where
    S: AsyncRead + AsyncWrite + Unpin,
{
    while let Some(Ok(message)) = source.next().await {
        match read_message(protocol, message) {
            Said::Bytes(channel, bytes) => {
                let input = inputs
                    .get_mut(usize::from(channel))
                    .and_then(Option::as_mut);
                if let Some(input) = input {
                    // A command that has ended reads no more.
                    let _ = input.write_all(&bytes).await;
                }
            }
            Said::Close(channel) => {
                let input = inputs.get_mut(usize::from(channel)).and_then(Option::take);
                if let Some(mut input) = input {
                    let _ = input.shutdown().await;
                }
            }
            Said::Nothing => {}
        }
    }
}

async fn pump(
    mut from: ReadHalf<DuplexStream>,
    messages: mpsc::Sender<Message>,
    frame: impl Fn(&[u8]) -> Message + Send,
) {
    let mut buffer = vec![0; CHUNK];
    loop {
        match from.read(&mut buffer).await {
            Ok(count) if count > 0 => {
                if messages.send(frame(&buffer[..count])).await.is_err() {
                    return;
                }
            }
            _ => return,
        }
    }
}

/// A byte stream through the messages of a WebSocket.
pub(super) fn tunnel<S>(io: S) -> DuplexStream
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (ours, theirs) = tokio::io::duplex(HELD);
    tokio::spawn(async move {
        let (mut sink, mut source) = socket(io).await.split();
        let (mut reader, mut writer) = tokio::io::split(ours);
        let down = async {
            let mut buffer = vec![0; CHUNK];
            while let Ok(count) = reader.read(&mut buffer).await {
                if count == 0 {
                    break;
                }
                let message = Message::binary(Bytes::copy_from_slice(&buffer[..count]));
                if !matches!(timeout(STALLED, sink.send(message)).await, Ok(Ok(()))) {
                    return;
                }
            }
            // The client may have gone already.
            let _ = timeout(STALLED, sink.send(normal_close())).await;
        };
        let up = async {
            while let Some(Ok(message)) = source.next().await {
                if let Message::Binary(bytes) = message
                    && writer.write_all(&bytes).await.is_err()
                {
                    break;
                }
            }
            // The session that reads it may have ended.
            let _ = writer.shutdown().await;
        };
        tokio::join!(down, up);
    });
    theirs
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(protocols: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        let value = HeaderValue::from_str(protocols).unwrap();
        headers.insert(header::SEC_WEBSOCKET_PROTOCOL, value);
        headers
    }

    #[test]
    fn the_best_common_protocol_is_chosen() {
        let chosen = |protocols| command_protocol(&headers(protocols)).map(|p| p.name);
        assert_eq!(
            chosen("v4.channel.k8s.io, v5.channel.k8s.io"),
            Some("v5.channel.k8s.io")
        );
        assert_eq!(
            chosen("base64.channel.k8s.io"),
            Some("base64.channel.k8s.io")
        );
        assert_eq!(chosen("v6.channel.k8s.io"), None);
    }

    #[test]
    fn messages_say_which_channel() {
        let [v5, v4, base64, _] = COMMANDS;
        assert_eq!(
            read_message(v5, message(v5, 1, b"out")),
            Said::Bytes(1, "out".into())
        );
        assert_eq!(
            read_message(base64, message(base64, 2, b"err")),
            Said::Bytes(2, "err".into())
        );
        let close = || Message::binary(vec![CLOSE, 0]);
        assert_eq!(read_message(v5, close()), Said::Close(0));
        assert_eq!(
            read_message(v4, close()),
            Said::Bytes(CLOSE, vec![0].into())
        );
        assert_eq!(read_message(v5, Message::binary(Vec::new())), Said::Nothing);
        assert_eq!(read_message(base64, Message::text("0?")), Said::Nothing);
    }

    #[tokio::test]
    async fn input_ends_when_the_client_says_so() {
        let (client, server) = tokio::io::duplex(1 << 16);
        let mut client = WebSocketStream::from_raw_socket(client, Role::Client, None).await;
        let wanted = [true, true, false, true, false];
        let (streams, serving) = channels(server, COMMANDS[0], wanted);
        let serving = tokio::spawn(serving);
        let [stdin, stdout, _, error, _] = streams;
        for bytes in [&b"\x00ask"[..], b"\xff\x00"] {
            client.send(Message::binary(bytes.to_vec())).await.unwrap();
        }
        let mut asked = String::new();
        stdin.unwrap().read_to_string(&mut asked).await.unwrap();
        assert_eq!(asked, "ask");
        stdout.unwrap().write_all(b"answer").await.unwrap();
        drop(error);
        let mut got = Vec::new();
        while let Some(Ok(message)) = client.next().await {
            if let Message::Binary(bytes) = message {
                got.push(bytes);
            }
        }
        assert_eq!(got, [&b"\x01"[..], b"\x01answer"]);
        serving.await.unwrap();
    }
}
