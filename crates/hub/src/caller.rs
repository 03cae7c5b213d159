//! Who is calling, and by which door.

/// The identity a request is answered under.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Caller {
    /// A component of this node without credentials of its own: goes to the cloud with the node's client certificate.
    Node,
    /// Another node of the pool, by its name, proven by its certificate: goes to the cloud with this node's certificate, for what
    /// every node of the pool may read.
    Peer(String),
    /// A bearer whose user name is known for certain: goes to the cloud with its own token and no certificate. Its rights are kept
    /// by user, so that they outlive the token.
    User(String),
    /// A bearer that nobody vouched for yet, by its token's SHA-256 (hex, first 32 digits); goes to the cloud as a user does.
    Bearer(String),
}

impl Caller {
    /// A short stable key (`node`, `p:<node>`, `u:<user>`, `b:<hash>`), as used in cache records and metrics. Slashes and percent
    /// signs of names are escaped, so that a key is one segment.
    pub fn key(&self) -> String {
        match self {
            Self::Node => "node".into(),
            Self::Peer(name) => format!("p:{}", escape(name)),
            Self::User(name) => format!("u:{}", escape(name)),
            Self::Bearer(hash) => format!("b:{hash}"),
        }
    }

    /// The inverse of [`Caller::key`].
    pub fn from_key(key: &str) -> Option<Self> {
        if key == "node" {
            return Some(Self::Node);
        }
        let (kind, name) = key.split_once(':')?;
        match kind {
            "p" => Some(Self::Peer(unescape(name))),
            "u" => Some(Self::User(unescape(name))),
            "b" => Some(Self::Bearer(name.into())),
            _ => None,
        }
    }

    /// Its kind, for metrics.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Node => "node",
            Self::Peer(_) => "peer",
            Self::User(_) => "user",
            Self::Bearer(_) => "bearer",
        }
    }

    /// Whose rights are kept for it: a peer reads with this node's certificate, and so what this node may read.
    pub fn rights(&self) -> &Self {
        match self {
            Self::Peer(_) => &Self::Node,
            caller => caller,
        }
    }

    /// Whether it comes with a token of its own, under which its requests go to the cloud.
    pub fn has_token(&self) -> bool {
        matches!(self, Self::User(_) | Self::Bearer(_))
    }
}

fn escape(name: &str) -> String {
    name.replace('%', "%25").replace('/', "%2F")
}

fn unescape(name: &str) -> String {
    name.replace("%2F", "/").replace("%25", "%")
}

/// The listener that a request came in by. What a caller may do depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Entrance {
    /// Plain text on `--bind-proxy-address`, loopback as a rule: the node's own components.
    Plain,
    /// Plain text on the dummy interface: every process of the node can reach it, those in pods too.
    Dummy,
    /// The Unix socket in `--root-dir`, for root and the hub's own user.
    Local,
    /// TLS on the dummy interface or `--bind-proxy-address`.
    Secure,
    /// TLS on the node's address: the other nodes of the pool.
    Pool,
}

impl Entrance {
    /// Its name in logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Dummy => "dummy",
            Self::Local => "local",
            Self::Secure => "secure",
            Self::Pool => "pool",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_read_back() {
        for caller in [
            Caller::Node,
            Caller::Peer("edge-2".into()),
            Caller::User("system:serviceaccount:a:b".into()),
            Caller::User("https://idp/u%2F1".into()),
            Caller::Bearer("ab".into()),
        ] {
            let key = caller.key();
            assert!(!key.contains('/'), "{key}");
            assert_eq!(Caller::from_key(&key), Some(caller));
        }
        assert_eq!(Caller::from_key("x:y"), None);
        assert_eq!(Caller::from_key("nodes"), None);
    }
}
