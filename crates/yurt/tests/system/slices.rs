//! A client of the EndpointSlice of the service `web`, as kube-proxy is one.

use crate::fixture::PATIENCE;
use http::{Request, header};
use http_body_util::BodyExt;
use serde_json::Value;
use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};
use yurt_transport::{Client, ClientOptions, ResponseBody};
use yurt_wire::{
    Encoding,
    watch::{EventType, FrameDecoder, is_initial_events_end},
};

const SLICES: &str = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices";
const OF_WEB: &str = "labelSelector=kubernetes.io%2Fservice-name%3Dweb";

/// The addresses that get connections.
pub(crate) fn ready(slice: &Value) -> BTreeSet<String> {
    let endpoints = slice["endpoints"].as_array().cloned().unwrap_or_default();
    endpoints
        .iter()
        .filter(|endpoint| endpoint["conditions"]["ready"] == true)
        .filter_map(|endpoint| endpoint["addresses"][0].as_str().map(str::to_owned))
        .collect()
}

/// A client of the slices as kube-proxy is one: it watches, and goes on from the last revision when its watch breaks.
pub(crate) struct Watcher {
    client: Client,
    pub(crate) encoding: Encoding,
    stream: Option<(ResponseBody, FrameDecoder)>,
    revision: String,
    /// The slice as last told.
    pub(crate) slice: Value,
    /// How often it began with everything there is.
    pub(crate) lists: usize,
}

impl Watcher {
    /// One at the hub with this address.
    pub(crate) fn new(address: &str, encoding: Encoding) -> Self {
        let options = ClientOptions {
            connect_timeout: PATIENCE,
            keepalive_interval: PATIENCE,
            keepalive_timeout: PATIENCE,
            max_idle: 1,
        };
        Self {
            client: Client::new(&format!("{address}:10261"), None, options),
            encoding,
            stream: None,
            revision: String::new(),
            slice: Value::Null,
            lists: 0,
        }
    }

    async fn open(&mut self) {
        let from = if self.revision.is_empty() {
            self.lists += 1;
            "sendInitialEvents=true&resourceVersionMatch=NotOlderThan".to_owned()
        } else {
            format!("resourceVersion={}", self.revision)
        };
        let request = Request::builder()
            .uri(format!(
                "{SLICES}?watch=true&allowWatchBookmarks=true&timeoutSeconds=600&{OF_WEB}&{from}"
            ))
            .header(header::ACCEPT, self.encoding.content_type())
            .header(header::USER_AGENT, "kube-proxy/v1.36.0 (linux/amd64)")
            .body(yurt_transport::empty());
        let Ok(response) = self.client.send(request.unwrap(), PATIENCE).await else {
            // The hub is not back yet.
            tokio::time::sleep(Duration::from_millis(100)).await;
            return;
        };
        assert_eq!(response.status(), 200);
        let content_type = response.headers()[header::CONTENT_TYPE].to_str().unwrap();
        assert_eq!(
            Encoding::from_content_type(content_type),
            Some(self.encoding)
        );
        let frames = FrameDecoder::new(self.encoding, 1 << 20);
        self.stream = Some((response.into_body(), frames));
    }

    /// Takes what comes next, as an informer does.
    async fn step(&mut self) {
        let Some((body, frames)) = &mut self.stream else {
            return self.open().await;
        };
        match body.frame().await {
            Some(Ok(frame)) => frames.push(frame.into_data().unwrap_or_default()),
            Some(Err(_)) | None => {
                self.stream = None;
                return;
            }
        }
        while let Some(frame) = frames.next_frame().unwrap() {
            let event = frame.event.unwrap();
            assert_ne!(event.kind, EventType::Error, "{:?}", event.object);
            self.revision = event.object.meta().unwrap().resource_version;
            match event.kind {
                EventType::Bookmark => {
                    let _ = is_initial_events_end(&event.object);
                }
                _ => self.slice = event.object.to_json_value().unwrap(),
            }
        }
    }

    /// Goes on until the slice is as wanted.
    pub(crate) async fn until(&mut self, what: &str, holds: impl Fn(&Value) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !holds(&self.slice) {
            let left = deadline.saturating_duration_since(Instant::now());
            let step = tokio::time::timeout(left, self.step()).await;
            assert!(
                step.is_ok(),
                "{:?}: not {what}: {}",
                self.encoding,
                self.slice
            );
        }
    }
}
