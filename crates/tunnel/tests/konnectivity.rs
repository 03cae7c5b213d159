//! konnectivity's own programs and ours, when `PROXY_SERVER`, `PROXY_AGENT` and `PROXY_TEST_CLIENT` name its `proxy-server`,
//! `proxy-agent` and test client; what they said to each other once is in `konnectivity/*.packets` and replayed always by the unit tests
//! of `anp`. `RECORD_PACKETS=DIR` records anew.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Stdio,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    process::{Child, Command},
    sync::mpsc,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use yurt_pki::{Ca, Callers, KeyPairPem, Profile};
use yurt_transport::{BoxStream, Destination, TcpDialer};
use yurt_tunnel::{
    AgentHello, Link, Opening, Options, ServerHello, Tunnels,
    anp::{
        agent::connect,
        server::{Refused, Welcome, serve},
    },
};

const PATIENCE: Duration = Duration::from_secs(30);

/// The program that a variable names; none: the test is skipped, and says so.
fn program(variable: &str) -> Option<PathBuf> {
    let path = std::env::var_os(variable).map(PathBuf::from);
    if path.is_none() {
        eprintln!("SKIPPED: {variable} names no program");
    }
    path
}

struct Pki {
    directory: tempfile::TempDir,
    ca: Ca,
}

impl Pki {
    fn new() -> Self {
        let pki = Self {
            directory: tempfile::tempdir().unwrap(),
            ca: Ca::new("tunnel-ca", 1).unwrap(),
        };
        std::fs::write(pki.path("ca.crt"), pki.ca.cert_pem()).unwrap();
        for name in ["server", "agent"] {
            let pair = pki.issue(name);
            std::fs::write(pki.path(&format!("{name}.crt")), pair.cert).unwrap();
            std::fs::write(pki.path(&format!("{name}.key")), pair.key).unwrap();
        }
        pki
    }

    fn path(&self, file: &str) -> PathBuf {
        self.directory.path().join(file)
    }

    fn issue(&self, name: &str) -> KeyPairPem {
        let profile = Profile {
            common_name: name.into(),
            organizations: Vec::new(),
            dns: vec!["localhost".into()],
            ips: vec![[127, 0, 0, 1].into()],
            client: true,
            server: true,
            days: 1,
        };
        self.ca.issue(&profile).unwrap()
    }
}

fn run(program: &Path, arguments: &[String]) -> Child {
    Command::new(program)
        .args(arguments)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap()
}

fn argument(name: &str, value: impl std::fmt::Display) -> String {
    format!("--{name}={value}")
}

/// Free ports below the range that konnectivity refuses.
async fn ports<const N: usize>() -> [u16; N] {
    let mut held = Vec::new();
    while held.len() < N {
        let port = 20_000 + fastrand::u16(..12_000);
        held.extend(TcpListener::bind(("127.0.0.1", port)).await);
    }
    std::array::from_fn(|index| held[index].local_addr().unwrap().port())
}

/// Sends back what it reads.
async fn echo() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut reading, mut writing) = stream.split();
                let _ = tokio::io::copy(&mut reading, &mut writing).await;
                let _ = writing.shutdown().await;
            });
        }
    });
    address
}

/// Reads to the end and tells how much there was.
async fn sink() -> (SocketAddr, mpsc::UnboundedReceiver<usize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (tell, told) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let tell = tell.clone();
            tokio::spawn(async move {
                let mut all = Vec::new();
                let _ = stream.read_to_end(&mut all).await;
                let _ = tell.send(all.len());
            });
        }
    });
    (address, told)
}

fn to(address: SocketAddr) -> Destination {
    address.to_string().parse().unwrap()
}

fn bytes(length: usize) -> Vec<u8> {
    (0..length).map(|index| (index % 251) as u8).collect()
}

async fn ping_pong(stream: BoxStream, data: &[u8]) {
    let (mut reading, mut writing) = tokio::io::split(stream);
    let mut answer = vec![0; data.len()];
    let (said, read) = tokio::join!(writing.write_all(data), reading.read_exact(&mut answer));
    said.unwrap();
    read.unwrap();
    assert!(answer == data);
}

