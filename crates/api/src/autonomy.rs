//! What the cluster promises about the pods of a node that is cut off, as the Node says it. Pure.

use crate::names::{
    annotations::{AUTONOMY, AUTONOMY_DURATION, BINDING},
    labels::EDGE_WORKER,
};
use serde_json::Value;
use std::time::Duration;

/// What the cluster promises about the pods of a node that is cut off.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Autonomy {
    /// Nothing; why.
    Off(String),
    /// They stay for so long.
    For(Duration),
    /// They stay.
    Unlimited,
}

impl Autonomy {
    /// Reads a Node. [`AUTONOMY`] and [`BINDING`] have precedence over [`AUTONOMY_DURATION`]; a node that is labelled as none of the
    /// edge is never autonomous.
    pub fn of(node: &Value) -> Self {
        let read = |map: &str, key: &str| {
            let metadata = node.get("metadata")?.get(map)?;
            metadata.get(key)?.as_str()
        };
        if read("labels", EDGE_WORKER) == Some("false") {
            return Self::Off(format!(
                "label {EDGE_WORKER} says that the node is none of the edge"
            ));
        }
        if [AUTONOMY, BINDING]
            .iter()
            .any(|key| read("annotations", key) == Some("true"))
        {
            return Self::Unlimited;
        }
        let Some(text) = read("annotations", AUTONOMY_DURATION) else {
            return Self::Off(format!(
                "neither annotation {AUTONOMY} nor {AUTONOMY_DURATION} asks for it"
            ));
        };
        if text
            .strip_prefix('-')
            .is_some_and(|rest| parse_go_duration(rest).is_some())
        {
            return Self::Unlimited;
        }
        match parse_go_duration(text) {
            Some(Duration::ZERO) => Self::Unlimited,
            Some(duration) => Self::For(duration),
            None => {
                let shown: String = text.chars().take(64).collect();
                Self::Off(format!(
                    "annotation {AUTONOMY_DURATION} is {shown:?}, which is no duration"
                ))
            }
        }
    }

    /// Whether pods stay at all.
    pub fn is_on(&self) -> bool {
        !matches!(self, Self::Off(_))
    }
}

/// Reads a duration as Go prints it (`9m19s`, `1.5h`, `300ms`); `None` when it is not one, is negative, or does not fit.
pub fn parse_go_duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest.is_empty() {
        return None;
    }
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest
            .bytes()
            .take_while(|b| b.is_ascii_digit() || *b == b'.')
            .count();
        let (number, tail) = rest.split_at(digits);
        let number: f64 = number.parse().ok()?;
        let letters = tail
            .bytes()
            .take_while(|b| !b.is_ascii_digit() && *b != b'.')
            .count();
        let (unit, tail) = tail.split_at(letters);
        let seconds = match unit {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" | "μs" => 1e-6,
            "ns" => 1e-9,
            _ => return None,
        };
        total = total.checked_add(Duration::try_from_secs_f64(number * seconds).ok()?)?;
        rest = tail;
    }
    Some(total)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn of(annotations: &[(&str, &str)]) -> Autonomy {
        let annotations: serde_json::Map<String, Value> = annotations
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).into()))
            .collect();
        Autonomy::of(&json!({"metadata": {"annotations": annotations}}))
    }

    #[test]
    fn which_annotation_says_what() {
        use Autonomy::{For, Unlimited};
        assert!(
            matches!(Autonomy::of(&json!({})), Autonomy::Off(why) if why.contains(AUTONOMY_DURATION))
        );
        assert_eq!(of(&[(AUTONOMY, "true")]), Unlimited);
        assert_eq!(of(&[(BINDING, "true")]), Unlimited);
        let hour = For(Duration::from_secs(3600));
        assert_eq!(of(&[(AUTONOMY_DURATION, "1h")]), hour);
        assert_eq!(of(&[(AUTONOMY, "false"), (AUTONOMY_DURATION, "1h")]), hour);
        let both = of(&[(BINDING, "true"), (AUTONOMY_DURATION, "1h")]);
        assert_eq!(both, Unlimited);
        for forever in ["0", "0s", "-1s", "-1h30m"] {
            assert_eq!(of(&[(AUTONOMY_DURATION, forever)]), Unlimited, "{forever}");
        }
        for nonsense in ["", "soon", "-", "-x", "5", "1h-1m"] {
            let said = of(&[(AUTONOMY_DURATION, nonsense)]);
            assert!(
                matches!(&said, Autonomy::Off(why) if why.contains("no duration")),
                "{nonsense}: {said:?}"
            );
        }
        for other in ["True", "1", "yes", ""] {
            assert!(!of(&[(AUTONOMY, other)]).is_on());
        }
    }

    #[test]
    fn a_node_that_is_none_of_the_edge_is_never_autonomous() {
        let node = |edge: &str| json!({"metadata": {"annotations": {AUTONOMY: "true"}, "labels": {EDGE_WORKER: edge}}});
        assert!(matches!(Autonomy::of(&node("false")), Autonomy::Off(why) if why.contains("edge")));
        assert_eq!(Autonomy::of(&node("true")), Autonomy::Unlimited);
        assert_eq!(Autonomy::of(&node("")), Autonomy::Unlimited);
    }

    proptest! {
        #[test]
        fn any_text_is_a_duration_or_not(text in "\\PC{0,20}") {
            let _ = parse_go_duration(&text);
        }

        #[test]
        fn whole_seconds_are_read_as_go_prints_them(seconds in 0u64..10_000_000) {
            let text = format!("{}h{}m{}s", seconds / 3600, seconds / 60 % 60, seconds % 60);
            prop_assert_eq!(parse_go_duration(&text), Some(Duration::from_secs(seconds)));
        }
    }
}
