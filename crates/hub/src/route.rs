//! Who answers a request, and what its answer teaches: pure decisions over what is known of the request and of the link.

use crate::{query::Query, tee::Subject, tokens::question::Question};
use http::Method;
use yurt_wire::{
    Gvr, RequestInfo, Verb,
    media::{Representation, Shape},
    request::ListOptions,
};

/// Whether the cloud is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// At least one API server answers (or nothing is known yet).
    Online,
    /// None answers, or what was written meanwhile is not yet brought to it.
    Offline,
}

impl Mode {
    /// Lower case, for `/v1/status` and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Online => "online",
            Self::Offline => "offline",
        }
    }
}

/// What the decision depends on.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// The request.
    pub info: &'a RequestInfo,
    /// The link.
    pub mode: Mode,
    /// The client wants another protocol (exec, attach, port-forward).
    pub upgrade: bool,
    /// The client acts as somebody else.
    pub impersonates: bool,
    /// It is a write that the node keeps and brings to the cloud later, when the cloud is away.
    pub kept: bool,
    /// Writes of offline times wait for the cloud.
    pub journal_pending: bool,
    /// It is about the lease that the hub renews for the kubelet.
    pub heartbeat: bool,
    /// It lists or watches what is shared within the pool, in a way that can be answered out of that.
    pub shared: bool,
}

/// Who answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// The cloud; when it does not, the node if `fallback`.
    Cloud {
        /// Whether the node may answer instead.
        fallback: bool,
    },
    /// A watch: the hub's own stream, fed by the cloud or by the node.
    Relay,
    /// What is shared within the pool; where that is not ready, or the caller may not be allowed to read it, as without.
    Shared,
    /// The cloud, by another protocol.
    Upgrade,
    /// The node.
    Local,
    /// The node, whether the cloud is there or not.
    Heartbeat,
    /// Nobody: only the cloud could.
    Unavailable,
}

/// Decides who answers.
pub fn decide(facts: Facts<'_>) -> Way {
    let offline = facts.mode == Mode::Offline;
    if facts.upgrade {
        return if offline {
            Way::Unavailable
        } else {
            Way::Upgrade
        };
    }
    if facts.heartbeat && !facts.impersonates {
        return Way::Heartbeat;
    }
    // The node does not know what that somebody may read.
    if facts.impersonates {
        return if offline {
            Way::Unavailable
        } else {
            Way::Cloud { fallback: false }
        };
    }
    if is_stream(facts.info) {
        return if offline {
            Way::Unavailable
        } else {
            Way::Cloud { fallback: false }
        };
    }
    if facts.shared {
        return Way::Shared;
    }
    if facts.info.verb == Verb::Watch && facts.info.is_resource {
        return Way::Relay;
    }
    if offline {
        return Way::Local;
    }
    // A younger write must not overtake an older one.
    if facts.kept && facts.journal_pending {
        return Way::Local;
    }
    Way::Cloud {
        fallback: facts.kept
            || matches!(facts.info.verb, Verb::Get | Verb::List)
            || Question::of(facts.info).is_some(),
    }
}

/// Decides who answers where the node remembers nothing: the cloud, or nobody.
pub fn pass(mode: Mode, upgrade: bool) -> Way {
    match (mode, upgrade) {
        (Mode::Offline, _) => Way::Unavailable,
        (Mode::Online, true) => Way::Upgrade,
        (Mode::Online, false) => Way::Cloud { fallback: false },
    }
}

/// Whether a list or watch can be answered out of what is shared within the pool (`scope`): a collection, in any representation. Not a
/// page of a list that was begun elsewhere, nor a revision of the past, but for other nodes, which have nobody else to ask.
pub fn is_shareable(
    scope: &[Gvr],
    method: &Method,
    info: &RequestInfo,
    options: &ListOptions,
    peer: bool,
) -> bool {
    let continues = !options.continue_token.is_empty() || options.resource_version_match == "Exact";
    *method == Method::GET
        && info.is_resource
        && matches!(info.verb, Verb::List | Verb::Watch)
        && info.subresource.is_empty()
        // Neither one object, nor `/api/v1/watch/...`, long deprecated.
        && info.parts.len() == 1
        && !info.path.contains("/watch/")
        && scope.contains(&info.gvr())
        && (peer || !continues)
}

