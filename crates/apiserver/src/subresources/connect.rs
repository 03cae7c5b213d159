//! What is not answered here but by a kubelet, a pod or a service: `pods/log`, `exec`, `attach`, `portforward`, and the `proxy`
//! subresources of nodes, pods and services. Finds out where ([`location`]), asks there, and passes bytes on as they come: what a
//! client does not read is not read from the backend either.

mod location;
mod options;
mod relay;

use crate::{
    config::Kubelets,
    registry::{Registry, Reply},
};
use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue, Method, Request, Response, StatusCode,
    header::{self, HeaderName},
    request::Parts,
};
use http_body_util::BodyExt;
use hyper::upgrade::OnUpgrade;
use location::Id;
use options::{ExecOptions, LogOptions};
use serde_json::Value;
use std::{io, sync::Arc, time::Duration};
use tokio_util::sync::CancellationToken;
use yurt_pki::PkiError;
use yurt_transport::{
    Body, Destination, ExchangeError, Peer, ResponseBody, collect, exchange, full, is_upgrade,
    strip_hop_by_hop,
};
use yurt_wire::{Reason, RequestInfo, Status, Verb, request::query_pairs};

/// What is read of a kubelet's error.
const MAX_ERROR: usize = 50_000;
/// How long a kubelet's error may take to arrive.
const ERROR_PATIENCE: Duration = Duration::from_secs(10);
/// Browsers bring their token as a WebSocket protocol.
const TOKEN_PROTOCOL: &str = "base64url.bearer.authorization.k8s.io.";
/// What a backend says about origins is said about itself, not about this server.
const CORS: [HeaderName; 4] = [
    header::ACCESS_CONTROL_ALLOW_CREDENTIALS,
    header::ACCESS_CONTROL_ALLOW_HEADERS,
    header::ACCESS_CONTROL_ALLOW_METHODS,
    header::ACCESS_CONTROL_ALLOW_ORIGIN,
];

/// A subresource that is a connection to something behind the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Connect {
    Log,
    Exec,
    Attach,
    PortForward,
    PodProxy,
    ServiceProxy,
    NodeProxy,
}

impl Connect {
    /// Which one a request is about, if any.
    pub(crate) fn of(info: &RequestInfo) -> Option<Self> {
        if !info.group.is_empty() || info.version != "v1" || info.verb == Verb::Proxy {
            return None;
        }
        let namespaced = !info.namespace.is_empty();
        Some(
            match (
                info.resource.as_str(),
                info.subresource.as_str(),
                namespaced,
            ) {
                ("pods", "log", true) => Self::Log,
                ("pods", "exec", true) => Self::Exec,
                ("pods", "attach", true) => Self::Attach,
                ("pods", "portforward", true) => Self::PortForward,
                ("pods", "proxy", true) => Self::PodProxy,
                ("services", "proxy", true) => Self::ServiceProxy,
                ("nodes", "proxy", false) => Self::NodeProxy,
                _ => return None,
            },
        )
    }

    fn is_proxy(self) -> bool {
        matches!(self, Self::PodProxy | Self::ServiceProxy | Self::NodeProxy)
    }

    fn allows(self, method: &Method) -> bool {
        let methods: &[Method] = match self {
            Self::Log => &[Method::GET, Method::HEAD],
            Self::Exec | Self::Attach | Self::PortForward => &[Method::GET, Method::POST],
            _ => &[
                Method::GET,
                Method::HEAD,
                Method::POST,
                Method::PUT,
                Method::PATCH,
                Method::DELETE,
                Method::OPTIONS,
            ],
        };
        methods.contains(method)
    }
}

/// What a backend must prove.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Channel {
    /// Nothing, in plain text.
    Plain,
    /// To be a kubelet.
    Kubelet,
    /// Nothing, though the server shows it who it is.
    AnyKubelet,
    /// Nothing, and nothing is shown to it.
    AnyPod,
}

/// Where a request goes.
#[derive(Debug)]
struct Backend {
    channel: Channel,
    to: Destination,
    /// Encoded path; may be empty for proxies.
    path: String,
    /// Without the question mark.
    query: String,
}

