use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;

mod kinds;

fn fixture(name: &str) -> Vec<u8> {
    let path = format!(
        "{}/tests/fixtures/kube-apiserver/{name}",
        env!("CARGO_MANIFEST_DIR")
    );
    std::fs::read(path).expect("fixture")
}

fn json_fixture(name: &str) -> Value {
    serde_json::from_slice(&fixture(name)).expect("JSON")
}

fn seconds(time: &str) -> i64 {
    age::parse(time).expect("time").as_second()
}

/// The pods as they were when the Table was recorded: the recorded watch, played to its end.
fn recorded_pods() -> Vec<Value> {
    let mut pods = BTreeMap::new();
    let events = fixture("watch-pods.json");
    for event in serde_json::Deserializer::from_slice(&events).into_iter::<Value>() {
        let event = event.expect("event");
        let name = event["object"]["metadata"]["name"]
            .as_str()
            .unwrap_or_default();
        if !name.is_empty() {
            pods.insert(name.to_owned(), event["object"].clone());
        }
    }
    pods.into_values().collect()
}

#[test]
fn a_recorded_pod_table_is_rendered() {
    let recorded = json_fixture("table-pods.json");
    let printer = Printer::of(&Gvk::from_api_version("v1", "Pod"));
    // The recorded ages are 22 s and 12 s.
    let now = seconds("2026-11-21T19:06:43Z");
    let mut rendered = table(
        &printer,
        &recorded["metadata"],
        &recorded_pods(),
        IncludeObject::Metadata,
        "v1",
        true,
        now,
    );
    assert_eq!(rendered["rows"], recorded["rows"]);
    // Descriptions are our own.
    let mut expected = recorded;
    for table in [&mut rendered, &mut expected] {
        for column in table["columnDefinitions"].as_array_mut().expect("columns") {
            column["description"] = Value::Null;
        }
    }
    assert_eq!(rendered, expected);
}

fn cells(api_version: &str, kind: &str, object: Value) -> Vec<Value> {
    let gvk = Gvk::from_api_version(api_version, kind);
    let printer = Printer::of(&gvk);
    let mut object = object;
    object["kind"] = json!(kind);
    object["metadata"]["name"] = json!("n");
    object["metadata"]["creationTimestamp"] = json!("2026-01-01T00:00:00Z");
    let cells = printer.cells(&object, seconds("2026-01-01T01:00:00Z"));
    assert_eq!(cells.len(), printer.columns().len(), "{kind}");
    cells
}

/// The status and the other first cells of a pod.
fn pod(spec: Value, status: Value) -> [String; 3] {
    let cells = cells("v1", "Pod", json!({"spec": spec, "status": status}));
    [1, 2, 3].map(|at| cells[at].as_str().expect("text").to_owned())
}

