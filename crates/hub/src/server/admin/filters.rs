//! What is filtered, and why an object shows as it does.

use super::{Ask, json, refuse};
use crate::{
    explain::{self, Question},
    proxy::Hub,
};
use http::{Method, Response, StatusCode};
use std::sync::Arc;
use yurt_transport::Body;

/// `/v1/filters`: GET tells which filters and rules are in force, POST what they make of an object.
pub(super) async fn filters(hub: &Arc<Hub>, ask: &Ask) -> Response<Body> {
    let force = hub.filters.force().borrow().clone();
    let origins = hub.rules.origins();
    if ask.method == Method::GET {
        let complaints = hub.rules.complaints();
        return json(&explain::overview(&force, &origins, &complaints));
    }
    let question: Question = match serde_json::from_slice(&ask.body) {
        Ok(question) => question,
        Err(error) => return refuse(StatusCode::BAD_REQUEST, format!("{error}\n")),
    };
    // Expressions may take their time.
    let explained =
        tokio::task::spawn_blocking(move || explain::explain(&force, &origins, &question)).await;
    match explained {
        Ok(Ok(explanations)) => json(&explanations),
        Ok(Err(error)) => refuse(StatusCode::BAD_REQUEST, format!("{error}\n")),
        Err(error) => refuse(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
    }
}
