use super::*;
use crate::{
    process::{self, Config, Election, Server},
    stage::{self, Stage},
    webhook,
};
use std::{collections::BTreeMap, fs, net::SocketAddr, path::PathBuf, time::Duration};
use tokio_util::sync::CancellationToken;
use yurt_controller::{
    Key,
    collections::{DAEMON_SETS, NODE_POOLS, NODES},
    election::Timing,
    kube::{Kube, Token},
    selection::Selection,
};

fn shipped(path: &str) -> String {
    let file = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../../deploy")
        .join(path);
    fs::read_to_string(&file).unwrap_or_default()
}

#[tokio::test]
async fn what_is_shipped_is_what_the_code_says() {
    for (components, dir) in [
        (&[Component::Manager, Component::Hub][..], "manager"),
        (&[Component::Tunnel], "tunnel"),
    ] {
        let names = components.iter().map(|component| component.name());
        let names: Vec<&str> = names.collect();
        for component in components {
            let text = yaml(&component.objects(&Values::default())).expect("YAML");
            assert!(
                shipped(&format!("{dir}/{}.yaml", component.name())) == text,
                "differs from the code; run: cargo run -- manifests --component {} -o deploy/{dir}",
                names.join(",")
            );
        }
    }
    for chart in Chart::ALL {
        let names = chart.components().iter().map(|component| component.name());
        let names: Vec<&str> = names.collect();
        for template in chart.templates().expect("YAML") {
            let dir = format!("charts/{}", chart.name());
            assert!(
                shipped(&format!("{dir}/{}", template.path)) == template.text,
                "{} differs from the code; run: cargo run -- manifests --component {} --chart deploy/{dir}",
                template.path,
                names.join(",")
            );
        }
    }
}

/// As much of Helm as the generated templates ask for.
fn render(template: &str, values: &Value) -> String {
    let value = |path: &str| {
        let path = path.strip_prefix(".Values.").expect("a value");
        path.split('.')
            .fold(values, |value, name| &value[name])
            .clone()
    };
    let block = |value: &Value, indent: &str| {
        let indent: usize = indent.trim().parse().expect("a number");
        let text = serde_saphyr::to_string(value).expect("YAML");
        let lines = text.trim_end().lines();
        lines
            .map(|line| format!("\n{:indent$}{line}", ""))
            .collect::<String>()
    };
    let evaluate = |expression: &str| match expression {
        ".Release.Namespace" => "kube-system".to_owned(),
        ".Release.Name" | "include \"yurt-manager.name\" ." => MANAGER.to_owned(),
        "\"{{\"" => "{{".to_owned(),
        path => match path.strip_suffix(" | quote") {
            Some(path) => value(path).to_string(),
            None => plain(&value(path)),
        },
    };
    let mut out = String::new();
    for line in template.lines() {
        if let Some((_, with)) = line.split_once("{{- with ") {
            let (path, rest) = with.split_once(" }}").expect("an end");
            let (_, indent) = rest.split_once("nindent ").expect("an indent");
            let items = value(path);
            if items.as_array().is_some_and(|items| !items.is_empty()) {
                let (indent, _) = indent.split_once(" }}").expect("an end");
                out += block(&items, indent).trim_start_matches('\n');
                out += "\n";
            }
            continue;
        }
        let mut line = line.to_owned();
        while let Some((before, rest)) = line
            .split_once("{{")
            .map(|(b, r)| (b.to_owned(), r.to_owned()))
        {
            let (expression, after) = rest.split_once("}}").expect("an end");
            let expression = expression.trim_start_matches('-').trim();
            let shown = match expression.strip_prefix("toYaml ") {
                Some(rest) => {
                    let (path, indent) = rest.split_once(" | nindent ").expect("an indent");
                    block(&value(path), indent)
                }
                None => evaluate(expression),
            };
            // What an expression shows is not looked at again.
            out += &before;
            out += &shown;
            line = after.to_owned();
        }
        out += &line;
        out += "\n";
    }
    out
}

fn documents(yaml: &str) -> Vec<Value> {
    let documents = yaml
        .split("---\n")
        .filter(|text| !text.trim_start_matches('#').trim().is_empty());
    documents
        .filter(|text| text.contains("kind:"))
        .map(|text| serde_saphyr::from_str(text).expect("YAML"))
        .collect()
}

fn values_of(chart: Chart) -> Value {
    let file = format!("charts/{}/values.yaml", chart.name());
    serde_saphyr::from_str(&shipped(&file)).expect("YAML")
}

