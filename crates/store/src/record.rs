//! The bytes of one record. Pure; the layout is in the crate's documentation.

use bytes::Bytes;

/// Bytes before the key.
pub(crate) const HEAD_BYTES: usize = 32;
/// Longest key.
pub(crate) const MAX_KEY_BYTES: usize = 64 << 10;
/// Longest value, plain and stored.
pub(crate) const MAX_VALUE_BYTES: usize = 64 << 20;

/// First bytes of a record.
pub(crate) const MAGIC: [u8; 3] = [0x79, 0x72, 0x01];

/// The key is gone.
pub(crate) const DELETE: u8 = 1;
/// The stored value is LZ4 with its plain length in front.
pub(crate) const LZ4: u8 = 2;
/// First record of its batch.
pub(crate) const FIRST: u8 = 4;
/// Last record of its batch.
pub(crate) const LAST: u8 = 8;
/// Not a user's record: the value lists the segments that this file replaces.
pub(crate) const REPLACES: u8 = 16;

const KNOWN_FLAGS: u8 = DELETE | LZ4 | FIRST | LAST | REPLACES;

/// Where a record begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) segment: u32,
    pub(crate) offset: u32,
}

/// The fixed part of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) flags: u8,
    pub(crate) key_len: u32,
    pub(crate) value_len: u32,
    /// The batch; higher is newer.
    pub(crate) seq: u64,
    /// Bytes of the segment that were durable when this was written.
    pub(crate) synced: u32,
    pub(crate) value_crc: u32,
}

impl Head {
    /// A head for a key and a value as stored.
    pub(crate) fn new(flags: u8, seq: u64, synced: u32, key: &[u8], stored: &[u8]) -> Self {
        // Lengths were checked against MAX_KEY_BYTES and MAX_VALUE_BYTES when the batch came in.
        Self {
            flags,
            key_len: key.len() as u32,
            value_len: stored.len() as u32,
            seq,
            synced,
            value_crc: crc32fast::hash(stored),
        }
    }

    /// Bytes of the whole record.
    pub(crate) fn record_len(&self) -> u32 {
        HEAD_BYTES as u32 + self.key_len + self.value_len
    }

    /// Whether this is a tombstone.
    pub(crate) fn is_delete(&self) -> bool {
        self.flags & DELETE != 0
    }

    /// Appends head and key; the value follows.
    pub(crate) fn encode(&self, place: Place, key: &[u8], out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&MAGIC);
        out.push(self.flags);
        out.extend_from_slice(&self.key_len.to_le_bytes());
        out.extend_from_slice(&self.value_len.to_le_bytes());
        out.extend_from_slice(&self.seq.to_le_bytes());
        out.extend_from_slice(&self.synced.to_le_bytes());
        out.extend_from_slice(&self.value_crc.to_le_bytes());
        let crc = head_crc(place, &out[start..], key);
        out.extend_from_slice(&crc.to_le_bytes());
        out.extend_from_slice(key);
    }

    /// Reads a head; `None` when it cannot be one. The checksum needs the key: see [`Head::verify`].
    pub(crate) fn decode(bytes: &[u8; HEAD_BYTES]) -> Option<Self> {
        let u32_at = |at: usize| {
            u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        let head = Self {
            flags: bytes[3],
            key_len: u32_at(4),
            value_len: u32_at(8),
            seq: u64::from(u32_at(12)) | u64::from(u32_at(16)) << 32,
            synced: u32_at(20),
            value_crc: u32_at(24),
        };
        (bytes[..3] == MAGIC
            && head.flags & !KNOWN_FLAGS == 0
            && head.key_len as usize <= MAX_KEY_BYTES
            && head.value_len as usize <= MAX_VALUE_BYTES)
            .then_some(head)
    }

    /// Whether head and key are what was written at this place.
    pub(crate) fn verify(bytes: &[u8; HEAD_BYTES], place: Place, key: &[u8]) -> bool {
        let stored = u32::from_le_bytes([bytes[28], bytes[29], bytes[30], bytes[31]]);
        head_crc(place, &bytes[..28], key) == stored
    }
}

