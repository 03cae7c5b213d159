//! What packets mean: which connections there are on one gRPC stream, and what is to be done. No IO, no time.

use super::packet::Packet;
use bytes::Bytes;
use std::collections::HashSet;

/// Connections that we asked to close, whose last packets are still on the way; beyond it they are answered like strangers.
const MAX_CLOSING: usize = 4096;

/// Which end of the stream this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// Asks for connections: a server towards an agent.
    Asking,
    /// Answers: an agent towards a server, a server towards a frontend.
    Answering,
}

/// What is to be done about a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// Send this back.
    Send(Packet),
    /// Answering: dial, and tell [`Core::dialled`].
    Dial { random: i64, address: String },
    /// Answering: nobody waits for this dial any more.
    GiveUp { random: i64 },
    /// Asking: there is a connection.
    Opened { random: i64, id: i64 },
    /// Asking: there is none.
    Refused { random: i64, error: String },
    /// Bytes for a connection.
    Deliver { id: i64, data: Bytes },
    /// The other end closed a connection. With an answer to be sent, if it asked to.
    End {
        id: i64,
        error: String,
        answer: Option<Packet>,
    },
    /// The other end wants no more dials.
    Drain,
}

/// The connections of one gRPC stream.
#[derive(Debug)]
pub(super) struct Core {
    role: Role,
    /// Dials under way.
    pending: HashSet<i64>,
    open: HashSet<i64>,
    closing: HashSet<i64>,
    next_id: i64,
    max_connections: usize,
}

impl Core {
    pub(super) fn new(role: Role, max_connections: usize) -> Self {
        Self {
            role,
            pending: HashSet::new(),
            open: HashSet::new(),
            closing: HashSet::new(),
            next_id: 1,
            max_connections,
        }
    }

    pub(super) fn role(&self) -> Role {
        self.role
    }

    /// What a packet asks for. Packets that only the other role may receive are ignored, as are answers to nothing.
    pub(super) fn receive(&mut self, packet: Packet) -> Option<Action> {
        match (self.role, packet) {
            (_, Packet::Data { id, data }) => {
                if self.open.contains(&id) {
                    return Some(Action::Deliver { id, data });
                }
                self.stranger(id)
            }
            (Role::Asking, Packet::DialResponse { random, id, error }) => {
                let usable = error.is_empty() && id != 0;
                if !self.pending.remove(&random) {
                    // Its dial was given up meanwhile.
                    let known = self.open.contains(&id) || self.closing.contains(&id);
                    return (usable && !known).then(|| self.ask_to_close(id));
                }
                if !usable || !self.open.insert(id) {
                    let error = if error.is_empty() {
                        format!("the agent answered with connection {id}, which cannot be")
                    } else {
                        error
                    };
                    return Some(Action::Refused { random, error });
                }
                self.closing.remove(&id);
                Some(Action::Opened { random, id })
            }
            (Role::Asking, Packet::CloseResponse { id, error }) => {
                self.closing.remove(&id);
                self.open.remove(&id).then_some(Action::End {
                    id,
                    error,
                    answer: None,
                })
            }
            (
                Role::Answering,
                Packet::DialRequest {
                    random,
                    protocol,
                    address,
                },
            ) => {
                let refuse = |error: &str| {
                    let error = error.to_owned();
                    Some(Action::Send(Packet::DialResponse {
                        random,
                        id: 0,
                        error,
                    }))
                };
                // Nothing else: "unix" would be sockets of the host.
                if protocol != "tcp" {
                    return refuse("only tcp is dialled");
                }
                if self.pending.len() + self.open.len() >= self.max_connections {
                    return refuse("too many connections");
                }
                if !self.pending.insert(random) {
                    return refuse("a dial of this number is under way");
                }
                Some(Action::Dial { random, address })
            }
            (Role::Answering, Packet::CloseDial { random }) => self
                .pending
                .remove(&random)
                .then_some(Action::GiveUp { random }),
            (Role::Answering, Packet::CloseRequest { id }) => {
                let known = self.open.remove(&id);
                let error = if known { "" } else { "Unknown connectID" };
                let answer = Packet::CloseResponse {
                    id,
                    error: error.into(),
                };
                Some(if known {
                    Action::End {
                        id,
                        error: String::new(),
                        answer: Some(answer),
                    }
                } else {
                    Action::Send(answer)
                })
            }
            (Role::Asking, Packet::Drain) => Some(Action::Drain),
            _ => None,
        }
    }

    fn stranger(&mut self, id: i64) -> Option<Action> {
        match self.role {
            _ if id == 0 || self.closing.contains(&id) => None,
            Role::Asking => Some(self.ask_to_close(id)),
            Role::Answering => Some(Action::Send(Packet::CloseResponse {
                id,
                error: "unrecognized connectID".into(),
            })),
        }
    }

    fn ask_to_close(&mut self, id: i64) -> Action {
        self.remember_closing(id);
        Action::Send(Packet::CloseRequest { id })
    }

    fn remember_closing(&mut self, id: i64) {
        if self.closing.len() >= MAX_CLOSING {
            self.closing.clear();
        }
        self.closing.insert(id);
    }

    /// Asking: begins a dial. `None` when there are too many, or one of this number.
    pub(super) fn dial(&mut self, random: i64, address: String) -> Option<Packet> {
        let room = self.pending.len() + self.open.len() < self.max_connections;
        (room && self.pending.insert(random)).then(|| Packet::DialRequest {
            random,
            protocol: "tcp".into(),
            address,
        })
    }

    /// Asking: a dial is waited for no more. What to send, if it was under way.
    pub(super) fn give_up(&mut self, random: i64) -> Option<Packet> {
        self.pending
            .remove(&random)
            .then_some(Packet::CloseDial { random })
    }

    /// Answering: a dial ended. The number of the connection, if there is one now, and what to send; `None` when it had been given up.
    pub(super) fn dialled(
        &mut self,
        random: i64,
        outcome: Result<(), String>,
    ) -> Option<(i64, Packet)> {
        if !self.pending.remove(&random) {
            return None;
        }
        let (id, error) = match outcome {
            Ok(()) => {
                let id = self.next_id;
                self.next_id += 1;
                self.open.insert(id);
                (id, String::new())
            }
            Err(error) => (0, error),
        };
        Some((id, Packet::DialResponse { random, id, error }))
    }

    /// A connection ended here. What to send, unless the other end ended it before.
    pub(super) fn close(&mut self, id: i64, error: &str) -> Option<Packet> {
        if !self.open.remove(&id) {
            return None;
        }
        self.remember_closing(id);
        Some(match self.role {
            Role::Asking => Packet::CloseRequest { id },
            Role::Answering => Packet::CloseResponse {
                id,
                error: error.into(),
            },
        })
    }

    /// The stream is over: nothing is known any more.
    pub(super) fn clear(&mut self) {
        self.pending.clear();
        self.open.clear();
        self.closing.clear();
    }
}

#[cfg(test)]
mod tests;
