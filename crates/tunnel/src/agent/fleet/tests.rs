use super::*;
use proptest::prelude::*;

fn door(host: &str) -> Door {
    Door {
        priority: 0,
        host: host.into(),
        port: 10262,
        name: host.into(),
    }
}

fn dials(actions: &[Action]) -> Vec<&str> {
    let dials = actions.iter().filter_map(|action| match action {
        Action::Dial(door) => Some(door.host.as_str()),
        _ => None,
    });
    dials.collect()
}

fn later(now: Instant, seconds: u64) -> Instant {
    now + Duration::from_secs(seconds)
}

#[test]
fn all_servers_are_connected_and_a_lost_one_is_dialled_again() {
    let now = Instant::now();
    let mut fleet = Fleet::new(Policy::All);
    fleet.set_doors([door("a"), door("b")]);
    assert_eq!(dials(&fleet.plan(now)), ["a", "b"]);
    assert_eq!(dials(&fleet.plan(now)), [""; 0], "once");
    let Verdict::Keep(a) = fleet.opened(&door("a"), "1", 2, now, 0.5) else {
        panic!("kept");
    };
    assert_eq!(fleet.opened(&door("b"), "2", 2, now, 0.5), Verdict::Keep(2));
    assert!(fleet.plan(later(now, 100)).is_empty());
    fleet.ended(a, "broke".into(), later(now, 100), 1.0);
    assert!(fleet.plan(later(now, 100)).is_empty(), "not at once");
    assert_eq!(dials(&fleet.plan(later(now, 101))), ["a"]);
    fleet.failed(&door("a"), "refused".into(), later(now, 101), 0.0);
    assert_eq!(
        fleet.next_look(later(now, 101)),
        Some(later(now, 101) + SHORTEST)
    );
    assert_eq!(fleet.serving(), BTreeSet::from(["2"]));
}

#[test]
fn a_balancer_is_asked_until_every_instance_is_connected() {
    let mut now = Instant::now();
    let mut fleet = Fleet::new(Policy::All);
    fleet.set_doors([door("lb")]);
    fleet.plan(now);
    assert_eq!(
        fleet.opened(&door("lb"), "1", 3, now, 0.0),
        Verdict::Keep(1)
    );
    assert_eq!(dials(&fleet.plan(now)), ["lb"]);
    assert_eq!(fleet.opened(&door("lb"), "1", 3, now, 0.0), Verdict::Close);
    assert!(fleet.plan(now).is_empty(), "a pause after a duplicate");
    now = later(now, 31);
    assert_eq!(dials(&fleet.plan(now)), ["lb"]);
    assert_eq!(
        fleet.opened(&door("lb"), "2", 3, now, 0.0),
        Verdict::Keep(2)
    );
    now = later(now, 31);
    assert_eq!(dials(&fleet.plan(now)), ["lb"]);
    assert_eq!(
        fleet.opened(&door("lb"), "3", 3, now, 0.0),
        Verdict::Keep(3)
    );
    now = later(now, 31);
    assert!(fleet.plan(now).is_empty());
    // Leases tell of a fourth.
    fleet.set_leases(4);
    assert_eq!(dials(&fleet.plan(now)), ["lb"]);
}

#[test]
fn two_addresses_of_one_server_are_one_server() {
    let now = Instant::now();
    let mut fleet = Fleet::new(Policy::All);
    fleet.set_doors([door("fd00::1"), door("10.0.0.1")]);
    fleet.plan(now);
    assert_eq!(
        fleet.opened(&door("fd00::1"), "1", 1, now, 0.0),
        Verdict::Keep(1)
    );
    assert_eq!(
        fleet.opened(&door("10.0.0.1"), "1", 1, now, 0.0),
        Verdict::Close
    );
    assert!(fleet.plan(later(now, 3600)).is_empty());
    fleet.ended(1, "broke".into(), later(now, 3600), 0.0);
    assert_eq!(
        dials(&fleet.plan(later(now, 3601))).len(),
        2,
        "either may do"
    );
}

