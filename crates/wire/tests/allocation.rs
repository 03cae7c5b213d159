//! What reading hostile bytes may allocate: for every decoder at most a small multiple of its input.
//!
//! Counted are all bytes that the calling thread asks the allocator for, also those given back at once and, where a
//! vector grows, both the old and the new one. A decoder that held back memory would therefore look no better.

mod recordings;

use allocation_counter::measure;
use bytes::Bytes;
use proptest::prelude::*;
use serde_json::{Value, json};
use std::hint::black_box;
use yurt_wire::{
    Encoding, Gvk, Object, RequestInfo, Status, list, media, patch,
    protobuf::{self, Writer},
    request,
    selector::{FieldSelector, LabelSelector},
    table::{self, IncludeObject, Printer},
    transcode,
    watch::FrameDecoder,
};

/// Bytes that a tree of JSON values may take for each byte of its text: in memory a map of one member has a node with
/// room for eleven. It is what trees cost whatever reads them; relaying and caching build none.
const VALUE: usize = 96;

/// What bytes of unknown origin are given to, and what it may allocate: `times` bytes for each one of the input, and
/// `plus` bytes.
struct Decoder {
    name: &'static str,
    times: usize,
    plus: usize,
    decode: fn(Encoding, &Bytes),
}

impl Decoder {
    fn check(&self, input: &str, encoding: Encoding, bytes: &Bytes) {
        let used = measure(|| (self.decode)(encoding, bytes)).bytes_total as usize;
        let allowed = self.times * bytes.len() + self.plus;
        assert!(
            used <= allowed,
            "{}: {used} bytes allocated for {} bytes ({} each), {input}",
            self.name,
            bytes.len(),
            used / bytes.len().max(1)
        );
    }
}

const fn decoder(
    name: &'static str,
    times: usize,
    plus: usize,
    decode: fn(Encoding, &Bytes),
) -> Decoder {
    Decoder {
        name,
        times,
        plus,
        decode,
    }
}

fn object(encoding: Encoding, bytes: &Bytes) -> Object {
    Object {
        encoding,
        bytes: bytes.clone(),
    }
}

/// The multiples are those of the worst inputs known, which have a reason each: JSON of the wrong type is quoted in an
/// error that grows as it is written (22 times); empty labels are pairs of strings (40); frames of two bytes have an
/// error each (21); an empty protobuf message stands for many members of JSON, up to the limit of the transcoder (21).
/// The constants are the fields of the deepest schema, and the most causes of a Status.
const DECODERS: &[Decoder] = &[
    decoder("Object::key", 24, 1024, |encoding, bytes| {
        drop(black_box(object(encoding, bytes).key()));
    }),
    decoder("Object::meta", 40, 1024, |encoding, bytes| {
        drop(black_box(object(encoding, bytes).meta()));
    }),
    decoder("Object::field", 24, 4096, |encoding, bytes| {
        for path in ["metadata.name", "spec.nodeName", "status.phase"] {
            drop(black_box(object(encoding, bytes).field(path)));
        }
    }),
    decoder("Object::to_partial_metadata", 8, 1024, |encoding, bytes| {
        drop(black_box(object(encoding, bytes).to_partial_metadata("v1")));
    }),
    decoder(
        "Object::with_resource_version",
        24,
        1024,
        |encoding, bytes| {
            drop(black_box(
                object(encoding, bytes).with_resource_version("12345"),
            ));
        },
    ),
    decoder("list::split", 24, 8192, |encoding, bytes| {
        drop(black_box(list::split(bytes, encoding)));
    }),
    decoder("list::split and join", 32, 8192, |encoding, bytes| {
        if let Ok(split) = list::split(bytes, encoding) {
            drop(black_box(join(&split, encoding)));
        }
    }),
    decoder("FrameDecoder, one chunk", 24, 1024, |encoding, bytes| {
        let mut frames = FrameDecoder::new(encoding, 1 << 20);
        frames.push(bytes.clone());
        while let Ok(Some(frame)) = black_box(frames.next_frame()) {
            drop(black_box(frame));
        }
        drop(black_box(frames.finish()));
    }),
    decoder("FrameDecoder, many chunks", 24, 1024, |encoding, bytes| {
        let mut frames = FrameDecoder::new(encoding, 1 << 20);
        let mut rest = bytes.clone();
        while !rest.is_empty() {
            frames.push(rest.split_to(rest.len().min(100)));
            while let Ok(Some(frame)) = black_box(frames.next_frame()) {
                drop(black_box(frame));
            }
        }
    }),
    decoder("Status::from_bytes", 24, 256 << 10, |encoding, bytes| {
        drop(black_box(Status::from_bytes(bytes, encoding)));
    }),
    decoder("protobuf to JSON text", 24, 512 << 10, |encoding, bytes| {
        if encoding == Encoding::Protobuf {
            drop(black_box(
                object(encoding, bytes).to_encoding(Encoding::Json),
            ));
        }
    }),
    decoder(
        "a message of a pod to JSON text",
        24,
        512 << 10,
        |_, bytes| {
            let mut out = Vec::new();
            let pod = Gvk::from_api_version("v1", "Pod");
            drop(black_box(transcode::to_json_text(&pod, bytes, &mut out)));
        },
    ),
    decoder("to JSON values", 2 * VALUE, 1 << 20, |encoding, bytes| {
        drop(black_box(object(encoding, bytes).to_json_value()));
    }),
    decoder(
        "JSON to protobuf",
        2 * VALUE,
        64 << 10,
        |encoding, bytes| {
            if encoding == Encoding::Json {
                drop(black_box(
                    object(encoding, bytes).to_encoding(Encoding::Protobuf),
                ));
            }
        },
    ),
];

