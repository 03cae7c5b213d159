//! Would this node survive a cut and a reboot now? [`examine`] judges [`Facts`] (pure), `facts` gathers them, [`needs`] says what a pod
//! needs to start (pure). What each check means is in `docs/autonomy.md`.

mod facts;
pub mod needs;

pub(crate) use facts::gather;
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use yurt_api::autonomy::Autonomy;

/// Certificates that end sooner than this are worth a word.
const HORIZON: SignedDuration = SignedDuration::from_hours(7 * 24);
/// Things named one by one in a check; the rest is counted.
const NAMED: usize = 8;
/// How far the clock may be behind what the cloud wrote.
const CLOCK_SLACK: SignedDuration = SignedDuration::from_mins(5);
/// Writes waiting for the cloud beyond which the journal may fill up.
const JOURNAL_HIGH: usize = 4000;

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Nothing to do.
    Ok,
    /// The node would go on, not as well as it could.
    Warn,
    /// The node would not go on as it is.
    Fail,
}

/// One thing looked at.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Check {
    /// Stable name.
    pub id: &'static str,
    /// How it ended.
    pub state: State,
    /// Its part of the score.
    pub weight: u32,
    /// What was looked at.
    pub what: &'static str,
    /// What was found.
    pub why: String,
    /// What to do; empty when nothing.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub todo: String,
    /// What of it is well, from 0 to 1.
    #[serde(skip)]
    share: f64,
}

/// The judgement.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// The node.
    pub node: String,
    /// 0 to 100; 100 when every check is ok.
    pub score: u32,
    /// `ready`, `ready with warnings` or `not ready`.
    pub verdict: &'static str,
    /// When it was looked.
    pub at: String,
    /// Everything looked at.
    pub checks: Vec<Check>,
}

/// What is known of the node.
#[derive(Clone, Debug)]
pub struct Facts {
    /// The node.
    pub node_name: String,
    /// The time.
    pub now: Timestamp,
    /// Whether the cloud is there.
    pub online: bool,
    /// Certificates, by what they are for.
    pub certificates: Vec<Certificate>,
    /// What the Node says of autonomy; `None` when it is not cached.
    pub autonomy: Option<Autonomy>,
    /// The pods of the node that are to run; `None` when they are not all known.
    pub pods: Option<Vec<Pod>>,
    /// Whether the node can sign tokens for its pods.
    pub can_sign: bool,
    /// What components follow.
    pub lists: Vec<List>,
    /// What the cache is in trouble with.
    pub trouble: Option<String>,
    /// Bytes in the cache, and allowed to be.
    pub cache_bytes: u64,
    /// See there.
    pub cache_budget: u64,
    /// Free bytes on its disk.
    pub disk_free: Option<u64>,
    /// Writes that wait for the cloud.
    pub journal: usize,
    /// Since when the kubelet renewed nothing through the hub; `None` when it never did.
    pub kubelet_silent: Option<std::time::Duration>,
    /// Whether it counts as alive.
    pub kubelet_alive: bool,
    /// Why the lease cannot be renewed in the cloud.
    pub lease_trouble: Option<String>,
    /// The latest moment that anything in the cache was written at.
    pub latest: Option<Timestamp>,
}

/// A certificate on the node's disk.
#[derive(Clone, Debug)]
pub struct Certificate {
    /// `client`, `serving` or `CA`.
    pub purpose: String,
    /// When it ends, or why that cannot be told.
    pub ends: Result<Timestamp, String>,
}

/// A list that a component keeps, and would ask for after a reboot.
#[derive(Clone, Debug)]
pub struct List {
    /// Of what.
    pub what: &'static str,
    /// Whether it is known completely.
    pub known: bool,
    /// Whether something of this node needs it now.
    pub needed: bool,
}

/// A pod that is to run on the node.
#[derive(Clone, Debug, Default)]
pub struct Pod {
    /// `NAMESPACE/NAME`.
    pub name: String,
    /// Objects that it needs and the node has.
    pub found: usize,
    /// Objects that it needs and the node lacks.
    pub missing: Vec<String>,
    /// Images that the node may not have.
    pub images: Vec<String>,
    /// Containers that need the registry at every start.
    pub always_pulled: Vec<String>,
    /// Tokens of its service account that it mounts.
    pub tokens: usize,
    /// Those of them that the cloud gave and that still hold.
    pub tokens_of_cloud: usize,
}

