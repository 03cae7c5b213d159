//! `nodeportisolation`: in which pools a service's node port listens (`nodeport.openyurt.io/listen`).

use super::{Context, Filter, Inputs, Scope, Verdict, value_of};
use serde_json::Value;
use yurt_wire::{Object, ObjectMeta, Verb};

const LISTEN: &str = "nodeport.openyurt.io/listen";

/// Drops services with node ports that do not listen in the node's pool.
#[derive(Debug)]
pub(super) struct NodePortIsolation;

impl Filter for NodePortIsolation {
    fn name(&self) -> &'static str {
        "nodeportisolation"
    }

    fn scope(&self) -> Scope {
        let verbs = [Verb::Get, Verb::List, Verb::Watch];
        Scope::of(&["kube-proxy"], &[("", "services")], &verbs)
    }

    fn inputs(&self) -> Inputs {
        Inputs::POOL
    }

    fn is_idle(&self, context: &Context) -> bool {
        context.pool.is_empty()
    }

    fn concerns(&self, _: &Object, meta: &ObjectMeta, context: &Context) -> bool {
        !context.pool.is_empty()
            && value_of(&meta.annotations, LISTEN)
                .is_some_and(|pools| !listens(pools, &context.pool))
    }

    fn apply(&self, object: &mut Value, context: &Context) -> Verdict {
        let annotations = object.pointer("/metadata/annotations");
        let pools = annotations
            .and_then(|all| all.get(LISTEN))
            .and_then(Value::as_str);
        let has_port = matches!(
            object.pointer("/spec/type").and_then(Value::as_str),
            Some("NodePort" | "LoadBalancer")
        );
        let hidden =
            !context.pool.is_empty() && pools.is_some_and(|pools| !listens(pools, &context.pool));
        if has_port && hidden {
            Verdict::Dropped
        } else {
            Verdict::Kept
        }
    }
}

/// `POOL` and `-POOL`, of which the first that names the pool counts; `*` for all that are not named.
fn listens(pools: &str, pool: &str) -> bool {
    let mut by_default = false;
    for entry in pools.split(',').map(str::trim) {
        match entry.strip_prefix('-') {
            Some(named) if named == pool => return false,
            None if entry == pool => return true,
            None if entry == "*" => by_default = true,
            _ => {}
        }
    }
    by_default
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pools_that_are_named() {
        for (pools, expected) in [
            ("here", true),
            (" here , there", true),
            ("there", false),
            ("", false),
            ("*", true),
            ("-here,*", false),
            ("*,-here", false),
            ("*,-there", true),
            ("here,-here", true),
            ("-here,here", false),
            ("-*", false),
            ("here-too", false),
        ] {
            assert_eq!(listens(pools, "here"), expected, "{pools:?}");
        }
    }
}
