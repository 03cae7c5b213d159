//! Rules in the kernel, by whichever way it knows: written when they differ, in one transaction, and taken away at the end.

use super::{
    iptables::{self, Iptables},
    nftables::Nftables,
    plan::Family,
    tool::{ToolError, Tools},
};

/// How connections are translated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Backend {
    /// The first of the others that works here.
    #[default]
    Auto,
    /// A table of our own.
    Nftables,
    /// Chains of our own; the server's are OpenYurt's.
    Iptables,
}

/// Whose rules they are: names that nobody else uses.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Owner {
    /// The table of nftables.
    pub(crate) table: &'static str,
    /// Whether a chain of iptables is the owner's.
    pub(crate) is_ours: fn(&str) -> bool,
    /// The chains that are always there.
    pub(crate) entries: &'static [&'static str],
    /// Rules in chains of others that lead to them: `(chain, rule)`.
    pub(crate) jumps: &'static [(&'static str, &'static str)],
}

/// The server's, which bring callers of kubelets to the interceptor.
pub(crate) const SERVER: Owner = Owner {
    table: "yurt_tunnel",
    is_ours: iptables::is_ours,
    entries: &[iptables::CHAIN],
    jumps: &[("OUTPUT", iptables::JUMP)],
};

/// The same rules in both languages.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ruleset {
    /// The contents of the table.
    pub(crate) nftables: String,
    /// `(chain, rule)`, in order.
    pub(crate) iptables: Vec<(String, String)>,
}

/// The rules of an owner, of one family.
#[derive(Debug)]
pub(crate) struct Rules(Way);

#[derive(Debug)]
enum Way {
    Nftables(Nftables),
    Iptables(Iptables),
}

impl Rules {
    /// The way that was asked for, if it works here, or why it does not. What the other left behind is taken away.
    pub(crate) async fn find(
        backend: Backend,
        tools: &Tools,
        family: Family,
        owner: Owner,
    ) -> Result<Self, String> {
        let mut nftables = Nftables::new(tools.clone(), family, owner.table);
        let iptables = Iptables::new(tools.clone(), family, owner);
        let mut why = Vec::new();
        if backend != Backend::Iptables {
            match nftables.probe().await {
                Ok(()) => {
                    if let Ok(true) = iptables.clean().await {
                        tracing::info!("rules that were left in iptables are taken away");
                    }
                    return Ok(Self(Way::Nftables(nftables)));
                }
                Err(error) => why.push(error.to_string()),
            }
        }
        if backend != Backend::Nftables {
            match iptables.probe().await {
                Ok(()) => {
                    if let Ok(true) = nftables.clean().await {
                        tracing::info!("rules that were left in nftables are taken away");
                    }
                    return Ok(Self(Way::Iptables(iptables)));
                }
                Err(error) => why.push(error.to_string()),
            }
        }
        Err(why.join("; "))
    }

    /// Makes the rules these; whether anything had to be written.
    pub(crate) async fn apply(&mut self, wanted: &Ruleset) -> Result<bool, ToolError> {
        match &mut self.0 {
            Way::Nftables(rules) => rules.apply(&wanted.nftables).await,
            Way::Iptables(rules) => rules.apply(&wanted.iptables).await,
        }
    }

    /// Takes them away; whether there were any.
    pub(crate) async fn clean(&mut self) -> Result<bool, ToolError> {
        match &mut self.0 {
            Way::Nftables(rules) => rules.clean().await,
            Way::Iptables(rules) => rules.clean().await,
        }
    }
}
