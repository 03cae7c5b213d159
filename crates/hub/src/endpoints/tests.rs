use super::*;
use proptest::prelude::*;
use serde_json::json;

const NODE: &str = "edge-1";

fn place() -> Place {
    Place {
        node: NODE.into(),
        zone: Some("z".into()),
    }
}

fn pod(name: &str, ips: &[&str], ready: bool) -> Value {
    let podips: Vec<Value> = ips.iter().map(|ip| json!({"ip": ip})).collect();
    json!({
        "metadata": {"namespace": "d", "name": name, "uid": format!("u-{name}"), "labels": {"app": "web"}},
        "spec": {"nodeName": NODE, "containers": [{"ports": [{"name": "http", "containerPort": 8080}]}]},
        "status": {"phase": "Running", "podIPs": podips,
            "conditions": [{"type": "Ready", "status": if ready {"True"} else {"False"}}]},
    })
}

fn local(pod: Value) -> LocalPod {
    let text = |field: &str| {
        pod["metadata"][field]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    };
    LocalPod {
        namespace: text("namespace"),
        name: text("name"),
        uid: text("uid"),
        pod: Some(pod),
        created_here: false,
    }
}

fn gone(name: &str) -> LocalPod {
    LocalPod {
        pod: None,
        ..local(pod(name, &[], false))
    }
}

fn with(mut object: Value, pointer: &str, value: Value) -> Value {
    let (parent, field) = pointer.rsplit_once('/').unwrap_or(("", pointer));
    if let Some(parent) = object.pointer_mut(parent) {
        parent[field] = value;
    }
    object
}

fn service() -> Value {
    json!({"metadata": {"namespace": "d", "name": "web"},
        "spec": {"selector": {"app": "web"}, "clusterIP": "10.96.0.1", "ports": [{"port": 80, "targetPort": "http"}]}})
}

fn endpoint(name: &str, ip: &str, node: &str, ready: bool) -> Value {
    json!({"addresses": [ip], "conditions": {"ready": ready, "serving": ready, "terminating": false}, "nodeName": node,
        "targetRef": {"kind": "Pod", "namespace": "d", "name": name, "uid": format!("u-{name}")}})
}

fn slice(endpoints: Value) -> Value {
    json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"namespace": "d", "name": "web-x", "resourceVersion": "7", "labels": {
            SERVICE_NAME: "web", "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io"}},
        "endpoints": endpoints, "ports": [{"name": "", "port": 8080, "protocol": "TCP"}]})
}

/// The endpoints of one slice after.
fn derived(slice: &Value, service: Option<&Value>, pods: &[LocalPod]) -> Value {
    let out = slice::derive(std::slice::from_ref(slice), service, pods, &place());
    assert_eq!(out.len(), 1);
    assert_eq!(
        out[0]["metadata"], slice["metadata"],
        "the cloud's revision is kept"
    );
    out[0]["endpoints"].clone()
}

#[test]
fn addresses_and_conditions_follow_the_pods_of_the_node() {
    let before = slice(json!([
        endpoint("a", "10.0.0.1", NODE, true),
        endpoint("b", "10.0.0.2", NODE, false),
        endpoint("c", "10.0.1.1", "edge-2", true),
        endpoint("e", "10.0.0.5", NODE, true),
    ]));
    let pods = [
        local(pod("a", &["10.0.0.8", "fd00::8"], false)),
        local(pod("b", &["10.0.0.9"], true)),
        gone("e"),
    ];
    assert_eq!(
        derived(&before, Some(&service()), &pods),
        json!([
            endpoint("a", "10.0.0.8", NODE, false),
            endpoint("b", "10.0.0.9", NODE, true),
            endpoint("c", "10.0.1.1", "edge-2", true),
        ])
    );
    assert_eq!(derived(&before, Some(&service()), &[]), before["endpoints"]);
}

#[test]
fn pods_that_end_finish_or_have_no_address_leave() {
    let before = slice(json!([endpoint("a", "10.0.0.1", NODE, true)]));
    let a = || pod("a", &["10.0.0.1"], true);
    let finished = with(a(), "/status/phase", "Succeeded".into());
    let without = pod("a", &[], true);
    for pod in [finished, without] {
        assert_eq!(derived(&before, None, &[local(pod)]), json!([]));
    }
    let ending = with(
        a(),
        "/metadata/deletionTimestamp",
        "2026-11-22T00:00:00Z".into(),
    );
    let mut want = endpoint("a", "10.0.0.1", NODE, true);
    want["conditions"] = json!({"ready": false, "serving": true, "terminating": true});
    assert_eq!(derived(&before, None, &[local(ending)]), json!([want]));
    // another pod of the name is not meant
    let other = with(a(), "/metadata/uid", "other".into());
    let other = with(other, "/status/podIPs", json!([{"ip": "10.0.0.7"}]));
    assert_eq!(derived(&before, None, &[local(other)]), before["endpoints"]);
    // nor is one in another namespace
    let elsewhere = with(
        pod("a", &["10.0.0.7"], true),
        "/metadata/namespace",
        "n".into(),
    );
    assert_eq!(
        derived(&before, None, &[local(elsewhere)]),
        before["endpoints"]
    );
}

