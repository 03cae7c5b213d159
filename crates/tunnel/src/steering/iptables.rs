//! Rules as OpenYurt's server has them: chains of the table `nat`, entered from OUTPUT.
//!
//! What is there is read with `iptables-save` and compared by meaning; what differs is written in one transaction of
//! `iptables-restore --noflush`, which replaces our chains and touches no others.

use super::{
    plan::{Family, Plan},
    tool::{ToolError, Tools},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
};

/// The chain that OUTPUT jumps to; those of ports have the port behind it.
const CHAIN: &str = "TUNNEL-PORT";
/// The rule in OUTPUT.
const JUMP: &str = "-p tcp -m comment --comment \"yurttunnel server port\" -j TUNNEL-PORT";

fn is_ours(chain: &str) -> bool {
    chain == CHAIN || port_of(chain).is_some()
}

fn port_of(chain: &str) -> Option<u16> {
    chain.strip_prefix(CHAIN)?.strip_prefix('-')?.parse().ok()
}

/// The rules of a plan as `(chain, rule)`, in order.
fn rules(plan: &Plan) -> Vec<(String, String)> {
    let bits = match plan.family {
        Family::V4 => 32,
        Family::V6 => 128,
    };
    let mut rules: Vec<_> = plan
        .ports
        .keys()
        .map(|port| {
            let rule = format!(
                "-p tcp --dport {port} -m comment --comment \"jump to port {port}\" -j {CHAIN}-{port}"
            );
            (CHAIN.to_owned(), rule)
        })
        .collect();
    for (port, target) in &plan.ports {
        let chain = format!("{CHAIN}-{port}");
        for address in &plan.direct {
            let rule = format!(
                "-p tcp -m comment --comment \"return request to access node directly\" --dport {port} -d {address}/{bits} -j RETURN"
            );
            rules.push((chain.clone(), rule));
        }
        let rule = format!(
            "-p tcp -m comment --comment \"dnat to tunnel for access node\" --dport {port} -j DNAT --to-destination {target}"
        );
        rules.push((chain, rule));
    }
    rules
}

/// The words of a rule; what is in quotes is one.
fn words(rule: &str) -> Vec<String> {
    let (mut words, mut word, mut quoted, mut escaped) = (Vec::new(), String::new(), false, false);
    for char in rule.chars() {
        match char {
            _ if escaped => {
                word.push(char);
                escaped = false;
            }
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            ' ' if !quoted => words.extend((!word.is_empty()).then(|| std::mem::take(&mut word))),
            _ => word.push(char),
        }
    }
    words.extend((!word.is_empty()).then_some(word));
    words
}

/// What a rule means: its options in no order, without those that only load a match (`-m tcp`), as iptables-save writes them and
/// people leave them out.
fn meaning(rule: &str) -> BTreeSet<Vec<String>> {
    let mut options: Vec<Vec<String>> = Vec::new();
    for word in words(rule) {
        match options.last_mut() {
            Some(option) if !word.starts_with('-') && option.last().is_none_or(|w| w != "!") => {
                option.push(word);
            }
            Some(option) if option == &["!"] => option.push(word),
            _ => options.push(vec![word]),
        }
    }
    options.retain(|option| option.first().is_some_and(|name| name != "-m"));
    options.into_iter().collect()
}

/// What is in the kernel, of ours.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Found {
    /// Jumps from OUTPUT.
    jumps: usize,
    chains: BTreeMap<String, Vec<BTreeSet<Vec<String>>>>,
}

impl Found {
    /// Reads the output of `iptables-save -t nat`.
    fn read(saved: &str) -> Self {
        let mut found = Self::default();
        let jump = meaning(JUMP);
        for line in saved.lines() {
            if let Some(chain) = line.strip_prefix(':') {
                let chain = chain.split(' ').next().unwrap_or_default();
                if is_ours(chain) {
                    found.chains.entry(chain.to_owned()).or_default();
                }
            } else if let Some((chain, rule)) = line
                .strip_prefix("-A ")
                .and_then(|rule| rule.split_once(' '))
            {
                if is_ours(chain) {
                    let rules = found.chains.entry(chain.to_owned()).or_default();
                    rules.push(meaning(rule));
                } else if chain == "OUTPUT" && meaning(rule) == jump {
                    found.jumps += 1;
                }
            }
        }
        found
    }

