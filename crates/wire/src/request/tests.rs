use super::*;
use http::Method;
use proptest::prelude::*;

/// `verb prefix group version namespace resource subresource name`, `-` for empty.
fn summary(method: Method, url: &str) -> String {
    let (path, query) = match url.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (url, None),
    };
    let info = RequestInfo::parse(&method, path, query);
    if !info.is_resource {
        return format!("non-resource {}", info.verb);
    }
    [
        info.verb.as_str(),
        &info.api_prefix,
        &info.group,
        &info.version,
        &info.namespace,
        &info.resource,
        &info.subresource,
        &info.name,
    ]
    .map(|s| if s.is_empty() { "-" } else { s })
    .join(" ")
}

#[test]
fn derives_what_kube_apiserver_derives() {
    let cases = [
        (
            Method::GET,
            "/api/v1/namespaces",
            "list api - v1 - namespaces - -",
        ),
        (
            Method::GET,
            "/api/v1/namespaces/other",
            "get api - v1 other namespaces - other",
        ),
        (
            Method::PUT,
            "/api/v1/namespaces/other/finalize",
            "update api - v1 other namespaces finalize other",
        ),
        (
            Method::PUT,
            "/api/v1/namespaces/other/status",
            "update api - v1 other namespaces status other",
        ),
        (
            Method::GET,
            "/api/v1/namespaces/other/pods",
            "list api - v1 other pods - -",
        ),
        (
            Method::HEAD,
            "/api/v1/namespaces/other/pods/foo",
            "get api - v1 other pods - foo",
        ),
        (
            Method::GET,
            "/api/v1/namespaces/other/pods/foo/log",
            "get api - v1 other pods log foo",
        ),
        (
            Method::GET,
            "/api/v1/namespaces/other/pods?watch=true",
            "watch api - v1 other pods - -",
        ),
        (
            Method::GET,
            "/api/v1/namespaces/other/pods?watch",
            "watch api - v1 other pods - -",
        ),
        (
            Method::GET,
            "/api/v1/namespaces/other/pods?watch=FALSE",
            "list api - v1 other pods - -",
        ),
        (
            Method::GET,
            "/api/v1/namespaces/other/pods?watch=0&watch=1",
            "list api - v1 other pods - -",
        ),
        (
            Method::GET,
            "/api/v1/watch/namespaces/other/pods/foo",
            "watch api - v1 other pods - foo",
        ),
        (
            Method::GET,
            "/api/v1/watch/pods",
            "watch api - v1 - pods - -",
        ),
        (
            Method::GET,
            "/api/v1/proxy/namespaces/other/pods/foo/x",
            "proxy api - v1 other pods - foo",
        ),
        (Method::GET, "/api/v1/watch", "non-resource get"),
        (Method::POST, "/api/v1/pods", "create api - v1 - pods - -"),
        (
            Method::POST,
            "/api/v1/namespaces/d/pods/p/exec?command=ls",
            "create api - v1 d pods exec p",
        ),
        (
            Method::PATCH,
            "/api/v1/nodes/n/status",
            "patch api - v1 - nodes status n",
        ),
        (
            Method::GET,
            "/api/v1/nodes/n/proxy/a/b",
            "get api - v1 - nodes proxy n",
        ),
        (
            Method::DELETE,
            "/api/v1/namespaces/d/pods",
            "deletecollection api - v1 d pods - -",
        ),
        (
            Method::DELETE,
            "/api/v1/namespaces/d/pods/p",
            "delete api - v1 d pods - p",
        ),
        (
            Method::DELETE,
            "/api/v1/namespaces/d/pods?fieldSelector=metadata.name%3Dp",
            "deletecollection api - v1 d pods - -",
        ),
        (
            Method::GET,
            "/apis/apps/v1/deployments",
            "list apis apps v1 - deployments - -",
        ),
        (
            Method::GET,
            "/apis/apps/v1/namespaces/d/deployments/x/scale",
            "get apis apps v1 d deployments scale x",
        ),
        (
            Method::GET,
            "/api/v1/nodes?fieldSelector=metadata.name%3Dedge-1&watch=true",
            "watch api - v1 - nodes - edge-1",
        ),
        (
            Method::GET,
            "/api/v1/nodes?fieldSelector=metadata.name=a%2Fb",
            "list api - v1 - nodes - -",
        ),
        (
            Method::GET,
            "/api/v1/nodes?fieldSelector=metadata.name!%3Da",
            "list api - v1 - nodes - -",
        ),
        (
            Method::GET,
            "/api/v1/nodes?fieldSelector=metadata.name=a&limit=x&watch=1",
            "watch api - v1 - nodes - -",
        ),
        (
            Method::GET,
            "/api/v1/nodes/a%20b",
            "get api - v1 - nodes - a b",
        ),
        (
            Method::GET,
            "/api/v1/namespaces%2Fd%2Fpods",
            "list api - v1 d pods - -",
        ),
        (Method::GET, "/api/v1/nodes/%zz", "non-resource get"),
        (Method::OPTIONS, "/api/v1/pods", "- api - v1 - pods - -"),
        (Method::GET, "/", "non-resource get"),
        (Method::GET, "/api/v1", "non-resource get"),
        (Method::GET, "/api/v1/", "non-resource get"),
        (Method::GET, "/apis/apps/v1", "non-resource get"),
        (Method::GET, "/healthz", "non-resource get"),
        (Method::POST, "/foo/v1/pods/x", "non-resource create"),
    ];
    for (method, url, expected) in cases {
        assert_eq!(summary(method.clone(), url), expected, "{method} {url}");
    }
}

