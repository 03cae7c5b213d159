use super::*;
use crate::stage::Stage;
use yurt_api::names::annotations::NODE_POOL_SELECTOR;

const SERVICE: &str = "/api/v1/namespaces/default/services/web";
const OBJECTS: &str = "/apis/network.openyurt.io/v1alpha1/namespaces/default/poolservices";

fn names(list: &Value) -> Vec<String> {
    let mut names: Vec<String> = items(&list["items"])
        .map(|object| Key::of(object).name)
        .collect();
    names.sort_unstable();
    names
}

fn is(service: &Value, reason: &str) -> bool {
    condition::find(&service["status"], plan::READY).is_some_and(|ready| ready["reason"] == reason)
}

#[tokio::test]
async fn pools_that_fit_have_a_load_balancer_each() {
    let stage = Stage::start_confined(LoadBalancerSets::NAME, crate::Settings::default()).await;
    stage.define_pools(&["p", "q"]).await;
    let label = async |pool: &str, area: Value| {
        let patch = json!({"metadata": {"labels": {"area": area}}});
        stage
            .kube
            .merge(&NODE_POOLS.object_path(&Key::new("", pool)), &patch)
            .await
            .expect("labelled");
    };
    label("p", "a".into()).await;
    let service = json!({"metadata": {"name": "web", "annotations": {NODE_POOL_SELECTOR: "area=a"}},
        "spec": {"type": "LoadBalancer", "loadBalancerClass": "example.com/elb", "ports": [{"port": 80}]}});
    stage
        .create("/api/v1/namespaces/default/services", service)
        .await;
    stage.until(OBJECTS, |list| names(list) == ["web-p"]).await;
    label("q", "a".into()).await;
    stage
        .until(OBJECTS, |list| names(list) == ["web-p", "web-q"])
        .await;
    for (name, ip) in [("web-p", "10.0.0.9"), ("web-q", "10.0.0.2")] {
        let status = json!({"status": {"loadBalancer": {"ingress": [{"ip": ip}]}, "aggregateToAnnotations": {"id": name}}});
        stage
            .kube
            .merge(&format!("{OBJECTS}/{name}/status"), &status)
            .await
            .expect("reported");
    }
    let both = json!([{"ip": "10.0.0.2"}, {"ip": "10.0.0.9"}]);
    let whole = |service: &Value| {
        let ips: Vec<&Value> = items(&service["status"]["loadBalancer"]["ingress"])
            .map(|i| &i["ip"])
            .collect();
        ips == [&both[0]["ip"], &both[1]["ip"]]
            && service["metadata"]["annotations"]["aggregated.id"] == "web-p,web-q"
    };
    let service = stage
        .until(SERVICE, |service| {
            whole(service) && is(service, "Reconciled")
        })
        .await;
    assert_eq!(
        service["metadata"]["finalizers"],
        json!(["poolservice.openyurt.io/resources"])
    );
    // Somebody meddles.
    let wrong = json!({"spec": {"loadBalancerClass": "other"}, "metadata": {"labels": {SERVICE_NAME: null}}});
    stage
        .kube
        .merge(&format!("{OBJECTS}/web-p"), &wrong)
        .await
        .expect("changed");
    let right = |object: &Value| {
        object["spec"]["loadBalancerClass"] == "example.com/elb"
            && object["metadata"]["labels"][SERVICE_NAME] == "web"
    };
    stage.until(&format!("{OBJECTS}/web-p"), right).await;
    let select = async |selector: Value| {
        let patch = json!({"metadata": {"annotations": {NODE_POOL_SELECTOR: selector}}});
        stage.kube.merge(SERVICE, &patch).await.expect("annotated");
    };
    select("area in (a".into()).await;
    stage
        .until(SERVICE, |service| is(service, "InvalidSelector"))
        .await;
    assert_eq!(
        names(&stage.kube.get(OBJECTS).await.expect("list")).len(),
        2,
        "nothing is taken away"
    );
    select("area=a".into()).await;
    stage
        .until(SERVICE, |service| is(service, "Reconciled"))
        .await;
    stage.quiet(SERVICE).await;
    stage.quiet(&format!("{OBJECTS}/web-q")).await;
    label("q", Value::Null).await;
    stage.until(OBJECTS, |list| names(list) == ["web-p"]).await;
    stage
        .until(SERVICE, |service| {
            service["metadata"]["annotations"]["aggregated.id"] == "web-p"
        })
        .await;
    // No set any more.
    select(Value::Null).await;
    stage.until(OBJECTS, |list| names(list).is_empty()).await;
    let plain = stage
        .until(SERVICE, |service| {
            service["metadata"]["finalizers"]
                .as_array()
                .is_none_or(Vec::is_empty)
        })
        .await;
    assert!(
        plain["metadata"]["annotations"]["aggregated.id"].is_null() && !is(&plain, "Reconciled")
    );
    assert!(
        items(&plain["status"]["loadBalancer"]["ingress"])
            .next()
            .is_none()
    );
    select("area=a".into()).await;
    stage.until(OBJECTS, |list| names(list) == ["web-p"]).await;
    stage.kube.delete(SERVICE).await.expect("deleted");
    stage.until(OBJECTS, |list| names(list).is_empty()).await;
    stage.until(SERVICE, |service| service["code"] == 404).await;
}
