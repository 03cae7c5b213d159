//! A cluster that OpenYurt ran gets this manager in its place, by kubectl: objects that OpenYurt's own code made are applied, the shipped
//! manifests give rights, the manager starts as a process, and no pod template is new.

use super::name;
use crate::fixture::{Kubectl, Lab, eventually, text, yurt};
use serde_json::{Value, json};
use std::{
    collections::BTreeSet,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

/// Recorded sets by the namespace that they are put into; how is told beside them.
const RECORDED: [(&str, &str); 5] = [
    (
        "d14",
        include_str!("../../../../manager/src/recorded/openyurt/v1.4-deployment.json"),
    ),
    (
        "s14",
        include_str!("../../../../manager/src/recorded/openyurt/v1.4-statefulset.json"),
    ),
    (
        "daemon16",
        include_str!("../../../../manager/src/recorded/openyurt/daemon-v1.6.json"),
    ),
    (
        "d17",
        include_str!("../../../../manager/src/recorded/openyurt/v1.7-deployment.json"),
    ),
    (
        "s17",
        include_str!("../../../../manager/src/recorded/openyurt/v1.7-statefulset.json"),
    ),
];

/// The server checks what it is given; what kubectl checks by needs a schema that not every build of the server can tell.
const UNCHECKED: &str = "--validate=false";

/// A cluster without a manager, with Kubernetes' own controllers.
pub(crate) struct Cluster<'c> {
    pub(crate) kubectl: &'c Kubectl,
    pub(crate) kubeconfig: &'c Path,
    pub(crate) dir: &'c Path,
}

/// `yurt manager`, under the account and the rights that are shipped.
struct Manager {
    child: Child,
    log: PathBuf,
}

impl Manager {
    fn start(cluster: &Cluster, kubeconfig: &Path, controllers: &str) -> Self {
        let log = cluster.dir.join("manager.log");
        let file = std::fs::File::options()
            .create(true)
            .append(true)
            .open(&log)
            .unwrap();
        let free = || {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            listener.local_addr().unwrap()
        };
        let mut command: Command = yurt();
        command
            .arg("manager")
            .arg(format!("--kubeconfig={}", kubeconfig.display()))
            .arg(format!("--controllers={controllers}"))
            .arg(format!("--metrics-addr={}", free()))
            .arg(format!("--health-probe-addr={}", free()))
            .arg(format!("--webhook-port={}", free().port()))
            .args([
                // As the shipped Deployment has it, and the roles allow.
                "--leader-elect-resource-name=cloud-yurt-manager",
                "--leader-elect-lease-duration=3s",
                "--leader-elect-renew-deadline=2s",
                "--leader-elect-retry-period=500ms",
            ])
            .env("WEBHOOK_HOST", "127.0.0.1")
            .stdin(Stdio::null())
            .stdout(file.try_clone().unwrap())
            .stderr(file);
        Self {
            child: command.spawn().unwrap(),
            log,
        }
    }

