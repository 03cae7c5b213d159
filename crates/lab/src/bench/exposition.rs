//! Metrics in Prometheus' text format, as far as benches need them. Pure but for [`Exposition::read`].

use super::{BenchError, load::Target};
use std::collections::BTreeMap;

const RECONCILE_BUCKET: &str = "controller_runtime_reconcile_time_seconds_bucket";
const RECONCILE_SUM: &str = "controller_runtime_reconcile_time_seconds_sum";
const RECONCILE_COUNT: &str = "controller_runtime_reconcile_time_seconds_count";
const ERRORS: &str = "controller_runtime_reconcile_errors_total";
const REQUESTS: &str = "rest_client_requests_total";
/// What API servers sent to who reads: answers to GET and LIST, events of watches.
const SENT: [&str; 2] = [
    "apiserver_response_sizes_sum",
    "apiserver_watch_events_sizes_sum",
];

/// Samples by name, with their labels.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Exposition(Vec<Sample>);

#[derive(Clone, Debug, PartialEq)]
struct Sample {
    name: String,
    labels: BTreeMap<String, String>,
    value: f64,
}

impl Exposition {
    pub(super) async fn read(target: &Target) -> Result<Self, BenchError> {
        let body = target.call(http::Method::GET, "/metrics", None).await?;
        Ok(Self::parse(&String::from_utf8_lossy(&body)))
    }

    fn parse(text: &str) -> Self {
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        Self(lines.filter_map(sample).collect())
    }

    fn of(&self, name: &'static str) -> impl Iterator<Item = &Sample> {
        self.0.iter().filter(move |sample| sample.name == name)
    }

    fn sum(&self, name: &'static str) -> f64 {
        self.of(name).fold(0.0, |sum, sample| sum + sample.value)
    }

    /// Bytes that an API server sent to who reads these resources (`RESOURCE` or `RESOURCE.GROUP`).
    pub(super) fn sent(&self, resources: &[&str]) -> f64 {
        let samples = SENT.iter().flat_map(|name| self.of(name));
        let sent = samples.filter(|sample| {
            let label = |name: &str| sample.labels.get(name).map_or("", String::as_str);
            let (resource, group) = (label("resource"), label("group"));
            resources
                .iter()
                .any(|asked| asked.split_once('.').unwrap_or((asked, "")) == (resource, group))
        });
        sent.fold(0.0, |sum, sample| sum + sample.value)
    }

    /// Requests to the API server.
    pub(super) fn requests(&self) -> f64 {
        self.sum(REQUESTS)
    }

    /// Reconciliations that ended with an error.
    pub(super) fn failures(&self) -> f64 {
        self.sum(ERRORS)
    }

    /// A quantile of the time of reconciliations, seconds, within its bucket in proportion; over all controllers.
    pub(super) fn reconcile(&self, quantile: f64) -> f64 {
        let mut buckets: Vec<(f64, f64)> = Vec::new();
        for sample in self.of(RECONCILE_BUCKET) {
            let Some(bound) = sample.labels.get("le").and_then(|le| le.parse().ok()) else {
                continue;
            };
            match buckets.iter_mut().find(|(known, _)| *known == bound) {
                Some((_, count)) => *count += sample.value,
                None => buckets.push((bound, sample.value)),
            }
        }
        buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
        let Some((_, all)) = buckets.last().copied().filter(|(_, all)| *all > 0.0) else {
            return f64::NAN;
        };
        let rank = all * quantile;
        let (mut lower, mut below) = (0.0, 0.0);
        for (bound, count) in buckets {
            if count >= rank {
                // Beyond the last bound nothing more is known.
                return match bound.is_finite() {
                    true => lower + (bound - lower) * (rank - below) / (count - below).max(1.0),
                    false => f64::INFINITY,
                };
            }
            (lower, below) = (bound, count);
        }
        f64::NAN
    }

