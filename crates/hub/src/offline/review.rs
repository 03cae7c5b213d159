//! Reviews without the cloud: whose a token is, what somebody may do. Answered from what the cloud said before; never seen is
//! "no", with a reason that tells why.

use super::{Offline, now, write::decode_object};
use crate::{caller::Caller, identity, query::Query};
use bytes::Bytes;
use http::request::Parts;
use serde_json::{Value, json};
use yurt_wire::{Gvr, RequestInfo, Status};

impl Offline {
    /// Whether the caller may ask about others: the node's components may (`system:node`), others by their rules.
    fn may_review(&self, caller: &Caller, info: &RequestInfo) -> Result<(), Box<Status>> {
        let permitted = *caller == Caller::Node
            || self
                .cache
                .permits(caller, "create", (&info.group, &info.resource), "", None);
        if permitted {
            return Ok(());
        }
        Err(Box::new(Status::forbidden(
            &info.group,
            &info.resource,
            "",
            &format!(
                "node {:?} is offline, and this caller is not known to be allowed to ask",
                self.node_name
            ),
        )))
    }

    /// A TokenReview.
    pub(super) fn review_token(
        &self,
        caller: &Caller,
        info: &RequestInfo,
        parts: &Parts,
        body: &Bytes,
    ) -> Result<Value, Box<Status>> {
        self.may_review(caller, info)?;
        let mut review = read(parts, body, "TokenReview")?;
        if review["spec"]["token"]
            .as_str()
            .unwrap_or_default()
            .is_empty()
        {
            return Err(Box::new(Status::bad_request(
                "token is required for TokenReview in authentication",
            )));
        }
        let mut status = self.tokens.review(&review["spec"], now());
        if let Some(error) = status["error"].as_str() {
            status["error"] = format!("node {:?} is offline: {error}", self.node_name).into();
        }
        finish(
            &mut review,
            "authentication.k8s.io/v1",
            "TokenReview",
            status,
        );
        Ok(review)
    }

    /// A SubjectAccessReview.
    pub(super) fn review_access(
        &self,
        caller: &Caller,
        info: &RequestInfo,
        parts: &Parts,
        body: &Bytes,
    ) -> Result<Value, Box<Status>> {
        self.may_review(caller, info)?;
        let mut review = read(parts, body, "SubjectAccessReview")?;
        let status = self
            .tokens
            .access(&review["spec"])
            .unwrap_or_else(|| self.denied("the cloud never allowed this through this node"));
        finish(
            &mut review,
            "authorization.k8s.io/v1",
            "SubjectAccessReview",
            status,
        );
        Ok(review)
    }

    /// A SelfSubjectAccessReview.
    pub(super) fn review_own_access(
        &self,
        caller: &Caller,
        parts: &Parts,
        body: &Bytes,
    ) -> Result<Value, Box<Status>> {
        let mut review = read(parts, body, "SelfSubjectAccessReview")?;
        let status = if self.may(caller, &review["spec"]["resourceAttributes"]) {
            json!({"allowed": true, "reason": format!("node {:?} is offline; as it was when the cloud was there", self.node_name)})
        } else {
            self.denied("this caller is not known to be allowed to do this")
        };
        finish(
            &mut review,
            "authorization.k8s.io/v1",
            "SelfSubjectAccessReview",
            status,
        );
        Ok(review)
    }

    /// A SelfSubjectReview.
    pub(super) fn review_own(
        &self,
        caller: &Caller,
        parts: &Parts,
        body: &Bytes,
    ) -> Result<Value, Box<Status>> {
        let mut review = read(parts, body, "SelfSubjectReview")?;
        let user = match caller {
            Caller::Node => json!({
                "username": format!("system:node:{}", self.node_name),
                "groups": ["system:nodes", "system:authenticated"],
            }),
            _ => identity::token(&parts.headers)
                .and_then(|token| self.tokens.user_of(&token, now()))
                .ok_or_else(|| {
                    Box::new(Status::service_unavailable(format!(
                        "node {:?} is offline and does not know the name of this caller",
                        self.node_name
                    )))
                })?,
        };
        finish(
            &mut review,
            "authentication.k8s.io/v1",
            "SelfSubjectReview",
            json!({"userInfo": user}),
        );
        Ok(review)
    }

    fn denied(&self, why: &str) -> Value {
        json!({"allowed": false, "reason": format!("node {:?} is offline: {why}", self.node_name)})
    }

    fn may(&self, caller: &Caller, wanted: &Value) -> bool {
        let text = |name: &str| wanted[name].as_str().unwrap_or_default();
        let (verb, group, resource) = (text("verb"), text("group"), text("resource"));
        let (namespace, name) = (text("namespace"), text("name"));
        if verb.is_empty() || resource.is_empty() {
            return false;
        }
        let whole = match text("subresource") {
            "" => resource.to_owned(),
            subresource => format!("{resource}/{subresource}"),
        };
        let named = (!name.is_empty()).then_some(name);
        if self
            .cache
            .permits(caller, verb, (group, &whole), namespace, named)
        {
            return true;
        }
        let version = match text("version") {
            "" | "*" => "v1",
            version => version,
        };
        let gvr = Gvr::new(group, version, resource);
        let query = match named {
            Some(name) => Query::named(gvr, namespace, name),
            None => Query::all(gvr, namespace),
        };
        whole == resource
            && matches!(verb, "get" | "list" | "watch")
            && (named.is_some() || verb != "get")
            && self.cache.may_read(caller, &query)
    }
}

/// The question; refused when the body is something else.
pub(super) fn read(parts: &Parts, body: &Bytes, kind: &str) -> Result<Value, Box<Status>> {
    let review = decode_object(parts, body)?;
    match review["kind"].as_str() {
        Some(other) if !other.is_empty() && other != kind => Err(Box::new(Status::bad_request(
            format!("the object provided is a {other}, not a {kind}"),
        ))),
        _ => Ok(review),
    }
}

fn finish(review: &mut Value, api_version: &str, kind: &str, status: Value) {
    review["apiVersion"] = api_version.into();
    review["kind"] = kind.into();
    if !review["metadata"].is_object() {
        review["metadata"] = json!({});
    }
    review["metadata"]["creationTimestamp"] = Value::Null;
    review["status"] = status;
}
