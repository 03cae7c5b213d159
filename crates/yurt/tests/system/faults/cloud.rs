//! A scripted API server behind TLS, and the link to it.

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::{Request, Response, header};
use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{mpsc, watch},
};
use tokio_util::sync::CancellationToken;
use yurt_pki::{Ca, KeyPairPem, Profile};
use yurt_transport::{Body, BoxError, ServeOptions};

pub(crate) const JSON: &str = "application/json";

/// A CA and what it issued.
pub(crate) struct Trust {
    pub(crate) ca: Ca,
    pub(crate) node: KeyPairPem,
    serving: KeyPairPem,
}

impl Trust {
    pub(crate) fn new(name: &str) -> Self {
        let ca = Ca::new(name, 1).unwrap();
        let node = ca
            .issue(&Profile {
                common_name: "system:node:edge-1".into(),
                organizations: vec!["system:nodes".into()],
                client: true,
                days: 1,
                ..Profile::default()
            })
            .unwrap();
        let serving = ca
            .issue(&Profile {
                common_name: "server".into(),
                ips: vec!["127.0.0.1".parse().unwrap()],
                server: true,
                days: 1,
                ..Profile::default()
            })
            .unwrap();
        Self { ca, node, serving }
    }
}

/// What a path answers to a GET.
#[derive(Clone)]
enum Answer {
    Whole(Bytes),
    /// Half of it, and then nothing more; `announced`: with the length of the whole.
    Half {
        whole: Bytes,
        announced: bool,
    },
}

type Frames = mpsc::Sender<Result<Bytes, BoxError>>;

#[derive(Default)]
struct Script {
    answers: HashMap<String, Answer>,
    /// Method and target of every request.
    seen: Vec<String>,
    watches: Vec<Frames>,
    /// Streams that never end.
    held: Vec<Frames>,
}

/// The API server.
#[derive(Clone)]
pub(crate) struct Cloud {
    pub(crate) addr: SocketAddr,
    script: Arc<Mutex<Script>>,
}

impl Cloud {
    /// Runs until the runtime of the test ends.
    pub(crate) async fn start(trust: &Trust) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let cloud = Self {
            addr: listener.local_addr().unwrap(),
            script: Arc::default(),
        };
        cloud.answer("/livez", "ok");
        let tls =
            yurt_pki::server_config(&trust.serving, Some(&trust.ca.cert_pem()), true).unwrap();
        let handler = {
            let cloud = cloud.clone();
            move |request: Request<_>| {
                let response = cloud.handle(&request);
                // The rest of an upload is of no interest.
                drop(request);
                async move { response }
            }
        };
        tokio::spawn(yurt_transport::serve(
            listener,
            Some(Arc::new(ArcSwap::new(tls))),
            ServeOptions::default(),
            CancellationToken::new(),
            handler,
        ));
        cloud
    }

    /// From now on the path answers this.
    pub(crate) fn answer(&self, path: &str, body: impl Into<Bytes>) {
        self.set(path, Answer::Whole(body.into()));
    }

    /// From now on the path answers half of this and then falls silent.
    pub(crate) fn answer_half(&self, path: &str, whole: impl Into<Bytes>, announced: bool) {
        let whole = whole.into();
        self.set(path, Answer::Half { whole, announced });
    }

    fn set(&self, path: &str, answer: Answer) {
        let mut script = self.script.lock().unwrap();
        script.answers.insert(path.to_owned(), answer);
    }

    /// Requests so far, as `METHOD target`, but for the probes.
    pub(crate) fn seen(&self) -> Vec<String> {
        let script = self.script.lock().unwrap();
        let asked = script.seen.iter().filter(|seen| *seen != "GET /livez");
        asked.cloned().collect()
    }

    /// The newest open watch.
    pub(crate) fn watch(&self) -> Option<Frames> {
        let mut script = self.script.lock().unwrap();
        script.watches.retain(|watch| !watch.is_closed());
        script.watches.last().cloned()
    }

    /// Breaks off all watches.
    pub(crate) async fn break_watches(&self) {
        let watches = std::mem::take(&mut self.script.lock().unwrap().watches);
        for watch in watches {
            // One that is gone already is as good.
            let _ = watch.send(Err("broken on purpose".into())).await;
        }
    }

    fn handle<B>(&self, request: &Request<B>) -> Response<Body> {
        let mut script = self.script.lock().unwrap();
        let target = request.uri().path_and_query().unwrap().to_string();
        script.seen.push(format!("{} {target}", request.method()));
        if target.contains("watch=true") {
            let (frames, body) = yurt_transport::channel(16);
            script.watches.push(frames);
            let accept = request.headers().get(header::ACCEPT);
            let protobuf = accept.is_some_and(|a| a.to_str().unwrap().contains("protobuf"));
            let content_type = if protobuf {
                "application/vnd.kubernetes.protobuf;stream=watch"
            } else {
                JSON
            };
            return response(200, content_type, body);
        }
        match script.answers.get(request.uri().path()).cloned() {
            Some(Answer::Whole(body)) => response(200, JSON, yurt_transport::full(body)),
            Some(Answer::Half { whole, announced }) => {
                let (frames, body) = yurt_transport::channel(1);
                let half = whole.slice(..whole.len() / 2);
                frames.try_send(Ok(half)).unwrap();
                script.held.push(frames);
                let mut response = response(200, JSON, body);
                if announced {
                    response
                        .headers_mut()
                        .insert(header::CONTENT_LENGTH, whole.len().into());
                }
                response
            }
            None => response(404, JSON, yurt_transport::full(NOT_FOUND)),
        }
    }
}

