//! `metav1.Status`: the one error form of the API.
//!
//! Messages, codes and details are those of `k8s.io/apimachinery/pkg/api/errors`, because clients match on
//! them; the byte forms are those kube-apiserver 1.36 was recorded sending (`tests/fixtures`).

use crate::{Encoding, json};
use bytes::Bytes;
use serde::{
    Deserialize, Deserializer, Serialize,
    de::{IgnoredAny, SeqAccess, Visitor},
};
use std::{borrow::Cow, fmt, marker::PhantomData};

mod protobuf_form;

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
    /// No reason at all: an error of something behind the server (500).
    Unknown,
}

impl Reason {
    const ALL: [Self; 18] = [
        Self::Unauthorized,
        Self::Forbidden,
        Self::NotFound,
        Self::AlreadyExists,
        Self::Conflict,
        Self::Gone,
        Self::Expired,
        Self::Invalid,
        Self::BadRequest,
        Self::MethodNotAllowed,
        Self::NotAcceptable,
        Self::RequestEntityTooLarge,
        Self::UnsupportedMediaType,
        Self::InternalError,
        Self::ServiceUnavailable,
        Self::ServerTimeout,
        Self::Timeout,
        Self::TooManyRequests,
    ];

    /// The HTTP code kube-apiserver sends with it.
    pub fn code(self) -> u16 {
        match self {
            Self::BadRequest => 400,
            Self::Unauthorized => 401,
            Self::Forbidden => 403,
            Self::NotFound => 404,
            Self::MethodNotAllowed => 405,
            Self::NotAcceptable => 406,
            Self::AlreadyExists | Self::Conflict => 409,
            Self::Gone | Self::Expired => 410,
            Self::RequestEntityTooLarge => 413,
            Self::UnsupportedMediaType => 415,
            Self::Invalid => 422,
            Self::TooManyRequests => 429,
            Self::InternalError | Self::ServerTimeout | Self::Unknown => 500,
            Self::ServiceUnavailable => 503,
            Self::Timeout => 504,
        }
    }
    /// `NotFound`, ...
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unauthorized => "Unauthorized",
            Self::Forbidden => "Forbidden",
            Self::NotFound => "NotFound",
            Self::AlreadyExists => "AlreadyExists",
            Self::Conflict => "Conflict",
            Self::Gone => "Gone",
            Self::Expired => "Expired",
            Self::Invalid => "Invalid",
            Self::BadRequest => "BadRequest",
            Self::MethodNotAllowed => "MethodNotAllowed",
            Self::NotAcceptable => "NotAcceptable",
            Self::RequestEntityTooLarge => "RequestEntityTooLarge",
            Self::UnsupportedMediaType => "UnsupportedMediaType",
            Self::InternalError => "InternalError",
            Self::ServiceUnavailable => "ServiceUnavailable",
            Self::ServerTimeout => "ServerTimeout",
            Self::Timeout => "Timeout",
            Self::TooManyRequests => "TooManyRequests",
            Self::Unknown => "",
        }
    }
    /// The inverse of [`Reason::as_str`].
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|r| r.as_str() == text)
    }
    /// The reason that fits an HTTP code best, for answers that carry no reason known here. `None` for codes that
    /// are not errors.
    pub fn of_code(code: u16) -> Option<Self> {
        Some(match code {
            401 => Self::Unauthorized,
            403 => Self::Forbidden,
            404 => Self::NotFound,
            405 => Self::MethodNotAllowed,
            406 => Self::NotAcceptable,
            409 => Self::Conflict,
            410 => Self::Gone,
            413 => Self::RequestEntityTooLarge,
            415 => Self::UnsupportedMediaType,
            422 => Self::Invalid,
            429 => Self::TooManyRequests,
            400..=499 => Self::BadRequest,
            502 | 503 => Self::ServiceUnavailable,
            504 => Self::Timeout,
            500..=599 => Self::InternalError,
            _ => return None,
        })
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
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

impl Cause {
    fn new(reason: &str, field: &str, message: String) -> Self {
        Self {
            reason: reason.into(),
            message,
            field: field.into(),
        }
    }
    /// A value that may not be given here (`field.Forbidden`).
    pub fn forbidden(field: &str, detail: &str) -> Self {
        Self::new("FieldValueForbidden", field, format!("Forbidden: {detail}"))
    }
    /// A missing value (`field.Required`).
    pub fn required(field: &str, detail: &str) -> Self {
        let message = if detail.is_empty() {
            "Required value".to_owned()
        } else {
            format!("Required value: {detail}")
        };
        Self::new("FieldValueRequired", field, message)
    }
    /// A malformed value (`field.Invalid`); strings are quoted, everything else is shown as JSON.
    pub fn invalid(field: &str, value: &serde_json::Value, detail: &str) -> Self {
        let shown = shown_value(value);
        let message = if detail.is_empty() {
            format!("Invalid value: {shown}")
        } else {
            format!("Invalid value: {shown}: {detail}")
        };
        Self::new("FieldValueInvalid", field, message)
    }
    /// A value outside an enumeration (`field.NotSupported`).
    pub fn not_supported(field: &str, value: &str, supported: &[&str]) -> Self {
        let supported: Vec<String> = supported.iter().map(|s| quoted(s)).collect();
        Self::new(
            "FieldValueNotSupported",
            field,
            format!(
                "Unsupported value: {}: supported values: {}",
                quoted(value),
                supported.join(", ")
            ),
        )
    }
}

fn shown_value(value: &serde_json::Value) -> String {
    match value {
        serde_json::Value::String(s) => quoted(s),
        other => other.to_string(),
    }
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
    /// metadata.continue: where a list whose token has expired may go on, at a newer state
    pub continue_token: String,
    /// The code and the reason that somebody else (an admission webhook) chose, where they are not those of `reason`.
    pub foreign: Option<(u16, String)>,
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
            continue_token: String::new(),
            foreign: None,
        }
    }
    fn about(reason: Reason, group: &str, kind: &str, name: &str, message: String) -> Self {
        Self {
            name: name.into(),
            group: group.into(),
            kind: kind.into(),
            ..Self::new(reason, message)
        }
    }
    /// `pods "x" not found`.
    pub fn not_found(group: &str, resource: &str, name: &str) -> Self {
        let message = format!("{} {} not found", qualified(group, resource), quoted(name));
        Self::about(Reason::NotFound, group, resource, name, message)
    }
    /// `pods "x" already exists`.
    pub fn already_exists(group: &str, resource: &str, name: &str) -> Self {
        let message = format!(
            "{} {} already exists",
            qualified(group, resource),
            quoted(name)
        );
        Self::about(Reason::AlreadyExists, group, resource, name, message)
    }
    /// `Operation cannot be fulfilled on pods "x": ...`.
    pub fn conflict(group: &str, resource: &str, name: &str, why: &str) -> Self {
        let message = format!(
            "Operation cannot be fulfilled on {} {}: {why}",
            qualified(group, resource),
            quoted(name)
        );
        Self::about(Reason::Conflict, group, resource, name, message)
    }
    /// `Pod "x" is invalid: ...` from causes.
    pub fn invalid(group: &str, kind: &str, name: &str, causes: Vec<Cause>) -> Self {
        // An aggregate names each error once, in brackets when there are several.
        let mut errors: Vec<String> = Vec::new();
        for cause in &causes {
            let error = format!("{}: {}", cause.field, cause.message);
            if !errors.contains(&error) {
                errors.push(error);
            }
        }
        let mut message = format!("{} {} is invalid", qualified(group, kind), quoted(name));
        match errors.as_slice() {
            [] => {}
            [one] => message = format!("{message}: {one}"),
            many => message = format!("{message}: [{}]", many.join(", ")),
        }
        Self {
            causes,
            ..Self::about(Reason::Invalid, group, kind, name, message)
        }
    }
    /// `pods "x" is forbidden: ...`.
    pub fn forbidden(group: &str, resource: &str, name: &str, why: &str) -> Self {
        let what = qualified(group, resource);
        let message = if what.is_empty() {
            format!("forbidden: {why}")
        } else if name.is_empty() {
            format!("{what} is forbidden: {why}")
        } else {
            format!("{what} {} is forbidden: {why}", quoted(name))
        };
        Self::about(Reason::Forbidden, group, resource, name, message)
    }
    /// 401, as kube-apiserver answers a request whose credentials it does not know.
    pub fn unauthorized() -> Self {
        Self::new(Reason::Unauthorized, "Unauthorized")
    }
    /// 400 with a message.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(Reason::BadRequest, message)
    }
    /// 405: `patch is not supported on resources of kind "pods"`.
    pub fn method_not_allowed(group: &str, resource: &str, action: &str) -> Self {
        let message = format!(
            "{action} is not supported on resources of kind {}",
            quoted(&qualified(group, resource))
        );
        Self::about(Reason::MethodNotAllowed, group, resource, "", message)
    }
    /// 406, naming what can be served.
    pub fn not_acceptable(served: &[&str]) -> Self {
        Self::new(
            Reason::NotAcceptable,
            format!(
                "only the following media types are accepted: {}",
                served.join(", ")
            ),
        )
    }
    /// 415, naming what can be read.
    pub fn unsupported_media_type(accepted: &[&str]) -> Self {
        Self::new(
            Reason::UnsupportedMediaType,
            format!(
                "the body of the request was in an unknown format - accepted media types include: {}",
                accepted.join(", ")
            ),
        )
    }
    /// 413.
    pub fn request_entity_too_large(why: &str) -> Self {
        Self::new(
            Reason::RequestEntityTooLarge,
            format!("Request entity too large: {why}"),
        )
    }
    /// 410 `Expired`: a resource version or continue token that is too old. Clients relist on it.
    pub fn expired(message: impl Into<String>) -> Self {
        Self::new(Reason::Expired, message)
    }
    /// 500 `Internal error occurred: ...`.
    pub fn internal_error(error: impl fmt::Display) -> Self {
        let error = error.to_string();
        Self {
            causes: vec![Cause::new("", "", error.clone())],
            ..Self::new(
                Reason::InternalError,
                format!("Internal error occurred: {error}"),
            )
        }
    }
    /// 503 with a message.
    pub fn service_unavailable(message: impl Into<String>) -> Self {
        Self::new(Reason::ServiceUnavailable, message)
    }
    /// 504: the request may still complete.
    pub fn timeout(message: &str, retry_after_seconds: u32) -> Self {
        Self {
            retry_after_seconds: Some(retry_after_seconds),
            ..Self::new(Reason::Timeout, format!("Timeout: {message}"))
        }
    }
    /// 429 with the seconds after which a client should try again.
    pub fn too_many_requests(message: impl Into<String>, retry_after_seconds: u32) -> Self {
        Self {
            retry_after_seconds: Some(retry_after_seconds),
            ..Self::new(Reason::TooManyRequests, message)
        }
    }

    /// The HTTP code.
    pub fn code(&self) -> u16 {
        match &self.foreign {
            Some((code, _)) => *code,
            None => self.reason.code(),
        }
    }

    fn document(&self) -> Document<'_> {
        let has_details = self.retry_after_seconds.is_some()
            || !self.causes.is_empty()
            || [&self.name, &self.group, &self.kind, &self.uid]
                .into_iter()
                .any(|s| !s.is_empty());
        Document {
            kind: "Status".into(),
            api_version: "v1".into(),
            metadata: Metadata {
                continue_token: self.continue_token.as_str().into(),
            },
            status: "Failure".into(),
            message: self.message.as_str().into(),
            reason: match &self.foreign {
                Some((_, reason)) => reason.as_str().into(),
                None => self.reason.as_str().into(),
            },
            details: has_details.then(|| Details {
                name: self.name.as_str().into(),
                group: self.group.as_str().into(),
                kind: self.kind.as_str().into(),
                uid: self.uid.as_str().into(),
                causes: self
                    .causes
                    .iter()
                    .map(|c| DocumentCause {
                        reason: c.reason.as_str().into(),
                        message: c.message.as_str().into(),
                        field: c.field.as_str().into(),
                    })
                    .collect(),
                retry_after_seconds: self.retry_after_seconds.map_or(0, i64::from),
            }),
            code: i64::from(self.code()),
        }
    }

    /// From the document of either encoding. A Status of success is no failure.
    fn from_document(document: Document<'_>) -> Option<Self> {
        if document.status == "Success" {
            return None;
        }
        let code = u16::try_from(document.code).unwrap_or(0);
        let reason = Reason::parse(&document.reason)
            .or_else(|| Reason::of_code(code))
            .unwrap_or(Reason::InternalError);
        let details = document.details.unwrap_or_default();
        Some(Self {
            reason,
            message: document.message.into_owned(),
            name: details.name.into_owned(),
            group: details.group.into_owned(),
            kind: details.kind.into_owned(),
            uid: details.uid.into_owned(),
            causes: details
                .causes
                .into_iter()
                .map(|c| Cause {
                    reason: c.reason.into_owned(),
                    message: c.message.into_owned(),
                    field: c.field.into_owned(),
                })
                .collect(),
            retry_after_seconds: u32::try_from(details.retry_after_seconds)
                .ok()
                .filter(|&s| s > 0),
            continue_token: document.metadata.continue_token.into_owned(),
            foreign: None,
        })
    }

    /// As JSON.
    pub fn to_json(&self) -> serde_json::Value {
        serde_json::to_value(self.document()).unwrap_or_default()
    }
    /// As bytes in an encoding: compact JSON ending in a newline, or the protobuf envelope.
    pub fn to_bytes(&self, encoding: Encoding) -> Bytes {
        match encoding {
            Encoding::Json => {
                let mut out = go_json(serde_json::to_vec(&self.document()));
                out.push(b'\n');
                out.into()
            }
            Encoding::Protobuf => protobuf_form::encode(&self.document()),
        }
    }
    /// As indented JSON, which kube-apiserver sends when `pretty` is asked for.
    pub fn to_pretty_json(&self) -> Bytes {
        go_json(serde_json::to_vec_pretty(&self.document())).into()
    }
    /// Reads a failure Status that a server sent; `None` when the bytes are something else, or a Status of
    /// success. Reasons not known here become the one that fits the code.
    pub fn from_bytes(bytes: &[u8], encoding: Encoding) -> Option<Self> {
        let document = match encoding {
            Encoding::Json => serde_json::from_slice::<Document<'_>>(bytes).ok()?,
            Encoding::Protobuf => protobuf_form::decode(bytes).ok()?,
        };
        if document.kind != "Status" {
            return None;
        }
        Self::from_document(document)
    }
}

