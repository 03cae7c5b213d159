//! Filtered watches: the frames of a stream, each as its client is to see it, and, when filters turn out to decide otherwise than before,
//! the objects that show otherwise now, out of the cache.

use super::{
    Chain, Force,
    screen::{Before, Screen},
};
use crate::{
    cache::{Sight, agents},
    caller::Caller,
    identity::Identity,
    proxy::Hub,
    query::Query,
    route::{self, Mode},
};
use bytes::Bytes;
use http::{header, request::Parts};
use http_body::Frame;
use std::{
    collections::VecDeque,
    hash::{DefaultHasher, Hash, Hasher},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::{
    sync::watch,
    time::{Instant, Sleep},
};
use yurt_transport::{Body, BoxError};
use yurt_wire::{
    Encoding, Object, RequestInfo, Status,
    watch::{EventType, FrameDecoder, encode},
};

/// Objects that are looked at without letting others have their turn.
const AT_ONCE: usize = 32;
/// How often, and how many times, it is asked whether the cache has caught up with the stream.
const CATCH_UP: Duration = Duration::from_millis(250);
const CATCH_UP_TRIES: u32 = 40;
/// Between such questions without the cloud.
const OFFLINE_PAUSE: Duration = Duration::from_secs(2);
/// What was sent so long ago has come, or the client was cut.
const ARRIVAL: Duration = Duration::from_secs(60);

/// The client of a watch, and what it asked for.
#[derive(Debug)]
pub(crate) struct Watcher {
    hub: Arc<Hub>,
    caller: Caller,
    agent: String,
    info: RequestInfo,
    audience: u64,
    /// What the cache learns from this very stream: then it is never behind it.
    query: Option<Query>,
    /// The revision whose events the client has; 0 when it is yet to be told everything.
    since: u64,
}

impl Watcher {
    /// Of a list or watch request.
    pub(crate) fn new(
        hub: &Arc<Hub>,
        identity: &Identity,
        parts: &Parts,
        info: &RequestInfo,
    ) -> Self {
        let agent = parts.headers.get(header::USER_AGENT);
        let agent = agent
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default();
        let caller = &identity.caller;
        let mut hasher = DefaultHasher::new();
        (caller, agent, &info.path).hash(&mut hasher);
        for name in ["labelSelector", "fieldSelector"] {
            info.query_value(name).hash(&mut hasher);
        }
        let options = info.list_options().unwrap_or_default();
        let learned = hub.autonomous
            && route::is_cacheable(info, identity.impersonates)
            && agents::is_cached(&hub.settings.borrow().cache_agents, agent);
        let told = options.send_initial_events != Some(true);
        Self {
            hub: hub.clone(),
            caller: caller.clone(),
            agent: agent.to_owned(),
            query: learned.then(|| Query::of_request(info, &options)),
            info: info.clone(),
            audience: hasher.finish(),
            since: told
                .then(|| options.resource_version.parse().ok())
                .flatten()
                .unwrap_or(0),
        }
    }

    /// Who is told, for [`super::Filters::told`]: the client and what it looks at.
    pub(crate) fn audience(&self) -> u64 {
        self.audience
    }

    fn chain(&self, force: &Arc<Force>) -> Option<Chain> {
        let chain = force.chain(&self.agent, &self.info)?;
        self.hub.filters.want(chain.inputs());
        Some(chain)
    }
}

type Changed = Pin<Box<dyn Future<Output = Option<watch::Receiver<Arc<Force>>>> + Send>>;

/// Resolves when other filters come into force, or others' inputs; `None` when none will any more.
fn changed(mut force: watch::Receiver<Arc<Force>>) -> Changed {
    Box::pin(async move { force.changed().await.is_ok().then_some(force) })
}

/// Objects that are looked at anew.
enum Retelling {
    /// When the cache is not behind what the stream told.
    Waiting { tries: u32, pause: Pin<Box<Sleep>> },
    /// One after the other.
    Keys(VecDeque<Box<str>>),
}

/// The body of a filtered watch.
pub(crate) struct FilteredWatch {
    watcher: Box<Watcher>,
    body: Body,
    decoder: FrameDecoder,
    encoding: Encoding,
    screen: Screen,
    changed: Changed,
    before: Before,
    retelling: Option<Retelling>,
    /// When the last object was told anew.
    retold: Option<Instant>,
    force: Arc<Force>,
    out: VecDeque<Bytes>,
    over: bool,
}

impl FilteredWatch {
    /// Filters a stream.
    pub(crate) fn new(watcher: Box<Watcher>, chain: Chain, encoding: Encoding, body: Body) -> Self {
        let filters = &watcher.hub.filters;
        let mut force = filters.force();
        // What came into force between the choice of the chain and now is a change.
        if Arc::ptr_eq(&force.borrow_and_update(), chain.force()) {
            force.mark_unchanged();
        } else {
            force.mark_changed();
        }
        let before = match filters.take_told(watcher.audience) {
            Some(force) => Before::Chain(force.chain(&watcher.agent, &watcher.info)),
            None => Before::Unknown,
        };
        let differs = match &before {
            Before::Chain(Some(before)) => !before.is_like(&chain),
            Before::Chain(None) | Before::Unknown => true,
        };
        let metrics = watcher.hub.metrics.clone();
        let mut watch = Self {
            decoder: FrameDecoder::new(encoding, watcher.hub.bounds.watch_frame),
            force: chain.force().clone(),
            retold: None,
            screen: Screen::new(chain, encoding, watcher.since, metrics),
            body,
            encoding,
            changed: changed(force),
            before,
            retelling: None,
            out: VecDeque::new(),
            over: false,
            watcher,
        };
        if differs && watch.watcher.since > 0 {
            watch.retelling = Some(waiting(0, Duration::ZERO));
        }
        watch
    }

    /// Others are in force.
    fn turn(&mut self, force: &Arc<Force>) {
        let chain = self.watcher.chain(force);
        let same = match (self.screen.chain(), &chain) {
            (Some(is), Some(will)) => is.is_like(will),
            (None, None) => true,
            _ => false,
        };
        self.force = force.clone();
        let before = self.screen.set_chain(chain);
        if same {
            return;
        }
        // What was not looked at yet is as it was before that.
        if self.retelling.is_none() {
            self.before = Before::Chain(before);
        }
        self.retelling = Some(waiting(0, Duration::ZERO));
    }

    /// Brings on what is to be told anew; whether there may be something to send, or more to do at once.
    fn retell(&mut self, context: &mut Context<'_>) -> bool {
        match &mut self.retelling {
            None => false,
            Some(Retelling::Waiting { tries, pause }) => {
                if pause.as_mut().poll(context).is_pending() {
                    return false;
                }
                let tries = *tries;
                let offline = self.watcher.hub.mode() == Mode::Offline;
                self.retelling = match self.candidates() {
                    Some(keys) => Some(Retelling::Keys(keys)),
                    None if self.watcher.query.is_none() || tries >= CATCH_UP_TRIES => {
                        self.start_over();
                        None
                    }
                    // Nobody knows more for now.
                    None if offline => Some(waiting(tries, OFFLINE_PAUSE)),
                    None => Some(waiting(tries + 1, CATCH_UP)),
                };
                true
            }
            Some(Retelling::Keys(keys)) => {
                let some: Vec<_> = keys.drain(..keys.len().min(AT_ONCE)).collect();
                self.retold = Some(Instant::now());
                if some.is_empty() {
                    self.retelling = None;
                }
                let (cache, query) = (&self.watcher.hub.cache, &self.watcher.query);
                for (key, query) in some.iter().zip(std::iter::repeat(query)) {
                    let object = query
                        .as_ref()
                        .and_then(|query| cache.read_selected(query, key, Sight::Node));
                    if let Some(object) = object {
                        self.out.extend(self.screen.retell(&self.before, &object));
                    }
                }
                true
            }
        }
    }

    /// What may show otherwise; `None` while the cache is behind the stream.
    fn candidates(&self) -> Option<VecDeque<Box<str>>> {
        let Watcher {
            hub, caller, query, ..
        } = &*self.watcher;
        let selection = hub.cache.select(caller, query.as_ref()?).ok()?;
        // Otherwise the client may have newer objects than these, and would keep what it is told for good.
        let caught_up = selection.revision >= self.screen.position();
        caught_up.then(|| selection.keys.into())
    }

    /// What would have to be told anew is not known here: the client lists again.
    fn start_over(&mut self) {
        if matches!(self.before, Before::Unknown) {
            return;
        }
        self.retold = Some(Instant::now());
        let status = Status::expired("filters of this node decide otherwise now; list again");
        let object = Object {
            encoding: self.encoding,
            bytes: status.to_bytes(self.encoding),
        };
        self.out
            .push_back(encode(EventType::Error, &object, self.encoding));
        self.over = true;
    }
}

fn waiting(tries: u32, pause: Duration) -> Retelling {
    Retelling::Waiting {
        tries,
        pause: Box::pin(tokio::time::sleep(pause)),
    }
}

impl http_body::Body for FilteredWatch {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = &mut *self;
        let mut rounds = 0;
        loop {
            if let Some(bytes) = this.out.pop_front() {
                return Poll::Ready(Some(Ok(Frame::data(bytes))));
            }
            if this.over {
                return Poll::Ready(None);
            }
            rounds += 1;
            if rounds > AT_ONCE {
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
            // Objects are looked at with the chain of the moment when that began.
            let settled = !matches!(this.retelling, Some(Retelling::Keys(_)));
            if settled && let Poll::Ready(others) = this.changed.as_mut().poll(context) {
                this.changed = match others {
                    Some(mut force) => {
                        let now = force.borrow_and_update().clone();
                        this.turn(&now);
                        changed(force)
                    }
                    None => Box::pin(std::future::pending()),
                };
                continue;
            }
            if this.retell(context) {
                // Reading them takes a while: others have their turn.
                rounds += AT_ONCE / 4;
                continue;
            }
            match this.decoder.next_frame() {
                Ok(Some(frame)) => {
                    this.out.extend(this.screen.event(frame));
                    continue;
                }
                Ok(None) => {}
                Err(error) => {
                    this.over = true;
                    this.watcher.hub.metrics.filters().refused("undecodable");
                    return Poll::Ready(Some(Err(error.into())));
                }
            }
            match ready!(Pin::new(&mut this.body).poll_frame(context)) {
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        this.decoder.push(data);
                    }
                }
                Some(Err(error)) => {
                    this.over = true;
                    return Poll::Ready(Some(Err(error)));
                }
                None => {
                    this.over = true;
                    if let Some(frame) = this.decoder.finish() {
                        this.out.extend(this.screen.event(frame));
                    }
                }
            }
        }
    }
}

