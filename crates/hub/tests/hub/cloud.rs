//! A scripted API server behind TLS: answers what it is told to, and writes down what it was asked.

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::{net::TcpListener, sync::mpsc};
use tokio_util::sync::CancellationToken;
use yurt_pki::{Ca, KeyPairPem, Profile};
use yurt_transport::{Body, BoxError, Peer, ServeOptions};

pub(crate) const JSON: &str = "application/json";
pub(crate) const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";

/// One request as it came.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) method: Method,
    pub(crate) target: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    pub(crate) certificate: bool,
    /// Whose it is; empty without one.
    pub(crate) user: String,
}

/// What a path answers.
#[derive(Clone, Debug)]
pub(crate) enum Answer {
    Body(u16, &'static str, Bytes),
    /// With a tag, and nothing but 304 for who has it already.
    Tagged(&'static str, &'static str, Bytes),
    /// Compressed, when the client accepts that.
    Gzip(&'static str, Bytes),
    /// Nothing, for ever.
    Silence,
    /// The beginning of a body, and then nothing, for ever.
    Unfinished(&'static str),
    /// Switches protocols, and says back what it hears.
    Echo,
}

type Frames = mpsc::Sender<Result<Bytes, BoxError>>;

#[derive(Default)]
struct Script {
    answers: HashMap<(Method, String), Answer>,
    seen: Vec<Seen>,
    watchers: Vec<(String, Frames)>,
    watch_type: HashMap<String, &'static str>,
    refuse_watch: Option<(u16, Bytes)>,
}

#[derive(Clone)]
pub(crate) struct Cloud {
    pub(crate) addr: SocketAddr,
    script: Arc<Mutex<Script>>,
    stop: CancellationToken,
}

/// The CA of the tests and what it issued.
pub(crate) struct Trust {
    pub(crate) ca: Ca,
    pub(crate) node: KeyPairPem,
    pub(crate) serving: KeyPairPem,
}

impl Trust {
    pub(crate) fn new() -> Self {
        let ca = Ca::new("test", 1).unwrap();
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
                dns: vec!["localhost".into()],
                server: true,
                days: 1,
                ..Profile::default()
            })
            .unwrap();
        Self { ca, node, serving }
    }
}

impl Cloud {
    pub(crate) async fn start(trust: &Trust) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self::start_on(listener, trust, &trust.serving).await
    }

    /// With a certificate of its own.
    pub(crate) async fn start_on(
        listener: TcpListener,
        trust: &Trust,
        serving: &KeyPairPem,
    ) -> Self {
        let addr = listener.local_addr().unwrap();
        let tls = yurt_pki::server_config(serving, Some(&trust.ca.cert_pem()), true).unwrap();
        let cloud = Self {
            addr,
            script: Arc::default(),
            stop: CancellationToken::new(),
        };
        cloud.answer(Method::GET, "/livez", 200, "text/plain", "ok");
        cloud.answer(
            Method::GET,
            "/version",
            200,
            JSON,
            r#"{"major":"1","minor":"36"}"#,
        );
        let api: &[u8] = include_bytes!("../fixtures/kube-apiserver/discovery-api.json");
        let apis: &[u8] = include_bytes!("../fixtures/kube-apiserver/discovery-apis.json");
        cloud.answer(Method::GET, "/api", 200, JSON, api);
        cloud.answer(Method::GET, "/apis", 200, JSON, apis);
        let handler = {
            let cloud = cloud.clone();
            move |request| {
                let cloud = cloud.clone();
                async move { cloud.handle(request).await }
            }
        };
        let options = ServeOptions {
            drain: Duration::from_millis(50),
            ..ServeOptions::default()
        };
        let tls = Arc::new(ArcSwap::new(tls));
        tokio::spawn(yurt_transport::serve(
            listener,
            Some(tls),
            options,
            cloud.stop.clone(),
            handler,
        ));
        cloud
    }

    pub(crate) fn stop(&self) {
        self.stop.cancel();
    }

    pub(crate) fn answer(
        &self,
        method: Method,
        path: &str,
        status: u16,
        content_type: &'static str,
        body: impl Into<Bytes>,
    ) {
        self.set(
            method,
            path,
            Answer::Body(status, content_type, body.into()),
        );
    }

    pub(crate) fn set(&self, method: Method, path: &str, answer: Answer) {
        self.script
            .lock()
            .unwrap()
            .answers
            .insert((method, path.to_owned()), answer);
    }

    /// Requests so far whose target begins so.
    pub(crate) fn seen(&self, method: Method, prefix: &str) -> Vec<Seen> {
        let script = self.script.lock().unwrap();
        script
            .seen
            .iter()
            .filter(|seen| seen.method == method && seen.target.starts_with(prefix))
            .cloned()
            .collect()
    }

    /// Sends a frame to every watch on the path.
    pub(crate) async fn emit(&self, path: &str, frame: impl Into<Bytes>) -> usize {
        let frame = frame.into();
        let watchers = self.watchers(path);
        let mut reached = 0;
        for watcher in watchers {
            let sent =
                tokio::time::timeout(Duration::from_secs(5), watcher.send(Ok(frame.clone()))).await;
            reached += usize::from(matches!(sent, Ok(Ok(()))));
        }
        reached
    }

    /// Ends every watch on the path: cleanly, or with an error.
    pub(crate) async fn end_watches(&self, path: &str, broken: bool) {
        for watcher in self.watchers(path) {
            if broken {
                let _ = watcher.send(Err("broken on purpose".into())).await;
            }
        }
        self.script
            .lock()
            .unwrap()
            .watchers
            .retain(|(target, _)| !is_on(target, path));
    }

