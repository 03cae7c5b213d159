//! Which components the cache learns from. Pure.
//!
//! By default from all. `cache_agents` of the config map `yurt-hub-cfg` restricts it to the agents named there and to those that
//! every node needs. What other agents read is passed on and not learned; what is cached already stays, and is served to whoever
//! may read it.

use std::collections::BTreeSet;

/// Agents that are always cached, as with OpenYurt; beside them the hub's own, `multiplexer-proxy-NODE`.
const ALWAYS: [&str; 7] = [
    "kubelet",
    "kube-proxy",
    "flanneld",
    "coredns",
    "raven-agent-ds",
    "yurttunnel-agent",
    "yurthub",
];
/// The agent of the hub's own reads for the pool, before the node's name.
const MULTIPLEXER: &str = "multiplexer-proxy-";

/// The agent of a `User-Agent`: what is before the first slash, in lower case.
pub(crate) fn agent(user_agent: &str) -> String {
    let name = user_agent.split('/').next().unwrap_or_default();
    name.trim().to_ascii_lowercase()
}

/// Whether an agent is one of those that every node needs.
pub(crate) fn is_usual(agent: &str) -> bool {
    ALWAYS.contains(&agent) || agent.starts_with(MULTIPLEXER)
}

/// Whether the cache learns from what an agent reads. `named`: the names of `cache_agents`, in lower case; none, or `*`, for
/// everybody.
pub(crate) fn is_cached(named: &BTreeSet<String>, user_agent: &str) -> bool {
    if named.is_empty() || named.contains("*") {
        return true;
    }
    let agent = agent(user_agent);
    is_usual(&agent) || named.contains(&agent)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cached(named: &[&str], user_agent: &str) -> bool {
        let named = named.iter().map(|name| (*name).to_owned()).collect();
        is_cached(&named, user_agent)
    }

    #[test]
    fn agents_that_are_named_and_those_every_node_needs() {
        for (named, user_agent, expected) in [
            (&[][..], "anything/1", true),
            (&[], "", true),
            (&["*"], "anything", true),
            (&["*", "x"], "", true),
            (&["calico"], "calico/v3.1 (linux)", true),
            (&["calico"], "Calico", true),
            (&["calico"], "calico-node/1", false),
            (&["calico"], "", false),
            (&["calico"], "../calico", false),
            (&["calico"], "kubelet/v1.30.1 (linux/amd64)", true),
            (&["calico"], "Kube-Proxy/v1", true),
            (&["calico"], crate::USER_AGENT, true),
            (&["calico"], "multiplexer-proxy-edge-1", true),
        ] {
            assert_eq!(
                cached(named, user_agent),
                expected,
                "{named:?} {user_agent}"
            );
        }
    }
}
