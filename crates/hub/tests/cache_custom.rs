//! Custom resources, and what is known to be empty told from what is not known: without the cloud.

mod node;

use node::{JSON, Node, TABLE, query};
use serde_json::json;
use yurt_hub::{cache::Lookup, caller::Caller};
use yurt_wire::{
    Encoding, Gvk, Gvr, Object,
    list::SplitList,
    watch::{Event, EventType, bookmark},
};

const THINGS: &str = "/apis/x.example/v1/namespaces/a/things";
const PARTIAL_LIST: &str = "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io";
const PARTIAL: &str = "application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io";

fn thing(name: &str, revision: u64) -> Object {
    Object {
        encoding: Encoding::Json,
        bytes: json!({
            "apiVersion": "x.example/v1",
            "kind": "Thing",
            "metadata": {"name": name, "namespace": "a", "uid": format!("uid-{name}"),
                "resourceVersion": revision.to_string(), "labels": {"name": name}},
            "spec": {"anything": {"goes": [1, 2, 3]}},
        })
        .to_string()
        .into(),
    }
}

fn learn(node: &Node, path: &str, revision: u64, continue_token: &str, items: Vec<Object>) {
    let mut learner = node.cache.list_learner(&Caller::Node, &query(path));
    learner.page(SplitList {
        gvk: Gvk::from_api_version("x.example/v1", "ThingList"),
        resource_version: revision.to_string(),
        continue_token: continue_token.into(),
        remaining: None,
        items,
    });
    learner.finish();
}

