//! The Endpoints of a service as they would be if the cloud knew what this node knows. Pure.

use super::{
    Place,
    pod::{LocalPod, addresses, family, is_deleting, items},
    service::{
        first_family, hostname, is_usable, ports, publishes_all, same_ports, selects, target_ref,
    },
};
use serde_json::{Map, Value, json};

/// On Endpoints that do not show all there are.
const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";
/// The most addresses that Endpoints show.
const MOST: usize = 1000;
const READY: &str = "addresses";
const NOT_READY: &str = "notReadyAddresses";

/// The Endpoints with the present state of `pods`; nothing else changes.
pub(crate) fn derive(
    endpoints: &Value,
    service: Option<&Value>,
    pods: &[LocalPod],
    place: &Place,
) -> Value {
    let namespace = endpoints["metadata"]["namespace"]
        .as_str()
        .unwrap_or_default();
    let publish = service.is_some_and(publishes_all);
    let mut subsets: Vec<Value> = items(&endpoints["subsets"])
        .filter_map(|subset| follow(subset, namespace, pods, publish))
        .collect();
    if let Some(service) = service
        && endpoints["metadata"]["annotations"][OVER_CAPACITY].is_null()
    {
        for local in pods {
            if let Some(pod) = local.alive()
                && selects(service, pod)
                && (!is_deleting(pod) || publish)
            {
                add(&mut subsets, service, pod, place);
            }
        }
    }
    let mut out = endpoints.clone();
    let unchanged = match endpoints["subsets"].as_array() {
        Some(before) => *before == subsets,
        None => subsets.is_empty(),
    };
    if !unchanged {
        out["subsets"] = subsets.into();
    }
    out
}

/// A subset whose addresses follow their pods; `None` when none is left.
fn follow(subset: &Value, namespace: &str, pods: &[LocalPod], publish: bool) -> Option<Value> {
    let (mut lists, mut changed) = ([Vec::new(), Vec::new()], false);
    for (was_ready, field) in [(true, READY), (false, NOT_READY)] {
        for address in items(&subset[field]) {
            let target = &address["targetRef"];
            let Some(local) = pods.iter().find(|pod| pod.is_target(target, namespace)) else {
                lists[usize::from(!was_ready)].push(address.clone());
                continue;
            };
            let now = local
                .alive()
                .filter(|pod| publish || !is_deleting(pod))
                .and_then(|pod| Some((present(address, local, pod)?, is_usable(pod, publish))));
            changed |= now.as_ref() != Some(&(address.clone(), was_ready));
            if let Some((address, ready)) = now {
                lists[usize::from(!ready)].push(address);
            }
        }
    }
    if !changed {
        return Some(subset.clone());
    }
    let mut out = subset.as_object().cloned().unwrap_or_default();
    let [ready, not_ready] = lists;
    if ready.is_empty() && not_ready.is_empty() {
        return None;
    }
    set(&mut out, READY, ready);
    set(&mut out, NOT_READY, not_ready);
    Some(out.into())
}

fn set(subset: &mut Map<String, Value>, field: &str, list: Vec<Value>) {
    if list.is_empty() {
        subset.remove(field);
    } else {
        subset.insert(field.into(), list.into());
    }
}

/// An address of a pod as it is now.
fn present(address: &Value, local: &LocalPod, pod: &Value) -> Option<Value> {
    let mut out = address.clone();
    let old = address["ip"].as_str().unwrap_or_default();
    match addresses(pod, family(old)).first() {
        Some(now) => out["ip"] = (*now).into(),
        None if pod["spec"]["hostNetwork"] == true => {}
        None => return None,
    }
    if local.created_here {
        out["targetRef"]["uid"] = pod["metadata"]["uid"].clone();
    }
    Some(out)
}

/// Gives a pod that has none an address in the subset of its ports.
fn add(subsets: &mut Vec<Value>, service: &Value, pod: &Value, place: &Place) {
    let all = || {
        subsets
            .iter()
            .flat_map(|subset| items(&subset[READY]).chain(items(&subset[NOT_READY])))
    };
    let uid = &pod["metadata"]["uid"];
    let listed = all().any(|address| address["targetRef"]["uid"] == *uid);
    let now = addresses(pod, first_family(service));
    let (Some(ip), Some(mut ports)) = (now.first(), ports(service, pod)) else {
        return;
    };
    if listed || all().count() >= MOST {
        return;
    }
    for port in &mut ports {
        if port["name"] == ""
            && let Some(port) = port.as_object_mut()
        {
            port.remove("name");
        }
    }
    let mut address = json!({"ip": ip, "nodeName": place.node, "targetRef": target_ref(pod)});
    if let Some(hostname) = hostname(service, pod) {
        address["hostname"] = hostname.into();
    }
    let field = if is_usable(pod, publishes_all(service)) {
        READY
    } else {
        NOT_READY
    };
    let known = subsets
        .iter_mut()
        .find(|subset| subset.is_object() && same_ports(&subset["ports"], &ports));
    match known {
        None => {
            let mut subset = json!({field: [address]});
            if !ports.is_empty() {
                subset["ports"] = ports.into();
            }
            subsets.push(subset);
        }
        Some(subset) => match subset[field].as_array_mut() {
            Some(list) => list.push(address),
            None => subset[field] = json!([address]),
        },
    }
}