struct Door {
    came: mpsc::UnboundedSender<Arc<dyn Link>>,
    tunnels: Option<Arc<dyn Tunnels>>,
}

impl Welcome for Door {
    fn agent<'a>(
        &'a self,
        _: &'a AgentHello,
        _: Option<&'a str>,
    ) -> futures_util::future::BoxFuture<'a, Result<(), Refused>> {
        Box::pin(std::future::ready(Ok(())))
    }
    fn registered(&self, link: Arc<dyn Link>) {
        let _ = self.came.send(link);
    }
    fn frontend(&self) -> Option<Arc<dyn Tunnels>> {
        self.tunnels.clone()
    }
}

/// What is opened directly.
#[derive(Debug)]
struct Direct;

impl Tunnels for Direct {
    fn open<'a>(&'a self, to: &'a Destination) -> Opening<'a> {
        Box::pin(async move { Ok(yurt_transport::Dialer::dial(&TcpDialer, to).await?) })
    }
}

fn us() -> ServerHello {
    ServerHello {
        id: "yurt-1".into(),
        count: 1,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unmodified_agent_works_with_our_server() {
    let Some(agent) = program("PROXY_AGENT") else {
        return;
    };
    let pki = Pki::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let config = yurt_pki::server_config_for(
        &pki.issue("yurt"),
        Callers::Certified(&pki.ca.cert_pem()),
        true,
    );
    let acceptor = tokio_rustls::TlsAcceptor::from(config.unwrap());
    let (came, mut coming) = mpsc::unbounded_channel();
    let tape = Tape::default();
    tokio::spawn({
        let tape = tape.clone();
        async move {
            while let Ok((stream, _)) = listener.accept().await {
                let Ok(stream) = acceptor.accept(stream).await else {
                    continue;
                };
                let door = Arc::new(Door {
                    came: came.clone(),
                    tunnels: None,
                });
                let io = tape.tap(Box::new(stream), true);
                tokio::spawn(serve(
                    Box::new(io),
                    us(),
                    door,
                    Options::default(),
                    CancellationToken::new(),
                ));
            }
        }
    });
    let [health, admin] = ports().await;
    let mut agent = run(
        &agent,
        &[
            argument("ca-cert", pki.path("ca.crt").display()),
            argument("agent-cert", pki.path("agent.crt").display()),
            argument("agent-key", pki.path("agent.key").display()),
            argument("proxy-server-host", "127.0.0.1"),
            argument("proxy-server-port", port),
            argument("health-server-port", health),
            argument("admin-server-port", admin),
            argument("agent-id", "edge-1"),
            argument("agent-identifiers", "ipv4=127.0.0.1&host=edge-1"),
        ],
    );
    let link = timeout(PATIENCE, coming.recv()).await.unwrap().unwrap();
    assert_eq!(link.hello().id, "edge-1");
    assert_eq!(
        link.hello().identifiers.to_string(),
        "ipv4=127.0.0.1&host=edge-1"
    );

    let echo = to(echo().await);
    ping_pong(link.dial(&echo).await.unwrap(), b"ping").await;
    let refused = link
        .dial(&"127.0.0.1:1".parse().unwrap())
        .await
        .err()
        .unwrap();
    assert!(refused.to_string().contains("refused"), "{refused}");
    tape.keep("agent.packets");

    let all: Vec<_> = (0..8)
        .map(|_| {
            let (link, echo) = (Arc::clone(&link), echo.clone());
            tokio::spawn(async move {
                ping_pong(link.dial(&echo).await.unwrap(), &bytes(2 << 20)).await
            })
        })
        .collect();
    for one in all {
        timeout(PATIENCE, one).await.unwrap().unwrap();
    }
    // Write, then close: konnectivity's own server delivers everything in half of the cases.
    let (sink, mut sunk) = sink().await;
    for round in 0..40 {
        let length = [1000, 200_000][round % 2];
        let mut stream = link.dial(&to(sink)).await.unwrap();
        stream.write_all(&bytes(length)).await.unwrap();
        stream.shutdown().await.unwrap();
        let closed = timeout(PATIENCE, stream.read(&mut [0])).await.unwrap();
        assert_eq!(closed.unwrap(), 0);
        assert_eq!(
            timeout(PATIENCE, sunk.recv()).await.unwrap().unwrap(),
            length,
            "round {round}"
        );
    }
    while link.connections() > 0 {
        sleep(Duration::from_millis(10)).await;
    }
    agent.kill().await.unwrap();
    timeout(PATIENCE, link.closed().cancelled()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn our_agent_works_with_the_unmodified_server() {
    let Some(server) = program("PROXY_SERVER") else {
        return;
    };
    let pki = Pki::new();
    let [port, health, admin] = ports().await;
    let socket = pki.path("frontend.sock");
    let mut server = run(
        &server,
        &[
            argument("mode", "http-connect"),
            argument("uds-name", socket.display()),
            argument("server-port", 0),
            argument("cluster-cert", pki.path("server.crt").display()),
            argument("cluster-key", pki.path("server.key").display()),
            argument("cluster-ca-cert", pki.path("ca.crt").display()),
            argument("agent-port", port),
            argument("agent-bind-address", "127.0.0.1"),
            argument("health-port", health),
            argument("admin-port", admin),
            argument("proxy-strategies", "destHost,default"),
        ],
    );
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let tcp = timeout(PATIENCE, async {
        loop {
            match TcpStream::connect(address).await {
                Ok(stream) => return stream,
                Err(_) => sleep(Duration::from_millis(50)).await,
            }
        }
    })
    .await
    .unwrap();
    yurt_tunnel::session::tune(&tcp).unwrap();
    let config = yurt_pki::client_config(
        &pki.ca.cert_pem(),
        Some(&pki.issue("agent")),
        &["yurt-tunnel/1", "h2"],
    );
    let connector = tokio_rustls::TlsConnector::from(config.unwrap());
    let name = rustls::pki_types::ServerName::try_from("127.0.0.1").unwrap();
    let tls = connector.connect(name, tcp).await.unwrap();
    assert_eq!(tls.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let hello = AgentHello {
        id: "edge-2".into(),
        identifiers: "ipv4=127.0.0.1&host=edge-2".parse().unwrap(),
        version: String::new(),
    };
    let tape = Tape::default();
    let io = tape.tap(Box::new(tls), false);
    let shutdown = CancellationToken::new();
    let mut session = connect(
        Box::new(io),
        hello,
        Arc::new(TcpDialer),
        None,
        Options::default(),
        shutdown.clone(),
    )
    .await
    .unwrap();
    assert_eq!(session.server.count, 1);

    let connect = async |to: String| {
        let mut stream = UnixStream::connect(&socket).await.unwrap();
        let request = format!("CONNECT {to} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(timeout(PATIENCE, stream.read_u8()).await.unwrap().unwrap());
        }
        (String::from_utf8(head).unwrap(), stream)
    };
    let echo = echo().await;
    let (head, stream) = connect(echo.to_string()).await;
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    ping_pong(Box::new(stream), b"ping").await;
    let (head, _) = connect("127.0.0.1:1".into()).await;
    assert!(head.starts_with("HTTP/1.1 502"), "{head}");
    tape.keep("server.packets");
    for _ in 0..4 {
        let (_, stream) = connect(echo.to_string()).await;
        ping_pong(Box::new(stream), &bytes(4 << 20)).await;
    }
    // Write, then close: our end of it loses nothing.
    let (sink, mut sunk) = sink().await;
    for round in 0..40 {
        let length = [1000, 200_000][round % 2];
        let (_, mut stream) = connect(sink.to_string()).await;
        stream.write_all(&bytes(length)).await.unwrap();
        drop(stream);
        assert_eq!(
            timeout(PATIENCE, sunk.recv()).await.unwrap().unwrap(),
            length,
            "round {round}"
        );
    }
    timeout(PATIENCE, async {
        while session.connections() > 0 {
            sleep(Duration::from_millis(10)).await;
        }
    })
    .await
    .unwrap();
    server.kill().await.unwrap();
    timeout(PATIENCE, session.ended()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn konnectivitys_client_works_with_our_frontend() {
    let Some(client) = program("PROXY_TEST_CLIENT") else {
        return;
    };
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("frontend.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (came, _) = mpsc::unbounded_channel();
            let door = Arc::new(Door {
                came,
                tunnels: Some(Arc::new(Direct)),
            });
            tokio::spawn(serve(
                Box::new(stream),
                us(),
                door,
                Options::default(),
                CancellationToken::new(),
            ));
        }
    });
    let origin = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = origin.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = origin.accept().await {
            tokio::spawn(async move {
                let _ = stream.read(&mut [0; 4096]).await;
                let body = "x".repeat(100_000);
                let answer = format!(
                    "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}",
                    body.len()
                );
                let _ = stream.write_all(answer.as_bytes()).await;
            });
        }
    });
    let output = Command::new(client)
        .args([
            argument("proxy-uds", socket.display()),
            argument("proxy-host", ""),
            argument("proxy-port", 0),
            argument("mode", "grpc"),
            argument("request-host", "127.0.0.1"),
            argument("request-port", port),
            argument("request-path", "all"),
            argument("test-requests", 3),
            argument("test-delay", 0),
        ])
        // It hangs up on any signal, also on those that Go's scheduler sends itself.
        .env("GODEBUG", "asyncpreemptoff=1")
        .kill_on_drop(true)
        .output();
    let output = timeout(PATIENCE, output).await.unwrap().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned()
        + &String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}");
    assert!(said.contains(&"x".repeat(1000)), "{said}");
}

/// The packets that went over a connection, when they are to be recorded.
#[derive(Clone, Default)]
struct Tape(Arc<Mutex<String>>);

impl Tape {
    /// Passes everything on, and notes the gRPC messages: `<` from the peer, `>` from us.
    fn tap(&self, peer: BoxStream, peer_is_client: bool) -> DuplexStream {
        let (ours, inner) = duplex(256 << 10);
        let (from_peer, to_peer) = tokio::io::split(peer);
        let (from_us, to_us) = tokio::io::split(inner);
        tokio::spawn(self.clone().copy(from_peer, to_us, '<', peer_is_client));
        tokio::spawn(self.clone().copy(from_us, to_peer, '>', !peer_is_client));
        ours
    }

    async fn copy(
        self,
        mut from: impl tokio::io::AsyncRead + Unpin,
        mut to: impl tokio::io::AsyncWrite + Unpin,
        mark: char,
        preface: bool,
    ) {
        let (mut piece, mut frames, mut messages) = (vec![0; 64 << 10], Vec::new(), Vec::new());
        let mut skip = if preface { 24 } else { 0 };
        while let Ok(count @ 1..) = from.read(&mut piece).await {
            frames.extend_from_slice(&piece[..count]);
            let skipped = skip.min(frames.len());
            frames.drain(..skipped);
            skip -= skipped;
            // HTTP/2 frames: three bytes of length, one of type (0 is DATA), five more.
            while frames.len() >= 9 {
                let length = usize::from(frames[0]) << 16
                    | usize::from(frames[1]) << 8
                    | usize::from(frames[2]);
                if frames.len() < 9 + length {
                    break;
                }
                let frame: Vec<u8> = frames.drain(..9 + length).collect();
                if frame[3] == 0 {
                    messages.extend_from_slice(&frame[9..]);
                }
            }
            while messages.len() >= 5 {
                let length = u32::from_be_bytes(messages[1..5].try_into().unwrap()) as usize;
                if messages.len() < 5 + length {
                    break;
                }
                let message: Vec<u8> = messages.drain(..5 + length).skip(5).collect();
                let hex: String = message.iter().map(|byte| format!("{byte:02x}")).collect();
                let mut tape = self.0.lock().unwrap();
                tape.push(mark);
                tape.push_str(&hex);
                tape.push('\n');
            }
            if to.write_all(&piece[..count]).await.is_err() || to.flush().await.is_err() {
                return;
            }
        }
        let _ = to.shutdown().await;
    }

    fn keep(&self, name: &str) {
        if let Some(directory) = std::env::var_os("RECORD_PACKETS") {
            std::fs::write(Path::new(&directory).join(name), &*self.0.lock().unwrap()).unwrap();
        }
    }
}
