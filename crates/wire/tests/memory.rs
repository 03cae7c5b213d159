//! No decoder holds more than a small multiple of its input, whatever the input is.

use bytes::Bytes;
use proptest::prelude::*;
use yurt_wire::{
    Encoding, Gvk, RequestInfo, Status, list, media,
    object::Object,
    request,
    selector::{FieldSelector, LabelSelector},
    transcode,
    watch::FrameDecoder,
};

/// Bytes that may be live at once for each byte of input. The worst are lists whose elements take two bytes of input
/// and a few structs of memory, in a vector that has just grown.
const PER_BYTE: u64 = 128;
/// What may be live for any input.
const FIXED: u64 = 64 << 10;

fn check(what: &str, input: &[u8], decode: impl FnOnce()) {
    let peak = allocation_counter::measure(decode).bytes_max;
    let limit = FIXED + PER_BYTE * input.len() as u64;
    assert!(
        peak <= limit,
        "{what}: {peak} bytes for {} of input",
        input.len()
    );
}

fn check_all(input: &[u8]) {
    let bytes = Bytes::copy_from_slice(input);
    for encoding in [Encoding::Json, Encoding::Protobuf] {
        let object = Object {
            encoding,
            bytes: bytes.clone(),
        };
        check("status", input, || {
            drop(Status::from_bytes(input, encoding))
        });
        check("list", input, || drop(list::split(&bytes, encoding)));
        check("metadata", input, || drop(object.meta()));
        check("field", input, || drop(object.field("spec.nodeName")));
        check("frames", input, || {
            let mut decoder = FrameDecoder::new(encoding, 1 << 20);
            decoder.push(bytes.clone());
            let mut frames = Vec::new();
            while let Ok(Some(frame)) = decoder.next_frame() {
                frames.push(frame);
            }
        });
    }
    check("transcode", input, || {
        let mut out = Vec::new();
        drop(transcode::to_json_text(
            &Gvk::from_api_version("v1", "Pod"),
            input,
            &mut out,
        ));
    });
    let text = String::from_utf8_lossy(input);
    check("label selector", input, || {
        drop(LabelSelector::parse(&text))
    });
    check("field selector", input, || {
        drop(FieldSelector::parse(&text))
    });
    check("accept", input, || {
        drop(media::negotiate(Some(&text), true))
    });
    check("query", input, || drop(request::query_pairs(&text)));
    check("request", input, || {
        let info = RequestInfo::parse(&http::Method::GET, &text, Some(&text));
        drop(info.list_options());
    });
}

/// The shortest elements that each grammar has, over and over.
#[test]
fn many_short_elements() {
    let head = |kind: &str| {
        [
            b"k8s\0\x0a\x0d\x0a\x02v1\x12\x07".as_slice(),
            kind.as_bytes(),
            b"\x12",
        ]
        .concat()
    };
    for element in [
        "a,", "a=,", "!a,", "a&", "a=b&", "/", "1,", "{},", "[", "{\"a\":", "a in (", ",", ";",
        "x/y,", "\u{0}\n", "{}\n",
    ] {
        for n in [1, 10, 1000, 20_000] {
            check_all(element.repeat(n).as_bytes());
            check_all(format!("a in ({})", element.repeat(n)).as_bytes());
            check_all(format!("/api/v1/{}", element.repeat(n)).as_bytes());
            check_all(
                format!(
                    "{{\"kind\":\"PodList\",\"items\":[{}{{}}]}}",
                    element.repeat(n)
                )
                .as_bytes(),
            );
            check_all(
                format!(
                    "{{\"kind\":\"Status\",\"details\":{{\"causes\":[{}{{}}]}}}}",
                    element.repeat(n)
                )
                .as_bytes(),
            );
        }
    }
    for element in [
        [0x12, 0x00],
        [0x0a, 0x00],
        [0x2a, 0x00],
        [0x22, 0x00],
        [0x08, 0x01],
        [0x00, 0x00],
    ] {
        for n in [1, 10, 1000, 20_000] {
            let many = element.repeat(n);
            check_all(&many);
            for (kind, nested) in [("PodList", false), ("Status ", false), ("PodList", true)] {
                let mut message = many.clone();
                if nested {
                    message = [
                        &[
                            0x12,
                            0x80 | (message.len() & 0x7f) as u8,
                            0x80 | (message.len() >> 7 & 0x7f) as u8,
                            (message.len() >> 14) as u8,
                        ],
                        message.as_slice(),
                    ]
                    .concat();
                }
                let length = message.len();
                let mut list = head(kind);
                list.extend([
                    0x80 | (length & 0x7f) as u8,
                    0x80 | (length >> 7 & 0x7f) as u8,
                    (length >> 14) as u8,
                ]);
                list.extend(&message);
                check_all(&list);
                check_all(&message);
            }
        }
    }
}

proptest! {
    #[test]
    fn arbitrary_bytes(input in prop::collection::vec(any::<u8>(), 0..2048)) {
        check_all(&input);
    }

    #[test]
    fn likely_pieces(pieces in prop::collection::vec(prop::sample::select(vec![
        "{", "}", "[", "]", "\"kind\"", "\"items\"", "\"metadata\"", ":", ",", "\"PodList\"", "null", "1", "a", " in ", "(", ")", "=",
        "&", "%", "k8s\0", "\n", "\u{12}", "\u{0}", "\u{a}", "/api/v1/",
    ]), 0..256)) {
        check_all(pieces.concat().as_bytes());
    }
}
