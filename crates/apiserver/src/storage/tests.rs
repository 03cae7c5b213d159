use super::*;
use proptest::prelude::*;
use serde_json::json;
use std::collections::BTreeMap;

fn partition() -> Arc<str> {
    "/things".into()
}

fn thing(n: u64) -> Value {
    json!({"apiVersion": "v1", "kind": "Thing", "metadata": {"labels": {"n": n.to_string()}}, "n": n})
}

/// One step of a random history.
#[derive(Clone, Debug)]
enum Step {
    Put(u8),
    Delete(u8),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step =
        prop_oneof![3 => (0..6_u8).prop_map(Step::Put), 1 => (0..6_u8).prop_map(Step::Delete)];
    prop::collection::vec(step, 0..60)
}

/// Does a step; the key is both namespace (its parity) and name.
async fn take(storage: &Storage, step: &Step, n: u64) {
    let (Step::Put(key) | Step::Delete(key)) = step;
    let key = Key::new(if key % 2 == 0 { "even" } else { "odd" }, &key.to_string());
    let current = storage.current(&partition(), &key).map(|o| o.revision);
    match (step, current) {
        (Step::Put(_), found) => {
            let expect = found.map_or(Expect::Absent, Expect::At);
            storage
                .put(&partition(), key, expect, thing(n))
                .await
                .expect("written");
        }
        (Step::Delete(_), Some(found)) => {
            storage
                .delete(&partition(), key, Expect::At(found), thing(n))
                .await
                .expect("deleted");
        }
        (Step::Delete(_), None) => {}
    }
}

type Snapshot = Vec<(Key, u64)>;

fn snapshot(objects: &[Arc<Stored>]) -> Snapshot {
    objects
        .iter()
        .map(|o| (o.key.clone(), o.revision))
        .collect()
}

fn block_on<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread()
        .build()
        .expect("a runtime")
        .block_on(future)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Every past moment is shown as it was, or refused; never something else.
    #[test]
    fn the_past_is_shown_as_it_was(steps in steps(), kept in 1..40_usize, namespace in prop_oneof![Just(""), Just("even")]) {
        block_on(async {
            let storage = Storage::memory(WindowLimits { changes: kept, bytes: 1 << 20 });
            let mut moments = BTreeMap::new();
            for (n, step) in steps.iter().enumerate() {
                take(&storage, step, n as u64).await;
                let (objects, revision) = storage.list(&partition(), namespace, None);
                assert_eq!(revision, storage.revision());
                moments.insert(revision, snapshot(&objects));
            }
            for (revision, then) in moments {
                let range = Range { namespace, ..Range::default() };
                match storage.page_at(&partition(), &range, revision) {
                    Ok(listed) => assert_eq!(snapshot(&listed.items), then),
                    Err(error) => assert!(revision < error.floor),
                }
            }
        });
    }

    /// Whoever lists at a moment and then follows the changes has what a new list shows.
    #[test]
    fn following_changes_leads_to_the_present(steps in steps(), at in 0..60_usize) {
        block_on(async {
            let storage = Storage::memory(WindowLimits::default());
            let mut view: Option<(BTreeMap<Key, u64>, u64)> = None;
            for (n, step) in steps.iter().enumerate() {
                if n == at.min(steps.len() - 1) {
                    let (objects, revision) = storage.list(&partition(), "", None);
                    view = Some((snapshot(&objects).into_iter().collect(), revision));
                }
                take(&storage, step, n as u64).await;
            }
            let Some((mut view, mut cursor)) = view else { return };
            loop {
                let changes = storage.partition(&partition()).changes_after(cursor, 3).expect("known");
                let Some(last) = changes.last() else { break };
                cursor = last.revision;
                for change in &changes {
                    let before = view.get(&change.object.key).copied();
                    assert_eq!(before, change.previous.as_ref().map(|p| p.revision));
                    match change.kind {
                        EventType::Deleted => { view.remove(&change.object.key); }
                        _ => { view.insert(change.object.key.clone(), change.revision); }
                    }
                }
            }
            let (objects, _) = storage.list(&partition(), "", None);
            assert_eq!(view.into_iter().collect::<Snapshot>(), snapshot(&objects));
        });
    }
}

