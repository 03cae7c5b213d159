//! Protobuf to JSON text.

use super::{embedded_type, scalar};
use crate::{
    Encoding, json,
    object::Malformed,
    protobuf::{Envelope, MAGIC, MAX_DEPTH, Reader, WireError, WireField, WireValue},
    schema::{self, Field, FieldKind, Message},
};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use std::ops::Range;

/// Where the fields of a message were found on the wire, in the order of its table.
#[derive(Clone, Copy)]
enum Slot<'a> {
    Absent,
    /// The last occurrence, which is the one that counts.
    One(WireField<'a>),
    /// From the first occurrence to the end of the last one; fields of other numbers may lie between.
    Many {
        container: &'a [u8],
        start: usize,
        end: usize,
    },
}

/// How many times larger than its protobuf the JSON of an object may be. Servers write empty strings and zeros on the
/// wire, and their objects as JSON are up to 3 times larger; but an empty message of two bytes can stand for some
/// hundred bytes of JSON, which would make a list of them a bomb.
const MAX_GROWTH: usize = 8;
/// How large the JSON of an object may be in any case, in bytes.
const FREE_GROWTH: usize = 64 << 10;

/// Writes messages as JSON.
pub(super) struct Decoder<'a, 'o> {
    out: &'o mut Vec<u8>,
    /// Of the outermost object.
    api_version: &'o str,
    /// A stack: the slots of each message that is being written.
    slots: Vec<Slot<'a>>,
    depth: usize,
    /// The length of `out` at which no further message is begun.
    limit: usize,
}

impl<'a, 'o> Decoder<'a, 'o> {
    pub(super) fn new(out: &'o mut Vec<u8>, api_version: &'o str) -> Self {
        Self {
            limit: out.len(),
            out,
            api_version,
            slots: Vec::new(),
            depth: 0,
        }
    }

    /// A whole object with its type.
    pub(super) fn kind(
        &mut self,
        kind: &str,
        message: &'static Message,
        raw: &'a [u8],
    ) -> Result<(), Malformed> {
        // A watch event is the one kind whose JSON does not say what it is.
        let typed = kind != "WatchEvent";
        let api_version = self.api_version;
        self.limit = self
            .out
            .len()
            .saturating_add(raw.len().saturating_mul(MAX_GROWTH))
            .saturating_add(FREE_GROWTH);
        self.object(message, raw, typed.then_some((api_version, kind)))
    }

