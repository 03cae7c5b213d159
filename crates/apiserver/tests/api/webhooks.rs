//! Admission webhooks.

use crate::{
    client::{CONFIG_MAPS, Cluster, PODS, config_map, pod},
    hook::{Hook, Reaction, patched, verdict},
};
use serde_json::{Value, json};
use std::net::{Ipv4Addr, SocketAddr};
use yurt_apiserver::{Config, ServiceResolver};

const MUTATING: &str = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations";
const VALIDATING: &str = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations";

/// A webhook about config maps; `more` overrides.
fn webhook(name: &str, client: Value, more: &Value) -> Value {
    let mut webhook = json!({"name": format!("{name}.example.com"), "clientConfig": client,
        "sideEffects": "None", "admissionReviewVersions": ["v1"],
        "rules": [{"operations": ["*"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["configmaps"]}]});
    for (field, value) in more.as_object().into_iter().flatten() {
        webhook[field] = value.clone();
    }
    webhook
}

fn configuration(kind: &str, name: &str, webhooks: &[Value]) -> Value {
    json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": kind,
        "metadata": {"name": name}, "webhooks": webhooks})
}

async fn mutating(cluster: &Cluster, name: &str, webhooks: &[Value]) {
    let configuration = configuration("MutatingWebhookConfiguration", name, webhooks);
    cluster.post(MUTATING, &configuration).await.expect(201);
}

async fn validating(cluster: &Cluster, name: &str, webhooks: &[Value]) {
    let configuration = configuration("ValidatingWebhookConfiguration", name, webhooks);
    cluster.post(VALIDATING, &configuration).await.expect(201);
}

fn message(answer: &Value) -> &str {
    answer["message"].as_str().unwrap_or_default()
}

#[tokio::test]
async fn a_webhook_denies_with_its_words_and_code() {
    let cluster = Cluster::start().await;
    let hook = Hook::start(|_, review| {
        let name = &review["request"]["name"];
        if name == "bad" {
            let status = json!({"code": 403, "reason": "Forbidden", "message": "not this one"});
            verdict(review, &json!({"allowed": false, "status": status}))
        } else {
            verdict(review, &json!({"allowed": true, "warnings": ["looked at"]}))
        }
    })
    .await;
    validating(
        &cluster,
        "v",
        &[webhook("v", hook.client("/v"), &Value::Null)],
    )
    .await;

    let denied = cluster
        .post(CONFIG_MAPS, &config_map("bad"))
        .await
        .expect(403);
    assert_eq!(
        message(&denied),
        "admission webhook \"v.example.com\" denied the request: not this one"
    );
    assert_eq!(denied["reason"], "Forbidden");
    let good = cluster.post(CONFIG_MAPS, &config_map("good")).await;
    assert_eq!(good.headers["warning"], "299 - \"looked at\"");
    let good = good.expect(201);

    let path = format!("{CONFIG_MAPS}/good");
    cluster
        .merge(&path, &json!({"data": {"x": "y"}}))
        .await
        .expect(200);
    cluster.delete(&path).await.expect(200);
    let reviews = hook.reviews("/v");
    let seen: Vec<&Value> = reviews.iter().map(|r| &r["request"]["operation"]).collect();
    assert_eq!(seen, ["CREATE", "CREATE", "UPDATE", "DELETE"]);
    let (create, update, delete) = (
        &reviews[1]["request"],
        &reviews[2]["request"],
        &reviews[3]["request"],
    );
    assert_eq!(create["object"]["metadata"]["uid"], good["metadata"]["uid"]);
    assert_eq!(create["oldObject"], Value::Null);
    assert_eq!(create["userInfo"]["username"], "admin");
    assert_eq!(create["namespace"], "default");
    assert_eq!(create["resource"]["resource"], "configmaps");
    assert_eq!(create["requestKind"]["kind"], "ConfigMap");
    assert_eq!(create["options"]["kind"], "CreateOptions");
    assert_eq!(update["options"]["kind"], "PatchOptions");
    assert_eq!(update["object"]["data"], json!({"a": "b", "x": "y"}));
    assert_eq!(update["oldObject"]["data"], json!({"a": "b"}));
    assert_eq!(delete["object"], Value::Null);
    assert_eq!(delete["oldObject"]["data"], json!({"a": "b", "x": "y"}));
    assert_eq!(delete["options"]["kind"], "DeleteOptions");
}