    fn wanted(plan: &Plan) -> Self {
        let mut wanted = Self {
            jumps: 1,
            ..Self::default()
        };
        wanted.chains.insert(CHAIN.to_owned(), Vec::new());
        for (chain, rule) in rules(plan) {
            let rules = wanted.chains.entry(chain).or_default();
            rules.push(meaning(&rule));
        }
        wanted
    }

    fn is_empty(&self) -> bool {
        self.jumps == 0 && self.chains.is_empty()
    }
}

/// The transaction that makes `found` what `plan` wants.
fn transaction(plan: &Plan, found: &Found) -> String {
    let wanted: BTreeSet<String> = Found::wanted(plan).chains.into_keys().collect();
    let stale = found.chains.keys().filter(|chain| !wanted.contains(*chain));
    let mut text = String::from("*nat\n");
    // Naming a chain empties it.
    for chain in wanted.iter().chain(stale.clone()) {
        let _ = writeln!(text, ":{chain} - [0:0]");
    }
    for (chain, rule) in rules(plan) {
        let _ = writeln!(text, "-A {chain} {rule}");
    }
    for chain in stale {
        let _ = writeln!(text, "-X {chain}");
    }
    if found.jumps != 1 {
        for _ in 0..found.jumps {
            let _ = writeln!(text, "-D OUTPUT {JUMP}");
        }
        let _ = writeln!(text, "-I OUTPUT {JUMP}");
    }
    text.push_str("COMMIT\n");
    text
}

/// The transaction that takes away what is ours.
fn removal(found: &Found) -> String {
    let mut text = String::from("*nat\n");
    for chain in found.chains.keys() {
        let _ = writeln!(text, ":{chain} - [0:0]");
    }
    for _ in 0..found.jumps {
        let _ = writeln!(text, "-D OUTPUT {JUMP}");
    }
    // Those of ports last to first, the one they are entered from at the end: nothing may refer to a chain that goes.
    for chain in found.chains.keys().rev() {
        let _ = writeln!(text, "-X {chain}");
    }
    text.push_str("COMMIT\n");
    text
}

/// The rules of one family.
#[derive(Debug)]
pub(super) struct Iptables {
    tools: Tools,
    save: &'static str,
    restore: &'static str,
}

impl Iptables {
    pub(super) fn new(tools: Tools, family: Family) -> Self {
        let (save, restore) = match family {
            Family::V4 => ("iptables-save", "iptables-restore"),
            Family::V6 => ("ip6tables-save", "ip6tables-restore"),
        };
        Self {
            tools,
            save,
            restore,
        }
    }

    async fn found(&self) -> Result<Found, ToolError> {
        let saved = self.tools.run(self.save, &["-t", "nat"], "").await?;
        Ok(Found::read(&saved))
    }

    async fn write(&self, transaction: &str) -> Result<(), ToolError> {
        let arguments = ["--noflush", "-w", "5"];
        let written = self.tools.run(self.restore, &arguments, transaction).await;
        written.map(drop)
    }

    /// Whether rules can be read here.
    pub(super) async fn probe(&self) -> Result<(), ToolError> {
        self.found().await.map(drop)
    }

    /// Makes the rules what a plan wants; whether anything had to be written.
    pub(super) async fn apply(&self, plan: &Plan) -> Result<bool, ToolError> {
        let found = self.found().await?;
        if found == Found::wanted(plan) {
            return Ok(false);
        }
        self.write(&transaction(plan, &found)).await?;
        Ok(true)
    }

