//! A watch while the link is up: the cloud's frames, byte for byte, and what the hub learns from them.

use super::{
    Next, Relay,
    cursor::Resume,
    frames::{Frames, Unfollowable},
    until,
};
use crate::{metrics::Unlearned, pool::Role, route, upstream::Server};
use bytes::Bytes;
use http::Method;
use http_body_util::BodyExt;
use std::{collections::VecDeque, sync::Arc, time::Duration};
use tokio::{sync, time::Instant};
use yurt_transport::ResponseBody;
use yurt_wire::{
    Encoding, Object,
    watch::{self, Event, EventType},
};

/// How long the cloud may be late in ending a watch whose time is over.
const OVERTIME: Duration = Duration::from_secs(10);
/// Silence on a stream, with other signs of life from its server, after which initial events count as complete.
const QUIET: Duration = Duration::from_secs(1);
/// Clients complain of watches that end sooner.
const ORDINARY: Duration = Duration::from_secs(2);

/// Resolves, for a watch of what can be shared within the pool, when that begins after the watch did: a node learns a moment after its
/// start what it is to its pool. Not before clients see an end as an ordinary one.
async fn begins_sharing(mut role: sync::watch::Receiver<Role>, shareable: bool) {
    let begun = Instant::now();
    let begins = shareable
        && *role.borrow() == Role::Alone
        && role.wait_for(|role| *role != Role::Alone).await.is_ok();
    if !begins {
        return std::future::pending().await;
    }
    tokio::time::sleep_until(begun + ORDINARY).await;
}

impl Relay {
    /// Passes the frames of a stream on.
    pub(super) async fn relay_cloud(
        &mut self,
        mut body: ResponseBody,
        server: Arc<Server>,
    ) -> Next {
        let mut frames = Frames::new(self.encoding, self.hub.bounds.watch_frame);
        let overtime = self.deadline.map(|deadline| deadline + OVERTIME);
        let mut last = std::time::Instant::now();
        let mut corrected = self.hub.cache.corrected();
        let mut shared = std::pin::pin!(begins_sharing(
            self.hub.role.clone(),
            route::is_shareable(
                &self.hub.settings.borrow().pool_scope,
                &Method::GET,
                &self.watched.info,
                &self.watched.options,
                false,
            ),
        ));
        let mut moves = true;
        self.corrector.begin(&self.cursor);
        if let Err(next) = self.correct().await {
            return next;
        }
        loop {
            let data = tokio::select! {
                frame = body.frame() => match frame {
                    Some(Ok(frame)) => match frame.into_data() {
                        Ok(data) => data,
                        Err(_) => continue,
                    },
                    Some(Err(error)) => {
                        tracing::debug!(path = %self.watched.info.path, %error, "upstream watch broke");
                        server.suspect();
                        return Next::Lost;
                    }
                    None => {
                        if let Some(raw) = frames.finish()
                            && let Err(next) = self.deliver(raw).await
                        {
                            return next;
                        }
                        return Next::End;
                    }
                },
                changed = corrected.changed() => match changed {
                    Ok(()) => match self.correct().await {
                        Ok(()) => continue,
                        Err(next) => return next,
                    },
                    Err(_) => return Next::End,
                },
                () = self.client.closed() => return Next::End,
                () = self.hub.shutdown.cancelled() => return Next::End,
                () = server.went_down() => return Next::Lost,
                // Its client goes on where it was, out of what is shared from now on.
                () = &mut shared, if moves => {
                    if matches!(self.cursor.resume(), Resume::At(_)) {
                        return Next::End;
                    }
                    moves = false;
                    continue;
                }
                () = until(overtime) => return Next::End,
                () = tokio::time::sleep(QUIET), if self.cursor.unsettled() => {
                    if server.heard_since(last + QUIET / 4) {
                        self.cursor.settle();
                    }
                    continue;
                }
            };
            server.heard();
            last = std::time::Instant::now();
            frames.push(data);
            loop {
                match frames.next() {
                    Ok(Some(frame)) => {
                        match &frame.event {
                            Ok(event) => self.saw(event),
                            Err(error) => self.not_understood(&error.to_string()),
                        }
                        if let Err(next) = self.deliver(frame.raw).await {
                            return next;
                        }
                    }
                    Ok(None) => break,
                    Err(Unfollowable { rest, error }) => {
                        self.not_understood(&error);
                        return self.pass_blindly(rest, body, &server).await;
                    }
                }
            }
        }
    }