#[tokio::test]
async fn webhooks_change_objects_in_the_order_of_names() {
    let cluster = Cluster::start().await;
    let hook = Hook::start(|path, review| {
        let data = &review["request"]["object"]["data"];
        let before = data["trace"].as_str().unwrap_or_default();
        let trace = format!("{before}{}", path.trim_start_matches('/'));
        patched(
            review,
            &json!([{"op": "add", "path": "/data/trace", "value": trace}]),
        )
    })
    .await;
    let again = json!({"reinvocationPolicy": "IfNeeded"});
    mutating(
        &cluster,
        "b",
        &[webhook("b", hook.client("/b"), &Value::Null)],
    )
    .await;
    mutating(&cluster, "a", &[webhook("a", hook.client("/a"), &again)]).await;
    let path = format!("{CONFIG_MAPS}?fieldManager=tester");
    let created = cluster.post(&path, &config_map("c")).await.expect(201);
    // `a` comes first, and once more because `b` changed the object after it.
    assert_eq!(created["data"]["trace"], "aba");
    let managers = &created["metadata"]["managedFields"];
    assert_eq!(managers[0]["manager"], "tester");
    assert_eq!(hook.reviews("/b").len(), 1);
    // Before it is stored a new object has no identity yet.
    assert!(hook.reviews("/a")[0]["request"]["object"]["metadata"]["uid"].is_null());
}

#[tokio::test]
async fn only_what_is_selected_is_asked_about() {
    let cluster = Cluster::start().await;
    let hook = Hook::start(|_, review| verdict(review, &json!({"allowed": false}))).await;
    let selecting = json!({"objectSelector": {"matchLabels": {"watched": "yes"}},
        "namespaceSelector": {"matchExpressions": [
            {"key": "kubernetes.io/metadata.name", "operator": "NotIn", "values": ["kube-system"]}]}});
    validating(
        &cluster,
        "v",
        &[webhook("v", hook.client("/v"), &selecting)],
    )
    .await;
    let mut watched = config_map("watched");
    watched["metadata"]["labels"] = json!({"watched": "yes"});
    let denied = cluster.post(CONFIG_MAPS, &watched).await.expect(400);
    assert!(message(&denied).ends_with("denied the request without explanation"));
    cluster
        .post("/api/v1/namespaces/kube-system/configmaps", &watched)
        .await
        .expect(201);
    cluster
        .post(CONFIG_MAPS, &config_map("free"))
        .await
        .expect(201);
    cluster.post(PODS, &pod("p", "")).await.expect(201);
    assert_eq!(hook.reviews("/v").len(), 1);

    // The configuration itself is never sent, so that it can be taken away.
    let all = json!({"rules": [{"operations": ["*"], "apiGroups": ["*"], "apiVersions": ["*"], "resources": ["*/*"]}]});
    validating(
        &cluster,
        "all",
        &[webhook("all", hook.client("/all"), &all)],
    )
    .await;
    cluster
        .post(CONFIG_MAPS, &config_map("other"))
        .await
        .expect(400);
    cluster
        .delete(&format!("{VALIDATING}/all"))
        .await
        .expect(200);
    cluster
        .post(CONFIG_MAPS, &config_map("other"))
        .await
        .expect(201);
}

#[tokio::test]
async fn equivalent_versions_are_converted_for_a_webhook() {
    let cluster = Cluster::start().await;
    let hook = Hook::start(|_, review| {
        patched(
            review,
            &json!([{"op": "add", "path": "/metadata/labels", "value": {"seen": "v2"}}]),
        )
    })
    .await;
    let v2 = json!({"rules": [{"operations": ["CREATE"], "apiGroups": ["autoscaling"],
        "apiVersions": ["v2"], "resources": ["horizontalpodautoscalers"]}]});
    mutating(&cluster, "m", &[webhook("m", hook.client("/m"), &v2)]).await;
    let scaler = json!({"apiVersion": "autoscaling/v1", "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": "h"}, "spec": {"maxReplicas": 3, "targetCPUUtilizationPercentage": 50,
            "scaleTargetRef": {"kind": "Deployment", "name": "d", "apiVersion": "apps/v1"}}});
    let path = "/apis/autoscaling/v1/namespaces/default/horizontalpodautoscalers";
    let created = cluster.post(path, &scaler).await.expect(201);
    assert_eq!(created["apiVersion"], "autoscaling/v1");
    assert_eq!(created["metadata"]["labels"]["seen"], "v2");
    assert_eq!(created["spec"]["targetCPUUtilizationPercentage"], 50);
    let request = hook.reviews("/m")[0]["request"].clone();
    assert_eq!(request["kind"]["version"], "v2");
    assert_eq!(request["requestKind"]["version"], "v1");
    assert_eq!(request["object"]["apiVersion"], "autoscaling/v2");
    assert_eq!(
        request["object"]["spec"]["metrics"][0]["resource"]["name"],
        "cpu"
    );
}

