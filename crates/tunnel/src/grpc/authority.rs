//! Go's gRPC clients name a Unix socket's path as the authority, percent-encoded (`%2Frun%2Ffrontend.sock`): kube-apiserver does. Our
//! HTTP/2 library resets such a stream, for `%` is in no host's name. What is read is therefore mended before: `%` becomes `-` in
//! authorities, which nobody here looks at.
//!
//! It is done in place, within the compressed headers (RFC 7541), and changes no length: the two characters have codes of six bits each,
//! so that both ends go on agreeing about the compression's table.

use crate::wrapping::writes_go_to;
use bytes::{Buf, BytesMut};
use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};
use tokio::io::{AsyncRead, ReadBuf};
use yurt_transport::BoxStream;

/// What a client begins with (RFC 9113, 3.4).
const PREFACE: usize = 24;
const FRAME_HEAD: usize = 9;
const HEADERS: u8 = 1;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;
/// A longer frame breaks the protocol's default bound; our library says so.
const MAX_FRAME: usize = 16 << 10;
const READ: usize = 16 << 10;

/// A server's stream with the client's authorities mended.
pub(crate) struct Mended {
    io: BoxStream,
    mender: Mender,
    /// Mended, and not read yet.
    ready: BytesMut,
}

impl Mended {
    pub(crate) fn new(io: BoxStream) -> Self {
        Self {
            io,
            mender: Mender::default(),
            ready: BytesMut::new(),
        }
    }
}

/// Finds the headers in what arrives.
#[derive(Debug)]
struct Mender {
    /// Bytes that pass as they are: the preface, the rest of a frame.
    passing: usize,
    /// The beginning of a frame.
    held: BytesMut,
}

impl Default for Mender {
    fn default() -> Self {
        Self {
            passing: PREFACE,
            held: BytesMut::new(),
        }
    }
}

impl Mender {
    /// Takes what arrived, and appends what is ready.
    fn feed(&mut self, data: &[u8], out: &mut BytesMut) {
        self.held.extend_from_slice(data);
        loop {
            let count = self.passing.min(self.held.len());
            out.extend_from_slice(&self.held[..count]);
            self.held.advance(count);
            self.passing -= count;
            let &[high, middle, low, kind, flags, ..] = &self.held[..] else {
                return;
            };
            if self.held.len() < FRAME_HEAD {
                return;
            }
            let length = u32::from_be_bytes([0, high, middle, low]) as usize;
            self.passing = FRAME_HEAD + length;
            if kind != HEADERS || length > MAX_FRAME {
                continue;
            }
            if self.held.len() < self.passing {
                self.passing = 0;
                return;
            }
            let payload = &mut self.held[FRAME_HEAD..FRAME_HEAD + length];
            let padding = usize::from(flags & PADDED > 0);
            let start = padding + if flags & PRIORITY > 0 { 5 } else { 0 };
            let end = match payload.first() {
                Some(&padded) if padding > 0 => length.saturating_sub(padded.into()),
                _ => length,
            };
            if let Some(block) = payload.get_mut(start..end) {
                // What cannot be read is for the library to refuse.
                let _ = mend(block);
            }
        }
    }
}

/// Mends the authorities in a block of compressed headers; `None` where it is malformed.
fn mend(block: &mut [u8]) -> Option<()> {
    let mut at = 0;
    while let Some(&first) = block.get(at) {
        let (index, literal) = match first {
            0x80.. => (integer(block, &mut at, 7)?, false),
            0x40.. => (integer(block, &mut at, 6)?, true),
            0x20.. => (integer(block, &mut at, 5)?, false),
            _ => (integer(block, &mut at, 4)?, true),
        };
        if !literal {
            continue;
        }
        if index == 0 {
            string(block, &mut at)?;
        }
        let (huffman, value) = string(block, &mut at)?;
        // `:authority` is the first entry of the static table.
        if index == 1 {
            let value = &mut block[value];
            if huffman {
                mend_huffman(value);
            } else {
                value
                    .iter_mut()
                    .filter(|byte| **byte == b'%')
                    .for_each(|byte| *byte = b'-');
            }
        }
    }
    Some(())
}

