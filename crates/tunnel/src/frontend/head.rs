//! The head of a frontend's request, read from the bytes as they come. Pure.

use http::{HeaderName, HeaderValue, StatusCode};
use std::fmt::Write as _;
use yurt_transport::Destination;

/// The longest head that is read.
pub(super) const LONGEST: usize = 64 << 10;
/// More headers than anybody has a use for.
const MOST_HEADERS: usize = 128;
/// Names the node to use, with a port that does not count: OpenYurt's.
const NODE: &str = "x-tunnel-proxy-host";

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Head {
    /// `CONNECT`, `GET`.
    pub(super) method: String,
    /// `host:port`, or a path.
    pub(super) target: String,
    /// The node that is to be used.
    pub(super) node: Option<String>,
    /// For the log.
    pub(super) user_agent: String,
    /// Bytes of it; what follows them is not the head's.
    pub(super) length: usize,
}

/// A head that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Bad {
    pub(super) status: StatusCode,
    pub(super) why: String,
}

fn bad(why: &str) -> Bad {
    Bad {
        status: StatusCode::BAD_REQUEST,
        why: why.to_owned(),
    }
}

impl Head {
    /// Reads a head; `None`: it is not complete yet.
    pub(super) fn read(bytes: &[u8]) -> Result<Option<Self>, Bad> {
        let length = match end(bytes) {
            Some(length) if length <= LONGEST => length,
            None if bytes.len() < LONGEST => {
                // What is no request is told at once, not when the peer tires of waiting.
                let line = bytes.split(|byte| *byte == b'\n').next();
                let line = line.unwrap_or_default();
                let text = |byte: &u8| (0x20..0x7f).contains(byte) || *byte == b'\r';
                if !line.iter().all(text) {
                    return Err(bad("this is no HTTP request"));
                }
                return Ok(None);
            }
            _ => {
                return Err(Bad {
                    status: StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
                    why: format!("the request head is longer than {LONGEST} bytes"),
                });
            }
        };
        let text = bytes.get(..length).unwrap_or_default();
        let text = std::str::from_utf8(text).map_err(|_| bad("the request head is no text"))?;
        let mut lines = text.lines();
        let first = lines.next().unwrap_or_default();
        let mut parts = first.split(' ');
        let (Some(method), Some(target), Some(version), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(bad("the request line is not METHOD TARGET VERSION"));
        };
        if !matches!(version, "HTTP/1.1" | "HTTP/1.0") || method.is_empty() || target.is_empty() {
            return Err(bad("the request line is not METHOD TARGET HTTP/1.1"));
        }
        let mut head = Self {
            method: method.to_owned(),
            target: target.to_owned(),
            node: None,
            user_agent: String::new(),
            length,
        };
        for (number, line) in lines.take_while(|line| !line.is_empty()).enumerate() {
            let (name, value) = line
                .split_once(':')
                .ok_or_else(|| bad("a header is not NAME: VALUE"))?;
            let name: HeaderName = name.parse().map_err(|_| bad("a header's name is none"))?;
            let value: HeaderValue = value
                .trim()
                .parse()
                .map_err(|_| bad("a header's value is none"))?;
            if number >= MOST_HEADERS {
                return Err(bad("there are too many headers"));
            }
            let text = value.to_str().unwrap_or_default();
            match name.as_str() {
                NODE if !text.is_empty() => head.node = Some(node_of(text).to_owned()),
                "user-agent" => head.user_agent = text.chars().take(100).collect(),
                // A body would be taken for the caller's first bytes.
                "content-length" if text != "0" => return Err(bad("a body has no use here")),
                "transfer-encoding" => return Err(bad("a body has no use here")),
                _ => {}
            }
        }
        Ok(Some(head))
    }

    /// Where a CONNECT leads to.
    pub(super) fn destination(&self) -> Result<Destination, Bad> {
        let to: Destination = self
            .target
            .parse()
            .map_err(|error| bad(&format!("CONNECT takes host:port: {error}")))?;
        Ok(Destination {
            node: self.node.clone(),
            ..to
        })
    }
}

/// Where the head ends: after the first empty line.
fn end(bytes: &[u8]) -> Option<usize> {
    let newline = |at: usize| bytes.get(at) == Some(&b'\n');
    let mut ends = (0..bytes.len()).filter(|at| newline(*at));
    ends.find_map(|at| match bytes.get(at + 1) {
        Some(b'\n') => Some(at + 2),
        Some(b'\r') if newline(at + 2) => Some(at + 3),
        _ => None,
    })
}

