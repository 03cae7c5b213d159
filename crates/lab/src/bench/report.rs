//! What comes out: figures with the alternative and the budget beside them.

use serde_json::{Value, json};

/// Of what a figure counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Unit {
    PerSecond,
    Milliseconds,
    Seconds,
    Kilobytes,
    Megabytes,
    KilobytesPerSecond,
    MegabytesPerSecond,
    MebibytesPerSecond,
    MillisecondsPerMebibyte,
    Percent,
    Count,
}

impl Unit {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::PerSecond => "/s",
            Self::Milliseconds => "ms",
            Self::Seconds => "s",
            Self::Kilobytes => "KB",
            Self::Megabytes => "MB",
            Self::KilobytesPerSecond => "KB/s",
            Self::MegabytesPerSecond => "MB/s",
            Self::MebibytesPerSecond => "MiB/s",
            Self::MillisecondsPerMebibyte => "ms/MiB",
            Self::Percent => "%",
            Self::Count => "",
        }
    }

    pub(super) fn render(self, value: f64) -> String {
        let digits = match self {
            Self::Milliseconds | Self::Seconds => 3,
            Self::MillisecondsPerMebibyte => 2,
            Self::MebibytesPerSecond
            | Self::Megabytes
            | Self::MegabytesPerSecond
            | Self::Percent => 1,
            Self::PerSecond | Self::Kilobytes | Self::KilobytesPerSecond | Self::Count => 0,
        };
        format!("{value:.digits$} {}", self.name())
            .trim_end()
            .to_owned()
    }
}

/// One figure.
#[derive(Clone, Debug)]
pub struct Row {
    /// What was measured.
    pub what: String,
    /// Of what it counts.
    pub unit: Unit,
    /// Without the hub.
    pub direct: Option<f64>,
    /// With it.
    pub hub: f64,
    /// What the budget table says of the product today.
    pub upstream: Option<&'static str>,
    /// The most that the design allows.
    pub budget: Option<f64>,
}

impl Row {
    /// A figure of the hub.
    pub fn new(what: &str, unit: Unit, hub: f64) -> Self {
        Self {
            what: what.to_owned(),
            unit,
            direct: None,
            hub,
            upstream: None,
            budget: None,
        }
    }

    /// The same without the hub.
    #[must_use]
    pub fn direct(mut self, value: f64) -> Self {
        self.direct = Some(value);
        self
    }

    /// What it may be at most, and what it is today upstream.
    #[must_use]
    pub fn budget(mut self, most: f64, upstream: Option<&'static str>) -> Self {
        self.budget = Some(most);
        self.upstream = upstream;
        self
    }

    /// Whether it is within its budget; a figure that could not be measured is not.
    pub fn held(&self) -> Option<bool> {
        self.budget.map(|most| self.hub <= most)
    }
}

/// All figures of one run.
#[derive(Clone, Debug)]
pub struct Report {
    bench: &'static str,
    /// What the figures without and with it are headed.
    columns: [&'static str; 2],
    quick: bool,
    rows: Vec<Row>,
}

impl Report {
    pub(super) fn new(bench: &'static str, columns: [&'static str; 2], quick: bool) -> Self {
        Self {
            bench,
            columns,
            quick,
            rows: Vec::new(),
        }
    }

    pub(super) fn push(&mut self, row: Row) {
        self.rows.push(row);
    }

    /// The figures.
    pub fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// Whether every figure with a budget is within it.
    pub fn held(&self) -> bool {
        self.rows.iter().all(|row| row.held() != Some(false))
    }

    /// One JSON object.
    pub fn to_json(&self) -> String {
        let rows: Vec<Value> = self
            .rows
            .iter()
            .map(|row| {
                json!({
                    "what": row.what,
                    "unit": row.unit.name(),
                    "direct": row.direct,
                    "hub": row.hub,
                    "upstream": row.upstream,
                    "budget": row.budget,
                    "held": row.held(),
                })
            })
            .collect();
        let report = json!({
            "bench": self.bench,
            "version": env!("CARGO_PKG_VERSION"),
            "optimized": !cfg!(debug_assertions),
            "quick": self.quick,
            "cpus": cpus(),
            "held": self.held(),
            "figures": rows,
        });
        format!("{report:#}")
    }

