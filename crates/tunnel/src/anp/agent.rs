//! Our agent at a server that is not ours.

use super::{
    AGENT_ID, AGENT_IDENTIFIERS, CONNECT, SEND_BUFFER, SERVER_COUNT, SERVER_ID, WINDOW,
    answering::Answering, packet::Packet,
};
use crate::{
    grpc,
    hello::{AgentHello, ServerHello},
    mux::Dialling,
    session::{Ended, Heard, Live, Options, Session, SessionError, until_silent},
};
use bytes::Bytes;
use h2::RecvStream;
use http::{HeaderMap, HeaderValue, Method, Request, header};
use std::{sync::Arc, time::Duration};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use yurt_transport::{BoxStream, Dialer};

/// gRPC servers put up with one ping in five minutes, unless configured otherwise, and hang up on more.
const QUIET: Duration = Duration::from_secs(5 * 60 + 10);
const PATIENCE: Duration = Duration::from_secs(20);

/// Connects as one of konnectivity's agents. `token` is the bearer token, where the server asks for one. `shutdown` tells the server
/// (DRAIN) and ends the session when nothing is open any more.
pub async fn connect(
    io: BoxStream,
    us: AgentHello,
    dialer: Arc<dyn Dialer>,
    token: Option<String>,
    options: Options,
    shutdown: CancellationToken,
) -> Result<Session, SessionError> {
    let (heard, pulse) = Heard::new(io);
    let limit = options.hello;
    let handshake = h2::client::Builder::new()
        .initial_window_size(WINDOW)
        .initial_connection_window_size(2 * WINDOW)
        .max_send_buffer_size(SEND_BUFFER)
        .enable_push(false)
        .handshake::<_, Bytes>(heard);
    let (requests, mut connection) = timeout(limit, handshake)
        .await
        .map_err(|_| SessionError::Silent(limit))??;
    let pings = connection.ping_pong();
    let gone = CancellationToken::new();
    let ends = gone.clone().drop_guard();
    let driving = tokio::spawn({
        let gone = gone.clone();
        async move {
            let _gone = gone.clone().drop_guard();
            tokio::select! {
                ended = connection => ended.map_or_else(
                    SessionError::from,
                    |()| SessionError::Broken("the other end closed it".into()),
                ),
                silence = until_silent(pulse, pings, QUIET, PATIENCE) => SessionError::Silent(silence),
                () = gone.cancelled() => SessionError::Closed,
            }
        }
    });

    let request = request(&us, token)?;
    let opening = async {
        let mut requests = requests.ready().await?;
        let (response, send) = requests.send_request(request, false)?;
        Ok::<_, SessionError>((response.await?, send, requests))
    };
    let (response, mut send, requests) = timeout(limit, opening)
        .await
        .unwrap_or(Err(SessionError::Silent(limit)))?;
    let server = greeting(&response)?;

    let live: Arc<Live> = Arc::default();
    let draining = CancellationToken::new();
    let answering = Answering::new(
        Arc::new(Dialling(dialer)),
        options.clone(),
        Arc::clone(&live),
        draining.clone(),
    );
    let recv = response.into_body();
    let counted = Arc::clone(&live);
    let running = tokio::spawn(async move {
        let _held = requests;
        let channel = Arc::clone(&answering.channel);
        let stopping = async {
            shutdown.cancelled().await;
            channel.say(Packet::Drain);
            tokio::select! {
                () = counted.idle() => {}
                () = sleep(options.drain) => {}
            }
        };
        let ended = tokio::select! {
            ended = answering.run(recv, &mut send) => ended,
            () = stopping => SessionError::Closed,
            () = gone.cancelled() => SessionError::Closed,
        };
        let _ = send.send_data(Bytes::new(), true);
        gone.cancel();
        // Why the connection ended says more than that its stream did.
        match (ended, driving.await) {
            (SessionError::Broken(_) | SessionError::Closed, Ok(why))
                if why != SessionError::Closed =>
            {
                why
            }
            (ended, _) => ended,
        }
    });
    Ok(Session {
        server,
        protocol: "anp",
        live,
        draining,
        ended: Ended(Box::pin(async move {
            running
                .await
                .unwrap_or_else(|error| SessionError::Broken(error.to_string()))
        })),
        _ends: ends,
    })
}

fn request(us: &AgentHello, token: Option<String>) -> Result<Request<()>, SessionError> {
    let value = |text: String| {
        HeaderValue::try_from(text).map_err(|error| SessionError::Protocol(error.to_string()))
    };
    let uri = http::Uri::builder()
        .scheme("https")
        .authority("tunnel")
        .path_and_query(CONNECT);
    let mut request = Request::new(());
    *request.method_mut() = Method::POST;
    *request.uri_mut() = uri
        .build()
        .map_err(|error| SessionError::Protocol(error.to_string()))?;
    let headers: &mut HeaderMap = request.headers_mut();
    headers.insert(header::CONTENT_TYPE, grpc::MEDIA_TYPE);
    headers.insert(header::TE, HeaderValue::from_static("trailers"));
    headers.insert(AGENT_ID, value(us.id.clone())?);
    headers.insert(AGENT_IDENTIFIERS, value(us.identifiers.to_string())?);
    if let Some(token) = token {
        let mut bearer = value(format!("Bearer {token}"))?;
        bearer.set_sensitive(true);
        headers.insert(header::AUTHORIZATION, bearer);
    }
    Ok(request)
}

fn greeting(response: &http::Response<RecvStream>) -> Result<ServerHello, SessionError> {
    let headers = response.headers();
    grpc::verdict(headers)?;
    if !response.status().is_success() {
        let status = response.status();
        return Err(SessionError::Protocol(format!(
            "the server answered {status}"
        )));
    }
    let one = |name: &'static str| {
        let mut all = headers.get_all(name).iter();
        match (all.next().and_then(|value| value.to_str().ok()), all.next()) {
            (Some(value), None) => Ok(value.to_owned()),
            _ => Err(SessionError::Protocol(format!("it did not say one {name}"))),
        }
    };
    let count = one(SERVER_COUNT)?;
    Ok(ServerHello {
        id: one(SERVER_ID)?,
        count: count
            .parse()
            .map_err(|_| SessionError::Protocol(format!("{count:?} servers")))?,
    })
}
