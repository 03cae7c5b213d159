//! Every well-known name of OpenYurt: what users, scripts, nodes and hubs of any version agree on.
//!
//! A group per kind of name; each says on what it stands, what it means, and who uses it.

/// Labels.
pub mod labels {
    /// On nodes: the pool that the node is in. The source of truth for membership; may be set and removed, not changed in place.
    pub const NODE_POOL: &str = "apps.openyurt.io/nodepool";
    /// On nodes: older form of [`NODE_POOL`]; the node webhook copies it there when that is absent.
    pub const DESIRED_NODE_POOL: &str = "apps.openyurt.io/desired-nodepool";
    /// On nodes: `true` at the edge, `false` in the cloud. Set when a node joins or is converted; only the node itself and the
    /// conversion controller may change it.
    pub const EDGE_WORKER: &str = "openyurt.io/is-edge-worker";
    /// On nodes: `true` in a pool without a container network. On a NodePool of v1alpha1 or v1beta1 it is an annotation that stands
    /// for `spec.hostNetwork`.
    pub const HOST_NETWORK: &str = "nodepool.openyurt.io/hostnetwork";
    /// On NodePools: `edge` or `cloud`, as `spec.type`; set by the webhook when a pool is created.
    pub const NODE_POOL_TYPE: &str = "nodepool.openyurt.io/type";
    /// On nodes: Kubernetes' zone. The conversion of a node sets it to the pool where absent.
    pub const ZONE: &str = "topology.kubernetes.io/zone";
    /// On workloads of a set: the YurtAppSet they are of. By it and their owner they are found and adopted.
    pub const REF_YURT_APP_SET: &str = "apps.openyurt.io/ref-yurtappset";
    /// On workloads of a set, in their selector and pod template: the pool they are for.
    pub const WORKLOAD_POOL: &str = "apps.openyurt.io/pool-name";
    /// On workloads of a set and their pod template: the ControllerRevision they were rendered of. To change it in a pod template
    /// restarts the pods.
    pub const CONTROLLER_REVISION_HASH: &str = "apps.openyurt.io/controller-revision-hash";
    /// On NodeBuckets and PoolServices: the pool they are of. Hubs select the buckets of their pool by it. Not [`WORKLOAD_POOL`].
    pub const POOL_NAME: &str = "openyurt.io/pool-name";
    /// On PoolServices: the service they are of.
    pub const SERVICE_NAME: &str = "openyurt.io/service-name";
    /// On PoolServices: [`POOL_SERVICE_MANAGER`] where the load balancer set controller made them.
    pub const POOL_SERVICE_MANAGED_BY: &str = "poolservice.openyurt.io/managed-by";
    /// The value of [`POOL_SERVICE_MANAGED_BY`].
    pub const POOL_SERVICE_MANAGER: &str = "load-balancer-set-controller";
    /// On config maps that hubs watch: their own name, as hubs may only watch by selector.
    pub const CONFIG_MAP_NAME: &str = "openyurt.io/configmap-name";
    /// On Jobs and their pods: the node that they convert.
    pub const CONVERSION_NODE: &str = "openyurt.io/conversion-node";
    /// On what the PlatformAdmin controller makes: `Configmap`, `Service`, `Deployment` or `Framework`.
    pub const IOT_GENERATE: &str = "iot.openyurt.io/generate";
    /// On Jobs that pull images for a DaemonSet, and on their pods: `true`.
    pub const IMAGE_PULL: &str = "apps.openyurt.io/image-pull";
    /// On what the YurtStaticSet controller makes: `manifest` on config maps, `worker` on pods that upgrade, `revision` on revisions.
    pub const STATIC_SET: &str = "apps.openyurt.io/yurt-static-set";
    /// On nodes: the Raven gateway that they are behind.
    pub const GATEWAY: &str = "raven.openyurt.io/gateway";
    /// On ControllerRevisions: the hash of what they hold.
    pub const REVISION_HASH: &str = "controller.kubernetes.io/hash";
}

