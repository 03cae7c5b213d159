//! Cutting a byte stream into watch frames.

use super::{Event, EventType, Frame};
use crate::{
    Encoding, json,
    object::{Malformed, Object, shown},
    protobuf::{MAGIC, Reader},
};
use bytes::{Bytes, BytesMut};
use std::collections::VecDeque;

/// Cuts a byte stream into frames. Frames that lie within one chunk share its bytes; others are put together.
///
/// Holds at most `max_frame` bytes of an unfinished frame besides the chunks that were pushed and not
/// asked for yet: call [`Self::next_frame`] until it gives `None` before pushing more.
#[derive(Debug)]
pub struct FrameDecoder {
    border: Border,
    max_frame: usize,
    /// What came and was not looked at yet.
    chunks: VecDeque<Bytes>,
    /// The beginning of a frame that did not end within its chunk.
    partial: BytesMut,
    failed: Option<Malformed>,
}

/// How the end of a frame is found.
#[derive(Debug)]
enum Border {
    Length,
    Json(JsonScan),
}

/// What is known of a JSON frame so far.
#[derive(Debug, Default)]
struct JsonScan {
    depth: usize,
    in_string: bool,
    escaped: bool,
    /// The object is closed; the frame ends with the newline, or before the next object.
    closed: bool,
}

/// Where a frame ends in the bytes looked at.
enum Cut {
    /// The frame takes this many more bytes.
    At(usize),
    /// All bytes belong to the frame and it goes on.
    Beyond,
}

impl FrameDecoder {
    /// A decoder that refuses frames larger than `max_frame`.
    pub fn new(encoding: Encoding, max_frame: usize) -> Self {
        Self {
            border: match encoding {
                Encoding::Protobuf => Border::Length,
                Encoding::Json => Border::Json(JsonScan::default()),
            },
            max_frame,
            chunks: VecDeque::new(),
            partial: BytesMut::new(),
            failed: None,
        }
    }

    /// Adds a chunk.
    pub fn push(&mut self, chunk: Bytes) {
        if !chunk.is_empty() && self.failed.is_none() {
            self.chunks.push_back(chunk);
        }
    }

    /// The next whole frame; `None` when more bytes are needed; `Err` when the stream cannot be
    /// followed any more (oversized frame, bytes that cannot start a frame). After an error every call errs.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, Malformed> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        self.advance().inspect_err(|error| {
            self.failed = Some(error.clone());
            self.chunks = VecDeque::new();
            self.partial = BytesMut::new();
        })
    }

    /// Bytes held of an unfinished frame: not zero at the end of a stream means it was cut inside a frame.
    /// (A JSON object whose newline is missing counts as unfinished, see [`Self::finish`].)
    pub fn pending(&self) -> usize {
        self.partial.len() + self.chunks.iter().map(Bytes::len).sum::<usize>()
    }

    /// At the end of the stream: the last JSON frame when only its newline is missing.
    pub fn finish(&mut self) -> Option<Frame> {
        match &mut self.border {
            Border::Json(scan) if scan.closed && self.chunks.is_empty() => {
                *scan = JsonScan::default();
                let raw = std::mem::take(&mut self.partial).freeze();
                Some(json_frame(raw))
            }
            _ => None,
        }
    }

    fn advance(&mut self) -> Result<Option<Frame>, Malformed> {
        while let Some(mut chunk) = self.chunks.pop_front() {
            if self.partial.is_empty()
                && let Border::Json(scan) = &self.border
                && !scan.closed
            {
                skip_space(&mut chunk);
                if chunk.is_empty() {
                    continue;
                }
            }
            match self.cut(&chunk)? {
                Cut::At(len) => {
                    let last = chunk.split_to(len);
                    if !chunk.is_empty() {
                        self.chunks.push_front(chunk);
                    }
                    let raw = if self.partial.is_empty() {
                        last
                    } else {
                        self.partial.extend_from_slice(&last);
                        std::mem::take(&mut self.partial).freeze()
                    };
                    return Ok(Some(match &mut self.border {
                        Border::Length => protobuf_frame(raw),
                        Border::Json(scan) => {
                            *scan = JsonScan::default();
                            json_frame(raw)
                        }
                    }));
                }
                Cut::Beyond => self.partial.extend_from_slice(&chunk),
            }
        }
        Ok(None)
    }

    /// Looks for the end of the current frame in the next chunk.
    fn cut(&mut self, chunk: &[u8]) -> Result<Cut, Malformed> {
        let held = self.partial.len();
        let cut = match &mut self.border {
            Border::Length => {
                let mut prefix = [0; 4];
                let mut count = 0;
                for (to, from) in prefix.iter_mut().zip(self.partial.iter().chain(chunk)) {
                    *to = *from;
                    count += 1;
                }
                if count < 4 {
                    return Ok(Cut::Beyond);
                }
                let total = (u32::from_be_bytes(prefix) as usize).saturating_add(4);
                if total > self.max_frame {
                    return Err(oversized(Encoding::Protobuf, self.max_frame));
                }
                // The prefix may have been in `partial` already, the frame is never shorter than that.
                let missing = total - held;
                if missing <= chunk.len() {
                    Cut::At(missing)
                } else {
                    Cut::Beyond
                }
            }
            Border::Json(scan) => {
                let cut = scan.scan(chunk, held == 0)?;
                let len = match cut {
                    Cut::At(len) => len,
                    Cut::Beyond => chunk.len(),
                };
                if held + len > self.max_frame {
                    return Err(oversized(Encoding::Json, self.max_frame));
                }
                cut
            }
        };
        Ok(cut)
    }
}

