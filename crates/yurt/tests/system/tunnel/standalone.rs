//! The tunnel without Kubernetes, as `docs/tunnel.md` tells it: a server, a token, an agent; both ways through it, the questions to it,
//! and its ends.

use super::sessions::asked;
use crate::{
    fixture::{Scratch, eventually, free_port, signal, text, yurt},
    real_node::Service,
};
use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

const NODE: &str = "shop-1";
const HEADER: &str = "X-Tunnel-Proxy-Host: shop-1\r\n";
const PATIENCE: Duration = Duration::from_secs(30);

fn local(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

/// Somebody who sends back what he is sent, until the end.
fn echo() -> SocketAddr {
    let listener = TcpListener::bind(local(0)).unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let mut back = stream.try_clone().unwrap();
                let _ = std::io::copy(&mut &stream, &mut back);
                let _ = stream.shutdown(Shutdown::Write);
            });
        }
    });
    address
}

/// What comes back of `said`; an error where the connection breaks.
fn said(mut stream: impl Read + Write, said: &str) -> std::io::Result<String> {
    stream.write_all(said.as_bytes())?;
    let mut heard = vec![0; said.len()];
    stream.read_exact(&mut heard)?;
    Ok(text(&heard))
}

struct Tunnel {
    server: Service,
    agent: Service,
    /// On the node, and in the cloud; both allowed.
    target: SocketAddr,
    /// On the agent.
    reverse: SocketAddr,
    route: SocketAddr,
    scratch: Scratch,
}

fn output(command: &mut Command) -> (bool, String) {
    let output = command.output().unwrap();
    let all = text(&output.stdout) + &text(&output.stderr);
    (output.status.success(), all)
}

impl Tunnel {
    fn start() -> Self {
        let scratch = Scratch::new();
        let at = {
            let dir = scratch.path().to_owned();
            move |name: &str| dir.join(name)
        };
        let target = echo();
        let (port, meta) = (free_port(), free_port());
        let (data, socket) = (at("data"), at("frontend.sock"));
        let server = Service::start(at("server.log"), {
            let (data, socket) = (data.clone(), socket.clone());
            move || {
                let mut command = yurt();
                command
                    .args(["tunnel", "server", "--standalone"])
                    .args([
                        "--bind-address=127.0.0.1",
                        "--graceful-shutdown-timeout=20s",
                    ])
                    .arg(format!("--agent-port={port}"))
                    .arg(format!("--meta-port={meta}"))
                    .arg(format!("--data-dir={}", data.display()))
                    .arg(format!("--uds-name={}", socket.display()))
                    .arg(format!("--cloud-allow={target}"));
                command
            }
        });
        eventually("the server listens", || {
            UnixStream::connect(&socket).is_ok()
        });
        let mut command = yurt();
        command.args(["tunnel", "token", "--data-dir"]).arg(&data);
        let (made, token) = output(&mut command);
        assert!(made, "{token}");
        let (reverse, route) = (local(free_port()), local(free_port()));
        let kept = at("agent");
        let agent = Service::start(at("agent.log"), move || {
            let mut command = yurt();
            command
                .args(["tunnel", "agent", "--standalone", "--meta-port=0"])
                .arg(format!("--node-name={NODE}"))
                .arg(format!("--server=127.0.0.1:{port}"))
                .arg(format!("--allow={target}"))
                .arg(format!("--token={}", token.trim()))
                .arg(format!("--cert-dir={}", kept.display()))
                .arg(format!("--reverse-listen={reverse}"))
                .arg(format!("--route={route}={target}"));
            command
        });
        let mut tunnel = Self {
            server,
            agent,
            target,
            reverse,
            route,
            scratch,
        };
        tunnel.works();
        tunnel
    }

    fn socket(&self) -> PathBuf {
        self.scratch.path().join("frontend.sock")
    }

    fn connect(&self) -> Result<UnixStream, String> {
        let stream = UnixStream::connect(self.socket()).map_err(|error| error.to_string())?;
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        asked(stream, self.target, HEADER)
    }

    /// Both ways, sooner or later.
    fn works(&mut self) {
        eventually("the cloud reaches the node", || {
            self.server.must_run();
            self.agent.must_run();
            let stream = self.connect();
            stream.is_ok_and(|stream| said(stream, "down").is_ok_and(|heard| heard == "down"))
        });
        eventually("the node reaches the cloud", || {
            let stream = TcpStream::connect(self.route);
            stream.is_ok_and(|stream| said(stream, "up").is_ok_and(|heard| heard == "up"))
        });
    }

    fn ask(&self, words: &[&str]) -> (bool, String) {
        let mut command = yurt();
        command.arg("tunnel").args(words);
        output(command.arg("--uds-name").arg(self.socket()))
    }
}

