//! The condition `Autonomy` of the Node: whether the pods of the node would go on without the cloud. Pure.
//!
//! Type, statuses and reasons are OpenYurt's. Unlike there, any of the annotations counts, and nothing waits for this condition:
//! a kubelet gets its Node whatever becomes of it.

use crate::cache::Stats;
use jiff::Timestamp;
use serde_json::{Value, json};
use yurt_api::autonomy::Autonomy;

/// The condition's type.
pub const TYPE: &str = "Autonomy";
/// Looks in a row at a cache in trouble, beyond which the condition says so.
const PATIENCE: u32 = 3;
/// Longest message.
const MOST_MESSAGE: usize = 512;

/// What the cache counted of its troubles up to a moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Troubles {
    /// Batches the disk refused.
    pub write_errors: u64,
    /// Reads the disk refused.
    pub read_errors: u64,
    /// Records that could not be read back.
    pub corrupt: u64,
    /// Objects for which there was no room on the way to the disk.
    pub overflowed: u64,
}

impl Troubles {
    /// As counted now.
    pub fn of(stats: &Stats) -> Self {
        Self {
            write_errors: stats.write_errors.get(),
            read_errors: stats.read_errors.get(),
            corrupt: stats.corrupt.get(),
            overflowed: stats.overflowed.get(),
        }
    }

    /// What came since `before`, in words; `None` when all is well. Without counts: they change with every look, and the
    /// condition is written when it changes.
    pub fn since(&self, before: &Self) -> Option<String> {
        let kinds = [
            (
                self.write_errors > before.write_errors,
                "the disk refuses writes",
            ),
            (
                self.read_errors > before.read_errors,
                "the disk refuses reads",
            ),
            (self.corrupt > before.corrupt, "records are damaged"),
            (
                self.overflowed > before.overflowed,
                "the disk is too slow for what is to be kept",
            ),
        ];
        let said: Vec<&str> = kinds
            .iter()
            .filter_map(|(came, what)| came.then_some(*what))
            .collect();
        (!said.is_empty()).then(|| said.join(", "))
    }
}

/// What the condition should say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// `True`, `False` or `Unknown`.
    pub status: &'static str,
    /// Reason.
    pub reason: &'static str,
    /// Message.
    pub message: String,
}

/// Looks at the cache again and again; a single trouble is no verdict.
#[derive(Clone, Debug, Default)]
pub struct Observer {
    before: Troubles,
    trouble: Option<String>,
    failures: u32,
}

impl Observer {
    /// One that begins now.
    pub fn new(now: Troubles) -> Self {
        Self {
            before: now,
            ..Self::default()
        }
    }

    /// One look. `full` says that the disk is full.
    pub fn look(&mut self, now: Troubles, full: Option<String>) {
        self.trouble = [now.since(&self.before), full]
            .into_iter()
            .flatten()
            .reduce(|first, second| format!("{first}; {second}"));
        self.before = now;
        self.failures = match self.trouble {
            Some(_) => self.failures.saturating_add(1),
            None => 0,
        };
    }

    /// What the cache is in trouble with, as of the last look.
    pub fn trouble(&self) -> Option<&str> {
        self.trouble.as_deref()
    }

    /// What follows from the looks so far; `None` when the condition is to stay as it is.
    pub fn verdict(&self, autonomy: &Autonomy) -> Option<Verdict> {
        match (autonomy, &self.trouble) {
            (Autonomy::Off(why), _) => Some(Verdict {
                status: "False",
                reason: "autonomy disabled",
                message: bounded(format!(
                    "The autonomy is disabled or this node is not edge node: {why}"
                )),
            }),
            (_, None) => Some(Verdict {
                status: "True",
                reason: "autonomy enabled successfully",
                message: "The autonomy is enabled and it works fine".into(),
            }),
            (_, Some(_)) if self.failures <= PATIENCE => None,
            (_, Some(trouble)) => Some(Verdict {
                status: "Unknown",
                reason: "cache failed",
                message: bounded(format!(
                    "The cache cannot keep what the node needs: {trouble}"
                )),
            }),
        }
    }
}

fn bounded(mut text: String) -> String {
    if text.len() > MOST_MESSAGE {
        let mut end = MOST_MESSAGE;
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
    }
    text
}