/// The JSON form, fields in the order kube-apiserver writes them.
#[derive(Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Document<'a> {
    kind: Cow<'a, str>,
    api_version: Cow<'a, str>,
    metadata: Metadata<'a>,
    status: Cow<'a, str>,
    #[serde(skip_serializing_if = "str::is_empty")]
    message: Cow<'a, str>,
    #[serde(skip_serializing_if = "str::is_empty")]
    reason: Cow<'a, str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    details: Option<Details<'a>>,
    code: i64,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
struct Metadata<'a> {
    #[serde(rename = "continue", skip_serializing_if = "str::is_empty")]
    continue_token: Cow<'a, str>,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Details<'a> {
    #[serde(skip_serializing_if = "str::is_empty")]
    name: Cow<'a, str>,
    #[serde(skip_serializing_if = "str::is_empty")]
    group: Cow<'a, str>,
    #[serde(skip_serializing_if = "str::is_empty")]
    kind: Cow<'a, str>,
    #[serde(skip_serializing_if = "str::is_empty")]
    uid: Cow<'a, str>,
    #[serde(
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "first_causes"
    )]
    causes: Vec<DocumentCause<'a>>,
    #[serde(skip_serializing_if = "is_zero")]
    retry_after_seconds: i64,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
struct DocumentCause<'a> {
    #[serde(skip_serializing_if = "str::is_empty")]
    reason: Cow<'a, str>,
    #[serde(skip_serializing_if = "str::is_empty")]
    message: Cow<'a, str>,
    #[serde(skip_serializing_if = "str::is_empty")]
    field: Cow<'a, str>,
}

