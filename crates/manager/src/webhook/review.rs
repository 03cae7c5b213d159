//! `AdmissionReview`: what API servers ask, and how they are answered.

use super::fault::Fault;
use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Value, json};
use yurt_controller::fields::{items, text};

/// The versions of reviews that are spoken, best first.
pub(super) const VERSIONS: [&str; 2] = ["v1", "v1beta1"];
/// What an API server shows of our warnings; more, and longer ones, are cut.
const WARNINGS: usize = 16;
const WARNING: usize = 256;
/// The longest message of a denial, in characters: it may quote what users wrote.
const MESSAGE: usize = 4096;

/// What is done to an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    Create,
    Update,
    Delete,
}

/// Who does it.
#[derive(Clone, Debug, Default)]
pub(super) struct User {
    pub(super) name: String,
    pub(super) groups: Vec<String>,
}

/// What an API server asks.
#[derive(Clone, Debug)]
pub(super) struct Request {
    api_version: String,
    uid: String,
    pub(super) operation: Operation,
    pub(super) user: User,
    /// What the client wrote the object in, if in another version than the webhook is shown.
    pub(super) written_as: Option<String>,
    /// As it is to be; null where it is deleted.
    pub(super) object: Value,
    /// As it was; null where it is created.
    pub(super) old: Value,
}

/// Why something is not an admission review: the caller is at fault.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum NotAReview {
    #[error("apiVersion {0:?}, kind {1:?} is no AdmissionReview of admission.k8s.io/v1 or v1beta1")]
    Kind(String, String),
    #[error("request.{0}: must be {1}")]
    Field(&'static str, &'static str),
}

/// Why a request is not allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Denial {
    /// The object is wrong.
    Invalid(Vec<Fault>),
    /// It is not to be done, or not by this user.
    Forbidden(String),
    /// What had to be known could not be found out; another try may succeed.
    Unknown(String),
}

/// How a request is answered that is allowed.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Answer {
    /// What is made of the object, by mutating webhooks.
    pub(super) object: Option<Value>,
    /// What its user is told.
    pub(super) warnings: Vec<String>,
}

impl Answer {
    /// The object becomes this.
    pub(super) fn of(object: Value) -> Self {
        Self {
            object: Some(object),
            ..Self::default()
        }
    }
}

impl Request {
    /// Reads a review.
    pub(super) fn parse(mut review: Value) -> Result<Self, NotAReview> {
        let (api_version, kind) = (text(&review["apiVersion"]), text(&review["kind"]));
        let spoken = api_version
            .strip_prefix("admission.k8s.io/")
            .is_some_and(|version| VERSIONS.contains(&version));
        if !spoken || kind != "AdmissionReview" {
            return Err(NotAReview::Kind(api_version, kind));
        }
        let mut request = review["request"].take();
        let uid = text(&request["uid"]);
        if uid.is_empty() {
            return Err(NotAReview::Field("uid", "a string"));
        }
        let operation = match request["operation"].as_str() {
            Some("CREATE") => Operation::Create,
            Some("UPDATE") => Operation::Update,
            Some("DELETE") => Operation::Delete,
            _ => return Err(NotAReview::Field("operation", "CREATE, UPDATE or DELETE")),
        };
        let (object, old) = (request["object"].take(), request["oldObject"].take());
        match operation {
            Operation::Create | Operation::Update if !object["metadata"].is_object() => {
                return Err(NotAReview::Field("object", "an object with metadata"));
            }
            Operation::Update if !old["metadata"].is_object() => {
                return Err(NotAReview::Field("oldObject", "an object with metadata"));
            }
            _ => {}
        }
        let version = |kind: &Value| {
            let (group, version) = (kind["group"].as_str()?, kind["version"].as_str()?);
            Some(format!("{group}/{version}"))
        };
        let (shown, written) = (version(&request["kind"]), version(&request["requestKind"]));
        let user = &request["userInfo"];
        Ok(Self {
            api_version,
            uid,
            operation,
            user: User {
                name: text(&user["username"]),
                groups: items(&user["groups"]).map(text).collect(),
            },
            written_as: written.filter(|written| shown.as_ref() != Some(written)),
            object,
            old,
        })
    }

    /// The object that there is: the new one, or the one that is deleted.
    pub(super) fn subject(&self) -> &Value {
        if self.object.is_object() {
            &self.object
        } else {
            &self.old
        }
    }

    /// Whether the object only waits for its finalizers: nothing that it says counts any more.
    pub(super) fn is_going(&self) -> bool {
        self.operation == Operation::Update
            && self.object["metadata"]["deletionTimestamp"].is_string()
    }

