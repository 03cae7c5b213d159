use super::*;
use crate::anp::packet::tests::packets;
use proptest::{collection::vec, prelude::*};
use std::collections::{HashMap, VecDeque};

fn data(id: i64) -> Packet {
    Packet::Data {
        id,
        data: Bytes::from_static(b"x"),
    }
}

#[test]
fn a_late_answer_to_a_dial_that_was_given_up_is_closed() {
    let mut core = Core::new(Role::Asking, 10);
    core.dial(7, "a:1".into()).unwrap();
    assert_eq!(core.give_up(7), Some(Packet::CloseDial { random: 7 }));
    assert_eq!(core.give_up(7), None);
    let late = Packet::DialResponse {
        random: 7,
        id: 1,
        error: String::new(),
    };
    let close = Action::Send(Packet::CloseRequest { id: 1 });
    assert_eq!(core.receive(late), Some(close));
    // What it had under way is not answered one by one.
    assert_eq!(core.receive(data(1)), None);
    assert_eq!(
        core.receive(Packet::CloseResponse {
            id: 1,
            error: String::new()
        }),
        None
    );
    let failed = Packet::DialResponse {
        random: 7,
        id: 0,
        error: "refused".into(),
    };
    assert_eq!(core.receive(failed), None);
}

#[test]
fn strangers_are_closed_as_each_role_does() {
    let mut asking = Core::new(Role::Asking, 10);
    assert_eq!(
        asking.receive(data(5)),
        Some(Action::Send(Packet::CloseRequest { id: 5 }))
    );
    assert_eq!(asking.receive(data(0)), None);
    assert_eq!(
        asking.receive(Packet::CloseResponse {
            id: 9,
            error: String::new()
        }),
        None
    );
    let mut answering = Core::new(Role::Answering, 10);
    let unknown = Packet::CloseResponse {
        id: 5,
        error: "unrecognized connectID".into(),
    };
    assert_eq!(answering.receive(data(5)), Some(Action::Send(unknown)));
    assert_eq!(answering.receive(data(0)), None);
    let unknown = Packet::CloseResponse {
        id: 5,
        error: "Unknown connectID".into(),
    };
    assert_eq!(
        answering.receive(Packet::CloseRequest { id: 5 }),
        Some(Action::Send(unknown))
    );
}

#[test]
fn only_tcp_is_dialled_and_only_so_many() {
    let mut core = Core::new(Role::Answering, 1);
    let request = |random, protocol: &str| Packet::DialRequest {
        random,
        protocol: protocol.into(),
        address: "/run/containerd.sock".into(),
    };
    assert!(matches!(
        core.receive(request(1, "unix")),
        Some(Action::Send(Packet::DialResponse { id: 0, .. }))
    ));
    assert!(matches!(
        core.receive(request(2, "tcp")),
        Some(Action::Dial { random: 2, .. })
    ));
    assert!(matches!(
        core.receive(request(3, "tcp")),
        Some(Action::Send(Packet::DialResponse { random: 3, .. }))
    ));
}

#[test]
fn an_id_that_is_taken_harms_only_the_new_dial() {
    let mut core = Core::new(Role::Asking, 10);
    for random in [1, 2] {
        core.dial(random, "a:1".into()).unwrap();
    }
    let answer = |random| Packet::DialResponse {
        random,
        id: 1,
        error: String::new(),
    };
    assert_eq!(
        core.receive(answer(1)),
        Some(Action::Opened { random: 1, id: 1 })
    );
    assert!(matches!(
        core.receive(answer(2)),
        Some(Action::Refused { random: 2, .. })
    ));
    assert!(matches!(
        core.receive(data(1)),
        Some(Action::Deliver { id: 1, .. })
    ));
}

/// What happens to two cores that talk over a pair of pipes.
#[derive(Clone, Debug)]
enum Step {
    Dial,
    GiveUp(usize),
    DialEnds(usize, bool),
    Say(bool, usize),
    Close(bool, usize),
    ToAnswering,
    ToAsking,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => Just(Step::Dial),
        1 => any::<usize>().prop_map(Step::GiveUp),
        3 => (any::<usize>(), any::<bool>()).prop_map(|(which, ok)| Step::DialEnds(which, ok)),
        4 => (any::<bool>(), any::<usize>()).prop_map(|(asking, which)| Step::Say(asking, which)),
        2 => (any::<bool>(), any::<usize>()).prop_map(|(asking, which)| Step::Close(asking, which)),
        6 => Just(Step::ToAnswering),
        6 => Just(Step::ToAsking),
    ];
    vec(step, 0..200)
}

