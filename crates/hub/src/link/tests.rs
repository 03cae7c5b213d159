use super::*;
use proptest::prelude::*;

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn up(now: Instant) -> Link {
    let mut link = Link::new(now);
    assert_eq!(
        link.input(now, Input::Answered { rtt: ms(20) }),
        Some(State::Up)
    );
    link
}

/// Runs the prober's loop over a scripted network: `answer(at, second)` says when a probe sent at `at` is
/// answered on the first or second connection, if ever. Gives the transitions until `until`.
fn run(
    link: &mut Link,
    start: Instant,
    until: Duration,
    mut answer: impl FnMut(Duration, bool) -> Option<Duration>,
) -> Vec<(Duration, State)> {
    let mut now = start;
    let mut transitions = Vec::new();
    // Answers under way, also of probes given up on.
    let mut coming: Vec<(Instant, Duration)> = Vec::new();
    while now - start < until {
        let plan = link.plan();
        now = now.max(plan.at);
        let offset = now - start;
        for second in [false, true] {
            if (!second || plan.second_opinion)
                && let Some(delay) = answer(offset, second)
            {
                coming.push((now + delay, delay));
            }
        }
        let first = coming.iter().copied().min();
        match first {
            Some((at, rtt)) if at <= now + plan.wait => {
                now = now.max(at);
                coming.clear();
                if let Some(state) = link.input(now, Input::Answered { rtt }) {
                    transitions.push((now - start, state));
                }
            }
            _ => {
                now += plan.wait;
                if let Some(state) = link.input(now, Input::Missed) {
                    coming.clear();
                    transitions.push((now - start, state));
                }
            }
        }
    }
    transitions
}

#[test]
fn starts_up_with_one_answer_and_down_with_one_miss() {
    let now = Instant::now();
    assert_eq!(up(now).state(), State::Up);
    let mut link = Link::new(now);
    assert_eq!(link.input(now, Input::Missed), Some(State::Down));
    let mut link = Link::new(now);
    assert_eq!(link.input(now, Input::Refused), Some(State::Down));
}

#[test]
fn refusal_needs_no_silence() {
    let now = Instant::now();
    let mut link = up(now);
    assert_eq!(link.input(now + ms(1), Input::Refused), None);
    assert_eq!(link.input(now + ms(110), Input::Refused), Some(State::Down));
}

#[test]
fn a_talking_server_is_never_down() {
    let now = Instant::now();
    let mut link = up(now);
    for i in 1..100 {
        assert_eq!(link.input(now + ms(i * 400), Input::Missed), None);
        assert_eq!(link.input(now + ms(i * 400 + 100), Input::Heard), None);
    }
    assert_eq!(link.state(), State::Up);
}

#[test]
fn suspicion_asks_at_once() {
    let now = Instant::now();
    let mut link = up(now);
    assert!(link.plan().at > now + ms(100));
    link.input(now + ms(50), Input::Suspicion);
    assert_eq!(link.plan().at, now + ms(50));
}

#[test]
fn a_link_that_flaps_must_prove_more() {
    let now = Instant::now();
    let mut link = up(now);
    let mut at = now;
    let mut needed = Vec::new();
    for _ in 0..6 {
        at += ms(3000);
        while link.state() == State::Up {
            link.input(at, Input::Missed);
        }
        let mut answers = 0;
        while link.state() == State::Down {
            answers += 1;
            link.input(at, Input::Answered { rtt: ms(10) });
        }
        needed.push(answers);
    }
    assert_eq!(needed, [2, 3, 4, 5, 5, 5]);
    // Steady for long: the first fall afterwards is forgiven.
    at += STEADY;
    while link.state() == State::Up {
        link.input(at, Input::Missed);
    }
    link.input(at, Input::Answered { rtt: ms(10) });
    assert_eq!(
        link.input(at, Input::Answered { rtt: ms(10) }),
        Some(State::Up)
    );
}

/// Delay of an answer over one TCP connection on a link that loses each packet with `loss`: request and answer are each
/// retransmitted after 0.2, 0.4, 0.8, ... seconds.
fn lossy(random: &mut fastrand::Rng, loss: f64, rtt: Duration) -> Duration {
    let mut delay = rtt;
    for _ in 0..2 {
        let mut timeout = ms(200) + rtt;
        while random.f64() < loss {
            delay += timeout;
            timeout *= 2;
        }
    }
    delay
}

