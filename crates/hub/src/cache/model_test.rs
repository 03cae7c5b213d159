//! Random interleavings of lists by page, watches, gets and restarts against a model of the cloud. Whatever the cache answers
//! must be true: for every object a list shows, or leaves out, there is a moment between the list's revision and now at which
//! it was so in the cloud.

use super::*;
use proptest::prelude::*;
use serde_json::json;
use std::collections::BTreeMap;
use yurt_wire::{
    Encoding,
    list::SplitList,
    selector::LabelSelector,
    watch::{Event, EventType, bookmark},
};

type Truth = BTreeMap<String, (u64, String)>;

/// The cloud: every state it ever had. A value is (revision of the object, its label).
#[derive(Default)]
struct Cloud {
    history: Vec<Truth>,
}

impl Cloud {
    fn new() -> Self {
        Self {
            history: vec![Truth::new()],
        }
    }
    fn now(&self) -> u64 {
        self.history.len() as u64 - 1
    }
    fn at(&self, revision: u64) -> &Truth {
        &self.history[revision as usize]
    }
    fn set(&mut self, key: &str, label: Option<&str>) {
        let mut next = self.at(self.now()).clone();
        let revision = self.now() + 1;
        match label {
            Some(label) => {
                next.insert(key.into(), (revision, label.into()));
            }
            None => {
                if next.remove(key).is_none() {
                    return;
                }
            }
        }
        self.history.push(next);
    }
    /// The events of a query between two revisions, as kube-apiserver sends them.
    fn events(&self, query: &Query, after: u64, until: u64) -> Vec<Event> {
        let mut out = Vec::new();
        for revision in after + 1..=until {
            let (before, now) = (self.at(revision - 1), self.at(revision));
            for key in before.keys().chain(now.keys()) {
                let (old, new) = (before.get(key), now.get(key));
                if old == new {
                    continue;
                }
                let matches = |state: Option<&(u64, String)>| {
                    state.is_some_and(|(_, label)| belongs(query, key, label))
                };
                let event = match (matches(old), matches(new)) {
                    (false, false) => continue,
                    (false, true) => (EventType::Added, new),
                    (true, true) => (EventType::Modified, new),
                    // The old state, with the revision of the change.
                    (true, false) => (EventType::Deleted, old),
                };
                if let (kind, Some((_, label))) = event {
                    let object = object(key, revision, label);
                    if !out
                        .iter()
                        .any(|e: &Event| e.object == object && e.kind == kind)
                    {
                        out.push(Event { kind, object });
                    }
                }
            }
        }
        out
    }
}

fn object(key: &str, revision: u64, label: &str) -> Object {
    let (namespace, name) = key.split_once('/').unwrap_or(("", key));
    Object {
        encoding: Encoding::Json,
        bytes: json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": name,
                "namespace": namespace,
                "resourceVersion": revision.to_string(),
                "labels": {"app": label},
            },
        })
        .to_string()
        .into(),
    }
}

fn belongs(query: &Query, key: &str, label: &str) -> bool {
    let (namespace, name) = key.split_once('/').unwrap_or(("", key));
    query.in_scope(namespace, name)
        && query
            .labels
            .matches(&[("app".to_owned(), label.to_owned())])
}

fn pods() -> Gvr {
    Gvr::new("", "v1", "pods")
}

fn queries() -> Vec<Query> {
    let labels = |text: &str| LabelSelector::parse(text).unwrap_or_default();
    let all = Query::all(pods(), "");
    vec![
        all.clone(),
        Query::all(pods(), "m"),
        Query::named(pods(), "m", "a"),
        Query {
            labels: labels("app=x"),
            ..all.clone()
        },
        Query {
            labels: labels("app=y"),
            namespace: "n".into(),
            ..all.clone()
        },
        Query {
            labels: labels("app!=x"),
            ..all
        },
    ]
}

const KEYS: [&str; 5] = ["m/a", "m/b", "n/a", "n/b", "n/c"];
const LABELS: [&str; 3] = ["x", "y", "z"];

fn page(
    cloud: &Cloud,
    query: &Query,
    revision: u64,
    from: usize,
    size: usize,
) -> (SplitList, usize) {
    let all: Vec<Object> = cloud
        .at(revision)
        .iter()
        .filter(|(key, (_, label))| belongs(query, key, label))
        .map(|(key, (revision, label))| object(key, *revision, label))
        .collect();
    let end = (from + size).min(all.len());
    let list = SplitList {
        gvk: Gvk::from_api_version("v1", "PodList"),
        resource_version: revision.to_string(),
        continue_token: if end < all.len() {
            "more".into()
        } else {
            String::new()
        },
        remaining: None,
        items: all[from.min(end)..end].to_vec(),
    };
    (list, end)
}

