//! The objects behind views. A Table (what `kubectl get` reads) or partial metadata cannot be cached; so when somebody reads one,
//! the hub reads the objects themselves beside it - same path and selectors, same credentials, in the background - and keeps
//! them fresh while somebody watches.

use crate::{
    cache::Cache,
    caller::Caller,
    config::Bounds,
    events::{Broken, Events, advance},
    metrics::{Metrics, Unlearned},
    query::Query,
    route::Mode,
    tee::teach_page,
    upstream::{Outgoing, OutgoingBody, Upstreams},
};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};
use tokio::sync::{Semaphore, watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use yurt_transport::ResponseBody;
use yurt_wire::{Encoding, Object, RequestInfo, Verb, list, request::encode_query_value};

/// A scope read less than this ago is not read again.
const FRESH: Duration = Duration::from_secs(30);
/// Scopes remembered.
const MOST_SCOPES: usize = 256;
/// Reads under way at one time.
const MOST_READS: usize = 4;
/// Objects in a page.
const PAGE: usize = 500;
/// Pages of one list.
const MOST_PAGES: usize = 400;
/// How long one answer may take.
const WAIT: Duration = Duration::from_secs(30);
const ACCEPT: &str = "application/vnd.kubernetes.protobuf,application/json";
/// Between attempts after a failure.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Keeps the objects behind views. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Backing {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    upstreams: Arc<Upstreams>,
    cache: Cache,
    metrics: Metrics,
    bounds: Bounds,
    modes: watch::Receiver<Mode>,
    scopes: Mutex<HashMap<(Caller, String), Arc<Scope>>>,
    reads: Semaphore,
    tasks: TaskTracker,
    shutdown: CancellationToken,
}

/// One view's objects: a query of one caller.
#[derive(Debug)]
struct Scope {
    /// Path and selectors.
    target: String,
    caller: Caller,
    headers: Mutex<HeaderMap>,
    kind: Kind,
    fetched: tokio::sync::Mutex<Fetched>,
    watchers: Mutex<Watchers>,
}

#[derive(Clone, Debug)]
enum Kind {
    Named(RequestInfo),
    List(Query),
}

#[derive(Debug, Default)]
struct Fetched {
    at: Option<Instant>,
    /// Revision of the last complete list, or of the last event since.
    revision: String,
}

#[derive(Debug, Default)]
struct Watchers {
    count: usize,
    stop: CancellationToken,
}

/// Keeps a scope fresh while it lives.
#[derive(Debug)]
pub struct Fresh(Arc<Scope>);

impl Drop for Fresh {
    fn drop(&mut self) {
        let mut watchers = self
            .0
            .watchers
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        watchers.count -= 1;
        if watchers.count == 0 {
            watchers.stop.cancel();
        }
    }
}

/// Why a scope could not be read.
enum Failure {
    /// Not now: no link, an overloaded server.
    Later,
    /// Not at all: forbidden, not found, too large, malformed.
    Refused,
    /// The revision is too old to go on from.
    Expired,
}

impl Backing {
    /// With nothing read yet.
    pub fn new(
        upstreams: Arc<Upstreams>,
        cache: Cache,
        metrics: Metrics,
        bounds: Bounds,
        modes: watch::Receiver<Mode>,
        tasks: TaskTracker,
        shutdown: CancellationToken,
    ) -> Self {
        Self {
            inner: Arc::new(Inner {
                upstreams,
                cache,
                metrics,
                bounds,
                modes,
                scopes: Mutex::default(),
                reads: Semaphore::new(MOST_READS),
                tasks,
                shutdown,
            }),
        }
    }

    /// A view was read: reads the objects behind it, unless they are fresh.
    pub fn read(&self, caller: &Caller, info: &RequestInfo, headers: &HeaderMap) {
        let Some(scope) = self.scope(caller, info, headers) else {
            return;
        };
        let inner = self.inner.clone();
        self.inner.tasks.spawn(async move {
            let work = inner.refresh(&scope);
            tokio::select! {
                _ = work => {}
                () = inner.shutdown.cancelled() => {}
            }
        });
    }

    /// A view is watched: its objects are kept fresh until the guard is dropped.
    pub fn watch(&self, caller: &Caller, info: &RequestInfo, headers: &HeaderMap) -> Option<Fresh> {
        let scope = self.scope(caller, info, headers)?;
        let stop = {
            let mut watchers = scope
                .watchers
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            watchers.count += 1;
            (watchers.count == 1).then(|| {
                watchers.stop = CancellationToken::new();
                watchers.stop.clone()
            })
        };
        if let Some(stop) = stop {
            let (inner, scope) = (self.inner.clone(), scope.clone());
            self.inner.tasks.spawn(async move {
                tokio::select! {
                    () = inner.keep_fresh(&scope) => {}
                    () = stop.cancelled() => {}
                    () = inner.shutdown.cancelled() => {}
                }
            });
        }
        Some(Fresh(scope))
    }