impl Backend {
    fn scheme(&self) -> &'static str {
        match self.channel {
            Channel::Plain => "http",
            _ => "https",
        }
    }

    fn target(&self) -> String {
        let path = if self.path.is_empty() {
            "/"
        } else {
            &self.path
        };
        match self.query.is_empty() {
            true => path.to_owned(),
            false => format!("{path}?{}", self.query),
        }
    }
}

/// Why a backend gave no answer.
#[derive(Debug, thiserror::Error)]
enum BackendError {
    #[error("dial tcp {0}: {1}")]
    Dial(String, String),
    #[error("{0}")]
    Exchange(String),
}

/// Reaches kubelets, pods and services.
#[derive(Debug)]
pub(crate) struct Connector {
    settings: Kubelets,
    kubelet: Arc<rustls::ClientConfig>,
    any_kubelet: Arc<rustls::ClientConfig>,
    any_pod: Arc<rustls::ClientConfig>,
    shutdown: CancellationToken,
}

impl Connector {
    /// Fails when certificates or keys are not usable.
    pub(crate) fn new(settings: Kubelets, shutdown: CancellationToken) -> Result<Self, PkiError> {
        let client = settings.client.as_ref();
        let any_kubelet = yurt_pki::unverified_client_config(client)?;
        Ok(Self {
            kubelet: match &settings.ca {
                Some(ca) => yurt_pki::client_config(ca, client, &["http/1.1"])?,
                None => any_kubelet.clone(),
            },
            any_kubelet,
            any_pod: yurt_pki::unverified_client_config(None)?,
            settings,
            shutdown,
        })
    }

    /// Answers a request that authorisation has let through.
    pub(crate) async fn serve(
        &self,
        registry: &Registry,
        connect: Connect,
        info: &RequestInfo,
        parts: &Parts,
        body: Body,
    ) -> Reply<Response<Body>> {
        if info.parts.len() > 3 && !connect.is_proxy() {
            return Err(Box::new(Status::new(
                Reason::NotFound,
                "the server could not find the requested resource",
            )));
        }
        if !connect.allows(&parts.method) {
            return Err(Box::new(Status::method_not_allowed(
                "",
                &info.resource,
                info.verb.as_str(),
            )));
        }
        let pairs = query_pairs(&info.query);
        if connect != Connect::Log
            && pairs
                .iter()
                .any(|(name, v)| name == "dryRun" && !v.is_empty())
        {
            return Err(Box::new(Status::bad_request("dryRun is not supported")));
        }
        let lookup = Lookup {
            registry,
            settings: &self.settings,
            namespace: &info.namespace,
        };
        match connect {
            Connect::Log => {
                let options = LogOptions::read(&info.name, &pairs)?;
                match lookup.log(&info.name, &options)? {
                    Some(backend) => self.log(&info.name, backend).await,
                    None => Ok(no_content()),
                }
            }
            Connect::Exec | Connect::Attach => {
                let options = ExecOptions::read(&pairs);
                let verb = if connect == Connect::Exec {
                    "exec"
                } else {
                    "attach"
                };
                let backend = lookup.container(&info.name, &options.container, verb)?;
                let query = options.query();
                self.stream(Backend { query, ..backend }, parts).await
            }
            Connect::PortForward => {
                let query = options::port_query(&pairs)?;
                let backend = lookup.port_forward(&info.name)?;
                self.stream(Backend { query, ..backend }, parts).await
            }
            Connect::NodeProxy => {
                let backend = lookup.node_proxy(&info.name)?;
                self.proxy(backend, info, parts, body).await
            }
            Connect::PodProxy => {
                let backend = lookup.pod_proxy(&info.name)?;
                self.proxy(backend, info, parts, body).await
            }
            Connect::ServiceProxy => {
                let backend = lookup.service_proxy(&info.name)?;
                self.proxy(backend, info, parts, body).await
            }
        }
    }

