use super::*;
use proptest::prelude::*;

fn shape_of(accept: &str) -> Option<(Encoding, Shape)> {
    negotiate(Some(accept), true).map(|r| (r.encoding, r.shape))
}

#[test]
fn negotiates_as_kube_apiserver() {
    use Encoding::{Json, Protobuf};
    let table = |version: &str| Shape::Table {
        version: version.into(),
    };
    let partial = |version: &str, list| Shape::PartialMetadata {
        version: version.into(),
        list,
    };
    let cases = [
        ("", Some((Json, Shape::Full))),
        ("*/*", Some((Json, Shape::Full))),
        ("application/*", Some((Json, Shape::Full))),
        ("APPLICATION/JSON", Some((Json, Shape::Full))),
        (
            "application/vnd.kubernetes.protobuf,application/json",
            Some((Protobuf, Shape::Full)),
        ),
        (
            "application/vnd.kubernetes.protobuf;q=0.5, application/json",
            Some((Json, Shape::Full)),
        ),
        (
            "application/vnd.kubernetes.protobuf;stream=watch",
            Some((Protobuf, Shape::Full)),
        ),
        ("application/json;stream=other", None),
        (
            "*/*, application/vnd.kubernetes.protobuf",
            Some((Protobuf, Shape::Full)),
        ),
        ("application/yaml", None),
        ("application/yaml, */*;q=0.1", Some((Json, Shape::Full))),
        ("text/*", None),
        ("application/json;q=0", None),
        (
            "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json",
            Some((Json, table("v1"))),
        ),
        (
            "application/json;as=Table;v=\"v1beta1\";g=meta.k8s.io",
            Some((Json, table("v1beta1"))),
        ),
        (
            "application/vnd.kubernetes.protobuf;as=Table;v=v1;g=meta.k8s.io,application/json",
            Some((Json, Shape::Full)),
        ),
        (
            "application/vnd.kubernetes.protobuf;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1",
            Some((Protobuf, partial("v1", true))),
        ),
        (
            "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1",
            Some((Json, partial("v1", false))),
        ),
        ("application/json;as=Other;g=meta.k8s.io;v=v1", None),
        ("application/json;as=Table;g=meta.k8s.io;v=v9", None),
    ];
    for (accept, expected) in cases {
        assert_eq!(shape_of(accept), expected, "{accept}");
    }
    assert_eq!(
        negotiate(Some("application/json;as=Table;v=v1;g=meta.k8s.io"), false),
        None
    );
    assert!(negotiate(Some("application/json;pretty=1"), true).is_some_and(|r| r.pretty));
    assert_eq!(
        negotiate(None, true).map(|r| r.encoding),
        Some(Encoding::Json)
    );
}

#[test]
fn aggregated_discovery_is_chosen_by_preference() {
    let kubectl = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,\
                   application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList,application/json";
    assert_eq!(aggregated_discovery(Some(kubectl)), Some("v2"));
    assert_eq!(
        aggregated_discovery(Some(
            "application/json, application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"
        )),
        None
    );
    assert_eq!(
        aggregated_discovery(Some(
            "application/json;g=apidiscovery.k8s.io;v=v3;as=APIGroupDiscoveryList,\
             application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList"
        )),
        Some("v2beta1")
    );
    assert_eq!(aggregated_discovery(None), None);
    assert_eq!(aggregated_discovery(Some("*/*")), None);
}

#[test]
fn content_types() {
    assert_eq!(
        Encoding::from_content_type("application/json; charset=utf-8"),
        Some(Encoding::Json)
    );
    assert_eq!(
        Encoding::from_content_type(Encoding::Protobuf.watch_content_type()),
        Some(Encoding::Protobuf)
    );
    assert_eq!(Encoding::from_content_type("application/yaml"), None);
    assert_eq!(Encoding::from_content_type(""), None);
}

#[test]
fn pretty_by_query_and_user_agent() {
    assert!(wants_pretty(None, Some("curl/8.0")));
    assert!(!wants_pretty(Some("false"), Some("curl/8.0")));
    assert!(wants_pretty(Some("true"), None));
    assert!(!wants_pretty(None, Some("kubectl/v1.36")));
}

#[test]
fn the_number_of_clauses_is_bounded() {
    let many = "a/b,".repeat(100_000);
    assert_eq!(parse_accept(&many).len(), MAX_CLAUSES);
    let long = format!("a/b{}", ";x=y".repeat(10_000));
    assert_eq!(parse_accept(&long)[0].params.len(), MAX_PARAMS);
}

proptest! {
    #[test]
    fn any_header_parses(accept in ".{0,120}") {
        let clauses = parse_accept(&accept);
        prop_assert!(clauses.windows(2).all(|w| w[0].quality >= w[1].quality));
        let _ = (negotiate(Some(&accept), true), aggregated_discovery(Some(&accept)));
    }

    #[test]
    fn headers_made_of_likely_pieces_parse(pieces in prop::collection::vec(prop::sample::select(vec![
        "application/json", ";", ",", "=", "\"", "q", "0.5", "as", "Table", "g", "meta.k8s.io", "v", "v1", " ", "*/*", "é",
    ]), 0..24)) {
        let accept = pieces.concat();
        let _ = (negotiate(Some(&accept), true), aggregated_discovery(Some(&accept)));
    }
}
