//! UDP in memory: datagrams between addresses, whose fate a rule decides.

use quinn::{
    AsyncUdpSocket, UdpPoller,
    udp::{RecvMeta, Transmit},
};
use std::{
    collections::{HashMap, VecDeque},
    fmt,
    io::{self, IoSliceMut},
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex, Weak},
    task::{Context, Poll, Waker},
    time::Duration,
};

/// What becomes of a datagram.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fate {
    Lost,
    Arrives(Duration),
}

type Rule = Box<dyn FnMut(SocketAddr, SocketAddr) -> Fate + Send>;

/// Where sockets are, and what happens between them.
#[derive(Default)]
pub(crate) struct Network {
    sockets: Mutex<HashMap<SocketAddr, Weak<Socket>>>,
    rule: Mutex<Option<Rule>>,
}

impl fmt::Debug for Network {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Network")
    }
}

/// Datagrams, from where, and who waits for one.
type Inbox = (VecDeque<(SocketAddr, Vec<u8>)>, Option<Waker>);

/// A socket.
#[derive(Debug)]
pub(crate) struct Socket {
    network: Arc<Network>,
    address: Mutex<SocketAddr>,
    inbox: Mutex<Inbox>,
}

impl Network {
    pub(crate) fn socket(self: &Arc<Self>, address: SocketAddr) -> Arc<Socket> {
        let socket = Arc::new(Socket {
            network: self.clone(),
            address: address.into(),
            inbox: Mutex::default(),
        });
        self.sockets
            .lock()
            .unwrap()
            .insert(address, Arc::downgrade(&socket));
        socket
    }

    /// From now on datagrams from the first to the second address fare so.
    pub(crate) fn rule(&self, rule: impl FnMut(SocketAddr, SocketAddr) -> Fate + Send + 'static) {
        *self.rule.lock().unwrap() = Some(Box::new(rule));
    }

    /// The socket has another address, as behind a NAT that forgot it.
    pub(crate) fn moves(&self, socket: &Arc<Socket>, to: SocketAddr) {
        let mut address = socket.address.lock().unwrap();
        let mut sockets = self.sockets.lock().unwrap();
        sockets.remove(&address);
        sockets.insert(to, Arc::downgrade(socket));
        *address = to;
    }

    pub(crate) fn deliver(self: &Arc<Self>, from: SocketAddr, to: SocketAddr, datagram: &[u8]) {
        let fate = match &mut *self.rule.lock().unwrap() {
            Some(rule) => rule(from, to),
            None => Fate::Arrives(Duration::ZERO),
        };
        let arrive = {
            let (network, datagram) = (self.clone(), datagram.to_vec());
            move || {
                let found = network
                    .sockets
                    .lock()
                    .unwrap()
                    .get(&to)
                    .and_then(Weak::upgrade);
                if let Some(socket) = found {
                    let mut inbox = socket.inbox.lock().unwrap();
                    inbox.0.push_back((from, datagram));
                    inbox.1.take().into_iter().for_each(Waker::wake);
                }
            }
        };
        match fate {
            Fate::Lost => {}
            Fate::Arrives(Duration::ZERO) => arrive(),
            Fate::Arrives(delay) => drop(tokio::spawn(async move {
                tokio::time::sleep(delay).await;
                arrive();
            })),
        }
    }
}

impl Socket {
    pub(crate) fn address(&self) -> SocketAddr {
        *self.address.lock().unwrap()
    }
}

#[derive(Debug)]
struct Always;

impl UdpPoller for Always {
    fn poll_writable(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl AsyncUdpSocket for Socket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Always)
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let size = transmit
            .segment_size
            .unwrap_or(transmit.contents.len())
            .max(1);
        for datagram in transmit.contents.chunks(size) {
            self.network
                .deliver(self.address(), transmit.destination, datagram);
        }
        Ok(())
    }

    fn poll_recv(
        &self,
        context: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let mut inbox = self.inbox.lock().unwrap();
        let mut count = 0;
        for (buffer, meta) in buffers.iter_mut().zip(meta) {
            let Some((from, datagram)) = inbox.0.pop_front() else {
                break;
            };
            buffer[..datagram.len()].copy_from_slice(&datagram);
            *meta = RecvMeta {
                addr: from,
                len: datagram.len(),
                stride: datagram.len(),
                ecn: None,
                dst_ip: None,
            };
            count += 1;
        }
        if count == 0 {
            inbox.1 = Some(context.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(Ok(count))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address())
    }
}
