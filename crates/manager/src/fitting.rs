//! Names that fit where a label's value must: in at most 63 characters.

use yurt_controller::template_hash;

/// The longest value of a label, and name of a job.
pub(crate) const LONGEST: usize = 63;

/// A name that fits after `prefix`: cut, with a hash of it all, where it is too long.
pub(crate) fn fitting(prefix: &str, name: &str) -> String {
    let whole = format!("{prefix}{name}");
    if whole.len() <= LONGEST {
        return whole;
    }
    let hash = template_hash::of(&name.into(), None);
    let room = LONGEST.saturating_sub(prefix.len() + hash.len() + 1);
    let head = name.get(..room).unwrap_or_default();
    format!("{prefix}{}-{hash}", head.trim_end_matches(['-', '.']))
}
