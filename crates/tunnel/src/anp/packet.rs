//! The packets, as protobuf (konnectivity-client/proto/client/client.proto).

use crate::grpc;
use bytes::{Bytes, BytesMut};
use yurt_wire::protobuf::{Reader, WireError, Writer, bytes_field_len, varint_len};

/// One packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Packet {
    /// Asks for a connection; `random` names it until there is an answer.
    DialRequest {
        random: i64,
        protocol: String,
        address: String,
    },
    /// There is one, or an error.
    DialResponse { random: i64, id: i64, error: String },
    /// Asks to close.
    CloseRequest { id: i64 },
    /// It is closed, asked or not.
    CloseResponse { id: i64, error: String },
    /// Bytes.
    Data { id: i64, data: Bytes },
    /// Nobody waits for this dial any more.
    CloseDial { random: i64 },
    /// No more dials, please.
    Drain,
}

impl Packet {
    /// Reads a message; `None` when it is of a kind that is not known here.
    pub(crate) fn decode(message: &Bytes) -> Result<Option<Self>, WireError> {
        let (mut kind, mut payload) = (0, &[][..]);
        let mut fields = Reader::new(message);
        while let Some(field) = fields.next_field()? {
            match field.number {
                1 => kind = field.varint()?,
                2..=8 => payload = field.bytes()?,
                _ => {}
            }
        }
        let mut numbers = [0i64; 4];
        let mut texts: [&[u8]; 4] = [&[]; 4];
        let mut fields = Reader::new(payload);
        while let Some(field) = fields.next_field()? {
            let Some(index) = (field.number as usize)
                .checked_sub(1)
                .filter(|&index| index < 4)
            else {
                continue;
            };
            match field.value {
                yurt_wire::protobuf::WireValue::Varint(value) => {
                    numbers[index] = value.cast_signed()
                }
                yurt_wire::protobuf::WireValue::Bytes(bytes) => texts[index] = bytes,
                _ => return Err(WireError::Unexpected(field.number)),
            }
        }
        let text = |index: usize| String::from_utf8_lossy(texts[index]).into_owned();
        Ok(Some(match kind {
            0 => Self::DialRequest {
                protocol: text(0),
                address: text(1),
                random: numbers[2],
            },
            1 => Self::DialResponse {
                error: text(0),
                id: numbers[1],
                random: numbers[2],
            },
            2 => Self::CloseRequest { id: numbers[0] },
            3 => Self::CloseResponse {
                error: text(0),
                id: numbers[1],
            },
            4 => Self::Data {
                id: numbers[0],
                data: message.slice_ref(texts[2]),
            },
            5 => Self::CloseDial { random: numbers[0] },
            6 => Self::Drain,
            _ => return Ok(None),
        }))
    }

