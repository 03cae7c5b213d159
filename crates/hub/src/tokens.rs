//! Bearer tokens on the node: whose they are, with the cloud and without it (design rule R4).
//!
//! The cloud decides while it is there: every request goes to it with its own token. What it says of tokens is kept - reviews
//! (`TokenReview`), the tokens it issued to pods of this node, the keys of its issuer - and decides when it is away. Tokens that the
//! node signed itself for offline times are good on this node only; on their way to the cloud they are exchanged for real ones
//! (`upstream`). [`jwt`], [`keys`], [`known`], [`issued`], [`issuer`] and [`access`] are pure; here they meet the clock and the cache's
//! shelves.
//!
//! Protocol facts: kube-apiserver `pkg/serviceaccount` (claims, audiences, a minute of leeway), `staging/src/k8s.io/api/authentication`.

pub mod access;
mod heard;
pub mod issued;
pub mod issuer;
pub mod jwt;
pub mod keys;
pub mod known;
pub mod question;
pub mod signer;
pub mod user;
mod verdict;

use crate::{
    cache::{Cache, Shelf},
    caller::Caller,
    identity,
    metrics::Metrics,
};
use issued::{Issued, MIN_SECONDS, Wish, strings};
use issuer::Issuer;
use jwt::{Bound, Claims, MAX_TOKEN, Unproven};
use known::{Known, Table, Via, Word};
use serde_json::{Value, json};
use signer::{Signer, SignerError};
use std::{
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
pub use user::{account_name, account_user};
pub use verdict::{Refusal, Verdict};

/// How long a token that does not say when it ends is remembered after the cloud last reviewed it, in seconds.
const OPAQUE: i64 = 30 * 86_400;
/// How long a kept token must still be good to be given to a kubelet, in seconds. Pods read theirs anew within a minute or so.
const MARGIN: i64 = 300;
/// Longest life of what the node signs, in seconds.
const MOST_OWN: i64 = 3600;
/// A token is reviewed again after this, in seconds.
const REVIEW_AGAIN: i64 = 86_400;
const ISSUER: &str = "cloud";

/// Why the node gives no token.
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    /// The node cannot sign.
    #[error(transparent)]
    Signer(#[from] SignerError),
    /// The node was not told where its key lies.
    #[error("this node has no place for a token key")]
    NoPlace,
}

/// See the module. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Tokens {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    node: String,
    key_path: Option<PathBuf>,
    signer: Mutex<Option<Arc<Signer>>>,
    table: Mutex<Table>,
    issuer: Mutex<Issuer>,
    cache: Cache,
    metrics: Metrics,
}