    fn object(
        &mut self,
        message: &'static Message,
        raw: &'a [u8],
        object_type: Option<(&str, &str)>,
    ) -> Result<(), Malformed> {
        if self.depth == MAX_DEPTH {
            return Err(WireError::Depth.into());
        }
        if self.out.len() > self.limit {
            return Err(malformed("many times larger as JSON"));
        }
        self.depth += 1;
        let base = self.slots.len();
        self.slots.resize(base + message.fields.len(), Slot::Absent);
        self.index(message, raw, base, [0, 0])?;
        self.out.push(b'{');
        let start = self.out.len();
        if let Some((api_version, kind)) = object_type {
            self.out.extend_from_slice(br#""kind":"#);
            json::push_string(self.out, kind);
            self.out.extend_from_slice(br#","apiVersion":"#);
            json::push_string(self.out, api_version);
        }
        for (offset, field) in message.fields.iter().enumerate() {
            let slot = self.slots[base + offset];
            if leaves_out(field, &slot)? {
                continue;
            }
            if self.out.len() > start {
                self.out.push(b',');
            }
            // JSON names in the tables need no escapes.
            self.out.push(b'"');
            self.out.extend_from_slice(field.json_name.as_bytes());
            self.out.extend_from_slice(b"\":");
            let embedded = embedded_type(message, field.json_name, self.api_version);
            self.member(field, slot, embedded)?;
        }
        self.out.push(b'}');
        self.slots.truncate(base);
        self.depth -= 1;
        Ok(())
    }

    /// Finds the fields of one message (or of a struct inlined into it, whose field number ends `parents`).
    fn index(
        &mut self,
        message: &'static Message,
        raw: &'a [u8],
        base: usize,
        parents: [u8; 2],
    ) -> Result<(), WireError> {
        let level = parents.iter().filter(|&&parent| parent != 0).count();
        let mut fields = Reader::new(raw);
        let mut offset = 0;
        // Fields mostly ascend, so the search goes on where the last one ended.
        let mut at = 0;
        while let Some(found) = fields.next_field()? {
            let start = offset;
            offset += found.raw.len();
            let Ok(number) = u8::try_from(found.number) else {
                continue;
            };
            let search = |places: Range<usize>| {
                places.into_iter().find_map(|place| {
                    let field = &message.fields[usize::from(message.wire_order[place])];
                    if field.parents[..level] != parents[..level] {
                        return None;
                    }
                    match field.parents.get(level) {
                        Some(&parent) if parent != 0 => (parent == number).then_some((place, true)),
                        _ => (field.number == number).then_some((place, false)),
                    }
                })
            };
            let place = search(at..message.wire_order.len()).or_else(|| search(0..at));
            let Some((place, inlined)) = place else {
                continue;
            };
            at = place;
            if inlined {
                let mut inner = parents;
                inner[level] = number;
                self.index(message, found.bytes()?, base, inner)?;
                continue;
            }
            let index = usize::from(message.wire_order[place]);
            let field = &message.fields[index];
            let slot = &mut self.slots[base + index];
            *slot = match *slot {
                Slot::Many {
                    container, start, ..
                } if field.repeated || field.map => Slot::Many {
                    container,
                    start,
                    end: offset,
                },
                _ if field.repeated || field.map => Slot::Many {
                    container: raw,
                    start,
                    end: offset,
                },
                _ => Slot::One(found),
            };
        }
        Ok(())
    }

    /// The value of a field that is not left out.
    fn member(
        &mut self,
        field: &'static Field,
        slot: Slot<'a>,
        embedded: Option<(&str, &str)>,
    ) -> Result<(), Malformed> {
        match slot {
            Slot::Absent if field.pointer || field.repeated || field.map => self.raw(b"null"),
            Slot::Absent => self.zero(field)?,
            Slot::One(found) => self.value(field, &found, embedded)?,
            Slot::Many {
                container,
                start,
                end,
            } => {
                let (open, close) = if field.map {
                    (b'{', b'}')
                } else {
                    (b'[', b']')
                };
                self.out.push(open);
                let begin = self.out.len();
                let mut fields = Reader::new(&container[start..end]);
                while let Some(found) = fields.next_field()? {
                    if found.number != u32::from(field.number) {
                        continue;
                    }
                    if self.out.len() > begin {
                        self.out.push(b',');
                    }
                    if field.map {
                        self.map_entry(field, &found)?;
                    } else {
                        self.value(field, &found, embedded)?;
                    }
                }
                self.out.push(close);
            }
        }
        Ok(())
    }

    fn map_entry(&mut self, field: &'static Field, entry: &WireField<'a>) -> Result<(), Malformed> {
        let mut key: &[u8] = &[];
        let mut value = None;
        let mut fields = Reader::new(entry.bytes()?);
        while let Some(found) = fields.next_field()? {
            match found.number {
                1 => key = found.bytes()?,
                2 => value = Some(found),
                _ => {}
            }
        }
        self.string(key);
        self.out.push(b':');
        match value {
            Some(value) => self.value(field, &value, None),
            None if field.kind == FieldKind::Bytes => {
                self.raw(b"\"\"");
                Ok(())
            }
            None => self.zero(field),
        }
    }

    /// What JSON says of a value that Go has and the wire has not.
    fn zero(&mut self, field: &'static Field) -> Result<(), Malformed> {
        match field.kind {
            FieldKind::String => self.raw(b"\"\""),
            FieldKind::Bool => self.raw(b"false"),
            FieldKind::Int32 | FieldKind::Int64 | FieldKind::Double | FieldKind::IntOrString => {
                self.raw(b"0");
            }
            FieldKind::Quantity => self.raw(b"\"0\""),
            FieldKind::Duration => self.raw(b"\"0s\""),
            FieldKind::Message(_) => {
                if let Some(message) = field.message() {
                    self.object(message, &[], None)?;
                }
            }
            FieldKind::Bytes
            | FieldKind::Time
            | FieldKind::MicroTime
            | FieldKind::FieldsV1
            | FieldKind::RawExtension
            | FieldKind::Json
            | FieldKind::StringList
            | FieldKind::JsonSchemaPropsOrArray
            | FieldKind::JsonSchemaPropsOrStringArray => self.raw(b"null"),
            FieldKind::JsonSchemaPropsOrBool => self.raw(b"false"),
        }
        Ok(())
    }

    fn value(
        &mut self,
        field: &'static Field,
        found: &WireField<'a>,
        embedded: Option<(&str, &str)>,
    ) -> Result<(), Malformed> {
        match field.kind {
            FieldKind::String => self.string(found.bytes()?),
            FieldKind::Bool => {
                let value = found.varint()? != 0;
                self.raw(if value { b"true" } else { b"false" });
            }
            // Go too takes the low bits only.
            FieldKind::Int32 => self.int(i64::from(found.int()? as i32)),
            FieldKind::Int64 => self.int(found.int()?),
            FieldKind::Double => {
                let WireValue::Fixed64(bits) = found.value else {
                    return Err(WireError::Unexpected(found.number).into());
                };
                let text = scalar::print_double(f64::from_bits(bits))
                    .ok_or_else(|| malformed("a number that JSON cannot say"))?;
                self.raw(text.as_bytes());
            }
            FieldKind::Bytes => {
                let bytes = found.bytes()?;
                self.out.push(b'"');
                let start = self.out.len();
                // Four characters for each three bytes that were begun.
                self.out.resize(start + bytes.len().div_ceil(3) * 4, 0);
                let written = BASE64_STANDARD.encode_slice(bytes, &mut self.out[start..]);
                self.out.truncate(start + written.unwrap_or_default());
                self.out.push(b'"');
            }
            FieldKind::Quantity => match scalar::read_wrapped(found.bytes()?)? {
                Some(text) if !text.is_empty() => self.string(text),
                _ => self.raw(b"\"0\""),
            },
            FieldKind::IntOrString => match scalar::read_int_or_string(found.bytes()?)? {
                scalar::IntOrString::Int(int) => self.int(i64::from(int)),
                scalar::IntOrString::String(text) => self.string(text),
            },
            FieldKind::Time => self.time(scalar::read_time(found.bytes()?)?),
            FieldKind::MicroTime => self.time(scalar::read_micro_time(found.bytes()?)?),
            FieldKind::Duration => {
                let mut nanos = 0;
                let mut fields = Reader::new(found.bytes()?);
                while let Some(field) = fields.next_field()? {
                    if field.number == 1 {
                        nanos = field.int()?;
                    }
                }
                self.string(scalar::print_duration(nanos).as_bytes());
            }
            FieldKind::FieldsV1 | FieldKind::Json => match scalar::read_wrapped(found.bytes()?)? {
                Some(text) if !text.is_empty() => self.embedded_json(text)?,
                _ => self.raw(b"null"),
            },
            FieldKind::RawExtension => match scalar::read_wrapped(found.bytes()?)? {
                Some(raw) if raw.starts_with(MAGIC) => self.embedded_object(raw)?,
                Some(raw) if !raw.is_empty() => self.embedded_json(raw)?,
                _ => self.raw(b"null"),
            },
            FieldKind::StringList => {
                self.out.push(b'[');
                let begin = self.out.len();
                let mut items = Reader::new(found.bytes()?);
                while let Some(item) = items.next_field()? {
                    if item.number == 1 {
                        if self.out.len() > begin {
                            self.out.push(b',');
                        }
                        self.string(item.bytes()?);
                    }
                }
                self.out.push(b']');
            }
            FieldKind::Message(_) => {
                if let Some(message) = field.message() {
                    self.object(message, found.bytes()?, embedded)?;
                }
            }
            FieldKind::JsonSchemaPropsOrArray
            | FieldKind::JsonSchemaPropsOrBool
            | FieldKind::JsonSchemaPropsOrStringArray => self.schema_or(field, found.bytes()?)?,
        }
        Ok(())
    }

    /// `JSONSchemaPropsOrArray{1 schema, 2 jSONSchemas}`, `JSONSchemaPropsOrBool{1 allows, 2 schema}`,
    /// `JSONSchemaPropsOrStringArray{1 schema, 2 property}`: in JSON whichever is set.
    fn schema_or(&mut self, field: &'static Field, raw: &'a [u8]) -> Result<(), Malformed> {
        let Some(message) = field.message() else {
            return Ok(());
        };
        let or_bool = field.kind == FieldKind::JsonSchemaPropsOrBool;
        let schema_number = if or_bool { 2 } else { 1 };
        let (mut schema, mut allows, mut items) = (None, false, 0);
        let mut fields = Reader::new(raw);
        while let Some(found) = fields.next_field()? {
            if found.number == schema_number {
                schema = Some(found.bytes()?);
            } else if or_bool && found.number == 1 {
                allows = found.varint()? != 0;
            } else if !or_bool && found.number == 2 {
                items += 1;
            }
        }
        if items > 0 {
            self.out.push(b'[');
            let begin = self.out.len();
            let mut fields = Reader::new(raw);
            while let Some(found) = fields.next_field()? {
                if found.number == 2 {
                    if self.out.len() > begin {
                        self.out.push(b',');
                    }
                    if field.kind == FieldKind::JsonSchemaPropsOrArray {
                        self.object(message, found.bytes()?, None)?;
                    } else {
                        self.string(found.bytes()?);
                    }
                }
            }
            self.out.push(b']');
            return Ok(());
        }
        match schema {
            Some(schema) => self.object(message, schema, None)?,
            None if or_bool => self.raw(if allows { b"true" } else { b"false" }),
            None => self.raw(b"null"),
        }
        Ok(())
    }

    /// An object in its envelope within another one.
    fn embedded_object(&mut self, bytes: &'a [u8]) -> Result<(), Malformed> {
        let envelope = Envelope::open(bytes)?;
        if envelope.content_type == Encoding::Json.content_type() {
            return self.embedded_json(envelope.raw);
        }
        let message = schema::message_of(&envelope.gvk())
            .ok_or_else(|| malformed("an embedded object of an unknown kind"))?;
        let object_type = Some((envelope.api_version, envelope.kind));
        self.object(message, envelope.raw, object_type)
    }

    fn embedded_json(&mut self, text: &[u8]) -> Result<(), Malformed> {
        json::push_compact(self.out, text)
            .map_err(|error| malformed(&format!("embedded JSON: {error}")))
    }

    fn time(&mut self, time: Option<String>) {
        match time {
            Some(time) => self.string(time.as_bytes()),
            None => self.raw(b"null"),
        }
    }

    /// Go keeps strings that are not UTF-8 (a termination message cut in the middle of a character) and
    /// prints replacement characters.
    fn string(&mut self, bytes: &[u8]) {
        json::push_string(self.out, &String::from_utf8_lossy(bytes));
    }

    fn int(&mut self, value: i64) {
        use std::io::Write as _;
        // Writing to a vector cannot fail.
        let _ = write!(self.out, "{value}");
    }

    fn raw(&mut self, bytes: &[u8]) {
        self.out.extend_from_slice(bytes);
    }
}

/// Whether Go leaves the field out of JSON.
fn leaves_out(field: &Field, slot: &Slot<'_>) -> Result<bool, WireError> {
    if !field.omit_empty && !field.omit_zero {
        return Ok(false);
    }
    Ok(match slot {
        Slot::Absent if field.pointer || field.repeated || field.map => true,
        Slot::Absent => match field.kind {
            FieldKind::String
            | FieldKind::Bool
            | FieldKind::Int32
            | FieldKind::Int64
            | FieldKind::Double
            | FieldKind::Bytes
            | FieldKind::StringList => true,
            _ => field.omit_zero,
        },
        Slot::Many { .. } => false,
        Slot::One(_) if field.pointer => false,
        Slot::One(found) => match found.value {
            WireValue::Varint(value) => value == 0,
            WireValue::Fixed64(bits) => f64::from_bits(bits) == 0.0,
            WireValue::Fixed32(_) => return Err(WireError::Unexpected(found.number)),
            WireValue::Bytes(bytes) => match field.kind {
                FieldKind::String | FieldKind::Bytes | FieldKind::StringList => bytes.is_empty(),
                _ => field.omit_zero && bytes.is_empty(),
            },
        },
    })
}

fn malformed(what: &str) -> Malformed {
    Malformed {
        encoding: Encoding::Protobuf,
        what: what.to_owned(),
    }
}
