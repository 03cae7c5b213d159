//! Endpoints of nodes that are spoken for.

use super::*;

#[tokio::test]
async fn endpoints_of_a_node_that_is_spoken_for_stay_ready() {
    let scene = Scene::start().await;
    let _manager = scene.served(Options::default()).await;
    let stage = &scene.stage;
    for (name, autonomous) in [("kept", "true"), ("lost", "false")] {
        let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "annotations": {annotations::AUTONOMY: autonomous}},
            "spec": {"taints": [{"key": taints::UNSCHEDULABLE, "value": "true", "effect": "NoSchedule"}]}});
        stage.create("/api/v1/nodes", node).await;
        let pods = "/api/v1/namespaces/default/pods";
        stage
            .create(pods, json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {"nodeName": name, "containers": [{"name": "a", "image": "a"}]}}))
            .await;
        let status = json!({"status": {"phase": "Running", "conditions": [
            {"type": "Ready", "status": "False"}, {"type": "ContainersReady", "status": "True"}]}});
        stage
            .kube
            .merge(&format!("{pods}/{name}/status"), &status)
            .await
            .expect("reported");
    }
    let endpoint = |name: &str, ip: &str| {
        json!({"addresses": [ip], "nodeName": name, "conditions": {"ready": false, "serving": false},
        "targetRef": {"kind": "Pod", "namespace": "default", "name": name}})
    };
    let slices = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices";
    let slice = json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "endpoints": [endpoint("kept", "10.0.0.1"), endpoint("lost", "10.0.0.2")]});
    let ready =
        |slice: &Value| [0, 1].map(|i| slice["endpoints"][i]["conditions"]["ready"] == true);
    // The cache of the nodes may not have come to them yet: then the slice is as it was, never refused.
    let mut seen = [false, false];
    for attempt in 0..200 {
        let mut named = slice.clone();
        named["metadata"] = json!({"name": format!("s{attempt}")});
        let made = stage.create(slices, named).await;
        seen = ready(&made);
        if seen[0] {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(seen, [true, false], "new slices too");
    let address = |name: &str, ip: &str| json!({"ip": ip, "nodeName": name, "targetRef": {"kind": "Pod", "namespace": "default", "name": name}});
    let endpoints = json!({"apiVersion": "v1", "kind": "Endpoints", "metadata": {"name": "web"}, "subsets": [
        {"notReadyAddresses": [address("kept", "10.0.0.1"), address("lost", "10.0.0.2")], "ports": [{"port": 80}]}]});
    let made = stage
        .create("/api/v1/namespaces/default/endpoints", endpoints)
        .await;
    let subset = &made["subsets"][0];
    assert_eq!(subset["addresses"][0]["ip"], "10.0.0.1", "{made}");
    assert_eq!(subset["notReadyAddresses"][0]["ip"], "10.0.0.2", "{made}");
}

#[tokio::test]
async fn a_service_keeps_the_pods_of_an_autonomous_node_that_falls_silent() {
    let mut scene = Scene::start().await;
    let _manager = scene.served(Options::default()).await;
    let settings = native::Settings {
        nodes: native::NodeMonitor {
            period: Duration::from_millis(100),
            grace: Duration::from_secs(3),
            startup_grace: Duration::from_secs(3),
        },
        ..native::Settings::default()
    };
    let controllers = "node-lifecycle-controller,endpointslice-controller,endpoints-controller";
    let controllers: native::Selection = controllers.parse().expect("known controllers");
    scene
        .stage
        .restart_with(|context| native::start_in(&controllers, &settings, context));
    let stage = &scene.stage;
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"}, "spec": {"selector": {"app": "web"}, "ports": [{"port": 80}]}});
    stage
        .create("/api/v1/namespaces/default/services", service)
        .await;
    let pods = "/api/v1/namespaces/default/pods";
    for (name, ip, autonomy) in [("kept", "10.0.0.1", "1h"), ("lost", "10.0.0.2", "")] {
        let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "annotations": {annotations::AUTONOMY_DURATION: autonomy}}});
        stage.create("/api/v1/nodes", node).await;
        let now = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        let ready = json!({"status": {"conditions": [{"type": "Ready", "status": "True", "lastHeartbeatTime": now, "lastTransitionTime": now}]}});
        stage
            .kube
            .merge(&format!("/api/v1/nodes/{name}/status"), &ready)
            .await
            .expect("reported");
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": "web"}},
            "spec": {"nodeName": name, "containers": [{"name": "a", "image": "a"}]}});
        stage.create(pods, pod).await;
        let status = json!({"status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}], "conditions": [
            {"type": "Ready", "status": "True", "lastTransitionTime": now}, {"type": "ContainersReady", "status": "True", "lastTransitionTime": now}]}});
        stage
            .kube
            .merge(&format!("{pods}/{name}/status"), &status)
            .await
            .expect("reported");
    }
    // The nodes fall silent: nobody reports any more, and their pods are taken for not ready.
    for name in ["kept", "lost"] {
        stage
            .until(&format!("{pods}/{name}"), |pod| {
                let ready = yurt_controller::condition::find(&pod["status"], "Ready");
                ready.is_some_and(|ready| ready["status"] == "False")
            })
            .await;
    }
    let slices = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices";
    let ready_of = |list: &Value, wanted: &str| {
        let slices = yurt_controller::fields::items(&list["items"]);
        let mut endpoints =
            slices.flat_map(|slice| yurt_controller::fields::items(&slice["endpoints"]));
        endpoints
            .find(|endpoint| endpoint["targetRef"]["name"] == wanted)
            .map(|endpoint| endpoint["conditions"]["ready"] == true)
    };
    stage
        .until(slices, |list| {
            ready_of(list, "kept") == Some(true) && ready_of(list, "lost") == Some(false)
        })
        .await;
    let endpoints = "/api/v1/namespaces/default/endpoints/web";
    stage
        .until(endpoints, |endpoints| {
            let of = |field: &str| endpoints["subsets"][0][field][0]["ip"].clone();
            of("addresses") == "10.0.0.1" && of("notReadyAddresses") == "10.0.0.2"
        })
        .await;
}
