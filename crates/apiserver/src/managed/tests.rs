//! Recorded entries of a real kube-apiserver, the laws of the algebra, and the cases of server-side apply.

use super::compare::compare;
use super::entries::{self, decode};
use super::path::PathElement;
use super::set::Node;
use super::*;
use crate::crd::Structural;
use crate::recorded;
use proptest::prelude::*;
use serde_json::json;
use yurt_wire::Gvk;
use yurt_wire::schema;

fn typing_of(object: &Value) -> Typing<'static> {
    let gvk = Gvk::from_api_version(
        object["apiVersion"].as_str().unwrap(),
        object["kind"].as_str().unwrap(),
    );
    Typing::Builtin(schema::message_of(&gvk).unwrap())
}

fn writer<'a>(manager: &'a str, api_version: &'a str) -> Writer<'a> {
    Writer {
        manager,
        api_version,
        subresource: "",
        now: "2026-11-21T20:00:00Z",
    }
}

/// The largest parts of `all` in which `owned` has nothing.
fn foreign(all: &FieldSet, owned: &FieldSet) -> FieldSet {
    let mut out = FieldSet::default();
    for (element, node) in all.nodes() {
        match owned.node(element) {
            None => out.put(
                element.clone(),
                Node {
                    member: true,
                    below: FieldSet::default(),
                },
            ),
            Some(owned) => out.put(
                element.clone(),
                Node {
                    member: false,
                    below: foreign(&node.below, &owned.below),
                },
            ),
        }
    }
    out
}

/// What is left of `object` when only identity and `owned` stay.
fn extract(object: &Value, owned: &FieldSet) -> Value {
    let root = typing_of(object).root();
    let everything = compare(root, None, Some(object)).added;
    let mut keep = owned.clone();
    for name in ["apiVersion", "kind"] {
        keep.insert(&[PathElement::field(name)]);
    }
    for name in ["name", "namespace", "uid"] {
        keep.insert(&[PathElement::field("metadata"), PathElement::field(name)]);
    }
    merge::remove(root, object, &foreign(&everything, &keep))
}

#[test]
fn recorded_fields_survive_both_ways() {
    let mut seen = 0;
    for object in recorded::objects() {
        for entry in object["metadata"]["managedFields"]
            .as_array()
            .into_iter()
            .flatten()
        {
            let set = FieldSet::from_fields_v1(&entry["fieldsV1"]).unwrap();
            assert_eq!(set.to_fields_v1(), entry["fieldsV1"]);
            seen += 1;
        }
    }
    assert!(seen > 50, "{seen}");
}

#[test]
fn recorded_entries_are_kept_as_they_are() {
    for object in recorded::objects() {
        let entries = decode(&object).unwrap();
        let mut copy = object.clone();
        entries::encode(&mut copy, entries);
        assert_eq!(copy, object);
    }
}

#[test]
fn recorded_owned_fields_are_paths_of_their_objects() {
    for object in recorded::objects() {
        let mut bare = object.clone();
        entries::strip(&mut bare);
        let everything = compare(typing_of(&object).root(), None, Some(&bare)).added;
        for entry in decode(&object).unwrap() {
            // Events written through events.k8s.io have other field names there.
            if entry.api_version != object["apiVersion"] {
                continue;
            }
            let strange = entry.fields.difference(&everything);
            assert!(
                strange.is_empty(),
                "{} {}: {:?}",
                object["kind"],
                object["metadata"]["name"],
                strange.paths().iter().map(|p| print(p)).collect::<Vec<_>>()
            );
        }
    }
}

/// Replays the writers of each recorded object, each adding what it owns, and expects the recorded entries.
#[test]
fn replayed_writers_own_what_was_recorded() {
    let mut replayed = 0;
    let mut unlike = Vec::new();
    for object in recorded::objects() {
        let recorded_entries = decode(&object).unwrap();
        // Nodes and pods had writers that left no trace: the scheduler's binding, earlier heartbeats.
        if object["kind"] == "Node"
            || object["kind"] == "Pod"
            || recorded_entries
                .iter()
                .any(|e| e.api_version != object["apiVersion"])
        {
            continue;
        }
        let mut orders = vec![recorded_entries.clone()];
        orders.push(recorded_entries.iter().rev().cloned().collect());
        let same = orders.iter().any(|order| {
            let mut owned = FieldSet::default();
            let mut live: Option<Value> = None;
            for entry in order {
                owned = owned.union(&entry.fields);
                let mut new = extract(&object, &owned);
                entries::strip(&mut new);
                let writer = Writer {
                    manager: &entry.manager,
                    api_version: &entry.api_version,
                    subresource: &entry.subresource,
                    now: &entry.time,
                };
                track_update(typing_of(&object), live.as_ref(), &mut new, &writer);
                live = Some(new);
            }
            live.is_none_or(|live| decode(&live).unwrap() == recorded_entries)
        });
        if same {
            replayed += 1;
        } else {
            unlike.push(format!("{}/{}", object["kind"], object["metadata"]["name"]));
        }
    }
    assert!(unlike.is_empty(), "unlike: {unlike:?}");
    assert!(replayed > 50, "{replayed}");
}