/// Causes that are read of a Status; a server has no reason to send more.
const MAX_CAUSES: usize = 1024;

/// Reads the first [`MAX_CAUSES`] of a list of causes.
fn first_causes<'de, 'a, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Vec<DocumentCause<'a>>, D::Error> {
    struct Causes<'a>(PhantomData<&'a str>);
    impl<'de, 'a> Visitor<'de> for Causes<'a> {
        type Value = Vec<DocumentCause<'a>>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list of causes")
        }
        fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
            let mut causes = Vec::new();
            while causes.len() < MAX_CAUSES {
                match seq.next_element()? {
                    Some(cause) => causes.push(cause),
                    None => return Ok(causes),
                }
            }
            while seq.next_element::<IgnoredAny>()?.is_some() {}
            Ok(causes)
        }
    }
    deserializer.deserialize_seq(Causes(PhantomData))
}

#[allow(clippy::trivially_copy_pass_by_ref)]
fn is_zero(n: &i64) -> bool {
    *n == 0
}

/// JSON with the escapes of Go's encoder. Writing a Status cannot fail: it has string keys only.
fn go_json(text: serde_json::Result<Vec<u8>>) -> Vec<u8> {
    let text = text.unwrap_or_default();
    let mut out = Vec::with_capacity(text.len());
    json::push_text(&mut out, &text);
    out
}

/// `pods` or `deployments.apps`.
fn qualified(group: &str, resource: &str) -> String {
    if group.is_empty() {
        resource.to_owned()
    } else {
        format!("{resource}.{group}")
    }
}

/// A string in double quotes as Go's `%q` shows it, which is how names stand in messages.
pub(crate) fn quoted(text: &str) -> String {
    use fmt::Write as _;
    // Writing to a string cannot fail.
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\x07' => out.push_str("\\a"),
            '\x08' => out.push_str("\\b"),
            '\x0c' => out.push_str("\\f"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\x0b' => out.push_str("\\v"),
            c if (c as u32) < 0x20 || c == '\x7f' => {
                let _ = write!(out, "\\x{:02x}", c as u32);
            }
            c if c.is_control() || c == '\u{feff}' => {
                let _ = write!(out, "\\u{:04x}", c as u32);
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests;
