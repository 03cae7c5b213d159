//! JSON web tokens as service accounts carry them (RFC 7515 compact form, RFC 7519 claims). Pure: who signed a token is for
//! [`super::keys`] to say, whether it holds now for [`Claims::check`].

use super::{Refusal, account_user, user::User};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize, de};
use std::fmt;

/// Longest token that is looked at.
pub const MAX_TOKEN: usize = 32 << 10;
/// How far the node's clock may be off, in seconds: tokens are good for this much longer, and this much earlier, than they
/// say. As kube-apiserver.
pub const LEEWAY: i64 = 60;
/// Audiences of one token.
const MAX_AUDIENCES: usize = 64;

/// How a token is signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Algorithm {
    Rs256,
    Rs384,
    Rs512,
    Es256,
    Es384,
    EdDsa,
}

impl Algorithm {
    /// By its name in RFC 7518. Never `none`, nothing symmetric; ES512 is left out because `ring` has no P-521.
    pub fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "RS256" => Self::Rs256,
            "RS384" => Self::Rs384,
            "RS512" => Self::Rs512,
            "ES256" => Self::Es256,
            "ES384" => Self::Es384,
            "EdDSA" => Self::EdDsa,
            _ => return None,
        })
    }
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    #[serde(default)]
    kid: Option<String>,
    /// Extensions that must be understood: none are.
    #[serde(default)]
    crit: Option<de::IgnoredAny>,
}

/// Name and uid of an object that a token is bound to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reference {
    /// Name.
    pub name: String,
    /// Uid, `""` when not said.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub uid: String,
}

/// What a service account's token is bound to (the claim `kubernetes.io`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bound {
    /// Namespace of all but the node.
    pub namespace: String,
    /// The account.
    pub serviceaccount: Reference,
    /// The pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<Reference>,
    /// The node of the pod, or the node itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<Reference>,
}

/// What a token says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    /// Issuer.
    pub iss: String,
    /// The user name; for service accounts `system:serviceaccount:NAMESPACE:NAME`.
    pub sub: String,
    /// Audiences.
    #[serde(default, deserialize_with = "one_or_more")]
    pub aud: Vec<String>,
    /// Expiry, seconds since the epoch.
    #[serde(deserialize_with = "seconds")]
    pub exp: i64,
    /// Not before.
    #[serde(
        default,
        deserialize_with = "some_seconds",
        skip_serializing_if = "Option::is_none"
    )]
    pub nbf: Option<i64>,
    /// Issued at.
    #[serde(
        default,
        deserialize_with = "some_seconds",
        skip_serializing_if = "Option::is_none"
    )]
    pub iat: Option<i64>,
    /// Unique id.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub jti: String,
    /// What it is bound to.
    #[serde(
        rename = "kubernetes.io",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    pub kubernetes: Option<Bound>,
}

impl Claims {
    /// Whether the token holds at a time (seconds since the epoch).
    pub fn check(&self, now: i64) -> Result<(), Refusal> {
        if now >= self.exp.saturating_add(LEEWAY) {
            return Err(Refusal::Expired);
        }
        let from = self.nbf.into_iter().chain(self.iat).max();
        if from.is_some_and(|from| now < from.saturating_sub(LEEWAY)) {
            return Err(Refusal::NotYet);
        }
        Ok(())
    }

    /// The user the token speaks for: a service account, named alike in `sub` and in what the token is bound to.
    pub fn user(&self) -> Result<User, Refusal> {
        let bound = self.kubernetes.as_ref().ok_or(Refusal::Malformed)?;
        let account = &bound.serviceaccount;
        let mut user = account_user(&bound.namespace, &account.name, &account.uid);
        let plain = |name: &str| !name.is_empty() && !name.contains([':', '/']);
        if user.name != self.sub || !plain(&bound.namespace) || !plain(&account.name) {
            return Err(Refusal::Malformed);
        }
        let mut extra = |key: &str, value: String| {
            user.extra
                .insert(format!("authentication.kubernetes.io/{key}"), vec![value]);
        };
        if !self.jti.is_empty() {
            extra("credential-id", format!("JTI={}", self.jti));
        }
        for (what, reference) in [("pod", &bound.pod), ("node", &bound.node)] {
            if let Some(reference) = reference {
                extra(&format!("{what}-name"), reference.name.clone());
                if !reference.uid.is_empty() {
                    extra(&format!("{what}-uid"), reference.uid.clone());
                }
            }
        }
        Ok(user)
    }
}

/// A token taken apart, not yet proven by anybody.
#[derive(Clone, Debug)]
pub struct Unproven<'a> {
    /// How it says it is signed.
    pub algorithm: Algorithm,
    /// The key it says it is signed by.
    pub kid: Option<String>,
    /// What is signed.
    pub signed: &'a [u8],
    /// The signature.
    pub signature: Vec<u8>,
    claims: Claims,
}

