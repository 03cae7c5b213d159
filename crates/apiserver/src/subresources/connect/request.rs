//! Requests as a backend gets them.

use super::lookup::Backend;
use crate::registry::Reply;
use http::{
    HeaderMap, HeaderValue, Method, Request,
    header::{self, HeaderName},
    request::Parts,
};
use yurt_transport::{Body, Peer, strip_hop_by_hop};
use yurt_wire::Status;

/// Browsers bring their token as a WebSocket protocol.
const TOKEN_PROTOCOL: &str = "base64url.bearer.authorization.k8s.io.";

/// The host a client asked for.
pub(super) fn host_of(parts: &Parts) -> &str {
    let header = parts.headers.get(header::HOST);
    header
        .and_then(|host| host.to_str().ok())
        .or_else(|| parts.uri.authority().map(http::uri::Authority::as_str))
        .unwrap_or_default()
}

/// The headers of a request that the backend gets to see: no credentials for this server, nothing about this hop.
pub(super) fn passed_headers(parts: &Parts, upgrade: bool) -> HeaderMap {
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

pub(super) fn request(
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
