//! Real kubectl against the server: whichever is on the PATH, or the one `KUBECTL` names.

use std::{
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::mpsc,
    time::Duration,
};
use tokio_util::sync::CancellationToken;
use yurt_apiserver::{ApiServer, Config, Running, Tls};
use yurt_pki::{Ca, KeyPairPem, Profile};

/// A server, and kubectl set up for it.
struct Cluster {
    kubectl: PathBuf,
    dir: PathBuf,
    shutdown: CancellationToken,
    running: Option<Running>,
    runtime: tokio::runtime::Runtime,
}

/// `None`, said aloud, when there is no kubectl.
fn find_kubectl() -> Option<PathBuf> {
    let named = std::env::var_os("KUBECTL").map(PathBuf::from);
    let found = named.or_else(|| {
        let path = std::env::var_os("PATH")?;
        std::env::split_paths(&path)
            .map(|dir| dir.join("kubectl"))
            .find(|file| file.is_file())
    });
    if found.is_none() {
        eprintln!("SKIPPED: there is no kubectl on the PATH (set KUBECTL to name one)");
    }
    found
}

impl Cluster {
    fn start(test: &str) -> Option<Self> {
        let kubectl = find_kubectl()?;
        let dir = std::env::temp_dir().join(format!("yurt-kubectl-{test}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(&dir).expect("a directory");
        let ca = Ca::new("test", 1).expect("a CA");
        let serving = ca
            .issue(&Profile {
                common_name: "kube-apiserver".into(),
                ips: vec![std::net::Ipv4Addr::LOCALHOST.into()],
                server: true,
                days: 1,
                ..Profile::default()
            })
            .expect("a certificate");
        let admin = ca
            .issue(&Profile {
                common_name: "admin".into(),
                organizations: vec!["system:masters".into()],
                client: true,
                days: 1,
                ..Profile::default()
            })
            .expect("a certificate");
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .expect("a runtime");
        let shutdown = CancellationToken::new();
        let config = Config {
            tls: Some(Tls {
                serving,
                client_ca: Some(ca.cert_pem()),
            }),
            root_ca: Some(ca.cert_pem()),
            ..Config::default()
        };
        let running = runtime
            .block_on(ApiServer::start(config, shutdown.clone()))
            .expect("the server starts");
        write_kubeconfig(&dir, &running, &ca.cert_pem(), &admin);
        let cluster = Self {
            kubectl,
            dir,
            shutdown,
            running: Some(running),
            runtime,
        };
        let account = [
            "wait",
            "--for=create",
            "serviceaccount/default",
            "--timeout=20s",
        ];
        if !cluster.run(&account, None).status.success() {
            // Before 1.31 kubectl cannot wait for something to be created.
            while !cluster
                .run(&["get", "sa", "default"], None)
                .status
                .success()
            {
                std::thread::sleep(Duration::from_millis(50));
            }
        }
        Some(cluster)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.kubectl);
        command
            .arg("--kubeconfig")
            .arg(self.dir.join("kubeconfig"))
            .arg("--cache-dir")
            .arg(self.dir.join("cache"))
            .args(arguments)
            .env("KUBECTL_EXTERNAL_DIFF", "diff -u -N")
            .env("HOME", &self.dir)
            .stdin(Stdio::null());
        command
    }

    fn run(&self, arguments: &[&str], stdin: Option<&str>) -> Output {
        let mut command = self.command(arguments);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        if stdin.is_some() {
            command.stdin(Stdio::piped());
        }
        let mut child = command.spawn().expect("kubectl runs");
        if let (Some(text), Some(mut pipe)) = (stdin, child.stdin.take()) {
            pipe.write_all(text.as_bytes()).expect("kubectl reads");
        }
        child.wait_with_output().expect("kubectl ends")
    }

    /// What kubectl prints when it succeeds.
    fn ok(&self, arguments: &[&str]) -> String {
        self.fed(arguments, None)
    }

    fn fed(&self, arguments: &[&str], stdin: Option<&str>) -> String {
        let output = self.run(arguments, stdin);
        let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            output.status.success(),
            "kubectl {}: {stdout}{}",
            arguments.join(" "),
            String::from_utf8_lossy(&output.stderr)
        );
        stdout
    }

