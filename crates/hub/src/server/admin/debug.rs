//! What somebody needs who asks why the hub does what it does.

use super::{Ask, answer, refuse};
use http::{Method, Response, StatusCode};
use yurt_telemetry::LogFilterError;
use yurt_transport::Body;

/// `/debug/loglevel`: the log filter in force as text; `PUT` puts the body in its place.
pub(super) fn log_level(ask: &Ask) -> Response<Body> {
    if ask.method == Method::PUT {
        let text = String::from_utf8_lossy(&ask.body);
        if let Err(error) = yurt_telemetry::set_log_filter(&text) {
            let status = match error {
                LogFilterError::Malformed { .. } => StatusCode::BAD_REQUEST,
                LogFilterError::NotSetUp => StatusCode::NOT_IMPLEMENTED,
            };
            return refuse(status, format!("{error}\n"));
        }
        tracing::info!(filter = text.trim(), "log level changed");
    }
    let filter = yurt_telemetry::log_filter().unwrap_or_default();
    answer(StatusCode::OK, "text/plain", filter + "\n")
}
