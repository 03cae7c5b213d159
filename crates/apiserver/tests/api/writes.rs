use crate::client::{CONFIG_MAPS, Cluster, config_map, revision};
use serde_json::{Value, json};

const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";
const SERVICES: &str = "/api/v1/namespaces/default/services";

fn deployment(name: &str) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name},
        "spec": {"replicas": 2, "selector": {"matchLabels": {"app": name}},
            "template": {"metadata": {"labels": {"app": name}},
                "spec": {"containers": [{"name": "c", "image": "i"}]}}}})
}

#[tokio::test]
async fn the_slower_of_two_writers_is_told() {
    let cluster = Cluster::start().await;
    let created = cluster
        .post(CONFIG_MAPS, &config_map("a"))
        .await
        .expect(201);
    let path = format!("{CONFIG_MAPS}/a");
    let mut first = created.clone();
    first["data"]["a"] = "first".into();
    cluster.put(&path, &first).await.expect(200);
    let mut second = created;
    second["data"]["a"] = "second".into();
    let refused = cluster.put(&path, &second).await.expect(409);
    assert_eq!(
        refused["message"],
        "Operation cannot be fulfilled on configmaps \"a\": the object has been modified; please apply your changes to the latest version and try again"
    );
    // Without a revision it is not asked.
    second["metadata"] = json!({"name": "a"});
    assert_eq!(
        cluster.put(&path, &second).await.expect(200)["data"]["a"],
        "second"
    );
}

#[tokio::test]
async fn concurrent_patches_are_all_kept() {
    let cluster = Cluster::start().await;
    cluster
        .post(CONFIG_MAPS, &config_map("a"))
        .await
        .expect(201);
    let path = format!("{CONFIG_MAPS}/a");
    let patches: Vec<Value> = (0..20)
        .map(|n| json!({"data": {format!("k{n}"): "v"}}))
        .collect();
    let mut answers = Vec::new();
    for patch in &patches {
        answers.push(cluster.merge(&path, patch));
    }
    for answer in futures(answers).await {
        answer.expect(200);
    }
    let object = cluster.get(&path).await.expect(200);
    assert_eq!(
        object["data"].as_object().map(serde_json::Map::len),
        Some(21)
    );
}

/// Polls all at once.
async fn futures<F: Future>(all: Vec<F>) -> Vec<F::Output> {
    let mut all: Vec<_> = all.into_iter().map(Box::pin).collect();
    let mut done: Vec<Option<F::Output>> = all.iter().map(|_| None).collect();
    std::future::poll_fn(|cx| {
        for (future, slot) in all.iter_mut().zip(&mut done) {
            if slot.is_none()
                && let std::task::Poll::Ready(output) = future.as_mut().poll(cx)
            {
                *slot = Some(output);
            }
        }
        if done.iter().all(Option::is_some) {
            std::task::Poll::Ready(())
        } else {
            std::task::Poll::Pending
        }
    })
    .await;
    done.into_iter().flatten().collect()
}

#[tokio::test]
async fn a_change_that_changes_nothing_makes_no_revision() {
    let cluster = Cluster::start().await;
    let created = cluster
        .post(CONFIG_MAPS, &config_map("a"))
        .await
        .expect(201);
    let path = format!("{CONFIG_MAPS}/a");
    let same = cluster.put(&path, &created).await.expect(200);
    assert_eq!(revision(&same), revision(&created));
    let same = cluster
        .merge(&path, &json!({"data": {"a": "b"}}))
        .await
        .expect(200);
    assert_eq!(revision(&same), revision(&created));
}

#[tokio::test]
async fn a_dry_run_answers_and_leaves_nothing() {
    let cluster = Cluster::start().await;
    let answer = cluster
        .post(&format!("{CONFIG_MAPS}?dryRun=All"), &config_map("a"))
        .await
        .expect(201);
    assert!(answer["metadata"]["uid"].is_string());
    cluster.get(&format!("{CONFIG_MAPS}/a")).await.expect(404);
    cluster
        .post(CONFIG_MAPS, &config_map("a"))
        .await
        .expect(201);
    let path = format!("{CONFIG_MAPS}/a?dryRun=All");
    let patched = cluster
        .merge(&path, &json!({"data": {"a": "c"}}))
        .await
        .expect(200);
    assert_eq!(patched["data"]["a"], "c");
    cluster.delete(&path).await.expect(200);
    let object = cluster.get(&format!("{CONFIG_MAPS}/a")).await.expect(200);
    assert_eq!(object["data"]["a"], "b");
    cluster
        .post(&format!("{CONFIG_MAPS}?dryRun=Some"), &config_map("b"))
        .await
        .expect(422);
}

#[tokio::test]
async fn status_and_spec_are_written_apart_and_scale_shows_both() {
    let cluster = Cluster::start().await;
    let created = cluster
        .post(DEPLOYMENTS, &deployment("d"))
        .await
        .expect(201);
    assert_eq!(created["metadata"]["generation"], 1);
    let path = format!("{DEPLOYMENTS}/d");
    let both = json!({"spec": {"replicas": 3}, "status": {"replicas": 7}});
    let changed = cluster.merge(&path, &both).await.expect(200);
    assert_eq!(changed["spec"]["replicas"], 3);
    assert!(changed["status"].get("replicas").is_none());
    assert_eq!(changed["metadata"]["generation"], 2);
    let status = format!("{path}/status");
    let both = json!({"spec": {"replicas": 4}, "status": {"replicas": 7}});
    let changed = cluster.merge(&status, &both).await.expect(200);
    assert_eq!(changed["spec"]["replicas"], 3);
    assert_eq!(changed["status"]["replicas"], 7);
    assert_eq!(changed["metadata"]["generation"], 2);
    let scale = cluster.get(&format!("{path}/scale")).await.expect(200);
    assert_eq!(scale["spec"]["replicas"], 3);
    assert_eq!(scale["status"], json!({"replicas": 7, "selector": "app=d"}));
    let scaled = cluster
        .merge(&format!("{path}/scale"), &json!({"spec": {"replicas": 9}}))
        .await
        .expect(200);
    assert_eq!(scaled["kind"], "Scale");
    let object = cluster.get(&path).await.expect(200);
    assert_eq!(object["spec"]["replicas"], 9);
}

