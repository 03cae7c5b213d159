//! Remembering what the cloud lets callers do, on disk too.

use super::{
    collect::today,
    grants::{Bearer, Grants},
    record,
    state::{State, Value},
};
use crate::{caller::Caller, query::Query};
use bytes::Bytes;
use std::time::Duration;

impl State {
    /// Remembers what a successful read proves about the caller's rights.
    pub(crate) fn grant(&mut self, caller: &Caller, query: &Query) {
        let caller = self.grants.who(caller).clone();
        self.accept(&caller);
        let grant = Grants::of_read(&caller, query);
        if self.grants.observe(&caller, &grant) {
            let record = record::grant_record(&caller, &grant);
            if record.len() < 16 * 1024 {
                self.enqueue(record, Value::Raw(Bytes::new()), Duration::ZERO);
            }
        }
    }

    /// Remembers that a caller is still there.
    pub(crate) fn touch_caller(&mut self, caller: &Caller) {
        let caller = &self.grants.who(caller).clone();
        if let Some(bearer) = self.grants.touch(caller, today()) {
            self.store_bearer(caller, &bearer);
        }
    }

    /// Remembers that the cloud accepted a caller.
    pub(crate) fn accept(&mut self, caller: &Caller) {
        let caller = self.grants.who(caller).clone();
        self.touch_caller(&caller);
        if let Some((bearer, forgotten)) = self.grants.accept(&caller) {
            self.store_bearer(&caller, &bearer);
            if let Some((old, grants)) = forgotten {
                self.strike_out(&old, &grants);
            }
        }
    }

    /// A bearer turned out to be a user: moves its rights over.
    pub(crate) fn adopt(&mut self, bearer: &Caller, user: &Caller) {
        let Some((known, grants)) = self.grants.adopt(bearer, user) else {
            return;
        };
        self.strike_out(bearer, &grants);
        for grant in &grants {
            self.grant(user, grant);
        }
        self.accept(user);
        let mut moved = None;
        for (namespace, rules) in known.rules {
            moved = self.grants.set_rules(user, &namespace, rules).or(moved);
        }
        if let Some(bearer) = moved {
            self.store_bearer(user, &bearer);
        }
    }

    /// Takes a forgotten bearer and its grants off the disk.
    pub(crate) fn strike_out(&mut self, caller: &Caller, grants: &[Query]) {
        for grant in grants {
            let record = record::grant_record(caller, grant);
            self.enqueue(record, Value::Delete, Duration::ZERO);
        }
        self.enqueue(bearer_record(caller), Value::Delete, Duration::ZERO);
    }

    pub(crate) fn store_bearer(&mut self, caller: &Caller, bearer: &Bearer) {
        if let Ok(json) = serde_json::to_vec(bearer) {
            self.enqueue(
                bearer_record(caller),
                Value::Raw(json.into()),
                Duration::ZERO,
            );
        }
    }
}

/// The record of a bearer.
pub(crate) fn bearer_record(caller: &Caller) -> Vec<u8> {
    [record::BEARERS, caller.key().as_bytes()].concat()
}
