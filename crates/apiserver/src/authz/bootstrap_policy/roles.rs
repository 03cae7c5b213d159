//! The cluster roles for users, nodes and the components of the control plane.

use super::{
    ClusterRole, EVENTS, Named, On, READ, READ_UPDATE, READ_WRITE, Row,
    To::{self, Account, Group, User},
    Urls, WRITE,
};

/// Roles whose rules are those of the roles labelled for them.
pub(super) const AGGREGATED: [&str; 3] = ["admin", "edit", "view"];

const AUTHENTICATION: Row = On("create", "authentication.k8s.io", "tokenreviews");
const AUTHORIZATION: Row = On("create", "authorization.k8s.io", "subjectaccessreviews");

/// What every node may do as far as it is not about what runs on it.
pub(super) const NODE: &[Row] = &[
    AUTHENTICATION,
    On(
        "create",
        "authorization.k8s.io",
        "localsubjectaccessreviews subjectaccessreviews",
    ),
    On(READ, "core", "services"),
    On("create get list watch", "core", "nodes"),
    On("patch update", "core", "nodes/status"),
    On("patch update", "core", "nodes"),
    On("create patch update", "core", "events"),
    On(READ, "core", "pods"),
    On("create delete", "core", "pods"),
    On("patch update", "core", "pods/status"),
    On("create", "core", "pods/eviction"),
    On(READ, "core", "configmaps secrets"),
    On("get", "core", "persistentvolumeclaims persistentvolumes"),
    On("get", "core", "endpoints"),
    On(
        "create get list watch",
        "certificates.k8s.io",
        "certificatesigningrequests",
    ),
    On(
        "create delete get patch update",
        "coordination.k8s.io",
        "leases",
    ),
    On("get", "storage.k8s.io", "volumeattachments"),
    On("create", "core", "serviceaccounts/token"),
    On("get patch update", "core", "persistentvolumeclaims/status"),
    On(READ, "storage.k8s.io", "csidrivers"),
    On(
        "create delete get patch update",
        "storage.k8s.io",
        "csinodes",
    ),
    On(READ, "node.k8s.io", "runtimeclasses"),
    On("get", "resource.k8s.io", "resourceclaims"),
    On("deletecollection", "resource.k8s.io", "resourceslices"),
    On(READ, "certificates.k8s.io", "clustertrustbundles"),
    On("get", "core", "serviceaccounts"),
];

const EDIT: &[Row] = &[
    On(
        READ,
        "core",
        "pods/attach pods/exec pods/portforward pods/proxy secrets services/proxy",
    ),
    On("impersonate", "core", "serviceaccounts"),
    On(
        WRITE,
        "core",
        "pods pods/attach pods/exec pods/portforward pods/proxy",
    ),
    On("create", "core", "pods/eviction"),
    On(
        WRITE,
        "core",
        "configmaps events persistentvolumeclaims replicationcontrollers replicationcontrollers/scale secrets serviceaccounts services services/proxy",
    ),
    On("create", "core", "serviceaccounts/token"),
    On(
        WRITE,
        "apps",
        "daemonsets deployments deployments/rollback deployments/scale replicasets replicasets/scale statefulsets statefulsets/scale",
    ),
    On(WRITE, "autoscaling", "horizontalpodautoscalers"),
    On(WRITE, "batch", "cronjobs jobs"),
    On(
        WRITE,
        "extensions",
        "daemonsets deployments deployments/rollback deployments/scale ingresses networkpolicies replicasets replicasets/scale replicationcontrollers/scale",
    ),
    On(WRITE, "policy", "poddisruptionbudgets"),
    On(WRITE, "networking.k8s.io", "ingresses networkpolicies"),
    On(READ_WRITE, "coordination.k8s.io", "leases"),
    On(
        WRITE,
        "resource.k8s.io",
        "resourceclaims resourceclaimtemplates",
    ),
];

const VIEW: &[Row] = &[
    On(
        READ,
        "core",
        "configmaps endpoints persistentvolumeclaims persistentvolumeclaims/status pods replicationcontrollers replicationcontrollers/scale serviceaccounts services services/status",
    ),
    On(
        READ,
        "core",
        "bindings events limitranges namespaces/status pods/log pods/status replicationcontrollers/status resourcequotas resourcequotas/status",
    ),
    On(READ, "core", "namespaces"),
    On(READ, "discovery.k8s.io", "endpointslices"),
    On(
        READ,
        "apps",
        "controllerrevisions daemonsets daemonsets/status deployments deployments/scale deployments/status replicasets replicasets/scale replicasets/status statefulsets statefulsets/scale statefulsets/status",
    ),
    On(
        READ,
        "autoscaling",
        "horizontalpodautoscalers horizontalpodautoscalers/status",
    ),
    On(READ, "batch", "cronjobs cronjobs/status jobs jobs/status"),
    On(
        READ,
        "extensions",
        "daemonsets daemonsets/status deployments deployments/scale deployments/status ingresses ingresses/status networkpolicies replicasets replicasets/scale replicasets/status replicationcontrollers/scale",
    ),
    On(
        READ,
        "policy",
        "poddisruptionbudgets poddisruptionbudgets/status",
    ),
    On(
        READ,
        "networking.k8s.io",
        "ingresses ingresses/status networkpolicies",
    ),
    On(
        READ,
        "resource.k8s.io",
        "resourceclaims resourceclaims/status resourceclaimtemplates",
    ),
];

