//! Who may do what: which agent a certificate or token is, and which certificates are frontends', peers' or agents'. Pure.

use crate::{AgentHello, directory::Directory};
use serde_json::{Value, json};
use std::{collections::BTreeSet, convert::Infallible, net::IpAddr, str::FromStr};
use yurt_pki::{Identity, Leaf};

/// The user name of a node, before the node's name.
const NODE_USER: &str = "system:node:";
/// The group of nodes.
const NODES: &str = "system:nodes";
/// The organization of OpenYurt's tunnel certificates.
const TUNNEL: &str = "openyurt:yurttunnel";
/// Where a TokenReview says on which node the pod is that a token was given to.
const NODE_OF_TOKEN: &str = "authentication.kubernetes.io/node-name";
/// What an id may be as long as.
const LONGEST_ID: usize = 253;

/// Some bearers of certificates: a common name, `O=` and an organization, or `*` for everybody with a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Bearers {
    /// Everybody whose certificate verifies.
    All,
    /// One user.
    User(String),
    /// All of a group.
    Group(String),
}

impl FromStr for Bearers {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(match (text, text.strip_prefix("O=")) {
            ("*", _) => Self::All,
            (_, Some(group)) => Self::Group(group.to_owned()),
            (user, None) => Self::User(user.strip_prefix("CN=").unwrap_or(user).to_owned()),
        })
    }
}

impl Bearers {
    fn hold(&self, identity: &Identity) -> bool {
        match self {
            Self::All => true,
            Self::User(user) => identity.user == *user,
            Self::Group(group) => identity.groups.contains(group),
        }
    }

    /// Whether one of these is the bearer of a certificate.
    pub fn any(list: &[Self], identity: &Identity) -> bool {
        list.iter().any(|bearers| bearers.hold(identity))
    }
}

/// Why somebody is not let in; told to them.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Refused(pub String);

/// What somebody who calls himself an agent has shown.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shown {
    /// As whom, for people.
    pub identity: String,
    /// Whether it may be any agent.
    any: bool,
    /// Whether its id may be a random one: what konnectivity's agents make up.
    nameless: bool,
    names: BTreeSet<String>,
    addresses: BTreeSet<IpAddr>,
}

impl Shown {
    /// What a certificate shows. `trusted` may be any agent.
    pub fn by_certificate(
        leaf: &Leaf,
        trusted: &[Bearers],
        directory: &dyn Directory,
    ) -> Result<Self, Refused> {
        let Identity { user, groups } = &leaf.identity;
        let is = |group: &str| groups.iter().any(|other| other == group);
        let node = user.strip_prefix(NODE_USER).filter(|_| is(NODES));
        let any = Bearers::any(trusted, &leaf.identity);
        if node.is_none() && !is(TUNNEL) && !any {
            return Err(Refused(format!(
                "a certificate of {user:?} is no agent's: it takes O={TUNNEL}, or CN={NODE_USER}NAME with O={NODES}, or --trusted-agents"
            )));
        }
        let names = leaf.dns.iter().map(String::as_str).chain(node);
        let shown = Self {
            identity: user.clone(),
            any,
            nameless: false,
            names: names.map(str::to_ascii_lowercase).collect(),
            addresses: leaf.ips.iter().copied().collect(),
        };
        Ok(shown.with_nodes(directory))
    }