#[test]
fn pod_status() {
    let one = json!({"containers": [{"name": "a"}]});
    let two = json!({"containers": [{"name": "a"}, {"name": "b"}]});
    let init = json!({"containers": [{"name": "a"}], "initContainers": [{"name": "i"}, {"name": "s", "restartPolicy": "Always"}]});
    let done = json!({"terminated": {"exitCode": 0, "reason": "Completed"}});
    let cases = [
        (&one, json!({"phase": "Pending"}), ["0/1", "Pending", "0"]),
        (
            &one,
            json!({"phase": "Pending", "conditions": [{"type": "PodScheduled", "reason": "SchedulingGated"}]}),
            ["0/1", "SchedulingGated", "0"],
        ),
        (
            &one,
            json!({"phase": "Failed", "reason": "Evicted"}),
            ["0/1", "Evicted", "0"],
        ),
        (
            &one,
            json!({"phase": "Running", "containerStatuses": [{"restartCount": 3, "state": {"waiting": {"reason": "CrashLoopBackOff"}},
                "lastState": {"terminated": {"finishedAt": "2026-01-01T00:55:00Z"}}}]}),
            ["0/1", "CrashLoopBackOff", "3 (5m ago)"],
        ),
        (
            &one,
            json!({"phase": "Failed", "containerStatuses": [{"state": {"terminated": {"exitCode": 2}}}]}),
            ["0/1", "ExitCode:2", "0"],
        ),
        (
            &one,
            json!({"phase": "Failed", "containerStatuses": [{"state": {"terminated": {"exitCode": 137, "signal": 9}}}]}),
            ["0/1", "Signal:9", "0"],
        ),
        (
            &one,
            json!({"phase": "Failed", "containerStatuses": [{"state": {"terminated": {"reason": "OOMKilled"}}}]}),
            ["0/1", "OOMKilled", "0"],
        ),
        (
            &two,
            json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}],
                "containerStatuses": [{"state": done}, {"ready": true, "state": {"running": {}}}]}),
            ["1/2", "Running", "0"],
        ),
        (
            &two,
            json!({"phase": "Running", "containerStatuses": [{"state": done}, {"ready": true, "state": {"running": {}}}]}),
            ["1/2", "NotReady", "0"],
        ),
        (
            &init,
            json!({"phase": "Pending", "initContainerStatuses": [{"name": "i", "restartCount": 2, "state": {"running": {}}}]}),
            ["0/2", "Init:0/2", "2"],
        ),
        (
            &init,
            json!({"phase": "Pending", "initContainerStatuses": [{"name": "i", "state": {"waiting": {"reason": "ErrImagePull"}}}]}),
            ["0/2", "Init:ErrImagePull", "0"],
        ),
        (
            &init,
            json!({"phase": "Pending", "initContainerStatuses": [{"name": "i", "state": {"terminated": {"exitCode": 1}}}]}),
            ["0/2", "Init:ExitCode:1", "0"],
        ),
        (
            &init,
            json!({"phase": "Running",
                "initContainerStatuses": [
                    {"name": "i", "restartCount": 4, "state": done},
                    {"name": "s", "restartCount": 1, "ready": true, "started": true, "state": {"running": {}}},
                ],
                "containerStatuses": [{"ready": true, "restartCount": 1, "state": {"running": {}}}]}),
            ["2/2", "Running", "2"],
        ),
    ];
    for (spec, status, expected) in cases {
        assert_eq!(pod(spec.clone(), status.clone()), expected, "{status}");
    }
    let deleted = |status: Value| {
        cells(
            "v1",
            "Pod",
            json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}, "status": status}),
        )[2]
        .clone()
    };
    assert_eq!(deleted(json!({"phase": "Running"})), "Terminating");
    assert_eq!(deleted(json!({"phase": "Failed"})), "Failed");
    assert_eq!(
        deleted(json!({"phase": "Running", "reason": "NodeLost"})),
        "Unknown"
    );
}

#[test]
fn finished_pods_are_marked() {
    let printer = Printer::of(&Gvk::from_api_version("v1", "Pod"));
    let object =
        json!({"kind": "Pod", "metadata": {"name": "n"}, "status": {"phase": "Succeeded"}});
    let table = table(
        &printer,
        &json!({}),
        std::slice::from_ref(&object),
        IncludeObject::Object,
        "v1beta1",
        false,
        0,
    );
    assert_eq!(table["apiVersion"], "meta.k8s.io/v1beta1");
    assert_eq!(table["columnDefinitions"], Value::Null);
    assert_eq!(table["rows"][0]["object"], object);
    assert_eq!(table["rows"][0]["conditions"][0]["type"], "Completed");
    assert_eq!(table["rows"][0]["conditions"][0]["reason"], "Succeeded");
}

#[test]
fn rows_without_objects() {
    let printer = Printer::of(&Gvk::from_api_version("v1", "ConfigMap"));
    let table = table(
        &printer,
        &json!({}),
        &[json!({})],
        IncludeObject::None,
        "v1",
        true,
        0,
    );
    assert_eq!(
        table["rows"],
        json!([{"cells": ["", 0, "<unknown>"], "object": null}])
    );
    assert_eq!(
        IncludeObject::parse(Some("None")),
        Some(IncludeObject::None)
    );
    assert_eq!(IncludeObject::parse(None), Some(IncludeObject::Metadata));
    assert_eq!(IncludeObject::parse(Some("All")), None);
}

#[test]
fn recorded_nodes_and_services() {
    let now = seconds("2026-11-21T19:06:43Z");
    let row = |api_version: &str, kind: &str, list: &str, at: usize| {
        let printer = Printer::of(&Gvk::from_api_version(api_version, kind));
        let mut cells = printer.cells(&json_fixture(list)["items"][at], now);
        let age = printer
            .columns()
            .iter()
            .position(|c| c.name == "Age")
            .expect("age");
        assert!(
            cells[age]
                .as_str()
                .is_some_and(|a| a.ends_with('s') || a.contains('m')),
            "{cells:?}"
        );
        cells.remove(age);
        Value::Array(cells)
    };
    assert_eq!(
        row("v1", "Node", "list-nodes.json", 0),
        json!([
            "edge-1",
            "Ready",
            "<none>",
            "v0.0.0-master+8e16b12fda5b1dccc41a6de48b3e356cc7d5048b",
            "<none>",
            "<none>",
            "Debian GNU/Linux 12 (bookworm)",
            "6.18.44-fc-v657",
            "containerd://1.6.20",
        ])
    );
    let service = json_fixture("list-services.json")["items"][0].clone();
    let cells = row("v1", "Service", "list-services.json", 0);
    assert_eq!(cells[1], service["spec"]["type"]);
    assert_eq!(cells[2], service["spec"]["clusterIP"]);
    assert_eq!(cells[3], "<none>");
}

