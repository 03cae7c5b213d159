//! Whose tokens are, as the node tells without asking: what it was told, what proves itself, and everything that must not pass.

#[path = "tokens/issued.rs"]
mod issued;
#[path = "tokens/key.rs"]
mod key;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use key::{Key, encode};
use proptest::prelude::*;
use ring::hmac;
use serde_json::{Value, json};
use std::sync::LazyLock;
use yurt_hub::{
    cache::{Cache, CacheConfig},
    caller::Caller,
    identity,
    metrics::Metrics,
    query::Query,
    tokens::{
        Refusal, Tokens, Verdict,
        issued::Wish,
        jwt::{Bound, LEEWAY, MAX_TOKEN, Reference},
        known::Via,
        signer,
    },
};
use yurt_wire::Gvr;

const NOW: i64 = 1_800_000_000;
const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";
const WEB: &str = "system:serviceaccount:default:web";

fn claims() -> Value {
    json!({"iss": ISSUER, "sub": WEB, "aud": [ISSUER], "exp": NOW + 3600, "nbf": NOW, "iat": NOW, "jti": "1",
        "kubernetes.io": {"namespace": "default", "serviceaccount": {"name": "web", "uid": "u"}, "pod": {"name": "p", "uid": "pu"}}})
}

fn with(change: impl FnOnce(&mut Value)) -> Value {
    let mut claims = claims();
    change(&mut claims);
    claims
}

struct Node {
    dir: tempfile::TempDir,
    cache: Cache,
    tokens: Tokens,
}

fn open(dir: &std::path::Path) -> (Cache, Tokens) {
    let (cache, _) = Cache::open(&dir.join("cache"), CacheConfig::default()).expect("a cache");
    let key = Some(signer::key_path(dir));
    let tokens = Tokens::open(&cache, "edge-1", key, Metrics::default());
    (cache, tokens)
}

impl Node {
    /// Knows nothing.
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let (cache, tokens) = open(dir.path());
        Self { dir, cache, tokens }
    }

    /// Knows the keys of the issuer, and the audience of the API server.
    fn knowing(keys: &[(&str, &Key)]) -> Self {
        let node = Self::new();
        node.learn_keys(keys);
        let told =
            json!({"authenticated": true, "user": {"username": "somebody"}, "audiences": [ISSUER]});
        node.tokens
            .learn_review(&json!({"token": "some-opaque-token"}), &told, NOW);
        node
    }

    fn learn_keys(&self, keys: &[(&str, &Key)]) {
        let keys: Vec<Value> = keys.iter().map(|(kid, key)| key.public(kid)).collect();
        let configuration = json!({"issuer": ISSUER});
        assert!(
            self.tokens
                .learn_issuer(&configuration, &json!({"keys": keys}), NOW)
        );
    }

    async fn restart(self) -> Self {
        let Self { dir, cache, tokens } = self;
        cache.flush().await.expect("flush");
        drop((cache, tokens));
        let (cache, tokens) = open(dir.path());
        Self { dir, cache, tokens }
    }

    fn via(&self, token: &str) -> Option<Via> {
        match self.tokens.verify(token, NOW) {
            Verdict::Known(known) => Some(known.via),
            _ => None,
        }
    }

    fn review(&self, token: &str, status: Value) {
        self.tokens
            .learn_review(&json!({"token": token}), &status, NOW);
    }
}

static P256: LazyLock<Key> = LazyLock::new(Key::p256);

#[test]
fn a_key_proves_tokens_of_its_own_kind() {
    let keys = [
        ("rsa", Key::rsa(), &["RS256", "RS384", "RS512"][..]),
        ("p256", Key::p256(), &["ES256"]),
        ("p384", Key::p384(), &["ES384"]),
        ("ed", Key::ed(), &["EdDSA"]),
    ];
    let known: Vec<(&str, &Key)> = keys.iter().map(|(kid, key, _)| (*kid, key)).collect();
    let node = Node::knowing(&known);
    for (kid, key, algorithms) in &keys {
        for algorithm in *algorithms {
            let token = key.token(algorithm, kid, &claims());
            assert_eq!(node.via(&token), Some(Via::Keys), "{algorithm}");
            assert_eq!(node.tokens.caller(&token, NOW), Caller::User(WEB.into()));
        }
        // Under another algorithm's name, or another key's.
        for (other, _, algorithms) in &keys {
            if other == kid {
                continue;
            }
            for (algorithm, kid) in [(algorithms[0], *kid), (algorithms[0], *other)] {
                let token = key.token(algorithm, kid, &claims());
                let verdict = node.tokens.verify(&token, NOW);
                assert_eq!(
                    verdict,
                    Verdict::Refused(Refusal::Signature),
                    "{algorithm} {kid}"
                );
            }
        }
    }
}

