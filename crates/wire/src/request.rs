//! What a request asks for, derived from method, path and query as kube-apiserver's
//! `RequestInfoFactory` does.

use crate::{
    Gvr,
    selector::{FieldSelector, LabelSelector},
    status::Status,
};

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
    /// list, watch and deletecollection.
    pub name: String,
    /// The path parts after the resource (`[resource, name, subresource, ...]`).
    pub parts: Vec<String>,
    /// The raw query string, `""` when none.
    pub query: String,
}

impl RequestInfo {
    /// Derives the request info. Never fails: what is not a resource request is `is_resource == false`.
    pub fn parse(_method: &http::Method, _path: &str, _query: Option<&str>) -> Self {
        unimplemented!()
    }
    /// The resource asked for.
    pub fn gvr(&self) -> Gvr {
        Gvr::new(&self.group, &self.version, &self.resource)
    }
    /// Decoded list/watch options of the query; a 400 Status when they do not parse.
    pub fn list_options(&self) -> Result<ListOptions, Box<Status>> {
        unimplemented!()
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
    /// `timeoutSeconds`.
    pub timeout_seconds: Option<u64>,
    /// `limit`, 0 when absent.
    pub limit: u64,
    /// `continue`, `""` when absent.
    pub continue_token: String,
    /// `sendInitialEvents`; `None` when absent.
    pub send_initial_events: Option<bool>,
}

/// Decodes `a=b&c=d` with percent and `+` decoding, in order.
pub fn query_pairs(_query: &str) -> Vec<(String, String)> {
    unimplemented!()
}
/// Percent-encodes a query value.
pub fn encode_query_value(_value: &str) -> String {
    unimplemented!()
}
