//! What clients need to talk to the API at all - versions, discovery, the index of OpenAPI - fetched beforehand, so that a
//! client that first comes while the link is cut is served as well.

use crate::{
    cache::collect::Served,
    caller::Caller,
    proxy::{Hub, document_key},
    route::Mode,
    upstream::{Outgoing, OutgoingBody},
};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use serde::Deserialize;
use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};
use yurt_wire::{Gvk, Gvr};

/// Between looks at what the API servers offer.
const EVERY: Duration = Duration::from_secs(600);
/// After a failure.
const RETRY: Duration = Duration::from_secs(15);
/// Time for one document.
const WAIT: Duration = Duration::from_secs(15);
/// Largest document.
const MOST_BYTES: usize = 8 << 20;
/// Group versions looked at.
const MOST_VERSIONS: usize = 512;
const JSON: &str = "application/json";
const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList";

/// The documents that tell by their tag (`ETag`) whether anything of discovery changed at all.
const TAGGED: [&str; 2] = ["/api", "/apis"];

/// The last complete look.
#[derive(Debug, Default)]
struct Seen {
    /// Tags of [`TAGGED`]; empty when there is nothing to rely on.
    tags: HashMap<&'static str, HeaderValue>,
    served: Served,
}

/// Fetches at start, whenever the link comes back, and now and then, until shutdown.
pub async fn run(hub: Arc<Hub>) {
    let mut modes = hub.modes();
    let mut seen = Seen::default();
    let mut retry = RETRY;
    loop {
        tokio::select! {
            () = hub.shutdown.cancelled() => return,
            () = hub.until_mode_of(&Caller::Node, Mode::Online) => {}
        }
        let complete = tokio::select! {
            () = hub.shutdown.cancelled() => return,
            complete = fetch_all(&hub, &mut seen) => complete,
        };
        // An aggregated API may be down for long.
        let pause = if complete { EVERY } else { retry };
        retry = if complete {
            RETRY
        } else {
            (retry * 2).min(EVERY)
        };
        modes.mark_unchanged();
        tokio::select! {
            () = hub.shutdown.cancelled() => return,
            () = tokio::time::sleep(pause.mul_f64(0.9 + 0.2 * fastrand::f64())) => {}
            _ = modes.changed() => {}
        }
    }
}

/// True when nothing was missing.
async fn fetch_all(hub: &Hub, seen: &mut Seen) -> bool {
    let mut complete = fetch(hub, "/version", JSON, None).await.is_some();
    let mut tags = HashMap::new();
    let mut unchanged = true;
    for path in TAGGED {
        // Servers older than 1.26 answer these in the legacy form, without a tag.
        match fetch(hub, path, AGGREGATED, seen.tags.get(path)).await {
            Some(Fetched::Unchanged) => {}
            Some(Fetched::Document { tag, .. }) => {
                unchanged = false;
                tags.extend(tag.map(|tag| (path, tag)));
            }
            Some(Fetched::Refused) => unchanged = false,
            None => (complete, unchanged) = (false, false),
        }
    }
    if complete && unchanged {
        hub.cache.note_served(&seen.served, Instant::now());
        return true;
    }
    let core = fetch(hub, "/api", JSON, None).await;
    let groups = fetch(hub, "/apis", JSON, None).await;
    let all_named = core.is_some() && groups.is_some();
    complete &= all_named;
    // Not every server has it.
    fetch(hub, "/openapi/v3", JSON, None).await;
    let mut served = Served::default();
    let (core, groups) = (core.and_then(Fetched::body), groups.and_then(Fetched::body));
    for path in versions(core.as_ref(), groups.as_ref()) {
        let list = fetch(hub, &path, JSON, None).await;
        complete &= list.is_some();
        match list
            .and_then(Fetched::body)
            .and_then(|list| resources(&list))
        {
            Some(resources) => served.resources.extend(resources),
            None => {
                served.unknown.insert(path);
            }
        }
    }
    // Half a picture would make what is served look gone.
    if all_named && !served.resources.is_empty() {
        hub.cache.note_served(&served, Instant::now());
    }
    // Both were fetched anew, or what is relied on is not the same look.
    if !complete || tags.len() < TAGGED.len() {
        tags.clear();
    }
    *seen = Seen { tags, served };
    complete
}

/// What became of asking for one document.
#[derive(Debug)]
enum Fetched {
    /// It came, and is in the cache.
    Document {
        body: Bytes,
        tag: Option<HeaderValue>,
    },
    /// It is as it was when it had the tag.
    Unchanged,
    /// The server does not give it.
    Refused,
}

impl Fetched {
    fn body(self) -> Option<Bytes> {
        match self {
            Self::Document { body, .. } => Some(body),
            Self::Unchanged | Self::Refused => None,
        }
    }
}

