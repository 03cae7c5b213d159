use super::*;

#[tokio::test]
async fn each_pool_has_a_workload_in_the_shape_of_openyurt() {
    let stage = Stage::start(CONTROLLERS).await;
    let _kubelet = kubelet(&stage);
    stage.define_pools(&["hangzhou", "beijing"]).await;
    let tweaks = json!([
        {"pools": ["beijing"], "tweaks": {"replicas": 1, "containerImages": [{"name": "web", "targetImage": "web:b"}],
            "patches": [{"operation": "add", "path": "/metadata/annotations/at", "value": "in-{{nodepool-name}}"}]}}]);
    let mut set = set(&json!({}), &tweaks);
    set["spec"]["workload"]["workloadTemplate"]["deploymentTemplate"]["metadata"]["annotations"] =
        json!({"note": "n"});
    stage.create(&sets(""), set).await;
    let told = ready(&stage, 2).await;
    let list = stage.kube.get(&path(&DEPLOYMENTS, "")).await.expect("list");
    assert_eq!(count(&list), 2);
    let revision = &told["status"]["currentRevision"];
    for (pool, replicas, image) in [("hangzhou", 2, "web:1"), ("beijing", 1, "web:b")] {
        let made = of_pool(&list, pool).expect("of the pool");
        assert!(name(made).starts_with(&format!("web-{pool}-")), "{made:#}");
        let labels = json!({"app": "web", "apps.openyurt.io/pool-name": pool,
            "apps.openyurt.io/controller-revision-hash": revision, "apps.openyurt.io/ref-yurtappset": "web"});
        assert_eq!(made["metadata"]["labels"], labels);
        assert_eq!(made["metadata"]["annotations"]["note"], "n");
        let owner = &made["metadata"]["ownerReferences"][0];
        assert_eq!(
            (&owner["kind"], &owner["uid"], &owner["controller"]),
            (&json!("YurtAppSet"), &told["metadata"]["uid"], &json!(true))
        );
        let spec = &made["spec"];
        assert_eq!(spec["replicas"], replicas);
        assert_eq!(super::image(made), image);
        assert_eq!(
            spec["selector"],
            json!({"matchLabels": {"app": "web", "apps.openyurt.io/pool-name": pool}})
        );
        assert_eq!(
            spec["template"]["metadata"]["labels"],
            json!({"app": "web", "apps.openyurt.io/pool-name": pool, "apps.openyurt.io/controller-revision-hash": revision})
        );
        assert_eq!(
            spec["template"]["spec"]["nodeSelector"],
            json!({"apps.openyurt.io/nodepool": pool})
        );
    }
    let beijing = of_pool(&list, "beijing").expect("of the pool");
    assert_eq!(beijing["metadata"]["annotations"]["at"], "in-beijing");
    let status = &told["status"];
    assert_eq!(status["totalWorkloads"], 2);
    assert_eq!(
        status["selector"],
        "app=web,apps.openyurt.io/pool-name notin (beijing)"
    );
    for kind in [
        "PoolFound",
        "AppDispatched",
        "AppUpdated",
        "AppDeleted",
        "AppReady",
    ] {
        assert!(condition::holds(status, kind), "{kind}: {status:#}");
    }
    let revisions = "/apis/apps/v1/namespaces/default/controllerrevisions";
    let revisions = stage.kube.get(revisions).await.expect("revisions");
    let ours = revisions["items"].as_array().into_iter().flatten();
    let ours: Vec<_> = ours
        .filter(|r| r["metadata"]["name"] == *revision)
        .collect();
    assert_eq!(ours[0]["data"]["spec"]["workload"]["$patch"], "replace");
    assert_eq!(
        ours[0]["metadata"]["labels"]["apps.openyurt.io/ref-yurtappset"],
        "web"
    );
    stage.quiet(&sets("web")).await;
    stage.quiet(&path(&DEPLOYMENTS, name(beijing))).await;
}

