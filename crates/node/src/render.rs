//! What the hub tells, in words. Pure.

use crate::upgrade::{Upgrade, Upgrades};
use serde::Deserialize;
use std::fmt::Write as _;

/// The report of `/v1/doctor`, as far as it is shown.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Report {
    node: String,
    score: u32,
    verdict: String,
    checks: Vec<Check>,
}

#[derive(Clone, Debug, Deserialize)]
struct Check {
    id: String,
    state: String,
    what: String,
    why: String,
    #[serde(default)]
    todo: String,
}

impl Report {
    /// Whether one of the checks went well.
    pub(crate) fn holds(&self, id: &str) -> bool {
        self.checks
            .iter()
            .any(|check| check.id == id && check.state == "ok")
    }

    /// Whether the node would go on.
    pub(crate) fn is_healthy(&self) -> bool {
        self.checks.iter().all(|check| check.state != "fail")
    }
}

/// What `/v1/drill` tells.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Drill {
    state: String,
    seconds: u64,
    seconds_left: u64,
    local_after_milliseconds: Option<u64>,
    rehearsed: usize,
    answered: usize,
    requests: u64,
    /// Whether it lasted to its end.
    pub(crate) complete: bool,
    /// Whether the node would have gone on.
    pub(crate) survived: Option<bool>,
    misses: Vec<Miss>,
    more_misses: u64,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Miss {
    who: String,
    verb: String,
    what: String,
    code: u16,
    times: u64,
    tolerable: bool,
}

impl Drill {
    /// Whether there is none under way.
    pub(crate) fn is_over(&self) -> bool {
        self.state != "running"
    }
}

