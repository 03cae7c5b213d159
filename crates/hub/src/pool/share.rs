//! Sharing of pool-scoped resources: within the node, and within the pool (`docs/sharing.md`).
//!
//! For each resource there is one feed, begun when somebody first asks for it: a list and a watch at the cloud (a leader) or at
//! the pool's leader (a follower), see `feeder` and `source`. It teaches the cache, which holds the objects, as any read does; the feed
//! itself holds the latest events only (`window`). Lists are answered from the cache, watches from the cache and the window
//! (`offline::LocalWatch`), whoever feeds the feed at the moment, and without anybody while nobody can.
//! What is shared is the cloud's state, unfiltered.

mod differences;
mod feeder;
#[cfg(test)]
mod model_test;
mod packed;
mod source;
mod teller;
mod window;

use crate::{
    metrics::{FeedMetrics, Metrics},
    proxy::Hub,
    query::Query,
};
pub(crate) use feeder::BOOKMARKS;
use serde::Serialize;
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{sync::watch, time::Instant};
pub(crate) use window::{Before, Told};
use window::{Cursor, Next, Window};
use yurt_wire::Gvr;

/// Resources shared at one time; requests for more go to the cloud.
const MOST_FEEDS: usize = 64;
/// A feed that nobody used for this long ends.
const UNUSED: Duration = Duration::from_secs(600);
/// How long a request waits for a feed that begins, and for one whose last attempt failed.
const BEGINNING: Duration = Duration::from_secs(10);
const FAILING: Duration = Duration::from_secs(1);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Valid after every statement.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How far a feed is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// Nothing is known yet.
    Beginning,
    /// Nothing is known, and the last attempt to change that failed.
    Failing,
    /// The state is known completely; it may be told.
    Synced,
    /// The source does not give this resource to this node.
    Refused,
}

/// What a feed looks like, for `yurt hub pool status`.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FeedOverview {
    /// `RESOURCE.GROUP/VERSION`.
    pub resource: String,
    /// How far it is.
    pub stage: Stage,
    /// Who feeds it: `cloud`, or a node.
    pub source: String,
    /// Up to which revision everything is known; 0 for nothing.
    pub revision: u64,
    /// The oldest revision that watches can resume at.
    pub oldest: u64,
    /// Events held for that.
    pub events: usize,
    /// Their bytes.
    pub bytes: usize,
    /// Watches that follow it.
    pub watchers: usize,
    /// Times that the upstream watch was resumed.
    pub resumes: u64,
    /// Times that the state was listed.
    pub lists: u64,
}

/// The feeds of this node. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Share {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    feeds: Mutex<HashMap<Gvr, Arc<Feed>>>,
    window: usize,
    metrics: Metrics,
}

impl Share {
    /// Without feeds yet; each will hold about `window` bytes of events.
    pub fn new(window: usize, metrics: Metrics) -> Self {
        Self {
            inner: Arc::new(Inner {
                feeds: Mutex::default(),
                window,
                metrics,
            }),
        }
    }

    /// The feed of a resource, begun now if need be. `None` when there are too many.
    pub(crate) fn feed(&self, hub: &Arc<Hub>, gvr: &Gvr) -> Option<Arc<Feed>> {
        let mut feeds = lock(&self.inner.feeds);
        if let Some(feed) = feeds.get(gvr) {
            feed.touch();
            return Some(feed.clone());
        }
        if feeds.len() >= MOST_FEEDS {
            return None;
        }
        let window = Window::new(self.inner.window);
        let feed = Arc::new(Feed::new(gvr.clone(), window, self.inner.metrics.feed(gvr)));
        feeds.insert(gvr.clone(), feed.clone());
        hub.tasks.spawn(feeder::run(hub.clone(), feed.clone()));
        Some(feed)
    }

    /// Takes a feed out, unless somebody uses it; whether it is out.
    fn retire(&self, feed: &Feed) -> bool {
        // Locked: nobody begins to use it meanwhile.
        let mut feeds = lock(&self.inner.feeds);
        let unused = feed.is_unused();
        if unused {
            feeds.remove(&feed.query.gvr);
        }
        unused
    }

    /// Up to which revision everything of a resource is known by its feed; `None` when that is nothing.
    pub fn revision(&self, gvr: &Gvr) -> Option<u64> {
        let feed = lock(&self.inner.feeds).get(gvr)?.clone();
        let revision = lock(&feed.window).revision();
        (revision > 0).then_some(revision)
    }

    /// The highest revision of all feeds: of two nodes without a link, the one with the higher one knows more. 0 for nothing.
    pub fn newest(&self) -> u64 {
        let feeds: Vec<Arc<Feed>> = lock(&self.inner.feeds).values().cloned().collect();
        let revisions = feeds.iter().map(|feed| lock(&feed.window).revision());
        revisions.max().unwrap_or(0)
    }