#[test]
fn published_addresses_stay_ready_and_host_addresses_stay() {
    let before = slice(json!([endpoint("a", "10.0.0.1", NODE, true)]));
    let publishing = with(service(), "/spec/publishNotReadyAddresses", true.into());
    let unready = [local(pod("a", &["10.0.0.2"], false))];
    let mut want = endpoint("a", "10.0.0.2", NODE, true);
    want["conditions"]["serving"] = false.into();
    assert_eq!(derived(&before, Some(&publishing), &unready), json!([want]));
    // the service is not known: the slice shows that it publishes
    let shows = slice(json!([want.clone()]));
    assert_eq!(derived(&shows, None, &unready), json!([want]));
    let host = with(pod("a", &[], true), "/spec/hostNetwork", true.into());
    assert_eq!(derived(&before, None, &[local(host)]), before["endpoints"]);
}

#[test]
fn each_slice_takes_the_addresses_of_its_family() {
    let mut six = slice(json!([endpoint("a", "fd00::1", NODE, true)]));
    six["addressType"] = "IPv6".into();
    let pods = [local(pod("a", &["10.0.0.8", "fd00::8"], true))];
    assert_eq!(
        derived(&six, Some(&service()), &pods),
        json!([endpoint("a", "fd00::8", NODE, true)])
    );
    let mut names = slice(json!([endpoint("a", "a.example", NODE, true)]));
    names["addressType"] = "FQDN".into();
    assert_eq!(derived(&names, None, &pods), names["endpoints"]);
}

#[test]
fn a_pod_that_had_no_address_at_the_cut_gets_an_endpoint() {
    let pods = [local(pod("new", &["10.0.0.8"], true))];
    let mut want = endpoint("new", "10.0.0.8", NODE, true);
    want["zone"] = "z".into();
    let empty = with(slice(Value::Null), "/ports", Value::Null);
    let out = slice::derive(
        std::slice::from_ref(&empty),
        Some(&service()),
        &pods,
        &place(),
    );
    assert_eq!(out[0]["endpoints"], json!([want]));
    assert_eq!(
        out[0]["ports"],
        json!([{"name": "", "port": 8080, "protocol": "TCP"}])
    );
    // as its neighbours on the node say
    let mut neighbour = endpoint("a", "10.0.0.1", NODE, true);
    neighbour["zone"] = "told".into();
    want["zone"] = "told".into();
    let before = slice(json!([neighbour]));
    assert_eq!(
        derived(&before, Some(&service()), &pods),
        json!([neighbour, want])
    );
}

#[test]
fn nothing_is_added_where_it_is_not_certain() {
    let before = slice(json!([endpoint("a", "10.0.0.1", NODE, true)]));
    let new = || pod("new", &["10.0.0.8"], true);
    let unchanged = |service: &Value, pod: Value, before: &Value| {
        assert_eq!(
            derived(before, Some(service), &[local(pod)]),
            before["endpoints"]
        );
    };
    let other_labels = with(new(), "/metadata/labels", json!({"app": "db"}));
    unchanged(&service(), other_labels, &before);
    let deleting = with(
        new(),
        "/metadata/deletionTimestamp",
        "2026-11-22T00:00:00Z".into(),
    );
    unchanged(&service(), deleting, &before);
    let nameless = with(new(), "/spec/containers", json!([{}]));
    unchanged(&service(), nameless, &before);
    let other_port = with(
        service(),
        "/spec/ports",
        json!([{"port": 80, "targetPort": 99}]),
    );
    unchanged(&other_port, new(), &before);
    let by_hand = with(service(), "/spec/selector", Value::Null);
    unchanged(&by_hand, new(), &before);
    let elsewhere = with(
        before.clone(),
        "/metadata/labels",
        json!({SERVICE_NAME: "web", "endpointslice.kubernetes.io/managed-by": "somebody"}),
    );
    unchanged(&service(), new(), &elsewhere);
    // it is in another slice of the service already
    let second = slice(json!([endpoint("new", "10.0.0.3", NODE, true)]));
    let out = slice::derive(
        &[before.clone(), second],
        Some(&service()),
        &[local(new())],
        &place(),
    );
    assert_eq!(out[0], before);
    assert_eq!(out[1]["endpoints"][0]["addresses"], json!(["10.0.0.8"]));
}

fn address(name: &str, ip: &str, node: &str) -> Value {
    json!({"ip": ip, "nodeName": node, "targetRef": {"kind": "Pod", "namespace": "d", "name": name, "uid": format!("u-{name}")}})
}

fn legacy_of(subsets: Value, service: Option<&Value>, pods: &[LocalPod]) -> Value {
    let before = json!({"metadata": {"namespace": "d", "name": "web"}, "subsets": subsets});
    legacy::derive(&before, service, pods, &place())["subsets"].clone()
}