#[tokio::test]
async fn of_two_writers_that_saw_the_same_only_one_wins() {
    let storage = Storage::memory(WindowLimits::default());
    let key = Key::new("n", "a");
    let first = storage
        .put(&partition(), key.clone(), Expect::Absent, thing(1))
        .await
        .expect("created");
    let again = storage
        .put(&partition(), key.clone(), Expect::Absent, thing(2))
        .await;
    assert!(matches!(again, Err(WriteError::Conflict)));
    let seen = Expect::At(first.revision);
    storage
        .put(&partition(), key.clone(), seen, thing(3))
        .await
        .expect("the first");
    let late = storage.put(&partition(), key, seen, thing(4)).await;
    assert!(matches!(late, Err(WriteError::Conflict)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writers_see_what_is_under_way_and_readers_what_is_durable() {
    let dir = std::env::temp_dir().join(format!("yurt-apiserver-storage-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&dir);
    let (storage, _) = Storage::open(&dir, WindowLimits::default()).expect("opened");
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..8_u64 {
        let storage = storage.clone();
        writers.spawn(async move {
            let key = Key::new("n", "shared");
            let mut done = 0;
            while done < 20 {
                let current = storage.current(&partition(), &key).map(|o| o.revision);
                let expect = current.map_or(Expect::Absent, Expect::At);
                match storage
                    .put(&partition(), key.clone(), expect, thing(writer))
                    .await
                {
                    Ok(object) => {
                        done += 1;
                        let seen = storage.get(&partition(), &key).expect("published");
                        assert!(seen.revision >= object.revision, "read your writes");
                    }
                    Err(WriteError::Conflict) => tokio::task::yield_now().await,
                    Err(error) => panic!("{error}"),
                }
            }
        });
    }
    while let Some(outcome) = writers.join_next().await {
        outcome.expect("a writer");
    }
    let changes = storage
        .partition(&partition())
        .changes_after(1, 1000)
        .expect("known");
    let revisions: Vec<u64> = changes.iter().map(|c| c.revision).collect();
    assert_eq!(
        revisions,
        (2..162).collect::<Vec<u64>>(),
        "each write once, in order"
    );
    storage.close().await.expect("closed");
    let late = storage
        .put(&partition(), Key::new("n", "b"), Expect::Absent, thing(1))
        .await;
    assert!(
        matches!(late, Err(WriteError::Closed | WriteError::Busy)),
        "{late:?}"
    );
    drop(storage);
    let (storage, recovery) = Storage::open(&dir, WindowLimits::default()).expect("opened again");
    assert_eq!(recovery.truncated_bytes, 0);
    assert_eq!(storage.revision(), 161);
    storage.close().await.expect("closed");
    let _ = std::fs::remove_dir_all(&dir);
}

#[test]
fn an_object_over_the_limit_is_refused() {
    block_on(async {
        let storage = Storage::memory(WindowLimits::default());
        let mut large = thing(1);
        large["x"] = "x".repeat(MAX_OBJECT_BYTES).into();
        let refused = storage
            .put(&partition(), Key::new("", "a"), Expect::Absent, large)
            .await;
        assert!(matches!(refused, Err(WriteError::TooLarge(_))));
        assert_eq!(storage.revision(), 1, "no revision is spent");
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Pages of any size, read while objects change, show together what one list showed at the beginning.
    #[test]
    fn pages_of_a_past_moment_are_one_list(steps in steps(), at in 0..60_usize, limit in 1..4_usize) {
        block_on(async {
            let storage = Storage::memory(WindowLimits::default());
            let mut then = None;
            for (n, step) in steps.iter().enumerate() {
                if n == at.min(steps.len() - 1) {
                    let (objects, revision) = storage.list(&partition(), "", None);
                    then = Some((snapshot(&objects), revision));
                }
                take(&storage, step, n as u64).await;
            }
            let Some((then, revision)) = then else { return };
            let mut seen: Vec<Arc<Stored>> = Vec::new();
            loop {
                let last = seen.last().map(|o| o.key.clone());
                let range = Range { start: last.as_ref(), limit: Some(limit), ..Range::default() };
                let page = storage.page_at(&partition(), &range, revision).expect("known");
                assert_eq!(page.rest, then.len() - seen.len() - page.items.len());
                assert!(page.items.len() <= limit);
                let more = page.rest > 0;
                seen.extend(page.items);
                if !more {
                    break;
                }
            }
            assert_eq!(snapshot(&seen), then);
        });
    }

    /// Following a topic brings just the changes of it, also when it is followed late and much is forgotten.
    #[test]
    fn a_topic_has_its_own_changes(steps in steps(), from in 0..60_usize, kept in 1..60_usize) {
        block_on(async {
            let storage = Storage::memory(WindowLimits { changes: kept, bytes: 1 << 20 });
            let key = Key::new("even", "2");
            let mut follower = None;
            let mut expected = Vec::new();
            let mut cursor = 0;
            for (n, step) in steps.iter().enumerate() {
                if n == from.min(steps.len() - 1) {
                    cursor = storage.revision();
                    let partition = storage.partition(&partition());
                    follower = Some(partition.follow(Some(Topic::Object(key.clone()))));
                }
                let before = storage.revision();
                take(&storage, step, n as u64).await;
                let (Step::Put(name) | Step::Delete(name)) = step;
                if follower.is_some() && *name == 2 && storage.revision() > before {
                    expected.push(storage.revision());
                }
            }
            let Some(follower) = follower else { return };
            match follower.changes_after(cursor, 1000) {
                Ok(changes) => {
                    let revisions: Vec<u64> = changes.iter().map(|c| c.revision).collect();
                    assert_eq!(revisions, expected);
                    assert!(changes.iter().all(|c| c.object.key == key));
                }
                // Something of the topic itself was forgotten.
                Err(error) => assert!(expected.contains(&error.floor), "{error}"),
            }
        });
    }
}

#[tokio::test]
async fn only_those_concerned_are_woken_and_nothing_is_kept_for_nobody() {
    let pods: Arc<str> = "/pods".into();
    let storage = Storage::memory(WindowLimits::default());
    let partition = storage.partition(&pods);
    let mut here = partition.clone().follow(Some(Topic::Node("a".into())));
    let mut there = partition.clone().follow(Some(Topic::Node("b".into())));
    let woken = |follower: &mut Follower| {
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        let woken = {
            let changed = std::pin::pin!(follower.changed());
            changed.poll(&mut context).is_ready()
        };
        follower.mark_seen();
        woken
    };
    let on = |node: &str| json!({"metadata": {}, "spec": {"nodeName": node}});
    let key = Key::new("n", "p");
    let put = |expect, node| storage.put(&pods, key.clone(), expect, on(node));
    let first = put(Expect::Absent, "a").await.expect("created");
    assert_eq!((woken(&mut here), woken(&mut there)), (true, false));
    let second = put(Expect::At(first.revision), "b").await.expect("moved");
    assert_eq!((woken(&mut here), woken(&mut there)), (true, true));
    put(Expect::At(second.revision), "b")
        .await
        .expect("changed");
    assert_eq!((woken(&mut here), woken(&mut there)), (false, true));
    assert_eq!(here.changes_after(1, 10).expect("known").len(), 2);
    assert_eq!(there.changes_after(1, 10).expect("known").len(), 2);
    drop((here, there));
    // Followed again, it is read from what is still known.
    let again = partition.follow(Some(Topic::Node("a".into())));
    assert_eq!(again.changes_after(1, 10).expect("known").len(), 2);
}

#[test]
fn an_event_is_encoded_once_and_holds_the_object() {
    block_on(async {
        let storage = Storage::memory(WindowLimits::default());
        let partition: Arc<str> = "/configmaps".into();
        let value = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}});
        let stored = storage
            .put(&partition, Key::new("n", "a"), Expect::Absent, value)
            .await
            .expect("created");
        for encoding in [yurt_wire::Encoding::Json, yurt_wire::Encoding::Protobuf] {
            let event = stored.event(EventType::Added, encoding).expect("encodes");
            let again = stored.event(EventType::Added, encoding).expect("encodes");
            assert_eq!(event.as_ptr(), again.as_ptr(), "shared");
            let object = stored.object(encoding).expect("encodes");
            assert_eq!(
                event,
                yurt_wire::watch::encode(EventType::Added, &object, encoding)
            );
            assert!(
                event.as_ptr_range().contains(&object.bytes.as_ptr()),
                "the same bytes"
            );
            let other = stored.event(EventType::Deleted, encoding).expect("encodes");
            assert_eq!(
                other,
                yurt_wire::watch::encode(EventType::Deleted, &object, encoding)
            );
        }
    });
}