#[test]
fn forged_tokens_are_refused() {
    let node = Node::knowing(&[("k", &P256)]);
    let refused = |token: &str, why: Refusal| {
        let verdict = node.tokens.verify(token, NOW);
        assert_eq!(verdict, Verdict::from(why), "{token}");
        let hash = identity::hash(token);
        assert_eq!(node.tokens.caller(token, NOW), Caller::Bearer(hash));
    };
    let signed = |header: &Value| {
        format!(
            "{}.{}",
            encode(header.to_string()),
            encode(claims().to_string())
        )
    };
    // No signature; and the public key taken for a secret.
    let none = signed(&json!({"alg": "none", "kid": "k"}));
    refused(&format!("{none}."), Refusal::Algorithm);
    let symmetric = signed(&json!({"alg": "HS256", "kid": "k"}));
    let secret = hmac::Key::new(hmac::HMAC_SHA256, P256.public("k").to_string().as_bytes());
    let tag = encode(hmac::sign(&secret, symmetric.as_bytes()));
    refused(&format!("{symmetric}.{tag}"), Refusal::Algorithm);

    let stranger = Key::p256();
    refused(&stranger.token("ES256", "k", &claims()), Refusal::Signature);
    refused(&stranger.token("ES256", "another", &claims()), Refusal::Key);
    let elsewhere = with(|c| c["iss"] = "https://elsewhere".into());
    refused(&P256.token("ES256", "k", &elsewhere), Refusal::Issuer);
    for audience in [json!(["vault"]), json!("vault"), json!([]), json!([""])] {
        let others = with(|c| c["aud"] = audience);
        refused(&P256.token("ES256", "k", &others), Refusal::Audience);
    }
    for (change, why) in [
        (json!({"exp": NOW - LEEWAY}), Refusal::Expired),
        (json!({"exp": 0}), Refusal::Expired),
        (json!({"nbf": NOW + LEEWAY + 1}), Refusal::NotYet),
        (json!({"iat": NOW + LEEWAY + 1}), Refusal::NotYet),
        (json!({"sub": "system:admin"}), Refusal::Malformed),
        (
            json!({"sub": "system:serviceaccount:kube-system:web"}),
            Refusal::Malformed,
        ),
        (json!({"kubernetes.io": null}), Refusal::Malformed),
        (json!({"exp": null}), Refusal::Malformed),
    ] {
        let changed = with(|c| {
            for (name, value) in change.as_object().expect("an object") {
                c[name] = value.clone();
            }
        });
        refused(&P256.token("ES256", "k", &changed), why);
    }
    let huge = with(|c| c["jti"] = "x".repeat(MAX_TOKEN).into());
    refused(&P256.token("ES256", "k", &huge), Refusal::TooLong);
    refused("opaque", Refusal::Opaque);

    // In the name of this node.
    let own = with(|c| c["iss"] = signer::issuer_of("edge-1").into());
    refused(&P256.token("ES256", "k", &own), Refusal::Key);
}

#[test]
fn no_changed_token_passes() {
    let (node, good) = (
        Node::knowing(&[("k", &P256)]),
        P256.token("ES256", "k", &claims()),
    );
    assert_eq!(node.via(&good), Some(Via::Keys));
    proptest!(|(at in 0_usize..2000, to in prop::char::range(' ', '~'), insert in "[A-Za-z0-9_.=-]{0,3}")| {
        let at = at % good.len();
        let mut changed: Vec<char> = good.chars().collect();
        changed[at] = to;
        let changed: String = changed.into_iter().collect();
        let cut = format!("{}{insert}", &good[..at]);
        let stretched = format!("{}{insert}{}", &good[..at], &good[at..]);
        for token in [changed, cut, stretched] {
            prop_assert!(token == good || node.via(&token).is_none(), "{}", token);
        }
    });
}

