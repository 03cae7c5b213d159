//! Why a pod is as it is.

use super::{
    Explanation, Finding,
    node::{autonomy, link},
};
use crate::{
    app::trouble,
    node::{Link, ago, annotation, label, name, pool},
    observe::strategy,
    table::{count, span},
};
use jiff::Timestamp;
use serde_json::Value;
use std::time::Duration;
use yurt_api::autonomy::Autonomy;
use yurt_api::names::{annotations, conditions, labels, taints, topology};
use yurt_controller::{
    claim, condition, pod,
    taint::{Taint, Toleration},
};
use yurt_wire::selector::LabelSelector;

/// Read for a pod.
pub(crate) struct PodObserved {
    pub(crate) pod: Value,
    /// Its node, if it has one that exists.
    pub(crate) node: Option<Value>,
    pub(crate) lease: Option<Value>,
    /// Who controls it, who controls that, and so on; with `kind`.
    pub(crate) owners: Vec<Value>,
    /// Revisions of its namespace, where a DaemonSet controls it.
    pub(crate) revisions: Vec<Value>,
    /// Services of its namespace.
    pub(crate) services: Vec<Value>,
    /// All nodes, where it is on none.
    pub(crate) nodes: Vec<Value>,
    pub(crate) unseen: Vec<String>,
}

/// For how long a pod stays on a node with a taint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Tolerated {
    Never,
    For(Duration),
    Always,
}

/// For how long a pod tolerates a taint: as long as the shortest of its tolerations says.
pub(super) fn tolerated(pod: &Value, taint: &Taint) -> Tolerated {
    let tolerations = Toleration::of(&pod["spec"]);
    let mut periods = tolerations
        .iter()
        .filter(|t| t.tolerates(taint))
        .map(|t| t.period)
        .peekable();
    if periods.peek().is_none() {
        return Tolerated::Never;
    }
    periods
        .flatten()
        .min()
        .map_or(Tolerated::Always, Tolerated::For)
}

impl PodObserved {
    pub(crate) fn judge(self, now: Timestamp) -> Explanation {
        let mut findings = Vec::new();
        findings.extend(self.life());
        match &self.node {
            Some(node) => {
                findings.push(link(node, self.lease.as_ref(), now));
                findings.push(autonomy(node));
                findings.extend(self.binding(node, now));
                findings.extend(self.deletion(node, now));
            }
            None => findings.push(self.nowhere()),
        }
        findings.extend(self.upgrade());
        findings.extend(self.rollout());
        findings.extend(self.topology());
        let node = pod::node(&self.pod);
        let pool = self.node.as_ref().and_then(pool);
        Explanation {
            kind: "pod",
            name: name(&self.pod).to_owned(),
            namespace: self.pod["metadata"]["namespace"]
                .as_str()
                .unwrap_or_default()
                .to_owned(),
            place: match (node, pool) {
                ("", _) => "on no node".to_owned(),
                (node, None) => format!("on node {node}, in no pool"),
                (node, Some(pool)) => format!("on node {node}, pool {pool}"),
            },
            findings,
            unseen: self.unseen,
        }
    }

    fn is_away(&self) -> bool {
        self.node
            .as_ref()
            .is_some_and(|node| Link::of(node, self.lease.as_ref()) != Link::Ready)
    }

    /// Whether it runs, as far as is known.
    fn life(&self) -> Option<Finding> {
        if pod::node(&self.pod).is_empty() {
            return None;
        }
        let phase = pod::phase(&self.pod);
        Some(match (pod::is_ready(&self.pod), self.is_away()) {
            (true, false) => Finding::ok("life", "runs and is ready"),
            (true, true) => Finding::note("life", "was ready when the cloud last heard of it"),
            (false, true) => Finding::note(
                "life",
                "not ready as the cloud sees it; its node is away, it may well run there",
            ),
            (false, false) if pod::is_finished(&self.pod) => {
                Finding::note("life", format!("ended: {phase}"))
            }
            (false, false) => {
                let why = trouble(&self.pod).unwrap_or_default();
                Finding::problem("life", format!("{phase}, not ready: {why}"))
                    .todo(format!("kubectl describe pod {}", name(&self.pod)))
            }
        })
    }