/// Annotations.
pub mod annotations {
    /// On nodes: JSON `{labels, annotations, taints}` that the pool last gave to the node, so that it can be taken back.
    pub const PREVIOUS_ATTRIBUTES: &str = "nodepool.openyurt.io/previous-attributes";
    /// On nodes: `true` binds pods to the node for ever. Deprecated form of [`AUTONOMY_DURATION`].
    pub const BINDING: &str = "apps.openyurt.io/binding";
    /// On nodes: `true` keeps pods on the node while it is cut off. Deprecated form of [`AUTONOMY_DURATION`].
    pub const AUTONOMY: &str = "node.beta.openyurt.io/autonomy";
    /// On nodes: how long pods stay while the node is cut off, as Go writes durations; zero or less for ever.
    pub const AUTONOMY_DURATION: &str = "node.openyurt.io/autonomy-duration";
    /// On pods: `tolerationSeconds` for not-ready before pod binding changed it.
    pub const ORIGINAL_NOT_READY: &str = "apps.openyurt.io/original-not-ready-toleration-duration";
    /// On pods: `tolerationSeconds` for unreachable before pod binding changed it.
    pub const ORIGINAL_UNREACHABLE: &str =
        "apps.openyurt.io/original-unreachable-toleration-duration";
    /// On pods: `true` keeps them off pools without a container network.
    pub const EXCLUDE_HOST_NETWORK_POOL: &str = "apps.openyurt.io/exclude-host-network-pool";
    /// On workloads of a set: the pool they are for.
    pub const REF_NODE_POOL: &str = "apps.openyurt.io/ref-nodepool";
    /// On workloads of a set: what they were last rendered of and with, as JSON; by it a change is told from what others did.
    pub const RENDERED: &str = "apps.openyurt.io/rendered";
    /// On ControllerRevisions of a set: `complete` or `failed`, how their rollout ended.
    pub const ROLLOUT: &str = "apps.openyurt.io/rollout";
    /// On workloads of a v1alpha1 set: the patch of their pool.
    pub const PATCH: &str = "apps.openyurt.io/patch";
    /// On DaemonSets with the strategy OnDelete: `OTA` or `AdvancedRollingUpdate`, whatever the case; `Auto` is an older name of the
    /// latter.
    pub const UPDATE_STRATEGY: &str = "apps.openyurt.io/update-strategy";
    /// On DaemonSets: how many nodes may be without a ready pod while the set is updated; a number or percentage.
    pub const MAX_UNAVAILABLE: &str = "apps.openyurt.io/max-unavailable";
    /// On DaemonSets: on how many nodes at once images of a new template are pulled beforehand; 10 when left out.
    pub const MAX_IMAGE_PULLS: &str = "apps.openyurt.io/max-image-pulls";
    /// On Jobs that pull images, pods that upgrade static pods: which try it is, from 1.
    pub const ATTEMPT: &str = "apps.openyurt.io/attempt";
    /// On nodes: `convert`, `revert` or `auto` (both) lets the manager convert the node as its labels say; on NodePools: `auto` lets it
    /// convert the nodes that come. What follows a colon is free: another text asks again after a failure.
    pub const NODE_CONVERSION: &str = "openyurt.io/node-conversion";
    /// On nodes, written by the manager: JSON of a conversion that is under way or has failed.
    pub const NODE_CONVERSION_STATE: &str = "openyurt.io/node-conversion-state";
    /// On static pods, the pods that upgrade them, and their config map: the hash of the template.
    pub const STATIC_POD_HASH: &str = "openyurt.io/static-pod-hash";
    /// On Services: how far traffic may go, one of [`super::topology`]. Hubs filter endpoints by it.
    pub const TOPOLOGY_KEYS: &str = "openyurt.io/topologyKeys";
    /// On Endpoints and EndpointSlices: unix seconds; changed so that hubs filter them again.
    pub const UPDATE_TRIGGER: &str = "openyurt.io/update-trigger";
    /// Beside [`UPDATE_TRIGGER`]: the [`TOPOLOGY_KEYS`] that it was written for, so that a change is noticed that nobody watched. OpenYurt
    /// does not know it.
    pub const UPDATE_TRIGGER_FOR: &str = "openyurt.io/update-trigger-for";
    /// On Services of type LoadBalancer: selects the pools that get a load balancer of their own.
    pub const NODE_POOL_SELECTOR: &str = "service.openyurt.io/nodepool-labelselector";
    /// Before the key of a label or annotation of a Service: values of all its PoolServices, joined.
    pub const AGGREGATED_PREFIX: &str = "aggregated.";
    /// On Leases: `true` where the leader of the pool renewed it for a node that is cut off.
    pub const DELEGATE_HEARTBEAT: &str = "openyurt.io/delegate-heartbeat";
    /// On Services: `true` hides them from nodes at the edge.
    pub const DISCARD: &str = "svc.openyurt.io/discard";
    /// On Services: the pools whose nodes open the service's node ports.
    pub const NODE_PORT_LISTEN: &str = "nodeport.openyurt.io/listen";
    /// On DaemonSets: the generation of the template, which pods carry as the label `pod-template-generation`.
    pub const TEMPLATE_GENERATION: &str = "deprecated.daemonset.template.generation";
    /// Before the name of a version, on objects of another version: what only that version can say (see `crate::conversion`).
    pub const STASH_PREFIX: &str = "conversion.openyurt.io/";
}

