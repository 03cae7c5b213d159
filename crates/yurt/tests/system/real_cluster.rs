//! The manager on Kubernetes' own API server with etcd and controllers. They are not part of this repository: the environment names their
//! binaries (`ETCD`, `KUBE_APISERVER`, `KUBE_CONTROLLER_MANAGER`), and without them the test is skipped and says so.

use crate::{
    fixture::{Kubectl, Scratch, eventually, free_port, kubectl, text},
    manager::takeover::{Cluster, taken_over},
    peers::binary,
};
use std::{
    fs::File,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};
use yurt_controller::kubeconfig::{self, Credentials};
use yurt_pki::{Ca, KeyPairPem, Profile};

/// A process with a log, killed with the test.
struct Service {
    child: Child,
    log: PathBuf,
}

impl Service {
    fn start(dir: &Path, name: &str, command: &mut Command) -> Self {
        let log = dir.join(format!("{name}.log"));
        let file = File::create(&log).unwrap();
        let command = command.current_dir(dir).stdin(Stdio::null());
        let child = command
            .stdout(file.try_clone().unwrap())
            .stderr(file)
            .spawn();
        Self {
            child: child.unwrap(),
            log,
        }
    }

    fn must_run(&mut self) {
        if let Some(status) = self.child.try_wait().unwrap() {
            let said = text(&std::fs::read(&self.log).unwrap_or_default());
            let end: Vec<&str> = said.lines().rev().take(20).collect();
            panic!("{} ended with {status}: {end:#?}", self.log.display());
        }
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// etcd, kube-apiserver and kube-controller-manager, as a control plane of one runs them.
struct ControlPlane {
    services: Vec<Service>,
    kubeconfig: PathBuf,
}

impl ControlPlane {
    fn start(dir: &Path, [etcd, apiserver, controllers]: [PathBuf; 3]) -> Self {
        let write = |name: &str, text: &str| {
            let path = dir.join(name);
            std::fs::write(&path, text).unwrap();
            path.display().to_string()
        };
        let ca = Ca::new("kubernetes", 10).unwrap();
        let issue = |profile: Profile| {
            ca.issue(&Profile {
                days: 10,
                ..profile
            })
            .unwrap()
        };
        let serving = issue(Profile {
            common_name: "kube-apiserver".into(),
            dns: vec!["kubernetes.default.svc".into()],
            ips: vec!["127.0.0.1".parse().unwrap(), "10.96.0.1".parse().unwrap()],
            server: true,
            ..Profile::default()
        });
        let client = |name: &str, groups: &[&str]| -> KeyPairPem {
            issue(Profile {
                common_name: name.into(),
                organizations: groups.iter().map(|group| (*group).to_owned()).collect(),
                client: true,
                ..Profile::default()
            })
        };
        // Tokens of service accounts are signed by a key of their own; its certificate tells the public half.
        let signer = issue(Profile {
            common_name: "service-accounts".into(),
            server: true,
            ..Profile::default()
        });
        let (ca_cert, ca_key) = (
            write("ca.crt", &ca.cert_pem()),
            write("ca.key", &ca.to_pem().key),
        );
        let (cert, key) = (
            write("api.crt", &serving.cert),
            write("api.key", &serving.key),
        );
        let (sa_cert, sa_key) = (write("sa.crt", &signer.cert), write("sa.key", &signer.key));
        let (etcd_port, peer_port, port) = (free_port(), free_port(), free_port());
        let server = format!("https://127.0.0.1:{port}");
        let config = |name: &str, groups: &[&str]| {
            let pair = client(name, groups);
            let credentials = Credentials::Certificate {
                cert: &pair.cert,
                key: &pair.key,
            };
            kubeconfig::render("real", &server, &ca.cert_pem(), &credentials)
        };
        let kubeconfig = dir.join("admin.kubeconfig");
        std::fs::write(&kubeconfig, config("kubernetes-admin", &["system:masters"])).unwrap();
        let of_controllers = write(
            "controllers.kubeconfig",
            &config("system:kube-controller-manager", &[]),
        );

        let etcd = Service::start(
            dir,
            "etcd",
            Command::new(etcd).args([
                "--data-dir=etcd-data".to_owned(),
                format!("--listen-client-urls=http://127.0.0.1:{etcd_port}"),
                format!("--advertise-client-urls=http://127.0.0.1:{etcd_port}"),
                format!("--listen-peer-urls=http://127.0.0.1:{peer_port}"),
                "--unsafe-no-fsync".to_owned(),
            ]),
        );
        let apiserver = Service::start(
            dir,
            "kube-apiserver",
            Command::new(apiserver).args([
                format!("--etcd-servers=http://127.0.0.1:{etcd_port}"),
                format!("--secure-port={port}"),
                "--bind-address=127.0.0.1".to_owned(),
                "--advertise-address=127.0.0.1".to_owned(),
                "--endpoint-reconciler-type=none".to_owned(),
                format!("--tls-cert-file={cert}"),
                format!("--tls-private-key-file={key}"),
                format!("--client-ca-file={ca_cert}"),
                "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
                format!("--service-account-key-file={sa_cert}"),
                format!("--service-account-signing-key-file={sa_key}"),
                "--authorization-mode=Node,RBAC".to_owned(),
                "--service-cluster-ip-range=10.96.0.0/16".to_owned(),
            ]),
        );
        let controllers = Service::start(
            dir,
            "kube-controller-manager",
            Command::new(controllers).args([
                format!("--kubeconfig={of_controllers}"),
                "--use-service-account-credentials".to_owned(),
                format!("--service-account-private-key-file={sa_key}"),
                format!("--root-ca-file={ca_cert}"),
                format!("--cluster-signing-cert-file={ca_cert}"),
                format!("--cluster-signing-key-file={ca_key}"),
                "--secure-port=0".to_owned(),
                "--leader-elect=false".to_owned(),
            ]),
        );
        Self {
            services: vec![etcd, apiserver, controllers],
            kubeconfig,
        }
    }
}

#[test]
fn a_real_cluster_that_openyurt_ran_is_taken_over() {
    let named = ["ETCD", "KUBE_APISERVER", "KUBE_CONTROLLER_MANAGER"].map(binary);
    let [Some(etcd), Some(apiserver), Some(controllers)] = named else {
        return;
    };
    let Some(program) = kubectl() else { return };
    let scratch = Scratch::new();
    let mut plane = ControlPlane::start(scratch.path(), [etcd, apiserver, controllers]);
    let kubectl = Kubectl::new(
        program,
        plane.kubeconfig.clone(),
        scratch.path().join("kubectl-cache"),
    );
    eventually("the API server is ready, and controllers run", || {
        // The controller manager ends when it comes first: a service manager would start it again.
        plane.services[..2].iter_mut().for_each(Service::must_run);
        kubectl
            .output(&["get", "--raw", "/readyz"])
            .status
            .success()
    });
    let cluster = Cluster {
        kubectl: &kubectl,
        kubeconfig: &plane.kubeconfig,
        dir: scratch.path(),
    };
    taken_over(&cluster);
    plane.services.iter_mut().for_each(Service::must_run);
}
