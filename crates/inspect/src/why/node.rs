//! Why a node is as it is.

use super::{Explanation, Finding};
use crate::{
    node::{Link, ago, annotation, is_delegated, label, leaders, name, pool},
    pools::lacking,
    status::pending,
    table::{count, span},
};
use jiff::Timestamp;
use serde_json::Value;
use yurt_api::autonomy::Autonomy;
use yurt_api::names::{annotations, conditions, labels, taints};
use yurt_controller::{condition, taint::Taint};

/// Read for a node.
pub(crate) struct NodeObserved {
    pub(crate) node: Value,
    pub(crate) pool: Option<Value>,
    pub(crate) lease: Option<Value>,
    /// The pods on it.
    pub(crate) pods: Vec<Value>,
    /// Requests for certificates, of everybody.
    pub(crate) requests: Vec<Value>,
    pub(crate) unseen: Vec<String>,
}

impl NodeObserved {
    pub(crate) fn judge(self, now: Timestamp) -> Explanation {
        let mut findings = vec![link(&self.node, self.lease.as_ref(), now)];
        findings.extend(self.membership());
        findings.extend(self.taints());
        findings.push(autonomy(&self.node));
        findings.extend(self.would_go_on());
        findings.extend(self.conversion());
        findings.extend(self.certificates());
        findings.extend(self.upgrades());
        Explanation {
            kind: "node",
            name: name(&self.node).to_owned(),
            namespace: String::new(),
            place: match pool(&self.node) {
                Some(pool) => format!("pool {pool}"),
                None => "in no pool".to_owned(),
            },
            findings,
            unseen: self.unseen,
        }
    }

    fn membership(&self) -> Vec<Finding> {
        let Some(named) = pool(&self.node) else {
            let edge = label(&self.node, labels::EDGE_WORKER) == Some("true");
            let finding = match edge {
                true => Finding::problem(
                    "pool",
                    "a node of the edge in no pool: no app of a pool runs here, nothing is shared, nobody vouches for it",
                ),
                false => Finding::ok("pool", "in no pool, and not of the edge"),
            };
            return vec![match edge {
                true => finding.todo(format!(
                    "kubectl label node {} {}=POOL",
                    name(&self.node),
                    labels::NODE_POOL
                )),
                false => finding,
            }];
        };
        let Some(pool) = &self.pool else {
            return vec![
                Finding::problem(
                    "pool",
                    format!("it says that it is in pool {named}, which does not exist"),
                )
                .todo(format!(
                    "create the NodePool, or: kubectl label node {} {}-",
                    name(&self.node),
                    labels::NODE_POOL
                )),
            ];
        };
        let mut found = Vec::new();
        let leading = leaders(pool)
            .iter()
            .any(|leader| leader == name(&self.node));
        found.push(Finding::ok(
            "pool",
            match leading {
                true => format!("in pool {named}, which it leads: it fetches for the others and vouches for those that are cut off"),
                false => format!("in pool {named}, led by {}", match leaders(pool).join(", ") { none if none.is_empty() => "nobody".into(), some => some }),
            },
        ));
        let lacking = lacking(pool, &self.node);
        if !lacking.is_empty() {
            found.push(
                Finding::problem(
                    "pool",
                    format!(
                        "it lacks what the pool gives to its nodes: {}",
                        lacking.join(", ")
                    ),
                )
                .todo("does nodepool-controller run, with --enable-sync-nodepool-configurations?"),
            );
        }
        found
    }

    fn taints(&self) -> Vec<Finding> {
        let mut found = Vec::new();
        for taint in Taint::of(&self.node) {
            let Taint { key, effect, .. } = &taint;
            let finding = match (key.as_str(), effect.as_str()) {
                (taints::UNSCHEDULABLE, _) => Finding::note(
                    "taints",
                    format!("{key}: while others vouch for it, no new pods come here"),
                ),
                (taints::UNREACHABLE | taints::NOT_READY, "NoExecute") => Finding::note(
                    "taints",
                    format!(
                        "{key}: pods that do not tolerate it are evicted: {}",
                        self.evicted(&taint)
                    ),
                ),
                (_, "NoExecute") => Finding::note(
                    "taints",
                    format!("{key}: pods that do not tolerate it are evicted"),
                ),
                _ => continue,
            };
            found.push(finding);
        }
        if self.node["spec"]["unschedulable"] == true {
            let converting = label(&self.node, labels::EDGE_WORKER).is_some()
                && condition::find(&self.node["status"], conditions::NODE_CONVERSION_FAILED)
                    .is_some_and(|c| c["reason"].as_str().is_some_and(|r| r.ends_with("ing")));
            found.push(match converting {
                true => Finding::note("taints", "cordoned while it is converted"),
                false => Finding::note("taints", "cordoned: no new pods come here")
                    .todo(format!("kubectl uncordon {}", name(&self.node))),
            });
        }
        found
    }

    /// Which of its pods a taint evicts.
    fn evicted(&self, taint: &Taint) -> String {
        let (mut forever, mut later) = (0, 0);
        for pod in &self.pods {
            match super::pod::tolerated(pod, taint) {
                super::pod::Tolerated::Always => forever += 1,
                _ => later += 1,
            }
        }
        format!(
            "{} of {} sooner or later",
            later,
            count(forever + later, "pod")
        )
    }

