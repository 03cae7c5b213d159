//! A node without its network: the cache, the journal and what answers from them, fed from recordings of a real API server.
#![allow(dead_code, reason = "each test file uses its part")]

pub(crate) mod twin;

use bytes::Bytes;
use http::{Method, Request, header};
use http_body_util::BodyExt;
use serde_json::Value;
use std::path::{Path, PathBuf};
use yurt_hub::{
    cache::{Asked, Cache, CacheConfig},
    caller::Caller,
    journal::{Journal, JournalConfig},
    metrics::Metrics,
    offline::Offline,
    query::Query,
    tokens::{Tokens, signer},
};
use yurt_wire::{
    Encoding, Gvr, Object, RequestInfo, list,
    watch::{Event, EventType, FrameDecoder},
};

pub(crate) const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";
pub(crate) const JSON: &str = "application/json";
pub(crate) const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json";

pub(crate) struct Node {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) cache: Cache,
    pub(crate) journal: Journal,
    pub(crate) offline: Offline,
}

pub(crate) struct Answer {
    pub(crate) code: u16,
    pub(crate) content_type: String,
    pub(crate) headers: http::HeaderMap,
    pub(crate) body: Bytes,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| {
            let object = Object {
                encoding: Encoding::Protobuf,
                bytes: self.body.clone(),
            };
            object.to_json_value().expect("JSON or protobuf")
        })
    }
    pub(crate) fn message(&self) -> String {
        self.json()["message"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    }
}

pub(crate) fn fixture(name: &str) -> Bytes {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures/kube-apiserver")
        .join(name);
    std::fs::read(path).expect("a fixture").into()
}

pub(crate) fn fixture_json(name: &str) -> Value {
    serde_json::from_slice(&fixture(name)).expect("a JSON fixture")
}

/// The query a path asks for.
pub(crate) fn query(path_and_query: &str) -> Query {
    let info = info(&Method::GET, path_and_query);
    Query::of_request(&info, &info.list_options().expect("options"))
}

pub(crate) fn info(method: &Method, path_and_query: &str) -> RequestInfo {
    let (path, query) = match path_and_query.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (path_and_query, None),
    };
    RequestInfo::parse(method, path, query)
}

fn open(dir: &Path) -> (Cache, Journal, Offline) {
    let (cache, _) = Cache::open(dir, CacheConfig::default()).expect("a cache");
    let journal = Journal::open(&cache, JournalConfig::default()).expect("a journal");
    let key = signer::key_path(dir.parent().expect("a parent"));
    let tokens = Tokens::open(&cache, "edge-1", Some(key), Metrics::default());
    let offline = Offline::new(cache.clone(), journal.clone(), "edge-1").with_tokens(tokens);
    (cache, journal, offline)
}

