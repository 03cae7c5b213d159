//! Objects, lists and watch frames as bytes: against the recordings, and against anything.

mod recordings;

use bytes::Bytes;
use proptest::prelude::*;
use std::borrow::Cow;
use yurt_wire::{
    Encoding, Gvk, Object, ObjectMeta, list,
    watch::{self, EventType, Frame, FrameDecoder},
};

const BOTH: [Encoding; 2] = [Encoding::Json, Encoding::Protobuf];

fn extension(encoding: Encoding) -> &'static str {
    match encoding {
        Encoding::Json => "json",
        Encoding::Protobuf => "pb",
    }
}

fn join(split: &list::SplitList, encoding: Encoding) -> Bytes {
    let head = list::ListHead {
        gvk: split.gvk.clone(),
        resource_version: split.resource_version.clone(),
        continue_token: split.continue_token.clone(),
        remaining: split.remaining,
    };
    list::join(&head, encoding, &split.items)
        .unwrap()
        .concat()
        .into()
}

#[test]
fn both_encodings_of_a_list_have_the_same_metadata() {
    for name in recordings::lists() {
        let [json, protobuf] = BOTH.map(|encoding| {
            let bytes = recordings::bytes(&format!("{name}.{}", extension(encoding)));
            list::split(&bytes, encoding).unwrap()
        });
        assert_eq!(json.gvk, protobuf.gvk);
        assert!(json.gvk.kind.ends_with("List"));
        assert_eq!(json.resource_version, protobuf.resource_version);
        assert_eq!(json.continue_token, protobuf.continue_token);
        assert_eq!(json.items.len(), protobuf.items.len());
        assert!(!json.items.is_empty(), "{name}");
        for (json, protobuf) in json.items.iter().zip(&protobuf.items) {
            let meta = json.meta().unwrap();
            assert_eq!(meta, protobuf.meta().unwrap(), "{name}");
            same_key(json, &meta);
            same_key(protobuf, &meta);
            assert!(!meta.name.is_empty() && !meta.uid.is_empty());
            assert!(meta.revision().is_some());
            assert!(meta.creation_timestamp.ends_with('Z'));
            assert_eq!(
                Some(meta.gvk.kind.as_str()),
                list::item_kind(&json_kind(&name))
            );
        }
    }
}

fn same_key(object: &Object, meta: &ObjectMeta) {
    let key = object.key().unwrap();
    assert_eq!(Gvk::from_api_version(&key.api_version, &key.kind), meta.gvk);
    assert_eq!(key.group(), meta.gvk.group);
    assert_eq!(key.namespace, meta.namespace);
    assert_eq!(key.name, meta.name);
    assert_eq!(key.resource_version, meta.resource_version);
    assert_eq!(key.revision(), meta.revision());
}

fn json_kind(name: &str) -> String {
    let list: serde_json::Value =
        serde_json::from_slice(&recordings::bytes(&format!("{name}.json"))).unwrap();
    list["kind"].as_str().unwrap().to_owned()
}

#[test]
fn a_joined_protobuf_list_is_the_recorded_one_byte_for_byte() {
    for name in recordings::lists() {
        let bytes = recordings::bytes(&format!("{name}.pb"));
        let split = list::split(&bytes, Encoding::Protobuf).unwrap();
        assert_eq!(join(&split, Encoding::Protobuf), bytes, "{name}");
    }
}

#[test]
fn a_joined_json_list_is_the_recorded_one_but_for_the_type_of_items() {
    for name in recordings::lists() {
        let bytes = recordings::bytes(&format!("{name}.json"));
        let split = list::split(&bytes, Encoding::Json).unwrap();
        let mut joined: serde_json::Value =
            serde_json::from_slice(&join(&split, Encoding::Json)).unwrap();
        let recorded: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
        for (item, recorded) in joined["items"]
            .as_array_mut()
            .unwrap()
            .iter_mut()
            .zip(recorded["items"].as_array().unwrap())
        {
            let item = item.as_object_mut().unwrap();
            for member in ["kind", "apiVersion"] {
                if recorded.get(member).is_none() {
                    assert!(item.remove(member).is_some());
                }
            }
        }
        assert_eq!(joined, recorded, "{name}");
    }
}

