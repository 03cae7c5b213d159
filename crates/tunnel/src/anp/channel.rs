//! The connections of one gRPC stream as byte streams, and the queues between them and the stream.

use super::{
    core::{Action, Core, Role},
    packet::Packet,
};
use crate::{
    grpc::{self, Frames},
    session::{Occupied, SessionError},
};
use bytes::{Buf, Bytes, BytesMut};
use h2::{RecvStream, SendStream};
use std::{
    collections::{HashMap, VecDeque},
    future::poll_fn,
    io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    runtime::Handle,
    time::{Instant, sleep_until, timeout},
};

/// What may wait for the reader of one connection.
const INLET: usize = 4 << 20;
/// When that is reached, how much of it a reader has to take ...
const CATCH_UP: usize = 64 << 10;
/// ... in how long, for its connection not to be cut. All connections of the stream wait meanwhile.
const PAUSE: Duration = Duration::from_millis(100);
/// What one connection may have waiting to be sent.
const LANE: usize = 256 << 10;
/// Bytes of one DATA packet, and what is sent at once.
const PACKET: usize = 32 << 10;
/// Control packets that may wait; a peer that causes more does not read.
const MAX_URGENT: usize = 64 << 10;
/// After the end of what is said, how long to wait for more of an answer before closing: the protocol has no half-close.
const ANSWER: Duration = Duration::from_secs(1);

/// All connections of a gRPC stream.
#[derive(Debug)]
pub(super) struct Channel(Mutex<State>);

#[derive(Debug)]
struct State {
    core: Core,
    lines: HashMap<i64, Line>,
    urgent: VecDeque<Packet>,
    /// Whose turn it is to send.
    turn: VecDeque<i64>,
    writer: Option<Waker>,
    ended: Option<String>,
}

/// One connection.
#[derive(Debug)]
struct Line {
    inlet: VecDeque<Bytes>,
    waiting: usize,
    /// The other end closed it; the text is an error, or empty.
    end: Option<String>,
    reader: Option<Waker>,
    /// Waits for the reader to catch up.
    feeder: Option<Waker>,
    lane: VecDeque<Bytes>,
    queued: usize,
    writer: Option<Waker>,
    /// Waits for nothing but the end.
    watcher: Option<Waker>,
    /// Sent when the lane is empty.
    last: Option<Packet>,
    /// Bytes were received then last.
    heard: Instant,
    /// Its stream is still held by somebody.
    held: bool,
}

impl Line {
    fn new() -> Self {
        Self {
            inlet: VecDeque::new(),
            waiting: 0,
            end: None,
            reader: None,
            feeder: None,
            lane: VecDeque::new(),
            queued: 0,
            writer: None,
            watcher: None,
            last: None,
            heard: Instant::now(),
            held: true,
        }
    }

    /// Nothing goes out any more.
    fn mute(&mut self) {
        self.lane.clear();
        self.queued = 0;
        wake(&mut self.writer);
    }

    fn finish(&mut self, error: String) {
        self.end.get_or_insert(error);
        self.mute();
        wake(&mut self.reader);
        wake(&mut self.feeder);
        wake(&mut self.watcher);
    }
}

fn wake(waker: &mut Option<Waker>) {
    if let Some(waker) = waker.take() {
        waker.wake();
    }
}

impl State {
    fn send(&mut self, packet: Packet) {
        self.urgent.push_back(packet);
        wake(&mut self.writer);
    }

    fn pop(&mut self) -> Option<Packet> {
        if let Some(packet) = self.urgent.pop_front() {
            return Some(packet);
        }
        while let Some(id) = self.turn.pop_front() {
            let Some(line) = self.lines.get_mut(&id) else {
                continue;
            };
            if let Some(data) = line.lane.pop_front() {
                line.queued -= data.len();
                wake(&mut line.writer);
                if !line.lane.is_empty() || line.last.is_some() {
                    self.turn.push_back(id);
                }
                return Some(Packet::Data { id, data });
            }
            if let Some(last) = line.last.take() {
                if !line.held {
                    self.lines.remove(&id);
                }
                return Some(last);
            }
        }
        None
    }
}

