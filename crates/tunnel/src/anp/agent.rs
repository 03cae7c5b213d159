//! Our agent at a server that is not ours.

use super::{
    AGENT_ID, AGENT_IDENTIFIERS, CONNECT, SEND_BUFFER, SERVER_COUNT, SERVER_ID, WINDOW,
    answering::Answering, packet::Packet,
};
use crate::{
    grpc,
    hello::{AgentHello, ServerHello},
    mux::Dialling,
    session::{Ended, Heard, Live, Options, Question, Session, SessionError, until_silent},
};
use bytes::{Bytes, BytesMut};
use h2::{RecvStream, client::SendRequest};
use http::{HeaderMap, HeaderValue, Request, header};
use std::{sync::Arc, time::Duration};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use yurt_transport::{BoxStream, Dialer};

/// Of whether it lives.
const HEALTH: &str = "/grpc.health.v1.Health/Check";
/// Silence after which a server is asked whether it lives.
const QUIET: Duration = Duration::from_secs(12);
/// How long it may then stay silent. A server that is busy with the packets of thousands of agents is not dead.
const PATIENCE: Duration = Duration::from_secs(12);

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
    let (requests, connection) = timeout(limit, handshake)
        .await
        .map_err(|_| SessionError::Silent(limit))??;
    let health = Some(Health(requests.clone()));
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
                silence = until_silent(pulse, health, QUIET, PATIENCE) => SessionError::Silent(silence),
                () = gone.cancelled() => SessionError::Closed,
            }
        }
    });

    let request = hello(&us, token)?;
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
        round_trip: None,
        live,
        draining,
        ended: Ended::with(running),
        _ends: ends,
    })
}

fn hello(us: &AgentHello, token: Option<String>) -> Result<Request<()>, SessionError> {
    let value = |text: String| {
        HeaderValue::try_from(text).map_err(|error| SessionError::Protocol(error.to_string()))
    };
    let mut request = grpc::request(CONNECT);
    let headers: &mut HeaderMap = request.headers_mut();
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
        quic: None,
    })
}

/// gRPC servers count pings on a link that is otherwise silent, and hang up on more than one in five minutes unless configured
/// otherwise. A call is no ping: its answer proves moreover that the process lives, not only its kernel. The health service is what
/// one asks a server (<https://github.com/grpc/grpc/blob/master/doc/health-checking.md>); that it is not implemented is an answer.
struct Health(SendRequest<Bytes>);

impl Question for Health {
    /// A server that takes no more streams is not asked: it may be alive.
    async fn ready(&mut self) {
        if self.0.clone().ready().await.is_err() {
            // The connection is over: who drives it knows why.
            std::future::pending().await
        }
    }

    async fn ask(&mut self) -> Result<(), h2::Error> {
        let mut requests = self.0.clone().ready().await?;
        let (response, mut send) = requests.send_request(grpc::request(HEALTH), false)?;
        let mut empty = BytesMut::new();
        grpc::frame(&mut empty, 0, |_| ());
        send.send_data(empty.freeze(), true)?;
        let answered = async {
            let mut body = response.await?.into_body();
            while let Some(data) = body.data().await {
                let count = data?.len();
                body.flow_control().release_capacity(count)?;
            }
            Ok::<(), h2::Error>(())
        };
        match answered.await {
            Err(error) if error.is_reset() => Ok(()),
            answered => answered,
        }
    }
}