fn deployment(image: &str, replicas: u64) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": "web", "namespace": "default", "labels": {"app": "web"}},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": "web"}},
            "template": {
                "metadata": {"labels": {"app": "web"}},
                "spec": {"containers": [
                    {"name": "a", "image": image, "ports": [{"containerPort": 80}]},
                ]},
            },
        },
    })
}

fn applied(live: Option<&Value>, config: &Value, manager: &str) -> Value {
    apply(
        typing_of(config),
        live,
        config,
        &writer(manager, "apps/v1"),
        false,
    )
    .unwrap()
}

fn fields_of(object: &Value, manager: &str) -> Value {
    let entries = object["metadata"]["managedFields"].as_array().unwrap();
    let entry = entries.iter().find(|entry| entry["manager"] == manager);
    entry.map_or(Value::Null, |entry| entry["fieldsV1"].clone())
}

#[test]
fn an_applier_owns_what_it_names() {
    let object = applied(None, &deployment("i:1", 2), "a");
    assert_eq!(
        fields_of(&object, "a"),
        json!({
            "f:metadata": {"f:labels": {"f:app": {}}},
            "f:spec": {
                "f:replicas": {},
                "f:selector": {},
                "f:template": {
                    "f:metadata": {"f:labels": {"f:app": {}}},
                    "f:spec": {"f:containers": {"k:{\"name\":\"a\"}": {
                        ".": {}, "f:image": {}, "f:name": {},
                        "f:ports": {"k:{\"containerPort\":80,\"protocol\":\"TCP\"}": {
                            ".": {}, "f:containerPort": {},
                        }},
                    }}},
                },
            },
        })
    );
}

#[test]
fn a_conflict_names_the_field_and_its_owner() {
    let live = applied(None, &deployment("i:1", 2), "a");
    let error = apply(
        typing_of(&live),
        Some(&live),
        &deployment("i:2", 2),
        &writer("b", "apps/v1"),
        false,
    )
    .unwrap_err();
    assert_eq!(
        error.to_string(),
        "Apply failed with 1 conflict: conflict with \"a\": .spec.template.spec.containers[name=\"a\"].image"
    );
    let status = Status::from(error);
    assert_eq!(status.code(), 409);
    assert_eq!(status.causes[0].reason, "FieldManagerConflict");
    assert_eq!(status.causes[0].message, "conflict with \"a\"");
    assert_eq!(
        status.causes[0].field,
        ".spec.template.spec.containers[name=\"a\"].image"
    );

    // An updater owns by value: other values conflict, equal ones are shared.
    let mut scaled = live.clone();
    scaled["spec"]["replicas"] = json!(5);
    track_update(
        typing_of(&live),
        Some(&live),
        &mut scaled,
        &writer("kubectl-scale", "apps/v1"),
    );
    let error = apply(
        typing_of(&live),
        Some(&scaled),
        &deployment("i:3", 3),
        &writer("b", "apps/v1"),
        false,
    )
    .unwrap_err();
    assert_eq!(
        error.to_string(),
        "Apply failed with 2 conflicts: conflicts with \"a\":\n- .spec.template.spec.containers[name=\"a\"].image\nconflicts with \"kubectl-scale\" using apps/v1:\n- .spec.replicas"
    );
    assert!(
        apply(
            typing_of(&live),
            Some(&scaled),
            &deployment("i:1", 5),
            &writer("b", "apps/v1"),
            false
        )
        .is_ok()
    );
}

