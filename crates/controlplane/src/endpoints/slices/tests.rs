use super::*;
use crate::stage::Stage;

fn pod(name: &str, ips: &[&str], ready: bool) -> Value {
    let status = if ready { "True" } else { "False" };
    let ips: Vec<Value> = ips.iter().map(|ip| json!({"ip": ip})).collect();
    json!({"metadata": {"name": name, "namespace": "d", "uid": name},
        "spec": {"nodeName": "n1", "hostname": name, "subdomain": "web", "containers": [{"ports": [{"name": "web", "containerPort": 8080}]}]},
        "status": {"phase": "Running", "podIPs": ips, "conditions": [{"type": "Ready", "status": status}]}})
}

fn node() -> Value {
    json!({"metadata": {"name": "n1", "labels": {"topology.kubernetes.io/zone": "z1"}}})
}

fn service(spec: Value) -> Value {
    json!({"metadata": {"name": "web", "namespace": "d", "uid": "service", "labels": {"app": "web"}}, "spec": spec})
}

#[test]
fn an_endpoint_says_all_there_is_to_say() {
    let service = service(json!({"clusterIP": "10.96.0.9"}));
    let shown = endpoint(
        &service,
        &pod("a", &["10.0.0.1", "fd00::1"], true),
        &node(),
        "IPv4",
    );
    let expected = json!({"addresses": ["10.0.0.1"], "nodeName": "n1", "zone": "z1", "hostname": "a",
        "conditions": {"ready": true, "serving": true, "terminating": false},
        "targetRef": {"kind": "Pod", "namespace": "d", "name": "a", "uid": "a"}});
    assert_eq!(shown, Some(expected));
    assert_eq!(
        endpoint(&service, &pod("a", &["10.0.0.1"], true), &node(), "IPv6"),
        None
    );
}

#[test]
fn a_terminating_pod_serves_but_is_not_ready_unless_that_is_published() {
    let mut pod = pod("a", &["10.0.0.1"], true);
    pod["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
    let conditions = |spec: Value| {
        endpoint(&service(spec), &pod, &node(), "IPv4").map(|e| e["conditions"].clone())
    };
    let terminating =
        |ready: bool| Some(json!({"ready": ready, "serving": true, "terminating": true}));
    assert_eq!(conditions(json!({})), terminating(false));
    assert_eq!(
        conditions(json!({"publishNotReadyAddresses": true})),
        terminating(true)
    );
}

#[test]
fn traffic_is_kept_near_when_the_service_asks_for_it() {
    let hints = |distribution: &str| {
        let service = service(json!({"trafficDistribution": distribution}));
        endpoint(&service, &pod("a", &["10.0.0.1"], true), &node(), "IPv4")
            .map(|e| e["hints"].clone())
    };
    assert_eq!(
        hints("PreferClose"),
        Some(json!({"forZones": [{"name": "z1"}]}))
    );
    assert_eq!(
        hints("PreferSameNode"),
        Some(json!({"forZones": [{"name": "z1"}], "forNodes": [{"name": "n1"}]}))
    );
    assert_eq!(hints("Else"), Some(Value::Null));
}

#[test]
fn families_and_ports_make_slices() {
    let dual = service(
        json!({"clusterIP": "10.96.0.9", "ipFamilies": ["IPv4", "IPv6"],
        "ports": [{"name": "http", "port": 80, "targetPort": "web", "protocol": "TCP"}]}),
    );
    let named = Arc::new(pod("a", &["10.0.0.1", "fd00::1"], true));
    let mut other = pod("b", &["10.0.0.2"], true);
    other["spec"]["containers"][0]["ports"][0]["containerPort"] = 9090.into();
    let node = Arc::new(node());
    let pods = [(named, node.clone()), (Arc::new(other), node)];
    let changes = changes(&template(&dual, None), &dual, &pods, &[]);
    let mut shapes: Vec<(String, String)> = changes
        .create
        .iter()
        .map(|s| {
            (
                s["addressType"].as_str().unwrap_or_default().into(),
                s["ports"][0]["port"].to_string(),
            )
        })
        .collect();
    shapes.sort();
    let shape = |family: &str, port: &str| (family.to_owned(), port.to_owned());
    assert_eq!(
        shapes,
        [
            shape("IPv4", "8080"),
            shape("IPv4", "9090"),
            shape("IPv6", "8080")
        ]
    );
    assert_eq!(changes.create[0]["metadata"]["generateName"], "web-");
    assert_eq!(
        changes.create[0]["metadata"]["labels"],
        json!({"app": "web", SERVICE_NAME: "web", MANAGED_BY: MANAGER})
    );
}

#[tokio::test]
async fn slices_follow_pods_and_services() {
    let stage = Stage::start(EndpointSlices::NAME).await;
    let default = "/api/v1/namespaces/default";
    stage
        .create("/api/v1/nodes", json!({"metadata": {"name": "n1"}}))
        .await;
    let service = json!({"metadata": {"name": "web", "labels": {"tier": "front"}},
        "spec": {"clusterIP": "None", "selector": {"app": "web"}, "ports": [{"port": 80}]}});
    stage.create(&format!("{default}/services"), service).await;
    let slices = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices?labelSelector=kubernetes.io/service-name=web";
    let empty = stage
        .until(slices, |list| {
            list["items"][0]["metadata"]["uid"].is_string()
        })
        .await;
    assert_eq!(empty["items"][0]["metadata"]["labels"][HEADLESS], "");
    assert_eq!(empty["items"][0]["metadata"]["labels"]["tier"], "front");
    let pod = json!({"metadata": {"name": "p", "labels": {"app": "web"}},
        "spec": {"nodeName": "n1", "containers": [{"name": "c", "image": "i"}]}});
    stage.create(&format!("{default}/pods"), pod).await;
    stage.report("default", "p", "Running", true).await;
    let ready = |list: &Value, ready: bool| {
        list["items"][0]["endpoints"][0]["conditions"]["ready"] == ready
    };
    let shown = stage.until(slices, |list| ready(list, true)).await;
    assert_eq!(
        shown["items"][0]["metadata"]["name"], empty["items"][0]["metadata"]["name"],
        "the empty slice was used"
    );
    assert!(shown["items"][0]["metadata"]["annotations"][super::super::TRIGGER_TIME].is_string());
    stage.report("default", "p", "Running", false).await;
    stage.until(slices, |list| ready(list, false)).await;
    stage.report("default", "p", "Failed", false).await;
    let left = stage
        .until(slices, |list| {
            list["items"][0]["endpoints"]
                .as_array()
                .is_none_or(Vec::is_empty)
        })
        .await;
    assert_eq!(left["items"].as_array().map(Vec::len), Some(1));
    let name = left["items"][0]["metadata"]["name"]
        .as_str()
        .expect("a name");
    let path = format!("/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/{name}");
    stage.kube.delete(&path).await.expect("deleted");
    stage
        .until(slices, |list| {
            list["items"]
                .as_array()
                .is_some_and(|i| i.len() == 1 && i[0]["metadata"]["name"] != name)
        })
        .await;
}
