//! Upgrades of the node's pods, asked for on the hub's socket: whoever may open it is the owner.

use crate::{HubError, Outcome, Output, hub::Socket, render, say};
use clap::{Args, Subcommand};
use http::Method;
use serde::Deserialize;
use std::path::PathBuf;

const UPGRADES: &str = "/openyurt.io/v1/upgrades";

/// `yurt node upgrade`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(crate) struct UpgradeArgs {
    #[command(subcommand)]
    action: Option<Action>,
    /// The pod to upgrade: POD or NAMESPACE/POD.
    #[arg(required = true)]
    pod: Option<String>,
    /// Its namespace.
    #[arg(short, long, default_value = "default")]
    namespace: String,
    /// Do not wait for the cloud when it is away: refuse.
    #[arg(long)]
    now: bool,
    /// The socket of the node's hub.
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        default_value = "/var/lib/yurthub/hub.sock"
    )]
    socket: PathBuf,
    /// How to tell.
    #[arg(short, long, global = true, value_enum, default_value_t = Output::Text)]
    output: Output,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Upgrades, and pods that are due.
    List,
    /// One upgrade.
    Status {
        /// Its ID.
        id: String,
    },
    /// Say yes to one that waits for it.
    Confirm {
        /// Its ID.
        id: String,
    },
    /// Take back one that waits.
    Cancel {
        /// Its ID.
        id: String,
    },
}

/// An upgrade, as the hub tells of it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Upgrade {
    pub(crate) id: String,
    pub(crate) namespace: String,
    pub(crate) pod: String,
    pub(crate) state: String,
    pub(crate) revision: String,
    pub(crate) reason: String,
    pub(crate) until: String,
    pub(crate) new_pod: String,
    pub(crate) asked_by: String,
    pub(crate) changed_at: String,
}

/// All of them.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Upgrades {
    pub(crate) items: Vec<Upgrade>,
    pub(crate) policy: PolicyState,
}

/// What the owner's policy is at.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct PolicyState {
    pub(crate) error: Option<String>,
}

impl Upgrade {
    fn outcome(&self) -> Outcome {
        Outcome::of(!matches!(self.state.as_str(), "failed" | "rolled-back"))
    }
}

