//! What API servers are told of the webhooks, and the CA that they trust.

use super::*;

#[tokio::test]
async fn what_api_servers_are_told_is_put_right() {
    let scene = Scene::start().await;
    let stage = &scene.stage;
    // What OpenYurt left there: a webhook that nobody serves any more, an old list.
    let hook = |name: &str| {
        json!({"name": name, "failurePolicy": "Fail", "sideEffects": "None", "admissionReviewVersions": ["v1"],
        "clientConfig": {"service": {"namespace": "kube-system", "name": "yurt-manager-webhook-service", "path": "/gone"}},
        "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["configmaps"]}]})
    };
    let path = format!("{CONFIGURATIONS}/mutatingwebhookconfigurations");
    stage
        .create(&path, json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingWebhookConfiguration",
            "metadata": {"name": MUTATING_WEBHOOKS, "annotations": {"yurt-manager-template": "[]", "mine": "x"}},
            "webhooks": [hook("gone.openyurt.io"), hook("m.v1beta2.nodepool.kb.io")]}))
        .await;
    // Another's definition with a webhook of its own.
    let versions: Value = ["v1", "v2"]
        .map(|name| {
            json!({"name": name, "served": true, "storage": name == "v1", "schema": {"openAPIV3Schema": {"type": "object"}}})
        })
        .into_iter()
        .collect();
    let foreign = json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": "others.example.com"},
        "spec": {"group": "example.com", "scope": "Cluster", "names": {"plural": "others", "singular": "other", "kind": "Other", "listKind": "OtherList"},
            "versions": versions, "conversion": {"strategy": "Webhook", "webhook": {"conversionReviewVersions": ["v1"],
                "clientConfig": {"service": {"namespace": "default", "name": "other", "path": "/convert"}}}}}});
    stage.create(&CRDS.path(""), foreign).await;
    let mut options = Options::default();
    options.disable("pod").expect("known");
    let _manager = scene.served(options).await;
    let one = format!("{path}/{MUTATING_WEBHOOKS}");
    let names = |c: &Value| -> Vec<String> {
        let hooks = yurt_controller::fields::items(&c["webhooks"]);
        hooks
            .map(|hook| yurt_controller::fields::text(&hook["name"]))
            .collect()
    };
    let right = |c: &Value| {
        let names = names(c);
        names.len() == 7
            && !names
                .iter()
                .any(|name| name.contains("gone") || name.contains(".pod."))
            && c["metadata"]["annotations"]["yurt-manager-template"].is_null()
            && c["webhooks"][4]["failurePolicy"] == "Fail"
            && c["webhooks"][4]["namespaceSelector"] == json!({})
    };
    let taken = stage.until(&one, right).await;
    assert_eq!(
        taken["metadata"]["annotations"]["mine"], "x",
        "what is others' stays"
    );
    let manager = yurt_controller::fields::items(&taken["metadata"]["managedFields"])
        .any(|entry| entry["manager"] == MANAGER);
    assert!(manager, "{taken}");
    // Others meddle.
    let meddle = json!([{"op": "replace", "path": "/webhooks/4/failurePolicy", "value": "Ignore"},
        {"op": "add", "path": "/webhooks/4/namespaceSelector/matchLabels", "value": {"a": "b"}},
        {"op": "add", "path": "/webhooks/-", "value": hook("more.openyurt.io")}]);
    stage.kube.json_patch(&one, &meddle).await.expect("patched");
    stage.until(&one, right).await;
    stage.kube.delete(&one).await.expect("deleted");
    stage.until(&one, right).await;
    let definition = format!("{}/nodepools.apps.openyurt.io", CRDS.path(""));
    stage
        .kube
        .merge(
            &definition,
            &json!({"spec": {"conversion": {"strategy": "None", "webhook": null}}}),
        )
        .await
        .expect("patched");
    stage
        .until(&definition, |crd| {
            crd["spec"]["conversion"]["strategy"] == "Webhook"
        })
        .await;
    let foreign = stage
        .kube
        .get(&format!("{}/others.example.com", CRDS.path("")))
        .await
        .expect("there");
    let client = &foreign["spec"]["conversion"]["webhook"]["clientConfig"];
    assert!(client["caBundle"].is_null(), "{client}");
    assert_eq!(client["service"]["name"], "other");
}

