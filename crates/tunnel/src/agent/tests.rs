//! Agents against servers of ours, by real sockets and certificates.

use super::*;
use crate::{
    DialError, Link, ServerHello, Tunnels,
    agent::fleet::Door,
    certificates::Credentials,
    hello::{ALPN_CLOUD, ALPN_MUX},
    mux::{self, MuxLink},
    twin,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional},
    net::TcpStream,
    sync::mpsc,
    task::JoinSet,
    time::timeout,
};
use tokio_rustls::TlsAcceptor;
use yurt_pki::{Ca, KeyPairPem, Profile, store::Pair};
use yurt_transport::{BoxStream, Destination};

/// Long enough for anything that is to happen at all.
const SOON: Duration = Duration::from_secs(20);

struct Authorities {
    ca: Ca,
}

impl Authorities {
    fn new() -> Self {
        Self {
            ca: Ca::new("test", 10).unwrap(),
        }
    }

    fn issue(&self, profile: Profile) -> KeyPairPem {
        self.ca.issue(&Profile { days: 1, ..profile }).unwrap()
    }

    fn credentials(&self, profile: Profile) -> Credentials {
        Credentials {
            pair: Some(Pair::of(self.issue(profile)).unwrap()),
            ca: self.ca.cert_pem(),
        }
    }

    fn agent(&self) -> Credentials {
        self.credentials(shape::agent("edge-1", ["127.0.0.1".parse().unwrap()]))
    }

    fn server(&self) -> Credentials {
        self.credentials(shape::server(
            ["tunnel".to_owned()],
            ["127.0.0.1".parse().unwrap()],
        ))
    }
}

/// A server that takes whoever has a certificate.
struct Server {
    address: SocketAddr,
    links: mpsc::UnboundedReceiver<Arc<MuxLink>>,
    stop: CancellationToken,
}

impl Server {
    async fn start(id: &str, count: u32, own: &Credentials) -> Self {
        Self::start_at("127.0.0.1:0".parse().unwrap(), id, count, own).await
    }

    async fn start_at(address: SocketAddr, id: &str, count: u32, own: &Credentials) -> Self {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.set_reuseaddr(true).unwrap();
        socket.bind(address).unwrap();
        let listener = socket.listen(64).unwrap();
        let address = listener.local_addr().unwrap();
        let config = own
            .server_config(&yurt_pki::TlsPolicy::default(), &[ALPN_MUX, ALPN_CLOUD])
            .unwrap();
        let hello = ServerHello {
            id: id.to_owned(),
            count,
            quic: None,
        };
        let (tell, links) = mpsc::unbounded_channel();
        let stop = CancellationToken::new();
        tokio::spawn(stop.clone().run_until_cancelled_owned(async move {
            let mut open = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (config, hello, tell) = (config.clone(), hello.clone(), tell.clone());
                open.spawn(async move {
                    let Ok(stream) = TlsAcceptor::from(config).accept(stream).await else {
                        return;
                    };
                    if stream.get_ref().1.alpn_protocol() == Some(ALPN_CLOUD) {
                        let cloud = twin::served(twin::echo);
                        mux::cloud::serve(
                            Box::new(stream),
                            cloud,
                            quick(),
                            CancellationToken::new(),
                        )
                        .await;
                        return;
                    }
                    if let Ok(link) = mux::call(Box::new(stream), hello, quick()).await {
                        // A test that is over does not listen.
                        let _ = tell.send(link.clone());
                        // The drop of this task is the death of the server.
                        let _ends = link.closed().clone().drop_guard();
                        link.closed().cancelled().await;
                    }
                });
            }
        }));
        Self {
            address,
            links,
            stop,
        }
    }

    async fn link(&mut self) -> Arc<MuxLink> {
        timeout(SOON, self.links.recv())
            .await
            .expect("in time")
            .expect("a link")
    }

    fn door(&self) -> Door {
        door(self.address)
    }
}

fn door(address: SocketAddr) -> Door {
    Door {
        priority: 0,
        host: address.ip().to_string(),
        port: address.port(),
        name: "tunnel".to_owned(),
    }
}

fn quick() -> Options {
    Options {
        quiet: Duration::from_millis(200),
        patience: Duration::from_millis(300),
        drain: Duration::from_secs(2),
        ..Options::default()
    }
}

