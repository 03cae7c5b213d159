//! How long a caller waits, read from its request.

use std::time::Duration;
pub use yurt_api::autonomy::parse_go_duration;
use yurt_wire::{RequestInfo, Verb, request::query_pairs};

/// A caller that names no `timeout` is taken to wait as long as kube-apiserver lets a request last.
pub const DEFAULT_WAIT: Duration = Duration::from_secs(60);
/// Streams of logs, exec and the like may take long to begin (`logs -f` of a container that is still starting).
const LONG_RUNNING_WAIT: Duration = Duration::from_secs(600);
/// A watch answers its head at once, or the server is in trouble.
const WATCH_WAIT: Duration = Duration::from_secs(30);
/// Left of the caller's own time so that the answer from the cache still reaches it.
const MARGIN: Duration = Duration::from_millis(500);

/// How long the hub may wait for the head of the cloud's answer: the caller's `timeout` query less a margin, within
/// bounds by the kind of request.
pub fn head_wait(info: &RequestInfo) -> Duration {
    let bound = match info.verb {
        Verb::Watch => WATCH_WAIT,
        Verb::Connect | Verb::Proxy => LONG_RUNNING_WAIT,
        _ if matches!(
            info.subresource.as_str(),
            "log" | "exec" | "attach" | "portforward" | "proxy"
        ) =>
        {
            LONG_RUNNING_WAIT
        }
        _ => DEFAULT_WAIT,
    };
    // For a watch `timeout` is the length of the stream, not the wait for its head.
    if info.verb == Verb::Watch || info.query.is_empty() {
        return bound;
    }
    let asked = query_pairs(&info.query)
        .into_iter()
        .find(|(name, _)| name == "timeout")
        .and_then(|(_, value)| parse_go_duration(&value))
        .filter(|asked| !asked.is_zero());
    match asked {
        // A very short wait still gets half of itself.
        Some(asked) => asked.saturating_sub(MARGIN).max(asked / 2).min(bound),
        None => bound,
    }
}

/// Whether the answer ends by itself soon: it is not followed for what may come.
pub fn ends(info: &RequestInfo) -> bool {
    !matches!(info.verb, Verb::Watch | Verb::Connect | Verb::Proxy)
        && match info.subresource.as_str() {
            "exec" | "attach" | "portforward" | "proxy" => false,
            // As kube-apiserver reads it.
            "log" => matches!(
                info.query_value("follow").as_deref(),
                None | Some("0" | "false")
            ),
            _ => true,
        }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn go_durations() {
        assert_eq!(parse_go_duration("9m19s"), Some(Duration::from_secs(559)));
        assert_eq!(parse_go_duration("1.5h"), Some(Duration::from_secs(5400)));
        assert_eq!(parse_go_duration("300ms"), Some(Duration::from_millis(300)));
        assert_eq!(parse_go_duration("0"), Some(Duration::ZERO));
        for bad in ["", "5", "-5s", "5x", "s", "..s", "1e9h"] {
            assert_eq!(parse_go_duration(bad), None, "{bad}");
        }
    }

    fn wait(path: &str, query: &str) -> Duration {
        head_wait(&RequestInfo::parse(&http::Method::GET, path, Some(query)))
    }

    #[test]
    fn the_caller_hears_before_it_gives_up() {
        let lease = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/n";
        assert_eq!(wait(lease, "timeout=5s"), Duration::from_millis(4500));
        assert_eq!(wait(lease, "timeout=600ms"), Duration::from_millis(300));
        assert_eq!(wait(lease, "timeout=nonsense"), DEFAULT_WAIT);
        assert_eq!(wait("/api/v1/pods", "watch=true&timeout=9m19s"), WATCH_WAIT);
        assert_eq!(
            wait("/api/v1/namespaces/a/pods/b/log", "follow=true"),
            LONG_RUNNING_WAIT
        );
    }

    #[test]
    fn what_is_followed_does_not_end() {
        let ends = |path: &str, query: &str| {
            ends(&RequestInfo::parse(&http::Method::GET, path, Some(query)))
        };
        assert!(ends("/api/v1/pods", ""));
        assert!(ends("/openapi/v2", ""));
        assert!(!ends("/api/v1/pods", "watch=true"));
        assert!(ends("/api/v1/namespaces/a/pods/b/log", "tailLines=9"));
        assert!(!ends("/api/v1/namespaces/a/pods/b/log", "follow=true"));
        assert!(!ends("/api/v1/namespaces/a/services/b/proxy/events", ""));
    }

    proptest! {
        #[test]
        fn never_panics(text in "\\PC{0,24}") {
            let _ = parse_go_duration(&text);
        }
        #[test]
        fn seconds_round_trip(seconds in 0u64..1_000_000) {
            let text = format!("{}h{}m{}s", seconds / 3600, seconds % 3600 / 60, seconds % 60);
            prop_assert_eq!(parse_go_duration(&text), Some(Duration::from_secs(seconds)));
        }
    }
}