#[test]
fn crd_columns() {
    let printer = Printer::from_crd_columns(&json!([
        {"name": "Size", "type": "integer", "jsonPath": ".spec.size", "priority": 1},
        {"name": "Ready", "type": "string", "jsonPath": ".status.conditions[?(@.type==\"Ready\")].status", "description": "d"},
        {"name": "Since", "type": "date", "jsonPath": ".status.since"},
        {"name": "On", "type": "boolean", "jsonPath": ".spec.on"},
        {"name": "Load", "type": "number", "jsonPath": ".spec.load"},
        {"name": "List", "type": "string", "jsonPath": ".spec.list"},
        {"name": "Bad", "type": "string", "jsonPath": ".spec..x"},
    ]));
    assert_eq!(printer.columns()[1].priority, 1);
    assert_eq!(printer.columns()[2].description, "d");
    let now = seconds("2026-01-01T00:10:00Z");
    let full = json!({"metadata": {"name": "n"}, "spec": {"size": 3.9, "on": true, "load": 0.5, "list": ["a", 1]},
        "status": {"since": "2026-01-01T00:00:00Z", "conditions": [{"type": "Ready", "status": "True"}]}});
    assert_eq!(
        Value::Array(printer.cells(&full, now)),
        json!(["n", 3, "True", "10m", true, 0.5, "[\"a\",1]", null])
    );
    let wrong = json!({"metadata": {"name": "n"}, "spec": {"size": "x", "on": 1, "load": "y"}, "status": {"since": "soon"}});
    assert_eq!(
        Value::Array(printer.cells(&wrong, now)),
        json!(["n", null, null, "<invalid>", null, null, null, null])
    );
    assert_eq!(
        Printer::from_crd_columns(&json!([])).columns()[1].name,
        "Age"
    );
}

#[test]
fn durations_are_those_people_read() {
    for (seconds, text) in [
        (-2, "<invalid>"),
        (-1, "0s"),
        (0, "0s"),
        (119, "119s"),
        (120, "2m"),
        (121, "2m1s"),
        (599, "9m59s"),
        (600, "10m"),
        (3 * 3600 - 1, "179m"),
        (3 * 3600, "3h"),
        (8 * 3600 - 1, "7h59m"),
        (8 * 3600, "8h"),
        (48 * 3600, "2d"),
        (49 * 3600, "2d1h"),
        (8 * 86400, "8d"),
        (2 * 365 * 86400, "2y"),
        (3 * 365 * 86400 + 86400, "3y1d"),
        (9 * 365 * 86400, "9y"),
    ] {
        assert_eq!(human_duration(seconds), text, "{seconds}");
    }
}

fn any_json() -> impl Strategy<Value = Value> {
    let keys = prop::sample::select(vec![
        "metadata",
        "name",
        "creationTimestamp",
        "deletionTimestamp",
        "labels",
        "spec",
        "status",
        "containers",
        "conditions",
        "containerStatuses",
        "initContainerStatuses",
        "state",
        "terminated",
        "waiting",
        "exitCode",
        "type",
        "metrics",
        "selector",
        "rules",
        "subsets",
        "addresses",
        "ports",
        "versions",
        "subjects",
        "replicas",
        "template",
        "restartCount",
    ]);
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        prop::sample::select(vec!["", "Ready", "2026-01-01T00:00:00Z", "Resource", "x"])
            .prop_map(Value::from),
    ];
    leaf.prop_recursive(6, 64, 5, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::Array),
            prop::collection::vec((keys.clone(), inner), 0..6)
                .prop_map(|fields| fields.into_iter().map(|(k, v)| (k.to_owned(), v)).collect()),
        ]
    })
}

proptest! {
    #[test]
    fn every_printer_takes_any_object(object in any_json(), now in any::<i64>()) {
        for printer in [pod::PRINTERS, workloads::PRINTERS, network::PRINTERS, storage::PRINTERS, cluster::PRINTERS].into_iter().flatten() {
            let cells = (printer.cells)(Fields::of(&object), now);
            prop_assert_eq!(cells.len(), printer.columns.len(), "{}", printer.kind);
        }
    }
}
