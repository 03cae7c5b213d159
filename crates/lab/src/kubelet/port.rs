//! The kubelet's port: logs, commands in containers, port-forwards, figures. As a kubelet's, over TLS, for callers that the
//! cluster's CA or the API server vouches for.

mod access;
mod figures;
mod remote;
mod spdy;
mod terminal;
mod websocket;

use super::{
    Kubelet, KubeletHandle,
    container::{Container, shell, streams::Streams},
    logs::{self, Asked, Source},
    pod,
};
use arc_swap::ArcSwap;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use std::{io, sync::Arc, time::Duration};
use tokio::{io::AsyncReadExt, net::TcpListener, task::JoinHandle};
use tokio_util::sync::CancellationToken;
use yurt_pki::{KeyPairPem, PkiError};
use yurt_transport::{Body, ServeOptions, channel, full};
use yurt_wire::request::{query_pairs, truthy};

/// The port of a kubelet.
pub const PORT: u16 = 10250;
/// What `/run` prints at most.
const MAX_PRINTED: u64 = 1 << 20;
/// How long a client of a stream may take nothing.
const STALLED: Duration = Duration::from_secs(60);

/// How a kubelet's port is served.
#[derive(Clone, Debug)]
pub struct PortOptions {
    /// The node's certificate and key.
    pub serving: KeyPairPem,
    /// PEM of the CA whose client certificates are accepted.
    pub client_ca: String,
    /// Whether streams are served over WebSockets; kubelets before 1.36 refuse what kubectl offers, which then takes SPDY.
    pub websockets: bool,
}

impl KubeletHandle {
    /// Serves the kubelet's port until `shutdown`. Fails when certificates or keys are not usable.
    pub fn serve(
        &self,
        listener: TcpListener,
        options: PortOptions,
        shutdown: CancellationToken,
    ) -> Result<JoinHandle<io::Result<()>>, PkiError> {
        let config = yurt_pki::server_config(&options.serving, Some(&options.client_ca), true)?;
        let port = Arc::new(Port {
            kubelet: Arc::clone(&self.kubelet),
            websockets: options.websockets,
            shutdown: shutdown.clone(),
        });
        let bounds = ServeOptions {
            drain: Duration::from_secs(1),
            stalled_client: Some(STALLED),
            ..ServeOptions::default()
        };
        let config = Some(Arc::new(ArcSwap::from(config)));
        let served = yurt_transport::serve(listener, config, bounds, shutdown, move |request| {
            Arc::clone(&port).handle(request)
        });
        Ok(tokio::spawn(served))
    }
}

/// What answers.
struct Port {
    kubelet: Arc<Kubelet>,
    websockets: bool,
    shutdown: CancellationToken,
}

/// A refusal in plain text, as kubelets send them.
#[derive(Debug)]
struct Refusal(StatusCode, String);

impl Refusal {
    fn bad(message: impl Into<String>) -> Self {
        Self(StatusCode::BAD_REQUEST, message.into())
    }

    fn not_found(message: impl Into<String>) -> Self {
        Self(StatusCode::NOT_FOUND, message.into())
    }
}

type Answer = Result<Response<Body>, Refusal>;

/// Decoded pairs of a query.
struct Query(Vec<(String, String)>);

impl Query {
    fn first(&self, name: &str) -> Option<&str> {
        let found = self.0.iter().find(|(key, _)| key == name);
        found.map(|(_, value)| value.as_str())
    }

    fn flag(&self, name: &str) -> bool {
        self.first(name).is_some_and(truthy)
    }

    fn all(&self, name: &str) -> Vec<String> {
        let named = self.0.iter().filter(|(key, _)| key == name);
        named.map(|(_, value)| value.clone()).collect()
    }

    /// A number, not negative.
    fn number(&self, name: &str) -> Result<Option<u64>, Refusal> {
        let Some(text) = self.first(name) else {
            return Ok(None);
        };
        let number = text.parse();
        number
            .map(Some)
            .map_err(|_| Refusal::bad(format!("{name}: {text:?} is no number")))
    }
}

fn text(content_type: &'static str, text: impl Into<bytes::Bytes>) -> Response<Body> {
    let mut response = Response::new(full(text));
    let value = HeaderValue::from_static(content_type);
    response.headers_mut().insert(header::CONTENT_TYPE, value);
    response
}

impl Port {
    async fn handle(self: Arc<Self>, request: Request<Incoming>) -> Response<Body> {
        match Box::pin(self.answer(request)).await {
            Ok(response) => response,
            Err(Refusal(code, why)) => {
                let mut response = text("text/plain; charset=utf-8", why);
                *response.status_mut() = code;
                response
            }
        }
    }

