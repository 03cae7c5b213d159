//! The socket at the other end of a TCP connection, from the kernel's table of this network namespace (sock_diag(7)): one exact
//! lookup, however many connections there are. Source of the layouts: `linux/netlink.h`, `linux/sock_diag.h`, `linux/inet_diag.h`.

use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send, socket_with,
    sockopt::{Timeout, set_socket_timeout},
};
use std::{
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLMSG_ERROR: u16 = 2;
const NLM_F_REQUEST: u16 = 1;
const HEADER: usize = 16;
/// `struct inet_diag_req_v2` and `struct inet_diag_msg`.
const REQUEST: usize = 56;
const ANSWER: usize = 72;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const TCP: u8 = 6;
const TCP_LISTEN: u8 = 10;
const INET_DIAG_CGROUP_ID: u16 = 21;
const ENOENT: i32 = 2;
/// The kernel answers at once.
const WAIT: Duration = Duration::from_secs(1);

/// A socket of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Socket {
    /// The user that made it.
    pub(super) uid: u32,
    /// As in `/proc/PID/fd`.
    pub(super) inode: u64,
    /// The cgroup (version 2) that it was made in; kernels since 5.9 tell.
    pub(super) cgroup: Option<u64>,
}

/// The socket of the process that is connected from `client` to `server`; `None` when there is none in this network namespace.
pub(super) fn find(client: SocketAddr, server: SocketAddr) -> io::Result<Option<Socket>> {
    let netlink = socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        Some(netlink::SOCK_DIAG),
    )?;
    set_socket_timeout(&netlink, Timeout::Recv, Some(WAIT))?;
    send(&netlink, &request(client, server), SendFlags::empty())?;
    let mut buffer = [0u8; 4096];
    let (_, length) = recv(&netlink, &mut buffer[..], RecvFlags::empty())?;
    parse(buffer.get(..length).unwrap_or(&buffer), client, server)
}

