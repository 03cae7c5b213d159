//! A source that changes at random, is lost and lists again; other readers of the same cache; clients that come, resume and are slow.
//! Whatever happens, every client ends with the state that it asked for, and its stream goes forward.

use super::{
    Feed,
    teller::{Heard, Listing, Teller},
};
use crate::{
    cache::{Cache, CacheConfig},
    caller::Caller,
    journal::{Journal, JournalConfig},
    offline::{LocalWatch, Offline},
    query::Query,
};
use http::{HeaderMap, HeaderValue, Method, header};
use proptest::prelude::*;
use serde_json::{Value, json};
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use yurt_wire::{
    Encoding, Gvk, Gvr, Object, RequestInfo,
    list::SplitList,
    watch::{Event, EventType},
};

const PATH: &str = "/api/v1/services";
const RED: &str = "&labelSelector=color%3Dred";

fn gvr() -> Gvr {
    Gvr::new("", "v1", "services")
}

fn service(name: u8, red: bool, revision: u64) -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": format!("s{name}"), "namespace": "d",
        "uid": format!("u{name}"), "resourceVersion": revision.to_string(),
        "labels": {"color": if red { "red" } else { "blue" }}}, "spec": {"clusterIP": "10.0.0.1"}})
}

fn object(value: &Value) -> Object {
    Object::from_json_value(value, Encoding::Protobuf).expect("protobuf")
}

#[derive(Clone, Debug)]
enum Step {
    Put {
        name: u8,
        red: bool,
    },
    Delete {
        name: u8,
    },
    Other,
    /// The feed is told what happened since.
    Follow,
    Bookmark,
    /// The source does not hold what happened since.
    List,
    /// Somebody reads an object beside the feed.
    Beside {
        name: u8,
    },
    Open {
        peer: bool,
        red: bool,
        resume: bool,
    },
    Read {
        client: usize,
        most: usize,
    },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0u8..5, any::<bool>()).prop_map(|(name, red)| Step::Put { name, red }),
        3 => (0u8..5).prop_map(|name| Step::Delete { name }),
        1 => Just(Step::Other),
        5 => Just(Step::Follow),
        2 => Just(Step::Bookmark),
        2 => Just(Step::List),
        2 => (0u8..5).prop_map(|name| Step::Beside { name }),
        3 => any::<(bool, bool, bool)>().prop_map(|(peer, red, resume)| Step::Open { peer, red, resume }),
        4 => (0usize..4, 1usize..5).prop_map(|(client, most)| Step::Read { client, most }),
    ]
}

/// The cloud.
#[derive(Default)]
struct Truth {
    revision: u64,
    objects: BTreeMap<u8, Value>,
    log: Vec<(u64, EventType, Value)>,
}

impl Truth {
    fn put(&mut self, name: u8, red: bool) {
        self.revision += 1;
        let value = service(name, red, self.revision);
        let kind = match self.objects.insert(name, value.clone()) {
            Some(_) => EventType::Modified,
            None => EventType::Added,
        };
        self.log.push((self.revision, kind, value));
    }

    fn delete(&mut self, name: u8) {
        let Some(mut last) = self.objects.remove(&name) else {
            return;
        };
        self.revision += 1;
        last["metadata"]["resourceVersion"] = self.revision.to_string().into();
        self.log.push((self.revision, EventType::Deleted, last));
    }

    fn list(&self) -> SplitList {
        SplitList {
            gvk: Gvk {
                group: String::new(),
                version: "v1".into(),
                kind: "ServiceList".into(),
            },
            resource_version: self.revision.to_string(),
            continue_token: String::new(),
            remaining: None,
            items: self.objects.values().map(object).collect(),
        }
    }

    /// Names and revisions, as a client with or without the selector sees them.
    fn seen(&self, red: bool) -> BTreeMap<String, String> {
        let values = self.objects.values();
        let of = values.filter(|value| !red || value["metadata"]["labels"]["color"] == "red");
        of.map(named).collect()
    }
}

fn named(value: &Value) -> (String, String) {
    let text = |field: &str| {
        value["metadata"][field]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    };
    (text("name"), text("resourceVersion"))
}

struct Client {
    watch: Option<LocalWatch>,
    red: bool,
    state: BTreeMap<String, String>,
    /// Where a client goes on that comes again.
    revision: u64,
    /// It has the whole state of the beginning: only then it can.
    settled: bool,
}

impl Client {
    fn open(
        offline: &Offline,
        feed: &Arc<Feed>,
        peer: bool,
        red: bool,
        from: Option<&Self>,
    ) -> Self {
        let since = from.map_or(0, |from| from.revision);
        let query = format!(
            "watch=true&resourceVersion={since}{}",
            if red { RED } else { "" }
        );
        let info = RequestInfo::parse(&Method::GET, PATH, Some(&query));
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT, HeaderValue::from_static("application/json"));
        let caller = match peer {
            true => Caller::Peer("edge-2".into()),
            false => Caller::Node,
        };
        let watch = LocalWatch::open_shared(offline, &caller, &info, &headers, feed);
        if let Err(status) = &watch {
            assert_eq!(status.code(), 410, "{status:?}");
        }
        Self {
            watch: watch.ok(),
            red,
            state: from.map_or_else(BTreeMap::new, |from| from.state.clone()),
            revision: since,
            settled: from.is_some(),
        }
    }

    async fn read(&mut self, most: usize) {
        for _ in 0..most {
            let Some(watch) = &mut self.watch else { return };
            // Nothing sleeps but who waits for news.
            let next = tokio::time::timeout(Duration::from_millis(1), watch.next());
            let Ok(frame) = next.await else {
                self.settled = true;
                return;
            };
            let frame = frame.expect("a watch that goes on");
            let event: Value = serde_json::from_slice(&frame.bytes).expect("an event");
            let (name, version) = named(&event["object"]);
            let revision = version.parse().expect("a revision");
            match event["type"].as_str() {
                Some("ADDED" | "MODIFIED") => {
                    let old = self.state.insert(name, version.clone());
                    let old = old.and_then(|old| old.parse::<u64>().ok());
                    assert!(
                        old.is_none_or(|old| old <= revision),
                        "back from {old:?} to {version}"
                    );
                }
                Some("DELETED") => {
                    self.state.remove(&name);
                }
                other => panic!("{other:?}"),
            }
            self.revision = self.revision.max(revision);
        }
    }
}