    /// Opens a stream and sends a request on it.
    async fn send(
        &self,
        backend: &Backend,
        request: Request<Body>,
    ) -> Result<Response<ResponseBody>, BackendError> {
        let to = backend.to.to_string();
        let dial = self.settings.dialer.dial(&backend.to);
        let stream = match tokio::time::timeout(self.settings.connect_timeout, dial).await {
            Err(_) => return Err(BackendError::Dial(to, "i/o timeout".into())),
            Ok(Err(error)) => return Err(BackendError::Dial(to, dial_error(&error))),
            Ok(Ok(stream)) => stream,
        };
        let host = backend.to.host.as_str();
        let tls = match backend.channel {
            Channel::Plain => None,
            Channel::Kubelet => Some((self.kubelet.clone(), host)),
            Channel::AnyKubelet => Some((self.any_kubelet.clone(), host)),
            Channel::AnyPod => Some((self.any_pod.clone(), host)),
        };
        exchange(stream, tls, request, self.settings.answer_timeout)
            .await
            .map_err(|error| BackendError::Exchange(exchange_error(&error, host)))
    }

    /// `pods/log`.
    async fn log(&self, pod: &str, backend: Backend) -> Reply<Response<Body>> {
        let request = request(
            &Method::GET,
            &backend,
            HeaderMap::new(),
            yurt_transport::empty(),
        )?;
        let response = self.send(&backend, request).await.map_err(|error| {
            unknown(format!(
                "Get \"{}://{}{}\": {error}",
                backend.scheme(),
                backend.to,
                backend.target()
            ))
        })?;
        let code = response.status();
        if !(200..=206).contains(&code.as_u16()) {
            return Err(kubelet_error(pod, code, response.into_body()).await);
        }
        let mut answer = Response::new(passed(response.into_body()));
        answer
            .headers_mut()
            .insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
        Ok(answer)
    }

    /// `exec`, `attach` and `portforward`, which are nothing without an upgrade.
    async fn stream(&self, backend: Backend, parts: &Parts) -> Reply<Response<Body>> {
        if !is_upgrade(&parts.headers) {
            return Err(Box::new(Status::bad_request("Upgrade request required")));
        }
        self.upgrade(backend, parts).await
    }

    async fn upgrade(&self, backend: Backend, parts: &Parts) -> Reply<Response<Body>> {
        let Some(client) = parts.extensions.get::<OnUpgrade>().cloned() else {
            return Err(Box::new(Status::bad_request(
                "this connection cannot be upgraded",
            )));
        };
        let headers = passed_headers(parts, true);
        let request = request(&parts.method, &backend, headers, yurt_transport::empty())?;
        let mut response = self
            .send(&backend, request)
            .await
            .map_err(|error| unknown(format!("error dialing backend: {error}")))?;
        let code = response.status();
        if code != StatusCode::SWITCHING_PROTOCOLS {
            if code.as_u16() < 400 {
                return Err(unknown(format!(
                    "invalid upgrade response: status code {}",
                    code.as_u16()
                )));
            }
            strip_hop_by_hop(response.headers_mut(), false);
            return Ok(response.map(passed));
        }
        let Some(switched) = response.extensions_mut().remove::<OnUpgrade>() else {
            return Err(unknown(
                "the backend's connection cannot be switched".into(),
            ));
        };
        let (mut head, held) = response.into_parts();
        strip_hop_by_hop(&mut head.headers, true);
        let shutdown = self.shutdown.clone();
        tokio::spawn(async move {
            relay::join(client, switched, shutdown).await;
            drop(held);
        });
        let mut answer = Response::new(yurt_transport::empty());
        *answer.status_mut() = code;
        *answer.headers_mut() = head.headers;
        Ok(answer)
    }