#[test]
fn only_lists_are_split() {
    for name in ["get-node", "notfound", "table-pods", "version"] {
        for encoding in BOTH {
            let file = format!("{name}.{}", extension(encoding));
            if recordings::path(&file).exists() {
                let error = list::split(&recordings::bytes(&file), encoding).unwrap_err();
                assert!(error.what.contains("not a list"), "{file}: {error}");
            }
        }
    }
}

#[test]
fn items_get_the_type_they_lack() {
    let body = r#" {"apiVersion":"example.org/v1","kind":"FooList","items":[
        {}, { "metadata" : {"name":"a"}}, {"kind":"Bar","apiVersion":"v2","x":1},
        {"kind":"Foo"}, {"apiVersion":"example.org/v1"}],"metadata":{"remainingItemCount":7,"continue":"c"}} "#;
    let split = list::split(&Bytes::from(body), Encoding::Json).unwrap();
    assert_eq!(split.remaining, Some(7));
    assert_eq!(split.continue_token, "c");
    let types: Vec<Gvk> = split
        .items
        .iter()
        .map(|item| item.meta().unwrap().gvk)
        .collect();
    let foo = Gvk::from_api_version("example.org/v1", "Foo");
    let bar = Gvk::from_api_version("v2", "Bar");
    assert_eq!(types, [foo.clone(), foo.clone(), bar, foo.clone(), foo]);
}