async fn run(steps: Vec<Step>) {
    let dir = tempfile::tempdir().expect("a directory");
    let (cache, _) = Cache::open(dir.path(), CacheConfig::default()).expect("a cache");
    let journal = Journal::open(&cache, JournalConfig::default()).expect("a journal");
    let offline = Offline::new(cache.clone(), journal, "edge-1");
    let mut truth = Truth::default();
    truth.put(0, true);
    let feed = Feed::detached(gvr(), 0);
    let teller = Teller {
        cache: cache.clone(),
        feed: feed.clone(),
    };
    let list = async |truth: &Truth| {
        let mut listing = Listing::begin(&teller, truth.revision);
        listing.page(&teller, truth.list()).await.expect("a page");
        listing.finish(&teller).expect("room")
    };
    let mut since = list(&truth).await;
    let mut learner = teller.learner(since);
    let mut clients: Vec<Client> = Vec::new();
    for step in steps {
        match step {
            Step::Put { name, red } => truth.put(name, red),
            Step::Delete { name } => truth.delete(name),
            Step::Other => truth.revision += 1,
            Step::Follow => {
                for (revision, kind, value) in &truth.log {
                    if *revision > since {
                        let (kind, object) = (*kind, object(value));
                        let heard = teller.event(&mut learner, Event { kind, object });
                        assert_eq!(heard, Ok(Heard::News));
                    }
                }
                since = truth
                    .log
                    .last()
                    .map_or(since, |(last, ..)| since.max(*last));
            }
            Step::Bookmark => {
                let value = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"resourceVersion": since.to_string()}});
                let (kind, object) = (EventType::Bookmark, object(&value));
                assert_eq!(
                    teller.event(&mut learner, Event { kind, object }),
                    Ok(Heard::News)
                );
            }
            Step::List => {
                since = list(&truth).await;
                learner = teller.learner(since);
            }
            Step::Beside { name } => {
                let asked = cache.asked(&gvr());
                match truth.objects.get(&name) {
                    Some(value) => cache.learn_object(&Caller::Node, &gvr(), &object(value), asked),
                    None => {
                        let name = format!("s{name}");
                        cache.learn_absent(&Caller::Node, &gvr(), "d", &name, asked);
                    }
                }
            }
            Step::Open { peer, red, resume } => {
                let from = clients
                    .iter()
                    .find(|client| resume && client.red == red && client.settled);
                let client = Client::open(
                    &offline,
                    &feed,
                    peer,
                    red,
                    from.filter(|from| from.revision > 0),
                );
                if client.watch.is_some() && clients.len() < 8 {
                    clients.push(client);
                }
            }
            Step::Read { client, most } => {
                if !clients.is_empty() {
                    let index = client % clients.len();
                    clients[index].read(most).await;
                }
            }
        }
    }
    list(&truth).await;
    for client in &mut clients {
        client.read(1000).await;
        assert_eq!(client.state, truth.seen(client.red), "red: {}", client.red);
    }
    let query = Query::all(gvr(), "");
    assert_eq!(cache.complete_at(&query), Some(truth.revision));
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime")
}

/// Without a resume, of a client of this node.
const OPEN_RED: Step = Step::Open {
    peer: false,
    red: true,
    resume: false,
};

fn put(name: u8, red: bool) -> Step {
    Step::Put { name, red }
}

/// A client is shown what came back; the deletion before it (of a state that its selector does not select) takes nothing away.
#[test]
fn what_came_back_is_not_told_from_its_beginning() {
    let deleted = Step::Delete { name: 1 };
    let list = || Step::List;
    let known = [put(1, false), list(), deleted, OPEN_RED, list()];
    let back = [put(1, true), list(), put(1, true), list()];
    runtime().block_on(run(known.into_iter().chain(back).collect()));
}

/// The cache learned a state by somebody's read that no follower was told: what was told before it is what left the selector.
#[test]
fn what_others_read_in_between_was_not_told() {
    let read = Step::Read { client: 0, most: 1 };
    let between = || {
        [
            OPEN_RED,
            read.clone(),
            put(0, false),
            Step::Beside { name: 0 },
        ]
    };
    for last in [put(0, false), Step::Delete { name: 0 }] {
        for how in [Step::Follow, Step::List] {
            let steps = between().into_iter().chain([last.clone(), how]);
            runtime().block_on(run(steps.collect()));
        }
    }
}

/// Shown a state that is further than what was told, a client goes on where it has everything.
#[test]
fn what_is_shown_ahead_takes_no_revision_ahead() {
    let (beside, read) = (Step::Beside { name: 0 }, Step::Read { client: 0, most: 2 });
    let resume = Step::Open {
        peer: false,
        red: true,
        resume: true,
    };
    let puts = [put(0, false), put(1, true), put(0, true)];
    let steps = puts.into_iter().chain([beside, OPEN_RED, read, resume]);
    runtime().block_on(run(steps.collect()));
}

proptest! {
    #[test]
    fn every_client_ends_with_the_state(steps in prop::collection::vec(step(), 0..60)) {
        runtime().block_on(run(steps));
    }
}
