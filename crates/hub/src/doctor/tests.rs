use super::*;
use proptest::prelude::*;
use std::time::Duration;

fn healthy() -> Facts {
    let now: Timestamp = "2026-11-22T10:00:00Z".parse().unwrap();
    let year = now + SignedDuration::from_hours(365 * 24);
    Facts {
        node_name: "edge-1".into(),
        now,
        online: true,
        certificates: ["CA", "client"]
            .map(|purpose| Certificate {
                purpose: purpose.into(),
                ends: Ok(year),
            })
            .into(),
        autonomy: Some(Autonomy::Unlimited),
        pods: Some(vec![Pod {
            name: "default/web".into(),
            found: 3,
            tokens: 1,
            ..Pod::default()
        }]),
        can_sign: true,
        lists: vec![List {
            what: "services",
            known: true,
            needed: true,
        }],
        trouble: None,
        cache_bytes: 1 << 20,
        cache_budget: 64 << 20,
        disk_free: Some(1 << 30),
        journal: 0,
        kubelet_silent: Some(Duration::from_secs(3)),
        kubelet_alive: true,
        lease_trouble: None,
        latest: Some(now),
    }
}

fn found<'a>(report: &'a Report, id: &str) -> &'a Check {
    report.checks.iter().find(|check| check.id == id).unwrap()
}

#[test]
fn a_healthy_node_has_a_hundred_points_and_nothing_to_do() {
    let report = examine(&healthy());
    assert_eq!((report.score, report.verdict), (100, "ready"));
    assert!(report.checks.iter().all(|check| check.todo.is_empty()));
}

#[test]
fn a_missing_secret_is_named_and_the_score_rises_when_it_is_there() {
    let mut facts = healthy();
    let pod = |facts: &mut Facts, found, missing: &[&str]| {
        let pod = &mut facts.pods.as_mut().unwrap()[0];
        pod.found = found;
        pod.missing = missing.iter().map(|&name| name.into()).collect();
        examine(facts)
    };
    let both = pod(&mut facts, 1, &["secret default/a", "secret default/b"]);
    let check = found(&both, "objects");
    assert_eq!((check.state, both.verdict), (State::Fail, "not ready"));
    assert!(
        check.why.contains("secret default/b (pod default/web)"),
        "{}",
        check.why
    );
    assert!(!check.todo.is_empty());
    let one = pod(&mut facts, 2, &["secret default/b"]);
    let none = pod(&mut facts, 3, &[]);
    assert!(both.score < one.score && one.score < none.score);
    assert_eq!(none.score, 100);
}

#[test]
fn every_trouble_shows_in_its_check_and_says_what_to_do() {
    type Harm = fn(&mut Facts);
    let now = healthy().now;
    assert_eq!(now, healthy().now);
    let cases: [(&str, State, Harm); 22] = [
        ("link", State::Warn, |f| f.online = false),
        ("link", State::Warn, |f| {
            f.lease_trouble = Some("403".into())
        }),
        ("kubelet", State::Fail, |f| f.kubelet_silent = None),
        ("kubelet", State::Fail, |f| f.kubelet_alive = false),
        ("autonomy", State::Warn, |f| {
            f.autonomy = Some(Autonomy::Off("x".into()));
        }),
        ("node", State::Fail, |f| f.autonomy = None),
        ("pods", State::Fail, |f| f.pods = None),
        ("objects", State::Fail, |f| f.pods = None),
        ("tokens", State::Fail, |f| {
            f.can_sign = false;
        }),
        ("images", State::Warn, |f| {
            f.pods.as_mut().unwrap()[0].images = vec!["i".into()];
        }),
        ("images", State::Warn, |f| {
            f.pods.as_mut().unwrap()[0].always_pulled = vec!["i".into()];
        }),
        ("lists", State::Fail, |f| f.lists[0].known = false),
        ("lists", State::Warn, |f| {
            f.lists[0] = List {
                what: "endpointslices",
                known: false,
                needed: false,
            };
        }),
        ("certificates", State::Fail, |f| {
            f.certificates[1].ends = Ok(f.now);
        }),
        ("certificates", State::Fail, |f| {
            f.certificates[1].ends = Err("no such file".into());
        }),
        ("certificates", State::Warn, |f| {
            f.certificates[0].ends = Ok(f.now + SignedDuration::from_hours(1));
        }),
        ("cache", State::Fail, |f| {
            f.trouble = Some("records are damaged".into());
        }),
        ("cache", State::Fail, |f| f.disk_free = Some(1 << 20)),
        ("cache", State::Warn, |f| f.disk_free = Some(20 << 20)),
        ("cache", State::Warn, |f| f.cache_bytes = f.cache_budget),
        ("journal", State::Warn, |f| f.journal = 1),
        ("clock", State::Fail, |f| {
            f.latest = Some(f.now + SignedDuration::from_hours(1));
        }),
    ];
    for (number, (id, state, harm)) in cases.into_iter().enumerate() {
        let mut facts = healthy();
        harm(&mut facts);
        let report = examine(&facts);
        let check = found(&report, id);
        assert_eq!(check.state, state, "{number}: {check:?}");
        assert!(!check.todo.is_empty() && !check.why.is_empty(), "{number}");
        assert!(report.score < 100, "{number}");
        assert_ne!(report.verdict, "ready", "{number}");
    }
}

#[test]
fn what_waits_while_the_link_is_down_is_as_it_should_be() {
    let mut facts = healthy();
    (facts.online, facts.journal) = (false, 10);
    assert_eq!(found(&examine(&facts), "journal").state, State::Ok);
}

proptest! {
    /// The score is one of a hundred, and full only for a node without any fault.
    #[test]
    fn scores_are_within_bounds(found in 0usize..9, missing in 0usize..9, online: bool, alive: bool, can_sign: bool, kept in 0usize..3) {
        let mut facts = healthy();
        (facts.online, facts.kubelet_alive, facts.can_sign) = (online, alive, can_sign);
        let pod = &mut facts.pods.as_mut().unwrap()[0];
        pod.found = found;
        pod.missing = (0..missing).map(|i| i.to_string()).collect();
        (pod.tokens, pod.tokens_of_cloud) = (2, kept);
        let report = examine(&facts);
        prop_assert!(report.score <= 100);
        prop_assert_eq!(report.score == 100, report.verdict == "ready");
        let why = &super::tests::found(&report, "objects").why;
        prop_assert!(why.len() < 600);
    }
}