    /// All feeds, in order.
    pub fn overview(&self) -> Vec<FeedOverview> {
        let mut feeds: Vec<Arc<Feed>> = lock(&self.inner.feeds).values().cloned().collect();
        feeds.sort_by(|a, b| a.query.gvr.cmp(&b.query.gvr));
        feeds.iter().map(|feed| feed.overview()).collect()
    }
}

#[derive(Debug)]
struct Usage {
    watchers: usize,
    at: Instant,
}

/// One resource as it is shared.
#[derive(Debug)]
pub(crate) struct Feed {
    /// All of the resource.
    query: Query,
    window: Mutex<Window>,
    /// Grows when there is something to tell.
    ticks: watch::Sender<u64>,
    /// How far everything is known; for who waits for a revision.
    revision: watch::Sender<u64>,
    stage: watch::Sender<Stage>,
    usage: Mutex<Usage>,
    source: Mutex<String>,
    metrics: FeedMetrics,
}

impl Feed {
    fn new(gvr: Gvr, window: Window, metrics: FeedMetrics) -> Self {
        Self {
            query: Query::all(gvr, ""),
            window: Mutex::new(window),
            ticks: watch::Sender::new(0),
            revision: watch::Sender::new(0),
            stage: watch::Sender::new(Stage::Beginning),
            usage: Mutex::new(Usage {
                watchers: 0,
                at: Instant::now(),
            }),
            source: Mutex::default(),
            metrics,
        }
    }

    /// One without a source, complete at a revision.
    #[cfg(test)]
    pub(crate) fn detached(gvr: Gvr, revision: u64) -> Arc<Self> {
        let metrics = Metrics::default().feed(&gvr);
        let feed = Self::new(gvr, Window::new(1 << 20), metrics);
        feed.begin(revision);
        Arc::new(feed)
    }

    fn touch(&self) {
        lock(&self.usage).at = Instant::now();
    }

    fn is_unused(&self) -> bool {
        let usage = lock(&self.usage);
        usage.watchers == 0 && usage.at.elapsed() >= UNUSED
    }

    /// Resolves when nobody used it for long.
    async fn unused(&self) {
        while !self.is_unused() {
            tokio::time::sleep(UNUSED / 10).await;
        }
    }

    /// Up to which revision everything was told; 0 while nothing is known.
    fn known(&self) -> u64 {
        lock(&self.window).revision()
    }

    /// The state is known at a revision, and what comes after it will be told. 0: nothing is known any more. Who follows has to begin
    /// anew.
    fn begin(&self, revision: u64) {
        lock(&self.window).begin(revision);
        self.revision.send_replace(revision);
        self.set_stage(if revision == 0 {
            Stage::Beginning
        } else {
            Stage::Synced
        });
        self.ticks.send_modify(|tick| *tick += 1);
    }

    fn set_stage(&self, stage: Stage) {
        self.stage.send_if_modified(|now| {
            let changed = *now != stage;
            *now = stage;
            changed
        });
        self.metrics.synced(stage == Stage::Synced);
    }

    /// What could not be done changes nothing for who knows something already.
    fn failed(&self, refused: bool) {
        if self.known() == 0 {
            self.set_stage(if refused {
                Stage::Refused
            } else {
                Stage::Failing
            });
        }
    }

    fn tell(&self, events: impl IntoIterator<Item = Told>) {
        let revision = {
            let mut window = lock(&self.window);
            for told in events {
                window.push(told);
            }
            window.revision()
        };
        self.revision.send_replace(revision);
        self.ticks.send_modify(|tick| *tick += 1);
    }

    fn advance(&self, revision: u64) {
        lock(&self.window).advance(revision);
        self.revision
            .send_modify(|known| *known = revision.max(*known));
    }

    /// Waits a bounded time until the state is known; how far the feed is then.
    pub(crate) async fn ready(&self, most: Duration) -> Stage {
        let mut stage = self.stage.subscribe();
        let settled = |stage: &Stage| matches!(stage, Stage::Synced | Stage::Refused);
        let work = async {
            let _ = tokio::time::timeout(FAILING, stage.wait_for(settled)).await;
            // One that fails now may have done so for long.
            let _ = stage.wait_for(|stage| *stage != Stage::Beginning).await;
        };
        let _ = tokio::time::timeout(most.min(BEGINNING), work).await;
        *self.stage.borrow()
    }

    /// Waits a bounded time until everything up to a revision is known; otherwise up to which it is.
    pub(crate) async fn reached(&self, revision: u64, most: Duration) -> Result<(), u64> {
        let mut known = self.revision.subscribe();
        let reached = known.wait_for(|known| *known >= revision);
        if let Ok(Ok(_)) = tokio::time::timeout(most, reached).await {
            return Ok(());
        }
        Err(self.known())
    }

