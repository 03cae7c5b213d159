//! Presence: what a node tells the others of its pool about itself, a line of JSON each second for as long as they listen. Silence, an
//! error or the end of the connection means that it does not answer.

use bytes::{Buf, Bytes, BytesMut};
use futures_util::{StreamExt as _, stream};
use http::{HeaderValue, Response, header};
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use serde::{Deserialize, Serialize};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use yurt_transport::Body;
use yurt_wire::{Reason, Status};

/// Where it is told, on the port for the nodes of the pool.
pub const PATH: &str = "/yurt.io/pool/v1/presence";
/// Between beats.
pub const BEAT: Duration = Duration::from_secs(1);
/// Whoever was silent for so long does not answer.
pub const SILENCE: Duration = Duration::from_secs(2);
/// The media type of the stream.
pub const LINES: &str = "application/jsonl";

/// Longest line that is read.
const LONGEST_LINE: usize = 4 << 10;
/// Beats in a second, beyond those of changes, that are still no flood.
const MOST_BEATS: u32 = 20;
/// Streams that one node may listen to at one time: one that hangs, and the one after it.
const MOST_STREAMS: u8 = 4;

/// Whether there is a link to the cloud.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Link {
    /// There is.
    Online,
    /// There is none.
    #[default]
    Offline,
}

/// What a node tells of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Beat {
    /// Its name.
    pub node: String,
    /// Whether it has a link.
    pub link: Link,
    /// Whether it leads, as it sees it.
    #[serde(default)]
    pub leads: bool,
    /// Whom it goes by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leader: Option<String>,
    /// The newest revision that it knows of what the pool shares.
    #[serde(default)]
    pub revision: u64,
    /// Nodes whose leases it has that are alive.
    #[serde(default)]
    pub alive: u32,
}

impl Beat {
    /// As a line.
    pub fn line(&self) -> Bytes {
        let mut line = serde_json::to_vec(self).unwrap_or_default();
        line.push(b'\n');
        line.into()
    }
}

/// Why a presence is not believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unbelievable {
    /// It cannot be read.
    #[error("what it tells of itself cannot be read")]
    Garbage,
    /// It says that it is somebody else.
    #[error("it says that it is another node")]
    Another,
    /// It tells more than there is to tell.
    #[error("it does not stop telling")]
    Flood,
}

/// Reads beats of one node out of its stream.
#[derive(Debug)]
pub struct Beats {
    node: Box<str>,
    rest: BytesMut,
    /// Beats since the second began.
    count: u32,
    began: Duration,
}

impl Beats {
    /// Of a node.
    pub fn of(node: &str) -> Self {
        Self {
            node: node.into(),
            rest: BytesMut::new(),
            count: 0,
            began: Duration::ZERO,
        }
    }

    /// Takes what came at a time since the stream began; gives the newest beat in it. The stream is of no use after an error.
    pub fn take(&mut self, at: Duration, data: &[u8]) -> Result<Option<Beat>, Unbelievable> {
        let mut newest = None;
        self.rest.extend_from_slice(data);
        while let Some(end) = memchr::memchr(b'\n', &self.rest) {
            let line = self.rest.split_to(end);
            self.rest.advance(1);
            if line.len() > LONGEST_LINE {
                return Err(Unbelievable::Garbage);
            }
            if at.saturating_sub(self.began) >= BEAT {
                (self.began, self.count) = (at, 0);
            }
            self.count += 1;
            if self.count > MOST_BEATS {
                return Err(Unbelievable::Flood);
            }
            let beat: Beat = serde_json::from_slice(&line).map_err(|_| Unbelievable::Garbage)?;
            if *beat.node != *self.node {
                return Err(Unbelievable::Another);
            }
            newest = Some(beat);
        }
        if self.rest.len() > LONGEST_LINE {
            return Err(Unbelievable::Garbage);
        }
        Ok(newest)
    }
}

/// What this node tells, and who listens. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Presence {
    line: Arc<watch::Sender<Bytes>>,
    streams: Arc<Mutex<HashMap<Box<str>, u8>>>,
}

impl Default for Presence {
    fn default() -> Self {
        Self {
            line: Arc::new(watch::Sender::new(Bytes::new())),
            streams: Arc::default(),
        }
    }
}

/// A listener that counts until it is dropped.
struct Listener {
    node: Box<str>,
    streams: Arc<Mutex<HashMap<Box<str>, u8>>>,
}

impl Drop for Listener {
    fn drop(&mut self) {
        let mut streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = streams.get_mut(&self.node) {
            *count -= 1;
            if *count == 0 {
                streams.remove(&self.node);
            }
        }
    }
}

impl Presence {
    /// Tells all listeners.
    pub fn tell(&self, beat: &Beat) {
        self.line.send_replace(beat.line());
    }

    /// Streams that are listened to.
    pub fn listeners(&self) -> usize {
        let streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        streams.values().map(|count| usize::from(*count)).sum()
    }