#[tokio::test]
async fn the_charts_values_make_the_plain_manifests() {
    for chart in Chart::ALL {
        makes_the_plain_manifests(chart, &values_of(chart));
    }
    let mut values = values_of(Chart::Manager);
    values["extraArgs"] = json!(["--log=debug", "--leader-elect=false"]);
    values["image"]["pullSecrets"] = json!([{"name": "secret"}]);
    values["affinity"] = json!({});
    let manager = &Chart::Manager.templates().expect("YAML")[1];
    let rendered = documents(&render(&manager.text, &values));
    let spec = &rendered.last().expect("a Deployment")["spec"]["template"]["spec"];
    let args = spec["containers"][0]["args"].as_array().expect("arguments");
    assert!(args.ends_with(&["--log=debug".into(), "--leader-elect=false".into()]));
    assert_eq!(spec["imagePullSecrets"][0]["name"], "secret");
}

fn makes_the_plain_manifests(chart: Chart, values: &Value) {
    for template in chart.templates().expect("YAML") {
        let component = Component::ALL
            .into_iter()
            .find(|component| template.path.contains(component.name()))
            .expect("a component");
        let rendered = documents(&render(&template.text, values));
        let mut expected = component.objects(&Values::default());
        if component == Component::Crds {
            for object in &mut expected {
                object["metadata"]["annotations"]["helm.sh/resource-policy"] = "keep".into();
            }
        }
        assert_eq!(rendered.len(), expected.len(), "{}", template.path);
        for (rendered, expected) in rendered.iter().zip(&expected) {
            assert_eq!(rendered, expected);
        }
    }
}

/// What the pods are told is understood, whichever controllers there are.
#[test]
fn the_managers_own_arguments_are_understood() {
    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        args: process::ManagerArgs,
    }
    let container = &deployment(&Values::default())["spec"]["template"]["spec"]["containers"][0];
    let args = container["args"].as_array().into_iter().flatten();
    let words = std::iter::once("manager").chain(args.filter_map(Value::as_str));
    let line = <Line as clap::Parser>::try_parse_from(words).expect("understood");
    let config = Config::try_from(line.args).expect("a configuration");
    assert!(config.controllers.includes("nodepool-controller"));
    assert!(!config.controllers.includes("node-life-cycle-controller"));
    assert_eq!(
        config.election.map(|election| election.lease),
        Some("cloud-yurt-manager".into())
    );
}

/// Where an object is created.
fn path(object: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let version = text(&object["apiVersion"]);
    let root = if version.contains('/') {
        "/apis"
    } else {
        "/api"
    };
    let plural = text(&object["kind"]).to_lowercase() + "s";
    match object["metadata"]["namespace"].as_str() {
        Some(namespace) => format!("{root}/{version}/namespaces/{namespace}/{plural}"),
        None => format!("{root}/{version}/{plural}"),
    }
}

fn free_address() -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("an address")
}

async fn ask(address: SocketAddr, path: &str) -> Option<String> {
    let kube = Kube::new(&address.to_string(), None, None, Duration::from_secs(5));
    match kube.get(path).await.ok()? {
        Value::String(text) => Some(text),
        other => Some(other.to_string()),
    }
}

