//! What the cloud says of tokens, taken in and kept: reviews, refusals, the tokens that it issued to pods of this node, the keys of
//! its issuer.

use super::{
    ISSUER, OPAQUE, Tokens, denial,
    issued::{Issued, Wish, strings},
    jwt::{LEEWAY, MAX_TOKEN, Unproven},
    known::{Known, Via, Word},
    lock,
    question::Question,
    user::{User, account_user},
};
use crate::{cache::Shelf, identity};
use bytes::Bytes;
use serde_json::Value;
use std::sync::Arc;

/// A refusal of a token that does not say when it ends is remembered as long, in seconds.
const DENIED: i64 = 86_400;
/// The known passing of time is written down in steps of this, in seconds.
const FLOOR_STEP: i64 = 600;
/// What the names of those begin with whose tokens the cluster signs itself.
const ACCOUNT: &str = "system:serviceaccount:";

impl Tokens {
    /// Takes in the cloud's answer to a question that is remembered.
    pub fn learn(&self, question: &Question, asked: &Value, answer: &Value, now: i64) {
        match question {
            Question::Token { namespace, account } => {
                if let Ok(wish) = Wish::parse(namespace, account, asked) {
                    self.learn_issued(&wish, answer, now);
                }
            }
            Question::Review => {
                self.learn_review(&asked["spec"], &answer["status"], now);
            }
            Question::Access => self.learn_access(&asked["spec"], &answer["status"]),
            Question::Own | Question::OwnAccess => {}
        }
    }

    /// The cloud refused a token (401): it is nobody's from now on, though its keys may say otherwise. The rights of its user
    /// stay.
    pub fn deny(&self, token: &str, now: i64) {
        // What nobody vouches for need not be remembered: whoever sends nonsense must not push out what is true.
        if self.prove(token, now).is_err() {
            return;
        }
        let ends = Unproven::parse(token)
            .and_then(Result::ok)
            .map(|parsed| parsed.claims().exp.saturating_add(2 * LEEWAY));
        let until = ends.unwrap_or(now.saturating_add(DENIED));
        self.forget(&identity::hash(token));
        self.remember(&denial(token), Word::Denied { until }, now);
    }

    /// Takes in the answer to a TokenReview, of the hub's own or of a component of the node. Gives the user when the token is
    /// somebody's.
    pub fn learn_review(&self, spec: &Value, status: &Value, now: i64) -> Option<Arc<Known>> {
        let token = spec["token"].as_str().filter(|t| t.len() <= MAX_TOKEN)?;
        if self.is_own(token) {
            // The cloud knows nothing of those.
            return None;
        }
        let asked = strings(&spec["audiences"]);
        if status["authenticated"] != true {
            // With audiences it may only be meant for others.
            if asked.is_empty() {
                self.deny(token, now);
            }
            return None;
        }
        let user = User::of_review(&status["user"])?;
        let told = strings(&status["audiences"]);
        if asked.is_empty() {
            self.learn_audiences(told.clone());
        }
        let hash = identity::hash(token);
        // Without audiences it is the API server's own that were asked for, told by their names or not.
        let unnamed = asked.is_empty() && told.is_empty();
        let mut audiences = told;
        let until = match Unproven::parse(token).and_then(Result::ok) {
            Some(parsed) => {
                let claims = parsed.claims();
                // By whose clock others sign nobody vouches.
                if user.name.starts_with(ACCOUNT) {
                    self.raise_floor(claims.iat.or(claims.nbf).unwrap_or(0));
                }
                if !unnamed {
                    audiences.extend(claims.aud.iter().cloned());
                }
                claims.exp
            }
            None => now.saturating_add(OPAQUE),
        };
        let known = Arc::new(Known::new(user, until, audiences, Via::Review));
        self.forget(&denial(token));
        self.remember(&hash, Word::Good(known.clone()), now);
        Some(known)
    }

    /// Takes in a token that the cloud issued to a pod of this node, and keeps it for offline times.
    pub fn learn_issued(&self, wish: &Wish, answer: &Value, now: i64) -> Option<Issued> {
        let issued = Issued::of_answer(wish, answer)?;
        if wish.audiences.is_empty() {
            self.learn_audiences(issued.audiences.clone());
        }
        self.raise_floor(issued.since);
        self.forget(&denial(&issued.token));
        self.know_issued(&issued, now);
        if let Ok(stored) = serde_json::to_vec(&issued) {
            self.inner
                .cache
                .keep(Shelf::Tokens, &wish.key(), stored.into());
        }
        Some(issued)
    }

    pub(super) fn know_issued(&self, issued: &Issued, now: i64) {
        let account = account_user(&issued.namespace, &issued.account, &issued.uid);
        let user = Unproven::parse(&issued.token)
            .and_then(Result::ok)
            .and_then(|parsed| parsed.claims().user().ok())
            .unwrap_or(account);
        let known = Known::new(user, issued.until, issued.audiences.clone(), Via::Issue);
        let hash = identity::hash(&issued.token);
        self.remember(&hash, Word::Good(Arc::new(known)), now);
    }

    /// Whether it is time to ask for the issuer's keys.
    pub fn keys_are_due(&self, now: i64) -> bool {
        lock(&self.inner.issuer).is_due(now, false)
    }

    /// Whether the issuer's keys should be asked for now: it is time, or this token names one that is not known. Notes that they
    /// are.
    pub fn wants_keys(&self, token: &str, now: i64) -> bool {
        let mut issuer = lock(&self.inner.issuer);
        let needed = matches!(Unproven::parse(token), Some(Ok(parsed))
            if (issuer.url.is_empty() || parsed.issuer() == issuer.url) && !issuer.keys.has_key_of(&parsed));
        issuer.wants_keys(now, needed)
    }

    /// Takes in the issuer's discovery document and key set; whether they were understood.
    pub fn learn_issuer(&self, configuration: &Value, set: &Value, now: i64) -> bool {
        let mut issuer = lock(&self.inner.issuer);
        let Some(changed) = issuer.learn(configuration, set, now) else {
            return false;
        };
        self.inner.metrics.issuer_keys(issuer.keys.len());
        let url = issuer.url.clone();
        drop(issuer);
        if changed {
            tracing::info!(issuer = url, "keys of the cloud's token issuer learned");
            // A key that is gone proves nothing any more.
            lock(&self.inner.table).forget_proven(Via::Keys);
        }
        self.keep_issuer();
        true
    }

    fn learn_audiences(&self, audiences: Vec<String>) {
        if lock(&self.inner.issuer).learn_audiences(audiences) {
            self.keep_issuer();
        }
    }

    fn raise_floor(&self, since: i64) {
        let mut issuer = lock(&self.inner.issuer);
        if since > issuer.floor.saturating_add(FLOOR_STEP) {
            issuer.floor = since;
            drop(issuer);
            self.keep_issuer();
        }
    }

    fn keep_issuer(&self) {
        let stored = lock(&self.inner.issuer).to_json().to_string();
        self.inner
            .cache
            .keep(Shelf::Issuers, ISSUER, Bytes::from(stored));
    }
}
