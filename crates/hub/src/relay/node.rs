//! A watch while the link is down: what changes on the node, until the cloud is back.

use super::{
    Next, Relay,
    cursor::{Cursor, Resume, resumed_query},
    until,
};
use crate::{metrics::Held, offline::LocalWatch, route::Mode};
use tokio::time::Instant;
use yurt_wire::Status;

impl Relay {
    /// Tells the node's changes.
    pub(super) async fn relay_node(&mut self, mut local: Box<LocalWatch>) -> Next {
        let _local = Held::new(self.hub.metrics.watches_local());
        let (hub, caller) = (self.hub.clone(), self.watched.caller.clone());
        let mut back = std::pin::pin!(hub.until_mode_of(&caller, Mode::Online));
        let deadline = self.local_deadline();
        loop {
            let frame = tokio::select! {
                biased;
                frame = local.next() => frame,
                () = self.client.closed() => return Next::End,
                () = self.hub.shutdown.cancelled() => return Next::End,
                () = until(deadline) => return Next::End,
                () = &mut back => {
                    // What was to be told before the link came back has been told: `biased` asked the node first.
                    if self.opened_locally {
                        self.opened_locally = false;
                        self.cursor = Cursor::at(&local.last_revision());
                    }
                    return Next::Back;
                }
            };
            let Some(frame) = frame else {
                return Next::End;
            };
            // A bookmark of the node may be ahead of what this stream was told by the cloud, or behind it; the client must
            // hold the one revision whose events it has.
            if !self.opened_locally
                && let Some(revision) = &frame.resource_version
                && !self.cursor.is_at(revision)
            {
                continue;
            }
            if let Err(next) = self.deliver(frame.bytes).await {
                return next;
            }
        }
    }

    /// Tells nothing.
    pub(super) async fn stay_open(&mut self) -> Next {
        let _local = Held::new(self.hub.metrics.watches_local());
        let deadline = self.local_deadline();
        tokio::select! {
            () = self.hub.until_mode_of(&self.watched.caller, Mode::Online) => Next::Back,
            () = self.client.closed() => Next::End,
            () = self.hub.shutdown.cancelled() => Next::End,
            () = until(deadline) => Next::End,
        }
    }

    /// A watch that names no length gets one when the node serves it, as from an API server.
    fn local_deadline(&mut self) -> Option<Instant> {
        let least = self.hub.min_request_timeout;
        let deadline = *self
            .deadline
            .get_or_insert_with(|| Instant::now() + least.mul_f64(1.0 + fastrand::f64()));
        Some(deadline)
    }

    /// What the node can tell on top of what the client has. With what it wrote since, because a write may have come between
    /// the loss of the link and now; where the cache cannot tell that, from now on.
    pub(super) fn local_changes(&self) -> Result<LocalWatch, Box<Status>> {
        let (offline, watched) = (&self.hub.offline, &self.watched);
        let resume = self.cursor.resume();
        if let (Resume::At(_), false) = (&resume, watched.view) {
            let mut info = watched.info.clone();
            info.query = resumed_query(&info.query, &resume, None);
            let since = offline.watch(&watched.caller, &info, &watched.parts);
            if since.is_ok() {
                return since;
            }
        }
        let follow = LocalWatch::follow(offline, &watched.caller, &watched.info, &watched.parts)?;
        Ok(match resume {
            Resume::At(_) => follow.with_what_shows(),
            Resume::Same | Resume::Impossible => follow,
        })
    }
}
