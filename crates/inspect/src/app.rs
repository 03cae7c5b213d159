//! `kubectl yurt app`: an app, pool by pool. Pure.

mod name;
mod text;

use crate::{
    node::{self, Leases, Link, annotation, label, name},
    observe::strategy,
    table::count,
};
pub(crate) use name::{KINDS, Kind, Name};
use serde::Serialize;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use yurt_api::names::{annotations, conditions, labels};
use yurt_controller::{claim, condition, pod};
use yurt_wire::selector::LabelSelector;

/// Selects the pods of an app, as a query takes it.
pub(crate) fn selector(app: &Value) -> Option<String> {
    let spec = &app["spec"];
    let template = match &spec["workload"]["workloadTemplate"] {
        Value::Null => &spec["workloadTemplate"],
        template => template,
    };
    let of_template = ["deploymentTemplate", "statefulSetTemplate"]
        .iter()
        .map(|kind| &template[kind]["spec"]["selector"])
        .find(|selector| selector.is_object());
    let selector = of_template.unwrap_or(&spec["selector"]);
    LabelSelector::from_json(selector)
        .ok()
        .map(|s| s.to_string())
}

/// Read for an app.
pub(crate) struct AppObserved {
    pub(crate) kind: Kind,
    pub(crate) object: Value,
    pub(crate) workloads: Vec<Value>,
    pub(crate) pods: Vec<Value>,
    pub(crate) pools: Vec<Value>,
    pub(crate) nodes: Vec<Value>,
    pub(crate) leases: Leases,
    pub(crate) unseen: Vec<String>,
}

/// A Deployment or StatefulSet of a set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Workload {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) kind: String,
    pub(crate) desired: i64,
    pub(crate) ready: i64,
    pub(crate) updated: i64,
    pub(crate) images: Vec<String>,
}

fn number(value: &Value) -> i64 {
    value.as_i64().unwrap_or(0)
}

fn images(template: &Value) -> Vec<String> {
    let containers = template["spec"]["containers"]
        .as_array()
        .into_iter()
        .flatten();
    containers
        .filter_map(|c| c["image"].as_str().map(str::to_owned))
        .collect()
}

impl Workload {
    pub(crate) fn of(workload: &Value) -> Self {
        let (spec, status) = (&workload["spec"], &workload["status"]);
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        Self {
            namespace: text(&workload["metadata"]["namespace"]),
            name: name(workload).to_owned(),
            kind: text(&workload["kind"]),
            desired: spec["replicas"].as_i64().unwrap_or(1),
            ready: number(&status["readyReplicas"]),
            updated: number(&status["updatedReplicas"]),
            images: images(&spec["template"]),
        }
    }
}

/// How far a pool is with what is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) enum Phase {
    /// There is no such pool.
    NoPool,
    /// Its workload is not there.
    Missing,
    /// Its workload is being deleted.
    Deleting,
    /// It runs something older, and nothing is done about that yet.
    Waiting,
    /// Its workload is paused.
    Paused,
    /// Old pods are being replaced.
    Updating,
    /// It does not come further.
    Failed,
    /// Pods are not ready.
    NotReady,
    /// No pod is wanted.
    Empty,
    Ready,
}

impl Phase {
    fn of(workload: &Value, is_current: bool) -> Self {
        let Workload {
            desired,
            ready,
            updated,
            ..
        } = Workload::of(workload);
        let status = &workload["status"];
        let seen =
            number(&status["observedGeneration"]) >= number(&workload["metadata"]["generation"]);
        let progressing = condition::find(status, "Progressing");
        let stuck = progressing.is_some_and(|progressing| progressing["status"] == "False")
            || condition::holds(status, "ReplicaFailure");
        if pod::is_deleting(workload) {
            Self::Deleting
        } else if !is_current {
            Self::Waiting
        } else if stuck {
            Self::Failed
        } else if workload["spec"]["paused"] == true && updated < desired {
            Self::Paused
        } else if !seen || updated < desired {
            Self::Updating
        } else if desired == 0 {
            Self::Empty
        } else if ready < desired {
            Self::NotReady
        } else {
            Self::Ready
        }
    }

