//! The pool as this node sees it.

use super::{Admin, json};
use crate::pool;
use http::Response;
use yurt_transport::Body;

/// `/v1/pool`.
pub(super) async fn status(admin: &Admin) -> Response<Body> {
    json(&pool::gather(&admin.hub).await)
}
