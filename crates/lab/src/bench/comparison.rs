//! What comes out: figures side by side with another program's.

use super::report::{Unit, cpus, footer, print};
use serde_json::{Value, json};

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
    /// With neither.
    pub direct: Option<f64>,
    /// Ours.
    pub ours: f64,
    /// The other program's.
    pub other: Option<f64>,
    /// Which way is better.
    pub better: Better,
    /// How many times better than the other it is to be.
    pub target: Option<f64>,
    /// What it may be at most, whatever the other one's.
    pub most: Option<f64>,
}

impl Figure {
    /// A figure of ours.
    pub(super) fn new(what: &str, unit: Unit, better: Better, ours: f64) -> Self {
        Self {
            what: what.to_owned(),
            unit,
            direct: None,
            ours,
            other: None,
            better,
            target: None,
            most: None,
        }
    }

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

    /// Whether it is as good as it is to be; `None` where nothing says how good. What could not be measured is not.
    pub fn held(&self) -> Option<bool> {
        let compared = self.ratio().zip(self.target);
        let compared = compared.map(|(ratio, target)| ratio >= target);
        let bounded = self.most.map(|most| self.ours <= most);
        match (compared, bounded) {
            (Some(compared), Some(bounded)) => Some(compared && bounded),
            (compared, bounded) => compared.or(bounded),
        }
    }

    fn aim(&self, compared: bool) -> String {
        let times = self.target.filter(|_| compared);
        let times = times.map(|times| format!(">= {times:.1}x"));
        let most = self
            .most
            .map(|most| format!("<= {}", self.unit.render(most)));
        times.into_iter().chain(most).collect::<Vec<_>>().join(", ")
    }
}

/// Whose figures stand beside each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sides {
    pub(super) bench: &'static str,
    /// What figures with neither are headed; none where there are none.
    pub(super) direct: Option<&'static str>,
    /// What the other program's figures are headed; none where there is none.
    pub(super) other: Option<&'static str>,
}

/// All figures of one run.
#[derive(Clone, Debug, Default)]
pub struct Comparison {
    sides: Sides,
    quick: bool,
    figures: Vec<Figure>,
    /// Requests without the answer they should have had, and events that did not come.
    pub failed: u64,
}

impl Comparison {
    pub(super) fn new(sides: Sides, quick: bool) -> Self {
        Self {
            sides,
            quick,
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
                    "direct": figure.direct,
                    "yurt": figure.ours,
                    "other": figure.other,
                    "timesBetter": figure.ratio(),
                    "target": figure.target,
                    "most": figure.most,
                    "held": figure.held(),
                })
            })
            .collect();
        let report = json!({
            "bench": self.sides.bench,
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

    /// Prints it: for machines, or for people.
    pub fn print(&self, json: bool) {
        print(json, || self.to_json(), || self.to_text());
    }

    /// A table for people.
    pub fn to_text(&self) -> String {
        let Sides { direct, other, .. } = self.sides;
        let head = [
            "",
            direct.unwrap_or_default(),
            "YURT",
            other.unwrap_or_default(),
            other.map_or("", |_| "BETTER BY"),
            "TARGET",
            "",
        ];
        let head = head.map(str::to_owned);
        let rows = self.figures.iter().map(|figure| {
            let shown = |value: Option<f64>| {
                value.map_or_else(String::new, |value| figure.unit.render(value))
            };
            let times = figure
                .ratio()
                .filter(|times| times.is_finite())
                .map(|ratio| format!("{ratio:.1}x"));
            let held = match figure.held() {
                Some(true) => "ok",
                Some(false) => "MISSED",
                None => "",
            };
            [
                figure.what.clone(),
                shown(figure.direct),
                figure.unit.render(figure.ours),
                shown(figure.other),
                times.unwrap_or_default(),
                figure.aim(other.is_some()),
                held.to_owned(),
            ]
        });
        let mut text = crate::columns::render(std::iter::once(head).chain(rows));
        text.push_str(&footer(
            &format!("{} requests failed; ", self.failed),
            "clients and servers",
            self.quick.then_some("short loads"),
        ));
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figure(ours: f64, other: Option<f64>, better: Better, target: Option<f64>) -> Figure {
        Figure {
            other,
            target,
            ..Figure::new("a", Unit::PerSecond, better, ours)
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
        let mut bounded = figure(5.0, Some(10.0), Better::Lower, Some(2.0));
        for (most, held) in [(5.0, true), (4.9, false)] {
            bounded.most = Some(most);
            assert_eq!(bounded.held(), Some(held));
        }
        bounded.other = None;
        assert_eq!(bounded.held(), Some(false));
        let unmeasured = figure(f64::NAN, Some(1.0), Better::Lower, Some(8.0));
        assert_eq!(unmeasured.held(), Some(false));
    }

    #[test]
    fn a_failed_request_or_a_missed_target_shows() {
        let sides = Sides {
            bench: "apiserver",
            direct: None,
            other: Some("OTHER"),
        };
        let mut report = Comparison::new(sides, false);
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
