//! Rules in a table of our own, replaced in one transaction of `nft -f -`.

use super::{
    plan::{Family, Plan},
    tool::{ToolError, Tools},
};
use std::{fmt::Write, net::SocketAddr};

/// Before the rules of kube-proxy and others at -100: what is translated once is not looked at again.
pub(crate) const PRIORITY: i32 = -110;

pub(crate) fn family_of(family: Family) -> &'static str {
    match family {
        Family::V4 => "ip",
        Family::V6 => "ip6",
    }
}

/// The contents of the table that a plan wants.
pub(super) fn contents(plan: &Plan) -> String {
    let family = family_of(plan.family);
    let (kind, loopback) = match plan.family {
        Family::V4 => ("ipv4_addr", "127.0.0.0/8"),
        Family::V6 => ("ipv6_addr", "::1"),
    };
    let joined = |elements: Vec<String>| elements.join(", ");
    let direct = joined(plan.direct.iter().map(ToString::to_string).collect());
    let mut targets: Vec<SocketAddr> = plan.ports.values().copied().collect();
    targets.sort_unstable();
    targets.dedup();
    let mut text = String::new();
    let _ = writeln!(
        text,
        "\tset direct {{\n\t\ttype {kind}\n\t\telements = {{ {direct} }}\n\t}}"
    );
    let _ = writeln!(
        text,
        "\tchain output {{\n\t\ttype nat hook output priority {PRIORITY}; policy accept;\n\t\t{family} daddr {loopback} return\n\t\t{family} daddr @direct return"
    );
    for target in targets {
        let ports = plan.ports.iter().filter(|(_, to)| **to == target);
        let ports = joined(ports.map(|(port, _)| port.to_string()).collect());
        let _ = writeln!(text, "\t\ttcp dport {{ {ports} }} dnat to {target}");
    }
    text.push_str("\t}\n");
    text
}

/// The transaction that gives a table these contents.
fn transaction(family: Family, table: &str, contents: &str) -> String {
    let mut text = removal(family, table);
    let _ = writeln!(text, "table {} {table} {{\n{contents}}}", family_of(family));
    text
}

/// Naming the table first lets it be deleted whether it is there or not.
fn removal(family: Family, table: &str) -> String {
    let family = family_of(family);
    format!("table {family} {table}\ndelete table {family} {table}\n")
}

/// What a listing says, whatever its layout and the order of elements.
fn meaning(listing: &str) -> Vec<&str> {
    let separators = |c: char| c.is_whitespace() || c == ',' || c == ';';
    let mut words: Vec<&str> = listing
        .split(separators)
        .filter(|w| !w.is_empty())
        .collect();
    words.sort_unstable();
    words
}

/// The table of one family.
#[derive(Debug)]
pub(super) struct Nftables {
    tools: Tools,
    family: Family,
    table: &'static str,
    /// The contents that were applied, and how the kernel showed them then: nft's own way of writing differs between versions.
    applied: Option<(String, String)>,
}

impl Nftables {
    pub(super) fn new(tools: Tools, family: Family, table: &'static str) -> Self {
        Self {
            tools,
            family,
            table,
            applied: None,
        }
    }

    async fn nft(&self, arguments: &[&str], input: &str) -> Result<String, ToolError> {
        self.tools.run("nft", arguments, input).await
    }

    /// The table as it is; `None` when it is not there.
    async fn listing(&self) -> Result<Option<String>, ToolError> {
        let family = family_of(self.family);
        match self.nft(&["list", "table", family, self.table], "").await {
            Ok(listing) => Ok(Some(listing)),
            Err(ToolError::Failed { text, .. }) if text.contains("No such file or directory") => {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Whether tables can be read here.
    pub(super) async fn probe(&self) -> Result<(), ToolError> {
        self.nft(&["list", "tables"], "").await.map(drop)
    }

    /// Gives the table these contents; whether anything had to be written. After a start it is written in any case.
    pub(super) async fn apply(&mut self, contents: &str) -> Result<bool, ToolError> {
        if let Some((applied, shown)) = &self.applied
            && applied == contents
            && let Some(now) = self.listing().await?
            && meaning(&now) == meaning(shown)
        {
            return Ok(false);
        }
        self.applied = None;
        let transaction = transaction(self.family, self.table, contents);
        self.nft(&["-f", "-"], &transaction).await?;
        let shown = self.listing().await?;
        self.applied = shown.map(|shown| (contents.to_owned(), shown));
        Ok(true)
    }

    /// Takes the table away; whether it was there.
    pub(super) async fn clean(&mut self) -> Result<bool, ToolError> {
        self.applied = None;
        if self.listing().await?.is_none() {
            return Ok(false);
        }
        let removal = removal(self.family, self.table);
        self.nft(&["-f", "-"], &removal).await?;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_transaction_replaces_the_table() {
        let plan = Plan {
            family: Family::V4,
            ports: [
                (10250, "127.0.0.1:10263".parse().unwrap()),
                (9443, "127.0.0.1:10263".parse().unwrap()),
                (10255, "127.0.0.1:10264".parse().unwrap()),
            ]
            .into(),
            direct: ["10.0.0.1".parse().unwrap(), "127.0.0.1".parse().unwrap()].into(),
        };
        let text = transaction(plan.family, "yurt_tunnel", &contents(&plan));
        assert!(text.starts_with(
            "table ip yurt_tunnel\ndelete table ip yurt_tunnel\ntable ip yurt_tunnel {\n"
        ));
        for line in [
            "elements = { 10.0.0.1, 127.0.0.1 }",
            "type nat hook output priority -110; policy accept;",
            "tcp dport { 9443, 10250 } dnat to 127.0.0.1:10263",
            "tcp dport { 10255 } dnat to 127.0.0.1:10264",
        ] {
            assert!(text.contains(line), "{line} not in\n{text}");
        }
    }

    #[test]
    fn layout_means_nothing() {
        assert_eq!(
            meaning("elements = { 10.0.0.1, 10.0.0.2,\n\t\t10.0.0.3 }"),
            meaning("elements = { 10.0.0.3, 10.0.0.2, 10.0.0.1 }")
        );
        assert_ne!(meaning("{ 10.0.0.1 }"), meaning("{ 10.0.0.2 }"));
    }
}
