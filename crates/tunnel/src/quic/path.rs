//! What a connection sees of its path.

use quinn::Connection;
use std::time::Duration;

/// What a connection saw of its path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Path {
    /// How long a round trip takes.
    pub round_trip: Duration,
    /// Datagrams that were sent.
    pub sent: u64,
    /// And of them lost.
    pub lost: u64,
}

impl Path {
    /// The share that is lost.
    pub fn loss(&self) -> f64 {
        self.lost as f64 / self.sent.max(1) as f64
    }
}

/// What a connection on which only we spoke saw so far. (Where both speak, acknowledgements alone
/// count as lost: they are not acknowledged.)
pub(super) fn path(connection: &Connection) -> Path {
    let path = connection.stats().path;
    Path {
        round_trip: path.rtt,
        sent: path.sent_packets.saturating_sub(path.sent_plpmtud_probes),
        lost: path.lost_packets,
    }
}