#[tokio::test]
async fn a_change_restarts_only_what_it_changes() {
    let stage = Stage::start(CONTROLLERS).await;
    let _kubelet = kubelet(&stage);
    stage.define_pools(&["a", "b"]).await;
    stage.create(&sets(""), set(&json!({}), &json!([]))).await;
    ready(&stage, 2).await;
    let before = stage.kube.get(&path(&DEPLOYMENTS, "")).await.expect("list");
    let tweak = |tweaks: Value| json!({"spec": {"workload": {"workloadTweaks": tweaks}}});
    // Replicas of one pool: no pod is replaced anywhere.
    let more = tweak(json!([{"pools": ["a"], "tweaks": {"replicas": 3}}]));
    change(&stage, &sets("web"), &more).await;
    let list = stage
        .until(&path(&DEPLOYMENTS, ""), |list| {
            of_pool(list, "a").is_some_and(|a| a["spec"]["replicas"] == 3)
        })
        .await;
    ready(&stage, 2).await;
    for pool in ["a", "b"] {
        let template =
            |list: &Value| of_pool(list, pool).expect("there")["spec"]["template"].clone();
        assert_eq!(template(&list), template(&before), "{pool}");
    }
    // The image of one pool: the other is not even written.
    let b = |list: &Value| of_pool(list, "b").expect("there")["metadata"]["generation"].clone();
    let other = tweak(
        json!([{"pools": ["a"], "tweaks": {"replicas": 3, "containerImages": [{"name": "web", "targetImage": "web:2"}]}}]),
    );
    change(&stage, &sets("web"), &other).await;
    let told = ready(&stage, 2).await;
    let list = stage
        .until(&path(&DEPLOYMENTS, ""), |list| {
            of_pool(list, "a").is_some_and(|a| image(a) == "web:2")
        })
        .await;
    assert_eq!(
        *revision(of_pool(&list, "a").expect("a")),
        told["status"]["currentRevision"]
    );
    assert_eq!(
        revision(of_pool(&list, "b").expect("b")),
        revision(of_pool(&before, "b").expect("b"))
    );
    assert_eq!(b(&list), b(&before));
    // Back: the old revision is the newest again.
    change(&stage, &sets("web"), &tweak(json!([]))).await;
    let told = ready(&stage, 2).await;
    assert_eq!(
        told["status"]["currentRevision"],
        *revision(of_pool(&before, "b").expect("b"))
    );
}

#[tokio::test]
async fn pools_come_and_go() {
    let stage = Stage::start(CONTROLLERS).await;
    stage.define_pools(&["a"]).await;
    let spec = json!({"nodepoolSelector": {"matchLabels": {"site": "x"}}, "pools": ["a", "later"]});
    stage.create(&sets(""), set(&spec, &json!([]))).await;
    let deployments = path(&DEPLOYMENTS, "");
    stage.until(&deployments, |list| count(list) == 1).await;
    stage.define_pools(&["later", "other"]).await;
    stage
        .until(&deployments, |list| of_pool(list, "later").is_some())
        .await;
    change(
        &stage,
        &NODE_POOLS.object_path(&yurt_controller::Key::new("", "other")),
        &json!({"metadata": {"labels": {"site": "x"}}}),
    )
    .await;
    stage.until(&deployments, |list| count(list) == 3).await;
    stage
        .kube
        .delete("/apis/apps.openyurt.io/v1beta2/nodepools/a")
        .await
        .expect("deleted");
    stage
        .until(&deployments, |list| {
            count(list) == 2 && of_pool(list, "a").is_none()
        })
        .await;
    // None is selected any more.
    change(
        &stage,
        &sets("web"),
        &json!({"spec": {"nodepoolSelector": null, "pools": []}}),
    )
    .await;
    let told = stage
        .until(&sets("web"), |set| {
            reason(set, "PoolFound") == "NoFindPools"
        })
        .await;
    assert_eq!(reason(&told, "AppReady"), "NoWorkloadFound");
    stage.until(&deployments, |list| count(list) == 0).await;
    let events = events(&stage, "web", "NoFindPools").await;
    assert_eq!(
        events
            .iter()
            .filter(|reason| *reason == "NoFindPools")
            .count(),
        1,
        "{events:?}"
    );
}

