//! The latest events of one resource, for watches that follow live or resume at a revision. Pure; bounded by bytes. The newest are
//! there as they are told to all; those before them are for who resumes, and packed.

use super::packed::Packed;
use crate::cache::split_index_key;
use bytes::Bytes;
use std::{collections::VecDeque, sync::Arc};
use yurt_wire::{
    Encoding, Object,
    watch::{EventType, encode},
};

/// What an event costs beside its bytes.
const OVERHEAD: usize = 256;
/// The part of the budget that is for events that are not packed.
const FRESH_PART: usize = 8;

/// What the object of an event was before, as it was told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Before {
    /// It did not exist.
    Nothing,
    /// This.
    Object(Object),
    /// It is not known: the cache learned by another way of something later, which was not told.
    Unknown,
}

/// One change.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Told {
    /// Who has everything up to a revision below this one has to be told. Of a change that was followed this is its revision; of one
    /// that a list showed it may be later.
    pub(crate) due: u64,
    pub(crate) kind: EventType,
    /// `NAMESPACE/NAME`.
    pub(crate) key: Box<str>,
    /// Of the object; for a deletion found out by a list, the last revision at which it may have been there.
    pub(crate) revision: u64,
    /// Afterwards; the last state for a deletion.
    pub(crate) object: Object,
    pub(crate) before: Before,
    /// The event for a watch without selectors, in the encoding of the object, which is a part of it.
    pub(crate) frame: Bytes,
}

impl Told {
    /// Copies the object: it outlives the buffer that it came in.
    pub(crate) fn new(
        due: u64,
        kind: EventType,
        key: &str,
        revision: u64,
        object: &Object,
        before: Before,
    ) -> Self {
        let frame = encode(kind, object, object.encoding);
        let behind = match object.encoding {
            Encoding::Protobuf => 0,
            Encoding::Json => b"}\n".len(),
        };
        let end = frame.len() - behind;
        let object = Object {
            encoding: object.encoding,
            bytes: frame.slice(end - object.bytes.len()..end),
        };
        Self {
            due,
            kind,
            key: key.into(),
            revision,
            object,
            before,
            frame,
        }
    }

    /// A change of `d/a`, of which nothing else matters.
    #[cfg(test)]
    pub(crate) fn sample(revision: u64) -> Self {
        let object = Object {
            encoding: Encoding::Json,
            bytes: "{}".into(),
        };
        let kind = EventType::Modified;
        Self::new(revision, kind, "d/a", revision, &object, Before::Unknown)
    }

    pub(crate) fn place(&self) -> (&str, &str) {
        split_index_key(&self.key)
    }

    fn cost(&self) -> usize {
        let before = match &self.before {
            Before::Object(object) => object.bytes.len(),
            Before::Nothing | Before::Unknown => 0,
        };
        self.frame.len() + before + self.key.len() + OVERHEAD
    }
}

/// A watch's place in a window: counted from the first event ever, and never used again for another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cursor {
    place: u64,
    /// Up to which revision everything was known at the beginning.
    after: u64,
}

/// What comes next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    Told(Arc<Told>),
    /// Nothing yet.
    End,
    /// Something that is not held any more.
    Gone,
}

/// An event that is held.
#[derive(Debug)]
enum Held {
    Fresh(Arc<Told>),
    Packed(Packed),
}

impl Held {
    fn due(&self) -> u64 {
        match self {
            Self::Fresh(told) => told.due,
            Self::Packed(packed) => packed.due,
        }
    }

    fn key(&self) -> &str {
        match self {
            Self::Fresh(told) => &told.key,
            Self::Packed(packed) => &packed.key,
        }
    }

    fn cost(&self) -> usize {
        match self {
            Self::Fresh(told) => told.cost(),
            Self::Packed(packed) => packed.size() + OVERHEAD,
        }
    }

