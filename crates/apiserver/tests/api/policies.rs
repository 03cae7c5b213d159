//! Expressions: rules of custom resources, match conditions, validating admission policies.

use crate::{
    client::{CONFIG_MAPS, Cluster, config_map},
    hook::{Hook, verdict},
};
use serde_json::{Value, json};

const CRDS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
const POLICIES: &str = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies";
const BINDINGS: &str = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicybindings";
const VALIDATING: &str = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations";

fn definition(spec: &Value) -> Value {
    json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "things.example.com"}, "spec": {"group": "example.com", "scope": "Namespaced",
            "names": {"plural": "things", "kind": "Thing"},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {
                "type": "object", "properties": {"spec": spec}}}}]}})
}

fn policy(name: &str, spec: &Value) -> Value {
    let mut policy = json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicy",
        "metadata": {"name": name}, "spec": {"matchConstraints": {"resourceRules": [
            {"apiGroups": [""], "apiVersions": ["v1"], "resources": ["configmaps"], "operations": ["CREATE", "UPDATE"]}]}}});
    for (field, value) in spec.as_object().into_iter().flatten() {
        policy["spec"][field] = value.clone();
    }
    policy
}

fn binding(policy: &str, spec: &Value) -> Value {
    let mut binding = json!({"apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingAdmissionPolicyBinding", "metadata": {"name": format!("{policy}-binding")},
        "spec": {"policyName": policy, "validationActions": ["Deny"]}});
    for (field, value) in spec.as_object().into_iter().flatten() {
        binding["spec"][field] = value.clone();
    }
    binding
}

#[tokio::test]
async fn custom_resources_obey_their_rules() {
    let cluster = Cluster::start().await;
    let spec = json!({"type": "object", "properties": {"x": {"type": "integer"}},
        "x-kubernetes-validations": [
            {"rule": "self.x > 0"}, {"rule": "self.x >= oldSelf.x", "message": "x only grows"}]});
    cluster.post(CRDS, &definition(&spec)).await.expect(201);
    let things = "/apis/example.com/v1/namespaces/default/things";
    let thing = |x: i64| {
        json!({"apiVersion": "example.com/v1", "kind": "Thing",
        "metadata": {"name": "t"}, "spec": {"x": x}})
    };
    let refused = cluster.post(things, &thing(0)).await.expect(422);
    assert_eq!(
        refused["message"],
        "Thing.example.com \"t\" is invalid: spec: Invalid value: \"object\": failed rule: self.x > 0"
    );
    cluster.post(things, &thing(5)).await.expect(201);
    let path = format!("{things}/t");
    let shrunk = cluster
        .merge(&path, &json!({"spec": {"x": 4}}))
        .await
        .expect(422);
    assert_eq!(
        shrunk["details"]["causes"][0]["message"],
        "Invalid value: \"object\": x only grows"
    );
    cluster
        .merge(&path, &json!({"spec": {"x": 6}}))
        .await
        .expect(200);

    let mut unknown = definition(
        &json!({"type": "object", "properties": {"x": {"type": "integer"}},
        "x-kubernetes-validations": [{"rule": "self.z == 100"}]}),
    );
    unknown["metadata"]["name"] = "others.example.com".into();
    unknown["spec"]["names"] = json!({"plural": "others", "kind": "Other"});
    let refused = cluster.post(CRDS, &unknown).await.expect(422);
    let message = refused["message"].as_str().unwrap_or_default();
    assert!(message.contains("undefined field 'z'"), "{message}");
}

#[tokio::test]
async fn a_policy_denies_in_its_words() {
    let cluster = Cluster::start().await;
    let spec = json!({
        "variables": [{"name": "owner", "expression": "object.data.?owner.orValue('')"}],
        "matchConditions": [{"name": "named", "expression": "object.metadata.name != 'free'"}],
        "validations": [
            {"expression": "variables.owner != ''", "messageExpression": "object.metadata.name + ' has no owner in ' + namespaceObject.metadata.name"},
            {"expression": "request.operation == 'CREATE' || object.data.owner == oldObject.data.owner", "reason": "Forbidden"}]});
    cluster
        .post(POLICIES, &policy("owned", &spec))
        .await
        .expect(201);
    // Without a binding a policy says nothing.
    cluster
        .post(CONFIG_MAPS, &config_map("early"))
        .await
        .expect(201);
    cluster
        .post(BINDINGS, &binding("owned", &Value::Null))
        .await
        .expect(201);
    let denied = cluster
        .post(CONFIG_MAPS, &config_map("c"))
        .await
        .expect(422);
    assert_eq!(denied["reason"], "Invalid");
    assert_eq!(
        denied["message"],
        "configmaps \"c\" is forbidden: ValidatingAdmissionPolicy 'owned' with binding 'owned-binding' denied request: c has no owner in default"
    );
    cluster
        .post(CONFIG_MAPS, &config_map("free"))
        .await
        .expect(201);
    let mut owned = config_map("c");
    owned["data"]["owner"] = "me".into();
    cluster.post(CONFIG_MAPS, &owned).await.expect(201);
    let path = format!("{CONFIG_MAPS}/c");
    let denied = cluster
        .merge(&path, &json!({"data": {"owner": "you"}}))
        .await
        .expect(403);
    let message = denied["message"].as_str().unwrap_or_default();
    assert!(
        message.contains("failed expression: request.operation"),
        "{message}"
    );
    cluster
        .delete(&format!("{BINDINGS}/owned-binding"))
        .await
        .expect(200);
    cluster
        .merge(&path, &json!({"data": {"owner": "you"}}))
        .await
        .expect(200);
}