#[test]
fn force_takes_the_field_away() {
    let live = applied(None, &deployment("i:1", 2), "a");
    let forced = apply(
        typing_of(&live),
        Some(&live),
        &deployment("i:2", 2),
        &writer("b", "apps/v1"),
        true,
    )
    .unwrap();
    let image = "/spec/template/spec/containers/0/image";
    assert_eq!(forced.pointer(image), Some(&json!("i:2")));
    let path = "/f:spec/f:template/f:spec/f:containers/k:{\"name\":\"a\"}/f:image";
    assert!(fields_of(&forced, "a").pointer(path).is_none());
    assert!(fields_of(&forced, "b").pointer(path).is_some());
}

#[test]
fn dropped_fields_go_unless_shared() {
    let live = applied(None, &deployment("i:1", 2), "a");
    let mut other = json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": "web", "namespace": "default", "labels": {"app": "web", "team": "x"}},
    });
    let live = applied(Some(&live), &other, "b");
    assert_eq!(
        live["metadata"]["labels"],
        json!({"app": "web", "team": "x"})
    );

    // `a` drops its label, which `b` shares, and its replicas, which nobody else wants.
    let mut config = deployment("i:1", 2);
    config["metadata"].as_object_mut().unwrap().remove("labels");
    config["spec"].as_object_mut().unwrap().remove("replicas");
    let live = applied(Some(&live), &config, "a");
    assert_eq!(
        live["metadata"]["labels"],
        json!({"app": "web", "team": "x"})
    );
    assert!(live["spec"].get("replicas").is_none());

    // `b` drops everything.
    other["metadata"].as_object_mut().unwrap().remove("labels");
    let live = applied(Some(&live), &other, "b");
    assert!(live["metadata"].get("labels").is_none());
    assert_eq!(fields_of(&live, "b"), Value::Null);
}

#[test]
fn a_dropped_list_item_goes_with_its_defaults() {
    let mut config = deployment("i:1", 2);
    config["spec"]["template"]["spec"]["containers"]
        .as_array_mut()
        .unwrap()
        .push(json!({"name": "b", "image": "j:1"}));
    let mut live = applied(None, &config, "a");
    // A default that nobody owns.
    live["spec"]["template"]["spec"]["containers"][1]["imagePullPolicy"] = json!("IfNotPresent");
    let live = applied(Some(&live), &deployment("i:1", 2), "a");
    let containers = live["spec"]["template"]["spec"]["containers"]
        .as_array()
        .unwrap();
    assert_eq!(containers.len(), 1);
    assert_eq!(containers[0]["name"], "a");
}

#[test]
fn order_of_keyed_items() {
    let item = |name: &str| json!({"name": name, "image": "i"});
    let with = |names: &[&str]| {
        let mut object = deployment("i", 1);
        object["spec"]["template"]["spec"]["containers"] =
            names.iter().map(|name| item(name)).collect();
        object
    };
    let names = |object: &Value| -> String {
        object["spec"]["template"]["spec"]["containers"]
            .as_array()
            .unwrap()
            .iter()
            .map(|c| c["name"].as_str().unwrap())
            .collect()
    };
    for (live, config, merged) in [
        (vec!["a", "b", "c"], vec!["c", "a"], "bca"),
        (vec!["a", "b", "c"], vec!["x", "b"], "axbc"),
        (vec!["a", "b"], vec!["a", "x", "b", "y"], "axby"),
        (vec!["b"], vec!["a", "b", "c"], "abc"),
    ] {
        let root = typing_of(&with(&live)).root();
        let out = merge::merge(root, Some(&with(&live)), Some(&with(&config)));
        assert_eq!(names(&out), merged, "{live:?} + {config:?}");
    }
}

#[test]
fn applying_again_changes_nothing() {
    let config = deployment("i:1", 2);
    let live = applied(None, &config, "a");
    let later = Writer {
        now: "2026-11-21T21:00:00Z",
        ..writer("a", "apps/v1")
    };
    assert_eq!(
        apply(typing_of(&live), Some(&live), &config, &later, false).unwrap(),
        live
    );
}

#[test]
fn amounts_are_compared_by_value() {
    let with = |cpu: Value| {
        let mut config = deployment("i:1", 2);
        config["spec"]["template"]["spec"]["containers"][0]["resources"] =
            json!({"requests": {"cpu": cpu}});
        config
    };
    let live = applied(None, &with(json!("500m")), "a");
    assert_eq!(applied(Some(&live), &with(json!(0.5)), "a"), live);
    let shared = applied(Some(&live), &with(json!("0.5")), "b");
    assert_eq!(shared["spec"], live["spec"]);
}

