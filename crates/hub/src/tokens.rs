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
pub mod issued;
pub mod issuer;
pub mod jwt;
pub mod keys;
pub mod known;
pub mod question;
pub mod signer;
pub mod user;

use crate::{
    cache::{Cache, Shelf},
    caller::Caller,
    identity,
    metrics::Metrics,
};
use bytes::Bytes;
use issued::{Issued, MIN_SECONDS, Wish, strings};
use issuer::Issuer;
use jwt::{Bound, Claims, LEEWAY, MAX_TOKEN, Unproven};
use known::{Known, Table, Via, Word};
use question::Question;
use serde_json::{Value, json};
use signer::{Signer, SignerError};
use std::{
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use user::User;
pub use user::{account_name, account_user};

/// How long a token that does not say when it ends is remembered after the cloud last reviewed it, in seconds.
const OPAQUE: i64 = 30 * 86_400;
/// A refusal of a token that does not say when it ends is remembered as long, in seconds.
const DENIED: i64 = 86_400;
/// How long a kept token must still be good to be given to a kubelet, in seconds. Pods read theirs anew within a minute or so.
const MARGIN: i64 = 300;
/// Longest life of what the node signs, in seconds.
const MOST_OWN: i64 = 3600;
/// The known passing of time is written down in steps of this, in seconds.
const FLOOR_STEP: i64 = 600;
/// A token is reviewed again after this, in seconds.
const REVIEW_AGAIN: i64 = 86_400;
const ISSUER: &str = "cloud";

/// Why a token says nothing here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum Refusal {
    #[error("the token is longer than {MAX_TOKEN} bytes")]
    TooLong,
    #[error("the token does not say what a service account's says")]
    Malformed,
    #[error("the token is signed in a way that is not accepted")]
    Algorithm,
    #[error("the token's signature is wrong")]
    Signature,
    #[error("the token has expired")]
    Expired,
    #[error("the token is not valid yet")]
    NotYet,
    #[error("the cloud refused the token")]
    Denied,
    #[error("the token is not a web token, and the cloud never accepted it through this node")]
    Opaque,
    #[error("the token is of an issuer whose keys this node does not know")]
    Issuer,
    #[error("the token is signed by a key that this node does not know")]
    Key,
    #[error("the token is for other audiences than the API server")]
    Audience,
}

impl Refusal {
    /// Whether the node knows that the token is bad, rather than not knowing that it is good: the cloud may have accepted it all
    /// the same (another authenticator, a token of a secret, which never ends).
    pub fn is_certain(self) -> bool {
        matches!(
            self,
            Self::TooLong | Self::Signature | Self::Expired | Self::NotYet | Self::Denied
        )
    }

    /// As a label of metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::TooLong => "too_long",
            Self::Malformed => "malformed",
            Self::Algorithm => "algorithm",
            Self::Signature => "signature",
            Self::Expired => "expired",
            Self::NotYet => "not_yet_valid",
            Self::Denied => "denied",
            Self::Opaque => "opaque",
            Self::Issuer => "issuer",
            Self::Key => "key",
            Self::Audience => "audience",
        }
    }
}

/// Whose a token is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// This user's.
    Known(Arc<Known>),
    /// The node cannot tell.
    Unknown(Refusal),
    /// It is good for nothing.
    Refused(Refusal),
}

impl From<Refusal> for Verdict {
    fn from(refusal: Refusal) -> Self {
        if refusal.is_certain() {
            Self::Refused(refusal)
        } else {
            Self::Unknown(refusal)
        }
    }
}

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
                self.raise_floor(claims.iat.or(claims.nbf).unwrap_or(0));
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

    /// A token that the cloud gave before is given once more.
    pub(crate) fn given_again(&self) {
        self.inner.metrics.token_given("cloud");
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

    fn know_issued(&self, issued: &Issued, now: i64) {
        let account = account_user(&issued.namespace, &issued.account, &issued.uid);
        let user = Unproven::parse(&issued.token)
            .and_then(Result::ok)
            .and_then(|parsed| parsed.claims().user().ok())
            .unwrap_or(account);
        let known = Known::new(user, issued.until, issued.audiences.clone(), Via::Issue);
        let hash = identity::hash(&issued.token);
        self.remember(&hash, Word::Good(Arc::new(known)), now);
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