impl<'a> Unproven<'a> {
    /// Takes a token apart. `None` when it is no JSON web token at all (an opaque one).
    pub fn parse(token: &'a str) -> Option<Result<Self, Refusal>> {
        if token.len() > MAX_TOKEN {
            return Some(Err(Refusal::TooLong));
        }
        let (signed, signature) = token.rsplit_once('.')?;
        let (header, claims) = signed.split_once('.')?;
        if claims.contains('.') {
            return None;
        }
        let header = URL_SAFE_NO_PAD.decode(header).ok()?;
        if header.first() != Some(&b'{') {
            return None;
        }
        Some(Self::of_parts(signed, &header, claims, signature))
    }

    fn of_parts(
        signed: &'a str,
        header: &[u8],
        claims: &str,
        signature: &str,
    ) -> Result<Self, Refusal> {
        let header: Header = serde_json::from_slice(header).map_err(|_| Refusal::Malformed)?;
        let algorithm = Algorithm::parse(&header.alg).ok_or(Refusal::Algorithm)?;
        if header.crit.is_some() {
            return Err(Refusal::Malformed);
        }
        let decode = |part: &str| URL_SAFE_NO_PAD.decode(part).map_err(|_| Refusal::Malformed);
        let claims: Claims =
            serde_json::from_slice(&decode(claims)?).map_err(|_| Refusal::Malformed)?;
        Ok(Self {
            algorithm,
            kid: header.kid.filter(|kid| !kid.is_empty()),
            signed: signed.as_bytes(),
            signature: decode(signature)?,
            claims,
        })
    }

    /// The issuer it names, to find the keys that could prove it.
    pub fn issuer(&self) -> &str {
        &self.claims.iss
    }

    /// What it says. Only for who has proven the signature, or only believes what speaks against the token.
    pub(super) fn claims(&self) -> &Claims {
        &self.claims
    }
}

/// `aud` is a string or a list of strings.
fn one_or_more<'de, D: de::Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    struct Visitor;
    impl<'de> de::Visitor<'de> for Visitor {
        type Value = Vec<String>;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a string or a list of strings")
        }
        fn visit_str<E: de::Error>(self, one: &str) -> Result<Vec<String>, E> {
            Ok(vec![one.to_owned()])
        }
        fn visit_seq<A: de::SeqAccess<'de>>(self, mut seq: A) -> Result<Vec<String>, A::Error> {
            let mut all = Vec::new();
            while let Some(one) = seq.next_element()? {
                if all.len() >= MAX_AUDIENCES {
                    return Err(de::Error::custom("too many audiences"));
                }
                all.push(one);
            }
            Ok(all)
        }
    }
    deserializer.deserialize_any(Visitor)
}

/// NumericDate (RFC 7519, section 2): a number, perhaps with a fraction.
fn seconds<'de, D: de::Deserializer<'de>>(deserializer: D) -> Result<i64, D::Error> {
    let number = serde_json::Number::deserialize(deserializer)?;
    let whole = number.as_i64().or_else(|| {
        let number = number.as_f64()?;
        // Exact in an f64, and far beyond any date.
        (number.abs() < 1e15).then_some(number as i64)
    });
    whole.ok_or_else(|| de::Error::custom("not a date"))
}

