//! `/v1/token`: a new bootstrap token, for a node whose certificate and token have both ended.

use super::{Admin, Ask, answer, refuse};
use crate::certificates::RejoinError;
use http::{Response, StatusCode};
use std::collections::BTreeMap;
use yurt_transport::Body;

/// The key of the token (OpenYurt's).
const KEY: &str = "jointoken";

/// Takes one.
pub(super) async fn take(admin: &Admin, ask: &Ask) -> Response<Body> {
    let token = match read(&ask.body) {
        Ok(token) => token,
        Err(why) => return refuse(StatusCode::BAD_REQUEST, format!("{why}\n")),
    };
    match admin.hub.certificates.rejoin(&token).await {
        Ok(()) => answer(StatusCode::OK, "text/plain", "the join token is in use\n"),
        Err(error @ RejoinError::Token) => refuse(StatusCode::BAD_REQUEST, format!("{error}\n")),
        Err(error) => refuse(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
    }
}

fn read(body: &[u8]) -> Result<String, String> {
    let mut object: BTreeMap<String, serde_json::Value> = serde_json::from_slice(body)
        .map_err(|error| format!("the body is no JSON object: {error}"))?;
    match object.remove(KEY) {
        Some(serde_json::Value::String(token)) if !token.is_empty() => Ok(token),
        _ => Err(format!("the body has no {KEY}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_comes_under_its_key() {
        assert_eq!(read(br#"{"jointoken":"a.b","more":1}"#).unwrap(), "a.b");
        for bad in [
            &b""[..],
            b"[]",
            b"{}",
            br#"{"jointoken":""}"#,
            br#"{"jointoken":1}"#,
        ] {
            assert!(read(bad).is_err());
        }
    }
}
