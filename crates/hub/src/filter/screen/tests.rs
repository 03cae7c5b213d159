use super::*;
use crate::filter::{BuiltIn, Context, Filter, Force, Inputs, Scope, Selection, Verdict, value_of};
use proptest::prelude::*;
use serde_json::{Value, json};
use std::{collections::BTreeMap, sync::Arc};
use yurt_wire::{
    ObjectMeta, RequestInfo, Verb,
    watch::{FrameDecoder, bookmark},
};

/// Drops or changes objects by their label and the name of the pool.
#[derive(Debug)]
struct Picky;

impl Filter for Picky {
    fn name(&self) -> &'static str {
        "picky"
    }
    fn scope(&self) -> Scope {
        Scope::of(&["client"], &[("", "configmaps")], &[Verb::Watch])
    }
    fn inputs(&self) -> Inputs {
        Inputs::POOL
    }
    fn concerns(&self, _: &Object, meta: &ObjectMeta, _: &Context) -> bool {
        value_of(&meta.labels, "class") != Some("plain")
    }
    fn apply(&self, object: &mut Value, context: &Context) -> Verdict {
        let pool = context.pool.as_str();
        match (object["metadata"]["labels"]["class"].as_str(), pool) {
            (Some("not-in-a"), "a") | (Some("not-in-b"), "b") => Verdict::Dropped,
            (Some("not-in-a" | "marked"), _) => {
                object["data"]["pool"] = pool.into();
                Verdict::Changed
            }
            _ => Verdict::Kept,
        }
    }
}

fn info() -> RequestInfo {
    RequestInfo::parse(&http::Method::GET, "/api/v1/configmaps", Some("watch=true"))
}

/// `None` where nothing is filtered.
fn chain(filter: &Arc<dyn Filter>, pool: Option<&str>) -> Option<Chain> {
    let mut context = Context::of_node("n");
    context.pool = pool?.to_owned();
    let selection = Selection {
        enabled: true,
        ..Selection::default()
    };
    let force = Force::of(
        &BuiltIn::default(),
        std::slice::from_ref(filter),
        &selection,
        context,
    );
    Arc::new(force).chain("client/1", &info())
}

fn config_map(name: &str, class: &str, revision: u64, encoding: Encoding) -> Object {
    let value = json!({"apiVersion": "v1", "kind": "ConfigMap", "data": {"revision": revision.to_string()},
        "metadata": {"namespace": "d", "name": name, "resourceVersion": revision.to_string(), "labels": {"class": class}}});
    Object::from_json_value(&value, encoding).unwrap()
}

fn frames(bytes: Bytes, encoding: Encoding) -> Vec<Frame> {
    let mut decoder = FrameDecoder::new(encoding, 1 << 20);
    decoder.push(bytes);
    std::iter::from_fn(|| decoder.next_frame().unwrap()).collect()
}

/// A client that keeps what it is told, as informers do.
#[derive(Default)]
struct Client {
    objects: BTreeMap<String, Value>,
    events: Vec<(EventType, String)>,
}

impl Client {
    fn told(&mut self, bytes: Option<Bytes>, encoding: Encoding) {
        for frame in bytes.into_iter().flat_map(|bytes| frames(bytes, encoding)) {
            let event = frame.event.unwrap();
            let name = event.object.key().unwrap().name.into_owned();
            self.events.push((event.kind, name.clone()));
            match event.kind {
                EventType::Added | EventType::Modified => {
                    self.objects
                        .insert(name, event.object.to_json_value().unwrap());
                }
                EventType::Deleted => {
                    self.objects.remove(&name);
                }
                EventType::Bookmark | EventType::Error => {}
            }
        }
    }
}

fn listed(chain: &Option<Chain>, objects: &BTreeMap<String, Object>) -> BTreeMap<String, Value> {
    let show = |(name, object): (&String, &Object)| {
        let shown = match chain {
            None => object.clone(),
            Some(chain) => match chain.filter(object, &Metrics::default()) {
                Outcome::Kept => object.clone(),
                Outcome::Changed(changed) => changed,
                Outcome::Dropped => return None,
            },
        };
        Some((name.clone(), shown.to_json_value().unwrap()))
    };
    objects.iter().filter_map(show).collect()
}

