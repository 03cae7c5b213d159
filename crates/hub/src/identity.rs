//! Who a request comes from, and which headers it may carry to the cloud (design rule R4: identity is never lent).

use crate::caller::{Caller, Entrance};
use base64::Engine;
use http::{HeaderMap, HeaderName, HeaderValue, header};
use sha2::{Digest, Sha256};
use yurt_transport::Peer;
use yurt_wire::{Reason, Status};

/// Prefix of the WebSocket subprotocol that carries a bearer token (a browser cannot set `Authorization`).
const WEBSOCKET_BEARER: &str = "base64url.bearer.authorization.k8s.io.";

/// A caller and how it may act.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Who.
    pub caller: Caller,
    /// The request asks the cloud to act as somebody else. What comes back is that somebody's: never cached, and never
    /// answered locally.
    pub impersonates: bool,
}

/// Finds out who is calling. `401` when a request has no identity that may be used, `403` when it wants to impersonate
/// without credentials of its own.
pub fn identify(
    entrance: Entrance,
    headers: &HeaderMap,
    peer: Option<&Peer>,
) -> Result<Identity, Box<Status>> {
    let impersonates = headers.keys().any(is_impersonation);
    if let Some(token) = bearer(headers)? {
        return Ok(Identity {
            caller: Caller::Bearer(hash(&token)),
            impersonates,
        });
    }
    // The node's own certificate is for the node's own processes: plain text, from this machine.
    let local = entrance == Entrance::Plain
        && peer.is_some_and(|peer| !peer.tls && peer.addr.ip().to_canonical().is_loopback());
    if !local {
        return Err(unauthorized(
            "Unauthorized: this listener serves callers with a bearer token of their own",
        ));
    }
    if impersonates {
        return Err(Box::new(Status::new(
            Reason::Forbidden,
            "impersonation needs credentials of your own; the node's are not lent for it",
        )));
    }
    Ok(Identity {
        caller: Caller::Node,
        impersonates,
    })
}

/// The 401 of a request without a usable identity.
pub fn unauthorized(message: &str) -> Box<Status> {
    Box::new(Status::new(Reason::Unauthorized, message))
}

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
    bearer(headers).ok().flatten()
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

fn bearer(headers: &HeaderMap) -> Result<Option<String>, Box<Status>> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    if let Some(value) = values.next() {
        if values.next().is_some() {
            return Err(unauthorized(
                "Unauthorized: more than one Authorization header",
            ));
        }
        let token = value.to_str().ok().and_then(|text| {
            let (scheme, token) = text.trim().split_once(' ')?;
            let token = token.trim();
            (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then(|| token.to_owned())
        });
        return match token {
            Some(token) => Ok(Some(token)),
            None => Err(unauthorized(
                "Unauthorized: only bearer tokens are understood",
            )),
        };
    }
    for value in headers.get_all(header::SEC_WEBSOCKET_PROTOCOL) {
        for protocol in value.to_str().unwrap_or_default().split(',') {
            if let Some(encoded) = protocol.trim().strip_prefix(WEBSOCKET_BEARER) {
                let token = base64::engine::general_purpose::URL_SAFE_NO_PAD
                    .decode(encoded.trim_end_matches('='))
                    .ok()
                    .and_then(|bytes| String::from_utf8(bytes).ok())
                    .filter(|token| !token.is_empty());
                return token.map(Some).ok_or_else(|| {
                    unauthorized("Unauthorized: the bearer subprotocol is malformed")
                });
            }
        }
    }
    Ok(None)
}

fn is_impersonation(name: &HeaderName) -> bool {
    name.as_str().starts_with("impersonate-")
}