fn join(split: &list::SplitList, encoding: Encoding) -> Option<Vec<Bytes>> {
    let head = list::ListHead {
        gvk: split.gvk.clone(),
        resource_version: split.resource_version.clone(),
        continue_token: split.continue_token.clone(),
        remaining: split.remaining,
    };
    list::join(&head, encoding, &split.items).ok()
}

/// About how large the inputs are that are built on purpose.
const LARGE: usize = 50_000;

fn filled(unit: &[u8]) -> Vec<u8> {
    unit.repeat(LARGE / unit.len())
}

fn field(number: u32, message: &[u8]) -> Vec<u8> {
    let mut out = Writer::new();
    out.bytes(number, message);
    out.into_vec()
}

/// `depth` messages in one another, each at field `number`.
fn nested(number: u32, depth: usize) -> Vec<u8> {
    (0..depth).fold(Vec::new(), |inner, _| field(number, &inner))
}

/// The path of field numbers from a CustomResourceDefinition to a JSON schema in it.
fn crd(schema: &[u8]) -> Bytes {
    let validation = field(1, schema);
    let version = field(4, &validation);
    let spec = field(7, &version);
    protobuf::seal(
        "apiextensions.k8s.io/v1",
        "CustomResourceDefinition",
        &field(2, &spec),
    )
}

/// Field numbers of a JSON schema.
const ALL_OF: u32 = 25;
const NOT: u32 = 28;
const PROPERTIES: u32 = 29;