/// A command that runs until it is dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn forward(socket: &Path, port: u16) -> (Running, SocketAddr) {
    let mut command = yurt();
    command.args(["tunnel", "forward", NODE, &format!(":{port}"), "--uds-name"]);
    let child = command.arg(socket).stdout(Stdio::piped()).spawn();
    let mut running = Running(child.unwrap());
    let mut line = String::new();
    let told = BufReader::new(running.0.stdout.take().unwrap()).read_line(&mut line);
    told.unwrap();
    let at = line
        .strip_prefix("Forwarding from ")
        .and_then(|rest| rest.split(' ').next());
    let at = at.unwrap_or_else(|| panic!("{line}")).parse().unwrap();
    (running, at)
}

#[test]
fn an_agent_joins_by_a_token_and_both_ways_are_open() {
    let tunnel = Tunnel::start();
    let (held, status) = tunnel.ask(&["status"]);
    assert!(
        held && status.contains(NODE) && status.contains("mux"),
        "{status}"
    );
    let (held, explained) = tunnel.ask(&["explain", NODE]);
    assert!(
        held && explained.contains("agent shop-1 dials"),
        "{explained}"
    );
    let (held, explained) = tunnel.ask(&["explain", "shop-2"]);
    assert!(
        !held && explained.contains("none of the 1 agents"),
        "{explained}"
    );
    let (_running, forwarded) = forward(&tunnel.socket(), tunnel.target.port());
    let stream = TcpStream::connect(forwarded).unwrap();
    assert_eq!(said(stream, "by forward").unwrap(), "by forward");
    // What nobody allowed, down and up.
    let other = local(free_port());
    let stream = UnixStream::connect(tunnel.socket()).unwrap();
    let refused = asked(stream, other, HEADER).unwrap_err();
    assert!(refused.starts_with("HTTP/1.1 403"), "{refused}");
    let reverse = || TcpStream::connect(tunnel.reverse).unwrap();
    let stream = asked(reverse(), tunnel.target, "").unwrap();
    assert_eq!(said(stream, "by CONNECT").unwrap(), "by CONNECT");
    let refused = asked(reverse(), other, "").unwrap_err();
    assert!(refused.starts_with("HTTP/1.1 403"), "{refused}");
    // SOCKS5 (RFC 1928): no authentication, an IPv4 address.
    let mut stream = reverse();
    stream.write_all(&[5, 1, 0]).unwrap();
    let mut chosen = [0; 2];
    stream.read_exact(&mut chosen).unwrap();
    assert_eq!(chosen, [5, 0]);
    let mut request = vec![5, 1, 0, 1, 127, 0, 0, 1];
    request.extend(tunnel.target.port().to_be_bytes());
    stream.write_all(&request).unwrap();
    let mut reply = [0; 10];
    stream.read_exact(&mut reply).unwrap();
    assert_eq!(reply[..2], [5, 0]);
    assert_eq!(said(stream, "by SOCKS").unwrap(), "by SOCKS");
}

#[test]
fn what_was_killed_comes_back_without_its_token() {
    let mut tunnel = Tunnel::start();
    for _ in 0..2 {
        tunnel.agent.kill();
        // The token was for one use: the certificate is there.
        tunnel.agent.again();
        tunnel.works();
        tunnel.server.kill();
        tunnel.server.again();
        tunnel.works();
    }
}

#[test]
fn a_server_that_is_told_to_stop_lets_connections_end() {
    let tunnel = Tunnel::start();
    let mut open = tunnel.connect().unwrap();
    assert_eq!(said(&mut open, "before").unwrap(), "before");
    let told = Instant::now();
    signal(tunnel.server.pid(), rustix::process::Signal::TERM);
    eventually("nobody new is let in", || tunnel.connect().is_err());
    assert_eq!(
        said(&mut open, "while it drains").unwrap(),
        "while it drains"
    );
    drop(open);
    let process = PathBuf::from(format!("/proc/{}/stat", tunnel.server.pid()));
    eventually("the server ends when nothing is open", || {
        let stat = std::fs::read_to_string(&process).unwrap_or_default();
        // Not waited for yet: a zombie.
        stat.is_empty() || stat.contains(") Z ")
    });
    assert!(
        told.elapsed() < Duration::from_secs(15),
        "{:?}",
        told.elapsed()
    );
}

#[test]
fn an_agent_that_is_told_to_stop_lets_connections_end() {
    let tunnel = Tunnel::start();
    let mut open = tunnel.connect().unwrap();
    assert_eq!(said(&mut open, "before").unwrap(), "before");
    signal(tunnel.agent.pid(), rustix::process::Signal::TERM);
    eventually("nobody new is led there", || tunnel.connect().is_err());
    assert_eq!(
        said(&mut open, "while it drains").unwrap(),
        "while it drains"
    );
    drop(open);
    let process = PathBuf::from(format!("/proc/{}/stat", tunnel.agent.pid()));
    eventually("the agent ends when nothing is open", || {
        let stat = std::fs::read_to_string(&process).unwrap_or_default();
        stat.is_empty() || stat.contains(") Z ")
    });
}