/// An integer whose first byte has `bits` of it (RFC 7541, 5.1).
fn integer(block: &[u8], at: &mut usize, bits: u32) -> Option<usize> {
    let most = (1usize << bits) - 1;
    let mut value = usize::from(*block.get(*at)?) & most;
    *at += 1;
    if value < most {
        return Some(value);
    }
    for shift in (0..=14).step_by(7) {
        let byte = *block.get(*at)?;
        *at += 1;
        value += usize::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

/// A string: whether it is Huffman-coded, and where it is.
fn string(block: &[u8], at: &mut usize) -> Option<(bool, std::ops::Range<usize>)> {
    let huffman = block.get(*at)? & 0x80 > 0;
    let length = integer(block, at, 7)?;
    let range = *at..at.checked_add(length)?;
    block.get(range.clone())?;
    *at = range.end;
    Some((huffman, range))
}

/// The longest codes of each length (RFC 7541, appendix B), as far as characters of an authority go. Codes grow with their length.
const LAST_CODES: [(usize, u32); 10] = [
    (5, 0x9),
    (6, 0x2d),
    (7, 0x7b),
    (8, 0xfd),
    (10, 0x3fc),
    (11, 0x7fc),
    (12, 0xffb),
    (13, 0x1ffd),
    (14, 0x3ffd),
    (15, 0x7ffe),
];
const PERCENT: u32 = 0x15;
const HYPHEN: u32 = 0x16;

fn mend_huffman(value: &mut [u8]) {
    let bits = value.len() * 8;
    let mut at = 0;
    'symbols: while at < bits {
        for (length, last) in LAST_CODES {
            if at + length > bits {
                // Padding.
                return;
            }
            let code = (at..at + length).fold(0, |code, bit| {
                code << 1 | u32::from(value[bit / 8] >> (7 - bit % 8) & 1)
            });
            if code > last {
                continue;
            }
            if (length, code) == (6, PERCENT) {
                for (offset, bit) in (at..at + length).enumerate() {
                    let mask = 1u8 << (7 - bit % 8);
                    if HYPHEN >> (length - 1 - offset) & 1 > 0 {
                        value[bit / 8] |= mask;
                    } else {
                        value[bit / 8] &= !mask;
                    }
                }
            }
            at += length;
            continue 'symbols;
        }
        // No character of an authority.
        return;
    }
}

impl AsyncRead for Mended {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        while this.ready.is_empty() {
            // The bulk of it: bytes of frames that are not headers.
            if this.mender.held.is_empty() && this.mender.passing > 0 {
                let most = this.mender.passing.min(buffer.remaining());
                let mut part = ReadBuf::new(buffer.initialize_unfilled_to(most));
                ready!(Pin::new(&mut this.io).poll_read(context, &mut part))?;
                let count = part.filled().len();
                buffer.advance(count);
                this.mender.passing -= count;
                return Poll::Ready(Ok(()));
            }
            let mut piece = [0; READ];
            let mut piece = ReadBuf::new(&mut piece);
            ready!(Pin::new(&mut this.io).poll_read(context, &mut piece))?;
            if piece.filled().is_empty() {
                // The end, within a frame perhaps: as it is.
                let rest = std::mem::take(&mut this.mender.held);
                if rest.is_empty() {
                    return Poll::Ready(Ok(()));
                }
                this.ready = rest;
                break;
            }
            this.mender.feed(piece.filled(), &mut this.ready);
        }
        let count = this.ready.len().min(buffer.remaining());
        buffer.put_slice(&this.ready[..count]);
        this.ready.advance(count);
        Poll::Ready(Ok(()))
    }
}

writes_go_to!(Mended, io);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::{collection::vec, prelude::*};
    use tokio::io::{AsyncWriteExt, duplex};

    /// `:authority: %2F` in the static table's name, plain and Huffman-coded: 010101 (%), 00010 (2), 1100001 (F), padded with ones.
    const PLAIN: [u8; 5] = [0x41, 0x03, b'%', b'2', b'F'];
    const CODED: [u8; 5] = [0x41, 0x83, 0b0101_0100, 0b0101_1000, 0b0111_1111];

    #[test]
    fn authorities_are_mended_in_place() {
        let mut block = PLAIN;
        mend(&mut block).unwrap();
        assert_eq!(&block[2..], b"-2F");
        let mut block = CODED;
        mend(&mut block).unwrap();
        assert_eq!(block[2..], [0b0101_1000, 0b0101_1000, 0b0111_1111]);
        // Other headers keep their percent signs.
        let mut path = [0x44, 0x03, b'%', b'2', b'F'];
        mend(&mut path).unwrap();
        assert_eq!(&path[2..], b"%2F");
    }

    fn headers(authority: &[u8]) -> Vec<u8> {
        // :method POST, :scheme http, :path /x, :authority.
        let block = [&[0x83, 0x86, 0x44, 0x02, b'/', b'x'], authority].concat();
        let mut frame = vec![
            0,
            0,
            u8::try_from(block.len()).unwrap(),
            HEADERS,
            0x5,
            0,
            0,
            0,
            1,
        ];
        frame.extend(block);
        frame
    }

    #[tokio::test]
    async fn our_library_takes_such_a_request() {
        for authority in [&PLAIN, &CODED] {
            let (mut client, server) = duplex(4096);
            let settings = [0, 0, 0, 4, 0, 0, 0, 0, 0];
            client
                .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
                .await
                .unwrap();
            client.write_all(&settings).await.unwrap();
            client.write_all(&headers(authority)).await.unwrap();
            let mut connection = h2::server::handshake(Mended::new(Box::new(server)))
                .await
                .unwrap();
            let (request, _) = connection.accept().await.unwrap().unwrap();
            assert_eq!(request.uri().authority().unwrap(), "-2F");
            assert_eq!(request.uri().path(), "/x");
        }
    }

    proptest! {
        #[test]
        fn what_is_mended_is_the_same_however_it_is_cut(
            frames in vec((vec(any::<u8>(), 0..40), any::<bool>(), any::<u8>()), 0..6),
            piece in 1usize..60,
        ) {
            let mut wire = vec![b'P'; PREFACE];
            for (payload, is_headers, flags) in &frames {
                let kind = if *is_headers { HEADERS } else { 0 };
                wire.extend([0, 0, u8::try_from(payload.len()).unwrap(), kind, *flags, 0, 0, 0, 1]);
                wire.extend(payload);
            }
            let (mut whole, mut cut) = (BytesMut::new(), BytesMut::new());
            Mender::default().feed(&wire, &mut whole);
            let mut mender = Mender::default();
            for piece in wire.chunks(piece) {
                mender.feed(piece, &mut cut);
            }
            prop_assert_eq!(&whole, &cut);
            prop_assert_eq!(whole.len(), wire.len());
        }

        #[test]
        fn any_block_is_walked_without_panic(mut block: Vec<u8>) {
            let _ = mend(&mut block);
            mend_huffman(&mut block);
        }
    }
}