/// An agent's connections, without the rest of it.
struct Agent {
    connections: Connections,
    doors: watch::Sender<Vec<Door>>,
    shutdown: CancellationToken,
    reach: Arc<Reach>,
}

impl Agent {
    fn start(own: Credentials, doors: Vec<Door>, proxy: Option<Proxy>) -> Self {
        Self::start_with(Kept::fixed(own), doors, proxy, renewal::now)
    }

    fn start_with(kept: Kept, doors: Vec<Door>, proxy: Option<Proxy>, now: fn() -> i64) -> Self {
        let reach = Arc::new(Reach {
            kept,
            transport: Transport::Auto,
            within: Duration::from_secs(300),
            proxy,
            hello: twin::agent_hello("edge-1"),
            dialer: twin::served(twin::echo),
            options: quick(),
            token: None,
            mark: Mark::default(),
            now,
            protocols: Vec::new(),
        });
        let connections = Connections::new(Policy::All);
        let (doors, listed) = watch::channel(doors);
        let shutdown = CancellationToken::new();
        let metrics = AgentMetrics::new(&mut prometheus_client::registry::Registry::default());
        let running = (connections.clone(), reach.clone(), shutdown.clone());
        tokio::spawn(async move { running.0.run(running.1, listed, metrics, running.2).await });
        Self {
            connections,
            doors,
            shutdown,
            reach,
        }
    }

    async fn connected(&self, count: usize) {
        let mut serving = self.connections.watch();
        timeout(SOON, serving.wait_for(|now| *now == count))
            .await
            .unwrap_or_else(|_| panic!("{count} servers: {:#}", self.connections.describe()))
            .unwrap();
    }