    async fn answer(self: Arc<Self>, request: Request<Incoming>) -> Answer {
        access::check(&self.kubelet.api, &self.kubelet.config.node_name, &request).await?;
        let path = request.uri().path().trim_matches('/').to_owned();
        let parts: Vec<&str> = path.split('/').collect();
        let query = Query(query_pairs(request.uri().query().unwrap_or_default()));
        let get = matches!(*request.method(), Method::GET | Method::HEAD);
        let stream = get || request.method() == Method::POST;
        match parts.as_slice() {
            ["healthz", ..] if get => Ok(text("text/plain; charset=utf-8", "ok")),
            ["pods"] if get => {
                let pods: Vec<Value> = self.pods().iter().map(|pod| (**pod).clone()).collect();
                let list =
                    json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": pods});
                Ok(text("application/json", list.to_string()))
            }
            ["stats", "summary"] if get => {
                let summary = figures::summary(&self.node(), &self.pods(), Timestamp::now());
                Ok(text("application/json", summary.to_string()))
            }
            ["metrics", "resource"] if get => {
                let figures = figures::resource(&self.pods(), Timestamp::now());
                Ok(text(figures::CONTENT_TYPE, figures))
            }
            ["metrics"] if get => {
                let figures = figures::metrics(&self.node(), &self.pods());
                Ok(text(figures::CONTENT_TYPE, figures))
            }
            ["containerLogs", namespace, pod, container] if get => {
                self.logs(namespace, pod, container, &query)
            }
            ["run", namespace, pod, container] if request.method() == Method::POST => {
                self.run(namespace, pod, container, &query).await
            }
            [verb @ ("exec" | "attach"), namespace, pod, container]
            | [verb @ ("exec" | "attach"), namespace, pod, _, container]
                if stream =>
            {
                let container = self.running(namespace, pod, container)?;
                let command = match *verb {
                    "exec" => Some(query.all("command")),
                    _ => None,
                };
                remote::command(&self, request, container, command, &query)
            }
            ["portForward", namespace, pod] | ["portForward", namespace, pod, _] if stream => {
                let pod = self.pod(namespace, pod)?;
                remote::port_forward(&self, request, pod)
            }
            _ => Err(Refusal::not_found("404 page not found\n")),
        }
    }

    fn node(&self) -> Node {
        Node {
            name: self.kubelet.config.node_name.clone(),
        }
    }

    fn pods(&self) -> Vec<Arc<Value>> {
        let workers = self.kubelet.workers();
        let mut pods: Vec<_> = workers
            .iter()
            .map(|(key, w)| (key.clone(), w.pod()))
            .collect();
        drop(workers);
        pods.sort_by(|(a, _), (b, _)| a.cmp(b));
        pods.into_iter().map(|(_, pod)| pod).collect()
    }

    fn pod(&self, namespace: &str, name: &str) -> Result<Arc<Value>, Refusal> {
        let key = (namespace.to_owned(), name.to_owned());
        let found = self.kubelet.workers().get(&key).map(super::Worker::pod);
        found.ok_or_else(|| Refusal::not_found("pod does not exist"))
    }

    /// A container that runs.
    fn running(&self, namespace: &str, pod: &str, name: &str) -> Result<Arc<Container>, Refusal> {
        let pod = self.pod(namespace, pod)?;
        let runs = logs::statuses(&pod)
            .any(|status| status["name"] == name && status["state"]["running"].is_object());
        if !runs {
            let why = format!("container not found (\"{name}\")");
            return Err(Refusal(StatusCode::INTERNAL_SERVER_ERROR, why));
        }
        let containers = &self.kubelet.containers;
        Ok(Arc::new(containers.container(
            &pod,
            name,
            &self.kubelet.api,
        )))
    }

    fn logs(&self, namespace: &str, name: &str, container: &str, query: &Query) -> Answer {
        let key = (namespace.to_owned(), name.to_owned());
        let pod = self.kubelet.workers().get(&key).map(super::Worker::pod);
        let pod =
            pod.ok_or_else(|| Refusal::not_found(format!("pod \"{name}\" does not exist\n")))?;
        if super::container::spec_of(&pod, container).is_none() {
            let why = format!("container \"{container}\" not found in pod \"{name}\"\n");
            return Err(Refusal::not_found(why));
        }
        let asked = asked(query, Timestamp::now())?;
        let output = &self.kubelet.containers.logs;
        let Some(output) = output.of(pod::uid(&pod), container, asked.previous) else {
            return Err(Refusal::bad(no_output(
                &pod,
                name,
                container,
                asked.previous,
            )));
        };
        let mut reader = output.read(asked);
        let (sender, body) = channel(1);
        let shutdown = self.shutdown.clone();
        tokio::spawn(async move {
            loop {
                let piece = tokio::select! {
                    piece = reader.next() => piece,
                    () = sender.closed() => return,
                    () = shutdown.cancelled() => return,
                };
                let Some(piece) = piece else { return };
                if sender.send(Ok(piece)).await.is_err() {
                    return;
                }
            }
        });
        let mut response = Response::new(body);
        let plain = HeaderValue::from_static("text/plain");
        response.headers_mut().insert(header::CONTENT_TYPE, plain);
        Ok(response)
    }

