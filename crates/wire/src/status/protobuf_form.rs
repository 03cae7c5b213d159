//! The protobuf form of a Status: `Status{1: metadata, 2: status, 3: message, 4: reason, 5: details, 6: code}` in
//! the `k8s\0` envelope. Kubernetes' generated code writes strings and numbers of its non-pointer fields even
//! when they are empty, so that the bytes here do too.

use super::{Details, Document, DocumentCause, Metadata};
use std::borrow::Cow;

const MAGIC: &[u8; 4] = b"k8s\0";
/// Longest list of causes that is read; a server has no reason to send more.
const MAX_CAUSES: usize = 1024;

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value as u8) | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn bytes_field(out: &mut Vec<u8>, number: u32, content: &[u8]) {
    varint(out, u64::from(number << 3 | 2));
    varint(out, content.len() as u64);
    out.extend_from_slice(content);
}

fn int_field(out: &mut Vec<u8>, number: u32, value: i64) {
    varint(out, u64::from(number << 3));
    // int32 and int64 alike are sign-extended to 64 bits on the wire.
    varint(out, value as u64);
}

pub(super) fn encode(document: &Document<'_>) -> Vec<u8> {
    let mut list_meta = Vec::new();
    for number in 1..=3 {
        bytes_field(&mut list_meta, number, b"");
    }
    let mut status = Vec::new();
    bytes_field(&mut status, 1, &list_meta);
    bytes_field(&mut status, 2, document.status.as_bytes());
    bytes_field(&mut status, 3, document.message.as_bytes());
    bytes_field(&mut status, 4, document.reason.as_bytes());
    if let Some(details) = &document.details {
        bytes_field(&mut status, 5, &encode_details(details));
    }
    int_field(&mut status, 6, document.code);

    let mut type_meta = Vec::new();
    bytes_field(&mut type_meta, 1, document.api_version.as_bytes());
    bytes_field(&mut type_meta, 2, document.kind.as_bytes());

    let mut out = MAGIC.to_vec();
    bytes_field(&mut out, 1, &type_meta);
    bytes_field(&mut out, 2, &status);
    bytes_field(&mut out, 3, b"");
    bytes_field(&mut out, 4, b"");
    out
}

fn encode_details(details: &Details<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    bytes_field(&mut out, 1, details.name.as_bytes());
    bytes_field(&mut out, 2, details.group.as_bytes());
    bytes_field(&mut out, 3, details.kind.as_bytes());
    for cause in &details.causes {
        let mut bytes = Vec::new();
        bytes_field(&mut bytes, 1, cause.reason.as_bytes());
        bytes_field(&mut bytes, 2, cause.message.as_bytes());
        bytes_field(&mut bytes, 3, cause.field.as_bytes());
        bytes_field(&mut out, 4, &bytes);
    }
    int_field(&mut out, 5, details.retry_after_seconds);
    bytes_field(&mut out, 6, details.uid.as_bytes());
    out
}

/// One field of a message. Only the wire types that a Status uses are looked into; the others are passed over.
enum Field<'a> {
    Int(u64),
    Bytes(&'a [u8]),
    Other,
}

struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn varint(&mut self) -> Option<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let (&byte, rest) = self.0.split_first()?;
            self.0 = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }
    fn take(&mut self, length: u64) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(usize::try_from(length).ok()?)?;
        self.0 = rest;
        Some(head)
    }
    /// The next field; `Some(None)` at the end, `None` when the bytes are malformed.
    fn next(&mut self) -> Option<Option<(u64, Field<'a>)>> {
        if self.0.is_empty() {
            return Some(None);
        }
        let tag = self.varint()?;
        let field = match tag & 7 {
            0 => Field::Int(self.varint()?),
            1 => self.take(8).map(|_| Field::Other)?,
            2 => {
                let length = self.varint()?;
                Field::Bytes(self.take(length)?)
            }
            5 => self.take(4).map(|_| Field::Other)?,
            _ => return None,
        };
        Some(Some((tag >> 3, field)))
    }
}

fn text(bytes: &[u8]) -> Cow<'_, str> {
    String::from_utf8_lossy(bytes)
}

pub(super) fn decode(bytes: &[u8]) -> Option<Document<'_>> {
    let mut envelope = Fields(bytes.strip_prefix(MAGIC)?);
    let mut document = Document {
        metadata: Metadata {},
        ..Document::default()
    };
    while let Some((number, field)) = envelope.next()? {
        match (number, field) {
            (1, Field::Bytes(type_meta)) => {
                let mut fields = Fields(type_meta);
                while let Some((number, field)) = fields.next()? {
                    match (number, field) {
                        (1, Field::Bytes(b)) => document.api_version = text(b),
                        (2, Field::Bytes(b)) => document.kind = text(b),
                        _ => {}
                    }
                }
            }
            // What is not a Status is not looked into: its field numbers mean something else.
            (2, Field::Bytes(raw)) if document.kind == "Status" => {
                decode_status(raw, &mut document)?;
            }
            _ => {}
        }
    }
    Some(document)
}

fn decode_status<'a>(raw: &'a [u8], document: &mut Document<'a>) -> Option<()> {
    let mut fields = Fields(raw);
    while let Some((number, field)) = fields.next()? {
        match (number, field) {
            (2, Field::Bytes(b)) => document.status = text(b),
            (3, Field::Bytes(b)) => document.message = text(b),
            (4, Field::Bytes(b)) => document.reason = text(b),
            (5, Field::Bytes(b)) => document.details = Some(decode_details(b)?),
            (6, Field::Int(n)) => document.code = n as i64,
            _ => {}
        }
    }
    Some(())
}

fn decode_details(bytes: &[u8]) -> Option<Details<'_>> {
    let mut details = Details::default();
    let mut fields = Fields(bytes);
    while let Some((number, field)) = fields.next()? {
        match (number, field) {
            (1, Field::Bytes(b)) => details.name = text(b),
            (2, Field::Bytes(b)) => details.group = text(b),
            (3, Field::Bytes(b)) => details.kind = text(b),
            (4, Field::Bytes(b)) if details.causes.len() < MAX_CAUSES => {
                details.causes.push(decode_cause(b)?);
            }
            (5, Field::Int(n)) => details.retry_after_seconds = n as i64,
            (6, Field::Bytes(b)) => details.uid = text(b),
            _ => {}
        }
    }
    Some(details)
}

fn decode_cause(bytes: &[u8]) -> Option<DocumentCause<'_>> {
    let mut cause = DocumentCause::default();
    let mut fields = Fields(bytes);
    while let Some((number, field)) = fields.next()? {
        match (number, field) {
            (1, Field::Bytes(b)) => cause.reason = text(b),
            (2, Field::Bytes(b)) => cause.message = text(b),
            (3, Field::Bytes(b)) => cause.field = text(b),
            _ => {}
        }
    }
    Some(cause)
}
