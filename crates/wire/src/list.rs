//! Lists as bytes: split into complete objects, and joined from them, without decoding the items.

use crate::{
    Encoding, Gvk, json,
    object::{Malformed, Object, insert_member, shown},
    protobuf::{self, ENVELOPE_TAIL, Envelope, Reader, WireError, Writer, bytes_field_len},
};
use bytes::Bytes;
use serde::{
    Deserialize, Deserializer,
    de::{self, IgnoredAny, MapAccess, SeqAccess, Visitor},
};
use serde_json::value::RawValue;
use std::fmt;

/// A list taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SplitList {
    /// `PodList` etc.
    pub gvk: Gvk,
    /// `""` when absent.
    pub resource_version: String,
    /// `""` when the list is complete.
    pub continue_token: String,
    /// `remainingItemCount`, when given.
    pub remaining: Option<i64>,
    /// Each item as a complete object: protobuf items in their own envelope, JSON items with apiVersion and
    /// kind filled in from the list's.
    pub items: Vec<Object>,
}

/// What the items of a list may cost beside their own bytes, as a multiple of the list's bytes: see [`split`].
const MAX_OVERHEAD: usize = 4;
/// What they may cost in any case, in bytes.
const FREE_OVERHEAD: usize = 4096;

/// Takes a list apart. `Status`, `Table` and single objects are `Malformed` ("not a list").
///
/// Protobuf items are copied once, each in its own envelope, into one buffer that all of them share; a JSON item
/// that carries its type already shares the list's bytes, any other is copied with it.
///
/// An item costs an [`Object`] and its type besides its bytes. A server's items are much larger than that, but two
/// bytes can claim to be an item: a list whose items would cost more than 4 times its size (and 4 KiB) in this way
/// is `Malformed`, so that a body of 1 MiB never takes more than some MiB apart.
pub fn split(bytes: &Bytes, encoding: Encoding) -> Result<SplitList, Malformed> {
    match encoding {
        Encoding::Protobuf => split_protobuf(bytes),
        Encoding::Json => split_json(bytes),
    }
}

/// The kind of the items of a list kind; `None` when it is not one. The core `List` holds objects of any kind
/// that carry their own type.
pub fn item_kind(list_kind: &str) -> Option<&str> {
    match list_kind {
        "APIGroupList" | "APIResourceList" => None,
        _ => list_kind.strip_suffix("List"),
    }
}

fn not_a_list(encoding: Encoding, kind: &str) -> Malformed {
    Malformed {
        encoding,
        what: format!("not a list: {:?}", shown(kind)),
    }
}

/// Refuses a list that would cost too much apart; `added` is what each item gets besides its own bytes.
fn check_overhead(
    encoding: Encoding,
    list: usize,
    items: usize,
    added: usize,
) -> Result<(), Malformed> {
    if !affordable(list, items, added) {
        return Err(Malformed {
            encoding,
            what: format!("{items} items in a list of {list} bytes"),
        });
    }
    Ok(())
}

fn affordable(list: usize, items: usize, added: usize) -> bool {
    let overhead = items.saturating_mul(size_of::<Object>().saturating_add(added));
    overhead
        <= list
            .saturating_mul(MAX_OVERHEAD)
            .saturating_add(FREE_OVERHEAD)
}

/// Field numbers of a list's metadata and items. Every list has them in this order but one.
fn list_fields(gvk: &Gvk) -> (u32, u32) {
    if gvk.kind == "PartialObjectMetadataList" && gvk.version == "v1beta1" {
        (2, 1)
    } else {
        (1, 2)
    }
}

