//! Starting, stopping and refusing.

use crate::fixture::{Lab, Scratch, eventually, signal, text, up, yurt};
use std::process::Stdio;

#[test]
fn a_data_dir_in_use_is_refused_and_a_clean_stop_frees_it() {
    let Some(mut lab) = Lab::start("a=1") else {
        return;
    };
    let second = up(&lab.dir(), "a=1").output().unwrap();
    assert!(!second.status.success());
    let said = text(&second.stderr);
    assert!(
        said.contains("in use") && said.contains(&lab.pid().to_string()),
        "{said}"
    );

    let hub = lab.lab(&["status"])[0]["hub_pid"].as_u64().unwrap();
    lab.cloud()
        .ok(&["create", "configmap", "kept", "--from-literal=a=b"]);
    assert_eq!(lab.terminate(), Some(0));
    assert!(
        !std::path::Path::new(&format!("/proc/{hub}")).exists(),
        "hub outlived the lab"
    );

    let other = up(&lab.dir(), "a=2").output().unwrap();
    assert!(
        text(&other.stderr).contains("--pools a=1"),
        "{}",
        text(&other.stderr)
    );
}

#[test]
fn the_cluster_is_kept_across_a_kill_of_everything() {
    let Some(lab) = Lab::start("a=1") else { return };
    lab.cloud()
        .ok(&["create", "configmap", "kept", "--from-literal=a=b"]);
    let hub = lab.lab(&["status"])[0]["hub_pid"].as_u64().unwrap();
    signal(lab.pid(), rustix::process::Signal::KILL);
    eventually("the hub ends with its killed parent", || {
        std::fs::read_to_string(format!("/proc/{hub}/stat"))
            .map_or(true, |stat| stat.contains(") Z "))
    });
    let mut again = up(&lab.dir(), "a=1").stderr(Stdio::null()).spawn().unwrap();
    let mut line = String::new();
    std::io::BufRead::read_line(
        &mut std::io::BufReader::new(again.stdout.take().unwrap()),
        &mut line,
    )
    .unwrap();
    assert_eq!(line, "ready\n");
    assert_eq!(
        lab.cloud()
            .ok(&["get", "configmap", "kept", "-o", "jsonpath={.data.a}"]),
        "b"
    );
    signal(again.id(), rustix::process::Signal::TERM);
    assert!(again.wait().unwrap().success());
}

#[test]
fn commands_without_a_lab_say_how_to_start_one() {
    let scratch = Scratch::new();
    let out = yurt()
        .args(["lab", "--data-dir"])
        .arg(scratch.path())
        .arg("status")
        .output()
        .unwrap();
    assert!(!out.status.success());
    assert!(
        text(&out.stderr).contains("yurt up"),
        "{}",
        text(&out.stderr)
    );
    let out = up(scratch.path(), "A=1").output().unwrap();
    assert!(
        text(&out.stderr).contains("not a valid pool name"),
        "{}",
        text(&out.stderr)
    );
}