/// An IPv4 address in IPv6's clothes is an IPv4 socket to the kernel's table.
fn plain(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

fn address(ip: IpAddr) -> [u8; 16] {
    let mut bytes = [0; 16];
    match ip {
        IpAddr::V4(v4) => bytes[..4].copy_from_slice(&v4.octets()),
        IpAddr::V6(v6) => bytes = v6.octets(),
    }
    bytes
}

/// Asks for the socket whose own address is `client`.
fn request(client: SocketAddr, server: SocketAddr) -> Vec<u8> {
    let (client, server) = (plain(client), plain(server));
    let mut out = Vec::with_capacity(HEADER + REQUEST);
    out.extend(u32::try_from(HEADER + REQUEST).unwrap_or(0).to_ne_bytes());
    out.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    out.extend(NLM_F_REQUEST.to_ne_bytes());
    out.extend([0; 8]);
    let family = if client.is_ipv4() { AF_INET } else { AF_INET6 };
    out.extend([family, TCP, 0, 0]);
    // In every state.
    out.extend(u32::MAX.to_ne_bytes());
    out.extend(client.port().to_be_bytes());
    out.extend(server.port().to_be_bytes());
    out.extend(address(client.ip()));
    out.extend(address(server.ip()));
    // Of any interface, and whatever its cookie.
    out.extend(0u32.to_ne_bytes());
    out.extend([0xff; 8]);
    out
}

fn bytes<const N: usize>(message: &[u8], at: usize) -> Option<[u8; N]> {
    message.get(at..at.checked_add(N)?)?.try_into().ok()
}

fn parse(message: &[u8], client: SocketAddr, server: SocketAddr) -> io::Result<Option<Socket>> {
    let malformed = || io::Error::new(io::ErrorKind::InvalidData, "malformed answer of sock_diag");
    let length = u32::from_ne_bytes(bytes(message, 0).ok_or_else(malformed)?);
    let kind = u16::from_ne_bytes(bytes(message, 4).ok_or_else(malformed)?);
    let message = usize::try_from(length)
        .ok()
        .and_then(|length| message.get(HEADER..length))
        .ok_or_else(malformed)?;
    match kind {
        NLMSG_ERROR => {
            return match i32::from_ne_bytes(bytes(message, 0).ok_or_else(malformed)?) {
                code if code == -ENOENT => Ok(None),
                code => Err(io::Error::from_raw_os_error(code.saturating_neg())),
            };
        }
        SOCK_DIAG_BY_FAMILY => {}
        _ => return Err(malformed()),
    }
    read(message, client, server).ok_or_else(malformed)
}

/// The outer option is for what is cut short, the inner one for the wrong socket.
fn read(message: &[u8], client: SocketAddr, server: SocketAddr) -> Option<Option<Socket>> {
    let [family, state] = bytes(message, 0)?;
    let ip = |at| -> Option<IpAddr> {
        Some(if family == AF_INET {
            IpAddr::from(bytes::<4>(message, at)?)
        } else {
            IpAddr::from(bytes::<16>(message, at)?).to_canonical()
        })
    };
    let port = |at| Some(u16::from_be_bytes(bytes(message, at)?));
    let own = SocketAddr::new(ip(8)?, port(4)?);
    let other = SocketAddr::new(ip(24)?, port(6)?);
    let uid = u32::from_ne_bytes(bytes(message, 64)?);
    let inode = u64::from(u32::from_ne_bytes(bytes(message, 68)?));
    // Where nothing is connected, the kernel answers with who listens there. A socket that no process has any more has no inode.
    if state == TCP_LISTEN || own != plain(client) || other != plain(server) || inode == 0 {
        return Some(None);
    }
    let mut cgroup = None;
    let mut attributes = message.get(ANSWER..)?;
    while let (Some(length), Some(kind)) = (bytes::<2>(attributes, 0), bytes::<2>(attributes, 2)) {
        let length = usize::from(u16::from_ne_bytes(length));
        if length < 4 {
            break;
        }
        if u16::from_ne_bytes(kind) == INET_DIAG_CGROUP_ID && length == 12 {
            cgroup = bytes(attributes, 4).map(u64::from_ne_bytes);
        }
        attributes = attributes.get(length.next_multiple_of(4)..).unwrap_or(&[]);
    }
    Some(Some(Socket { uid, inode, cgroup }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::{
        net::{TcpListener, TcpStream},
        os::{fd::AsFd, unix::fs::MetadataExt},
    };

    #[test]
    fn the_client_of_a_connection_is_found() {
        for address in ["127.0.0.1", "::1"] {
            let listener = TcpListener::bind((address, 0)).unwrap();
            let server = listener.local_addr().unwrap();
            let stream = TcpStream::connect(server).unwrap();
            let client = stream.local_addr().unwrap();
            let inode = std::fs::File::from(stream.as_fd().try_clone_to_owned().unwrap())
                .metadata()
                .unwrap()
                .ino();
            let found = find(client, server).unwrap().unwrap();
            assert_eq!(found.inode, inode);
            assert_eq!(found.uid, rustix::process::geteuid().as_raw());
            // The listener itself is not taken for a client.
            assert_eq!(find(server, client).unwrap(), None);
            assert_eq!(find(server, server).unwrap(), None);
        }
    }

    #[test]
    fn a_client_of_both_families_is_found() {
        let listener = TcpListener::bind("[::]:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        let (accepted, client) = listener.accept().unwrap();
        assert!(client.ip().is_ipv6(), "mapped");
        assert!(
            find(client, accepted.local_addr().unwrap())
                .unwrap()
                .is_some()
        );
        drop(stream);
    }

    proptest! {
        #[test]
        fn no_answer_is_too_strange(message in proptest::collection::vec(any::<u8>(), 0..200), kind in 0u16..40) {
            let (client, server) = ("127.0.0.1:1".parse().unwrap(), "[::1]:2".parse().unwrap());
            let _ = parse(&message, client, server);
            let mut whole = Vec::new();
            whole.extend((u32::try_from(message.len() + HEADER).unwrap()).to_ne_bytes());
            whole.extend(kind.to_ne_bytes());
            whole.extend([0; 10]);
            whole.extend(&message);
            let _ = parse(&whole, client, server);
        }
    }
}
