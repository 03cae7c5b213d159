//! Rules as chains of the table `nat`, entered from chains of others; the server's are as OpenYurt's has them.
//!
//! What is there is read with `iptables-save` and compared by meaning; what differs is written in one transaction of
//! `iptables-restore --noflush`, which replaces our chains and touches no others.

use super::{
    kernel::Owner,
    plan::{Family, Plan},
    tool::{ToolError, Tools},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
};

/// The chain that OUTPUT jumps to; those of ports have the port behind it.
pub(super) const CHAIN: &str = "TUNNEL-PORT";
/// The rule in OUTPUT.
pub(super) const JUMP: &str =
    "-p tcp -m comment --comment \"yurttunnel server port\" -j TUNNEL-PORT";

pub(super) fn is_ours(chain: &str) -> bool {
    chain == CHAIN || port_of(chain).is_some()
}

fn port_of(chain: &str) -> Option<u16> {
    chain.strip_prefix(CHAIN)?.strip_prefix('-')?.parse().ok()
}

/// The rules of a plan as `(chain, rule)`, in order.
pub(super) fn rules(plan: &Plan) -> Vec<(String, String)> {
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
            Some(option) if option == &["!"] => option.push(word),
            Some(option) if !word.starts_with('-') && word != "!" => option.push(word),
            _ => options.push(vec![word]),
        }
    }
    options.retain(|option| option.first().is_some_and(|name| name != "-m"));
    options.into_iter().collect()
}

/// What is in the kernel, of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Found {
    /// How often each jump of the owner is there.
    jumps: Vec<usize>,
    chains: BTreeMap<String, Vec<BTreeSet<Vec<String>>>>,
}

impl Found {
    /// Nothing.
    fn none(owner: &Owner) -> Self {
        Self {
            jumps: vec![0; owner.jumps.len()],
            chains: BTreeMap::new(),
        }
    }

    /// Reads the output of `iptables-save -t nat`.
    fn read(saved: &str, owner: &Owner) -> Self {
        let mut found = Self::none(owner);
        let jumps = owner
            .jumps
            .iter()
            .map(|(from, rule)| (*from, meaning(rule)));
        let jumps: Vec<_> = jumps.collect();
        for line in saved.lines() {
            if let Some(chain) = line.strip_prefix(':') {
                let chain = chain.split(' ').next().unwrap_or_default();
                if (owner.is_ours)(chain) {
                    found.chains.entry(chain.to_owned()).or_default();
                }
            } else if let Some((chain, rule)) = line
                .strip_prefix("-A ")
                .and_then(|rule| rule.split_once(' '))
            {
                let rule = meaning(rule);
                if (owner.is_ours)(chain) {
                    let rules = found.chains.entry(chain.to_owned()).or_default();
                    rules.push(rule);
                } else {
                    for (count, (from, jump)) in found.jumps.iter_mut().zip(&jumps) {
                        *count += usize::from(chain == *from && rule == *jump);
                    }
                }
            }
        }
        found
    }

    fn wanted(rules: &[(String, String)], owner: &Owner) -> Self {
        let mut wanted = Self {
            jumps: vec![1; owner.jumps.len()],
            chains: BTreeMap::new(),
        };
        for chain in owner.entries {
            wanted.chains.insert((*chain).to_owned(), Vec::new());
        }
        for (chain, rule) in rules {
            let rules = wanted.chains.entry(chain.clone()).or_default();
            rules.push(meaning(rule));
        }
        wanted
    }

    fn is_empty(&self) -> bool {
        self.jumps.iter().all(|count| *count == 0) && self.chains.is_empty()
    }
}

/// The transaction that makes `found` what is wanted.
fn transaction(rules: &[(String, String)], owner: &Owner, found: &Found) -> String {
    let wanted: BTreeSet<String> = Found::wanted(rules, owner).chains.into_keys().collect();
    let stale = found.chains.keys().filter(|chain| !wanted.contains(*chain));
    let mut text = String::from("*nat\n");
    // Naming a chain empties it.
    for chain in wanted.iter().chain(stale.clone()) {
        let _ = writeln!(text, ":{chain} - [0:0]");
    }
    for (chain, rule) in rules {
        let _ = writeln!(text, "-A {chain} {rule}");
    }
    for chain in stale {
        let _ = writeln!(text, "-X {chain}");
    }
    for ((from, jump), count) in owner.jumps.iter().zip(&found.jumps) {
        if *count != 1 {
            for _ in 0..*count {
                let _ = writeln!(text, "-D {from} {jump}");
            }
            let _ = writeln!(text, "-I {from} {jump}");
        }
    }
    text.push_str("COMMIT\n");
    text
}

