use super::*;
use proptest::prelude::*;

fn labels(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs
        .iter()
        .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
        .collect()
}

fn parsed(text: &str) -> LabelSelector {
    LabelSelector::parse(text).unwrap_or_else(|e| panic!("{text}: {e}"))
}

#[test]
fn label_grammar() {
    let cases = [
        ("", ""),
        ("  ", ""),
        ("x=a,y=b,z=c", "x=a,y=b,z=c"),
        ("z==c, y != b ,x", "x,y!=b,z=c"),
        ("x in (b,a,b)", "x in (a,b)"),
        ("x notin (a)", "x notin (a)"),
        ("x in ()", "x in ()"),
        ("x in (,a)", "x in (,a)"),
        ("x in (a,,b,)", "x in (,a,b)"),
        ("x=", "x="),
        ("x=,y", "x=,y"),
        ("!x", "!x"),
        ("! x", "!x"),
        ("x>1,x<7", "x>1,x<7"),
        ("in in (in,notin)", "in in (in,notin)"),
        ("notin=in", "notin=in"),
        ("example.com/a_b.c=V-1", "example.com/a_b.c=V-1"),
        ("x=a,x=a", "x=a"),
    ];
    for (text, canonical) in cases {
        assert_eq!(parsed(text).to_string(), canonical, "{text}");
    }
}

#[test]
fn label_errors_are_those_of_apimachinery() {
    let cases = [
        (
            "=a",
            "found '=', expected: !, identifier, or 'end of string'",
        ),
        ("x=a,", "found '', expected: identifier after ','"),
        ("x=a,,y", "found ',', expected: identifier after ','"),
        ("x=a b", "found 'b', expected: ',' or 'end of string'"),
        ("!x in (a)", "found 'in', expected: ',' or 'end of string'"),
        (
            "!",
            "unable to parse requirement: found '', expected: identifier",
        ),
        (
            "x y",
            "unable to parse requirement: found 'y', expected: in, notin, =, ==, !=, gt, lt",
        ),
        (
            "x in a",
            "unable to parse requirement: found 'a' expected: '('",
        ),
        (
            "x in (a",
            "unable to parse requirement: found '', expected: ',' or ')'",
        ),
        (
            "x=(",
            "unable to parse requirement: found '(', expected: identifier",
        ),
        (
            "x>a",
            "unable to parse requirement: values[0]: Invalid value: \"a\": for 'Gt', 'Lt' operators, the value must be an integer",
        ),
        (
            "-x",
            "unable to parse requirement: <nil>: Invalid value: \"-x\": name part must consist of alphanumeric characters, '-', '_' or '.', \
             and must start and end with an alphanumeric character (e.g. 'MyName' or 'my.name' or '123-abc', regex used for validation is \
             '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')",
        ),
        (
            "x=_",
            "unable to parse requirement: values[0][x]: Invalid value: \"_\": a valid label must be an empty string or consist of \
             alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue' or \
             'my_value' or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')",
        ),
    ];
    for (text, error) in cases {
        // Go lists each example followed by a comma.
        let error = error
            .replace(
                "'MyName' or 'my.name' or '123-abc'",
                "'MyName',  or 'my.name',  or '123-abc'",
            )
            .replace(
                "'MyValue' or 'my_value' or '12345'",
                "'MyValue',  or 'my_value',  or '12345'",
            );
        assert_eq!(
            LabelSelector::parse(text),
            Err(SelectorError(error)),
            "{text}"
        );
    }
    assert!(LabelSelector::parse(&format!("{}=a", "x".repeat(64))).is_err());
    assert!(LabelSelector::parse(&format!("{}/x=a", "x".repeat(254))).is_err());
    assert!(LabelSelector::parse("A.com/x").is_err());
    assert!(LabelSelector::parse("a/b/c").is_err());
    assert!(LabelSelector::parse("x=a\0").is_err());
}

#[test]
fn label_matching() {
    let have = labels(&[("app", "web"), ("n", "5"), ("empty", "")]);
    for text in [
        "",
        "app",
        "app=web",
        "app in (web,db)",
        "app!=db",
        "other!=x",
        "other notin (x)",
        "!other",
        "n>4",
        "n<6",
        "empty=",
        "app,n",
    ] {
        assert!(parsed(text).matches(&have), "{text}");
    }
    for text in [
        "other",
        "app=db",
        "!app",
        "app notin (web)",
        "n>5",
        "n<5",
        "app>1",
        "other>1",
        "app=web,n=4",
    ] {
        assert!(!parsed(text).matches(&have), "{text}");
    }
}

