//! The end that dials: our agent for a server that is not ours, our server for a frontend.

use super::{
    channel::{Channel, Event},
    core::Role,
};
use crate::{
    link::Tunnels,
    pump::pump,
    session::{Live, Options, SessionError},
};
use bytes::Bytes;
use h2::{RecvStream, SendStream};
use std::{collections::HashMap, sync::Arc};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use yurt_transport::Destination;

/// Dials what the packets of one gRPC stream ask for.
pub(super) struct Answering {
    pub(super) channel: Arc<Channel>,
    tunnels: Arc<dyn Tunnels>,
    options: Options,
    live: Arc<Live>,
    over: CancellationToken,
    /// Dials under way that may be given up.
    dialling: HashMap<i64, CancellationToken>,
    on_drain: CancellationToken,
}

impl Answering {
    pub(super) fn new(
        tunnels: Arc<dyn Tunnels>,
        options: Options,
        live: Arc<Live>,
        on_drain: CancellationToken,
    ) -> Self {
        Self {
            channel: Channel::new(Role::Answering, options.max_connections),
            tunnels,
            options,
            live,
            over: CancellationToken::new(),
            dialling: HashMap::new(),
            on_drain,
        }
    }

    /// Answers until the stream ends.
    pub(super) async fn run(
        mut self,
        recv: RecvStream,
        send: &mut SendStream<Bytes>,
    ) -> SessionError {
        let _over = self.over.clone().drop_guard();
        let channel = Arc::clone(&self.channel);
        let _ended = EndOnDrop(Arc::clone(&channel));
        tokio::select! {
            ended = channel.read(recv, |event| self.told(event)) => ended,
            ended = channel.write(send) => ended.err().unwrap_or(SessionError::Closed),
        }
    }

    fn told(&mut self, event: Event) {
        match event {
            Event::Dial { random, address } => self.dial(random, address),
            Event::GiveUp { random } => {
                if let Some(dialling) = self.dialling.remove(&random) {
                    dialling.cancel();
                }
            }
            Event::Drain => self.on_drain.cancel(),
            Event::Opened { .. } | Event::Refused { .. } => {}
        }
    }

    fn dial(&mut self, random: i64, address: String) {
        // Those that are over; there are no more than the core allows.
        self.dialling.retain(|_, dialling| !dialling.is_cancelled());
        let to: Destination = match address.parse() {
            Ok(to) => to,
            Err(error) => {
                let _ = self.channel.dialled(random, Err(format!("{error}")));
                return;
            }
        };
        let Some(held) = self.live.enter(usize::MAX) else {
            return;
        };
        let given_up = self.over.child_token();
        self.dialling.insert(random, given_up.clone());
        let (channel, tunnels) = (Arc::clone(&self.channel), Arc::clone(&self.tunnels));
        let limit = self.options.dial;
        tokio::spawn(async move {
            let over = given_up.clone().drop_guard();
            let opened = given_up
                .run_until_cancelled(timeout(limit, tunnels.open(&to)))
                .await;
            let opened = match opened {
                None => return,
                Some(Err(_)) => Err(format!("dial tcp {to}: i/o timeout after {limit:?}")),
                Some(Ok(opened)) => opened.map_err(|error| error.to_string()),
            };
            let (target, outcome) = match opened {
                Ok(target) => (Some(target), Ok(())),
                Err(error) => (None, Err(error)),
            };
            let id = channel.dialled(random, outcome);
            drop(over);
            if let (Some(id), Some(target)) = (id, target) {
                let ours = Box::new(channel.stream(id, held));
                let _ = pump(target, ours).await;
            }
        });
    }
}

/// Ends a channel, however its task ends.
pub(super) struct EndOnDrop(pub(super) Arc<Channel>);

impl Drop for EndOnDrop {
    fn drop(&mut self) {
        self.0.end("the tunnel's connection ended");
    }
}