#[tokio::test]
async fn a_policy_reads_its_parameters_and_may_only_warn() {
    let cluster = Cluster::start().await;
    let mut limits = config_map("limits");
    limits["data"] = json!({"longest": "3"});
    cluster.post(CONFIG_MAPS, &limits).await.expect(201);
    let spec = json!({"paramKind": {"apiVersion": "v1", "kind": "ConfigMap"},
        "validations": [{"expression": "size(object.metadata.name) <= int(params.data.longest)", "message": "too long"}]});
    cluster
        .post(POLICIES, &policy("short", &spec))
        .await
        .expect(201);
    let warning = json!({"validationActions": ["Warn"], "paramRef": {"name": "limits", "namespace": "default",
        "parameterNotFoundAction": "Deny"}});
    cluster
        .post(BINDINGS, &binding("short", &warning))
        .await
        .expect(201);
    let warned = cluster.post(CONFIG_MAPS, &config_map("long")).await;
    assert_eq!(
        warned.headers["warning"],
        "299 - \"Validation failed for ValidatingAdmissionPolicy 'short' with binding 'short-binding': too long\""
    );
    warned.expect(201);
    let quiet = cluster.post(CONFIG_MAPS, &config_map("abc")).await;
    assert!(quiet.headers.get("warning").is_none());
    quiet.expect(201);

    // Errors of expressions go by the failure policy.
    let broken = json!({"validations": [{"expression": "object.data.missing == 'x'"}]});
    cluster
        .post(POLICIES, &policy("broken", &broken))
        .await
        .expect(201);
    cluster
        .post(BINDINGS, &binding("broken", &Value::Null))
        .await
        .expect(201);
    let denied = cluster
        .post(CONFIG_MAPS, &config_map("d"))
        .await
        .expect(422);
    let message = denied["message"].as_str().unwrap_or_default();
    assert!(
        message.contains("resulted in error: no such key: missing"),
        "{message}"
    );
    cluster
        .merge(
            &format!("{POLICIES}/broken"),
            &json!({"spec": {"failurePolicy": "Ignore"}}),
        )
        .await
        .expect(200);
    cluster
        .post(CONFIG_MAPS, &config_map("d"))
        .await
        .expect(201);
}

#[tokio::test]
async fn configurations_that_make_no_sense_are_refused() {
    let cluster = Cluster::start().await;
    let validations =
        |expression: &str| policy("p", &json!({"validations": [{"expression": expression}]}));
    for (body, why) in [
        (
            validations("object."),
            "spec.validations[0].expression: Invalid value: \"object.\": compilation failed",
        ),
        (
            validations("nobody == 1"),
            "undeclared reference to 'nobody'",
        ),
        (validations("1 + 1"), "must evaluate to bool"),
        (
            policy("p", &Value::Null),
            "spec.validations: Required value",
        ),
    ] {
        let refused = cluster.post(POLICIES, &body).await.expect(422);
        let message = refused["message"].as_str().unwrap_or_default();
        assert!(message.contains(why), "{message}");
    }
    let both = binding("p", &json!({"validationActions": ["Deny", "Warn"]}));
    cluster.post(BINDINGS, &both).await.expect(422);
    let hook = json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingWebhookConfiguration",
        "metadata": {"name": "v"}, "webhooks": [{"name": "a.example.com", "sideEffects": "None",
            "admissionReviewVersions": ["v1"], "clientConfig": {"url": "https://localhost"},
            "matchConditions": [{"name": "x", "expression": "..."}]}]});
    let refused = cluster.post(VALIDATING, &hook).await.expect(422);
    let message = refused["message"].as_str().unwrap_or_default();
    assert!(
        message.contains("webhooks[0].matchConditions[0].expression"),
        "{message}"
    );
    assert!(message.contains("compilation failed"), "{message}");
}

#[tokio::test]
async fn match_conditions_spare_a_webhook() {
    let cluster = Cluster::start().await;
    let hook = Hook::start(|_, review| verdict(review, &json!({"allowed": false}))).await;
    let configuration = json!({"apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingWebhookConfiguration", "metadata": {"name": "v"},
        "webhooks": [{"name": "a.example.com", "sideEffects": "None", "admissionReviewVersions": ["v1"],
            "clientConfig": hook.client("/v"),
            "rules": [{"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["configmaps"]}],
            "matchConditions": [
                {"name": "skip", "expression": "object.metadata.name != 'skip-me'"},
                {"name": "label", "expression": "request.userInfo.username == 'admin'"}]}]});
    cluster.post(VALIDATING, &configuration).await.expect(201);
    cluster
        .post(CONFIG_MAPS, &config_map("skip-me"))
        .await
        .expect(201);
    cluster
        .post(CONFIG_MAPS, &config_map("other"))
        .await
        .expect(400);
    assert_eq!(hook.reviews("/v").len(), 1);
}