    /// What kubectl complains about when it fails.
    fn fails(&self, arguments: &[&str], stdin: Option<&str>) -> String {
        let output = self.run(arguments, stdin);
        assert!(
            !output.status.success(),
            "kubectl {} should fail: {}",
            arguments.join(" "),
            String::from_utf8_lossy(&output.stdout)
        );
        String::from_utf8_lossy(&output.stderr).into_owned()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.shutdown.cancel();
        if let Some(running) = self.running.take() {
            let _ = self.runtime.block_on(running.stopped());
        }
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

fn write_kubeconfig(dir: &Path, running: &Running, ca: &str, admin: &KeyPairPem) {
    for (name, text) in [
        ("ca.pem", ca),
        ("cert.pem", &admin.cert),
        ("key.pem", &admin.key),
    ] {
        std::fs::write(dir.join(name), text).expect("a file");
    }
    let kubeconfig = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: a\ncontexts: [{{name: a, context: {{cluster: a, user: a}}}}]\nclusters: [{{name: a, cluster: {{server: 'https://{}', certificate-authority: ca.pem}}}}]\nusers: [{{name: a, user: {{client-certificate: cert.pem, client-key: key.pem}}}}]\n",
        running.addr()
    );
    std::fs::write(dir.join("kubeconfig"), kubeconfig).expect("a file");
}

/// A kubectl that keeps printing.
struct Following {
    child: Child,
    lines: mpsc::Receiver<String>,
}

impl Following {
    fn start(cluster: &Cluster, arguments: &[&str]) -> Self {
        let mut child = cluster
            .command(arguments)
            .stdout(Stdio::piped())
            .spawn()
            .expect("kubectl runs");
        let stdout = child.stdout.take().expect("a pipe");
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Self { child, lines }
    }

