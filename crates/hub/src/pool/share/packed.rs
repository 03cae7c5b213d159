//! An event as a window keeps it for who resumes: compressed. What an object was before is nearly what it is, and costs next to nothing.

use super::window::{Before, Told};
use bytes::Bytes;
use lz4_flex::block::{compress_prepend_size, decompress_size_prepended};
use yurt_wire::{Encoding, Object, watch::EventType};

/// See the module; the frame is made again when it is wanted.
#[derive(Debug)]
pub(super) struct Packed {
    pub(super) due: u64,
    kind: EventType,
    pub(super) key: Box<str>,
    revision: u64,
    encoding: Encoding,
    before: Past,
    /// The object, of this length, and after it what it was before.
    bytes: Box<[u8]>,
    length: usize,
}

/// [`Before`] without the object.
#[derive(Clone, Copy, Debug)]
enum Past {
    Nothing,
    Object(Encoding),
    Unknown,
}

impl Packed {
    pub(super) fn new(told: &Told) -> Self {
        let (before, past): (&[u8], Past) = match &told.before {
            Before::Nothing => (&[], Past::Nothing),
            Before::Object(object) => (&object.bytes, Past::Object(object.encoding)),
            Before::Unknown => (&[], Past::Unknown),
        };
        let object = &told.object;
        let plain = [&object.bytes, before].concat();
        Self {
            due: told.due,
            kind: told.kind,
            key: told.key.clone(),
            revision: told.revision,
            encoding: object.encoding,
            before: past,
            bytes: compress_prepend_size(&plain).into(),
            length: object.bytes.len(),
        }
    }

    /// The event again; `None` is no case that is known of.
    pub(super) fn told(&self) -> Option<Told> {
        let mut object = Bytes::from(decompress_size_prepended(&self.bytes).ok()?);
        let before = object.split_off(self.length.min(object.len()));
        let before = match self.before {
            Past::Nothing => Before::Nothing,
            Past::Object(encoding) => Before::Object(Object {
                encoding,
                bytes: before,
            }),
            Past::Unknown => Before::Unknown,
        };
        let object = Object {
            encoding: self.encoding,
            bytes: object,
        };
        let (kind, key) = (self.kind, &self.key);
        Some(Told::new(
            self.due,
            kind,
            key,
            self.revision,
            &object,
            before,
        ))
    }

    /// Bytes beside a fixed part.
    pub(super) fn size(&self) -> usize {
        self.bytes.len() + self.key.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn object() -> impl Strategy<Value = Object> {
        let encoding = prop_oneof![Just(Encoding::Json), Just(Encoding::Protobuf)];
        let bytes = prop::collection::vec(any::<u8>(), 0..300);
        (encoding, bytes).prop_map(|(encoding, bytes)| Object {
            encoding,
            bytes: bytes.into(),
        })
    }

    fn before() -> impl Strategy<Value = Before> {
        prop_oneof![
            Just(Before::Nothing),
            Just(Before::Unknown),
            object().prop_map(Before::Object),
        ]
    }

    proptest! {
        #[test]
        fn what_is_packed_comes_out_again(
            object in object(), before in before(), due in any::<u64>(), revision in any::<u64>(), key in "[a-z]{0,9}/[a-z]{1,9}",
        ) {
            for kind in [EventType::Added, EventType::Modified, EventType::Deleted] {
                let told = Told::new(due, kind, &key, revision, &object, before.clone());
                prop_assert_eq!(Packed::new(&told).told(), Some(told));
            }
        }
    }

    #[test]
    fn what_was_before_costs_little_beside_what_is() {
        let mut random = fastrand::Rng::with_seed(7);
        let text: String = (0..200)
            .map(|n| format!(r#"{{"name":"pod-{n}","uid":"{:x}"}},"#, random.u64(..)))
            .collect();
        let object = Object {
            encoding: Encoding::Json,
            bytes: text.into(),
        };
        let kind = EventType::Modified;
        let size = |before| {
            let told = Told::new(2, kind, "d/a", 2, &object, before);
            Packed::new(&told).size()
        };
        let alone = size(Before::Nothing);
        assert!(alone < object.bytes.len(), "{alone}");
        let both = size(Before::Object(object.clone()));
        assert!(both < alone + alone / 10, "{alone} {both}");
    }
}