#[test]
fn the_new_address_is_connected_before_the_old_one_is_given_up() {
    let now = Instant::now();
    let mut fleet = Fleet::new(Policy::All);
    fleet.set_doors([door("old")]);
    fleet.plan(now);
    fleet.opened(&door("old"), "1", 1, now, 0.0);
    fleet.set_doors([]);
    assert!(fleet.plan(now).is_empty(), "no addresses is no news");
    fleet.set_doors([door("new")]);
    assert_eq!(fleet.plan(now), [Action::Dial(door("new"))]);
    fleet.failed(&door("new"), "refused".into(), now, 0.0);
    assert_eq!(fleet.serving().len(), 1, "the old one serves on");
    fleet.plan(later(now, 60));
    // The same server at its new address, or another.
    let mut moved = fleet.clone();
    for (fleet, server) in [(&mut moved, "1"), (&mut fleet, "2")] {
        let Verdict::Keep(new) = fleet.opened(&door("new"), server, 1, now, 0.0) else {
            panic!("kept");
        };
        assert_eq!(fleet.plan(now), [Action::Retire(1)]);
        assert_eq!(fleet.plan(now), []);
        fleet.ended(1, "drained".into(), now, 0.0);
        assert_eq!(
            fleet
                .connections()
                .map(|(number, _)| number)
                .collect::<Vec<_>>(),
            [new]
        );
        assert_eq!(fleet.doors().count(), 1, "the old door is forgotten");
    }
}

#[test]
fn a_connection_whose_certificate_ends_is_replaced_before_it_is_given_up() {
    let now = Instant::now();
    for policy in [Policy::All, Policy::Some(1)] {
        let mut fleet = Fleet::new(policy);
        fleet.set_doors([door("a")]);
        fleet.plan(now);
        fleet.opened(&door("a"), "1", 1, now, 0.0);
        fleet.age(1);
        assert_eq!(fleet.plan(now), [Action::Dial(door("a"))]);
        fleet.failed(&door("a"), "refused".into(), now, 0.0);
        assert_eq!(fleet.plan(now), [], "it serves on");
        assert_eq!(fleet.serving().len(), 1);
        assert_eq!(dials(&fleet.plan(later(now, 1))), ["a"]);
        let kept = fleet.opened(&door("a"), "1", 1, later(now, 1), 0.0);
        assert_eq!(kept, Verdict::Keep(2));
        assert_eq!(fleet.plan(later(now, 1)), [Action::Retire(1)]);
        assert_eq!(fleet.plan(later(now, 99)), [], "once");
    }
    // Where few are wanted another server may take its place; where all are, a balancer is asked until it is the same one.
    for (policy, is_replaced) in [(Policy::Some(1), true), (Policy::All, false)] {
        let mut fleet = Fleet::new(policy);
        fleet.set_doors([door("lb")]);
        fleet.plan(now);
        fleet.opened(&door("lb"), "1", 2, now, 0.0);
        fleet.age(1);
        assert_eq!(dials(&fleet.plan(now)), ["lb"]);
        assert_eq!(
            fleet.opened(&door("lb"), "2", 2, now, 0.0),
            Verdict::Keep(2)
        );
        let actions = fleet.plan(later(now, 31));
        assert_eq!(actions.contains(&Action::Retire(1)), is_replaced);
        assert_eq!(dials(&actions).is_empty(), is_replaced);
        if !is_replaced {
            let kept = fleet.opened(&door("lb"), "1", 2, later(now, 31), 0.0);
            assert_eq!(kept, Verdict::Keep(3));
            assert_eq!(fleet.plan(later(now, 31)), [Action::Retire(1)]);
        }
    }
}

#[test]
fn a_server_that_drains_is_replaced_and_not_dialled_in_a_circle() {
    let now = Instant::now();
    let mut fleet = Fleet::new(Policy::All);
    fleet.set_doors([door("a")]);
    fleet.plan(now);
    fleet.opened(&door("a"), "1", 1, now, 0.0);
    fleet.drains(1, now, 1.0);
    assert!(fleet.plan(now).is_empty());
    assert_eq!(dials(&fleet.plan(later(now, 1))), ["a"]);
    assert_eq!(
        fleet.opened(&door("a"), "1", 1, later(now, 1), 1.0),
        Verdict::Close
    );
    assert!(fleet.plan(later(now, 1)).is_empty());
    assert_eq!(dials(&fleet.plan(later(now, 40))), ["a"]);
    assert_eq!(
        fleet.opened(&door("a"), "2", 1, later(now, 40), 1.0),
        Verdict::Keep(2)
    );
    assert_eq!(fleet.serving(), BTreeSet::from(["2"]));
}

#[test]
fn a_new_certificate_is_tried_soon() {
    let now = Instant::now();
    let mut fleet = Fleet::new(Policy::All);
    fleet.set_doors([door("a")]);
    for _ in 0..10 {
        fleet.failed(&door("a"), "no certificate".into(), now, 1.0);
    }
    assert!(fleet.plan(later(now, 29)).is_empty());
    fleet.encourage(now, 1.0);
    assert!(fleet.plan(now).is_empty(), "not all agents at once");
    assert_eq!(dials(&fleet.plan(later(now, 1))), ["a"]);
}

