//! Who of the pool is alive, by whose word, and who leads it and why: for `GET /v1/pool` and `yurt hub pool status`.

use super::{
    coordinator::{Seen, Told},
    delegation::Readiness,
    leases::Written,
    presence::Link,
    rank::Sight,
    role::{PeerNode, Role},
    share::FeedOverview,
};
use crate::{autonomy::heartbeat::NODE_LEASES, proxy::Hub};
use bytes::Bytes;
use http::{Request, header};
use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;
use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

/// How long the leader may take to tell whose leases it has.
const WAIT: Duration = Duration::from_secs(2);
/// Largest list of leases that is read.
const MOST_BYTES: usize = 8 << 20;

/// What this node knows of its pool.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PoolStatus {
    /// This node.
    pub node: String,
    /// Its pool; empty when it is of none.
    pub pool: String,
    /// `alone`, `leader` or `follower`.
    pub role: &'static str,
    /// Whom it follows.
    pub leader: Option<String>,
    /// Why.
    pub why: String,
    /// For how long.
    pub for_seconds: f64,
    /// Changes since the start.
    pub role_changes: u64,
    /// From the last sign of the leader that was lost to the next one.
    pub last_takeover_milliseconds: Option<u64>,
    /// This node's link to the cloud.
    pub link: Link,
    /// The newest revision that it knows of what the pool shares.
    pub revision: u64,
    /// By rank.
    pub candidates: Vec<CandidateStatus>,
    /// Whose leases the following goes by: a node, or nobody.
    pub evidence: Option<String>,
    /// Why nobody.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub evidence_trouble: String,
    /// The nodes of the pool.
    pub nodes: Vec<NodeStatus>,
    /// Whether this node renews leases in the cloud for others.
    pub delegation: Readiness,
    /// What it shares.
    pub share: Vec<FeedOverview>,
}

/// A candidate as this node sees it.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CandidateStatus {
    /// Its name.
    pub node: String,
    /// Where it serves the pool.
    pub address: String,
    /// From 1.
    pub rank: usize,
    /// `self`, `unknown`, `silent` or `answers`.
    pub state: &'static str,
    /// Whether it is a leader of OpenYurt, of which no more is known.
    pub openyurt: bool,
    /// Its link to the cloud, when it answers.
    pub link: Option<Link>,
    /// Whether it takes itself for the leader.
    pub leads: bool,
    /// The newest revision that it knows.
    pub revision: Option<u64>,
    /// Since it was heard.
    pub heard_seconds: Option<f64>,
    /// Why it does not answer.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub why: String,
}

/// A node by its lease.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeStatus {
    /// Its name.
    pub node: String,
    /// Whether its kubelet is alive; `null` when nobody can tell.
    pub alive: Option<bool>,
    /// Since it said so.
    pub lease_seconds: Option<f64>,
    /// Whether it is cut off and its lease is renewed by the leader.
    pub delegated: bool,
}

/// Whose lease says what: alive, age in seconds, delegated.
type Leased = BTreeMap<String, (bool, f64, bool)>;

/// Gathers what is known; a follower asks its leader.
pub(crate) async fn gather(hub: &Hub) -> PoolStatus {
    let told = hub.coordination.told().clone();
    let mut status = of_election(&told, &hub.node_name);
    status.pool = hub.settings.borrow().pool.clone();
    status.delegation = hub.coordination.readiness();
    status.share = hub.share.overview();
    let leased = match &told.role {
        Role::Leader => {
            status.evidence = Some(hub.node_name.clone());
            own(hub)
        }
        Role::Follower(leader) => match of_leader(hub, leader).await {
            Ok(leased) => {
                status.evidence = Some(leader.node.to_string());
                leased
            }
            Err(why) => {
                status.evidence_trouble = why;
                Leased::new()
            }
        },
        Role::Alone => {
            status.evidence_trouble = "nobody leads the pool".into();
            Leased::new()
        }
    };
    let members = hub.gate.members();
    let members = members.nodes.unwrap_or_default();
    status.nodes = nodes(members.iter().map(|node| &**node), leased);
    status
}

fn of_election(told: &Told, me: &str) -> PoolStatus {
    let now = Instant::now();
    let ago = |at: Instant| now.saturating_duration_since(at).as_secs_f64();
    let candidate = |(index, seen): (usize, &Seen)| {
        let (link, revision) = match seen.sight {
            Sight::Answers { link, revision } => {
                let link = if link { Link::Online } else { Link::Offline };
                // OpenYurt's do not tell.
                let told = (!seen.openyurt).then_some((link, revision));
                told.unzip()
            }
            Sight::Unknown | Sight::Silent => (None, None),
        };
        let itself = *seen.peer.node == *me;
        CandidateStatus {
            node: seen.peer.node.to_string(),
            address: seen.peer.address.to_string(),
            rank: index + 1,
            state: match seen.sight {
                Sight::Answers { .. } if itself => "self",
                Sight::Answers { .. } => "answers",
                Sight::Unknown => "unknown",
                Sight::Silent => "silent",
            },
            openyurt: seen.openyurt,
            link,
            leads: match &seen.beat {
                Some(beat) => beat.leads && seen.sight.answers(),
                None => itself && told.role == Role::Leader,
            },
            revision,
            heard_seconds: seen.heard.map(ago),
            why: seen.why.clone(),
        }
    };
    PoolStatus {
        node: me.to_owned(),
        role: told.role.as_str(),
        leader: told.role.leader().map(|leader| leader.node.to_string()),
        why: told.why.clone(),
        for_seconds: told.since.map_or(0.0, ago),
        role_changes: told.changes,
        last_takeover_milliseconds: told
            .last_takeover
            .map(|took| u64::try_from(took.as_millis()).unwrap_or(u64::MAX)),
        link: told.link,
        revision: told.revision,
        candidates: told.candidates.iter().enumerate().map(candidate).collect(),
        ..PoolStatus::default()
    }
}

