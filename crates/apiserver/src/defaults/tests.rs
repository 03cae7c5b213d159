//! Recorded objects are already defaulted; what is left out means what kube-apiserver says.

use super::*;
use crate::recorded;
use serde_json::json;

fn gvk_of(object: &Value) -> Gvk {
    Gvk::from_api_version(text(object, "apiVersion"), text(object, "kind"))
}

fn defaulted(mut object: Value) -> Value {
    apply_defaults(&gvk_of(&object), &mut object);
    let mut again = object.clone();
    apply_defaults(&gvk_of(&object), &mut again);
    assert_eq!(again, object, "not idempotent");
    object
}

#[test]
fn recorded_objects_do_not_change() {
    for object in recorded::objects() {
        assert_eq!(defaulted(object.clone()), object);
    }
}

#[test]
fn a_minimal_pod() {
    let pod = defaulted(json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"},
        "spec": {"serviceAccountName": "x", "containers": [{
            "name": "a", "image": "registry:5000/app", "unknown": 1, "workingDir": "",
            "ports": [{"containerPort": 80}],
            "livenessProbe": {"httpGet": {"port": 80}},
            "env": [{"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}],
            "resources": {"limits": {"cpu": "1"}},
        }], "volumes": [{"name": "tmp"}, {"name": "cm", "configMap": {"name": "c"}}, {"name": "h", "hostPath": {"path": "/"}}]},
    }));
    assert_eq!(
        pod["spec"],
        json!({
            "serviceAccountName": "x", "serviceAccount": "x", "restartPolicy": "Always", "dnsPolicy": "ClusterFirst",
            "schedulerName": "default-scheduler", "terminationGracePeriodSeconds": 30, "securityContext": {},
            "enableServiceLinks": true,
            "containers": [{
                "name": "a", "image": "registry:5000/app", "imagePullPolicy": "Always",
                "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File",
                "ports": [{"containerPort": 80, "protocol": "TCP"}],
                "livenessProbe": {"httpGet": {"port": 80, "path": "/", "scheme": "HTTP"}, "timeoutSeconds": 1,
                    "periodSeconds": 10, "successThreshold": 1, "failureThreshold": 3},
                "env": [{"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP", "apiVersion": "v1"}}}],
                "resources": {"limits": {"cpu": "1"}, "requests": {"cpu": "1"}},
            }],
            "volumes": [{"name": "tmp", "emptyDir": {}}, {"name": "cm", "configMap": {"name": "c", "defaultMode": 420}},
                {"name": "h", "hostPath": {"path": "/", "type": ""}}],
        })
    );
    assert_eq!(pod["status"], json!({}));
}

#[test]
fn pull_policies() {
    for (image, policy) in [
        ("app", "Always"),
        ("app:latest", "Always"),
        ("app:1", "IfNotPresent"),
        ("host:5000/app", "Always"),
        ("host:5000/app:1", "IfNotPresent"),
        ("app@sha256:00", "IfNotPresent"),
        ("app:latest@sha256:00", "Always"),
    ] {
        let pod = defaulted(
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"},
            "spec": {"containers": [{"name": "a", "image": image}]}}),
        );
        assert_eq!(
            pod["spec"]["containers"][0]["imagePullPolicy"], policy,
            "{image}"
        );
    }
}

