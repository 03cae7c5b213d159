//! `ConversionReview`: what the API server asks the webhook.

use super::{ConversionError, to_version};
use serde_json::{Value, json};

/// Where the webhook is served.
pub const PATH: &str = "/convert";
/// The versions of reviews that are spoken, best first. v1beta1 is what definitions of OpenYurt make the API server offer.
pub const REVIEW_VERSIONS: &[&str] = &["v1", "v1beta1"];
/// Objects in one review. An API server sends a whole list in one; this is more than it keeps of any kind here.
pub const MAX_OBJECTS: usize = 50_000;

/// Why a request is no review: the caller is at fault, another try gives the same. To be answered with 400.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum ReviewError {
    #[error(
        "apiVersion {0:?}, kind {1:?} is no ConversionReview of apiextensions.k8s.io/v1 or v1beta1"
    )]
    NotAReview(String, String),
    #[error("request.{0}: must be {1}")]
    Field(&'static str, &'static str),
}

/// Answers a review in its own version. An object that cannot be converted makes the whole answer a failure that names it, as the
/// API server takes all or none.
pub fn convert(mut review: Value) -> Result<Value, ReviewError> {
    let text = |field: &str| review[field].as_str().unwrap_or_default().to_owned();
    let (api_version, kind) = (text("apiVersion"), text("kind"));
    let spoken = api_version
        .strip_prefix("apiextensions.k8s.io/")
        .is_some_and(|version| REVIEW_VERSIONS.contains(&version));
    if !spoken || kind != "ConversionReview" {
        return Err(ReviewError::NotAReview(api_version, kind));
    }
    let mut request = review["request"].take();
    let text = |field: &'static str| {
        let text = request[field].as_str().map(str::to_owned);
        text.ok_or(ReviewError::Field(field, "a string"))
    };
    let (uid, desired) = (text("uid")?, text("desiredAPIVersion")?);
    let Value::Array(objects) = request["objects"].take() else {
        return Err(ReviewError::Field("objects", "an array"));
    };
    let response = match converted(objects, &desired) {
        Ok(objects) => {
            json!({"uid": uid, "convertedObjects": objects, "result": {"status": "Success"}})
        }
        Err(why) => json!({"uid": uid, "convertedObjects": [], "result": {
            "status": "Failure", "reason": "Invalid", "code": 422, "message": why}}),
    };
    Ok(json!({"apiVersion": api_version, "kind": kind, "response": response}))
}

fn converted(objects: Vec<Value>, desired: &str) -> Result<Vec<Value>, String> {
    if objects.len() > MAX_OBJECTS {
        return Err(format!(
            "{} objects are more than the {MAX_OBJECTS} of one review",
            objects.len()
        ));
    }
    let all: Result<_, ConversionError> = objects
        .into_iter()
        .map(|object| to_version(object, desired))
        .collect();
    all.map_err(|error| error.to_string())
}
