//! The records of the cache, as they lie in the store. One store holds them all, told apart by the first byte of the key:
//!
//! | key | value |
//! |---|---|
//! | `o/GROUP/VERSION/RESOURCE/NAMESPACE/NAME` | one object ([`Stored`]); the namespace is empty for cluster scope |
//! | `c/QUERY` | a complete query: JSON `{"revision":N,"kind":"Pod"}`; `QUERY` as [`Query::to_text`] |
//! | `g/CALLER/QUERY` | the caller was allowed to read the query; no value |
//! | `b/CALLER` | a bearer that the cloud accepted: JSON of its rules |
//! | `d/PATH#FORM` | a document: content type, newline, body |
//! | `j/GROUP/VERSION/RESOURCE/NAMESPACE/NAME` | an entry of the journal |
//! | `s/SHELF/KEY` | a record of a shelf ([`super::shelf`]) |
//! | `e/pods` | pods whose present state the endpoints of the cloud may lack: JSON, see `endpoints` |
//! | `m/format` | the number of this layout |
//! | `m/import` | `begun` or `done`: the import of an older hub's cache ([`super::import`]) |
//! | `m/seal` | the fingerprint of the key that sealed what is sealed ([`super::sealed`]) |

use crate::{caller::Caller, query::Query};
use bytes::{BufMut, Bytes, BytesMut};
use yurt_wire::{Encoding, Gvr, Object};

/// The number of the layout; a store with another number is begun anew.
pub(crate) const FORMAT: &[u8] = b"1";
pub(crate) const FORMAT_KEY: &[u8] = b"m/format";
pub(crate) const OBJECTS: &[u8] = b"o/";
pub(crate) const COVERAGES: &[u8] = b"c/";
pub(crate) const GRANTS: &[u8] = b"g/";
pub(crate) const BEARERS: &[u8] = b"b/";
pub(crate) const DOCUMENTS: &[u8] = b"d/";
pub(crate) const JOURNAL: &[u8] = b"j/";
pub(crate) const SHELVES: &[u8] = b"s/";
pub(crate) const IMPORT_KEY: &[u8] = b"m/import";
pub(crate) const SEAL_KEY: &[u8] = b"m/seal";
pub(crate) const UNSETTLED: &[u8] = b"e/pods";

/// The key of an object within its resource: `NAMESPACE/NAME`, which sorts as etcd does.
pub(crate) fn index_key(namespace: &str, name: &str) -> Box<str> {
    format!("{namespace}/{name}").into_boxed_str()
}

/// The inverse of [`index_key`].
pub(crate) fn split_index_key(key: &str) -> (&str, &str) {
    key.split_once('/').unwrap_or(("", key))
}

/// A record key of one object under a prefix (`o/` or `j/`).
pub(crate) fn object_record(prefix: &[u8], gvr: &Gvr, key: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(
        prefix.len() + gvr.group.len() + gvr.version.len() + gvr.resource.len() + key.len() + 3,
    );
    out.extend_from_slice(prefix);
    for part in [&gvr.group, &gvr.version, &gvr.resource] {
        out.extend_from_slice(part.as_bytes());
        out.push(b'/');
    }
    out.extend_from_slice(key.as_bytes());
    out
}

/// The inverse of [`object_record`].
pub(crate) fn parse_object_record<'a>(prefix: &[u8], record: &'a [u8]) -> Option<(Gvr, &'a str)> {
    let text = std::str::from_utf8(record.strip_prefix(prefix)?).ok()?;
    let mut parts = text.splitn(4, '/');
    let gvr = Gvr::new(parts.next()?, parts.next()?, parts.next()?);
    let key = parts.next()?;
    key.contains('/').then_some((gvr, key))
}

/// The record key of a coverage.
pub(crate) fn coverage_record(query: &Query) -> Vec<u8> {
    [COVERAGES, query.to_text().as_bytes()].concat()
}

/// The record key of a grant.
pub(crate) fn grant_record(caller: &Caller, query: &Query) -> Vec<u8> {
    [
        GRANTS,
        caller.rights().key().as_bytes(),
        b"/",
        query.to_text().as_bytes(),
    ]
    .concat()
}

