//! Bodies of answers on their way to the client: what goes by is counted, copied for the cache, and taken for a sign of life.

use super::Tee;
use crate::{
    metrics::{InFlight, Metrics},
    upstream::Server,
};
use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tokio::time::Sleep;
use yurt_transport::{Body, BoxError, ResponseBody};

/// The body of an answer on its way from the cloud to the client.
#[derive(Debug)]
pub struct Passing {
    body: ResponseBody,
    server: Arc<Server>,
    tee: Option<Tee>,
    in_flight: InFlight,
    silence: Option<Silence>,
}

/// How long an API server has sent nothing of an answer that its client waits for.
#[derive(Debug)]
pub struct Silence {
    limit: Duration,
    since: Option<Pin<Box<Sleep>>>,
    metrics: Metrics,
}

impl Silence {
    /// Ends an answer after `limit` without a byte.
    pub fn new(limit: Duration, metrics: Metrics) -> Self {
        Self {
            limit,
            since: None,
            metrics,
        }
    }

    fn is_over(&mut self, context: &mut Context<'_>) -> bool {
        let limit = self.limit;
        let since = self
            .since
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(limit)));
        since.as_mut().poll(context).is_ready()
    }
}

impl Passing {
    /// Passes `body` on, untouched.
    pub fn new(
        body: ResponseBody,
        server: Arc<Server>,
        tee: Option<Tee>,
        in_flight: InFlight,
        silence: Option<Silence>,
    ) -> Self {
        let mut passing = Self {
            body,
            server,
            tee,
            in_flight,
            silence,
        };
        passing.check_end();
        passing
    }

    /// A server may not be asked for the end when the body already knows it.
    fn check_end(&mut self) {
        if self.body.is_end_stream()
            && let Some(mut tee) = self.tee.take()
        {
            tee.finish();
        }
    }
}

/// The body of an answer of the node itself. It is under way until the client has taken it.
pub struct Counted {
    body: Body,
    in_flight: InFlight,
}

impl Counted {
    /// Counts what is taken of `body`.
    pub fn new(body: Body, in_flight: InFlight) -> Self {
        Self { body, in_flight }
    }
}

impl http_body::Body for Counted {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        if let Poll::Ready(Some(Ok(frame))) = &polled {
            self.in_flight.sent(frame.data_ref().map_or(0, Bytes::len));
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl http_body::Body for Passing {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = &mut *self;
        let polled = Pin::new(&mut this.body).poll_frame(context);
        if let Some(silence) = &mut this.silence {
            if polled.is_ready() {
                silence.since = None;
            } else if silence.is_over(context) {
                let message = format!("the API server sent nothing for {:?}", silence.limit);
                silence.metrics.answers_cut().inc();
                tracing::warn!(message, "answer broken off");
                this.silence = None;
                this.tee = None;
                return Poll::Ready(Some(Err(message.into())));
            }
        }
        match &polled {
            Poll::Ready(Some(Ok(frame))) => {
                this.server.heard();
                if let Some(data) = frame.data_ref() {
                    this.in_flight.sent(data.len());
                    if let Some(tee) = &mut this.tee {
                        tee.push(data);
                    }
                }
                this.check_end();
            }
            Poll::Ready(Some(Err(_))) => {
                this.tee = None;
                this.server.suspect();
            }
            Poll::Ready(None) => {
                if let Some(mut tee) = this.tee.take() {
                    tee.finish();
                }
            }
            Poll::Pending => {}
        }
        polled.map(|frame| frame.map(|frame| frame.map_err(BoxError::from)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
