//! Gathers what the doctor judges, from the hub and its cache.

use super::{
    Certificate, Facts, List, Pod,
    needs::{self, Kind, Reference},
};
use crate::{
    autonomy::{
        self,
        heartbeat::{NODE_LEASES, leases},
        resync::own_pods,
    },
    cache::Lookup,
    caller::Caller,
    proxy::Hub,
    query::Query,
    route::Mode,
    tokens::issued::Wish,
};
use jiff::Timestamp;
use serde_json::Value;
use yurt_api::autonomy::Autonomy;
use yurt_wire::{Gvr, selector::FieldSelector};

/// Looks at everything. Reads the cache's disk: not for a thread that serves others.
pub(crate) fn gather(hub: &Hub) -> Facts {
    let node = autonomy::own_node(hub);
    let pods = pods(hub);
    let pulse = hub.heartbeat.as_ref().map(|heartbeat| heartbeat.pulse());
    Facts {
        node_name: hub.node_name.clone(),
        now: Timestamp::now(),
        online: hub.mode() == Mode::Online,
        certificates: certificates(hub),
        autonomy: node.as_ref().map(Autonomy::of),
        lists: lists(hub, pods.as_deref().unwrap_or_default()),
        can_sign: hub.tokens.can_sign(),
        pods: pods.map(|pods| {
            pods.iter()
                .map(|pod| look(hub, pod, node.as_ref()))
                .collect()
        }),
        trouble: hub.trouble.borrow().clone(),
        cache_bytes: hub.cache.usage().live_bytes,
        cache_budget: hub.config.cache_budget,
        disk_free: autonomy::disk_free(hub),
        journal: hub.journal.pending(),
        kubelet_silent: pulse.as_ref().and_then(|pulse| pulse.kubelet_silent),
        kubelet_alive: pulse.as_ref().is_some_and(|pulse| pulse.alive),
        lease_trouble: pulse.and_then(|pulse| pulse.trouble),
        latest: latest(hub, node.as_ref()),
    }
}

/// The pods that the kubelet would start.
fn pods(hub: &Hub) -> Option<Vec<Value>> {
    let listing = hub.cache.list(&Caller::Node, &own_pods(&hub.node_name)?)?;
    let pods = listing
        .items
        .iter()
        .filter_map(|pod| pod.to_json_value().ok());
    Some(pods.filter(needs::is_to_run).collect())
}

fn look(hub: &Hub, pod: &Value, node: Option<&Value>) -> Pod {
    let text = |pointer: &str| {
        let value = pod.pointer(pointer).and_then(Value::as_str);
        value.unwrap_or_default()
    };
    let namespace = text("/metadata/namespace");
    let mut seen = Pod {
        name: format!("{namespace}/{}", text("/metadata/name")),
        ..Pod::default()
    };
    if needs::is_static(pod) {
        return seen;
    }
    for reference in needs::references(pod) {
        match lacks(hub, namespace, &reference) {
            None => seen.found += 1,
            Some(what) => seen.missing.push(what),
        }
    }
    seen.images = needs::unseen_images(pod, node.unwrap_or(&Value::Null));
    seen.always_pulled = needs::always_pulled(pod);
    let now = Timestamp::now().as_second();
    let wishes = needs::tokens(pod);
    seen.tokens = wishes.len();
    let issued = |wish: &&Wish| hub.tokens.issued(wish, now).is_some();
    seen.tokens_of_cloud = wishes.iter().filter(issued).count();
    seen
}

