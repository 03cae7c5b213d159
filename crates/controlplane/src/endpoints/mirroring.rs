//! `endpointslice-mirroring-controller`: slices for Endpoints that somebody writes for a service without a selector.

use super::{
    MANAGED_BY, SERVICE_NAME, TRIGGER_TIME, backend, labels,
    plan::{Changes, Template, Wanted},
    slices::{managed, of_slices, write},
    without,
};
use crate::{
    Context, Controller, Failure, Key, Next, Watch,
    collections::{ENDPOINTS, SERVICES},
    fields::items,
};
use serde_json::{Map, Value, json};
use std::sync::Arc;

/// Who these slices are managed by.
const MANAGER: &str = "endpointslicemirroring-controller.k8s.io";
/// The most addresses of a subset that are mirrored, and the most endpoints in a slice.
const MOST: usize = 1000;
/// On Endpoints that have slices of their own.
const SKIP: &str = "endpointslice.kubernetes.io/skip-mirror";
/// On Endpoints that are a lock.
const LEADER: &str = "control-plane.alpha.kubernetes.io/leader";
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// The controller.
#[derive(Debug, Default)]
pub(crate) struct Mirroring;

impl Controller for Mirroring {
    const NAME: &'static str = "endpointslice-mirroring-controller";

    fn watches(&self, _: &Arc<Context>) -> Vec<Watch> {
        vec![
            Watch::own(ENDPOINTS),
            Watch::own(SERVICES),
            of_slices(MANAGER),
        ]
    }

    async fn reconcile(&self, key: &Key, context: &Context) -> Result<Next, Failure> {
        let endpoints = context.objects(&ENDPOINTS).get(key);
        let service = context.objects(&SERVICES).get(key);
        let existing = managed(context, &key.namespace, &key.name, MANAGER);
        let changes = match (endpoints, service) {
            (Some(endpoints), Some(service)) if is_mirrored(&endpoints, &service) => {
                changes(&endpoints, &existing)
            }
            _ => Changes {
                delete: existing.iter().map(|slice| Value::clone(slice)).collect(),
                ..Changes::default()
            },
        };
        write(context, changes).await?;
        Ok(Next::Done)
    }
}

fn is_mirrored(endpoints: &Value, service: &Value) -> bool {
    let meta = &endpoints["metadata"];
    meta["deletionTimestamp"].is_null()
        && meta["labels"][SKIP] != "true"
        && meta["annotations"][LEADER].is_null()
        && service["spec"]["selector"]
            .as_object()
            .is_none_or(Map::is_empty)
}

/// What is to be written so that slices show what the Endpoints say.
fn changes(endpoints: &Value, existing: &[Arc<Value>]) -> Changes {
    let meta = &endpoints["metadata"];
    let name = meta["name"].as_str().unwrap_or_default();
    let mut labels = labels(endpoints).cloned().unwrap_or_default();
    labels.insert(SERVICE_NAME.into(), name.into());
    labels.insert(MANAGED_BY.into(), MANAGER.into());
    let template = Template {
        namespace: meta["namespace"].as_str().unwrap_or_default().into(),
        parent: name.into(),
        owner: json!({"apiVersion": "v1", "kind": "Endpoints", "name": name, "uid": meta["uid"],
            "controller": true, "blockOwnerDeletion": true}),
        labels,
        annotations: Some(without(
            meta["annotations"].as_object(),
            &[TRIGGER_TIME, LAST_APPLIED],
        )),
        trigger: None,
        most: MOST,
        creates: true,
        placeholder: false,
    };
    let mut wanted = Wanted::default();
    for subset in items(&endpoints["subsets"]) {
        let ports: Vec<Value> = items(&subset["ports"])
            .map(|port| backend::endpoint_port(port, port["port"].as_u64().unwrap_or_default()))
            .collect();
        let mut left = MOST;
        for (field, ready) in [("addresses", true), ("notReadyAddresses", false)] {
            for address in items(&subset[field]) {
                let Some(ip) = address["ip"].as_str().filter(|_| left > 0) else {
                    continue;
                };
                left -= 1;
                let endpoint = endpoint(address, ip, ready);
                wanted.add(backend::family(ip), ports.clone(), endpoint);
            }
        }
    }
    wanted.changes(&template, existing)
}

fn endpoint(address: &Value, ip: &str, ready: bool) -> Value {
    let mut endpoint = json!({"addresses": [ip], "conditions": {"ready": ready}});
    for field in ["hostname", "nodeName", "targetRef"] {
        if !address[field].is_null() {
            endpoint[field] = address[field].clone();
        }
    }
    endpoint
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stage::Stage;

    #[test]
    fn services_with_a_selector_and_marked_endpoints_are_left_alone() {
        let plain = json!({"metadata": {"name": "db"}});
        let service = json!({"spec": {}});
        assert!(is_mirrored(&plain, &service));
        assert!(!is_mirrored(
            &plain,
            &json!({"spec": {"selector": {"a": "b"}}})
        ));
        assert!(!is_mirrored(
            &json!({"metadata": {"labels": {SKIP: "true"}}}),
            &service
        ));
        assert!(!is_mirrored(
            &json!({"metadata": {"annotations": {LEADER: "{}"}}}),
            &service
        ));
    }

    #[tokio::test]
    async fn slices_follow_endpoints_written_by_hand() {
        let stage = Stage::start(Mirroring::NAME).await;
        let default = "/api/v1/namespaces/default";
        let service = json!({"metadata": {"name": "db"}, "spec": {"ports": [{"port": 5432}]}});
        stage.create(&format!("{default}/services"), service).await;
        let endpoints = json!({"metadata": {"name": "db", "labels": {"tier": "data"}}, "subsets": [
            {"addresses": [{"ip": "192.0.2.1"}], "notReadyAddresses": [{"ip": "192.0.2.2"}], "ports": [{"port": 5432}]},
            {"addresses": [{"ip": "2001:db8::1"}], "ports": [{"port": 5432}]}]});
        stage
            .create(&format!("{default}/endpoints"), endpoints)
            .await;
        let slices = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices?labelSelector=kubernetes.io/service-name=db";
        let count = |list: &Value| list["items"].as_array().map_or(0, Vec::len);
        let list = stage.until(slices, |list| count(list) == 2).await;
        let items = list["items"].as_array().expect("items");
        let v4 = items
            .iter()
            .find(|s| s["addressType"] == "IPv4")
            .expect("a slice of IPv4");
        assert_eq!(
            v4["metadata"]["labels"],
            json!({"tier": "data", SERVICE_NAME: "db", MANAGED_BY: MANAGER})
        );
        assert_eq!(v4["metadata"]["ownerReferences"][0]["kind"], "Endpoints");
        assert_eq!(v4["endpoints"].as_array().map(Vec::len), Some(2));
        let patch =
            json!({"subsets": [{"addresses": [{"ip": "192.0.2.3"}], "ports": [{"port": 5432}]}]});
        stage
            .kube
            .merge(&format!("{default}/endpoints/db"), &patch)
            .await
            .expect("changed");
        stage
            .until(slices, |list| {
                count(list) == 1 && list["items"][0]["endpoints"][0]["addresses"][0] == "192.0.2.3"
            })
            .await;
        stage
            .kube
            .delete(&format!("{default}/endpoints/db"))
            .await
            .expect("deleted");
        stage.until(slices, |list| count(list) == 0).await;
    }
}
