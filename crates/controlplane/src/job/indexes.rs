//! Completion indexes: sets as `1,3-5,7`.

use serde_json::Value;
use std::{collections::BTreeSet, fmt};

/// The annotation, and label, by which a pod knows its index.
pub(super) const INDEX: &str = "batch.kubernetes.io/job-completion-index";

/// A set of indexes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Indexes(pub(super) BTreeSet<i64>);

impl Indexes {
    /// Reads `1,3-5`, as far as it is below `completions`.
    pub(super) fn parse(text: &str, completions: i64) -> Self {
        let mut set = BTreeSet::new();
        for part in text.split(',').filter(|part| !part.is_empty()) {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            if let (Ok(first), Ok(last)) = (first.parse::<i64>(), last.parse::<i64>()) {
                set.extend(first.max(0)..=last.min(completions - 1));
            }
        }
        Self(set)
    }

    pub(super) fn has(&self, index: i64) -> bool {
        self.0.contains(&index)
    }

    pub(super) fn count(&self) -> i64 {
        i64::try_from(self.0.len()).unwrap_or(i64::MAX)
    }
}

impl fmt::Display for Indexes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut indexes = self.0.iter().copied().peekable();
        let mut comma = "";
        while let Some(first) = indexes.next() {
            let mut last = first;
            while let Some(next) = indexes.next_if_eq(&(last + 1)) {
                last = next;
            }
            write!(f, "{comma}{first}")?;
            match last - first {
                0 => {}
                1 => write!(f, ",{last}")?,
                _ => write!(f, "-{last}")?,
            }
            comma = ",";
        }
        Ok(())
    }
}

/// The index of a pod.
pub(super) fn of(pod: &Value) -> Option<i64> {
    pod["metadata"]["annotations"][INDEX].as_str()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_are_written_in_intervals() {
        for (text, canonical) in [
            ("", ""),
            ("0", "0"),
            ("0,1", "0,1"),
            ("1,3-5,7", "1,3-5,7"),
            ("3,4,5", "3-5"),
            ("0-100", "0-9"),
            ("x,2", "2"),
        ] {
            assert_eq!(Indexes::parse(text, 10).to_string(), canonical);
        }
    }
}