/// Fetches one document and gives it to the cache. `None` when it could not be had.
async fn fetch(
    hub: &Hub,
    path: &str,
    accept: &'static str,
    tag: Option<&HeaderValue>,
) -> Option<Fetched> {
    let mut headers = HeaderMap::new();
    headers.insert(header::ACCEPT, HeaderValue::from_static(accept));
    headers.insert(
        header::USER_AGENT,
        HeaderValue::from_static(crate::USER_AGENT),
    );
    if let Some(tag) = tag {
        headers.insert(header::IF_NONE_MATCH, tag.clone());
    }
    let request = Outgoing {
        method: Method::GET,
        uri: path.parse().ok()?,
        headers,
        body: OutgoingBody::Held(Bytes::new()),
        wait: WAIT,
        safe: true,
    };
    let (response, _) = hub.upstreams.send(&Caller::Node, request).await.ok()?;
    match response.status() {
        StatusCode::OK => {}
        StatusCode::NOT_MODIFIED if tag.is_some() => return Some(Fetched::Unchanged),
        StatusCode::TOO_MANY_REQUESTS => return None,
        status if status.is_server_error() => return None,
        _ => return Some(Fetched::Refused),
    }
    let text = |name| {
        let value: Option<&HeaderValue> = response.headers().get(name);
        value.cloned()
    };
    let (content_type, tag) = (text(header::CONTENT_TYPE), text(header::ETAG));
    let content_type = content_type
        .as_ref()
        .and_then(|value| value.to_str().ok())
        .unwrap_or(JSON)
        .to_owned();
    let body = tokio::time::timeout(
        WAIT,
        yurt_transport::collect(response.into_body(), MOST_BYTES),
    )
    .await
    .ok()?
    .ok()?;
    hub.cache
        .learn_document(&document_key(path), &content_type, body.clone());
    Some(Fetched::Document { body, tag })
}

/// The resources of an `APIResourceList`; `None` when it is none.
fn resources(list: &[u8]) -> Option<Vec<Gvr>> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct List {
        group_version: String,
        resources: Vec<Resource>,
    }
    #[derive(Deserialize)]
    struct Resource {
        name: String,
    }
    let list: List = serde_json::from_slice(list).ok()?;
    let Gvk { group, version, .. } = Gvk::from_api_version(&list.group_version, "");
    let resources = list.resources.iter().map(|resource| &resource.name);
    Some(
        resources
            .filter(|name| !name.contains('/'))
            .map(|name| Gvr::new(&group, &version, name))
            .collect(),
    )
}

/// The paths of all group versions that the two legacy documents name.
fn versions(core: Option<&Bytes>, groups: Option<&Bytes>) -> BTreeSet<String> {
    #[derive(Deserialize)]
    struct Core {
        versions: Vec<String>,
    }
    #[derive(Deserialize)]
    struct Groups {
        groups: Vec<Group>,
    }
    #[derive(Deserialize)]
    struct Group {
        versions: Vec<Version>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Version {
        group_version: String,
    }
    let core = core
        .and_then(|bytes| serde_json::from_slice::<Core>(bytes).ok())
        .map_or_else(Vec::new, |core| core.versions);
    let groups = groups
        .and_then(|bytes| serde_json::from_slice::<Groups>(bytes).ok())
        .map_or_else(Vec::new, |groups| groups.groups);
    let core = core.into_iter().map(|version| format!("/api/{version}"));
    let groups = groups
        .into_iter()
        .flat_map(|group| group.versions)
        .map(|version| format!("/apis/{}", version.group_version));
    core.chain(groups)
        .filter(|path| path.len() < 512 && path.parse::<http::Uri>().is_ok())
        .take(MOST_VERSIONS)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_recorded_discovery() {
        let core = Bytes::from_static(include_bytes!(
            "../tests/fixtures/kube-apiserver/discovery-api.json"
        ));
        let groups = Bytes::from_static(include_bytes!(
            "../tests/fixtures/kube-apiserver/discovery-apis.json"
        ));
        let paths = versions(Some(&core), Some(&groups));
        for path in ["/api/v1", "/apis/apps/v1", "/apis/coordination.k8s.io/v1"] {
            assert!(paths.contains(path), "{path}: {paths:?}");
        }
        let list = include_bytes!("../tests/fixtures/kube-apiserver/discovery-apps-v1.json");
        let found = resources(list).expect("a list");
        assert!(found.contains(&Gvr::new("apps", "v1", "deployments")));
        assert!(found.iter().all(|gvr| !gvr.resource.contains('/')));
        assert_eq!(resources(b"{}"), None);
        let garbage = Bytes::from_static(b"{");
        assert!(versions(Some(&garbage), None).is_empty());
    }
}
