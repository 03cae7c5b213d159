//! Tokens that the cloud issued to pods of this node (`serviceaccounts/NAME/token`), as they are kept for offline times; and
//! what such a request asks for. Pure.

use super::{
    jwt::{Bound, Reference, Unproven},
    user::hex,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use yurt_wire::{Status, status::Cause};

/// Life of a token in seconds: the least that may be asked for, what is given unasked, the most. As kube-apiserver.
pub const MIN_SECONDS: i64 = 600;
const DEFAULT_SECONDS: i64 = 3600;
const MAX_SECONDS: i64 = 1 << 32;
/// Audiences of one request.
const MAX_AUDIENCES: usize = 64;

/// What a TokenRequest asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wish {
    /// Namespace of the service account.
    pub namespace: String,
    /// Its name.
    pub account: String,
    /// Sorted; none: the API server's own.
    pub audiences: Vec<String>,
    /// Life, in seconds.
    pub seconds: i64,
    /// What it is to be bound to: kind, name and uid.
    pub bound: Option<(String, Reference)>,
}

impl Wish {
    /// Reads the body of a request for a token of `namespace/account`.
    pub fn parse(namespace: &str, account: &str, body: &Value) -> Result<Self, Box<Status>> {
        let spec = &body["spec"];
        let seconds = match &spec["expirationSeconds"] {
            Value::Null => DEFAULT_SECONDS,
            value => value.as_i64().unwrap_or(0),
        };
        if !(MIN_SECONDS..=MAX_SECONDS).contains(&seconds) {
            let cause = Cause::invalid(
                "spec.expirationSeconds",
                &seconds.into(),
                "may not specify a duration less than 10 minutes or over 2^32 seconds",
            );
            return Err(Box::new(Status::invalid(
                "authentication.k8s.io",
                "TokenRequest",
                account,
                vec![cause],
            )));
        }
        let mut audiences = strings(&spec["audiences"]);
        if audiences.len() > MAX_AUDIENCES {
            return Err(Box::new(Status::bad_request("too many audiences")));
        }
        audiences.sort_unstable();
        audiences.dedup();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let bound = &spec["boundObjectRef"];
        Ok(Self {
            namespace: namespace.to_owned(),
            account: account.to_owned(),
            audiences,
            seconds,
            bound: bound.is_object().then(|| {
                let reference = Reference {
                    name: text(&bound["name"]),
                    uid: text(&bound["uid"]),
                };
                (text(&bound["kind"]), reference)
            }),
        })
    }

    /// The wish for a token that the API server takes, for the pod that another token is bound to.
    pub fn for_api(bound: &Bound) -> Option<Self> {
        Some(Self {
            namespace: bound.namespace.clone(),
            account: bound.serviceaccount.name.clone(),
            audiences: Vec::new(),
            seconds: DEFAULT_SECONDS,
            bound: Some(("Pod".into(), bound.pod.clone()?)),
        })
    }

    /// The request for it.
    pub fn to_json(&self) -> Value {
        let mut spec = json!({"audiences": self.audiences, "expirationSeconds": self.seconds});
        if let Some((kind, reference)) = &self.bound {
            spec["boundObjectRef"] = json!({
                "apiVersion": "v1", "kind": kind, "name": reference.name, "uid": reference.uid,
            });
        }
        json!({
            "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
            "metadata": {"name": self.account, "namespace": self.namespace}, "spec": spec,
        })
    }

    /// Under what key what was given is kept: the same for every request that the same token answers.
    pub fn key(&self) -> String {
        let (kind, reference) = match &self.bound {
            Some((kind, reference)) => (kind.as_str(), reference.clone()),
            None => ("", Reference::default()),
        };
        let parts = json!([
            self.namespace,
            self.account,
            self.audiences,
            kind,
            reference.name,
            reference.uid
        ]);
        hex(&Sha256::digest(parts.to_string())[..16])
    }
}

/// The strings of a list.
pub(super) fn strings(list: &Value) -> Vec<String> {
    let list = list.as_array().into_iter().flatten();
    list.filter_map(|item| item.as_str().map(str::to_owned))
        .collect()
}

/// A token as the cloud gave it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Issued {
    /// The token.
    pub token: String,
    /// The audiences it has.
    pub audiences: Vec<String>,
    /// The life it was given, in seconds.
    pub seconds: i64,
    /// When it ends, seconds since the epoch. A kubelet is told an earlier end (its token's life is extended to a year, so that
    /// who does not read it anew goes on working); what counts is what the token itself says.
    pub until: i64,
    /// When it began, seconds since the epoch; 0 when it does not say.
    #[serde(default)]
    pub since: i64,
    /// Name of the user it speaks for.
    pub user: String,
    /// Namespace and name of the service account, as in the request.
    pub namespace: String,
    /// See [`Self::namespace`].
    pub account: String,
    /// Uid of the account, when the token says so.
    #[serde(default)]
    pub uid: String,
}

