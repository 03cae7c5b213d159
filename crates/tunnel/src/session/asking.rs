//! A dial that the far end is asked for.

use crate::DialError;
use std::time::Duration;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use yurt_transport::{BoxStream, Destination};

/// What `ask` gives, unless the connection by which it asks is `closed` before, or `limit` is over.
pub(crate) async fn answer_about(
    to: &Destination,
    ask: impl Future<Output = Result<BoxStream, DialError>>,
    limit: Duration,
    closed: &CancellationToken,
) -> Result<BoxStream, DialError> {
    tokio::select! {
        biased;
        () = closed.cancelled() => Err(DialError::over()),
        answer = timeout(limit, ask) => answer.unwrap_or_else(|_| {
            Err(DialError::TimedOut(format!("no answer about {to} within {limit:?}")))
        }),
    }
}