    fn told(&self) -> Option<Arc<Told>> {
        match self {
            Self::Fresh(told) => Some(told.clone()),
            Self::Packed(packed) => packed.told().map(Arc::new),
        }
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Window {
    events: VecDeque<Held>,
    /// How many of them, the oldest, are packed.
    packed: usize,
    /// The place of the first event held.
    first: u64,
    /// Everything that is due after this revision is held.
    floor: u64,
    /// Everything up to here was told.
    revision: u64,
    bytes: usize,
    /// Of these, in events that are not packed.
    fresh: usize,
    budget: usize,
}

impl Window {
    /// Holds about `budget` bytes, and always the latest event.
    pub(crate) fn new(budget: usize) -> Self {
        Self {
            events: VecDeque::new(),
            packed: 0,
            first: 0,
            floor: 0,
            revision: 0,
            bytes: 0,
            fresh: 0,
            budget,
        }
    }

    /// Everything begins anew at a revision: who follows cannot go on.
    pub(crate) fn begin(&mut self, revision: u64) {
        self.first += self.events.len() as u64 + 1;
        self.events = VecDeque::new();
        (self.packed, self.bytes, self.fresh) = (0, 0, 0);
        self.floor = revision;
        self.revision = revision;
    }

    /// Up to which revision everything was told; 0 before the beginning.
    pub(crate) fn revision(&self) -> u64 {
        self.revision
    }

    /// Watches that have everything up to this revision can resume.
    pub(crate) fn floor(&self) -> u64 {
        self.floor
    }

    /// Bytes and events held.
    pub(crate) fn size(&self) -> (usize, usize) {
        (self.bytes, self.events.len())
    }

    /// The latest event of an object; `None` when the window holds nothing about it.
    pub(crate) fn latest(&self, key: &str) -> Option<Arc<Told>> {
        let mut newest_first = self.events.iter().rev();
        newest_first.find(|held| held.key() == key)?.told()
    }

    /// The next event.
    pub(crate) fn push(&mut self, told: Told) {
        self.revision = self.revision.max(told.revision);
        let cost = told.cost();
        self.bytes += cost;
        self.fresh += cost;
        self.events.push_back(Held::Fresh(Arc::new(told)));
        while self.fresh > self.budget / FRESH_PART && self.packed + 1 < self.events.len() {
            self.pack();
        }
        while self.bytes > self.budget && self.events.len() > 1 {
            self.drop_oldest();
        }
    }

    /// Packs the oldest event that is not.
    fn pack(&mut self) {
        if let Some(held) = self.events.get_mut(self.packed)
            && let Held::Fresh(told) = held
        {
            let plain = told.cost();
            *held = Held::Packed(Packed::new(told));
            self.fresh -= plain;
            self.bytes = self.bytes - plain + held.cost();
            self.packed += 1;
        }
    }

    fn drop_oldest(&mut self) {
        if let Some(oldest) = self.events.pop_front() {
            let cost = oldest.cost();
            self.bytes -= cost;
            match oldest {
                Held::Fresh(_) => self.fresh -= cost,
                Held::Packed(_) => self.packed -= 1,
            }
            self.floor = self.floor.max(oldest.due());
            self.first += 1;
        }
    }

    /// Everything up to a revision was told.
    pub(crate) fn advance(&mut self, revision: u64) {
        self.revision = self.revision.max(revision);
    }

    /// Where a watch goes on that has everything up to a revision; `None` when something that it lacks is not held any more.
    pub(crate) fn after(&self, revision: u64) -> Option<Cursor> {
        (revision >= self.floor).then_some(Cursor {
            place: self.first,
            after: revision,
        })
    }

    /// What a watch is to be told next; moves it on.
    pub(crate) fn next(&self, cursor: &mut Cursor) -> Next {
        loop {
            let Some(index) = cursor.place.checked_sub(self.first) else {
                return Next::Gone;
            };
            match usize::try_from(index).ok().and_then(|i| self.events.get(i)) {
                Some(held) => {
                    cursor.place += 1;
                    if held.due() > cursor.after {
                        return held.told().map_or(Next::Gone, Next::Told);
                    }
                }
                None => return Next::End,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn object(name: &str, revision: u64, padding: usize) -> Object {
        let text = format!(
            r#"{{"kind":"Service","apiVersion":"v1","metadata":{{"name":"{name}","namespace":"d","resourceVersion":"{revision}","annotations":{{"p":"{}"}}}}}}"#,
            "x".repeat(padding)
        );
        Object {
            encoding: Encoding::Json,
            bytes: text.into(),
        }
    }

    fn told(revision: u64, padding: usize) -> Told {
        let object = object("a", revision, padding);
        let kind = EventType::Modified;
        Told::new(revision, kind, "d/a", revision, &object, Before::Nothing)
    }

    /// What a watcher is told until the end; `None` when it fell out.
    fn drain(window: &Window, mut cursor: Cursor) -> Option<Vec<u64>> {
        let mut seen = Vec::new();
        loop {
            match window.next(&mut cursor) {
                Next::Told(told) => seen.push(told.revision),
                Next::End => return Some(seen),
                Next::Gone => return None,
            }
        }
    }

    #[test]
    fn an_event_holds_its_object_once() {
        for encoding in [Encoding::Json, Encoding::Protobuf] {
            let object = object("a", 5, 10).to_encoding(encoding).unwrap();
            let told = Told::new(5, EventType::Added, "d/a", 5, &object, Before::Nothing);
            assert_eq!(told.object, object);
            assert_eq!(told.place(), ("d", "a"));
            assert!(
                told.frame
                    .as_ptr_range()
                    .contains(&told.object.bytes.as_ptr())
            );
        }
    }

    #[test]
    fn who_follows_cannot_go_on_after_a_new_beginning() {
        let mut window = Window::new(1 << 20);
        window.begin(10);
        let before = window.after(10).unwrap();
        assert_eq!(window.next(&mut before.clone()), Next::End);
        window.push(told(11, 0));
        let mut after = before;
        assert!(matches!(window.next(&mut after), Next::Told(_)));
        window.begin(5);
        for mut cursor in [before, after] {
            assert_eq!(window.next(&mut cursor), Next::Gone);
        }
        assert_eq!((window.revision(), window.after(4)), (5, None));
        assert_eq!(drain(&window, window.after(7).unwrap()), Some(vec![]));
    }

    #[test]
    fn the_latest_event_is_always_held() {
        let mut window = Window::new(1);
        window.begin(1);
        window.push(told(2, 5000));
        window.push(told(3, 5000));
        assert_eq!(window.after(1), None);
        assert_eq!(drain(&window, window.after(2).unwrap()), Some(vec![3]));
    }

    #[derive(Clone, Debug)]
    enum Step {
        Event {
            gap: u64,
            padding: usize,
        },
        Bookmark {
            gap: u64,
        },
        /// A deletion found out by a list: it was there at the last revision, and is not any more some revisions later.
        Found {
            gap: u64,
        },
        Resume {
            back: u64,
        },
        Read {
            watcher: usize,
            most: usize,
        },
        Begin {
            gap: u64,
        },
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            8 => (1u64..4, 0usize..300).prop_map(|(gap, padding)| Step::Event { gap, padding }),
            2 => (1u64..9).prop_map(|gap| Step::Bookmark { gap }),
            2 => (1u64..9).prop_map(|gap| Step::Found { gap }),
            4 => (0u64..40).prop_map(|back| Step::Resume { back }),
            4 => (0usize..8, 1usize..6).prop_map(|(watcher, most)| Step::Read { watcher, most }),
            1 => (0u64..9).prop_map(|gap| Step::Begin { gap }),
        ]
    }

    struct Watcher {
        cursor: Cursor,
        after: u64,
        /// How much of the log it was told or need not be told.
        read: usize,
    }

    impl Watcher {
        /// The next entry of the log (due, revision) that it must be told.
        fn owed(&mut self, log: &[(u64, u64)]) -> Option<(u64, u64)> {
            while let Some(entry) = log.get(self.read) {
                self.read += 1;
                if entry.0 > self.after {
                    return Some(*entry);
                }
            }
            None
        }
    }

    proptest! {
        /// Whoever resumes within the window is told exactly what is due after its revision, in order, once; outside it nothing, and
        /// it is told so. Whoever falls behind is told so as well.
        #[test]
        fn nothing_is_lost_or_told_twice(budget in 500usize..5000, steps in prop::collection::vec(step(), 1..120)) {
            let mut window = Window::new(budget);
            window.begin(100);
            // Everything that ever was told: when it was due, and its revision.
            let mut log: Vec<(u64, u64)> = Vec::new();
            // How much of it was told before the last beginning.
            let mut begun = 0;
            let mut watchers: Vec<Watcher> = Vec::new();
            for step in steps {
                match step {
                    Step::Event { gap, padding } => {
                        let revision = window.revision() + gap;
                        window.push(told(revision, padding));
                        log.push((revision, revision));
                    }
                    Step::Found { gap } => {
                        let at = window.revision();
                        let object = object("b", at, 0);
                        window.push(Told::new(at + gap, EventType::Deleted, "d/b", at, &object, Before::Unknown));
                        log.push((at + gap, at));
                    }
                    Step::Bookmark { gap } => window.advance(window.revision() + gap),
                    Step::Begin { gap } => {
                        window.begin(window.revision() + 20 + gap);
                        begun = log.len();
                        for watcher in watchers.drain(..) {
                            prop_assert_eq!(drain(&window, watcher.cursor), None);
                        }
                    }
                    Step::Resume { back } => {
                        let after = window.revision().saturating_sub(back);
                        match window.after(after) {
                            Some(cursor) => watchers.push(Watcher { cursor, after, read: begun }),
                            None => prop_assert!(after < window.floor()),
                        }
                    }
                    Step::Read { watcher, most } => {
                        if watchers.is_empty() { continue; }
                        let index = watcher % watchers.len();
                        let watcher = &mut watchers[index];
                        let mut gone = false;
                        for _ in 0..most {
                            match window.next(&mut watcher.cursor) {
                                Next::Told(told) => {
                                    prop_assert_eq!(Some((told.due, told.revision)), watcher.owed(&log));
                                }
                                Next::End => {
                                    prop_assert_eq!(watcher.owed(&log), None);
                                    break;
                                }
                                Next::Gone => {
                                    gone = true;
                                    break;
                                }
                            }
                        }
                        if gone {
                            watchers.swap_remove(index);
                        }
                    }
                }
                let (bytes, events) = window.size();
                prop_assert!(bytes <= budget || events == 1);
                prop_assert_eq!(bytes, window.events.iter().map(Held::cost).sum::<usize>());
                let (packed, fresh): (Vec<_>, Vec<_>) = window.events.iter().partition(|held| matches!(held, Held::Packed(_)));
                prop_assert_eq!(packed.len(), window.packed);
                let fresh_bytes = fresh.iter().map(|held| held.cost()).sum::<usize>();
                prop_assert!(fresh_bytes <= budget / FRESH_PART || fresh.len() == 1);
            }
            for mut watcher in watchers {
                if let Some(seen) = drain(&window, watcher.cursor) {
                    let owed: Vec<u64> = std::iter::from_fn(|| watcher.owed(&log)).map(|(_, revision)| revision).collect();
                    prop_assert_eq!(seen, owed);
                }
            }
        }
    }
}