    /// Answers in the version of the question.
    pub(super) fn answered(&self, outcome: &Result<Answer, Denial>) -> Value {
        let mut response = json!({"uid": self.uid});
        match outcome {
            Ok(answer) => {
                response["allowed"] = true.into();
                let changes = answer
                    .object
                    .as_ref()
                    .map(|object| json_patch::diff(&self.object, object));
                if let Some(patch) = changes.filter(|patch| !patch.0.is_empty())
                    && let Ok(patch) = serde_json::to_vec(&patch)
                {
                    response["patchType"] = "JSONPatch".into();
                    response["patch"] = STANDARD.encode(patch).into();
                }
                let warnings = answer.warnings.iter().take(WARNINGS);
                let warnings: Vec<String> = warnings
                    .map(|text| text.chars().take(WARNING).collect())
                    .collect();
                if !warnings.is_empty() {
                    response["warnings"] = warnings.into();
                }
            }
            Err(denial) => {
                response["allowed"] = false.into();
                response["status"] = denial.status(self.subject());
            }
        }
        json!({"apiVersion": self.api_version, "kind": "AdmissionReview", "response": response})
    }
}

impl Denial {
    fn status(&self, object: &Value) -> Value {
        let (code, reason, message) = match self {
            Self::Invalid(faults) => {
                let (kind, name) = (text(&object["kind"]), text(&object["metadata"]["name"]));
                let faults: Vec<String> = faults.iter().map(Fault::to_string).collect();
                let faults = faults.join("; ");
                (
                    422,
                    "Invalid",
                    format!("{kind} {name:?} is invalid: {faults}"),
                )
            }
            Self::Forbidden(why) => (403, "Forbidden", why.clone()),
            Self::Unknown(why) => (500, "InternalError", why.clone()),
        };
        let message: String = message.chars().take(MESSAGE).collect();
        json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "code": code, "reason": reason, "message": message})
    }

    /// The code that the user is told.
    pub(super) fn code(&self) -> u16 {
        match self {
            Self::Invalid(_) => 422,
            Self::Forbidden(_) => 403,
            Self::Unknown(_) => 500,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn review(version: &str, operation: &str) -> Value {
        json!({"apiVersion": format!("admission.k8s.io/{version}"), "kind": "AdmissionReview", "request": {
            "uid": "u", "operation": operation, "kind": {"group": "g", "version": "v2", "kind": "K"},
            "requestKind": {"group": "g", "version": "v1", "kind": "K"},
            "userInfo": {"username": "me", "groups": ["a", "b"]},
            "object": {"kind": "K", "metadata": {"name": "n"}, "spec": {"a": 1}}, "oldObject": {"metadata": {}, "spec": {}}}})
    }

    #[test]
    fn questions_are_answered_in_their_version() {
        for version in VERSIONS {
            let request = Request::parse(review(version, "UPDATE")).expect("a review");
            assert_eq!(request.written_as.as_deref(), Some("g/v1"));
            assert_eq!(
                (request.user.name.as_str(), request.user.groups.len()),
                ("me", 2)
            );
            let answer = request.answered(&Ok(Answer::default()));
            assert_eq!(
                answer,
                json!({"apiVersion": format!("admission.k8s.io/{version}"), "kind": "AdmissionReview",
                    "response": {"uid": "u", "allowed": true}})
            );
            let mut object = request.object.clone();
            object["spec"]["a"] = 2.into();
            let answer = request.answered(&Ok(Answer::of(object)));
            let patch = answer["response"]["patch"].as_str().expect("a patch");
            let patch: Value =
                serde_json::from_slice(&STANDARD.decode(patch).expect("base64")).expect("JSON");
            assert_eq!(
                patch,
                json!([{"op": "replace", "path": "/spec/a", "value": 2}])
            );
            let denial = Denial::Invalid(vec![Fault::new("spec.a", "too small")]);
            let status = &request.answered(&Err(denial))["response"]["status"];
            assert_eq!(status["code"], 422);
            assert_eq!(status["message"], "K \"n\" is invalid: spec.a: too small");
        }
    }

    #[test]
    fn what_is_no_review_is_told_why() {
        let mut wrong = review("v2", "UPDATE");
        assert!(matches!(
            Request::parse(wrong.take()),
            Err(NotAReview::Kind(..))
        ));
        for (field, value) in [
            ("uid", json!(1)),
            ("operation", json!("CONNECT")),
            ("object", json!([])),
            ("oldObject", Value::Null),
        ] {
            let mut wrong = review("v1", "UPDATE");
            wrong["request"][field] = value;
            let error = Request::parse(wrong).expect_err("no review");
            assert!(error.to_string().contains(field), "{error}");
        }
        assert!(Request::parse(json!([])).is_err());
        assert!(Request::parse(json!({})).is_err());
    }
}
