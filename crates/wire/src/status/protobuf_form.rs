//! The protobuf form of a Status: `Status{1: metadata, 2: status, 3: message, 4: reason, 5: details, 6: code}` in
//! the `k8s\0` envelope. Kubernetes' generated code writes strings and numbers of its non-pointer fields even
//! when they are empty, so that the bytes here do too.

use super::{Details, Document, DocumentCause, MAX_CAUSES, Metadata};
use crate::protobuf::{self, Envelope, Reader, WireError, WireField, Writer};
use bytes::Bytes;
use std::borrow::Cow;

pub(super) fn encode(document: &Document<'_>) -> Bytes {
    let mut metadata = Writer::new();
    // selfLink, resourceVersion, continue
    metadata.str(1, "");
    metadata.str(2, "");
    metadata.str(3, &document.metadata.continue_token);
    let mut status = Writer::new();
    status.bytes(1, &metadata.into_vec());
    status.str(2, &document.status);
    status.str(3, &document.message);
    status.str(4, &document.reason);
    if let Some(details) = &document.details {
        status.bytes(5, &encode_details(details));
    }
    status.int(6, document.code);
    protobuf::seal(&document.api_version, &document.kind, &status.into_vec())
}

fn encode_details(details: &Details<'_>) -> Vec<u8> {
    let mut out = Writer::new();
    out.str(1, &details.name);
    out.str(2, &details.group);
    out.str(3, &details.kind);
    for cause in &details.causes {
        let mut bytes = Writer::new();
        bytes.str(1, &cause.reason);
        bytes.str(2, &cause.message);
        bytes.str(3, &cause.field);
        out.bytes(4, &bytes.into_vec());
    }
    out.int(5, details.retry_after_seconds);
    out.str(6, &details.uid);
    out.into_vec()
}

/// Text for people is shown even when it is not quite UTF-8.
fn text<'a>(field: &WireField<'a>) -> Result<Cow<'a, str>, WireError> {
    field.bytes().map(String::from_utf8_lossy)
}

pub(super) fn decode(bytes: &[u8]) -> Result<Document<'_>, WireError> {
    let envelope = Envelope::open(bytes)?;
    let mut document = Document {
        kind: envelope.kind.into(),
        api_version: envelope.api_version.into(),
        ..Document::default()
    };
    if document.kind != "Status" {
        // The field numbers of other kinds mean something else.
        return Ok(document);
    }
    let mut fields = Reader::new(envelope.raw);
    while let Some(field) = fields.next_field()? {
        match field.number {
            1 => document.metadata = decode_metadata(field.bytes()?)?,
            2 => document.status = text(&field)?,
            3 => document.message = text(&field)?,
            4 => document.reason = text(&field)?,
            5 => document.details = Some(decode_details(field.bytes()?)?),
            6 => document.code = field.int()?,
            _ => {}
        }
    }
    Ok(document)
}

fn decode_metadata(bytes: &[u8]) -> Result<Metadata<'_>, WireError> {
    let mut metadata = Metadata::default();
    let mut fields = Reader::new(bytes);
    while let Some(field) = fields.next_field()? {
        if field.number == 3 {
            metadata.continue_token = text(&field)?;
        }
    }
    Ok(metadata)
}

fn decode_details(bytes: &[u8]) -> Result<Details<'_>, WireError> {
    let mut details = Details::default();
    let mut fields = Reader::new(bytes);
    while let Some(field) = fields.next_field()? {
        match field.number {
            1 => details.name = text(&field)?,
            2 => details.group = text(&field)?,
            3 => details.kind = text(&field)?,
            4 if details.causes.len() < MAX_CAUSES => {
                details.causes.push(decode_cause(field.bytes()?)?);
            }
            5 => details.retry_after_seconds = field.int()?,
            6 => details.uid = text(&field)?,
            _ => {}
        }
    }
    Ok(details)
}

fn decode_cause(bytes: &[u8]) -> Result<DocumentCause<'_>, WireError> {
    let mut cause = DocumentCause::default();
    let mut fields = Reader::new(bytes);
    while let Some(field) = fields.next_field()? {
        match field.number {
            1 => cause.reason = text(&field)?,
            2 => cause.message = text(&field)?,
            3 => cause.field = text(&field)?,
            _ => {}
        }
    }
    Ok(cause)
}
