//! Alive and ready.

use super::{answer, refuse};
use crate::proxy::Hub;
use http::{Response, StatusCode};
use yurt_transport::Body;

/// `/v1/healthz`; yurtadm compares the body.
pub(super) fn alive() -> Response<Body> {
    answer(StatusCode::OK, "text/plain", "OK")
}

/// `/v1/readyz`: whether a kubelet is served, by the cloud or from what the node knows. Neither the link nor a certificate is needed
/// for the second: autonomy must not end with them.
pub(super) fn ready(hub: &Hub) -> Response<Body> {
    let known = if hub.autonomous {
        hub.cache.object_count()
    } else {
        0
    };
    let facts = Facts {
        identified: hub.upstreams.identified(),
        up: hub.upstreams.up(),
        known,
    };
    match facts.obstacle() {
        None => answer(StatusCode::OK, "text/plain", "OK"),
        Some(why) => refuse(StatusCode::INTERNAL_SERVER_ERROR, format!("{why}\n")),
    }
}

/// What readiness depends on.
#[derive(Clone, Copy, Debug)]
struct Facts {
    /// The node has a certificate to go to the cloud with.
    identified: bool,
    /// An API server answers.
    up: bool,
    /// Objects that the node can answer with.
    known: usize,
}

impl Facts {
    /// Why nobody can be served.
    fn obstacle(self) -> Option<&'static str> {
        match self {
            Self { known: 1.., .. }
            | Self {
                identified: true,
                up: true,
                ..
            } => None,
            Self {
                identified: false,
                up: true,
                ..
            } => Some("the node has no certificate yet, and nothing is cached"),
            Self {
                identified: true, ..
            } => Some("no API server answers, and nothing is cached"),
            Self { .. } => {
                Some("no API server answers, the node has no certificate, and nothing is cached")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_by_the_cloud_or_by_the_cache() {
        let obstacle = |identified, up, known| {
            Facts {
                identified,
                up,
                known,
            }
            .obstacle()
        };
        for (identified, up) in [(false, false), (false, true), (true, false), (true, true)] {
            assert_eq!(obstacle(identified, up, 1), None);
        }
        assert_eq!(obstacle(true, true, 0), None);
        assert!(
            obstacle(true, false, 0)
                .unwrap()
                .starts_with("no API server answers")
        );
        assert!(
            obstacle(false, true, 0)
                .unwrap()
                .contains("certificate yet")
        );
        assert!(
            obstacle(false, false, 0)
                .unwrap()
                .contains("no certificate")
        );
    }
}