    /// The `proxy` subresources.
    async fn proxy(
        &self,
        backend: Backend,
        info: &RequestInfo,
        parts: &Parts,
        body: Body,
    ) -> Reply<Response<Body>> {
        let path = location::proxied_path(&info.parts, &info.path);
        let asked = parts.uri.path();
        let backend = Backend {
            query: info.query.clone(),
            path,
            ..backend
        };
        if is_upgrade(&parts.headers) {
            return self.upgrade(backend, parts).await;
        }
        if backend.path.is_empty() && matches!(parts.method, Method::GET | Method::HEAD) {
            let query = match info.query.as_str() {
                "" => String::new(),
                query => format!("?{query}"),
            };
            return Ok(moved(&format!("{asked}/{query}")));
        }
        let mut headers = passed_headers(parts, false);
        if let Ok(uri) = HeaderValue::from_str(asked) {
            headers.insert("x-forwarded-uri", uri);
        }
        let request = request(&parts.method, &backend, headers, body)?;
        let response = self.send(&backend, request).await.map_err(|error| {
            Box::new(Status::service_unavailable(format!(
                "error trying to reach service: {error}"
            )))
        })?;
        let (mut head, body) = response.into_parts();
        strip_hop_by_hop(&mut head.headers, false);
        for name in CORS {
            head.headers.remove(name);
        }
        let redirect = head.headers.get(header::LOCATION);
        if let Some(redirect) = redirect.and_then(|value| value.to_str().ok()) {
            let prefix = asked.strip_suffix(backend.path.as_str()).unwrap_or(asked);
            let there = backend.to.to_string();
            let rewritten = location::redirected(redirect, &there, host_of(parts), prefix);
            if let Ok(value) = HeaderValue::from_str(&rewritten) {
                head.headers.insert(header::LOCATION, value);
            }
        }
        let mut answer = Response::new(passed(body));
        *answer.status_mut() = head.status;
        *answer.headers_mut() = head.headers;
        Ok(answer)
    }
}

/// Finds what a request names among the stored objects.
struct Lookup<'a> {
    registry: &'a Registry,
    settings: &'a Kubelets,
    namespace: &'a str,
}

impl Lookup<'_> {
    fn find(&self, resource: &str, namespace: &str, name: &str) -> Reply<Value> {
        let partition = format!("/{resource}").into();
        let key = crate::storage::Key::new(namespace, name);
        let found = self.registry.storage.get(&partition, &key);
        found
            .map(|stored| stored.value())
            .ok_or_else(|| Box::new(Status::not_found("", resource, name)))
    }

    fn pod(&self, name: &str) -> Reply<Value> {
        self.find("pods", self.namespace, name)
    }

    /// The kubelet of a node.
    fn kubelet(&self, node: &str) -> Reply<Backend> {
        let object = self.find("nodes", "", node)?;
        let (host, port) = location::kubelet(&object, &self.settings.preferred_addresses)?;
        Ok(Backend {
            channel: Channel::Kubelet,
            to: Destination {
                node: Some(node.to_owned()),
                host,
                port,
            },
            path: String::new(),
            query: String::new(),
        })
    }

    /// `None`: the pod is on no node, so that there are no logs.
    fn log(&self, name: &str, options: &LogOptions) -> Reply<Option<Backend>> {
        let pod = self.pod(name)?;
        let container = location::container(&pod, &options.container)?;
        let Some(node) = location::node_of(&pod) else {
            return Ok(None);
        };
        let mut backend = self.kubelet(node)?;
        backend.path = format!("/containerLogs/{}/{name}/{container}", self.namespace);
        backend.query = options.query();
        if options.insecure_backend {
            backend.channel = Channel::AnyKubelet;
        }
        Ok(Some(backend))
    }

    fn container(&self, name: &str, container: &str, verb: &str) -> Reply<Backend> {
        let pod = self.pod(name)?;
        let container = location::container(&pod, container)?;
        let node = location::node_of(&pod).ok_or_else(|| location::no_host(name))?;
        let path = format!("/{verb}/{}/{name}/{container}", self.namespace);
        Ok(Backend {
            path,
            ..self.kubelet(node)?
        })
    }

    fn port_forward(&self, name: &str) -> Reply<Backend> {
        let pod = self.pod(name)?;
        let node = location::node_of(&pod).ok_or_else(|| location::no_host(name))?;
        let path = format!("/portForward/{}/{name}", self.namespace);
        Ok(Backend {
            path,
            ..self.kubelet(node)?
        })
    }

    fn node_proxy(&self, id: &str) -> Reply<Backend> {
        let id = Id::parse(id, "node")?;
        let mut backend = self.kubelet(id.name)?;
        if id.port.is_empty() || id.port == backend.to.port.to_string() {
            return Ok(backend);
        }
        if !location::is_proxyable(&backend.to.host) {
            return Err(location::not_allowed());
        }
        backend.to.port = location::port_number(id.port)?;
        backend.channel = pod_channel(&id);
        Ok(backend)
    }

    fn pod_proxy(&self, id: &str) -> Reply<Backend> {
        let id = Id::parse(id, "pod")?;
        let pod = self.pod(id.name)?;
        let (host, port) = location::pod(&pod, &id)?;
        Ok(Backend {
            channel: pod_channel(&id),
            to: Destination {
                node: location::node_of(&pod).map(str::to_owned),
                host: host.to_owned(),
                port,
            },
            path: String::new(),
            query: String::new(),
        })
    }

    fn service_proxy(&self, id: &str) -> Reply<Backend> {
        let id = Id::parse(id, "service")?;
        let service = self.find("services", self.namespace, id.name)?;
        let port = location::service_port(&service, &id)?;
        let partition = "discovery.k8s.io/endpointslices".into();
        let (slices, _) = self.registry.storage.list(&partition, self.namespace, None);
        let slices: Vec<Value> = slices
            .iter()
            .filter(|slice| {
                let mut labels = slice.labels.iter();
                labels.any(|(k, v)| k == "kubernetes.io/service-name" && v == id.name)
            })
            .map(|slice| slice.value())
            .collect();
        let mut candidates = location::endpoints(&service, &slices, port);
        fastrand::shuffle(&mut candidates);
        let usable = |endpoint: &location::Endpoint| {
            location::is_proxyable(&endpoint.address)
                && self
                    .pod(&endpoint.pod)
                    .is_ok_and(|pod| location::has_address(&pod, &endpoint.address))
        };
        let Some(endpoint) = candidates.into_iter().find(usable) else {
            let name = Value::from(id.name);
            return Err(Box::new(Status::service_unavailable(format!(
                "no endpoints available for service {name}"
            ))));
        };
        Ok(Backend {
            channel: pod_channel(&id),
            to: Destination {
                node: endpoint.node,
                host: endpoint.address,
                port: endpoint.port,
            },
            path: String::new(),
            query: String::new(),
        })
    }
}