impl Issued {
    /// Reads the cloud's answer to a wish; `None` when there is no token in it that can be kept.
    pub fn of_answer(wish: &Wish, answer: &Value) -> Option<Self> {
        let token = answer["status"]["token"].as_str()?;
        let expires = answer["status"]["expirationTimestamp"].as_str()?;
        let told: jiff::Timestamp = expires.parse().ok()?;
        let mut issued = Self {
            token: token.to_owned(),
            audiences: strings(&answer["spec"]["audiences"]),
            seconds: answer["spec"]["expirationSeconds"]
                .as_i64()
                .unwrap_or(wish.seconds),
            until: told.as_second(),
            since: 0,
            user: super::account_name(&wish.namespace, &wish.account),
            namespace: wish.namespace.clone(),
            account: wish.account.clone(),
            uid: String::new(),
        };
        // An API server may give an opaque token; a web token must say the same as the answer.
        if let Some(parsed) = Unproven::parse(token) {
            let parsed = parsed.ok()?;
            let claims = parsed.claims();
            if claims.sub != issued.user {
                return None;
            }
            issued.until = claims.exp;
            issued.since = claims.iat.or(claims.nbf).unwrap_or(0);
            if let Some(bound) = &claims.kubernetes {
                issued.uid.clone_from(&bound.serviceaccount.uid);
            }
        }
        Some(issued)
    }

    /// The answer that gives it again.
    pub fn to_json(&self, wish: &Wish, now: i64) -> Value {
        let until = self.until.min(now.saturating_add(self.seconds));
        answer(wish, &self.audiences, self.seconds, &self.token, until)
    }
}

/// The answer to a wish: a token that lives `seconds`, until `until` (seconds since the epoch).
pub fn answer(wish: &Wish, audiences: &[String], seconds: i64, token: &str, until: i64) -> Value {
    let expires =
        jiff::Timestamp::from_second(until).map_or_else(|_| String::new(), |at| at.to_string());
    let mut answer = wish.to_json();
    answer["metadata"]["creationTimestamp"] = Value::Null;
    answer["spec"]["audiences"] = json!(audiences);
    answer["spec"]["expirationSeconds"] = seconds.into();
    answer["status"] = json!({"token": token, "expirationTimestamp": expires});
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(spec: Value) -> Value {
        json!({"kind": "TokenRequest", "spec": spec})
    }

    #[test]
    fn wishes_are_read() {
        let wish = |spec: Value| Wish::parse("ns", "sa", &body(spec));
        let pod = json!({"audiences": ["b", "a", "b"], "expirationSeconds": 3607,
            "boundObjectRef": {"kind": "Pod", "apiVersion": "v1", "name": "p", "uid": "u"}});
        let one = wish(pod.clone()).unwrap();
        assert_eq!(one.audiences, ["a", "b"]);
        assert_eq!(one.seconds, 3607);
        // Written and read it is the same; its key does not depend on the life asked for.
        assert_eq!(Wish::parse("ns", "sa", &one.to_json()).unwrap(), one);
        let mut longer = pod.clone();
        longer["expirationSeconds"] = 7200.into();
        assert_eq!(wish(longer).unwrap().key(), one.key());
        let mut other = pod;
        other["boundObjectRef"]["uid"] = "v".into();
        assert_ne!(wish(other).unwrap().key(), one.key());
        assert_eq!(wish(json!({})).unwrap().seconds, DEFAULT_SECONDS);
        for seconds in [
            json!(599),
            json!(0),
            json!(-1),
            json!("x"),
            json!(1.5),
            json!(1_i64 << 33),
        ] {
            let refused = wish(json!({"expirationSeconds": seconds})).unwrap_err();
            assert_eq!(refused.code(), 422);
        }
        let many: Vec<String> = (0..100).map(|i| i.to_string()).collect();
        assert_eq!(wish(json!({"audiences": many})).unwrap_err().code(), 400);
    }

    #[test]
    fn an_answer_is_kept_when_it_is_one() {
        let wish = Wish::parse("ns", "sa", &body(json!({}))).unwrap();
        let told = |token: &str, expires: &str| {
            json!({"spec": {"audiences": ["api"], "expirationSeconds": 3600},
                "status": {"token": token, "expirationTimestamp": expires}})
        };
        let kept = Issued::of_answer(&wish, &told("opaque", "1970-01-01T01:00:00Z")).unwrap();
        assert_eq!((kept.until, kept.audiences.len()), (3600, 1));
        let again = kept.to_json(&wish, 1000);
        assert_eq!(again["status"]["token"], "opaque");
        assert_eq!(
            again["status"]["expirationTimestamp"],
            "1970-01-01T01:00:00Z"
        );
        assert!(Issued::of_answer(&wish, &told("opaque", "tomorrow")).is_none());
        assert!(Issued::of_answer(&wish, &json!({})).is_none());
    }
}
