//! What is not answered here but by a kubelet, a pod or a service: `pods/log`, `exec`, `attach`, `portforward`, and the `proxy`
//! subresources of nodes, pods and services. Finds out where ([`location`]), asks there, and passes bytes on as they come: what a
//! client does not read is not read from the backend either.

mod failure;
mod location;
mod lookup;
mod options;
mod request;

use crate::{
    config::Kubelets,
    registry::{Registry, Reply},
};
use bytes::Bytes;
use failure::{BackendError, dial_error, exchange_error, kubelet_error, unknown};
use http::{
    HeaderMap, HeaderValue, Method, Request, Response, StatusCode,
    header::{self, HeaderName},
    request::Parts,
};
use http_body_util::BodyExt;
use hyper::upgrade::OnUpgrade;
use lookup::{Backend, Channel, Lookup};
use options::{ExecOptions, LogOptions};
use request::{host_of, passed_headers, request};
use std::sync::Arc;
use tokio_util::sync::CancellationToken;
use yurt_pki::PkiError;
use yurt_transport::{
    Body, ResponseBody, exchange, full, is_upgrade, join_upgraded, strip_hop_by_hop,
};
use yurt_wire::{Reason, RequestInfo, Status, Verb, request::query_pairs};

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
            tokio::select! {
                () = join_upgraded(client, switched) => {}
                () = shutdown.cancelled() => {}
            }
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