    /// Why it has no node.
    fn nowhere(&self) -> Finding {
        let on = pod::node(&self.pod);
        if !on.is_empty() {
            return Finding::problem("link", format!("its node {on} is not there any more"))
                .todo(format!("it is removed by the pod garbage collector; sooner: kubectl delete pod {} --force", name(&self.pod)));
        }
        let scheduled = condition::find(&self.pod["status"], "PodScheduled");
        let said = scheduled
            .and_then(|c| c["message"].as_str())
            .unwrap_or("no scheduler has looked at it yet");
        let Some(wanted) = self.pod["spec"]["nodeSelector"][labels::NODE_POOL].as_str() else {
            return Finding::problem("placement", said);
        };
        let of_pool: Vec<&Value> = self
            .nodes
            .iter()
            .filter(|node| pool(node) == Some(wanted))
            .collect();
        if of_pool.is_empty() {
            return Finding::problem(
                "placement",
                format!("it is for pool {wanted}, which has no nodes"),
            )
            .todo(format!(
                "kubectl label node NODE {}={wanted}",
                labels::NODE_POOL
            ));
        }
        let open = |node: &&&Value| {
            node["spec"]["unschedulable"] != true
                && Taint::of(node).iter().all(|taint| {
                    !taint.keeps_away() || tolerated(&self.pod, taint) != Tolerated::Never
                })
        };
        let mut blocking: Vec<String> = of_pool
            .iter()
            .flat_map(|node| Taint::of(node))
            .filter(|taint| taint.keeps_away() && tolerated(&self.pod, taint) == Tolerated::Never)
            .map(|taint| format!("{}:{}", taint.key, taint.effect))
            .collect();
        blocking.sort();
        blocking.dedup();
        let closed = match blocking.is_empty() {
            true => String::new(),
            false => format!(
                " (taints that it does not tolerate: {})",
                blocking.join(", ")
            ),
        };
        let left = of_pool.iter().filter(open).count();
        Finding::problem(
            "placement",
            format!(
                "it is for pool {wanted}: {left} of its {} take it{closed}; the scheduler says: {said}",
                count(of_pool.len(), "node")
            ),
        )
    }

    /// For how long it stays on its node when that is away.
    fn binding(&self, node: &Value, now: Timestamp) -> Vec<Finding> {
        let daemons = self
            .owners
            .first()
            .is_some_and(|owner| owner["kind"] == "DaemonSet");
        if daemons {
            return vec![Finding::ok(
                "binding",
                "of a DaemonSet: it stays on its node in any case",
            )];
        }
        if annotation(&self.pod, "kubernetes.io/config.source")
            .is_some_and(|source| source != "api")
        {
            return vec![Finding::ok(
                "binding",
                "a static pod: its node runs it in any case",
            )];
        }
        let stays = |key: &str| {
            tolerated(
                &self.pod,
                &Taint {
                    key: key.to_owned(),
                    value: String::new(),
                    effect: "NoExecute".to_owned(),
                },
            )
        };
        let unreachable = stays(taints::UNREACHABLE);
        let bound = match Autonomy::of(node) {
            Autonomy::Off(_) => None,
            Autonomy::Unlimited => Some(Tolerated::Always),
            Autonomy::For(duration) => Some(Tolerated::For(duration)),
        };
        let saved = [
            annotations::ORIGINAL_UNREACHABLE,
            annotations::ORIGINAL_NOT_READY,
        ]
        .into_iter()
        .find_map(|key| annotation(&self.pod, key))
        .map_or_else(String::new, |seconds| {
            format!(" (it was {seconds} s of its own)")
        });
        let says = match unreachable {
            Tolerated::Never => "it is evicted at once when its node is lost".to_owned(),
            Tolerated::For(period) => {
                format!("it is evicted {} after its node is lost", span(period))
            }
            Tolerated::Always => "it stays however long its node is away".to_owned(),
        };
        let mut found = vec![match bound {
            Some(bound) if unreachable < bound => Finding::problem(
                "binding",
                format!("{says}{saved}, although its node is autonomous"),
            )
            .todo("does pod-binding-controller run?"),
            _ => Finding::ok("binding", format!("{says}{saved}")),
        }];
        let lost = node["spec"]["taints"]
            .as_array()
            .into_iter()
            .flatten()
            .find(|taint| {
                taint["effect"] == "NoExecute"
                    && (taint["key"] == taints::UNREACHABLE || taint["key"] == taints::NOT_READY)
            });
        if let (Some(lost), Tolerated::For(period)) = (lost, unreachable) {
            let since = ago(&lost["timeAdded"], now).unwrap_or_default();
            found.push(match period.checked_sub(since) {
                Some(left) if !left.is_zero() => Finding::note(
                    "binding",
                    format!("its node is lost: it is evicted in {}", span(left)),
                ),
                _ => Finding::problem(
                    "binding",
                    "its node is lost, and its time is over: it is being evicted",
                ),
            });
        }
        found
    }

