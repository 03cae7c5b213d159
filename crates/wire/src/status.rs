//! `metav1.Status`: the one error form of the API.

use crate::Encoding;
use bytes::Bytes;

/// `metav1.StatusReason` with its HTTP code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Reason {
    Unauthorized,
    Forbidden,
    NotFound,
    AlreadyExists,
    Conflict,
    Gone,
    Expired,
    Invalid,
    BadRequest,
    MethodNotAllowed,
    NotAcceptable,
    RequestEntityTooLarge,
    UnsupportedMediaType,
    InternalError,
    ServiceUnavailable,
    ServerTimeout,
    Timeout,
    TooManyRequests,
}

impl Reason {
    /// The HTTP code kube-apiserver sends with it.
    pub fn code(self) -> u16 {
        unimplemented!()
    }
    /// `NotFound`, ...
    pub fn as_str(self) -> &'static str {
        unimplemented!()
    }
}

/// One cause in a Status' details.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Cause {
    pub reason: String,
    pub message: String,
    pub field: String,
}

/// A failure Status.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
#[allow(missing_docs)]
pub struct Status {
    pub reason: Reason,
    pub message: String,
    /// details.name
    pub name: String,
    /// details.group
    pub group: String,
    /// details.kind (the resource, as kube-apiserver fills it, or the kind for Invalid)
    pub kind: String,
    pub uid: String,
    pub causes: Vec<Cause>,
    pub retry_after_seconds: Option<u32>,
}

impl Status {
    /// A failure with just a reason and a message.
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self {
            reason,
            message: message.into(),
            name: String::new(),
            group: String::new(),
            kind: String::new(),
            uid: String::new(),
            causes: Vec::new(),
            retry_after_seconds: None,
        }
    }
    /// `pods "x" not found`.
    pub fn not_found(_group: &str, _resource: &str, _name: &str) -> Self {
        unimplemented!()
    }
    /// `pods "x" already exists`.
    pub fn already_exists(_group: &str, _resource: &str, _name: &str) -> Self {
        unimplemented!()
    }
    /// `Operation cannot be fulfilled on pods "x": ...`.
    pub fn conflict(_group: &str, _resource: &str, _name: &str, _why: &str) -> Self {
        unimplemented!()
    }
    /// `Pod "x" is invalid: ...` from causes.
    pub fn invalid(_group: &str, _kind: &str, _name: &str, _causes: Vec<Cause>) -> Self {
        unimplemented!()
    }
    /// `pods "x" is forbidden: ...`.
    pub fn forbidden(_group: &str, _resource: &str, _name: &str, _why: &str) -> Self {
        unimplemented!()
    }
    /// The HTTP code.
    pub fn code(&self) -> u16 {
        self.reason.code()
    }
    /// As JSON.
    pub fn to_json(&self) -> serde_json::Value {
        unimplemented!()
    }
    /// As bytes in an encoding.
    pub fn to_bytes(&self, _encoding: Encoding) -> Bytes {
        unimplemented!()
    }
}