/// A pod of the node, as far as it is looked at.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Pod {
    metadata: Metadata,
    status: Status,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Metadata {
    name: String,
    namespace: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Status {
    conditions: Vec<Condition>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Condition {
    #[serde(rename = "type")]
    kind: String,
    status: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct Pods {
    items: Vec<Pod>,
}

impl Pod {
    /// Its name, when it is to be upgraded.
    fn due(&self) -> Option<String> {
        let needs = self
            .status
            .conditions
            .iter()
            .any(|condition| condition.kind == "PodNeedUpgrade" && condition.status == "True");
        needs.then(|| format!("{}/{}", self.metadata.namespace, self.metadata.name))
    }
}

/// Part of a path; nothing that would make it another one.
fn segment(name: &str) -> Result<&str, HubError> {
    let plain = !name.is_empty()
        && !name.starts_with('.')
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.'));
    plain
        .then_some(name)
        .ok_or_else(|| HubError::Name(name.to_owned()))
}

/// Namespace and name.
fn pod_of<'a>(pod: &'a str, namespace: &'a str) -> Result<(&'a str, &'a str), HubError> {
    let (namespace, name) = pod.split_once('/').unwrap_or((namespace, pod));
    Ok((segment(namespace)?, segment(name)?))
}

/// A hub that says no was asked all the same.
pub(crate) async fn run(args: &UpgradeArgs) -> Result<Outcome, HubError> {
    match ask(args).await {
        Err(error @ (HubError::Refused(..) | HubError::Name(_))) => {
            eprintln!("yurt node: {error}");
            Ok(Outcome::Unhealthy)
        }
        asked => asked,
    }
}

async fn ask(args: &UpgradeArgs) -> Result<Outcome, HubError> {
    let hub = Socket(&args.socket);
    let text = args.output == Output::Text;
    let (method, path) = match &args.action {
        None => {
            let pod = args.pod.as_deref().unwrap_or_default();
            let (namespace, name) = pod_of(pod, &args.namespace)?;
            let query = if args.now { "?queue=false" } else { "" };
            let path = format!("/openyurt.io/v1/namespaces/{namespace}/pods/{name}/upgrade{query}");
            let (status, body) = hub.ask(Method::POST, &path).await?;
            // OpenYurt's sentence when it began, the upgrade when it is kept.
            if status == http::StatusCode::OK || !text {
                say(&format!("{}\n", body.trim_end()));
            } else {
                say(&render::upgrade(&serde_json::from_str(&body)?));
            }
            return Ok(Outcome::Healthy);
        }
        Some(Action::List) => {
            let (_, body) = hub.ask(Method::GET, UPGRADES).await?;
            if !text {
                say(&body);
                return Ok(Outcome::Healthy);
            }
            let upgrades: Upgrades = serde_json::from_str(&body)?;
            let due = match hub.ask(Method::GET, "/pods").await {
                Ok((_, body)) => {
                    let pods: Pods = serde_json::from_str(&body)?;
                    Some(pods.items.iter().filter_map(Pod::due).collect())
                }
                // A node that knows nothing of its pods still has upgrades to tell of.
                Err(HubError::Refused(..)) => None,
                Err(error) => return Err(error),
            };
            say(&render::upgrades(&upgrades, due));
            return Ok(Outcome::Healthy);
        }
        Some(Action::Status { id }) => (Method::GET, format!("{UPGRADES}/{}", segment(id)?)),
        Some(Action::Confirm { id }) => {
            (Method::POST, format!("{UPGRADES}/{}/confirm", segment(id)?))
        }
        Some(Action::Cancel { id }) => (Method::DELETE, format!("{UPGRADES}/{}", segment(id)?)),
    };
    let (_, body) = hub.ask(method, &path).await?;
    let upgrade: Upgrade = serde_json::from_str(&body)?;
    if text {
        say(&render::upgrade(&upgrade));
    } else {
        say(&body);
    }
    Ok(upgrade.outcome())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        upgrade: UpgradeArgs,
    }

    fn parse(line: &str) -> Result<UpgradeArgs, clap::Error> {
        Line::try_parse_from(["upgrade"].into_iter().chain(line.split_whitespace()))
            .map(|line| line.upgrade)
    }

    #[test]
    fn a_pod_or_an_action() {
        let pod = parse("proxy-x1 -n kube-system --now").unwrap();
        assert!(pod.action.is_none() && pod.now);
        assert_eq!(
            (pod.pod.as_deref(), pod.namespace.as_str()),
            (Some("proxy-x1"), "kube-system")
        );
        let list = parse("list --socket /tmp/s -o json").unwrap();
        assert!(matches!(list.action, Some(Action::List)));
        assert_eq!(
            (list.socket, list.output),
            (PathBuf::from("/tmp/s"), Output::Json)
        );
        let confirm = parse("confirm ab12").unwrap();
        assert!(matches!(confirm.action, Some(Action::Confirm { id }) if id == "ab12"));
        assert!(parse("").is_err() && parse("status").is_err() && parse("a list").is_err());
    }

    #[test]
    fn names_stay_one_part_of_a_path() {
        assert_eq!(pod_of("p", "d").unwrap(), ("d", "p"));
        assert_eq!(pod_of("n/p", "d").unwrap(), ("n", "p"));
        for bad in ["", "a/b/c", "../x", "a?b", "a#b", "a%2fb", "ü"] {
            assert!(pod_of(bad, "d").is_err(), "{bad}");
        }
    }

    /// A hub on a socket that answers so, and what it was asked.
    async fn asked(line: &str, code: u16, body: &'static str) -> (Outcome, String) {
        use std::sync::{Arc, Mutex};
        use yurt_transport::ServeOptions;
        static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let path =
            std::env::temp_dir().join(format!("yurt-node-{}-{number}.sock", std::process::id()));
        let listener = tokio::net::UnixListener::bind(&path).unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let stop = tokio_util::sync::CancellationToken::new();
        let told = seen.clone();
        let handler = move |request: http::Request<_>| {
            let (method, uri) = (request.method().clone(), request.uri().clone());
            told.lock().unwrap().push(format!("{method} {uri}"));
            async move {
                drop(request);
                let mut response = http::Response::new(yurt_transport::full(body));
                *response.status_mut() = http::StatusCode::from_u16(code).unwrap();
                response
            }
        };
        let serving = yurt_transport::serve(
            listener,
            None,
            ServeOptions::default(),
            stop.clone(),
            handler,
        );
        let serving = tokio::spawn(serving);
        let args = parse(&format!("{line} --socket {}", path.display())).unwrap();
        let outcome = run(&args).await.unwrap_or(Outcome::Unknown);
        stop.cancel();
        serving.await.unwrap().unwrap();
        std::fs::remove_file(&path).unwrap();
        let seen = seen.lock().unwrap().join(", ");
        (outcome, seen)
    }

    #[tokio::test]
    async fn what_is_asked_of_the_hub_and_what_comes_of_it() {
        const JOB: &str =
            r#"{"id":"ab","namespace":"d","pod":"p","state":"failed","reason":"not ready"}"#;
        let ask = "POST /openyurt.io/v1/namespaces/d/pods/p/upgrade";
        for (line, code, body, outcome, seen) in [
            (
                "p -n d",
                200,
                "Start updating pod d/p",
                Outcome::Healthy,
                ask.to_owned(),
            ),
            ("d/p", 202, JOB, Outcome::Healthy, ask.to_owned()),
            (
                "p -n d --now",
                503,
                "away",
                Outcome::Unhealthy,
                format!("{ask}?queue=false"),
            ),
            (
                "status ab",
                200,
                JOB,
                Outcome::Unhealthy,
                "GET /openyurt.io/v1/upgrades/ab".into(),
            ),
            (
                "confirm ab",
                409,
                "upgrade ab is done",
                Outcome::Unhealthy,
                "POST /openyurt.io/v1/upgrades/ab/confirm".into(),
            ),
            (
                "cancel ab",
                200,
                "{\"state\":\"cancelled\"}",
                Outcome::Healthy,
                "DELETE /openyurt.io/v1/upgrades/ab".into(),
            ),
            (
                "list",
                200,
                "{\"items\":[]}",
                Outcome::Healthy,
                "GET /openyurt.io/v1/upgrades, GET /pods".into(),
            ),
            (
                "list",
                200,
                "nonsense",
                Outcome::Unknown,
                "GET /openyurt.io/v1/upgrades".into(),
            ),
        ] {
            assert_eq!(asked(line, code, body).await, (outcome, seen), "{line}");
        }
        let nobody = parse("list --socket /nowhere/hub.sock").unwrap();
        assert!(matches!(run(&nobody).await, Err(HubError::Socket(..))));
    }

    #[test]
    fn what_is_due() {
        let pods: Pods = serde_json::from_str(
            r#"{"kind":"PodList","items":[
            {"metadata":{"name":"a","namespace":"d"},"status":{"conditions":[{"type":"PodNeedUpgrade","status":"True"}]}},
            {"metadata":{"name":"b","namespace":"d"},"status":{"conditions":[{"type":"PodNeedUpgrade","status":"False"}]}},
            {"metadata":{"name":"c"}}]}"#,
        )
        .unwrap();
        let due: Vec<_> = pods.items.iter().filter_map(Pod::due).collect();
        assert_eq!(due, ["d/a"]);
    }
}
