//! Tests that change the network do it in a network namespace of their own: the test runs itself again in one.

use std::process::Command;

const INSIDE: &str = "YURT_TEST_NETNS";

/// Whether the caller, the test of this full name, is inside a namespace of its own. Outside, it is run there; where that is not
/// possible, the reason is said.
pub(crate) fn inside(test: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    if let Err(why) = tool("unshare", &["--net", "true"]) {
        eprintln!("SKIPPED {test}: no network namespace can be made here: {why}");
        return false;
    }
    let program = std::env::current_exe().unwrap();
    let done = Command::new("unshare")
        .arg("--net")
        .arg(program)
        .args(["--exact", test, "--nocapture"])
        .env(INSIDE, "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&done.stdout).into_owned()
        + String::from_utf8_lossy(&done.stderr).as_ref();
    eprintln!("{said}");
    assert!(done.status.success(), "{said}");
    assert!(said.contains("1 passed"), "{said}");
    false
}

/// Runs a tool; what it printed, or why it failed.
pub(crate) fn tool(name: &str, arguments: &[&str]) -> Result<String, String> {
    let done = Command::new(name)
        .args(arguments)
        .output()
        .map_err(|error| format!("{name}: {error}"))?;
    if done.status.success() {
        return Ok(String::from_utf8_lossy(&done.stdout).into_owned());
    }
    Err(format!(
        "{name} {arguments:?}: {}",
        String::from_utf8_lossy(&done.stderr)
    ))
}

/// As [`tool`], which must succeed.
pub(crate) fn must(name: &str, arguments: &[&str]) -> String {
    tool(name, arguments).unwrap()
}

/// Whether all of these can be run; else the reason is said.
pub(crate) fn can_run(test: &str, tools: &[(&str, &[&str])]) -> bool {
    for (name, arguments) in tools {
        if let Err(why) = tool(name, arguments) {
            eprintln!("SKIPPED {test}: {why}");
            return false;
        }
    }
    true
}
