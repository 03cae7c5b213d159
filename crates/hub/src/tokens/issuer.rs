//! What is known of the cloud's issuer of tokens. Pure.

use super::keys::KeySet;
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// Audiences of the API server that are remembered.
const MAX_AUDIENCES: usize = 32;
/// Between looks at the issuer's keys, in seconds.
const REFRESH: i64 = 3600;
/// Between attempts, in seconds.
const PAUSE: i64 = 60;

/// The cloud's issuer.
#[derive(Clone, Debug, Default)]
pub struct Issuer {
    /// Its name (`iss`), `""` when not known.
    pub url: String,
    /// Its keys.
    pub keys: KeySet,
    /// As they were told.
    told: Value,
    /// When they were read, seconds since the epoch.
    fetched: i64,
    /// When they were asked for.
    tried: i64,
    /// Audiences of the API server.
    pub audiences: BTreeSet<String>,
    /// A moment that has certainly passed, seconds since the epoch: the cloud signed it. A node without a clock of its own
    /// starts in the past, and nobody makes an expired token good by turning the clock back.
    pub floor: i64,
}

impl Issuer {
    /// Takes in what the API server tells: its discovery document and its key set. `None` when either is not what it should
    /// be; whether the keys changed otherwise.
    pub fn learn(&mut self, configuration: &Value, set: &Value, now: i64) -> Option<bool> {
        let url = configuration.get("issuer")?.as_str()?;
        let keys = KeySet::parse(set)?;
        if url.is_empty() || url.len() > 2048 || keys.is_empty() {
            return None;
        }
        let changed = url != self.url || keys != self.keys;
        self.url = url.to_owned();
        self.keys = keys;
        self.told = set.clone();
        self.fetched = now;
        Some(changed)
    }

    /// Remembers audiences of the API server; whether there was a new one.
    pub fn learn_audiences(&mut self, audiences: impl IntoIterator<Item = String>) -> bool {
        let mut news = false;
        for audience in audiences {
            if self.audiences.len() < MAX_AUDIENCES
                && !audience.is_empty()
                && audience.len() <= 2048
            {
                news |= self.audiences.insert(audience);
            }
        }
        news
    }

    /// Whether the keys should be asked for (again), now that somebody can. `needed`: a token could not be proven for want of
    /// a key.
    pub fn wants_keys(&mut self, now: i64, needed: bool) -> bool {
        let due = self.is_due(now, needed);
        if due {
            self.tried = now;
        }
        due
    }

    /// As [`Self::wants_keys`], without noting that they are asked for.
    pub fn is_due(&self, now: i64, needed: bool) -> bool {
        // A clock that jumped back must not put it off for ever.
        let since = |at: i64| if at > now { i64::MAX } else { now - at };
        since(self.fetched) >= if needed { PAUSE } else { REFRESH } && since(self.tried) >= PAUSE
    }

    /// As stored.
    pub fn to_json(&self) -> Value {
        json!({
            "issuer": self.url, "keys": self.told, "fetched": self.fetched,
            "audiences": self.audiences, "floor": self.floor,
        })
    }

    /// Reads what was stored.
    pub fn of_json(stored: &Value) -> Self {
        let mut issuer = Self::default();
        let fetched = stored["fetched"].as_i64().unwrap_or(0);
        issuer.learn(stored, &stored["keys"], fetched);
        issuer.learn_audiences(super::issued::strings(&stored["audiences"]));
        issuer.floor = stored["floor"].as_i64().unwrap_or(0);
        issuer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_stored_reads_back() {
        let mut issuer = Issuer::default();
        let set = json!({"keys": [{"kty": "OKP", "crv": "Ed25519", "kid": "k", "use": "sig",
            "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]});
        let configuration = json!({"issuer": "https://a"});
        assert_eq!(issuer.learn(&configuration, &set, 7), Some(true));
        assert_eq!(issuer.learn(&configuration, &set, 8), Some(false));
        for (configuration, set) in [
            (json!({}), set.clone()),
            (json!({"issuer": ""}), set.clone()),
            (configuration.clone(), json!({"keys": []})),
            (configuration, json!("x")),
        ] {
            assert_eq!(issuer.learn(&configuration, &set, 9), None);
        }
        assert!(issuer.learn_audiences(["api".to_owned()]));
        assert!(!issuer.learn_audiences(["api".to_owned(), String::new()]));
        issuer.floor = 5;
        let read = Issuer::of_json(&issuer.to_json());
        assert_eq!(
            (
                read.url,
                read.keys,
                read.audiences,
                read.floor,
                read.fetched
            ),
            (issuer.url, issuer.keys, issuer.audiences, 5, 8)
        );
        assert!(Issuer::of_json(&json!("nonsense")).keys.is_empty());
    }

    #[test]
    fn keys_are_asked_for_in_measure() {
        let mut issuer = Issuer::default();
        assert!(issuer.wants_keys(10_000, false));
        assert!(!issuer.wants_keys(10_001, true), "just tried");
        issuer.fetched = 10_000;
        assert!(!issuer.wants_keys(10_000 + PAUSE, false));
        assert!(issuer.wants_keys(10_000 + PAUSE, true));
        assert!(issuer.wants_keys(10_000 + REFRESH, false));
        assert!(issuer.wants_keys(5, false), "the clock went back");
    }
}
