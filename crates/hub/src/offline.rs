//! Answers without the cloud: reads from the cache, watches of what changes on the node, and the few writes that can be kept for
//! later. Which, and with what outcome, is documented in `docs/offline.md`.

mod discovery;
mod documents;
mod lists;
mod page;
pub(crate) mod represent;
mod review;
mod token;
mod watch;
mod write;

use crate::{
    autonomy::heartbeat::NODE_LEASES,
    cache::{Cache, Lookup, Uncovered},
    caller::Caller,
    identity,
    journal::Journal,
    query::Query,
    tokens::{Tokens, Verdict, question::Question},
};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header, request::Parts};
use lists::Lists;
use represent::{Wanted, malformed, refuse};
use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};
use yurt_transport::{Body, channel};
use yurt_wire::{Gvk, Object, Reason, RequestInfo, Status, Verb};

pub use watch::{LocalFrame, LocalWatch};

/// Seconds since the epoch.
pub(crate) fn now() -> i64 {
    jiff::Timestamp::now().as_second()
}

/// See the module. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Offline {
    cache: Cache,
    journal: Journal,
    node_name: Arc<str>,
    /// Seconds since the epoch; 0 when not told.
    away_since: Arc<AtomicI64>,
    lists: Lists,
    tokens: Tokens,
}

/// Bytes of lists that wait for their clients, unless told otherwise.
const LISTS: usize = 32 << 20;
/// Frames that a client may be behind before its watch waits for it.
const WATCH_BUFFER: usize = 16;

impl Offline {
    /// What answers for a node.
    pub fn new(cache: Cache, journal: Journal, node_name: &str) -> Self {
        Self {
            tokens: Tokens::blank(&cache, node_name),
            cache,
            journal,
            node_name: node_name.into(),
            away_since: Arc::default(),
            lists: Lists::new(LISTS, Arc::default()),
        }
    }

    /// Bounds the bytes of lists that wait for their clients at one time; `cut` counts the clients that took nothing and lost
    /// theirs to others.
    #[must_use]
    pub fn with_list_budget(self, bytes: usize, cut: Arc<AtomicU64>) -> Self {
        Self {
            lists: Lists::new(bytes, cut),
            ..self
        }
    }

    /// Verifies, and gives, these tokens; without, none are given but what the cloud gave before.
    #[must_use]
    pub fn with_tokens(self, tokens: Tokens) -> Self {
        Self { tokens, ..self }
    }

    /// Since when the cloud is away (`None`: it is there); humans are told.
    pub fn set_away_since(&self, since: Option<SystemTime>) {
        let seconds = since
            .and_then(|at| at.duration_since(UNIX_EPOCH).ok())
            .map_or(0, |at| i64::try_from(at.as_secs()).unwrap_or(0));
        self.away_since.store(seconds, Ordering::Relaxed);
    }

    /// Whether a write is one that is kept while the cloud is away and brought to it later.
    pub fn keeps(&self, caller: &Caller, info: &RequestInfo) -> bool {
        matches!(
            info.verb,
            Verb::Create | Verb::Update | Verb::Patch | Verb::Delete
        ) && write::keeps(caller, &self.node_name, info)
    }

    /// Answers a request.
    pub async fn answer(
        &self,
        caller: &Caller,
        info: &RequestInfo,
        parts: &Parts,
        body: Bytes,
    ) -> Response<Body> {
        let result = match self.check_caller(caller, &parts.headers) {
            Ok(()) => self.route(caller, info, parts, body).await,
            Err(status) => Err(status),
        };
        match result {
            Ok(mut response) => {
                self.warn_humans(parts, &mut response);
                response
            }
            Err(status) => refuse(&status, Wanted::error_encoding(&parts.headers)),
        }
    }

    /// Opens a watch.
    pub fn watch(
        &self,
        caller: &Caller,
        info: &RequestInfo,
        parts: &Parts,
    ) -> Result<LocalWatch, Box<Status>> {
        LocalWatch::open(self, caller, info, &parts.headers)
    }

