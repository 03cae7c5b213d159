use super::*;
use serde_json::json;

fn service(kind: &str, more: Value) -> Value {
    let mut service = json!({"metadata": {"name": SERVICE, "namespace": "kube-system"}, "spec": {"type": kind, "clusterIP": "10.96.0.9",
        "ports": [{"name": "other", "port": 1, "nodePort": 2}, {"name": "tcp", "port": 10262, "nodePort": 31008}]}});
    if let (Some(service), Some(more)) = (service.as_object_mut(), more.as_object()) {
        for (key, value) in more {
            match service.get_mut(key).and_then(Value::as_object_mut) {
                Some(there) => there.extend(value.as_object().cloned().unwrap_or_default()),
                None => {
                    service.insert(key.clone(), value.clone());
                }
            }
        }
    }
    service
}

fn node(name: &str, edge: bool, addresses: Value) -> Arc<Value> {
    let labels = json!({EDGE_WORKER: edge.to_string()});
    Arc::new(
        json!({"metadata": {"name": name, "labels": labels}, "status": {"addresses": addresses}}),
    )
}

fn of(service: &Value, nodes: &[Arc<Value>]) -> Vec<String> {
    let found = published(service, &Value::Null, &[], nodes);
    found
        .addresses
        .iter()
        .map(ServerAddress::to_string)
        .collect()
}

#[test]
fn every_type_of_service_says_where_agents_dial() {
    let status = |ingress: Value| json!({"status": {"loadBalancer": {"ingress": ingress}}});
    let named = service(
        "LoadBalancer",
        status(json!([{"hostname": "lb.example"}, {"ip": "203.0.113.1"}])),
    );
    assert_eq!(of(&named, &[]), ["lb.example:10262", "203.0.113.1:10262"]);
    assert_eq!(
        of(&service("LoadBalancer", json!({})), &[]),
        [""; 0],
        "none yet is no error"
    );
    let nodes = [
        node(
            "c1",
            false,
            json!([{"type": "InternalIP", "address": "10.0.0.1"}, {"type": "Hostname", "address": "c1"}]),
        ),
        node(
            "c2",
            false,
            json!([{"type": "InternalIP", "address": "10.0.0.2"}, {"type": "ExternalIP", "address": "203.0.113.2"}]),
        ),
        node(
            "e1",
            true,
            json!([{"type": "InternalIP", "address": "192.168.0.1"}]),
        ),
    ];
    let by_node = service("NodePort", json!({}));
    assert_eq!(
        of(&by_node, &nodes),
        ["203.0.113.2:31008", "10.0.0.1:31008", "10.0.0.2:31008"]
    );
    let annotated = |text: &str| {
        service(
            "ClusterIP",
            json!({"metadata": {"annotations": {EXTERNAL_ADDRESS: text}}}),
        )
    };
    // Its port counts, and a name is as good as an address.
    assert_eq!(
        of(&annotated("tunnel.example:443, [fd00::1]:8443"), &[]),
        ["tunnel.example:443", "[fd00::1]:8443"]
    );
    assert_eq!(of(&annotated("a b"), &[]), [""; 0]);
    // Nobody outside reaches a cluster IP.
    assert_eq!(of(&service("ClusterIP", json!({})), &[]), [""; 0]);
    assert_eq!(
        published(&Value::Null, &Value::Null, &[], &[]).addresses,
        []
    );
}

#[test]
fn certificates_are_for_every_name_that_servers_are_reached_by() {
    let slices = [Arc::new(
        json!({"endpoints": [{"addresses": ["10.0.0.1"], "hostname": "server-0"}, {"addresses": ["fd00::5"]}]}),
    )];
    let internal = json!({"metadata": {"name": INTERNAL_SERVICE, "namespace": "kube-system"}, "spec": {"clusterIP": "None", "clusterIPs": ["10.96.0.10"]}});
    let status = json!({"status": {"loadBalancer": {"ingress": [{"hostname": "lb.example"}]}}});
    let found = published(&service("LoadBalancer", status), &internal, &slices, &[]);
    for name in [
        "lb.example",
        "x-tunnel-server-svc",
        "x-tunnel-server-svc.kube-system.svc.cluster.local",
        "x-tunnel-server-internal-svc.kube-system.svc",
        "server-0",
    ] {
        assert!(found.dns.contains(name), "{name}");
    }
    let ips: Vec<String> = found.ips.iter().map(IpAddr::to_string).collect();
    assert_eq!(
        ips,
        [
            "10.0.0.1",
            "10.96.0.9",
            "10.96.0.10",
            "127.0.0.1",
            "::1",
            "fd00::5"
        ]
    );
    assert!(!found.dns.contains("None"));
}

/// Against an API server: agents learn of servers, certificates of names, as they change.
#[tokio::test]
async fn what_is_published_is_followed() {
    use crate::cluster::Way;
    use yurt_controlplane::stage::Stage;
    let soon = Duration::from_secs(20);
    let stage = Stage::of(|_| {}).await;
    let stop = CancellationToken::new();
    let cluster = Cluster::new(Way::Given(stage.kube.clone(), String::new()), stop.clone());
    let mut agent = follow(cluster.clone(), "kube-system", Reader::Agent, stop.clone());
    let mut server = follow(cluster, "kube-system", Reader::Server, stop.clone());
    let own = node(
        "c1",
        false,
        json!([{"type": "InternalIP", "address": "10.0.0.1"}]),
    );
    stage.create("/api/v1/nodes", (*own).clone()).await;
    let kube = &stage.kube;
    kube.merge("/api/v1/nodes/c1/status", &json!({"status": own["status"]}))
        .await
        .expect("a status");
    let object = json!({"metadata": {"name": SERVICE, "namespace": "kube-system"},
        "spec": {"type": "NodePort", "ports": [{"name": "tcp", "port": 10262, "nodePort": 31008}]}});
    stage
        .create("/api/v1/namespaces/kube-system/services", object)
        .await;
    let at = |wanted: &'static str| {
        move |found: &Option<Published>| {
            let found = found
                .as_ref()
                .map(|p| p.addresses.iter().any(|a| a.to_string() == wanted));
            found.unwrap_or(false)
        }
    };
    let found = tokio::time::timeout(soon, agent.wait_for(at("10.0.0.1:31008"))).await;
    found.expect("in time").expect("an address");
    let annotation = json!({"metadata": {"annotations": {EXTERNAL_ADDRESS: "moved.example:443"}}});
    let path = format!("/api/v1/namespaces/kube-system/services/{SERVICE}");
    kube.merge(&path, &annotation).await.expect("annotated");
    let found = tokio::time::timeout(soon, agent.wait_for(at("moved.example:443"))).await;
    found.expect("in time").expect("an address");
    let named = |found: &Option<Published>| {
        found
            .as_ref()
            .is_some_and(|p| p.dns.contains("moved.example"))
    };
    let found = tokio::time::timeout(soon, server.wait_for(named)).await;
    found.expect("in time").expect("a name");
    stop.cancel();
}
