//! Feeding: lists and watches one resource at its source, whoever that is at the moment, teaches the cache, and tells who follows.
//!
//! Revisions are the cloud's everywhere. So a feed goes on at another source where it was; only when that does not hold the events
//! since any more it lists, and tells the differences. A source that is behind is waited for and never takes the feed back, but for
//! the cloud, which is always right.

use super::{
    Feed, Share,
    source::{Ended, Source, encoding_of},
    teller::{Heard, Listing, Teller, Wrong},
};
use crate::{
    caller::Caller,
    metrics::Held,
    pool::{Distrust, Role},
    proxy::Hub,
    route::Mode,
};
use http_body_util::BodyExt;
use std::{sync::Arc, time::Duration};
use tokio::{sync::watch, time::Instant};
use yurt_wire::{
    Encoding, Gvk, list, request::encode_query_value, transcode::has_protobuf, watch::FrameDecoder,
};

/// Between attempts after a failure; doubled up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// Between attempts at what this node does not get.
const REFUSED_PAUSE: Duration = Duration::from_secs(60);
/// What lasted that long was no failure.
const LASTED: Duration = Duration::from_secs(10);
/// Objects in a page of a list.
const PAGE: usize = 500;
/// Pages of one list.
const MOST_PAGES: usize = 400;
/// Length of an upstream watch in seconds, as OpenYurt's: once to twice this.
const LENGTH: u64 = 300;
/// By which another node of ours tells how often it sends a bookmark at least.
pub(crate) const BOOKMARKS: &str = "yurt-bookmark-seconds";

/// Feeds until the hub ends, or nobody uses the feed any more.
pub(super) async fn run(hub: Arc<Hub>, feed: Arc<Feed>) {
    let (share, shutdown) = (hub.share.clone(), hub.shutdown.clone());
    let gvr = &feed.query.gvr;
    let path = match gvr.group.as_str() {
        "" => format!("/api/{}/{}", gvr.version, gvr.resource),
        group => format!("/apis/{group}/{}/{}", gvr.version, gvr.resource),
    };
    let teller = Teller {
        cache: hub.cache.clone(),
        feed: feed.clone(),
    };
    let feeder = Feeder {
        path,
        teller,
        hub,
        feed,
        json_only: false,
        must_list: false,
        behind: None,
    };
    tokio::select! {
        () = feeder.run(&share) => {}
        () = shutdown.cancelled() => {}
    }
}

impl From<Wrong> for Ended {
    fn from(wrong: Wrong) -> Self {
        match wrong {
            Wrong::Garbage => Self::Fault(Distrust::Garbage),
            Wrong::Expired => Self::Expired,
            Wrong::Ended => Self::Later,
        }
    }
}

struct Feeder {
    hub: Arc<Hub>,
    feed: Arc<Feed>,
    teller: Teller,
    path: String,
    /// Its kind is not known to this node in protobuf.
    json_only: bool,
    /// What is known cannot be gone on from.
    must_list: bool,
    /// Since when the source is behind.
    behind: Option<Instant>,
}