/// Some of many, by name.
fn named(items: &[String]) -> String {
    let shown = items.iter().take(NAMED).cloned().collect::<Vec<_>>();
    let more = items.len().saturating_sub(NAMED);
    if more == 0 {
        return shown.join(", ");
    }
    format!("{}, and {more} more", shown.join(", "))
}

fn check(id: &'static str, weight: u32, what: &'static str) -> Check {
    Check {
        id,
        state: State::Ok,
        weight,
        what,
        why: String::new(),
        todo: String::new(),
        share: 1.0,
    }
}

impl Check {
    fn ok(self, why: impl Into<String>) -> Self {
        Self {
            why: why.into(),
            ..self
        }
    }

    fn warn(self, why: impl Into<String>, todo: impl Into<String>) -> Self {
        Self {
            state: State::Warn,
            why: why.into(),
            todo: todo.into(),
            share: 0.5,
            ..self
        }
    }

    fn fail(self, why: impl Into<String>, todo: impl Into<String>) -> Self {
        Self {
            state: State::Fail,
            why: why.into(),
            todo: todo.into(),
            share: 0.0,
            ..self
        }
    }

    /// A failure of some of many counts as much as is lacking.
    fn of(self, good: usize, bad: usize) -> Self {
        let all = good + bad;
        #[allow(clippy::cast_precision_loss, reason = "counts of objects on one node")]
        let share = if all == 0 {
            1.0
        } else {
            good as f64 / all as f64
        };
        Self { share, ..self }
    }
}

/// Judges.
pub fn examine(facts: &Facts) -> Report {
    let checks = vec![
        link(facts),
        kubelet(facts),
        autonomy(facts),
        node(facts),
        pods(facts),
        objects(facts),
        tokens(facts),
        images(facts),
        lists(facts),
        certificates(facts),
        disk(facts),
        journal(facts),
        clock(facts),
    ];
    let total: u32 = checks.iter().map(|check| check.weight).sum();
    let got: f64 = checks
        .iter()
        .map(|check| f64::from(check.weight) * check.share)
        .sum();
    let worst = |state| checks.iter().any(|check| check.state == state);
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "between 0 and 100"
    )]
    let score = (100.0 * got / f64::from(total.max(1))).floor() as u32;
    Report {
        node: facts.node_name.clone(),
        score,
        verdict: match (worst(State::Fail), worst(State::Warn)) {
            (true, _) => "not ready",
            (false, true) => "ready with warnings",
            (false, false) => "ready",
        },
        at: facts.now.to_string(),
        checks,
    }
}

fn link(facts: &Facts) -> Check {
    let check = check("link", 5, "the link to the cloud");
    match (facts.online, &facts.lease_trouble) {
        (true, None) => check.ok("up"),
        (true, Some(why)) => check.warn(
            format!("up, but the node's lease cannot be renewed: {why}"),
            "see that the node's identity may write its lease in kube-node-lease, or the cluster takes the node for lost",
        ),
        (false, _) => check.warn(
            "down: what is not known yet cannot be learned now",
            "look at `servers` of /v1/status for the reason",
        ),
    }
}

fn kubelet(facts: &Facts) -> Check {
    let check = check("kubelet", 15, "the kubelet talks through the hub");
    match facts.kubelet_silent {
        Some(_) if facts.kubelet_alive => check.ok("it renewed its lease lately"),
        Some(silent) => check.fail(
            format!("it renewed nothing for {} s", silent.as_secs()),
            "see whether the kubelet runs: systemctl status kubelet",
        ),
        None => check.fail(
            "it never renewed its lease through the hub since the hub started",
            "let the kubelet's kubeconfig name the hub as its server: http://127.0.0.1:10261",
        ),
    }
}

fn autonomy(facts: &Facts) -> Check {
    let check = check(
        "autonomy",
        5,
        "the cluster leaves the pods of a cut node alone",
    );
    match &facts.autonomy {
        Some(Autonomy::Unlimited) => check.ok("for as long as it takes"),
        Some(Autonomy::For(time)) => check.ok(format!("for {} s", time.as_secs())),
        Some(Autonomy::Off(why)) => check.warn(
            why.clone(),
            format!(
                "kubectl annotate node {} node.beta.openyurt.io/autonomy=true",
                facts.node_name
            ),
        ),
        None => check.warn("the Node is not known", "see check `node`"),
    }
}