    /// Reads until a line has all of these words.
    fn until(&self, words: &[&str]) -> String {
        loop {
            let line = self
                .lines
                .recv_timeout(Duration::from_secs(30))
                .unwrap_or_else(|_| panic!("no line with {words:?}"));
            if words.iter().all(|word| line.contains(word)) {
                return line;
            }
        }
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const POD: &str = "
apiVersion: v1
kind: Pod
metadata: {name: p, labels: {app: p}}
spec:
  containers: [{name: c, image: nginx}]
";

#[test]
fn objects_are_read_and_described() {
    let Some(cluster) = Cluster::start("read") else {
        return;
    };
    let namespaces = cluster.ok(&["get", "namespaces"]);
    for name in [
        "default",
        "kube-system",
        "kube-public",
        "kube-node-lease",
        "Active",
    ] {
        assert!(namespaces.contains(name), "{namespaces}");
    }
    cluster.fed(&["create", "-f", "-"], Some(POD));
    let wide = cluster.ok(&["get", "pod", "p", "-o", "wide"]);
    assert!(
        wide.contains("NOMINATED NODE") && wide.contains("Pending"),
        "{wide}"
    );
    assert_eq!(
        cluster
            .ok(&["get", "pods", "-l", "app=p", "-o", "name"])
            .trim(),
        "pod/p"
    );
    assert_eq!(
        cluster.ok(&[
            "get",
            "pods",
            "--field-selector",
            "status.phase=Running",
            "-o",
            "name"
        ]),
        ""
    );
    let described = cluster.ok(&["describe", "pod", "p"]);
    assert!(described.contains("QoS Class:"), "{described}");
    cluster.ok(&["describe", "namespace", "default"]);
    cluster.ok(&["describe", "service", "kubernetes"]);
    assert!(
        cluster
            .ok(&["get", "all", "-A"])
            .contains("service/kubernetes")
    );
    let missing = cluster.fails(&["get", "pod", "none"], None);
    assert!(
        missing.contains("Error from server (NotFound): pods \"none\" not found"),
        "{missing}"
    );
    assert!(cluster.ok(&["version"]).contains("+yurt"));
    assert!(
        cluster
            .ok(&["api-versions"])
            .contains("discovery.k8s.io/v1")
    );
    let resources = cluster.ok(&["api-resources"]);
    assert!(
        resources.contains("endpointslices") && resources.contains("deploy"),
        "{resources}"
    );
    assert_eq!(
        cluster.ok(&["auth", "can-i", "delete", "nodes"]).trim(),
        "yes"
    );
    assert!(cluster.ok(&["auth", "whoami"]).contains("admin"));
    assert!(
        cluster
            .ok(&["create", "token", "default"])
            .starts_with("ey")
    );
}

#[test]
fn objects_are_changed_in_every_way() {
    let Some(cluster) = Cluster::start("change") else {
        return;
    };
    cluster.ok(&["create", "namespace", "n"]);
    cluster.ok(&["create", "configmap", "c", "--from-literal=a=b"]);
    cluster.ok(&[
        "create",
        "deployment",
        "web",
        "--image=nginx",
        "--replicas=2",
    ]);
    let replicas = [
        "get",
        "deployment",
        "web",
        "-o",
        "jsonpath={.spec.replicas}",
    ];
    cluster.ok(&["scale", "deployment", "web", "--replicas=3"]);
    assert_eq!(cluster.ok(&replicas), "3");
    cluster.ok(&[
        "patch",
        "deployment",
        "web",
        "-p",
        "{\"spec\":{\"replicas\":4}}",
    ]);
    assert_eq!(cluster.ok(&replicas), "4");
    let json = "[{\"op\":\"replace\",\"path\":\"/spec/replicas\",\"value\":5}]";
    cluster.ok(&["patch", "deployment", "web", "--type=json", "-p", json]);
    assert_eq!(cluster.ok(&replicas), "5");
    let merge = "{\"spec\":{\"replicas\":6}}";
    cluster.ok(&["patch", "deployment", "web", "--type=merge", "-p", merge]);
    assert_eq!(cluster.ok(&replicas), "6");
    cluster.ok(&["set", "image", "deployment/web", "nginx=nginx:2"]);
    cluster.ok(&["label", "deployment", "web", "tier=x"]);
    cluster.ok(&["annotate", "deployment", "web", "note=y"]);
    let labels = cluster.ok(&["get", "deployment", "web", "--show-labels"]);
    assert!(labels.contains("app=web,tier=x"), "{labels}");
    let edited = cluster
        .command(&["edit", "configmap", "c"])
        .env("EDITOR", "sed -i s/a:.b/a:\\ z/")
        .output()
        .expect("kubectl runs");
    assert!(
        edited.status.success(),
        "{}",
        String::from_utf8_lossy(&edited.stderr)
    );
    assert_eq!(
        cluster.ok(&["get", "configmap", "c", "-o", "jsonpath={.data.a}"]),
        "z"
    );
    let refused = cluster.fails(&["create", "configmap", "c"], None);
    assert!(refused.contains("already exists"), "{refused}");
    let invalid = cluster.fails(
        &[
            "patch",
            "deployment",
            "web",
            "-p",
            "{\"spec\":{\"replicas\":-1}}",
        ],
        None,
    );
    assert!(invalid.contains("spec.replicas"), "{invalid}");
    cluster.ok(&["expose", "deployment", "web", "--port=80"]);
    assert!(cluster.ok(&["get", "service", "web"]).contains("ClusterIP"));
    cluster.ok(&[
        "delete",
        "deployment,service,configmap",
        "web",
        "--ignore-not-found",
    ]);
    cluster.ok(&["delete", "namespace", "n", "--timeout=30s"]);
    assert!(!cluster.ok(&["get", "namespaces"]).contains("\nn "));
}

#[test]
fn a_watch_shows_what_happens() {
    let Some(cluster) = Cluster::start("watch") else {
        return;
    };
    let watch = Following::start(&cluster, &["get", "pods", "-w", "--output-watch-events"]);
    cluster.fed(&["create", "-f", "-"], Some(POD));
    watch.until(&["ADDED", "p", "Pending"]);
    let running = "{\"status\":{\"phase\":\"Running\"}}";
    cluster.ok(&[
        "patch",
        "pod",
        "p",
        "--subresource=status",
        "--type=merge",
        "-p",
        running,
    ]);
    watch.until(&["MODIFIED", "p", "Running"]);
    let phase = "--for=jsonpath={.status.phase}=Running";
    cluster.ok(&["wait", phase, "pod/p", "--timeout=20s"]);
    cluster.ok(&["delete", "pod", "p"]);
    watch.until(&["DELETED", "p"]);
    cluster.ok(&["wait", "--for=delete", "pod/p", "--timeout=30s"]);
}

#[test]
fn configurations_are_applied_and_compared() {
    let Some(cluster) = Cluster::start("apply") else {
        return;
    };
    assert!(
        cluster
            .fed(&["apply", "-f", "-"], Some(POD))
            .contains("created")
    );
    assert!(
        cluster
            .fed(&["apply", "-f", "-"], Some(POD))
            .contains("unchanged")
    );
    let changed = POD.replace("image: nginx", "image: nginx:2");
    let diff = cluster.run(&["diff", "-f", "-"], Some(&changed));
    assert_eq!(
        diff.status.code(),
        Some(1),
        "{}",
        String::from_utf8_lossy(&diff.stderr)
    );
    assert!(String::from_utf8_lossy(&diff.stdout).contains("+  - image: nginx:2"));
    assert!(
        cluster
            .fed(&["apply", "-f", "-"], Some(&changed))
            .contains("configured")
    );
    let typo = POD.replace("image:", "imagee:");
    let refused = cluster.fails(&["apply", "-f", "-"], Some(&typo));
    assert!(refused.contains("imagee"), "{refused}");

    let service = "
apiVersion: v1
kind: Service
metadata: {name: s}
spec: {selector: {app: p}, ports: [{port: 80}]}
";
    let server_side = ["apply", "--server-side", "-f", "-"];
    assert!(
        cluster
            .fed(&server_side, Some(service))
            .contains("serverside-applied")
    );
    let other = ["apply", "--server-side", "--field-manager=other", "-f", "-"];
    let changed = service.replace("app: p", "app: q");
    let conflict = cluster.fails(&other, Some(&changed));
    assert!(conflict.contains("conflict with \"kubectl\""), "{conflict}");
    let forced = [
        "apply",
        "--server-side",
        "--field-manager=other",
        "--force-conflicts",
        "-f",
        "-",
    ];
    cluster.fed(&forced, Some(&changed));
    assert_eq!(
        cluster.ok(&["get", "service", "s", "-o", "jsonpath={.spec.selector.app}"]),
        "q"
    );
    assert!(
        cluster
            .ok(&["explain", "pod.spec.containers.image"])
            .contains("image <string>")
    );
    assert!(
        cluster
            .ok(&["explain", "deployments", "--recursive"])
            .contains("replicas")
    );
}

const CRD: &str = "
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: pools.example.org}
spec:
  group: example.org
  names: {plural: pools, singular: pool, kind: Pool, shortNames: [pl], categories: [things]}
  scope: Namespaced
  versions:
  - name: v1
    served: true
    storage: true
    subresources:
      status: {}
      scale: {specReplicasPath: .spec.size, statusReplicasPath: .status.size}
    additionalPrinterColumns:
    - {name: Size, type: integer, jsonPath: .spec.size}
    schema:
      openAPIV3Schema:
        type: object
        properties:
          spec:
            type: object
            required: [size]
            properties:
              size: {type: integer, minimum: 1, description: How many.}
              mode: {type: string, default: Edge, enum: [Edge, Cloud]}
          status:
            type: object
            properties: {size: {type: integer}}
";

const POOL: &str = "
apiVersion: example.org/v1
kind: Pool
metadata: {name: a}
spec: {size: 2}
";

#[test]
fn custom_resources_are_first_class() {
    let Some(cluster) = Cluster::start("custom") else {
        return;
    };
    cluster.fed(&["apply", "-f", "-"], Some(CRD));
    let crd = "crd/pools.example.org";
    cluster.ok(&["wait", "--for=condition=Established", crd, "--timeout=20s"]);
    cluster.fed(&["apply", "-f", "-"], Some(POOL));
    let listed = cluster.ok(&["get", "pl"]);
    assert!(
        listed.contains("SIZE") && listed.lines().any(|l| l.starts_with("a ")),
        "{listed}"
    );
    assert_eq!(
        cluster.ok(&["get", "pool", "a", "-o", "jsonpath={.spec.mode}"]),
        "Edge"
    );
    assert!(cluster.ok(&["get", "things"]).contains('a'));
    cluster.ok(&["scale", "pool", "a", "--replicas=5"]);
    assert_eq!(
        cluster.ok(&["get", "pool", "a", "-o", "jsonpath={.spec.size}"]),
        "5"
    );
    let invalid = cluster.fails(
        &[
            "patch",
            "pool",
            "a",
            "--type=merge",
            "-p",
            "{\"spec\":{\"mode\":\"Fog\"}}",
        ],
        None,
    );
    assert!(invalid.contains("Unsupported value: \"Fog\""), "{invalid}");
    let unknown = POOL.replace("size: 2", "size: 2, sise: 3");
    let refused = cluster.fails(&["apply", "-f", "-"], Some(&unknown));
    assert!(refused.contains("sise"), "{refused}");
    cluster.fed(
        &["apply", "--server-side", "--force-conflicts", "-f", "-"],
        Some(POOL),
    );
    assert!(
        cluster
            .ok(&["explain", "pool.spec.size"])
            .contains("How many.")
    );
    cluster.ok(&["describe", "pool", "a"]);
    cluster.ok(&["delete", "pool", "a"]);
    cluster.fed(&["apply", "-f", "-"], Some(POOL));
    cluster.ok(&["delete", crd, "--timeout=30s"]);
    let gone = cluster.fails(&["get", "pools.example.org"], None);
    assert!(!gone.is_empty());
}

#[test]
fn auth_says_who_may_do_what() {
    let Some(cluster) = Cluster::start("auth") else {
        return;
    };
    assert_eq!(cluster.ok(&["auth", "can-i", "delete", "nodes"]), "yes\n");
    assert!(cluster.ok(&["auth", "whoami"]).contains("system:masters"));
    cluster.ok(&["create", "serviceaccount", "robot"]);
    cluster.ok(&[
        "create",
        "rolebinding",
        "robot",
        "--clusterrole=view",
        "--serviceaccount=default:robot",
    ]);
    let robot = "--as=system:serviceaccount:default:robot";
    assert_eq!(
        cluster.ok(&["auth", "can-i", "list", "pods", robot]),
        "yes\n"
    );
    let refused = cluster.run(&["auth", "can-i", "delete", "pods", robot], None);
    assert_eq!(String::from_utf8_lossy(&refused.stdout), "no\n");
    let listed = cluster.ok(&["auth", "can-i", "--list", robot]);
    assert!(listed.contains("deployments.apps"), "{listed}");
    let secrets = cluster.fails(&["get", "secrets", robot], None);
    assert!(
        secrets.contains("cannot list resource \"secrets\""),
        "{secrets}"
    );
    let extra = cluster.fails(&["get", "pods", "--as=jane", "--as-group=devs"], None);
    assert!(
        extra.contains("User \"jane\" cannot list resource \"pods\""),
        "{extra}"
    );
}