    /// `/run`: a command's output as the answer.
    async fn run(&self, namespace: &str, pod: &str, container: &str, query: &Query) -> Answer {
        let container = self.running(namespace, pod, container)?;
        let words = query.first("cmd").unwrap_or_default();
        let command: Vec<String> = words.split_whitespace().map(str::to_owned).collect();
        let (ours, theirs) = tokio::io::duplex(64 << 10);
        let streams = Streams::new(&b""[..], theirs, None, None);
        let mut printed = Vec::new();
        let read = async { ours.take(MAX_PRINTED).read_to_end(&mut printed).await };
        let (code, _) = tokio::join!(shell::run(container, &command, streams), read);
        match code {
            0 => Ok(text("text/plain; charset=utf-8", printed)),
            code => Err(Refusal(
                StatusCode::INTERNAL_SERVER_ERROR,
                format!(
                    "command terminated with exit code {code}: {}",
                    String::from_utf8_lossy(&printed)
                ),
            )),
        }
    }
}

/// What the figures say of the node itself.
struct Node {
    name: String,
}

/// What a query asks for of a log.
fn asked(query: &Query, now: Timestamp) -> Result<Asked, Refusal> {
    let bound = |number: Option<u64>| number.map(|n| usize::try_from(n).unwrap_or(usize::MAX));
    let seconds = query.number("sinceSeconds")?;
    let since = match (query.first("sinceTime"), seconds) {
        (Some(time), _) => Some(
            time.parse()
                .map_err(|_| Refusal::bad(format!("sinceTime: {time:?} is no time")))?,
        ),
        (None, Some(seconds)) => {
            let ago = SignedDuration::from_secs(i64::try_from(seconds).unwrap_or(i64::MAX));
            Some(now.saturating_sub(ago).unwrap_or(Timestamp::MIN))
        }
        (None, None) => None,
    };
    let source = match query.first("stream") {
        None | Some("" | "All") => None,
        Some("Stdout") => Some(Source::Stdout),
        Some("Stderr") => Some(Source::Stderr),
        Some(other) => return Err(Refusal::bad(format!("stream: {other:?} is none"))),
    };
    Ok(Asked {
        follow: query.flag("follow"),
        previous: query.flag("previous"),
        timestamps: query.flag("timestamps"),
        tail: bound(query.number("tailLines")?),
        since,
        limit: bound(query.number("limitBytes")?),
        source,
    })
}

/// Why a container has no log, as a kubelet says it.
fn no_output(pod: &Value, name: &str, container: &str, previous: bool) -> String {
    if previous {
        return format!(
            "previous terminated container \"{container}\" in pod \"{name}\" not found"
        );
    }
    let status = logs::statuses(pod).find(|status| status["name"] == container);
    let reason = status
        .and_then(|status| status["state"]["waiting"]["reason"].as_str())
        .unwrap_or("ContainerCreating");
    format!("container \"{container}\" in pod \"{name}\" is waiting to start: {reason}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_ask_for_parts_of_a_log() {
        let now: Timestamp = "2026-11-22T00:01:00Z".parse().unwrap();
        let read = |query: &str| asked(&Query(query_pairs(query)), now);
        let all =
            read("follow=true&tailLines=3&limitBytes=10&sinceSeconds=60&stream=Stderr").unwrap();
        let expected = Asked {
            follow: true,
            tail: Some(3),
            limit: Some(10),
            since: Some("2026-11-22T00:00:00Z".parse().unwrap()),
            source: Some(Source::Stderr),
            ..Asked::default()
        };
        assert_eq!(all, expected);
        assert!(read("sinceSeconds=9223372036854775808").is_ok());
        for wrong in ["tailLines=-1", "sinceTime=now", "stream=x"] {
            assert_eq!(
                read(wrong).unwrap_err().0,
                StatusCode::BAD_REQUEST,
                "{wrong}"
            );
        }
    }
}
