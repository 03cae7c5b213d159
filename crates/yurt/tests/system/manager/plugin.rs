//! `kubectl yurt`: found by kubectl in the path, as a plugin.

use crate::fixture::{Lab, Scratch, eventually, kubectl, text};
use serde_json::Value;
use std::{
    os::unix::fs::symlink,
    path::Path,
    process::{Command, Output},
};

/// kubectl with the plugin in its path.
struct Plugin {
    kubectl: std::path::PathBuf,
    bin: Scratch,
}

impl Plugin {
    fn install() -> Option<Self> {
        let kubectl = kubectl()?;
        let bin = Scratch::new();
        symlink(env!("CARGO_BIN_EXE_yurt"), bin.path().join("kubectl-yurt")).unwrap();
        Some(Self { kubectl, bin })
    }

    fn ask(&self, kubeconfig: &Path, args: &[&str]) -> Output {
        let path = std::env::var("PATH").unwrap_or_default();
        Command::new(&self.kubectl)
            .arg("yurt")
            .args(args)
            .env("PATH", format!("{}:{path}", self.bin.path().display()))
            .env("KUBECONFIG", kubeconfig)
            .env("HOME", self.bin.path())
            .output()
            .unwrap()
    }
}

const APP: &str = r#"
apiVersion: apps.openyurt.io/v1beta1
kind: YurtAppSet
metadata: {name: web, namespace: shop}
spec:
  pools: [a, b, nowhere]
  workload:
    workloadTemplate:
      deploymentTemplate:
        metadata: {labels: {app: web}}
        spec:
          replicas: 1
          selector: {matchLabels: {app: web}}
          template:
            metadata: {labels: {app: web}}
            spec: {containers: [{name: main, image: "registry.lab/web:1"}]}
    workloadTweaks:
    - pools: [b]
      tweaks: {containerImages: [{name: main, targetImage: "nowhere.lab/web:1"}]}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop, annotations: {openyurt.io/topologyKeys: openyurt.io/nodepool}}
spec: {selector: {app: web}, ports: [{port: 80}]}
"#;

#[test]
fn kubectl_finds_the_plugin_and_it_says_how_things_are_and_why() {
    let Some(plugin) = Plugin::install() else {
        return;
    };
    let Some(lab) = Lab::start("a=2,b=1") else {
        return;
    };
    let admin = lab.dir().join("admin.kubeconfig");
    let ask = |args: &[&str]| {
        let out = plugin.ask(&admin, args);
        assert!(out.stderr.is_empty(), "{args:?}: {}", text(&out.stderr));
        (text(&out.stdout), out.status.code())
    };
    let json = |args: &[&str]| -> Value {
        let args = [args, &["-o", "json"]].concat();
        serde_json::from_str(&ask(&args).0).unwrap()
    };
    eventually("the manager leads, pool a too", || {
        let status = json(&["status"]);
        status["manager"]["leader"]["alive"] == true
            && status["pools"][0]["leaders"] != serde_json::json!([])
    });
    let (status, _) = ask(&["status"]);
    for word in [
        "COMPONENT",
        "leads for",
        "lease yurt-manager",
        "3 of 3 ready, 0 cut off",
        "nodepools.apps.openyurt.io",
        "POOL",
    ] {
        assert!(status.contains(word), "{word} in\n{status}");
    }

    lab.cloud().ok(&["create", "namespace", "shop"]);
    lab.cloud().feed(&["apply", "-f", "-"], APP);
    let pool = |app: &Value, name: &str| {
        let pools = app["pools"].as_array().unwrap();
        pools
            .iter()
            .find(|row| row["pool"] == name)
            .cloned()
            .unwrap_or_default()
    };
    eventually("one pool is ready, the other cannot pull", || {
        let app = json(&["app", "web", "-n", "shop"]);
        pool(&app, "a")["phase"] == "Ready"
            && pool(&app, "b")["problem"]
                .as_str()
                .is_some_and(|p| p.contains("ImagePull") || p.contains("ErrImage"))
    });
    let (app, _) = ask(&["app", "yas/web", "--namespace", "shop"]);
    for word in [
        "YurtAppSet shop/web",
        "nowhere.lab/web:1",
        "there is no NodePool nowhere",
    ] {
        assert!(app.contains(word), "{word} in\n{app}");
    }
    let name = lab.cloud().ok(&[
        "get",
        "pods",
        "-n",
        "shop",
        "-l",
        "apps.openyurt.io/pool-name=a",
        "-o",
        "jsonpath={.items[0].metadata.name}",
    ]);
    let (why, code) = ask(&["why", &name, "-n", "shop"]);
    for word in [
        format!("Pod shop/{name}, on node a-"),
        "reached from the nodes of pool a only".into(),
        "of YurtAppSet web in pool a, newest revision".into(),
        "last heartbeat".into(),
    ] {
        assert!(why.contains(&word), "{word} in\n{why}");
    }
    assert_eq!(code, Some(0), "{why}");
    let name = lab.cloud().ok(&[
        "get",
        "pods",
        "-n",
        "shop",
        "-l",
        "apps.openyurt.io/pool-name=b",
        "-o",
        "jsonpath={.items[0].metadata.name}",
    ]);
    let (why, code) = ask(&["why", &format!("pod/{name}"), "-n", "shop"]);
    assert!(why.contains("PROBLEM   life"), "{why}");
    assert_eq!(
        code,
        Some(1),
        "what has a problem is told by the exit code too"
    );

    // A node that is cut off, and vouched for.
    lab.lab(&["cut", "a-2"]);
    eventually("the pool vouches for the node", || {
        json(&["pools"])["pools"][0]["cutOff"] == 1
    });
    let (why, _) = ask(&["why", "node/a-2"]);
    assert!(why.contains("its pool vouches for it"), "{why}");
    let (pool, _) = ask(&["pools", "a"]);
    assert!(
        pool.contains("by the pool") && pool.contains("a-1"),
        "{pool}"
    );

    // What goes wrong is said.
    let out = plugin.ask(&admin, &["why", "node/none"]);
    assert_eq!(text(&out.stderr).trim(), "yurt: there is no node none");
    let out = plugin.ask(Path::new("/nowhere"), &["status"]);
    assert!(
        text(&out.stderr).contains("no kubeconfig"),
        "{}",
        text(&out.stderr)
    );
    let out = plugin.ask(&admin, &["status", "--context", "none"]);
    assert!(
        text(&out.stderr).contains("no entry \"none\" in contexts"),
        "{}",
        text(&out.stderr)
    );
}
