//! `pod-binding-controller` of OpenYurt: pods of an autonomous node are not evicted while it is cut off, for as long as the node says
//! ([`Autonomy`]). Their tolerations of `not-ready` and `unreachable` say so; what they were before stands in annotations of the pod
//! and comes back when the node is no longer autonomous.
//!
//! A node whose lease its pool renews is never unreachable for Kubernetes (`delegate_lease`): no time runs for its pods. So the
//! duration counts for nodes that nobody vouches for: those are dead, and their pods go when it is over.

use crate::{
    Context, Controller, Entry, Failure, Key, Next, Watch,
    collections::{NODES, PODS},
    controller_of,
    fields::items,
    pod,
    told::Told,
};
use serde_json::{Map, Value, json};
use std::{sync::Arc, time::Duration};
use yurt_api::{
    autonomy::Autonomy,
    names::{
        annotations::{
            AUTONOMY, AUTONOMY_DURATION, BINDING, ORIGINAL_NOT_READY, ORIGINAL_UNREACHABLE,
        },
        labels::EDGE_WORKER,
        taints::{NOT_READY, UNREACHABLE},
    },
};
use yurt_controller::policy::Rule;

/// The taints that evict, and where a pod keeps how long it tolerated them by itself.
const TAINTS: [(&str, &str); 2] = [
    (NOT_READY, ORIGINAL_NOT_READY),
    (UNREACHABLE, ORIGINAL_UNREACHABLE),
];
const EFFECT: &str = "NoExecute";
/// Of a pod that the kubelet runs of a file.
const MIRROR: &str = "kubernetes.io/config.mirror";

pub(crate) const ENTRY: Entry = Entry::of::<PodBinding>(
    "podbinding",
    &[
        Rule::new("", &["pods"], &["patch"]),
        Rule::new("", &["events"], &["create"]),
    ],
);

/// `pod-binding-controller`. Its keys are nodes.
#[derive(Debug, Default)]
pub(crate) struct PodBinding {
    told: Told,
}

/// How long the pods of a node are to tolerate that it is away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stay {
    /// As they say themselves.
    Own,
    /// For so many seconds.
    For(i64),
    /// For ever.
    Forever,
}

impl Stay {
    fn of(autonomy: &Autonomy) -> Self {
        match autonomy {
            Autonomy::Off(_) => Self::Own,
            Autonomy::Unlimited => Self::Forever,
            // A part of a second more is better than an eviction at once.
            Autonomy::For(duration) => {
                Self::For(i64::try_from(duration.as_millis().div_ceil(1000)).unwrap_or(i64::MAX))
            }
        }
    }

    /// `tolerationSeconds`.
    fn seconds(self) -> Option<i64> {
        match self {
            Self::For(seconds) => Some(seconds),
            Self::Own | Self::Forever => None,
        }
    }
}

/// Whether a toleration is about a taint that evicts.
fn is_about(toleration: &Value, taint: &str) -> bool {
    toleration["key"] == taint && toleration["effect"] == EFFECT
}

/// Whether a toleration covers the taint for ever by itself: it is wider than the one this controller writes.
fn covers(toleration: &Value, taint: &str) -> bool {
    let exists = toleration["operator"] == "Exists";
    let key = toleration["key"].as_str().unwrap_or_default();
    let effect = toleration["effect"].as_str().unwrap_or_default();
    let wide = key.is_empty() && exists && (effect.is_empty() || effect == EFFECT);
    let any_effect = key == taint && exists && effect.is_empty();
    (wide || any_effect) && toleration["tolerationSeconds"].is_null()
}

fn set_seconds(toleration: &mut Value, seconds: Option<i64>) {
    match (seconds, toleration.as_object_mut()) {
        (Some(seconds), _) => toleration["tolerationSeconds"] = seconds.into(),
        (None, Some(fields)) => {
            fields.remove("tolerationSeconds");
        }
        (None, None) => {}
    }
}

