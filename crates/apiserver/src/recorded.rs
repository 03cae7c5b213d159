//! Objects recorded from a real kube-apiserver, for golden tests.

use serde_json::Value;

const LISTS: &[&str] = &[
    include_str!("../../wire/tests/fixtures/kube-apiserver/list-configmaps.json"),
    include_str!("../../wire/tests/fixtures/kube-apiserver/list-deployments.json"),
    include_str!("../../wire/tests/fixtures/kube-apiserver/list-endpoints.json"),
    include_str!("../../wire/tests/fixtures/kube-apiserver/list-endpointslices.json"),
    include_str!("../../wire/tests/fixtures/kube-apiserver/list-events.json"),
    include_str!("../../wire/tests/fixtures/kube-apiserver/list-leases.json"),
    include_str!("../../wire/tests/fixtures/kube-apiserver/list-namespaces.json"),
    include_str!("../../wire/tests/fixtures/kube-apiserver/list-nodes.json"),
    include_str!("../../wire/tests/fixtures/kube-apiserver/list-pods.json"),
    include_str!("../../wire/tests/fixtures/kube-apiserver/list-replicasets.json"),
    include_str!("../../wire/tests/fixtures/kube-apiserver/list-secrets.json"),
    include_str!("../../wire/tests/fixtures/kube-apiserver/list-services.json"),
];

/// Every recorded object, with its apiVersion and kind.
pub(crate) fn objects() -> Vec<Value> {
    let mut out = Vec::new();
    for list in LISTS {
        let list: Value = serde_json::from_str(list).unwrap();
        let kind = list["kind"].as_str().unwrap().strip_suffix("List").unwrap();
        for item in list["items"].as_array().unwrap() {
            let mut item = item.clone();
            item["apiVersion"] = list["apiVersion"].clone();
            item["kind"] = Value::from(kind);
            out.push(item);
        }
    }
    out
}