    /// As the manager says it of a set that it looks after.
    fn said(pool: &Value) -> Option<Self> {
        Some(match pool["phase"].as_str()? {
            "Ready" if pool["replicas"] == 0 => Self::Empty,
            "Ready" => Self::Ready,
            "NotReady" => Self::NotReady,
            "Updating" => Self::Updating,
            "Waiting" => Self::Waiting,
            "Deleting" => Self::Deleting,
            "Failed" => Self::Failed,
            _ => return None,
        })
    }

    fn is_well(self) -> bool {
        matches!(self, Self::Ready | Self::Empty)
    }
}

/// An app in a pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct InPool {
    /// The pool; empty for nodes in none.
    pool: String,
    /// The Deployment or StatefulSet, for sets.
    workload: String,
    desired: i64,
    ready: i64,
    updated: i64,
    images: Vec<String>,
    /// The revision of its workload.
    revision: String,
    phase: Phase,
    problem: String,
}

/// An app.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct App {
    kind: Kind,
    namespace: String,
    name: String,
    /// How nodes come to a new template, for what is on every node.
    strategy: Option<String>,
    revision: String,
    /// Whether its status is of the newest spec.
    observed: bool,
    pools: Vec<InPool>,
    conditions: Vec<Condition>,
    unseen: Vec<String>,
}

/// A condition.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Condition {
    #[serde(rename = "type")]
    kind: String,
    status: String,
    reason: String,
    message: String,
}

impl AppObserved {
    pub(crate) fn judge(self) -> App {
        let status = &self.object["status"];
        let pools = match self.kind {
            Kind::YurtAppSet | Kind::YurtAppDaemon => self.by_workloads(),
            Kind::YurtStaticSet | Kind::DaemonSet => self.by_pods(),
        };
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let all = status["conditions"].as_array().into_iter().flatten();
        let conditions = all.map(|condition| Condition {
            kind: text(&condition["type"]),
            status: text(&condition["status"]),
            reason: text(&condition["reason"]),
            message: text(&condition["message"]),
        });
        let observed =
            number(&status["observedGeneration"]) >= number(&self.object["metadata"]["generation"]);
        App {
            kind: self.kind,
            namespace: text(&self.object["metadata"]["namespace"]),
            name: name(&self.object).to_owned(),
            strategy: self.strategy(),
            revision: text(&status["currentRevision"]),
            observed,
            conditions: conditions.collect(),
            pools,
            unseen: self.unseen,
        }
    }

    /// The pools that a set wants, and whether they exist.
    fn wanted(&self) -> BTreeMap<String, bool> {
        let spec = &self.object["spec"];
        let exists = |pool: &str| self.pools.iter().any(|known| name(known) == pool);
        let named = spec["pools"].as_array().into_iter().flatten();
        let mut wanted: BTreeMap<String, bool> = named
            .filter_map(Value::as_str)
            .map(|pool| (pool.to_owned(), exists(pool)))
            .collect();
        // No selector selects none.
        if let Ok(selector) = LabelSelector::from_json(&spec["nodepoolSelector"]) {
            for pool in &self.pools {
                if selector.matches(&claim::labels(pool)) {
                    wanted.insert(name(pool).to_owned(), true);
                }
            }
        }
        wanted
    }

