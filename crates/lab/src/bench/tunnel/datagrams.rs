//! A long way for datagrams: passes what one client sends on to a server and back, each after a while.

use std::{
    collections::VecDeque,
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::{
    net::UdpSocket,
    time::{Instant, sleep_until},
};
use tokio_util::sync::{CancellationToken, DropGuard};

/// Largest datagram.
const MOST: usize = 65_536;
/// Datagrams on their way in one direction; more are lost, as in a router.
const QUEUE: usize = 65_536;

/// The relay; it ends when it is dropped.
#[derive(Debug)]
pub(super) struct Datagrams {
    /// Nanoseconds each way.
    delay: Arc<AtomicU64>,
    _ends: DropGuard,
}

/// One direction.
#[derive(Debug, Default)]
struct Way(VecDeque<(Instant, Vec<u8>)>);

impl Way {
    fn take(&mut self, datagram: &[u8], delay: Duration) {
        if self.0.len() < QUEUE {
            self.0
                .push_back((Instant::now() + delay, datagram.to_vec()));
        }
    }

    /// Waits for the next that has arrived.
    async fn arrived(&mut self) -> Vec<u8> {
        match self.0.front() {
            Some((at, _)) => sleep_until(*at).await,
            None => std::future::pending().await,
        }
        self.0
            .pop_front()
            .map(|(_, datagram)| datagram)
            .unwrap_or_default()
    }
}

impl Datagrams {
    /// Listens there, and passes on to the server.
    pub(super) async fn start(listen: SocketAddr, server: SocketAddr) -> io::Result<Self> {
        let near = UdpSocket::bind(listen).await?;
        let far = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        far.connect(server).await?;
        let (delay, end) = (Arc::new(AtomicU64::new(0)), CancellationToken::new());
        let later = delay.clone();
        tokio::spawn(end.clone().run_until_cancelled_owned(async move {
            let (mut forth, mut back) = (Way::default(), Way::default());
            let (mut one, mut other) = (vec![0; MOST], vec![0; MOST]);
            let mut client = None;
            loop {
                let delay = Duration::from_nanos(later.load(Relaxed));
                tokio::select! {
                    Ok((count, from)) = near.recv_from(&mut one) => {
                        client = Some(from);
                        forth.take(one.get(..count).unwrap_or_default(), delay);
                    }
                    Ok(count) = far.recv(&mut other) => back.take(other.get(..count).unwrap_or_default(), delay),
                    // What cannot be sent is lost.
                    datagram = forth.arrived() => drop(far.send(&datagram).await),
                    datagram = back.arrived() => if let Some(client) = client {
                        drop(near.send_to(&datagram, client).await);
                    },
                }
            }
        }));
        Ok(Self {
            delay,
            _ends: end.drop_guard(),
        })
    }

    /// From now on each way takes so long.
    pub(super) fn delay(&self, each: Duration) {
        self.delay
            .store(u64::try_from(each.as_nanos()).unwrap_or(u64::MAX), Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn datagrams_arrive_later() {
        let server = UdpSocket::bind("127.0.0.1:0").await.expect("a socket");
        let free = UdpSocket::bind("127.0.0.1:0").await.expect("a socket");
        let listen = free.local_addr().expect("an address");
        drop(free);
        let relay = Datagrams::start(listen, server.local_addr().expect("an address"))
            .await
            .expect("a relay");
        relay.delay(Duration::from_millis(30));
        let client = UdpSocket::bind("127.0.0.1:0").await.expect("a socket");
        let begun = Instant::now();
        client.send_to(b"there", listen).await.expect("sent");
        let mut data = [0; 16];
        let (count, from) = server.recv_from(&mut data).await.expect("arrived");
        assert_eq!(&data[..count], b"there");
        server.send_to(b"back", from).await.expect("sent");
        let count = client.recv(&mut data).await.expect("arrived");
        assert_eq!(&data[..count], b"back");
        assert!(begun.elapsed() >= Duration::from_millis(60));
    }
}
