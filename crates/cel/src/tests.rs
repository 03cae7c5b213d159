use super::*;
use serde_json::{Value, json};

fn run_on(source: &str, object: &Value) -> Result<Option<String>, String> {
    let (expression, _) = Expression::compile(source, &[("self", Type::Any)])?;
    let variables = [("self", Val::of(object, None))];
    expression
        .evaluate(&variables, &mut Budget::default())
        .map(|value| value.printed())
        .map_err(|error| error.to_string())
}

fn run(source: &str) -> String {
    match run_on(
        source,
        &json!({"a": 1, "list": [3, 1, 2], "s": "xy", "nil": null}),
    ) {
        Ok(value) => value.unwrap_or_else(|| "-".into()),
        Err(error) => format!("! {}", error.lines().next().unwrap_or_default()),
    }
}

#[test]
fn expressions_have_their_values() {
    for (source, expected) in [
        ("1 + 2 * 3", "7"),
        ("self.a + self.list[0]", "4"),
        (
            "self.list.all(x, x > 0) && self.list.exists(x, x == 2)",
            "true",
        ),
        ("self.list.exists_one(x, x > 2)", "true"),
        ("self.list.map(x, x * 2).sum()", "12"),
        ("self.list.filter(x, x > 1).size()", "2"),
        ("has(self.a) && !has(self.b)", "true"),
        ("self.b.c == 1 || true", "true"),
        ("self.b == 1", "! no such key: b"),
        ("self.?b.orValue(5)", "5"),
        ("self.?a.hasValue()", "true"),
        ("self.nil == null", "true"),
        ("2 in self.list", "true"),
        ("'a' in self", "true"),
        ("'abc'.contains('b') ? 'yes' : 'no'", "yes"),
        ("'Hello'.lowerAscii().replace('l', 'L')", "heLLo"),
        ("'a,b,c'.split(',').join('-')", "a-b-c"),
        ("'hello'.substring(1, 3)", "el"),
        ("'hello'.matches('^h.*o$')", "true"),
        ("'x%d y%s'.format([3, 'z'])", "x3 yz"),
        ("duration('1h') > duration('59m')", "true"),
        ("timestamp('2024-02-29T12:00:00Z').getDate()", "29"),
        ("quantity('1Gi').isGreaterThan(quantity('1G'))", "true"),
        ("quantity('50k').asInteger()", "50000"),
        ("cidr('10.0.0.0/8').containsIP('10.1.2.3')", "true"),
        ("url('https://h:80/p?q=1').getHost()", "h:80"),
        ("sets.contains([1, 2, 3], [2])", "true"),
        ("[1, 2] == [1, 2] && {'a': 1} == {'a': 1}", "true"),
        ("type(1) == int", "true"),
        ("string(1.5) + string(2)", "1.52"),
        ("1 / 0", "! division by zero"),
        ("9223372036854775807 + 1", "! integer overflow"),
        ("self.list[7]", "! index out of bounds: 7"),
        (
            "1 + 'a'",
            "! ERROR: <input>:1:3: found no matching overload for '_+_' applied to '(int, string)'",
        ),
        (
            "nobody > 1",
            "! ERROR: <input>:1:1: undeclared reference to 'nobody' (in container '')",
        ),
        (
            "self.list.wrong()",
            "! ERROR: <input>:1:11: undeclared reference to 'wrong' (in container '')",
        ),
        (
            "Foo{a: 1}",
            "! ERROR: <input>:1:1: undeclared reference to 'Foo' (in container '')",
        ),
    ] {
        assert_eq!(run(source), expected, "{source}");
    }
    assert!(run("1 +").starts_with("! ERROR"));
}

