//! Who may ask for upgrades: the node's own processes, whoever has the owner's token, and users of the cluster who may change pods
//! there. Everybody else is told why not.

use super::cloud::{As, JSON, call};
use crate::{caller::Caller, identity, offline::now, processes::Stranger, proxy::Hub, route::Mode};
use http::{HeaderMap, Method, StatusCode, header};
use ring::rand::{SecureRandom, SystemRandom};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::{
    io::{self, Read, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};
use yurt_transport::Peer;

/// What owner's tokens begin with: one that is wrong is never taken for a token of the cluster, and sent there.
const PREFIX: &str = "yurt-ota-";
/// Longest file with a token.
const MOST_FILE: u64 = 16 << 10;
const REVIEWS: &str = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
const SELF_REVIEWS: &str = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Asker {
    /// A process of the node on its socket: the owner themselves.
    Socket,
    /// A process of the node on the admin port.
    Process,
    /// Whoever has the owner's token.
    Token,
    /// A process on the node that proved nothing, because the owner lets them.
    Anonymous,
    /// A user of the cluster.
    User(User),
}

/// A user of the cluster.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct User {
    token: String,
    /// `UserInfo`, when it is known.
    info: Option<Value>,
    /// Whether the cloud itself said that they may.
    pub(super) verified: bool,
}

impl std::fmt::Debug for User {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "User({:?})", self.name())
    }
}

impl User {
    fn name(&self) -> &str {
        let name = self.info.as_ref().and_then(|info| info.get("username"));
        name.and_then(Value::as_str).unwrap_or("of an unknown name")
    }

    pub(super) fn token(&self) -> &str {
        &self.token
    }

    pub(super) fn info(&self) -> Option<&Value> {
        self.info.as_ref()
    }
}

impl Asker {
    /// In words.
    pub(super) fn told(&self) -> String {
        match self {
            Self::Socket => "the owner, on the node's socket".into(),
            Self::Process => "a process of the node".into(),
            Self::Token => "the owner's token".into(),
            Self::Anonymous => "somebody on the node".into(),
            Self::User(user) => format!("user {}", user.name()),
        }
    }
}

/// What is asked for, as far as rights go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Right<'a> {
    /// To see pods and upgrades.
    See,
    /// To have a pod changed.
    Change {
        /// Its namespace.
        namespace: &'a str,
        /// Its name.
        pod: &'a str,
    },
    /// To say yes in the owner's name.
    Confirm,
}

/// Why somebody is turned away.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Denied {
    #[error("Unauthorized: {0}; bring a bearer token: the owner's, or one of the cluster's")]
    Stranger(#[from] Stranger),
    #[error(
        "Unauthorized: this comes from another machine; bring a bearer token: the owner's, or one of the cluster's"
    )]
    Remote,
    #[error("it cannot be found out just now which process calls: {0}")]
    Unproven(String),
    #[error("Unauthorized: the Authorization header is not understood; bring a bearer token")]
    Malformed,
    #[error("Unauthorized: this is not the owner's token")]
    WrongToken,
    #[error("Unauthorized: {0}")]
    UnknownUser(&'static str),
    #[error("{0}")]
    NoRight(String),
    #[error("only the owner confirms upgrades, on the node's socket (yurt node upgrade confirm)")]
    NotTheOwner,
    #[error("this node is a tenant's: tokens of the cluster say nothing about its upgrades")]
    Tenant,
    #[error("the cloud did not say whether this is allowed: {0}")]
    Unanswered(String),
}

