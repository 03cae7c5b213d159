//! What a connection through the tunnel keeps: every byte to the end, each direction by itself; and what is left when a process dies or
//! peers misbehave: nothing.

use super::pair::{Authority, Pair};
use crate::fixture::{Scratch, eventually};
use std::{
    io::{ErrorKind, Read, Write},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener},
    os::unix::net::UnixStream,
    path::Path,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};
use yurt_telemetry::process_usage;

const NODE: Ipv4Addr = Ipv4Addr::new(127, 80, 0, 1);
const PATIENCE: Duration = Duration::from_secs(30);
/// Connections written and closed at once.
const CLOSES: usize = 1000;

/// A server, an agent, and a listener on a kubelet's port of its node.
struct Stage {
    pair: Pair,
    listener: TcpListener,
    _scratch: Scratch,
}

impl Stage {
    fn start() -> Self {
        let scratch = Scratch::new();
        let authority = Authority::new(scratch.path());
        // The port of a kubelet is on the usual allow-list; the address is nobody else's.
        let listener = TcpListener::bind((NODE, 0)).unwrap();
        let target = listener.local_addr().unwrap();
        let pair = Pair::start_for(scratch.path(), &authority, NODE.into(), &[target]);
        let stage = Self {
            pair,
            listener,
            _scratch: scratch,
        };
        eventually("the agent is connected", || stage.connect().is_some());
        // Those that it took to find out.
        stage.listener.set_nonblocking(true).unwrap();
        while stage.listener.accept().is_ok() {}
        stage.listener.set_nonblocking(false).unwrap();
        stage
    }

    fn target(&self) -> SocketAddr {
        self.listener.local_addr().unwrap()
    }

    fn connect(&self) -> Option<UnixStream> {
        connect(&self.pair.socket(), self.target()).ok()
    }
}

/// CONNECT by a server's socket; the error is the answer's head.
fn connect(socket: &Path, target: SocketAddr) -> Result<UnixStream, String> {
    let stream = UnixStream::connect(socket).map_err(|error| error.to_string())?;
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    asked(stream, target, "")
}

/// CONNECT with further headers.
pub(super) fn asked<S: Read + Write>(
    mut stream: S,
    target: SocketAddr,
    headers: &str,
) -> Result<S, String> {
    let asked = format!("CONNECT {target} HTTP/1.1\r\nHost: x\r\n{headers}\r\n");
    stream
        .write_all(asked.as_bytes())
        .map_err(|error| error.to_string())?;
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read(&mut byte) {
            Ok(1) => head.push(byte[0]),
            other => {
                return Err(format!(
                    "{other:?} after {}",
                    String::from_utf8_lossy(&head)
                ));
            }
        }
    }
    match head.starts_with(b"HTTP/1.1 200") {
        true => Ok(stream),
        false => Err(String::from_utf8_lossy(&head).into_owned()),
    }
}

#[test]
fn what_is_written_before_the_close_arrives_a_thousand_times() {
    let stage = Stage::start();
    let listener = stage.listener.try_clone().unwrap();
    let sink = thread::spawn(move || {
        let mut lengths = Vec::new();
        for _ in 0..CLOSES {
            let (mut stream, _) = listener.accept().unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            let mut all = Vec::new();
            stream.read_to_end(&mut all).unwrap();
            lengths.push(all.len());
        }
        lengths
    });
    // Small ones, and some that fill every buffer on the way.
    let length = |number: usize| match number % 100 {
        0 => 4 << 20,
        1..10 => 200 << 10,
        _ => 1000 + number,
    };
    for number in 0..CLOSES {
        let mut stream = stage.connect().unwrap();
        stream.write_all(&vec![b'y'; length(number)]).unwrap();
        // Closed at once: nobody waits for anything.
        drop(stream);
    }
    let mut arrived = sink.join().unwrap();
    let mut sent: Vec<usize> = (0..CLOSES).map(length).collect();
    arrived.sort_unstable();
    sent.sort_unstable();
    assert_eq!(arrived, sent);
}

#[test]
fn each_direction_ends_by_itself() {
    let stage = Stage::start();
    for _ in 0..40 {
        let mut client = stage.connect().unwrap();
        let (mut target, _) = stage.listener.accept().unwrap();
        target.set_read_timeout(Some(PATIENCE)).unwrap();
        client.write_all(b"the question").unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        let mut heard = String::new();
        target.read_to_string(&mut heard).unwrap();
        assert_eq!(heard, "the question");
        target.write_all(b"and the answer").unwrap();
        drop(target);
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, "and the answer");
    }
}

