//! NodePools: completed, judged, and kept while they have nodes.

use super::{
    fault::Findings,
    review::{Answer, Denial},
};
use crate::fitting::LONGEST;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use yurt_api::names::{annotations, labels, objects::LEADER_CONFIG_PREFIX};
use yurt_controller::fields::{items, text};
use yurt_wire::selector::label_value_errors;

/// More leaders than this would fetch more often what is to be fetched once.
const MOST_LEADERS: i64 = 100;
/// Kubernetes' bound for the annotations of an object, which those of the pool become part of.
const MOST_ANNOTATIONS: usize = 256 << 10;
/// What a pool cannot give its nodes: what they are, where they belong, and what is said elsewhere in the pool.
const RESERVED_LABELS: [&str; 5] = [
    labels::NODE_POOL,
    labels::DESIRED_NODE_POOL,
    labels::EDGE_WORKER,
    labels::HOST_NETWORK,
    "kubernetes.io/hostname",
];
const EFFECTS: [&str; 3] = ["NoSchedule", "PreferNoSchedule", "NoExecute"];

/// What is made of a pool that somebody writes. `created`: for the first time.
pub(super) fn completed(mut pool: Value, created: bool) -> Value {
    let spec = &mut pool["spec"];
    if !spec.is_object() {
        *spec = json!({});
    }
    let empty = |value: &Value| value.as_str().unwrap_or_default().is_empty();
    if empty(&spec["type"]) {
        spec["type"] = "Edge".into();
    }
    if empty(&spec["leaderElectionStrategy"]) {
        spec["leaderElectionStrategy"] = "random".into();
    }
    if spec["leaderReplicas"].as_i64().is_none_or(|n| n <= 0) {
        spec["leaderReplicas"] = 1.into();
    }
    if created {
        let mut resources: Vec<Value> = items(&spec["poolScopeMetadata"]).cloned().collect();
        for (group, resource) in [("", "services"), ("discovery.k8s.io", "endpointslices")] {
            let wanted = json!({"group": group, "version": "v1", "resource": resource});
            if !resources.contains(&wanted) {
                resources.push(wanted);
            }
        }
        spec["poolScopeMetadata"] = resources.into();
    }
    let kind = text(&spec["type"]).to_lowercase();
    if !pool["metadata"]["labels"].is_object() {
        pool["metadata"]["labels"] = json!({});
    }
    pool["metadata"]["labels"][labels::NODE_POOL_TYPE] = kind.into();
    if created && let Some(pool) = pool.as_object_mut() {
        pool.remove("status");
    }
    pool
}

/// What is wrong with a pool.
fn findings(pool: &Value) -> Findings {
    let mut found = Findings::default();
    let (name, spec) = (text(&pool["metadata"]["name"]), &pool["spec"]);
    // Nodes carry it.
    for why in label_value_errors(&name) {
        found.fault("metadata.name", format!("nodes carry it as a label: {why}"));
    }
    let kind = text(&spec["type"]);
    if !["Edge", "Cloud"].contains(&kind.as_str()) {
        found.fault("spec.type", format!("{kind:?} is neither Edge nor Cloud"));
    }
    if kind == "Cloud" && spec["hostNetwork"] == true {
        found.fault(
            "spec.hostNetwork",
            "a Cloud pool has a container network; leave it out, or make it an Edge pool",
        );
    }
    given_to_nodes(spec, &mut found);
    leaders(spec, &mut found);
    let mut seen = BTreeSet::new();
    for (i, resource) in items(&spec["poolScopeMetadata"]).enumerate() {
        let at = format!("spec.poolScopeMetadata[{i}]");
        let names = ["group", "version", "resource"].map(|field| text(&resource[field]));
        if names[1].is_empty() || names[2].is_empty() {
            found.fault(
                &at,
                "version and resource say what is shared, as in v1 and services",
            );
        }
        if !seen.insert(names) {
            found.fault(&at, "is there before");
        }
    }
    found
}

