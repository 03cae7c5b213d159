//! Reviews: questions about who somebody is and what they may do. Nothing is stored.

use crate::{
    authn::{Authenticator, User},
    authz::{Attributes, decide},
    meta,
    registry::{Registry, Reply},
    resources::Resource,
    subresources::token,
    types,
};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use yurt_wire::{Reason, Status};

/// Answers a review; `None` when the resource is not one.
pub(crate) fn answer(
    registry: &Registry,
    authenticator: &Authenticator,
    resource: &Resource,
    namespace: &str,
    user: &User,
    mut review: Value,
) -> Option<Reply<Value>> {
    let status = match &*resource.kind {
        "TokenReview" => types::check(resource, &review)
            .map(|()| review_token(registry, authenticator, &review["spec"])),
        "SelfSubjectReview" => Ok(json!({"userInfo": user.to_json()})),
        "SelfSubjectRulesReview" => types::check(resource, &review).map(|()| rules(user)),
        "SelfSubjectAccessReview" => {
            types::check(resource, &review).map(|()| access(user, &review["spec"]))
        }
        "SubjectAccessReview" | "LocalSubjectAccessReview" => types::check(resource, &review)
            .and_then(|()| {
                if resource.namespaced
                    && review["spec"]["resourceAttributes"]["namespace"] != *namespace
                {
                    return Err(Box::new(Status::new(
                        Reason::BadRequest,
                        "spec.resourceAttributes.namespace must match the namespace of the request",
                    )));
                }
                Ok(access(&subject(&review["spec"]), &review["spec"]))
            }),
        _ => return None,
    };
    Some(status.map(|status| {
        review["apiVersion"] = resource.api_version().into();
        review["kind"] = resource.kind.clone().into();
        review["metadata"]["creationTimestamp"] = Value::Null;
        if resource.kind == "SelfSubjectReview" {
            review["metadata"]["creationTimestamp"] = meta::now().into();
        }
        review["status"] = status;
        review
    }))
}

fn review_token(registry: &Registry, authenticator: &Authenticator, spec: &Value) -> Value {
    let token = spec["token"].as_str().unwrap_or_default();
    let found = authenticator.token(token, meta::now_seconds(), |claims| {
        token::still_bound(registry, claims)
    });
    let refused = |why: &str| json!({"user": {}, "error": why});
    let Some((user, audiences)) = found else {
        return refused("invalid bearer token");
    };
    let wanted: Vec<&str> = spec["audiences"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    let own = [authenticator.issuer().audience()];
    let wanted = if wanted.is_empty() { &own[..] } else { &wanted };
    let granted: Vec<&str> = if audiences.is_empty() {
        wanted.to_vec()
    } else {
        let has = |a: &&&str| audiences.iter().any(|b| b == **a);
        wanted.iter().filter(has).copied().collect()
    };
    if granted.is_empty() {
        return refused("token audiences do not match");
    }
    json!({"authenticated": true, "user": user.to_json(), "audiences": granted})
}

fn rules(user: &User) -> Value {
    if user.is_anonymous() {
        return json!({"resourceRules": [], "incomplete": false, "nonResourceRules": [
            {"verbs": ["get"], "nonResourceURLs": ["/healthz", "/livez", "/readyz", "/version", "/api", "/apis", "/openapi"]}]});
    }
    json!({
        "resourceRules": [{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}],
        "nonResourceRules": [{"verbs": ["*"], "nonResourceURLs": ["*"]}],
        "incomplete": false,
    })
}

fn subject(spec: &Value) -> User {
    let strings = |value: &Value| -> Vec<String> {
        let list = value.as_array().into_iter().flatten();
        list.filter_map(|g| g.as_str().map(str::to_owned)).collect()
    };
    let extra: BTreeMap<String, Vec<String>> = spec["extra"]
        .as_object()
        .into_iter()
        .flatten()
        .map(|(key, values)| (key.clone(), strings(values)))
        .collect();
    User {
        name: spec["user"].as_str().unwrap_or_default().to_owned(),
        uid: spec["uid"].as_str().unwrap_or_default().to_owned(),
        groups: strings(&spec["groups"]),
        extra,
    }
}

fn access(user: &User, spec: &Value) -> Value {
    let text = |value: &Value, field: &str| value[field].as_str().unwrap_or_default().to_owned();
    let resource = &spec["resourceAttributes"];
    let attributes = if resource.is_object() {
        Attributes {
            verb: text(resource, "verb"),
            group: text(resource, "group"),
            resource: text(resource, "resource"),
            subresource: text(resource, "subresource"),
            namespace: text(resource, "namespace"),
            name: text(resource, "name"),
            path: String::new(),
        }
    } else {
        Attributes {
            verb: text(&spec["nonResourceAttributes"], "verb"),
            path: text(&spec["nonResourceAttributes"], "path"),
            ..Attributes::default()
        }
    };
    let decision = decide(user, &attributes);
    let mut status = json!({"allowed": decision.allowed});
    if !decision.reason.is_empty() {
        status["reason"] = decision.reason.into();
    }
    status
}