#[test]
fn label_selectors_from_json() {
    let json = serde_json::json!({
        "matchLabels": {"app": "web"},
        "matchExpressions": [
            {"key": "tier", "operator": "NotIn", "values": ["a", "b"]},
            {"key": "x", "operator": "Exists"},
        ],
    });
    assert_eq!(
        LabelSelector::from_json(&json).map(|s| s.to_string()),
        Ok("app=web,tier notin (a,b),x".to_owned())
    );
    assert_eq!(
        LabelSelector::from_json(&serde_json::json!({})),
        Ok(LabelSelector::default())
    );
    for bad in [
        serde_json::json!(null),
        serde_json::json!({"matchLabels": {"a": 1}}),
        serde_json::json!({"matchExpressions": [{"key": "a", "operator": "Eq"}]}),
        serde_json::json!({"matchExpressions": [{"key": "a", "operator": "In", "values": []}]}),
        serde_json::json!({"matchExpressions": [{"key": "a", "operator": "Exists", "values": ["b"]}]}),
        serde_json::json!({"matchExpressions": {}}),
    ] {
        assert!(LabelSelector::from_json(&bad).is_err(), "{bad}");
    }
}

#[test]
fn label_covers() {
    let covers = |wide: &str, narrow: &str| parsed(wide).covers(&parsed(narrow));
    for (wide, narrow) in [
        ("", "a=b"),
        ("a", "a=b"),
        ("a in (b,c)", "a=b"),
        ("a!=c", "a=b"),
        ("a!=c", "!a"),
        ("a!=c", "a notin (c,d)"),
        ("a>1", "a>5"),
        ("a", "a<5"),
        ("a=b", "a=b,c=d"),
    ] {
        assert!(covers(wide, narrow), "{wide} covers {narrow}");
    }
    for (wide, narrow) in [
        ("a=b", ""),
        ("a=b", "a"),
        ("a=b", "a in (b,c)"),
        ("a", "a!=b"),
        ("a>5", "a>1"),
        ("a=b", "c=b"),
    ] {
        assert!(!covers(wide, narrow), "{wide} does not cover {narrow}");
    }
}

#[test]
fn huge_selectors_cover_only_themselves() {
    let huge = |n: usize| {
        let values: Vec<String> = (0..n).map(|v| v.to_string()).collect();
        parsed(&format!("a in ({})", values.join(",")))
    };
    assert!(huge(600).covers(&huge(500)));
    assert!(huge(6000).covers(&huge(6000)));
    assert!(!huge(6000).covers(&huge(5000)));
}

#[test]
fn field_grammar() {
    let cases = [
        ("", ""),
        (",,", ""),
        ("=", ""),
        (
            "spec.nodeName=b,metadata.name==a",
            "metadata.name=a,spec.nodeName=b",
        ),
        ("spec.clusterIP!=None", "spec.clusterIP!=None"),
        (r"a=x\,y\=z\\", r"a=x\,y\=z\\"),
        ("a=", "a="),
    ];
    for (text, canonical) in cases {
        assert_eq!(
            FieldSelector::parse(text).map(|s| s.to_string()),
            Ok(canonical.to_owned()),
            "{text}"
        );
    }
    for (text, error) in [
        ("a=b,c", "invalid selector: 'a=b,c'; can't understand 'c'"),
        (
            "a=b=c",
            "invalid field selector: unescaped character in value: 61",
        ),
        (
            r"a=\b",
            r"invalid field selector: invalid escape sequence: \b",
        ),
        (
            r"a=b\",
            r"invalid field selector: invalid escape sequence: \",
        ),
    ] {
        assert_eq!(
            FieldSelector::parse(text),
            Err(SelectorError(error.to_owned())),
            "{text}"
        );
    }
}

#[test]
fn field_matching_and_covering() {
    let selector = FieldSelector::parse("metadata.name=a,spec.x!=b").expect("valid");
    let field = |path: &str| if path == "metadata.name" { "a" } else { "" }.to_owned();
    assert!(selector.matches(field));
    assert!(!selector.matches(|_| "b".to_owned()));
    assert_eq!(selector.exact("metadata.name"), Some("a"));
    assert_eq!(selector.exact("spec.x"), None);
    let parse = |text| FieldSelector::parse(text).expect("valid");
    assert!(parse("a!=b").covers(&parse("a=c")));
    assert!(parse("").covers(&selector));
    assert!(!parse("a!=b").covers(&parse("a!=c")));
    assert!(!parse("a=b").covers(&parse("")));
}

