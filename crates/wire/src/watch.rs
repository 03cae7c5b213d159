//! Watch streams: frames in both encodings, in arbitrary chunking.
//!
//! JSON: objects one after the other (kube-apiserver ends each with a newline). Protobuf: a 4-byte
//! big-endian length, then a bare `WatchEvent{1: type, 2: RawExtension{1: raw}}` whose raw holds the object in its
//! `k8s\0` envelope.

mod decoder;

pub use decoder::FrameDecoder;

use crate::{
    Encoding, Gvk, json,
    object::{Malformed, Object},
    protobuf::{self, Writer, bytes_field_len},
};
use bytes::Bytes;

/// The type of a watch event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum EventType {
    Added,
    Modified,
    Deleted,
    Bookmark,
    Error,
}

impl EventType {
    /// `ADDED`, ...
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Added => "ADDED",
            Self::Modified => "MODIFIED",
            Self::Deleted => "DELETED",
            Self::Bookmark => "BOOKMARK",
            Self::Error => "ERROR",
        }
    }

    /// The inverse of [`Self::as_str`].
    pub fn parse(text: &str) -> Option<Self> {
        [
            Self::Added,
            Self::Modified,
            Self::Deleted,
            Self::Bookmark,
            Self::Error,
        ]
        .into_iter()
        .find(|kind| kind.as_str() == text)
    }
}

/// One event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Type.
    pub kind: EventType,
    /// The object (for `Error` a `Status`, for Table watches a `Table`).
    pub object: Object,
}

/// One frame as it came: what it means, and the bytes to pass on untouched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// The decoded event; `Err` when the frame's borders are known but its content does not parse.
    pub event: Result<Event, Malformed>,
    /// The frame's bytes including its length prefix or newline (which is added when the server left it out).
    pub raw: Bytes,
}

/// Encodes one event. The object must be in `encoding` already.
pub fn encode(kind: EventType, object: &Object, encoding: Encoding) -> Bytes {
    debug_assert_eq!(object.encoding, encoding);
    match encoding {
        Encoding::Protobuf => {
            let extension_len = bytes_field_len(1, object.bytes.len());
            let event_len =
                bytes_field_len(1, kind.as_str().len()) + bytes_field_len(2, extension_len);
            let mut out = Writer::with_capacity(4 + event_len);
            // An object is bounded far below 4 GiB by every body limit.
            out.raw(&(event_len as u32).to_be_bytes());
            out.str(1, kind.as_str());
            out.bytes_head(2, extension_len);
            out.bytes(1, &object.bytes);
            out.into_vec().into()
        }
        Encoding::Json => {
            let mut out = Vec::with_capacity(object.bytes.len() + 48);
            out.extend_from_slice(br#"{"type":""#);
            out.extend_from_slice(kind.as_str().as_bytes());
            out.extend_from_slice(br#"","object":"#);
            let start = out.len();
            out.extend_from_slice(&object.bytes);
            // Some clients read a frame a line. Inside a JSON string a newline is always escaped, so these are
            // white space between tokens.
            for byte in &mut out[start..] {
                if matches!(byte, b'\n' | b'\r') {
                    *byte = b' ';
                }
            }
            out.extend_from_slice(b"}\n");
            out.into()
        }
    }
}

/// The annotation of the bookmark that ends the initial events of a WatchList.
pub const INITIAL_EVENTS_END: &str = "k8s.io/initial-events-end";

/// A BOOKMARK frame's object: only kind, resourceVersion and, for the end of initial events, the annotation
/// `k8s.io/initial-events-end: "true"`.
pub fn bookmark(
    gvk: &Gvk,
    resource_version: &str,
    initial_events_end: bool,
    encoding: Encoding,
) -> Object {
    let bytes = match encoding {
        Encoding::Protobuf => {
            let mut meta = Writer::with_capacity(64);
            meta.str(6, resource_version);
            if initial_events_end {
                let entry_len =
                    bytes_field_len(1, INITIAL_EVENTS_END.len()) + bytes_field_len(2, 4);
                meta.bytes_head(12, entry_len);
                meta.str(1, INITIAL_EVENTS_END);
                meta.str(2, "true");
            }
            let mut raw = Writer::with_capacity(meta.len() + 4);
            raw.bytes(1, &meta.into_vec());
            protobuf::seal(&gvk.api_version(), &gvk.kind, &raw.into_vec())
        }
        Encoding::Json => {
            let mut out = br#"{"kind":"#.to_vec();
            json::push_string(&mut out, &gvk.kind);
            out.extend_from_slice(br#","apiVersion":"#);
            json::push_string(&mut out, &gvk.api_version());
            out.extend_from_slice(br#","metadata":{"resourceVersion":"#);
            json::push_string(&mut out, resource_version);
            if initial_events_end {
                out.extend_from_slice(br#","annotations":{"#);
                json::push_string(&mut out, INITIAL_EVENTS_END);
                out.extend_from_slice(br#":"true"}"#);
            }
            out.extend_from_slice(b"}}");
            out.into()
        }
    };
    Object { encoding, bytes }
}

/// Whether a bookmark object carries `k8s.io/initial-events-end: "true"`.
pub fn is_initial_events_end(object: &Object) -> bool {
    object.meta().is_ok_and(|meta| {
        meta.annotations
            .iter()
            .any(|(name, value)| name == INITIAL_EVENTS_END && value == "true")
    })
}
