//! A server that knows just enough of the API for a kubelet, and remembers what it was asked.

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, header};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};
use tokio::{net::TcpListener, sync::broadcast};
use tokio_util::sync::{CancellationToken, DropGuard};
use yurt_transport::{Body, ServeOptions, channel, collect, full};
use yurt_wire::{
    Encoding, Gvk, Object, RequestInfo, Status, Verb,
    list::{self, ListHead},
    patch::strategic_merge_patch,
    watch::{self, EventType},
};

#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) method: Method,
    pub(crate) path: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Value,
}

impl Asked {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }
}

#[derive(Clone, Debug)]
enum News {
    Event(EventType, Value),
    /// Every watch ends with a 410.
    Expire,
}

struct State {
    revision: u64,
    /// By resource, namespace and name.
    objects: BTreeMap<[String; 3], Value>,
    asked: Vec<Asked>,
    /// Everything is refused with this.
    refusing: Option<Status>,
    /// As a kube-apiserver whose etcd cannot tell its progress.
    lists_only: bool,
}

pub(crate) struct Cloud {
    pub(crate) address: SocketAddr,
    state: Arc<Mutex<State>>,
    news: broadcast::Sender<News>,
    _stop: DropGuard,
}

impl Cloud {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(Mutex::new(State {
            revision: 100,
            objects: BTreeMap::new(),
            asked: Vec::new(),
            refusing: None,
            lists_only: false,
        }));
        let (news, _) = broadcast::channel(1024);
        let stop = CancellationToken::new();
        let handler = {
            let (state, news) = (Arc::clone(&state), news.clone());
            move |request| answer(Arc::clone(&state), news.clone(), request)
        };
        let options = ServeOptions {
            drain: Duration::ZERO,
            ..ServeOptions::default()
        };
        tokio::spawn(yurt_transport::serve(
            listener,
            None,
            options,
            stop.clone(),
            handler,
        ));
        Self {
            address,
            state,
            news,
            _stop: stop.drop_guard(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub(crate) fn get(&self, resource: &str, namespace: &str, name: &str) -> Option<Value> {
        self.state()
            .objects
            .get(&key(resource, namespace, name))
            .cloned()
    }

    pub(crate) fn put(&self, resource: &str, object: Value) -> Value {
        self.state().put(resource, object, &self.news)
    }

    pub(crate) fn remove(&self, resource: &str, namespace: &str, name: &str) {
        self.state()
            .remove(&key(resource, namespace, name), &self.news);
    }

    /// Removes an object so that no watch hears of it.
    pub(crate) fn forget(&self, resource: &str, namespace: &str, name: &str) {
        self.state()
            .objects
            .remove(&key(resource, namespace, name))
            .unwrap();
    }

    pub(crate) fn expire_watches(&self) {
        self.news.send(News::Expire).unwrap();
    }

    pub(crate) fn refuse(&self, status: Option<Status>) {
        self.state().refusing = status;
    }

    pub(crate) fn refuse_initial_events(&self) {
        self.state().lists_only = true;
    }

    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.state().asked.clone()
    }

    pub(crate) fn count(&self, wanted: impl Fn(&Asked) -> bool) -> usize {
        self.state()
            .asked
            .iter()
            .filter(|asked| wanted(asked))
            .count()
    }
}

fn key(resource: &str, namespace: &str, name: &str) -> [String; 3] {
    [resource.into(), namespace.into(), name.into()]
}

impl State {
    fn put(&mut self, resource: &str, mut object: Value, news: &broadcast::Sender<News>) -> Value {
        self.revision += 1;
        let meta = &mut object["metadata"];
        meta["resourceVersion"] = self.revision.to_string().into();
        if meta["uid"].is_null() {
            meta["uid"] = format!("uid-{}", self.revision).into();
            meta["generation"] = 1.into();
        }
        let namespace = meta["namespace"].as_str().unwrap_or_default();
        let key = key(resource, namespace, meta["name"].as_str().unwrap());
        let kind = match self.objects.insert(key, object.clone()) {
            None => EventType::Added,
            Some(_) => EventType::Modified,
        };
        let _ = news.send(News::Event(kind, object.clone()));
        object
    }