/// The condition to write on a Node; `None` when it says the same already. The time of transition only moves with the status.
pub fn revise(node: &Value, verdict: &Verdict, now: Timestamp) -> Option<Value> {
    let known = node
        .pointer("/status/conditions")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .find(|condition| condition.get("type").and_then(Value::as_str) == Some(TYPE));
    let field = |name: &str| known?.get(name)?.as_str();
    let same_status = field("status") == Some(verdict.status);
    if same_status
        && field("reason") == Some(verdict.reason)
        && field("message") == Some(&verdict.message)
    {
        return None;
    }
    let now = super::seconds(now);
    let since = match field("lastTransitionTime") {
        Some(since) if same_status => since.to_owned(),
        _ => now.clone(),
    };
    Some(json!({
        "type": TYPE,
        "status": verdict.status,
        "reason": verdict.reason,
        "message": verdict.message,
        "lastHeartbeatTime": now,
        "lastTransitionTime": since,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;

    fn errors(write_errors: u64) -> Troubles {
        Troubles {
            write_errors,
            ..Troubles::default()
        }
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(seconds).unwrap()
    }

    #[test]
    fn what_the_annotations_say_is_told() {
        let observer = Observer::default();
        let off = Autonomy::Off("nobody asked".into());
        let told = observer.verdict(&off).unwrap();
        assert_eq!((told.status, told.reason), ("False", "autonomy disabled"));
        assert!(told.message.ends_with("nobody asked"), "{}", told.message);
        for on in [
            Autonomy::Unlimited,
            Autonomy::For(Duration::from_secs(3600)),
        ] {
            let told = observer.verdict(&on).unwrap();
            assert_eq!(
                (told.status, told.reason),
                ("True", "autonomy enabled successfully")
            );
        }
    }

    #[test]
    fn a_cache_in_trouble_is_told_at_the_fourth_look_and_forgiven_at_the_first_good_one() {
        let mut observer = Observer::new(errors(7));
        let mut look = |count, full: Option<&str>| {
            observer.look(errors(count), full.map(str::to_owned));
            observer.verdict(&Autonomy::Unlimited)
        };
        for count in 8..11 {
            assert_eq!(look(count, None), None);
        }
        let told = look(99, None).unwrap();
        assert_eq!((told.status, told.reason), ("Unknown", "cache failed"));
        assert!(
            told.message.ends_with("the disk refuses writes"),
            "{}",
            told.message
        );
        // The same trouble is the same message, however many errors there were.
        assert_eq!(look(100, None).as_ref(), Some(&told));
        assert!(
            look(100, Some("no room"))
                .unwrap()
                .message
                .contains("no room")
        );
        assert_eq!(look(100, None).unwrap().status, "True");
        assert_eq!(look(101, None), None);
    }

    #[test]
    fn messages_are_bounded() {
        let off = Autonomy::Off("ü".repeat(2000));
        let told = Observer::default().verdict(&off).unwrap();
        assert!(told.message.len() <= MOST_MESSAGE);
    }

    #[test]
    fn the_time_of_transition_moves_with_the_status_only() {
        let verdict = |status, message: &str| Verdict {
            status,
            reason: "r",
            message: message.into(),
        };
        let mut node = json!({"status": {"conditions": [{"type": "Ready", "status": "True"}]}});
        let mut write = |status, message, now| {
            let made = revise(&node, &verdict(status, message), at(now));
            if let Some(made) = &made {
                node["status"]["conditions"] = json!([made]);
            }
            made
        };
        let first = write("True", "a", 100).unwrap();
        assert_eq!(first["lastTransitionTime"], "1970-01-01T00:01:40Z");
        assert_eq!(write("True", "a", 200), None);
        let second = write("True", "b", 300).unwrap();
        assert_eq!(second["lastTransitionTime"], first["lastTransitionTime"]);
        assert_eq!(second["lastHeartbeatTime"], "1970-01-01T00:05:00Z");
        let third = write("False", "b", 400).unwrap();
        assert_eq!(third["lastTransitionTime"], "1970-01-01T00:06:40Z");
    }

    proptest! {
        /// Whatever the cache does, what was written is not written again for the same verdict: no hot loop.
        #[test]
        fn writing_ends(counts in proptest::collection::vec(0u64..4, 0..20), on: bool) {
            let autonomy = if on { Autonomy::Unlimited } else { Autonomy::Off("x".into()) };
            let mut observer = Observer::default();
            let mut total = 0;
            let mut node = json!({});
            for count in counts {
                total += count;
                observer.look(errors(total), None);
                let Some(verdict) = observer.verdict(&autonomy) else { continue };
                if let Some(condition) = revise(&node, &verdict, at(1)) {
                    node = json!({"status": {"conditions": [condition]}});
                }
                prop_assert_eq!(revise(&node, &verdict, at(2)), None);
            }
        }
    }
}