    /// A deletion that its node does not know of.
    fn deletion(&self, node: &Value, now: Timestamp) -> Option<Finding> {
        let since = ago(&self.pod["metadata"]["deletionTimestamp"], now)?;
        Some(match Link::of(node, self.lease.as_ref()) {
            Link::Ready => Finding::note(
                "deletion",
                format!("it is being deleted, due {} ago", span(since)),
            ),
            _ => Finding::problem(
                "deletion",
                "it is deleted, but its node does not know: it runs there until the node is back",
            )
            .todo(
                "nothing, where the node comes back; with --force a second pod may run beside it",
            ),
        })
    }

    /// Whether something newer waits for it.
    fn upgrade(&self) -> Vec<Finding> {
        let mut found = Vec::new();
        let set = self
            .owners
            .first()
            .filter(|owner| owner["kind"] == "DaemonSet");
        let asked = set.and_then(strategy);
        let native = set.map(|set| {
            set["spec"]["updateStrategy"]["type"]
                .as_str()
                .unwrap_or("RollingUpdate")
        });
        if let (Some(asked), Some(native)) = (asked, native)
            && native != "OnDelete"
        {
            found.push(
                Finding::problem("upgrade", format!("annotation {}={asked} of its DaemonSet has no effect: updateStrategy is {native}", annotations::UPDATE_STRATEGY))
                    .todo("set spec.updateStrategy.type to OnDelete"),
            );
        }
        let ota = asked.is_some_and(|asked| asked.eq_ignore_ascii_case("OTA"));
        let due = condition::find(&self.pod["status"], conditions::POD_NEED_UPGRADE);
        match due.and_then(|due| due["status"].as_str()) {
            Some("True") => {
                let images = condition::find(&self.pod["status"], conditions::POD_IMAGE_READY);
                let loading = match images.and_then(|images| images["status"].as_str()) {
                    Some("True") => "; the new images are on the node",
                    Some(_) => "; the new images are being pulled, until then it is refused",
                    None => "",
                };
                found.push(
                    Finding::note("upgrade", format!("a newer version waits for the node's owner{loading}")).todo(format!(
                        "on the node: yurt node upgrade {} -n {}",
                        name(&self.pod),
                        self.pod["metadata"]["namespace"].as_str().unwrap_or_default()
                    )),
                );
            }
            Some(_) => found.push(Finding::ok("upgrade", "it is of the newest template")),
            None if ota => found.push(
                Finding::note("upgrade", "its DaemonSet is upgraded by the nodes' owners, but nothing says yet whether it is due")
                    .todo("does daemon-pod-updater-controller run?"),
            ),
            None => found.extend(set.and_then(|set| self.daemon_revision(set))),
        }
        found
    }

