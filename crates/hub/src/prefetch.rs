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
    collections::BTreeSet,
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

/// Fetches at start, whenever the link comes back, and now and then, until shutdown.
pub async fn run(hub: Arc<Hub>) {
    let mut modes = hub.modes();
    loop {
        tokio::select! {
            () = hub.shutdown.cancelled() => return,
            () = hub.until_mode_of(&Caller::Node, Mode::Online) => {}
        }
        let complete = tokio::select! {
            () = hub.shutdown.cancelled() => return,
            complete = fetch_all(&hub) => complete,
        };
        let pause = if complete { EVERY } else { RETRY };
        modes.mark_unchanged();
        tokio::select! {
            () = hub.shutdown.cancelled() => return,
            () = tokio::time::sleep(pause.mul_f64(0.9 + 0.2 * fastrand::f64())) => {}
            _ = modes.changed() => {}
        }
    }
}

/// True when nothing was missing.
async fn fetch_all(hub: &Hub) -> bool {
    let mut served = Served::default();
    let mut all_served = true;
    let mut complete = fetch(hub, "/version", JSON).await.is_some();
    let core = fetch(hub, "/api", JSON).await;
    let groups = fetch(hub, "/apis", JSON).await;
    complete &= core.is_some() && groups.is_some();
    // Servers older than 1.26 answer these in the legacy form, which is known already.
    complete &= fetch(hub, "/api", AGGREGATED).await.is_some();
    complete &= fetch(hub, "/apis", AGGREGATED).await.is_some();
    // Not every server has it.
    fetch(hub, "/openapi/v3", JSON).await;
    for path in versions(core.as_ref(), groups.as_ref()) {
        let list = fetch(hub, &path, JSON).await;
        complete &= list.is_some();
        match list.as_ref().and_then(|list| resources(list)) {
            Some(resources) => served.resources.extend(resources),
            None => all_served = false,
        }
    }
    // Half a picture would make what is served look gone.
    if complete && all_served && !served.resources.is_empty() {
        hub.cache.note_served(&served, Instant::now());
    }
    complete
}

/// Fetches one document and gives it to the cache. `None` when it could not be had; a refusal counts as an answer.
async fn fetch(hub: &Hub, path: &str, accept: &'static str) -> Option<Bytes> {
    let mut headers = HeaderMap::new();
    headers.insert(header::ACCEPT, HeaderValue::from_static(accept));
    headers.insert(
        header::USER_AGENT,
        HeaderValue::from_static(crate::USER_AGENT),
    );
    let request = Outgoing {
        method: Method::GET,
        uri: path.parse().ok()?,
        headers,
        body: OutgoingBody::Held(Bytes::new()),
        wait: WAIT,
        safe: true,
    };
    let (response, _) = hub.upstreams.send(&Caller::Node, request).await.ok()?;
    let status = response.status();
    if status != StatusCode::OK {
        return (!status.is_server_error() && status != StatusCode::TOO_MANY_REQUESTS)
            .then(Bytes::new);
    }
    let content_type = response
        .headers()
        .get(header::CONTENT_TYPE)
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
    Some(body)
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