    fn must_run(&mut self) {
        if let Some(status) = self.child.try_wait().unwrap() {
            let said = text(&std::fs::read(&self.log).unwrap_or_default());
            let end: Vec<&str> = said.lines().rev().take(20).collect();
            panic!("the manager ended with {status}: {end:#?}");
        }
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Cluster<'_> {
    fn items(&self, namespace: &str, kinds: &str) -> Vec<Value> {
        let list = self
            .kubectl
            .ok(&["get", kinds, "-n", namespace, "-o", "json"]);
        let list: Value = serde_json::from_str(&list).unwrap();
        list["items"].as_array().cloned().unwrap()
    }

    /// Kubectl's answer to a manifest, which may be refused for now.
    fn applies(&self, manifest: &Value) -> bool {
        let path = self.dir.join("applied.json");
        std::fs::write(&path, manifest.to_string()).unwrap();
        self.kubectl
            .output(&["apply", UNCHECKED, "-f", &path.display().to_string()])
            .status
            .success()
    }

    /// The names of all pod templates that Kubernetes' own controllers wrote down: their hashes.
    fn hashes(&self, namespace: &str) -> BTreeSet<String> {
        let items = self.items(namespace, "replicasets,controllerrevisions");
        let of_workloads = items.iter().filter(|item| {
            let owner = &item["metadata"]["ownerReferences"][0]["kind"];
            owner == "Deployment" || owner == "StatefulSet"
        });
        of_workloads.map(|item| name(item).to_owned()).collect()
    }

    /// Name, selector and template of the workloads.
    fn templates(&self, namespace: &str) -> Vec<Value> {
        let items = self.items(namespace, "deployments,statefulsets");
        items
            .iter()
            .map(|item| {
                json!([
                    name(item),
                    item["spec"]["selector"],
                    item["spec"]["template"]
                ])
            })
            .collect()
    }

    /// Installs what is shipped; the kubeconfig of the manager's account.
    fn install(&self) -> PathBuf {
        let shipped = yurt().arg("manifests").output().unwrap();
        assert!(shipped.status.success(), "{}", text(&shipped.stderr));
        eventually("the system's namespace is there", || {
            let namespace = ["get", "namespace", "kube-system"];
            self.kubectl.output(&namespace).status.success()
        });
        let apply = [
            "apply",
            "--server-side",
            "--force-conflicts",
            UNCHECKED,
            "-f",
            "-",
        ];
        self.kubectl.feed(&apply, &text(&shipped.stdout));
        let token = self.kubectl.ok(&[
            "create",
            "token",
            "yurt-manager",
            "-n",
            "kube-system",
            "--duration=1h",
        ]);
        let admin: Value =
            serde_json::from_str(&std::fs::read_to_string(self.kubeconfig).unwrap()).unwrap();
        let mut config = admin;
        config["users"][0]["user"] = json!({"token": token.trim()});
        let path = self.dir.join("manager.kubeconfig");
        std::fs::write(&path, config.to_string()).unwrap();
        path
    }
}

/// The whole story.
pub(crate) fn taken_over(cluster: &Cluster) {
    let kubeconfig = cluster.install();
    // As OpenYurt's manager would answer: the older version of sets needs somebody who converts it.
    let mut answering = Manager::start(cluster, &kubeconfig, "nodepool");
    let pool = |name: &str, taints: Value| {
        json!({"apiVersion": "apps.openyurt.io/v1beta2", "kind": "NodePool", "spec": {"type": "Edge", "taints": taints},
            "metadata": {"name": name, "labels": {"yurtappset.openyurt.io/type": if name == "beijing" { "nginx" } else { "other" }}}})
    };
    eventually("pools are created, as the webhooks answer", || {
        answering.must_run();
        cluster.applies(&pool("hangzhou", json!([])))
            && cluster.applies(&pool(
                "beijing",
                json!([{"key": "site", "value": "beijing", "effect": "NoSchedule"}]),
            ))
    });
    for (namespace, recorded) in RECORDED {
        let recorded: Value = serde_json::from_str(recorded).unwrap();
        cluster.kubectl.ok(&["create", "namespace", namespace]);
        let put = |object: &Value| {
            let mut object = object.clone();
            object["metadata"]["namespace"] = namespace.into();
            let made = cluster.kubectl.feed(
                &["create", UNCHECKED, "-f", "-", "-o", "json"],
                &object.to_string(),
            );
            serde_json::from_str::<Value>(&made).unwrap()
        };
        let mut set = recorded["set"].clone();
        // What an API server keeps of it by itself.
        set.as_object_mut().unwrap().remove("status");
        let set = put(&set);
        for list in ["revisions", "workloads"] {
            for object in recorded[list].as_array().unwrap() {
                let mut object = object.clone();
                object["metadata"]["ownerReferences"][0]["uid"] = set["metadata"]["uid"].clone();
                put(&object);
            }
        }
    }
    let all = |seen: &dyn Fn(&str) -> bool| RECORDED.iter().all(|(namespace, _)| seen(namespace));
    eventually("Kubernetes writes each template down", || {
        all(&|namespace| cluster.hashes(namespace).len() == 2)
    });
    drop(answering);

    let before: Vec<_> = RECORDED
        .map(|(namespace, _)| (cluster.templates(namespace), cluster.hashes(namespace)))
        .to_vec();
    let mut manager = Manager::start(cluster, &kubeconfig, "*");
    for (namespace, recorded) in RECORDED {
        let recorded: Value = serde_json::from_str(recorded).unwrap();
        let kind = if recorded["set"]["kind"] == "YurtAppDaemon" {
            "yad"
        } else {
            "yas"
        };
        eventually(&format!("{namespace} is looked at"), || {
            manager.must_run();
            let set = cluster.items(namespace, kind).remove(0);
            let revision = &recorded["revisions"][0]["metadata"]["name"];
            // What 1.4 wrote down of a set is of the version of then.
            set["status"]["observedGeneration"] == set["metadata"]["generation"]
                && (namespace.ends_with("14") || set["status"]["currentRevision"] == *revision)
        });
    }
    // It is at work, in one set: what changes there is rolled out, by that alone.
    let image = r#"[{"op": "replace", "path": "/spec/workload/workloadTemplate/deploymentTemplate/spec/template/spec/containers/0/image", "value": "nginx:2"}]"#;
    cluster.kubectl.ok(&[
        "patch",
        "yas",
        "web",
        "-n",
        "d17",
        "--type=json",
        "-p",
        image,
    ]);
    eventually(
        "a change makes a new template, of the pool without an image of its own",
        || {
            manager.must_run();
            cluster.hashes("d17").len() == 3
        },
    );
    for ((namespace, _), (templates, hashes)) in RECORDED
        .iter()
        .zip(before)
        .filter(|((namespace, _), _)| *namespace != "d17")
    {
        assert_eq!(
            cluster.templates(namespace),
            templates,
            "{namespace}: not a byte of a template"
        );
        assert_eq!(
            cluster.hashes(namespace),
            hashes,
            "{namespace}: no pod template hash is new"
        );
    }
}

#[test]
fn a_cluster_that_openyurt_ran_is_taken_over() {
    let native = "--controllers=deployment-controller,replicaset-controller,statefulset-controller,garbage-collector-controller,namespace-controller";
    let Some(lab) = Lab::start_with("hangzhou=1", &[native]) else {
        return;
    };
    let (kubectl, dir) = (lab.cloud(), lab.dir());
    let cluster = Cluster {
        kubectl: &kubectl,
        kubeconfig: &dir.join("admin.kubeconfig"),
        dir: &dir,
    };
    taken_over(&cluster);
}