#[test]
fn endpoints_move_between_ready_and_not_ready() {
    let ports = json!([{"port": 8080, "protocol": "TCP"}]);
    let before = json!([{"addresses": [address("a", "10.0.0.1", NODE), address("c", "10.0.1.1", "edge-2")],
        "notReadyAddresses": [address("b", "10.0.0.2", NODE)], "ports": ports}]);
    let pods = [
        local(pod("a", &["10.0.0.8"], false)),
        local(pod("b", &["10.0.0.9"], true)),
        local(pod("new", &["10.0.0.10"], true)),
    ];
    assert_eq!(
        legacy_of(before.clone(), Some(&service()), &pods),
        json!([{"addresses": [address("c", "10.0.1.1", "edge-2"), address("b", "10.0.0.9", NODE), address("new", "10.0.0.10", NODE)],
            "notReadyAddresses": [address("a", "10.0.0.8", NODE)], "ports": ports}])
    );
    assert_eq!(legacy_of(before.clone(), None, &[]), before);
    let alone = json!([{"addresses": [address("a", "10.0.0.1", NODE)], "ports": ports}]);
    assert_eq!(legacy_of(alone, None, &[gone("a")]), json!([]));
    assert_eq!(
        legacy_of(Value::Null, Some(&service()), &pods[1..2]),
        json!([{"addresses": [address("b", "10.0.0.9", NODE)], "ports": ports}])
    );
    assert_eq!(legacy_of(Value::Null, None, &[gone("a")]), Value::Null);
}

#[test]
fn facts_are_what_services_see() {
    let a = pod("a", &["10.0.0.1"], true);
    let touched = with(a.clone(), "/status/message", "touched".into());
    assert!(facts(&a) == facts(&touched));
    for (pointer, value) in [
        ("/status/podIPs", json!([{"ip": "10.0.0.2"}])),
        ("/status/phase", json!("Failed")),
        ("/status/conditions", json!([])),
        ("/metadata/deletionTimestamp", json!("2026-11-22T00:00:00Z")),
        ("/metadata/uid", json!("other")),
    ] {
        let other = with(a.clone(), pointer, value);
        assert!(facts(&a) != facts(&other), "{pointer}");
    }
}

/// Where there are values within a value.
fn pointers(value: &Value, at: &str, out: &mut Vec<String>) {
    out.push(at.to_owned());
    match value {
        Value::Object(map) => map.iter().for_each(|(name, inner)| {
            let name = name.replace('~', "~0").replace('/', "~1");
            pointers(inner, &format!("{at}/{name}"), out);
        }),
        Value::Array(list) => list.iter().enumerate().for_each(|(index, inner)| {
            pointers(inner, &format!("{at}/{index}"), out);
        }),
        _ => {}
    }
}

proptest! {
    /// Another node of the pool tells of objects whose parts are not what they should be: the hub goes on.
    #[test]
    fn nonsense_is_passed_on(
        spoilt in prop::collection::vec((0usize..4, any::<prop::sample::Index>(), 0usize..6), 0..6),
        bare in any::<bool>(),
    ) {
        let mut service = service();
        if bare {
            service["spec"] = json!({"selector": {"app": "web"}, "clusterIP": "None"});
        }
        let known = pod("web-0", &["10.0.0.9"], true);
        let pods = vec![known.clone(), pod("web-1", &["10.0.0.8"], false)];
        let subset = json!({"addresses": [address("web-0", "10.0.0.1", NODE)], "ports": [{"port": 8080}]});
        let mut values = [
            service,
            slice(json!([endpoint("web-0", "10.0.0.1", NODE, true)])),
            json!({"metadata": {"namespace": "d", "name": "web"}, "subsets": [subset, {}]}),
            Value::from(pods),
        ];
        for (which, place, nonsense) in spoilt {
            let mut places = Vec::new();
            pointers(&values[which], "", &mut places);
            // What is no object has no key, and is not kept.
            places.retain(|place| !place.is_empty());
            if places.is_empty() {
                continue;
            }
            let place: &String = place.get(&places);
            if let Some(value) = values[which].pointer_mut(place) {
                *value = [json!("x"), json!(7), json!([]), json!({}), Value::Null, json!(["x", null])][nonsense].clone();
            }
        }
        let [service, slice, endpoints, pods] = values;
        let pods: Vec<LocalPod> = pod::items(&pods).cloned().map(local).collect();
        for service in [Some(&service), None] {
            slice::derive(std::slice::from_ref(&slice), service, &pods, &place());
            legacy::derive(&endpoints, service, &pods, &place());
        }
    }
}

#[test]
fn subsets_that_are_none_do_not_get_addresses() {
    let mut headless = service();
    headless["spec"] = json!({"selector": {"app": "web"}, "clusterIP": "None"});
    let pods = [local(pod("web-0", &["10.0.0.9"], true))];
    let subsets = legacy_of(json!(["x"]), Some(&headless), &pods);
    assert_eq!(subsets[0], "x");
    assert_eq!(subsets[1]["addresses"][0]["ip"], "10.0.0.9");
}