/// Whether a write that the node would keep replaces the whole status that an older write of the object left waiting.
pub fn replaces_status(info: &RequestInfo) -> bool {
    info.subresource == "status" && matches!(info.verb, Verb::Update | Verb::Patch)
}

/// Whether the answer is a stream of something else than objects, made by a kubelet or a backend.
fn is_stream(info: &RequestInfo) -> bool {
    info.is_resource
        && matches!(
            info.subresource.as_str(),
            "log" | "exec" | "attach" | "portforward" | "proxy"
        )
}

fn dry_run(info: &RequestInfo) -> bool {
    yurt_wire::request::query_pairs(&info.query)
        .iter()
        .any(|(name, _)| name == "dryRun")
}

/// Resources whose objects mean nothing to anybody but the one who asks, once.
fn is_ephemeral(info: &RequestInfo) -> bool {
    matches!(
        (info.group.as_str(), info.resource.as_str()),
        ("certificates.k8s.io", "certificatesigningrequests")
            | ("authorization.k8s.io", _)
            | ("authentication.k8s.io", _)
    ) || info.resource == "componentstatuses"
}

/// Whether objects of the request can be cached at all, whatever their representation.
pub fn is_cacheable(info: &RequestInfo, impersonates: bool) -> bool {
    info.is_resource
        && !impersonates
        && !is_ephemeral(info)
        && matches!(info.subresource.as_str(), "" | "status")
        && !dry_run(info)
        // `/api/v1/watch/...`, long deprecated: the query is in the path.
        && !info.path.contains("/watch/")
}

/// What a successful answer (2xx) teaches. Watches are the relay's.
pub fn teaches(
    info: &RequestInfo,
    options: &ListOptions,
    shape: Option<&Representation>,
    impersonates: bool,
) -> Option<Subject> {
    if !is_cacheable(info, impersonates) || shape.is_none_or(|r| r.shape != Shape::Full) {
        return None;
    }
    match info.verb {
        Verb::Get | Verb::Create | Verb::Update | Verb::Patch => Some(Subject::Object(info.gvr())),
        Verb::List => Some(Subject::List {
            query: Query::of_request(info, options),
            continued: options.continue_token.clone(),
        }),
        Verb::Delete if info.subresource.is_empty() && !info.name.is_empty() => Some(absence(info)),
        _ => None,
    }
}

/// What a 404 teaches.
pub fn teaches_not_found(info: &RequestInfo, impersonates: bool) -> Option<Subject> {
    let named = info.verb == Verb::Get && !info.name.is_empty() && info.subresource.is_empty();
    (named && is_cacheable(info, impersonates)).then(|| absence(info))
}

fn absence(info: &RequestInfo) -> Subject {
    Subject::Absence {
        gvr: info.gvr(),
        namespace: info.namespace.clone(),
        name: info.name.clone(),
    }
}

/// Whether a non-resource path is a document that every caller sees alike and that clients need to talk to the API at all:
/// discovery, OpenAPI, `/version`.
pub fn is_document(method: &Method, path: &str) -> bool {
    if method != Method::GET {
        return false;
    }
    let path = path.trim_end_matches('/');
    let mut parts = path.split('/').skip(1);
    match (parts.next(), parts.next(), parts.next(), parts.next()) {
        (Some("version"), None, ..) => true,
        (Some("api"), version, None, _) => version.is_none_or(|v| v.starts_with('v')),
        (Some("apis"), _, _, None) => true,
        (Some("openapi"), Some("v2" | "v3"), ..) => true,
        _ => false,
    }
}

