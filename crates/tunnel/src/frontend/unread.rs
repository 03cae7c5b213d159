//! Whether the other end of a Unix socket has read what was written: the kernel tells (`sock_diag(7)`, `UNIX_DIAG_RQLEN`).

use rustix::{
    fs::fstat,
    net::{
        AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink::SOCK_DIAG, recv,
        send, socket_with,
    },
};
use std::{io, os::fd::AsFd};

/// `linux/sock_diag.h`, `linux/unix_diag.h`, `linux/netlink.h`.
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLM_F_REQUEST: u16 = 1;
const AF_UNIX: u8 = 1;
const UDIAG_SHOW_RQLEN: u32 = 0x10;
const UNIX_DIAG_RQLEN: u16 = 4;
const NO_COOKIE: u32 = u32::MAX;
/// Of a netlink message, and of what is said of a socket before its attributes.
const HEAD: usize = 16;
const SAID: usize = 16;

/// A Unix socket, by its number; of use as long as somebody holds it open.
#[derive(Clone, Copy, Debug)]
pub struct Unread {
    inode: u32,
}

impl Unread {
    /// Of a socket.
    pub fn of(socket: impl AsFd) -> Self {
        let inode = fstat(socket).map(|file| u32::try_from(file.st_ino));
        // The kernel knows none of number 0.
        let inode = inode.ok().and_then(Result::ok).unwrap_or(0);
        Self { inode }
    }

    /// Whether everything that was written was read. An error where the kernel does not tell.
    pub(super) fn is_read(self) -> io::Result<bool> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let kernel = socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            flags,
            Some(SOCK_DIAG),
        )?;
        send(&kernel, &self.question(), SendFlags::empty())?;
        let mut answer = [0; 256];
        let (length, _) = recv(&kernel, &mut answer, RecvFlags::empty())?;
        let unread = unread(answer.get(..length).unwrap_or_default());
        Ok(unread.ok_or(io::ErrorKind::Unsupported)? == 0)
    }

    fn question(self) -> Vec<u8> {
        let mut body = vec![AF_UNIX, 0, 0, 0];
        // In whatever state.
        for word in [u32::MAX, self.inode, UDIAG_SHOW_RQLEN, NO_COOKIE, NO_COOKIE] {
            body.extend(word.to_ne_bytes());
        }
        let length = u32::try_from(HEAD + body.len()).unwrap_or_default();
        let mut all = length.to_ne_bytes().to_vec();
        all.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
        all.extend(NLM_F_REQUEST.to_ne_bytes());
        // Neither a sequence nor a port: there is one question.
        all.extend([0; 8]);
        all.extend(body);
        all
    }
}

/// What the kernel says waits to be read.
fn unread(answer: &[u8]) -> Option<u32> {
    let short = |at: usize| {
        let bytes = answer.get(at..at + 2)?;
        Some(u16::from_ne_bytes(bytes.try_into().ok()?))
    };
    if short(4)? != SOCK_DIAG_BY_FAMILY {
        return None;
    }
    let mut at = HEAD + SAID;
    loop {
        let (length, kind) = (usize::from(short(at)?), short(at + 2)?);
        if kind == UNIX_DIAG_RQLEN {
            // Behind the attribute's head and what waits for us.
            let bytes = answer.get(at + 8..at + 12)?;
            return Some(u32::from_ne_bytes(bytes.try_into().ok()?));
        }
        at += length.max(4).next_multiple_of(4);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::{
        io::{Read, Write},
        os::unix::net::UnixStream,
    };

    #[test]
    fn what_the_peer_has_not_read_is_known() {
        let (mut ours, mut theirs) = UnixStream::pair().unwrap();
        let unread = Unread::of(&ours);
        assert!(unread.is_read().unwrap());
        ours.write_all(b"word").unwrap();
        assert!(!unread.is_read().unwrap());
        theirs.read_exact(&mut [0; 3]).unwrap();
        assert!(!unread.is_read().unwrap());
        // Of the other direction nothing is told.
        theirs.write_all(b"answer").unwrap();
        theirs.read_exact(&mut [0; 1]).unwrap();
        assert!(unread.is_read().unwrap());
        drop((ours, theirs));
        assert!(unread.is_read().is_err());
    }

    proptest! {
        #[test]
        fn any_answer_is_taken(answer in prop::collection::vec(any::<u8>(), 0..100), good in any::<bool>()) {
            let mut answer = answer;
            if let (true, Some(kind)) = (good, answer.get_mut(4..6)) {
                kind.copy_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
            }
            let _ = unread(&answer);
        }
    }
}
