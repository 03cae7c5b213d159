//! A server to ask, a relay to break, and the certificates for both.

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper_util::rt::TokioIo;
use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;
use yurt_pki::{Ca, KeyPairPem, Profile};
use yurt_transport::*;

/// Far longer than anything here takes; a test that waits for it fails.
pub(crate) const LONG: Duration = Duration::from_secs(20);

pub(crate) fn ca() -> &'static Ca {
    static CA: OnceLock<Ca> = OnceLock::new();
    CA.get_or_init(|| Ca::new("test", 1).unwrap())
}

pub(crate) fn client_pair(name: &str) -> KeyPairPem {
    ca().issue(&Profile {
        common_name: name.into(),
        client: true,
        days: 1,
        ..Profile::default()
    })
    .unwrap()
}

pub(crate) fn server_tls() -> Arc<rustls::ServerConfig> {
    let own = ca()
        .issue(&Profile {
            common_name: "server".into(),
            ips: vec!["127.0.0.1".parse().unwrap()],
            server: true,
            days: 1,
            ..Profile::default()
        })
        .unwrap();
    yurt_pki::server_config(&own, Some(&ca().cert_pem()), true).unwrap()
}

pub(crate) fn client_tls(own: Option<&KeyPairPem>, alpn: &[&str]) -> Arc<rustls::ClientConfig> {
    yurt_pki::client_config(&ca().cert_pem(), own, alpn).unwrap()
}

pub(crate) fn client_options() -> ClientOptions {
    ClientOptions {
        connect_timeout: LONG,
        ..ClientOptions::default()
    }
}

pub(crate) struct Server {
    pub(crate) addr: SocketAddr,
    pub(crate) shutdown: CancellationToken,
    pub(crate) serving: JoinHandle<io::Result<()>>,
    /// Bytes the `/flood` handlers got rid of.
    pub(crate) flooded: Arc<AtomicU64>,
}

impl Server {
    pub(crate) async fn plain(options: ServeOptions) -> Self {
        Self::start("127.0.0.1:0", None, options).await
    }

    pub(crate) async fn tls(options: ServeOptions) -> Self {
        Self::start("127.0.0.1:0", Some(server_tls()), options).await
    }

    pub(crate) async fn start(
        addr: &str,
        tls: Option<Arc<rustls::ServerConfig>>,
        options: ServeOptions,
    ) -> Self {
        let listener = TcpListener::bind(addr).await.unwrap();
        let addr = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let flooded = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&flooded);
        let tls = tls.map(|config| Arc::new(ArcSwap::new(config)));
        let handler = move |request| answer(request, Arc::clone(&count));
        let serving = tokio::spawn(serve(listener, tls, options, shutdown.clone(), handler));
        Self {
            addr,
            shutdown,
            serving,
            flooded,
        }
    }

    pub(crate) fn client(&self, tls: Option<Arc<rustls::ClientConfig>>) -> Client {
        Client::new(&self.addr.to_string(), tls, client_options())
    }

    pub(crate) fn h1(&self) -> Client {
        self.client(None)
    }

    pub(crate) fn h2(&self) -> Client {
        self.client(Some(client_tls(None, &["h2", "http/1.1"])))
    }
}

