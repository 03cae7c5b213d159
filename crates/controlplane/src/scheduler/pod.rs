//! A pod as the scheduler sees it: read once, compared often.

use super::{
    pod_affinity::{PodTerm, with_own},
    snapshot::Node,
};
use crate::{
    Key, controller_of,
    fields::{Labels, items, labels, text},
    node_affinity::{NodeTerm, RequiredNodes},
    taint::{Taint, Toleration},
};
use serde_json::Value;
use yurt_controller::resources::{Resources, assumed_requests, requests};
use yurt_wire::selector::{LabelSelector, Op};

/// A port of the host that a pod takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct HostPort {
    protocol: String,
    ip: String,
    port: i64,
}

impl HostPort {
    pub(super) fn collides(&self, other: &Self) -> bool {
        let everywhere = |ip: &str| ip.is_empty() || ip == "0.0.0.0" || ip == "::";
        self.port == other.port
            && self.protocol == other.protocol
            && (self.ip == other.ip || everywhere(&self.ip) || everywhere(&other.ip))
    }
}

/// Which pods a spread constraint counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Counts {
    /// Those of the pod's namespace with these labels.
    Labels(LabelSelector),
    /// Those of the same controller: what spreads pods that have no constraints of their own.
    Controller,
}

/// A `TopologySpreadConstraint`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Spread {
    pub(super) topology_key: String,
    pub(super) max_skew: i64,
    pub(super) min_domains: i64,
    pub(super) counts: Counts,
    /// `DoNotSchedule`.
    pub(super) hard: bool,
    /// Whether nodes count that the pod's node affinity excludes, and whose taints it does not tolerate.
    honors_affinity: bool,
    honors_taints: bool,
}

/// A pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Pod {
    pub(super) key: Key,
    pub(super) uid: String,
    pub(super) labels: Labels,
    /// UID of the controller that owns it.
    pub(super) controller: Option<String>,
    /// `spec.nodeName`, or the node it is assumed on.
    pub(super) node: Option<String>,
    /// `status.nominatedNodeName`: others were evicted there for it.
    pub(super) nominated: Option<String>,
    pub(super) priority: i64,
    /// `preemptionPolicy` is not `Never`.
    pub(super) preempts: bool,
    pub(super) deleting: bool,
    pub(super) gated: bool,
    /// When it started, RFC 3339; empty before.
    pub(super) started: String,
    pub(super) requests: Resources,
    pub(super) assumed: Resources,
    pub(super) ports: Vec<HostPort>,
    pub(super) tolerations: Vec<Toleration>,
    pub(super) claims: Vec<String>,
    pub(super) affinity: Vec<PodTerm>,
    pub(super) anti_affinity: Vec<PodTerm>,
    /// With weights, negative ones for anti-affinity.
    pub(super) preferred_pods: Vec<(i64, PodTerm)>,
    pub(super) preferred_nodes: Vec<(i64, NodeTerm)>,
    pub(super) spread: Vec<Spread>,
    pub(super) required_nodes: RequiredNodes,
}

impl Pod {
    pub(super) fn parse(pod: &Value) -> Self {
        let (meta, spec) = (&pod["metadata"], &pod["spec"]);
        let key = Key::of(pod);
        let own = labels(&meta["labels"]);
        let affinity = &spec["affinity"];
        let pod_terms = |terms: &Value| -> Vec<PodTerm> {
            items(terms)
                .map(|term| PodTerm::parse(term, &key.namespace, &own))
                .collect()
        };
        let weighed = |terms: &Value, sign: i64| -> Vec<(i64, PodTerm)> {
            items(terms)
                .map(|weighed| {
                    let weight = weighed["weight"].as_i64().unwrap_or(0);
                    let term = &weighed["podAffinityTerm"];
                    (sign * weight, PodTerm::parse(term, &key.namespace, &own))
                })
                .collect()
        };
        const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
        const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";
        let mut preferred_pods = weighed(&affinity["podAffinity"][PREFERRED], 1);
        preferred_pods.extend(weighed(&affinity["podAntiAffinity"][PREFERRED], -1));
        let optional = |value: &Value| value.as_str().filter(|s| !s.is_empty()).map(str::to_owned);
        let controller = controller_of(pod).and_then(|owner| optional(&owner["uid"]));
        Self {
            uid: text(&meta["uid"]),
            node: optional(&spec["nodeName"]),
            nominated: optional(&pod["status"]["nominatedNodeName"]),
            priority: spec["priority"].as_i64().unwrap_or(0),
            preempts: spec["preemptionPolicy"] != "Never",
            deleting: meta["deletionTimestamp"].is_string(),
            gated: items(&spec["schedulingGates"]).next().is_some(),
            started: text(&pod["status"]["startTime"]),
            requests: requests(pod),
            assumed: assumed_requests(pod),
            ports: host_ports(spec),
            tolerations: Toleration::of(spec),
            claims: claims(&key.name, spec),
            affinity: pod_terms(&affinity["podAffinity"][REQUIRED]),
            anti_affinity: pod_terms(&affinity["podAntiAffinity"][REQUIRED]),
            preferred_pods,
            preferred_nodes: items(&affinity["nodeAffinity"][PREFERRED])
                .map(|weighed| {
                    let weight = weighed["weight"].as_i64().unwrap_or(0);
                    (weight, NodeTerm::parse(&weighed["preference"]))
                })
                .collect(),
            spread: spreads(spec, &own, controller.is_some()),
            required_nodes: RequiredNodes::of(spec),
            labels: own,
            controller,
            key,
        }
    }