const SCHEDULER: &[Row] = &[
    EVENTS,
    On("create", "coordination.k8s.io", "leases"),
    Named(
        "get list update watch",
        "coordination.k8s.io",
        "leases",
        "kube-scheduler",
    ),
    On(READ_WRITE, "coordination.k8s.io", "leasecandidates"),
    On(READ, "core", "nodes"),
    On("delete get list watch", "core", "pods"),
    On("create", "core", "bindings pods/binding"),
    On("patch update", "core", "pods/status"),
    On(READ, "core", "replicationcontrollers services"),
    On(READ, "apps extensions", "replicasets"),
    On(READ, "apps", "statefulsets"),
    On(READ, "policy", "poddisruptionbudgets"),
    On(READ, "core", "persistentvolumeclaims persistentvolumes"),
    AUTHENTICATION,
    AUTHORIZATION,
    On(READ, "storage.k8s.io", "csinodes"),
    On(READ, "storage.k8s.io", "volumeattachments"),
    On(READ, "core", "namespaces"),
    On(READ, "storage.k8s.io", "csidrivers"),
    On(READ, "storage.k8s.io", "csistoragecapacities"),
    On(READ, "resource.k8s.io", "deviceclasses"),
    On(READ_UPDATE, "resource.k8s.io", "resourceclaims"),
    On(READ_UPDATE, "resource.k8s.io", "resourceclaims/status"),
    On(READ_UPDATE, "core", "pods/finalizers"),
    On(READ, "resource.k8s.io", "resourceslices"),
    On(READ, "resource.k8s.io", "devicetaintrules"),
];

const CONTROLLER_MANAGER: &[Row] = &[
    EVENTS,
    On("create", "coordination.k8s.io", "leases"),
    Named(
        "get update",
        "coordination.k8s.io",
        "leases",
        "kube-controller-manager",
    ),
    On("create", "core", "secrets serviceaccounts"),
    On("delete", "core", "secrets"),
    On(
        "get",
        "core",
        "configmaps namespaces secrets serviceaccounts",
    ),
    On("update", "core", "secrets serviceaccounts"),
    AUTHENTICATION,
    AUTHORIZATION,
    On("list watch", "*", "*"),
    On("create", "core", "serviceaccounts/token"),
];