/// What is to be changed of a pod so that it stays; `None` when nothing is. What it said itself is saved before the first change;
/// a pod that tolerates the taint for ever by its own word is left alone. Pure.
fn patch(p: &Value, stay: Stay) -> Option<Value> {
    let known = &p["metadata"]["annotations"];
    let before: Vec<Value> = items(&p["spec"]["tolerations"]).cloned().collect();
    let mut tolerations = before.clone();
    let mut saved = Map::new();
    for (taint, annotation) in TAINTS {
        let own = known[annotation].as_str().map(str::parse::<i64>);
        let ours: Vec<&mut Value> = (tolerations.iter_mut())
            .filter(|toleration| is_about(toleration, taint))
            .collect();
        if stay == Stay::Own {
            if let Some(Ok(seconds)) = own {
                ours.into_iter()
                    .for_each(|toleration| set_seconds(toleration, Some(seconds)));
            }
        } else if !ours.is_empty() {
            if own.is_none() {
                // The shortest of them counts.
                let seconds = ours.iter().filter_map(|t| t["tolerationSeconds"].as_i64());
                let Some(seconds) = seconds.min() else {
                    continue;
                };
                saved.insert(annotation.into(), seconds.to_string().into());
            }
            ours.into_iter()
                .for_each(|toleration| set_seconds(toleration, stay.seconds()));
        } else if !before.iter().any(|toleration| covers(toleration, taint)) {
            // Without one it would be evicted at once: that is no second of its own.
            if own.is_none() {
                saved.insert(annotation.into(), "0".into());
            }
            let mut toleration = json!({"key": taint, "operator": "Exists", "effect": EFFECT});
            set_seconds(&mut toleration, stay.seconds());
            tolerations.push(toleration);
        }
    }
    if tolerations == before && saved.is_empty() {
        return None;
    }
    let mut patch = json!({"metadata": {"uid": p["metadata"]["uid"], "resourceVersion": p["metadata"]["resourceVersion"]}});
    if !saved.is_empty() {
        patch["metadata"]["annotations"] = saved.into();
    }
    if tolerations != before {
        patch["spec"]["tolerations"] = tolerations.into();
    }
    Some(patch)
}

/// Whether a pod can be evicted, and comes to another node then.
fn is_bound(p: &Value) -> bool {
    let of_daemons = controller_of(p).is_some_and(|owner| owner["kind"] == "DaemonSet");
    pod::is_active(p) && !of_daemons && p["metadata"]["annotations"][MIRROR].is_null()
}

/// What of a node decides.
fn node_matters(node: &Value) -> [&Value; 4] {
    let annotations = &node["metadata"]["annotations"];
    [
        &annotations[BINDING],
        &annotations[AUTONOMY],
        &annotations[AUTONOMY_DURATION],
        &node["metadata"]["labels"][EDGE_WORKER],
    ]
}

/// What of a pod decides.
fn pod_matters(p: &Value) -> [&Value; 4] {
    let annotations = &p["metadata"]["annotations"];
    [
        &p["spec"]["nodeName"],
        &p["spec"]["tolerations"],
        &annotations[ORIGINAL_NOT_READY],
        &annotations[ORIGINAL_UNREACHABLE],
    ]
}

impl Controller for PodBinding {
    const NAME: &'static str = "pod-binding-controller";
    const WORKERS: usize = 5;

    fn watches(&self, _: &Arc<Context>) -> Vec<Watch> {
        let nodes = Watch::of(NODES, |change| {
            let matters = |node: &Option<Arc<Value>>| {
                let node = node.as_deref()?;
                Some(node_matters(node).map(Value::clone))
            };
            if matters(&change.old) == matters(&change.new) {
                return Vec::new();
            }
            vec![change.key()]
        });
        let pods = Watch::of(PODS, |change| {
            let Some(p) = change.new.as_deref() else {
                return Vec::new();
            };
            let same = change
                .old
                .as_deref()
                .is_some_and(|old| pod_matters(old) == pod_matters(p));
            if same || pod::node(p).is_empty() || !is_bound(p) {
                return Vec::new();
            }
            vec![Key::new("", pod::node(p))]
        });
        vec![nodes, pods]
    }

    async fn reconcile(&self, key: &Key, context: &Context) -> Result<Next, Failure> {
        let Some(node) = context.objects(&NODES).get(key) else {
            self.told.is_news(&key.name, "");
            return Ok(Next::Done);
        };
        let autonomy = Autonomy::of(&node);
        let malformed = match &autonomy {
            Autonomy::Off(why)
                if node["metadata"]["annotations"][AUTONOMY_DURATION].is_string() =>
            {
                why.as_str()
            }
            _ => "",
        };
        if self.told.is_news(&key.name, malformed) {
            let message = format!("pods are not kept on this node: {malformed}");
            context.event(Self::NAME, &node, "Warning", "InvalidAutonomy", &message);
        }
        let stay = Stay::of(&autonomy);
        let (mut again, mut failed) = (false, None);
        for p in context.objects(&PODS).on_node(&key.name) {
            let Some(patch) = is_bound(&p).then(|| patch(&p, stay)).flatten() else {
                continue;
            };
            match context.merge(&PODS, &Key::of(&p), "", &patch).await {
                Ok(_) => {}
                // Somebody else wrote: its event may have come already.
                Err(error) if error.code() == Some(409) => again = true,
                Err(error) if error.code() == Some(404) => {}
                // It would be refused again.
                Err(error) if error.code() == Some(422) => {
                    let uid = p["metadata"]["uid"].as_str().unwrap_or_default();
                    let message = format!("its tolerations cannot be changed: {}", error.message());
                    if self.told.is_news(uid, &message) {
                        context.event(Self::NAME, &p, "Warning", "FailedBinding", &message);
                    }
                }
                Err(error) => failed = Some(error),
            }
        }
        match failed {
            Some(error) => Err(error.into()),
            None if again => Ok(Next::After(Duration::from_millis(200))),
            None => Ok(Next::Done),
        }
    }
}

#[cfg(test)]
mod tests;
