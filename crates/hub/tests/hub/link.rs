//! A TCP relay that can be cut: packets vanish in both directions, connections stay as they are.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Whole,
    /// Nothing passes, nobody is told.
    Cut,
}

#[derive(Clone)]
pub(crate) struct Link {
    pub(crate) addr: SocketAddr,
    state: Arc<watch::Sender<State>>,
    received: Arc<AtomicU64>,
}

impl Link {
    pub(crate) async fn to(cloud: SocketAddr) -> Self {
        Self::on(TcpListener::bind("127.0.0.1:0").await.unwrap(), cloud)
    }

    /// From an address of choice.
    pub(crate) fn on(listener: TcpListener, cloud: SocketAddr) -> Self {
        let addr = listener.local_addr().unwrap();
        let (state, _) = watch::channel(State::Whole);
        let state = Arc::new(state);
        let link = Self {
            addr,
            state: state.clone(),
            received: Arc::default(),
        };
        let received = link.received.clone();
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let state = state.subscribe();
                let received = received.clone();
                tokio::spawn(async move {
                    let mut open = state.clone();
                    // A SYN that vanished: the connection is never made.
                    let _ = open.wait_for(|state| *state == State::Whole).await;
                    let Ok(far) = TcpStream::connect(cloud).await else {
                        return;
                    };
                    let (near_read, near_write) = near.into_split();
                    let (far_read, far_write) = far.into_split();
                    let sent = AtomicU64::new(0);
                    tokio::join!(
                        pump(near_read, far_write, state.clone(), &sent),
                        pump(far_read, near_write, state, &received)
                    );
                });
            }
        });
        link
    }

    /// Bytes that came from the cloud so far.
    #[allow(dead_code, reason = "each test binary uses its part")]
    pub(crate) fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    pub(crate) fn set(&self, state: State) {
        self.state.send_replace(state);
    }
}

async fn pump(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    mut state: watch::Receiver<State>,
    passed: &AtomicU64,
) {
    let mut buffer = vec![0; 16 << 10];
    loop {
        let read = from.read(&mut buffer).await;
        if state
            .wait_for(|state| *state == State::Whole)
            .await
            .is_err()
        {
            return;
        }
        match read {
            Ok(0) | Err(_) => {
                let _ = to.shutdown().await;
                return;
            }
            Ok(count) => {
                passed.fetch_add(count as u64, Ordering::Relaxed);
                if to.write_all(&buffer[..count]).await.is_err() {
                    return;
                }
            }
        }
    }
}