const NOT_FOUND: &str = r#"{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"not found","reason":"NotFound","code":404}"#;

fn response(status: u16, content_type: &str, body: Body) -> Response<Body> {
    Response::builder()
        .status(status)
        .header(header::CONTENT_TYPE, content_type)
        .body(body)
        .unwrap()
}

/// What the link does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Path {
    /// Where it leads.
    target: SocketAddr,
    /// Whether anything passes.
    whole: bool,
}

/// A TCP relay: cut, packets vanish and nobody is told; led elsewhere, its connections break.
pub(crate) struct Link {
    pub(crate) addr: SocketAddr,
    path: watch::Sender<Path>,
}

impl Link {
    pub(crate) async fn to(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (path, paths) = watch::channel(Path {
            target,
            whole: true,
        });
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                tokio::spawn(relay(near, paths.clone()));
            }
        });
        Self { addr, path }
    }

    pub(crate) fn cut(&self) {
        self.path.send_modify(|path| path.whole = false);
    }

    pub(crate) fn heal(&self) {
        self.path.send_modify(|path| path.whole = true);
    }

    pub(crate) fn lead_to(&self, target: SocketAddr) {
        self.path.send_modify(|path| path.target = target);
    }
}

async fn relay(near: TcpStream, mut paths: watch::Receiver<Path>) {
    let Ok(path) = paths.wait_for(|path| path.whole).await.map(|path| *path) else {
        return;
    };
    let Ok(far) = TcpStream::connect(path.target).await else {
        return;
    };
    let (near_read, near_write) = near.into_split();
    let (far_read, far_write) = far.into_split();
    let mut led_elsewhere = paths.clone();
    tokio::select! {
        _ = led_elsewhere.wait_for(|now| now.target != path.target) => {}
        _ = async {
            tokio::join!(
                pump(near_read, far_write, paths.clone()),
                pump(far_read, near_write, paths.clone()),
            )
        } => {}
    }
}

async fn pump(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    mut paths: watch::Receiver<Path>,
) {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let read = from.read(&mut buffer).await;
        if paths.wait_for(|path| path.whole).await.is_err() {
            return;
        }
        match read {
            Ok(0) | Err(_) => {
                let _ = to.shutdown().await;
                return;
            }
            Ok(count) => {
                if to.write_all(&buffer[..count]).await.is_err() {
                    return;
                }
            }
        }
    }
}

/// Long enough for anything that should take moments.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