    /// Whether a pod of a DaemonSet is of its newest revision.
    fn daemon_revision(&self, set: &Value) -> Option<Finding> {
        let of_set = |revision: &&Value| {
            let mut owners = revision["metadata"]["ownerReferences"]
                .as_array()
                .into_iter()
                .flatten();
            owners.any(|owner| owner["uid"] == set["metadata"]["uid"])
        };
        let newest = self
            .revisions
            .iter()
            .filter(of_set)
            .max_by_key(|revision| revision["revision"].as_i64())?;
        let hash = label(newest, "controller-revision-hash")?;
        if label(&self.pod, "controller-revision-hash") == Some(hash) {
            return Some(Finding::ok("upgrade", "it is of the newest template"));
        }
        let native = set["spec"]["updateStrategy"]["type"]
            .as_str()
            .unwrap_or("RollingUpdate");
        Some(match (strategy(set), self.is_away()) {
            (Some(_), true) => Finding::note(
                "upgrade",
                "it is of an older template; it is replaced when its node is back",
            ),
            (Some(_), false) => Finding::note(
                "upgrade",
                "it is of an older template; it is replaced in its turn (max-unavailable)",
            ),
            (None, _) if native == "OnDelete" => Finding::note(
                "upgrade",
                "it is of an older template, and stays so until it is deleted: the DaemonSet is OnDelete",
            ),
            (None, _) => Finding::note(
                "upgrade",
                "it is of an older template; the DaemonSet is being rolled out",
            ),
        })
    }

    /// Whether it is of the newest revision of its set.
    fn rollout(&self) -> Option<Finding> {
        let set = self
            .owners
            .iter()
            .find(|owner| owner["kind"] == "YurtAppSet" || owner["kind"] == "YurtAppDaemon")?;
        let kind = set["kind"].as_str().unwrap_or_default();
        let workload = self
            .owners
            .iter()
            .rev()
            .find(|owner| label(owner, labels::WORKLOAD_POOL).is_some())?;
        let current = set["status"]["currentRevision"]
            .as_str()
            .unwrap_or_default();
        let has = label(workload, labels::CONTROLLER_REVISION_HASH).unwrap_or_default();
        let of = format!(
            "{kind} {} in pool {}",
            name(set),
            label(workload, labels::WORKLOAD_POOL).unwrap_or_default()
        );
        Some(match has == current || current.is_empty() {
            true => Finding::ok("rollout", format!("of {of}, newest revision")),
            false => Finding::note(
                "rollout",
                format!("of {of}, at revision {has}; {current} has not come to this pool yet"),
            )
            .todo(format!("kubectl yurt app {}", name(set))),
        })
    }

    /// Who reaches it by which service.
    fn topology(&self) -> Vec<Finding> {
        let own = claim::labels(&self.pod);
        let selects = |service: &&Value| {
            let selector = service["spec"]["selector"]
                .as_object()
                .filter(|selector| !selector.is_empty());
            selector.is_some_and(|selector| {
                LabelSelector::from_json(&serde_json::json!({"matchLabels": selector}))
                    .is_ok_and(|selector| selector.matches(&own))
            })
        };
        let node = pod::node(&self.pod);
        let pool = self.node.as_ref().and_then(pool).unwrap_or("none");
        let services = self.services.iter().filter(selects);
        services
            .map(|service| {
                let of = format!("service {}", name(service));
                match annotation(service, annotations::TOPOLOGY_KEYS) {
                    None => Finding::ok("topology", format!("{of}: reached from everywhere")),
                    Some(topology::NODE) => {
                        Finding::ok("topology", format!("{of}: reached from node {node} only"))
                    }
                    Some(topology::NODE_POOL | topology::ZONE) => Finding::ok(
                        "topology",
                        format!("{of}: reached from the nodes of pool {pool} only"),
                    ),
                    Some(other) => Finding::problem(
                        "topology",
                        format!(
                            "{of}: annotation {} is {other:?}, which means nothing",
                            annotations::TOPOLOGY_KEYS
                        ),
                    )
                    .todo(format!(
                        "one of {}, {}",
                        topology::NODE,
                        topology::NODE_POOL
                    )),
                }
            })
            .collect()
    }
}