/// Descriptors that server and agent have open, and their memory.
fn usage(stage: &Stage) -> [(u64, u64); 2] {
    stage.pair.pids().map(|pid| {
        let usage = process_usage(Some(pid)).unwrap();
        (usage.open_fds, usage.resident_bytes)
    })
}

#[test]
fn nothing_is_left_of_connections_however_they_end() {
    let stage = Stage::start();
    let listener = stage.listener.try_clone().unwrap();
    // Reads some and closes, closes at once, or holds on until the other end is gone.
    thread::spawn(move || {
        for number in 0usize.. {
            let Ok((mut stream, _)) = listener.accept() else {
                return;
            };
            thread::spawn(move || {
                let mut some = [0; 512];
                let _ = match number % 4 {
                    0 => Ok(0),
                    1 => stream.read(&mut some),
                    2 => stream.write(&some).and_then(|_| stream.read(&mut some)),
                    _ => std::io::copy(&mut stream, &mut std::io::sink()).map(|n| n as usize),
                };
            });
        }
    });
    let round = || {
        for number in 0..200 {
            let Some(mut stream) = stage.connect() else {
                panic!("not connected");
            };
            // Some just leave, some write, some ask for an end, some send what is no request.
            let _ = match number % 3 {
                0 => Ok(()),
                1 => stream.write_all(&[b'y'; 100_000]),
                _ => stream.shutdown(Shutdown::Write),
            };
        }
        for garbage in [
            &b"\x16\x03\x01nonsense"[..],
            b"GET / HTTP/1.1\r\n\r\n",
            b"CONNECT : HTTP/1.1\r\n\r\n",
            b"",
        ] {
            let mut stream = UnixStream::connect(stage.pair.socket()).unwrap();
            let _ = stream.write_all(garbage);
        }
        // Where nobody listens, and what may not be asked for.
        for target in [
            SocketAddr::from((NODE, 1)),
            SocketAddr::from((Ipv4Addr::new(10, 255, 255, 1), 80)),
        ] {
            assert!(connect(&stage.pair.socket(), target).is_err());
        }
    };
    let settled = |what: &str, most: [(u64, u64); 2]| {
        eventually(what, || {
            let now = usage(&stage);
            now.iter().zip(&most).all(|(now, most)| now.0 <= most.0)
        });
    };
    // The first round fills pools and caches.
    round();
    thread::sleep(Duration::from_secs(2));
    let before = usage(&stage);
    for _ in 0..4 {
        round();
    }
    settled(
        "no descriptor is left",
        before.map(|(files, memory)| (files + 4, memory)),
    );
    // Of 800 connections more, less than what 100 would hold on to.
    for ((_, before), (_, after)) in before.iter().zip(usage(&stage)) {
        assert!(after < before + (16 << 20), "{before} bytes, then {after}");
    }
}

#[test]
fn a_killed_server_or_agent_is_replaced_within_seconds() {
    let mut stage = Stage::start();
    for kill_server in [true, false] {
        let mut client = stage.connect().unwrap();
        let (mut target, _) = stage.listener.accept().unwrap();
        target.set_read_timeout(Some(PATIENCE)).unwrap();
        client.write_all(b"x").unwrap();
        target.read_exact(&mut [0]).unwrap();
        let killed = Instant::now();
        stage.pair.kill(kill_server);
        // Both ends are told, and soon.
        let (tell, told) = mpsc::channel();
        for mut end in [Box::new(client) as Box<dyn Read + Send>, Box::new(target)] {
            let tell = tell.clone();
            thread::spawn(move || {
                let _ = match end.read(&mut [0]) {
                    Ok(0) => tell.send(true),
                    Err(error) => tell.send(error.kind() != ErrorKind::WouldBlock),
                    Ok(_) => tell.send(false),
                };
            });
        }
        for _ in 0..2 {
            assert!(told.recv_timeout(PATIENCE).unwrap(), "an end was not told");
        }
        stage.pair.again(kill_server);
        eventually("connections are to be had again", || {
            stage.connect().is_some()
        });
        assert!(killed.elapsed() < PATIENCE);
        stage.listener.set_nonblocking(true).unwrap();
        while stage.listener.accept().is_ok() {}
        stage.listener.set_nonblocking(false).unwrap();
    }
}