    /// Prints it: for machines, or for people.
    pub fn print(&self, json: bool) {
        print(json, || self.to_json(), || self.to_text());
    }

    /// A table for people.
    pub fn to_text(&self) -> String {
        let [without, with] = self.columns;
        let head = ["", without, with, "UPSTREAM", "BUDGET", ""].map(str::to_owned);
        let rows = self.rows.iter().map(|row| {
            [
                row.what.clone(),
                row.direct
                    .map_or_else(String::new, |value| row.unit.render(value)),
                row.unit.render(row.hub),
                row.upstream.unwrap_or_default().to_owned(),
                row.budget.map_or_else(String::new, |most| {
                    format!("<= {most} {}", row.unit.name())
                        .trim_end()
                        .to_owned()
                }),
                match row.held() {
                    Some(true) => "ok",
                    Some(false) => "OVER",
                    None => "",
                }
                .to_owned(),
            ]
        });
        let mut text = crate::columns::render(std::iter::once(head).chain(rows));
        text.push_str(&footer(
            "",
            "client, hub and API server",
            self.quick.then_some("small data, short loads"),
        ));
        text
    }
}

/// Prints a report, one way or the other.
pub(super) fn print(
    json: bool,
    to_json: impl FnOnce() -> String,
    to_text: impl FnOnce() -> String,
) {
    if json {
        println!("{}", to_json());
    } else {
        print!("{}", to_text());
    }
}

/// What stands under a table: what else there is to say, who shared the machine, and what makes the figures worth less.
pub(super) fn footer(said: &str, sharing: &str, quick: Option<&str>) -> String {
    let optimized = match cfg!(debug_assertions) {
        true => "NOT OPTIMIZED: build with --release",
        false => "optimized build",
    };
    let quick = quick.map_or_else(String::new, |how| format!(", --quick: {how}"));
    format!(
        "\n{said}{} CPUs for {sharing} together; {optimized}{quick}\n",
        cpus()
    )
}

pub(super) fn cpus() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn budgets_decide() {
        let within = Row::new("a", Unit::Seconds, 0.1).budget(0.15, None);
        let over = Row::new("b", Unit::Seconds, 0.2).budget(0.15, Some("1.5 s"));
        let unmeasured = Row::new("c", Unit::Megabytes, f64::NAN).budget(15.0, None);
        let free = Row::new("d", Unit::PerSecond, 5.0).direct(6.0);
        let held = [&within, &over, &unmeasured, &free].map(Row::held);
        assert_eq!(held, [Some(true), Some(false), Some(false), None]);
        let mut report = Report::new("hub", ["DIRECT", "HUB"], true);
        report.push(within);
        report.push(free);
        assert!(report.held());
        report.push(over);
        assert!(!report.held());
    }

    #[test]
    fn text_and_json_say_the_same() {
        let mut report = Report::new("hub", ["DIRECT", "HUB"], false);
        report.push(Row::new("memory", Unit::Megabytes, 12.34).budget(15.0, Some("35-45 MB")));
        report.push(Row::new("rate", Unit::PerSecond, 1234.5).direct(2000.0));
        let text = report.to_text();
        let line = text.lines().nth(1).expect("the first figure");
        assert!(line.starts_with("memory"), "{line}");
        for cell in ["12.3 MB", "35-45 MB", "<= 15 MB", "ok"] {
            assert!(line.contains(cell), "{cell} in {line}");
        }
        let json: Value = serde_json::from_str(&report.to_json()).expect("JSON");
        assert_eq!(json["figures"][0]["hub"], 12.34);
        assert_eq!(json["figures"][0]["held"], true);
        assert_eq!(json["figures"][1]["direct"], 2000.0);
        assert_eq!(json["held"], true);
    }
}