/// Role, what it is aggregated into, rules.
pub(super) const ROLES: &[ClusterRole] = &[
    ClusterRole("cluster-admin", "", &[On("*", "*", "*"), Urls("*", "*")]),
    ClusterRole("admin", "", &[]),
    ClusterRole("edit", "admin", &[]),
    ClusterRole("view", "edit", &[]),
    ClusterRole(
        "system:aggregate-to-admin",
        "admin",
        &[
            On(
                "create",
                "authorization.k8s.io",
                "localsubjectaccessreviews",
            ),
            On(
                READ_WRITE,
                "rbac.authorization.k8s.io",
                "rolebindings roles",
            ),
        ],
    ),
    ClusterRole("system:aggregate-to-edit", "edit", EDIT),
    ClusterRole("system:aggregate-to-view", "view", VIEW),
    ClusterRole(
        "system:auth-delegator",
        "",
        &[AUTHENTICATION, AUTHORIZATION],
    ),
    ClusterRole(
        "system:basic-user",
        "",
        &[
            On(
                "create",
                "authorization.k8s.io",
                "selfsubjectaccessreviews selfsubjectrulesreviews",
            ),
            On("create", "authentication.k8s.io", "selfsubjectreviews"),
        ],
    ),
    ClusterRole(
        "system:certificates.k8s.io:certificatesigningrequests:nodeclient",
        "",
        &[On(
            "create",
            "certificates.k8s.io",
            "certificatesigningrequests/nodeclient",
        )],
    ),
    ClusterRole(
        "system:certificates.k8s.io:certificatesigningrequests:selfnodeclient",
        "",
        &[On(
            "create",
            "certificates.k8s.io",
            "certificatesigningrequests/selfnodeclient",
        )],
    ),
    ClusterRole(
        "system:certificates.k8s.io:kube-apiserver-client-approver",
        "",
        &[Named(
            "approve",
            "certificates.k8s.io",
            "signers",
            "kubernetes.io/kube-apiserver-client",
        )],
    ),
    ClusterRole(
        "system:certificates.k8s.io:kube-apiserver-client-kubelet-approver",
        "",
        &[Named(
            "approve",
            "certificates.k8s.io",
            "signers",
            "kubernetes.io/kube-apiserver-client-kubelet",
        )],
    ),
    ClusterRole(
        "system:certificates.k8s.io:kubelet-serving-approver",
        "",
        &[Named(
            "approve",
            "certificates.k8s.io",
            "signers",
            "kubernetes.io/kubelet-serving",
        )],
    ),
    ClusterRole(
        "system:certificates.k8s.io:legacy-unknown-approver",
        "",
        &[Named(
            "approve",
            "certificates.k8s.io",
            "signers",
            "kubernetes.io/legacy-unknown",
        )],
    ),
    ClusterRole(
        "system:discovery",
        "",
        &[Urls(
            "get",
            "/api /api/* /apis /apis/* /healthz /livez /openapi /openapi/* /readyz /version /version/",
        )],
    ),
    ClusterRole(
        "system:heapster",
        "",
        &[
            On(READ, "core", "events namespaces nodes pods"),
            On(READ, "extensions", "deployments"),
        ],
    ),
    ClusterRole(
        "system:kube-aggregator",
        "",
        &[On(READ, "core", "endpoints services")],
    ),
    ClusterRole("system:kube-controller-manager", "", CONTROLLER_MANAGER),
    ClusterRole(
        "system:kube-dns",
        "",
        &[On("list watch", "core", "endpoints services")],
    ),
    ClusterRole("system:kube-scheduler", "", SCHEDULER),
    ClusterRole(
        "system:kubelet-api-admin",
        "",
        &[
            On(READ, "core", "nodes"),
            On("proxy", "core", "nodes"),
            On(
                "*",
                "core",
                "nodes/log nodes/metrics nodes/proxy nodes/stats",
            ),
            On("*", "core", "nodes/configz nodes/healthz nodes/pods"),
        ],
    ),
    ClusterRole(
        "system:monitoring",
        "",
        &[Urls(
            "get",
            "/healthz /healthz/* /livez /livez/* /metrics /metrics/slis /readyz /readyz/*",
        )],
    ),
    ClusterRole("system:node", "", NODE),
    ClusterRole(
        "system:node-bootstrapper",
        "",
        &[On(
            "create get list watch",
            "certificates.k8s.io",
            "certificatesigningrequests",
        )],
    ),
    ClusterRole(
        "system:node-problem-detector",
        "",
        &[
            On("get", "core", "nodes"),
            On("patch", "core", "nodes/status"),
            EVENTS,
        ],
    ),
    ClusterRole(
        "system:node-proxier",
        "",
        &[
            On("list watch", "core", "endpoints services"),
            On(READ, "core", "nodes"),
            EVENTS,
            On("list watch", "networking.k8s.io", "servicecidrs"),
            On("list watch", "discovery.k8s.io", "endpointslices"),
        ],
    ),
    ClusterRole(
        "system:persistent-volume-provisioner",
        "",
        &[
            On("create delete get list watch", "core", "persistentvolumes"),
            On("get list update watch", "core", "persistentvolumeclaims"),
            On(READ, "storage.k8s.io", "storageclasses"),
            On("watch", "core", "events"),
            EVENTS,
        ],
    ),
    ClusterRole(
        "system:public-info-viewer",
        "",
        &[Urls("get", "/healthz /livez /readyz /version /version/")],
    ),
    ClusterRole(
        "system:service-account-issuer-discovery",
        "",
        &[Urls(
            "get",
            "/.well-known/openid-configuration /.well-known/openid-configuration/ /openid/v1/jwks /openid/v1/jwks/",
        )],
    ),
    ClusterRole(
        "system:volume-scheduler",
        "",
        &[
            On(READ_UPDATE, "core", "persistentvolumes"),
            On(READ, "storage.k8s.io", "storageclasses"),
            On(READ_UPDATE, "core", "persistentvolumeclaims"),
        ],
    ),
];

const AUTHENTICATED: To = Group("system:authenticated");

/// The role of the same name, and who has it.
pub(super) const BINDINGS: &[(&str, &[To])] = &[
    ("cluster-admin", &[Group("system:masters")]),
    ("system:monitoring", &[Group("system:monitoring")]),
    ("system:discovery", &[AUTHENTICATED]),
    ("system:basic-user", &[AUTHENTICATED]),
    (
        "system:public-info-viewer",
        &[AUTHENTICATED, Group("system:unauthenticated")],
    ),
    ("system:node-proxier", &[User("system:kube-proxy")]),
    (
        "system:kube-controller-manager",
        &[User("system:kube-controller-manager")],
    ),
    ("system:kube-dns", &[Account("kube-dns")]),
    ("system:kube-scheduler", &[User("system:kube-scheduler")]),
    ("system:volume-scheduler", &[User("system:kube-scheduler")]),
    // The node authorizer stands in for it.
    ("system:node", &[]),
    (
        "system:service-account-issuer-discovery",
        &[Group("system:serviceaccounts")],
    ),
];