async fn answer(
    mut request: Request<hyper::body::Incoming>,
    flooded: Arc<AtomicU64>,
) -> Response<Body> {
    let peer = request.extensions().get::<Peer>().cloned().expect("a peer");
    match (request.method(), request.uri().path()) {
        // Who asks, over which protocol and connection.
        (_, "/who") => {
            let user = match &peer.certificate {
                Some(der) => yurt_pki::identity_of(der).unwrap().user,
                None => "-".to_owned(),
            };
            Response::new(full(format!(
                "{user} {:?} {} tls={}",
                request.version(),
                peer.addr,
                peer.tls
            )))
        }
        (&Method::POST, "/echo") => match collect(request.into_body(), 1 << 20).await {
            Ok(bytes) => Response::new(full(bytes)),
            Err(CollectError::TooLarge(_)) => Response::builder()
                .status(StatusCode::PAYLOAD_TOO_LARGE)
                .body(empty())
                .unwrap(),
            Err(CollectError::Broken(error)) => panic!("{error}"),
        },
        // What comes goes back while it comes.
        (_, "/mirror") => Response::new(request.into_body().map_err(Into::into).boxed_unsync()),
        (_, "/chunks") => Response::new(chunks(vec![
            Bytes::from_static(b"one"),
            Bytes::new(),
            Bytes::from_static(b"two"),
        ])),
        // One line with the connection, then silence until the client goes.
        (_, "/watch") => {
            let (sender, body) = channel(4);
            tokio::spawn(async move {
                let line = format!("{}\n", peer.addr);
                sender.send(Ok(line.into())).await.unwrap();
                sender.closed().await;
                flooded.fetch_add(1, Ordering::SeqCst);
            });
            Response::new(body)
        }
        // As much as the client takes.
        (_, "/flood") => {
            let (sender, body) = channel(1);
            tokio::spawn(async move {
                let chunk = Bytes::from(vec![b'x'; 64 << 10]);
                while sender.send(Ok(chunk.clone())).await.is_ok() {
                    flooded.fetch_add(chunk.len() as u64, Ordering::SeqCst);
                }
            });
            Response::new(body)
        }
        // Breaks off in the middle.
        (_, "/broken") => {
            let (sender, body) = channel(4);
            tokio::spawn(async move {
                sender.send(Ok(Bytes::from_static(b"half"))).await.unwrap();
                sender
                    .send(Err("the source went away".into()))
                    .await
                    .unwrap();
            });
            Response::new(body)
        }
        (_, "/never") => {
            std::future::pending::<()>().await;
            Response::new(empty())
        }
        // Switches protocols and echoes.
        (_, "/upgrade") => {
            let upgrade = hyper::upgrade::on(&mut request);
            tokio::spawn(async move {
                let mut stream = TokioIo::new(upgrade.await.unwrap());
                let mut buffer = [0; 1024];
                while let Ok(length @ 1..) = stream.read(&mut buffer).await {
                    if stream.write_all(&buffer[..length]).await.is_err() {
                        break;
                    }
                }
            });
            Response::builder()
                .status(StatusCode::SWITCHING_PROTOCOLS)
                .header("connection", "Upgrade")
                .header("upgrade", "SPDY/3.1")
                .body(empty())
                .unwrap()
        }
        _ => Response::builder()
            .status(StatusCode::NOT_FOUND)
            .body(empty())
            .unwrap(),
    }
}

pub(crate) fn get(path: &str) -> Request<Body> {
    Request::get(path).body(empty()).unwrap()
}

pub(crate) fn upgrade(path: &str) -> Request<Body> {
    Request::post(path)
        .header("connection", "Upgrade")
        .header("upgrade", "SPDY/3.1")
        .body(empty())
        .unwrap()
}

pub(crate) async fn text(client: &Client, path: &str) -> String {
    let response = client.send(get(path), LONG).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    let bytes = collect(response.into_body(), 1 << 20).await.unwrap();
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Opens a watch and reads its first line: the address the server saw the connection come from.
pub(crate) async fn watch(client: &Client) -> (String, ResponseBody) {
    let response = client.send(get("/watch"), LONG).await.unwrap();
    let mut body = response.into_body();
    let frame = body.frame().await.unwrap().unwrap();
    let line = String::from_utf8(frame.into_data().unwrap().to_vec()).unwrap();
    (line, body)
}

/// How a body goes on, if it does within the time of a test.
pub(crate) async fn next(body: &mut ResponseBody) -> Option<Result<Bytes, hyper::Error>> {
    let frame = tokio::time::timeout(LONG, body.frame()).await;
    frame
        .expect("the body neither went on nor ended")
        .map(|frame| frame.map(|frame| frame.into_data().unwrap_or_default()))
}

pub(crate) async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let begin = tokio::time::Instant::now();
    while !holds() {
        assert!(begin.elapsed() < LONG, "never: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Forwards connections; those it has when it is frozen get no byte any more in either direction, later ones work.
pub(crate) struct Relay {
    pub(crate) addr: SocketAddr,
    frozen: watch::Sender<u32>,
    target: watch::Sender<SocketAddr>,
}

impl Relay {
    pub(crate) async fn start(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (frozen, times) = watch::channel(0u32);
        let (target, targets) = watch::channel(target);
        tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let mut times = times.clone();
                times.mark_unchanged();
                let targets = targets.clone();
                tokio::spawn(async move {
                    let mut far = loop {
                        // The target may have changed a moment ago.
                        let target = *targets.borrow();
                        match TcpStream::connect(target).await {
                            Ok(far) => break far,
                            Err(_) => tokio::time::sleep(Duration::from_millis(1)).await,
                        }
                    };
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                        _ = times.changed() => {
                            // The sockets stay open and silent.
                            std::future::pending::<()>().await;
                        }
                    }
                });
            }
        });
        Self {
            addr,
            frozen,
            target,
        }
    }

    /// Later connections go elsewhere.
    pub(crate) fn retarget(&self, target: SocketAddr) {
        self.target.send_replace(target);
    }

    pub(crate) fn freeze(&self) {
        self.frozen.send_modify(|times| *times += 1);
    }
}