fn some_seconds<'de, D: de::Deserializer<'de>>(deserializer: D) -> Result<Option<i64>, D::Error> {
    seconds(deserializer).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(header: &str, claims: &str) -> String {
        let encode = |text: &str| URL_SAFE_NO_PAD.encode(text);
        format!("{}.{}.{}", encode(header), encode(claims), encode("sig"))
    }

    const CLAIMS: &str = r#"{"iss":"https://a","sub":"system:serviceaccount:ns:sa","aud":"x","exp":2000.5,"nbf":1000,"iat":1000,
        "kubernetes.io":{"namespace":"ns","serviceaccount":{"name":"sa","uid":"u"},"pod":{"name":"p","uid":"pu"}}}"#;

    fn refusal(token: &str) -> Option<Refusal> {
        Unproven::parse(token)?.err()
    }

    #[test]
    fn a_token_is_taken_apart() {
        let text = token(r#"{"alg":"RS256","kid":"k"}"#, CLAIMS);
        let parsed = Unproven::parse(&text).unwrap().unwrap();
        assert_eq!(
            (parsed.algorithm, parsed.kid.as_deref(), parsed.issuer()),
            (Algorithm::Rs256, Some("k"), "https://a")
        );
        let claims = parsed.claims();
        assert_eq!(
            (claims.exp, claims.aud.as_slice()),
            (2000, &["x".to_owned()][..])
        );
        let user = claims.user().unwrap();
        assert_eq!(user.name, "system:serviceaccount:ns:sa");
        assert!(
            user.groups
                .contains(&"system:serviceaccounts:ns".to_owned())
        );
        assert_eq!(user.extra["authentication.kubernetes.io/pod-uid"], ["pu"]);
    }

    #[test]
    fn what_is_no_token_is_opaque_and_what_is_a_bad_one_is_refused() {
        for opaque in [
            "",
            "abc",
            "a.b",
            "a.b.c",
            "abcdef.0123456789abcdef",
            "..",
            "é.é.é",
        ] {
            assert!(Unproven::parse(opaque).is_none(), "{opaque}");
        }
        for (header, why) in [
            (r#"{"alg":"none"}"#, Refusal::Algorithm),
            (r#"{"alg":"None"}"#, Refusal::Algorithm),
            (r#"{"alg":"HS256","kid":"k"}"#, Refusal::Algorithm),
            (r#"{"alg":"ES512"}"#, Refusal::Algorithm),
            (r#"{"alg":""}"#, Refusal::Algorithm),
            (r#"{"kid":"k"}"#, Refusal::Malformed),
            (r#"{"alg":"RS256","alg":"none"}"#, Refusal::Malformed),
            (
                r#"{"alg":"RS256","crit":["b64"],"b64":false}"#,
                Refusal::Malformed,
            ),
            ("{", Refusal::Malformed),
        ] {
            assert_eq!(refusal(&token(header, CLAIMS)), Some(why), "{header}");
        }
        let many = format!(
            r#"{{"iss":"a","sub":"b","exp":1,"aud":[{}"x"]}}"#,
            r#""x","#.repeat(MAX_AUDIENCES)
        );
        for claims in [
            "[]",
            r#"{"iss":"a","sub":"b"}"#,
            r#"{"iss":"a","sub":"b","exp":"1"}"#,
            r#"{"iss":"a","sub":"b","exp":1e300}"#,
            r#"{"iss":"a","sub":"b","exp":1,"exp":9}"#,
            r#"{"iss":"a","sub":"b","exp":1,"nbf":null}"#,
            r#"{"iss":"a","sub":"b","exp":1,"aud":{}}"#,
            &many,
        ] {
            assert_eq!(
                refusal(&token(r#"{"alg":"RS256"}"#, claims)),
                Some(Refusal::Malformed),
                "{claims}"
            );
        }
        let long = token(r#"{"alg":"RS256"}"#, &" ".repeat(MAX_TOKEN));
        assert_eq!(refusal(&long), Some(Refusal::TooLong));
    }

    #[test]
    fn time_is_checked_with_a_small_leeway() {
        let text = token(r#"{"alg":"RS256"}"#, CLAIMS);
        let parsed = Unproven::parse(&text).unwrap().unwrap();
        let check = |now| parsed.claims().check(now);
        assert_eq!(check(1000 - LEEWAY - 1), Err(Refusal::NotYet));
        assert_eq!(check(1000 - LEEWAY), Ok(()));
        assert_eq!(check(2000 + LEEWAY - 1), Ok(()));
        assert_eq!(check(2000 + LEEWAY), Err(Refusal::Expired));
        assert_eq!(check(i64::MIN), Err(Refusal::NotYet));
        assert_eq!(check(i64::MAX), Err(Refusal::Expired));
    }

    #[test]
    fn a_user_is_a_service_account_named_twice_alike() {
        let claims = |sub: &str, namespace: &str, name: &str| Claims {
            iss: "a".into(),
            sub: sub.into(),
            aud: Vec::new(),
            exp: 1,
            nbf: None,
            iat: None,
            jti: String::new(),
            kubernetes: Some(Bound {
                namespace: namespace.into(),
                serviceaccount: Reference {
                    name: name.into(),
                    uid: String::new(),
                },
                ..Bound::default()
            }),
        };
        assert!(claims("system:serviceaccount:a:b", "a", "b").user().is_ok());
        for (sub, namespace, name) in [
            ("system:admin", "a", "b"),
            ("system:serviceaccount:a:b", "a", "c"),
            ("system:serviceaccount:a:b:c", "a", "b:c"),
            ("system:serviceaccount::b", "", "b"),
        ] {
            assert_eq!(claims(sub, namespace, name).user(), Err(Refusal::Malformed));
        }
        let bare = Claims {
            kubernetes: None,
            ..claims("system:serviceaccount:a:b", "a", "b")
        };
        assert_eq!(bare.user(), Err(Refusal::Malformed));
    }
}
