//! Alive and ready.

use super::answer;
use http::{Response, StatusCode};
use yurt_transport::Body;

/// `/v1/healthz`; yurtadm compares the body.
pub(super) fn alive() -> Response<Body> {
    answer(StatusCode::OK, "text/plain", "OK")
}

/// `/v1/readyz`. Autonomy must not end with the link or a certificate: what is served here needs neither, and everything else was
/// opened before the listener.
pub(super) fn ready() -> Response<Body> {
    answer(StatusCode::OK, "text/plain", "OK")
}