#[tokio::test]
async fn subresources_are_asked_about_by_their_own_name() {
    let cluster = Cluster::start().await;
    let hook = Hook::start(|_, review| verdict(review, &json!({"allowed": true}))).await;
    let scale = json!({"rules": [{"operations": ["*"], "apiGroups": ["*"], "apiVersions": ["*"],
        "resources": ["deployments/scale", "pods/binding"]}]});
    validating(&cluster, "v", &[webhook("v", hook.client("/v"), &scale)]).await;
    let deployments = "/apis/apps/v1/namespaces/default/deployments";
    let deployment = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"},
        "spec": {"replicas": 1, "selector": {"matchLabels": {"a": "b"}}, "template": {
            "metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}}});
    cluster.post(deployments, &deployment).await.expect(201);
    cluster
        .merge(
            &format!("{deployments}/d/scale"),
            &json!({"spec": {"replicas": 3}}),
        )
        .await
        .expect(200);
    cluster.post(PODS, &pod("p", "")).await.expect(201);
    let binding = json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": "p"},
        "target": {"kind": "Node", "name": "n"}});
    cluster
        .post(&format!("{PODS}/p/binding"), &binding)
        .await
        .expect(201);
    let reviews = hook.reviews("/v");
    assert_eq!(reviews.len(), 2);
    let (scaled, bound) = (&reviews[0]["request"], &reviews[1]["request"]);
    assert_eq!(scaled["subResource"], "scale");
    assert_eq!(scaled["kind"]["kind"], "Scale");
    assert_eq!(scaled["object"]["spec"]["replicas"], 3);
    assert_eq!(scaled["oldObject"]["spec"]["replicas"], 1);
    assert_eq!(bound["operation"], "CREATE");
    assert_eq!(bound["object"]["target"]["name"], "n");
}

#[tokio::test]
async fn a_webhook_that_fails_is_a_refusal_or_ignored() {
    let cluster = Cluster::start().await;
    let hook = Hook::start(|path, review| match path {
        "/garbage" => Reaction::Raw(200, "no JSON".into()),
        "/error" => Reaction::Raw(500, "boom".into()),
        "/huge" => Reaction::Raw(200, vec![b' '; 9 << 20].into()),
        "/uid" => Reaction::Answer(json!({"apiVersion": "admission.k8s.io/v1",
            "kind": "AdmissionReview", "response": {"uid": "x", "allowed": true}})),
        "/patch" => patched(review, &json!([{"op": "remove", "path": "/data/none"}])),
        _ => Reaction::Silence,
    })
    .await;
    let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let dead = listener.local_addr().expect("an address");
    drop(listener);
    let dead = json!({"url": format!("https://{dead}/dead"), "caBundle": hook.bundle()});
    let stranger = json!({"url": format!("https://{}/x", hook.address),
        "caBundle": Hook::start(|_, _| Reaction::Silence).await.bundle()});
    let fails = "failed calling webhook \"m.example.com\": ";
    for (client, more, why) in [
        (
            hook.client("/garbage"),
            json!({}),
            format!("{fails}failed to call webhook: couldn't get version/kind"),
        ),
        (
            hook.client("/error"),
            json!({}),
            format!("{fails}failed to call webhook: an error on the server (\"boom\")"),
        ),
        (
            hook.client("/huge"),
            json!({}),
            "the answer is larger than".to_owned(),
        ),
        (
            hook.client("/uid"),
            json!({}),
            format!("{fails}received invalid webhook response: expected response.uid="),
        ),
        (
            hook.client("/patch"),
            json!({}),
            "Internal error occurred: ".to_owned(),
        ),
        (
            hook.client("/slow"),
            json!({"timeoutSeconds": 1}),
            "context deadline exceeded".to_owned(),
        ),
        (dead, json!({}), "connection refused".to_owned()),
        (
            stranger,
            json!({}),
            "tls: failed to verify certificate".to_owned(),
        ),
        (
            json!({"service": {"namespace": "default", "name": "none"}}),
            json!({}),
            "service \"none\" not found".to_owned(),
        ),
    ] {
        mutating(&cluster, "m", &[webhook("m", client.clone(), &more)]).await;
        let refused = cluster
            .post(CONFIG_MAPS, &config_map("c"))
            .await
            .expect(500);
        assert_eq!(refused["reason"], "InternalError");
        assert!(message(&refused).contains(&why), "{why}: {refused}");
        assert_eq!(cluster.get(&format!("{CONFIG_MAPS}/c")).await.code, 404);
        cluster.delete(&format!("{MUTATING}/m")).await.expect(200);
    }
    // What cannot be asked may be ignored; a patch that does not apply may not.
    for (name, path, code) in [("one", "/garbage", 201), ("two", "/patch", 500)] {
        let ignoring = json!({"failurePolicy": "Ignore"});
        mutating(&cluster, "m", &[webhook("m", hook.client(path), &ignoring)]).await;
        cluster
            .post(CONFIG_MAPS, &config_map(name))
            .await
            .expect(code);
        cluster.delete(&format!("{MUTATING}/m")).await.expect(200);
    }
}

