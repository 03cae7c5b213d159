//! `kubectl` at the nodes of `yurt up`, whose kubelets are reached by the tunnel and by nothing else.

use super::operations::{attaches, copies, forwards, speaks_spdy, types};
use crate::fixture::{Kubectl, Lab, eventually, text};
use serde_json::json;
use std::{
    io::{BufRead, BufReader, Write},
    net::{SocketAddr, TcpStream},
    process::Stdio,
    time::{Duration, Instant},
};

/// Within which a cut node's sessions have ended: a dead peer is found in 10 s.
const DEAD: Duration = Duration::from_secs(25);

fn run_on(kubectl: &Kubectl, name: &str, node: &str) {
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "default"},
        "spec": {"nodeName": node, "tolerations": [{"operator": "Exists"}],
            "containers": [{"name": "web", "image": "nginx:1.27", "ports": [{"containerPort": 80}]}]}});
    kubectl.feed(&["apply", "-f", "-"], &pod.to_string());
    let pod = format!("pod/{name}");
    kubectl.ok(&["wait", &pod, "--for=condition=Ready", "--timeout=60s"]);
}

#[test]
fn all_that_kubectl_does_at_a_node() {
    let Some(lab) = Lab::start("a=1") else { return };
    let kubectl = lab.cloud();
    run_on(&kubectl, "web", "a-1");
    let mut logs = kubectl.follow(&["logs", "-f", "web"]);
    eventually("a line of the log", || !logs.lines().is_empty());
    let before = logs.lines().len();
    types(&kubectl, &lab.dir());
    assert_eq!(
        kubectl.feed(&["exec", "-i", "web", "--", "cat"], "through\n"),
        "through\n"
    );
    copies(&kubectl, &lab.dir(), 64);
    forwards(&kubectl);
    // The request is in the log, which is followed all the while.
    eventually("another line of the log", || logs.lines().len() > before);
    assert!(logs.runs());
    drop(logs);
    attaches(&kubectl);
    speaks_spdy(&kubectl);
    for path in ["metrics/resource", "stats/summary"] {
        let path = format!("/api/v1/nodes/a-1/proxy/{path}");
        assert!(!kubectl.ok(&["get", "--raw", &path]).is_empty());
    }
    // A pod's own address is behind the agent, too.
    let served = kubectl.ok(&[
        "get",
        "--raw",
        "/api/v1/namespaces/default/pods/web:80/proxy/",
    ]);
    assert!(!served.is_empty());
}

#[test]
fn a_cut_node_is_out_of_reach_and_back_within_seconds() {
    let Some(lab) = Lab::start("a=2") else { return };
    let kubectl = lab.cloud();
    run_on(&kubectl, "web", "a-1");
    run_on(&kubectl, "other", "a-2");
    let echo = |pod: &str| kubectl.output(&["exec", pod, "--", "echo", "here"]);
    assert!(echo("web").status.success());

    let mut session = kubectl
        .command(&["exec", "-i", "web", "--", "cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut stdin = session.stdin.take().unwrap();
    let mut stdout = BufReader::new(session.stdout.take().unwrap());
    let mut line = String::new();
    stdin.write_all(b"one\n").unwrap();
    stdout.read_line(&mut line).unwrap();
    assert_eq!(line, "one\n");

    let node = lab.lab(&["cut", "a-1"])[0].clone();
    let cut = Instant::now();
    // The kubelet's port is there as ever: what is missing is the way.
    let address: SocketAddr = format!("{}:10250", node["address"].as_str().unwrap())
        .parse()
        .unwrap();
    TcpStream::connect(address).expect("the kubelet listens");
    let ended = loop {
        if let Some(status) = session.try_wait().unwrap() {
            break status;
        }
        assert!(cut.elapsed() < DEAD, "a session outlives its node's link");
        std::thread::sleep(Duration::from_millis(50));
    };
    assert!(!ended.success());
    let refused = echo("web");
    assert!(!refused.status.success());
    let said = text(&refused.stderr);
    assert!(said.contains("agent"), "{said}");
    assert!(echo("other").status.success(), "another node is untouched");

    lab.lab(&["heal", "a-1"]);
    eventually("the node is reached again", || echo("web").status.success());
}
