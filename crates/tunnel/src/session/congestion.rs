//! How the kernel finds out how fast it may send on a connection.
//!
//! Where BBR is the machine's default or our choice, a socket has a timer of the kernel for nearly every packet, and keeps it when another
//! algorithm is chosen. So connections begin without, and get it when their path turns out to be long: over those that lose packets BBR is faster than
//! cubic by an order of magnitude. Within a machine or a site it has nothing to gain, and its timers cost more than all our work on
//! what is sent (measured: half the throughput).

use socket2::SockRef;
use std::{os::fd::AsFd, time::Duration};

/// Paths with a shorter round trip are within a machine or a site.
const NEAR: Duration = Duration::from_millis(1);
const UNPACED: &[u8] = b"cubic";
const PACED: &[u8] = b"bbr";

/// Whether a path with such a round trip is a short one.
pub(crate) fn is_near(round_trip: Duration) -> bool {
    round_trip < NEAR
}

/// What a socket would have used.
#[derive(Debug)]
pub(crate) struct Usual(Option<Vec<u8>>);

/// Has a socket that is not connected yet, or those that a listener accepts, begin without a clock.
pub(crate) fn begin(socket: &impl AsFd) -> Usual {
    let usual = SockRef::from(socket).tcp_congestion().ok();
    set(socket, UNPACED);
    Usual(usual)
}

/// Has a socket that began go on as the machine wants it.
pub(crate) fn restore(socket: &impl AsFd, usual: &Usual) {
    if let Some(name) = &usual.0 {
        let end = name.iter().position(|byte| *byte == 0);
        set(
            socket,
            name.get(..end.unwrap_or(name.len())).unwrap_or(name),
        );
    }
}

/// Has a socket find its way over a long path, unless its round trip is known to be short.
pub(crate) fn pace_unless_near(socket: &impl AsFd, round_trip: Option<Duration>) {
    if !round_trip.is_some_and(is_near) {
        set(socket, PACED);
    }
}

/// As far as the kernel has it and lets us.
fn set(socket: &impl AsFd, algorithm: &[u8]) {
    let _ = SockRef::from(socket).set_tcp_congestion(algorithm);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{Ipv4Addr, TcpListener, TcpStream};

    fn algorithm(socket: &impl AsFd) -> String {
        let name = SockRef::from(socket).tcp_congestion().unwrap();
        let name = String::from_utf8(name).unwrap();
        name.trim_end_matches('\0').to_owned()
    }

    #[test]
    fn what_a_listener_accepts_begins_without_a_clock_and_may_get_it() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let default = algorithm(&listener);
        let available = "/proc/sys/net/ipv4/tcp_available_congestion_control";
        let available = std::fs::read_to_string(available).unwrap();
        let has = |name: &str| available.split_whitespace().any(|one| one == name);
        let began = if has("cubic") { "cubic" } else { &default };

        let usual = begin(&listener);
        assert_eq!(algorithm(&listener), began);
        let _caller = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        assert_eq!(algorithm(&accepted), began);
        pace_unless_near(&accepted, Some(NEAR / 2));
        assert_eq!(algorithm(&accepted), began);
        pace_unless_near(&accepted, None);
        assert_eq!(algorithm(&accepted), if has("bbr") { "bbr" } else { began });
        restore(&accepted, &usual);
        assert_eq!(algorithm(&accepted), default);
    }
}