/// Labels, annotations and taints.
fn given_to_nodes(spec: &Value, found: &mut Findings) {
    found.labels("spec.labels", &spec["labels"]);
    for key in spec["labels"]
        .as_object()
        .into_iter()
        .flatten()
        .map(|label| label.0)
    {
        if RESERVED_LABELS.contains(&key.as_str()) {
            found.fault(
                format!("spec.labels[{key}]"),
                "a pool cannot give this label to its nodes",
            );
        }
    }
    let mut size = 0;
    for (key, value) in spec["annotations"].as_object().into_iter().flatten() {
        let field = format!("spec.annotations[{key}]");
        found.key(&field, &key.to_lowercase());
        size += key.len() + value.as_str().map_or(0, str::len);
        if key == annotations::PREVIOUS_ATTRIBUTES {
            found.fault(field, "this is where nodes keep what pools gave them");
        }
    }
    if size > MOST_ANNOTATIONS {
        found.fault(
            "spec.annotations",
            format!("must have at most {MOST_ANNOTATIONS} bytes in total"),
        );
    }
    let mut seen = BTreeSet::new();
    for (i, taint) in items(&spec["taints"]).enumerate() {
        let at = format!("spec.taints[{i}]");
        let (key, effect) = (text(&taint["key"]), text(&taint["effect"]));
        found.key(&format!("{at}.key"), &key);
        for why in label_value_errors(&text(&taint["value"])) {
            found.fault(format!("{at}.value"), why);
        }
        if !EFFECTS.contains(&effect.as_str()) {
            found.fault(
                format!("{at}.effect"),
                format!("{effect:?} is none of {}", EFFECTS.join(", ")),
            );
        }
        if !seen.insert((key, effect)) {
            found.fault(&at, "a node has one taint of a key and effect");
        }
    }
}

fn leaders(spec: &Value, found: &mut Findings) {
    let strategy = text(&spec["leaderElectionStrategy"]);
    let selector = &spec["leaderNodeLabelSelector"];
    let selects = selector.as_object().is_some_and(|map| !map.is_empty());
    match strategy.as_str() {
        "mark" if !selects => found.fault(
            "spec.leaderNodeLabelSelector",
            "the strategy mark needs the labels of the nodes that may lead",
        ),
        "random" if selects => found.warning(
            "spec.leaderNodeLabelSelector has no effect with the strategy random; use mark",
        ),
        "mark" | "random" => {}
        other => found.fault(
            "spec.leaderElectionStrategy",
            format!("{other:?} is neither random nor mark"),
        ),
    }
    found.labels("spec.leaderNodeLabelSelector", selector);
    if spec["leaderReplicas"]
        .as_i64()
        .is_some_and(|n| n > MOST_LEADERS)
    {
        found.fault(
            "spec.leaderReplicas",
            format!("must be at most {MOST_LEADERS}; one or two are usual"),
        );
    }
    if spec["enableLeaderElection"] == true && spec["interConnectivity"] != true {
        found.warning(
            "spec.interConnectivity is not true: leaders are elected, but nothing is shared among the nodes",
        );
    }
}

/// Judges a pool that is created, or takes the place of `old`.
pub(super) fn judged(old: Option<&Value>, new: &Value) -> Result<Answer, Denial> {
    if let Some(old) = old {
        let said = |pool: &Value, field: &str| match &pool["spec"][field] {
            Value::Null => Value::from(false),
            other => other.clone(),
        };
        if old["spec"]["type"].is_string() && old["spec"]["type"] != new["spec"]["type"] {
            return Err(immutable("type"));
        }
        for field in ["hostNetwork", "interConnectivity"] {
            if said(old, field) != said(new, field) {
                return Err(immutable(field));
            }
        }
    }
    let mut answer = findings(new).verdict(old.map(findings))?;
    let name = text(&new["metadata"]["name"]);
    if old.is_none() && LEADER_CONFIG_PREFIX.len() + name.len() > LONGEST {
        answer.warnings.push(format!(
            "hubs of OpenYurt cannot read the settings of a pool whose name is longer than {} characters; Yurt's can",
            LONGEST - LEADER_CONFIG_PREFIX.len()
        ));
    }
    Ok(answer)
}

