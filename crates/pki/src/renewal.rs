//! When a certificate is to be asked for anew, and how patiently. Pure: functions of values and of the time.

use crate::{Leaf, Profile};
use std::{
    collections::BTreeSet,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// Pauses after failures: the first, and the longest.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// After an answer that another attempt would only get again: somebody has to do something first.
const RESIGNED_PAUSE: Duration = Duration::from_secs(300);

/// Why a certificate is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// There is none, or none that can be read.
    Missing,
    /// It is somebody else's.
    Foreign,
    /// It has ended.
    Expired,
    /// The cloud does not accept it.
    Refused,
    /// Most of its time is over.
    Due,
    /// It lacks groups, names or addresses that it should have.
    Contents(String),
    /// It is for names or addresses that it should not be for any more.
    Surplus(String),
}

impl std::fmt::Display for Reason {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Missing => formatter.write_str("there is none"),
            Self::Foreign => formatter.write_str("it is somebody else's"),
            Self::Expired => formatter.write_str("it has expired"),
            Self::Refused => formatter.write_str("the cloud does not accept it"),
            Self::Due => formatter.write_str("it ends soon"),
            Self::Contents(what) => write!(formatter, "it lacks {what}"),
            Self::Surplus(what) => write!(formatter, "it is still for {what}"),
        }
    }
}

/// The state of a certificate by the clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Validity {
    /// It counts.
    Valid,
    /// It begins later: as a rule the node's clock is not set yet. It is used all the same, because whoever verifies it goes by a
    /// clock of its own.
    NotYet,
    /// It has ended.
    Expired,
}

/// The state of a certificate at `now`.
pub fn validity(leaf: &Leaf, now: i64) -> Validity {
    if now >= leaf.not_after {
        Validity::Expired
    } else if now < leaf.not_before {
        Validity::NotYet
    } else {
        Validity::Valid
    }
}

/// When a certificate is to be renewed: at 70 to 90 % of its time, by `luck` in 0..1, so that nodes set up together do not come
/// together (what client-go's certificate manager does).
pub fn renew_at(leaf: &Leaf, luck: f64) -> i64 {
    let length = leaf.not_after.saturating_sub(leaf.not_before).max(0);
    let share = 0.7 + 0.2 * luck.clamp(0.0, 1.0);
    leaf.not_before
        .saturating_add((length as f64 * share) as i64)
}

/// Why a certificate is to be asked for at `now`; `None` when the one there is good. What it has beyond `wanted` does not matter:
/// addresses come and go.
pub fn reason(leaf: Option<&Leaf>, wanted: &Profile, now: i64, luck: f64) -> Option<Reason> {
    let Some(leaf) = leaf else {
        return Some(Reason::Missing);
    };
    if leaf.identity.user != wanted.common_name {
        return Some(Reason::Foreign);
    }
    if validity(leaf, now) == Validity::Expired {
        return Some(Reason::Expired);
    }
    if let Some(what) = lacking(leaf, wanted) {
        return Some(Reason::Contents(what));
    }
    (now >= renew_at(leaf, luck)).then_some(Reason::Due)
}

/// The first name or address that a certificate is for beyond `wanted`.
pub fn surplus(leaf: &Leaf, wanted: &Profile) -> Option<String> {
    let name = leaf.dns.iter().find(|name| !wanted.dns.contains(name));
    let address = leaf.ips.iter().find(|ip| !wanted.ips.contains(ip));
    name.map(|name| format!("the name {name}"))
        .or_else(|| address.map(|address| format!("the address {address}")))
}

fn lacking(leaf: &Leaf, wanted: &Profile) -> Option<String> {
    let groups: BTreeSet<&String> = leaf.identity.groups.iter().collect();
    let group = wanted.organizations.iter().find(|g| !groups.contains(g));
    let name = wanted.dns.iter().find(|name| !leaf.dns.contains(name));
    let address = wanted.ips.iter().find(|ip| !leaf.ips.contains(ip));
    group
        .map(|group| format!("the group {group}"))
        .or_else(|| name.map(|name| format!("the name {name}")))
        .or_else(|| address.map(|address| format!("the address {address}")))
}

/// How long to wait after so many failures in a row; `resigned` when only somebody's doing helps.
pub fn pause(failures: u32, resigned: bool, luck: f64) -> Duration {
    let whole = if resigned {
        RESIGNED_PAUSE
    } else {
        (FIRST_PAUSE * 2u32.saturating_pow(failures.saturating_sub(1).min(16))).min(LONGEST_PAUSE)
    };
    whole.mul_f64(0.5 + 0.5 * luck.clamp(0.0, 1.0))
}