/// The node of `NAME`, `NAME:PORT`, `ADDRESS:PORT` or `[ADDRESS]:PORT`.
fn node_of(text: &str) -> &str {
    if let Some((address, _)) = text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        return address;
    }
    match text.split_once(':') {
        Some((name, port)) if !port.contains(':') => name,
        _ => text,
    }
}

/// An answer with a text that ends the connection.
pub(super) fn answer(status: StatusCode, kind: &str, text: &str) -> String {
    let reason = status.canonical_reason().unwrap_or("Refused");
    let mut out = format!("HTTP/1.1 {} {reason}\r\n", status.as_u16());
    let _ = write!(
        out,
        "Content-Type: {kind}\r\nX-Content-Type-Options: nosniff\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{text}",
        text.len(),
    );
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_kube_apiserver_and_the_interceptor_say_is_understood() {
        let bytes = b"CONNECT 10.0.0.1:10250 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\nrest";
        let head = Head::read(bytes).expect("good").expect("complete");
        assert_eq!(&bytes[head.length..], b"rest");
        let to = head.destination().expect("a destination");
        assert_eq!((to.to_string().as_str(), to.node), ("10.0.0.1:10250", None));
        let bytes = b"CONNECT [fd00::1]:80 HTTP/1.1\nx-Tunnel-Proxy-HOST: edge-1:10250\nUser-Agent: curl\n\n";
        let head = Head::read(bytes).expect("good").expect("complete");
        let to = head.destination().expect("a destination");
        assert_eq!((to.host.as_str(), to.port), ("fd00::1", 80));
        assert_eq!(to.node.as_deref(), Some("edge-1"));
        for (text, node) in [
            ("a", "a"),
            ("a:1", "a"),
            ("10.0.0.1:1", "10.0.0.1"),
            ("[fd00::1]:1", "fd00::1"),
            ("fd00::1", "fd00::1"),
        ] {
            assert_eq!(node_of(text), node);
        }
    }

    #[test]
    fn what_is_no_request_is_refused() {
        for (bytes, status) in [
            (&b"\x16\x03\x01\x02\x00"[..], 400),
            (b"CONNECT a:1\r\n\r\n", 400),
            (b"CONNECT a:1 HTTP/3\r\n\r\n", 400),
            (b"CONNECT a:1 HTTP/1.1 x\r\n\r\n", 400),
            (b"CONNECT a:1 HTTP/1.1\r\nno header\r\n\r\n", 400),
            (b"CONNECT a:1 HTTP/1.1\r\na b: c\r\n\r\n", 400),
            (b"CONNECT a:1 HTTP/1.1\r\nContent-Length: 5\r\n\r\n", 400),
            (b"\xff\xfe HTTP/1.1\r\n\r\n", 400),
            (&[b'a'; LONGEST], 431),
        ] {
            let refused = Head::read(bytes).expect_err("refused");
            assert_eq!(refused.status.as_u16(), status, "{refused:?}");
        }
        for target in ["/", "a", "a:0", ":1", "http://a:1"] {
            let bytes = format!("CONNECT {target} HTTP/1.1\r\n\r\n");
            let head = Head::read(bytes.as_bytes()).expect("a head");
            assert!(head.expect("complete").destination().is_err(), "{target}");
        }
    }

    proptest! {
        /// However it is torn: the same head comes of it, and no byte after it is taken.
        #[test]
        fn a_head_is_the_same_however_it_arrives(rest in prop::collection::vec(any::<u8>(), 0..50), cut in 0usize..200) {
            let mut bytes = b"CONNECT edge-1:22 HTTP/1.1\r\nHost: x\r\nX-Tunnel-Proxy-Host: edge-1\r\n\r\n".to_vec();
            let length = bytes.len();
            bytes.extend(rest);
            let part = &bytes[..cut.min(bytes.len())];
            let read = Head::read(part);
            prop_assert_eq!(matches!(read, Ok(Some(_))), part.len() >= length);
            prop_assert_eq!(Head::read(&bytes).unwrap().unwrap().length, length);
        }

        #[test]
        fn any_bytes_are_answered(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(Some(head)) = Head::read(&bytes) {
                prop_assert!(head.length <= bytes.len());
                let _ = head.destination();
            }
        }
    }
}