    fn by_workloads(&self) -> Vec<InPool> {
        let uid = &self.object["metadata"]["uid"];
        let current = self.object["status"]["currentRevision"]
            .as_str()
            .unwrap_or_default();
        let told = self.object["status"]["pools"].as_array();
        let said = |pool: &str| told.and_then(|told| told.iter().find(|said| said["pool"] == pool));
        let owned = |workload: &&Value| {
            let mut owners = workload["metadata"]["ownerReferences"]
                .as_array()
                .into_iter()
                .flatten();
            owners.any(|owner| owner["uid"] == *uid && owner["controller"] == true)
        };
        let mut rows = Vec::new();
        let mut wanted = self.wanted();
        for workload in self.workloads.iter().filter(owned) {
            let pool = label(workload, labels::WORKLOAD_POOL).unwrap_or_default();
            let exists = wanted.remove(pool);
            let revision = label(workload, labels::CONTROLLER_REVISION_HASH).unwrap_or_default();
            let Workload {
                name: workload_name,
                desired,
                ready,
                updated,
                images,
                ..
            } = Workload::of(workload);
            let said = said(pool);
            let phase = said
                .and_then(Phase::said)
                .unwrap_or_else(|| Phase::of(workload, revision == current || current.is_empty()));
            let message = said
                .and_then(|said| said["message"].as_str())
                .unwrap_or_default();
            let problem = match (exists, phase) {
                (None, _) => "the set does not select this pool any more".to_owned(),
                (_, phase) if phase.is_well() => String::new(),
                _ => match (message, self.problem(workload)) {
                    ("", problem) => problem,
                    (message, problem) if problem.is_empty() || message.contains(&problem) => {
                        message.to_owned()
                    }
                    (message, problem) => format!("{message}; {problem}"),
                },
            };
            rows.push(InPool {
                pool: pool.to_owned(),
                workload: workload_name,
                desired,
                ready,
                updated,
                images,
                revision: revision.to_owned(),
                phase,
                problem,
            });
        }
        rows.extend(wanted.into_iter().map(|(pool, exists)| InPool {
            workload: String::new(),
            desired: 0,
            ready: 0,
            updated: 0,
            images: Vec::new(),
            revision: String::new(),
            phase: if exists {
                Phase::Missing
            } else {
                Phase::NoPool
            },
            problem: if exists {
                let message = said(&pool).and_then(|said| said["message"].as_str());
                message
                    .unwrap_or("no workload yet: see the conditions, and events of the set")
                    .to_owned()
            } else {
                format!("there is no NodePool {pool}")
            },
            pool,
        }));
        rows.sort_by(|a, b| (&a.pool, &a.workload).cmp(&(&b.pool, &b.workload)));
        rows
    }

    /// What keeps a workload from being ready: what it says itself, or the worst of its pods.
    fn problem(&self, workload: &Value) -> String {
        for (kind, bad) in [("ReplicaFailure", "True"), ("Progressing", "False")] {
            let found = condition::find(&workload["status"], kind).filter(|c| c["status"] == bad);
            if let Some(message) = found.and_then(|c| c["message"].as_str()) {
                return message.to_owned();
            }
        }
        let selector = LabelSelector::from_json(&workload["spec"]["selector"]);
        let of_it = |pod: &&Value| {
            selector
                .as_ref()
                .is_ok_and(|selector| selector.matches(&claim::labels(pod)))
        };
        self.pods_problem(self.pods.iter().filter(of_it))
    }

