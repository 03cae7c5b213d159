//! Clients that send their requests one after the other, all at the same time.

use super::{
    super::{
        BenchError,
        load::{Latencies, Target},
    },
    requests::Requests,
};
use http::Method;
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::task::JoinSet;

/// Deletes under way at a time.
const DELETERS: usize = 16;

/// When a load ends: at whichever comes first.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limit {
    pub(super) calls: u64,
    pub(super) time: Duration,
}

/// What came of a load.
#[derive(Debug)]
pub(super) struct Outcome {
    pub(super) latencies: Latencies,
    pub(super) elapsed: Duration,
    /// Of the server, meanwhile.
    pub(super) cpu_seconds: f64,
    bytes: u64,
    pub(super) failed: u64,
    /// Why the first of them failed.
    pub(super) failure: Option<String>,
}

impl Outcome {
    fn new() -> Self {
        Self {
            latencies: Latencies::new(),
            elapsed: Duration::ZERO,
            cpu_seconds: 0.0,
            bytes: 0,
            failed: 0,
            failure: None,
        }
    }

    fn record(&mut self, begun: Instant, answer: Result<bytes::Bytes, BenchError>) {
        match answer {
            Ok(body) => {
                self.latencies.record(begun.elapsed());
                self.bytes += body.len() as u64;
            }
            Err(error) => {
                self.failed += 1;
                self.failure.get_or_insert_with(|| error.to_string());
            }
        }
    }

    fn add(&mut self, other: Self) {
        self.latencies.add(&other.latencies);
        self.bytes += other.bytes;
        self.failed += other.failed;
        self.failure = self.failure.take().or(other.failure);
    }

    /// Answers per second.
    pub(super) fn rate(&self) -> f64 {
        self.latencies.len() as f64 / self.elapsed.as_secs_f64()
    }

    /// CPU time of the server for each answer.
    pub(super) fn cpu_milliseconds_each(&self) -> f64 {
        self.cpu_seconds * 1000.0 / self.latencies.len() as f64
    }

    /// Of answers.
    pub(super) fn megabytes_per_second(&self) -> f64 {
        self.bytes as f64 / 1e6 / self.elapsed.as_secs_f64()
    }
}

/// Lets every client send its requests.
pub(super) async fn run(clients: Vec<(Target, Requests)>, limit: Limit) -> Outcome {
    let next = Arc::new(AtomicU64::new(0));
    let mut tasks = JoinSet::new();
    // Connections are opened before the clock starts.
    for (target, _) in &clients {
        // When that fails the requests will, and say why.
        let _ = target.get("/version").await;
    }
    let begun = Instant::now();
    for (target, requests) in clients {
        let next = next.clone();
        tasks.spawn(async move {
            let mut outcome = Outcome::new();
            while begun.elapsed() < limit.time {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= limit.calls {
                    break;
                }
                let call = requests.call(number);
                let sent = Instant::now();
                let answer = target
                    .exchange(call.method, &call.path, call.accept, call.body)
                    .await;
                outcome.record(sent, answer);
            }
            outcome
        });
    }
    let mut outcome = Outcome::new();
    while let Some(client) = tasks.join_next().await {
        match client {
            Ok(of_one) => outcome.add(of_one),
            Err(error) => {
                outcome.failed += 1;
                outcome.failure.get_or_insert_with(|| error.to_string());
            }
        }
    }
    outcome.elapsed = begun.elapsed();
    outcome
}

/// Lists the pods of a namespace in chunks, again and again; a whole list counts as one answer.
pub(super) async fn chunked(
    target: &Target,
    namespace: &str,
    accept: &'static str,
    chunk: usize,
    limit: Limit,
) -> Outcome {
    let first = format!("/api/v1/namespaces/{namespace}/pods?limit={chunk}");
    let mut outcome = Outcome::new();
    let begun = Instant::now();
    let mut lists = 0;
    while lists < limit.calls && begun.elapsed() < limit.time {
        lists += 1;
        let sent = Instant::now();
        let mut path = first.clone();
        let whole = async {
            let mut all = Vec::new();
            loop {
                let part = target.exchange(Method::GET, &path, accept, None).await?;
                all.extend_from_slice(&part);
                match continue_token(&part) {
                    Some(token) => path = format!("{first}&continue={token}"),
                    None => return Ok(all.into()),
                }
            }
        };
        let answer: Result<bytes::Bytes, BenchError> = whole.await;
        outcome.record(sent, answer);
    }
    outcome.elapsed = begun.elapsed();
    outcome
}

/// The token of a JSON list, without reading its items: it is base64 and stands in the list's own metadata, before or
/// after them.
fn continue_token(list: &[u8]) -> Option<String> {
    const KEY: &[u8] = b"\"continue\":\"";
    const AROUND: usize = 4096;
    let ends = [
        &list[..list.len().min(AROUND)],
        &list[list.len().saturating_sub(AROUND)..],
    ];
    ends.into_iter().find_map(|part| {
        let at = part.windows(KEY.len()).position(|window| window == KEY)? + KEY.len();
        let rest = &part[at..];
        let end = rest.iter().position(|byte| *byte == b'"')?;
        let token = std::str::from_utf8(&rest[..end]).ok()?;
        (!token.is_empty()).then(|| token.to_owned())
    })
}

/// Deletes objects of a collection at once; what is not there any more is as good.
pub(super) async fn delete(target: &Target, collection: &str, names: Vec<String>) {
    let mut tasks = JoinSet::new();
    for name in names {
        if tasks.len() >= DELETERS {
            tasks.join_next().await;
        }
        let target = target.clone();
        let path = format!("{collection}/{name}?gracePeriodSeconds=0");
        tasks.spawn(async move {
            let _ = target.call(Method::DELETE, &path, None).await;
        });
    }
    tasks.join_all().await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_token_is_found_at_either_end() {
        let items = format!("\"items\":[{}]", "{},".repeat(9000));
        for list in [
            format!("{{\"metadata\":{{\"continue\":\"abc\"}},{items}}}"),
            format!("{{{items},\"metadata\":{{\"continue\":\"abc\"}}}}"),
        ] {
            assert_eq!(continue_token(list.as_bytes()).as_deref(), Some("abc"));
        }
        assert_eq!(continue_token(b"{\"metadata\":{\"continue\":\"\"}}"), None);
        assert_eq!(continue_token(b"{}"), None);
    }
}
