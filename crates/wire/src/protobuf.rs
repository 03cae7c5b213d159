//! The protobuf wire format, just enough to walk and write the messages of Kubernetes: a [`Reader`]
//! over borrowed bytes, a [`Writer`], and the [`Envelope`] around every stored or relayed object.
//!
//! Kubernetes' messages are proto2 without groups, packed fields or oneofs, so a group tag is an error.
//! Nothing here allocates from a length that was read: a length is only ever used to take a slice.

use crate::{Encoding, object::Malformed};
use bytes::Bytes;

/// The four bytes before every object in protobuf.
pub const MAGIC: &[u8; 4] = b"k8s\0";

/// Why bytes are not a protobuf message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// A field or its length goes beyond the end.
    #[error("cut off inside a field")]
    Truncated,
    /// A varint of more than 64 bits.
    #[error("varint of more than 64 bits")]
    Varint,
    /// Field number 0, or one of more than 29 bits.
    #[error("field number out of range")]
    FieldNumber,
    /// A wire type that Kubernetes does not use (groups and reserved ones).
    #[error("unknown wire type {0}")]
    WireType(u8),
    /// A field has another wire type than its definition says.
    #[error("field {0} has an unexpected wire type")]
    Unexpected(u32),
    /// A string that must be UTF-8 is not.
    #[error("field {0} is not UTF-8")]
    Utf8(u32),
    /// The bytes do not start with the envelope's magic.
    #[error("no k8s magic at the start")]
    Magic,
    /// A time that RFC 3339 cannot tell.
    #[error("time out of range")]
    Time,
    /// Messages nested deeper than [`MAX_DEPTH`].
    #[error("nested too deeply")]
    Depth,
}

impl From<WireError> for Malformed {
    fn from(error: WireError) -> Self {
        Self {
            encoding: Encoding::Protobuf,
            what: error.to_string(),
        }
    }
}

/// How deep messages may be nested where a decoder recurses: built-in kinds need about 15, the recursive
/// JSONSchemaProps of CRDs more.
pub const MAX_DEPTH: usize = 100;

/// The value of one field as it is on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WireValue<'a> {
    /// Integers, booleans.
    Varint(u64),
    /// Doubles.
    Fixed64(u64),
    /// Not used by Kubernetes' own types, skipped like any unknown field.
    Fixed32(u32),
    /// Strings, bytes, messages, map entries.
    Bytes(&'a [u8]),
}

/// One field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WireField<'a> {
    /// The field number.
    pub number: u32,
    /// The value.
    pub value: WireValue<'a>,
    /// The whole field, with tag and length.
    pub raw: &'a [u8],
}

impl<'a> WireField<'a> {
    /// The bytes of a length-delimited field.
    pub fn bytes(&self) -> Result<&'a [u8], WireError> {
        match self.value {
            WireValue::Bytes(bytes) => Ok(bytes),
            _ => Err(WireError::Unexpected(self.number)),
        }
    }
    /// A string.
    pub fn str(&self) -> Result<&'a str, WireError> {
        std::str::from_utf8(self.bytes()?).map_err(|_| WireError::Utf8(self.number))
    }
    /// An integer or boolean.
    pub fn varint(&self) -> Result<u64, WireError> {
        match self.value {
            WireValue::Varint(value) => Ok(value),
            _ => Err(WireError::Unexpected(self.number)),
        }
    }
    /// An `int64` or `int32` (negative ones are sign-extended to 64 bits on the wire).
    pub fn int(&self) -> Result<i64, WireError> {
        Ok(self.varint()?.cast_signed())
    }
}

/// Walks the fields of one message.
#[derive(Clone, Copy, Debug)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// A reader at the start of a message.
    pub fn new(message: &'a [u8]) -> Self {
        Self { rest: message }
    }

    /// The next field; `None` at the end of the message.
    #[inline]
    pub fn next_field(&mut self) -> Result<Option<WireField<'a>>, WireError> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let start = self.rest;
        let tag = self.varint()?;
        let number = u32::try_from(tag >> 3).map_err(|_| WireError::FieldNumber)?;
        if number == 0 || number >= 1 << 29 {
            return Err(WireError::FieldNumber);
        }
        let value = match (tag & 7) as u8 {
            0 => WireValue::Varint(self.varint()?),
            1 => WireValue::Fixed64(u64::from_le_bytes(self.array()?)),
            2 => {
                let len = usize::try_from(self.varint()?).map_err(|_| WireError::Truncated)?;
                WireValue::Bytes(self.take(len)?)
            }
            5 => WireValue::Fixed32(u32::from_le_bytes(self.array()?)),
            other => return Err(WireError::WireType(other)),
        };
        let raw = &start[..start.len() - self.rest.len()];
        Ok(Some(WireField { number, value, raw }))
    }

    #[inline]
    fn varint(&mut self) -> Result<u64, WireError> {
        let mut value = 0u64;
        for (index, &byte) in self.rest.iter().take(10).enumerate() {
            if index == 9 && byte > 1 {
                return Err(WireError::Varint);
            }
            value |= u64::from(byte & 0x7f) << (7 * index);
            if byte < 0x80 {
                self.rest = &self.rest[index + 1..];
                return Ok(value);
            }
        }
        // Ten bytes with the continuation bit were caught above, so the message ended.
        Err(WireError::Truncated)
    }

    #[inline]
    fn take(&mut self, len: usize) -> Result<&'a [u8], WireError> {
        let (taken, rest) = self
            .rest
            .split_at_checked(len)
            .ok_or(WireError::Truncated)?;
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], WireError> {
        let (taken, rest) = self.rest.split_first_chunk().ok_or(WireError::Truncated)?;
        self.rest = rest;
        Ok(*taken)
    }
}

