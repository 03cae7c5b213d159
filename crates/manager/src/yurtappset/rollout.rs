//! In which pools pods are replaced next: order, how many pools at once, pause, health.

use jiff::Timestamp;
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};
use yurt_api::apps::yurtappset::Rollout;

/// Seconds in which a pool must be updated and ready.
const DEADLINE: i32 = 600;

/// How far a pool is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Its pods are of an older template.
    Behind,
    /// Its pods were replaced at this time, and are not all ready yet.
    Underway(Timestamp),
    /// There is nothing to do, or to wait for.
    Settled,
}

/// Why pools that are behind must wait.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Held {
    /// The set says so.
    Paused,
    /// Others are not ready yet.
    Turn,
    /// These did not become ready in time.
    Overdue(Vec<String>),
}

/// What happens next.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Turn {
    /// The pools whose pods are replaced.
    pub(crate) go: BTreeSet<String>,
    /// Why the others that are behind are not.
    pub(crate) held: Option<Held>,
    /// The pools on whose account everything is to go back.
    pub(crate) failed: Vec<String>,
    /// When a pool is overdue next.
    pub(crate) recheck: Option<Duration>,
}

/// What happens next. Without a rollout everything happens at once.
pub(crate) fn turn(
    rollout: Option<&Rollout>,
    pools: &BTreeMap<&str, Stage>,
    now: Timestamp,
) -> Turn {
    let behind = || {
        let pools = pools.iter().filter(|(_, stage)| **stage == Stage::Behind);
        pools.map(|(pool, _)| *pool)
    };
    let Some(rollout) = rollout else {
        return Turn {
            go: behind().map(str::to_owned).collect(),
            ..Turn::default()
        };
    };
    let seconds = rollout.progress_deadline_seconds.unwrap_or(DEADLINE).max(1);
    let deadline = Duration::from_secs(u64::from(seconds.unsigned_abs()));
    let (mut overdue, mut underway, mut recheck) = (Vec::new(), 0, None::<Duration>);
    for (pool, stage) in pools {
        if let Stage::Underway(since) = stage {
            // A clock that was set back makes it young, not overdue.
            let age = Duration::try_from(now.duration_since(*since)).unwrap_or_default();
            match deadline.checked_sub(age) {
                Some(left) if !left.is_zero() => {
                    underway += 1;
                    recheck = Some(recheck.map_or(left, |known| known.min(left)));
                }
                _ => overdue.push((*pool).to_owned()),
            }
        }
    }
    let mut turn = Turn {
        recheck,
        ..Turn::default()
    };
    let is_behind = behind().next().is_some();
    match rollout.on_failure.as_deref() {
        _ if overdue.is_empty() => {}
        Some("Continue") => {}
        Some("Rollback") => {
            turn.failed.clone_from(&overdue);
            turn.held = is_behind.then_some(Held::Overdue(overdue));
            return turn;
        }
        _ => {
            turn.held = is_behind.then_some(Held::Overdue(overdue));
            return turn;
        }
    }
    if rollout.paused == Some(true) {
        turn.held = is_behind.then_some(Held::Paused);
        return turn;
    }
    let slots = match rollout.max_parallel {
        Some(most) => usize::try_from(most.max(1))
            .unwrap_or(1)
            .saturating_sub(underway),
        None => usize::MAX,
    };
    let first = rollout.order.iter().map(String::as_str);
    let mut order: Vec<&str> = Vec::new();
    for pool in first.filter(|pool| pools.get(pool) == Some(&Stage::Behind)) {
        if !order.contains(&pool) {
            order.push(pool);
        }
    }
    let named: BTreeSet<&str> = order.iter().copied().collect();
    order.extend(behind().filter(|pool| !named.contains(pool)));
    if order.len() > slots {
        turn.held = Some(Held::Turn);
    }
    turn.go = order.into_iter().take(slots).map(str::to_owned).collect();
    turn
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("a time")
    }

    fn go(turn: &Turn) -> Vec<&str> {
        turn.go.iter().map(String::as_str).collect()
    }

    fn rollout() -> Rollout {
        Rollout {
            max_parallel: Some(1),
            ..Rollout::default()
        }
    }

    #[test]
    fn without_a_rollout_everything_happens_at_once() {
        let pools = BTreeMap::from([("a", Stage::Behind), ("b", Stage::Underway(at(0)))]);
        let turn = turn(None, &pools, at(10_000));
        assert_eq!(go(&turn), ["a"]);
        assert_eq!(turn.held, None);
    }

    #[test]
    fn pools_go_in_order_one_after_the_other_is_ready() {
        let rollout = Rollout {
            order: vec!["c".into(), "gone".into(), "b".into(), "c".into()],
            ..rollout()
        };
        let mut pools = BTreeMap::from(["a", "b", "c"].map(|pool| (pool, Stage::Behind)));
        let mut order = Vec::new();
        for second in 0..3 {
            let next = turn(Some(&rollout), &pools, at(second));
            let [pool] = *go(&next) else {
                panic!("one at a time: {next:?}");
            };
            let pool = *pools.keys().find(|known| **known == pool).expect("known");
            order.push(pool);
            pools.insert(pool, Stage::Underway(at(second)));
            let wait = turn(Some(&rollout), &pools, at(second));
            assert!(wait.go.is_empty() && wait.recheck.is_some(), "{wait:?}");
            pools.insert(pool, Stage::Settled);
        }
        assert_eq!(order, ["c", "b", "a"]);
        assert_eq!(turn(Some(&rollout), &pools, at(9)), Turn::default());
    }

    #[test]
    fn a_pool_that_is_not_ready_in_time_stops_is_passed_or_takes_all_back() {
        let pools = BTreeMap::from([("a", Stage::Underway(at(0))), ("b", Stage::Behind)]);
        let of = |on_failure: Option<&str>, now| {
            let rollout = Rollout {
                on_failure: on_failure.map(str::to_owned),
                progress_deadline_seconds: Some(60),
                ..rollout()
            };
            turn(Some(&rollout), &pools, at(now))
        };
        let early = of(None, 59);
        assert_eq!(early.recheck, Some(Duration::from_secs(1)));
        assert_eq!(early.held, Some(Held::Turn));
        let late = of(None, 60);
        assert_eq!(late.held, Some(Held::Overdue(vec!["a".into()])));
        assert!(late.go.is_empty() && late.failed.is_empty() && late.recheck.is_none());
        assert_eq!(go(&of(Some("Continue"), 60)), ["b"]);
        assert_eq!(of(Some("Rollback"), 60).failed, ["a"]);
        assert_eq!(of(Some("Rollback"), -5).failed, [""; 0], "a clock set back");
    }

    #[test]
    fn nothing_begins_while_paused() {
        let rollout = Rollout {
            paused: Some(true),
            ..Rollout::default()
        };
        let turn = turn(
            Some(&rollout),
            &BTreeMap::from([("a", Stage::Behind)]),
            at(0),
        );
        assert!(turn.go.is_empty());
        assert_eq!(turn.held, Some(Held::Paused));
    }

    proptest! {
        #[test]
        fn never_more_at_once_than_allowed_and_always_some_when_none_is_underway(
            stages in proptest::collection::vec(0..3u8, 1..12), most in 1..5i32) {
            let names: Vec<String> = (0..stages.len()).map(|i| format!("p{i}")).collect();
            let stage = |kind: &u8| match kind { 0 => Stage::Behind, 1 => Stage::Underway(at(0)), _ => Stage::Settled };
            let pools: BTreeMap<&str, Stage> = names.iter().map(String::as_str).zip(stages.iter().map(stage)).collect();
            let rollout = Rollout { max_parallel: Some(most), ..Rollout::default() };
            let turn = turn(Some(&rollout), &pools, at(1));
            let underway = stages.iter().filter(|kind| **kind == 1).count();
            let behind = stages.iter().filter(|kind| **kind == 0).count();
            prop_assert!(turn.go.is_empty() || turn.go.len() + underway <= usize::try_from(most).unwrap());
            if underway == 0 {
                prop_assert_eq!(turn.go.is_empty(), behind == 0);
            }
            prop_assert!(turn.go.iter().all(|pool| pools[&**pool] == Stage::Behind));
        }
    }
}