struct PagedList {
    learner: ListLearner,
    query: usize,
    revision: u64,
    at: usize,
}

struct Watching {
    learner: WatchLearner,
    query: usize,
    at: u64,
    /// Initial events that are still to come, the last of them first.
    initial: Vec<Event>,
}

/// A get that was sent and not yet answered.
struct Getting {
    key: &'static str,
    asked: Asked,
    /// The answer is as it was at this revision, or later.
    from: u64,
}

/// The events that begin a watch of a query at a revision.
fn initial_events(cloud: &Cloud, query: &Query, revision: u64) -> Vec<Event> {
    let (split, _) = page(cloud, query, revision, 0, 99);
    let mut events: Vec<Event> = split
        .items
        .into_iter()
        .map(|object| Event {
            kind: EventType::Added,
            object,
        })
        .collect();
    events.push(Event {
        kind: EventType::Bookmark,
        object: bookmark(
            &Gvk::from_api_version("v1", "Pod"),
            &revision.to_string(),
            true,
            Encoding::Json,
        ),
    });
    events
}

fn learn_key(cache: &Cache, cloud: &Cloud, key: &str, revision: u64, asked: Asked) {
    let (namespace, name) = key.split_once('/').unwrap_or_default();
    match cloud.at(revision).get(key) {
        Some((revision, label)) => {
            let object = object(key, *revision, label);
            cache.learn_object(&Caller::Node, &pods(), &object, asked);
        }
        None => cache.learn_absent(&Caller::Node, &pods(), namespace, name, asked),
    }
}

/// What the cache says of a list must have been so at some moment since.
fn check(cache: &Cache, cloud: &Cloud) -> Result<usize, TestCaseError> {
    let mut answered = 0;
    for query in queries() {
        let Some(listing) = cache.list(&Caller::Node, &query) else {
            continue;
        };
        answered += 1;
        let since: u64 = listing
            .resource_version
            .parse()
            .map_err(|_| TestCaseError::fail("revision"))?;
        let mut shown: BTreeMap<String, Object> = BTreeMap::new();
        for item in listing.items {
            let meta = item
                .meta()
                .map_err(|e| TestCaseError::fail(e.to_string()))?;
            shown.insert(format!("{}/{}", meta.namespace, meta.name), item);
        }
        for key in KEYS {
            let said = shown.remove(key);
            let was = |revision: u64| {
                cloud
                    .at(revision)
                    .get(key)
                    .filter(|(_, label)| belongs(&query, key, label))
                    .map(|(revision, label)| object(key, *revision, label))
            };
            let true_once = (since..=cloud.now()).any(|revision| was(revision) == said);
            prop_assert!(
                true_once,
                "{} at {since}: {key} shown as {said:?}, never so until {}",
                query.to_text(),
                cloud.now()
            );
        }
        prop_assert!(shown.is_empty(), "unheard of: {shown:?}");
    }
    Ok(answered)
}

fn open(dir: &Path) -> Result<Cache, TestCaseError> {
    Cache::open(dir, CacheConfig::default())
        .map(|(cache, _)| cache)
        .map_err(|error| TestCaseError::fail(error.to_string()))
}

fn flush(cache: &Cache) -> Result<(), TestCaseError> {
    let (done, wait) = oneshot::channel();
    cache.shared().orders().flush.push(done);
    cache.shared().nudge();
    wait.blocking_recv()
        .map_err(|_| TestCaseError::fail("no answer"))?
        .map_err(|error| TestCaseError::fail(error.to_string()))
}

/// What happens (see [`run`]), and two numbers that say to what.
type Step = (u8, usize, usize);

