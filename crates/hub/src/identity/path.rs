//! Paths that would mean one thing to the hub and another to an API server, or lead out of a directory, are refused.

use yurt_wire::request::percent_decode;

/// Longest path. Names are at most 253 characters, and there are few of them in a path.
const MOST_BYTES: usize = 8 << 10;

/// Whether every segment of a path is one name. What comes after the `proxy` subresource of a node, pod or service belongs to the
/// backend and is not looked at.
pub(super) fn is_plain(path: &str) -> bool {
    if path.len() > MOST_BYTES {
        return false;
    }
    // `/api/v1/nodes/NAME/proxy/...`, `/api/v1/namespaces/NAMESPACE/RESOURCE/NAME/proxy/...`
    let proxy = match path.split('/').nth(3) {
        Some("nodes") => 5,
        Some("namespaces") => 7,
        _ => usize::MAX,
    };
    for (index, segment) in path.split('/').enumerate() {
        if index == proxy && segment == "proxy" {
            return true;
        }
        let Some(name) = percent_decode(segment, false) else {
            return false;
        };
        if matches!(name.as_str(), "." | "..") || name.contains('/') || name.contains('\0') {
            return false;
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_lead_nowhere_else() {
        for good in [
            "/",
            "/api/v1/namespaces/a/pods/b",
            "/api/v1/namespaces/a/pods/b.c..d",
            "/apis/rbac.authorization.k8s.io/v1/clusterroles/system%3Anode",
            "/api/v1/namespaces/a/services/b:80/proxy/x/../y%2Fz",
            "/api/v1/nodes/a/proxy/logs/../x",
            "/openapi/v3/apis/apps/v1",
        ] {
            assert!(is_plain(good), "{good}");
        }
        let long = format!("/api/{}", "a".repeat(MOST_BYTES));
        for bad in [
            "/api/v1/namespaces/../pods",
            "/api/v1/namespaces/a/pods/..",
            "/api/v1/namespaces/a/pods/%2e%2E",
            "/api/v1/namespaces/a/pods/.",
            "/api/v1/namespaces/a/configmaps/x%2Fy",
            "/api/v1/namespaces/a%2fsecrets/b",
            "/api/v1/namespaces/a/pods/%00",
            "/api/v1/namespaces/a/pods/%zz",
            "/api/v1/namespaces/a/pods/%ff",
            "/../etc/passwd",
            "/api/v1/proxy/../x",
            "/api/v1/namespaces/a/proxy/../x",
            "/api/v1/namespaces/proxy/pods/..",
            "/api/v1/namespaces/a/pods/../proxy/x",
            &long,
        ] {
            assert!(!is_plain(bad), "{bad:.60}");
        }
    }

    proptest! {
        #[test]
        fn what_is_plain_decodes_to_the_same_segments(path in "(/[a-z.%2fF\\\\]{0,8}){1,6}") {
            if is_plain(&path) && !path.contains("proxy") {
                let decoded = percent_decode(&path, false).unwrap();
                prop_assert_eq!(decoded.split('/').count(), path.split('/').count());
                prop_assert!(decoded.split('/').all(|segment| segment != ".."));
            }
        }
    }
}