    /// A stream for the node `peer`, until `shutdown`. It is asked for its lines by the connection: a listener that takes none is that
    /// one's to mind, and misses all but the last.
    pub fn stream(
        &self,
        peer: &str,
        shutdown: CancellationToken,
    ) -> Result<Response<Body>, Box<Status>> {
        let mut lines = self.line.subscribe();
        lines.mark_changed();
        let state = (lines, self.listen(peer)?);
        let lines = stream::unfold(state, |(mut lines, listener)| async move {
            loop {
                lines.changed().await.ok()?;
                let line = lines.borrow_and_update().clone();
                if !line.is_empty() {
                    return Some((Ok(Frame::data(line)), (lines, listener)));
                }
            }
        });
        let lines = lines.take_until(shutdown.cancelled_owned());
        let mut response = Response::new(StreamBody::new(lines).boxed_unsync());
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(LINES));
        headers.insert(
            header::CACHE_CONTROL,
            HeaderValue::from_static("no-cache, private"),
        );
        Ok(response)
    }

    fn listen(&self, peer: &str) -> Result<Listener, Box<Status>> {
        let mut streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        let count = streams.entry(peer.into()).or_default();
        if *count >= MOST_STREAMS {
            let mut status = Status::new(
                Reason::TooManyRequests,
                format!("node {peer:?} listens to this one {MOST_STREAMS} times already"),
            );
            status.retry_after_seconds = Some(1);
            return Err(Box::new(status));
        }
        *count += 1;
        Ok(Listener {
            node: peer.into(),
            streams: self.streams.clone(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn beat(revision: u64) -> Beat {
        Beat {
            node: "a".into(),
            link: Link::Online,
            revision,
            ..Beat::default()
        }
    }

    #[test]
    fn beats_are_read_whatever_the_pieces() {
        let text = [beat(1).line(), beat(2).line()].concat();
        let mut beats = Beats::of("a");
        let mut read = Vec::new();
        for byte in &text {
            read.extend(beats.take(Duration::ZERO, &[*byte]).unwrap());
        }
        assert_eq!(read, [beat(1), beat(2)]);
        assert_eq!(Beats::of("a").take(BEAT, &text), Ok(Some(beat(2))));
        // What a later version adds is passed over.
        let more = b"{\"node\":\"a\",\"link\":\"offline\",\"mood\":{\"x\":[1]}}\n";
        let read = Beats::of("a").take(BEAT, more).unwrap().unwrap();
        assert_eq!((read.link, read.revision), (Link::Offline, 0));
    }

    #[test]
    fn what_cannot_be_believed() {
        let fails = |data: &[u8]| Beats::of("a").take(BEAT, data).unwrap_err();
        assert_eq!(fails(b"\n"), Unbelievable::Garbage);
        assert_eq!(fails(b"{\"node\":\"a\"}\n"), Unbelievable::Garbage);
        assert_eq!(
            fails(b"{\"node\":\"a\",\"link\":\"sideways\"}\n"),
            Unbelievable::Garbage
        );
        assert_eq!(
            fails(b"{\"node\":\"b\",\"link\":\"online\"}\n"),
            Unbelievable::Another
        );
        assert_eq!(fails(&[b'x'; LONGEST_LINE + 1]), Unbelievable::Garbage);
        let many = beat(1).line().repeat(MOST_BEATS as usize + 1);
        assert_eq!(fails(&many), Unbelievable::Flood);
        // One after the other they are none.
        let mut beats = Beats::of("a");
        for second in 0..100 {
            assert!(beats.take(BEAT * second, &beat(1).line()).is_ok());
        }
    }

    #[tokio::test]
    async fn a_node_listens_a_few_times_only() {
        let presence = Presence::default();
        let stop = CancellationToken::new();
        let open = || presence.stream("b", stop.clone());
        presence.tell(&beat(7));
        let mut streams: Vec<_> = (0..MOST_STREAMS).map(|_| open().unwrap()).collect();
        assert_eq!(open().unwrap_err().code(), 429);
        assert!(presence.stream("c", stop.clone()).is_ok());
        let told = streams[0].body_mut().frame().await.unwrap().unwrap();
        assert_eq!(told.into_data().unwrap(), beat(7).line());
        // Who takes none of them meanwhile gets the latest.
        presence.tell(&beat(8));
        presence.tell(&beat(9));
        let told = streams[0].body_mut().frame().await.unwrap().unwrap();
        assert_eq!(told.into_data().unwrap(), beat(9).line());
        stop.cancel();
        assert!(streams[0].body_mut().frame().await.is_none());
        drop(streams);
        assert_eq!(presence.listeners(), 0);
    }

    proptest! {
        #[test]
        fn whatever_comes_is_bounded(pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..3000), 0..8)) {
            let mut beats = Beats::of("a");
            for piece in pieces {
                if beats.take(Duration::ZERO, &piece).is_err() {
                    break;
                }
                prop_assert!(beats.rest.len() <= LONGEST_LINE);
            }
        }
    }
}