#[test]
fn parts_are_relative_to_the_resource() {
    let info = RequestInfo::parse(&Method::GET, "/api/v1/namespaces/d/pods/p/proxy/a/b", None);
    assert_eq!(info.parts, ["pods", "p", "proxy", "a", "b"]);
    assert_eq!(info.gvr(), Gvr::new("", "v1", "pods"));
}

#[test]
fn what_a_kubelet_was_recorded_asking_is_understood() {
    let recorded = include_str!("../../tests/fixtures/node-client-requests.jsonl");
    let mut verbs = std::collections::BTreeMap::new();
    for line in recorded.lines() {
        let request: serde_json::Value = serde_json::from_str(line).expect("JSON");
        let text = |field: &str| request[field].as_str().unwrap_or_default();
        let method: Method = text("method").parse().expect("method");
        let (path, query) = text("path").split_once('?').unwrap_or((text("path"), ""));
        let info = RequestInfo::parse(&method, path, Some(query));
        assert!(info.is_resource, "{line}");
        assert!(
            !info.resource.is_empty() && !info.version.is_empty(),
            "{line}"
        );
        let options = info.list_options().expect("valid options");
        assert_eq!(options.watch, info.verb == Verb::Watch, "{line}");
        if info.verb == Verb::Watch {
            assert_eq!(options.send_initial_events, Some(true), "{line}");
        }
        assert!(
            crate::media::negotiate(Some(text("accept")), true).is_some(),
            "{line}"
        );
        *verbs.entry(info.verb.as_str()).or_insert(0) += 1;
    }
    let verbs: Vec<&str> = verbs.into_keys().collect();
    assert_eq!(
        verbs,
        [
            "create",
            "deletecollection",
            "get",
            "patch",
            "update",
            "watch"
        ]
    );
}

fn options(query: &str) -> Result<ListOptions, String> {
    RequestInfo::parse(&Method::GET, "/api/v1/pods", Some(query))
        .list_options()
        .map_err(|status| format!("{} {}", status.code(), status.message))
}

#[test]
fn a_kubelet_watch_list_query_decodes() {
    let got = options(
        "allowWatchBookmarks=true&fieldSelector=spec.nodeName%3Dedge-1&labelSelector=a+in+%28b%2Cc%29\
         &resourceVersionMatch=NotOlderThan&sendInitialEvents=true&timeout=9m19s&timeoutSeconds=559&watch=true",
    )
    .expect("valid");
    assert_eq!(
        got,
        ListOptions {
            labels: LabelSelector::parse("a in (b,c)").expect("selector"),
            fields: FieldSelector::parse("spec.nodeName=edge-1").expect("selector"),
            watch: true,
            allow_watch_bookmarks: true,
            resource_version_match: "NotOlderThan".into(),
            timeout_seconds: Some(559),
            send_initial_events: Some(true),
            ..ListOptions::default()
        }
    );
    assert_eq!(options(""), Ok(ListOptions::default()));
    assert_eq!(options("limit=-5").map(|o| o.limit), Ok(0));
}

