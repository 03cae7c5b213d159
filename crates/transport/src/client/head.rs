//! Request heads as each version of HTTP wants them.

use crate::Body;
use http::{
    HeaderValue, Request, Uri, Version,
    header::{self, HeaderName},
    request::Parts,
    uri::{Authority, PathAndQuery, Scheme},
};

/// All of a request but its body, to send it again.
pub(super) fn request_head(request: &Request<Body>) -> Parts {
    let mut copy = Request::new(());
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.headers_mut() = request.headers().clone();
    *copy.extensions_mut() = request.extensions().clone();
    copy.into_parts().0
}

pub(super) fn path_of(uri: &Uri) -> PathAndQuery {
    uri.path_and_query()
        .cloned()
        .unwrap_or_else(|| PathAndQuery::from_static("/"))
}

/// Origin form and a Host header (RFC 9112 section 3.2).
pub(super) fn as_http1(request: &mut Request<Body>, authority: &Authority) {
    *request.version_mut() = Version::HTTP_11;
    *request.uri_mut() = Uri::from(path_of(request.uri()));
    if let Ok(host) = HeaderValue::from_str(authority.as_str()) {
        request.headers_mut().insert(header::HOST, host);
    }
}

/// Scheme and authority in pseudo-headers, and no headers that speak of one connection (RFC 9113 section 8.2.2).
pub(super) fn as_http2(request: &mut Request<Body>, authority: &Authority, tls: bool) {
    const CONNECTION_HEADERS: [HeaderName; 4] = [
        header::CONNECTION,
        header::TRANSFER_ENCODING,
        header::UPGRADE,
        header::HOST,
    ];
    *request.version_mut() = Version::HTTP_2;
    let mut parts = http::uri::Parts::default();
    parts.scheme = Some(if tls { Scheme::HTTPS } else { Scheme::HTTP });
    parts.authority = Some(authority.clone());
    parts.path_and_query = Some(path_of(request.uri()));
    if let Ok(uri) = Uri::from_parts(parts) {
        *request.uri_mut() = uri;
    }
    let headers = request.headers_mut();
    for name in CONNECTION_HEADERS {
        headers.remove(name);
    }
    headers.remove("keep-alive");
    headers.remove("proxy-connection");
    if headers
        .get(header::TE)
        .is_some_and(|te| te.as_bytes() != b"trailers")
    {
        headers.remove(header::TE);
    }
}
