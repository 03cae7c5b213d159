//! The built-in resources, one row each. What is not in this table is not served.
//!
//! Facts (names, scope, short names, categories, subresources) are those of kube-apiserver's discovery; selectable
//! fields are those its registries accept beside `metadata.name` and `metadata.namespace`.

use super::{Resource, Subresource};

/// Verbs of an ordinary stored resource.
const ALL: &[&str] = &[
    "create",
    "delete",
    "deletecollection",
    "get",
    "list",
    "patch",
    "update",
    "watch",
];
/// Namespaces cannot be deleted as a collection.
const NO_COLLECTION: &[&str] = &[
    "create", "delete", "get", "list", "patch", "update", "watch",
];
const CREATE: &[&str] = &["create"];
const UPDATE: &[&str] = &["update"];
const GET_WRITE: &[&str] = &["get", "patch", "update"];
const STREAM: &[&str] = &["create", "get"];
const PROXY: &[&str] = &["create", "delete", "get", "patch", "update"];

/// One row of the table.
#[derive(Clone, Copy)]
struct Row {
    group: &'static str,
    version: &'static str,
    kind: &'static str,
    plural: &'static str,
    short: &'static [&'static str],
    categories: &'static [&'static str],
    namespaced: bool,
    verbs: &'static [&'static str],
    subresources: &'static [Sub],
    fields: &'static [&'static str],
    generation: bool,
    upsert: bool,
    unconditional: bool,
    returns_deleted: bool,
    stored_as: Option<(&'static str, &'static str)>,
}

/// A subresource: name, group, version and kind of its body (empty kind: the parent's), verbs.
#[derive(Clone, Copy)]
struct Sub(
    &'static str,
    &'static str,
    &'static str,
    &'static str,
    &'static [&'static str],
);

const STATUS: Sub = Sub("status", "", "", "", GET_WRITE);
const SCALE: Sub = Sub("scale", "autoscaling", "v1", "Scale", GET_WRITE);

impl Row {
    const fn new(
        group: &'static str,
        version: &'static str,
        kind: &'static str,
        plural: &'static str,
    ) -> Self {
        Self {
            group,
            version,
            kind,
            plural,
            short: &[],
            categories: &[],
            namespaced: true,
            verbs: ALL,
            subresources: &[],
            fields: &[],
            generation: false,
            upsert: false,
            unconditional: true,
            returns_deleted: false,
            stored_as: None,
        }
    }
    const fn cluster(mut self) -> Self {
        self.namespaced = false;
        self
    }
    const fn short(mut self, names: &'static [&'static str]) -> Self {
        self.short = names;
        self
    }
    const fn category(mut self, names: &'static [&'static str]) -> Self {
        self.categories = names;
        self
    }
    const fn verbs(mut self, verbs: &'static [&'static str]) -> Self {
        self.verbs = verbs;
        self
    }
    const fn sub(mut self, subs: &'static [Sub]) -> Self {
        self.subresources = subs;
        self
    }
    const fn fields(mut self, fields: &'static [&'static str]) -> Self {
        self.fields = fields;
        self
    }
    /// The kind counts changes of its spec in `metadata.generation`.
    const fn generation(mut self) -> Self {
        self.generation = true;
        self
    }
    /// An update of an absent object creates it.
    const fn upsert(mut self) -> Self {
        self.upsert = true;
        self
    }
    /// An update must name the resourceVersion it is based on.
    const fn conditional(mut self) -> Self {
        self.unconditional = false;
        self
    }
    /// A deletion answers with the object instead of a Status.
    const fn returns_deleted(mut self) -> Self {
        self.returns_deleted = true;
        self
    }
    /// Objects live in the partition of this group, in this version.
    const fn stored_as(mut self, group: &'static str, version: &'static str) -> Self {
        self.stored_as = Some((group, version));
        self
    }
}

