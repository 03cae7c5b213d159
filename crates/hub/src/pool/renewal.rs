//! Tells the pool's leader that this node lives: its lease, as long as its kubelet does. While the node has no link of its own, the
//! lease asks the leader to renew it in the cloud.

use super::{
    leases::Written,
    role::{PeerNode, Role},
};
use crate::{
    autonomy::{
        self,
        heartbeat::{self, Heartbeat},
    },
    proxy::Hub,
};
use http::Method;
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;

/// How long the leader may take to answer.
const WAIT: Duration = Duration::from_secs(3);
/// After a failure: it may have been the leader's last, or its first moment.
const AGAIN: Duration = Duration::from_secs(1);
/// Largest answer that is read.
const MOST_ANSWER: usize = 64 << 10;

/// Tells until shutdown.
pub(super) async fn run(hub: Arc<Hub>, heartbeat: Arc<Heartbeat>) {
    let mut roles = hub.role.clone();
    let mut links = hub.upstreams.changes();
    let mut told = (Role::Alone, false);
    let mut last: Option<Timestamp> = None;
    let mut due = Instant::now();
    loop {
        links.borrow_and_update();
        let now = (roles.borrow_and_update().clone(), hub.upstreams.linked());
        // A new leader knows nothing yet, and what a lease asks for changes with the link.
        if now != told || Instant::now() >= due {
            due = Instant::now() + heartbeat.interval();
            let (role, linked) = &now;
            if let Some(written) = own(&hub, &heartbeat, !linked, last) {
                last = Some(written.renew);
                if let Err(why) = tell(&hub, role, &written).await {
                    tracing::debug!(why, "the leader could not be told that this node lives");
                    due = due.min(Instant::now() + AGAIN);
                }
            }
            told = now;
        }
        tokio::select! {
            () = tokio::time::sleep_until(due) => {}
            changed = roles.changed() => if changed.is_err() { return },
            _ = links.changed() => {}
            () = hub.shutdown.cancelled() => return,
        }
    }
}

/// The node's lease now; `None` while its kubelet is dead, or was never heard of.
fn own(
    hub: &Hub,
    heartbeat: &Heartbeat,
    delegate: bool,
    last: Option<Timestamp>,
) -> Option<Written> {
    let pulse = heartbeat.pulse();
    if !pulse.alive || pulse.kubelet_silent.is_none() {
        return None;
    }
    // A clock that was set back must not make the node look dead.
    let least = last.and_then(|at| at.checked_add(SignedDuration::from_micros(1)).ok());
    let node = autonomy::own_node(hub);
    let uid = node.as_ref().and_then(|node| node.pointer("/metadata/uid"));
    Some(Written {
        renew: least.map_or_else(Timestamp::now, |least| Timestamp::now().max(least)),
        duration: heartbeat.grace(),
        delegate,
        owner: uid.and_then(Value::as_str).map(Into::into),
    })
}

async fn tell(hub: &Hub, role: &Role, written: &Written) -> Result<(), String> {
    match role {
        Role::Alone => Ok(()),
        Role::Leader => {
            let taken = hub.coordination.leases.put(&hub.node_name, written.clone());
            taken.map(|_| ()).map_err(|refusal| refusal.to_string())
        }
        // A leader of OpenYurt keeps no leases.
        Role::Follower(leader) if !hub.coordination.is_ours(leader) => Ok(()),
        Role::Follower(leader) => send(hub, leader, written).await,
    }
}

async fn send(hub: &Hub, leader: &PeerNode, written: &Written) -> Result<(), String> {
    let node = &hub.node_name;
    let request = heartbeat::request(Method::PUT, node, Some(written.lease(node)))?;
    let sending = async {
        let response = hub.peers.send_within(leader, request, WAIT).await;
        let response = response.map_err(|error| error.to_string())?;
        let status = response.status();
        // Read to its end: the connection goes on being used.
        let body = yurt_transport::collect(response.into_body(), MOST_ANSWER).await;
        body.map_err(|error| error.to_string())?;
        match status.is_success() {
            true => Ok(()),
            false => Err(format!("{leader} answers {status}")),
        }
    };
    let sent = tokio::time::timeout(WAIT, sending).await;
    sent.unwrap_or_else(|_| Err(format!("{leader} did not answer within {WAIT:?}")))
}
