//! What comes out: figures side by side.

use super::super::report::{Unit, cpus};
use serde_json::{Value, json};
use std::fmt::Write as _;

/// Which of two figures is the better one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Better {
    Higher,
    Lower,
}

/// One figure.
#[derive(Clone, Debug)]
pub struct Figure {
    /// What was measured.
    pub what: String,
    /// Of what it counts.
    pub unit: Unit,
    /// Of the embedded server.
    pub ours: f64,
    /// Of the other one.
    pub other: Option<f64>,
    /// Which way is better.
    pub better: Better,
    /// How many times better than the other it is to be.
    pub target: Option<f64>,
}

impl Figure {
    /// How many times better than the other it is.
    pub fn ratio(&self) -> Option<f64> {
        let other = self.other?;
        // Also two that are 0.
        if self.ours == other {
            return Some(1.0);
        }
        Some(match self.better {
            Better::Higher => self.ours / other,
            Better::Lower => other / self.ours,
        })
    }

    /// Whether it is as good as it is to be; `None` without another one or a target. What could not be measured is not.
    pub fn held(&self) -> Option<bool> {
        Some(self.ratio()? >= self.target?)
    }
}

/// All figures of one run.
#[derive(Clone, Debug, Default)]
pub struct Comparison {
    quick: bool,
    compared: bool,
    figures: Vec<Figure>,
    /// Requests without the answer they should have had, and events that did not come.
    pub failed: u64,
}

impl Comparison {
    pub(super) fn new(quick: bool, compared: bool) -> Self {
        Self {
            quick,
            compared,
            ..Self::default()
        }
    }

    pub(super) fn push(&mut self, figure: Figure) {
        self.figures.push(figure);
    }

    /// The figures.
    pub fn figures(&self) -> &[Figure] {
        &self.figures
    }

    /// Whether nothing failed and every target was reached.
    pub fn held(&self) -> bool {
        self.failed == 0
            && self
                .figures
                .iter()
                .all(|figure| figure.held() != Some(false))
    }

    /// One JSON object.
    pub fn to_json(&self) -> String {
        let figures: Vec<Value> = self
            .figures
            .iter()
            .map(|figure| {
                json!({
                    "what": figure.what,
                    "unit": figure.unit.name(),
                    "yurt": figure.ours,
                    "other": figure.other,
                    "timesBetter": figure.ratio(),
                    "target": figure.target,
                    "held": figure.held(),
                })
            })
            .collect();
        let report = json!({
            "bench": "apiserver",
            "version": env!("CARGO_PKG_VERSION"),
            "optimized": !cfg!(debug_assertions),
            "quick": self.quick,
            "cpus": cpus(),
            "failed": self.failed,
            "held": self.held(),
            "figures": figures,
        });
        format!("{report:#}")
    }

    /// A table for people.
    pub fn to_text(&self) -> String {
        let head = if self.compared {
            ["", "YURT", "OTHER", "BETTER BY", "TARGET", ""]
        } else {
            ["", "YURT", "", "", "", ""]
        };
        let times = |ratio: f64| format!("{ratio:.1}x");
        let rows = self.figures.iter().map(|figure| {
            [
                figure.what.clone(),
                figure.unit.render(figure.ours),
                figure
                    .other
                    .map_or_else(String::new, |value| figure.unit.render(value)),
                figure.ratio().map_or_else(String::new, times),
                figure
                    .target
                    .filter(|_| self.compared)
                    .map_or_else(String::new, |target| format!(">= {}", times(target))),
                match figure.held() {
                    Some(true) => "ok",
                    Some(false) => "MISSED",
                    None => "",
                }
                .to_owned(),
            ]
        });
        let mut text = crate::columns::render(std::iter::once(head.map(str::to_owned)).chain(rows));
        let optimized = if cfg!(debug_assertions) {
            "NOT OPTIMIZED: build with --release"
        } else {
            "optimized build"
        };
        let quick = if self.quick {
            ", --quick: short loads"
        } else {
            ""
        };
        // Writing to a String does not fail.
        let _ = writeln!(
            text,
            "\n{} requests failed; {} CPUs for clients and servers together; {optimized}{quick}",
            self.failed,
            cpus()
        );
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figure(ours: f64, other: Option<f64>, better: Better, target: Option<f64>) -> Figure {
        Figure {
            what: "a".into(),
            unit: Unit::PerSecond,
            ours,
            other,
            better,
            target,
        }
    }

    #[test]
    fn better_is_up_or_down() {
        let faster = figure(300.0, Some(100.0), Better::Higher, Some(3.0));
        assert_eq!((faster.ratio(), faster.held()), (Some(3.0), Some(true)));
        let smaller = figure(100.0, Some(700.0), Better::Lower, Some(8.0));
        assert_eq!((smaller.ratio(), smaller.held()), (Some(7.0), Some(false)));
        let alone = figure(100.0, None, Better::Lower, Some(8.0));
        assert_eq!((alone.ratio(), alone.held()), (None, None));
        let equal = figure(0.0, Some(0.0), Better::Lower, None);
        assert_eq!(equal.ratio(), Some(1.0));
        let unmeasured = figure(f64::NAN, Some(1.0), Better::Lower, Some(8.0));
        assert_eq!(unmeasured.held(), Some(false));
    }

    #[test]
    fn a_failed_request_or_a_missed_target_shows() {
        let mut report = Comparison::new(false, true);
        report.push(figure(300.0, Some(100.0), Better::Higher, Some(3.0)));
        assert!(report.held());
        let line = report.to_text().lines().nth(1).map(str::to_owned);
        let line = line.expect("the first figure");
        for cell in ["300 /s", "100 /s", "3.0x", ">= 3.0x", "ok"] {
            assert!(line.contains(cell), "{cell} in {line}");
        }
        report.failed = 1;
        assert!(!report.held());
        report.failed = 0;
        report.push(figure(200.0, Some(100.0), Better::Higher, Some(3.0)));
        assert!(!report.held());
        let json: Value = serde_json::from_str(&report.to_json()).expect("JSON");
        assert_eq!(json["figures"][1]["timesBetter"], 2.0);
        assert_eq!(json["held"], false);
    }
}
