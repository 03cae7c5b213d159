//! Kubernetes' own components against the embedded API server. They are not part of this repository: the environment
//! names their binaries (`KUBE_CONTROLLER_MANAGER`, `KUBE_SCHEDULER`, `KUBEMARK`), and a test without its own is skipped.

use crate::fixture::{Kubectl, Lab, eventually};
use std::{
    fs::File,
    net::TcpListener,
    path::PathBuf,
    process::{Child, Command, Stdio},
};
use yurt_controller::kubeconfig::{self, Credentials};
use yurt_pki::{Ca, Profile};

/// The binary that an environment variable names; `None`, said loudly, when it names none.
pub(crate) fn binary(variable: &str) -> Option<PathBuf> {
    match std::env::var_os(variable).map(PathBuf::from) {
        Some(path) if path.is_file() => Some(path),
        Some(path) => panic!("{variable} names {}, which is no file", path.display()),
        None => {
            eprintln!("SKIPPED: {variable} does not name a binary");
            None
        }
    }
}

/// A component at work. It ends with the test.
struct Peer {
    child: Child,
    log: PathBuf,
}

impl Peer {
    fn start(lab: &Lab, name: &str, command: &mut Command) -> Self {
        let log = lab.dir().join(format!("{name}.log"));
        let file = File::create(&log).unwrap();
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone().unwrap())
            .stderr(file)
            .spawn()
            .unwrap();
        Self { child, log }
    }

    /// It must not have given up.
    fn must_run(&mut self) {
        if let Some(status) = self.child.try_wait().unwrap() {
            let said = std::fs::read_to_string(&self.log).unwrap_or_default();
            let end: Vec<&str> = said.lines().rev().take(20).collect();
            panic!(
                "{} ended with {status}:\n{}",
                self.log.display(),
                end.join("\n")
            );
        }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// kube-controller-manager and kube-scheduler, as docs/lab.md starts them.
fn control_plane(lab: &Lab, own_identities: bool) -> Option<[Peer; 2]> {
    let (manager, scheduler) = (binary("KUBE_CONTROLLER_MANAGER"), binary("KUBE_SCHEDULER"));
    let (manager, scheduler) = (manager?, scheduler?);
    let file = |name: &str| lab.dir().join(name).display().to_string();
    let mut manager = Command::new(manager);
    manager
        .arg(format!(
            "--kubeconfig={}",
            file("kube-controller-manager.kubeconfig")
        ))
        .arg(format!(
            "--use-service-account-credentials={own_identities}"
        ))
        .arg(format!(
            "--service-account-private-key-file={}",
            file("pki/sa.key")
        ))
        .arg(format!("--root-ca-file={}", file("pki/ca.crt")))
        .arg(format!(
            "--cluster-signing-cert-file={}",
            file("pki/ca.crt")
        ))
        .arg(format!("--cluster-signing-key-file={}", file("pki/ca.key")))
        .args(["--secure-port=0", "--v=2"]);
    let mut scheduler = Command::new(scheduler);
    scheduler
        .arg(format!(
            "--kubeconfig={}",
            file("kube-scheduler.kubeconfig")
        ))
        .args(["--secure-port=0", "--v=2"]);
    Some([
        Peer::start(lab, "kube-controller-manager", &mut manager),
        Peer::start(lab, "kube-scheduler", &mut scheduler),
    ])
}

/// Rolls a deployment out, on and back.
fn roll(cloud: &Kubectl) {
    let done = ["rollout", "status", "deployment/web", "--timeout=120s"];
    cloud.ok(&[
        "create",
        "deployment",
        "web",
        "--image=web:1",
        "--replicas=3",
    ]);
    cloud.ok(&done);
    cloud.ok(&["set", "image", "deployment/web", "web=web:2"]);
    cloud.ok(&done);
    cloud.ok(&["rollout", "undo", "deployment/web"]);
    cloud.ok(&done);
    let image = "jsonpath={.spec.template.spec.containers[0].image}";
    assert_eq!(cloud.ok(&["get", "deployment/web", "-o", image]), "web:1");
    cloud.ok(&["scale", "deployment/web", "--replicas=1"]);
    cloud.ok(&["expose", "deployment/web", "--port=80"]);
    eventually("one pod is left, and the service leads to it", || {
        let pods = cloud.ok(&["get", "pods", "-l", "app=web", "-o", "name"]);
        let slices = cloud.ok(&[
            "get",
            "endpointslices",
            "-l",
            "kubernetes.io/service-name=web",
            "-o",
            "jsonpath={.items[*].endpoints[*].addresses[0]}",
        ]);
        pods.lines().count() == 1 && slices.split_whitespace().count() == 1
    });
}

fn real_control_plane_takes_over(own_identities: bool) {
    // Before the lab: without them there is nothing to wait for.
    let named = ["KUBE_CONTROLLER_MANAGER", "KUBE_SCHEDULER"].map(binary);
    if named.iter().any(Option::is_none) {
        return;
    }
    let Some(lab) = Lab::start_with("a=2", &["--controllers=-*"]) else {
        return;
    };
    let cloud = lab.cloud();
    if !own_identities {
        // One identity for all controllers is granted nothing by itself, as in Kubernetes, and who is refused asks
        // ever more seldom: what it may do is settled before it starts.
        cloud.ok(&[
            "create",
            "clusterrolebinding",
            "one-for-all",
            "--clusterrole=cluster-admin",
            "--user=system:kube-controller-manager",
        ]);
    }
    let Some(mut peers) = control_plane(&lab, own_identities) else {
        return;
    };
    for holder in ["kube-controller-manager", "kube-scheduler"] {
        eventually(&format!("{holder} leads"), || {
            peers.iter_mut().for_each(Peer::must_run);
            let lease = cloud.output(&["get", "lease", "-n", "kube-system", holder]);
            lease.status.success()
        });
    }
    roll(&cloud);
    cloud.ok(&["create", "namespace", "passing"]);
    cloud.ok(&["create", "deployment", "d", "--image=d", "-n", "passing"]);
    cloud.ok(&["delete", "namespace", "passing", "--timeout=120s"]);
    // The garbage collector takes the replica sets and pods of a deployment.
    cloud.ok(&["delete", "deployment", "web"]);
    eventually("nothing of the deployment is left", || {
        cloud
            .ok(&["get", "replicasets,pods", "-l", "app=web", "-o", "name"])
            .is_empty()
    });
    peers.iter_mut().for_each(Peer::must_run);
}

#[test]
fn a_real_controller_manager_with_an_identity_per_controller_and_a_real_scheduler_take_over() {
    real_control_plane_takes_over(true);
}

#[test]
fn a_real_controller_manager_with_one_identity_and_a_real_scheduler_take_over() {
    real_control_plane_takes_over(false);
}

/// The kubelet's own code over a runtime that only pretends, as Kubernetes builds it into `kubemark`: registration,
/// leases, status, pod workers and tokens are real, and it speaks protobuf.
#[test]
fn a_real_kubelet_registers_and_runs_pods() {
    let Some(kubemark) = binary("KUBEMARK") else {
        return;
    };
    let Some(lab) = Lab::start("a=1") else { return };
    let read = |name: &str| std::fs::read_to_string(lab.dir().join(name)).unwrap();
    let ca = Ca::from_pem(&yurt_pki::KeyPairPem {
        cert: read("pki/ca.crt"),
        key: read("pki/ca.key"),
    })
    .unwrap();
    let user = ca
        .issue(&Profile {
            common_name: "system:node:hollow".into(),
            organizations: vec!["system:nodes".into()],
            client: true,
            days: 1,
            ..Profile::default()
        })
        .unwrap();
    let credentials = Credentials::Certificate {
        cert: &user.cert,
        key: &user.key,
    };
    let cloud = lab.cloud();
    let server = "jsonpath={.clusters[0].cluster.server}";
    let server = cloud.ok(&["config", "view", "-o", server]);
    let kubeconfig = lab.dir().join("hollow.kubeconfig");
    let text = kubeconfig::render("lab", &server, &ca.cert_pem(), &credentials);
    std::fs::write(&kubeconfig, text).unwrap();
    // The kubelet takes a port by number; a moment ago this one was free.
    let port = TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr();
    let port = port.unwrap().port();
    let mut peer = Peer::start(
        &lab,
        "kubemark",
        Command::new(kubemark)
            .args(["--morph=kubelet", "--name=hollow", "--v=2"])
            .arg(format!("--kubeconfig={}", kubeconfig.display()))
            .arg(format!("--kubelet-port={port}"))
            .args([
                "--kubelet-read-only-port=0",
                "--use-host-image-service=false",
            ])
            .env("TMPDIR", lab.dir())
            .current_dir(lab.dir()),
    );
    let condition = "jsonpath={.status.conditions[?(@.type==\"Ready\")].status}";
    eventually("the node is Ready", || {
        peer.must_run();
        let node = cloud.output(&["get", "node", "hollow", "-o", condition]);
        node.stdout == b"True"
    });
    cloud.ok(&[
        "run",
        "p",
        "--image=i",
        "--overrides={\"spec\":{\"nodeName\":\"hollow\"}}",
    ]);
    cloud.ok(&["wait", "pod/p", "--for=condition=Ready", "--timeout=60s"]);
    eventually("it keeps its lease", || {
        let lease = ["get", "lease", "-n", "kube-node-lease", "hollow"];
        cloud.output(&lease).status.success()
    });
    cloud.ok(&["delete", "pod", "p", "--timeout=60s"]);
    peer.must_run();
}