fn run(steps: &[Step]) -> Result<(), TestCaseError> {
    let dir = tempfile::tempdir().map_err(|e| TestCaseError::fail(e.to_string()))?;
    let queries = queries();
    let mut cache = open(dir.path())?;
    let mut cloud = Cloud::new();
    cloud.set("m/a", Some("x"));
    let mut lists: Vec<PagedList> = Vec::new();
    let mut watches: Vec<Watching> = Vec::new();
    let mut gets: Vec<Getting> = Vec::new();
    for &(step, a, b) in steps {
        let query = a % queries.len();
        match step {
            0..=3 => cloud.set(KEYS[a % KEYS.len()], Some(LABELS[b % LABELS.len()])),
            4 => cloud.set(KEYS[a % KEYS.len()], None),
            5 | 6 => lists.push(PagedList {
                learner: cache.list_learner(&Caller::Node, &queries[query]),
                query,
                // now and then from a replica that is behind
                revision: if b % 5 == 0 {
                    cloud.now().saturating_sub(2).max(1)
                } else {
                    cloud.now()
                },
                at: 0,
            }),
            7 | 8 if !lists.is_empty() => {
                let i = a % lists.len();
                let list = &mut lists[i];
                let (split, end) = page(
                    &cloud,
                    &queries[list.query],
                    list.revision,
                    list.at,
                    1 + b % 3,
                );
                let last = split.continue_token.is_empty();
                list.learner.page(split);
                list.at = end;
                if last {
                    let done = lists.swap_remove(i);
                    done.learner.finish();
                    if b % 2 == 0 {
                        // the watch that follows a list
                        watches.push(Watching {
                            learner: cache.watch_learner(
                                &Caller::Node,
                                &queries[done.query],
                                &done.revision.to_string(),
                                false,
                            ),
                            query: done.query,
                            at: done.revision,
                            initial: Vec::new(),
                        });
                    }
                }
            }
            9 => {
                // WatchList
                let at = cloud.now();
                let mut learner = cache.watch_learner(&Caller::Node, &queries[query], "", true);
                let mut events = initial_events(&cloud, &queries[query], at);
                let broken = b % 4 == 0;
                events.truncate(events.len() - usize::from(broken));
                for event in &events {
                    learner.event(event);
                }
                if !broken {
                    watches.push(Watching {
                        learner,
                        query,
                        at,
                        initial: Vec::new(),
                    });
                }
            }
            10..=12 if !watches.is_empty() => {
                let i = a % watches.len();
                let watch = &mut watches[i];
                if !watch.initial.is_empty() {
                    for event in (0..=b % 3).filter_map(|_| watch.initial.pop()) {
                        watch.learner.event(&event);
                    }
                    check(&cache, &cloud)?;
                    continue;
                }
                let until = (watch.at + 1 + (b % 4) as u64).min(cloud.now());
                for event in cloud.events(&queries[watch.query], watch.at, until) {
                    watch.learner.event(&event);
                }
                watch.at = until;
                if b % 3 == 0 {
                    let gvk = Gvk::from_api_version("v1", "Pod");
                    let object = bookmark(&gvk, &until.to_string(), false, Encoding::Json);
                    watch.learner.event(&Event {
                        kind: EventType::Bookmark,
                        object,
                    });
                }
            }
            13 => {
                let asked = cache.asked(&pods());
                learn_key(&cache, &cloud, KEYS[a % KEYS.len()], cloud.now(), asked);
            }
            14 if b % 4 == 0 => {
                // suspects are looked at first: that may change what is known
                flush(&cache)?;
                let before: Vec<_> = queries
                    .iter()
                    .map(|q| cache.list(&Caller::Node, q).map(|l| l.items))
                    .collect();
                lists.clear();
                watches.clear();
                gets.clear();
                drop(cache);
                cache = open(dir.path())?;
                let after: Vec<_> = queries
                    .iter()
                    .map(|q| cache.list(&Caller::Node, q).map(|l| l.items))
                    .collect();
                prop_assert_eq!(before, after);
            }
            15 if !watches.is_empty() => {
                watches.swap_remove(a % watches.len());
            }
            // A get that is answered later; now and then one that takes what a replica has that is behind.
            16 => {
                let (asked, from) = match b % 4 {
                    0 => (Asked::default(), cloud.now().saturating_sub(2)),
                    _ => (cache.asked(&pods()), cloud.now()),
                };
                let key = KEYS[a % KEYS.len()];
                gets.push(Getting { key, asked, from });
            }
            17 | 18 if !gets.is_empty() => {
                let Getting { key, asked, from } = gets.swap_remove(a % gets.len());
                let revision = from + b as u64 % (cloud.now() - from + 1);
                learn_key(&cache, &cloud, key, revision, asked);
            }
            // A WatchList whose initial events take their time.
            19 => {
                let at = cloud.now();
                let mut initial = initial_events(&cloud, &queries[query], at);
                initial.reverse();
                let learner = cache.watch_learner(&Caller::Node, &queries[query], "", true);
                watches.push(Watching {
                    learner,
                    query,
                    at,
                    initial,
                });
            }
            _ => flush(&cache)?,
        }
        check(&cache, &cloud)?;
    }
    // A whole WatchList at the end makes everything exact.
    let all = Query::all(pods(), "");
    let mut learner = cache.watch_learner(&Caller::Node, &all, "", true);
    for event in initial_events(&cloud, &all, cloud.now()) {
        learner.event(&event);
    }
    let want = page(&cloud, &all, cloud.now(), 0, 99).0.items;
    let got = cache
        .list(&Caller::Node, &all)
        .map(|l| (l.items, l.resource_version));
    prop_assert_eq!(got, Some((want, cloud.now().to_string())));
    prop_assert_eq!(check(&cache, &cloud)?, queries.len());
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
    #[test]
    fn what_the_cache_says_is_true(steps in prop::collection::vec((0u8..20, 0usize..64, 0usize..64), 1..120)) {
        run(&steps)?;
    }
}

