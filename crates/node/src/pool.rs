//! `yurt hub pool status`: the pool as the node's hub sees it, in words. Pure, but for asking.

use crate::{Hub, HubError, Outcome, Output, Where, say};
use clap::{Args, Subcommand};
use serde::Deserialize;
use std::{collections::BTreeMap, fmt::Write as _};

/// The node's pool.
#[derive(Debug, Args)]
pub struct PoolArgs {
    #[command(subcommand)]
    command: PoolCommand,
}

#[derive(Debug, Subcommand)]
enum PoolCommand {
    /// Who leads the pool and why, who of it is alive and by whose word, and what is shared.
    Status(StatusArgs),
}

#[derive(Debug, Args)]
struct StatusArgs {
    #[command(flatten)]
    at: Where,
}

/// Runs a command. What goes wrong with asking is told on stderr.
pub(crate) async fn run(args: PoolArgs) -> Outcome {
    let PoolCommand::Status(args) = args.command;
    status(&args).await.unwrap_or_else(|error| {
        eprintln!("yurt hub pool: {error}");
        Outcome::Unknown
    })
}

async fn status(args: &StatusArgs) -> Result<Outcome, HubError> {
    let hub = Hub::at(&args.at.hub)?;
    let (pool, body) = hub.get::<Pool>("/v1/pool").await?;
    match args.at.output {
        Output::Json => say(&body),
        Output::Text => say(&render(&pool)),
    }
    Ok(Outcome::Healthy)
}

