//! How a watch goes on when its source ended: in the cloud, from the last revision seen, or with what the node knows.

use super::{
    Next, Relay, Source,
    cursor::{Resume, resumed_query},
    until, watch_encoding,
};
use crate::{route::Mode, upstream::SendError};
use http::{Response, StatusCode, header};
use std::time::Duration;
use tokio::time::Instant;
use yurt_transport::ResponseBody;
use yurt_wire::{
    Encoding, Object, Reason, Status,
    watch::{self, EventType},
};

/// Pauses between attempts to resume while the link is up.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(3);

/// What came of asking the cloud to go on.
enum Again {
    Source(Source),
    End(Next),
    Later,
}

impl Relay {
    /// Finds the next source: the cloud when it is there, the node otherwise.
    pub(super) async fn go_on(&mut self) -> Result<Source, Next> {
        let mut pause = FIRST_PAUSE;
        loop {
            if self.hub.mode_of(&self.watched.caller) == Mode::Offline {
                self.hub.metrics.local("watch");
                let local = self.local_changes();
                return Ok(match local {
                    Ok(local)
                        if Encoding::from_content_type(local.content_type())
                            == Some(self.encoding) =>
                    {
                        Source::Node(Box::new(local))
                    }
                    Ok(_) => Source::Nothing,
                    Err(status) => {
                        tracing::debug!(path = %self.watched.info.path, %status, "no local changes for this watch");
                        Source::Nothing
                    }
                });
            }
            let client = self.client.clone();
            let shutdown = self.hub.shutdown.clone();
            let deadline = self.deadline;
            let again = tokio::select! {
                again = self.ask_again() => again,
                () = client.closed() => return Err(Next::End),
                () = shutdown.cancelled() => return Err(Next::End),
                () = until(deadline) => return Err(Next::End),
            };
            match again {
                Again::Source(source) => return Ok(source),
                Again::End(next) => return Err(next),
                Again::Later => {}
            }
            tokio::select! {
                () = tokio::time::sleep(pause.mul_f64(0.5 + fastrand::f64())) => {}
                () = self.hub.until_mode_of(&self.watched.caller, Mode::Offline) => {}
                () = client.closed() => return Err(Next::End),
                () = shutdown.cancelled() => return Err(Next::End),
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Asks the cloud to go on where the client is.
    async fn ask_again(&mut self) -> Again {
        let resume = self.cursor.resume();
        if resume == Resume::Impossible {
            return Again::End(Next::Break("the watch cannot be resumed"));
        }
        let left = self
            .deadline
            .map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let query = resumed_query(&self.watched.info.query, &resume, left);
        let sent = self
            .hub
            .upstreams
            .send(&self.watched.caller, self.watched.outgoing(&query))
            .await;
        let (response, server) = match sent {
            Ok(answer) => answer,
            Err(SendError::Refused(why)) => {
                tracing::info!(path = %self.watched.info.path, why, "watch of a token that the cloud knows nothing of");
                return Again::End(Next::Break("the cloud does not accept the token"));
            }
            Err(error) => {
                tracing::debug!(path = %self.watched.info.path, %error, "watch not resumed yet");
                return Again::Later;
            }
        };
        let status = response.status();
        if status == StatusCode::TOO_MANY_REQUESTS || status.is_server_error() {
            return Again::Later;
        }
        if status != StatusCode::OK {
            return Again::End(self.refused(response).await);
        }
        if watch_encoding(&response) != Some(self.encoding) {
            return Again::End(Next::Break(
                "the cloud answers in another encoding than before",
            ));
        }
        self.hub.metrics.watches_resumed().inc();
        tracing::debug!(path = %self.watched.info.path, ?resume, server = server.authority(), "watch resumed");
        match &resume {
            Resume::At(revision) => self.learn_from(&revision.clone(), false),
            _ => {
                let options = &self.watched.options;
                let (since, initial) = (
                    options.resource_version.clone(),
                    options.send_initial_events == Some(true),
                );
                self.learn_from(&since, initial);
            }
        }
        Again::Source(Source::Cloud(response.into_body(), server))
    }

    /// The cloud will not go on (410, 403, ...): the client hears it in the stream, as it would from an API server.
    async fn refused(&mut self, response: Response<ResponseBody>) -> Next {
        const MOST: usize = 64 << 10;
        let code = response.status();
        let same_encoding = response
            .headers()
            .get(header::CONTENT_TYPE)
            .and_then(|value| value.to_str().ok())
            .and_then(Encoding::from_content_type)
            == Some(self.encoding);
        let body = yurt_transport::collect(response.into_body(), MOST)
            .await
            .unwrap_or_default();
        let told = Object {
            encoding: self.encoding,
            bytes: body,
        };
        let object = if same_encoding && told.key().is_ok_and(|id| id.kind == "Status") {
            told
        } else {
            let reason = match code {
                StatusCode::GONE => Reason::Expired,
                StatusCode::FORBIDDEN => Reason::Forbidden,
                StatusCode::UNAUTHORIZED => Reason::Unauthorized,
                StatusCode::NOT_FOUND => Reason::NotFound,
                _ => Reason::BadRequest,
            };
            let status = Status::new(reason, format!("the watch could not be resumed: {code}"));
            Object {
                encoding: self.encoding,
                bytes: status.to_bytes(self.encoding),
            }
        };
        let frame = watch::encode(EventType::Error, &object, self.encoding);
        match self.deliver(frame).await {
            Ok(()) => Next::End,
            Err(next) => next,
        }
    }
}