/// Makes a caller's headers fit to be sent to the cloud: hop-by-hop headers and everything by which a proxy would vouch
/// for a user or an address is gone.
pub fn clean_request(headers: &mut HeaderMap, upgrade: bool) {
    yurt_transport::strip_hop_by_hop(headers, upgrade);
    headers.remove(header::HOST);
    headers.remove(header::FORWARDED);
    headers.remove(header::EXPECT);
    let vouching: Vec<HeaderName> = headers
        .keys()
        .filter(|name| {
            name.as_str().starts_with("x-remote-") || name.as_str().starts_with("x-forwarded-")
        })
        .cloned()
        .collect();
    for name in vouching {
        headers.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in pairs {
            map.append(name.parse::<HeaderName>().unwrap(), value.parse().unwrap());
        }
        map
    }

    fn peer(addr: &str, tls: bool) -> Peer {
        Peer {
            addr: addr.parse().unwrap(),
            local: "127.0.0.1:10261".parse().unwrap(),
            certificate: None,
            tls,
        }
    }

    #[test]
    fn the_nodes_identity_is_for_plain_loopback_only() {
        let none = headers(&[]);
        let caller =
            |peer: Option<Peer>| identify(Entrance::Plain, &none, peer.as_ref()).map(|i| i.caller);
        assert_eq!(caller(Some(peer("127.0.0.1:5", false))), Ok(Caller::Node));
        assert_eq!(caller(Some(peer("127.3.2.1:5", false))), Ok(Caller::Node));
        assert_eq!(caller(Some(peer("[::1]:5", false))), Ok(Caller::Node));
        assert_eq!(
            caller(Some(peer("[::ffff:127.0.0.1]:5", false))),
            Ok(Caller::Node)
        );
        let dummy = identify(Entrance::Dummy, &none, Some(&peer("127.0.0.1:5", false)));
        assert_eq!(dummy.unwrap_err().reason, Reason::Unauthorized);
        for refused in [
            Some(peer("127.0.0.1:5", true)),
            Some(peer("10.0.0.8:5", false)),
            None,
        ] {
            assert_eq!(caller(refused).unwrap_err().reason, Reason::Unauthorized);
        }
    }

    #[test]
    fn a_token_is_an_identity_of_its_own() {
        let peer = peer("127.0.0.1:5", false);
        let one = identify(
            Entrance::Plain,
            &headers(&[("authorization", "Bearer abc")]),
            Some(&peer),
        )
        .unwrap();
        let Caller::Bearer(hash) = &one.caller else {
            panic!("{one:?}")
        };
        assert_eq!(hash, "ba7816bf8f01cfea414140de5dae2223");
        assert_eq!(
            identify(
                Entrance::Dummy,
                &headers(&[("authorization", "bearer  abc ")]),
                None
            )
            .unwrap(),
            one
        );
        // The websocket form of the same token.
        let websocket = "base64url.bearer.authorization.k8s.io.YWJj, v4.channel.k8s.io";
        assert_eq!(
            identify(
                Entrance::Secure,
                &headers(&[("sec-websocket-protocol", websocket)]),
                Some(&peer)
            )
            .unwrap(),
            one
        );
        for bad in ["Basic dTpw", "Bearer", "Bearer ", "x"] {
            let refused = identify(
                Entrance::Plain,
                &headers(&[("authorization", bad)]),
                Some(&peer),
            )
            .unwrap_err();
            assert_eq!(refused.reason, Reason::Unauthorized, "{bad}");
        }
        let two = headers(&[("authorization", "Bearer a"), ("authorization", "Bearer b")]);
        assert!(identify(Entrance::Plain, &two, Some(&peer)).is_err());
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

    #[test]
    fn impersonation_needs_own_credentials() {
        let peer = peer("127.0.0.1:5", false);
        let refused = identify(
            Entrance::Plain,
            &headers(&[("impersonate-user", "admin")]),
            Some(&peer),
        )
        .unwrap_err();
        assert_eq!(refused.reason, Reason::Forbidden);
        let own = headers(&[
            ("impersonate-extra-a", "b"),
            ("authorization", "Bearer abc"),
        ]);
        assert!(
            identify(Entrance::Plain, &own, Some(&peer))
                .unwrap()
                .impersonates
        );
    }

    #[test]
    fn only_end_to_end_headers_pass() {
        let mut map = headers(&[
            ("host", "x"),
            ("connection", "keep-alive, X-Hop"),
            ("x-hop", "1"),
            ("te", "trailers"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "websocket"),
            ("x-remote-user", "system:admin"),
            ("x-remote-group", "system:masters"),
            ("x-forwarded-for", "1.2.3.4"),
            ("accept", "application/json"),
            ("authorization", "Bearer abc"),
        ]);
        clean_request(&mut map, false);
        let mut left: Vec<_> = map.keys().map(|k| k.as_str()).collect();
        left.sort_unstable();
        assert_eq!(left, ["accept", "authorization"]);
    }

    #[test]
    fn an_upgrade_keeps_what_it_needs() {
        let mut map = headers(&[
            ("connection", "upgrade, x-hop"),
            ("x-hop", "1"),
            ("upgrade", "SPDY/3.1"),
        ]);
        clean_request(&mut map, true);
        assert_eq!(map.get("connection").unwrap(), "Upgrade");
        assert_eq!(map.get("upgrade").unwrap(), "SPDY/3.1");
        assert_eq!(map.len(), 2);
    }
}
