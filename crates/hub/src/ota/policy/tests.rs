use super::*;
use proptest::prelude::*;

/// Clocks go forward on 2026-03-29 at 02:00 and back on 2026-10-25 at 03:00.
const BERLIN: &str = "CET-1CEST,M3.5.0,M10.5.0/3";

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn policy(text: &str) -> Policy {
    Policy::parse(text).unwrap()
}

const FREE: Standing = Standing {
    online: true,
    under_way: 0,
};

fn wanted(confirmed: bool) -> Wanted<'static> {
    Wanted {
        namespace: "kube-system",
        pod: "proxy-x1",
        confirmed,
    }
}

fn nights() -> Policy {
    policy(&format!(
        "timeZone: {BERLIN}\nwindows:\n- {{days: [Mon-Fri], from: '22:00', to: '04:00'}}\nquiet:\n- {{from: '00:30', to: '01:00'}}\n"
    ))
}

#[test]
fn without_a_policy_everything_goes_one_after_the_other() {
    let policy = Policy::default();
    let now = at("2026-11-22T12:00:00Z");
    assert_eq!(decide(&policy, now, &wanted(false), &FREE), Decision::Now);
    let busy = Standing {
        under_way: 1,
        ..FREE
    };
    assert!(matches!(
        decide(&policy, now, &wanted(false), &busy),
        Decision::Wait {
            what: Wait::Turn,
            ..
        }
    ));
    let cut = Standing {
        online: false,
        ..FREE
    };
    assert!(matches!(
        decide(&policy, now, &wanted(false), &cut),
        Decision::Wait {
            what: Wait::Link,
            ..
        }
    ));
}

#[test]
fn a_window_over_midnight_belongs_to_the_day_it_begins_on() {
    let policy = nights();
    for (moment, until) in [
        // Sunday: until Monday night.
        ("2026-11-22T12:00:00Z", Some("2026-11-23T21:00:00Z")),
        ("2026-11-23T21:00:00Z", None),
        ("2026-11-23T23:29:59Z", None),
        // Quiet.
        ("2026-11-23T23:30:00Z", Some("2026-11-24T00:00:00Z")),
        ("2026-11-24T02:59:59Z", None),
        ("2026-11-24T03:00:00Z", Some("2026-11-24T21:00:00Z")),
        // Saturday early: still Friday's.
        ("2026-11-28T02:00:00Z", None),
        ("2026-11-28T22:00:00Z", Some("2026-11-30T21:00:00Z")),
    ] {
        let decision = decide(&policy, at(moment), &wanted(false), &FREE);
        match (until, decision) {
            (None, Decision::Now) => {}
            (
                Some(expected),
                Decision::Wait {
                    what: Wait::Window,
                    until,
                    why,
                },
            ) => {
                assert_eq!(until, Some(at(expected)), "{moment}");
                assert!(why.contains("the owner's policy opens at"), "{why}");
            }
            (_, decision) => panic!("{moment}: {decision:?}"),
        }
    }
}

#[test]
fn edges_in_a_gap_or_a_fold_of_the_clock_have_one_meaning() {
    let gap = policy(&format!(
        "timeZone: {BERLIN}\nwindows: [{{from: '02:30', to: '04:00'}}]"
    ));
    // 02:30 does not exist on that day: 03:30, which is 01:30 UTC.
    assert_eq!(
        gap.opening(at("2026-03-29T00:00:00Z")),
        Some(at("2026-03-29T01:30:00Z"))
    );
    assert!(gap.is_open(at("2026-03-29T01:59:59Z")) && !gap.is_open(at("2026-03-29T02:00:00Z")));
    // Twice 02:30: the first of them begins it, and it lasts an hour longer.
    let fold = at("2026-10-25T00:30:00Z");
    assert!(!gap.is_open(at("2026-10-25T00:29:59Z")) && gap.is_open(fold));
    assert!(gap.is_open(at("2026-10-25T02:59:59Z")) && !gap.is_open(at("2026-10-25T03:00:00Z")));
    // A window that the gap swallows whole is not on that day.
    let swallowed = policy(&format!(
        "timeZone: {BERLIN}\nwindows: [{{from: '02:30', to: '03:15'}}]"
    ));
    assert_eq!(
        swallowed.opening(at("2026-03-29T00:00:00Z")),
        Some(at("2026-03-30T00:30:00Z"))
    );
}