fn pick(set: &HashSet<i64>, which: usize) -> Option<i64> {
    let mut all: Vec<_> = set.iter().copied().collect();
    all.sort_unstable();
    (!all.is_empty()).then(|| all[which % all.len()])
}

#[derive(Default)]
struct World {
    to_answering: VecDeque<Packet>,
    to_asking: VecDeque<Packet>,
    /// Said by the asking and the answering end, per connection, and not delivered yet.
    said: HashMap<(bool, i64), VecDeque<u8>>,
    next: u8,
    random: i64,
}

impl World {
    fn apply(
        &mut self,
        asking: &mut Core,
        answering: &mut Core,
        step: &Step,
    ) -> Result<(), TestCaseError> {
        match step {
            Step::Dial => {
                self.random += 1;
                self.to_answering
                    .extend(asking.dial(self.random, "a:1".into()));
            }
            Step::GiveUp(which) => {
                if let Some(random) = pick(&asking.pending, *which) {
                    self.to_answering.extend(asking.give_up(random));
                }
            }
            Step::DialEnds(which, ok) => {
                if let Some(random) = pick(&answering.pending, *which) {
                    let outcome = if *ok {
                        Ok(())
                    } else {
                        Err("refused".to_owned())
                    };
                    self.to_asking
                        .extend(answering.dialled(random, outcome).map(|(_, packet)| packet));
                }
            }
            Step::Say(from_asking, which) => {
                let open = if *from_asking {
                    &asking.open
                } else {
                    &answering.open
                };
                if let Some(id) = pick(open, *which) {
                    self.next = self.next.wrapping_add(1);
                    let packet = Packet::Data {
                        id,
                        data: vec![self.next].into(),
                    };
                    self.said
                        .entry((*from_asking, id))
                        .or_default()
                        .push_back(self.next);
                    let pipe = if *from_asking {
                        &mut self.to_answering
                    } else {
                        &mut self.to_asking
                    };
                    pipe.push_back(packet);
                }
            }
            Step::Close(at_asking, which) => {
                let (core, pipe) = if *at_asking {
                    (asking, &mut self.to_answering)
                } else {
                    (answering, &mut self.to_asking)
                };
                if let Some(id) = pick(&core.open, *which) {
                    pipe.extend(core.close(id, ""));
                }
            }
            Step::ToAnswering => {
                if let Some(packet) = self.to_answering.pop_front() {
                    let action = answering.receive(packet);
                    self.done(true, action)?;
                }
            }
            Step::ToAsking => {
                if let Some(packet) = self.to_asking.pop_front() {
                    let action = asking.receive(packet);
                    self.done(false, action)?;
                }
            }
        }
        Ok(())
    }

    fn done(&mut self, said_by_asking: bool, action: Option<Action>) -> Result<(), TestCaseError> {
        let back = if said_by_asking {
            &mut self.to_asking
        } else {
            &mut self.to_answering
        };
        match action {
            Some(Action::Send(packet)) => back.push_back(packet),
            Some(Action::End { answer, .. }) => back.extend(answer),
            Some(Action::Deliver { id, data }) => {
                let said = self
                    .said
                    .get_mut(&(said_by_asking, id))
                    .and_then(VecDeque::pop_front);
                prop_assert_eq!(said, data.first().copied(), "out of order");
            }
            _ => {}
        }
        Ok(())
    }
}

proptest! {
    /// Whatever is dialled, given up, said and closed, in whatever order it crosses: bytes are delivered in order, and once the pipes
    /// are empty both ends know the same connections. No entry outlives its ends.
    #[test]
    fn both_ends_agree_in_the_end(steps in steps()) {
        let mut asking = Core::new(Role::Asking, 8);
        let mut answering = Core::new(Role::Answering, 64);
        let mut world = World::default();
        for step in &steps {
            world.apply(&mut asking, &mut answering, step)?;
        }
        while !(world.to_answering.is_empty() && world.to_asking.is_empty() && answering.pending.is_empty()) {
            for step in [Step::ToAnswering, Step::ToAsking, Step::DialEnds(0, true)] {
                world.apply(&mut asking, &mut answering, &step)?;
            }
        }
        prop_assert!(asking.pending.is_empty());
        prop_assert_eq!(&asking.open, &answering.open);
        prop_assert!(asking.open.len() <= 8);
    }

    #[test]
    fn any_packets_keep_the_bounds(all in vec(packets(), 0..300), asking: bool) {
        let role = if asking { Role::Asking } else { Role::Answering };
        let mut core = Core::new(role, 4);
        for packet in all {
            core.receive(packet);
            prop_assert!(core.pending.len() + core.open.len() <= 4);
            prop_assert!(core.closing.len() <= MAX_CLOSING);
        }
    }
}