    fn watchers(&self, path: &str) -> Vec<Frames> {
        let script = self.script.lock().unwrap();
        script
            .watchers
            .iter()
            .filter(|(target, frames)| is_on(target, path) && !frames.is_closed())
            .map(|(_, frames)| frames.clone())
            .collect()
    }

    /// Watches open on the path.
    pub(crate) fn watching(&self, path: &str) -> usize {
        self.watchers(path).len()
    }

    /// Answers the next watches so, instead of opening them.
    pub(crate) fn refuse_watches(&self, refusal: Option<(u16, &'static str)>) {
        self.script.lock().unwrap().refuse_watch =
            refusal.map(|(code, body)| (code, Bytes::from_static(body.as_bytes())));
    }

    async fn handle(&self, mut request: Request<Incoming>) -> Response<Body> {
        let target = request.uri().path_and_query().unwrap().to_string();
        let path = request.uri().path().to_owned();
        let upgrade = request
            .extensions_mut()
            .remove::<hyper::upgrade::OnUpgrade>();
        let (parts, body) = request.into_parts();
        let body = yurt_transport::collect(body, 32 << 20)
            .await
            .unwrap_or_default();
        let shown = parts.extensions.get::<Peer>();
        let user = shown
            .and_then(|peer| yurt_pki::identity_of(peer.certificate.as_deref()?).ok())
            .map(|identity| identity.user);
        let answer = {
            let mut script = self.script.lock().unwrap();
            script.seen.push(Seen {
                method: parts.method.clone(),
                target: target.clone(),
                headers: parts.headers.clone(),
                body,
                certificate: user.is_some(),
                user: user.unwrap_or_default(),
            });
            if parts.method == Method::GET
                && (target.contains("watch=true") || target.contains("watch=1"))
            {
                if let Some((code, body)) = &script.refuse_watch {
                    return response(*code, JSON, body.clone());
                }
                let (frames, body) = yurt_transport::channel(64);
                let content_type = script.watch_type.get(&path).copied().unwrap_or(JSON);
                script.watchers.push((target, frames));
                let mut response = Response::new(body);
                response
                    .headers_mut()
                    .insert(header::CONTENT_TYPE, content_type.parse().unwrap());
                return response;
            }
            let accept = parts
                .headers
                .get(header::ACCEPT)
                .map_or("", |v| v.to_str().unwrap());
            let view = accept.contains("as=Table").then(|| {
                script
                    .answers
                    .get(&(parts.method.clone(), format!("{path}#table")))
                    .cloned()
            });
            // An answer to the very query before one to the path.
            let scripted = |key: &String| {
                let answers = &script.answers;
                answers.get(&(parts.method.clone(), key.clone())).cloned()
            };
            view.flatten()
                .or_else(|| scripted(&target))
                .or_else(|| scripted(&path))
        };
        match answer {
            Some(Answer::Body(status, content_type, body)) => response(status, content_type, body),
            Some(Answer::Tagged(tag, content_type, body)) => {
                let known = parts.headers.get(header::IF_NONE_MATCH).is_some_and(|known| known == tag);
                let mut answer = match known {
                    true => response(304, content_type, Bytes::new()),
                    false => response(200, content_type, body),
                };
                answer
                    .headers_mut()
                    .insert(header::ETAG, header::HeaderValue::from_static(tag));
                answer
            }
            Some(Answer::Gzip(content_type, body)) => {
                let accepted = parts
                    .headers
                    .get(header::ACCEPT_ENCODING)
                    .is_some_and(|value| value.to_str().unwrap().contains("gzip"));
                if !accepted {
                    return response(200, content_type, body);
                }
                let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                std::io::Write::write_all(&mut gzip, &body).unwrap();
                let mut response = response(200, content_type, gzip.finish().unwrap().into());
                response
                    .headers_mut()
                    .insert(header::CONTENT_ENCODING, "gzip".parse().unwrap());
                response
            }
            Some(Answer::Silence) => std::future::pending().await,
            Some(Answer::Unfinished(beginning)) => {
                let (frames, body) = yurt_transport::channel(1);
                tokio::spawn(async move {
                    let _ = frames.send(Ok(beginning.into())).await;
                    frames.closed().await;
                });
                let mut response = Response::new(body);
                response
                    .headers_mut()
                    .insert(header::CONTENT_TYPE, JSON.parse().unwrap());
                response
            }
            Some(Answer::Echo) => {
                let Some(upgrade) = upgrade else {
                    return response(400, JSON, Bytes::from_static(b"{}"));
                };
                tokio::spawn(async move {
                    let stream = TokioIo::new(upgrade.await.unwrap());
                    let (mut reader, mut writer) = tokio::io::split(stream);
                    let _ = tokio::io::copy(&mut reader, &mut writer).await;
                });
                let mut response = Response::new(yurt_transport::empty());
                *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
                for name in [header::CONNECTION, header::UPGRADE] {
                    if let Some(value) = parts.headers.get(&name) {
                        response.headers_mut().insert(name, value.clone());
                    }
                }
                response
            }
            None => response(
                404,
                JSON,
                Bytes::from_static(br#"{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"not found","reason":"NotFound","code":404}"#),
            ),
        }
    }
}

/// Whether a target is on a path, or has a query that begins so.
fn is_on(target: &str, path: &str) -> bool {
    match target.strip_prefix(path) {
        Some(rest) if path.contains('?') => rest.is_empty() || rest.starts_with('&'),
        Some(rest) => rest.is_empty() || rest.starts_with('?'),
        None => false,
    }
}

fn response(status: u16, content_type: &str, body: Bytes) -> Response<Body> {
    let mut response = Response::new(yurt_transport::full(body));
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, content_type.parse().unwrap());
    response
}
