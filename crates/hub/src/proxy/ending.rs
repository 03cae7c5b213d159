//! A stream that ends cleanly when something comes to an end: the hub, so that its client goes on elsewhere instead of starting anew;
//! or its client's place in the pool.

use bytes::Bytes;
use http_body::Frame;
use std::{
    pin::Pin,
    task::{Context, Poll},
};
use yurt_transport::{Body, BoxError};

pub(super) struct Ending {
    body: Body,
    end: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl Ending {
    pub(super) fn new(body: Body, end: impl Future<Output = ()> + Send + 'static) -> Self {
        Self {
            body,
            end: Box::pin(end),
        }
    }
}

impl http_body::Body for Ending {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if self.end.as_mut().poll(context).is_ready() {
            return Poll::Ready(None);
        }
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }
}
