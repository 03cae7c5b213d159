//! How the end that dials says why it could not, and how the end that asked reads it: a status, a header that names the kind exactly,
//! and the text as the body.

use crate::link::DialError;
use bytes::Bytes;
use h2::{RecvStream, server::SendResponse};
use http::{HeaderMap, Response, StatusCode};

/// Names the kind of error where the status fits several.
pub(crate) const KIND: &str = "dial-error";
/// Longer texts are cut.
pub(crate) const MAX_TEXT: usize = 1 << 10;

pub(crate) fn kind(error: &DialError) -> &'static str {
    match error {
        DialError::Invalid(_) => "invalid",
        DialError::NoAgent(_) => "no-agent",
        DialError::Forbidden(_) => "forbidden",
        DialError::Failed(_) => "failed",
        DialError::TimedOut(_) => "timed-out",
        DialError::Lost(_) => "lost",
        DialError::Busy(_) => "busy",
    }
}

pub(crate) fn text(error: &DialError) -> &str {
    match error {
        DialError::Invalid(text)
        | DialError::NoAgent(text)
        | DialError::Forbidden(text)
        | DialError::Failed(text)
        | DialError::TimedOut(text)
        | DialError::Lost(text)
        | DialError::Busy(text) => text,
    }
}

/// Answers a CONNECT that came to nothing.
pub(super) fn refuse(mut respond: SendResponse<Bytes>, error: &DialError) {
    let mut response = Response::new(());
    *response.status_mut() = error.status();
    response
        .headers_mut()
        .insert(KIND, http::HeaderValue::from_static(kind(error)));
    let text = text(error);
    let text = &text[..text.floor_char_boundary(MAX_TEXT)];
    // Whoever asked may be gone.
    let _ = respond
        .send_response(response, false)
        .and_then(|mut body| body.send_data(Bytes::copy_from_slice(text.as_bytes()), true));
}

/// The error of an answer that is not 200.
pub(super) async fn read(
    status: StatusCode,
    headers: &HeaderMap,
    mut body: RecvStream,
) -> DialError {
    let mut bytes = Vec::new();
    while let Some(Ok(data)) = body.data().await {
        let _ = body.flow_control().release_capacity(data.len());
        let room = MAX_TEXT - bytes.len();
        bytes.extend_from_slice(&data[..data.len().min(room)]);
        if data.len() >= room {
            break;
        }
    }
    let kind = headers.get(KIND).and_then(|kind| kind.to_str().ok());
    error(status, kind, String::from_utf8_lossy(&bytes).into_owned())
}

pub(crate) fn error(status: StatusCode, kind: Option<&str>, text: String) -> DialError {
    match kind {
        Some("invalid") => DialError::Invalid(text),
        Some("no-agent") => DialError::NoAgent(text),
        Some("forbidden") => DialError::Forbidden(text),
        Some("timed-out") => DialError::TimedOut(text),
        Some("lost") => DialError::Lost(text),
        Some("busy") => DialError::Busy(text),
        Some("failed") => DialError::Failed(text),
        _ => DialError::of_status(status, text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_survives() {
        let all = [
            DialError::Invalid("a".into()),
            DialError::NoAgent("b".into()),
            DialError::Forbidden("c".into()),
            DialError::Failed("d".into()),
            DialError::TimedOut("e".into()),
            DialError::Lost("f".into()),
            DialError::Busy("g".into()),
        ];
        for sent in all {
            let read = error(sent.status(), Some(kind(&sent)), text(&sent).to_owned());
            assert_eq!(read, sent);
            // Of another implementation, or a later one.
            let guessed = error(sent.status(), None, text(&sent).to_owned());
            assert_eq!(guessed.status(), sent.status());
        }
    }
}