#[test]
fn a_configuration_must_fit() {
    let mut config = deployment("i:1", 2);
    config["metadata"]["managedFields"] = json!([]);
    let error = apply(
        typing_of(&config),
        None,
        &config,
        &writer("a", "apps/v1"),
        false,
    )
    .unwrap_err();
    assert_eq!(error.to_string(), "metadata.managedFields must be nil");

    let mut config = deployment("i:1", 2);
    config["spec"]["replica"] = json!(1);
    let error = apply(
        typing_of(&config),
        None,
        &config,
        &writer("a", "apps/v1"),
        false,
    )
    .unwrap_err();
    assert!(
        error
            .to_string()
            .contains(".spec.replica: field not declared in schema"),
        "{error}"
    );

    let mut config = deployment("i:1", 2);
    config["spec"]["template"]["spec"]["containers"] = json!([{"image": "x"}]);
    let error = apply(
        typing_of(&config),
        None,
        &config,
        &writer("a", "apps/v1"),
        false,
    )
    .unwrap_err();
    assert_eq!(Status::from(error).code(), 400);
}

#[test]
fn an_update_moves_what_it_changes() {
    let mut object = deployment("i:1", 2);
    track_update(
        typing_of(&object),
        None,
        &mut object,
        &writer("kubectl-create", "apps/v1"),
    );
    let mut changed = object.clone();
    changed["spec"]["replicas"] = json!(3);
    changed["metadata"]
        .as_object_mut()
        .unwrap()
        .remove("labels");
    track_update(
        typing_of(&object),
        Some(&object),
        &mut changed,
        &writer("kubectl-edit", "apps/v1"),
    );
    assert_eq!(
        fields_of(&changed, "kubectl-edit"),
        json!({"f:spec": {"f:replicas": {}}})
    );
    let before = fields_of(&changed, "kubectl-create");
    assert!(before.pointer("/f:spec/f:replicas").is_none());
    assert!(before.pointer("/f:metadata").is_none());
    assert!(before.pointer("/f:spec/f:selector").is_some());

    // A client that does not know managedFields does not destroy them; one that empties them does.
    let mut ignorant = changed.clone();
    entries::strip(&mut ignorant);
    track_update(
        typing_of(&object),
        Some(&changed),
        &mut ignorant,
        &writer("x", "apps/v1"),
    );
    assert_eq!(ignorant, changed);
    let mut reset = changed.clone();
    reset["metadata"]["managedFields"] = json!([{}]);
    track_update(
        typing_of(&object),
        Some(&changed),
        &mut reset,
        &writer("x", "apps/v1"),
    );
    assert!(reset["metadata"].get("managedFields").is_none());
}

#[test]
fn old_updaters_are_folded() {
    let base =
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, "data": {}});
    let mut live = base.clone();
    for i in 0..14 {
        let mut new = live.clone();
        new["data"][format!("k{i:02}")] = json!("v");
        let manager = format!("m{i:02}");
        let now = format!("2026-11-21T20:00:{i:02}Z");
        let writer = Writer {
            now: &now,
            ..writer(&manager, "v1")
        };
        track_update(typing_of(&base), Some(&live), &mut new, &writer);
        live = new;
    }
    let entries = decode(&live).unwrap();
    assert_eq!(entries.len(), 10);
    assert_eq!(entries[0].manager, "ancient-changes");
    assert_eq!(entries[0].time, "2026-11-21T20:00:04Z");
    let owned = entries
        .iter()
        .fold(FieldSet::default(), |all, e| all.union(&e.fields));
    assert_eq!(owned.paths().len(), 14);
}