/// What `/v1/pool` tells, as far as it is shown.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Pool {
    node: String,
    pool: String,
    role: String,
    leader: Option<String>,
    why: String,
    for_seconds: f64,
    role_changes: u64,
    last_takeover_milliseconds: Option<u64>,
    link: String,
    revision: u64,
    candidates: Vec<Candidate>,
    evidence: Option<String>,
    evidence_trouble: String,
    nodes: Vec<Node>,
    delegation: Delegation,
    share: Vec<Feed>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Candidate {
    node: String,
    address: String,
    rank: usize,
    state: String,
    openyurt: bool,
    link: Option<String>,
    leads: bool,
    revision: Option<u64>,
    heard_seconds: Option<f64>,
    why: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Node {
    node: String,
    alive: Option<bool>,
    lease_seconds: Option<f64>,
    delegated: bool,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Delegation {
    state: String,
    why: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Feed {
    resource: String,
    stage: String,
    source: String,
    revision: u64,
    watchers: usize,
}

fn render(pool: &Pool) -> String {
    let mut text = String::new();
    let role = match (pool.role.as_str(), &pool.leader) {
        ("follower", Some(leader)) => format!("follows {leader}"),
        ("leader", _) => "leads it".into(),
        _ => "goes by nobody".into(),
    };
    let name = match pool.pool.as_str() {
        "" => "no pool",
        name => name,
    };
    let _ = writeln!(
        text,
        "pool {name}: {} {role} for {}",
        pool.node,
        span(pool.for_seconds)
    );
    let _ = writeln!(text, "  because: {}", pool.why);
    let _ = write!(
        text,
        "  link {}, revision {}, {} changes of role",
        pool.link, pool.revision, pool.role_changes
    );
    if let Some(took) = pool.last_takeover_milliseconds {
        let _ = write!(text, ", last take-over {:.1} s", took as f64 / 1000.0);
    }
    text.push('\n');
    let rows = rows(pool);
    if !rows.is_empty() {
        text.push('\n');
        table(&mut text, &HEAD, &rows);
        match &pool.evidence {
            Some(by) => {
                let _ = writeln!(text, "ALIVE by the leases that were told to {by}");
            }
            None => {
                let _ = writeln!(text, "ALIVE is not known: {}", pool.evidence_trouble);
            }
        }
    }
    let silent = pool
        .candidates
        .iter()
        .filter(|candidate| !candidate.why.is_empty());
    for candidate in silent {
        let _ = writeln!(text, "{}: {}", candidate.node, candidate.why);
    }
    match pool.delegation.state.as_str() {
        "" | "idle" => {}
        "ready" => text.push_str("\nleases of nodes that are cut off are renewed for them\n"),
        _ => {
            let _ = writeln!(
                text,
                "\nleases of nodes that are cut off cannot be renewed for them: {}",
                pool.delegation.why
            );
        }
    }
    if !pool.share.is_empty() {
        let feeds: Vec<_> = pool.share.iter().map(Feed::row).collect();
        text.push('\n');
        table(
            &mut text,
            &["SHARED", "STATE", "FROM", "REVISION", "WATCHES"],
            &feeds,
        );
    }
    text
}

const HEAD: [&str; 9] = [
    "NODE",
    "RANK",
    "ROLE",
    "LINK",
    "HEARD",
    "ALIVE",
    "LEASE",
    "DELEGATED",
    "REVISION",
];

/// Candidates by rank, then the other nodes.
fn rows(pool: &Pool) -> Vec<[String; 9]> {
    let mut nodes: BTreeMap<&str, &Node> = pool
        .nodes
        .iter()
        .map(|node| (node.node.as_str(), node))
        .collect();
    let dash = || "-".to_owned();
    let lives = |node: Option<&Node>| match node {
        Some(node) => [
            node.alive.map_or_else(dash, yes),
            node.lease_seconds.map_or_else(dash, span),
            yes(node.delegated),
        ],
        None => [dash(), dash(), dash()],
    };
    let mut rows = Vec::new();
    for candidate in &pool.candidates {
        let [alive, lease, delegated] = lives(nodes.remove(candidate.node.as_str()));
        let role = match candidate.state.as_str() {
            _ if candidate.openyurt => "openyurt",
            _ if candidate.leads => "leader",
            "self" | "answers" => "candidate",
            state => state,
        };
        rows.push([
            format!("{} ({})", candidate.node, candidate.address),
            candidate.rank.to_string(),
            role.to_owned(),
            candidate.link.clone().unwrap_or_else(dash),
            candidate.heard_seconds.map_or_else(dash, span),
            alive,
            lease,
            delegated,
            candidate
                .revision
                .map_or_else(dash, |revision| revision.to_string()),
        ]);
    }
    for (name, node) in nodes {
        let [alive, lease, delegated] = lives(Some(node));
        let row = [
            name.to_owned(),
            dash(),
            dash(),
            dash(),
            dash(),
            alive,
            lease,
            delegated,
            dash(),
        ];
        rows.push(row);
    }
    rows
}

impl Feed {
    fn row(&self) -> [String; 5] {
        [
            self.resource.clone(),
            self.stage.clone(),
            self.source.clone(),
            self.revision.to_string(),
            self.watchers.to_string(),
        ]
    }
}

fn yes(is: bool) -> String {
    if is { "yes" } else { "no" }.to_owned()
}

/// `0.4s`, `42s`, `3m20s`, `5h12m`.
fn span(seconds: f64) -> String {
    let whole = seconds.max(0.0) as u64;
    match whole {
        0..10 => format!("{:.1}s", seconds.max(0.0)),
        10..120 => format!("{whole}s"),
        120..7200 => format!("{}m{}s", whole / 60, whole % 60),
        _ => format!("{}h{}m", whole / 3600, whole % 3600 / 60),
    }
}

/// Columns as wide as what is in them.
fn table<const N: usize>(text: &mut String, head: &[&str; N], rows: &[[String; N]]) {
    let widths: [usize; N] = std::array::from_fn(|column| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        let widest = cells.map(|cell| cell.chars().count()).max().unwrap_or(0);
        widest.max(head.get(column).map_or(0, |title| title.len()))
    });
    let mut line = |cells: &mut dyn Iterator<Item = &str>| {
        let mut row = String::new();
        for (cell, width) in cells.zip(widths) {
            let _ = write!(row, "{cell:width$}  ");
        }
        let _ = writeln!(text, "{}", row.trim_end());
    };
    line(&mut head.iter().copied());
    for row in rows {
        line(&mut row.iter().map(String::as_str));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_with_a_cut_node_in_words() {
        let told = r#"{"node":"edge-2","pool":"a","role":"follower","leader":"edge-1","why":"rank 1: the first of those that answer and have a link",
            "forSeconds":200.4,"roleChanges":2,"lastTakeoverMilliseconds":1240,"link":"online","revision":7,"evidence":"edge-1","later":{},
            "candidates":[
                {"node":"edge-1","address":"10.0.0.1:10269","rank":1,"state":"answers","openyurt":false,"link":"online","leads":true,"revision":7,"heardSeconds":0.42},
                {"node":"edge-2","address":"10.0.0.2:10269","rank":2,"state":"self","link":"online","leads":false,"revision":7,"heardSeconds":null},
                {"node":"edge-9","address":"10.0.0.9:10269","rank":3,"state":"silent","why":"set aside: garbage"}],
            "nodes":[
                {"node":"edge-1","alive":true,"leaseSeconds":3.0,"delegated":false},
                {"node":"edge-2","alive":true,"leaseSeconds":4.5,"delegated":false},
                {"node":"edge-3","alive":true,"leaseSeconds":8.0,"delegated":true},
                {"node":"edge-4","alive":null,"leaseSeconds":null,"delegated":false}],
            "delegation":{"state":"idle"},
            "share":[{"resource":"services/v1","stage":"synced","source":"edge-1","revision":7,"watchers":3}]}"#;
        let pool: Pool = serde_json::from_str(told).unwrap();
        let expected = "\
pool a: edge-2 follows edge-1 for 3m20s
  because: rank 1: the first of those that answer and have a link
  link online, revision 7, 2 changes of role, last take-over 1.2 s

NODE                     RANK  ROLE       LINK    HEARD  ALIVE  LEASE  DELEGATED  REVISION
edge-1 (10.0.0.1:10269)  1     leader     online  0.4s   yes    3.0s   no         7
edge-2 (10.0.0.2:10269)  2     candidate  online  -      yes    4.5s   no         7
edge-9 (10.0.0.9:10269)  3     silent     -       -      -      -      -          -
edge-3                   -     -          -       -      yes    8.0s   yes        -
edge-4                   -     -          -       -      -      -      no         -
ALIVE by the leases that were told to edge-1
edge-9: set aside: garbage

SHARED       STATE   FROM    REVISION  WATCHES
services/v1  synced  edge-1  7         3
";
        assert_eq!(render(&pool), expected);
    }

    #[test]
    fn a_leader_without_the_identity_for_it_says_so() {
        let pool = Pool {
            node: "n".into(),
            role: "leader".into(),
            delegation: Delegation {
                state: "noIdentity".into(),
                why: "Secret x/y: there is none".into(),
            },
            evidence_trouble: "z".into(),
            ..Pool::default()
        };
        let text = render(&pool);
        assert!(
            text.starts_with("pool no pool: n leads it for 0.0s\n"),
            "{text}"
        );
        assert!(
            text.contains("cannot be renewed for them: Secret x/y: there is none\n"),
            "{text}"
        );
    }

    #[test]
    fn spans() {
        for (seconds, text) in [
            (0.04, "0.0s"),
            (9.9, "9.9s"),
            (59.0, "59s"),
            (125.0, "2m5s"),
            (7260.0, "2h1m"),
        ] {
            assert_eq!(span(seconds), text);
        }
    }
}