#[test]
fn nonsense_is_survived() {
    let node = Node::knowing(&[("k", &P256)]);
    proptest!(|(token in "\\PC{0,200}", header in "\\PC{0,60}", claims in "\\PC{0,120}")| {
        prop_assert!(node.via(&token).is_none());
        let known = r#"{"alg":"ES256","kid":"k"}"#;
        for header in [header.as_str(), known] {
            let web = format!("{}.{}.{}", encode(header), encode(&claims), encode("s"));
            prop_assert!(node.via(&web).is_none());
        }
    });
}

#[test]
fn claims_of_any_shape_are_survived() {
    let node = Node::knowing(&[("k", &P256)]);
    proptest!(|(name in "iss|sub|aud|exp|nbf|iat|jti|kubernetes.io", value in any_json())| {
        let changed = with(|c| c[&name] = value.clone());
        // Signed by the right key: whatever passes speaks for the service account that it names, for the API server.
        let token = P256.token("ES256", "k", &changed);
        if let Verdict::Known(known) = node.tokens.verify(&token, NOW) {
            prop_assert_eq!(&known.user.name, WEB);
            prop_assert!(known.audiences.iter().any(|a| a == ISSUER));
            prop_assert!(known.until + LEEWAY > NOW);
        }
    });
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(|number| json!(number)),
        "\\PC{0,20}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 16, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map("[a-z.]{0,12}", inner, 0..4).prop_map(|map| json!(map)),
        ]
    })
}

#[tokio::test]
async fn what_the_cloud_said_of_a_token_is_known_after_a_restart() {
    let node = Node::new();
    assert_eq!(
        node.tokens.verify("alice-1", NOW),
        Verdict::Unknown(Refusal::Opaque)
    );
    assert!(node.tokens.wants_review("alice-1", NOW));
    let alice = json!({"authenticated": true, "user": {"username": "alice", "groups": ["admins"]}});
    node.review("alice-1", alice);
    assert!(!node.tokens.wants_review("alice-1", NOW));
    let web = P256.token("ES256", "k", &claims());
    node.review(
        &web,
        json!({"authenticated": true, "user": {"username": WEB}, "audiences": [ISSUER]}),
    );

    let node = node.restart().await;
    for token in ["alice-1", &web] {
        assert_eq!(node.via(token), Some(Via::Review));
    }
    let Caller::User(alice) = node.tokens.caller("alice-1", NOW) else {
        panic!("not a user");
    };
    assert!(alice.starts_with("alice#"), "{alice}");
    // What does not say when it ends is not known for ever; what does ends then.
    let known = |token: &str, at| matches!(node.tokens.verify(token, at), Verdict::Known(_));
    assert!(known("alice-1", NOW + 29 * 86_400) && !known("alice-1", NOW + 31 * 86_400));
    assert!(known(&web, NOW + 3600) && !known(&web, NOW + 3600 + LEEWAY));
    let review = node.tokens.review(&json!({"token": "alice-1"}), NOW);
    assert_eq!(
        review["user"],
        json!({"username": "alice", "groups": ["admins"]})
    );

    // The cloud says no: to this token only, and also after a restart.
    node.tokens.deny("alice-1", NOW);
    node.tokens.deny(&web, NOW);
    let node = node.restart().await;
    for token in ["alice-1", &web] {
        assert_eq!(
            node.tokens.verify(token, NOW),
            Verdict::Refused(Refusal::Denied)
        );
        assert!(
            node.tokens.wants_review(token, NOW),
            "if the cloud takes it again"
        );
    }
    node.review(
        &web,
        json!({"authenticated": true, "user": {"username": WEB}, "audiences": [ISSUER]}),
    );
    assert_eq!(node.via(&web), Some(Via::Review));
    node.review(&web, json!({"authenticated": false}));
    assert!(node.via(&web).is_none());
}