/// The inverse of [`grant_record`].
pub(crate) fn parse_grant_record(record: &[u8]) -> Option<(Caller, Query)> {
    let text = std::str::from_utf8(record.strip_prefix(GRANTS)?).ok()?;
    let (caller, query) = text.split_once('/')?;
    Some((Caller::from_key(caller)?, Query::from_text(query)?))
}

/// An object as stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stored {
    /// The numeric resourceVersion.
    pub(crate) revision: u64,
    /// Queries (texts) that are known not to hold the object any more although this, its last known state, matches them.
    pub(crate) absent_from: Vec<String>,
    /// The object.
    pub(crate) object: Object,
}

const VERSION: u8 = 1;
/// Queries that are remembered not to hold an object: an exclusion for which there is no room costs its query the completeness.
pub(crate) const MOST_ABSENT: usize = 16;

impl Stored {
    /// version, encoding, revision (8 bytes, little endian), count of `absent_from` (2), each (2 + text), the object.
    pub(crate) fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(self.object.bytes.len() + 12);
        out.put_u8(VERSION);
        out.put_u8(match self.object.encoding {
            Encoding::Json => 0,
            Encoding::Protobuf => 1,
        });
        out.put_u64_le(self.revision);
        let absent = self.absent_from.get(..MOST_ABSENT);
        let absent = absent.unwrap_or(&self.absent_from);
        out.put_u16_le(absent.len() as u16);
        for query in absent {
            out.put_u16_le(query.len() as u16);
            out.put_slice(query.as_bytes());
        }
        out.put_slice(&self.object.bytes);
        out.freeze()
    }

    /// `None` when the bytes are not a record of this layout.
    pub(crate) fn decode(bytes: &Bytes) -> Option<Self> {
        let head = bytes.get(..12)?;
        if head[0] != VERSION {
            return None;
        }
        let encoding = match head[1] {
            0 => Encoding::Json,
            1 => Encoding::Protobuf,
            _ => return None,
        };
        let revision = u64::from_le_bytes(head[2..10].try_into().ok()?);
        let count = u16::from_le_bytes([head[10], head[11]]);
        let mut at = 12;
        let mut absent_from = Vec::new();
        for _ in 0..count {
            let len = bytes.get(at..at + 2)?;
            let len = usize::from(u16::from_le_bytes([len[0], len[1]]));
            let text = bytes.get(at + 2..at + 2 + len)?;
            absent_from.push(std::str::from_utf8(text).ok()?.to_owned());
            at += 2 + len;
        }
        Some(Self {
            revision,
            absent_from,
            object: Object {
                encoding,
                bytes: bytes.slice(at..),
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn object_records_read_back() {
        for (gvr, key) in [
            (Gvr::new("", "v1", "pods"), "default/web"),
            (Gvr::new("", "v1", "nodes"), "/edge-1"),
            (
                Gvr::new("discovery.k8s.io", "v1", "endpointslices"),
                "a/b-x1",
            ),
        ] {
            let record = object_record(OBJECTS, &gvr, key);
            assert_eq!(parse_object_record(OBJECTS, &record), Some((gvr, key)));
        }
        assert_eq!(parse_object_record(OBJECTS, b"o/v1/pods"), None);
        assert_eq!(parse_object_record(OBJECTS, b"c//v1/pods/a/b"), None);
    }

    #[test]
    fn stored_reads_back_and_refuses_other_bytes() {
        let stored = Stored {
            revision: 77,
            absent_from: vec!["/v1/pods/?app=web&".into()],
            object: Object {
                encoding: Encoding::Protobuf,
                bytes: Bytes::from_static(b"k8s\0abc"),
            },
        };
        let bytes = stored.encode();
        assert_eq!(Stored::decode(&bytes), Some(stored));
        for cut in 0..12 {
            assert_eq!(Stored::decode(&bytes.slice(..cut)), None);
        }
        assert_eq!(
            Stored::decode(&Bytes::from_static(b"\x07\0\0\0\0\0\0\0\0\0\0\0\0")),
            None
        );
    }
}