/// Values of [`annotations::TOPOLOGY_KEYS`].
pub mod topology {
    /// Endpoints on the same node.
    pub const NODE: &str = "kubernetes.io/hostname";
    /// Endpoints in the same pool.
    pub const NODE_POOL: &str = "openyurt.io/nodepool";
    /// Older name of [`NODE_POOL`].
    pub const ZONE: &str = "kubernetes.io/zone";
}

/// Taints of nodes.
pub mod taints {
    /// `=true:NoSchedule` while others renew the node's lease: it lives, but the cloud cannot reach it.
    pub const UNSCHEDULABLE: &str = "node.openyurt.io/unschedulable";
    /// `NoExecute`, Kubernetes': the node says that it is not ready.
    pub const NOT_READY: &str = "node.kubernetes.io/not-ready";
    /// `NoExecute`, Kubernetes': the node says nothing.
    pub const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
}

/// Finalizers.
pub mod finalizers {
    /// On Jobs that convert a node: their result is to be read before they go.
    pub const NODE_CONVERSION: &str = "openyurt.io/node-conversion";
    /// On Services with load balancers per pool: their PoolServices go first.
    pub const POOL_SERVICE: &str = "poolservice.openyurt.io/resources";
    /// On PlatformAdmins.
    pub const PLATFORM_ADMIN: &str = "iot.openyurt.io";
    /// On the config map of a PlatformAdmin's framework.
    pub const PLATFORM_ADMIN_FRAMEWORK: &str = "kubernetes.io/platformadmin-framework";
}

/// Types of conditions.
pub mod conditions {
    /// Of pods, written by the manager: `True` where the pod is older than its template.
    pub const POD_NEED_UPGRADE: &str = "PodNeedUpgrade";
    /// Of pods, written by hub and manager: whether the images of the new template are on the node.
    pub const POD_IMAGE_READY: &str = "PodImageReady";
    /// Before the hash in the message of the two above.
    pub const REVISION_PREFIX: &str = "controllerrevision: ";
    /// Of nodes, written by the manager: whether and why a conversion failed.
    pub const NODE_CONVERSION_FAILED: &str = "YurtNodeConversionFailed";
    /// Of nodes, written by the hub: whether pods would survive a cut.
    pub const AUTONOMY: &str = "Autonomy";
    /// Of NodePools: whether as many leaders as wanted are elected.
    pub const LEADER_READY: &str = "LeaderReady";
    /// Of YurtAppSets: workloads that were missing are made.
    pub const APP_DISPATCHED: &str = "AppDispatched";
    /// Of YurtAppSets: workloads of pools that are no longer selected are gone.
    pub const APP_DELETED: &str = "AppDeleted";
    /// Of YurtAppSets: workloads are of the newest revision.
    pub const APP_UPDATED: &str = "AppUpdated";
    /// Of YurtAppSets: all workloads are ready.
    pub const APP_READY: &str = "AppReady";
    /// Of YurtAppSets: at least one pool is selected.
    pub const POOL_FOUND: &str = "PoolFound";
    /// Of YurtAppDaemons: workloads are made.
    pub const WORKLOAD_PROVISIONED: &str = "WorkLoadProvisioned";
    /// Of YurtAppDaemons: workloads are of the newest revision.
    pub const WORKLOAD_UPDATED: &str = "WorkLoadUpdated";
    /// Of YurtAppDaemons: why a workload could not be made or changed.
    pub const WORKLOAD_FAILURE: &str = "WorkLoadFailure";
    /// Of v1alpha1 YurtAppSets.
    pub const POOL_PROVISIONED: &str = "PoolProvisioned";
    /// Of v1alpha1 YurtAppSets.
    pub const POOL_UPDATED: &str = "PoolUpdated";
    /// Of v1alpha1 YurtAppSets.
    pub const POOL_FAILURE: &str = "PoolFailure";
}

