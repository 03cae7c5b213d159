//! The interceptor between real callers and a kubelet of real TLS, with a tunnel that is a connection of its own per dial.

mod failing;
mod passing;
mod upgrades;

use super::*;
use crate::{
    directory::{Known, NodeFacts, PodFacts},
    link::{DialError, Opening},
};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Incoming;
use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
};
use tokio::net::TcpStream;
use tokio_util::sync::DropGuard;
use yurt_controller::Key;
use yurt_pki::{Ca, KeyPairPem, Profile};
use yurt_transport::{
    Body, BoxStream, Client, ClientOptions, Destination, Peer, channel, collect, empty, full,
};

/// Far longer than anything here takes; a test that waits for it fails.
const LONG: Duration = Duration::from_secs(30);
/// The node's address, which is nobody's here: only the tunnel leads there.
const NODE: &str = "192.168.0.11";

fn ca() -> &'static Ca {
    static CA: OnceLock<Ca> = OnceLock::new();
    CA.get_or_init(|| Ca::new("cluster", 1).unwrap())
}

fn serving(ca: &Ca, address: &str) -> KeyPairPem {
    ca.issue(&Profile {
        common_name: "server".into(),
        ips: vec![address.parse().unwrap()],
        server: true,
        days: 1,
        ..Profile::default()
    })
    .unwrap()
}

fn proving(name: &str, group: &str) -> KeyPairPem {
    ca().issue(&Profile {
        common_name: name.into(),
        organizations: vec![group.into()],
        client: true,
        days: 1,
        ..Profile::default()
    })
    .unwrap()
}

/// Leads to addresses that it knows, and says by which node it was asked.
#[derive(Debug, Default)]
struct Twin {
    places: HashMap<String, SocketAddr>,
    opened: AtomicUsize,
    asked: std::sync::Mutex<Vec<Destination>>,
}

impl Tunnels for Twin {
    fn open<'a>(&'a self, to: &'a Destination) -> Opening<'a> {
        Box::pin(async move {
            self.opened.fetch_add(1, Ordering::SeqCst);
            self.asked.lock().unwrap().push(to.clone());
            let place = self.places.get(&to.to_string());
            let place = place.ok_or_else(|| DialError::NoAgent(format!("nobody leads to {to}")))?;
            let stream = TcpStream::connect(place).await?;
            stream.set_nodelay(true)?;
            Ok(Box::new(stream) as BoxStream)
        })
    }
}

/// What kubelets here have seen.
#[derive(Debug, Default)]
struct Seen {
    /// Log streams that are open.
    following: AtomicUsize,
}

/// Marks a stream as open until it is dropped.
struct Open(Arc<Seen>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.following.fetch_sub(1, Ordering::SeqCst);
    }
}