/// Seconds since the epoch; a clock before it counts as its beginning.
pub fn now() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| {
            i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
        })
}

/// A time of a certificate in words.
pub fn moment(seconds: i64) -> String {
    jiff::Timestamp::from_second(seconds).map_or_else(|_| seconds.to_string(), |t| t.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Identity;
    use proptest::prelude::*;
    use std::net::IpAddr;

    fn leaf(profile: &Profile, not_before: i64, not_after: i64) -> Leaf {
        Leaf {
            identity: Identity {
                user: profile.common_name.clone(),
                groups: profile.organizations.clone(),
            },
            not_before,
            not_after,
            dns: profile.dns.clone(),
            ips: profile.ips.clone(),
        }
    }

    fn profile(user: &str, groups: &[&str], ips: &[[u8; 4]]) -> Profile {
        Profile {
            common_name: user.into(),
            organizations: groups.iter().map(|group| (*group).into()).collect(),
            dns: vec!["kubernetes".into()],
            ips: ips.iter().map(|ip| IpAddr::from(*ip)).collect(),
            ..Profile::default()
        }
    }

    #[test]
    fn a_certificate_is_renewed_for_a_reason() {
        let wanted = profile("a", &["g"], &[[127, 0, 0, 1], [10, 0, 0, 7]]);
        let good = leaf(&wanted, 1_000, 2_000);
        let at = |leaf: &Leaf, now| reason(Some(leaf), &wanted, now, 0.5);
        assert_eq!(reason(None, &wanted, 1_500, 0.5), Some(Reason::Missing));
        assert_eq!(at(&good, 1_500), None);
        assert_eq!(at(&good, 1_800), Some(Reason::Due));
        assert_eq!(at(&good, 2_000), Some(Reason::Expired));
        // The clock of a node that just booted.
        assert_eq!(at(&good, 0), None);
        assert_eq!(validity(&good, 0), Validity::NotYet);
        let other = Profile {
            common_name: "b".into(),
            ..wanted.clone()
        };
        assert_eq!(
            at(&leaf(&other, 1_000, 2_000), 1_500),
            Some(Reason::Foreign)
        );
        let fewer = profile("a", &["g"], &[[127, 0, 0, 1]]);
        assert_eq!(
            at(&leaf(&fewer, 1_000, 2_000), 1_500),
            Some(Reason::Contents("the address 10.0.0.7".into()))
        );
        // An address that is gone is no reason by itself.
        assert_eq!(reason(Some(&good), &fewer, 1_500, 0.5), None);
        assert_eq!(
            surplus(&good, &fewer).as_deref(),
            Some("the address 10.0.0.7")
        );
        assert_eq!(surplus(&good, &wanted), None);
        let groups = profile("a", &["g", "h"], &[]);
        assert_eq!(
            reason(Some(&good), &groups, 1_500, 0.5),
            Some(Reason::Contents("the group h".into()))
        );
    }

    #[test]
    fn pauses_grow_and_end() {
        assert_eq!(pause(1, false, 1.0), Duration::from_secs(1));
        assert_eq!(pause(4, false, 1.0), Duration::from_secs(8));
        assert_eq!(pause(u32::MAX, false, 1.0), LONGEST_PAUSE);
        assert_eq!(pause(1, true, 0.0), RESIGNED_PAUSE / 2);
    }

    proptest! {
        #[test]
        fn renewal_falls_between_70_and_90_percent(begin in -1_000_000_000_000i64..1_000_000_000_000, length in 0i64..100_000_000_000, luck in 0.0..1.0) {
            let leaf = leaf(&Profile::default(), begin, begin + length);
            let at = renew_at(&leaf, luck) - begin;
            // Rounded down to a second.
            prop_assert!(at + 1 >= length / 10 * 7 && at <= length / 10 * 9 + 9, "{at} of {length}");
        }

        #[test]
        fn no_clock_and_no_certificate_panics(begin: i64, end: i64, now: i64, luck: f64) {
            let profile = profile("n", &[], &[]);
            let leaf = leaf(&profile, begin, end);
            let _ = reason(Some(&leaf), &profile, now, luck);
            let _ = (moment(begin), validity(&leaf, now));
        }
    }
}
