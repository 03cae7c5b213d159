//! The programs of a pair: ours, konnectivity's own, and those of OpenYurt's fork of it.

use clap::{Args as _, Command as Line, FromArgMatches as _};
use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Stdio,
    sync::atomic::{AtomicU16, Ordering},
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, UnixStream},
    process::{Child, Command},
    runtime::Runtime,
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use yurt_pki::{Ca, KeyPairPem, Profile};
use yurt_tunnel::TunnelArgs;

pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Whose program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Make {
    Ours,
    Konnectivity,
    /// OpenYurt's fork, module `github.com/openyurtio/apiserver-network-proxy`.
    Fork,
}

/// The program that a variable names; none: the test is skipped, and says so.
pub(crate) fn program(variable: &str) -> Option<PathBuf> {
    let path = std::env::var_os(variable).map(PathBuf::from);
    if path.is_none() {
        eprintln!("SKIPPED: {variable} names no program");
    }
    path
}

fn variable(make: Make, role: &str) -> String {
    match make {
        Make::Ours => String::new(),
        Make::Konnectivity => format!("PROXY_{role}"),
        Make::Fork => format!("FORK_{role}"),
    }
}

/// A process: another's, or ours on a runtime of its own, which ends as abruptly.
pub(crate) enum Process {
    Theirs(Child),
    Ours(Option<Runtime>),
}

impl Process {
    /// Runs `program`, or ours when there is none.
    pub(crate) fn start(program: Option<&Path>, arguments: &[String]) -> Self {
        let Some(program) = program else {
            let command = TunnelArgs::augment_args(Line::new("tunnel").no_binary_name(true));
            let matches = command.try_get_matches_from(arguments);
            let matches = matches.unwrap_or_else(|error| panic!("{arguments:?}: {error}"));
            let args = TunnelArgs::from_arg_matches(&matches).unwrap();
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(1)
                .enable_all()
                .build()
                .unwrap();
            runtime.spawn(async move {
                if let Err(error) = yurt_tunnel::run(args, CancellationToken::new()).await {
                    panic!("ours does not run: {error}");
                }
            });
            return Self::Ours(Some(runtime));
        };
        let mut command = Command::new(program);
        if std::env::var_os("SHOW_PEERS").is_none() {
            command.stdout(Stdio::null()).stderr(Stdio::null());
        }
        let child = command.args(arguments).kill_on_drop(true).spawn();
        Self::Theirs(child.unwrap())
    }

    /// Its ports are free when this returns.
    pub(crate) async fn kill(mut self) {
        match &mut self {
            Self::Theirs(child) => child.kill().await.unwrap(),
            Self::Ours(runtime) => {
                let runtime = runtime.take().unwrap();
                let ended = tokio::task::spawn_blocking(|| runtime.shutdown_timeout(PATIENCE));
                ended.await.unwrap();
            }
        }
    }

    /// Stops another's process, which keeps its connections.
    pub(crate) fn freeze(&self) {
        let Self::Theirs(child) = self else {
            panic!("ours cannot be stopped alone");
        };
        let pid = rustix::process::Pid::from_raw(child.id().unwrap() as i32).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Self::Ours(runtime) = self
            && let Some(runtime) = runtime.take()
        {
            runtime.shutdown_background();
        }
    }
}

pub(crate) struct Pki {
    directory: tempfile::TempDir,
    pub(crate) ca: Ca,
}

impl Pki {
    pub(crate) fn new() -> Self {
        let pki = Self {
            directory: tempfile::tempdir().unwrap(),
            ca: Ca::new("tunnel-ca", 1).unwrap(),
        };
        std::fs::write(pki.path("ca.crt"), pki.ca.cert_pem()).unwrap();
        for name in ["server", "agent"] {
            let pair = pki.issue(name);
            std::fs::write(pki.path(&format!("{name}.crt")), pair.cert).unwrap();
            std::fs::write(pki.path(&format!("{name}.key")), pair.key).unwrap();
        }
        pki
    }

    pub(crate) fn path(&self, file: &str) -> PathBuf {
        self.directory.path().join(file)
    }

    pub(crate) fn issue(&self, name: &str) -> KeyPairPem {
        let profile = Profile {
            common_name: name.into(),
            organizations: Vec::new(),
            dns: vec!["localhost".into()],
            ips: vec![[127, 0, 0, 1].into()],
            client: true,
            server: true,
            days: 1,
        };
        self.ca.issue(&profile).unwrap()
    }

    fn file(&self, flag: &str, file: &str) -> String {
        argument(flag, self.path(file).display())
    }
}

pub(crate) fn argument(name: &str, value: impl std::fmt::Display) -> String {
    format!("--{name}={value}")
}

/// Free ports below the range that konnectivity refuses. Each process of the tests looks elsewhere, and none is given twice: its pair
/// listens only after the next has asked.
pub(crate) async fn ports<const N: usize>() -> [u16; N] {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let first = 20_000 + (std::process::id() % 740) as u16 * 16;
    let mut held = Vec::new();
    while held.len() < N {
        let port = first + NEXT.fetch_add(1, Ordering::Relaxed);
        assert!(port < 32_768, "no free port");
        held.extend(TcpListener::bind(("127.0.0.1", port)).await);
    }
    std::array::from_fn(|index| held[index].local_addr().unwrap().port())
}