async fn kubelet(request: Request<Incoming>, seen: Arc<Seen>) -> Response<Body> {
    let path = request.uri().path().to_owned();
    let peer = request.extensions().get::<Peer>().cloned().unwrap();
    match path.as_str() {
        "/who" => {
            let user = match &peer.certificate {
                Some(der) => yurt_pki::identity_of(der).unwrap().user,
                None => "-".to_owned(),
            };
            let header = |name: &str| {
                let value = request.headers().get(name);
                value.map_or("-", |v| v.to_str().unwrap()).to_owned()
            };
            let host = match request.uri().authority() {
                Some(authority) => authority.to_string(),
                None => header("host"),
            };
            Response::new(full(format!(
                "{user} {:?} host={host} hint={} dest={} auth={} te={} query={}",
                request.version(),
                header("x-tunnel-proxy-host"),
                header("x-tunnel-proxy-dest"),
                header("authorization"),
                header("te"),
                request.uri().query().unwrap_or("-"),
            )))
        }
        "/echo" => Response::new(request.into_body().map_err(Into::into).boxed_unsync()),
        // One line, then nothing until the caller goes.
        path if path.starts_with("/containerLogs/") => {
            let (sender, body) = channel(4);
            seen.following.fetch_add(1, Ordering::SeqCst);
            let open = Open(seen);
            tokio::spawn(async move {
                let _ = sender.send(Ok(Bytes::from_static(b"first line\n"))).await;
                sender.closed().await;
                drop(open);
            });
            Response::new(body)
        }
        // As much as the caller takes.
        "/flood" => {
            let (sender, body) = channel(1);
            tokio::spawn(async move {
                let chunk = Bytes::from(vec![b'x'; 64 << 10]);
                while sender.send(Ok(chunk.clone())).await.is_ok() {}
            });
            Response::new(body)
        }
        // Answers a message for each, then how it went.
        "/test.Echo/Stream" => {
            let (sender, receiver) = tokio::sync::mpsc::channel::<Frame<Bytes>>(4);
            let mut body = request.into_body();
            tokio::spawn(async move {
                while let Some(Ok(frame)) = body.frame().await {
                    if frame.is_data() && sender.send(frame).await.is_err() {
                        return;
                    }
                }
                let trailers = HeaderMap::from_iter([(
                    "grpc-status".parse().unwrap(),
                    HeaderValue::from_static("0"),
                )]);
                let _ = sender.send(Frame::trailers(trailers)).await;
            });
            let frames = futures_util::stream::unfold(receiver, |mut receiver| async move {
                Some((
                    Ok::<_, yurt_transport::BoxError>(receiver.recv().await?),
                    receiver,
                ))
            });
            let mut response = Response::new(StreamBody::new(frames).boxed_unsync());
            let grpc = HeaderValue::from_static("application/grpc");
            response.headers_mut().insert(header::CONTENT_TYPE, grpc);
            response
        }
        path if path.starts_with("/exec/") => upgrades::shell(request),
        _ => Response::builder()
            .status(StatusCode::NOT_FOUND)
            .body(full("no such thing here"))
            .unwrap(),
    }
}

async fn start_kubelet(
    tls: Option<Arc<rustls::ServerConfig>>,
    seen: Arc<Seen>,
    shutdown: CancellationToken,
) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let tls = tls.map(|config| Arc::new(ArcSwap::new(config)));
    let handler = move |request| kubelet(request, seen.clone());
    tokio::spawn(serve(
        listener,
        tls,
        ServeOptions::default(),
        shutdown,
        handler,
    ));
    address
}

/// What a stage is made of.
struct Setting {
    /// Whose certificate the kubelet has.
    kubelet: KeyPairPem,
    /// Whether it speaks HTTP/2.
    http2: bool,
    callers: Callers,
    /// Whether kubelets are believed without proof.
    insecure: bool,
    max_requests: usize,
}

impl Default for Setting {
    fn default() -> Self {
        Self {
            kubelet: serving(ca(), NODE),
            http2: true,
            callers: Callers::default(),
            insecure: false,
            max_requests: 1000,
        }
    }
}

struct Stage {
    secure: SocketAddr,
    insecure: SocketAddr,
    twin: Arc<Twin>,
    seen: Arc<Seen>,
    metrics: Metrics,
    running: tokio::task::JoinHandle<io::Result<()>>,
    shutdown: CancellationToken,
    _guard: DropGuard,
}

impl Stage {
    async fn start(setting: Setting) -> Self {
        Self::start_with(setting, None).await
    }

    /// [`Stage::start`], with another tunnel than the one that leads to the kubelet.
    async fn start_with(setting: Setting, other: Option<Arc<Twin>>) -> Self {
        Self::start_by(setting, other.unwrap_or_default(), None).await
    }

