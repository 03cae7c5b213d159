//! What the demo prints: steps as they happen, a table at the end.

use std::time::Duration;

/// The running report.
#[derive(Debug)]
pub(super) struct Report {
    steps: usize,
    step: usize,
    failed: usize,
    figures: Vec<Figure>,
}

#[derive(Debug)]
struct Figure {
    what: String,
    value: String,
    seconds: Option<f64>,
    budget: Option<Duration>,
    held: bool,
}

impl Report {
    /// A report of so many steps.
    pub(super) fn new(steps: usize) -> Self {
        Self {
            steps,
            step: 0,
            failed: 0,
            figures: Vec::new(),
        }
    }

    pub(super) fn title(&self, text: &str) {
        println!("{text}\n");
    }

    /// The next step begins.
    pub(super) fn step(&mut self, text: &str) {
        self.step += 1;
        println!("[{}/{}] {text}", self.step, self.steps);
    }

    /// A line below the step.
    pub(super) fn say(&self, text: &str) {
        println!("      {text}");
    }

    /// Something that must hold.
    pub(super) fn check(&mut self, what: &str, held: bool) {
        if held {
            println!("      ok: {what}");
        } else {
            self.failed += 1;
            println!("      DID NOT HOLD: {what}");
        }
    }

    /// A measured time, with the design's budget when there is one.
    pub(super) fn measure(&mut self, what: &str, time: Duration, budget: Option<Duration>) {
        let held = budget.is_none_or(|budget| time <= budget);
        self.failed += usize::from(!held);
        let value = duration(time);
        println!(
            "      {what}: {value}{}",
            if held { "" } else { "  OVER BUDGET" }
        );
        let seconds = Some(time.as_secs_f64());
        self.figures.push(Figure {
            what: what.to_owned(),
            value,
            seconds,
            budget,
            held,
        });
    }

    /// Another figure.
    pub(super) fn figure(&mut self, what: &str, value: String) {
        println!("      {what}: {value}");
        let what = what.to_owned();
        self.figures.push(Figure {
            what,
            value,
            seconds: None,
            budget: None,
            held: true,
        });
    }

    /// Whether everything held so far.
    pub(super) fn held(&self) -> bool {
        self.failed == 0
    }

    /// The table at the end.
    pub(super) fn summary(&self, json: bool) {
        let head = ["MEASURED", "", "BUDGET"].map(str::to_owned);
        let rows = self.figures.iter().map(|figure| {
            let budget = match figure.budget {
                Some(budget) if figure.held => format!("<= {}  held", duration(budget)),
                Some(budget) => format!("<= {}  NOT HELD", duration(budget)),
                None => String::new(),
            };
            [figure.what.clone(), figure.value.clone(), budget]
        });
        println!(
            "\n{}",
            crate::columns::render(std::iter::once(head).chain(rows))
        );
        if json {
            let figures: Vec<_> = self
                .figures
                .iter()
                .map(
                    |f| serde_json::json!({"what": f.what, "value": f.value, "seconds": f.seconds}),
                )
                .collect();
            println!("{}", serde_json::json!(figures));
        }
        match self.failed {
            0 => println!("Everything held."),
            n => println!("{n} of the checks above did not hold."),
        }
    }
}

fn duration(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    if seconds >= 1.0 {
        format!("{seconds:.2} s")
    } else {
        format!("{:.2} ms", seconds * 1e3)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missed_budget_or_check_is_a_failure() {
        let mut report = Report::new(1);
        report.measure("fine", Duration::from_secs(1), Some(Duration::from_secs(1)));
        assert!(report.held());
        report.measure("late", Duration::from_secs(2), Some(Duration::from_secs(1)));
        assert!(!report.held());
        let mut report = Report::new(1);
        report.check("no", false);
        assert!(!report.held());
    }
}
