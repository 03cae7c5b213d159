//! `servicetopology`: of a service that says so (`openyurt.io/topologyKeys`), a node sees only the endpoints near to it.

use super::{Context, Filter, Inputs, Scope, Verdict, value_of};
use serde_json::Value;
use yurt_wire::{Object, ObjectMeta, Verb};

/// The label of a slice that names its service.
const SERVICE_LABEL: &str = "kubernetes.io/service-name";
const HOSTNAME: &str = "kubernetes.io/hostname";

/// Shows the endpoints of the node, or of its pool, where the service asks for that.
#[derive(Debug)]
pub(super) struct ServiceTopology;

/// How far away endpoints may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reach {
    Node,
    Pool,
    Everywhere,
}

impl Filter for ServiceTopology {
    fn name(&self) -> &'static str {
        "servicetopology"
    }

    fn scope(&self) -> Scope {
        Scope::of(
            &["kube-proxy", "coredns", "nginx-ingress-controller"],
            &[("", "endpoints"), ("discovery.k8s.io", "endpointslices")],
            &[Verb::Get, Verb::List, Verb::Watch],
        )
    }

    fn inputs(&self) -> Inputs {
        Inputs::SERVICES | Inputs::POOL
    }

    fn is_idle(&self, context: &Context) -> bool {
        context
            .topologies
            .as_ref()
            .is_none_or(|services| services.is_empty())
    }

    fn concerns(&self, _: &Object, meta: &ObjectMeta, context: &Context) -> bool {
        let service = match meta.gvk.kind.as_str() {
            "Endpoints" => Some(meta.name.as_str()),
            "EndpointSlice" => value_of(&meta.labels, SERVICE_LABEL),
            _ => None,
        };
        service.is_some_and(|name| topology(&meta.namespace, name, context).is_some())
    }

    fn apply(&self, object: &mut Value, context: &Context) -> Verdict {
        let text = |value: Option<&Value>| value.and_then(Value::as_str).map(str::to_owned);
        let slice = object.get("kind").and_then(Value::as_str) == Some("EndpointSlice");
        let namespace = text(object.pointer("/metadata/namespace")).unwrap_or_default();
        let service = if slice {
            let labels = object.pointer("/metadata/labels");
            text(labels.and_then(|labels| labels.get(SERVICE_LABEL)))
        } else {
            text(object.pointer("/metadata/name"))
        };
        let reaches = service
            .and_then(|service| topology(&namespace, &service, context))
            .map(reaches)
            .unwrap_or_default();
        let backends = if slice {
            of_slice(object)
        } else {
            of_endpoints(object)
        };
        let Some(reach) = chosen(&reaches, &backends, context) else {
            return Verdict::Kept;
        };
        let far = |endpoint: &Value| !is_within(reach, node_of(endpoint), context);
        if !backends.iter().any(|(endpoint, _)| far(endpoint)) {
            return Verdict::Kept;
        }
        drop(backends);
        if slice {
            if let Some(endpoints) = object.get_mut("endpoints").and_then(Value::as_array_mut) {
                endpoints.retain(|endpoint| !far(endpoint));
            }
        } else if let Some(subsets) = object.get_mut("subsets").and_then(Value::as_array_mut) {
            subsets.retain_mut(|subset| leave(subset, far));
        }
        Verdict::Changed
    }
}

fn topology<'a>(namespace: &str, service: &str, context: &'a Context) -> Option<&'a str> {
    let key = format!("{namespace}/{service}");
    let keys = context.topologies.as_ref()?.get(key.as_str())?;
    Some(keys)
}

/// The reaches that a list of keys names, in order; what is no key is left out.
fn reaches(keys: &str) -> Vec<Reach> {
    let reach = |key: &str| match key.trim() {
        HOSTNAME => Some(Reach::Node),
        "openyurt.io/nodepool" | "kubernetes.io/zone" => Some(Reach::Pool),
        "*" => Some(Reach::Everywhere),
        _ => None,
    };
    keys.split(',').filter_map(reach).collect()
}

/// The first reach within which an endpoint is ready, or else the last; `None` when nothing is to be left out, or it is not known what.
fn chosen(reaches: &[Reach], backends: &[(&Value, bool)], context: &Context) -> Option<Reach> {
    let last = reaches.len().checked_sub(1)?;
    for (index, reach) in reaches.iter().enumerate() {
        // A node of no known pool is a pool of its own, as with OpenYurt.
        let reach = match reach {
            Reach::Pool if context.pool.is_empty() => Reach::Node,
            reach => *reach,
        };
        if reach == Reach::Pool && context.membership.nodes.is_none() {
            return None;
        }
        let serves = |(endpoint, ready): &(&Value, bool)| {
            *ready && is_within(reach, node_of(endpoint), context)
        };
        if index == last || backends.iter().any(serves) {
            return (reach != Reach::Everywhere).then_some(reach);
        }
    }
    None
}