    /// [`Stage::start`], where `twin` leads to places that it knows, else to the kubelet; or `tunnels` instead of it.
    async fn start_by(
        setting: Setting,
        twin: Arc<Twin>,
        tunnels: Option<Arc<dyn Tunnels>>,
    ) -> Self {
        let shutdown = CancellationToken::new();
        let (seen, metrics) = (Arc::new(Seen::default()), Metrics::default());
        let tls = yurt_pki::server_config(&setting.kubelet, Some(&ca().cert_pem()), setting.http2)
            .unwrap();
        let encrypted = start_kubelet(Some(tls), seen.clone(), shutdown.clone()).await;
        let plain = start_kubelet(None, seen.clone(), shutdown.clone()).await;
        let places = [
            (format!("{NODE}:10250"), encrypted),
            (format!("{NODE}:8443"), encrypted),
            (format!("{NODE}:10255"), plain),
            ("127.0.0.1:10267".into(), plain),
            ("10.1.0.5:80".into(), plain),
        ];
        let twin = match twin.places.is_empty() {
            true => Arc::new(Twin {
                places: places.into(),
                ..Twin::default()
            }),
            false => twin,
        };
        let tunnels = tunnels.unwrap_or_else(|| twin.clone());
        let known = Arc::new(Known::default());
        let node = NodeFacts {
            name: "edge-1".into(),
            internal: vec![NODE.parse().unwrap()],
            kubelet_port: 10250,
            edge: true,
            ..NodeFacts::default()
        };
        known.put_node("edge-1", Some(node));
        let pod = PodFacts {
            node: "edge-1".into(),
            addresses: vec!["10.1.0.5".parse().unwrap()],
        };
        known.put_pod(&Key::new("shop", "cart"), Some(pod));
        let listen = async || TcpListener::bind("127.0.0.1:0").await.unwrap();
        let listeners = Listeners {
            secure: listen().await,
            insecure: listen().await,
        };
        let (secure, insecure) = (
            listeners.secure.local_addr().unwrap(),
            listeners.insecure.local_addr().unwrap(),
        );
        let own = serving(ca(), "127.0.0.1");
        let tls = yurt_pki::server_config(&own, Some(&ca().cert_pem()), true).unwrap();
        let believed = ca().cert_pem();
        let kubelets = KubeletTls::new(
            (!setting.insecure).then_some(believed.as_str()),
            Some(&proving("tunnel-proxy-client", "openyurt:yurttunnel")),
        );
        let config = Config {
            listeners,
            tls: Arc::new(ArcSwap::new(tls)),
            kubelets: Arc::new(ArcSwap::from_pointee(kubelets.unwrap())),
            callers: setting.callers,
            settings: watch::channel(Arc::new(Settings::default())).1,
            metrics: metrics.clone(),
            max_requests: setting.max_requests,
            drain: Duration::from_secs(1),
        };
        let running = tokio::spawn(run(config, tunnels, known, shutdown.clone()));
        Self {
            secure,
            insecure,
            twin,
            seen,
            metrics,
            running,
            _guard: shutdown.clone().drop_guard(),
            shutdown,
        }
    }

    fn opened(&self) -> usize {
        self.twin.opened.load(Ordering::SeqCst)
    }

    fn following(&self) -> usize {
        self.seen.following.load(Ordering::SeqCst)
    }

    /// A caller with (or without) a certificate, by these protocols.
    fn caller(&self, own: Option<&KeyPairPem>, protocols: &[&str]) -> Client {
        let tls = yurt_pki::client_config(&ca().cert_pem(), own, protocols).unwrap();
        Client::new(
            &self.secure.to_string(),
            Some(tls),
            ClientOptions::default(),
        )
    }

    /// The API server, by HTTP/1.1.
    fn component(&self) -> Client {
        let own = proving("kube-apiserver-kubelet-client", "system:masters");
        self.caller(Some(&own), &["http/1.1"])
    }

    /// A caller that speaks plain text.
    fn plain(&self) -> Client {
        Client::new(&self.insecure.to_string(), None, ClientOptions::default())
    }
}

/// `Client` sets `Host` itself, so callers here say by headers where to.
fn get(path: &str) -> Request<Body> {
    Request::get(path)
        .header("x-tunnel-proxy-host", "edge-1")
        .header("x-tunnel-proxy-dest", format!("{NODE}:10250"))
        .body(empty())
        .unwrap()
}

fn get_at(path: &str, destination: &str) -> Request<Body> {
    let mut request = get(path);
    let destination = destination.parse().unwrap();
    request
        .headers_mut()
        .insert("x-tunnel-proxy-dest", destination);
    request
}

async fn answer(client: &Client, request: Request<Body>) -> (StatusCode, String) {
    let response = client.send(request, LONG).await.unwrap();
    let status = response.status();
    let bytes = collect(response.into_body(), 1 << 20).await.unwrap();
    (status, String::from_utf8(bytes.to_vec()).unwrap())
}

async fn eventually(what: &str, within: Duration, mut holds: impl FnMut() -> bool) {
    let begin = tokio::time::Instant::now();
    while !holds() {
        assert!(begin.elapsed() < within, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