#[test]
fn thirty_percent_loss_does_not_flap() {
    let (mut falls, hours) = (0, 10);
    for seed in 0..hours {
        let mut random = fastrand::Rng::with_seed(seed);
        let now = Instant::now();
        let mut link = up(now);
        let transitions = run(&mut link, now, Duration::from_secs(3600), |_, _| {
            Some(lossy(&mut random, 0.3, ms(40)))
        });
        falls += transitions
            .iter()
            .filter(|(_, state)| *state == State::Down)
            .count();
    }
    // An idle link: every sign of life is a probe of ours. A handful of falls an hour would be no flapping either.
    assert!(falls <= hours as usize, "{falls} falls in {hours} hours");
}

/// Over ten hours of a link that loses now and then a packet and is silent otherwise: no fall, and few probes more than one a
/// period, though the second follows the first soon.
#[test]
fn a_packet_lost_now_and_then_costs_a_probe() {
    for loss in [0.001, 0.01, 0.05] {
        let (mut probes, mut second) = (0u32, 0u32);
        let mut random = fastrand::Rng::with_seed(7);
        let now = Instant::now();
        let mut link = up(now);
        let hours = Duration::from_secs(10 * 3600);
        let transitions = run(&mut link, now, hours, |_, on_second| {
            probes += 1;
            second += u32::from(on_second);
            Some(lossy(&mut random, loss, ms(20)))
        });
        assert_eq!(transitions, [], "at {loss}");
        assert!(second * 20 < probes, "{second} of {probes} at {loss}");
    }
}

proptest! {
    /// Where answers come fast, a cut is found out sooner.
    #[test]
    fn a_fast_link_that_is_cut_is_down_soon(cut in 5_000u64..10_000, rtt in 0u64..25) {
        let now = Instant::now();
        let mut link = up(now);
        let (cut, rtt) = (ms(cut), ms(rtt));
        let transitions = run(&mut link, now, cut + ms(10_000), |at, _| (at + rtt <= cut).then_some(rtt));
        prop_assert_eq!(transitions.len(), 1);
        prop_assert!(transitions[0].0 - cut <= ms(2_200), "down {:?} after the cut", transitions[0].0 - cut);
    }

    /// Packets vanish at `cut` and come back at `heal`: down within 3 s, up within 3 s, exactly once each.
    #[test]
    fn cut_and_heal_within_bounds(
        cut in 0u64..5_000,
        length in 4_000u64..60_000,
        rtt in 0u64..400,
        already in any::<bool>(),
    ) {
        let now = Instant::now();
        let mut link = up(now);
        let (cut, heal) = (ms(5_000 + cut), ms(5_000 + cut + length));
        let rtt = ms(rtt);
        let transitions = run(&mut link, now, heal + ms(10_000), |at, _| {
            if at + rtt <= cut || at >= heal {
                Some(rtt)
            } else if already && at >= cut {
                // Held in the network and delivered when it heals.
                Some(heal - at + rtt)
            } else {
                None
            }
        });
        prop_assert_eq!(transitions.len(), 2, "{:?}", transitions);
        prop_assert_eq!(transitions[0].1, State::Down);
        prop_assert!(transitions[0].0 <= cut + ms(3_000), "down {:?} after the cut", transitions[0].0 - cut);
        prop_assert_eq!(transitions[1].1, State::Up);
        prop_assert!(transitions[1].0 <= heal + ms(3_000), "up {:?} after the heal", transitions[1].0 - heal);
    }

    /// Whatever happens in whatever order: the plan is never more than a period away, and states change only by what may
    /// change them.
    #[test]
    fn any_order(inputs in proptest::collection::vec((0u64..2_000, 0u8..5), 0..200)) {
        let mut now = Instant::now();
        let mut link = Link::new(now);
        for (pause, kind) in inputs {
            now += ms(pause);
            let input = match kind {
                0 => Input::Heard,
                1 => Input::Answered { rtt: ms(pause) },
                2 => Input::Missed,
                3 => Input::Refused,
                _ => Input::Suspicion,
            };
            let before = link.state();
            let change = link.input(now, input);
            prop_assert_eq!(change.is_some(), link.state() != before);
            match change {
                Some(State::Up) => {
                    let life = matches!(input, Input::Heard | Input::Answered { .. });
                    prop_assert!(life, "up by {:?}", input);
                }
                Some(State::Down) => {
                    let failure = matches!(input, Input::Missed | Input::Refused);
                    prop_assert!(failure, "down by {:?}", input);
                }
                Some(State::Starting) => prop_assert!(false, "nothing starts anew"),
                None => {}
            }
            prop_assert!(link.plan().at <= now + PERIOD);
            prop_assert!(link.plan().wait <= MOST_WAIT);
        }
    }
}
