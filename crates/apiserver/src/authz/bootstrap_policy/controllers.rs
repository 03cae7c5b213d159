//! The roles of kube-controller-manager's controllers, each for the service account of that name in `kube-system`.

use super::{ClusterRole, EVENTS, Named, On, READ};

/// The account's name follows.
pub(super) const PREFIX: &str = "system:controller:";

const UPDATE: &str = "patch update";

pub(super) const ROLES: &[ClusterRole] = &[
    ClusterRole(
        "system:controller:attachdetach-controller",
        "",
        &[
            On(
                "list watch",
                "core",
                "persistentvolumeclaims persistentvolumes",
            ),
            On(READ, "core", "nodes"),
            On(UPDATE, "core", "nodes/status"),
            On("list watch", "core", "pods"),
            EVENTS,
            On(
                "create delete get list watch",
                "storage.k8s.io",
                "volumeattachments",
            ),
            On(READ, "storage.k8s.io", "csidrivers"),
            On(READ, "storage.k8s.io", "csinodes"),
        ],
    ),
    ClusterRole(
        "system:controller:certificate-controller",
        "",
        &[
            On(
                "delete get list watch",
                "certificates.k8s.io",
                "certificatesigningrequests",
            ),
            On(
                "update",
                "certificates.k8s.io",
                "certificatesigningrequests/approval certificatesigningrequests/status",
            ),
            Named(
                "approve",
                "certificates.k8s.io",
                "signers",
                "kubernetes.io/kube-apiserver-client-kubelet",
            ),
            Named(
                "sign",
                "certificates.k8s.io",
                "signers",
                "kubernetes.io/kube-apiserver-client kubernetes.io/kube-apiserver-client-kubelet kubernetes.io/kubelet-serving kubernetes.io/legacy-unknown",
            ),
            On("create", "authorization.k8s.io", "subjectaccessreviews"),
            EVENTS,
        ],
    ),
    ClusterRole(
        "system:controller:clusterrole-aggregation-controller",
        "",
        &[On(
            "escalate get list patch update watch",
            "rbac.authorization.k8s.io",
            "clusterroles",
        )],
    ),
    ClusterRole(
        "system:controller:cronjob-controller",
        "",
        &[
            On("get list update watch", "batch", "cronjobs"),
            On("create delete get list patch update watch", "batch", "jobs"),
            On("update", "batch", "cronjobs/status"),
            On("update", "batch", "cronjobs/finalizers"),
            On("delete list watch", "core", "pods"),
            EVENTS,
        ],
    ),
    ClusterRole(
        "system:controller:daemon-set-controller",
        "",
        &[
            On(READ, "apps extensions", "daemonsets"),
            On("update", "apps extensions", "daemonsets/status"),
            On("update", "apps extensions", "daemonsets/finalizers"),
            On("list watch", "core", "nodes"),
            On("create delete list patch watch", "core", "pods"),
            On("create", "core", "pods/binding"),
            On(
                "create delete get list patch update watch",
                "apps",
                "controllerrevisions",
            ),
            EVENTS,
        ],
    ),
    ClusterRole(
        "system:controller:deployment-controller",
        "",
        &[
            On("get list update watch", "apps extensions", "deployments"),
            On("update", "apps extensions", "deployments/status"),
            On("update", "apps extensions", "deployments/finalizers"),
            On(
                "create delete get list patch update watch",
                "apps extensions",
                "replicasets",
            ),
            On("get list update watch", "core", "pods"),
            EVENTS,
        ],
    ),
    ClusterRole(
        "system:controller:device-taint-eviction-controller",
        "",
        &[
            On("delete get list watch", "core", "pods"),
            On(UPDATE, "core", "pods/status"),
            On(READ, "resource.k8s.io", "resourceclaims"),
            On(READ, "resource.k8s.io", "resourceslices"),
            On(READ, "resource.k8s.io", "deviceclasses"),
            On(READ, "resource.k8s.io", "devicetaintrules"),
            EVENTS,
        ],
    ),
    ClusterRole(
        "system:controller:disruption-controller",
        "",
        &[
            On(READ, "apps extensions", "deployments"),
            On(READ, "apps extensions", "replicasets"),
            On(READ, "core", "replicationcontrollers"),
            On(READ, "policy", "poddisruptionbudgets"),
            On(READ, "apps", "statefulsets"),
            On("update", "policy", "poddisruptionbudgets/status"),
            On(UPDATE, "core", "pods/status"),
            On("get", "*", "*/scale"),
            EVENTS,
        ],
    ),
    ClusterRole(
        "system:controller:endpoint-controller",
        "",
        &[
            On(READ, "core", "pods services"),
            On("create delete get list update watch", "core", "endpoints"),
            On("create", "core", "endpoints/restricted"),
            EVENTS,
        ],
    ),
    ClusterRole(
        "system:controller:endpointslice-controller",
        "",
        &[
            On(READ, "core", "nodes pods services"),
            On("update", "core", "services/finalizers"),
            On(
                "create delete get list update watch",
                "discovery.k8s.io",
                "endpointslices",
            ),
            EVENTS,
        ],
    ),
    ClusterRole(
        "system:controller:endpointslicemirroring-controller",
        "",
        &[
            On(READ, "core", "endpoints services"),
            On("update", "core", "services/finalizers"),
            On("update", "core", "endpoints/finalizers"),
            On(
                "create delete get list update watch",
                "discovery.k8s.io",
                "endpointslices",
            ),
            EVENTS,
        ],
    ),
    ClusterRole(
        "system:controller:ephemeral-volume-controller",
        "",
        &[
            On(READ, "core", "pods"),
            On("update", "core", "pods/finalizers"),
            On("create get list watch", "core", "persistentvolumeclaims"),
            EVENTS,
        ],
    ),
    ClusterRole(
        "system:controller:expand-controller",
        "",
        &[
            On("get list patch update watch", "core", "persistentvolumes"),
            On(UPDATE, "core", "persistentvolumeclaims/status"),
            On(READ, "core", "persistentvolumeclaims"),
            EVENTS,
            On("get", "core", "services"),
        ],
    ),
    ClusterRole(
        "system:controller:generic-garbage-collector",
        "",
        &[On("delete get list patch update watch", "*", "*"), EVENTS],
    ),
    ClusterRole(
        "system:controller:horizontal-pod-autoscaler",
        "",
        &[
            On(READ, "autoscaling", "horizontalpodautoscalers"),
            On("update", "autoscaling", "horizontalpodautoscalers/status"),
            On("get update", "*", "*/scale"),
            On("list watch", "core", "pods"),
            On("list watch", "metrics.k8s.io", "pods"),
            On(READ, "custom.metrics.k8s.io", "*"),
            On(READ, "external.metrics.k8s.io", "*"),
            EVENTS,
        ],
    ),
    ClusterRole(
        "system:controller:job-controller",
        "",
        &[
            On("get list patch update watch", "batch", "jobs"),
            On("update", "batch", "jobs/status"),
            On("update", "batch", "jobs/finalizers"),
            On("create delete list patch watch", "core", "pods"),
            EVENTS,
        ],
    ),
    ClusterRole(
        "system:controller:legacy-service-account-token-cleaner",
        "",
        &[
            Named(
                "get",
                "core",
                "configmaps",
                "kube-apiserver-legacy-service-account-token-tracking",
            ),
            On("delete patch", "core", "secrets"),
        ],
    ),
    ClusterRole(
        "system:controller:namespace-controller",
        "",
        &[
            On("delete get list watch", "core", "namespaces"),
            On("update", "core", "namespaces/finalize namespaces/status"),
            On("delete deletecollection get list watch", "*", "*"),
        ],
    ),
    ClusterRole(
        "system:controller:node-controller",
        "",
        &[
            On("delete get list patch update watch", "core", "nodes"),
            On(UPDATE, "core", "nodes/status"),
            On(UPDATE, "core", "pods/status"),
            On("delete get list watch", "core", "pods"),
            EVENTS,
        ],
    ),
    ClusterRole(
        "system:controller:persistent-volume-binder",
        "",
        &[
            On(
                "create delete get list update watch",
                "core",
                "persistentvolumes",
            ),
            On("update", "core", "persistentvolumes/status"),
            On("get list update watch", "core", "persistentvolumeclaims"),
            On("update", "core", "persistentvolumeclaims/status"),
            On("create delete get list watch", "core", "pods"),
            On(READ, "storage.k8s.io", "storageclasses"),
            On("list watch", "core", "nodes"),
            EVENTS,
            On("watch", "core", "events"),
            On("get", "core", "services"),
        ],
    ),
    ClusterRole(
        "system:controller:pod-garbage-collector",
        "",
        &[
            On("delete list watch", "core", "pods"),
            On(READ, "core", "nodes"),
            On("patch", "core", "pods/status"),
        ],
    ),
    ClusterRole(
        "system:controller:pv-protection-controller",
        "",
        &[
            On("get list update watch", "core", "persistentvolumes"),
            EVENTS,
        ],
    ),
    ClusterRole(
        "system:controller:pvc-protection-controller",
        "",
        &[
            On("get list update watch", "core", "persistentvolumeclaims"),
            On(READ, "core", "pods"),
            EVENTS,
        ],
    ),
    ClusterRole(
        "system:controller:replicaset-controller",
        "",
        &[
            On("get list update watch", "apps extensions", "replicasets"),
            On("update", "apps extensions", "replicasets/status"),
            On("update", "apps extensions", "replicasets/finalizers"),
            On("create delete list patch watch", "core", "pods"),
            EVENTS,
        ],
    ),
    ClusterRole(
        "system:controller:replication-controller",
        "",
        &[
            On("get list update watch", "core", "replicationcontrollers"),
            On("update", "core", "replicationcontrollers/status"),
            On("update", "core", "replicationcontrollers/finalizers"),
            On("create delete list patch watch", "core", "pods"),
            EVENTS,
        ],
    ),
    ClusterRole(
        "system:controller:resource-claim-controller",
        "",
        &[
            On(READ, "core", "pods"),
            On("update", "core", "pods/finalizers"),
            On(
                "create delete get list watch",
                "resource.k8s.io",
                "resourceclaims",
            ),
            On(
                UPDATE,
                "resource.k8s.io",
                "resourceclaims resourceclaims/status",
            ),
            On(UPDATE, "core", "pods/status"),
            EVENTS,
        ],
    ),
    ClusterRole(
        "system:controller:resourcequota-controller",
        "",
        &[
            On("list watch", "*", "*"),
            On("update", "core", "resourcequotas/status"),
            EVENTS,
        ],
    ),
    ClusterRole(
        "system:controller:root-ca-cert-publisher",
        "",
        &[On("create update", "core", "configmaps"), EVENTS],
    ),
    ClusterRole(
        "system:controller:route-controller",
        "",
        &[
            On("list watch", "core", "nodes"),
            On("patch", "core", "nodes/status"),
            EVENTS,
        ],
    ),
    ClusterRole(
        "system:controller:selinux-warning-controller",
        "",
        &[
            EVENTS,
            On(READ, "core", "persistentvolumes"),
            On(READ, "core", "persistentvolumeclaims"),
            On(READ, "core", "pods"),
            On(READ, "storage.k8s.io", "csidrivers"),
        ],
    ),
    ClusterRole(
        "system:controller:service-account-controller",
        "",
        &[On("create", "core", "serviceaccounts"), EVENTS],
    ),
    ClusterRole(
        "system:controller:service-cidrs-controller",
        "",
        &[
            On(
                "get list patch update watch",
                "networking.k8s.io",
                "servicecidrs",
            ),
            On(UPDATE, "networking.k8s.io", "servicecidrs/finalizers"),
            On(UPDATE, "networking.k8s.io", "servicecidrs/status"),
            On(READ, "networking.k8s.io", "ipaddresses"),
            EVENTS,
        ],
    ),
    ClusterRole(
        "system:controller:service-controller",
        "",
        &[
            On(READ, "core", "services"),
            On(UPDATE, "core", "services/status"),
            On("list watch", "core", "nodes"),
            EVENTS,
        ],
    ),
    ClusterRole(
        "system:controller:statefulset-controller",
        "",
        &[
            On("list watch", "core", "pods"),
            On(READ, "apps", "statefulsets"),
            On("update", "apps", "statefulsets/status"),
            On("update", "apps", "statefulsets/finalizers"),
            On("create delete get patch update", "core", "pods"),
            On(
                "create delete get list patch update watch",
                "apps",
                "controllerrevisions",
            ),
            On("create get list watch", "core", "persistentvolumeclaims"),
            On("delete update", "core", "persistentvolumeclaims"),
            On("update", "core", "pods/finalizers"),
            EVENTS,
        ],
    ),
    ClusterRole(
        "system:controller:ttl-after-finished-controller",
        "",
        &[On("delete get list watch", "batch", "jobs"), EVENTS],
    ),
    ClusterRole(
        "system:controller:ttl-controller",
        "",
        &[On("list patch update watch", "core", "nodes"), EVENTS],
    ),
    ClusterRole(
        "system:controller:validatingadmissionpolicy-status-controller",
        "",
        &[
            On(
                READ,
                "admissionregistration.k8s.io",
                "validatingadmissionpolicies",
            ),
            On(
                "get patch update",
                "admissionregistration.k8s.io",
                "validatingadmissionpolicies/status",
            ),
            EVENTS,
        ],
    ),
    ClusterRole(
        "system:controller:volumeattributesclass-protection-controller",
        "",
        &[
            On(READ, "core", "persistentvolumeclaims"),
            On(READ, "core", "persistentvolumes"),
            On(
                "get list update watch",
                "storage.k8s.io",
                "volumeattributesclasses",
            ),
            EVENTS,
        ],
    ),
];
