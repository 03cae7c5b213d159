use crate::client::{Answer, CONFIG_MAPS, Cluster, PODS, config_map, pod};
use bytes::Bytes;
use http::header;
use serde_json::json;

#[tokio::test]
async fn errors_are_those_of_kubernetes() {
    let cluster = Cluster::start().await;
    let missing = cluster.get(&format!("{PODS}/none")).await.expect(404);
    let recorded: serde_json::Value = serde_json::from_str(include_str!(
        "../../../wire/tests/fixtures/kube-apiserver/notfound.json"
    ))
    .expect("a fixture");
    assert_eq!(missing, recorded);
    for (path, code) in [
        ("/api/v1/namespaces/default/foos", 404),
        ("/apis/nothing.example/v1", 404),
        ("/api/v1/namespaces/default/nodes", 404),
        ("/api/v1/namespaces/default/pods/a/exec", 404),
        (
            "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews",
            405,
        ),
    ] {
        assert_eq!(cluster.get(path).await.code, code, "{path}");
    }
    cluster
        .post(CONFIG_MAPS, &config_map("a"))
        .await
        .expect(201);
    let exists = cluster
        .post(CONFIG_MAPS, &config_map("a"))
        .await
        .expect(409);
    assert_eq!(exists["reason"], "AlreadyExists");
    let other = cluster.post(PODS, &config_map("a")).await.expect(400);
    assert_eq!(other["reason"], "BadRequest");
    let unnamed = json!({"apiVersion": "v1", "kind": "ConfigMap"});
    cluster.post(CONFIG_MAPS, &unnamed).await.expect(422);
    let elsewhere = json!({"metadata": {"name": "x", "namespace": "other"}});
    cluster.post(CONFIG_MAPS, &elsewhere).await.expect(400);
    let renamed = cluster
        .put(&format!("{CONFIG_MAPS}/a"), &config_map("b"))
        .await
        .expect(400);
    assert_eq!(
        renamed["message"],
        "the name of the object (b) does not match the name on the URL (a)"
    );
}

#[tokio::test]
async fn bodies_and_media_types_have_limits() {
    let cluster = Cluster::start().await;
    let send = |method, media: &'static str, accept: &'static str, body: Bytes| {
        let mut request = Cluster::request(method, CONFIG_MAPS).header(header::CONTENT_TYPE, media);
        if !accept.is_empty() {
            request = request.header(header::ACCEPT, accept);
        }
        let cluster = &cluster;
        async move { Answer::of(cluster.raw(request, body).await).await }
    };
    let json = "application/json";
    let cases = [
        ("POST", json, "", Bytes::from("{"), 400),
        ("POST", json, "", Bytes::from("[]"), 400),
        ("POST", json, "", Bytes::new(), 400),
        ("POST", "text/plain", "", Bytes::from("{}"), 415),
        (
            "POST",
            "application/vnd.kubernetes.protobuf",
            "",
            Bytes::from("k8s\0junk"),
            400,
        ),
        ("GET", "", "text/html", Bytes::new(), 406),
        ("POST", json, "", Bytes::from(vec![b' '; 4 << 20]), 413),
    ];
    for (method, media, accept, body, code) in cases {
        let answer = send(method, media, accept, body).await;
        assert_eq!(
            answer.code, code,
            "{method} {media} {accept}: {}",
            answer.body
        );
        assert_eq!(answer.body["kind"], "Status");
    }
    let mut large = pod("large", "");
    large["spec"]["containers"][0]["env"] = json!([{"name": "X", "value": "x".repeat(1_600_000)}]);
    cluster.post(PODS, &large).await.expect(413);
    let deep = format!(
        "{{\"metadata\":{}1{}}}",
        "{\"a\":".repeat(5000),
        "}".repeat(5000)
    );
    let answer = send("POST", json, "", deep.into()).await;
    assert_eq!(answer.code, 400);
    let yaml = "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: from-yaml\n";
    send("POST", "application/yaml", "", yaml.into())
        .await
        .expect(201);
}

#[tokio::test]
async fn wrong_types_never_reach_the_storage() {
    let cluster = Cluster::start().await;
    for bad in [
        json!({"metadata": "x"}),
        json!({"metadata": {"name": "a", "labels": "x"}}),
        json!({"metadata": {"name": "a", "annotations": {"a": {}}}}),
        json!({"metadata": {"name": "a"}, "data": []}),
    ] {
        cluster.post(CONFIG_MAPS, &bad).await.expect(400);
    }
    cluster
        .post(CONFIG_MAPS, &config_map("a"))
        .await
        .expect(201);
    for bad in [
        json!({"metadata": {"labels": "x"}}),
        json!({"data": {"a": 1}}),
        json!({"metadata": null}),
    ] {
        let answer = cluster.merge(&format!("{CONFIG_MAPS}/a"), &bad).await;
        assert!(
            answer.code == 400 || answer.code == 200,
            "{bad}: {}",
            answer.body
        );
        assert_eq!(
            cluster.get(&format!("{CONFIG_MAPS}/a")).await.expect(200)["data"]["a"],
            "b"
        );
    }
}

#[tokio::test]
async fn nobody_in_particular_sees_health_only() {
    let cluster = Cluster::start().await;
    let ask = |path: &'static str, token: Option<&'static str>| {
        let mut request = http::Request::builder().uri(path);
        if let Some(token) = token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        let cluster = &cluster;
        async move { Answer::of(cluster.raw(request, Bytes::new()).await).await }
    };
    for path in ["/healthz", "/readyz", "/livez", "/version"] {
        assert_eq!(ask(path, None).await.code, 200, "{path}");
    }
    assert_eq!(
        ask("/apis", None).await.expect(403)["message"],
        "forbidden: User \"system:anonymous\" cannot get path \"/apis\""
    );
    let refused = ask(PODS, None).await.expect(403);
    assert_eq!(
        refused["message"],
        "pods is forbidden: User \"system:anonymous\" cannot list resource \"pods\" in API group \"\" in the namespace \"default\""
    );
    assert_eq!(
        ask(PODS, Some("wrong")).await.expect(401)["reason"],
        "Unauthorized"
    );
}

#[tokio::test]
async fn more_than_the_server_can_do_is_sent_away() {
    let cluster = Cluster::with(yurt_apiserver::Config {
        in_flight: yurt_apiserver::InFlight {
            mutating: 0,
            reading: 1,
        },
        ..yurt_apiserver::Config::default()
    })
    .await;
    let answer = cluster.post(CONFIG_MAPS, &config_map("a")).await;
    assert_eq!(answer.headers[header::RETRY_AFTER], "1");
    assert_eq!(answer.expect(429)["reason"], "TooManyRequests");
    // Watches are not counted, and reads have room of their own.
    let _first = cluster.watch(&format!("{CONFIG_MAPS}?watch=1")).await;
    let _second = cluster.watch(&format!("{CONFIG_MAPS}?watch=1")).await;
    cluster.get(CONFIG_MAPS).await.expect(200);
}
