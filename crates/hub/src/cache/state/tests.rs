use super::*;
use crate::cache::coverage::Coverage;
use yurt_wire::Gvr;

fn pods() -> Gvr {
    Gvr::new("", "v1", "pods")
}

#[test]
fn deletions_do_not_pile_up_while_the_disk_takes_nothing() {
    let mut state = State::new(1 << 20, Arc::default());
    let known = Query::named(pods(), "a", "known");
    let record = record::coverage_record(&known);
    state.enqueue(record.clone(), Value::Delete, Duration::ZERO);
    let object = record::object_record(record::OBJECTS, &pods(), "a/b");
    state.enqueue(object.clone(), Value::Delete, Duration::ZERO);
    let bytes = state.pending_bytes;
    for round in 0..3 {
        // Names that do not exist, asked for without end.
        for name in 0..1000 {
            let asked = Query::named(pods(), "a", &format!("{round}-{name}"));
            let record = record::coverage_record(&asked);
            state.enqueue(record, Value::Delete, Duration::ZERO);
        }
        state.spare_deletions(|key| key == record);
        assert_eq!(state.pending_bytes, bytes);
        assert_eq!(state.pending.len(), 2);
    }
    assert!(state.pending.contains_key(&record) && state.pending.contains_key(&object));
}

/// A complete list did not hold two objects that cannot be read for the moment, one of which went otherwise meanwhile.
#[test]
fn what_cannot_be_read_stays_suspect() {
    let mut state = State::new(1 << 20, Arc::default());
    let query = Query::all(pods(), "");
    let key = |name: &str| -> Key { format!("a/{name}").into() };
    let suspects: HashSet<Key> = ["read", "unread", "gone"].map(key).into();
    let resource = state.resource(&pods());
    for name in ["read", "unread"] {
        resource.objects.insert(key(name), UNREAD);
    }
    resource.coverages.complete(&query, 7, suspects, 1, 1);
    let left = |state: &State| -> Vec<Key> {
        let coverage: &Coverage = state.resources[&pods()]
            .coverages
            .exact(&query)
            .expect("one");
        coverage.suspects.iter().cloned().collect()
    };
    let unread: HashSet<Key> = ["unread", "gone"].map(key).into();
    assert!(
        state.cleared(&query, 6, unread.clone()),
        "of another snapshot"
    );
    assert_eq!(left(&state).len(), 3);
    assert!(!state.cleared(&query, 7, unread));
    assert_eq!(left(&state), [key("unread")]);
    assert_eq!(
        state.suspected.as_slice(),
        std::slice::from_ref(&query),
        "looked at again"
    );
    assert!(state.cleared(&query, 7, HashSet::new()));
    assert!(left(&state).is_empty());
}