    /// Takes our rules away, and those that OpenYurt's server left; whether there were any.
    pub(super) async fn clean(&self) -> Result<bool, ToolError> {
        let found = self.found().await?;
        if found.is_empty() {
            return Ok(false);
        }
        self.write(&removal(&found)).await?;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::IpAddr;

    pub(crate) fn plan(direct: &[&str]) -> Plan {
        let direct = direct.iter().map(|a| a.parse::<IpAddr>().unwrap());
        Plan {
            family: Family::V4,
            ports: [
                (10250, "127.0.0.1:10263".parse().unwrap()),
                (10255, "127.0.0.1:10264".parse().unwrap()),
                (9100, "127.0.0.1:10264".parse().unwrap()),
            ]
            .into(),
            direct: direct.collect(),
        }
    }

    #[test]
    fn the_text_is_openyurts() {
        let text = transaction(&plan(&["10.0.0.1", "127.0.0.1"]), &Found::default());
        assert_eq!(text, include_str!("iptables.golden"));
        let found = Found::read(&text.replace("-I OUTPUT", "-A OUTPUT"));
        assert_eq!(found, Found::wanted(&plan(&["10.0.0.1", "127.0.0.1"])));
        let six = Plan {
            family: Family::V6,
            ports: [(10250, "[::1]:10263".parse().unwrap())].into(),
            direct: ["::1".parse().unwrap()].into(),
        };
        let rules: Vec<String> = rules(&six).into_iter().map(|(_, rule)| rule).collect();
        assert!(rules[1].ends_with("-d ::1/128 -j RETURN"), "{rules:?}");
        assert!(rules[2].ends_with("--to-destination [::1]:10263"));
    }

    #[test]
    fn what_iptables_writes_means_the_same() {
        let saved = "-A TUNNEL-PORT-10250 -d 10.0.0.1/32 -p tcp -m comment --comment \"return request to access node directly\" -m tcp --dport 10250 -j RETURN";
        let (_, rule) = rules(&plan(&["10.0.0.1"]))
            .into_iter()
            .find(|(chain, _)| chain == "TUNNEL-PORT-10250")
            .unwrap();
        let read = Found::read(saved);
        assert_eq!(read.chains["TUNNEL-PORT-10250"], [meaning(&rule)]);
        let negated = saved.replace("-d 10", "! -d 10");
        assert_ne!(Found::read(&negated), read);
        let other = saved.replace("node directly", "node \\\"directly");
        assert_ne!(Found::read(&other), read);
    }

    proptest::proptest! {
        /// Whatever the plan: what was written is found again, in whatever order the kernel shows options; and that any one rule is gone
        /// is noticed.
        #[test]
        fn what_was_written_is_recognised(ports in proptest::collection::btree_map(1u16.., 1u16.., 1..6),
            direct in proptest::collection::btree_set(proptest::prelude::any::<u32>(), 0..6), gone: proptest::sample::Index) {
            let plan = Plan {
                family: Family::V4,
                ports: ports.into_iter().map(|(port, to)| (port, ([127, 0, 0, 1], to).into())).collect(),
                direct: direct.into_iter().map(|bits| std::net::Ipv4Addr::from(bits).into()).collect(),
            };
            let shown = |(chain, rule): &(String, String)| {
                let rule = rule.replace("-p tcp ", "");
                let (rule, action) = rule.split_once(" -j ").unwrap();
                let mut options: Vec<&str> = rule.split(" -d ").collect();
                options.reverse();
                let options = match options.as_slice() {
                    [address, rest] => format!("-d {address} {rest}"),
                    other => other.concat(),
                };
                format!("-A {chain} -p tcp {options} -m tcp -j {action}\n")
            };
            let all = rules(&plan);
            let jump = format!("-A OUTPUT {JUMP}\n");
            let mut lines: Vec<String> = all.iter().map(shown).collect();
            proptest::prop_assert_eq!(Found::read(&(lines.concat() + &jump)), Found::wanted(&plan));
            lines.remove(gone.index(lines.len()));
            proptest::prop_assert_ne!(Found::read(&(lines.concat() + &jump)), Found::wanted(&plan));
        }
    }

    #[test]
    fn foreign_rules_are_not_ours() {
        let saved = "*nat\n:OUTPUT ACCEPT [0:0]\n:KUBE-SERVICES - [0:0]\n:TUNNEL-PORTAL - [0:0]\n:TUNNEL-PORT-x - [0:0]\n\
            -A OUTPUT -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\n-A OUTPUT -j TUNNEL-PORT\nCOMMIT\n";
        assert!(Found::read(saved).is_empty());
    }

    #[test]
    fn what_is_stale_goes_and_jumps_become_one() {
        let text = transaction(&plan(&[]), &Found::default());
        let mut found = Found::read(&text.replace("-I OUTPUT", "-A OUTPUT"));
        found.chains.insert("TUNNEL-PORT-9999".into(), Vec::new());
        found.jumps = 2;
        let text = transaction(&plan(&[]), &found);
        assert!(
            text.contains(":TUNNEL-PORT-9999 - [0:0]\n") && text.contains("-X TUNNEL-PORT-9999\n")
        );
        assert_eq!(text.matches("-D OUTPUT").count(), 2);
        assert_eq!(text.matches("-I OUTPUT").count(), 1);
        let gone = removal(&found);
        assert!(gone.find("-D OUTPUT") < gone.find("-X TUNNEL-PORT-9999"));
        assert!(gone.trim_end().ends_with("-X TUNNEL-PORT\nCOMMIT"));
    }
}
