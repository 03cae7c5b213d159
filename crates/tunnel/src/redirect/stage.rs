//! Network namespaces of a test's own, and programs in them: the test's binary runs the test again in there.

use crate::{DialError, Tunnels, steering::Backend, twin};
use std::{
    io::{self, Read},
    process::{Child, Command, Stdio},
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{sleep, timeout},
};
use yurt_transport::{BoxStream, Destination};

pub(crate) const SOON: Duration = Duration::from_secs(20);
/// Long enough for a connection within this host, where there is one.
pub(crate) const HARDLY: Duration = Duration::from_millis(400);
const INSIDE: &str = "YURT_TEST_NAMESPACE";

/// Runs a test again in namespaces of its own; `false`: this is in there.
pub(crate) fn outside(test: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return false;
    }
    let script = "ip link set lo up && exec \"$0\" \"$@\"";
    let may = Command::new("unshare")
        .args(["-rn", "sh", "-c", script, "true"])
        .status();
    let has = |program: &str| {
        let found = Command::new("which").arg(program).output();
        found.is_ok_and(|found| found.status.success())
    };
    if !may.is_ok_and(|status| status.success()) || !["perl", "nsenter"].into_iter().all(has) {
        eprintln!("SKIPPED: no network namespace can be made here");
        return true;
    }
    let this = std::env::current_exe().unwrap();
    let status = Command::new("unshare")
        .args(["-rn", "sh", "-c", script])
        .arg(this)
        .args(["--exact", test, "--nocapture"])
        .env(INSIDE, "1")
        .status()
        .unwrap();
    assert!(status.success(), "in its namespaces: {status}");
    true
}

pub(crate) fn run(words: &str) -> bool {
    let mut words = words.split(' ');
    let mut command = Command::new(words.next().unwrap());
    command
        .args(words)
        .status()
        .is_ok_and(|status| status.success())
}

/// A pod: a network namespace with an address, whose only way is by this node.
pub(crate) struct Pod(Child);

impl Pod {
    pub(crate) fn new() -> Self {
        let mut child = Command::new("unshare")
            .args([
                "-n",
                "sh",
                "-c",
                "ip link set lo up && echo ready && exec cat",
            ])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut ready = [0; 6];
        child
            .stdout
            .as_mut()
            .unwrap()
            .read_exact(&mut ready)
            .unwrap();
        let pod = Self(child);
        let id = pod.0.id();
        assert!(run(&format!(
            "ip link add veth0 type veth peer name eth0 netns {id}"
        )));
        assert!(run("ip addr add 10.244.1.1/24 dev veth0") && run("ip link set veth0 up"));
        for words in [
            "ip addr add 10.244.1.2/24 dev eth0",
            "ip link set eth0 up",
            "ip route add default via 10.244.1.1",
        ] {
            assert!(run(&format!("nsenter -t {id} -n {words}")), "{words}");
        }
        pod
    }

    /// What is said there to whoever connects.
    pub(crate) async fn greeting(&self, host: &str, port: u16) -> String {
        let script = format!(
            "$s = IO::Socket::IP->new(PeerHost => '{host}', PeerPort => {port}, Timeout => 1) or exit; print scalar <$s>"
        );
        let id = self.0.id().to_string();
        let said = tokio::process::Command::new("nsenter")
            .args(["-t", &id, "-n", "perl", "-MIO::Socket::IP", "-e", &script])
            .output();
        String::from_utf8(said.await.unwrap().stdout).unwrap()
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Tunnels whose far end says what it was asked for, then echoes.
#[derive(Debug)]
pub(crate) struct Told;

impl Tunnels for Told {
    fn open<'a>(&'a self, to: &'a Destination) -> crate::Opening<'a> {
        Box::pin(async move {
            if to.port == 8066 {
                return Err(DialError::Forbidden("not for you".into()));
            }
            let (near, mut far) = tokio::io::duplex(1024);
            let greeting = format!("{to}\n");
            tokio::spawn(async move {
                if far.write_all(greeting.as_bytes()).await.is_ok() {
                    twin::echo(far).await;
                }
            });
            Ok(Box::new(near) as BoxStream)
        })
    }
}

/// What a program of this host reads that connects and says nothing; `None`: it is not connected.
pub(crate) async fn greeting(to: &str) -> Option<io::Result<String>> {
    match timeout(HARDLY, TcpStream::connect(to)).await.ok()? {
        Ok(stream) => Some(said_by(stream).await),
        Err(error) => Some(Err(error)),
    }
}

async fn said_by(mut stream: TcpStream) -> io::Result<String> {
    let mut heard = String::new();
    stream.shutdown().await?;
    timeout(SOON, stream.read_to_string(&mut heard)).await??;
    Ok(heard)
}

pub(crate) async fn until_led(to: &str) -> String {
    timeout(SOON, async {
        loop {
            if let Some(Ok(heard)) = greeting(to).await {
                return heard;
            }
            sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .expect("led to the tunnel")
}

pub(crate) fn listing(backend: Backend) -> String {
    let (program, arguments): (_, &[&str]) = match backend {
        Backend::Iptables => ("iptables-save", &["-t", "nat"]),
        _ => ("nft", &["list", "ruleset"]),
    };
    let output = Command::new(program).args(arguments).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

/// What the kernel has of anybody's rules, once a condition holds.
pub(crate) async fn until_listed(backend: Backend, holds: impl Fn(&str) -> bool) {
    timeout(SOON, async {
        while !holds(&listing(backend)) {
            sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .expect("followed");
}

/// Runs a course by each backend that works here.
pub(crate) fn by_each<F: Future<Output = ()>>(course: impl Fn(Backend) -> F) {
    let runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = { runtime }.worker_threads(2).enable_all().build().unwrap();
    for (backend, program) in [
        (Backend::Auto, "nft list tables"),
        (Backend::Iptables, "iptables-save -t nat"),
    ] {
        match run(program) {
            true => runtime.block_on(course(backend)),
            false => eprintln!("SKIPPED: {program} does not work here"),
        }
    }
}
