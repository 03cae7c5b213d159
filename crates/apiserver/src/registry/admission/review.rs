//! `admission.k8s.io` reviews: what a webhook is asked, and what its answer means. Pure.

use super::attributes::Attributes;
use crate::resources::Resource;
use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Value, json};
use yurt_wire::{Gvk, Reason, Status, status::Cause};

/// The versions of `AdmissionReview` spoken here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version {
    V1,
    V1beta1,
}

impl Version {
    pub(super) fn parse(text: &str) -> Option<Self> {
        match text {
            "v1" => Some(Self::V1),
            "v1beta1" => Some(Self::V1beta1),
            _ => None,
        }
    }
    fn api_version(self) -> &'static str {
        match self {
            Self::V1 => "admission.k8s.io/v1",
            Self::V1beta1 => "admission.k8s.io/v1beta1",
        }
    }
}

/// The resource in whose version the objects are shown, and their kind.
pub(super) struct Shown<'a> {
    pub(super) resource: &'a Resource,
    pub(super) kind: &'a Gvk,
    pub(super) object: Option<&'a Value>,
    pub(super) old: Option<&'a Value>,
}

/// The `request` of a review; policies read it too.
pub(super) fn request(attributes: &Attributes<'_>, shown: &Shown<'_>, uid: &str) -> Value {
    let target = attributes.target;
    let gvk = |kind: &Gvk| json!({"group": kind.group, "version": kind.version, "kind": kind.kind});
    let gvr = |resource: &Resource| json!({"group": resource.group, "version": resource.version, "resource": resource.plural});
    let mut request = json!({
        "uid": uid,
        "kind": gvk(shown.kind),
        "resource": gvr(shown.resource),
        "requestKind": gvk(&attributes.kind),
        "requestResource": gvr(&target.resource),
        "operation": attributes.operation.as_str(),
        "userInfo": target.user.to_json(),
        "object": shown.object,
        "oldObject": shown.old,
        "dryRun": attributes.dry_run,
        "options": attributes.options,
    });
    if !target.subresource.is_empty() {
        request["subResource"] = target.subresource.clone().into();
        request["requestSubResource"] = target.subresource.clone().into();
    }
    if !attributes.name.is_empty() {
        request["name"] = attributes.name.into();
    }
    if !attributes.namespace().is_empty() {
        request["namespace"] = attributes.namespace().into();
    }
    request
}

/// A whole review.
pub(super) fn review(version: Version, request: Value) -> Value {
    json!({"kind": "AdmissionReview", "apiVersion": version.api_version(), "request": request})
}

/// What a webhook said.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Answer {
    /// `None` when the request is allowed, otherwise the `Status` given, if any.
    pub(super) denial: Option<Option<Value>>,
    /// A JSON patch.
    pub(super) patch: Option<Value>,
    pub(super) warnings: Vec<String>,
}

/// Reads an answer; otherwise what is wrong with it, in kube-apiserver's words.
pub(super) fn answer(
    version: Version,
    uid: &str,
    mutating: bool,
    review: &Value,
) -> Result<Answer, String> {
    let response = match &review["response"] {
        Value::Null => return Err("webhook response was absent".into()),
        response => response,
    };
    let patch = response["patch"].as_str().filter(|p| !p.is_empty());
    let patch_type = response["patchType"].as_str();
    if version == Version::V1 {
        let given = response["uid"].as_str().unwrap_or_default();
        if given != uid {
            return Err(format!("expected response.uid={uid:?}, got {given:?}"));
        }
        let text = |name: &str| review[name].as_str().unwrap_or_default();
        if text("kind") != "AdmissionReview" || text("apiVersion") != version.api_version() {
            let (group, version) = yurt_wire::gvk::split_api_version(text("apiVersion"));
            return Err(format!(
                "expected webhook response of admission.k8s.io/v1, Kind=AdmissionReview, got {group}/{version}, Kind={}",
                text("kind")
            ));
        }
        match (mutating, patch, patch_type) {
            (false, Some(_), _) => {
                return Err("validating webhook may not return response.patch".into());
            }
            (false, None, Some(_)) => {
                return Err("validating webhook may not return response.patchType".into());
            }
            (true, Some(_), None) => {
                return Err("webhook returned response.patch but not response.patchType".into());
            }
            (true, None, Some(_)) => {
                return Err("webhook returned response.patchType but not response.patch".into());
            }
            (true, Some(_), Some("")) => {
                return Err("webhook returned invalid response.patchType of \"\"".into());
            }
            (true, Some(_), Some(other)) if other != "JSONPatch" => {
                return Err(format!("unsupported patch type {other:?}"));
            }
            _ => {}
        }
    }
    let allowed = response["allowed"].as_bool().unwrap_or_default();
    let patch = match patch.filter(|_| mutating && allowed) {
        None => None,
        Some(text) => Some(decode_patch(text)?),
    };
    let warnings = response["warnings"].as_array().into_iter().flatten();
    Ok(Answer {
        denial: (!allowed).then(|| {
            response
                .get("status")
                .filter(|status| status.is_object())
                .cloned()
        }),
        patch,
        warnings: warnings
            .filter_map(Value::as_str)
            .map(str::to_owned)
            .collect(),
    })
}

fn decode_patch(text: &str) -> Result<Value, String> {
    let undecodable =
        |why: String| format!("received undecodable patch in webhook response: {why}");
    let bytes = STANDARD
        .decode(text)
        .map_err(|error| undecodable(error.to_string()))?;
    let patch: Value =
        serde_json::from_slice(&bytes).map_err(|error| undecodable(error.to_string()))?;
    if patch.is_array() {
        Ok(patch)
    } else {
        Err(undecodable("not a list of operations".into()))
    }
}

