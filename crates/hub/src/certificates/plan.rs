//! What the hub's certificates must say, and when they are renewed. Pure: functions of values and of the time.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use yurt_pki::{Leaf, Profile};

/// The group of OpenYurt's hubs.
pub const HUBS: &str = "openyurt:yurthub";
/// The group of nodes.
pub const NODES: &str = "system:nodes";
/// Names under which pods reach an API server, and thus a hub in its place.
const SERVICE_NAMES: [&str; 4] = [
    "kubernetes",
    "kubernetes.default",
    "kubernetes.default.svc",
    "kubernetes.default.svc.cluster.local",
];

/// Pauses after failures: the first, and the longest.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// After an answer that another attempt would only get again: somebody has to do something first.
const RESIGNED_PAUSE: Duration = Duration::from_secs(300);

/// A certificate of the hub.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Towards the cloud and other hubs.
    Client,
    /// Towards those who call the hub.
    Serving,
}

impl Kind {
    /// Its name in status, metrics and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Serving => "server",
        }
    }

    /// Beginning of its file names (OpenYurt's).
    pub(super) fn file_prefix(self) -> &'static str {
        match self {
            Self::Client => "yurthub",
            Self::Serving => "yurthub-server",
        }
    }

    /// Who signs it.
    pub(super) fn signer(self) -> &'static str {
        match self {
            Self::Client => "kubernetes.io/kube-apiserver-client",
            Self::Serving => "kubernetes.io/kubelet-serving",
        }
    }

    /// What it is for. Approvers compare the whole set.
    pub(super) fn usages(self) -> [&'static str; 3] {
        let last = match self {
            Self::Client => "client auth",
            Self::Serving => "server auth",
        };
        ["digital signature", "key encipherment", last]
    }
}

/// The user that a node is.
pub fn user_of(node: &str) -> String {
    format!("system:node:{node}")
}

/// Contents of the client certificate. `organizations` beside the usual ones.
pub fn client_profile(node: &str, organizations: &[String]) -> Profile {
    let mut groups = vec![HUBS.to_owned(), NODES.to_owned()];
    for organization in organizations {
        if !groups.contains(organization) {
            groups.push(organization.clone());
        }
    }
    Profile {
        common_name: user_of(node),
        organizations: groups,
        ..Profile::default()
    }
}

/// Contents of the serving certificate for these addresses; those that no client can name are left out.
pub fn serving_profile(node: &str, addresses: impl IntoIterator<Item = IpAddr>) -> Profile {
    let mut ips: Vec<IpAddr> = Vec::new();
    for address in addresses {
        if !address.is_unspecified() && !address.is_multicast() && !ips.contains(&address) {
            ips.push(address);
        }
    }
    Profile {
        common_name: user_of(node),
        organizations: vec![NODES.to_owned()],
        dns: SERVICE_NAMES.map(str::to_owned).into(),
        ips,
        ..Profile::default()
    }
}

/// Why a certificate is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// There is none, or none that can be read.
    Missing,
    /// It is another node's.
    Foreign,
    /// It has ended.
    Expired,
    /// The cloud does not accept it.
    Refused,
    /// Most of its time is over.
    Due,
    /// It lacks groups, names or addresses that it should have.
    Contents(String),
}

impl std::fmt::Display for Reason {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Missing => formatter.write_str("there is none"),
            Self::Foreign => formatter.write_str("it is not this node's"),
            Self::Expired => formatter.write_str("it has expired"),
            Self::Refused => formatter.write_str("the cloud does not accept it"),
            Self::Due => formatter.write_str("it ends soon"),
            Self::Contents(what) => write!(formatter, "it lacks {what}"),
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
    use proptest::prelude::*;
    use yurt_pki::Identity;

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

    fn addresses(texts: &[&str]) -> Vec<IpAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn subjects_are_what_approvers_expect() {
        let tenant = ["openyurt:tenant:a".to_owned(), "system:nodes".to_owned()];
        let client = client_profile("edge-1", &tenant);
        assert_eq!(client.common_name, "system:node:edge-1");
        assert_eq!(
            client.organizations,
            ["openyurt:yurthub", "system:nodes", "openyurt:tenant:a"]
        );
        assert!(client.dns.is_empty() && client.ips.is_empty());
        let serving = serving_profile(
            "edge-1",
            addresses(&[
                "10.96.0.1",
                "0.0.0.0",
                "127.0.0.1",
                "127.0.0.1",
                "::",
                "fd00::7",
            ]),
        );
        assert_eq!(serving.organizations, ["system:nodes"]);
        assert_eq!(
            serving.ips,
            addresses(&["10.96.0.1", "127.0.0.1", "fd00::7"])
        );
        assert_eq!(serving.dns.len(), 4);
    }

    #[test]
    fn a_certificate_is_renewed_for_a_reason() {
        let wanted = serving_profile("edge-1", addresses(&["127.0.0.1", "10.0.0.7"]));
        let good = leaf(&wanted, 1_000, 2_000);
        let at = |leaf: &Leaf, now| reason(Some(leaf), &wanted, now, 0.5);
        assert_eq!(reason(None, &wanted, 1_500, 0.5), Some(Reason::Missing));
        assert_eq!(at(&good, 1_500), None);
        assert_eq!(at(&good, 1_800), Some(Reason::Due));
        assert_eq!(at(&good, 2_000), Some(Reason::Expired));
        // The clock of a node that just booted.
        assert_eq!(at(&good, 0), None);
        assert_eq!(validity(&good, 0), Validity::NotYet);
        let other = leaf(&serving_profile("edge-2", wanted.ips.clone()), 1_000, 2_000);
        assert_eq!(at(&other, 1_500), Some(Reason::Foreign));
        let moved = leaf(
            &serving_profile("edge-1", addresses(&["127.0.0.1"])),
            1_000,
            2_000,
        );
        assert_eq!(
            at(&moved, 1_500),
            Some(Reason::Contents("the address 10.0.0.7".into()))
        );
        // An address that is gone is no reason.
        let surplus = serving_profile("edge-1", addresses(&["127.0.0.1"]));
        assert_eq!(reason(Some(&good), &surplus, 1_500, 0.5), None);
        let hub = client_profile("edge-1", &["openyurt:tenant:a".into()]);
        let before = leaf(&client_profile("edge-1", &[]), 1_000, 2_000);
        assert_eq!(
            reason(Some(&before), &hub, 1_500, 0.5),
            Some(Reason::Contents("the group openyurt:tenant:a".into()))
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
            let leaf = leaf(&client_profile("n", &[]), begin, end);
            let _ = reason(Some(&leaf), &client_profile("n", &[]), now, luck);
            let _ = (moment(begin), validity(&leaf, now));
        }
    }
}