fn node(facts: &Facts) -> Check {
    let check = check("node", 15, "the node's own Node is cached");
    if facts.autonomy.is_some() {
        check.ok("it is")
    } else {
        check.fail(
            "it was never read through the hub",
            "a kubelet that reads through the hub does it in seconds; see check `kubelet`",
        )
    }
}

fn pods(facts: &Facts) -> Check {
    let check = check("pods", 15, "all pods of this node are cached");
    match &facts.pods {
        Some(pods) => check.ok(format!("{} are to run", pods.len())),
        None => check.fail(
            "the list of the node's pods was never cached completely",
            "a kubelet that reads through the hub does it in seconds; see check `kubelet`",
        ),
    }
}

fn objects(facts: &Facts) -> Check {
    let check = check("objects", 20, "what the pods need to start is cached");
    let Some(pods) = &facts.pods else {
        return check.fail("the pods are not known", "see check `pods`");
    };
    let found: usize = pods.iter().map(|pod| pod.found).sum();
    let missing: Vec<String> = pods
        .iter()
        .flat_map(|pod| {
            pod.missing
                .iter()
                .map(|object| format!("{object} (pod {})", pod.name))
        })
        .collect();
    if missing.is_empty() {
        return check.ok(format!("{found} objects"));
    }
    check
        .fail(
            format!("not cached: {}", named(&missing)),
            "see that the objects exist and the kubelet reads them through the hub; one read of each through the hub caches it, \
             e.g. kubectl --server=http://127.0.0.1:10261 get secret NAME -n NAMESPACE",
        )
        .of(found, missing.len())
}

fn tokens(facts: &Facts) -> Check {
    let check = check(
        "tokens",
        10,
        "service-account tokens of the pods can be had without the cloud",
    );
    let pods = || facts.pods.iter().flatten();
    let all: usize = pods().map(|pod| pod.tokens).sum();
    let kept: usize = pods().map(|pod| pod.tokens_of_cloud).sum();
    let own = all - kept.min(all);
    if own == 0 || facts.can_sign {
        return check.ok(format!(
            "{kept} of the cloud are kept, {own} would be signed by the node"
        ));
    }
    let without: Vec<String> = pods()
        .filter(|pod| pod.tokens_of_cloud < pod.tokens)
        .map(|pod| pod.name.clone())
        .collect();
    check
        .fail(
            format!("the node cannot sign them for {}", named(&without)),
            "see the hub's log: its key for tokens cannot be read or made below --root-dir",
        )
        .of(kept, own)
}

fn images(facts: &Facts) -> Check {
    let check = check("images", 10, "the pods' images are on the node");
    let pods = || facts.pods.iter().flatten();
    let unknown: Vec<String> = pods().flat_map(|pod| pod.images.clone()).collect();
    let pulled: Vec<String> = pods().flat_map(|pod| pod.always_pulled.clone()).collect();
    match (unknown.is_empty(), pulled.is_empty()) {
        (true, true) => check.ok("as far as the Node tells"),
        (false, _) => check.warn(
            format!("not seen on the node: {}", named(&unknown)),
            "pull them while the registry can be reached: crictl pull IMAGE",
        ),
        (true, false) => check.warn(
            format!(
                "pulled at every start, which needs the registry: {}",
                named(&pulled)
            ),
            "set imagePullPolicy: IfNotPresent and a tag that is not latest",
        ),
    }
}

fn lists(facts: &Facts) -> Check {
    let check = check(
        "lists",
        10,
        "what the node's components follow is known completely",
    );
    let of = |wanted: bool| -> Vec<String> {
        facts
            .lists
            .iter()
            .filter(|list| !list.known && list.needed == wanted)
            .map(|list| list.what.to_owned())
            .collect()
    };
    let (needed, other) = (of(true), of(false));
    let known = facts.lists.len() - needed.len() - other.len();
    match (needed.is_empty(), other.is_empty()) {
        (true, true) => check.ok(named(
            &facts
                .lists
                .iter()
                .map(|list| list.what.to_owned())
                .collect::<Vec<_>>(),
        )),
        (false, _) => check
            .fail(
                format!("never cached completely: {}", named(&needed)),
                "see that the kubelet and kube-proxy read through the hub, and that cache_agents of yurt-hub-cfg does not leave them out",
            )
            .of(known, needed.len()),
        (true, false) => check.warn(
            format!("never cached completely: {}", named(&other)),
            "let kube-proxy and CoreDNS of this node read through the hub, or Services do not work after a reboot",
        ),
    }
}