/// Text of others on a terminal: nothing in it may steer the terminal.
pub(crate) fn plain(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

/// The report: failures first, each with what to do.
pub(crate) fn report(report: &Report) -> String {
    let mut out = format!(
        "Node {}: {}, {} of 100 points\n\n",
        plain(&report.node),
        plain(&report.verdict),
        report.score
    );
    let rank = |check: &&Check| match check.state.as_str() {
        "fail" => 0,
        "warn" => 1,
        _ => 2,
    };
    let mut checks: Vec<&Check> = report.checks.iter().collect();
    checks.sort_by_key(rank);
    let width = checks.iter().map(|check| check.id.len()).max().unwrap_or(0);
    for check in checks {
        let mark = match check.state.as_str() {
            "fail" => "FAIL",
            "warn" => "warn",
            _ => "ok",
        };
        let _ = writeln!(
            out,
            "{mark:<4}  {:<width$}  {}: {}",
            plain(&check.id),
            plain(&check.what),
            plain(&check.why)
        );
        if !check.todo.is_empty() {
            let _ = writeln!(out, "      {:<width$}  -> {}", "", plain(&check.todo));
        }
    }
    out
}

/// One line while a drill runs.
pub(crate) fn progress(drill: &Drill) -> String {
    format!(
        "cut off: {:>3} s left, {} of {} rehearsed requests answered, {} real ones, {} missed ",
        drill.seconds_left,
        drill.answered,
        drill.rehearsed,
        drill.requests,
        drill.misses.len()
    )
}

/// What a drill showed.
pub(crate) fn drill(drill: &Drill) -> String {
    if drill.state == "none" || drill.state.is_empty() {
        return "there was no drill since the hub started\n".into();
    }
    let verdict = match (drill.complete, drill.survived) {
        (false, _) => "The drill was ended early.",
        (true, Some(true)) => "The node goes on without the cloud.",
        (true, _) => "The node does not go on without the cloud.",
    };
    let local = drill
        .local_after_milliseconds
        .map_or("It did not go local in time".to_owned(), |after| {
            format!("It went local after {after} ms")
        });
    let mut out = format!(
        "{verdict}\n{local}; {} s were planned. Of a kubelet that starts anew {} of {} requests were answered; {} requests of others came.\n",
        drill.seconds, drill.answered, drill.rehearsed, drill.requests
    );
    for (title, tolerable) in [
        ("Missed:", false),
        ("Missed, and the node can do without:", true),
    ] {
        let mut misses: Vec<&Miss> = drill
            .misses
            .iter()
            .filter(|miss| miss.tolerable == tolerable)
            .collect();
        if misses.is_empty() {
            continue;
        }
        misses.sort_by(|a, b| b.times.cmp(&a.times).then_with(|| a.what.cmp(&b.what)));
        let _ = writeln!(out, "\n{title}");
        for miss in misses {
            let _ = writeln!(
                out,
                "  {:>4}x {} {} {} ({})",
                miss.times,
                miss.code,
                plain(&miss.verb),
                plain(&miss.what),
                plain(&miss.who)
            );
        }
    }
    if drill.more_misses > 0 {
        let _ = writeln!(out, "\n... and {} more.", drill.more_misses);
    }
    out
}

/// One upgrade.
pub(crate) fn upgrade(upgrade: &Upgrade) -> String {
    let mut out = format!(
        "Upgrade {} of pod {}/{}: {}\n",
        plain(&upgrade.id),
        plain(&upgrade.namespace),
        plain(&upgrade.pod),
        plain(&upgrade.state)
    );
    for (what, value) in [
        ("reason", &upgrade.reason),
        ("until", &upgrade.until),
        ("revision", &upgrade.revision),
        ("new pod", &upgrade.new_pod),
        ("asked by", &upgrade.asked_by),
        ("since", &upgrade.changed_at),
    ] {
        if !value.is_empty() {
            let _ = writeln!(out, "  {what:<9} {}", plain(value));
        }
    }
    out
}

/// All upgrades, the newest first, and the pods that are due (`None`: the node does not know its pods).
pub(crate) fn upgrades(upgrades: &Upgrades, due: Option<Vec<String>>) -> String {
    let mut out = String::new();
    if let Some(error) = &upgrades.policy.error {
        let _ = writeln!(out, "The policy cannot be used: {}\n", plain(error));
    }
    let rows = upgrades.items.iter().rev().map(|upgrade| {
        let pod = format!("{}/{}", upgrade.namespace, upgrade.pod);
        [
            &upgrade.id,
            &pod,
            &upgrade.state,
            &upgrade.changed_at,
            &upgrade.reason,
        ]
        .map(|cell| plain(cell))
    });
    let mut table = vec![["ID", "POD", "STATE", "SINCE", "REASON"].map(str::to_owned)];
    table.extend(rows);
    if table.len() == 1 {
        out.push_str("There are no upgrades.\n");
    } else {
        let width = |column: usize| {
            table
                .iter()
                .filter_map(|row| row.get(column))
                .map(|cell| cell.chars().count())
                .max()
                .unwrap_or(0)
        };
        let widths = [width(0), width(1), width(2), width(3)];
        for [id, pod, state, since, reason] in &table {
            let [a, b, c, d] = widths;
            let line = format!("{id:<a$}  {pod:<b$}  {state:<c$}  {since:<d$}  {reason}");
            let _ = writeln!(out, "{}", line.trim_end());
        }
    }
    match due {
        None => out.push_str("\nThe node does not know its pods.\n"),
        Some(due) if due.is_empty() => out.push_str("\nNo pod is due.\n"),
        Some(due) => {
            out.push_str("\nPods that are due:\n");
            for pod in due {
                let _ = writeln!(out, "  {}", plain(&pod));
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPORT: &str = r#"{"node":"edge-1","score":83,"verdict":"not ready","at":"x","checks":[
        {"id":"link","state":"ok","weight":5,"what":"the link to the cloud","why":"up"},
        {"id":"images","state":"warn","weight":5,"what":"the images","why":"not seen","todo":"pull them"},
        {"id":"objects","state":"fail","weight":20,"what":"what the pods need","why":"not cached: secret d/a","todo":"read \u001b[31mit"}]}"#;

    #[test]
    fn a_report_begins_with_what_fails_and_says_what_to_do() {
        let parsed: Report = serde_json::from_str(REPORT).unwrap();
        assert!(!parsed.is_healthy());
        assert_eq!(
            report(&parsed),
            "Node edge-1: not ready, 83 of 100 points\n\n\
             FAIL  objects  what the pods need: not cached: secret d/a\n               -> read  [31mit\n\
             warn  images   the images: not seen\n               -> pull them\n\
             ok    link     the link to the cloud: up\n"
        );
        let well: Report = serde_json::from_str(&REPORT.replace("\"fail\"", "\"warn\"")).unwrap();
        assert!(well.is_healthy());
    }

    #[test]
    fn upgrades_are_told_newest_first_with_what_is_due() {
        let told: Upgrades = serde_json::from_str(
            r#"{"items":[
            {"id":"a","namespace":"d","pod":"p","state":"done","changedAt":"t1","reason":"pod d/q is ready"},
            {"id":"bb","namespace":"d","pod":"r","state":"waiting-for-link","changedAt":"t2","reason":"cut \u001b[31moff"}],
            "policy":{"usable":false,"error":"no such day"}}"#,
        )
        .unwrap();
        assert_eq!(
            upgrades(&told, Some(vec!["d/r".into()])),
            "The policy cannot be used: no such day\n\n\
             ID  POD  STATE             SINCE  REASON\n\
             bb  d/r  waiting-for-link  t2     cut  [31moff\n\
             a   d/p  done              t1     pod d/q is ready\n\n\
             Pods that are due:\n  d/r\n"
        );
        let none = upgrades(&Upgrades::default(), Some(Vec::new()));
        assert_eq!(none, "There are no upgrades.\n\nNo pod is due.\n");
        let one = upgrade(told.items.first().unwrap());
        assert_eq!(
            one,
            "Upgrade a of pod d/p: done\n  reason    pod d/q is ready\n  since     t1\n"
        );
    }

    #[test]
    fn a_drill_tells_what_was_missed_most_first() {
        let told: Drill = serde_json::from_str(
            r#"{"state":"done","seconds":30,"secondsLeft":0,"localAfterMilliseconds":12,"rehearsed":9,"answered":8,"requests":40,
            "complete":true,"survived":false,"moreMisses":2,"misses":[
            {"who":"kubelet","verb":"get","what":"/a","code":503,"times":1,"tolerable":false},
            {"who":"kubelet","verb":"get","what":"/b","code":503,"times":7,"tolerable":false},
            {"who":"kubectl","verb":"list","what":"/c","code":403,"times":1,"tolerable":true}]}"#,
        )
        .unwrap();
        assert!(told.is_over());
        let text = drill(&told);
        assert!(
            text.starts_with(
                "The node does not go on without the cloud.\nIt went local after 12 ms"
            ),
            "{text}"
        );
        let at = |part: &str| {
            text.find(part)
                .unwrap_or_else(|| panic!("{part} in {text}"))
        };
        assert!(at("7x 503 get /b (kubelet)") < at("1x 503 get /a (kubelet)"));
        assert!(at("can do without") < at("/c (kubectl)"));
        assert!(text.ends_with("... and 2 more.\n"));
        let none: Drill = serde_json::from_str(r#"{"state":"none"}"#).unwrap();
        assert!(none.is_over() && drill(&none).contains("no drill"));
    }
}
