//! The two servers of the bench, each a process of its own.

use super::{
    BenchError, PATIENCE,
    load::{Alone, Target},
};
use http::HeaderValue;
use serde_json::Value;
use std::{
    ffi::OsString,
    fs::{self, File},
    io,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    process::Stdio,
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};
use tokio::{
    process::{Child, Command},
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use yurt_pki::{Ca, KeyPairPem, Profile};
use yurt_transport::{Client, ClientOptions};

/// The administrator's token in this bench; the servers listen on loopback for as long as it runs.
pub(super) const TOKEN: &str = "yurt-bench-administrator";
/// How long a server may take to end by itself.
const DRAIN: Duration = Duration::from_secs(10);
const CERTIFICATE_DAYS: u32 = 7;
/// Lines of a log that an error shows.
const LOG_LINES: usize = 12;

pub(super) fn io_error(what: impl std::fmt::Display) -> impl FnOnce(io::Error) -> BenchError {
    move |source| BenchError::Io {
        what: what.to_string(),
        source,
    }
}

/// How a hub ends before it is started again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// SIGKILL.
    Killed,
    /// SIGTERM, and time to drain.
    Drained,
}

/// A server process; ends with its handle.
#[derive(Debug)]
pub(super) struct Server {
    name: &'static str,
    child: Child,
    log: PathBuf,
    started: Instant,
}

impl Server {
    pub(super) fn start(
        name: &'static str,
        arguments: &[OsString],
        dir: &Path,
    ) -> Result<Self, BenchError> {
        let program = std::env::current_exe().map_err(io_error("own program"))?;
        let log = dir.join(format!("{name}.log"));
        let out = File::options()
            .create(true)
            .append(true)
            .open(&log)
            .map_err(io_error(log.display()))?;
        let err = out.try_clone().map_err(io_error(log.display()))?;
        let started = Instant::now();
        let child = Command::new(program)
            .args(arguments)
            // Its end tells the server that the bench is gone.
            .stdin(Stdio::piped())
            .env("YURT_EXIT_WITH_PARENT", "1")
            .stdout(out)
            .stderr(err)
            .kill_on_drop(true)
            .spawn()
            .map_err(io_error(name))?;
        Ok(Self {
            name,
            child,
            log,
            started,
        })
    }

    /// An error with the end of the log.
    pub(super) fn failed(&self, what: impl ToString) -> BenchError {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        BenchError::Process {
            name: self.name,
            what: what.to_string(),
            log: lines[lines.len().saturating_sub(LOG_LINES)..].join("\n"),
        }
    }

    /// Waits until the server has written a file.
    pub(super) async fn written(&mut self, file: &Path) -> Result<(), BenchError> {
        let deadline = Instant::now() + PATIENCE;
        while !file.exists() {
            if let Ok(Some(status)) = self.child.try_wait() {
                return Err(self.failed(format!("ended: {status}")));
            }
            if Instant::now() > deadline {
                return Err(self.failed(format!("does not write {}", file.display())));
            }
            sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }

    /// Waits until `path` answers 200.
    pub(super) async fn ready(&mut self, target: &Target, path: &str) -> Result<(), BenchError> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Ok(Some(status)) = self.child.try_wait() {
                return Err(self.failed(format!("ended: {status}")));
            }
            match target.get(path).await {
                Ok(()) => return Ok(()),
                Err(error) if Instant::now() > deadline => {
                    return Err(self.failed(format!("does not answer: {error}")));
                }
                Err(_) => sleep(Duration::from_millis(10)).await,
            }
        }
    }

    pub(super) fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    pub(super) async fn end(&mut self, how: Ended) {
        let id = self.child.id().and_then(|id| i32::try_from(id).ok());
        let pid = id.and_then(rustix::process::Pid::from_raw);
        if let (Ended::Drained, Some(pid)) = (how, pid) {
            // One that has ended already is as good.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
            // Waiting closes the pipe, which means the same.
            if timeout(DRAIN, self.child.wait()).await.is_ok() {
                return;
            }
        }
        let _ = self.child.kill().await;
    }
}

