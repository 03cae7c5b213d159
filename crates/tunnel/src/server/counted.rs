//! A proxied connection that is counted for as long as it is open.

use super::metrics::Metrics;
use crate::wrapping::writes_go_to;
use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Instant,
};
use tokio::{
    io::{AsyncRead, ReadBuf},
    sync::OwnedSemaphorePermit,
};
use yurt_transport::BoxStream;

/// Holds a place among open connections.
pub(super) struct Counted {
    stream: BoxStream,
    metrics: Metrics,
    began: Instant,
    _place: OwnedSemaphorePermit,
}

impl Counted {
    pub(super) fn new(stream: BoxStream, metrics: Metrics, place: OwnedSemaphorePermit) -> Self {
        metrics.established.inc();
        Self {
            stream,
            metrics,
            began: Instant::now(),
            _place: place,
        }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.metrics.established.dec();
        let lasted = self.began.elapsed().as_secs_f64();
        self.metrics.connection_duration.observe(lasted);
    }
}

impl AsyncRead for Counted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

writes_go_to!(Counted, stream);