const EVENT_FIELDS: &[&str] = &[
    "involvedObject.apiVersion",
    "involvedObject.fieldPath",
    "involvedObject.kind",
    "involvedObject.name",
    "involvedObject.namespace",
    "involvedObject.resourceVersion",
    "involvedObject.uid",
    "reason",
    "reportingComponent",
    "source",
    "type",
];
const EVENT_V1_FIELDS: &[&str] = &[
    "reason",
    "regarding.apiVersion",
    "regarding.fieldPath",
    "regarding.kind",
    "regarding.name",
    "regarding.namespace",
    "regarding.resourceVersion",
    "regarding.uid",
    "reportingController",
    "type",
];
const POD_FIELDS: &[&str] = &[
    "spec.hostNetwork",
    "spec.nodeName",
    "spec.restartPolicy",
    "spec.schedulerName",
    "spec.serviceAccountName",
    "status.nominatedNodeName",
    "status.phase",
    "status.podIP",
    "status.podIPs",
];
const POD_SUBRESOURCES: &[Sub] = &[
    Sub("attach", "", "v1", "PodAttachOptions", STREAM),
    Sub("binding", "", "v1", "Binding", CREATE),
    Sub("ephemeralcontainers", "", "", "", GET_WRITE),
    Sub("eviction", "policy", "v1", "Eviction", CREATE),
    Sub("exec", "", "v1", "PodExecOptions", STREAM),
    Sub("log", "", "", "", &["get"]),
    Sub("portforward", "", "v1", "PodPortForwardOptions", STREAM),
    Sub("proxy", "", "v1", "PodProxyOptions", PROXY),
    Sub("resize", "", "", "", GET_WRITE),
    STATUS,
];

const CORE: &[Row] = &[
    Row::new("", "v1", "Binding", "bindings").verbs(CREATE),
    Row::new("", "v1", "ConfigMap", "configmaps").short(&["cm"]),
    Row::new("", "v1", "Endpoints", "endpoints")
        .short(&["ep"])
        .upsert(),
    Row::new("", "v1", "Event", "events")
        .short(&["ev"])
        .fields(EVENT_FIELDS)
        .upsert(),
    Row::new("", "v1", "LimitRange", "limitranges")
        .short(&["limits"])
        .upsert(),
    Row::new("", "v1", "Namespace", "namespaces")
        .cluster()
        .short(&["ns"])
        .verbs(NO_COLLECTION)
        .sub(&[Sub("finalize", "", "", "", UPDATE), STATUS])
        .fields(&["status.phase"]),
    Row::new("", "v1", "Node", "nodes")
        .cluster()
        .short(&["no"])
        .sub(&[Sub("proxy", "", "v1", "NodeProxyOptions", PROXY), STATUS])
        .fields(&["spec.unschedulable"]),
    Row::new("", "v1", "PersistentVolumeClaim", "persistentvolumeclaims")
        .short(&["pvc"])
        .sub(&[STATUS])
        .returns_deleted(),
    Row::new("", "v1", "PersistentVolume", "persistentvolumes")
        .cluster()
        .short(&["pv"])
        .sub(&[STATUS])
        .returns_deleted(),
    Row::new("", "v1", "Pod", "pods")
        .short(&["po"])
        .category(&["all"])
        .sub(POD_SUBRESOURCES)
        .fields(POD_FIELDS)
        .generation()
        .returns_deleted(),
    Row::new("", "v1", "PodTemplate", "podtemplates")
        .upsert()
        .returns_deleted(),
    Row::new("", "v1", "ReplicationController", "replicationcontrollers")
        .short(&["rc"])
        .category(&["all"])
        .sub(&[SCALE, STATUS])
        .fields(&["status.replicas"])
        .generation(),
    Row::new("", "v1", "ResourceQuota", "resourcequotas")
        .short(&["quota"])
        .sub(&[STATUS])
        .returns_deleted(),
    Row::new("", "v1", "Secret", "secrets").fields(&["type"]),
    Row::new("", "v1", "ServiceAccount", "serviceaccounts")
        .conditional()
        .short(&["sa"])
        .sub(&[Sub(
            "token",
            "authentication.k8s.io",
            "v1",
            "TokenRequest",
            CREATE,
        )])
        .returns_deleted(),
    Row::new("", "v1", "Service", "services")
        .short(&["svc"])
        .category(&["all"])
        .sub(&[Sub("proxy", "", "v1", "ServiceProxyOptions", PROXY), STATUS])
        .fields(&["spec.clusterIP", "spec.type"])
        .upsert()
        .returns_deleted(),
];