/// The directory of a bench; removed at its end.
#[derive(Debug)]
pub(super) struct Scratch(pub(super) PathBuf);

impl Scratch {
    /// Empty, and closed to others.
    pub(super) fn new() -> Result<Self, BenchError> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("yurt-bench-{}-{number}", std::process::id());
        let dir = std::env::temp_dir().join(name);
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&dir)
            .map_err(io_error(dir.display()))?;
        Ok(Self(dir))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            tracing::warn!(dir = %self.0.display(), %error, "cannot remove the bench's directory");
        }
    }
}

/// The addresses of one bench, on 127.0.0.1.
#[derive(Clone, Copy, Debug)]
struct Addresses {
    api: SocketAddr,
    proxy: SocketAddr,
    admin: SocketAddr,
}

impl Addresses {
    /// Ports that are free now.
    fn find() -> io::Result<Self> {
        // Held together, so that they differ.
        let held: Vec<TcpListener> = (0..3)
            .map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))
            .collect::<io::Result<_>>()?;
        let address = |n: usize| held[n].local_addr();
        Ok(Self {
            api: address(0)?,
            proxy: address(1)?,
            admin: address(2)?,
        })
    }
}

/// API server and hub.
#[derive(Debug)]
pub(super) struct Bench {
    api: Server,
    hub: Server,
    addresses: Addresses,
    ca: String,
    // Last: the servers end first.
    scratch: Scratch,
}

impl Bench {
    /// Starts both and waits until they answer.
    pub(super) async fn start() -> Result<Self, BenchError> {
        let scratch = Scratch::new()?;
        let dir = scratch.0.clone();
        let addresses = Addresses::find().map_err(io_error("free ports"))?;
        let ca = certificates(&dir)?;

        let api_arguments = [
            "bench".into(),
            "hub".into(),
            "--serve-api".into(),
            dir.clone().into(),
            "--listen".into(),
            addresses.api.to_string().into(),
        ];
        let mut api = Server::start("API server", &api_arguments, &dir)?;
        api.ready(&direct(addresses.api, &ca)?, "/readyz").await?;
        let mut hub = Server::start("hub", &hub_arguments(&dir, addresses), &dir)?;
        hub.ready(&plain(addresses.admin), "/v1/healthz").await?;
        Ok(Self {
            api,
            hub,
            addresses,
            ca,
            scratch,
        })
    }

    /// The API server, as its administrator.
    pub(super) fn direct(&self) -> Result<Target, BenchError> {
        direct(self.addresses.api, &self.ca)
    }

    /// The hub, as the same administrator.
    pub(super) fn through_hub(&self) -> Target {
        plain(self.addresses.proxy)
    }

    /// [`Bench::direct`], for one request at a time.
    pub(super) fn direct_alone(&self) -> Result<Alone, BenchError> {
        Ok(Alone {
            address: self.addresses.api,
            tls: Some(yurt_pki::client_config(&self.ca, None, &["http/1.1"])?),
            authorization: authorization(),
        })
    }

    /// [`Bench::through_hub`], for one request at a time.
    pub(super) fn through_hub_alone(&self) -> Alone {
        Alone {
            address: self.addresses.proxy,
            tls: None,
            authorization: authorization(),
        }
    }

    pub(super) fn hub_pid(&self) -> Option<u32> {
        self.hub.child.id()
    }

    /// When the hub's process was started.
    pub(super) fn hub_started(&self) -> Instant {
        self.hub.started
    }

    pub(super) fn kill_api(&mut self) {
        // One that has ended already is as good.
        let _ = self.api.child.start_kill();
    }

    /// What the hub says of itself.
    async fn status(&self) -> Result<Value, BenchError> {
        let body = plain(self.addresses.admin)
            .call(http::Method::GET, "/v1/status", None)
            .await?;
        serde_json::from_slice(&body).map_err(|error| super::load::call("/v1/status", error))
    }

