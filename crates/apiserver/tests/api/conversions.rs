//! Custom resources in several versions.

use crate::{
    client::Cluster,
    hook::{Hook, Reaction},
};
use serde_json::{Value, json};

const CRDS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
const V1: &str = "/apis/example.com/v1/namespaces/default/things";
const V2: &str = "/apis/example.com/v2/namespaces/default/things";

/// Two versions: `hostPort` in v1 is `host` and `port` in v2.
fn definition(conversion: &Value) -> Value {
    let schema =
        |fields: Value| json!({"openAPIV3Schema": {"type": "object", "properties": fields}});
    let text = json!({"type": "string"});
    json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "things.example.com"}, "spec": {"group": "example.com", "scope": "Namespaced",
            "names": {"plural": "things", "kind": "Thing"}, "conversion": conversion,
            "versions": [
                {"name": "v1", "served": true, "storage": true, "schema": schema(json!({"hostPort": text}))},
                {"name": "v2", "served": true, "storage": false, "schema": schema(json!({"host": text, "port": text}))}]}})
}

fn thing(version: &str, name: &str, fields: &Value) -> Value {
    let mut thing = json!({"apiVersion": format!("example.com/{version}"), "kind": "Thing", "metadata": {"name": name}});
    for (field, value) in fields.as_object().into_iter().flatten() {
        thing[field] = value.clone();
    }
    thing
}

/// Converts as the definition wants it.
fn convert(review: &Value) -> Reaction {
    let request = &review["request"];
    let wanted = request["desiredAPIVersion"].as_str().expect("a version");
    let objects = request["objects"].as_array().expect("objects");
    let converted: Vec<Value> = objects
        .iter()
        .map(|object| {
            let mut object = object.clone();
            let fields = object.as_object_mut().expect("an object");
            if wanted.ends_with("v2") {
                let both = fields.remove("hostPort").unwrap_or_default();
                let (host, port) = both
                    .as_str()
                    .expect("a text")
                    .split_once(':')
                    .expect("two parts");
                fields.insert("host".into(), host.into());
                fields.insert("port".into(), port.into());
            } else {
                let part = |value: Option<Value>| {
                    value
                        .unwrap_or_default()
                        .as_str()
                        .unwrap_or_default()
                        .to_owned()
                };
                let both = format!(
                    "{}:{}",
                    part(fields.remove("host")),
                    part(fields.remove("port"))
                );
                fields.insert("hostPort".into(), both.into());
            }
            fields.insert("apiVersion".into(), wanted.into());
            object
        })
        .collect();
    Reaction::Answer(
        json!({"apiVersion": review["apiVersion"], "kind": "ConversionReview", "response": {
        "uid": request["uid"], "result": {"status": "Success"}, "convertedObjects": converted}}),
    )
}

fn webhook(hook: &Hook, path: &str) -> Value {
    json!({"strategy": "Webhook", "webhook": {"clientConfig": hook.client(path), "conversionReviewVersions": ["v1"]}})
}

#[tokio::test]
async fn a_webhook_converts_on_every_way() {
    let cluster = Cluster::start().await;
    let hook = Hook::start(|_, review| convert(review)).await;
    cluster
        .post(CRDS, &definition(&webhook(&hook, "/c")))
        .await
        .expect(201);
    let fields = json!({"host": "a", "port": "80"});
    let created = cluster
        .post(V2, &thing("v2", "x", &fields))
        .await
        .expect(201);
    assert_eq!(created["apiVersion"], "example.com/v2");
    assert_eq!(created["host"], "a");
    let stored = cluster.get(&format!("{V1}/x")).await.expect(200);
    assert_eq!(stored["hostPort"], "a:80");
    assert_eq!(stored["metadata"]["uid"], created["metadata"]["uid"]);
    assert_eq!(
        stored["metadata"]["resourceVersion"],
        created["metadata"]["resourceVersion"]
    );

    cluster
        .post(V1, &thing("v1", "y", &json!({"hostPort": "b:81"})))
        .await
        .expect(201);
    let list = cluster.get(V2).await.expect(200);
    let hosts: Vec<&Value> = list["items"]
        .as_array()
        .expect("items")
        .iter()
        .map(|i| &i["host"])
        .collect();
    assert_eq!(hosts, ["a", "b"]);
    let changed = cluster
        .merge(&format!("{V2}/y"), &json!({"port": "82"}))
        .await
        .expect(200);
    assert_eq!(changed["host"], "b");
    assert_eq!(changed["port"], "82");
    assert_eq!(
        cluster.get(&format!("{V1}/y")).await.expect(200)["hostPort"],
        "b:82"
    );

    let mut watch = cluster
        .watch(&format!("{V2}?watch=true&resourceVersion=0"))
        .await;
    for host in ["a", "b"] {
        let (_, object) = watch.next().await.expect("an event");
        assert_eq!(object["apiVersion"], "example.com/v2");
        assert_eq!(object["host"], host);
    }
    cluster.delete(&format!("{V2}/y")).await.expect(200);
    let (_, gone) = watch.next().await.expect("an event");
    assert_eq!(gone["port"], "82");
}