#[derive(Clone, Debug)]
enum Step {
    Put(u8, &'static str),
    Delete(u8),
    Bookmark,
    /// The stream tells so many events more; the cache knows them all.
    Deliver(u8),
    /// Other inputs; `None`: nothing is filtered any more.
    Pool(Option<&'static str>),
    /// The client comes back where it was, and the inputs changed meanwhile; whether the hub remembers.
    Reconnect(&'static str, bool),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let class = prop_oneof![
        Just("plain"),
        Just("not-in-a"),
        Just("not-in-b"),
        Just("marked")
    ];
    let pool = || prop_oneof![Just("a"), Just("b"), Just("")];
    let step = prop_oneof![
        4 => (0..4_u8, class).prop_map(|(name, class)| Step::Put(name, class)),
        1 => (0..4_u8).prop_map(Step::Delete),
        1 => Just(Step::Bookmark),
        4 => (1..4_u8).prop_map(Step::Deliver),
        2 => prop::option::weighted(0.8, pool()).prop_map(Step::Pool),
        1 => (pool(), any::<bool>()).prop_map(|(pool, known)| Step::Reconnect(pool, known)),
    ];
    prop::collection::vec(step, 0..40)
}

proptest! {
    /// Whatever happens in the cloud and to the inputs, in whatever order it is told: what a watcher knows in the end is the filtered
    /// list.
    #[test]
    fn watches_and_lists_agree(steps in steps(), protobuf in any::<bool>(), first in prop_oneof![Just("a"), Just("b")]) {
        let encoding = if protobuf { Encoding::Protobuf } else { Encoding::Json };
        let filter: Arc<dyn Filter> = Arc::new(Picky);
        let metrics = Metrics::default();
        let mut revision = 0;
        let mut cloud = BTreeMap::new();
        for (name, class) in [("o0", "not-in-a"), ("o1", "marked"), ("o2", "plain")] {
            revision += 1;
            cloud.insert(name.to_owned(), config_map(name, class, revision, encoding));
        }
        let mut now = chain(&filter, Some(first));
        let mut client = Client { objects: listed(&now, &cloud), events: Vec::new() };
        let mut screen = Screen::new(now.clone().unwrap(), encoding, revision, metrics.clone());
        let mut log: Vec<Bytes> = Vec::new();
        let mut told = 0;
        let deliver = |screen: &mut Screen, client: &mut Client, bytes: &Bytes| {
            for frame in frames(bytes.clone(), encoding) {
                let told = screen.event(frame);
                client.told(told, encoding);
            }
        };
        for step in steps {
            match step {
                Step::Put(name, class) => {
                    revision += 1;
                    let name = format!("o{name}");
                    let object = config_map(&name, class, revision, encoding);
                    let kind = if cloud.contains_key(&name) { EventType::Modified } else { EventType::Added };
                    log.push(encode(kind, &object, encoding));
                    cloud.insert(name, object);
                }
                Step::Delete(name) => {
                    if let Some(object) = cloud.remove(&format!("o{name}")) {
                        revision += 1;
                        let object = object.with_resource_version(&revision.to_string()).unwrap();
                        log.push(encode(EventType::Deleted, &object, encoding));
                    }
                }
                Step::Bookmark => {
                    let gvk = yurt_wire::Gvk::from_api_version("v1", "ConfigMap");
                    let object = bookmark(&gvk, &revision.to_string(), false, encoding);
                    log.push(encode(EventType::Bookmark, &object, encoding));
                }
                Step::Deliver(count) => {
                    for bytes in log.iter().skip(told).take(count.into()) {
                        deliver(&mut screen, &mut client, bytes);
                        told += 1;
                    }
                }
                Step::Pool(pool) => {
                    let before = Before::Chain(now);
                    now = chain(&filter, pool);
                    screen.set_chain(now.clone());
                    for object in cloud.values() {
                        client.told(screen.retell(&before, object), encoding);
                    }
                }
                Step::Reconnect(pool, known) => {
                    let before = if known { Before::Chain(now) } else { Before::Unknown };
                    now = chain(&filter, Some(pool));
                    screen = Screen::new(now.clone().unwrap(), encoding, screen.position(), metrics.clone());
                    for object in cloud.values() {
                        client.told(screen.retell(&before, object), encoding);
                    }
                }
            }
        }
        for bytes in &log[told..] {
            deliver(&mut screen, &mut client, bytes);
        }
        prop_assert_eq!(client.objects, listed(&now, &cloud));
    }
}

/// What is told of one object by events of classes, in order.
fn story(events: &[(EventType, &str)], encoding: Encoding) -> Vec<EventType> {
    let filter: Arc<dyn Filter> = Arc::new(Picky);
    let chain = chain(&filter, Some("a")).unwrap();
    let mut screen = Screen::new(chain, encoding, 0, Metrics::default());
    let mut client = Client::default();
    for (at, (kind, class)) in events.iter().enumerate() {
        let object = config_map("o", class, at as u64 + 1, encoding);
        for frame in frames(encode(*kind, &object, encoding), encoding) {
            let raw = frame.raw.clone();
            let told = screen.event(frame);
            if *class == "plain"
                && client
                    .events
                    .last()
                    .is_none_or(|(kind, _)| *kind != EventType::Deleted)
            {
                // What nothing is done to passes as it came.
                assert_eq!(told.as_ref(), Some(&raw));
            }
            client.told(told, encoding);
        }
    }
    client.events.into_iter().map(|(kind, _)| kind).collect()
}

#[test]
fn dropped_objects_come_and_go() {
    use EventType::{Added, Deleted, Modified};
    for encoding in [Encoding::Json, Encoding::Protobuf] {
        for (events, expected) in [
            (&[(Added, "not-in-a")][..], &[][..]),
            (
                &[
                    (Added, "not-in-a"),
                    (Modified, "not-in-a"),
                    (Deleted, "not-in-a"),
                ],
                &[],
            ),
            (
                &[
                    (Added, "plain"),
                    (Modified, "not-in-a"),
                    (Modified, "not-in-a"),
                ],
                &[Added, Deleted],
            ),
            (
                &[
                    (Added, "plain"),
                    (Modified, "not-in-a"),
                    (Modified, "plain"),
                    (Modified, "plain"),
                ],
                &[Added, Deleted, Added, Modified],
            ),
            (&[(Added, "not-in-a"), (Modified, "marked")], &[Added]),
            (&[(Added, "marked"), (Deleted, "marked")], &[Added, Deleted]),
            // From before the watch: it is not known whether the client has it.
            (&[(Modified, "not-in-a"), (Deleted, "not-in-a")], &[Deleted]),
            (&[(Deleted, "not-in-a")], &[Deleted]),
        ] {
            assert_eq!(story(events, encoding), expected, "{events:?}");
        }
    }
}

#[test]
fn what_is_not_understood_passes() {
    let filter: Arc<dyn Filter> = Arc::new(Picky);
    let mut screen = Screen::new(
        chain(&filter, Some("a")).unwrap(),
        Encoding::Json,
        0,
        Metrics::default(),
    );
    for text in [
        "{\"type\":\"NEW\",\"object\":{}}\n",
        "{\"type\":\"ADDED\",\"object\":{\"kind\":7}}\n",
        "{\"type\":\"ERROR\",\"object\":{\"kind\":\"Status\",\"apiVersion\":\"v1\",\"code\":410}}\n",
        "{\"type\":\"ADDED\",\"object\":{\"kind\":\"ConfigMap\",\"apiVersion\":\"v1\",\"metadata\":{\"name\":\"x\",\"labels\":{\"class\":7}}}}\n",
    ] {
        let bytes = Bytes::from_static(text.as_bytes());
        for frame in frames(bytes.clone(), Encoding::Json) {
            assert_eq!(screen.event(frame), Some(bytes.clone()));
        }
    }
}
