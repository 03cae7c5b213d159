//! Who may use which admin endpoint.

use crate::{
    cloud::{Cloud, Trust},
    node::{Directory, Node, config},
};
use http::Method;
use yurt_hub::Config;

/// W1: no local process but the node's own changes anything by the admin endpoints. The test itself is one of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn methods_profiling_and_bodies() {
    let (trust, directory) = (Trust::new(), Directory::new());
    let cloud = Cloud::start(&trust).await;
    let config = || config(&directory.0, &trust, &[cloud.addr]);
    let node = Node::start(config()).await;
    for path in yurt_hub::server::admin::paths() {
        let refused = node.admin_call(Method::PATCH, path, "").await;
        assert_eq!(refused.status, 405, "{path}");
    }
    assert_eq!(
        node.admin_call(Method::POST, "/v1/healthz", "")
            .await
            .status,
        405
    );
    // No logging was set up in this process: there is nothing to change, but the filter is read first.
    let put = async |body: &str| {
        node.admin_call(Method::PUT, "/debug/loglevel", body)
            .await
            .status
    };
    assert_eq!(put("yurt_hub=debug=loud").await, 400);
    assert_eq!(put("").await, 400);
    assert_eq!(put(&"x".repeat(100_000)).await, 413);
    assert_eq!(put("info").await, 501);
    assert_eq!(node.admin("/debug/cache").await.json()["objects"], 0);
    node.stop().await;

    let node = Node::start(Config {
        profiling: false,
        ..config()
    })
    .await;
    for path in [
        "/debug/cache",
        "/debug/link",
        "/debug/loglevel",
        "/debug/settings",
    ] {
        assert_eq!(node.admin(path).await.status, 404, "{path}");
    }
    node.stop().await;
}
