//! Who may use a kubelet's port: client certificates of the cluster's CA and tokens that the API server knows, allowed by the API
//! server what they ask for (`nodes/proxy` and its kin). Nobody without credentials.

use super::{super::api::Api, Refusal};
use http::{Method, Request, StatusCode, header};
use serde_json::{Value, json};
use yurt_transport::Peer;

const MASTERS: &str = "system:masters";
const REVIEWS: &str = "/apis/authentication.k8s.io/v1/tokenreviews";
const ACCESS: &str = "/apis/authorization.k8s.io/v1/subjectaccessreviews";

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Caller {
    user: String,
    uid: String,
    groups: Vec<String>,
}

/// 401 or 403 unless the caller may.
pub(super) async fn check<B>(api: &Api, node: &str, request: &Request<B>) -> Result<(), Refusal> {
    let caller = authenticate(api, request).await?;
    // The API server would say the same, and says it also while it cannot be asked.
    if caller.groups.iter().any(|group| group == MASTERS) {
        return Ok(());
    }
    let verb = verb(request.method());
    let subresource = subresource(request.uri().path());
    let review = json!({
        "apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "metadata": {},
        "spec": {
            "user": caller.user, "uid": caller.uid, "groups": caller.groups,
            "resourceAttributes": {
                "verb": verb, "version": "v1", "resource": "nodes", "subresource": subresource, "name": node,
            },
        },
    });
    let answer = api.create(ACCESS, &review).await.map_err(unreachable)?;
    if answer["status"]["allowed"] == true {
        return Ok(());
    }
    let user = &caller.user;
    Err(Refusal(
        StatusCode::FORBIDDEN,
        format!(
            "Forbidden (user={user}, verb={verb}, resource=nodes, subresource(s)=[{subresource}])\n"
        ),
    ))
}

async fn authenticate<B>(api: &Api, request: &Request<B>) -> Result<Caller, Refusal> {
    let nobody = || Refusal(StatusCode::UNAUTHORIZED, "Unauthorized".into());
    let peer = request.extensions().get::<Peer>();
    if let Some(certificate) = peer.and_then(|peer| peer.certificate.as_ref()) {
        let identity = yurt_pki::identity_of(certificate).map_err(|_| nobody())?;
        return Ok(Caller {
            user: identity.user,
            uid: String::new(),
            groups: identity.groups,
        });
    }
    let token = request
        .headers()
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "))
        .ok_or_else(nobody)?;
    let review = json!({
        "apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "metadata": {},
        "spec": {"token": token},
    });
    let answer = api.create(REVIEWS, &review).await.map_err(unreachable)?;
    reviewed(&answer["status"]).ok_or_else(nobody)
}

fn unreachable(error: super::super::api::CallError) -> Refusal {
    let why = format!("the API server could not be asked: {error}");
    Refusal(StatusCode::INTERNAL_SERVER_ERROR, why)
}

/// Whom a TokenReview's status names.
fn reviewed(status: &Value) -> Option<Caller> {
    if status["authenticated"] != true {
        return None;
    }
    let user = &status["user"];
    let groups = user["groups"].as_array().into_iter().flatten();
    Some(Caller {
        user: user["username"].as_str()?.to_owned(),
        uid: user["uid"].as_str().unwrap_or_default().to_owned(),
        groups: groups
            .filter_map(Value::as_str)
            .map(str::to_owned)
            .collect(),
    })
}

fn verb(method: &Method) -> &'static str {
    match *method {
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        _ => "get",
    }
}

/// As a kubelet names what a path is about.
fn subresource(path: &str) -> &'static str {
    match path.trim_start_matches('/').split('/').next() {
        Some("stats") => "stats",
        Some("metrics") => "metrics",
        Some("logs") => "log",
        _ => "proxy",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_subresources_of_the_node() {
        for (path, expected) in [
            ("/stats/summary", "stats"),
            ("/metrics/resource", "metrics"),
            ("/metricsx", "proxy"),
            ("/exec/a/b/c", "proxy"),
        ] {
            assert_eq!(subresource(path), expected, "{path}");
        }
    }

    #[test]
    fn a_token_is_who_the_server_says() {
        let status = json!({"authenticated": true,
            "user": {"username": "u", "uid": "1", "groups": ["g"]}});
        let caller = reviewed(&status).unwrap();
        assert_eq!((caller.user.as_str(), caller.groups.len()), ("u", 1));
        assert_eq!(reviewed(&json!({"user": {"username": "u"}})), None);
    }
}