#[tokio::test]
async fn the_patches_of_the_api_all_work() {
    let cluster = Cluster::start().await;
    cluster
        .post(DEPLOYMENTS, &deployment("d"))
        .await
        .expect(201);
    let path = format!("{DEPLOYMENTS}/d");
    let strategic = json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": "j"}, {"name": "e", "image": "k"}]}}}});
    let object = cluster
        .patch(&path, "application/strategic-merge-patch+json", &strategic)
        .await
        .expect(200);
    let containers = &object["spec"]["template"]["spec"]["containers"];
    assert_eq!(containers.as_array().map(Vec::len), Some(2));
    let json = json!([{"op": "test", "path": "/spec/replicas", "value": 2}, {"op": "replace", "path": "/spec/replicas", "value": 5}]);
    let object = cluster
        .patch(&path, "application/json-patch+json", &json)
        .await
        .expect(200);
    assert_eq!(object["spec"]["replicas"], 5);
    cluster
        .patch(&path, "application/json-patch+json", &json)
        .await
        .expect(422);
    let apply = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}, "spec": {"replicas": 6}});
    let media = "application/apply-patch+yaml";
    let refused = cluster
        .patch(&format!("{path}?fieldManager=me"), media, &apply)
        .await
        .expect(409);
    assert_eq!(
        refused["details"]["causes"][0]["reason"],
        "FieldManagerConflict"
    );
    let object = cluster
        .patch(&format!("{path}?fieldManager=me&force=true"), media, &apply)
        .await
        .expect(200);
    assert_eq!(object["spec"]["replicas"], 6);
    cluster.patch(&path, media, &apply).await.expect(422);
    // An apply of what is not there creates it.
    let mut other = deployment("other");
    other["metadata"]["labels"] = json!({"a": "b"});
    let path = format!("{DEPLOYMENTS}/other?fieldManager=me");
    let created = cluster.patch(&path, media, &other).await.expect(201);
    assert_eq!(
        created["metadata"]["managedFields"][0]["operation"],
        "Apply"
    );
    other["metadata"] = json!({"name": "other"});
    let again = cluster.patch(&path, media, &other).await.expect(200);
    assert!(again["metadata"].get("labels").is_none());
}

#[tokio::test]
async fn services_get_addresses_and_keep_them() {
    let cluster = Cluster::start().await;
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s"},
        "spec": {"type": "NodePort", "ports": [{"port": 80}], "selector": {"a": "b"}}});
    let created = cluster.post(SERVICES, &service).await.expect(201);
    let ip = created["spec"]["clusterIP"]
        .as_str()
        .expect("an address")
        .to_owned();
    assert!(ip.starts_with("10."), "{ip}");
    assert!(created["spec"]["ports"][0]["nodePort"].is_u64());
    let mut again = service.clone();
    again["spec"]["selector"] = json!({"a": "c"});
    let replaced = cluster
        .put(&format!("{SERVICES}/s"), &again)
        .await
        .expect(200);
    assert_eq!(replaced["spec"]["clusterIP"], ip);
    assert_eq!(
        replaced["spec"]["ports"][0]["nodePort"],
        created["spec"]["ports"][0]["nodePort"]
    );
    let mut taken = service;
    taken["metadata"]["name"] = "t".into();
    taken["spec"]["clusterIP"] = ip.into();
    cluster.post(SERVICES, &taken).await.expect(422);
}

#[tokio::test]
async fn names_are_generated_and_put_creates_where_kubernetes_does() {
    let cluster = Cluster::start().await;
    let mut object = config_map("");
    object["metadata"] = json!({"generateName": "web-"});
    let created = cluster.post(CONFIG_MAPS, &object).await.expect(201);
    let name = created["metadata"]["name"].as_str().expect("a name");
    assert!(name.starts_with("web-") && name.len() == 9, "{name}");
    cluster
        .put(&format!("{CONFIG_MAPS}/x"), &config_map("x"))
        .await
        .expect(404);
    let lease = json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": {"name": "l"}, "spec": {"holderIdentity": "me"}});
    let path = "/apis/coordination.k8s.io/v1/namespaces/default/leases/l";
    let mut lease = cluster.put(path, &lease).await.expect(201);
    lease["spec"]["holderIdentity"] = "you".into();
    cluster.put(path, &lease).await.expect(200);
    // Somebody who does not say what he saw would take the lease from its holder.
    lease["metadata"] = json!({"name": "l"});
    let refused = cluster.put(path, &lease).await.expect(422);
    assert_eq!(
        refused["message"],
        "Lease.coordination.k8s.io \"l\" is invalid: metadata.resourceVersion: Invalid value: 0: must be specified for an update"
    );
}