    /// Frames cannot be told apart any more: what comes is passed on as it is, until the stream ends or breaks.
    async fn pass_blindly(
        &mut self,
        rest: VecDeque<Bytes>,
        mut body: ResponseBody,
        server: &Server,
    ) -> Next {
        self.over = true;
        for chunk in rest {
            if let Err(next) = self.deliver(chunk).await {
                return next;
            }
        }
        loop {
            let chunk = tokio::select! {
                frame = body.frame() => frame,
                () = self.client.closed() => return Next::End,
                () = self.hub.shutdown.cancelled() => return Next::End,
            };
            match chunk {
                Some(Ok(frame)) => {
                    server.heard();
                    if let Ok(data) = frame.into_data()
                        && let Err(next) = self.deliver(data).await
                    {
                        return next;
                    }
                }
                Some(Err(_)) => return Next::Break("the upstream watch broke"),
                None => return Next::End,
            }
        }
    }

    fn not_understood(&mut self, error: &str) {
        // What follows would build on a gap.
        self.learner = None;
        self.hub.metrics.unlearned(Unlearned::Undecodable);
        tracing::warn!(path = %self.watched.info.path, error, "an event of the cloud is malformed; passed on, not cached");
    }

    fn saw(&mut self, event: &Event) {
        if event.kind == EventType::Error {
            self.over = true;
        }
        let revision = match event.object.key() {
            Ok(key) if !key.resource_version.is_empty() => key.resource_version,
            Ok(_) | Err(_) => row_revision(&event.object).into(),
        };
        let end = event.kind == EventType::Bookmark
            && (watch::is_initial_events_end(&event.object)
                || (self.watched.view && marks_end(&event.object)));
        self.cursor.saw(event.kind, &revision, end);
        if let Some(learner) = &mut self.learner {
            learner.event(event);
        }
        if self.hub.cache.unsettled(self.corrector.resource()) {
            self.told(&event.object);
        }
    }

    /// The cloud told the client how an object is.
    fn told(&mut self, object: &Object) {
        match object.key() {
            Ok(key) if !key.name.is_empty() => self.corrector.told(&key.namespace, &key.name),
            Ok(_) | Err(_) => {
                for row in rows(object) {
                    self.corrector.told(&row.namespace, &row.name);
                }
            }
        }
    }
}

/// What a row of a Table tells of its object.
#[derive(Default, serde::Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct RowMeta {
    namespace: String,
    name: String,
    resource_version: String,
}

/// The rows of a Table.
fn rows(object: &Object) -> Vec<RowMeta> {
    #[derive(serde::Deserialize)]
    struct Table {
        rows: Option<Vec<Row>>,
    }
    #[derive(serde::Deserialize)]
    struct Row {
        object: Option<RowObject>,
    }
    #[derive(serde::Deserialize)]
    struct RowObject {
        metadata: Option<RowMeta>,
    }
    if object.encoding != Encoding::Json {
        return Vec::new();
    }
    let table: Option<Table> = serde_json::from_slice(&object.bytes).ok();
    let rows = table.and_then(|table| table.rows).unwrap_or_default();
    rows.into_iter()
        .filter_map(|row| row.object?.metadata)
        .collect()
}

/// The revision of a Table without one in its own metadata: that of its first row.
fn row_revision(object: &Object) -> String {
    let first = rows(object).into_iter().next();
    first.map(|row| row.resource_version).unwrap_or_default()
}

/// Whether a bookmark in the form of a Table carries the end of the initial events in its row.
fn marks_end(object: &Object) -> bool {
    let marker = watch::INITIAL_EVENTS_END.as_bytes();
    object
        .bytes
        .windows(marker.len())
        .any(|window| window == marker)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tables_revision() {
        let table = |text: &'static str| Object {
            encoding: Encoding::Json,
            bytes: Bytes::from_static(text.as_bytes()),
        };
        let rows = table(
            r#"{"kind":"Table","apiVersion":"meta.k8s.io/v1","metadata":{},"rows":[{"cells":["a"],"object":{"kind":"PartialObjectMetadata","metadata":{"name":"a","resourceVersion":"77"}}}]}"#,
        );
        assert_eq!(row_revision(&rows), "77");
        assert_eq!(row_revision(&table(r#"{"rows":[]}"#)), "");
        assert_eq!(row_revision(&table("nonsense")), "");
        assert!(marks_end(&table(
            r#"{"annotations":{"k8s.io/initial-events-end":"true"}}"#
        )));
        assert!(!marks_end(&rows));
    }
}