#[test]
fn minimal_objects_of_other_kinds() {
    let pods = json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "a", "image": "i:1"}]}});
    let selector = json!({"matchLabels": {"a": "b"}});
    for (api_version, kind, body, pointer, value) in [
        (
            "apps/v1",
            "Deployment",
            json!({"spec": {"selector": selector, "template": pods}}),
            "/spec/strategy",
            json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"}}),
        ),
        (
            "apps/v1",
            "Deployment",
            json!({"spec": {"strategy": {"type": "Recreate"}}}),
            "/spec/strategy",
            json!({"type": "Recreate"}),
        ),
        (
            "apps/v1",
            "DaemonSet",
            json!({"spec": {"template": pods}}),
            "/spec/updateStrategy/rollingUpdate",
            json!({"maxSurge": 0, "maxUnavailable": 1}),
        ),
        (
            "apps/v1",
            "StatefulSet",
            json!({"spec": {"template": pods}}),
            "/spec/podManagementPolicy",
            json!("OrderedReady"),
        ),
        (
            "batch/v1",
            "Job",
            json!({"spec": {"template": pods}}),
            "/metadata/labels",
            json!({"a": "b"}),
        ),
        (
            "batch/v1",
            "Job",
            json!({"spec": {"parallelism": 2}}),
            "/spec/backoffLimit",
            json!(6),
        ),
        (
            "batch/v1",
            "CronJob",
            json!({"spec": {"schedule": "* * * * *"}}),
            "/spec/concurrencyPolicy",
            json!("Allow"),
        ),
        (
            "v1",
            "Namespace",
            json!({}),
            "/metadata/labels",
            json!({"kubernetes.io/metadata.name": "x"}),
        ),
        (
            "v1",
            "Namespace",
            json!({}),
            "/spec",
            json!({"finalizers": ["kubernetes"]}),
        ),
        (
            "v1",
            "Secret",
            json!({"stringData": {"k": "v"}, "data": {"o": "bw=="}}),
            "/data",
            json!({"k": "dg==", "o": "bw=="}),
        ),
        ("v1", "Secret", json!({}), "/type", json!("Opaque")),
        (
            "v1",
            "PersistentVolumeClaim",
            json!({"spec": {}}),
            "/status/phase",
            json!("Pending"),
        ),
        (
            "storage.k8s.io/v1",
            "StorageClass",
            json!({"provisioner": "p"}),
            "/reclaimPolicy",
            json!("Delete"),
        ),
        (
            "rbac.authorization.k8s.io/v1",
            "RoleBinding",
            json!({"roleRef": {"kind": "Role", "name": "r"}, "subjects": [{"kind": "User", "name": "u"}]}),
            "/subjects/0/apiGroup",
            json!("rbac.authorization.k8s.io"),
        ),
        (
            "discovery.k8s.io/v1",
            "EndpointSlice",
            json!({"addressType": "IPv4", "endpoints": [], "ports": [{"port": 80}]}),
            "/ports/0",
            json!({"port": 80, "name": "", "protocol": "TCP"}),
        ),
        (
            "networking.k8s.io/v1",
            "NetworkPolicy",
            json!({"spec": {"egress": [{}]}}),
            "/spec/policyTypes",
            json!(["Ingress", "Egress"]),
        ),
        (
            "autoscaling/v2",
            "HorizontalPodAutoscaler",
            json!({"spec": {"maxReplicas": 3}}),
            "/spec/minReplicas",
            json!(1),
        ),
        (
            "admissionregistration.k8s.io/v1",
            "ValidatingWebhookConfiguration",
            json!({"webhooks": [{"name": "w"}]}),
            "/webhooks/0/failurePolicy",
            json!("Fail"),
        ),
    ] {
        let mut object = body;
        object["apiVersion"] = json!(api_version);
        object["kind"] = json!(kind);
        object["metadata"] = json!({"name": "x"});
        let object = defaulted(object);
        assert_eq!(
            object.pointer(pointer),
            Some(&value),
            "{kind} {pointer}: {object}"
        );
    }
}

#[test]
fn services() {
    let service = defaulted(
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s"},
        "spec": {"type": "NodePort", "sessionAffinity": "ClientIP", "ports": [{"port": 80}]}}),
    );
    assert_eq!(
        service["spec"],
        json!({"type": "NodePort", "sessionAffinity": "ClientIP",
            "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 10800}},
            "externalTrafficPolicy": "Cluster", "internalTrafficPolicy": "Cluster",
            "ports": [{"port": 80, "targetPort": 80, "protocol": "TCP"}]})
    );
    let mut service = service;
    service["spec"]["clusterIP"] = json!("fd00::1");
    service_ip_families(&mut service);
    assert_eq!(service["spec"]["ipFamilies"], json!(["IPv6"]));
    assert_eq!(service["spec"]["clusterIPs"], json!(["fd00::1"]));
    assert_eq!(service["spec"]["ipFamilyPolicy"], "SingleStack");
}

#[test]
fn a_finished_namespace_keeps_no_finalizer() {
    let namespace = defaulted(json!({"apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": "x", "deletionTimestamp": "2026-11-21T20:00:00Z"}, "spec": {"finalizers": []}}));
    assert_eq!(namespace["spec"], json!({}));
}

#[test]
fn only_whole_objects_are_typed() {
    let event = defaulted(json!({
        "apiVersion": "v1", "kind": "Event", "metadata": {"name": "e"},
        "involvedObject": {"apiVersion": null, "kind": null, "name": "edge-1"},
    }));
    assert_eq!(event["involvedObject"], json!({"name": "edge-1"}));

    let set = defaulted(json!({
        "apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "s"},
        "spec": {
            "template": {"apiVersion": "v1", "kind": "Pod", "spec": {"containers": [{"name": "a", "image": "a"}]}},
            "volumeClaimTemplates": [{"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "c"}}],
        },
    }));
    let template = set["spec"]["template"].as_object().unwrap();
    assert_eq!(template.keys().collect::<Vec<_>>(), ["metadata", "spec"]);
    let claim = &set["spec"]["volumeClaimTemplates"][0];
    assert_eq!(
        (text(claim, "apiVersion"), text(claim, "kind")),
        ("v1", "PersistentVolumeClaim")
    );
}