/// Resolves when a node of the role would be fed by somebody else.
async fn turned(role: &mut watch::Receiver<Role>, source: &Source) {
    if role
        .wait_for(|role| Source::of(role) != *source)
        .await
        .is_err()
    {
        std::future::pending().await
    }
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

impl Feeder {
    async fn run(mut self, share: &Share) {
        let mut role = self.hub.role.clone();
        let mut pause = FIRST_PAUSE;
        let feed = self.feed.clone();
        let mut unused = std::pin::pin!(feed.unused());
        loop {
            let source = Source::of(&role.borrow_and_update());
            *super::lock(&self.feed.source) = source.to_string();
            let begun = Instant::now();
            let ended = tokio::select! {
                ended = self.draw(&source) => ended,
                () = turned(&mut role, &source) => {
                    tracing::info!(resource = %self.feed.query.gvr, from = %source, revision = self.feed.known(), "a feed goes on elsewhere");
                    self.behind = None;
                    pause = FIRST_PAUSE;
                    continue;
                }
                () = &mut unused => {
                    if share.retire(&self.feed) {
                        return;
                    }
                    unused.set(feed.unused());
                    continue;
                }
            };
            if begun.elapsed() > LASTED {
                pause = FIRST_PAUSE;
            }
            self.feed.failed(ended == Ended::Refused);
            if let Ended::Fault(reason) = ended {
                self.fault(&source, reason);
            }
            if ended == Ended::Behind {
                self.left_behind(&source).await;
            }
            let rest = match ended {
                Ended::Refused => REFUSED_PAUSE,
                _ => pause,
            };
            tokio::select! {
                () = tokio::time::sleep(rest.mul_f64(0.5 + fastrand::f64())) => {}
                () = turned(&mut role, &source) => {}
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// What was known by a source that is not to be believed is compared with what the next one lists.
    fn fault(&mut self, source: &Source, reason: Distrust) {
        self.must_list |= reason != Distrust::Stalled || *source == Source::Cloud;
        match source {
            Source::Peer(peer) => self.hub.peers.distrust(&peer.node, reason),
            Source::Cloud => {
                let resource = &self.feed.query.gvr;
                tracing::warn!(%resource, reason = reason.as_str(), "the cloud's feed cannot be followed; listed again");
            }
        }
    }

    /// The source was behind for too long: it is wrong, or this node is.
    async fn left_behind(&mut self, source: &Source) {
        self.behind = None;
        if *source == Source::Cloud {
            // It is never wrong.
            self.must_list = true;
            return;
        }
        // Without a link there is nobody to ask; what the peer gets to know will come.
        if self.hub.mode_of(&Caller::Node) == Mode::Offline {
            return;
        }
        let known = self.known_or_complete();
        match Source::Cloud.revision(&self.hub, &self.path).await {
            Some(revision) if revision < known => self.take_back(revision),
            Some(_) => self.fault(source, Distrust::Lies),
            None => {}
        }
    }

    /// What is known of later revisions than the cloud's is not true.
    fn take_back(&mut self, revision: u64) {
        let gvr = &self.feed.query.gvr;
        tracing::warn!(resource = %gvr, known = self.feed.known(), cloud = revision, "more was known than the cloud knows; taken back");
        self.hub.cache.forget_after(gvr, revision);
        self.feed.begin(0);
        self.behind = None;
    }

    /// Draws from a source as long as it gives anything.
    async fn draw(&mut self, source: &Source) -> Ended {
        if *source == Source::Cloud {
            if self.feed.known() == 0
                && self.hub.mode_of(&Caller::Node) == Mode::Offline
                && let Some(revision) = self.hub.cache.complete_at(&self.feed.query)
            {
                // All that there is for now, and all that the pool has.
                self.feed.begin(revision);
            }
            if self.hub.mode_of(&Caller::Node) == Mode::Offline {
                self.feed.failed(false);
                self.hub.until_mode_of(&Caller::Node, Mode::Online).await;
            }
        }
        loop {
            let complete = self.hub.cache.complete_at(&self.feed.query);
            let since = match (self.feed.known(), complete) {
                _ if self.must_list => None,
                (_, None) => None,
                (0, complete) => complete,
                (known, Some(_)) => Some(known),
            };
            let since = match since {
                Some(since) => since,
                None => match self.list(source).await {
                    Ok(revision) => revision,
                    Err(ended) => return ended,
                },
            };
            let begun = Instant::now();
            match self.watch(source, since).await {
                Ended::Cleanly if begun.elapsed() > FIRST_PAUSE => {}
                Ended::Expired => self.must_list = true,
                ended => return ended,
            }
        }
    }

    /// Notes that the source is behind; what to make of it.
    fn is_behind(&mut self) -> Ended {
        let since = *self.behind.get_or_insert_with(Instant::now);
        if since.elapsed() >= self.hub.bounds.pool_behind {
            Ended::Behind
        } else {
            Ended::Later
        }
    }

    /// Up to which revision anything is known, told or not.
    fn known_or_complete(&self) -> u64 {
        let complete = self.hub.cache.complete_at(&self.feed.query);
        self.feed.known().max(complete.unwrap_or(0))
    }

    /// Learns the whole state, and tells how it differs from what was told.
    async fn list(&mut self, source: &Source) -> Result<u64, Ended> {
        let hub = self.hub.clone();
        let mut under_way: Option<Listing> = None;
        let mut next = String::new();
        for _ in 0..MOST_PAGES {
            let mut target = match source {
                Source::Cloud => format!("{}?limit={PAGE}", self.path),
                Source::Peer(_) => format!("{}?resourceVersion=0", self.path),
            };
            if !next.is_empty() {
                target.push_str("&continue=");
                target.push_str(&encode_query_value(&next));
            }
            let (page, encoding) = source.page(&hub, &target, self.json_only).await?;
            let garbage = Ended::Fault(Distrust::Garbage);
            let gvk = Gvk {
                kind: list::item_kind(&page.gvk.kind).unwrap_or_default().into(),
                ..page.gvk.clone()
            };
            if gvk.kind.is_empty() || !self.teller.is_ours(&gvk) {
                return Err(garbage);
            }
            if encoding == Encoding::Protobuf && !has_protobuf(&gvk) {
                self.json_only = true;
                return Err(Ended::Later);
            }
            let at: u64 = page.resource_version.parse().map_err(|_| garbage)?;
            let mut listing = match under_way.take() {
                None if at == 0 => return Err(garbage),
                None => {
                    if at < self.known_or_complete() {
                        if *source != Source::Cloud {
                            return Err(self.is_behind());
                        }
                        self.take_back(at);
                    }
                    Listing::begin(&self.teller, at)
                }
                // Another server went on with it, in its own way.
                Some(listing) if listing.at != at => return Err(Ended::Later),
                Some(listing) => listing,
            };
            next.clone_from(&page.continue_token);
            listing.page(&self.teller, page).await?;
            if next.is_empty() {
                let Some(at) = listing.finish(&self.teller) else {
                    let resource = &self.feed.query.gvr;
                    tracing::info!(%resource, "a list of a feed found no room in the cache; again later");
                    return Err(Ended::Later);
                };
                self.behind = None;
                self.must_list = false;
                return Ok(at);
            }
            under_way = Some(listing);
        }
        Err(Ended::Fault(Distrust::Flood))
    }

    /// Follows what comes after a revision.
    async fn watch(&mut self, source: &Source, since: u64) -> Ended {
        let (hub, feed) = (self.hub.clone(), self.feed.clone());
        let length = LENGTH + fastrand::u64(0..LENGTH);
        let target = format!(
            "{}?watch=true&allowWatchBookmarks=true&resourceVersion={since}&timeoutSeconds={length}",
            self.path
        );
        let (response, server) = match source.ask(&hub, &target, self.json_only, false).await {
            Ok(answer) => answer,
            Err(ended) => return ended,
        };
        let Some(encoding) = encoding_of(&response) else {
            return Ended::Fault(Distrust::Garbage);
        };
        let promised = response.headers().get(BOOKMARKS);
        let silence = promised
            .and_then(|value| value.to_str().ok()?.parse().ok())
            .map_or(hub.bounds.pool_silence, |seconds: u64| {
                Duration::from_secs(2 * seconds.max(1)).min(hub.bounds.pool_silence)
            });
        let fed_by = match (&server, source) {
            (Some(server), _) => server.authority().to_owned(),
            (None, source) => source.to_string(),
        };
        let _source = Held::new(&hub.metrics.feed_source(&feed.query.gvr, &fed_by));
        if feed.known() == 0 {
            feed.begin(since);
        }
        feed.metrics.resumed();
        tracing::debug!(resource = %feed.query.gvr, %source, since, "followed");
        let mut learner = self.teller.learner(since);
        let mut frames = FrameDecoder::new(encoding, hub.bounds.watch_frame);
        let mut body = response.into_body();
        let down = async {
            match &server {
                Some(server) => server.went_down().await,
                None => std::future::pending().await,
            }
        };
        let mut down = std::pin::pin!(down);
        let mut quiet = Instant::now() + silence;
        loop {
            let data = tokio::select! {
                frame = body.frame() => match frame {
                    Some(Ok(frame)) => match frame.into_data() {
                        Ok(data) => data,
                        Err(_) => continue,
                    },
                    Some(Err(error)) => {
                        tracing::debug!(resource = %feed.query.gvr, %source, %error, "a feed broke");
                        if let Some(server) = &server {
                            server.suspect();
                        }
                        return Ended::Later;
                    }
                    None => return Ended::Cleanly,
                },
                () = &mut down => return Ended::Later,
                () = until(self.behind.map(|since| since + hub.bounds.pool_behind)) => return Ended::Behind,
                () = tokio::time::sleep_until(quiet) => {
                    // Alive, and perhaps just without bookmarks: another stream may do better.
                    return match source.revision(&hub, &self.path).await {
                        Some(revision) if revision < feed.known() => Ended::Behind,
                        Some(_) => Ended::Cleanly,
                        None => Ended::Fault(Distrust::Stalled),
                    };
                }
            };
            quiet = Instant::now() + silence;
            if let Some(server) = &server {
                server.heard();
            }
            hub.metrics.pool().taken(data.len());
            frames.push(data);
            loop {
                let event = match frames.next_frame() {
                    Ok(Some(frame)) => frame.event,
                    Ok(None) => break,
                    Err(error) => Err(error),
                };
                let event = event.map_err(|error| {
                    tracing::debug!(resource = %feed.query.gvr, %source, %error, "not understood");
                    Wrong::Garbage
                });
                match event.and_then(|event| self.teller.event(&mut learner, event)) {
                    Ok(Heard::News) => self.behind = None,
                    Ok(Heard::Nothing) => {}
                    Ok(Heard::Behind) => {
                        self.behind.get_or_insert_with(Instant::now);
                    }
                    Err(wrong) => return wrong.into(),
                }
            }
            // What was learned may not have found room: then the cache is not complete any more.
            if hub.cache.complete_at(&feed.query).is_none() {
                self.must_list = true;
                return Ended::Cleanly;
            }
        }
    }
}
