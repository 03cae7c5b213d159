use crate::client::{CONFIG_MAPS, Cluster, PODS, config_map, pod, revision};
use serde_json::{Value, json};
use yurt_apiserver::{Config, storage::WindowLimits};

fn names(list: &Value) -> Vec<String> {
    list["items"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|item| {
            item["metadata"]["name"]
                .as_str()
                .unwrap_or_default()
                .to_owned()
        })
        .collect()
}

#[tokio::test]
async fn pages_show_one_moment_even_when_objects_change_between_them() {
    let cluster = Cluster::start().await;
    for name in ["a", "b", "c", "d", "e"] {
        cluster
            .post(CONFIG_MAPS, &config_map(name))
            .await
            .expect(201);
    }
    let first = cluster
        .get(&format!("{CONFIG_MAPS}?limit=2"))
        .await
        .expect(200);
    assert_eq!(names(&first), ["a", "b"]);
    assert_eq!(first["metadata"]["remainingItemCount"], 3);
    let token = first["metadata"]["continue"]
        .as_str()
        .expect("a token")
        .to_owned();

    cluster
        .delete(&format!("{CONFIG_MAPS}/c"))
        .await
        .expect(200);
    cluster
        .post(CONFIG_MAPS, &config_map("bb"))
        .await
        .expect(201);
    cluster
        .merge(&format!("{CONFIG_MAPS}/d"), &json!({"data": {"a": "new"}}))
        .await
        .expect(200);

    let second = cluster
        .get(&format!("{CONFIG_MAPS}?limit=2&continue={token}"))
        .await
        .expect(200);
    assert_eq!(names(&second), ["c", "d"]);
    assert_eq!(second["items"][1]["data"]["a"], "b", "as it was then");
    assert_eq!(revision(&second), revision(&first));
    let token = second["metadata"]["continue"].as_str().expect("a token");
    let third = cluster
        .get(&format!("{CONFIG_MAPS}?limit=2&continue={token}"))
        .await
        .expect(200);
    assert_eq!(names(&third), ["e"]);
    assert!(third["metadata"].get("continue").is_none());
}

#[tokio::test]
async fn a_page_of_a_forgotten_moment_is_expired() {
    let cluster = Cluster::with(Config {
        window: WindowLimits {
            changes: 4,
            bytes: 1 << 20,
        },
        ..Config::default()
    })
    .await;
    for name in ["a", "b", "c"] {
        cluster
            .post(CONFIG_MAPS, &config_map(name))
            .await
            .expect(201);
    }
    let first = cluster
        .get(&format!("{CONFIG_MAPS}?limit=1"))
        .await
        .expect(200);
    let token = first["metadata"]["continue"]
        .as_str()
        .expect("a token")
        .to_owned();
    for n in 0..6 {
        cluster
            .merge(
                &format!("{CONFIG_MAPS}/a"),
                &json!({"data": {"n": n.to_string()}}),
            )
            .await
            .expect(200);
    }
    let expired = cluster
        .get(&format!("{CONFIG_MAPS}?limit=1&continue={token}"))
        .await
        .expect(410);
    assert_eq!(expired["reason"], "Expired");
    let newer = expired["metadata"]["continue"].as_str().expect("a token");
    let rest = cluster
        .get(&format!("{CONFIG_MAPS}?limit=1&continue={newer}"))
        .await
        .expect(200);
    assert_eq!(names(&rest), ["b"], "it goes on where it was");
    assert_ne!(revision(&rest), revision(&first), "at a newer state");
    let exact = format!(
        "{CONFIG_MAPS}?resourceVersion={}&resourceVersionMatch=Exact",
        revision(&first)
    );
    assert_eq!(cluster.get(&exact).await.expect(410)["reason"], "Expired");
}

#[tokio::test]
async fn a_list_shows_past_moments_that_are_still_known() {
    let cluster = Cluster::start().await;
    cluster
        .post(CONFIG_MAPS, &config_map("a"))
        .await
        .expect(201);
    let then = cluster.get(CONFIG_MAPS).await.expect(200);
    cluster
        .delete(&format!("{CONFIG_MAPS}/a"))
        .await
        .expect(200);
    cluster
        .post(CONFIG_MAPS, &config_map("b"))
        .await
        .expect(201);
    let path = |how: &str| {
        format!(
            "{CONFIG_MAPS}?resourceVersion={}&resourceVersionMatch={how}",
            revision(&then)
        )
    };
    assert_eq!(names(&cluster.get(&path("Exact")).await.expect(200)), ["a"]);
    assert_eq!(
        names(&cluster.get(&path("NotOlderThan")).await.expect(200)),
        ["b"]
    );
}

