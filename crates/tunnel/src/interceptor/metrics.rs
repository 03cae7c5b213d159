//! What is counted. Labels are of small fixed sets: never a path, a name or an address.

use http::{Method, StatusCode};
use prometheus_client::{
    metrics::{family::Family, gauge::Gauge},
    registry::Registry,
};

type ByWhat = [(&'static str, &'static str); 2];
type ByAnswer = [(&'static str, &'static str); 1];

/// Counters of the interceptor, under OpenYurt's names. They only grow, but are gauges here, because a counter's name would be
/// changed (`_total`).
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    requests: Family<ByWhat, Gauge>,
    total: Gauge,
    in_flight: Gauge,
    answers: Family<ByAnswer, Gauge>,
    pub(super) connections: Gauge,
}

fn verb(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        Method::OPTIONS => "OPTIONS",
        _ => "other",
    }
}

/// What a kubelet is asked for: the first part of the path, if it is one of the kubelet's.
fn subresource(path: &str) -> &'static str {
    const KNOWN: [&str; 14] = [
        "attach",
        "checkpoint",
        "configz",
        "containerLogs",
        "debug",
        "exec",
        "healthz",
        "logs",
        "metrics",
        "pods",
        "portForward",
        "run",
        "spec",
        "stats",
    ];
    let first = path.trim_start_matches('/').split('/').next();
    let first = first.unwrap_or_default();
    KNOWN
        .into_iter()
        .find(|name| *name == first)
        .unwrap_or("other")
}

fn class(status: StatusCode) -> &'static str {
    match status.as_u16() {
        100..=199 => "1xx",
        200..=299 => "2xx",
        300..=399 => "3xx",
        400..=499 => "4xx",
        _ => "5xx",
    }
}

/// A request counted as under way until it is dropped.
#[derive(Debug)]
pub(super) struct InFlight(Gauge);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl Metrics {
    /// Has them shown.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "yurttunnel_server_in_proxy_requests",
            "Requests taken by the interceptor, by method and kind of what is asked for",
            self.requests.clone(),
        );
        registry.register(
            "yurttunnel_server_total_in_proxy_requests",
            "Requests taken by the interceptor",
            self.total.clone(),
        );
        registry.register(
            "yurttunnel_server_in_flight_requests",
            "Requests under way in the interceptor, upgraded connections too",
            self.in_flight.clone(),
        );
        registry.register(
            "yurttunnel_server_answered_requests",
            "Answers of the interceptor by class of status",
            self.answers.clone(),
        );
        registry.register(
            "yurttunnel_server_kubelet_connections",
            "Connections kept to kubelets and others behind nodes",
            self.connections.clone(),
        );
    }

    /// Has a sample in every family: one without is not told.
    #[cfg(test)]
    pub(crate) fn exercise(&self) {
        drop(self.asked(&Method::GET, "/pods"));
        self.answered(StatusCode::OK);
    }

    pub(super) fn asked(&self, method: &Method, path: &str) -> InFlight {
        let labels = [("verb", verb(method)), ("subresource", subresource(path))];
        self.requests.get_or_create(&labels).inc();
        self.total.inc();
        self.in_flight.inc();
        InFlight(self.in_flight.clone())
    }

    pub(super) fn answered(&self, status: StatusCode) {
        self.answers.get_or_create(&[("code", class(status))]).inc();
    }

    /// Requests under way.
    pub fn in_flight(&self) -> i64 {
        self.in_flight.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus_client::encoding::text;

    #[test]
    fn labels_are_few_whatever_is_asked() {
        let metrics = Metrics::default();
        let mut registry = Registry::default();
        metrics.register(&mut registry);
        for number in 0..1000 {
            let method: Method = format!("M{number}").parse().unwrap();
            metrics.asked(&method, &format!("/{number}/x"));
            metrics.asked(&Method::GET, &format!("/containerLogs/ns/pod-{number}/c"));
        }
        metrics.answered(StatusCode::SWITCHING_PROTOCOLS);
        let mut shown = String::new();
        text::encode(&mut shown, &registry).unwrap();
        for line in [
            "yurttunnel_server_in_proxy_requests{verb=\"GET\",subresource=\"containerLogs\"} 1000",
            "yurttunnel_server_in_proxy_requests{verb=\"other\",subresource=\"other\"} 1000",
            "yurttunnel_server_total_in_proxy_requests 2000",
            "yurttunnel_server_in_flight_requests 0",
            "yurttunnel_server_answered_requests{code=\"1xx\"} 1",
        ] {
            assert!(
                shown.contains(&format!("{line}\n")),
                "{line} not in\n{shown}"
            );
        }
        assert!(shown.lines().count() < 30);
    }
}