/// The number of bytes of a varint.
pub fn varint_len(value: u64) -> usize {
    // 1 + (significant bits - 1) / 7
    ((64 - (value | 1).leading_zeros() as usize) * 9 + 64) / 64
}

/// The number of bytes of a length-delimited field.
pub fn bytes_field_len(number: u32, len: usize) -> usize {
    varint_len(u64::from(number) << 3) + varint_len(len as u64) + len
}

/// Appends fields to a buffer.
#[derive(Debug, Default)]
pub struct Writer {
    out: Vec<u8>,
}

impl Writer {
    /// An empty message.
    pub fn new() -> Self {
        Self::default()
    }
    /// An empty message with room for `capacity` bytes.
    pub fn with_capacity(capacity: usize) -> Self {
        Self {
            out: Vec::with_capacity(capacity),
        }
    }
    /// The bytes written.
    pub fn into_vec(self) -> Vec<u8> {
        self.out
    }
    /// The number of bytes written.
    pub fn len(&self) -> usize {
        self.out.len()
    }
    /// Whether nothing was written.
    pub fn is_empty(&self) -> bool {
        self.out.is_empty()
    }

    /// Bytes as they are (a whole field copied from elsewhere, or the magic).
    pub fn raw(&mut self, bytes: &[u8]) {
        self.out.extend_from_slice(bytes);
    }
    /// A bare varint.
    pub fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.out.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.out.push(value as u8);
    }
    /// An integer field.
    pub fn int(&mut self, number: u32, value: i64) {
        self.varint(u64::from(number) << 3);
        self.varint(value.cast_unsigned());
    }
    /// A boolean field.
    pub fn bool(&mut self, number: u32, value: bool) {
        self.int(number, i64::from(value));
    }
    /// A double field.
    pub fn double(&mut self, number: u32, value: f64) {
        self.varint(u64::from(number) << 3 | 1);
        self.out.extend_from_slice(&value.to_le_bytes());
    }
    /// The tag and length before `len` bytes of a length-delimited field.
    pub fn bytes_head(&mut self, number: u32, len: usize) {
        self.varint(u64::from(number) << 3 | 2);
        self.varint(len as u64);
    }
    /// A length-delimited field.
    pub fn bytes(&mut self, number: u32, value: &[u8]) {
        self.bytes_head(number, value.len());
        self.out.extend_from_slice(value);
    }
    /// A string field.
    pub fn str(&mut self, number: u32, value: &str) {
        self.bytes(number, value.as_bytes());
    }
    /// A message field written by `body`. The length is put in afterwards, so a message of 128 bytes or
    /// more is moved once by a byte or two.
    pub fn message<E>(
        &mut self,
        number: u32,
        body: impl FnOnce(&mut Self) -> Result<(), E>,
    ) -> Result<(), E> {
        self.varint(u64::from(number) << 3 | 2);
        let length_at = self.out.len();
        self.out.push(0);
        body(self)?;
        let len = self.out.len() - length_at - 1;
        if len < 0x80 {
            self.out[length_at] = len as u8;
        } else {
            let mut prefix = Self::with_capacity(10);
            prefix.varint(len as u64);
            self.out.splice(length_at..=length_at, prefix.out);
        }
        Ok(())
    }
}

/// `runtime.Unknown` after the magic: the type of an object and its message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Envelope<'a> {
    /// `v1`, `apps/v1`.
    pub api_version: &'a str,
    /// `Pod`.
    pub kind: &'a str,
    /// The object's message.
    pub raw: &'a [u8],
    /// `raw` with its tag (field 2) and length, which is also how an item stands in a list.
    pub raw_field: &'a [u8],
    /// `""` means protobuf; `application/json` when a server wrapped JSON.
    pub content_type: &'a str,
}

impl<'a> Envelope<'a> {
    /// Opens the envelope of an object.
    pub fn open(bytes: &'a [u8]) -> Result<Self, WireError> {
        let unknown = bytes.strip_prefix(MAGIC).ok_or(WireError::Magic)?;
        let mut envelope = Envelope {
            api_version: "",
            kind: "",
            raw: &[],
            raw_field: &[],
            content_type: "",
        };
        let mut fields = Reader::new(unknown);
        while let Some(field) = fields.next_field()? {
            match field.number {
                1 => {
                    let mut type_meta = Reader::new(field.bytes()?);
                    while let Some(field) = type_meta.next_field()? {
                        match field.number {
                            1 => envelope.api_version = field.str()?,
                            2 => envelope.kind = field.str()?,
                            _ => {}
                        }
                    }
                }
                2 => {
                    envelope.raw = field.bytes()?;
                    envelope.raw_field = field.raw;
                }
                4 => envelope.content_type = field.str()?,
                _ => {}
            }
        }
        Ok(envelope)
    }

