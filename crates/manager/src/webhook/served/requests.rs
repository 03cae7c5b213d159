//! Who asks otherwise than an API server does, and where the service is not.

use super::*;

/// Sends something to a manager, as an API server would; the code and the text of the answer.
async fn send(manager: &Manager, method: &str, path: &str, body: String) -> (u16, String) {
    let bundle = manager
        .webhooks
        .certificate
        .borrow()
        .clone()
        .expect("ready");
    let tls = yurt_pki::client_config(&bundle.authorities, None, &["http/1.1"]).expect("TLS");
    let name = "yurt-manager-webhook-service.kube-system.svc:443";
    let options = yurt_transport::ClientOptions::default();
    let client = yurt_transport::Client::at(name, manager.webhooks.address(), Some(tls), options);
    let request = http::Request::builder()
        .method(method)
        .uri(path)
        .body(yurt_transport::full(body))
        .expect("a request");
    let patience = Duration::from_secs(20);
    let response = client.send(request, patience).await.expect("an answer");
    let code = response.status().as_u16();
    let body = yurt_transport::collect(response.into_body(), 1 << 20)
        .await
        .expect("a body");
    (code, String::from_utf8(body.to_vec()).expect("text"))
}

#[tokio::test]
async fn what_is_no_review_gets_a_code_and_reviews_are_counted() {
    let scene = Scene::start().await;
    let metrics = yurt_telemetry::Metrics::new("yurt-manager");
    let options = Options {
        metrics: Some(metrics.clone()),
        ..Options::default()
    };
    let manager = scene.served(options).await;
    let pods = "/mutate-core-openyurt-io-v1-pod";
    let review = |version: &str| {
        json!({"apiVersion": format!("admission.k8s.io/{version}"), "kind": "AdmissionReview",
        "request": {"uid": "u", "operation": "CREATE", "object": {"metadata": {}}}})
    };
    for (method, path, body, code) in [
        ("POST", "/", String::new(), 404),
        (
            "POST",
            "/mutate-core-openyurt-io-v1-secret",
            String::new(),
            404,
        ),
        ("GET", pods, String::new(), 405),
        ("POST", pods, String::new(), 400),
        ("POST", pods, "{}".into(), 400),
        ("POST", pods, "[".repeat(100_000), 400),
        ("POST", pods, review("v2").to_string(), 400),
        ("POST", "/convert", "{}".into(), 400),
        ("POST", pods, " ".repeat((8 << 20) + 1), 413),
        ("POST", pods, review("v1").to_string(), 200),
        ("POST", pods, review("v1beta1").to_string(), 200),
    ] {
        let (answered, text) = send(&manager, method, path, body).await;
        assert_eq!(answered, code, "{method} {path}: {text}");
        if code == 200 {
            let answer: Value = serde_json::from_str(&text).expect("JSON");
            assert_eq!(answer["response"], json!({"uid": "u", "allowed": true}));
        }
    }
    let (shown, _) = metrics.render();
    for line in [
        format!("controller_runtime_webhook_requests_total{{webhook=\"{pods}\",code=\"200\"}} 2"),
        format!("controller_runtime_webhook_requests_total{{webhook=\"{pods}\",code=\"413\"}} 1"),
        format!("controller_runtime_webhook_latency_seconds_count{{webhook=\"{pods}\"}} "),
        "controller_runtime_webhook_requests_in_flight 0".into(),
        "webhook_certificate_expiration_timestamp_seconds ".into(),
    ] {
        assert!(shown.contains(&line), "{line} is missing in\n{shown}");
    }
    crate::monitoring::assert_told(&shown, true);
    assert!(
        !shown.contains("webhook=\"/\""),
        "a label for what anybody asks"
    );
}

#[tokio::test]
async fn a_host_stands_for_the_service() {
    let scene = Scene::start().await;
    let host = Options {
        host: Some("127.0.0.1".into()),
        ..Options::default()
    };
    // The service leads nowhere.
    let manager = scene.manager(host).await;
    scene.told(&manager).await;
    let old = POOLS.replace("v1beta2", "v1alpha1");
    let pool = json!({"apiVersion": "apps.openyurt.io/v1alpha1", "kind": "NodePool", "metadata": {"name": "a"}, "spec": {}});
    let pool = scene.stage.create(&old, pool).await;
    assert_eq!(pool["metadata"]["labels"][labels::NODE_POOL_TYPE], "edge");
    let path = format!("{}/nodepools.apps.openyurt.io", CRDS.path(""));
    let crd = scene.stage.kube.get(&path).await.expect("there");
    let client = &crd["spec"]["conversion"]["webhook"]["clientConfig"];
    assert!(client["service"].is_null(), "{client}");
    // Back to the service.
    drop(manager);
    let _manager = scene.served(Options::default()).await;
    let service = "/spec/conversion/webhook/clientConfig/service/name";
    let path = format!("{}/nodepools.apps.openyurt.io", CRDS.path(""));
    scene
        .stage
        .until(&path, |crd| crd.pointer(service).is_some())
        .await;
    let read = scene
        .stage
        .kube
        .get(&format!("{old}/a"))
        .await
        .expect("converted");
    assert_eq!(read["spec"]["type"], "Edge");
}
