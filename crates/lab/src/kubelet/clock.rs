//! Times as Kubernetes writes them.

use jiff::Timestamp;

/// `metav1.Time`: whole seconds.
pub(crate) fn time(at: Timestamp) -> String {
    format!("{at:.0}")
}

/// `metav1.MicroTime`: microseconds.
pub(crate) fn micro_time(at: Timestamp) -> String {
    format!("{at:.6}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_what_go_writes() {
        let at = Timestamp::new(1_795_287_982, 43_543_999).unwrap();
        assert_eq!(time(at), "2026-11-21T19:06:22Z");
        assert_eq!(micro_time(at), "2026-11-21T19:06:22.043543Z");
    }
}