#[tokio::test]
async fn selectors_choose_and_unknown_fields_are_refused() {
    let cluster = Cluster::start().await;
    for (name, node) in [("a", "n1"), ("b", "n2"), ("c", "n1")] {
        cluster.post(PODS, &pod(name, node)).await.expect(201);
    }
    for (selector, found) in [
        ("fieldSelector=spec.nodeName%3Dn1", vec!["a", "c"]),
        (
            "fieldSelector=spec.nodeName%3Dn1,metadata.name!%3Da",
            vec!["c"],
        ),
        (
            "fieldSelector=spec.hostNetwork%3Dfalse,status.phase%3DPending",
            vec!["a", "b", "c"],
        ),
        ("labelSelector=app%20in%20(a,b)", vec!["a", "b"]),
        (
            "labelSelector=app%3Da&fieldSelector=spec.nodeName%3Dn2",
            vec![],
        ),
    ] {
        let list = cluster.get(&format!("{PODS}?{selector}")).await.expect(200);
        assert_eq!(names(&list), found, "{selector}");
    }
    let refused = cluster
        .get(&format!("{PODS}?fieldSelector=spec.foo%3Dx"))
        .await
        .expect(400);
    assert_eq!(refused["message"], "field label not supported: spec.foo");
}

#[tokio::test]
async fn a_revision_from_the_future_is_refused() {
    let cluster = Cluster::start().await;
    let answer = cluster
        .get(&format!("{CONFIG_MAPS}?resourceVersion=999999"))
        .await
        .expect(504);
    assert_eq!(
        answer["details"]["causes"][0]["reason"],
        "ResourceVersionTooLarge"
    );
    assert_eq!(answer["details"]["retryAfterSeconds"], 1);
}

#[tokio::test]
async fn what_cannot_be_listed_is_refused_in_kubernetes_words() {
    let cluster = Cluster::start().await;
    let token = |json: &str| {
        use base64::Engine;
        let text = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(json);
        format!("limit=1&continue={text}")
    };
    let key = "invalid continue token: continue key is not valid: ";
    let start = r#","start":"/a\u0000"}"#;
    let long = "k".repeat(300);
    for (query, message) in [
        (
            "resourceVersion=x".into(),
            r#"invalid resource version: resourceVersion: Invalid value: "x": strconv.ParseUint: parsing "x": invalid syntax"#.into(),
        ),
        ("limit=x".into(), r#"strconv.ParseInt: parsing "x": invalid syntax"#.into()),
        (
            "labelSelector=a%3D%3D%3Db".into(),
            "unable to parse requirement: found '=', expected: identifier".into(),
        ),
        (
            "labelSelector=%28".into(),
            "found '(', expected: !, identifier, or 'end of string'".into(),
        ),
        (
            format!("labelSelector={long}"),
            format!(
                "unable to parse requirement: <nil>: Invalid value: \"{long}\": name part must be no more than 63 bytes"
            ),
        ),
        ("fieldSelector=a".into(), "invalid selector: 'a'; can't understand 'a'".into()),
        (
            "fieldSelector=spec.x%3Dy".into(),
            r#""spec.x" is not a known field selector: only "metadata.name", "metadata.namespace""#.into(),
        ),
        ("limit=1&continue=%21%21".into(), format!("{key}illegal base64 data at input byte 0")),
        (
            token(&format!(r#"{{"v":"x","rv":10{start}"#)),
            format!("{key}server does not recognize this encoded version x"),
        ),
        (
            token(&format!(r#"{{"v":"meta.k8s.io/v1","rv":0{start}"#)),
            format!("{key}incorrect encoded start resourceVersion (version meta.k8s.io/v1)"),
        ),
        (
            token(r#"{"v":"meta.k8s.io/v1","rv":10,"start":""}"#),
            format!("{key}encoded start key empty (version meta.k8s.io/v1)"),
        ),
        (
            token(r#"{"v":"meta.k8s.io/v1","rv":10,"start":"../../a\u0000"}"#),
            format!("{key}../../a\0"),
        ),
        (
            token(&format!(r#"{{"v":"meta.k8s.io/v1","rv":10{start}"#)) + "&resourceVersion=5",
            "specifying resource version is not allowed when using continue".into(),
        ),
    ] {
        let refused = cluster.get(&format!("{CONFIG_MAPS}?{query}")).await;
        assert_eq!(refused.code, 400, "{query}: {}", refused.body);
        assert_eq!(refused.body["reason"], "BadRequest", "{query}");
        let expected: String = message;
        assert_eq!(refused.body["message"], expected, "{query}");
    }
    for (query, message) in [
        (
            "resourceVersion=0&resourceVersionMatch=Exact",
            r#"resourceVersionMatch: Forbidden: resourceVersionMatch "exact" is forbidden for resourceVersion "0""#,
        ),
        (
            "resourceVersionMatch=Exact",
            "resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden unless resourceVersion is provided",
        ),
        (
            "resourceVersion=1&resourceVersionMatch=Foo",
            r#"resourceVersionMatch: Unsupported value: "Foo": supported values: "Exact", "NotOlderThan", """#,
        ),
    ] {
        let refused = cluster.get(&format!("{CONFIG_MAPS}?{query}")).await;
        assert_eq!(refused.code, 422, "{query}: {}", refused.body);
        let expected = format!("ListOptions.meta.k8s.io \"\" is invalid: {message}");
        assert_eq!(refused.body["message"], expected, "{query}");
    }
    // As many requirements as fit into a request line are served.
    let many: Vec<String> = (0..500).map(|n| format!("k{n}%3Dv")).collect();
    let path = format!("{CONFIG_MAPS}?labelSelector={}", many.join(","));
    assert!(names(&cluster.get(&path).await.expect(200)).is_empty());
}