fn split_protobuf(bytes: &Bytes) -> Result<SplitList, Malformed> {
    let envelope = Envelope::open(bytes)?;
    let item_kind = item_kind(envelope.kind)
        .filter(|kind| !kind.is_empty())
        .ok_or_else(|| not_a_list(Encoding::Protobuf, envelope.kind))?;
    let mut list = SplitList {
        gvk: envelope.gvk(),
        resource_version: String::new(),
        continue_token: String::new(),
        remaining: None,
        items: Vec::new(),
    };
    let (metadata, items) = list_fields(&list.gvk);
    let (mut count, mut fields_len) = (0, 0);
    let mut fields = Reader::new(envelope.raw);
    while let Some(field) = fields.next_field()? {
        if field.number == items {
            count += 1;
            fields_len += bytes_field_len(2, field.bytes()?.len());
        } else if field.number == metadata {
            read_list_meta(field.bytes()?, &mut list)?;
        }
    }
    let start = protobuf::envelope_type(envelope.api_version, item_kind, 0).into_vec();
    let around = start.len() + ENVELOPE_TAIL.len();
    check_overhead(Encoding::Protobuf, bytes.len(), count, around)?;
    let mut sealed = Writer::with_capacity(count * around + fields_len);
    for message in messages(envelope.raw, items) {
        sealed.raw(&start);
        sealed.bytes(2, message);
        sealed.raw(ENVELOPE_TAIL);
    }
    let mut sealed = Bytes::from(sealed.into_vec());
    list.items.reserve_exact(count);
    list.items
        .extend(messages(envelope.raw, items).map(|message| Object {
            encoding: Encoding::Protobuf,
            bytes: sealed.split_to(around + bytes_field_len(2, message.len())),
        }));
    Ok(list)
}

/// The messages at one field of a message that was walked before without error.
fn messages(message: &[u8], number: u32) -> impl Iterator<Item = &[u8]> {
    let mut fields = Reader::new(message);
    std::iter::from_fn(move || {
        loop {
            let field = fields.next_field().ok()??;
            if field.number == number {
                return field.bytes().ok();
            }
        }
    })
}

/// ListMeta: 2 resourceVersion, 3 continue, 4 remainingItemCount.
fn read_list_meta(message: &[u8], list: &mut SplitList) -> Result<(), WireError> {
    let mut fields = Reader::new(message);
    while let Some(field) = fields.next_field()? {
        match field.number {
            2 => list.resource_version = field.str()?.to_owned(),
            3 => list.continue_token = field.str()?.to_owned(),
            4 => list.remaining = Some(field.int()?),
            _ => {}
        }
    }
    Ok(())
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct JsonListMeta {
    resource_version: Option<String>,
    #[serde(rename = "continue")]
    continue_token: Option<String>,
    remaining_item_count: Option<i64>,
}

/// A list in one walk: the items are known by their borders only, since their type may come after them.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct JsonList<'a> {
    api_version: Option<String>,
    kind: Option<String>,
    metadata: Option<JsonListMeta>,
    #[serde(borrow, default)]
    items: JsonItems<'a>,
}

/// `items`, apart from what else may stand under that name in an object that is no list.
#[derive(Default)]
enum JsonItems<'a> {
    #[default]
    Absent,
    Other,
    List(Vec<&'a RawValue>),
}

impl<'de: 'a, 'a> Deserialize<'de> for JsonItems<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(JsonItemsVisitor)
    }
}

struct JsonItemsVisitor;

