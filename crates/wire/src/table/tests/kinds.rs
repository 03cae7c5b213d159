//! One or two objects of each kind, and the cells they give.

use super::cells;
use serde_json::{Value, json};

#[test]
fn cells_of_other_kinds() {
    let cases = [
        (
            "v1",
            "Node",
            json!({"metadata": {"labels": {"node-role.kubernetes.io/edge": "", "kubernetes.io/role": "cloud"}}, "spec": {"unschedulable": true},
                "status": {"conditions": [{"type": "Ready", "status": "Unknown"}], "nodeInfo": {"kubeletVersion": "v1"},
                    "addresses": [{"type": "InternalIP", "address": "10.0.0.1"}]}}),
            json!([
                "n",
                "NotReady,SchedulingDisabled",
                "cloud,edge",
                "60m",
                "v1",
                "10.0.0.1",
                "<none>",
                "<unknown>",
                "<unknown>",
                "<unknown>"
            ]),
        ),
        (
            "v1",
            "Service",
            json!({"spec": {"type": "LoadBalancer", "clusterIPs": ["10.0.0.1"], "ports": [{"port": 80, "nodePort": 30080, "protocol": "TCP"},
                {"port": 53, "protocol": "UDP"}], "selector": {"b": "2", "a": "1"}}, "status": {"loadBalancer": {"ingress": [{"hostname": "h"}, {"ip": "1.2.3.4"}]}}}),
            json!([
                "n",
                "LoadBalancer",
                "10.0.0.1",
                "1.2.3.4,h",
                "80:30080/TCP,53/UDP",
                "60m",
                "a=1,b=2"
            ]),
        ),
        (
            "v1",
            "Service",
            json!({"spec": {"type": "ExternalName", "externalName": "example.com"}}),
            json!([
                "n",
                "ExternalName",
                "<none>",
                "example.com",
                "<none>",
                "60m",
                "<none>"
            ]),
        ),
        (
            "v1",
            "Endpoints",
            json!({"subsets": [{"addresses": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}], "ports": [{"port": 80}, {"port": 81}]}]}),
            json!([
                "n",
                "10.0.0.1:80,[fd00::1]:80,10.0.0.1:81 + 1 more...",
                "60m"
            ]),
        ),
        (
            "discovery.k8s.io/v1",
            "EndpointSlice",
            json!({"addressType": "IPv4", "ports": [{"port": 80}, {"name": "x"}, {}, {"port": 1}], "endpoints": [{"addresses": ["10.0.0.1"]}]}),
            json!(["n", "IPv4", "80,x,* + 1 more...", "10.0.0.1", "60m"]),
        ),
        (
            "discovery.k8s.io/v1",
            "EndpointSlice",
            json!({"addressType": "IPv6"}),
            json!(["n", "IPv6", "<unset>", "<unset>", "60m"]),
        ),
        (
            "v1",
            "Namespace",
            json!({"status": {"phase": "Active"}}),
            json!(["n", "Active", "60m"]),
        ),
        (
            "v1",
            "ConfigMap",
            json!({"data": {"a": "", "b": ""}, "binaryData": {"c": ""}}),
            json!(["n", 3, "60m"]),
        ),
        (
            "v1",
            "Secret",
            json!({"type": "Opaque", "data": {"a": ""}}),
            json!(["n", "Opaque", 1, "60m"]),
        ),
        ("v1", "ServiceAccount", json!({}), json!(["n", 0, "60m"])),
        (
            "v1",
            "Event",
            json!({"type": "Warning", "reason": "Failed", "message": " m\n", "count": 4, "firstTimestamp": "2026-01-01T00:00:00Z",
                "lastTimestamp": "2026-01-01T00:59:30Z", "involvedObject": {"kind": "Pod", "name": "p", "fieldPath": "spec"},
                "source": {"component": "kubelet", "host": "h"}}),
            json!([
                "30s",
                "Warning",
                "Failed",
                "pod/p",
                "spec",
                "kubelet, h",
                "m",
                "60m",
                4,
                "n"
            ]),
        ),
        (
            "events.k8s.io/v1",
            "Event",
            json!({"type": "Normal", "reason": "R", "note": "x", "eventTime": "2026-01-01T00:50:00.5Z", "reportingController": "c",
                "regarding": {"kind": "Node"}, "series": {"count": 9, "lastObservedTime": "2026-01-01T00:59:00.000000Z"}}),
            json!(["60s", "Normal", "R", "node", "", "c", "x", "9m59s", 9, "n"]),
        ),
        (
            "apps/v1",
            "Deployment",
            json!({"spec": {"replicas": 3, "selector": {"matchLabels": {"a": "b"}}, "template": {"spec": {"containers": [
                {"name": "x", "image": "i"}, {"name": "y", "image": "j"}]}}}, "status": {"readyReplicas": 2, "updatedReplicas": 3, "availableReplicas": 1}}),
            json!(["n", "2/3", 3, 1, "60m", "x,y", "i,j", "a=b"]),
        ),
        (
            "apps/v1",
            "ReplicaSet",
            json!({"spec": {"replicas": 2}, "status": {"replicas": 1}}),
            json!(["n", 2, 1, 0, "60m", "", "", "<none>"]),
        ),
        (
            "apps/v1",
            "StatefulSet",
            json!({"spec": {"replicas": 0}}),
            json!(["n", "0/0", "60m", "", ""]),
        ),
        (
            "apps/v1",
            "DaemonSet",
            json!({"spec": {"template": {"spec": {"nodeSelector": {"k": "v"}}}}, "status": {"desiredNumberScheduled": 4, "numberReady": 2}}),
            json!(["n", 4, 0, 2, 0, 0, "k=v", "60m", "", "", "<none>"]),
        ),
        (
            "batch/v1",
            "Job",
            json!({"spec": {"completions": 2}, "status": {"succeeded": 2, "startTime": "2026-01-01T00:00:00Z",
                "completionTime": "2026-01-01T00:01:30Z", "conditions": [{"type": "Complete", "status": "True"}]}}),
            json!(["n", "Complete", "2/2", "90s", "60m", "", "", "<none>"]),
        ),
        (
            "batch/v1",
            "Job",
            json!({"spec": {"parallelism": 5}}),
            json!(["n", "Running", "0/1 of 5", "", "60m", "", "", "<none>"]),
        ),
        (
            "batch/v1",
            "CronJob",
            json!({"spec": {"schedule": "* * * * *", "suspend": false}, "status": {"active": [{}]}}),
            json!([
                "n",
                "* * * * *",
                "<none>",
                "False",
                1,
                "<none>",
                "60m",
                "",
                "",
                "<none>"
            ]),
        ),
        (
            "coordination.k8s.io/v1",
            "Lease",
            json!({"spec": {"holderIdentity": "h"}}),
            json!(["n", "h", "60m"]),
        ),
        (
            "v1",
            "PersistentVolume",
            json!({"spec": {"capacity": {"storage": "5Gi"}, "accessModes": ["ReadWriteMany", "ReadWriteOnce"], "persistentVolumeReclaimPolicy": "Retain",
                "claimRef": {"namespace": "d", "name": "c"}, "storageClassName": "s", "volumeMode": "Filesystem"}, "status": {"phase": "Bound"}}),
            json!([
                "n",
                "5Gi",
                "RWO,RWX",
                "Retain",
                "Bound",
                "d/c",
                "s",
                "<unset>",
                "",
                "60m",
                "Filesystem"
            ]),
        ),
        (
            "v1",
            "PersistentVolumeClaim",
            json!({"status": {"phase": "Pending", "capacity": {"storage": "1Gi"}}}),
            json!(["n", "Pending", "", "", "", "", "<unset>", "60m", "<unset>"]),
        ),
        (
            "storage.k8s.io/v1",
            "StorageClass",
            json!({"metadata": {"annotations": {"storageclass.kubernetes.io/is-default-class": "true"}}, "provisioner": "p"}),
            json!(["n (default)", "p", "Delete", "Immediate", false, "60m"]),
        ),
        (
            "networking.k8s.io/v1",
            "Ingress",
            json!({"spec": {"rules": [{"host": "a"}, {"host": "b"}, {"host": "c"}, {"host": "d"}], "tls": [{}]}}),
            json!(["n", "<none>", "a,b,c + 1 more...", "", "80, 443", "60m"]),
        ),
        (
            "certificates.k8s.io/v1",
            "CertificateSigningRequest",
            json!({"spec": {"signerName": "s", "username": "u", "expirationSeconds": 3600}, "status": {"conditions": [{"type": "Approved"}], "certificate": "eA=="}}),
            json!(["n", "60m", "s", "u", "60m", "Approved,Issued"]),
        ),
        (
            "rbac.authorization.k8s.io/v1",
            "ClusterRole",
            json!({}),
            json!(["n", "2026-01-01T00:00:00Z"]),
        ),
        (
            "rbac.authorization.k8s.io/v1",
            "RoleBinding",
            json!({"roleRef": {"kind": "Role", "name": "r"}, "subjects": [{"kind": "User", "name": "u"}, {"kind": "User", "name": "v"},
                {"kind": "ServiceAccount", "namespace": "d", "name": "s"}]}),
            json!(["n", "Role/r", "60m", "u, v", "", "d/s"]),
        ),
        (
            "policy/v1",
            "PodDisruptionBudget",
            json!({"spec": {"minAvailable": 1}, "status": {"disruptionsAllowed": 2}}),
            json!(["n", "1", "N/A", 2, "60m"]),
        ),
        (
            "autoscaling/v2",
            "HorizontalPodAutoscaler",
            json!({"spec": {"scaleTargetRef": {"kind": "Deployment", "name": "d"}, "minReplicas": 1, "maxReplicas": 4, "metrics": [
                {"type": "Resource", "resource": {"name": "cpu", "target": {"averageUtilization": 80}}},
                {"type": "Pods", "pods": {"target": {"averageValue": "10"}}},
                {"type": "Object"}]}, "status": {"currentReplicas": 2, "currentMetrics": [{"resource": {"current": {"averageUtilization": 20}}}]}}),
            json!([
                "n",
                "Deployment/d",
                "cpu: 20%/80%, <unknown>/10 + 1 more...",
                "1",
                4,
                2,
                "60m"
            ]),
        ),
        (
            "networking.k8s.io/v1",
            "NetworkPolicy",
            json!({"spec": {"podSelector": {}}}),
            json!(["n", "<none>", "60m"]),
        ),
        (
            "scheduling.k8s.io/v1",
            "PriorityClass",
            json!({"value": 7, "globalDefault": true}),
            json!(["n", 7, true, "60m", ""]),
        ),
        (
            "node.k8s.io/v1",
            "RuntimeClass",
            json!({"handler": "h"}),
            json!(["n", "h", "60m"]),
        ),
        (
            "storage.k8s.io/v1",
            "CSINode",
            json!({"spec": {"drivers": [{}]}}),
            json!(["n", 1, "60m"]),
        ),
        (
            "storage.k8s.io/v1",
            "CSIDriver",
            json!({"spec": {}}),
            json!(["n", true, false, false, "<unset>", false, "<none>", "60m"]),
        ),
        (
            "apps/v1",
            "ControllerRevision",
            json!({"metadata": {"ownerReferences": [{"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "s", "controller": true}]}, "revision": 3}),
            json!(["n", "statefulset.apps/s", 3, "60m"]),
        ),
        (
            "apiextensions.k8s.io/v1",
            "CustomResourceDefinition",
            json!({"spec": {"group": "g", "scope": "Cluster", "names": {"kind": "K", "shortNames": ["k"]},
                "versions": [{"name": "v2", "served": true, "storage": true}, {"name": "v1", "served": true}, {"name": "v0"}]}}),
            json!([
                "n",
                "Cluster",
                "v1,v2(storage)",
                "2026-01-01T00:00:00Z",
                "g",
                "K",
                "k",
                false
            ]),
        ),
        (
            "admissionregistration.k8s.io/v1",
            "MutatingWebhookConfiguration",
            json!({"webhooks": [{}, {}]}),
            json!(["n", 2, "60m"]),
        ),
        (
            "apiregistration.k8s.io/v1",
            "APIService",
            json!({"spec": {"service": {"namespace": "d", "name": "s"}}, "status": {"conditions": [{"type": "Available", "status": "False", "reason": "R"}]}}),
            json!(["n", "d/s", "False (R)", "60m"]),
        ),
        (
            "v1",
            "ResourceQuota",
            json!({"status": {"hard": {"pods": "4", "limits.cpu": "2"}, "used": {"pods": "1"}}}),
            json!(["n", "pods: 1/4", "limits.cpu: 0/2", "60m"]),
        ),
        ("example.com/v1", "Widget", json!({}), json!(["n", "60m"])),
    ];
    for (api_version, kind, object, expected) in cases {
        assert_eq!(
            Value::Array(cells(api_version, kind, object)),
            expected,
            "{kind}"
        );
    }
}
