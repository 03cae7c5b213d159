//! Would the node go on alone: asked and tried.

use super::{Admin, Ask, json, refuse};
use crate::{
    doctor,
    drill::{self, DrillError},
};
use http::{Method, Response, StatusCode};
use serde::Deserialize;
use yurt_transport::Body;

/// `/v1/doctor`.
pub(super) async fn doctor(admin: &Admin) -> Response<Body> {
    let hub = admin.hub.clone();
    let examined = tokio::task::spawn_blocking(move || doctor::examine(&doctor::gather(&hub)));
    match examined.await {
        Ok(report) => json(&report),
        Err(error) => refuse(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
    }
}

/// The body of `POST /v1/drill`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wish {
    #[serde(default = "usual")]
    seconds: u64,
}

fn usual() -> u64 {
    drill::SECONDS
}

/// `/v1/drill`: GET tells of it, POST begins one, DELETE ends it.
pub(super) fn drill(admin: &Admin, ask: &Ask) -> Response<Body> {
    let hub = &admin.hub;
    if ask.method == Method::GET {
        return json(&hub.drill.progress());
    }
    if ask.method == Method::DELETE {
        hub.drill.stop();
        return json(&hub.drill.progress());
    }
    let body: &[u8] = if ask.body.is_empty() {
        b"{}"
    } else {
        &ask.body
    };
    let wish: Wish = match serde_json::from_slice(body) {
        Ok(wish) => wish,
        Err(error) => {
            let text = format!("{{\"seconds\": N}} is expected: {error}\n");
            return refuse(StatusCode::BAD_REQUEST, text);
        }
    };
    match drill::begin(hub, wish.seconds) {
        Ok(progress) => {
            let mut response = json(&progress);
            *response.status_mut() = StatusCode::ACCEPTED;
            response
        }
        Err(error) => {
            let status = match error {
                DrillError::Length(_) => StatusCode::BAD_REQUEST,
                DrillError::UnderWay | DrillError::Offline => StatusCode::CONFLICT,
            };
            refuse(status, format!("{error}\n"))
        }
    }
}