    /// Appends the packet as a gRPC message.
    pub(crate) fn encode(&self, out: &mut BytesMut) {
        let mut head = Writer::new();
        let (kind, field) = match self {
            Self::DialRequest { .. } => (0, 2),
            Self::DialResponse { .. } => (1, 3),
            Self::CloseRequest { .. } => (2, 5),
            Self::CloseResponse { .. } => (3, 6),
            Self::Data { .. } => (4, 4),
            Self::CloseDial { .. } => (5, 7),
            Self::Drain => (6, 8),
        };
        if kind != 0 {
            head.int(1, kind);
        }
        let mut body = Writer::new();
        let mut tail: &[u8] = &[];
        let int = |body: &mut Writer, number, value| {
            if value != 0 {
                body.int(number, value);
            }
        };
        let str = |body: &mut Writer, number, value: &str| {
            if !value.is_empty() {
                body.str(number, value);
            }
        };
        match self {
            Self::DialRequest {
                random,
                protocol,
                address,
            } => {
                str(&mut body, 1, protocol);
                str(&mut body, 2, address);
                int(&mut body, 3, *random);
            }
            Self::DialResponse { random, id, error } => {
                str(&mut body, 1, error);
                int(&mut body, 2, *id);
                int(&mut body, 3, *random);
            }
            Self::CloseRequest { id } => int(&mut body, 1, *id),
            Self::CloseResponse { id, error } => {
                str(&mut body, 1, error);
                int(&mut body, 2, *id);
            }
            Self::Data { id, data } => {
                int(&mut body, 1, *id);
                if !data.is_empty() {
                    body.bytes_head(3, data.len());
                    tail = data;
                }
            }
            Self::CloseDial { random } => int(&mut body, 1, *random),
            Self::Drain => {}
        }
        let (head, body) = (head.into_vec(), body.into_vec());
        let inner = body.len() + tail.len();
        let length = head.len() + bytes_field_len(field, inner);
        grpc::frame(out, length, |out| {
            out.extend_from_slice(&head);
            let mut tag = Writer::with_capacity(1 + varint_len(inner as u64));
            tag.bytes_head(field, inner);
            out.extend_from_slice(&tag.into_vec());
            out.extend_from_slice(&body);
            out.extend_from_slice(tail);
        });
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::{collection::vec, prelude::*};

    pub(crate) fn packets() -> impl Strategy<Value = Packet> {
        let id = || prop_oneof![0..6i64, any::<i64>()];
        let text = || prop_oneof![Just(String::new()), "[ -~]{1,20}"];
        prop_oneof![
            (id(), text(), text()).prop_map(|(random, protocol, address)| Packet::DialRequest {
                random,
                protocol,
                address
            }),
            (id(), id(), text()).prop_map(|(random, id, error)| Packet::DialResponse {
                random,
                id,
                error
            }),
            id().prop_map(|id| Packet::CloseRequest { id }),
            (id(), text()).prop_map(|(id, error)| Packet::CloseResponse { id, error }),
            (id(), vec(any::<u8>(), 0..300)).prop_map(|(id, data)| Packet::Data {
                id,
                data: data.into()
            }),
            id().prop_map(|random| Packet::CloseDial { random }),
            Just(Packet::Drain),
        ]
    }

    proptest! {
        #[test]
        fn packets_survive(packet in packets()) {
            let mut wire = BytesMut::new();
            packet.encode(&mut wire);
            let mut frames = grpc::Frames::default();
            frames.push(&wire);
            let message = frames.next().unwrap().unwrap();
            prop_assert_eq!(Packet::decode(&message).unwrap(), Some(packet));
            prop_assert_eq!(frames.next().unwrap(), None);
        }

        #[test]
        fn any_bytes_are_read_without_panic(bytes: Vec<u8>) {
            let _ = Packet::decode(&bytes.into());
        }
    }

    /// The bytes that konnectivity's own encoder writes.
    #[test]
    fn the_bytes_are_konnectivitys() {
        let cases: [(&[u8], Packet); 4] = [
            (
                b"\x12\x0f\x0a\x03tcp\x12\x05h:443\x18\xac\x02",
                Packet::DialRequest {
                    random: 300,
                    protocol: "tcp".into(),
                    address: "h:443".into(),
                },
            ),
            (
                b"\x08\x01\x1a\x05\x10\x01\x18\xac\x02",
                Packet::DialResponse {
                    random: 300,
                    id: 1,
                    error: String::new(),
                },
            ),
            (
                b"\x08\x04\x22\x06\x08\x01\x1a\x02hi",
                Packet::Data {
                    id: 1,
                    data: "hi".into(),
                },
            ),
            (b"\x08\x06\x42\x00", Packet::Drain),
        ];
        for (bytes, packet) in cases {
            assert_eq!(
                Packet::decode(&Bytes::copy_from_slice(bytes)).unwrap(),
                Some(packet.clone())
            );
            let mut wire = BytesMut::new();
            packet.encode(&mut wire);
            assert_eq!(&wire[5..], bytes);
        }
        assert_eq!(
            Packet::decode(&Bytes::from_static(b"\x08\x63")).unwrap(),
            None
        );
    }
}