impl Inner {
    fn new(cache: &Cache, node: &str) -> Self {
        Self {
            node: node.to_owned(),
            key_path: None,
            signer: Mutex::default(),
            table: Mutex::default(),
            issuer: Mutex::default(),
            cache: cache.clone(),
            metrics: Metrics::default(),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is locked is valid after every statement.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Tokens {
    /// Reads what was kept. `key_path`: where the node's own key lies, or will; `None`: the node signs nothing.
    pub fn open(cache: &Cache, node: &str, key_path: Option<PathBuf>, metrics: Metrics) -> Self {
        let signer = key_path.as_ref().and_then(|path| {
            Signer::read(path, node).unwrap_or_else(|error| {
                tracing::error!(%error, "tokens that this node signed are not accepted");
                None
            })
        });
        let inner = Inner {
            key_path,
            signer: Mutex::new(signer.map(Arc::new)),
            metrics,
            ..Inner::new(cache, node)
        };
        let tokens = Self {
            inner: Arc::new(inner),
        };
        tokens.load(crate::offline::now());
        tokens
    }

    /// With nothing known, and no key.
    pub(crate) fn blank(cache: &Cache, node: &str) -> Self {
        Self {
            inner: Arc::new(Inner::new(cache, node)),
        }
    }

    fn load(&self, now: i64) {
        let cache = &self.inner.cache;
        if let Some(stored) = cache.kept(Shelf::Issuers, ISSUER)
            && let Ok(stored) = serde_json::from_slice::<Value>(&stored)
        {
            let issuer = Issuer::of_json(&stored);
            self.inner.metrics.issuer_keys(issuer.keys.len());
            *lock(&self.inner.issuer) = issuer;
        }
        for (key, value) in cache.shelf(Shelf::Reviews) {
            let Some(hash) = key.strip_prefix(TOKEN) else {
                continue;
            };
            match Word::decode(&value) {
                Some(word) => self.remember(hash, word, now),
                None => cache.discard(Shelf::Reviews, &key),
            }
        }
        for (key, value) in cache.shelf(Shelf::Tokens) {
            match serde_json::from_slice::<Issued>(&value) {
                Ok(issued)
                    if issued.until > self.past(now) && !self.is_denied(&issued.token, now) =>
                {
                    self.know_issued(&issued, now);
                }
                _ => cache.discard(Shelf::Tokens, &key),
            }
        }
    }

    fn is_denied(&self, token: &str, now: i64) -> bool {
        lock(&self.inner.table)
            .get(&denial(token), self.past(now))
            .is_some()
    }

    /// The time, seconds since the epoch: never before what has certainly passed.
    fn past(&self, now: i64) -> i64 {
        now.max(lock(&self.inner.issuer).floor)
    }

    /// Whose a token is, at a time by the node's clock (seconds since the epoch). Asks nobody.
    pub fn verify(&self, token: &str, now: i64) -> Verdict {
        match self.prove(token, now) {
            Ok(known) if self.is_for_api(&known) => Verdict::Known(known),
            Ok(_) => Refusal::Audience.into(),
            Err(refusal) => refusal.into(),
        }
    }

    /// The caller that a token speaks for. Counted.
    pub fn caller(&self, token: &str, now: i64) -> Caller {
        let verdict = self.verify(token, now);
        self.inner.metrics.token(match &verdict {
            Verdict::Known(known) => match known.via {
                Via::Review => "reviewed",
                Via::Issue => "issued",
                Via::Keys => "issuer_key",
                Via::Node => "node_key",
            },
            Verdict::Unknown(refusal) | Verdict::Refused(refusal) => refusal.as_str(),
        });
        match verdict {
            Verdict::Known(known) => Caller::User(known.rights.clone()),
            Verdict::Unknown(_) | Verdict::Refused(_) => Caller::Bearer(identity::hash(token)),
        }
    }

    /// Whose a token is, whomever it is meant for.
    fn prove(&self, token: &str, now: i64) -> Result<Arc<Known>, Refusal> {
        if token.len() > MAX_TOKEN {
            return Err(Refusal::TooLong);
        }
        let now = self.past(now);
        let hash = identity::hash(token);
        {
            let mut table = lock(&self.inner.table);
            if let Some(Word::Denied { .. }) = table.get(&denial(token), now) {
                return Err(Refusal::Denied);
            }
            if let Some(Word::Good(known)) = table.get(&hash, now) {
                return Ok(known);
            }
        }
        let parsed = Unproven::parse(token).ok_or(Refusal::Opaque)??;
        // What a token says against itself needs no proof.
        parsed.claims().check(now)?;
        let own = lock(&self.inner.signer).clone();
        let (claims, via) = if parsed.issuer() == signer::issuer_of(&self.inner.node) {
            let signer = own.ok_or(Refusal::Key)?;
            (signer.prove(&parsed)?.clone(), Via::Node)
        } else {
            let issuer = lock(&self.inner.issuer);
            if issuer.url.is_empty() || parsed.issuer() != issuer.url {
                return Err(Refusal::Issuer);
            }
            // Verifying takes some 100 us, once for each token.
            (issuer.keys.prove(&parsed)?.clone(), Via::Keys)
        };
        let user = claims.user()?;
        if claims.aud.is_empty() {
            return Err(Refusal::Audience);
        }
        let known = Arc::new(Known {
            since: claims.nbf.max(claims.iat).unwrap_or(0),
            ..Known::new(user, claims.exp, claims.aud, via)
        });
        self.remember(&hash, Word::Good(known.clone()), now);
        Ok(known)
    }

    fn is_for_api(&self, known: &Known) -> bool {
        if known.audiences.is_empty() {
            return true;
        }
        let own = signer::issuer_of(&self.inner.node);
        let issuer = lock(&self.inner.issuer);
        known.audiences.iter().any(|audience| {
            issuer.audiences.contains(audience) || (known.via == Via::Node && *audience == own)
        })
    }

    fn remember(&self, hash: &str, word: Word, now: i64) {
        let key = format!("{TOKEN}{hash}");
        let cache = &self.inner.cache;
        if word.is_durable() {
            cache.keep(Shelf::Reviews, &key, word.encode());
        } else {
            // An older word may say otherwise.
            cache.discard(Shelf::Reviews, &key);
        }
        // What the token was allowed before its user was known. A token for others than the API server has no rights here.
        if let Word::Good(known) = &word
            && self.is_for_api(known)
        {
            cache.adopt(
                &Caller::Bearer(hash.to_owned()),
                &Caller::User(known.rights.clone()),
            );
        }
        let gone = lock(&self.inner.table).put(hash, word, now);
        for hash in gone {
            cache.discard(Shelf::Reviews, &format!("{TOKEN}{hash}"));
        }
    }

    fn forget(&self, hash: &str) {
        lock(&self.inner.table).remove(hash);
        self.inner
            .cache
            .discard(Shelf::Reviews, &format!("{TOKEN}{hash}"));
    }

    /// Whether a token is one that this node signed, by what it says.
    pub fn is_own(&self, token: &str) -> bool {
        lock(&self.inner.signer)
            .as_ref()
            .is_some_and(|signer| signer.is_named_by(token))
    }

    /// What one of the node's own tokens is bound to, when it holds and is meant for the API server: one for others must not
    /// become one for it.
    pub fn own_bound(&self, token: &str, now: i64) -> Result<Bound, Refusal> {
        if let Verdict::Unknown(refusal) | Verdict::Refused(refusal) = self.verify(token, now) {
            return Err(refusal);
        }
        let parsed = Unproven::parse(token).ok_or(Refusal::Opaque)??;
        parsed.claims().kubernetes.clone().ok_or(Refusal::Malformed)
    }

    /// Whether the cloud should be asked whose a token is: it just accepted it, and nobody asked before.
    pub fn wants_review(&self, token: &str, now: i64) -> bool {
        if token.len() > MAX_TOKEN || self.is_own(token) {
            return false;
        }
        if self.is_denied(token, now) {
            return true;
        }
        match lock(&self.inner.table).get(&identity::hash(token), self.past(now)) {
            Some(Word::Good(known)) => match known.via {
                // Only what does not say when it ends is renewed.
                Via::Review => {
                    !matches!(Unproven::parse(token), Some(Ok(_)))
                        && known.until - now < OPAQUE - REVIEW_AGAIN
                }
                Via::Issue => false,
                Via::Keys | Via::Node => true,
            },
            Some(Word::Denied { .. }) | None => true,
        }
    }

    /// Answers a TokenReview (its spec) without the cloud.
    pub fn review(&self, spec: &Value, now: i64) -> Value {
        let refused = |why: String| json!({"authenticated": false, "user": {}, "error": why});
        let token = spec["token"].as_str().unwrap_or_default();
        let known = match self.prove(token, now) {
            Ok(known) => known,
            Err(refusal) => return refused(refusal.to_string()),
        };
        let wanted = strings(&spec["audiences"]);
        let api = lock(&self.inner.issuer).audiences.clone();
        let is_api = |audience: &String| api.contains(audience);
        let audiences: Vec<String> = match (wanted.is_empty(), known.audiences.is_empty()) {
            (true, true) => Vec::new(),
            (true, false) => known
                .audiences
                .iter()
                .filter(|a| is_api(a))
                .cloned()
                .collect(),
            (false, true) => wanted.into_iter().filter(is_api).collect(),
            (false, false) => {
                let has = |a: &String| known.audiences.contains(a);
                wanted.into_iter().filter(has).collect()
            }
        };
        let meant = if strings(&spec["audiences"]).is_empty() {
            self.is_for_api(&known)
        } else {
            !audiences.is_empty()
        };
        if !meant {
            return refused(Refusal::Audience.to_string());
        }
        let mut status = json!({"authenticated": true, "user": known.user.to_json()});
        if !audiences.is_empty() {
            status["audiences"] = json!(audiences);
        }
        status
    }

    /// The user that a token speaks for, as `UserInfo`.
    pub fn user_of(&self, token: &str, now: i64) -> Option<Value> {
        match self.verify(token, now) {
            Verdict::Known(known) => Some(known.user.to_json()),
            Verdict::Unknown(_) | Verdict::Refused(_) => None,
        }
    }

    /// A token that the cloud gave before is given once more.
    pub(crate) fn given_again(&self) {
        self.inner.metrics.token_given("cloud");
    }

    /// The token that the cloud gave for a wish, while it is good for long enough.
    pub fn issued(&self, wish: &Wish, now: i64) -> Option<Issued> {
        let now = self.past(now);
        let kept = self.inner.cache.kept(Shelf::Tokens, &wish.key())?;
        let issued: Issued = serde_json::from_slice(&kept).ok()?;
        let usable = issued.until.saturating_sub(now) >= MARGIN
            && matches!(self.prove(&issued.token, now), Ok(known) if known.user.name == issued.user);
        usable.then_some(issued)
    }

    /// Forgets the token that the cloud gave for a wish (it was refused).
    pub fn forget_issued(&self, wish: &Wish) {
        self.inner.cache.discard(Shelf::Tokens, &wish.key());
    }

    /// Signs a token for a wish, with the node's own key: for a pod that is known to be on this node.
    pub fn sign(&self, wish: &Wish, bound: Bound, now: i64) -> Result<(String, Claims), SignError> {
        let now = self.past(now);
        let signer = self.signer()?;
        let mut audiences = wish.audiences.clone();
        if audiences.is_empty() {
            audiences.extend(lock(&self.inner.issuer).audiences.iter().cloned());
        }
        if audiences.is_empty() {
            // The API server's, whatever it is called.
            audiences.push(signer::issuer_of(&self.inner.node));
        }
        let claims = Claims {
            iss: signer::issuer_of(&self.inner.node),
            sub: account_name(&wish.namespace, &wish.account),
            aud: audiences,
            exp: now.saturating_add(wish.seconds.clamp(MIN_SECONDS, MOST_OWN)),
            nbf: Some(now),
            iat: Some(now),
            jti: String::new(),
            kubernetes: Some(bound),
        };
        let token = signer.sign(claims.clone())?;
        self.inner.metrics.token_given("node_key");
        Ok((token, claims))
    }

    /// Whether the node can sign tokens; makes its key where there is none yet.
    pub fn can_sign(&self) -> bool {
        self.signer().is_ok()
    }

    fn signer(&self) -> Result<Arc<Signer>, SignError> {
        let mut signer = lock(&self.inner.signer);
        if let Some(signer) = &*signer {
            return Ok(signer.clone());
        }
        let path = self.inner.key_path.as_ref().ok_or(SignError::NoPlace)?;
        let made = match Signer::read(path, &self.inner.node)? {
            Some(read) => read,
            None => {
                tracing::info!(path = %path.display(), "making a key for tokens of offline times");
                Signer::make(path, &self.inner.node)?
            }
        };
        Ok(signer.insert(Arc::new(made)).clone())
    }
}

/// What the keys of tokens begin with on the shelf of reviews.
const TOKEN: &str = "t/";

/// Under what key a refusal of a token is remembered: by what is signed, because for one signature another can be made that is
/// as good (ECDSA).
fn denial(token: &str) -> String {
    // A web token: the first part is `{"...` in base64.
    let signed = match token.rsplit_once('.') {
        Some((signed, _)) if token.starts_with("eyJ") && signed.matches('.').count() == 1 => signed,
        _ => token,
    };
    format!("!{}", identity::hash(signed))
}
