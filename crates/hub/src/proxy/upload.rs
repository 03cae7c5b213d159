//! The body of a request: held where it may be needed twice or read on the node, streamed otherwise, bounded always.

use super::{Hub, text};
use crate::upstream::OutgoingBody;
use bytes::Bytes;
use http::{HeaderMap, header};
use http_body::Body as _;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Incoming;
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use yurt_transport::CollectError;
use yurt_wire::{Reason, Status};

/// How long a client may take to send a body that must be held before it is sent on.
const UPLOAD: Duration = Duration::from_secs(60);

/// The body of a request.
pub(crate) enum Upload {
    /// As it comes from the client.
    Stream(Incoming),
    /// Read already.
    Held(Bytes),
}

impl Hub {
    /// Reads a body that must be known before it can be answered.
    pub(super) async fn hold(
        &self,
        headers: &HeaderMap,
        body: Incoming,
    ) -> Result<Bytes, Box<Status>> {
        self.hold_up_to(self.bounds.request_body, headers, body)
            .await
    }

    /// As [`Hub::hold`], with another bound of its size.
    pub(super) async fn hold_up_to(
        &self,
        most: usize,
        headers: &HeaderMap,
        body: Incoming,
    ) -> Result<Bytes, Box<Status>> {
        if body.is_end_stream() {
            return Ok(Bytes::new());
        }
        if announced(headers) > most as u64 {
            return Err(too_large_status(most));
        }
        match tokio::time::timeout(UPLOAD, yurt_transport::collect(body, most)).await {
            Ok(Ok(bytes)) => Ok(bytes),
            Ok(Err(CollectError::TooLarge(limit))) => Err(too_large_status(limit)),
            Ok(Err(CollectError::Broken(error))) => Err(Box::new(Status::new(
                Reason::BadRequest,
                format!("the request body broke off: {error}"),
            ))),
            Err(_) => Err(Box::new(Status::new(
                Reason::Timeout,
                format!("the request body did not come within {UPLOAD:?}"),
            ))),
        }
    }

    /// Holds small bodies and those the node may have to understand itself, streams the others.
    pub(super) async fn take_body(
        &self,
        headers: &HeaderMap,
        body: Incoming,
        must_hold: bool,
        too_large: &Arc<AtomicBool>,
    ) -> Result<(OutgoingBody, Option<Bytes>), Box<Status>> {
        let size = body.size_hint().exact();
        let limit = self.bounds.request_body;
        if size.unwrap_or(0) > limit as u64 {
            return Err(too_large_status(limit));
        }
        if must_hold || size.is_some_and(|size| size <= self.bounds.replayable_body as u64) {
            let bytes = self.hold(headers, body).await?;
            return Ok((OutgoingBody::Held(bytes.clone()), Some(bytes)));
        }
        let flag = too_large.clone();
        let limited = Limited::new(body, limit).map_err(move |error| {
            if error.is::<LengthLimitError>() {
                flag.store(true, Ordering::Relaxed);
            }
            error
        });
        Ok((OutgoingBody::Stream(limited.boxed_unsync()), None))
    }
}

fn announced(headers: &HeaderMap) -> u64 {
    text(headers, header::CONTENT_LENGTH).parse().unwrap_or(0)
}

pub(super) fn too_large_status(limit: usize) -> Box<Status> {
    Box::new(Status::new(
        Reason::RequestEntityTooLarge,
        format!("the request body is larger than {limit} bytes"),
    ))
}
