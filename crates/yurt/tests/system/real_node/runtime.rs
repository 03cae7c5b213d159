//! A containerd of the test's own, with one image made on the spot: a static busybox.

use crate::fixture::{eventually, text};
use std::{
    fs::File,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

/// The image that pods use.
pub(super) const IMAGE: &str = "localhost/busybox:1";
const PAUSE: &str = "localhost/pause:1";
const NAMESPACE: &str = "k8s.io";

/// Makes `images.tar` (a docker archive) in the directory that it runs in.
const MAKE_IMAGES: &str = r#"
set -eu
mkdir -p root/bin root/tmp root/proc root/sys root/dev root/etc
cp "$(command -v busybox)" root/bin/busybox
for applet in sh sleep cat mkdir; do ln -sf busybox "root/bin/$applet"; done
tar -C root -cf layer.tar .
layer=$(sha256sum layer.tar | cut -d' ' -f1)
image() {
  printf '{"architecture":"%s","os":"linux","config":{"Env":["PATH=/bin"],"Cmd":%s},"rootfs":{"type":"layers","diff_ids":["sha256:%s"]}}' \
    "$(dpkg --print-architecture)" "$2" "$layer" > "$1.json"
}
image busybox '["/bin/sh"]'
image pause '["/bin/sleep","1000000000"]'
printf '[{"Config":"busybox.json","RepoTags":["localhost/busybox:1"],"Layers":["layer.tar"]},{"Config":"pause.json","RepoTags":["localhost/pause:1"],"Layers":["layer.tar"]}]' > manifest.json
tar -cf images.tar manifest.json busybox.json pause.json layer.tar
"#;

/// A running containerd.
pub(super) struct Runtime {
    dir: PathBuf,
    child: Child,
}

/// What is missing on this machine to run one; empty when nothing is.
fn missing() -> Vec<String> {
    let mut missing = Vec::new();
    for program in ["containerd", "ctr", "runc", "busybox", "tar", "dpkg"] {
        let found = Command::new("sh")
            .args(["-c", &format!("command -v {program}")])
            .stdout(Stdio::null())
            .status();
        if !found.is_ok_and(|status| status.success()) {
            missing.push(program.to_owned());
        }
    }
    if plugins().is_none() {
        missing.push("the CNI plugins bridge and host-local".into());
    }
    if !rustix::process::geteuid().is_root() {
        missing.push("root".into());
    }
    missing
}

fn plugins() -> Option<&'static str> {
    ["/opt/cni/bin", "/usr/lib/cni"].into_iter().find(|dir| {
        Path::new(dir).join("bridge").exists() && Path::new(dir).join("host-local").exists()
    })
}

impl Runtime {
    /// Starts one with everything it writes under `dir`; `None`, said loudly, where it cannot run.
    pub(super) fn start(dir: &Path) -> Option<Self> {
        let missing = missing();
        if !missing.is_empty() {
            eprintln!(
                "SKIPPED: no container runtime here, for want of {} (apt-get install containerd runc \
                 containernetworking-plugins busybox-static)",
                missing.join(", ")
            );
            return None;
        }
        std::fs::create_dir_all(dir.join("cni")).unwrap();
        std::fs::create_dir_all(dir.join("image")).unwrap();
        let made = Command::new("sh")
            .args(["-c", MAKE_IMAGES])
            .current_dir(dir.join("image"))
            .output()
            .unwrap();
        assert!(made.status.success(), "{}", text(&made.stderr));
        let shown = dir.display();
        let network = format!(
            r#"{{"cniVersion":"0.4.0","name":"yurt-test","plugins":[{{"type":"bridge","bridge":"yurt-test0","isGateway":true,"ipam":{{"type":"host-local","ranges":[[{{"subnet":"10.77.0.0/24"}}]],"dataDir":"{shown}/ipam"}}}}]}}"#
        );
        std::fs::write(dir.join("cni/10-bridge.conflist"), network).unwrap();
        let config = format!(
            r#"version = 2
root = "{shown}/root"
state = "{shown}/state"
[grpc]
  address = "{shown}/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE}"
  disable_apparmor = true
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "native"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{}"
    conf_dir = "{shown}/cni"
"#,
            plugins().unwrap_or_default()
        );
        std::fs::write(dir.join("containerd.toml"), config).unwrap();
        let log = File::create(dir.join("containerd.log")).unwrap();
        let child = Command::new("containerd")
            .arg("--config")
            .arg(dir.join("containerd.toml"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let runtime = Self {
            dir: dir.to_owned(),
            child,
        };
        eventually("containerd answers", || {
            runtime.ctr(&["version"]).status.success()
        });
        let archive = dir.join("image/images.tar").display().to_string();
        let imported = runtime.ctr(&["images", "import", &archive]);
        assert!(imported.status.success(), "{}", text(&imported.stderr));
        let images = text(&runtime.ctr(&["images", "ls", "-q"]).stdout);
        assert!(images.contains(IMAGE), "{images}");
        Some(runtime)
    }

    /// Where the kubelet reaches it.
    pub(super) fn socket(&self) -> PathBuf {
        self.dir.join("containerd.sock")
    }

    fn ctr(&self, arguments: &[&str]) -> std::process::Output {
        Command::new("ctr")
            .arg("--address")
            .arg(self.socket())
            .args(["--namespace", NAMESPACE])
            .args(arguments)
            .output()
            .unwrap()
    }

    /// As a power cut does: every container, sandboxes too, is gone at once.
    pub(super) fn kill_containers(&self) {
        let tasks = text(&self.ctr(&["tasks", "ls", "-q"]).stdout);
        for task in tasks.lines() {
            let _ = self.ctr(&["tasks", "kill", "--all", "--signal", "SIGKILL", task]);
        }
        eventually("no container runs", || {
            !text(&self.ctr(&["tasks", "ls"]).stdout).contains("RUNNING")
        });
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        self.kill_containers();
        let _ = self.child.kill();
        let _ = self.child.wait();
        for container in text(&self.ctr(&["containers", "ls", "-q"]).stdout).lines() {
            let _ = self.ctr(&["containers", "rm", container]);
        }
        // What containerd and the kubelet mounted would keep the directory from being removed.
        let under = self.dir.parent().unwrap_or(&self.dir).display().to_string();
        let mounts = std::fs::read_to_string("/proc/mounts").unwrap_or_default();
        let mounts = mounts.lines().filter_map(|line| line.split(' ').nth(1));
        let mut ours: Vec<&str> = mounts.filter(|at| at.starts_with(&under)).collect();
        ours.reverse();
        for mount in ours {
            let _ = Command::new("umount").arg("-l").arg(mount).status();
        }
        let _ = Command::new("ip")
            .args(["link", "delete", "yurt-test0"])
            .status();
    }
}