    fn would_go_on(&self) -> Option<Finding> {
        let told = condition::find(&self.node["status"], conditions::AUTONOMY)?;
        let message = told["message"].as_str().unwrap_or_default();
        Some(match told["status"].as_str() {
            Some("True") => Finding::ok(
                "survival",
                format!(
                    "its hub says that it would go on without the cloud, over a reboot too: {message}"
                ),
            ),
            Some("False") => Finding::problem(
                "survival",
                format!("its hub says that it would not go on without the cloud: {message}"),
            )
            .todo("on the node: yurt node doctor"),
            _ => Finding::note(
                "survival",
                format!("whether it would go on without the cloud is not known: {message}"),
            ),
        })
    }

    fn conversion(&self) -> Option<Finding> {
        let told = condition::find(&self.node["status"], conditions::NODE_CONVERSION_FAILED)?;
        let reason = told["reason"].as_str().unwrap_or_default();
        let message = told["message"].as_str().unwrap_or_default();
        Some(match told["status"].as_str() {
            Some("True") => {
                Finding::problem("conversion", format!("{reason}: {message}")).todo(format!(
                    "kubectl logs -n kube-system -l {}={}",
                    labels::CONVERSION_NODE,
                    name(&self.node)
                ))
            }
            _ => Finding::ok(
                "conversion",
                format!("{reason} {message}").trim().to_owned(),
            ),
        })
    }

    fn certificates(&self) -> Vec<Finding> {
        let user = format!("system:node:{}", name(&self.node));
        let of_it =
            pending(&self.requests).filter(|request| request["spec"]["username"] == user.as_str());
        of_it
            .map(|request| {
                let signer = request["spec"]["signerName"].as_str().unwrap_or_default();
                Finding::problem(
                    "certificates",
                    format!("{} for {signer} waits for approval", name(request)),
                )
                .todo("does csr-approver-controller run? its log says why it does not approve")
            })
            .collect()
    }

    fn upgrades(&self) -> Option<Finding> {
        let due: Vec<String> = self
            .pods
            .iter()
            .filter(|pod| condition::holds(&pod["status"], conditions::POD_NEED_UPGRADE))
            .map(|pod| {
                format!(
                    "{}/{}",
                    pod["metadata"]["namespace"].as_str().unwrap_or_default(),
                    name(pod)
                )
            })
            .collect();
        if due.is_empty() {
            return None;
        }
        Some(
            Finding::note(
                "upgrade",
                format!("a newer version waits for {}", due.join(", ")),
            )
            .todo("on the node: yurt node upgrade POD -n NAMESPACE"),
        )
    }
}

/// How a node stands to the cloud.
pub(super) fn link(node: &Value, lease: Option<&Value>, now: Timestamp) -> Finding {
    let heartbeat = lease
        .and_then(|lease| ago(&lease["spec"]["renewTime"], now))
        .map_or_else(
            || "no heartbeat is known".to_owned(),
            |ago| format!("last heartbeat {} ago", span(ago)),
        );
    let ready = condition::find(&node["status"], "Ready");
    let since = ready
        .and_then(|ready| ago(&ready["lastTransitionTime"], now))
        .map_or_else(String::new, |since| format!(" for {}", span(since)));
    let message = ready
        .and_then(|ready| ready["message"].as_str())
        .unwrap_or_default();
    let name = name(node);
    match Link::of(node, lease) {
        Link::Ready => Finding::ok("link", format!("{name} is ready{since}; {heartbeat}")),
        Link::CutOff => Finding::note(
            "link",
            format!("{name} is cut off from the cloud; its pool vouches for it ({heartbeat}): what runs there goes on, the cloud sees statuses from before the cut"),
        ),
        Link::NotReady => Finding::problem("link", format!("{name} says that it is not ready{since}: {message}"))
            .todo("look at the kubelet of the node"),
        Link::Silent => Finding::problem(
            "link",
            match lease.is_some_and(is_delegated) {
                true => format!("{name} is unknown{since}"),
                false => format!("nobody has heard of {name}{since}; {heartbeat}, and no node of its pool vouches for it: it is dead, or its whole site is cut off"),
            },
        )
        .todo("reach the node otherwise; there: yurt node doctor"),
    }
}

/// What the cluster promises about its pods while it is away.
pub(super) fn autonomy(node: &Value) -> Finding {
    let by = [annotations::AUTONOMY, annotations::BINDING]
        .into_iter()
        .find(|key| annotation(node, key) == Some("true"))
        .unwrap_or(annotations::AUTONOMY_DURATION);
    match Autonomy::of(node) {
        Autonomy::Unlimited => Finding::ok("autonomy", format!("its pods stay however long it is away ({by})")),
        Autonomy::For(duration) => Finding::ok("autonomy", format!("its pods stay for {} while it is away ({by})", span(duration))),
        Autonomy::Off(why) if annotation(node, annotations::AUTONOMY_DURATION).is_some() && label(node, labels::EDGE_WORKER) != Some("false") => {
            Finding::problem("autonomy", why).todo(format!("kubectl annotate node {} --overwrite {}=30m    # 0 for ever", name(node), annotations::AUTONOMY_DURATION))
        }
        Autonomy::Off(why) if label(node, labels::EDGE_WORKER) == Some("true") => {
            Finding::note("autonomy", format!("its pods are evicted like those of any node when it is away for longer than they tolerate: {why}"))
                .todo(format!("kubectl annotate node {} {}=30m    # 0 for ever", name(node), annotations::AUTONOMY_DURATION))
        }
        Autonomy::Off(why) => Finding::ok("autonomy", format!("off: {why}")),
    }
}
