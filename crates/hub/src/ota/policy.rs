//! What the node's owner allows, and when: the file, and [`decide`], pure.
//!
//! Windows are said in civil time of a zone. One that begins on a day may end on the next; where clocks are put forward over its
//! edge, the edge is the first moment after the gap, where they are put back, the first of the two.

use crate::deadline::parse_go_duration;
use jiff::{
    Span, Timestamp,
    civil::{Time, Weekday},
    tz::TimeZone,
};
use serde::Deserialize;
use std::{
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

/// Largest policy file, and most entries of each of its lists.
const MOST_BYTES: u64 = 64 << 10;
const MOST_ENTRIES: usize = 64;
/// How far ahead an opening is looked for, in days: windows repeat every week.
const HORIZON: i64 = 15;
/// How long a new pod may take to become ready.
const READY: Duration = Duration::from_secs(300);
/// How long it must stay so: a container without a probe is ready before it fails.
const STEADY: Duration = Duration::from_secs(5);
const LONGEST: Duration = Duration::from_secs(3600);
/// Most upgrades at once that may be asked for.
const MOST_AT_ONCE: usize = 32;
/// Where the system's time zones lie.
const ZONES: &str = "/usr/share/zoneinfo";
const LOCAL: &str = "/etc/localtime";

/// What the owner says.
#[derive(Clone, Debug)]
pub struct Policy {
    zone: TimeZone,
    /// When upgrades may begin; empty: at any time.
    windows: Vec<Window>,
    /// When they may not.
    quiet: Vec<Window>,
    /// Which pods; `None`: all.
    allow: Option<Vec<Rule>>,
    /// Whether what was not asked for on the node's own socket waits to be confirmed there.
    pub confirmation: bool,
    /// Upgrades under way at one time.
    pub at_once: usize,
    /// How long a new pod may take to become ready.
    pub ready: Duration,
    /// How long it must be ready to count as such.
    pub steady: Duration,
    /// Whether to go back when it does not.
    pub rollback: bool,
}

/// Days of the week on which it begins (bit 0: Monday), and its ends. It ends on the next day when it would end before it begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Window {
    days: u8,
    from: Time,
    to: Time,
}

#[derive(Clone, Debug)]
struct Rule {
    namespace: String,
    pods: Vec<String>,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            zone: TimeZone::UTC,
            windows: Vec::new(),
            quiet: Vec::new(),
            allow: None,
            confirmation: false,
            at_once: 1,
            ready: READY,
            steady: STEADY,
            rollback: true,
        }
    }
}

