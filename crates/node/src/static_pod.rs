//! `yurt node static-pod-upgrade`: replaces the manifest of a static pod and sees to it that the new pod becomes ready; otherwise the
//! old manifest is had back. What a YurtStaticSet's worker runs on the node, with the flags of OpenYurt's `node-servant`.

use crate::{HubError, Outcome, hub::Hub};
use clap::Args;
use serde_json::{Value, json};
use std::{
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::time::Instant;
use yurt_hub::{
    deadline::parse_go_duration,
    ota::{
        manifest::{BadManifest, Manifest, Place, PlaceError, choose},
        pod::{self, digest},
    },
};

/// Between looks at the pod.
const LOOK: Duration = Duration::from_secs(2);
/// So many looks in a row it is to be ready: a container without a probe is ready before it fails.
const ENOUGH: u8 = 3;

/// `yurt node static-pod-upgrade`.
#[derive(Debug, Args)]
pub(crate) struct StaticPodUpgradeArgs {
    /// The static pod as the cluster knows it: SET-NODE.
    #[arg(long)]
    name: String,
    /// Its namespace.
    #[arg(long)]
    namespace: String,
    /// The manifest's file, without .yaml.
    #[arg(long)]
    manifest: String,
    /// The hash that the new manifest is of.
    #[arg(long)]
    hash: String,
    /// AdvancedRollingUpdate looks after the new pod; OTA only replaces the manifest.
    #[arg(long, default_value = "AdvancedRollingUpdate")]
    mode: String,
    /// How long the new pod may take to become ready.
    #[arg(long, default_value = "2m", value_parser = timeout)]
    timeout: Duration,
    /// Where the new manifest is.
    #[arg(long, value_name = "DIR", default_value = "/data")]
    source: PathBuf,
    /// Where the kubelet looks for manifests.
    #[arg(long, value_name = "DIR", default_value = "/etc/kubernetes/manifests")]
    manifests: PathBuf,
    /// Who tells the pods of the node, the first that answers: its hub, or the kubelet's read-only port.
    #[arg(
        long,
        value_name = "URL",
        value_delimiter = ',',
        default_value = "http://127.0.0.1:10267,http://127.0.0.1:10255"
    )]
    pods: Vec<String>,
    /// The token of the node's owner, for the hub.
    #[arg(
        long,
        value_name = "FILE",
        default_value = "/var/lib/yurthub/ota.token"
    )]
    token_file: PathBuf,
}

fn timeout(text: &str) -> Result<Duration, String> {
    let time = parse_go_duration(text).filter(|time| !time.is_zero());
    time.ok_or_else(|| "a time like 2m or 90s is expected".into())
}

