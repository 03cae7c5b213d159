//! Commands in containers and forwarded ports: the same over WebSockets and over SPDY.

use super::{
    Answer, Port, Query, Refusal,
    spdy::{self, headers, session},
    terminal, websocket,
};
use crate::kubelet::{
    container::{
        Container, http as container_http, shell,
        streams::{Size, Streams},
    },
    logs::{Asked, Source},
    pod,
};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, header};
use hyper::{body::Incoming, upgrade::OnUpgrade};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use std::{collections::HashMap, io, net::IpAddr, sync::Arc, time::Duration};
use tokio::{
    io::{
        AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader,
        DuplexStream,
    },
    net::TcpStream,
    sync::{Notify, mpsc, watch},
    task::JoinSet,
    time::timeout,
};
use yurt_transport::{Body, is_upgrade};

/// How long a client may take to switch protocols, and to open the streams it asked for.
const OPENING: Duration = Duration::from_secs(30);
/// How long a container's port may take to answer.
const CONNECT: Duration = Duration::from_secs(5);
/// What a terminal or a command holds that is not read.
const HELD: usize = 64 << 10;
/// The longest description of a terminal's size.
const MAX_RESIZE: u64 = 1 << 20;
/// Streams of forwarded connections that wait for their other half.
const MAX_WAITING: usize = 64;
/// The protocols of remote commands over SPDY, best first.
const COMMANDS: [&str; 2] = ["v5.channel.k8s.io", "v4.channel.k8s.io"];
const FORWARD: &str = "portforward.k8s.io";
/// SPDY in a WebSocket.
const TUNNELED: &str = "SPDY/3.1+portforward.k8s.io";
const STREAM_PROTOCOL: HeaderName = HeaderName::from_static("x-stream-protocol-version");

/// A command's streams: standard input, output, errors, its end, the terminal's size.
type Ends = [Option<DuplexStream>; websocket::CHANNELS];
const NAMES: [&str; websocket::CHANNELS] = ["stdin", "stdout", "stderr", "error", "resize"];

/// What is done with a command's streams.
struct Work {
    container: Arc<Container>,
    /// `None`: attach to what runs.
    command: Option<Vec<String>>,
    terminal: bool,
    wanted: [bool; websocket::CHANNELS],
}

fn switching(parts: &http::request::Parts) -> Result<OnUpgrade, Refusal> {
    if !is_upgrade(&parts.headers) {
        return Err(Refusal::bad("you must use an upgrade"));
    }
    let upgrade = parts.extensions.get::<OnUpgrade>().cloned();
    upgrade.ok_or_else(|| Refusal::bad("this connection cannot be upgraded"))
}

/// `/exec` and `/attach`.
pub(super) fn command(
    port: &Arc<Port>,
    request: Request<Incoming>,
    container: Arc<Container>,
    command: Option<Vec<String>>,
    query: &Query,
) -> Answer {
    let (parts, _) = request.into_parts();
    let terminal = query.flag("tty");
    let wanted = [
        query.flag("input"),
        query.flag("output"),
        // A terminal has one output.
        query.flag("error") && !terminal,
        true,
        terminal,
    ];
    if !wanted[..3].contains(&true) {
        return Err(Refusal::bad(
            "you must specify at least 1 of stdin, stdout, stderr",
        ));
    }
    if command.as_ref().is_some_and(Vec::is_empty) {
        return Err(Refusal::bad("you must specify a command"));
    }
    let upgrade = switching(&parts)?;
    let work = Work {
        container,
        command,
        terminal,
        wanted,
    };
    let shutdown = port.shutdown.clone();
    if websocket::is_websocket(&parts.headers) {
        let protocol = websocket::command_protocol(&parts.headers);
        let Some(protocol) = protocol.filter(|_| port.websockets) else {
            return Err(Refusal(
                StatusCode::FORBIDDEN,
                "none of the WebSocket protocols offered is served".into(),
            ));
        };
        let answer = websocket::accepted(&parts.headers, protocol.name)
            .ok_or_else(|| Refusal::bad("no Sec-WebSocket-Key"))?;
        tokio::spawn(async move {
            let Some(io) = switched(upgrade).await else {
                return;
            };
            let (ends, serving) = websocket::channels(io, protocol, work.wanted);
            let serving = tokio::spawn(serving);
            tokio::select! {
                () = work.run(ends, serving) => {}
                () = shutdown.cancelled() => {}
            }
        });
        return Ok(answer);
    }
    let answer = spdy_accepted(&parts.headers, &COMMANDS)?;
    tokio::spawn(async move {
        let Some(io) = switched(upgrade).await else {
            return;
        };
        let (mut opened, serving) = session::start(io);
        // How it ended shows in the streams.
        let serving = tokio::spawn(async move { drop(serving.await) });
        let ends = timeout(OPENING, collect(&mut opened, work.wanted)).await;
        drop(opened);
        if let Ok(Some(ends)) = ends {
            tokio::select! {
                () = work.run(ends, serving) => {}
                () = shutdown.cancelled() => {}
            }
        } else {
            serving.abort();
        }
    });
    Ok(answer)
}