impl Drop for FilteredWatch {
    fn drop(&mut self) {
        // What is still on its way may be lost with the connection, and the revision that the client goes on from does not tell: then it
        // is told again.
        let arrived = self.retold.is_none_or(|at| at.elapsed() > ARRIVAL);
        if self.retelling.is_none() && arrived {
            let watcher = &self.watcher;
            watcher.hub.filters.told(watcher.audience, &self.force);
        }
    }
}

/// Ends a watch that nothing filters when something is to.
pub(crate) struct Awakening {
    watcher: Box<Watcher>,
    began: Arc<Force>,
    changed: Changed,
}

impl Awakening {
    /// Of a watch that is about to begin.
    pub(crate) fn new(watcher: Box<Watcher>) -> Self {
        let mut force = watcher.hub.filters.force();
        let began = force.borrow_and_update().clone();
        Self {
            watcher,
            began,
            changed: changed(force),
        }
    }

    /// The body of the watch.
    pub(crate) fn guard(self, body: Body) -> Unfiltered {
        Unfiltered {
            awakening: self,
            body,
        }
    }
}

/// The body of a watch that nothing filters so far.
pub(crate) struct Unfiltered {
    awakening: Awakening,
    body: Body,
}

impl http_body::Body for Unfiltered {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let Awakening {
            watcher,
            began,
            changed: others,
        } = &mut self.awakening;
        while let Poll::Ready(now) = others.as_mut().poll(context) {
            let Some(mut force) = now else {
                *others = Box::pin(std::future::pending());
                continue;
            };
            let now = force.borrow_and_update().clone();
            if watcher.chain(&now).is_some() {
                watcher.hub.filters.told(watcher.audience, began);
                return Poll::Ready(None);
            }
            *others = changed(force);
        }
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }
}