fn pod_channel(id: &Id<'_>) -> Channel {
    if id.https {
        Channel::AnyPod
    } else {
        Channel::Plain
    }
}

/// An error of something behind the server: 500 without a reason, as kube-apiserver passes it on.
fn unknown(message: String) -> Box<Status> {
    Box::new(Status::new(Reason::Unknown, message))
}

fn no_content() -> Response<Body> {
    let mut response = Response::new(yurt_transport::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    response
}

fn moved(to: &str) -> Response<Body> {
    let mut response = no_content();
    *response.status_mut() = StatusCode::MOVED_PERMANENTLY;
    if let Ok(location) = HeaderValue::from_str(to) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    response
}

/// A backend's body as ours; when it breaks, the client's breaks too.
fn passed(body: ResponseBody) -> Body {
    body.map_err(Into::into).boxed_unsync()
}

/// The host a client asked for.
fn host_of(parts: &Parts) -> &str {
    let header = parts.headers.get(header::HOST);
    header
        .and_then(|host| host.to_str().ok())
        .or_else(|| parts.uri.authority().map(http::uri::Authority::as_str))
        .unwrap_or_default()
}

/// The headers of a request that the backend gets to see: no credentials for this server, nothing about this hop.
fn passed_headers(parts: &Parts, upgrade: bool) -> HeaderMap {
    let mut headers = parts.headers.clone();
    strip_hop_by_hop(&mut headers, upgrade);
    headers.remove(header::AUTHORIZATION);
    headers.remove(header::EXPECT);
    let lent: Vec<HeaderName> = headers
        .keys()
        .filter(|name| name.as_str().starts_with("impersonate-"))
        .cloned()
        .collect();
    for name in lent {
        headers.remove(name);
    }
    let protocols: Vec<String> = headers
        .get_all(header::SEC_WEBSOCKET_PROTOCOL)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|text| text.split(','))
        .map(|protocol| protocol.trim().to_owned())
        .filter(|protocol| !protocol.starts_with(TOKEN_PROTOCOL))
        .collect();
    headers.remove(header::SEC_WEBSOCKET_PROTOCOL);
    if let Ok(value) = HeaderValue::from_str(&protocols.join(", "))
        && !protocols.is_empty()
    {
        headers.insert(header::SEC_WEBSOCKET_PROTOCOL, value);
    }
    if let Ok(host) = HeaderValue::from_str(host_of(parts)) {
        headers.insert(header::HOST, host);
    }
    if let Some(peer) = parts.extensions.get::<Peer>() {
        let name = HeaderName::from_static("x-forwarded-for");
        let earlier = headers.get(&name).and_then(|value| value.to_str().ok());
        let client = peer.addr.ip();
        let chain = match earlier {
            Some(earlier) => format!("{earlier}, {client}"),
            None => client.to_string(),
        };
        if let Ok(chain) = HeaderValue::from_str(&chain) {
            headers.insert(name, chain);
        }
    }
    headers
}

