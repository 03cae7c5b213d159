//! `yurt node convert` and `revert` as a Job runs them: in the host's root, which is mounted somewhere else. The host is a directory with the
//! files of a node of kubeadm and a systemctl that writes down what it is asked for.

use crate::fixture::{Scratch, text, yurt};
use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Output},
};

const FILES: [(&str, &str); 7] = [
    ("dev/null", ""),
    (
        "etc/systemd/system/kubelet.service.d/10-kubeadm.conf",
        "ExecStart=/usr/bin/kubelet --kubeconfig=/etc/kubernetes/kubelet.conf $KUBELET_KUBEADM_ARGS\n",
    ),
    (
        "etc/kubernetes/kubelet.conf",
        "clusters: [{name: c, cluster: {server: 'https://10.0.0.1:6443'}}]\n",
    ),
    ("etc/kubernetes/pki/ca.crt", "ca"),
    (
        "var/lib/kubelet/kubeadm-flags.env",
        "KUBELET_KUBEADM_ARGS=\"--a=b\"\n",
    ),
    ("var/lib/kubelet/pki/kubelet-client-current.pem", "pair"),
    (
        "usr/bin/systemctl",
        "#!/bin/sh\necho \"$@\" >> /run/asked\ncase $1 in is-active) exit 3;; esac\n",
    ),
];

/// Everything under a directory but `/run`: path, mode, bytes.
fn listing(under: &Path) -> Vec<(PathBuf, u32, Vec<u8>)> {
    let mut found = Vec::new();
    let mut open = vec![under.to_owned()];
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            let data = fs::symlink_metadata(&path).unwrap();
            if path == under.join("run") {
                continue;
            }
            let bytes = if data.is_file() {
                fs::read(&path).unwrap()
            } else {
                Vec::new()
            };
            if data.is_dir() {
                open.push(path.clone());
            }
            found.push((path, data.permissions().mode(), bytes));
        }
    }
    found.sort();
    found
}

/// What is missing to run this here.
fn missing() -> Option<&'static str> {
    let works = |program: &str, arguments: &[&str]| {
        let out = Command::new(program).args(arguments).output();
        out.is_ok_and(|out| out.status.success())
    };
    if !rustix::process::geteuid().is_root() || !works("unshare", &["--net", "true"]) {
        return Some("root, or the right to make a network namespace");
    }
    (!Path::new("/bin/busybox").exists())
        .then_some("a static busybox (apt-get install busybox-static)")
}

#[test]
fn a_hub_that_does_not_come_up_leaves_the_host_as_it_was() {
    if let Some(missing) = missing() {
        eprintln!("SKIPPED: for want of {missing}");
        return;
    }
    let scratch = Scratch::new();
    let root = scratch.path().join("host");
    for (path, content) in FILES {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
    for directory in ["bin", "run", "usr/local/bin"] {
        fs::create_dir_all(root.join(directory)).unwrap();
    }
    fs::set_permissions(
        root.join("usr/bin/systemctl"),
        fs::Permissions::from_mode(0o755),
    )
    .unwrap();
    fs::copy("/bin/busybox", root.join("bin/sh")).unwrap();
    let before = listing(&root);
    // In a network of its own: whatever hub runs on this machine is none of the host's.
    let node = |arguments: &[&str]| -> Output {
        let program = yurt().get_program().to_owned();
        let mut command = Command::new("unshare");
        command
            .arg("--net")
            .arg(program)
            .arg("node")
            .args(arguments);
        command.arg("--root").arg(&root).arg("--node-name=n1");
        command.env("PATH", "/usr/bin:/bin").output().unwrap()
    };
    let asked = || fs::read_to_string(root.join("run/asked")).unwrap_or_default();

    let plan = node(&["convert", "--nodepool-name=p", "--dry-run"]);
    let said = text(&plan.stdout);
    assert!(plan.status.success(), "{said}{}", text(&plan.stderr));
    let line = |wanted: &str| {
        said.lines()
            .position(|line| line == wanted)
            .unwrap_or_else(|| panic!("{wanted:?} in {said}"))
    };
    assert!(line("wait until the hub is ready") < line("write /var/lib/kubelet/kubeadm-flags.env"));
    assert_eq!(listing(&root), before, "a dry run changes nothing");

    let converted = node(&["convert", "--nodepool-name=p", "--timeout=1s"]);
    let why = text(&converted.stderr);
    assert_eq!(converted.status.code(), Some(1), "{why}");
    assert!(
        why.contains("the hub is not ready") && why.contains("the node is as before"),
        "{why}"
    );
    assert_eq!(listing(&root), before, "{why}");
    let asked = asked();
    assert!(
        asked.contains("restart yurthub.service\n") && asked.contains("stop yurthub.service\n"),
        "{asked}"
    );
    assert!(
        !asked.contains("restart kubelet"),
        "the kubelet was never touched: {asked}"
    );

    let reverted = node(&["revert"]);
    assert!(reverted.status.success(), "{}", text(&reverted.stderr));
    assert!(text(&reverted.stdout).contains("nothing was changed"));
    assert_eq!(listing(&root), before);
}
