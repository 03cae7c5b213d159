//! Exchanges with konnectivity's own programs and those of OpenYurt's fork, as `tests/konnectivity.rs` recorded them: `!` HTTP/2 frames
//! of theirs before their first message, `<` messages of theirs, `>` messages of ours. They are played again to all three roles of ours,
//! which must say the same as then.

use super::{agent::connect, packet::Packet, server::serve, tests::Door};
use crate::{
    grpc::Frames,
    link::{DialError, Link, Tunnels},
    session::{Options, Session},
    twin::{self, Answers, echo, to},
};
use bytes::{Bytes, BytesMut};
use std::{collections::HashMap, io, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
    sync::mpsc,
    task::JoinHandle,
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use yurt_transport::{BoxStream, Destination};

const SOON: Duration = Duration::from_secs(10);
/// What an HTTP/2 client begins with, and settings of nothing.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const DATA: u8 = 0;
const HEADERS: u8 = 1;

struct Recording {
    /// Theirs, whole.
    frames: Vec<u8>,
    lines: Vec<Line>,
}

struct Line {
    theirs: bool,
    packet: Packet,
}

fn recording(text: &str) -> Recording {
    let mut frames = Vec::new();
    let mut lines = Vec::new();
    for line in text.lines() {
        let (mark, hex) = line.split_at(1);
        let bytes: Vec<u8> = (0..hex.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap())
            .collect();
        if mark == "!" {
            frames.extend(bytes);
            continue;
        }
        let message = Bytes::from(bytes);
        let packet = Packet::decode(&message).unwrap().unwrap();
        // Byte for byte as the other implementation writes it.
        assert_eq!(wire(&packet)[5..], message[..], "{packet:?}");
        lines.push(Line {
            theirs: mark == "<",
            packet,
        });
    }
    Recording { frames, lines }
}

fn wire(packet: &Packet) -> BytesMut {
    let mut wire = BytesMut::new();
    packet.encode(&mut wire);
    wire
}

/// Their end of the connection, without any HTTP/2 of its own.
struct Theirs {
    io: DuplexStream,
    messages: Frames,
}

impl Theirs {
    fn new(io: DuplexStream) -> Self {
        Self {
            io,
            messages: Frames::default(),
        }
    }

    async fn frame(&mut self) -> (u8, Vec<u8>) {
        let mut head = [0; 9];
        let read = timeout(SOON, self.io.read_exact(&mut head)).await;
        read.expect("ours says nothing").unwrap();
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let mut payload = vec![0; length];
        self.io.read_exact(&mut payload).await.unwrap();
        (head[3], payload)
    }

    async fn until_headers(&mut self) {
        while self.frame().await.0 != HEADERS {}
    }

    async fn say(&mut self, packet: &Packet) {
        let message = wire(packet);
        let length = u32::try_from(message.len()).unwrap().to_be_bytes();
        let mut frame = length[1..].to_vec();
        frame.extend([DATA, 0, 0, 0, 0, 1]);
        frame.extend(message);
        self.io.write_all(&frame).await.unwrap();
    }

    async fn hear(&mut self) -> Packet {
        loop {
            if let Some(message) = self.messages.next().unwrap() {
                return Packet::decode(&message).unwrap().unwrap();
            }
            if let (DATA, payload) = self.frame().await {
                self.messages.push(&payload);
            }
        }
    }
}

fn our_server(
    tunnels: Option<Arc<dyn Tunnels>>,
) -> (Theirs, mpsc::UnboundedReceiver<Arc<dyn Link>>) {
    let (ours, theirs) = duplex(64 << 10);
    let (came, coming) = mpsc::unbounded_channel();
    let door = Arc::new(Door { came, tunnels });
    let (us, stop) = (twin::server_hello("yurt-1"), CancellationToken::new());
    tokio::spawn(serve(Box::new(ours), us, door, Options::default(), stop));
    (Theirs::new(theirs), coming)
}

type Dial = JoinHandle<Result<BoxStream, DialError>>;

/// Our server asks again what it asked then; the numbers of dials are of now.
async fn play_agent(text: &str) {
    let Recording { frames, lines } = recording(text);
    let (mut theirs, mut coming) = our_server(None);
    theirs.io.write_all(PREFACE).await.unwrap();
    theirs.io.write_all(&frames).await.unwrap();
    let link = timeout(SOON, coming.recv()).await.unwrap().unwrap();
    let hello = link.hello();
    assert_eq!(hello.id, "edge-1");
    assert_eq!(hello.identifiers.to_string(), "ipv4=127.0.0.1&host=edge-1");

    let mut dials: HashMap<i64, (i64, Dial)> = HashMap::new();
    let mut streams: HashMap<i64, BoxStream> = HashMap::new();
    let (mut refused, mut delivered) = (0, 0);
    for Line {
        theirs: by_them,
        packet,
    } in lines
    {
        if by_them {
            let outcome = match packet {
                Packet::DialResponse { random, id, error } => {
                    let (random, dial) = dials.remove(&random).unwrap();
                    let answer = Packet::DialResponse { random, id, error };
                    theirs.say(&answer).await;
                    Some((id, timeout(SOON, dial).await.unwrap().unwrap()))
                }
                packet => {
                    theirs.say(&packet).await;
                    if let Packet::Data { id, data } = packet {
                        let mut read = vec![0; data.len()];
                        let stream = streams.get_mut(&id).unwrap();
                        stream.read_exact(&mut read).await.unwrap();
                        assert_eq!(read, data);
                        delivered += data.len();
                    }
                    None
                }
            };
            match outcome {
                Some((id, Ok(stream))) => drop(streams.insert(id, stream)),
                Some((_, Err(error))) => {
                    assert!(matches!(&error, DialError::Failed(why) if why.contains("refused")));
                    refused += 1;
                }
                None => {}
            }
            continue;
        }
        match packet {
            Packet::DialRequest {
                random,
                address,
                protocol,
            } => {
                let (link, target) = (Arc::clone(&link), address.clone());
                let dial = tokio::spawn(async move { link.dial(&to(&target)).await });
                let Packet::DialRequest {
                    random: now,
                    address: target,
                    protocol: by,
                } = theirs.hear().await
                else {
                    panic!("no dial");
                };
                assert_eq!((target, by), (address, protocol));
                dials.insert(random, (now, dial));
                continue;
            }
            Packet::Data { id, ref data } => {
                let stream = streams.get_mut(&id).unwrap();
                stream.write_all(data).await.unwrap();
                stream.flush().await.unwrap();
            }
            Packet::CloseRequest { id } => drop(streams.remove(&id)),
            ref other => panic!("we never say {other:?}"),
        }
        assert_eq!(theirs.hear().await, packet);
    }
    assert_eq!((refused, delivered), (1, 4));
    assert_eq!((link.connections(), streams.len(), dials.len()), (0, 0, 0));
}

#[tokio::test]
async fn konnectivitys_agent_is_understood() {
    play_agent(include_str!("../../tests/konnectivity/agent.packets")).await;
}

#[tokio::test]
async fn the_forks_agent_is_understood() {
    play_agent(include_str!("../../tests/konnectivity/fork-agent.packets")).await;
}

/// What they say, and what we then say, in turn; the text of an error is the system's.
async fn play(theirs: &mut Theirs, lines: Vec<Line>) -> usize {
    let mut delivered = 0;
    // Data may come in other pieces than then.
    let mut awaited = HashMap::<i64, Vec<u8>>::new();
    for Line {
        theirs: by_them,
        packet,
    } in lines
    {
        if by_them {
            theirs.say(&packet).await;
            continue;
        }
        match packet {
            Packet::Data { id, data } => {
                let heard = awaited.entry(id).or_default();
                while heard.len() < data.len() {
                    let Packet::Data { id: of, data } = theirs.hear().await else {
                        panic!("no data");
                    };
                    assert_eq!(of, id);
                    heard.extend(data);
                }
                let rest = heard.split_off(data.len());
                assert_eq!(std::mem::replace(heard, rest), data);
                delivered += data.len();
            }
            Packet::DialResponse { random, id, error } => {
                let Packet::DialResponse {
                    random: of,
                    id: now,
                    error: why,
                } = theirs.hear().await
                else {
                    panic!("no answer");
                };
                assert_eq!((of, now, why.is_empty()), (random, id, error.is_empty()));
            }
            packet => assert_eq!(theirs.hear().await, packet),
        }
    }
    delivered
}

async fn play_server(text: &str) {
    let Recording { frames, lines } = recording(text);
    let (ours, theirs) = duplex(64 << 10);
    let mut theirs = Theirs::new(theirs);
    let targets = Answers(async |destination: Destination| {
        if destination.port == 1 {
            return Err(io::Error::from_raw_os_error(111));
        }
        let (ours, theirs) = duplex(1 << 10);
        tokio::spawn(echo(theirs));
        Ok(Box::new(ours) as BoxStream)
    });
    let hello = twin::agent_hello("edge-2");
    let (options, stop) = (Options::default(), CancellationToken::new());
    let connecting = connect(
        Box::new(ours),
        hello,
        Arc::new(targets),
        None,
        options,
        stop,
    );
    let answering = async {
        theirs.io.read_exact(&mut [0; PREFACE.len()]).await.unwrap();
        theirs.until_headers().await;
        theirs.io.write_all(&frames).await.unwrap();
    };
    let (session, ()) = tokio::join!(connecting, answering);
    let session: Session = session.unwrap();
    assert_eq!((session.server.id.len(), session.server.count), (36, 1));
    assert_eq!(play(&mut theirs, lines).await, 4);
    while session.connections() > 0 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn konnectivitys_server_is_understood() {
    play_server(include_str!("../../tests/konnectivity/server.packets")).await;
}

#[tokio::test]
async fn the_forks_server_is_understood() {
    play_server(include_str!("../../tests/konnectivity/fork-server.packets")).await;
}

/// kube-apiserver's library: its `:authority` is the path of the socket, which HTTP/2 libraries refuse.
#[tokio::test]
async fn konnectivitys_client_is_understood() {
    let text = include_str!("../../tests/konnectivity/frontend.packets");
    let Recording { frames, lines } = recording(text);
    let said = |by_them: bool| {
        let of = lines.iter().filter(move |line| line.theirs == by_them);
        of.flat_map(|line| match &line.packet {
            Packet::Data { data, .. } => data.to_vec(),
            _ => Vec::new(),
        })
        .collect::<Vec<u8>>()
    };
    let (question, answer) = (said(true), said(false));
    assert!(question.starts_with(b"GET /all HTTP/1.1\r\n"));
    let target = Arc::new(Answers(move |_: Destination| {
        let (question, answer) = (question.clone(), answer.clone());
        let (ours, mut theirs) = duplex(1 << 10);
        tokio::spawn(async move {
            let mut asked = vec![0; question.len()];
            theirs.read_exact(&mut asked).await.unwrap();
            assert_eq!(asked, question);
            theirs.write_all(&answer).await.unwrap();
        });
        std::future::ready(Ok(Box::new(ours) as BoxStream))
    }));
    let (mut theirs, _coming) = our_server(Some(target));
    theirs.io.write_all(PREFACE).await.unwrap();
    theirs.io.write_all(&frames).await.unwrap();
    assert!(play(&mut theirs, lines).await > 100);
}