impl<'de> Visitor<'de> for JsonItemsVisitor {
    type Value = JsonItems<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of objects")
    }
    fn visit_unit<E: de::Error>(self) -> Result<Self::Value, E> {
        Ok(JsonItems::List(Vec::new()))
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        let mut items = Vec::new();
        let mut len = 0;
        while let Some(item) = seq.next_element::<&RawValue>()? {
            len += item.get().len() + 1;
            items.push(item);
            // The whole is checked when the type of the items is known; until then no more is held than that allows.
            if !affordable(len, items.len(), 0) {
                return Err(de::Error::custom("too many tiny items"));
            }
        }
        Ok(JsonItems::List(items))
    }
    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
        IgnoredAny.visit_map(map)?;
        Ok(JsonItems::Other)
    }
    fn visit_str<E: de::Error>(self, _: &str) -> Result<Self::Value, E> {
        Ok(JsonItems::Other)
    }
    fn visit_bool<E: de::Error>(self, _: bool) -> Result<Self::Value, E> {
        Ok(JsonItems::Other)
    }
    fn visit_u64<E: de::Error>(self, _: u64) -> Result<Self::Value, E> {
        Ok(JsonItems::Other)
    }
    fn visit_i64<E: de::Error>(self, _: i64) -> Result<Self::Value, E> {
        Ok(JsonItems::Other)
    }
    fn visit_f64<E: de::Error>(self, _: f64) -> Result<Self::Value, E> {
        Ok(JsonItems::Other)
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct JsonType {
    api_version: Option<IgnoredAny>,
    kind: Option<IgnoredAny>,
}

fn split_json(bytes: &Bytes) -> Result<SplitList, Malformed> {
    let list: JsonList<'_> = serde_json::from_slice(bytes)?;
    let (api_version, kind) = (
        list.api_version.unwrap_or_default(),
        list.kind.unwrap_or_default(),
    );
    let (Some(item_kind), JsonItems::List(items)) = (item_kind(&kind), list.items) else {
        return Err(not_a_list(Encoding::Json, &kind));
    };
    let head = TypeMembers::new(&api_version, item_kind);
    check_overhead(Encoding::Json, bytes.len(), items.len(), head.both.len())?;
    let meta = list.metadata.unwrap_or_default();
    Ok(SplitList {
        gvk: Gvk::from_api_version(&api_version, &kind),
        resource_version: meta.resource_version.unwrap_or_default(),
        continue_token: meta.continue_token.unwrap_or_default(),
        remaining: meta.remaining_item_count,
        items: items
            .into_iter()
            .map(|item| {
                Ok(Object {
                    encoding: Encoding::Json,
                    bytes: head.complete(bytes, item)?,
                })
            })
            .collect::<Result<_, Malformed>>()?,
    })
}

/// What a JSON item may lack: `"kind":"Pod"` and `"apiVersion":"v1"`.
struct TypeMembers {
    kind: Vec<u8>,
    api_version: Vec<u8>,
    both: Vec<u8>,
}

impl TypeMembers {
    fn new(api_version: &str, kind: &str) -> Self {
        let member = |name: &[u8], value: &str| {
            let mut member = name.to_vec();
            json::push_string(&mut member, value);
            member
        };
        let kind = member(br#""kind":"#, kind);
        let api_version = member(br#""apiVersion":"#, api_version);
        Self {
            both: [&kind[..], b",", &api_version].concat(),
            kind,
            api_version,
        }
    }

    /// The item with its type, within `list` (which it is a slice of) when it has it already.
    fn complete(&self, list: &Bytes, item: &RawValue) -> Result<Bytes, Malformed> {
        let text = item.get().as_bytes();
        if text.first() != Some(&b'{') {
            return Err(Malformed {
                encoding: Encoding::Json,
                what: "an item is not an object".to_owned(),
            });
        }
        let JsonType { api_version, kind } = serde_json::from_slice(text)?;
        Ok(match (kind.is_some(), api_version.is_some()) {
            (true, true) => list.slice_ref(text),
            (false, false) => insert_member(text, 0, &self.both),
            (false, true) => insert_member(text, 0, &self.kind),
            (true, false) => insert_member(text, 0, &self.api_version),
        })
    }
}

/// The head of a list that is joined from items.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListHead {
    /// `PodList` etc.
    pub gvk: Gvk,
    /// Resource version of the list.
    pub resource_version: String,
    /// `""` when complete.
    pub continue_token: String,
    /// `remainingItemCount`.
    pub remaining: Option<i64>,
}

/// Joins items (each in `encoding`; the caller transcodes others first) to a list body in chunks, so that a
/// large list is never held twice: the head, the items with what separates them, the tail. The items' bytes are
/// shared, not copied. Protobuf items lose their envelope; JSON items keep apiVersion and kind (which clients
/// ignore).
pub fn join(
    head: &ListHead,
    encoding: Encoding,
    items: &[Object],
) -> Result<Vec<Bytes>, Malformed> {
    if let Some(item) = items.iter().find(|item| item.encoding != encoding) {
        return Err(Malformed {
            encoding,
            what: format!("an item of the list is in {:?}", item.encoding),
        });
    }
    match encoding {
        Encoding::Protobuf => join_protobuf(head, items),
        Encoding::Json => Ok(join_json(head, items)),
    }
}

fn join_protobuf(head: &ListHead, items: &[Object]) -> Result<Vec<Bytes>, Malformed> {
    let (metadata, items_number) = list_fields(&head.gvk);
    let mut fields = Vec::with_capacity(items.len() * if items_number == 2 { 1 } else { 2 });
    for item in items {
        let envelope = Envelope::open(&item.bytes)?;
        if items_number == 2 && envelope.raw_field.first() == Some(&0x12) {
            // The envelope holds the message as its own field 2, which is just how a list holds an item.
            fields.push(item.bytes.slice_ref(envelope.raw_field));
        } else {
            let mut tag = Writer::with_capacity(11);
            tag.bytes_head(items_number, envelope.raw.len());
            fields.push(tag.into_vec().into());
            fields.push(item.bytes.slice_ref(envelope.raw));
        }
    }
    let mut list_meta =
        Writer::with_capacity(32 + head.resource_version.len() + head.continue_token.len());
    list_meta.str(1, "");
    list_meta.str(2, &head.resource_version);
    list_meta.str(3, &head.continue_token);
    if let Some(remaining) = head.remaining {
        list_meta.int(4, remaining);
    }
    let raw_len =
        bytes_field_len(metadata, list_meta.len()) + fields.iter().map(Bytes::len).sum::<usize>();
    let mut start = protobuf::envelope_head_with_room(
        &head.gvk.api_version(),
        &head.gvk.kind,
        raw_len,
        bytes_field_len(metadata, list_meta.len()),
    );
    let mut end = Writer::new();
    let list_meta = list_meta.into_vec();
    if metadata < items_number {
        start.bytes(metadata, &list_meta);
    } else {
        end.bytes(metadata, &list_meta);
    }
    end.raw(ENVELOPE_TAIL);
    let mut chunks = Vec::with_capacity(fields.len() + 2);
    chunks.push(Bytes::from(start.into_vec()));
    chunks.append(&mut fields);
    chunks.push(Bytes::from(end.into_vec()));
    Ok(chunks)
}

fn join_json(head: &ListHead, items: &[Object]) -> Vec<Bytes> {
    let mut start = br#"{"kind":"#.to_vec();
    json::push_string(&mut start, &head.gvk.kind);
    start.extend_from_slice(br#","apiVersion":"#);
    json::push_string(&mut start, &head.gvk.api_version());
    start.extend_from_slice(br#","metadata":{"resourceVersion":"#);
    json::push_string(&mut start, &head.resource_version);
    if !head.continue_token.is_empty() {
        start.extend_from_slice(br#","continue":"#);
        json::push_string(&mut start, &head.continue_token);
    }
    if let Some(remaining) = head.remaining {
        start.extend_from_slice(format!(r#","remainingItemCount":{remaining}"#).as_bytes());
    }
    start.extend_from_slice(br#"},"items":["#);
    let mut chunks = Vec::with_capacity(items.len() * 2 + 1);
    chunks.push(Bytes::from(start));
    for (index, item) in items.iter().enumerate() {
        if index > 0 {
            chunks.push(Bytes::from_static(b","));
        }
        chunks.push(item.bytes.clone());
    }
    chunks.push(Bytes::from_static(b"]}"));
    chunks
}