/// The real manager in another namespace than the usual one, under exactly the rules that are shipped.
#[tokio::test]
async fn the_rules_are_enough_for_every_controller() {
    let stage =
        Stage::start("deployment-controller,replicaset-controller,daemonset-controller").await;
    let values = Values {
        namespace: "edge-system".into(),
        ..Values::default()
    };
    let namespaces = "/api/v1/namespaces";
    for namespace in [&values.namespace, "kube-node-lease"] {
        let namespace = json!({"metadata": {"name": namespace}});
        stage
            .kube
            .ensure(namespaces, &namespace)
            .await
            .expect("a namespace");
    }
    for component in [Component::Manager, Component::Hub] {
        for object in component.objects(&values) {
            stage.create(&path(&object), object).await;
        }
    }
    let account = format!(
        "{namespaces}/{}/serviceaccounts/{MANAGER}/token",
        values.namespace
    );
    let request =
        json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}});
    let granted = stage.create(&account, request).await;
    let token = Token::new(granted["status"]["token"].as_str().expect("a token"));
    let (metrics, health) = (free_address(), free_address());
    let config = Config {
        server: Server::Given(stage.kube.with_token(token)),
        settings: crate::Settings {
            namespace: values.namespace.clone(),
            ..crate::Settings::default()
        },
        // Also what is off unless it is named.
        controllers: Selection::parse("*,nodelifecycle", crate::names()).expect("known"),
        independent_accounts: true,
        election: Some(Election {
            lease: values.lease.clone(),
            timing: Timing::default(),
        }),
        metrics: Some(metrics),
        health: Some(health),
        webhooks: Some(webhook::Options {
            namespace: values.namespace.clone(),
            address: "127.0.0.1".parse().expect("an address"),
            port: 0,
            ..webhook::Options::default()
        }),
        ..Config::in_process(stage.kube.clone())
    };
    stage.create(&NODE_POOLS.path(""), stage::pool("p")).await;
    let end = CancellationToken::new();
    let running = tokio::spawn(process::run(config, end.clone()));
    let node = json!({"metadata": {"name": "n", "labels": {"apps.openyurt.io/nodepool": "p", "openyurt.io/is-edge-worker": "true"}}});
    let node = stage.create(&NODES.path(""), node).await;
    let ready = json!({"status": {"conditions": [{"type": "Ready", "status": "True"}],
        "addresses": [{"type": "InternalIP", "address": "10.0.0.1"}]}});
    let of_node = NODES.object_path(&Key::of(&node));
    stage
        .kube
        .merge(&format!("{of_node}/status"), &ready)
        .await
        .expect("a status");
    let template = json!({"metadata": {"labels": {"app": "a"}},
        "spec": {"containers": [{"name": "a", "image": "a:1"}]}});
    let daemons = json!({"metadata": {"name": "d", "namespace": "default",
            "annotations": {"apps.openyurt.io/update-strategy": "OTA"}},
        "spec": {"selector": {"matchLabels": {"app": "a"}}, "updateStrategy": {"type": "OnDelete"}, "template": template}});
    stage.create(&DAEMON_SETS.path("default"), daemons).await;
    let sets = "/apis/apps.openyurt.io/v1beta1/namespaces/default/yurtappsets";
    let set = json!({"apiVersion": "apps.openyurt.io/v1beta1", "kind": "YurtAppSet",
        "metadata": {"name": "s", "namespace": "default"},
        "spec": {"pools": ["p"], "workload": {"workloadTemplate": {"deploymentTemplate": {
            "metadata": {"labels": {"app": "b"}},
            "spec": {"replicas": 1, "selector": {"matchLabels": {"app": "b"}},
                "template": {"metadata": {"labels": {"app": "b"}},
                    "spec": {"containers": [{"name": "b", "image": "b:1"}]}}}}}}}});
    stage.create(sets, set).await;
    // What several controllers do, each as itself.
    let pool = NODE_POOLS.object_path(&Key::new("", "p"));
    stage
        .until(&pool, |pool| pool["status"]["readyNodeNum"] == 1)
        .await;
    stage
        .until(&pool, |pool| {
            pool["status"]["leaderEndpoints"][0]["nodeName"] == "n"
        })
        .await;
    let leaders = format!("{namespaces}/{}/configmaps/leader-hub-p", values.namespace);
    stage
        .until(&leaders, |map| map["data"]["leaders"] == "n/10.0.0.1")
        .await;
    let deployments = "/apis/apps/v1/namespaces/default/deployments";
    stage
        .until(deployments, |list| {
            list["items"].as_array().is_some_and(|d| d.len() == 1)
        })
        .await;
    let secret = format!(
        "{namespaces}/{}/secrets/yurt-manager-webhook-certs",
        values.namespace
    );
    stage
        .until(&secret, |secret| secret["data"].is_object())
        .await;
    let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
    let checks = loop {
        let checks = ask(health, "/readyz?verbose").await.unwrap_or_default();
        if !checks.is_empty() || tokio::time::Instant::now() > deadline {
            break checks;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    assert!(checks.contains("readyz check passed"), "{checks}");
    assert!(
        !checks.contains("[!]") && !checks.contains("[-]"),
        "{checks}"
    );
    let shown = ask(metrics, "/metrics").await.expect("metrics");
    let refused: BTreeMap<&str, &str> = shown
        .lines()
        .filter_map(|line| line.strip_prefix("rest_client_requests_total{code=\"403\","))
        .filter_map(|line| line.split_once(' '))
        .collect();
    assert!(refused.is_empty(), "the rules do not suffice: {refused:?}");
    end.cancel();
    running.await.expect("no panic").expect("an orderly end");
}

/// Every object of the tunnel is one that an API server takes as it is, and takes again.
#[tokio::test]
async fn an_api_server_takes_the_tunnels_objects() {
    let stage = Stage::start("-*").await;
    for object in Component::Tunnel.objects(&Values::default()) {
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        let collection = path(&object);
        stage
            .create(
                &format!("{collection}?fieldValidation=Strict"),
                object.clone(),
            )
            .await;
        // As `kubectl apply --server-side` would, later.
        let path = format!("{collection}/{name}");
        let applied = stage.kube.apply(&path, &object, "kubectl", true).await;
        applied.unwrap_or_else(|error| panic!("{path}: {error}"));
    }
}
