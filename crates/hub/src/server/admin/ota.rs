//! Upgrades that the node's owner decides about, by REST: OpenYurt's three paths, and those of the jobs that came of them.

use super::{Admin, json, refuse};
use crate::{
    ota::{
        access::{self, Asker, Denied, Right},
        asked::{self, Asked, Refusal},
        job::Job,
    },
    proxy::Hub,
};
use http::{HeaderMap, Method, Response, StatusCode, Uri, header};
use std::sync::Arc;
use yurt_transport::{Body, Peer};

const PODS: &str = "/pods";
const GROUP: &str = "/openyurt.io/v1/";

/// What is served here, for those who look for it.
pub(super) const PATHS: [&str; 6] = [
    PODS,
    "/openyurt.io/v1/namespaces/NAMESPACE/pods/POD/upgrade",
    "/openyurt.io/v1/namespaces/NAMESPACE/pods/POD/imagepull",
    "/openyurt.io/v1/upgrades",
    "/openyurt.io/v1/upgrades/ID",
    "/openyurt.io/v1/upgrades/ID/confirm",
];

/// What a path names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Route<'a> {
    Pods,
    Upgrade(&'a str, &'a str),
    ImagePull(&'a str, &'a str),
    Jobs,
    Job(&'a str),
    Confirm(&'a str),
}

/// Whether a path is one about upgrades, on whichever listener.
pub(crate) fn is_path(path: &str) -> bool {
    path == PODS || path.starts_with(GROUP)
}

/// Whether a name is one that Kubernetes gives: nothing else gets into a path of the API server.
fn is_name(name: &str, longest: usize) -> bool {
    let edge = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = name.as_bytes();
    name.len() <= longest
        && edge(bytes.first())
        && edge(bytes.last())
        && bytes
            .iter()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'.'))
        && !name.contains("..")
}

fn route(path: &str) -> Result<Route<'_>, &'static str> {
    if path == PODS {
        return Ok(Route::Pods);
    }
    let rest = path.strip_prefix(GROUP).unwrap_or_default();
    let parts: Vec<&str> = rest.split('/').take(6).collect();
    let named = |namespace, pod| is_name(namespace, 63) && is_name(pod, 253);
    match parts[..] {
        [
            "namespaces",
            namespace,
            "pods",
            pod,
            what @ ("upgrade" | "imagepull"),
        ] => match (named(namespace, pod), what) {
            (false, _) => Err("neither namespaces nor pods have such names"),
            (true, "upgrade") => Ok(Route::Upgrade(namespace, pod)),
            (true, _) => Ok(Route::ImagePull(namespace, pod)),
        },
        ["upgrades"] => Ok(Route::Jobs),
        ["upgrades", id] => Ok(Route::Job(id)),
        ["upgrades", id, "confirm"] => Ok(Route::Confirm(id)),
        _ => Err(""),
    }
}

impl Route<'_> {
    fn methods(self) -> &'static [Method] {
        match self {
            Self::Pods | Self::Jobs => &[Method::GET],
            Self::Upgrade(..) | Self::ImagePull(..) | Self::Confirm(_) => &[Method::POST],
            Self::Job(_) => &[Method::GET, Method::DELETE],
        }
    }
}

/// A refusal, counted.
fn denied(hub: &Hub, denied: &Denied) -> Response<Body> {
    hub.metrics.ota().refused(denied.label());
    tracing::info!(why = %denied, "a request about upgrades is refused");
    let mut response = refuse(denied.status(), format!("{denied}\n"));
    if denied.status() == StatusCode::UNAUTHORIZED {
        let challenge = header::HeaderValue::from_static("Bearer realm=\"yurthub-ota\"");
        response
            .headers_mut()
            .insert(header::WWW_AUTHENTICATE, challenge);
    }
    response
}

fn refused(hub: &Hub, refusal: &Refusal) -> Response<Body> {
    hub.metrics.ota().refused(refusal.label());
    tracing::info!(why = %refusal, "a request about upgrades is refused");
    // OpenYurt's own sentences without more.
    refuse(refusal.status(), refusal.to_string())
}

fn shown(job: &Job, status: StatusCode) -> Response<Body> {
    let mut response = json(&job.shown());
    *response.status_mut() = status;
    response
}

/// Whether the caller wants to wait for the cloud: unless it says `queue=false`.
fn queues(uri: &Uri) -> bool {
    let query = uri.query().unwrap_or_default();
    !query
        .split('&')
        .any(|pair| matches!(pair, "queue=false" | "queue=0"))
}