    /// The controllers that took most time in all: name, seconds, reconciliations.
    pub(super) fn slowest(&self, most: usize) -> Vec<(String, f64, f64)> {
        let mut all: BTreeMap<&str, (f64, f64)> = BTreeMap::new();
        for (name, counts) in [(RECONCILE_SUM, false), (RECONCILE_COUNT, true)] {
            for sample in self.of(name) {
                if let Some(controller) = sample.labels.get("controller") {
                    let (seconds, count) = all.entry(controller).or_default();
                    *(if counts { count } else { seconds }) += sample.value;
                }
            }
        }
        let mut all: Vec<(String, f64, f64)> = all
            .into_iter()
            .map(|(name, (seconds, count))| (name.to_owned(), seconds, count))
            .collect();
        all.sort_by(|a, b| b.1.total_cmp(&a.1));
        all.truncate(most);
        all
    }
}

/// `name{label="value",...} value`; values of labels without escapes.
fn sample(line: &str) -> Option<Sample> {
    let (series, value) = line.trim().rsplit_once(' ')?;
    let (name, labels) = match series.split_once('{') {
        Some((name, labels)) => (name, labels.strip_suffix('}')?),
        None => (series, ""),
    };
    let labels = labels
        .split(',')
        .filter_map(|label| label.split_once('='))
        .map(|(key, value)| (key.to_owned(), value.trim_matches('"').to_owned()))
        .collect();
    Some(Sample {
        name: name.to_owned(),
        labels,
        value: value.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"# HELP x y
controller_runtime_reconcile_time_seconds_bucket{controller="a",le="0.01"} 50
controller_runtime_reconcile_time_seconds_bucket{controller="a",le="0.1"} 90
controller_runtime_reconcile_time_seconds_bucket{controller="a",le="+Inf"} 100
controller_runtime_reconcile_time_seconds_bucket{controller="b",le="0.01"} 100
controller_runtime_reconcile_time_seconds_bucket{controller="b",le="0.1"} 100
controller_runtime_reconcile_time_seconds_bucket{controller="b",le="+Inf"} 100
controller_runtime_reconcile_time_seconds_sum{controller="a"} 5
controller_runtime_reconcile_time_seconds_count{controller="a"} 100
controller_runtime_reconcile_time_seconds_sum{controller="b"} 1
rest_client_requests_total{code="200",method="GET"} 7
rest_client_requests_total{code="409",method="PATCH"} 1
apiserver_response_sizes_sum{verb="LIST",group="",version="v1",resource="services",subresource=""} 500.0
apiserver_response_sizes_sum{verb="GET",group="",version="v1",resource="services",subresource=""} 30.0
apiserver_response_sizes_sum{verb="LIST",group="x.io",version="v1",resource="services",subresource=""} 1000.0
apiserver_response_sizes_count{verb="LIST",group="",version="v1",resource="services",subresource=""} 7
apiserver_watch_events_sizes_sum{group="discovery.k8s.io",version="v1",resource="endpointslices"} 4.0
apiserver_watch_events_sizes_sum{group="coordination.k8s.io",version="v1",resource="leases"} 2000.0
"#;

    #[test]
    fn what_readers_of_a_resource_were_sent() {
        let told = Exposition::parse(TEXT);
        let sent = |resources: &[&str]| told.sent(resources);
        assert!((sent(&["services", "endpointslices.discovery.k8s.io"]) - 534.0).abs() < 1e-9);
        assert!((sent(&["services.x.io"]) - 1000.0).abs() < 1e-9);
        assert!(sent(&["endpointslices"]).abs() < 1e-9);
    }

    #[test]
    fn quantiles_are_over_all_controllers() {
        let told = Exposition::parse(TEXT);
        assert!((told.requests() - 8.0).abs() < 1e-9);
        // 100 of 200 are within a bucket that holds 150.
        assert!((told.reconcile(0.5) - 0.01 * 100.0 / 150.0).abs() < 1e-9);
        assert!((told.reconcile(0.9) - (0.01 + 0.09 * 30.0 / 40.0)).abs() < 1e-9);
        assert!(told.reconcile(0.99).is_infinite());
        assert_eq!(told.slowest(1), [("a".to_owned(), 5.0, 100.0)]);
        assert!(Exposition::default().reconcile(0.5).is_nan());
        assert_eq!(
            Exposition::parse("a b c\n{\nx{y} z\n"),
            Exposition::default()
        );
    }
}