/// `m/b` came after the whole of the resource was listed without it, and left the selector through which it was seen before the
/// next whole list, older than that, was learned: that list is not complete here, as it holds an `m/b` that the cache refuses.
#[test]
fn absent_once_is_not_absent_for_good() -> Result<(), TestCaseError> {
    run(&[
        (0, 30, 0),
        (4, 0, 0),
        (5, 6, 0),
        (0, 0, 0),
        (0, 26, 4),
        (5, 6, 11),
        (5, 5, 1),
        (7, 8, 2),
        (0, 41, 3),
        (10, 0, 0),
        (7, 62, 0),
        (7, 0, 1),
    ])
}

/// `n/a` left the selector through which it was seen; the watch of a whole list from long before then tells of its older state. The
/// cache has no room for that, so the whole list stays where it was until that watch comes to what became of `n/a`.
#[test]
fn a_watch_from_behind_does_not_hide_what_left_a_selector() -> Result<(), TestCaseError> {
    run(&[
        (0, 23, 0),
        (0, 0, 0),
        (5, 7, 0),
        (0, 32, 0),
        (5, 6, 15),
        (0, 0, 0),
        (9, 45, 0),
        (5, 0, 0),
        (7, 42, 0),
        (5, 13, 0),
        (0, 7, 4),
        (7, 11, 20),
        (5, 0, 0),
        (9, 3, 1),
        (14, 0, 1),
        (10, 0, 0),
        (7, 16, 3),
        (15, 0, 0),
        (7, 31, 6),
        (7, 48, 44),
        (10, 22, 9),
    ])
}

fn follow(cache: &Cache, at: u64) -> WatchLearner {
    let all = Query::all(pods(), "");
    let mut list = cache.list_learner(&Caller::Node, &all);
    list.page(SplitList {
        gvk: Gvk::from_api_version("v1", "PodList"),
        resource_version: at.to_string(),
        continue_token: String::new(),
        remaining: None,
        items: vec![object("m/b", 1, "x")],
    });
    list.finish();
    cache.watch_learner(&Caller::Node, &all, &at.to_string(), false)
}

fn knows(cache: &Cache, name: &str) -> bool {
    let found = cache.get(&Caller::Node, &pods(), "m", name);
    matches!(found, Lookup::Found(_))
}

fn tell(watch: &mut WatchLearner, kind: EventType, revision: u64) {
    let object = object("m/a", revision, "x");
    watch.event(&Event { kind, object });
}

/// The answer to a get was on its way while a watch told that the object was made: it is there.
#[test]
fn a_404_does_not_undo_what_came_meanwhile() -> Result<(), TestCaseError> {
    let dir = tempfile::tempdir().map_err(|e| TestCaseError::fail(e.to_string()))?;
    let cache = open(dir.path())?;
    let mut watch = follow(&cache, 3);
    let asked = cache.asked(&pods());
    tell(&mut watch, EventType::Added, 4);
    cache.learn_absent(&Caller::Node, &pods(), "m", "a", asked);
    prop_assert!(knows(&cache, "a"));
    // Asked now, it is gone.
    let asked = cache.asked(&pods());
    cache.learn_absent(&Caller::Node, &pods(), "m", "a", asked);
    prop_assert!(!knows(&cache, "a"));
    Ok(())
}