    fn scope(
        &self,
        caller: &Caller,
        info: &RequestInfo,
        headers: &HeaderMap,
    ) -> Option<Arc<Scope>> {
        let options = info.list_options().ok()?;
        let mut target = info.path.clone();
        let kind = if info.verb == Verb::Get {
            Kind::Named(info.clone())
        } else {
            let query = Query::of_request(info, &options);
            for (name, selector) in [
                ("labelSelector", query.labels.to_string()),
                ("fieldSelector", query.fields.to_string()),
            ] {
                if !selector.is_empty() {
                    target.push(if target.contains('?') { '&' } else { '?' });
                    target.push_str(&format!("{name}={}", encode_query_value(&selector)));
                }
            }
            Kind::List(query)
        };
        let headers = own_headers(headers);
        let mut scopes = self
            .inner
            .scopes
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(scope) = scopes.get(&(caller.clone(), target.clone())) {
            // The same caller, perhaps with a fresher form of its credentials.
            *scope.headers.lock().unwrap_or_else(PoisonError::into_inner) = headers;
            return Some(scope.clone());
        }
        if scopes.len() >= MOST_SCOPES {
            // Scopes in use are held by their tasks and guards as well.
            scopes.retain(|_, scope| Arc::strong_count(scope) > 1);
            if scopes.len() >= MOST_SCOPES {
                return None;
            }
        }
        let scope = Arc::new(Scope {
            target: target.clone(),
            caller: caller.clone(),
            headers: Mutex::new(headers),
            kind,
            fetched: tokio::sync::Mutex::default(),
            watchers: Mutex::default(),
        });
        scopes.insert((caller.clone(), target), scope.clone());
        Some(scope)
    }
}

/// What the hub's own requests need of the caller's headers: its credentials and its name.
fn own_headers(headers: &HeaderMap) -> HeaderMap {
    let mut own = HeaderMap::new();
    for name in [header::AUTHORIZATION, header::USER_AGENT] {
        if let Some(value) = headers.get(&name) {
            own.insert(name, value.clone());
        }
    }
    own.insert(header::ACCEPT, HeaderValue::from_static(ACCEPT));
    own.insert(
        HeaderName::from_static("accept-encoding"),
        HeaderValue::from_static("identity"),
    );
    own
}

impl Inner {
    async fn refresh(&self, scope: &Scope) -> Result<(), Failure> {
        // Locked: somebody reads or watches it already.
        let Ok(mut fetched) = scope.fetched.try_lock() else {
            return Ok(());
        };
        if fetched.at.is_some_and(|at| at.elapsed() < FRESH) {
            return Ok(());
        }
        self.fetch(scope, &mut fetched).await
    }

    async fn fetch(&self, scope: &Scope, fetched: &mut Fetched) -> Result<(), Failure> {
        let Ok(_permit) = self.reads.acquire().await else {
            return Err(Failure::Later);
        };
        let result = match &scope.kind {
            Kind::Named(info) => self.fetch_named(scope, info).await.map(|()| String::new()),
            Kind::List(query) => self.fetch_list(scope, query).await,
        };
        if let Ok(revision) = &result {
            fetched.revision.clone_from(revision);
        }
        if !matches!(result, Err(Failure::Later)) {
            fetched.at = Some(Instant::now());
        }
        result.map(|_| ())
    }

    async fn fetch_named(&self, scope: &Scope, info: &RequestInfo) -> Result<(), Failure> {
        let gvr = info.gvr();
        let asked = self.cache.asked(&gvr);
        match self.get(scope, &scope.target).await {
            Ok((encoding, bytes)) => {
                let object = Object { encoding, bytes };
                self.cache.learn_object(&scope.caller, &gvr, &object, asked);
                Ok(())
            }
            Err(failure) => Err(failure),
        }
    }

    async fn fetch_list(&self, scope: &Scope, query: &Query) -> Result<String, Failure> {
        let mut learner = self.cache.list_learner(&scope.caller, query);
        let mut next = String::new();
        for _ in 0..MOST_PAGES {
            let joint = if scope.target.contains('?') { '&' } else { '?' };
            let mut target = format!("{}{joint}limit={PAGE}", scope.target);
            if !next.is_empty() {
                target.push_str("&continue=");
                target.push_str(&encode_query_value(&next));
            }
            let (encoding, bytes) = self.get(scope, &target).await?;
            let page = tokio::task::spawn_blocking(move || list::split(&bytes, encoding))
                .await
                .map_err(|_| Failure::Later)?
                .map_err(|error| {
                    tracing::warn!(target = %scope.target, %error, "list not understood");
                    self.metrics.unlearned(Unlearned::Undecodable);
                    Failure::Refused
                })?;
            let revision = page.resource_version.clone();
            next.clone_from(&page.continue_token);
            teach_page(&self.cache, &mut learner, page).await;
            if next.is_empty() {
                learner.finish();
                return Ok(revision);
            }
        }
        Err(Failure::Refused)
    }