#[test]
fn hostile_expressions_come_to_an_end() {
    let list: Vec<Value> = (0..1000).map(Value::from).collect();
    let object = json!({"l": list, "s": "x".repeat(100_000)});
    let doubling = format!("['x']{}", ".map(a, a + a)".repeat(60));
    let nested = format!("[1]{}[0]", ".map(a, [a, a])".repeat(60));
    for source in [
        "self.l.all(a, self.l.all(b, self.l.all(c, a + b + c >= 0)))",
        "self.l.map(a, self.s.replace('', self.s))",
        "self.l.map(a, self.l).map(b, b.map(c, self.l)).size() > 0",
        "self.l.map(a, self.s).join(self.s)",
        &doubling,
    ] {
        assert_eq!(
            run_on(source, &object),
            Err("operation cancelled: actual cost limit exceeded".into()),
            "{source}"
        );
    }
    // Shared, not copied.
    assert!(run_on(&format!("{nested} == 1"), &object).is_ok());
    for source in [
        "(".repeat(10_000),
        "[".repeat(10_000),
        "!".repeat(10_000),
        "-".repeat(10_000),
        vec!["1"; 50_000].join("+"),
        vec!["1"; 500].join("+"),
        "a.".repeat(20_000),
        format!("{}1{}", "f(".repeat(5_000), ")".repeat(5_000)),
    ] {
        // (Chains of one logical operator are balanced by the parser.)
        let short: String = source.chars().take(10).collect();
        assert!(Expression::compile(&source, &[]).is_err(), "{short}");
    }
}

#[test]
fn values_become_json_within_the_budget() {
    let object = json!({"a": {"b-c": [1, 2.5, "x", null, true]}, "s": "y".repeat(1000)});
    let made = |source: &str, steps: u64| {
        let (expression, _) = Expression::compile(source, &[("self", Type::Any)]).unwrap();
        let mut budget = Budget::of(steps);
        let value = expression.evaluate(&[("self", Val::of(&object, None))], &mut budget)?;
        value.to_json(&mut budget)
    };
    for (source, expected) in [
        ("self.a", object["a"].clone()),
        (
            "{'k': self.a['b-c'].map(x, x), 2: b'hi'}",
            json!({"k": [1, 2.5, "x", null, true], "2": "aGk="}),
        ),
        (
            "[timestamp('2026-01-02T03:04:05Z'), duration('90s')]",
            json!(["2026-01-02T03:04:05Z", "90s"]),
        ),
        (
            "[quantity('1024Mi'), ip('10.0.0.1'), cidr('10.0.0.0/8')]",
            json!(["1Gi", "10.0.0.1", "10.0.0.0/8"]),
        ),
        ("9223372036854775808u", json!(9_223_372_036_854_775_808_u64)),
    ] {
        assert_eq!(made(source, 10_000), Ok(expected), "{source}");
    }
    for source in [
        "type(1)",
        "optional.of(1)",
        "[optional.none()]",
        "0.0 / 0.0",
    ] {
        assert!(
            matches!(made(source, 10_000), Err(Error::Failed(_))),
            "{source}"
        );
    }
    assert_eq!(made("self.s", 50), Err(Error::Budget));
    // What is shared sixty times over would be 2^60 values.
    let nested = format!("[1]{}", ".map(a, [a, a])".repeat(40));
    assert_eq!(made(&nested, 100_000), Err(Error::Budget));
    let deep = format!("1{}", "]".repeat(70));
    let deep = format!("{}{deep}", "[".repeat(70));
    assert!(matches!(made(&deep, 10_000), Err(Error::Failed(_))));
}

#[test]
fn it_is_known_of_what_an_expression_speaks() {
    let mentions = |source: &str, name: &str| {
        let known = [("self", Type::Any), ("pool", Type::Any)];
        Expression::compile(source, &known)
            .unwrap()
            .0
            .mentions(name)
    };
    assert!(mentions("self.l.all(x, x in pool.nodes)", "pool"));
    assert!(mentions("{'a': [self.b ? pool : 1]}", "pool"));
    assert!(!mentions("self.pool == 'pool'", "pool"));
    assert!(mentions("self.pool == 'pool'", "self"));
}