#[tokio::test]
async fn a_dry_run_calls_only_webhooks_without_side_effects() {
    let cluster = Cluster::start().await;
    let hook = Hook::start(|_, review| {
        assert_eq!(review["request"]["dryRun"], true);
        patched(
            review,
            &json!([{"op": "add", "path": "/data/x", "value": "y"}]),
        )
    })
    .await;
    mutating(
        &cluster,
        "m",
        &[webhook("m", hook.client("/m"), &Value::Null)],
    )
    .await;
    let path = format!("{CONFIG_MAPS}?dryRun=All");
    let shown = cluster.post(&path, &config_map("c")).await.expect(201);
    assert_eq!(shown["data"]["x"], "y");
    assert_eq!(cluster.get(&format!("{CONFIG_MAPS}/c")).await.code, 404);
}

#[tokio::test]
async fn a_service_is_called_where_the_embedding_program_says() {
    let hook = Hook::start(|_, review| verdict(review, &json!({"allowed": false}))).await;
    let address: SocketAddr = hook.address;
    let resolver = ServiceResolver::new(move |namespace, name, port| {
        assert_eq!((namespace, name, port), ("default", "hook", 8443));
        Some(address)
    });
    let cluster = Cluster::with(Config {
        service_resolver: Some(resolver),
        ..Config::default()
    })
    .await;
    let client = json!({"service": {"namespace": "default", "name": "hook", "port": 8443, "path": "/v"},
        "caBundle": hook.bundle()});
    validating(&cluster, "v", &[webhook("v", client, &Value::Null)]).await;
    let denied = cluster
        .post(CONFIG_MAPS, &config_map("c"))
        .await
        .expect(400);
    assert!(message(&denied).contains("denied the request"));
    assert_eq!(hook.reviews("/v").len(), 1);
}

#[tokio::test]
async fn custom_objects_are_pruned_after_a_webhook() {
    let cluster = Cluster::start().await;
    let hook = Hook::start(|_, review| {
        patched(
            review,
            &json!([
            {"op": "add", "path": "/data/known", "value": "x"},
            {"op": "add", "path": "/data/unknown", "value": "x"}]),
        )
    })
    .await;
    let definition = json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "things.example.com"}, "spec": {"group": "example.com", "scope": "Namespaced",
            "names": {"plural": "things", "kind": "Thing"},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {
                "type": "object", "properties": {"data": {"type": "object",
                    "properties": {"known": {"type": "string"}}}}}}}]}});
    cluster
        .post(
            "/apis/apiextensions.k8s.io/v1/customresourcedefinitions",
            &definition,
        )
        .await
        .expect(201);
    let rules = json!({"rules": [{"operations": ["CREATE"], "apiGroups": ["example.com"],
        "apiVersions": ["v1"], "resources": ["things"]}]});
    mutating(&cluster, "m", &[webhook("m", hook.client("/m"), &rules)]).await;
    let thing = json!({"apiVersion": "example.com/v1", "kind": "Thing", "metadata": {"name": "t"}, "data": {}});
    let path = "/apis/example.com/v1/namespaces/default/things";
    let created = cluster.post(path, &thing).await.expect(201);
    assert_eq!(created["data"], json!({"known": "x"}));
}