    /// What the status of a TokenReview shows: a token of this service account, meant for one of these audiences. It may be any
    /// agent, unless the token is bound to a node and the account is not `trusted`.
    pub fn by_token(
        status: &Value,
        account: &ServiceAccount,
        trusted: &[Bearers],
        directory: &dyn Directory,
    ) -> Result<Self, Refused> {
        let refused = |why: String| Err(Refused(why));
        if status["authenticated"] != true {
            let why = status["error"].as_str().unwrap_or("it is not valid");
            return refused(format!("token: {why}"));
        }
        let told = status["audiences"].as_array();
        let told: Vec<_> = told.into_iter().flatten().collect();
        let meant = |wanted: &String| told.iter().any(|audience| *audience == wanted.as_str());
        if !account.audiences.is_empty() && !account.audiences.iter().any(meant) {
            let audiences = account.audiences.join(", ");
            return refused(format!("token: it is not for the audience {audiences}"));
        }
        let user = status["user"]["username"].as_str().unwrap_or_default();
        if user != account.user() {
            return refused(format!("token: it is {user}'s, not {}'s", account.user()));
        }
        let node = status["user"]["extra"][NODE_OF_TOKEN][0].as_str();
        let identity = Identity {
            user: user.to_owned(),
            groups: Vec::new(),
        };
        let shown = Self {
            identity: user.to_owned(),
            any: node.is_none() || Bearers::any(trusted, &identity),
            nameless: true,
            names: node.map(str::to_ascii_lowercase).into_iter().collect(),
            addresses: BTreeSet::new(),
        };
        Ok(shown.with_nodes(directory))
    }

    /// A node's name stands for its addresses, too.
    fn with_nodes(mut self, directory: &dyn Directory) -> Self {
        for node in self.names.iter().filter_map(|name| directory.node(name)) {
            let addresses = node.internal.iter().chain(&node.external);
            self.addresses.extend(addresses.copied());
        }
        self
    }

    /// Whether this may be the agent that it says. The reason names what is not covered.
    pub fn covers(&self, hello: &AgentHello) -> Result<(), Refused> {
        let AgentHello {
            id, identifiers, ..
        } = hello;
        let plain = id.bytes().all(|byte| byte.is_ascii_graphic());
        if id.is_empty() || id.len() > LONGEST_ID || !plain {
            return Err(Refused(format!(
                "the agent's id is empty, longer than {LONGEST_ID} bytes, or not plain text"
            )));
        }
        if self.any {
            return Ok(());
        }
        let uncovered = |what: String| {
            Err(Refused(format!(
                "{what} is not covered by what {} shows (names: {}; addresses: {})",
                self.identity,
                listed(&self.names),
                listed(&self.addresses),
            )))
        };
        let named = |name: &str| {
            let address = name.parse();
            self.names.contains(&name.to_ascii_lowercase())
                || address.is_ok_and(|address| self.addresses.contains(&address))
        };
        let made_up = self.nameless && is_uuid(id);
        if !named(id) && !made_up {
            return uncovered(format!("the agent's id {id}"));
        }
        if let Some(host) = identifiers.hosts.iter().find(|host| !named(host)) {
            return uncovered(format!("host={host}"));
        }
        let mut addresses = identifiers.addresses.iter();
        if let Some(address) = addresses.find(|address| !self.addresses.contains(address)) {
            return uncovered(format!("the address {address}"));
        }
        if let Some((base, bits)) = identifiers.networks.first() {
            return uncovered(format!(
                "cidr={base}/{bits} (only --trusted-agents say networks)"
            ));
        }
        if identifiers.default_route {
            return uncovered("default-route=true (only --trusted-agents say it)".into());
        }
        Ok(())
    }
}

fn listed<T: ToString>(all: &BTreeSet<T>) -> String {
    match all.is_empty() {
        true => "none".to_owned(),
        false => all.iter().map(T::to_string).collect::<Vec<_>>().join(", "),
    }
}

fn is_uuid(text: &str) -> bool {
    text.len() == 36
        && text.bytes().enumerate().all(|(at, byte)| match at {
            8 | 13 | 18 | 23 => byte == b'-',
            _ => byte.is_ascii_hexdigit(),
        })
}

/// Whose tokens let agents in: konnectivity's `--agent-namespace`, `--agent-service-account`, `--authentication-audience`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceAccount {
    /// The namespace.
    pub namespace: String,
    /// The name.
    pub name: String,
    /// Of which a token must be for one; empty: the API server's own.
    pub audiences: Vec<String>,
}

impl ServiceAccount {
    /// Its user name.
    pub fn user(&self) -> String {
        format!("system:serviceaccount:{}:{}", self.namespace, self.name)
    }

    /// The TokenReview that asks about a token.
    pub fn review(&self, token: &str) -> Value {
        json!({
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": {"token": token, "audiences": self.audiences},
        })
    }
}

#[cfg(test)]
mod tests;
