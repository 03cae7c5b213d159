use crate::client::{CONFIG_MAPS, Cluster, config_map, revision};
use serde_json::json;
use std::path::PathBuf;

/// A directory of this test, empty at first, removed at the end.
struct Dir(PathBuf);

impl Dir {
    fn new(name: &str) -> Self {
        let dir =
            std::env::temp_dir().join(format!("yurt-apiserver-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        Self(dir)
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[tokio::test]
async fn everything_acknowledged_is_there_after_a_restart() {
    let dir = Dir::new("restart");
    let cluster = Cluster::open(&dir.0).await;
    cluster
        .post(CONFIG_MAPS, &config_map("a"))
        .await
        .expect(201);
    let kept = cluster
        .post(CONFIG_MAPS, &config_map("b"))
        .await
        .expect(201);
    let resume = cluster.get(CONFIG_MAPS).await.expect(200);
    cluster
        .delete(&format!("{CONFIG_MAPS}/a"))
        .await
        .expect(200);
    let last = cluster.get(CONFIG_MAPS).await.expect(200);
    cluster.stop().await;

    let cluster = Cluster::open(&dir.0).await;
    let object = cluster.get(&format!("{CONFIG_MAPS}/b")).await.expect(200);
    assert_eq!(object, kept);
    cluster.get(&format!("{CONFIG_MAPS}/a")).await.expect(404);
    let created = cluster
        .post(CONFIG_MAPS, &config_map("c"))
        .await
        .expect(201);
    let number = |object: &serde_json::Value| revision(object).parse::<u64>().expect("a number");
    assert!(number(&created) > number(&last), "revisions go on");

    // Nothing was changed after this revision before the restart: a watch goes on from it.
    let path = format!("{CONFIG_MAPS}?watch=1&resourceVersion={}", revision(&last));
    assert_eq!(cluster.watch(&path).await.short().await, "ADDED c");
    // What happened after this one is not known any more.
    let path = format!(
        "{CONFIG_MAPS}?watch=1&resourceVersion={}",
        revision(&resume)
    );
    assert_eq!(cluster.watch(&path).await.short().await, "ERROR");
    cluster.stop().await;
}

#[tokio::test]
async fn custom_resources_and_tokens_outlive_a_restart() {
    let dir = Dir::new("custom");
    let cluster = Cluster::open(&dir.0).await;
    let crd = json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "pools.example.org"},
        "spec": {"group": "example.org", "scope": "Cluster", "names": {"plural": "pools", "kind": "Pool"},
            "versions": [{"name": "v1", "served": true, "storage": true,
                "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}}]}});
    cluster
        .post(
            "/apis/apiextensions.k8s.io/v1/customresourcedefinitions",
            &crd,
        )
        .await
        .expect(201);
    let pool = json!({"metadata": {"name": "a"}, "spec": {"x": 1}});
    cluster
        .post("/apis/example.org/v1/pools", &pool)
        .await
        .expect(201);
    cluster
        .until("/api/v1/namespaces/default/serviceaccounts/default", 200)
        .await;
    let token = cluster
        .post(
            "/api/v1/namespaces/default/serviceaccounts/default/token",
            &json!({"spec": {}}),
        )
        .await
        .expect(201);
    cluster.stop().await;
    let cluster = Cluster::open(&dir.0).await;
    let pool = cluster
        .get("/apis/example.org/v1/pools/a")
        .await
        .expect(200);
    assert_eq!(pool["spec"]["x"], 1);
    let review = json!({"spec": {"token": token["status"]["token"]}});
    let reviewed = cluster
        .post("/apis/authentication.k8s.io/v1/tokenreviews", &review)
        .await
        .expect(201);
    assert_eq!(reviewed["status"]["authenticated"], true);
    cluster.stop().await;
}

#[tokio::test]
async fn a_write_is_finished_when_its_client_goes_away() {
    let dir = Dir::new("gone");
    let cluster = Cluster::open(&dir.0).await;
    {
        let object = config_map("a");
        let mut request = std::pin::pin!(cluster.post(CONFIG_MAPS, &object));
        // The client sends its request and is gone before the answer.
        std::future::poll_fn(|cx| {
            assert!(request.as_mut().poll(cx).is_pending());
            std::task::Poll::Ready(())
        })
        .await;
    }
    cluster.until(&format!("{CONFIG_MAPS}/a"), 200).await;
    cluster.stop().await;
}
