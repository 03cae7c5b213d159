//! SPDY/3.1 as Kubernetes' streaming clients speak it: frames as values, without IO ([`session`] moves them).
//!
//! The frame layout is that of the SPDY protocol draft 3.1. Headers are compressed with one zlib stream per direction that begins
//! with a dictionary of common names ([`headers`]).

pub(super) mod headers;
pub(super) mod session;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use headers::{Headers, Inflater, Packer};

/// What the upgrade is called.
pub(super) const PROTOCOL: &str = "SPDY/3.1";

/// A frame longer than this is no frame of a streaming client: theirs are of 32 KiB.
const MAX_FRAME: usize = 1 << 20;
const VERSION: u16 = 3;
const FIN: u8 = 1;

const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const PING: u16 = 6;
const GOAWAY: u16 = 7;

/// One frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Frame {
    /// Opens a stream.
    SynStream {
        stream: u32,
        headers: Headers,
        fin: bool,
    },
    /// Accepts one.
    SynReply { stream: u32, headers: Headers },
    /// Ends one at once.
    Reset { stream: u32, status: u32 },
    /// To be sent back.
    Ping(u32),
    /// No more streams.
    GoAway { last: u32 },
    /// Bytes of a stream.
    Data {
        stream: u32,
        bytes: Bytes,
        fin: bool,
    },
    /// Settings, windows, more headers: nothing that a streaming server acts on.
    Other(u16),
}

/// Bytes that are no SPDY.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(super) enum Malformed {
    /// A frame's announced length.
    #[error("a frame of {0} bytes")]
    TooLong(usize),
    /// Another protocol.
    #[error("SPDY version {0}")]
    Version(u16),
    /// A frame that is shorter than its fixed part.
    #[error("a frame of type {0} that ends early")]
    Short(u16),
    /// Headers that cannot be unpacked or read.
    #[error("headers: {0}")]
    Headers(&'static str),
}

/// Makes frames of bytes.
#[derive(Debug, Default)]
pub(super) struct Decoder {
    buffer: BytesMut,
    inflater: Inflater,
}

impl Decoder {
    /// Takes bytes as they come.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole frame.
    pub(super) fn next_frame(&mut self) -> Result<Option<Frame>, Malformed> {
        let Some(head) = self.buffer.first_chunk::<8>() else {
            return Ok(None);
        };
        let [a, b, c, d, flags, length @ ..] = *head;
        let length = u32::from_be_bytes([0, length[0], length[1], length[2]]) as usize;
        if length > MAX_FRAME {
            return Err(Malformed::TooLong(length));
        }
        if self.buffer.len() < head.len() + length {
            self.buffer.reserve(length);
            return Ok(None);
        }
        self.buffer.advance(8);
        let mut payload = self.buffer.split_to(length).freeze();
        let fin = flags & FIN != 0;
        if a & 0x80 == 0 {
            return Ok(Some(Frame::Data {
                stream: u32::from_be_bytes([a, b, c, d]),
                bytes: payload,
                fin,
            }));
        }
        let version = u16::from_be_bytes([a & 0x7f, b]);
        if version != VERSION {
            return Err(Malformed::Version(version));
        }
        let kind = u16::from_be_bytes([c, d]);
        let mut number = || match payload.remaining() {
            0..4 => Err(Malformed::Short(kind)),
            _ => Ok(payload.get_u32()),
        };
        Ok(Some(match kind {
            SYN_STREAM => {
                let stream = number()? & 0x7fff_ffff;
                number()?;
                if payload.remaining() < 2 {
                    return Err(Malformed::Short(kind));
                }
                payload.advance(2);
                Frame::SynStream {
                    stream,
                    headers: self.inflater.headers(&payload)?,
                    fin,
                }
            }
            SYN_REPLY => Frame::SynReply {
                stream: number()? & 0x7fff_ffff,
                headers: self.inflater.headers(&payload)?,
            },
            RST_STREAM => Frame::Reset {
                stream: number()? & 0x7fff_ffff,
                status: number()?,
            },
            PING => Frame::Ping(number()?),
            GOAWAY => Frame::GoAway {
                last: number()? & 0x7fff_ffff,
            },
            other => {
                // HEADERS would move the compressor on; no streaming client sends them.
                if other == 8 {
                    return Err(Malformed::Headers("late headers are not understood"));
                }
                Frame::Other(other)
            }
        }))
    }
}

/// Makes bytes of frames.
#[derive(Debug, Default)]
pub(super) struct Encoder {
    packer: Packer,
}

