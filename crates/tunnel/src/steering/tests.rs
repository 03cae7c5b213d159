//! Rules in network namespaces of the tests' own, with the host's real programs.

use super::*;
use crate::directory::{Directory, Known, NodeFacts};
use std::{
    io::{BufRead, BufReader, Read},
    net::SocketAddr,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

const LONG: Duration = Duration::from_secs(60);
/// A rule and a chain of somebody else, which must stay.
const FOREIGN: &str = "*nat\n:KUBE-SERVICES - [0:0]\n-A OUTPUT -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\nCOMMIT\n";

/// A network namespace, which is gone with its last process.
struct Namespace {
    holder: Child,
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // It ends with its standard input.
        drop(self.holder.stdin.take());
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

impl Namespace {
    /// `None`, said loudly: this machine cannot.
    fn new(needs: &[&str]) -> Option<Self> {
        let skip = |why: &str| {
            eprintln!("SKIPPED: rules cannot be tested here: {why}");
            None
        };
        for program in needs {
            let found = Command::new("which").arg(program).output();
            if !found.is_ok_and(|found| found.status.success()) {
                return skip(&format!("{program} is not installed"));
            }
        }
        let script = "ip link set lo up && ip addr add 192.168.77.1/24 dev lo && ip addr add 10.77.0.1/32 dev lo && ip route add 10.77.0.0/16 dev lo && { ip -6 addr add fd77::1/128 dev lo nodad && ip -6 addr add fd77::5/128 dev lo nodad && ip -6 route add fd78::/64 dev lo || true; } && echo ready && exec cat";
        let spawned = Command::new("unshare")
            .args(["-rn", "sh", "-c", script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn();
        let mut holder = match spawned {
            Ok(holder) => holder,
            Err(error) => return skip(&format!("unshare: {error}")),
        };
        let mut line = String::new();
        let stdout = holder.stdout.take().unwrap();
        BufReader::new(stdout).read_line(&mut line).unwrap();
        let namespace = Self { holder };
        if line != "ready\n" {
            return skip("no network namespace can be made");
        }
        Some(namespace)
    }

    fn prefix(&self) -> Vec<std::ffi::OsString> {
        let target = self.holder.id().to_string();
        [
            "nsenter",
            "-t",
            &target,
            "-U",
            "-n",
            "--preserve-credentials",
            "--",
        ]
        .map(Into::into)
        .into()
    }

    fn tools(&self) -> Tools {
        Tools::behind(self.prefix())
    }

    fn command(&self, program: &str) -> Command {
        let mut words = self.prefix().into_iter();
        let mut command = Command::new(words.next().unwrap());
        command.args(words).arg(program);
        command
    }

    /// Something that greets whoever connects.
    fn listen(&self, address: &str, greeting: &str) -> Listener {
        let (host, port) = host_and_port(address);
        let script = format!(
            "$s = IO::Socket::IP->new(LocalHost => '{host}', LocalPort => {port}, Listen => 9, ReuseAddr => 1) or die; $| = 1; print \"ready\\n\"; while ($c = $s->accept) {{ print $c '{greeting}'; close $c }}"
        );
        let mut child = self
            .command("perl")
            .args(["-MIO::Socket::IP", "-e", &script])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        assert_eq!(line, "ready\n");
        Listener(child)
    }

    /// Who answers at an address; empty when nobody does.
    fn greeting(&self, address: &str) -> String {
        let (host, port) = host_and_port(address);
        let script = format!(
            "$s = IO::Socket::IP->new(PeerHost => '{host}', PeerPort => {port}, Timeout => 5) or exit; print while <$s>"
        );
        let mut child = self
            .command("perl")
            .args(["-MIO::Socket::IP", "-e", &script])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut text = String::new();
        let mut stdout = child.stdout.take().unwrap();
        stdout.read_to_string(&mut text).unwrap();
        child.wait().unwrap();
        text
    }
}

fn host_and_port(address: &str) -> (&str, &str) {
    let (host, port) = address.rsplit_once(':').unwrap();
    (host.trim_matches(['[', ']']), port)
}

/// A listener in a namespace.
struct Listener(Child);

impl Drop for Listener {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn node(name: &str, address: &str, edge: bool) -> NodeFacts {
    NodeFacts {
        name: name.into(),
        internal: vec![address.parse().unwrap()],
        edge,
        ..NodeFacts::default()
    }
}

/// A host with steering on it.
struct Host {
    namespace: Namespace,
    known: Arc<Known>,
    settings: watch::Sender<Arc<settings::Settings>>,
    metrics: Metrics,
    shutdown: CancellationToken,
    running: tokio::task::JoinHandle<Result<(), SteeringError>>,
}

impl Host {
    fn start(namespace: Namespace, backend: Backend) -> Self {
        Self::start_at(namespace, backend, ("0.0.0.0:10263", "127.0.0.1:10264"))
    }

    /// [`Host::start`], with the interceptor on these addresses.
    fn start_at(namespace: Namespace, backend: Backend, (secure, insecure): (&str, &str)) -> Self {
        let known = Arc::new(Known::default());
        known.put_node("cloud", Some(node("cloud", "10.77.0.1", false)));
        known.put_node("edge", Some(node("edge", "10.77.0.2", true)));
        known.put_node("cloud-six", Some(node("cloud-six", "fd77::1", false)));
        let (settings, receiver) = watch::channel(Arc::default());
        let (metrics, shutdown) = (Metrics::default(), CancellationToken::new());
        let address = |text: &str| text.parse::<SocketAddr>().unwrap();
        let config = Config {
            targets: Targets::new(address(secure), address(insecure)),
            settings: receiver,
            backend,
            period: Duration::from_millis(200),
            tools: namespace.tools(),
            metrics: metrics.clone(),
        };
        let directory: Arc<dyn Directory> = known.clone();
        let running = tokio::spawn(run(config, directory, shutdown.clone()));
        Self {
            namespace,
            known,
            settings,
            metrics,
            shutdown,
            running,
        }
    }

    /// Waits until the listing of a program holds a text, or does not any more.
    async fn until(&self, listing: &[&str], text: &str, holds: bool) -> String {
        let deadline = tokio::time::Instant::now() + LONG;
        loop {
            let shown = self.shown(listing).await;
            if shown.contains(text) == holds {
                return shown;
            }
            assert!(
                tokio::time::Instant::now() < deadline,
                "{text:?} {}in\n{shown}",
                if holds { "not " } else { "still " }
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn shown(&self, listing: &[&str]) -> String {
        let (program, arguments) = listing.split_first().unwrap();
        let shown = self.namespace.tools().run(program, arguments, "").await;
        shown.unwrap_or_default()
    }

    /// The course of things that is the same for every backend.
    async fn course(self, listing: &[&str], drift: (&str, &[&str])) {
        let before = self.metrics.writes.get();
        assert!(before <= 1);
        self.until(listing, "10.77.0.1", true).await;
        // What goes where.
        let _tunnel = self.namespace.listen("127.0.0.1:10263", "tunnel");
        let _plain = self.namespace.listen("127.0.0.1:10264", "plain");
        let _direct = self.namespace.listen("0.0.0.0:10250", "direct");
        assert_eq!(self.namespace.greeting("10.77.0.2:10250"), "tunnel");
        assert_eq!(self.namespace.greeting("10.77.0.2:10255"), "plain");
        assert_eq!(self.namespace.greeting("127.0.0.1:10250"), "direct");
        assert_eq!(self.namespace.greeting("10.77.0.1:10250"), "direct");
        assert_eq!(
            self.namespace.greeting("10.77.0.2:9443"),
            "",
            "not a port of the tunnel"
        );
        // Looked at many times by now, written once.
        tokio::time::sleep(Duration::from_millis(600)).await;
        assert_eq!(self.metrics.writes.get(), 1);
        // A port more, a node more.
        let mut settings = settings::Settings::default();
        settings.ports.insert(9443, settings::Scheme::Https);
        self.settings.send_replace(Arc::new(settings));
        self.until(listing, "9443", true).await;
        assert_eq!(self.namespace.greeting("10.77.0.2:9443"), "tunnel");
        // Connections to it that are tracked as the tunnel's are forgotten.
        let tracked = ["conntrack", "-L"];
        assert_eq!(self.namespace.greeting("10.77.0.3:10250"), "tunnel");
        let with_conntrack = self.shown(&tracked).await.contains("dst=10.77.0.3");
        if !with_conntrack {
            eprintln!("SKIPPED: connections are not tracked here, or conntrack is not installed");
        }
        self.known
            .put_node("cloud-2", Some(node("cloud-2", "10.77.0.3", false)));
        self.until(listing, "10.77.0.3", true).await;
        if with_conntrack {
            let shown = self.until(&tracked, "dst=10.77.0.3", false).await;
            assert!(shown.contains("dst=10.77.0.2"), "others stay: {shown}");
        }
        self.known.put_node("cloud-2", None);
        self.settings.send_replace(Arc::default());
        self.until(listing, "10.77.0.3", false).await;
        let shown = self.until(listing, "9443", false).await;
        assert!(shown.contains("10.77.0.1"), "{shown}");
        // Somebody's hand is put right.
        let written = self.metrics.writes.get();
        let (program, arguments) = drift;
        let broken = self.namespace.tools().run(program, arguments, "").await;
        broken.expect("drift");
        let deadline = tokio::time::Instant::now() + LONG;
        while self.metrics.writes.get() == written {
            assert!(tokio::time::Instant::now() < deadline, "not put right");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        self.until(listing, "10.77.0.1", true).await;
        assert_eq!(self.namespace.greeting("10.77.0.2:10250"), "tunnel");
        assert_eq!(self.metrics.failures.get(), 0);
        // And at the end nothing is left.
        self.shutdown.cancel();
        let ended = tokio::time::timeout(LONG, self.running).await;
        ended.expect("in time").unwrap().unwrap();
        let left = self.namespace.tools();
        let program = listing[0];
        let left = left
            .run(program, &listing[1..], "")
            .await
            .unwrap_or_default();
        assert!(
            !left.contains("TUNNEL") && !left.contains("tunnel"),
            "{left}"
        );
    }
}

#[tokio::test]
async fn nftables_bring_callers_to_the_tunnel_and_leave_others_alone() {
    let Some(namespace) = Namespace::new(&["nft", "nsenter", "perl"]) else {
        return;
    };
    // What another server left in iptables goes, what is others' stays.
    let tools = namespace.tools();
    let with_iptables = tools
        .run("iptables-restore", &["--noflush"], FOREIGN)
        .await
        .is_ok();
    if with_iptables {
        let old = include_str!("iptables.golden");
        let restored = tools.run("iptables-restore", &["--noflush"], old).await;
        restored.expect("the golden text is one that iptables takes");
    }
    let host = Host::start(namespace, Backend::Auto);
    let listing = ["nft", "list", "table", "ip", "yurt_tunnel"];
    host.until(&listing, "10.77.0.1", true).await;
    if with_iptables {
        let saved = host.shown(&["iptables-save", "-t", "nat"]).await;
        assert!(saved.contains("-j KUBE-SERVICES"), "{saved}");
        assert!(!saved.contains("TUNNEL-PORT"), "{saved}");
    }
    let drift = [
        "delete",
        "element",
        "ip",
        "yurt_tunnel",
        "direct",
        "{",
        "10.77.0.1",
        "}",
    ];
    host.course(&listing, ("nft", &drift)).await;
}

#[tokio::test]
async fn iptables_bring_callers_to_the_tunnel_and_leave_others_alone() {
    let Some(namespace) = Namespace::new(&["iptables-restore", "iptables-save", "nsenter", "perl"])
    else {
        return;
    };
    let tools = namespace.tools();
    if let Err(error) = tools.run("iptables-restore", &["--noflush"], FOREIGN).await {
        eprintln!("SKIPPED: iptables does not work here: {error}");
        return;
    }
    let host = Host::start(namespace, Backend::Iptables);
    let listing = ["iptables-save", "-t", "nat"];
    let saved = host.until(&listing, "10.77.0.1", true).await;
    assert!(saved.contains("-j KUBE-SERVICES"), "{saved}");
    let drift = ["-t", "nat", "-F", "TUNNEL-PORT-10250"];
    host.course(&listing, ("iptables", &drift)).await;
}

#[tokio::test]
async fn ipv6_goes_the_same_ways() {
    for (backend, listing) in [
        (Backend::Nftables, ["nft", "list", "ruleset"]),
        (Backend::Iptables, ["ip6tables-save", "-t", "nat"]),
    ] {
        let Some(namespace) = Namespace::new(&[listing[0], "nsenter", "perl"]) else {
            continue;
        };
        let addresses = namespace.tools().run("ip", &["-6", "addr"], "").await;
        if !addresses.is_ok_and(|shown| shown.contains("fd77::5")) {
            eprintln!("SKIPPED: no IPv6 here");
            continue;
        }
        let host = Host::start_at(namespace, backend, ("[::]:10263", "[::1]:10264"));
        host.until(&listing, "[::1]:10264", true).await;
        let _tunnel = host.namespace.listen("[::1]:10263", "tunnel");
        let _direct = host.namespace.listen("[fd77::1]:10250", "direct");
        assert_eq!(host.namespace.greeting("[fd78::2]:10250"), "tunnel");
        assert_eq!(host.namespace.greeting("[fd77::1]:10250"), "direct");
        tokio::time::sleep(Duration::from_millis(600)).await;
        assert_eq!(
            host.metrics.writes.get(),
            1,
            "what was written is recognised"
        );
        host.shutdown.cancel();
        let ended = tokio::time::timeout(LONG, host.running).await;
        ended.expect("in time").unwrap().unwrap();
        let left = host
            .namespace
            .tools()
            .run(listing[0], &listing[1..], "")
            .await;
        assert!(!left.unwrap().contains("[::1]:10264"));
    }
}

#[tokio::test]
async fn without_a_way_it_says_so() {
    let known = Arc::new(Known::default());
    let address = |text: &str| text.parse::<SocketAddr>().unwrap();
    let config = Config {
        targets: Targets::new(address("0.0.0.0:10263"), address("127.0.0.1:10264")),
        settings: watch::channel(Arc::default()).1,
        backend: Backend::Auto,
        period: Duration::from_secs(60),
        tools: Tools::behind(vec!["/nowhere/nsenter".into()]),
        metrics: Metrics::default(),
    };
    let error = run(config, known, CancellationToken::new())
        .await
        .unwrap_err();
    assert!(
        error.to_string().contains("nft is not installed"),
        "{error}"
    );
}
