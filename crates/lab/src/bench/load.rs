//! Requests, one after the other, from so many clients at a time.

mod alone;

pub(super) use alone::Alone;

use super::BenchError;
use bytes::Bytes;
use hdrhistogram::Histogram;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::BodyExt as _;
use serde_json::Value;
use std::time::{Duration, Instant};
use yurt_transport::{Client, ResponseBody, collect, empty, full};

/// What kubelets and kube-proxies ask for.
const ACCEPT: &str = "application/vnd.kubernetes.protobuf,application/json";
/// Longest wait for a response head, and then for its body.
const TIMEOUT: Duration = Duration::from_secs(20);
/// Before a load counts: connections are opened, caches warmed.
const WARM_UP: Duration = Duration::from_millis(200);
/// Largest answer that the bench looks into.
const MAX_BODY: usize = 256 << 20;

/// A server, and who asks.
#[derive(Clone, Debug)]
pub(super) struct Target {
    pub(super) client: Client,
    /// `None` where the connection says who asks.
    pub(super) authorization: Option<HeaderValue>,
}

/// A JSON body.
pub(super) fn json(value: &Value) -> Bytes {
    value.to_string().into()
}

impl Target {
    /// Sends one request and waits for the head of its answer.
    pub(super) async fn send(
        &self,
        method: Method,
        path: &str,
        accept: &'static str,
        body: Option<(&'static str, Bytes)>,
    ) -> Result<Response<ResponseBody>, BenchError> {
        let content_type = body.as_ref().map(|(content_type, _)| *content_type);
        let mut request = Request::new(match body {
            Some((_, bytes)) => full(bytes),
            None => empty(),
        });
        *request.method_mut() = method;
        *request.uri_mut() = path
            .parse()
            .map_err(|error: http::uri::InvalidUri| call(path, error))?;
        let headers = request.headers_mut();
        headers.insert(header::ACCEPT, HeaderValue::from_static(accept));
        headers.insert(header::USER_AGENT, HeaderValue::from_static("yurt-bench"));
        if let Some(authorization) = &self.authorization {
            headers.insert(header::AUTHORIZATION, authorization.clone());
        }
        if let Some(content_type) = content_type {
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
        }
        self.client
            .send(request, TIMEOUT)
            .await
            .map_err(|error| call(path, error))
    }

    /// Sends one request, reads its answer, and insists on success.
    pub(super) async fn call(
        &self,
        method: Method,
        path: &str,
        body: Option<(&'static str, Bytes)>,
    ) -> Result<Bytes, BenchError> {
        self.exchange(method, path, "application/json", body).await
    }

    /// As [`Target::call`], with the answer in another encoding.
    pub(super) async fn exchange(
        &self,
        method: Method,
        path: &str,
        accept: &'static str,
        body: Option<(&'static str, Bytes)>,
    ) -> Result<Bytes, BenchError> {
        let response = self.send(method, path, accept, body).await?;
        let status = response.status();
        let read = tokio::time::timeout(TIMEOUT, collect(response.into_body(), MAX_BODY));
        let answer = read
            .await
            .map_err(|error| call(path, error))?
            .map_err(|error| call(path, error))?;
        if !status.is_success() {
            let text = String::from_utf8_lossy(&answer[..answer.len().min(400)]).into_owned();
            return Err(call(path, format!("{status} {text}")));
        }
        Ok(answer)
    }

    /// One GET as a node's component sends it, read to its end.
    pub(super) async fn get(&self, path: &str) -> Result<(), BenchError> {
        let response = self.send(Method::GET, path, ACCEPT, None).await?;
        let status = response.status();
        let mut body = response.into_body();
        let drain = async {
            while let Some(frame) = body.frame().await {
                frame.map_err(|error| call(path, error))?;
            }
            Ok::<(), BenchError>(())
        };
        tokio::time::timeout(TIMEOUT, drain)
            .await
            .map_err(|error| call(path, error))??;
        match status {
            StatusCode::OK => Ok(()),
            other => Err(call(path, other)),
        }
    }

    /// Asks again and again until the answer is 404.
    pub(super) async fn wait_gone(&self, path: &str, patience: Duration) -> Result<(), BenchError> {
        let begun = Instant::now();
        loop {
            let response = self.send(Method::GET, path, ACCEPT, None).await?;
            if response.status() == StatusCode::NOT_FOUND {
                return Ok(());
            }
            if begun.elapsed() > patience {
                return Err(call(path, "is still there"));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Asks again and again until the answer is 200.
    pub(super) async fn wait_ok(&self, path: &str, patience: Duration) -> Result<(), BenchError> {
        let begun = Instant::now();
        loop {
            match self.get(path).await {
                Ok(()) => return Ok(()),
                Err(error) if begun.elapsed() > patience => return Err(error),
                Err(_) => tokio::time::sleep(Duration::from_millis(1)).await,
            }
        }
    }
}

/// A failed call.
pub(super) fn call(path: &str, why: impl ToString) -> BenchError {
    BenchError::Call {
        path: path.to_owned(),
        why: why.to_string(),
    }
}

/// Latencies in nanoseconds; grows as needed.
#[derive(Clone, Debug)]
pub(super) struct Latencies(Option<Histogram<u64>>);

impl Latencies {
    pub(super) fn new() -> Self {
        // Three digits are always possible.
        Self(Histogram::new(3).ok())
    }

    pub(super) fn record(&mut self, time: Duration) {
        let nanoseconds = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        if let Some(histogram) = &mut self.0 {
            // It grows as far as 64 bits go.
            let _ = histogram.record(nanoseconds);
        }
    }

    pub(super) fn add(&mut self, other: &Self) {
        if let (Some(histogram), Some(other)) = (&mut self.0, &other.0) {
            // Both grow: what fits into one fits into the other.
            let _ = histogram.add(other);
        }
    }

    pub(super) fn len(&self) -> u64 {
        self.0.as_ref().map_or(0, Histogram::len)
    }

    /// A quantile in milliseconds; not a number when nothing was recorded.
    pub(super) fn at(&self, quantile: f64) -> f64 {
        match &self.0 {
            Some(histogram) if !histogram.is_empty() => {
                histogram.value_at_quantile(quantile) as f64 / 1e6
            }
            _ => f64::NAN,
        }
    }
}

impl Default for Latencies {
    fn default() -> Self {
        Self::new()
    }
}

/// A client of a load.
pub(super) trait Asks: Send + 'static {
    /// One request and its whole answer.
    fn ask(&mut self) -> impl Future<Output = Result<(), BenchError>> + Send;
}

struct Getter {
    target: Target,
    path: String,
}

impl Asks for Getter {
    async fn ask(&mut self) -> Result<(), BenchError> {
        self.target.get(&self.path).await
    }
}

/// The outcome of a load.
#[derive(Debug, Default)]
pub(super) struct Load {
    latencies: Latencies,
    elapsed: Duration,
    pub(super) failed: u64,
    /// The p99 of each of its parts, where it has parts.
    blocks: Vec<f64>,
}

impl Load {
    /// GETs a path for a while, from several clients; of one alone, [`Alone::load`] tells more.
    pub(super) async fn run(
        target: &Target,
        path: &str,
        concurrency: usize,
        time: Duration,
    ) -> Self {
        let client = || Getter {
            target: target.clone(),
            path: path.to_owned(),
        };
        Self::of((0..concurrency).map(|_| client()), time).await
    }

    /// Lets clients ask for a while, each one thing after the other.
    pub(super) async fn of<C: Asks>(clients: impl Iterator<Item = C>, time: Duration) -> Self {
        let begin = Instant::now() + WARM_UP;
        let end = begin + time;
        let clients: Vec<_> = clients
            .map(|mut client| {
                tokio::spawn(async move {
                    let mut latencies = Latencies::new();
                    let mut failed = 0;
                    loop {
                        let sent = Instant::now();
                        if sent >= end {
                            return (latencies, failed);
                        }
                        let answered = client.ask().await;
                        if sent < begin {
                            continue;
                        }
                        match answered {
                            Ok(()) => latencies.record(sent.elapsed()),
                            Err(error) => {
                                tracing::debug!(%error, "request failed");
                                failed += 1;
                            }
                        }
                    }
                })
            })
            .collect();
        let mut load = Self {
            elapsed: time,
            ..Self::default()
        };
        for client in clients {
            match client.await {
                Ok((latencies, failed)) => {
                    load.latencies.add(&latencies);
                    load.failed += failed;
                }
                Err(_) => load.failed += 1,
            }
        }
        load.elapsed = begin.elapsed().max(time);
        load
    }

    /// Adds one more part.
    pub(super) fn add(&mut self, part: Self) {
        self.blocks.push(part.p99());
        self.latencies.add(&part.latencies);
        self.elapsed += part.elapsed;
        self.failed += part.failed;
    }

    /// What this load's p99 is above that of another whose parts took turns with its own: the median over the pairs, milliseconds.
    pub(super) fn added_p99(&self, than: &Self) -> f64 {
        let pairs = self.blocks.iter().zip(&than.blocks);
        median(pairs.map(|(own, other)| own - other).collect())
    }

    /// The p99 of a part: the median over the parts, milliseconds.
    pub(super) fn p99_of_blocks(&self) -> f64 {
        median(self.blocks.clone())
    }

    /// Answers per second.
    pub(super) fn rate(&self) -> f64 {
        self.latencies.len() as f64 / self.elapsed.as_secs_f64()
    }

    /// Milliseconds.
    pub(super) fn p50(&self) -> f64 {
        self.latencies.at(0.5)
    }

    /// Milliseconds.
    pub(super) fn p99(&self) -> f64 {
        self.latencies.at(0.99)
    }
}

/// The upper one of an even number of values; not a number when there is no value, or one that is not a number: a part in which
/// nothing was answered is not to be overlooked.
pub(super) fn median(mut values: Vec<f64>) -> f64 {
    if values.iter().any(|value| value.is_nan()) {
        return f64::NAN;
    }
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(blocks: &[&[u64]]) -> Load {
        let mut load = Load::default();
        for block in blocks {
            let mut part = Load::default();
            for ms in *block {
                part.latencies.record(Duration::from_millis(*ms));
            }
            load.add(part);
        }
        load
    }

    #[test]
    fn what_is_added_is_the_median_of_pairs() {
        let direct = load(&[&[10, 10], &[20, 500], &[10, 11]]);
        let hub = load(&[&[12, 13], &[20, 503], &[15, 900]]);
        let close = |value: f64, ms: f64| (value - ms).abs() < ms / 100.0 + 0.5;
        assert!(close(hub.added_p99(&direct), 3.0));
        assert!(close(hub.p99_of_blocks(), 503.0));
        assert!(close(hub.p99(), 900.0), "all of them");
        assert_eq!(hub.latencies.len(), 6);
        assert!(Load::default().p99_of_blocks().is_nan());
        assert!(
            load(&[&[1], &[], &[1]]).p99_of_blocks().is_nan(),
            "a part without an answer"
        );
    }

    #[test]
    fn quantiles_are_milliseconds() {
        let mut latencies = Latencies::new();
        assert!(latencies.at(0.5).is_nan());
        for ms in 1..=99 {
            latencies.record(Duration::from_millis(ms));
        }
        let mut slowest = Latencies::new();
        slowest.record(Duration::from_secs(30));
        latencies.add(&slowest);
        assert_eq!(latencies.len(), 100);
        let close = |quantile, ms: f64| (latencies.at(quantile) - ms).abs() < ms / 500.0;
        assert!(close(0.5, 50.0) && close(0.99, 99.0) && close(1.0, 30_000.0));
    }
}