/// A pod of a stateful set is deleted, which a get sees, and made again under its name, of which a watch tells later.
#[test]
fn a_404_does_not_hide_what_is_made_anew() -> Result<(), TestCaseError> {
    let dir = tempfile::tempdir().map_err(|e| TestCaseError::fail(e.to_string()))?;
    let cache = open(dir.path())?;
    let mut watch = follow(&cache, 3);
    tell(&mut watch, EventType::Added, 4);
    let asked = cache.asked(&pods());
    let other = object("m/b", 9, "x");
    cache.learn_object(&Caller::Node, &pods(), &other, cache.asked(&pods()));
    cache.learn_absent(&Caller::Node, &pods(), "m", "a", asked);
    prop_assert!(!knows(&cache, "a"));
    tell(&mut watch, EventType::Deleted, 5);
    tell(&mut watch, EventType::Added, 6);
    prop_assert!(knows(&cache, "a"));
    Ok(())
}

/// The answer to a get was on its way while a complete list told that there is no such object any more.
#[test]
fn an_old_answer_does_not_bring_back_the_dead() -> Result<(), TestCaseError> {
    let dir = tempfile::tempdir().map_err(|e| TestCaseError::fail(e.to_string()))?;
    let cache = open(dir.path())?;
    let asked = cache.asked(&pods());
    let _watch = follow(&cache, 9);
    let late = object("m/a", 4, "x");
    cache.learn_object(&Caller::Node, &pods(), &late, asked);
    prop_assert!(!knows(&cache, "a"));
    // Of an answer asked for afterwards the list does not know better.
    cache.learn_object(&Caller::Node, &pods(), &late, cache.asked(&pods()));
    prop_assert!(knows(&cache, "a"));
    Ok(())
}

/// A replica that is behind answers 404 to a get of any age.
#[test]
fn a_404_of_any_age_takes_nothing_away() -> Result<(), TestCaseError> {
    let dir = tempfile::tempdir().map_err(|e| TestCaseError::fail(e.to_string()))?;
    let cache = open(dir.path())?;
    let mut watch = follow(&cache, 3);
    tell(&mut watch, EventType::Added, 4);
    let asked = cache.asked(&pods());
    for resource_version in ["0", "2", "nonsense"] {
        let asked = asked.not_older_than(resource_version);
        cache.learn_absent(&Caller::Node, &pods(), "m", "a", asked);
        prop_assert!(knows(&cache, "a"), "{resource_version}");
    }
    cache.learn_absent(&Caller::Node, &pods(), "m", "a", asked.not_older_than("4"));
    prop_assert!(!knows(&cache, "a"));
    Ok(())
}

/// More selectors are told that an object left them than an object remembers.
#[test]
fn many_selectors_that_an_object_left_do_not_show_it() -> Result<(), TestCaseError> {
    let dir = tempfile::tempdir().map_err(|e| TestCaseError::fail(e.to_string()))?;
    let cache = open(dir.path())?;
    let list = |labels: &str, items: Vec<Object>| {
        let query = Query {
            labels: LabelSelector::parse(labels).unwrap_or_default(),
            ..Query::all(pods(), "")
        };
        let mut list = cache.list_learner(&Caller::Node, &query);
        list.page(SplitList {
            gvk: Gvk::from_api_version("v1", "PodList"),
            resource_version: "5".into(),
            continue_token: String::new(),
            remaining: None,
            items,
        });
        list.finish();
        query
    };
    let known = object("m/a", 3, "x");
    // Whoever follows everything relies on it until it is told.
    list("", vec![known.clone()]);
    let selectors: Vec<Query> = (0..40)
        .map(|n| list(&format!("app in (x,n{n})"), vec![known.clone()]))
        .collect();
    for query in &selectors {
        let mut watch = cache.watch_learner(&Caller::Node, query, "5", false);
        let object = object("m/a", 7, "x");
        let kind = EventType::Deleted;
        watch.event(&Event { kind, object });
    }
    // At 5 it was so; at 7 it is not.
    let check = |cache: &Cache| -> Result<(), TestCaseError> {
        let mut told = 0;
        for query in &selectors {
            let list = cache.list(&Caller::Node, query);
            let Some(list) = list.filter(|list| list.resource_version == "7") else {
                continue;
            };
            told += 1;
            prop_assert!(list.items.is_empty(), "{}", query.to_text());
        }
        prop_assert_eq!(told, record::MOST_ABSENT);
        Ok(())
    };
    check(&cache)?;
    flush(&cache)?;
    drop(cache);
    check(&open(dir.path())?)
}
