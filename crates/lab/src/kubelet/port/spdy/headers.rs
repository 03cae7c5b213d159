//! Header blocks: names and values, packed with zlib and a dictionary that both sides know.

use super::Malformed;
use miniz_oxide::inflate::{
    TINFLStatus,
    core::{DecompressorOxide, decompress, inflate_flags::TINFL_FLAG_HAS_MORE_INPUT},
};
use std::{fmt, sync::LazyLock};

/// Names (lower case) and values.
pub(crate) type Headers = Vec<(String, String)>;

/// How far back deflate may refer; the inflater's memory.
const WINDOW: usize = 32 << 10;
/// A block that unpacks to more is an attack.
const MAX_BLOCK: usize = 64 << 10;
/// What deflate's stored blocks hold.
const STORED: usize = 0xffff;

/// Words of the SPDY/3 dictionary, each behind its length.
const WORDS: &str = "options head post put delete trace accept accept-charset accept-encoding accept-language accept-ranges age allow authorization cache-control connection content-base content-encoding content-language content-length content-location content-md5 content-range content-type date etag expect expires from host if-match if-modified-since if-none-match if-range if-unmodified-since last-modified location max-forwards pragma proxy-authenticate proxy-authorization range referer retry-after server te trailer transfer-encoding upgrade user-agent vary via warning www-authenticate method get status 200_OK version HTTP/1.1 url public set-cookie keep-alive origin";
/// The rest of it.
const TAIL: &str = "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized403 Forbidden404 Not Found500 Internal Server Error501 Not Implemented503 Service UnavailableJan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMTchunked,text/html,image/png,image/jpg,image/gif,application/xml,application/xhtml+xml,text/plain,text/javascript,publicprivatemax-age=gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0.";

/// Adler-32 of the dictionary: how a zlib stream says that it begins with it.
const DICTIONARY_ID: u32 = 0xe3c6_a7c2;

static DICTIONARY: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut bytes = Vec::with_capacity(1423);
    for word in WORDS.split(' ') {
        let word = word.replace('_', " ");
        bytes.extend((word.len() as u32).to_be_bytes());
        bytes.extend(word.into_bytes());
    }
    bytes.extend(TAIL.as_bytes());
    bytes
});

/// Unpacks the header blocks of one direction.
#[derive(Default)]
pub(crate) struct Inflater {
    state: Box<DecompressorOxide>,
    window: Vec<u8>,
    at: usize,
    begun: bool,
}

impl fmt::Debug for Inflater {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Inflater").finish_non_exhaustive()
    }
}

impl Inflater {
    /// The headers of the next block.
    pub(crate) fn headers(&mut self, packed: &[u8]) -> Result<Headers, Malformed> {
        parse(&self.unpack(packed)?)
    }

    /// zlib's own head (RFC 1950), then deflate with the dictionary as what came before.
    fn begin<'a>(&mut self, packed: &'a [u8]) -> Result<&'a [u8], Malformed> {
        let bad = Err(Malformed::Headers("not a zlib stream"));
        let [method, flags, rest @ ..] = packed else {
            return bad;
        };
        let check = u16::from_be_bytes([*method, *flags]) % 31 == 0;
        if method & 0x0f != 8 || !check {
            return bad;
        }
        self.window = vec![0; WINDOW];
        self.begun = true;
        if flags & 0x20 == 0 {
            return Ok(rest);
        }
        let Some((id, rest)) = rest.split_first_chunk::<4>() else {
            return bad;
        };
        if u32::from_be_bytes(*id) != DICTIONARY_ID {
            return Err(Malformed::Headers("an unknown dictionary"));
        }
        self.at = DICTIONARY.len();
        self.window[..self.at].copy_from_slice(&DICTIONARY);
        Ok(rest)
    }

    fn unpack(&mut self, packed: &[u8]) -> Result<Vec<u8>, Malformed> {
        let mut rest = match self.begun {
            true => packed,
            false => self.begin(packed)?,
        };
        let mut out = Vec::new();
        loop {
            let (status, read, written) = decompress(
                &mut self.state,
                rest,
                &mut self.window,
                self.at,
                TINFL_FLAG_HAS_MORE_INPUT,
            );
            rest = &rest[read..];
            out.extend_from_slice(&self.window[self.at..self.at + written]);
            self.at = (self.at + written) % WINDOW;
            if out.len() > MAX_BLOCK {
                return Err(Malformed::Headers("more than can be meant"));
            }
            match status {
                TINFLStatus::NeedsMoreInput => return Ok(out),
                TINFLStatus::HasMoreOutput => {}
                _ => return Err(Malformed::Headers("a broken zlib stream")),
            }
        }
    }
}

