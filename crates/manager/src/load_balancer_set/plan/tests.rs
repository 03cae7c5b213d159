use super::*;

fn service(selector: &str) -> Value {
    json!({"metadata": {"namespace": "default", "name": "web", "uid": "s", "resourceVersion": "1", "generation": 1,
            "annotations": {NODE_POOL_SELECTOR: selector}, "finalizers": [POOL_SERVICE]},
        "spec": {"type": "LoadBalancer", "loadBalancerClass": "elb"}, "status": {}})
}

fn pools() -> Vec<Arc<Value>> {
    let pool = |name: &str, area: &str| json!({"metadata": {"name": name, "uid": name, "labels": {"area": area}}});
    [pool("p", "a"), pool("q", "a"), pool("r", "b")]
        .map(Arc::new)
        .into()
}

fn planned(service: &Value, own: &[Value]) -> Plan {
    let own: Vec<Arc<Value>> = own.iter().cloned().map(Arc::new).collect();
    let pools = pools();
    let found = Found {
        service,
        own: &own,
        pools: &pools,
    };
    let taken = |name: &str| {
        own.iter()
            .find(|object| Key::of(object).name == name)
            .cloned()
    };
    plan(&found, taken, Timestamp::UNIX_EPOCH)
}

/// The PoolServices of all pools that a service selects.
fn made(service: &Value) -> Vec<Value> {
    planned(service, &[]).apply
}

fn names(objects: &[Value]) -> Vec<String> {
    objects.iter().map(|object| Key::of(object).name).collect()
}

fn reason(plan: &Plan) -> Value {
    plan.status.as_ref().map_or(Value::Null, |status| {
        status["conditions"][0]["reason"].clone()
    })
}

#[test]
fn there_is_one_for_every_pool_that_fits() {
    let mut web = service("area=a");
    let plan = planned(&web, &[]);
    assert_eq!(names(&plan.apply), ["web-p", "web-q"]);
    assert_eq!(reason(&plan), "Reconciled");
    let first = &plan.apply[0];
    assert_eq!(
        first["metadata"]["labels"],
        json!({SERVICE_NAME: "web", POOL_NAME: "p", POOL_SERVICE_MANAGED_BY: POOL_SERVICE_MANAGER})
    );
    assert_eq!(
        controller_of(first).map(|owner| &owner["uid"]),
        Some(&json!("s"))
    );
    assert_eq!(
        first["metadata"]["ownerReferences"][1]["blockOwnerDeletion"],
        true
    );
    assert_eq!(first["spec"]["loadBalancerClass"], "elb");
    web["status"] = plan.status.expect("told");
    let later = planned(&web, &made(&web));
    assert!(
        later.apply.is_empty()
            && later.delete.is_empty()
            && later.metadata.is_none()
            && later.status.is_none(),
        "{later:?}"
    );
    // Other pools fit, or none.
    let plan = planned(&service("area=b"), &made(&web));
    assert_eq!(
        (names(&plan.apply), plan.delete.len()),
        (vec!["web-r".to_owned()], 2)
    );
    let plan = planned(&service("area=c"), &made(&web));
    assert_eq!(
        (plan.delete.len(), reason(&plan)),
        (2, json!("NoMatchNodePool"))
    );
}

#[test]
fn what_somebody_changes_is_put_right_and_what_is_somebodys_is_left() {
    let web = service("area=a");
    for change in [
        json!({"spec": {"loadBalancerClass": "other"}}),
        json!({"metadata": {"labels": {}}}),
        json!({"metadata": {"ownerReferences": [claim::reference(&SERVICES, &web)]}}),
    ] {
        let mut own = made(&web);
        for (part, fields) in change.as_object().expect("parts") {
            for (field, value) in fields.as_object().expect("fields") {
                own[0][part][field] = value.clone();
            }
        }
        let plan = planned(&web, &own);
        assert_eq!(
            (names(&plan.apply), plan.modified.len()),
            (vec!["web-p".to_owned()], 1),
            "{change}"
        );
    }
    let foreign = json!({"metadata": {"namespace": "default", "name": "web-p"}});
    let plan = planned(&web, &[foreign]);
    assert_eq!(
        (names(&plan.apply), reason(&plan)),
        (vec!["web-q".to_owned()], json!("ManagedConflict"))
    );
    assert!(plan.delete.is_empty());
}

#[test]
fn a_selector_that_cannot_be_read_changes_nothing() {
    let own = made(&service("area=a"));
    let plan = planned(&service("area in (a"), &own);
    assert!(plan.apply.is_empty() && plan.delete.is_empty());
    assert_eq!(reason(&plan), "InvalidSelector");
}

#[test]
fn what_pools_report_becomes_the_services() {
    let mut web = service("area=a");
    web["metadata"]["labels"] = json!({"aggregated.old": "x", "mine": "1"});
    let mut own = made(&web);
    own[0]["status"] = json!({"loadBalancer": {"ingress": [{"ip": "10.0.0.9"}]}, "aggregateToLabels": {"same": "v", "both": "a"},
        "aggregateToAnnotations": {"id": "1"}});
    own[1]["status"] = json!({"loadBalancer": {"ingress": [{"ip": "10.0.0.2", "ipMode": "VIP"}]}, "aggregateToLabels": {"same": "v", "both": "b"},
        "aggregateToAnnotations": {"id": "2"}});
    let plan = planned(&web, &own);
    let metadata = plan.metadata.clone().expect("new");
    assert_eq!(
        metadata["metadata"]["labels"],
        json!({"aggregated.old": null, "aggregated.same": "v"})
    );
    assert_eq!(
        metadata["metadata"]["annotations"],
        json!({"aggregated.id": "1,2"})
    );
    assert_eq!(
        reason(&plan),
        "InvalidAggregate",
        "no label can hold two values"
    );
    let status = plan.status.expect("new");
    assert_eq!(
        status["loadBalancer"]["ingress"],
        json!([{"ip": "10.0.0.2", "ipMode": "VIP"}, {"ip": "10.0.0.9"}])
    );
}

#[test]
fn a_service_that_wants_none_gives_all_back_and_is_let_go_last() {
    let set = service("area=a");
    let own = made(&set);
    for (field, value) in [
        ("type", json!("ClusterIP")),
        ("loadBalancerClass", Value::Null),
    ] {
        let mut web = set.clone();
        web["spec"][field] = value;
        let plan = planned(&web, &own);
        assert!(
            plan.delete.len() == 2 && plan.metadata.is_none(),
            "{plan:?}"
        );
        assert!(
            planned(&web, &[])
                .metadata
                .is_some_and(|patch| patch["metadata"]["finalizers"] == json!([]))
        );
        web["status"] = json!({"loadBalancer": {"ingress": [{"ip": "10.0.0.2"}]}});
        let plan = planned(&web, &[]);
        assert!(
            plan.metadata.is_none() && plan.status.is_some(),
            "addresses first"
        );
    }
    let mut deleted = set.clone();
    deleted["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
    assert_eq!(planned(&deleted, &own).delete.len(), 2);
    let mut never = set;
    never["metadata"]["finalizers"] = json!([]);
    never["spec"]["type"] = "ClusterIP".into();
    let plan = planned(&never, &[]);
    assert!(plan.metadata.is_none() && plan.status.is_none());
}
