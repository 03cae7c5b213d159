//! How far a watch has come, and how it can go on in the cloud after a cut. Pure.

use std::time::Duration;
use yurt_wire::{
    request::{ListOptions, encode_query_value, query_pairs},
    watch::EventType,
};

/// How a watch goes on after its upstream stream was lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resume {
    /// Ask the same again: the client has nothing yet.
    Same,
    /// From this revision on.
    At(String),
    /// The client has a part of the initial state; nobody can tell which. It must start anew.
    Impossible,
}

/// Where the stream of events stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Initial events asked for by `sendInitialEvents` come, until their bookmark.
    Listed,
    /// Initial events of a watch without a revision come, in no order, and nothing says when they are complete.
    Synthetic,
    /// Every event is a change, in order of revisions.
    Changes,
}

/// How far a watch has come.
#[derive(Clone, Debug)]
pub struct Cursor {
    phase: Phase,
    delivered: bool,
    revision: Option<String>,
}

impl Cursor {
    /// At the beginning of what the client asked for.
    pub fn new(options: &ListOptions) -> Self {
        let from_nowhere = matches!(options.resource_version.as_str(), "" | "0");
        let phase = match options.send_initial_events {
            Some(true) => Phase::Listed,
            Some(false) => Phase::Changes,
            None if from_nowhere => Phase::Synthetic,
            None => Phase::Changes,
        };
        Self {
            phase,
            delivered: false,
            revision: (phase == Phase::Changes && !from_nowhere)
                .then(|| options.resource_version.clone()),
        }
    }

    /// At a revision of which the client has everything.
    pub fn at(revision: &str) -> Self {
        Self {
            phase: Phase::Changes,
            delivered: true,
            revision: (!revision.is_empty()).then(|| revision.to_owned()),
        }
    }

    /// An event goes to the client.
    pub fn saw(&mut self, kind: EventType, revision: &str, initial_events_end: bool) {
        match (self.phase, kind) {
            (_, EventType::Error) => return,
            (Phase::Listed, EventType::Bookmark) if initial_events_end => {
                self.phase = Phase::Changes
            }
            // What is no ADDED is a change, so the initial events are over.
            (Phase::Synthetic, EventType::Modified | EventType::Deleted | EventType::Bookmark) => {
                self.phase = Phase::Changes;
            }
            _ => {}
        }
        if kind != EventType::Bookmark {
            self.delivered = true;
        }
        // Revisions of initial events are in no order: the greatest counts.
        if !revision.is_empty()
            && self
                .revision
                .as_deref()
                .is_none_or(|old| newer(revision, old))
        {
            self.revision = Some(revision.to_owned());
        }
    }

    /// Whether it is unknown if the initial events are complete.
    pub fn unsettled(&self) -> bool {
        self.phase == Phase::Synthetic && self.delivered
    }

    /// The server had nothing more to say for a while: the initial events are complete.
    pub fn settle(&mut self) {
        if self.phase == Phase::Synthetic {
            self.phase = Phase::Changes;
        }
    }

    /// How to go on.
    pub fn resume(&self) -> Resume {
        match (self.phase, &self.revision) {
            (Phase::Listed | Phase::Synthetic, _) if self.delivered => Resume::Impossible,
            (Phase::Listed | Phase::Synthetic, _) | (Phase::Changes, None) => Resume::Same,
            (Phase::Changes, Some(revision)) => Resume::At(revision.clone()),
        }
    }

    /// Whether the client has everything up to `revision` and nothing beyond.
    pub fn is_at(&self, revision: &str) -> bool {
        self.phase == Phase::Changes && self.revision.as_deref() == Some(revision)
    }

    /// Whether the client has the whole state up to [`Resume::At`], so that only changes are missing.
    pub fn complete(&self) -> bool {
        self.phase == Phase::Changes
    }
}

/// Whether one revision is newer than another. Revisions are numbers on every API server known; if not, the later one counts.
fn newer(revision: &str, old: &str) -> bool {
    match (revision.parse::<u64>(), old.parse::<u64>()) {
        (Ok(revision), Ok(old)) => revision > old,
        _ => true,
    }
}