    /// Follows the feed from a revision; the oldest revision possible when that is none.
    pub(crate) fn subscribe(self: &Arc<Self>, after: u64) -> Result<Subscription, u64> {
        let ticks = self.ticks.subscribe();
        let cursor = {
            let window = lock(&self.window);
            window.after(after).ok_or_else(|| window.floor())?
        };
        let watchers = {
            let mut usage = lock(&self.usage);
            usage.watchers += 1;
            usage.watchers
        };
        self.metrics.watchers(watchers);
        Ok(Subscription {
            feed: self.clone(),
            cursor,
            ticks,
        })
    }

    fn overview(&self) -> FeedOverview {
        let gvr = &self.query.gvr;
        let group = match gvr.group.as_str() {
            "" => String::new(),
            group => format!(".{group}"),
        };
        let window = lock(&self.window);
        let (bytes, events) = window.size();
        FeedOverview {
            resource: format!("{}{group}/{}", gvr.resource, gvr.version),
            stage: *self.stage.borrow(),
            source: lock(&self.source).clone(),
            revision: window.revision(),
            oldest: window.floor(),
            events,
            bytes,
            watchers: lock(&self.usage).watchers,
            resumes: self.metrics.resumes(),
            lists: self.metrics.lists(),
        }
    }
}

/// Somebody's place in a feed.
#[derive(Debug)]
pub(crate) struct Subscription {
    feed: Arc<Feed>,
    cursor: Cursor,
    ticks: watch::Receiver<u64>,
}

impl Subscription {
    /// The next event; `None` when it is not held any more. Nothing is lost when the future is dropped.
    pub(crate) async fn next(&mut self) -> Option<Arc<Told>> {
        loop {
            self.ticks.mark_unchanged();
            let next = lock(&self.feed.window).next(&mut self.cursor);
            match next {
                Next::Told(told) => return Some(told),
                Next::Gone => return None,
                Next::End if self.ticks.changed().await.is_err() => return None,
                Next::End => {}
            }
        }
    }

    /// Up to which revision everything was told; `None` while there is something to tell.
    pub(crate) fn settled(&self) -> Option<u64> {
        let window = lock(&self.feed.window);
        (window.next(&mut self.cursor.clone()) == Next::End).then(|| window.revision())
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let watchers = {
            let mut usage = lock(&self.feed.usage);
            usage.watchers -= 1;
            usage.at = Instant::now();
            usage.watchers
        };
        self.feed.metrics.watchers(watchers);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn watchers_are_told_as_it_happens() {
        let feed = Feed::detached(Gvr::new("", "v1", "services"), 10);
        assert_eq!(feed.ready(Duration::ZERO).await, Stage::Synced);
        let (mut early, mut ahead) = (feed.subscribe(10).unwrap(), feed.subscribe(11).unwrap());
        assert_eq!(early.settled(), Some(10));
        feed.tell([Told::sample(11), Told::sample(12)]);
        assert_eq!(early.settled(), None);
        assert_eq!(early.next().await.unwrap().revision, 11);
        assert_eq!(early.next().await.unwrap().revision, 12);
        assert_eq!(ahead.next().await.unwrap().revision, 12);
        let waiting = tokio::spawn(async move { ahead.next().await.map(|told| told.revision) });
        tokio::task::yield_now().await;
        feed.tell([Told::sample(13)]);
        assert_eq!(waiting.await.unwrap(), Some(13));
        // Something else is true: whoever follows has to begin anew.
        feed.begin(5);
        assert!(early.next().await.is_none());
        assert_eq!(feed.subscribe(4).unwrap_err(), 5);
    }

    #[tokio::test(start_paused = true)]
    async fn waiting_is_bounded() {
        let feed = Feed::detached(Gvr::new("", "v1", "services"), 10);
        assert_eq!(feed.reached(10, Duration::ZERO).await, Ok(()));
        assert_eq!(feed.reached(11, Duration::from_secs(3)).await, Err(10));
        let (reached, ()) = tokio::join!(feed.reached(12, Duration::from_secs(3)), async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            feed.advance(12);
        });
        assert_eq!(reached, Ok(()));
        feed.begin(0);
        let begun = Instant::now();
        assert_eq!(feed.ready(Duration::MAX).await, Stage::Beginning);
        assert_eq!(begun.elapsed(), BEGINNING);
        feed.failed(false);
        let begun = Instant::now();
        assert_eq!(feed.ready(Duration::MAX).await, Stage::Failing);
        assert_eq!(begun.elapsed(), FAILING);
        feed.failed(true);
        assert_eq!(feed.ready(Duration::MAX).await, Stage::Refused);
    }

    #[tokio::test(start_paused = true)]
    async fn what_nobody_uses_ends() {
        let feed = Feed::detached(Gvr::new("", "v1", "services"), 10);
        let subscription = feed.subscribe(10).unwrap();
        tokio::time::sleep(2 * UNUSED).await;
        assert!(!feed.is_unused());
        drop(subscription);
        assert!(!feed.is_unused());
        tokio::time::timeout(2 * UNUSED, feed.unused())
            .await
            .unwrap();
    }
}