/// Where a pair lives.
pub(crate) struct Field {
    pub(crate) pki: Pki,
    pub(crate) port: u16,
    others: [u16; 4],
    server: Make,
    agent: Make,
    programs: [Option<PathBuf>; 2],
}

impl Field {
    /// `None`: a program is missing, which is said.
    pub(crate) async fn of(server: Make, agent: Make) -> Option<Self> {
        let find = |make, role| match make {
            Make::Ours => Some(None),
            make => program(&variable(make, role)).map(Some),
        };
        let programs = [find(server, "SERVER")?, find(agent, "AGENT")?];
        let [port, a, b, c, d] = ports().await;
        Some(Self {
            pki: Pki::new(),
            port,
            others: [a, b, c, d],
            server,
            agent,
            programs,
        })
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.pki.path("frontend.sock")
    }

    /// Whether the server tells its callers when an agent is gone. The fork's does not, with the strategy that OpenYurt ships.
    pub(crate) fn tells(&self) -> bool {
        self.server != Make::Fork
    }

    /// With certificates, and CONNECT on a Unix socket.
    pub(crate) fn server(&self) -> Process {
        let pki = &self.pki;
        let mut arguments = vec![
            argument("mode", "http-connect"),
            argument("uds-name", self.socket().display()),
            argument("delete-existing-uds-file", true),
            argument("server-port", 0),
            pki.file("cluster-cert", "server.crt"),
            pki.file("cluster-key", "server.key"),
            pki.file("cluster-ca-cert", "ca.crt"),
            argument("agent-port", self.port),
            argument("health-port", self.others[0]),
            argument("admin-port", self.others[1]),
        ];
        match self.server {
            Make::Ours => {
                arguments.splice(..0, ["server".into(), "--standalone".into()]);
                arguments.push(argument("bind-address", "127.0.0.1"));
                arguments.push(argument("trusted-agents", "agent"));
            }
            Make::Konnectivity => {
                arguments.push(argument("agent-bind-address", "127.0.0.1"));
                arguments.push(argument("proxy-strategies", "destHost,default"));
            }
            Make::Fork => arguments.push(argument("proxy-strategies", "destHost")),
        }
        Process::start(self.programs[0].as_deref(), &arguments)
    }

    /// With certificates; ours speaks konnectivity's protocol to whatever server.
    pub(crate) fn agent(&self) -> Process {
        let pki = &self.pki;
        let mut arguments = vec![
            pki.file("ca-cert", "ca.crt"),
            pki.file("agent-cert", "agent.crt"),
            pki.file("agent-key", "agent.key"),
            argument("proxy-server-host", "127.0.0.1"),
            argument("proxy-server-port", self.port),
            argument("agent-id", "edge-1"),
            argument("agent-identifiers", "ipv4=127.0.0.1&host=edge-1"),
            argument("health-server-port", self.others[2]),
            argument("admin-server-port", self.others[3]),
        ];
        if self.agent == Make::Ours {
            arguments.splice(..0, ["agent".into(), "--standalone".into()]);
            arguments.push(argument("alpn-proto", "h2"));
            arguments.push(argument("allow", "127.0.0.1"));
            arguments.push(pki.file("cert-dir", "agent"));
        }
        Process::start(self.programs[1].as_deref(), &arguments)
    }

    /// Asks the frontend for a connection: as kube-apiserver does, with nothing but the head in the first read.
    pub(crate) async fn connect(&self, to: SocketAddr) -> std::io::Result<UnixStream> {
        let (head, stream) = self.ask(to).await?;
        match head.starts_with("HTTP/1.1 200 ") {
            true => Ok(stream),
            false => Err(std::io::Error::other(head)),
        }
    }

    /// The same, with what was answered.
    pub(crate) async fn ask(&self, to: SocketAddr) -> std::io::Result<(String, UnixStream)> {
        let asking = async {
            let mut stream = UnixStream::connect(self.socket()).await?;
            let request = format!("CONNECT {to} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n");
            stream.write_all(request.as_bytes()).await?;
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await?);
            }
            Ok((String::from_utf8_lossy(&head).into_owned(), stream))
        };
        timeout(PATIENCE, asking).await?
    }

    /// Whether a word comes back.
    async fn answers(&self, echo: SocketAddr) -> std::io::Result<()> {
        let mut stream = self.connect(echo).await?;
        stream.write_all(b"word").await?;
        timeout(Duration::from_secs(2), stream.read_exact(&mut [0; 4])).await??;
        Ok(())
    }

    /// Waits until a word comes back.
    pub(crate) async fn ready(&self, echo: SocketAddr) {
        let begun = Instant::now();
        while let Err(error) = self.answers(echo).await {
            assert!(begun.elapsed() < PATIENCE, "{error}");
            sleep(Duration::from_millis(50)).await;
        }
    }
}