fn head_crc(place: Place, head: &[u8], key: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(head);
    crc.update(key);
    crc.update(&place.segment.to_le_bytes());
    crc.update(&place.offset.to_le_bytes());
    crc.finalize()
}

/// Takes a whole record apart: head, key and value as stored, when every checksum holds.
pub(crate) fn parse(place: Place, record: &[u8]) -> Option<(Head, &[u8], &[u8])> {
    let (bytes, rest) = record.split_first_chunk::<HEAD_BYTES>()?;
    let head = Head::decode(bytes)?;
    if rest.len() != head.key_len as usize + head.value_len as usize {
        return None;
    }
    let (key, value) = rest.split_at(head.key_len as usize);
    (Head::verify(bytes, place, key) && crc32fast::hash(value) == head.value_crc)
        .then_some((head, key, value))
}

/// A value as it will be stored: compressed when that is asked for and saves anything.
pub(crate) fn pack(value: &[u8], compress_from: usize) -> Option<Vec<u8>> {
    if value.len() < compress_from {
        return None;
    }
    let packed = lz4_flex::block::compress_prepend_size(value);
    (packed.len() < value.len()).then_some(packed)
}

/// The plain value; `None` when it cannot be decompressed.
pub(crate) fn unpack(flags: u8, stored: Bytes) -> Option<Bytes> {
    if flags & LZ4 == 0 {
        return Some(stored);
    }
    let (plain, _) = lz4_flex::block::uncompressed_size(&stored).ok()?;
    if plain > MAX_VALUE_BYTES {
        return None;
    }
    lz4_flex::block::decompress_size_prepended(&stored)
        .ok()
        .map(Bytes::from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn encoded(place: Place, key: &[u8], value: &[u8], seq: u64) -> Vec<u8> {
        let mut out = Vec::new();
        Head::new(FIRST | LAST, seq, 7, key, value).encode(place, key, &mut out);
        out.extend_from_slice(value);
        out
    }

    proptest! {
        #[test]
        fn what_was_written_is_read(key: Vec<u8>, value: Vec<u8>, seq: u64, segment: u32, offset: u32) {
            let place = Place { segment, offset };
            let bytes = encoded(place, &key, &value, seq);
            let (head, k, v) = parse(place, &bytes).expect("parses");
            prop_assert_eq!((k, v), (&key[..], &value[..]));
            prop_assert_eq!((head.seq, head.synced, head.record_len() as usize), (seq, 7, bytes.len()));
        }

        #[test]
        fn one_flipped_bit_is_noticed(key in prop::collection::vec(any::<u8>(), 0..40),
                                      value in prop::collection::vec(any::<u8>(), 0..40),
                                      bit: prop::sample::Index) {
            let place = Place { segment: 1, offset: 8 };
            let mut bytes = encoded(place, &key, &value, 3);
            let bit = bit.index(bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(parse(place, &bytes).is_none());
        }

        #[test]
        fn no_input_panics(bytes: Vec<u8>) {
            let _ = parse(Place { segment: 1, offset: 8 }, &bytes);
            let _ = unpack(LZ4, Bytes::from(bytes));
        }

        #[test]
        fn packing_is_reversible(value: Vec<u8>, repeat in 1_usize..20) {
            let value = value.repeat(repeat);
            match pack(&value, 16) {
                Some(packed) => {
                    prop_assert!(packed.len() < value.len());
                    prop_assert_eq!(unpack(LZ4, packed.into()).expect("unpacks"), value);
                }
                None => prop_assert_eq!(unpack(0, value.clone().into()).expect("plain"), value),
            }
        }
    }

    #[test]
    fn a_record_elsewhere_is_not_a_record() {
        let place = Place {
            segment: 1,
            offset: 8,
        };
        let bytes = encoded(place, b"k", b"v", 1);
        assert!(parse(place, &bytes).is_some());
        assert!(parse(Place { offset: 9, ..place }, &bytes).is_none());
        assert!(
            parse(
                Place {
                    segment: 2,
                    ..place
                },
                &bytes
            )
            .is_none()
        );
    }

    #[test]
    fn a_lying_plain_length_is_refused() {
        let mut packed = pack(&[0; 1000], 0).expect("packs");
        packed[..4].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(unpack(LZ4, packed.into()), None);
    }
}