fn names(list: &serde_json::Value) -> Vec<&str> {
    let items = list["items"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    items
        .iter()
        .filter_map(|item| item["metadata"]["name"].as_str())
        .collect()
}

#[tokio::test]
async fn custom_resources_are_served_in_every_shape_after_a_restart() {
    let node = Node::new();
    learn(
        &node,
        THINGS,
        50,
        "",
        vec![thing("one", 40), thing("two", 41)],
    );
    let node = node.restart().await;
    let listed = node.get(THINGS, JSON).await;
    assert_eq!(listed.code, 200);
    let list = listed.json();
    assert_eq!(
        (&list["kind"], &list["apiVersion"]),
        (&json!("ThingList"), &json!("x.example/v1"))
    );
    assert_eq!(names(&list), ["one", "two"]);
    assert_eq!(
        list["items"][0]["spec"]["anything"]["goes"],
        json!([1, 2, 3])
    );
    // client-go asks for protobuf first where it does not know better; custom resources have none.
    let preferred = "application/vnd.kubernetes.protobuf,application/json";
    let either = node.get(THINGS, preferred).await;
    assert_eq!((either.code, either.content_type.as_str()), (200, JSON));
    let partial = node.get(THINGS, PARTIAL_LIST).await.json();
    assert_eq!(partial["kind"], "PartialObjectMetadataList");
    assert_eq!(names(&partial), ["one", "two"]);
    assert_eq!(partial["items"][0]["metadata"]["labels"]["name"], "one");
    assert!(partial["items"][0].get("spec").is_none());
    let one = node.get(&format!("{THINGS}/one"), PARTIAL).await.json();
    assert_eq!(
        (&one["kind"], &one["metadata"]["uid"]),
        (&json!("PartialObjectMetadata"), &json!("uid-one"))
    );
    let table = node.get(THINGS, TABLE).await.json();
    assert_eq!(
        (&table["kind"], &table["rows"][1]["cells"][0]),
        (&json!("Table"), &json!("two"))
    );
    let selected = node
        .get(&format!("{THINGS}?labelSelector=name%3Dtwo"), JSON)
        .await
        .json();
    assert_eq!(names(&selected), ["two"]);
}

/// hub.md W6, W7: empty because the cloud said so is not empty because nobody asked.
#[tokio::test]
async fn w6_known_to_be_empty_is_not_unknown() {
    let node = Node::new();
    learn(&node, THINGS, 50, "", Vec::new());
    let elsewhere = "/apis/x.example/v1/namespaces/b/things";
    let others = "/apis/x.example/v1/others";
    let node = node.restart().await;
    let empty = node.get(THINGS, JSON).await;
    assert_eq!(
        (empty.code, empty.json()["kind"].clone()),
        (200, json!("ThingList"))
    );
    assert_eq!(names(&empty.json()), Vec::<&str>::new());
    assert_eq!(empty.json()["metadata"]["resourceVersion"], "50");
    assert_eq!(node.get(&format!("{THINGS}/none"), JSON).await.code, 404);
    for unknown in [elsewhere, others, "/apis/x.example/v1/things"] {
        assert_eq!(node.get(unknown, JSON).await.code, 503, "{unknown}");
    }
    assert_eq!(node.get(&format!("{elsewhere}/none"), JSON).await.code, 503);
}

/// hub.md W6: the last page of a paged list is not the list.
#[tokio::test]
async fn w6_a_paged_list_that_broke_off_erases_nothing_and_is_not_complete() {
    let node = Node::new();
    learn(
        &node,
        THINGS,
        50,
        "",
        vec![thing("one", 40), thing("two", 41)],
    );
    // A new list of which only the first page came.
    learn(&node, THINGS, 60, "more", vec![thing("one", 55)]);
    let list = node.get(THINGS, JSON).await.json();
    assert_eq!(names(&list), ["one", "two"]);
    assert_eq!(list["metadata"]["resourceVersion"], "50");
    // A single list with a limit answers only what it was asked for.
    let fresh = Node::new();
    learn(&fresh, THINGS, 60, "more", vec![thing("one", 55)]);
    assert_eq!(fresh.get(THINGS, JSON).await.code, 503);
    assert_eq!(fresh.get(&format!("{THINGS}/one"), JSON).await.code, 200);
}

/// hub.md W6: a named list without items says that one object is not there, and nothing of the others.
#[tokio::test]
async fn w6_a_named_empty_list_takes_one_object_at_most() {
    let node = Node::new();
    learn(
        &node,
        THINGS,
        50,
        "",
        vec![thing("one", 40), thing("two", 41)],
    );
    learn(
        &node,
        &format!("{THINGS}?fieldSelector=metadata.name%3Dnone"),
        60,
        "",
        Vec::new(),
    );
    let node = node.restart().await;
    assert_eq!(names(&node.get(THINGS, JSON).await.json()), ["one", "two"]);
    learn(
        &node,
        &format!("{THINGS}?fieldSelector=metadata.name%3Dtwo"),
        61,
        "",
        Vec::new(),
    );
    let node = node.restart().await;
    assert_eq!(names(&node.get(THINGS, JSON).await.json()), ["one"]);
    let gone = node.cache.get(
        &Caller::Node,
        &Gvr::new("x.example", "v1", "things"),
        "a",
        "two",
    );
    assert!(matches!(gone, Lookup::KnownAbsent), "{gone:?}");
}

/// hub.md W6: what another watch of the same path shows does not pollute a list, and what a watch shows at its start to be gone
/// goes.
#[tokio::test]
async fn w6_watches_of_custom_resources_prune_and_do_not_pollute() {
    let node = Node::new();
    learn(
        &node,
        &format!("{THINGS}?labelSelector=name%3Done"),
        50,
        "",
        vec![thing("one", 40)],
    );
    let mut other = node.cache.watch_learner(
        &Caller::Node,
        &query(&format!("{THINGS}?labelSelector=name%3Dtwo")),
        "50",
        false,
    );
    other.event(&Event {
        kind: EventType::Added,
        object: thing("two", 51),
    });
    assert_eq!(node.get(THINGS, JSON).await.code, 503);
    let one = node
        .get(&format!("{THINGS}?labelSelector=name%3Done"), JSON)
        .await
        .json();
    assert_eq!(names(&one), ["one"]);
    let mut all = node
        .cache
        .watch_learner(&Caller::Node, &query(THINGS), "", true);
    all.event(&Event {
        kind: EventType::Added,
        object: thing("two", 51),
    });
    let gvk = Gvk::from_api_version("x.example/v1", "Thing");
    all.event(&Event {
        kind: EventType::Bookmark,
        object: bookmark(&gvk, "70", true, Encoding::Json),
    });
    assert_eq!(names(&node.get(THINGS, JSON).await.json()), ["two"]);
    let node = node.restart().await;
    assert_eq!(names(&node.get(THINGS, JSON).await.json()), ["two"]);
    let one = node
        .get(&format!("{THINGS}?labelSelector=name%3Done"), JSON)
        .await
        .json();
    assert_eq!(names(&one), Vec::<&str>::new());
}
