//! Requests that the cloud answers: how they are sent, what is learned of the answer, and what is said when none comes.

use super::{Call, Ending, Hub, document_key, text, upload::too_large_status};
use crate::{
    cache::Asked,
    caller::Caller,
    deadline, identity,
    journal::Waiting,
    metrics::InFlight,
    proxy::upload::Upload,
    route,
    tee::{Passing, Silence, Subject, Tee},
    upstream::{Outgoing, OutgoingBody, SendError, Server},
};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header};
use http_body_util::BodyExt;
use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};
use yurt_transport::{Body, ClientError, ResponseBody};
use yurt_wire::{Encoding, Object, Reason, RequestInfo, Status, Verb};

impl Hub {
    pub(super) async fn forward(
        self: &Arc<Self>,
        call: Call,
        body: Upload,
        fallback: bool,
    ) -> Result<Response<Body>, Box<Status>> {
        let too_large = Arc::new(AtomicBool::new(false));
        let (body, held) = match body {
            Upload::Stream(body) => {
                self.take_body(&call.parts.headers, body, fallback, &too_large)
                    .await?
            }
            Upload::Held(bytes) => (OutgoingBody::Held(bytes.clone()), Some(bytes)),
        };
        let mut headers = call.parts.headers.clone();
        identity::clean_request(&mut headers, false);
        let subject = self.subject(&call, held.as_ref());
        let taught = self.learns_from(&call.parts.headers);
        let view = taught
            && route::is_view(
                &call.info,
                call.representation.as_ref(),
                call.identity.impersonates,
            );
        if subject.is_some() || call.parts.method.is_safe() {
            // What the cache reads must be in an encoding that it knows; the client gets no other than it accepts.
            let gzip = text(&headers, header::ACCEPT_ENCODING)
                .split(',')
                .any(|coding| coding.trim().eq_ignore_ascii_case("gzip"));
            let coding = if gzip { "gzip" } else { "identity" };
            headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static(coding));
        }
        let outgoing = Outgoing {
            method: call.parts.method.clone(),
            uri: call.parts.uri.clone(),
            headers,
            body,
            wait: deadline::head_wait(&call.info),
            safe: call.parts.method.is_safe(),
        };
        let view_headers = view.then(|| outgoing.headers.clone());
        let overtaken = self.overtaken(&call);
        let asked = self.asked(&call.info, taught);
        let (response, server) = match self.upstreams.send(&call.identity.caller, outgoing).await {
            Ok(answer) => answer,
            Err(_) if too_large.load(Ordering::Relaxed) => {
                return Err(too_large_status(self.bounds.request_body));
            }
            Err(error) => return self.instead(&call, held, fallback, error).await,
        };
        let status = response.status();
        // It is the node's certificate that the cloud does not accept: as if the node had none.
        if status == StatusCode::UNAUTHORIZED
            && self.autonomous
            && fallback
            && !call.identity.caller.has_token()
            && let Some(body) = &held
            && let Ok(known) = self.locally(&call, body.clone()).await
            && known.status().is_success()
        {
            return Ok(known);
        }
        if self.autonomous && !call.identity.impersonates {
            self.learn_acceptance(
                &call.identity.caller,
                status,
                &call.info,
                &call.parts.headers,
            );
        }
        if status.is_success()
            && let Some(waiting) = overtaken
        {
            let journal = self.journal.clone();
            // In a task: the client may go, the cloud has the write.
            let _ = self
                .tasks
                .spawn(async move { journal.superseded(*waiting).await })
                .await;
        }
        if status.is_success()
            && let Some(headers) = view_headers
        {
            self.backing
                .read(&call.identity.caller, &call.info, &headers);
        }
        let subject = match status {
            _ if call.parts.method == Method::HEAD => None,
            StatusCode::OK | StatusCode::CREATED | StatusCode::ACCEPTED => subject,
            StatusCode::NOT_FOUND if taught => {
                route::teaches_not_found(&call.info, call.identity.impersonates)
            }
            _ => None,
        };
        let tee = subject.and_then(|subject| {
            self.tee(&call.identity.caller, subject, asked, response.headers())
        });
        let silence = deadline::ends(&call.info).then(|| self.silence());
        let response = self.pass(response, server, tee, call.in_flight, silence);
        Ok(if call.info.verb == Verb::Watch {
            response.map(|body| {
                Ending::new(body, self.shutdown.clone().cancelled_owned()).boxed_unsync()
            })
        } else {
            response
        })
    }

    /// The node's older write of the object that a write sent to the cloud now goes ahead of.
    fn overtaken(&self, call: &Call) -> Option<Box<Waiting>> {
        let info = &call.info;
        let replaces = call.identity.caller == Caller::Node
            && !call.identity.impersonates
            && self.autonomous
            && route::replaces_status(info)
            && self.offline.keeps(&call.identity.caller, info);
        if !replaces {
            return None;
        }
        self.journal
            .waiting(&info.gvr(), &info.namespace, &info.name)
            // Rare, and each request under way would hold the room for it.
            .map(Box::new)
    }

    /// What a successful answer would teach.
    fn subject(&self, call: &Call, held: Option<&Bytes>) -> Option<Subject> {
        if !self.autonomous {
            return None;
        }
        if !call.identity.impersonates
            && let Some(question) = Self::remembers(&call.identity.caller, &call.info)
        {
            let encoding =
                Encoding::from_content_type(text(&call.parts.headers, header::CONTENT_TYPE))?;
            let asked = Object {
                encoding,
                bytes: held?.clone(),
            };
            return Some(Subject::Answer { question, asked });
        }
        if !call.info.is_resource {
            let document = !call.identity.impersonates
                && route::is_document(&call.parts.method, &call.info.path);
            return document.then(|| Subject::Document {
                path: document_key(&call.info.path),
                content_type: String::new(),
            });
        }
        if !self.learns_from(&call.parts.headers) {
            return None;
        }
        route::teaches(
            &call.info,
            &call.options,
            call.representation.as_ref(),
            call.identity.impersonates,
        )
    }

    /// What an answer about one object is to be held against.
    fn asked(&self, info: &RequestInfo, taught: bool) -> Asked {
        if !taught || !info.is_resource || info.name.is_empty() {
            return Asked::default();
        }
        let asked = self.cache.asked(&info.gvr());
        if info.query.is_empty() {
            return asked;
        }
        let options = info.list_options().unwrap_or_default();
        asked.not_older_than(&options.resource_version)
    }

    fn tee(
        &self,
        caller: &Caller,
        mut subject: Subject,
        asked: Asked,
        headers: &HeaderMap,
    ) -> Option<Tee> {
        let gzip = match text(headers, header::CONTENT_ENCODING) {
            "" | "identity" => false,
            "gzip" => true,
            _ => return None,
        };
        let kind = text(headers, header::CONTENT_TYPE);
        let encoding = match &mut subject {
            Subject::Document { content_type, .. } => {
                kind.clone_into(content_type);
                Encoding::Json
            }
            _ => Encoding::from_content_type(kind)?,
        };
        let caller = caller.clone();
        Some(self.teacher.tee(caller, subject, asked, encoding, gzip))
    }

    /// No API server answered.
    async fn instead(
        &self,
        call: &Call,
        held: Option<Bytes>,
        fallback: bool,
        error: SendError,
    ) -> Result<Response<Body>, Box<Status>> {
        let failure = match error {
            SendError::NoIdentity if self.certificates.identity_wanted() => {
                return match held {
                    Some(body) if !call.identity.impersonates => self.locally(call, body).await,
                    _ => {
                        Err(self
                            .unavailable(&call.identity.caller, "only the cloud can answer this"))
                    }
                };
            }
            SendError::NoIdentity => {
                return Err(identity::unauthorized(
                    "Unauthorized: this node has no certificate for the cloud; bring a bearer token",
                ));
            }
            SendError::Refused(why) => {
                return Err(identity::unauthorized(&format!("Unauthorized: {why}")));
            }
            SendError::NotExchanged(_) => {
                return Err(Box::new(Status::service_unavailable(error.to_string())));
            }
            // The link just went: as if the request had come a moment later.
            SendError::NoServer => {
                return match held {
                    Some(body) if self.autonomous && !call.identity.impersonates => {
                        self.locally(call, body).await
                    }
                    _ => {
                        Err(self
                            .unavailable(&call.identity.caller, "only the cloud can answer this"))
                    }
                };
            }
            SendError::Failed(failure) => failure,
        };
        if fallback && let Some(body) = held {
            let response = self.locally(call, body).await?;
            if response.status().is_success() || !self.upstreams.reachable() {
                return Ok(response);
            }
        }
        tracing::info!(path = %call.info.path, error = %failure, "the cloud did not answer");
        let (reason, message) = match &failure {
            ClientError::Timeout { .. } => (
                Reason::Timeout,
                "it is not known whether the request was carried out",
            ),
            ClientError::Broken { .. } => (
                Reason::ServerTimeout,
                "it is not known whether the request was carried out",
            ),
            ClientError::Connect { .. } | ClientError::Tls { .. } => {
                (Reason::ServiceUnavailable, "the request was not sent")
            }
        };
        let detail = if call.parts.method.is_safe() {
            ""
        } else {
            message
        };
        let joint = if detail.is_empty() { "" } else { "; " };
        Err(Box::new(Status::new(
            reason,
            format!("{failure}{joint}{detail}"),
        )))
    }

    /// Passes an answer of the cloud on.
    pub fn pass(
        &self,
        response: Response<ResponseBody>,
        server: Arc<Server>,
        tee: Option<Tee>,
        in_flight: InFlight,
        silence: Option<Silence>,
    ) -> Response<Body> {
        let (mut head, body) = response.into_parts();
        yurt_transport::strip_hop_by_hop(&mut head.headers, false);
        head.version = http::Version::HTTP_11;
        head.extensions = http::Extensions::new();
        Response::from_parts(
            head,
            Passing::new(body, server, tee, in_flight, silence).boxed_unsync(),
        )
    }

    /// The bound of the cloud's silence within an answer that is not followed for what may come.
    pub fn silence(&self) -> Silence {
        Silence::new(self.bounds.stalled_answer, self.metrics.clone())
    }
}