fn own(hub: &Hub) -> Leased {
    let now = Instant::now();
    let (kept, _) = hub.coordination.leases.pick(|_, _| true);
    let state = |(node, kept): (Box<str>, super::leases::Kept)| {
        let age = now.saturating_duration_since(kept.moved).as_secs_f64();
        let state = (kept.is_alive(now), age, kept.written.delegate);
        (node.into_string(), state)
    };
    kept.into_iter().map(state).collect()
}

async fn of_leader(hub: &Hub, leader: &PeerNode) -> Result<Leased, String> {
    if !hub.coordination.is_ours(leader) {
        return Err(format!(
            "{} is a leader of OpenYurt, which keeps no leases",
            leader.node
        ));
    }
    let request = Request::builder()
        .uri(format!(
            "/apis/coordination.k8s.io/v1/namespaces/{NODE_LEASES}/leases"
        ))
        .header(header::ACCEPT, "application/json")
        .header(header::USER_AGENT, crate::USER_AGENT)
        .body(Bytes::new())
        .map_err(|error| error.to_string())?;
    let asking = async {
        let response = hub.peers.send_within(leader, request, WAIT).await;
        let response = response.map_err(|error| error.to_string())?;
        let status = response.status();
        let body = yurt_transport::collect(response.into_body(), MOST_BYTES).await;
        let body = body.map_err(|error| error.to_string())?;
        if !status.is_success() {
            return Err(format!("{leader} answers {status}"));
        }
        leases(&body, Timestamp::now()).ok_or_else(|| format!("{leader} tells no leases"))
    };
    let asked = tokio::time::timeout(WAIT, asking).await;
    asked.unwrap_or_else(|_| Err(format!("{leader} did not answer within {WAIT:?}")))
}

/// Reads a list of leases; their ages are by the clocks of their nodes.
fn leases(body: &[u8], now: Timestamp) -> Option<Leased> {
    let list: Value = serde_json::from_slice(body).ok()?;
    let items = list.get("items")?.as_array()?.iter();
    let state = |lease: &Value| {
        let node = lease.pointer("/metadata/name")?.as_str()?;
        let written = Written::of(lease, node).ok()?;
        let age = now.duration_since(written.renew).as_secs_f64().max(0.0);
        let alive = age < written.duration.as_secs_f64();
        Some((node.to_owned(), (alive, age, written.delegate)))
    };
    Some(items.filter_map(state).collect())
}

fn nodes<'a>(members: impl Iterator<Item = &'a str>, leased: Leased) -> Vec<NodeStatus> {
    let nothing = |node: &str| NodeStatus {
        node: node.to_owned(),
        ..NodeStatus::default()
    };
    let mut known: BTreeMap<String, NodeStatus> = members
        .map(|node| (node.to_owned(), nothing(node)))
        .collect();
    for (node, (alive, age, delegated)) in leased {
        let status = NodeStatus {
            node: node.clone(),
            alive: Some(alive),
            lease_seconds: Some((age * 10.0).round() / 10.0),
            delegated: delegated && alive,
        };
        known.insert(node, status);
    }
    known.into_values().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_are_alive_by_their_leases() {
        let list = br#"{"kind":"LeaseList","items":[
            {"metadata":{"name":"a","annotations":{"openyurt.io/delegate-heartbeat":"true"}},"spec":{"leaseDurationSeconds":40,"renewTime":"2026-11-22T10:00:00.000000Z"}},
            {"metadata":{"name":"b"},"spec":{"leaseDurationSeconds":40,"renewTime":"2026-11-22T09:00:00.000000Z"}},
            {"metadata":{"name":"c"},"spec":{}}]}"#;
        let now = "2026-11-22T10:00:10Z".parse().unwrap();
        let leased = leases(list, now).unwrap();
        let told = nodes(["a", "c", "d"].into_iter(), leased);
        let told: Vec<_> = told
            .iter()
            .map(|n| (n.node.as_str(), n.alive, n.delegated))
            .collect();
        assert_eq!(
            told,
            [
                ("a", Some(true), true),
                ("b", Some(false), false),
                ("c", None, false),
                ("d", None, false)
            ]
        );
        assert!(leases(b"{}", now).is_none());
    }
}