impl Encoder {
    /// Appends a frame. Payloads are cut to what a frame may hold by whoever makes them.
    pub(super) fn encode(&mut self, frame: &Frame, out: &mut BytesMut) {
        match frame {
            Frame::Data { stream, bytes, fin } => {
                out.put_u32(stream & 0x7fff_ffff);
                length(u8::from(*fin), bytes.len(), out);
                out.put_slice(bytes);
            }
            Frame::SynStream {
                stream,
                headers,
                fin,
            } => {
                let block = self.packer.pack(headers);
                control(SYN_STREAM, u8::from(*fin), 10 + block.len(), out);
                out.put_u32(*stream);
                out.put_u32(0);
                out.put_u16(0);
                out.put_slice(&block);
            }
            Frame::SynReply { stream, headers } => {
                let block = self.packer.pack(headers);
                control(SYN_REPLY, 0, 4 + block.len(), out);
                out.put_u32(*stream);
                out.put_slice(&block);
            }
            Frame::Reset { stream, status } => {
                control(RST_STREAM, 0, 8, out);
                out.put_u32(*stream);
                out.put_u32(*status);
            }
            Frame::Ping(id) => {
                control(PING, 0, 4, out);
                out.put_u32(*id);
            }
            Frame::GoAway { last } => {
                control(GOAWAY, 0, 8, out);
                out.put_u32(*last);
                out.put_u32(0);
            }
            Frame::Other(kind) => control(*kind, 0, 0, out),
        }
    }
}

fn control(kind: u16, flags: u8, payload: usize, out: &mut BytesMut) {
    out.put_u16(0x8000 | VERSION);
    out.put_u16(kind);
    length(flags, payload, out);
}

fn length(flags: u8, payload: usize, out: &mut BytesMut) {
    let [_, a, b, c] = u32::try_from(payload).unwrap_or(u32::MAX).to_be_bytes();
    out.put_slice(&[flags, a, b, c]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_headers() -> impl Strategy<Value = Headers> {
        prop::collection::vec(("[a-z-]{1,12}", "[ -~]{0,40}"), 0..6)
    }

    fn any_frame() -> impl Strategy<Value = Frame> {
        let stream = 0u32..0x8000_0000;
        prop_oneof![
            (stream.clone(), any_headers(), any::<bool>()).prop_map(|(stream, headers, fin)| {
                Frame::SynStream {
                    stream,
                    headers,
                    fin,
                }
            }),
            (stream.clone(), any_headers())
                .prop_map(|(stream, headers)| Frame::SynReply { stream, headers }),
            (stream.clone(), any::<u32>())
                .prop_map(|(stream, status)| Frame::Reset { stream, status }),
            any::<u32>().prop_map(Frame::Ping),
            stream.clone().prop_map(|last| Frame::GoAway { last }),
            (
                stream,
                prop::collection::vec(any::<u8>(), 0..200),
                any::<bool>()
            )
                .prop_map(|(stream, bytes, fin)| Frame::Data {
                    stream,
                    bytes: bytes.into(),
                    fin
                }),
            Just(Frame::Other(9)),
        ]
    }

    proptest! {
        #[test]
        fn what_is_sent_is_received(frames in prop::collection::vec(any_frame(), 0..20), cut in 1usize..40) {
            let (mut encoder, mut bytes) = (Encoder::default(), BytesMut::new());
            for frame in &frames {
                encoder.encode(frame, &mut bytes);
            }
            let (mut decoder, mut got) = (Decoder::default(), Vec::new());
            for piece in bytes.chunks(cut) {
                decoder.push(piece);
                while let Some(frame) = decoder.next_frame().unwrap() {
                    got.push(frame);
                }
            }
            prop_assert_eq!(got, frames);
        }

        #[test]
        fn rubbish_is_refused_or_waited_for(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let mut decoder = Decoder::default();
            decoder.push(&bytes);
            while let Ok(Some(_)) = decoder.next_frame() {}
        }

        #[test]
        fn rubbish_headers_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let mut frame = BytesMut::new();
            control(SYN_STREAM, 0, 10 + bytes.len(), &mut frame);
            frame.put_slice(&[0, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
            frame.put_slice(&bytes);
            let mut decoder = Decoder::default();
            decoder.push(&frame);
            let _: Result<_, Malformed> = decoder.next_frame();
        }
    }

    #[test]
    fn bounds_and_versions_are_checked() {
        let refused = |bytes: &[u8]| {
            let mut decoder = Decoder::default();
            decoder.push(bytes);
            decoder.next_frame()
        };
        assert_eq!(refused(&[0, 0, 0, 1, 0]), Ok(None));
        assert_eq!(
            refused(&[0, 0, 0, 1, 0, 0x10, 0, 1]),
            Err(Malformed::TooLong(0x10_0001))
        );
        assert_eq!(
            refused(&[0x80, 2, 0, 6, 0, 0, 0, 0]),
            Err(Malformed::Version(2))
        );
        assert_eq!(
            refused(&[0x80, 3, 0, 6, 0, 0, 0, 1, 0]),
            Err(Malformed::Short(PING))
        );
        assert_eq!(
            refused(b"GET / HTTP/1.1\r\n\r\n"),
            Err(Malformed::TooLong(0x20_4854))
        );
    }
}