    fn remove(&mut self, key: &[String; 3], news: &broadcast::Sender<News>) -> Option<Value> {
        let mut object = self.objects.remove(key)?;
        self.revision += 1;
        object["metadata"]["resourceVersion"] = self.revision.to_string().into();
        let _ = news.send(News::Event(EventType::Deleted, object.clone()));
        Some(object)
    }
}

fn kind_of(info: &RequestInfo) -> Gvk {
    let (group_version, kind) = match info.resource.as_str() {
        "nodes" => ("v1", "Node"),
        "pods" => ("v1", "Pod"),
        "services" => ("v1", "Service"),
        "configmaps" => ("v1", "ConfigMap"),
        "secrets" => ("v1", "Secret"),
        "events" => ("v1", "Event"),
        "leases" => ("coordination.k8s.io/v1", "Lease"),
        "csidrivers" => ("storage.k8s.io/v1", "CSIDriver"),
        "runtimeclasses" => ("node.k8s.io/v1", "RuntimeClass"),
        other => ("v1", other),
    };
    Gvk::from_api_version(group_version, kind)
}

fn respond(code: StatusCode, value: &Value) -> Response<Body> {
    let object = Object::from_json_value(value, Encoding::Protobuf).unwrap();
    let mut response = Response::builder()
        .status(code)
        .header(header::CONTENT_TYPE, Encoding::Protobuf.content_type());
    let mut bytes = object.bytes;
    // As kube-apiserver does with what is large.
    if bytes.len() > 300 {
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        std::io::Write::write_all(&mut packed, &bytes).unwrap();
        bytes = packed.finish().unwrap().into();
        response = response.header(header::CONTENT_ENCODING, "gzip");
    }
    response.body(full(bytes)).unwrap()
}

fn refuse(status: &Status) -> Response<Body> {
    Response::builder()
        .status(status.code())
        .header(header::CONTENT_TYPE, Encoding::Protobuf.content_type())
        .body(full(status.to_bytes(Encoding::Protobuf)))
        .unwrap()
}

async fn answer(
    state: Arc<Mutex<State>>,
    news: broadcast::Sender<News>,
    request: Request<hyper::body::Incoming>,
) -> Response<Body> {
    let (head, body) = request.into_parts();
    let info = RequestInfo::parse(&head.method, head.uri.path(), head.uri.query());
    let bytes = collect(body, 1 << 20).await.unwrap();
    let body = match head
        .headers
        .get(header::CONTENT_TYPE)
        .map(|v| v.to_str().unwrap())
    {
        None => Value::Null,
        Some(content_type) => match Encoding::from_content_type(content_type) {
            Some(encoding) => Object { encoding, bytes }.to_json_value().unwrap(),
            None => serde_json::from_slice(&bytes).unwrap(),
        },
    };
    let mut locked = state.lock().unwrap();
    locked.asked.push(Asked {
        method: head.method,
        path: head.uri.to_string(),
        headers: head.headers,
        body: body.clone(),
    });
    if let Some(status) = &locked.refusing {
        return refuse(status);
    }
    let key = key(&info.resource, &info.namespace, &info.name);
    let not_found = refuse(&Status::not_found(&info.group, &info.resource, &info.name));
    let kind = kind_of(&info);
    match info.verb {
        Verb::Create if !info.subresource.is_empty() => respond(StatusCode::CREATED, &body),
        Verb::Create => {
            let name = body["metadata"]["name"].as_str().unwrap().to_owned();
            if locked
                .objects
                .contains_key(&self::key(&info.resource, &info.namespace, &name))
            {
                return refuse(&Status::already_exists(&info.group, &info.resource, &name));
            }
            respond(
                StatusCode::CREATED,
                &locked.put(&info.resource, body, &news),
            )
        }
        Verb::Get => match locked.objects.get(&key) {
            Some(object) => respond(StatusCode::OK, object),
            None => not_found,
        },
        Verb::Update if locked.objects.contains_key(&key) => {
            respond(StatusCode::OK, &locked.put(&info.resource, body, &news))
        }
        Verb::Patch => match locked.objects.get(&key).cloned() {
            Some(mut object) => {
                let uid = body["metadata"]["uid"].clone();
                if !uid.is_null() && uid != object["metadata"]["uid"] {
                    return refuse(&Status::conflict("", &info.resource, &info.name, "uid"));
                }
                strategic_merge_patch(&kind, &mut object, &body).unwrap();
                respond(StatusCode::OK, &locked.put(&info.resource, object, &news))
            }
            None => not_found,
        },
        Verb::Delete => {
            let uid = &body["preconditions"]["uid"];
            match locked.objects.get(&key) {
                Some(object) if *uid == object["metadata"]["uid"] => {
                    assert_eq!(body["gracePeriodSeconds"], 0);
                    let gone = locked.remove(&key, &news).unwrap();
                    respond(StatusCode::OK, &gone)
                }
                Some(_) => refuse(&Status::conflict("", &info.resource, &info.name, "uid")),
                None => not_found,
            }
        }
        Verb::Watch => follow(&locked, &news, &info, &kind),
        Verb::List => list(&locked, &info, &kind),
        _ => not_found,
    }
}

/// What a request is about.
fn wanted(info: &RequestInfo, kind: &Gvk) -> impl Fn(&Value) -> bool + use<> {
    let options = info.list_options().unwrap();
    let (namespace, wanted_kind) = (info.namespace.clone(), kind.kind.clone());
    move |object: &Value| {
        let in_namespace = namespace.is_empty() || object["metadata"]["namespace"] == *namespace;
        object["kind"] == *wanted_kind
            && in_namespace
            && options.fields.matches(|path| {
                let pointer = format!("/{}", path.replace('.', "/"));
                object
                    .pointer(&pointer)
                    .and_then(Value::as_str)
                    .unwrap_or_default()
                    .to_owned()
            })
    }
}

fn list(state: &State, info: &RequestInfo, kind: &Gvk) -> Response<Body> {
    let wanted = wanted(info, kind);
    let objects = state.objects.iter();
    let items: Vec<Object> = objects
        .filter(|([of, ..], object)| *of == info.resource && wanted(object))
        .map(|(_, object)| Object::from_json_value(object, Encoding::Protobuf).unwrap())
        .collect();
    let head = ListHead {
        gvk: Gvk {
            kind: format!("{}List", kind.kind),
            ..kind.clone()
        },
        resource_version: state.revision.to_string(),
        continue_token: String::new(),
        remaining: None,
    };
    let chunks = list::join(&head, Encoding::Protobuf, &items).unwrap();
    Response::builder()
        .header(header::CONTENT_TYPE, Encoding::Protobuf.content_type())
        .body(full(chunks.concat()))
        .unwrap()
}

fn follow(
    state: &State,
    news: &broadcast::Sender<News>,
    info: &RequestInfo,
    kind: &Gvk,
) -> Response<Body> {
    let options = info.list_options().unwrap();
    if options.send_initial_events == Some(true) && state.lists_only {
        return refuse(&Status::internal_error("etcd cannot tell its progress"));
    }
    let resource = info.resource.clone();
    let wanted = wanted(info, kind);
    let frame = |event, object: &Value| {
        let object = Object::from_json_value(object, Encoding::Protobuf).unwrap();
        watch::encode(event, &object, Encoding::Protobuf)
    };
    let mut first: Vec<Bytes> = Vec::new();
    if options.send_initial_events == Some(true) {
        for ([of, ..], object) in &state.objects {
            if *of == resource && wanted(object) {
                first.push(frame(EventType::Added, object));
            }
        }
        let revision = state.revision.to_string();
        let end = watch::bookmark(kind, &revision, true, Encoding::Protobuf);
        first.push(watch::encode(EventType::Bookmark, &end, Encoding::Protobuf));
    } else if options
        .resource_version
        .parse::<u64>()
        .is_ok_and(|from| from < state.revision)
    {
        // This server remembers no changes: who missed some is told so, as after a compaction.
        return refuse(&Status::expired("too old resource version"));
    }
    let mut news = news.subscribe();
    let (sender, body) = channel(64);
    tokio::spawn(async move {
        for frame in first {
            if sender.send(Ok(frame)).await.is_err() {
                return;
            }
        }
        loop {
            let next = tokio::select! {
                () = sender.closed() => return,
                next = news.recv() => next.unwrap(),
            };
            let frame = match next {
                News::Event(event, object) if wanted(&object) => frame(event, &object),
                News::Event(..) => continue,
                News::Expire => {
                    let gone = Status::expired("too old resource version");
                    let object = Object {
                        encoding: Encoding::Protobuf,
                        bytes: gone.to_bytes(Encoding::Protobuf),
                    };
                    let frame = watch::encode(EventType::Error, &object, Encoding::Protobuf);
                    let _ = sender.send(Ok(frame)).await;
                    return;
                }
            };
            if sender.send(Ok(frame)).await.is_err() {
                return;
            }
        }
    });
    Response::builder()
        .header(
            header::CONTENT_TYPE,
            Encoding::Protobuf.watch_content_type(),
        )
        .body(body)
        .unwrap()
}

pub(crate) fn pod(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": "default", "name": name},
        "spec": {
            "nodeName": "edge-1", "serviceAccountName": "default",
            "containers": [{"name": "busybox", "image": "busybox:1"}],
            "volumes": [{"name": "kube-api-access", "projected": {"sources": [
                {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
                {"configMap": {"name": "kube-root-ca.crt"}},
                {"configMap": {"name": "openshift-service-ca.crt"}},
            ]}}],
        },
        "status": {"phase": "Pending"},
    })
}