fn hostile_protobuf() -> Vec<(&'static str, Bytes)> {
    let long_kind = format!("{}List", "K".repeat(LARGE / 2));
    let pod = |metadata: &[u8]| protobuf::seal("v1", "Pod", &field(1, metadata));
    let huge_length = |head: &[u8]| [head, b"\xff\xff\xff\xff\x0f"].concat();
    let deep_schema = |number: u32, depth: usize| {
        // Through an entry of `properties`, or a schema as it is.
        let link = |inner: Vec<u8>| match number {
            PROPERTIES => field(number, &[field(1, b"a"), field(2, &inner)].concat()),
            number => field(number, &inner),
        };
        crd(&(0..depth).fold(Vec::new(), |inner, _| link(inner)))
    };
    vec![
        (
            "empty pods",
            protobuf::seal("v1", "PodList", &filled(b"\x12\0")),
        ),
        (
            "empty nodes",
            protobuf::seal("v1", "NodeList", &filled(b"\x12\0")),
        ),
        (
            "tiny pods",
            protobuf::seal(
                "v1",
                "PodList",
                &filled(&field(2, &[0x0a, 0, 0x12, 0, 0x1a, 0])),
            ),
        ),
        (
            "small nodes",
            protobuf::seal(
                "v1",
                "NodeList",
                &filled(&field(2, &field(3, &field(5, b"")))),
            ),
        ),
        (
            "empty items of a long kind",
            protobuf::seal("v1", &long_kind, &filled(b"\x12\0")),
        ),
        (
            "empty items of a long version",
            protobuf::seal(&long_kind, "PodList", &filled(b"\x12\0")),
        ),
        (
            "a long kind",
            protobuf::seal("v1", &"\x01".repeat(LARGE), b""),
        ),
        ("empty labels", pod(&filled(b"\x5a\0"))),
        ("empty annotations", pod(&filled(b"\x62\0"))),
        ("small labels", pod(&filled(&field(11, b"\x0a\x01a\x12\0")))),
        (
            "small annotations",
            pod(&filled(&field(12, b"\x0a\x01a\x12\x01b"))),
        ),
        ("repeated names", pod(&filled(b"\x0a\x01a"))),
        ("names that are no UTF-8", pod(&field(1, &filled(b"\xff")))),
        (
            "names of control characters",
            pod(&field(1, &filled(b"\x01"))),
        ),
        (
            "repeated metadata",
            protobuf::seal("v1", "Pod", &filled(b"\x0a\x03\x0a\x01a")),
        ),
        (
            "empty containers",
            protobuf::seal("v1", "Pod", &field(2, &filled(b"\x12\0"))),
        ),
        (
            "empty conditions",
            protobuf::seal("v1", "Pod", &field(3, &filled(b"\x12\0"))),
        ),
        (
            "packed groups",
            protobuf::seal(
                "v1",
                "Pod",
                &field(2, &field(14, &field(4, &filled(b"\x01")))),
            ),
        ),
        (
            "groups",
            protobuf::seal("v1", "Pod", &field(2, &field(14, &filled(b"\x20\x01")))),
        ),
        (
            "secret data",
            protobuf::seal("v1", "Secret", &filled(&field(2, b"\x0a\x01a\x12\x03abc"))),
        ),
        (
            "large secret",
            protobuf::seal(
                "v1",
                "Secret",
                &field(2, &[&b"\x0a\x01a"[..], &field(2, &filled(b"abc"))].concat()),
            ),
        ),
        (
            "empty status causes",
            protobuf::seal("v1", "Status", &field(5, &filled(b"\x22\0"))),
        ),
        (
            "nested messages",
            protobuf::seal("v1", "Pod", &nested(2, 2000)),
        ),
        ("nested schemas", deep_schema(NOT, 90)),
        ("schemas nested too deeply", deep_schema(NOT, 2000)),
        ("nested properties", deep_schema(PROPERTIES, 90)),
        ("empty properties", crd(&filled(&field(PROPERTIES, b"")))),
        ("empty schemas", crd(&filled(&field(ALL_OF, b"")))),
        ("huge length", Bytes::from(huge_length(b"k8s\0\x12"))),
        (
            "huge length of an item",
            protobuf::seal("v1", "PodList", &huge_length(b"\x12")),
        ),
        (
            "huge length of metadata",
            protobuf::seal("v1", "Pod", &huge_length(b"\x0a")),
        ),
        (
            "repeated envelope fields",
            Bytes::from([&b"k8s\0"[..], &filled(b"\x12\0\x22\0")].concat()),
        ),
        ("JSON in an envelope", json_in_envelope()),
        ("empty frames", Bytes::from(filled(&[0, 0, 0, 0]))),
        (
            "frames of one byte",
            Bytes::from(filled(&[0, 0, 0, 1, 0xff])),
        ),
        (
            "frame of huge length",
            Bytes::from([&[0xff, 0xff, 0xff, 0xff][..], &filled(&[0])].concat()),
        ),
        (
            "frame of a large length",
            Bytes::from([&[0, 0x0f, 0, 0][..], &filled(&[0])].concat()),
        ),
        ("frame of a long type", framed(&field(1, &filled(b"\x7f")))),
        (
            "small events",
            Bytes::from(filled(&framed(
                &[field(1, b"ADDED"), field(2, &field(1, b"k8s\0"))].concat(),
            ))),
        ),
    ]
}

fn framed(message: &[u8]) -> Bytes {
    let length = u32::try_from(message.len()).expect("small").to_be_bytes();
    [&length[..], message].concat().into()
}

fn json_in_envelope() -> Bytes {
    let mut out = Writer::new();
    out.raw(protobuf::MAGIC);
    out.bytes(2, format!("[{}0]", "0,".repeat(LARGE / 2)).as_bytes());
    out.str(4, "application/json");
    out.into_vec().into()
}