    async fn get(&self, scope: &Scope, target: &str) -> Result<(Encoding, Bytes), Failure> {
        let response = self.ask(scope, target).await?;
        let encoding = content_encoding(response.headers()).ok_or(Failure::Refused)?;
        let body = response.into_body();
        let collected = tokio::time::timeout(
            WAIT,
            yurt_transport::collect(body, self.bounds.learned_body),
        )
        .await;
        match collected {
            Ok(Ok(bytes)) => Ok((encoding, bytes)),
            Ok(Err(yurt_transport::CollectError::TooLarge(_))) => {
                self.metrics.unlearned(Unlearned::TooLarge);
                Err(Failure::Refused)
            }
            Ok(Err(_)) | Err(_) => Err(Failure::Later),
        }
    }

    async fn ask(
        &self,
        scope: &Scope,
        target: &str,
    ) -> Result<http::Response<ResponseBody>, Failure> {
        let request = Outgoing {
            method: Method::GET,
            uri: target.parse::<Uri>().map_err(|_| Failure::Refused)?,
            headers: scope
                .headers
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .clone(),
            body: OutgoingBody::Held(Bytes::new()),
            wait: WAIT,
            safe: true,
        };
        let (response, _) = self
            .upstreams
            .send(&scope.caller, request)
            .await
            .map_err(|_| Failure::Later)?;
        match response.status() {
            StatusCode::OK => Ok(response),
            StatusCode::GONE => Err(Failure::Expired),
            StatusCode::TOO_MANY_REQUESTS => Err(Failure::Later),
            status if status.is_server_error() => Err(Failure::Later),
            status => {
                tracing::debug!(target, %status, "the objects behind a view cannot be read");
                Err(Failure::Refused)
            }
        }
    }

    /// Lists once, then follows the changes.
    async fn keep_fresh(&self, scope: &Scope) {
        let Kind::List(query) = &scope.kind else {
            return;
        };
        let mut pause = FIRST_PAUSE;
        let mut modes = self.modes.clone();
        loop {
            if modes.wait_for(|mode| *mode == Mode::Online).await.is_err() {
                return;
            }
            let followed = async {
                let mut fetched = scope.fetched.lock().await;
                let fresh = fetched.at.is_some_and(|at| at.elapsed() < FRESH);
                if fetched.revision.is_empty() || !fresh {
                    self.fetch(scope, &mut fetched).await?;
                }
                loop {
                    self.follow(scope, query, &mut fetched).await?;
                    pause = FIRST_PAUSE;
                }
            };
            let failed: Result<std::convert::Infallible, Failure> = followed.await;
            match failed {
                Ok(never) => match never {},
                Err(Failure::Refused) => return,
                Err(Failure::Expired) => scope.fetched.lock().await.revision.clear(),
                Err(Failure::Later) => {}
            }
            tokio::time::sleep(pause.mul_f64(0.5 + fastrand::f64())).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// One watch, until it ends. `Ok` when it ended cleanly.
    async fn follow(
        &self,
        scope: &Scope,
        query: &Query,
        fetched: &mut Fetched,
    ) -> Result<(), Failure> {
        let joint = if scope.target.contains('?') { '&' } else { '?' };
        let target = format!(
            "{}{joint}watch=true&allowWatchBookmarks=true&timeoutSeconds={}&resourceVersion={}",
            scope.target,
            300 + fastrand::u64(..300),
            encode_query_value(&fetched.revision),
        );
        let response = self.ask(scope, &target).await?;
        let encoding = content_encoding(response.headers()).ok_or(Failure::Refused)?;
        let mut learner = self
            .cache
            .watch_learner(&scope.caller, query, &fetched.revision, false);
        let mut events = Events::new(response.into_body(), encoding, self.bounds.watch_frame);
        let (mut count, began) = (0u64, Instant::now());
        loop {
            match events.next().await {
                Ok(Some(event)) => {
                    count += 1;
                    learner.event(&event);
                    if advance(&mut fetched.revision, &event) {
                        fetched.at = Some(Instant::now());
                    }
                }
                Ok(None) => break,
                Err(Broken::Connection) => return Err(Failure::Later),
                Err(Broken::Garbage) => {
                    self.metrics.unlearned(Unlearned::Undecodable);
                    return Err(Failure::Expired);
                }
                Err(Broken::Told) => return Err(Failure::Expired),
            }
        }
        // A server that ends watches at once must not be asked in a tight loop.
        if count == 0 && began.elapsed() < FIRST_PAUSE {
            return Err(Failure::Later);
        }
        Ok(())
    }
}

fn content_encoding(headers: &HeaderMap) -> Option<Encoding> {
    if headers.contains_key(header::CONTENT_ENCODING) {
        return None;
    }
    Encoding::from_content_type(headers.get(header::CONTENT_TYPE)?.to_str().ok()?)
}
