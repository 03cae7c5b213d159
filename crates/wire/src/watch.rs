//! Watch streams: frames in both encodings, in arbitrary chunking.
//!
//! JSON: objects one after the other (kube-apiserver ends each with a newline). Protobuf: a 4-byte
//! big-endian length, then a bare `WatchEvent{1: type, 2: RawExtension{1: raw}}` whose raw holds the object in its
//! `k8s\0` envelope.

use crate::{
    Encoding, Gvk,
    object::{Malformed, Object},
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
    /// The frame's bytes including its length prefix or newline.
    pub raw: Bytes,
}

/// Cuts a byte stream into frames. Bounded by `max_frame` bytes of buffering.
#[derive(Debug)]
pub struct FrameDecoder {/* private */}

impl FrameDecoder {
    /// A decoder that refuses frames larger than `max_frame`.
    pub fn new(_encoding: Encoding, _max_frame: usize) -> Self {
        unimplemented!()
    }
    /// Adds a chunk.
    pub fn push(&mut self, _chunk: Bytes) {
        unimplemented!()
    }
    /// The next whole frame; `None` when more bytes are needed; `Err` when the stream cannot be
    /// followed any more (oversized frame, bytes that cannot start a frame). After an error every call errs.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, Malformed> {
        unimplemented!()
    }
    /// Bytes held of an unfinished frame: not zero at the end of a stream means it was cut inside a frame.
    pub fn pending(&self) -> usize {
        unimplemented!()
    }
}

/// Encodes one event. The object must be in `encoding` already.
pub fn encode(_kind: EventType, _object: &Object, _encoding: Encoding) -> Bytes {
    unimplemented!()
}

/// A BOOKMARK frame's object: only kind, resourceVersion and, for the end of initial events, the annotation
/// `k8s.io/initial-events-end: "true"`.
pub fn bookmark(
    _gvk: &Gvk,
    _resource_version: &str,
    _initial_events_end: bool,
    _encoding: Encoding,
) -> Object {
    unimplemented!()
}

/// Whether a bookmark object carries `k8s.io/initial-events-end: "true"`.
pub fn is_initial_events_end(_object: &Object) -> bool {
    unimplemented!()
}