#[tokio::test]
async fn tokens_of_other_kinds_are_known_when_the_cloud_reviewed_them() {
    let node = Node::knowing(&[("k", &P256)]);
    // Of a secret: it never ends. Of an identity provider: its audience is not the API server's.
    let of_secret = json!({"iss": "kubernetes/serviceaccount", "sub": WEB});
    let of_secret = P256.token("ES256", "k", &of_secret);
    let of_provider =
        json!({"iss": "https://idp", "sub": "alice", "aud": "kubectl", "exp": NOW + 60});
    let of_provider = P256.token("ES256", "k", &of_provider);
    for token in [&of_secret, &of_provider] {
        assert!(matches!(
            node.tokens.verify(token, NOW),
            Verdict::Unknown(_)
        ));
        let told =
            json!({"authenticated": true, "user": {"username": "somebody"}, "audiences": [ISSUER]});
        node.review(token, told);
        assert_eq!(node.via(token), Some(Via::Review));
        let asked = json!({"token": token, "audiences": ["vault"]});
        assert_eq!(node.tokens.review(&asked, NOW)["authenticated"], false);
    }
    assert!(!node.tokens.wants_review(&of_secret, NOW + 3600));
    assert!(
        node.tokens.wants_review(&of_secret, NOW + 2 * 86_400),
        "used, and so remembered"
    );
    assert!(!node.tokens.wants_review(&of_provider, NOW + 30));
    // For others only: good for those who asked, not here.
    let vault = P256.token("ES256", "k", &with(|c| c["aud"] = json!(["vault"])));
    let told = json!({"authenticated": true, "user": {"username": WEB}, "audiences": ["vault"]});
    let asked = json!({"token": vault, "audiences": ["vault"]});
    node.tokens.learn_review(&asked, &told, NOW);
    assert_eq!(node.tokens.review(&asked, NOW)["authenticated"], true);
    assert_eq!(
        node.tokens.verify(&vault, NOW),
        Verdict::Unknown(Refusal::Audience)
    );
}

/// `s` of an ECDSA signature replaced by `order - s`: as good a signature as the first.
fn other_signature(token: &str) -> String {
    const ORDER: [u8; 32] = [
        0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xbc,
        0xe6, 0xfa, 0xad, 0xa7, 0x17, 0x9e, 0x84, 0xf3, 0xb9, 0xca, 0xc2, 0xfc, 0x63, 0x25, 0x51,
    ];
    let (signed, signature) = token.rsplit_once('.').expect("a token");
    let mut signature = URL_SAFE_NO_PAD.decode(signature).expect("base64");
    let mut borrow = 0;
    for i in (0..32).rev() {
        let difference = i16::from(ORDER[i]) - i16::from(signature[32 + i]) - borrow;
        borrow = i16::from(difference < 0);
        signature[32 + i] = difference.rem_euclid(256) as u8;
    }
    format!("{signed}.{}", encode(signature))
}

#[test]
fn a_refused_token_is_refused_under_another_signature() {
    let node = Node::knowing(&[("k", &P256)]);
    let token = P256.token("ES256", "k", &claims());
    let other = other_signature(&token);
    assert_ne!(token, other);
    assert_eq!(
        node.via(&other),
        Some(Via::Keys),
        "the other signature is good"
    );
    node.tokens.deny(&token, NOW);
    for token in [&token, &other] {
        assert_eq!(
            node.tokens.verify(token, NOW),
            Verdict::Refused(Refusal::Denied)
        );
    }
}

#[test]
fn a_key_that_is_gone_proves_nothing() {
    let (old, new) = (Key::p256(), Key::rsa());
    let node = Node::knowing(&[("old", &old)]);
    let before = old.token("ES256", "old", &claims());
    let after = new.token("RS256", "new", &claims());
    assert_eq!(node.via(&before), Some(Via::Keys));
    assert!(node.via(&after).is_none());
    assert!(!node.tokens.wants_keys("opaque", NOW + 61), "fresh enough");
    assert!(node.tokens.wants_keys(&after, NOW + 61), "a key is missing");
    node.learn_keys(&[("old", &old), ("new", &new)]);
    assert!(node.via(&before).is_some() && node.via(&after).is_some());
    node.learn_keys(&[("new", &new)]);
    assert!(node.via(&before).is_none() && node.via(&after).is_some());
    // Nonsense instead of keys changes nothing.
    assert!(
        !node
            .tokens
            .learn_issuer(&json!({"issuer": ISSUER}), &json!({"keys": []}), NOW)
    );
    assert!(node.via(&after).is_some());
}

