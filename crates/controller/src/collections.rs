//! The collections that controllers read and write.

use crate::Collection;

macro_rules! collections {
    ($($(#[$doc:meta])* $name:ident = $scope:ident($version:literal, $plural:literal, $kind:literal);)*) => {
        $(
            #[doc = concat!("`", $plural, "` of `", $version, "`.")]
            pub const $name: Collection = Collection::$scope($version, $plural, $kind);
        )*
    };
}

collections! {
    PODS = namespaced("v1", "pods", "Pod");
    NODES = cluster("v1", "nodes", "Node");
    SERVICES = namespaced("v1", "services", "Service");
    LEASES = namespaced("coordination.k8s.io/v1", "leases", "Lease");
    CSRS = cluster("certificates.k8s.io/v1", "certificatesigningrequests", "CertificateSigningRequest");
    RESOURCE_QUOTAS = namespaced("v1", "resourcequotas", "ResourceQuota");
    ENDPOINTS = namespaced("v1", "endpoints", "Endpoints");
    ENDPOINT_SLICES = namespaced("discovery.k8s.io/v1", "endpointslices", "EndpointSlice");
    CRDS = cluster("apiextensions.k8s.io/v1", "customresourcedefinitions", "CustomResourceDefinition");
    DEPLOYMENTS = namespaced("apps/v1", "deployments", "Deployment");
    REPLICA_SETS = namespaced("apps/v1", "replicasets", "ReplicaSet");
    DAEMON_SETS = namespaced("apps/v1", "daemonsets", "DaemonSet");
    STATEFUL_SETS = namespaced("apps/v1", "statefulsets", "StatefulSet");
    CONTROLLER_REVISIONS = namespaced("apps/v1", "controllerrevisions", "ControllerRevision");
    JOBS = namespaced("batch/v1", "jobs", "Job");
    CRON_JOBS = namespaced("batch/v1", "cronjobs", "CronJob");
    REPLICATION_CONTROLLERS = namespaced("v1", "replicationcontrollers", "ReplicationController");
    NAMESPACES = cluster("v1", "namespaces", "Namespace");
    PERSISTENT_VOLUMES = cluster("v1", "persistentvolumes", "PersistentVolume");
    PERSISTENT_VOLUME_CLAIMS = namespaced("v1", "persistentvolumeclaims", "PersistentVolumeClaim");
    STORAGE_CLASSES = cluster("storage.k8s.io/v1", "storageclasses", "StorageClass");
    CONFIG_MAPS = namespaced("v1", "configmaps", "ConfigMap");
    CLUSTER_ROLES = cluster("rbac.authorization.k8s.io/v1", "clusterroles", "ClusterRole");
    NODE_POOLS = cluster("apps.openyurt.io/v1beta2", "nodepools", "NodePool");
    YURT_APP_SETS = namespaced("apps.openyurt.io/v1beta1", "yurtappsets", "YurtAppSet");
    YURT_APP_DAEMONS = namespaced("apps.openyurt.io/v1alpha1", "yurtappdaemons", "YurtAppDaemon");
    YURT_APP_OVERRIDERS = namespaced("apps.openyurt.io/v1alpha1", "yurtappoverriders", "YurtAppOverrider");
    NODE_BUCKETS = cluster("apps.openyurt.io/v1alpha1", "nodebuckets", "NodeBucket");
    POOL_SERVICES = namespaced("network.openyurt.io/v1alpha1", "poolservices", "PoolService");
    POD_DISRUPTION_BUDGETS = namespaced("policy/v1", "poddisruptionbudgets", "PodDisruptionBudget");
}