    /// Waits until the hub's word about itself is as wanted.
    async fn wait_status(
        &self,
        what: &str,
        wanted: impl Fn(&Value) -> bool,
    ) -> Result<(), BenchError> {
        let deadline = Instant::now() + PATIENCE;
        while !wanted(&self.status().await?) {
            if Instant::now() > deadline {
                return Err(self.hub.failed(format!("did not come so far that {what}")));
            }
            sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }

    /// Until the hub knows so many objects.
    pub(super) async fn wait_until_cached(&self, objects: usize) -> Result<(), BenchError> {
        self.wait_status(&format!("it knows {objects} objects"), |status| {
            status["cache"]["objects"]
                .as_u64()
                .is_some_and(|known| known >= objects as u64)
        })
        .await
    }

    /// Until the hub answers from its cache.
    pub(super) async fn wait_offline(&self) -> Result<(), BenchError> {
        self.wait_status("it is offline", |status| status["mode"] == "offline")
            .await
    }

    /// Ends the hub and starts it again; does not wait until it answers.
    pub(super) async fn restart_hub(&mut self, how: Ended) -> Result<Target, BenchError> {
        self.hub.end(how).await;
        let dir = &self.scratch.0;
        self.hub = Server::start("hub", &hub_arguments(dir, self.addresses), dir)?;
        Ok(self.through_hub())
    }

    /// Ends both.
    pub(super) async fn stop(mut self) {
        self.hub.end(Ended::Drained).await;
        self.api.end(Ended::Drained).await;
    }
}

fn authorization() -> HeaderValue {
    let mut value = HeaderValue::from_static("Bearer yurt-bench-administrator");
    value.set_sensitive(true);
    value
}

fn options() -> ClientOptions {
    ClientOptions {
        max_idle: 128,
        ..ClientOptions::default()
    }
}

/// A hub's plain port, as the administrator.
pub(super) fn plain(address: SocketAddr) -> Target {
    Target {
        client: Client::new(&address.to_string(), None, options()),
        authorization: Some(authorization()),
    }
}

/// An API server, as its administrator.
pub(super) fn direct(address: SocketAddr, ca: &str) -> Result<Target, BenchError> {
    // HTTP/1.1 as through the hub: the difference is to be the hub, not the protocol.
    let tls = yurt_pki::client_config(ca, None, &["http/1.1"])?;
    Ok(Target {
        client: Client::new(&address.to_string(), Some(tls), options()),
        authorization: Some(authorization()),
    })
}

/// Makes the identities of the API server and the hub; returns the CA's certificate.
fn certificates(dir: &Path) -> Result<String, BenchError> {
    let ca = Ca::new("yurt-bench", CERTIFICATE_DAYS)?;
    let api = ca.issue(&Profile {
        common_name: "kube-apiserver".into(),
        ips: vec![Ipv4Addr::LOCALHOST.into()],
        server: true,
        days: CERTIFICATE_DAYS,
        ..Profile::default()
    })?;
    let node = ca.issue(&Profile {
        common_name: "system:node:bench-node".into(),
        organizations: vec!["openyurt:yurthub".into(), "system:nodes".into()],
        client: true,
        days: CERTIFICATE_DAYS,
        ..Profile::default()
    })?;
    write_identities(dir, &ca, &[("api", api), ("node", node)])?;
    Ok(ca.cert_pem())
}

/// Writes `ca.crt`, and `NAME.crt` and `NAME.key` of each.
pub(super) fn write_identities(
    dir: &Path,
    ca: &Ca,
    identities: &[(&str, KeyPairPem)],
) -> Result<(), BenchError> {
    let write = |name: &str, content: &str| {
        let path = dir.join(name);
        fs::write(&path, content).map_err(io_error(path.display()))
    };
    write("ca.crt", &ca.cert_pem())?;
    for (name, pair) in identities {
        write(&format!("{name}.crt"), &pair.cert)?;
        write(&format!("{name}.key"), &pair.key)?;
    }
    Ok(())
}

/// An address on loopback that nobody listens on.
pub(super) fn free_address() -> Result<SocketAddr, BenchError> {
    let free =
        TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|listener| listener.local_addr());
    free.map_err(io_error("a free port"))
}