    /// Waits until some address has this trouble.
    async fn troubled(&self, text: &str) {
        let looked = timeout(SOON, async {
            loop {
                let described = self.connections.describe();
                let addresses = described["addresses"]
                    .as_array()
                    .cloned()
                    .unwrap_or_default();
                if addresses
                    .iter()
                    .any(|a| a["error"].as_str().is_some_and(|e| e.contains(text)))
                {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
        looked
            .await
            .unwrap_or_else(|_| panic!("{text}: {:#}", self.connections.describe()));
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

async fn echoes(link: &MuxLink) {
    let stream = link.dial(&twin::to("10.0.0.1:80")).await.expect("dialled");
    let answer = timeout(SOON, twin::exchange(stream, b"hello"))
        .await
        .expect("in time");
    assert_eq!(answer.expect("an answer"), b"hello");
}

#[tokio::test]
async fn two_servers_one_dies_and_comes_back() {
    let pki = Authorities::new();
    let own = pki.server();
    let mut one = Server::start("1", 2, &own).await;
    let mut two = Server::start("2", 2, &own).await;
    let agent = Agent::start(pki.agent(), vec![one.door(), two.door()], None);
    let (_, alive) = (one.link().await, two.link().await);
    agent.connected(2).await;
    one.stop.cancel();
    agent.connected(1).await;
    echoes(&alive).await;
    let mut again = Server::start_at(one.address, "1b", 2, &own).await;
    echoes(&*again.link().await).await;
    agent.connected(2).await;
    // The end: servers are told, nothing is left.
    agent.shutdown.cancel();
    agent.connected(0).await;
    timeout(SOON, alive.closed().cancelled())
        .await
        .expect("ended");
}

#[tokio::test]
async fn a_server_that_moves_is_connected_at_its_new_address_before_the_old_one_is_left() {
    let pki = Authorities::new();
    let own = pki.server();
    let mut old = Server::start("1", 1, &own).await;
    let agent = Agent::start(pki.agent(), vec![old.door()], None);
    let before = old.link().await;
    agent.connected(1).await;
    let mut open = before
        .dial(&twin::to("10.0.0.1:80"))
        .await
        .expect("dialled");
    let mut new = Server::start("1", 1, &own).await;
    agent.doors.send_replace(vec![new.door()]);
    echoes(&*new.link().await).await;
    // What is open on the old connection goes on, nothing new is dialled there.
    open.write_all(b"still").await.expect("written");
    let mut read = [0; 5];
    timeout(SOON, open.read_exact(&mut read))
        .await
        .expect("in time")
        .expect("read");
    assert_eq!(&read, b"still");
    drop(open);
    timeout(SOON, before.closed().cancelled())
        .await
        .expect("left when idle");
    agent.connected(1).await;
}

/// The clock of one test.
static CLOCK: std::sync::atomic::AtomicI64 = std::sync::atomic::AtomicI64::new(0);

#[tokio::test]
async fn a_session_is_made_anew_with_the_renewed_certificate_before_the_old_one_ends() {
    use std::sync::atomic::Ordering::SeqCst;
    let pki = Authorities::new();
    let mut server = Server::start("1", 1, &pki.server()).await;
    CLOCK.store(renewal::now(), SeqCst);
    let lasting = |days| {
        let profile = shape::agent("edge-1", ["127.0.0.1".parse().unwrap()]);
        Credentials {
            pair: Some(Pair::of(pki.ca.issue(&Profile { days, ..profile }).unwrap()).unwrap()),
            ca: pki.ca.cert_pem(),
        }
    };
    let first = lasting(1);
    let ends = first.pair.as_ref().unwrap().leaf.not_after;
    let (show, shown) = watch::channel(Arc::new(first));
    let kept = Kept::following(shown);
    let agent = Agent::start_with(kept, vec![server.door()], None, || CLOCK.load(SeqCst));
    let old = server.link().await;
    agent.connected(1).await;
    let mut open = old.dial(&twin::to("10.0.0.1:80")).await.expect("dialled");
    // Renewed in good time: nothing is hurried.
    show.send_replace(Arc::new(lasting(2)));
    let hurried = timeout(Duration::from_millis(300), server.links.recv()).await;
    assert!(hurried.is_err(), "what is open goes on as long as it can");
    // The end comes near. The look is what changes of certificates bring.
    CLOCK.store(ends - 60, SeqCst);
    show.send_replace(Arc::new(lasting(3)));
    let new = server.link().await;
    echoes(&new).await;
    assert!(!old.closed().is_cancelled(), "made before it is broken");
    open.write_all(b"still").await.expect("written");
    let mut read = [0; 5];
    timeout(SOON, open.read_exact(&mut read))
        .await
        .expect("in time")
        .expect("read");
    timeout(SOON, async {
        while !old.is_draining() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .expect("nothing new is asked of the old one");
    drop(open);
    timeout(SOON, old.closed().cancelled())
        .await
        .expect("left when idle");
    agent.connected(1).await;
    echoes(&new).await;
}

#[tokio::test]
async fn servers_are_connected_when_there_is_a_certificate_and_not_in_vain_before() {
    let pki = Authorities::new();
    let mut server = Server::start("1", 1, &pki.server()).await;
    let (show, shown) = watch::channel(Arc::new(Credentials::default()));
    let kept = Kept::following(shown);
    let agent = Agent::start_with(kept, vec![server.door()], None, renewal::now);
    tokio::time::sleep(Duration::from_millis(300)).await;
    let described = agent.connections.describe();
    assert_eq!(described["addresses"][0]["error"], serde_json::Value::Null);
    show.send_replace(Arc::new(pki.agent()));
    echoes(&*server.link().await).await;
    agent.connected(1).await;
}

/// Forwards connections to `to`; those open when `cut` is said stay open and carry nothing more.
async fn relay(to: SocketAddr) -> (SocketAddr, watch::Sender<u32>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (cut, cuts) = watch::channel(0);
    tokio::spawn(async move {
        let mut open = JoinSet::new();
        loop {
            let (mut near, _) = listener.accept().await.unwrap();
            let mut cuts = cuts.clone();
            cuts.mark_unchanged();
            open.spawn(async move {
                let mut far = TcpStream::connect(to).await.unwrap();
                tokio::select! {
                    _ = copy_bidirectional(&mut near, &mut far) => {}
                    _ = cuts.changed() => std::future::pending().await,
                }
            });
        }
    });
    (address, cut)
}

#[tokio::test]
async fn a_path_that_is_cut_silently_is_noticed_and_replaced() {
    let pki = Authorities::new();
    let mut server = Server::start("1", 1, &pki.server()).await;
    let (path, cut) = relay(server.address).await;
    let _agent = Agent::start(pki.agent(), vec![door(path)], None);
    let first = server.link().await;
    echoes(&first).await;
    cut.send_replace(1);
    // Both ends notice; the agent comes back by a path that carries.
    let second = server.link().await;
    echoes(&second).await;
    timeout(SOON, first.closed().cancelled())
        .await
        .expect("noticed");
}

/// A world that is reached directly.
#[derive(Debug)]
struct Direct;

impl Tunnels for Direct {
    fn open<'a>(&'a self, to: &'a Destination) -> crate::Opening<'a> {
        Box::pin(async move {
            let stream = TcpStream::connect((to.host.as_str(), to.port))
                .await
                .map_err(DialError::from)?;
            Ok(Box::new(stream) as BoxStream)
        })
    }
}

#[tokio::test]
async fn proxies_lead_out_and_the_cloud_is_asked_by_the_same_way() {
    let pki = Authorities::new();
    let mut server = Server::start("1", 1, &pki.server()).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy = listener.local_addr().unwrap();
    let stop = CancellationToken::new();
    tokio::spawn(reverse::serve(
        listener,
        reverse::Kind::Asked,
        Arc::new(Direct),
        stop.clone(),
    ));
    for scheme in ["socks5", "http"] {
        let proxy: Proxy = format!("{scheme}://{proxy}").parse().unwrap();
        let agent = Agent::start(pki.agent(), vec![server.door()], Some(proxy));
        echoes(&*server.link().await).await;
        let cloud = reverse::Cloud::new(agent.reach.clone(), agent.connections.clone());
        agent.connected(1).await;
        let stream = cloud
            .open(&twin::to("service:80"))
            .await
            .expect("the cloud");
        assert_eq!(
            twin::exchange(stream, b"up").await.expect("an answer"),
            b"up"
        );
    }
    stop.cancel();
}

#[tokio::test]
async fn nobody_of_another_ca_is_believed() {
    let (ours, theirs) = (Authorities::new(), Authorities::new());
    let server = Server::start("1", 1, &ours.server()).await;
    let stranger = Credentials {
        ca: ours.ca.cert_pem(),
        ..theirs.agent()
    };
    let refused = Agent::start(stranger, vec![server.door()], None);
    refused.troubled("").await;
    let deceived = Agent::start(theirs.agent(), vec![server.door()], None);
    deceived.troubled("invalid peer certificate").await;
    let misnamed = Door {
        name: "elsewhere".to_owned(),
        ..server.door()
    };
    let elsewhere = Agent::start(ours.agent(), vec![misnamed], None);
    elsewhere.troubled("not valid for name").await;
    for agent in [&refused, &deceived, &elsewhere] {
        assert_eq!(agent.connections.count(), 0);
    }
}

async fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    listener.local_addr().unwrap().port()
}

async fn get(address: SocketAddr, path: &str) -> String {
    let mut answer = String::new();
    if let Ok(mut stream) = TcpStream::connect(address).await {
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        stream.read_to_string(&mut answer).await.unwrap();
    }
    answer
}

async fn until(address: SocketAddr, path: &str, wanted: &str) -> String {
    let looked = timeout(SOON, async {
        loop {
            let answer = get(address, path).await;
            if answer.contains(wanted) {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    looked
        .await
        .unwrap_or_else(|_| panic!("{path} never says {wanted}"))
}

/// An agent as a process would be, with its certificate in files of a directory; nothing is allowed but what is by default.
fn whole(pki: &Authorities, directory: &std::path::Path, servers: Vec<String>) -> AgentConfig {
    let file = |name: &str, text: &str| {
        let path = directory.join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let own = pki.agent();
    let pair = own.pair.unwrap().pem;
    AgentConfig {
        node: "edge-1".into(),
        identifiers: "host=edge-1".parse().unwrap(),
        servers: servers
            .iter()
            .map(|server| server.parse().unwrap())
            .collect(),
        policy: Policy::All,
        transport: Transport::Auto,
        proxy: None,
        authority: Authority::Files(GivenFiles {
            cert: file("cert", &pair.cert),
            key: file("key", &pair.key),
            ca: file("ca", &own.ca),
        }),
        way: None,
        namespace: String::new(),
        leases: None,
        token: None,
        protocols: Vec::new(),
        scope: NodeScope::default(),
        default_allow: true,
        allow: Vec::new(),
        bounds: Bounds::default(),
        drain: Duration::from_secs(2),
        meta: SocketAddr::from(([127, 0, 0, 1], 0)),
        known: directory.to_owned(),
        reverse: Reverse::default(),
        beneath: None,
    }
}

/// A node that starts without the cloud's API and name servers knows where its servers were.
#[tokio::test]
async fn servers_are_found_again_after_a_reboot_without_the_cloud() {
    let pki = Authorities::new();
    let mut server = Server::start("1", 1, &pki.server()).await;
    let directory = tempfile::tempdir().unwrap();
    let known = directory.path().join("known-servers.json");
    let given = vec![format!("tunnel@{}", server.address)];
    for (servers, way) in [
        (given, None),
        // Nobody is at the hub's address, and nothing else says where servers are.
        (Vec::new(), Some(Way::Hub("127.0.0.1:1".into()))),
    ] {
        let config = AgentConfig {
            way,
            ..whole(&pki, directory.path(), servers)
        };
        let shutdown = CancellationToken::new();
        let running = tokio::spawn(run(config, shutdown.clone()));
        echoes_not_allowed(&*server.link().await).await;
        timeout(SOON, async {
            while !known.exists() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await
        .expect("kept");
        shutdown.cancel();
        let ended = timeout(SOON, running).await.expect("in time");
        ended.expect("no panic").expect("well");
    }
}

/// It is an agent that answers.
async fn echoes_not_allowed(link: &MuxLink) {
    let refused = link.dial(&twin::to("192.0.2.1:80")).await.err();
    assert!(
        matches!(refused, Some(DialError::Forbidden(_))),
        "{refused:?}"
    );
}

/// The whole process: flags, files, allow-list, health; the directory of addresses takes nothing, as a full disk.
#[tokio::test]
async fn a_whole_agent_serves_what_is_allowed_and_tells_how_it_is() {
    let pki = Authorities::new();
    let mut server = Server::start("1", 1, &pki.server()).await;
    let directory = tempfile::tempdir().unwrap();
    let target = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = target.local_addr().unwrap().port();
    let (meta, route) = (free_port().await, free_port().await);
    let meta = SocketAddr::from(([127, 0, 0, 1], meta));
    let servers = vec![format!("tunnel@{}", server.address)];
    let config = AgentConfig {
        allow: vec![format!("127.0.0.1:{port}").parse().unwrap()],
        meta,
        known: "/dev/full".into(),
        reverse: Reverse {
            routes: vec![format!("{route}=service.ns.svc:443").parse().unwrap()],
            ..Reverse::default()
        },
        ..whole(&pki, directory.path(), servers)
    };
    let shutdown = CancellationToken::new();
    let running = tokio::spawn(run(config, shutdown.clone()));
    let link = server.link().await;
    assert_eq!(link.hello().id, "edge-1");
    let mut stream = link
        .dial(&twin::to(&format!("127.0.0.1:{port}")))
        .await
        .expect("allowed");
    let (mut accepted, _) = target.accept().await.unwrap();
    stream.write_all(b"in").await.unwrap();
    let mut read = [0; 2];
    accepted.read_exact(&mut read).await.unwrap();
    for other in ["127.0.0.1:22", "169.254.169.254:80", "0.0.0.0:10250"] {
        let refused = link.dial(&twin::to(other)).await.err().expect("refused");
        let DialError::Forbidden(why) = &refused else {
            panic!("{other}: {refused:?}");
        };
        assert!(why.contains("allow-list") && why.contains(other), "{why}");
    }
    until(meta, "/readyz", "200 OK").await;
    until(
        meta,
        "/metrics",
        "konnectivity_network_proxy_agent_open_server_connections 1",
    )
    .await;
    let status = until(meta, "/v1/status", "\"protocol\": \"mux\"").await;
    assert!(
        status.contains("\"ready\": true") && status.contains("tunnel-agent-client"),
        "{status}"
    );
    assert!(get(meta, "/nothing").await.contains("404"));
    let mut up = TcpStream::connect(("127.0.0.1", route)).await.unwrap();
    up.write_all(b"up").await.unwrap();
    timeout(SOON, up.read_exact(&mut read))
        .await
        .expect("in time")
        .expect("read");
    assert_eq!(&read, b"up");
    drop((stream, accepted, up));
    server.stop.cancel();
    until(meta, "/readyz", "503").await;
    assert!(
        get(meta, "/healthz").await.contains("200 OK"),
        "it lives without servers"
    );
    shutdown.cancel();
    timeout(SOON, running)
        .await
        .expect("ended")
        .expect("no panic")
        .expect("well");
}