impl Denied {
    pub(crate) fn status(&self) -> StatusCode {
        match self {
            Self::Stranger(_)
            | Self::Remote
            | Self::Malformed
            | Self::WrongToken
            | Self::UnknownUser(_) => StatusCode::UNAUTHORIZED,
            Self::NoRight(_) | Self::NotTheOwner | Self::Tenant => StatusCode::FORBIDDEN,
            Self::Unproven(_) | Self::Unanswered(_) => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// For metrics.
    pub(crate) fn label(&self) -> &'static str {
        match self {
            Self::Stranger(_) | Self::Remote => "no_credentials",
            Self::Malformed | Self::WrongToken | Self::UnknownUser(_) => "bad_token",
            Self::NoRight(_) | Self::NotTheOwner | Self::Tenant => "no_right",
            Self::Unproven(_) | Self::Unanswered(_) => "unknown",
        }
    }
}

/// The owner's token, in a file that only root and the hub's user read.
#[derive(Debug)]
pub(crate) struct OwnerToken {
    path: PathBuf,
}

impl OwnerToken {
    /// The token of a file; one is made where there is none. Without a file that can be read nobody has the owner's token.
    pub(super) fn open(path: PathBuf) -> Self {
        let this = Self { path };
        match this.make() {
            Ok(true) => {
                tracing::info!(file = %this.path.display(), "made a token for the owner's upgrades")
            }
            Ok(false) => {}
            Err(error) => {
                tracing::warn!(file = %this.path.display(), %error, "there is no token for the owner's upgrades")
            }
        }
        this
    }