#[tokio::test]
async fn what_others_change_is_put_right_unless_they_scale() {
    let stage = Stage::start(CONTROLLERS).await;
    let _kubelet = kubelet(&stage);
    stage.define_pools(&["a"]).await;
    stage.create(&sets(""), set(&json!({}), &json!([]))).await;
    ready(&stage, 1).await;
    let list = stage.kube.get(&path(&DEPLOYMENTS, "")).await.expect("list");
    let before = of_pool(&list, "a").expect("there").clone();
    let deployment = path(&DEPLOYMENTS, name(&before));
    let drift = json!({"metadata": {"labels": {"app": null, "mine": "m"}}, "spec": {"replicas": 7, "paused": true,
        "template": {"spec": {"containers": [{"name": "web", "image": "evil:1"}], "nodeSelector": {"apps.openyurt.io/nodepool": "b"}}}}});
    change(&stage, &deployment, &drift).await;
    let put_right = stage
        .until(&deployment, |d| {
            image(d) == "web:1" && d["spec"]["replicas"] == 2
        })
        .await;
    assert_eq!(revision(&put_right), revision(&before));
    assert_eq!(
        put_right["spec"]["template"]["spec"]["nodeSelector"],
        before["spec"]["template"]["spec"]["nodeSelector"]
    );
    let labels = &put_right["metadata"]["labels"];
    assert_eq!(
        (&labels["app"], &labels["mine"]),
        (&json!("web"), &json!("m")),
        "others' stay"
    );
    assert_eq!(
        put_right["spec"]["paused"], true,
        "the set says nothing of it"
    );
    change(&stage, &deployment, &json!({"spec": {"paused": null}})).await;
    // As an autoscaler does.
    let scale = stage
        .kube
        .get(&format!("{deployment}/scale"))
        .await
        .expect("scale");
    let mut more = scale.clone();
    more["spec"]["replicas"] = 5.into();
    stage
        .kube
        .replace(&format!("{deployment}/scale"), &more)
        .await
        .expect("scaled");
    let newer = json!({"spec": {"workload": {"workloadTemplate": {"deploymentTemplate": template("web:2")}}}});
    change(&stage, &sets("web"), &newer).await;
    let updated = stage.until(&deployment, |d| image(d) == "web:2").await;
    assert_eq!(updated["spec"]["replicas"], 5);
    ready(&stage, 1).await;
    stage.quiet(&deployment).await;
    // The set says another number: that holds.
    let fewer = json!({"spec": {"workload": {"workloadTweaks": [{"pools": ["a"], "tweaks": {"replicas": 3}}]}}});
    change(&stage, &sets("web"), &fewer).await;
    stage
        .until(&deployment, |d| d["spec"]["replicas"] == 3)
        .await;
}

#[tokio::test]
async fn a_set_is_scaled_as_a_whole() {
    let stage = Stage::start(CONTROLLERS).await;
    let _kubelet = kubelet(&stage);
    stage.define_pools(&["a", "b", "c"]).await;
    let tweaks = json!([{"pools": ["c"], "tweaks": {"replicas": 1}}]);
    stage
        .create(&sets(""), set(&json!({"replicas": 3}), &tweaks))
        .await;
    ready(&stage, 3).await;
    let replicas = |list: &Value| {
        ["a", "b", "c"].map(|pool| {
            of_pool(list, pool).map_or(0, |d| d["spec"]["replicas"].as_i64().unwrap_or(-1))
        })
    };
    let list = stage.kube.get(&path(&DEPLOYMENTS, "")).await.expect("list");
    assert_eq!(replicas(&list), [2, 1, 1]);
    let scale = format!("{}/scale", sets("web"));
    let mut more = stage
        .until(&scale, |scale| scale["status"]["replicas"] == 3)
        .await;
    more["spec"]["replicas"] = 6.into();
    stage.kube.replace(&scale, &more).await.expect("scaled");
    stage
        .until(&path(&DEPLOYMENTS, ""), |list| replicas(list) == [3, 3, 1])
        .await;
    stage
        .until(&scale, |scale| scale["status"]["replicas"] == 6)
        .await;
}

#[tokio::test]
async fn a_patch_that_does_not_apply_is_told_and_others_go_on() {
    let stage = Stage::start(CONTROLLERS).await;
    stage.define_pools(&["a", "b", "c"]).await;
    let tweaks = json!([
        {"pools": ["a"], "tweaks": {"patches": [{"operation": "replace", "path": "/spec/nothing/here", "value": 1}]}},
        {"pools": ["b"], "tweaks": {"patches": [{"operation": "replace", "path": "/spec/template/spec/restartPolicy", "value": "Sometimes"}]}}]);
    stage.create(&sets(""), set(&json!({}), &tweaks)).await;
    let told = stage
        .until(&sets("web"), |set| {
            phase(set, "a") == "Failed"
                && phase(set, "b") == "Failed"
                && !phase(set, "c").is_empty()
                && set["status"]["totalWorkloads"] == 1
        })
        .await;
    let condition = condition::find(&told["status"], "AppDispatched").expect("told");
    assert_eq!(condition["reason"], "CreateWorkloadError");
    let message = condition["message"].as_str().expect("a message");
    assert!(
        message.contains("pool a: patch replace /spec/nothing/here"),
        "{message}"
    );
    assert!(message.contains("restartPolicy"), "{message}");
    stage.quiet(&sets("web")).await;
    let failures = events(&stage, "web", "Failed CreateWorkload").await;
    let failures = failures
        .iter()
        .filter(|reason| *reason == "Failed CreateWorkload");
    assert_eq!(failures.count(), 1);
    // What is right again is done.
    change(
        &stage,
        &sets("web"),
        &json!({"spec": {"workload": {"workloadTweaks": null}}}),
    )
    .await;
    stage
        .until(&path(&DEPLOYMENTS, ""), |list| count(list) == 3)
        .await;
}