#[test]
fn k_of_n_prefers_and_races() {
    let now = Instant::now();
    let mut fleet = Fleet::new(Policy::Some(1));
    let far = Door {
        priority: 9,
        ..door("far")
    };
    fleet.set_doors([far.clone(), door("near")]);
    assert_eq!(dials(&fleet.plan(now)), ["near"]);
    assert!(fleet.plan(now).is_empty());
    let next = fleet.next_look(now).expect("a look");
    assert_eq!(next, now + STAGGER);
    assert_eq!(dials(&fleet.plan(next)), ["far"], "beside the slow one");
    assert_eq!(fleet.opened(&far, "2", 2, next, 0.0), Verdict::Keep(1));
    assert_eq!(fleet.plan(next), [Action::Abort(door("near"))]);
    assert!(fleet.plan(later(next, 60)).is_empty());
}

proptest! {
    #[test]
    fn pauses_are_jittered_and_bounded(failures: u32, luck: f64) {
        let pause = pause(failures, luck);
        prop_assert!(pause >= SHORTEST && pause <= LONGEST);
    }

    /// Whatever happens in whatever order.
    #[test]
    fn a_fleet_never_goes_wrong(most in proptest::option::of(1usize..4), events in proptest::collection::vec((0u8..7, 0usize..4, 0u8..4, 0u32..6, 0.0..1.0f64), 0..120)) {
        let start = Instant::now();
        let mut now = start;
        let policy = most.map_or(Policy::All, Policy::Some);
        let mut fleet = Fleet::new(policy);
        let all: Vec<Door> = ["a", "b", "c", "d"].map(door).into();
        let mut in_flight: BTreeSet<Door> = BTreeSet::new();
        for (what, which, server, count, luck) in events {
            let door = all[which].clone();
            match what {
                0 => fleet.set_doors(all.iter().take(which).cloned()),
                1 => now += Duration::from_millis(u64::from(count) * 700),
                2 if in_flight.remove(&door) => {
                    fleet.opened(&door, &server.to_string(), count, now, luck);
                }
                3 if in_flight.remove(&door) => fleet.failed(&door, "no".into(), now, luck),
                4 => fleet.drains(u64::from(count), now, luck),
                5 => fleet.ended(u64::from(count), "gone".into(), now, luck),
                6 => fleet.set_leases(count),
                _ => {}
            }
            let before: BTreeMap<Door, Option<Instant>> = fleet.doors().map(|(d, s)| (d.clone(), s.not_before)).collect();
            for action in fleet.plan(now) {
                match action {
                    Action::Dial(door) => {
                        prop_assert!(before[&door].is_none_or(|time| time <= now), "too early");
                        prop_assert!(in_flight.insert(door), "twice at one door");
                    }
                    Action::Abort(door) => prop_assert!(in_flight.remove(&door)),
                    Action::Retire(number) => prop_assert!(fleet.connections().any(|(n, c)| n == number && c.retired)),
                }
            }
            prop_assert!(in_flight.len() <= MOST_DIALS);
            let mut servers = BTreeSet::new();
            for (_, connected) in fleet.connections() {
                prop_assert!(!connected.serves() || servers.insert(connected.server.clone()), "two to one server");
            }
            if let Some(most) = most {
                prop_assert!(servers.len() <= most.max(1) + 1);
            }
        }
        // In the end all that are well are connected.
        for _ in 0..400 {
            now += Duration::from_secs(31);
            let mut waiting: Vec<Door> = std::mem::take(&mut in_flight).into_iter().collect();
            for action in fleet.plan(now) {
                match action {
                    Action::Dial(door) => waiting.push(door),
                    Action::Abort(door) => waiting.retain(|other| *other != door),
                    Action::Retire(number) => fleet.ended(number, "drained".into(), now, 0.5),
                }
            }
            for door in waiting {
                fleet.opened(&door, &format!("server-{}", door.host), 1, now, 0.5);
            }
            let draining: Vec<u64> = fleet.connections().filter(|(_, c)| !c.serves()).map(|(n, _)| n).collect();
            for number in draining {
                fleet.ended(number, "drained".into(), now, 0.5);
            }
        }
        let covered = fleet.listed.iter().all(|door| fleet.is_covered(door));
        let enough = most.is_some_and(|most| fleet.serving().len() >= most);
        prop_assert!(covered || enough, "{fleet:?}");
    }
}