/// Why a static pod was not upgraded.
#[derive(Debug, thiserror::Error)]
enum Fault {
    #[error("{}: {source}", path.display())]
    Source {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("the new manifest: {0}")]
    Manifest(#[from] BadManifest),
    #[error("--mode {0:?}: AdvancedRollingUpdate or OTA is expected")]
    Mode(String),
    #[error(transparent)]
    Place(#[from] PlaceError),
    #[error("after {0:?}, {1}; the manifest of before is back")]
    RolledBack(Duration, String),
    #[error("after {0:?}, {1}; and the manifest of before cannot be had back: {2}")]
    Stuck(Duration, String, PlaceError),
}

/// What the node says of the pod.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Seen {
    Ready,
    Not(String),
}

/// What a list of the node's pods says of one. Pure.
fn look(pods: &Value, namespace: &str, name: &str, hash: &str) -> Seen {
    let text = |value: &Value, pointer: &str| {
        let text = value.pointer(pointer).and_then(Value::as_str);
        text.unwrap_or_default().to_owned()
    };
    let all = pods.get("items").and_then(Value::as_array);
    // The kubelet's own list has the pod of the file, the cluster's the mirror: both have its name.
    let found = all.into_iter().flatten().find(|found| {
        text(found, "/metadata/name") == name && text(found, "/metadata/namespace") == namespace
    });
    let Some(found) = found else {
        return Seen::Not("there is no such pod".into());
    };
    let phase = text(found, "/status/phase");
    if pod::static_hash(found) != hash {
        Seen::Not("the pod is still of before".into())
    } else if phase != "Running" {
        Seen::Not(format!("the new pod is {phase}"))
    } else if !pod::is_ready(found) {
        Seen::Not("the new pod is not ready".into())
    } else {
        Seen::Ready
    }
}

/// The new manifest, out of what is mounted of the config map.
fn wanted(args: &StaticPodUpgradeArgs) -> Result<(Manifest, String), Fault> {
    let path = args.source.join(&args.manifest);
    let text = std::fs::read_to_string(&path).map_err(|source| Fault::Source { path, source })?;
    let map = json!({"metadata": {"annotations": {pod::STATIC_HASH: args.hash}}, "data": {args.manifest.as_str(): text}});
    // The name is SET-NODE, and both may have dashes: the manifest says which is the set.
    let mut why = BadManifest::None(format!("{:?} is not SET-NODE", args.name));
    for (at, _) in args.name.match_indices('-') {
        let set = args.name.get(..at).unwrap_or_default();
        match choose(&map, &args.namespace, set) {
            Ok(manifest) => return Ok((manifest, set.to_owned())),
            Err(error) => why = error,
        }
    }
    Err(why.into())
}

/// Asks for the node's pods.
async fn pods(args: &StaticPodUpgradeArgs) -> Result<Value, HubError> {
    let token = std::fs::read_to_string(&args.token_file).ok();
    let mut silent = None;
    for url in &args.pods {
        let hub = Hub::at(url)?.bearing(token.as_deref().map(str::trim));
        match hub.get::<Value>("/pods").await {
            Ok((pods, _)) => return Ok(pods),
            Err(error) => silent = silent.or(Some(error)),
        }
    }
    Err(silent.unwrap_or_else(|| HubError::Address(String::new())))
}

/// Waits until the new pod is ready; why it is not.
async fn wait(args: &StaticPodUpgradeArgs) -> Result<(), String> {
    let deadline = Instant::now() + args.timeout;
    let mut ready = 0;
    loop {
        let why = match pods(args).await {
            Ok(pods) => match look(&pods, &args.namespace, &args.name, &args.hash) {
                Seen::Ready => {
                    ready += 1;
                    if ready == ENOUGH {
                        return Ok(());
                    }
                    "the new pod was not ready for long enough".to_owned()
                }
                Seen::Not(why) => {
                    ready = 0;
                    why
                }
            },
            // The pod may be the hub.
            Err(error) => error.to_string(),
        };
        if Instant::now() + LOOK > deadline {
            return Err(why);
        }
        tokio::time::sleep(LOOK).await;
    }
}

async fn upgrade(args: &StaticPodUpgradeArgs) -> Result<(), Fault> {
    let looks_after = match args.mode.to_ascii_lowercase().as_str() {
        "advancedrollingupdate" => true,
        "ota" => false,
        _ => return Err(Fault::Mode(args.mode.clone())),
    };
    let (manifest, set) = wanted(args)?;
    let place = Place::of(Path::new(&args.manifests), &manifest.stem)?;
    place.adopt(&args.namespace, &set)?;
    place.replace(&manifest, &args.namespace, &set)?;
    if !looks_after {
        return Ok(());
    }
    let Err(why) = wait(args).await else {
        return Ok(());
    };
    match place.restore(&digest(manifest.text.as_bytes())) {
        Ok(()) => Err(Fault::RolledBack(args.timeout, why)),
        Err(error) => Err(Fault::Stuck(args.timeout, why, error)),
    }
}

/// Exits with 0 when the new pod is ready, with 1 when all is as before, with 2 when somebody has to look.
pub(crate) async fn run(args: &StaticPodUpgradeArgs) -> Outcome {
    match upgrade(args).await {
        Ok(()) => Outcome::Healthy,
        Err(fault) => {
            eprintln!("{fault}");
            match fault {
                Fault::Stuck(..) => Outcome::Unknown,
                _ => Outcome::Unhealthy,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use std::sync::{Arc, Mutex};
    use yurt_transport::ServeOptions;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        args: StaticPodUpgradeArgs,
    }

    fn yaml(hash: &str) -> String {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata:\n  name: a-hub\n  namespace: d\n  annotations: {{\"{}\": {hash}}}\n\
             spec:\n  containers:\n  - name: c\n    image: i\n",
            pod::STATIC_HASH
        )
    }

    fn list(hash: &str, phase: &str, ready: &str) -> Value {
        json!({"items": [{"metadata": {"name": "a-hub-n-1", "namespace": "other"}},
            {"metadata": {"name": "a-hub-n-1", "namespace": "d", "annotations": {pod::STATIC_HASH: hash}},
            "status": {"phase": phase, "conditions": [{"type": "Ready", "status": ready}]}}]})
    }

    #[test]
    fn running_and_ready_with_the_new_hash() {
        let of = |pods: &Value| look(pods, "d", "a-hub-n-1", "h2");
        assert_eq!(of(&list("h2", "Running", "True")), Seen::Ready);
        for (pods, why) in [
            (list("h1", "Running", "True"), "of before"),
            (list("h2", "Pending", "True"), "Pending"),
            (list("h2", "Running", "False"), "not ready"),
            (json!({}), "no such pod"),
        ] {
            assert!(
                matches!(of(&pods), Seen::Not(said) if said.contains(why)),
                "{why}"
            );
        }
    }

    /// A node: manifests, a config map, and a hub that shows what the kubelet would make of the manifest.
    struct Node {
        dir: tempfile::TempDir,
        asked: Arc<Mutex<Vec<String>>>,
        address: String,
        stop: tokio_util::sync::CancellationToken,
    }

    impl Node {
        async fn start(ready: &'static str) -> Self {
            let dir = tempfile::tempdir().unwrap();
            for name in ["manifests", "data"] {
                std::fs::create_dir(dir.path().join(name)).unwrap();
            }
            std::fs::write(dir.path().join("data/hub"), yaml("h2")).unwrap();
            std::fs::write(dir.path().join("token"), "secret\n").unwrap();
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = format!("http://{}", listener.local_addr().unwrap());
            let asked = Arc::new(Mutex::new(Vec::new()));
            let stop = tokio_util::sync::CancellationToken::new();
            let (told, file) = (asked.clone(), dir.path().join("manifests/hub.yaml"));
            let handler = move |request: http::Request<_>| {
                let token = request.headers().get("authorization").cloned();
                let token = token.map(|value| value.to_str().unwrap().to_owned());
                told.lock().unwrap().push(token.unwrap_or_default());
                let text = std::fs::read_to_string(&file).unwrap_or_default();
                let body = if text == yaml("h2") {
                    list("h2", "Running", ready)
                } else {
                    list("h1", "Running", "True")
                };
                async move {
                    drop(request);
                    http::Response::new(yurt_transport::full(body.to_string()))
                }
            };
            let serving = yurt_transport::serve(
                listener,
                None,
                ServeOptions::default(),
                stop.clone(),
                handler,
            );
            tokio::spawn(serving);
            Self {
                dir,
                asked,
                address,
                stop,
            }
        }

        fn at(&self, path: &str) -> PathBuf {
            self.dir.path().join(path)
        }

        fn read(&self, path: &str) -> Option<String> {
            std::fs::read_to_string(self.at(path)).ok()
        }

        async fn run(&self, more: &[&str]) -> (Outcome, Option<Fault>) {
            let at = |path: &str| self.at(path).display().to_string();
            let line: Vec<String> = [
                "x",
                "--name=a-hub-n-1",
                "--namespace=d",
                "--manifest=hub",
                "--hash=h2",
                "--timeout=7s",
                // Nobody answers at the first.
                &format!("--pods=http://127.0.0.1:9,{}", self.address),
                &format!("--source={}", at("data")),
                &format!("--manifests={}", at("manifests")),
                &format!("--token-file={}", at("token")),
            ]
            .iter()
            .map(|text| (*text).to_owned())
            .chain(more.iter().map(|text| (*text).to_owned()))
            .collect();
            let args = Line::try_parse_from(line).unwrap().args;
            let fault = upgrade(&args).await.err();
            let outcome = match &fault {
                None => Outcome::Healthy,
                Some(_) => run(&args).await,
            };
            (outcome, fault)
        }
    }

    impl Drop for Node {
        fn drop(&mut self) {
            self.stop.cancel();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_manifest_is_replaced_and_its_pod_looked_after() {
        let node = Node::start("True").await;
        std::fs::write(node.at("manifests/hub.yaml"), yaml("h1")).unwrap();
        let (outcome, fault) = node.run(&[]).await;
        assert!(outcome == Outcome::Healthy, "{fault:?}");
        assert_eq!(node.read("manifests/hub.yaml"), Some(yaml("h2")));
        let asked = node.asked.lock().unwrap().clone();
        assert_eq!(
            (asked.len(), asked[0].as_str()),
            (usize::from(ENOUGH), "Bearer secret")
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_pod_that_does_not_become_ready_is_taken_back() {
        let node = Node::start("False").await;
        std::fs::write(node.at("manifests/hub.yaml"), yaml("h1")).unwrap();
        let (outcome, fault) = node.run(&[]).await;
        assert_eq!(outcome, Outcome::Unhealthy);
        let why = fault.expect("a fault").to_string();
        assert!(
            why.contains("not ready") && why.contains("is back"),
            "{why}"
        );
        assert_eq!(node.read("manifests/hub.yaml"), Some(yaml("h1")));
        // OTA asks nobody.
        let (outcome, _) = node.run(&["--mode=ota"]).await;
        assert_eq!(outcome, Outcome::Healthy);
        assert_eq!(node.read("manifests/hub.yaml"), Some(yaml("h2")));
    }

    #[tokio::test(start_paused = true)]
    async fn a_manifest_that_was_renamed_is_one_file_at_any_time() {
        let node = Node::start("True").await;
        std::fs::write(node.at("manifests/old.yaml"), yaml("h1")).unwrap();
        std::fs::write(
            node.at("manifests/other.yaml"),
            yaml("h1").replace("a-hub", "b"),
        )
        .unwrap();
        let (outcome, fault) = node.run(&[]).await;
        assert!(outcome == Outcome::Healthy, "{fault:?}");
        assert_eq!(node.read("manifests/hub.yaml"), Some(yaml("h2")));
        assert_eq!(node.read("manifests/old.yaml"), None);
        assert!(node.read("manifests/other.yaml").is_some());
    }

    #[tokio::test]
    async fn what_does_not_fit_changes_nothing() {
        let node = Node::start("True").await;
        for (more, why) in [(vec!["--mode=x"], "--mode"), (vec![], "is not there")] {
            let (outcome, fault) = node.run(&more).await;
            assert_eq!(outcome, Outcome::Unhealthy);
            let fault = fault.expect("a fault").to_string();
            assert!(fault.contains(why), "{fault}");
        }
        std::fs::write(node.at("manifests/hub.yaml"), yaml("h1")).unwrap();
        std::fs::write(node.at("data/hub"), yaml("h3")).unwrap();
        let (_, fault) = node.run(&[]).await;
        assert!(fault.expect("a fault").to_string().contains("manifest"));
        assert_eq!(node.read("manifests/hub.yaml"), Some(yaml("h1")));
        assert_eq!(timeout("2m"), Ok(Duration::from_secs(120)));
        assert!(timeout("0").is_err() && timeout("soon").is_err());
    }
}