#[tokio::test]
async fn specs_that_contradict_themselves_change_nothing_and_are_told() {
    let stage = Stage::start(CONTROLLERS).await;
    stage.define_pools(&["a"]).await;
    stage.create(&sets(""), set(&json!({}), &json!([]))).await;
    stage
        .until(&path(&DEPLOYMENTS, ""), |list| count(list) == 1)
        .await;
    let both = json!({"spec": {"workload": {"workloadTemplate": {"statefulSetTemplate": template("web:1")}}}});
    change(&stage, &sets("web"), &both).await;
    stage
        .until(&sets("web"), |set| {
            reason(set, "AppUpdated") == "InvalidTemplate"
        })
        .await;
    let other_kind =
        json!({"spec": {"workload": {"workloadTemplate": {"deploymentTemplate": null}}}});
    change(&stage, &sets("web"), &other_kind).await;
    stage
        .until(&sets("web"), |set| {
            reason(set, "AppUpdated") == "TemplateKindChanged"
        })
        .await;
    let bad = json!({"spec": {"workload": {"workloadTemplate": {"deploymentTemplate": template("web:1"), "statefulSetTemplate": null}},
        "nodepoolSelector": {"matchExpressions": [{"key": "a", "operator": "Near"}]}}});
    change(&stage, &sets("web"), &bad).await;
    let told = stage
        .until(&sets("web"), |set| {
            reason(set, "PoolFound") == "InvalidSelector"
        })
        .await;
    assert_eq!(
        told["status"]["observedGeneration"],
        told["metadata"]["generation"]
    );
    let list = stage.kube.get(&path(&DEPLOYMENTS, "")).await.expect("list");
    assert_eq!(count(&list), 1, "it stays");
}

#[tokio::test]
async fn stateful_sets_are_watched_and_long_names_are_cut() {
    let stage = Stage::start(CONTROLLERS).await;
    let _kubelet = kubelet(&stage);
    stage.define_pools(&["a"]).await;
    let long = "s".repeat(100);
    let mut set = set(&json!({}), &json!([]));
    let mut template = template("web:1");
    template["spec"]["serviceName"] = "web".into();
    set["metadata"]["name"] = (*long).into();
    set["spec"]["workload"]["workloadTemplate"] = json!({"statefulSetTemplate": template});
    stage.create(&sets(""), set).await;
    let told = stage
        .until(&sets(&long), |set| {
            set["status"]["readyWorkloads"] == 1 && set["status"]["updatedWorkloads"] == 1
        })
        .await;
    let list = stage
        .kube
        .get(&path(&STATEFUL_SETS, ""))
        .await
        .expect("list");
    let made = of_pool(&list, "a").expect("made");
    assert!(name(made).len() <= 52, "{}", name(made));
    let current = told["status"]["currentRevision"].as_str().expect("named");
    assert!(current.len() <= 63, "{current}");
    stage.kube.delete(&sets(&long)).await.expect("deleted");
    stage
        .until(&path(&STATEFUL_SETS, ""), |list| count(list) == 0)
        .await;
}

#[tokio::test]
async fn of_several_workloads_of_a_pool_one_is_kept() {
    let mut stage = Stage::start(CONTROLLERS).await;
    stage.define_pools(&["a"]).await;
    let made = stage.create(&sets(""), set(&json!({}), &json!([]))).await;
    let list = stage
        .until(&path(&DEPLOYMENTS, ""), |list| count(list) == 1)
        .await;
    stage.restart("");
    let mut second = list["items"][0].clone();
    let kept = name(&second).to_owned();
    second["metadata"] = json!({"name": "second", "labels": second["metadata"]["labels"], "annotations": second["metadata"]["annotations"],
        "ownerReferences": second["metadata"]["ownerReferences"]});
    assert_eq!(
        second["metadata"]["ownerReferences"][0]["uid"],
        made["metadata"]["uid"]
    );
    stage.create(&path(&DEPLOYMENTS, ""), second).await;
    stage.restart(CONTROLLERS);
    let list = stage
        .until(&path(&DEPLOYMENTS, ""), |list| count(list) == 1)
        .await;
    // Neither is ready: the older one, or of the same second the first by name.
    assert!([&*kept, "second"].contains(&name(&list["items"][0])));
    stage
        .until("/api/v1/namespaces/default/events", |list| {
            let mut events = list["items"].as_array().into_iter().flatten();
            events.any(|event| event["reason"] == "DuplicateWorkload")
        })
        .await;
}
