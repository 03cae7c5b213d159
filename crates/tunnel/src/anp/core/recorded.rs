//! Exchanges with konnectivity's own programs, as `tests/konnectivity.rs` recorded them: `<` from them, `>` from us.

use super::*;
use crate::grpc::Frames;
use bytes::BytesMut;

struct Line {
    theirs: bool,
    packet: Packet,
}

fn recorded(text: &str) -> Vec<Line> {
    text.lines()
        .map(|line| {
            let (mark, hex) = line.split_at(1);
            let bytes: Vec<u8> = (0..hex.len())
                .step_by(2)
                .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap())
                .collect();
            let message = Bytes::from(bytes);
            let packet = Packet::decode(&message).unwrap().unwrap();
            // Byte for byte as the other implementation writes it.
            let mut wire = BytesMut::new();
            packet.encode(&mut wire);
            let mut frames = Frames::default();
            frames.push(&wire);
            assert_eq!(frames.next().unwrap().unwrap(), message, "{packet:?}");
            Line {
                theirs: mark == "<",
                packet,
            }
        })
        .collect()
}

#[test]
fn an_unmodified_agent_is_understood() {
    let mut core = Core::new(Role::Asking, 10);
    let (mut opened, mut refused, mut delivered) = (0, 0, 0);
    for Line { theirs, packet } in
        recorded(include_str!("../../../tests/konnectivity/agent.packets"))
    {
        match (theirs, packet) {
            (
                false,
                Packet::DialRequest {
                    random,
                    address,
                    protocol,
                },
            ) => {
                let said = core.dial(random, address.clone());
                assert_eq!(
                    said,
                    Some(Packet::DialRequest {
                        random,
                        address,
                        protocol
                    })
                );
            }
            (false, Packet::CloseRequest { id }) => {
                assert_eq!(core.close(id, ""), Some(Packet::CloseRequest { id }));
            }
            (false, Packet::Data { id, .. }) => assert!(core.open.contains(&id)),
            (false, other) => panic!("we never say {other:?}"),
            (true, packet) => match core.receive(packet) {
                Some(Action::Opened { .. }) => opened += 1,
                Some(Action::Refused { error, .. }) => {
                    assert!(error.contains("refused"), "{error}");
                    refused += 1;
                }
                Some(Action::Deliver { data, .. }) => delivered += data.len(),
                Some(Action::End { .. }) | None => {}
                other => panic!("{other:?}"),
            },
        }
    }
    assert_eq!((opened, refused, delivered), (1, 1, 4));
    assert!(core.pending.is_empty());
}

#[test]
fn an_unmodified_server_is_understood() {
    let mut core = Core::new(Role::Answering, 10);
    let (mut dialled, mut delivered) = (0, 0);
    for Line { theirs, packet } in
        recorded(include_str!("../../../tests/konnectivity/server.packets"))
    {
        match (theirs, packet) {
            (false, Packet::DialResponse { random, id, error }) => {
                let outcome = if error.is_empty() {
                    Ok(())
                } else {
                    Err(error.clone())
                };
                let said = core.dialled(random, outcome);
                assert_eq!(said, Some((id, Packet::DialResponse { random, id, error })));
            }
            (false, Packet::Data { id, .. }) => assert!(core.open.contains(&id)),
            (false, Packet::CloseResponse { id, .. }) => drop(core.close(id, "")),
            (false, other) => panic!("we never say {other:?}"),
            (true, packet) => match core.receive(packet) {
                Some(Action::Dial { .. }) => dialled += 1,
                Some(Action::Deliver { data, .. }) => delivered += data.len(),
                Some(Action::End { answer, .. }) => assert!(answer.is_some()),
                other => panic!("{other:?}"),
            },
        }
    }
    assert_eq!((dialled, delivered), (2, 4));
    assert!(core.pending.is_empty());
}