#[tokio::test]
async fn replicas_agree_on_one_ca() {
    let scene = Scene::start().await;
    // As OpenYurt's chart makes it.
    let empty = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": WEBHOOK_CERTIFICATES, "labels": {"chart": "x"}}});
    scene.stage.create(SECRET, empty).await;
    let (a, b, c) = tokio::join!(
        scene.manager(Options::default()),
        scene.manager(Options::default()),
        scene.manager(Options::default()),
    );
    let secret = scene
        .stage
        .kube
        .get(&format!("{SECRET}/{WEBHOOK_CERTIFICATES}"))
        .await
        .expect("there");
    for key in [
        "ca-cert.pem",
        "ca-key.pem",
        "cert.pem",
        "key.pem",
        "tls.crt",
        "tls.key",
    ] {
        assert!(secret["data"][key].is_string(), "{key}");
    }
    for manager in [&a, &b, &c] {
        let bundle = manager
            .webhooks
            .certificate
            .borrow()
            .clone()
            .expect("ready");
        assert_eq!(
            secret["data"]["ca-cert.pem"],
            STANDARD.encode(&bundle.authorities)
        );
        assert_eq!(secret["data"]["tls.crt"], STANDARD.encode(&bundle.own.cert));
    }
    assert_eq!(secret["metadata"]["labels"]["chart"], "x");
    // Whoever is asked is believed.
    scene.told(&a).await;
    for (i, manager) in [&a, &b, &c].into_iter().enumerate() {
        *scene.service.lock().expect("no panic") = Some(manager.webhooks.address());
        let pool = json!({"apiVersion": "apps.openyurt.io/v1beta2", "kind": "NodePool", "metadata": {"name": format!("p{i}")}});
        let pool = scene.stage.create(POOLS, pool).await;
        assert_eq!(pool["spec"]["type"], "Edge");
    }
}

#[tokio::test]
async fn a_new_ca_comes_without_a_failed_request() {
    let scene = Scene::start().await;
    let terms = crate::webhook::Terms {
        ca_days: 30,
        certificate_days: 30,
        overlap: Duration::from_secs(1),
    };
    let options = Options {
        terms,
        ..Options::default()
    };
    let manager = scene.served(options).await;
    let first = manager
        .webhooks
        .certificate
        .borrow()
        .clone()
        .expect("ready");
    let stage = &scene.stage;
    let pool = |i: usize| json!({"apiVersion": "apps.openyurt.io/v1beta2", "kind": "NodePool", "metadata": {"name": format!("p{i}")}});
    let done = Arc::new(AtomicBool::new(false));
    let asking = tokio::spawn({
        let (kube, done) = (stage.kube.clone(), done.clone());
        async move {
            let mut asked = 0;
            while !done.load(Ordering::Relaxed) {
                asked += 1;
                kube.create(POOLS, &pool(asked))
                    .await
                    .expect("served all the time");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            asked
        }
    });
    let secret = format!("{SECRET}/{WEBHOOK_CERTIFICATES}");
    let authorities = |secret: &Value| {
        let text = secret["data"]["ca-cert.pem"].as_str().unwrap_or_default();
        String::from_utf8(STANDARD.decode(text).expect("base64")).expect("text")
    };
    let count = |secret: &Value| authorities(secret).matches("BEGIN CERTIFICATE").count();
    scene.ahead.store(21 * DAY, Ordering::Relaxed);
    stage.until(&secret, |secret| count(secret) == 2).await;
    scene.ahead.store(0, Ordering::Relaxed);
    let last = stage.until(&secret, |secret| count(secret) == 1).await;
    assert_ne!(authorities(&last), first.authorities);
    scene.told(&manager).await;
    done.store(true, Ordering::Relaxed);
    assert!(asking.await.expect("no failure") > 10);
}

#[tokio::test]
async fn without_a_manager_nodes_pods_and_endpoints_are_written() {
    let scene = Scene::start().await;
    let manager = scene.served(Options::default()).await;
    let stage = &scene.stage;
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"}});
    stage.create("/api/v1/nodes", node).await;
    *scene.service.lock().expect("no panic") = None;
    drop(manager);
    let label = json!({"metadata": {"labels": {labels::NODE_POOL: "a"}}});
    stage
        .kube
        .merge("/api/v1/nodes/n1", &label)
        .await
        .expect("written");
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {"containers": [{"name": "a", "image": "a"}]}});
    stage.create("/api/v1/namespaces/default/pods", pod).await;
    let endpoints = json!({"apiVersion": "v1", "kind": "Endpoints", "metadata": {"name": "e"}, "subsets": [
        {"notReadyAddresses": [{"ip": "10.0.0.1"}], "ports": [{"port": 80}]}]});
    stage
        .create("/api/v1/namespaces/default/endpoints", endpoints)
        .await;
    let why = scene
        .refused(POOLS, &json!({"apiVersion": "apps.openyurt.io/v1beta2", "kind": "NodePool", "metadata": {"name": "a"}}))
        .await;
    assert!(why.contains("failed calling webhook"), "{why}");
}