impl Channel {
    pub(super) fn new(role: Role, max_connections: usize) -> Arc<Self> {
        Arc::new(Self(Mutex::new(State {
            core: Core::new(role, max_connections),
            lines: HashMap::new(),
            urgent: VecDeque::new(),
            turn: VecDeque::new(),
            writer: None,
            ended: None,
        })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asking: sends a dial, unless there are too many.
    pub(super) fn dial(&self, random: i64, address: String) -> bool {
        let mut state = self.state();
        let packet = state.core.dial(random, address);
        let begun = packet.is_some();
        packet.into_iter().for_each(|packet| state.send(packet));
        begun
    }

    /// Asking: a dial is waited for no more.
    pub(super) fn give_up(&self, random: i64) {
        let mut state = self.state();
        if let Some(packet) = state.core.give_up(random) {
            state.send(packet);
        }
    }

    /// Answering: a dial ended. The connection's number, unless there is none.
    pub(super) fn dialled(&self, random: i64, outcome: Result<(), String>) -> Option<i64> {
        let mut state = self.state();
        let (id, packet) = state.core.dialled(random, outcome)?;
        state.send(packet);
        if id == 0 {
            return None;
        }
        state.lines.insert(id, Line::new());
        Some(id)
    }

    /// Sends a packet that belongs to no connection.
    pub(super) fn say(&self, packet: Packet) {
        self.state().send(packet);
    }

    /// The stream of a connection that the core knows.
    pub(super) fn stream(self: &Arc<Self>, id: i64, held: Occupied) -> AnpStream {
        AnpStream {
            channel: Arc::clone(self),
            id,
            shut: false,
            _held: held,
        }
    }

    /// Closes a connection that nobody took.
    pub(super) fn abandon(&self, id: i64) {
        let mut state = self.state();
        state.lines.remove(&id);
        if let Some(packet) = state.core.close(id, "") {
            state.send(packet);
        }
    }

    /// Ends everything.
    pub(super) fn end(&self, why: &str) {
        let mut state = self.state();
        state.ended.get_or_insert_with(|| why.to_owned());
        state.core.clear();
        state.urgent.clear();
        state.turn.clear();
        for line in state.lines.values_mut() {
            line.last = None;
            line.finish(why.to_owned());
        }
        wake(&mut state.writer);
    }

    fn receive(&self, packet: Packet) -> Result<Received, SessionError> {
        let mut state = self.state();
        let Some(action) = state.core.receive(packet) else {
            return Ok(Received::Nothing);
        };
        if state.urgent.len() > MAX_URGENT {
            return Err(SessionError::Protocol(
                "asks for more answers than it reads".into(),
            ));
        }
        match action {
            Action::Send(packet) => state.send(packet),
            Action::Deliver { id, data } => {
                if let Some(line) = state.lines.get_mut(&id) {
                    line.heard = Instant::now();
                    line.waiting += data.len();
                    line.inlet.push_back(data);
                    wake(&mut line.reader);
                    if line.waiting > INLET {
                        return Ok(Received::Full(id));
                    }
                }
            }
            Action::End { id, error, answer } => {
                answer.into_iter().for_each(|packet| state.send(packet));
                if let Some(line) = state.lines.get_mut(&id) {
                    line.finish(error);
                }
            }
            Action::Opened { random, id } => {
                state.lines.insert(id, Line::new());
                return Ok(Received::Event(Event::Opened { random, id }));
            }
            Action::Dial { random, address } => {
                return Ok(Received::Event(Event::Dial { random, address }));
            }
            Action::GiveUp { random } => return Ok(Received::Event(Event::GiveUp { random })),
            Action::Refused { random, error } => {
                return Ok(Received::Event(Event::Refused { random, error }));
            }
            Action::Drain => return Ok(Received::Event(Event::Drain)),
        }
        Ok(Received::Nothing)
    }

    /// Waits until the reader of a connection caught up, or is gone.
    async fn caught_up(&self, id: i64) {
        poll_fn(|context| {
            let mut state = self.state();
            match state.lines.get_mut(&id) {
                Some(line) if line.end.is_none() && line.waiting > INLET - CATCH_UP => {
                    line.feeder = Some(context.waker().clone());
                    Poll::Pending
                }
                _ => Poll::Ready(()),
            }
        })
        .await;
    }

    /// Cuts a connection whose reader does not read.
    fn overflow(&self, id: i64) {
        tracing::warn!(
            connection = id,
            "cut: its reader takes nothing, and the protocol cannot wait for it"
        );
        let mut state = self.state();
        let packet = state.core.close(id, "the reader is too slow");
        packet.into_iter().for_each(|packet| state.send(packet));
        if let Some(line) = state.lines.get_mut(&id) {
            line.inlet.clear();
            line.waiting = 0;
            line.finish("more was sent than the reader took".into());
        }
    }

    /// Reads packets until the stream ends, and tells what is for others to do.
    pub(super) async fn read(
        &self,
        mut stream: RecvStream,
        mut tell: impl FnMut(Event),
    ) -> SessionError {
        let mut frames = Frames::default();
        loop {
            let data = match stream.data().await {
                Some(Ok(data)) => data,
                Some(Err(error)) => return error.into(),
                None => break,
            };
            let _ = stream.flow_control().release_capacity(data.len());
            frames.push(&data);
            loop {
                let packet = match frames.next() {
                    Ok(None) => break,
                    Ok(Some(message)) => Packet::decode(&message)
                        .map_err(|error| SessionError::Protocol(error.to_string())),
                    Err(error) => Err(error),
                };
                let received = match packet {
                    Ok(None) => Ok(Received::Nothing),
                    Ok(Some(packet)) => self.receive(packet),
                    Err(error) => Err(error),
                };
                match received {
                    Err(error) => return error,
                    Ok(Received::Nothing) => {}
                    Ok(Received::Event(event)) => tell(event),
                    Ok(Received::Full(id)) => {
                        if timeout(PAUSE, self.caught_up(id)).await.is_err() {
                            self.overflow(id);
                        }
                    }
                }
            }
        }
        match stream.trailers().await {
            Ok(Some(trailers)) => grpc::verdict(&trailers)
                .err()
                .unwrap_or_else(|| SessionError::Broken("the other end ended it".into())),
            _ => SessionError::Broken("the other end closed it".into()),
        }
    }

    /// Sends packets until the stream or the channel ends.
    pub(super) async fn write(&self, stream: &mut SendStream<Bytes>) -> Result<(), SessionError> {
        loop {
            let mut out = BytesMut::new();
            let more = poll_fn(|context| {
                let mut state = self.state();
                while out.len() < PACKET {
                    match state.pop() {
                        Some(packet) => packet.encode(&mut out),
                        None => break,
                    }
                }
                if !out.is_empty() {
                    return Poll::Ready(true);
                }
                if state.ended.is_some() {
                    return Poll::Ready(false);
                }
                state.writer = Some(context.waker().clone());
                Poll::Pending
            })
            .await;
            if !more {
                return Ok(());
            }
            let mut out = out.freeze();
            while !out.is_empty() {
                if stream.capacity() == 0 {
                    stream.reserve_capacity(out.len());
                    poll_fn(|context| stream.poll_capacity(context))
                        .await
                        .ok_or_else(|| {
                            SessionError::Broken("the other end reads no more".into())
                        })??;
                }
                let count = stream.capacity().min(out.len());
                stream.send_data(out.split_to(count), false)?;
            }
        }
    }

    /// How many connections have something here: for tests of leaks.
    #[cfg(test)]
    pub(super) fn lines(&self) -> usize {
        self.state().lines.len()
    }
}

enum Received {
    Nothing,
    Event(Event),
    /// More waits for the reader of this connection than may.
    Full(i64),
}

/// What the channel cannot do itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Event {
    Dial { random: i64, address: String },
    GiveUp { random: i64 },
    Opened { random: i64, id: i64 },
    Refused { random: i64, error: String },
    Drain,
}

/// One connection. The end of what is written closes it a moment after the answer ends; dropping it without closes it at once.
#[derive(Debug)]
pub(super) struct AnpStream {
    channel: Arc<Channel>,
    id: i64,
    shut: bool,
    _held: Occupied,
}

impl AsyncRead for AnpStream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut state = self.channel.state();
        let broken = state.ended.is_some();
        let Some(line) = state.lines.get_mut(&self.id) else {
            return Poll::Ready(Err(io::ErrorKind::NotConnected.into()));
        };
        let mut read = 0;
        while let Some(first) = line.inlet.front_mut() {
            let count = first.len().min(buffer.remaining());
            buffer.put_slice(&first[..count]);
            first.advance(count);
            read += count;
            if !first.is_empty() {
                break;
            }
            line.inlet.pop_front();
        }
        line.waiting -= read;
        if line.waiting <= INLET - CATCH_UP {
            wake(&mut line.feeder);
        }
        if read > 0 || buffer.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        match &line.end {
            Some(error) if error.is_empty() => Poll::Ready(Ok(())),
            // The text of an orderly end may be one, as Go's agents send "EOF".
            Some(error) if !broken && error.ends_with("EOF") => Poll::Ready(Ok(())),
            Some(error) => {
                let error = io::Error::new(io::ErrorKind::ConnectionReset, error.clone());
                Poll::Ready(Err(error))
            }
            None => {
                line.reader = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl AsyncWrite for AnpStream {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        let mut state = self.channel.state();
        let Some(line) = state.lines.get_mut(&self.id) else {
            return Poll::Ready(Err(io::ErrorKind::NotConnected.into()));
        };
        if self.shut || line.end.is_some() {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if line.queued >= LANE {
            line.writer = Some(context.waker().clone());
            return Poll::Pending;
        }
        let count = data.len().min(PACKET);
        if count > 0 {
            if line.lane.is_empty() {
                state.turn.push_back(self.id);
            }
            // Looked up again because of the turn.
            if let Some(line) = state.lines.get_mut(&self.id) {
                line.queued += count;
                line.lane.push_back(Bytes::copy_from_slice(&data[..count]));
            }
            wake(&mut state.writer);
        }
        Poll::Ready(Ok(count))
    }

    /// Also tells whether the other end closed the connection, which it cannot do by halves; and wakes who asked when it does.
    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.channel.state();
        match state.lines.get_mut(&self.id) {
            Some(line) if line.end.is_none() => {
                line.watcher = Some(context.waker().clone());
                Poll::Ready(Ok(()))
            }
            _ => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        {
            // What was said before the end is to have left.
            let mut state = self.channel.state();
            match state.lines.get_mut(&self.id) {
                Some(line) if line.end.is_none() && !line.lane.is_empty() => {
                    line.writer = Some(context.waker().clone());
                    return Poll::Pending;
                }
                _ => {}
            }
        }
        if !self.shut {
            self.shut = true;
            let (channel, id) = (Arc::clone(&self.channel), self.id);
            if channel.answers() {
                // An answer that is over needs no more of the question.
                channel.close(id);
            } else if let Ok(runtime) = Handle::try_current() {
                runtime.spawn(async move { channel.close_after_answer(id).await });
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl Channel {
    /// Closes a connection when nothing more of an answer comes.
    async fn close_after_answer(&self, id: i64) {
        let mut until = Instant::now() + ANSWER;
        loop {
            sleep_until(until).await;
            let mut state = self.state();
            let Some(line) = state
                .lines
                .get_mut(&id)
                .filter(|line| line.end.is_none() && line.held)
            else {
                return;
            };
            // What waits for its reader is no silence either.
            until = line.heard + ANSWER;
            if !line.inlet.is_empty() {
                until = Instant::now() + ANSWER;
            }
            if until > Instant::now() {
                continue;
            }
            drop(state);
            return self.close(id);
        }
    }

    fn answers(&self) -> bool {
        self.state().core.role() == Role::Answering
    }

    /// Closes a connection of which everything was said; what was received can still be read.
    fn close(&self, id: i64) {
        let mut state = self.state();
        if let Some(line) = state.lines.get_mut(&id) {
            line.finish(String::new());
        }
        if let Some(packet) = state.core.close(id, "") {
            state.send(packet);
        }
    }
}

impl Drop for AnpStream {
    fn drop(&mut self) {
        let mut state = self.channel.state();
        // Only who answers can say so; a request to close has no text.
        let why = if self.shut { "" } else { "connection reset" };
        let packet = state.core.close(self.id, why);
        let Some(line) = state.lines.get_mut(&self.id) else {
            return;
        };
        line.held = false;
        wake(&mut line.feeder);
        // What was said before an orderly end still leaves; after a reset nothing does.
        match packet {
            Some(last) if self.shut && !line.lane.is_empty() => line.last = Some(last),
            packet => {
                state.lines.remove(&self.id);
                packet.into_iter().for_each(|packet| state.send(packet));
            }
        }
    }
}
