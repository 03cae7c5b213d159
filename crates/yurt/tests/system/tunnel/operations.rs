//! What `kubectl` does at a pod `web` besides plain commands.

use crate::fixture::{Kubectl, eventually, text};
use std::{
    fs::File,
    io::{Read, Write},
    path::Path,
    process::{Command, Stdio},
    sync::{Arc, Mutex},
};

const MEGABYTE: usize = 1 << 20;

/// `kubectl cp`, there and back, unharmed.
pub(super) fn copies(kubectl: &Kubectl, dir: &Path, megabytes: usize) {
    let (sent, back) = (dir.join("sent"), dir.join("back"));
    let mut block = vec![0; MEGABYTE];
    fastrand::fill(&mut block);
    let mut file = File::create(&sent).unwrap();
    for number in 0..megabytes as u64 {
        // No two alike.
        block[..8].copy_from_slice(&number.to_le_bytes());
        file.write_all(&block).unwrap();
    }
    drop(file);
    let _ = std::fs::remove_file(&back);
    let path = |path: &Path| path.to_str().unwrap().to_owned();
    kubectl.ok(&["cp", &path(&sent), "web:/tmp/file"]);
    kubectl.ok(&["cp", "web:/tmp/file", &path(&back)]);
    let length = |path: &Path| path.metadata().unwrap().len();
    assert_eq!(length(&back), length(&sent));
    let (mut one, mut other) = (File::open(&sent).unwrap(), File::open(&back).unwrap());
    let mut copy = block.clone();
    for number in 0..megabytes {
        one.read_exact(&mut block).unwrap();
        other.read_exact(&mut copy).unwrap();
        assert!(block == copy, "a byte differs in megabyte {number}");
    }
    for file in [sent, back] {
        std::fs::remove_file(file).unwrap();
    }
    kubectl.ok(&["exec", "web", "--", "rm", "/tmp/file"]);
}

/// A request through `port-forward`.
pub(super) fn forwards(kubectl: &Kubectl) {
    kubectl.forwards("pod/web", ":80");
}

/// `kubectl attach` shows what is printed from then on.
pub(super) fn attaches(kubectl: &Kubectl) {
    let attached = kubectl.follow(&["attach", "web"]);
    eventually("a line by attach", || {
        forwards(kubectl);
        let lines = attached.lines();
        lines.iter().any(|line| line.contains("GET / on port 80"))
    });
}

/// `kubectl exec` as before 1.31, by SPDY.
pub(super) fn speaks_spdy(kubectl: &Kubectl) {
    let mut command = kubectl.command(&["exec", "web", "--", "echo", "spoken"]);
    let spoken = command.env("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", "false");
    let spoken = spoken.output().unwrap();
    let said = text(&spoken.stdout) + &text(&spoken.stderr);
    assert_eq!(said, "spoken\n");
}

/// `kubectl exec -it` on a terminal whose size changes. Where there is no `script` (util-linux) to make one, that is said loudly.
pub(super) fn types(kubectl: &Kubectl, dir: &Path) {
    let command = kubectl.command(&["exec", "-it", "web", "--", "sh"]);
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let line: Vec<String> = words
        .map(|word| format!("'{}'", word.to_string_lossy()))
        .collect();
    let (driver, name) = (dir.join("terminal.sh"), dir.join("terminal"));
    let _ = std::fs::remove_file(&name);
    let script = format!(
        "stty cols 120 rows 40\ntty > {0}.new\nmv {0}.new {0}\nexec {1}\n",
        name.display(),
        line.join(" ")
    );
    std::fs::write(&driver, script).unwrap();
    let child = Command::new("script")
        .args(["-qec", &format!("sh {}", driver.display()), "/dev/null"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn();
    let Ok(mut child) = child else {
        eprintln!("SKIPPED: no script (util-linux) to make a terminal");
        return;
    };
    let mut keyboard = child.stdin.take().unwrap();
    let mut screen = child.stdout.take().unwrap();
    let shown = Arc::new(Mutex::new(Vec::new()));
    let collected = shown.clone();
    let reading = std::thread::spawn(move || {
        let mut piece = [0; 4096];
        while let Ok(count @ 1..) = screen.read(&mut piece) {
            collected.lock().unwrap().extend_from_slice(&piece[..count]);
        }
    });
    let shows = |what: &str| text(&shown.lock().unwrap()).contains(what);
    let mut keys = |typed: &str| keyboard.write_all(typed.as_bytes()).unwrap();
    eventually("a prompt", || shows("/ # "));
    eventually("the size of the terminal", || {
        keys("stty size\n");
        shows("40 120")
    });
    let terminal = std::fs::read_to_string(&name).unwrap();
    let resized = Command::new("stty")
        .args(["-F", terminal.trim(), "cols", "77", "rows", "33"])
        .status();
    assert!(resized.unwrap().success());
    eventually("its new size", || {
        keys("stty size\n");
        shows("33 77")
    });
    // What is shown is not what the terminal echoes.
    keys("echo 'he're-2\nexit 3\n");
    let ended = child.wait().unwrap();
    reading.join().unwrap();
    assert!(shows("here-2"), "{}", text(&shown.lock().unwrap()));
    assert_eq!(ended.code(), Some(3));
}
