//! What a request asks for, derived from method, path and query as kube-apiserver's
//! `RequestInfoFactory` does.

use crate::{
    Gvr,
    selector::{FieldSelector, LabelSelector},
    status::{Cause, Status, quoted},
};
use std::fmt;

/// The API verb of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Verb {
    Get,
    List,
    Watch,
    Create,
    Update,
    Patch,
    Delete,
    DeleteCollection,
    Proxy,
    Connect,
    Other,
}

impl Verb {
    /// As in authorization attributes and metrics: `get`, `deletecollection`, ...; `""` for [`Verb::Other`].
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::List => "list",
            Self::Watch => "watch",
            Self::Create => "create",
            Self::Update => "update",
            Self::Patch => "patch",
            Self::Delete => "delete",
            Self::DeleteCollection => "deletecollection",
            Self::Proxy => "proxy",
            Self::Connect => "connect",
            Self::Other => "",
        }
    }
    /// Whether a request with this verb changes nothing.
    pub fn is_read(self) -> bool {
        matches!(self, Self::Get | Self::List | Self::Watch)
    }
    fn of_method(method: &http::Method) -> Self {
        match *method {
            http::Method::GET | http::Method::HEAD => Self::Get,
            http::Method::POST => Self::Create,
            http::Method::PUT => Self::Update,
            http::Method::PATCH => Self::Patch,
            http::Method::DELETE => Self::Delete,
            http::Method::CONNECT => Self::Connect,
            _ => Self::Other,
        }
    }
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What one request asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestInfo {
    /// False for `/version`, `/healthz`, discovery and OpenAPI paths.
    pub is_resource: bool,
    /// The path as sent, without the query.
    pub path: String,
    /// The verb. For non-resource requests the lower-cased method mapped to the nearest verb.
    pub verb: Verb,
    /// `api` or `apis`; empty for non-resource requests.
    pub api_prefix: String,
    /// API group, `""` for core.
    pub group: String,
    /// API version.
    pub version: String,
    /// Namespace, `""` when cluster scoped or across all namespaces.
    pub namespace: String,
    /// Plural resource.
    pub resource: String,
    /// Subresource (`status`, `log`, ...), `""` when none.
    pub subresource: String,
    /// Object name, `""` when none. Filled from an exact `metadata.name` field selector for
    /// list and watch (not for deletecollection, as in kube-apiserver).
    pub name: String,
    /// The path parts after the resource (`[resource, name, subresource, ...]`).
    pub parts: Vec<String>,
    /// The raw query string, `""` when none.
    pub query: String,
}

impl RequestInfo {
    /// Derives the request info. Never fails: what is not a resource request is `is_resource == false`, and
    /// so is a path whose percent-encoding or UTF-8 is broken.
    ///
    /// As in kube-apiserver the path is decoded before it is split, so that an encoded slash separates segments:
    /// what is authorized here is what the server behind will serve.
    pub fn parse(method: &http::Method, path: &str, query: Option<&str>) -> Self {
        let mut info = Self {
            is_resource: false,
            path: path.into(),
            verb: Verb::of_method(method),
            api_prefix: String::new(),
            group: String::new(),
            version: String::new(),
            namespace: String::new(),
            resource: String::new(),
            subresource: String::new(),
            name: String::new(),
            parts: Vec::new(),
            query: query.unwrap_or_default().into(),
        };
        if let Some(path) = percent_decode(path, false) {
            info.read_path(path.trim_matches('/'));
        }
        info
    }

    fn read_path(&mut self, path: &str) {
        let parts: Vec<&str> = path.split('/').collect();
        let (prefix, group, version, mut rest) = match parts.as_slice() {
            ["api", version, rest @ ..] if !rest.is_empty() => ("api", "", *version, rest),
            ["apis", group, version, rest @ ..] if !rest.is_empty() => {
                ("apis", *group, *version, rest)
            }
            _ => return,
        };
        // The deprecated forms that carry the verb in the path.
        match rest {
            ["watch" | "proxy"] => return,
            ["watch", tail @ ..] => {
                self.verb = Verb::Watch;
                rest = tail;
            }
            ["proxy", tail @ ..] => {
                self.verb = Verb::Proxy;
                rest = tail;
            }
            _ => {}
        }
        self.is_resource = true;
        self.api_prefix = prefix.into();
        self.group = group.into();
        self.version = version.into();
        if let ["namespaces", namespace, tail @ ..] = rest {
            self.namespace = (*namespace).into();
            // `status` and `finalize` are subresources of the namespace itself; anything else is a resource in it.
            if !matches!(tail, [] | ["status" | "finalize", ..]) {
                rest = tail;
            }
        }
        self.parts = rest.iter().map(|&part| part.to_owned()).collect();
        let part = |at: usize| rest.get(at).map_or(String::new(), |&part| part.to_owned());
        self.resource = part(0);
        self.name = part(1);
        if self.verb != Verb::Proxy {
            self.subresource = part(2);
        }
        if self.name.is_empty() {
            match self.verb {
                Verb::Get => self.read_collection_query(),
                Verb::Delete => self.verb = Verb::DeleteCollection,
                _ => {}
            }
        }
    }