#[test]
fn the_owner_confirms_before_anything_waits_for_windows() {
    let policy =
        policy("confirmation: true\nwindows: [{from: '03:00', to: '03:30'}]\ntimeZone: UTC");
    let now = at("2026-11-22T12:00:00Z");
    assert_eq!(
        decide(&policy, now, &wanted(false), &FREE),
        Decision::NeedsConfirmation
    );
    assert!(matches!(
        decide(&policy, now, &wanted(true), &FREE),
        Decision::Wait {
            what: Wait::Window,
            ..
        }
    ));
}

#[test]
fn only_what_is_allowed() {
    let policy =
        policy("allow:\n- {namespace: kube-*, pods: ['proxy-*', dns]}\n- {namespace: shop}");
    for (namespace, pod, allowed) in [
        ("kube-system", "proxy-x1", true),
        ("kube-system", "dns", true),
        ("kube-system", "dns-2", false),
        ("shop", "anything", true),
        ("shop2", "anything", false),
    ] {
        let wanted = Wanted {
            namespace,
            pod,
            confirmed: false,
        };
        let decision = decide(&policy, at("2026-11-22T12:00:00Z"), &wanted, &FREE);
        assert_eq!(
            decision == Decision::Now,
            allowed,
            "{namespace}/{pod}: {decision:?}"
        );
    }
    assert!(matches("a*b*c", "a-b-b-c") && !matches("a*b*c", "ac") && !matches("a*a", "a"));
    assert!(matches("*", "") && matches("", "") && !matches("", "a") && matches("*x*", "axb"));
}

#[test]
fn a_policy_that_makes_no_sense_says_why() {
    for (text, why) in [
        ("window: []", "unknown field"),
        ("timeZone: Mars/Olympus", "Mars/Olympus"),
        ("timeZone: ../../etc/passwd", "timeZone"),
        ("windows: [{from: '25:00', to: '1:00'}]", "25:00"),
        ("windows: [{from: '22:00', to: 'x'}]", "no time of day"),
        ("windows: [{days: [Mun], from: '1:00', to: '2:00'}]", "Mun"),
        ("maxAtOnce: 0", "maxAtOnce"),
        ("readyTimeout: 2h", "readyTimeout"),
        ("readyTimeout: soon", "readyTimeout"),
        ("minReady: -1s", "minReady"),
        ("[]", ""),
    ] {
        let error = Policy::parse(text).unwrap_err().to_string();
        assert!(error.contains(why), "{text}: {error}");
    }
    let empty = Policy::parse("# nothing yet\n\n").unwrap();
    assert!(empty.rollback && !empty.confirmation);
    let never = policy("quiet: [{from: '00:00', to: '24:00'}]\ntimeZone: UTC");
    assert!(matches!(
        decide(&never, at("2026-11-22T12:00:00Z"), &wanted(true), &FREE),
        Decision::Refused { .. }
    ));
}

#[test]
fn a_file_is_read_again_when_it_changes_and_the_last_good_one_stays() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("policy.yaml");
    let file = PolicyFile::new(path.clone());
    assert!(!file.current().unwrap().confirmation);
    std::fs::write(&path, "confirmation: true\n").unwrap();
    assert!(file.current().unwrap().confirmation);
    std::fs::write(&path, "confirmation: [").unwrap();
    assert!(file.current().unwrap().confirmation, "the last good one");
    assert!(file.trouble().is_some());
    std::fs::remove_file(&path).unwrap();
    assert!(!file.current().unwrap().confirmation && file.trouble().is_none());
    // A start with a policy that makes no sense: nothing is allowed.
    std::fs::write(&path, "confirmation: [").unwrap();
    let error = PolicyFile::new(path).current().unwrap_err();
    assert!(error.contains("cannot be used"), "{error}");
}