/// Packs the header blocks of one direction, as stored blocks: the few headers of a reply are not worth a compressor.
#[derive(Debug, Default)]
pub(crate) struct Packer {
    begun: bool,
}

impl Packer {
    /// The next block.
    pub(crate) fn pack(&mut self, headers: &Headers) -> Vec<u8> {
        let mut plain = (headers.len() as u32).to_be_bytes().to_vec();
        for text in headers.iter().flat_map(|(name, value)| [name, value]) {
            plain.extend((text.len() as u32).to_be_bytes());
            plain.extend(text.as_bytes());
        }
        let mut out = Vec::with_capacity(plain.len() + 12);
        if !std::mem::replace(&mut self.begun, true) {
            out.extend([0x78, 0x01]);
        }
        for piece in plain.chunks(STORED) {
            let length = piece.len() as u16;
            out.push(0);
            out.extend(length.to_le_bytes());
            out.extend((!length).to_le_bytes());
            out.extend(piece);
        }
        // An empty block, as zlib's sync flush writes it: Go's reader looks for the next block before it hands out this one.
        out.extend([0, 0, 0, 0xff, 0xff]);
        out
    }
}

fn parse(block: &[u8]) -> Result<Headers, Malformed> {
    const SHORT: Malformed = Malformed::Headers("a block that ends early");
    fn number<'a>(rest: &mut &'a [u8]) -> Result<usize, Malformed> {
        let (bytes, after): (_, &'a [u8]) = rest.split_first_chunk::<4>().ok_or(SHORT)?;
        *rest = after;
        Ok(u32::from_be_bytes(*bytes) as usize)
    }
    fn text(rest: &mut &[u8]) -> Result<String, Malformed> {
        let length = number(rest)?;
        let (bytes, after) = rest.split_at_checked(length).ok_or(SHORT)?;
        *rest = after;
        Ok(String::from_utf8_lossy(bytes).into_owned())
    }
    let mut rest = block;
    let count = number(&mut rest)?;
    let mut headers = Vec::new();
    for _ in 0..count {
        headers.push((text(&mut rest)?.to_ascii_lowercase(), text(&mut rest)?));
    }
    Ok(headers)
}

/// A header by its name.
pub(crate) fn find<'a>(headers: &'a Headers, name: &str) -> Option<&'a str> {
    let found = headers.iter().find(|(key, _)| key == name);
    found.map(|(_, value)| value.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_dictionary_is_the_one_everybody_has() {
        assert_eq!(DICTIONARY.len(), 1423);
        let (a, b) = DICTIONARY.iter().fold((1u32, 0u32), |(a, b), byte| {
            let a = (a + u32::from(*byte)) % 65521;
            (a, (a + b) % 65521)
        });
        assert_eq!(b << 16 | a, DICTIONARY_ID);
    }

    /// Two blocks of one stream, packed by zlib with the dictionary.
    #[test]
    fn blocks_of_zlib_are_read() {
        let bytes = |hex: &str| -> Vec<u8> {
            (0..hex.len())
                .step_by(2)
                .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap())
                .collect()
        };
        let mut inflater = Inflater::default();
        let blocks = [VECTOR_1, VECTOR_2].map(|hex| inflater.headers(&bytes(hex)).unwrap());
        for (headers, kind) in blocks.iter().zip(["stdin", "stdout"]) {
            assert_eq!(find(headers, "streamtype"), Some(kind));
            assert_eq!(find(headers, "user-agent"), Some("kubectl"));
        }
    }

    const VECTOR_1: &str =
        "78f9e3c6a7c202e50e703a2b294a4dcc851625acc525c03c81910fd8b34b9380254a0e000000ffff";
    const VECTOR_2: &str = "c2aa0798ca53f2c18537764d00000000ffff";

    #[test]
    fn a_bomb_is_not_unpacked() {
        use flate2::{Compression, write::ZlibEncoder};
        use std::io::Write;
        let mut encoder = ZlibEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(&vec![0; 10 << 20]).unwrap();
        let packed = encoder.finish().unwrap();
        let refused = Inflater::default().headers(&packed);
        assert_eq!(refused, Err(Malformed::Headers("more than can be meant")));
    }
}