/// The transaction that takes away what is ours.
fn removal(owner: &Owner, found: &Found) -> String {
    let mut text = String::from("*nat\n");
    for chain in found.chains.keys() {
        let _ = writeln!(text, ":{chain} - [0:0]");
    }
    for ((from, jump), count) in owner.jumps.iter().zip(&found.jumps) {
        for _ in 0..*count {
            let _ = writeln!(text, "-D {from} {jump}");
        }
    }
    // Last to first: nothing may refer to a chain that goes.
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
    owner: Owner,
    save: &'static str,
    restore: &'static str,
}

impl Iptables {
    pub(super) fn new(tools: Tools, family: Family, owner: Owner) -> Self {
        let (save, restore) = match family {
            Family::V4 => ("iptables-save", "iptables-restore"),
            Family::V6 => ("ip6tables-save", "ip6tables-restore"),
        };
        Self {
            tools,
            owner,
            save,
            restore,
        }
    }

    async fn found(&self) -> Result<Found, ToolError> {
        let saved = self.tools.run(self.save, &["-t", "nat"], "").await?;
        Ok(Found::read(&saved, &self.owner))
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

    /// Makes the rules what is wanted, `(chain, rule)` in order; whether anything had to be written.
    pub(super) async fn apply(&self, rules: &[(String, String)]) -> Result<bool, ToolError> {
        let found = self.found().await?;
        if found == Found::wanted(rules, &self.owner) {
            return Ok(false);
        }
        self.write(&transaction(rules, &self.owner, &found)).await?;
        Ok(true)
    }

    /// Takes our rules away, and those that OpenYurt's server left; whether there were any.
    pub(super) async fn clean(&self) -> Result<bool, ToolError> {
        let found = self.found().await?;
        if found.is_empty() {
            return Ok(false);
        }
        self.write(&removal(&self.owner, &found)).await?;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::{super::kernel::SERVER, *};
    use std::net::IpAddr;

    fn shown(saved: &str) -> Found {
        Found::read(saved, &SERVER)
    }

    fn wanted(plan: &Plan) -> Found {
        Found::wanted(&rules(plan), &SERVER)
    }

    fn transaction(plan: &Plan, found: &Found) -> String {
        super::transaction(&rules(plan), &SERVER, found)
    }

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
        let text = transaction(&plan(&["10.0.0.1", "127.0.0.1"]), &Found::none(&SERVER));
        assert_eq!(text, include_str!("iptables.golden"));
        let found = shown(&text.replace("-I OUTPUT", "-A OUTPUT"));
        assert_eq!(found, wanted(&plan(&["10.0.0.1", "127.0.0.1"])));
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
        let read = shown(saved);
        assert_eq!(read.chains["TUNNEL-PORT-10250"], [meaning(&rule)]);
        let negated = saved.replace("-d 10", "! -d 10");
        assert_ne!(shown(&negated), read);
        // Also behind the name of a match, where iptables-save writes it.
        let marked = saved.replace("-m tcp", "-m mark ! --mark 0x1 -m tcp");
        assert_ne!(shown(&marked), shown(&marked.replace("! --mark", "--mark")));
        let other = saved.replace("node directly", "node \\\"directly");
        assert_ne!(shown(&other), read);
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
            let listed = |(chain, rule): &(String, String)| {
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
            let mut lines: Vec<String> = all.iter().map(listed).collect();
            proptest::prop_assert_eq!(shown(&(lines.concat() + &jump)), wanted(&plan));
            lines.remove(gone.index(lines.len()));
            proptest::prop_assert_ne!(shown(&(lines.concat() + &jump)), wanted(&plan));
        }
    }

    #[test]
    fn foreign_rules_are_not_ours() {
        let saved = "*nat\n:OUTPUT ACCEPT [0:0]\n:KUBE-SERVICES - [0:0]\n:TUNNEL-PORTAL - [0:0]\n:TUNNEL-PORT-x - [0:0]\n\
            -A OUTPUT -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\n-A OUTPUT -j TUNNEL-PORT\nCOMMIT\n";
        assert!(shown(saved).is_empty());
    }

    #[test]
    fn what_is_stale_goes_and_jumps_become_one() {
        let text = transaction(&plan(&[]), &Found::none(&SERVER));
        let mut found = shown(&text.replace("-I OUTPUT", "-A OUTPUT"));
        found.chains.insert("TUNNEL-PORT-9999".into(), Vec::new());
        found.jumps = vec![2];
        let text = transaction(&plan(&[]), &found);
        assert!(
            text.contains(":TUNNEL-PORT-9999 - [0:0]\n") && text.contains("-X TUNNEL-PORT-9999\n")
        );
        assert_eq!(text.matches("-D OUTPUT").count(), 2);
        assert_eq!(text.matches("-I OUTPUT").count(), 1);
        let gone = removal(&SERVER, &found);
        assert!(gone.find("-D OUTPUT") < gone.find("-X TUNNEL-PORT-9999"));
        assert!(gone.trim_end().ends_with("-X TUNNEL-PORT\nCOMMIT"));
    }
}