fn certificates(facts: &Facts) -> Check {
    let check = check("certificates", 10, "the hub's certificates hold");
    let mut expired = Vec::new();
    let mut soon = Vec::new();
    for certificate in &facts.certificates {
        match &certificate.ends {
            Err(why) => expired.push(format!("{}: {why}", certificate.purpose)),
            Ok(ends) if *ends <= facts.now => {
                expired.push(format!("{} ended {ends}", certificate.purpose));
            }
            Ok(ends) if ends.duration_since(facts.now) < HORIZON => {
                soon.push(format!("{} ends {ends}", certificate.purpose));
            }
            Ok(_) => {}
        }
    }
    let good = facts.certificates.len() - expired.len();
    match (expired.is_empty(), soon.is_empty()) {
        (true, true) => check.ok("for a week at least"),
        (false, _) => {
            let bad = expired.len();
            expired.append(&mut soon);
            check
                .fail(
                    named(&expired),
                    "the node goes on without the cloud, and cannot go back to it: renew the certificate, or join again with a new \
                     token by POST /v1/token",
                )
                .of(good, bad)
        }
        (true, false) => check.warn(
            named(&soon),
            "see why it was not renewed: it should be long before",
        ),
    }
}

fn disk(facts: &Facts) -> Check {
    let check = check("cache", 10, "the cache can keep what the node needs");
    if let Some(trouble) = &facts.trouble {
        return check.fail(
            trouble.clone(),
            "see the hub's log and the disk (dmesg, smartctl); make room on it",
        );
    }
    match facts.disk_free {
        Some(free) if free < crate::autonomy::LEAST_DISK => check.fail(
            format!("{} MiB are left on its disk", free >> 20),
            "make room on the disk of --disk-cache-path",
        ),
        Some(free) if free < facts.cache_budget.saturating_sub(facts.cache_bytes) => check.warn(
            format!(
                "{} MiB are left on its disk, less than the cache may still want",
                free >> 20
            ),
            "make room, or lower the cache's budget",
        ),
        // Things go from a full cache: least what running pods need, but they may.
        _ if facts.cache_bytes > facts.cache_budget / 10 * 9 => check.warn(
            format!(
                "{} of {} MiB are in use: what is read least goes",
                facts.cache_bytes >> 20,
                facts.cache_budget >> 20
            ),
            "raise the cache's budget, or restrict cache_agents of yurt-hub-cfg",
        ),
        _ => check.ok(format!(
            "{} KiB of {} MiB in use",
            facts.cache_bytes >> 10,
            facts.cache_budget >> 20
        )),
    }
}

fn journal(facts: &Facts) -> Check {
    let check = check("journal", 5, "writes reach the cloud");
    match facts.journal {
        0 => check.ok("none waits"),
        waiting if waiting > JOURNAL_HIGH => check.warn(
            format!("{waiting} wait; there is room for 5000"),
            "see the hub's log for what keeps them",
        ),
        waiting if facts.online => check.warn(
            format!("{waiting} wait although the link is up"),
            "they go in a moment, or the hub's log says why not",
        ),
        waiting => check.ok(format!("{waiting} wait for the link")),
    }
}

fn clock(facts: &Facts) -> Check {
    let check = check("clock", 5, "the clock is right");
    match facts.latest {
        Some(latest) if latest.duration_since(facts.now) > CLOCK_SLACK => check.fail(
            format!("it says {}, and the cluster wrote something at {latest}", facts.now),
            "set it, and see that it is kept over a reboot (RTC, chrony): certificates and tokens are judged by it",
        ),
        Some(_) => check.ok("not behind what the cluster wrote"),
        None => check.ok("nothing to compare it with"),
    }
}

#[cfg(test)]
mod tests;