#[tokio::test]
async fn a_clock_turned_back_makes_no_expired_token_good() {
    let node = Node::knowing(&[("k", &P256)]);
    let old = P256.token("ES256", "k", &claims());
    assert!(node.via(&old).is_some());
    // The cloud signs something later: time has passed, whatever the node's clock says.
    let late = with(|c| {
        for (name, at) in [("iat", 0), ("nbf", 0), ("exp", 3600)] {
            c[name] = (NOW + 86_400 + at).into();
        }
    });
    let late = P256.token("ES256", "k", &late);
    node.review(
        &late,
        json!({"authenticated": true, "user": {"username": WEB}, "audiences": [ISSUER]}),
    );
    let node = node.restart().await;
    for now in [NOW, 0] {
        let verdict = node.tokens.verify(&old, now);
        assert_eq!(verdict, Verdict::Refused(Refusal::Expired), "at {now}");
        // And a node that starts in the past takes what is good.
        assert!(
            matches!(node.tokens.verify(&late, now), Verdict::Known(_)),
            "at {now}"
        );
    }
}

/// Of an identity provider whose clock is wrong, or that signs whatever its user asks for: its token is good by the cloud's word, and
/// says nothing of the time.
#[tokio::test]
async fn a_token_of_another_issuer_does_not_move_the_clock() {
    let node = Node::knowing(&[("k", &P256)]);
    let pods = P256.token("ES256", "k", &claims());
    let foreign = with(|c| {
        c["iss"] = "https://login.example.com".into();
        c["sub"] = "jane".into();
        for (name, at) in [("iat", 0), ("nbf", 0), ("exp", 3600)] {
            c[name] = (NOW + 10 * 365 * 86_400 + at).into();
        }
    });
    let foreign = P256.token("ES256", "x", &foreign);
    let told = json!({"authenticated": true, "user": {"username": "jane"}, "audiences": [ISSUER]});
    node.review(&foreign, told);
    assert!(node.via(&pods).is_some());
    assert!(node.restart().await.via(&pods).is_some());
}

#[tokio::test]
async fn rights_of_a_token_are_its_users_once_the_user_is_known() {
    let node = Node::new();
    let (first, second) = (
        P256.token("ES256", "k", &claims()),
        P256.token("ES256", "k", &with(|c| c["jti"] = "2".into())),
    );
    let bearer = node.tokens.caller(&first, NOW);
    assert_eq!(bearer, Caller::Bearer(identity::hash(&first)));
    let maps = Query::all(Gvr::new("", "v1", "configmaps"), "default");
    node.cache.accept_bearer(&bearer);
    node.cache.list_learner(&bearer, &maps).finish();
    let learn = |caller: &Caller| {
        let page = r#"{"apiVersion":"v1","kind":"ConfigMapList","metadata":{"resourceVersion":"7"},"items":[]}"#;
        let mut learner = node.cache.list_learner(caller, &maps);
        learner
            .page(yurt_wire::list::split(&page.into(), yurt_wire::Encoding::Json).expect("a list"));
        learner.finish();
    };
    learn(&bearer);
    assert!(node.cache.may_read(&bearer, &maps));
    let told = json!({"authenticated": true, "user": {"username": WEB}, "audiences": [ISSUER]});
    node.review(&first, told.clone());
    let user = node.tokens.caller(&first, NOW);
    assert_eq!(user, Caller::User(WEB.into()));
    assert!(node.cache.may_read(&user, &maps));

    // The next token of the same user has them, the one of another user has not; the cloud's no to one token takes nothing away.
    node.review(&second, told);
    node.tokens.deny(&first, NOW);
    let node = node.restart().await;
    assert_eq!(node.tokens.caller(&second, NOW), user);
    assert!(node.cache.may_read(&user, &maps));
    let other = Caller::User("system:serviceaccount:default:other".into());
    assert!(!node.cache.may_read(&other, &maps));
    assert!(
        !node
            .cache
            .may_read(&node.tokens.caller("unheard", NOW), &maps)
    );
}
