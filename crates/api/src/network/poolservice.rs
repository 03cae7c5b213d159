//! PoolService v1alpha1: the load balancer of a service in one pool. OpenYurt writes the spec, a controller of the load balancer's
//! class the status.

use crate::{
    meta::resource,
    schema::{Timestamp, types},
};
use std::collections::BTreeMap;

types! {
    /// The load balancer of a service in one pool.
    pub struct PoolService {
        /// What is wanted.
        [optional] spec: PoolServiceSpec,
        /// What is observed.
        [optional] status: PoolServiceStatus,
    }

    /// What is wanted of a load balancer.
    pub struct PoolServiceSpec {
        /// As of the service.
        load_balancer_class: Option<String>,
    }

    /// What is observed of a load balancer.
    pub struct PoolServiceStatus {
        /// Where it is reached.
        load_balancer: Option<LoadBalancerStatus>,
        /// Becomes labels aggregated.KEY of the service, over all its pools.
        aggregate_to_labels: BTreeMap<String, String>,
        /// Becomes annotations aggregated.KEY of the service, over all its pools.
        aggregate_to_annotations: BTreeMap<String, String>,
        /// What further is observed.
        conditions: Vec<ServiceCondition>,
    }

    /// Where a load balancer is reached.
    pub struct LoadBalancerStatus {
        /// Its addresses.
        ingress: Vec<LoadBalancerIngress> => {"x-kubernetes-list-type": "atomic"},
    }

    /// An address of a load balancer.
    pub struct LoadBalancerIngress {
        /// A name.
        hostname: Option<String>,
        /// An IP.
        ip: Option<String>,
        /// VIP where packets come with this IP as destination, Proxy where they come with that of the node or pod.
        ip_mode: Option<String>,
        /// The ports of the service.
        ports: Vec<PortStatus> => {"x-kubernetes-list-type": "atomic"},
    }

    /// A port of a service.
    pub struct PortStatus {
        /// The port.
        port: i32,
        /// TCP, UDP or SCTP.
        protocol: String,
        /// What is wrong with it.
        error: Option<String> => {"maxLength": 316,
            "pattern": "^([a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*/)?(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])$"},
    }

    /// An aspect of what is observed, as metav1.Condition.
    pub struct ServiceCondition {
        /// Which.
        condition_type as "type": String => {"maxLength": 316,
            "pattern": "^([a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*/)?(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])$"},
        /// True, False or Unknown.
        status: String => {"enum": ["True", "False", "Unknown"]},
        /// The generation of the spec that this is observed of.
        observed_generation: Option<i64> => {"minimum": 0},
        /// When status last changed.
        last_transition_time: Timestamp,
        /// Why, in one CamelCase word.
        reason: String => {"minLength": 1, "maxLength": 1024, "pattern": "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$"},
        /// Why, for people.
        message: String => {"maxLength": 32768},
    }
}

resource! {
    PoolService: super::GROUP, "v1alpha1", "PoolService", "poolservices", true;
}
