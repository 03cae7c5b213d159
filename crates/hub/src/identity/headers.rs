//! What of a caller's headers reaches the cloud.

use http::{HeaderMap, HeaderName, header};

/// Whether the request asks to be answered as somebody else.
pub(super) fn impersonates(headers: &HeaderMap) -> bool {
    headers
        .keys()
        .any(|name| name.as_str().starts_with("impersonate-"))
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
    use crate::identity::tests::headers;

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