async fn switched(upgrade: OnUpgrade) -> Option<TokioIo<hyper::upgrade::Upgraded>> {
    match timeout(OPENING, upgrade).await {
        Ok(Ok(upgraded)) => Some(TokioIo::new(upgraded)),
        _ => None,
    }
}

/// The 101 for SPDY with the best of `protocols` that the client offers; 403 when there is none.
fn spdy_accepted(headers: &HeaderMap, protocols: &[&'static str]) -> Answer {
    let upgrade = headers.get(header::UPGRADE);
    let spdy =
        upgrade.is_some_and(|v| v.as_bytes().eq_ignore_ascii_case(spdy::PROTOCOL.as_bytes()));
    if !spdy {
        let why = format!("unable to upgrade: missing upgrade headers in request: {upgrade:?}");
        return Err(Refusal::bad(why));
    }
    let offered: Vec<&str> = headers
        .get_all(&STREAM_PROTOCOL)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|text| text.split(','))
        .map(str::trim)
        .collect();
    let Some(chosen) = protocols.iter().find(|known| offered.contains(known)) else {
        return Err(Refusal(
            StatusCode::FORBIDDEN,
            format!(
                "unable to upgrade: unable to negotiate protocol: client supports {offered:?}, server accepts {protocols:?}"
            ),
        ));
    };
    let mut response: Response<Body> = Response::new(yurt_transport::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let head = response.headers_mut();
    head.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    head.insert(header::UPGRADE, HeaderValue::from_static(spdy::PROTOCOL));
    head.insert(STREAM_PROTOCOL, HeaderValue::from_static(chosen));
    Ok(response)
}

/// Waits for the streams a command needs; `None` when one comes that does not belong here.
async fn collect(
    opened: &mut mpsc::Receiver<session::Opened>,
    wanted: [bool; websocket::CHANNELS],
) -> Option<Ends> {
    let mut ends: Ends = Default::default();
    while wanted
        .iter()
        .zip(&ends)
        .any(|(wanted, end)| *wanted && end.is_none())
    {
        let stream = opened.recv().await?;
        let kind = headers::find(&stream.headers, "streamtype")?;
        let which = NAMES.iter().position(|name| *name == kind)?;
        ends[which] = Some(stream.stream);
    }
    Some(ends)
}

impl Work {
    /// Does it, tells how it ended, and waits until the client has been told. A client that goes away ends it.
    async fn run(self, ends: Ends, mut serving: tokio::task::JoinHandle<()>) {
        let [stdin, stdout, stderr, error, resize] = ends;
        let Some(mut error) = error else { return };
        let done = async {
            let status = Box::pin(self.work(stdin, stdout, stderr, resize)).await;
            // The client may not wait for it.
            let _ = error.write_all(status.to_string().as_bytes()).await;
            drop(error);
        };
        tokio::select! {
            _ = &mut serving => return,
            () = done => {}
        }
        // Sends what is left, for a bounded time.
        let _ = serving.await;
    }

    async fn work(
        &self,
        stdin: Option<DuplexStream>,
        stdout: Option<DuplexStream>,
        stderr: Option<DuplexStream>,
        resize: Option<DuplexStream>,
    ) -> Value {
        let Some(command) = &self.command else {
            self.attach(stdin, stdout).await;
            return ended(0);
        };
        let container = Arc::clone(&self.container);
        if !self.terminal {
            // A stream that is not wanted takes everything and gives nothing.
            let stdout: Box<dyn AsyncWrite + Send + Unpin> = or_nothing(stdout);
            let stderr: Box<dyn AsyncWrite + Send + Unpin> = or_nothing(stderr);
            let streams = match stdin {
                Some(stdin) => Streams::new(stdin, stdout, Some(stderr), None),
                None => Streams::new(tokio::io::empty(), stdout, Some(stderr), None),
            };
            return ended(shell::run(container, command, streams).await);
        }
        let (size, seen) = watch::channel(Size::default());
        let (input, read) = tokio::io::duplex(HELD);
        let (print, output) = tokio::io::duplex(HELD);
        let Some(screen) = stdout else {
            return ended(
                shell::run(
                    container,
                    command,
                    Streams::new(read, tokio::io::sink(), None, Some(seen)),
                )
                .await,
            );
        };
        let interrupted = Arc::new(Notify::new());
        let driving = terminal::drive(stdin, screen, input, output, Arc::clone(&interrupted));
        let running = async move {
            let streams = Streams::new(read, print, None, Some(seen));
            tokio::select! {
                code = shell::run(container, command, streams) => code,
                () = interrupted.notified() => 130,
            }
        };
        let resizing = async {
            if let Some(resize) = resize {
                resized(resize, &size).await;
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            (code, ()) = async { tokio::join!(running, driving) } => ended(code),
            () = resizing => ended(0),
        }
    }

    /// Shows what the container prints from now on; what is typed is printed by it.
    async fn attach(&self, stdin: Option<DuplexStream>, stdout: Option<DuplexStream>) {
        let Some(output) = self.container.output.clone() else {
            return;
        };
        let mut reader = output.read(Asked {
            follow: true,
            tail: Some(0),
            ..Asked::default()
        });
        let mut screen: Box<dyn AsyncWrite + Send + Unpin> = or_nothing(stdout);
        let typed = async {
            let Some(stdin) = stdin else {
                return std::future::pending::<()>().await;
            };
            let mut lines = BufReader::new(stdin);
            let mut line = Vec::new();
            loop {
                line.clear();
                let read = (&mut lines)
                    .take(HELD as u64)
                    .read_until(b'\n', &mut line)
                    .await;
                match read {
                    Ok(count) if count > 0 => output.append(Source::Stdout, &line),
                    _ => return,
                }
            }
        };
        tokio::pin!(typed);
        let mut over = false;
        loop {
            let piece = tokio::select! {
                // First what was printed, then the end.
                biased;
                piece = reader.next() => piece,
                () = &mut typed, if !over => { over = true; continue }
                () = std::future::ready(()), if over => None,
            };
            let Some(piece) = piece else { return };
            if screen.write_all(&piece).await.is_err() {
                return;
            }
        }
    }
}

fn or_nothing(stream: Option<DuplexStream>) -> Box<dyn AsyncWrite + Send + Unpin> {
    match stream {
        Some(stream) => Box::new(stream),
        None => Box::new(tokio::io::sink()),
    }
}

/// Follows the sizes of a terminal: `{"Width":80,"Height":24}`, one after the other.
async fn resized(stream: DuplexStream, size: &watch::Sender<Size>) {
    let mut stream = BufReader::new(stream).take(MAX_RESIZE);
    let mut text = Vec::new();
    while let Ok(count) = stream.read_until(b'}', &mut text).await {
        if count == 0 {
            return;
        }
        if let Ok(value) = serde_json::from_slice::<Value>(&text) {
            let number = |field: &str| {
                let number = value[field].as_u64().unwrap_or_default();
                u16::try_from(number).unwrap_or(u16::MAX)
            };
            size.send_replace(Size {
                width: number("Width"),
                height: number("Height"),
            });
        }
        text.clear();
        stream.set_limit(MAX_RESIZE);
    }
}

/// How a command ended, as clients read it from the error stream.
fn ended(code: i32) -> Value {
    if code == 0 {
        return json!({"metadata": {}, "status": "Success"});
    }
    json!({
        "metadata": {}, "status": "Failure", "reason": "NonZeroExitCode",
        "message": format!("command terminated with non-zero exit code: exit status {code}"),
        "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
    })
}

/// `/portForward`.
pub(super) fn port_forward(
    port: &Arc<Port>,
    request: Request<Incoming>,
    pod: Arc<Value>,
) -> Answer {
    let (parts, _) = request.into_parts();
    let upgrade = switching(&parts)?;
    let tunneled = websocket::is_websocket(&parts.headers);
    let answer = match tunneled {
        false => spdy_accepted(&parts.headers, &[FORWARD])?,
        true if !port.websockets || !websocket::offers(&parts.headers, TUNNELED) => {
            return Err(Refusal(
                StatusCode::FORBIDDEN,
                format!("at most {TUNNELED} is served over WebSockets"),
            ));
        }
        true => websocket::accepted(&parts.headers, TUNNELED)
            .ok_or_else(|| Refusal::bad("no Sec-WebSocket-Key"))?,
    };
    let port = Arc::clone(port);
    tokio::spawn(async move {
        let Some(io) = switched(upgrade).await else {
            return;
        };
        let shutdown = port.shutdown.clone();
        let forwarding = async {
            if tunneled {
                forward(&port, pod, websocket::tunnel(io)).await;
            } else {
                forward(&port, pod, io).await;
            }
        };
        tokio::select! {
            () = forwarding => {}
            () = shutdown.cancelled() => {}
        }
    });
    Ok(answer)
}

/// Pairs the streams of each connection and joins them with the pod's port.
async fn forward<S>(port: &Arc<Port>, pod: Arc<Value>, io: S)
where
    S: AsyncRead + AsyncWrite + Send + 'static,
{
    let (mut opened, serving) = session::start(io);
    let connecting = async {
        let mut waiting: HashMap<String, session::Opened> = HashMap::new();
        let mut connections = JoinSet::new();
        while let Some(stream) = opened.recv().await {
            while connections.try_join_next().is_some() {}
            let request = headers::find(&stream.headers, "requestid").unwrap_or_default();
            let Some(other) = waiting.remove(request) else {
                if waiting.len() < MAX_WAITING {
                    waiting.insert(request.to_owned(), stream);
                }
                continue;
            };
            let is_data =
                |s: &session::Opened| headers::find(&s.headers, "streamtype") == Some("data");
            let (data, error) = match is_data(&stream) {
                true => (stream, other),
                false => (other, stream),
            };
            let (port, pod) = (Arc::clone(port), Arc::clone(&pod));
            connections.spawn(async move { connect(&port, &pod, data, error.stream).await });
        }
        while connections.join_next().await.is_some() {}
    };
    // The session ends with the client, and then what was joined to it.
    let (served, ()) = tokio::join!(serving, connecting);
    if let Err(error) = served {
        tracing::debug!(%error, "a port-forward ended");
    }
}

async fn connect(port: &Port, pod: &Arc<Value>, data: session::Opened, mut error: DuplexStream) {
    let number = headers::find(&data.headers, "port").and_then(|port| port.parse().ok());
    let mut stream = data.stream;
    let joined = match number {
        None => Err(io::Error::other("no port is named")),
        Some(number) => join(port, pod, number, &mut stream).await,
    };
    if let Err(why) = joined {
        let text = format!(
            "error forwarding port {} to pod {}, uid : {why}",
            number.unwrap_or_default(),
            pod::uid(pod)
        );
        // The client may have gone.
        let _ = error.write_all(text.as_bytes()).await;
    }
}

/// A real listener on the node's address, or the simulated container's.
async fn join(
    port: &Port,
    pod: &Arc<Value>,
    number: u16,
    stream: &mut DuplexStream,
) -> io::Result<()> {
    let node: IpAddr = port.kubelet.config.address;
    let listener = timeout(CONNECT, TcpStream::connect((node, number))).await;
    if let Ok(Ok(mut listener)) = listener {
        tokio::io::copy_bidirectional(stream, &mut listener).await?;
        return Ok(());
    }
    let Some(container) = container_http::container_of(pod, number) else {
        return Err(io::Error::other(format!(
            "failed to connect to localhost:{number} inside namespace \"simulated\", IPv4: dial tcp4 127.0.0.1:{number}: connect: connection refused"
        )));
    };
    let container = port
        .kubelet
        .containers
        .container(pod, container, &port.kubelet.api);
    let (mut ours, theirs) = tokio::io::duplex(HELD);
    let serving = container_http::serve(theirs, Arc::clone(pod), number, container.output);
    let (copied, ()) = tokio::join!(tokio::io::copy_bidirectional(stream, &mut ours), serving);
    copied.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_told_as_statuses() {
        assert_eq!(ended(0)["status"], "Success");
        assert_eq!(ended(3)["details"]["causes"][0]["message"], "3");
    }

    #[test]
    fn spdy_is_negotiated() {
        let mut headers = HeaderMap::new();
        headers.insert(header::UPGRADE, HeaderValue::from_static("SPDY/3.1"));
        headers.append(
            STREAM_PROTOCOL,
            HeaderValue::from_static("v9.channel.k8s.io"),
        );
        assert_eq!(
            spdy_accepted(&headers, &COMMANDS).unwrap_err().0,
            StatusCode::FORBIDDEN
        );
        headers.append(
            STREAM_PROTOCOL,
            HeaderValue::from_static("v4.channel.k8s.io"),
        );
        let accepted = spdy_accepted(&headers, &COMMANDS).unwrap();
        assert_eq!(accepted.headers()[STREAM_PROTOCOL], "v4.channel.k8s.io");
        headers.remove(header::UPGRADE);
        assert_eq!(
            spdy_accepted(&headers, &COMMANDS).unwrap_err().0,
            StatusCode::BAD_REQUEST
        );
    }

    #[tokio::test]
    async fn sizes_follow_each_other() {
        let (mut client, stream) = tokio::io::duplex(1024);
        let (sender, seen) = watch::channel(Size::default());
        client
            .write_all(b"{\"Width\":1,\"Height\":2}\n{\"Width\":80,\"Height\":24}")
            .await
            .unwrap();
        drop(client);
        resized(stream, &sender).await;
        let size = *seen.borrow();
        assert_eq!((size.width, size.height), (80, 24));
    }
}
