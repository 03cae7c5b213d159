//! Konnectivity's own programs, and those of OpenYurt's fork of it, beside ours, when variables name them: `PROXY_SERVER`, `PROXY_AGENT`
//! and `PROXY_TEST_CLIENT` its `proxy-server`, `proxy-agent` and test client; `FORK_SERVER` and `FORK_AGENT` the fork's. What they once
//! said is in `konnectivity/*.packets` and replayed always by the unit tests of `anp`; `RECORD_PACKETS=DIR` records anew.
//! `SHOW_PEERS=1` shows what they log.

#[path = "konnectivity/judge.rs"]
mod judge;
#[path = "konnectivity/probes.rs"]
mod probes;
#[path = "konnectivity/programs.rs"]
mod programs;
#[path = "konnectivity/tape.rs"]
mod tape;

use judge::{ACCOUNT, AUDIENCE, TOKEN, judge};
use probes::{
    Stuck, bulk, closing, crowd, echo, ping_pong, raise_descriptors, stuck, tails_down, tails_up,
    told,
};
use programs::{Field, Make, PATIENCE, Pki, Process, argument, ports, program};
use std::{net::SocketAddr, path::Path, sync::Arc, time::Duration};
use tape::Tape;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    process::Command,
    sync::mpsc,
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use yurt_pki::Callers;
use yurt_transport::{Destination, TcpDialer};
use yurt_tunnel::{
    AgentHello, Link, Opening, Options, ServerHello, Session, SessionError, Tunnels,
    anp::{
        agent::connect,
        server::{Refused, Welcome, serve},
    },
};

/// As many as the acceptance list has.
const CROWD: usize = 1_000;
const CLOSES: usize = 1_000;

/// Everything that every pair with one of ours is to stand.
async fn stands(field: &Arc<Field>) {
    let echo = echo().await;
    let server = field.server();
    let agent = field.agent();
    field.ready(echo).await;
    bulk(field).await;
    closing(field).await;
    crowd(field, CROWD).await;
    tails_up(field, CLOSES).await;
    tails_down(field, CLOSES).await;

    let open = field.connect(echo).await.unwrap();
    let (server, agent) = (server, replaced(agent, || field.agent()).await);
    field.ready(echo).await;
    if field.tells() {
        told(open).await;
    }
    let open = field.connect(echo).await.unwrap();
    let server = replaced(server, || field.server()).await;
    told(open).await;
    field.ready(echo).await;
    bulk(field).await;
    agent.kill().await;
    server.kill().await;
}

async fn replaced(process: Process, again: impl Fn() -> Process) -> Process {
    process.kill().await;
    again()
}