/// The query of a resumed watch: the client's own, but from `revision` on and for the time that is left.
pub fn resumed_query(query: &str, resume: &Resume, left: Option<Duration>) -> String {
    let at = match resume {
        Resume::At(revision) => Some(revision),
        Resume::Same | Resume::Impossible => None,
    };
    let mut out = String::with_capacity(query.len() + 32);
    let mut push = |name: &str, value: &str| {
        if !out.is_empty() {
            out.push('&');
        }
        out.push_str(&encode_query_value(name));
        out.push('=');
        out.push_str(&encode_query_value(value));
    };
    for (name, value) in query_pairs(query) {
        match name.as_str() {
            "resourceVersion" | "resourceVersionMatch" | "sendInitialEvents" if at.is_some() => {}
            "timeoutSeconds" | "timeout" if left.is_some() => {}
            _ => push(&name, &value),
        }
    }
    if let Some(revision) = at {
        push("resourceVersion", revision);
    }
    if let Some(left) = left {
        push("timeoutSeconds", &left.as_secs().max(1).to_string());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn cursor(query: &str) -> Cursor {
        let info = yurt_wire::RequestInfo::parse(
            &http::Method::GET,
            "/api/v1/pods",
            Some(&format!("watch=1&{query}")),
        );
        Cursor::new(&info.list_options().unwrap())
    }
    use EventType::{Added, Bookmark, Deleted, Modified};
    const WATCH_LIST: &str =
        "sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true";

    #[test]
    fn a_watch_from_a_revision_goes_on_after_the_last_one_seen() {
        let mut c = cursor("resourceVersion=10");
        assert_eq!(c.resume(), Resume::At("10".into()));
        c.saw(Modified, "12", false);
        c.saw(Bookmark, "20", false);
        c.saw(Deleted, "21", false);
        assert_eq!(c.resume(), Resume::At("21".into()));
        assert!(c.is_at("21") && !c.is_at("20") && !c.is_at("22"));
    }

    #[test]
    fn initial_events_are_all_or_nothing() {
        let mut c = cursor(WATCH_LIST);
        assert_eq!(c.resume(), Resume::Same);
        c.saw(Added, "300", false);
        assert_eq!(c.resume(), Resume::Impossible);
        c.saw(Added, "7", false);
        c.saw(Bookmark, "400", true);
        assert_eq!(c.resume(), Resume::At("400".into()));
        assert!(c.complete());
    }

    #[test]
    fn initial_events_without_an_end_need_a_sign() {
        for query in ["", "resourceVersion=0"] {
            let mut c = cursor(query);
            assert_eq!(c.resume(), Resume::Same);
            c.saw(Added, "300", false);
            c.saw(Added, "7", false);
            assert!(c.unsettled());
            assert_eq!(c.resume(), Resume::Impossible);
            let mut quiet = c.clone();
            quiet.settle();
            assert_eq!(quiet.resume(), Resume::At("300".into()));
            c.saw(Modified, "301", false);
            assert_eq!(c.resume(), Resume::At("301".into()));
        }
    }

    #[test]
    fn queries() {
        let at = Resume::At("42".into());
        let left = Some(Duration::from_secs(100));
        assert_eq!(
            resumed_query(
                "watch=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&fieldSelector=a%3Db%2Cc&timeoutSeconds=500&timeout=8m20s&resourceVersion=1",
                &at,
                left
            ),
            "watch=true&fieldSelector=a%3Db%2Cc&resourceVersion=42&timeoutSeconds=100"
        );
        assert_eq!(
            resumed_query(
                "watch=true&sendInitialEvents=true&timeoutSeconds=5",
                &Resume::Same,
                Some(Duration::ZERO)
            ),
            "watch=true&sendInitialEvents=true&timeoutSeconds=1"
        );
        assert_eq!(
            resumed_query("watch=1", &at, None),
            "watch=1&resourceVersion=42"
        );
    }

    proptest! {
        /// Never resumes before or beyond what was delivered.
        #[test]
        fn resumes_at_the_greatest_revision(
            start in 1u64..1000,
            events in proptest::collection::vec((0u8..4, 1u64..1000), 0..50),
        ) {
            let mut c = cursor(&format!("resourceVersion={start}"));
            let mut greatest = start;
            for (kind, revision) in events {
                let kind = [Added, Modified, Deleted, Bookmark][kind as usize];
                c.saw(kind, &revision.to_string(), false);
                greatest = greatest.max(revision);
            }
            prop_assert_eq!(c.resume(), Resume::At(greatest.to_string()));
        }

        /// The rest of the query survives, whatever is in it.
        #[test]
        fn queries_keep_the_rest(name in "[a-z]{1,8}", value in "\\PC{0,20}") {
            let query = format!("{name}={}", encode_query_value(&value));
            let resumed = resumed_query(&query, &Resume::At("1".into()), None);
            prop_assert_eq!(query_pairs(&resumed), vec![
                (name, value),
                ("resourceVersion".to_owned(), "1".to_owned()),
            ]);
        }
    }
}