/// Objects with fixed names.
pub mod objects {
    /// Where OpenYurt's components are unless told otherwise.
    pub const MANAGER_NAMESPACE: &str = "kube-system";
    /// The manager: its Deployment, its service account, its lease.
    pub const MANAGER: &str = "yurt-manager";
    /// Before the name of a controller: the service account that it writes as.
    pub const CONTROLLER_ACCOUNT_PREFIX: &str = "yurt-manager-";
    /// The Service of the manager's webhooks.
    pub const WEBHOOK_SERVICE: &str = "yurt-manager-webhook-service";
    /// The Secret with the certificates of the manager's webhooks.
    pub const WEBHOOK_CERTIFICATES: &str = "yurt-manager-webhook-certs";
    /// The `MutatingWebhookConfiguration`.
    pub const MUTATING_WEBHOOKS: &str = "yurt-manager-mutating-webhook-configuration";
    /// The `ValidatingWebhookConfiguration`.
    pub const VALIDATING_WEBHOOKS: &str = "yurt-manager-validating-webhook-configuration";
    /// ConfigMap with what all hubs are told: agents to cache, filters. Made by the chart.
    pub const HUB_CONFIG: &str = "yurt-hub-cfg";
    /// Before the name of a pool: ConfigMap with its leaders and the resources that it shares; written by the manager, read by hubs.
    pub const LEADER_CONFIG_PREFIX: &str = "leader-hub-";
    /// Before the name of a YurtStaticSet: ConfigMap with the manifest; written by the manager, read by hubs and nodes that join.
    pub const STATIC_SET_PREFIX: &str = "yurt-static-set-";
    /// ClusterRole with the resources that pools share, for the group [`MULTIPLEXER_GROUP`].
    pub const MULTIPLEXER_ROLE: &str = "yurt-hub-multiplexer";
    /// The group that [`MULTIPLEXER_ROLE`] is bound to.
    pub const MULTIPLEXER_GROUP: &str = "openyurt:multiplexer";
    /// Before pod and hash: Job that pulls the images of a DaemonSet's new template.
    pub const IMAGE_PULL_JOB_PREFIX: &str = "image-pre-pull-";
    /// Before the name of a node: Job that converts it.
    pub const CONVERSION_JOB_PREFIX: &str = "node-servant-conversion-";
    /// Before set, node and hash: Pod that upgrades a static pod.
    pub const STATIC_SET_WORKER_PREFIX: &str = "yss-upgrade-worker-";
    /// ConfigMap with the EdgeX framework of a namespace.
    pub const PLATFORM_ADMIN_FRAMEWORK: &str = "platformadmin-framework";
    /// Secret with the identity by which the leader of a pool renews the leases of nodes that are cut off.
    pub const LEASE_PROXY_SECRET: &str = "yurt-coordinator-yurthub-certs";
    /// The user of that identity.
    pub const LEASE_PROXY_USER: &str = "openyurt:yurt-coordinator:node-lease-proxy-client";
}

/// Keys of the ConfigMap `leader-hub-POOL`.
pub mod leader_config {
    /// `node/ip,...`, sorted.
    pub const LEADERS: &str = "leaders";
    /// `group/version/resource,...`, sorted; nothing before the first slash for the core group.
    pub const POOL_SCOPED_METADATA: &str = "pool-scoped-metadata";
    /// `true` or `false`.
    pub const INTER_CONNECTIVITY: &str = "interconnectivity";
    /// `true` or `false`.
    pub const ENABLE_LEADER_ELECTION: &str = "enable-leader-election";
    /// `node/ip,...` by rank, after the leaders; OpenYurt's hubs do not know it.
    pub const CANDIDATES: &str = "candidates";
}

#[cfg(test)]
mod tests {
    #[test]
    fn names_are_valid_keys() {
        // Every quoted name with a slash in this file is a label, annotation, taint or finalizer.
        let (names, _tests) = include_str!("names.rs")
            .split_once("#[cfg(test)]")
            .expect("tests");
        let keys = names
            .split('"')
            .skip(1)
            .step_by(2)
            .filter(|name| name.contains('/') && !name.ends_with('/'));
        for key in keys {
            let (prefix, name) = key.split_once('/').expect("a slash");
            assert!(
                prefix.len() <= 253 && (1..=63).contains(&name.len()),
                "{key}"
            );
            assert!(
                key.chars()
                    .all(|c| c.is_ascii_alphanumeric() || "./-".contains(c)),
                "{key}"
            );
        }
    }
}