/// A server and an agent of these makes, and whose standstill must not hurt others there: false where a program of theirs is missing.
async fn pairing(server: Make, agent: Make, harmless: &[Stuck]) -> bool {
    raise_descriptors();
    let Some(field) = Field::of(server, agent).await else {
        return false;
    };
    let field = Arc::new(field);
    stands(&field).await;
    let (_server, _agent) = (field.server(), field.agent());
    field.ready(echo().await).await;
    for &who in harmless {
        stuck(&field, who).await;
    }
    true
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn our_agent_and_our_server_by_konnectivitys_protocol() {
    assert!(pairing(Make::Ours, Make::Ours, &[Stuck::Caller, Stuck::Target]).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn konnectivitys_agent_and_our_server() {
    pairing(Make::Ours, Make::Konnectivity, &[Stuck::Caller]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn our_agent_and_konnectivitys_server() {
    pairing(Make::Konnectivity, Make::Ours, &[Stuck::Target]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_forks_agent_and_our_server() {
    pairing(Make::Ours, Make::Fork, &[Stuck::Caller]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn our_agent_and_the_forks_server() {
    pairing(Make::Fork, Make::Ours, &[Stuck::Target]).await;
}

/// Konnectivity's flags with nothing but a service account's token: of server and agent, in every pairing.
async fn by_token(server: Option<&Path>, agent: Option<&Path>) {
    let pki = Pki::new();
    let kubeconfig = pki.path("kubeconfig");
    judge(&kubeconfig).await;
    let [port, a, b, c, d] = ports().await;
    let socket = pki.path("frontend.sock");
    let token = pki.path("token");
    std::fs::write(&token, "somebody-else's").unwrap();
    let mut arguments = vec![
        argument("logtostderr", true),
        argument("uds-name", socket.display()),
        argument("delete-existing-uds-file", true),
        argument("cluster-cert", pki.path("server.crt").display()),
        argument("cluster-key", pki.path("server.key").display()),
        argument("mode", "http-connect"),
        argument("server-port", 0),
        argument("agent-port", port),
        argument("health-port", a),
        argument("admin-port", b),
        argument("keepalive-time", "1h"),
        argument("agent-namespace", ACCOUNT.0),
        argument("agent-service-account", ACCOUNT.1),
        argument("kubeconfig", kubeconfig.display()),
        argument("authentication-audience", AUDIENCE),
        argument("kube-api-content-type", "application/json"),
    ];
    if server.is_none() {
        // What the name `proxy-server` means.
        let name = [
            "server",
            "--egress-only",
            "--proxy-strategies=default",
            "--direct=never",
        ];
        let name = name.into_iter().chain(["--enable-lease-controller=false"]);
        arguments.splice(..0, name.map(str::to_owned));
    }
    let _server = Process::start(server, &arguments);
    let mut arguments = vec![
        argument("logtostderr", true),
        argument("ca-cert", pki.path("ca.crt").display()),
        argument("proxy-server-host", "127.0.0.1"),
        argument("proxy-server-port", port),
        argument("health-server-port", c),
        argument("admin-server-port", d),
        argument("service-account-token-path", token.display()),
        argument("agent-identifiers", "ipv4=127.0.0.1"),
    ];
    if agent.is_none() {
        arguments.insert(0, "agent".into());
        arguments.push(argument("allow", "127.0.0.1"));
        arguments.push(argument("cert-dir", pki.path("agent").display()));
    }
    let _agent = Process::start(agent, &arguments);
    let ready = async || {
        let mut stream = TcpStream::connect(("127.0.0.1", c)).await?;
        let request = "GET /readyz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
        stream.write_all(request.as_bytes()).await?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await?;
        Ok::<_, std::io::Error>(text.starts_with("HTTP/1.1 200"))
    };
    // Long enough for several tries with a token that is nobody's.
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(3) {
        if agent.is_none() {
            assert!(!ready().await.unwrap_or(false), "nobody's token was taken");
        }
        sleep(Duration::from_millis(100)).await;
    }
    std::fs::write(&token, TOKEN).unwrap();
    let echo = echo().await;
    let begun = Instant::now();
    loop {
        let asked = async {
            let mut stream = UnixStream::connect(&socket).await?;
            let request = format!("CONNECT {echo} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n");
            stream.write_all(request.as_bytes()).await?;
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await?);
            }
            let head = String::from_utf8_lossy(&head).into_owned();
            match head.starts_with("HTTP/1.1 200") {
                true => Ok(stream),
                false => Err(std::io::Error::other(head)),
            }
        };
        match asked.await {
            Ok(stream) => break ping_pong(stream, b"by token").await,
            Err(error) => assert!(begun.elapsed() < PATIENCE, "{error}"),
        }
        sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_is_enough_between_ours() {
    by_token(None, None).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_is_enough_for_konnectivitys_server() {
    if let Some(server) = program("PROXY_SERVER") {
        by_token(Some(&server), None).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_is_enough_for_konnectivitys_agent() {
    if let Some(agent) = program("PROXY_AGENT") {
        by_token(None, Some(&agent)).await;
    }
}

fn to(address: SocketAddr) -> Destination {
    address.to_string().parse().unwrap()
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
        quic: None,
    }
}

/// Another's agent at the protocol of our server, without the rest of it; where it listens is told to `arguments`.
async fn agent_alone(program: &Path, tape: &Tape) -> (Process, Arc<dyn Link>) {
    let pki = Pki::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let ca = pki.ca.cert_pem();
    let config = yurt_pki::server_config_for(&pki.issue("yurt"), Callers::Certified(&ca), true);
    let acceptor = tokio_rustls::TlsAcceptor::from(config.unwrap());
    let (came, mut coming) = mpsc::unbounded_channel();
    let tape = tape.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let Ok(stream) = acceptor.accept(stream).await else {
                continue;
            };
            let door = Arc::new(Door {
                came: came.clone(),
                tunnels: None,
            });
            let io = Box::new(tape.tap(Box::new(stream), true));
            let stop = CancellationToken::new();
            tokio::spawn(serve(io, us(), door, Options::default(), stop));
        }
    });
    let [health, admin] = ports().await;
    let arguments = [
        argument("ca-cert", pki.path("ca.crt").display()),
        argument("agent-cert", pki.path("agent.crt").display()),
        argument("agent-key", pki.path("agent.key").display()),
        argument("proxy-server-host", "127.0.0.1"),
        argument("proxy-server-port", port),
        argument("health-server-port", health),
        argument("admin-server-port", admin),
        argument("agent-id", "edge-1"),
        argument("agent-identifiers", "ipv4=127.0.0.1&host=edge-1"),
    ];
    let agent = Process::start(Some(program), &arguments);
    let link = timeout(PATIENCE, coming.recv()).await.unwrap().unwrap();
    (agent, link)
}

/// A word and back, a refusal, and a close by either side.
async fn recorded_exchange(agent: &Path, name: &str) -> (Process, Arc<dyn Link>) {
    let tape = Tape::default();
    let (agent, link) = agent_alone(agent, &tape).await;
    let hello = link.hello();
    assert_eq!(hello.id, "edge-1");
    assert_eq!(hello.identifiers.to_string(), "ipv4=127.0.0.1&host=edge-1");
    ping_pong(link.dial(&to(echo().await)).await.unwrap(), b"ping").await;
    let nowhere = "127.0.0.1:1".parse().unwrap();
    let refused = link.dial(&nowhere).await.err().unwrap();
    assert!(refused.to_string().contains("refused"), "{refused}");
    while link.connections() > 0 {
        sleep(Duration::from_millis(10)).await;
    }
    sleep(Duration::from_millis(200)).await;
    tape.keep(name);
    (agent, link)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn konnectivitys_agent_alone_and_frozen() {
    let Some(agent) = program("PROXY_AGENT") else {
        return;
    };
    let (agent, link) = recorded_exchange(&agent, "agent.packets").await;
    // Silence alone is no death.
    sleep(Duration::from_secs(12)).await;
    ping_pong(link.dial(&to(echo().await)).await.unwrap(), b"ping").await;
    agent.freeze();
    let frozen = Instant::now();
    timeout(PATIENCE, link.closed().cancelled()).await.unwrap();
    assert!(frozen.elapsed() < Duration::from_secs(20), "{frozen:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_forks_agent_alone() {
    if let Some(agent) = program("FORK_AGENT") {
        recorded_exchange(&agent, "fork-agent.packets").await;
    }
}

/// Our agent's protocol at another's server, without the rest of it.
async fn session_at(field: &Field, tape: &Tape) -> Session {
    let address = SocketAddr::from(([127, 0, 0, 1], field.port));
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
    let pki = &field.pki;
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
    let io = Box::new(tape.tap(Box::new(tls), false));
    let (options, stop) = (Options::default(), CancellationToken::new());
    let session = connect(io, hello, Arc::new(TcpDialer), None, options, stop).await;
    let session = session.unwrap();
    assert_eq!(session.server.count, 1);
    session
}

async fn recorded_service(field: &Field, name: &str) -> (Process, Session) {
    let server = field.server();
    let tape = Tape::default();
    let session = session_at(field, &tape).await;
    ping_pong(field.connect(echo().await).await.unwrap(), b"ping").await;
    // The fork says 200 all the same.
    let refused = field.ask(([127, 0, 0, 1], 1).into()).await.unwrap();
    while session.connections() > 0 {
        sleep(Duration::from_millis(10)).await;
    }
    sleep(Duration::from_millis(200)).await;
    drop(refused);
    tape.keep(name);
    (server, session)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn konnectivitys_server_alone_and_frozen() {
    let Some(field) = Field::of(Make::Konnectivity, Make::Ours).await else {
        return;
    };
    let (server, mut session) = recorded_service(&field, "server.packets").await;
    // Longer than it is silent until it is asked, and than grpc-go would put up with as many pings.
    let silent = timeout(Duration::from_secs(20), session.ended()).await;
    assert!(silent.is_err(), "{silent:?}");
    server.freeze();
    let frozen = Instant::now();
    let ended = timeout(PATIENCE, session.ended()).await.unwrap();
    assert!(matches!(ended, SessionError::Silent(_)), "{ended}");
    assert!(frozen.elapsed() < Duration::from_secs(30), "{frozen:?}");
}

/// Its grpc-go is the strictest about pings.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_forks_server_alone_and_silent() {
    let Some(field) = Field::of(Make::Fork, Make::Ours).await else {
        return;
    };
    let (server, mut session) = recorded_service(&field, "fork-server.packets").await;
    let silent = timeout(Duration::from_secs(45), session.ended()).await;
    assert!(silent.is_err(), "{silent:?}");
    ping_pong(field.connect(echo().await).await.unwrap(), b"ping").await;
    server.kill().await;
    timeout(PATIENCE, session.ended()).await.unwrap();
}

/// An HTTP server of one page.
async fn page(length: usize) -> SocketAddr {
    let origin = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = origin.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = origin.accept().await {
            tokio::spawn(async move {
                let _ = stream.read(&mut [0; 4096]).await;
                let body = "x".repeat(length);
                let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{body}");
                let _ = stream.write_all(answer.as_bytes()).await;
            });
        }
    });
    address
}

/// Konnectivity's test client, with kube-apiserver's library in it, asks for the page so often.
async fn client(
    program: &Path,
    socket: &Path,
    mode: &str,
    page: SocketAddr,
    requests: usize,
) -> String {
    let output = Command::new(program)
        .args([
            argument("proxy-uds", socket.display()),
            argument("proxy-host", ""),
            argument("proxy-port", 0),
            argument("mode", mode),
            argument("request-host", page.ip()),
            argument("request-port", page.port()),
            argument("request-path", "all"),
            argument("test-requests", requests),
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
    said
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn konnectivitys_client_alone() {
    let Some(program) = program("PROXY_TEST_CLIENT") else {
        return;
    };
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("frontend.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let tape = Tape::default();
    tokio::spawn({
        let tape = tape.clone();
        async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (came, _) = mpsc::unbounded_channel();
                let door = Arc::new(Door {
                    came,
                    tunnels: Some(Arc::new(Direct)),
                });
                let io = Box::new(tape.tap(Box::new(stream), true));
                let stop = CancellationToken::new();
                tokio::spawn(serve(io, us(), door, Options::default(), stop));
            }
        }
    });
    let said = client(&program, &socket, "grpc", page(100).await, 1).await;
    assert!(said.contains(&"x".repeat(100)), "{said}");
    sleep(Duration::from_millis(200)).await;
    tape.keep("frontend.packets");
}

/// The whole of it: konnectivity's client, our server with both kinds of frontends on one socket, konnectivity's agent.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn konnectivitys_client_and_agent_and_our_server() {
    let Some(program) = program("PROXY_TEST_CLIENT") else {
        return;
    };
    let Some(field) = Field::of(Make::Ours, Make::Konnectivity).await else {
        return;
    };
    let (_server, _agent) = (field.server(), field.agent());
    field.ready(echo().await).await;
    let page = page(100_000).await;
    for (mode, requests) in [("grpc", 50), ("http-connect", 50)] {
        let said = client(&program, &field.socket(), mode, page, requests).await;
        let whole = said.matches(&"x".repeat(100_000)).count();
        assert_eq!(whole, requests, "by {mode}");
    }
}