/// What is missing for a reference, if anything: of a claim also the volume behind it.
fn lacks(hub: &Hub, namespace: &str, reference: &Reference) -> Option<String> {
    let kind = reference.kind;
    let namespace = match kind {
        Kind::RuntimeClass => "",
        _ => namespace,
    };
    let place = if namespace.is_empty() {
        String::new()
    } else {
        format!("{namespace}/")
    };
    let what = format!("{} {place}{}", kind.as_str(), reference.name);
    let found = hub
        .cache
        .get(&Caller::Node, &kind.gvr(), namespace, &reference.name);
    let object = match found {
        Lookup::Found(object) => object,
        Lookup::KnownAbsent if reference.optional => return None,
        Lookup::KnownAbsent => return Some(format!("{what}, which does not exist")),
        Lookup::Unknown | Lookup::Forbidden => return Some(what),
    };
    if kind != Kind::Claim {
        return None;
    }
    let claim = object.to_json_value().ok()?;
    let volume = claim
        .pointer("/spec/volumeName")
        .and_then(Value::as_str)
        .unwrap_or_default();
    if volume.is_empty() {
        return Some(format!("{what}, which is not bound"));
    }
    let volumes = Gvr::new("", "v1", "persistentvolumes");
    match hub.cache.get(&Caller::Node, &volumes, "", volume) {
        Lookup::Found(_) => None,
        _ => Some(format!("persistentvolume {volume} of {what}")),
    }
}

fn lists(hub: &Hub, pods: &[Value]) -> Vec<List> {
    let known = |query: &Query| hub.cache.select(&Caller::Node, query).is_ok();
    let all = |group: &str, resource: &str| Query::all(Gvr::new(group, "v1", resource), "");
    let node = Query::named(Gvr::new("", "v1", "nodes"), "", &hub.node_name);
    let services = all("", "services");
    let mut with_address = services.clone();
    if let Ok(fields) = FieldSelector::parse("spec.clusterIP!=None") {
        with_address.fields = fields;
    }
    let classes = pods
        .iter()
        .any(|pod| pod.pointer("/spec/runtimeClassName").is_some());
    vec![
        List {
            what: "nodes (this one)",
            known: known(&node),
            needed: true,
        },
        List {
            what: "pods (of this node)",
            known: own_pods(&hub.node_name).is_some_and(|query| known(&query)),
            needed: true,
        },
        List {
            what: "services",
            known: known(&services) || known(&with_address),
            needed: true,
        },
        List {
            what: "endpointslices",
            known: hub
                .cache
                .is_followed(&Gvr::new("discovery.k8s.io", "v1", "endpointslices")),
            needed: false,
        },
        List {
            what: "runtimeclasses",
            known: known(&all("node.k8s.io", "runtimeclasses")),
            needed: classes,
        },
        List {
            what: "csidrivers",
            known: known(&all("storage.k8s.io", "csidrivers")),
            needed: pods.iter().any(needs::uses_csi),
        },
    ]
}

fn certificates(hub: &Hub) -> Vec<Certificate> {
    let status = hub.certificates.status().into_iter();
    status
        .map(|status| Certificate {
            purpose: status.certificate.into(),
            ends: match (status.state, status.not_after.map(|at| at.parse())) {
                ("valid" | "expired", Some(Ok(ends))) => Ok(ends),
                (state, _) => Err(status
                    .error
                    .or(status.waiting)
                    .map_or_else(|| state.to_owned(), |why| format!("{state} ({why})"))),
            },
        })
        .collect()
}

/// The latest moment in what the cluster wrote of this node.
fn latest(hub: &Hub, node: Option<&Value>) -> Option<Timestamp> {
    let lease = hub
        .cache
        .view(&leases(), NODE_LEASES, &hub.node_name)
        .and_then(|lease| lease.to_json_value().ok());
    let renewed = lease
        .as_ref()
        .and_then(|lease| lease.pointer("/spec/renewTime")?.as_str());
    let beats = node
        .and_then(|node| node.pointer("/status/conditions")?.as_array())
        .into_iter()
        .flatten()
        .filter_map(|condition| condition.get("lastHeartbeatTime")?.as_str());
    renewed
        .into_iter()
        .chain(beats)
        .filter_map(|text| text.parse().ok())
        .max()
}