/// Whether a read is in a form that cannot be cached while the objects behind it can: then they are fetched beside it.
pub fn is_view(info: &RequestInfo, shape: Option<&Representation>, impersonates: bool) -> bool {
    matches!(info.verb, Verb::Get | Verb::List | Verb::Watch)
        && info.subresource.is_empty()
        && is_cacheable(info, impersonates)
        && shape.is_some_and(|r| r.shape != Shape::Full)
}

#[cfg(test)]
mod tests {
    use super::*;
    use yurt_wire::media::negotiate;

    fn info(method: &str, target: &str) -> RequestInfo {
        let (path, query) = target
            .split_once('?')
            .map_or((target, None), |(p, q)| (p, Some(q)));
        RequestInfo::parse(&Method::from_bytes(method.as_bytes()).unwrap(), path, query)
    }

    fn way(method: &str, target: &str, mode: Mode, kept: bool, pending: bool) -> Way {
        decide(Facts {
            info: &info(method, target),
            mode,
            upgrade: false,
            impersonates: false,
            kept,
            journal_pending: pending,
            heartbeat: false,
            shared: false,
        })
    }

    const POD: &str = "/api/v1/namespaces/a/pods/b";

    #[test]
    fn a_status_write_replaces_a_status() {
        let status = format!("{POD}/status");
        assert!(replaces_status(&info("PUT", &status)));
        assert!(replaces_status(&info("PATCH", &status)));
        assert!(!replaces_status(&info("GET", &status)));
        assert!(!replaces_status(&info("PATCH", POD)));
        assert!(!replaces_status(&info(
            "PUT",
            &format!("{POD}/ephemeralcontainers")
        )));
    }

    #[test]
    fn who_answers() {
        use Mode::{Offline, Online};
        let cases = [
            ("GET", POD, Way::Cloud { fallback: true }, Way::Local),
            (
                "GET",
                "/api/v1/pods",
                Way::Cloud { fallback: true },
                Way::Local,
            ),
            ("GET", "/api/v1/pods?watch=1", Way::Relay, Way::Relay),
            ("GET", "/version", Way::Cloud { fallback: true }, Way::Local),
            (
                "POST",
                "/api/v1/namespaces/a/pods",
                Way::Cloud { fallback: false },
                Way::Local,
            ),
            ("DELETE", POD, Way::Cloud { fallback: false }, Way::Local),
            (
                "POST",
                "/api/v1/namespaces/a/serviceaccounts/b/token",
                Way::Cloud { fallback: true },
                Way::Local,
            ),
            (
                "GET",
                "/api/v1/namespaces/a/pods/b/log?follow=true",
                Way::Cloud { fallback: false },
                Way::Unavailable,
            ),
            (
                "GET",
                "/api/v1/namespaces/a/services/b/proxy/x",
                Way::Cloud { fallback: false },
                Way::Unavailable,
            ),
        ];
        for (method, target, online, offline) in cases {
            assert_eq!(
                way(method, target, Online, false, false),
                online,
                "{method} {target} online"
            );
            assert_eq!(
                way(method, target, Offline, false, false),
                offline,
                "{method} {target} offline"
            );
        }
    }

    #[test]
    fn younger_writes_do_not_overtake() {
        let lease = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/n";
        assert_eq!(way("PUT", lease, Mode::Online, true, true), Way::Local);
        assert_eq!(
            way("PUT", lease, Mode::Online, true, false),
            Way::Cloud { fallback: true }
        );
        assert_eq!(
            way("GET", lease, Mode::Online, false, true),
            Way::Cloud { fallback: true }
        );
    }

    #[test]
    fn heartbeats_never_wait_for_the_cloud() {
        let lease = info(
            "PUT",
            "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/n",
        );
        for (mode, journal_pending) in [
            (Mode::Online, false),
            (Mode::Online, true),
            (Mode::Offline, true),
        ] {
            let facts = Facts {
                info: &lease,
                mode,
                upgrade: false,
                impersonates: false,
                kept: true,
                journal_pending,
                heartbeat: true,
                shared: false,
            };
            assert_eq!(decide(facts), Way::Heartbeat);
            let facts = Facts {
                impersonates: true,
                ..facts
            };
            assert_ne!(decide(facts), Way::Heartbeat);
        }
    }