impl Admin {
    /// Answers a request about upgrades.
    pub(super) async fn ota(
        &self,
        method: &Method,
        uri: &Uri,
        headers: &HeaderMap,
        peer: Option<&Peer>,
    ) -> Response<Body> {
        let hub = &self.hub;
        let route = match route(uri.path()) {
            Ok(route) => route,
            Err("") => return super::unknown(),
            Err(why) => return refuse(StatusCode::BAD_REQUEST, format!("{why}\n")),
        };
        if !route.methods().contains(method) {
            return super::only(route.methods());
        }
        let mut asker = match access::authenticate(hub, peer, headers).await {
            Ok(asker) => asker,
            Err(why) => return denied(hub, &why),
        };
        let job = match route {
            Route::Job(id) | Route::Confirm(id) => hub.ota.get(id),
            _ => None,
        };
        let right = match (route, &job) {
            (Route::Upgrade(namespace, pod) | Route::ImagePull(namespace, pod), _) => {
                Right::Change { namespace, pod }
            }
            (Route::Job(_), Some(job)) if method == Method::DELETE => Right::Change {
                namespace: &job.namespace,
                pod: &job.pod,
            },
            (Route::Confirm(_), _) => Right::Confirm,
            _ => Right::See,
        };
        if let Err(why) = access::authorize(hub, &mut asker, right).await {
            return denied(hub, &why);
        }
        match serve(hub, route, method, uri, &asker).await {
            Ok(response) => response,
            Err(refusal) => refused(hub, &refusal),
        }
    }
}

async fn serve(
    hub: &Arc<Hub>,
    route: Route<'_>,
    method: &Method,
    uri: &Uri,
    asker: &Asker,
) -> Result<Response<Body>, Refusal> {
    Ok(match route {
        Route::Pods => json(&asked::pods(hub).await?),
        Route::Upgrade(namespace, pod) => {
            match asked::upgrade(hub, asker, (namespace, pod), queues(uri)).await? {
                Asked::Begun => {
                    let text = format!("Start updating pod {namespace}/{pod}");
                    refuse(StatusCode::OK, text)
                }
                Asked::Kept(job) => shown(&job, StatusCode::ACCEPTED),
            }
        }
        Route::ImagePull(namespace, pod) => {
            asked::pull(hub, namespace, pod).await?;
            let text = format!("Image pre-pull requested for pod {namespace}/{pod}");
            refuse(StatusCode::OK, text)
        }
        Route::Jobs => json(&asked::list(hub)),
        Route::Job(id) if method == Method::DELETE => {
            shown(&asked::cancel(hub, id, asker)?, StatusCode::OK)
        }
        Route::Job(id) => shown(&asked::known(hub, id)?, StatusCode::OK),
        Route::Confirm(id) => shown(&asked::confirm(hub, id)?, StatusCode::OK),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn paths_name_what_they_name() {
        let upgrade = "/openyurt.io/v1/namespaces/kube-system/pods/proxy-x1.2/upgrade";
        assert_eq!(
            route(upgrade),
            Ok(Route::Upgrade("kube-system", "proxy-x1.2"))
        );
        let pull = "/openyurt.io/v1/namespaces/d/pods/p/imagepull";
        assert_eq!(route(pull), Ok(Route::ImagePull("d", "p")));
        assert_eq!(route("/pods"), Ok(Route::Pods));
        assert_eq!(route("/openyurt.io/v1/upgrades/ab"), Ok(Route::Job("ab")));
        assert_eq!(
            route("/openyurt.io/v1/upgrades/ab/confirm"),
            Ok(Route::Confirm("ab"))
        );
        for path in PATHS {
            let path = path.replace("NAMESPACE", "d").replace("POD", "p");
            assert!(is_path(&path) && route(&path).is_ok(), "{path}");
        }
        for path in [
            "/openyurt.io/v1/",
            "/openyurt.io/v1/upgrades/a/b",
            "/openyurt.io/v1/namespaces/d/pods/p/delete",
        ] {
            assert_eq!(route(path), Err(""), "{path}");
        }
        for name in ["..", "%2e%2e", "A", "a_b", "-a", "", "a..b", "a?b"] {
            let path = format!("/openyurt.io/v1/namespaces/{name}/pods/p/upgrade");
            assert!(route(&path).is_err(), "{path}");
        }
        assert!(!is_path("/podsx") && !is_path("/api/v1/pods") && !is_path("/pods/"));
    }

    #[test]
    fn who_does_not_want_to_wait_says_so() {
        assert!(queues(&"/a".parse().unwrap()) && queues(&"/a?queue=true".parse().unwrap()));
        assert!(!queues(&"/a?x=1&queue=false".parse().unwrap()));
    }

    proptest! {
        /// Whatever a path says, the names in it are plain.
        #[test]
        fn any_path_gives_plain_names(rest in "[ -~]{0,60}") {
            if let Ok(Route::Upgrade(namespace, pod) | Route::ImagePull(namespace, pod)) = route(&format!("{GROUP}{rest}")) {
                prop_assert!(!namespace.contains(['/', '%', '?', '#']) && !pod.contains(['/', '%', '?', '#']));
            }
        }
    }
}
