//! Borrowed walks over JSON text: members are found without building values.

use crate::{Encoding, object::Malformed};
use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;
use std::{borrow::Cow, fmt, fmt::Write as _, ops::Range};

impl From<serde_json::Error> for Malformed {
    /// Where the error quotes a long text of the input, it is cut.
    fn from(error: serde_json::Error) -> Self {
        let mut what = Beginning(String::new());
        let _cut = write!(what, "{error}");
        Self {
            encoding: Encoding::Json,
            what: what.0,
        }
    }
}

/// As much of what is written as fits an error.
struct Beginning(String);
impl fmt::Write for Beginning {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        const MAX: usize = 512;
        let room = MAX.saturating_sub(self.0.len());
        self.0.push_str(&text[..text.floor_char_boundary(room)]);
        if text.len() > room {
            return Err(fmt::Error);
        }
        Ok(())
    }
}

/// Calls `each` with every member of the JSON object in `text`.
pub(crate) fn for_each_member<'a>(
    text: &'a [u8],
    each: impl FnMut(&str, &'a RawValue),
) -> Result<(), serde_json::Error> {
    struct Members<F>(F);
    impl<'de, F: FnMut(&str, &'de RawValue)> Visitor<'de> for Members<F> {
        type Value = ();
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object")
        }
        fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<(), A::Error> {
            while let Some(key) = map.next_key_seed(Key)? {
                (self.0)(&key, map.next_value()?);
            }
            Ok(())
        }
    }
    let mut deserializer = serde_json::Deserializer::from_slice(text);
    deserializer.deserialize_map(Members(each))?;
    deserializer.end()
}

/// A key, borrowed unless it holds escapes.
struct Key;
impl<'de> DeserializeSeed<'de> for Key {
    type Value = Cow<'de, str>;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}
impl<'de> Visitor<'de> for Key {
    type Value = Cow<'de, str>;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }
    fn visit_borrowed_str<E: de::Error>(self, v: &'de str) -> Result<Self::Value, E> {
        Ok(Cow::Borrowed(v))
    }
    fn visit_str<E: de::Error>(self, v: &str) -> Result<Self::Value, E> {
        Ok(Cow::Owned(v.to_owned()))
    }
}

/// The last member `name` of the JSON object in `text` (as Go's decoder, the last one counts).
pub(crate) fn member<'a>(
    text: &'a [u8],
    name: &str,
) -> Result<Option<&'a RawValue>, serde_json::Error> {
    let mut found = None;
    for_each_member(text, |key, value| {
        if key == name {
            found = Some(value);
        }
    })?;
    Ok(found)
}

/// Where `part` lies within `whole`, of which it must be a slice.
pub(crate) fn range_in(whole: &[u8], part: &RawValue) -> Range<usize> {
    let start = (part.get().as_ptr() as usize).saturating_sub(whole.as_ptr() as usize);
    start..start + part.get().len()
}

/// Appends a JSON string with Go's escapes: HTML's special characters and the line separators that JavaScript
/// minds are escaped too, so that the text is byte for byte kube-apiserver's.
pub(crate) fn push_string(out: &mut Vec<u8>, value: &str) {
    out.push(b'"');
    push_escaped(out, value.as_bytes(), |byte| {
        byte < 0x20 || byte == b'"' || byte == b'\\'
    });
    out.push(b'"');
}

/// Appends `text` with the bytes escaped that `special` names, and those that Go escapes everywhere.
fn push_escaped(out: &mut Vec<u8>, text: &[u8], special: impl Fn(u8) -> bool) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let mut done = 0;
    for (at, &byte) in text.iter().enumerate() {
        let line_separator = byte == 0xe2
            && text.get(at + 1) == Some(&0x80)
            && matches!(text.get(at + 2), Some(0xa8 | 0xa9));
        if !(special(byte) || matches!(byte, b'<' | b'>' | b'&') || line_separator) {
            continue;
        }
        out.extend_from_slice(&text[done..at]);
        done = at + 1;
        match byte {
            b'"' => out.extend_from_slice(b"\\\""),
            b'\\' => out.extend_from_slice(b"\\\\"),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            0x08 => out.extend_from_slice(b"\\b"),
            0x0c => out.extend_from_slice(b"\\f"),
            0xe2 => {
                out.extend_from_slice(b"\\u202");
                out.push(if text[at + 2] == 0xa8 { b'8' } else { b'9' });
                done = at + 3;
            }
            _ => {
                out.extend_from_slice(b"\\u00");
                out.push(HEX[usize::from(byte >> 4)]);
                out.push(HEX[usize::from(byte & 15)]);
            }
        }
    }
    out.extend_from_slice(&text[done..]);
}

/// Appends JSON text with Go's escapes inside its strings; the characters concerned stand nowhere else.
pub(crate) fn push_text(out: &mut Vec<u8>, text: &[u8]) {
    push_escaped(out, text, |_| false);
}

/// Appends JSON text that came from elsewhere, checked, without the white space between its tokens.
pub(crate) fn push_compact(out: &mut Vec<u8>, text: &[u8]) -> Result<(), serde_json::Error> {
    let text = serde_json::from_slice::<&RawValue>(text)?.get().as_bytes();
    let (mut in_string, mut escaped) = (false, false);
    let mut start = 0;
    for (at, &byte) in text.iter().enumerate() {
        if in_string {
            match byte {
                _ if escaped => escaped = false,
                b'\\' => escaped = true,
                b'"' => in_string = false,
                _ => {}
            }
        } else if byte == b'"' {
            in_string = true;
        } else if byte.is_ascii_whitespace() {
            push_escaped(out, &text[start..at], |_| false);
            start = at + 1;
        }
    }
    push_escaped(out, &text[start..], |_| false);
    Ok(())
}