    fn make(&self) -> io::Result<bool> {
        match std::fs::metadata(&self.path) {
            Ok(meta) => {
                if meta.permissions().mode() & 0o077 != 0 {
                    tracing::warn!(
                        file = %self.path.display(),
                        "others than its owner can read the token for upgrades: chmod 600"
                    );
                }
                return Ok(false);
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let mut secret = [0u8; 32];
        SystemRandom::new()
            .fill(&mut secret)
            .map_err(|_| io::Error::other("no randomness"))?;
        let token = format!("{PREFIX}{}\n", super::pod::digest(&secret));
        if let Some(directory) = self.path.parent() {
            std::fs::create_dir_all(directory)?;
        }
        let part = self.path.with_extension("part");
        let _ = std::fs::remove_file(&part);
        let mut options = std::fs::OpenOptions::new();
        let mut file = options
            .create_new(true)
            .write(true)
            .mode(0o600)
            .open(&part)?;
        file.write_all(token.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&part, &self.path)?;
        Ok(true)
    }

    /// Whether a token is the owner's. The file is read each time: another token counts from the moment it is there.
    fn is(&self, token: &str) -> bool {
        let Some(own) = read_token(&self.path) else {
            return false;
        };
        // Equal digests, compared in a time that tells nothing of the token.
        Sha256::digest(own.as_bytes()) == Sha256::digest(token.as_bytes())
    }
}

/// A token that a file holds; `None` when it holds none.
pub(super) fn read_token(path: &Path) -> Option<String> {
    let mut text = String::new();
    std::fs::File::open(path)
        .ok()?
        .take(MOST_FILE)
        .read_to_string(&mut text)
        .ok()?;
    let token = text.trim();
    (!token.is_empty()).then(|| token.to_owned())
}

/// Finds out who asks. Whether they may, [`authorize`] says.
pub(crate) async fn authenticate(
    hub: &Hub,
    peer: Option<&Peer>,
    headers: &HeaderMap,
) -> Result<Asker, Denied> {
    if headers.contains_key(header::AUTHORIZATION) {
        let token = identity::token(headers).ok_or(Denied::Malformed)?;
        if hub.ota.owner.is(&token) {
            return Ok(Asker::Token);
        }
        if token.starts_with(PREFIX) {
            return Err(Denied::WrongToken);
        }
        return Ok(Asker::User(User {
            token,
            info: None,
            verified: false,
        }));
    }
    let peer = peer.ok_or(Denied::Remote)?;
    let on_socket = peer.process.is_some();
    if !on_socket && !peer.addr.ip().to_canonical().is_loopback() {
        return Err(Denied::Remote);
    }
    let proof = hub.gate.prove(peer).await;
    match proof {
        Ok(Ok(())) if on_socket => Ok(Asker::Socket),
        Ok(Ok(())) => Ok(Asker::Process),
        _ if hub.config.ota.anonymous_loopback && !on_socket => Ok(Asker::Anonymous),
        Ok(Err(stranger)) => Err(stranger.into()),
        Err(error) => Err(Denied::Unproven(error.to_string())),
    }
}

/// Whether who asks may.
pub(crate) async fn authorize(
    hub: &Hub,
    asker: &mut Asker,
    right: Right<'_>,
) -> Result<(), Denied> {
    match (asker, right) {
        (Asker::Socket, _) => Ok(()),
        (_, Right::Confirm) => Err(Denied::NotTheOwner),
        (Asker::Process | Asker::Token | Asker::Anonymous, _) => Ok(()),
        (Asker::User(_), _) if hub.tenant.is_some() => Err(Denied::Tenant),
        (Asker::User(user), right) => authorize_user(hub, user, right).await,
    }
}

/// Any of these verbs on pods is enough.
fn verbs(right: Right<'_>) -> &'static [&'static str] {
    match right {
        Right::See => &["list"],
        Right::Change { .. } | Right::Confirm => &["update", "patch"],
    }
}

/// What a verb is to be allowed on: the pod, or (`wide`) every pod of its namespace.
fn attributes(right: Right<'_>, verb: &str, wide: bool) -> Value {
    let mut attributes = json!({"verb": verb, "version": "v1", "resource": "pods"});
    if let Right::Change { namespace, pod } = right {
        attributes["namespace"] = namespace.into();
        if !wide {
            attributes["name"] = pod.into();
        }
    }
    attributes
}

/// The question about a user, as others ask it.
fn spec(info: &Value, attributes: Value) -> Value {
    let mut spec = json!({"resourceAttributes": attributes});
    for (to, from) in [
        ("user", "username"),
        ("uid", "uid"),
        ("groups", "groups"),
        ("extra", "extra"),
    ] {
        if let Some(value) = info.get(from) {
            spec[to] = value.clone();
        }
    }
    spec
}

fn lacks(name: &str, right: Right<'_>) -> Denied {
    let verbs = verbs(right).join(" or ");
    let where_ = match right {
        Right::Change { namespace, pod } => format!("pod {namespace}/{pod}"),
        Right::See | Right::Confirm => "pods of all namespaces".into(),
    };
    Denied::NoRight(format!("user {name} may not {verbs} {where_}"))
}

async fn authorize_user(hub: &Hub, user: &mut User, right: Right<'_>) -> Result<(), Denied> {
    user.info = hub.tokens.user_of(&user.token, now());
    if hub.mode() == Mode::Online {
        match ask_as(hub, user, right).await {
            Ok(allowed) => {
                user.verified = allowed.is_some();
                // Their name is for the record, and for times without the cloud, which just accepted the token.
                if allowed.is_some() && user.info.is_none() {
                    hub.vouch(&user.token).await;
                    user.info = hub.tokens.user_of(&user.token, now());
                }
                remember(hub, user, right, allowed).await;
                return allowed.map(|_| ()).ok_or_else(|| lacks(user.name(), right));
            }
            Err(denied) => match hub.mode() {
                Mode::Online => return Err(denied),
                // The link just went: as if it had been asked a moment later.
                Mode::Offline => {}
            },
        }
    }
    let Some(info) = &user.info else {
        return Err(Denied::UnknownUser(
            "the cloud is away, and this node does not know whose the token is",
        ));
    };
    let caller: Caller = hub.tokens.caller(&user.token, now());
    let (namespace, name) = match right {
        Right::Change { namespace, pod } => (namespace, Some(pod)),
        Right::See | Right::Confirm => ("", None),
    };
    let allowed = verbs(right).iter().any(|verb| {
        let told = |wide| {
            hub.tokens
                .access(&spec(info, attributes(right, verb, wide)))
                .is_some()
        };
        let known = hub
            .cache
            .permits(&caller, verb, ("", "pods"), namespace, name);
        known || told(false) || told(true)
    });
    allowed
        .then_some(())
        .ok_or_else(|| lacks(user.name(), right))
}

/// Asks the cloud as the user, who may ask for themselves: by which verb it is allowed.
async fn ask_as(hub: &Hub, user: &User, right: Right<'_>) -> Result<Option<&'static str>, Denied> {
    for verb in verbs(right) {
        if ask_one(hub, user, attributes(right, verb, false)).await? {
            return Ok(Some(verb));
        }
    }
    Ok(None)
}

async fn ask_one(hub: &Hub, user: &User, attributes: Value) -> Result<bool, Denied> {
    let review = json!({
        "apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": attributes},
    });
    let bearer = As::Bearer(user.token.clone());
    let answer = call(
        hub,
        &bearer,
        Method::POST,
        SELF_REVIEWS,
        JSON,
        Some(&review),
    )
    .await
    .map_err(|error| Denied::Unanswered(error.to_string()))?;
    match answer.status {
        status if status.is_success() => {
            Ok(answer.body.pointer("/status/allowed") == Some(&Value::Bool(true)))
        }
        StatusCode::UNAUTHORIZED => {
            Err(Denied::UnknownUser("the cloud does not accept this token"))
        }
        _ => Err(Denied::Unanswered(answer.message())),
    }
}

/// Remembers what the cloud said, for when it is away: of this pod, and of all of its namespace, because the next one has another
/// name. A refusal takes back what was allowed.
async fn remember(hub: &Hub, user: &User, right: Right<'_>, allowed: Option<&str>) {
    let Some(info) = &user.info else {
        return;
    };
    for verb in verbs(right) {
        let this = allowed == Some(*verb);
        let learn = |wide, allowed| {
            let spec = spec(info, attributes(right, verb, wide));
            hub.tokens.learn_access(&spec, &json!({"allowed": allowed}));
        };
        learn(false, this);
        if matches!(right, Right::Change { .. }) {
            let wide = this && ask_one(hub, user, attributes(right, verb, true)).await == Ok(true);
            learn(true, wide);
        }
    }
}

/// Asks the cloud, as the node, whether a user may still have a pod changed: for what was asked for while it was away.
pub(super) async fn still_may(
    hub: &Hub,
    info: &Value,
    namespace: &str,
    pod: &str,
) -> Result<bool, String> {
    let right = Right::Change { namespace, pod };
    for verb in verbs(right) {
        let review = json!({
            "apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview",
            "spec": spec(info, attributes(right, verb, false)),
        });
        let answer = call(hub, &As::Node, Method::POST, REVIEWS, JSON, Some(&review))
            .await
            .map_err(|error| error.to_string())?;
        if !answer.status.is_success() {
            return Err(answer.message());
        }
        if answer.body.pointer("/status/allowed") == Some(&Value::Bool(true)) {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_owners_token_is_made_once_for_the_owner_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/ota.token");
        let token = OwnerToken::open(path.clone());
        let made = read_token(&path).unwrap();
        assert!(made.starts_with(PREFIX) && made.len() == PREFIX.len() + 64);
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(token.is(&made));
        assert!(!token.is("") && !token.is(PREFIX) && !token.is(&made[..20]));
        let again = OwnerToken::open(path.clone());
        assert!(again.is(&made), "kept over restarts");
        std::fs::write(&path, "of-the-site\n").unwrap();
        assert!(token.is("of-the-site") && !token.is(&made));
        // An empty file is nobody's.
        std::fs::write(&path, "\n").unwrap();
        assert!(!token.is("") && !token.is("of-the-site"));
    }

    #[test]
    fn nobody_but_the_socket_confirms() {
        let denied = Denied::NotTheOwner;
        assert_eq!(
            (denied.status(), denied.label()),
            (StatusCode::FORBIDDEN, "no_right")
        );
        let user = User {
            token: "secret".into(),
            info: None,
            verified: false,
        };
        assert!(!format!("{:?}", Asker::User(user)).contains("secret"));
    }
}