impl Node {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let (cache, journal, offline) = open(&dir.path().join("cache"));
        Self {
            dir,
            cache,
            journal,
            offline,
        }
    }

    /// Knows everything recorded, as a kubelet and a kube-proxy would have read it.
    pub(crate) async fn recorded() -> Self {
        let node = Self::new();
        for (file, path) in [
            (
                "list-nodes.pb",
                "/api/v1/nodes?fieldSelector=metadata.name%3Dedge-1",
            ),
            (
                "list-services.pb",
                "/api/v1/services?fieldSelector=spec.clusterIP%21%3DNone",
            ),
            (
                "list-pods.pb",
                "/api/v1/pods?fieldSelector=spec.nodeName%3Dedge-1",
            ),
            ("list-leases.pb", "/apis/coordination.k8s.io/v1/leases"),
            ("list-events.pb", "/api/v1/events"),
            (
                "list-endpointslices.pb",
                "/apis/discovery.k8s.io/v1/endpointslices",
            ),
        ] {
            node.learn_list(&Caller::Node, path, file);
        }
        node.learn_empty(
            "/apis/node.k8s.io/v1/runtimeclasses",
            "node.k8s.io/v1",
            "RuntimeClassList",
        );
        node.learn_empty(
            "/apis/storage.k8s.io/v1/csidrivers",
            "storage.k8s.io/v1",
            "CSIDriverList",
        );
        let maps = list::split(&fixture("list-configmaps.pb"), Encoding::Protobuf).expect("a list");
        for object in maps.items {
            let meta = object.meta().expect("metadata");
            if meta.namespace == "default" && meta.name != "openshift-service-ca.crt" {
                node.cache.learn_object(
                    &Caller::Node,
                    &Gvr::new("", "v1", "configmaps"),
                    &object,
                    Asked::default(),
                );
            }
        }
        node.cache.learn_absent(
            &Caller::Node,
            &Gvr::new("", "v1", "configmaps"),
            "default",
            "openshift-service-ca.crt",
            Asked::default(),
        );
        node.cache.learn_absent(
            &Caller::Node,
            &Gvr::new("storage.k8s.io", "v1", "csinodes"),
            "",
            "edge-1",
            Asked::default(),
        );
        node.cache.flush().await.expect("flush");
        node
    }

    pub(crate) fn learn_list(&self, caller: &Caller, path: &str, file: &str) {
        let encoding = if file.ends_with(".pb") {
            Encoding::Protobuf
        } else {
            Encoding::Json
        };
        let mut learner = self.cache.list_learner(caller, &query(path));
        learner.page(list::split(&fixture(file), encoding).expect("a list"));
        learner.finish();
    }

    pub(crate) fn learn_empty(&self, path: &str, api_version: &str, kind: &str) {
        let text = format!(
            r#"{{"apiVersion":"{api_version}","kind":"{kind}","metadata":{{"resourceVersion":"367"}},"items":[]}}"#
        );
        let mut learner = self.cache.list_learner(&Caller::Node, &query(path));
        learner.page(list::split(&text.into(), Encoding::Json).expect("a list"));
        learner.finish();
    }

    /// Stops and starts the hub's local half.
    pub(crate) async fn restart(self) -> Self {
        let Self {
            dir,
            cache,
            journal,
            offline,
        } = self;
        cache.flush().await.expect("flush");
        drop((cache, journal, offline));
        let (cache, journal, offline) = open(&dir.path().join("cache"));
        Self {
            dir,
            cache,
            journal,
            offline,
        }
    }

    /// What a start after `kill -9` at this moment finds: a copy of the files as they lie.
    pub(crate) fn killed(&self) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let to: PathBuf = dir.path().join("cache");
        std::fs::create_dir(&to).expect("a directory");
        for file in std::fs::read_dir(self.dir.path().join("cache")).expect("files") {
            let file = file.expect("a file");
            if file.file_name() != "lock" {
                std::fs::copy(file.path(), to.join(file.file_name())).expect("a copy");
            }
        }
        let (cache, journal, offline) = open(&to);
        Self {
            dir,
            cache,
            journal,
            offline,
        }
    }

    pub(crate) async fn get(&self, path: &str, accept: &str) -> Answer {
        self.request(&Caller::Node, Method::GET, path, accept, "", Bytes::new())
            .await
    }

    pub(crate) async fn request(
        &self,
        caller: &Caller,
        method: Method,
        path: &str,
        accept: &str,
        content_type: &str,
        body: Bytes,
    ) -> Answer {
        let parts = parts(&method, path, accept, content_type);
        let response = self
            .offline
            .answer(caller, &info(&method, path), &parts, body)
            .await;
        let (head, body) = response.into_parts();
        let body = body.collect().await.expect("a body").to_bytes();
        Answer {
            code: head.status.as_u16(),
            content_type: head
                .headers
                .get(header::CONTENT_TYPE)
                .and_then(|value| value.to_str().ok())
                .unwrap_or_default()
                .to_owned(),
            headers: head.headers,
            body,
        }
    }

    pub(crate) async fn patch(&self, path: &str, patch: &Value) -> Answer {
        self.request(
            &Caller::Node,
            Method::PATCH,
            path,
            PROTOBUF,
            "application/strategic-merge-patch+json",
            patch.to_string().into(),
        )
        .await
    }

    pub(crate) async fn send(&self, method: Method, path: &str, object: &Value) -> Answer {
        let object = Object::from_json_value(object, Encoding::Protobuf).expect("protobuf");
        self.request(
            &Caller::Node,
            method,
            path,
            PROTOBUF,
            PROTOBUF,
            object.bytes,
        )
        .await
    }

    pub(crate) fn watch(&self, path: &str, accept: &str) -> yurt_hub::offline::LocalWatch {
        let info = info(&Method::GET, path);
        self.offline
            .watch(&Caller::Node, &info, &parts(&Method::GET, path, accept, ""))
            .expect("a watch")
    }
}

pub(crate) fn parts(
    method: &Method,
    path: &str,
    accept: &str,
    content_type: &str,
) -> http::request::Parts {
    let mut request = Request::builder()
        .method(method.clone())
        .uri(path)
        .header(header::ACCEPT, accept)
        .header(header::ACCEPT_ENCODING, "gzip");
    if !content_type.is_empty() {
        request = request.header(header::CONTENT_TYPE, content_type);
    }
    request.body(()).expect("a request").into_parts().0
}

/// Reads one frame.
pub(crate) fn event(bytes: Bytes, encoding: Encoding) -> Event {
    let mut decoder = FrameDecoder::new(encoding, 1 << 20);
    decoder.push(bytes);
    decoder
        .next_frame()
        .expect("a stream")
        .expect("a frame")
        .event
        .expect("an event")
}

pub(crate) fn events(bytes: Bytes, encoding: Encoding) -> Vec<Event> {
    let mut decoder = FrameDecoder::new(encoding, 1 << 20);
    decoder.push(bytes);
    let mut out = Vec::new();
    while let Some(frame) = decoder.next_frame().expect("a stream") {
        out.push(frame.event.expect("an event"));
    }
    out
}

/// The next event of a local watch, shortened: type, name, resourceVersion.
pub(crate) async fn next(
    watch: &mut yurt_hub::offline::LocalWatch,
) -> Option<(EventType, String, String)> {
    let encoding = Encoding::from_content_type(watch.content_type()).expect("an encoding");
    let frame = watch.next().await?;
    let event = event(frame.bytes, encoding);
    let meta = event.object.meta().expect("metadata");
    Some((event.kind, meta.name, meta.resource_version))
}