    #[test]
    fn nobody_else_is_answered_for() {
        let info = info("GET", POD);
        let facts = Facts {
            info: &info,
            mode: Mode::Offline,
            upgrade: false,
            impersonates: true,
            kept: false,
            journal_pending: false,
            heartbeat: false,
            shared: true,
        };
        assert_eq!(decide(facts), Way::Unavailable);
        let facts = Facts {
            mode: Mode::Online,
            ..facts
        };
        assert_eq!(decide(facts), Way::Cloud { fallback: false });
        assert!(!is_cacheable(&info, true));
    }

    fn subject(method: &str, target: &str, accept: &str) -> Option<Subject> {
        let info = info(method, target);
        let options = info.list_options().unwrap();
        teaches(
            &info,
            &options,
            negotiate(Some(accept), true).as_ref(),
            false,
        )
    }

    #[test]
    fn what_answers_teach() {
        let json = "application/json";
        let table = "application/json;as=Table;v=v1;g=meta.k8s.io";
        assert!(matches!(
            subject("GET", POD, json),
            Some(Subject::Object(_))
        ));
        assert!(matches!(
            subject("PATCH", &format!("{POD}/status"), json),
            Some(Subject::Object(_))
        ));
        assert!(matches!(
            subject("DELETE", POD, json),
            Some(Subject::Absence { .. })
        ));
        let Some(Subject::List { query, continued }) = subject(
            "GET",
            "/api/v1/namespaces/a/pods?labelSelector=x%3Dy&continue=t",
            json,
        ) else {
            panic!()
        };
        assert_eq!(
            (query.namespace.as_str(), query.labels.to_string().as_str()),
            ("a", "x=y")
        );
        assert_eq!(continued, "t");
        for (method, target, accept) in [
            ("GET", POD, table),
            ("GET", "/api/v1/pods", table),
            ("GET", &format!("{POD}/log"), json),
            ("PUT", &format!("{POD}?dryRun=All"), json),
            ("POST", "/api/v1/namespaces/a/serviceaccounts/d/token", json),
            ("POST", "/apis/authentication.k8s.io/v1/tokenreviews", json),
            (
                "POST",
                "/apis/authorization.k8s.io/v1/subjectaccessreviews",
                json,
            ),
            (
                "GET",
                "/apis/certificates.k8s.io/v1/certificatesigningrequests/x",
                json,
            ),
            ("DELETE", "/api/v1/namespaces/a/pods", json),
            ("GET", "/version", json),
        ] {
            assert_eq!(
                subject(method, target, accept),
                None,
                "{method} {target} {accept}"
            );
        }
        let view = |target: &str, accept| {
            is_view(
                &info("GET", target),
                negotiate(Some(accept), true).as_ref(),
                false,
            )
        };
        assert!(view("/api/v1/pods", table));
        assert!(view(
            POD,
            "application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io"
        ));
        assert!(!view(POD, json));
    }

    #[test]
    fn documents() {
        for path in [
            "/version",
            "/version/",
            "/api",
            "/api/v1",
            "/apis",
            "/apis/apps",
            "/apis/apps/v1",
            "/openapi/v2",
            "/openapi/v3",
            "/openapi/v3/apis/apps/v1",
        ] {
            assert!(is_document(&Method::GET, path), "{path}");
        }
        for path in [
            "/",
            "/healthz",
            "/metrics",
            "/api/v1/pods",
            "/apis/apps/v1/deployments",
            "/logs",
        ] {
            assert!(!is_document(&Method::GET, path), "{path}");
        }
        assert!(!is_document(&Method::POST, "/version"));
    }
}