const APPS: &[Row] = &[
    Row::new("apps", "v1", "ControllerRevision", "controllerrevisions"),
    Row::new("apps", "v1", "DaemonSet", "daemonsets")
        .short(&["ds"])
        .category(&["all"])
        .sub(&[STATUS])
        .generation(),
    Row::new("apps", "v1", "Deployment", "deployments")
        .short(&["deploy"])
        .category(&["all"])
        .sub(&[SCALE, STATUS])
        .generation(),
    Row::new("apps", "v1", "ReplicaSet", "replicasets")
        .short(&["rs"])
        .category(&["all"])
        .sub(&[SCALE, STATUS])
        .fields(&["status.replicas"])
        .generation(),
    Row::new("apps", "v1", "StatefulSet", "statefulsets")
        .short(&["sts"])
        .category(&["all"])
        .sub(&[SCALE, STATUS])
        .generation(),
];

const REVIEWS: &[Row] = &[
    Row::new(
        "authentication.k8s.io",
        "v1",
        "SelfSubjectReview",
        "selfsubjectreviews",
    )
    .cluster()
    .verbs(CREATE),
    Row::new("authentication.k8s.io", "v1", "TokenReview", "tokenreviews")
        .cluster()
        .verbs(CREATE),
    Row::new(
        "authorization.k8s.io",
        "v1",
        "LocalSubjectAccessReview",
        "localsubjectaccessreviews",
    )
    .verbs(CREATE),
    Row::new(
        "authorization.k8s.io",
        "v1",
        "SelfSubjectAccessReview",
        "selfsubjectaccessreviews",
    )
    .cluster()
    .verbs(CREATE),
    Row::new(
        "authorization.k8s.io",
        "v1",
        "SelfSubjectRulesReview",
        "selfsubjectrulesreviews",
    )
    .cluster()
    .verbs(CREATE),
    Row::new(
        "authorization.k8s.io",
        "v1",
        "SubjectAccessReview",
        "subjectaccessreviews",
    )
    .cluster()
    .verbs(CREATE),
];

const WORK: &[Row] = &[
    Row::new(
        "autoscaling",
        "v2",
        "HorizontalPodAutoscaler",
        "horizontalpodautoscalers",
    )
    .short(&["hpa"])
    .category(&["all"])
    .sub(&[STATUS]),
    Row::new(
        "autoscaling",
        "v1",
        "HorizontalPodAutoscaler",
        "horizontalpodautoscalers",
    )
    .short(&["hpa"])
    .category(&["all"])
    .sub(&[STATUS])
    .stored_as("autoscaling", "v2"),
    Row::new("batch", "v1", "CronJob", "cronjobs")
        .short(&["cj"])
        .category(&["all"])
        .sub(&[STATUS])
        .generation(),
    Row::new("batch", "v1", "Job", "jobs")
        .category(&["all"])
        .sub(&[STATUS])
        .fields(&["status.successful"])
        .generation(),
    Row::new(
        "policy",
        "v1",
        "PodDisruptionBudget",
        "poddisruptionbudgets",
    )
    .conditional()
    .short(&["pdb"])
    .sub(&[STATUS])
    .generation(),
    Row::new("coordination.k8s.io", "v1", "Lease", "leases")
        .conditional()
        .upsert(),
    Row::new("discovery.k8s.io", "v1", "EndpointSlice", "endpointslices").generation(),
    Row::new("events.k8s.io", "v1", "Event", "events")
        .short(&["ev"])
        .fields(EVENT_V1_FIELDS)
        .upsert()
        .stored_as("", "v1"),
];