#[test]
fn refused_queries_say_what_kube_apiserver_says() {
    let cases = [
        (
            "limit=abc",
            "400 strconv.ParseInt: parsing \"abc\": invalid syntax",
        ),
        (
            "limit=",
            "400 strconv.ParseInt: parsing \"\": invalid syntax",
        ),
        (
            "timeoutSeconds=99999999999999999999",
            "400 strconv.ParseInt: parsing \"99999999999999999999\": value out of range",
        ),
        (
            "labelSelector=a+b",
            "400 unable to parse requirement: found 'b', expected: in, notin, =, ==, !=, gt, lt",
        ),
        (
            "fieldSelector=x",
            "400 invalid selector: 'x'; can't understand 'x'",
        ),
        (
            "resourceVersionMatch=Exact",
            "422 ListOptions.meta.k8s.io \"\" is invalid: resourceVersionMatch: Forbidden: \
             resourceVersionMatch is forbidden unless resourceVersion is provided",
        ),
        (
            "resourceVersionMatch=Exact&resourceVersion=0",
            "422 ListOptions.meta.k8s.io \"\" is invalid: resourceVersionMatch: Forbidden: \
             resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"",
        ),
        (
            "resourceVersionMatch=Newest&resourceVersion=1",
            "422 ListOptions.meta.k8s.io \"\" is invalid: resourceVersionMatch: Unsupported value: \
             \"Newest\": supported values: \"Exact\", \"NotOlderThan\", \"\"",
        ),
        (
            "watch=1&sendInitialEvents=true",
            "422 ListOptions.meta.k8s.io \"\" is invalid: resourceVersionMatch: Forbidden: \
             sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
        ),
        (
            "sendInitialEvents=true",
            "422 ListOptions.meta.k8s.io \"\" is invalid: sendInitialEvents: Forbidden: \
             sendInitialEvents is forbidden for list",
        ),
    ];
    for (query, expected) in cases {
        assert_eq!(options(query), Err(expected.to_owned()), "{query}");
    }
}

#[test]
fn the_watch_prefix_sets_watch() {
    let info = RequestInfo::parse(&Method::GET, "/api/v1/watch/pods", None);
    assert!(info.list_options().expect("valid").watch);
}

#[test]
fn malformed_pairs_are_left_out() {
    assert_eq!(
        query_pairs("a=1&b=%zz&c;d=2&&e&=f&a=x+y%2B"),
        [("a", "1"), ("e", ""), ("", "f"), ("a", "x y+")]
            .map(|(k, v)| (k.to_owned(), v.to_owned()))
    );
}

proptest! {
    #[test]
    fn any_request_parses(path in ".{0,80}", query in prop::option::of(".{0,80}")) {
        let info = RequestInfo::parse(&Method::GET, &path, query.as_deref());
        let _ = info.list_options();
    }

    #[test]
    fn paths_like_the_apis_parse(
        segments in prop::collection::vec(prop::sample::select(vec![
            "api", "apis", "v1", "watch", "proxy", "namespaces", "pods", "", "status", "%2F", "x",
        ]), 0..10),
        method in prop::sample::select(vec![Method::GET, Method::POST, Method::DELETE]),
    ) {
        let path = format!("/{}", segments.join("/"));
        let info = RequestInfo::parse(&method, &path, None);
        prop_assert_eq!(&info.path, &path);
        if info.is_resource {
            prop_assert_eq!(info.parts.first(), Some(&info.resource));
            prop_assert!(!info.api_prefix.is_empty());
        }
    }

    #[test]
    fn query_values_round_trip(value in any::<String>()) {
        let query = format!("k={}", encode_query_value(&value));
        prop_assert_eq!(query_pairs(&query), vec![("k".to_owned(), value)]);
    }
}