/// Why a policy cannot be used. Its author is at fault.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// It is not YAML of this form.
    #[error("{0}")]
    Form(String),
    /// The time zone is none.
    #[error(
        "timeZone {0:?}: neither a file in {ZONES} nor a POSIX rule like CET-1CEST,M3.5.0,M10.5.0/3"
    )]
    Zone(String),
    /// A time of day is none.
    #[error("{0:?} is no time of day like 22:30")]
    Time(String),
    /// A day is none.
    #[error("{0:?} is neither a day like Mon nor days like Mon-Fri")]
    Day(String),
    /// A number is out of its range.
    #[error("{0}")]
    Range(String),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Written {
    time_zone: Option<String>,
    #[serde(default)]
    windows: Vec<WrittenWindow>,
    #[serde(default)]
    quiet: Vec<WrittenWindow>,
    #[serde(default)]
    confirmation: bool,
    allow: Option<Vec<WrittenRule>>,
    max_at_once: Option<usize>,
    ready_timeout: Option<String>,
    min_ready: Option<String>,
    rollback: Option<bool>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenWindow {
    #[serde(default)]
    days: Vec<String>,
    from: String,
    to: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenRule {
    namespace: String,
    #[serde(default)]
    pods: Vec<String>,
}

const WEEK: [(&str, Weekday); 7] = [
    ("mon", Weekday::Monday),
    ("tue", Weekday::Tuesday),
    ("wed", Weekday::Wednesday),
    ("thu", Weekday::Thursday),
    ("fri", Weekday::Friday),
    ("sat", Weekday::Saturday),
    ("sun", Weekday::Sunday),
];

fn bit(day: Weekday) -> u8 {
    1 << day.to_monday_zero_offset()
}

fn weekday(text: &str) -> Option<Weekday> {
    let short = text.trim().to_ascii_lowercase();
    let found = WEEK.iter().find(|(name, _)| short.starts_with(name))?;
    Some(found.1)
}

fn days(texts: &[String]) -> Result<u8, PolicyError> {
    if texts.is_empty() {
        return Ok(0x7f);
    }
    let mut days = 0;
    for text in texts {
        let wrong = || PolicyError::Day(text.clone());
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let (mut day, last) = (
            weekday(first).ok_or_else(wrong)?,
            weekday(last).ok_or_else(wrong)?,
        );
        days |= bit(day);
        while day != last {
            day = day.next();
            days |= bit(day);
        }
    }
    Ok(days)
}

fn time(text: &str) -> Result<Time, PolicyError> {
    let parse = || {
        let (hour, minute) = text.trim().split_once(':')?;
        match (hour.parse().ok()?, minute.parse().ok()?) {
            (24, 0) => Some(Time::midnight()),
            (hour, minute) => Time::new(hour, minute, 0, 0).ok(),
        }
    };
    parse().ok_or_else(|| PolicyError::Time(text.to_owned()))
}

/// The zone of a name, of a POSIX rule, or the machine's own.
fn zone(text: Option<&str>) -> Result<TimeZone, PolicyError> {
    let read = |path: &Path, name: &str| {
        let data = std::fs::read(path)
            .ok()
            .filter(|data| data.len() as u64 <= MOST_BYTES)?;
        TimeZone::tzif(name, &data).ok()
    };
    let Some(text) = text.map(str::trim).filter(|text| !text.is_empty()) else {
        return Ok(read(Path::new(LOCAL), "local").unwrap_or(TimeZone::UTC));
    };
    if text.eq_ignore_ascii_case("UTC") {
        return Ok(TimeZone::UTC);
    }
    let plain = !text.starts_with('/')
        && text
            .split('/')
            .all(|part| !part.is_empty() && !part.starts_with('.'));
    plain
        .then(|| read(&Path::new(ZONES).join(text), text))
        .flatten()
        .or_else(|| TimeZone::posix(text).ok())
        .ok_or_else(|| PolicyError::Zone(text.to_owned()))
}

impl Policy {
    /// Reads a policy (YAML).
    pub fn parse(text: &str) -> Result<Self, PolicyError> {
        if text.lines().all(|line| {
            let line = line.trim();
            line.is_empty() || line.starts_with('#')
        }) {
            return Ok(Self::default());
        }
        let written: Written =
            serde_saphyr::from_str(text).map_err(|error| PolicyError::Form(error.to_string()))?;
        let windows = |list: Vec<WrittenWindow>| {
            let windows = list.into_iter().map(|window| {
                Ok(Window {
                    days: days(&window.days)?,
                    from: time(&window.from)?,
                    to: time(&window.to)?,
                })
            });
            windows.collect::<Result<Vec<_>, PolicyError>>()
        };
        let most = [
            written.windows.len(),
            written.quiet.len(),
            written.allow.as_ref().map_or(0, Vec::len),
        ];
        if most.into_iter().any(|count| count > MOST_ENTRIES) {
            return Err(PolicyError::Range(format!(
                "more than {MOST_ENTRIES} entries in a list"
            )));
        }
        let at_once = written.max_at_once.unwrap_or(1);
        if !(1..=MOST_AT_ONCE).contains(&at_once) {
            return Err(PolicyError::Range(format!(
                "maxAtOnce must be 1 to {MOST_AT_ONCE}"
            )));
        }
        let duration = |name, text: &Option<String>, usual, least| match text {
            None => Ok(usual),
            Some(text) => parse_go_duration(text)
                .filter(|duration| (least..=LONGEST).contains(duration))
                .ok_or_else(|| {
                    PolicyError::Range(format!(
                        "{name} {text:?} is no duration of {least:?} to {LONGEST:?}"
                    ))
                }),
        };
        let second = Duration::from_secs(1);
        let ready = duration("readyTimeout", &written.ready_timeout, READY, second)?;
        let steady = duration("minReady", &written.min_ready, STEADY, Duration::ZERO)?;
        Ok(Self {
            zone: zone(written.time_zone.as_deref())?,
            windows: windows(written.windows)?,
            quiet: windows(written.quiet)?,
            allow: written.allow.map(|rules| {
                let rules = rules.into_iter().map(|rule| Rule {
                    namespace: rule.namespace,
                    pods: rule.pods,
                });
                rules.collect()
            }),
            confirmation: written.confirmation,
            at_once,
            ready,
            steady,
            rollback: written.rollback.unwrap_or(true),
        })
    }

    /// Whether a pod may be upgraded at all.
    pub fn allows(&self, namespace: &str, pod: &str) -> bool {
        self.allow.as_ref().is_none_or(|rules| {
            rules.iter().any(|rule| {
                matches(&rule.namespace, namespace)
                    && (rule.pods.is_empty() || rule.pods.iter().any(|name| matches(name, pod)))
            })
        })
    }

    /// When windows of a list begin and end, those that began a day before `at` or later.
    fn spans<'a>(
        &'a self,
        windows: &'a [Window],
        at: Timestamp,
        days: i64,
    ) -> impl Iterator<Item = (Timestamp, Timestamp)> + 'a {
        let today = self.zone.to_datetime(at).date();
        // Two days before: clocks may have been put by hours.
        (-2..=days).flat_map(move |offset| {
            windows.iter().filter_map(move |window| {
                let day = today.checked_add(Span::new().days(offset)).ok()?;
                if window.days & bit(day.weekday()) == 0 {
                    return None;
                }
                let end = if window.to <= window.from {
                    day.tomorrow().ok()?
                } else {
                    day
                };
                let from = self.zone.to_timestamp(day.to_datetime(window.from)).ok()?;
                let to = self.zone.to_timestamp(end.to_datetime(window.to)).ok()?;
                (from < to).then_some((from, to))
            })
        })
    }

    /// Whether upgrades may begin at a moment.
    fn is_open(&self, at: Timestamp) -> bool {
        let within = |windows| {
            self.spans(windows, at, 0)
                .any(|(from, to)| from <= at && at < to)
        };
        (self.windows.is_empty() || within(&self.windows)) && !within(&self.quiet)
    }

    /// The first moment from `at` on at which upgrades may begin; `None`: not within two weeks.
    fn opening(&self, at: Timestamp) -> Option<Timestamp> {
        let begins = self.spans(&self.windows, at, HORIZON).map(|(from, _)| from);
        let ends = self.spans(&self.quiet, at, HORIZON).map(|(_, to)| to);
        std::iter::once(at)
            .chain(begins.chain(ends).filter(|moment| *moment > at))
            .filter(|moment| self.is_open(*moment))
            .min()
    }
}