const NETWORKING: &[Row] = &[
    Row::new("networking.k8s.io", "v1", "IngressClass", "ingressclasses")
        .cluster()
        .generation(),
    Row::new("networking.k8s.io", "v1", "Ingress", "ingresses")
        .short(&["ing"])
        .sub(&[STATUS])
        .generation(),
    Row::new("networking.k8s.io", "v1", "IPAddress", "ipaddresses")
        .cluster()
        .short(&["ip"])
        .fields(&[
            "spec.parentRef.group",
            "spec.parentRef.name",
            "spec.parentRef.namespace",
            "spec.parentRef.resource",
        ]),
    Row::new(
        "networking.k8s.io",
        "v1",
        "NetworkPolicy",
        "networkpolicies",
    )
    .short(&["netpol"])
    .generation(),
    Row::new("networking.k8s.io", "v1", "ServiceCIDR", "servicecidrs")
        .cluster()
        .sub(&[STATUS]),
];

const CLUSTER: &[Row] = &[
    Row::new(
        "certificates.k8s.io",
        "v1",
        "CertificateSigningRequest",
        "certificatesigningrequests",
    )
    .cluster()
    .short(&["csr"])
    .sub(&[Sub("approval", "", "", "", GET_WRITE), STATUS])
    .fields(&["spec.signerName"]),
    Row::new(
        "rbac.authorization.k8s.io",
        "v1",
        "ClusterRoleBinding",
        "clusterrolebindings",
    )
    .cluster()
    .upsert(),
    Row::new(
        "rbac.authorization.k8s.io",
        "v1",
        "ClusterRole",
        "clusterroles",
    )
    .cluster()
    .upsert(),
    Row::new(
        "rbac.authorization.k8s.io",
        "v1",
        "RoleBinding",
        "rolebindings",
    )
    .upsert(),
    Row::new("rbac.authorization.k8s.io", "v1", "Role", "roles").upsert(),
    Row::new(
        "scheduling.k8s.io",
        "v1",
        "PriorityClass",
        "priorityclasses",
    )
    .cluster()
    .short(&["pc"])
    .generation(),
    Row::new("node.k8s.io", "v1", "RuntimeClass", "runtimeclasses")
        .conditional()
        .cluster(),
    Row::new(
        "admissionregistration.k8s.io",
        "v1",
        "MutatingWebhookConfiguration",
        "mutatingwebhookconfigurations",
    )
    .conditional()
    .cluster()
    .category(&["api-extensions"])
    .generation(),
    Row::new(
        "admissionregistration.k8s.io",
        "v1",
        "ValidatingAdmissionPolicy",
        "validatingadmissionpolicies",
    )
    .conditional()
    .cluster()
    .category(&["api-extensions"])
    .sub(&[STATUS])
    .generation(),
    Row::new(
        "admissionregistration.k8s.io",
        "v1",
        "ValidatingAdmissionPolicyBinding",
        "validatingadmissionpolicybindings",
    )
    .conditional()
    .cluster()
    .category(&["api-extensions"])
    .generation(),
    Row::new(
        "admissionregistration.k8s.io",
        "v1",
        "ValidatingWebhookConfiguration",
        "validatingwebhookconfigurations",
    )
    .conditional()
    .cluster()
    .category(&["api-extensions"])
    .generation(),
    Row::new(
        "apiextensions.k8s.io",
        "v1",
        "CustomResourceDefinition",
        "customresourcedefinitions",
    )
    .conditional()
    .cluster()
    .short(&["crd", "crds"])
    .category(&["api-extensions"])
    .sub(&[STATUS])
    .generation(),
];