#[tokio::test]
async fn objects_of_mixed_versions_are_served_in_one() {
    let cluster = Cluster::start().await;
    let hook = Hook::start(|_, review| convert(review)).await;
    cluster
        .post(CRDS, &definition(&webhook(&hook, "/c")))
        .await
        .expect(201);
    cluster
        .post(V1, &thing("v1", "x", &json!({"hostPort": "a:80"})))
        .await
        .expect(201);
    let swap = json!([
        {"op": "replace", "path": "/spec/versions/0/storage", "value": false},
        {"op": "replace", "path": "/spec/versions/1/storage", "value": true}]);
    let changed = cluster
        .patch(
            &format!("{CRDS}/things.example.com"),
            "application/json-patch+json",
            &swap,
        )
        .await
        .expect(200);
    assert_eq!(changed["status"]["storedVersions"], json!(["v1", "v2"]));
    cluster
        .post(V2, &thing("v2", "y", &json!({"host": "b", "port": "81"})))
        .await
        .expect(201);
    for (path, field, values) in [(V1, "hostPort", ["a:80", "b:81"]), (V2, "host", ["a", "b"])] {
        let list = cluster.get(path).await.expect(200);
        let items = list["items"].as_array().expect("items");
        let found: Vec<&Value> = items.iter().map(|item| &item[field]).collect();
        assert_eq!(found, values, "{list}");
    }
    cluster.delete(&format!("{V2}/x")).await.expect(200);
}

#[tokio::test]
async fn without_a_webhook_only_the_version_changes() {
    let cluster = Cluster::start().await;
    cluster
        .post(CRDS, &definition(&json!({"strategy": "None"})))
        .await
        .expect(201);
    cluster
        .post(V1, &thing("v1", "x", &json!({"hostPort": "a:80"})))
        .await
        .expect(201);
    let swap = json!([
        {"op": "replace", "path": "/spec/versions/0/storage", "value": false},
        {"op": "replace", "path": "/spec/versions/1/storage", "value": true}]);
    cluster
        .patch(
            &format!("{CRDS}/things.example.com"),
            "application/json-patch+json",
            &swap,
        )
        .await
        .expect(200);
    let shown = cluster.get(&format!("{V2}/x")).await.expect(200);
    assert_eq!(shown["apiVersion"], "example.com/v2");
    let list = cluster.get(V2).await.expect(200);
    assert_eq!(list["items"][0]["apiVersion"], "example.com/v2");
}

#[tokio::test]
async fn a_conversion_that_fails_is_an_error() {
    let cluster = Cluster::start().await;
    let hook = Hook::start(|_, review| {
        Reaction::Answer(json!({"apiVersion": review["apiVersion"], "kind": "ConversionReview", "response": {
            "uid": review["request"]["uid"], "result": {"status": "Failure", "message": "no way"}}}))
    })
    .await;
    cluster
        .post(CRDS, &definition(&webhook(&hook, "/c")))
        .await
        .expect(201);
    cluster
        .post(V1, &thing("v1", "x", &json!({"hostPort": "a:80"})))
        .await
        .expect(201);
    for path in [format!("{V2}/x"), V2.to_owned()] {
        let failed = cluster.get(&path).await.expect(500);
        assert_eq!(
            failed["message"],
            "conversion webhook for example.com/v1, Kind=Thing failed: no way"
        );
    }
    let failed = cluster
        .post(V2, &thing("v2", "y", &json!({})))
        .await
        .expect(500);
    assert_eq!(
        failed["message"],
        "conversion webhook for example.com/v2, Kind=Thing failed: no way"
    );
    cluster.get(&format!("{V1}/x")).await.expect(200);
    cluster
        .delete(&format!("{CRDS}/things.example.com"))
        .await
        .expect(200);
    cluster
        .until(&format!("{CRDS}/things.example.com"), 404)
        .await;
}

#[tokio::test]
async fn a_name_belongs_to_one_definition_of_a_group() {
    let cluster = Cluster::start().await;
    let none = json!({"strategy": "None"});
    cluster.post(CRDS, &definition(&none)).await.expect(201);
    let mut second = definition(&none);
    second["metadata"]["name"] = "others.example.com".into();
    second["spec"]["names"] = json!({"plural": "others", "kind": "Thing"});
    let refused = cluster.post(CRDS, &second).await.expect(201);
    let conditions = refused["status"]["conditions"]
        .as_array()
        .expect("conditions");
    let short: Vec<String> = conditions
        .iter()
        .map(|c| format!("{} {} {}", c["type"], c["status"], c["reason"]).replace('"', ""))
        .collect();
    assert_eq!(
        short,
        [
            "NamesAccepted False ListKindConflict",
            "Established False NotAccepted"
        ]
    );
    let others = "/apis/example.com/v1/namespaces/default/others";
    cluster.get(others).await.expect(404);
    // When the first goes, the second gets its names.
    cluster
        .delete(&format!("{CRDS}/things.example.com"))
        .await
        .expect(200);
    cluster.until(others, 200).await;
}
