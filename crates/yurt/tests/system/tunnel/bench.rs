//! `yurt bench tunnel --quick`: every load of the bench goes through a server and an agent that are processes, and nothing fails.

use crate::fixture::{text, yurt};
use serde_json::Value;

#[test]
fn the_benchs_loads_all_succeed() {
    let out = yurt()
        .args(["bench", "tunnel", "--quick", "--json"])
        .output()
        .unwrap();
    // How fast it is does not matter here: the build is not optimized, and the machine may be busy.
    let report: Value = serde_json::from_slice(&out.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", text(&out.stderr)));
    assert_eq!(report["failed"], 0, "{report:#}");
    let figures = report["figures"].as_array().unwrap();
    assert!(figures.len() > 30);
    for figure in figures {
        assert!(figure["yurt"].is_number(), "not measured: {figure}");
    }
    // What has a bound of its own, whatever the other's: the stuck ones.
    let bounded = figures.iter().filter(|figure| figure["most"].is_number());
    assert_eq!(bounded.count(), 2);
}