/// This node is in its pool, whether the pool says so already or not.
fn is_within(reach: Reach, node: Option<&str>, context: &Context) -> bool {
    match (reach, node) {
        (Reach::Everywhere, _) => true,
        (_, None) => false,
        (_, Some(node)) if node == context.node => true,
        (Reach::Node, _) => false,
        (Reach::Pool, Some(node)) => {
            let nodes = context.membership.nodes.as_ref();
            nodes.is_some_and(|nodes| nodes.contains(node))
        }
    }
}

/// `nodeName`, or where v1beta1 has it.
fn node_of(endpoint: &Value) -> Option<&str> {
    let of_topology = || {
        let topology = endpoint
            .get("topology")
            .or(endpoint.get("deprecatedTopology"));
        topology?.get(HOSTNAME)?.as_str()
    };
    let name = endpoint.get("nodeName").and_then(Value::as_str);
    name.or_else(of_topology)
}

/// The endpoints of a slice, and whether they are ready (unknown counts as ready).
fn of_slice(slice: &Value) -> Vec<(&Value, bool)> {
    let endpoints = slice.get("endpoints").and_then(Value::as_array);
    let ready = |endpoint: &Value| endpoint.pointer("/conditions/ready") != Some(&false.into());
    endpoints
        .into_iter()
        .flatten()
        .map(|endpoint| (endpoint, ready(endpoint)))
        .collect()
}

const ADDRESSES: [(&str, bool); 2] = [("addresses", true), ("notReadyAddresses", false)];

fn of_endpoints(endpoints: &Value) -> Vec<(&Value, bool)> {
    let subsets = endpoints.get("subsets").and_then(Value::as_array);
    let mut all = Vec::new();
    for subset in subsets.into_iter().flatten() {
        for (field, ready) in ADDRESSES {
            let addresses = subset.get(field).and_then(Value::as_array);
            all.extend(
                addresses
                    .into_iter()
                    .flatten()
                    .map(|address| (address, ready)),
            );
        }
    }
    all
}

