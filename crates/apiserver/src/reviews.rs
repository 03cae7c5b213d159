//! Reviews: questions about who somebody is and what they may do. Nothing is stored.

use crate::{
    authn::{Authenticator, User},
    authz::{Attributes, Authorizer, Rule},
    causes, meta,
    registry::{Registry, Reply},
    resources::Resource,
    types,
};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use yurt_wire::{
    Status,
    selector::{FieldRequirement, FieldSelector},
    status::Cause,
};

/// Answers a review; `None` when the resource is not one.
pub(crate) fn answer(
    registry: &Registry,
    authenticator: &Authenticator,
    resource: &Resource,
    namespace: &str,
    user: &User,
    review: &Value,
) -> Option<Reply<Value>> {
    let is_review = matches!(
        &*resource.kind,
        "TokenReview"
            | "SelfSubjectReview"
            | "SelfSubjectRulesReview"
            | "SelfSubjectAccessReview"
            | "SubjectAccessReview"
            | "LocalSubjectAccessReview"
    );
    if !is_review {
        return None;
    }
    let status = types::check(resource, review).and_then(|()| {
        let spec = &review["spec"];
        let causes = problems(&resource.kind, namespace, spec);
        if !causes.is_empty() {
            let (group, kind) = (&resource.group, &resource.kind);
            return Err(Box::new(Status::invalid(group, kind, "", causes)));
        }
        match &*resource.kind {
            "TokenReview" => review_token(registry, authenticator, spec),
            "SelfSubjectReview" => Ok(json!({"userInfo": user.to_json()})),
            "SelfSubjectRulesReview" => rules(&registry.authorizer, user, spec),
            "SelfSubjectAccessReview" => Ok(access(&registry.authorizer, user, spec)),
            _ => Ok(access(&registry.authorizer, &subject(spec), spec)),
        }
    });
    Some(status.map(|status| {
        let mut review = review.clone();
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

/// What is wrong with the question.
fn problems(kind: &str, namespace: &str, spec: &Value) -> Vec<Cause> {
    if !kind.ends_with("AccessReview") {
        return Vec::new();
    }
    let mut causes = Vec::new();
    let (resource, path) = (&spec["resourceAttributes"], &spec["nonResourceAttributes"]);
    if resource.is_object() && path.is_object() {
        causes.push(causes::invalid(
            "spec.nonResourceAttributes",
            path,
            "cannot be specified in combination with resourceAttributes",
        ));
    }
    if !resource.is_object() && !path.is_object() {
        causes.push(causes::invalid(
            "spec.resourceAttributes",
            path,
            "exactly one of nonResourceAttributes or resourceAttributes must be specified",
        ));
    }
    let empty = |value: &Value| match value {
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        _ => true,
    };
    if !kind.starts_with("Self") && empty(&spec["user"]) && empty(&spec["groups"]) {
        causes.push(causes::invalid(
            "spec.user",
            &"".into(),
            "at least one of user or group must be specified",
        ));
    }
    if kind == "LocalSubjectAccessReview" {
        if resource.is_object() && resource["namespace"] != *namespace {
            causes.push(causes::invalid(
                "spec.resourceAttributes.namespace",
                &resource["namespace"].as_str().unwrap_or_default().into(),
                "must match metadata.namespace",
            ));
        }
        if path.is_object() {
            causes.push(causes::invalid(
                "spec.nonResourceAttributes",
                path,
                "disallowed on this kind of request",
            ));
        }
    }
    causes
}

fn review_token(registry: &Registry, authenticator: &Authenticator, spec: &Value) -> Reply<Value> {
    let token = spec["token"].as_str().unwrap_or_default();
    if token.is_empty() {
        return Err(Box::new(Status::bad_request(
            "token is required for TokenReview in authentication",
        )));
    }
    let refused = |why: &str| Ok(json!({"user": {}, "error": why}));
    let Some((user, audiences)) =
        authenticator.token(&registry.storage, token, meta::now_seconds())
    else {
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
        return refused(&format!(
            "[invalid bearer token, token audiences {audiences:?} is invalid for the target audiences {wanted:?}]"
        ));
    }
    Ok(json!({"authenticated": true, "user": user.to_json(), "audiences": granted}))
}

/// What a user may do in a namespace.
fn rules(authorizer: &Authorizer, user: &User, spec: &Value) -> Reply<Value> {
    let namespace = spec["namespace"].as_str().unwrap_or_default();
    if namespace.is_empty() {
        return Err(Box::new(Status::bad_request("no namespace on request")));
    }
    let rights = authorizer.rights(user, namespace);
    let (urls, resources): (Vec<_>, Vec<_>) =
        rights.rules.iter().partition(|rule| !rule.urls.is_empty());
    let list = |rules: Vec<&Rule>| rules.into_iter().map(Rule::to_json).collect::<Value>();
    let mut status = json!({
        "resourceRules": list(resources),
        "nonResourceRules": list(urls),
        "incomplete": rights.incomplete.is_some(),
    });
    if let Some(why) = rights.incomplete {
        status["evaluationError"] = why.into();
    }
    Ok(status)
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
        .map(|(key, values)| (key.to_ascii_lowercase(), strings(values)))
        .collect();
    User {
        name: spec["user"].as_str().unwrap_or_default().to_owned(),
        uid: spec["uid"].as_str().unwrap_or_default().to_owned(),
        groups: strings(&spec["groups"]),
        extra,
    }
}

fn access(authorizer: &Authorizer, user: &User, spec: &Value) -> Value {
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
            fields: fields(&resource["fieldSelector"]),
        }
    } else {
        Attributes {
            verb: text(&spec["nonResourceAttributes"], "verb"),
            path: text(&spec["nonResourceAttributes"], "path"),
            ..Attributes::default()
        }
    };
    let decision = authorizer.decide(user, &attributes);
    let mut status = json!({"allowed": decision.allowed});
    if !decision.reason.is_empty() {
        status["reason"] = decision.reason.into();
    }
    status
}

/// The field selector of a question, as text or as requirements. What cannot be read restricts nothing, so that less is
/// allowed.
fn fields(selector: &Value) -> FieldSelector {
    if let Some(text) = selector["rawSelector"].as_str() {
        return FieldSelector::parse(text).unwrap_or_default();
    }
    let requirements = selector["requirements"].as_array().into_iter().flatten();
    let requirement = |requirement: &Value| {
        let values = requirement["values"].as_array()?;
        let [value] = values.as_slice() else {
            return None;
        };
        Some(FieldRequirement {
            path: requirement["key"].as_str()?.to_owned(),
            equals: match requirement["operator"].as_str()? {
                "In" => true,
                "NotIn" => false,
                _ => return None,
            },
            value: value.as_str()?.to_owned(),
        })
    };
    FieldSelector::of(requirements.filter_map(requirement).collect())
}