    async fn route(
        &self,
        caller: &Caller,
        info: &RequestInfo,
        parts: &Parts,
        body: Bytes,
    ) -> Result<Response<Body>, Box<Status>> {
        if !info.is_resource {
            return if parts.method == http::Method::GET || parts.method == http::Method::HEAD {
                self.document(info, parts)
            } else {
                Err(self.refused(info, "is not accepted while the cloud is away"))
            };
        }
        if let Some(question) = Question::of(info) {
            return self.question(&question, caller, info, parts, &body).await;
        }
        match info.verb {
            Verb::Get if matches!(info.subresource.as_str(), "" | "status") => {
                self.get(caller, info, parts)
            }
            Verb::List if info.subresource.is_empty() => {
                self.list_in_background(caller, info, &parts.headers, false)
                    .await
            }
            Verb::Watch => self.stream(caller, info, parts),
            Verb::Create | Verb::Update | Verb::Patch | Verb::Delete => {
                self.write(caller, info, parts, body).await
            }
            Verb::Get | Verb::List => Err(self.refused(
                info,
                "cannot be answered from the cache while the cloud is away",
            )),
            Verb::DeleteCollection | Verb::Proxy | Verb::Connect | Verb::Other => {
                Err(self.refused(info, "is not accepted while the cloud is away"))
            }
        }
    }

    /// Answers a list while the cloud may well be there, out of what is shared within the pool: whole, whatever limit it names
    /// (as kube-apiserver does from its watch cache), because what is shared moves on between two pages.
    pub(crate) async fn shared_list(
        &self,
        caller: &Caller,
        info: &RequestInfo,
        headers: &HeaderMap,
    ) -> Result<Response<Body>, Box<Status>> {
        self.check_caller(caller, headers)?;
        self.list_in_background(caller, info, headers, true).await
    }

    async fn list_in_background(
        &self,
        caller: &Caller,
        info: &RequestInfo,
        headers: &HeaderMap,
        whole: bool,
    ) -> Result<Response<Body>, Box<Status>> {
        let (offline, caller, info) = (self.clone(), caller.clone(), info.clone());
        let headers = headers.clone();
        let begun = self.lists.begin().await?;
        // Many records are read: not on a thread that serves others. The client may go meanwhile, the work stays.
        let (list, _begun) = tokio::task::spawn_blocking(move || {
            (offline.list(&caller, &info, &headers, whole), begun)
        })
        .await
        .map_err(|error| Box::new(Status::internal_error(error)))?;
        self.lists.admit(list?).await
    }

    /// Answers a question about tokens or rights.
    async fn question(
        &self,
        question: &Question,
        caller: &Caller,
        info: &RequestInfo,
        parts: &Parts,
        body: &Bytes,
    ) -> Result<Response<Body>, Box<Status>> {
        let wanted = Wanted::of(&parts.headers, info)?;
        let answer = match question {
            Question::Token { .. } => self.give_token(caller, info, parts, body).await?,
            Question::Review => self.review_token(caller, info, parts, body)?,
            Question::Access => self.review_access(caller, info, parts, body)?,
            Question::OwnAccess => self.review_own_access(caller, parts, body)?,
            Question::Own => self.review_own(caller, parts, body)?,
        };
        let answer = Object::from_json_value(&answer, yurt_wire::Encoding::Json)
            .map_err(|error| malformed(&error))?;
        let gvk = gvk_of(&answer)?;
        wanted
            .single(StatusCode::CREATED, &answer, &gvk, now())
            .map_err(|error| malformed(&error))
    }

    /// A bearer whom nobody vouches for, and whom the cloud never accepted, is nobody. Nor is one whose token is known to be bad.
    fn check_caller(&self, caller: &Caller, headers: &HeaderMap) -> Result<(), Box<Status>> {
        if !caller.has_token() {
            return Ok(());
        }
        let verdict = identity::token(headers).map(|token| self.tokens.verify(&token, now()));
        let why = match verdict {
            Some(Verdict::Known(_)) => return Ok(()),
            Some(Verdict::Unknown(_)) | None if self.cache.knows(caller) => return Ok(()),
            Some(Verdict::Unknown(why) | Verdict::Refused(why)) => why.to_string(),
            None => "the request carries no token".to_owned(),
        };
        Err(Box::new(Status::new(
            Reason::Unauthorized,
            format!(
                "node {:?} is offline and cannot verify this token: {why}",
                self.node_name
            ),
        )))
    }

    fn get(
        &self,
        caller: &Caller,
        info: &RequestInfo,
        parts: &Parts,
    ) -> Result<Response<Body>, Box<Status>> {
        let wanted = Wanted::of(&parts.headers, info)?;
        let object = self.lookup(caller, info)?;
        let gvk = gvk_of(&object)?;
        wanted
            .single(StatusCode::OK, &object, &gvk, now())
            .map_err(|error| malformed(&error))
    }

