//! What clients are told of a backend that fails.

use http::StatusCode;
use serde_json::Value;
use std::{io, time::Duration};
use yurt_transport::{ExchangeError, ResponseBody, collect};
use yurt_wire::{Reason, Status};

/// What is read of a kubelet's error.
const MAX_ERROR: usize = 50_000;
/// How long a kubelet's error may take to arrive.
const ERROR_PATIENCE: Duration = Duration::from_secs(10);

/// Why a backend gave no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum BackendError {
    #[error("dial tcp {0}: {1}")]
    Dial(String, String),
    #[error("{0}")]
    Exchange(String),
}

/// An error of something behind the server: 500 without a reason, as kube-apiserver passes it on.
pub(super) fn unknown(message: String) -> Box<Status> {
    Box::new(Status::new(Reason::Unknown, message))
}

/// What Go says about a connection that was not made: people and tools look for it.
pub(super) fn dial_error(error: &io::Error) -> String {
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
pub(super) fn exchange_error(error: &ExchangeError, host: &str) -> String {
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
pub(super) async fn kubelet_error(pod: &str, code: StatusCode, body: ResponseBody) -> Box<Status> {
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