#[test]
fn a_key_needs_no_copy_and_reads_escapes_and_nulls() {
    let borrowed = |text: &Cow<'_, str>| matches!(text, Cow::Borrowed(_));
    for name in ["get-node.json", "get-node.pb"] {
        let node = recordings::object(name);
        let key = node.key().unwrap();
        assert!(borrowed(&key.name) && borrowed(&key.resource_version) && borrowed(&key.kind));
        same_key(&node, &node.meta().unwrap());
    }
    for text in [
        r#"{"kind":"Pod","apiVersion":"v1","metadata":{"name":"\u0061b","namespace":null,"labels":{"name":"x"}}}"#,
        r#"{"kind":null,"metadata":null}"#,
        r#"{"kind":"Status","apiVersion":"v1","metadata":{"resourceVersion":"7"},"status":"Failure"}"#,
    ] {
        let object = Object {
            encoding: Encoding::Json,
            bytes: Bytes::from(text),
        };
        same_key(&object, &object.meta().unwrap());
    }
    let list = recordings::object("list-leases.pb");
    same_key(&list, &list.meta().unwrap());
    let number = Object {
        encoding: Encoding::Json,
        bytes: Bytes::from_static(br#"{"metadata":{"name":1}}"#),
    };
    number.key().unwrap_err();
}

#[test]
fn of_equal_labels_the_last_counts() {
    let object = Object {
        encoding: Encoding::Json,
        bytes: Bytes::from_static(
            br#"{"metadata":{"labels":{"b":"1","a":"2","b":"3","c":null,"a":"4","b":"5"}}}"#,
        ),
    };
    let labels = [("a", "4"), ("b", "5"), ("c", "")];
    let labels = labels.map(|(key, value)| (key.to_owned(), value.to_owned()));
    assert_eq!(object.meta().unwrap().labels, labels);
}

#[test]
fn null_items_are_no_items() {
    let body = br#"{"apiVersion":"v1","kind":"PodList","metadata":null,"items":null}"#;
    let split = list::split(&Bytes::from_static(body), Encoding::Json).unwrap();
    assert_eq!(split.items, []);
}

#[test]
fn the_old_partial_list_has_its_fields_swapped() {
    let recorded = list::split(&recordings::bytes("partial-pods.pb"), Encoding::Protobuf).unwrap();
    let old = list::SplitList {
        gvk: Gvk::from_api_version("meta.k8s.io/v1beta1", "PartialObjectMetadataList"),
        ..recorded.clone()
    };
    let split = list::split(&join(&old, Encoding::Protobuf), Encoding::Protobuf).unwrap();
    assert_eq!(split.resource_version, recorded.resource_version);
    for (old, recorded) in split.items.iter().zip(&recorded.items) {
        let (old, recorded) = (old.meta().unwrap(), recorded.meta().unwrap());
        assert_eq!(old.name, recorded.name);
        assert_eq!(old.gvk.version, "v1beta1");
    }
}

fn frames(bytes: &Bytes, encoding: Encoding, sizes: &[usize]) -> Vec<Frame> {
    let mut decoder = FrameDecoder::new(encoding, 1 << 20);
    let mut frames = Vec::new();
    let mut rest = bytes.clone();
    let mut sizes = sizes.iter().cycle();
    while !rest.is_empty() {
        let size = sizes
            .next()
            .map_or(rest.len(), |&size| size.clamp(1, rest.len()));
        decoder.push(rest.split_to(size));
        while let Some(frame) = decoder.next_frame().unwrap() {
            frames.push(frame);
        }
    }
    assert_eq!(decoder.pending(), 0);
    frames
}

#[test]
fn recorded_watches_are_cut_and_put_together_again() {
    for encoding in BOTH {
        let bytes = recordings::bytes(&format!("watch-pods.{}", extension(encoding)));
        let frames = frames(&bytes, encoding, &[]);
        assert_eq!(frames.len(), 13);
        let raw: Vec<u8> = frames.iter().flat_map(|frame| frame.raw.clone()).collect();
        assert_eq!(raw, bytes);
        for frame in &frames {
            let event = frame.event.as_ref().unwrap();
            assert_eq!(
                watch::encode(event.kind, &event.object, encoding),
                frame.raw
            );
            assert_eq!(
                watch::is_initial_events_end(&event.object),
                event.kind == EventType::Bookmark
            );
        }
    }
}

#[test]
fn recorded_bookmark_is_ours() {
    let gvk = Gvk::from_api_version("v1", "Pod");
    for encoding in BOTH {
        let bytes = recordings::bytes(&format!("watch-pods.{}", extension(encoding)));
        let recorded = frames(&bytes, encoding, &[])
            .into_iter()
            .map(|frame| frame.event.unwrap())
            .find(|event| event.kind == EventType::Bookmark)
            .unwrap();
        let ours = watch::bookmark(&gvk, "367", true, encoding);
        assert_eq!(ours.meta().unwrap(), recorded.object.meta().unwrap());
        assert!(watch::is_initial_events_end(&ours));
        assert!(!watch::is_initial_events_end(&watch::bookmark(
            &gvk, "367", false, encoding
        )));
    }
}

#[test]
fn frames_of_bad_content_keep_their_borders() {
    let mut stream =
        b"{\"type\":\"WHAT\",\"object\":{}}\n{\"type\":\"ADDED\"}{\"type\":[1,}\n".to_vec();
    stream.extend_from_slice(b"  {\"type\":\"ADDED\",\"object\":{\"kind\":\"}{\\\"\"}}");
    let mut decoder = FrameDecoder::new(Encoding::Json, 1000);
    decoder.push(stream.into());
    for _ in 0..3 {
        let frame = decoder.next_frame().unwrap().unwrap();
        frame.event.unwrap_err();
        assert_eq!(frame.raw.last(), Some(&b'\n'));
    }
    assert_eq!(decoder.next_frame().unwrap(), None);
    assert!(decoder.pending() > 0);
    let last = decoder.finish().unwrap();
    assert_eq!(last.event.unwrap().object.meta().unwrap().gvk.kind, "}{\"");
    assert_eq!(decoder.pending(), 0);

    let mut decoder = FrameDecoder::new(Encoding::Protobuf, 1000);
    decoder.push(Bytes::from_static(&[0, 0, 0, 1, 0xff, 0, 0, 0, 0]));
    for _ in 0..2 {
        decoder.next_frame().unwrap().unwrap().event.unwrap_err();
    }
    assert_eq!(decoder.next_frame().unwrap(), None);
}

#[test]
fn oversized_frames_and_other_streams_end_the_decoder() {
    let long = format!("{{\"a\":\"{}\"}}\n", "x".repeat(200));
    let html = "<html></html>".to_owned();
    for (encoding, stream) in [
        (Encoding::Json, long.into_bytes()),
        (Encoding::Json, html.into_bytes()),
        (Encoding::Protobuf, vec![0, 0, 0, 100, 1]),
    ] {
        let mut decoder = FrameDecoder::new(encoding, 100);
        for byte in stream.chunks(3) {
            decoder.push(Bytes::copy_from_slice(byte));
            let _ = decoder.next_frame();
        }
        decoder.next_frame().unwrap_err();
        decoder.push(Bytes::from_static(b"{}\n"));
        decoder.next_frame().unwrap_err();
        assert_eq!(decoder.pending(), 0);
    }
}

#[test]
fn a_pretty_object_becomes_one_line() {
    let object = recordings::object("get-node.json");
    let frame = watch::encode(EventType::Added, &object, Encoding::Json);
    assert_eq!(frame.iter().filter(|&&byte| byte == b'\n').count(), 1);
    let mut frames = frames(&frame, Encoding::Json, &[7]);
    let event = frames.pop().unwrap().event.unwrap();
    let value = |bytes: &[u8]| serde_json::from_slice::<serde_json::Value>(bytes).unwrap();
    assert_eq!(value(&event.object.bytes), value(&object.bytes));
}

#[test]
fn the_resource_version_is_replaced_and_nothing_else() {
    let objects: Vec<Object> = recordings::pairs()
        .iter()
        .flat_map(|name| BOTH.map(|e| recordings::object(&format!("{name}.{}", extension(e)))))
        .collect();
    for object in objects {
        let before = object.meta().unwrap();
        for version in ["1", "18446744073709551615"] {
            let changed = object.with_resource_version(version).unwrap();
            let mut after = changed.meta().unwrap();
            assert_eq!(after.resource_version, version);
            after.resource_version.clone_from(&before.resource_version);
            assert_eq!(after, before);
            if !before.resource_version.is_empty() {
                let back = changed
                    .with_resource_version(&before.resource_version)
                    .unwrap();
                assert_eq!(back, object);
            }
        }
    }
}

#[test]
fn a_resource_version_is_added_where_there_is_none() {
    for text in [
        r#"{"kind":"Pod","apiVersion":"v1"}"#,
        r#" { "kind":"Pod","apiVersion":"v1","metadata":null}"#,
        r#"{"kind":"Pod","apiVersion":"v1","metadata": {} }"#,
        r#"{"kind":"Pod","apiVersion":"v1","metadata":{"resourceVersion":null}}"#,
        r#"{"kind":"Pod","apiVersion":"v1","metadata":{"name":"x"},"spec":{"metadata":{"resourceVersion":"9"}}}"#,
    ] {
        let object = Object {
            encoding: Encoding::Json,
            bytes: Bytes::from(text),
        };
        let meta = object.with_resource_version("5\"").unwrap().meta().unwrap();
        assert_eq!(meta.resource_version, "5\"");
        assert_eq!(meta.gvk.kind, "Pod");
    }
    for raw in [&b""[..], b"\x12\x00", b"\x0a\x03\x0a\x01x\x12\x00"] {
        let object = Object {
            encoding: Encoding::Protobuf,
            bytes: yurt_wire::protobuf::seal("v1", "Pod", raw),
        };
        let meta = object.with_resource_version("5").unwrap().meta().unwrap();
        assert_eq!(meta.resource_version, "5");
    }
}

/// A recording with some bytes changed.
fn mutated() -> impl Strategy<Value = (Encoding, Bytes)> {
    let mut files: Vec<(Encoding, Bytes)> = Vec::new();
    for encoding in BOTH {
        for name in [
            "get-node",
            "list-leases",
            "list-secrets",
            "notfound",
            "watch-pods",
        ] {
            let bytes = recordings::bytes(&format!("{name}.{}", extension(encoding)));
            files.push((encoding, bytes.slice(..bytes.len().min(6000))));
        }
    }
    let edits = proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6);
    (
        prop::sample::select(files),
        edits,
        any::<prop::sample::Index>(),
        any::<bool>(),
    )
        .prop_map(|((encoding, bytes), edits, cut, whole)| {
            let mut bytes = bytes.to_vec();
            for (at, byte) in edits {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            if !whole {
                bytes.truncate(cut.index(bytes.len()));
            }
            (encoding, bytes.into())
        })
}

fn read_everything(bytes: &Bytes, encoding: Encoding) {
    let object = Object {
        encoding,
        bytes: bytes.clone(),
    };
    let meta = object.meta();
    if let Ok(meta) = &meta {
        same_key(&object, meta);
    }
    if let Ok(changed) = object.with_resource_version("77")
        && meta.is_ok()
    {
        assert_eq!(
            changed.meta().map(|meta| meta.resource_version),
            Ok("77".to_owned())
        );
    }
    if let Ok(split) = list::split(bytes, encoding) {
        let again = list::split(&join(&split, encoding), encoding).unwrap();
        assert_eq!(again, split);
    }
    let mut decoder = FrameDecoder::new(encoding, 10_000);
    decoder.push(bytes.clone());
    let mut taken = 0;
    while let Ok(Some(frame)) = decoder.next_frame() {
        taken += frame.raw.len();
    }
    // A missing newline may be added to each JSON frame, which is at least two bytes long.
    assert!(taken <= bytes.len() * 3 / 2 + 1);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..Default::default() })]

    #[test]
    fn anything_is_read_without_panic(bytes: Vec<u8>, protobuf: bool) {
        let encoding = if protobuf { Encoding::Protobuf } else { Encoding::Json };
        read_everything(&bytes.into(), encoding);
    }

    #[test]
    fn damaged_recordings_are_read_without_panic((encoding, bytes) in mutated()) {
        read_everything(&bytes, encoding);
    }

    #[test]
    fn chunking_does_not_matter(sizes in proptest::collection::vec(1usize..3000, 1..8), protobuf: bool) {
        let encoding = if protobuf { Encoding::Protobuf } else { Encoding::Json };
        let bytes = recordings::bytes(&format!("watch-pods.{}", extension(encoding)));
        prop_assert_eq!(frames(&bytes, encoding, &sizes), frames(&bytes, encoding, &[]));
    }

    #[test]
    fn chunking_does_not_matter_for_damaged_streams_either(
        pieces in proptest::collection::vec(prop::sample::select(PIECES), 0..12),
        lengths in proptest::collection::vec(0u8..12, 0..12),
        sizes in proptest::collection::vec(1usize..9, 1..5),
        protobuf: bool,
    ) {
        let (encoding, stream) = if protobuf {
            let stream = lengths.iter().flat_map(|&len| {
                let mut frame = vec![0, 0, u8::from(len == 11), len];
                frame.extend((0..len).map(|byte| byte * 7));
                frame
            });
            (Encoding::Protobuf, stream.collect::<Vec<u8>>())
        } else {
            (Encoding::Json, pieces.concat().into_bytes())
        };
        let whole = run(encoding, &stream, &[stream.len().max(1)]);
        prop_assert_eq!(run(encoding, &stream, &sizes), whole);
    }
}

const PIECES: &[&str] = &[
    r#"{"type":"ADDED","object":{}}"#,
    r#"{"type":"BOOKMARK","object":{"a":"}\"{\\"}}"#,
    "\n",
    " ",
    "\r\n",
    "{",
    "}",
    "\"",
    "[1]",
];

/// Frames, and how it ended: what was left over, or an error.
fn run(encoding: Encoding, stream: &[u8], sizes: &[usize]) -> (Vec<Frame>, Result<usize, String>) {
    let mut decoder = FrameDecoder::new(encoding, 80);
    let mut frames = Vec::new();
    let mut rest = stream;
    let mut sizes = sizes.iter().cycle();
    while !rest.is_empty() {
        let (chunk, after) = rest.split_at(rest.len().min(sizes.next().copied().unwrap_or(1)));
        rest = after;
        decoder.push(Bytes::copy_from_slice(chunk));
        loop {
            match decoder.next_frame() {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(error) => return (frames, Err(error.what)),
            }
        }
    }
    frames.extend(decoder.finish());
    (frames, Ok(decoder.pending()))
}