/// Whether a name is like a pattern, in which `*` stands for anything.
fn matches(pattern: &str, name: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = name.strip_prefix(first) else {
        return false;
    };
    let mut last = None;
    for part in parts {
        if let Some(part) = last.replace(part) {
            match rest.split_once(part) {
                Some((_, after)) => rest = after,
                None => return false,
            }
        }
    }
    last.map_or(rest.is_empty(), |last| rest.ends_with(last))
}

/// What is to be upgraded.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// Namespace of the pod.
    pub namespace: &'a str,
    /// The pod.
    pub pod: &'a str,
    /// Whether the owner confirmed it.
    pub confirmed: bool,
}

/// How the node stands.
#[derive(Clone, Copy, Debug)]
pub struct Standing {
    /// Whether the cloud is there.
    pub online: bool,
    /// Upgrades under way.
    pub under_way: usize,
}

/// What something waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// A window, or the end of a quiet one.
    Window,
    /// The link.
    Link,
    /// The end of another upgrade.
    Turn,
}

/// What is to be done with a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It begins.
    Now,
    /// It waits.
    Wait {
        /// For what.
        what: Wait,
        /// Until then at least, where that is known.
        until: Option<Timestamp>,
        /// In words.
        why: String,
    },
    /// It waits for the owner.
    NeedsConfirmation,
    /// It will never be.
    Refused {
        /// In words.
        why: String,
    },
}

/// What is said of a pod that the owner does not want to be upgraded.
pub fn not_allowed(namespace: &str, pod: &str) -> String {
    format!("the owner's policy does not allow upgrades of {namespace}/{pod}")
}