fn request(
    method: &Method,
    backend: &Backend,
    headers: HeaderMap,
    body: Body,
) -> Reply<Request<Body>> {
    let mut request = Request::new(body);
    *request.method_mut() = method.clone();
    *request.uri_mut() = backend
        .target()
        .parse()
        .map_err(|error| Box::new(Status::bad_request(format!("the path: {error}"))))?;
    *request.headers_mut() = headers;
    if !request.headers().contains_key(header::HOST) {
        let host = HeaderValue::from_str(&backend.to.to_string())
            .map_err(|error| Box::new(Status::bad_request(format!("the host: {error}"))))?;
        request.headers_mut().insert(header::HOST, host);
    }
    Ok(request)
}

/// What Go says about a connection that was not made: people and tools look for it.
fn dial_error(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "connect: connection refused".into(),
        io::ErrorKind::HostUnreachable => "connect: no route to host".into(),
        io::ErrorKind::NetworkUnreachable => "connect: network is unreachable".into(),
        io::ErrorKind::ConnectionReset => "connect: connection reset by peer".into(),
        io::ErrorKind::TimedOut => "i/o timeout".into(),
        _ => format!("connect: {error}"),
    }
}

/// What Go says about a failed exchange, where it has words for it.
fn exchange_error(error: &ExchangeError, host: &str) -> String {
    use rustls::{CertificateError as Certificate, Error as Tls};
    let why = match error.tls() {
        Some(Tls::InvalidCertificate(Certificate::UnknownIssuer)) => {
            "certificate signed by unknown authority".to_owned()
        }
        Some(Tls::InvalidCertificate(
            Certificate::NotValidForName | Certificate::NotValidForNameContext { .. },
        )) => format!("certificate is not valid for {host}"),
        Some(Tls::InvalidCertificate(
            Certificate::Expired
            | Certificate::ExpiredContext { .. }
            | Certificate::NotValidYet
            | Certificate::NotValidYetContext { .. },
        )) => "certificate has expired or is not yet valid".to_owned(),
        Some(Tls::InvalidCertificate(other)) => format!("{other:?}"),
        Some(other) => return format!("tls: {other}"),
        None => return error.to_string(),
    };
    format!("tls: failed to verify certificate: x509: {why}")
}

/// A kubelet's refusal as a Status.
async fn kubelet_error(pod: &str, code: StatusCode, body: ResponseBody) -> Box<Status> {
    let read = tokio::time::timeout(ERROR_PATIENCE, collect(body, MAX_ERROR)).await;
    let text = match read {
        Ok(Ok(bytes)) => String::from_utf8_lossy(&bytes).into_owned(),
        Ok(Err(error)) => return Box::new(Status::internal_error(error)),
        Err(_) => return Box::new(Status::internal_error("the kubelet's error did not arrive")),
    };
    Box::new(match code {
        StatusCode::INTERNAL_SERVER_ERROR => Status::internal_error(text),
        StatusCode::BAD_REQUEST => Status::bad_request(text),
        other => {
            let reason = Reason::of_code(other.as_u16()).unwrap_or(Reason::Unknown);
            let words = match other {
                StatusCode::NOT_FOUND => "the server could not find the requested resource".into(),
                StatusCode::FORBIDDEN | StatusCode::UNAUTHORIZED => text,
                other => format!(
                    "the server responded with the status code {} but did not return more information",
                    other.as_u16()
                ),
            };
            let pod = Value::from(pod);
            Status::new(reason, format!("{words} ( pods/log {pod})"))
        }
    })
}

/// Any request body as ours.
pub(crate) fn streamed<B>(body: B) -> Body
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<yurt_transport::BoxError>,
{
    if body.is_end_stream() {
        return full(Bytes::new());
    }
    body.map_err(Into::into).boxed_unsync()
}
