//! As much of gRPC over HTTP/2 as konnectivity uses: messages with a five-byte head, a status in the trailers, no compression.
//! (<https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>)

mod authority;

pub(crate) use authority::Mended;

use crate::session::SessionError;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use h2::server::SendResponse;
use http::{
    HeaderMap, HeaderValue, Method, Request, Response, Uri,
    header::{CONTENT_TYPE, TE},
    uri,
};
use std::fmt::Write as _;

/// A longer message is refused: gRPC's default.
pub(crate) const MAX_MESSAGE: usize = 4 << 20;
const HEAD: usize = 5;

pub(crate) const MEDIA_TYPE: HeaderValue = HeaderValue::from_static("application/grpc");
pub(crate) const STATUS: &str = "grpc-status";
pub(crate) const MESSAGE: &str = "grpc-message";

/// gRPC's status codes, as far as they are used here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Code {
    Ok = 0,
    InvalidArgument = 3,
    PermissionDenied = 7,
    Unimplemented = 12,
    Unavailable = 14,
}

/// Appends a message with its head, written by `body`.
pub(crate) fn frame(out: &mut BytesMut, length: usize, body: impl FnOnce(&mut BytesMut)) {
    out.reserve(HEAD + length);
    out.put_u8(0);
    out.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    body(out);
}

/// Cuts what arrives into messages.
#[derive(Debug, Default)]
pub(crate) struct Frames(BytesMut);

impl Frames {
    /// More of what arrived.
    pub(crate) fn push(&mut self, data: &[u8]) {
        self.0.extend_from_slice(data);
    }

    /// The next whole message.
    pub(crate) fn next(&mut self) -> Result<Option<Bytes>, SessionError> {
        let Some((head, rest)) = self.0.split_first_chunk::<HEAD>() else {
            return Ok(None);
        };
        let [compressed, length @ ..] = *head;
        let length = u32::from_be_bytes(length) as usize;
        if compressed != 0 {
            return Err(SessionError::Protocol("a compressed message".into()));
        }
        if length > MAX_MESSAGE {
            return Err(SessionError::Protocol(format!(
                "a message of {length} bytes"
            )));
        }
        if rest.len() < length {
            return Ok(None);
        }
        self.0.advance(HEAD);
        Ok(Some(self.0.split_to(length).freeze()))
    }
}

/// A call of a method by its path.
pub(crate) fn request(path: &'static str) -> Request<()> {
    let mut parts = uri::Parts::default();
    parts.scheme = Some(uri::Scheme::HTTPS);
    parts.authority = Some(uri::Authority::from_static("tunnel"));
    parts.path_and_query = Some(uri::PathAndQuery::from_static(path));
    let mut request = Request::new(());
    *request.method_mut() = Method::POST;
    // Whole by its parts.
    *request.uri_mut() = Uri::from_parts(parts).unwrap_or_default();
    let headers = request.headers_mut();
    headers.insert(CONTENT_TYPE, MEDIA_TYPE);
    headers.insert(TE, HeaderValue::from_static("trailers"));
    request
}

/// The headers of an answer that goes on.
pub(crate) fn answer() -> Response<()> {
    let mut response = Response::new(());
    response.headers_mut().insert(CONTENT_TYPE, MEDIA_TYPE);
    response
}

/// A status as trailers, or as the headers of an answer that is only that.
pub(crate) fn status(code: Code, message: &str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(STATUS, HeaderValue::from(code as u16));
    // Percent-encoded: everything but printable ASCII.
    let mut text = String::new();
    for byte in message.bytes().take(1 << 10) {
        match byte {
            b' '..=b'~' if byte != b'%' => text.push(char::from(byte)),
            other => {
                let _ = write!(text, "%{other:02X}");
            }
        }
    }
    if let (false, Ok(text)) = (text.is_empty(), HeaderValue::from_str(&text)) {
        headers.insert(MESSAGE, text);
    }
    headers
}

/// Answers with nothing but a status.
pub(crate) fn refuse(mut respond: SendResponse<Bytes>, code: Code, message: &str) {
    let mut response = answer();
    response.headers_mut().extend(status(code, message));
    // Whoever asked may be gone.
    let _ = respond.send_response(response, true);
}

/// What the other end says with trailers, or headers that are the whole answer: an error unless all is well.
pub(crate) fn verdict(headers: &HeaderMap) -> Result<(), SessionError> {
    let text = |name| {
        headers
            .get(name)
            .and_then(|value: &HeaderValue| value.to_str().ok())
    };
    match text(STATUS) {
        None | Some("0") => Ok(()),
        Some(code) => Err(SessionError::Refused(format!(
            "gRPC status {code}: {}",
            text(MESSAGE).unwrap_or_default()
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::{collection::vec, prelude::*};

    proptest! {
        #[test]
        fn messages_survive_however_they_are_cut(
            messages in vec(vec(any::<u8>(), 0..300), 0..10),
            piece in 1usize..100,
        ) {
            let mut wire = BytesMut::new();
            for message in &messages {
                frame(&mut wire, message.len(), |out| out.extend_from_slice(message));
            }
            let (mut frames, mut read) = (Frames::default(), Vec::new());
            for piece in wire.chunks(piece) {
                frames.push(piece);
                while let Some(message) = frames.next().unwrap() {
                    read.push(message.to_vec());
                }
            }
            prop_assert_eq!(read, messages);
        }
    }

    #[test]
    fn what_is_too_long_or_compressed_is_refused_before_it_arrives() {
        for head in [[1, 0, 0, 0, 1], [0, 0xff, 0, 0, 0]] {
            let mut frames = Frames::default();
            frames.push(&head);
            assert!(frames.next().is_err());
        }
    }

    #[test]
    fn a_status_is_read_as_it_is_written() {
        assert!(verdict(&status(Code::Ok, "")).is_ok());
        let refused = verdict(&status(Code::PermissionDenied, "not you, 100 %\n")).unwrap_err();
        assert_eq!(
            refused,
            SessionError::Refused("gRPC status 7: not you, 100 %25%0A".into())
        );
    }
}