/// Leaves out far addresses; whether any is left.
fn leave(subset: &mut Value, far: impl Fn(&Value) -> bool) -> bool {
    let Some(subset) = subset.as_object_mut() else {
        return false;
    };
    for (field, _) in ADDRESSES {
        if let Some(addresses) = subset.get_mut(field).and_then(Value::as_array_mut) {
            addresses.retain(|address| !far(address));
            if addresses.is_empty() {
                subset.remove(field);
            }
        }
    }
    ADDRESSES
        .iter()
        .any(|(field, _)| subset.contains_key(*field))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pool::Membership;
    use proptest::prelude::*;
    use serde_json::json;

    fn context(keys: &str, pool: &str, nodes: Option<&[&str]>) -> Context {
        let mut context = Context::of_node("me");
        context.pool = pool.to_owned();
        context.membership = Membership {
            pool: Some(pool.to_owned()),
            nodes: nodes.map(|nodes| nodes.iter().map(|node| (*node).into()).collect()),
            ..Membership::default()
        };
        context.topologies = Some(std::sync::Arc::new([("a/s".into(), keys.into())].into()));
        context
    }

    /// Endpoints by the node they are on; a trailing `!` says not ready, `` no node.
    fn slice(nodes: &[&str]) -> Value {
        let endpoint = |node: &&str| {
            let mut endpoint = json!({"addresses": [format!("10.0.0.{}", node.len())], "conditions": {"ready": !node.ends_with('!')}});
            let name = node.trim_end_matches('!');
            if !name.is_empty() {
                endpoint["nodeName"] = name.into();
            }
            endpoint
        };
        json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"namespace": "a", "name": "s-1", "labels": {SERVICE_LABEL: "s"}},
            "endpoints": nodes.iter().map(endpoint).collect::<Vec<_>>()})
    }

    fn shown(mut slice: Value, context: &Context) -> Vec<String> {
        let before = slice.clone();
        let verdict = ServiceTopology.apply(&mut slice, context);
        assert_eq!(verdict == Verdict::Changed, slice != before);
        let endpoints = slice["endpoints"].as_array().unwrap();
        endpoints
            .iter()
            .map(|endpoint| node_of(endpoint).unwrap_or("").to_owned())
            .collect()
    }

    /// Keys, pool, its nodes; the nodes of endpoints before and after.
    type Case = (
        &'static str,
        &'static str,
        Option<&'static [&'static str]>,
        &'static [&'static str],
        &'static [&'static str],
    );

    #[test]
    fn endpoints_by_reach() {
        const HOST: &str = "kubernetes.io/hostname";
        const POOL: &str = "openyurt.io/nodepool";
        let near: Option<&'static [&'static str]> = Some(&["me", "near"]);
        let all: &'static [&'static str] = &["me", "near", "far", ""];
        let cases: &[Case] = &[
            (HOST, "p", near, all, &["me"]),
            (POOL, "p", near, all, &["me", "near"]),
            ("kubernetes.io/zone", "p", near, all, &["me", "near"]),
            (" openyurt.io/nodepool ", "p", near, all, &["me", "near"]),
            // Not known which pool, or who is in it.
            (POOL, "", None, all, &["me"]),
            (POOL, "p", None, all, all),
            // This node is in its pool whatever the pool says.
            (POOL, "p", Some(&[]), all, &["me"]),
            (POOL, "p", Some(&[]), &["far"], &[]),
            // Lists: the first that yields.
            (
                "kubernetes.io/hostname,openyurt.io/nodepool",
                "p",
                near,
                all,
                &["me"],
            ),
            (
                "kubernetes.io/hostname, openyurt.io/nodepool",
                "p",
                near,
                &["near", "far"],
                &["near"],
            ),
            (
                "kubernetes.io/hostname,openyurt.io/nodepool",
                "p",
                near,
                &["me!", "near", "far"],
                &["me", "near"],
            ),
            (
                "kubernetes.io/hostname,openyurt.io/nodepool",
                "p",
                near,
                &["far"],
                &[],
            ),
            (
                "kubernetes.io/hostname,openyurt.io/nodepool,*",
                "p",
                near,
                &["far", ""],
                &["far", ""],
            ),
            (
                "kubernetes.io/hostname,openyurt.io/nodepool",
                "p",
                None,
                &["far"],
                &["far"],
            ),
            (
                "kubernetes.io/hostname,openyurt.io/nodepool",
                "p",
                None,
                all,
                &["me"],
            ),
            // What is no key says nothing.
            ("topology.kubernetes.io/region", "p", near, all, all),
            ("nonsense,kubernetes.io/hostname", "p", near, all, &["me"]),
        ];
        for (keys, pool, nodes, endpoints, expected) in cases {
            let context = context(keys, pool, *nodes);
            assert_eq!(
                shown(slice(endpoints), &context),
                *expected,
                "{keys} {pool} {nodes:?} {endpoints:?}"
            );
        }
        let mut other = context(HOST, "p", near);
        other.topologies = None;
        assert_eq!(shown(slice(all), &other), all);
    }

    #[test]
    fn old_slices_and_endpoints() {
        let context = context("openyurt.io/nodepool", "p", Some(&["near"]));
        let old = json!({"apiVersion": "discovery.k8s.io/v1beta1", "kind": "EndpointSlice",
            "metadata": {"namespace": "a", "name": "x", "labels": {SERVICE_LABEL: "s"}},
            "endpoints": [{"topology": {"kubernetes.io/hostname": "near"}}, {"topology": {"kubernetes.io/hostname": "far"}}, {"topology": null}]});
        assert_eq!(shown(old, &context), ["near"]);
        let mut endpoints = json!({"apiVersion": "v1", "kind": "Endpoints", "metadata": {"namespace": "a", "name": "s"}, "subsets": [
            {"addresses": [{"ip": "1", "nodeName": "near"}, {"ip": "2", "nodeName": "far"}, {"ip": "3"}], "notReadyAddresses": [{"ip": "4", "nodeName": "far"}], "ports": [{"port": 1}]},
            {"notReadyAddresses": [{"ip": "5", "nodeName": "me"}]},
            {"addresses": [{"ip": "6", "nodeName": "far"}]},
        ]});
        assert_eq!(
            ServiceTopology.apply(&mut endpoints, &context),
            Verdict::Changed
        );
        assert_eq!(
            endpoints["subsets"],
            json!([
                {"addresses": [{"ip": "1", "nodeName": "near"}], "ports": [{"port": 1}]},
                {"notReadyAddresses": [{"ip": "5", "nodeName": "me"}]},
            ])
        );
        let again = endpoints.clone();
        assert_eq!(
            ServiceTopology.apply(&mut endpoints, &context),
            Verdict::Kept
        );
        assert_eq!(endpoints, again);
    }

    proptest! {
        /// Whatever the keys say: nothing is shown that was not there, in the same order, and nothing near is hidden.
        #[test]
        fn only_far_endpoints_go(
            keys in prop::collection::vec(prop_oneof![Just("kubernetes.io/hostname"), Just("openyurt.io/nodepool"), Just("kubernetes.io/zone"), Just("*"), Just("x")], 0..4),
            endpoints in prop::collection::vec(prop_oneof![Just("me"), Just("near"), Just("far"), Just(""), Just("me!"), Just("near!"), Just("far!")], 0..8),
            known in any::<bool>(),
        ) {
            let context = context(&keys.join(","), "p", known.then_some(&["near"][..]));
            let all: Vec<&str> = endpoints.iter().map(|node| node.trim_end_matches('!')).collect();
            let shown = shown(slice(&endpoints), &context);
            let mut rest = all.iter();
            for node in &shown {
                prop_assert!(rest.any(|other| other == node));
            }
            prop_assert_eq!(shown.iter().filter(|node| *node == "me").count(), all.iter().filter(|node| **node == "me").count());
        }
    }
}