#[test]
fn custom_resources_merge_by_their_schema() {
    let schema = Structural::parse(
        &json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {
            "size": {"type": "integer"},
            "set": {"type": "array", "items": {"type": "string"}, "x-kubernetes-list-type": "set"},
            "plain": {"type": "array", "items": {"type": "string"}},
            "rules": {"type": "array", "x-kubernetes-list-type": "map",
                "x-kubernetes-list-map-keys": ["name"],
                "items": {"type": "object", "required": ["name"], "properties": {
                    "name": {"type": "string"}, "value": {"type": "integer"}}}},
        }}}}),
        "s",
    )
    .unwrap();
    let config = |spec: Value| json!({"apiVersion": "x.io/v1", "kind": "X", "metadata": {"name": "x"}, "spec": spec});
    let typing = Typing::Crd(&schema);
    let by = |manager| writer(manager, "x.io/v1");
    let one = config(json!({"set": ["a"], "plain": ["p"], "rules": [{"name": "r", "value": 1}]}));
    let two = config(json!({"size": 2, "set": ["b"], "rules": [{"name": "s", "value": 2}]}));
    let live = apply(typing, None, &one, &by("one"), false).unwrap();
    let live = apply(typing, Some(&live), &two, &by("two"), false).unwrap();
    assert_eq!(
        live["spec"],
        json!({"size": 2, "set": ["a", "b"], "plain": ["p"],
            "rules": [{"name": "r", "value": 1}, {"name": "s", "value": 2}]})
    );
    let live = apply(
        typing,
        Some(&live),
        &config(json!({"set": ["a"]})),
        &by("one"),
        false,
    )
    .unwrap();
    assert_eq!(
        live["spec"],
        json!({"size": 2, "set": ["a", "b"], "rules": [{"name": "s", "value": 2}]})
    );

    let mut created = one.clone();
    track_update(typing, None, &mut created, &by("u"));
    assert_eq!(
        fields_of(&created, "u"),
        json!({"f:spec": {".": {}, "f:plain": {},
            "f:set": {".": {}, "v:\"a\"": {}},
            "f:rules": {".": {}, "k:{\"name\":\"r\"}": {".": {}, "f:name": {}, "f:value": {}}}}})
    );
}

fn element() -> impl Strategy<Value = PathElement> {
    prop_oneof![
        "[a-c./\"]{1,3}".prop_map(PathElement::Field),
        ("[a-c]", 0..3i64).prop_map(|(n, v)| PathElement::key([(n.as_str(), json!(v))])),
        ("[a-c\\\\\"]{0,2}", any::<bool>())
            .prop_map(|(n, v)| PathElement::key([("p", json!(n)), ("q", json!(v))])),
        "[a-c:\"]{0,2}".prop_map(|v| PathElement::value(&json!(v))),
        (0..4usize).prop_map(PathElement::Index),
    ]
}

fn set() -> impl Strategy<Value = FieldSet> {
    prop::collection::vec(prop::collection::vec(element(), 1..4), 0..8).prop_map(|paths| {
        let mut set = FieldSet::default();
        for path in paths {
            set.insert(&path);
        }
        set
    })
}

/// A config map's data by one of few keys, so that writers meet.
fn data() -> impl Strategy<Value = Value> {
    prop::collection::btree_map("[a-d]", 0..3u8, 0..4).prop_map(|entries| {
        let data: Map<String, Value> = entries
            .into_iter()
            .map(|(k, v)| (k, json!(v.to_string())))
            .collect();
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, "data": data})
    })
}