    /// A GET without a name is a list or a watch. When the query does not parse, the verb still follows `watch`, but
    /// no name is taken from the selector.
    fn read_collection_query(&mut self) {
        let pairs = query_pairs(&self.query);
        let watch = value_of(&pairs, "watch").is_some_and(truthy);
        self.verb = if watch { Verb::Watch } else { Verb::List };
        let Ok(options) = ListOptions::decode(&pairs) else {
            return;
        };
        if let Some(name) = options.fields.exact("metadata.name")
            && is_path_segment_name(name)
        {
            self.name = name.to_owned();
        }
    }

    /// The first value of a query parameter, decoded.
    pub fn query_value(&self, name: &str) -> Option<String> {
        query_pairs(&self.query)
            .into_iter()
            .find_map(|(key, value)| (key == name).then_some(value))
    }

    /// The resource asked for.
    pub fn gvr(&self) -> Gvr {
        Gvr::new(&self.group, &self.version, &self.resource)
    }
    /// Decoded list/watch options of the query; a 400 Status when they do not parse, a 422 Status when they
    /// contradict each other.
    pub fn list_options(&self) -> Result<ListOptions, Box<Status>> {
        let mut options = ListOptions::decode(&query_pairs(&self.query))
            .map_err(|message| Box::new(Status::bad_request(message)))?;
        options.validate()?;
        options.watch |= self.verb == Verb::Watch;
        Ok(options)
    }
}

/// `metav1.ListOptions` as read from a query.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListOptions {
    /// Label selector; matches everything when absent.
    pub labels: LabelSelector,
    /// Field selector; matches everything when absent.
    pub fields: FieldSelector,
    /// `watch=true|1`.
    pub watch: bool,
    /// `allowWatchBookmarks`.
    pub allow_watch_bookmarks: bool,
    /// `resourceVersion`, `""` when absent.
    pub resource_version: String,
    /// `resourceVersionMatch`: `""`, `Exact` or `NotOlderThan`.
    pub resource_version_match: String,
    /// `timeoutSeconds`; `None` when absent, or negative, which asks for no time that could be granted.
    pub timeout_seconds: Option<u64>,
    /// `limit`, 0 when absent or negative: no limit.
    pub limit: u64,
    /// `continue`, `""` when absent.
    pub continue_token: String,
    /// `sendInitialEvents`; `None` when absent.
    pub send_initial_events: Option<bool>,
}

impl ListOptions {
    /// Reads the parameters that are known; the first of several values counts. The error is the text that
    /// kube-apiserver puts into its 400.
    fn decode(pairs: &[(String, String)]) -> Result<Self, String> {
        let text = |name| value_of(pairs, name).unwrap_or_default();
        let number = |name| -> Result<Option<u64>, String> {
            match value_of(pairs, name) {
                None => Ok(None),
                Some(value) => go_parse_int(value).map(|n| u64::try_from(n).ok()),
            }
        };
        Ok(Self {
            labels: LabelSelector::parse(text("labelSelector")).map_err(|e| e.0)?,
            fields: FieldSelector::parse(text("fieldSelector")).map_err(|e| e.0)?,
            watch: value_of(pairs, "watch").is_some_and(truthy),
            allow_watch_bookmarks: value_of(pairs, "allowWatchBookmarks").is_some_and(truthy),
            resource_version: text("resourceVersion").to_owned(),
            resource_version_match: text("resourceVersionMatch").to_owned(),
            timeout_seconds: number("timeoutSeconds")?,
            limit: number("limit")?.unwrap_or(0),
            continue_token: text("continue").to_owned(),
            send_initial_events: value_of(pairs, "sendInitialEvents").map(truthy),
        })
    }