fn any_window() -> impl Strategy<Value = String> {
    (0usize..7, 0usize..7, 0u32..24, 0u32..60, 0u32..24, 0u32..60).prop_map(
        |(first, last, h1, m1, h2, m2)| {
            format!(
                "{{days: [{}-{}], from: '{h1:02}:{m1:02}', to: '{h2:02}:{m2:02}'}}",
                WEEK[first].0, WEEK[last].0
            )
        },
    )
}

proptest! {
    /// Whatever the windows, the zone and the time of year: the moment that is named is open, and none before it is.
    #[test]
    fn the_opening_is_the_first_open_moment(
        windows in proptest::collection::vec(any_window(), 0..3),
        quiet in proptest::collection::vec(any_window(), 0..3),
        zone in proptest::sample::select(vec![BERLIN, "UTC", "<+0545>-5:45", "EST5EDT,M3.2.0,M11.1.0", "<+1030>-10:30<+11>-11,M10.1.0,M4.1.0"]),
        minutes in 0i64..(366 * 24 * 60),
    ) {
        let text = format!("timeZone: '{zone}'\nwindows: [{}]\nquiet: [{}]", windows.join(","), quiet.join(","));
        let policy = Policy::parse(&text).unwrap();
        let now = at("2026-01-01T00:00:00Z") + Span::new().minutes(minutes);
        match decide(&policy, now, &wanted(true), &FREE) {
            Decision::Now => prop_assert!(policy.is_open(now)),
            Decision::Wait { what: Wait::Window, until: Some(until), .. } => {
                prop_assert!(until > now && policy.is_open(until));
                let mut moment = now;
                while moment < until {
                    prop_assert!(!policy.is_open(moment), "{moment} is open, {until} was named");
                    moment += Span::new().minutes(5);
                }
                prop_assert_eq!(decide(&policy, until, &wanted(true), &FREE), Decision::Now);
            }
            Decision::Refused { .. } => {
                for hours in 0..(24 * 10) {
                    prop_assert!(!policy.is_open(now + Span::new().hours(hours)));
                }
            }
            other => prop_assert!(false, "{:?}", other),
        }
    }

    /// Where clocks never change, a moment is open exactly when its civil time says so.
    #[test]
    fn civil_time_decides_where_clocks_never_change(
        days in 0usize..7, h1 in 0i8..24, h2 in 0i8..24, minutes in 0i64..(14 * 24 * 60),
    ) {
        let text = format!("timeZone: '<+0545>-5:45'\nwindows: [{{days: [{}], from: '{h1}:00', to: '{h2}:00'}}]", WEEK[days].0);
        let policy = Policy::parse(&text).unwrap();
        let now = at("2026-06-01T00:00:00Z") + Span::new().minutes(minutes);
        let civil = policy.zone.to_datetime(now);
        let today = civil.weekday() == WEEK[days].1;
        let yesterday = civil.weekday() == WEEK[days].1.next();
        let hour = civil.hour();
        let expected = if h2 > h1 {
            today && (h1..h2).contains(&hour)
        } else {
            today && hour >= h1 || yesterday && hour < h2
        };
        prop_assert_eq!(policy.is_open(now), expected, "{}", civil);
    }

    /// No text makes reading a policy panic, and what is understood can be decided by.
    #[test]
    fn any_text_is_a_policy_or_an_error(text in "[ -~\n]{0,200}") {
        if let Ok(policy) = Policy::parse(&text) {
            decide(&policy, at("2026-11-22T12:00:00Z"), &wanted(false), &FREE);
        }
    }
}