    /// The object a request names.
    fn lookup(&self, caller: &Caller, info: &RequestInfo) -> Result<Object, Box<Status>> {
        let gvr = info.gvr();
        match self.cache.get(caller, &gvr, &info.namespace, &info.name) {
            Lookup::Found(object) => Ok(object),
            Lookup::KnownAbsent => Err(Box::new(Status::not_found(
                &info.group,
                &info.resource,
                &info.name,
            ))),
            Lookup::Forbidden => Err(Box::new(Status::forbidden(
                &info.group,
                &info.resource,
                &info.name,
                &self.never_read(),
            ))),
            // A kubelet creates its lease when there is none; nobody else does.
            Lookup::Unknown if self.is_heartbeat(caller, info) => Err(Box::new(Status::not_found(
                &info.group,
                &info.resource,
                &info.name,
            ))),
            Lookup::Unknown => {
                let place = if info.namespace.is_empty() || info.resource == "namespaces" {
                    String::new()
                } else {
                    format!(" in namespace {:?}", info.namespace)
                };
                let mut status = Status::service_unavailable(format!(
                    "node {:?} is offline, and {} {:?}{place} was never cached on it",
                    self.node_name,
                    qualified(&info.group, &info.resource),
                    info.name
                ));
                status.name.clone_from(&info.name);
                status.group.clone_from(&info.group);
                status.kind.clone_from(&info.resource);
                Err(Box::new(status))
            }
        }
    }

    /// Whether a request is about the lease by which the kubelet tells that the node lives. One that creates names it in its body
    /// only.
    pub fn is_heartbeat(&self, caller: &Caller, info: &RequestInfo) -> bool {
        let named = match info.verb {
            Verb::Get | Verb::Update | Verb::Patch => info.name == *self.node_name,
            Verb::Create => info.name.is_empty(),
            _ => false,
        };
        named
            && *caller == Caller::Node
            && info.is_resource
            && info.group == "coordination.k8s.io"
            && info.resource == "leases"
            && info.subresource.is_empty()
            && info.namespace == NODE_LEASES
            && !write::is_dry_run(info)
    }

    fn never_read(&self) -> String {
        format!(
            "node {:?} is offline, and this caller is not known to be allowed to read it",
            self.node_name
        )
    }

    fn list_miss(&self, query: &Query, uncovered: Uncovered) -> Box<Status> {
        let gvr = &query.gvr;
        if uncovered == Uncovered::Forbidden {
            return Box::new(Status::forbidden(
                &gvr.group,
                &gvr.resource,
                query.name().unwrap_or_default(),
                &self.never_read(),
            ));
        }
        let mut what = qualified(&gvr.group, &gvr.resource);
        if !query.namespace.is_empty() {
            what.push_str(&format!(" in namespace {:?}", query.namespace));
        }
        if !query.labels.is_empty() {
            what.push_str(&format!(" with labels {:?}", query.labels.to_string()));
        }
        if !query.fields.is_empty() {
            what.push_str(&format!(" with fields {:?}", query.fields.to_string()));
        }
        let mut status = Status::service_unavailable(format!(
            "node {:?} is offline, and the list of {what} was never cached completely on it",
            self.node_name
        ));
        status.group.clone_from(&gvr.group);
        status.kind.clone_from(&gvr.resource);
        Box::new(status)
    }