    /// The combinations that kube-apiserver refuses.
    fn validate(&self) -> Result<(), Box<Status>> {
        const EXACT: &str = "Exact";
        const NOT_OLDER_THAN: &str = "NotOlderThan";
        const MATCH: &str = "resourceVersionMatch";
        let version_match = self.resource_version_match.as_str();
        let continued = !self.continue_token.is_empty();
        let mut causes = Vec::new();
        let mut forbid = |field: &str, why: &str| causes.push(Cause::forbidden(field, why));
        if self.watch {
            if self.send_initial_events.is_some() && version_match != NOT_OLDER_THAN {
                forbid(
                    MATCH,
                    "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
                );
            }
            if !version_match.is_empty() {
                if self.send_initial_events.is_none() {
                    forbid(
                        MATCH,
                        "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
                    );
                }
                if version_match != NOT_OLDER_THAN {
                    causes.push(Cause::not_supported(
                        MATCH,
                        version_match,
                        &[NOT_OLDER_THAN],
                    ));
                }
                if continued {
                    causes.push(Cause::forbidden(
                        MATCH,
                        "resourceVersionMatch is forbidden when continue is provided",
                    ));
                }
            }
        } else {
            if !version_match.is_empty() {
                if self.resource_version.is_empty() {
                    forbid(
                        MATCH,
                        "resourceVersionMatch is forbidden unless resourceVersion is provided",
                    );
                }
                if continued {
                    forbid(
                        MATCH,
                        "resourceVersionMatch is forbidden when continue is provided",
                    );
                }
                if ![EXACT, NOT_OLDER_THAN].contains(&version_match) {
                    causes.push(Cause::not_supported(
                        MATCH,
                        version_match,
                        &[EXACT, NOT_OLDER_THAN, ""],
                    ));
                }
                if version_match == EXACT && self.resource_version == "0" {
                    causes.push(Cause::forbidden(
                        MATCH,
                        "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"",
                    ));
                }
            }
            if self.send_initial_events.is_some() {
                causes.push(Cause::forbidden(
                    "sendInitialEvents",
                    "sendInitialEvents is forbidden for list",
                ));
            }
        }
        if causes.is_empty() {
            return Ok(());
        }
        Err(Box::new(Status::invalid(
            "meta.k8s.io",
            "ListOptions",
            "",
            causes,
        )))
    }
}

fn value_of<'a>(pairs: &'a [(String, String)], name: &str) -> Option<&'a str> {
    pairs
        .iter()
        .find_map(|(key, value)| (key == name).then_some(value.as_str()))
}

/// A parameter that is present is true unless it says `false` or `0`; even an empty one.
pub fn truthy(value: &str) -> bool {
    value != "0" && !value.eq_ignore_ascii_case("false")
}

/// A decimal 64-bit integer with the error text of the Go standard library, which clients get to see.
pub fn go_parse_int(text: &str) -> Result<i64, String> {
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(format!(
            "strconv.ParseInt: parsing {}: invalid syntax",
            quoted(text)
        ));
    }
    text.parse().map_err(|_| {
        format!(
            "strconv.ParseInt: parsing {}: value out of range",
            quoted(text)
        )
    })
}

/// Whether a name can be one segment of a path.
fn is_path_segment_name(name: &str) -> bool {
    !matches!(name, "" | "." | "..") && !name.contains(['/', '%'])
}

/// Decodes `%XX` (and `+`, in queries). `None` for broken escapes and for bytes that are not UTF-8.
pub fn percent_decode(text: &str, plus_is_space: bool) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'%' => {
                let high = hex_digit(bytes.next()?)?;
                let low = hex_digit(bytes.next()?)?;
                out.push(high << 4 | low);
            }
            b'+' if plus_is_space => out.push(b' '),
            other => out.push(other),
        }
    }
    String::from_utf8(out).ok()
}

fn hex_digit(byte: u8) -> Option<u8> {
    char::from(byte).to_digit(16).map(|d| d as u8)
}

/// Decodes `a=b&c=d` with percent and `+` decoding, in order. As in Go, pairs that are malformed (a broken escape, a
/// semicolon) are left out and the rest counts.
pub fn query_pairs(query: &str) -> Vec<(String, String)> {
    let well_formed = query
        .split('&')
        .filter(|pair| !pair.is_empty() && !pair.contains(';'));
    let mut pairs = Vec::with_capacity(well_formed.clone().count());
    pairs.extend(well_formed.filter_map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        Some((percent_decode(key, true)?, percent_decode(value, true)?))
    }));
    pairs
}

/// Percent-encodes a query value.
pub fn encode_query_value(value: &str) -> String {
    let mut out = String::with_capacity(value.len());
    for byte in value.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                out.push(char::from(byte));
            }
            b' ' => out.push('+'),
            other => {
                out.push('%');
                for nibble in [other >> 4, other & 0xf] {
                    out.push(char::from(b"0123456789ABCDEF"[usize::from(nibble)]));
                }
            }
        }
    }
    out
}

#[cfg(test)]
mod tests;