    fn pods_problem<'p>(&self, pods: impl Iterator<Item = &'p Value>) -> String {
        let nodes: HashMap<&str, &Value> =
            self.nodes.iter().map(|node| (name(node), node)).collect();
        let mut away = 0;
        let mut reasons: BTreeMap<String, usize> = BTreeMap::new();
        for one in pods.filter(|one| !pod::is_ready(one) && pod::is_active(one)) {
            let node = nodes.get(pod::node(one));
            let link = node.map(|node| Link::of(node, self.leases.get(name(node))));
            if link.is_some_and(|link| link != Link::Ready) {
                away += 1;
            } else if let Some(reason) = trouble(one) {
                *reasons.entry(reason).or_default() += 1;
            }
        }
        let mut said: Vec<String> = Vec::new();
        if away > 0 {
            said.push(format!("{} on nodes that are away", count(away, "pod")));
        }
        let mut reasons: Vec<(String, usize)> = reasons.into_iter().collect();
        reasons.sort_by_key(|reason| std::cmp::Reverse(reason.1));
        said.extend(
            reasons
                .into_iter()
                .take(2)
                .map(|(reason, pods)| format!("{}: {reason}", count(pods, "pod"))),
        );
        said.join("; ")
    }

    /// For what is on every node: its pods by the pool of their node.
    fn by_pods(&self) -> Vec<InPool> {
        let pool_of: HashMap<&str, &str> = self
            .nodes
            .iter()
            .map(|node| (name(node), node::pool(node).unwrap_or_default()))
            .collect();
        let mut by_pool: BTreeMap<&str, Vec<&Value>> = BTreeMap::new();
        for pod in self.pods.iter().filter(|pod| self.is_of(pod)) {
            let pool = pool_of.get(pod::node(pod)).copied().unwrap_or_default();
            by_pool.entry(pool).or_default().push(pod);
        }
        let wanted = images(&self.object["spec"]["template"]);
        let is_new =
            |pod: &&&Value| match condition::find(&pod["status"], conditions::POD_NEED_UPGRADE) {
                Some(due) => due["status"] != "True",
                // Nothing marks the old ones: their images tell.
                None => images(pod) == wanted,
            };
        let by_owner = self
            .strategy()
            .is_some_and(|strategy| strategy.eq_ignore_ascii_case("OTA"));
        let number = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        let rows = by_pool.into_iter().map(|(pool, pods)| {
            let desired = number(pods.len());
            let ready = number(pods.iter().filter(|pod| pod::is_ready(pod)).count());
            let updated = number(pods.iter().filter(is_new).count());
            let running: BTreeSet<String> = pods.iter().map(|pod| images(pod).join(",")).collect();
            InPool {
                pool: pool.to_owned(),
                workload: String::new(),
                desired,
                ready,
                updated,
                images: running.into_iter().collect(),
                revision: String::new(),
                phase: match (updated < desired, by_owner) {
                    (true, true) => Phase::Waiting,
                    (true, false) => Phase::Updating,
                    (false, _) if ready < desired => Phase::NotReady,
                    (false, _) => Phase::Ready,
                },
                problem: self.pods_problem(pods.iter().copied()),
            }
        });
        rows.collect()
    }

    /// How nodes come to a new template, for what is on every node.
    fn strategy(&self) -> Option<String> {
        let spec = &self.object["spec"];
        let (native, asked) = match self.kind {
            Kind::DaemonSet => (&spec["updateStrategy"]["type"], strategy(&self.object)),
            Kind::YurtStaticSet => (&spec["upgradeStrategy"]["type"], None),
            Kind::YurtAppSet | Kind::YurtAppDaemon => return None,
        };
        let native = native.as_str().unwrap_or_default();
        Some(
            asked
                .filter(|_| native == "OnDelete")
                .unwrap_or(native)
                .to_owned(),
        )
    }

    /// Whether a pod is one of the app's.
    fn is_of(&self, pod: &Value) -> bool {
        match self.kind {
            Kind::YurtStaticSet => {
                let mirror = annotation(pod, "kubernetes.io/config.source")
                    .is_some_and(|source| source != "api");
                let known = mirror || annotation(pod, annotations::STATIC_POD_HASH).is_some();
                let set = name(pod).strip_suffix(pod::node(pod));
                known && set.and_then(|set| set.strip_suffix('-')) == Some(name(&self.object))
            }
            _ => {
                let mut owners = pod["metadata"]["ownerReferences"]
                    .as_array()
                    .into_iter()
                    .flatten();
                owners.any(|owner| owner["uid"] == self.object["metadata"]["uid"])
            }
        }
    }
}

/// Why a pod is not ready, in few words.
pub(crate) fn trouble(pod: &Value) -> Option<String> {
    let statuses = ["initContainerStatuses", "containerStatuses"]
        .iter()
        .flat_map(|list| pod["status"][list].as_array().into_iter().flatten());
    for status in statuses {
        let waiting = &status["state"]["waiting"];
        let reason = waiting["reason"].as_str().unwrap_or_default();
        if !reason.is_empty() && reason != "ContainerCreating" && reason != "PodInitializing" {
            let container = status["name"].as_str().unwrap_or_default();
            return Some(format!("{reason} of container {container}"));
        }
    }
    let scheduled =
        condition::find(&pod["status"], "PodScheduled").filter(|c| c["status"] == "False");
    if let Some(scheduled) = scheduled {
        let message = scheduled["message"].as_str().unwrap_or("no node fits");
        return Some(message.to_owned());
    }
    let reason = pod["status"]["reason"]
        .as_str()
        .filter(|reason| !reason.is_empty());
    reason
        .map(str::to_owned)
        .or_else(|| Some("not ready".into()))
}

#[cfg(test)]
mod tests;