    /// Whether node selector and required node affinity admit a node.
    pub(super) fn wants(&self, node: &Node) -> bool {
        self.required_nodes.admit(&node.name, &node.labels)
    }

    pub(super) fn tolerates(&self, taint: &Taint) -> bool {
        self.tolerations.iter().any(|t| t.tolerates(taint))
    }

    /// Whether two readings are the same as far as placing the pod goes.
    pub(super) fn same_wishes(&self, other: &Self) -> bool {
        let bare = |pod: &Self| Self {
            node: None,
            nominated: None,
            started: String::new(),
            ..pod.clone()
        };
        bare(self) == bare(other)
    }
}

impl Spread {
    /// Whether a node's domain takes part.
    pub(super) fn regards(&self, pod: &Pod, node: &Node) -> bool {
        (!self.honors_affinity || pod.wants(node))
            && (!self.honors_taints
                || node
                    .taints
                    .iter()
                    .all(|taint| !taint.keeps_away() || pod.tolerates(taint)))
    }

    /// Whether `other` is one of the pods that `pod` is spread among.
    pub(super) fn counts(&self, pod: &Pod, other: &Pod) -> bool {
        !other.deleting
            && other.key.namespace == pod.key.namespace
            && match &self.counts {
                Counts::Labels(selector) => selector.matches(&other.labels),
                Counts::Controller => other.controller == pod.controller,
            }
    }
}

fn spreads(spec: &Value, own: &Labels, controlled: bool) -> Vec<Spread> {
    let spreads: Vec<Spread> = items(&spec["topologySpreadConstraints"])
        .filter_map(|constraint| {
            let selector = LabelSelector::from_json(&constraint["labelSelector"]).ok();
            // No selector counts no pod: such a constraint holds everywhere.
            let selector = with_own(selector?, &constraint["matchLabelKeys"], Op::In, own)?;
            Some(Spread {
                topology_key: text(&constraint["topologyKey"]),
                max_skew: constraint["maxSkew"].as_i64().unwrap_or(1),
                min_domains: constraint["minDomains"].as_i64().unwrap_or(1),
                counts: Counts::Labels(selector),
                hard: constraint["whenUnsatisfiable"] != "ScheduleAnyway",
                honors_affinity: constraint["nodeAffinityPolicy"] != "Ignore",
                honors_taints: constraint["nodeTaintsPolicy"] == "Honor",
            })
        })
        .collect();
    let none_given = items(&spec["topologySpreadConstraints"]).next().is_none();
    if !(none_given && controlled) {
        return spreads;
    }
    // kube-scheduler's own: over hosts, and less strictly over zones.
    [
        ("kubernetes.io/hostname", 3),
        ("topology.kubernetes.io/zone", 5),
    ]
    .map(|(key, max_skew)| Spread {
        topology_key: key.into(),
        max_skew,
        min_domains: 1,
        counts: Counts::Controller,
        hard: false,
        honors_affinity: true,
        honors_taints: false,
    })
    .into()
}

fn host_ports(spec: &Value) -> Vec<HostPort> {
    let sidecars = items(&spec["initContainers"]).filter(|c| c["restartPolicy"] == "Always");
    items(&spec["containers"])
        .chain(sidecars)
        .flat_map(|container| items(&container["ports"]))
        .filter_map(|port| {
            Some(HostPort {
                port: port["hostPort"].as_i64().filter(|port| *port > 0)?,
                protocol: port["protocol"].as_str().unwrap_or("TCP").to_owned(),
                ip: text(&port["hostIP"]),
            })
        })
        .collect()
}

fn claims(pod: &str, spec: &Value) -> Vec<String> {
    items(&spec["volumes"])
        .filter_map(|volume| {
            if volume["ephemeral"].is_object() {
                return Some(format!("{pod}-{}", volume["name"].as_str()?));
            }
            let claim = volume["persistentVolumeClaim"]["claimName"].as_str()?;
            Some(claim.to_owned())
        })
        .collect()
}
