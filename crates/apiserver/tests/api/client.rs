//! A server and what tests ask of it.

use bytes::Bytes;
use http::{Request, Response, header};
use http_body_util::{BodyExt, Full};
use serde_json::Value;
use std::{path::Path, time::Duration};
use tokio_util::sync::CancellationToken;
use yurt_apiserver::{ApiServer, Config, Running, authn::User};
use yurt_transport::Body;
use yurt_wire::{
    Encoding,
    watch::{EventType, FrameDecoder},
};

/// Long enough for a loaded machine; nothing waits this long when all is well.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) struct Cluster {
    pub(crate) running: Running,
    shutdown: CancellationToken,
}

impl Cluster {
    pub(crate) async fn start() -> Self {
        Self::with(Config::default()).await
    }

    pub(crate) async fn open(dir: &Path) -> Self {
        Self::with(Config {
            data_dir: Some(dir.to_owned()),
            ..Config::default()
        })
        .await
    }

    pub(crate) async fn with(mut config: Config) -> Self {
        config
            .tokens
            .push(("admin".into(), User::new("admin", &["system:masters"])));
        let shutdown = CancellationToken::new();
        let running = ApiServer::start(config, shutdown.clone())
            .await
            .expect("the server starts");
        let cluster = Self { running, shutdown };
        // What the server does by itself is done; from here on revisions are those of the test.
        for namespace in ["default", "kube-node-lease", "kube-public", "kube-system"] {
            let account = format!("/api/v1/namespaces/{namespace}/serviceaccounts/default");
            cluster.until(&account, 200).await;
        }
        cluster
    }

    pub(crate) async fn stop(self) {
        self.shutdown.cancel();
        self.running.stopped().await.expect("a clean stop");
    }

    pub(crate) async fn raw(&self, request: http::request::Builder, body: Bytes) -> Response<Body> {
        let request = request.body(Full::new(body)).expect("a request");
        self.running.call(request).await
    }

    pub(crate) fn request(method: &str, path: &str) -> http::request::Builder {
        Request::builder()
            .method(method)
            .uri(path)
            .header(header::AUTHORIZATION, "Bearer admin")
    }

    async fn send(&self, method: &str, path: &str, media: &str, body: Option<&Value>) -> Answer {
        let body = body.map_or_else(Bytes::new, |body| body.to_string().into());
        let request = Self::request(method, path).header(header::CONTENT_TYPE, media);
        Answer::of(self.raw(request, body).await).await
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.send("GET", path, "", None).await
    }
    pub(crate) async fn post(&self, path: &str, body: &Value) -> Answer {
        self.send("POST", path, "application/json", Some(body))
            .await
    }
    pub(crate) async fn put(&self, path: &str, body: &Value) -> Answer {
        self.send("PUT", path, "application/json", Some(body)).await
    }
    pub(crate) async fn merge(&self, path: &str, body: &Value) -> Answer {
        self.send("PATCH", path, "application/merge-patch+json", Some(body))
            .await
    }
    pub(crate) async fn patch(&self, path: &str, media: &str, body: &Value) -> Answer {
        self.send("PATCH", path, media, Some(body)).await
    }
    pub(crate) async fn delete(&self, path: &str) -> Answer {
        self.send("DELETE", path, "", None).await
    }
    pub(crate) async fn delete_with(&self, path: &str, options: &Value) -> Answer {
        self.send("DELETE", path, "application/json", Some(options))
            .await
    }

    pub(crate) async fn watch(&self, path: &str) -> Watch {
        self.watch_as(path, Encoding::Json).await
    }

    pub(crate) async fn watch_as(&self, path: &str, encoding: Encoding) -> Watch {
        let request = Self::request("GET", path).header(header::ACCEPT, encoding.content_type());
        let response = self.raw(request, Bytes::new()).await;
        assert_eq!(response.status(), 200, "{path}");
        assert_eq!(
            response.headers()[header::CONTENT_TYPE],
            encoding.watch_content_type()
        );
        Watch {
            body: response.into_body(),
            decoder: FrameDecoder::new(encoding, 16 << 20),
        }
    }

    /// Waits until a GET answers with `code`.
    pub(crate) async fn until(&self, path: &str, code: u16) -> Value {
        self.poll(path, |answer| answer.code == code).await
    }

    /// Waits until the object at a path is as wished.
    pub(crate) async fn until_object(&self, path: &str, wished: fn(&Value) -> bool) -> Value {
        self.poll(path, |answer| wished(&answer.body)).await
    }

    async fn poll(&self, path: &str, wished: impl Fn(&Answer) -> bool) -> Value {
        let poll = async {
            loop {
                let answer = self.get(path).await;
                if wished(&answer) {
                    return answer.body;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, poll)
            .await
            .unwrap_or_else(|_| panic!("{path} never answered as it should"))
    }
}

/// A response read to its end.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) code: u16,
    pub(crate) headers: http::HeaderMap,
    pub(crate) body: Value,
}

impl Answer {
    pub(crate) async fn of(response: Response<Body>) -> Self {
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.expect("a whole body").to_bytes();
        Self {
            code: parts.status.as_u16(),
            headers: parts.headers,
            body: serde_json::from_slice(&bytes).unwrap_or(Value::Null),
        }
    }

    /// The body of an answer that must have this code.
    pub(crate) fn expect(self, code: u16) -> Value {
        assert_eq!(self.code, code, "{}", self.body);
        self.body
    }
}

/// A watch as a client sees it.
pub(crate) struct Watch {
    body: Body,
    decoder: FrameDecoder,
}

impl Watch {
    /// The next event; `None` at the end of the stream.
    pub(crate) async fn next(&mut self) -> Option<(EventType, Value)> {
        loop {
            if let Some(frame) = self.decoder.next_frame().expect("a readable stream") {
                let event = frame.event.expect("a readable event");
                let object = event.object.to_json_value().expect("a readable object");
                return Some((event.kind, object));
            }
            let chunk = tokio::time::timeout(PATIENCE, self.body.frame())
                .await
                .expect("an event in time")?
                .expect("a whole stream");
            self.decoder.push(chunk.into_data().unwrap_or_default());
        }
    }

    /// The next event in short: `ADDED name`, `BOOKMARK`.
    pub(crate) async fn short(&mut self) -> String {
        match self.next().await {
            None => "end".into(),
            Some((kind, object)) => {
                let name = object["metadata"]["name"].as_str().unwrap_or_default();
                format!("{} {name}", kind.as_str()).trim_end().to_owned()
            }
        }
    }
}

/// A config map.
pub(crate) fn config_map(name: &str) -> Value {
    serde_json::json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"a": "b"}})
}

/// A pod, on a node when one is named.
pub(crate) fn pod(name: &str, node: &str) -> Value {
    let mut pod = serde_json::json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {"containers": [{"name": "c", "image": "i"}]}});
    if !node.is_empty() {
        pod["spec"]["nodeName"] = node.into();
    }
    pod
}

pub(crate) const CONFIG_MAPS: &str = "/api/v1/namespaces/default/configmaps";
pub(crate) const PODS: &str = "/api/v1/namespaces/default/pods";

/// The resourceVersion of an object or list.
pub(crate) fn revision(object: &Value) -> &str {
    object["metadata"]["resourceVersion"]
        .as_str()
        .expect("a resourceVersion")
}