/// What the owner's policy makes of a request at a moment.
pub fn decide(
    policy: &Policy,
    now: Timestamp,
    wanted: &Wanted<'_>,
    standing: &Standing,
) -> Decision {
    let Wanted { namespace, pod, .. } = wanted;
    if !policy.allows(namespace, pod) {
        return Decision::Refused {
            why: not_allowed(namespace, pod),
        };
    }
    let opening = policy.opening(now);
    if opening.is_none() {
        return Decision::Refused {
            why: "the owner's policy has no window for upgrades within two weeks".into(),
        };
    }
    if policy.confirmation && !wanted.confirmed {
        return Decision::NeedsConfirmation;
    }
    if let Some(until) = opening.filter(|opening| *opening > now) {
        let at = until.to_zoned(policy.zone.clone());
        return Decision::Wait {
            what: Wait::Window,
            until: Some(until),
            why: format!(
                "the owner's policy opens at {}",
                at.strftime("%a %F %H:%M %Z")
            ),
        };
    }
    if !standing.online {
        return Decision::Wait {
            what: Wait::Link,
            until: None,
            why: "the node is cut off from the cloud".into(),
        };
    }
    if standing.under_way >= policy.at_once {
        return Decision::Wait {
            what: Wait::Turn,
            until: None,
            why: format!("{} under way already", standing.under_way),
        };
    }
    Decision::Now
}

/// The owner's policy as it stands in its file.
#[derive(Debug)]
pub struct PolicyFile {
    path: PathBuf,
    read: Mutex<Read>,
}

/// Time of change, length, and which file it is.
type Stamp = (SystemTime, u64, u64);

#[derive(Debug, Default)]
struct Read {
    /// By what a change is seen; `None` within: there was no file.
    stamp: Option<Option<Stamp>>,
    good: Option<Arc<Policy>>,
    error: Option<String>,
}

impl PolicyFile {
    /// A policy in a file, which need not be there: then upgrades may begin at any time, one after the other.
    pub fn new(path: PathBuf) -> Self {
        Self {
            path,
            read: Mutex::default(),
        }
    }

    /// The policy in force: the file's, or the last good one while the file makes no sense. An error when there never was one.
    pub fn current(&self) -> Result<Arc<Policy>, String> {
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        self.look(&mut read);
        match (&read.good, &read.error) {
            (Some(policy), _) => Ok(policy.clone()),
            (None, error) => Err(format!(
                "the owner's policy {} cannot be used: {}",
                self.path.display(),
                error.as_deref().unwrap_or_default()
            )),
        }
    }

    /// What is wrong with the file, if anything.
    pub fn trouble(&self) -> Option<String> {
        let read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        read.error.clone()
    }

    fn look(&self, read: &mut Read) {
        let stamp = match std::fs::metadata(&self.path) {
            Ok(meta) => Ok(Some((
                meta.modified().unwrap_or(SystemTime::UNIX_EPOCH),
                meta.len(),
                meta.ino(),
            ))),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error.to_string()),
        };
        if let Ok(stamp) = &stamp
            && read.stamp.as_ref() == Some(stamp)
        {
            return;
        }
        let parsed = match &stamp {
            Err(error) => Err(error.clone()),
            Ok(None) => Ok(Policy::default()),
            Ok(Some((_, bytes, _))) if *bytes > MOST_BYTES => {
                Err(format!("it is longer than {MOST_BYTES} bytes"))
            }
            Ok(Some(_)) => std::fs::read_to_string(&self.path)
                .map_err(|error| error.to_string())
                .and_then(|text| Policy::parse(&text).map_err(|error| error.to_string())),
        };
        read.stamp = stamp.ok();
        match parsed {
            Ok(policy) => {
                tracing::info!(file = %self.path.display(), "the owner's policy for upgrades is read");
                read.good = Some(Arc::new(policy));
                read.error = None;
            }
            Err(error) => {
                if read.error.as_ref() != Some(&error) {
                    tracing::error!(
                        file = %self.path.display(), error, last_good = read.good.is_some(),
                        "the owner's policy for upgrades cannot be used"
                    );
                }
                read.error = Some(error);
            }
        }
    }
}

#[cfg(test)]
mod tests;