    /// Group, version and kind.
    pub fn gvk(&self) -> crate::Gvk {
        crate::Gvk::from_api_version(self.api_version, self.kind)
    }
}

/// What follows `raw` in every envelope that kube-apiserver writes: empty contentEncoding and contentType.
pub const ENVELOPE_TAIL: &[u8] = &[0x1a, 0, 0x22, 0];

/// Magic, type and the head of the raw field for a message of `raw_len` bytes; the message and
/// [`ENVELOPE_TAIL`] follow it. Room is reserved for all three.
pub fn envelope_head(api_version: &str, kind: &str, raw_len: usize) -> Writer {
    envelope_head_with_room(api_version, kind, raw_len, raw_len + ENVELOPE_TAIL.len())
}

/// As [`envelope_head`], with `room` bytes reserved for what the caller writes after it.
pub(crate) fn envelope_head_with_room(
    api_version: &str,
    kind: &str,
    raw_len: usize,
    room: usize,
) -> Writer {
    let raw_head = 1 + varint_len(raw_len as u64);
    let mut out = envelope_type(api_version, kind, raw_head + room);
    out.bytes_head(2, raw_len);
    out
}

/// Magic and type, how every envelope of a kind begins, with `room` bytes reserved for what the caller writes after it.
pub(crate) fn envelope_type(api_version: &str, kind: &str, room: usize) -> Writer {
    let type_len = bytes_field_len(1, api_version.len()) + bytes_field_len(2, kind.len());
    let head = MAGIC.len() + bytes_field_len(1, type_len);
    let mut out = Writer::with_capacity(head + room);
    out.raw(MAGIC);
    out.bytes_head(1, type_len);
    out.str(1, api_version);
    out.str(2, kind);
    out
}

/// Puts a message into an envelope, with the bytes that kube-apiserver would send.
pub fn seal(api_version: &str, kind: &str, raw: &[u8]) -> Bytes {
    let mut out = envelope_head(api_version, kind, raw.len());
    out.raw(raw);
    out.raw(ENVELOPE_TAIL);
    Bytes::from(out.into_vec())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn varints_round_trip(value: u64) {
            let mut writer = Writer::new();
            writer.int(5, value.cast_signed());
            prop_assert_eq!(writer.len(), 1 + varint_len(value));
            let bytes = writer.into_vec();
            let field = Reader::new(&bytes).next_field().unwrap().unwrap();
            prop_assert_eq!(field.varint().unwrap(), value);
        }

        #[test]
        fn any_bytes_are_read_without_panic(bytes: Vec<u8>) {
            let mut reader = Reader::new(&bytes);
            let mut walked = 0;
            while let Ok(Some(field)) = reader.next_field() {
                walked += field.raw.len();
            }
            prop_assert!(walked <= bytes.len());
            let _ = Envelope::open(&[MAGIC.as_slice(), &bytes].concat());
        }

        #[test]
        fn nested_messages_get_their_length(payload in proptest::collection::vec(any::<u8>(), 0..40_000)) {
            let mut writer = Writer::new();
            writer.message(3, |outer| outer.message(700, |inner| {
                inner.bytes(1, &payload);
                Ok::<_, WireError>(())
            })).unwrap();
            let bytes = writer.into_vec();
            let outer = Reader::new(&bytes).next_field().unwrap().unwrap();
            prop_assert_eq!(outer.raw.len(), bytes.len());
            let inner = Reader::new(outer.bytes().unwrap()).next_field().unwrap().unwrap();
            prop_assert_eq!(inner.number, 700);
            let leaf = Reader::new(inner.bytes().unwrap()).next_field().unwrap().unwrap();
            prop_assert_eq!(leaf.bytes().unwrap(), &payload[..]);
        }

        #[test]
        fn envelopes_round_trip(raw: Vec<u8>, kind: String) {
            let sealed = seal("apps/v1", &kind, &raw);
            prop_assert_eq!(sealed.len(), envelope_head("apps/v1", &kind, raw.len()).len() + raw.len() + 4);
            let envelope = Envelope::open(&sealed).unwrap();
            prop_assert_eq!(envelope.raw, &raw[..]);
            prop_assert_eq!(envelope.kind, &kind);
            prop_assert_eq!(envelope.api_version, "apps/v1");
        }
    }

    #[test]
    fn a_varint_of_65_bits_is_refused() {
        let mut bytes = vec![0x08];
        bytes.extend([0xff; 9]);
        bytes.push(0x02);
        assert_eq!(
            Reader::new(&bytes).next_field().unwrap_err(),
            WireError::Varint
        );
    }
}