proptest! {
    #[test]
    fn fields_v1_round_trip(set in set()) {
        prop_assert_eq!(FieldSet::from_fields_v1(&set.to_fields_v1()).unwrap(), set);
    }

    #[test]
    fn set_algebra(a in set(), b in set()) {
        let union = a.clone().union(&b);
        let both = a.intersection(&b);
        prop_assert_eq!(&union, &b.clone().union(&a));
        prop_assert_eq!(&both, &b.intersection(&a));
        prop_assert_eq!(&a.difference(&b).union(&both), &a);
        prop_assert!(a.difference(&b).intersection(&b).is_empty());
        for path in a.paths() {
            prop_assert!(a.contains(&path) && union.contains(&path));
            prop_assert_eq!(both.contains(&path), b.contains(&path));
        }
        prop_assert_eq!(union.difference(&a), b.difference(&a));
    }

    #[test]
    fn apply_is_idempotent_and_gives_what_was_asked(first in data(), second in data()) {
        let typing = typing_of(&first);
        let live = apply(typing, None, &first, &writer("a", "v1"), false).unwrap();
        let again = apply(typing, Some(&live), &first, &writer("a", "v1"), false).unwrap();
        prop_assert_eq!(&again, &live);
        // The only applier gets exactly its configuration.
        let next = apply(typing, Some(&live), &second, &writer("a", "v1"), false).unwrap();
        let mut bare = next.clone();
        entries::strip(&mut bare);
        let empty = |v: &Value| v["data"].as_object().is_none_or(Map::is_empty);
        if empty(&second) {
            prop_assert!(empty(&bare));
        } else {
            prop_assert_eq!(&bare, &second);
        }
        // Forced over someone else's: what was asked is there, and nothing else was lost.
        let other = apply(typing, Some(&live), &second, &writer("b", "v1"), true).unwrap();
        for (key, value) in second["data"].as_object().unwrap() {
            prop_assert_eq!(&other["data"][key], value);
        }
        for key in first["data"].as_object().unwrap().keys() {
            prop_assert!(other["data"].get(key).is_some());
        }
    }

    #[test]
    fn conflicts_are_the_keys_with_other_values(first in data(), second in data()) {
        let typing = typing_of(&first);
        let live = apply(typing, None, &first, &writer("a", "v1"), false).unwrap();
        let expected: Vec<String> = second["data"]
            .as_object()
            .unwrap()
            .iter()
            .filter(|(k, v)| first["data"].get(*k).is_some_and(|old| old != *v))
            .map(|(k, _)| format!(".data.{k}"))
            .collect();
        match apply(typing, Some(&live), &second, &writer("b", "v1"), false) {
            Ok(_) => prop_assert!(expected.is_empty()),
            Err(ApplyError::Conflict(conflicts)) => {
                let fields: Vec<String> = conflicts.into_iter().map(|c| c.field).collect();
                prop_assert_eq!(fields, expected);
            }
            Err(other) => prop_assert!(false, "{}", other),
        }
    }

    #[test]
    fn every_field_has_an_owner(writes in prop::collection::vec((0..4u8, data()), 1..6)) {
        let mut live: Option<Value> = None;
        for (manager, mut new) in writes {
            let manager = format!("m{manager}");
            track_update(typing_of(&new), live.as_ref(), &mut new, &writer(&manager, "v1"));
            live = Some(new);
        }
        let live = live.unwrap();
        let entries = decode(&live).unwrap();
        for key in live["data"].as_object().unwrap().keys() {
            let path = [PathElement::field("data"), PathElement::field(key)];
            // By value: exactly the manager that wrote it last.
            prop_assert_eq!(entries.iter().filter(|e| e.fields.contains(&path)).count(), 1);
        }
    }
}

/// Facts of `client-go/applyconfigurations/internal`, one of each sort.
#[test]
fn parts_of_built_in_kinds_merge_as_the_api_says() {
    use super::typing::{Shape, Type};
    for (message, field, shape) in [
        ("core.v1.PodSpec", "containers", "name"),
        ("core.v1.Container", "ports", "containerPort,protocol"),
        ("core.v1.ServiceSpec", "ports", "port,protocol"),
        ("core.v1.PodSpec", "tolerations", "leaf"),
        ("core.v1.PodSpec", "nodeSelector", "leaf"),
        (
            "core.v1.PodSpec",
            "topologySpreadConstraints",
            "topologyKey,whenUnsatisfiable",
        ),
        ("core.v1.ServiceSpec", "selector", "leaf"),
        ("core.v1.ConfigMap", "data", "map"),
        ("core.v1.NodeSpec", "podCIDRs", "set"),
        ("core.v1.PersistentVolumeSpec", "claimRef", "map"),
        ("core.v1.PersistentVolumeClaimSpec", "selector", "leaf"),
        ("apps.v1.ControllerRevision", "data", "leaf"),
        (
            "autoscaling.v1.HorizontalPodAutoscalerSpec",
            "scaleTargetRef",
            "leaf",
        ),
        (
            "autoscaling.v2.HorizontalPodAutoscalerSpec",
            "scaleTargetRef",
            "map",
        ),
        ("rbac.v1.RoleBinding", "roleRef", "leaf"),
        ("rbac.v1.RoleBinding", "subjects", "leaf"),
        ("networking.v1.IngressServiceBackend", "port", "leaf"),
    ] {
        let message = schema::message(&format!("io.k8s.api.{message}")).unwrap();
        let field = schema::field(message, field).unwrap();
        let sample = if field.repeated { json!([]) } else { json!({}) };
        let found = match Type::Field(field).shape(Some(&sample)) {
            Shape::Leaf => "leaf".to_owned(),
            Shape::Map => "map".to_owned(),
            Shape::Set(_) => "set".to_owned(),
            Shape::Keyed(keys, _) => keys.names().join(","),
        };
        assert_eq!(found, shape, "{message:?} {}", field.json_name);
    }
}