fn any_requirement() -> impl Strategy<Value = Requirement> {
    let value = prop::sample::select(vec!["", "1", "2", "x", "in"]);
    (
        prop::sample::select(vec!["a", "b", "notin"]),
        0..8usize,
        prop::collection::vec(value, 1..4),
        0..4i64,
    )
        .prop_map(|(key, op, values, bound)| {
            let op = [
                Op::Equals,
                Op::NotEquals,
                Op::In,
                Op::NotIn,
                Op::Exists,
                Op::DoesNotExist,
                Op::GreaterThan,
                Op::LessThan,
            ][op];
            let mut values: Vec<String> = values.into_iter().map(str::to_owned).collect();
            match op {
                Op::Equals | Op::NotEquals => values.truncate(1),
                Op::Exists | Op::DoesNotExist => values.clear(),
                Op::GreaterThan | Op::LessThan => values = vec![bound.to_string()],
                Op::In | Op::NotIn => {}
            }
            Requirement::new(key, op, values).expect("valid")
        })
}

fn any_selector() -> impl Strategy<Value = LabelSelector> {
    prop::collection::vec(any_requirement(), 0..4).prop_map(LabelSelector::of)
}

fn any_labels() -> impl Strategy<Value = Vec<(String, String)>> {
    let value = prop::option::of(prop::sample::select(vec![
        "", "0", "1", "2", "3", "9", "x", "in",
    ]));
    [value.clone(), value.clone(), value].prop_map(|values| {
        ["a", "b", "notin"]
            .into_iter()
            .zip(values)
            .filter_map(|(k, v)| Some((k.to_owned(), v?.to_owned())))
            .collect()
    })
}

proptest! {
    #[test]
    fn label_selectors_round_trip(selector in any_selector()) {
        prop_assert_eq!(LabelSelector::parse(&selector.to_string()), Ok(selector));
    }

    #[test]
    fn label_covers_is_sound(wide in any_selector(), narrow in any_selector(), have in any_labels()) {
        if wide.covers(&narrow) && narrow.matches(&have) {
            prop_assert!(wide.matches(&have));
        }
        prop_assert!(wide.covers(&wide));
    }

    #[test]
    fn arbitrary_text_does_not_panic(text in ".{0,60}") {
        let _ = (LabelSelector::parse(&text), FieldSelector::parse(&text));
    }

    #[test]
    fn what_parses_has_a_canonical_text(pieces in prop::collection::vec(prop::sample::select(vec![
        "a", "b.c/d", "in", "notin", "=", "==", "!=", "!", ">", "<", "(", ")", ",", " ", "\\", "1", "é",
    ]), 0..16)) {
        let text = pieces.concat();
        if let Ok(selector) = LabelSelector::parse(&text) {
            prop_assert_eq!(LabelSelector::parse(&selector.to_string()), Ok(selector));
        }
        if let Ok(selector) = FieldSelector::parse(&text) {
            prop_assert_eq!(FieldSelector::parse(&selector.to_string()), Ok(selector));
        }
    }

    #[test]
    fn field_values_round_trip(values in prop::collection::vec((".{0,12}", any::<bool>()), 0..4)) {
        let selector = FieldSelector::of(values.into_iter().map(|(value, equals)| FieldRequirement {
            path: "spec.x".into(), equals, value,
        }).collect());
        prop_assert_eq!(FieldSelector::parse(&selector.to_string()), Ok(selector));
    }

    #[test]
    fn field_covers_is_sound(
        wide in prop::collection::vec((0..2usize, any::<bool>(), 0..3usize), 0..3),
        narrow in prop::collection::vec((0..2usize, any::<bool>(), 0..3usize), 0..3),
        have in [0..3usize, 0..3usize],
    ) {
        let selector = |terms: Vec<(usize, bool, usize)>| FieldSelector::of(terms.into_iter().map(|(path, equals, value)|
            FieldRequirement { path: path.to_string(), equals, value: value.to_string() }).collect());
        let (wide, narrow) = (selector(wide), selector(narrow));
        let field = |path: &str| have[path.parse::<usize>().expect("index")].to_string();
        if wide.covers(&narrow) && narrow.matches(field) {
            prop_assert!(wide.matches(field));
        }
    }
}
