//! What is told of filters, in words. Pure.

use super::Checked;
use crate::render::plain;
use std::fmt::Write as _;
use yurt_hub::{
    explain::{Change, Did, Explanation, Overview, Step},
    rules::Complaint,
};

/// Characters of a value that are shown.
const SHOWN: usize = 160;

/// `FILE:LINE:COLUMN: rule: at: why`, as compilers say it.
pub(super) fn complaint(file: &str, complaint: &Complaint) -> String {
    let mut parts = Vec::new();
    if !complaint.rule.is_empty() {
        parts.push(format!("rule {}", plain(&complaint.rule)));
    }
    if !complaint.at.is_empty() {
        parts.push(plain(&complaint.at));
    }
    // The compiler of expressions points at a place in lines of its own.
    let why = complaint.why.lines().map(plain).collect::<Vec<_>>();
    parts.push(why.join("\n    "));
    let place = match complaint.line {
        0 => String::new(),
        line => format!(":{line}:{}", complaint.column),
    };
    format!("{}{place}: {}", plain(file), parts.join(": "))
}

/// A file with rules.
pub(super) fn checked(file: &str, checked: &Checked) -> String {
    let mut out = String::new();
    for wrong in &checked.complaints {
        let _ = writeln!(out, "{}", complaint(file, wrong));
    }
    for warning in &checked.warnings {
        let _ = writeln!(
            out,
            "{}: warning: rule {} {}",
            plain(file),
            warning.rule,
            plain(&warning.why)
        );
    }
    let rules = match checked.rules.len() {
        1 => "1 rule makes sense".to_owned(),
        count => format!("{count} rules make sense"),
    };
    let rest = match checked.complaints.len() {
        0 => String::new(),
        1 => ", 1 complaint".to_owned(),
        count => format!(", {count} complaints"),
    };
    let _ = writeln!(out, "{}: {rules}{rest}", plain(file));
    out
}

/// What becomes of objects.
pub(super) fn explanations(explanations: &[Explanation]) -> String {
    let told: Vec<String> = explanations.iter().map(explanation).collect();
    told.join("\n")
}

fn explanation(told: &Explanation) -> String {
    let reads = match told.verb.as_str() {
        "get" => "gets",
        "watch" => "watches",
        _ => "lists",
    };
    let mut out = format!(
        "{}, when {} {reads} {}:\n",
        plain(&told.object),
        plain(&told.component),
        plain(&told.resource)
    );
    let names: Vec<String> = told.steps.iter().map(name).collect();
    let width = names.iter().map(String::len).max().unwrap_or(0);
    for (step, name) in told.steps.iter().zip(&names) {
        let did = match step.did {
            Did::NotAsked => "not for this request",
            Did::NotConcerned => "not for this object",
            Did::Kept => "leaves it",
            Did::Changed => "changes it",
            Did::Dropped => "hides it",
            Did::Failed => "fails and leaves it",
            Did::NotReached => "not reached",
        };
        let colon = if step.why.is_empty() { "" } else { ": " };
        let _ = writeln!(out, "  {name:<width$}  {did}{colon}{}", plain(&step.why));
        for line in step.changes.iter().map(change) {
            let _ = writeln!(out, "  {:<width$}    {line}", "");
        }
    }
    let verdict = match told.verdict.as_str() {
        "dropped" => "It is not shown.",
        "changed" => "It is shown changed.",
        _ => "It is shown as it is.",
    };
    let _ = writeln!(out, "  {verdict}");
    for remark in &told.remarks {
        let _ = writeln!(out, "  Note: {}", plain(remark));
    }
    out
}

fn name(step: &Step) -> String {
    match step.origin.as_str() {
        "hub" => plain(&step.filter),
        origin => format!("{} ({})", plain(&step.filter), plain(origin)),
    }
}

fn change(change: &Change) -> String {
    let shown = |value: &serde_json::Value| {
        let text = plain(&value.to_string());
        match text.char_indices().nth(SHOWN) {
            Some((at, _)) => format!("{}...", &text[..at]),
            None => text,
        }
    };
    let path = plain(&change.path);
    match (&change.before, &change.after) {
        (None, Some(after)) => format!("+ {path}: {}", shown(after)),
        (Some(before), None) => format!("- {path}: {}", shown(before)),
        (Some(before), Some(after)) => format!("~ {path}: {} -> {}", shown(before), shown(after)),
        (None, None) => path,
    }
}

/// What is in force.
pub(super) fn overview(overview: &Overview) -> String {
    let mut rows = vec![["FILTER", "FROM", "FOR", "OF", "VERBS"].map(str::to_owned)];
    for filter in &overview.filters {
        let components = filter.components.as_ref().map(|names| {
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            names.join(",")
        });
        rows.push([
            plain(&filter.name),
            plain(&filter.origin),
            components.map_or("everybody".to_owned(), |names| plain(&names)),
            plain(&filter.resources.join(",")),
            plain(&filter.verbs.join(",")),
        ]);
    }
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let widths: [usize; 5] = std::array::from_fn(width);
    let mut out = String::new();
    for row in &rows {
        let cells: Vec<String> = row
            .iter()
            .zip(widths)
            .map(|(cell, width)| format!("{cell:<width$}"))
            .collect();
        let _ = writeln!(out, "{}", cells.join("  ").trim_end());
    }
    for told in &overview.complaints {
        let _ = writeln!(
            out,
            "complaint ({}): {}",
            plain(&told.origin),
            plain(&told.complaint)
        );
    }
    out
}
