//! Replacing the resource version inside an object's bytes.

use super::{
    Malformed, Object,
    meta::{HeadShape, head_shape},
};
use crate::{
    Encoding, json,
    protobuf::{
        ENVELOPE_TAIL, Envelope, Reader, WireError, Writer, bytes_field_len, envelope_head,
    },
};
use bytes::Bytes;

pub(super) fn replace(object: &Object, version: &str) -> Result<Object, Malformed> {
    let bytes = match object.encoding {
        Encoding::Protobuf => replace_protobuf(&object.bytes, version)?,
        Encoding::Json => replace_json(&object.bytes, version)?,
    };
    Ok(Object {
        encoding: object.encoding,
        bytes,
    })
}

fn replace_protobuf(bytes: &[u8], version: &str) -> Result<Bytes, Malformed> {
    let envelope = Envelope::open(bytes)?;
    let number = match head_shape(&envelope.gvk()) {
        HeadShape::Object => 6,
        HeadShape::List => 2,
        HeadShape::None => {
            return Err(Malformed {
                encoding: Encoding::Protobuf,
                what: format!("{} has no resourceVersion", envelope.kind),
            });
        }
    };
    let (before, message, after) = split_at_field(envelope.raw, 1)?;
    let (head, _, tail) = split_at_field(message, number)?;
    let meta_len = head.len() + bytes_field_len(number, version.len()) + tail.len();
    let raw_len = before.len() + bytes_field_len(1, meta_len) + after.len();
    let mut out = envelope_head(envelope.api_version, envelope.kind, raw_len);
    out.raw(before);
    out.bytes_head(1, meta_len);
    out.raw(head);
    out.str(number, version);
    out.raw(tail);
    out.raw(after);
    write_envelope_tail(&mut out, envelope.content_type);
    Ok(Bytes::from(out.into_vec()))
}

fn write_envelope_tail(out: &mut Writer, content_type: &str) {
    if content_type.is_empty() {
        out.raw(ENVELOPE_TAIL);
    } else {
        out.str(3, "");
        out.str(4, content_type);
    }
}

/// What stands before a field, its content, and what follows.
type Around<'a> = (&'a [u8], &'a [u8], &'a [u8]);

/// What stands before the (last) field `number`, its content, and what follows. Without such a field: the
/// place where it belongs in ascending order, with empty content.
fn split_at_field(message: &[u8], number: u32) -> Result<Around<'_>, WireError> {
    let mut fields = Reader::new(message);
    let mut offset = 0;
    let mut place = None;
    let mut found = None;
    while let Some(field) = fields.next_field()? {
        let end = offset + field.raw.len();
        if field.number == number {
            found = Some((&message[..offset], field.bytes()?, &message[end..]));
        } else if field.number > number && place.is_none() {
            place = Some(offset);
        }
        offset = end;
    }
    Ok(found.unwrap_or_else(|| {
        let (before, after) = message.split_at(place.unwrap_or(message.len()));
        (before, &[], after)
    }))
}

fn replace_json(bytes: &[u8], version: &str) -> Result<Bytes, Malformed> {
    let mut quoted = Vec::with_capacity(version.len() + 2);
    json::push_string(&mut quoted, version);
    let metadata = json::member(bytes, "metadata")?.filter(|raw| raw.get() != "null");
    let Some(metadata) = metadata else {
        let null = json::member(bytes, "metadata")?;
        let member = [br#""metadata":{"resourceVersion":"#, &quoted[..], b"}"].concat();
        return Ok(match null {
            Some(null) => splice(bytes, json::range_in(bytes, null), &member[11..]),
            None => insert_member(bytes, 0, &member),
        });
    };
    let text = metadata.get().as_bytes();
    Ok(match json::member(text, "resourceVersion")? {
        Some(old) => splice(bytes, json::range_in(bytes, old), &quoted),
        None => {
            let start = json::range_in(bytes, metadata).start;
            let member = [br#""resourceVersion":"#, &quoted[..]].concat();
            insert_member(bytes, start, &member)
        }
    })
}

fn splice(bytes: &[u8], range: std::ops::Range<usize>, new: &[u8]) -> Bytes {
    [&bytes[..range.start], new, &bytes[range.end..]]
        .concat()
        .into()
}

/// Puts a member first into the (checked) JSON object that begins at or after `start`.
pub(crate) fn insert_member(bytes: &[u8], start: usize, member: &[u8]) -> Bytes {
    let open = bytes[start..]
        .iter()
        .position(|&byte| byte == b'{')
        .map_or(bytes.len(), |at| start + at + 1);
    let empty = bytes[open..]
        .iter()
        .find(|byte| !byte.is_ascii_whitespace())
        .is_none_or(|&byte| byte == b'}');
    let comma: &[u8] = if empty { b"" } else { b"," };
    [&bytes[..open], member, comma, &bytes[open..]]
        .concat()
        .into()
}
