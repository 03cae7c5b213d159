//! What a simulated container answers on its ports: which pod it is, and what it was asked.

use super::super::logs::{Output, Source};
use bytes::Bytes;
use http::{HeaderValue, Request, Response, header};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Map, Value, json};
use std::{convert::Infallible, sync::Arc, time::Duration};
use tokio::io::{AsyncRead, AsyncWrite};

/// How long a client may take to say what it wants.
const HEAD: Duration = Duration::from_secs(30);

/// Serves HTTP/1.1 on a stream to `port` of the pod.
pub(crate) async fn serve<S>(stream: S, pod: Arc<Value>, port: u16, output: Option<Arc<Output>>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(move |request: Request<Incoming>| {
        if let Some(output) = &output {
            let line = format!("{} {} on port {port}", request.method(), request.uri());
            output.append(Source::Stdout, line.as_bytes());
        }
        let answer = answer(&pod, port, &request);
        async move { Ok::<_, Infallible>(answer) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .half_close(true)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, port, "a connection to a simulated container ended");
    }
}

fn answer<B>(pod: &Value, port: u16, request: &Request<B>) -> Response<Full<Bytes>> {
    let headers: Map<String, Value> = request
        .headers()
        .iter()
        .map(|(name, value)| {
            let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
            (name.to_string(), value.into())
        })
        .collect();
    let meta = &pod["metadata"];
    let text = json!({
        "pod": meta["name"], "namespace": meta["namespace"], "node": pod["spec"]["nodeName"],
        "port": port, "method": request.method().as_str(), "path": request.uri().to_string(),
        "headers": headers,
    });
    let mut response = Response::new(Full::new(format!("{text}\n").into()));
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    response
}

/// The container that declares a port.
pub(crate) fn container_of(pod: &Value, port: u16) -> Option<&str> {
    let containers = pod["spec"]["containers"].as_array()?;
    let of_port = containers.iter().find(|container| {
        let ports = container["ports"].as_array().into_iter().flatten();
        ports
            .into_iter()
            .any(|declared| declared["containerPort"] == port)
    })?;
    of_port["name"].as_str()
}
