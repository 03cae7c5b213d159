//! What the Node says about the node's autonomy. Pure.

use crate::deadline::parse_go_duration;
use serde_json::Value;
use std::time::Duration;

/// `"true"`: the pods of the node are never evicted.
pub const AUTONOMY: &str = "node.beta.openyurt.io/autonomy";
/// How long they are not evicted, as Go writes durations; nothing or less: never.
pub const AUTONOMY_DURATION: &str = "node.openyurt.io/autonomy-duration";
/// `"true"`: as [`AUTONOMY`].
pub const BINDING: &str = "apps.openyurt.io/binding";
/// Label; `"false"`: the node is none of the edge, and never autonomous.
pub const EDGE_WORKER: &str = "openyurt.io/is-edge-worker";

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
    /// Reads a Node. [`AUTONOMY`] and [`BINDING`] have precedence over [`AUTONOMY_DURATION`].
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
}

#[cfg(test)]
mod tests {
    use super::*;
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
        assert_eq!(
            of(&[(BINDING, "true"), (AUTONOMY_DURATION, "1h")]),
            Unlimited
        );
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
            assert!(matches!(of(&[(AUTONOMY, other)]), Autonomy::Off(_)));
        }
    }

    #[test]
    fn a_node_that_is_none_of_the_edge_is_never_autonomous() {
        let node = |edge: &str| json!({"metadata": {"annotations": {AUTONOMY: "true"}, "labels": {EDGE_WORKER: edge}}});
        assert!(matches!(Autonomy::of(&node("false")), Autonomy::Off(why) if why.contains("edge")));
        assert_eq!(Autonomy::of(&node("true")), Autonomy::Unlimited);
        assert_eq!(Autonomy::of(&node("")), Autonomy::Unlimited);
    }
}
