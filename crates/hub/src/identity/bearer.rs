//! The token of a request.

use base64::Engine;
use http::{HeaderMap, HeaderValue, header};
use sha2::{Digest, Sha256};

/// Prefix of the WebSocket subprotocol that carries a bearer token (a browser cannot set `Authorization`).
const WEBSOCKET_BEARER: &str = "base64url.bearer.authorization.k8s.io.";
/// Longer tokens are none. Service-account tokens with all their claims are shorter than 2 KiB.
const MOST_BYTES: usize = 32 << 10;

/// The first 32 hex digits of a token's SHA-256.
pub fn hash(token: &str) -> String {
    use std::fmt::Write;
    let digest = Sha256::digest(token.as_bytes());
    digest
        .iter()
        .take(16)
        .fold(String::with_capacity(32), |mut text, byte| {
            // Writing to a String does not fail.
            let _ = write!(text, "{byte:02x}");
            text
        })
}

/// The bearer token of a request, if it has one.
pub fn token(headers: &HeaderMap) -> Option<String> {
    of(headers).ok().flatten()
}

/// Puts another bearer token where a request carries its own; `false` when it carries none, or the other cannot be carried so.
pub fn set_token(headers: &mut HeaderMap, token: &str) -> bool {
    if headers.contains_key(header::AUTHORIZATION) {
        let Ok(mut value) = HeaderValue::from_str(&format!("Bearer {token}")) else {
            return false;
        };
        value.set_sensitive(true);
        headers.insert(header::AUTHORIZATION, value);
        return true;
    }
    let encoded = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(token);
    let mut carried = false;
    let mut protocols = Vec::new();
    for value in headers.get_all(header::SEC_WEBSOCKET_PROTOCOL) {
        for protocol in value.to_str().unwrap_or_default().split(',') {
            let protocol = protocol.trim();
            if !carried && protocol.starts_with(WEBSOCKET_BEARER) {
                carried = true;
                protocols.push(format!("{WEBSOCKET_BEARER}{encoded}"));
            } else {
                protocols.push(protocol.to_owned());
            }
        }
    }
    match HeaderValue::from_str(&protocols.join(", ")) {
        Ok(value) if carried => {
            headers.insert(header::SEC_WEBSOCKET_PROTOCOL, value);
            true
        }
        _ => false,
    }
}

/// The token that a request brings; what is wrong with it when it is none that is understood.
pub(super) fn of(headers: &HeaderMap) -> Result<Option<String>, &'static str> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    if let Some(value) = values.next() {
        if values.next().is_some() {
            return Err("more than one Authorization header");
        }
        let token = value.to_str().ok().and_then(|text| {
            let (scheme, token) = text.trim().split_once(' ')?;
            (scheme.eq_ignore_ascii_case("bearer")).then(|| token.trim().to_owned())
        });
        let token = token.filter(|token| fits(token));
        return token.map(Some).ok_or("only bearer tokens are understood");
    }
    for value in headers.get_all(header::SEC_WEBSOCKET_PROTOCOL) {
        for protocol in value.to_str().unwrap_or_default().split(',') {
            if let Some(encoded) = protocol.trim().strip_prefix(WEBSOCKET_BEARER) {
                let token = base64::engine::general_purpose::URL_SAFE_NO_PAD
                    .decode(encoded.trim_end_matches('='))
                    .ok()
                    .and_then(|bytes| String::from_utf8(bytes).ok())
                    .filter(|token| fits(token));
                return token.map(Some).ok_or("the bearer subprotocol is malformed");
            }
        }
    }
    Ok(None)
}

fn fits(token: &str) -> bool {
    (1..=MOST_BYTES).contains(&token.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::tests::headers;

    #[test]
    fn tokens_are_found_where_clients_put_them() {
        let token = |pairs: &[(&str, &str)]| of(&headers(pairs));
        assert_eq!(token(&[]), Ok(None));
        for authorization in ["Bearer abc", "bearer  abc "] {
            let found = token(&[("authorization", authorization)]);
            assert_eq!(found, Ok(Some("abc".into())), "{authorization}");
        }
        // The websocket form of the same token.
        let websocket = "base64url.bearer.authorization.k8s.io.YWJj, v4.channel.k8s.io";
        let found = token(&[("sec-websocket-protocol", websocket)]);
        assert_eq!(found, Ok(Some("abc".into())));
        assert_eq!(
            token(&[("sec-websocket-protocol", "v4.channel.k8s.io")]),
            Ok(None)
        );
        let long = format!("Bearer {}", "x".repeat(MOST_BYTES + 1));
        for bad in ["Basic dTpw", "Bearer", "Bearer ", "x", &long] {
            assert!(token(&[("authorization", bad)]).is_err(), "{bad:.20}");
        }
        let broken = "base64url.bearer.authorization.k8s.io.%%%";
        assert!(token(&[("sec-websocket-protocol", broken)]).is_err());
        assert!(token(&[("authorization", "Bearer a"), ("authorization", "Bearer b")]).is_err());
        assert_eq!(hash("abc"), "ba7816bf8f01cfea414140de5dae2223");
    }

    #[test]
    fn a_token_is_replaced_where_it_is() {
        let mut plain = headers(&[("authorization", "Bearer abc")]);
        assert!(set_token(&mut plain, "xyz"));
        assert_eq!(plain["authorization"], "Bearer xyz");
        let mut websocket = headers(&[(
            "sec-websocket-protocol",
            "base64url.bearer.authorization.k8s.io.YWJj, v4.channel.k8s.io",
        )]);
        assert!(set_token(&mut websocket, "xyz"));
        assert_eq!(token(&websocket).as_deref(), Some("xyz"));
        assert!(
            websocket["sec-websocket-protocol"]
                .to_str()
                .unwrap()
                .ends_with(", v4.channel.k8s.io")
        );
        assert!(!set_token(&mut headers(&[]), "xyz"));
        assert!(!set_token(&mut plain, "x\nyz"));
    }
}