impl JsonScan {
    fn scan(&mut self, chunk: &[u8], first: bool) -> Result<Cut, Malformed> {
        if first && chunk.first() != Some(&b'{') {
            return Err(malformed(
                Encoding::Json,
                "a frame does not start with an object",
            ));
        }
        for (at, &byte) in chunk.iter().enumerate() {
            if self.closed {
                match byte {
                    b'\n' => return Ok(Cut::At(at + 1)),
                    b' ' | b'\t' | b'\r' => {}
                    _ => return Ok(Cut::At(at)),
                }
            } else if self.in_string {
                match byte {
                    _ if self.escaped => self.escaped = false,
                    b'\\' => self.escaped = true,
                    b'"' => self.in_string = false,
                    _ => {}
                }
            } else {
                match byte {
                    b'"' => self.in_string = true,
                    b'{' => self.depth += 1,
                    b'}' => {
                        self.depth -= 1;
                        self.closed = self.depth == 0;
                    }
                    _ => {}
                }
            }
        }
        Ok(Cut::Beyond)
    }
}

fn skip_space(chunk: &mut Bytes) {
    let space = chunk
        .iter()
        .take_while(|byte| byte.is_ascii_whitespace())
        .count();
    drop(chunk.split_to(space));
}

fn malformed(encoding: Encoding, what: impl Into<String>) -> Malformed {
    Malformed {
        encoding,
        what: what.into(),
    }
}

fn oversized(encoding: Encoding, max_frame: usize) -> Malformed {
    Malformed {
        encoding,
        what: format!("a watch frame is larger than {max_frame} bytes"),
    }
}

fn json_frame(raw: Bytes) -> Frame {
    let event = json_event(&raw);
    let raw = if raw.last() == Some(&b'\n') {
        raw
    } else {
        [&raw[..], b"\n"].concat().into()
    };
    Frame { event, raw }
}

fn json_event(raw: &Bytes) -> Result<Event, Malformed> {
    let (mut kind, mut object) = (None, None);
    json::for_each_member(raw, |name, value| match name {
        "type" => kind = Some(value),
        "object" => object = Some(value),
        _ => {}
    })?;
    let kind: String = match kind {
        Some(kind) => serde_json::from_str(kind.get())?,
        None => String::new(),
    };
    let kind = EventType::parse(&kind).ok_or_else(|| {
        malformed(
            Encoding::Json,
            format!("unknown event type {:?}", shown(&kind)),
        )
    })?;
    let object = object
        .map(|object| object.get().as_bytes())
        .filter(|text| text.first() == Some(&b'{'))
        .ok_or_else(|| malformed(Encoding::Json, "an event without object"))?;
    Ok(Event {
        kind,
        object: Object {
            encoding: Encoding::Json,
            bytes: raw.slice_ref(object),
        },
    })
}

fn protobuf_frame(raw: Bytes) -> Frame {
    Frame {
        event: protobuf_event(&raw),
        raw,
    }
}

fn protobuf_event(raw: &Bytes) -> Result<Event, Malformed> {
    let (mut kind, mut object): (&str, &[u8]) = ("", &[]);
    let mut fields = Reader::new(&raw[4..]);
    while let Some(field) = fields.next_field()? {
        match field.number {
            1 => kind = field.str()?,
            2 => {
                let mut extension = Reader::new(field.bytes()?);
                while let Some(field) = extension.next_field()? {
                    if field.number == 1 {
                        object = field.bytes()?;
                    }
                }
            }
            _ => {}
        }
    }
    let kind = EventType::parse(kind).ok_or_else(|| {
        malformed(
            Encoding::Protobuf,
            format!("unknown event type {:?}", shown(kind)),
        )
    })?;
    if !object.starts_with(MAGIC) {
        return Err(malformed(
            Encoding::Protobuf,
            "an event's object is not in an envelope",
        ));
    }
    Ok(Event {
        kind,
        object: Object {
            encoding: Encoding::Protobuf,
            bytes: raw.slice_ref(object),
        },
    })
}