fn hostile_json() -> Vec<(&'static str, Bytes)> {
    let n = LARGE;
    let list = |kind: &str, items: String| {
        format!(r#"{{"items":[{items}],"apiVersion":"v1","kind":"{kind}List"}}"#)
    };
    let pod = |metadata: String| {
        format!(r#"{{"kind":"Pod","apiVersion":"v1","metadata":{{{metadata}}}}}"#)
    };
    let of = |unit: &str| unit.repeat(n / unit.len());
    let distinct: Vec<String> = (0..n / 12).map(|i| format!(r#""{i:x}":"""#)).collect();
    let distinct = distinct.join(",");
    vec![
        ("empty items", list("Pod", of("{},") + "{}")),
        ("empty items of a long kind", list(&"K".repeat(n), of("{},") + "{}")),
        ("items with a kind", list("Pod", of(r#"{"kind":""},"#) + "{}")),
        ("small items", list("Pod", of(r#"{"metadata":{"name":"a"}},"#) + "{}")),
        ("items that are numbers", list("Pod", of("0,") + "0")),
        ("items that are lists", list("Pod", of("[],") + "0")),
        ("no items", list("Pod", String::new())),
        ("nested lists", "[".repeat(n)),
        ("nested objects", r#"{"a":"#.repeat(n / 5)),
        ("nested items", list("Pod", "[".repeat(n))),
        ("nested metadata", pod(format!(r#""x":{}"#, "[".repeat(n)))),
        ("closed nested metadata", pod(format!(r#""x":{}{}"#, "[".repeat(100), "]".repeat(100)))),
        ("empty labels", pod(format!(r#""labels":{{{}"":""}}"#, of(r#""":"","#)))),
        ("null annotations", pod(format!(r#""annotations":{{{}"":""}}"#, of(r#""":null,"#)))),
        ("small labels", pod(format!(r#""labels":{{{distinct}}}"#))),
        ("small annotations", pod(format!(r#""annotations":{{{distinct}}}"#))),
        ("unknown members", pod(of(r#""a":0,"#) + r#""b":0"#)),
        ("escaped keys", pod(of(r#""\u0061":0,"#) + r#""b":0"#)),
        ("repeated names", pod(of(r#""name":"a","#) + r#""b":0"#)),
        ("escaped name", pod(format!(r#""name":"{}""#, of(r"\u0001")))),
        ("a text for a number", pod(format!(r#""generation":"{}""#, of("\x7f")))),
        ("a text for an object", format!(r#"{{"metadata":"{}"}}"#, of("\x7f"))),
        ("a long kind", format!(r#"{{"items":[],"kind":"{}"}}"#, of("\x7f"))),
        ("a long number", pod(format!(r#""generation":{}"#, of("1")))),
        ("small containers", format!(r#"{{"kind":"Pod","apiVersion":"v1","spec":{{"containers":[{}{{}}]}}}}"#, of("{},"))),
        ("empty nodes with a type", format!(r#"{{"kind":"NodeList","apiVersion":"v1","items":[{}{{}}]}}"#, of("{},"))),
        ("nested schemas", format!(r#"{{"kind":"CustomResourceDefinition","apiVersion":"apiextensions.k8s.io/v1","spec":{{"versions":[{{"schema":{{"openAPIV3Schema":{}{{}}{}}}}}]}}}}"#, r#"{"not":"#.repeat(90), "}".repeat(90))),
        ("numbers", format!("[{}0]", of("0,"))),
        ("small objects", format!(r#"{{"a":[{}0]}}"#, of(r#"{"a":0},"#))),
        ("status causes", format!(r#"{{"kind":"Status","details":{{"causes":[{}{{}}]}}}}"#, of("{},"))),
        ("status causes as lists", format!(r#"{{"kind":"Status","details":{{"causes":[{}[]]}}}}"#, of("[],"))),
        ("small frames", of("{}\n")),
        ("frames without newlines", of("{}")),
        ("small events", of("{\"type\":\"ADDED\",\"object\":{}}\n")),
        ("an event of a long type", format!("{{\"type\":\"{}\"}}\n", of("\x7f"))),
        ("a frame without end", format!(r#"{{"a":"{}"#, of("x"))),
        ("white space", of(" \n")),
        ("a string without end", format!("\"{}", of(r"\n"))),
    ]
    .into_iter()
    .map(|(name, text)| (name, Bytes::from(text)))
    .collect()
}

/// Every decoder reads every hostile input, also in the encoding it was not made for.
#[test]
fn hostile_bytes_take_a_small_multiple() {
    for decoder in DECODERS {
        for (name, bytes) in hostile_protobuf().iter().chain(&hostile_json()) {
            decoder.check(name, Encoding::Protobuf, bytes);
            decoder.check(name, Encoding::Json, bytes);
        }
    }
}

/// The hostile inputs are what they are meant to be: some are refused, most are read.
#[test]
fn only_lists_of_nearly_nothing_are_refused() {
    let bytes = |name: &str| {
        let protobuf = hostile_protobuf().into_iter();
        let (_, bytes) = protobuf
            .chain(hostile_json())
            .find(|(known, _)| *known == name)
            .expect("an input");
        bytes
    };
    for refused in ["empty pods", "empty items of a long kind"] {
        list::split(&bytes(refused), Encoding::Protobuf).unwrap_err();
    }
    list::split(&bytes("items that are numbers"), Encoding::Json).unwrap_err();
    let small = list::split(&bytes("small items"), Encoding::Json).unwrap();
    assert!(small.items.len() > LARGE / 30);

    // As much as a server could write at the least: names of one character.
    let item = field(
        2,
        &field(1, b"\x0a\x01a\x12\0\x1a\0\x22\0\x2a\0\x32\x011\x38\0\x42\0"),
    );
    let body = protobuf::seal("v1", "PodList", &filled(&item));
    let split = list::split(&body, Encoding::Protobuf).unwrap();
    assert_eq!(split.items.len(), LARGE / item.len());
    assert!(
        split
            .items
            .iter()
            .all(|item| item.key().unwrap().name == "a")
    );
}

fn recorded(encoding: Encoding) -> Vec<Bytes> {
    let extension = match encoding {
        Encoding::Json => "json",
        Encoding::Protobuf => "pb",
    };
    recordings::pairs()
        .iter()
        .map(String::as_str)
        .chain(["watch-pods"])
        .map(|name| recordings::bytes(&format!("{name}.{extension}")))
        .collect()
}

/// A recording with some bytes changed, perhaps cut off.
fn mutated() -> impl Strategy<Value = (Encoding, Bytes)> {
    let files: Vec<(Encoding, Bytes)> = [Encoding::Json, Encoding::Protobuf]
        .into_iter()
        .flat_map(|encoding| {
            recorded(encoding)
                .into_iter()
                .map(move |bytes| (encoding, bytes))
        })
        .collect();
    let edits = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6);
    let cut = prop::option::of(any::<prop::sample::Index>());
    (prop::sample::select(files), edits, cut).prop_map(|((encoding, bytes), edits, cut)| {
        let mut bytes = bytes.to_vec();
        for (at, byte) in edits {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        (encoding, bytes.into())
    })
}

/// What the formats are made of, in any order.
fn pieces() -> impl Strategy<Value = Bytes> {
    let pieces = prop::sample::select(vec![
        "{",
        "}",
        "[",
        "]",
        "\"kind\"",
        "\"items\"",
        "\"metadata\"",
        "\"PodList\"",
        ":",
        ",",
        "null",
        "1",
        "\"a\"",
        "\n",
        "k8s\0",
        "\x0a",
        "\x12",
        "\0",
        "\x02",
    ]);
    prop::collection::vec(pieces, 0..256).prop_map(|pieces| pieces.concat().into())
}

/// JSON objects of Kubernetes' names and of anything.
fn any_json() -> impl Strategy<Value = Value> {
    let key = prop::sample::select(vec![
        "metadata",
        "spec",
        "status",
        "name",
        "kind",
        "apiVersion",
        "items",
        "labels",
        "conditions",
        "containers",
        "containerStatuses",
        "state",
        "ports",
        "rules",
        "subsets",
        "addresses",
        "x",
        "",
    ]);
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<i64>().prop_map(Value::from),
        any::<bool>().prop_map(Value::from),
        ".{0,12}".prop_map(Value::from),
    ];
    leaf.prop_recursive(6, 60, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            prop::collection::vec((key.clone(), inner), 0..6).prop_map(|members| {
                members
                    .into_iter()
                    .map(|(key, value)| (key.to_owned(), value))
                    .collect()
            }),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..Default::default() })]

    #[test]
    fn any_bytes_take_a_small_multiple(bytes: Vec<u8>) {
        let enveloped = Bytes::from([protobuf::MAGIC.as_slice(), &bytes].concat());
        let pod = protobuf::seal("v1", "PodList", &bytes);
        for decoder in DECODERS {
            for encoding in [Encoding::Json, Encoding::Protobuf] {
                decoder.check("any bytes", encoding, &bytes.clone().into());
            }
            decoder.check("an envelope of any bytes", Encoding::Protobuf, &enveloped);
            decoder.check("a list of any bytes", Encoding::Protobuf, &pod);
        }
    }

    #[test]
    fn likely_pieces_take_a_small_multiple(bytes in pieces()) {
        for decoder in DECODERS {
            for encoding in [Encoding::Json, Encoding::Protobuf] {
                decoder.check("likely pieces", encoding, &bytes);
            }
        }
    }

    #[test]
    fn damaged_recordings_take_a_small_multiple((encoding, bytes) in mutated()) {
        for decoder in DECODERS {
            decoder.check("a damaged recording", encoding, &bytes);
        }
    }

    #[test]
    fn any_json_takes_a_small_multiple(value in any_json()) {
        let bytes = Bytes::from(value.to_string());
        for decoder in DECODERS {
            decoder.check("any JSON", Encoding::Json, &bytes);
        }
    }
}

// What stands in requests.

fn check(name: &str, input: usize, times: usize, plus: usize, decode: impl FnOnce()) {
    let used = measure(decode).bytes_total as usize;
    assert!(
        used <= times * input + plus,
        "{name}: {used} bytes allocated for {input} bytes"
    );
}

fn check_text(text: &str) {
    let len = text.len();
    check("parse_accept", len, 32, 96 << 10, || {
        drop(black_box(media::parse_accept(text)));
        drop(black_box(media::negotiate(Some(text), true)));
        black_box(media::aggregated_discovery(Some(text)));
    });
    check("LabelSelector::parse", len, 32, 16 << 10, || {
        drop(black_box(LabelSelector::parse(text)));
    });
    check("FieldSelector::parse", len, 32, 1024, || {
        drop(black_box(FieldSelector::parse(text)));
    });
    check("RequestInfo::parse of a path", len, 64, 1024, || {
        let path = format!("/api/v1/{text}");
        drop(black_box(RequestInfo::parse(
            &http::Method::GET,
            &path,
            None,
        )));
    });
    check("query_pairs", len, 64, 1024, || {
        drop(black_box(request::query_pairs(text)));
    });
    let queries = [
        text.to_owned(),
        format!("labelSelector={text}"),
        format!("fieldSelector={text}"),
        format!("limit={text}&resourceVersionMatch={text}"),
    ];
    for query in queries {
        check("list_options", query.len(), 96, 32 << 10, || {
            let info = RequestInfo::parse(&http::Method::GET, "/api/v1/pods", Some(&query));
            drop(black_box(info.list_options()));
            drop(black_box(info.query_value("watch")));
        });
    }
}

#[test]
fn hostile_requests_take_a_small_multiple() {
    // A selector comes in a query, and the URI of a request is no longer than 64 KiB.
    let of = |unit: &str| unit.repeat((16 << 10) / unit.len());
    let distinct: String = (0..3000).map(|i| format!("{i:x},")).collect();
    for text in [
        of(","),
        of("a,"),
        of("*/*;q=0.1,"),
        of("a;b=c,"),
        format!("a{}", of(";b")),
        of("/"),
        of("a/"),
        of("&"),
        of("a&"),
        of("a=b&"),
        of("%00"),
        of("%"),
        of("+"),
        of("!"),
        of("a,") + "a",
        of("a!=b,") + "a",
        of("!a,") + "a",
        of("a in (b),") + "a",
        format!("a in ({}b)", of("b,")),
        format!("a notin ({}b)", of(",")),
        format!("{distinct}a"),
        format!("a in ({distinct}a)"),
        of("a=,") + "a=",
        of("a=\\,"),
        format!("a in ({}b)", of("$,")),
        format!("{}>b", of("$")),
        of("a>b,"),
        of("a/b,") + "a",
        of("=,"),
        "a/".repeat(8000),
        of("\x7f"),
        of("("),
        of("\""),
    ] {
        check_text(&text);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..Default::default() })]

    #[test]
    fn any_request_takes_a_small_multiple(
        text in ".{0,200}",
        pieces in prop::collection::vec(prop::sample::select(vec![
            "a", "b=c", "!=", "in", "notin", "(", ")", ",", ";", "q=", "/", "&", "=", "%2c", "\"", "application/json", "*/*",
        ]), 0..60),
    ) {
        check_text(&text);
        check_text(&pieces.concat());
    }
}

// Patches and tables work on values; their input is measured as text.

#[test]
fn patches_take_a_small_multiple() {
    let chain = (0..100).fold(Value::Null, |inner, _| json!({"a": inner}));
    let copies = |from: &str, count: usize| {
        let operation = json!({"op": "copy", "from": from, "path": "/a/-"});
        Value::Array(vec![operation; count])
    };
    for (name, target, patch) in [
        (
            "copies of a text",
            json!({"a": ["x".repeat(1000)]}),
            copies("/a/0", 10_000),
        ),
        (
            "doubled texts",
            json!({"a": ["x".repeat(1000)]}),
            copies("/a", 64),
        ),
        ("doubled numbers", json!({"a": [0]}), copies("/a", 64)),
        (
            "doubled objects",
            json!({"a": [{"a": {"a": {}}}]}),
            copies("/a", 64),
        ),
        (
            "copies of nested objects",
            json!({"a": [chain]}),
            copies("/a/0", 10_000),
        ),
        (
            "copies of objects",
            json!({"a": vec![json!({"a": 0}); 1000]}),
            copies("/a", 64),
        ),
        (
            "tests",
            json!({"a": 1}),
            Value::Array(vec![
                json!({"op": "test", "path": "/a", "value": 1});
                10_000
            ]),
        ),
    ] {
        let input = target.to_string().len() + patch.to_string().len();
        check(
            name,
            input,
            2 * VALUE,
            8 * patch::MAX_JSON_PATCH_COPY_BYTES,
            || {
                let mut patched = target.clone();
                let _ = black_box(patch::json_patch(&mut patched, &patch));
            },
        );
    }
    let pod = Gvk::from_api_version("v1", "Pod");
    let containers: Vec<Value> = (0..2000)
        .map(|i| json!({"name": format!("{i:x}")}))
        .collect();
    let order =
        json!({"spec": {"$setElementOrder/containers": containers, "containers": containers}});
    let target = json!({"spec": {"containers": containers}});
    for (name, patch) in [
        ("merged lists", &target),
        ("ordered lists", &order),
        (
            "lists of scalars",
            &json!({"metadata": {"$deleteFromPrimitiveList/finalizers": vec!["a"; 10_000]}}),
        ),
        (
            "retained keys",
            &json!({"spec": {"$retainKeys": vec!["a"; 10_000]}}),
        ),
    ] {
        let input = target.to_string().len() + patch.to_string().len();
        check(name, input, 3 * VALUE, 1024, || {
            let mut patched = target.clone();
            let _ = black_box(patch::strategic_merge_patch(&pod, &mut patched, patch));
            let mut patched = target.clone();
            patch::merge_patch(&mut patched, patch);
            drop(black_box(patched));
        });
    }
}

fn check_table(gvk: &Gvk, objects: &[Value]) {
    let input = objects
        .iter()
        .map(|object| object.to_string().len())
        .sum::<usize>();
    let plus = (64 << 10) + objects.len() * (8 << 10);
    check("table", input, 2 * VALUE, plus, || {
        let head = json!({"resourceVersion": "1"});
        let printer = Printer::of(gvk);
        drop(black_box(table::table(
            &printer,
            &head,
            objects,
            IncludeObject::Object,
            "v1",
            true,
            1,
        )));
    });
}

#[test]
fn tables_of_recordings_take_a_small_multiple() {
    for name in recordings::lists() {
        let split =
            list::split(&recordings::bytes(&format!("{name}.json")), Encoding::Json).unwrap();
        let gvk = split.items[0].meta().unwrap().gvk;
        let objects: Vec<Value> = split
            .items
            .iter()
            .map(|item| item.to_json_value().unwrap())
            .collect();
        check_table(&gvk, &objects);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..Default::default() })]

    #[test]
    fn tables_of_anything_take_a_small_multiple(objects in prop::collection::vec(any_json(), 0..4)) {
        for (api_version, kind) in [
            ("v1", "Pod"), ("v1", "Node"), ("v1", "Service"), ("v1", "Endpoints"), ("apps/v1", "Deployment"),
            ("networking.k8s.io/v1", "Ingress"), ("example.org/v1", "Foo"),
        ] {
            check_table(&Gvk::from_api_version(api_version, kind), &objects);
        }
    }
}