const STORAGE: &[Row] = &[
    Row::new("storage.k8s.io", "v1", "CSIDriver", "csidrivers")
        .conditional()
        .cluster(),
    Row::new("storage.k8s.io", "v1", "CSINode", "csinodes")
        .conditional()
        .cluster(),
    Row::new(
        "storage.k8s.io",
        "v1",
        "CSIStorageCapacity",
        "csistoragecapacities",
    ),
    Row::new("storage.k8s.io", "v1", "StorageClass", "storageclasses")
        .cluster()
        .short(&["sc"]),
    Row::new(
        "storage.k8s.io",
        "v1",
        "VolumeAttachment",
        "volumeattachments",
    )
    .conditional()
    .cluster()
    .sub(&[STATUS]),
    Row::new(
        "storage.k8s.io",
        "v1",
        "VolumeAttributesClass",
        "volumeattributesclasses",
    )
    .cluster()
    .short(&["vac"]),
    Row::new("resource.k8s.io", "v1", "DeviceClass", "deviceclasses")
        .cluster()
        .generation(),
    Row::new("resource.k8s.io", "v1", "ResourceClaim", "resourceclaims").sub(&[STATUS]),
    Row::new(
        "resource.k8s.io",
        "v1",
        "ResourceClaimTemplate",
        "resourceclaimtemplates",
    ),
    Row::new("resource.k8s.io", "v1", "ResourceSlice", "resourceslices")
        .cluster()
        .fields(&["spec.driver", "spec.nodeName"])
        .generation(),
];

/// Groups in the order in which discovery lists them (most used first, as kube-apiserver's priorities put them).
pub(super) const GROUP_ORDER: &[&str] = &[
    "",
    "apps",
    "events.k8s.io",
    "authentication.k8s.io",
    "authorization.k8s.io",
    "autoscaling",
    "batch",
    "certificates.k8s.io",
    "networking.k8s.io",
    "policy",
    "rbac.authorization.k8s.io",
    "storage.k8s.io",
    "admissionregistration.k8s.io",
    "apiextensions.k8s.io",
    "scheduling.k8s.io",
    "coordination.k8s.io",
    "node.k8s.io",
    "discovery.k8s.io",
    "resource.k8s.io",
];

/// The singular name: the kind in lower case, as everywhere in the built-in API.
fn singular(kind: &str) -> String {
    kind.to_ascii_lowercase()
}

fn owned(list: &[&str]) -> Vec<String> {
    list.iter().map(|s| (*s).to_owned()).collect()
}

fn expand(row: &Row) -> Resource {
    let (storage_group, storage_version) = row.stored_as.unwrap_or((row.group, row.version));
    Resource {
        group: row.group.into(),
        version: row.version.into(),
        kind: row.kind.into(),
        list_kind: format!("{}List", row.kind),
        plural: row.plural.into(),
        singular: singular(row.kind),
        short_names: owned(row.short),
        categories: owned(row.categories),
        namespaced: row.namespaced,
        verbs: owned(row.verbs),
        subresources: row
            .subresources
            .iter()
            .map(|Sub(name, group, version, kind, verbs)| {
                let own = kind.is_empty();
                Subresource {
                    name: (*name).into(),
                    group: if own { row.group } else { group }.into(),
                    version: if own { row.version } else { version }.into(),
                    kind: if own { row.kind } else { kind }.into(),
                    verbs: owned(verbs),
                }
            })
            .collect(),
        selectable_fields: owned(row.fields),
        counts_generation: row.generation,
        create_on_update: row.upsert,
        unconditional_update: row.unconditional,
        returns_deleted: row.returns_deleted,
        storage: format!("{storage_group}/{}", row.plural).into(),
        storage_version: storage_version.into(),
        custom: None,
    }
}

/// Every built-in resource, in discovery order.
pub(super) fn built_in() -> Vec<Resource> {
    let rows = [CORE, APPS, REVIEWS, WORK, NETWORKING, CLUSTER, STORAGE].concat();
    GROUP_ORDER
        .iter()
        .flat_map(|group| {
            let mut of_group: Vec<&Row> = rows.iter().filter(|r| r.group == *group).collect();
            // Newest version first; rows keep their order within a version.
            of_group.sort_by(|a, b| b.version.cmp(a.version));
            of_group.into_iter().map(expand).collect::<Vec<_>>()
        })
        .collect()
}