fn immutable(field: &str) -> Denial {
    Denial::Forbidden(format!(
        "spec.{field} cannot be changed: its nodes were set up for it; create another pool and move the nodes there"
    ))
}

/// Judges the end of a pool that has these nodes (some of them).
pub(super) fn deleted(name: &str, nodes: &[String], more: bool) -> Result<Answer, Denial> {
    if nodes.is_empty() {
        return Ok(Answer::default());
    }
    let others = if more { ", ..." } else { "" };
    Err(Denial::Forbidden(format!(
        "pool {name} still has nodes ({}{others}): remove the label {} from them first, as with `kubectl label node {} {}-`",
        nodes.join(", "),
        labels::NODE_POOL,
        nodes[0],
        labels::NODE_POOL,
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(spec: Value) -> Value {
        completed(
            json!({"kind": "NodePool", "metadata": {"name": "hangzhou"}, "spec": spec}),
            true,
        )
    }

    #[test]
    fn a_new_pool_is_completed() {
        let services = json!({"group": "", "version": "v1", "resource": "services"});
        let slices =
            json!({"group": "discovery.k8s.io", "version": "v1", "resource": "endpointslices"});
        let mut bare = json!({"metadata": {"name": "a"}, "status": {"readyNodeNum": 7}});
        bare = completed(bare, true);
        assert_eq!(
            bare,
            json!({"metadata": {"name": "a", "labels": {"nodepool.openyurt.io/type": "edge"}},
                "spec": {"type": "Edge", "leaderElectionStrategy": "random", "leaderReplicas": 1,
                    "poolScopeMetadata": [services, slices]}})
        );
        assert_eq!(completed(bare.clone(), true), bare, "once is enough");
        let own = json!({"group": "a.b", "version": "v1", "resource": "c"});
        let cloud = pool(
            json!({"type": "Cloud", "leaderElectionStrategy": "mark", "leaderReplicas": -1,
            "poolScopeMetadata": [own, services]}),
        );
        assert_eq!(
            cloud["metadata"]["labels"]["nodepool.openyurt.io/type"],
            "cloud"
        );
        assert_eq!(
            cloud["spec"]["poolScopeMetadata"],
            json!([own, services, slices])
        );
        assert_eq!(cloud["spec"]["leaderReplicas"], 1);
        assert_eq!(cloud["spec"]["leaderElectionStrategy"], "mark");
        // Later, what is shared is the user's to say.
        let mut later = cloud.clone();
        later["spec"]["poolScopeMetadata"] = json!([]);
        later["metadata"]["labels"] = Value::Null;
        let kept = completed(later, false);
        assert_eq!(kept["spec"]["poolScopeMetadata"], json!([]));
        assert_eq!(
            kept["metadata"]["labels"]["nodepool.openyurt.io/type"],
            "cloud"
        );
    }

    #[test]
    fn what_is_wrong_is_named() {
        let wrong = [
            (json!({"type": "edge"}), "spec.type"),
            (
                json!({"type": "Cloud", "hostNetwork": true}),
                "spec.hostNetwork",
            ),
            (json!({"labels": {"a b": "c"}}), "spec.labels[a b]"),
            (json!({"labels": {"a": "b c"}}), "spec.labels[a]"),
            (
                json!({"labels": {"apps.openyurt.io/nodepool": "other"}}),
                "spec.labels[apps.openyurt.io/nodepool]",
            ),
            (json!({"annotations": {"/a": "b"}}), "spec.annotations[/a]"),
            (
                json!({"annotations": {"nodepool.openyurt.io/previous-attributes": "{}"}}),
                "spec.annotations",
            ),
            (
                json!({"annotations": {"a": "x".repeat(300_000)}}),
                "spec.annotations",
            ),
            (
                json!({"taints": [{"key": "", "effect": "NoSchedule"}]}),
                "spec.taints[0].key",
            ),
            (
                json!({"taints": [{"key": "a", "effect": "Never"}]}),
                "spec.taints[0].effect",
            ),
            (
                json!({"taints": [{"key": "a", "value": "/", "effect": "NoExecute"}]}),
                "spec.taints[0].value",
            ),
            (
                json!({"taints": [{"key": "a", "effect": "NoExecute"}, {"key": "a", "value": "b", "effect": "NoExecute"}]}),
                "spec.taints[1]",
            ),
            (
                json!({"leaderElectionStrategy": "Random"}),
                "spec.leaderElectionStrategy",
            ),
            (
                json!({"leaderElectionStrategy": "mark"}),
                "spec.leaderNodeLabelSelector",
            ),
            (
                json!({"leaderElectionStrategy": "mark", "leaderNodeLabelSelector": {"a": "b c"}}),
                "spec.leaderNodeLabelSelector[a]",
            ),
            (json!({"leaderReplicas": 101}), "spec.leaderReplicas"),
            (
                json!({"poolScopeMetadata": [{"group": "", "version": "", "resource": "x"}]}),
                "spec.poolScopeMetadata[0]",
            ),
            (
                json!({"poolScopeMetadata": [{"group": "", "version": "v1", "resource": "x"}, {"group": "", "version": "v1", "resource": "x"}]}),
                "spec.poolScopeMetadata[1]",
            ),
        ];
        for (spec, field) in wrong {
            let Err(Denial::Invalid(faults)) = judged(None, &pool(spec.clone())) else {
                panic!("{spec} is allowed");
            };
            assert!(faults[0].to_string().starts_with(field), "{}", faults[0]);
            // It is there already: what else is said may change.
            let mut later = pool(spec.clone());
            later["spec"]["enableLeaderElection"] = true.into();
            assert!(judged(Some(&pool(spec)), &later).is_ok());
        }
        let mut long = pool(json!({}));
        long["metadata"]["name"] = "a".repeat(64).into();
        assert!(judged(None, &long).is_err());
        let good = pool(
            json!({"labels": {"a": "b"}, "annotations": {"A.b/C": "any thing"},
            "taints": [{"key": "a", "effect": "NoExecute"}, {"key": "a", "effect": "NoSchedule"}],
            "enableLeaderElection": true, "interConnectivity": true}),
        );
        assert_eq!(judged(None, &good), Ok(Answer::default()));
        for (length, warned) in [(52, 0), (53, 1), (63, 1)] {
            let mut long = good.clone();
            long["metadata"]["name"] = "p".repeat(length).into();
            let answer = judged(None, &long).unwrap();
            assert_eq!(answer.warnings.len(), warned, "{length}");
            assert_eq!(judged(Some(&long), &long), Ok(Answer::default()));
        }
    }

    #[test]
    fn what_nodes_were_set_up_for_stays() {
        let before = pool(json!({"interConnectivity": true}));
        for (field, value) in [
            ("type", json!("Cloud")),
            ("hostNetwork", json!(true)),
            ("interConnectivity", json!(false)),
            ("interConnectivity", Value::Null),
        ] {
            let mut after = before.clone();
            after["spec"][field] = value;
            let denied = judged(Some(&before), &after);
            assert!(
                matches!(&denied, Err(Denial::Forbidden(why)) if why.contains(field)),
                "{field}: {denied:?}"
            );
        }
        let mut after = before.clone();
        after["spec"]["hostNetwork"] = false.into();
        assert!(judged(Some(&before), &after).is_ok(), "absent is false");
    }

    #[test]
    fn a_pool_with_nodes_stays() {
        assert!(deleted("a", &[], false).is_ok());
        let Err(Denial::Forbidden(why)) = deleted("a", &["n1".into(), "n2".into()], true) else {
            panic!("allowed");
        };
        assert!(
            why.contains("n1, n2, ...")
                && why.contains("kubectl label node n1 apps.openyurt.io/nodepool-")
        );
    }
}