/// The Status of a request that a webhook denied, from the Status it gave.
pub(super) fn denied(webhook: &str, given: Option<&Value>) -> Box<Status> {
    let text = |name: &str| given.and_then(|g| g[name].as_str()).unwrap_or_default();
    let by = format!("admission webhook {webhook:?} denied the request");
    let message = match (text("message"), text("reason")) {
        ("", "") => format!("{by} without explanation"),
        ("", reason) => format!("{by}: {reason}"),
        (message, _) => format!("{by}: {message}"),
    };
    let code = given
        .and_then(|g| g["code"].as_u64())
        .and_then(|code| u16::try_from(code).ok())
        .filter(|code| (400..600).contains(code))
        .unwrap_or(400);
    let reason = text("reason");
    let fitting = Reason::parse(reason).or_else(|| Reason::of_code(code));
    let mut status = Status::new(fitting.unwrap_or(Reason::BadRequest), message);
    status.foreign = Some((code, reason.to_owned()));
    let details = given.map_or(&Value::Null, |g| &g["details"]);
    let detail = |name: &str| details[name].as_str().unwrap_or_default().to_owned();
    status.name = detail("name");
    status.group = detail("group");
    status.kind = detail("kind");
    status.uid = detail("uid");
    status.retry_after_seconds = details["retryAfterSeconds"]
        .as_u64()
        .and_then(|seconds| u32::try_from(seconds).ok())
        .filter(|seconds| *seconds > 0);
    let causes = details["causes"].as_array().into_iter().flatten();
    status.causes = causes
        .map(|cause| {
            let part = |name: &str| cause[name].as_str().unwrap_or_default().to_owned();
            Cause {
                reason: part("reason"),
                message: part("message"),
                field: part("field"),
            }
        })
        .collect();
    Box::new(status)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reviewed(response: Value) -> Value {
        json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response})
    }

    fn patch(operations: &Value) -> Value {
        STANDARD.encode(operations.to_string()).into()
    }

    #[test]
    fn an_answer_must_fit_its_question() {
        let operations = json!([{"op": "add", "path": "/a", "value": 1}]);
        let read = |mutating, response| answer(Version::V1, "u", mutating, &reviewed(response));
        let good = json!({"uid": "u", "allowed": true, "patch": patch(&operations),
            "patchType": "JSONPatch", "warnings": ["careful"]});
        let answered = read(true, good).expect("a good answer");
        assert_eq!(answered.patch, Some(operations.clone()));
        assert_eq!(answered.warnings, ["careful"]);
        assert_eq!(answered.denial, None);
        for (mutating, response, why) in [
            (
                true,
                json!({"uid": "x", "allowed": true}),
                "expected response.uid=\"u\", got \"x\"",
            ),
            (
                true,
                json!({"uid": "u", "allowed": true, "patch": patch(&operations)}),
                "but not response.patchType",
            ),
            (
                true,
                json!({"uid": "u", "allowed": true, "patchType": "JSONPatch"}),
                "but not response.patch",
            ),
            (
                true,
                json!({"uid": "u", "allowed": true, "patch": "!", "patchType": "JSONPatch"}),
                "undecodable patch",
            ),
            (
                true,
                json!({"uid": "u", "allowed": true, "patch": patch(&json!({})), "patchType": "JSONPatch"}),
                "undecodable patch",
            ),
            (
                true,
                json!({"uid": "u", "allowed": true, "patch": patch(&operations), "patchType": "Merge"}),
                "unsupported patch type \"Merge\"",
            ),
            (
                false,
                json!({"uid": "u", "allowed": true, "patch": patch(&operations)}),
                "may not return response.patch",
            ),
        ] {
            let error = read(mutating, response).expect_err(why);
            assert!(error.contains(why), "{error}");
        }
        assert_eq!(
            answer(Version::V1, "u", true, &json!({})),
            Err("webhook response was absent".into())
        );
        let other = json!({"apiVersion": "v1", "kind": "Pod", "response": {"uid": "u"}});
        assert!(answer(Version::V1, "u", true, &other).is_err());
    }

    #[test]
    fn the_old_version_is_lenient() {
        let operations = json!([]);
        let response = json!({"response": {"allowed": true, "patch": patch(&operations)}});
        let answered = answer(Version::V1beta1, "u", true, &response).expect("a good answer");
        assert_eq!(answered.patch, Some(operations));
    }

    #[test]
    fn denials_keep_code_reason_and_message() {
        let plain = denied("a.b.c", None);
        assert_eq!(plain.code(), 400);
        assert_eq!(
            plain.message,
            "admission webhook \"a.b.c\" denied the request without explanation"
        );
        let given = json!({"code": 403, "reason": "Forbidden", "message": "no"});
        let given = denied("a.b.c", Some(&given));
        assert_eq!((given.code(), given.reason), (403, Reason::Forbidden));
        assert_eq!(
            given.message,
            "admission webhook \"a.b.c\" denied the request: no"
        );
        let odd = json!({"code": 200, "reason": "the pod is ugly"});
        let odd = denied("a.b.c", Some(&odd));
        assert_eq!(odd.code(), 400);
        assert_eq!(odd.to_json()["reason"], "the pod is ugly");
        assert!(odd.message.ends_with(": the pod is ugly"));
    }
}