    fn list(
        &self,
        caller: &Caller,
        info: &RequestInfo,
        headers: &HeaderMap,
        whole: bool,
    ) -> Result<Response<Vec<Bytes>>, Box<Status>> {
        let options = info.list_options()?;
        let wanted = Wanted::of(headers, info)?;
        let query = Query::of_request(info, &options);
        let damage = self.cache.damage();
        let selection = self
            .cache
            .select(caller, &query)
            .map_err(|uncovered| self.list_miss(&query, uncovered))?;
        if options.resource_version_match == "Exact"
            && options.resource_version != selection.revision.to_string()
        {
            return Err(Box::new(Status::expired(format!(
                "The resourceVersion {:?} is not the one in the cache of node {:?} ({}).",
                options.resource_version, self.node_name, selection.revision
            ))));
        }
        let mut at = if options.continue_token.is_empty() {
            0
        } else {
            page::resume(
                &options.continue_token,
                &query.namespace,
                selection.revision,
                &selection.keys,
            )?
        };
        let limit = match usize::try_from(options.limit) {
            Ok(limit) if limit > 0 && !whole => limit,
            Ok(_) | Err(_) => usize::MAX,
        };
        let mut objects = Vec::new();
        let mut last = None;
        while at < selection.keys.len() && objects.len() < limit {
            let key = &selection.keys[at];
            if let Some(object) = self.cache.read_selected(&query, key, selection.sight) {
                objects.push(object);
                last = Some(key);
            }
            at += 1;
        }
        // Selectors make the rest uncertain: another page only when there is something to show on it.
        let more = selection.keys[at..].iter().any(|key| {
            self.cache
                .read_selected(&query, key, selection.sight)
                .is_some()
        });
        // A list that lacks a pod would make the kubelet kill it; no list does not.
        if self.cache.damage() != damage {
            return Err(self.unreadable(&query));
        }
        let (token, remaining) = match (more, last) {
            (true, Some(last)) => (
                page::encode(&query.namespace, last, selection.revision),
                (query.labels.is_empty() && query.fields.is_empty())
                    .then(|| i64::try_from(selection.keys.len() - at).unwrap_or(i64::MAX)),
            ),
            _ => (String::new(), None),
        };
        wanted
            .list(
                &selection.gvk,
                &selection.revision.to_string(),
                &token,
                remaining,
                &objects,
                now(),
            )
            .map_err(|error| malformed(&error))
    }

    /// Part of what was asked for cannot be read back.
    fn unreadable(&self, query: &Query) -> Box<Status> {
        let what = qualified(&query.gvr.group, &query.gvr.resource);
        Box::new(Status::service_unavailable(format!(
            "node {:?} is offline, and some of its cached {what} cannot be read back from its disk",
            self.node_name
        )))
    }

    /// A watch as a response of its own.
    fn stream(
        &self,
        caller: &Caller,
        info: &RequestInfo,
        parts: &Parts,
    ) -> Result<Response<Body>, Box<Status>> {
        let mut watch = self.watch(caller, info, parts)?;
        let content_type = HeaderValue::from_str(watch.content_type())
            .map_err(|error| Box::new(Status::internal_error(error)))?;
        let (client, body) = channel(WATCH_BUFFER);
        tokio::spawn(async move {
            loop {
                let frame = tokio::select! {
                    frame = watch.next() => frame,
                    () = client.closed() => return,
                };
                let Some(frame) = frame else { return };
                if client.send(Ok(frame.bytes)).await.is_err() {
                    return;
                }
            }
        });
        let mut response = Response::new(body);
        response
            .headers_mut()
            .insert(header::CONTENT_TYPE, content_type);
        Ok(response)
    }

    /// A refusal that names what was asked for and why it cannot be.
    fn refused(&self, info: &RequestInfo, why: &str) -> Box<Status> {
        let what = if info.is_resource {
            let mut resource = info.resource.clone();
            if !info.subresource.is_empty() {
                resource.push('/');
                resource.push_str(&info.subresource);
            }
            format!(
                "{} of {}",
                info.verb.as_str(),
                qualified(&info.group, &resource)
            )
        } else {
            format!("a request to {}", info.path)
        };
        let mut status = Status::service_unavailable(format!(
            "node {:?} is offline; {what} {why}",
            self.node_name
        ));
        status.name.clone_from(&info.name);
        status.group.clone_from(&info.group);
        status.kind.clone_from(&info.resource);
        Box::new(status)
    }

    fn away(&self) -> String {
        let since = self.away_since.load(Ordering::Relaxed);
        match jiff::Timestamp::from_second(since) {
            Ok(at) if since > 0 => format!("node {} is offline since {at}", self.node_name),
            _ => format!("node {} is offline", self.node_name),
        }
    }

    /// People (who ask for Tables) are told that they read a cache.
    fn warn_humans(&self, parts: &Parts, response: &mut Response<Body>) {
        let accept = parts
            .headers
            .get(header::ACCEPT)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default();
        if !accept.contains("as=Table") {
            return;
        }
        let warning = format!(
            "299 - \"yurthub: answered from the cache: {}\"",
            self.away()
        );
        if let Ok(value) = HeaderValue::from_str(&warning) {
            response.headers_mut().insert(header::WARNING, value);
        }
    }
}

fn qualified(group: &str, resource: &str) -> String {
    if group.is_empty() {
        resource.to_owned()
    } else {
        format!("{resource}.{group}")
    }
}

fn gvk_of(object: &Object) -> Result<Gvk, Box<Status>> {
    object
        .key()
        .map(|id| Gvk::from_api_version(&id.api_version, &id.kind))
        .map_err(|error| malformed(&error))
}
