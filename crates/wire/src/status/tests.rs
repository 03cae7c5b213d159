use super::*;
use proptest::prelude::*;

fn fixture(name: &str) -> Vec<u8> {
    let path = format!(
        "{}/tests/fixtures/kube-apiserver/{name}",
        env!("CARGO_MANIFEST_DIR")
    );
    std::fs::read(path).expect("fixture")
}

#[test]
fn not_found_is_what_kube_apiserver_was_recorded_sending() {
    let status = Status::not_found("", "pods", "none");
    assert_eq!(status.to_pretty_json(), fixture("notfound.json"));
    assert_eq!(status.to_bytes(Encoding::Protobuf), fixture("notfound.pb"));
    assert_eq!(
        status.to_bytes(Encoding::Json),
        "{\"kind\":\"Status\",\"apiVersion\":\"v1\",\"metadata\":{},\"status\":\"Failure\",\
         \"message\":\"pods \\\"none\\\" not found\",\"reason\":\"NotFound\",\
         \"details\":{\"name\":\"none\",\"kind\":\"pods\"},\"code\":404}\n"
    );
    for (name, encoding) in [
        ("notfound.json", Encoding::Json),
        ("notfound.pb", Encoding::Protobuf),
    ] {
        assert_eq!(
            Status::from_bytes(&fixture(name), encoding),
            Some(status.clone()),
            "{name}"
        );
    }
}

#[test]
fn a_token_to_go_on_with_is_carried_in_both_encodings() {
    let mut status = Status::expired("too old");
    status.continue_token = "next".into();
    let json = status.to_json();
    assert_eq!(json["metadata"], serde_json::json!({"continue": "next"}));
    for encoding in [Encoding::Json, Encoding::Protobuf] {
        let bytes = status.to_bytes(encoding);
        assert_eq!(Status::from_bytes(&bytes, encoding), Some(status.clone()));
    }
}

#[test]
fn messages_are_those_of_apimachinery() {
    assert_eq!(
        Status::not_found("apps", "deployments", "a").message,
        "deployments.apps \"a\" not found"
    );
    assert_eq!(
        Status::conflict("", "pods", "a", "the object has been modified").message,
        "Operation cannot be fulfilled on pods \"a\": the object has been modified"
    );
    assert_eq!(
        Status::forbidden("", "pods", "", "no").message,
        "pods is forbidden: no"
    );
    assert_eq!(Status::forbidden("", "", "", "no").message, "forbidden: no");
    assert_eq!(
        Status::method_not_allowed("apps", "deployments", "patch").message,
        "patch is not supported on resources of kind \"deployments.apps\""
    );
    let two = Status::invalid(
        "meta.k8s.io",
        "ListOptions",
        "",
        vec![
            Cause::forbidden("a", "x"),
            Cause::forbidden("a", "x"),
            Cause::not_supported("b", "y", &["p", ""]),
        ],
    );
    assert_eq!(
        two.message,
        "ListOptions.meta.k8s.io \"\" is invalid: [a: Forbidden: x, \
         b: Unsupported value: \"y\": supported values: \"p\", \"\"]"
    );
    assert_eq!(two.code(), 422);
}

#[test]
fn names_are_quoted_as_go_quotes_them() {
    assert_eq!(
        quoted("a\"b\\\n\x01\x7f\u{80}é"),
        r#""a\"b\\\n\x01\x7f\u0080é""#
    );
}

#[test]
fn json_escapes_what_go_escapes() {
    let status = Status::bad_request("<a> & b\u{2028}");
    let bytes = status.to_bytes(Encoding::Json);
    let text = std::str::from_utf8(&bytes).expect("UTF-8");
    assert!(text.contains(r"\u003ca\u003e \u0026 b\u2028"), "{text}");
    assert_eq!(Status::from_bytes(&bytes, Encoding::Json), Some(status));
}

#[test]
fn unknown_reasons_and_success() {
    let parse = |json: &str| Status::from_bytes(json.as_bytes(), Encoding::Json);
    assert_eq!(
        parse(r#"{"kind":"Status","status":"Failure","reason":"Teapot","code":418}"#)
            .map(|s| s.reason),
        Some(Reason::BadRequest)
    );
    assert_eq!(
        parse(r#"{"kind":"Status","status":"Failure","reason":"","code":502}"#).map(|s| s.reason),
        Some(Reason::ServiceUnavailable)
    );
    assert_eq!(
        parse(r#"{"kind":"Status","status":"Success","code":200}"#),
        None
    );
    assert_eq!(parse(r#"{"kind":"Pod","status":{}}"#), None);
    assert_eq!(parse("[1"), None);
}

#[test]
fn every_reason_survives_its_text() {
    for reason in Reason::ALL {
        assert_eq!(Reason::parse(reason.as_str()), Some(reason));
        assert_eq!(
            Reason::of_code(reason.code()).map(Reason::code),
            Some(reason.code())
        );
    }
    assert_eq!(Reason::of_code(200), None);
}

fn any_status() -> impl Strategy<Value = Status> {
    (
        0..Reason::ALL.len(),
        any::<String>(),
        any::<[String; 4]>(),
        prop::collection::vec(any::<[String; 3]>(), 0..4),
        prop::option::of(1u32..=i32::MAX as u32),
        "[a-z0-9]{0,20}",
    )
        .prop_map(
            |(reason, message, [name, group, kind, uid], causes, retry, token)| Status {
                reason: Reason::ALL[reason],
                message,
                name,
                group,
                kind,
                uid,
                causes: causes
                    .into_iter()
                    .map(|[reason, message, field]| Cause {
                        reason,
                        message,
                        field,
                    })
                    .collect(),
                retry_after_seconds: retry,
                continue_token: token,
                foreign: None,
            },
        )
}

proptest! {
    #[test]
    fn both_encodings_round_trip(status in any_status()) {
        for encoding in [Encoding::Json, Encoding::Protobuf] {
            let bytes = status.to_bytes(encoding);
            prop_assert_eq!(Status::from_bytes(&bytes, encoding), Some(status.clone()));
        }
        let json: serde_json::Value =
            serde_json::from_slice(&status.to_bytes(Encoding::Json)).expect("JSON");
        prop_assert_eq!(json, status.to_json());
    }

    #[test]
    fn damaged_protobuf_does_not_panic(
        status in any_status(), at in any::<prop::sample::Index>(), byte in any::<u8>(), cut in any::<prop::sample::Index>()
    ) {
        let mut bytes = status.to_bytes(Encoding::Protobuf).to_vec();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        bytes.truncate(cut.index(bytes.len()) + 1);
        let _ = Status::from_bytes(&bytes, Encoding::Protobuf);
    }

    #[test]
    fn arbitrary_bytes_do_not_panic(bytes in prop::collection::vec(any::<u8>(), 0..256)) {
        let _ = Status::from_bytes(&bytes, Encoding::Json);
        let _ = Status::from_bytes(&bytes, Encoding::Protobuf);
        let mut enveloped = b"k8s\0\x0a\x08\x12\x06Status\x12".to_vec();
        enveloped.push(bytes.len().min(127) as u8);
        enveloped.extend_from_slice(&bytes);
        let _ = Status::from_bytes(&enveloped, Encoding::Protobuf);
    }
}