fn hub_arguments(dir: &Path, addresses: Addresses) -> Vec<OsString> {
    let flag = |name: &str, value: OsString| {
        let mut argument = OsString::from(format!("--{name}="));
        argument.push(value);
        argument
    };
    let file = |name: &str| dir.join(name).into_os_string();
    vec![
        "hub".into(),
        flag("node-name", "bench-node".into()),
        flag("server-addr", format!("https://{}", addresses.api).into()),
        flag("proxy-port", addresses.proxy.port().to_string().into()),
        flag("serve-port", addresses.admin.port().to_string().into()),
        flag("proxy-secure-port", "0".into()),
        flag("multiplexer-port", "0".into()),
        flag("enable-dummy-if", "false".into()),
        flag("root-dir", file("hub")),
        flag("disk-cache-path", file("cache")),
        flag("ca-file", file("ca.crt")),
        flag("client-cert", file("node.crt")),
        flag("client-key", file("node.key")),
    ]
}

/// Is the API server of a bench, until its parent is gone or it is told to end.
pub(super) async fn serve_api(dir: &Path, listen: SocketAddr) -> Result<(), BenchError> {
    let read = |name: &str| {
        let path = dir.join(name);
        fs::read_to_string(&path).map_err(io_error(path.display()))
    };
    let config = yurt_apiserver::Config {
        data_dir: Some(dir.join("apiserver")),
        listen,
        tls: Some(yurt_apiserver::Tls {
            serving: KeyPairPem {
                cert: read("api.crt")?,
                key: read("api.key")?,
            },
            client_ca: Some(read("ca.crt")?),
        }),
        tokens: vec![(
            TOKEN.into(),
            yurt_apiserver::authn::User::new("kubernetes-admin", &["system:masters"]),
        )],
        // The node's certificate also asks what kube-proxy would.
        authorization: yurt_apiserver::AuthorizationMode::AlwaysAllow,
        ..yurt_apiserver::Config::default()
    };
    let shutdown = CancellationToken::new();
    let running = yurt_apiserver::ApiServer::start(config, shutdown.clone()).await?;
    let parent = shutdown.clone();
    std::thread::spawn(move || {
        // The end of stdin, or an error of it, means that the bench is gone.
        let _ = io::copy(&mut io::stdin().lock(), &mut io::sink());
        parent.cancel();
    });
    tokio::select! {
        () = interrupted() => shutdown.cancel(),
        () = shutdown.cancelled() => {}
    }
    running.stopped().await.map_err(io_error("API server"))
}

/// Waits for SIGINT or SIGTERM; for ever where signals cannot be listened to.
pub(super) async fn interrupted() {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut interrupt), Ok(mut terminate)) = (
        signal(SignalKind::interrupt()),
        signal(SignalKind::terminate()),
    ) else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
}

/// Keeps CPUs from going to sleep between two requests, until dropped: a virtual CPU takes longer to wake than a hub to answer.
/// Idle CPUs poll for as long as somebody holds the kernel's file of latency requests open with a bound of no latency at all in
/// it (Documentation/power/pm_qos_interface.rst); nothing runs beside what is measured.
#[derive(Debug)]
pub(super) struct Awake {
    /// Closing it takes the request back.
    _request: std::fs::File,
}

impl Awake {
    /// An error where the machine has no such file, or lets only root open it.
    pub(super) fn begin() -> io::Result<Self> {
        let mut request = std::fs::OpenOptions::new()
            .write(true)
            .open("/dev/cpu_dma_latency")?;
        // Microseconds.
        io::Write::write_all(&mut request, &0_i32.to_ne_bytes())?;
        Ok(Self { _request: request })
    }
}
